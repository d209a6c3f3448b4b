//! The only room that knows Docker: one daemon, seen as one installation of Sundown.
//!
//! It must not know SQL, deadlines, leases or states of an agent, and decides nothing: it acts once and says what the
//! daemon answered. It never compares a daemon's clock with anything.
//!
//! It guarantees that every call ends within its own bound; that Docker's "already" answers (304, 404, 409) become
//! ordinary results here and nowhere else; that whatever is neither a plain yes nor a plain no (a time-out, a closed
//! connection, a 5xx, an unreadable answer) is [`DockerError::Unavailable`], an **unknown outcome**; and that no text
//! of an error holds an environment value. (The client library does write request bodies, environment included, to
//! the log at debug level: a subscriber must not let `bollard` speak below info.)

mod connections;
mod container;
mod failure;
mod profile;

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use bollard::errors::Error as BollardError;
use bollard::models::{SystemInfoCgroupVersionEnum, VolumeCreateRequest};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder, RenameContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use futures_util::future::{Either, select};
use futures_util::{Stream, StreamExt, stream};
use hyper::body::Bytes;
use tokio::time::timeout;
use uuid::Uuid;

pub use container::{Container, Event, EventKind, Listed, Status, container_name, overdue_name};
use container::{LABEL_INSTALLATION, uuid_label};
pub use failure::DockerError;
use failure::{Failure, bounded, says};
use profile::creation;
pub use profile::{ContainerSpec, Network};

const LABEL_HOST: &str = "sundown.host";

const PING: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_secs(5);
/// A list of thousands; it is answered from memory even while containerd is stuck.
const LIST: Duration = Duration::from_secs(10);
/// Create and start share the 15 s lease of a start with two writes and a look.
const CREATE: Duration = Duration::from_secs(6);
/// How long a start may take to be answered.
pub const START: Duration = Duration::from_secs(6);
/// Longer than the 12 s after which a daemon itself says that a process did not die of SIGKILL.
const SIGNAL: Duration = Duration::from_secs(14);
const REMOVE: Duration = Duration::from_secs(14);
const TAIL: Duration = Duration::from_secs(10);
/// How long an output stream may stay silent once its container has stopped: some daemons leave it open.
const DRAIN: Duration = Duration::from_secs(3);
/// Bound on the head of a response that starts a stream (events, logs), and the backstop behind every bound above.
const HEAD: Duration = Duration::from_secs(20);

/// One daemon, on behalf of one installation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Docker {
    client: bollard::Docker,
    /// Opens a connection for each call: whoever answers is whoever can be reached now.
    fresh: bollard::Docker,
    endpoint: String,
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
    /// Host name of the daemon's machine.
    pub hostname: String,
    /// CPUs of the daemon's machine.
    pub cpus: u32,
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

/// Answer to [`Docker::remove`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It was there, and is not any more.
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

/// The last output of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tail {
    /// stdout and stderr as the daemon interleaved them; any byte may occur.
    pub bytes: Vec<u8>,
    /// The daemon holds more in front of it. What its log rotation has dropped is not counted.
    pub truncated: bool,
}

impl Tail {
    /// Lets twice the limit pile up, so that bytes are moved once per `limit` and not per entry.
    fn append(&mut self, more: &[u8], limit: usize) {
        self.bytes.extend_from_slice(more);
        if self.bytes.len() / 2 > limit {
            self.keep_last(limit);
        }
    }

