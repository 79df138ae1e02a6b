//! What holds for every request and every answer, tried on hundreds that nobody thought of.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::select,
    test_runner::{Config, TestCaseError, TestRunner},
};
use serde_json::{Value, json as value};
use sqril_grpc::pb::{IcType, Occupation, UpdateCustomerRequest};
use tonic::Code;

use crate::support::{Facade, HTML, JSON, Reply, Told, Upstream, http, json};

/// Runs a property over real sockets, one case after another.
fn holds<S: Strategy>(
    cases: u32,
    strategy: &S,
    upstream: &Upstream,
    facade: &Facade,
    check: impl AsyncFn(S::Value, &Upstream, &Facade) -> Result<(), TestCaseError>,
) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(strategy, |input| {
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(check(input, upstream, facade))
        })
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

/// Texts of all kinds: any at all, and such as are nearly right.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,40}",
        "[A-Z]{2}",
        "\\+[1-9][0-9]{5,16}",
        "[0-9]{4}-[0-9]{2}-[0-9]{2}",
        "[a-z]{1,9}@[a-z]{1,9}",
        "[ -~]{200,300}",
        Just(String::new()),
    ]
}

fn any_request() -> impl Strategy<Value = UpdateCustomerRequest> {
    let texts = vec(option::weighted(0.3, text()), 10);
    let id = prop_oneof![text(), "[a-z]{3}_[0-9]{1,9}", "[^/\\p{Cc}]{1,30}"];
    (
        id,
        option::weighted(0.2, -1..14i32),
        option::weighted(0.2, -1..6i32),
        texts,
    )
        .prop_map(|(customer_id, occupation, ic_type, texts)| {
            let mut texts = texts.into_iter();
            let mut next = || texts.next().flatten();
            UpdateCustomerRequest {
                customer_id,
                occupation,
                ic_type,
                email: next(),
                phone: next(),
                address: next(),
                gender: next(),
                ic_number: next(),
                ic_country: next(),
                ic_expiry_date: next(),
                country_of_residence: next(),
                nationality: next(),
                dob: next(),
            }
        })
}

/// Only such as break no rule.
fn legal_request() -> impl Strategy<Value = UpdateCustomerRequest> {
    let id = "[^/\\p{Cc}]{1,30}";
    let free = || option::of("[^\\p{Cc}]{1,60}");
    let country = || option::of("[A-Z]{2}");
    let day = || option::of("(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])");
    let contact = (
        option::of("[^\\p{Cc}]{1,20}@[^\\p{Cc}]{1,20}"),
        option::of("\\+[1-9][0-9]{6,14}"),
    );
    let codes = (option::of(1..=11i32), option::of(1..=3i32));
    let countries = (country(), country(), Just(Some("PE".to_owned())));
    (
        id,
        contact,
        codes,
        free(),
        free(),
        free(),
        countries,
        day(),
        day(),
    )
        .prop_map(
            |(
                customer_id,
                (email, phone),
                (occupation, ic_type),
                address,
                gender,
                ic_number,
                countries,
                expiry,
                dob,
            )| {
                UpdateCustomerRequest {
                    customer_id,
                    email,
                    phone,
                    occupation,
                    address,
                    gender,
                    ic_type,
                    ic_number,
                    ic_country: countries.0,
                    ic_expiry_date: expiry,
                    country_of_residence: countries.1,
                    nationality: countries.2,
                    dob,
                }
            },
        )
}

/// What a PUT for this request must say.
fn body_of(request: &UpdateCustomerRequest) -> BTreeMap<String, Value> {
    let occupation = request.occupation.map(|number| format!("OCC{number}"));
    let ic_type = request
        .ic_type
        .map(|number| ["", "NIC", "PP", "WEP"][usize::try_from(number).unwrap()].to_owned());
    let fields = [
        ("email", &request.email),
        ("phone", &request.phone),
        ("occupation", &occupation),
        ("address", &request.address),
        ("gender", &request.gender),
        ("ic_type", &ic_type),
        ("ic_number", &request.ic_number),
        ("ic_country", &request.ic_country),
        ("ic_expiry_date", &request.ic_expiry_date),
        ("country_of_residence", &request.country_of_residence),
        ("nationality", &request.nationality),
        ("dob", &request.dob),
    ];
    fields
        .into_iter()
        .filter_map(|(name, set)| Some((name.to_owned(), Value::from(set.clone()?))))
        .collect()
}

