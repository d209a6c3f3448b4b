//! A small Docker daemon on a unix socket, inside the test: the other end of the wire, never one of our types.
//!
//! It must not know `docker.rs`. It holds thousands of containers in memory, answers as dockerd 20.10 was seen to
//! answer, and does what it is told to do wrong ([`Fault`]). What a client hung up on happens all the same, as it
//! does in the real daemon. Containers live by their command, a script of a few words (see [`Step`]), on tokio's
//! clock; the daemon's own clock, in its answers, is wrong by decades on purpose.

#![allow(dead_code, reason = "each test uses a part of it")]

mod wire;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{broadcast, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use uuid::Uuid;
use wire::{Answer, Body, cut, filter, framed, line, parameter, recognise, serve, stays_open, streaming};

/// What `sleep inf` sleeps: a century, for tokio's clock has an end.
const FOREVER: Duration = Duration::from_secs(3_000_000_000);
const NEVER: &str = "0001-01-01T00:00:00Z";
const STARTED: &str = "1999-12-31T23:59:58.5Z";
const FINISHED: &str = "1999-12-31T23:59:59.5Z";

/// The calls that it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    Version,
    Ping,
    Info,
    Create,
    Inspect,
    Start,
    Kill,
    Rename,
    Wait,
    Logs,
    Remove,
    List,
    Events,
    CreateVolume,
    InspectVolume,
    Other,
}

/// What goes wrong with a call.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It happens, but later.
    Slow(Duration),
    /// It happens once [`FakeDocker::heal`] is called; until then no answer. As when containerd is stopped.
    Hang,
    /// It does not happen; this status and message.
    Status(u16, &'static str),
    /// It happens; the connection closes without an answer.
    LostResponse,
    /// It happens; a stream stays open after its end, anything else gets no answer, until `heal`.
    Mute,
    /// It happens; the answer is cut in half.
    Truncated,
    /// It does not happen; the answer is an empty list, as of a daemon that has lost its memory.
    Empty,
    /// It does not happen; the answer begins, and nothing follows until `heal`.
    Silent,
}

struct Rule {
    call: Option<Call>,
    container: Option<String>,
    fault: Fault,
    left: usize,
}

/// One word of a container's command: `echo text`, `sleep seconds` or `sleep inf`, `exit code`, `oom`, `trap` or
/// `ignore-term` (no TERM from there on), joined by `;`, with or without `sh -c`. Anything else is a missing
/// executable: 127, through the init.
#[derive(Debug, Clone)]
enum Step {
    Echo(String),
    Sleep(Duration),
    IgnoreTerm,
    Exit(i64),
    Oom,
}

struct Container {
    id: String,
    name: String,
    body: Value,
    status: &'static str,
    ever_started: bool,
    pid: i64,
    exit_code: i64,
    oom_killed: bool,
    ignores_term: bool,
    output: Vec<String>,
    runner: Option<AbortHandle>,
}

/// What a test may read of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub id: String,
    pub name: String,
    pub status: &'static str,
    pub labels: BTreeMap<String, String>,
}

#[derive(Default)]
struct State {
    /// By id.
    containers: HashMap<String, Container>,
    /// Ids by name, of the containers there are.
    ids: HashMap<String, String>,
    /// Names by id, of all containers that ever were.
    names: HashMap<String, String>,
    volumes: HashMap<String, Value>,
    rules: Vec<Rule>,
    /// By name: each call as it arrived, and when.
    history: HashMap<String, Vec<(Call, Instant)>>,
    /// By name: how often it really ran.
    runs: HashMap<String, usize>,
    totals: HashMap<Call, usize>,
    pids: i64,
    /// The pid that every container has from now on.
    pid: Option<i64>,
    /// Since then it answers a create of a volume that exists without its labels, as 20.10 was seen to do.
    restarted: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Told after every change of a container.
    changed: watch::Sender<()>,
    /// Told by `heal`.
    healed: watch::Sender<()>,
    events: broadcast::Sender<Value>,
}

/// The daemon. Its containers survive [`FakeDocker::down`]; everything ends with it.
pub struct FakeDocker {
    shared: Arc<Shared>,
    path: PathBuf,
    server: Mutex<Option<AbortHandle>>,
}

