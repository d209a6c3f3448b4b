//! This process, as its loops see it: its number, its questions to Postgres, the hosts within reach, its lanes. Decides nothing.
//!
//! Guarantees: a task in a lane that panics breaks the replica instead of vanishing; whatever was shared here was shared as a
//! wake-up or is a fact about this process, never a fact about an agent.

use std::collections::HashSet;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::docker::{self, Docker, DockerError, Removed, Signal, container_name};
use crate::error::Error;
use crate::inits::Inits;
use crate::metrics::Metrics;
use crate::process;
use crate::reconcile::Seen;
use crate::sql::Sql;
use crate::sql::work::Claim;
use crate::wake::Wakes;

/// How long a stop is leased. Short, for repeating a signal is harmless and a dead replica must not delay an end.
pub const STOP_LEASE: Duration = Duration::from_secs(2);
/// How often a lease is held on to while Docker takes its time. A daemon that is busy answers within that; one that is out of our reach
/// may be within another replica's.
const HOLDS: u32 = 3;
/// How long a removal may take: less than a lease is held on to, so that the row can say what is wrong.
const HANGS: Duration = Duration::from_millis(3500);
/// How far behind a host's keeper everybody else looks.
pub const LAG: Duration = Duration::from_millis(250);
/// How long a call to a daemon may say nothing before the daemon is asked whether it is there at all, and how long that may take: together
/// less than the lease of a stop, so that one which is within another replica's reach only is left to that replica at once.
const STILL: Duration = Duration::from_millis(500);
const PULSE: Duration = Duration::from_secs(1);
/// How long the daemon may take to name a container's init before it is told to end it itself.
const NAMED: Duration = Duration::from_millis(250);
/// How long a daemon that has said who it is is believed by whoever creates a container there. One that is started takes longer.
const BELIEVED: Duration = Duration::from_millis(500);
/// Clean-ups (inspect, log, remove) at once on one host. Beyond the daemon's own parallelism they only get in the way of kills.
const CLEANUPS: usize = 8;

/// One replica.
pub struct Replica {
    /// The questions of the work in hand.
    pub sql: Sql,
    /// The questions of claiming, over connections of their own: work that waits for a locked row must not hold up the next claim.
    pub claims: Sql,
    /// Wake-ups.
    pub wakes: Wakes,
    /// What this replica counts.
    pub metrics: Metrics,
    /// The Docker endpoints that it serves.
    pub hosts: Vec<Arc<Host>>,
    /// How long a start is leased.
    pub start_lease: Duration,
    /// The longest time between two looks when no wake-up reaches us.
    pub poll: Duration,
    /// Set when claims are to stop.
    pub stop: CancellationToken,
    /// Set when leases are given back: nothing more may be started on one.
    pub leaving: CancellationToken,
    /// Set when a task broke.
    pub broken: CancellationToken,
    /// Notifications reach us.
    pub listening: AtomicBool,
    id: AtomicI32,
    /// Since when the sweeper fails at the database.
    away_since: Mutex<Option<Instant>>,
    lanes: TaskTracker,
}

impl Replica {
    /// A replica that has a number already.
    #[must_use]
    pub fn new(sql: Sql, claims: Sql, id: i32, hosts: Vec<Arc<Host>>, start_lease: Duration, poll: Duration) -> Self {
        Self {
            sql,
            claims,
            wakes: Wakes::default(),
            metrics: Metrics::default(),
            hosts,
            start_lease,
            poll,
            stop: CancellationToken::new(),
            leaving: CancellationToken::new(),
            broken: CancellationToken::new(),
            listening: AtomicBool::new(false),
            id: AtomicI32::new(id),
            away_since: Mutex::default(),
            lanes: TaskTracker::new(),
        }
    }

    /// Our number in `sundown.replica`.
    pub fn id(&self) -> i32 {
        self.id.load(Ordering::Acquire)
    }

    /// We were forgotten while the database was away, and have a new number.
    pub fn renumber(&self, id: i32) {
        self.id.store(id, Ordering::Release);
    }

