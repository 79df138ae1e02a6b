//! What is counted and measured, for `/metrics`. Every metric is declared here, with its help and its unit; others see
//! only methods with names. No label comes from outside.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::SystemTime,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

/// Every metric of the process. Clones count together.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    reloads: Family<ReloadLabels, Counter>,
    reload_failing: Family<SetLabels, Gauge>,
    certificate_expiry: Family<FileLabels, Gauge<f64, AtomicU64>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    set: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SetLabels {
    set: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FileLabels {
    file: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let (reloads, reload_failing) = (Family::default(), Family::default());
        let certificate_expiry = Family::default();
        registry.register(
            "sqril_reloads",
            "Sets of files that were found changed, by what came of it",
            reloads.clone(),
        );
        registry.register(
            "sqril_reload_failing",
            "1 while a set of files cannot be used, so that the set before it stays in use",
            reload_failing.clone(),
        );
        registry.register_with_unit(
            "sqril_certificate_expiry_timestamp",
            "When the first certificate (or list of revoked ones) in a file ends, in Unix time",
            Unit::Seconds,
            certificate_expiry.clone(),
        );
        Metrics(Arc::new(Inner {
            registry,
            reloads,
            reload_failing,
            certificate_expiry,
        }))
    }
}

impl Metrics {
    /// The media type of [`Metrics::encode`].
    pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// Everything, as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.0.registry).expect("a String takes every text");
        text
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
        let since = at.duration_since(SystemTime::UNIX_EPOCH);
        let seconds = since.unwrap_or_default().as_secs_f64();
        self.0
            .certificate_expiry
            .get_or_create(&FileLabels { file })
            .set(seconds);
    }

    fn reloads(&self, set: &'static str, result: &'static str) -> Counter {
        let labels = ReloadLabels { set, result };
        self.0.reloads.get_or_create_owned(&labels)
    }

    fn failing(&self, set: &'static str, failing: i64) {
        self.0
            .reload_failing
            .get_or_create(&SetLabels { set })
            .set(failing);
    }
}
