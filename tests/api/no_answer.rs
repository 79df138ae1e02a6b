//! Rows 9 to 15: no answer, or none in time.

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, rustls};
use tonic::Code;

use crate::support::{
    CLIENT_SECRET, Facade, PATIENCE, Reply, Upstream, a_profile, an_update, http, json, with,
};

const IMPATIENT: [&str; 4] = ["--attempt-timeout", "300ms", "--connect-timeout", "200ms"];

/// A listener whose queue is full, so that nobody answers a further connect; and what it takes to keep it so.
fn full_listener() -> (SocketAddr, Socket, TcpStream) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let queued = TcpStream::connect(address).unwrap();
    (address, listener, queued)
}

#[tokio::test]
async fn row_09_refused_unknown_and_silent() {
    let refused = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let silent = full_listener();

    for url in [
        format!("http://{refused}"),
        format!("http://{}", silent.0),
        "https://nowhere.invalid".to_owned(),
    ] {
        let told = Facade::with(&url, &["--connect-timeout", "300ms"])
            .await
            .refused(an_update())
            .await;
        told.is(Code::Unavailable, "UPSTREAM_UNREACHABLE", "not_sent");
        assert!(told.retry_in().is_some());
        assert_eq!(told.metadata["attempts"], "2");
        assert!(!told.metadata.contains_key("upstream_status"));
    }
}

#[tokio::test]
async fn row_10_tls() {
    // A certificate that nobody vouches for, and a peer that does not speak TLS at all.
    let tls = Arc::new(TlsUpstream::start(&[b"http/1.1"]).await);
    let garbage = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = garbage.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = garbage.accept().await {
            drop(stream.write_all(&[b'!'; 64]).await);
        }
    });
    let accepting = tokio::spawn({
        let tls = Arc::clone(&tls);
        async move { tls.accept().await }
    });
    for url in [tls.url(), format!("https://localhost:{port}")] {
        let told = Facade::before(&url).await.refused(an_update()).await;
        told.is(Code::Unavailable, "UPSTREAM_TLS_FAILED", "not_sent");
        assert!(told.retry_in().is_none());
    }
    // Somebody vouches for it, but under another name.
    let told = tls
        .facade(&tls.url().replace("localhost", "127.0.0.1"), &[])
        .await
        .refused(an_update())
        .await;
    told.is(Code::Unavailable, "UPSTREAM_TLS_FAILED", "not_sent");
    accepting.abort();
}

/// What an HTTP/2 upstream says of a request decides: refused, not looked at, or looked at and then silence.
#[tokio::test]
async fn row_11_refused_stream_and_goaway() {
    const RST_STREAM_REFUSED: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7];
    // With a word of the upstream's own.
    const GOAWAY_BELOW: &[u8] = b"\0\0\x0e\x07\0\0\0\0\0\0\0\0\0\0\0\0\0canary";
    const GOAWAY_AFTER: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    let cases = [
        (
            RST_STREAM_REFUSED,
            Code::Unavailable,
            "UPSTREAM_UNREACHABLE",
            "not_sent",
        ),
        (
            GOAWAY_BELOW,
            Code::Unavailable,
            "UPSTREAM_UNREACHABLE",
            "not_sent",
        ),
        (
            GOAWAY_AFTER,
            Code::Unknown,
            "UPSTREAM_CONNECTION_LOST",
            "unknown",
        ),
    ];
    for (frame, code, reason, outcome) in cases {
        let tls = TlsUpstream::start(&[b"h2"]).await;
        let facade = tls.facade(&tls.url(), &["--retry-budget", "0"]).await;
        tokio::spawn(async move {
            let mut stream = tls.accept().await;
            stream.read_exact(&mut [0; 24]).await.unwrap();
            stream
                .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
                .await
                .unwrap();
            read_request(&mut stream).await;
            stream.write_all(frame).await.unwrap();
            stream.shutdown().await.unwrap();
            // To its end: closed with something unread, it would be reset, and the frame lost with it.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        facade.refused(an_update()).await.is(code, reason, outcome);
        let line = facade.logged(|line| line["message"] == "call").await;
        let named = line["cause"].as_str().unwrap().contains("HTTP/2");
        assert_eq!(named, outcome == "not_sent", "{line}");
        assert!(!facade.log().contains("canary"), "{}", facade.log());
    }
}

/// Reads HTTP/2 frames until a HEADERS or DATA frame ends the request (RFC 9113, sections 6.1 and 6.2).
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) {
    const END_STREAM: u8 = 1;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        let [.., kind, flags, _, _, _, _] = head;
        if kind <= 1 && flags & END_STREAM != 0 {
            return;
        }
    }
}

