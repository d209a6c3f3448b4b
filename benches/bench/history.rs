//! What grows beside the work: agents that have ended, and what a transaction that is left open keeps alive.

use std::time::Duration;

use futures_util::future::join_all;
use tokio_postgres::Client;

use crate::harness::Db;
use crate::lives::{BATCH, SWEEPERS, Script};
use crate::pgbench::{Length, each};
use crate::row::{Figure, Goal, Row, number};
use crate::series::{Series, short};
use crate::world::{NOBODYS, World};
use crate::{Measured, Scale};

/// In one statement.
const CHUNK: usize = 100_000;

pub async fn measured(scale: Scale) -> Measured {
    let (held, series) = held(scale).await;
    Measured { rows: vec![beside_ended(scale).await, held], series }
}

async fn beside_ended(scale: Scale) -> Row {
    let (empty, full) = (World::new(0, &[]).await, World::new(0, &[]).await);
    let ended = scale.pick(1000, 100_000, 10_000_000);
    fill(&full.db, ended, "date_trunc('week', now(), 'UTC')", "now()").await;
    let (script, count) = (Script::new(), scale.pick(1600, 4000, 10_000));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..scale.pick(1, 2, 7) {
        ours.push(script.expired(&full, count).await);
        theirs.push(script.expired(&empty, count).await);
    }
    Row {
        name: "claim to outcome beside many that have ended",
        sundown: Figure::of(&ours),
        yardstick: Figure::of(&theirs),
        against: "the same in an empty database",
        unit: "lives per s",
        goal: Goal::RatioAtLeast(0.95),
        second: None,
        note: format!(
            "{} have ended, in this week; the product's statements by pgbench, batches of {BATCH}, {SWEEPERS} clients",
            short(ended as f64)
        ),
    }
}

/// Writes down so many agents that have ended, evenly between two instants, given as SQL: without the triggers, which would judge them one
/// after the other, and each with the last of its events only.
pub async fn fill(db: &Db, count: usize, from: &str, to: &str) {
    let client = db.client().await;
    let bounds = format!("select extract(epoch from {from})::float8, extract(epoch from {to})::float8");
    let bounds = client.query_one(&bounds, &[]).await.unwrap();
    let (from, to): (f64, f64) = (bounds.get(0), bounds.get(1));
    let instant = |n: usize| from + (to - from) * n as f64 / count as f64;
    // One for each core, each in order within its own share of the time: so every index grows at its right edge, or at two.
    let shares = [(0, count / 2), (count / 2, count)];
    join_all(shares.map(|(first, end)| async move {
        let client = db.client().await;
        client.batch_execute("set session_replication_role = replica; set synchronous_commit = off").await.unwrap();
        for first in (first..end).step_by(CHUNK) {
            let last = (first + CHUNK).min(end);
            client.batch_execute(&ended(last - first, instant(first), instant(last))).await.unwrap();
        }
    }))
    .await;
    // What autovacuum and the checkpointer would come for in the middle of a measurement.
    client.batch_execute("vacuum (analyze) sundown.agent, sundown.agent_outcome, sundown.event").await.unwrap();
    client.batch_execute("checkpoint").await.unwrap();
}

fn ended(count: usize, from: f64, to: f64) -> String {
    format!(
        "with n as materialized (
             select sundown.uuidv7(to_timestamp(at)) as id, to_timestamp(at) as at
               from (select {from} + n * ({to} - {from}) / {count} as at from generate_series(0, {count} - 1) n) instants
         ), a as (
             insert into sundown.agent (id, tenant, image, command, env_keys, labels, cpus, memory, pids, network, ttl, max_ttl, grace,
                                        start_timeout, created_at)
             select n.id, 'default', 'busybox', '{{sleep,inf}}', '{{}}', '{{}}', 1, 268435456, 128, 'none', '1 s', '1 day', '0', '60 s', n.at from n
         ), o as (
             insert into sundown.agent_outcome (id, state, reason, actor, host, container_id, exit_code, oom_killed, ttl, attempts, epoch, expires_at,
                                                placed_at, started_at, decided_at, signalled_at, killed_at, observed_at, finished_at)
             select n.id, 'expired', 'ttl_expired', 'sundown', {NOBODYS}, 'container of ' || n.id, 137, false, '1 s', 1, 4, n.at, n.at, n.at, n.at,
                    n.at, n.at, n.at, n.at from n
         )
         insert into sundown.event (at, id, kind, was, state, reason, actor, host, epoch, container_id, expires_at, exit_code)
         select n.at, n.id, 'state', 'terminating', 'expired', 'ttl_expired', 'sundown', {NOBODYS}, 4, 'container of ' || n.id, n.at, 137 from n"
    )
}

/// A transaction that has looked at the live agents, and stays open until it is dropped.
pub struct Snapshot(#[expect(dead_code, reason = "it is held")] Client);

impl Snapshot {
    pub async fn hold(db: &Db) -> Self {
        let client = db.client().await;
        client.batch_execute("begin isolation level repeatable read; select count(*) from sundown.agent_live").await.unwrap();
        Self(client)
    }
}

/// Agents by the hundred, from their placement to their outcomes, as fast as it goes: with a transaction that is left open from the start
/// on, and without.
async fn held(scale: Scale) -> (Row, Vec<Series>) {
    let seconds = scale.pick(4, 20, 300);
    // Where a replica's claim begins to look.
    let script = Script::of(include_str!("../sql/crowd.sql"), "(statement_timestamp() - interval '10 s')");
    let mut series = Vec::new();
    for (open, name) in [(true, "with a transaction left open"), (false, "without")] {
        let world = World::new(0, &[]).await;
        let _snapshot = if open { Some(Snapshot::hold(&world.db).await) } else { None };
        let host = NOBODYS.to_string();
        let samples = each(&world.db.url(), script.path(), SWEEPERS, Length::Seconds(seconds), &[("host", &host)]).await;
        let began = samples.iter().map(|sample| sample.at).fold(f64::INFINITY, f64::min).floor();
        let instants = samples.iter().map(|sample| (sample.at - began, BATCH as f64));
        series.push(Series::rate_over_time("snapshot", name.to_owned(), instants));
        tokio::time::sleep(Duration::from_secs(scale.pick(0, 1, 5))).await;
    }
    let last = |series: &Series| {
        let rates: Vec<f64> = series.points.iter().map(|point| point.1).collect();
        rates[rates.len() * 3 / 4..].to_vec()
    };
    let first = |series: &Series| Figure::of(&series.points[1..].iter().take(5).map(|point| point.1).collect::<Vec<_>>()).value;
    let row = Row {
        name: "full load, a transaction left open",
        sundown: Figure::of(&last(&series[0])),
        yardstick: Figure::of(&last(&series[1])),
        against: "the same without it",
        unit: "lives per s",
        goal: Goal::RatioAtLeast(0.8),
        second: None,
        note: format!(
            "the last quarter of {seconds} s, the median of its seconds; in their first seconds {} and {}; placed by SQL, then the product's \
             statements by pgbench, batches of {BATCH}, {SWEEPERS} clients",
            number(first(&series[0])),
            number(first(&series[1]))
        ),
    };
    (row, series)
}