/// The PUT that came says exactly what was set, and nothing else.
fn says_exactly(
    upstream: &Upstream,
    before: usize,
    request: &UpdateCustomerRequest,
) -> Result<(), TestCaseError> {
    let received = upstream.received();
    prop_assert_eq!(received.len(), before + 1);
    let put = received.last().unwrap();
    let id = put
        .target()
        .strip_prefix("/updateCustomer?customer_id=")
        .unwrap();
    prop_assert!(
        id.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)),
        "{}",
        id
    );
    prop_assert_eq!(
        percent_decode_str(id).decode_utf8().unwrap(),
        request.customer_id.as_str()
    );
    let said: BTreeMap<String, Value> = serde_json::from_slice(&put.body).unwrap();
    prop_assert_eq!(said, body_of(request));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_request_is_put_exactly_or_refused() {
    let upstream = Upstream::start(Reply::Say(json(200, "{}"))).await;
    let facade = Facade::before(&upstream.url()).await;
    holds(
        600,
        &any_request(),
        &upstream,
        &facade,
        async |request, upstream, facade| {
            let before = upstream.received().len();
            match facade.call(request.clone()).await {
                Ok(_) => says_exactly(upstream, before, &request),
                Err(status) => {
                    let told = Told::of(&status);
                    prop_assert_eq!(
                        (told.code, told.outcome()),
                        (Code::InvalidArgument, "not_sent")
                    );
                    prop_assert!(!told.violations().is_empty());
                    prop_assert_eq!(upstream.received().len(), before);
                    Ok(())
                }
            }
        },
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn any_legal_request_is_put_exactly() {
    let upstream = Upstream::start(Reply::Say(json(200, "{}"))).await;
    let facade = Facade::before(&upstream.url()).await;
    holds(
        300,
        &legal_request(),
        &upstream,
        &facade,
        async |request, upstream, facade| {
            let before = upstream.received().len();
            facade
                .call(request.clone())
                .await
                .map_err(|status| TestCaseError::fail(status.to_string()))?;
            says_exactly(upstream, before, &request)
        },
    );
}

const CANARIES: [&str; 12] = [
    "canary-1@example.com",
    "+62812345678",
    "Canary Street 1",
    "canary-gender",
    "CANARY-NUMBER",
    "QX",
    "2031-12-30",
    "QY",
    "QZ",
    "1971-02-03",
    "OCC10",
    "WEP",
];

fn canary_request() -> UpdateCustomerRequest {
    let canary = |n: usize| Some(CANARIES[n].to_owned());
    UpdateCustomerRequest {
        customer_id: "cus_canary".into(),
        email: canary(0),
        phone: canary(1),
        address: canary(2),
        gender: canary(3),
        ic_number: canary(4),
        ic_country: canary(5),
        ic_expiry_date: canary(6),
        country_of_residence: canary(7),
        nationality: canary(8),
        dob: canary(9),
        occupation: Some(Occupation::Occ10.into()),
        ic_type: Some(IcType::Wep.into()),
    }
}

/// Words that an upstream may say, the caller's own among them, whole and in another case.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        select(&CANARIES[..]).prop_map(str::to_owned),
        select(&CANARIES[..]).prop_map(str::to_uppercase),
        Just("cus_canary".to_owned()),
        ".{0,300}",
        "[A-Z_]{1,70}",
        select(vec![
            "email",
            "name_first",
            "immutable_fields",
            "customer_id",
            "error_code"
        ])
        .prop_map(str::to_owned),
    ]
}

/// A few words in a row, with and without blanks.
fn words() -> impl Strategy<Value = String> {
    (vec(word(), 0..6), select(vec![" ", "", "\"", "\u{0}"]))
        .prop_map(|(words, between)| words.join(between))
}

fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let error = (words(), words(), vec(words(), 0..40), words()).prop_map(
        |(code, message, immutable, other)| {
            value!({
                "error_code": code,
                "error_message": message,
                "details": {"immutable_fields": immutable, "other": other},
            })
            .to_string()
            .into_bytes()
        },
    );
    let profile = (words(), words()).prop_map(|(id, text)| {
        value!({"customer_id": id, "email": text, "occupation": text})
            .to_string()
            .into_bytes()
    });
    prop_oneof![4 => error, 1 => profile, 1 => vec(any::<u8>(), 0..200), 1 => words().prop_map(String::into_bytes)]
}

fn any_answer() -> impl Strategy<Value = Vec<u8>> {
    let status = prop_oneof![200..600u16, select(vec![200, 400, 404, 409, 422, 429, 503])];
    let retry_after = option::of(prop_oneof![Just("0".to_owned()), "[A-Za-z ,:;-]{0,30}"]);
    let label = select(vec![Some(JSON), Some(HTML), None]);
    (status, label, retry_after, any_body(), any::<bool>()).prop_map(
        |(status, label, retry_after, body, cut)| {
            let mut headers: Vec<_> = label.into_iter().collect();
            headers.extend(retry_after.as_deref().map(|value| ("retry-after", value)));
            let mut answer = http(status, &headers, &body);
            if cut {
                answer.pop();
            }
            answer
        },
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn any_answer_becomes_a_status_that_is_small_and_tells_no_value() {
    let upstream = Upstream::start(Reply::Say(vec![])).await;
    // Each answer must be asked for, and once is enough.
    let flags = ["--breaker", "off", "--retry-budget", "0"];
    let facade = Facade::with(&upstream.url(), &flags).await;
    let answers = prop_oneof![9 => any_answer(), 1 => vec(any::<u8>(), 0..300)];
    holds(
        1500,
        &answers,
        &upstream,
        &facade,
        async |answer, upstream, facade| {
            upstream.reply(Reply::SayAndClose(answer));
            let before = upstream.received().len();
            let result = facade.call(canary_request()).await;
            upstream.hung_up().await;
            prop_assert_eq!(upstream.received().len(), before + 1);
            let Err(status) = result else {
                return Ok(());
            };
            // Decodes the details, and checks the size and what holds on every row.
            let told = Told::of(&status);
            told.keeps_the_rules();
            let mut said = vec![told.message.clone(), told.reason.clone()];
            said.extend(told.metadata.values().cloned());
            said.extend(told.sqril_says().map(str::to_owned));
            said.extend(
                told.violations()
                    .into_iter()
                    .flat_map(|violation| [violation.field, violation.description]),
            );
            for said in said {
                let folded = said.to_lowercase();
                for canary in CANARIES
                    .iter()
                    .chain(&["cus_canary"])
                    .filter(|canary| canary.len() > 3)
                {
                    prop_assert!(
                        !folded.contains(&canary.to_lowercase()),
                        "{} in {}",
                        canary,
                        said
                    );
                }
                let mut alone = folded.split(|c: char| !c.is_alphanumeric() && c != '_');
                prop_assert!(
                    !alone.any(|word| matches!(word, "qx" | "qy" | "qz" | "wep")),
                    "{}",
                    said
                );
            }
            Ok(())
        },
    );
}
