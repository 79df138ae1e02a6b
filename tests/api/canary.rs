//! Nothing leaks: every value carries a marker, and everything that the process writes is searched for each of them, in
//! every form in which it travels.

use std::{
    fmt::Write,
    process::{Command, Stdio},
    sync::LazyLock,
    time::Duration,
};

use axum::http::HeaderMap;
use base64::{Engine, prelude::BASE64_STANDARD};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sqril_grpc::{
    config::{self, Cli},
    customer::{CustomerId, CustomerUpdate, Field, HashKey, Private},
    metrics::{Format, Metrics},
    pb::{self, UpdateCustomerRequest, customer_service_client::CustomerServiceClient},
    rest,
    telemetry::{self, Instruments},
};
use tokio::net::TcpListener;
use tonic::{Code, Status, transport::Channel};

use crate::{
    certificates::Folder,
    collector::Collector,
    health::{http_get, http_get_as},
    support::{Facade, HTML, JSON, Reply, Upstream, http, program, with},
};

const ID: &str = "canary-id é&\"1\" #%0d?";
const SECRET: &str = "canary-secret:ü&\"2\" %0a";
const EMAIL: &str = "canary-email+3@example.com";
const PHONE: &str = "+628840041337";
const ADDRESS: &str = "Canary Street \"4\" \\ ñ\u{1F600}";
const GENDER: &str = "canary-gender";
const IC_NUMBER: &str = "CANARY/IC/5";
const EXPIRY: &str = "2087-11-23";
const DOB: &str = "1971-03-17";
const COUNTRY: &str = "QX";
const PROXY_PASSWORD: &str = "canary-proxy-password";
const HASH_KEY: &str = "canary-hash-key-0123456789-0123456789";
/// What only the upstream says.
const BODY: &str = "canary-body";
/// What a caller sends along.
const METADATA: &str = "canary-metadata";

/// Everything that nothing may repeat.
const CANARIES: [&str; 14] = [
    ID,
    SECRET,
    EMAIL,
    PHONE,
    ADDRESS,
    GENDER,
    IC_NUMBER,
    EXPIRY,
    DOB,
    COUNTRY,
    PROXY_PASSWORD,
    HASH_KEY,
    BODY,
    METADATA,
];

fn an_update() -> UpdateCustomerRequest {
    UpdateCustomerRequest {
        customer_id: ID.into(),
        email: Some(EMAIL.into()),
        phone: Some(PHONE.into()),
        occupation: Some(pb::Occupation::Occ10.into()),
        address: Some(ADDRESS.into()),
        gender: Some(GENDER.into()),
        ic_type: Some(pb::IcType::Wep.into()),
        ic_number: Some(IC_NUMBER.into()),
        ic_country: Some(COUNTRY.into()),
        ic_expiry_date: Some(EXPIRY.into()),
        country_of_residence: Some(COUNTRY.into()),
        nationality: Some(COUNTRY.into()),
        dob: Some(DOB.into()),
    }
}

/// A value as it is, in a URL, in JSON, in Rust's own escapes, and inside of base64 wherever it begins.
fn forms(canary: &str) -> Vec<String> {
    let json = serde_json::to_string(canary).unwrap();
    let ascii = canary.chars().fold(String::new(), |mut text, c| {
        match c {
            ' '..='~' if c != '"' && c != '\\' => text.push(c),
            c => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                write!(text, "\\u{unit:04x}").unwrap();
            }),
        }
        text
    });
    let mut forms = vec![
        canary.to_owned(),
        utf8_percent_encode(canary, NON_ALPHANUMERIC).to_string(),
        utf8_percent_encode(canary, NON_ALPHANUMERIC)
            .to_string()
            .replace("%20", "+"),
        canary
            .replace('%', "%25")
            .replace(' ', "%20")
            .replace('"', "%22"),
        json[1..json.len() - 1].to_owned(),
        ascii,
        format!("{canary:?}")[1..].trim_end_matches('"').to_owned(),
        canary.escape_default().to_string(),
        canary
            .bytes()
            .fold(String::new(), |text, b| text + &format!("{b:02x}")),
    ];
    // Too short a piece would occur by chance.
    if canary.len() > 8 {
        for shift in 0..3 {
            let encoded = BASE64_STANDARD.encode([&vec![0; shift], canary.as_bytes()].concat());
            let (from, to) = ([0, 2, 3][shift], (canary.len() + shift) / 3 * 4);
            forms.push(encoded[from..to].to_owned());
        }
    }
    forms
}

