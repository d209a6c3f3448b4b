//! The real Docker daemon, with Sundown before it and without.
//!
//! The yardstick's containers are made from what the daemon says of one of Sundown's, so that they are isolated alike, and carry none of
//! its labels: Sundown leaves them alone.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::Duration;

use bollard::Docker;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveVolumeOptions,
};
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::Scale;
use crate::harness::docker::{image, installation};
use crate::harness::replica::Replica;
use crate::process::Mortals;
use crate::row::{Figure, Goal, Row, percentile};
use crate::world::{Clock, World};

/// Marks the yardstick's containers.
const LABEL: &str = "sundown-bench";
/// Starts, and deadlines, at once.
const CROWD: usize = 50;

/// The daemon, if there is one that the script says to measure.
pub async fn daemon() -> Option<Docker> {
    std::env::var_os("SUNDOWN_TEST_IMAGE")?;
    let host = std::env::var("DOCKER_HOST").ok()?;
    Docker::connect_with_host(&host).ok()?.negotiate_version().await.ok()
}

pub async fn rows(scale: Scale) -> Vec<Row> {
    let Some(docker) = daemon().await else { return Vec::new() };
    let mut world = World::new(0, &[]).await;
    let host = std::env::var("DOCKER_HOST").unwrap();
    world.replicas.push(Replica::start(&world.db.url(), &[("SUNDOWN_DOCKER", host.as_str()), ("SUNDOWN_CAPACITY", "1000")]).await);
    let measured = AssertUnwindSafe(starts_and_deaths(scale, &world, &docker)).catch_unwind().await;
    let ours = format!("sundown.installation={}", installation(&world.client).await);
    world.replicas.clear();
    clear(&docker, &ours).await;
    clear(&docker, LABEL).await;
    let volume = ours.replace("sundown.installation=", "sundown-host-");
    let _gone = docker.remove_volume(&volume, None::<RemoveVolumeOptions>).await;
    measured.unwrap_or_else(|panic| resume_unwind(panic)).into()
}

