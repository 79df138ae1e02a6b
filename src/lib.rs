//! A gRPC façade for Sqril's customer API.
//!
//! # The flow
//!
//! ```text
//! pb::UpdateCustomerRequest ──grpc::request──▶ customer::CustomerUpdate ──rest::Client──▶ PUT /updateCustomer
//! pb::UpdateCustomerResponse ◀─grpc::response── customer::UpdatedCustomer ◀──rest::wire── 200
//! tonic::Status ◀──────────────grpc::status──── rest::Error, customer::Violation, admission ◀── everything else
//! ```
//!
//! # The rooms
//!
//! | room | what lives there |
//! | --- | --- |
//! | `main` | the life of the process, in order |
//! | [`config`] | flags and environment, read and checked before a socket opens |
//! | [`app`] | the one place where the parts meet: listeners, services, the end |
//! | [`customer`] | the domain: ids, updates, profiles, fields and what can be wrong with them |
//! | [`grpc`] | the gRPC edge: the method, protobuf to domain and back, the one table of failures, health, reflection |
//! | [`rest`] | the REST edge, its mirror: the PUT, JSON, what can become of a request, credentials |
//! | [`pb`] | what is generated from the contract |
//! | [`incoming`], [`tls`], [`identity`], [`admission`] | how callers come in: guarded connections, who calls and who may, a bounded number of calls |
//! | [`reload`] | what is made from files is made anew when they change |
//! | [`shutdown`] | how the process is told to leave |
//! | [`metrics`], [`telemetry`], [`admin`] | what is seen from outside: every metric, the log and traces, the admin port |
//! | [`sandbox`] | the embedded Sqril |
//!
//! Arrows point one way: `customer` knows no other room, `rest` knows `customer`, `grpc` knows `customer`, `pb`,
//! `identity` and the types of `rest`, `incoming` knows `grpc`'s gate; those that do something may know `metrics` and `telemetry`, which
//! know no other room than each other; only `app` sees all. tonic is named in `pb`, `grpc` and `app` alone, reqwest in `rest`, rustls in `tls`,
//! OpenTelemetry in `telemetry`, Prometheus' library in `metrics`.
//!
//! # Decisions
//!
//! - **Presence is exact.** What is set is sent, what is not set is not. Only syntax is checked here: business rules are
//!   Sqril's, and a copy of them would be wrong one day.
//! - **Applied is applied.** An update that Sqril applied is never an error because a part of the answer is new or odd;
//!   so answers are read member by member, and what cannot be read is named in a warning.
//! - **Every error says what became of the update.** UNAVAILABLE only where it was certainly not applied, for meshes and
//!   clients repeat it by themselves; CANCELLED never.
//! - **Only a JSON object with a string `error_code` is Sqril speaking.** Anything else comes from something in
//!   between, and never becomes an answer about the customer.
//! - **A PUT that was sent is seen through**, even if its caller leaves: dropping it would undo nothing, lose the
//!   answer, and cost a pooled connection. So each call runs in a task of its own.
//! - **Readiness follows the process, never Sqril**: an outage there must not take every replica out of a mesh.
//! - **No value that identifies a person, and no secret, in a log, a metric, a span or an error.** Such texts are
//!   [`customer::Private`], which shows nothing of itself; what Sqril says is searched for the caller's values first.
//! - **Who may not call sees nothing.** One gate stands before every method; once callers are asked who they are, whoever
//!   is not named may not call. Certificates are judged at the handshake, and again when what they are judged by changes.
//! - **What is told and what is sent never contradict each other.** Once a caller is answered, or has left, no further PUT is
//!   begun ([`rest::Progress`]); and a second attempt follows only a first that was certainly not applied.
//! - **Watching costs calls nothing.** Counters are atomics; lines and spans are handed to threads of their own by queues that
//!   lose rather than wait, and say how much. Labels are names of fixed lists, so nothing a peer says makes a series. Spans are
//!   made by hand, so that nothing gets into one that was not put there by name.
//! - **Decisions are pure**: when to repeat, when to open the breaker, how long a call has. Clocks and dice are passed in.
//! - **The listener is our own**: a loop over hyper, for it needs jittered connection ages, limits for the handshake and the
//!   preface, certificates that change, and an end that no client can hold up.
//! - **Files are polled, not watched**: they are small, and a swapped symbolic link above them sends no notice of them.
//! - **There is no trait for the client** until there is a second one: tests fake the network, not our own code.

pub mod admin;
pub mod admission;
pub mod app;
pub mod config;
pub mod customer;
pub mod grpc;
pub mod identity;
pub mod incoming;
pub mod metrics;
pub mod pb;
pub mod reload;
pub mod rest;
pub mod sandbox;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
