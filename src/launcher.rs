//! Starts agents: places those that wait wherever there is room, and takes each from placement to `running`.
//!
//! create → record the container → inspect → start only what never ran → running. Each step but the Docker call itself is a write
//! that names the epoch, so a wish to end the agent, or another replica, wins at every one of them. Must not know why an agent
//! waits, nor end one that runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use uuid::Uuid;

use crate::docker::{ContainerSpec, Created, DockerError, Network, Started};
use crate::error::Error;
use crate::failpoint;
use crate::finish;
use crate::reconcile::{Action, Seen, failed, reconcile};
use crate::replica::{Link, Replica};
use crate::sql::work::{Claim, Placed, Spec};

/// Most agents placed by one statement; its LIMIT is a literal.
const BATCH: usize = 16;

/// Places agents until told to stop.
pub async fn run(replica: Arc<Replica>) {
    loop {
        let wait = match pass(&replica).await {
            Ok(wait) => wait,
            Err(error) => {
                replica.metrics.database_errors.inc();
                tracing::warn!(%error, "placing failed; trying again");
                Some(replica.poll)
            }
        };
        let alarm = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = replica.wakes.launcher.notified() => {}
            () = alarm => {}
            () = replica.stop.cancelled() => return,
        }
    }
}

/// Places what can be placed now on every host. Answers when to look again without being woken.
pub async fn pass(replica: &Arc<Replica>) -> Result<Option<Duration>, Error> {
    let mut wait: Option<f64> = None;
    for link in replica.reachable() {
        loop {
            if replica.stop.is_cancelled() {
                return Ok(None);
            }
            let room = link.starts.available_permits().min(BATCH);
            if room == 0 {
                // The end of a start wakes us.
                break;
            }
            match replica.sql.place(link.id, replica.id(), room_for_sql(room), replica.start_lease, None).await? {
                Placed::Full => break,
                Placed::Locked => {
                    // Somebody is placing there right now; come back when that is over.
                    wait = Some(wait.map_or(0.005, |wait| wait.min(0.005)));
                    break;
                }
                Placed::Some(placed) => {
                    let more = placed.len() == room;
                    for (id, epoch, spec) in placed {
                        replica.metrics.placed.inc();
                        begin(replica, &link, fresh(id, epoch, link.id), Some(spec));
                    }
                    if !more {
                        let next = replica.sql.next_due(&[0], None, None).await?.first().map(|(_, due)| *due);
                        // What is due already waits for room, and room wakes us.
                        if let Some(due) = next.filter(|due| *due > 0.0) {
                            wait = Some(wait.map_or(due, |wait| wait.min(due)));
                        }
                        break;
                    }
                }
            }
        }
    }
    Ok(wait.map(|seconds| Duration::from_secs_f64(seconds.clamp(0.001, 3600.0))))
}

fn room_for_sql(room: usize) -> i32 {
    i32::try_from(room).unwrap_or(1)
}

/// A row as it is right after placing.
fn fresh(id: Uuid, epoch: i32, host: i32) -> Claim {
    Claim {
        id,
        epoch,
        host,
        state: "pending".to_owned(),
        container_id: None,
        attempts: 1,
        started: false,
        signalled: false,
        killed: false,
        observed: false,
        grace: Duration::ZERO,
        start_timed_out: false,
    }
}

/// Takes a claimed start to its end, in the lane of starts. With `spec` it was just placed; without, it was taken over.
pub fn begin(replica: &Arc<Replica>, link: &Arc<Link>, row: Claim, spec: Option<Spec>) {
    let lease_ends = Instant::now() + replica.start_lease;
    let (replica_, link) = (Arc::clone(replica), Arc::clone(link));
    replica.spawn(async move {
        let replica = replica_;
        // No room before the lease is half over: others, or we later, find it due again.
        let patience = lease_ends - replica.start_lease / 2;
        let Ok(Ok(permit)) = tokio::time::timeout_at(patience, Arc::clone(&link.starts).acquire_owned()).await else { return };
        let id = row.id;
        if let Err(error) = start(&replica, &link, row, spec, lease_ends, permit).await {
            replica.metrics.database_errors.inc();
            tracing::warn!(agent.id = %id, %error, "a start was cut short; its lease brings it back");
        }
        replica.wakes.launcher.notify_one();
    });
}

