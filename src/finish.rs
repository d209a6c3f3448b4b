//! The three fenced steps of an end: the observed facts and the log into rows, the container removed, the outcome written. Killed
//! between any two, the row comes due again and whoever claims it goes on where this stopped.
//!
//! Guarantees: the outcome never precedes Docker's word that the container is gone; a log that cannot be read delays nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::docker::DockerError;
use crate::error::Error;
use crate::failpoint;
use crate::process;
use crate::replica::{Link, Replica, STOP_LEASE};
use crate::sql::work::{Claim, Facts};

/// How much of the output is kept, in bytes.
const TAIL: usize = 64 * 1024;
/// How long reading it may take. It shares the lease of a stop with the write that follows.
const TAIL_PATIENCE: Duration = Duration::from_millis(1200);
/// How often reading it is tried.
const TAIL_TRIES: i16 = 4;

/// The whole finish, for an agent whose end was just seen. `row` needs no lease: its epoch decides who goes on.
pub async fn end(replica: &Arc<Replica>, link: &Link, row: &Claim, mut facts: Facts, container: Option<&str>) -> Result<(), Error> {
    // What has an exit code is dead, and whoever saw that came here at once.
    if facts.exit_code.is_some() {
        facts.dead.get_or_insert_with(Instant::now);
    }
    // Tried and failed so often, it is given up: the end matters more.
    if let Some(container) = container.filter(|_| row.attempts <= TAIL_TRIES) {
        let tail = async {
            let _lane = link.tails.acquire().await;
            link.docker.tail(container, TAIL).await
        };
        match tokio::time::timeout(TAIL_PATIENCE, tail).await {
            Ok(Ok(tail)) => facts.tail = Some(tail),
            Ok(Err(error)) => tracing::warn!(agent.id = %row.id, %error, "its log cannot be read"),
            Err(_) => tracing::warn!(agent.id = %row.id, "its log cannot be read in time"),
        }
    }
    never_executed(&mut facts);
    failpoint::hit("finish.before_observe");
    let Some(epoch) = replica.sql.observe(row, replica.id(), STOP_LEASE, &facts, None).await? else {
        replica.lease_lost(row.id, "observe");
        return Ok(());
    };
    failpoint::hit("finish.observed");
    let row = Claim { epoch, observed: true, attempts: 1, ..row.clone() };
    remove_and_record(replica, link, &row, container).await
}

/// The last two steps, for an agent whose facts are durable.
pub async fn remove_and_record(replica: &Arc<Replica>, link: &Link, row: &Claim, container: Option<&str>) -> Result<(), Error> {
    // One that was never seen to run may do so all the same, unknown to a daemon that was killed while it started it.
    if let Some(container) = container.or(row.container_id.as_deref()).filter(|_| !row.started)
        && !process::end_all(container).await
    {
        let error = DockerError::Unavailable("a process of its container is still there".to_owned());
        return try_again(replica, row, &error).await;
    }
    if let Some(container) = container {
        // One whose turn does not come gives its place in the line to others, and comes back.
        let Some(_lane) = replica.hold(row, link.turn_to_remove(container)).await? else { return Ok(()) };
        match replica.hold(row, link.remove(container)).await? {
            Some(Ok(())) => {}
            Some(Err(error)) => return try_again(replica, row, &error).await,
            None => return Ok(()),
        }
    }
    failpoint::hit("finish.removed");
    let Some(ended) = replica.sql.finish(row.id, row.epoch, None).await? else {
        replica.lease_lost(row.id, "finish");
        return Ok(());
    };
    failpoint::hit("finish.recorded");
    replica.metrics.ended.inc();
    replica.metrics.late(ended.late);
    tracing::info!(agent.id = %row.id, host = row.host, "ended");
    // A place is free.
    replica.wakes.launcher.notify_one();
    Ok(())
}

/// Gives the row back after Docker failed us; somebody looks again soon, ever less often, for ever.
pub async fn try_again(replica: &Arc<Replica>, row: &Claim, error: &DockerError) -> Result<(), Error> {
    try_again_after(replica, row, error, Duration::ZERO).await
}

/// As [`try_again`], but not before `least` is over.
pub async fn try_again_after(replica: &Arc<Replica>, row: &Claim, error: &DockerError, least: Duration) -> Result<(), Error> {
    replica.metrics.docker_errors.inc();
    let pause = Duration::from_millis(500) * 2u32.pow(u32::from(row.attempts.clamp(1, 6).unsigned_abs()) - 1);
    let pause = pause.min(Duration::from_secs(15)).max(least);
    tracing::warn!(agent.id = %row.id, host = row.host, attempt = row.attempts, %error, "docker failed; trying again in {pause:?}");
    if replica.sql.release(row.id, row.epoch, pause, Some(&error.to_string()), None).await? {
        replica.wakes.arm(pause.as_secs_f64());
    }
    Ok(())
}

/// A container whose init could not execute the command has run, says Docker; the agent in it never did.
fn never_executed(facts: &mut Facts) {
    let (Some("exited"), Some(126 | 127), Some(tail)) = (facts.reason, facts.exit_code, &facts.tail) else { return };
    let text = String::from_utf8_lossy(&tail.bytes[..tail.bytes.len().min(4096)]);
    if let Some(line) = text.lines().find(|line| line.starts_with("[FATAL tini") && line.contains("exec ")) {
        let words = line.split_once("] ").map_or(line, |(_, words)| words);
        facts.error = Some(format!("the command cannot be executed: {words}"));
        facts.reason = Some("start_failed");
    }
}