    /// The sweeper did, or could not do, what it came for. Whatever it was that failed, nobody ends agents meanwhile: a database that is
    /// read-only, or not ours, is as good as none.
    pub fn database_answered(&self, answered: bool) {
        let mut since = self.away_since.lock().unwrap_or_else(PoisonError::into_inner);
        if answered {
            *since = None;
        } else {
            since.get_or_insert_with(Instant::now);
        }
    }

    /// How long the database has been away; `None`: it is not, as far as anybody has tried.
    pub fn database_away(&self) -> Option<Duration> {
        self.away_since.lock().unwrap_or_else(PoisonError::into_inner).map(|since| since.elapsed())
    }

    /// The hosts whose daemons answer.
    pub fn reachable(&self) -> Vec<Arc<Link>> {
        let mut links: Vec<Arc<Link>> = self.hosts.iter().filter_map(|host| host.link()).collect();
        // Two endpoints may lead to one daemon.
        links.sort_by_key(|link| link.id);
        links.dedup_by_key(|link| link.id);
        links
    }

    /// The link to a host, if its daemon answers.
    pub fn link(&self, host: i32) -> Option<Arc<Link>> {
        self.hosts.iter().filter_map(|h| h.link()).find(|link| link.id == host)
    }

    /// A fenced write changed nothing: somebody else is at it, and what we were doing is dropped.
    pub fn lease_lost(&self, agent: Uuid, step: &str) {
        self.metrics.leases_lost.inc();
        tracing::debug!(agent.id = %agent, step, "the lease was lost; dropped");
    }

    /// Runs a piece of work beside the loops. A panic in it breaks the replica: a lane that silently lost work must not live on.
    pub fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let broken = self.broken.clone();
        let task = tokio::spawn(work);
        self.lanes.spawn(async move {
            if task.await.is_err_and(|error| error.is_panic()) {
                broken.cancel();
            }
        });
    }

    /// Waits for a call to Docker with a lease in hand, holding on to it while the daemon is busy: others would only ask the same
    /// daemon for the same. `None`: the lease was lost meanwhile, or is held on to no more; drop the work, the row comes due again. Whoever
    /// waited on would be one more for each claim of a row whose call hangs. A dead replica holds on to nothing.
    ///
    /// # Errors
    /// When the database does not answer; the lease then runs out.
    pub async fn hold<T>(&self, row: &Claim, call: impl Future<Output = T>) -> Result<Option<T>, Error> {
        let mut call = std::pin::pin!(call);
        for _ in 0..HOLDS {
            if let Ok(done) = tokio::time::timeout(STOP_LEASE / 2, &mut call).await {
                return Ok(Some(done));
            }
            if !self.sql.renew(row, self.id(), STOP_LEASE, None).await? {
                self.lease_lost(row.id, "renew");
                return Ok(None);
            }
        }
        Ok(tokio::time::timeout(STOP_LEASE / 2, call).await.ok())
    }

    /// Waits until the work in hand is done, at most so long. False: some of it is not.
    pub async fn drained(&self, patience: Duration) -> bool {
        self.lanes.close();
        let done = tokio::time::timeout(patience, self.lanes.wait()).await.is_ok();
        self.lanes.reopen();
        done
    }
}

/// A Docker endpoint that this replica serves.
#[derive(Debug)]
pub struct Host {
    /// As configured.
    pub endpoint: String,
    /// How many agents it may carry; `None`: as many as it does.
    pub capacity: Option<i32>,
    /// How many starts at once.
    pub starts: usize,
    /// SIGKILL goes to the processes of its containers without the daemon, where they are within reach.
    pub fast_kill: bool,
    link: RwLock<Option<Arc<Link>>>,
}

/// Who sent SIGKILL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Killed {
    /// We did, to the container's init, which is dead.
    Directly,
    /// The daemon did, or says that it was not needed any more.
    ByDaemon,
}

