//! How a verb is asked: of a replica by HTTP, or of the database by SQL. Both answer the same records.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::Trouble;
use crate::agent::{Submission, extension};
use crate::error::Error;
use crate::sql::Sql;
use crate::sql::feed::Place;

/// Longest wait that one request asks for.
const WAIT: Duration = Duration::from_secs(30);
/// Between two looks at the database.
const LOOK: Duration = Duration::from_millis(200);
/// How long a replica may take to answer what is no wait and no stream.
const ANSWER: Duration = Duration::from_secs(10);
/// How many are ended by one statement.
const TOGETHER: i32 = 1000;

/// Whom a verb asks.
pub enum Talk {
    /// A replica.
    Http(Http),
    /// The database.
    Sql(Sql),
}

/// A page of agents, and where the next one begins.
pub type Page = (Vec<Value>, Option<Uuid>);

/// Which agents to list.
#[derive(Default)]
pub struct Wanted<'a> {
    /// In this state.
    pub state: Option<&'a str>,
    /// With these labels, as key=value.
    pub labels: &'a [String],
    /// Older than this one.
    pub cursor: Option<Uuid>,
    /// At most so many.
    pub limit: usize,
}

impl Talk {
    /// Submits what the body of a POST would say.
    pub async fn submit(&self, body: &Value, key: Option<&str>) -> Result<Value, Trouble> {
        match self {
            Self::Http(http) => {
                let headers: Vec<(&str, &str)> = key.map(|key| ("idempotency-key", key)).into_iter().collect();
                http.json(Method::POST, "/agents", Some(body), &headers).await
            }
            Self::Sql(sql) => {
                let (_id, agent, _is_new) = sql.submit(&Submission::parse(body.to_string().as_bytes())?, key).await?;
                sql.wake(&["waits"]).await?;
                parsed(&agent)
            }
        }
    }

