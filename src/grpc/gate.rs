//! The gate before every method: whoever may not call gets no further, whatever is asked for. Row 4.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use hyper::{HeaderMap, Request, Response, body::Incoming};
use tonic::{
    body::Body, codegen::Service as Tower, metadata::MetadataMap, server::NamedService,
    service::Routes,
};

use super::{Call, Facade, RequestId, Service, health, status::Failure};
use crate::identity::{Caller, Evidence, Peer, Policy, Refusal};

/// Everything that is served, behind the policy of who may call.
#[derive(Clone)]
pub struct Gate {
    routes: Routes,
    policy: Arc<Policy>,
}

impl Gate {
    /// Guards these services.
    pub fn new(routes: Routes, policy: Policy) -> Self {
        Gate {
            routes: routes.prepare(),
            policy: Arc::new(policy),
        }
    }

    /// The gate as it is for one connection.
    pub fn of(&self, peer: Peer) -> Guarded {
        let by_connection = match &self.policy.evidence {
            Evidence::Header(_) => None,
            Evidence::None | Evidence::Certificate => {
                Some(self.policy.admit(&peer, &HeaderMap::new()))
            }
        };
        Guarded {
            gate: self.clone(),
            peer: Arc::new(peer),
            by_connection,
        }
    }

    /// Whether a request needs no permission.
    fn is_open(&self, path: &str) -> bool {
        self.policy.open_health && service_of(path) == health::SERVICE
    }
}

/// The services as one connection's peer may use them.
#[derive(Clone)]
pub struct Guarded {
    gate: Gate,
    peer: Arc<Peer>,
    /// What was decided once for all calls of the connection, unless each call's header decides.
    by_connection: Option<Result<Option<Caller>, Refusal>>,
}

impl Tower<Request<Incoming>> for Guarded {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<
        <Routes as Tower<Request<Incoming>>>::Future,
        Ready<Result<Response<Body>, Infallible>>,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Tower::<Request<Incoming>>::poll_ready(&mut self.gate.routes, cx)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        let admitted = match &self.by_connection {
            _ if self.gate.is_open(request.uri().path()) => Ok(None),
            Some(decided) => decided.clone(),
            None => self.gate.policy.admit(&self.peer, request.headers()),
        };
        match admitted {
            Ok(caller) => {
                if let Some(caller) = caller {
                    request.extensions_mut().insert(caller);
                }
                Either::Left(self.gate.routes.call(request))
            }
            Err(refusal) => Either::Right(ready(Ok(refused(refusal, request)))),
        }
    }
}

/// Tells a caller, in the form of every other failure, that it may not call; and writes it down.
fn refused(refusal: Refusal, request: Request<Incoming>) -> Response<Body> {
    let (head, _) = request.into_parts();
    let metadata = MetadataMap::from_headers(head.headers);
    let caller = match &refusal {
        Refusal::NotAuthenticated => None,
        Refusal::NotAllowed(caller) => caller.clone(),
    };
    // What is asked for is the caller's own text, so only what is served is named.
    let method = match service_of(head.uri.path()) {
        <Service<Facade> as NamedService>::NAME => super::METHOD,
        _ => "other",
    };
    let call = Call::new(RequestId::of(&metadata, std::iter::empty()), method, caller);
    call.failed(&Failure::NotAdmitted(refusal), None, false)
        .into_http()
}

/// The service in a path: `/package.Service/Method` (gRPC over HTTP/2, "Requests").
fn service_of(path: &str) -> &str {
    let path = path.strip_prefix('/').unwrap_or(path);
    path.split_once('/').map_or("", |(service, _)| service)
}
