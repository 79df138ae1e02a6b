//! Rows 22 to 45: what becomes of an answer that says no, or nothing sensible.

use std::time::{Duration, SystemTime};

use serde_json::json as value;
use sqril_grpc::pb::UpdateCustomerRequest;
use tonic::Code::{
    Aborted, DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument, NotFound,
    PermissionDenied, ResourceExhausted, Unavailable, Unknown,
};

use crate::support::{Facade, HTML, JSON, Reply, Told, Upstream, an_update, http, json, sqril};

async fn told(reply: Reply) -> Told {
    told_for(an_update(), reply).await
}

async fn told_for(request: UpdateCustomerRequest, reply: Reply) -> Told {
    let upstream = Upstream::start(reply).await;
    let facade = Facade::with(&upstream.url(), &["--retry-budget", "0"]).await;
    let told = facade.refused(request).await;
    upstream.the_request();
    assert_eq!(told.metadata["attempts"], "1");
    told
}

/// What a caller is told when Sqril itself answers so, with this code.
async fn spoken(status: u16, code: &str) -> Told {
    let told = told(Reply::Say(json(status, &sqril(code)))).await;
    assert_eq!(told.metadata["upstream_status"], status.to_string());
    assert_eq!(told.metadata["upstream_error_code"], code);
    assert_eq!(told.sqril_says(), Some("No."));
    assert_eq!(
        told.domain,
        if told.reason == code {
            "api.sqril.com"
        } else {
            "sqril-grpc"
        }
    );
    told
}

/// What a caller is told when something in between answers so.
async fn foreign(status: u16) -> Told {
    let told = told(Reply::Say(http(status, &[HTML], b"<h1>No.</h1>"))).await;
    assert_eq!(told.metadata["upstream_status"], status.to_string());
    assert!(!told.metadata.contains_key("upstream_error_code"));
    assert_eq!(
        (told.sqril_says(), told.domain.as_str()),
        (None, "sqril-grpc")
    );
    told
}

#[tokio::test]
async fn row_22_see_other() {
    let elsewhere = Upstream::answering(200, &[JSON], "{}").await;
    let url = elsewhere.url();
    told(Reply::Say(http(303, &[("location", &url)], b"")))
        .await
        .is(Unknown, "UPSTREAM_REDIRECTED", "unknown");
    assert!(elsewhere.received().is_empty());
}

#[tokio::test]
async fn row_23_other_redirects() {
    let elsewhere = Upstream::answering(200, &[JSON], "{}").await;
    let url = elsewhere.url();
    for status in [300, 301, 302, 304, 305, 307, 308, 399] {
        let reply = Reply::Say(http(status, &[("location", &url)], b""));
        told(reply)
            .await
            .is(Internal, "UPSTREAM_REDIRECTED", "rejected");
    }
    assert!(elsewhere.received().is_empty());
}

#[tokio::test]
async fn row_24_immutable_fields() {
    let body = value!({
        "error_code": "SOME_CODE", "error_message": "No.",
        "details": {"immutable_fields": ["nationality", 7, "name_first", "nationality", "middle_name"], "more": 1},
    });
    let told = told(Reply::Say(json(400, &body.to_string()))).await;
    told.is(InvalidArgument, "SOME_CODE", "rejected");
    assert_eq!(told.domain, "api.sqril.com");
    let fields: Vec<_> = told
        .violations()
        .into_iter()
        .map(|violation| violation.field)
        .collect();
    assert_eq!(fields, ["nationality", "name_first", "middle_name"]);
    assert!(
        told.violations()
            .iter()
            .all(|violation| violation.reason == "IMMUTABLE_FIELD")
    );
}

/// Immutable fields outweigh what a code would mean without them; without one string there are none.
#[tokio::test]
async fn row_24_or_25() {
    for (fields, code) in [
        (value!(["dob"]), InvalidArgument),
        (value!([7]), FailedPrecondition),
    ] {
        let body = value!({"error_code": "KYC_REQUIRED", "details": {"immutable_fields": fields}});
        told(Reply::Say(json(400, &body.to_string())))
            .await
            .is(code, "KYC_REQUIRED", "rejected");
    }
}

