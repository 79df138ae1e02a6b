//! Row 4: who may call, by certificate or by a proxy's word, and what becomes of everybody else.

use std::time::{Duration, SystemTime};

use rcgen::ExtendedKeyUsagePurpose;
use sqril_grpc::pb::customer_service_client::CustomerServiceClient;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
};

use crate::{
    certificates::{Authority, Issued, SHOP, Subject, Tls},
    measured::Scrape,
    support::{Facade, PATIENCE, Told, Upstream, a_profile, an_update, program, with},
};

async fn yes() -> Upstream {
    Upstream::answering(200, &[crate::support::JSON], &a_profile().to_string()).await
}

/// Calls on a new connection, and expects that TLS lets nobody through.
async fn is_turned_away(tls: &Tls, facade: &Facade, caller: Option<&Issued>, because: &str) {
    let called = match tls.connect(facade, caller).await {
        Ok(channel) => {
            let mut client = CustomerServiceClient::new(channel);
            client.update_customer(an_update()).await.is_ok()
        }
        Err(_) => false,
    };
    assert!(!called, "{because}");
    let said = facade.logged(|line| {
        let message = line["message"].as_str().unwrap();
        message.starts_with("no TLS with") && message.contains(because)
    });
    said.await;
}

#[tokio::test]
async fn row_04_whom_tls_turns_away() {
    let (tls, upstream) = (Tls::new(), yes().await);
    let hour = Duration::from_secs(3600);
    let issue = |subject: Subject<'_>| tls.theirs.issue(&subject);
    let expired = issue(Subject {
        to: SystemTime::now() - hour / 2,
        ..Subject::caller(&[SHOP])
    });
    let early = issue(Subject {
        from: SystemTime::now() + hour / 2,
        ..Subject::caller(&[SHOP])
    });
    let for_servers = issue(Subject {
        usage: ExtendedKeyUsagePurpose::ServerAuth,
        ..Subject::caller(&[SHOP])
    });
    let revoked = tls.theirs.caller(SHOP);
    tls.folder.write("crl.pem", tls.theirs.revoke(&[&revoked]));
    let stranger = Authority::new().caller(SHOP);
    // Whoever vouches for the façade does not vouch for callers.
    let of_ours = tls.ours.caller(SHOP);

    for (caller, because) in [
        (None, "peer sent no certificates"),
        (Some(&stranger), "UnknownIssuer"),
        (Some(&of_ours), "UnknownIssuer"),
        (Some(&expired), "certificate expired"),
        (Some(&early), "certificate not valid yet"),
        (Some(&for_servers), "does not allow extended key usage"),
        (Some(&revoked), "Revoked"),
    ] {
        // A façade each, for its complaints come once a second.
        let facade = tls.facade(&upstream.url(), &[]).await;
        is_turned_away(&tls, &facade, caller, because).await;
        let counted = Scrape::of(&facade).await;
        assert!(counted.value("sqril_connections_total{result=\"no_tls\"}") >= 1.0);
    }
    assert!(upstream.received().is_empty());
}

#[tokio::test]
async fn row_04_not_among_those_who_may() {
    let (tls, upstream) = (Tls::new(), yes().await);
    let facade = tls.facade(&upstream.url(), &[]).await;
    let below = format!("{SHOP}/deeper");
    for (names, known_as) in [
        (vec!["spiffe://test.example/ns/other/sa/api"], true),
        (vec!["spiffe://other.example/ns/shop/sa/api"], true),
        (vec![&*below], true),
        (vec!["shop.example"], true),
        // More than one URI is no SPIFFE id; and a certificate without a name names nobody.
        (vec![SHOP, "spiffe://test.example/x"], false),
        (vec!["https://test.example/ns/shop/sa/api"], false),
        (vec![], false),
    ] {
        let caller = tls.theirs.issue(&Subject::caller(&names));
        let mut client = tls.client(&facade, Some(&caller)).await;
        let call = with(
            an_update(),
            &[("x-request-id", &format!("r{}", names.len()))],
        );
        let told = Told::of(&client.update_customer(call).await.unwrap_err());
        told.is(Code::PermissionDenied, "CALLER_NOT_ALLOWED", "not_sent");
        assert!(told.retry_in().is_none());
        let line = facade
            .logged(|line| {
                line["reason"] == "CALLER_NOT_ALLOWED"
                    && line["caller"].as_str() == names.first().copied().filter(|_| known_as)
            })
            .await;
        assert_eq!(line["outcome"], "not_sent");
        assert_eq!(line["method"], "UpdateCustomer");
    }
    assert!(upstream.received().is_empty());
}

