//! What is seen from outside: the log. One line for what the process does, one line a call.

use std::{io, panic};

use tracing::{Metadata, error, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::filter_fn,
    fmt::{self, format::FmtSpan},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::config::LogFormat;

/// Writes the log to standard error from now on, at the levels that `RUST_LOG` asks for (`info` without it).
///
/// Only this crate speaks, whatever `RUST_LOG` says: at their finer levels the HTTP libraries repeat URLs, headers
/// and bodies, and with them values of customers.
pub fn init(format: LogFormat) {
    let levels = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env_lossy();
    let lines = fmt::layer()
        .with_writer(io::stderr)
        .with_span_events(FmtSpan::NONE);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_ansi(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter_fn(is_ours)).with_filter(levels))
        .init();
    panic::set_hook(Box::new(|panic| {
        // The message of a panic may hold a value, so only its place is told.
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        error!(place, "panic");
    }));
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"))
}
