//! Metrics, as Prometheus reads them.

use std::collections::BTreeMap;

use sqril_grpc::pb::{Occupation, UpdateCustomerRequest};
use tokio::time::timeout;
use tonic::Code;

use crate::{
    health::{self, http_get, http_get_as},
    support::{Facade, PATIENCE, Reply, Upstream, a_profile, an_update, json, with},
};

/// What `/metrics` says, by series.
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    pub async fn of(facade: &Facade) -> Scrape {
        let said = http_get(facade.admin, "/metrics").await;
        let body = said.split_once("\r\n\r\n").unwrap().1;
        let samples = body.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').expect("a sample");
            (series.to_owned(), value.parse().expect("a number"))
        };
        Scrape(samples.map(sample).collect())
    }

    /// The first scrape for which this holds, once there is one.
    pub async fn once(facade: &Facade, holds: impl Fn(&Scrape) -> bool) -> Scrape {
        let found = async {
            loop {
                let scrape = Scrape::of(facade).await;
                if holds(&scrape) {
                    return scrape;
                }
            }
        };
        timeout(PATIENCE, found)
            .await
            .expect("the metrics never said so")
    }

    /// A series, which must be there.
    #[track_caller]
    pub fn value(&self, series: &str) -> f64 {
        match self.0.get(series) {
            Some(value) => *value,
            None => panic!("{series} in {:#?}", self.0.keys()),
        }
    }

    /// The series of a metric that are not zero, by their labels.
    fn counted(&self, metric: &str) -> BTreeMap<&str, f64> {
        fn labels<'a>(series: &'a str, metric: &str) -> Option<&'a str> {
            let labels = series.strip_prefix(metric)?.strip_prefix('{')?;
            labels.strip_suffix('}')
        }
        let counted = self.0.iter().filter(|(_, value)| **value != 0.0);
        counted
            .filter_map(|(series, value)| Some((labels(series, metric)?, *value)))
            .collect()
    }

    #[track_caller]
    fn counts(&self, metric: &str, expected: &[(&str, u32)]) {
        let expected: BTreeMap<_, _> = expected
            .iter()
            .map(|(labels, count)| (*labels, f64::from(*count)))
            .collect();
        assert_eq!(self.counted(metric), expected, "{metric}");
    }
}

fn update_of(id: &str) -> UpdateCustomerRequest {
    UpdateCustomerRequest {
        customer_id: id.to_owned(),
        ..an_update()
    }
}

const UPDATE: &str = "grpc_type=\"unary\",grpc_service=\"sqril.customer.v1.CustomerService\",grpc_method=\"UpdateCustomer\"";

