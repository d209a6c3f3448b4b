//! A small Docker daemon on a unix socket, inside the test: the other end of the wire, never one of our types. One for tests, for runs
//! of chaos and for benchmarks.
//!
//! It must not know `docker.rs`. It holds ten thousand containers in memory at a flat cost for each call, answers as dockerd 20.10 was
//! seen to answer (`tests/docker.rs` holds both against the same claims), does what it is told to do wrong ([`Fault`]), and what a
//! seed says ([`Weather`]). What a client hung up on happens all the same, as it does in the real daemon. It remembers every life
//! ([`Life`]). Containers live by their command, a script of a few words, on tokio's clock; the daemon's own clock, in its answers, is
//! wrong by decades on purpose.
//!
//! Rooms: `wire` turns requests into calls and answers into bytes; `daemon` does what a call asks, to the `state`; `container` is one of
//! them and its script; `faults` is what a test injects, `weather` what a seed draws; `lives` is the record.

#![allow(dead_code, unused_imports, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a daemon that cannot go on fails its test; not every test uses that part")]

mod container;
mod daemon;
mod faults;
mod lives;
mod state;
mod weather;
mod wire;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::net::UnixSocket;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use daemon::Daemon;
pub use faults::Fault;
pub use lives::{End, Life};
pub use weather::{Rates, Struck, Weather};

/// Connections that may wait to be accepted, as the real daemon has it: beyond that a client is refused.
const BACKLOG: u32 = 4096;

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
    Pause,
    Unpause,
    Rename,
    Wait,
    Logs,
    Remove,
    List,
    Events,
    CreateVolume,
    InspectVolume,
    RemoveVolume,
    Other,
}

const CALLS: usize = Call::Other as usize + 1;

/// What a test may read of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub id: String,
    pub name: String,
    pub status: &'static str,
    pub labels: Arc<BTreeMap<String, String>>,
}

/// The daemon. Its containers survive [`FakeDocker::down`]; everything ends with it.
pub struct FakeDocker {
    daemon: Arc<Daemon>,
    path: PathBuf,
    server: Mutex<Option<AbortHandle>>,
}

impl FakeDocker {
    /// A daemon without containers, listening.
    pub async fn start() -> FakeDocker {
        let path = std::env::temp_dir().join(format!("fake-docker-{}.sock", Uuid::new_v4()));
        let fake = FakeDocker { daemon: Arc::new(Daemon::new()), path, server: Mutex::new(None) };
        fake.up();
        fake
    }

    /// For `Docker::connect`.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// Listens again, with the containers that it had. Those went on without it.
    pub fn up(&self) {
        let socket = UnixSocket::new_stream().unwrap();
        socket.bind(&self.path).unwrap();
        let server = tokio::spawn(wire::serve(socket.listen(BACKLOG).unwrap(), self.daemon.clone()));
        *self.server.lock().unwrap() = Some(server.abort_handle());
    }

    /// Refuses connections and drops those that stand. Nothing that happens meanwhile becomes an event.
    pub fn down(&self) {
        if let Some(server) = self.server.lock().unwrap().take() {
            server.abort();
        }
        self.daemon.state().restarted = true;
        let _gone = std::fs::remove_file(&self.path);
    }

    /// Another daemon, with nothing in it, answers where this one did. Who is connected to this one stays connected; `up` puts it back.
    pub fn replaced(&self) -> FakeDocker {
        std::fs::remove_file(&self.path).unwrap();
        let other = FakeDocker { daemon: Arc::new(Daemon::new()), path: self.path.clone(), server: Mutex::new(None) };
        other.up();
        other
    }

    /// The next `times` calls that match go wrong. `None` matches any; `container` is a name or an id.
    pub fn inject(&self, call: Option<Call>, container: Option<&str>, fault: Fault, times: usize) {
        let mut state = self.daemon.state();
        let container = container.map(|what| state.name_of(what).to_string());
        state.rules.add(call, container, fault, times);
    }

    /// From now on things go wrong by themselves, until `heal` or another weather. What was injected goes before.
    pub fn set_weather(&self, weather: Weather) {
        self.daemon.state().weather = Some(Arc::new(weather));
    }

    /// Ends all faults and the weather, and lets go of what hangs.
    pub fn heal(&self) {
        let mut state = self.daemon.state();
        state.rules.clear();
        state.weather = None;
        drop(state);
        self.daemon.healed.send_replace(());
    }

    /// Every fault that the weather brought about so far.
    pub fn struck(&self) -> Vec<Struck> {
        self.daemon.state().struck.clone()
    }

    /// Calls of this kind for one container (name or id) that arrived, whatever became of them.
    pub fn calls(&self, call: Call, container: &str) -> usize {
        self.daemon.state().count(call, container)
    }

    /// All calls for one container (name or id) as they arrived, also after its removal.
    pub fn history(&self, container: &str) -> Vec<(Call, Instant)> {
        self.daemon.state().calls(container).to_vec()
    }

    /// How often the container (name or id) really ran.
    pub fn runs(&self, container: &str) -> usize {
        self.daemon.state().runs(container)
    }

    /// Calls of this kind that arrived, for any container.
    pub fn total(&self, call: Call) -> usize {
        self.daemon.state().total(call)
    }

    /// From now on it says of whatever it starts that it is this process.
    pub fn every_pid_is(&self, pid: u32) {
        self.daemon.state().pid = Some(u64::from(pid));
    }

    /// Creates a container behind everybody's back, and starts it.
    pub fn run(&self, name: &str, labels: &[(&str, &str)]) {
        let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
        let body = json!({"Image": "busybox", "Cmd": ["sleep", "inf"], "Labels": labels, "HostConfig": {}});
        assert!(matches!(self.daemon.create(name, body), wire::Answer::Json(201, _)));
        assert!(matches!(self.daemon.start(name), wire::Answer::Empty(204)));
    }

    /// Every life so far, in order of their starts; also of containers that are gone.
    pub fn lives(&self) -> Vec<Life> {
        self.daemon.state().lives.clone()
    }

    /// The same, a line of JSON each. Milliseconds count from [`FakeDocker::began`].
    pub fn lives_jsonl(&self) -> String {
        self.lives().iter().map(|life| life.json(self.daemon.began) + "\n").collect()
    }

    /// When it was started.
    pub fn began(&self) -> Instant {
        self.daemon.began
    }

    /// How many containers live at this moment.
    pub fn alive(&self) -> usize {
        self.daemon.state().alive
    }

    /// All containers there are.
    pub fn containers(&self) -> Vec<Seen> {
        self.daemon.state().containers.values().map(container::Container::seen).collect()
    }

    /// Waits until the containers satisfy `condition`.
    pub async fn until(&self, condition: impl Fn(&[Seen]) -> bool) {
        let mut changed = self.daemon.state().changed.subscribe();
        loop {
            let look = Instant::now();
            if condition(&self.containers()) {
                return;
            }
            let took = look.elapsed();
            changed.changed().await.unwrap();
            // Among thousands there is always a change: looking must not become all that the process does.
            sleep(took * 4).await;
        }
    }
}

impl Drop for FakeDocker {
    fn drop(&mut self) {
        self.down();
        for container in self.daemon.state().containers.values_mut() {
            container.stop_runner();
        }
    }
}
