//! The only file that knows Docker: one daemon, seen as one installation of Sundown.
//!
//! It must not know SQL, deadlines, leases or states of an agent, and decides nothing: it acts once and says what the
//! daemon answered. It never compares a daemon's clock with anything.
//!
//! It guarantees that every call ends within its own bound; that Docker's "already" answers (304, 404, 409) become
//! ordinary results here and nowhere else; that whatever is neither a plain yes nor a plain no (a time-out, a closed
//! connection, a 5xx, an unreadable answer) is [`DockerError::Unavailable`], an **unknown outcome**; and that no text of
//! an error holds an environment value.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bollard::errors::Error as BollardError;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary, ContainerSummaryStateEnum, EventMessage,
    HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
    SystemInfoCgroupVersionEnum, VolumeCreateRequest,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use futures_util::future::{Either, select};
use futures_util::{Stream, StreamExt, stream};
use hyper::body::Bytes;
use tokio::time::timeout;
use uuid::Uuid;

const LABEL_INSTALLATION: &str = "sundown.installation";
const LABEL_AGENT: &str = "sundown.agent";
/// Label: the longest possible life of the container, in seconds.
pub const LABEL_LONGEST_LIFE: &str = "sundown.longest_life";
const LABEL_HOST: &str = "sundown.host";
/// A user's labels go below this prefix: other tools on a host act on container labels (routing, restarts, clean-up),
/// and a tenant must not steer them, nor take one of ours.
const LABEL_OF_USER: &str = "sundown.label.";
const ENV_AGENT: &str = "SUNDOWN_AGENT_ID";

const PING: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_secs(5);
/// A list of thousands; it is answered from memory even while containerd is stuck.
const LIST: Duration = Duration::from_secs(10);
/// Create and start share the 15 s lease of a start with two writes and a look.
const CREATE: Duration = Duration::from_secs(6);
const START: Duration = Duration::from_secs(6);
/// Longer than the 12 s after which a daemon itself says that a process did not die of SIGKILL.
const SIGNAL: Duration = Duration::from_secs(14);
const REMOVE: Duration = Duration::from_secs(14);
const TAIL: Duration = Duration::from_secs(10);
/// How long an output stream may stay silent once its container has stopped: some daemons leave it open.
const DRAIN: Duration = Duration::from_secs(1);
/// Bound on the head of a response that starts a stream (events, logs), and the backstop behind every bound above.
const HEAD: Duration = Duration::from_secs(20);

/// Longest text kept of a daemon's message, in bytes.
const MESSAGE_LIMIT: usize = 512;

/// What a caller can do about a failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DockerError {
    /// The image is not on this host. Nothing was created.
    #[error("image missing: {0}")]
    ImageMissing(String),
    /// The daemon understood and refused; the same request will never work.
    #[error("refused by docker: {0}")]
    Rejected(String),
    /// No answer, a 5xx, or an answer that cannot be read: it may or may not have happened. Look again.
    #[error("docker unavailable: {0}")]
    Unavailable(String),
}

/// One daemon, on behalf of one installation. Cheap to clone; each call opens its own connection.
#[derive(Debug, Clone)]
pub struct Docker {
    client: bollard::Docker,
    installation: Uuid,
}

/// Facts about a daemon, for a log line and for `doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Version of the daemon.
    pub version: String,
    /// The API version that was agreed upon.
    pub api_version: String,
    /// Whether containers survive a restart of the daemon.
    pub live_restore: bool,
    /// 1 or 2; 0 if the daemon does not say.
    pub cgroup_version: u8,
    /// Storage driver.
    pub driver: String,
    /// Host name of the daemon's machine.
    pub hostname: String,
    /// CPUs of the daemon's machine.
    pub cpus: u32,
}

/// Which network an agent gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Loopback only.
    None,
    /// The daemon's default bridge.
    Bridge,
}

/// What to create. Limits are those in force, defaults already applied.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// Gives the name, a label and `SUNDOWN_AGENT_ID`.
    pub agent: Uuid,
    /// Must be on the host already; nothing is pulled.
    pub image: String,
    /// Arguments to the image's entrypoint; empty: the image's own command.
    pub command: Vec<String>,
    /// Later entries win over earlier ones, `SUNDOWN_AGENT_ID` over all.
    pub env: Vec<(String, String)>,
    /// The user's labels, without prefix.
    pub labels: BTreeMap<String, String>,
    /// Longest possible life of the container, in whole seconds: what a dead man's switch may rely on.
    pub longest_life: Duration,
    /// CPUs; at least 0.01.
    pub cpus: f64,
    /// Memory in bytes, swap included; at least 6 MiB.
    pub memory_bytes: i64,
    /// Most processes and threads, the init included.
    pub pids: i64,
    /// Loopback only, or bridge.
    pub network: Network,
    /// Used by `docker stop` alone: Sundown sends both signals itself.
    pub grace: Duration,
}

