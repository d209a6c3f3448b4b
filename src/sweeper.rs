//! Ends agents: claims what is due, at its exact instant, and takes each step of a stop.
//!
//! The claim itself decides that a deadline has passed and commits the intent; the step that follows tells Docker. Signal, grace and
//! SIGKILL are three claims or two, and nobody waits in between. Must not know how an agent started, nor conclude anything from time.
//!
//! On time, without a herd: a host's keeper sleeps to that host's exact next `due_at`; everybody else comes 250 ms later.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::docker::{DockerError, Signal, Signalled};
use crate::error::Error;
use crate::failpoint;
use crate::finish;
use crate::launcher;
use crate::reconcile::{Action, reconcile};
use crate::replica::{Killed, LAG, Link, Replica, STOP_LEASE};
use crate::sql::Now;
use crate::sql::work::{Claim, Facts};

/// How long a keeper keeps a host without renewing, at least; four ticks, if those are longer.
pub const KEEPER_LEASE: Duration = Duration::from_secs(10);
/// With working wake-ups the tick only has to renew leases and catch what a wake-up missed.
const RELAXED: f64 = 2.5;
/// The most that one claim takes from a host; a literal in its statement.
const BATCH: usize = 100;
/// How long a killed container may take to be seen dead, before it is looked at anew.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long a look may take before SIGKILL is due without one.
const LAST_LOOK: Duration = Duration::from_secs(1);
/// After a claim that found its due rows in somebody else's hands.
const LOCKED_PAUSE: Duration = Duration::from_millis(50);
/// How long work that began before the clock was set back may still write what it then was.
const SET_BACK: Duration = Duration::from_secs(30);
/// The longest such pause: a row that a user holds must not delay the rows behind it by more.
const LOCKED_PAUSE_MAX: Duration = Duration::from_millis(250);

/// What a replica knows of when it is needed; nothing of it decides an end.
pub struct Sweeper {
    replica: Arc<Replica>,
    /// When each host is needed next.
    due: HashMap<i32, Instant>,
    next_tick: Instant,
    low: Option<SystemTime>,
    /// When the next look below the low watermark is allowed, and how long the last one took.
    full_at: Instant,
    locked_pause: Duration,
    /// Until when to look for what the database's clock was set back from.
    recall_until: Instant,
    /// The database did not answer the last time.
    away: bool,
}

/// Sweeps until told to stop.
pub async fn run(replica: Arc<Replica>) {
    let mut sweeper = Sweeper::new(replica);
    while !sweeper.replica.stop.is_cancelled() {
        let wait = match sweeper.pass().await {
            Ok(()) => {
                sweeper.away = false;
                sweeper.replica.database_answered(true);
                sweeper.wait()
            }
            Err(error) => {
                if !sweeper.away {
                    tracing::warn!(%error, "sweeping failed; trying again");
                }
                sweeper.away = true;
                sweeper.replica.database_answered(false);
                sweeper.replica.metrics.database_errors.inc();
                sweeper.replica.wakes.look_at_everything();
                sweeper.next_tick = Instant::now();
                Duration::from_millis(200)
            }
        };
        // An answer that failed is not asked again at once, whoever wakes us.
        if sweeper.away {
            tokio::time::sleep(wait).await;
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = sweeper.replica.wakes.sweeper.notified() => {}
            () = sweeper.replica.stop.cancelled() => {}
        }
    }
}

impl Sweeper {
    fn new(replica: Arc<Replica>) -> Self {
        let now = Instant::now();
        Self {
            replica,
            due: HashMap::new(),
            next_tick: now,
            low: None,
            full_at: now,
            locked_pause: LOCKED_PAUSE,
            recall_until: now,
            away: false,
        }
    }

    /// How long nobody needs us, unless something wakes us.
    fn wait(&self) -> Duration {
        let now = Instant::now();
        let links = self.replica.reachable();
        let soonest = links.iter().filter_map(|link| Some(*self.due.get(&link.id)? + lag(link)));
        let soonest = soonest.chain(self.replica.wakes.next_alarm()).chain([self.next_tick]).min().unwrap_or(now);
        soonest.saturating_duration_since(now)
    }