    /// One agent; after it has ended, or after that long.
    pub async fn get(&self, id: Uuid, wait: Duration) -> Result<Value, Trouble> {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let agent = match self {
                Self::Http(http) => {
                    let wait = left.min(WAIT);
                    let query = if wait.is_zero() { String::new() } else { format!("?wait={}ms", wait.as_millis().max(1)) };
                    http.within(wait + ANSWER, Method::GET, &format!("/agents/{id}{query}"), None, &[]).await?
                }
                Self::Sql(sql) => {
                    let agent = parsed(&sql.get_agent(id).await?.ok_or_else(|| unknown(&id.to_string()))?.0)?;
                    if agent["finished_at"].is_null() && !left.is_zero() {
                        tokio::time::sleep(LOOK.min(left)).await;
                    }
                    agent
                }
            };
            if !agent["finished_at"].is_null() || left.is_zero() {
                return Ok(agent);
            }
        }
    }

    /// A page of agents, newest first.
    pub async fn list(&self, wanted: &Wanted<'_>) -> Result<Page, Trouble> {
        match self {
            Self::Http(http) => {
                let mut query = form_urlencoded::Serializer::new(String::new());
                query.append_pair("limit", &wanted.limit.clamp(1, 1000).to_string());
                query.extend_pairs(wanted.state.map(|state| ("state", state)));
                query.extend_pairs(wanted.cursor.map(|cursor| ("cursor", cursor.to_string())));
                query.extend_pairs(wanted.labels.iter().map(|label| ("label", label)));
                let mut page = http.json(Method::GET, &format!("/agents?{}", query.finish()), None, &[]).await?;
                let next = page["next"].as_str().and_then(|next| next.parse().ok());
                match page["agents"].take() {
                    Value::Array(agents) => Ok((agents, next)),
                    _ => Err(strange()),
                }
            }
            Self::Sql(sql) => {
                let labels = labels(wanted.labels)?;
                let limit = i64::try_from(wanted.limit.clamp(1, 1000)).unwrap_or(1000);
                let page = sql.list_agents(wanted.state, labels.as_ref(), wanted.cursor, limit).await?;
                let next = page.last().filter(|(_, _, more)| *more).map(|(id, _, _)| *id);
                Ok((page.iter().map(|(_, agent, _)| parsed(agent)).collect::<Result<_, _>>()?, next))
            }
        }
    }

    /// Asks for the end of an agent; its record after that.
    pub async fn terminate(&self, id: Uuid) -> Result<Value, Trouble> {
        match self {
            Self::Http(http) => http.json(Method::DELETE, &format!("/agents/{id}"), None, &[]).await,
            Self::Sql(sql) => {
                let (agent, _ended) = sql.terminate(id, &actor()).await?.ok_or_else(|| unknown(&id.to_string()))?;
                sql.wake(&["due"]).await?;
                parsed(&agent)
            }
        }
    }

    /// Asks for the end of all that carry these labels, or counts them.
    pub async fn terminate_labelled(&self, wanted: &[String], dry_run: bool) -> Result<i64, Trouble> {
        match self {
            Self::Http(http) => {
                let mut query = form_urlencoded::Serializer::new(String::new());
                query.extend_pairs(wanted.iter().map(|label| ("label", label)));
                query.append_pair("dry_run", &dry_run.to_string());
                let answer = http.within(ANSWER * 6, Method::DELETE, &format!("/agents?{}", query.finish()), None, &[]).await?;
                answer["count"].as_i64().ok_or_else(strange)
            }
            Self::Sql(sql) => {
                let labels = labels(wanted)?.ok_or_else(|| Trouble::Usage("name at least one label".to_owned()))?;
                let most = (!dry_run).then_some(TOGETHER);
                let mut count = 0;
                loop {
                    let more = sql.terminate_labelled(&labels, &actor(), dry_run, most).await?;
                    count += more;
                    if most.is_none_or(|most| more < i64::from(most)) {
                        break;
                    }
                }
                if !dry_run {
                    sql.wake(&["due"]).await?;
                }
                Ok(count)
            }
        }
    }

    /// Moves a deadline; the record after that.
    pub async fn extend(&self, id: Uuid, ttl: &str) -> Result<Value, Trouble> {
        let body = json!({"ttl": ttl});
        match self {
            Self::Http(http) => http.json(Method::PATCH, &format!("/agents/{id}"), Some(&body), &[]).await,
            Self::Sql(sql) => {
                sql.extend(id, extension(body.to_string().as_bytes())?).await?;
                sql.wake(&["due"]).await?;
                self.get(id, Duration::ZERO).await
            }
        }
    }

    /// Everything that happened to an agent.
    pub async fn story(&self, id: Uuid) -> Result<Vec<Value>, Trouble> {
        match self {
            Self::Http(http) => http.listed(&format!("/agents/{id}/events"), "events").await,
            Self::Sql(sql) => sql.story(id).await?.iter().map(|event| parsed(event)).collect(),
        }
    }

    /// The hosts.
    pub async fn hosts(&self) -> Result<Vec<Value>, Trouble> {
        match self {
            Self::Http(http) => http.listed("/hosts", "hosts").await,
            Self::Sql(sql) => sql.hosts().await?.iter().map(|host| parsed(host)).collect(),
        }
    }

    /// The replicas.
    pub async fn replicas(&self) -> Result<Vec<Value>, Trouble> {
        match self {
            Self::Http(http) => http.listed("/replicas", "replicas").await,
            Self::Sql(sql) => sql.replicas().await?.iter().map(|replica| parsed(replica)).collect(),
        }
    }

    /// The output of an agent, chunk by chunk.
    pub async fn logs(
        &self,
        id: Uuid,
        follow: bool,
        tail: Option<u32>,
        mut say: impl FnMut(&[u8]) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        match self {
            Self::Http(http) => {
                let lines = tail.map(|lines| format!("&tail={lines}")).unwrap_or_default();
                let mut answer = http.answer(Method::GET, &format!("/agents/{id}/logs?follow={follow}{lines}"), None, &[]).await?;
                while let Some(frame) = answer.body_mut().frame().await {
                    let frame = frame.map_err(|_broken| Trouble::Unreachable("the output broke off; ask again".to_owned()))?;
                    if let Some(bytes) = frame.data_ref() {
                        say(bytes)?;
                    }
                }
                Ok(())
            }
            Self::Sql(sql) => {
                let log = sql.log_of(id).await?.ok_or_else(|| unknown(&id.to_string()))?;
                match log.tail {
                    Some((bytes, _truncated)) => say(last_lines(&bytes, tail)),
                    None if log.ended => Ok(()),
                    None => Err(Trouble::Usage(
                        "the output of one that lives is on its host: ask a replica, with --url or SUNDOWN_URL".to_owned(),
                    )),
                }
            }
        }
    }

    /// Events from now on, for ever: of one agent, or of all.
    pub async fn follow(&self, agent: Option<Uuid>, mut say: impl FnMut(&str) -> Result<(), Trouble>) -> Result<(), Trouble> {
        match self {
            Self::Http(http) => {
                let mut last: Option<String> = None;
                let query = agent.map(|agent| format!("?agent={agent}")).unwrap_or_default();
                loop {
                    let headers: Vec<(&str, &str)> = last.iter().map(|id| ("last-event-id", id.as_str())).collect();
                    let mut answer = http.answer(Method::GET, &format!("/events{query}"), None, &headers).await?;
                    let mut text = Vec::new();
                    while let Some(Ok(frame)) = answer.body_mut().frame().await {
                        text.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
                        while let Some(end) = text.windows(2).position(|two| two == b"\n\n") {
                            let message: Vec<u8> = text.drain(..end + 2).collect();
                            for line in String::from_utf8_lossy(&message).lines() {
                                match line.split_once(": ") {
                                    Some(("id", id)) => last = Some(id.to_owned()),
                                    Some(("data", data)) => say(data)?,
                                    _ => {}
                                }
                            }
                        }
                    }
                    // A replica that stops ends its streams; another one goes on where this one was.
                    tokio::time::sleep(LOOK).await;
                }
            }
            Self::Sql(sql) => {
                let (mut place, _oldest): (Place, _) = sql.events_now().await?;
                loop {
                    let events = sql.events_after(place, 500).await?;
                    for event in &events {
                        place = event.place;
                        if agent.is_none_or(|agent| agent == event.agent) {
                            say(&event.json)?;
                        }
                    }
                    if events.is_empty() {
                        tokio::time::sleep(LOOK).await;
                    }
                }
            }
        }
    }
}

