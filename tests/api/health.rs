//! grpc.health.v1 and the probe, as meshes and people use them.

use std::time::Duration;

use sqril_grpc::grpc::health::{Target, probe};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    measured::Scrape,
    support::{Facade, an_update, program},
};

const NAMES: [&str; 3] = ["", "sqril.customer.v1.CustomerService", "sqril.upstream"];

fn ask(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

/// What a health check of this name is told.
pub async fn status(facade: &Facade, service: &str) -> &'static str {
    let answer = client(facade).await.check(ask(service)).await.unwrap();
    answer.into_inner().status().as_str_name()
}

async fn client(facade: &Facade) -> HealthClient<Channel> {
    HealthClient::new(facade.channel().await)
}

#[tokio::test]
async fn check() {
    let facade = Facade::sandbox().await;
    let mut client = client(&facade).await;
    for name in NAMES {
        assert_eq!(
            client.check(ask(name)).await.unwrap().into_inner().status(),
            ServingStatus::Serving
        );
    }
    assert_eq!(
        client
            .check(ask("no.such.Service"))
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
}

/// A Watch says how it is, then that it is over, and ends; even on a name that nobody knows.
#[tokio::test]
async fn watch() {
    let mut facade = Facade::sandbox().await;
    let mut client = client(&facade).await;
    let mut known = client
        .watch(ask("sqril.customer.v1.CustomerService"))
        .await
        .unwrap()
        .into_inner();
    let mut unknown = client
        .watch(ask("no.such.Service"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        known.message().await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );
    assert_eq!(
        unknown.message().await.unwrap().unwrap().status(),
        ServingStatus::ServiceUnknown
    );

    facade.signal("TERM");
    assert_eq!(
        known.next().await.unwrap().unwrap().status(),
        ServingStatus::NotServing
    );
    assert!(known.next().await.is_none());
    assert!(unknown.next().await.is_none());
    assert_eq!(facade.ended().await.code(), Some(0));
}

/// An upstream that is down is no reason to take the façade out of a mesh.
#[tokio::test]
async fn readiness_does_not_follow_the_upstream() {
    let facade = Facade::before("http://127.0.0.1:1").await;
    facade.refused(an_update()).await;
    let mut client = client(&facade).await;
    assert_eq!(
        client.check(ask("")).await.unwrap().into_inner().status(),
        ServingStatus::Serving
    );
}

#[tokio::test]
async fn the_probe() {
    let facade = Facade::sandbox().await;
    let run = |addr: &str, service: &str| {
        let output = program("health", &["--addr", addr, "--service", service], &[])
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let addr = facade.grpc.to_string();
    for name in NAMES {
        assert_eq!(run(&addr, name), (Some(0), "SERVING\n".to_owned()));
    }
    let (code, said) = run(&addr, "no.such.Service");
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    let (code, said) = run("127.0.0.1:1", "");
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    assert_eq!(run("nonsense", "").0, Some(64));
}

#[tokio::test]
async fn the_probe_does_not_wait_for_ever() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let said = probe(
        &Target::plaintext(silent.local_addr().unwrap()),
        String::new(),
        Duration::from_millis(200),
    )
    .await
    .unwrap_err();
    assert!(said.contains("in time"), "{said}");
}

#[tokio::test]
async fn the_admin_port() {
    let mut facade = Facade::start(&["--sandbox"], &[]).await;
    let get = async |path: &str| http_get(facade.admin, path).await;
    assert!(get("/livez").await.starts_with("HTTP/1.1 200 "));
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200 "));
    assert!(get("/").await.starts_with("HTTP/1.1 404 "));
    assert!(get("/debug").await.starts_with("HTTP/1.1 404 "));

    // A call under way keeps the process, so there is time to look.
    let mut client = facade.client().await;
    let stalled = sqril_grpc::pb::UpdateCustomerRequest {
        customer_id: "sbx_stall".into(),
        ..an_update()
    };
    let call = tokio::spawn(async move { client.update_customer(stalled).await });
    facade.logged(|line| line["scenario"] == "sbx_stall").await;
    facade.signal("TERM");
    facade.logged(|line| line["message"] == "draining").await;
    let ready = http_get(facade.admin, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
    assert!(
        ready.ends_with("{\"ready\":false,\"reasons\":[\"draining\"],\"troubles\":{}}"),
        "{ready}"
    );
    let scrape = Scrape::of(&facade).await;
    assert_eq!(
        (scrape.value("sqril_ready"), scrape.value("sqril_draining")),
        (0.0, 1.0)
    );
    assert!(
        http_get(facade.admin, "/livez")
            .await
            .starts_with("HTTP/1.1 200 ")
    );
    call.abort();
    facade.signal("KILL");
    facade.ended().await;
}

pub async fn http_get(address: std::net::SocketAddr, path: &str) -> String {
    http_get_as(address, path, "*/*").await
}

pub async fn http_get_as(address: std::net::SocketAddr, path: &str, accept: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
