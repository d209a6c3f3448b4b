//! Many replicas at once: no host carries more than it may, nothing is in two hands under one epoch, and an old hand changes nothing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use harness::{Db, START, STOP, claim, host, observe, place, run, submit};
use sundown::docker::Tail;
use sundown::sql::Sql;
use sundown::sql::work::{Facts, Placed};
use tokio::sync::Barrier;
use tokio_postgres::Client;
use uuid::Uuid;

fn exited() -> Facts {
    Facts { state: "succeeded", reason: Some("exited"), exit_code: Some(0), oom_killed: Some(false), error: None, dead: None, tail: None }
}

async fn submit_many(client: &Client, count: i32) {
    client
        .execute("select count(sundown.submit(image => 'busybox', notify => 'never')) from generate_series(1, $1)", &[&count])
        .await
        .unwrap();
}

/// Capacity, what the slot says, and what is there, in one snapshot.
async fn slot(client: &Client, host: i32) -> (i32, i32, i64) {
    let ask = "select capacity, used, (select count(*) from sundown.agent_live where host = $1) from sundown.host_slot where host = $1";
    let row = client.query_one(ask, &[&host]).await.unwrap();
    (row.get(0), row.get(1), row.get(2))
}

/// Ends a placed agent as its host's replica does. False: somebody else did.
async fn end(sql: &Sql, id: Uuid, epoch: i32) -> bool {
    if !sql.record_container(id, epoch, "c").await.unwrap() || sql.running(id, epoch, None).await.unwrap().is_none() {
        return false;
    }
    let Some(epoch) = observe(sql, id, epoch, &exited(), None).await else { return false };
    sql.finish(id, epoch, None).await.unwrap().is_some()
}

#[tokio::test]
async fn no_host_ever_carries_more_than_it_may() {
    const AGENTS: i32 = 150;
    let db = Db::new().await;
    let (sql, client) = (db.sql(12).await, db.client().await);
    let host = host(&sql, 7).await;
    submit_many(&client, AGENTS).await;
    let placers: Vec<_> = (0..12)
        .map(|replica| {
            let sql = sql.clone();
            tokio::spawn(async move {
                let (mut held, mut ended, mut turn) = (Vec::new(), 0, replica);
                loop {
                    match sql.place(host, replica, 1 + turn % 4, START, None).await.unwrap() {
                        Placed::Some(placed) if placed.is_empty() && held.is_empty() => return ended,
                        Placed::Some(placed) => held.extend(placed.into_iter().map(|(id, epoch, _)| (id, epoch))),
                        Placed::Full | Placed::Locked => tokio::task::yield_now().await,
                    }
                    // Ends some of what it has, not always the oldest and not always all.
                    turn += 1;
                    while held.len() > usize::try_from(turn % 3).unwrap() {
                        let (id, epoch) = held.swap_remove(usize::try_from(turn).unwrap() % held.len());
                        assert!(end(&sql, id, epoch).await, "nobody else has its lease");
                        ended += 1;
                    }
                }
            })
        })
        .collect();
    let mut most = 0;
    while placers.iter().any(|placer| !placer.is_finished()) {
        let (capacity, used, there) = slot(&client, host).await;
        assert_eq!(i64::from(used), there, "what the slot says is what is there");
        assert!(there <= i64::from(capacity), "{there} agents on a host for {capacity}");
        most = most.max(there);
    }
    let mut ended = 0;
    for placer in placers {
        ended += placer.await.unwrap();
    }
    assert_eq!(ended, AGENTS);
    assert_eq!(slot(&client, host).await, (7, 0, 0), "no slot leaked");
    assert!(most >= 2, "they did run side by side");
}