/// The forms of every canary, in lower case.
static FORMS: LazyLock<Vec<(&str, Vec<String>)>> = LazyLock::new(|| {
    let folded = |canary| {
        forms(canary)
            .iter()
            .map(|form| form.to_lowercase())
            .collect()
    };
    CANARIES
        .iter()
        .map(|canary| (*canary, folded(canary)))
        .collect()
});

/// Fails if any of these values shows in the text.
#[track_caller]
fn is_clean(text: &str, what: &str, canaries: &[&str]) {
    let folded = text.to_lowercase();
    for (canary, forms) in FORMS.iter().filter(|(canary, _)| canaries.contains(canary)) {
        let shows = if *canary == COUNTRY {
            // Two letters are a value only as a word of their own.
            let mut words = text.split(|c: char| !c.is_alphanumeric());
            words.find(|word| word == canary)
        } else {
            let found = forms.iter().find(|form| folded.contains(*form));
            found.map(String::as_str)
        };
        assert_eq!(shows, None, "{canary} shows in {what}: {text}");
    }
}

/// The search finds what it is for.
#[test]
fn the_search_finds_them() {
    let said = serde_json::json!({"said": format!("xx{SECRET}")}).to_string();
    let base64 = |shift: usize| BASE64_STANDARD.encode(format!("{}{SECRET}z", &"abc"[..shift]));
    let url = |text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    for text in [
        said,
        url(SECRET),
        format!("{:?}", (1, SECRET)),
        base64(0),
        base64(1),
        base64(2),
        SECRET.to_uppercase(),
        serde_json::json!({ "said": said_twice() }).to_string(),
    ] {
        let found = std::panic::catch_unwind(|| is_clean(&text, "", &[SECRET, EMAIL]));
        assert!(found.is_err(), "{text}");
    }
    is_clean("CANARY-NONE", "", &CANARIES);
}

/// JSON within JSON, as an upstream may quote a request.
fn said_twice() -> String {
    serde_json::json!({ "email": EMAIL }).to_string()
}

/// An upstream's body that repeats all that it was sent, and says something of its own, wherever it can. With the
/// secret in it, none of it is told; without it, what is left of it is.
fn echo(secret: &str) -> String {
    let all: Vec<String> = CANARIES.iter().flat_map(|canary| forms(canary)).collect();
    let values = [
        EMAIL, PHONE, GENDER, IC_NUMBER, EXPIRY, DOB, COUNTRY, secret,
    ];
    let request = format!("/updateCustomer?customer_id={}", forms(ID)[1]);
    let message = format!("{request} {:?} {}", ADDRESS, values.join(" | "));
    serde_json::json!({
        "error_code": format!("{GENDER} {secret}"),
        "error_message": message,
        "details": {"immutable_fields": [ID, forms(ADDRESS)[4], EMAIL, ADDRESS, secret, "email"], "all": all},
        "customer_id": ID, "email": EMAIL, "extra": BODY,
    })
    .to_string()
}

/// What a status says, but for the customer's id where the contract puts it: the `ResourceInfo` of rows 29 and 34.
fn told(status: &Status) -> String {
    use tonic_types::StatusExt;
    let mut details = status.get_error_details();
    assert!(
        details.error_info().is_some() || status.code() == Code::Cancelled,
        "{status:?}"
    );
    if let Some(resource) = details.resource_info() {
        let mut resource = resource.clone();
        assert_eq!(
            (&*resource.resource_type, &*resource.resource_name),
            ("customer", ID)
        );
        resource.resource_name.clear();
        details.set_resource_info(
            resource.resource_type,
            "",
            resource.owner,
            resource.description,
        );
    }
    format!("{} {details:?} {:?}", status.message(), status.metadata())
}

