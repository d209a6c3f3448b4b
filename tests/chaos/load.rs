//! Clients: they submit agents of every kind through the load balancer and in transactions of their own, end and extend some, and write
//! down what they were told: yes, no, or nothing that can be relied on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::fleet::http;
use super::record::{Call, Dir, Journal, Kind, Op, Plan, Said, now};
use crate::harness::cluster::Cluster;

/// A replica that cannot reach the database says so within two seconds; the load balancer gives one that says nothing four, three times.
const PATIENCE: Duration = Duration::from_secs(20);
pub struct Load {
    pub door: String,
    pub image: String,
    pub cluster: Arc<Cluster>,
    pub journal: Journal,
    pub accepted: AtomicUsize,
    kinds: Vec<Kind>,
    by_sql: f64,
}

impl Load {
    pub fn new(door: &str, image: &str, cluster: Arc<Cluster>, dir: &Dir, plan: &Plan) -> Arc<Self> {
        Arc::new(Self {
            door: door.to_owned(),
            image: image.to_owned(),
            cluster,
            journal: dir.journal("calls.jsonl"),
            accepted: AtomicUsize::new(0),
            kinds: plan.kinds.clone(),
            by_sql: plan.by_sql,
        })
    }

    /// Submits until told to stop, and answers when everything that it began is done. One stream of numbers for each agent, so that what
    /// becomes of one changes no other.
    pub async fn run(self: Arc<Self>, plan: Plan, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(plan.at_once));
        let mut ticks = interval(Duration::from_secs_f64(1.0 / plan.rate));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut agents = tokio::task::JoinSet::new();
        let mut number = 0;
        while !stop.is_cancelled() {
            let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
            rng.set_stream(number);
            number += 1;
            let place = Arc::clone(&places).acquire_owned().await.unwrap();
            let load = Arc::clone(&self);
            agents.spawn(async move {
                load.one(&mut rng).await;
                drop(place);
            });
            ticks.tick().await;
            while agents.try_join_next().is_some_and(|done| done.is_ok()) {}
        }
        while let Some(done) = agents.join_next().await {
            done.unwrap();
        }
    }

    /// One agent, from its submission to whatever its client does to it.
    async fn one(&self, rng: &mut ChaCha8Rng) {
        let kind = match rng.random_range(0..100) {
            0..22 => Kind::Exits(0),
            22..34 => Kind::Exits(rng.random_range(1..100)),
            34..38 => Kind::Oom,
            38..60 => Kind::Expires,
            60..68 => Kind::Stubborn,
            68..86 => Kind::Deleted,
            _ => Kind::Extended,
        };
        let kind = self.kinds.choose(rng).copied().unwrap_or(kind);
        let (script, ttl, grace) = script(kind, rng);
        let key = Uuid::from_u128(rng.random()).to_string();
        let by_sql = rng.random_bool(self.by_sql);
        match rng.random_range(0..100) {
            // A quarter of those changes its mind.
            ..25 if by_sql => self.by_sql(&key, kind, &script, ttl, grace, false).await,
            _ if by_sql => self.by_sql(&key, kind, &script, ttl, grace, true).await,
            ..3 => self.hang_up(&key, kind, &script, ttl, grace).await,
            _ => {
                let Some(agent) = self.post(&key, kind, &script, ttl, grace).await else { return };
                if rng.random_bool(0.1) {
                    // A client that has forgotten its answer.
                    self.post(&key, kind, &script, ttl, grace).await;
                }
                match kind {
                    Kind::Deleted => {
                        sleep(Duration::from_millis(rng.random_range(0..4000))).await;
                        self.ask(Op::Delete, "DELETE", agent, kind, "").await;
                    }
                    Kind::Extended => {
                        sleep(Duration::from_millis(rng.random_range(500..4500))).await;
                        self.ask(Op::Patch, "PATCH", agent, kind, r#"{"ttl": 5}"#).await;
                    }
                    _ => {}
                }
            }
        }
    }

    fn body(&self, key: &str, script: &str, ttl: f64, grace: f64, kind: Kind) -> Value {
        let memory = if kind == Kind::Oom { 16 << 20 } else { 64 << 20 };
        json!({
            "image": self.image, "command": ["sh", "-c", script], "ttl": ttl, "max_ttl": 3600, "grace": grace, "memory": memory,
            "labels": {"kind": name(kind), "key": key},
        })
    }

    /// Submits until there is an answer to rely on, always with the same key.
    async fn post(&self, key: &str, kind: Kind, script: &str, ttl: f64, grace: f64) -> Option<Uuid> {
        let body = self.body(key, script, ttl, grace, kind).to_string();
        for _ in 0..20 {
            let began = now();
            let answer = http(&self.door, "POST", "/agents", &[("Idempotency-Key", key)], &body, PATIENCE).await;
            let (said, status, agent) = match &answer {
                Ok((status @ (200 | 201), body)) => {
                    let agent: Value = serde_json::from_str(body).unwrap_or_default();
                    (Said::Ok, *status, agent["id"].as_str().and_then(|id| id.parse().ok()))
                }
                Ok((status @ 400..500, _)) => (Said::Fail, *status, None),
                // A 503 of ours means that nothing happened, one of the load balancer's that nobody answered: it cannot be told.
                Ok((status, _)) => (Said::Info, *status, None),
                Err(_) => (Said::Info, 0, None),
            };
            self.write(Call { began, ended: now(), op: Op::Post, kind, key: key.to_owned(), agent, said, status, deadline: None });
            match said {
                Said::Ok => {
                    self.accepted.fetch_add(1, Ordering::Relaxed);
                    return agent;
                }
                Said::Fail => return None,
                Said::Info => sleep(Duration::from_millis(500)).await,
            }
        }
        None
    }

    /// Ends or extends, until there is an answer to rely on.
    async fn ask(&self, op: Op, method: &str, agent: Uuid, kind: Kind, body: &str) {
        for _ in 0..20 {
            let began = now();
            let answer = http(&self.door, method, &format!("/agents/{agent}"), &[], body, PATIENCE).await;
            let (said, status, deadline) = match &answer {
                Ok((status @ (200 | 202), body)) => {
                    let seen: Value = serde_json::from_str(body).unwrap_or_default();
                    let deadline = seen["expires_at"].as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok());
                    // That of an agent which does not run yet is provisional: its ttl counts from its start.
                    let promised = op == Op::Patch && seen["state"] == "running";
                    (Said::Ok, *status, deadline.filter(|_| promised).map(jiff::Timestamp::as_millisecond))
                }
                Ok((status @ 400..500, _)) => (Said::Fail, *status, None),
                Ok((status, _)) => (Said::Info, *status, None),
                Err(_) => (Said::Info, 0, None),
            };
            let agent = Some(agent);
            self.write(Call { began, ended: now(), op, kind, key: String::new(), agent, said, status, deadline });
            if said != Said::Info {
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// `sundown.submit` in a transaction, which then commits, or does not.
    async fn by_sql(&self, key: &str, kind: Kind, script: &str, ttl: f64, grace: f64, commits: bool) {
        let op = if commits { Op::Submit } else { Op::Rollback };
        let began = now();
        let mut agent = None;
        let work = async {
            let mut client = self.cluster.try_client("sundown").await?;
            let transaction = client.transaction().await.ok()?;
            let memory: i64 = if kind == Kind::Oom { 16 << 20 } else { 64 << 20 };
            let statement = "select sundown.submit(image => $1, command => array['sh', '-c', $2], ttl => make_interval(secs => $3),
                max_ttl => '1h', grace => make_interval(secs => $4), memory => $5, labels => jsonb_build_object('kind', $6::text, 'key', $7::text))";
            let row = transaction.query_one(statement, &[&self.image, &script, &ttl, &grace, &memory, &name(kind), &key]).await.ok()?;
            agent = Some(row.get(0));
            if commits { transaction.commit().await.ok() } else { transaction.rollback().await.ok() }
        };
        let done = tokio::time::timeout(PATIENCE, work).await.ok().flatten().is_some();
        let said = if done { Said::Ok } else { Said::Info };
        if agent.is_some() {
            self.accepted.fetch_add(usize::from(commits && done), Ordering::Relaxed);
            self.write(Call { began, ended: now(), op, kind, key: key.to_owned(), agent, said, status: 0, deadline: None });
        }
    }

    /// Sends the request and leaves before the answer.
    async fn hang_up(&self, key: &str, kind: Kind, script: &str, ttl: f64, grace: f64) {
        let began = now();
        let body = self.body(key, script, ttl, grace, kind).to_string();
        if let Ok(mut stream) = tokio::net::TcpStream::connect(&self.door).await {
            let head =
                format!("POST /agents HTTP/1.1\r\nHost: chaos\r\nIdempotency-Key: {key}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let _gone = stream.write_all(head.as_bytes()).await;
        }
        let key = key.to_owned();
        self.write(Call { began, ended: now(), op: Op::Post, kind, key, agent: None, said: Said::Info, status: 0, deadline: None });
    }

    fn write(&self, call: Call) {
        self.journal.write(&call);
    }
}

/// As a label says it.
pub fn name(kind: Kind) -> String {
    serde_json::to_string(&kind).unwrap()
}

/// What it runs, its ttl and its grace, in seconds. Its output says once that it began.
fn script(kind: Kind, rng: &mut ChaCha8Rng) -> (String, f64, f64) {
    match kind {
        Kind::Exits(code) => {
            let pause = if rng.random_bool(0.3) {
                String::new()
            } else {
                format!("sleep {}.{}; ", rng.random_range(0..3), rng.random_range(1..10))
            };
            (format!("echo begun; {pause}exit {code}"), 60.0, 1.0)
        }
        Kind::Oom => ("echo begun; x=a; while :; do x=$x$x; done".to_owned(), 60.0, 1.0),
        Kind::Expires => ("echo begun; exec sleep 9999".to_owned(), f64::from(rng.random_range(10..60)) / 10.0, 2.0),
        Kind::Stubborn => ("echo begun; trap '' TERM; sleep 9999".to_owned(), f64::from(rng.random_range(15..50)) / 10.0, 1.0),
        Kind::Deleted => ("echo begun; exec sleep 9999".to_owned(), 40.0, 2.0),
        Kind::Extended => ("echo begun; exec sleep 9999".to_owned(), 5.0, 1.0),
    }
}
