//! The row, the container, what each replica has in its hands; and the daemon.

use std::time::Duration;

use sundown::docker::{self, Status};
use sundown::reconcile::Seen;
use sundown::sql::work::{Claim, Facts};
use uuid::Uuid;

/// The code that the agent exits with by itself; a signal gives another.
pub const OWN_CODE: i32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    Pending,
    Running,
    Terminating,
}

/// Whether somebody else may claim the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lease {
    /// `leased_by` is null.
    Free,
    Held,
    /// `due_at` has come, and its holder may not know it.
    Over,
}

/// Facts of an end, as `observe` writes them and the outcome says them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct End {
    pub state: &'static str,
    pub reason: Option<&'static str>,
    pub code: Option<i32>,
}

impl End {
    /// By itself.
    pub const EXITED: Self = Self { code: Some(OWN_CODE), ..Self::failed("exited") };

    pub const fn failed(reason: &'static str) -> Self {
        Self { state: "failed", reason: Some(reason), code: None }
    }

    pub fn of(facts: &Facts) -> Self {
        Self { state: facts.state, reason: facts.reason, code: facts.exit_code }
    }
}

/// `agent_live`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    pub placed: bool,
    pub state: State,
    pub container: Option<u8>,
    pub lease: Lease,
    pub signalled: bool,
    pub killed: bool,
    pub observed: Option<End>,
}

/// What the daemon has under an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    Created,
    Running,
    /// It runs, and the stop signal has reached it.
    Asked,
    Exited(i32),
}

/// What a replica knows of the row: as its claim returned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Known {
    pub state: State,
    pub container: Option<u8>,
    pub signalled: bool,
    pub killed: bool,
    pub observed: bool,
    pub start_timed_out: bool,
}

/// Who looks: it decides which of the actions are his.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// launcher.rs, `start`.
    Start,
    /// sweeper.rs, `step`.
    Stop,
    /// sweeper.rs, `kill`, after SIGKILL: only an end is its to act on.
    Killed,
    /// keeper.rs, `judge_later`: likewise.
    Judge,
}

/// The next step of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Todo {
    Look(Task),
    Create,
    Record(u8),
    Start(u8),
    /// The lease has been checked; only with `Defect::CheckApartFromStart`.
    StartUnchecked(u8),
    /// `running`, and what to do after it.
    Running(Option<(End, Option<u8>)>),
    Observe(End, Option<u8>),
    Remove(u8),
    Finish(Option<u8>),
    Signalling(u8),
    Signal(u8),
    Signalled,
    /// The intent of a SIGKILL without a look.
    Killing(u8),
    Kill(u8),
    Rest,
    /// After Docker failed: `try_again`.
    Release,
}

/// A replica at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Work {
    /// Its epoch is the row's.
    pub newest: bool,
    /// By its own monotonic clock.
    pub lease_over: bool,
    pub row: Known,
    pub todo: Todo,
}

/// Everything at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub row: Option<Row>,
    pub outcome: Option<End>,
    pub containers: Vec<(u8, Life)>,
    /// What each replica has in its hands.
    pub replicas: [Vec<Work>; 2],
    /// How often a container of the agent was set running.
    pub runs: u8,
    pub outcomes: u8,
    /// It exited by itself before anybody had decided to end it.
    pub exited_first: bool,
    /// Something that runs was signalled, killed or removed with no decision to end it committed.
    pub wronged: bool,
}

impl Known {
    /// Of one who does not need to know.
    pub const NOTHING: Self =
        Self { state: State::Pending, container: None, signalled: false, killed: false, observed: false, start_timed_out: false };

    pub fn of(row: &Row, start_timed_out: bool) -> Self {
        let Row { state, container, signalled, killed, observed, .. } = *row;
        Self { state, container, signalled, killed, observed: observed.is_some(), start_timed_out }
    }

