//! The one place where the parts meet. Building binds every socket and tells where; running serves until it is told
//! to stop.

use std::{error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::{error, info, warn};
use url::Url;

use crate::{
    admin, config,
    grpc::{Facade, Gate, health::Readiness, reflection},
    identity::{Evidence, Policy},
    incoming,
    reload::{Loaded, Reloader},
    rest,
    sandbox::{self, Sandbox},
    shutdown::{Hangups, Signals},
    telemetry::Instruments,
    tls,
};

/// A façade with its sockets bound, not serving yet.
pub struct App {
    grpc: TcpListener,
    admin: TcpListener,
    facade: Facade,
    rejected: Arc<Notify>,
    readiness: Readiness,
    reloader: Reloader,
    reload_interval: Option<Duration>,
    instruments: Instruments,
    tls: Option<Arc<tls::Server>>,
    callers: Policy,
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
    /// Builds the parts and binds the sockets; what they do is seen by these instruments.
    ///
    /// # Errors
    /// When an address is taken, or the system's certificates cannot be loaded.
    pub async fn build(
        config: config::Serve,
        instruments: Instruments,
    ) -> Result<Self, StartError> {
        let metrics = instruments.metrics.clone();
        let mut reloader = Reloader::new(metrics.clone());
        let mut upstream = config.upstream;
        let (credentials, sandbox) = match config.credentials {
            Some(credentials) => (credentials, None),
            None => {
                let sandbox = Sandbox::new(bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?);
                upstream.base_url = sandbox.url();
                (Loaded::from(sandbox::credentials()), Some(sandbox))
            }
        };
        let url = upstream.base_url.clone();
        let client = rest::Client::new(upstream, &credentials.value, metrics.clone())?;
        let client = Arc::new(client);
        let authorized = Arc::clone(&client);
        reloader.watch(credentials.source, move |credentials| {
            authorized.authorize(&credentials);
        });
        let trusting = Arc::clone(&client);
        reloader.watch(config.upstream_ca, move |authorities| {
            if let Err(cause) = trusting.trust(authorities) {
                error!(%cause, "the upstream's authorities stay as they were");
            }
        });
        let tls = config.tls.map(|loaded| {
            let server = Arc::new(tls::Server::new(loaded.value, &metrics));
            let (exchanged, metrics) = (Arc::clone(&server), metrics.clone());
            reloader.watch(loaded.source, move |set| exchanged.exchange(set, &metrics));
            server
        });
        Ok(App {
            grpc: bind(config.listen).await?,
            admin: bind(config.admin_listen).await?,
            rejected: client.rejected(),
            facade: Facade::new(
                client,
                config.deadlines,
                config.admission,
                config.hash_key,
                instruments.clone(),
            ),
            readiness: Readiness::new(metrics).await,
            reloader,
            reload_interval: config.reload_interval,
            instruments,
            tls,
            callers: config.callers,
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
        let troubles = self.reloader.troubles();
        let reloading = self
            .reloader
            .run(self.reload_interval, Hangups::listen()?, self.rejected);
        tokio::spawn(reloading);
        tokio::spawn(admin::run(
            self.admin,
            self.readiness.clone(),
            troubles,
            self.instruments.metrics.clone(),
        ));
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
        let asked = self.callers.evidence != Evidence::None;
        if asked && self.callers.allowed.is_empty() {
            warn!("nobody may call: no --allow-caller");
        } else if !asked && !grpc.ip().is_loopback() {
            warn!("whoever reaches the port may call: neither --client-ca nor --identity-header");
        }
        let metrics = self.instruments.metrics.clone();
        let gate = Gate::new(routes, self.callers, self.instruments);
        let stop = CancellationToken::new();
        let serving = incoming::serve(
            self.grpc,
            self.tls,
            gate,
            self.incoming,
            metrics,
            stop.clone(),
        );
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