/// Who asks for an end by SQL, in the events.
fn actor() -> String {
    format!("cli {}", std::env::var("USER").unwrap_or_else(|_| "somebody".to_owned()))
}

fn parsed(json: &str) -> Result<Value, Trouble> {
    serde_json::from_str(json).map_err(|_| strange())
}

fn strange() -> Trouble {
    Trouble::Defect("the answer is not what this release understands".to_owned())
}

/// What is said about an agent that nobody knows.
pub fn unknown(named: &str) -> Trouble {
    Trouble::Refused(format!("there is no agent {named}; `sundown ls --all` lists them"))
}

/// Pairs as an object. `None`: there are none.
pub fn labels(pairs: &[String]) -> Result<Option<Value>, Trouble> {
    let mut object = Map::new();
    for pair in pairs {
        let (key, value) = pair.split_once('=').ok_or_else(|| Trouble::Usage(format!("{pair:?} is no pair such as team=blue")))?;
        object.insert(key.to_owned(), Value::String(value.to_owned()));
    }
    Ok((!object.is_empty()).then_some(Value::Object(object)))
}

fn last_lines(bytes: &[u8], lines: Option<u32>) -> &[u8] {
    let Some(lines) = lines else { return bytes };
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let begins: Vec<usize> =
        std::iter::once(0).chain(body.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1)).collect();
    let skipped = begins.len().saturating_sub(lines as usize);
    begins.get(skipped).map_or(&[], |from| &bytes[*from..])
}

/// A replica.
pub struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
}

impl Http {
    /// `url`: http://host:port
    pub fn new(url: &str) -> Result<Self, Trouble> {
        let base = url.trim_end_matches('/');
        let uri: hyper::Uri = base.parse().map_err(|_| Trouble::Usage(format!("{url:?} is no address such as http://127.0.0.1:7117")))?;
        if uri.scheme_str() != Some("http") || uri.authority().is_none() {
            return Err(Trouble::Usage(format!("{url:?} is no address such as http://127.0.0.1:7117; https is not spoken yet")));
        }
        Ok(Self { client: Client::builder(TokioExecutor::new()).build_http(), base: base.to_owned() })
    }

    async fn answer(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Result<Response<Incoming>, Trouble> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| Trouble::Usage(error.to_string()))?;
        let answer = self.client.request(request).await;
        let answer =
            answer.map_err(|_| Trouble::Unreachable(format!("{} does not answer; is `sundown serve` running there?", self.base)))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let text = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let problem: Value = serde_json::from_slice(&text).unwrap_or_default();
        let said = match (problem["detail"].as_str(), problem["hint"].as_str()) {
            (Some(detail), Some(hint)) => format!("{detail}. {hint}"),
            _ => format!("{} answered {status}", self.base),
        };
        Err(if status.is_server_error() { Trouble::Unreachable(said) } else { Trouble::Refused(said) })
    }

    async fn within(
        &self,
        limit: Duration,
        method: Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Result<Value, Trouble> {
        let asked = async {
            let answer = self.answer(method, path, body, headers).await?;
            let bytes = answer.into_body().collect().await.map_err(|_| Trouble::Unreachable("the answer broke off".to_owned()))?.to_bytes();
            serde_json::from_slice(&bytes).map_err(|_| strange())
        };
        let late = || Trouble::Unreachable(format!("no answer within {} s", limit.as_secs()));
        tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err(late()))
    }

    async fn json(&self, method: Method, path: &str, body: Option<&Value>, headers: &[(&str, &str)]) -> Result<Value, Trouble> {
        self.within(ANSWER, method, path, body, headers).await
    }

    async fn listed(&self, path: &str, name: &str) -> Result<Vec<Value>, Trouble> {
        match self.json(Method::GET, path, None, &[]).await?[name].take() {
            Value::Array(items) => Ok(items),
            _ => Err(strange()),
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => Self::Refused(format!("{}. {}", refusal.message, refusal.hint)),
            Error::Unavailable(_) | Error::Locked(_) => Self::Unreachable(error.to_string()),
            Error::Internal(_) => Self::Defect(error.to_string()),
        }
    }
}
