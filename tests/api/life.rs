//! How the process starts, what it refuses to start with, and how it ends.

use std::{fs, path::Path};

use tokio::net::TcpListener;
use tonic::Code;

use crate::support::{CLIENT_SECRET, Facade, Reply, Upstream, a_profile, an_update, json, program};

/// Exit code and everything said.
fn run(flags: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = program("serve", flags, variables).output().unwrap();
    (
        output.status.code(),
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap(),
    )
}

#[test]
fn all_faults_at_once() {
    let flags = [
        "--listen=0.0.0.0:1",
        "--admin-listen=here",
        "--upstream-url=http://sqril.example",
        "--upstream-proxy=ftp://x",
        "--client-id=a:b",
        "--client-secret-file=/no/such/file",
        "--attempt-timeout=never",
        "--connect-timeout=0s",
        "--max-answer-bytes=0",
        "--reflection=maybe",
        "--log-format=xml",
    ];
    let (code, said) = run(
        &flags,
        &[
            ("SQRIL_GRPC_DRAIN_TIMEOUT", "-1s"),
            ("SQRIL_GRPC_DEADLINE_FLOOR", "1m"),
        ],
    );
    assert_eq!(code, Some(64), "{said}");
    for variable in [
        "LISTEN",
        "ADMIN_LISTEN",
        "UPSTREAM_URL",
        "UPSTREAM_PROXY",
        "CLIENT_ID",
        "CLIENT_SECRET_FILE",
        "ATTEMPT_TIMEOUT",
        "CONNECT_TIMEOUT",
        "MAX_ANSWER_BYTES",
        "REFLECTION",
        "LOG_FORMAT",
        "DRAIN_TIMEOUT",
        "DEADLINE_FLOOR",
    ] {
        assert_eq!(
            said.matches(&format!("(SQRIL_GRPC_{variable})")).count(),
            1,
            "{variable} in {said}"
        );
    }
}

#[test]
fn what_is_refused() {
    let secret = ("SQRIL_GRPC_CLIENT_SECRET", "s");
    // Flags, whether the secret is there, and what is said.
    let cases: [(&[&str], bool, &str); 13] = [
        (&[], false, "--client-id (SQRIL_GRPC_CLIENT_ID): needed"),
        (
            &["--client-id=c"],
            false,
            "--client-secret-file (SQRIL_GRPC_CLIENT_SECRET_FILE): needed",
        ),
        (
            &["--client-id="],
            true,
            "--client-id (SQRIL_GRPC_CLIENT_ID): needed",
        ),
        (&["--client-id=c", "--client-id-file=x"], true, "not both"),
        (
            &["--client-id=c", "--client-secret-file=x"],
            true,
            "not both",
        ),
        (
            &["--client-id=c", "--upstream-url=http://10.0.0.1"],
            true,
            "must be https off loopback",
        ),
        (
            &["--client-id=c", "--upstream-url=https://a:b@c"],
            true,
            "must not hold credentials",
        ),
        (
            &["--client-id=c", "--upstream-url=https://c?x"],
            true,
            "must not hold a query",
        ),
        (
            &["--client-id=c", "--upstream-url=sqril"],
            true,
            "must be a URL",
        ),
        (
            &["--client-id=c", "--listen=[::]:1"],
            true,
            "needs --trust-network",
        ),
        (
            &["--client-id=c", "--connect-timeout=10s"],
            true,
            "must be less than --attempt-timeout",
        ),
        (
            &["--sandbox", "--client-id=c"],
            false,
            "cannot be given with --sandbox",
        ),
        (&["--no-such-flag"], false, "unexpected argument"),
    ];
    for (flags, with_secret, expected) in cases {
        let variables = if with_secret { &[secret][..] } else { &[] };
        let (code, said) = run(flags, variables);
        assert_eq!(code, Some(64), "{flags:?}: {said}");
        assert!(said.contains(expected), "{flags:?}: {said}");
    }
}

