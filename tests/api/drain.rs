//! The end, under load and against clients that will not go.

use std::{
    collections::BTreeSet,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use sqril_grpc::pb::UpdateCustomerRequest;
use tokio::{net::TcpStream, task::JoinSet};
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;

use crate::{
    certificates::{SHOP, Tls},
    limits::Raw,
    support::{Facade, Reply, Upstream, a_profile, an_update, json},
};

/// Fifty times, half of them over TLS: each update that was applied was told OK to its caller, and every other caller was told UNAVAILABLE.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_fifty_times() {
    let tls = Tls::new();
    let shop = tls.theirs.caller(SHOP);
    for round in 0..50 {
        let encrypted = round % 2 == 1;
        let upstream = Upstream::start(Reply::Say(json(200, &a_profile().to_string()))).await;
        let mut facade = match encrypted {
            true => tls.facade(&upstream.url(), &[]).await,
            false => Facade::before(&upstream.url()).await,
        };
        let answered = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        for caller in 0..8 {
            let mut client = match encrypted {
                true => tls.client(&facade, Some(&shop)).await,
                false => facade.client().await,
            };
            let answered = Arc::clone(&answered);
            callers.spawn(async move {
                let mut told_ok = Vec::new();
                for n in 0.. {
                    let address = format!("update {caller}-{n}");
                    let request = UpdateCustomerRequest {
                        address: Some(address.clone()),
                        ..an_update()
                    };
                    match client.update_customer(request).await {
                        Ok(_) => told_ok.push(address),
                        Err(status) => return (told_ok, status),
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                unreachable!()
            });
        }
        // At another point of the load each time.
        while answered.load(Ordering::Relaxed) < 20 + 7 * round {
            tokio::task::yield_now().await;
        }
        facade.signal("TERM");
        let mut told_ok = BTreeSet::new();
        for (ok, status) in callers.join_all().await {
            told_ok.extend(ok);
            let reason = status.get_details_error_info().map(|info| info.reason);
            match status.code() {
                Code::Unavailable => assert!(reason.is_none_or(|reason| reason == "DRAINING")),
                // What tonic's client calls a request that it never put on the wire, and one that GOAWAY says was not
                // looked at.
                Code::Cancelled => assert_eq!(status.message(), "operation was canceled"),
                Code::Unknown => assert!(was_not_looked_at(&status), "{status:?}"),
                other => panic!("{other:?}: {status:?}"),
            }
        }
        assert_eq!(facade.ended().await.code(), Some(0));
        assert!(facade.log().contains("\"drained\""), "{}", facade.log());
        let applied = upstream.received().into_iter().map(|put| {
            let body: serde_json::Value = serde_json::from_slice(&put.body).unwrap();
            body["address"].as_str().unwrap().to_owned()
        });
        assert_eq!(applied.collect::<BTreeSet<_>>(), told_ok);
    }
}

fn was_not_looked_at(status: &Status) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = status.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_go_away() && error.is_remote();
        }
        cause = error.source();
    }
    false
}

/// While those who route have not seen it yet, calls are still welcome.
#[tokio::test]
async fn drain_delay() {
    let upstream = Upstream::start(Reply::Say(json(200, "{}"))).await;
    let flags = [
        "--upstream-url",
        &upstream.url(),
        "--client-id",
        "c",
        "--drain-delay",
        "1s",
    ];
    let mut facade = Facade::start(&flags, &[("SQRIL_GRPC_CLIENT_SECRET", "s")]).await;
    facade.signal("TERM");
    facade.logged(|line| line["message"] == "draining").await;
    assert_eq!(crate::health::status(&facade, "").await, "NOT_SERVING");
    facade.call(an_update()).await.unwrap();
    assert_eq!(facade.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let upstream = Upstream::start(Reply::SayAndStall(vec![])).await;
    let mut facade = Facade::before(&upstream.url()).await;
    let mut client = facade.client().await;
    let call = tokio::spawn(async move { client.update_customer(an_update()).await });
    upstream.asked().await;
    facade.signal("TERM");
    facade.logged(|line| line["message"] == "draining").await;
    facade.signal("INT");
    assert_eq!(facade.ended().await.code(), Some(0));
    assert!(facade.log().contains("second signal"));
    call.await.unwrap().unwrap_err();
}

/// Silent sockets, open Watches, and a client that does not answer: none of them holds the process for long.
#[tokio::test]
async fn clients_that_will_not_go() {
    let mut facade = Facade::start(&["--sandbox", "--drain-timeout=10s"], &[]).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(facade.grpc).await.unwrap());
    }
    let mut health = HealthClient::new(facade.channel().await);
    let mut watches = Vec::new();
    for service in ["", "nobody"].repeat(50) {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        watches.push(health.watch(request).await.unwrap().into_inner());
    }
    facade.signal("TERM");
    for mut watch in watches {
        while watch.message().await.unwrap().is_some() {}
    }
    drop(health);
    assert_eq!(facade.ended().await.code(), Some(0));
    assert!(facade.log().contains("\"drained\""), "{}", facade.log());

    let mut facade = Facade::start(&["--sandbox", "--drain-timeout=500ms"], &[]).await;
    let mut deaf = Raw::connect(&facade).await;
    deaf.open(1).await.unwrap();
    facade.signal("TERM");
    assert_eq!(facade.ended().await.code(), Some(0));
    assert!(facade.log().contains("drain timeout"), "{}", facade.log());
    drop(deaf);
}
