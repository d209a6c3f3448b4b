//! Keeps one Docker host: connects to it, knows who it is, and finds out what became of its agents.
//!
//! Docker's events are a hint, its list is the truth, and a death is believed only from an inspect. A host that does not answer is
//! unreachable, which is never the same as gone: nothing is concluded from an error or from an empty answer.
//!
//! Every replica connects to its hosts; of those, one keeps each host, by a lease that the tick renews.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;
use uuid::Uuid;

use crate::docker::{Docker, DockerError, Event, EventKind, Listed};
use crate::error::Error;
use crate::failpoint;
use crate::finish;
use crate::process;
use crate::reconcile::{Action, failed, reconcile};
use crate::replica::{Host, Link, Replica};
use crate::sql::work::{Claim, Known};

/// How often the list is held against the rows, and the daemon is asked whether it is there.
const LIST: Duration = Duration::from_secs(5);
/// How long an agent must have been over, or its container seen without a row, before that is an orphan.
pub const ORPHAN_GRACE: Duration = Duration::from_secs(10);
/// How long to leave a daemon alone that did not answer.
const RECONNECT: Duration = Duration::from_millis(500);
/// How far behind the keeper everybody else looks at a death: a dead keeper costs a moment, and needs no failure detection.
const DEATH_LAG: Duration = Duration::from_millis(250);
/// A container may die before the row says that it runs: how long to remember that it did.
const EARLY_DEATH: Duration = Duration::from_secs(10);

/// What stopped a pass.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The daemon failed us.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// The database failed us.
    #[error(transparent)]
    Database(#[from] Error),
}