#[test]
fn what_is_allowed() {
    let secret = ("SQRIL_GRPC_CLIENT_SECRET", "s");
    let cases: [&[&str]; 7] = [
        &[],
        &["--upstream-url=http://localhost:1/v1"],
        &["--upstream-url=http://[::1]:1"],
        &["--upstream-url=http://127.3.4.5"],
        &[
            "--upstream-url=http://10.0.0.1",
            "--allow-plaintext-upstream",
        ],
        &[
            "--listen=0.0.0.0:1",
            "--admin-listen=0.0.0.0:2",
            "--trust-network",
        ],
        &[
            "--upstream-proxy=http://u:p@proxy:3128",
            "--reflection=off",
            "--log-format=text",
        ],
    ];
    for flags in cases {
        let (code, said) = run(
            &[flags, &["--client-id=c", "--check-config"]].concat(),
            &[secret],
        );
        assert_eq!(code, Some(0), "{flags:?}: {said}");
    }
}

#[test]
fn check_config_shows_all_but_secrets() {
    let flags = [
        "--check-config",
        "--upstream-proxy=http://proxy-user:proxy-canary@proxy:3128",
    ];
    let variables = [
        ("SQRIL_GRPC_CLIENT_ID", "some-id"),
        ("SQRIL_GRPC_CLIENT_SECRET", "secret-canary"),
        ("SQRIL_GRPC_ATTEMPT_TIMEOUT", "1m 500ms"),
    ];
    let (code, said) = run(&flags, &variables);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("canary"), "{said}");
    for line in [
        "SQRIL_GRPC_LISTEN=127.0.0.1:50051",
        "SQRIL_GRPC_CLIENT_ID=some-id",
        "SQRIL_GRPC_CLIENT_SECRET=[hidden]",
        "SQRIL_GRPC_ATTEMPT_TIMEOUT=1m 500ms",
        "SQRIL_GRPC_UPSTREAM_URL=https://api.sqril.com",
    ] {
        assert!(said.lines().any(|shown| shown == line), "{line} in {said}");
    }
}

#[tokio::test]
async fn credentials_from_files_without_their_last_newline() {
    let upstream = Upstream::start(Reply::Say(json(200, "{}"))).await;
    for newline in ["", "\n", "\r\n"] {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (id, secret) = (folder.join("client-id"), folder.join("client-secret"));
        fs::write(&id, format!("test-client{newline}")).unwrap();
        fs::write(&secret, format!("{CLIENT_SECRET}{newline}")).unwrap();
        let (id, secret) = (id.to_str().unwrap(), secret.to_str().unwrap());
        let url = upstream.url();
        let flags = [
            "--upstream-url",
            &url,
            "--client-id-file",
            id,
            "--client-secret-file",
            secret,
        ];
        Facade::start(&flags, &[])
            .await
            .call(an_update())
            .await
            .unwrap();
        let head = upstream.received().pop().unwrap().head;
        assert!(
            head.contains("authorization: Basic dGVzdC1jbGllbnQ6czNjcmV0OndpdGggw7xuaWNvZGU=\r\n")
        );
    }
}

#[tokio::test]
async fn an_address_that_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--listen", "--admin-listen"] {
        let other = if flag == "--listen" {
            "--admin-listen"
        } else {
            "--listen"
        };
        let (code, said) = run(&["--sandbox", flag, &address, other, "127.0.0.1:0"], &[]);
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains(&format!("cannot listen on {address}")),
            "{said}"
        );
    }
}

/// Without the system's certificates there is no https, but there is a sandbox.
#[tokio::test]
async fn without_certificates() {
    let nowhere = [
        ("SSL_CERT_FILE", "/no/such/file"),
        ("SSL_CERT_DIR", "/no/such/folder"),
    ];
    let sandbox = Facade::start(&["--sandbox"], &nowhere).await;
    sandbox
        .refused(an_update())
        .await
        .is(Code::NotFound, "RESOURCE_NOT_FOUND", "rejected");

    let variables = [&nowhere[..], &[("SQRIL_GRPC_CLIENT_SECRET", "s")]].concat();
    let (code, said) = run(&["--client-id=c", "--listen=127.0.0.1:0"], &variables);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("CA certificates"), "{said}");
}

