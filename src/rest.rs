//! The REST edge: a [`CustomerUpdate`] becomes one `PUT /updateCustomer`, and Sqril's answer becomes an
//! [`UpdatedCustomer`] or an [`Error`] that says what is known of the update's fate.
//!
//! What is sent is exactly what is set; nothing of a caller's metadata goes out but the request id. How JSON is
//! written and read is in `wire`, how failures are told apart in `error`.

mod breaker;
mod credentials;
mod error;
mod progress;
mod quota;
mod retry;
mod wire;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Body, Method, Request, Response,
    header::{
        ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
    },
};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep, timeout_at},
};
use tower::retry::budget::{Budget, TpsBudget};
use url::Url;

use self::{
    breaker::{Breaker, Sign},
    progress::Update,
    quota::QuotaGate,
};
pub use self::{
    credentials::Credentials,
    error::{Answer, BuildError, Error, Refusal},
    progress::{Fate, Progress},
    retry::unasked,
};
use crate::customer::{CustomerUpdate, Field, Remark, UpdatedCustomer};

/// What Sqril's access log and ours have in common.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const USER_AGENT: &str = concat!("sqril-grpc/", env!("CARGO_PKG_VERSION"));
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What may stand for itself in a query: RFC 3986's unreserved characters. A blank becomes `%20`, never `+`.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// How Sqril is reached, and what is taken from it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Sqril's base URL; `/updateCustomer` is added to its path.
    pub base_url: Url,
    /// How outgoing connections find a proxy.
    pub proxy: Proxy,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// They do not.
    Off,
    /// By `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.
    Environment,
    /// By this URL, always.
    Url(Url),
}

/// The one client of Sqril: a pool of connections, and the headers that never change.
pub struct Client {
    http: reqwest::Client,
    endpoint: Url,
    authorization: HeaderValue,
    connections: Semaphore,
    breaker: Breaker,
    quota: QuotaGate,
    budget: Option<TpsBudget>,
    /// What an attempt usually takes, in microseconds.
    usual: AtomicU64,
    settings: Settings,
}

/// The window of the retry budget.
const BUDGET_WINDOW: Duration = Duration::from_secs(10);

impl Client {
    /// Builds the client; opens no connection.
    ///
    /// # Errors
    /// When the system's certificates cannot be loaded, or the proxy's URL is of no use.
    pub fn new(settings: Settings, credentials: &Credentials) -> Result<Self, BuildError> {
        let mut endpoint = settings.base_url.clone();
        endpoint.set_path(&format!(
            "{}/updateCustomer",
            endpoint.path().trim_end_matches('/')
        ));

        let http = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(settings.pool_idle_timeout)
            .tls_version_min(reqwest::tls::Version::TLS_1_2)
            .https_only(endpoint.scheme() == "https");
        let http = match &settings.proxy {
            // No TLS at all: then the system's certificates need not be there.
            Proxy::Off if endpoint.scheme() == "http" => http.no_proxy().tls_certs_only([]),
            Proxy::Off => http.no_proxy(),
            Proxy::Environment => http,
            Proxy::Url(url) => http.proxy(reqwest::Proxy::all(url.clone())?),
        };
        let budget = (settings.retry_budget > 0.0)
            .then(|| TpsBudget::new(BUDGET_WINDOW, 1, settings.retry_budget));
        Ok(Client {
            http: http.build()?,
            endpoint,
            authorization: credentials.authorization(),
            connections: Semaphore::new(settings.max_connections),
            breaker: Breaker::new(settings.breaker),
            quota: QuotaGate::default(),
            budget,
            usual: AtomicU64::new(0),
            settings,
        })
    }

    /// Whether updates are sent, as far as the upstream's health goes; and each change of that.
    pub fn healthy(&self) -> watch::Receiver<bool> {
        self.breaker.closed()
    }

