//! The embedded Sqril: through the façade, and alone over plain HTTP.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use serde_json::{Value, json as value};
use sqril_grpc::pb::{Occupation, UpdateCustomerRequest, WarningCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::support::{Facade, an_update, program};

fn update_of(id: &str) -> UpdateCustomerRequest {
    UpdateCustomerRequest {
        customer_id: id.to_owned(),
        ..an_update()
    }
}

#[tokio::test]
async fn an_update_is_read_back() {
    let facade = Facade::sandbox().await;
    let request = UpdateCustomerRequest {
        occupation: Some(Occupation::Occ10.into()),
        email: Some("siti@example.com".into()),
        ..update_of("cus_sandbox")
    };
    let response = facade.call(request).await.unwrap().into_inner();
    assert_eq!(response.warnings, []);
    // The next answer still knows it.
    let customer = facade
        .call(update_of("cus_sandbox"))
        .await
        .unwrap()
        .into_inner()
        .customer
        .unwrap();
    assert_eq!(
        (customer.email.as_str(), customer.occupation()),
        ("siti@example.com", Occupation::Occ10)
    );
    assert!(customer.updated_at.unwrap().seconds > customer.created_at.unwrap().seconds);
}

#[tokio::test]
async fn ids_with_a_meaning() {
    let facade = Facade::start(
        &[
            "--sandbox",
            "--attempt-timeout=500ms",
            "--connect-timeout=400ms",
            "--retry-budget=0",
        ],
        &[],
    )
    .await;
    let cases = [
        (
            "no_such_customer",
            Code::NotFound,
            "RESOURCE_NOT_FOUND",
            "rejected",
        ),
        (
            "sbx_no_such_meaning",
            Code::NotFound,
            "RESOURCE_NOT_FOUND",
            "rejected",
        ),
        (
            "sbx_status_600",
            Code::NotFound,
            "RESOURCE_NOT_FOUND",
            "rejected",
        ),
        (
            "sbx_immutable",
            Code::InvalidArgument,
            "IMMUTABLE_FIELDS",
            "rejected",
        ),
        (
            "sbx_unavailable",
            Code::Unavailable,
            "UPSTREAM_UNAVAILABLE",
            "rejected",
        ),
        (
            "sbx_status_403",
            Code::PermissionDenied,
            "INVALID_REQUEST",
            "rejected",
        ),
        (
            "sbx_status_500",
            Code::Unknown,
            "INTERNAL_SERVER_ERROR",
            "unknown",
        ),
        (
            "sbx_status_204",
            Code::Unknown,
            "UPSTREAM_UNEXPECTED_STATUS",
            "unknown",
        ),
        (
            "sbx_foreign_200",
            Code::Unknown,
            "UPSTREAM_RESPONSE_FOREIGN",
            "unknown",
        ),
        (
            "sbx_foreign_404",
            Code::Internal,
            "UPSTREAM_ENDPOINT_NOT_FOUND",
            "rejected",
        ),
        (
            "sbx_cut",
            Code::DataLoss,
            "UPSTREAM_RESPONSE_UNREADABLE",
            "applied",
        ),
        (
            "sbx_huge",
            Code::DataLoss,
            "UPSTREAM_RESPONSE_UNREADABLE",
            "applied",
        ),
        (
            "sbx_reset",
            Code::Unknown,
            "UPSTREAM_CONNECTION_LOST",
            "unknown",
        ),
        (
            "sbx_stall",
            Code::DeadlineExceeded,
            "UPSTREAM_TIMEOUT",
            "unknown",
        ),
        (
            "sbx_other_customer",
            Code::Internal,
            "UPSTREAM_IDENTITY_MISMATCH",
            "unknown",
        ),
        // Last, for the pause that it asks for holds for every call.
        (
            "sbx_rate_limited",
            Code::ResourceExhausted,
            "RATE_LIMIT_EXCEEDED",
            "rejected",
        ),
    ];
    for (id, code, reason, outcome) in cases {
        let told = facade.refused(update_of(id)).await;
        told.is(code, reason, outcome);
    }
    // Nothing is sent during the pause that it asked for, whoever asks.
    let told = facade.refused(update_of("cus_sandbox")).await;
    told.is(Code::ResourceExhausted, "UPSTREAM_RATE_LIMITED", "not_sent");
    let left = told.retry_in().unwrap();
    assert!((2..=3).contains(&left.as_secs()), "{left:?}");
}

#[tokio::test]
async fn ids_that_say_yes() {
    let facade = Facade::sandbox().await;
    let new = facade
        .call(update_of("sbx_new_codes"))
        .await
        .unwrap()
        .into_inner();
    let codes: Vec<_> = new.warnings.iter().map(|warning| warning.code()).collect();
    assert_eq!(codes, [WarningCode::CodeUnrecognized; 2]);
    let customer = new.customer.unwrap();
    assert_eq!(
        (customer.occupation, customer.occupation_code.as_str()),
        (0, "OCC12")
    );
    assert_eq!(
        (customer.ic_type, customer.ic_type_code.as_str()),
        (0, "KTP")
    );

    let sparse = facade
        .call(update_of("sbx_sparse"))
        .await
        .unwrap()
        .into_inner();
    let unreadable = sparse
        .warnings
        .iter()
        .filter(|warning| warning.code() == WarningCode::FieldUnreadable);
    assert_eq!(
        unreadable
            .map(|warning| warning.field.as_str())
            .collect::<Vec<_>>(),
        ["phone"]
    );

    // Once it fails, then it does not: a second attempt puts it right, and without one the caller must.
    facade.call(update_of("sbx_flaky")).await.unwrap();
    let line = facade
        .logged(|line| line["message"] == "call" && line["attempts"] == 2)
        .await;
    assert_eq!(line["code"], "OK");
    let facade = Facade::start(&["--sandbox", "--retry-budget", "0"], &[]).await;
    let told = facade.refused(update_of("sbx_flaky")).await;
    told.is(Code::Unavailable, "UPSTREAM_UNAVAILABLE", "rejected");
    assert_eq!(told.retry_in().unwrap().as_secs(), 0);
    facade.call(update_of("sbx_flaky")).await.unwrap();
}

/// The sandbox as a program of its own.
struct Alone {
    process: Child,
    address: String,
    log: std::io::Lines<BufReader<std::process::ChildStderr>>,
}

impl Alone {
    fn start() -> Alone {
        let mut program = program("sandbox", &["--listen", "127.0.0.1:0"], &[]);
        let mut process = program.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let line: Value = serde_json::from_str(&log.next().unwrap().unwrap()).unwrap();
        Alone {
            process,
            address: line["http"].as_str().unwrap().to_owned(),
            log,
        }
    }

    /// Status and body of the answer to a PUT.
    async fn put(&self, target: &str, authorization: Option<&str>, body: &str) -> (u16, Value) {
        self.ask("PUT", target, authorization, body).await
    }

    async fn ask(
        &self,
        method: &str,
        target: &str,
        authorization: Option<&str>,
        body: &str,
    ) -> (u16, Value) {
        let authorization = authorization
            .map(|value| format!("authorization: {value}\r\n"))
            .unwrap_or_default();
        let mut stream = tokio::net::TcpStream::connect(&self.address).await.unwrap();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{authorization}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (
            head[9..12].parse().unwrap(),
            serde_json::from_str(body).unwrap(),
        )
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[tokio::test]
async fn alone_it_refuses_as_sqril_does() {
    let sqril = Alone::start();
    let right = Some("Basic c2FuZGJveC1jbGllbnQ6c2FuZGJveC1zZWNyZXQ=");
    let one = "/updateCustomer?customer_id=cus_sandbox";
    let cases = [
        (
            one,
            None,
            r#"{"email":"a@b"}"#,
            401,
            "AUTHENTICATION_REQUIRED",
        ),
        (
            one,
            Some("Basic eDp5"),
            r#"{"email":"a@b"}"#,
            401,
            "INVALID_CREDENTIALS",
        ),
        (
            "/updateCustomer",
            right,
            r#"{"email":"a@b"}"#,
            400,
            "MISSING_REQUIRED_FIELD",
        ),
        (
            "/updateCustomer?customer_id=",
            right,
            r#"{"email":"a@b"}"#,
            400,
            "MISSING_REQUIRED_FIELD",
        ),
        (
            "/updateCustomer?customer_id=x",
            right,
            r#"{"email":"a@b"}"#,
            404,
            "RESOURCE_NOT_FOUND",
        ),
        ("/elsewhere", right, "{}", 404, "RESOURCE_NOT_FOUND"),
        (one, right, "{}", 400, "MISSING_REQUIRED_FIELD"),
        (one, right, "[]", 400, "INVALID_REQUEST"),
        (one, right, r#"{"email":7}"#, 400, "INVALID_REQUEST"),
        (
            one,
            right,
            r#"{"occupation":"OCC12"}"#,
            400,
            "INVALID_REQUEST",
        ),
        (
            one,
            right,
            r#"{"occupation":"OCC01"}"#,
            400,
            "INVALID_REQUEST",
        ),
        (one, right, r#"{"ic_type":"KTP"}"#, 400, "INVALID_REQUEST"),
        (
            one,
            right,
            r#"{"name_first":"A","email":"a@b"}"#,
            400,
            "IMMUTABLE_FIELDS",
        ),
    ];
    for (target, authorization, body, status, code) in cases {
        let (told, answer) = sqril.put(target, authorization, body).await;
        assert_eq!(
            (told, answer["error_code"].as_str()),
            (status, Some(code)),
            "{target} {body}"
        );
    }
    let (_, answer) = sqril
        .put(one, right, r#"{"name_last":"B","name_first":"A"}"#)
        .await;
    assert_eq!(
        answer["details"]["immutable_fields"],
        value!(["name_first", "name_last"])
    );
    assert_eq!(sqril.ask("GET", one, right, "").await.0, 405);
    assert_eq!(
        sqril.put(one, right, &"x".repeat(64 * 1024 + 1)).await.0,
        413
    );

    // Percent-encoding and form encoding both reach the customer; nothing above changed her.
    for target in [one, "/updateCustomer?x=1&customer_id=cus%5Fsandbox"] {
        let (status, answer) = sqril.put(target, right, r#"{"phone":"+6281"}"#).await;
        assert_eq!((status, &answer["phone"]), (200, &value!("+6281")));
        assert_eq!(answer["email"], "siti.contoh@example.com");
    }
}

/// It says which fields it was asked for, and no value.
#[tokio::test]
async fn its_log_has_no_values() {
    let mut sqril = Alone::start();
    let right = Some("Basic c2FuZGJveC1jbGllbnQ6c2FuZGJveC1zZWNyZXQ=");
    let body = r#"{"email":"canary@example.com","canary":"canary"}"#;
    sqril
        .put("/updateCustomer?customer_id=sbx_canary", right, body)
        .await;
    let line = sqril.log.next().unwrap().unwrap();
    let parsed: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (parsed["fields"].as_str(), parsed["status"].as_u64()),
        (Some("email"), Some(404))
    );
    assert!(!line.contains("canary"), "{line}");
}
