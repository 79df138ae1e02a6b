//! Twice the calls that the façade can serve, for a while. Run by `tests/soak/run`; figures are held against each other
//! within one run, never against a clock.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{io::AsyncWriteExt, net::TcpListener, task::JoinSet, time::sleep};
use tonic::Code;

use crate::{
    clients::held,
    support::{Facade, Told, a_profile, an_update, json, read_request},
};

/// How long the upstream thinks, and how many calls are let through: so many a second can be served.
const THINKS: Duration = Duration::from_millis(20);
const IN_FLIGHT: u32 = 16;
const PER_SECOND: u32 = IN_FLIGHT * 1000 / 20;
/// A batch of calls is started so often.
const TICK: Duration = Duration::from_millis(5);
const SLICE: Duration = Duration::from_secs(5);

/// What happened in a slice of time: the times of those that went well, and how many were refused.
#[derive(Default)]
struct Slice {
    well: Vec<Duration>,
    refused: usize,
}

impl Slice {
    /// The time that so many in a hundred stayed below.
    fn percentile(&mut self, percent: usize) -> Duration {
        self.well.sort_unstable();
        self.well[(self.well.len() * percent / 100).min(self.well.len() - 1)]
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute; run by tests/soak/run"]
async fn soak() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(60, |seconds| seconds.parse().unwrap());
    let url = thinking_upstream().await;
    let in_flight = format!("--max-in-flight={IN_FLIGHT}");
    // A queue of a quarter, as by default.
    let facade = Facade::with(&url, &[&in_flight, "--max-queued=4"]).await;

    let mut quiet = run(&facade, PER_SECOND / 8, SLICE).await;
    let unloaded = quiet.percentile(99);
    println!(
        "unloaded: {} calls, p50 {:?}, p99 {unloaded:?}",
        quiet.well.len(),
        quiet.percentile(50)
    );

    let mut slices = Vec::new();
    for n in 0..(seconds / SLICE.as_secs()).max(2) {
        let mut slice = run(&facade, 2 * PER_SECOND, SLICE).await;
        let kib = held(&facade).kib;
        println!(
            "slice {n}: {} calls/s well, {} calls/s refused, p50 {:?}, p99 {:?}, {kib} KiB",
            slice.well.len() as u64 / SLICE.as_secs(),
            slice.refused as u64 / SLICE.as_secs(),
            slice.percentile(50),
            slice.percentile(99),
        );
        slices.push((slice.well.len(), slice.percentile(99), kib));
    }
    let (first, last) = (slices[0], slices[slices.len() - 1]);
    assert!(last.0 * 10 > first.0 * 8, "throughput sinks");
    assert!(last.2 < first.2 + 8 * 1024, "memory grows");
    let mut p99: Vec<_> = slices.iter().map(|slice| slice.1).collect();
    p99.sort_unstable();
    let loaded = p99[(p99.len() - 1) / 2];
    println!(
        "p99 of admitted calls to unloaded: {:.2}",
        loaded.as_secs_f64() / unloaded.as_secs_f64()
    );
    assert!(loaded < 2 * unloaded, "admitted calls become slow");
}

/// Starts so many calls a second, whatever becomes of those before.
async fn run(facade: &Facade, per_second: u32, time: Duration) -> Slice {
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(facade.client().await);
    }
    let slice = Arc::new(Mutex::new(Slice::default()));
    let mut calls = JoinSet::new();
    let (began, mut started) = (Instant::now(), 0);
    while began.elapsed() < time {
        let due = began.elapsed().as_secs_f64() * f64::from(per_second);
        while f64::from(started) < due {
            let mut client = clients[started as usize % clients.len()].clone();
            let slice = Arc::clone(&slice);
            calls.spawn(async move {
                let began = Instant::now();
                let result = client.update_customer(an_update()).await;
                let took = began.elapsed();
                match result {
                    Ok(_) => slice.lock().unwrap().well.push(took),
                    Err(status) => {
                        Told::of(&status).is(Code::ResourceExhausted, "OVERLOADED", "not_sent");
                        slice.lock().unwrap().refused += 1;
                    }
                }
            });
            started += 1;
        }
        sleep(TICK).await;
        while let Some(call) = calls.try_join_next() {
            call.unwrap();
        }
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
    Arc::into_inner(slice).unwrap().into_inner().unwrap()
}

/// An upstream that thinks for a while and remembers nothing.
async fn thinking_upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = json(200, &a_profile().to_string());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                while read_request(&mut stream).await.is_some() {
                    sleep(THINKS).await;
                    if stream.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}