/// What the caller may not be told: nothing of what it sent, and nothing of the façade's own.
fn without_body() -> Vec<&'static str> {
    // What Sqril says in an `error_message` is for the caller; its values are not.
    CANARIES
        .into_iter()
        .filter(|canary| *canary != BODY)
        .collect()
}

/// Spans and exemplars, of calls that end in every way that has a span of its own.
#[tokio::test]
async fn spans_and_exemplars() {
    let collector = Collector::start().await;
    let (name, endpoint) = collector.variable();
    let upstream = Upstream::start(Reply::Say(Vec::new())).await;
    let variables = [
        (name, endpoint.as_str()),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "authorization=canary-proxy-password",
        ),
    ];
    let soon = ["--attempt-timeout=300ms", "--connect-timeout=200ms"];
    let (mut facade, _folder) = talkative_among(&variables, &upstream.url(), &soon).await;
    let profile =
        serde_json::json!({"customer_id": ID, "occupation": GENDER, "email": EMAIL, "x": BODY});
    let mut replies = vec![
        Reply::Say(http(200, &[JSON], profile.to_string().as_bytes())),
        Reply::SayAndReset(Vec::new()),
        Reply::SayAndStall(Vec::new()),
        Reply::SayAndClose(http(200, &[JSON], echo(SECRET).as_bytes())[..200].to_vec()),
    ];
    for status in [200, 302, 400, 401, 404, 422, 429, 500, 503] {
        for secret in [SECRET, ""] {
            replies.push(Reply::Say(http(status, &[JSON], echo(secret).as_bytes())));
        }
    }
    let metadata = [
        ("baggage", METADATA),
        ("authorization", METADATA),
        ("x-request-id", "for-canary-gender"),
        ("traceparent", "canary-metadata"),
        ("tracestate", "canary-metadata"),
    ];
    let calls = replies.len();
    for reply in replies {
        upstream.reply(reply);
        drop(facade.call(with(an_update(), &metadata)).await);
    }
    is_quiet(&facade).await;
    facade.signal("TERM");
    assert_eq!(facade.ended().await.code(), Some(0));
    is_clean(&facade.log(), "the log", &CANARIES);
    let spans = collector.spans();
    assert_eq!(spans.len(), 2 * calls);
    is_clean(&format!("{:#?}", collector.received()), "spans", &CANARIES);
}

async fn is_quiet(facade: &Facade) {
    let exemplars = http_get_as(facade.admin, "/metrics", "application/openmetrics-text").await;
    assert!(exemplars.contains("# EOF"), "{exemplars}");
    is_clean(&exemplars, "/metrics", &CANARIES);
    for path in ["/livez", "/readyz", "/metrics", "/version", "/"] {
        let said = http_get(facade.admin, path).await;
        is_clean(&said, path, &CANARIES);
    }
    is_clean(&facade.log(), "the log", &CANARIES);
}

const ALL_LEVELS: (&str, &str) = (
    "RUST_LOG",
    "trace,hyper=trace,h2=trace,reqwest=trace,rustls=trace,tonic=trace,tower=trace,hyper_util=trace",
);

/// A façade that would write everything down if it did.
async fn talkative(upstream: &str, more: &[&str]) -> (Facade, Folder) {
    talkative_among(&[], upstream, more).await
}