impl FakeDocker {
    /// A daemon without containers, listening.
    pub async fn start() -> FakeDocker {
        let path = std::env::temp_dir().join(format!("fake-docker-{}.sock", Uuid::new_v4()));
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: watch::Sender::new(()),
            healed: watch::Sender::new(()),
            events: broadcast::Sender::new(1 << 14),
        });
        let fake = FakeDocker { shared, path, server: Mutex::new(None) };
        fake.up();
        fake
    }

    /// For `Docker::connect`.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// Listens again, with the containers that it had. Those went on without it.
    pub fn up(&self) {
        let listener = UnixListener::bind(&self.path).unwrap();
        let server = tokio::spawn(serve(listener, self.shared.clone()));
        *self.server.lock().unwrap() = Some(server.abort_handle());
    }

    /// Refuses connections and drops those that stand. Nothing that happens meanwhile becomes an event.
    pub fn down(&self) {
        if let Some(server) = self.server.lock().unwrap().take() {
            server.abort();
        }
        self.shared.state().restarted = true;
        let _ = std::fs::remove_file(&self.path);
    }

    /// The next `times` calls that match go wrong. `None` matches any; `container` is a name or an id.
    pub fn inject(&self, call: Option<Call>, container: Option<&str>, fault: Fault, times: usize) {
        let container = container.map(|what| self.name_of(what));
        self.shared.state().rules.push(Rule { call, container, fault, left: times });
    }

    /// Ends all faults, and lets go of what hangs.
    pub fn heal(&self) {
        self.shared.state().rules.clear();
        self.shared.healed.send_replace(());
    }

    /// Calls of this kind for one container (name or id) that arrived, whatever became of them.
    pub fn calls(&self, call: Call, container: &str) -> usize {
        self.history(container).iter().filter(|(kind, _)| *kind == call).count()
    }

    /// All calls for one container (name or id) as they arrived, also after its removal.
    pub fn history(&self, container: &str) -> Vec<(Call, Instant)> {
        let name = self.name_of(container);
        self.shared.state().history.get(&name).cloned().unwrap_or_default()
    }

    /// How often the container (name or id) really ran.
    pub fn runs(&self, container: &str) -> usize {
        let name = self.name_of(container);
        self.shared.state().runs.get(&name).copied().unwrap_or_default()
    }

    /// Calls of this kind that arrived, for any container.
    pub fn total(&self, call: Call) -> usize {
        self.shared.state().totals.get(&call).copied().unwrap_or_default()
    }

    /// From now on it says of whatever it starts that it is this process.
    pub fn every_pid_is(&self, pid: u32) {
        self.shared.state().pid = Some(i64::from(pid));
    }

    /// Creates a container behind everybody's back, and starts it.
    pub fn run(&self, name: &str, labels: &[(&str, &str)]) {
        let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
        let body = json!({"Image": "busybox", "Cmd": ["sleep", "inf"], "Labels": labels, "HostConfig": {}});
        assert!(matches!(self.shared.create(name, body), Answer::Json(201, _)));
        assert!(matches!(self.shared.start(name), Answer::Empty(204)));
    }

    /// All containers there are.
    pub fn containers(&self) -> Vec<Seen> {
        let state = self.shared.state();
        state.containers.values().map(Container::seen).collect()
    }

    /// Waits until the containers satisfy `condition`.
    pub async fn until(&self, condition: impl Fn(&[Seen]) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        while !condition(&self.containers()) {
            changed.changed().await.unwrap();
        }
    }

    fn name_of(&self, what: &str) -> String {
        self.shared.state().names.get(what).cloned().unwrap_or_else(|| what.to_owned())
    }
}

impl Drop for FakeDocker {
    fn drop(&mut self) {
        self.down();
        for container in self.shared.state().containers.values_mut() {
            container.stop_runner();
        }
    }
}

impl Container {
    fn seen(&self) -> Seen {
        let labels = self.labels();
        Seen { id: self.id.clone(), name: self.name.clone(), status: self.status, labels }
    }

    fn labels(&self) -> BTreeMap<String, String> {
        serde_json::from_value(self.body["Labels"].clone()).unwrap_or_default()
    }

    fn running(&self) -> bool {
        self.status == "running"
    }

    fn stop_runner(&mut self) {
        if let Some(runner) = self.runner.take() {
            runner.abort();
        }
    }

    fn inspected(&self) -> Value {
        let ended = self.ever_started && !self.running();
        json!({
            "Id": self.id, "Name": format!("/{}", self.name),
            "State": {
                "Status": self.status, "Running": self.running(), "Paused": false, "Restarting": false,
                "OOMKilled": self.oom_killed, "Dead": false, "Pid": self.pid, "ExitCode": self.exit_code,
                "Error": "", "StartedAt": if self.ever_started { STARTED } else { NEVER },
                "FinishedAt": if ended { FINISHED } else { NEVER },
            },
            "Config": self.body, "HostConfig": self.body["HostConfig"],
        })
    }

