//! The output of an agent: as it comes while it lives, the kept tail after. The bytes are the agent's own and pass through as they
//! are.

use std::io;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::HeaderValue;
use hyper::{Request, Response, StatusCode};
use tokio::time::Instant;
use uuid::Uuid;

use super::problem::{self, Problem};
use super::request::{Query, id};
use super::routes::{Answer, Content, ask, full, typed};
use super::{Caller, LogQuery, agents};
use crate::sql::door::LogOf;

const MEDIA_TYPE: &str = "text/plain; charset=utf-8";
/// How long a follower waits for its agent to start.
const START: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(200);
/// How long a stream may go on once its agent has ended: a daemon may leave it open.
const DRAIN: Duration = Duration::from_secs(2);

/// `GET /agents/{id}/logs`
pub async fn get(caller: &Caller, agent: &str, request: &Request<Incoming>) -> Answer {
    let id = id(agent)?;
    let mut query = Query::of(request)?;
    let wanted = LogQuery {
        follow: query.one("follow", "true or false", |text| text.parse().ok())?.unwrap_or_default(),
        tail: query.one("tail", "a number of lines", |text| text.parse().ok())?,
    };
    query.done()?;
    let until = Instant::now() + START;
    loop {
        match look(caller, id).await? {
            LogOf { tail: Some((tail, truncated)), .. } => return Ok(kept(tail, truncated, wanted.tail)),
            LogOf { live: Some((host, Some(container))), ended: false, .. } => {
                let stream = (caller.state.live_log)(host, container, wanted);
                let stream = stream.ok_or_else(|| Problem::new(&problem::LOG_ELSEWHERE, "this replica does not serve the agent's host"))?;
                return Ok(live(caller.clone(), id, stream));
            }
            // Ended without a word, or too long ago.
            LogOf { ended: true, .. } => return Ok(kept(Vec::new(), false, None)),
            _ if !wanted.follow => return Ok(kept(Vec::new(), false, None)),
            _ if Instant::now() >= until || caller.shutdown.is_cancelled() => {
                return Err(Problem::new(&problem::NOT_STARTED, "it has not started yet"));
            }
            _ => tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = caller.shutdown.cancelled() => {}
            },
        }
    }
}

async fn look(caller: &Caller, id: Uuid) -> Result<LogOf, Problem> {
    let state = caller.state.clone();
    ask(async move { state.sql.log_of(id).await }).await?.ok_or_else(agents::unknown)
}

fn kept(tail: Vec<u8>, truncated: bool, lines: Option<u32>) -> Response<Content> {
    let from = lines.map_or(0, |lines| start_of(&tail, lines));
    let more = truncated || from > 0;
    let mut response = typed(StatusCode::OK, MEDIA_TYPE, full(Bytes::from(tail).slice(from..)));
    if more {
        response.headers_mut().insert("x-sundown-truncated", HeaderValue::from_static("true"));
    }
    response
}

/// Where the last `lines` lines begin. An end of line at the very end closes the last line and begins none.
fn start_of(tail: &[u8], lines: u32) -> usize {
    let Some(skip) = (lines as usize).checked_sub(1) else { return tail.len() };
    let body = tail.strip_suffix(b"\n").unwrap_or(tail);
    body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').nth(skip).map_or(0, |(place, _)| place + 1)
}

fn live(caller: Caller, id: Uuid, stream: BoxStream<'static, Result<Bytes, String>>) -> Response<Content> {
    let mut end = caller.state.ends.of(&caller.state.sql, id);
    let stop = async move {
        let ended = async {
            let _ended = end.wait_for(|ended| *ended).await.is_ok();
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            () = ended => {}
            () = caller.shutdown.cancelled() => {}
        }
    };
    let frames = stream.take_until(Box::pin(stop)).map(move |chunk| match chunk {
        Ok(bytes) => Ok(Frame::data(bytes)),
        Err(error) => {
            tracing::warn!(agent.id = %id, %error, "the output of an agent broke off");
            Err(io::Error::other("the output broke off"))
        }
    });
    let mut response = typed(StatusCode::OK, MEDIA_TYPE, StreamBody::new(frames).boxed_unsync());
    // A proxy that buffers would show nothing until the end.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    use super::start_of;

    #[test]
    fn the_last_lines_are_counted_as_tail_does() {
        for (text, lines, expected) in [
            ("a\nb\nc\n", 1, "c\n"),
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 1, "c"),
            ("a\nb\nc\n", 3, "a\nb\nc\n"),
            ("a\nb\nc\n", 9, "a\nb\nc\n"),
            ("a\n", 0, ""),
            ("", 3, ""),
            ("\n", 1, "\n"),
            ("a\n\n", 1, "\n"),
            ("a\n\n", 2, "a\n\n"),
        ] {
            assert_eq!(&text[start_of(text.as_bytes(), lines)..], expected, "{text:?} {lines}");
        }
    }
}