/// A connection that the upstream closed while it was idle is no reason to fail.
#[tokio::test]
async fn row_11_a_pooled_connection_that_was_closed() {
    let upstream = Upstream::start(Reply::SayAndClose(json(200, "{}"))).await;
    let facade = Facade::before(&upstream.url()).await;
    for _ in 0..20 {
        facade.call(an_update()).await.unwrap();
        upstream.hung_up().await;
    }
    assert_eq!(upstream.received().len(), 20);
}

#[tokio::test]
async fn row_12_connection_lost() {
    let garbage: &[u8] = b"SSH-2.0-OpenSSH\r\n\r\n";
    for reply in [
        Reply::SayAndClose(vec![]),
        Reply::SayAndReset(vec![]),
        Reply::SayAndClose(b"HTTP/1.1 20".to_vec()),
        Reply::SayAndClose(garbage.to_vec()),
        Reply::SayAndClose(
            format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(1024 * 1024)).into_bytes(),
        ),
    ] {
        let upstream = Upstream::start(reply).await;
        let told = Facade::before(&upstream.url())
            .await
            .refused(an_update())
            .await;
        told.is(Code::Unknown, "UPSTREAM_CONNECTION_LOST", "unknown");
        assert!(told.retry_in().is_none());
        upstream.the_request();
    }
}

#[tokio::test]
async fn row_13_attempt_timeout() {
    let begun = json(200, &a_profile().to_string())[..80].to_vec();
    let foreign = http(200, &[], b"{\"customer_id\":")[..40].to_vec();
    for (said, outcome) in [
        (vec![], "unknown"),
        (begun, "applied"),
        (foreign, "unknown"),
    ] {
        let upstream = Upstream::start(Reply::SayAndStall(said)).await;
        let told = Facade::with(&upstream.url(), &IMPATIENT)
            .await
            .refused(an_update())
            .await;
        told.is(Code::DeadlineExceeded, "UPSTREAM_TIMEOUT", outcome);
        assert_eq!(
            told.metadata.contains_key("upstream_status"),
            outcome == "applied"
        );
        upstream.the_request();
    }
}

#[tokio::test]
async fn row_14_the_callers_deadline() {
    let begun = json(200, &a_profile().to_string())[..80].to_vec();
    for (said, outcome) in [(vec![], "unknown"), (begun, "applied")] {
        let upstream = Upstream::start(Reply::SayAndStall(said)).await;
        let facade = Facade::before(&upstream.url()).await;
        let told = facade
            .refused(with(an_update(), &[("grpc-timeout", "300m")]))
            .await;
        told.is(Code::DeadlineExceeded, "UPSTREAM_TIMEOUT", outcome);
        upstream.the_request();
    }
}

