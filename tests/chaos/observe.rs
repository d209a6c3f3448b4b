//! Watches what lives, from the kernel: control groups and `/proc`, never the daemon's own word for it; of the small daemon, from its own
//! record. And asks, a few times a second, whether the parts answer.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use uuid::Uuid;

use super::daemon::Daemon;
use super::fleet::Fleet;
use super::record::{Beat, Dir, Journal, Millis, Probe, Sign, now};
use crate::harness::cluster::Cluster;

/// Between two looks at the control groups.
const STEP: Duration = Duration::from_millis(50);
/// Between two probes.
const PROBE: Duration = Duration::from_millis(200);

/// Where a daemon keeps the control groups of its containers: a version 1 hierarchy, else the unified one.
fn groups() -> PathBuf {
    [Path::new("/sys/fs/cgroup/pids/docker"), Path::new("/sys/fs/cgroup/docker")]
        .into_iter()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("/sys/fs/cgroup/system.slice"))
        .to_owned()
}

/// Whoever watches.
pub enum Observer {
    /// The kernel: a thread, so that nothing that the run does holds it up.
    Kernel { stop: Arc<AtomicBool>, thread: std::thread::JoinHandle<()> },
    /// The small daemon's own record of every life, which no fault can falsify.
    Record { daemon: Arc<Daemon>, journal: Journal, task: tokio::task::JoinHandle<()> },
}

impl Observer {
    pub async fn start(daemon: &Arc<Daemon>, dir: &Dir) -> Self {
        match &**daemon {
            Daemon::Real(dockerd) => Self::of_the_kernel(dockerd.lock().await.dir().join("data"), dir),
            Daemon::Small(_) => {
                let journal = dir.journal("beats.jsonl");
                let task = tokio::spawn(follow(Arc::clone(daemon), journal.clone()));
                Self::Record { daemon: Arc::clone(daemon), journal, task }
            }
        }
    }

    /// Writes down what is left to say.
    pub fn stop(self) {
        match self {
            Self::Kernel { stop, thread } => {
                stop.store(true, Ordering::Relaxed);
                thread.join().unwrap();
            }
            Self::Record { daemon, journal, task } => {
                task.abort();
                recorded(&daemon, &journal);
            }
        }
    }

    /// Watches the containers of the daemon whose data are in `data`.
    fn of_the_kernel(data: PathBuf, dir: &Dir) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let journal = dir.journal("beats.jsonl");
        let told = Arc::clone(&stop);
        let groups = groups();
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        inotify.add_watch(&groups, AddWatchFlags::IN_CREATE).unwrap_or_else(|error| panic!("{}: {error}", groups.display()));
        let thread = std::thread::spawn(move || {
            let mut watch = Watch { data, groups, agents: HashMap::new(), living: HashMap::new(), kept: HashSet::new() };
            let mut beat = |sign: Sign, at: Millis, container: &str, agent: Uuid| {
                journal.write(&Beat { at, container: container.to_owned(), agent, what: sign });
            };
            while !told.load(Ordering::Relaxed) {
                for event in inotify.read_events().unwrap_or_default() {
                    if let Some(container) = event.name.and_then(|name| name.into_string().ok())
                        && let Some(agent) = watch.agent(&container)
                    {
                        beat(Sign::Born, now(), &container, agent);
                    }
                }
                watch.look(&mut beat);
                wait(STEP);
            }
            for (container, seen) in &watch.living {
                if let Some(agent) = watch.agents.get(container) {
                    beat(Sign::Alive, *seen, container, *agent);
                }
            }
        });
        Self::Kernel { stop, thread }
    }
}

/// Which containers the small daemon keeps, looked at again and again.
async fn follow(daemon: Arc<Daemon>, journal: Journal) {
    let Daemon::Small(small) = &*daemon else { return };
    let mut kept: HashMap<String, Uuid> = HashMap::new();
    let mut ticks = interval(STEP * 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let there: HashMap<String, Uuid> =
            small.fake.containers().into_iter().filter_map(|seen| Some((seen.id, of_agent(&seen.name)?))).collect();
        let beat = |what, container: &String, agent: &Uuid| {
            journal.write(&Beat { at: now(), container: container.clone(), agent: *agent, what });
        };
        for (container, agent) in there.iter().filter(|(container, _)| !kept.contains_key(*container)) {
            beat(Sign::Kept, container, agent);
        }
        for (container, agent) in kept.iter().filter(|(container, _)| !there.contains_key(*container)) {
            beat(Sign::Forgotten, container, agent);
        }
        kept = there;
    }
}

fn of_agent(name: &str) -> Option<Uuid> {
    name.strip_prefix("sundown-")?.parse().ok()
}

