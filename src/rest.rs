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
mod settings;
mod wire;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Body, Method, Request, Response,
    header::{
        ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
    },
};
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit, watch},
    time::{Instant, sleep, timeout_at},
};
use tower::retry::budget::{Budget, TpsBudget};
use url::Url;

use self::{
    breaker::{Breaker, Sign},
    credentials::Authorization,
    progress::Update,
    quota::QuotaGate,
};
pub use self::{
    credentials::Credentials,
    error::{Answer, BuildError, Error, Refusal},
    progress::{Fate, Progress},
    retry::unasked,
    settings::{Authorities, Proxy, Settings},
};
use crate::{
    customer::{CustomerUpdate, Field, Remark, UpdatedCustomer},
    metrics::{Metrics, Resource, Used},
    telemetry::{Target, Trace},
};

/// What Sqril's access log and ours have in common.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The one call of Sqril's API, and the one member of its query.
const PATH: &str = "/updateCustomer";
const ID: &str = "customer_id";

/// What may come of a PUT, as far as it is worth to be seen before it does.
const EXPECTED: [(Option<u16>, &str); 14] = [
    (Some(200), "ok"),
    (Some(400), "refused"),
    (Some(401), "refused"),
    (Some(404), "refused"),
    (Some(429), "refused"),
    (Some(500), "refused"),
    (Some(502), "refused"),
    (Some(503), "refused"),
    (Some(504), "refused"),
    (None, "unreachable"),
    (None, "tls_failed"),
    (None, "not_taken"),
    (None, "lost"),
    (None, "timed_out"),
];

/// What may stand for itself in a query: RFC 3986's unreserved characters. A blank becomes `%20`, never `+`.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What a call gives its PUTs to go with.
pub struct Errand<'a> {
    /// The call's name in logs and upstream.
    pub request_id: &'a str,
    /// When its caller must be answered.
    pub deadline: Instant,
    /// How far it has come.
    pub progress: &'a Arc<Progress>,
    /// Its place in its trace.
    pub trace: &'a Trace,
}

/// The one client of Sqril: a pool of connections, and the headers that never change.
pub struct Client {
    http: ArcSwap<reqwest::Client>,
    endpoint: Url,
    authorization: ArcSwap<Authorization>,
    rejected: Arc<Notify>,
    connections: Semaphore,
    breaker: Breaker,
    quota: QuotaGate,
    budget: Option<TpsBudget>,
    metrics: Metrics,
    target: Target,
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
    pub fn new(
        settings: Settings,
        credentials: &Credentials,
        metrics: Metrics,
    ) -> Result<Self, BuildError> {
        let mut endpoint = settings.base_url.clone();
        let base = endpoint.path().trim_end_matches('/');
        endpoint.set_path(&format!("{base}{PATH}"));

        metrics.limit(Resource::UpstreamRequests, settings.max_connections);
        metrics.expect_upstream(EXPECTED, retry::REASONS);
        let budget = (settings.retry_budget > 0.0)
            .then(|| TpsBudget::new(BUDGET_WINDOW, 1, settings.retry_budget));
        Ok(Client {
            http: ArcSwap::from_pointee(settings.http(&metrics)?),
            target: Target::new("PUT", &endpoint, ID, PATH),
            endpoint,
            authorization: ArcSwap::from_pointee(Authorization::new(credentials)),
            rejected: Arc::default(),
            connections: Semaphore::new(settings.max_connections),
            breaker: Breaker::new(settings.breaker),
            quota: QuotaGate::default(),
            budget,
            metrics,
            usual: AtomicU64::new(0),
            settings,
        })
    }

    /// Sends other credentials from now on.
    pub fn authorize(&self, credentials: &Credentials) {
        self.authorization
            .store(Arc::new(Authorization::new(credentials)));
    }