#[tokio::test]
async fn row_25_bad_request() {
    spoken(400, "INVALID_REQUEST")
        .await
        .is(InvalidArgument, "INVALID_REQUEST", "rejected");
    spoken(400, "KYC_REQUIRED")
        .await
        .is(FailedPrecondition, "KYC_REQUIRED", "rejected");
    spoken(400, "CUSTOMER_NOT_ELIGIBLE").await.is(
        FailedPrecondition,
        "CUSTOMER_NOT_ELIGIBLE",
        "rejected",
    );
    spoken(400, "RESOURCE_NOT_FOUND")
        .await
        .is(NotFound, "RESOURCE_NOT_FOUND", "rejected");
    let sparse = told(Reply::Say(json(
        400,
        r#"{"error_code":"X1","error_message":7,"details":[]}"#,
    )))
    .await;
    sparse.is(InvalidArgument, "X1", "rejected");
    assert_eq!((sparse.sqril_says(), sparse.violations().len()), (None, 0));
}

/// A code that cannot be a reason leaves ours, and is shown beside it as far as it can be printed.
#[tokio::test]
async fn row_25_codes_that_cannot_be_reasons() {
    let long = format!("é!{}", "a".repeat(100));
    let told = told(Reply::Say(json(400, &sqril(&long)))).await;
    told.is(InvalidArgument, "UPSTREAM_REFUSED", "rejected");
    assert_eq!(told.domain, "sqril-grpc");
    assert_eq!(
        told.metadata["upstream_error_code"],
        format!("!{}", "a".repeat(63))
    );

    let told = self::told(Reply::Say(json(400, &sqril("kyc.required")))).await;
    told.is(FailedPrecondition, "KYC_REQUIRED", "rejected");
    assert_eq!(told.metadata["upstream_error_code"], "kyc.required");
}

#[tokio::test]
async fn row_26_foreign_bad_request() {
    foreign(400)
        .await
        .is(Internal, "UPSTREAM_RESPONSE_FOREIGN", "rejected");
    for body in [
        r#"{"error":"bad"}"#,
        r#"{"error_code":7}"#,
        r#"[{"error_code":"X1"}]"#,
        r#""error_code""#,
        "",
    ] {
        let told = told(Reply::Say(json(400, body))).await;
        told.is(Internal, "UPSTREAM_RESPONSE_FOREIGN", "rejected");
    }
}

#[tokio::test]
async fn row_27_credentials() {
    spoken(401, "INVALID_CREDENTIALS").await.is(
        Internal,
        "UPSTREAM_CREDENTIALS_REJECTED",
        "rejected",
    );
    foreign(401)
        .await
        .is(Internal, "UPSTREAM_CREDENTIALS_REJECTED", "rejected");
}

#[tokio::test]
async fn row_28_forbidden() {
    spoken(403, "NOT_YOURS")
        .await
        .is(PermissionDenied, "NOT_YOURS", "rejected");
    foreign(403)
        .await
        .is(Internal, "UPSTREAM_FORBIDDEN", "rejected");
}

#[tokio::test]
async fn row_29_not_found() {
    let told = spoken(404, "RESOURCE_NOT_FOUND").await;
    told.is(NotFound, "RESOURCE_NOT_FOUND", "rejected");
    let resource = told.details.resource_info().unwrap();
    assert_eq!(
        (
            resource.resource_type.as_str(),
            resource.resource_name.as_str()
        ),
        ("customer", "cus_1")
    );
    let told = foreign(404).await;
    told.is(Internal, "UPSTREAM_ENDPOINT_NOT_FOUND", "rejected");
    assert!(told.details.resource_info().is_none());
}

#[tokio::test]
async fn row_30_contract_mismatch() {
    for status in [405, 406, 415, 431, 501, 505] {
        spoken(status, "SOME_CODE")
            .await
            .is(Internal, "UPSTREAM_CONTRACT_MISMATCH", "rejected");
        foreign(status)
            .await
            .is(Internal, "UPSTREAM_CONTRACT_MISMATCH", "rejected");
    }
}

