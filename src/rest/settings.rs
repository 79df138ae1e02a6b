//! How Sqril is reached: the settings of the REST edge, and the pool of connections that is built by them.

use std::{
    fmt,
    time::{Duration, Instant},
};

use tower::util::MapFutureLayer;
use url::Url;

use super::BuildError;
use crate::metrics::Metrics;

const USER_AGENT: &str = concat!("sqril-grpc/", env!("CARGO_PKG_VERSION"));

/// How Sqril is reached, and what is taken from it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Sqril's base URL; `/updateCustomer` is added to its path.
    pub base_url: Url,
    /// How outgoing connections find a proxy.
    pub proxy: Proxy,
    /// Whose word is taken for who Sqril is; `None` for the system's authorities.
    pub authorities: Option<Authorities>,
    /// The longest time to open a connection, TLS included.
    pub connect_timeout: Duration,
    /// The longest time for one PUT, from its start to the last byte of its answer.
    pub attempt_timeout: Duration,
    /// How long an unused connection is kept. Must be below the upstream's own keep-alive, or updates get lost on
    /// connections that the upstream is closing.
    pub pool_idle_timeout: Duration,
    /// The most bytes read of the body of a 200.
    pub max_answer_bytes: usize,
    /// The most bytes read of the body of an error.
    pub max_error_bytes: usize,
    /// The most connections, which is also the most PUTs at one time: further ones wait.
    pub max_connections: usize,
    /// How many second attempts there may be for each call, over ten seconds; at least one a second, none if zero.
    pub retry_budget: f32,
    /// Whether to stop sending while most of what is sent fails.
    pub breaker: bool,
}

/// How outgoing connections find a proxy.
#[derive(Clone, PartialEq, Eq)]
pub enum Proxy {
    /// They do not.
    Off,
    /// By `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.
    Environment,
    /// By this URL, always.
    Url(Url),
}

/// Shows no URL, for it may hold a password.
impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Proxy::Off => "Off",
            Proxy::Environment => "Environment",
            Proxy::Url(_) => "Url([hidden])",
        })
    }
}

/// Certificates of authorities, and of nobody else, whose word is taken for who the upstream is.
#[derive(Clone, Debug)]
pub struct Authorities(Vec<reqwest::Certificate>);

impl Authorities {
    /// Reads certificates in PEM.
    ///
    /// # Errors
    /// A sentence for the log: there is none, or one cannot be used.
    pub fn parse(pem: &[u8]) -> Result<Self, &'static str> {
        let certificates = reqwest::Certificate::from_pem_bundle(pem).unwrap_or_default();
        if certificates.is_empty() {
            return Err("holds no certificate in PEM");
        }
        let usable = reqwest::Client::builder().tls_certs_only(certificates.clone());
        match usable.build() {
            Ok(_) => Ok(Authorities(certificates)),
            Err(_) => Err("holds a certificate that cannot be used"),
        }
    }
}

impl Settings {
    /// A pool of connections, none of them open; each that is opened is counted.
    pub(super) fn http(&self, metrics: &Metrics) -> Result<reqwest::Client, BuildError> {
        let metrics = metrics.clone();
        let counted = MapFutureLayer::new(move |opening| {
            let metrics = metrics.clone();
            async move {
                let started = Instant::now();
                let opened = opening.await;
                metrics.upstream_connected(Result::is_ok(&opened), started.elapsed());
                opened
            }
        });
        let plaintext = self.base_url.scheme() == "http";
        let http = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .connector_layer(counted)
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(self.pool_idle_timeout)
            .tls_version_min(reqwest::tls::Version::TLS_1_2)
            .https_only(!plaintext);
        let http = match &self.proxy {
            Proxy::Off => http.no_proxy(),
            Proxy::Environment => http,
            Proxy::Url(url) => http.proxy(reqwest::Proxy::all(url.clone())?),
        };
        let http = match &self.authorities {
            Some(authorities) => http.tls_certs_only(authorities.0.clone()),
            // No TLS at all: then the system's certificates need not be there.
            None if plaintext && self.proxy == Proxy::Off => http.tls_certs_only([]),
            None => http,
        };
        Ok(http.build()?)
    }
}
