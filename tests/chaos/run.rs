//! One run: a plan made from a seed, a world, clients and faults for as long as the plan says; then everything is healed, and nobody may
//! be left.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::signal::Signal;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::check::Report;
use super::daemon::Daemon;
use super::load::{Load, name};
use super::nemesis::{GROUND, Nemesis, POINTS, REAL, REPLICAS};
use super::observe::{Observer, probe};
use super::record::{Course, Crowd, Dir, Event, Injected, Journal, Kind, Plan, Row, Sky, now};
use super::world::World;
use crate::fake_docker::{End, Fault};
use crate::harness::eventually;

/// Half of the runs have faults of all kinds, the others of a few: then each of them is met more often.
pub fn plan(seed: u64, seconds: u64, sky: Option<Sky>) -> Plan {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let few = rng.random_bool(0.5);
    let mut some = |all: &[&str], count: usize| -> Vec<String> {
        let chosen = if few { all.sample(&mut rng, count).copied().collect() } else { all.to_vec() };
        chosen.into_iter().map(str::to_owned).collect()
    };
    let ground: Vec<&str> = GROUND.into_iter().filter(|fault| sky.is_none() || !REAL.contains(fault)).collect();
    let faults = vec![some(&REPLICAS, 4), some(&ground, 8)];
    let pooled = rng.random_bool(0.3);
    let points = POINTS.map(str::to_owned).to_vec();
    // The real daemon starts a few containers in a second; the small one is held up by nothing but the machine, and by unoptimised code.
    let (rate, daemon_rate) = if cfg!(debug_assertions) { (30.0, 60) } else { (90.0, 180) };
    let (rate, at_once, capacity, daemon_rate) = if sky.is_none() { (2.4, 48, 60, 8) } else { (rate, 400, 600, daemon_rate) };
    let (kinds, by_sql, lease, still, calm, quiet, defect) = (Vec::new(), 0.1, 3000, 4000, 5, 150, None);
    Plan {
        seed,
        seconds,
        rate,
        at_once,
        kinds,
        by_sql,
        capacity,
        sky,
        pooled,
        faults,
        points,
        lease,
        still,
        daemon_rate,
        calm,
        quiet,
        defect,
        crowd: None,
    }
}

/// Where the directories of runs are.
pub fn root() -> PathBuf {
    std::env::var_os("SUNDOWN_CHAOS_DIR").map_or_else(|| std::env::temp_dir().join("sundown-chaos"), PathBuf::from)
}

/// A new directory for a run.
pub fn directory(root: &Path, seed: u64) -> Dir {
    let dir = root.join(format!("{seed}-{}", now()));
    fs::create_dir_all(&dir).unwrap();
    Dir(dir)
}

/// Does what the plan says, and writes everything down.
pub async fn run(plan: &Plan, dir: &Dir) {
    dir.save("plan.json", plan);
    let world = World::new(dir, 3, plan).await;
    let before = world.decoys().await;
    let observer = Observer::start(&world.daemon, dir).await;
    world.daemon.begin();
    let addresses = {
        let fleet = world.fleet.lock().await;
        (0..fleet.count()).map(|n| fleet.address(n)).collect()
    };
    let probes = tokio::spawn(probe(Arc::clone(&world.cluster), world.docker.clone(), addresses, dir.clone()));
    let began = now();
    let journal = dir.journal("faults.jsonl");
    match plan.crowd {
        Some(crowd) => come(&world, crowd, &journal).await,
        None => clients_and_faults(&world, &journal).await,
    }
    let healed = now();
    quiet(&world).await;
    sleep(Duration::from_secs(1)).await;
    probes.abort();
    observer.stop();
    let slots = rows(&world, dir).await;
    weathered(&world.daemon, dir, &journal);
    let left = world.daemon.agents().await;
    let course = Course { began, healed, ended: now(), after: world.daemon.still(&before), before, slots, left };
    dir.save("course.json", &course);
}

