//! What is measured: a database of its own, the small Docker daemon, and replicas.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::fake_docker::{Call, FakeDocker};
use crate::harness::Db;
use crate::harness::replica::Replica;

/// A host that no replica serves: what is there is nobody's but the benchmark's.
pub const NOBODYS: i32 = 1_000_000;

pub struct World {
    // In the order in which they go.
    pub replicas: Vec<Replica>,
    pub client: Client,
    /// A daemon for each host.
    fakes: Vec<FakeDocker>,
    pub db: Db,
}

impl World {
    /// So many replicas of one host, with these settings beside their defaults.
    pub async fn new(replicas: usize, settings: &[(&str, &str)]) -> Self {
        Self::with_hosts(replicas, 1, settings).await
    }

    /// So many replicas that serve as many hosts.
    pub async fn with_hosts(replicas: usize, hosts: usize, settings: &[(&str, &str)]) -> Self {
        let (db, fakes) = (Db::new().await, join_all((0..hosts).map(|_| FakeDocker::start())).await);
        let mut world = Self { replicas: Vec::new(), client: db.client().await, fakes, db };
        for _ in 0..replicas {
            let replica = world.replica(settings);
            replica.ready().await;
            world.replicas.push(replica);
        }
        world
    }

    /// One more, that is not waited for.
    pub fn replica(&self, settings: &[(&str, &str)]) -> Replica {
        let endpoints = self.fakes.iter().map(FakeDocker::endpoint).collect::<Vec<_>>().join(",");
        Replica::spawn(&self.db.url(), &[&[("SUNDOWN_DOCKER", endpoints.as_str())], settings].concat())
    }

    /// How many containers were removed.
    pub fn removed(&self) -> usize {
        self.fakes.iter().map(|fake| fake.total(Call::Remove)).sum()
    }

    /// One number.
    pub async fn number(&self, query: &str) -> f64 {
        self.client.query_one(query, &[]).await.unwrap().get(0)
    }

    /// Submits so many agents that run this. Answers their ids.
    pub async fn submit(&self, count: usize, command: &str) -> Vec<Uuid> {
        self.submit_on(count, "busybox", command).await
    }

