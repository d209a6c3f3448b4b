//! The questions of HTTP: the wishes and the reads of users. Agents come back as the JSON that Postgres made of them, so that
//! there is one description of an agent's shape, in SQL.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::batch::{Patience, Question};
use super::{Now, Param, Sql};
use crate::agent::Submission;
use crate::error::Error;

/// Where the output of an agent is.
#[derive(Debug)]
pub struct LogOf {
    /// Host and container while it lives.
    pub live: Option<(i32, Option<String>)>,
    /// The kept tail and whether there was more before it.
    pub tail: Option<(Vec<u8>, bool)>,
    /// It has ended.
    pub ended: bool,
}

/// The gauges that only the database knows.
#[derive(Debug, Clone, Copy)]
pub struct Gauges {
    /// Agents that wait or are being started.
    pub pending: i64,
    /// Agents that run.
    pub running: i64,
    /// Agents that are being stopped.
    pub terminating: i64,
    /// Agents that somebody should have looked at by now.
    pub overdue: i64,
}

impl Sql {
    /// Submits an agent. Answers its id, its JSON as accepted, and whether it is new. Without a key it shares its commit with others that come
    /// at the same time.
    pub async fn submit(&self, s: &Submission, key: Option<&str>) -> Result<(Uuid, String, bool), Error> {
        let Some(key) = key else {
            let (id, agent) = self.shared.submit.ask(self, Submit(wish(s)), None).await??;
            return Ok((id, agent, true));
        };
        let (labels, env): (Value, Value) = (object(&s.labels), object(&s.env));
        let params: &[Param<'_>] = &[
            (&s.image, Type::TEXT),
            (&s.command, Type::TEXT_ARRAY),
            (&s.ttl, Type::FLOAT8),
            (&s.max_ttl, Type::FLOAT8),
            (&s.grace, Type::FLOAT8),
            (&s.name, Type::TEXT),
            (&labels, Type::JSONB),
            (&env, Type::JSONB),
            (&s.cpus, Type::FLOAT8),
            (&s.memory, Type::INT8),
            (&s.pids, Type::INT4),
            (&s.network, Type::TEXT),
            (&s.run_at, Type::TEXT),
            (&s.start_timeout, Type::FLOAT8),
            (&s.queue_timeout, Type::FLOAT8),
            (&key, Type::TEXT),
        ];
        let submitted = self.rows(super::SUBMIT, params).await?;
        let submitted = submitted.first().ok_or_else(gone)?;
        let (id, xid): (Uuid, String) = (submitted.try_get("id")?, submitted.try_get("xid")?);
        let accepted = self.rows(super::ACCEPTED, &[(&id, Type::UUID), (&xid, Type::TEXT)]).await?;
        let accepted = accepted.first().ok_or_else(gone)?;
        Ok((id, accepted.try_get("agent")?, accepted.try_get("is_new")?))
    }

    /// One agent as JSON and whether it has ended; `None`: unknown.
    pub async fn get_agent(&self, id: Uuid) -> Result<Option<(String, bool)>, Error> {
        let rows = self.rows(super::GET_AGENT, &[(&id, Type::UUID)]).await?;
        let row = rows.first().ok_or_else(gone)?;
        let agent: Option<String> = row.try_get("agent")?;
        agent.map(|agent| Ok((agent, row.try_get("ended")?))).transpose()
    }

    /// Which of these have ended.
    pub async fn ended(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, Error> {
        let rows = self.rows(super::ENDED, &[(&ids, Type::UUID_ARRAY)]).await?;
        rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
    }

    /// A page of at most `limit` agents and of about 1 MiB, newest first, older than `cursor`; each with whether there are more.
    pub async fn list_agents(
        &self,
        state: Option<&str>,
        labels: Option<&Value>,
        cursor: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<(Uuid, String, bool)>, Error> {
        let page: [Param<'_>; 3] = [(&state, Type::TEXT), (&cursor, Type::UUID), (&limit, Type::INT8)];
        let rows = match &labels {
            None => self.rows(super::LIST_AGENTS, &page).await?,
            Some(labels) => self.rows(super::LIST_LABELLED, &[&page[..], &[(labels, Type::JSONB)]].concat()).await?,
        };
        rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("agent")?, row.try_get("more")?))).collect()
    }

    /// Asks for the end of an agent. Answers its JSON after that, and whether it has ended; `None`: unknown.
    pub async fn terminate(&self, id: Uuid, actor: &str) -> Result<Option<(String, bool)>, Error> {
        self.shared.terminate.ask(self, Terminate(id, actor.to_owned()), None).await
    }

