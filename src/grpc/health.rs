//! grpc.health.v1, by tonic-health but for two rules of the protocol: nothing serves before the process is ready,
//! and a Watch on a name that is not known answers SERVICE_UNKNOWN instead of an error.

use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::stream::unfold;
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Response, Status,
    server::NamedService,
    transport::{self, Certificate, ClientTlsConfig, Endpoint, Identity},
};
use tonic_health::{
    ServingStatus,
    pb::{
        HealthCheckRequest, HealthCheckResponse,
        health_check_response::ServingStatus as Wire,
        health_client::HealthClient,
        health_server::{Health, HealthServer},
    },
    server::{HealthReporter, HealthService},
};

use tracing::info;

use super::{Facade, MAX_MESSAGE_BYTES, Service};
use crate::metrics::Metrics;

/// The names under which health is told: the process, the service, and what is seen of Sqril. The first two are
/// readiness; nothing routes on the last.
const NAMES: [&str; 3] = ["", <Service<Facade> as NamedService>::NAME, UPSTREAM];
const UPSTREAM: &str = "sqril.upstream";

/// The full name of the health service.
pub(super) const SERVICE: &str = <HealthServer<ByProtocol> as NamedService>::NAME;

/// Sets what health checks are told.
#[derive(Clone)]
pub struct Readiness {
    reporter: HealthReporter,
    serving: Arc<AtomicBool>,
    leaving: Arc<AtomicBool>,
    ended: CancellationToken,
    metrics: Metrics,
}

impl Readiness {
    /// Not ready yet.
    pub async fn new(metrics: Metrics) -> Self {
        let readiness = Readiness {
            reporter: HealthReporter::new(),
            serving: Arc::default(),
            leaving: Arc::default(),
            ended: CancellationToken::new(),
            metrics,
        };
        readiness.set(ServingStatus::NotServing).await;
        readiness
    }

    /// The service that answers Check and Watch.
    pub fn service(&self) -> HealthServer<impl Health> {
        let inner = HealthService::from_health_reporter(self.reporter.clone());
        HealthServer::new(ByProtocol {
            inner,
            ended: self.ended.clone(),
        })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Serving from now on.
    pub async fn serving(&self) {
        self.set(ServingStatus::Serving).await;
    }

    /// No more calls, please.
    pub async fn not_serving(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        self.metrics.draining();
        self.set(ServingStatus::NotServing).await;
    }

    /// Tells under `sqril.upstream` whether updates are sent, at each change of that.
    pub async fn follow(self, mut sending: watch::Receiver<bool>) {
        while sending.changed().await.is_ok() {
            let closed = *sending.borrow_and_update();
            let status = if closed {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            self.reporter.set_service_status(UPSTREAM, status).await;
            self.metrics.breaker(!closed);
            let state = if closed { "closed" } else { "open" };
            info!(state, "circuit breaker");
        }
    }

    /// Why calls are not welcome; `None` if they are.
    pub fn why_not(&self) -> Option<&'static str> {
        if self.serving.load(Ordering::Relaxed) {
            None
        } else if self.leaving.load(Ordering::Relaxed) {
            Some("draining")
        } else {
            Some("starting")
        }
    }

    /// Ends every open Watch: each would hold its connection, and with it the process.
    pub fn end(&self) {
        self.ended.cancel();
    }

    async fn set(&self, status: ServingStatus) {
        let serving = status == ServingStatus::Serving;
        self.serving.store(serving, Ordering::Relaxed);
        self.metrics.ready(serving);
        for name in NAMES {
            self.reporter.set_service_status(name, status).await;
        }
    }
}

struct ByProtocol {
    inner: HealthService,
    ended: CancellationToken,
}

#[tonic::async_trait]
impl Health for ByProtocol {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.inner.check(request).await
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let statuses: Self::WatchStream = match self.inner.watch(request).await {
            Ok(known) => Box::pin(known.into_inner()),
            Err(status) if status.code() == Code::NotFound => {
                let unknown = HealthCheckResponse {
                    status: Wire::ServiceUnknown.into(),
                };
                Box::pin(tokio_stream::iter([Ok(unknown)]).chain(tokio_stream::pending()))
            }
            Err(status) => return Err(status),
        };
        let ended = self.ended.clone();
        let until_the_end = unfold((statuses, ended), async |(mut statuses, ended)| {
            tokio::select! {
                biased; // The last status is still told.
                status = statuses.next() => Some((status?, (statuses, ended))),
                () = ended.cancelled() => None,
            }
        });
        Ok(Response::new(Box::pin(until_the_end)))
    }
}

/// Whom a probe asks, and how.
pub struct Target {
    /// The address.
    pub address: SocketAddr,
    /// The authorities of its certificate, in PEM; `None` for plaintext.
    pub authorities: Option<Vec<u8>>,
    /// The name in its certificate, if it is not the address.
    pub server_name: Option<String>,
    /// A certificate to show and its key, in PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Target {
    /// Without TLS.
    pub fn plaintext(address: SocketAddr) -> Self {
        Target {
            address,
            authorities: None,
            server_name: None,
            identity: None,
        }
    }

    fn endpoint(&self) -> Result<Endpoint, transport::Error> {
        let Some(authorities) = &self.authorities else {
            return Endpoint::from_shared(format!("http://{}", self.address));
        };
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities));
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        if let Some((certificate, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        Endpoint::from_shared(format!("https://{}", self.address))?.tls_config(tls)
    }
}

/// Shows neither certificates nor keys.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Asks a running façade whether it serves.
///
/// # Errors
/// What it says instead of SERVING, or why it says nothing.
pub async fn probe(target: &Target, service: String, wait: Duration) -> Result<(), String> {
    let address = target.address;
    let endpoint = target
        .endpoint()
        .map_err(|error| format!("cannot use the certificates: {error}"))?;
    let ask = async {
        let channel = endpoint
            .connect()
            .await
            .map_err(|_| format!("nobody answers at {address}"))?;
        let answer = HealthClient::new(channel)
            .check(HealthCheckRequest { service })
            .await;
        match answer.map(|answer| answer.into_inner().status()) {
            Ok(Wire::Serving) => Ok(()),
            Ok(other) => Err(other.as_str_name().to_owned()),
            Err(status) => Err(status.message().to_owned()),
        }
    };
    tokio::time::timeout(wait, ask)
        .await
        .map_err(|_| format!("no answer from {address} in time"))?
}
