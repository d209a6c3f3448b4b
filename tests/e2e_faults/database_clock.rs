//! The database's clock, the only one that decides, is stepped by two hours: what is due by it ends, once; what is not is left alone; and
//! nothing that was under way waits for an instant that has become far.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::fake_docker::{Call, FakeDocker, Fault};
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::lives::{each_expired_once, end, nothing_is_held, outcome, state, submit, submit_many, until_all};
use crate::harness::postgres::Scratch;
use crate::harness::replica::Replica;
use crate::harness::until;

/// A DELETE is followed by the end within this time beside the grace, also when the clock was stepped just before: two looks of an idle
/// replica, which learns from them where the clock is, and some time for a machine on which everything else is tested.
const STOPPED: Duration = Duration::from_secs(10);

/// The offset of a server's clock from this machine's, in a file that its processes look at.
struct Clock {
    scratch: Scratch,
    library: String,
}

impl Clock {
    fn new() -> Self {
        let library = fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path().join("faketime/libfaketime.so.1"));
        let library = library.filter(|path| path.exists()).map(|path| path.display().to_string()).next();
        let library = library.unwrap_or_else(|| panic!("faketime is installed: run scripts/test"));
        let clock = Self { scratch: Scratch::new(), library };
        clock.set("+0");
        clock
    }

    fn file(&self) -> PathBuf {
        self.scratch.path().join("offset")
    }

    /// At once, for all of the server: no process finds half of it.
    fn set(&self, offset: &str) {
        let new = self.scratch.path().join("new");
        fs::write(&new, offset).unwrap();
        fs::rename(&new, self.file()).unwrap();
    }

    async fn postgres(&self) -> Cluster {
        let file = self.file().display().to_string();
        let environment = [
            ("LD_PRELOAD", self.library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", file.as_str()),
            ("FAKETIME_NO_CACHE", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
            ("NO_FAKE_STAT", "1"),
        ];
        Cluster::start(Plan { environment: &environment, ..Plan::default() }).await
    }
}

/// A Postgres with a clock of its own, a daemon and two replicas between them.
struct World {
    replicas: Vec<Replica>,
    fake: FakeDocker,
    client: Client,
    postgres: Cluster,
    clock: Clock,
}

impl World {
    async fn new() -> Self {
        let clock = Clock::new();
        let postgres = clock.postgres().await;
        let mut world = Self { replicas: Vec::new(), fake: FakeDocker::start().await, client: postgres.ours().await, postgres, clock };
        world.start_replicas().await;
        world
    }

    async fn start_replicas(&mut self) {
        let (url, endpoint) = (self.postgres.url(), self.fake.endpoint());
        let variables = [("SUNDOWN_DOCKER", endpoint.as_str())];
        self.replicas = vec![Replica::start(&url, &variables).await, Replica::start(&url, &variables).await];
    }

    async fn hours_ahead(&self) -> f64 {
        let ahead = "select extract(epoch from clock_timestamp())::float8";
        let theirs: f64 = self.client.query_one(ahead, &[]).await.unwrap().get(0);
        let ours = fs::metadata(self.mark()).unwrap().modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
        ((theirs - ours.as_secs_f64()) / 3600.0).round()
    }

    /// A file that was written just now: its time is by the clock of this machine.
    fn mark(&self) -> PathBuf {
        let mark = self.clock.scratch.path().join("mark");
        fs::write(&mark, "").unwrap();
        mark
    }

    async fn step_to(&self, offset: &str, hours: f64) {
        self.clock.set(offset);
        assert!((self.hours_ahead().await - hours).abs() < 0.5, "the clock was not stepped");
    }

    /// Asks for its end, and waits for that.
    async fn ended_by_request(&self, id: Uuid, grace: Duration) {
        let asked = Instant::now();
        let answer = self.replicas[0].http("DELETE", &format!("/agents/{id}"), "").await;
        assert_eq!(answer.status, 202, "{answer:?}");
        assert_eq!(outcome(&self.client, id).await, end("expired", "terminated", Some(143)));
        assert!(asked.elapsed() < grace + STOPPED, "it took {:?}", asked.elapsed());
    }

    /// Whoever comes now is served as ever.
    async fn newcomers_are_served(&self) {
        let exits = submit(&self.client, "busybox", "exit 3", "").await;
        let expires = submit(&self.client, "busybox", "sleep inf", ", ttl => '1s', grace => '0s'").await;
        let ended = submit(&self.client, "busybox", "sleep inf", ", ttl => '10min', grace => '1s'").await;
        assert_eq!(outcome(&self.client, exits).await, end("failed", "exited", Some(3)));
        until_all(&self.client, &[ended], "running").await;
        self.ended_by_request(ended, Duration::from_secs(1)).await;
        each_expired_once(&self.client, &[expires]).await;
    }

    /// Somebody keeps the host, by a lease that is no longer than leases are.
    async fn somebody_keeps_the_host(&self) {
        let kept = "select count(*) from sundown.keeper where until between clock_timestamp() and clock_timestamp() + interval '1 min'";
        until("somebody keeps the host", async || self.client.query_one(kept, &[]).await.unwrap().get::<_, i64>(0) == 1).await;
    }

    async fn nothing_is_left(&self) {
        let agents = self.client.query("select id from sundown.agent", &[]).await.unwrap();
        for id in agents.iter().map(|row| row.get::<_, Uuid>(0)) {
            assert!(self.fake.runs(&name(id)) <= 1, "agent {id} ran twice");
        }
        assert_eq!(self.fake.containers(), []);
        nothing_is_held(&self.client).await;
    }
}

fn name(id: Uuid) -> String {
    format!("sundown-{id}")
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_databases_clock_two_hours_forward_whoever_is_due_by_it_ends_once_and_nobody_else() {
    let world = World::new().await;
    let within = submit_many(&world.client, 4, "busybox", "ignore-term; sleep inf", ", ttl => '10min', grace => '1s'").await;
    let beyond = submit_many(&world.client, 2, "busybox", "sleep inf", ", ttl => '4h', grace => '1s'").await;
    let waits = submit(&world.client, "busybox", "exit 4", ", ttl => '10min', run_at => now() + interval '1 h'").await;
    until_all(&world.client, &[within.as_slice(), &beyond].concat(), "running").await;
    world.step_to("+2h", 2.0).await;
    let stepped = Instant::now();
    each_expired_once(&world.client, &within).await;
    assert!(stepped.elapsed() < Duration::from_secs(20), "it took {:?}", stepped.elapsed());
    assert_eq!(outcome(&world.client, waits).await, end("failed", "exited", Some(4)), "its time had come");
    // By the clock that decides they were late, and the record says so.
    let late = "select bool_and(decided_at - expires_at between interval '100 min' and interval '115 min' and finished_at >= killed_at
                and killed_at >= signalled_at and signalled_at >= decided_at) from sundown.agent_outcome where id = any ($1)";
    assert!(world.client.query_one(late, &[&within]).await.unwrap().get::<_, bool>(0), "the record is not honest");
    world.somebody_keeps_the_host().await;
    world.newcomers_are_served().await;
    for id in &beyond {
        assert_eq!((state(&world.client, *id).await.as_str(), world.fake.calls(Call::Kill, &name(*id))), ("running", 0));
        world.ended_by_request(*id, Duration::from_secs(1)).await;
    }
    world.nothing_is_left().await;
}

async fn back(replicas_die: bool) {
    let mut world = World::new().await;
    // What it is stepped back to is later than everything that was made for it, the first partitions too.
    world.step_to("+2h", 2.0).await;
    let client = world.postgres.ours().await;
    let ended = submit(&client, "busybox", "sleep inf", ", ttl => '1s', grace => '0s'").await;
    each_expired_once(&client, &[ended]).await;
    let stays = submit(&client, "busybox", "sleep inf", ", ttl => '10min', grace => '1s'").await;
    let stopping = submit(&client, "busybox", "ignore-term; sleep inf", ", ttl => '10min', grace => '4s'").await;
    let unsent = submit(&client, "busybox", "sleep inf", ", ttl => '10min', grace => '4s'").await;
    until_all(&client, &[stays, stopping, unsent], "running").await;
    // A start that hangs, a stop whose signal does, one whose grace has begun, and one that waits for a place.
    let starting = submit(&client, "busybox", "exit 5", ", ttl => '10min', run_at => now() + interval '1 s'").await;
    world.fake.inject(Some(Call::Create), Some(&name(starting)), Fault::Hang, usize::MAX);
    world.fake.inject(Some(Call::Kill), Some(&name(unsent)), Fault::Hang, usize::MAX);
    until("it is being created", async || world.fake.calls(Call::Create, &name(starting)) > 0).await;
    client.execute("update sundown.host_slot set cordoned = true", &[]).await.unwrap();
    let waits = submit(&client, "busybox", "exit 6", ", ttl => '10min'").await;
    client.execute("select sundown.terminate($1)", &[&unsent]).await.unwrap();
    client.execute("select sundown.terminate($1)", &[&stopping]).await.unwrap();
    until("both are signalled", async || {
        world.fake.calls(Call::Kill, &name(unsent)) > 0
            && client
                .query_one("select signalled_at is not null and leased_by is null from sundown.agent_live where id = $1", &[&stopping])
                .await
                .unwrap()
                .get(0)
    })
    .await;
    if replicas_die {
        for replica in &mut world.replicas {
            replica.signal(Signal::SIGKILL);
            replica.ended().await;
        }
    }
    world.step_to("+0", 0.0).await;
    client.execute("update sundown.host_slot set cordoned = false", &[]).await.unwrap();
    let stepped = Instant::now();
    world.fake.heal();
    if replicas_die {
        world.start_replicas().await;
    }
    world.ended_by_request(stays, Duration::from_secs(1)).await;
    // None of them is stuck for two hours.
    assert_eq!(outcome(&client, stopping).await, end("expired", "terminated", Some(137)));
    let (end_state, reason, _) = outcome(&client, unsent).await;
    assert_eq!((end_state.as_str(), reason.as_str()), ("expired", "terminated"));
    assert_eq!(outcome(&client, starting).await, end("failed", "exited", Some(5)));
    assert_eq!(outcome(&client, waits).await, end("failed", "exited", Some(6)));
    assert!(stepped.elapsed() < Duration::from_secs(25), "it took {:?}", stepped.elapsed());
    world.somebody_keeps_the_host().await;
    world.newcomers_are_served().await;
    // Nothing is undone, and nobody comes back to life.
    each_expired_once(&client, &[ended]).await;
    let twice = "select count(*) from (select id from sundown.event where state in ('succeeded', 'failed', 'expired') group by id having count(*) > 1) twice";
    assert_eq!(client.query_one(twice, &[]).await.unwrap().get::<_, i64>(0), 0, "somebody ended twice");
    world.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_databases_clock_two_hours_back_nothing_is_undone_and_nothing_waits_for_them() {
    back(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_databases_clock_two_hours_back_what_dead_replicas_had_in_hand_is_taken_over_as_ever() {
    back(true).await;
}