#[tokio::test]
async fn those_who_may_call() {
    let (tls, upstream) = (Tls::new(), yes().await);
    let allowed = [
        "--allow-caller=spiffe://test.example/ns/jobs/*",
        "--allow-caller=Batch.Example,other.example",
    ];
    let facade = tls.facade(&upstream.url(), &allowed).await;
    for names in [
        vec![SHOP],
        vec!["spiffe://test.example/ns/jobs/sa/nightly"],
        vec!["x.example", "batch.example"],
        vec!["other.example", "spiffe://test.example/unknown"],
    ] {
        let caller = tls.theirs.issue(&Subject::caller(&names));
        let mut client = tls.client(&facade, Some(&caller)).await;
        client.update_customer(an_update()).await.unwrap();
        let name = names
            .iter()
            .find(|name| name.starts_with("spiffe"))
            .unwrap_or(&names[0]);
        let line = facade.logged(|line| line["caller"] == **name).await;
        assert_eq!(line["code"], "OK");
    }
    assert_eq!(upstream.received().len(), 4);
    let scrape = Scrape::of(&facade).await;
    let counted = |allowed_by: &str| {
        scrape.value(&format!(
            "sqril_caller_outcomes_total{{allowed_by=\"{allowed_by}\",outcome=\"applied\"}}"
        ))
    };
    let allowed = [SHOP, "spiffe://test.example/ns/jobs/*", "batch.example"];
    assert_eq!(allowed.map(counted), [1.0; 3]);
}

/// Whatever is asked for: what is not allowed to the caller is not told either.
#[tokio::test]
async fn the_gate_is_before_everything() {
    let (tls, upstream) = (Tls::new(), yes().await);
    let facade = tls.facade(&upstream.url(), &[]).await;
    let stranger = tls.theirs.caller("stranger.example");
    let channel = tls.connect(&facade, Some(&stranger)).await.unwrap();
    for code in everything(&channel).await {
        assert_eq!(code, Code::PermissionDenied);
    }
    // But for those who may, all of it is there.
    let shop = tls.theirs.caller(SHOP);
    let channel = tls.connect(&facade, Some(&shop)).await.unwrap();
    let expected = [Code::Ok, Code::Ok, Code::Ok, Code::Unimplemented];
    assert_eq!(everything(&channel).await, expected);
}

#[tokio::test]
async fn health_may_be_open_to_everybody() {
    let (tls, upstream) = (Tls::new(), yes().await);
    let facade = tls.facade(&upstream.url(), &["--open-health"]).await;
    let channel = tls.connect(&facade, None).await.unwrap();
    let [update, health, reflection, unknown] = everything(&channel).await;
    assert_eq!(health, Code::Ok);
    for code in [update, reflection, unknown] {
        assert_eq!(code, Code::Unauthenticated);
    }
    let status = CustomerServiceClient::new(channel)
        .update_customer(an_update())
        .await
        .unwrap_err();
    Told::of(&status).is(
        Code::Unauthenticated,
        "CALLER_NOT_AUTHENTICATED",
        "not_sent",
    );
    assert!(upstream.received().is_empty());

    // A certificate that is shown must be good all the same.
    let stranger = Authority::new().caller(SHOP);
    is_turned_away(&tls, &facade, Some(&stranger), "UnknownIssuer").await;
}

