//! Rows 16 to 21: what becomes of an answer that says yes.

use serde_json::{Value, json as value};
use sqril_grpc::pb::{
    IcType, Occupation, UpdateCustomerRequest, UpdateCustomerResponse, WarningCode,
};
use tonic::Code;

use crate::support::{Facade, HTML, JSON, Reply, Told, Upstream, a_profile, an_update, http, json};

async fn answered(reply: Reply) -> Result<UpdateCustomerResponse, Told> {
    asked(an_update(), reply).await
}

async fn asked(
    request: UpdateCustomerRequest,
    reply: Reply,
) -> Result<UpdateCustomerResponse, Told> {
    let upstream = Upstream::start(reply).await;
    let facade = Facade::before(&upstream.url()).await;
    let result = facade.call(request).await;
    upstream.the_request();
    result
        .map(|response| response.into_inner())
        .map_err(|status| Told::of(&status))
}

/// The answer to a 200 with this profile.
async fn told_of(profile: Value) -> UpdateCustomerResponse {
    answered(Reply::Say(json(200, &profile.to_string())))
        .await
        .map_err(|told| told.message)
        .unwrap()
}

fn warnings(response: &UpdateCustomerResponse) -> Vec<(String, WarningCode)> {
    response
        .warnings
        .iter()
        .map(|warning| (warning.field.clone(), warning.code()))
        .collect()
}

#[tokio::test]
async fn row_16_every_field() {
    for status in [200, 201] {
        let reply = Reply::Say(json(status, &a_profile().to_string()));
        let response = answered(reply).await.map_err(|told| told.message).unwrap();
        assert_eq!(warnings(&response), []);
        let customer = response.customer.unwrap();
        let texts = [
            (&customer.customer_id, "cus_1"),
            (&customer.name_first, "Ana"),
            (&customer.name_last, "Prueba"),
            (&customer.gender, "FEMALE"),
            (&customer.ic_number, "X1"),
            (&customer.ic_type_code, "NIC"),
            (&customer.ic_country, "PE"),
            (&customer.occupation_code, "OCC11"),
            (&customer.country_of_residence, "PE"),
            (&customer.phone, "+51000000001"),
            (&customer.email, "ana@example.com"),
            (&customer.nationality, "PE"),
            (&customer.dob, "1990-01-31"),
            (&customer.address, "Calle 1"),
            (&customer.ic_expiry_date, "2099-01-01"),
        ];
        for (told, expected) in texts {
            assert_eq!(told, expected);
        }
        assert_eq!(
            (customer.ic_type(), customer.occupation()),
            (IcType::Nic, Occupation::Occ11)
        );
        let created = customer.created_at.unwrap();
        assert_eq!(
            (created.seconds, created.nanos),
            (1_735_787_045, 678_000_000)
        );
        let updated = customer.updated_at.unwrap();
        assert_eq!((updated.seconds, updated.nanos), (1_795_317_072, 0));
        assert_eq!(
            customer.allowed,
            [("ID".into(), false), ("PE".into(), true)].into()
        );
    }
}

#[tokio::test]
async fn row_16_all_codes_of_the_contract() {
    for number in 1..=11 {
        let mut profile = a_profile();
        profile["occupation"] = format!("OCC{number}").into();
        let customer = told_of(profile).await.customer.unwrap();
        assert_eq!(customer.occupation, number);
    }
    for (code, expected) in [
        ("NIC", IcType::Nic),
        ("PP", IcType::Pp),
        ("WEP", IcType::Wep),
    ] {
        let mut profile = a_profile();
        profile["ic_type"] = code.into();
        assert_eq!(told_of(profile).await.customer.unwrap().ic_type(), expected);
    }
}

