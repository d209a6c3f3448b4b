//! What others do on the same server: job queues on Postgres, each in a process of its own that its script in `benches/peers` runs.
//!
//! A job there is one update and one delete. An agent is more, so their drain is shown and nothing is wanted of it; how soon something
//! that was submitted is begun compares.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use crate::Scale;
use crate::deadlines::Pickup;
use crate::harness::Db;
use crate::row::{Figure, Goal, Row};
use crate::world::World;

/// How long one may take for all that it is asked.
const PATIENCE: Duration = Duration::from_secs(300);

struct Peer {
    name: &'static str,
    /// The names of its rows.
    picked_up: &'static str,
    drain: &'static str,
    /// How its script is run, all of it within the directory that scripts/bench has installed it into.
    program: &'static str,
    script: &'static str,
    /// Is there when it could be installed.
    needs: &'static str,
    settings: &'static str,
    /// Jobs to drain: some seconds' worth.
    crowd: usize,
}

const PEERS: [Peer; 3] = [
    Peer {
        name: "graphile-worker",
        picked_up: "picked up on an idle system, beside graphile-worker: p50",
        drain: "drain of no-op work by 1 process, beside graphile-worker",
        program: "node",
        script: "graphile-worker.mjs",
        needs: "node_modules/graphile-worker",
        settings: "24 jobs at once, local queue of 500, batched completion, as in its own benchmark",
        crowd: 40_000,
    },
    Peer {
        name: "pg-boss",
        picked_up: "picked up on an idle system, beside pg-boss: p50",
        drain: "drain of no-op work by 1 process, beside pg-boss",
        program: "node",
        script: "pg-boss.mjs",
        needs: "node_modules/pg-boss",
        settings: "one at a time by notifyWorker; many by fetch and complete, 1,000 each, 4 at once",
        crowd: 40_000,
    },
    Peer {
        name: "procrastinate",
        picked_up: "picked up on an idle system, beside procrastinate: p50",
        drain: "drain of no-op work by 1 process, beside procrastinate",
        program: "venv/bin/python",
        script: "procrastinate_peer.py",
        needs: "venv/lib",
        settings: "16 jobs at once",
        crowd: 2000,
    },
];

/// Where scripts/bench has installed what could be.
fn place() -> Option<PathBuf> {
    std::env::var_os("SUNDOWN_BENCH_PEERS").map(PathBuf::from)
}

fn installed() -> Vec<&'static Peer> {
    let Some(place) = place() else { return Vec::new() };
    PEERS.iter().filter(|peer| place.join(peer.needs).exists()).collect()
}

/// Whether there is one to measure.
pub fn any() -> bool {
    !installed().is_empty()
}

/// What a script says.
#[derive(Deserialize)]
struct Said {
    version: String,
    /// Milliseconds from the insert to the start of the job, one at a time.
    latencies: Vec<f64>,
    /// Jobs per second.
    drain: f64,
}

impl Peer {
    /// In a database of its own. An error says why it could not be measured: that is no failure of ours.
    async fn measure(&self, singles: usize, crowd: usize) -> Result<Said, String> {
        let (place, db) = (place().unwrap(), Db::empty().await);
        let program = if self.program.contains('/') { place.join(self.program) } else { self.program.into() };
        let mut command = Command::new(program);
        command.arg(place.join(self.script)).arg(db.url()).args([singles.to_string(), crowd.to_string()]).current_dir(&place);
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(PATIENCE, output).await.map_err(|_| "it does not end".to_owned())?;
        let output = output.map_err(|error| error.to_string())?;
        let (said, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            return Err(format!("{}\n{said}{complaint}", output.status));
        }
        serde_json::from_str(said.lines().last().unwrap_or_default()).map_err(|error| format!("{error}: {said}"))
    }
}

/// Ours and theirs in turn.
pub async fn rows(scale: Scale) -> Vec<Row> {
    let mut peers: Vec<(&Peer, Vec<Said>)> = installed().into_iter().map(|peer| (peer, Vec::new())).collect();
    for peer in PEERS.iter().filter(|peer| !peers.iter().any(|(installed, _)| installed.name == peer.name)) {
        println!("skipped: {}, for it is not installed", peer.name);
    }
    if peers.is_empty() {
        return Vec::new();
    }
    let (rounds, singles) = (scale.pick(1, 2, 3), scale.pick(5, 40, 100));
    let mut pickup = Pickup::new().await;
    let (mut ours, mut notified, mut drains) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (placed, heard) = pickup.round(singles).await;
        ours.push(placed);
        notified.push(heard);
        drains.push(drained(scale).await);
        let mut measured = Vec::new();
        for (peer, mut all) in peers {
            match peer.measure(singles, scale.pick(500, peer.crowd / 4, peer.crowd)).await {
                Ok(said) => {
                    all.push(said);
                    measured.push((peer, all));
                }
                Err(why) => println!("skipped: {}, for it failed: {why}", peer.name),
            }
        }
        peers = measured;
    }
    let best = |share| {
        let each = peers.iter().map(|(peer, said)| (*peer, &said[0].version, picked(said, share)));
        each.min_by(|(_, _, one), (_, _, other)| one.value.total_cmp(&other.value))
    };
    let mut rows = crate::deadlines::pickup_rows(&ours, &notified, |share| {
        let (peer, version, figure) = best(share)?;
        Some((figure, format!("{} {version}, the best peer of this run: from its insert to the start of the job", peer.name)))
    });
    for (peer, said) in &peers {
        let (version, late) = (&said[0].version, picked(said, 0.99).value);
        rows.push(Row {
            name: peer.picked_up,
            sundown: Figure::percentile(&ours, 0.5),
            yardstick: picked(said, 0.5),
            against: "from the insert of a job to its start",
            unit: "ms",
            goal: Goal::RatioAtMost(1.0),
            second: None,
            note: format!("{} {version}, p99 {late:.1} ms; {}", peer.name, peer.settings),
        });
        rows.push(Row {
            name: peer.drain,
            sundown: Figure::of(&drains),
            yardstick: Figure::of(&said.iter().map(|said| said.drain).collect::<Vec<_>>()),
            against: "as many jobs that do nothing, from the first start to the last end",
            unit: "per s",
            goal: Goal::Shown,
            second: None,
            note: format!("{} {version}; an agent is placed, started, observed and written down, on the small daemon", peer.name),
        });
    }
    rows
}

fn picked(said: &[Said], share: f64) -> Figure {
    Figure::percentile(&said.iter().map(|said| said.latencies.clone()).collect::<Vec<_>>(), share)
}

/// Agents that end at once by themselves, all submitted before the replica comes: from the first place to the last outcome, per second.
async fn drained(scale: Scale) -> f64 {
    let mut world = World::new(0, &[]).await;
    let count = scale.pick(50, 1000, 4000);
    let ids = world.submit(count, "true").await;
    let replica = world.replica(&[("SUNDOWN_CAPACITY", "100000"), ("SUNDOWN_STARTS", "16")]);
    replica.ready().await;
    world.replicas.push(replica);
    world.ended(&ids).await;
    let span = "select extract(epoch from max(finished_at) - min(placed_at))::float8 from sundown.agent_outcome where id = any ($1)";
    count as f64 / world.client.query_one(span, &[&ids]).await.unwrap().get::<_, f64>(0)
}
