//! The log: a line a call, whoever reads it.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use serde_json::Value;

use crate::{
    health::http_get,
    support::{Facade, PATIENCE, an_update, program, with},
};

/// Everything that a call's line says, and nothing else.
#[tokio::test]
async fn the_line_of_a_call() {
    let facade = Facade::sandbox().await;
    let update = sqril_grpc::pb::UpdateCustomerRequest {
        customer_id: "cus_sandbox".into(),
        email: Some("a@example.com".into()),
        ..an_update()
    };
    facade
        .call(with(update, &[("x-request-id", "one")]))
        .await
        .unwrap();
    let line = facade.logged(|line| line["request_id"] == "one").await;
    let mut names: Vec<_> = line
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "attempts",
            "caller_gone",
            "code",
            "customer",
            "duration_ms",
            "fields",
            "level",
            "message",
            "method",
            "outcome",
            "queued_ms",
            "request_id",
            "target",
            "timestamp",
            "upstream_ms",
            "upstream_status",
            "warnings",
        ]
    );
    let page = include_str!("../../OBSERVABILITY.md");
    for name in names
        .iter()
        .filter(|name| !["level", "message", "target", "timestamp"].contains(name))
    {
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
    assert_eq!(line["fields"], "email,nationality");
    assert_eq!(line["upstream_status"], 200);
    let time = |name: &str| line[name].as_f64().unwrap();
    assert!(
        time("upstream_ms") > 0.0 && time("duration_ms") >= time("upstream_ms"),
        "{line}"
    );
}

/// A program that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Nobody reads: calls go on, lines are lost, and that is told as soon as somebody reads again.
#[tokio::test]
async fn log_buffer() {
    let ports = ["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"];
    let flags = ["--sandbox", "--log-buffer=10", "--drain-delay=0s"];
    let mut process = program("serve", &[&ports[..], &flags].concat(), &[])
        .stderr(Stdio::piped())
        .spawn()
        .map(Killed)
        .unwrap();
    let mut lines = BufReader::new(process.0.stderr.take().unwrap()).lines();
    let mut next = move || -> Value {
        let line = lines.next().expect("a line").unwrap();
        serde_json::from_str(&line).unwrap()
    };
    let serving = next();
    assert_eq!(serving["message"], "serving");
    let address = |name: &str| serving[name].as_str().unwrap().parse().unwrap();
    let (grpc, admin): (std::net::SocketAddr, std::net::SocketAddr) =
        (address("grpc"), address("admin"));
    let channel = tonic::transport::Channel::from_shared(format!("http://{grpc}")).unwrap();
    let mut client = sqril_grpc::pb::customer_service_client::CustomerServiceClient::new(
        channel.connect().await.unwrap(),
    );
    // A pipe holds 64 KiB, the writer as much again, and the queue ten lines of some 400 bytes.
    for _ in 0..600 {
        let call = client.update_customer(an_update());
        assert!(
            tokio::time::timeout(PATIENCE, call).await.unwrap().is_err(),
            "no such customer"
        );
    }
    let lost = async || {
        let said = http_get(admin, "/metrics").await;
        let line = said
            .lines()
            .find(|line| line.starts_with("sqril_log_lines_lost_total "));
        line.unwrap()
            .rsplit_once(' ')
            .unwrap()
            .1
            .parse::<u64>()
            .unwrap()
    };
    let some = async {
        loop {
            if let lost @ 1.. = lost().await {
                return lost;
            }
        }
    };
    let lost = tokio::time::timeout(PATIENCE, some)
        .await
        .expect("lines are lost");
    let told = tokio::task::spawn_blocking(move || {
        let mut calls = 0;
        loop {
            let line = next();
            calls += u64::from(line["message"] == "call");
            if line["message"]
                .as_str()
                .unwrap()
                .starts_with("lines of the log were lost")
            {
                return (calls, line["lines"].as_u64().unwrap());
            }
        }
    });
    // What tells of it may be lost too, as long as nobody reads; so it is told again by the next loss.
    let (calls, lines) = tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
    assert!(
        (1..600).contains(&calls) && lines >= lost,
        "{calls} {lines} {lost}"
    );
}

/// The other form, for people.
#[tokio::test]
async fn for_people() {
    let ports = ["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"];
    let flags = [&ports[..], &["--sandbox", "--log-format=text"]].concat();
    let process = program("serve", &flags, &[]).stderr(Stdio::piped()).spawn();
    let mut process = Killed(process.unwrap());
    let mut lines = BufReader::new(process.0.stderr.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    assert!(
        line.contains(" INFO ") && line.contains("serving") && !line.starts_with('{'),
        "{line}"
    );
}