/// A part that is missing or odd is left unset and named; the rest is there all the same.
#[tokio::test]
async fn row_16_parts_that_are_missing_or_odd() {
    use WarningCode::{CodeUnrecognized, FieldMissing, FieldUnreadable, ValueNormalized};
    let absent = || value!("__absent__");
    let cases = [
        ("email", absent(), Some(FieldMissing)),
        ("email", value!(null), Some(FieldMissing)),
        ("email", value!(7), Some(FieldUnreadable)),
        ("email", value!(["a@b"]), Some(FieldUnreadable)),
        ("email", value!({"a": "b"}), Some(FieldUnreadable)),
        ("email", value!(true), Some(FieldUnreadable)),
        ("email", value!(""), None),
        ("created_at", absent(), Some(FieldMissing)),
        ("created_at", value!(null), Some(FieldMissing)),
        ("created_at", value!("yesterday"), Some(FieldUnreadable)),
        ("created_at", value!("2025-01-02"), Some(FieldUnreadable)),
        (
            "created_at",
            value!("2025-01-02T03:04:05"),
            Some(FieldUnreadable),
        ),
        (
            "created_at",
            value!("2025-02-30T03:04:05Z"),
            Some(FieldUnreadable),
        ),
        (
            "created_at",
            value!("0000-12-31T23:59:59Z"),
            Some(FieldUnreadable),
        ),
        ("created_at", value!(1_735_787_045), Some(FieldUnreadable)),
        ("updated_at", value!("1969-12-31T23:59:59.5Z"), None),
        ("allowed", absent(), None),
        ("allowed", value!(null), None),
        ("allowed", value!(["PE"]), Some(FieldUnreadable)),
        (
            "allowed",
            value!({"PE": true, "ID": "yes"}),
            Some(FieldUnreadable),
        ),
        ("occupation", value!("OCC12"), Some(CodeUnrecognized)),
        ("occupation", value!("occ1"), Some(CodeUnrecognized)),
        ("occupation", value!("UNSPECIFIED"), Some(CodeUnrecognized)),
        ("ic_type", value!("KTP"), Some(CodeUnrecognized)),
        ("ic_type", absent(), Some(FieldMissing)),
        ("ic_type", value!(1), Some(FieldUnreadable)),
        ("nationality", value!("pe"), Some(ValueNormalized)),
        ("nationality", absent(), Some(FieldMissing)),
        ("something_new", value!({"deep": [1, 2, 3]}), None),
    ];
    for (field, part, warning) in cases {
        let mut profile = a_profile();
        if part == absent() {
            profile.as_object_mut().unwrap().remove(field);
        } else {
            profile[field] = part.clone();
        }
        let response = told_of(profile).await;
        let expected: Vec<_> = warning
            .into_iter()
            .map(|code| (field.to_owned(), code))
            .collect();
        assert_eq!(warnings(&response), expected, "{field}: {part}");
        assert_eq!(response.customer.unwrap().name_last, "Prueba");
    }
}

#[tokio::test]
async fn row_16_codes_outside_the_contract_are_kept_verbatim() {
    let mut profile = a_profile();
    profile["occupation"] = "OCC 99/ü".into();
    profile["ic_type"] = "KTP".into();
    let customer = told_of(profile).await.customer.unwrap();
    assert_eq!(
        (customer.occupation(), customer.ic_type()),
        (Occupation::Unspecified, IcType::Unspecified)
    );
    assert_eq!(
        (
            customer.occupation_code.as_str(),
            customer.ic_type_code.as_str()
        ),
        ("OCC 99/ü", "KTP")
    );
}

#[tokio::test]
async fn row_16_time_before_1970_counts_forwards() {
    let mut profile = a_profile();
    profile["updated_at"] = "1969-12-31T23:59:59.25Z".into();
    let updated = told_of(profile).await.customer.unwrap().updated_at.unwrap();
    assert_eq!((updated.seconds, updated.nanos), (-1, 250_000_000));
}

