//! Clients that are hurried, careless or hostile, in numbers. Afterwards the process serves at once, and holds no more than
//! before.

use std::{fs, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_prost::ProstCodec;

use crate::support::{Facade, PATIENCE, Reply, Upstream, a_profile, an_update, json};

/// What a process holds.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub kib: usize,
    files: usize,
    threads: usize,
}

pub fn held(facade: &Facade) -> Held {
    let status = fs::read_to_string(format!("/proc/{}/status", facade.pid())).unwrap();
    let number = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let files = fs::read_dir(format!("/proc/{}/fd", facade.pid()))
        .unwrap()
        .count();
    Held {
        kib: number("VmRSS:"),
        files,
        threads: number("Threads:"),
    }
}

/// Waits until the process holds no more files than before, and checks the rest.
async fn let_go(facade: &Facade, before: Held, what: &str) {
    facade.call(an_update()).await.expect("it serves at once");
    let closed = async {
        while held(facade).files > before.files + 4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, closed)
        .await
        .unwrap_or_else(|_| panic!("{what}: {:?}, before {before:?}", held(facade)));
    let after = held(facade);
    println!("{what}: before {before:?}, after {after:?}");
    assert!(
        after.kib < before.kib + 32 * 1024,
        "{what}: {after:?}, before {before:?}"
    );
    assert!(
        after.threads <= before.threads + 16,
        "{what}: {after:?}, before {before:?}"
    );
}

async fn facade() -> (Facade, Upstream) {
    let upstream = Upstream::start(Reply::Say(json(200, &a_profile().to_string()))).await;
    let facade = Facade::with(
        &upstream.url(),
        &["--pool-idle-timeout=100ms", "--max-connections=12000"],
    )
    .await;
    facade.call(an_update()).await.unwrap();
    (facade, upstream)
}

/// Callers that leave in the middle, many at a time: every PUT that was begun runs to its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_cancels() {
    let (facade, upstream) = facade().await;
    let before = held(&facade);
    let mut callers = JoinSet::new();
    for caller in 0..16_u64 {
        let mut client = facade.client().await;
        callers.spawn(async move {
            for n in 0..100 {
                let patience = Duration::from_micros(200 + 137 * ((caller * 100 + n) % 20));
                drop(timeout(patience, client.update_customer(an_update())).await);
            }
        });
    }
    callers.join_all().await;
    let_go(&facade, before, "1,600 calls, many cancelled").await;
    // As many lines as PUTs: what was sent was written down.
    let lines = || facade.log().matches("\"outcome\":\"applied\"").count();
    let all = async {
        while lines() < upstream.received().len() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, all).await.expect("a line for every PUT");
}

/// Ten thousand connections that do nothing.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections() {
    const MANY: usize = 10_000;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    )
    .unwrap();
    assert!(
        limit.maximum.is_none_or(|maximum| maximum > 12_000),
        "this test needs 12,000 open files"
    );
    let (facade, _upstream) = facade().await;
    let before = held(&facade);
    let mut after = Vec::new();
    for _ in 0..3 {
        let mut idle = Vec::new();
        for _ in 0..MANY {
            idle.push(TcpStream::connect(facade.grpc).await.unwrap());
        }
        facade
            .call(an_update())
            .await
            .expect("it serves beside them");
        let each = held(&facade).kib.saturating_sub(before.kib) as f64 / MANY as f64;
        println!("{MANY} idle connections: {each:.1} KiB each");
        drop(idle);
        let_go(&facade, before, "idle connections").await;
        after.push(held(&facade).kib);
    }
    // The allocator keeps what it once had, and uses it again: nothing is lost.
    assert!(after[2] < after[0] + 8 * 1024, "{after:?}");
}

/// Messages that are too long, or no messages; methods that nobody has.
#[tokio::test]
async fn malformed_calls() {
    let (facade, upstream) = facade().await;
    let before = held(&facade);
    let sent = upstream.received().len();
    for _ in 0..50 {
        let address = Some("x".repeat(65 * 1024));
        let long = facade
            .call(sqril_grpc::pb::UpdateCustomerRequest {
                address,
                ..an_update()
            })
            .await;
        assert_eq!(long.unwrap_err().code(), Code::OutOfRange);
        let mut health = HealthClient::new(facade.channel().await);
        let service = "x".repeat(65 * 1024);
        let long = health.check(HealthCheckRequest { service }).await;
        assert_eq!(long.unwrap_err().code(), Code::OutOfRange);
        let unknown = raw(&facade, "/sqril.customer.v1.CustomerService/DeleteCustomer").await;
        assert_eq!(unknown.code(), Code::Unimplemented);
        let elsewhere = raw(&facade, "/no.such.Service/Method").await;
        assert_eq!(elsewhere.code(), Code::Unimplemented);
        // A Timestamp is no UpdateCustomerRequest: a number where a text belongs.
        let malformed = raw(&facade, "/sqril.customer.v1.CustomerService/UpdateCustomer").await;
        assert_eq!(malformed.code(), Code::Internal);
    }
    assert_eq!(upstream.received().len(), sent);
    let_go(&facade, before, "malformed calls").await;
}

async fn raw(facade: &Facade, path: &'static str) -> Status {
    let mut grpc = Grpc::new(facade.channel().await);
    grpc.ready().await.unwrap();
    let codec: ProstCodec<prost_types::Timestamp, ()> = ProstCodec::default();
    let message = Request::new(prost_types::Timestamp {
        seconds: 1,
        nanos: 1,
    });
    grpc.unary(message, PathAndQuery::from_static(path), codec)
        .await
        .unwrap_err()
}

/// Watches that never end, and then their clients do.
#[tokio::test]
async fn watches() {
    let (facade, _upstream) = facade().await;
    let before = held(&facade);
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut client = HealthClient::new(facade.channel().await);
        for service in ["", "sqril.upstream", "nobody"].repeat(50) {
            let request = HealthCheckRequest {
                service: service.to_owned(),
            };
            open.push(client.watch(request).await.unwrap().into_inner());
        }
    }
    facade
        .call(an_update())
        .await
        .expect("it serves beside them");
    drop(open);
    let_go(&facade, before, "3,000 watches").await;
}
