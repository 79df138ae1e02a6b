//! How callers come in: a guarded listener for HTTP/2.
//!
//! No peer, slow, broken or hostile, may hold more than its share. Connections are counted; a peer that does not shake
//! hands or begin HTTP/2 in time is gone; one that goes silent is found by pings; each connection ends after a while, so that load
//! spreads over replicas; and every limit of HTTP/2 is set here, for not all libraries below have one by default.

use std::{
    io::{self, Cursor},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures_util::FutureExt;
use hyper::{
    rt::{Read, Write},
    server::conn::http2,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, join, sink, split},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    grpc::{Gate, Guarded},
    identity::{Caller, Peer},
    metrics::{Connection as Became, Metrics, Resource},
    tls::{self, Certificate, Sets},
};

/// The first bytes of every HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The most calls at one time on one connection.
const MAX_STREAMS: u32 = 250;
/// The most streams that a client may have reset before they were answered: callers' deadlines come in bursts, and a
/// hostile client's resets ("rapid reset") never end.
const MAX_PENDING_RESETS: usize = 200;
/// The most streams of one connection that end by a fault of its client's.
const MAX_FAULTY_STREAMS: usize = 1024;
/// The most bytes of one request's headers.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// A connection that is silent for so long is asked whether it is still there, and is gone if it does not say so.
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// The most connections that are taken from the system's queue after the listener was told to stop.
const BACKLOG: u32 = 1024;
/// How long, and for how much, a connection that has ended is still read.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 1 << 20;
/// How long to wait after the system could not accept a connection, as when descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The limits that are settings.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most connections; further ones are closed at once.
    pub connections: usize,
    /// The longest time of a TLS handshake, its turn to begin among it.
    pub handshake: Duration,
    /// The most TLS handshakes at one time; further ones wait their turn.
    pub handshakes: usize,
    /// The longest time until a connection has begun HTTP/2.
    pub preface: Duration,
    /// How long a connection lives, give or take a tenth. Then its client is asked to go (GOAWAY), and running calls end.
    pub age: Duration,
    /// How long calls on a connection that is to end may still run: the longest time of a call.
    pub grace: Duration,
}

