//! The gRPC edge: `UpdateCustomer` in a few steps. What comes in is read in `request`, what goes back is written in
//! `response`, everything that can go wrong is told by `status`.

mod code;
mod deadline;
mod gate;
pub mod health;
mod meter;
pub mod reflection;
mod request;
mod request_id;
mod response;
mod status;

use std::{
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    sync::{oneshot, watch},
    time::{Instant as Moment, timeout_at},
};
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};
use tracing::info;

use self::{
    deadline::deadline,
    meter::Mark,
    status::{Context, Failure, Outcome, Verdict},
};
pub use self::{
    gate::{Gate, Guarded},
    request_id::RequestId,
    status::Reason,
};
use crate::{
    admission::{self, Admission},
    customer::{CustomerUpdate, Field, HashKey, UpdatedCustomer},
    identity::Caller,
    metrics::{Exemplar, Metrics},
    pb::{
        UpdateCustomerRequest, UpdateCustomerResponse, WarningCode,
        customer_service_server::{CustomerService, CustomerServiceServer as Service},
    },
    rest::{self, Errand, Fate, Progress},
    telemetry::{self, Instruments, Trace, Tracer},
};

/// Metadata and header that carry the request id.
const REQUEST_ID: &str = "x-request-id";
/// The one method, as logs name it, and as traces do.
const METHOD: &str = "UpdateCustomer";
const FULL_METHOD: &str = "sqril.customer.v1.CustomerService/UpdateCustomer";

/// The largest message taken: the largest legal update is under 5 KiB, and the buffer is reserved as soon as a
/// message's length is announced.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// How much time a call has.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// The most time a call gets, whatever its caller allows.
    pub max: Duration,
    /// The least time in which an update is sent at all.
    pub floor: Duration,
}

/// The façade: answers `UpdateCustomer` by one call of Sqril.
#[derive(Clone)]
pub struct Facade {
    rest: Arc<rest::Client>,
    deadlines: Deadlines,
    admission: Arc<Admission>,
    running: TaskTracker,
    hash_key: Arc<HashKey>,
    instruments: Instruments,
}

impl Facade {
    /// Answers by this client, within these limits; names customers in the log by this key.
    pub fn new(
        rest: Arc<rest::Client>,
        deadlines: Deadlines,
        limits: admission::Limits,
        hash_key: HashKey,
        instruments: Instruments,
    ) -> Self {
        let metrics = &instruments.metrics;
        let reasons = Reason::ALL.iter().map(|reason| reason.name());
        metrics.expect(
            Outcome::ALL.map(Outcome::name),
            reasons.chain(status::ANNOUNCED).chain([status::OTHER]),
            [Field::Occupation, Field::IcType].map(Field::name),
        );
        Facade {
            rest,
            hash_key: Arc::new(hash_key),
            deadlines,
            admission: Arc::new(Admission::new(limits, metrics)),
            running: TaskTracker::new(),
            instruments,
        }
    }

    /// Takes no further calls, and ends when the last one has, those whose callers have left among them.
    pub async fn drain(&self) {
        self.admission.drain();
        self.running.close();
        self.running.wait().await;
    }

    /// Whether updates are sent, as far as Sqril's health goes; and each change of that.
    pub fn upstream_healthy(&self) -> watch::Receiver<bool> {
        self.rest.healthy()
    }

