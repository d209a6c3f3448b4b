//! Keeps the tables in shape: partitions ahead, partitions past retention, old keys. Any replica may, at any time.
//!
//! Guarantees: partitions are made ahead whatever becomes of old ones; each old one goes in a statement of its own.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::replica::Replica;
use crate::sql::{Now, Sql};

const EVERY: Duration = Duration::from_secs(3600);
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// What there was to do.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Partitions made ahead.
    pub made: i32,
    /// Partitions dropped.
    pub dropped: i32,
    /// Idempotency keys forgotten.
    pub keys: i32,
}

/// Looks after the tables until told to stop.
pub async fn run(replica: Arc<Replica>) {
    // The start made partitions twelve weeks ahead: nothing is urgent, and replicas that start together need not all do it.
    let mut pause = EVERY.mul_f64(0.5 + f64::from(replica.id().rem_euclid(60)) / 120.0);
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = replica.stop.cancelled() => return,
        }
        let done = tokio::select! {
            done = once(&replica.sql, None) => done,
            // What is cut short is done by another.
            () = replica.stop.cancelled() => return,
        };
        pause = match done {
            Ok(counts) => {
                tracing::info!(?counts, "upkeep");
                EVERY
            }
            Err(error) => {
                tracing::warn!(%error, "upkeep failed; trying again");
                AFTER_FAILURE
            }
        };
    }
}

/// Does all that there is to do.
///
/// # Errors
/// What the database said. What was done before stays done.
pub async fn once(sql: &Sql, now: Now) -> Result<Counts, Error> {
    let mut counts = Counts { made: sql.make_ahead(now).await?, ..Counts::default() };
    loop {
        let (dropped, keys) = sql.upkeep(now).await?;
        counts.dropped += dropped;
        counts.keys += keys;
        if dropped == 0 {
            return Ok(counts);
        }
    }
}
