//! The gRPC edge: `UpdateCustomer` in a few steps. What comes in is read in `request`, what goes back is written in
//! `response`, everything that can go wrong is told by `status`.

mod deadline;
pub mod health;
pub mod reflection;
mod request;
mod request_id;
mod response;
mod status;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, time::timeout_at};
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status};
use tracing::info;

use self::{
    deadline::Deadline,
    status::{Context, Failure, Outcome, Verdict},
};
pub use self::{request_id::RequestId, status::Reason};
use crate::{
    customer::CustomerUpdate,
    pb::{
        UpdateCustomerRequest, UpdateCustomerResponse,
        customer_service_server::{CustomerService, CustomerServiceServer as Service},
    },
    rest::{self, Progress},
};

/// Metadata and header that carry the request id.
const REQUEST_ID: &str = "x-request-id";

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
    running: TaskTracker,
}

impl Facade {
    /// Answers by this client.
    pub fn new(rest: rest::Client, deadlines: Deadlines) -> Self {
        Facade {
            rest: Arc::new(rest),
            deadlines,
            running: TaskTracker::new(),
        }
    }

    /// The calls under way, those whose callers have left among them.
    pub fn running(&self) -> TaskTracker {
        self.running.clone()
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
        let deadline = Deadline::of(request.metadata(), self.deadlines);
        let call = Arc::new(Call {
            request_id: RequestId::of(request.metadata()),
            progress: Progress::default(),
            started: Instant::now(),
        });
        let (caller, answer) = oneshot::channel();
        let task = Arc::clone(&call).run(
            Arc::clone(&self.rest),
            request.into_inner(),
            deadline,
            caller,
        );
        self.running.spawn(task);
        match timeout_at(deadline.at(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_gone)) => Err(call.panicked()),
            Err(_elapsed) => Err(call.deadline_passed()),
        }
    }
}

/// Who waits for the end of a call.
type Caller = oneshot::Sender<Result<Response<UpdateCustomerResponse>, Status>>;

/// One call, from the door to the line in the log.
struct Call {
    request_id: RequestId,
    progress: Progress,
    started: Instant,
}

impl Call {
    async fn run(
        self: Arc<Self>,
        rest: Arc<rest::Client>,
        request: UpdateCustomerRequest,
        deadline: Deadline,
        caller: Caller,
    ) {
        let (update, result) = match CustomerUpdate::try_from(request) {
            Err(violations) => (None, Err(Failure::Invalid(violations))),
            Ok(update) if deadline.is_too_short() => (Some(update), Err(Failure::DeadlineTooShort)),
            Ok(update) => {
                let result = rest
                    .update(&update, self.request_id.as_str(), &self.progress)
                    .await;
                (Some(update), result.map_err(Failure::Upstream))
            }
        };
        let update = update.as_ref();
        let result = match result {
            Ok(customer) => {
                let response = UpdateCustomerResponse::from(customer);
                self.log(Ok(&response), update, caller.is_closed());
                Ok(self.respond(response))
            }
            Err(failure) => {
                let context = self.context(update);
                let verdict = Verdict::new(&failure, &context);
                self.log(Err((&failure, &verdict)), update, caller.is_closed());
                Err(verdict.into_status(&context))
            }
        };
        drop(caller.send(result));
    }

    /// Row 14: the caller is told in time; the task goes on and writes down how it ended.
    fn deadline_passed(&self) -> Status {
        let context = self.context(None);
        Verdict::new(
            &Failure::DeadlinePassed {
                begun: self.progress.begun(),
            },
            &context,
        )
        .into_status(&context)
    }

    /// Row 46: the task is gone, so the line is written here.
    fn panicked(&self) -> Status {
        let context = self.context(None);
        let verdict = Verdict::new(&Failure::Panicked, &context);
        self.log(Err((&Failure::Panicked, &verdict)), None, false);
        verdict.into_status(&context)
    }

    fn respond(&self, response: UpdateCustomerResponse) -> Response<UpdateCustomerResponse> {
        let mut response = Response::new(response);
        response
            .metadata_mut()
            .insert(REQUEST_ID, self.request_id.to_metadata());
        response
    }

    fn context<'a>(&'a self, update: Option<&'a CustomerUpdate>) -> Context<'a> {
        Context {
            request_id: &self.request_id,
            update,
            attempts: self.progress.attempts(),
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
            method = "UpdateCustomer",
            code = ?verdict.map_or(Code::Ok, |verdict| verdict.code),
            reason = verdict.map(|verdict| verdict.reason.as_str()),
            outcome = verdict.map_or(Outcome::Applied, |verdict| verdict.outcome).name(),
            upstream_status = verdict.and_then(|verdict| verdict.upstream_status),
            attempts = self.progress.attempts(),
            fields = fields.collect::<Vec<_>>().join(","),
            warnings = result.map_or(0, |response| response.warnings.len()),
            cause = failure.and_then(Failure::cause),
            caller_gone,
            duration_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "call"
        );
    }
}
