//! Traces: a server span for each call of `UpdateCustomer`, a client span for each PUT, named as the semantic conventions
//! of OpenTelemetry say (RPC and HTTP, 1.42), sent over OTLP/gRPC.
//!
//! Spans are made by hand and not from the log's events: so nothing gets into one but what is put there by name, and
//! sending spans makes none. Where nobody asks for traces nothing is made, but the caller's context is still read: its
//! trace id is in the log.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::{HeaderMap, header::HeaderValue};
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator},
    trace::{Span as _, SpanContext, SpanKind, Status, TraceContextExt, Tracer as _},
};
use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::Span};
use url::Url;

use super::export::{BuildError, Export, Sdk};
use crate::metrics::{Exemplar, Metrics};

const TRACEPARENT: &str = "traceparent";
/// The longest header of a caller's context that is kept: nobody must pass on a longer `tracestate` (W3C Trace Context,
/// section 3.3.1.5), and a queue full of spans holds one each.
const MAX_CONTEXT_BYTES: usize = 512;

/// Makes spans, or none. Clones send to the same collector.
#[derive(Clone, Default)]
pub struct Tracer {
    sdk: Option<Arc<Sdk>>,
    /// Whether Sqril is told which trace a PUT belongs to.
    propagate: bool,
}

impl Tracer {
    /// Sends spans as the standard variables say, if `export` says so. Must be called on the event loop.
    ///
    /// # Errors
    /// When the address or the certificates are of no use.
    pub fn new(
        export: Option<Export>,
        propagate: bool,
        metrics: &Metrics,
    ) -> Result<Self, BuildError> {
        let sdk = match export {
            Some(export) => Some(Arc::new(Sdk::new(export, metrics)?)),
            None => None,
        };
        Ok(Tracer { sdk, propagate })
    }

    /// A call has come in with these headers. It belongs to its caller's trace, if they say so (W3C Trace Context).
    pub fn call(&self, headers: &HeaderMap, name: &'static str) -> Trace {
        let mut parent = Context::new();
        if headers.contains_key(TRACEPARENT) {
            parent = TraceContextPropagator::new().extract_with_context(&parent, &Headers(headers));
        }
        let span = self.sdk.as_ref().map(|sdk| {
            let builder = sdk.tracer.span_builder(name).with_kind(SpanKind::Server);
            let attributes = [
                KeyValue::new("rpc.system.name", "grpc"),
                KeyValue::new("rpc.method", name),
            ];
            let builder = builder.with_attributes(attributes);
            Box::new(builder.start_with_context(&sdk.tracer, &parent))
        });
        let context = match &span {
            Some(span) => span.span_context().clone(),
            None => parent.span().span_context().clone(),
        };
        Trace {
            tracer: self.clone(),
            context,
            span: Mutex::new(span),
        }
    }

    /// Sends what is still to be sent, for so long at most. Waits, so it must not be called on the event loop.
    pub fn shutdown(&self, wait: Duration) {
        if let Some(sdk) = &self.sdk {
            // What could not be sent was counted.
            drop(sdk.provider.shutdown_with_timeout(wait));
        }
    }
}

/// One call, in its trace.
pub struct Trace {
    tracer: Tracer,
    context: SpanContext,
    /// In a box, for it is large and most often not there.
    span: Mutex<Option<Box<Span>>>,
}

/// How a call ended, for its span.
pub struct Told {
    /// The code, as the protocol spells it.
    pub code: &'static str,
    /// Whether the code says that the server failed.
    pub failed: bool,
    /// The reason, if it is an error.
    pub reason: Option<&'static str>,
    /// What became of the update, as its caller was told.
    pub outcome: &'static str,
}

impl Trace {
    /// The trace that the call belongs to, if it belongs to one.
    pub fn trace_id(&self) -> Option<String> {
        let valid = self.context.is_valid();
        valid.then(|| self.context.trace_id().to_string())
    }

    /// What leads to the call from a bucket of a histogram: its name in the log, and its trace if there is one to see.
    pub fn exemplar(&self, request_id: &str) -> Exemplar {
        let trace = self.context.is_sampled().then(|| self.trace_id()).flatten();
        let trace = trace.map(|id| ("trace_id", id));
        let log = ("request_id", request_id.to_owned());
        trace.into_iter().chain([log]).collect()
    }

    /// Adds what identifies the call: names and hashes, no value of a customer.
    pub fn describe(&self, key: &'static str, value: &str) {
        if let Some(span) = &mut *self.lock()
            && span.is_recording()
        {
            span.set_attribute(KeyValue::new(key, value.to_owned()));
        }
    }

