//! The sandbox's answers, and the identifiers that ask for a certain one.

use std::io;

use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Response,
    body::{Bytes, Frame},
    header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER},
};
use serde_json::{Map, Value, json};
use tokio_stream::StreamExt;

use super::profile::Profile;

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// As it should.
    Whole,
    /// Half of the body, then the connection is closed.
    Cut,
    /// No answer, and a reset of the connection.
    Reset,
    /// No answer for as long as the client waits.
    Never,
}

/// One answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) ending: Ending,
    content_type: &'static str,
    retry_after: Option<&'static str>,
    body: String,
}

impl Answer {
    pub(super) fn json(status: u16, body: &Value) -> Self {
        Answer {
            status,
            ending: Ending::Whole,
            content_type: "application/json",
            retry_after: None,
            body: body.to_string(),
        }
    }

    pub(super) fn error(status: u16, code: &str, message: &str) -> Self {
        Answer::json(
            status,
            &json!({"error_code": code, "error_message": message, "details": {}}),
        )
    }

    pub(super) fn immutable<'a>(fields: impl IntoIterator<Item = &'a str>) -> Self {
        let fields: Vec<_> = fields.into_iter().collect();
        let message = format!("These fields cannot be updated: {}", fields.join(", "));
        let details = json!({"immutable_fields": fields});
        let body =
            json!({"error_code": "IMMUTABLE_FIELDS", "error_message": message, "details": details});
        Answer::json(400, &body)
    }

    fn html(status: u16) -> Self {
        let body = format!(
            "<!doctype html><title>{status}</title><h1>{status}</h1><p>Said by a box in between.</p>\n"
        );
        Answer {
            content_type: "text/html; charset=utf-8",
            body,
            ..Answer::json(status, &Value::Null)
        }
    }

    fn ending(self, ending: Ending) -> Self {
        Answer { ending, ..self }
    }

    fn retry_after(self, seconds: &'static str) -> Self {
        Answer {
            retry_after: Some(seconds),
            ..self
        }
    }

    /// The answer as it goes out. One that is cut announces its whole length.
    pub(super) fn into_response(self) -> Response<UnsyncBoxBody<Bytes, io::Error>> {
        let mut response = Response::builder()
            .status(self.status)
            .header(CONTENT_TYPE, self.content_type);
        if let Some(seconds) = self.retry_after {
            response = response.header(RETRY_AFTER, seconds);
        }
        if !matches!(self.status, 204 | 304) {
            response = response.header(CONTENT_LENGTH, self.body.len());
        }
        let mut body = Bytes::from(self.body);
        let cut = self.ending == Ending::Cut;
        let sent = if cut {
            body.split_to(body.len() / 2)
        } else {
            body
        };
        let end = tokio_stream::iter(cut.then_some(())).then(async |()| {
            // What is there goes out before the connection breaks.
            tokio::task::yield_now().await;
            Err(io::Error::from(io::ErrorKind::UnexpectedEof))
        });
        let body =
            StreamBody::new(tokio_stream::iter([Ok(Frame::data(sent))]).chain(end)).boxed_unsync();
        response
            .body(body)
            .expect("a status from 200 to 599 and legal headers")
    }
}

/// Whether an identifier asks for a certain answer.
pub(super) fn is_scenario(id: &str) -> bool {
    scenario(id, &Map::new(), || false).is_some()
}

/// The answer that an identifier asks for. `flaked` tells whether the last flaky answer was the bad one.
pub(super) fn scenario(
    id: &str,
    asked: &Map<String, Value>,
    flaked: impl FnOnce() -> bool,
) -> Option<Answer> {
    let unavailable = || {
        Answer::error(
            503,
            "INTERNAL_SERVER_ERROR",
            "The service is not available.",
        )
    };
    let mut customer = Profile::of(id);
    customer.apply(asked);
    let answer = match id {
        "sbx_immutable" => Answer::immutable(asked.keys().map(String::as_str)),
        "sbx_rate_limited" => {
            Answer::error(429, "RATE_LIMIT_EXCEEDED", "Too many requests.").retry_after("3")
        }
        "sbx_unavailable" => unavailable().retry_after("3"),
        "sbx_flaky" if !flaked() => unavailable().retry_after("0"),
        "sbx_flaky" => Answer::json(200, &customer.to_json()),
        "sbx_new_codes" => {
            customer.set("occupation", json!("OCC12"));
            customer.set("ic_type", json!("KTP"));
            Answer::json(200, &customer.to_json())
        }
        "sbx_sparse" => Answer::json(
            200,
            &json!({"customer_id": id, "name_first": "Siti", "phone": 62_812_345_679_u64}),
        ),
        "sbx_other_customer" => Answer::json(200, &Profile::of("cus_somebody_else").to_json()),
        "sbx_cut" => Answer::json(200, &customer.to_json()).ending(Ending::Cut),
        "sbx_huge" => {
            customer.set("notes", Value::String("x".repeat(256 * 1024)));
            Answer::json(200, &customer.to_json())
        }
        "sbx_reset" => unavailable().ending(Ending::Reset),
        "sbx_stall" => unavailable().ending(Ending::Never),
        _ => {
            let (kind, status) = id.strip_prefix("sbx_")?.split_once('_')?;
            let status = status
                .parse::<u16>()
                .ok()
                .filter(|number| number.to_string() == status)?;
            match (kind, status) {
                ("status", 200..=599) => {
                    Answer::error(status, code_of(status), "Asked for by the identifier.")
                }
                ("foreign", 200..=599) => Answer::html(status),
                _ => return None,
            }
        }
    };
    Some(answer)
}

/// The code that Sqril is known to use with a status, or its most general one.
fn code_of(status: u16) -> &'static str {
    match status {
        401 => "INVALID_CREDENTIALS",
        404 => "RESOURCE_NOT_FOUND",
        429 => "RATE_LIMIT_EXCEEDED",
        500..=599 => "INTERNAL_SERVER_ERROR",
        _ => "INVALID_REQUEST",
    }
}
