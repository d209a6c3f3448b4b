//! SIGKILL that reaches processes of containers without the daemon: whom it reaches, whom it never does, and that an agent ends on time
//! where it cannot. The containers are real; pids that are wrong are said by a daemon on the wire.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fake_docker;
mod harness;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fake_docker::{Call, FakeDocker};
use harness::docker::{self, image};
use harness::lives::{end, outcome, submit, until_all};
use harness::replica::{Replica, sundown};
use harness::{Db, eventually};
use sundown::docker::socket;
use sundown::process::end_init;
use tokio::net::{TcpListener, UnixStream};
use tokio_postgres::Client;
use uuid::Uuid;

const STUBBORN: &str = "trap '' TERM; while true; do sleep 1; done";

/// How many SIGKILLs a replica has sent directly, and how many it left to the daemon.
async fn kills(replica: &Replica) -> (u64, u64) {
    let metrics = replica.http("GET", "/metrics", "").await.body;
    let by = |who: &str| {
        let counter = format!("sundown_kills_total{{by=\"{who}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&counter)?.parse().ok()).unwrap_or(0)
    };
    (by("pidfd"), by("docker"))
}

const DIRECTLY: (u64, u64) = (1, 0);
const BY_THE_DAEMON: (u64, u64) = (0, 1);

/// By how many seconds an agent's end was recorded after its deadline and its grace.
async fn late(client: &Client, id: Uuid) -> f64 {
    let ask = "select extract(epoch from o.finished_at - o.expires_at - a.grace)::float8 from sundown.agent_outcome o join sundown.agent a using (id) where id = $1";
    client.query_one(ask, &[&id]).await.unwrap().get(0)
}

/// The real daemon, as the tests reach it.
fn endpoint() -> String {
    std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned())
}

/// A container that is nobody's agent. It goes with the test.
struct Bystander {
    id: String,
    pid: u32,
}

impl Bystander {
    fn new() -> Self {
        // Its init has a child, which is inside of it and is not its init.
        let id = docker::run(&["run", "-d", "--network", "none", &image(), "sh", "-c", "sleep 600 & wait"]);
        let pid = docker::run(&["inspect", "-f", "{{.State.Pid}}", &id]).parse().unwrap();
        Self { id, pid }
    }

    fn runs(&self) -> bool {
        docker::run(&["inspect", "-f", "{{.State.Running}} {{.State.Pid}}", &self.id]) == format!("true {}", self.pid)
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _gone = Command::new("docker").args(["rm", "-f", &self.id]).output();
    }
}

/// A process that is in no container. It goes with the test.
struct Passer(Child);

impl Passer {
    fn new() -> Self {
        Self(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap())
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Passer {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _status = self.0.wait();
    }
}

#[tokio::test]
async fn sigkill_reaches_an_agent_without_the_daemon() {
    let db = Db::new().await;
    let client = db.client().await;
    let replica = Replica::start(&db.url(), &[]).await;
    let at_once = submit(&client, &image(), "sleep 600", ", ttl => '1s', grace => '0s'").await;
    assert_eq!(outcome(&client, at_once).await, end("expired", "ttl_expired", Some(137)));
    assert_eq!(kills(&replica).await, DIRECTLY);
    let after_its_grace = submit(&client, &image(), STUBBORN, ", ttl => '1s', grace => '1s'").await;
    assert_eq!(outcome(&client, after_its_grace).await, end("expired", "ttl_expired", Some(137)));
    assert_eq!(kills(&replica).await, (2, 0));
    let kept = "select bool_and(decided_at >= expires_at and killed_at >= signalled_at + case when id = $1 then interval '0' else '1 s' end
                and observed_at >= killed_at) from sundown.agent_outcome";
    assert!(client.query_one(kept, &[&at_once]).await.unwrap().get::<_, bool>(0), "the intent comes first, and the grace is kept");
    docker::leave_nothing(&client).await;
}

