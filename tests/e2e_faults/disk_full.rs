//! Postgres without space on its disk: first its tables cannot grow, then not even its log, and it breaks down. What cannot be kept is not
//! promised, and when there is space again nothing is lost.

use std::time::{Duration, Instant};

use rand::RngExt;
use serde_json::json;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::fake_docker::{Call, FakeDocker};
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::lives::{due_together, each_expired_once, end, nothing_is_held, outcome, state, submit, submit_many, until_all};
use crate::harness::replica::{Answer, Replica};
use crate::harness::{eventually, until};

/// Every wish is answered within two seconds, and one more for a machine on which everything else is tested at the same time.
const PROMISED: Duration = Duration::from_secs(2 + 1);
/// Of the disk, in MiB: a new cluster takes up half of it.
const DISK: u32 = 144;
const FULL: &str = "No space left on device";
const PANIC: &str = "PANIC";

/// A submission that needs new pages, as what it carries cannot be compressed.
fn large() -> String {
    let mut random = rand::rng();
    let value: String = (0..30_000).map(|_| char::from(random.random_range(b'!'..=b'~'))).collect();
    json!({"image": "busybox", "command": ["sh", "-c", "exit 3"], "env": {"LARGE": value}}).to_string()
}

/// A private Postgres on a small disk, a daemon and two replicas between them.
struct World {
    replicas: [Replica; 2],
    fake: FakeDocker,
    postgres: Cluster,
}

