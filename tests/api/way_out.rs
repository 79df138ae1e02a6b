//! What reaches the upstream, byte for byte.

use std::time::Duration;

use sqril_grpc::pb::{IcType, Occupation, UpdateCustomerRequest};
use tokio::net::TcpListener;

use crate::support::{Facade, Reply, Upstream, an_update, json, with};

#[tokio::test]
async fn the_request_byte_for_byte() {
    let upstream = Upstream::start(Reply::Say(json(200, "{}"))).await;
    let facade = Facade::before(&upstream.url()).await;
    let request = UpdateCustomerRequest {
        customer_id: "cus 1&x=#?%2f+ü~".into(),
        email: Some("ana@example.com".into()),
        phone: Some("+51000000001".into()),
        occupation: Some(Occupation::Occ10.into()),
        address: Some("Calle \"1\" \\ Ñ 😀".into()),
        gender: Some("FEMALE".into()),
        ic_type: Some(IcType::Wep.into()),
        ic_number: Some("X1".into()),
        ic_country: Some("PE".into()),
        ic_expiry_date: Some("2099-01-01".into()),
        country_of_residence: Some("PE".into()),
        nationality: Some("PE".into()),
        dob: Some("1990-01-31".into()),
    };
    // Nothing of this but the request id may go on.
    let metadata = [
        ("x-request-id", "req-1"),
        ("authorization", "Bearer caller"),
        ("cookie", "a=b"),
        ("user-agent", "caller/1"),
        ("x-forwarded-for", "10.0.0.1"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        ("grpc-timeout", "9S"),
        ("host", "elsewhere"),
    ];
    let response = facade.call(with(request, &metadata)).await.unwrap();
    assert_eq!(response.metadata().get("x-request-id").unwrap(), "req-1");

    let received = upstream.the_request();
    let body = concat!(
        r#"{"email":"ana@example.com","phone":"+51000000001","occupation":"OCC10","#,
        r#""address":"Calle \"1\" \\ Ñ 😀","gender":"FEMALE","ic_type":"WEP","ic_number":"X1","ic_country":"PE","#,
        r#""ic_expiry_date":"2099-01-01","country_of_residence":"PE","nationality":"PE","dob":"1990-01-31"}"#,
    );
    assert_eq!(String::from_utf8(received.body).unwrap(), body);
    let head = [
        "PUT /updateCustomer?customer_id=cus%201%26x%3D%23%3F%252f%2B%C3%BC~ HTTP/1.1",
        // test-client:s3cret:with ünicode, in UTF-8
        "authorization: Basic dGVzdC1jbGllbnQ6czNjcmV0OndpdGggw7xuaWNvZGU=",
        "content-type: application/json",
        "accept: application/json",
        "x-request-id: req-1",
        concat!("user-agent: sqril-grpc/", env!("CARGO_PKG_VERSION")),
        &format!("host: {}", upstream.address),
        &format!("content-length: {}", body.len()),
        "\r\n",
    ];
    assert_eq!(received.head, head.join("\r\n"));
}

#[tokio::test]
async fn unset_is_never_sent() {
    let upstream = Upstream::start(Reply::Say(json(200, "{}"))).await;
    let facade = Facade::before(&upstream.url()).await;
    facade.call(an_update()).await.unwrap();
    assert_eq!(upstream.the_request().body, br#"{"nationality":"PE"}"#);
    assert_eq!(
        upstream.the_request().target(),
        "/updateCustomer?customer_id=cus_1"
    );
}

#[tokio::test]
async fn a_base_path_is_kept() {
    let upstream = Upstream::start(Reply::Say(json(200, "{}"))).await;
    for base in ["/v1", "/v1/"] {
        let facade = Facade::before(&format!("{}{base}", upstream.url())).await;
        facade.call(an_update()).await.unwrap();
        assert_eq!(
            upstream.received().pop().unwrap().target(),
            "/v1/updateCustomer?customer_id=cus_1"
        );
    }
}

#[tokio::test]
async fn a_request_id_is_made_if_the_callers_is_not_sane() {
    let upstream = Upstream::start(Reply::Say(json(200, "{}"))).await;
    let facade = Facade::before(&upstream.url()).await;
    let response = facade
        .call(with(an_update(), &[("x-request-id", "ana@example.com")]))
        .await
        .unwrap();
    let id = response
        .metadata()
        .get("x-request-id")
        .unwrap()
        .to_str()
        .unwrap();
    assert_eq!(id.len(), 32);
    assert!(
        upstream
            .the_request()
            .head
            .contains(&format!("x-request-id: {id}\r\n"))
    );
    let line = facade.logged(|line| line["message"] == "call").await;
    assert_eq!(line["request_id"], id);
}

#[tokio::test]
async fn environment_proxies_are_ignored_unless_asked_for() {
    let upstream = Upstream::start(Reply::Say(json(200, "{}"))).await;
    let proxy = Upstream::start(Reply::Say(json(200, "{}"))).await;
    let proxied = proxy.url();
    let secret = ("SQRIL_GRPC_CLIENT_SECRET", "s");
    let variables = [
        ("HTTP_PROXY", proxied.as_str()),
        ("http_proxy", &proxied),
        ("ALL_PROXY", &proxied),
        secret,
    ];
    let url = upstream.url();
    let flags = ["--upstream-url", &url, "--client-id", "c"];

    let facade = Facade::start(&flags, &variables).await;
    facade.call(an_update()).await.unwrap();
    assert_eq!((upstream.received().len(), proxy.received().len()), (1, 0));

    let facade = Facade::start(
        &[&flags[..], &["--upstream-proxy", "env"]].concat(),
        &variables,
    )
    .await;
    facade.call(an_update()).await.unwrap();
    assert_eq!((upstream.received().len(), proxy.received().len()), (1, 1));

    let facade = Facade::start(
        &[&flags[..], &["--upstream-proxy", &proxied]].concat(),
        &[secret],
    )
    .await;
    facade.call(an_update()).await.unwrap();
    assert_eq!((upstream.received().len(), proxy.received().len()), (1, 2));
}

/// Two calls in a row share a connection; one that has been idle for too long is not used again.
#[tokio::test]
async fn idle_connections_are_given_up_in_time() {
    for (idle, connections) in [("10s", 1), ("1ms", 2)] {
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", upstream.local_addr().unwrap());
        let facade = Facade::with(&url, &["--pool-idle-timeout", idle]).await;
        let counted = tokio::spawn(async move {
            let inner = Upstream::start(Reply::Say(json(200, "{}"))).await;
            let mut accepted = 0;
            while let Ok(Ok((mut stream, _))) =
                tokio::time::timeout(Duration::from_secs(1), upstream.accept()).await
            {
                accepted += 1;
                let mut to = tokio::net::TcpStream::connect(inner.address).await.unwrap();
                tokio::spawn(
                    async move { tokio::io::copy_bidirectional(&mut stream, &mut to).await },
                );
            }
            accepted
        });
        let mut client = facade.client().await;
        client.update_customer(an_update()).await.unwrap();
        // Not for anything to happen, but for time to pass: that is what the setting is about.
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.update_customer(an_update()).await.unwrap();
        assert_eq!(
            counted.await.unwrap(),
            connections,
            "--pool-idle-timeout {idle}"
        );
    }
}
