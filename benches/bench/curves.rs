//! How the rate of whole lives goes with what there is: rows, hosts, replicas, time under a snapshot, partitions that are dropped. With the
//! small daemon, which lives in this process: it, the clients and the replicas share the cores.

use std::ops::RangeInclusive;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::time::{Instant, sleep};

use crate::history::{Snapshot, fill};
use crate::lives::{SETTINGS, live};
use crate::row::percentile;
use crate::series::{Kind, Series, short};
use crate::world::World;
use crate::{Measured, Scale};

/// Of the API, all the while.
const CLIENTS: usize = 8;
/// Agents that are on their way at once where the load is steady: more than end in the second that each of them lives.
const UNDER_WAY: usize = 1500;
/// Which weeks are past retention, counted from this one.
const WEEKS: RangeInclusive<i64> = 6..=9;

pub async fn measured(scale: Scale) -> Measured {
    let mut series = over_rows(scale).await;
    series.extend(over_hosts(scale).await);
    series.extend(over_replicas(scale).await);
    series.extend(under_a_snapshot(scale).await);
    series.push(while_partitions_go(scale).await);
    Measured { series, ..Measured::default() }
}

/// Rate and cost of some rounds: the median of each.
async fn rounds(scale: Scale, world: &World) -> (f64, f64) {
    // Once for nothing: connections open, and statements are planned.
    live(world, CLIENTS, scale.pick(2, 25, 25)).await;
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..scale.pick(1, 1, 3) {
        let lives = live(world, CLIENTS, scale.pick(5, 125, 250)).await;
        rates.push(lives.rate);
        costs.push(lives.cost);
    }
    (percentile(&rates, 0.5), percentile(&costs, 0.5))
}

/// Two curves of the same points: rate, and what a life costs the replicas.
fn pair(plot: &'static str, costs: &'static str, over: &'static str, points: &[(f64, (f64, f64))]) -> Vec<Series> {
    let curve = |plot, name: &str, unit, points| Series { plot, kind: Kind::Steps, name: name.to_owned(), over, unit, points };
    vec![
        curve(plot, "whole lives", "lives per s", points.iter().map(|(x, (rate, _))| (*x, *rate)).collect()),
        curve(costs, "CPU of the replicas", "µs per life", points.iter().map(|(x, (_, cost))| (*x, *cost)).collect()),
    ]
}

/// Over agents that live on meanwhile, on a host that no replica serves: a thousandth of them would be more than the small daemon can hold.
async fn over_rows(scale: Scale) -> Vec<Series> {
    let world = World::new(1, &SETTINGS).await;
    let mut points = Vec::new();
    let mut there = 0;
    for rows in scale.pick(&[0, 1000][..], &[0, 10_000, 100_000], &[0, 10_000, 100_000, 1_000_000]) {
        if *rows > there {
            world.crowd(rows - there, 40_000.0).await;
            there = *rows;
            // What autovacuum would come for in the middle of a measurement.
            world.client.batch_execute("vacuum (analyze) sundown.agent, sundown.agent_live, sundown.event").await.unwrap();
        }
        points.push((*rows as f64, rounds(scale, &world).await));
        progress("live rows", &points);
    }
    pair("live-rows", "live-rows-cpu", "live agents", &points)
}

/// Over hosts that one replica serves, each with a small daemon of its own.
async fn over_hosts(scale: Scale) -> Vec<Series> {
    // Some connections for each of them, at both ends.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    }
    let mut points = Vec::new();
    for hosts in scale.pick(&[1, 3][..], &[1, 100], &[1, 100, 1000]) {
        let world = World::with_hosts(1, *hosts, &SETTINGS).await;
        let end = Instant::now() + Duration::from_secs(60);
        while world.number("select count(*)::float8 from sundown.host").await < *hosts as f64 {
            assert!(Instant::now() < end, "not all hosts are connected: {}", world.replicas[0].log());
            sleep(Duration::from_millis(100)).await;
        }
        points.push((*hosts as f64, rounds(scale, &world).await));
        progress("hosts", &points);
    }
    pair("hosts", "hosts-cpu", "hosts", &points)
}