#[tokio::test]
async fn a_smaller_capacity_is_kept_by_everybody_at_once() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(2).await, db.client().await);
    let uuid = Uuid::new_v4();
    let host = sql.register_host(uuid, "here", "unix:///nowhere", Some(3), None).await.unwrap();
    submit_many(&client, 5).await;
    assert!(matches!(sql.place(host, 1, 2, START, None).await.unwrap(), Placed::Some(placed) if placed.len() == 2));
    assert_eq!(sql.register_host(uuid, "here", "unix:///nowhere", Some(2), None).await.unwrap(), host, "the same host");
    assert!(matches!(sql.place(host, 1, 2, START, None).await.unwrap(), Placed::Full));
    assert_eq!(sql.register_host(uuid, "here", "unix:///nowhere", Some(1), None).await.unwrap(), host);
    assert!(matches!(sql.place(host, 1, 2, START, None).await.unwrap(), Placed::Full), "more than it may: those live on");
    assert_eq!(slot(&client, host).await, (1, 2, 2));
}

#[tokio::test]
async fn a_host_keeps_its_capacity_when_whoever_connects_names_none() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(2).await, db.client().await);
    let uuid = Uuid::new_v4();
    let host = sql.register_host(uuid, "here", "unix:///nowhere", None, None).await.unwrap();
    assert_eq!(slot(&client, host).await.0, 100, "a new host");
    for (named, kept) in [(Some(3), 3), (None, 3), (Some(0), 0), (None, 0)] {
        assert_eq!(sql.register_host(uuid, "here", "unix:///nowhere", named, None).await.unwrap(), host);
        assert_eq!(slot(&client, host).await.0, kept, "{named:?}");
    }
}

#[tokio::test]
async fn a_claim_says_open_full_or_locked() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(2).await, db.client().await);
    let host = host(&sql, 1).await;
    assert!(matches!(sql.place(host, 1, 16, START, None).await.unwrap(), Placed::Some(none) if none.is_empty()), "room, and nobody waits");
    submit_many(&client, 2).await;
    let mut other = db.client().await;
    let holding = other.transaction().await.unwrap();
    holding.execute("select from sundown.host_slot where host = $1 for update", &[&host]).await.unwrap();
    assert!(matches!(sql.place(host, 1, 16, START, None).await.unwrap(), Placed::Locked), "somebody places there right now");
    holding.rollback().await.unwrap();
    assert!(matches!(sql.place(host, 1, 16, START, None).await.unwrap(), Placed::Some(one) if one.len() == 1));
    assert!(matches!(sql.place(host, 1, 16, START, None).await.unwrap(), Placed::Full));
    assert!(sql.cordon(host, true).await.unwrap());
    assert_eq!(sql.register_host(Uuid::new_v4(), "there", "unix:///nowhere", Some(1), None).await.unwrap(), host + 1);
    assert!(matches!(sql.place(host, 1, 16, START, None).await.unwrap(), Placed::Full), "cordoned");
    assert!(sql.cordon(host + 1, true).await.unwrap());
    assert!(matches!(sql.place(host + 1, 1, 16, START, None).await.unwrap(), Placed::Full), "cordoned, though empty");
    assert!(sql.cordon(host + 1, false).await.unwrap());
    assert!(matches!(sql.place(host + 1, 1, 16, START, None).await.unwrap(), Placed::Some(one) if one.len() == 1));
    // Trying again at once would be for ever.
    assert!(matches!(sql.place(4711, 1, 16, START, None).await.unwrap(), Placed::Full), "a host that was forgotten has no room");
}

#[tokio::test]
async fn agents_are_placed_in_order_of_submission() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(2).await, db.client().await);
    let host = host(&sql, 100).await;
    let mut submitted = Vec::new();
    for _ in 0..40 {
        submitted.push(submit(&client, "").await);
    }
    let mut placed = Vec::new();
    for room in [1, 3, 16, 16, 16] {
        let Placed::Some(some) = sql.place(host, 1, room, START, None).await.unwrap() else { panic!("room") };
        placed.extend(some.into_iter().map(|(id, _, _)| id));
    }
    assert_eq!(placed, submitted);
    let mut sorted = submitted.clone();
    sorted.sort();
    assert_eq!(sorted, submitted, "ids sort by submission");
}

