//! The fake daemon's side of the wire: requests recognised, answers put into bytes.
//!
//! It must not know what a container is, nor which faults there are.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Call;
use super::daemon::Daemon;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

pub(super) enum Answer {
    Json(u16, Value),
    /// JSON already.
    List(String),
    Empty(u16),
    Text(&'static str),
    Stream(Body),
}

pub(super) async fn serve(listener: UnixListener, daemon: Arc<Daemon>) {
    // Dropped with this task: so is every connection.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let daemon = daemon.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| {
                // A task of its own: what was asked happens, though the client hangs up.
                let answer = tokio::spawn(daemon.clone().answer(request));
                async move { Ok::<_, io::Error>(response(answer.await.map_err(io::Error::other)??)) }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Which call a request is, and which container it names.
pub(super) fn recognise(method: &Method, path: &str) -> (Call, Option<String>) {
    let mut words = path.split('/').filter(|word| !word.is_empty()).peekable();
    words.next_if(|word| word.starts_with("v1."));
    let words: Vec<&str> = words.collect();
    let (call, what) = match (method.as_str(), words.as_slice()) {
        ("GET", ["version"]) => (Call::Version, None),
        ("GET", ["_ping"]) => (Call::Ping, None),
        ("GET", ["info"]) => (Call::Info, None),
        ("GET", ["events"]) => (Call::Events, None),
        ("GET", ["containers", "json"]) => (Call::List, None),
        ("POST", ["containers", "create"]) => (Call::Create, None),
        ("POST", ["volumes", "create"]) => (Call::CreateVolume, None),
        ("GET", ["volumes", what]) => (Call::InspectVolume, Some(*what)),
        ("DELETE", ["volumes", what]) => (Call::RemoveVolume, Some(*what)),
        ("GET", ["containers", what, "json"]) => (Call::Inspect, Some(*what)),
        ("GET", ["containers", what, "logs"]) => (Call::Logs, Some(*what)),
        ("POST", ["containers", what, "start"]) => (Call::Start, Some(*what)),
        ("POST", ["containers", what, "kill"]) => (Call::Kill, Some(*what)),
        ("POST", ["containers", what, "pause"]) => (Call::Pause, Some(*what)),
        ("POST", ["containers", what, "unpause"]) => (Call::Unpause, Some(*what)),
        ("POST", ["containers", what, "rename"]) => (Call::Rename, Some(*what)),
        ("POST", ["containers", what, "wait"]) => (Call::Wait, Some(*what)),
        ("DELETE", ["containers", what]) => (Call::Remove, Some(*what)),
        _ => (Call::Other, None),
    };
    (call, what.map(str::to_owned))
}

pub(super) fn parameter(query: &str, key: &str) -> Option<String> {
    let pair = query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))?;
    let mut bytes = pair.bytes();
    let mut text = Vec::new();
    while let Some(byte) = bytes.next() {
        text.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(text).ok()
}

/// Whether a parameter that is true or false was given as true.
pub(super) fn flag(query: &str, key: &str) -> bool {
    matches!(parameter(query, key).as_deref(), Some("true" | "True" | "1"))
}

pub(super) fn filter(query: &str, key: &str) -> Vec<String> {
    let filters: Value = parameter(query, "filters").and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    serde_json::from_value(filters[key].clone()).unwrap_or_default()
}

pub(super) fn line(value: &Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}

/// One frame of output.
pub(super) fn framed(stderr: bool, bytes: &[u8]) -> Bytes {
    let mut frame = vec![1 + u8::from(stderr), 0, 0, 0];
    frame.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(bytes);
    Bytes::from(frame)
}

pub(super) fn streaming(chunks: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    UnsyncBoxBody::new(StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk)))))
}

pub(super) fn stays_open(body: Body, mut healed: watch::Receiver<()>) -> Body {
    let end = stream::once(async move { drop(healed.changed().await) });
    let end = end.map(|()| Ok(Frame::data(Bytes::new())));
    UnsyncBoxBody::new(StreamBody::new(http_body_util::BodyStream::new(body).chain(end)))
}

pub(super) fn cut(answer: Answer) -> Answer {
    let text = match answer {
        Answer::Json(status, _) if status >= 300 => return refusal(status, ""),
        Answer::Json(_, value) => value.to_string(),
        Answer::List(text) => text,
        other => return other,
    };
    let half = Bytes::copy_from_slice(&text.as_bytes()[..text.len() / 2]);
    Answer::Stream(UnsyncBoxBody::new(Full::new(half).map_err(|never: Infallible| match never {})))
}

pub(super) fn refusal(status: u16, message: &str) -> Answer {
    Answer::Json(status, json!({"message": message}))
}

pub(super) fn response(answer: Answer) -> Response<Body> {
    let (status, body) = match answer {
        Answer::Json(status, value) => (status, streaming(stream::iter([line(&value)]))),
        Answer::List(text) => (200, streaming(stream::iter([Bytes::from(text)]))),
        Answer::Empty(status) => (status, streaming(stream::empty())),
        Answer::Text(text) => (200, streaming(stream::iter([Bytes::from_static(text.as_bytes())]))),
        Answer::Stream(body) => (200, body),
    };
    let mut response = Response::new(body);
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap();
    response
}
