//! Every replica dead across deadlines, and a deadline that hundreds share.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::fake_docker::{Call, FakeDocker};
use crate::harness::lives::{due_together, each_expired_once, nothing_is_held, submit_many, until_all, until_overdue};
use crate::harness::replica::Replica;
use crate::harness::{Db, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn sixty_deadlines_that_passed_with_every_replica_dead_are_kept_by_the_next_one() {
    let (db, fake) = (Db::new().await, FakeDocker::start().await);
    let (client, endpoint) = (db.client().await, fake.endpoint());
    let variables = [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_CAPACITY", "60"), ("SUNDOWN_LEASE", "2s")];
    let mut replicas = [Replica::start(&db.url(), &variables).await, Replica::start(&db.url(), &variables).await];
    let running = submit_many(&client, 60, "busybox", "sleep inf", ", ttl => '10min'").await;
    until_all(&client, &running, "running").await;
    // There is no place for these: they wait, and their lives have not begun.
    let waiting = submit_many(&client, 5, "busybox", "sleep inf", ", ttl => '1s'").await;
    due_together(&client, &running, 2.0).await;
    for replica in &mut replicas {
        replica.signal(Signal::SIGKILL);
        replica.ended().await;
    }
    until_overdue(&client, &running).await;
    // So long ago that only a look below the low watermark of ten seconds finds them.
    eventually("they are overdue for long", Duration::from_secs(30), async || {
        let query = "select max(expires_at) < clock_timestamp() - interval '11 s' from sundown.agent_live where host <> 0";
        client.query_one(query, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    assert_eq!(fake.containers().iter().filter(|seen| seen.status == "running").count(), 60, "nobody was there to end them");
    let _next = Replica::start(&db.url(), &variables).await;
    each_expired_once(&client, &running).await;
    each_expired_once(&client, &waiting).await;
    for id in running.iter().chain(&waiting) {
        assert_eq!(fake.runs(&format!("sundown-{id}")), 1);
    }
    assert_eq!(fake.containers(), []);
    nothing_is_held(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_agents_that_are_due_at_once_all_end_and_each_is_decided_on_once() {
    let (db, fake) = (Db::new().await, FakeDocker::start().await);
    let (client, endpoint) = (db.client().await, fake.endpoint());
    let variables = [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_CAPACITY", "300")];
    let url = db.url();
    let _replicas = tokio::join!(Replica::start(&url, &variables), Replica::start(&url, &variables), Replica::start(&url, &variables));
    let mut ids = Vec::new();
    for row in client
        .query("select sundown.submit(image => 'busybox', command => array['sleep', 'inf'], ttl => '10min', grace => '0s') from generate_series(1, 300)", &[])
        .await
        .unwrap()
    {
        ids.push(row.get(0));
    }
    until_all(&client, &ids, "running").await;
    due_together(&client, &ids, 2.0).await;
    eventually("all have ended", Duration::from_secs(60), async || {
        (client.query_one("select count(*) from sundown.agent_outcome", &[]).await.unwrap().get::<_, i64>(0) == 300).then_some(())
    })
    .await;
    each_expired_once(&client, &ids).await;
    for id in &ids {
        let name = format!("sundown-{id}");
        assert_eq!(fake.runs(&name), 1);
        // With its lease over before its kill was answered, another replica repeats it: harmless, and rare enough to bound.
        assert!((1..=6).contains(&fake.calls(Call::Kill, &name)), "{:?}", fake.history(&name));
    }
    assert_eq!(fake.containers(), []);
    nothing_is_held(&client).await;
}
