//! What can be taken from a request, within bounds: the id, the parameters, the body, the key.

use std::time::Duration;

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::Request;
use hyper::body::{Body as _, Bytes, Incoming};
use uuid::Uuid;

use super::BODY;
use super::problem::{self, Problem};

/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);

/// The id in a path.
pub fn id(text: &str) -> Result<Uuid, Problem> {
    Uuid::try_parse(text).map_err(|_error| Problem::new(&problem::MALFORMED_ID, "that is not the id of an agent"))
}

/// The parameters of a query. Each is taken by name; one that nobody took is refused.
pub struct Query(Vec<(String, String)>);

impl Query {
    /// The query of a request.
    pub fn of<B>(request: &Request<B>) -> Result<Self, Problem> {
        let pairs: Vec<(String, String)> =
            form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()).into_owned().collect();
        match pairs.iter().any(|(name, value)| name.contains('\0') || value.contains('\0')) {
            true => Err(Problem::new(&problem::INVALID_TEXT, "there is a NUL character in the query")),
            false => Ok(Self(pairs)),
        }
    }

    /// All values of a parameter that may be repeated.
    pub fn all(&mut self, name: &str) -> Vec<String> {
        self.0.extract_if(.., |pair| pair.0 == name).map(|(_, value)| value).collect()
    }

    /// A parameter that may be there once, read by `read`.
    pub fn one<T>(&mut self, name: &str, expected: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, Problem> {
        match self.all(name).as_slice() {
            [] => Ok(None),
            [value] => read(value).map(Some).ok_or_else(|| Problem::parameter(name, expected)),
            _ => Err(Problem::parameter(name, "there once")),
        }
    }

    /// Nothing may be left.
    pub fn done(self) -> Result<(), Problem> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().take(64).collect();
                Err(Problem::new(&problem::UNKNOWN_PARAMETER, format!("there is no parameter `{name}` here")))
            }
        }
    }
}

/// The whole body. Never holds more than [`BODY`] bytes of it, however much there is.
pub async fn body(request: Request<Incoming>) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(&problem::BODY_TOO_LARGE, "the body is larger than 256 KiB");
    let body = request.into_body();
    // Told beforehand: refuse before a client that waits for "100 Continue" sends it.
    if body.size_hint().lower() > BODY as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIME, Limited::new(body, BODY).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        // The client broke off or framed it wrongly; it will hardly read this.
        Ok(Err(_broken)) => Err(Problem::new(&problem::INVALID_BODY, "the body broke off")),
        Err(_elapsed) => Err(Problem::new(&problem::BODY_TIMEOUT, "the body did not come within 10 s")),
    }
}

/// The idempotency key, if there is one.
pub fn key<B>(request: &Request<B>) -> Result<Option<String>, Problem> {
    let mut keys = request.headers().get_all("idempotency-key").iter();
    match (keys.next(), keys.next()) {
        (None, _) => Ok(None),
        (Some(key), None) => match std::str::from_utf8(key.as_bytes()) {
            Ok(key) => Ok(Some(key.to_owned())),
            Err(_) => Err(Problem::new(&problem::INVALID_KEY, "the idempotency key is not UTF-8")),
        },
        (Some(_), Some(_)) => Err(Problem::new(&problem::INVALID_KEY, "there is more than one idempotency key")),
    }
}
