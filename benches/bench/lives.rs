//! Whole lives, with a Docker that answers at once: what is left is Sundown and Postgres.

use std::path::PathBuf;
use std::time::Duration;

use sundown::sql::STATEMENTS;
use tokio::time::{Instant, sleep};

use crate::Scale;
use crate::clients;
use crate::pgbench::{Length, run};
use crate::process;
use crate::row::{Figure, Goal, Row};
use crate::world::{NOBODYS, World};

const SETTINGS: [(&str, &str); 2] = [("SUNDOWN_CAPACITY", "100000"), ("SUNDOWN_STARTS", "16")];
/// As many as one claim takes.
const BATCH: usize = 100;
/// Where this yardstick is at its best on two cores.
const SWEEPERS: usize = 2;
const BODY: &str = r#"{"image":"busybox","command":["sleep","inf"],"ttl":"1s","grace":"0s"}"#;

pub async fn rows(scale: Scale) -> Vec<Row> {
    vec![expiries(scale).await, whole(scale).await]
}

/// Many that are due at the same instant.
async fn expiries(scale: Scale) -> Row {
    let world = World::new(1, &SETTINGS).await;
    let script = Script::new();
    let (count, url) = (scale.pick(1000, 2000), world.db.url());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..scale.pick(3, 5) {
        let ids = world.run(count, "busybox").await;
        world.due(&ids, 2.0, 0.0).await;
        world.ended(&ids).await;
        let span = "select extract(epoch from max(finished_at) - min(decided_at))::float8 from sundown.agent_outcome where id = any ($1)";
        let span: f64 = world.client.query_one(span, &[&ids]).await.unwrap().get(0);
        ours.push(count as f64 / span);
        let theirs_count = scale.pick(4000, 10_000);
        world.crowd(theirs_count, 0.0).await;
        let run = run(&url, &script.0, SWEEPERS, Length::Transactions(theirs_count / BATCH / SWEEPERS), &[]).await;
        theirs.push(run.rate * BATCH as f64);
        let left = format!("select count(*)::float8 from sundown.agent_live where host = {NOBODYS}");
        assert!(world.number(&left).await == 0.0, "some of them did not end");
    }
    Row {
        name: "expiries, Docker answering at once",
        sundown: Figure::of(&ours),
        yardstick: Figure::of(&theirs),
        against: "claim, intent, facts and outcome on our schema by pgbench, batches of 100, 2 clients",
        unit: "lives per s",
        goal: Goal::RatioAtLeast(0.8),
        note: format!("{count} due at once, 1 replica"),
    }
}

/// The script of the yardstick: the product's own statements, with what they are asked put into them.
struct Script(PathBuf);

impl Script {
    fn new() -> Self {
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
        let claim = statement("claim_due", &[&hosts, "'{0}'", "1", "null", "15::float8", "2::float8", "null::timestamptz"]);
        let finish = statement("finish", &["(:ids::uuid[])", "(:epochs::int4[])", "null::timestamptz", "'1s'"]);
        let text = include_str!("../sql/expire.sql").replace("/* claim_due */", &claim).replace("/* finish */", &finish);
        let path = std::env::temp_dir().join(format!("sundown-bench-{}.sql", uuid::Uuid::new_v4().simple()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

/// From POST to outcome, each of them by its own deadline.
async fn whole(scale: Scale) -> Row {
    let world = World::new(1, &SETTINGS).await;
    let (clients, each) = (8, scale.pick(125, 400));
    let (mut costs, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..scale.pick(3, 5) {
        let (began, before) = (Instant::now(), process::cpu(world.replicas[0].pid()));
        clients::run(&world.replicas[0].address, clients, 201, move |_, sent| (sent < each).then(|| ("POST", "/agents".to_owned(), BODY)))
            .await;
        while world.number("select count(*)::float8 from sundown.agent_live").await > 0.0 {
            assert!(began.elapsed() < Duration::from_secs(180), "some agents do not end");
            sleep(Duration::from_millis(100)).await;
        }
        let (lives, cpu) = ((clients * each) as f64, process::cpu(world.replicas[0].pid()) - before);
        costs.push(cpu.as_secs_f64() * 1e6 / lives);
        rates.push(lives / (began.elapsed().as_secs_f64() - 1.0));
    }
    Row::limited("CPU of a whole life in the replica", Figure::of(&costs), "µs", 400.0).noted(format!(
        "{} lives a round by {clients} clients, {:.0} per s",
        clients * each,
        Figure::of(&rates).value
    ))
}
