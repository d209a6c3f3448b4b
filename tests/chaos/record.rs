//! What a run writes down, one line of JSON each, so that it can be judged again without the run: a directory of files that are
//! only ever appended to.
//!
//! All times are milliseconds since the epoch by the clock of the machine that runs the test, as one process read it. What the database
//! says of time is carried over by the offset that the probes measured.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Milliseconds since the epoch.
pub type Millis = i64;

/// Now.
#[expect(clippy::disallowed_methods, reason = "a test stands outside of what it watches, and has no other clock")]
pub fn now() -> Millis {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// What an agent was made to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Ends by itself with this code.
    Exits(i32),
    /// Eats its memory.
    Oom,
    /// Outlives its ttl, and heeds the signal.
    Expires,
    /// Outlives its ttl, and ignores the signal.
    Stubborn,
    /// Is ended on request.
    Deleted,
    /// Has its deadline moved once, and outlives that.
    Extended,
}

impl Kind {
    /// It never ends unless somebody ends it.
    pub fn endless(self) -> bool {
        !matches!(self, Kind::Exits(_) | Kind::Oom)
    }
}

/// How a call ended, as its client knows it. A time-out is neither yes nor no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Said {
    /// Promised.
    Ok,
    /// Refused: nothing has happened.
    Fail,
    /// Unknown.
    Info,
}

/// What a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    Post,
    Delete,
    Patch,
    /// `sundown.submit` in a transaction that commits.
    Submit,
    /// `sundown.submit` in a transaction that rolls back.
    Rollback,
}

/// One call of a client.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    pub began: Millis,
    pub ended: Millis,
    pub op: Op,
    pub kind: Kind,
    pub key: String,
    pub agent: Option<Uuid>,
    pub said: Said,
    pub status: u16,
    /// The deadline that an extension was promised, by the database's clock.
    pub deadline: Option<Millis>,
}

/// A fault, from its begin until it is healed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Injected {
    pub fault: String,
    pub began: Millis,
    pub ended: Millis,
    /// What was done, in words.
    pub what: String,
    /// Agents on whose containers hands were laid, so that they may end in other ways.
    pub touched: Vec<Uuid>,
    /// When a replica died, or fell silent until its lease was over; `None`: nothing of the kind.
    pub struck: Option<Millis>,
    pub fired: bool,
}

/// A start that a replica held when it died or fell silent: when its row was in other hands, or over, or was watched no longer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TakenOver {
    pub agent: Uuid,
    pub struck: Millis,
    pub until: Millis,
    pub taken: bool,
}

/// A look at whether the parts answer.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Probe {
    pub at: Millis,
    /// It took a write.
    pub postgres: bool,
    /// It answered with its list.
    pub docker: bool,
    /// Replicas that said that they are ready.
    pub ready: u8,
    /// The database's clock less ours, when it answered.
    pub offset: Option<Millis>,
}

impl Probe {
    pub fn healthy(&self) -> bool {
        self.postgres && self.docker && self.ready > 0
    }
}

/// A container came to life, or all of it died: from the kernel, never from the daemon's word.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Beat {
    pub at: Millis,
    pub container: String,
    pub agent: Uuid,
    pub what: Sign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sign {
    /// A control group was made for it: it was started.
    Born,
    /// A process that is not a zombie was seen in it. Only the last of these is kept for each start.
    Alive,
    /// Nothing is left in it.
    Dead,
    /// The daemon keeps it on disk.
    Kept,
    /// The daemon has forgotten it.
    Forgotten,
}

/// A row of `sundown.event`, times as the database has them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    pub at: Millis,
    pub id: Uuid,
    pub kind: String,
    pub was: Option<String>,
    pub state: String,
    pub reason: Option<String>,
    pub epoch: i32,
    pub container: Option<String>,
    pub expires_at: Option<Millis>,
}

/// What is left of an agent in the database at the end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    pub id: Uuid,
    pub kind: Kind,
    /// `pending`, `running`, `terminating` if it has not ended; `lost` if nothing says how it is.
    pub state: String,
    pub reason: Option<String>,
    pub exit_code: Option<i32>,
    pub container: Option<String>,
    pub expires_at: Option<Millis>,
    pub decided_at: Option<Millis>,
    pub finished_at: Option<Millis>,
    /// Seconds.
    pub grace: f64,
    /// How often its output says that it began; `None`: no output was kept.
    pub begun: Option<i64>,
    /// Under which its client submitted it.
    pub key: Option<String>,
}

