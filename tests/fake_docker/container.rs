//! A container of the fake daemon: what it was made from, what it is doing, what it wrote, and the words of its script.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::Seen;
use super::wire::framed;

const NEVER: &str = "0001-01-01T00:00:00Z";
const STARTED: &str = "1999-12-31T23:59:58.5Z";
const FINISHED: &str = "1999-12-31T23:59:59.5Z";
/// The largest piece that a daemon writes into its log at once.
const PIECE: usize = 16 << 10;

pub(super) type Labels = BTreeMap<String, String>;

pub(super) fn labels(body: &Value) -> Labels {
    serde_json::from_value(body["Labels"].clone()).unwrap_or_default()
}

/// Whether labels satisfy a filter: each `key=value`, or `key` alone.
pub(super) fn carries(labels: &Labels, wanted: &[String]) -> bool {
    wanted.iter().all(|wanted| match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
        None => labels.contains_key(wanted),
    })
}

pub(super) struct Container {
    pub id: Arc<str>,
    pub name: Arc<str>,
    /// The name that it was made with: what is known of it stays there.
    pub known_as: Arc<str>,
    pub labels: Arc<Labels>,
    pub body: Value,
    /// The part of its entry in a list that never changes, so that a list of ten thousand costs little.
    summary: Arc<str>,
    pub status: &'static str,
    pub pid: u64,
    pub exit_code: i64,
    pub oom_killed: bool,
    pub ignores_term: bool,
    /// Why its start failed.
    pub error: String,
    /// How often it was started: tells a runner of an earlier time that its time is over.
    pub run: u64,
    /// Its life in the records.
    pub life: usize,
    pub output: Vec<Entry>,
    /// Told after every change: of its status, of its output.
    pub changed: Arc<Notify>,
    /// The exit code of the present run, once it is over.
    pub over: watch::Sender<Option<i64>>,
    pub runner: Option<AbortHandle>,
    /// How many events there were about it.
    pub told: u64,
}

/// A piece of output, as it goes over the wire.
#[derive(Clone)]
pub(super) struct Entry {
    pub stderr: bool,
    pub frame: Bytes,
}

impl Container {
    pub(super) fn new(id: Arc<str>, name: Arc<str>, labels: Labels, body: Value) -> Container {
        let summary = json!({"Id": &*id, "Image": body["Image"], "Created": 946_684_798, "Labels": labels}).to_string();
        Container {
            known_as: name.clone(),
            summary: summary.strip_suffix('}').unwrap_or_default().into(),
            id,
            name,
            labels: Arc::new(labels),
            body,
            status: "created",
            pid: 0,
            exit_code: 0,
            oom_killed: false,
            ignores_term: false,
            error: String::new(),
            run: 0,
            life: 0,
            output: Vec::new(),
            changed: Arc::default(),
            over: watch::Sender::new(Some(0)),
            runner: None,
            told: 0,
        }
    }

    /// Also while it is paused.
    pub(super) fn alive(&self) -> bool {
        matches!(self.status, "running" | "paused")
    }

    pub(super) fn stop_runner(&mut self) {
        if let Some(runner) = self.runner.take() {
            runner.abort();
        }
    }

    pub(super) fn write(&mut self, stderr: bool, bytes: &[u8]) {
        let pieces = bytes.chunks(PIECE).map(|piece| Entry { stderr, frame: framed(stderr, piece) });
        self.output.extend(pieces);
        self.changed.notify_waiters();
    }

    pub(super) fn seen(&self) -> Seen {
        Seen { id: self.id.to_string(), name: self.name.to_string(), status: self.status, labels: self.labels.clone() }
    }

    pub(super) fn inspected(&self) -> Value {
        let started = self.run > 0;
        json!({
            "Id": &*self.id, "Name": format!("/{}", self.name),
            "State": {
                "Status": self.status, "Running": self.alive(), "Paused": self.status == "paused", "Restarting": false,
                "OOMKilled": self.oom_killed, "Dead": false, "Pid": self.pid, "ExitCode": self.exit_code,
                "Error": self.error, "StartedAt": if started { STARTED } else { NEVER },
                "FinishedAt": if started && !self.alive() { FINISHED } else { NEVER },
            },
            "Config": self.body, "HostConfig": self.body["HostConfig"],
        })
    }

    /// What its entry in a list is made from; put together once nobody waits for the daemon's state any more.
    pub(super) fn listed(&self) -> (Arc<str>, Arc<str>, &'static str) {
        (self.summary.clone(), self.name.clone(), self.status)
    }