/// What a replica exports of how late ends were: how many there were in a phase, and their sum in seconds.
async fn lag(replica: &Replica, phase: &str) -> (f64, f64) {
    let metrics = replica.http("GET", "/metrics", "").await.body;
    let of = |what: &str| {
        let series = format!("sundown_expiry_lag_seconds_{what}{{phase=\"{phase}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0.0)
    };
    (of("count"), of("sum"))
}

#[tokio::test]
async fn how_late_an_end_was_is_kept_and_exported_whoever_sent_sigkill() {
    for variables in [&[][..], &[("SUNDOWN_NO_FAST_KILL", "true")]] {
        let db = Db::new().await;
        let client = db.client().await;
        let replica = Replica::start(&db.url(), variables).await;
        let killed = submit(&client, &image(), "sleep 600", ", ttl => '1s', grace => '0s'").await;
        let heeds = submit(&client, &image(), "sleep 600", ", ttl => '1s', grace => '5s'").await;
        let wish = submit(&client, &image(), "sleep 600", ", ttl => '1h', grace => '0s'").await;
        let exits = submit(&client, &image(), "exit 0", ", ttl => '1h'").await;
        until_all(&client, &[wish], "running").await;
        client.execute("select sundown.terminate($1)", &[&wish]).await.unwrap();
        for id in [killed, heeds, wish, exits] {
            outcome(&client, id).await;
        }
        let ordered = "select bool_and(expires_at <= decided_at and decided_at <= dead_at and dead_at <= observed_at) from sundown.agent_outcome where id = any ($1)";
        assert!(client.query_one(ordered, &[&vec![killed, heeds]]).await.unwrap().get::<_, bool>(0));
        let known = "select bool_and(dead_at > killed_at and dead_at <= observed_at) from sundown.agent_outcome where id = any ($1)";
        assert!(client.query_one(known, &[&vec![killed, wish]]).await.unwrap().get::<_, bool>(0));
        let itself = "select dead_at >= started_at and decided_at is null from sundown.agent_outcome where id = $1";
        assert!(client.query_one(itself, &[&exits]).await.unwrap().get::<_, bool>(0));
        // Exported is what the database has, of those that reached their deadline.
        for phase in ["decision", "dead", "confirmed"] {
            let ask = format!("select extract(epoch from sum({phase}))::float8 from sundown.lateness where reason = 'ttl_expired'");
            let sum: f64 = client.query_one(&ask, &[]).await.unwrap().get(0);
            let (count, exported) = lag(&replica, phase).await;
            assert!(count == 2.0 && (exported - sum).abs() < 0.001, "{phase}: {count} with {exported} in all, not {sum}");
        }
        docker::leave_nothing(&client).await;
    }
}

#[tokio::test]
async fn whoever_did_not_send_the_signal_finds_the_process_too() {
    let db = Db::new().await;
    let client = db.client().await;
    let mut first = Replica::start(&db.url(), &[("FAILPOINTS", "stop.signalled=1*return(kill)")]).await;
    let id = submit(&client, &image(), STUBBORN, ", ttl => '1s', grace => '2s'").await;
    first.ended().await;
    let second = Replica::start(&db.url(), &[]).await;
    assert_eq!(outcome(&client, id).await, end("expired", "ttl_expired", Some(137)));
    assert_eq!(kills(&second).await, DIRECTLY);
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn a_paused_agent_ends_on_time_though_no_signal_reaches_it() {
    let db = Db::new().await;
    let client = db.client().await;
    let replica = Replica::start(&db.url(), &[]).await;
    let id = submit(&client, &image(), "sleep 600", ", ttl => '3s', grace => '0s'").await;
    until_all(&client, &[id], "running").await;
    docker::run(&["pause", &format!("sundown-{id}")]);
    assert_eq!(outcome(&client, id).await, end("expired", "ttl_expired", Some(137)));
    let late = late(&client, id).await;
    assert!(late < 5.0, "{late} s late");
    // Control groups of version 2 let SIGKILL through.
    let expected = if docker::run(&["info", "-f", "{{.CgroupVersion}}"]) == "1" { BY_THE_DAEMON } else { DIRECTLY };
    assert_eq!(kills(&replica).await, expected);
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn turned_off_every_sigkill_is_left_to_the_daemon() {
    let db = Db::new().await;
    let client = db.client().await;
    let replica = Replica::start(&db.url(), &[("SUNDOWN_NO_FAST_KILL", "true")]).await;
    let id = submit(&client, &image(), "sleep 600", ", ttl => '1s', grace => '0s'").await;
    assert_eq!(outcome(&client, id).await, end("expired", "ttl_expired", Some(137)));
    assert_eq!(kills(&replica).await, BY_THE_DAEMON);
    docker::leave_nothing(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn to_a_daemon_on_a_network_every_sigkill_is_left_wherever_it_is() {
    let (listener, daemon) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), endpoint());
    let remote = format!("tcp://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = UnixStream::connect(socket(&daemon).unwrap()).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
        }
    });
    let db = Db::new().await;
    let client = db.client().await;
    let replica = Replica::start(&db.url(), &[("SUNDOWN_DOCKER", &remote)]).await;
    let id = submit(&client, &image(), "sleep 600", ", ttl => '1s', grace => '0s'").await;
    assert_eq!(outcome(&client, id).await, end("expired", "ttl_expired", Some(137)));
    assert_eq!(kills(&replica).await, BY_THE_DAEMON);
    docker::leave_nothing(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_init_of_the_very_container_is_signalled() {
    let (its, other, mut passer) = (Bystander::new(), Bystander::new(), Passer::new());
    let child = eventually("its init has a child", Duration::from_secs(10), async || {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", its.pid)).unwrap();
        children.split_whitespace().next().and_then(|pid| pid.parse().ok())
    })
    .await;
    assert!(!end_init(other.pid, &its.id).await, "another container's init");
    assert!(!end_init(passer.0.id(), &its.id).await, "a process that is in no container");
    assert!(!end_init(child, &its.id).await, "inside of it, and not its init");
    assert!(!end_init(its.pid, &its.id[..12]).await, "by an id that others may share");
    assert!(its.runs() && other.runs() && passer.runs());
    assert!(std::fs::exists(format!("/proc/{child}")).unwrap());
    assert!(end_init(its.pid, &its.id).await);
    assert!(!std::fs::exists(format!("/proc/{child}/exe")).unwrap(), "whoever is in it has ended when its init is said to");
    assert_eq!(docker::run(&["wait", &its.id]), "137");
    // Its number may be anybody's from now on.
    assert!(!end_init(its.pid, &its.id).await);
    assert!(other.runs() && passer.runs());
}

/// An agent whose daemon says that it is this process, ended at its deadline: by that daemon, which is asked for nothing twice.
async fn ends_without_harm_to(pid: u32) {
    let (db, fake) = (Db::new().await, FakeDocker::start().await);
    fake.every_pid_is(pid);
    let (client, endpoint) = (db.client().await, fake.endpoint());
    let replica = Replica::start(&db.url(), &[("SUNDOWN_DOCKER", &endpoint)]).await;
    let id = submit(&client, "busybox", "sleep inf", ", ttl => '1s', grace => '0s'").await;
    assert_eq!(outcome(&client, id).await, end("expired", "ttl_expired", Some(137)));
    assert_eq!(kills(&replica).await, BY_THE_DAEMON);
    // Before its start, for its pid, before the decision to kill it, and once it was killed.
    let name = format!("sundown-{id}");
    assert_eq!((fake.calls(Call::Kill, &name), fake.calls(Call::Inspect, &name)), (1, 4), "{:?}", fake.history(&name));
    let late = late(&client, id).await;
    assert!(late < 3.0, "{late} s late");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pid_that_is_another_containers_by_now_is_never_signalled() {
    let other = Bystander::new();
    ends_without_harm_to(other.pid).await;
    assert!(other.runs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pid_of_another_namespace_that_is_anybodys_here_is_never_signalled() {
    let mut passer = Passer::new();
    ends_without_harm_to(passer.0.id()).await;
    assert!(passer.runs());
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_who_sends_sigkill_and_why() {
    let fake = FakeDocker::start().await;
    let said = |variables: &[(&str, &str)]| {
        let mut doctor = sundown();
        doctor.arg("doctor").env("SUNDOWN_DOCKER", fake.endpoint()).envs(variables.iter().copied()).stdin(Stdio::null());
        String::from_utf8(doctor.output().unwrap().stdout).unwrap()
    };
    // The daemon on the wire is this process: of our namespace, and ours to signal.
    let (on, off) = (said(&[]), said(&[("SUNDOWN_NO_FAST_KILL", "1")]));
    assert!(on.contains(": SIGKILL is sent directly to processes of containers\n"), "{on}");
    assert!(off.contains(": SIGKILL is sent by the daemon: SUNDOWN_NO_FAST_KILL is set\n"), "{off}");
    assert!(on.lines().chain(off.lines()).filter(|line| line.contains("SIGKILL")).all(|line| line.starts_with("ok")), "{on}{off}");
}
