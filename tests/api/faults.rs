//! An upstream that fails in every way there is, under many calls at once. Its own ledger of applied updates is held
//! against what the callers were told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json as value;
use sqril_grpc::pb::UpdateCustomerRequest;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::sleep,
};
use tonic::Code;

use crate::{
    measured::Scrape,
    no_answer::TlsUpstream,
    support::{Facade, JSON, Received, Told, an_update, http, json, read_request, sqril},
};

/// What the upstream does with one request.
#[derive(Clone, Debug)]
enum Fault {
    /// Applies it and answers so, whole or not, then keeps the connection, closes or resets it.
    Apply(Vec<u8>, Then),
    /// Applies it and answers a byte at a time.
    Drip(Vec<u8>),
    /// Applies it and then sends this much of a body that never ends.
    Flood(Vec<u8>, usize),
    /// Does not apply it, and says so.
    Refuse(Vec<u8>),
    /// Says so and closes before it has read the body.
    RefuseUnread(Vec<u8>),
}

#[derive(Clone, Copy, Debug)]
enum Then {
    Stay,
    Close,
    Reset,
    Stall,
}

/// How often each update was applied, by its address.
type Ledger = Arc<Mutex<BTreeMap<String, usize>>>;

/// An upstream that does with its n-th request what the script says.
async fn upstream(script: impl Fn(usize) -> Fault + Send + Sync + 'static) -> (String, Ledger) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let ledger = Ledger::default();
    let (script, count) = (Arc::new(script), Arc::new(AtomicUsize::new(0)));
    tokio::spawn({
        let ledger = Arc::clone(&ledger);
        async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (script, count, ledger) =
                    (Arc::clone(&script), Arc::clone(&count), Arc::clone(&ledger));
                tokio::spawn(async move {
                    while serve(&mut stream, &*script, &count, &ledger)
                        .await
                        .is_some()
                    {}
                });
            }
        }
    });
    (url, ledger)
}

/// One request. `None` when the connection is over.
async fn serve(
    stream: &mut TcpStream,
    script: &impl Fn(usize) -> Fault,
    count: &AtomicUsize,
    ledger: &Ledger,
) -> Option<()> {
    // Wait for the request to begin before taking a number, or idle connections would use them up.
    stream.peek(&mut [0]).await.ok().filter(|n| *n > 0)?;
    let fault = script(count.fetch_add(1, Ordering::Relaxed));
    if let Fault::RefuseUnread(answer) = fault {
        stream.write_all(&answer).await.ok()?;
        return None;
    }
    let request = read_request(stream).await?;
    match fault {
        Fault::Refuse(answer) => stream.write_all(&answer).await.ok(),
        Fault::Apply(answer, then) => {
            apply(ledger, &request);
            stream.write_all(&answer).await.ok()?;
            match then {
                Then::Stay => Some(()),
                Then::Close => None,
                Then::Stall => {
                    drop(stream.read(&mut [0]).await);
                    None
                }
                Then::Reset => {
                    drop(socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO)));
                    None
                }
            }
        }
        Fault::Drip(answer) => {
            apply(ledger, &request);
            for byte in answer {
                stream.write_all(&[byte]).await.ok()?;
                tokio::task::yield_now().await;
            }
            Some(())
        }
        Fault::Flood(head, bytes) => {
            apply(ledger, &request);
            stream.write_all(&head).await.ok()?;
            let chunk = vec![b'x'; 64 * 1024];
            for _ in 0..bytes / chunk.len() {
                stream.write_all(&chunk).await.ok()?;
            }
            None
        }
        Fault::RefuseUnread(_) => None,
    }
}

fn apply(ledger: &Ledger, request: &Received) {
    let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    let update = body["address"].as_str().unwrap().to_owned();
    *ledger.lock().unwrap().entry(update).or_default() += 1;
}

fn update(n: usize) -> UpdateCustomerRequest {
    UpdateCustomerRequest {
        address: Some(format!("update {n}")),
        ..an_update()
    }
}

fn profile() -> Vec<u8> {
    json(
        200,
        &value!({"customer_id": "cus_1", "nationality": "PE"}).to_string(),
    )
}

/// What a caller was told: `None` for OK.
type Answer = (usize, Option<Told>, Duration);

