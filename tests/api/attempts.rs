//! Attempts to get past the façade, or to make it send something else than an update of one customer. Forged identity
//! headers are in `callers`, junk on the wire in `limits`.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tonic::Code;

use crate::{
    certificates::{Folder, Tls},
    support::{
        CLIENT_SECRET, Facade, HTML, JSON, Reply, Told, Upstream, a_profile, an_update, http, json,
        sqril, with,
    },
};

/// Whatever an identifier looks like, it is one value of one query parameter of one request to one path, and nothing
/// of it is a header, a second request, or another customer.
#[tokio::test]
async fn identifiers_that_want_to_be_more() {
    let upstream = Upstream::start(Reply::Say(json(200, "{}"))).await;
    let facade = Facade::before(&upstream.url()).await;
    let mut client = facade.client().await;
    let ids = [
        "x%0d%0aX-Evil: 1",
        "x%0d%0a%0d%0aPUT ?customer_id=other",
        "x\\r\\nX-Evil: 1",
        "x&customer_id=other",
        "x;customer_id=other",
        "x#fragment",
        "x?customer_id=other",
        "x=other",
        "x+other",
        "x other HTTP%2f1.1",
        "..",
        "..%2f..%2fadmin",
        "%2e%2e%2fadmin",
        "..\\..\\admin",
        "@evil.example",
        "x[]=1",
        "x%00",
        "%",
        "%zz",
        "\u{ff0f}\u{ff06}\u{ff03}\u{ff1f}", // full-width / & # ?
        "\u{560a}\u{560d}X-Evil: 1",        // their low bytes are line feed and carriage return
        "cus\u{2028}X-Evil: 1\u{2029}",     // line and paragraph separators
        "\u{200b}cus_1\u{feff}",            // invisible
        "c\u{443}s_1",                      // a Cyrillic letter
        "\u{202e}1_suc",                    // right to left
        "\u{1F600}",
        "{\"$ne\":null}",
        "' OR 1=1 --",
        "${jndi:dns:evil.example}",
        "<img src=x onerror=alert(1)>",
    ];
    for id in ids {
        let request = sqril_grpc::pb::UpdateCustomerRequest {
            customer_id: id.into(),
            ..an_update()
        };
        client
            .update_customer(request)
            .await
            .unwrap_or_else(|status| panic!("{id:?}: {status}"));
        let received = upstream.received();
        let sent = received.last().unwrap();
        let mut lines = sent.head.lines();
        let first = lines.next().unwrap();
        let target = first
            .strip_prefix("PUT ")
            .and_then(|rest| rest.strip_suffix(" HTTP/1.1"));
        let query = target.unwrap().strip_prefix("/updateCustomer?").unwrap();
        // One pair, read back as the very same identifier, by the rules of URLs and by those of forms.
        let pairs: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).collect();
        assert_eq!(pairs.len(), 1, "{query}");
        assert_eq!((&*pairs[0].0, &*pairs[0].1), ("customer_id", id), "{query}");
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~%=_".contains(c);
        assert!(query.chars().all(plain), "{query}");
        let names: Vec<_> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, _)| name)
            .collect();
        let expected = [
            "authorization",
            "content-type",
            "accept",
            "x-request-id",
            "user-agent",
            "host",
            "content-length",
        ];
        assert_eq!(names, expected, "{id:?}");
        assert_eq!(sent.body, br#"{"nationality":"PE"}"#);
    }
    assert_eq!(upstream.received().len(), ids.len(), "one request each");
}

/// What a slash or a line break would do is not tried.
#[tokio::test]
async fn identifiers_that_are_none() {
    let upstream = Upstream::start(Reply::Say(json(200, "{}"))).await;
    let facade = Facade::before(&upstream.url()).await;
    for id in [
        "../admin",
        "/",
        "x\r\nX-Evil: 1",
        "x\n",
        "x\0",
        "x\u{7f}",
        "x\u{85}y",
        "https://evil.example",
    ] {
        let request = sqril_grpc::pb::UpdateCustomerRequest {
            customer_id: id.into(),
            ..an_update()
        };
        let told = facade.refused(request).await;
        told.is(Code::InvalidArgument, "INVALID_CUSTOMER_ID", "not_sent");
    }
    assert!(upstream.received().is_empty());
}

/// Values are JSON strings and nothing else, whatever is in them.
#[tokio::test]
async fn values_that_want_to_be_more() {
    let upstream = Upstream::start(Reply::Say(json(200, "{}"))).await;
    let facade = Facade::before(&upstream.url()).await;
    for value in [
        r#"","name_first":"Eve"#,
        r#"\",\"name_first\":\"Eve"#,
        r"\u0022,\u0022name_first\u0022:\u0022Eve",
        "null",
        "{}",
        "\u{2028}\u{2029}",
        "\u{feff}",
    ] {
        let request = sqril_grpc::pb::UpdateCustomerRequest {
            customer_id: "cus_1".into(),
            address: Some(value.into()),
            ..Default::default()
        };
        facade.call(request).await.unwrap();
        let body = upstream.received().pop().unwrap().body;
        let sent: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(sent, serde_json::json!({ "address": value }));
    }
}

