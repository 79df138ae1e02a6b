//! The one place where the parts meet. Building binds every socket and tells where; running serves until it is told
//! to stop.

use std::{error::Error, io, net::SocketAddr};

use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::{info, warn};
use url::Url;

use crate::{
    admin, config,
    grpc::{Facade, health::Readiness, reflection},
    incoming, rest,
    sandbox::{self, Sandbox},
    shutdown::Signals,
};

/// A façade with its sockets bound, not serving yet.
pub struct App {
    grpc: TcpListener,
    admin: TcpListener,
    facade: Facade,
    readiness: Readiness,
    reflection: bool,
    incoming: incoming::Limits,
    drain: config::Drain,
    sandbox: Option<Sandbox>,
    upstream: Url,
}

/// Why a façade could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The upstream's client cannot be built.
    #[error("cannot build the upstream's client: {0}; are the system's CA certificates there?")]
    Client(#[from] rest::BuildError),
}

impl App {
    /// Builds the parts and binds the sockets.
    ///
    /// # Errors
    /// When an address is taken, or the system's certificates cannot be loaded.
    pub async fn build(config: config::Serve) -> Result<Self, StartError> {
        let mut upstream = config.upstream;
        let (credentials, sandbox) = match config.credentials {
            Some(credentials) => (credentials, None),
            None => {
                let sandbox = Sandbox::new(bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?);
                upstream.base_url = sandbox.url();
                (sandbox::credentials(), Some(sandbox))
            }
        };
        let url = upstream.base_url.clone();
        let client = rest::Client::new(upstream, &credentials)?;
        Ok(App {
            grpc: bind(config.listen).await?,
            admin: bind(config.admin_listen).await?,
            facade: Facade::new(client, config.deadlines, config.admission),
            readiness: Readiness::new().await,
            reflection: config.reflection,
            incoming: config.incoming,
            drain: config.drain,
            sandbox,
            upstream: url,
        })
    }

    /// Serves until it is told to stop, then finishes what runs.
    ///
    /// # Errors
    /// When a socket is gone, or what was built into the program for reflection cannot be read.
    pub async fn run(self, mut signals: Signals) -> Result<(), Box<dyn Error>> {
        let (grpc, admin) = (self.grpc.local_addr()?, self.admin.local_addr()?);
        if let Some(sandbox) = self.sandbox {
            tokio::spawn(sandbox.run());
        }
        tokio::spawn(admin::run(self.admin, self.readiness.clone()));
        tokio::spawn(
            self.readiness
                .clone()
                .follow(self.facade.upstream_healthy()),
        );

        let mut routes = Routes::new(self.facade.clone().service());
        routes = routes.add_service(self.readiness.service());
        if self.reflection {
            let (v1, v1alpha) = reflection::services()?;
            routes = routes.add_service(v1).add_service(v1alpha);
        }
        let stop = CancellationToken::new();
        let serving = incoming::serve(self.grpc, routes.prepare(), self.incoming, stop.clone());
        let mut serving = tokio::spawn(serving);
        self.readiness.serving().await;
        info!(%grpc, %admin, upstream = %self.upstream, version = env!("CARGO_PKG_VERSION"), "serving");

        let signal = signals.next().await;
        self.readiness.not_serving().await;
        info!(signal, "draining");
        let drained = async {
            // Until those who route have seen that we are about to leave, calls are still welcome.
            sleep(self.drain.delay).await;
            stop.cancel();
            self.readiness.end();
            let last = async {
                self.facade.drain().await;
                drop((&mut serving).await);
            };
            timeout(self.drain.timeout, last).await
        };
        tokio::select! {
            drained = drained => match drained {
                Ok(()) => info!("drained"),
                Err(_) => warn!("drain timeout: ended with calls or connections open"),
            },
            signal = signals.next() => warn!(signal, "ended at once by a second signal"),
        }
        Ok(())
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Bind { address, source })
}