/// What was accepted gets its answer; what comes later is not taken; the exit code is 0.
#[tokio::test]
async fn signals_end_it_in_order() {
    for signal in ["TERM", "INT"] {
        let upstream =
            Upstream::start(Reply::SayWhenTold(json(200, &a_profile().to_string()))).await;
        let mut facade = Facade::before(&upstream.url()).await;
        let mut client = facade.client().await;
        let call = tokio::spawn(async move { client.update_customer(an_update()).await });
        upstream.asked().await;
        facade.signal(signal);
        let line = facade.logged(|line| line["message"] == "draining").await;
        assert_eq!(line["signal"], format!("SIG{signal}"));
        upstream.go_on();
        assert_eq!(call.await.unwrap().unwrap().into_inner().warnings, []);
        assert_eq!(facade.ended().await.code(), Some(0));
        assert!(facade.log().contains("\"drained\""));
    }
}

/// A call that its caller has left is waited for as well.
#[tokio::test]
async fn the_end_waits_for_updates_under_way() {
    let upstream = Upstream::start(Reply::SayWhenTold(json(200, &a_profile().to_string()))).await;
    let mut facade = Facade::before(&upstream.url()).await;
    let mut client = facade.client().await;
    let call = tokio::spawn(async move { client.update_customer(an_update()).await });
    upstream.asked().await;
    call.abort();
    facade.signal("TERM");
    facade.logged(|line| line["message"] == "draining").await;
    upstream.go_on();
    let line = facade.logged(|line| line["message"] == "call").await;
    assert_eq!(line["outcome"], "applied");
    assert_eq!(facade.ended().await.code(), Some(0));
}

#[tokio::test]
async fn the_drain_has_an_end() {
    let upstream = Upstream::start(Reply::SayAndStall(vec![])).await;
    let mut facade = Facade::with(&upstream.url(), &["--drain-timeout", "100ms"]).await;
    let mut client = facade.client().await;
    let call = tokio::spawn(async move { client.update_customer(an_update()).await });
    upstream.asked().await;
    facade.signal("TERM");
    assert_eq!(facade.ended().await.code(), Some(0));
    assert!(facade.log().contains("drain timeout"));
    call.await.unwrap().unwrap_err();
}

/// No value of a customer and no credential in any line, at any level.
#[tokio::test]
async fn the_log_tells_nothing_about_anybody() {
    let echo =
        r#"{"error_code":"X1","error_message":"canary@example.com canary-street cus_canary"}"#;
    let request = sqril_grpc::pb::UpdateCustomerRequest {
        customer_id: "cus_canary".into(),
        email: Some("canary@example.com".into()),
        address: Some("canary-street".into()),
        ..Default::default()
    };
    let applied = format!(r#"{{"customer_id":"cus_canary","email":"{}"}}"#, "canary");
    for reply in [
        Reply::Say(json(400, echo)),
        Reply::Say(json(200, &applied)),
        Reply::Say(json(200, "canary")),
        Reply::SayAndClose(b"HTTP/1.1 200 canary\r\ncanary".to_vec()),
        Reply::SayAndClose(vec![]),
    ] {
        let upstream = Upstream::start(reply).await;
        let url = upstream.url();
        let variables = [
            ("RUST_LOG", "trace"),
            ("SQRIL_GRPC_CLIENT_SECRET", "canary-secret"),
        ];
        let facade = Facade::start(&["--upstream-url", &url, "--client-id", "c"], &variables).await;
        drop(facade.call(request.clone()).await);
        facade.logged(|line| line["message"] == "call").await;
        assert!(!facade.log().contains("canary"), "{}", facade.log());
    }
}
