//! Every way in which http says no: the stable codes with their remedies, and the body that carries one (RFC 9457). The only place
//! where an error becomes a status.
//!
//! Guarantees: what a client reads is a code, a sentence and a remedy; what the database or the process said goes to the log.

use hyper::{Response, StatusCode, header};
use serde::Serialize;

use super::routes::{Content, full};
use crate::error::{Error, Kind, Refusal};

/// The media type of every error.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// A stable code: programs may depend on its name and status.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// As in `already_over`.
    pub name: &'static str,
    /// The HTTP status that comes with it.
    pub status: u16,
    /// What to do about it, in a sentence.
    pub remedy: &'static str,
}

macro_rules! codes {
    ($($name:ident = $text:literal $status:literal $remedy:literal;)*) => {
        $(#[doc = $remedy] pub const $name: Code = Code { name: $text, status: $status, remedy: $remedy };)*
        /// Every code, those that `sundown.submit` and its sisters raise included.
        pub const CODES: &[Code] = &[$($name),*];
    };
}

codes! {
    MISSING_IMAGE = "missing_image" 400 "Name the image to run, as in \"busybox:1.36\".";
    MISSING_TTL = "missing_ttl" 400 "Send {\"ttl\": \"10m\"}: it then ends ten minutes from now.";
    INVALID_JSON = "invalid_json" 400 "Send one JSON object and nothing after it.";
    INVALID_UTF8 = "invalid_utf8" 400 "Send JSON in UTF-8.";
    INVALID_BODY = "invalid_body" 400 "Send a JSON object whose fields have the types that the API describes.";
    INVALID_TEXT = "invalid_text" 400 "Leave out the NUL character.";
    UNKNOWN_FIELD = "unknown_field" 400 "Leave the field out or correct its name.";
    DUPLICATE_FIELD = "duplicate_field" 400 "Give each field once.";
    INVALID_IMAGE = "invalid_image" 400 "Use a name such as \"registry/name:tag\", at most 255 characters.";
    INVALID_COMMAND = "invalid_command" 400 "Give a list of strings, together at most 64 KiB.";
    INVALID_TTL = "invalid_ttl" 400 "Give a duration above zero, such as \"90s\" or \"1h30m\".";
    INVALID_MAX_TTL = "invalid_max_ttl" 400 "Give a duration above zero, such as \"2h\".";
    ABOVE_CEILING = "above_ceiling" 400 "Ask for less: max_ttl and SUNDOWN_MAX_TTL bound every life. A PATCH is answered so with 409.";
    INVALID_GRACE = "invalid_grace" 400 "Give a duration of at most an hour; \"0s\" kills at once.";
    INVALID_START_TIMEOUT = "invalid_start_timeout" 400 "Give a duration between a second and an hour.";
    INVALID_QUEUE_TIMEOUT = "invalid_queue_timeout" 400 "Give a duration above zero, or leave it out to wait as long as it takes.";
    INVALID_RUN_AT = "invalid_run_at" 400 "Give an instant within the next year, with its offset.";
    INVALID_NAME = "invalid_name" 400 "Use at most 63 letters, digits, \"_\", \".\" and \"-\".";
    INVALID_TENANT = "invalid_tenant" 400 "Use at most 63 letters, digits, \"_\", \".\" and \"-\".";
    INVALID_LABELS = "invalid_labels" 400 "Give at most 64 labels of strings, none of them beginning with \"sundown.\".";
    INVALID_ENV = "invalid_env" 400 "Give an object of strings, each at most 32 KiB, together at most 64 KiB, none beginning with \"SUNDOWN_\".";
    INVALID_CPUS = "invalid_cpus" 400 "Give a number of cores between 0.01 and 512.";
    INVALID_MEMORY = "invalid_memory" 400 "Give bytes between 6 MiB and 1 TiB, as in \"64m\".";
    INVALID_PIDS = "invalid_pids" 400 "Give a number of processes between 1 and 32768.";
    INVALID_NETWORK = "invalid_network" 400 "Use none or bridge.";
    INVALID_KEY = "invalid_key" 400 "Send one Idempotency-Key of 1 to 255 bytes, something like a UUID.";
    INVALID_NOTIFY = "invalid_notify" 400 "Use auto, always or never.";
    INVALID_VALUE = "invalid_value" 400 "Use a smaller duration or number, or an earlier instant.";
    INVALID_PARAMETER = "invalid_parameter" 400 "Correct the parameter that the detail names.";
    UNKNOWN_PARAMETER = "unknown_parameter" 400 "Leave the parameter out or correct its name.";
    MALFORMED_ID = "malformed_id" 400 "Use the id as POST /agents returned it.";
    CROSS_ORIGIN = "cross_origin" 403 "A web page of another site may not change anything; ask from your own server.";
    UNKNOWN_AGENT = "unknown_agent" 404 "List GET /agents; ended agents are forgotten after the retention.";
    UNKNOWN_ROUTE = "unknown_route" 404 "Use /agents, /agents/{id}, its /logs and /events, /events, /hosts, /replicas, /openapi.json, /healthz, /readyz or /metrics.";
    METHOD_NOT_ALLOWED = "method_not_allowed" 405 "Use one of the methods in the Allow header.";
    BODY_TIMEOUT = "body_timeout" 408 "Send the body within ten seconds.";
    ALREADY_OVER = "already_over" 409 "Submit a new agent.";
    KEY_REUSED = "key_reused" 409 "Use a new Idempotency-Key for a new request.";
    NOT_STARTED = "not_started" 409 "Ask again when it runs.";
    BODY_TOO_LARGE = "body_too_large" 413 "Send at most 256 KiB.";
    INTERNAL = "internal" 500 "This is a defect; the server's log has the details.";
    DATABASE_UNAVAILABLE = "database_unavailable" 503 "Try again; with an Idempotency-Key a POST may be repeated safely.";
    LOG_ELSEWHERE = "log_elsewhere" 503 "Ask a replica that serves the agent's host, or read the log after its end.";
    NOT_READY = "not_ready" 503 "Try another replica, or again later.";
    TOO_MANY_CONNECTIONS = "too_many_connections" 503 "Try again in a second, and keep connections open instead of making new ones.";
}

/// An error on its way to a client.
#[derive(Debug)]
pub struct Problem {
    code: String,
    status: u16,
    detail: String,
    hint: String,
    /// What readiness lacks.
    pub missing: Vec<&'static str>,
    /// The methods that a route takes, for the header.
    pub allow: Option<&'static str>,
}

/// The body, in the order in which people read it.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: String,
    status: u16,
    code: &'a str,
    detail: &'a str,
    hint: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    missing: &'a [&'static str],
}

