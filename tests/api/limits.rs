//! Rows 6 and 7, and the listener's limits: one test a limit, with its flag.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;

use crate::support::{Facade, PATIENCE, Reply, Told, Upstream, a_profile, an_update, json, with};

async fn held() -> Upstream {
    Upstream::start(Reply::SayWhenTold(json(200, &a_profile().to_string()))).await
}

/// One call in flight, one in the queue, and no room for a third; health checks are answered all the same.
#[tokio::test]
async fn row_06_overloaded() {
    let upstream = held().await;
    let facade = Facade::with(&upstream.url(), &["--max-in-flight=1", "--max-queued=1"]).await;
    let client = facade.client().await;
    let call = || {
        let mut client = client.clone();
        tokio::spawn(async move { client.update_customer(an_update()).await })
    };
    let first = call();
    upstream.asked().await;
    // Of two more, one gets into the queue and the other is refused at once.
    let (mut second, mut third) = (call(), call());
    let (refused, queued) = tokio::select! {
        result = &mut second => (result, third),
        result = &mut third => (result, second),
    };
    let told = Told::of(&refused.unwrap().unwrap_err());
    told.is(Code::ResourceExhausted, "OVERLOADED", "not_sent");
    assert!(told.retry_in().is_some());
    assert_eq!(crate::health::status(&facade, "").await, "SERVING");
    upstream.go_on();
    first.await.unwrap().unwrap();
    upstream.go_on();
    queued.await.unwrap().unwrap();
    assert_eq!(upstream.received().len(), 2);
}

/// A call that waits for a connection until its caller gives up is never sent.
#[tokio::test]
async fn upstream_connections() {
    let upstream = held().await;
    let facade = Facade::with(&upstream.url(), &["--upstream-connections=1"]).await;
    let mut client = facade.client().await;
    let first = tokio::spawn(async move { client.update_customer(an_update()).await });
    upstream.asked().await;
    let told = facade
        .refused(with(an_update(), &[("grpc-timeout", "200m")]))
        .await;
    told.is(Code::DeadlineExceeded, "UPSTREAM_TIMEOUT", "not_sent");
    upstream.go_on();
    first.await.unwrap().unwrap();
    let line = facade
        .logged(|line| line["message"] == "call" && line["attempts"] == 0)
        .await;
    assert_eq!(line["outcome"], "not_sent");
    assert_eq!(upstream.received().len(), 1);
}

/// Row 7: a call on a connection that is still there while the process leaves.
#[tokio::test]
async fn row_07_draining() {
    let upstream = held().await;
    let mut facade = Facade::before(&upstream.url()).await;
    let mut raw = Raw::connect(&facade).await;
    raw.call(1, &an_update()).await;
    upstream.asked().await;
    facade.signal("TERM");
    // A client that does not answer the ping that comes with GOAWAY is still listened to.
    raw.until(7).await;
    raw.call(3, &an_update()).await;
    raw.headers_of(3).await;
    let line = facade.logged(|line| line["reason"] == "DRAINING").await;
    assert_eq!(
        (line["code"].as_str(), line["outcome"].as_str()),
        (Some("Unavailable"), Some("not_sent"))
    );
    upstream.go_on();
    raw.headers_of(1).await;
    facade
        .logged(|line| line["message"] == "call" && line["code"] == "OK")
        .await;
    drop(raw);
    assert_eq!(facade.ended().await.code(), Some(0));
    assert_eq!(upstream.received().len(), 1);
}

#[tokio::test]
async fn preface_timeout() {
    let facade = Facade::start(&["--sandbox", "--preface-timeout=100ms"], &[]).await;
    for begun in [&b""[..], b"PRI * HTTP/2.0\r\n"] {
        let mut stream = TcpStream::connect(facade.grpc).await.unwrap();
        stream.write_all(begun).await.unwrap();
        assert_eq!(
            timeout(PATIENCE, stream.read(&mut [0]))
                .await
                .unwrap()
                .unwrap(),
            0,
            "{begun:?}"
        );
    }
    // Not HTTP/2 at all: gone at once.
    let mut stream = TcpStream::connect(facade.grpc).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    assert!(
        timeout(PATIENCE, stream.read(&mut [0]))
            .await
            .unwrap()
            .is_ok_and(|n| n == 0)
    );
}