/// A known mix of calls, and every counter compared with what was sent.
#[tokio::test]
async fn counters_agree_with_what_was_sent() {
    let facade = Facade::start(
        &["--sandbox", "--breaker=off", "--attempt-timeout=2500ms"],
        &[],
    )
    .await;
    let mix = [
        ("cus_sandbox", 7),
        ("sbx_flaky", 2),
        ("sbx_new_codes", 3),
        ("sbx_immutable", 4),
        ("", 5),
        ("no_such_customer", 1),
        ("sbx_status_500", 2),
        ("sbx_status_502", 1),
        ("sbx_status_401", 3),
        ("sbx_foreign_200", 1),
        ("sbx_reset", 2),
        ("sbx_cut", 1),
        ("sbx_stall", 1),
        ("sbx_unavailable", 2),
        ("sbx_other_customer", 1),
    ];
    let mut client = facade.client().await;
    for (id, times) in mix {
        for _ in 0..times {
            drop(client.update_customer(update_of(id)).await);
        }
    }
    // Last, for nothing is sent after it.
    for _ in 0..3 {
        let told = facade.refused(update_of("sbx_rate_limited")).await;
        assert_eq!(told.code, Code::ResourceExhausted);
    }
    health::status(&facade, "").await;

    let scrape = Scrape::of(&facade).await;
    let calls = 39;
    assert_eq!(
        scrape.value(&format!("grpc_server_started_total{{{UPDATE}}}")),
        f64::from(calls)
    );
    let handled: BTreeMap<_, _> = scrape
        .counted("grpc_server_handled_total")
        .into_iter()
        .filter_map(|(labels, count)| {
            let code = labels.strip_prefix(UPDATE)?.strip_prefix(",grpc_code=\"")?;
            Some((code.strip_suffix('"')?, count))
        })
        .collect();
    let expected = [
        ("DataLoss", 1),
        ("DeadlineExceeded", 1),
        ("Internal", 4),
        ("InvalidArgument", 9),
        ("NotFound", 1),
        ("OK", 12),
        ("ResourceExhausted", 3),
        ("Unavailable", 2),
        ("Unknown", 6),
    ];
    let expected = expected.map(|(code, count)| (code, f64::from(count)));
    assert_eq!(handled, BTreeMap::from(expected));
    assert_eq!(
        scrape.value(&format!("grpc_server_handling_seconds_count{{{UPDATE}}}")),
        f64::from(calls)
    );
    let check = "grpc_type=\"unary\",grpc_service=\"grpc.health.v1.Health\",grpc_method=\"Check\"";
    assert_eq!(
        scrape.value(&format!(
            "grpc_server_handled_total{{{check},grpc_code=\"OK\"}}"
        )),
        1.0
    );

    scrape.counts(
        "sqril_update_outcomes_total",
        &[
            ("outcome=\"applied\"", 13),
            ("outcome=\"not_sent\"", 7),
            ("outcome=\"rejected\"", 11),
            ("outcome=\"unknown\"", 8),
        ],
    );
    scrape.counts(
        "sqril_errors_total",
        &[
            ("reason=\"IMMUTABLE_FIELDS\"", 4),
            ("reason=\"INTERNAL_SERVER_ERROR\"", 2),
            ("reason=\"INVALID_CUSTOMER_ID\"", 5),
            ("reason=\"RATE_LIMIT_EXCEEDED\"", 1),
            ("reason=\"RESOURCE_NOT_FOUND\"", 1),
            ("reason=\"UPSTREAM_BAD_GATEWAY\"", 1),
            ("reason=\"UPSTREAM_CONNECTION_LOST\"", 2),
            ("reason=\"UPSTREAM_CREDENTIALS_REJECTED\"", 3),
            ("reason=\"UPSTREAM_IDENTITY_MISMATCH\"", 1),
            ("reason=\"UPSTREAM_RATE_LIMITED\"", 2),
            ("reason=\"UPSTREAM_RESPONSE_FOREIGN\"", 1),
            ("reason=\"UPSTREAM_RESPONSE_UNREADABLE\"", 1),
            ("reason=\"UPSTREAM_TIMEOUT\"", 1),
            ("reason=\"UPSTREAM_UNAVAILABLE\"", 2),
        ],
    );
    scrape.counts(
        "sqril_upstream_requests_total",
        &[
            ("status=\"200\",result=\"foreign\"", 1),
            ("status=\"200\",result=\"ok\"", 12),
            ("status=\"200\",result=\"other_customer\"", 1),
            ("status=\"200\",result=\"unreadable\"", 1),
            ("status=\"400\",result=\"refused\"", 4),
            ("status=\"401\",result=\"refused\"", 3),
            ("status=\"404\",result=\"refused\"", 1),
            ("status=\"429\",result=\"refused\"", 1),
            ("status=\"500\",result=\"refused\"", 2),
            ("status=\"502\",result=\"refused\"", 1),
            ("status=\"503\",result=\"refused\"", 4),
            ("status=\"none\",result=\"lost\"", 2),
            ("status=\"none\",result=\"timed_out\"", 1),
        ],
    );
    assert_eq!(scrape.value("sqril_upstream_request_seconds_count"), 34.0);
    scrape.counts("sqril_upstream_retries_total", &[("reason=\"503\"", 2)]);
    scrape.counts(
        "sqril_unrecognized_codes_total",
        &[("field=\"ic_type\"", 3), ("field=\"occupation\"", 3)],
    );
    let unrecognized = "code=\"WARNING_CODE_CODE_UNRECOGNIZED\",field=\"occupation\"";
    assert_eq!(
        scrape.value(&format!("sqril_response_warnings_total{{{unrecognized}}}")),
        3.0
    );
    assert_eq!(scrape.value("sqril_quota_pauses_total"), 1.0);
    let pause = scrape.value("sqril_quota_pause_end_timestamp_seconds");
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!((pause - now).abs() < 4.0, "{pause}");
    // Nothing is under way any more but what was asked for.
    Scrape::once(&facade, |scrape| {
        scrape.counted("sqril_resource_used") == BTreeMap::from([("resource=\"connections\"", 1.0)])
    })
    .await;
    assert_eq!(
        scrape.value("sqril_connections_total{result=\"begun\"}"),
        5.0
    );
    assert!(scrape.value("sqril_upstream_connections_opened_total{result=\"ok\"}") >= 1.0);
    assert_eq!(scrape.value("sqril_panics_total"), 0.0);
    assert_eq!(scrape.value("sqril_log_lines_lost_total"), 0.0);
}

