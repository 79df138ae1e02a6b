//! The admin port: plain HTTP for those who run the process.

use axum::{Router, http::StatusCode, response::IntoResponse, routing::get};
use tokio::net::TcpListener;

use crate::grpc::health::Readiness;

/// Answers `/livez` (the event loop turns) and `/readyz` (calls are welcome), for as long as it is polled.
pub async fn run(listener: TcpListener, readiness: Readiness) {
    let readyz = async move || {
        if readiness.is_serving() {
            (StatusCode::OK, "ready\n").into_response()
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
        }
    };
    let router = Router::new()
        .route("/livez", get("alive\n"))
        .route("/readyz", get(readyz));
    // Serving never ends of itself, so there is no error to report.
    drop(axum::serve(listener, router).await);
}
