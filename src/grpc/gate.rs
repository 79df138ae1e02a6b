//! The gate before every method: whoever may not call gets no further, whatever is asked for. Row 4.

use std::{
    convert::Infallible,
    future::ready,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper::{HeaderMap, Request, Response, body::Incoming};
use tonic::{
    body::Body, codegen::Service as Tower, metadata::MetadataMap, server::NamedService,
    service::Routes,
};

use super::{
    Call, Facade, Service, health,
    meter::{Mark, Meters},
    status::Failure,
};
use crate::{
    identity::{Caller, Evidence, Peer, Policy, Refusal},
    telemetry::Instruments,
};

/// Everything that is served, behind the policy of who may call.
#[derive(Clone)]
pub struct Gate {
    routes: Routes,
    keeper: Arc<Keeper>,
}

/// What is the same for every connection.
struct Keeper {
    policy: Policy,
    meters: Meters,
    instruments: Instruments,
}

impl Gate {
    /// Guards these services.
    pub fn new(routes: Routes, policy: Policy, instruments: Instruments) -> Self {
        Gate {
            routes: routes.prepare(),
            keeper: Arc::new(Keeper {
                policy,
                meters: Meters::new(&instruments.metrics),
                instruments,
            }),
        }
    }

    /// The gate as it is for one connection.
    pub fn of(&self, peer: Peer) -> Guarded {
        let by_connection = match &self.keeper.policy.evidence {
            Evidence::Header(_) => None,
            Evidence::None | Evidence::Certificate => {
                Some(self.keeper.policy.admit(&peer, &HeaderMap::new()))
            }
        };
        Guarded {
            gate: self.clone(),
            peer: Arc::new(peer),
            by_connection,
        }
    }
}

impl Keeper {
    /// Whether a service needs no permission.
    fn is_open(&self, service: &str) -> bool {
        self.policy.open_health && service == health::SERVICE
    }

    /// Tells a caller, in the form of every other failure, that it may not call; and writes it down.
    fn refused(&self, refusal: Refusal, request: Request<Incoming>, mark: &Mark) -> Response<Body> {
        let (service, _) = names_in(request.uri().path());
        // What is asked for is the caller's own text, so only what is served is named.
        let method = match service {
            <Service<Facade> as NamedService>::NAME => super::METHOD,
            _ => "other",
        };
        let (head, _) = request.into_parts();
        let metadata = MetadataMap::from_headers(head.headers);
        let caller = match &refusal {
            Refusal::NotAuthenticated => None,
            Refusal::NotAllowed(caller) => caller.clone(),
        };
        let call = Call::new(
            &metadata,
            std::iter::empty(),
            method,
            caller,
            &self.instruments,
        );
        let call = Arc::new(call);
        mark.set(&call);
        call.failed(&Failure::NotAdmitted(refusal), None)
            .into_http()
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
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Tower::<Request<Incoming>>::poll_ready(&mut self.gate.routes, cx)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        let keeper = &self.gate.keeper;
        let (service, method) = names_in(request.uri().path());
        let mut running = keeper.meters.started(service, method);
        let admitted = match &self.by_connection {
            _ if keeper.is_open(service) => Ok(None),
            Some(decided) => decided.clone(),
            None => keeper.policy.admit(&self.peer, request.headers()),
        };
        match admitted {
            Ok(caller) => {
                if let Some(caller) = &caller {
                    request.extensions_mut().insert(caller.clone());
                }
                running.caller = caller;
                request.extensions_mut().insert(running.mark().clone());
                let response = self.gate.routes.call(request);
                Box::pin(async move { response.await.map(|response| running.with(response)) })
            }
            Err(refusal) => {
                let response = keeper.refused(refusal, request, running.mark());
                Box::pin(ready(Ok(running.with(response))))
            }
        }
    }
}

/// The service and the method in a path: `/package.Service/Method` (gRPC over HTTP/2, "Requests").
fn names_in(path: &str) -> (&str, &str) {
    let path = path.strip_prefix('/').unwrap_or(path);
    path.split_once('/').unwrap_or(("", path))
}