    fn summary(&self) -> Value {
        json!({
            "Id": self.id, "Names": [format!("/{}", self.name)], "Image": self.body["Image"],
            "Created": 946_684_798, "State": self.status, "Labels": self.body["Labels"],
        })
    }
}

impl State {
    /// By id or by name.
    fn find(&mut self, what: &str) -> Option<&mut Container> {
        self.containers.get_mut(self.ids.get(what).map_or(what, String::as_str))
    }

    fn take_fault(&mut self, call: Call, name: Option<&str>) -> Option<Fault> {
        let index = self.rules.iter().position(|rule| {
            rule.left > 0
                && rule.call.is_none_or(|wanted| wanted == call)
                && rule.container.as_deref().is_none_or(|wanted| Some(wanted) == name)
        })?;
        self.rules[index].left -= 1;
        Some(self.rules[index].fault.clone())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, action: &str, container: &Container) {
        let mut attributes = container.labels();
        attributes.insert("name".to_owned(), container.name.clone());
        attributes.insert("exitCode".to_owned(), container.exit_code.to_string());
        let actor = json!({"ID": container.id, "Attributes": attributes});
        // Without a subscriber it is lost, as in the real daemon.
        let _ = self.events.send(json!({"Type": "container", "Action": action, "Actor": actor}));
        self.changed.send_replace(());
    }