/// Serves one endpoint until told to stop: connects, keeps, and connects again.
pub async fn run(replica: Arc<Replica>, host: Arc<Host>) {
    let mut said = None;
    while !replica.stop.is_cancelled() {
        let ended = tokio::select! {
            ended = serve(&replica, &host, &mut said) => ended,
            () = replica.stop.cancelled() => return,
        };
        host.lost();
        if let Err(error) = ended {
            replica.metrics.docker_errors.inc();
            // Once for each reason: the first is how it went away, another one may be why it does not come back.
            let error = error.to_string();
            if said.as_ref() != Some(&error) {
                tracing::warn!(endpoint = host.endpoint, error, "the host is out of reach; trying again");
            }
            said = Some(error);
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Connects to the daemon and learns which host it is.
pub async fn connect(replica: &Replica, host: &Host) -> Result<Arc<Link>, Trouble> {
    let docker = Docker::connect(&host.endpoint, replica.sql.installation()).await?;
    let description = docker.describe().await?;
    let uuid = docker.host_identity(proposal(replica, &docker).await?).await?;
    let capacity = if failpoint::broken("no_capacity") { Some(i32::MAX) } else { host.capacity };
    let id = replica.sql.register_host(uuid, &description.hostname, &host.endpoint, capacity, None).await?;
    if !description.live_restore {
        tracing::warn!(endpoint = host.endpoint, "live-restore is off: a restart of this daemon ends every agent on it");
    }
    tracing::info!(host = id, endpoint = host.endpoint, %uuid, version = description.version, cpus = description.cpus, "host connected");
    Ok(host.connected(id, uuid, docker.keeping_connections(uuid)?))
}

/// Who a daemon is that has lost the volume which says so: the host whose agents it runs, or somebody new. Otherwise a pruned volume
/// would leave agents on a host that nobody serves. An address alone proves nothing: another daemon may answer there by now.
async fn proposal(replica: &Replica, docker: &Docker) -> Result<Uuid, Trouble> {
    let (agents, containers): (Vec<Uuid>, Vec<String>) =
        docker.list().await?.into_iter().filter_map(|listed| Some((listed.agent?, listed.id))).unzip();
    let known = if agents.is_empty() { None } else { replica.sql.host_of(&agents, &containers).await? };
    Ok(known.unwrap_or_else(Uuid::new_v4))
}

async fn serve(replica: &Arc<Replica>, host: &Host, said: &mut Option<String>) -> Result<(), Trouble> {
    let link = connect(replica, host).await?;
    *said = None;
    tokio::select! {
        ended = keep(replica, &link) => ended,
        () = link.silent.cancelled() => Err(DockerError::Unavailable("it does not answer at all, or is another daemon".to_owned()).into()),
    }
}

async fn keep(replica: &Arc<Replica>, link: &Arc<Link>) -> Result<(), Trouble> {
    // Whatever was due while we were away.
    replica.wakes.look_at_everything();
    let mut events = pin!(link.docker.events());
    let mut orphans = Orphans::default();
    let mut dead: HashMap<Uuid, (Instant, Duration)> = HashMap::new();
    let mut list = tokio::time::interval(LIST);
    list.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut listening = true;
    let mut looked = false;
    loop {
        let retry = dead.values().map(|(since, pause)| *since + *pause).min();
        let retry = async {
            match retry {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = events.next(), if listening => match event {
                Some(Ok(event)) => {
                    if matches!(event.kind, EventKind::Die | EventKind::Destroy) {
                        link.inits.forget(&event.container_id);
                    }
                    hint(event, link.keeps.load(Ordering::Acquire), &mut dead);
                }
                // The next look at the list finds what it would have said.
                Some(Err(_)) | None => listening = false,
            },
            _ = list.tick() => {
                // Whoever just connected looks, too: its keeper may have died with what it had seen.
                if link.keeps.load(Ordering::Acquire) || !looked {
                    survived(replica, pass(replica, link, &mut orphans).await).await?;
                    looked = true;
                } else {
                    link.still_itself().await?;
                }
                if !listening {
                    events.set(link.docker.events());
                    listening = true;
                }
            }
            () = retry => survived(replica, deaths(replica, link, &mut dead).await).await?,
        }
    }
}

/// Notes what an event says about an agent.
fn hint(event: Event, keeps: bool, dead: &mut HashMap<Uuid, (Instant, Duration)>) {
    let Some(agent) = event.agent else { return };
    match (event.kind, keeps) {
        // Our own removals say destroy, too; what somebody else removed is found here as well.
        (EventKind::Die | EventKind::Destroy, true) => dead.insert(agent, (Instant::now(), Duration::ZERO)),
        (EventKind::Die, false) => dead.insert(agent, (Instant::now(), DEATH_LAG)),
        // Its keeper was quicker, as it should be.
        (EventKind::Destroy, false) => dead.remove(&agent),
        (EventKind::Start | EventKind::Oom, _) => None,
    };
}

/// A host is not out of reach because the database is: what was not done is done later.
async fn survived<T>(replica: &Replica, result: Result<T, Trouble>) -> Result<(), DockerError> {
    match result {
        Ok(_) => Ok(()),
        Err(Trouble::Docker(error)) => Err(error),
        Err(Trouble::Database(error)) => {
            replica.metrics.database_errors.inc();
            tracing::debug!(%error, "a look at a host was cut short");
            tokio::time::sleep(RECONNECT).await;
            Ok(())
        }
    }
}

/// Looks at agents whose containers are said to have died.
async fn deaths(replica: &Arc<Replica>, link: &Arc<Link>, dead: &mut HashMap<Uuid, (Instant, Duration)>) -> Result<(), Trouble> {
    let now = Instant::now();
    let due: Vec<Uuid> = dead.iter().filter(|(_, (since, pause))| *since + *pause <= now).map(|(id, _)| *id).collect();
    let rows = replica.sql.on_host(link.id, Some(&due)).await?;
    let rows: HashMap<Uuid, &(Claim, bool)> = rows.iter().map(|row| (row.0.id, row)).collect();
    for id in &due {
        match rows.get(id) {
            // Not said to run yet, or in the hands of somebody who did not see it die: in a moment it is neither.
            Some((row, leased)) if row.state == "pending" || *leased => {
                let next = dead.get(id).map(|(_, pause)| (*pause * 2).max(Duration::from_millis(20)));
                match next.filter(|pause| *pause <= EARLY_DEATH) {
                    Some(pause) => dead.insert(*id, (now, pause)),
                    None => dead.remove(id),
                };
            }
            Some((row, _)) => {
                dead.remove(id);
                judge_later(replica, link, row.clone());
            }
            None => {
                dead.remove(id);
            }
        }
    }
    Ok(())
}

/// Containers without a row, and since when we see them.
#[derive(Debug, Default)]
pub struct Orphans {
    since: HashMap<String, Instant>,
    reported: HashSet<String>,
    /// Those that are being removed.
    going: Arc<Mutex<HashSet<String>>>,
}

impl Orphans {
    /// Something without a row was seen in the last pass, and is not judged yet.
    #[must_use]
    pub fn suspected(&self) -> bool {
        !self.since.is_empty() && self.since.len() > self.reported.len()
    }
}

/// Holds the daemon's list against the rows.
pub async fn pass(replica: &Arc<Replica>, link: &Arc<Link>, orphans: &mut Orphans) -> Result<(), Trouble> {
    link.still_itself().await?;
    if failpoint::broken("events_only") {
        return Ok(());
    }
    // An idle host costs no query: with no row and no container there is nothing to hold against anything.
    if link.idle.load(Ordering::Acquire) && link.answered(link.docker.list()).await?.is_empty() {
        return Ok(());
    }
    // Rows first, then the list: a container that the list lacks was gone after its row was read.
    let rows = replica.sql.on_host(link.id, None).await?;
    let listed = link.answered(link.docker.list()).await?;
    link.forget_removed(&listed.iter().map(|l| l.id.as_str()).collect());
    let alive: HashSet<&str> = listed.iter().filter(|l| l.status.is_alive()).map(|l| l.id.as_str()).collect();
    for (row, leased) in &rows {
        let Some(container) = &row.container_id else { continue };
        if *leased || row.state == "pending" || alive.contains(container.as_str()) {
            continue;
        }
        if failpoint::broken("absence_is_death") {
            finish::end(replica, link, row, failed("vanished", None), None).await?;
        } else {
            judge_later(replica, link, row.clone());
        }
    }
    let with_row: HashSet<Uuid> = rows.iter().map(|(row, _)| row.id).collect();
    let strays: Vec<&Listed> = listed.iter().filter(|l| l.agent.is_some_and(|agent| !with_row.contains(&agent))).collect();
    reap(replica, link, &strays, orphans).await
}

/// Looks at one agent that nobody is at, and finishes it if it has ended.
fn judge_later(replica: &Arc<Replica>, link: &Arc<Link>, row: Claim) {
    let (shared, link) = (Arc::clone(replica), Arc::clone(link));
    replica.spawn(async move {
        let seen = match link.look(&row).await {
            Ok(seen) => seen,
            // Not gone: not known.
            Err(_) => {
                shared.metrics.docker_errors.inc();
                return;
            }
        };
        // Only an end is ours to act on: every other step needs the lease.
        if let Action::End(facts, container) = reconcile(&row, &seen)
            && let Err(error) = finish::end(&shared, &link, &row, facts, container.as_deref()).await
        {
            tracing::warn!(agent.id = %row.id, %error, "a finish was cut short; its lease brings it back");
        }
    });
}

/// Removes orphans: our name, our labels, an agent that is known and has no live row, once a grace is over. Anything else with our
/// label is reported, and ended only when it is older than the longest life that its label allows.
async fn reap(replica: &Arc<Replica>, link: &Arc<Link>, strays: &[&Listed], orphans: &mut Orphans) -> Result<(), Trouble> {
    let there: HashSet<&str> = strays.iter().map(|stray| stray.id.as_str()).collect();
    orphans.since.retain(|id, _| there.contains(id.as_str()));
    orphans.reported.retain(|id| there.contains(id.as_str()));
    if strays.is_empty() || failpoint::broken("no_reaper") {
        return Ok(());
    }
    let now = Instant::now();
    let agents: Vec<Uuid> = strays.iter().filter_map(|stray| stray.agent).collect();
    // Asked after the list, of a database that is certainly ours, or not answered at all.
    let known = replica.sql.known(&agents).await?;
    for stray in strays {
        let Some(agent) = stray.agent else { continue };
        let Some(Known { known, live, over_for }) = known.get(&agent) else { continue };
        if *live && !failpoint::broken("hasty_reaper") {
            orphans.since.remove(&stray.id);
            continue;
        }
        let since = *orphans.since.entry(stray.id.clone()).or_insert(now);
        let ours = stray.of_agent().is_some();
        // Counted from the end of its agent, whoever keeps the host meanwhile, else here from when we first saw it: never too early.
        // Without a label, for ever.
        let allowed = match over_for {
            Some(over_for) if ours => ORPHAN_GRACE.saturating_sub(*over_for),
            _ if *known && ours => ORPHAN_GRACE,
            _ => stray.longest_life().unwrap_or(Duration::MAX),
        };
        let hasty = if *live { failpoint::broken("hasty_reaper") } else { !ours && failpoint::broken("foreign_reaper") };
        if now.duration_since(since) < allowed && !hasty {
            if !(*known && ours) && orphans.reported.insert(stray.id.clone()) {
                tracing::warn!(container = stray.id, agent.id = %agent, "a container with our label that we do not know; left until its longest life is over");
            }
            continue;
        }
        remove_later(replica, link, agent, stray.id.clone(), &orphans.going);
    }
    Ok(())
}

/// Removes an orphan, unless that is under way: one that hangs must not hold up the keeper.
fn remove_later(replica: &Arc<Replica>, link: &Arc<Link>, agent: Uuid, container: String, going: &Arc<Mutex<HashSet<String>>>) {
    if !locked(going).insert(container.clone()) {
        return;
    }
    tracing::warn!(container, agent.id = %agent, "removing an orphan");
    let (shared, link, going) = (Arc::clone(replica), Arc::clone(link), Arc::clone(going));
    replica.spawn(async move {
        let _lane = link.orphans.acquire().await;
        if process::end_all(&container).await {
            match link.remove(&container).await {
                Ok(()) => {
                    shared.metrics.orphans.inc();
                }
                Err(error) => tracing::warn!(container, %error, "an orphan cannot be removed; trying again"),
            }
        }
        locked(&going).remove(&container);
    });
}

fn locked(set: &Mutex<HashSet<String>>) -> MutexGuard<'_, HashSet<String>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}
