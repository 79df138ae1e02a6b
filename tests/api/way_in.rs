//! Rows 1 to 5: what is refused before anything is sent.

use sqril_grpc::pb::UpdateCustomerRequest;
use tonic::Code;

use crate::support::{Facade, Reply, Told, Upstream, an_update, json, with};

/// A façade before an upstream that would say yes to anything.
async fn facade() -> (Facade, Upstream) {
    let upstream = Upstream::start(Reply::Say(json(200, "{}"))).await;
    (Facade::before(&upstream.url()).await, upstream)
}

fn flaws(told: &Told) -> Vec<(String, String)> {
    let violations = told.violations();
    assert!(
        violations
            .iter()
            .all(|violation| !violation.description.is_empty())
    );
    told.flaws()
}

fn named(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(field, reason)| ((*field).to_owned(), (*reason).to_owned()))
        .collect()
}

#[tokio::test]
async fn row_01_customer_id() {
    let (facade, upstream) = facade().await;
    let long = "x".repeat(129);
    for (id, reason) in [
        ("", "EMPTY"),
        (&long, "TOO_LONG"),
        ("a/b", "SLASH"),
        ("a\nb", "CONTROL_CHARACTER"),
    ] {
        let told = facade
            .refused(UpdateCustomerRequest {
                customer_id: id.into(),
                ..an_update()
            })
            .await;
        told.is(Code::InvalidArgument, "INVALID_CUSTOMER_ID", "not_sent");
        assert_eq!(flaws(&told), named(&[("customer_id", reason)]));
    }
    assert!(upstream.received().is_empty());
}

#[tokio::test]
async fn row_02_empty_update() {
    let (facade, upstream) = facade().await;
    let told = facade
        .refused(UpdateCustomerRequest {
            customer_id: "cus_1".into(),
            ..Default::default()
        })
        .await;
    told.is(Code::InvalidArgument, "EMPTY_UPDATE", "not_sent");
    assert_eq!(flaws(&told), named(&[("", "NOTHING_SET")]));
    assert!(upstream.received().is_empty());
}

#[tokio::test]
async fn row_03_all_violations_at_once() {
    let (facade, upstream) = facade().await;
    let request = UpdateCustomerRequest {
        customer_id: "cus_1".into(),
        email: Some("nobody".into()),
        phone: Some("0812".into()),
        occupation: Some(0),
        address: Some("x".repeat(1025)),
        gender: Some(String::new()),
        ic_type: Some(99),
        ic_number: Some("a\tb".into()),
        ic_country: Some("id".into()),
        ic_expiry_date: Some("2023-02-29".into()),
        country_of_residence: Some("IDN".into()),
        nationality: Some("I1".into()),
        dob: Some("31.01.1990".into()),
    };
    let told = facade.refused(request.clone()).await;
    told.is(Code::InvalidArgument, "INVALID_FIELDS", "not_sent");
    let all = [
        ("email", "MALFORMED_EMAIL"),
        ("phone", "MALFORMED_PHONE"),
        ("occupation", "UNSPECIFIED"),
        ("address", "TOO_LONG"),
        ("gender", "EMPTY"),
        ("ic_type", "UNKNOWN_NUMBER"),
        ("ic_number", "CONTROL_CHARACTER"),
        ("ic_country", "MALFORMED_COUNTRY"),
        ("ic_expiry_date", "MALFORMED_DATE"),
        ("country_of_residence", "MALFORMED_COUNTRY"),
        ("nationality", "MALFORMED_COUNTRY"),
        ("dob", "MALFORMED_DATE"),
    ];
    assert_eq!(flaws(&told), named(&all));

    let told = facade
        .refused(UpdateCustomerRequest {
            customer_id: String::new(),
            ..request
        })
        .await;
    told.is(Code::InvalidArgument, "INVALID_CUSTOMER_ID", "not_sent");
    assert_eq!(
        flaws(&told),
        named(&[&[("customer_id", "EMPTY")], &all[..]].concat())
    );
    assert!(upstream.received().is_empty());
}

#[tokio::test]
async fn row_05_deadline_too_short() {
    let (facade, upstream) = facade().await;
    for timeout in ["49m", "1u", "0n"] {
        // A client that enforces its own deadline as well would hide the answer; metadata alone does not.
        let status = raw_call(&facade, timeout).await;
        status.is(Code::DeadlineExceeded, "DEADLINE_TOO_SHORT", "not_sent");
    }
    assert!(upstream.received().is_empty());
    facade
        .call(with(an_update(), &[("grpc-timeout", "5S")]))
        .await
        .unwrap();
}

/// A call whose deadline the client itself does not watch.
async fn raw_call(facade: &Facade, timeout: &str) -> Told {
    let stream = tokio::net::TcpStream::connect(facade.grpc).await.unwrap();
    let (mut h2, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request =
        axum::http::Request::post("http://facade/sqril.customer.v1.CustomerService/UpdateCustomer")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", timeout)
            .body(())
            .unwrap();
    let (response, mut body) = h2.send_request(request, false).unwrap();
    let message = prost::Message::encode_to_vec(&an_update());
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    body.send_data([&[0], &length[..], &message].concat().into(), true)
        .unwrap();
    let response = response.await.unwrap();
    Told::of(&tonic::Status::from_header_map(response.headers()).expect("an error without a body"))
}