/// Every life that the small daemon has seen.
fn recorded(daemon: &Daemon, journal: &Journal) {
    let Daemon::Small(small) = daemon else { return };
    let (here, at) = (now(), Instant::now());
    let millis = |instant: Instant| here - i64::try_from(at.saturating_duration_since(instant).as_millis()).unwrap();
    for life in small.fake.lives() {
        let Some(agent) = of_agent(&life.container) else { continue };
        let beat = |at, what| journal.write(&Beat { at, container: life.id.clone(), agent, what });
        beat(millis(life.started), Sign::Born);
        match life.ended {
            Some((ended, _)) => {
                beat(millis(ended), Sign::Alive);
                beat(millis(ended), Sign::Dead);
            }
            None => beat(here, Sign::Alive),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a thread of its own, which samples")]
fn wait(step: Duration) {
    std::thread::sleep(step);
}

struct Watch {
    data: PathBuf,
    groups: PathBuf,
    /// By container.
    agents: HashMap<String, Uuid>,
    /// By container: when a process of it was last seen alive.
    living: HashMap<String, Millis>,
    kept: HashSet<String>,
}

impl Watch {
    /// Whose container it is, by the file that the daemon keeps of it: its name, which Docker never changes.
    fn agent(&mut self, container: &str) -> Option<Uuid> {
        if let Some(agent) = self.agents.get(container) {
            return Some(*agent);
        }
        let text = fs::read_to_string(self.data.join("containers").join(container).join("config.v2.json")).ok()?;
        let config: serde_json::Value = serde_json::from_str(&text).ok()?;
        let agent = config["Name"].as_str()?.strip_prefix("/sundown-")?.parse().ok()?;
        self.agents.insert(container.to_owned(), agent);
        Some(agent)
    }

    fn look(&mut self, beat: &mut impl FnMut(Sign, Millis, &str, Uuid)) {
        let mut alive = HashSet::new();
        let groups: Vec<String> = names(&self.groups).collect();
        for container in groups {
            let Some(agent) = self.agent(&container) else { continue };
            let looked = now();
            let procs = fs::read_to_string(self.groups.join(&container).join("cgroup.procs")).unwrap_or_default();
            if procs.lines().any(lives) {
                if !self.living.contains_key(&container) {
                    beat(Sign::Alive, looked, &container, agent);
                }
                self.living.insert(container.clone(), looked);
                alive.insert(container);
            }
        }
        let gone: Vec<String> = self.living.keys().filter(|container| !alive.contains(*container)).cloned().collect();
        for container in gone {
            let agent = self.agents[&container];
            beat(Sign::Alive, self.living.remove(&container).unwrap_or_default(), &container, agent);
            beat(Sign::Dead, now(), &container, agent);
        }
        // A daemon that is killed while it removes one may leave its directory behind. What lacks this file, or its writable layer, is no
        // container any more: no daemon loads it, lists it or could remove it.
        let (containers, images) = (self.data.join("containers"), self.data.join("image"));
        let drivers: Vec<PathBuf> = names(&images).map(|driver| images.join(driver).join("layerdb/mounts")).collect();
        let whole =
            |id: &String| containers.join(id).join("config.v2.json").exists() && drivers.iter().any(|layers| layers.join(id).exists());
        let kept: HashSet<String> = names(&containers).filter(whole).collect();
        for container in kept.difference(&self.kept.clone()) {
            if let Some(agent) = self.agent(container) {
                self.kept.insert(container.clone());
                beat(Sign::Kept, now(), container, agent);
            }
        }
        let forgotten: Vec<String> = self.kept.difference(&kept).cloned().collect();
        for container in forgotten {
            self.kept.remove(&container);
            beat(Sign::Forgotten, now(), &container, self.agents[&container]);
        }
    }
}

fn names(dir: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok())
}

/// A process that is neither a zombie nor gone.
fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// The process with number one inside of a container, and when it started, in ticks since boot.
pub fn first_process(container: &str) -> Option<(i32, u64)> {
    let procs = fs::read_to_string(groups().join(container).join("cgroup.procs")).ok()?;
    procs.lines().find_map(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?.to_owned();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let started = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
        (inner == "1").then(|| pid.parse().ok().map(|pid| (pid, started)))?
    })
}

/// Asks the parts whether they answer, until it is dropped.
pub async fn probe(cluster: Arc<Cluster>, docker: bollard::Docker, replicas: Vec<String>, dir: Dir) {
    let journal = dir.journal("probes.jsonl");
    let mut ticks = interval(PROBE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut client = None;
    loop {
        ticks.tick().await;
        let second = Duration::from_secs(1);
        let postgres = async {
            if client.is_none() {
                client = cluster.try_client("postgres").await;
                if let Some(new) = &client {
                    timeout(second, new.batch_execute("create table if not exists probe (at timestamptz)")).await.ok()?.ok()?;
                }
            }
            let write = client.as_ref()?.query_one(
                "with w as (insert into probe values (clock_timestamp()) returning at), d as (delete from probe)
                 select (extract(epoch from at) * 1000)::bigint from w",
                &[],
            );
            let before = now();
            let answer = timeout(second, write).await;
            let Ok(Ok(row)) = answer else {
                client = None;
                return None;
            };
            Some(row.get::<_, i64>(0) - (before + now()) / 2)
        };
        let list = timeout(second, docker.list_containers(None));
        let ready = futures_util::future::join_all(replicas.iter().map(|address| Fleet::ready(address)));
        let (offset, list, ready) = tokio::join!(postgres, list, ready);
        let ready = u8::try_from(ready.into_iter().filter(|ready| *ready).count()).unwrap();
        journal.write(&Probe { at: now(), postgres: offset.is_some(), docker: matches!(list, Ok(Ok(_))), ready, offset });
    }
}
