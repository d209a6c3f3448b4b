//! One whole pass without a server: for cron, a function, a CronJob. The same claims, the same leases, the same steps as the loops;
//! any number of sweeps and replicas may run side by side.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::config::Sweep;
use crate::error::Error;
use crate::keeper::{self, Orphans};
use crate::replica::{Link, Replica};
use crate::serve::{Fatal, hosts, installation};
use crate::{launcher, sweeper, upkeep};

/// The longest that one round waits for what it began.
const ROUND: Duration = Duration::from_secs(60);
/// Between rounds of `--wait` at most.
const PACE: Duration = Duration::from_secs(1);

/// What a sweep did, and what is left.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Agents placed on a host.
    pub placed: u64,
    /// Containers seen running.
    pub started: u64,
    /// Stop signals and SIGKILLs sent.
    pub signals: u64,
    /// Outcomes written.
    pub ended: u64,
    /// Orphaned containers removed.
    pub orphans: u64,
    /// Agents that wait for a place, or for their time.
    pub waiting: i64,
    /// Agents that run.
    pub running: i64,
    /// Agents that are being stopped.
    pub terminating: i64,
}

/// Sweeps once, or with `--wait` until nothing is left.
///
/// # Errors
/// When the database or a host cannot be reached.
pub async fn run(config: Sweep) -> Result<Counts, Fatal> {
    let Some((address, _)) = config.database.addresses().map_err(Fatal::Usage)? else {
        return Err(Fatal::Usage("sweep needs a database: set SUNDOWN_DATABASE_URL".to_owned()));
    };
    let sql = installation(&address, 4, Duration::from_secs(5)).await?;
    let id = sql.register_replica(&format!("{} (sweep)", sweeper::replica_name()), env!("CARGO_PKG_VERSION"), None).await?;
    let replica = Arc::new(Replica::new(sql.clone(), sql, id, hosts(&config.docker), config.docker.lease.0, PACE));
    let mut links = Vec::new();
    for host in &replica.hosts {
        let link = keeper::connect(&replica, host).await.map_err(|error| Fatal::Unavailable(format!("{}: {error}", host.endpoint)))?;
        links.push((link, Orphans::default()));
    }
    // Where nobody serves, nobody else looks after the partitions. Those that are missing come first; old ones hold up no deadline.
    looked_after(replica.sql.make_ahead(None).await);
    let counts = loop {
        let counts = round(&replica, &mut links).await?;
        if !config.wait || counts.waiting + counts.running + counts.terminating == 0 {
            break counts;
        }
        pause(&replica, &links).await?;
    };
    looked_after(upkeep::once(&replica.sql, None).await);
    replica.sql.leave(replica.id(), None).await?;
    Ok(counts)
}

fn looked_after<T>(done: Result<T, Error>) {
    if let Err(error) = done {
        tracing::warn!(%error, "upkeep failed; the next sweep tries again");
    }
}

async fn round(replica: &Arc<Replica>, links: &mut [(Arc<Link>, Orphans)]) -> Result<Counts, Fatal> {
    sweeper::recall(replica).await?;
    while replica.sql.expire_waiting(None).await? > 0 {}
    // Each round of starts frees the lane for the next, until nobody waits or no host has room.
    loop {
        let before = replica.metrics.placed.get();
        launcher::pass(replica, &mut Duration::from_millis(5)).await?;
        while sweeper::claim_once(replica).await? > 0 {}
        settle(replica).await?;
        if replica.metrics.placed.get() == before {
            break;
        }
    }
    for (link, orphans) in &mut *links {
        keep(replica, link, orphans).await?;
    }
    settle(replica).await?;
    let left = replica.sql.gauges().await?;
    Ok(Counts {
        placed: replica.metrics.placed.get(),
        started: replica.metrics.started.get(),
        signals: replica.metrics.signals.get(),
        ended: replica.metrics.ended.get(),
        orphans: replica.metrics.orphans.get(),
        waiting: left.pending,
        running: left.running,
        terminating: left.terminating,
    })
}

/// Holds a host's list against its rows; what looks like an orphan is looked at again after the orphan's grace.
async fn keep(replica: &Arc<Replica>, link: &Arc<Link>, orphans: &mut Orphans) -> Result<(), Fatal> {
    let trouble = |error: keeper::Trouble| Fatal::Unavailable(error.to_string());
    keeper::pass(replica, link, orphans).await.map_err(trouble)?;
    if orphans.suspected() {
        tokio::time::sleep(keeper::ORPHAN_GRACE).await;
        keeper::pass(replica, link, orphans).await.map_err(trouble)?;
    }
    Ok(())
}

async fn settle(replica: &Arc<Replica>) -> Result<(), Fatal> {
    if replica.drained(ROUND).await {
        return Ok(());
    }
    Err(Fatal::Unavailable(format!("work in hand was not finished within {ROUND:?}; it comes due again for the next sweep")))
}

/// Until something is due, at most a moment: others may have changed it meanwhile.
async fn pause(replica: &Arc<Replica>, links: &[(Arc<Link>, Orphans)]) -> Result<(), Fatal> {
    let hosts: Vec<i32> = links.iter().map(|(link, _)| link.id).chain([0]).collect();
    let next = replica.sql.next_due(&hosts, None, None).await?.into_iter().map(|(_, due)| due).fold(PACE.as_secs_f64(), f64::min);
    tokio::time::sleep(Duration::from_secs_f64(next.clamp(0.05, PACE.as_secs_f64()))).await;
    Ok(())
}
