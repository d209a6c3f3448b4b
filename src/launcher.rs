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

use crate::docker::{ContainerSpec, Created, DockerError, Network, Signal, Started};
use crate::error::Error;
use crate::failpoint;
use crate::finish;
use crate::reconcile::{Action, Seen, failed, reconcile};
use crate::replica::{Link, Replica};
use crate::sql::work::{Claim, Placed, Spec};

/// How long to leave alone what somebody else is placing, at first and at most.
const PAUSE: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// How long a container whose name is taken and that is not there yet may take to appear.
const APPEARING: Duration = Duration::from_millis(200);
/// How long a start whose answer was lost may still take effect: sooner, a second one could run the agent again.
const START_UNKNOWN: Duration = Duration::from_secs(6);
/// Most agents placed by one statement; its LIMIT is a literal.
const BATCH: usize = 16;

/// Places agents until told to stop.
pub async fn run(replica: Arc<Replica>) {
    let mut pause = PAUSE;
    loop {
        let wait = match pass(&replica, &mut pause).await {
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

/// Places what can be placed now on every host. Answers when to look again without being woken; `pause` is how long to leave alone
/// what is in somebody else's hands.
pub async fn pass(replica: &Arc<Replica>, pause: &mut Duration) -> Result<Option<Duration>, Error> {
    let mut contended = false;
    let mut room_left = false;
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
            let wanted = i32::try_from(room).unwrap_or(1);
            let asked = Instant::now();
            let lease = if failpoint::broken("lease_for_ever") { Duration::from_secs(3600) } else { replica.start_lease };
            let placed = match replica.claims.place(link.id, replica.id(), wanted, lease, None).await? {
                Placed::Full => break,
                Placed::Locked => {
                    contended = true;
                    break;
                }
                Placed::Some(placed) => placed,
            };
            let more = placed.len() == room;
            for (id, epoch, spec) in placed {
                replica.metrics.placed.inc();
                let permit = Arc::clone(&link.starts).try_acquire_owned().ok();
                let lease = replica.start_lease.min(spec.start_timeout);
                begin(replica, &link, fresh(id, epoch, link.id, lease), Some(spec), asked, permit);
            }
            if !more {
                room_left = true;
                break;
            }
        }
    }
    let next = if room_left { replica.claims.next_due(&[0], None, None).await?.first().map(|(_, due)| *due) } else { None };
    // Due, and not placed though there was room: somebody holds it, to place it elsewhere or for a while.
    contended |= next.is_some_and(|due| due <= 0.0);
    if contended {
        let wait = *pause;
        *pause = (*pause * 2).min(PAUSE_MAX);
        return Ok(Some(wait));
    }
    *pause = PAUSE;
    Ok(next.map(|seconds| Duration::from_secs_f64(seconds.clamp(0.001, 3600.0))))
}

/// A row as it is right after placing.
fn fresh(id: Uuid, epoch: i32, host: i32, lease: Duration) -> Claim {
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
        lease,
        start_timed_out: false,
        grace_over: false,
    }
}

/// Takes a claimed start to its end. With `spec` it was just placed; without, it was taken over. Its lease counts from when the claim
/// was asked for: from the answer it would outlast the row's, and a start could meet another replica's.
pub fn begin(
    replica: &Arc<Replica>,
    link: &Arc<Link>,
    row: Claim,
    spec: Option<Spec>,
    asked: Instant,
    permit: Option<OwnedSemaphorePermit>,
) {
    let (lease, lease_ends) = (row.lease, asked + row.lease);
    let (shared, link) = (Arc::clone(replica), Arc::clone(link));
    replica.spawn(async move {
        let id = row.id;
        let lane = Lane { replica: &shared, link: &link, lease, lease_ends, permit };
        if let Err(error) = start(lane, row, spec).await {
            shared.metrics.database_errors.inc();
            tracing::warn!(agent.id = %id, %error, "a start was cut short; its lease brings it back");
        }
        shared.wakes.somebody_waits();
    });
}

/// A start's place in the lane of starts: held while Docker creates and starts, for two at once saturate two cores, and not to look.
struct Lane<'a> {
    replica: &'a Arc<Replica>,
    link: &'a Arc<Link>,
    lease: Duration,
    lease_ends: Instant,
    permit: Option<OwnedSemaphorePermit>,
}

impl Lane<'_> {
    /// Whether a call may begin now: in the lane, and with half of the lease left, so that it ends before the lease does. If not,
    /// whoever claims the row next goes on.
    async fn enter(&mut self) -> bool {
        let latest = self.lease_ends - self.lease / 2;
        if self.permit.is_none() {
            let permit = tokio::time::timeout_at(latest, Arc::clone(&self.link.starts).acquire_owned()).await;
            self.permit = permit.ok().and_then(Result::ok);
        }
        self.permit.is_some() && Instant::now() <= latest && !self.replica.leaving.is_cancelled()
    }
}

