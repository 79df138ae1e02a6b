//! What metrics are told apart by: fixed lists of names.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

/// What there is only so much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Calls under way (`--max-in-flight`).
    Calls,
    /// Calls that wait for one of those to end (`--max-queued`).
    QueuedCalls,
    /// Connections from callers (`--max-connections`).
    Connections,
    /// TLS handshakes (`--max-handshakes`).
    Handshakes,
    /// PUTs under way (`--upstream-connections`).
    UpstreamRequests,
    /// PUTs that wait for one of those to end: calls are the limit.
    UpstreamQueue,
}

impl Resource {
    pub(super) const ALL: [Resource; 6] = [
        Resource::Calls,
        Resource::QueuedCalls,
        Resource::Connections,
        Resource::Handshakes,
        Resource::UpstreamRequests,
        Resource::UpstreamQueue,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Resource::Calls => "calls",
            Resource::QueuedCalls => "queued_calls",
            Resource::Connections => "connections",
            Resource::Handshakes => "handshakes",
            Resource::UpstreamRequests => "upstream_requests",
            Resource::UpstreamQueue => "upstream_queue",
        }
    }
}

/// What becomes of a connection from a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// It began HTTP/2.
    Begun,
    /// It was one too many, and closed at once.
    OneTooMany,
    /// It could not be accepted: descriptors are used up, as a rule.
    NotAccepted,
    /// No TLS session came of it.
    NoTls,
    /// It did not begin HTTP/2 in time, or before the process left; or it began with something else.
    NoHttp2,
    /// It was cut, for its caller's certificate is no longer trusted.
    Cut,
}

impl Connection {
    pub(super) const ALL: [Connection; 6] = [
        Connection::Begun,
        Connection::OneTooMany,
        Connection::NotAccepted,
        Connection::NoTls,
        Connection::NoHttp2,
        Connection::Cut,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Connection::Begun => "begun",
            Connection::OneTooMany => "one_too_many",
            Connection::NotAccepted => "not_accepted",
            Connection::NoTls => "no_tls",
            Connection::NoHttp2 => "no_http2",
            Connection::Cut => "cut",
        }
    }
}

/// What becomes of a span of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// The collector has it.
    Exported,
    /// The collector did not take it.
    Failed,
    /// The queue to the collector was full.
    Dropped,
}

impl Span {
    pub(super) const ALL: [Span; 3] = [Span::Exported, Span::Failed, Span::Dropped];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Span::Exported => "exported",
            Span::Failed => "failed",
            Span::Dropped => "dropped",
        }
    }
}

/// A method of gRPC, by the names that are usual for it (as go-grpc-middleware has them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Method {
    /// `unary`, `server_stream` or `bidi_stream`.
    pub grpc_type: &'static str,
    /// Its service's full name.
    pub grpc_service: &'static str,
    /// Its name.
    pub grpc_method: &'static str,
}

macro_rules! labels {
    ($($name:ident { $($label:ident: $type:ty),+ })*) => {$(
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub(super) struct $name { $(pub(super) $label: $type),+ }
    )*};
}

labels! {
    Handled { grpc_type: &'static str, grpc_service: &'static str, grpc_method: &'static str, grpc_code: &'static str }
    Outcome { outcome: &'static str }
    Caller { allowed_by: String, outcome: &'static str }
    Reason { reason: &'static str }
    Warning { code: &'static str, field: &'static str }
    Field { field: &'static str }
    Answer { status: Status, result: &'static str }
    Came { result: &'static str }
    Piece { resource: &'static str }
    Reload { set: &'static str, result: &'static str }
    Set { set: &'static str }
    File { file: &'static str }
    Build { version: &'static str, commit: &'static str }
}

/// An HTTP status that came, if one did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Status(pub(super) Option<u16>);

impl EncodeLabelValue for Status {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self.0 {
            Some(status @ 100..=599) => status.encode(encoder),
            Some(_) => "other".encode(encoder),
            None => "none".encode(encoder),
        }
    }
}