/// Makes so many calls, at most 64 at one time.
async fn storm(facade: &Facade, calls: usize) -> Vec<Answer> {
    let client = facade.client().await;
    let (mut running, room) = (JoinSet::new(), Arc::new(Semaphore::new(64)));
    for n in 0..calls {
        let mut client = client.clone();
        let permit = Arc::clone(&room).acquire_owned().await.unwrap();
        running.spawn(async move {
            let began = Instant::now();
            let result = client.update_customer(update(n)).await;
            drop(permit);
            (
                n,
                result.err().map(|status| Told::of(&status)),
                began.elapsed(),
            )
        });
    }
    running.join_all().await
}

/// Holds what callers were told against the ledger: the promise that everything else is for.
fn agrees(answers: &[Answer], ledger: &Ledger) {
    let ledger = ledger.lock().unwrap();
    for (n, told, _) in answers {
        let applied = ledger
            .get(&format!("update {n}"))
            .copied()
            .unwrap_or_default();
        let outcome = told.as_ref().map_or("ok", Told::outcome);
        match outcome {
            "ok" | "applied" => assert_eq!(applied, 1, "update {n}: {outcome}"),
            "not_sent" | "rejected" => assert_eq!(applied, 0, "update {n}: {outcome}"),
            "unknown" => assert!(applied <= 1, "update {n}: applied {applied} times"),
            other => panic!("{other}"),
        }
        if let Some(told) = told {
            told.keeps_the_rules();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_faults() {
    let after = |status, wait| {
        http(
            status,
            &[JSON, ("retry-after", wait)],
            sqril("X1").as_bytes(),
        )
    };
    let (later, busy) = (after(503, "0"), after(429, "0"));
    let (url, ledger) = upstream(move |n| match n % 12 {
        0 => Fault::Apply(vec![], Then::Reset),
        1 => Fault::Apply(vec![], Then::Close),
        2 => Fault::Apply(vec![], Then::Stall),
        3 => Fault::Apply(profile()[..90].to_vec(), Then::Close),
        4 => Fault::Apply(profile()[..90].to_vec(), Then::Stall),
        5 => Fault::Apply(profile(), Then::Close),
        6 => Fault::Drip(profile()),
        7 => Fault::Refuse(later.clone()),
        8 => Fault::Refuse(busy.clone()),
        9 => Fault::RefuseUnread(http(413, &[("connection", "close")], b"")),
        10 => Fault::Apply(json(500, &sqril("X1")), Then::Stay),
        _ => Fault::Apply(profile(), Then::Stay),
    })
    .await;
    let flags = [
        "--attempt-timeout=500ms",
        "--connect-timeout=400ms",
        "--max-deadline=3s",
        "--retry-budget=1",
        "--breaker=off",
    ];
    let facade = Facade::with(&url, &flags).await;
    let answers = storm(&facade, 600).await;
    agrees(&answers, &ledger);
    assert!(
        answers
            .iter()
            .all(|(.., took)| *took < Duration::from_secs(4))
    );
    // Every kind of outcome was seen, so the ledger had something to disagree with.
    for outcome in ["unknown", "applied", "rejected"] {
        assert!(
            answers
                .iter()
                .flat_map(|(_, told, _)| told)
                .any(|told| told.outcome() == outcome),
            "{outcome}"
        );
    }
    assert!(answers.iter().any(|(_, told, _)| told.is_none()));
}

/// Cut short at each of its bytes, an answer is either none yet, or one to an applied update.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_cut_at_each_byte() {
    let whole = profile();
    let head = whole
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap()
        + 4;
    for then in [Then::Close, Then::Reset] {
        let answer = whole.clone();
        let (url, ledger) = upstream(move |n| Fault::Apply(answer[..n].to_vec(), then)).await;
        let facade = Facade::with(&url, &["--breaker=off", "--retry-budget=0"]).await;
        let mut client = facade.client().await;
        let mut answers = Vec::new();
        // One after another, so that the n-th call meets the n-th cut.
        for n in 0..whole.len() {
            let status = client.update_customer(update(n)).await.unwrap_err();
            let told = Told::of(&status);
            if n < head {
                told.is(Code::Unknown, "UPSTREAM_CONNECTION_LOST", "unknown");
            } else {
                told.is(Code::DataLoss, "UPSTREAM_RESPONSE_UNREADABLE", "applied");
            }
            answers.push((n, Some(told), Duration::ZERO));
        }
        agrees(&answers, &ledger);
    }
}

/// Endless headers and a body of a gigabyte are given up early; memory does not follow them.
#[tokio::test(flavor = "multi_thread")]
async fn floods() {
    const GIGABYTE: usize = 1 << 30;
    let body = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1073741824\r\n\r\n{\"a\":\"";
    let chunked = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n40000000\r\n";
    let error =
        b"HTTP/1.1 500 Oh\r\ncontent-type: application/json\r\ncontent-length: 1073741824\r\n\r\n";
    let cases: [(&[u8], Code, &str, &str); 4] = [
        (
            b"HTTP/1.1 200 OK\r\nx: ",
            Code::Unknown,
            "UPSTREAM_CONNECTION_LOST",
            "unknown",
        ),
        (
            body,
            Code::DataLoss,
            "UPSTREAM_RESPONSE_UNREADABLE",
            "applied",
        ),
        (
            chunked,
            Code::DataLoss,
            "UPSTREAM_RESPONSE_UNREADABLE",
            "applied",
        ),
        (error, Code::Unknown, "UPSTREAM_ERROR", "unknown"),
    ];
    for (head, code, reason, outcome) in cases {
        let head = head.to_vec();
        let (url, ledger) = upstream(move |_| Fault::Flood(head.clone(), GIGABYTE)).await;
        let facade = Facade::with(&url, &["--breaker=off"]).await;
        let answers = storm(&facade, 100).await;
        agrees(&answers, &ledger);
        for (_, told, _) in &answers {
            told.as_ref().unwrap().is(code, reason, outcome);
        }
        let peak = peak_kib(&facade);
        assert!(peak < 200 * 1024, "{reason}: {peak} KiB at most");
    }
}

/// The most memory that the process ever had, in KiB.
fn peak_kib(facade: &Facade) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", facade.pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Names that cannot be resolved, ports that nobody listens on, and peers without TLS, for many calls at once.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_there() {
    let garbage = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let no_tls = format!("https://{}", garbage.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = garbage.accept().await {
            drop(stream.write_all(b"SSH-2.0-x\r\n").await);
        }
    });
    for (url, reason) in [
        ("https://nowhere.invalid", "UPSTREAM_UNREACHABLE"),
        ("http://127.0.0.1:1", "UPSTREAM_UNREACHABLE"),
        (&no_tls, "UPSTREAM_TLS_FAILED"),
    ] {
        let facade = Facade::with(url, &["--breaker=off", "--max-deadline=10s"]).await;
        let answers = storm(&facade, 100).await;
        for (_, told, took) in &answers {
            told.as_ref()
                .unwrap()
                .is(Code::Unavailable, reason, "not_sent");
            assert!(*took < Duration::from_secs(11));
        }
        // One second attempt for ten calls, and one a second; not one for each.
        let attempts: usize = answers
            .iter()
            .map(|(_, told, _)| {
                told.as_ref().unwrap().metadata["attempts"]
                    .parse::<usize>()
                    .unwrap()
            })
            .sum();
        assert!(
            attempts <= 100 + 100 / 10 + 12,
            "{attempts} attempts for 100 calls"
        );
    }
}

/// An upstream that closes each connection after each answer, under many calls: some find out too late, none is told a lie.
#[tokio::test(flavor = "multi_thread")]
async fn connections_closed_under_us() {
    let (url, ledger) = upstream(|_| Fault::Apply(profile(), Then::Close)).await;
    let facade = Facade::with(&url, &["--breaker=off"]).await;
    let answers = storm(&facade, 500).await;
    agrees(&answers, &ledger);
    let well = answers.iter().filter(|(_, told, _)| told.is_none()).count();
    assert!(well > 250, "only {well} of 500 went well");
}

/// An HTTP/2 upstream that says GOAWAY in the middle of many calls: what it had looked at may have been applied, what came
/// later was not, and is sent again on another connection.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_goaway() {
    let tls = TlsUpstream::start(&[b"h2"]).await;
    let facade = tls.facade(&tls.url(), &[]).await;
    let ledger = Ledger::default();
    tokio::spawn({
        let ledger = Arc::clone(&ledger);
        async move {
            loop {
                let stream = tls.accept().await;
                tokio::spawn(looks_at_five(stream, Arc::clone(&ledger)));
            }
        }
    });
    let answers = storm(&facade, 100).await;
    agrees(&answers, &ledger);
    // The last few, too few for a GOAWAY, wait until their time is up.
    for (_, told, _) in &answers {
        let told = told.as_ref().unwrap();
        assert!(matches!(
            told.reason.as_str(),
            "UPSTREAM_CONNECTION_LOST"
                | "UPSTREAM_TIMEOUT"
                | "UPSTREAM_UNREACHABLE"
                | "CIRCUIT_OPEN"
        ));
    }
    let outcomes: BTreeSet<_> = answers
        .iter()
        .flat_map(|(_, told, _)| told)
        .map(Told::outcome)
        .collect();
    assert_eq!(
        outcomes.into_iter().collect::<Vec<_>>(),
        ["not_sent", "unknown"]
    );
}

