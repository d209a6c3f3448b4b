//! From a request to an answer: which route, which method, and what happens when a handler fails or panics. Knows no SQL.

use std::any::Any;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::problem::{self, Problem};
use super::{ANSWER, Caller, agents, events, health, logs, openapi, page};
use crate::error::Error;

/// The body of an answer.
pub type Content = UnsyncBoxBody<Bytes, io::Error>;
/// What a handler comes to.
pub type Answer = Result<Response<Content>, Problem>;

/// The routes. An id is checked by the handler, so that it can say what is wrong with it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Route<'a> {
    Agents,
    Agent(&'a str),
    Logs(&'a str),
    Story(&'a str),
    Events,
    Hosts,
    Replicas,
    Page(page::File),
    OpenApi,
    Healthz,
    Readyz,
    Metrics,
}

impl<'a> Route<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let parts: Vec<&str> = path.strip_prefix('/')?.splitn(5, '/').collect();
        Some(match parts.as_slice() {
            ["agents"] => Self::Agents,
            ["agents", id] if !id.is_empty() => Self::Agent(id),
            ["agents", id, "logs"] if !id.is_empty() => Self::Logs(id),
            ["agents", id, "events"] if !id.is_empty() => Self::Story(id),
            ["events"] => Self::Events,
            ["hosts"] => Self::Hosts,
            ["openapi.json"] => Self::OpenApi,
            [""] => Self::Page(page::File::Page),
            ["page.css"] => Self::Page(page::File::Style),
            ["page.js"] => Self::Page(page::File::Script),
            ["replicas"] => Self::Replicas,
            ["healthz"] => Self::Healthz,
            ["readyz"] => Self::Readyz,
            ["metrics"] => Self::Metrics,
            _ => return None,
        })
    }

    fn allow(self) -> &'static str {
        match self {
            Self::Agents => "GET, HEAD, POST, DELETE, OPTIONS",
            Self::Agent(_) => "GET, HEAD, DELETE, PATCH, OPTIONS",
            _ => "GET, HEAD, OPTIONS",
        }
    }

    /// As metrics name it: never with an id.
    fn template(self) -> &'static str {
        match self {
            Self::Agents => "/agents",
            Self::Agent(_) => "/agents/{id}",
            Self::Logs(_) => "/agents/{id}/logs",
            Self::Story(_) => "/agents/{id}/events",
            Self::Events => "/events",
            Self::Hosts => "/hosts",
            Self::Page(_) => "/",
            Self::OpenApi => "/openapi.json",
            Self::Replicas => "/replicas",
            Self::Healthz => "/healthz",
            Self::Readyz => "/readyz",
            Self::Metrics => "/metrics",
        }
    }
}

/// Answers a request, whatever happens.
pub async fn answer(caller: Caller, request: Request<Incoming>) -> Response<Content> {
    let start = Instant::now();
    let meters = caller.state.meters.clone();
    let path = request.uri().path().to_owned();
    let route = Route::of(&path);
    let method = request.method().clone();
    let mut response = match AssertUnwindSafe(dispatch(caller, route, request)).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(problem)) => problem.response(),
        Err(panic) => {
            tracing::error!(panic = message(panic.as_ref()), %method, "a handler panicked");
            Problem::new(&problem::INTERNAL, "something went wrong here").response()
        }
    };
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    meters.answered(&method, route.map_or("unknown", Route::template), response.status().as_u16(), start.elapsed());
    response
}

/// The answer of a replica that has nothing to ask yet.
pub fn starting(request: &Request<Incoming>) -> Response<Content> {
    if matches!(Route::of(request.uri().path()), Some(Route::Healthz)) {
        return health::alive();
    }
    let mut problem = Problem::new(&problem::NOT_READY, "this replica is starting");
    problem.missing = vec!["starting"];
    problem.response()
}

async fn dispatch(caller: Caller, route: Option<Route<'_>>, request: Request<Incoming>) -> Answer {
    let Some(route) = route else {
        return Err(Problem::new(&problem::UNKNOWN_ROUTE, "there is no such route"));
    };
    let method = request.method().clone();
    if method == Method::OPTIONS {
        return Ok(options(route.allow()));
    }
    if [Method::POST, Method::DELETE, Method::PATCH].contains(&method) {
        same_origin(request.headers())?;
    }
    // hyper sends the head of a GET's answer to a HEAD.
    let read = method == Method::GET || method == Method::HEAD;
    match route {
        Route::Agents if read => agents::list(&caller, &request).await,
        Route::Agents if method == Method::POST => agents::submit(&caller, request).await,
        Route::Agents if method == Method::DELETE => agents::terminate_labelled(&caller, &request).await,
        Route::Agent(id) if read => agents::get(&caller, id, &request).await,
        Route::Agent(id) if method == Method::DELETE => agents::terminate(&caller, id, &request).await,
        Route::Agent(id) if method == Method::PATCH => agents::extend(&caller, id, request).await,
        Route::Logs(id) if read => logs::get(&caller, id, &request).await,
        Route::Story(id) if read => agents::story(&caller, id, &request).await,
        Route::Events if read => events::get(&caller, &request).await,
        Route::Page(file) if read => Ok(page::get(&request, file)),
        Route::OpenApi if read => Ok(openapi::get(&request)),
        Route::Hosts if read => agents::hosts(&caller, &request).await,
        Route::Replicas if read => agents::replicas(&caller, &request).await,
        Route::Healthz if read => Ok(health::alive()),
        Route::Readyz if read => health::ready(&caller).await,
        Route::Metrics if read => health::metrics(&caller).await,
        _ => {
            let mut problem = Problem::new(&problem::METHOD_NOT_ALLOWED, "this route does not take that method");
            problem.allow = Some(route.allow());
            Err(problem)
        }
    }
}