/// The same among these variables.
async fn talkative_among(
    variables: &[(&str, &str)],
    upstream: &str,
    more: &[&str],
) -> (Facade, Folder) {
    let folder = Folder::new();
    let (secret, key) = (
        folder.write("secret", SECRET),
        folder.write("key", HASH_KEY),
    );
    let flags = [
        "--upstream-url",
        upstream,
        "--client-id=someone",
        "--client-secret-file",
        &secret,
        "--hash-key-file",
        &key,
        "--breaker=off",
        "--retry-budget=0",
        "--drain-delay=0s",
    ];
    let variables = [variables, &[ALL_LEVELS]].concat();
    let facade = Facade::start(&[&flags, more].concat(), &variables).await;
    (facade, folder)
}

/// Every status with every kind of body, each of which repeats everything.
#[tokio::test]
async fn every_answer() {
    let upstream = Upstream::start(Reply::Say(Vec::new())).await;
    let (facade, _folder) = talkative(&upstream.url(), &[]).await;
    let mut client = facade.client().await;
    let location = format!("https://{BODY}.example/{EMAIL}");
    // What is left of the first two is nothing; the others say little enough to be told, were it not for the value.
    let brief = |value: &str| {
        serde_json::json!({"error_code": "NO", "error_message": format!("no {value}")}).to_string()
    };
    let mut echoes = vec![echo(SECRET), echo("")];
    let hidden = [SECRET, EMAIL, ADDRESS, IC_NUMBER, PHONE, ID];
    echoes.extend(hidden.iter().flat_map(|value| {
        [
            brief(value),
            brief(&forms(value)[1]),
            brief(&forms(value)[4]),
        ]
    }));
    let headers = [
        ("location", location.as_str()),
        ("retry-after", BODY),
        ("x-request-id", BODY),
        ("www-authenticate", BODY),
        ("server", BODY),
    ];
    let metadata = [
        ("authorization", METADATA),
        ("cookie", METADATA),
        ("x-request-id", "for-canary-gender"),
        ("x-other", METADATA),
    ];
    let mut seen = 0;
    for status in 200..600 {
        for kind in [JSON, HTML] {
            let echo = &echoes[usize::from(status) % echoes.len()];
            let answer = http(status, &[&[kind], &headers[..]].concat(), echo.as_bytes());
            let half = answer[..answer.len() - 20].to_vec();
            let replies = match status % 10 {
                0 | 1 => vec![
                    Reply::Say(answer),
                    Reply::SayAndClose(half.clone()),
                    Reply::SayAndReset(half),
                ],
                _ => vec![Reply::Say(answer)],
            };
            for reply in replies {
                upstream.reply(reply);
                match client.update_customer(with(an_update(), &metadata)).await {
                    Ok(answer) => {
                        // A profile is what was asked for. The warnings beside it name fields alone.
                        let answer = answer.into_inner();
                        is_clean(&format!("{:?}", answer.warnings), "warnings", &CANARIES);
                        is_clean(&format!("{answer:?}"), "Debug", &CANARIES);
                    }
                    Err(status) => {
                        is_clean(&told(&status), "a status", &without_body());
                        seen += 1;
                    }
                }
            }
        }
    }
    assert!(seen > 900, "{seen} errors");
    assert!(upstream.received().len() > 900);
    // By its key, the customer can be found in every line.
    let line = facade.logged(|line| line["message"] == "call").await;
    let id = CustomerId::parse(ID.into()).unwrap();
    let pseudonym = HashKey::of(HASH_KEY.as_bytes()).unwrap().pseudonym(&id);
    assert_eq!(line["customer"], *pseudonym);
    is_quiet(&facade).await;
}