#[tokio::test]
async fn row_31_egress_proxy() {
    for status in [407, 511] {
        foreign(status)
            .await
            .is(Internal, "EGRESS_PROXY_REJECTED", "not_sent");
    }
    // The same, said before a tunnel to an https upstream is opened.
    let proxy = Upstream::answering(407, &[("proxy-authenticate", "Basic")], "").await;
    let facade = Facade::with(
        "https://api.sqril.invalid",
        &["--upstream-proxy", &proxy.url()],
    )
    .await;
    facade
        .refused(an_update())
        .await
        .is(Internal, "EGRESS_PROXY_REJECTED", "not_sent");
    assert!(
        proxy
            .the_request()
            .head
            .starts_with("CONNECT api.sqril.invalid:443 ")
    );
}

#[tokio::test]
async fn row_32_request_timeout_and_too_early() {
    for status in [408, 425] {
        let told = foreign(status).await;
        told.is(Unavailable, "UPSTREAM_UNAVAILABLE", "rejected");
        assert!(told.retry_in().is_some());
        spoken(status, "SOME_CODE")
            .await
            .is(Unavailable, "UPSTREAM_UNAVAILABLE", "rejected");
    }
}

#[tokio::test]
async fn row_33_conflict() {
    spoken(409, "SOME_CODE")
        .await
        .is(Aborted, "SOME_CODE", "rejected");
    foreign(409)
        .await
        .is(Aborted, "UPSTREAM_CONFLICT", "rejected");
}

#[tokio::test]
async fn row_34_gone() {
    let told = spoken(410, "SOME_CODE").await;
    told.is(NotFound, "SOME_CODE", "rejected");
    assert_eq!(told.details.resource_info().unwrap().resource_name, "cus_1");
    foreign(410).await.is(NotFound, "CUSTOMER_GONE", "rejected");
}

#[tokio::test]
async fn row_35_preconditions() {
    for status in [402, 412, 423, 428] {
        spoken(status, "SOME_CODE")
            .await
            .is(FailedPrecondition, "SOME_CODE", "rejected");
        foreign(status).await.is(
            FailedPrecondition,
            "UPSTREAM_PRECONDITION_FAILED",
            "rejected",
        );
    }
}

#[tokio::test]
async fn row_36_too_large() {
    for status in [413, 414] {
        spoken(status, "SOME_CODE")
            .await
            .is(InvalidArgument, "REQUEST_TOO_LARGE", "rejected");
        foreign(status)
            .await
            .is(InvalidArgument, "REQUEST_TOO_LARGE", "rejected");
    }
}

#[tokio::test]
async fn row_37_unprocessable() {
    foreign(422)
        .await
        .is(InvalidArgument, "UPSTREAM_UNPROCESSABLE", "rejected");
    let cases = [
        (value!({}), vec![]),
        (
            value!({"immutable_fields": ["dob"], "fields": ["dob"]}),
            vec![("dob", "IMMUTABLE_FIELD")],
        ),
        (
            value!({"fields": ["phone", "no_field_of_ours"]}),
            vec![("phone", "REFUSED_FIELD")],
        ),
        (
            value!({"email": ["is not an address"]}),
            vec![("email", "REFUSED_FIELD")],
        ),
        (
            value!([{"field": "address", "why": "x"}]),
            vec![("address", "REFUSED_FIELD")],
        ),
    ];
    for (details, expected) in cases {
        let body = value!({"error_code": "SOME_CODE", "details": details});
        let told = told(Reply::Say(json(422, &body.to_string()))).await;
        told.is(InvalidArgument, "SOME_CODE", "rejected");
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(field, why)| (field.to_owned(), why.to_owned()))
            .collect();
        assert_eq!(told.flaws(), expected, "{details}");
    }
}

async fn retry_in(status: u16, headers: &[(&str, &str)]) -> Option<Duration> {
    told(Reply::Say(http(status, headers, b"")))
        .await
        .retry_in()
}

