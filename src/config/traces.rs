//! Whether and how traces are sent: by OpenTelemetry's own variables (its "Environment Variable Specification"), which
//! its SDK reads. Here they are checked, for the SDK passes over what it cannot read.

use std::env;

use hyper::header::HeaderName;
use url::Url;

use super::read::Faults;
use crate::telemetry::Export;

/// The SDK's own default.
const QUEUE: usize = 2048;

const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];
const PROTOCOLS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
];
const NUMBERS: [&str; 5] = [
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
];
const HEADERS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_HEADERS",
];
const COMPRESSIONS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
];
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// How spans are sent; `None` if nobody asks for it.
pub(super) fn traces(faults: &mut Faults) -> Option<Export> {
    let disabled = set("OTEL_SDK_DISABLED").is_some_and(|off| off.eq_ignore_ascii_case("true"));
    let exporter = set("OTEL_TRACES_EXPORTER");
    let asked = ENDPOINTS.iter().any(|variable| set(variable).is_some());
    if disabled || !asked || exporter.as_deref() == Some("none") {
        return None;
    }
    let mut demand = |variable: &str, holds: &dyn Fn(&str) -> bool, what: &str| {
        if set(variable).is_some_and(|value| !holds(&value)) {
            faults.add_variable(variable, what);
        }
    };
    demand(
        "OTEL_TRACES_EXPORTER",
        &|exporter| exporter == "otlp",
        "must be otlp or none",
    );
    for variable in ENDPOINTS {
        demand(
            variable,
            &is_endpoint,
            "must be a URL without credentials, such as http://localhost:4317",
        );
    }
    for variable in PROTOCOLS {
        demand(variable, &|protocol| protocol == "grpc", "must be grpc");
    }
    for variable in NUMBERS {
        let is_number = |text: &str| (1..=1_000_000).contains(&text.parse().unwrap_or(0));
        demand(variable, &is_number, "must be a number from 1 to 1000000");
    }
    for variable in HEADERS {
        demand(variable, &are_headers, "must be name=value, with , between");
    }
    for variable in COMPRESSIONS {
        demand(
            variable,
            &|compression| compression == "gzip",
            "must be gzip",
        );
    }
    let what = format!("must be one of {}", SAMPLERS.join(", "));
    demand(
        "OTEL_TRACES_SAMPLER",
        &|sampler| SAMPLERS.contains(&sampler),
        &what,
    );
    let share = |text: &str| {
        text.parse()
            .is_ok_and(|share: f64| (0.0..=1.0).contains(&share))
    };
    demand(
        "OTEL_TRACES_SAMPLER_ARG",
        &share,
        "must be a number from 0 to 1",
    );
    let queue = set("OTEL_BSP_MAX_QUEUE_SIZE").and_then(|queue| queue.parse().ok());
    Some(Export {
        queue: queue.unwrap_or(QUEUE),
    })
}

/// Credentials have a variable of their own, `OTEL_EXPORTER_OTLP_HEADERS`.
fn is_endpoint(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| {
        let bare = url.username().is_empty() && url.password().is_none();
        bare && matches!(url.scheme(), "http" | "https") && url.has_host()
    })
}

fn are_headers(text: &str) -> bool {
    text.split_terminator(',').all(|header| {
        let pair = header.split_once('=');
        pair.is_some_and(|(name, _)| HeaderName::from_bytes(name.trim().as_bytes()).is_ok())
    })
}

/// A variable's value; an empty one is none.
fn set(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|value| !value.is_empty())
}
