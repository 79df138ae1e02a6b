//! The admin port: plain HTTP for those who run the process.

use std::collections::BTreeMap;

use axum::{
    Json, Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use serde::Serialize;
use tokio::net::TcpListener;

use crate::{grpc::health::Readiness, metrics::Metrics, reload::Troubles};

/// What `/readyz` says.
#[derive(Serialize)]
struct Ready {
    /// Whether calls are welcome.
    ready: bool,
    /// What does not keep the process from its work, but needs somebody: sets of files that are in use in an older form,
    /// each with what is wrong with it.
    troubles: BTreeMap<&'static str, String>,
}

/// Answers `/livez` (the event loop turns), `/readyz` (calls are welcome) and `/metrics`, for as long as it is polled.
pub async fn run(
    listener: TcpListener,
    readiness: Readiness,
    troubles: Troubles,
    metrics: Metrics,
) {
    let readyz = async move || {
        let ready = readiness.is_serving();
        let status = if ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let troubles = troubles.all();
        (status, Json(Ready { ready, troubles })).into_response()
    };
    let measured = async move || {
        let media_type = [(CONTENT_TYPE, Metrics::CONTENT_TYPE)];
        (media_type, metrics.encode()).into_response()
    };
    let router = Router::new()
        .route("/livez", get("alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(measured));
    // Serving never ends of itself, so there is no error to report.
    drop(axum::serve(listener, router).await);
}
