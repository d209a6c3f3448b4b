//! Postgres restarted, stopped, silent, read-only, and connections cut: while it is away nothing is promised, and when it is back
//! nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::fake_docker::{Call, FakeDocker};
use crate::harness::lives::{due_together, each_expired_once, end, nothing_is_held, outcome, state, submit, submit_many, until_all};
use crate::harness::postgres::Postgres;
use crate::harness::replica::{Answer, Replica};
use crate::harness::{eventually, until};

/// While the database is away every wish is answered within two seconds, and one more for a machine on which everything else is tested
/// at the same time: an answer that waited for the database would take far longer.
const PROMISED: Duration = Duration::from_secs(2 + 1);
/// When it is back, every replica is ready within this time.
const BACK: Duration = Duration::from_secs(10);

/// A private Postgres, a daemon and two replicas between them.
struct World {
    replicas: Arc<[Replica; 2]>,
    fake: FakeDocker,
    postgres: Postgres,
}

impl World {
    async fn new() -> Self {
        let (postgres, fake) = (Postgres::start().await, FakeDocker::start().await);
        let (url, endpoint) = (postgres.url(), fake.endpoint());
        let variables = [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_LEASE", "2s")];
        let replicas = Arc::new([Replica::start(&url, &variables).await, Replica::start(&url, &variables).await]);
        Self { replicas, fake, postgres }
    }

    /// Both replicas are ready, and both loops hear and look again, within the time that is promised.
    async fn back(&self) -> Client {
        let start = Instant::now();
        for replica in self.replicas.iter() {
            eventually("it is ready again", BACK.saturating_sub(start.elapsed()), async || {
                matches!(replica.try_http("GET", "/readyz", &[], "").await, Ok(answer) if answer.status == 200).then_some(())
            })
            .await;
        }
        self.postgres.client().await
    }

    /// Every wish, at every replica, is refused in time, with a time to come again.
    async fn every_wish_is_refused(&self, agent: Uuid) {
        let delete = format!("/agents/{agent}");
        for replica in self.replicas.iter() {
            for (method, path, body) in [("POST", "/agents", POST), ("DELETE", delete.as_str(), "")] {
                let start = Instant::now();
                let answer = replica.http(method, path, body).await;
                refused(&answer, start.elapsed());
            }
        }
    }

    /// Posts at both replicas until it is asked to stop.
    fn submits(&self) -> Submitting {
        let (enough, told) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let posting = std::array::from_fn(|which| {
            let (replicas, enough, told) = (Arc::clone(&self.replicas), Arc::clone(&enough), Arc::clone(&told));
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                while !enough.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    let answer = replicas[which].http("POST", "/agents", POST).await;
                    if answer.status == 201 {
                        acknowledged.push(Uuid::parse_str(answer.json()["id"].as_str().unwrap()).unwrap());
                        told.fetch_add(1, Ordering::Relaxed);
                    } else {
                        refused(&answer, start.elapsed());
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                acknowledged
            })
        });
        Submitting { enough, told, posting }
    }

    /// Each of these ran once and was removed, and nothing is held for anybody.
    async fn nothing_is_left(&self, client: &Client, ids: &[Uuid]) {
        for id in ids {
            assert_eq!(self.fake.runs(&format!("sundown-{id}")), 1, "agent {id} did not run exactly once");
        }
        assert_eq!(self.fake.containers(), []);
        nothing_is_held(client).await;
    }
}

/// Succeeds at once.
const POST: &str = r#"{"image":"busybox","command":["true"]}"#;

fn refused(answer: &Answer, took: Duration) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.head.to_lowercase().contains("retry-after: "), "{answer:?}");
    assert!(took < PROMISED, "it took {took:?}: {answer:?}");
}

struct Submitting {
    enough: Arc<AtomicBool>,
    /// How many were acknowledged so far.
    told: Arc<AtomicUsize>,
    posting: [JoinHandle<Vec<Uuid>>; 2],
}

impl Submitting {
    /// What was acknowledged.
    async fn acknowledged(self) -> Vec<Uuid> {
        self.enough.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for posting in self.posting {
            all.extend(posting.await.unwrap());
        }
        all
    }
}

