//! The pids of containers' inits on one host, as the last look at each has shown. They save questions, and prove nothing: whoever signals one
//! looks whose it is. Must not ask anybody.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::docker::Container;
use crate::process;

/// How many containers may live unseen before it is believed that none can be seen. One may have ended in the moment between two looks.
const UNSEEN: u32 = 8;

/// What is known of a host's inits.
#[derive(Debug)]
pub struct Inits {
    /// `None`: they are out of reach, so SIGKILL is the daemon's.
    pids: Option<Mutex<HashMap<String, u32>>>,
    /// How many containers in a row lived, and could not be seen to.
    unseen: AtomicU32,
}

impl Inits {
    /// Of a host whose processes may be within reach, or are not.
    #[must_use]
    pub fn new(within_reach: bool) -> Self {
        Self { pids: within_reach.then(Mutex::default), unseen: AtomicU32::new(0) }
    }

    /// Whether it is of use to know one before it is needed.
    #[must_use]
    pub fn are_within_reach(&self) -> bool {
        self.pids.is_some() && self.unseen.load(Ordering::Relaxed) < UNSEEN
    }

    /// The pid that a container's init had when it was last looked at.
    #[must_use]
    pub fn pid(&self, container: &str) -> Option<u32> {
        self.pids()?.get(container).copied()
    }

    /// Whether the kernel shows that a container's init lives, so that the daemon need not be asked. `false` says nothing.
    #[must_use]
    pub fn sees_alive(&self, container: &str) -> bool {
        self.pid(container).is_some_and(|init| process::lives(init, container))
    }

    /// A container that has just been started was looked at: shows whether any can be seen.
    pub fn looked_at_first(&self, container: &str, alive: bool) {
        if self.sees_alive(container) {
            self.unseen.store(0, Ordering::Relaxed);
        } else if alive {
            self.unseen.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes what a look has shown.
    pub fn note(&self, container: &Container) {
        let Some(mut pids) = self.pids() else { return };
        match container.pid.filter(|_| container.status.is_alive()) {
            Some(init) => pids.insert(container.id.clone(), init),
            None => pids.remove(&container.id),
        };
    }

    /// A container's processes have ended.
    pub fn forget(&self, container: &str) {
        if let Some(mut pids) = self.pids() {
            pids.remove(container);
        }
    }

    /// Only these containers are there.
    pub fn keep(&self, there: &HashSet<&str>) {
        if let Some(mut pids) = self.pids() {
            pids.retain(|container, _| there.contains(container.as_str()));
        }
    }

    fn pids(&self) -> Option<MutexGuard<'_, HashMap<String, u32>>> {
        Some(self.pids.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