/// A host whose daemon answers.
#[derive(Debug)]
pub struct Link {
    /// Its number in `sundown.host`.
    pub id: i32,
    /// Its daemon.
    pub docker: Docker,
    /// Starts: few, for two saturate two cores.
    pub starts: Arc<Semaphore>,
    /// Logs that are read, in a lane of their own.
    pub tails: Semaphore,
    /// Removals, in a lane of their own so that they never hold up a kill.
    removals: Semaphore,
    /// Removals that failed before, one at a time: those that hang hold up nobody else's.
    stubborn: Semaphore,
    /// Orphans that are removed, in a lane of their own: those that hang hold up nobody's end.
    pub orphans: Semaphore,
    /// Containers whose removal was begun and did not succeed.
    begun: Mutex<HashSet<String>>,
    /// Pids of its containers' inits.
    pub inits: Inits,
    /// Who its volume says that it is.
    pub uuid: Uuid,
    /// Cancelled once the daemon does not answer at all, or is another one: nothing more is claimed for it here, until it is connected
    /// anew.
    pub silent: CancellationToken,
    /// When it last said who it is.
    proved: Mutex<Option<Instant>>,
    /// When it last showed that it is there; whoever wants to know asks for all.
    pulse: tokio::sync::Mutex<Option<Instant>>,
    /// We are its keeper, as of the last tick.
    pub keeps: AtomicBool,
    /// Nothing lives there, as of the last tick.
    pub idle: AtomicBool,
}

impl Link {
    /// Waits for a call for as long as the daemon is there: one that hangs may be its own container's trouble, and is waited for; beside a
    /// daemon that does not answer at all, it is given up.
    ///
    /// # Errors
    /// The call's own, and when the daemon is silent.
    pub async fn answered<T>(&self, call: impl Future<Output = Result<T, DockerError>>) -> Result<T, DockerError> {
        let mut call = std::pin::pin!(call);
        loop {
            tokio::select! {
                done = &mut call => return done,
                () = tokio::time::sleep(STILL) => {}
            }
            tokio::select! {
                done = &mut call => return done,
                alive = self.alive() => if !alive {
                    self.silent.cancel();
                    return Err(DockerError::Unavailable("the daemon does not answer at all".to_owned()));
                }
            }
        }
    }

    /// Whether the daemon that was connected to answers at all.
    pub async fn alive(&self) -> bool {
        let mut pulse = self.pulse.lock().await;
        if self.silent.is_cancelled() {
            return false;
        }
        if pulse.is_some_and(|at| at.elapsed() < STILL) {
            return true;
        }
        let answered = tokio::time::timeout(PULSE, self.docker.ping()).await.is_ok_and(|pong| pong.is_ok());
        *pulse = answered.then(Instant::now);
        answered
    }

