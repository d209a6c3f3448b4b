//! Whole lives, with a Docker that answers at once: what is left is Sundown and Postgres.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sundown::sql::STATEMENTS;
use tokio::time::{Instant, sleep};

use crate::Scale;
use crate::clients;
use crate::pgbench::{self, Length, run};
use crate::process;
use crate::row::{Figure, Goal, Row, Second};
use crate::world::{NOBODYS, World};

pub const SETTINGS: [(&str, &str); 2] = [("SUNDOWN_CAPACITY", "100000"), ("SUNDOWN_STARTS", "16")];
/// As many as one claim takes.
pub const BATCH: usize = 100;
/// Where this yardstick is at its best on two cores.
pub const SWEEPERS: usize = 2;
pub const BODY: &str = r#"{"image":"busybox","command":["sleep","inf"],"ttl":"1s","grace":"0s"}"#;

pub async fn rows(scale: Scale) -> Vec<Row> {
    let mut rows = expiries(scale).await;
    rows.push(whole(scale).await);
    rows
}

/// Many that are due at the same instant, on worlds with one replica and with eight, and the same by pgbench.
async fn expiries(scale: Scale) -> Vec<Row> {
    let (one, eight) = (World::new(1, &SETTINGS).await, World::new(scale.pick(2, 8, 8), &SETTINGS).await);
    one.client.batch_execute(include_str!("../sql/bare.sql")).await.unwrap();
    let script = Script::new();
    let count = scale.pick(100, 1000, 2000);
    let (mut ours, mut many, mut theirs, mut bare) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..scale.pick(1, 2, 5) {
        ours.push(expired(&one, count).await);
        theirs.push(script.expired(&one, scale.pick(1600, 4000, 10_000)).await);
        bare.push(bare_expired(&one, scale.pick(1600, 4000, 10_000)).await);
        many.push(expired(&eight, count).await);
    }
    let row = |name, sundown, yardstick, against, goal, second, note| Row {
        name,
        sundown: Figure::of(sundown),
        yardstick: Figure::of(yardstick),
        against,
        unit: "lives per s",
        goal,
        second,
        note,
    };
    let second = Second {
        yardstick: Figure::of(&bare),
        against: "claim and finish on tables without triggers, events and partitions by pgbench, batches of 100, 2 clients".to_owned(),
        goal: Goal::RatioAtLeast(0.5),
    };
    vec![
        row(
            "expiries, Docker answering at once",
            &ours,
            &theirs,
            "claim, intent, facts and outcome on our schema by pgbench, batches of 100, 2 clients",
            Goal::RatioAtLeast(0.8),
            Some(second),
            format!("{count} due at once, 1 replica"),
        ),
        row(
            "expiries, 8 replicas",
            &many,
            &ours,
            "the same with 1 replica",
            Goal::RatioAtLeast(0.95),
            None,
            format!("{count} due at once; all of them share the cores with the small daemon"),
        ),
    ]
}

/// From the first decision to the last outcome of so many, per second.
async fn expired(world: &World, count: usize) -> f64 {
    let ids = world.run(count, "busybox").await;
    world.due(&ids, 2.0, 0.0).await;
    world.ended(&ids).await;
    let span = "select extract(epoch from max(finished_at) - min(decided_at))::float8 from sundown.agent_outcome where id = any ($1)";
    count as f64 / world.client.query_one(span, &[&ids]).await.unwrap().get::<_, f64>(0)
}

async fn bare_expired(world: &World, count: usize) -> f64 {
    let fill = format!(
        "insert into bare.live (id, due_at, expires_at, host)
         select sundown.uuidv7(clock_timestamp()), now(), now(), 1 from generate_series(1, {count});
         analyze bare.live;"
    );
    world.client.batch_execute(&fill).await.unwrap();
    let length = Length::Transactions(count / BATCH / SWEEPERS);
    let rate = run(&world.db.url(), &pgbench::script("expire_bare"), SWEEPERS, length, &[]).await.rate * BATCH as f64;
    assert!(world.number("select count(*)::float8 from bare.live").await == 0.0, "some of them did not end");
    rate
}

