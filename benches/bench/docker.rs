//! The real Docker daemon, with Sundown before it and without.
//!
//! The yardstick's containers are made from what the daemon says of one of Sundown's, so that they are isolated alike, and carry none of
//! its labels: Sundown leaves them alone.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, resume_unwind};

use bollard::Docker;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, RemoveVolumeOptions,
};
use futures_util::{FutureExt, StreamExt, stream};
use uuid::Uuid;

use crate::Scale;
use crate::deaths::{Deaths, singles};
use crate::harness::docker::{image, installation};
use crate::harness::replica::Replica;
use crate::row::{Figure, Goal, Row};
use crate::world::World;

/// Marks the yardstick's containers.
pub const LABEL: &str = "sundown-bench";
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
    measured.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Removes every container with a label.
pub async fn clear(docker: &Docker, label: &str) {
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
pub async fn like(docker: &Docker, agent: Uuid) -> ContainerCreateBody {
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

/// Creates and starts so many, 8 at once for each core. Answers their ids.
pub async fn start_raw(docker: &Docker, body: &ContainerCreateBody, count: usize) -> Vec<String> {
    let width = 8 * std::thread::available_parallelism().map_or(1, usize::from);
    let one = |_| async move {
        let options = CreateContainerOptionsBuilder::new().name(&format!("{LABEL}-{}", Uuid::new_v4())).build();
        let id = docker.create_container(Some(options), body.clone()).await.unwrap().id;
        docker.start_container(&id, None).await.unwrap();
        id
    };
    stream::iter(0..count).map(one).buffer_unordered(width).collect().await
}

/// Starts as many with Sundown as without, and lets all of them end at one instant, in turn.
async fn starts_and_deaths(scale: Scale, world: &World, docker: &Docker) -> Vec<Row> {
    let (mut our_rates, mut their_rates, mut deaths) = (Vec::new(), Vec::new(), Deaths::default());
    let crowd = scale.pick(4, CROWD, CROWD);
    for _ in 0..scale.pick(1, 1, 5) {
        let ids = world.run(crowd, &image()).await;
        let span = "select extract(epoch from max(l.started_at) - min(a.created_at))::float8
                      from sundown.agent_live l join sundown.agent a using (id) where l.id = any ($1)";
        let span: f64 = world.client.query_one(span, &[&ids]).await.unwrap().get(0);
        our_rates.push(crowd as f64 / span);
        their_rates.push(crowd as f64 / deaths.round(world, docker, &ids, 0.0).await.as_secs_f64());
    }
    let starts = Row {
        name: "starts on one real host",
        sundown: Figure::of(&our_rates),
        yardstick: Figure::of(&their_rates),
        against: "bare create and start by bollard, 8 at once for each core",
        unit: "per s",
        goal: Goal::RatioAtLeast(0.95),
        second: None,
        note: format!("{crowd} submitted at once, no network"),
    };
    let mut rows = vec![starts, singles(scale, world, docker).await];
    rows.push(deaths.row("50 deadlines at once on one real host, to the last process dead", 1.0, ""));
    // Starting as many takes half a minute each time.
    let (rounds, mut deaths) = (scale.pick(0, 0, 2), Deaths::default());
    for _ in 0..rounds {
        let ids = world.run(200, &image()).await;
        deaths.round(world, docker, &ids, 0.0).await;
    }
    if rounds > 0 {
        rows.push(deaths.row("200 deadlines at once on one real host, to the last process dead", 1.0, ""));
    }
    rows
}
