//! Keeps the tables in shape: partitions ahead, partitions past retention, old keys. Any replica may, at any time.

use std::sync::Arc;
use std::time::Duration;

use crate::replica::Replica;

const EVERY: Duration = Duration::from_secs(3600);
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// Looks after the tables until told to stop.
pub async fn run(replica: Arc<Replica>) {
    // The start made partitions twelve weeks ahead: nothing is urgent, and replicas that start together need not all do it.
    let mut pause = EVERY.mul_f64(0.5 + f64::from(replica.id().rem_euclid(60)) / 120.0);
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = replica.stop.cancelled() => return,
        }
        pause = match replica.sql.upkeep(None).await {
            Ok(counts) => {
                tracing::info!(counts, "upkeep");
                EVERY
            }
            Err(error) => {
                tracing::warn!(%error, "upkeep failed; trying again");
                AFTER_FAILURE
            }
        };
    }
}