/// Before the first call everything that alerts look at is there.
#[tokio::test]
async fn at_zero_from_the_start() {
    let facade = Facade::sandbox().await;
    let scrape = Scrape::of(&facade).await;
    for code in ["OK", "Canceled", "DataLoss", "Unauthenticated"] {
        assert_eq!(
            scrape.value(&format!(
                "grpc_server_handled_total{{{UPDATE},grpc_code=\"{code}\"}}"
            )),
            0.0
        );
    }
    for series in [
        "sqril_update_outcomes_total{outcome=\"unknown\"}",
        "sqril_errors_total{reason=\"UPSTREAM_CREDENTIALS_REJECTED\"}",
        "sqril_unrecognized_codes_total{field=\"occupation\"}",
        "sqril_upstream_requests_total{status=\"401\",result=\"refused\"}",
        "sqril_breaker_open",
        "sqril_breaker_opened_total",
        "sqril_draining",
        "sqril_trace_spans_total{result=\"dropped\"}",
    ] {
        assert_eq!(scrape.value(series), 0.0, "{series}");
    }
    assert_eq!(scrape.value("sqril_ready"), 1.0);
    assert_eq!(
        scrape.value("sqril_resource_limit{resource=\"calls\"}"),
        1024.0
    );
    for series in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_threads",
        "process_start_time_seconds",
        "tokio_workers",
    ] {
        assert!(scrape.value(series) > 0.0, "{series}");
    }
    let version = env!("CARGO_PKG_VERSION");
    let build = format!("sqril_build_info{{version=\"{version}\",commit=\"unknown\"}}");
    assert_eq!(scrape.value(&build), 1.0);
    let said = http_get(facade.admin, "/version").await;
    assert!(
        said.contains(&format!("\"version\":\"{version}\"")),
        "{said}"
    );
}