impl World {
    async fn new(initdb: &[&str], settings: &str) -> Self {
        let plan = Plan { disk: Some(DISK), initdb, settings, ..Plan::default() };
        let (postgres, fake) = (Cluster::start(plan).await, FakeDocker::start().await);
        let (url, endpoint) = (postgres.url(), fake.endpoint());
        let variables = [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_LEASE", "2s")];
        let replicas = [Replica::start(&url, &variables).await, Replica::start(&url, &variables).await];
        Self { replicas, fake, postgres }
    }

    /// An answer in time: yes or later.
    async fn asked(&self, which: usize, method: &str, path: &str, body: &str) -> Answer {
        let start = Instant::now();
        let answer = self.replicas[which].http(method, path, body).await;
        assert!(start.elapsed() < PROMISED, "it took {:?}: {answer:?}", start.elapsed());
        assert!([200, 201, 202, 503].contains(&answer.status), "{answer:?}");
        answer
    }

    /// Submits at both replicas until nothing has been taken for a while and the server has said that; answers what was acknowledged.
    async fn submits_until_it_says(&self, word: &str) -> Vec<Uuid> {
        let (mut acknowledged, mut refused, start) = (Vec::new(), 0, Instant::now());
        while refused < 20 || !self.postgres.log().contains(word) {
            assert!(start.elapsed() < Duration::from_secs(60), "there is space still: {} were taken", acknowledged.len());
            let answer = self.asked(refused % 2, "POST", "/agents", &large()).await;
            if answer.status == 503 {
                refused += 1;
            } else {
                acknowledged.push(answer.json()["id"].as_str().unwrap().parse().unwrap());
            }
        }
        acknowledged
    }

    async fn ended_by_request(&self, client: &Client, id: Uuid) {
        until("it is asked for", async || self.asked(0, "DELETE", &format!("/agents/{id}"), "").await.status != 503).await;
        assert_eq!(outcome(client, id).await, end("expired", "terminated", Some(143)));
    }
}

/// Agents of every kind run; then the disk is full, and the server says `word`, once `work` of somebody else's has brought it so far.
async fn survives(world: &World, word: &str, work: impl AsyncFnOnce(&Client)) {
    let client = world.postgres.ours().await;
    let due = submit_many(&client, 3, "busybox", "sleep inf", ", ttl => '10min', grace => '1s'").await;
    let asked = submit_many(&client, 4, "busybox", "sleep inf", ", ttl => '10min', grace => '1s'").await;
    let exits = submit(&client, "busybox", "sleep 3; exit 4", ", ttl => '10min'").await;
    let stays = submit(&client, "busybox", "sleep inf", ", ttl => '10min'").await;
    let all = [due.as_slice(), &asked, &[exits, stays]].concat();
    until_all(&client, &all, "running").await;
    // From here on its log has a whole segment, whatever became of the last one.
    client.batch_execute("select pg_switch_wal()").await.unwrap();
    due_together(&client, &due, 2.0).await;
    let began = Instant::now();
    // Some are taken, in pages that nobody has after them.
    world.postgres.disk().fill(2 << 20);
    let mut acknowledged = Vec::new();
    for _ in 0..10 {
        let answer = world.asked(1, "POST", "/agents", &large()).await;
        if answer.status == 201 {
            acknowledged.push(answer.json()["id"].as_str().unwrap().parse().unwrap());
        }
    }
    assert!(!acknowledged.is_empty(), "nothing was taken: that proves nothing");
    let ((), more) = tokio::join!(work(&client), world.submits_until_it_says(word));
    acknowledged.extend(more);
    let mut accepted = Vec::new();
    for (n, id) in asked.iter().enumerate() {
        if world.asked(n % 2, "DELETE", &format!("/agents/{id}"), "").await.status == 202 {
            accepted.push(*id);
        }
    }
    acknowledged.extend(world.submits_until_it_says(word).await);
    eventually("the deadlines have passed", PROMISED, async || (began.elapsed() > Duration::from_secs(3)).then_some(())).await;

    world.postgres.disk().relieve();
    // A server that broke down and could not even recover is started again by whoever looks after it.
    let client = eventually("Postgres answers", Duration::from_secs(30), async || {
        if world.postgres.postmaster().is_none() {
            world.postgres.up().await;
        }
        let client = world.postgres.try_client("sundown").await?;
        client.batch_execute("select 1").await.ok()?;
        Some(client)
    })
    .await;
    for replica in &world.replicas {
        until("it is ready", async || replica.http("GET", "/readyz", "").await.status == 200).await;
    }
    let again = world.replicas[0].http("POST", "/agents", &large()).await;
    assert_eq!(again.status, 201, "{again:?}");
    for id in &acknowledged {
        assert_eq!(outcome(&client, *id).await, end("failed", "exited", Some(3)), "an acknowledged agent was lost");
    }
    each_expired_once(&client, &due).await;
    assert_eq!(outcome(&client, exits).await, end("failed", "exited", Some(4)));
    for id in accepted {
        assert_eq!(outcome(&client, id).await, end("expired", "terminated", Some(143)), "an acknowledged end was lost");
    }
    for id in asked {
        world.ended_by_request(&client, id).await;
    }
    assert_eq!((state(&client, stays).await.as_str(), world.fake.calls(Call::Kill, &format!("sundown-{stays}"))), ("running", 0));
    world.ended_by_request(&client, stays).await;
    // What was refused may have been accepted all the same: the client was told to try again. It ends like the others.
    until("the rest has ended", async || {
        client.query_one("select count(*) from sundown.agent_live", &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
    for row in client.query("select id from sundown.agent", &[]).await.unwrap() {
        let id: Uuid = row.get(0);
        assert_eq!(world.fake.runs(&format!("sundown-{id}")), 1, "agent {id} did not run exactly once");
    }
    assert_eq!(world.fake.containers(), []);
    nothing_is_held(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_space_for_tables_nothing_is_promised_and_nothing_is_lost() {
    let world = World::new(&[], "").await;
    survives(&world, FULL, async |_| {}).await;
    assert!(!world.postgres.log().contains(PANIC), "it broke down: that is another test's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_breaks_down_for_want_of_space_and_is_started_again_has_lost_nothing() {
    let world = World::new(&["--wal-segsize=1"], "min_wal_size = '2MB'\nmax_wal_size = '32MB'\n").await;
    let fill_its_log = async |client: &Client| {
        let message = "select pg_logical_emit_message(false, 'a test', repeat('x', 10000))";
        while client.batch_execute(message).await.is_ok() {}
    };
    survives(&world, PANIC, fill_its_log).await;
}
