//! The faults. Each waits for the moment that it is meant for (a named failpoint, or the state of a row), does its harm, and heals it.
//! Two lanes run side by side, one for replicas and one for everything below them, so that faults of both kinds meet.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard::query_parameters::RemoveContainerOptionsBuilder;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::process::Command;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::daemon::Daemon;
use super::fleet::Way;
use super::record::{Injected, Journal, Millis, TakenOver, now};
use super::world::World;

/// Points of a life at which a replica may be killed, or stopped until its lease is over.
pub const POINTS: [&str; 16] = [
    "launch.before_create",
    "launch.created",
    "launch.recorded",
    "launch.before_start",
    "launch.started",
    "launch.running",
    "sweep.claimed",
    "stop.looked",
    "stop.signalling",
    "stop.signalled",
    "stop.before_kill",
    "stop.killed",
    "finish.before_observe",
    "finish.observed",
    "finish.removed",
    "finish.recorded",
];

/// What happens to replicas.
pub const REPLICAS: [&str; 10] =
    ["kill at", "kill at", "stop at", "stop at", "kill", "drain", "all down", "clock ahead", "clock behind", "few files"];

/// What happens to everything else.
pub const GROUND: [&str; 29] = [
    "backend killed",
    "every backend killed",
    "postgres restart fast",
    "postgres restart immediate",
    "postgres crash",
    "postmaster killed",
    "postgres stopped",
    "postgres silent",
    "postgres read-only",
    "connections exhausted",
    "statement timeouts",
    "serializable",
    "held snapshot",
    "blocked rows",
    "table locked",
    "listener killed",
    "listener deaf",
    "dockerd killed",
    "dockerd restart",
    "dockerd silent",
    "containerd silent",
    "shim killed",
    "removed by hand",
    "killed by hand",
    "paused by hand",
    "started by hand",
    "frozen",
    "cut from postgres",
    "cut from docker",
];

/// Of these, what needs a real daemon: its processes, its control groups, packets to it.
pub const REAL: [&str; 5] = ["containerd silent", "dockerd restart", "shim killed", "frozen", "cut from docker"];

/// A moment that does not come is not waited for any longer.
const MOMENT: Duration = Duration::from_secs(12);

/// What a fault did, while it is being written down.
#[derive(Default)]
struct Deed {
    what: String,
    touched: Vec<Uuid>,
    struck: Option<Millis>,
    fired: bool,
}

pub struct Nemesis {
    pub world: Arc<World>,
    pub journal: Journal,
    pub stop: CancellationToken,
}