/// What an update, a health check, reflection and an unknown method are answered.
async fn everything(channel: &Channel) -> [Code; 4] {
    let update = CustomerServiceClient::new(channel.clone())
        .update_customer(an_update())
        .await
        .map_or_else(|status| status.code(), |_| Code::Ok);
    let health = HealthClient::new(channel.clone())
        .check(HealthCheckRequest::default())
        .await
        .map_or_else(|status| status.code(), |_| Code::Ok);
    let asked = ServerReflectionRequest::default();
    let reflection = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(tokio_stream::once(asked))
        .await
        .map_or_else(|status| status.code(), |_| Code::Ok);
    let mut any = tonic::client::Grpc::new(channel.clone());
    any.ready().await.unwrap();
    let path =
        tonic::codegen::http::uri::PathAndQuery::from_static("/grpc.health.v1.HealthX/Check");
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckRequest>::default();
    let unknown = any
        .unary(
            tonic::Request::new(HealthCheckRequest::default()),
            path,
            codec,
        )
        .await
        .map_or_else(|status| status.code(), |_| Code::Ok);
    [update, health, reflection, unknown]
}

#[tokio::test]
async fn tls_alone_asks_nobody() {
    let (tls, upstream) = (Tls::new(), yes().await);
    let flags = tls.flags();
    let facade = Facade::with(&upstream.url(), &[&flags[0], &flags[1]]).await;
    let mut client = tls.client(&facade, None).await;
    client.update_customer(an_update()).await.unwrap();
    // In plaintext nobody answers.
    let mut plain = TcpStream::connect(facade.grpc).await.unwrap();
    plain
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut said = Vec::new();
    drop(
        timeout(PATIENCE, plain.read_to_end(&mut said))
            .await
            .unwrap(),
    );
    assert!(said.len() < 16, "an alert at most: {said:?}");
}

#[tokio::test]
async fn the_probe_speaks_tls() {
    let (tls, upstream) = (Tls::new(), yes().await);
    tls.folder.write("ours.pem", &tls.ours.pem);
    let shop = tls.theirs.caller(SHOP);
    let ca = format!("--ca={}", tls.folder.path("ours.pem"));
    let cert = format!("--cert={}", tls.folder.write("shop.pem", &shop.certificate));
    let key = format!("--key={}", tls.folder.write("shop-key.pem", &shop.key));
    let closed = tls.facade(&upstream.url(), &[]).await;
    let open = tls.facade(&upstream.url(), &["--open-health"]).await;
    for (facade, flags, expected) in [
        (&open, vec![&*ca], Some(0)),
        (&open, vec![&*ca, "--server-name=localhost"], Some(0)),
        (&open, vec![&*ca, "--server-name="], Some(0)),
        (&open, vec![&*ca, "--server-name=other"], Some(1)),
        (&open, vec![], Some(1)),
        (&closed, vec![&*ca], Some(1)),
        (&closed, vec![&*ca, &*cert, &*key], Some(0)),
        (&closed, vec![&*ca, &*cert], Some(64)),
        (&closed, vec![&*cert, &*key], Some(64)),
        (&closed, vec!["--ca=/no/such/file"], Some(64)),
    ] {
        let addr = format!("--addr={}", facade.grpc);
        let output = program("health", &[&[&*addr], &flags[..]].concat(), &[]).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), expected, "{flags:?} {output:?}");
    }
}

/// Each limit of the handshake, by a peer that reaches it.
#[tokio::test]
async fn handshakes_are_bounded_in_time_and_number() {
    let (tls, upstream) = (Tls::new(), yes().await);
    let facade = tls
        .facade(&upstream.url(), &["--handshake-timeout=300ms"])
        .await;
    let mut silent = TcpStream::connect(facade.grpc).await.unwrap();
    let read = timeout(PATIENCE, silent.read(&mut [0])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "hung up on");
    let said = facade.logged(|line| line["message"].as_str().unwrap().ends_with("took too long"));
    said.await;

    // One that says nothing has the only turn; the next one has it as soon as that is gone. Nobody can see from outside
    // who has it, so the silent one gets a few chances to be the first.
    let flags = ["--max-handshakes=1", "--handshake-timeout=1m"];
    let facade = tls.facade(&upstream.url(), &flags).await;
    let shop = tls.theirs.caller(SHOP);
    for _ in 0..10 {
        let silent = TcpStream::connect(facade.grpc).await.unwrap();
        let waiting = tls.connect(&facade, Some(&shop));
        tokio::pin!(waiting);
        if timeout(Duration::from_millis(300), &mut waiting)
            .await
            .is_ok()
        {
            continue;
        }
        drop(silent);
        let channel = timeout(PATIENCE, waiting).await.unwrap().unwrap();
        let mut client = CustomerServiceClient::new(channel);
        client.update_customer(an_update()).await.unwrap();
        return;
    }
    panic!("nobody ever had to wait");
}