    /// Records the call and does it, with whatever fault was injected. `Err` closes the connection.
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Answer, io::Error> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let (call, mut what) = recognise(&parts.method, &path);
        if call == Call::Create {
            what = parameter(&query, "name");
        }
        let mut healed = self.healed.subscribe();
        let fault = {
            let mut state = self.state();
            *state.totals.entry(call).or_default() += 1;
            let name = what.as_ref().map(|what| state.names.get(what).unwrap_or(what).clone());
            if let Some(name) = &name {
                state.history.entry(name.clone()).or_default().push((call, Instant::now()));
            }
            state.take_fault(call, name.as_deref())
        };
        match &fault {
            Some(Fault::Slow(delay)) => sleep(*delay).await,
            Some(Fault::Hang) => drop(healed.changed().await),
            Some(Fault::Status(status, message)) => return Ok(refusal(*status, message)),
            Some(Fault::Empty) => return Ok(Answer::Json(200, json!([]))),
            Some(Fault::Silent) => return Ok(Answer::Stream(stays_open(streaming(stream::empty()), healed))),
            _ => {}
        }
        let answer = self.act(call, what.as_deref().unwrap_or_default(), &query, &body);
        match fault {
            Some(Fault::LostResponse) => Err(io::Error::other("the response is lost")),
            Some(Fault::Truncated) => Ok(cut(answer)),
            Some(Fault::Mute) => match answer {
                Answer::Stream(body) => Ok(Answer::Stream(stays_open(body, healed))),
                answer => {
                    let _ = healed.changed().await;
                    Ok(answer)
                }
            },
            _ => Ok(answer),
        }
    }

    fn act(self: &Arc<Self>, call: Call, what: &str, query: &str, body: &[u8]) -> Answer {
        match call {
            Call::Version => Answer::Json(200, json!({"Version": "20.10.24", "ApiVersion": "1.41"})),
            Call::Ping => Answer::Text("OK"),
            Call::Info => Answer::Json(
                200,
                json!({
                    "ServerVersion": "20.10.24", "LiveRestoreEnabled": true, "CgroupVersion": "1",
                    "Driver": "overlay2", "Name": "fake", "NCPU": 2,
                }),
            ),
            Call::Create => self.create(what, serde_json::from_slice(body).unwrap()),
            Call::Start => self.start(what),
            Call::Kill => self.kill(what, &parameter(query, "signal").unwrap_or_default()),
            Call::Remove => self.remove(what),
            Call::Rename => self.rename(what, &parameter(query, "name").unwrap_or_default()),
            Call::Inspect => match self.state().find(what) {
                Some(container) => Answer::Json(200, container.inspected()),
                None => no_such(what),
            },
            Call::Wait | Call::Logs => {
                let id = self.state().find(what).map(|container| container.id.clone());
                match id {
                    Some(id) if call == Call::Wait => Answer::Stream(self.clone().wait(id)),
                    Some(id) => Answer::Stream(self.clone().logs(id, query)),
                    None => no_such(what),
                }
            }
            Call::List => {
                let wanted = filter(query, "label");
                let state = self.state();
                let found = state.containers.values().filter(|c| carries(&c.labels(), &wanted));
                Answer::Json(200, found.map(Container::summary).collect())
            }
            Call::Events => Answer::Stream(self.subscribe(query)),
            Call::CreateVolume => {
                let asked: Value = serde_json::from_slice(body).unwrap();
                let name = asked["Name"].as_str().unwrap_or_default().to_owned();
                let new = json!({
                    "Name": name, "Driver": "local", "Mountpoint": "", "Labels": asked["Labels"],
                    "Options": null, "Scope": "local",
                });
                let mut state = self.state();
                let restarted = state.restarted;
                let volume = state.volumes.entry(name);
                let forgotten = restarted && matches!(volume, Entry::Occupied(_));
                let mut answer = volume.or_insert(new).clone();
                if forgotten {
                    answer["Labels"] = Value::Null;
                }
                Answer::Json(201, answer)
            }
            Call::InspectVolume => match self.state().volumes.get(what) {
                Some(volume) => Answer::Json(200, volume.clone()),
                None => refusal(404, &format!("get {what}: no such volume")),
            },
            Call::Other => refusal(404, "page not found"),
        }
    }

    /// The daemon's own order: the request, the image, the name.
    fn create(&self, name: &str, body: Value) -> Answer {
        let image = body["Image"].as_str().unwrap_or_default();
        if image.contains(|c: char| c.is_uppercase() || c == ' ') {
            return refusal(400, "invalid reference format");
        }
        // Every image is here, but those that say that they are not.
        if image.contains("absent") {
            return refusal(404, &format!("No such image: {image}"));
        }
        if body["Cmd"].as_array().is_none_or(Vec::is_empty) {
            return refusal(400, "No command specified");
        }
        if body["HostConfig"]["Memory"].as_i64().is_some_and(|bytes| (1..6 << 20).contains(&bytes)) {
            return refusal(400, "Minimum memory limit allowed is 6MB");
        }
        let mut state = self.state();
        if state.find(name).is_some() {
            return refusal(409, &format!("Conflict. The container name \"/{name}\" is already in use"));
        }
        let id = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let container = Container {
            id: id.clone(),
            name: name.to_owned(),
            body,
            status: "created",
            ever_started: false,
            pid: 0,
            exit_code: 0,
            oom_killed: false,
            ignores_term: false,
            output: Vec::new(),
            runner: None,
        };
        self.tell("create", &container);
        state.names.insert(id.clone(), name.to_owned());
        state.ids.insert(name.to_owned(), id.clone());
        state.containers.insert(id.clone(), container);
        Answer::Json(201, json!({"Id": id, "Warnings": []}))
    }

    /// Like the real one, it runs an exited container again.
    fn start(self: &Arc<Self>, what: &str) -> Answer {
        let mut state = self.state();
        state.pids += 1;
        let pid = state.pid.unwrap_or(1000 + state.pids);
        let Some(container) = state.find(what) else {
            return no_such(what);
        };
        if container.running() {
            return Answer::Empty(304);
        }
        (container.status, container.pid, container.ever_started) = ("running", pid, true);
        (container.exit_code, container.oom_killed, container.ignores_term) = (0, false, false);
        let life = tokio::spawn(self.clone().live(container.id.clone(), script(&container.body["Cmd"])));
        container.runner = Some(life.abort_handle());
        self.tell("start", container);
        let name = container.name.clone();
        *state.runs.entry(name).or_default() += 1;
        Answer::Empty(204)
    }

    async fn live(self: Arc<Self>, id: String, steps: Vec<Step>) {
        for step in steps {
            if let Step::Sleep(duration) = step {
                sleep(duration).await;
                continue;
            }
            let mut state = self.state();
            let Some(container) = state.containers.get_mut(&id) else {
                return;
            };
            match step {
                Step::Echo(line) => container.output.push(line),
                Step::IgnoreTerm => container.ignores_term = true,
                Step::Exit(code) => return self.end(container, code),
                Step::Oom => {
                    container.oom_killed = true;
                    self.tell("oom", container);
                    return self.end(container, 137);
                }
                Step::Sleep(_) => {}
            }
            self.changed.send_replace(());
        }
    }

    fn end(&self, container: &mut Container, code: i64) {
        (container.status, container.exit_code, container.pid) = ("exited", code, 0);
        container.stop_runner();
        self.tell("die", container);
    }

    fn kill(&self, what: &str, signal: &str) -> Answer {
        let mut state = self.state();
        let Some(container) = state.find(what) else {
            return no_such(what);
        };
        if !container.running() {
            return refusal(409, &format!("Cannot kill container: {what}: Container {} is not running", container.id));
        }
        if signal == "SIGKILL" {
            self.end(container, 137);
        } else if !container.ignores_term {
            self.end(container, 143);
        }
        Answer::Empty(204)
    }

    fn remove(&self, what: &str) -> Answer {
        let mut state = self.state();
        let Some(container) = state.find(what) else {
            return no_such(what);
        };
        if container.running() {
            self.end(container, 137);
        }
        let id = container.id.clone();
        if let Some(removed) = state.containers.remove(&id) {
            state.ids.remove(&removed.name);
            self.tell("destroy", &removed);
        }
        Answer::Empty(204)
    }

    /// What is counted goes on under its first name.
    fn rename(&self, what: &str, name: &str) -> Answer {
        let mut state = self.state();
        if state.ids.contains_key(name) {
            return refusal(409, &format!("Conflict. The container name \"/{name}\" is already in use"));
        }
        let Some(container) = state.find(what) else {
            return no_such(what);
        };
        let (id, before) = (container.id.clone(), std::mem::replace(&mut container.name, name.to_owned()));
        state.ids.remove(&before);
        state.ids.insert(name.to_owned(), id);
        self.changed.send_replace(());
        Answer::Empty(204)
    }

    fn wait(self: Arc<Self>, id: String) -> Body {
        let mut changed = self.changed.subscribe();
        streaming(stream::once(async move {
            loop {
                let code = match self.state().containers.get(&id) {
                    Some(container) if container.running() => None,
                    other => Some(other.map_or(0, |container| container.exit_code)),
                };
                if let Some(code) = code {
                    return line(&json!({"Error": null, "StatusCode": code}));
                }
                let _ = changed.changed().await;
            }
        }))
    }

    fn logs(self: Arc<Self>, id: String, query: &str) -> Body {
        let follow = parameter(query, "follow").as_deref() == Some("true");
        let tail: usize = parameter(query, "tail").and_then(|tail| tail.parse().ok()).unwrap_or(usize::MAX);
        let first = self.state().containers.get(&id).map_or(0, |c| c.output.len().saturating_sub(tail));
        let changed = self.changed.subscribe();
        streaming(stream::unfold((first, changed), move |(next, mut changed)| {
            let (shared, id) = (self.clone(), id.clone());
            async move {
                loop {
                    {
                        let state = shared.state();
                        let container = state.containers.get(&id)?;
                        if let Some(text) = container.output.get(next) {
                            return Some((framed(text), (next + 1, changed)));
                        }
                        if !follow || !container.running() {
                            return None;
                        }
                    }
                    changed.changed().await.ok()?;
                }
            }
        }))
    }

    fn subscribe(&self, query: &str) -> Body {
        let (labels, actions) = (filter(query, "label"), filter(query, "event"));
        // A subscriber that lags behind is cut off.
        let events = stream::unfold(self.events.subscribe(), |mut events| async { Some((events.recv().await.ok()?, events)) });
        streaming(events.filter_map(move |event| {
            let attributes = serde_json::from_value(event["Actor"]["Attributes"].clone()).unwrap_or_default();
            let wanted = actions.iter().any(|action| *action == event["Action"]);
            std::future::ready((wanted && carries(&attributes, &labels)).then(|| line(&event)))
        }))
    }
}