async fn start(
    replica: &Arc<Replica>,
    link: &Arc<Link>,
    mut row: Claim,
    spec: Option<Spec>,
    lease_ends: Instant,
    permit: OwnedSemaphorePermit,
) -> Result<(), Error> {
    let mut permit = Some(permit);
    // A new agent has no container yet: the create itself finds out if it has.
    let mut seen = match &spec {
        Some(_) => Seen::Gone,
        None => match link.look(&row).await {
            Ok(seen) => seen,
            Err(error) => return finish::try_again(replica, &row, &error).await,
        },
    };
    loop {
        // A call that we can only begin now would outlive the lease: leave it to whoever claims it next.
        if Instant::now() >= lease_ends {
            return Ok(());
        }
        let step = match reconcile(&row, &seen) {
            Action::Create => create(replica, link, &row, spec.as_ref()).await?,
            Action::Record(container) => record(replica, &row, container).await?,
            Action::Start(container) => launch(link, &container).await,
            Action::Running(container) | Action::RanAlready(container) => {
                drop(permit.take());
                return running(replica, link, row, &container, Some(seen)).await;
            }
            Action::End(facts, container) => {
                drop(permit.take());
                return finish::end(replica, link, &row, facts, container.as_deref()).await;
            }
            Action::Finish(container) => {
                drop(permit.take());
                return finish::remove_and_record(replica, link, &row, container.as_deref()).await;
            }
            // The other steps belong to states that a start never has.
            Action::Signal(_) | Action::Kill(_) | Action::Rest => return Ok(()),
        };
        match step {
            Step::Recorded(container) => row.container_id = Some(container),
            Step::Running(container) => {
                drop(permit.take());
                return running(replica, link, row, &container, None).await;
            }
            Step::Look => {}
            Step::Failed(reason, error) => {
                drop(permit.take());
                return fail(replica, link, &row, reason, error).await;
            }
            Step::Unknown(error) => return finish::try_again(replica, &row, &error).await,
            Step::Lost => {
                replica.lease_lost(row.id, "record");
                return Ok(());
            }
        }
        seen = match link.look(&row).await {
            Ok(seen) => seen,
            Err(error) => return finish::try_again(replica, &row, &error).await,
        };
    }
}

/// What a step of a start came to.
enum Step {
    Recorded(String),
    Running(String),
    Look,
    Failed(&'static str, Option<String>),
    Unknown(DockerError),
    Lost,
}

async fn create(replica: &Replica, link: &Link, row: &Claim, spec: Option<&Spec>) -> Result<Step, Error> {
    let fetched;
    let spec = match spec {
        Some(spec) => spec,
        None => match replica.sql.spec(row.id).await? {
            Some(spec) => {
                fetched = spec;
                &fetched
            }
            None => return Ok(Step::Lost),
        },
    };
    failpoint::hit("launch.before_create");
    Ok(match link.docker.create(&container_spec(row.id, spec)).await {
        Ok(Created::New(container)) => {
            failpoint::hit("launch.created");
            record(replica, row, container).await?
        }
        Ok(Created::NameTaken) => Step::Look,
        Err(DockerError::ImageMissing(error)) => Step::Failed("image_missing", Some(error)),
        Err(DockerError::Rejected(error)) => Step::Failed("start_failed", Some(error)),
        Err(error @ DockerError::Unavailable(_)) => Step::Unknown(error),
    })
}

async fn record(replica: &Replica, row: &Claim, container: String) -> Result<Step, Error> {
    let recorded = replica.sql.record_container(row.id, row.epoch, &container).await?;
    failpoint::hit("launch.recorded");
    Ok(if recorded { Step::Recorded(container) } else { Step::Lost })
}

async fn launch(link: &Link, container: &str) -> Step {
    failpoint::hit("launch.before_start");
    let started = link.docker.start(container).await;
    failpoint::hit("launch.started");
    match started {
        Ok(Started::Yes) => Step::Running(container.to_owned()),
        Ok(Started::Gone) => Step::Look,
        Err(DockerError::Rejected(error) | DockerError::ImageMissing(error)) => Step::Failed("start_failed", Some(error)),
        Err(error @ DockerError::Unavailable(_)) => Step::Unknown(error),
    }
}

async fn running(replica: &Arc<Replica>, link: &Arc<Link>, row: Claim, container: &str, seen: Option<Seen>) -> Result<(), Error> {
    let Some(due_in) = replica.sql.running(row.id, row.epoch, None).await? else {
        replica.lease_lost(row.id, "running");
        return Ok(());
    };
    failpoint::hit("launch.running");
    replica.metrics.started.inc();
    replica.wakes.arm(due_in);
    tracing::info!(agent.id = %row.id, host = row.host, container, expires_in_s = due_in, "running");
    match seen {
        // Taken over after it ran to its end: its keeper may have looked already.
        Some(seen) => match reconcile(&Claim { state: "running".to_owned(), started: true, ..row.clone() }, &seen) {
            Action::End(facts, container) => finish::end(replica, link, &row, facts, container.as_deref()).await,
            _ => Ok(()),
        },
        None => Ok(()),
    }
}

async fn fail(replica: &Arc<Replica>, link: &Link, row: &Claim, reason: &'static str, error: Option<String>) -> Result<(), Error> {
    tracing::info!(agent.id = %row.id, reason, error, "could not start");
    let container = match link.look(row).await {
        Ok(Seen::Ours(container)) => Some(container.id),
        Ok(Seen::Gone | Seen::Foreign) => None,
        Err(error) => return finish::try_again(replica, row, &error).await,
    };
    finish::end(replica, link, row, failed(reason, error), container.as_deref()).await
}

fn container_spec(agent: Uuid, spec: &Spec) -> ContainerSpec {
    let pairs = |value: Option<&serde_json::Value>| -> BTreeMap<String, String> {
        let entries = value.and_then(serde_json::Value::as_object).into_iter().flatten();
        entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    };
    ContainerSpec {
        agent,
        image: spec.image.clone(),
        command: spec.command.clone(),
        env: pairs(spec.env.as_ref()).into_iter().collect(),
        labels: pairs(Some(&spec.labels)),
        longest_life: spec.max_ttl + spec.grace,
        cpus: spec.cpus,
        memory_bytes: spec.memory,
        pids: i64::from(spec.pids),
        network: if spec.network == "bridge" { Network::Bridge } else { Network::None },
        grace: spec.grace,
    }
}