/// What was there beside the agents, and must be untouched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decoy {
    pub name: String,
    pub container: String,
    /// Its first process and when that started, in ticks since boot; `None`: it does not run.
    pub process: Option<(i32, u64)>,
}

/// What goes wrong by itself at the small daemon on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sky {
    /// Nothing.
    Calm,
    /// Latency, errors, lost answers, hangs, truncated and empty answers, containers that vanish, events that never come.
    Rough,
    /// No event ever comes.
    NoEvents,
    /// Every list is empty.
    EmptyLists,
    /// Every list is made late.
    SlowLists,
    /// Many kills hang.
    HangingKills,
}

/// A run as a whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub seed: u64,
    pub seconds: u64,
    /// Agents submitted in a second.
    pub rate: f64,
    /// At most so many under way at once, as far as their clients know.
    pub at_once: usize,
    /// Only of these kinds; none: of all.
    pub kinds: Vec<Kind>,
    /// Share of the agents that are submitted in a transaction of their client's own.
    pub by_sql: f64,
    /// How many agents the host may carry.
    pub capacity: usize,
    /// `None`: on a real daemon; else on the small one on the wire, under this sky.
    pub sky: Option<Sky>,
    /// PgBouncer, in transaction mode, stands before Postgres, and there is no way around it.
    pub pooled: bool,
    /// Of each lane.
    pub faults: Vec<Vec<String>>,
    /// Where replicas are killed, or stopped.
    pub points: Vec<String>,
    /// Milliseconds: how long a start is leased.
    pub lease: Millis,
    /// Milliseconds: how long a replica that is stopped at a point stands still, its lease included.
    pub still: Millis,
    /// Containers that the daemon starts, and ends, in a second, when many are due at once.
    pub daemon_rate: i64,
    /// Seconds for which clients still come once everything is healed, and then those that the last agents may take.
    pub calm: u64,
    pub quiet: u64,
    /// A way in which the replicas are broken, on purpose.
    pub defect: Option<String>,
    /// Instead of clients and faults: so many agents, all of whose deadlines come within a second.
    pub crowd: Option<Crowd>,
}

/// Many deadlines at once.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Crowd {
    pub agents: usize,
    /// No replica is alive when they come.
    pub nobody: bool,
}

/// How a run went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Course {
    pub began: Millis,
    /// The last fault was healed.
    pub healed: Millis,
    /// Nobody lived any more, or we stopped waiting.
    pub ended: Millis,
    pub before: Vec<Decoy>,
    pub after: Vec<Decoy>,
    /// Slots that hosts say are used.
    pub slots: i64,
    /// Containers that have the name of an agent, one decoy among them.
    pub left: usize,
}

/// A file that lines are appended to, from any task.
#[derive(Clone)]
pub struct Journal(Arc<Mutex<File>>);

impl Journal {
    pub fn write<T: Serialize>(&self, line: &T) {
        let mut text = serde_json::to_string(line).unwrap();
        text.push('\n');
        self.0.lock().unwrap().write_all(text.as_bytes()).unwrap();
    }
}

/// The directory of a run.
#[derive(Debug, Clone)]
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn journal(&self, name: &str) -> Journal {
        let file = File::options().create(true).append(true).open(self.0.join(name)).unwrap();
        Journal(Arc::new(Mutex::new(file)))
    }

    /// The lines of a file that may be missing.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Vec<T> {
        let Ok(file) = File::open(self.0.join(name)) else { return Vec::new() };
        let lines = BufReader::new(file).lines().map(Result::unwrap);
        lines.map(|line| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{name}: {error}: {line}"))).collect()
    }

    pub fn save<T: Serialize>(&self, name: &str, value: &T) {
        fs::write(self.0.join(name), serde_json::to_string_pretty(value).unwrap()).unwrap();
    }

    pub fn load<T: DeserializeOwned>(&self, name: &str) -> T {
        serde_json::from_str(&fs::read_to_string(self.0.join(name)).unwrap()).unwrap()
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}