#[tokio::test]
async fn row_16_warnings_come_in_the_order_of_the_contract() {
    let request = UpdateCustomerRequest {
        dob: Some("1990-01-31".into()),
        occupation: Some(Occupation::Occ1.into()),
        ..an_update()
    };
    let mut profile = a_profile();
    profile["dob"] = "1990-02-01".into();
    profile["occupation"] = "OCC12".into();
    profile["gender"] = Value::Null;
    let response = asked(request, Reply::Say(json(200, &profile.to_string())))
        .await
        .map_err(|told| told.message);
    let expected = [
        ("gender".to_owned(), WarningCode::FieldMissing),
        ("occupation".to_owned(), WarningCode::CodeUnrecognized),
        ("occupation".to_owned(), WarningCode::ValueNormalized),
        ("dob".to_owned(), WarningCode::ValueNormalized),
    ];
    assert_eq!(warnings(&response.unwrap()), expected);
}

/// Bytes that a strict reader stumbles over spoil only the field that they are in.
#[tokio::test]
async fn row_16_odd_bytes() {
    let parts: [&[u8]; 4] = [
        b"\"na\xffme\"",                                // no UTF-8
        br#""na\ud800me""#,                             // half of a surrogate pair
        b"1e999",                                       // a number that is none
        &[b"[".repeat(500), b"]".repeat(500)].concat(), // deeper than a parser likes to go
    ];
    for part in parts {
        let mut body = br#"{"customer_id":"cus_1","name_first":"Ana","name_last":"#.to_vec();
        body.extend(part);
        body.extend(br#","nationality":"P\u0045","nationality":"PE"}"#);
        let response = answered(Reply::Say(http(200, &[JSON], &body)))
            .await
            .map_err(|told| told.message)
            .unwrap();
        let customer = response.customer.as_ref().unwrap();
        assert_eq!(
            (customer.name_first.as_str(), customer.name_last.as_str()),
            ("Ana", "")
        );
        assert!(
            warnings(&response).contains(&("name_last".to_owned(), WarningCode::FieldUnreadable))
        );
    }
}

#[tokio::test]
async fn row_17_applied_but_unreadable() {
    let whole = json(200, &a_profile().to_string());
    let huge = format!(
        r#"{{"customer_id":"cus_1","notes":"{}"}}"#,
        "x".repeat(64 * 1024)
    );
    let chunked = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"cus";
    let replies = [
        Reply::SayAndClose(whole[..whole.len() - 1].to_vec()),
        Reply::SayAndReset(whole[..whole.len() - 1].to_vec()),
        Reply::SayAndClose(chunked.to_vec()),
        Reply::Say(json(200, &huge)),
        Reply::Say(json(200, "")),
        Reply::Say(json(200, "[]")),
        Reply::Say(json(200, "null")),
        Reply::Say(json(200, r#"{"customer_id":"cus_1"}}"#)),
        Reply::Say(json(201, r#"{"customer_id":"cus_1""#)),
    ];
    for reply in replies {
        let told = answered(reply.clone()).await.expect_err("an error");
        told.is(Code::DataLoss, "UPSTREAM_RESPONSE_UNREADABLE", "applied");
        assert!(
            matches!(told.metadata["upstream_status"].as_str(), "200" | "201"),
            "{reply:?}"
        );
    }
}

#[tokio::test]
async fn row_17_the_cap_is_a_flag() {
    let body = format!(
        r#"{{"customer_id":"cus_1","notes":"{}"}}"#,
        "x".repeat(1000)
    );
    let upstream = Upstream::answering(200, &[JSON], &body).await;
    let at_the_cap = body.len().to_string();
    Facade::with(&upstream.url(), &["--max-answer-bytes", &at_the_cap])
        .await
        .call(an_update())
        .await
        .unwrap();
    let below = (body.len() - 1).to_string();
    let told = Facade::with(&upstream.url(), &["--max-answer-bytes", &below])
        .await
        .refused(an_update())
        .await;
    told.is(Code::DataLoss, "UPSTREAM_RESPONSE_UNREADABLE", "applied");
}

#[tokio::test]
async fn row_18_foreign() {
    let replies = [
        Reply::Say(http(200, &[HTML], b"<h1>Sign in to the Wi-Fi</h1>")),
        Reply::Say(http(200, &[], b"")),
        Reply::Say(http(200, &[], b"OK")),
        Reply::Say(http(201, &[("content-type", "application/jsonp")], b"[]")),
        Reply::Say(http(200, &[HTML], br#"{"status":"ok"}"#)),
        Reply::SayAndClose(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{".to_vec()),
    ];
    for reply in replies {
        let told = answered(reply).await.expect_err("an error");
        told.is(Code::Unknown, "UPSTREAM_RESPONSE_FOREIGN", "unknown");
    }
}

/// An object that names the customer is Sqril's answer, whatever its label says.
#[tokio::test]
async fn row_16_mislabelled() {
    let labels = [
        None,
        Some("text/plain"),
        Some("APPLICATION/JSON ; charset=utf-8"),
        Some("\""),
    ];
    for label in labels {
        let headers: Vec<_> = label
            .into_iter()
            .map(|label| ("content-type", label))
            .collect();
        let reply = Reply::Say(http(200, &headers, a_profile().to_string().as_bytes()));
        assert!(answered(reply).await.is_ok(), "{label:?}");
    }
}

#[tokio::test]
async fn row_19_another_customer() {
    for id in [
        value!("cus_2"),
        value!("CUS_1"),
        value!(" cus_1"),
        value!(12),
    ] {
        for label in [JSON, HTML] {
            let mut profile = a_profile();
            profile["customer_id"] = id.clone();
            let told = answered(Reply::Say(http(
                200,
                &[label],
                profile.to_string().as_bytes(),
            )))
            .await;
            let told = told.expect_err("an error");
            told.is(Code::Internal, "UPSTREAM_IDENTITY_MISMATCH", "unknown");
            assert!(told.sqril_says().is_none());
        }
    }
}

#[tokio::test]
async fn row_20_without_customer_id() {
    let cases = [
        (None, WarningCode::FieldMissing),
        (Some(value!(null)), WarningCode::FieldMissing),
        (Some(value!("")), WarningCode::FieldMissing),
        (Some(value!(true)), WarningCode::FieldUnreadable),
        (Some(value!(["cus_2"])), WarningCode::FieldUnreadable),
    ];
    for (id, warning) in cases {
        let mut profile = a_profile();
        profile.as_object_mut().unwrap().remove("customer_id");
        if let Some(id) = id {
            profile["customer_id"] = id;
        }
        let response = told_of(profile).await;
        assert_eq!(warnings(&response), [("customer_id".to_owned(), warning)]);
        assert_eq!(response.customer.unwrap().customer_id, "cus_1");
    }
}

#[tokio::test]
async fn row_20_a_number_for_an_identifier() {
    let request = UpdateCustomerRequest {
        customer_id: "12".into(),
        ..an_update()
    };
    let mut profile = a_profile();
    profile["customer_id"] = value!(12);
    let response = asked(request, Reply::Say(json(200, &profile.to_string())))
        .await
        .map_err(|told| told.message);
    assert_eq!(
        warnings(&response.unwrap()),
        [("customer_id".to_owned(), WarningCode::FieldUnreadable)]
    );
}

#[tokio::test]
async fn row_21_other_success() {
    for status in [202, 203, 204, 205, 206, 299] {
        let body = if status == 204 {
            String::new()
        } else {
            a_profile().to_string()
        };
        let told = answered(Reply::SayAndClose(json(status, &body)))
            .await
            .expect_err("an error");
        told.is(Code::Unknown, "UPSTREAM_UNEXPECTED_STATUS", "unknown");
        assert_eq!(told.metadata["upstream_status"], status.to_string());
    }
}