async fn start(mut lane: Lane<'_>, mut row: Claim, spec: Option<Spec>) -> Result<(), Error> {
    let (replica, link) = (lane.replica, lane.link);
    // A new agent has no container yet: the create itself finds out if it has.
    let mut seen = match &spec {
        Some(_) => Seen::Gone,
        None if failpoint::broken("blind_rescue") => {
            return finish::end(replica, link, &row, failed("start_timeout", None), None).await;
        }
        None => match link.look(&row).await {
            Ok(seen) => seen,
            Err(error) => return finish::try_again(replica, &row, &error).await,
        },
    };
    if let (true, None, Some(container)) = (failpoint::broken("no_look"), &spec, &row.container_id) {
        let _sent = link.docker.start(container).await;
    }
    loop {
        let action = reconcile(&row, &seen);
        if matches!(action, Action::Start(_)) {
            // Before the check of the lease, after which nothing is between us and the call.
            failpoint::hit("launch.before_start");
        }
        let step = match action {
            Action::Record(_) if failpoint::broken("no_adoption") => {
                drop(lane);
                return fail(replica, link, &row, "name_conflict", None).await;
            }
            Action::Create | Action::Start(_) if !lane.enter().await => return Ok(()),
            Action::Create => create(replica, link, &row, spec.as_ref()).await?,
            Action::Record(container) => record(replica, &row, container).await?,
            Action::Start(container) => launch(link, &container).await,
            Action::Running(container) | Action::RanAlready(container) => {
                drop(lane);
                return running(replica, link, row, &container, Some(seen)).await;
            }
            Action::End(facts, container) => {
                drop(lane);
                return finish::end(replica, link, &row, facts, container.as_deref()).await;
            }
            Action::Finish(container) => {
                drop(lane);
                return finish::remove_and_record(replica, link, &row, container.as_deref()).await;
            }
            // The other steps belong to states that a start never has.
            Action::Signal(_) | Action::Kill(_) | Action::Rest => return Ok(()),
        };
        match step {
            Step::Recorded(container) => row.container_id = Some(container),
            Step::Running(container) => {
                drop(lane);
                return running(replica, link, row, &container, None).await;
            }
            Step::Look => {}
            Step::Failed(reason, error) => {
                drop(lane);
                return fail(replica, link, &row, reason, error).await;
            }
            Step::Unknown(error) => return finish::try_again(replica, &row, &error).await,
            Step::StartUnknown(error) => return finish::try_again_after(replica, &row, &error, START_UNKNOWN).await,
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
    StartUnknown(DockerError),
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
    // On another daemon it would be nobody's: its row says that it lives on this one.
    if let Err(error) = link.lately_itself().await {
        return Ok(Step::Unknown(error));
    }
    Ok(match link.answered(link.docker.create(&container_spec(row.id, spec))).await {
        Ok(Created::New(container)) => {
            failpoint::hit("launch.created");
            if failpoint::broken("record_after_start") {
                let _sent = link.docker.start(&container).await;
            }
            record(replica, row, container).await?
        }
        Ok(Created::NameTaken) => {
            tokio::time::sleep(APPEARING).await;
            Step::Look
        }
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
    let started = link.answered(link.docker.start(container)).await;
    failpoint::hit("launch.started");
    match started {
        Ok(Started::Yes) => Step::Running(container.to_owned()),
        Ok(Started::Gone) => Step::Look,
        Err(DockerError::Rejected(error) | DockerError::ImageMissing(error)) => Step::Failed("start_failed", Some(error)),
        Err(error @ DockerError::Unavailable(_)) => Step::StartUnknown(error),
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
    if failpoint::broken("timer_in_memory") {
        let (docker, container) = (link.docker.clone(), container.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs_f64(due_in.max(0.0))).await;
            let _sent = docker.signal(&container, Signal::Kill).await;
        });
    }
    tracing::info!(agent.id = %row.id, host = row.host, container, expires_in_s = due_in, "running");
    // While there is time: at its deadline nobody has to be asked for its process then.
    if seen.is_none() {
        let (link, row) = (Arc::clone(link), Claim { container_id: Some(container.to_owned()), ..row.clone() });
        replica.spawn(async move { link.learn(&row).await });
    }
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
        // No deadline is later than this after placement, and no process of it is older than that: SIGKILL never comes later.
        longest_life: spec.start_timeout + spec.max_ttl + spec.grace,
        cpus: spec.cpus,
        memory_bytes: spec.memory,
        pids: i64::from(spec.pids),
        network: if spec.network == "bridge" { Network::Bridge } else { Network::None },
        grace: spec.grace,
        first_deadline: spec.first_deadline.clone(),
    }
}