    fn keep_last(&mut self, limit: usize) {
        if let Some(excess @ 1..) = self.bytes.len().checked_sub(limit) {
            self.bytes.drain(..excess);
            self.truncated = true;
        }
    }
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
        // The client puts no version into its paths, so a daemon speaks its own newest dialect; this call finds out
        // whether it is a Docker daemon at all, and which version it speaks.
        let client = bounded("version", LOOK, client.negotiate_version()).await?;
        Ok(Docker { fresh: client.clone(), client, endpoint, installation })
    }

    /// The same daemon, by connections that are kept from call to call, each of which has proved that it leads to this host.
    pub fn keeping_connections(self, host: Uuid) -> Result<Docker, DockerError> {
        let client = connections::keeping(&self.fresh, &self.endpoint, &self.volume(), host).map_err(Failure::from)?;
        Ok(Docker { client, ..self })
    }

    /// Whether the daemon answers at all, whoever calls.
    pub async fn ping(&self) -> Result<(), DockerError> {
        bounded("ping", PING, self.fresh.ping()).await?;
        Ok(())
    }

    /// Identity of this host for this installation, kept in a label of a volume: a daemon's own id is shared by
    /// clones, and by several daemons on one machine. `proposed` is used if there is none yet; whoever comes second
    /// gets the identity that the first one set, for a volume that exists keeps its labels.
    pub async fn host_identity(&self, proposed: Uuid) -> Result<Uuid, DockerError> {
        let request = VolumeCreateRequest {
            name: Some(self.volume()),
            driver: Some("local".to_owned()),
            labels: Some(HashMap::from([
                (LABEL_HOST.to_owned(), proposed.to_string()),
                (LABEL_INSTALLATION.to_owned(), self.installation.to_string()),
            ])),
            ..Default::default()
        };
        bounded("volume create", LOOK, self.client.create_volume(request)).await?;
        // Asked for once more: since its last restart a daemon may answer a create of what exists without its labels (20.10).
        let identity = self.identity().await?;
        identity.ok_or_else(|| DockerError::Rejected(format!("volume {} has no valid label {LABEL_HOST}", self.volume())))
    }

    /// The identity that the host which answers now has been given. `None`: it has none, or none any more.
    pub async fn identity(&self) -> Result<Option<Uuid>, DockerError> {
        match bounded("volume inspect", LOOK, self.fresh.inspect_volume(&self.volume())).await {
            Ok(volume) => Ok(uuid_label(&volume.labels, LABEL_HOST)),
            Err(Failure::Answered(404, _)) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    fn volume(&self) -> String {
        format!("sundown-host-{}", self.installation)
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
            Err(Failure::Answered(404, message)) if says(&message, "no such image") => match self.inspect(&name).await? {
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
            Ok(answer) => Container::inspected(answer, self.installation).map(Some),
            Err(Failure::Gone(_)) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Starts a container. **It does not refuse to run an exited one again**: look at [`Container::ever_started`]
    /// first. A command that cannot be executed is no failure here: the init starts, and exits 126 or 127.
    pub async fn start(&self, container_id: &str) -> Result<Started, DockerError> {
        let id = reference(container_id)?;
        match bounded("start", START, self.client.start_container(id, None)).await {
            Ok(()) => Ok(Started::Yes),
            Err(Failure::Gone(_)) => Ok(Started::Gone),
            // Started by a call that the daemon did not live to write down: containerd knows it, and so it is for ever.
            Err(Failure::Answered(500.., message)) if ["already exists", "already in use"].iter().any(|words| says(&message, words)) => {
                Err(DockerError::Rejected(format!("the daemon has forgotten that it started it: {message}")))
            }
            Err(Failure::Answered(404 | 500.., message)) if can_never_start(&message) => Err(DockerError::Rejected(message)),
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
            Err(Failure::Gone(_)) => Ok(Signalled::Gone),
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
                Failure::Gone(_) => Ok(true),
                failure => Err(failure.into()),
            },
            Ok(Some(Ok(_)) | None) => Err(DockerError::Unavailable("the wait ended without an answer".to_owned())),
        }
    }

    /// The last `limit` bytes of output, in memory of a few times `limit`. A container that is gone has no output.
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
                    Ok(bytes) => tail.append(&bytes, limit),
                    Err(Failure::Gone(_)) => break,
                    Err(failure) => return Err(failure.into()),
                }
            }
            tail.keep_last(limit);
            Ok(tail)
        };
        timeout(TAIL, reading).await.unwrap_or_else(|_| Err(Failure::silent("logs", TAIL).into()))
    }

    /// The output, the last `tail` lines of it (all if `None`). With `follow` it goes on as output comes, until the
    /// container has stopped: a stream that the daemon leaves open after that does not hold it. It ends after its
    /// first error. A slow reader holds up nobody but itself.
    pub fn logs(
        &self,
        container_id: &str,
        follow: bool,
        tail: Option<usize>,
    ) -> Result<impl Stream<Item = Result<Bytes, DockerError>> + Send + use<>, DockerError> {
        let id = reference(container_id)?;
        let lines = tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).follow(follow).tail(&lines).build();
        let output = self.client.logs(id, Some(options)).map(|entry| Ok(output_bytes(entry.map_err(Failure::from)?)?));
        if !follow {
            return Ok(Either::Left(first_error_ends(until_silent(output))));
        }
        let condition = WaitContainerOptionsBuilder::new().condition("not-running").build();
        let stopped = self.client.wait_container(id, Some(condition));
        Ok(Either::Right(first_error_ends(until_stopped(output, stopped))))
    }

    /// Kills what runs, and removes the container with its anonymous volumes. `Ok` only if the daemon says that it is
    /// gone, now or before.
    pub async fn remove(&self, container_id: &str) -> Result<Removed, DockerError> {
        let id = reference(container_id)?;
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match bounded("remove", REMOVE, self.client.remove_container(id, Some(options))).await {
            Ok(()) => Ok(Removed::Yes),
            Err(Failure::Gone(_)) => Ok(Removed::Gone),
            // "Removal already in progress": another one's removal may yet fail.
            Err(Failure::Answered(409, message)) => match self.inspect(id).await? {
                None => Ok(Removed::Gone),
                Some(_) => Err(DockerError::Unavailable(message)),
            },
            Err(failure) => Err(failure.into()),
        }
    }

    /// Gives a container the name that says that the dead man ends it.
    pub async fn rename_overdue(&self, container_id: &str, agent: Uuid) -> Result<(), DockerError> {
        let options = RenameContainerOptionsBuilder::new().name(&overdue_name(agent)).build();
        bounded("rename", LOOK, self.client.rename_container(reference(container_id)?, options)).await?;
        Ok(())
    }

    /// Every container that carries our installation's label, in whatever status, in one call.
    pub async fn list(&self) -> Result<Vec<Listed>, DockerError> {
        self.labelled(self.our_label()).await
    }

    /// As [`Docker::list`], of whatever installation.
    pub async fn list_every_installation(&self) -> Result<Vec<Listed>, DockerError> {
        self.labelled(LABEL_INSTALLATION.to_owned()).await
    }

    async fn labelled(&self, label: String) -> Result<Vec<Listed>, DockerError> {
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let answer = bounded("list", LIST, self.client.list_containers(Some(options))).await?;
        answer.into_iter().map(Listed::from_summary).collect()
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
            Ok(message) => Event::from_message(message).map(Ok),
            Err(error) => Some(Err(Failure::from(error).into())),
        }))
    }

    fn our_label(&self) -> String {
        format!("{LABEL_INSTALLATION}={}", self.installation)
    }
}