/// Removes every container with a label.
async fn clear(docker: &Docker, label: &str) {
    let filters = HashMap::from([("label".to_owned(), vec![label.to_owned()])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let left = docker.list_containers(Some(options)).await.unwrap_or_default();
    let ids = left.into_iter().filter_map(|container| container.id);
    stream::iter(ids).for_each_concurrent(8, |id| async move { remove(docker, &id).await }).await;
}

async fn remove(docker: &Docker, id: &str) {
    let _gone = docker.remove_container(id, Some(RemoveContainerOptionsBuilder::new().force(true).build())).await;
}

/// What one of Sundown's containers is made from, without what says that it is Sundown's.
async fn like(docker: &Docker, agent: Uuid) -> ContainerCreateBody {
    let seen = docker.inspect_container(&format!("sundown-{agent}"), None).await.unwrap();
    let config = seen.config.unwrap();
    ContainerCreateBody {
        image: config.image,
        cmd: config.cmd,
        env: config.env,
        stop_signal: config.stop_signal,
        stop_timeout: config.stop_timeout,
        healthcheck: config.healthcheck,
        labels: Some(HashMap::from([(LABEL.to_owned(), String::new())])),
        host_config: seen.host_config,
        ..Default::default()
    }
}

/// Creates and starts so many, `width` at once. Answers their ids.
async fn start_raw(docker: &Docker, body: &ContainerCreateBody, count: usize, width: usize) -> Vec<String> {
    let one = |_| async move {
        let options = CreateContainerOptionsBuilder::new().name(&format!("{LABEL}-{}", Uuid::new_v4())).build();
        let id = docker.create_container(Some(options), body.clone()).await.unwrap().id;
        docker.start_container(&id, None).await.unwrap();
        id
    };
    stream::iter(0..count).map(one).buffer_unordered(width).collect().await
}

/// Starts as many with Sundown as without, and lets all of them end at one instant, in turn.
async fn starts_and_deaths(scale: Scale, world: &World, docker: &Docker) -> [Row; 2] {
    let width = 8 * std::thread::available_parallelism().map_or(1, usize::from);
    let (mut our_rates, mut their_rates, mut our_times, mut their_times) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..scale.pick(2, 5) {
        let ids = world.run(CROWD, &image()).await;
        let span = "select extract(epoch from max(l.started_at) - min(a.created_at))::float8
                      from sundown.agent_live l join sundown.agent a using (id) where l.id = any ($1)";
        let span: f64 = world.client.query_one(span, &[&ids]).await.unwrap().get(0);
        our_rates.push(CROWD as f64 / span);
        let body = like(docker, ids[0]).await;
        our_times.push(stopped_by_sundown(world, docker, &ids).await);
        world.ended(&ids).await;

        let began = Instant::now();
        let raw = start_raw(docker, &body, CROWD, width).await;
        their_rates.push(CROWD as f64 / began.elapsed().as_secs_f64());
        their_times.push(killed_raw(docker, &raw).await);
        clear(docker, LABEL).await;
    }
    let starts = Row {
        name: "starts on one real host",
        sundown: Figure::of(&our_rates),
        yardstick: Figure::of(&their_rates),
        against: "bare create and start by bollard, 8 at once for each core",
        unit: "per s",
        goal: Goal::RatioAtLeast(0.95),
        note: format!("{CROWD} submitted at once, no network"),
    };
    let each = |rounds: &[Vec<f64>], share| Figure::of(&rounds.iter().map(|round| percentile(round, share)).collect::<Vec<_>>());
    let deaths = Row {
        name: "50 deadlines at once on one real host, to the last process dead",
        sundown: each(&our_times, 1.0),
        yardstick: each(&their_times, 1.0),
        against: "bare kills by bollard, all at once",
        unit: "ms",
        goal: Goal::RatioAtMost(1.1),
        note: format!("medians of the {CROWD}: {:.0} ms, bare {:.0} ms", each(&our_times, 0.5).value, each(&their_times, 0.5).value),
    };
    [starts, deaths]
}

async fn mortals(docker: &Docker, containers: &[String]) -> Mortals {
    let mut pids = Vec::new();
    for container in containers {
        let state = docker.inspect_container(container, None).await.unwrap().state.unwrap();
        pids.push(i32::try_from(state.pid.unwrap()).unwrap());
    }
    Mortals::of(&pids)
}

/// By how many milliseconds after its deadline each of these is dead.
async fn stopped_by_sundown(world: &World, docker: &Docker, ids: &[Uuid]) -> Vec<f64> {
    let names: Vec<String> = ids.iter().map(|id| format!("sundown-{id}")).collect();
    let mortals = mortals(docker, &names).await;
    let clock = Clock::of(&world.client).await;
    world.due(ids, 2.0, 0.0).await;
    let query = "select extract(epoch from l.expires_at)::float8 from unnest($1::uuid[]) with ordinality u (id, n)
                   join sundown.agent_live l on l.id = u.id order by u.n";
    let deadlines: Vec<f64> = world.client.query(query, &[&ids]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(deadlines.len(), ids.len(), "one ended before its deadline was read");
    let deaths = mortals.deaths().await;
    deaths.into_iter().zip(deadlines).map(|(dead, deadline)| (clock.epoch(dead) - deadline) * 1000.0).collect()
}

/// The same by bare kills, all asked for at one instant.
async fn killed_raw(docker: &Docker, ids: &[String]) -> Vec<f64> {
    let mortals = mortals(docker, ids).await;
    let deadline = Instant::now() + Duration::from_millis(500);
    let kill = async |id: &String| {
        sleep_until(deadline).await;
        docker.kill_container(id, Some(KillContainerOptionsBuilder::new().signal("SIGKILL").build())).await.unwrap();
    };
    let (_killed, deaths) = tokio::join!(join_all(ids.iter().map(kill)), mortals.deaths());
    deaths.into_iter().map(|dead| (dead - deadline).as_secs_f64() * 1000.0).collect()
}