/// Clients and faults, for as long as the plan says; then everything is healed.
async fn clients_and_faults(world: &Arc<World>, journal: &Journal) {
    let plan = &world.plan;
    let (stop, no_more) = (CancellationToken::new(), CancellationToken::new());
    let door = world.fleet.lock().await.door.clone();
    let load = Load::new(&door, world.daemon.image(), Arc::clone(&world.cluster), &world.dir, plan);
    let clients = tokio::spawn(Arc::clone(&load).run(plan.clone(), no_more.clone()));
    let lanes = plan.faults.iter().zip(1_000_000..).map(async |(faults, stream)| {
        let nemesis = Nemesis { world: Arc::clone(world), journal: journal.clone(), stop: stop.clone() };
        nemesis.run(plan.seed, stream, faults).await;
    });
    let clock = async {
        let end = Instant::now() + Duration::from_secs(plan.seconds);
        while Instant::now() < end {
            sleep(Duration::from_millis(200)).await;
            world.look_after().await;
        }
        stop.cancel();
    };
    tokio::join!(futures_util::future::join_all(lanes), clock);
    world.daemon.heal();
    // Clients still come for a while, and all that they began must end.
    sleep(Duration::from_secs(plan.calm)).await;
    no_more.cancel();
    clients.await.unwrap();
    assert!(load.accepted.load(Ordering::Relaxed) > 0, "nobody's agent was accepted");
}

