//! The embedded Sqril: a real HTTP server that answers `PUT /updateCustomer` as Sqril is known to, keeps what it is
//! told in memory, and has identifiers with a meaning, by which every kind of answer can be had.
//!
//! For trying things out and for consumers' tests. What is not known of Sqril is not made up, but for one code:
//! nobody has seen what Sqril calls an immutable field, here it is `IMMUTABLE_FIELDS`.

mod answer;
mod profile;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use http_body_util::{BodyExt, Limited};
use hyper::{
    Method, Request,
    body::Incoming,
    header::{AUTHORIZATION, HeaderMap},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use secrecy::SecretString;
use serde_json::{Map, Value};
use tokio::net::{TcpListener, TcpStream};
use tracing::info;
use url::{Url, form_urlencoded};

use self::{
    answer::{Answer, Ending},
    profile::{Profile, UPDATABLE},
};
use crate::rest::Credentials;

const NAMES: [&str; 2] = ["name_first", "name_last"];
const CLIENT_ID: &str = "sandbox-client";
const CLIENT_SECRET: &str = "sandbox-secret";
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The only credentials that the sandbox takes.
pub fn credentials() -> Credentials {
    Credentials {
        id: CLIENT_ID.to_owned(),
        secret: SecretString::from(CLIENT_SECRET),
    }
}

/// An embedded Sqril with its socket bound.
pub struct Sandbox {
    listener: TcpListener,
    state: Arc<State>,
}

impl Sandbox {
    /// Takes the socket to listen on.
    pub fn new(listener: TcpListener) -> Self {
        Sandbox {
            listener,
            state: Arc::default(),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Its base URL.
    pub fn url(&self) -> Url {
        let address = self
            .address()
            .map_or_else(|_| String::new(), |address| address.to_string());
        Url::parse(&format!("http://{address}")).expect("an address makes a URL")
    }

    /// Serves for as long as it is polled.
    pub async fn run(self) -> Infallible {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(connection(stream, Arc::clone(&self.state)))),
                // Out of descriptors, most likely: some will be free soon.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// What the sandbox remembers.
#[derive(Default)]
struct State {
    customer: Mutex<Profile>,
    flaked: AtomicBool,
}

async fn connection(stream: TcpStream, state: Arc<State>) {
    // A second handle on the socket, for the answer that is none.
    let Ok(socket) = stream
        .as_fd()
        .try_clone_to_owned()
        .map(socket2::Socket::from)
    else {
        return;
    };
    drop(stream.set_nodelay(true));
    let service = service_fn(|request| {
        let (state, socket) = (Arc::clone(&state), &socket);
        async move {
            let answer = respond(request, &state).await;
            match answer.ending {
                Ending::Whole | Ending::Cut => Ok(answer.into_response()),
                Ending::Never => std::future::pending().await,
                Ending::Reset => {
                    // Closing with a linger time of zero sends RST instead of FIN.
                    drop(socket.set_linger(Some(Duration::ZERO)));
                    Err(io::Error::from(io::ErrorKind::ConnectionReset))
                }
            }
        }
    });
    // What a client does to its connection is its own affair.
    drop(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service)
            .await,
    );
}

async fn respond(request: Request<Incoming>, state: &State) -> Answer {
    let (head, body) = request.into_parts();
    let known = head.uri.path() == "/updateCustomer";
    let query = head.uri.query().unwrap_or_default().as_bytes();
    let id = form_urlencoded::parse(query)
        .find(|(name, _)| name == "customer_id")
        .map(|(_, id)| id.into_owned());
    let id = id.filter(|id| !id.is_empty());

    let mut asked = Map::new();
    let answer = if !known {
        Answer::error(404, "RESOURCE_NOT_FOUND", "There is no such endpoint.")
    } else if head.method != Method::PUT {
        Answer::error(405, "INVALID_REQUEST", "This endpoint takes PUT.")
    } else if let Err(answer) = authenticate(&head.headers) {
        answer
    } else {
        match Limited::new(body, MAX_BODY_BYTES)
            .collect()
            .await
            .map(|body| serde_json::from_slice(&body.to_bytes()))
        {
            Err(_) => Answer::error(413, "INVALID_REQUEST", "The body is too large."),
            Ok(Err(_)) => Answer::error(400, "INVALID_REQUEST", "The body must be a JSON object."),
            Ok(Ok(object)) => {
                asked = object;
                update(id.as_deref(), &asked, state)
            }
        }
    };
    let fields: Vec<_> = asked
        .keys()
        .map(String::as_str)
        .filter(|name| profile::is_known(name))
        .collect();
    let scenario = id
        .as_deref()
        .filter(|id| id.starts_with("sbx_") && answer::is_scenario(id));
    let path = if known { "/updateCustomer" } else { "other" };
    let fields = fields.join(",");
    info!(method = %head.method, path, scenario, fields, status = answer.status, "sandbox");
    answer
}

fn authenticate(headers: &HeaderMap) -> Result<(), Answer> {
    let pair = BASE64_STANDARD.encode(format!("{CLIENT_ID}:{CLIENT_SECRET}"));
    match headers.get(AUTHORIZATION).map(|value| value.as_bytes()) {
        Some(value) if value == format!("Basic {pair}").as_bytes() => Ok(()),
        Some(_) => Err(Answer::error(
            401,
            "INVALID_CREDENTIALS",
            "The credentials are not known.",
        )),
        None => Err(Answer::error(
            401,
            "AUTHENTICATION_REQUIRED",
            "This endpoint needs Basic authentication.",
        )),
    }
}

/// What Sqril says to an update.
fn update(id: Option<&str>, asked: &Map<String, Value>, state: &State) -> Answer {
    let Some(id) = id else {
        return Answer::error(400, "MISSING_REQUIRED_FIELD", "customer_id is required.");
    };
    if let Some(answer) = answer::scenario(id, asked, || {
        state.flaked.fetch_xor(true, Ordering::Relaxed)
    }) {
        return answer;
    }
    if id != profile::CUSTOMER_ID {
        return Answer::error(404, "RESOURCE_NOT_FOUND", "The customer is not known.");
    }
    if let Err(answer) = check(asked) {
        return answer;
    }
    let mut customer = state
        .customer
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    customer.apply(asked);
    Answer::json(200, &customer.to_json())
}

/// Refuses what Sqril refuses: names, an empty update, values of a wrong type, unknown codes.
fn check(asked: &Map<String, Value>) -> Result<(), Answer> {
    let names: Vec<_> = NAMES
        .into_iter()
        .filter(|name| asked.contains_key(*name))
        .collect();
    if !names.is_empty() {
        return Err(Answer::immutable(names));
    }
    if !asked.keys().any(|name| UPDATABLE.contains(&name.as_str())) {
        return Err(Answer::error(
            400,
            "MISSING_REQUIRED_FIELD",
            "Provide at least one field to update.",
        ));
    }
    for (name, value) in asked
        .iter()
        .filter(|(name, _)| UPDATABLE.contains(&name.as_str()))
    {
        let legal = match (name.as_str(), value.as_str()) {
            (_, None) => false,
            ("occupation", Some(code)) => {
                let number = code
                    .strip_prefix("OCC")
                    .and_then(|number| number.parse::<u8>().ok());
                number.is_some_and(|number| {
                    (1..=11).contains(&number) && format!("OCC{number}") == code
                })
            }
            ("ic_type", Some(code)) => matches!(code, "NIC" | "PP" | "WEP"),
            (_, Some(_)) => true,
        };
        if !legal {
            return Err(Answer::error(
                400,
                "INVALID_REQUEST",
                &format!("The value of {name} is not supported."),
            ));
        }
    }
    Ok(())
}