#[tokio::test]
async fn max_connections() {
    let facade = Facade::start(&["--sandbox", "--max-connections=2"], &[]).await;
    let first = Raw::connect(&facade).await;
    let _second = Raw::connect(&facade).await;
    let mut third = TcpStream::connect(facade.grpc).await.unwrap();
    // Closed without a word, or with RST if our bytes were under way.
    let closed = timeout(PATIENCE, third.read(&mut [0])).await.unwrap();
    assert!(closed.map_or(true, |n| n == 0));
    facade
        .logged(|line| {
            line["message"]
                .as_str()
                .unwrap()
                .starts_with("too many connections")
        })
        .await;
    drop(first);
    // Its place is free as soon as its end has been seen.
    timeout(PATIENCE, async { while !facade.takes_another().await {} })
        .await
        .unwrap();
}

/// With no descriptors left it neither dies nor spins, and takes connections again as soon as there are some.
#[tokio::test]
async fn out_of_descriptors() {
    let facade = Facade::limited_to(40).await;
    let mut many = Vec::new();
    for _ in 0..80 {
        many.push(TcpStream::connect(facade.grpc).await.unwrap());
    }
    facade
        .logged(|line| {
            line["message"]
                .as_str()
                .unwrap()
                .starts_with("cannot accept")
        })
        .await;
    let before = processor_ticks(&facade);
    // Not for anything to happen, but for time to pass in which nothing should.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ticks = processor_ticks(&facade) - before;
    assert!(
        ticks < 30,
        "{ticks} of 100 ticks of processor time in a second of nothing"
    );
    drop(many);
    timeout(PATIENCE, async { while !facade.takes_another().await {} })
        .await
        .unwrap();
}

/// What the process has used of its processors, in ticks of 10 ms.
fn processor_ticks(facade: &Facade) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", facade.pid())).unwrap();
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// At its age a connection is asked to go; the call that runs on it ends as it would have.
#[tokio::test]
async fn max_connection_age() {
    let upstream = held().await;
    let facade = Facade::with(&upstream.url(), &["--max-connection-age=300ms"]).await;
    let mut raw = Raw::connect(&facade).await;
    raw.call(1, &an_update()).await;
    raw.until(7).await;
    upstream.go_on();
    raw.headers_of(1).await;
    facade
        .logged(|line| line["message"] == "call" && line["code"] == "OK")
        .await;
}

#[tokio::test]
async fn max_concurrent_streams() {
    let facade = Facade::sandbox().await;
    let mut raw = Raw::connect(&facade).await;
    let settings = raw.until(4).await;
    let pairs: Vec<_> = settings
        .chunks(6)
        .map(|pair| {
            (
                pair[1],
                u32::from_be_bytes([pair[2], pair[3], pair[4], pair[5]]),
            )
        })
        .collect();
    // SETTINGS_MAX_CONCURRENT_STREAMS and SETTINGS_MAX_HEADER_LIST_SIZE.
    assert!(pairs.contains(&(3, 250)), "{pairs:?}");
    assert!(pairs.contains(&(6, 16 * 1024)), "{pairs:?}");
}

/// Streams opened and reset as fast as can be: the connection is ended, the process serves on.
#[tokio::test]
async fn rapid_reset() {
    let facade = Facade::sandbox().await;
    let mut raw = Raw::connect(&facade).await;
    for n in 0..2000 {
        if raw.open(1 + 2 * n).await.is_err() || raw.reset(1 + 2 * n).await.is_err() {
            break;
        }
    }
    let goaway = raw.until(7).await;
    // ENHANCE_YOUR_CALM
    assert_eq!(goaway[4..8], [0, 0, 0, 11]);
    assert_eq!(crate::health::status(&facade, "").await, "SERVING");
}

