//! Traces, as a collector gets them.

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use sqril_grpc::pb::UpdateCustomerRequest;
use tonic::Code;

use crate::{
    collector::{Collector, Mood, attribute},
    measured::Scrape,
    support::{
        CLIENT_ID, CLIENT_SECRET, Facade, Reply, Upstream, a_profile, an_update, json, program,
        with,
    },
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn update_of(id: &str) -> UpdateCustomerRequest {
    UpdateCustomerRequest {
        customer_id: id.to_owned(),
        ..an_update()
    }
}

/// A façade that sends its spans soon, with more variables.
async fn traced(collector: &Collector, flags: &[&str], variables: &[(&str, &str)]) -> Facade {
    let (name, endpoint) = collector.variable();
    let common = [
        (name, endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ("SQRIL_GRPC_CLIENT_SECRET", CLIENT_SECRET),
    ];
    Facade::start(flags, &[&common, variables].concat()).await
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn has(span: &Span, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        let found = attribute(&span.attributes, key);
        assert_eq!(found.as_deref(), Some(*value), "{key} of {span:?}");
    }
    let mut keys: Vec<_> = span
        .attributes
        .iter()
        .map(|pair| pair.key.as_str())
        .collect();
    keys.retain(|key| !expected.iter().any(|(expected, _)| expected == key));
    assert_eq!(keys, [""; 0], "nothing else in {span:?}");
}

fn of_kind(spans: &[Span], kind: SpanKind) -> Vec<&Span> {
    spans.iter().filter(|span| span.kind() == kind).collect()
}

/// The names and values of OpenTelemetry's conventions for RPC servers and HTTP clients.
#[tokio::test]
async fn spans_as_the_conventions_say() {
    let collector = Collector::start().await;
    let facade = traced(
        &collector,
        &["--sandbox"],
        &[(
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test",
        )],
    )
    .await;
    let metadata = [
        ("traceparent", &*format!("00-{TRACE}-{PARENT}-01")),
        ("tracestate", "vendor=1"),
        ("x-request-id", "one"),
    ];
    facade
        .call(with(update_of("cus_sandbox"), &metadata))
        .await
        .unwrap();
    let spans = collector.spans_once(2).await;
    let server = of_kind(&spans, SpanKind::Server)[0];
    let client = of_kind(&spans, SpanKind::Client)[0];
    assert_eq!(
        server.name,
        "sqril.customer.v1.CustomerService/UpdateCustomer"
    );
    assert_eq!(client.name, "PUT /updateCustomer");
    assert_eq!(
        (hex(&server.trace_id), hex(&server.parent_span_id)),
        (TRACE.into(), PARENT.into())
    );
    assert_eq!(
        (hex(&client.trace_id), &client.parent_span_id),
        (TRACE.into(), &server.span_id)
    );
    assert_eq!(server.trace_state, "vendor=1");
    assert!(server.start_time_unix_nano <= client.start_time_unix_nano);
    assert!(server.end_time_unix_nano >= client.end_time_unix_nano);
    let line = facade.logged(|line| line["request_id"] == "one").await;
    assert_eq!(line["trace_id"], TRACE);
    has(
        server,
        &[
            ("rpc.system.name", "grpc"),
            (
                "rpc.method",
                "sqril.customer.v1.CustomerService/UpdateCustomer",
            ),
            ("rpc.response.status_code", "OK"),
            ("sqril.upstream_outcome", "applied"),
            ("sqril.request_id", "one"),
            ("sqril.customer", line["customer"].as_str().unwrap()),
        ],
    );
    let port = attribute(&client.attributes, "server.port").unwrap();
    let url = format!("http://127.0.0.1:{port}/updateCustomer?customer_id=REDACTED");
    has(
        client,
        &[
            ("http.request.method", "PUT"),
            ("http.response.status_code", "200"),
            ("server.address", "127.0.0.1"),
            ("server.port", &port),
            ("url.full", &url),
            ("url.template", "/updateCustomer"),
        ],
    );
    for span in [server, client] {
        assert_eq!(
            span.status.clone().unwrap_or_default().code(),
            StatusCode::Unset
        );
    }
    let resource = collector.received()[0].resource.clone().unwrap();
    for (key, value) in [
        ("service.name", "sqril-grpc"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("deployment.environment.name", "test"),
        ("telemetry.sdk.language", "rust"),
    ] {
        assert_eq!(attribute(&resource.attributes, key).as_deref(), Some(value));
    }
}

/// Codes, reasons, and what is an error: the server's fault is one, the caller's is not.
#[tokio::test]
async fn spans_of_failures() {
    let cases = [
        (
            "sbx_status_500",
            "UNKNOWN",
            "INTERNAL_SERVER_ERROR",
            "unknown",
            Some("500"),
            Some("500"),
        ),
        (
            "sbx_immutable",
            "INVALID_ARGUMENT",
            "IMMUTABLE_FIELDS",
            "rejected",
            Some("400"),
            Some("400"),
        ),
        (
            "sbx_reset",
            "UNKNOWN",
            "UPSTREAM_CONNECTION_LOST",
            "unknown",
            None,
            Some("lost"),
        ),
        (
            "sbx_cut",
            "DATA_LOSS",
            "UPSTREAM_RESPONSE_UNREADABLE",
            "applied",
            Some("200"),
            Some("unreadable"),
        ),
    ];
    for (id, code, reason, outcome, status, failure) in cases {
        let collector = Collector::start().await;
        let facade = traced(&collector, &["--sandbox"], &[("OTEL_SERVICE_NAME", "mine")]).await;
        facade.call(update_of(id)).await.unwrap_err();
        let spans = collector.spans_once(2).await;
        let server = of_kind(&spans, SpanKind::Server)[0];
        let client = of_kind(&spans, SpanKind::Client)[0];
        let of = |span: &Span, key: &str| attribute(&span.attributes, key);
        assert_eq!(of(server, "rpc.response.status_code").unwrap(), code);
        assert_eq!(of(server, "sqril.reason").unwrap(), reason);
        assert_eq!(of(server, "sqril.upstream_outcome").unwrap(), outcome);
        let failed = code != "INVALID_ARGUMENT";
        assert_eq!(of(server, "error.type"), failed.then(|| code.to_owned()));
        let expected = if failed {
            StatusCode::Error
        } else {
            StatusCode::Unset
        };
        assert_eq!(
            server.status.clone().unwrap_or_default().code(),
            expected,
            "{id}"
        );
        assert_eq!(of(client, "http.response.status_code").as_deref(), status);
        assert_eq!(of(client, "error.type").as_deref(), failure);
        assert_eq!(client.status.clone().unwrap().code(), StatusCode::Error);
        let resource = collector.received()[0].resource.clone().unwrap();
        assert_eq!(
            attribute(&resource.attributes, "service.name").unwrap(),
            "mine"
        );
    }
}

/// A second attempt is a second span; a call that is not sent has none but its own.
#[tokio::test]
async fn a_span_for_each_attempt() {
    let collector = Collector::start().await;
    let facade = traced(&collector, &["--sandbox"], &[]).await;
    facade.call(update_of("sbx_flaky")).await.unwrap();
    let spans = collector.spans_once(3).await;
    let again: Vec<_> = of_kind(&spans, SpanKind::Client)
        .iter()
        .map(|span| attribute(&span.attributes, "http.request.resend_count"))
        .collect();
    assert_eq!(again, [None, Some("1".to_owned())]);

    facade.call(update_of("")).await.unwrap_err();
    let spans = collector.spans_once(4).await;
    assert_eq!(of_kind(&spans, SpanKind::Client).len(), 2);
    // Nobody watches over health checks.
    crate::health::status(&facade, "").await;
    facade.call(update_of("cus_sandbox")).await.unwrap();
    assert_eq!(collector.spans_once(6).await.len(), 6);
}

/// Row 15: the caller's span ends as it left, the PUT's when it did.
#[tokio::test]
async fn a_caller_that_leaves() {
    let collector = Collector::start().await;
    let upstream = Upstream::start(Reply::SayWhenTold(json(200, &a_profile().to_string()))).await;
    let url = upstream.url();
    let flags = ["--upstream-url", &url, "--client-id", CLIENT_ID];
    let facade = traced(&collector, &flags, &[]).await;
    let mut client = facade.client().await;
    let call = tokio::spawn(async move { client.update_customer(an_update()).await });
    upstream.asked().await;
    call.abort();
    let spans = collector.spans_once(1).await;
    assert_eq!(spans[0].kind(), SpanKind::Server);
    let of = |key| attribute(&spans[0].attributes, key);
    assert_eq!(of("rpc.response.status_code").unwrap(), "CANCELLED");
    assert_eq!(of("sqril.upstream_outcome").unwrap(), "unknown");
    upstream.go_on();
    let spans = collector.spans_once(2).await;
    assert_eq!(spans[1].parent_span_id, spans[0].span_id);
}

/// The standard variables, and the caller's own wish.
#[tokio::test]
async fn sampling() {
    let caller_says = |flags: &str| format!("00-{TRACE}-{PARENT}-{flags}");
    // Variables, what the caller says of its trace, and whether there are spans.
    type Variables = &'static [(&'static str, &'static str)];
    let cases: [(Variables, Option<&str>, bool); 9] = [
        (&[], None, true),
        (&[], Some("00"), false),
        (&[], Some("01"), true),
        (&[("OTEL_TRACES_SAMPLER", "always_off")], Some("01"), false),
        (
            &[("OTEL_TRACES_SAMPLER", "parentbased_always_off")],
            Some("01"),
            true,
        ),
        (
            &[("OTEL_TRACES_SAMPLER", "parentbased_always_off")],
            None,
            false,
        ),
        (
            &[
                ("OTEL_TRACES_SAMPLER", "traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", "0"),
            ],
            Some("01"),
            false,
        ),
        (&[("OTEL_SDK_DISABLED", "true")], Some("01"), false),
        (&[("OTEL_TRACES_EXPORTER", "none")], Some("01"), false),
    ];
    for (variables, flags, sampled) in cases {
        let collector = Collector::start().await;
        let mut facade = traced(&collector, &["--sandbox"], variables).await;
        let parent = flags.map(caller_says);
        let metadata: Vec<_> = parent
            .iter()
            .map(|parent| ("traceparent", &**parent))
            .collect();
        facade
            .call(with(update_of("cus_sandbox"), &metadata))
            .await
            .unwrap();
        facade.signal("TERM");
        assert_eq!(facade.ended().await.code(), Some(0));
        assert_eq!(
            collector.spans().len(),
            if sampled { 2 } else { 0 },
            "{variables:?} {flags:?}"
        );
    }
}

/// A `tracestate` that is longer than anybody must pass on is not.
#[tokio::test]
async fn a_long_tracestate() {
    let collector = Collector::start().await;
    let facade = traced(&collector, &["--sandbox"], &[]).await;
    for (members, kept) in [(2, 1), (3, 0)] {
        let member = |n| format!("k{n}={}", "x".repeat(190));
        let state = (0..members).map(member).collect::<Vec<_>>().join(",");
        let metadata = [
            ("traceparent", &*format!("00-{TRACE}-{PARENT}-01")),
            ("tracestate", &state),
        ];
        let before = collector.spans().len();
        let call = facade.call(with(update_of("cus_sandbox"), &metadata));
        call.await.unwrap();
        let spans = collector.spans_once(before + 2).await;
        let spans = of_kind(&spans[before..], SpanKind::Server);
        let found = spans.iter().filter(|span| span.trace_state == state);
        assert_eq!(found.count(), kept, "{members}");
    }
}

/// What is no `traceparent` is none.
#[tokio::test]
async fn contexts_of_no_use() {
    let collector = Collector::start().await;
    let facade = traced(&collector, &["--sandbox"], &[]).await;
    let bad = [
        "",
        "00",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
    ];
    for parent in bad {
        let metadata = [("traceparent", parent)];
        facade
            .call(with(update_of("cus_sandbox"), &metadata))
            .await
            .unwrap();
    }
    for span in of_kind(&collector.spans_once(2 * bad.len()).await, SpanKind::Server) {
        assert_eq!(hex(&span.parent_span_id), "");
        assert_ne!(hex(&span.trace_id), TRACE);
    }
}

/// Sqril is told of the trace only if the operator says so, and never what callers write beside it.
#[tokio::test]
async fn propagate_trace() {
    let metadata = [
        ("traceparent", &*format!("00-{TRACE}-{PARENT}-01")),
        ("tracestate", "vendor=1"),
        ("baggage", "who=1"),
    ];
    // Whether there is a collector, and whether Sqril is told.
    for (traces, told) in [(true, true), (true, false), (false, true), (false, false)] {
        let collector = Collector::start().await;
        let upstream = Upstream::start(Reply::Say(json(200, &a_profile().to_string()))).await;
        let url = upstream.url();
        let mut flags = vec!["--upstream-url", &url, "--client-id", CLIENT_ID];
        flags.extend(told.then_some("--propagate-trace"));
        let off = if traces { "false" } else { "true" };
        let facade = traced(&collector, &flags, &[("OTEL_SDK_DISABLED", off)]).await;
        facade.call(with(an_update(), &metadata)).await.unwrap();
        let head = upstream.received()[0].head.clone();
        let sent = head
            .lines()
            .find_map(|line| line.strip_prefix("traceparent: "));
        let span = match traces {
            true => hex(&of_kind(&collector.spans_once(2).await, SpanKind::Client)[0].span_id),
            false => PARENT.to_owned(),
        };
        let expected = format!("00-{TRACE}-{span}-01");
        assert_eq!(sent, told.then_some(&*expected), "{head}");
        assert!(
            !head.contains("vendor") && !head.contains("baggage"),
            "{head}"
        );
    }
}

/// Whatever a collector does, calls do not notice; what became of the spans is counted, and the process leaves in time.
#[tokio::test]
async fn a_collector_of_no_use() {
    const CALLS: usize = 100;
    // What it does, and what then becomes of spans.
    for (mood, failed) in [
        (None, true),
        (Some(Mood::Refuses), true),
        (Some(Mood::NeverAnswers), false),
    ] {
        let collector = Collector::start().await;
        let (name, mut endpoint) = collector.variable();
        match mood {
            Some(mood) => collector.is(mood),
            None => endpoint = "http://127.0.0.1:1".to_owned(),
        }
        let variables = [
            (name, endpoint.as_str()),
            ("OTEL_BSP_SCHEDULE_DELAY", "20"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "16"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "300"),
        ];
        let mut facade = Facade::start(&["--sandbox"], &variables).await;
        let mut client = facade.client().await;
        for _ in 0..CALLS {
            client
                .update_customer(update_of("cus_sandbox"))
                .await
                .unwrap();
        }
        let counted = async |result: &str| {
            let scrape = Scrape::of(&facade).await;
            scrape.value(&format!("sqril_trace_spans_total{{result=\"{result}\"}}"))
        };
        if failed {
            facade
                .logged(|line| line["message"] == "the collector does not take spans")
                .await;
            assert!(counted("failed").await > 0.0);
        } else {
            assert!(counted("dropped").await > 0.0);
        }
        assert_eq!(counted("exported").await, 0.0);
        assert_eq!(collector.spans().len(), 0);
        let asked = Instant::now();
        facade.signal("TERM");
        assert_eq!(facade.ended().await.code(), Some(0));
        assert!(
            asked.elapsed() < Duration::from_secs(10),
            "{:?}",
            asked.elapsed()
        );
    }
}

/// One that comes back gets what comes after, and that is said.
#[tokio::test]
async fn a_collector_that_comes_back() {
    let collector = Collector::start().await;
    collector.is(Mood::Refuses);
    let facade = traced(&collector, &["--sandbox"], &[]).await;
    facade.call(update_of("cus_sandbox")).await.unwrap();
    facade
        .logged(|line| line["message"] == "the collector does not take spans")
        .await;
    collector.is(Mood::Takes);
    facade.call(update_of("cus_sandbox")).await.unwrap();
    facade
        .logged(|line| line["message"] == "the collector takes spans again")
        .await;
    collector.spans_once(2).await;
}

/// What was not sent yet is sent before the process ends.
#[tokio::test]
async fn the_last_spans() {
    let collector = Collector::start().await;
    let variables = [("OTEL_BSP_SCHEDULE_DELAY", "600000")];
    let mut facade = traced(&collector, &["--sandbox"], &variables).await;
    for _ in 0..300 {
        facade.call(update_of("cus_sandbox")).await.unwrap();
    }
    facade.signal("TERM");
    assert_eq!(facade.ended().await.code(), Some(0));
    assert_eq!(collector.spans().len(), 600);
}

#[test]
fn variables_that_cannot_be_used() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317");
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://x"),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "http://a:canary@localhost:4317",
        ),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "jaeger"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "canary"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,b c=canary"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
    ] {
        let variables = [endpoint, (name, value)];
        let output = program("serve", &["--sandbox", "--check-config"], &variables)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{name}: {said}");
        assert!(said.contains(name) && !said.contains("canary"), "{said}");
    }
}

/// A call that is turned away at the gate has a span as well.
#[tokio::test]
async fn a_caller_that_may_not_call() {
    let collector = Collector::start().await;
    let flags = [
        "--sandbox",
        "--trust-network",
        "--identity-header=x-forwarded-client-cert",
    ];
    let facade = traced(&collector, &flags, &[]).await;
    facade.refused(an_update()).await.is(
        Code::Unauthenticated,
        "CALLER_NOT_AUTHENTICATED",
        "not_sent",
    );
    let spans = collector.spans_once(1).await;
    let reason = attribute(&spans[0].attributes, "sqril.reason");
    assert_eq!(reason.as_deref(), Some("CALLER_NOT_AUTHENTICATED"));
}
