//! A collector of traces: OTLP over gRPC, by OpenTelemetry's own protocol files.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, Span},
};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tonic::{Request, Response, Status, service::Routes};

use crate::support::PATIENCE;

/// What a collector does with what it is sent.
#[derive(Clone, Copy)]
pub enum Mood {
    Takes,
    Refuses,
    NeverAnswers,
}

#[derive(Clone)]
pub struct Collector {
    pub address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    received: watch::Sender<Vec<ResourceSpans>>,
}

impl Collector {
    pub async fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Collector {
            address: listener.local_addr().unwrap(),
            mood: Arc::new(Mutex::new(Mood::Takes)),
            received: watch::Sender::new(Vec::new()),
        };
        let routes = Routes::new(TraceServiceServer::new(collector.clone())).prepare();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(routes.clone());
                let serving = http2::Builder::new(TokioExecutor::new());
                tokio::spawn(serving.serve_connection(TokioIo::new(stream), service));
            }
        });
        collector
    }

    pub fn is(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// The variable that names it.
    pub fn variable(&self) -> (&'static str, String) {
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            format!("http://{}", self.address),
        )
    }

    pub fn received(&self) -> Vec<ResourceSpans> {
        self.received.borrow().clone()
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        let received = self.received();
        let scopes = received.into_iter().flat_map(|spans| spans.scope_spans);
        scopes.flat_map(|spans| spans.spans).collect()
    }

    /// The spans, once there are so many.
    pub async fn spans_once(&self, count: usize) -> Vec<Span> {
        let mut received = self.received.subscribe();
        let enough = async {
            while self.spans().len() < count {
                received.changed().await.unwrap();
            }
        };
        if timeout(PATIENCE, enough).await.is_err() {
            panic!("{} spans: {:?}", self.spans().len(), self.spans());
        }
        self.spans()
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Takes => {
                let spans = request.into_inner().resource_spans;
                self.received.send_modify(|received| received.extend(spans));
                Ok(Response::new(ExportTraceServiceResponse::default()))
            }
            Mood::Refuses => Err(Status::invalid_argument("not today")),
            Mood::NeverAnswers => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Ok(Response::new(ExportTraceServiceResponse::default()))
            }
        }
    }
}

/// An attribute's value, as text.
pub fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.clone()? {
        AnyValue {
            value: Some(Value::StringValue(text)),
        } => Some(text),
        AnyValue {
            value: Some(Value::IntValue(number)),
        } => Some(number.to_string()),
        other => panic!("{key}: {other:?}"),
    }
}
