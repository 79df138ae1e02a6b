//! The log on standard error: one line for what the process does, one line a call.
//!
//! A line is handed to a thread that writes it, so that a reader who is slow or gone holds nobody up. If it cannot keep up,
//! lines are lost rather than calls; how many is a metric, and a line as soon as there can be one again.

use std::{
    io::{self, BufWriter, Write},
    panic, thread,
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};
use tracing::{Metadata, error, level_filters::LevelFilter, warn};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::filter_fn,
    fmt::{self, format::FmtSpan},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::metrics::Metrics;

/// How long lines are gathered.
const GATHER: Duration = Duration::from_millis(10);
/// How often lost lines are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// A writer that lines are gathered for: waking a thread for each of them would cost more than writing it does. The first
/// of them is written at once.
struct Gathered<W>(W);

impl<W: Write> Write for Gathered<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    /// Called whenever all lines so far were taken.
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()?;
        thread::sleep(GATHER);
        Ok(())
    }
}

/// The log, as long as it is held: dropping it writes what is still to be written, for about a second at most.
#[derive(Debug)]
pub struct Log {
    lost: ErrorCounter,
    _writer: WorkerGuard,
}

/// Writes the log to standard error from now on, at the levels that `RUST_LOG` asks for (`info` without it), with so many
/// lines at most waiting to be written.
///
/// Only this crate speaks, whatever `RUST_LOG` says: at their finer levels the HTTP libraries repeat URLs, headers
/// and bodies, and with them values of customers.
pub fn init(format: LogFormat, lines: usize, metrics: &Metrics) -> Log {
    let levels = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env_lossy();
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(lines)
        .thread_name("log")
        .finish(Gathered(BufWriter::new(io::stderr())));
    let lost = writer.error_counter();
    let lines = fmt::layer()
        .with_writer(writer)
        .with_span_events(FmtSpan::NONE);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_ansi(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter_fn(is_ours)).with_filter(levels))
        .init();
    let metrics = metrics.clone();
    panic::set_hook(Box::new(move |panic| {
        // The message of a panic may hold a value, so only its place is told.
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        metrics.panicked();
        error!(place, "panic");
    }));
    Log {
        lost,
        _writer: guard,
    }
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"))
}

impl Log {
    /// Tells of lines that were lost, for as long as it is polled.
    pub fn tell_of_losses(&self, metrics: Metrics) -> impl Future<Output = ()> + Send + 'static {
        let lost = self.lost.clone();
        async move {
            let mut ticks = interval(LOOK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let (mut counted, mut told) = (0, 0);
            loop {
                ticks.tick().await;
                let now = lost.dropped_lines();
                metrics.log_lines_lost(now - counted);
                counted = now;
                if now > told {
                    let lines = now - told;
                    warn!(
                        lines,
                        "lines of the log were lost: they were not read fast enough"
                    );
                    // If another was lost meanwhile, it may have been this one.
                    if lost.dropped_lines() == now {
                        told = now;
                    }
                }
            }
        }
    }
}