/// Answer to [`Docker::create`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// Id of the new container. It is not running.
    New(String),
    /// A container, ours or not, has this name: inspect it.
    NameTaken,
}

/// Answer to [`Docker::start`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// It has been started, now or before (204 and 304 look alike through the client). It may have ended since.
    Yes,
    /// There is no such container.
    Gone,
}

/// The two signals that Sundown sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Asks; may be ignored. Goes to the init, which passes it to the command.
    Term,
    /// Ends. The daemon answers only once the container is dead, and takes up to 12 s to say that it could not.
    Kill,
}

/// Answer to [`Docker::signal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signalled {
    /// Delivered to a running container.
    Sent,
    /// There is a container; it is not running.
    NotRunning,
    /// There is no such container.
    Gone,
}

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

/// One container, as inspected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Full id.
    pub id: String,
    /// Without the leading slash.
    pub name: String,
    /// Both labels are ours, and the name is the one that we give to that agent. Only such a container may be adopted.
    pub ours: bool,
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
    /// The kernel's OOM killer was at work inside since the last start. The victim may have been a child: an agent that
    /// survives it and exits 0 carries the flag too. Read it together with the exit code.
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
    /// Seconds since 1970 by the daemon's clock; for people, never for decisions.
    pub created: i64,
    /// All labels.
    pub labels: HashMap<String, String>,
}

/// The last output of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tail {
    /// stdout and stderr as the daemon interleaved them; any byte may occur.
    pub bytes: Vec<u8>,
    /// The daemon holds more in front of it. What its log rotation has dropped is not counted.
    pub truncated: bool,
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

impl Docker {
    /// Agrees with the daemon on an API version. `endpoint`: `unix:///path`, a bare `/path`, `http://host:port` or
    /// `tcp://host:port`.
    pub async fn connect(endpoint: &str, installation: Uuid) -> Result<Docker, DockerError> {
        let endpoint = if endpoint.starts_with('/') { format!("unix://{endpoint}") } else { endpoint.to_owned() };
        let client = bollard::Docker::connect_with_host(&endpoint)
            .map_err(|error| match error {
                BollardError::UnsupportedURISchemeError { .. } => {
                    DockerError::Rejected("endpoint must begin with unix://, http:// or tcp://".to_owned())
                }
                other => Failure::from(other).into(),
            })?
            .with_timeout(HEAD);
        // Debian 12's daemon answers 400 to a client that speaks a newer version than its own.
        let client = bounded("version", LOOK, client.negotiate_version()).await?;
        Ok(Docker { client, installation })
    }

    /// Whether the daemon answers at all.
    pub async fn ping(&self) -> Result<(), DockerError> {
        bounded("ping", PING, self.client.ping()).await?;
        Ok(())
    }

    /// Identity of this host for this installation, kept in a label of a volume: a daemon's own id is shared by clones,
    /// and by several daemons on one machine. `proposed` is used if there is none yet; whoever comes second gets the
    /// identity that the first one set, for a volume that exists keeps its labels.
    pub async fn host_identity(&self, proposed: Uuid) -> Result<Uuid, DockerError> {
        let request = VolumeCreateRequest {
            name: Some(format!("sundown-host-{}", self.installation)),
            driver: Some("local".to_owned()),
            labels: Some(HashMap::from([
                (LABEL_HOST.to_owned(), proposed.to_string()),
                (LABEL_INSTALLATION.to_owned(), self.installation.to_string()),
            ])),
            ..Default::default()
        };
        let volume = bounded("volume create", LOOK, self.client.create_volume(request)).await?;
        uuid_label(&volume.labels, LABEL_HOST)
            .ok_or_else(|| DockerError::Rejected(format!("volume {} has no valid label {LABEL_HOST}", volume.name)))
    }