    /// As `reconcile` takes it.
    pub fn claim(&self, state: State) -> Claim {
        Claim {
            id: Uuid::nil(),
            epoch: 1,
            host: 1,
            state: match state {
                State::Pending => "pending",
                State::Running => "running",
                State::Terminating => "terminating",
            }
            .to_owned(),
            container_id: self.container.map(|id| id.to_string()),
            attempts: 1,
            started: state == State::Running,
            signalled: self.signalled,
            killed: self.killed,
            observed: self.observed,
            grace: Duration::from_secs(10),
            lease: Duration::from_secs(15),
            start_timed_out: self.start_timed_out,
            grace_over: false,
        }
    }
}

impl Work {
    /// As a claim or a read of the row returned it.
    pub fn of(row: &Row, start_timed_out: bool, todo: Todo) -> Self {
        Self { newest: true, lease_over: false, row: Known::of(row, start_timed_out), todo }.with(todo)
    }

    /// The container that gets a SIGKILL without a look, if that is all that is left to do.
    pub fn kills_unseen(&self) -> Option<u8> {
        let Known { state, container, signalled, observed, .. } = self.row;
        container.filter(|_| self.todo == Todo::Look(Task::Stop) && state == State::Terminating && !signalled && !observed)
    }

    pub fn lose_lease(&mut self) {
        self.lease_over = self.todo.may_start();
    }

    /// On to another step, forgetting what no longer matters.
    pub fn with(self, todo: Todo) -> Self {
        let row = if todo.needs_row() { self.row } else { Known::NOTHING };
        Self { todo, row, lease_over: self.lease_over && todo.may_start(), ..self }
    }
}

pub fn number(id: &str) -> u8 {
    id.parse().unwrap_or_else(|_| panic!("{id} is no id of this daemon"))
}

impl Life {
    pub fn runs(self) -> bool {
        matches!(self, Self::Running | Self::Asked)
    }
}

impl World {
    /// An agent that waits for its place, and two replicas that do nothing.
    pub fn submitted() -> Self {
        let row = Row {
            placed: false,
            state: State::Pending,
            container: None,
            lease: Lease::Free,
            signalled: false,
            killed: false,
            observed: None,
        };
        Self {
            row: Some(row),
            outcome: None,
            containers: Vec::new(),
            replicas: [Vec::new(), Vec::new()],
            runs: 0,
            outcomes: 0,
            exited_first: false,
            wronged: false,
        }
    }

    /// The outcome, and the row gone with it.
    pub fn end(&mut self, end: End) {
        (self.row, self.outcome, self.outcomes) = (None, Some(end), (self.outcomes + 1).min(2));
    }

    pub fn ended(&self, reasons: &[&str]) -> bool {
        self.outcome.and_then(|end| end.reason).is_some_and(|reason| reasons.contains(&reason))
    }

    pub fn life(&self, id: u8) -> Option<Life> {
        self.containers.iter().find(|(other, _)| *other == id).map(|(_, life)| *life)
    }

    pub fn set(&mut self, id: u8, life: Life) {
        for container in &mut self.containers {
            if container.0 == id {
                container.1 = life;
            }
        }
    }

    pub fn alive(&self) -> usize {
        self.containers.iter().filter(|(_, life)| life.runs()).count()
    }

    pub fn works(&mut self) -> impl Iterator<Item = &mut Work> {
        self.replicas.iter_mut().flatten()
    }

    /// A replica has the row in its hands, under a new epoch. The time that passed is the start's, if it is one.
    pub fn take(&mut self, replica: usize, passed: bool, todo: Todo) {
        self.fence();
        let work = self.row.as_ref().map(|row| Work::of(row, row.state == State::Pending && passed, todo));
        self.replicas[replica].extend(work);
    }

    /// A new epoch: what everybody knew is old.
    pub fn fence(&mut self) {
        for work in self.works() {
            work.newest = false;
        }
    }