    /// The service to listen with.
    pub fn service(self) -> Service<Self> {
        Service::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}

#[tonic::async_trait]
impl CustomerService for Facade {
    /// The update runs in a task of its own: it is seen through to its end and written down, even if the caller
    /// leaves or its deadline passes; and a panic ends that task alone.
    async fn update_customer(
        &self,
        request: Request<UpdateCustomerRequest>,
    ) -> Result<Response<UpdateCustomerResponse>, Status> {
        let values = request::texts(request.get_ref());
        let caller = request.extensions().get::<Caller>().cloned();
        let call = Call::new(
            request.metadata(),
            values,
            METHOD,
            caller,
            &self.instruments,
        );
        let call = Arc::new(call);
        if let Some(mark) = request.extensions().get::<Mark>() {
            mark.set(&call);
        }
        let mut waiting = Waiting::new(&call);
        let Some(deadline) = deadline(request.metadata(), self.deadlines) else {
            return Err(call.failed(&Failure::DeadlineTooShort, None));
        };
        let slot = match timeout_at(deadline, self.admission.admit()).await {
            Ok(Ok(slot)) => slot,
            Ok(Err(refusal)) => return Err(call.failed(&Failure::NotTaken(refusal), None)),
            Err(_) => return Err(call.failed(&Failure::DeadlinePassed, None)),
        };
        call.admitted.get_or_init(|| call.started.elapsed());
        let (caller, answer) = oneshot::channel();
        let (rest, request) = (Arc::clone(&self.rest), request.into_inner());
        let hash_key = Arc::clone(&self.hash_key);
        let task = Arc::clone(&call).run(rest, hash_key, request, deadline, caller);
        self.running.spawn(async move {
            task.await;
            drop(slot);
        });
        waiting.for_its_task = true;
        call.wait(answer, deadline).await
    }
}

type Answer = Result<Response<UpdateCustomerResponse>, Status>;

/// One call, from the door to the line in the log.
struct Call {
    request_id: RequestId,
    method: &'static str,
    caller: Option<Caller>,
    /// The customer's pseudonym, once it is known who it is.
    customer: OnceLock<String>,
    progress: Arc<Progress>,
    started: Instant,
    /// How long it waited to be taken.
    admitted: OnceLock<Duration>,
    /// What its caller was told: one thing, by whoever is first.
    told: OnceLock<Told>,
    trace: Trace,
    metrics: Metrics,
}

/// What a caller is told of a call, in short.
#[derive(Clone, Copy)]
struct Told {
    code: Code,
    /// The reason, as metrics have it; `None` if it is no error of ours.
    reason: Option<&'static str>,
    outcome: Outcome,
}

impl From<&Verdict> for Told {
    fn from(verdict: &Verdict) -> Self {
        Told {
            code: verdict.code,
            reason: Some(verdict.label),
            outcome: verdict.outcome,
        }
    }
}

/// How a call ended, for its line.
struct End<'a> {
    code: Code,
    reason: Option<&'a str>,
    outcome: Outcome,
    upstream_status: Option<u16>,
    warnings: usize,
    cause: Option<String>,
    update: Option<&'a CustomerUpdate>,
    /// Whether the caller had left, or was told that its deadline had passed.
    caller_gone: bool,
    /// Whether the caller may not call.
    refused: bool,
}