/// A caller's own credentials, and its wishes about the way, go no further than to us.
#[tokio::test]
async fn metadata_goes_no_further() {
    let upstream = Upstream::start(Reply::Say(json(200, "{}"))).await;
    let facade = Facade::before(&upstream.url()).await;
    let metadata = [
        ("authorization", "Basic Y2FuYXJ5OmNhbmFyeQ=="),
        ("proxy-authorization", "Basic canary"),
        ("cookie", "canary=1"),
        ("x-forwarded-client-cert", "URI=spiffe://canary/x"),
        ("x-forwarded-host", "canary.example"),
        ("x-http-method-override", "DELETE"),
        ("x-original-url", "/canary"),
        ("x-rewrite-url", "/canary"),
        ("content-location", "canary"),
        ("forwarded", "for=canary"),
        ("idempotency-key", "canary"),
        ("if-match", "canary"),
        ("range", "bytes=0-canary"),
    ];
    facade.call(with(an_update(), &metadata)).await.unwrap();
    let head = upstream.the_request().head.to_lowercase();
    assert!(
        !head.contains("canary") && !head.contains("y2fuyxj5"),
        "{head}"
    );
    assert!(!head.contains("delete"), "{head}");
    assert_eq!(head.matches("authorization: ").count(), 1);
}

/// Metadata over the limit ends the call, and nothing else.
#[tokio::test]
async fn oversized_metadata() {
    let upstream = Upstream::start(Reply::Say(json(200, "{}"))).await;
    let facade = Facade::before(&upstream.url()).await;
    let mut client = facade.client().await;
    for (bytes, fits) in [(8 * 1024, true), (20 * 1024, false), (200 * 1024, false)] {
        let big = "x".repeat(bytes);
        let called = client
            .update_customer(with(an_update(), &[("x-big", &big)]))
            .await;
        assert_eq!(called.is_ok(), fits, "{bytes} bytes: {called:?}");
        if let Err(status) = called {
            assert_ne!(status.code(), Code::Unavailable, "{status}");
        }
        facade.call(an_update()).await.unwrap();
    }
    assert_eq!(upstream.received().len(), 4);
}

/// No answer of the upstream leads anywhere else, least of all to plaintext.
#[tokio::test]
async fn redirects_and_other_ways_out() {
    let elsewhere = Upstream::answering(200, &[JSON], &a_profile().to_string()).await;
    let upstream = Upstream::start(Reply::Say(Vec::new())).await;
    let facade = Facade::before(&upstream.url()).await;
    let there = elsewhere.url();
    let service = format!("h2=\"{}\"", elsewhere.address);
    for status in [300, 301, 302, 303, 307, 308] {
        let headers = [
            ("location", there.as_str()),
            ("alt-svc", &service),
            ("refresh", "0;url=/"),
            HTML,
        ];
        upstream.reply(Reply::Say(http(status, &headers, b"")));
        let told = facade.refused(an_update()).await;
        assert_eq!(told.reason, "UPSTREAM_REDIRECTED");
        assert_eq!(told.metadata["attempts"], "1");
    }
    upstream.reply(Reply::Say(http(
        421,
        &[("alt-svc", &service), JSON],
        sqril("MISDIRECTED").as_bytes(),
    )));
    facade.refused(an_update()).await;
    assert!(elsewhere.received().is_empty(), "nobody was sent there");
}

/// An https upstream is spoken to in TLS 1.2 or newer, or not at all: neither a server that is older, nor one that
/// answers in plaintext, ever sees the secret.
#[tokio::test]
async fn the_upstream_cannot_talk_us_down() {
    // A ServerHello of TLS 1.1, an alert that asks for less, and plain HTTP.
    let mut server_hello = vec![22, 3, 2, 0, 42, 2, 0, 0, 38, 3, 2];
    server_hello.extend([7; 32]);
    server_hello.extend([0, 0xc0, 0x09, 0]);
    let alert = vec![21, 3, 1, 0, 2, 2, 70];
    let plain = http(426, &[("upgrade", "http/1.1")], b"");
    for answer in [server_hello, alert, plain] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!(
            "https://localhost:{}",
            listener.local_addr().unwrap().port()
        );
        let seen = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = vec![0; 5];
            stream.read_exact(&mut hello).await.unwrap();
            assert_eq!(hello[0], 22, "a handshake");
            stream.write_all(&answer).await.unwrap();
            drop(stream.read_to_end(&mut hello).await);
            hello
        });
        let facade = Facade::before(&url).await;
        let told = facade.refused(an_update()).await;
        told.is(Code::Unavailable, "UPSTREAM_TLS_FAILED", "not_sent");
        let seen = String::from_utf8_lossy(&seen.await.unwrap()).into_owned();
        assert!(!seen.to_lowercase().contains("authorization") && !seen.contains("cus_1"));
    }
}