/// A ClientHello that offers no more than TLS 1.1, and one that wants HTTP/1.1.
#[tokio::test]
async fn nothing_older_is_spoken() {
    let (tls, upstream) = (Tls::new(), yes().await);
    let facade = tls.facade(&upstream.url(), &[]).await;
    const PROTOCOL_VERSION: u8 = 70;
    const NO_APPLICATION_PROTOCOL: u8 = 120;
    for (version, alpn, alert) in [
        ([3, 1], &b"h2"[..], PROTOCOL_VERSION),
        ([3, 2], b"h2", PROTOCOL_VERSION),
        ([3, 3], b"http/1.1", NO_APPLICATION_PROTOCOL),
    ] {
        let mut stream = TcpStream::connect(facade.grpc).await.unwrap();
        stream
            .write_all(&client_hello(version, alpn))
            .await
            .unwrap();
        let mut answer = Vec::new();
        drop(
            timeout(PATIENCE, stream.read_to_end(&mut answer))
                .await
                .unwrap(),
        );
        // An alert record (21), fatal (2).
        assert_eq!(answer.first(), Some(&21), "{answer:?}");
        assert_eq!(answer[5..7], [2, alert], "{version:?}");
    }
}

/// A ClientHello of RFC 5246, section 7.4.1.2, as short as can be.
fn client_hello(version: [u8; 2], alpn: &[u8]) -> Vec<u8> {
    let mut extensions: Vec<u8> = Vec::new();
    let mut extend = |kind: u16, data: &[u8]| {
        extensions.extend(kind.to_be_bytes());
        extensions.extend((data.len() as u16).to_be_bytes());
        extensions.extend(data);
    };
    let protocols = [&[0, alpn.len() as u8 + 1, alpn.len() as u8], alpn].concat();
    extend(16, &protocols);
    extend(10, &[0, 2, 0, 23]); // secp256r1
    extend(13, &[0, 2, 4, 3]); // ecdsa_secp256r1_sha256
    extend(23, &[]); // extended master secret
    // ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, and ECDHE_ECDSA_WITH_AES_128_CBC_SHA for the old ones.
    let suites = [0xc0, 0x2b, 0xc0, 0x09];
    let mut hello = version.to_vec();
    hello.extend([7; 32]);
    hello.push(0);
    hello.extend([0, suites.len() as u8]);
    hello.extend(suites);
    hello.extend([1, 0]);
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);
    let length = hello.len();
    let handshake = [&[1, 0, (length >> 8) as u8, length as u8], &hello[..]].concat();
    let record = (handshake.len() as u16).to_be_bytes();
    [&[22, 3, 1], &record[..], &handshake[..]].concat()
}

