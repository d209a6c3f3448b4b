//! Every process that ever ran here, and how it ended: the truth that a checker holds against what Sundown says. Docker's own words,
//! which a fault may falsify, are not asked.

use serde_json::{Value, json};
use tokio::time::Instant;

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit code.
    Itself(i64),
    /// By the OOM killer.
    OutOfMemory,
    /// By a client's signal, the one named.
    Signalled(&'static str),
    /// By a client that removed its container by force.
    Removed,
    /// By the weather, which took its container away.
    Vanished,
}

/// One process, from its start to its end. A container that is started twice lives twice.
#[derive(Debug, Clone)]
pub struct Life {
    /// Name of the container when it was made.
    pub container: String,
    /// Its full id.
    pub id: String,
    /// The agent that its label names.
    pub agent: Option<String>,
    /// When it began.
    pub started: Instant,
    /// Signals that clients sent, also those that it ignored.
    pub signals: Vec<(&'static str, Instant)>,
    /// When and how it ended; `None`: it has not.
    pub ended: Option<(Instant, End)>,
}

impl Life {
    /// One line of JSON, with milliseconds since the start of the daemon.
    pub fn json(&self, began: Instant) -> String {
        let ms = |at: Instant| u64::try_from((at - began).as_millis()).unwrap_or(u64::MAX);
        let (ended, code) = match self.ended.as_ref().map(|(_, end)| end) {
            None => (Value::Null, Value::Null),
            Some(End::Itself(code)) => (json!("itself"), json!(code)),
            Some(End::OutOfMemory) => (json!("out of memory"), Value::Null),
            Some(End::Signalled(signal)) => (json!(signal), Value::Null),
            Some(End::Removed) => (json!("removed"), Value::Null),
            Some(End::Vanished) => (json!("vanished"), Value::Null),
        };
        let signals: Vec<Value> = self.signals.iter().map(|(signal, at)| json!({"signal": signal, "at_ms": ms(*at)})).collect();
        json!({
            "container": self.container, "id": self.id, "agent": self.agent, "started_ms": ms(self.started),
            "ended_ms": self.ended.as_ref().map(|(at, _)| ms(*at)), "ended": ended, "exit_code": code, "signals": signals,
        })
        .to_string()
    }
}