/// Every request that ends before an answer: refused, malformed, oversized, unanswered, cancelled.
#[tokio::test]
async fn every_other_end() {
    let nobody = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let upstream = Upstream::start(Reply::SayAndStall(Vec::new())).await;
    let proxy =
        Upstream::answering(407, &[HTML, ("proxy-authenticate", BODY)], &echo(SECRET)).await;
    let proxy_url = format!(
        "--upstream-proxy=http://user:{PROXY_PASSWORD}@{}",
        proxy.address
    );
    let stalled = ["--attempt-timeout=300ms", "--connect-timeout=200ms"];
    let cases: [(String, Vec<&str>); 6] = [
        (format!("http://{nobody}"), vec![]),
        (format!("https://{nobody}"), vec![]),
        ("https://canary-host.invalid".into(), vec![]),
        (upstream.url(), stalled.to_vec()),
        ("https://sqril.invalid".into(), vec![&proxy_url]),
        (
            "http://sqril.invalid".into(),
            vec![&proxy_url, "--allow-plaintext-upstream"],
        ),
    ];
    for (url, flags) in &cases {
        let (facade, _folder) = talkative(url, flags).await;
        let status = facade.call(an_update()).await.unwrap_err();
        is_clean(&told(&status), "a status", &CANARIES);
        is_quiet(&facade).await;
    }

    let (facade, _folder) = talkative(&upstream.url(), &[]).await;
    // All that is wrong with a request names fields.
    let malformed = UpdateCustomerRequest {
        customer_id: format!("{ID}/"),
        email: Some(format!("{GENDER}\n")),
        phone: Some(IC_NUMBER.into()),
        occupation: Some(99),
        address: Some(ADDRESS.repeat(100)),
        nationality: Some(EMAIL.into()),
        dob: Some(ADDRESS.into()),
        ..an_update()
    };
    let status = facade.call(malformed).await.unwrap_err();
    is_clean(&told(&status), "a status", &CANARIES);
    // A message that is too large, and one that is no protobuf, never reach us.
    let huge = UpdateCustomerRequest {
        address: Some(ADDRESS.repeat(4096)),
        ..an_update()
    };
    let status = facade.call(huge).await.unwrap_err();
    is_clean(&format!("{status:?}"), "a status", &CANARIES);
    let mut any = tonic::client::Grpc::new(facade.channel().await);
    for path in [
        "/sqril.customer.v1.CustomerService/UpdateCustomer",
        "/sqril.customer.v1.CustomerService/canary-metadata",
        "/canary-metadata/canary-email+3@example.com",
    ] {
        any.ready().await.unwrap();
        let path = path.parse().unwrap();
        // The field of the customer's id as bytes that are no UTF-8.
        let message = [ID.as_bytes(), b"\xff"].concat();
        let codec = tonic_prost::ProstCodec::<Vec<u8>, ()>::default();
        let status = any
            .unary(tonic::Request::new(message), path, codec)
            .await
            .unwrap_err();
        is_clean(&format!("{status:?}"), "a status", &CANARIES);
    }
    // A caller that leaves.
    let mut client = facade.client().await;
    let mut impatient = tonic::Request::new(an_update());
    impatient.set_timeout(Duration::from_millis(200));
    let status = client.update_customer(impatient).await.unwrap_err();
    is_clean(&format!("{status:?}"), "a status", &CANARIES);
    facade.logged(|line| line["message"] == "call").await;
    is_quiet(&facade).await;
}

/// The log for people, and the end of the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_log_for_people() {
    let upstream = Upstream::answering(500, &[JSON], &echo("")).await;
    let folder = Folder::new();
    let secret = folder.write("secret", SECRET);
    let url = format!("--upstream-url={}", upstream.url());
    let secret = format!("--client-secret-file={secret}");
    let flags = [
        "--listen=127.0.0.1:0",
        "--admin-listen=127.0.0.1:0",
        "--log-format=text",
        "--drain-delay=0s",
        "--client-id=someone",
        &url,
        &secret,
    ];
    let mut process = program("serve", &flags, &[ALL_LEVELS])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(process.stderr.take().unwrap()));
    let serving = lines.next().unwrap().unwrap();
    let address = serving
        .split("grpc=")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    let mut client = CustomerServiceClient::new(channel.connect().await.unwrap());
    for _ in 0..3 {
        client.update_customer(an_update()).await.unwrap_err();
    }
    let pid = process.id().to_string();
    assert!(Command::new("kill").arg(pid).status().unwrap().success());
    let log: Vec<String> = lines.map(Result::unwrap).collect();
    let log = log.join("\n");
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(output.stdout.is_empty(), "nothing goes to standard output");
    assert!(log.matches("UpdateCustomer").count() == 3, "{log}");
    is_clean(&log, "the log", &CANARIES);
}

