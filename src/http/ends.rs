//! Who waits for which agents to end: one question for all of them, a few times a second, while there are any. However many wait, the database
//! hears of it no more often.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

use crate::sql::Sql;

/// Between two looks: an end is known within twice that on every replica, whoever recorded it and whether notifications arrive or not.
const LOOK: Duration = Duration::from_millis(90);

/// Those who wait.
#[derive(Clone, Default)]
pub struct Ends(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    ends: HashMap<Uuid, watch::Sender<bool>>,
    /// Somebody looks for them.
    looks: bool,
}

impl Ends {
    /// Becomes true once the agent has ended. One that ends before this is called is seen as well, so that nothing is missed between two calls.
    pub fn of(&self, sql: &Sql, id: Uuid) -> watch::Receiver<bool> {
        let mut waiting = self.waiting();
        let ended = waiting.ends.entry(id).or_default().subscribe();
        if !waiting.looks {
            waiting.looks = true;
            tokio::spawn(self.clone().look(sql.clone()));
        }
        ended
    }

    async fn look(self, sql: Sql) {
        loop {
            tokio::time::sleep(LOOK).await;
            let wanted = {
                let mut waiting = self.waiting();
                waiting.ends.retain(|_, end| end.receiver_count() > 0);
                if waiting.ends.is_empty() {
                    waiting.looks = false;
                    return;
                }
                waiting.ends.keys().copied().collect::<Vec<_>>()
            };
            // With the database away nobody knows; whoever waits until his time is up is told so then.
            let ended = sql.ended(&wanted).await.unwrap_or_default();
            let mut waiting = self.waiting();
            for end in ended.iter().filter_map(|id| waiting.ends.remove(id)) {
                end.send_replace(true);
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