/// A proxy in front tells who calls. It counts only from where it may come, and only its own word.
#[tokio::test]
async fn row_04_by_the_word_of_a_proxy() {
    const HEADER: &str = "x-forwarded-client-cert";
    let upstream = yes().await;
    let allow = format!("--allow-caller={SHOP}");
    let flags = ["--trust-network", "--identity-header", &*allow];
    let facade = Facade::with(&upstream.url(), &flags).await;
    let shop = format!("By=spiffe://test.example/us;Hash=ab;Subject=\"CN=x\";URI={SHOP}");
    facade
        .call(with(an_update(), &[(HEADER, &shop)]))
        .await
        .unwrap();
    facade.logged(|line| line["caller"] == SHOP).await;

    let not_authenticated = (Code::Unauthenticated, "CALLER_NOT_AUTHENTICATED");
    let not_allowed = (Code::PermissionDenied, "CALLER_NOT_ALLOWED");
    for (header, expected) in [
        (None, not_authenticated),
        (Some(""), not_authenticated),
        (Some(SHOP), not_authenticated),
        (Some(&*format!("{shop},")), not_authenticated),
        (
            Some(&*format!("{shop},URI=spiffe://test.example/evil")),
            not_allowed,
        ),
        (Some(&*format!("URI={SHOP}/..")), not_allowed),
        (Some(&*format!("URI={SHOP}%2f")), not_allowed),
        (Some("Hash=ab"), not_allowed),
    ] {
        let metadata: Vec<_> = header.map(|header| (HEADER, header)).into_iter().collect();
        let told = facade.refused(with(an_update(), &metadata)).await;
        told.is(expected.0, expected.1, "not_sent");
    }
    assert_eq!(upstream.received().len(), 1);

    // From elsewhere, and where nobody asked for it, it is a header like any other.
    let elsewhere = [&flags[..], &["--identity-header-from=10.0.0.0/8"]].concat();
    let facade = Facade::with(&upstream.url(), &elsewhere).await;
    let told = facade.refused(with(an_update(), &[(HEADER, &shop)])).await;
    told.is(
        Code::Unauthenticated,
        "CALLER_NOT_AUTHENTICATED",
        "not_sent",
    );
    let from_here = [&flags[..], &["--identity-header-from=10.0.0.0/8,127.0.0.1"]].concat();
    let facade = Facade::with(&upstream.url(), &from_here).await;
    facade
        .call(with(an_update(), &[(HEADER, &shop)]))
        .await
        .unwrap();

    let (tls, stranger) = (Tls::new(), "stranger.example");
    let facade = tls.facade(&upstream.url(), &[]).await;
    let stranger = tls.theirs.caller(stranger);
    let mut client = tls.client(&facade, Some(&stranger)).await;
    let call = client.update_customer(with(an_update(), &[(HEADER, &shop)]));
    let told = Told::of(&call.await.unwrap_err());
    told.is(Code::PermissionDenied, "CALLER_NOT_ALLOWED", "not_sent");
}

/// Health of a façade behind a proxy is asked by those who do not come through it.
#[tokio::test]
async fn health_without_the_word_of_a_proxy() {
    let flags = ["--sandbox", "--trust-network", "--identity-header"];
    for (more, expected) in [
        (None, Code::Unauthenticated),
        (Some("--open-health"), Code::Ok),
    ] {
        let flags: Vec<_> = flags.into_iter().chain(more).collect();
        let facade = Facade::start(&flags, &[]).await;
        let answer = HealthClient::new(facade.channel().await)
            .check(HealthCheckRequest::default())
            .await;
        let code = answer
            .as_ref()
            .map_or_else(tonic::Status::code, |_| Code::Ok);
        assert_eq!(code, expected);
        if let Ok(answer) = answer {
            assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
        }
    }
}