/// Agents of every kind run, clients submit, and then `fault` does what it does: nothing that was acknowledged is lost, each ends once.
async fn survives(world: &World, fault: impl AsyncFnOnce(&World)) {
    let client = world.postgres.client().await;
    let due = submit_many(&client, 3, "busybox", "sleep inf", ", ttl => '10min', grace => '1s'").await;
    let exits = submit(&client, "busybox", "sleep 3; exit 4", ", ttl => '10min'").await;
    let stays = submit(&client, "busybox", "sleep inf", ", ttl => '10min'").await;
    let all = [due.as_slice(), &[exits, stays]].concat();
    until_all(&client, &all, "running").await;
    due_together(&client, &due, 1.5).await;
    let submitting = world.submits();
    until("some are acknowledged", async || submitting.told.load(Ordering::Relaxed) >= 2).await;
    fault(world).await;
    let client = world.back().await;
    let acknowledged = submitting.acknowledged().await;
    each_expired_once(&client, &due).await;
    assert_eq!(outcome(&client, exits).await, end("failed", "exited", Some(4)));
    for id in &acknowledged {
        assert_eq!(outcome(&client, *id).await, end("succeeded", "exited", Some(0)), "an acknowledged agent was lost");
    }
    assert_eq!(state(&client, stays).await, "running", "it was not its time");
    assert_eq!(world.fake.calls(Call::Kill, &format!("sundown-{stays}")), 0);
    client.execute("select sundown.terminate($1)", &[&stays]).await.unwrap();
    assert_eq!(outcome(&client, stays).await, end("expired", "terminated", Some(143)));
    // What was refused may have been accepted all the same: the client was told to try again. It ends like the others.
    until("the rest has ended", async || {
        client.query_one("select count(*) from sundown.agent_live", &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
    world.nothing_is_left(&client, &[all, acknowledged].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_postgres_loses_nothing() {
    let world = World::new().await;
    for mode in ["fast", "immediate"] {
        survives(&world, async |world| world.postgres.ctl(&["restart", "-m", mode]).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_stopped_across_deadlines_nothing_is_promised_and_nothing_is_lost() {
    let world = World::new().await;
    survives(&world, async |world| {
        world.postgres.ctl(&["stop", "-m", "fast"]).await;
        away_for_eight_seconds(world).await;
        world.postgres.start_again().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_silent_across_deadlines_nothing_is_promised_and_nothing_is_lost() {
    let world = World::new().await;
    survives(&world, async |world| {
        world.postgres.fall_silent();
        away_for_eight_seconds(world).await;
        world.postgres.go_on();
    })
    .await;
}

/// All the while every wish is refused, and nobody is killed for lack of news.
async fn away_for_eight_seconds(world: &World) {
    let (start, killed) = (Instant::now(), world.fake.total(Call::Kill));
    while start.elapsed() < Duration::from_secs(8) {
        world.every_wish_is_refused(Uuid::new_v4()).await;
    }
    assert_eq!(world.fake.total(Call::Kill), killed, "somebody was killed while nothing could be decided");
}

const OTHERS: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'";

#[tokio::test(flavor = "multi_thread")]
async fn with_every_connection_cut_again_and_again_nothing_is_lost() {
    let world = World::new().await;
    survives(&world, async |world| {
        let client = world.postgres.client().await;
        let (start, mut cut) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(5) {
            cut += client.query_one(OTHERS, &[]).await.unwrap().get::<_, i64>(0);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(cut > 20, "too few connections were cut to prove anything: {cut}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_its_listening_connection_broke_a_replica_looks_for_what_it_did_not_hear() {
    let (postgres, fake) = (Postgres::start().await, FakeDocker::start().await);
    let (client, endpoint) = (postgres.client().await, fake.endpoint());
    let replica = Replica::start(&postgres.url(), &[("SUNDOWN_DOCKER", &endpoint), ("SUNDOWN_POLL", "1h")]).await;
    until("it hears", async || replica.log().contains("notifications arrive")).await;
    for _ in 0..3 {
        // Heard: the poll is an hour away.
        let heard = submit(&client, "busybox", "exit 0", "").await;
        assert_eq!(outcome(&client, heard).await, end("succeeded", "exited", Some(0)));
        let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity where query like 'listen sundown_wake%' and pid <> pg_backend_pid()";
        assert_eq!(client.query_one(cut, &[]).await.unwrap().get::<_, i64>(0), 1);
        // Nobody is told, now or later.
        let unheard = submit(&client, "busybox", "exit 0", ", notify => 'never'").await;
        assert_eq!(outcome(&client, unheard).await, end("succeeded", "exited", Some(0)));
        let listens = "select count(*) from pg_stat_activity where query like 'listen sundown_wake%' and pid <> pg_backend_pid()";
        until("it hears again", async || client.query_one(listens, &[]).await.unwrap().get::<_, i64>(0) == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_turned_read_only_makes_nobody_act_and_is_served_again_when_it_writes() {
    let world = World::new().await;
    survives(&world, async |world| {
        let admin = world.postgres.client().await;
        admin.batch_execute("alter system set default_transaction_read_only = on").await.unwrap();
        admin.batch_execute("select pg_reload_conf()").await.unwrap();
        for replica in world.replicas.iter() {
            until("it refuses", async || replica.http("POST", "/agents", POST).await.status == 503).await;
        }
        let killed = world.fake.total(Call::Kill);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(4) {
            world.every_wish_is_refused(Uuid::new_v4()).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(world.fake.total(Call::Kill), killed, "somebody was killed without a decision");
        admin.batch_execute("set default_transaction_read_only = off").await.unwrap();
        admin.batch_execute("alter system reset default_transaction_read_only").await.unwrap();
        admin.batch_execute("select pg_reload_conf()").await.unwrap();
    })
    .await;
}