    async fn submit_on(&self, count: usize, image: &str, command: &str) -> Vec<Uuid> {
        let statement = "select sundown.submit(image => $1, command => string_to_array($3, ' '), ttl => '1 hour', grace => '0')
                           from generate_series(1, $2::int8)";
        let rows = self.client.query(statement, &[&image, &i64::try_from(count).unwrap(), &command]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Submits so many agents that would sleep for ever, and waits until they run. Answers their ids.
    pub async fn run(&self, count: usize, image: &str) -> Vec<Uuid> {
        let ids = self.submit_on(count, image, "sleep inf").await;
        let query = "select count(*) from sundown.agent_live where id = any ($1) and state = 'running'";
        self.until(&format!("{count} agents run"), query, &ids, count).await;
        ids
    }

    /// Gives each of these a deadline of its own, within `spread` seconds from `first` seconds on. With no spread all of them have the same:
    /// they are counted from an instant that is the same for all, and still to come when the last of them is told.
    pub async fn due(&self, ids: &[Uuid], first: f64, spread: f64) {
        let statement =
            "select count(sundown.extend(id, make_interval(secs => 0.001 + random() * $3::float8), at => now() + make_interval(secs => $2)))
                           from unnest($1::uuid[]) id";
        self.client.query_one(statement, &[&ids, &first, &spread]).await.unwrap();
    }

    /// Gives each of these a deadline `step` seconds after the one before it, from `first` seconds on. Answers the deadlines by the
    /// database's clock, as seconds since 1970.
    pub async fn due_apart(&self, ids: &[Uuid], first: f64, step: f64) -> Vec<f64> {
        let statement = "select extract(epoch from sundown.extend(u.id, make_interval(secs => 0.001 + $3::float8 * (u.n - 1)),
                                                                  at => now() + make_interval(secs => $2)))::float8
                           from unnest($1::uuid[]) with ordinality u (id, n) order by u.n";
        self.client.query(statement, &[&ids, &first, &step]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// Waits until all of these have ended.
    pub async fn ended(&self, ids: &[Uuid]) {
        let query = "select count(*) from sundown.agent_outcome where id = any ($1)";
        self.until(&format!("{} agents have ended", ids.len()), query, ids, ids.len()).await;
    }

    async fn until(&self, what: &str, query: &str, ids: &[Uuid], count: usize) {
        let end = Instant::now() + Duration::from_secs(180);
        while self.client.query_one(query, &[&ids]).await.unwrap().get::<_, i64>(0) < i64::try_from(count).unwrap() {
            assert!(Instant::now() < end, "not within three minutes: {what}");
            // Seldom: looking must not become what is measured.
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// For each of these that has ended: what an expression over its outcome `o` comes to.
    pub async fn outcomes(&self, ids: &[Uuid], expression: &str) -> Vec<f64> {
        let query = format!("select ({expression})::float8 from sundown.agent_outcome o where o.id = any ($1)");
        self.client.query(&query, &[&ids]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// Makes agents that run on a host of nobody's, due in so many seconds. Answers the beginning that their ids share; the rest is their
    /// number, from 0 on, as twelve hexadecimal digits.
    pub async fn crowd(&self, count: usize, due_in: f64) -> String {
        let statement = "select left(sundown.uuidv7(clock_timestamp())::text, 23) || '-'";
        let prefix: String = self.client.query_one(statement, &[]).await.unwrap().get(0);
        self.client
            .batch_execute(&format!(
                "begin;
                 create temporary table crowd on commit drop as
                     select ('{prefix}' || lpad(to_hex(n), 12, '0'))::uuid as id from generate_series(0, {count} - 1) n;
                 insert into sundown.agent (id, tenant, image, command, env_keys, labels, cpus, memory, pids, network, ttl, max_ttl, grace,
                                            start_timeout, created_at)
                 select id, 'default', 'busybox', '{{sleep,inf}}', '{{}}', '{{}}', 1, 268435456, 128, 'none', '1 hour', '1 day', '0', '60 s', now()
                   from crowd;
                 insert into sundown.agent_live (id, due_at, ttl, max_ttl, grace, start_timeout)
                 select id, now(), '1 hour', '1 day', '0', '60 s' from crowd;
                 update sundown.agent_live l
                    set host = {NOBODYS}, epoch = 1, placed_at = now(), state = 'running', started_at = now(), container_id = 'container of ' || l.id,
                        due_at = now() + make_interval(secs => {due_in}), expires_at = now() + make_interval(secs => {due_in})
                   from crowd c where l.id = c.id;
                 commit;
                 analyze sundown.agent_live;"
            ))
            .await
            .unwrap();
        prefix
    }
}

/// The id of one of a crowd.
pub fn member(prefix: &str, number: usize) -> String {
    format!("{prefix}{number:012x}")
}

/// What the database's clock shows at an instant of ours, as seconds since 1970.
pub struct Clock {
    epoch: f64,
    at: Instant,
}

impl Clock {
    /// By the quickest of some answers.
    pub async fn of(client: &Client) -> Self {
        let mut best: Option<(Duration, Self)> = None;
        for _ in 0..20 {
            let asked = Instant::now();
            let epoch = client.query_one("select extract(epoch from clock_timestamp())::float8", &[]).await.unwrap().get(0);
            let took = asked.elapsed();
            if best.as_ref().is_none_or(|(least, _)| took < *least) {
                best = Some((took, Self { epoch, at: asked + took / 2 }));
            }
        }
        best.unwrap().1
    }

    pub fn epoch(&self, instant: Instant) -> f64 {
        let (after, before) = (instant.saturating_duration_since(self.at), self.at.saturating_duration_since(instant));
        self.epoch + after.as_secs_f64() - before.as_secs_f64()
    }
}

/// Counts the transactions of a world's database, from another one.
pub struct Transactions {
    name: String,
    client: Client,
    _elsewhere: Db,
}

impl Transactions {
    pub async fn of(world: &World) -> Self {
        let elsewhere = Db::empty().await;
        let name = world.client.query_one("select current_database()", &[]).await.unwrap().get(0);
        Self { name, client: elsewhere.client().await, _elsewhere: elsewhere }
    }

    /// So many so far, and the database's clock. A session that is at work says each second what it did; two looks in the midst of
    /// steady work are late by as much.
    pub async fn so_far(&self) -> (f64, f64) {
        let query = "select (xact_commit + xact_rollback)::float8, extract(epoch from clock_timestamp())::float8 from pg_stat_database where datname = $1";
        let row = self.client.query_one(query, &[&self.name]).await.unwrap();
        (row.get(0), row.get(1))
    }
}