    async fn pass(&mut self) -> Result<(), Error> {
        let full = self.replica.wakes.take_full();
        // Something may be due that we do not know of: whoever keeps the host looks now, the others after their lag.
        let told = self.replica.wakes.take_due();
        let rang = self.replica.wakes.ring(Instant::now());
        if full || Instant::now() >= self.next_tick {
            self.tick(full).await?;
        }
        let now = Instant::now();
        let mut hosts = Vec::new();
        for link in self.replica.reachable() {
            // An alarm is our own knowledge of an instant that its keeper may not have.
            let lag = if rang || full { Duration::ZERO } else { lag(&link) };
            let due = self.due.get(&link.id).is_some_and(|due| *due + lag <= now);
            if full || told || rang || due {
                hosts.push((link.id, lag.as_secs_f64()));
            }
        }
        if hosts.is_empty() {
            return Ok(());
        }
        let low = if full { None } else { self.low };
        let asked = Instant::now();
        let claims = &self.replica.claims;
        let claimed = claims.claim_due(&hosts, self.replica.id(), low, self.replica.start_lease, STOP_LEASE, database_time()).await?;
        let count = claimed.len();
        if count > 0 {
            failpoint::hit("sweep.claimed");
        }
        for row in claimed {
            take(&self.replica, row, asked);
        }
        self.look_ahead(&hosts, low, count, full, asked).await
    }

    /// Says that we are here, and learns when we are needed.
    async fn tick(&mut self, full: bool) -> Result<(), Error> {
        let replica = Arc::clone(&self.replica);
        let links = replica.reachable();
        let hosts: Vec<i32> = links.iter().map(|link| link.id).collect();
        let listening = replica.listening.load(Ordering::Acquire);
        let started = Instant::now();
        let look_below = full || started >= self.full_at;
        let low = if look_below { None } else { self.low };
        let mut pace = replica.poll.mul_f64(if listening { RELAXED } else { 1.0 });
        if failpoint::broken("no_polling") {
            pace = Duration::from_secs(3600);
        }
        let ticks = replica.claims.tick(replica.id(), &hosts, KEEPER_LEASE.max(pace * 4), listening, low, None).await?;
        if look_below {
            // What a held snapshot makes slow is asked for seldom.
            self.full_at = started + (started.elapsed() * 20).max(Duration::from_secs(5));
        }
        self.next_tick = started + pace;
        // It walks all that live: only once the clock was seen to go back, or where nobody was here to see it.
        if ticks.iter().any(|tick| self.low.is_none_or(|before| tick.low < before)) {
            self.recall_until = started + SET_BACK;
        }
        if started < self.recall_until && ticks.iter().any(|tick| tick.due_in.is_some()) && recall(&replica).await? > 0 {
            self.next_tick = started;
        }
        let now = Instant::now();
        for tick in &ticks {
            if !tick.alive {
                let id = replica.claims.register_replica(&replica_name(), env!("CARGO_PKG_VERSION"), None).await?;
                replica.renumber(id);
                self.next_tick = now;
                return Ok(());
            }
            self.low = Some(tick.low);
            if tick.host == 0 {
                if tick.due_in.is_some_and(|due| due <= 0.0) {
                    replica.wakes.launcher.notify_one();
                }
                if tick.impatient_in.is_some_and(|due| due <= 0.0) && replica.claims.expire_waiting(None).await? > 0 {
                    self.next_tick = now;
                } else if let Some(due) = tick.impatient_in.filter(|due| *due < replica.poll.as_secs_f64() * RELAXED) {
                    self.next_tick = self.next_tick.min(now + Duration::from_secs_f64(due.max(0.01)));
                }
                continue;
            }
            if let Some(link) = links.iter().find(|link| link.id == tick.host) {
                link.keeps.store(tick.keeps, Ordering::Release);
                // Only a look below the watermark sees that there is nothing at all.
                if look_below || tick.due_in.is_some() {
                    link.idle.store(tick.due_in.is_none(), Ordering::Release);
                }
            }
            self.learn(tick.host, tick.due_in, now);
            // Overdue from before the watermark: only a look below it finds that.
            if look_below && tick.due_in.is_some_and(|due| due < -9.0) {
                replica.wakes.look_at_everything();
            }
        }
        Ok(())
    }

    fn learn(&mut self, host: i32, due_in: Option<f64>, now: Instant) {
        match due_in {
            Some(seconds) => self.due.insert(host, now + Duration::from_secs_f64(seconds.clamp(0.0, 3600.0))),
            None => self.due.remove(&host),
        };
    }