    /// Sends the update and reads the answer, a second time where that is safe and there is time until the deadline.
    /// What was begun runs to its end whatever becomes of the caller.
    pub async fn update(
        &self,
        update: &CustomerUpdate,
        request_id: &str,
        deadline: Instant,
        progress: &Arc<Progress>,
    ) -> Result<UpdatedCustomer, Error> {
        self.budget.as_ref().inspect(|budget| budget.deposit());
        let first = match self.attempt(update, request_id, progress).await {
            Ok(customer) => return Ok(customer),
            Err(error) => error,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let usual = Duration::from_micros(self.usual.load(Ordering::Relaxed));
        let wait = retry::wait(&first, progress.attempts(), left, usual, fastrand::f64());
        let Some(wait) = wait.filter(|_| self.budget.as_ref().is_some_and(Budget::withdraw)) else {
            return Err(first);
        };
        match first {
            Error::Answered(_) => progress.rejected(),
            _ => progress.not_sent(),
        }
        sleep(wait).await;
        match self.attempt(update, request_id, progress).await {
            // Nothing was sent again, so what is known is what the first attempt showed.
            Err(Error::CircuitOpen(_) | Error::QuotaUsed(_) | Error::Abandoned) => Err(first),
            second => second,
        }
    }

    async fn attempt(
        &self,
        update: &CustomerUpdate,
        request_id: &str,
        progress: &Arc<Progress>,
    ) -> Result<UpdatedCustomer, Error> {
        let _connection = self.connections.acquire().await;
        let leave = self
            .breaker
            .admit(Instant::now())
            .map_err(Error::CircuitOpen)?;
        if let Some(left) = self.quota.left(Instant::now()) {
            return Err(Error::QuotaUsed(left));
        }
        if !progress.begin() {
            return Err(Error::Abandoned);
        }
        let started = Instant::now();
        let result = self.put(update, request_id, progress).await;
        let now = Instant::now();
        let sign = result.as_ref().map_or_else(Error::sign, |_| Sign::Alive);
        leave.record(sign, now, fastrand::f64());
        if sign == Sign::Alive {
            self.observe(now - started);
        }
        if let Err(Error::Answered(Answer {
            status: 429,
            retry_after: Some(wait),
            ..
        })) = &result
        {
            self.quota.pause(now, *wait);
        }
        result
    }

    /// Learns what an attempt usually takes: a moving average over some eight attempts.
    fn observe(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let usual = self.usual.load(Ordering::Relaxed);
        self.usual
            .store(usual - usual / 8 + took / 8, Ordering::Relaxed);
    }

    /// One PUT, from its start to the last byte of its answer.
    async fn put(
        &self,
        update: &CustomerUpdate,
        request_id: &str,
        progress: &Arc<Progress>,
    ) -> Result<UpdatedCustomer, Error> {
        let end = Instant::now() + self.settings.attempt_timeout;
        let request = self.request(update, request_id, progress);
        let response = match timeout_at(end, self.http.execute(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) if progress.is_closed() && progress.fate() != Fate::Unknown => {
                return Err(Error::Abandoned);
            }
            Ok(Err(error)) => return Err(Error::of(error, progress.fate() == Fate::Unknown)),
            Err(_) => return Err(Error::TimedOut { begun: None }),
        };
        match response.status().as_u16() {
            status @ (200 | 201) => self.applied(response, status, end, update, progress).await,
            status => Err(Error::Answered(self.refused(response, status, end).await)),
        }
    }

    fn request(
        &self,
        update: &CustomerUpdate,
        request_id: &str,
        progress: &Arc<Progress>,
    ) -> Request {
        let mut url = self.endpoint.clone();
        let id = utf8_percent_encode(update.customer_id().expose(), QUERY_VALUE);
        url.set_query(Some(&format!("customer_id={id}")));

        let mut request = Request::new(Method::PUT, url);
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, self.authorization.clone());
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(ACCEPT, JSON);
        headers.extend(
            HeaderValue::from_str(request_id)
                .ok()
                .map(|id| (REQUEST_ID, id)),
        );
        let body = Update::new(wire::body(update), Arc::clone(progress));
        *request.body_mut() = Some(Body::wrap(body));
        request
    }

