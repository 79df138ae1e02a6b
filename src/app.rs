//! The one place where the parts meet. Building binds every socket and tells where; running serves until it is told
//! to stop.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::TcpListener;
use tonic::transport::{Server, server::TcpIncoming};
use tracing::{info, warn};
use url::Url;

use crate::{
    admin, config,
    grpc::{Facade, health::Readiness, reflection},
    rest,
    sandbox::{self, Sandbox},
};

/// A façade with its sockets bound, not serving yet.
pub struct App {
    grpc: TcpListener,
    admin: TcpListener,
    facade: Facade,
    readiness: Readiness,
    reflection: bool,
    drain_timeout: Duration,
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
            facade: Facade::new(client, config.deadlines),
            readiness: Readiness::new().await,
            reflection: config.reflection,
            drain_timeout: config.drain_timeout,
            sandbox,
            upstream: url,
        })
    }

    /// Serves until `stop` ends, then finishes what runs.
    ///
    /// # Errors
    /// When a listener fails.
    pub async fn run(
        self,
        stop: impl Future<Output = &'static str>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let (grpc, admin) = (self.grpc.local_addr()?, self.admin.local_addr()?);
        if let Some(sandbox) = self.sandbox {
            tokio::spawn(sandbox.run());
        }
        tokio::spawn(admin::run(self.admin, self.readiness.clone()));

        let running = self.facade.running();
        let (stopped, stopping) = tokio::sync::oneshot::channel();
        let readiness = self.readiness.clone();
        let mut server = Server::builder()
            .add_service(self.facade.service())
            .add_service(self.readiness.service());
        if self.reflection {
            let (v1, v1alpha) = reflection::services()?;
            server = server.add_service(v1).add_service(v1alpha);
        }
        let incoming = TcpIncoming::from(self.grpc).with_nodelay(Some(true));
        let serving = server.serve_with_incoming_shutdown(incoming, async move {
            let signal = stop.await;
            readiness.not_serving().await;
            info!(signal, "draining");
            readiness.end();
            let _ = stopped.send(());
        });

        self.readiness.serving().await;
        info!(%grpc, %admin, upstream = %self.upstream, version = env!("CARGO_PKG_VERSION"), "serving");
        let drained = async {
            serving.await?;
            running.close();
            running.wait().await;
            Ok::<_, tonic::transport::Error>(())
        };
        let too_late = async {
            drop(stopping.await);
            tokio::time::sleep(self.drain_timeout).await;
        };
        tokio::select! {
            result = drained => { result?; info!("drained"); }
            () = too_late => warn!("drain timeout: ended with calls or connections open"),
        }
        Ok(())
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Bind { address, source })
}