/// The embedded Sqril logs as little.
#[tokio::test]
async fn the_sandbox() {
    let facade = Facade::start(&["--sandbox"], &[ALL_LEVELS]).await;
    for id in [ID, "sbx_canary-id", "cus_sandbox"] {
        let request = UpdateCustomerRequest {
            customer_id: id.into(),
            ..an_update()
        };
        drop(facade.call(request).await);
    }
    facade
        .logged_again(3, |line| line["message"] == "call")
        .await;
    is_quiet(&facade).await;
    assert!(!facade.log().contains("sbx_canary"));
}

type Variable<'a> = (&'a str, &'a str);

/// A configuration is shown, or refused, without what is secret in it.
#[test]
fn the_configuration() {
    let folder = Folder::new();
    let (secret, key) = (
        folder.write("secret", SECRET),
        folder.write("key", HASH_KEY),
    );
    let bad = folder.write("bad", format!("{SECRET}\u{7}"));
    let proxy = format!("http://user:{PROXY_PASSWORD}@proxy:3128");
    let with_password = format!("https://user:{PROXY_PASSWORD}@sqril.example");
    let flag = format!("--client-secret={SECRET}");
    let bad_id = format!("{BODY}:{BODY}");
    let cases: [(Vec<&str>, Vec<Variable>, i32); 9] = [
        (
            vec!["--check-config", "--upstream-proxy", &proxy],
            vec![("SQRIL_GRPC_CLIENT_SECRET", SECRET)],
            0,
        ),
        (
            vec![
                "--check-config",
                "--client-secret-file",
                &secret,
                "--hash-key-file",
                &key,
            ],
            vec![],
            0,
        ),
        (
            vec!["--help"],
            vec![
                ("SQRIL_GRPC_CLIENT_SECRET", SECRET),
                ("SQRIL_GRPC_UPSTREAM_PROXY", &proxy),
            ],
            0,
        ),
        (vec!["--client-secret-file", &bad], vec![], 64),
        (
            vec![
                "--client-secret-file",
                &secret,
                "--upstream-url",
                &with_password,
            ],
            vec![],
            64,
        ),
        (
            vec!["--client-secret-file", &secret],
            vec![("SQRIL_GRPC_UPSTREAM_URL", &with_password)],
            64,
        ),
        (
            vec!["--client-secret-file", &secret],
            vec![("SQRIL_GRPC_UPSTREAM_PROXY", "canary-proxy-password:x")],
            64,
        ),
        (vec![&flag], vec![], 64),
        (
            vec!["--client-secret-file", &secret, "--client-id", &bad_id],
            vec![],
            64,
        ),
    ];
    for (flags, variables, code) in cases {
        let id = if flags.contains(&"--client-id") {
            &[][..]
        } else {
            &["--client-id=someone"]
        };
        let output = program("serve", &[&flags[..], id].concat(), &variables)
            .output()
            .unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(code), "{flags:?}: {said}");
        is_clean(&said, "what is said of the configuration", &CANARIES);
    }
}

