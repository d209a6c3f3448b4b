//! Questions that share a statement: each is answered for itself, and nobody waits for what another meets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use harness::{Db, host, observe, run, submit, until};
use sundown::agent::Submission;
use sundown::error::Error;
use sundown::sql::Sql;
use sundown::sql::work::Facts;
use uuid::Uuid;

fn exited() -> Facts {
    Facts { state: "succeeded", reason: Some("exited"), exit_code: Some(0), oom_killed: Some(false), error: None, tail: None, dead: None }
}

fn submission(body: &str) -> Submission {
    Submission::parse(body.as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

/// As many agents whose ends were seen; each with its epoch.
async fn seen(db: &Db, sql: &Sql, count: usize) -> Vec<(Uuid, i32)> {
    let (client, here) = (db.client().await, host(sql, 1000).await);
    let mut seen = Vec::new();
    for _ in 0..count {
        submit(&client, "notify => 'never'").await;
        let (id, epoch) = run(sql, here, None).await;
        seen.push((id, observe(sql, id, epoch, &exited(), None).await.unwrap()));
    }
    seen
}

#[tokio::test]
async fn those_who_ask_at_the_same_time_share_commits() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(8).await, db.client().await);
    let agents = seen(&db, &sql, 60).await;
    let asked = join_all(agents.iter().map(|(id, epoch)| sql.finish(*id, *epoch, None))).await;
    assert!(asked.into_iter().all(|ended| ended.unwrap().is_some()));
    let body = submission(r#"{"image": "a"}"#);
    let made = join_all((0..60).map(|_| sql.submit(&body, None))).await;
    assert_eq!(made.into_iter().filter(|made| matches!(made, Ok((_, _, true)))).count(), 60);
    for table in ["sundown.agent_outcome", "sundown.agent_live"] {
        let commits = format!("select count(distinct xmin::text) from {table}");
        let commits: i64 = client.query_one(&commits, &[]).await.unwrap().get(0);
        assert!((1..=6).contains(&commits), "{commits} commits for 60 rows of {table}");
    }
}

#[tokio::test]
async fn a_row_that_a_user_holds_holds_up_nobody_elses() {
    let db = Db::new().await;
    let sql = db.sql(8).await;
    let agents = seen(&db, &sql, 20).await;
    let (holder, held) = (db.client().await, agents[7]);
    holder.batch_execute("begin").await.unwrap();
    holder.execute("select from sundown.agent_live where id = $1 for update", &[&held.0]).await.unwrap();

    let waits = sql.clone();
    let waits = tokio::spawn(async move { waits.finish(held.0, held.1, None).await });
    let others = agents.iter().filter(|agent| **agent != held);
    let asked = join_all(others.map(|(id, epoch)| sql.finish(*id, *epoch, None)));
    let asked = tokio::time::timeout(Duration::from_secs(3), asked).await.expect("the others do not wait for whoever holds it");
    assert!(asked.into_iter().all(|ended| ended.unwrap().is_some()), "the others end");
    let state = db.client().await;
    let left: i64 = state.query_one("select count(*) from sundown.agent_live", &[]).await.unwrap().get(0);
    assert_eq!(left, 1, "and nobody else");
    assert!(!waits.is_finished(), "its own waits for whoever holds it");
    holder.batch_execute("commit").await.unwrap();
    assert!(waits.await.unwrap().unwrap().is_some(), "and ends once it is let go");
}

#[tokio::test]
async fn a_refusal_is_only_of_whom_it_is_about() {
    let db = Db::new().await;
    let sql = db.sql(8).await;
    let (good, bad) = (submission(r#"{"image": "a", "labels": {"team": "blue"}}"#), submission(r#"{"image": "A b"}"#));
    let bodies: Vec<&Submission> = (0..30).map(|turn| if turn % 10 == 3 { &bad } else { &good }).collect();
    let made = join_all(bodies.iter().map(|body| sql.submit(body, None))).await;
    for (turn, made) in made.into_iter().enumerate() {
        match made {
            Ok((id, agent, true)) if turn % 10 != 3 => assert!(agent.contains(&id.to_string()) && agent.contains("blue"), "{agent}"),
            Err(Error::Refused(refusal)) if turn % 10 == 3 => assert_eq!(refusal.code, "invalid_image"),
            other => panic!("{turn}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn what_no_cast_of_postgres_takes_fails_nobody_else() {
    let db = Db::new().await;
    let sql = db.sql(8).await;
    // It passes what we check ourselves, and makes the whole statement fail.
    let far = Submission { image: "a".to_owned(), run_at: Some("300000-01-01T00:00:00Z".to_owned()), ..Submission::default() };
    let good = submission(r#"{"image": "a"}"#);
    let bodies: Vec<&Submission> = (0..20).map(|turn| if turn == 5 { &far } else { &good }).collect();
    for (turn, made) in join_all(bodies.iter().map(|body| sql.submit(body, None))).await.into_iter().enumerate() {
        match made {
            Ok((_, _, true)) if turn != 5 => {}
            Err(Error::Refused(_)) if turn == 5 => {}
            other => panic!("{turn}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn an_old_hand_is_never_told_what_a_new_one_did() {
    let db = Db::new().await;
    let sql = db.sql(8).await;
    let agents = seen(&db, &sql, 10).await;
    let both = agents.iter().flat_map(|(id, epoch)| [(*id, *epoch - 1), (*id, *epoch)]);
    let told = join_all(both.map(|(id, epoch)| sql.finish(id, epoch, None))).await;
    for (turn, told) in told.into_iter().enumerate() {
        assert_eq!(told.unwrap().is_some(), turn % 2 == 1, "{turn}");
    }
}

#[tokio::test]
async fn whoever_gives_up_takes_nobody_along() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(8).await, db.client().await);
    let agents = seen(&db, &sql, 12).await;
    // Each begins, which lets the first ones fly, and half of them give up.
    let mut asked: Vec<_> = agents.iter().map(|(id, epoch)| Box::pin(sql.finish(*id, *epoch, None))).collect();
    for one in &mut asked {
        assert!(one.as_mut().now_or_never().is_none());
    }
    let kept: Vec<_> = asked.into_iter().skip(6).collect();
    assert!(join_all(kept).await.into_iter().all(|ended| ended.unwrap().is_some()));
    until("what was begun is done, too", async || {
        client.query_one("select count(*) from sundown.agent_live", &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
}

#[tokio::test]
async fn a_database_that_is_away_is_said_to_all_at_once() {
    let mut away = tokio_postgres::Config::new();
    away.host("127.0.0.1").port(1).user("nobody").dbname("nothing");
    let sql = Sql::new(&away, 2, Duration::from_secs(5)).unwrap();
    let asked = join_all((0..50).map(|_| sql.finish(Uuid::new_v4(), 1, None)));
    let told = tokio::time::timeout(Duration::from_secs(30), asked).await.expect("all are told");
    assert!(told.into_iter().all(|told| matches!(told, Err(Error::Unavailable(_)))));
}

#[tokio::test]
async fn what_waited_in_vain_is_not_asked_for_later() {
    // It takes connections and never says anything.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut hangs = tokio_postgres::Config::new();
    hangs.host("127.0.0.1").port(silent.local_addr().unwrap().port()).user("nobody").dbname("nothing");
    let sql = Sql::new(&hangs, 2, Duration::from_secs(1)).unwrap();
    let begun = tokio::time::Instant::now();
    // Ten statements' worth, of which two are under way at a time: one after the other they would take five seconds.
    let told = join_all((0..1000).map(|_| sql.finish(Uuid::new_v4(), 1, None))).await;
    assert!(told.into_iter().all(|told| matches!(told, Err(Error::Unavailable(_)))));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}