    /// Facts worth logging once per connection.
    pub async fn describe(&self) -> Result<Description, DockerError> {
        let info = bounded("info", LOOK, self.client.info()).await?;
        Ok(Description {
            version: info.server_version.unwrap_or_default(),
            api_version: self.client.client_version().to_string(),
            live_restore: info.live_restore_enabled.unwrap_or_default(),
            cgroup_version: match info.cgroup_version {
                Some(SystemInfoCgroupVersionEnum::_1) => 1,
                Some(SystemInfoCgroupVersionEnum::_2) => 2,
                Some(SystemInfoCgroupVersionEnum::EMPTY) | None => 0,
            },
            driver: info.driver.unwrap_or_default(),
            hostname: info.name.unwrap_or_default(),
            cpus: info.ncpu.and_then(|n| u32::try_from(n).ok()).unwrap_or_default(),
        })
    }

    /// Creates the container of an agent, with our name, our labels and the hardened profile. A second create of the
    /// same agent answers [`Created::NameTaken`], also when its image has gone in between.
    pub async fn create(&self, spec: &ContainerSpec) -> Result<Created, DockerError> {
        let name = container_name(spec.agent);
        let body = creation(spec, self.installation)?;
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        match bounded("create", CREATE, self.client.create_container(Some(options), body)).await {
            Ok(created) => Ok(Created::New(created.id)),
            Err(Failure::Answered(409, _)) => Ok(Created::NameTaken),
            // The daemon looks for the image before it looks at the name: after a create whose answer was lost, a
            // missing image says nothing about a missing container.
            Err(Failure::Answered(404, message)) => match self.inspect(&name).await? {
                Some(_) => Ok(Created::NameTaken),
                None => Err(DockerError::ImageMissing(message)),
            },
            Err(failure) => Err(failure.into()),
        }
    }

