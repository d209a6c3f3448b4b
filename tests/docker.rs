//! Claims about `docker.rs`, proven on a real daemon; those that a fake can keep as well, on the fake too, so that
//! other tests may trust it; and what a sick daemon does, on the fake alone.
//!
//! Real daemon: `DOCKER_HOST` or the local socket, image `SUNDOWN_TEST_IMAGE` (default `sundown-test:latest`, a
//! static busybox). Every test is an installation of its own and removes whatever carries its label, also when it
//! fails.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod fake_docker;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptionsBuilder, ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveVolumeOptions, RenameContainerOptionsBuilder,
};
use fake_docker::{Call, FakeDocker, Fault};
use futures_util::StreamExt;
use sundown::docker::{
    ContainerSpec, Created, Docker, DockerError, EventKind, Network, Removed, Signal, Signalled, Started, Status, container_name,
    overdue_name,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

/// Far longer than anything here takes; only a failure waits for it.
const LONG: Duration = Duration::from_secs(30);
/// On the containers that a test makes behind the back of `docker.rs`.
const TEST_LABEL: &str = "sundown-test.installation";

/// One daemon, one installation of its own.
#[derive(Clone)]
struct Bench {
    endpoint: String,
    image: String,
    installation: Uuid,
    docker: Docker,
    raw: bollard::Docker,
}

impl Bench {
    async fn new(endpoint: String) -> Bench {
        let installation = Uuid::new_v4();
        let raw = bollard::Docker::connect_with_host(&endpoint).unwrap();
        Bench {
            docker: Docker::connect(&endpoint, installation).await.unwrap(),
            raw: raw.negotiate_version().await.unwrap(),
            image: std::env::var("SUNDOWN_TEST_IMAGE").unwrap_or_else(|_| "sundown-test:latest".to_owned()),
            endpoint,
            installation,
        }
    }

    fn spec(&self, command: &[&str]) -> ContainerSpec {
        ContainerSpec {
            agent: Uuid::new_v4(),
            image: self.image.clone(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            env: Vec::new(),
            labels: BTreeMap::new(),
            longest_life: Duration::from_secs(600),
            cpus: 0.5,
            memory_bytes: 64 << 20,
            pids: 32,
            network: Network::None,
            grace: Duration::from_secs(10),
            first_deadline: "2026-11-26T12:00:00.000000Z".to_owned(),
        }
    }

    async fn create(&self, spec: &ContainerSpec) -> String {
        match self.docker.create(spec).await.unwrap() {
            Created::New(id) => id,
            Created::NameTaken => panic!("the name of a fresh agent is taken"),
        }
    }

    async fn run(&self, command: &[&str]) -> String {
        let id = self.create(&self.spec(command)).await;
        assert_eq!(self.docker.start(&id).await, Ok(Started::Yes));
        id
    }

    async fn run_to_the_end(&self, command: &[&str]) -> String {
        let id = self.run(command).await;
        assert_eq!(self.docker.wait_stopped(&id, LONG).await, Ok(true));
        id
    }

    /// A container that is not of our making.
    async fn foreign(&self, name: &str, body: ContainerCreateBody) -> String {
        let mut labels = body.labels.unwrap_or_default();
        labels.insert(TEST_LABEL.to_owned(), self.installation.to_string());
        let body = ContainerCreateBody { image: Some(self.image.clone()), labels: Some(labels), ..body };
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        self.raw.create_container(Some(options), body).await.unwrap().id
    }

    /// A call past every client, once its answer has begun.
    async fn begin_call(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut stream: Box<dyn Stream> = match self.endpoint.strip_prefix("unix://") {
            Some(path) => Box::new(tokio::net::UnixStream::connect(path).await.unwrap()),
            None => Box::new(tokio::net::TcpStream::connect(self.endpoint.rsplit_once("//").unwrap().1).await.unwrap()),
        };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Type: application/json\r\n");
        stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tokio::time::timeout(LONG, stream.read_u8()).await.unwrap().unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        Answer { status: head.split(' ').nth(1).unwrap().parse().unwrap(), stream }
    }

    async fn call(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let answer = self.begin_call(method, path, body).await;
        (answer.status, answer.text().await)
    }

    async fn exit_code(&self, id: &str) -> Option<i64> {
        assert_eq!(self.docker.wait_stopped(id, LONG).await, Ok(true));
        self.docker.inspect(id).await.unwrap().unwrap().exit_code
    }

    async fn clean_up(&self) {
        for label in ["sundown.installation", TEST_LABEL] {
            let label = format!("{label}={}", self.installation);
            let options = ListContainersOptionsBuilder::new().all(true).filters(&HashMap::from([("label", vec![label])])).build();
            for left in self.raw.list_containers(Some(options)).await.unwrap() {
                let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
                let _ = self.raw.remove_container(&left.id.unwrap(), Some(options)).await;
            }
        }
        let volume = format!("sundown-host-{}", self.installation);
        let _ = self.raw.remove_volume(&volume, None::<RemoveVolumeOptions>).await;
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An answer whose body may still be on its way.
struct Answer {
    status: u16,
    stream: Box<dyn Stream>,
}

impl Answer {
    async fn text(mut self) -> String {
        let mut text = Vec::new();
        tokio::time::timeout(LONG, self.stream.read_to_end(&mut text)).await.unwrap().unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Runs a claim on the real daemon, and cleans up before the claim's panic goes on.
async fn on_real<F: Future<Output = ()> + Send + 'static>(claim: fn(Bench) -> F) {
    let endpoint = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    let bench = Bench::new(endpoint).await;
    let outcome = tokio::spawn(claim(bench.clone())).await;
    bench.clean_up().await;
    if let Err(failure) = outcome {
        std::panic::resume_unwind(failure.into_panic());
    }
}

/// Runs a claim on a fake of its own.
async fn on_fake<F: Future<Output = ()>>(claim: fn(Bench) -> F) {
    let fake = FakeDocker::start().await;
    claim(Bench::new(fake.endpoint()).await).await;
}

macro_rules! claims {
    ($module:ident, $on:ident, [$($claim:ident)*]) => {
        mod $module {
            $(#[tokio::test]
            async fn $claim() {
                super::$on(super::$claim).await;
            })*
        }
    };
}

macro_rules! on_both {
    ($($claim:ident)*) => {
        claims!(real, on_real, [$($claim)*]);
        claims!(fake, on_fake, [$($claim)*]);
    };
}

on_both! {
    a_second_create_answers_name_taken
    a_second_create_answers_name_taken_though_the_image_has_gone
    a_missing_image_is_told_apart
    a_bad_spec_is_rejected
    inspect_tells_created_running_and_exited
    a_second_start_of_a_running_container_is_harmless
    docker_would_run_an_exited_container_again_and_ever_started_tells
    signals_tell_running_stopped_and_gone_apart
    a_container_that_is_gone_is_gone_for_every_call
    term_can_be_ignored_and_kill_cannot
    waiting_is_bounded
    list_finds_ours_in_any_status_and_not_others
    events_deliver_a_die
    following_the_output_ends_with_the_container
    the_host_keeps_one_identity_per_installation
    a_connection_that_is_kept_leads_to_its_host_or_nowhere
    a_foreign_container_with_our_name_is_not_ours
    a_container_with_another_agents_label_is_not_ours
    a_container_that_the_dead_man_renamed_stays_ours_and_says_so
    the_user_cannot_override_our_labels_or_environment
    malformed_references_never_reach_the_daemon
    the_daemon_describes_itself
    a_missing_executable_exits_127_through_the_init
    a_missing_executable_says_so_in_the_tail
    a_command_that_is_not_executable_exits_126_through_the_init
    what_can_never_start_is_rejected_and_never_started
    the_tail_keeps_the_last_bytes_even_nul
    an_oom_kill_shows_also_when_the_agent_survives_it
    an_oom_kill_and_the_end_are_events
    signals_leave_their_exit_codes
    a_paused_container_is_alive_and_does_nothing_and_can_be_ended
    a_container_renamed_by_hand_keeps_its_labels
    a_wait_tells_the_exit_code_though_the_container_is_removed_meanwhile
    output_comes_in_frames_of_two_streams
    lists_are_filtered_by_life_and_by_every_label
    events_are_filtered_by_kind_and_label
    each_call_has_its_status_on_the_wire
}

claims!(real_only, on_real, [the_profile_is_hardened]);

async fn a_second_create_answers_name_taken(bench: Bench) {
    let spec = bench.spec(&["sleep", "inf"]);
    let id = bench.create(&spec).await;
    assert_eq!(bench.docker.create(&spec).await, Ok(Created::NameTaken));
    let container = bench.docker.inspect(&container_name(spec.agent)).await.unwrap().unwrap();
    assert_eq!(container.id, id);
    assert!(container.ours);
}

async fn a_second_create_answers_name_taken_though_the_image_has_gone(bench: Bench) {
    let mut spec = bench.spec(&["sleep", "inf"]);
    bench.create(&spec).await;
    spec.image = "sundown-test-absent:latest".to_owned();
    assert_eq!(bench.docker.create(&spec).await, Ok(Created::NameTaken));
}

async fn a_missing_image_is_told_apart(bench: Bench) {
    let mut spec = bench.spec(&["sleep", "inf"]);
    spec.image = "sundown-test-absent:latest".to_owned();
    let refusal = bench.docker.create(&spec).await;
    assert!(matches!(refusal, Err(DockerError::ImageMissing(_))), "{refusal:?}");
}

async fn a_bad_spec_is_rejected(bench: Bench) {
    let spoilers: [fn(&mut ContainerSpec); 10] = [
        |spec| spec.image = "Not An Image!".to_owned(),
        |spec| spec.command.clear(),
        |spec| spec.command = vec!["a\0b".to_owned()],
        |spec| spec.memory_bytes = 1,
        |spec| spec.memory_bytes = 0,
        |spec| spec.cpus = 0.000_000_001,
        |spec| spec.cpus = f64::NAN,
        |spec| spec.pids = -1,
        |spec| spec.env = vec![(String::new(), "hunter2".to_owned())],
        |spec| spec.env = vec![("KEY".to_owned(), "hunter2\0".to_owned())],
    ];
    for spoil in spoilers {
        let mut spec = bench.spec(&["sleep", "inf"]);
        spoil(&mut spec);
        let refusal = bench.docker.create(&spec).await;
        assert!(matches!(refusal, Err(DockerError::Rejected(_))), "{refusal:?}");
        assert!(!format!("{refusal:?}").contains("hunter2"));
        assert_eq!(bench.docker.inspect(&container_name(spec.agent)).await, Ok(None));
    }
}

async fn inspect_tells_created_running_and_exited(bench: Bench) {
    let spec = bench.spec(&["sh", "-c", "echo ready; sleep 1; exit 3"]);
    let id = bench.create(&spec).await;
    let created = bench.docker.inspect(&id).await.unwrap().unwrap();
    assert_eq!((created.status, created.ever_started), (Status::Created, false));
    assert_eq!((created.exit_code, created.pid), (None, None));
    assert_eq!((created.agent, created.ours), (Some(spec.agent), true));
    assert_eq!((created.started_at, created.finished_at), (None, None));

    assert_eq!(bench.docker.start(&id).await, Ok(Started::Yes));
    let running = bench.docker.inspect(&id).await.unwrap().unwrap();
    assert_eq!((running.status, running.ever_started), (Status::Running, true));
    assert_eq!(running.exit_code, None);
    assert!(running.pid.is_some());

    assert_eq!(bench.docker.wait_stopped(&id, LONG).await, Ok(true));
    let exited = bench.docker.inspect(&id).await.unwrap().unwrap();
    assert_eq!((exited.status, exited.exit_code), (Status::Exited, Some(3)));
    assert_eq!((exited.oom_killed, exited.pid), (false, None));
    assert!(exited.finished_at.is_some());
}

async fn a_second_start_of_a_running_container_is_harmless(bench: Bench) {
    let id = bench.run(&["sleep", "inf"]).await;
    let first = bench.docker.inspect(&id).await.unwrap().unwrap();
    assert_eq!(bench.docker.start(&id).await, Ok(Started::Yes));
    assert_eq!(bench.docker.inspect(&id).await, Ok(Some(first)));
}

async fn docker_would_run_an_exited_container_again_and_ever_started_tells(bench: Bench) {
    let id = bench.run_to_the_end(&["sh", "-c", "echo ran; exit 0"]).await;
    assert!(bench.docker.inspect(&id).await.unwrap().unwrap().ever_started);
    assert_eq!(bench.docker.start(&id).await, Ok(Started::Yes));
    assert_eq!(bench.docker.wait_stopped(&id, LONG).await, Ok(true));
    assert_eq!(bench.docker.tail(&id, 100).await.unwrap().bytes, b"ran\nran\n");
}

async fn signals_tell_running_stopped_and_gone_apart(bench: Bench) {
    let docker = &bench.docker;
    let id = bench.create(&bench.spec(&["sleep", "inf"])).await;
    assert_eq!(docker.signal(&id, Signal::Term).await, Ok(Signalled::NotRunning));
    assert_eq!(docker.start(&id).await, Ok(Started::Yes));
    assert_eq!(docker.signal(&id, Signal::Kill).await, Ok(Signalled::Sent));
    assert_eq!(docker.wait_stopped(&id, LONG).await, Ok(true));
    assert_eq!(docker.inspect(&id).await.unwrap().unwrap().exit_code, Some(137));
    assert_eq!(docker.signal(&id, Signal::Kill).await, Ok(Signalled::NotRunning));
    docker.remove(&id).await.unwrap();
    assert_eq!(docker.signal(&id, Signal::Kill).await, Ok(Signalled::Gone));
}

async fn a_container_that_is_gone_is_gone_for_every_call(bench: Bench) {
    let docker = &bench.docker;
    let id = bench.run(&["sleep", "inf"]).await;
    assert_eq!(docker.remove(&id).await, Ok(Removed::Yes));
    assert_eq!(docker.remove(&id).await, Ok(Removed::Gone));
    assert_eq!(docker.inspect(&id).await, Ok(None));
    assert_eq!(docker.start(&id).await, Ok(Started::Gone));
    assert_eq!(docker.wait_stopped(&id, LONG).await, Ok(true));
    assert_eq!(docker.tail(&id, 100).await.unwrap().bytes, b"");
}

async fn term_can_be_ignored_and_kill_cannot(bench: Bench) {
    let docker = &bench.docker;
    let id = bench.run(&["sh", "-c", "trap '' TERM; echo ready; sleep inf"]).await;
    // Before it has said so, the trap is not set.
    let mut output = Box::pin(docker.logs(&id, true, None).unwrap());
    assert_eq!(output.next().await.unwrap().unwrap(), "ready\n");
    assert_eq!(docker.signal(&id, Signal::Term).await, Ok(Signalled::Sent));
    assert_eq!(docker.wait_stopped(&id, Duration::from_millis(300)).await, Ok(false));
    assert_eq!(docker.signal(&id, Signal::Kill).await, Ok(Signalled::Sent));
    assert_eq!(docker.wait_stopped(&id, LONG).await, Ok(true));
}

async fn waiting_is_bounded(bench: Bench) {
    let id = bench.run(&["sleep", "inf"]).await;
    assert_eq!(bench.docker.wait_stopped(&id, Duration::from_millis(50)).await, Ok(false));
    let created = bench.create(&bench.spec(&["sleep", "inf"])).await;
    assert_eq!(bench.docker.wait_stopped(&created, LONG).await, Ok(true));
}

async fn list_finds_ours_in_any_status_and_not_others(bench: Bench) {
    let created = bench.create(&bench.spec(&["sleep", "inf"])).await;
    let running = bench.run(&["sleep", "inf"]).await;
    let exited = bench.run_to_the_end(&["sh", "-c", "exit 0"]).await;
    let other = Docker::connect(&bench.endpoint, Uuid::new_v4()).await.unwrap();
    let theirs = match other.create(&bench.spec(&["sleep", "inf"])).await.unwrap() {
        Created::New(id) => id,
        Created::NameTaken => panic!("a fresh name is taken"),
    };
    let listed = bench.docker.list().await.unwrap();
    let listed_by_other = other.list().await.unwrap();
    other.remove(&theirs).await.unwrap();

    let found: HashMap<&str, Status> = listed.iter().map(|c| (c.id.as_str(), c.status)).collect();
    let expected = [(created.as_str(), Status::Created), (running.as_str(), Status::Running), (exited.as_str(), Status::Exited)];
    assert_eq!(found, expected.into());
    for container in &listed {
        assert_eq!(container.names, [container_name(container.agent.unwrap())]);
        assert_eq!(container.labels["sundown.longest_life"], "600");
    }
    assert_eq!(listed_by_other.iter().map(|c| &c.id).collect::<Vec<_>>(), [&theirs]);
}

async fn events_deliver_a_die(bench: Bench) {
    let mut events = Box::pin(bench.docker.events());
    let spec = bench.spec(&["sh", "-c", "exit 0"]);
    let id = bench.create(&spec).await;
    // Nothing says when a subscription stands; so the container runs until one of its ends has been seen.
    let again = async {
        loop {
            bench.docker.start(&id).await.unwrap();
            bench.docker.wait_stopped(&id, LONG).await.unwrap();
        }
    };
    let die = async {
        loop {
            let event = events.next().await.unwrap().unwrap();
            assert_eq!((event.container_id.as_str(), event.agent), (id.as_str(), Some(spec.agent)));
            if event.kind == EventKind::Die {
                break;
            }
        }
    };
    tokio::select! {
        () = die => {}
        () = again => {}
        () = tokio::time::sleep(LONG) => panic!("no die event"),
    }
    bench.docker.remove(&id).await.unwrap();
    while events.next().await.unwrap().unwrap().kind != EventKind::Destroy {}
}

async fn following_the_output_ends_with_the_container(bench: Bench) {
    let id = bench.run(&["sh", "-c", "echo first; sleep 1; echo last; exit 0"]).await;
    let output = bench.docker.logs(&id, true, None).unwrap();
    let text: Vec<u8> = tokio::time::timeout(LONG, output.map(|chunk| chunk.unwrap().to_vec()).concat()).await.unwrap();
    assert_eq!(text, b"first\nlast\n");
    let last = bench.docker.logs(&id, false, Some(1)).unwrap();
    assert_eq!(last.map(|chunk| chunk.unwrap().to_vec()).concat().await, b"last\n");
}

async fn the_host_keeps_one_identity_per_installation(bench: Bench) {
    let proposed = Uuid::new_v4();
    assert_eq!(bench.docker.identity().await, Ok(None), "asking leaves none");
    assert_eq!(bench.docker.host_identity(proposed).await, Ok(proposed));
    assert_eq!(bench.docker.identity().await, Ok(Some(proposed)));
    let second = Docker::connect(&bench.endpoint, bench.installation).await.unwrap();
    assert_eq!(second.host_identity(Uuid::new_v4()).await, Ok(proposed));

    let other = Bench::new(bench.endpoint.clone()).await;
    let others = Uuid::new_v4();
    let identity = other.docker.host_identity(others).await;
    other.clean_up().await;
    assert_eq!(identity, Ok(others));
}

async fn a_connection_that_is_kept_leads_to_its_host_or_nowhere(bench: Bench) {
    let host = bench.docker.host_identity(Uuid::new_v4()).await.unwrap();
    let kept = bench.docker.clone().keeping_connections(host).unwrap();
    let spec = bench.spec(&["sleep", "inf"]);
    let Created::New(id) = kept.create(&spec).await.unwrap() else { panic!("the name of a fresh agent is taken") };
    // Many at once, and one after the other over what they leave.
    let looks = futures_util::future::join_all((0..20).map(|_| kept.inspect(&id))).await;
    assert!(looks.into_iter().all(|look| look.unwrap().is_some()));
    assert_eq!(kept.start(&id).await, Ok(Started::Yes));
    assert_eq!(kept.inspect("no-such-container").await, Ok(None));
    assert_eq!(kept.remove(&id).await, Ok(Removed::Yes));
    // The same address, and not who is meant: nothing is asked of it, so nothing is concluded from what it does not know.
    let elsewhere = bench.docker.clone().keeping_connections(Uuid::new_v4()).unwrap();
    is_unavailable(elsewhere.inspect("no-such-container").await);
    is_unavailable(elsewhere.create(&spec).await);
    assert_eq!(bench.docker.inspect(&container_name(spec.agent)).await, Ok(None));
}

async fn a_foreign_container_with_our_name_is_not_ours(bench: Bench) {
    let spec = bench.spec(&["sleep", "inf"]);
    let name = container_name(spec.agent);
    let cmd = Some(vec!["sleep".to_owned(), "inf".to_owned()]);
    bench.foreign(&name, ContainerCreateBody { cmd, ..Default::default() }).await;
    assert_eq!(bench.docker.create(&spec).await, Ok(Created::NameTaken));
    let container = bench.docker.inspect(&name).await.unwrap().unwrap();
    assert_eq!((container.ours, container.agent), (false, None));
    assert_eq!(bench.docker.list().await, Ok(vec![]));
}

async fn a_container_with_another_agents_label_is_not_ours(bench: Bench) {
    let (agent, other) = (Uuid::new_v4(), Uuid::new_v4());
    let labels = HashMap::from([
        ("sundown.installation".to_owned(), bench.installation.to_string()),
        ("sundown.agent".to_owned(), other.to_string()),
    ]);
    let cmd = Some(vec!["sleep".to_owned(), "inf".to_owned()]);
    let body = ContainerCreateBody { cmd, labels: Some(labels), ..Default::default() };
    let id = bench.foreign(&container_name(agent), body).await;
    let container = bench.docker.inspect(&id).await.unwrap().unwrap();
    assert_eq!((container.ours, container.agent), (false, Some(other)));
}

async fn a_container_that_the_dead_man_renamed_stays_ours_and_says_so(bench: Bench) {
    let spec = bench.spec(&["sleep", "inf"]);
    let id = bench.create(&spec).await;
    bench.docker.start(&id).await.unwrap();
    let before = bench.docker.inspect(&id).await.unwrap().unwrap();
    assert_eq!((before.ours, before.overdue), (true, false));
    bench.docker.rename_overdue(&id, spec.agent).await.unwrap();
    assert_eq!(bench.docker.signal(&id, Signal::Kill).await, Ok(Signalled::Sent));
    let after = bench.docker.inspect(&id).await.unwrap().unwrap();
    assert_eq!((after.ours, after.overdue, after.name.as_str()), (true, true, overdue_name(spec.agent).as_str()));
    assert_eq!((after.status, after.exit_code, after.oom_killed), (Status::Exited, Some(137), false));
    let listed = bench.docker.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].of_agent(), listed[0].is_overdue()), (Some(spec.agent), true));
    assert_eq!(listed[0].longest_life(), Some(spec.longest_life));
    // Whoever else asks for every installation finds it among them; whoever is another one does not.
    let other = Docker::connect(&bench.endpoint, Uuid::new_v4()).await.unwrap();
    assert!(other.list_every_installation().await.unwrap().iter().any(|container| container.id == id));
    assert_eq!(other.list().await, Ok(vec![]));
}

async fn the_user_cannot_override_our_labels_or_environment(bench: Bench) {
    let mut spec = bench.spec(&["sleep", "inf"]);
    spec.labels.insert("sundown.agent".to_owned(), Uuid::new_v4().to_string());
    spec.labels.insert("team".to_owned(), "blue".to_owned());
    spec.env = [("SUNDOWN_AGENT_ID", "me"), ("A", "1"), ("A", "2")].map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let id = bench.create(&spec).await;
    assert!(bench.docker.inspect(&id).await.unwrap().unwrap().ours);
    let config = bench.raw.inspect_container(&id, None).await.unwrap().config.unwrap();
    assert_eq!(config.labels.unwrap()["sundown.label.team"], "blue");
    let env = config.env.unwrap();
    assert!(env.contains(&format!("SUNDOWN_AGENT_ID={}", spec.agent)));
    assert!(env.contains(&format!("SUNDOWN_EXPIRES_AT={}", spec.first_deadline)));
    assert!(env.contains(&"A=2".to_owned()) && !env.contains(&"A=1".to_owned()));
}

async fn malformed_references_never_reach_the_daemon(bench: Bench) {
    for reference in ["", "/", "../json", "a?b", "a b", "json/../../info", "-a"] {
        let refusal = bench.docker.inspect(reference).await;
        assert!(matches!(refusal, Err(DockerError::Rejected(_))), "{reference}: {refusal:?}");
    }
}

async fn the_daemon_describes_itself(bench: Bench) {
    bench.docker.ping().await.unwrap();
    let description = bench.docker.describe().await.unwrap();
    assert!(!description.version.is_empty() && !description.hostname.is_empty());
    assert!(matches!(description.cgroup_version, 1 | 2));
    assert!(description.cpus > 0);
}

async fn a_missing_executable_exits_127_through_the_init(bench: Bench) {
    let id = bench.run_to_the_end(&["no-such-executable"]).await;
    let container = bench.docker.inspect(&id).await.unwrap().unwrap();
    assert_eq!((container.status, container.exit_code), (Status::Exited, Some(127)));
    assert!(container.ever_started);
}

async fn a_missing_executable_says_so_in_the_tail(bench: Bench) {
    let id = bench.run_to_the_end(&["no-such-executable"]).await;
    let tail = bench.docker.tail(&id, 1000).await.unwrap();
    assert!(String::from_utf8(tail.bytes).unwrap().contains("exec no-such-executable failed"));
}

async fn a_command_that_is_not_executable_exits_126_through_the_init(bench: Bench) {
    let id = bench.run_to_the_end(&["/etc"]).await;
    assert_eq!(bench.docker.inspect(&id).await.unwrap().unwrap().exit_code, Some(126));
}

async fn what_can_never_start_is_rejected_and_never_started(bench: Bench) {
    let command = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
    let hopeless = [
        // 400: without the init, the runtime itself looks for the executable.
        ContainerCreateBody { cmd: command(&["no-such-executable"]), ..Default::default() },
        ContainerCreateBody { cmd: command(&["/etc"]), ..Default::default() },
        ContainerCreateBody { cmd: command(&["/bin/sh/not-a-directory"]), ..Default::default() },
        // 500.
        ContainerCreateBody { cmd: command(&["true"]), user: Some("no-such-user".to_owned()), ..Default::default() },
        ContainerCreateBody { cmd: command(&["true"]), env: Some(vec!["A=\0".to_owned()]), ..Default::default() },
        // 404, though the container is there.
        ContainerCreateBody {
            cmd: command(&["true"]),
            host_config: Some(HostConfig { network_mode: Some("no-such-network".to_owned()), ..Default::default() }),
            ..Default::default()
        },
    ];
    for (index, body) in hopeless.into_iter().enumerate() {
        let id = bench.foreign(&format!("sundown-test-{}", Uuid::new_v4()), body).await;
        let refusal = bench.docker.start(&id).await;
        assert!(matches!(refusal, Err(DockerError::Rejected(_))), "{index}: {refusal:?}");
        let container = bench.docker.inspect(&id).await.unwrap().unwrap();
        assert_eq!((container.status, container.ever_started), (Status::Created, false), "{index}");
        assert_eq!(container.exit_code, None, "{index}");
        assert!(!container.error.is_empty(), "{index}");
    }
}

async fn the_tail_keeps_the_last_bytes_even_nul(bench: Bench) {
    const LIMIT: usize = 64 << 10;
    // One line of 100 000 NULs (in pieces of 16 KiB on the wire), then one on the other stream.
    let script = "head -c 100000 /dev/zero; echo; echo end >&2";
    let id = bench.run_to_the_end(&["sh", "-c", script]).await;
    let tail = bench.docker.tail(&id, LIMIT).await.unwrap();
    assert!(tail.truncated);
    assert_eq!(tail.bytes.len(), LIMIT);
    // The two streams reach the daemon through two pipes, so their order is not promised.
    assert!(tail.bytes.iter().filter(|byte| **byte == 0).count() >= LIMIT - b"\nend\n".len());

    let all = bench.docker.tail(&id, 1 << 20).await.unwrap();
    // The local log driver (20.10) drops the newline of a line that it had to cut.
    assert!(matches!(all.bytes.len(), 100_004 | 100_005));
    assert!(!all.truncated);

    // Short lines, of which a fixed number would not reach back far enough.
    let id = bench.run_to_the_end(&["sh", "-c", "yes '' | head -n 70000; echo end"]).await;
    let tail = bench.docker.tail(&id, LIMIT).await.unwrap();
    assert_eq!((tail.bytes.len(), tail.truncated), (LIMIT, true));
    assert!(tail.bytes.ends_with(b"\n\n\nend\n"));
}

async fn the_profile_is_hardened(bench: Bench) {
    let id = bench.create(&bench.spec(&["sleep", "inf"])).await;
    let answer = bench.raw.inspect_container(&id, None).await.unwrap();
    let answer = serde_json::to_value(answer).unwrap();
    let expected = serde_json::json!({
        "CapDrop": ["ALL"], "CapAdd": null, "Privileged": false,
        "SecurityOpt": ["no-new-privileges"],
        "NetworkMode": "none", "IpcMode": "private", "CgroupnsMode": "private", "PidMode": "",
        "UTSMode": "", "UsernsMode": "", "ShmSize": 16 << 20, "Init": true, "PidsLimit": 32,
        "Memory": 64 << 20, "MemorySwap": 64 << 20, "NanoCpus": 500_000_000, "OomScoreAdj": 500,
        "Ulimits": [
            {"Name": "nofile", "Soft": 1024, "Hard": 1024},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": false, "Binds": null,
        "PortBindings": null, "PublishAllPorts": false, "Devices": null,
        "LogConfig": {"Type": "local", "Config": {
            "max-size": "1m", "max-file": "2", "mode": "non-blocking", "max-buffer-size": "1m",
        }},
    });
    for (key, value) in expected.as_object().unwrap() {
        let found = answer["HostConfig"].get(key).unwrap_or(&serde_json::Value::Null);
        assert_eq!(found, value, "{key}");
    }
    assert_eq!(answer["Config"]["StopTimeout"], 10);
    assert_eq!(answer["Config"]["Healthcheck"]["Test"], serde_json::json!(["NONE"]));

    let id = bench.run_to_the_end(&["sh", "-c", "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/1/status"]).await;
    let status = bench.docker.tail(&id, 1000).await.unwrap().bytes;
    let status = String::from_utf8(status).unwrap().replace('\t', " ");
    assert_eq!(status, "CapEff: 0000000000000000\nNoNewPrivs: 1\nSeccomp: 2\n");
}

async fn an_oom_kill_shows_also_when_the_agent_survives_it(bench: Bench) {
    let hungry = "x=a; while :; do x=$x$x; done";
    let survivor = format!("sh -c '{hungry}'; exit 0");
    for (script, code) in [(hungry, 137), (survivor.as_str(), 0), ("kill -9 $$", 137)] {
        let mut spec = bench.spec(&["sh", "-c", script]);
        spec.memory_bytes = 16 << 20;
        let id = bench.create(&spec).await;
        bench.docker.start(&id).await.unwrap();
        assert_eq!(bench.docker.wait_stopped(&id, LONG).await, Ok(true));
        let container = bench.docker.inspect(&id).await.unwrap().unwrap();
        assert_eq!(container.exit_code, Some(code), "{script}");
        assert_eq!(container.oom_killed, script.contains(hungry), "{script}");
    }
}

async fn an_oom_kill_and_the_end_are_events(bench: Bench) {
    let mut spec = bench.spec(&["sh", "-c", "sleep 0.5; x=a; while :; do x=$x$x; done"]);
    spec.memory_bytes = 16 << 20;
    let mut events = Box::pin(bench.docker.events());
    let id = bench.create(&spec).await;
    // Nothing says when a subscription stands; so it is killed until both have been heard.
    let again = async {
        loop {
            bench.docker.start(&id).await.unwrap();
            bench.docker.wait_stopped(&id, LONG).await.unwrap();
        }
    };
    let heard = async {
        let mut heard = Vec::new();
        while !(heard.contains(&EventKind::Oom) && heard.contains(&EventKind::Die)) {
            heard.push(events.next().await.unwrap().unwrap().kind);
        }
    };
    tokio::select! {
        () = heard => {}
        () = again => {}
        () = tokio::time::sleep(LONG) => panic!("no event"),
    }
}

async fn signals_leave_their_exit_codes(bench: Bench) {
    for (signal, code) in [(Signal::Term, 143), (Signal::Kill, 137)] {
        let id = bench.run(&["sleep", "inf"]).await;
        assert_eq!(bench.docker.signal(&id, signal).await, Ok(Signalled::Sent));
        assert_eq!(bench.exit_code(&id).await, Some(code));
        assert!(!bench.docker.inspect(&id).await.unwrap().unwrap().oom_killed);
    }
}

async fn a_paused_container_is_alive_and_does_nothing_and_can_be_ended(bench: Bench) {
    let docker = &bench.docker;
    let ends = bench.run(&["sh", "-c", "sleep 0.5; exit 5"]).await;
    bench.raw.pause_container(&ends).await.unwrap();
    let paused = docker.inspect(&ends).await.unwrap().unwrap();
    assert_eq!((paused.status, paused.exit_code), (Status::Paused, None));
    assert!(paused.pid.is_some());
    assert_eq!(docker.list().await.unwrap()[0].status, Status::Paused);
    assert_eq!(docker.wait_stopped(&ends, Duration::from_secs(1)).await, Ok(false));
    bench.raw.unpause_container(&ends).await.unwrap();
    assert_eq!(bench.exit_code(&ends).await, Some(5));

    for (signal, code) in [(Signal::Term, 143), (Signal::Kill, 137)] {
        let id = bench.run(&["sleep", "inf"]).await;
        bench.raw.pause_container(&id).await.unwrap();
        assert_eq!(docker.signal(&id, signal).await, Ok(Signalled::Sent));
        assert_eq!(bench.exit_code(&id).await, Some(code));
    }
    let id = bench.run(&["sleep", "inf"]).await;
    bench.raw.pause_container(&id).await.unwrap();
    docker.remove(&id).await.unwrap();
    assert_eq!(docker.inspect(&id).await, Ok(None));
}

async fn a_container_renamed_by_hand_keeps_its_labels(bench: Bench) {
    let spec = bench.spec(&["sleep", "inf"]);
    let id = bench.create(&spec).await;
    let name = format!("sundown-test-{}", Uuid::new_v4());
    bench.raw.rename_container(&id, RenameContainerOptionsBuilder::new().name(&name).build()).await.unwrap();
    let renamed = bench.docker.inspect(&id).await.unwrap().unwrap();
    assert_eq!((renamed.name.as_str(), renamed.agent, renamed.ours), (name.as_str(), Some(spec.agent), false));
    assert_eq!(bench.docker.inspect(&container_name(spec.agent)).await, Ok(None));
    let listed = bench.docker.list().await.unwrap();
    assert_eq!((listed[0].names.as_slice(), listed[0].agent), ([name].as_slice(), Some(spec.agent)));
}

async fn a_wait_tells_the_exit_code_though_the_container_is_removed_meanwhile(bench: Bench) {
    let id = bench.run(&["sh", "-c", "sleep 0.2; exit 3"]).await;
    let (status, told) = bench.call("POST", &format!("/containers/{id}/wait?condition=not-running"), "").await;
    assert!(status == 200 && told.contains("\"StatusCode\":3"), "{told}");
    let id = bench.run(&["sleep", "inf"]).await;
    let waiting = bench.begin_call("POST", &format!("/containers/{id}/wait?condition=not-running"), "").await;
    bench.docker.remove(&id).await.unwrap();
    let told = waiting.text().await;
    assert!(told.contains("\"StatusCode\":137"), "{told}");
}

async fn output_comes_in_frames_of_two_streams(bench: Bench) {
    let id = bench.run_to_the_end(&["sh", "-c", "echo out; echo err >&2; exit 0"]).await;
    let logs = async |stdout, stderr| {
        let options = LogsOptionsBuilder::new().stdout(stdout).stderr(stderr).tail("all").build();
        let mut frames: Vec<String> = bench
            .raw
            .logs(&id, Some(options))
            .map(|frame| match frame.unwrap() {
                LogOutput::StdOut { message } => format!("out: {}", String::from_utf8_lossy(&message)),
                LogOutput::StdErr { message } => format!("err: {}", String::from_utf8_lossy(&message)),
                other => panic!("not a frame of output: {other:?}"),
            })
            .collect()
            .await;
        // The two streams reach the daemon through two pipes, so their order is not promised.
        frames.sort();
        frames
    };
    assert_eq!(logs(true, true).await, ["err: err\n", "out: out\n"]);
    assert_eq!(logs(true, false).await, ["out: out\n"]);
    assert_eq!(logs(false, true).await, ["err: err\n"]);
}

async fn lists_are_filtered_by_life_and_by_every_label(bench: Bench) {
    let installation = format!("sundown.installation={}", bench.installation);
    let created = bench.create(&bench.spec(&["sleep", "inf"])).await;
    let running = bench.run(&["sleep", "inf"]).await;
    let paused = bench.run(&["sleep", "inf"]).await;
    bench.raw.pause_container(&paused).await.unwrap();
    let mut spec = bench.spec(&["sh", "-c", "exit 0"]);
    spec.labels.insert("team".to_owned(), "blue".to_owned());
    let exited = bench.create(&spec).await;
    bench.docker.start(&exited).await.unwrap();
    bench.docker.wait_stopped(&exited, LONG).await.unwrap();
    let list = async |all: bool, labels: &[&str]| {
        let filters = HashMap::from([("label", labels.iter().map(|label| (*label).to_owned()).collect())]);
        let options = ListContainersOptionsBuilder::new().all(all).filters(&filters).build();
        let mut ids: Vec<String> = bench.raw.list_containers(Some(options)).await.unwrap().into_iter().filter_map(|c| c.id).collect();
        ids.sort();
        ids
    };
    let sorted = |mut ids: Vec<&String>| {
        ids.sort();
        ids.into_iter().cloned().collect::<Vec<String>>()
    };
    assert_eq!(list(true, &[&installation]).await, sorted(vec![&created, &running, &paused, &exited]));
    assert_eq!(list(false, &[&installation]).await, sorted(vec![&running, &paused]));
    assert_eq!(list(true, &[&installation, "sundown.label.team=blue"]).await, sorted(vec![&exited]));
    assert_eq!(list(true, &[&installation, "sundown.label.team"]).await, sorted(vec![&exited]));
    assert_eq!(list(true, &[&installation, "sundown.label.team=red"]).await, Vec::<String>::new());
    assert_eq!(list(true, &[&installation, "sundown.label"]).await, Vec::<String>::new());
}

async fn events_are_filtered_by_kind_and_label(bench: Bench) {
    let other = Docker::connect(&bench.endpoint, Uuid::new_v4()).await.unwrap();
    let (spec, theirs) = (bench.spec(&["sh", "-c", "exit 7"]), bench.spec(&["sh", "-c", "exit 7"]));
    let Created::New(theirs) = other.create(&theirs).await.unwrap() else { panic!("a fresh name is taken") };
    let id = bench.create(&spec).await;
    let filters = HashMap::from([
        ("type", vec!["container".to_owned()]),
        ("event", vec!["die".to_owned()]),
        ("label", vec![format!("sundown.installation={}", bench.installation)]),
    ]);
    let mut events = bench.raw.events(Some(EventsOptionsBuilder::new().filters(&filters).build()));
    let again = async {
        loop {
            for (docker, id) in [(&other, &theirs), (&bench.docker, &id)] {
                docker.start(id).await.unwrap();
                docker.wait_stopped(id, LONG).await.unwrap();
            }
        }
    };
    let heard = async {
        for _ in 0..2 {
            let event = events.next().await.unwrap().unwrap();
            assert_eq!(event.action.as_deref(), Some("die"));
            let actor = event.actor.unwrap();
            let attributes = actor.attributes.unwrap();
            assert_eq!((actor.id.as_ref(), attributes["exitCode"].as_str()), (Some(&id), "7"));
            assert_eq!(attributes["sundown.agent"], spec.agent.to_string());
            assert_eq!(attributes["name"], container_name(spec.agent));
        }
    };
    let in_time = async {
        tokio::select! {
            () = heard => true,
            () = again => false,
            () = tokio::time::sleep(LONG) => false,
        }
    };
    let in_time = in_time.await;
    other.remove(&theirs).await.unwrap();
    assert!(in_time, "no event");
}

/// What `docker.rs` makes of an answer is claimed above; this is the answer itself, so that a fake that is wrong in the same way as its
/// reader is found out.
async fn each_call_has_its_status_on_the_wire(bench: Bench) {
    let id = bench.create(&bench.spec(&["sleep", "inf"])).await;
    let other = bench.create(&bench.spec(&["sleep", "inf"])).await;
    let taken = bench.raw.inspect_container(&other, None).await.unwrap().name.unwrap().trim_start_matches('/').to_owned();
    let body = format!("{{\"Image\":\"{}\",\"Cmd\":[\"true\"]}}", bench.image);
    let container = format!("/containers/{id}");
    let step = async |method: &str, what: &str, status: u16, text: &str| {
        let path = if what.starts_with('/') {
            what.to_owned()
        } else {
            format!("{container}{}{what}", if what.is_empty() || what.starts_with('?') { "" } else { "/" })
        };
        let (found, told) = bench.call(method, &path, if path.contains("create?") { &body } else { "" }).await;
        assert_eq!(found, status, "{method} {what}: {told}");
        assert!(told.to_lowercase().contains(text), "{method} {what}: {told}");
    };
    step("POST", &format!("/containers/create?name={taken}"), 409, "already in use").await;
    step("POST", "kill?signal=SIGKILL", 409, "is not running").await;
    step("POST", "pause", 409, "is not running").await;
    step("POST", "unpause", 500, "is not paused").await;
    step("POST", "start", 204, "").await;
    step("POST", "start", 304, "").await;
    step("POST", "kill?signal=NONSENSE", 400, "invalid signal").await;
    step("DELETE", "", 409, "").await;
    step("POST", "pause", 204, "").await;
    step("POST", "pause", 409, "already paused").await;
    step("POST", "start", 409, "paused").await;
    step("POST", "unpause", 204, "").await;
    step("POST", "kill?signal=SIGKILL", 204, "").await;
    assert_eq!(bench.exit_code(&id).await, Some(137));
    step("POST", "kill?signal=SIGTERM", 409, "is not running").await;
    // A second run.
    step("POST", "start", 204, "").await;
    step("POST", &format!("rename?name={taken}"), 409, "already in use").await;
    step("GET", "logs", 400, "").await;
    step("DELETE", "?force=true&v=true", 204, "").await;
    for (method, what) in [
        ("GET", "json"),
        ("POST", "start"),
        ("POST", "kill?signal=SIGKILL"),
        ("POST", "pause"),
        ("POST", "unpause"),
        ("POST", "rename?name=sundown-test-nobody"),
        ("POST", "wait?condition=not-running"),
        ("GET", "logs?stdout=true"),
        ("DELETE", "?force=true&v=true"),
    ] {
        step(method, what, 404, "no such container").await;
    }
    step("GET", "/volumes/sundown-test-nowhere", 404, "no such volume").await;
    step("DELETE", "/volumes/sundown-test-nowhere", 404, "no such volume").await;
    let (status, told) =
        bench.call("POST", "/containers/create?name=sundown-test-nobody", r#"{"Image":"sundown-test-absent:latest","Cmd":["true"]}"#).await;
    assert!(status == 404 && told.to_lowercase().contains("no such image"), "{status} {told}");
    step("GET", "/no/such/path", 404, "page not found").await;
}

fn is_unavailable<T: std::fmt::Debug>(answer: Result<T, DockerError>) {
    assert!(matches!(answer, Err(DockerError::Unavailable(_))), "{answer:?}");
}

#[tokio::test]
async fn a_silent_daemon_is_unavailable_within_the_bound() {
    let fake = FakeDocker::start().await;
    let bench = Bench::new(fake.endpoint()).await;
    fake.inject(None, None, Fault::Hang, usize::MAX);
    let since = tokio::time::Instant::now();
    let (ping, inspect, connect) =
        tokio::join!(bench.docker.ping(), bench.docker.inspect("sundown-1"), Docker::connect(&bench.endpoint, bench.installation),);
    assert!(since.elapsed() < Duration::from_secs(8));
    is_unavailable(ping);
    is_unavailable(inspect);
    is_unavailable(connect);
    fake.heal();
    assert_eq!(bench.docker.ping().await, Ok(()));
}

#[tokio::test]
async fn an_absent_daemon_is_unavailable() {
    let fake = FakeDocker::start().await;
    let bench = Bench::new(fake.endpoint()).await;
    fake.down();
    is_unavailable(bench.docker.ping().await);
    is_unavailable(Docker::connect(&bench.endpoint, bench.installation).await);
    fake.up();
    assert_eq!(bench.docker.ping().await, Ok(()));
    let refusal = Docker::connect("ssh://host", bench.installation).await;
    assert!(matches!(refusal, Err(DockerError::Rejected(_))), "{refusal:?}");
}

#[tokio::test]
async fn a_500_and_a_truncated_answer_are_unknown_outcomes() {
    let fake = FakeDocker::start().await;
    let bench = Bench::new(fake.endpoint()).await;
    let docker = &bench.docker;
    for fault in [Fault::Status(500, "driver failed"), Fault::Truncated, Fault::LostResponse] {
        let id = bench.run(&["sleep", "inf"]).await;
        fake.inject(None, None, fault.clone(), usize::MAX);
        is_unavailable(docker.inspect(&id).await);
        is_unavailable(docker.list().await);
        is_unavailable(docker.describe().await);
        is_unavailable(docker.host_identity(Uuid::new_v4()).await);
        is_unavailable(docker.create(&bench.spec(&["sleep", "inf"])).await);
        is_unavailable(Docker::connect(&bench.endpoint, bench.installation).await);
        // An answer without a body cannot be cut.
        if !matches!(fault, Fault::Truncated) {
            is_unavailable(docker.start(&id).await);
            is_unavailable(docker.signal(&id, Signal::Kill).await);
            is_unavailable(docker.wait_stopped(&id, LONG).await);
            is_unavailable(docker.tail(&id, 100).await);
            is_unavailable(docker.remove(&id).await);
        }
        fake.heal();
    }
}

#[tokio::test]
async fn after_a_lost_response_looking_again_tells() {
    let fake = FakeDocker::start().await;
    let bench = Bench::new(fake.endpoint()).await;
    let spec = bench.spec(&["sleep", "inf"]);
    let name = container_name(spec.agent);
    fake.inject(None, Some(&name), Fault::LostResponse, 1);
    is_unavailable(bench.docker.create(&spec).await);
    assert_eq!(bench.docker.create(&spec).await, Ok(Created::NameTaken));
    let id = bench.docker.inspect(&name).await.unwrap().unwrap().id;

    fake.inject(Some(Call::Start), Some(&id), Fault::LostResponse, 1);
    is_unavailable(bench.docker.start(&id).await);
    assert!(bench.docker.inspect(&id).await.unwrap().unwrap().ever_started);
    assert_eq!((fake.calls(Call::Start, &id), fake.runs(&name)), (1, 1));

    fake.inject(Some(Call::Remove), Some(&id), Fault::LostResponse, 1);
    is_unavailable(bench.docker.remove(&id).await);
    assert_eq!(bench.docker.remove(&id).await, Ok(Removed::Gone));
    assert_eq!(fake.total(Call::Remove), 2);
}

#[tokio::test]
async fn a_start_failure_of_the_spec_is_told_from_one_of_the_daemon() {
    const HOPELESS: &str = "failed to create shim task: OCI runtime create failed: invalid argument";
    const SHORTAGE: &str = "OCI runtime create failed: fork: resource temporarily unavailable";
    let fake = FakeDocker::start().await;
    let bench = Bench::new(fake.endpoint()).await;
    let id = bench.create(&bench.spec(&["sleep", "inf"])).await;
    for (status, text, hopeless) in [
        (400, "executable file not found", true),
        (404, "network blue not found", true),
        (404, "page not found", false),
        (500, HOPELESS, true),
        (500, SHORTAGE, false),
        (500, "context deadline exceeded", false),
        (500, "failed to create endpoint on network bridge", false),
        (503, "try later", false),
        (409, "container is marked for removal and cannot be started", false),
    ] {
        fake.inject(Some(Call::Start), None, Fault::Status(status, text), 1);
        let refusal = bench.docker.start(&id).await.unwrap_err();
        assert_eq!(matches!(refusal, DockerError::Rejected(_)), hopeless, "{refusal}");
    }
    assert_eq!(fake.runs(&id), 0);
}

#[tokio::test]
async fn a_404_that_is_not_the_daemons_own_does_not_mean_gone() {
    let fake = FakeDocker::start().await;
    let bench = Bench::new(fake.endpoint()).await;
    let id = bench.run(&["sleep", "inf"]).await;
    fake.inject(None, None, Fault::Status(404, "page not found"), usize::MAX);
    is_unavailable(bench.docker.inspect(&id).await);
    is_unavailable(bench.docker.start(&id).await);
    is_unavailable(bench.docker.signal(&id, Signal::Kill).await);
    is_unavailable(bench.docker.wait_stopped(&id, LONG).await);
    is_unavailable(bench.docker.tail(&id, 100).await);
    is_unavailable(bench.docker.remove(&id).await);
    is_unavailable(bench.docker.create(&bench.spec(&["sleep", "inf"])).await);
}

#[tokio::test]
async fn a_daemon_is_reached_over_tcp() {
    let fake = FakeDocker::start().await;
    let bench = Bench::new(fake.endpoint()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let path = bench.endpoint.strip_prefix("unix://").unwrap().to_owned();
    let relay = tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = tokio::net::UnixStream::connect(&path).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    for scheme in ["tcp", "http"] {
        let endpoint = format!("{scheme}://127.0.0.1:{port}");
        let docker = Docker::connect(&endpoint, bench.installation).await.unwrap();
        assert_eq!(docker.list().await, Ok(vec![]));
    }
    relay.abort();
}

#[tokio::test]
async fn a_removal_in_progress_counts_only_once_the_container_is_gone() {
    const IN_PROGRESS: Fault = Fault::Status(409, "removal of container is already in progress");
    let fake = FakeDocker::start().await;
    let bench = Bench::new(fake.endpoint()).await;
    let id = bench.run(&["sleep", "inf"]).await;
    fake.inject(Some(Call::Remove), None, IN_PROGRESS, 1);
    is_unavailable(bench.docker.remove(&id).await);
    bench.docker.remove(&id).await.unwrap();
    fake.inject(Some(Call::Remove), None, IN_PROGRESS, 1);
    assert_eq!(bench.docker.remove(&id).await, Ok(Removed::Gone));
}

#[tokio::test]
async fn a_log_stream_left_open_does_not_hold_a_follower() {
    let fake = FakeDocker::start().await;
    let bench = Bench::new(fake.endpoint()).await;
    fake.inject(Some(Call::Logs), None, Fault::Mute, 1);
    let id = bench.run(&["sh", "-c", "echo first; sleep 0.2; echo last"]).await;
    let output = bench.docker.logs(&id, true, None).unwrap();
    let text = output.map(|chunk| chunk.unwrap().to_vec()).concat();
    assert_eq!(tokio::time::timeout(LONG, text).await.unwrap(), b"first\nlast\n");
}

#[tokio::test]
async fn events_end_with_their_first_error() {
    let fake = FakeDocker::start().await;
    let bench = Bench::new(fake.endpoint()).await;
    let down = async {
        // The subscription stands once its first event has come.
        let mut events = Box::pin(bench.docker.events());
        let id = bench.create(&bench.spec(&["true"])).await;
        tokio::select! {
            event = events.next() => event.unwrap().unwrap(),
            () = async { loop { bench.docker.start(&id).await.unwrap(); } } => unreachable!(),
        };
        fake.down();
        let mut errors = 0;
        while let Some(event) = events.next().await {
            errors += usize::from(event.is_err());
        }
        errors
    };
    assert!(tokio::time::timeout(LONG, down).await.unwrap() <= 1);
}

#[tokio::test]
async fn a_slow_answer_is_awaited() {
    let fake = FakeDocker::start().await;
    let bench = Bench::new(fake.endpoint()).await;
    let id = bench.run(&["sh", "-c", "echo out; sleep inf"]).await;
    fake.inject(Some(Call::Kill), None, Fault::Slow(Duration::from_millis(300)), 1);
    assert_eq!(bench.docker.signal(&id, Signal::Kill).await, Ok(Signalled::Sent));
}

#[tokio::test]
async fn a_hung_call_takes_effect_later_and_holds_up_no_other_container() {
    let fake = FakeDocker::start().await;
    let bench = Bench::new(fake.endpoint()).await;
    let (stuck, other) =
        (bench.run(&["sh", "-c", "ignore-term; sleep inf"]).await, bench.run(&["sh", "-c", "ignore-term; sleep inf"]).await);
    fake.inject(Some(Call::Kill), Some(&stuck), Fault::Hang, 1);
    let hung = tokio::time::timeout(Duration::from_millis(100), bench.docker.signal(&stuck, Signal::Kill));
    assert!(hung.await.is_err());
    assert_eq!(bench.docker.signal(&other, Signal::Kill).await, Ok(Signalled::Sent));
    assert_eq!(bench.docker.inspect(&stuck).await.unwrap().unwrap().status, Status::Running);
    fake.heal();
    fake.until(|all| all.iter().all(|container| container.status == "exited")).await;
}

#[tokio::test]
async fn thousands_of_containers_are_listed_in_one_call() {
    let fake = FakeDocker::start().await;
    let bench = Bench::new(fake.endpoint()).await;
    for _ in 0..2000 {
        bench.create(&bench.spec(&["sleep", "inf"])).await;
    }
    assert_eq!(bench.docker.list().await.unwrap().len(), 2000);
    assert_eq!(fake.total(Call::List), 1);
}
