//! The gRPC edge: `UpdateCustomer` in a few steps. What comes in is read in `request`, what goes back is written in
//! `response`, everything that can go wrong is told by `status`.

mod deadline;
mod gate;
pub mod health;
pub mod reflection;
mod request;
mod request_id;
mod response;
mod status;

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use tokio::{
    sync::{oneshot, watch},
    time::{Instant as Moment, timeout_at},
};
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status};
use tracing::info;

use self::{
    deadline::deadline,
    status::{Context, Failure, Outcome, Verdict},
};
pub use self::{
    gate::{Gate, Guarded},
    request_id::RequestId,
    status::Reason,
};
use crate::{
    admission::{self, Admission},
    customer::{CustomerUpdate, HashKey, UpdatedCustomer},
    identity::Caller,
    pb::{
        UpdateCustomerRequest, UpdateCustomerResponse,
        customer_service_server::{CustomerService, CustomerServiceServer as Service},
    },
    rest::{self, Progress},
};

/// Metadata and header that carry the request id.
const REQUEST_ID: &str = "x-request-id";
/// The one method, as logs name it.
const METHOD: &str = "UpdateCustomer";

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
}

impl Facade {
    /// Answers by this client, within these limits; names customers in the log by this key.
    pub fn new(
        rest: Arc<rest::Client>,
        deadlines: Deadlines,
        limits: admission::Limits,
        hash_key: HashKey,
    ) -> Self {
        Facade {
            rest,
            hash_key: Arc::new(hash_key),
            deadlines,
            admission: Arc::new(Admission::new(limits)),
            running: TaskTracker::new(),
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
        let request_id = RequestId::of(request.metadata(), values);
        let caller = request.extensions().get::<Caller>().cloned();
        let call = Arc::new(Call::new(request_id, METHOD, caller));
        let Some(deadline) = deadline(request.metadata(), self.deadlines) else {
            return Err(call.failed(&Failure::DeadlineTooShort, None, false));
        };
        let slot = match timeout_at(deadline, self.admission.admit()).await {
            Ok(Ok(slot)) => slot,
            Ok(Err(refusal)) => return Err(call.failed(&Failure::NotTaken(refusal), None, false)),
            Err(_) => {
                return Err(call.failed(&Failure::DeadlinePassed, None, false));
            }
        };
        let (caller, answer) = oneshot::channel();
        let (rest, request) = (Arc::clone(&self.rest), request.into_inner());
        let hash_key = Arc::clone(&self.hash_key);
        let task = Arc::clone(&call).run(rest, hash_key, request, deadline, caller);
        self.running.spawn(async move {
            task.await;
            drop(slot);
        });
        call.wait(answer, deadline).await
    }
}

/// Where the answer to a call goes.
type Waiting = oneshot::Sender<Answer>;
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
}

impl Call {
    fn new(request_id: RequestId, method: &'static str, caller: Option<Caller>) -> Self {
        Call {
            request_id,
            method,
            caller,
            customer: OnceLock::new(),
            progress: Arc::default(),
            started: Instant::now(),
        }
    }

    async fn run(
        self: Arc<Self>,
        rest: Arc<rest::Client>,
        hash_key: Arc<HashKey>,
        request: UpdateCustomerRequest,
        deadline: Moment,
        caller: Waiting,
    ) {
        let result = match CustomerUpdate::try_from(request) {
            Err(violations) => {
                Err(self.failed(&Failure::Invalid(violations), None, caller.is_closed()))
            }
            Ok(update) => {
                self.customer
                    .get_or_init(|| hash_key.pseudonym(update.customer_id()));
                let request_id = self.request_id.as_str();
                let updated = rest.update(&update, request_id, deadline, &self.progress);
                match updated.await {
                    Ok(customer) => Ok(self.succeeded(customer, &update, caller.is_closed())),
                    Err(error) => {
                        let failure = Failure::Upstream(error);
                        Err(self.failed(&failure, Some(&update), caller.is_closed()))
                    }
                }
            }
        };
        // A caller that has left was told by row 14, or has told itself.
        drop(caller.send(result));
    }

    /// Rows 14 and 46: a deadline that passes is told in time, while the task goes on and writes down how it ended; a
    /// task that is gone has panicked.
    async fn wait(&self, answer: oneshot::Receiver<Answer>, deadline: Moment) -> Answer {
        let _answered = CloseOnDrop(&self.progress);
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_gone)) => Err(self.failed(&Failure::Panicked, None, false)),
            Err(_elapsed) => {
                // From here on nothing is begun, so what is told stays true.
                self.progress.close();
                let context = self.context(None);
                Err(Verdict::new(&Failure::DeadlinePassed, &context).into_status(&context))
            }
        }
    }

    fn succeeded(
        &self,
        customer: UpdatedCustomer,
        update: &CustomerUpdate,
        caller_gone: bool,
    ) -> Response<UpdateCustomerResponse> {
        let response = UpdateCustomerResponse::from(customer);
        self.log(Ok(&response), Some(update), caller_gone);
        let mut response = Response::new(response);
        response
            .metadata_mut()
            .insert(REQUEST_ID, self.request_id.to_metadata());
        response
    }

    fn failed(
        &self,
        failure: &Failure,
        update: Option<&CustomerUpdate>,
        caller_gone: bool,
    ) -> Status {
        let context = self.context(update);
        let verdict = Verdict::new(failure, &context);
        self.log(Err((failure, &verdict)), update, caller_gone);
        verdict.into_status(&context)
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

    /// The one line of the call: names and numbers, no value.
    fn log(
        &self,
        result: Result<&UpdateCustomerResponse, (&Failure, &Verdict)>,
        update: Option<&CustomerUpdate>,
        caller_gone: bool,
    ) {
        let fields = update
            .into_iter()
            .flat_map(CustomerUpdate::changes)
            .map(|(field, _)| field.name());
        let failure = result.err().map(|(failure, _)| failure);
        let verdict = result.err().map(|(_, verdict)| verdict);
        info!(
            request_id = self.request_id.as_str(),
            caller = self.caller.as_ref().map(Caller::as_str),
            method = self.method,
            code = ?verdict.map_or(Code::Ok, |verdict| verdict.code),
            reason = verdict.map(|verdict| verdict.reason.as_str()),
            outcome = verdict.map_or(Outcome::Applied, |verdict| verdict.outcome).name(),
            upstream_status = verdict.and_then(|verdict| verdict.upstream_status),
            attempts = self.progress.attempts(),
            customer = self.customer.get(),
            fields = fields.collect::<Vec<_>>().join(","),
            warnings = result.map_or(0, |response| response.warnings.len()),
            cause = match failure {
                Some(Failure::Upstream(error)) => Some(error.chain()),
                Some(_) | None => None,
            },
            caller_gone,
            duration_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "call"
        );
    }
}

/// Closes a call's progress when its caller is answered, or leaves.
struct CloseOnDrop<'a>(&'a Progress);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
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
        let request_id = RequestId::of(&tonic::metadata::MetadataMap::new(), std::iter::empty());
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
            let request_id =
                RequestId::of(&tonic::metadata::MetadataMap::new(), std::iter::empty());
            let call = Arc::new(Call::new(request_id, METHOD, None));
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
