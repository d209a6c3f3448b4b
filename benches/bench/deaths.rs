//! How late processes die: by Sundown on the real daemon, by bare calls to that daemon, by bare signals, and by those who give a process
//! a time to live in another way. All as the kernel tells it.

use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::KillContainerOptionsBuilder;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use crate::Scale;
use crate::docker::{LABEL, clear, like, start_raw};
use crate::harness::docker::image;
use crate::process::{Mortals, Parent};
use crate::row::{Figure, Goal, Row, Second, percentile};
use crate::world::{Clock, World};

/// Between deadlines that are met one at a time.
const APART: f64 = 0.4;
/// What is wanted of the last death: a tenth of what it takes through Docker, and what bare signals take by so much.
const OF_DOCKER: f64 = 0.1;
const OF_SIGNALS: f64 = 1.3;

/// How many milliseconds after their deadlines they were dead, of each round.
#[derive(Default)]
pub struct Deaths {
    ours: Vec<Vec<f64>>,
    docker: Vec<Vec<f64>>,
    signals: Vec<Vec<f64>>,
    /// Until the first of a round might be killed: the wake-up, the claim, the intent.
    claims: Vec<f64>,
}

impl Deaths {
    /// Ends these, which run, then as many without Sundown, made like them, then as many bare processes; `step` seconds apart. Answers how
    /// long starting the containers without Sundown took.
    pub async fn round(&mut self, world: &World, docker: &Docker, ids: &[Uuid], step: f64) -> Duration {
        let body = like(docker, ids[0]).await;
        self.ours.push(by_sundown(world, docker, ids, step).await);
        world.ended(ids).await;
        let killed = world.outcomes(ids, "extract(epoch from o.killed_at - o.expires_at) * 1000").await;
        self.claims.push(percentile(&killed, 0.0));
        let began = Instant::now();
        let raw = start_raw(docker, &body, ids.len()).await;
        let took = began.elapsed();
        self.docker.push(by_docker(docker, &raw, step).await);
        clear(docker, LABEL).await;
        self.signals.push(by_signals(ids.len(), step).await);
        took
    }

    /// `share` of those of a round: all for the last of them.
    pub fn row(&self, name: &'static str, share: f64, note: &str) -> Row {
        let each = |rounds: &[Vec<f64>], share| Figure::of(&rounds.iter().map(|round| percentile(round, share)).collect::<Vec<_>>());
        let claim = percentile(&self.claims, 0.5);
        Row {
            name,
            sundown: each(&self.ours, share),
            yardstick: each(&self.docker, share),
            against: "SIGKILL through bollard, all at once; without a lane of its own to the processes ≤ 1.1 × of it is wanted",
            unit: "ms",
            goal: Goal::RatioAtMost(OF_DOCKER),
            second: Some(Second {
                yardstick: each(&self.signals, share),
                against: format!("SIGKILL by pidfd in a loop, to as many {}; and the claim, {claim:.1} ms", kind()),
                goal: Goal::AtMostTimesAndBeyond(OF_SIGNALS, claim),
            }),
            note: format!(
                "medians: {:.1} ms, through Docker {:.1} ms, by pidfd {:.1} ms{note}",
                each(&self.ours, 0.5).value,
                each(&self.docker, 0.5).value,
                each(&self.signals, 0.5).value
            ),
        }
    }
}

/// One at a time, each by a deadline of its own.
pub async fn singles(scale: Scale, world: &World, docker: &Docker) -> Row {
    let mut deaths = Deaths::default();
    for _ in 0..scale.pick(1, 1, 3) {
        let ids = world.run(scale.pick(2, 8, 15), &image()).await;
        deaths.round(world, docker, &ids, APART).await;
    }
    let late = join_all((0..scale.pick(1, 5, 20)).map(|turn| by_timeout(Duration::from_millis(turn * 250)))).await;
    let podman = by_podman(scale.pick(1, 3, 8))
        .await
        .map_or("podman is not installed".to_owned(), |late| format!("podman run --timeout {:.1} ms", percentile(&late, 0.5)));
    let note = format!("; timeout(1) {:.1} ms from its start on; {podman}", percentile(&late, 0.5));
    deaths.row("one deadline on one real host, to its process dead: p50", 0.5, &note)
}

async fn mortals(docker: &Docker, containers: &[String]) -> Mortals {
    let mut pids = Vec::new();
    for container in containers {
        let state = docker.inspect_container(container, None).await.unwrap().state.unwrap();
        pids.push(i32::try_from(state.pid.unwrap()).unwrap());
    }
    Mortals::of(&pids)
}