#[tokio::test]
async fn row_38_rate_limited() {
    let told = spoken(429, "RATE_LIMIT_EXCEEDED").await;
    told.is(ResourceExhausted, "RATE_LIMIT_EXCEEDED", "rejected");
    assert_eq!(told.details.quota_failure().unwrap().violations.len(), 1);
    foreign(429)
        .await
        .is(ResourceExhausted, "UPSTREAM_RATE_LIMITED", "rejected");

    let jittered = Duration::from_secs(1)..Duration::from_millis(1501);
    assert!(jittered.contains(&retry_in(429, &[]).await.unwrap()));
    assert!(jittered.contains(&retry_in(429, &[("retry-after", "soon")]).await.unwrap()));
    assert_eq!(
        retry_in(429, &[("retry-after", "7")]).await,
        Some(Duration::from_secs(7))
    );
    assert_eq!(
        retry_in(429, &[("retry-after", "86400")]).await,
        Some(Duration::from_secs(3600))
    );
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
    let wait = retry_in(429, &[("retry-after", &date)]).await.unwrap();
    assert!(
        (Duration::from_secs(70)..=Duration::from_secs(100)).contains(&wait),
        "{wait:?}"
    );
}

#[tokio::test]
async fn row_39_legal_reasons() {
    spoken(451, "SOME_CODE")
        .await
        .is(PermissionDenied, "SOME_CODE", "rejected");
    foreign(451)
        .await
        .is(PermissionDenied, "UPSTREAM_FORBIDDEN", "rejected");
}

#[tokio::test]
async fn row_40_other_refusals() {
    for status in [411, 416, 417, 418, 421, 424, 426, 430, 440, 499] {
        spoken(status, "SOME_CODE")
            .await
            .is(FailedPrecondition, "SOME_CODE", "rejected");
        foreign(status)
            .await
            .is(Internal, "UPSTREAM_UNEXPECTED_STATUS", "rejected");
    }
}

#[tokio::test]
async fn row_41_server_errors() {
    for status in [500, 506, 507, 510, 520, 599] {
        spoken(status, "PROVIDER_ERROR")
            .await
            .is(Unknown, "PROVIDER_ERROR", "unknown");
        foreign(status)
            .await
            .is(Unknown, "UPSTREAM_ERROR", "unknown");
    }
}

#[tokio::test]
async fn row_42_bad_gateway() {
    spoken(502, "PROVIDER_ERROR")
        .await
        .is(Unknown, "UPSTREAM_BAD_GATEWAY", "unknown");
    foreign(502)
        .await
        .is(Unknown, "UPSTREAM_BAD_GATEWAY", "unknown");
}

#[tokio::test]
async fn row_43_unavailable() {
    spoken(503, "SOME_CODE")
        .await
        .is(Unavailable, "UPSTREAM_UNAVAILABLE", "rejected");
    foreign(503)
        .await
        .is(Unavailable, "UPSTREAM_UNAVAILABLE", "rejected");
    assert_eq!(retry_in(503, &[]).await, None);
    assert_eq!(
        retry_in(503, &[("retry-after", "7")]).await,
        Some(Duration::from_secs(7))
    );
}

#[tokio::test]
async fn row_44_gateway_timeout() {
    spoken(504, "SOME_CODE")
        .await
        .is(DeadlineExceeded, "UPSTREAM_TIMEOUT", "unknown");
    foreign(504)
        .await
        .is(DeadlineExceeded, "UPSTREAM_TIMEOUT", "unknown");
}