/// The upstream's own words about who it is do not matter: only the id of the customer in its answer does.
#[tokio::test]
async fn an_upstream_that_repeats_the_secret_is_not_passed_on() {
    let body = |text: &str| {
        serde_json::json!({"error_code": "INVALID_REQUEST", "error_message": text, "details": {}})
            .to_string()
    };
    let upstream = Upstream::start(Reply::Say(Vec::new())).await;
    let facade = Facade::before(&upstream.url()).await;
    // As in the byte for byte test: the pair as it is sent.
    let encoded = "dGVzdC1jbGllbnQ6czNjcmV0OndpdGggw7xuaWNvZGU=";
    for text in [CLIENT_SECRET, encoded] {
        upstream.reply(Reply::Say(json(400, &body(&format!("bad: {text}")))));
        let told = facade.refused(an_update()).await;
        told.is(Code::InvalidArgument, "INVALID_REQUEST", "rejected");
        assert_eq!(told.sqril_says(), None);
        // As the code, it is nobody's word.
        upstream.reply(Reply::Say(json(400, &sqril(text))));
        let told = facade.refused(an_update()).await;
        told.is(Code::Internal, "UPSTREAM_RESPONSE_FOREIGN", "rejected");
    }
    upstream.reply(Reply::Say(json(400, &body("bad"))));
    assert_eq!(facade.refused(an_update()).await.sqril_says(), Some("bad"));
}

/// With TLS on, nothing is answered without it; and a caller without a certificate learns no more than that.
#[tokio::test]
async fn plaintext_where_tls_is_asked_for() {
    let (tls, upstream) = (
        Tls::new(),
        Upstream::start(Reply::Say(json(200, "{}"))).await,
    );
    let facade = tls.facade(&upstream.url(), &["--open-health"]).await;
    assert!(!facade.takes_another().await, "health over plaintext");
    let channel = tls.connect(&facade, None).await.unwrap();
    let mut client = sqril_grpc::pb::customer_service_client::CustomerServiceClient::new(channel);
    let status = client
        .update_customer(with(an_update(), &[("authorization", "Bearer x")]))
        .await;
    let told = Told::of(&status.unwrap_err());
    told.is(
        Code::Unauthenticated,
        "CALLER_NOT_AUTHENTICATED",
        "not_sent",
    );
    assert!(upstream.received().is_empty());
}

/// A name that only looks like one of those who may call is another name.
#[tokio::test]
async fn look_alikes_of_callers() {
    let (tls, upstream) = (
        Tls::new(),
        Upstream::start(Reply::Say(json(200, "{}"))).await,
    );
    let facade = tls
        .facade(&upstream.url(), &["--allow-caller=batch.example"])
        .await;
    for name in [
        "spiffe://test.example/ns/shop/sa/api/",
        "spiffe://test.example/ns/shop/sa/API",
        "spiffe://test.example/ns/shop/sa/ap%69",
        "spiffe://test.example:443/ns/shop/sa/api",
        "spiffe://x@test.example/ns/shop/sa/api",
        "spiffe://test.example/ns/shop/sa/api?x",
        "spiffe://test.example/ns/shop/sa/api#x",
        "spiffe://test.example//ns/shop/sa/api",
        "https://test.example/ns/shop/sa/api",
        "batch.example.",
        "*.example",
        "xbatch.example",
        "batch.example.evil.example",
    ] {
        let caller = tls.theirs.caller(name);
        let mut client = tls.client(&facade, Some(&caller)).await;
        let told = Told::of(&client.update_customer(an_update()).await.unwrap_err());
        told.is(Code::PermissionDenied, "CALLER_NOT_ALLOWED", "not_sent");
    }
    assert!(upstream.received().is_empty());
}

/// A secret goes where it is meant to go, as RFC 7617 writes it, whatever is in it.
#[tokio::test]
async fn secrets_of_every_kind() {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let folder = Folder::new();
    let upstream = Upstream::start(Reply::Say(json(200, "{}"))).await;
    for secret in [
        "a:b:c",
        ":",
        "päss wörd €😀",
        " leading and trailing ",
        "\"quoted\" \\ %0d%0a",
    ] {
        let file = folder.write("secret", format!("{secret}\n"));
        let url = upstream.url();
        let flags = [
            "--upstream-url",
            &url,
            "--client-id",
            "ïd",
            "--client-secret-file",
            &file,
        ];
        Facade::start(&flags, &[])
            .await
            .call(an_update())
            .await
            .unwrap();
        let head = upstream.received().pop().unwrap().head;
        let expected = BASE64_STANDARD.encode(format!("ïd:{secret}"));
        assert!(
            head.contains(&format!("\r\nauthorization: Basic {expected}\r\n")),
            "{head}"
        );
    }
}