/// A browser says where a request comes from. Without this, any web page could run agents on a replica that its reader can reach.
fn same_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let allowed = match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => origin.split_once("://").map(|(_, host)| host) == text("host"),
        (None, None) => true,
    };
    if allowed { Ok(()) } else { Err(Problem::new(&problem::CROSS_ORIGIN, "the request comes from a web page of another site")) }
}

/// Runs work on the database in a task of its own and waits for it no longer than [`ANSWER`]. The work goes on when we give up or
/// the client hangs up; it is bounded by its statements.
pub async fn ask<T: Send + 'static>(work: impl Future<Output = Result<T, Error>> + Send + 'static) -> Result<T, Problem> {
    match tokio::time::timeout(ANSWER, tokio::spawn(work)).await {
        Ok(Ok(result)) => result.map_err(Problem::from),
        Ok(Err(failed)) => Err(match failed.try_into_panic() {
            Ok(panic) => {
                tracing::error!(panic = message(panic.as_ref()), "work on the database panicked");
                Problem::new(&problem::INTERNAL, "something went wrong here")
            }
            Err(_cancelled) => Problem::new(&problem::NOT_READY, "this replica is stopping"),
        }),
        Err(_elapsed) => Err(Problem::from(Error::Unavailable(format!("no answer within {} ms", ANSWER.as_millis())))),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// A body that is there already.
pub fn full(bytes: impl Into<Bytes>) -> Content {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A JSON answer.
pub fn json(status: StatusCode, body: String) -> Response<Content> {
    typed(status, "application/json", full(body))
}

/// The JSON answer to a read.
pub fn read<B>(request: &Request<B>, body: String) -> Response<Content> {
    tagged(request, "application/json", body)
}

/// An answer with a tag of what it says; 304 to whoever has just that already.
pub fn tagged<B>(request: &Request<B>, media_type: &'static str, body: String) -> Response<Content> {
    use std::fmt::Write as _;
    let mut tag = "\"".to_owned();
    for byte in &Sha256::digest(body.as_bytes())[..16] {
        let _infallible = write!(tag, "{byte:02x}");
    }
    tag.push('"');
    // Weak or strong: a proxy that compresses makes a tag weak, and a read needs no more (RFC 9110, 13.1.2).
    let known =
        request.headers().get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let known = known.map(|known| known.trim()).any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag);
    let mut response = if known {
        let mut response = Response::new(full(Bytes::new()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        typed(StatusCode::OK, media_type, full(body))
    };
    // May be kept, and is asked for again each time.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    if let Ok(tag) = HeaderValue::try_from(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// An answer of a media type.
pub fn typed(status: StatusCode, media_type: &'static str, content: Content) -> Response<Content> {
    let mut response = Response::new(content);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

fn options(allow: &'static str) -> Response<Content> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_another_site_is_told_apart_from_everybody_else() {
        let judge = |pairs: &[(&'static str, &'static str)]| {
            let headers =
                pairs.iter().map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value))).collect();
            same_origin(&headers).is_ok()
        };
        assert!(judge(&[]));
        assert!(judge(&[("host", "a:1"), ("origin", "http://a:1")]));
        assert!(judge(&[("sec-fetch-site", "same-origin"), ("origin", "http://a:1")]));
        assert!(!judge(&[("host", "a:1"), ("origin", "http://b:1")]));
        assert!(!judge(&[("host", "a:1"), ("origin", "null")]));
        assert!(!judge(&[("sec-fetch-site", "cross-site")]));
        assert!(!judge(&[("sec-fetch-site", "same-site")]));
    }

    #[tokio::test]
    async fn a_panic_in_the_work_is_a_500_and_not_a_broken_connection() {
        let problem = ask(async { if true { panic!("boom") } else { Ok(()) } }).await.unwrap_err();
        assert!(problem.json().contains("\"internal\"") && !problem.json().contains("boom"));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_takes_too_long_is_answered_and_goes_on() {
        let (done, seen) = tokio::sync::oneshot::channel();
        let problem = ask(async move {
            tokio::time::sleep(ANSWER * 2).await;
            done.send(()).unwrap();
            Ok(())
        });
        assert!(problem.await.unwrap_err().json().contains("database_unavailable"));
        seen.await.unwrap();
    }
}