fn script(command: &Value) -> Vec<Step> {
    let words: Vec<&str> = command.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let text = words.join(" ");
    let text = text.strip_prefix("sh -c ").unwrap_or(&text);
    let mut steps = Vec::new();
    for statement in text.split(';').map(str::trim) {
        let (word, rest) = statement.split_once(' ').unwrap_or((statement, ""));
        steps.push(match word {
            "echo" => Step::Echo(format!("{rest}\n")),
            "sleep" => Step::Sleep(rest.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or(FOREVER)),
            "trap" | "ignore-term" => Step::IgnoreTerm,
            "true" => Step::Exit(0),
            "exit" => Step::Exit(rest.parse().unwrap_or_default()),
            "oom" => Step::Oom,
            _ => Step::Exit(127),
        });
    }
    steps.push(Step::Exit(0));
    steps
}

/// Of each wanted label, its value or, where none is given, only its key.
fn carries(labels: &BTreeMap<String, String>, wanted: &[String]) -> bool {
    wanted.iter().all(|pair| match pair.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
        None => labels.contains_key(pair),
    })
}

fn refusal(status: u16, message: &str) -> Answer {
    Answer::Json(status, json!({"message": message}))
}

fn no_such(what: &str) -> Answer {
    refusal(404, &format!("No such container: {what}"))
}
