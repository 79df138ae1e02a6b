//! The gRPC edge: `UpdateCustomer` in a few steps. What comes in is read in `request`, what goes back is written in
//! `response`, everything that can go wrong is told by `status`.

mod call;
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

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    time::timeout_at,
};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use self::{
    call::{Call, Waiting},
    deadline::deadline,
    meter::Mark,
    status::{Failure, Outcome},
};
pub use self::{
    gate::{Gate, Guarded},
    request_id::RequestId,
    status::Reason,
};
use crate::{
    admission::{self, Admission},
    customer::{Field, HashKey},
    identity::Caller,
    pb::{
        UpdateCustomerRequest, UpdateCustomerResponse,
        customer_service_server::{CustomerService, CustomerServiceServer as Service},
    },
    rest,
    telemetry::Instruments,
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
        call.is_taken();
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

/// Doors for the fuzzers, which see nothing else of this room.
#[cfg(fuzzing)]
#[expect(missing_docs, reason = "not part of the program")]
pub mod fuzzing {
    use tonic::metadata::MetadataMap;
    use tonic_types::StatusExt;

    use super::{
        status::{Context, Verdict},
        *,
    };
    use crate::customer::CustomerUpdate;

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