/// A script of pgbench: the product's own statements, with what they are asked put into them.
pub struct Script(PathBuf);

impl Script {
    /// From the claim to the outcomes of a batch.
    pub fn new() -> Self {
        Self::of("", "null")
    }

    /// `before`: what each transaction begins with; `low`: where its claim begins to look.
    pub fn of(before: &str, low: &str) -> Self {
        let statement = |name: &str, parameters: &[&str]| {
            let (_, text) = STATEMENTS.iter().find(|(stem, _)| *stem == name).expect("it is one of the product's statements");
            // pgbench would look for variables in comments, too.
            let mut text = text.lines().filter(|line| !line.trim_start().starts_with("--")).collect::<Vec<_>>().join("\n");
            for (place, value) in parameters.iter().enumerate() {
                text = text.replace(&format!("${}", place + 1), value);
            }
            text
        };
        let hosts = format!("'{{{NOBODYS}}}'");
        let claim = statement("claim_due", &[&hosts, "'{0}'", "1", low, "15::float8", "2::float8", "null::timestamptz"]);
        let finish = statement("finish", &["(:ids::uuid[])", "(:epochs::int4[])", "null::timestamptz", "'1s'"]);
        let text =
            before.to_owned() + &include_str!("../sql/expire.sql").replace("/* claim_due */", &claim).replace("/* finish */", &finish);
        let path = std::env::temp_dir().join(format!("sundown-bench-{}.sql", uuid::Uuid::new_v4().simple()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// How many of a crowd that is due it ends per second.
    pub async fn expired(&self, world: &World, count: usize) -> f64 {
        world.crowd(count, 0.0).await;
        let rate = run(&world.db.url(), &self.0, SWEEPERS, Length::Transactions(count / BATCH / SWEEPERS), &[]).await.rate * BATCH as f64;
        let left = format!("select count(*)::float8 from sundown.agent_live where host = {NOBODYS}");
        assert!(world.number(&left).await == 0.0, "some of them did not end");
        rate
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

/// What lives came to.
pub struct Lives {
    /// Of the replicas' processes together, for each life, in microseconds.
    pub cost: f64,
    /// Per second, from the first POST to the last outcome, less the second that each of them lives.
    pub rate: f64,
}

/// So many lives by some clients of all replicas in turn: from POST to outcome, each of them by its own deadline.
pub async fn live(world: &World, clients: usize, each: usize) -> Lives {
    let spent = || world.replicas.iter().map(|replica| process::cpu(replica.pid())).sum::<Duration>();
    let (began, before) = (Instant::now(), spent());
    let addresses: Vec<&str> = world.replicas.iter().map(|replica| replica.address.as_str()).collect();
    clients::run(&addresses, clients, 201, move |_, sent| (sent < each).then(|| ("POST", "/agents".to_owned(), BODY))).await;
    // Those of nobody's host live on; that is no host that was registered.
    let living = "select count(*)::float8 from sundown.agent_live where host = any (array(select id from sundown.host) || 0)";
    while world.number(living).await > 0.0 {
        assert!(began.elapsed() < Duration::from_secs(180), "some agents do not end");
        sleep(Duration::from_millis(100)).await;
    }
    let (lives, cpu) = ((clients * each) as f64, spent() - before);
    Lives { cost: cpu.as_secs_f64() * 1e6 / lives, rate: lives / (began.elapsed().as_secs_f64() - 1.0) }
}

async fn whole(scale: Scale) -> Row {
    let world = World::new(1, &SETTINGS).await;
    let (clients, each) = (8, scale.pick(10, 125, 400));
    let (mut costs, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..scale.pick(1, 3, 5) {
        let lives = live(&world, clients, each).await;
        costs.push(lives.cost);
        rates.push(lives.rate);
    }
    Row::limited("CPU of a whole life in the replica", Figure::of(&costs), "µs", 400.0).noted(format!(
        "{} lives a round by {clients} clients, {:.0} per s",
        clients * each,
        Figure::of(&rates).value
    ))
}