/// Over replicas of one host. The cores are the same for all of them.
async fn over_replicas(scale: Scale) -> Vec<Series> {
    let mut points = Vec::new();
    for replicas in scale.pick(&[1, 2][..], &[1, 4, 10], &[1, 2, 3, 4, 6, 8, 10]) {
        let world = World::new(*replicas, &SETTINGS).await;
        points.push((*replicas as f64, rounds(scale, &world).await));
        progress("replicas", &points);
    }
    pair("replicas", "replicas-cpu", "replicas", &points)
}

fn progress(over: &str, points: &[(f64, (f64, f64))]) {
    if let Some((x, (rate, cost))) = points.last() {
        eprintln!("  {} {over}: {rate:.0} lives per s, {cost:.0} µs each", short(*x));
    }
}

async fn under_a_snapshot(scale: Scale) -> Vec<Series> {
    let mut series = Vec::new();
    for (open, name) in [(true, "with a transaction left open"), (false, "without")] {
        let world = World::new(1, &SETTINGS).await;
        let _snapshot = if open { Some(Snapshot::hold(&world.db).await) } else { None };
        series.push(steady(&world, "snapshot-lives", name.to_owned(), scale.pick(5, 20, 60)).await);
    }
    series
}

/// Weeks past retention are dropped from a third of the time on, by the product's own upkeep, as fast as it goes.
async fn while_partitions_go(scale: Scale) -> Series {
    let world = World::new(1, &SETTINGS).await;
    let each = scale.pick(100, 10_000, 100_000);
    world.client.batch_execute(include_str!("../sql/past_weeks.sql")).await.unwrap();
    for week in WEEKS {
        let instant = |hours: i64| format!("date_trunc('week', now(), 'UTC') - interval '{hours} hours'");
        fill(&world.db, each, &instant(week * 168 - 1), &instant(week * 168 - 167)).await;
    }
    let seconds = scale.pick(6, 20, 60);
    // On a connection of its own: what waits for a lock must not hold up who submits.
    let client = world.db.client().await;
    let dropping = async {
        sleep(Duration::from_secs(seconds / 3)).await;
        let (mut dropped, began) = (0, Instant::now());
        // Four tables have each of the weeks.
        while dropped < 4 * WEEKS.count() && began.elapsed() < Duration::from_secs(seconds / 2) {
            // One that is not to be had at this moment is left for the next time.
            let statement = "select (sundown.upkeep() ->> 'dropped')::int4";
            dropped += usize::try_from(client.query_one(statement, &[]).await.unwrap().get::<_, i32>(0)).unwrap();
            sleep(Duration::from_millis(100)).await;
        }
        (dropped, began.elapsed().as_secs_f64())
    };
    let (mut series, (dropped, took)) = tokio::join!(steady(&world, "partitions", String::new(), seconds), dropping);
    series.name = format!("{dropped} partitions, {} agents a week, dropped from {} s on for {took:.1} s", short(each as f64), seconds / 3);
    series
}

/// Outcomes per second while as many agents as ever are on their way, for so long. They live a second each, more or less: those that begin
/// together must not end together.
async fn steady(world: &World, plot: &'static str, name: String, seconds: u64) -> Series {
    let began = world.number("select extract(epoch from clock_timestamp())::float8").await;
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut submitted = 0;
    while Instant::now() < until {
        // Counted by the small daemon: in the database every look would cost more, the longer a snapshot is held.
        let missing = UNDER_WAY.saturating_sub(submitted - world.removed().min(submitted));
        if missing > 0 {
            let statement = "select sundown.submit(image => 'busybox', command => '{sleep,inf}', ttl => make_interval(secs => 0.5 + random()), grace => '0')
                               from generate_series(1, $1::int8)";
            submitted += world.client.query(statement, &[&i64::try_from(missing).unwrap()]).await.unwrap().len();
        }
        sleep(Duration::from_millis(50)).await;
    }
    let ends = "select extract(epoch from finished_at)::float8 - $1 from sundown.agent_outcome where finished_at >= to_timestamp($1)";
    let ends = world.client.query(ends, &[&began]).await.unwrap();
    Series::rate_over_time(plot, name, ends.iter().map(|row| (row.get(0), 1.0)))
}