    /// Asks for the end of those that carry these labels, at most so many, or only counts them. Answers how many.
    pub async fn terminate_labelled(&self, labels: &Value, actor: &str, dry_run: bool, most: Option<i32>) -> Result<i64, Error> {
        let lock_timeout = self.lock_timeout(Patience::Long);
        let params: &[Param<'_>] =
            &[(labels, Type::JSONB), (&actor, Type::TEXT), (&dry_run, Type::BOOL), (&most, Type::INT4), (&lock_timeout, Type::TEXT)];
        self.one(super::TERMINATE_LABELLED, params, "count").await?.ok_or_else(gone)
    }

    /// Moves a deadline to now + `ttl` seconds; answers the seconds to it, `None` while it waits for a place.
    pub async fn extend(&self, id: Uuid, ttl: f64) -> Result<Option<f64>, Error> {
        Ok(self.one::<Option<f64>>(super::EXTEND, &[(&id, Type::UUID), (&ttl, Type::FLOAT8)], "due_in").await?.flatten())
    }

    /// Where the output of an agent is; `None`: unknown.
    pub async fn log_of(&self, id: Uuid) -> Result<Option<LogOf>, Error> {
        let rows = self.rows(super::LOG_OF, &[(&id, Type::UUID)]).await?;
        let row = rows.first().ok_or_else(gone)?;
        if !row.try_get("known")? {
            return Ok(None);
        }
        let (host, tail, truncated): (Option<i32>, Option<Vec<u8>>, Option<bool>) =
            (row.try_get("host")?, row.try_get("tail")?, row.try_get("truncated")?);
        let container = row.try_get("container_id")?;
        Ok(Some(LogOf { live: host.map(|host| (host, container)), tail: tail.zip(truncated), ended: row.try_get("ended")? }))
    }

    /// The replicas of the last hour, each as JSON.
    pub async fn replicas(&self) -> Result<Vec<String>, Error> {
        self.rows(super::REPLICAS, &[]).await?.iter().map(|row| Ok(row.try_get("replica")?)).collect()
    }

    /// The gauges that only the database knows.
    pub async fn gauges(&self) -> Result<Gauges, Error> {
        let rows = self.rows(super::GAUGES, &[]).await?;
        let row = rows.first().ok_or_else(gone)?;
        Ok(Gauges {
            pending: row.try_get("pending")?,
            running: row.try_get("running")?,
            terminating: row.try_get("terminating")?,
            overdue: row.try_get("overdue")?,
        })
    }
}

/// No answer at all is not ours to read anything into: poolers have been seen to hand over that to another question.
fn gone() -> Error {
    Error::Unavailable("a statement that always answers did not".to_owned())
}

fn object(map: &BTreeMap<String, String>) -> Value {
    map.iter().map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect()
}

/// A submission as `sundown.submit_many` takes it. What was left out is what `sundown.submit` says by itself.
fn wish(s: &Submission) -> Value {
    json!({
        "tenant": "default", "image": s.image, "command": s.command, "ttl": s.ttl, "max_ttl": s.max_ttl, "grace": s.grace, "name": s.name,
        "labels": s.labels, "env": s.env, "cpus": s.cpus.unwrap_or(1.0), "memory": s.memory.unwrap_or(256 << 20), "pids": s.pids.unwrap_or(128),
        "network": s.network.as_deref().unwrap_or("none"), "run_at": s.run_at, "start_timeout": s.start_timeout,
        "queue_timeout": s.queue_timeout,
    })
}

/// See [`Sql::submit`].
#[derive(Clone)]
pub(super) struct Submit(Value);

/// See [`Sql::terminate`].
#[derive(Clone)]
pub(super) struct Terminate(Uuid, String);

impl Question for Submit {
    type Answer = Result<(Uuid, String), Error>;
    /// Each may be as large as a request.
    const MOST: usize = 64;

    async fn ask(sql: &Sql, wishes: &[Self], _now: Now, patience: Patience) -> Result<Vec<Self::Answer>, Error> {
        let all = Value::Array(wishes.iter().map(|wish| wish.0.clone()).collect());
        let lock_timeout = sql.lock_timeout(patience);
        let rows = sql.rows(super::SUBMIT_MANY, &[(&all, Type::JSONB), (&lock_timeout, Type::TEXT)]).await?;
        rows.iter()
            .map(|row| {
                Ok(match row.try_get::<_, Option<String>>("code")? {
                    Some(code) => Err(Error::invalid(&code, row.try_get::<_, String>("problem")?, row.try_get::<_, String>("remedy")?)),
                    None => Ok((row.try_get("id")?, row.try_get("agent")?)),
                })
            })
            .collect()
    }
}

impl Question for Terminate {
    type Answer = Option<(String, bool)>;

    async fn ask(sql: &Sql, wishes: &[Self], _now: Now, patience: Patience) -> Result<Vec<Self::Answer>, Error> {
        let (ids, actors): (Vec<Uuid>, Vec<&str>) = wishes.iter().map(|wish| (wish.0, wish.1.as_str())).unzip();
        let lock_timeout = sql.lock_timeout(patience);
        let params: &[Param<'_>] = &[(&ids, Type::UUID_ARRAY), (&actors, Type::TEXT_ARRAY), (&lock_timeout, Type::TEXT)];
        let rows = sql.rows(super::TERMINATE, params).await?;
        let mut after: HashMap<Uuid, Self::Answer> = HashMap::new();
        for row in &rows {
            let agent: Option<String> = row.try_get("agent")?;
            after.insert(row.try_get("id")?, agent.map(|agent| Ok::<_, Error>((agent, row.try_get("ended")?))).transpose()?);
        }
        ids.iter().map(|id| after.get(id).cloned().ok_or_else(gone)).collect()
    }
}
