//! A fresh, migrated database for each test, on the real Postgres that `SUNDOWN_TEST_DATABASE_URL` names.
//!
//! Migrated once for each state of the schema, into a template that all tests copy: a copy is not bound to its installation, so it is
//! adopted first, as an installation of its own. A database goes with its test, also when that panics.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails; which of these occur depends on the part")]

pub mod clients;
pub mod cluster;
pub mod deadman;
pub mod docker;
pub mod dockerd;
pub mod lives;
pub mod network;
pub mod pooler;
pub mod postgres;
pub mod replica;

use std::path::Path;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use sundown::sql::Sql;
use sundown::sql::work::{Claim, Facts, Placed};
use tokio_postgres::{Client, Config, NoTls};
use uuid::Uuid;

/// Leases as production has them: of a start, of a stop.
pub const START: Duration = Duration::from_secs(15);
pub const STOP: Duration = Duration::from_secs(2);

/// A database of its own.
pub struct Db {
    admin: Config,
    name: String,
}

impl Db {
    /// A copy of the migrated template, adopted as a new installation, for tests share a Docker daemon.
    pub async fn new() -> Self {
        let admin = server();
        let template = template(&admin).await;
        let db = Self::copy(admin, &template).await;
        db.client().await.execute("select sundown.adopt(true)", &[]).await.unwrap();
        db
    }

    /// A database with nothing in it.
    pub async fn empty() -> Self {
        Self::copy(server(), "template0").await
    }

    /// A copy of this one. Nobody may be connected to it.
    pub async fn cloned(&self) -> Self {
        Self::copy(self.admin.clone(), &self.name).await
    }

    async fn copy(admin: Config, template: &str) -> Self {
        let name = format!("sundown_test_{}", Uuid::new_v4().simple());
        let client = connect(&admin).await;
        client.batch_execute(&format!("create database {name} template {template}")).await.unwrap();
        Self { admin, name }
    }

    pub fn config(&self) -> Config {
        let mut config = self.admin.clone();
        config.dbname(&self.name);
        config
    }

    pub fn url(&self) -> String {
        let url = std::env::var("SUNDOWN_TEST_DATABASE_URL").unwrap();
        let (server, _) = url.rsplit_once('/').expect("SUNDOWN_TEST_DATABASE_URL ends with the name of a database");
        format!("{server}/{}", self.name)
    }

    /// A connection, as psql has one.
    pub async fn client(&self) -> Client {
        connect(&self.config()).await
    }

    /// The statements, over a pool that believes this database only.
    pub async fn sql(&self, size: usize) -> Sql {
        let sql = Sql::new(&self.config(), size, Duration::from_secs(20)).unwrap();
        let (installation, bound) = sql.identity().await.unwrap().unwrap();
        assert!(bound, "the copy was adopted");
        sql.expect(installation);
        sql
    }

    /// One number.
    pub async fn count(&self, query: &str) -> i64 {
        self.client().await.query_one(query, &[]).await.unwrap().get(0)
    }

    /// The database's clock.
    pub async fn now(&self) -> SystemTime {
        self.client().await.query_one("select clock_timestamp()", &[]).await.unwrap().get(0)
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        let (admin, drop) = (self.admin.clone(), format!("drop database if exists {} with (force)", self.name));
        // A thread with a runtime of its own: this may run inside one, or inside a panic.
        let ended = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(async {
                let (client, connection) = admin.connect(NoTls).await.ok()?;
                tokio::spawn(connection);
                client.batch_execute(&drop).await.ok()
            })
        });
        let _best_effort = ended.join();
    }
}

/// Looks again and again until there is something, at most so long.
pub async fn eventually<T>(what: &str, patience: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = tokio::time::Instant::now() + patience;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < end, "not within {patience:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for a condition, at most ten seconds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    eventually(what, Duration::from_secs(10), async || condition().await.then_some(())).await;
}

/// Submits an agent of an image that nobody runs; `with` is more arguments, as SQL.
pub async fn submit(client: &Client, with: &str) -> Uuid {
    let more = if with.is_empty() { String::new() } else { format!(", {with}") };
    client.query_one(&format!("select sundown.submit(image => 'busybox'{more})"), &[]).await.unwrap().get(0)
}