    /// As an inspect shows it: the recorded container, or the one that has the name.
    pub fn look(&self, known: &Known, nameless: bool) -> Seen {
        let by_name = if nameless { None } else { self.containers.first().map(|(id, _)| *id) };
        let Some(id) = known.container.or(by_name) else { return Seen::Gone };
        let Some(life) = self.life(id) else { return Seen::Gone };
        let exit_code = if let Life::Exited(code) = life { Some(i64::from(code)) } else { None };
        Seen::of(Some(docker::Container {
            id: id.to_string(),
            name: docker::container_name(Uuid::nil()),
            ours: true,
            agent: Some(Uuid::nil()),
            status: match life {
                Life::Created => Status::Created,
                Life::Running | Life::Asked => Status::Running,
                Life::Exited(_) => Status::Exited,
            },
            ever_started: life != Life::Created,
            pid: None,
            exit_code,
            oom_killed: false,
            overdue: false,
            error: String::new(),
            started_at: None,
            finished_at: None,
        }))
    }

    /// `None`: the name is taken.
    pub fn create(&mut self, nameless: bool) -> Option<u8> {
        if !self.containers.is_empty() && !nameless {
            return None;
        }
        let known = |id: u8| {
            self.life(id).is_some()
                || self.row.is_some_and(|row| row.container == Some(id))
                || self.replicas.iter().flatten().any(|work| work.row.container == Some(id) || work.todo.container() == Some(id))
        };
        let id = (0..).find(|id| !known(*id))?;
        self.containers.push((id, Life::Created));
        Some(id)
    }

    /// False: there is no such container.
    pub fn start(&mut self, id: u8) -> bool {
        match self.life(id) {
            None => return false,
            Some(Life::Running | Life::Asked) => {}
            // Also what has exited: dockerd runs it once more.
            Some(Life::Created | Life::Exited(_)) => {
                self.set(id, Life::Running);
                self.runs = (self.runs + 1).min(2);
            }
        }
        true
    }

    /// Before a signal, a kill or a removal: is it one that may be?
    pub fn harm(&mut self, id: u8) {
        if self.life(id).is_some_and(Life::runs) && self.row.is_some_and(|row| row.state != State::Terminating) {
            self.wronged = true;
        }
    }

    pub fn signal(&mut self, id: u8) {
        self.harm(id);
        if self.life(id) == Some(Life::Running) {
            self.set(id, Life::Asked);
        }
    }

    /// SIGKILL, and the wait for the container to stop.
    pub fn kill(&mut self, id: u8) {
        self.harm(id);
        if self.life(id).is_some_and(Life::runs) {
            self.set(id, Life::Exited(137));
        }
    }

    pub fn remove(&mut self, id: u8) {
        self.harm(id);
        self.containers.retain(|(other, _)| *other != id);
    }
}

impl Todo {
    pub fn container(self) -> Option<u8> {
        match self {
            Self::Record(id)
            | Self::Start(id)
            | Self::StartUnchecked(id)
            | Self::Remove(id)
            | Self::Signalling(id)
            | Self::Signal(id)
            | Self::Killing(id)
            | Self::Kill(id) => Some(id),
            Self::Observe(_, id) | Self::Finish(id) | Self::Running(Some((_, id))) => id,
            Self::Look(_) | Self::Create | Self::Running(None) | Self::Signalled | Self::Rest | Self::Release => None,
        }
    }

    /// It is a call to Docker.
    pub fn asks_docker(self) -> bool {
        match self {
            Self::Look(_) | Self::Create | Self::Start(_) | Self::StartUnchecked(_) | Self::Remove(_) | Self::Signal(_) | Self::Kill(_) => {
                true
            }
            Self::Record(_) | Self::Running(_) | Self::Observe(..) | Self::Finish(_) => false,
            Self::Signalling(_) | Self::Signalled | Self::Killing(_) | Self::Rest | Self::Release => false,
        }
    }

    /// A start call may still come of it.
    pub fn may_start(self) -> bool {
        matches!(self, Self::Look(Task::Start) | Self::Create | Self::Record(_) | Self::Start(_) | Self::StartUnchecked(_))
    }

    /// What was known of the row still matters.
    pub fn needs_row(self) -> bool {
        self.may_start() || matches!(self, Self::Look(_) | Self::Signalling(_) | Self::Signal(_) | Self::Killing(_) | Self::Kill(_))
    }
}
