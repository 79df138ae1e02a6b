//! The façade as its callers see it: the program itself on port 0, gRPC on one side, and on the other an upstream
//! that is real HTTP, or whatever a socket can be made to say.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test prints its figures, fails where it cannot go on, and has no outside"
)]

mod attempts;
mod callers;
mod canary;
mod certificates;
mod clients;
mod collector;
mod docs;
mod drain;
mod faults;
mod health;
mod life;
mod limits;
mod logged;
mod measured;
mod no_answer;
mod properties;
mod reflection;
mod refusals;
mod rotation;
mod sandbox;
mod soak;
mod support;
mod traced;
mod way_back;
mod way_in;
mod way_out;
