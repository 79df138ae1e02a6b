//! The façade as its callers see it: the program itself on port 0, gRPC on one side, and on the other an upstream
//! that is real HTTP, or whatever a socket can be made to say.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test that cannot go on fails; a test binary has no outside"
)]

mod docs;
mod health;
mod life;
mod no_answer;
mod properties;
mod reflection;
mod refusals;
mod sandbox;
mod support;
mod way_back;
mod way_in;
mod way_out;