impl Call {
    fn new<'a>(
        metadata: &MetadataMap,
        values: impl Iterator<Item = &'a str>,
        method: &'static str,
        caller: Option<Caller>,
        instruments: &Instruments,
    ) -> Self {
        let request_id = RequestId::of(metadata, values);
        let tracer = match method {
            METHOD => instruments.tracer.clone(),
            _ => Tracer::default(),
        };
        let trace = tracer.call(metadata.as_ref(), FULL_METHOD);
        trace.describe("sqril.request_id", request_id.as_str());
        if let Some(caller) = &caller {
            trace.describe("sqril.caller", caller.as_str());
        }
        Call {
            request_id,
            method,
            caller,
            customer: OnceLock::new(),
            progress: Arc::default(),
            started: Instant::now(),
            admitted: OnceLock::new(),
            told: OnceLock::new(),
            trace,
            metrics: instruments.metrics.clone(),
        }
    }

    fn exemplar(&self) -> Exemplar {
        self.trace.exemplar(self.request_id.as_str())
    }

    async fn run(
        self: Arc<Self>,
        rest: Arc<rest::Client>,
        hash_key: Arc<HashKey>,
        request: UpdateCustomerRequest,
        deadline: Moment,
        caller: oneshot::Sender<Answer>,
    ) {
        let _bug = ToldOnPanic(&self);
        let result = match CustomerUpdate::try_from(request) {
            Err(violations) => Err(self.failed(&Failure::Invalid(violations), None)),
            Ok(update) => {
                let customer = hash_key.pseudonym(update.customer_id());
                self.trace.describe("sqril.customer", &customer);
                self.customer.get_or_init(|| customer);
                let errand = Errand {
                    request_id: self.request_id.as_str(),
                    deadline,
                    progress: &self.progress,
                    trace: &self.trace,
                };
                match rest.update(&update, &errand).await {
                    Ok(customer) => Ok(self.succeeded(customer, &update)),
                    Err(error) => Err(self.failed(&Failure::Upstream(error), Some(&update))),
                }
            }
        };
        // A caller that has left was told by row 14, or has told itself.
        drop(caller.send(result));
    }

    /// Rows 14 and 46: a deadline that passes is told in time, while the task goes on and writes down how it ended; a
    /// task that is gone has panicked.
    async fn wait(&self, mut answer: oneshot::Receiver<Answer>, deadline: Moment) -> Answer {
        match timeout_at(deadline, &mut answer).await {
            Ok(Ok(result)) => return result,
            Ok(Err(_gone)) => return Err(self.panicked()),
            Err(_elapsed) => {}
        }
        // From here on nothing is begun, so what is told stays true.
        self.progress.close();
        let context = self.context(None);
        let verdict = Verdict::new(&Failure::DeadlinePassed, &context);
        if self.tell(Told::from(&verdict)) {
            Err(verdict.into_status(&context))
        } else {
            // The task was first: its answer is as good as here.
            answer.await.unwrap_or_else(|_gone| Err(self.panicked()))
        }
    }

    fn succeeded(
        &self,
        customer: UpdatedCustomer,
        update: &CustomerUpdate,
    ) -> Response<UpdateCustomerResponse> {
        let (response, remarks) = response::written(customer);
        for (field, remark) in &remarks {
            let code = response::code(*remark);
            self.metrics.warned(code.as_str_name(), field.name());
            if code == WarningCode::CodeUnrecognized {
                self.metrics.unrecognized(field.name());
            }
        }
        let told = self.tell(Told {
            code: Code::Ok,
            reason: None,
            outcome: Outcome::Applied,
        });
        self.end(&End {
            code: Code::Ok,
            reason: None,
            outcome: Outcome::Applied,
            upstream_status: match self.progress.fate() {
                Fate::Applied(status) => Some(status),
                Fate::NotSent | Fate::Rejected | Fate::Unknown => None,
            },
            warnings: remarks.len(),
            cause: None,
            update: Some(update),
            caller_gone: !told,
            refused: false,
        });
        let mut response = Response::new(response);
        response
            .metadata_mut()
            .insert(REQUEST_ID, self.request_id.to_metadata());
        response
    }

    fn failed(&self, failure: &Failure, update: Option<&CustomerUpdate>) -> Status {
        let context = self.context(update);
        let verdict = Verdict::new(failure, &context);
        let told = self.tell(Told::from(&verdict));
        self.end(&End {
            code: verdict.code,
            reason: Some(&verdict.reason),
            outcome: verdict.outcome,
            upstream_status: verdict.upstream_status,
            warnings: 0,
            cause: match failure {
                Failure::Upstream(error) => Some(error.chain()),
                _ => None,
            },
            update,
            caller_gone: !told,
            refused: matches!(failure, Failure::NotAdmitted(_)),
        });
        verdict.into_status(&context)
    }

    /// What the caller of a task that panicked is told; the task has written it down.
    fn panicked(&self) -> Status {
        let context = self.context(None);
        Verdict::new(&Failure::Panicked, &context).into_status(&context)
    }

    fn context<'a>(&'a self, update: Option<&'a CustomerUpdate>) -> Context<'a> {
        Context {
            request_id: &self.request_id,
            update,
            attempts: self.progress.attempts(),
            fate: self.progress.fate(),
            dice: fastrand::f64(),
        }
    }

    /// Settles what the caller is told. False if that was settled before.
    fn tell(&self, told: Told) -> bool {
        if self.told.set(told).is_err() {
            return false;
        }
        if let Some(reason) = told.reason {
            self.metrics.told(reason);
        }
        self.trace.end(&telemetry::Told {
            code: code::spelt(told.code),
            failed: code::is_failure(told.code),
            reason: told.reason,
            outcome: told.outcome.name(),
        });
        true
    }

    /// The call is over: one line of names and numbers, without a value; and its update is counted. The code is what the
    /// caller was told, if it was not there for more; the outcome is the truth.
    fn end(&self, end: &End<'_>) {
        if self.method == METHOD {
            let allowed_by = self.caller.as_ref().and_then(Caller::allowed_by);
            let otherwise = if end.refused { "nobody" } else { "anybody" };
            let allowed_by = allowed_by.unwrap_or(otherwise);
            self.metrics.updated(end.outcome.name(), allowed_by);
        }
        let told = self.told.get();
        let told_before = told.filter(|_| end.caller_gone);
        let fields = end.update.into_iter().flat_map(CustomerUpdate::changes);
        let fields = fields.map(|(field, _)| field.name());
        info!(
            request_id = self.request_id.as_str(),
            trace_id = self.trace.trace_id(),
            caller = self.caller.as_ref().map(Caller::as_str),
            method = self.method,
            code = code::name(told.map_or(end.code, |told| told.code)),
            reason = told_before.and_then(|told| told.reason).or(end.reason),
            outcome = end.outcome.name(),
            upstream_status = end.upstream_status,
            attempts = self.progress.attempts(),
            customer = self.customer.get(),
            fields = fields.collect::<Vec<_>>().join(","),
            warnings = end.warnings,
            cause = end.cause,
            caller_gone = end.caller_gone,
            queued_ms = self.admitted.get().map(|waited| milliseconds(*waited)),
            upstream_ms = milliseconds(self.progress.spent()),
            duration_ms = milliseconds(self.started.elapsed()),
            "call"
        );
    }
}

