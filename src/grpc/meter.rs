//! What every call is counted by, whatever its method: when it comes in, and when the last byte of its answer has left
//! or its caller has.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::{
    HeaderMap, Response,
    body::{Bytes, Frame, SizeHint},
};
use tonic::{Code, Status, body::Body, server::NamedService};
use tracing::info;

use super::{
    Facade, Service,
    call::{Call, milliseconds},
    code, health, reflection,
    status::Outcome,
};
use crate::{
    identity::Caller,
    metrics::{Meter, Method, Metrics},
};

/// What stands for every name that is not served: it is a caller's own text.
const OTHER: &str = "other";

/// A meter for each method that is served, and one for all that are not.
#[derive(Clone)]
pub(super) struct Meters {
    methods: Arc<[(Method, Meter)]>,
    metrics: Metrics,
}

impl Meters {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let update = <Service<Facade> as NamedService>::NAME;
        let methods = [
            ("unary", update, super::METHOD),
            ("unary", health::SERVICE, "Check"),
            ("server_stream", health::SERVICE, "Watch"),
            ("bidi_stream", reflection::V1, "ServerReflectionInfo"),
            ("bidi_stream", reflection::V1ALPHA, "ServerReflectionInfo"),
            ("unary", OTHER, OTHER),
        ];
        let meter = |(grpc_type, grpc_service, grpc_method)| {
            let method = Method {
                grpc_type,
                grpc_service,
                grpc_method,
            };
            (method, metrics.meter(method, &code::NAMES))
        };
        Meters {
            methods: methods.into_iter().map(meter).collect(),
            metrics: metrics.clone(),
        }
    }

    /// A call of `/service/method` has come in.
    pub(super) fn started(&self, service: &str, method: &str) -> Running {
        let is_it = |(known, _): &(Method, Meter)| {
            known.grpc_service == service && known.grpc_method == method
        };
        let other = self.methods.len() - 1;
        let index = self.methods.iter().position(is_it).unwrap_or(other);
        self.methods[index].1.started();
        Running {
            meters: self.clone(),
            index,
            started: Instant::now(),
            code: Code::Cancelled,
            mark: Mark::default(),
            caller: None,
        }
    }
}

/// Where whoever handles a call leaves it, so that it can be found again.
#[derive(Clone, Default)]
pub(super) struct Mark(Arc<OnceLock<Arc<Call>>>);

impl Mark {
    pub(super) fn set(&self, call: &Arc<Call>) {
        self.0.get_or_init(|| Arc::clone(call));
    }
}

/// A call under way. It ends where this is dropped: canceled, unless its end was seen.
pub(super) struct Running {
    meters: Meters,
    index: usize,
    started: Instant,
    code: Code,
    mark: Mark,
    /// Who calls, if it is known.
    pub(super) caller: Option<Caller>,
}

impl Running {
    /// Where to leave the call.
    pub(super) fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Writes down a call that nobody handles: tonic itself answered it, for it is of no method that is served, or its message
    /// cannot be read; or its caller left before its message was there.
    fn end(&self, method: &'static str, took: Duration) {
        let (caller, outcome) = (self.caller.as_ref(), Outcome::NotSent.name());
        if method == super::METHOD {
            let allowed_by = caller.and_then(Caller::allowed_by).unwrap_or("anybody");
            self.meters.metrics.updated(outcome, allowed_by);
        }
        info!(
            caller = caller.map(Caller::as_str),
            method,
            code = code::name(self.code),
            outcome,
            attempts = 0,
            caller_gone = self.code == Code::Cancelled,
            duration_ms = milliseconds(took),
            "call"
        );
    }

    /// Goes with the answer until its last byte.
    pub(super) fn with(mut self, response: Response<Body>) -> Response<Body> {
        self.see(response.headers());
        response.map(|body| Body::new(Counted { body, call: self }))
    }

    /// The end, if it is in these headers or trailers.
    fn see(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get(Status::GRPC_STATUS) {
            self.code = Code::from_bytes(code.as_bytes());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        let (method, meter) = &self.meters.methods[self.index];
        let call = self.mark.0.get();
        meter.handled(self.code as usize, took, || {
            call.map(|call| call.exemplar())
        });
        if call.is_none() && [super::METHOD, OTHER].contains(&method.grpc_method) {
            self.end(method.grpc_method, took);
        }
    }
}

struct Counted {
    body: Body,
    call: Running,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(trailers) = frame
            .as_ref()
            .and_then(|frame| frame.as_ref().ok()?.trailers_ref())
        {
            self.call.see(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