/// While a connection is still being made nothing has been sent; that is what is told, and it stays true when the
/// connection is made after all.
#[tokio::test(flavor = "multi_thread")]
async fn row_14_before_anything_was_sent() {
    let silent = full_listener();
    let url = format!("http://{}", silent.0);
    let facade = Facade::with(&url, &["--connect-timeout", "9s"]).await;
    let told = facade
        .refused(with(an_update(), &[("grpc-timeout", "300m")]))
        .await;
    told.is(Code::DeadlineExceeded, "UPSTREAM_TIMEOUT", "not_sent");
    // Room for the connection: the system tries again after a second.
    let (_, listener, queued) = silent;
    let connected = tokio::task::spawn_blocking(move || {
        drop((listener.accept().unwrap(), queued));
        let mut connection = listener.accept().unwrap().0;
        let mut received = Vec::new();
        connection.read_to_end(&mut received).map(|_| received)
    });
    let received = timeout(PATIENCE, connected)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(
        !String::from_utf8_lossy(&received).contains("nationality"),
        "it was sent"
    );
    let line = facade.logged(|line| line["message"] == "call").await;
    assert_eq!(
        (line["outcome"].as_str(), line["caller_gone"].as_bool()),
        (Some("not_sent"), Some(true))
    );
}

#[tokio::test]
async fn row_14_our_own_deadline() {
    let upstream = Upstream::start(Reply::SayAndStall(vec![])).await;
    let told = Facade::with(&upstream.url(), &["--max-deadline", "300ms"])
        .await
        .refused(an_update())
        .await;
    told.is(Code::DeadlineExceeded, "UPSTREAM_TIMEOUT", "unknown");
}

/// The PUT is seen through, its end is written down, and its connection is used again.
#[tokio::test]
async fn row_15_the_caller_leaves() {
    let upstream = Upstream::start(Reply::SayWhenTold(json(200, &a_profile().to_string()))).await;
    let facade = Facade::before(&upstream.url()).await;
    let mut client = facade.client().await;
    let mut same_connection = client.clone();
    let call = tokio::spawn(async move { client.update_customer(an_update()).await });
    upstream.asked().await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    // Frames keep their order, so once a later call is answered, the reset of the first has been seen.
    upstream.reply(Reply::Say(json(400, "{}")));
    same_connection
        .update_customer(an_update())
        .await
        .unwrap_err();
    upstream.go_on();
    let line = facade
        .logged(|line| line["message"] == "call" && line["code"] == "Canceled")
        .await;
    assert_eq!(
        (line["outcome"].as_str(), line["caller_gone"].as_bool()),
        (Some("applied"), Some(true))
    );
    assert_eq!(line["upstream_status"], 200);
}

/// An upstream with a certificate for `localhost` of an authority of its own.
pub struct TlsUpstream {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    authority: std::path::PathBuf,
}

impl TlsUpstream {
    pub async fn start(protocols: &[&[u8]]) -> TlsUpstream {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let server_key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&server_key, &issuer).unwrap();

        let mut config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], server_key.into())
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let name = format!("authority-{}.pem", listener.local_addr().unwrap().port());
        let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&file, authority.pem()).unwrap();
        TlsUpstream {
            listener,
            acceptor: TlsAcceptor::from(Arc::new(config)),
            authority: file,
        }
    }

    pub fn url(&self) -> String {
        format!(
            "https://localhost:{}",
            self.listener.local_addr().unwrap().port()
        )
    }

    /// Its authority's certificate, in PEM.
    pub fn authority(&self) -> String {
        std::fs::read_to_string(&self.authority).unwrap()
    }

    /// A façade that trusts this authority.
    pub async fn facade(&self, url: &str, more: &[&str]) -> Facade {
        let flags = [
            "--upstream-url",
            url,
            "--client-id",
            "c",
            "--attempt-timeout",
            "5s",
        ];
        let authority = self.authority.to_str().unwrap();
        Facade::start(
            &[&flags, more].concat(),
            &[
                ("SQRIL_GRPC_CLIENT_SECRET", CLIENT_SECRET),
                ("SSL_CERT_FILE", authority),
            ],
        )
        .await
    }

    pub async fn accept(&self) -> tokio_rustls::server::TlsStream<tokio::net::TcpStream> {
        loop {
            let (stream, _) = self.listener.accept().await.unwrap();
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return stream;
            }
        }
    }
}
