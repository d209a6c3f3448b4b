//! What the daemon knows: its containers, who asked for what, what is to go wrong, and the lives so far. What every call does to them,
//! under one lock that nobody holds while waiting.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use super::container::{Container, Labels, labels};
use super::faults::{Fault, Rules};
use super::lives::{End, Life};
use super::weather::{Struck, Weather};
use super::wire::line;
use super::{CALLS, Call};

/// Events that a subscriber may lag behind: those of ten thousand containers, from their starts to their ends.
const EVENTS: usize = 1 << 16;

/// What is known of a container by the name that it was made with, also after its removal.
#[derive(Default)]
struct Known {
    labels: Labels,
    /// Each call as it arrived, and when.
    calls: Vec<(Call, Instant)>,
    counts: [u32; CALLS],
    runs: usize,
}

pub(super) struct Event {
    pub labels: Arc<Labels>,
    pub action: &'static str,
    pub line: Bytes,
}

pub(super) struct State {
    /// By id.
    pub containers: HashMap<Arc<str>, Container>,
    /// Ids by name, of the containers there are.
    ids: HashMap<Arc<str>, Arc<str>>,
    /// The names that all containers that ever were were made with, by id.
    names: HashMap<Arc<str>, Arc<str>>,
    known: HashMap<Arc<str>, Known>,
    pub volumes: HashMap<String, Value>,
    pub rules: Rules,
    pub weather: Option<Arc<Weather>>,
    pub struck: Vec<Struck>,
    pub lives: Vec<Life>,
    /// How many live now.
    pub alive: usize,
    totals: [usize; CALLS],
    /// The pid that every process has from now on.
    pub pid: Option<u64>,
    /// Since then it answers a create of a volume that exists without its labels, as 20.10 was seen to do.
    pub restarted: bool,
    events: broadcast::Sender<Arc<Event>>,
    /// Told after every change of a container.
    pub changed: watch::Sender<()>,
}

impl State {
    pub fn new() -> State {
        State {
            containers: HashMap::new(),
            ids: HashMap::new(),
            names: HashMap::new(),
            known: HashMap::new(),
            volumes: HashMap::new(),
            rules: Rules::default(),
            weather: None,
            struck: Vec::new(),
            lives: Vec::new(),
            alive: 0,
            totals: [0; CALLS],
            pid: None,
            restarted: false,
            events: broadcast::Sender::new(EVENTS),
            changed: watch::Sender::new(()),
        }
    }

    /// The id of a container there is, by id or by name.
    pub fn id_of(&self, what: &str) -> Option<Arc<str>> {
        let id = self.ids.get(what).map_or(what, |id| id);
        self.containers.get_key_value(id).map(|(id, _)| id.clone())
    }

    pub fn find(&mut self, what: &str) -> Option<&mut Container> {
        let id = self.ids.get(what).map_or(what, |id| id);
        self.containers.get_mut(id)
    }

    /// The name that a container was made with, by its id or by any name.
    pub fn name_of(&self, what: &str) -> Arc<str> {
        let id = self.ids.get(what).map_or(what, |id| id);
        self.names.get(id).cloned().unwrap_or_else(|| what.into())
    }

    pub fn total(&self, call: Call) -> usize {
        self.totals[call as usize]
    }

    pub fn calls(&self, what: &str) -> &[(Call, Instant)] {
        self.known.get(&self.name_of(what)).map_or(&[], |known| &known.calls)
    }

    pub fn count(&self, call: Call, what: &str) -> usize {
        self.known.get(&self.name_of(what)).map_or(0, |known| known.counts[call as usize] as usize)
    }

    pub fn runs(&self, what: &str) -> usize {
        self.known.get(&self.name_of(what)).map_or(0, |known| known.runs)
    }

    /// Records a call, and answers what goes wrong with it.
    pub fn arrived(&mut self, call: Call, what: Option<&str>, body: &Value) -> Option<Fault> {
        let before = self.totals[call as usize];
        self.totals[call as usize] += 1;
        let at = Instant::now();
        let Some(name) = what.map(|what| self.name_of(what)) else {
            return self.rules.take(call, None).or_else(|| self.strike(call, String::new(), before as u64, at));
        };
        let known = self.known.entry(name.clone()).or_default();
        if call == Call::Create && known.labels.is_empty() {
            known.labels = labels(body);
        }
        known.calls.push((call, at));
        let nth = u64::from(known.counts[call as usize]);
        known.counts[call as usize] += 1;
        let whom = self.weather.as_ref().map(|weather| weather.whom(&name, &known.labels).to_owned());
        self.rules.take(call, Some(&name)).or_else(|| self.strike(call, whom?, nth, at))
    }

