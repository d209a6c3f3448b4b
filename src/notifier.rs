//! Tells other replicas that something may be due or wait. One notification for many wishes: it is never sent inside a transaction
//! that writes, for a notifying commit holds a lock on the whole database.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::replica::Replica;

/// Wishes within this time share a notification; it delays only what the replica that took the wish cannot do itself.
const GATHER: Duration = Duration::from_millis(10);

/// Notifies until the door is closed.
pub async fn run(replica: Arc<Replica>, closing: CancellationToken) {
    loop {
        tokio::select! {
            () = replica.wakes.notifier.notified() => {}
            () = closing.cancelled() => return,
        }
        tokio::time::sleep(GATHER).await;
        let said = replica.wakes.take_said();
        if let Err(error) = replica.sql.wake(&said).await {
            replica.metrics.database_errors.inc();
            tracing::debug!(%error, "other replicas were not told; they poll");
        }
    }
}
