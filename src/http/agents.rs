//! The routes of agents: submit, get, list, terminate, extend. An agent's JSON is what Postgres made of it and passes through
//! unread.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Request, StatusCode};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::problem::{self, Problem};
use super::request::{Query, body, id, key};
use super::routes::{self, Answer, ask, json};
use super::{Caller, LONGEST_WAIT};
use crate::agent::{Submission, extension, seconds};
use crate::failpoint;
use crate::wake::Wish;

const STATES: [&str; 6] = ["pending", "running", "terminating", "succeeded", "failed", "expired"];

/// How many are asked to end by one statement: it holds their rows for a tenth of a second.
const TOGETHER: i32 = 1000;

/// `POST /agents`
pub async fn submit(caller: &Caller, request: Request<Incoming>) -> Answer {
    Query::of(&request)?.done()?;
    let key = key(&request)?.filter(|_| !failpoint::broken("no_key"));
    let submission = Submission::parse(&body(request).await?)?;
    let state = caller.state.clone();
    let (id, agent, is_new) = ask(async move {
        let accepted = state.sql.submit(&submission, key.as_deref()).await?;
        if accepted.2 {
            (state.poke)(Wish::Submitted);
        }
        Ok(accepted)
    })
    .await?;
    let mut response = json(if is_new { StatusCode::CREATED } else { StatusCode::OK }, agent);
    if let Ok(location) = HeaderValue::try_from(format!("/agents/{id}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// `GET /agents/{id}`
pub async fn get(caller: &Caller, agent: &str, request: &Request<Incoming>) -> Answer {
    let id = id(agent)?;
    let mut query = Query::of(request)?;
    let wait = query.one("wait", "a duration of at most 60 s", |text| {
        seconds(text).ok().and_then(|wait| Duration::try_from_secs_f64(wait).ok()).filter(|wait| *wait <= LONGEST_WAIT)
    })?;
    query.done()?;
    let (mut agent, ended) = read(caller, id).await?;
    if let (false, Some(wait)) = (ended, wait) {
        let mut end = caller.state.ends.of(&caller.state.sql, id);
        tokio::select! {
            _ = end.wait_for(|ended| *ended) => {}
            () = tokio::time::sleep(wait) => {}
            () = caller.shutdown.cancelled() => {}
        }
        (agent, _) = read(caller, id).await?;
    }
    Ok(routes::read(request, agent))
}

/// One agent's record, and whether it has ended.
pub async fn read(caller: &Caller, id: Uuid) -> Result<(String, bool), Problem> {
    let state = caller.state.clone();
    ask(async move { state.sql.get_agent(id).await }).await?.ok_or_else(unknown)
}

/// `GET /agents`
pub async fn list(caller: &Caller, request: &Request<Incoming>) -> Answer {
    let mut query = Query::of(request)?;
    let state = query.one("state", "one of pending, running, terminating, succeeded, failed, expired", |text| {
        STATES.into_iter().find(|state| *state == text)
    })?;
    let limit = query.one("limit", "a number between 1 and 1000", |text| text.parse::<i64>().ok().filter(|n| (1..=1000).contains(n)))?;
    let cursor = query.one("cursor", "the `next` of an earlier page", |text| Uuid::try_parse(text).ok())?;
    let labels = labels(query.all("label"))?;
    query.done()?;
    let sql = caller.state.sql.clone();
    let page = ask(async move { sql.list_agents(state, labels.as_ref(), cursor, limit.unwrap_or(100)).await }).await?;
    let next = match page.last() {
        Some((id, _, true)) => format!("\"{id}\""),
        _ => "null".to_owned(),
    };
    let agents: Vec<String> = page.into_iter().map(|(_, agent, _)| agent).collect();
    Ok(routes::read(request, format!(r#"{{"agents":[{}],"next":{next}}}"#, agents.join(","))))
}

fn labels(wanted: Vec<String>) -> Result<Option<Value>, Problem> {
    let mut labels = Map::new();
    for pair in wanted {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(Problem::parameter("label", "a pair such as team=blue"));
        };
        if labels.insert(key.to_owned(), Value::String(value.to_owned())).is_some() {
            return Err(Problem::parameter("label", "there once for each key"));
        }
    }
    Ok((!labels.is_empty()).then_some(Value::Object(labels)))
}

/// `DELETE /agents/{id}`
pub async fn terminate(caller: &Caller, agent: &str, request: &Request<Incoming>) -> Answer {
    let id = id(agent)?;
    Query::of(request)?.done()?;
    let state = caller.state.clone();
    let actor = actor(caller);
    let record = ask(async move {
        if failpoint::broken("delete_unwritten") {
            return state.sql.get_agent(id).await;
        }
        let after = state.sql.terminate(id, &actor).await?;
        if matches!(after, Some((_, false))) {
            (state.poke)(Wish::Due(Duration::ZERO));
        }
        Ok(after)
    });
    let (agent, ended) = record.await?.ok_or_else(unknown)?;
    Ok(json(if ended { StatusCode::OK } else { StatusCode::ACCEPTED }, agent))
}

/// `DELETE /agents?label=`
pub async fn terminate_labelled(caller: &Caller, request: &Request<Incoming>) -> Answer {
    let mut query = Query::of(request)?;
    let labels =
        labels(query.all("label"))?.ok_or_else(|| Problem::parameter("label", "there at least once: without it, all would end"))?;
    let dry_run: bool = query.one("dry_run", "true or false", |text| text.parse().ok())?.unwrap_or_default();
    query.done()?;
    let actor = actor(caller);
    let most = (!dry_run).then_some(TOGETHER);
    let mut count = 0;
    loop {
        let (state, labels, actor) = (caller.state.clone(), labels.clone(), actor.clone());
        let more = ask(async move {
            let more = state.sql.terminate_labelled(&labels, &actor, dry_run, most).await?;
            if !dry_run && more > 0 {
                (state.poke)(Wish::Due(Duration::ZERO));
            }
            Ok(more)
        });
        let more = more.await?;
        count += more;
        if most.is_none_or(|most| more < i64::from(most)) {
            let status = if dry_run { StatusCode::OK } else { StatusCode::ACCEPTED };
            return Ok(json(status, format!(r#"{{"count":{count}}}"#)));
        }
    }
}

fn actor(caller: &Caller) -> String {
    format!("http {}", caller.peer.ip().to_canonical())
}

/// `PATCH /agents/{id}`
pub async fn extend(caller: &Caller, agent: &str, request: Request<Incoming>) -> Answer {
    let id = id(agent)?;
    Query::of(&request)?.done()?;
    let ttl = extension(&body(request).await?)?;
    let state = caller.state.clone();
    let record = ask(async move {
        let due_in = state.sql.extend(id, ttl).await?;
        (state.poke)(Wish::Due(Duration::try_from_secs_f64(due_in.unwrap_or_default()).unwrap_or_default()));
        state.sql.get_agent(id).await
    });
    let (agent, _ended) = record.await?.ok_or_else(unknown)?;
    Ok(json(StatusCode::OK, agent))
}

/// `GET /agents/{id}/events`
pub async fn story(caller: &Caller, agent: &str, request: &Request<Incoming>) -> Answer {
    let id = id(agent)?;
    Query::of(request)?.done()?;
    let state = caller.state.clone();
    let events = ask(async move { state.sql.story(id).await }).await?;
    if events.is_empty() {
        return Err(unknown());
    }
    Ok(routes::read(request, format!(r#"{{"events":[{}]}}"#, events.join(","))))
}

/// `GET /hosts`
pub async fn hosts(caller: &Caller, request: &Request<Incoming>) -> Answer {
    Query::of(request)?.done()?;
    let state = caller.state.clone();
    let hosts = ask(async move { state.sql.hosts().await }).await?;
    Ok(routes::read(request, format!(r#"{{"hosts":[{}]}}"#, hosts.join(","))))
}

/// `GET /replicas`
pub async fn replicas(caller: &Caller, request: &Request<Incoming>) -> Answer {
    Query::of(request)?.done()?;
    let state = caller.state.clone();
    let replicas = ask(async move { state.sql.replicas().await }).await?;
    Ok(routes::read(request, format!(r#"{{"replicas":[{}]}}"#, replicas.join(","))))
}

/// What is said about an id that nobody has.
pub fn unknown() -> Problem {
    Problem::new(&problem::UNKNOWN_AGENT, "there is no such agent")
}
