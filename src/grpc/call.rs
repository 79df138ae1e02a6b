//! One call, from the door to the line in the log: what its caller is told, and what became of its update, which may be
//! more.

use std::{
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    sync::oneshot,
    time::{Instant as Moment, timeout_at},
};
use tonic::{Code, Response, Status, metadata::MetadataMap};
use tracing::info;

use super::{
    METHOD, REQUEST_ID, RequestId, code, response,
    status::{Context, Failure, Outcome, Verdict},
};
use crate::{
    customer::{CustomerUpdate, HashKey, UpdatedCustomer},
    identity::Caller,
    metrics::{Exemplar, Metrics},
    pb::{UpdateCustomerRequest, UpdateCustomerResponse, WarningCode},
    rest::{self, Errand, Fate, Progress},
    telemetry::{self, Instruments, Trace, Tracer},
};

/// The method's full name, as traces have it.
const FULL_METHOD: &str = "sqril.customer.v1.CustomerService/UpdateCustomer";

type Answer = Result<Response<UpdateCustomerResponse>, Status>;

/// One call, from the door to the line in the log.
pub(super) struct Call {
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
    pub(super) fn new<'a>(
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

    /// It waited until now to be taken.
    pub(super) fn is_taken(&self) {
        self.admitted.get_or_init(|| self.started.elapsed());
    }

    /// By what it can be found again.
    pub(super) fn exemplar(&self) -> Exemplar {
        self.trace.exemplar(self.request_id.as_str())
    }

    pub(super) async fn run(
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
    pub(super) async fn wait(
        &self,
        mut answer: oneshot::Receiver<Answer>,
        deadline: Moment,
    ) -> Answer {
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

    pub(super) fn failed(&self, failure: &Failure, update: Option<&CustomerUpdate>) -> Status {
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
pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

/// A caller that waits for its answer. When this goes, it was answered or has left, so nothing more is begun for it; and a
/// call that has no task yet to see it through ends here.
pub(super) struct Waiting<'a> {
    call: &'a Call,
    /// Whether a task sees its call through.
    pub(super) for_its_task: bool,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(call: &'a Call) -> Self {
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

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt;

    use super::*;
    use crate::metrics::Format;

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
            let running = Arc::clone(&call);
            let task = tokio::spawn(async move {
                let (_caller, _bug) = (caller, ToldOnPanic(&running));
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
            // The task has written it down, once.
            let counted = instruments.metrics.encode(Format::Text);
            for series in [
                "sqril_errors_total{reason=\"INTERNAL_ERROR\"} 1\n",
                &format!("sqril_update_outcomes_total{{outcome=\"{outcome}\"}} 1\n"),
            ] {
                assert!(counted.contains(series), "{series} in {counted}");
            }
        }
    }
}
