//! PgBouncer in transaction mode between a replica and its database.

use std::net::Ipv4Addr;

use crate::fake_docker::FakeDocker;
use crate::harness::lives::{each_expired_once, end, nothing_is_held, outcome, submit, submit_many};
use crate::harness::pooler::Pooler;
use crate::harness::replica::Replica;
use crate::harness::{Db, until};

fn count(log: &str, words: &str) -> usize {
    log.lines().filter(|line| line.contains(words)).count()
}

const DEAF: &str = "notifications do not arrive";

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_transaction_pooler_it_says_so_once_and_polls_and_agents_live_their_lives() {
    let (db, fake) = (Db::new().await, FakeDocker::start().await);
    let pooler = Pooler::start(&db.config(), 3, Ipv4Addr::LOCALHOST.into()).await;
    let (url, endpoint) = (pooler.url(&db.config()), fake.endpoint());
    let variables = [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_POLL", "300ms"), ("SUNDOWN_LEASE", "2s")];
    let (one, two) = tokio::join!(Replica::start(&url, &variables), Replica::start(&url, &variables));
    let client = db.client().await;
    for replica in [&one, &two] {
        until("it has noticed", async || replica.log().contains(DEAF)).await;
    }
    let exits = submit_many(&client, 10, "busybox", "sleep 0.3; exit 7", ", ttl => '10min'").await;
    let expires = submit_many(&client, 10, "busybox", "ignore-term; sleep inf", ", ttl => '1s', grace => '1s'").await;
    let deleted = one.http("POST", "/agents", r#"{"image":"busybox","command":["sleep","inf"]}"#).await;
    assert_eq!(deleted.status, 201, "{deleted:?}");
    let id = deleted.json()["id"].as_str().unwrap().parse().unwrap();
    until("it runs", async || two.http("GET", &format!("/agents/{id}"), "").await.json()["state"] == "running").await;
    assert_eq!(two.http("DELETE", &format!("/agents/{id}"), "").await.status, 202);
    assert_eq!(outcome(&client, id).await, end("expired", "terminated", Some(143)));
    for id in exits {
        assert_eq!(outcome(&client, id).await, end("failed", "exited", Some(7)));
    }
    each_expired_once(&client, &expires).await;
    for replica in [&one, &two] {
        let log = replica.log();
        assert_eq!(count(&log, DEAF), 1, "{log}");
        assert_eq!(count(&log, "notifications arrive"), 0, "{log}");
        assert_eq!(count(&log, "prepared statement"), 0, "{log}");
        assert_eq!(count(&log, "\"ERROR\""), 0, "{log}");
    }
    assert_eq!(fake.containers(), []);
    nothing_is_held(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_direct_address_beside_the_pooler_notifications_arrive_and_migrations_go_that_way() {
    let (db, fake) = (Db::empty().await, FakeDocker::start().await);
    let pooler = Pooler::start(&db.config(), 3, Ipv4Addr::LOCALHOST.into()).await;
    let (url, direct, endpoint) = (pooler.url(&db.config()), db.url(), fake.endpoint());
    // What it hears is all that wakes it.
    let variables = [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_DIRECT_URL", direct.as_str()), ("SUNDOWN_POLL", "1h")];
    let replica = Replica::start(&url, &variables).await;
    until("it hears", async || replica.log().contains("notifications arrive")).await;
    let client = db.client().await;
    for _ in 0..3 {
        let id = submit(&client, "busybox", "exit 0", "").await;
        assert_eq!(outcome(&client, id).await, end("succeeded", "exited", Some(0)));
    }
    let log = replica.log();
    let migrations: i64 = client.query_one("select count(*) from sundown.migration", &[]).await.unwrap().get(0);
    assert_eq!((count(&log, "\"migrated\""), count(&log, DEAF)), (usize::try_from(migrations).unwrap(), 0), "{log}");
    // Nobody left a lock of the session in the pooler's connections, where it would stay.
    let locks = "select count(*) from pg_locks l join pg_database d on d.oid = l.database where l.locktype = 'advisory' and d.datname = current_database()";
    assert_eq!(client.query_one(locks, &[]).await.unwrap().get::<_, i64>(0), 0);
    nothing_is_held(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_together_behind_a_pooler_on_an_empty_database_all_come_up() {
    let (db, fake) = (Db::empty().await, FakeDocker::start().await);
    let pooler = Pooler::start(&db.config(), 4, Ipv4Addr::LOCALHOST.into()).await;
    let (url, endpoint) = (pooler.url(&db.config()), fake.endpoint());
    let variables = [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_POLL", "300ms")];
    let replicas = tokio::join!(Replica::start(&url, &variables), Replica::start(&url, &variables), Replica::start(&url, &variables));
    let client = db.client().await;
    let id = submit(&client, "busybox", "exit 0", "").await;
    assert_eq!(outcome(&client, id).await, end("succeeded", "exited", Some(0)));
    // And one that comes later finds no lock of somebody who is long gone.
    let _later = Replica::start(&url, &variables).await;
    drop(replicas);
}