/// Claims until nothing is due any more, by twelve at once; every claim that was handed out.
async fn claimed_by_twelve(sql: &Sql, hosts: &[i32], now: Option<SystemTime>) -> Vec<(Uuid, i32, i32)> {
    let start = Arc::new(Barrier::new(12));
    let claimers: Vec<_> = (0..12)
        .map(|replica| {
            let (sql, start) = (sql.clone(), Arc::clone(&start));
            let hosts: Vec<(i32, f64)> = hosts.iter().map(|host| (*host, 0.0)).collect();
            tokio::spawn(async move {
                start.wait().await;
                let mut claimed = Vec::new();
                loop {
                    let rows = sql.claim_due(&hosts, replica, None, START, STOP, now).await.unwrap();
                    let mut each = BTreeMap::new();
                    for row in &rows {
                        *each.entry(row.host).or_insert(0) += 1;
                    }
                    assert!(each.values().all(|count| *count <= 100), "at most a hundred of each host: {each:?}");
                    // Nothing for us may mean that the others hold it; the rest is due again only after their leases.
                    if rows.is_empty() {
                        return claimed;
                    }
                    claimed.extend(rows.into_iter().map(|row| (row.id, row.epoch, row.host)));
                }
            })
        })
        .collect();
    let mut all = Vec::new();
    for claimer in claimers {
        all.extend(claimer.await.unwrap());
    }
    all
}

#[tokio::test]
async fn two_replicas_never_run_the_same_agent() {
    let db = Db::new().await;
    let (sql, client, start) = (db.sql(12).await, db.client().await, db.now().await);
    let hosts = [host(&sql, 1000).await, host(&sql, 1000).await];
    submit_many(&client, 320).await;
    // Placed by twelve, on two hosts.
    let placers: Vec<_> = (0..12)
        .map(|replica| {
            let sql = sql.clone();
            let host = hosts[usize::try_from(replica).unwrap() % 2];
            tokio::spawn(async move {
                let (mut handed_out, mut empty) = (Vec::new(), 0);
                while empty < 5 {
                    match sql.place(host, replica, 16, START, None).await.unwrap() {
                        Placed::Some(placed) if placed.is_empty() => empty += 1,
                        Placed::Some(placed) => handed_out.extend(placed.into_iter().map(|(id, epoch, _)| (id, epoch))),
                        Placed::Full | Placed::Locked => tokio::task::yield_now().await,
                    }
                }
                handed_out
            })
        })
        .collect();
    let mut handed_out = Vec::new();
    for placer in placers {
        handed_out.extend(placer.await.unwrap());
    }
    assert_eq!(handed_out.len(), 320);
    // All of those replicas die. Their leases end, and everybody else comes; and once more.
    for round in 1..=3_u32 {
        let now = start + Duration::from_secs(1000) * round;
        let claimed = claimed_by_twelve(&sql, &hosts, Some(now)).await;
        assert_eq!(claimed.len(), 320, "each is handed out once in round {round}");
        handed_out.extend(claimed.into_iter().map(|(id, epoch, _)| (id, epoch)));
    }
    let distinct: BTreeSet<_> = handed_out.iter().collect();
    assert_eq!(distinct.len(), handed_out.len(), "no (id, epoch) was in two hands");
    let agents: BTreeSet<_> = handed_out.iter().map(|(id, _)| id).collect();
    assert_eq!(agents.len(), 320);
}