    /// Takes the word of other authorities from now on, and leaves every connection that was made on the old ones'.
    ///
    /// # Errors
    /// When one cannot be used; then nothing changes.
    pub fn trust(&self, authorities: Authorities) -> Result<(), BuildError> {
        let settings = Settings {
            authorities: Some(authorities),
            ..self.settings.clone()
        };
        self.http.store(Arc::new(settings.http(&self.metrics)?));
        Ok(())
    }

    /// Is notified when Sqril rejects the credentials: there may be newer ones.
    pub fn rejected(&self) -> Arc<Notify> {
        Arc::clone(&self.rejected)
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
        errand: &Errand<'_>,
    ) -> Result<UpdatedCustomer, Error> {
        self.budget.as_ref().inspect(|budget| budget.deposit());
        let first = match self.attempt(update, errand).await {
            Ok(customer) => return Ok(customer),
            Err(error) => error,
        };
        let left = errand.deadline.saturating_duration_since(Instant::now());
        let usual = Duration::from_micros(self.usual.load(Ordering::Relaxed));
        let attempts = errand.progress.attempts();
        let Some(wait) = retry::wait(&first, attempts, left, usual, fastrand::f64()) else {
            return Err(first);
        };
        if !self.budget.as_ref().is_some_and(Budget::withdraw) {
            self.metrics.retry_budget_exhausted();
            return Err(first);
        }
        match first {
            Error::Answered(_) => errand.progress.rejected(),
            _ => errand.progress.not_sent(),
        }
        sleep(wait).await;
        let second = self.attempt(update, errand).await;
        match second {
            // Nothing was sent again, so what is known is what the first attempt showed.
            Err(Error::CircuitOpen(_) | Error::QuotaUsed(_) | Error::Abandoned) => Err(first),
            second => {
                self.metrics.retried(retry::reason(&first));
                second
            }
        }
    }

    async fn attempt(
        &self,
        update: &CustomerUpdate,
        errand: &Errand<'_>,
    ) -> Result<UpdatedCustomer, Error> {
        let _connection = self.connection().await;
        let leave = self
            .breaker
            .admit(Instant::now())
            .map_err(Error::CircuitOpen)?;
        if let Some(left) = self.quota.left(Instant::now()) {
            return Err(Error::QuotaUsed(left));
        }
        if !errand.progress.begin() {
            return Err(Error::Abandoned);
        }
        let span = errand
            .trace
            .attempt(&self.target, errand.progress.attempts());
        let authorization = self.authorization.load_full();
        let started = Instant::now();
        let end = started + self.settings.attempt_timeout;
        let request = self.request(update, errand, &authorization, span.header());
        let (status, mut result) = match self.send(request, end, errand.progress).await {
            Ok(response) => {
                let status = response.status().as_u16();
                let read = self.read(response, end, update, errand.progress, &authorization);
                (Some(status), read.await)
            }
            Err(error) => (None, Err(error)),
        };
        let now = Instant::now();
        let took = now - started;
        errand.progress.spend(took);
        let came = result.as_ref().map_or_else(Error::name, |_| "ok");
        span.end(status, result.is_err().then_some(came));
        let exemplar = || Some(errand.trace.exemplar(errand.request_id));
        self.metrics.upstream_answered(status, came, took, exemplar);
        let sign = result.as_ref().map_or_else(Error::sign, |_| Sign::Alive);
        leave.record(sign, now, fastrand::f64());
        if sign == Sign::Alive {
            self.observe(took);
        }
        if let Err(Error::Answered(answer)) = &mut result {
            self.heed(answer, now, &authorization);
        }
        result
    }

    /// Waits for one of the connections.
    async fn connection(&self) -> (Option<SemaphorePermit<'_>>, Used) {
        let permit = match self.connections.try_acquire() {
            Ok(permit) => Some(permit),
            Err(_) => {
                let _waiting = self.metrics.using(Resource::UpstreamQueue);
                self.connections.acquire().await.ok()
            }
        };
        (permit, self.metrics.using(Resource::UpstreamRequests))
    }

