//! Clients that submit all the while, each time under a key of its own, and ask again until they are told yes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::replica::Replica;

/// One client at each of some replicas.
pub struct Submitting {
    enough: Arc<AtomicBool>,
    posting: Vec<JoinHandle<Vec<Uuid>>>,
}

impl Submitting {
    pub fn at(replicas: &[Arc<Replica>], body: &'static str) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let posting = replicas.iter().map(|replica| {
            let (replica, enough) = (Arc::clone(replica), Arc::clone(&enough));
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                while !enough.load(Ordering::Relaxed) {
                    acknowledged.push(posted(&replica, &Uuid::new_v4().to_string(), body).await);
                    sleep(Duration::from_millis(50)).await;
                }
                acknowledged
            })
        });
        Self { posting: posting.collect(), enough }
    }

    /// Ends them; answers what was acknowledged.
    pub async fn acknowledged(self) -> Vec<Uuid> {
        self.enough.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for posting in self.posting {
            all.extend(posting.await.unwrap());
        }
        all
    }
}

/// Submits under a key, again and again until it is acknowledged.
pub async fn posted(replica: &Replica, key: &str, body: &str) -> Uuid {
    let start = Instant::now();
    loop {
        let answer = replica.try_http("POST", "/agents", &[("Idempotency-Key", key)], body).await.unwrap();
        match answer.status {
            200 | 201 => return answer.json()["id"].as_str().unwrap().parse().unwrap(),
            503 => assert!(start.elapsed() < Duration::from_secs(30), "it is never acknowledged: {answer:?}"),
            _ => panic!("neither yes nor later: {answer:?}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}