    /// Reads the answer to an update that Sqril says it applied.
    async fn applied(
        &self,
        response: Response,
        status: u16,
        end: Instant,
        update: &CustomerUpdate,
        progress: &Arc<Progress>,
    ) -> Result<UpdatedCustomer, Error> {
        let json = is_json(response.headers());
        if json {
            progress.applied(status);
        }
        // Without the label, nothing shows that it was Sqril who answered, so nothing shows that it was applied.
        let unusable = if json {
            Error::Unreadable { status }
        } else {
            Error::Foreign { status }
        };
        let body = match timeout_at(end, read(response, self.settings.max_answer_bytes)).await {
            Ok(Some(body)) => body,
            Ok(None) => return Err(unusable),
            Err(_) => {
                let begun = json.then_some(status);
                return Err(Error::TimedOut { begun });
            }
        };
        match wire::profile(&body, update) {
            // An unlabelled object counts as Sqril's only if it names the customer.
            Ok(customer) if json || !is_anonymous(&customer) => Ok(customer),
            Ok(_) | Err(wire::Unusable::NotAnObject) => Err(unusable),
            Err(wire::Unusable::OtherCustomer) => Err(Error::OtherCustomer { status }),
        }
    }

    /// Reads any other answer. Its status alone decides, unless it is Sqril who speaks.
    async fn refused(&self, response: Response, status: u16, end: Instant) -> Answer {
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| retry::parse_retry_after(text, SystemTime::now()));
        let refusal = match status {
            400..=599 => match timeout_at(end, read(response, self.settings.max_error_bytes)).await
            {
                Ok(Some(body)) => wire::refusal(&body),
                Ok(None) | Err(_) => None,
            },
            _ => None,
        };
        Answer {
            status,
            retry_after,
            refusal,
        }
    }
}

fn is_anonymous(customer: &UpdatedCustomer) -> bool {
    customer.remarked(Field::CustomerId, Remark::Missing)
        || customer.remarked(Field::CustomerId, Remark::Unreadable)
}

/// Whether a body is labelled as JSON, whatever the parameters (RFC 9110, section 8.3.1).
fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// Reads a body to its end. `None` if it is cut short or longer than the limit.
async fn read(mut response: Response, limit: usize) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        if body.len() + chunk.len() > limit {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}

/// Doors for the fuzzers, which see nothing else of this room.
#[cfg(fuzzing)]
#[expect(missing_docs, reason = "not part of the program")]
pub mod fuzzing {
    use super::*;

    pub fn update(id: &str, email: &str, address: &str) -> CustomerUpdate {
        let set = [
            (Field::Email, Ok(email.to_owned())),
            (Field::Address, Ok(address.to_owned())),
        ];
        CustomerUpdate::parse(id.to_owned(), set).expect("a legal update")
    }

    pub fn body(update: &CustomerUpdate) -> Vec<u8> {
        wire::body(update)
    }

    /// Whose profile it is, if it is one.
    pub fn profile(body: &[u8], update: &CustomerUpdate) -> Option<String> {
        let mut customer = wire::profile(body, update).ok()?;
        customer
            .texts
            .remove(&Field::CustomerId)
            .map(crate::customer::Private::into_exposed)
    }

    pub fn answered(status: u16, retry_after: Option<u8>, body: &[u8]) -> Error {
        let retry_after = retry_after.map(|seconds| Duration::from_secs(seconds.into()));
        Error::Answered(Answer {
            status,
            retry_after,
            refusal: wire::refusal(body),
        })
    }

    pub fn retry_after(text: &str) -> Option<Duration> {
        retry::parse_retry_after(text, SystemTime::UNIX_EPOCH)
    }
}
