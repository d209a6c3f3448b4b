//! The dead man: ends an agent that is past its longest life when nobody else can, because Postgres is away or nothing else of Sundown
//! is alive. The container's label says how long its process may live: until SIGKILL at the latest deadline that any extension allows.
//!
//! Must not know SQL, and never removes a container: its exit code and its log are recorded when there is a database again. Before it
//! kills, it writes into the container's name that it does; whoever looks then knows whose end this was (see [`crate::reconcile`]),
//! also when this process is gone by that time.
//!
//! Guarantees: nobody is ended too early. An age is that of the container's process on the boot-time clock, where we can see that
//! process and are certain of it; else the time since we first saw this container run, which is less. Only containers with a name, an
//! agent and an installation as we give them are touched; whoever merely copied the labels is not.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Deadman;
use crate::docker::{Docker, DockerError, Listed, Signal, Signalled};
use crate::process;
use crate::replica::Replica;
use crate::serve::Fatal;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// One look in so many is had while the database is there: of what we cannot see the age, it is counted from the first.
const CALM: u32 = 12;
/// Containers attended to at once: one that hangs holds up nobody else.
const AT_ONCE: usize = 64;

/// Watches one endpoint of a replica until that is told to stop; ends agents while the database has been away for longer than `grace`.
/// Has a connection of its own: with the database away, the keeper cannot even register a daemon that comes back.
pub async fn watch(replica: Arc<Replica>, endpoint: String, grace: Duration) {
    let mut daemon = Daemon::new(endpoint, Some(replica.sql.installation()));
    let away = || replica.database_away().is_some_and(|away| away > grace);
    let looking = async {
        for round in (0..CALM).cycle() {
            if (round == 0 || replica.database_away().is_some())
                // A daemon that does not answer is its keeper's to complain of.
                && let Ok(counts) = daemon.look(Duration::ZERO, away).await
            {
                replica.metrics.overdue.inc_by(counts.ended);
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        () = looking => {}
        () = replica.stop.cancelled() => {}
    }
}

/// `sundown deadman`: watches until `shutdown`.
///
/// # Errors
/// When one of its loops broke.
pub async fn run(config: &Deadman, shutdown: CancellationToken) -> Result<(), Fatal> {
    let mut loops = JoinSet::new();
    for endpoint in config.endpoints.all() {
        loops.spawn(watch_alone(Daemon::new(endpoint, config.installation), config.grace.0));
    }
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        _ = loops.join_next() => Err(Fatal::Internal("a loop broke; ending, so that nothing runs without it".to_owned())),
    }
}

async fn watch_alone(mut daemon: Daemon, grace: Duration) {
    let mut said = None;
    loop {
        match daemon.look(grace, || true).await {
            Ok(counts) => {
                if said.take().is_some() {
                    tracing::info!(endpoint = daemon.endpoint, agents = counts.agents, "the host answers again");
                }
            }
            Err(error) => {
                let error = error.to_string();
                if said.as_ref() != Some(&error) {
                    tracing::warn!(endpoint = daemon.endpoint, error, "the host is out of reach; trying again");
                }
                said = Some(error);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// `sundown deadman --once`.
///
/// # Errors
/// When a host does not answer, or somebody could not be ended.
pub async fn once(config: &Deadman) -> Result<Counts, Fatal> {
    let looks = stream::iter(config.endpoints.all()).map(async |endpoint| {
        let mut daemon = Daemon::new(endpoint, config.installation);
        let counts = daemon.look(config.grace.0, || true).await;
        counts.map_err(|error| Fatal::Unavailable(format!("{}: {error}", daemon.endpoint)))
    });
    let mut all = Counts::default();
    // Every host is looked at, whichever of them does not answer.
    for counts in looks.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await {
        all.add(counts?);
    }
    if all.failed > 0 {
        return Err(Fatal::Unavailable(format!("{} agents past their longest life could not be ended", all.failed)));
    }
    Ok(all)
}

/// What a look came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Agents that are alive and have a longest life.
    pub agents: u64,
    /// Those of them whose processes cannot be seen from here: only time tells that they are past it.
    pub unseen: u64,
    /// Those that were ended.
    pub ended: u64,
    /// Those that were to be ended, and could not be.
    pub failed: u64,
}

impl Counts {
    fn add(&mut self, more: Counts) {
        self.agents += more.agents;
        self.unseen += more.unseen;
        self.ended += more.ended;
        self.failed += more.failed;
    }
}

/// One daemon, and since when its containers are known to run.
struct Daemon {
    endpoint: String,
    installation: Option<Uuid>,
    docker: Option<Docker>,
    seen: HashMap<String, Sight>,
}

/// What is known of the age of a container that runs.
#[derive(Debug, Clone, Copy)]
struct Sight {
    /// When we first saw it run.
    since: Instant,
    process: Process,
}

/// A container's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    Unasked,
    /// Not to be seen from here.
    Unseen,
    /// When it was born, since boot.
    Born(Duration),
}

impl Sight {
    /// How long it has lived at least.
    fn age(&self) -> Duration {
        let process = match self.process {
            Process::Born(born) => process::since_boot().unwrap_or_default().saturating_sub(born),
            Process::Unasked | Process::Unseen => Duration::ZERO,
        };
        self.since.elapsed().max(process)
    }
}

impl Daemon {
    fn new(endpoint: String, installation: Option<Uuid>) -> Self {
        Self { endpoint, installation, docker: None, seen: HashMap::new() }
    }

    /// Looks at every agent there, and while `may_act` ends those that are past their longest life by more than `grace`.
    async fn look(&mut self, grace: Duration, may_act: impl Fn() -> bool) -> Result<Counts, DockerError> {
        let docker = match self.docker.take() {
            Some(docker) => docker,
            None => Docker::connect(&self.endpoint, self.installation.unwrap_or_default()).await?,
        };
        let listed = match self.installation {
            Some(_) => docker.list().await?,
            None => docker.list_every_installation().await?,
        };
        let agents: Vec<Agent> = listed.into_iter().filter_map(Agent::of).collect();
        let there: HashSet<&str> = agents.iter().map(|agent| agent.container.id.as_str()).collect();
        self.seen.retain(|id, _| there.contains(id.as_str()));
        let mut counts = Counts { agents: agents.len() as u64, ..Counts::default() };
        let mut attended = Vec::new();
        for agent in agents {
            let known = self.seen.get(&agent.container.id).copied();
            let sight = known.unwrap_or_else(|| Sight { since: Instant::now(), process: Process::Unasked });
            attended.push(agent.attend(&docker, sight, grace, &may_act));
        }
        let mut attended = stream::iter(attended).buffer_unordered(AT_ONCE);
        while let Some((id, sight, done)) = attended.next().await {
            self.seen.insert(id, sight);
            counts.unseen += u64::from(!matches!(sight.process, Process::Born(_)));
            match done {
                Done::Left => {}
                Done::Ended => counts.ended += 1,
                Done::Failed => counts.failed += 1,
            }
        }
        drop(attended);
        self.docker = Some(docker);
        Ok(counts)
    }
}

/// An agent that is alive and has a longest life.
struct Agent {
    id: Uuid,
    longest_life: Duration,
    container: Listed,
}

/// What became of an agent at a look.
enum Done {
    Left,
    Ended,
    Failed,
}

impl Agent {
    fn of(container: Listed) -> Option<Self> {
        let (id, longest_life) = (container.of_agent()?, container.longest_life()?);
        container.status.is_alive().then_some(Self { id, longest_life, container })
    }

    async fn attend(self, docker: &Docker, mut sight: Sight, grace: Duration, may_act: &impl Fn() -> bool) -> (String, Sight, Done) {
        let over = |sight: &Sight| sight.age() > self.longest_life.saturating_add(grace);
        if may_act() && !over(&sight) && sight.process == Process::Unasked {
            // Asked once: a process's birth does not change. Without an answer, again at the next look.
            if let Ok(Some(pid)) = docker.inspect(&self.container.id).await.map(|seen| seen?.pid) {
                sight.process = process::born(pid, &self.container.id).map_or(Process::Unseen, Process::Born);
            }
        }
        // Asked again, for the database may be back by now.
        if !over(&sight) || !may_act() {
            return (self.container.id, sight, Done::Left);
        }
        let done = self.end(docker, sight.age()).await;
        (self.container.id, sight, done)
    }

    async fn end(&self, docker: &Docker, age: Duration) -> Done {
        let (container, age_s, longest_life_s) = (&self.container.id, age.as_secs(), self.longest_life.as_secs());
        // The intent before the act, as ever. Without it the end will pass for somebody else's; but an end there must be.
        let named = if self.container.is_overdue() { Ok(()) } else { docker.rename_overdue(container, self.id).await };
        match docker.signal(container, Signal::Kill).await {
            Ok(Signalled::Sent) => {
                let unnamed = named.err().map(|error| error.to_string());
                tracing::warn!(container, agent.id = %self.id, age_s, longest_life_s, unnamed, "ended an agent past its longest life");
                Done::Ended
            }
            Ok(Signalled::NotRunning | Signalled::Gone) => Done::Left,
            Err(error) => {
                tracing::warn!(container, agent.id = %self.id, age_s, longest_life_s, %error, "an agent past its longest life cannot be ended; trying again");
                Done::Failed
            }
        }
    }
}
