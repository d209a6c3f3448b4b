//! Deadlines are met at their instant by whoever knows them, and a quarter of a second later by everybody else: not by polling, for here
//! nobody polls.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::fake_docker::FakeDocker;
use crate::harness::Db;
use crate::harness::lives::{outcome, submit, until_all};
use crate::harness::replica::Replica;

/// Far below a poll, and far above what two busy cores need.
const ON_TIME: f64 = 1.5;

/// A database, a daemon, and two replicas of which the first keeps the host.
async fn world(fake: &FakeDocker) -> (Db, Client, [Replica; 2]) {
    let db = Db::new().await;
    let (client, endpoint) = (db.client().await, fake.endpoint());
    let variables = [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_POLL", "1h")];
    let mut replicas = [Replica::start(&db.url(), &variables).await, Replica::start(&db.url(), &variables).await];
    let keeper: i32 = client.query_one("select replica from sundown.keeper", &[]).await.unwrap().get(0);
    if !replicas[0].log().contains(&format!("\"replica\":{keeper},")) {
        replicas.swap(0, 1);
    }
    assert!(replicas[0].log().contains(&format!("\"replica\":{keeper},")), "{}", replicas[0].log());
    (db, client, replicas)
}

/// By how many seconds its end was decided after its deadline.
async fn late(client: &Client, id: Uuid) -> f64 {
    outcome(client, id).await;
    let ask = "select extract(epoch from decided_at - expires_at)::float8 from sundown.agent_outcome where id = $1";
    client.query_one(ask, &[&id]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_met_at_its_instant_without_polling() {
    let fake = FakeDocker::start().await;
    let (_db, client, _replicas) = world(&fake).await;
    let id = submit(&client, "busybox", "sleep inf", ", ttl => '2s', grace => '0s'").await;
    let late = late(&client, id).await;
    assert!((0.0..ON_TIME).contains(&late), "{late} s late");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_keeper_stopped_the_others_meet_its_deadlines() {
    let fake = FakeDocker::start().await;
    let (_db, client, replicas) = world(&fake).await;
    let id = submit(&client, "busybox", "sleep inf", ", grace => '0s'").await;
    until_all(&client, &[id], "running").await;
    client.execute("select sundown.extend($1, '3 s')", &[&id]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    replicas[0].signal(Signal::SIGSTOP);
    // At once if the other one started the agent and so knows its instant by itself; a quarter of a second later if not.
    let late = late(&client, id).await;
    assert!((0.0..ON_TIME).contains(&late), "{late} s late");
}
