//! What is counted and measured, for `/metrics`. Every metric is declared here, with its help and its unit; others see
//! only methods with names.
//!
//! No label comes from outside: each is one of a fixed list of names, or of those in the configuration, so that nothing a
//! peer says can make the number of series grow, or show a value. What is known beforehand is there from the start, at
//! zero, so that the first time is seen as a change.

mod exposition;
mod labels;
mod process;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use prometheus_client::{
    encoding::text,
    metrics::{
        TypedMetric, counter::Counter, exemplar::HistogramWithExemplars, family::Family,
        gauge::Gauge, histogram::Histogram,
    },
    registry::{Metric, Registry, Unit},
};

use self::labels::{
    Answer, Build, Caller, Came, Field, File, Handled, Outcome, Piece, Reason, Reload, Set, Status,
    Warning,
};
pub use self::{
    exposition::Format,
    labels::{Connection, Method, Resource, Span},
};

/// Every metric of the process. Clones count together.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

/// Shows no figures: there is [`Metrics::encode`] for that.
impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// What leads from a bucket of a histogram to one of the calls in it: names and texts, 128 characters in all at most
/// (OpenMetrics 1.0, "Exemplars").
pub type Exemplar = Vec<(&'static str, String)>;

/// Seconds, from a call that the façade answers by itself to the longest deadline.
const BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// A piece of a [`Resource`] that is in use. Dropping it gives it back.
#[derive(Debug)]
pub struct Used(Gauge);

impl Drop for Used {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A histogram of times, with one call a second to look at in each bucket.
#[derive(Clone)]
struct Times {
    histogram: Seconds,
    /// When each bucket last got one, in Unix time.
    marked: Arc<[AtomicU64; BUCKETS.len() + 1]>,
}

type Seconds = HistogramWithExemplars<Exemplar>;

impl Times {
    fn new(histogram: Seconds) -> Self {
        Times {
            histogram,
            marked: Arc::default(),
        }
    }

    fn observe(&self, took: Duration, call: impl FnOnce() -> Option<Exemplar>) {
        let took = took.as_secs_f64();
        let now = SystemTime::now();
        let second = unix(now) as u64;
        let bucket = BUCKETS.partition_point(|bound| *bound < took);
        let due = self.marked[bucket].swap(second, Ordering::Relaxed) != second;
        let exemplar = if due { call() } else { None };
        self.histogram.observe(took, exemplar, Some(now));
    }
}

struct Inner {
    registry: Registry,
    // What callers see.
    started: Family<Method, Counter>,
    handled: Family<Handled, Counter>,
    handling: Family<Method, Seconds, fn() -> Seconds>,
    // What becomes of updates.
    outcomes: Family<Outcome, Counter>,
    callers: Family<Caller, Counter>,
    errors: Family<Reason, Counter>,
    warnings: Family<Warning, Counter>,
    unrecognized: Family<Field, Counter>,
    // The way out.
    upstream_requests: Family<Answer, Counter>,
    upstream_seconds: Times,
    upstream_connections: Family<Came, Counter>,
    upstream_connect_seconds: Histogram,
    retries: Family<Reason, Counter>,
    retry_budget_exhausted: Counter,
    breaker_open: Gauge,
    breaker_opened: Counter,
    quota_pauses: Counter,
    quota_pause_end: Gauge<f64, AtomicU64>,
    // The process.
    used: [Gauge; Resource::ALL.len()],
    limits: Family<Piece, Gauge>,
    connections: Family<Came, Counter>,
    ready: Gauge,
    draining: Gauge,
    reloads: Family<Reload, Counter>,
    reload_failing: Family<Set, Gauge>,
    certificate_expiry: Family<File, Gauge<f64, AtomicU64>>,
    panics: Counter,
    log_lines_lost: Counter,
    spans: Family<Came, Counter>,
}

/// Declares one metric after another.
struct Declared(Registry);

impl Declared {
    fn add<M: Metric + TypedMetric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn seconds<M: Metric + TypedMetric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0
            .register_with_unit(name, help, Unit::Seconds, metric.clone());
        metric
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut all = Declared(Registry::default());
        let started = all.add(
            "grpc_server_started",
            "Calls that came in",
            Family::default(),
        );
        let handled = all.add(
            "grpc_server_handled",
            "Calls that ended, by the code their callers were told; Canceled where the caller left",
            Family::default(),
        );
        let seconds: fn() -> Seconds = || Seconds::new(BUCKETS.into_iter());
        let handling = all.seconds(
            "grpc_server_handling",
            "Time from a call's arrival to the last byte of its answer",
            Family::new_with_constructor(seconds),
        );
        let outcomes = all.add(
            "sqril_update_outcomes",
            "Calls of UpdateCustomer that ended, by what became of the update: one each, callers that left among them",
            Family::default(),
        );
        let callers = all.add(
            "sqril_caller_outcomes",
            "The same by the --allow-caller that let the caller in; nobody where none did, anybody where none is asked for",
            Family::default(),
        );
        let errors = all.add(
            "sqril_errors",
            "Errors that callers were told, by reason; OTHER for a code that Sqril has not announced",
            Family::default(),
        );
        let warnings = all.add(
            "sqril_response_warnings",
            "Warnings in answers to updates that were applied",
            Family::default(),
        );
        let unrecognized = all.add(
            "sqril_unrecognized_codes",
            "Codes in Sqril's answers that the contract does not know",
            Family::default(),
        );
        let upstream_requests = all.add(
            "sqril_upstream_requests",
            "PUTs that ended, by the HTTP status that came (or none) and by what came of them",
            Family::default(),
        );
        let upstream_seconds = all.seconds(
            "sqril_upstream_request",
            "Time from a PUT's start to the last byte of its answer, a new connection included",
            seconds(),
        );
        let upstream_connections = all.add(
            "sqril_upstream_connections_opened",
            "Connections to the upstream that were tried, by what came of it",
            Family::default(),
        );
        let upstream_connect_seconds = all.seconds(
            "sqril_upstream_connect",
            "Time to open a connection to the upstream, name and TLS included",
            Histogram::new(BUCKETS),
        );
        let retries = all.add(
            "sqril_upstream_retries",
            "Second attempts, by why the first one was of no use",
            Family::default(),
        );
        let retry_budget_exhausted = all.add(
            "sqril_upstream_retry_budget_exhausted",
            "Second attempts that were not made, for the budget was used up",
            Counter::default(),
        );
        let breaker_open = all.add(
            "sqril_breaker_open",
            "1 while nothing is sent but a probe now and then, for most of what was sent failed",
            Gauge::default(),
        );
        let breaker_opened = all.add(
            "sqril_breaker_opened",
            "Times that the breaker opened",
            Counter::default(),
        );
        let quota_pauses = all.add(
            "sqril_quota_pauses",
            "Pauses that Sqril asked for by 429 with Retry-After",
            Counter::default(),
        );
        let quota_pause_end = all.seconds(
            "sqril_quota_pause_end_timestamp",
            "When the latest pause that Sqril asked for ends, in Unix time; nothing is sent before",
            Gauge::default(),
        );
        let used: Family<Piece, Gauge> = all.add(
            "sqril_resource_used",
            "How much is in use of what there is only so much of",
            Family::default(),
        );
        let limits = all.add(
            "sqril_resource_limit",
            "The most of it that may be in use",
            Family::default(),
        );
        let connections = all.add(
            "sqril_connections",
            "Connections from callers, by what became of them",
            Family::default(),
        );
        let ready = all.add(
            "sqril_ready",
            "1 while health checks and /readyz say that calls are welcome",
            Gauge::default(),
        );
        let draining = all.add(
            "sqril_draining",
            "1 from the signal to leave until the process has",
            Gauge::default(),
        );
        let reloads = all.add(
            "sqril_reloads",
            "Sets of files that were found changed, by what came of it",
            Family::default(),
        );
        let reload_failing = all.add(
            "sqril_reload_failing",
            "1 while a set of files cannot be used, so that the set before it stays in use",
            Family::default(),
        );
        let certificate_expiry = all.seconds(
            "sqril_certificate_expiry_timestamp",
            "When the first certificate (or list of revoked ones) in a file ends, in Unix time",
            Family::default(),
        );
        let panics = all.add(
            "sqril_panics",
            "Bugs that ended a task of the process",
            Counter::default(),
        );
        let log_lines_lost = all.add(
            "sqril_log_lines_lost",
            "Lines of the log that were not written, for whoever reads it was too slow",
            Counter::default(),
        );
        let spans = all.add(
            "sqril_trace_spans",
            "Spans of traces, by what became of them",
            Family::default(),
        );
        let build: Family<Build, Gauge> = all.add(
            "sqril_build_info",
            "1; its labels say what is running",
            Family::default(),
        );
        let version = env!("CARGO_PKG_VERSION");
        let commit = COMMIT;
        build.get_or_create(&Build { version, commit }).set(1);
        process::declare(&mut all.0);

        let at_zero = |family: &Family<Came, Counter>, names: &mut dyn Iterator<Item = _>| {
            for result in names {
                drop(family.get_or_create(&Came { result }));
            }
        };
        at_zero(
            &connections,
            &mut Connection::ALL.map(Connection::name).into_iter(),
        );
        at_zero(&spans, &mut Span::ALL.map(Span::name).into_iter());
        at_zero(&upstream_connections, &mut ["ok", "failed"].into_iter());
        Metrics(Arc::new(Inner {
            registry: all.0,
            started,
            handled,
            handling,
            outcomes,
            callers,
            errors,
            warnings,
            unrecognized,
            upstream_requests,
            upstream_seconds: Times::new(upstream_seconds),
            upstream_connections,
            upstream_connect_seconds,
            retries,
            retry_budget_exhausted,
            breaker_open,
            breaker_opened,
            quota_pauses,
            quota_pause_end,
            used: Resource::ALL.map(|resource| {
                used.get_or_create_owned(&Piece {
                    resource: resource.name(),
                })
            }),
            limits,
            connections,
            ready,
            draining,
            reloads,
            reload_failing,
            certificate_expiry,
            panics,
            log_lines_lost,
            spans,
        }))
    }
}

/// The commit that this was built from, if the build was told by the variable of that name.
pub const COMMIT: &str = match option_env!("SQRIL_GRPC_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// The metrics of one method.
pub struct Meter {
    started: Counter,
    handled: Vec<Counter>,
    handling: Times,
}

impl Meter {
    /// A call came in.
    pub fn started(&self) {
        self.started.inc();
    }

    /// A call ended with this code, by its place among those that the meter was made with.
    pub fn handled(&self, code: usize, took: Duration, call: impl FnOnce() -> Option<Exemplar>) {
        if let Some(handled) = self.handled.get(code) {
            handled.inc();
        }
        self.handling.observe(took, call);
    }
}

impl Metrics {
    /// Everything, in this format.
    pub fn encode(&self, format: Format) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.0.registry).expect("a String takes every text");
        format.of(text)
    }

    /// The metrics of a method whose calls end with one of these codes.
    pub fn meter(&self, method: Method, codes: &[&'static str]) -> Meter {
        let handled = |code: &&'static str| {
            self.0.handled.get_or_create_owned(&Handled {
                grpc_type: method.grpc_type,
                grpc_service: method.grpc_service,
                grpc_method: method.grpc_method,
                grpc_code: code,
            })
        };
        Meter {
            started: self.0.started.get_or_create_owned(&method),
            handled: codes.iter().map(handled).collect(),
            handling: Times::new(self.0.handling.get_or_create_owned(&method)),
        }
    }

    /// These outcomes, reasons, and fields with codes may come.
    pub fn expect(
        &self,
        outcomes: impl IntoIterator<Item = &'static str>,
        reasons: impl IntoIterator<Item = &'static str>,
        fields: impl IntoIterator<Item = &'static str>,
    ) {
        for outcome in outcomes {
            drop(self.0.outcomes.get_or_create(&Outcome { outcome }));
        }
        for reason in reasons {
            drop(self.0.errors.get_or_create(&Reason { reason }));
        }
        for field in fields {
            drop(self.0.unrecognized.get_or_create(&Field { field }));
        }
    }

    /// An update has ended so, of a caller who was let in by this pattern.
    pub fn updated(&self, outcome: &'static str, allowed_by: &str) {
        self.0.outcomes.get_or_create(&Outcome { outcome }).inc();
        let allowed_by = allowed_by.to_owned();
        let labels = Caller {
            allowed_by,
            outcome,
        };
        self.0.callers.get_or_create(&labels).inc();
    }

    /// A caller was told an error.
    pub fn told(&self, reason: &'static str) {
        self.0.errors.get_or_create(&Reason { reason }).inc();
    }

    /// A caller was warned of a field.
    pub fn warned(&self, code: &'static str, field: &'static str) {
        let labels = Warning { code, field };
        self.0.warnings.get_or_create(&labels).inc();
    }

    /// Sqril answered with a code in this field that the contract does not know.
    pub fn unrecognized(&self, field: &'static str) {
        self.0.unrecognized.get_or_create(&Field { field }).inc();
    }

    /// These results of a PUT may come, and these reasons of a second one.
    pub fn expect_upstream(
        &self,
        results: impl IntoIterator<Item = (Option<u16>, &'static str)>,
        retries: impl IntoIterator<Item = &'static str>,
    ) {
        for (status, result) in results {
            let status = Status(status);
            drop(
                self.0
                    .upstream_requests
                    .get_or_create(&Answer { status, result }),
            );
        }
        for reason in retries {
            drop(self.0.retries.get_or_create(&Reason { reason }));
        }
    }

    /// A PUT has ended.
    pub fn upstream_answered(
        &self,
        status: Option<u16>,
        result: &'static str,
        took: Duration,
        call: impl FnOnce() -> Option<Exemplar>,
    ) {
        let status = Status(status);
        let labels = Answer { status, result };
        self.0.upstream_requests.get_or_create(&labels).inc();
        self.0.upstream_seconds.observe(took, call);
    }

    /// A connection to the upstream was opened, or was not.
    pub fn upstream_connected(&self, opened: bool, took: Duration) {
        let result = if opened { "ok" } else { "failed" };
        let labels = Came { result };
        self.0.upstream_connections.get_or_create(&labels).inc();
        self.0.upstream_connect_seconds.observe(took.as_secs_f64());
    }

    /// A second attempt is made.
    pub fn retried(&self, reason: &'static str) {
        self.0.retries.get_or_create(&Reason { reason }).inc();
    }

    /// A second attempt would have been made, but the budget is used up.
    pub fn retry_budget_exhausted(&self) {
        self.0.retry_budget_exhausted.inc();
    }

    /// The breaker opened, or closed.
    pub fn breaker(&self, open: bool) {
        self.0.breaker_open.set(open.into());
        self.0.breaker_opened.inc_by(open.into());
    }

    /// Sqril asked for a pause until then.
    pub fn quota_pause(&self, until: SystemTime) {
        self.0.quota_pauses.inc();
        self.0.quota_pause_end.set(unix(until));
    }

    /// Takes a piece of this until it is dropped.
    pub fn using(&self, resource: Resource) -> Used {
        let gauge = self.0.used[resource as usize].clone();
        gauge.inc();
        Used(gauge)
    }

    /// There is only so much of this.
    pub fn limit(&self, resource: Resource, limit: usize) {
        let resource = resource.name();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.0.limits.get_or_create(&Piece { resource }).set(limit);
    }

    /// This became of a connection from a caller.
    pub fn connection(&self, connection: Connection) {
        let result = connection.name();
        self.0.connections.get_or_create(&Came { result }).inc();
    }

    /// Calls are welcome, or are not.
    pub fn ready(&self, ready: bool) {
        self.0.ready.set(ready.into());
    }

    /// The process was told to leave.
    pub fn draining(&self) {
        self.0.draining.set(1);
    }

    /// A set of files is watched from now on.
    pub fn watched(&self, set: &'static str) {
        for result in ["ok", "failed"] {
            self.reloads(set, result).inc_by(0);
        }
        self.failing(set, 0);
    }

    /// A set of files was found changed and is in use.
    pub fn reloaded(&self, set: &'static str) {
        self.reloads(set, "ok").inc();
        self.failing(set, 0);
    }

    /// A set of files cannot be used.
    pub fn reload_failed(&self, set: &'static str) {
        self.reloads(set, "failed").inc();
        self.failing(set, 1);
    }

    /// A set of files is again as it is in use.
    pub fn reload_mended(&self, set: &'static str) {
        self.failing(set, 0);
    }

    /// When the first certificate in the file of this flag ends.
    pub fn certificate_expires(&self, file: &'static str, at: SystemTime) {
        let expiry = &self.0.certificate_expiry;
        expiry.get_or_create(&File { file }).set(unix(at));
    }

    /// A bug ended a task.
    pub fn panicked(&self) {
        self.0.panics.inc();
    }

    /// So many lines of the log were not written.
    pub fn log_lines_lost(&self, lines: usize) {
        let lines = u64::try_from(lines).unwrap_or(u64::MAX);
        self.0.log_lines_lost.inc_by(lines);
    }

    /// This became of so many spans.
    pub fn spans(&self, span: Span, count: usize) {
        let result = span.name();
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.0.spans.get_or_create(&Came { result }).inc_by(count);
    }

    fn reloads(&self, set: &'static str, result: &'static str) -> Counter {
        let labels = Reload { set, result };
        self.0.reloads.get_or_create_owned(&labels)
    }

    fn failing(&self, set: &'static str, failing: i64) {
        let labels = Set { set };
        self.0.reload_failing.get_or_create(&labels).set(failing);
    }
}

fn unix(at: SystemTime) -> f64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}
