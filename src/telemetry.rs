//! What the process says of itself beyond numbers: the log, and traces.

mod export;
mod log;
mod trace;

pub use self::{
    export::{BuildError, Export},
    log::{Log, LogFormat, init},
    trace::{Attempt, Target, Told, Trace, Tracer},
};
use crate::metrics::Metrics;

/// All by which the process is seen from outside. Clones say the same.
#[derive(Clone, Default)]
pub struct Instruments {
    /// What is counted and measured.
    pub metrics: Metrics,
    /// What traces are made of.
    pub tracer: Tracer,
}