    fn strike(&mut self, call: Call, whom: String, nth: u64, at: Instant) -> Option<Fault> {
        let fault = self.weather.as_ref()?.strike(call, &whom, nth)?;
        self.struck.push(Struck { at, call, whom, nth, fault: fault.clone() });
        Some(fault)
    }

    /// Somebody who hears of every change from now on, and is cut off when it lags behind.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.events.subscribe()
    }

    /// There is a new container.
    pub fn add(&mut self, container: Container) {
        let (id, name) = (container.id.clone(), container.name.clone());
        self.names.insert(id.clone(), name.clone());
        self.ids.insert(name, id.clone());
        self.containers.insert(id.clone(), container);
        self.tell(&id, "create");
    }

    /// A container has another name; it is known by its first one. Answers who has that name already, if somebody does.
    pub fn rename(&mut self, id: &Arc<str>, name: &str) -> Result<(), Arc<str>> {
        if let Some(taken) = self.ids.get(name) {
            return Err(taken.clone());
        }
        let name: Arc<str> = name.into();
        if let Some(container) = self.containers.get_mut(id) {
            let old = std::mem::replace(&mut container.name, name.clone());
            self.ids.remove(&old);
        }
        self.ids.insert(name, id.clone());
        self.tell(id, "rename");
        Ok(())
    }

    /// A process begins. Answers after how long the weather cuts its life short, if it does.
    pub fn begin(&mut self, id: &str) -> Option<Duration> {
        let number = self.lives.len();
        let container = self.containers.get_mut(id)?;
        (container.status, container.pid) = ("running", self.pid.unwrap_or(1000 + number as u64));
        (container.exit_code, container.oom_killed, container.ignores_term) = (0, false, false);
        container.over.send_replace(None);
        container.run += 1;
        container.life = number;
        let (name, labels) = (container.known_as.clone(), container.labels.clone());
        self.lives.push(Life {
            container: name.to_string(),
            id: id.to_owned(),
            agent: labels.get("sundown.agent").cloned(),
            started: Instant::now(),
            signals: Vec::new(),
            ended: None,
        });
        self.alive += 1;
        let known = self.known.entry(name.clone()).or_default();
        known.runs += 1;
        let nth = known.runs as u64;
        self.tell(id, "start");
        self.weather.as_ref().and_then(|weather| weather.cuts_short(weather.whom(&name, &labels), nth))
    }

    /// Tells of a change. Without a subscriber it is lost, as in the real daemon.
    pub fn tell(&mut self, id: &str, action: &'static str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.changed.notify_waiters();
        self.changed.send_replace(());
        container.told += 1;
        let lost = self.weather.as_ref().is_some_and(|weather| {
            let whom = weather.whom(&container.known_as, &container.labels);
            weather.loses_event(whom, container.told)
        });
        if lost || self.events.receiver_count() == 0 {
            return;
        }
        let mut attributes: Labels = (*container.labels).clone();
        attributes.insert("name".to_owned(), container.name.to_string());
        if action == "die" {
            attributes.insert("exitCode".to_owned(), container.exit_code.to_string());
        }
        let actor = json!({"ID": &*container.id, "Attributes": attributes});
        let line = line(&json!({"Type": "container", "Action": action, "Actor": actor}));
        let _nobody = self.events.send(Arc::new(Event { labels: container.labels.clone(), action, line }));
    }

    /// A process ends.
    pub fn end(&mut self, id: &str, code: i64, how: End) {
        let Some(container) = self.containers.get_mut(id).filter(|container| container.alive()) else { return };
        (container.status, container.exit_code, container.pid) = ("exited", code, 0);
        container.stop_runner();
        container.over.send_replace(Some(code));
        self.alive -= 1;
        if let Some(life) = self.lives.get_mut(container.life) {
            life.ended = Some((Instant::now(), how));
        }
        self.tell(id, "die");
    }

    /// A container goes, and with it whoever lives in it.
    pub fn remove(&mut self, id: &str, how: End) {
        self.end(id, 137, how);
        self.tell(id, "destroy");
        if let Some(removed) = self.containers.remove(id) {
            self.ids.remove(&removed.name);
        }
    }
}