    /// Why it can never start, if it cannot: status and message.
    pub(super) fn cannot_start(&self) -> Option<(u16, String)> {
        let host = &self.body["HostConfig"];
        let network = host["NetworkMode"].as_str().unwrap_or_default();
        if !matches!(network, "" | "default" | "none" | "bridge" | "host") {
            return Some((404, format!("network {network} not found")));
        }
        let user = self.body["User"].as_str().unwrap_or_default();
        if !user.chars().all(|c| c.is_ascii_digit() || c == ':') && user != "root" {
            return Some((500, format!("unable to find user {user}: no matching entries in passwd file")));
        }
        let failed = "OCI runtime create failed: container_linux.go:380: starting container process caused";
        if self.body["Env"].as_array().into_iter().flatten().any(|pair| pair.as_str().is_some_and(|pair| pair.contains('\0'))) {
            return Some((500, format!("{failed}: invalid argument: unknown")));
        }
        // Without an init the runtime itself looks for the executable.
        match Script::of(&self.body["Cmd"]) {
            Script::CannotExecute { word, why, .. } if host["Init"] != true => {
                Some((400, format!("{failed}: exec: \"{word}\": {why}: unknown")))
            }
            _ => None,
        }
    }
}

/// The list's entry of a container.
pub(super) fn summary((summary, name, status): &(Arc<str>, Arc<str>, &'static str)) -> String {
    format!("{summary},\"Names\":[\"/{name}\"],\"State\":\"{status}\"}}")
}

/// One word of a container's script.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    Write {
        stderr: bool,
        bytes: Vec<u8>,
    },
    /// `None`: for ever.
    Sleep(Option<Duration>),
    IgnoreTerm,
    Exit(i64),
    /// The OOM killer takes a child, or everything.
    Oom {
        survived: bool,
    },
}

/// A container's command: `echo text` (`>&2`), `sleep seconds` or `sleep inf`, `exit code`, `true`, `trap` or `ignore-term` (no TERM
/// from there on), `kill -9 $$`, `oom`, `yes '' | head -n N`, `head -c N /dev/zero`, joined by `;`, with or without `sh -c`. Anything
/// else cannot be executed.
#[derive(Debug)]
pub(super) enum Script {
    Steps(Vec<Step>),
    CannotExecute { word: String, code: i64, why: &'static str },
}

/// A shell that doubles a string until there is no memory left.
const HUNGRY: &str = "x=a; while :; do x=$x$x; done";

impl Script {
    pub(super) fn of(command: &Value) -> Script {
        let words: Vec<&str> = command.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let text = words.join(" ");
        let (shell, text) = match text.strip_prefix("sh -c ") {
            Some(script) => (true, script),
            None => (false, text.as_str()),
        };
        let text = text.replace(&format!("sh -c '{HUNGRY}'"), "child-oom").replace(HUNGRY, "oom");
        let mut steps = Vec::new();
        for statement in text.split(';').map(str::trim) {
            match step(statement) {
                Some(step) => steps.push(step),
                None if shell => {
                    let said = format!("sh: {statement}: not found\n").into_bytes();
                    steps.extend([Step::Write { stderr: true, bytes: said }, Step::Exit(127)]);
                }
                None => {
                    let word = words.first().copied().unwrap_or_default().to_owned();
                    let (code, why) = if word.starts_with('/') { (126, "Permission denied") } else { (127, "No such file or directory") };
                    return Script::CannotExecute { word, code, why };
                }
            }
        }
        steps.push(Step::Exit(0));
        Script::Steps(steps)
    }

    /// What it does below an init: one that cannot execute its command says so, and exits.
    pub(super) fn steps(self) -> Vec<Step> {
        match self {
            Script::Steps(steps) => steps,
            Script::CannotExecute { word, code, why } => {
                let said = format!("[FATAL tini (7)] exec {word} failed: {why}\n").into_bytes();
                vec![Step::Write { stderr: true, bytes: said }, Step::Exit(code)]
            }
        }
    }
}

fn step(statement: &str) -> Option<Step> {
    // To a shell it makes no difference here.
    let statement = statement.strip_prefix("exec ").unwrap_or(statement);
    let (word, rest) = statement.split_once(' ').unwrap_or((statement, ""));
    let write = |stderr, bytes| Some(Step::Write { stderr, bytes });
    match word {
        "echo" => match rest.strip_suffix(">&2") {
            Some(text) => write(true, format!("{}\n", text.trim_end()).into_bytes()),
            None => write(false, format!("{rest}\n").into_bytes()),
        },
        "sleep" => Some(Step::Sleep(rest.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok()))),
        "trap" | "ignore-term" => Some(Step::IgnoreTerm),
        "true" => Some(Step::Exit(0)),
        "exit" => Some(Step::Exit(rest.parse().unwrap_or_default())),
        "oom" => Some(Step::Oom { survived: false }),
        "child-oom" => Some(Step::Oom { survived: true }),
        "kill" if rest == "-9 $$" => Some(Step::Exit(137)),
        "yes" => write(false, "\n".repeat(rest.strip_prefix("'' | head -n ")?.parse().ok()?).into_bytes()),
        "head" => write(false, vec![0; rest.strip_prefix("-c ")?.strip_suffix(" /dev/zero")?.parse().ok()?]),
        _ => None,
    }
}
