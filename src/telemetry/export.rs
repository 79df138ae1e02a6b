//! How spans leave: a queue that never waits, a collector that is never waited for.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry::{Context, KeyValue, trace::TracerProvider};
use opentelemetry_otlp::SpanExporter as Otlp;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, Span, SpanData,
        SpanExporter, SpanProcessor,
    },
};
use tracing::{info, warn};

use crate::metrics::{Metrics, Span as Became};

const SERVICE: &str = env!("CARGO_PKG_NAME");

/// How spans are sent. What is not here is read from the standard variables by the SDK.
#[derive(Clone, Copy, Debug)]
pub struct Export {
    /// The most spans that wait to be sent; further ones are dropped (`OTEL_BSP_MAX_QUEUE_SIZE`).
    pub queue: usize,
}

/// Why spans cannot be sent: an address or a header of no use, or the system's certificates.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct BuildError(#[from] opentelemetry_otlp::ExporterBuildError);

/// What makes spans, and what sends them.
pub(super) struct Sdk {
    pub(super) provider: SdkTracerProvider,
    pub(super) tracer: SdkTracer,
}

impl Sdk {
    pub(super) fn new(export: Export, metrics: &Metrics) -> Result<Self, BuildError> {
        let waiting = Arc::new(AtomicUsize::new(0));
        let exporter = Counted {
            exporter: Otlp::builder().with_tonic().build()?,
            waiting: Arc::clone(&waiting),
            metrics: metrics.clone(),
            failing: Mutex::new(false),
        };
        let batches = BatchConfigBuilder::default().with_max_queue_size(export.queue);
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches.build());
        let bounded = Bounded {
            processor: processor.build(),
            waiting,
            most: export.queue,
            metrics: metrics.clone(),
        };
        let provider = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_span_processor(bounded)
            .build();
        let tracer = provider.tracer(SERVICE);
        Ok(Sdk { provider, tracer })
    }
}

/// Who says it: what the standard variables say, else this program.
fn resource() -> Resource {
    let told = Resource::builder().build();
    let name = told.get(&"service.name".into());
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder().with_attribute(version);
    match name {
        Some(name) if !name.as_str().starts_with("unknown_service") => resource.build(),
        Some(_) | None => resource.with_service_name(SERVICE).build(),
    }
}

/// Hands spans on while there is room for them, and counts those for which there is none. The queue behind it has the same
/// bound, so it never drops one that nobody counts.
#[derive(Debug)]
struct Bounded {
    processor: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
    most: usize,
    metrics: Metrics,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.processor.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.most {
            self.processor.on_end(span);
        } else {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.metrics.spans(Became::Dropped, 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

/// Sends spans, counts what becomes of them, and says so when it begins to fail and when it no longer does.
#[derive(Debug)]
struct Counted {
    exporter: Otlp,
    waiting: Arc<AtomicUsize>,
    metrics: Metrics,
    failing: Mutex<bool>,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        let result = self.exporter.export(batch).await;
        let failed = result.is_err();
        let became = if failed {
            Became::Failed
        } else {
            Became::Exported
        };
        self.metrics.spans(became, spans);
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match (std::mem::replace(&mut *failing, failed), failed) {
            (false, true) => warn!("the collector does not take spans"),
            (true, false) => info!("the collector takes spans again"),
            (false, false) | (true, true) => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