    /// Looks at one container, by full id or by our name. `None`: the daemon says that there is none.
    pub async fn inspect(&self, what: &str) -> Result<Option<Container>, DockerError> {
        let what = reference(what)?;
        match bounded("inspect", LOOK, self.client.inspect_container(what, None)).await {
            Ok(answer) => self.container(answer).map(Some),
            Err(Failure::Answered(404, _)) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Starts a container. **It does not refuse to run an exited one again**: look at [`Container::ever_started`] first.
    /// A command that cannot be executed is no failure here: the init starts, and exits 126 or 127.
    pub async fn start(&self, container_id: &str) -> Result<Started, DockerError> {
        let id = reference(container_id)?;
        match bounded("start", START, self.client.start_container(id, None)).await {
            Ok(()) => Ok(Started::Yes),
            // A missing network answers 404 as well.
            Err(Failure::Answered(404, message)) => match self.inspect(id).await? {
                None => Ok(Started::Gone),
                Some(_) => Err(DockerError::Rejected(message)),
            },
            Err(Failure::Answered(500.., message)) if can_never_start(&message) => Err(DockerError::Rejected(message)),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Sends a signal. Sending one twice is harmless.
    pub async fn signal(&self, container_id: &str, signal: Signal) -> Result<Signalled, DockerError> {
        let name = match signal {
            Signal::Term => "SIGTERM",
            Signal::Kill => "SIGKILL",
        };
        let id = reference(container_id)?;
        let options = KillContainerOptionsBuilder::new().signal(name).build();
        match bounded("kill", SIGNAL, self.client.kill_container(id, Some(options))).await {
            Ok(()) => Ok(Signalled::Sent),
            Err(Failure::Answered(409, _)) => Ok(Signalled::NotRunning),
            Err(Failure::Answered(404, _)) => Ok(Signalled::Gone),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Waits until the container is not running. `false`: it was not seen to stop while `patience` lasted, be it that
    /// it runs or that the daemon is silent. One that never started or is gone counts as stopped.
    pub async fn wait_stopped(&self, container_id: &str, patience: Duration) -> Result<bool, DockerError> {
        let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
        let mut waiting = Box::pin(self.client.wait_container(reference(container_id)?, Some(options)));
        match timeout(patience, waiting.next()).await {
            Err(_) => Ok(false),
            Ok(Some(Ok(answer))) if answer.error.is_none() => Ok(true),
            // The client turns an exit code above 0 into an error; only a text in it is a failure of the wait.
            Ok(Some(Err(BollardError::DockerContainerWaitError { error, .. }))) if error.is_empty() => Ok(true),
            Ok(Some(Err(error))) => match Failure::from(error) {
                Failure::Answered(404, _) => Ok(true),
                failure => Err(failure.into()),
            },
            Ok(Some(Ok(_)) | None) => Err(DockerError::Unavailable("the wait ended without an answer".to_owned())),
        }
    }

    /// The last `limit` bytes of output. Memory stays below three times `limit`; a container that is gone has no output.
    pub async fn tail(&self, container_id: &str, limit: usize) -> Result<Tail, DockerError> {
        // An entry of the log, a line or 16 KiB of a longer one, has at least one byte: this many always suffice, and
        // the profile's log holds 2 MB at most.
        let entries = limit.saturating_add(1).to_string();
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail(&entries).build();
        let mut output = Box::pin(self.client.logs(reference(container_id)?, Some(options)));
        let reading = async {
            let mut tail = Tail::default();
            while let Some(entry) = output.next().await {
                match entry.map_err(Failure::from).and_then(output_bytes) {
                    Ok(bytes) => keep_last(&mut tail, &bytes, limit.saturating_mul(2)),
                    Err(Failure::Answered(404, _)) => break,
                    Err(failure) => return Err(failure.into()),
                }
            }
            keep_last(&mut tail, &[], limit);
            Ok(tail)
        };
        timeout(TAIL, reading).await.unwrap_or_else(|_| Err(Failure::silent("logs", TAIL).into()))
    }

    /// The output as it comes, the last `tail` lines first (all of it if `None`). With `follow` it goes on until the
    /// container has stopped and nothing came for a second; the stream that a daemon leaves open does not hold it.
    /// It ends after its first error. A slow reader holds up nobody but itself.
    pub fn logs(
        &self,
        container_id: &str,
        follow: bool,
        tail: Option<usize>,
        timestamps: bool,
    ) -> Result<impl Stream<Item = Result<Bytes, DockerError>> + Send + use<>, DockerError> {
        let id = reference(container_id)?;
        let lines = tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).follow(follow).timestamps(timestamps).tail(&lines).build();
        let output = self.client.logs(id, Some(options)).map(|entry| Ok(output_bytes(entry.map_err(Failure::from)?)?));
        let condition = WaitContainerOptionsBuilder::new().condition("not-running").build();
        let stopped = self.client.wait_container(id, Some(condition));
        Ok(first_error_ends(until_stopped(output, stopped)))
    }

    /// Kills what runs, and removes the container with its anonymous volumes. `Ok` only if the daemon says that it is
    /// gone, now or before.
    pub async fn remove(&self, container_id: &str) -> Result<(), DockerError> {
        let id = reference(container_id)?;
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match bounded("remove", REMOVE, self.client.remove_container(id, Some(options))).await {
            Ok(()) | Err(Failure::Answered(404, _)) => Ok(()),
            // "Removal already in progress": another one's removal may yet fail.
            Err(Failure::Answered(409, message)) => match self.inspect(id).await? {
                None => Ok(()),
                Some(_) => Err(DockerError::Unavailable(message)),
            },
            Err(failure) => Err(failure.into()),
        }
    }

    /// Every container that carries our installation's label, in whatever status, in one call.
    pub async fn list(&self) -> Result<Vec<Listed>, DockerError> {
        let filters = HashMap::from([("label", vec![self.our_label()])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let answer = bounded("list", LIST, self.client.list_containers(Some(options))).await?;
        answer.into_iter().map(listed).collect()
    }

    /// Start, die, OOM and destroy of our containers from about now on. It ends after its first error, and when the
    /// daemon closes it. The daemon is asked when the stream is first polled: list after that, not before.
    pub fn events(&self) -> impl Stream<Item = Result<Event, DockerError>> + Send + use<> {
        let filters = HashMap::from([
            ("type", vec!["container".to_owned()]),
            ("event", ["start", "die", "oom", "destroy"].map(str::to_owned).to_vec()),
            ("label", vec![self.our_label()]),
        ]);
        let messages = self.client.events(Some(EventsOptionsBuilder::new().filters(&filters).build()));
        first_error_ends(messages.filter_map(async |message| match message {
            Ok(message) => event(message).map(Ok),
            Err(error) => Some(Err(Failure::from(error).into())),
        }))
    }

    fn our_label(&self) -> String {
        format!("{LABEL_INSTALLATION}={}", self.installation)
    }

    fn container(&self, answer: ContainerInspectResponse) -> Result<Container, DockerError> {
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
        let started_at = state.started_at.filter(|at| is_an_instant(at));
        let ended = matches!(status, Status::Exited | Status::Dead);
        Ok(Container {
            ours: uuid_label(&labels, LABEL_INSTALLATION) == Some(self.installation)
                && agent.is_some_and(|agent| name == container_name(agent)),
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

/// The request body: what was asked for inside the hardened profile.
fn creation(spec: &ContainerSpec, installation: Uuid) -> Result<ContainerCreateBody, DockerError> {
    let mut env: BTreeMap<&str, &str> = BTreeMap::new();
    for (key, value) in &spec.env {
        // The daemon would echo the value in its refusal of an empty key, and the runtime that of a NUL.
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(DockerError::Rejected("an environment variable is malformed".to_owned()));
        }
        env.insert(key, value);
    }
    let agent = spec.agent.to_string();
    env.insert(ENV_AGENT, &agent);
    let user_labels = spec.labels.iter().map(|(key, value)| (format!("{LABEL_OF_USER}{key}"), value.clone()));
    let our_labels = [
        (LABEL_INSTALLATION.to_owned(), installation.to_string()),
        (LABEL_AGENT.to_owned(), agent.clone()),
        (LABEL_LONGEST_LIFE.to_owned(), spec.longest_life.as_secs().to_string()),
    ];
    Ok(ContainerCreateBody {
        image: Some(spec.image.clone()),
        cmd: (!spec.command.is_empty()).then(|| spec.command.clone()),
        env: Some(env.iter().map(|(key, value)| format!("{key}={value}")).collect()),
        labels: Some(user_labels.chain(our_labels).collect()),
        stop_signal: Some("SIGTERM".to_owned()),
        stop_timeout: Some(i64::try_from(spec.grace.as_secs()).unwrap_or(i64::MAX)),
        // An image's health check would run inside the agent's limits, for nobody.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        host_config: Some(profile(spec)),
        ..Default::default()
    })
}

/// The hardened profile. No `nproc` limit: it counts per user of the host, so agents would starve each other.
fn profile(spec: &ContainerSpec) -> HostConfig {
    let ulimit = |name: &str, limit| ResourcesUlimits { name: Some(name.to_owned()), soft: Some(limit), hard: Some(limit) };
    let log = [("max-size", "1m"), ("max-file", "2"), ("mode", "non-blocking"), ("max-buffer-size", "1m")];
    let network = match spec.network {
        Network::None => "none",
        Network::Bridge => "bridge",
    };
    HostConfig {
        // As PID 1 a command without a handler would ignore SIGTERM, and its orphans would stay zombies.
        init: Some(true),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        privileged: Some(false),
        network_mode: Some(network.to_owned()),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        shm_size: Some(16 << 20),
        memory: Some(spec.memory_bytes),
        // Equal to the memory: no swap.
        memory_swap: Some(spec.memory_bytes),
        nano_cpus: Some((spec.cpus * 1e9).round() as i64),
        pids_limit: Some(spec.pids),
        // When the host itself runs out, agents go before daemons.
        oom_score_adj: Some(500),
        ulimits: Some(vec![ulimit("nofile", 1024), ulimit("core", 0)]),
        // The local driver, since json-file has no bound (200 MB in 5 s of `yes`); non-blocking, so that a slow disk
        // does not stop an agent inside a write: past a megabyte of backlog, lines are dropped.
        log_config: Some(HostConfigLogConfig {
            typ: Some("local".to_owned()),
            config: Some(log.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        }),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        auto_remove: Some(false),
        ..Default::default()
    }
}

/// Tells a spec that this daemon can never start from a daemon that is unwell; both answer 500.
fn can_never_start(message: &str) -> bool {
    let shortage = ["temporarily unavailable", "no space left", "cannot allocate memory", "too many open files", "context"];
    let spec = ["OCI runtime create failed", "unable to find user", "unable to find group"];
    spec.iter().any(|text| message.contains(text)) && !shortage.iter().any(|text| message.contains(text))
}

/// A container id or name that is safe as one segment of a path: an empty one would ask for the list instead.
fn reference(what: &str) -> Result<&str, DockerError> {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if what.bytes().all(safe) && what.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        Ok(what)
    } else {
        Err(DockerError::Rejected("malformed container id".to_owned()))
    }
}

fn listed(summary: ContainerSummary) -> Result<Listed, DockerError> {
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
        created: summary.created.unwrap_or_default(),
        labels,
    })
}

fn event(message: EventMessage) -> Option<Event> {
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

fn uuid_label(labels: &HashMap<String, String>, key: &str) -> Option<Uuid> {
    labels.get(key)?.parse().ok()
}

/// The daemon writes "never" as the first second of the year 1.
fn is_an_instant(at: &str) -> bool {
    !at.is_empty() && !at.starts_with("0001-01-01T")
}

fn output_bytes(entry: bollard::container::LogOutput) -> Result<Bytes, Failure> {
    match entry {
        // We never ask for a terminal: unframed output is the daemon's own complaint about its log.
        bollard::container::LogOutput::Console { .. } => Err(Failure::Unknown("the log cannot be read".to_owned())),
        framed => Ok(framed.into_bytes()),
    }
}

fn keep_last(tail: &mut Tail, more: &[u8], limit: usize) {
    tail.bytes.extend_from_slice(more);
    if let Some(excess @ 1..) = tail.bytes.len().checked_sub(limit) {
        tail.bytes.drain(..excess);
        tail.truncated = true;
    }
}

/// Ends `output` when it ends, or when it is silent for [`DRAIN`] after `stopped` yielded or ended.
fn until_stopped<T, S>(
    output: impl Stream<Item = T> + Send + 'static,
    stopped: impl Stream<Item = S> + Send + 'static,
) -> impl Stream<Item = T> + Send {
    let stopped = Box::pin(async move { Box::pin(stopped).next().await.map(drop) });
    stream::unfold((Box::pin(output), Some(stopped)), async |(mut output, mut running)| {
        if let Some(stopped) = running.take() {
            match select(output.next(), stopped).await {
                Either::Left((item, stopped)) => return Some((item?, (output, Some(stopped)))),
                Either::Right(_) => {}
            }
        }
        let item = timeout(DRAIN, output.next()).await.ok()??;
        Some((item, (output, None)))
    })
}

fn first_error_ends<T: Send>(
    items: impl Stream<Item = Result<T, DockerError>> + Send,
) -> impl Stream<Item = Result<T, DockerError>> + Send {
    items.scan(false, |failed, item| {
        let over = *failed;
        *failed = item.is_err();
        std::future::ready((!over).then_some(item))
    })
}

/// How a call failed, before its meaning is known.
enum Failure {
    /// The daemon answered with this status and message.
    Answered(u16, String),
    /// Nothing that can be read as an answer.
    Unknown(String),
}

impl Failure {
    fn silent(call: &str, limit: Duration) -> Failure {
        Failure::Unknown(format!("{call}: no answer within {} s", limit.as_secs()))
    }
}

impl From<BollardError> for Failure {
    fn from(error: BollardError) -> Failure {
        match error {
            BollardError::DockerResponseServerError { status_code, message: text } => Failure::Answered(status_code, message(&text)),
            // Its text may quote the answer, and an inspect holds the environment.
            BollardError::JsonDataError { .. } | BollardError::JsonSerdeError { .. } => {
                Failure::Unknown("the answer cannot be read".to_owned())
            }
            BollardError::RequestTimeoutError => Failure::silent("daemon", HEAD),
            other => Failure::Unknown(message(&causes(&other))),
        }
    }
}

impl From<Failure> for DockerError {
    fn from(failure: Failure) -> DockerError {
        match failure {
            // 408 and 429 ask to try again; the other 4xx are a no.
            Failure::Answered(status @ 400..500, text) if status != 408 && status != 429 => DockerError::Rejected(text),
            Failure::Answered(status, text) => DockerError::Unavailable(format!("{status}: {text}")),
            Failure::Unknown(text) => DockerError::Unavailable(text),
        }
    }
}

fn incomplete(call: &str) -> DockerError {
    DockerError::Unavailable(format!("{call}: the answer is incomplete"))
}

/// The transport says only "connection error" at the top; the reason is below.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        text = format!("{text}: {deeper}");
        cause = deeper.source();
    }
    text
}

/// One bounded line of somebody else's text.
fn message(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() > MESSAGE_LIMIT {
        line.truncate(line.floor_char_boundary(MESSAGE_LIMIT));
        line.push('…');
    }
    line
}

async fn bounded<T>(call: &str, limit: Duration, answer: impl Future<Output = Result<T, BollardError>>) -> Result<T, Failure> {
    match timeout(limit, answer).await {
        Ok(answer) => answer.map_err(Failure::from),
        Err(_) => Err(Failure::silent(call, limit)),
    }
}