    /// The caller has been told. Only the first word counts.
    pub fn end(&self, told: &Told) {
        let Some(mut span) = self.lock().take() else {
            return;
        };
        span.set_attribute(KeyValue::new("rpc.response.status_code", told.code));
        span.set_attribute(KeyValue::new("sqril.upstream_outcome", told.outcome));
        if let Some(reason) = told.reason {
            span.set_attribute(KeyValue::new("sqril.reason", reason));
        }
        if told.failed {
            span.set_attribute(KeyValue::new("error.type", told.code));
            span.set_status(Status::error(""));
        }
        span.end();
    }

    /// A PUT begins, the so manieth of the call.
    pub fn attempt(&self, target: &Target, number: u32) -> Attempt {
        let span = self.tracer.sdk.as_ref().map(|sdk| {
            let parent = Context::new().with_remote_span_context(self.context.clone());
            let builder = sdk.tracer.span_builder(target.name.clone());
            let builder = builder.with_kind(SpanKind::Client);
            let mut span = Box::new(builder.start_with_context(&sdk.tracer, &parent));
            if span.is_recording() {
                span.set_attributes(target.attributes.iter().cloned());
                if number > 1 {
                    let again = i64::from(number) - 1;
                    span.set_attribute(KeyValue::new("http.request.resend_count", again));
                }
            }
            span
        });
        let context = match &span {
            Some(span) => span.span_context().clone(),
            None => self.context.clone(),
        };
        Attempt {
            traceparent: (self.tracer.propagate && context.is_valid()).then(|| header(&context)),
            span,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Box<Span>>> {
        self.span.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where PUTs go, as spans tell it.
pub struct Target {
    name: String,
    attributes: [KeyValue; 5],
}

impl Target {
    /// A method of HTTP and a URL without a query; the names in its query, with values that are not told; and the part of
    /// its path that is always the same.
    pub fn new(method: &'static str, url: &Url, query: &str, path: &'static str) -> Self {
        let mut shown = url.clone();
        shown.set_query(Some(&format!("{query}=REDACTED")));
        let port = url.port_or_known_default().unwrap_or_default();
        Target {
            name: format!("{method} {path}"),
            attributes: [
                KeyValue::new("http.request.method", method),
                KeyValue::new(
                    "server.address",
                    url.host_str().unwrap_or_default().to_owned(),
                ),
                KeyValue::new("server.port", i64::from(port)),
                KeyValue::new("url.full", String::from(shown)),
                KeyValue::new("url.template", path),
            ],
        }
    }
}

/// One PUT, in its call's trace.
pub struct Attempt {
    span: Option<Box<Span>>,
    traceparent: Option<HeaderValue>,
}

impl Attempt {
    /// The header that tells Sqril which trace this belongs to, if it is to be told. Its callers' `tracestate` stays here:
    /// it is their own text.
    pub fn header(&self) -> Option<(&'static str, HeaderValue)> {
        self.traceparent.clone().map(|value| (TRACEPARENT, value))
    }

    /// It has ended with this status, if one came; and with what, if not with an answer that is of use.
    pub fn end(mut self, status: Option<u16>, failure: Option<&'static str>) {
        let Some(span) = &mut self.span else { return };
        if let Some(status) = status {
            let key = "http.response.status_code";
            span.set_attribute(KeyValue::new(key, i64::from(status)));
        }
        let refused = status.filter(|status| *status >= 400);
        let failure = match (refused, failure) {
            (Some(status), _) => Some(Cow::from(status.to_string())),
            (None, failure) => failure.map(Cow::from),
        };
        if let Some(failure) = failure {
            span.set_attribute(KeyValue::new("error.type", failure));
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

/// `traceparent` (W3C Trace Context, section 3.2).
fn header(context: &SpanContext) -> HeaderValue {
    let (trace, span) = (context.trace_id(), context.span_id());
    let text = format!("00-{trace}-{span}-{:02x}", context.trace_flags());
    HeaderValue::from_str(&text).expect("hexadecimal digits and dashes")
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let text = self.0.get(key)?.to_str().ok()?;
        (text.len() <= MAX_CONTEXT_BYTES).then_some(text)
    }

    fn keys(&self) -> Vec<&str> {
        self.0
            .keys()
            .map(hyper::header::HeaderName::as_str)
            .collect()
    }
}
