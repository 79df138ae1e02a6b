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
    sync::{Notify, Semaphore, watch},
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
use crate::customer::{CustomerUpdate, Field, Remark, UpdatedCustomer};

/// What Sqril's access log and ours have in common.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What may stand for itself in a query: RFC 3986's unreserved characters. A blank becomes `%20`, never `+`.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

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

        let budget = (settings.retry_budget > 0.0)
            .then(|| TpsBudget::new(BUDGET_WINDOW, 1, settings.retry_budget));
        Ok(Client {
            http: ArcSwap::from_pointee(settings.http()?),
            endpoint,
            authorization: ArcSwap::from_pointee(Authorization::new(credentials)),
            rejected: Arc::default(),
            connections: Semaphore::new(settings.max_connections),
            breaker: Breaker::new(settings.breaker),
            quota: QuotaGate::default(),
            budget,
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
        self.http.store(Arc::new(settings.http()?));
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
        let authorization = self.authorization.load_full();
        let started = Instant::now();
        let mut result = self.put(update, request_id, progress, &authorization).await;
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
        if let Err(Error::Answered(answer @ Answer { status: 401, .. })) = &mut result {
            answer.credentials_changed =
                !Arc::ptr_eq(&authorization, &self.authorization.load_full());
            self.rejected.notify_one();
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
        authorization: &Authorization,
    ) -> Result<UpdatedCustomer, Error> {
        let end = Instant::now() + self.settings.attempt_timeout;
        let request = self.request(update, request_id, progress, authorization);
        let http = self.http.load_full();
        let response = match timeout_at(end, http.execute(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) if progress.is_closed() && progress.fate() != Fate::Unknown => {
                return Err(Error::Abandoned);
            }
            Ok(Err(error)) => return Err(Error::of(error, progress.fate() == Fate::Unknown)),
            Err(_) => return Err(Error::TimedOut { begun: None }),
        };
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
        request_id: &str,
        progress: &Arc<Progress>,
        authorization: &Authorization,
    ) -> Request {
        let mut url = self.endpoint.clone();
        let id = utf8_percent_encode(update.customer_id().expose(), QUERY_VALUE);
        url.set_query(Some(&format!("customer_id={id}")));

        let mut request = Request::new(Method::PUT, url);
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, authorization.header.clone());
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