/// A crowd: submitted, running, and then due within a second.
async fn come(world: &World, crowd: Crowd, journal: &Journal) {
    let client = world.cluster.ours().await;
    let count = i64::try_from(crowd.agents).unwrap();
    let submit =
        "select count(sundown.submit(image => $1, command => array['sh', '-c', 'echo begun; exec sleep 9999'], ttl => '1h', grace => '0s',
        memory => 33554432, labels => jsonb_build_object('kind', $2::text, 'key', n::text))) from generate_series(1, $3::bigint) n";
    client.query_one(submit, &[&world.daemon.image(), &name(Kind::Expires), &count]).await.unwrap();
    eventually("all of them run", Duration::from_secs(900), async || {
        let running = client.query_one("select count(*) from sundown.agent_live where state = 'running'", &[]).await.unwrap();
        (running.get::<_, i64>(0) == count).then_some(())
    })
    .await;
    // What it takes to move them all, and some more.
    let ahead = Duration::from_secs(5) + Duration::from_millis(crowd.agents as u64);
    let at = jiff::Timestamp::from_millisecond(now()).unwrap() + ahead;
    let due = "select count(sundown.extend(id, $1::text::timestamptz - clock_timestamp())) from sundown.agent_live";
    client.query_one(due, &[&at.to_string()]).await.unwrap();
    if crowd.nobody {
        let began = now();
        let mut fleet = world.fleet.lock().await;
        for n in 0..fleet.count() {
            fleet.end(n, Signal::SIGKILL).await;
        }
        let struck = Some(now());
        eventually("all their deadlines have passed", Duration::from_secs(60), async || {
            let query = "select count(*) from sundown.agent_live where expires_at > clock_timestamp()";
            (client.query_one(query, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
        })
        .await;
        for n in 0..fleet.count() {
            fleet.start(n);
        }
        let what = format!("{count} deadlines");
        journal.write(&Injected { fault: "all down".to_owned(), began, ended: now(), what, touched: Vec::new(), struck, fired: true });
    }
}

/// Waits until nobody is alive, in rows and in containers.
async fn quiet(world: &World) {
    let client = world.cluster.ours().await;
    let nobody = async {
        loop {
            let alive: i64 = client.query_one("select count(*) from sundown.agent_live", &[]).await.unwrap().get(0);
            // One of the containers that are not ours has such a name.
            if alive == 0 && world.daemon.agents().await <= 1 {
                return;
            }
            sleep(Duration::from_millis(500)).await;
            world.look_after().await;
        }
    };
    let _what_is_left_is_judged = timeout(Duration::from_secs(world.plan.quiet), nobody).await;
}

/// Writes down whom the weather met: it may hold up an end, and takes some containers away.
fn weathered(daemon: &Daemon, dir: &Dir, journal: &Journal) {
    let Daemon::Small(small) = daemon else { return };
    let ended = now();
    let write = |fault: &str, touched: Vec<Uuid>| {
        if !touched.is_empty() {
            let what = format!("{} agents", touched.len());
            journal.write(&Injected { fault: fault.to_owned(), began: ended, ended, what, fired: true, touched, struck: None });
        }
    };
    let vanished = small.fake.lives().into_iter().filter(|life| matches!(life.ended, Some((_, End::Vanished))));
    write("vanished", vanished.filter_map(|life| life.agent?.parse().ok()).collect());
    // The weather knows agents by their keys.
    let keys: HashMap<String, Uuid> = dir.read::<Row>("rows.jsonl").into_iter().filter_map(|row| Some((row.key?, row.id))).collect();
    // What is merely slow is no excuse.
    let slow = |fault: &Fault| matches!(fault, Fault::Slow(delay) | Fault::Late(delay) if *delay <= Duration::from_millis(400));
    let struck = small.fake.struck().into_iter().filter(|struck| !slow(&struck.fault));
    let met: BTreeSet<Uuid> = struck.filter_map(|struck| keys.get(&struck.whom).copied()).collect();
    write("weather", met.into_iter().collect());
}

/// Writes down what the database has, and answers how many slots are used.
async fn rows(world: &World, dir: &Dir) -> i64 {
    let client = world.cluster.ours().await;
    let journal = dir.journal("events.jsonl");
    let millis = |column: &str| format!("(extract(epoch from {column}) * 1000)::bigint");
    let query = format!(
        "select {}, id, kind, was, state, reason, epoch, container_id, {} from sundown.event order by seq",
        millis("at"),
        millis("expires_at")
    );
    for row in client.query(&query, &[]).await.unwrap() {
        journal.write(&Event {
            at: row.get(0),
            id: row.get(1),
            kind: row.get(2),
            was: row.get(3),
            state: row.get(4),
            reason: row.get(5),
            epoch: row.get(6),
            container: row.get(7),
            expires_at: row.get(8),
        });
    }
    let journal = dir.journal("rows.jsonl");
    let query = format!(
        "select a.id, a.labels ->> 'kind', coalesce(l.state, o.state, 'lost'), coalesce(l.reason, o.reason), o.exit_code, o.container_id,
                {}, {}, {}, extract(epoch from a.grace)::float8,
                (select cardinality(regexp_split_to_array(convert_from(replace(encode(tail, 'escape'), '\\000', '')::bytea, 'UTF8'), 'begun')) - 1
                   from sundown.agent_log g where g.id = a.id)::bigint, a.labels ->> 'key'
           from sundown.agent a left join sundown.agent_live l using (id) left join sundown.agent_outcome o using (id)",
        millis("coalesce(l.expires_at, o.expires_at)"),
        millis("coalesce(l.decided_at, o.decided_at)"),
        millis("o.finished_at")
    );
    for row in client.query(&query, &[]).await.unwrap() {
        let Some(kind) = row.get::<_, Option<String>>(1) else { continue };
        journal.write(&Row {
            id: row.get(0),
            kind: serde_json::from_str(&kind).unwrap(),
            state: row.get(2),
            reason: row.get(3),
            exit_code: row.get(4),
            container: row.get(5),
            expires_at: row.get(6),
            decided_at: row.get(7),
            finished_at: row.get(8),
            grace: row.get(9),
            begun: row.get(10),
            key: row.get(11),
        });
    }
    client.query_one("select coalesce(sum(used), 0)::bigint from sundown.host_slot", &[]).await.unwrap().get(0)
}

/// Prints what a run showed, and keeps it with the run.
pub fn tell(dir: &Dir, report: &Report) {
    dir.save("report.json", report);
    let (given, fired) = report.faults.values().fold((0, 0), |(given, fired), (g, f)| (given + g, fired + f));
    println!(
        "seed {}: {:.0} s, {:.0} % of it healthy; {} agents, {} containers, {given} faults ({fired} reached their moment)",
        report.seed,
        report.seconds,
        report.healthy * 100.0,
        report.agents,
        report.containers
    );
    println!("  ends: {:?}", report.ends);
    println!("  late, ms p50/p99/worst: {:?}; in healthy time: {:?}", report.lateness, report.healthy_lateness);
    println!(
        "  take-over of a start, ms: {:?}; longest orphan: {} ms; slowest answer: {} ms",
        report.take_over, report.orphan, report.slowest_answer
    );
    println!(
        "  start, ms p50/p99/worst in healthy time: {:?}; record of an end: {:?}; most at one time: {}",
        report.start, report.recorded, report.most_alive
    );
    println!("  held against their deadlines: {} of {} that were ended", report.judged.0, report.judged.1);
    println!("  worst in healthy time by fault, ms: {:?}", report.worst);
    for violation in &report.violations {
        println!("  BROKEN {} {}: {}", violation.promise, violation.agent.map(|id| id.to_string()).unwrap_or_default(), violation.detail);
    }
    println!("  {} promises broken", report.violations.len());
}

/// Prints what several runs showed together, as it stands in the documentation.
pub fn tell_all(reports: &[Report]) {
    let sum = |count: fn(&Report) -> usize| reports.iter().map(count).sum::<usize>();
    let worst = |time: fn(&Report) -> i64| reports.iter().map(time).max().unwrap_or_default();
    let healthy = reports.iter().map(|report| report.seconds * report.healthy).sum::<f64>();
    let mut faults: BTreeMap<&str, (usize, usize, Option<i64>)> = BTreeMap::new();
    for report in reports {
        for (name, (_, fired)) in &report.faults {
            let fault = faults.entry(name).or_default();
            *fault = (fault.0 + 1, fault.1 + fired, fault.2.max(report.worst.get(name).copied()));
        }
    }
    println!(
        "in all: {} worlds, {:.0} s, {healthy:.0} of them healthy; {} agents, {} containers, {} faults",
        reports.len(),
        reports.iter().map(|report| report.seconds).sum::<f64>(),
        sum(|report| report.agents),
        sum(|report| report.containers),
        faults.values().map(|(_, fired, _)| fired).sum::<usize>(),
    );
    println!(
        "  in healthy time, ms: worst death after its deadline {}, worst take-over {}, longest orphan {}; worst start {}, worst record of an end {}",
        worst(|report| report.healthy_lateness.2),
        worst(|report| report.take_over.2),
        worst(|report| report.orphan),
        worst(|report| report.start.2),
        worst(|report| report.recorded.2),
    );
    println!("| Fault | Worlds | Times | Worst death after its deadline, ms of healthy time |\n|---|---|---|---|");
    for (name, (worlds, fired, worst)) in faults {
        println!("| {name} | {worlds} | {fired} | {} |", worst.map_or_else(|| "-".to_owned(), |worst| worst.to_string()));
    }
    println!("{} promises broken", sum(|report| report.violations.len()));
}

/// A run in which too little happened says nothing.
pub fn counts(report: &Report) {
    let fired: usize = report.faults.values().map(|(_, fired)| fired).sum();
    assert!(report.agents >= 30 && report.containers >= 30, "only {} agents, {} containers", report.agents, report.containers);
    assert!(fired >= 5, "only {fired} faults");
    assert!(report.healthy >= 0.2, "only {:.0} % of the time was healthy", report.healthy * 100.0);
    assert!(
        report.judged.0 * 3 >= report.judged.1,
        "only {} of {} ends were held against their deadlines",
        report.judged.0,
        report.judged.1
    );
}

/// A run without a violation need not be kept, unless its directory was asked for.
pub fn forget(dir: &Dir) {
    if std::env::var_os("SUNDOWN_CHAOS_DIR").is_none() {
        let _gone = fs::remove_dir_all(dir.path());
    }
}
