//! Two releases side by side. The older one is the built binary; of the newer one there is what it leaves behind: a database that it has
//! migrated, under the hands of the older one.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::fake_docker::{Call, FakeDocker};
use crate::harness::clients::{Submitting, posted};
use crate::harness::lives::{due_together, each_expired_once, end, nothing_is_held, outcome, state, submit, submit_many, until_all};
use crate::harness::replica::Replica;
use crate::harness::{Db, eventually, until};

const POST: &str = r#"{"image":"busybox","command":["sh","-c","sleep 0.5; exit 3"],"ttl":"10m"}"#;

/// As a newer release would do it, in one transaction: columns that have defaults, one more in the view, functions that do more, and a
/// wake-up for a reason that the older release has not heard of.
const NEWER: &str = "
    set local lock_timeout = '5s';
    alter table sundown.agent_live add column priority integer not null default 7, add column zone text;
    alter table sundown.agent add column priority integer not null default 7;
    alter table sundown.agent_outcome add column priority integer not null default 7;
    do $$
    declare
        function text;
    begin
        execute format('create or replace view sundown.agents as select v.*, 7 as priority from (%s) v', rtrim(pg_get_viewdef('sundown.agents'::regclass), ';'));
        for function in select pg_get_functiondef(p.oid) from pg_proc p where p.pronamespace = 'sundown'::regnamespace loop
            execute replace(function, 'pg_notify(''sundown_wake'', reason)', 'pg_notify(''sundown_wake'', ''newer: '' || reason)');
        end loop;
    end $$;
    insert into sundown.migration (version, name, applied_on, checksum) values (999, 'of_a_newer_release', '2026-01-01T00:00:00Z', '1');
    update sundown.installation set release = '99.0.0', fingerprint = 'of a newer release'";

/// When each function was last changed, and what the database says of itself.
async fn standing(client: &Client) -> Vec<String> {
    let ask = "select p.oid::regprocedure || ' ' || p.xmin from pg_proc p where pronamespace = 'sundown'::regnamespace
               union all select i.release || ' ' || i.fingerprint from sundown.installation i
               union all select m.version || ' ' || m.name from sundown.migration m order by 1";
    client.query(ask, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_go_on_and_start_again_on_a_database_that_a_newer_release_has_migrated_under_them() {
    let (db, fake) = (Db::new().await, FakeDocker::start().await);
    let (mut client, url, endpoint) = (db.client().await, db.url(), fake.endpoint());
    let variables = [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_LEASE", "2s")];
    let mut leaves = Replica::start(&url, &variables).await;
    let stays_up = Arc::new(Replica::start(&url, &variables).await);
    let due = submit_many(&client, 3, "busybox", "ignore-term; sleep inf", ", ttl => '10min', grace => '1s'").await;
    let stops = submit(&client, "busybox", "ignore-term; sleep inf", ", ttl => '10min', grace => '4s'").await;
    let exits = submit(&client, "busybox", "sleep 4; exit 4", ", ttl => '10min'").await;
    let stays = submit(&client, "busybox", "sleep inf", ", ttl => '10min', grace => '1s'").await;
    let waits = submit(&client, "busybox", "exit 5", ", run_at => now() + interval '4 s'").await;
    until_all(&client, &[due.as_slice(), &[stops, exits, stays]].concat(), "running").await;
    due_together(&client, &due, 4.0).await;
    client.execute("select sundown.terminate($1)", &[&stops]).await.unwrap();
    let submitting = Submitting::at(std::slice::from_ref(&stays_up), POST);
    until("there is much under way", async || fake.lives().len() > 15).await;

    eventually("it is migrated", Duration::from_secs(20), async || {
        // It needs each table to itself for a moment; meeting others, it is one of the two that roll back.
        let change = client.transaction().await.unwrap();
        change.batch_execute(NEWER).await.ok()?;
        change.commit().await.ok()
    })
    .await;
    let newer = standing(&client).await;
    let lives = fake.lives().len();
    until("agents start on it", async || fake.lives().len() > lives + 10).await;
    leaves.signal(Signal::SIGTERM);
    assert!(leaves.ended().await.success());
    let next = Replica::start(&url, &variables).await;
    assert_eq!(standing(&client).await, newer, "it was left as it was");
    let mut ids = vec![posted(&next, "after", POST).await, submit(&client, "busybox", "sleep 0.5; exit 3", "").await];
    ids.extend(submitting.acknowledged().await);

    for id in &ids {
        assert_eq!(outcome(&client, *id).await, end("failed", "exited", Some(3)));
    }
    each_expired_once(&client, &due).await;
    assert_eq!(outcome(&client, stops).await, end("expired", "terminated", Some(137)));
    assert_eq!(outcome(&client, exits).await, end("failed", "exited", Some(4)));
    assert_eq!(outcome(&client, waits).await, end("failed", "exited", Some(5)));
    assert_eq!((state(&client, stays).await.as_str(), fake.calls(Call::Kill, &format!("sundown-{stays}"))), ("running", 0));
    let answer = stays_up.http("DELETE", &format!("/agents/{stays}"), "").await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(outcome(&client, stays).await, end("expired", "terminated", Some(143)));
    until("the rest has ended", async || {
        client.query_one("select count(*) from sundown.agent_live", &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
    let odd = "select count(*) from sundown.agents where state = 'failed' and reason <> 'exited' or priority <> 7";
    assert_eq!(client.query_one(odd, &[]).await.unwrap().get::<_, i64>(0), 0, "somebody failed of what the older release does not know");
    for row in client.query("select id from sundown.agent", &[]).await.unwrap() {
        let id: Uuid = row.get(0);
        assert_eq!(fake.runs(&format!("sundown-{id}")), 1, "agent {id} did not run exactly once");
    }
    assert_eq!(fake.containers(), []);
    nothing_is_held(&client).await;
    // Nothing of it went wrong on the way, not even once.
    for replica in [&stays_up, &next] {
        assert!(!replica.log().contains("refused a statement"), "{}", replica.log());
    }
}