/// To the microsecond.
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

/// A caller that waits for its answer. When this goes, it was answered or has left, so nothing more is begun for it; and a
/// call that has no task yet to see it through ends here.
struct Waiting<'a> {
    call: &'a Call,
    for_its_task: bool,
}

impl<'a> Waiting<'a> {
    fn new(call: &'a Call) -> Self {
        Waiting {
            call,
            for_its_task: false,
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let call = self.call;
        call.progress.close();
        let left = Told {
            code: Code::Cancelled,
            reason: None,
            outcome: Outcome::from(call.progress.fate()),
        };
        if call.tell(left) && !self.for_its_task {
            call.end(&End {
                code: Code::Cancelled,
                reason: None,
                outcome: Outcome::NotSent,
                upstream_status: None,
                warnings: 0,
                cause: None,
                update: None,
                caller_gone: true,
                refused: false,
            });
        }
    }
}

/// Writes down a call whose task panics.
struct ToldOnPanic<'a>(&'a Call);

impl Drop for ToldOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.failed(&Failure::Panicked, None);
        }
    }
}

/// Doors for the fuzzers, which see nothing else of this room.
#[cfg(fuzzing)]
#[expect(missing_docs, reason = "not part of the program")]
pub mod fuzzing {
    use tonic_types::StatusExt;

    use super::*;

    pub struct Told {
        pub encoded: usize,
        pub texts: Vec<String>,
    }

    pub fn grpc_timeout(text: &str) -> Option<Duration> {
        deadline::parse_grpc_timeout(text)
    }

    pub fn told(error: rest::Error, update: &CustomerUpdate) -> Told {
        let request_id = RequestId::of(&MetadataMap::new(), std::iter::empty());
        let update = Some(update);
        let context = Context {
            request_id: &request_id,
            update,
            attempts: 1,
            fate: rest::Fate::Unknown,
            dice: 0.5,
        };
        let status = Verdict::new(&Failure::Upstream(error), &context).into_status(&context);
        let details = status.get_error_details();
        let info = details.error_info().expect("always there");
        let mut texts = vec![status.message().to_owned(), info.reason.clone()];
        texts.extend(info.metadata.values().cloned());
        texts.extend(
            details
                .localized_message()
                .map(|message| message.message.clone()),
        );
        texts.extend(
            details
                .bad_request()
                .into_iter()
                .flat_map(|bad| bad.field_violations.iter().map(|v| v.field.clone())),
        );
        Told {
            encoded: status.message().len() + status.details().len().div_ceil(3) * 4,
            texts,
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt;

    use super::*;

    /// Row 46: the caller of a task that panicked is told what is known of its update.
    #[tokio::test]
    async fn row_46_panic() {
        for (sent, outcome) in [(false, "not_sent"), (true, "unknown")] {
            let instruments = Instruments::default();
            let (metadata, values) = (MetadataMap::new(), std::iter::empty());
            let call = Arc::new(Call::new(&metadata, values, METHOD, None, &instruments));
            assert!(call.progress.begin());
            assert!(!sent || call.progress.send());
            let (caller, answer) = oneshot::channel::<Answer>();
            let task = tokio::spawn(async move {
                let _caller = caller;
                panic!("on purpose");
            });
            let later = Moment::now() + Duration::from_secs(60);
            let status = call.wait(answer, later).await.unwrap_err();
            assert!(task.await.unwrap_err().is_panic());
            let info = status.get_details_error_info().unwrap();
            assert_eq!(
                (status.code(), info.reason.as_str()),
                (Code::Internal, "INTERNAL_ERROR")
            );
            assert_eq!(info.metadata["upstream_outcome"], outcome);
        }
    }
}
