//! What the daemon says about a container: inspected, listed, or in an event.
//!
//! It must not ask the daemon, and judges nothing but whether a container is an agent's, and ours. An answer without an id or a
//! status is no answer, never a container in some default state.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary, ContainerSummaryStateEnum, EventMessage};
use uuid::Uuid;

use super::DockerError;
use super::failure::{incomplete, message};

pub(super) const LABEL_INSTALLATION: &str = "sundown.installation";
/// The longest possible life of the container's process, in whole seconds.
pub(super) const LABEL_LONGEST_LIFE: &str = "sundown.longest_life";
pub(super) const LABEL_AGENT: &str = "sundown.agent";

/// What the daemon says a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Never started, or its start failed.
    Created,
    /// Also while it is being stopped.
    Running,
    /// Frozen; still alive.
    Paused,
    /// Between two runs; never with our restart policy.
    Restarting,
    /// Ended.
    Exited,
    /// Ended; its removal failed half-way.
    Dead,
    /// Being removed.
    Removing,
}

impl Status {
    /// It has processes, be they frozen.
    #[must_use]
    pub fn is_alive(self) -> bool {
        match self {
            Self::Running | Self::Paused | Self::Restarting => true,
            Self::Created | Self::Exited | Self::Dead | Self::Removing => false,
        }
    }
}

/// One container, as inspected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Full id.
    pub id: String,
    /// Without the leading slash.
    pub name: String,
    /// Both labels are ours, and the name is one that we give to that agent. Only such a container may be adopted.
    pub ours: bool,
    /// The name says that the dead man was about to end it.
    pub overdue: bool,
    /// The agent named by the label, whoever set it.
    pub agent: Option<Uuid>,
    /// What it is doing.
    pub status: Status,
    /// Whether it ever ran. Starting an exited container runs it a second time: never start what this says yes to.
    pub ever_started: bool,
    /// Host pid of its init while it is alive.
    pub pid: Option<u32>,
    /// Only once it has ended. 126 and 127 also come from the init, when the command cannot be executed or found.
    pub exit_code: Option<i64>,
    /// The kernel's OOM killer was at work inside since the last start. The victim may have been a child: an agent
    /// that survives it and exits 0 carries the flag too. Read it together with the exit code.
    pub oom_killed: bool,
    /// Why its start failed, else empty. Bounded.
    pub error: String,
    /// By the daemon's clock, RFC 3339; for people, never for decisions.
    pub started_at: Option<String>,
    /// By the daemon's clock, RFC 3339; after a reboot of the host it is the time of the reboot.
    pub finished_at: Option<String>,
}

/// One container, as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Full id.
    pub id: String,
    /// Without leading slashes; a container renamed by hand keeps its labels.
    pub names: Vec<String>,
    /// The agent named by the label, if it is a UUID.
    pub agent: Option<Uuid>,
    /// What it is doing; may lag behind by moments.
    pub status: Status,
    /// All labels.
    pub labels: HashMap<String, String>,
}

/// What happened, in an [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It runs.
    Start,
    /// Its init has ended.
    Die,
    /// The OOM killer was at work inside it.
    Oom,
    /// It has been removed.
    Destroy,
}

/// A hint that something happened to a container of ours. Events get lost: only a list or an inspect is a fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// Full id.
    pub container_id: String,
    /// The agent named by the label.
    pub agent: Option<Uuid>,
}

/// The name that we give to an agent's container: also the mutex of its creation, for the daemon keeps names unique.
pub fn container_name(agent: Uuid) -> String {
    format!("sundown-{agent}")
}

/// The name that the dead man gives to it before he ends it. What is written there outlives whoever wrote it, and goes with the container.
pub fn overdue_name(agent: Uuid) -> String {
    format!("sundown-{agent}-overdue")
}