async fn by_sundown(world: &World, docker: &Docker, ids: &[Uuid], step: f64) -> Vec<f64> {
    let names: Vec<String> = ids.iter().map(|id| format!("sundown-{id}")).collect();
    let mortals = mortals(docker, &names).await;
    let clock = Clock::of(&world.client).await;
    let deadlines = world.due_apart(ids, 2.0, step).await;
    let deaths = mortals.deaths().await;
    deaths.into_iter().zip(deadlines).map(|(dead, deadline)| (clock.epoch(dead) - deadline) * 1000.0).collect()
}

async fn by_docker(docker: &Docker, ids: &[String], step: f64) -> Vec<f64> {
    let mortals = mortals(docker, ids).await;
    let first = Instant::now() + Duration::from_millis(500);
    let deadlines: Vec<Instant> = (0..ids.len()).map(|place| first + Duration::from_secs_f64(step * place as f64)).collect();
    let kill = async |(id, deadline): (&String, &Instant)| {
        sleep_until(*deadline).await;
        docker.kill_container(id, Some(KillContainerOptionsBuilder::new().signal("SIGKILL").build())).await.unwrap();
    };
    let (_killed, deaths) = tokio::join!(join_all(ids.iter().zip(&deadlines).map(kill)), mortals.deaths());
    since(&deaths, &deadlines)
}

/// From the first signal of each loop: what wakes it is not its own.
async fn by_signals(count: usize, step: f64) -> Vec<f64> {
    let parents: Vec<Parent> = (0..count).map(|_| bare_process()).collect();
    let pids = join_all(parents.iter().map(|parent| parent.child("sleep"))).await;
    let mortals = Mortals::of(&pids);
    let killed = mortals.again();
    let deaths = tokio::spawn(mortals.deaths());
    // Until somebody waits for them.
    sleep(Duration::from_millis(500)).await;
    let mut deadlines = vec![Instant::now(); count];
    for (place, deadline) in deadlines.iter_mut().enumerate() {
        if step > 0.0 {
            sleep(Duration::from_secs_f64(step)).await;
            *deadline = Instant::now();
        }
        killed.kill(place);
    }
    since(&deaths.await.unwrap(), &deadlines)
}

fn since(deaths: &[Instant], deadlines: &[Instant]) -> Vec<f64> {
    deaths.iter().zip(deadlines).map(|(dead, deadline)| dead.saturating_duration_since(*deadline).as_secs_f64() * 1000.0).collect()
}

/// What a bare process is here: making a namespace of process ids is a right of root.
fn kind() -> &'static str {
    if nix::unistd::geteuid().is_root() { "bare processes, each the first of its own pid namespace" } else { "bare child processes" }
}

fn bare_process() -> Parent {
    if nix::unistd::geteuid().is_root() {
        Parent::start("unshare", &["--pid", "--fork", "--kill-child=SIGKILL", "sleep", "1000"])
    } else {
        Parent::start("sh", &["-c", "sleep 1000; true"])
    }
}

/// How late `timeout` is with a process that may live a second, from its own start on.
async fn by_timeout(after: Duration) -> f64 {
    sleep(after).await;
    let began = Instant::now();
    let parent = Parent::start("timeout", &["--signal=KILL", "1", "sleep", "1000"]);
    let deaths = Mortals::of(&[parent.child("sleep").await]).deaths().await;
    (deaths[0] - began).as_secs_f64() * 1000.0 - 1000.0
}

/// The same of `podman run --timeout`, if there is podman: from the moment that the container's process is known. `None`: there is none, or it
/// does not run anything here.
async fn by_podman(count: usize) -> Option<Vec<f64>> {
    let known = tokio::process::Command::new("podman").arg("--version").output().await;
    known.ok().filter(|output| output.status.success())?;
    let dir = std::env::temp_dir().join(format!("sundown-bench-{}", Uuid::new_v4().simple()));
    std::fs::create_dir_all(dir.join("root/bin")).unwrap();
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| std::path::Path::new(path).exists())?;
    std::fs::copy(busybox, dir.join("root/bin/busybox")).unwrap();
    let (root, mut late) = (dir.join("root").display().to_string(), Some(Vec::new()));
    for turn in 0..count {
        let file = dir.join(turn.to_string());
        let pidfile = format!("--pidfile={}", file.display());
        let args = ["run", "--rm", "--timeout=1", "--network=none", &pidfile, "--rootfs", &root, "/bin/busybox", "sleep", "1000"];
        let _podman = Parent::start("podman", &args);
        let Some(pid) = written(&file).await else {
            late = None;
            break;
        };
        let began = Instant::now();
        let deaths = Mortals::of(&[pid]).deaths().await;
        late.iter_mut().for_each(|late| late.push((deaths[0] - began).as_secs_f64() * 1000.0 - 1000.0));
    }
    let _gone = std::fs::remove_dir_all(&dir);
    late
}

/// The number in a file that is going to be written, within ten seconds.
async fn written(file: &std::path::Path) -> Option<i32> {
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        if let Some(number) = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()) {
            return Some(number);
        }
        sleep(Duration::from_millis(1)).await;
    }
    None
}