    /// After a claim: when is each of these hosts needed next?
    async fn look_ahead(
        &mut self,
        hosts: &[(i32, f64)],
        low: Option<SystemTime>,
        claimed: usize,
        full: bool,
        asked: Instant,
    ) -> Result<(), Error> {
        if claimed >= BATCH {
            // There is more: come back at once.
            if full {
                self.replica.wakes.look_at_everything();
            }
            for (host, _) in hosts {
                self.due.insert(*host, Instant::now());
            }
            self.replica.wakes.sweeper.notify_one();
            return Ok(());
        }
        let ids: Vec<i32> = hosts.iter().map(|(host, _)| *host).collect();
        let next = self.replica.claims.next_due(&ids, low, None).await?;
        let now = Instant::now();
        let lagging: HashMap<i32, f64> = hosts.iter().copied().collect();
        let mut locked = false;
        for host in ids {
            let due_in = next.iter().find(|(id, _)| *id == host).map(|(_, due)| *due);
            self.learn(host, due_in, now);
            // What has come due since the claim was asked for is ours to claim at once.
            let since = lagging.get(&host).copied().unwrap_or(0.0) + asked.elapsed().as_secs_f64();
            if due_in.is_some_and(|due| due <= -since) {
                // Due then, and we did not get it: its row is in other hands.
                locked = true;
                self.due.insert(host, now + self.locked_pause);
            }
        }
        self.locked_pause = if locked { (self.locked_pause * 2).min(LOCKED_PAUSE_MAX) } else { LOCKED_PAUSE };
        Ok(())
    }
}

fn lag(link: &Link) -> Duration {
    if link.keeps.load(Ordering::Acquire) { Duration::ZERO } else { LAG }
}

/// What this replica is called, for people.
pub fn replica_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "replica".to_owned())
}

/// The instant that decides: none of ours.
fn database_time() -> Now {
    #[expect(clippy::disallowed_methods, reason = "a defect on purpose")]
    failpoint::broken("local_clock").then(SystemTime::now)
}

/// Brings near what the database's clock was set back from. Answers how many rows that were.
pub async fn recall(replica: &Replica) -> Result<i64, Error> {
    let recalled = replica.claims.recall(replica.start_lease, STOP_LEASE, None).await?;
    if recalled > 0 {
        tracing::warn!(recalled, "the database's clock was set back; what waited for an instant that is far now is done in time");
        replica.wakes.look_at_everything();
    }
    Ok(recalled)
}

/// One claim of everything that is due, for a pass without loops. Answers how many rows it took.
pub async fn claim_once(replica: &Arc<Replica>) -> Result<usize, Error> {
    let hosts: Vec<(i32, f64)> = replica.reachable().iter().map(|link| (link.id, 0.0)).collect();
    let asked = Instant::now();
    let claimed = replica.claims.claim_due(&hosts, replica.id(), None, replica.start_lease, STOP_LEASE, None).await?;
    let count = claimed.len();
    for row in claimed {
        take(replica, row, asked);
    }
    Ok(count)
}

/// Takes a claimed row to its next step, in the lane that it belongs to.
fn take(replica: &Arc<Replica>, row: Claim, asked: Instant) {
    let Some(link) = replica.link(row.host) else { return };
    if row.state == "pending" && !row.observed {
        launcher::begin(replica, &link, row, None, asked, None);
        return;
    }
    let shared = Arc::clone(replica);
    replica.spawn(async move {
        let id = row.id;
        if let Err(error) = step(&shared, &link, row).await {
            shared.metrics.database_errors.inc();
            tracing::warn!(agent.id = %id, %error, "a stop was cut short; its lease brings it back");
        }
    });
}

/// The next step of a stop, with the row in our hands.
async fn step(replica: &Arc<Replica>, link: &Link, mut row: Claim) -> Result<(), Error> {
    static ONE_LANE: Semaphore = Semaphore::const_new(1);
    let _lane = if failpoint::broken("one_lane") { ONE_LANE.acquire().await.ok() } else { None };
    // The intent is committed and the container is known to be ours: kill first, look afterwards.
    if let (true, false, Some(container)) = (row.killed, row.observed, row.container_id.clone()) {
        return kill(replica, link, &row, &container).await;
    }
    // Its process lives, as the kernel shows: so it is to be signalled, and the daemon need not be asked first.
    if let (true, Some(container)) = (row.state == "terminating" && !row.observed, row.container_id.clone())
        && link.inits.sees_alive(&container)
    {
        failpoint::hit("stop.looked");
        return stop(replica, link, row, container).await;
    }
    let overdue = row.grace_over && !row.signalled && !row.observed;
    let look = tokio::time::timeout(if overdue { LAST_LOOK } else { Duration::MAX }, link.look(&row)).await;
    let seen = match look.unwrap_or_else(|_| Err(DockerError::Unavailable("no look at it in time".to_owned()))) {
        Ok(seen) => seen,
        Err(error) => match row.container_id.clone() {
            // It may be its own inspect that hangs. That puts off the signal, never SIGKILL. Beside a daemon that is away, it is not known
            // what a look would show.
            Some(container) if overdue && link.alive().await => {
                if !replica.sql.killing(row.id, row.epoch, STOP_LEASE, None).await? {
                    replica.lease_lost(row.id, "kill");
                    return Ok(());
                }
                row.killed = true;
                tracing::warn!(agent.id = %row.id, host = row.host, %error, "killed without a look at it");
                return kill(replica, link, &row, &container).await;
            }
            _ => return finish::try_again(replica, &row, &error).await,
        },
    };
    failpoint::hit("stop.looked");
    match reconcile(&row, &seen) {
        Action::Signal(container) => stop(replica, link, row, container).await,
        Action::Kill(container) => kill(replica, link, &row, &container).await,
        Action::End(facts, container) => finish::end(replica, link, &row, facts, container.as_deref()).await,
        Action::Finish(container) => finish::remove_and_record(replica, link, &row, container.as_deref()).await,
        Action::Rest => replica.sql.rest(row.id, row.epoch).await.map(drop),
        // Steps of a start, for a row that is not pending: reconcile never asks for them.
        Action::Create | Action::Record(_) | Action::Start(_) | Action::Running(_) | Action::RanAlready(_) => Ok(()),
    }
}