    /// Does what an answer asks for beyond its call: keeps a pause, looks for other credentials.
    fn heed(&self, answer: &mut Answer, now: Instant, used: &Arc<Authorization>) {
        if let (429, Some(wait)) = (answer.status, answer.retry_after) {
            self.quota.pause(now, wait);
            self.metrics.quota_pause(SystemTime::now() + wait);
        }
        if answer.status == 401 {
            answer.credentials_changed = !Arc::ptr_eq(used, &self.authorization.load_full());
            self.rejected.notify_one();
        }
    }

    /// Learns what an attempt usually takes: a moving average over some eight attempts.
    fn observe(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let usual = self.usual.load(Ordering::Relaxed);
        self.usual
            .store(usual - usual / 8 + took / 8, Ordering::Relaxed);
    }

    /// Sends a PUT and waits for the head of its answer.
    async fn send(
        &self,
        request: Request,
        end: Instant,
        progress: &Progress,
    ) -> Result<Response, Error> {
        let http = self.http.load_full();
        match timeout_at(end, http.execute(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(_)) if progress.is_closed() && progress.fate() != Fate::Unknown => {
                Err(Error::Abandoned)
            }
            Ok(Err(error)) => Err(Error::of(error, progress.fate() == Fate::Unknown)),
            Err(_) => Err(Error::TimedOut { begun: None }),
        }
    }

    /// Reads an answer to its last byte.
    async fn read(
        &self,
        response: Response,
        end: Instant,
        update: &CustomerUpdate,
        progress: &Progress,
        authorization: &Authorization,
    ) -> Result<UpdatedCustomer, Error> {
        match response.status().as_u16() {
            status @ (200 | 201) => self.applied(response, status, end, update, progress).await,
            status => {
                let answer = self.refused(response, status, end, authorization);
                Err(Error::Answered(answer.await))
            }
        }
    }

    fn request(
        &self,
        update: &CustomerUpdate,
        errand: &Errand<'_>,
        authorization: &Authorization,
        trace: Option<(&'static str, HeaderValue)>,
    ) -> Request {
        let mut url = self.endpoint.clone();
        let id = utf8_percent_encode(update.customer_id().expose(), QUERY_VALUE);
        url.set_query(Some(&format!("{ID}={id}")));

        let mut request = Request::new(Method::PUT, url);
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, authorization.header.clone());
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(ACCEPT, JSON);
        headers.extend(
            HeaderValue::from_str(errand.request_id)
                .ok()
                .map(|id| (REQUEST_ID, id)),
        );
        if let Some((name, value)) = trace {
            headers.insert(name, value);
        }
        let body = Update::new(wire::body(update), Arc::clone(errand.progress));
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
        progress: &Progress,
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
            Ok(customer) if json || !is_anonymous(&customer) => {
                progress.applied(status);
                Ok(customer)
            }
            Ok(_) | Err(wire::Unusable::NotAnObject) => Err(unusable),
            Err(wire::Unusable::OtherCustomer) => Err(Error::OtherCustomer { status }),
        }
    }

    /// Reads any other answer. Its status alone decides, unless it is Sqril who speaks.
    async fn refused(
        &self,
        response: Response,
        status: u16,
        end: Instant,
        authorization: &Authorization,
    ) -> Answer {
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| retry::parse_retry_after(text, SystemTime::now()));
        let refusal = match status {
            400..=599 => match timeout_at(end, read(response, self.settings.max_error_bytes)).await
            {
                Ok(Some(body)) => wire::refusal(&body)
                    .and_then(|refusal| refusal.without(|text| authorization.is_repeated_in(text))),
                Ok(None) | Err(_) => None,
            },
            _ => None,
        };
        Answer {
            status,
            retry_after,
            refusal,
            credentials_changed: false,
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
            credentials_changed: false,
        })
    }

    pub fn retry_after(text: &str) -> Option<Duration> {
        retry::parse_retry_after(text, SystemTime::UNIX_EPOCH)
    }
}