/// A host with room for `capacity` agents.
pub async fn host(sql: &Sql, capacity: i32) -> i32 {
    sql.register_host(Uuid::new_v4(), "here", "unix:///nowhere", Some(capacity), None).await.unwrap()
}

/// Places whoever is first in line, and answers id and epoch.
pub async fn place(sql: &Sql, host: i32, now: Option<SystemTime>) -> (Uuid, i32) {
    let Placed::Some(placed) = sql.place(host, 1, 1, START, now).await.unwrap() else { panic!("there is no room on host {host}") };
    placed.first().map(|(id, epoch, _)| (*id, *epoch)).expect("somebody is in line")
}

/// Takes whoever is first in line to `running`, and answers id and epoch.
pub async fn run(sql: &Sql, host: i32, now: Option<SystemTime>) -> (Uuid, i32) {
    let (id, epoch) = place(sql, host, now).await;
    assert!(sql.record_container(id, epoch, &format!("container of {id}")).await.unwrap());
    sql.running(id, epoch, now).await.unwrap().expect("its lease is ours");
    (id, epoch)
}

/// Claims what is due on a host, as its keeper does.
pub async fn claim(sql: &Sql, host: i32, now: Option<SystemTime>) -> Vec<Claim> {
    sql.claim_due(&[(host, 0.0)], 1, None, START, STOP, now).await.unwrap()
}

/// The first step of the finish, by whoever has that epoch. Answers the next.
pub async fn observe(sql: &Sql, id: Uuid, epoch: i32, facts: &Facts, now: Option<SystemTime>) -> Option<i32> {
    let row = Claim {
        id,
        epoch,
        host: 0,
        state: String::new(),
        container_id: None,
        attempts: 1,
        started: true,
        signalled: false,
        killed: false,
        observed: false,
        grace: Duration::ZERO,
        lease: Duration::ZERO,
        start_timed_out: false,
        grace_over: false,
    };
    sql.observe(&row, 1, STOP, facts, now).await.unwrap()
}

/// SQLSTATE and constraint of a refusal.
pub fn refusal(error: &tokio_postgres::Error) -> (String, String) {
    let error = error.as_db_error().unwrap_or_else(|| panic!("not refused by the database: {error}"));
    (error.code().code().to_owned(), error.constraint().unwrap_or_default().to_owned())
}

async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.expect("the Postgres of SUNDOWN_TEST_DATABASE_URL answers");
    tokio::spawn(connection);
    client
}

fn server() -> Config {
    let url = std::env::var("SUNDOWN_TEST_DATABASE_URL").unwrap_or_else(|_| {
        panic!("run scripts/test, or set SUNDOWN_TEST_DATABASE_URL to a superuser's connection to a Postgres for tests")
    });
    url.parse().expect("SUNDOWN_TEST_DATABASE_URL is an address of Postgres")
}

/// The name of the migrated template; made by whichever test comes first.
async fn template(admin: &Config) -> String {
    let name = format!("sundown_template_{}", schema());
    let client = connect(admin).await;
    let exists = format!("select exists (select from pg_database where datname = '{name}')");
    // Polled: a session that waits for a lock holds a snapshot.
    while !client
        .query_one("select pg_try_advisory_lock(hashtextextended('sundown test template', 0))", &[])
        .await
        .unwrap()
        .get::<_, bool>(0)
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if !client.query_one(&exists, &[]).await.unwrap().get::<_, bool>(0) {
        // Renamed when it is complete, so that one whose maker was killed is never copied.
        client.batch_execute(&format!("drop database if exists {name}_new with (force)")).await.unwrap();
        client.batch_execute(&format!("create database {name}_new template template0")).await.unwrap();
        let mut config = admin.clone();
        sundown::migrate::migrate(config.dbname(format!("{name}_new")), false).await.unwrap();
        client.batch_execute(&format!("alter database {name}_new rename to {name}")).await.unwrap();
    }
    client.execute("select pg_advisory_unlock_all()", &[]).await.unwrap();
    name
}

/// Names the schema by what it is made from, so that a changed file gives a new template.
fn schema() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = ["migrations", "sql/functions"]
        .iter()
        .flat_map(|dir| std::fs::read_dir(root.join(dir)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut digest = Sha256::new();
    for file in files {
        digest.update(std::fs::read(file).unwrap());
    }
    digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