impl Container {
    /// `installation` is ours.
    pub(super) fn inspected(answer: ContainerInspectResponse, installation: Uuid) -> Result<Container, DockerError> {
        let (Some(id), Some(name), Some(state)) = (answer.id, answer.name, answer.state) else {
            return Err(incomplete("inspect"));
        };
        let name = name.trim_start_matches('/').to_owned();
        let status = match state.status {
            Some(ContainerStateStatusEnum::CREATED) => Status::Created,
            Some(ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::STOPPING) => Status::Running,
            Some(ContainerStateStatusEnum::PAUSED) => Status::Paused,
            Some(ContainerStateStatusEnum::RESTARTING) => Status::Restarting,
            Some(ContainerStateStatusEnum::EXITED) => Status::Exited,
            Some(ContainerStateStatusEnum::DEAD) => Status::Dead,
            Some(ContainerStateStatusEnum::REMOVING) => Status::Removing,
            Some(ContainerStateStatusEnum::EMPTY) | None => return Err(incomplete("inspect")),
        };
        let labels = answer.config.and_then(|config| config.labels).unwrap_or_default();
        let agent = uuid_label(&labels, LABEL_AGENT);
        let overdue = agent.is_some_and(|agent| name == overdue_name(agent));
        let named = overdue || agent.is_some_and(|agent| name == container_name(agent));
        let started_at = state.started_at.filter(|at| is_an_instant(at));
        let ended = matches!(status, Status::Exited | Status::Dead);
        Ok(Container {
            ours: named && uuid_label(&labels, LABEL_INSTALLATION) == Some(installation),
            overdue,
            id,
            name,
            agent,
            status,
            ever_started: started_at.is_some(),
            pid: state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0),
            exit_code: state.exit_code.filter(|_| ended),
            oom_killed: state.oom_killed.unwrap_or_default(),
            error: message(&state.error.unwrap_or_default()),
            started_at,
            finished_at: state.finished_at.filter(|at| is_an_instant(at)),
        })
    }
}

impl Listed {
    pub(super) fn from_summary(summary: ContainerSummary) -> Result<Listed, DockerError> {
        let (Some(id), Some(state)) = (summary.id, summary.state) else {
            return Err(incomplete("list"));
        };
        let labels = summary.labels.unwrap_or_default();
        Ok(Listed {
            id,
            names: summary.names.unwrap_or_default().iter().map(|name| name.trim_start_matches('/').to_owned()).collect(),
            agent: uuid_label(&labels, LABEL_AGENT),
            status: match state {
                ContainerSummaryStateEnum::CREATED => Status::Created,
                ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::STOPPING => Status::Running,
                ContainerSummaryStateEnum::PAUSED => Status::Paused,
                ContainerSummaryStateEnum::RESTARTING => Status::Restarting,
                ContainerSummaryStateEnum::EXITED => Status::Exited,
                ContainerSummaryStateEnum::DEAD => Status::Dead,
                ContainerSummaryStateEnum::REMOVING => Status::Removing,
                ContainerSummaryStateEnum::EMPTY => return Err(incomplete("list")),
            },
            labels,
        })
    }

    /// The agent whose container this is by everything that Sundown gives to one: an installation, an agent, and a name for it. Labels
    /// alone are copied easily.
    #[must_use]
    pub fn of_agent(&self) -> Option<Uuid> {
        let agent = self.agent?;
        let named = self.is_overdue() || self.names.contains(&container_name(agent));
        (named && uuid_label(&self.labels, LABEL_INSTALLATION).is_some()).then_some(agent)
    }

    /// The name says that the dead man was about to end it.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        self.agent.is_some_and(|agent| self.names.contains(&overdue_name(agent)))
    }

    /// How long its process may live at most, says its label.
    #[must_use]
    pub fn longest_life(&self) -> Option<Duration> {
        self.labels.get(LABEL_LONGEST_LIFE)?.parse().ok().map(Duration::from_secs)
    }
}

impl Event {
    pub(super) fn from_message(message: EventMessage) -> Option<Event> {
        let kind = match message.action.as_deref()? {
            "start" => EventKind::Start,
            "die" => EventKind::Die,
            "oom" => EventKind::Oom,
            "destroy" => EventKind::Destroy,
            _ => return None,
        };
        let actor = message.actor?;
        let agent = uuid_label(&actor.attributes.unwrap_or_default(), LABEL_AGENT);
        Some(Event { kind, container_id: actor.id?, agent })
    }
}

pub(super) fn uuid_label(labels: &HashMap<String, String>, key: &str) -> Option<Uuid> {
    labels.get(key)?.parse().ok()
}

/// The daemon writes "never" as the first second of the year 1.
fn is_an_instant(at: &str) -> bool {
    !at.is_empty() && !at.starts_with("0001-01-01T")
}