    /// A place in the lane that the removal of a container belongs to. Stubborn is one whose removal failed here, however long it was
    /// waited for before that.
    pub async fn turn_to_remove(&self, container: &str) -> Option<SemaphorePermit<'_>> {
        let stubborn = self.begun().contains(container);
        let lane = if stubborn { &self.stubborn } else { &self.removals };
        lane.acquire().await.ok()
    }

    /// Removes a container. Its caller has a place in its lane.
    ///
    /// # Errors
    /// The call's own, and when it hangs. The daemon may go on with it: whoever looks next sees.
    pub async fn remove(&self, container: &str) -> Result<(), DockerError> {
        self.begun().insert(container.to_owned());
        let removed = tokio::time::timeout(HANGS, self.answered(self.docker.remove(container))).await;
        let removed = removed.unwrap_or_else(|_| Err(DockerError::Unavailable("its removal does not end".to_owned())))?;
        if removed == Removed::Gone {
            self.still_itself().await?;
        }
        self.begun().remove(container);
        self.inits.forget(container);
        Ok(())
    }

    /// What is not there any more was removed by somebody else.
    pub fn forget_removed(&self, there: &HashSet<&str>) {
        self.begun().retain(|container| there.contains(container.as_str()));
        self.inits.keep(there);
    }

    /// Sends SIGKILL: to the container's init itself where that is within reach, else by the daemon. Its intent is committed.
    ///
    /// # Errors
    /// The daemon's, where it was asked.
    pub async fn kill(&self, container: &str) -> Result<Killed, DockerError> {
        if let Some(init) = self.init_of(container).await
            && process::end_init(init, container).await
        {
            return Ok(Killed::Directly);
        }
        self.answered(self.docker.signal(container, Signal::Kill)).await?;
        Ok(Killed::ByDaemon)
    }

    /// The pid that a container's init had when it was last looked at; of one that was not, as it is now.
    async fn init_of(&self, container: &str) -> Option<u32> {
        if let Some(init) = self.inits.pid(container) {
            return Some(init);
        }
        if !self.inits.are_within_reach() {
            return None;
        }
        tokio::time::timeout(NAMED, self.docker.inspect(container)).await.ok()?.ok()??.pid
    }

    /// Looks at a container that has just been started, so that at its deadline the daemon need not be asked: where that is of use.
    pub async fn learn(&self, row: &Claim) {
        if let (true, Some(container)) = (self.inits.are_within_reach(), &row.container_id)
            && let Ok(seen) = self.look(row).await
        {
            self.inits.looked_at_first(container, seen.is_alive());
        }
    }

    fn begun(&self) -> MutexGuard<'_, HashSet<String>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether who answers now is who was connected to. An address proves nothing: another daemon, to which every agent of ours is gone, may
    /// answer there by now. One that has lost the volume which says who it is looks the same; both are connected to anew.
    ///
    /// # Errors
    /// When it is not, or does not say.
    pub async fn still_itself(&self) -> Result<(), DockerError> {
        if self.answered(self.docker.identity()).await? == Some(self.uuid) {
            *self.proved() = Some(Instant::now());
            return Ok(());
        }
        self.silent.cancel();
        Err(DockerError::Unavailable("it is another daemon, or has lost its volume".to_owned()))
    }

    /// As [`Link::still_itself`], and believes it for half a second. For what is asked of it by connections that lead to it alone: between them and
    /// the daemon there may be somebody who passes on each call as he likes, but no daemon gives way to another as quickly as that.
    ///
    /// # Errors
    /// As there.
    pub async fn lately_itself(&self) -> Result<(), DockerError> {
        let lately = self.proved().is_some_and(|at| at.elapsed() < BELIEVED);
        if lately { Ok(()) } else { self.still_itself().await }
    }

    fn proved(&self) -> MutexGuard<'_, Option<Instant>> {
        self.proved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What Docker shows of an agent now: under its recorded container, or under the name that its container would have.
    ///
    /// # Errors
    /// When the daemon cannot tell, or is not the one that would know: neither is "gone".
    pub async fn look(&self, row: &Claim) -> Result<Seen, DockerError> {
        let name = container_name(row.id);
        let seen = match self.answered(self.docker.inspect(row.container_id.as_ref().unwrap_or(&name))).await? {
            // Recorded by us: it stays ours when somebody gives it another name.
            Some(container) if row.container_id.is_some() && container.agent == Some(row.id) => Seen::Ours(Box::new(container)),
            container => Seen::of(container),
        };
        if let Seen::Ours(container) = &seen {
            self.inits.note(container);
        }
        if !matches!(seen, Seen::Ours(_)) {
            self.still_itself().await?;
        }
        Ok(seen)
    }
}

impl Host {
    /// An endpoint that has not been reached yet.
    #[must_use]
    pub fn new(endpoint: String, capacity: Option<i32>, starts: usize) -> Self {
        Self { endpoint, capacity, starts, fast_kill: true, link: RwLock::new(None) }
    }

    /// The link, if its daemon answers.
    pub fn link(&self) -> Option<Arc<Link>> {
        self.link.read().unwrap_or_else(PoisonError::into_inner).clone().filter(|link| !link.silent.is_cancelled())
    }

    /// Its daemon answers.
    pub fn connected(&self, id: i32, uuid: Uuid, docker: Docker) -> Arc<Link> {
        let link = Arc::new(Link {
            id,
            docker,
            starts: Arc::new(Semaphore::new(self.starts)),
            tails: Semaphore::new(CLEANUPS),
            removals: Semaphore::new(CLEANUPS),
            stubborn: Semaphore::new(1),
            orphans: Semaphore::new(CLEANUPS),
            begun: Mutex::default(),
            inits: Inits::new(self.fast_kill && docker::socket(&self.endpoint).is_some()),
            uuid,
            silent: CancellationToken::new(),
            proved: Mutex::default(),
            pulse: tokio::sync::Mutex::default(),
            keeps: AtomicBool::new(false),
            idle: AtomicBool::new(false),
        });
        *self.link.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&link));
        link
    }

    /// Its daemon does not answer.
    pub fn lost(&self) {
        *self.link.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
