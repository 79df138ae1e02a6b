//! Certificates and secrets change while the façade runs, and nobody notices but those who are no longer trusted.

use std::{
    fs,
    os::unix::fs::symlink,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use tokio::{
    io::AsyncWriteExt,
    net::TcpListener,
    time::{sleep, timeout},
};
use tonic::Code;

use crate::{
    certificates::{Authority, Folder, SHOP, Tls},
    health::http_get,
    measured::Scrape,
    no_answer::TlsUpstream,
    support::{
        CLIENT_SECRET, Facade, JSON, PATIENCE, Received, Reply, Told, Upstream, a_profile,
        an_update, http, json, read_request,
    },
};

async fn yes() -> Upstream {
    Upstream::answering(200, &[JSON], &a_profile().to_string()).await
}

/// Waits until a set of files has been taken for the so manieth time.
async fn reloaded(facade: &Facade, set: &str, times: usize) {
    let line = facade.logged_again(times, |line| {
        line["message"] == "reloaded" && line["name"] == set
    });
    line.await;
}

#[tokio::test]
async fn a_new_certificate_for_new_connections() {
    let (mut tls, upstream) = (Tls::new(), yes().await);
    let facade = tls.facade(&upstream.url(), &[]).await;
    let shop = tls.theirs.caller(SHOP);
    let mut old = tls.client(&facade, Some(&shop)).await;
    old.update_customer(an_update()).await.unwrap();

    let other = Authority::new();
    tls.show(&other.server());
    facade.signal("HUP");
    reloaded(&facade, "tls", 1).await;
    assert!(tls.connect(&facade, Some(&shop)).await.is_err());
    tls.ours = other;
    let mut new = tls.client(&facade, Some(&shop)).await;
    for client in [&mut old, &mut new] {
        client.update_customer(an_update()).await.unwrap();
    }
}

/// Whoever is no longer trusted is cut off in the middle of a connection; all others stay as they are.
#[tokio::test]
async fn a_caller_that_is_revoked_is_cut_off() {
    let (tls, upstream) = (Tls::new(), yes().await);
    let facade = tls
        .facade(&upstream.url(), &["--allow-caller=batch.example"])
        .await;
    let (shop, batch) = (tls.theirs.caller(SHOP), tls.theirs.caller("batch.example"));
    let mut theirs = tls.client(&facade, Some(&shop)).await;
    let mut others = tls.client(&facade, Some(&batch)).await;
    for client in [&mut theirs, &mut others] {
        client.update_customer(an_update()).await.unwrap();
    }
    tls.folder.write("crl.pem", tls.theirs.revoke(&[&shop]));
    facade.signal("HUP");
    let cut = facade.logged(|line| line["message"].as_str().unwrap().contains("is cut"));
    assert_eq!(cut.await["caller"], SHOP);
    theirs.update_customer(an_update()).await.unwrap_err();
    others.update_customer(an_update()).await.unwrap();
    assert_eq!(upstream.received().len(), 3);

    // The same for an authority that is no longer believed.
    tls.folder.write("ca.pem", &Authority::new().pem);
    facade.signal("HUP");
    let cut = facade.logged_again(2, |line| {
        line["message"].as_str().unwrap().contains("is cut")
    });
    cut.await;
    others.update_customer(an_update()).await.unwrap_err();
    let scrape = Scrape::of(&facade).await;
    assert_eq!(scrape.value("sqril_connections_total{result=\"cut\"}"), 2.0);
}

/// A connection does not outlive its caller's certificate.
#[tokio::test]
async fn a_certificate_that_ends_ends_its_connection() {
    let (tls, upstream) = (Tls::new(), yes().await);
    let facade = tls.facade(&upstream.url(), &[]).await;
    let soon = std::time::SystemTime::now() + Duration::from_secs(3);
    let caller = tls.theirs.issue(&crate::certificates::Subject {
        to: soon,
        ..crate::certificates::Subject::caller(&[SHOP])
    });
    let mut client = tls.client(&facade, Some(&caller)).await;
    client.update_customer(an_update()).await.unwrap();
    // The client comes back at once, and is turned away for its certificate.
    let refused = async {
        while client.update_customer(an_update()).await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, refused).await.unwrap();
    assert!(std::time::SystemTime::now() >= soon - Duration::from_secs(1));
    let said = facade.logged(|line| {
        line["message"]
            .as_str()
            .unwrap()
            .contains("certificate expired")
    });
    said.await;
}

/// What cannot be used changes nothing, and is told where operators look.
#[tokio::test]
async fn a_broken_set_is_not_taken() {
    let (tls, upstream) = (Tls::new(), yes().await);
    let secret = tls.folder.write("secret", "first");
    let id = tls.folder.write("id", "someone");
    let flags = tls.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (url, expired) = (upstream.url(), std::time::SystemTime::now());
    let more = [
        "--upstream-url",
        &url,
        "--client-id-file",
        &id,
        "--client-secret-file",
        &secret,
    ];
    let facade = Facade::start(&[&flags[..], &more[..]].concat(), &[]).await;
    let shop = tls.theirs.caller(SHOP);
    let expired = tls.ours.issue(&crate::certificates::Subject {
        to: expired - Duration::from_secs(60),
        ..crate::certificates::Subject::caller(&["localhost"])
    });
    let good = tls.ours.server();
    tls.show(&good);
    facade.signal("HUP");
    reloaded(&facade, "tls", 1).await;

    let cases: [(&str, &str, Option<&str>, &str); 9] = [
        ("tls", "cert.pem", Some("junk-canary"), "--tls-cert: "),
        (
            "tls",
            "cert.pem",
            Some(&expired.certificate),
            "--tls-cert: has expired",
        ),
        (
            "tls",
            "key.pem",
            Some(&shop.key),
            "--tls-cert: with --tls-key: ",
        ),
        ("tls", "key.pem", None, "--tls-key: "),
        ("tls", "ca.pem", Some(""), "--client-ca: holds nothing"),
        (
            "tls",
            "crl.pem",
            Some("-----BEGIN X509 CRL-----\ncanary"),
            "--client-crl: is no valid PEM",
        ),
        (
            "credentials",
            "secret",
            Some(""),
            "--client-secret-file: must not be empty",
        ),
        (
            "credentials",
            "secret",
            Some("canary\u{7}"),
            "--client-secret-file: must not hold control",
        ),
        (
            "credentials",
            "id",
            Some("some:canary"),
            "--client-id-file: must not hold \":\"",
        ),
    ];
    for (count, (set, file, text, expected)) in cases.into_iter().enumerate() {
        let before = fs::read(tls.folder.path(file)).unwrap();
        match text {
            Some(text) => drop(tls.folder.write(file, text)),
            None => fs::remove_file(tls.folder.path(file)).unwrap(),
        }
        let failed = |line: &serde_json::Value| {
            let message = line["message"].as_str().unwrap();
            message.starts_with("reload failed")
                && line["what"].as_str().unwrap().contains(expected)
        };
        facade.signal("HUP");
        facade.logged(failed).await;
        // It is looked at again, and not complained of again.
        facade.signal("HUP");
        let again = facade.logged_again(2 * count + 3, |line| line["signal"] == "SIGHUP");
        again.await;

        let ready = http_get(facade.admin, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 200 "), "{ready}");
        let body: serde_json::Value =
            serde_json::from_str(ready.rsplit("\r\n\r\n").next().unwrap()).unwrap();
        assert!(
            body["troubles"][set].as_str().unwrap().contains(expected),
            "{ready}"
        );
        let metrics = http_get(facade.admin, "/metrics").await;
        assert!(
            metrics.contains(&format!("sqril_reload_failing{{set=\"{set}\"}} 1\n")),
            "{metrics}"
        );
        let mut client = tls.client(&facade, Some(&shop)).await;
        client.update_customer(an_update()).await.unwrap();

        tls.folder.write(file, before);
        facade.signal("HUP");
        let mended = facade.logged_again(count + 1, |line| {
            line["message"]
                .as_str()
                .unwrap()
                .starts_with("files are again")
        });
        mended.await;
        let ready = http_get(facade.admin, "/readyz").await;
        assert!(
            ready.ends_with("{\"ready\":true,\"reasons\":[],\"troubles\":{}}"),
            "{ready}"
        );
        let failures = facade.log().matches("reload failed").count();
        assert_eq!(failures, count + 1, "each is complained of once");
    }
    let metrics = http_get(facade.admin, "/metrics").await;
    for line in [
        "sqril_reloads_total{set=\"tls\",result=\"ok\"} 1",
        "sqril_reloads_total{set=\"tls\",result=\"failed\"} 6",
        "sqril_reloads_total{set=\"credentials\",result=\"failed\"} 3",
        "sqril_reload_failing{set=\"tls\"} 0",
    ] {
        assert!(
            metrics.lines().any(|shown| shown == line),
            "{line} in {metrics}"
        );
    }
    assert!(!facade.log().contains("canary"), "{}", facade.log());
}

#[tokio::test]
async fn the_end_of_certificates_is_measured() {
    let (tls, upstream) = (Tls::new(), yes().await);
    let facade = tls.facade(&upstream.url(), &[]).await;
    let metrics = http_get(facade.admin, "/metrics").await;
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    for (file, at_least, at_most) in [
        ("tls-cert", 3500.0, 3600.0),
        ("client-crl", 3500.0, 3600.0),
        ("client-ca", 1e8, 1e12),
    ] {
        let name = format!("sqril_certificate_expiry_timestamp_seconds{{file=\"{file}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        let left = line.unwrap().parse::<f64>().unwrap() - now;
        assert!((at_least..=at_most).contains(&left), "{file}: {left}");
    }
}

/// The way Kubernetes changes a mounted secret: one symbolic link is exchanged, and no file that is named changes.
#[tokio::test]
async fn a_symbolic_link_that_is_swapped_is_seen() {
    let (tls, upstream) = (Tls::new(), yes().await);
    let volume = Folder::new();
    let publish = |version: &str, authority: &Authority| {
        let issued = authority.server();
        fs::create_dir(volume.path(version)).unwrap();
        fs::write(
            volume.path(&format!("{version}/tls.crt")),
            &issued.certificate,
        )
        .unwrap();
        fs::write(volume.path(&format!("{version}/tls.key")), &issued.key).unwrap();
        symlink(version, volume.path("..data_tmp")).unwrap();
        fs::rename(volume.path("..data_tmp"), volume.path("..data")).unwrap();
    };
    publish("..v1", &tls.ours);
    for file in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{file}"), volume.path(file)).unwrap();
    }
    let flags = [
        &format!("--tls-cert={}", volume.path("tls.crt")),
        &format!("--tls-key={}", volume.path("tls.key")),
        "--reload-interval=100ms",
    ];
    let facade = Facade::with(&upstream.url(), &flags).await;
    let mut client = tls.client(&facade, None).await;
    client.update_customer(an_update()).await.unwrap();

    let other = Tls::new();
    publish("..v2", &other.ours);
    fs::remove_dir_all(volume.path("..v1")).unwrap();
    reloaded(&facade, "tls", 1).await;
    let mut client = other.client(&facade, None).await;
    client.update_customer(an_update()).await.unwrap();
    assert!(!facade.log().contains("reload failed"), "{}", facade.log());
}

fn basic(id: &str, secret: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{id}:{secret}")))
}

fn authorization(request: &Received) -> &str {
    let mut lines = request.head.lines();
    lines
        .find_map(|line| line.strip_prefix("authorization: "))
        .unwrap()
}

/// A façade whose secret is in this file.
async fn with_secret_in(file: &str, upstream: &str, more: &[&str]) -> Facade {
    let flags = [
        "--upstream-url",
        upstream,
        "--client-id",
        "someone",
        "--client-secret-file",
        file,
        "--drain-delay",
        "0s",
    ];
    Facade::start(&[&flags, more].concat(), &[]).await
}

/// Row 27: a secret that changed under way is tried, once.
#[tokio::test]
async fn row_27_the_secret_changed_after_the_request_was_built() {
    let folder = Folder::new();
    let file = folder.write("secret", "old\n");
    let upstream = Upstream::start(Reply::SayWhenTold(json(401, "{}"))).await;
    let facade = with_secret_in(&file, &upstream.url(), &["--reload-interval=0"]).await;
    let mut client = facade.client().await;
    let call = tokio::spawn(async move { client.update_customer(an_update()).await });
    upstream.asked().await;
    folder.write("secret", "new:ünicode\n");
    facade.signal("HUP");
    reloaded(&facade, "credentials", 1).await;
    upstream.reply(Reply::Say(json(200, &a_profile().to_string())));
    upstream.go_on();
    call.await.unwrap().unwrap();
    let received = upstream.received();
    let sent: Vec<_> = received.iter().map(authorization).collect();
    assert_eq!(
        sent,
        [basic("someone", "old"), basic("someone", "new:ünicode")]
    );
    let line = facade.logged(|line| line["message"] == "call").await;
    assert_eq!(line["attempts"], 2);
}

/// Row 27: once only, however often it changes; and not at all if it has not.
#[tokio::test]
async fn row_27_once_only() {
    let folder = Folder::new();
    let file = folder.write("secret", "old");
    let upstream = Upstream::start(Reply::SayWhenTold(json(401, "{}"))).await;
    let facade = with_secret_in(&file, &upstream.url(), &["--reload-interval=0"]).await;
    let mut client = facade.client().await;
    let call = tokio::spawn(async move { client.update_customer(an_update()).await });
    for (times, secret) in [(1, "new"), (2, "newer")] {
        upstream.asked().await;
        folder.write("secret", secret);
        facade.signal("HUP");
        reloaded(&facade, "credentials", times).await;
        upstream.go_on();
    }
    let told = Told::of(&call.await.unwrap().unwrap_err());
    told.is(Code::Internal, "UPSTREAM_CREDENTIALS_REJECTED", "rejected");
    assert_eq!(told.metadata["attempts"], "2");

    upstream.reply(Reply::Say(json(401, "{}")));
    let told = facade.refused(an_update()).await;
    assert_eq!(told.metadata["attempts"], "1");
    assert_eq!(upstream.received().len(), 3);
}

/// A secret that Sqril rejects is looked up again without waiting for the next turn.
#[tokio::test]
async fn a_rejected_secret_is_looked_up_again() {
    let folder = Folder::new();
    let file = folder.write("secret", "old");
    let upstream = Upstream::start(Reply::Say(json(401, "{}"))).await;
    let facade = with_secret_in(&file, &upstream.url(), &["--reload-interval=1h"]).await;
    folder.write("secret", "new");
    facade.refused(an_update()).await;
    reloaded(&facade, "credentials", 1).await;
    upstream.reply(Reply::Say(json(200, &a_profile().to_string())));
    facade.call(an_update()).await.unwrap();
    let received = upstream.received();
    assert_eq!(authorization(&received[1]), basic("someone", "new"));
}

/// Only the authorities of the file are believed, and others from the moment they are there.
#[tokio::test]
async fn the_upstreams_authorities() {
    let folder = Folder::new();
    let upstream = TlsUpstream::start(&[b"http/1.1"]).await;
    let stranger = Authority::new();
    let file = folder.write("ca.pem", &stranger.pem);
    let flags = ["--upstream-ca", &*file, "--reload-interval=0"];
    // The system's own authorities would vouch for it.
    let facade = upstream.facade(&upstream.url(), &flags).await;
    let (url, authority) = (upstream.url(), upstream.authority());
    let serving = tokio::spawn(async move {
        loop {
            let mut stream = upstream.accept().await;
            tokio::spawn(async move {
                while read_request(&mut stream).await.is_some() {
                    let answer = json(200, &a_profile().to_string());
                    stream.write_all(&answer).await.unwrap();
                }
            });
        }
    });
    let told = facade.refused(an_update()).await;
    told.is(Code::Unavailable, "UPSTREAM_TLS_FAILED", "not_sent");
    let changes = [
        (format!("{}{}", stranger.pem, authority), true),
        (stranger.pem.clone(), false),
        (authority, true),
    ];
    for (times, (pem, believed)) in changes.into_iter().enumerate() {
        folder.write("ca.pem", pem);
        facade.signal("HUP");
        reloaded(&facade, "upstream-ca", times + 1).await;
        let called = facade.call(an_update()).await;
        assert_eq!(called.is_ok(), believed, "{url}: {called:?}");
    }
    folder.write("ca.pem", "junk");
    facade.signal("HUP");
    let said = facade.logged(|line| {
        line["message"]
            .as_str()
            .unwrap()
            .starts_with("reload failed")
    });
    assert_eq!(said.await["name"], "upstream-ca");
    facade.call(an_update()).await.unwrap();
    serving.abort();
}

/// Everything changes ten times during ten thousand calls, and none of them fails. Sqril takes the
/// next secret before the façade has it, and the last one no more as soon as it has seen the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_changes_under_load() {
    const CALLS: usize = 10_000;
    const CLIENTS: usize = 16;
    const CHANGES: usize = 10;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let accepted = Arc::new(Mutex::new(vec![basic("someone", CLIENT_SECRET)]));
    let (rejected, secret) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&accepted));
    let rejecting = Arc::clone(&rejected);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (secret, rejected) = (Arc::clone(&secret), Arc::clone(&rejecting));
            tokio::spawn(async move {
                while let Some(request) = read_request(&mut stream).await {
                    let is_good = {
                        let mut secrets = secret.lock().unwrap();
                        let place = secrets
                            .iter()
                            .position(|secret| secret == authorization(&request));
                        // Once the next secret was seen, the last one is good no more.
                        drop(secrets.drain(..place.unwrap_or(0)));
                        place.is_some()
                    };
                    let answer = if is_good {
                        http(200, &[JSON], a_profile().to_string().as_bytes())
                    } else {
                        rejected.fetch_add(1, Ordering::Relaxed);
                        json(401, "{}")
                    };
                    if stream.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });

    let tls = Arc::new(Tls::new());
    let file = tls.folder.write("secret", CLIENT_SECRET);
    let flags = tls.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let facade = Arc::new(with_secret_in(&file, &url, &flags).await);

    let done = Arc::new(AtomicUsize::new(0));
    let shop = tls.theirs.caller(SHOP);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (tls, facade, done) = (Arc::clone(&tls), Arc::clone(&facade), Arc::clone(&done));
            let shop = shop.clone();
            tokio::spawn(async move {
                loop {
                    // Connections come and go all the time.
                    let mut client = tls.client(&facade, Some(&shop)).await;
                    for _ in 0..100 {
                        client.update_customer(an_update()).await.unwrap();
                        if done.fetch_add(1, Ordering::Relaxed) >= CALLS {
                            return;
                        }
                    }
                }
            })
        })
        .collect();
    for change in 1..=CHANGES {
        let until = change * CALLS / (CHANGES + 1);
        let reached = async {
            while done.load(Ordering::Relaxed) < until {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE * 3, reached).await.expect("calls go on");
        tls.show(&tls.ours.server());
        let revoked = tls.theirs.caller("revoked.example");
        tls.folder.write("crl.pem", tls.theirs.revoke(&[&revoked]));
        tls.folder.write(
            "ca.pem",
            format!("{}{}", Authority::new().pem, tls.theirs.pem),
        );
        let secret = format!("secret {change}");
        accepted.lock().unwrap().push(basic("someone", &secret));
        tls.folder.write("secret", &secret);
        facade.signal("HUP");
        reloaded(&facade, "credentials", change).await;
    }
    let mut calls = 0;
    for client in clients {
        client.await.expect("no call failed");
        calls += 1;
    }
    assert_eq!(calls, CLIENTS);
    reloaded(&facade, "tls", CHANGES).await;
    let log = facade.log();
    assert!(
        !log.contains("reload failed"),
        "a set is whole or not looked at"
    );
    println!(
        "{} calls, {CHANGES} changes, {} requests met the next secret and were sent again",
        done.load(Ordering::Relaxed),
        rejected.load(Ordering::Relaxed)
    );
}