/// The socket that an endpoint is. `None`: it is an address on a network, so the daemon may be on another machine.
#[must_use]
pub fn socket(endpoint: &str) -> Option<&Path> {
    endpoint.strip_prefix("unix://").or_else(|| endpoint.starts_with('/').then_some(endpoint)).map(Path::new)
}

/// Tells a container that this daemon can never start from a daemon that is unwell: both answer 500 (and a network
/// that is not there, 404).
fn can_never_start(message: &str) -> bool {
    let shortage =
        ["temporarily unavailable", "no space left", "cannot allocate memory", "too many open files", "resource busy", "context"];
    let hopeless = ["oci runtime create failed", "unable to find user", "unable to find group"];
    let says = |words: &&str| says(message, words);
    let no_network = ["network ", " not found"].iter().all(says);
    (hopeless.iter().any(says) || no_network) && !shortage.iter().any(says)
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

fn output_bytes(entry: bollard::container::LogOutput) -> Result<Bytes, Failure> {
    match entry {
        // We never ask for a terminal: unframed output is the daemon's own complaint about its log.
        bollard::container::LogOutput::Console { .. } => Err(Failure::Unknown("the log cannot be read".to_owned())),
        framed => Ok(framed.into_bytes()),
    }
}

/// Fails when `output` is silent for [`TAIL`].
fn until_silent<T: Send>(
    output: impl Stream<Item = Result<T, DockerError>> + Send + 'static,
) -> impl Stream<Item = Result<T, DockerError>> + Send {
    stream::unfold(Box::pin(output), async |mut output| {
        let item = match timeout(TAIL, output.next()).await {
            Ok(item) => item?,
            Err(_) => Err(Failure::silent("logs", TAIL).into()),
        };
        Some((item, output))
    })
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