/// Whoever asks for OpenMetrics gets it, with what leads from a bucket to a call.
#[tokio::test]
async fn two_forms() {
    let facade = Facade::sandbox().await;
    let metadata = [
        ("x-request-id", "find-me"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ];
    facade
        .call(with(update_of("cus_sandbox"), &metadata))
        .await
        .unwrap();
    let get = async |accept: &str| http_get_as(facade.admin, "/metrics", accept).await;
    let text = get("text/plain").await;
    assert!(
        text.contains("content-type: text/plain; version=0.0.4"),
        "{text}"
    );
    assert!(
        text.contains("# TYPE grpc_server_started_total counter"),
        "{text}"
    );
    assert!(
        !text.contains("find-me") && !text.contains("# EOF"),
        "{text}"
    );
    let open = get("application/openmetrics-text; version=1.0.0").await;
    assert!(
        open.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{open}"
    );
    assert!(
        open.contains("# TYPE grpc_server_started counter"),
        "{open}"
    );
    assert!(open.ends_with("# EOF\n"));
    let exemplar = "# {trace_id=\"0af7651916cd43dd8448eb211c80319c\",request_id=\"find-me\"} ";
    for histogram in [
        "grpc_server_handling_seconds_bucket",
        "sqril_upstream_request_seconds_bucket",
    ] {
        let marked = |line: &&str| line.starts_with(histogram) && line.contains(exemplar);
        assert_eq!(open.lines().filter(marked).count(), 1, "{open}");
    }
}

/// Whoever leaves is counted: as canceled for its call, by what became of it for its update.
#[tokio::test]
async fn callers_that_leave() {
    let upstream = Upstream::start(Reply::SayWhenTold(json(200, &a_profile().to_string()))).await;
    let facade = Facade::with(&upstream.url(), &["--max-in-flight=1"]).await;
    let (mut first, mut second) = (facade.client().await, facade.client().await);
    let first = tokio::spawn(async move { first.update_customer(an_update()).await });
    upstream.asked().await;
    // One more waits to be taken.
    let request = with(an_update(), &[("x-request-id", "waits")]);
    let second = tokio::spawn(async move { second.update_customer(request).await });
    let queued = "sqril_resource_used{resource=\"queued_calls\"}";
    Scrape::once(&facade, |scrape| scrape.value(queued) == 1.0).await;
    second.abort();
    let line = facade.logged(|line| line["request_id"] == "waits").await;
    assert_eq!(
        (
            line["code"].as_str(),
            line["outcome"].as_str(),
            line["attempts"].as_u64()
        ),
        (Some("Canceled"), Some("not_sent"), Some(0))
    );
    first.abort();
    drop(first.await);
    let canceled = format!("grpc_server_handled_total{{{UPDATE},grpc_code=\"Canceled\"}}");
    Scrape::once(&facade, |scrape| scrape.value(&canceled) == 2.0).await;
    upstream.go_on();
    facade
        .logged(|line| line["outcome"] == "applied" && line["code"] == "Canceled")
        .await;
    let scrape = Scrape::of(&facade).await;
    scrape.counts(
        "sqril_update_outcomes_total",
        &[("outcome=\"applied\"", 1), ("outcome=\"not_sent\"", 1)],
    );
    scrape.counts("sqril_errors_total", &[]);
}

/// What tonic itself answers counts as well, and a name that nobody serves makes no series of its own.
#[tokio::test]
async fn calls_that_do_not_arrive() {
    let facade = Facade::sandbox().await;
    let mut grpc = tonic::client::Grpc::new(facade.channel().await);
    for path in [
        "/no.such.Service/Method",
        "/sqril.customer.v1.CustomerService/NoSuchMethod",
    ] {
        grpc.ready().await.unwrap();
        let codec =
            tonic_prost::ProstCodec::<UpdateCustomerRequest, UpdateCustomerRequest>::default();
        let answer = grpc
            .unary(
                tonic::Request::new(an_update()),
                path.parse().unwrap(),
                codec,
            )
            .await;
        assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
    }
    let oversized = UpdateCustomerRequest {
        address: Some("x".repeat(70_000)),
        occupation: Some(Occupation::Occ1.into()),
        ..an_update()
    };
    assert_eq!(
        facade.call(oversized).await.unwrap_err().code(),
        Code::OutOfRange
    );
    let line = facade.logged(|line| line["code"] == "OutOfRange").await;
    assert_eq!(
        (line["method"].as_str(), line["outcome"].as_str()),
        (Some("UpdateCustomer"), Some("not_sent"))
    );
    let not_served =
        |line: &serde_json::Value| line["code"] == "Unimplemented" && line["method"] == "other";
    facade.logged_again(2, not_served).await;
    let scrape = Scrape::of(&facade).await;
    scrape.counts(
        "sqril_update_outcomes_total",
        &[("outcome=\"not_sent\"", 1)],
    );
    let other = "grpc_type=\"unary\",grpc_service=\"other\",grpc_method=\"other\"";
    assert_eq!(
        scrape.value(&format!(
            "grpc_server_handled_total{{{other},grpc_code=\"Unimplemented\"}}"
        )),
        2.0
    );
    assert_eq!(
        scrape.value(&format!(
            "grpc_server_handled_total{{{UPDATE},grpc_code=\"OutOfRange\"}}"
        )),
        1.0
    );
    let said = http_get(facade.admin, "/metrics").await;
    assert!(
        !said.contains("no.such") && !said.contains("NoSuch"),
        "{said}"
    );
}