impl Problem {
    /// A problem of our own.
    pub fn new(code: &Code, detail: impl Into<String>) -> Self {
        Self::of(code.name, code.status, detail.into(), code.remedy.to_owned())
    }

    /// A parameter whose value is not one.
    pub fn parameter(name: &str, expected: &str) -> Self {
        let hint = format!("Give {expected} for `{name}`, or leave it out.");
        Self::of(INVALID_PARAMETER.name, INVALID_PARAMETER.status, format!("`{name}` is not {expected}"), hint)
    }

    fn of(code: &str, status: u16, detail: String, hint: String) -> Self {
        Self { code: code.to_owned(), status, detail, hint, missing: Vec::new(), allow: None }
    }

    /// The body.
    pub fn json(&self) -> String {
        let Self { code, status, detail, hint, missing, .. } = self;
        let (kind, title) = (format!("urn:sundown:{code}"), code.replace('_', " "));
        // Strings and a number: it cannot fail, and if it did, the status still says what matters.
        serde_json::to_string(&Body { kind, title, status: *status, code, detail, hint, missing }).unwrap_or_default()
    }

    /// The answer.
    pub fn response(&self) -> Response<Content> {
        let mut response = Response::new(full(self.json()));
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(MEDIA_TYPE));
        if self.status == 503 {
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, header::HeaderValue::from_static(allow));
        }
        // The rest of such a request is not read, so nothing that comes after it could be understood.
        if [BODY_TIMEOUT.status, BODY_TOO_LARGE.status].contains(&self.status) {
            headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(Refusal { kind, code, message, hint }) => {
                let status = match kind {
                    Kind::Invalid => 400,
                    Kind::Unknown => 404,
                    Kind::Conflict => 409,
                };
                Self::of(&code, status, message, hint)
            }
            Error::Unavailable(reason) | Error::Locked(reason) => {
                tracing::warn!(%reason, "a request could not be answered: the database is away");
                Self::new(&DATABASE_UNAVAILABLE, "the database does not answer")
            }
            Error::Internal(reason) => {
                tracing::error!(%reason, "a request failed on a defect");
                Self::new(&INTERNAL, "something went wrong here")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_each_has_a_remedy() {
        for (place, code) in CODES.iter().enumerate() {
            assert!(code.remedy.ends_with('.') && code.remedy.len() > 10, "{code:?}");
            assert!(CODES[..place].iter().all(|other| other.name != code.name), "{code:?}");
        }
    }

    #[test]
    fn every_code_that_sql_or_a_body_raises_is_listed() {
        let sources = [
            include_str!("../../sql/functions/05_wake.sql"),
            include_str!("../../sql/functions/06_submit.sql"),
            include_str!("../../sql/functions/08_terminate.sql"),
            include_str!("../../sql/functions/09_extend.sql"),
            include_str!("../agent.rs"),
            include_str!("../error.rs"),
        ];
        let prefixes = ["invalid_", "missing_", "above_", "already_", "unknown_", "key_", "duplicate_"];
        let mut seen = 0;
        for word in sources.iter().flat_map(|text| text.split(['\'', '"'])) {
            let is_code = prefixes.iter().any(|prefix| word.starts_with(prefix) && word.len() > prefix.len());
            if is_code && word.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit()) {
                assert!(CODES.iter().any(|code| code.name == word), "{word} is not listed");
                seen += 1;
            }
        }
        assert!(seen > 40, "the words are not found any more");
    }

    #[test]
    fn internal_text_never_leaves() {
        for error in [Error::Internal("s3cret".to_owned()), Error::Unavailable("s3cret".to_owned())] {
            assert!(!Problem::from(error).json().contains("s3cret"));
        }
    }
}