/// Everything that cannot be meant, all at once where there is more of it.
#[test]
fn what_is_refused() {
    let tls = Tls::new();
    let [cert, key, ca, crl, allow] = &tls.flags()[..] else {
        panic!("five flags")
    };
    let other_key = format!(
        "--tls-key={}",
        tls.folder.write("other.pem", &tls.ours.server().key)
    );
    let junk = tls
        .folder
        .write("junk.pem", "-----BEGIN CERTIFICATE-----\njunk-canary\n");
    let empty = tls.folder.write("empty.pem", "");
    let hour = Duration::from_secs(3600);
    let expired = tls.ours.issue(&Subject {
        to: SystemTime::now() - hour / 2,
        ..Subject::caller(&["localhost"])
    });
    let expired_cert = format!(
        "--tls-cert={}",
        tls.folder.write("e.pem", &expired.certificate)
    );
    let expired_key = format!("--tls-key={}", tls.folder.write("ek.pem", &expired.key));
    let long = tls.folder.write("long", vec![b'#'; (8 << 20) + 1]);
    let short = tls
        .folder
        .write("short", "0123456789012345678901234567890\n");
    let cases: Vec<(Vec<&str>, Vec<&str>)> = vec![
        (
            vec![cert],
            vec!["--tls-key (SQRIL_GRPC_TLS_KEY): needed with --tls-cert"],
        ),
        (
            vec![key],
            vec!["--tls-key (SQRIL_GRPC_TLS_KEY): needs --tls-cert"],
        ),
        (
            vec![ca, crl],
            vec!["--client-ca (SQRIL_GRPC_CLIENT_CA): needs --tls-cert"],
        ),
        (
            vec![cert, key, crl],
            vec!["--client-crl (SQRIL_GRPC_CLIENT_CRL): needs --client-ca"],
        ),
        (vec![allow], vec!["needs --client-ca or --identity-header"]),
        (vec!["--identity-header"], vec!["needs --trust-network"]),
        (
            vec!["--identity-header=x-user", "--trust-network"],
            vec!["must be x-forwarded-client-cert"],
        ),
        (
            vec![cert, key, ca, "--identity-header", "--trust-network"],
            vec!["cannot be given with --client-ca"],
        ),
        (
            vec![
                "--identity-header",
                "--trust-network",
                "--identity-header-from=here",
            ],
            vec!["must be networks"],
        ),
        (
            vec![cert, key, ca, "--allow-caller=*"],
            vec!["must be spiffe://domain/path"],
        ),
        (
            vec![cert, &other_key],
            vec!["--tls-cert (SQRIL_GRPC_TLS_CERT): with --tls-key: "],
        ),
        (
            vec![&expired_cert, &expired_key],
            vec!["--tls-cert (SQRIL_GRPC_TLS_CERT): has expired"],
        ),
        (
            vec!["--hash-key-file", &short],
            vec!["must hold at least 32 bytes"],
        ),
        (
            vec!["--hash-key-file", &long],
            vec!["is larger than 8388608 bytes"],
        ),
        (
            vec!["--upstream-ca", &empty],
            vec!["--upstream-ca (SQRIL_GRPC_UPSTREAM_CA): holds no certificate"],
        ),
        (vec!["--reload-interval=often"], vec!["--reload-interval"]),
        (vec!["--max-handshakes=0"], vec!["must be a number from 1"]),
        (
            vec!["--handshake-timeout=0s"],
            vec!["must be a time above zero"],
        ),
        (
            vec![
                "--tls-cert",
                &junk,
                "--tls-key",
                &empty,
                "--client-ca=/no/such/file",
                crl,
            ],
            vec!["--client-ca (SQRIL_GRPC_CLIENT_CA): /no/such/file: No such file"],
        ),
        (
            vec![
                "--tls-cert",
                &junk,
                "--tls-key",
                &empty,
                "--client-ca",
                &junk,
                "--client-crl",
                &empty,
            ],
            vec![
                "--tls-cert (SQRIL_GRPC_TLS_CERT): is no valid PEM",
                "--tls-key (SQRIL_GRPC_TLS_KEY): holds nothing of its kind",
                "--client-ca (SQRIL_GRPC_CLIENT_CA): is no valid PEM",
                "--client-crl (SQRIL_GRPC_CLIENT_CRL): holds nothing of its kind",
            ],
        ),
    ];
    for (flags, expected) in cases {
        let flags = [&["--sandbox", "--check-config"], &flags[..]].concat();
        let output = program("serve", &flags, &[]).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(64), "{flags:?}: {said}");
        for expected in expected {
            assert_eq!(said.matches(expected).count(), 1, "{expected} in {said}");
        }
        assert!(!said.contains("canary"), "{said}");
    }
}

#[test]
fn what_is_allowed_off_loopback() {
    let tls = Tls::new();
    let flags = tls.flags();
    let listen = ["--sandbox", "--check-config", "--listen=0.0.0.0:0"];
    let flags = [&listen[..], &[&flags[0], &flags[1]]].concat();
    let output = program("serve", &flags, &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
