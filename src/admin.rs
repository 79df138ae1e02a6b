//! The admin port: plain HTTP for those who run the process.

use std::collections::BTreeMap;

use axum::{
    Json, Router,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::IntoResponse,
    routing::get,
};
use serde::Serialize;
use tokio::{net::TcpListener, task::spawn_blocking};

use crate::{
    grpc::health::Readiness,
    metrics::{COMMIT, Format, Metrics},
    reload::Troubles,
};

/// What `/readyz` says.
#[derive(Serialize)]
struct Ready {
    /// Whether calls are welcome.
    ready: bool,
    /// Why not, if they are not.
    reasons: Vec<&'static str>,
    /// What does not keep the process from its work, but needs somebody: sets of files that are in use in an older form,
    /// each with what is wrong with it.
    troubles: BTreeMap<&'static str, String>,
}

/// What `/version` says.
#[derive(Serialize)]
struct Version {
    name: &'static str,
    version: &'static str,
    /// The commit it was built from, if the build was told.
    commit: &'static str,
}

/// Answers `/livez` (the event loop turns), `/readyz` (calls are welcome), `/metrics` and `/version`, for as long as it is
/// polled.
pub async fn run(
    listener: TcpListener,
    readiness: Readiness,
    troubles: Troubles,
    metrics: Metrics,
) {
    let readyz = async move || {
        let reasons: Vec<_> = readiness.why_not().into_iter().collect();
        let ready = reasons.is_empty();
        let status = if ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let troubles = troubles.all();
        let ready = Ready {
            ready,
            reasons,
            troubles,
        };
        (status, Json(ready)).into_response()
    };
    let measured = async move |headers: HeaderMap| {
        let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
        let format = Format::preferred(accept);
        // Some figures are read from the system, which may take its time.
        match spawn_blocking(move || metrics.encode(format)).await {
            Ok(text) => ([(CONTENT_TYPE, format.media_type())], text).into_response(),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    };
    let version = async || {
        Json(Version {
            name: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            commit: COMMIT,
        })
    };
    let router = Router::new()
        .route("/livez", get("alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(measured))
        .route("/version", get(version));
    // Serving never ends of itself, so there is no error to report.
    drop(axum::serve(listener, router).await);
}
