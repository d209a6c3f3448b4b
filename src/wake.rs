//! Wake-ups inside this process: the only thing that runs between http and the loops. A wake-up carries nothing and may be lost
//! or doubled; whoever is woken looks at the rows.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// What a notification says: somebody waits for a place, or something is due sooner than its keeper knows.
pub const WAITS: &str = "waits";
/// See [`WAITS`].
pub const DUE: &str = "due";

/// A wish that was written through this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// A new agent.
    Submitted,
    /// An end or another deadline: somebody must look after so long.
    Due(Duration),
}

/// Instants kept at most; the next tick finds what is beyond.
const ARMED: usize = 4096;

/// Pokes and alarms for the loops of one replica.
#[derive(Debug, Default)]
pub struct Wakes {
    /// Somebody may wait for a place, or a place may be free.
    pub launcher: Notify,
    /// Something may be due.
    pub sweeper: Notify,
    /// Other replicas should look, too.
    pub notifier: Notify,
    full: AtomicBool,
    due: AtomicBool,
    say_waits: AtomicBool,
    say_due: AtomicBool,
    alarms: Mutex<BinaryHeap<Reverse<Instant>>>,
}

impl Wakes {
    /// Somebody may wait for a place.
    pub fn somebody_waits(&self) {
        self.launcher.notify_one();
    }

    /// Something may be due that we do not know of.
    pub fn something_is_due(&self) {
        self.due.store(true, Ordering::Release);
        self.sweeper.notify_one();
    }

    /// A wish was written here that others should know of, too.
    pub fn wished(&self, wish: Wish) {
        match wish {
            Wish::Submitted => {
                self.somebody_waits();
                self.say_waits.store(true, Ordering::Release);
            }
            Wish::Due(due_in) => {
                self.arm(due_in.as_secs_f64());
                self.say_due.store(true, Ordering::Release);
            }
        }
        self.notifier.notify_one();
    }

    /// What others are to be told, since the last time.
    pub fn take_said(&self) -> Vec<&'static str> {
        let said = [(WAITS, &self.say_waits), (DUE, &self.say_due)];
        said.into_iter().filter(|(_, flag)| flag.swap(false, Ordering::AcqRel)).map(|(payload, _)| payload).collect()
    }

    /// We may have missed something for a while: look at everything, below the low watermark too.
    pub fn look_at_everything(&self) {
        self.full.store(true, Ordering::Release);
        self.launcher.notify_one();
        self.sweeper.notify_one();
    }

    /// Whether to look at everything; asked once.
    pub fn take_full(&self) -> bool {
        self.full.swap(false, Ordering::AcqRel)
    }

    /// Whether something may be due that we do not know of; asked once.
    pub fn take_due(&self) -> bool {
        self.due.swap(false, Ordering::AcqRel)
    }

    /// We wrote a row that is due in so many seconds: be there, for its keeper may not know.
    pub fn arm(&self, seconds: f64) {
        let Ok(delay) = Duration::try_from_secs_f64(seconds.max(0.0)) else { return };
        let at = Instant::now() + delay.min(Duration::from_secs(3600));
        let mut alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        let sooner = alarms.peek().is_none_or(|first| at < first.0);
        if alarms.len() < ARMED || sooner {
            alarms.push(Reverse(at));
        }
        drop(alarms);
        if sooner {
            self.sweeper.notify_one();
        }
    }

    /// The next alarm.
    pub fn next_alarm(&self) -> Option<Instant> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner).peek().map(|first| first.0)
    }

    /// Whether an alarm has gone off by `now`; takes all that have.
    pub fn ring(&self, now: Instant) -> bool {
        let mut alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rang = false;
        while alarms.peek().is_some_and(|first| first.0 <= now) {
            alarms.pop();
            rang = true;
        }
        rang
    }
}