/// Applies five updates, says GOAWAY for all that come after, and closes without an answer.
async fn looks_at_five(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    ledger: Ledger,
) -> std::io::Result<()> {
    stream.read_exact(&mut [0; 24]).await?;
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
    // Bodies may come in another order than their streams began: the highest that was applied is the last looked at.
    let (mut looked_at, mut last) = (0, 0);
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await?;
        // DATA that ends its stream: small updates come in one frame.
        if head[3] != 0 || head[4] & 1 == 0 || payload.is_empty() {
            continue;
        }
        apply(
            &ledger,
            &Received {
                head: String::new(),
                body: payload,
            },
        );
        looked_at += 1;
        last = last.max(u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
        if looked_at == 5 {
            let goaway = [
                &[0, 0, 8, 7, 0, 0, 0, 0, 0][..],
                &last.to_be_bytes(),
                &[0, 0, 0, 0],
            ]
            .concat();
            stream.write_all(&goaway).await?;
            return stream.shutdown().await;
        }
    }
}

/// Row 8: while most of what is sent fails nothing is sent; who routes is told under its own name, readiness stays; and a
/// probe finds out when it is over.
#[tokio::test(flavor = "multi_thread")]
async fn row_08_circuit_open() {
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (url, ledger) = upstream({
        let broken = Arc::clone(&broken);
        move |_| match broken.load(Ordering::Relaxed) {
            true => Fault::Apply(vec![], Then::Reset),
            false => Fault::Apply(profile(), Then::Stay),
        }
    })
    .await;
    let facade = Facade::with(&url, &[]).await;
    let answers = storm(&facade, 200).await;
    agrees(&answers, &ledger);
    let open = answers
        .iter()
        .flat_map(|(_, told, _)| told)
        .find(|told| told.reason == "CIRCUIT_OPEN")
        .unwrap();
    open.is(Code::Unavailable, "CIRCUIT_OPEN", "not_sent");
    assert!(open.retry_in().unwrap() <= Duration::from_millis(7500));
    assert!(!open.metadata.contains_key("attempts"));
    // 20 calls open it, and no more come through than were under way.
    let sent = ledger.lock().unwrap().len();
    assert!((20..20 + 64).contains(&sent), "{sent} sent");

    facade
        .logged(|line| line["message"] == "circuit breaker" && line["state"] == "open")
        .await;
    assert_eq!(
        crate::health::status(&facade, "sqril.upstream").await,
        "NOT_SERVING"
    );
    assert_eq!(crate::health::status(&facade, "").await, "SERVING");
    let breaker = async || {
        let scrape = Scrape::of(&facade).await;
        ["sqril_breaker_open", "sqril_breaker_opened_total"].map(|name| scrape.value(name))
    };
    assert_eq!(breaker().await, [1.0, 1.0]);

    broken.store(false, Ordering::Relaxed);
    let began = Instant::now();
    while facade.call(update(1000)).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(15), "it never closes");
        sleep(Duration::from_millis(100)).await;
    }
    facade
        .logged(|line| line["message"] == "circuit breaker" && line["state"] == "closed")
        .await;
    assert_eq!(
        crate::health::status(&facade, "sqril.upstream").await,
        "SERVING"
    );
    assert_eq!(breaker().await, [0.0, 1.0]);
}