/// Serves connections until `stop`; ends when the last one has.
///
/// The listener is closed before any client is asked to go, for a client that comes back at once must be refused, and
/// not be taken into a queue that is about to be thrown away.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<tls::Server>>,
    gate: Gate,
    limits: Limits,
    metrics: Metrics,
    stop: CancellationToken,
) {
    metrics.limit(Resource::Connections, limits.connections);
    metrics.limit(Resource::Handshakes, limits.handshakes);
    let connections = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(limits.connections));
    let entrance = Arc::new(Entrance {
        tls,
        gate,
        limits,
        handshakes: Semaphore::new(limits.handshakes),
        drain: CancellationToken::new(),
        complaints: Mutex::default(),
        metrics,
    });
    let mut last = 0;
    loop {
        let accepted = if stop.is_cancelled() {
            // Those who are in the system's queue already are still taken.
            last += 1;
            match listener.accept().now_or_never() {
                Some(accepted) if last <= BACKLOG => accepted,
                Some(_) | None => break,
            }
        } else {
            tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => continue,
            }
        };
        match (accepted, Arc::clone(&permits).try_acquire_owned()) {
            (Ok((stream, address)), Ok(permit)) => {
                let entrance = Arc::clone(&entrance);
                drop(stream.set_nodelay(true));
                connections.spawn(async move {
                    let used = entrance.metrics.using(Resource::Connections);
                    entrance.admit(stream, address).await;
                    drop((permit, used));
                });
            }
            (Ok(_), Err(_)) => {
                entrance.metrics.connection(Became::OneTooMany);
                entrance.complain("too many connections: closed one at once");
            }
            (Err(error), _) => {
                entrance.metrics.connection(Became::NotAccepted);
                entrance.complain(&format!("cannot accept a connection: {error}"));
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    entrance.drain.cancel();
    connections.close();
    connections.wait().await;
}

/// What every connection passes.
struct Entrance {
    tls: Option<Arc<tls::Server>>,
    gate: Gate,
    limits: Limits,
    handshakes: Semaphore,
    drain: CancellationToken,
    complaints: Mutex<Complaints>,
    metrics: Metrics,
}

impl Entrance {
    /// One connection, from its first byte to its last.
    async fn admit(&self, stream: TcpStream, address: SocketAddr) {
        match &self.tls {
            // In a box of its own, so that a connection without TLS is small.
            Some(tls) => Box::pin(self.shake_hands(tls, stream, address)).await,
            None => {
                let (read, write) = stream.into_split();
                let peer = Peer {
                    address: address.ip(),
                    names: None,
                };
                self.connection(read, write, peer, None).await;
            }
        }
    }

    /// One connection with TLS.
    async fn shake_hands(&self, tls: &tls::Server, stream: TcpStream, address: SocketAddr) {
        // In a box of its own, for a handshake is large and soon over.
        let handshake = Box::pin(async {
            let _turn = self.handshakes.acquire().await;
            let _used = self.metrics.using(Resource::Handshakes);
            tls.accept(stream).await
        });
        let accepted = tokio::select! {
            accepted = timeout(self.limits.handshake, handshake) => accepted,
            () = self.leave() => return,
        };
        match accepted {
            Ok(Ok(accepted)) => {
                let certificate = accepted.certificate;
                let peer = Peer {
                    address: address.ip(),
                    names: certificate.as_ref().map(|(shown, _)| shown.names.clone()),
                };
                let (read, write) = split(accepted.stream);
                self.connection(read, write, peer, certificate).await;
            }
            Ok(Err(error)) => self.no_tls(&format!("no TLS with {address}: {error}")),
            Err(_) => self.no_tls(&format!("no TLS with {address}: took too long")),
        }
    }

    /// One connection, from its preface to its last byte, by the halves of whatever carries it.
    async fn connection(
        &self,
        mut read: impl AsyncRead + Send + Unpin + 'static,
        write: impl AsyncWrite + Send + Unpin + 'static,
        peer: Peer,
        certificate: Option<(Certificate, Sets)>,
    ) {
        let mut preface = [0; PREFACE.len()];
        let begun = tokio::select! {
            begun = timeout(self.limits.preface, read.read_exact(&mut preface)) => matches!(begun, Ok(Ok(_))),
            () = self.leave() => false,
        };
        if !begun || preface != PREFACE {
            self.metrics.connection(Became::NoHttp2);
        } else {
            self.metrics.connection(Became::Begun);
            let service = self.gate.of(peer);
            // In a box of its own, so that a connection that only waits is small.
            Box::pin(speak(read, write, service, certificate, self)).await;
        }
    }

    /// Waits until connections that have not begun HTTP/2 are to end. One that has just come may be about to.
    async fn leave(&self) {
        self.drain.cancelled().await;
        sleep(LINGER).await;
    }

    fn no_tls(&self, what: &str) {
        self.metrics.connection(Became::NoTls);
        self.complain(what);
    }

    fn complain(&self, what: &str) {
        let complaints = self.complaints.lock();
        complaints
            .unwrap_or_else(PoisonError::into_inner)
            .make(what);
    }
}

/// One connection of HTTP/2, from behind its preface.
async fn speak(
    read: impl AsyncRead + Send + Unpin + 'static,
    write: impl AsyncWrite + Send + Unpin + 'static,
    service: Guarded,
    certificate: Option<(Certificate, Sets)>,
    entrance: &Entrance,
) {
    let (read, returned) = Lent::new(read);
    let io = TokioIo::new(join(Cursor::new(PREFACE).chain(read), write));
    let serving = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_FAULTY_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(io, TowerToHyperService::new(service));
    until_its_end(serving, certificate, entrance).await;
    // A socket that is closed before everything on it was read is reset, and a reset takes away what the client has not
    // read yet: its last answers, or the word that a request of its was not looked at.
    if let Ok(read) = returned.await {
        let rest = async { tokio::io::copy(&mut read.take(LINGER_BYTES), &mut sink()).await };
        drop(timeout(LINGER, rest).await);
    }
}

/// Runs a connection until its client ends it, it or its client's certificate is old, or the process is to leave; then
/// asks the client to go. A client whose certificate is no longer trusted is not asked.
async fn until_its_end(
    serving: http2::Connection<
        impl Read + Write + Unpin,
        TowerToHyperService<Guarded>,
        TokioExecutor,
    >,
    mut certificate: Option<(Certificate, Sets)>,
    entrance: &Entrance,
) {
    let mut serving = std::pin::pin!(serving);
    let mut age = entrance.limits.age.mul_f64(0.9 + fastrand::f64() / 5.0);
    if let Some((certificate, _)) = &certificate {
        let left = certificate.expires.duration_since(SystemTime::now());
        age = age.min(left.unwrap_or_default());
    }
    let old = Instant::now() + age;
    let distrusted = async {
        match &mut certificate {
            Some((certificate, sets)) => sets.distrust(certificate).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // What a client does to its connection is its own affair.
        _ = serving.as_mut() => return,
        () = distrusted => {
            let caller = certificate.and_then(|(shown, _)| shown.names.caller());
            let caller = caller.as_ref().map(Caller::as_str);
            entrance.metrics.connection(Became::Cut);
            info!(caller, "a caller's certificate is no longer trusted: its connection is cut");
            return;
        }
        () = sleep_until(old) => {}
        () = entrance.drain.cancelled() => {}
    }
    serving.as_mut().graceful_shutdown();
    drop(timeout(entrance.limits.grace, serving).await);
}

/// The reading half of a connection, lent to somebody who will only drop it.
struct Lent<R> {
    half: Option<R>,
    back: Option<oneshot::Sender<R>>,
}

impl<R> Lent<R> {
    fn new(half: R) -> (Self, oneshot::Receiver<R>) {
        let (back, returned) = oneshot::channel();
        (
            Lent {
                half: Some(half),
                back: Some(back),
            },
            returned,
        )
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Lent<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.half {
            Some(half) => Pin::new(half).poll_read(cx, buffer),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl<R> Drop for Lent<R> {
    fn drop(&mut self) {
        if let (Some(half), Some(back)) = (self.half.take(), self.back.take()) {
            drop(back.send(half));
        }
    }
}

/// Says what is wrong, but not more than once a second, however often it happens.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    unsaid: u64,
}

impl Complaints {
    fn make(&mut self, what: &str) {
        if self
            .last
            .is_some_and(|last| last.elapsed() < Duration::from_secs(1))
        {
            self.unsaid += 1;
            return;
        }
        warn!(unsaid = self.unsaid, "{what}");
        *self = Complaints {
            last: Some(Instant::now()),
            unsaid: 0,
        };
    }
}
