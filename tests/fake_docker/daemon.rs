//! The daemon behind the wire: what each call asks for, and the processes that live meanwhile.
//!
//! A call costs the same among ten thousand containers as among ten: whatever is looked for is looked up, a change wakes only those
//! who wait for that container, and only a list walks them all.

use std::collections::hash_map::Entry;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::Call;
use super::container::{Container, Script, Step, carries, labels, summary};
use super::faults::Fault;
use super::lives::End;
use super::state::State;
use super::wire::{Answer, Body, cut, filter, flag, line, parameter, recognise, refusal, stays_open, streaming};

pub(super) struct Daemon {
    state: Mutex<State>,
    /// Told by `heal`.
    pub healed: watch::Sender<()>,
    /// When it was started.
    pub began: Instant,
}

impl Daemon {
    pub(super) fn new() -> Daemon {
        Daemon { state: Mutex::new(State::new()), healed: watch::Sender::new(()), began: Instant::now() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the call and does it, with whatever goes wrong. `Err` closes the connection.
    pub(super) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Answer, io::Error> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let body: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).map_err(io::Error::other)? };
        let (call, mut what) = recognise(&parts.method, &path);
        if call == Call::Create {
            what = Some(parameter(&query, "name").unwrap_or_else(|| format!("nameless_{}", Uuid::new_v4().simple())));
        }
        let mut healed = self.healed.subscribe();
        let fault = self.state().arrived(call, what.as_deref(), &body);
        match &fault {
            Some(Fault::Slow(delay)) => passes(*delay, &mut healed).await,
            Some(Fault::Hang) => drop(healed.changed().await),
            Some(Fault::Status(status, message)) => return Ok(refusal(*status, message)),
            Some(Fault::Empty) => return Ok(Answer::List("[]".to_owned())),
            Some(Fault::Silent) => return Ok(Answer::Stream(stays_open(streaming(stream::empty()), healed))),
            _ => {}
        }
        let answer = self.act(call, what.as_deref().unwrap_or_default(), &query, body);
        match fault {
            Some(Fault::Late(delay)) => passes(delay, &mut healed).await,
            Some(Fault::LostResponse) => return Err(io::Error::other("the response is lost")),
            Some(Fault::Truncated) => return Ok(cut(answer)),
            Some(Fault::Mute) => match answer {
                Answer::Stream(body) => return Ok(Answer::Stream(stays_open(body, healed))),
                _ => drop(healed.changed().await),
            },
            _ => {}
        }
        Ok(answer)
    }

    fn act(self: &Arc<Self>, call: Call, what: &str, query: &str, body: Value) -> Answer {
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
            Call::Create => self.create(what, body),
            Call::Start => self.start(what),
            Call::Kill => self.kill(what, &parameter(query, "signal").unwrap_or_default()),
            Call::Pause => self.pause(what),
            Call::Unpause => self.unpause(what),
            Call::Rename => self.rename(what, &parameter(query, "name").unwrap_or_default()),
            Call::Remove => self.remove(what, flag(query, "force")),
            Call::Inspect => match self.state().find(what) {
                Some(container) => Answer::Json(200, container.inspected()),
                None => no_such(what),
            },
            Call::Wait => self.wait(what),
            Call::Logs => self.clone().logs(what, query),
            Call::List => self.list(query),
            Call::Events => Answer::Stream(self.subscribe(query)),
            Call::CreateVolume => self.create_volume(&body),
            Call::InspectVolume => match self.state().volumes.get(what) {
                Some(volume) => Answer::Json(200, volume.clone()),
                None => no_such_volume(what),
            },
            Call::RemoveVolume => match self.state().volumes.remove(what) {
                Some(_) => Answer::Empty(204),
                None => no_such_volume(what),
            },
            Call::Other => refusal(404, "page not found"),
        }
    }

    /// The daemon's own order: the request, the image, the name.
    pub(super) fn create(&self, name: &str, body: Value) -> Answer {
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
        if let Some(taken) = state.find(name) {
            return name_taken(name, &taken.id);
        }
        let id: Arc<str> = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()).into();
        state.add(Container::new(id.clone(), name.into(), labels(&body), body));
        Answer::Json(201, json!({"Id": &*id, "Warnings": []}))
    }

    /// Like the real one, it runs an exited container again.
    pub(super) fn start(self: &Arc<Self>, what: &str) -> Answer {
        let mut state = self.state();
        let Some(container) = state.find(what) else {
            return no_such(what);
        };
        match container.status {
            "running" => return Answer::Empty(304),
            "paused" => return refusal(409, "cannot start a paused container, try unpause instead"),
            _ => {}
        }
        if let Some((status, error)) = container.cannot_start() {
            container.error.clone_from(&error);
            return refusal(status, &error);
        }
        let (id, run, steps) = (container.id.clone(), container.run + 1, Script::of(&container.body["Cmd"]).steps());
        let cut_short = state.begin(&id);
        // It waits for the lock that we hold.
        let runner = tokio::spawn(self.clone().live(id.clone(), run, steps)).abort_handle();
        if let Some(container) = state.find(&id) {
            container.runner = Some(runner);
        }
        if let Some(after) = cut_short {
            tokio::spawn(self.clone().vanish(id, run, after));
        }
        Answer::Empty(204)
    }

    async fn vanish(self: Arc<Self>, id: Arc<str>, run: u64, after: Duration) {
        let mut healed = self.healed.subscribe();
        tokio::select! {
            () = sleep(after) => {}
            _ = healed.changed() => return,
        }
        let mut state = self.state();
        if state.containers.get(&id).is_some_and(|container| container.run == run && container.alive()) {
            state.remove(&id, End::Vanished);
        }
    }

    async fn live(self: Arc<Self>, id: Arc<str>, run: u64, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Sleep(Some(duration)) => sleep(duration).await,
                Step::Sleep(None) => std::future::pending().await,
                _ => {}
            }
            // Time passes for a frozen process, too; but it does nothing.
            self.thawed(&id).await;
            let mut state = self.state();
            let Some(container) = state.containers.get_mut(&id).filter(|container| container.run == run && container.alive()) else {
                return;
            };
            match step {
                Step::Write { stderr, bytes } => container.write(stderr, &bytes),
                Step::IgnoreTerm => container.ignores_term = true,
                Step::Exit(code) => return state.end(&id, code, End::Itself(code)),
                Step::Oom { survived } => {
                    container.oom_killed = true;
                    state.tell(&id, "oom");
                    if !survived {
                        return state.end(&id, 137, End::OutOfMemory);
                    }
                }
                Step::Sleep(_) => {}
            }
        }
    }

    async fn thawed(&self, id: &str) {
        loop {
            let changed = match self.state().containers.get(id) {
                Some(container) if container.status == "paused" => container.changed.clone(),
                _ => return,
            };
            let mut told = std::pin::pin!(changed.notified());
            told.as_mut().enable();
            if self.state().containers.get(id).is_none_or(|container| container.status != "paused") {
                return;
            }
            told.await;
        }
    }

    fn kill(&self, what: &str, signal: &str) -> Answer {
        let Some((signal, number)) = signal_named(signal) else {
            return refusal(400, &format!("Invalid signal: {signal}"));
        };
        let mut state = self.state();
        let Some(container) = state.find(what) else {
            return refusal(404, &format!("Cannot kill container: {what}: No such container: {what}"));
        };
        let (id, life) = (container.id.clone(), container.life);
        if !container.alive() {
            return refusal(409, &format!("Cannot kill container: {what}: Container {id} is not running"));
        }
        // The daemon thaws whom it signals.
        container.status = "running";
        let ignored = signal == "SIGTERM" && container.ignores_term;
        state.lives[life].signals.push((signal, Instant::now()));
        state.tell(&id, "kill");
        if !ignored {
            state.end(&id, 128 + number, End::Signalled(signal));
        }
        Answer::Empty(204)
    }

    fn pause(&self, what: &str) -> Answer {
        let mut state = self.state();
        let Some(container) = state.find(what) else {
            return no_such(what);
        };
        let id = container.id.clone();
        match container.status {
            "running" => container.status = "paused",
            "paused" => return refusal(409, &format!("Container {id} is already paused")),
            _ => return refusal(409, &format!("Container {id} is not running")),
        }
        state.tell(&id, "pause");
        Answer::Empty(204)
    }

    fn unpause(&self, what: &str) -> Answer {
        let mut state = self.state();
        let Some(container) = state.find(what) else {
            return no_such(what);
        };
        let id = container.id.clone();
        if container.status != "paused" {
            return refusal(500, &format!("Container {id} is not paused"));
        }
        container.status = "running";
        state.tell(&id, "unpause");
        Answer::Empty(204)
    }

    fn rename(&self, what: &str, name: &str) -> Answer {
        let mut state = self.state();
        let Some(id) = state.id_of(what) else {
            return no_such(what);
        };
        match state.rename(&id, name) {
            Ok(()) => Answer::Empty(204),
            Err(taken) => name_taken(name, &taken),
        }
    }

    fn remove(&self, what: &str, force: bool) -> Answer {
        let mut state = self.state();
        let Some(container) = state.find(what) else {
            return no_such(what);
        };
        let id = container.id.clone();
        if container.alive() && !force {
            return refusal(409, &format!("You cannot remove a running container {id}. Stop it before, or force remove"));
        }
        state.remove(&id, End::Removed);
        Answer::Empty(204)
    }

    fn wait(&self, what: &str) -> Answer {
        let Some(mut over) = self.state().find(what).map(|container| container.over.subscribe()) else {
            return no_such(what);
        };
        Answer::Stream(streaming(stream::once(async move {
            // The sender goes with its container, which ended before it went.
            let code = over.wait_for(Option::is_some).await.ok().and_then(|code| *code);
            line(&json!({"Error": null, "StatusCode": code.unwrap_or(137)}))
        })))
    }

    fn logs(self: Arc<Self>, what: &str, query: &str) -> Answer {
        let follow = flag(query, "follow");
        let (stdout, stderr) = (flag(query, "stdout"), flag(query, "stderr"));
        if !stdout && !stderr {
            return refusal(400, "Bad parameters: you must choose at least one stream");
        }
        let tail: usize = parameter(query, "tail").and_then(|tail| tail.parse().ok()).unwrap_or(usize::MAX);
        let mut state = self.state();
        let Some(container) = state.find(what) else {
            return no_such(what);
        };
        let (id, first, changed) = (container.id.clone(), container.output.len().saturating_sub(tail), container.changed.clone());
        drop(state);
        Answer::Stream(streaming(stream::unfold(first, move |mut next| {
            let (daemon, id, changed) = (self.clone(), id.clone(), changed.clone());
            async move {
                loop {
                    let mut told = std::pin::pin!(changed.notified());
                    told.as_mut().enable();
                    {
                        let state = daemon.state();
                        let container = state.containers.get(&id)?;
                        while let Some(entry) = container.output.get(next) {
                            next += 1;
                            if if entry.stderr { stderr } else { stdout } {
                                return Some((entry.frame.clone(), next));
                            }
                        }
                        if !follow || !container.alive() {
                            return None;
                        }
                    }
                    told.await;
                }
            }
        })))
    }

    fn list(&self, query: &str) -> Answer {
        let (wanted, all) = (filter(query, "label"), flag(query, "all"));
        let found: Vec<_> = {
            let state = self.state();
            let found = state.containers.values().filter(|c| (all || c.alive()) && carries(&c.labels, &wanted));
            found.map(Container::listed).collect()
        };
        let found: Vec<String> = found.iter().map(summary).collect();
        Answer::List(format!("[{}]", found.join(",")))
    }

    fn subscribe(&self, query: &str) -> Body {
        let (labels, actions, types) = (filter(query, "label"), filter(query, "event"), filter(query, "type"));
        // There are no others.
        let ours = types.is_empty() || types.iter().any(|wanted| wanted == "container");
        // A subscriber that lags behind is cut off.
        let events = self.state().subscribe();
        let events = stream::unfold(events, |mut events| async { Some((events.recv().await.ok()?, events)) });
        streaming(events.filter_map(move |event| {
            let wanted = ours && (actions.is_empty() || actions.iter().any(|action| *action == event.action));
            std::future::ready((wanted && carries(&event.labels, &labels)).then(|| event.line.clone()))
        }))
    }

    fn create_volume(&self, asked: &Value) -> Answer {
        let name = asked["Name"].as_str().unwrap_or_default().to_owned();
        let new = json!({
            "Name": name, "Driver": "local", "Mountpoint": "", "Labels": asked["Labels"], "Options": null, "Scope": "local",
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
}

/// So much time, or less if it heals.
async fn passes(delay: Duration, healed: &mut watch::Receiver<()>) {
    tokio::select! {
        () = sleep(delay) => {}
        _ = healed.changed() => {}
    }
}

fn signal_named(name: &str) -> Option<(&'static str, i64)> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    Some(match name {
        "" | "KILL" | "9" => ("SIGKILL", 9),
        "TERM" | "15" => ("SIGTERM", 15),
        "INT" | "2" => ("SIGINT", 2),
        "HUP" | "1" => ("SIGHUP", 1),
        "QUIT" | "3" => ("SIGQUIT", 3),
        _ => return None,
    })
}

fn name_taken(name: &str, id: &str) -> Answer {
    refusal(409, &format!("Conflict. The container name \"/{name}\" is already in use by container \"{id}\"."))
}

fn no_such(what: &str) -> Answer {
    refusal(404, &format!("No such container: {what}"))
}

fn no_such_volume(name: &str) -> Answer {
    refusal(404, &format!("get {name}: no such volume"))
}