#[tokio::test]
async fn a_claim_takes_at_most_a_hundred_of_each_host_and_the_longest_due_first() {
    let db = Db::new().await;
    let (sql, client, start) = (db.sql(2).await, db.client().await, db.now().await);
    let hosts = [host(&sql, 1000).await, host(&sql, 1000).await];
    submit_many(&client, 240).await;
    for turn in 0..15 {
        assert!(matches!(sql.place(hosts[turn % 2], 1, 16, START, None).await.unwrap(), Placed::Some(placed) if placed.len() == 16));
    }
    let due: Vec<Uuid> = client
        .query("select id from sundown.agent_live where host = $1 order by due_at, id limit 100", &[&hosts[0]])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    let later = start + Duration::from_secs(1000);
    let rows = sql.claim_due(&[(hosts[0], 0.0), (hosts[1], 0.0)], 1, None, START, STOP, Some(later)).await.unwrap();
    let of = |host: i32| rows.iter().filter(|row| row.host == host).map(|row| row.id).collect::<BTreeSet<_>>();
    assert_eq!((of(hosts[0]).len(), of(hosts[1]).len()), (100, 100));
    assert_eq!(of(hosts[0]), due.into_iter().collect());
    assert_eq!(sql.claim_due(&[(hosts[0], 0.0), (hosts[1], 0.0)], 1, None, START, STOP, Some(later)).await.unwrap().len(), 40);
}

#[tokio::test]
async fn one_that_is_held_delays_nobody_else() {
    let db = Db::new().await;
    let (sql, client, start) = (db.sql(2).await, db.client().await, db.now().await);
    let host = host(&sql, 10).await;
    submit_many(&client, 3).await;
    let (held, _) = run(&sql, host, None).await;
    run(&sql, host, None).await;
    run(&sql, host, None).await;
    let mut other = db.client().await;
    let holding = other.transaction().await.unwrap();
    holding.execute("select from sundown.agent_live where id = $1 for update", &[&held]).await.unwrap();
    let later = start + Duration::from_secs(7200);
    assert_eq!(claim(&sql, host, Some(later)).await.len(), 2);
    holding.rollback().await.unwrap();
    assert_eq!(claim(&sql, host, Some(later)).await.iter().map(|row| row.id).collect::<Vec<_>>(), [held]);
}

/// The whole live row as text: whatever changes, changes this.
async fn row(client: &Client, id: Uuid) -> String {
    client.query_one("select l::text from sundown.agent_live l where id = $1", &[&id]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_write_with_an_old_epoch_changes_nothing() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(2).await, db.client().await);
    let host = host(&sql, 10).await;
    let late = Facts { tail: Some(Tail { bytes: b"late".to_vec(), truncated: false }), ..exited() };
    let old = async |id: Uuid, epoch: i32| {
        let before = row(&client, id).await;
        assert!(!sql.record_container(id, epoch, "c").await.unwrap(), "record_container");
        assert_eq!(sql.running(id, epoch, None).await.unwrap(), None, "running");
        assert!(!sql.release(id, epoch, STOP, Some("late"), None).await.unwrap(), "release");
        assert!(!sql.rest(id, epoch).await.unwrap(), "rest");
        assert_eq!(sql.signalling(id, epoch, STOP, None).await.unwrap(), None, "signalling");
        assert_eq!(sql.signalled(id, epoch, None).await.unwrap(), None, "signalled");
        assert_eq!(observe(&sql, id, epoch, &late, None).await, None, "observe");
        assert!(sql.finish(id, epoch, None).await.unwrap().is_none(), "finish");
        assert_eq!(row(&client, id).await, before);
    };
    let logs = async || client.query_one("select count(*) from sundown.agent_log", &[]).await.unwrap().get::<_, i64>(0);

    // In each state, the row as it is now against everybody who had it before.
    let id = submit(&client, "").await;
    let (_, placed) = place(&sql, host, None).await;
    let later = db.now().await + Duration::from_secs(20);
    let taken_over = claim(&sql, host, Some(later)).await.remove(0).epoch;
    assert_eq!(taken_over, placed + 1);
    old(id, placed).await;
    // One from the future is no better.
    old(id, taken_over + 1).await;
    assert!(sql.record_container(id, taken_over, "c").await.unwrap());
    sql.running(id, taken_over, None).await.unwrap().unwrap();
    old(id, placed).await;
    sql.terminate(id, "a test").await.unwrap();
    // The wish to end it fences off whoever was starting it.
    old(id, taken_over).await;
    let ending = claim(&sql, host, None).await.remove(0).epoch;
    old(id, taken_over).await;
    assert_eq!(sql.signalling(id, ending, STOP, None).await.unwrap(), Some(false));
    old(id, taken_over).await;
    let facts = Facts { state: "expired", reason: None, exit_code: Some(143), oom_killed: None, error: None, dead: None, tail: None };
    let seen = observe(&sql, id, ending, &facts, None).await.unwrap();
    old(id, ending).await;
    assert_eq!(logs().await, 0, "no log of a lost lease");
    assert!(sql.finish(id, seen, None).await.unwrap().is_some());
    assert!(sql.finish(id, seen, None).await.unwrap().is_none(), "once");
    assert_eq!(slot(&client, host).await, (10, 0, 0));
}

