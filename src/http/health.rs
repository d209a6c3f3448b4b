//! What machines ask about the replica itself: alive, ready, metrics.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::{Response, StatusCode};

use super::Caller;
use super::problem::{self, Problem};
use super::routes::{Answer, Content, full, json, typed};
use crate::error::Error;

/// How long the database may take to show that it is there.
const QUICK: Duration = Duration::from_secs(1);

/// `GET /healthz`: whoever answers, lives; a replica whose loops are broken has ended.
pub fn alive() -> Response<Content> {
    json(StatusCode::OK, r#"{"status":"alive"}"#.to_owned())
}

/// `GET /readyz`
pub async fn ready(caller: &Caller) -> Answer {
    let mut missing = Vec::new();
    if caller.state.ready.draining.load(Ordering::Relaxed) || caller.shutdown.is_cancelled() {
        missing.push("draining");
    }
    if !(caller.state.ready.host_reachable)() {
        missing.push("host");
    }
    let state = caller.state.clone();
    let ours = quick(async move { state.sql.identity().await }).await;
    if !matches!(ours, Some(Ok(Some((_, true))))) {
        missing.push("database");
    }
    if missing.is_empty() {
        return Ok(json(StatusCode::OK, r#"{"ready":true,"missing":[]}"#.to_owned()));
    }
    let mut problem = Problem::new(&problem::NOT_READY, format!("not ready: {}", missing.join(", ")));
    problem.missing = missing;
    Err(problem)
}

/// `GET /metrics`
pub async fn metrics(caller: &Caller) -> Answer {
    let state = caller.state.clone();
    let gauges = quick(async move { state.sql.gauges().await }).await;
    caller.state.meters.seen(gauges.and_then(Result::ok));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &caller.state.metrics)
        .map_err(|error| Problem::from(Error::Internal(error.to_string())))?;
    Ok(typed(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", full(text)))
}

/// A look at the database, in a task of its own like all of them; `None`: it did not answer.
async fn quick<T: Send + 'static>(work: impl Future<Output = Result<T, Error>> + Send + 'static) -> Option<Result<T, Error>> {
    tokio::time::timeout(QUICK, tokio::spawn(work)).await.ok()?.ok()
}