impl Nemesis {
    /// Does one fault after the other, of those that are named, until told to stop.
    pub async fn run(&self, seed: u64, stream: u64, faults: &[String]) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        while !self.stop.is_cancelled() {
            let Some(fault) = faults.choose(&mut rng).cloned() else { return };
            let pause = Duration::from_millis(rng.random_range(300..2500));
            let point = self.world.plan.points.choose(&mut rng).cloned().unwrap_or_default();
            let began = now();
            let mut deed = Deed::default();
            self.inflict(&fault, &point, &mut rng, &mut deed).await;
            let fault = if fault.ends_with(" at") { format!("{fault} {point}") } else { fault };
            let Deed { what, touched, struck, fired } = deed;
            self.journal.write(&Injected { fault, began, ended: now(), what, touched, struck, fired });
            tokio::select! { () = sleep(pause) => {}, () = self.stop.cancelled() => {} }
        }
    }

    async fn inflict(&self, fault: &str, point: &str, rng: &mut ChaCha8Rng, deed: &mut Deed) {
        let replica = rng.random_range(0..self.world.fleet.lock().await.count());
        let long = Duration::from_millis(rng.random_range(3000..8000));
        match fault {
            "kill at" => self.at(point, "kill", replica, deed).await,
            "stop at" => self.at(point, "stop", replica, deed).await,
            "kill" => self.kill(replica, deed).await,
            "drain" => self.drain(replica, rng.random_bool(0.3), deed).await,
            "all down" => self.all_down(deed).await,
            "clock ahead" => self.clock(replica, "+3600", long, deed).await,
            "clock behind" => self.clock(replica, "-3600", long, deed).await,
            "few files" => self.few_files(replica, long, deed).await,
            "cut from postgres" | "cut from docker" => {
                let way = *[Way::Out, Way::In, Way::Both].choose(rng).unwrap();
                let port = if fault.ends_with("docker") { 2375 } else { self.world.database_port };
                deed.what = format!("replica {replica}, {way:?}, {long:?}");
                self.world.fleet.lock().await.cut(replica, Some(port), None, way);
                sleep(long).await;
                self.world.fleet.lock().await.mend(replica);
                deed.fired = true;
            }
            _ if fault.starts_with("dockerd") || fault.starts_with("containerd") => self.daemon(fault, long, deed).await,
            "shim killed" | "removed by hand" | "killed by hand" | "paused by hand" | "started by hand" | "frozen" => {
                self.container(fault, long, deed).await;
            }
            _ => self.postgres(fault, long, deed).await,
        }
    }

    // Replicas.

    /// Restarts a replica so that it ends, or stands still, at a point of its work.
    async fn at(&self, point: &str, act: &str, n: usize, deed: &mut Deed) {
        let world = &self.world;
        {
            let mut fleet = world.fleet.lock().await;
            fleet.end(n, Signal::SIGTERM).await;
            fleet.start_once(n, &[("FAILPOINTS", &format!("{point}=1*return({act})"))]);
        }
        let reached = self
            .moment(async || {
                let mut fleet = world.fleet.lock().await;
                (if act == "kill" { fleet.ended(n).is_some() } else { fleet.stands_still(n) }).then_some(())
            })
            .await;
        deed.fired = reached.is_some();
        deed.struck = reached.map(|()| now());
        deed.what = format!("replica {n}");
        if !deed.fired {
            // It must not happen later, unwatched.
            deed.struck = Some(now());
            world.fleet.lock().await.end(n, Signal::SIGKILL).await;
        } else {
            self.held(n, now()).await;
            if act == "stop" {
                sleep(Duration::from_millis(self.world.plan.still.unsigned_abs())).await;
                world.fleet.lock().await.signal(n, Signal::SIGCONT);
                sleep(Duration::from_millis(500)).await;
            }
        }
        let mut fleet = world.fleet.lock().await;
        // One that stood still goes on as it is: a failpoint that was reached once is done.
        if fleet.runs(n) {
            fleet.keep(n);
        } else {
            fleet.start(n);
        }
    }

    /// Follows the starts that a replica held, by its number in its log, until others have them.
    async fn held(&self, n: usize, struck: Millis) {
        let log = fs::read_to_string(self.world.dir.path().join(format!("replica-{n}.log"))).unwrap_or_default();
        let serving = log.lines().rev().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let Some(number) = serving.filter(|line| line["message"] == "serving").find_map(|line| line["replica"].as_i64()) else { return };
        let number = i32::try_from(number).unwrap();
        let query = "select id, epoch from sundown.agent_live where leased_by = $1 and state = 'pending' and due_at > clock_timestamp()";
        let Some(client) = self.world.cluster.try_client("sundown").await else { return };
        let Ok(Ok(rows)) = timeout(Duration::from_secs(1), client.query(query, &[&number])).await else { return };
        let mut held: Vec<(Uuid, i32)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let (cluster, journal) = (Arc::clone(&self.world.cluster), self.world.dir.journal("taken.jsonl"));
        let patience = 30_000.min(i64::try_from(self.world.plan.quiet).unwrap() * 1000);
        tokio::spawn(async move {
            let mut client = Some(client);
            let end = struck + patience;
            while !held.is_empty() && now() < end {
                sleep(Duration::from_millis(50)).await;
                if client.is_none() {
                    client = cluster.try_client("sundown").await;
                }
                let Some(there) = &client else { continue };
                let ids: Vec<Uuid> = held.iter().map(|(id, _)| *id).collect();
                let query = "select id, epoch from sundown.agent_live where id = any ($1)";
                let Ok(Ok(rows)) = timeout(Duration::from_secs(1), there.query(query, &[&ids])).await else {
                    client = None;
                    continue;
                };
                let rows: Vec<(Uuid, i32)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
                held.retain(|one| {
                    let taken = !rows.contains(one);
                    if taken {
                        journal.write(&TakenOver { agent: one.0, struck, until: now(), taken: true });
                    }
                    !taken
                });
            }
            for (agent, _) in held {
                journal.write(&TakenOver { agent, struck, until: now(), taken: false });
            }
        });
    }

    /// kill -9 while it is at work on somebody's end.
    async fn kill(&self, n: usize, deed: &mut Deed) {
        let busy = self.row("select id from sundown.agent_live where state = 'terminating' limit 1").await;
        deed.fired = busy.is_some();
        deed.what = format!("replica {n}");
        let struck = now();
        deed.struck = Some(struck);
        self.world.fleet.lock().await.end(n, Signal::SIGKILL).await;
        self.held(n, struck).await;
        sleep(Duration::from_millis(500)).await;
        self.world.fleet.lock().await.start(n);
    }

    async fn drain(&self, n: usize, impatient: bool, deed: &mut Deed) {
        deed.fired = self.row("select id from sundown.agent_live where leased_by is not null limit 1").await.is_some();
        deed.what = format!("replica {n}, {}", if impatient { "SIGTERM, SIGKILL a second later" } else { "SIGTERM twice" });
        self.world.fleet.lock().await.signal(n, Signal::SIGTERM);
        sleep(Duration::from_secs(1)).await;
        let last = if impatient { Signal::SIGKILL } else { Signal::SIGTERM };
        deed.struck = Some(now());
        let mut fleet = self.world.fleet.lock().await;
        fleet.end(n, last).await;
        fleet.start(n);
    }

    /// Nobody is there when deadlines pass.
    async fn all_down(&self, deed: &mut Deed) {
        let running =
            "select id from sundown.agent_live where state = 'running' and expires_at < clock_timestamp() + interval '4 s' limit 1";
        deed.fired = self.row(running).await.is_some();
        {
            let mut fleet = self.world.fleet.lock().await;
            for n in 0..fleet.count() {
                fleet.end(n, Signal::SIGKILL).await;
            }
        }
        deed.struck = Some(now());
        sleep(Duration::from_secs(5)).await;
        let mut fleet = self.world.fleet.lock().await;
        for n in 0..fleet.count() {
            fleet.start(n);
        }
    }

    /// A replica whose clock is wrong by an hour.
    async fn clock(&self, n: usize, offset: &str, long: Duration, deed: &mut Deed) {
        let library = fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path().join("faketime/libfaketime.so.1"));
        let library = library.filter(|path| path.exists()).map(|path| path.display().to_string()).next();
        let library = library.expect("faketime is installed: run scripts/test");
        deed.fired = true;
        deed.what = format!("replica {n}, {offset} s");
        {
            let mut fleet = self.world.fleet.lock().await;
            fleet.end(n, Signal::SIGTERM).await;
            fleet.start_once(
                n,
                &[("LD_PRELOAD", library.as_str()), ("FAKETIME", offset), ("DONT_FAKE_MONOTONIC", "1"), ("FAKETIME_DONT_RESET", "1")],
            );
        }
        sleep(long + Duration::from_secs(4)).await;
        let mut fleet = self.world.fleet.lock().await;
        fleet.end(n, Signal::SIGTERM).await;
        fleet.start(n);
    }

    /// A replica that may open hardly anything.
    async fn few_files(&self, n: usize, long: Duration, deed: &mut Deed) {
        let Some(pid) = self.world.fleet.lock().await.pid(n) else { return };
        // The soft limit only: what it may have is given back.
        let limit = async |limit: &str| {
            let set = Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--nofile={limit}:")]).status().await;
            set.is_ok_and(|status| status.success())
        };
        deed.fired = limit("24").await;
        deed.struck = Some(now());
        sleep(long).await;
        // Unless it has ended meanwhile, and its number may be another's.
        if self.world.fleet.lock().await.pid(n) == Some(pid) {
            limit("1024").await;
        }
        deed.what = format!("replica {n}, 24 files");
    }

    // Postgres.

    async fn postgres(&self, fault: &str, long: Duration, deed: &mut Deed) {
        let cluster = Arc::clone(&self.world.cluster);
        deed.fired = true;
        deed.what = format!("{long:?}");
        match fault {
            "backend killed" => {
                deed.fired = false;
                for _ in 0..3 {
                    deed.fired |= self.terminate("true order by random() limit 1").await > 0;
                    sleep(Duration::from_millis(700)).await;
                }
            }
            "every backend killed" => deed.fired = self.terminate("true").await > 0,
            "listener killed" => {
                deed.fired = false;
                for _ in 0..3 {
                    deed.fired |= self.terminate("query ilike 'listen%'").await > 0;
                    sleep(Duration::from_millis(700)).await;
                }
            }
            "postgres restart fast" | "postgres restart immediate" => {
                cluster.down(fault.rsplit_once(' ').unwrap().1).await;
                cluster.up().await;
            }
            "postgres crash" => {
                // One backend dies; the server ends all others and recovers.
                let client = cluster.client().await;
                let query = "select pid from pg_stat_activity where datname = 'sundown' and backend_type = 'client backend' limit 1";
                if let Ok(Some(row)) = client.query_opt(query, &[]).await {
                    let _gone = kill(Pid::from_raw(row.get(0)), Signal::SIGKILL);
                }
            }
            "postmaster killed" => {
                cluster.kill().await;
                cluster.up().await;
            }
            "postgres stopped" => {
                cluster.down("fast").await;
                sleep(long * 4).await;
                cluster.up().await;
            }
            "postgres silent" => {
                cluster.signal_all(Signal::SIGSTOP);
                sleep(long).await;
                cluster.signal_all(Signal::SIGCONT);
            }
            "postgres read-only" => self.setting("default_transaction_read_only", "on", long).await,
            "serializable" => self.setting("default_transaction_isolation", "serializable", long).await,
            "statement timeouts" => self.setting("statement_timeout", "20ms", long).await,
            "connections exhausted" => {
                let mut crowd = Vec::new();
                while let Some(client) = cluster.try_client("postgres").await {
                    crowd.push(client);
                }
                deed.fired = crowd.len() > 10;
                deed.what = format!("{} connections, {long:?}", crowd.len());
                sleep(long).await;
            }
            "held snapshot" => {
                let client = cluster.ours().await;
                let _held = client.batch_execute("begin isolation level repeatable read; select count(*) from sundown.agent_live").await;
                sleep(long * 2).await;
            }
            "blocked rows" | "table locked" => {
                let mut client = cluster.ours().await;
                let Ok(transaction) = client.transaction().await else { return };
                let statement = if fault == "blocked rows" {
                    "select id from sundown.agent_live where host > 0 order by id limit 50 for update skip locked"
                } else {
                    "lock table sundown.agent_live in access exclusive mode"
                };
                let rows = match timeout(Duration::from_secs(5), transaction.query(statement, &[])).await {
                    Ok(Ok(rows)) => rows,
                    _ => return,
                };
                deed.touched = rows.iter().map(|row| row.get(0)).collect();
                sleep(long.min(Duration::from_secs(5))).await;
            }
            "listener deaf" => self.deaf(deed).await,
            other => panic!("there is no fault {other:?}"),
        }
    }

    /// Answers how many there were.
    async fn terminate(&self, which: &str) -> i64 {
        let client = self.world.cluster.client().await;
        let query = format!(
            "select count(pg_terminate_backend(pid)) from (select pid from pg_stat_activity
              where datname = 'sundown' and backend_type = 'client backend' and {which}) p"
        );
        client.query_one(&query, &[]).await.map_or(0, |row| row.get(0))
    }

    /// Changes a setting of the server, which sessions take over, and takes it back.
    async fn setting(&self, name: &str, value: &str, long: Duration) {
        let set = async |statement: String| {
            let client = self.world.cluster.client().await;
            // Whatever the setting: it must not keep us from taking it back.
            let _ours = client.batch_execute("set statement_timeout = 0; set default_transaction_read_only = off").await;
            let done = client.batch_execute(&statement).await;
            let reloaded = client.batch_execute("select pg_reload_conf()").await;
            done.is_ok() && reloaded.is_ok()
        };
        if set(format!("alter system set {name} = '{value}'")).await {
            sleep(long).await;
        }
        crate::harness::eventually("the setting is taken back", Duration::from_secs(60), async || {
            set(format!("alter system reset {name}")).await.then_some(())
        })
        .await;
    }

    /// A listener whose connection stands, and brings nothing.
    async fn deaf(&self, deed: &mut Deed) {
        let client = self.world.cluster.client().await;
        let query = "select host(client_addr), client_port from pg_stat_activity
                      where query ilike 'listen%' and datname = 'sundown' and client_addr is not null limit 1";
        let Ok(Some(row)) = client.query_opt(query, &[]).await else {
            deed.fired = false;
            return;
        };
        let (address, port): (String, i32) = (row.get(0), row.get(1));
        let fleet = &self.world.fleet;
        let found = {
            let fleet = fleet.lock().await;
            (0..fleet.count()).find(|n| fleet.address(*n).starts_with(&format!("{address}:")))
        };
        let Some(n) = found else {
            deed.fired = false;
            return;
        };
        fleet.lock().await.cut(n, None, u16::try_from(port).ok(), Way::Both);
        sleep(Duration::from_secs(14)).await;
        fleet.lock().await.mend(n);
        deed.what = format!("replica {n}");
    }

    // The daemon and its containers.

    async fn daemon(&self, fault: &str, long: Duration, deed: &mut Deed) {
        deed.fired = true;
        deed.what = format!("{long:?}");
        let mut dockerd = match &*self.world.daemon {
            Daemon::Real(dockerd) => dockerd.lock().await,
            Daemon::Small(small) => {
                match fault {
                    "dockerd killed" => small.fake.down(),
                    _ => small.fall_silent(),
                }
                sleep(long).await;
                match fault {
                    "dockerd killed" => small.fake.up(),
                    _ => small.go_on(),
                }
                return;
            }
        };
        match fault {
            "dockerd killed" | "dockerd restart" => {
                dockerd.down(if fault == "dockerd killed" { Signal::SIGKILL } else { Signal::SIGTERM }).await;
                sleep(long).await;
                dockerd.up().await;
            }
            "dockerd silent" => {
                let pid = dockerd.pid();
                let _there = kill(pid, Signal::SIGSTOP);
                sleep(long).await;
                let _there = kill(pid, Signal::SIGCONT);
            }
            _ => {
                let file = dockerd.dir().join("run/containerd/containerd.pid");
                let Some(pid) = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).map(Pid::from_raw) else {
                    deed.fired = false;
                    return;
                };
                let _there = kill(pid, Signal::SIGSTOP);
                sleep(long).await;
                let _there = kill(pid, Signal::SIGCONT);
            }
        }
    }

    /// Lays hands on the container of one agent that runs.
    async fn container(&self, fault: &str, long: Duration, deed: &mut Deed) {
        let endless = "labels ->> 'kind' not in ('\"oom\"') and labels ->> 'kind' not like '{\"exits%'";
        let query = format!(
            "select l.id, l.container_id from sundown.agent_live l join sundown.agent a using (id)
              where l.state = 'running' and {endless} and l.expires_at > clock_timestamp() + interval '1 s' limit 1"
        );
        let world = &self.world;
        let found = self
            .moment(async || {
                let client = world.cluster.try_client("sundown").await?;
                let row = timeout(Duration::from_secs(1), client.query_opt(&query, &[])).await.ok()?.ok()??;
                Some((row.get::<_, Uuid>(0), row.get::<_, String>(1)))
            })
            .await;
        let Some((agent, container)) = found else { return };
        deed.touched.push(agent);
        deed.what = format!("agent {agent}");
        let docker = &world.docker;
        let kill_it = async || done(docker.kill_container(&container, None)).await;
        deed.fired = match fault {
            "removed by hand" => {
                let force = RemoveContainerOptionsBuilder::new().force(true).build();
                done(docker.remove_container(&container, Some(force))).await
            }
            "killed by hand" => kill_it().await,
            // The deadline passes meanwhile, or the agent is let go on.
            "paused by hand" => {
                let paused = done(docker.pause_container(&container)).await;
                sleep(long).await;
                let _ended_meanwhile = done(docker.unpause_container(&container)).await;
                paused
            }
            "started by hand" => kill_it().await && done(docker.start_container(&container, None)).await,
            "shim killed" => {
                let shims = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
                let ours = shims.filter(|pid| {
                    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    let line = String::from_utf8_lossy(&line);
                    line.contains("containerd-shim") && line.contains(&container)
                });
                ours.filter(|pid| kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok()).count() > 0
            }
            _ => {
                let file = freezer(&container);
                let frozen = fs::write(&file.0, file.1).is_ok();
                self.moment(async || {
                    let query = "select id from sundown.agent_live where id = $1 and killed_at is not null";
                    let client = world.cluster.try_client("sundown").await?;
                    timeout(Duration::from_secs(1), client.query_opt(query, &[&agent])).await.ok()?.ok()?
                })
                .await;
                sleep(Duration::from_secs(2)).await;
                let _thawed = fs::write(&file.0, file.2);
                frozen
            }
        };
    }

    /// Waits for a moment, not for ever, and not when the run is over.
    async fn moment<T>(&self, mut look: impl AsyncFnMut() -> Option<T>) -> Option<T> {
        let wait = async {
            loop {
                if let Some(found) = look().await {
                    return found;
                }
                sleep(Duration::from_millis(15)).await;
            }
        };
        tokio::select! { found = timeout(MOMENT, wait) => found.ok(), () = self.stop.cancelled() => None }
    }

    /// Waits until there is such a row.
    async fn row(&self, query: &str) -> Option<Uuid> {
        let mut client: Option<Client> = None;
        self.moment(async || {
            if client.is_none() {
                client = self.world.cluster.try_client("sundown").await;
            }
            match timeout(Duration::from_secs(1), client.as_ref()?.query_opt(query, &[])).await {
                Ok(Ok(row)) => row.map(|row| row.get(0)),
                _ => {
                    client = None;
                    None
                }
            }
        })
        .await
    }
}

/// Whether a call to the daemon was answered well, in time.
async fn done<T>(call: impl Future<Output = Result<T, bollard::errors::Error>>) -> bool {
    timeout(Duration::from_secs(20), call).await.is_ok_and(|answer| answer.is_ok())
}

/// Where a container is frozen, and the words that freeze and thaw it.
fn freezer(container: &str) -> (PathBuf, &'static str, &'static str) {
    let old = PathBuf::from(format!("/sys/fs/cgroup/freezer/docker/{container}/freezer.state"));
    if old.exists() {
        (old, "FROZEN", "THAWED")
    } else {
        (PathBuf::from(format!("/sys/fs/cgroup/docker/{container}/cgroup.freeze")), "1", "0")
    }
}