/// Whatever is wrong with an error's body, its status decides, as if Sqril had not spoken.
#[tokio::test]
async fn row_45_broken_bodies() {
    let cut = |status: u16| json(status, &sqril("SOME_CODE"))[..100].to_vec();
    let huge = |status| {
        let body = value!({"error_code": "SOME_CODE", "error_message": "x".repeat(16 * 1024)});
        json(status, &body.to_string())
    };
    let garbage = |status| http(status, &[JSON], b"\x00\xff{\"error_code\":\"SOME_CODE\"}");
    let nested = |status| http(status, &[JSON], &b"[".repeat(10_000));
    for (status, code, reason, outcome) in [
        (400, Internal, "UPSTREAM_RESPONSE_FOREIGN", "rejected"),
        (404, Internal, "UPSTREAM_ENDPOINT_NOT_FOUND", "rejected"),
        (500, Unknown, "UPSTREAM_ERROR", "unknown"),
        (503, Unavailable, "UPSTREAM_UNAVAILABLE", "rejected"),
    ] {
        told(Reply::SayAndClose(cut(status)))
            .await
            .is(code, reason, outcome);
        told(Reply::SayAndReset(cut(status)))
            .await
            .is(code, reason, outcome);
        told(Reply::Say(huge(status)))
            .await
            .is(code, reason, outcome);
        told(Reply::Say(garbage(status)))
            .await
            .is(code, reason, outcome);
        told(Reply::Say(nested(status)))
            .await
            .is(code, reason, outcome);

        let upstream = Upstream::start(Reply::SayAndStall(cut(status))).await;
        let flags = ["--attempt-timeout", "300ms", "--connect-timeout", "200ms"];
        Facade::with(&upstream.url(), &flags)
            .await
            .refused(an_update())
            .await
            .is(code, reason, outcome);
    }
}

#[tokio::test]
async fn row_45_the_cap_is_a_flag() {
    let body = sqril("SOME_CODE");
    let upstream = Upstream::answering(400, &[JSON], &body).await;
    for (cap, reason) in [
        (body.len(), "SOME_CODE"),
        (body.len() - 1, "UPSTREAM_RESPONSE_FOREIGN"),
    ] {
        let facade = Facade::with(&upstream.url(), &["--max-error-bytes", &cap.to_string()]).await;
        assert_eq!(facade.refused(an_update()).await.reason, reason);
    }
}

/// What Sqril repeats of the caller's values is taken out, and the rest is cut to its limit.
#[tokio::test]
async fn sqrils_words_without_the_callers_values() {
    let request = UpdateCustomerRequest {
        customer_id: "cus_canary".into(),
        email: Some("canary@example.com".into()),
        address: Some("Canary Street 1".into()),
        ic_country: Some("ID".into()),
        ..Default::default()
    };
    let long = "é".repeat(400);
    let cases = [
        (
            value!({"error_code": "INVALID_ID", "error_message": "CANARY@example.com of cus_canary (ID) is INVALID"}),
            ("INVALID_ID", Some("… of … (…) is INVALID".to_owned())),
        ),
        (
            value!({"error_code": "CANARY STREET 1", "error_message": "canary street 1"}),
            ("UPSTREAM_REFUSED", Some("…".to_owned())),
        ),
        (
            value!({"error_code": "X1", "error_message": long}),
            ("X1", Some("é".repeat(256))),
        ),
        (
            value!({"error_code": "X1", "error_message": " \n"}),
            ("X1", None),
        ),
    ];
    for (body, (reason, message)) in cases {
        let told = told_for(request.clone(), Reply::Say(json(400, &body.to_string()))).await;
        told.is(InvalidArgument, reason, "rejected");
        assert_eq!(told.sqril_says(), message.as_deref());
        assert_ne!(
            told.metadata.get("upstream_error_code").map(String::as_str),
            Some("CANARY STREET 1")
        );
    }
}

/// The worst that an upstream can say still makes an error that every client can take.
#[tokio::test]
async fn an_error_is_never_too_large() {
    let names: Vec<_> = (0..500)
        .map(|n| format!("{n}{}", "名".repeat(200)))
        .collect();
    let body = value!({
        "error_code": "A".repeat(63),
        "error_message": "😀".repeat(1000),
        "details": {"immutable_fields": names[..15]},
    });
    let told = told(Reply::Say(json(400, &body.to_string()))).await;
    told.is(InvalidArgument, &"A".repeat(63), "rejected");
    assert!(!told.violations().is_empty());
}