/// The intent, then the signal that it says.
async fn stop(replica: &Arc<Replica>, link: &Link, mut row: Claim, container: String) -> Result<(), Error> {
    if failpoint::broken("signal_before_intent") && link.docker.signal(&container, Signal::Term).await.is_ok() {
        failpoint::hit("stop.signalled");
    }
    let Some(at_once) = replica.sql.signalling(row.id, row.epoch, STOP_LEASE, None).await? else {
        replica.lease_lost(row.id, "signal");
        return Ok(());
    };
    failpoint::hit("stop.signalling");
    let at_once = at_once || failpoint::broken("no_grace");
    (row.signalled, row.killed) = (true, at_once);
    if at_once { kill(replica, link, &row, &container).await } else { signal(replica, link, &row, &container).await }
}

async fn signal(replica: &Arc<Replica>, link: &Link, row: &Claim, container: &str) -> Result<(), Error> {
    match link.answered(link.docker.signal(container, Signal::Term)).await {
        // Also when it was not running any more: its exit is found by its keeper, at the latest when the grace is over.
        Ok(Signalled::Sent | Signalled::NotRunning | Signalled::Gone) => {}
        // It may not have arrived: sent again, until the grace is over.
        Err(error) => return finish::try_again(replica, row, &error).await,
    }
    failpoint::hit("stop.signalled");
    if failpoint::broken("end_before_death") {
        let facts = Facts { state: "expired", reason: None, exit_code: None, oom_killed: None, error: None, dead: None, tail: None };
        return finish::end(replica, link, row, facts, None).await;
    }
    replica.metrics.signals.inc();
    tracing::info!(agent.id = %row.id, host = row.host, grace_s = row.grace.as_secs_f64(), "stop signal sent");
    if let Some(due_in) = replica.sql.signalled(row.id, row.epoch, None).await? {
        replica.wakes.arm(due_in);
    }
    Ok(())
}

async fn kill(replica: &Arc<Replica>, link: &Link, row: &Claim, container: &str) -> Result<(), Error> {
    failpoint::hit("stop.before_kill");
    replica.metrics.signals.inc();
    // Seen dead while we hold the lease, or looked at again when it is over.
    let killed = replica.hold(row, async {
        let by = link.kill(container).await?;
        let answered = Instant::now();
        replica.metrics.killed(by);
        failpoint::hit("stop.killed");
        // The daemon answers its own SIGKILL when it has seen the death, as a rule; of ours it hears a moment later.
        if by == Killed::ByDaemon {
            let (seen, dead) = (link.look(row).await?, Instant::now());
            if !seen.is_alive() {
                return Ok(Some((seen, dead)));
            }
        }
        if !link.answered(link.docker.wait_stopped(container, KILL_PATIENCE)).await? {
            return Ok(None);
        }
        let dead = match by {
            Killed::Directly => answered,
            Killed::ByDaemon => Instant::now(),
        };
        Ok(Some((link.look(row).await?, dead)))
    });
    let (seen, dead) = match killed.await? {
        Some(Ok(Some(seen))) => seen,
        Some(Ok(None)) | None => return Ok(()),
        Some(Err(error)) => return finish::try_again(replica, row, &error).await,
    };
    match reconcile(row, &seen) {
        Action::End(facts, container) => {
            let facts = Facts { dead: Some(dead).filter(|_| row.started), ..facts };
            finish::end(replica, link, row, facts, container.as_deref()).await
        }
        _ => Ok(()),
    }
}