/// `Debug` of every public type that could hold something.
#[tokio::test]
async fn debug() {
    let folder = Folder::new();
    let secret = folder.write("secret", SECRET);
    let key = folder.write("key", HASH_KEY);
    let proxy = format!("http://user:{PROXY_PASSWORD}@127.0.0.1:1");
    let line = [
        "sqril-grpc",
        "serve",
        "--client-id=someone",
        "--client-secret-file",
        &secret,
        "--hash-key-file",
        &key,
        "--upstream-proxy",
        &proxy,
    ];
    let Ok(cli) = Cli::read(line.map(Into::into)) else {
        panic!("a legal command line")
    };
    let config::Command::Serve(args) = cli.command else {
        panic!("serve")
    };
    let serve = args.check().unwrap();
    let values = [
        (Field::Email, Ok(EMAIL.to_owned())),
        (Field::Address, Ok(ADDRESS.to_owned())),
    ];
    let update = CustomerUpdate::parse(ID.to_owned(), values).unwrap();
    let violations =
        CustomerUpdate::parse(format!("{ID}/"), [(Field::Email, Ok(GENDER.to_owned()))]);
    let answer = rest::Answer {
        status: 400,
        retry_after: None,
        refusal: Some(rest::Refusal {
            code: Private::from(EMAIL.to_owned()),
            message: Some(Private::from(ADDRESS.to_owned())),
            immutable: vec![Private::from(ID.to_owned())],
            named: vec![Field::Email],
        }),
        credentials_changed: false,
    };
    let response = pb::UpdateCustomerResponse {
        customer: Some(pb::Customer {
            customer_id: ID.into(),
            email: EMAIL.into(),
            address: ADDRESS.into(),
            ..Default::default()
        }),
        warnings: Vec::new(),
    };
    let mut shown = String::new();
    macro_rules! show {
        ($($value:expr),* $(,)?) => {$(
            write!(shown, "{:?}\n{:#?}\n", $value, $value).unwrap();
        )*};
    }
    let credentials = serve
        .credentials
        .as_ref()
        .map(|loaded| loaded.value.clone())
        .unwrap();
    let instruments = Instruments::default();
    let metrics = instruments.metrics.clone();
    let client = rest::Client::new(serve.upstream.clone(), &credentials, metrics).unwrap();
    let errand = rest::Errand {
        request_id: "r",
        deadline: tokio::time::Instant::now() + Duration::from_secs(5),
        progress: &std::sync::Arc::default(),
        trace: &instruments.tracer.call(&HeaderMap::new(), "method"),
    };
    let Err(unreachable) = client.update(&update, &errand).await else {
        panic!("nobody is there")
    };
    show!(
        serve,
        credentials,
        serve.upstream,
        serve.hash_key,
        violations.as_ref().err(),
        answer,
        response,
        an_update(),
        response.customer,
        tonic::Request::new(an_update()),
        unreachable,
        unreachable.chain(),
        rest::Error::Answered(answer_of(EMAIL)),
        Private::from(EMAIL.to_owned()),
    );
    assert!(shown.len() > 2000, "{shown}");
    is_clean(&shown, "Debug", &CANARIES);
}

fn answer_of(text: &str) -> rest::Answer {
    rest::Answer {
        status: 400,
        retry_after: None,
        refusal: Some(rest::Refusal {
            code: Private::from(text.to_owned()),
            message: None,
            immutable: Vec::new(),
            named: Vec::new(),
        }),
        credentials_changed: false,
    }
}

/// A panic tells its place and nothing of its message. Nothing outside makes the program panic, so a process of the
/// tests' own does, with the program's log.
#[test]
fn a_panic() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "canary::panicking", "--ignored", "--nocapture"])
        .env("RUST_BACKTRACE", "full")
        .output()
        .unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("\"message\":\"panic\"").count(), 2, "{said}");
    assert!(said.contains("canary.rs:"), "{said}");
    is_clean(&said, "a panic", &CANARIES);
}

#[test]
#[ignore = "run by a_panic, in a process of its own"]
fn panicking() {
    let metrics = Metrics::default();
    let _log = telemetry::init(telemetry::LogFormat::Json, 100, &metrics);
    let thread = std::thread::spawn(|| panic!("{EMAIL} {SECRET}"));
    assert!(thread.join().is_err());
    let unwrapped = |text: &str| text.parse::<u8>().map_err(|_| text.to_owned()).unwrap();
    assert!(std::thread::spawn(move || unwrapped(ID)).join().is_err());
    assert!(
        metrics
            .encode(Format::Text)
            .contains("sqril_panics_total 2\n")
    );
}