#[tokio::test]
async fn a_wish_to_end_it_wins_at_every_step_of_a_start() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(2).await, db.client().await);
    let host = host(&sql, 10).await;
    for steps in 0..2 {
        let id = submit(&client, "").await;
        let (_, epoch) = place(&sql, host, None).await;
        if steps == 1 {
            assert!(sql.record_container(id, epoch, "c").await.unwrap());
        }
        assert!(matches!(sql.terminate(id, "a test").await.unwrap(), Some((_, false))));
        assert!(!sql.record_container(id, epoch, "c").await.unwrap());
        assert_eq!(sql.running(id, epoch, None).await.unwrap(), None);
        let row = claim(&sql, host, None).await.remove(0);
        assert_eq!((row.id, row.state.as_str(), row.started), (id, "terminating", false));
        assert!(!sql.record_container(id, row.epoch, "c").await.unwrap(), "not under the new epoch either: it is being ended");
        assert_eq!(sql.running(id, row.epoch, None).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_batch_finishes_only_those_whose_lease_is_ours() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(2).await, db.client().await);
    let (here, there) = (host(&sql, 10).await, host(&sql, 10).await);
    submit_many(&client, 4).await;
    let mut batch = Vec::new();
    for turn in 0..4 {
        let (id, epoch) = run(&sql, if turn == 3 { there } else { here }, None).await;
        // The second is not seen to have ended.
        let epoch = if turn == 1 { epoch } else { observe(&sql, id, epoch, &exited(), None).await.unwrap() };
        batch.push((id, if turn == 2 { epoch - 1 } else { epoch }));
    }
    let ended = join_all(batch.iter().map(|(id, epoch)| sql.finish(*id, *epoch, None))).await;
    let ended: Vec<bool> = ended.into_iter().map(|ended| ended.unwrap().is_some()).collect();
    assert_eq!(ended, [true, false, false, true], "the others: alive, lost");
    assert_eq!(slot(&client, here).await, (10, 2, 2));
    assert_eq!(slot(&client, there).await, (10, 0, 0), "each host has its place back");
}

#[tokio::test]
async fn a_host_that_is_forgotten_takes_its_agents_with_it() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(2).await, db.client().await);
    let host = host(&sql, 10).await;
    submit_many(&client, 4).await;
    let (pending, _) = place(&sql, host, None).await;
    let (running, _) = run(&sql, host, None).await;
    let (stopping, _) = run(&sql, host, None).await;
    sql.terminate(stopping, "a test").await.unwrap();
    let (ended, epoch) = run(&sql, host, None).await;
    observe(&sql, ended, epoch, &exited(), None).await.unwrap();
    assert_eq!(sql.forget_host(host).await.unwrap(), 4);
    for (id, state, reason) in [
        (pending, "failed", "host_lost"),
        (running, "failed", "host_lost"),
        (stopping, "expired", "terminated"),
        (ended, "succeeded", "exited"),
    ] {
        let row = client.query_one("select state, reason from sundown.agent_outcome where id = $1", &[&id]).await.unwrap();
        assert_eq!((row.get(0), row.get(1)), (state, reason));
    }
    assert_eq!(sql.forget_host(host).await.unwrap(), 0);
    assert!(!sql.cordon(host, true).await.unwrap(), "it is gone");
}