/// Streams that are wrong in themselves, one after another: ended as well.
#[tokio::test]
async fn faulty_streams() {
    let facade = Facade::sandbox().await;
    let mut raw = Raw::connect(&facade).await;
    for n in 0..3000 {
        // A header that HTTP/2 does not have makes a request malformed (RFC 9113, section 8.2.2).
        let headers = [request_headers(), literal("connection", "close")].concat();
        if raw.frame(1, 4, 1 + 2 * n, &headers).await.is_err() {
            break;
        }
    }
    let goaway = raw.until(7).await;
    assert_eq!(goaway[4..8], [0, 0, 0, 11]);
    assert_eq!(crate::health::status(&facade, "").await, "SERVING");
}

/// Headers that never end, in CONTINUATION frames.
#[tokio::test]
async fn endless_headers() {
    let facade = Facade::sandbox().await;
    let mut raw = Raw::connect(&facade).await;
    let never_indexed = [&[0x10, 1, b'a', 0x7f, 0x80, 0x7f][..], &[b'x'; 16_255]].concat();
    drop(raw.frame(1, 0, 1, &never_indexed).await);
    let mut sent = 0;
    while sent < 100 << 20 && raw.frame(9, 0, 1, &never_indexed).await.is_ok() {
        sent += never_indexed.len();
    }
    assert!(sent < 100 << 20, "100 MiB of headers were taken");
    assert_eq!(crate::health::status(&facade, "").await, "SERVING");
}

/// A client that speaks HTTP/2 frame by frame, and does nothing by itself.
pub struct Raw {
    stream: TcpStream,
}

impl Raw {
    pub async fn connect(facade: &Facade) -> Raw {
        let mut stream = TcpStream::connect(facade.grpc).await.unwrap();
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let mut raw = Raw { stream };
        raw.frame(4, 0, 0, &[]).await.unwrap();
        // Until the façade has spoken, it has not taken us in.
        let mut first = [0];
        raw.stream.peek(&mut first).await.unwrap();
        raw
    }

    pub async fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> std::io::Result<()> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.stream.write_all(&[&head, payload].concat()).await
    }

    /// Opens a stream of `UpdateCustomer` without a body.
    pub async fn open(&mut self, stream: u32) -> std::io::Result<()> {
        self.frame(1, 4, stream, &request_headers()).await
    }

    pub async fn reset(&mut self, stream: u32) -> std::io::Result<()> {
        self.frame(3, 0, stream, &[0, 0, 0, 8]).await
    }

    async fn call(&mut self, stream: u32, request: &sqril_grpc::pb::UpdateCustomerRequest) {
        self.open(stream).await.unwrap();
        let message = prost::Message::encode_to_vec(request);
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        self.frame(0, 1, stream, &[&[0], &length[..], &message].concat())
            .await
            .unwrap();
    }

    async fn read(&mut self) -> (u8, u8, u32, Vec<u8>) {
        let read = async {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            self.stream.read_exact(&mut payload).await.unwrap();
            (
                head[3],
                head[4],
                u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
                payload,
            )
        };
        timeout(PATIENCE, read).await.expect("no further frame")
    }

    /// The payload of the next frame of this type.
    pub async fn until(&mut self, kind: u8) -> Vec<u8> {
        loop {
            let (read, flags, _, payload) = self.read().await;
            if read == kind && !(kind == 4 && flags == 1) {
                return payload;
            }
        }
    }

    /// Waits for the next headers on this stream.
    async fn headers_of(&mut self, stream: u32) {
        loop {
            let (kind, _, of, _) = self.read().await;
            if kind == 1 && of == stream {
                return;
            }
        }
    }
}

fn request_headers() -> Vec<u8> {
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/sqril.customer.v1.CustomerService/UpdateCustomer"),
        (":authority", "facade"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    headers
        .into_iter()
        .flat_map(|(name, value)| literal(name, value))
        .collect()
}

/// A literal header without indexing (RFC 7541, section 6.2.2), so that no state is kept.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let (n, v) = (
        u8::try_from(name.len()).unwrap(),
        u8::try_from(value.len()).unwrap(),
    );
    [&[0, n], name.as_bytes(), &[v], value.as_bytes()].concat()
}
