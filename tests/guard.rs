//! What psql may not do, psql is refused, with an error that has a name. And what it may do leaves one event in the same commit.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::collections::BTreeSet;

use harness::{Db, claim, host, observe, place, refusal, run, submit};
use sundown::sql::Sql;
use sundown::sql::work::Facts;
use tokio::time::Instant;
use tokio_postgres::Client;
use uuid::Uuid;

const LIVE: [&str; 3] = ["pending", "running", "terminating"];
const ENDS: [&str; 3] = ["succeeded", "failed", "expired"];

/// An agent in that state, on a host.
async fn agent_in(db: &Client, sql: &Sql, host: i32, state: &str) -> Uuid {
    let id = submit(db, "").await;
    let (placed, epoch) = place(sql, host, None).await;
    assert_eq!(placed, id);
    assert!(sql.record_container(id, epoch, "c0ffee").await.unwrap());
    if state != "pending" {
        sql.running(id, epoch, None).await.unwrap().unwrap();
    }
    if state == "terminating" || state == "expired" {
        sql.terminate(id, "a test").await.unwrap();
    }
    let facts = match state {
        "succeeded" => {
            Facts { state: "succeeded", reason: Some("exited"), exit_code: Some(0), oom_killed: None, error: None, dead: None, tail: None }
        }
        "failed" => {
            Facts { state: "failed", reason: Some("exited"), exit_code: Some(3), oom_killed: None, error: None, dead: None, tail: None }
        }
        "expired" => Facts { state: "expired", reason: None, exit_code: None, oom_killed: None, error: None, dead: None, tail: None },
        _ => return id,
    };
    let row = db.query_one("select epoch from sundown.agent_live where id = $1", &[&id]).await.unwrap();
    let epoch = observe(sql, id, row.get(0), &facts, None).await.unwrap();
    assert!(sql.finish(id, epoch, None).await.unwrap().is_some());
    id
}

/// The reason and the exit code that an end goes with.
fn end_with(to: &str) -> (&'static str, i32) {
    match to {
        "succeeded" => ("exited", 0),
        "failed" => ("exited", 3),
        _ => ("terminated", 137),
    }
}

/// The facts without which no agent ends.
fn see_end(id: Uuid, to: &str) -> String {
    let (reason, code) = end_with(to);
    format!(
        "update sundown.agent_live set observed_at = now(), ended_state = '{to}', ended_reason = '{reason}', exit_code = {code} where id = '{id}'"
    )
}

/// The statement that would take an agent from one state to another, every other rule kept.
fn move_to(id: Uuid, from: &str, to: &str) -> String {
    let why = if to == "terminating" { "'terminated'" } else { "null" };
    let (reason, code) = end_with(to);
    match (ENDS.contains(&from), ENDS.contains(&to)) {
        (false, false) => format!(
            "update sundown.agent_live set state = '{to}', reason = {why}, decided_at = case when {why} is null then null else now() end,
                    started_at = case when '{to}' = 'pending' then started_at else coalesce(started_at, now()) end where id = '{id}'"
        ),
        (false, true) => format!(
            "with gone as (delete from sundown.agent_live where id = '{id}' returning id, host, ttl, attempts, epoch)
             insert into sundown.agent_outcome (id, state, reason, exit_code, host, ttl, attempts, epoch, finished_at)
             select id, '{to}', '{reason}', {code}, host, ttl, attempts, epoch, now() from gone"
        ),
        (true, false) => format!(
            "insert into sundown.agent_live (id, due_at, expires_at, host, placed_at, started_at, container_id, state, reason, decided_at, ttl, max_ttl, grace, start_timeout)
             values ('{id}', now(), now(), 1, now(), now(), 'c0ffee', '{to}', {why}, case when {why} is null then null else now() end, '1h', '1h', '1s', '1m')"
        ),
        (true, true) => format!("update sundown.agent_outcome set state = '{to}', reason = '{reason}', exit_code = {code} where id = '{id}'"),
    }
}

#[tokio::test]
async fn only_the_transitions_of_the_table_are_possible() {
    let legal = BTreeSet::from([
        ("pending", "running"),
        ("pending", "terminating"),
        ("pending", "failed"),
        ("running", "terminating"),
        ("running", "succeeded"),
        ("running", "failed"),
        ("terminating", "expired"),
        ("terminating", "succeeded"),
        ("terminating", "failed"),
    ]);
    let db = Db::new().await;
    let (sql, mut client) = (db.sql(2).await, db.client().await);
    let host = host(&sql, 100).await;
    let mut allowed = BTreeSet::new();
    for from in LIVE.into_iter().chain(ENDS) {
        let id = agent_in(&client, &sql, host, from).await;
        for to in LIVE.into_iter().chain(ENDS) {
            if from == to && LIVE.contains(&from) {
                continue;
            }
            let attempt = client.transaction().await.unwrap();
            if LIVE.contains(&from) && ENDS.contains(&to) {
                attempt.batch_execute(&see_end(id, to)).await.unwrap();
            }
            match attempt.execute(&move_to(id, from, to), &[]).await {
                Ok(rows) => {
                    assert_eq!(rows, 1, "{from} to {to} touched its row");
                    allowed.insert((from, to));
                }
                Err(error) => {
                    let (code, rule) = refusal(&error);
                    assert_eq!(code, "SD403", "{from} to {to} is refused by name, not by {error:?}");
                    let expected: &[&str] = match (ENDS.contains(&from), ENDS.contains(&to)) {
                        // Leaving `terminating` also takes its reason away.
                        (false, false) => &["legal_transition", "reason_set_once"],
                        (false, true) => &["life_ends_with_outcome"],
                        (true, false) => &["life_begins_pending"],
                        (true, true) => &["written_once"],
                    };
                    assert!(expected.contains(&rule.as_str()), "{from} to {to} was refused by {rule}");
                }
            }
            attempt.rollback().await.unwrap();
        }
    }
    assert_eq!(allowed, legal);
}

#[tokio::test]
async fn an_agent_ends_once() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(2).await, db.client().await);
    let host = host(&sql, 10).await;
    let id = agent_in(&client, &sql, host, "succeeded").await;
    let again = format!(
        "insert into sundown.agent_outcome (id, state, reason, host, ttl, attempts, epoch, finished_at)
         values ('{id}', 'failed', 'vanished', 1, '1h', 0, 9, now())"
    );
    let (code, _) = refusal(&client.execute(&again, &[]).await.unwrap_err());
    assert_eq!(code, "23505", "the primary key is the promise");
    for state in ["pending", "running", "terminating"] {
        let error = client.execute(&move_to(id, "succeeded", state), &[]).await.unwrap_err();
        assert_eq!(refusal(&error), ("SD403".to_owned(), "life_begins_pending".to_owned()), "it never comes back as {state}");
    }
    // Not even as it once began.
    let error = client
        .execute(
            "insert into sundown.agent_live (id, due_at, ttl, max_ttl, grace, start_timeout) values ($1, now(), '1h', '1h', '1s', '1m')",
            &[&id],
        )
        .await
        .unwrap_err();
    assert_eq!(refusal(&error), ("SD403".to_owned(), "life_begins_pending".to_owned()));
}

#[tokio::test]
async fn what_is_written_once_is_never_changed_deleted_or_emptied() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(2).await, db.client().await);
    let host = host(&sql, 10).await;
    let id = agent_in(&client, &sql, host, "succeeded").await;
    let mut aims = 0;
    for (table, change) in [("agent", "image = image"), ("agent_outcome", "error = 'edited'"), ("event", "actor = 'nobody'")] {
        let parts = client
            .query("select tableoid::regclass::text from sundown.event where $1 = 'event' union select tableoid::regclass::text from sundown.agent where $1 = 'agent'
                    union select tableoid::regclass::text from sundown.agent_outcome where $1 = 'agent_outcome'", &[&table])
            .await
            .unwrap();
        assert_eq!(parts.len(), 1, "all of this test's rows are in one week");
        for aim in [format!("sundown.{table}"), parts[0].get(0)] {
            for statement in [
                format!("update {aim} set {change} where id = '{id}'"),
                format!("delete from {aim} where id = '{id}'"),
                format!("truncate {aim}"),
            ] {
                let error = client.execute(&statement, &[]).await.expect_err(&statement);
                assert_eq!(refusal(&error), ("SD403".to_owned(), "written_once".to_owned()), "{statement}");
                aims += 1;
            }
        }
    }
    assert_eq!(aims, 18);
    let error = client.execute("truncate sundown.agent_live", &[]).await.unwrap_err();
    assert_eq!(refusal(&error), ("SD403".to_owned(), "written_once".to_owned()));
}

#[tokio::test]
async fn every_partition_guards_itself() {
    let db = Db::new().await;
    let client = db.client().await;
    let rows = client
        .query(
            "select c.relname, array_agg(t.tgname::text order by t.tgname)
               from pg_inherits i
               join pg_class c on c.oid = i.inhrelid and c.relkind = 'r'
               join pg_trigger t on t.tgrelid = c.oid
              where i.inhparent in ('sundown.agent'::regclass, 'sundown.agent_outcome'::regclass, 'sundown.event'::regclass)
              group by c.relname",
            &[],
        )
        .await
        .unwrap();
    assert!(rows.len() >= 39, "thirteen weeks of three tables");
    for row in rows {
        let (name, triggers): (String, Vec<String>) = (row.get(0), row.get(1));
        let mut expected = vec!["not_emptied", "written_once"];
        if name.starts_with("agent_outcome") {
            expected.insert(0, "guard_insert");
        }
        assert_eq!(triggers, expected, "{name}");
    }
}

#[tokio::test]
async fn a_live_row_keeps_its_rules() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(2).await, db.client().await);
    let here = host(&sql, 10).await;
    let there = host(&sql, 10).await;
    let id = agent_in(&client, &sql, here, "running").await;
    for (change, rule) in [
        ("container_id = 'other'", "container_set_once"),
        ("epoch = epoch - 1", "epoch_never_falls"),
        (format!("host = {there}").as_str(), "host_set_once"),
        ("id = gen_random_uuid()", "id_is_fixed"),
        // To the line again, as if it had never been placed.
        ("host = 0, placed_at = null, container_id = null, started_at = null, state = 'pending'", "container_set_once"),
    ] {
        let error = client.execute(&format!("update sundown.agent_live set {change} where id = $1"), &[&id]).await.expect_err(change);
        assert_eq!(refusal(&error), ("SD403".to_owned(), rule.to_owned()), "{change}");
    }
    let waiting = submit(&client, "").await;
    let placed = place(&sql, here, None).await.0;
    assert_eq!(waiting, placed);
    // An id stays, also that of one without a container.
    for unplaced in [submit(&client, "").await, placed] {
        let error = client.execute("update sundown.agent_live set id = gen_random_uuid() where id = $1", &[&unplaced]).await.unwrap_err();
        assert_eq!(refusal(&error), ("SD403".to_owned(), "id_is_fixed".to_owned()));
    }
    let away = "update sundown.agent_live set host = 0, placed_at = null where id = $1";
    assert_eq!(refusal(&client.execute(away, &[&placed]).await.unwrap_err()), ("SD403".to_owned(), "host_set_once".to_owned()));
    let pending = place(&sql, here, None).await;
    assert!(sql.record_container(pending.0, pending.1, "c0ffee").await.unwrap());
    let pending = pending.0;
    let erased = "update sundown.agent_live set container_id = null where id = $1";
    assert_eq!(refusal(&client.execute(erased, &[&pending]).await.unwrap_err()), ("SD403".to_owned(), "container_set_once".to_owned()));

    // Rows that no state could have are refused by the constraint's name.
    for (change, rule) in [
        ("state = 'succeeded'", "agent_live_state"),
        ("reason = 'because', decided_at = now(), state = 'terminating'", "agent_live_reasons"),
        ("state = 'terminating'", "agent_live_reason"),
        ("reason = 'terminated', decided_at = now()", "agent_live_reason"),
        ("signalled_at = now()", "agent_live_signals"),
        ("expires_at = null", "agent_live_deadline"),
        ("started_at = null", "agent_live_running"),
        ("ended_state = 'failed'", "agent_live_facts"),
        ("observed_at = now(), ended_state = 'failed'", "agent_live_facts"),
        ("placed_at = null", "agent_live_placed"),
    ] {
        let error = client.execute(&format!("update sundown.agent_live set {change} where id = $1"), &[&id]).await.expect_err(change);
        assert_eq!(refusal(&error), ("23514".to_owned(), rule.to_owned()), "{change}");
    }
}

#[tokio::test]
async fn a_life_ends_only_with_its_outcome() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(2).await, db.client().await);
    let host = host(&sql, 10).await;
    for state in LIVE {
        let id = agent_in(&client, &sql, host, state).await;
        let error = client.execute("delete from sundown.agent_live where id = $1", &[&id]).await.unwrap_err();
        assert_eq!(refusal(&error), ("SD403".to_owned(), "life_ends_with_outcome".to_owned()), "a {state} row goes alone");
        let part: String = client
            .query_one("select 'sundown.' || relname from pg_class where oid = (select tableoid from sundown.agent where id = $1)", &[&id])
            .await
            .unwrap()
            .get(0);
        for aim in ["sundown.agent_outcome", &part.replace("agent_", "agent_outcome_")] {
            let beside = format!(
                "insert into {aim} (id, state, reason, host, ttl, attempts, epoch, finished_at) values ('{id}', 'failed', 'vanished', 1, '1h', 0, 9, now())"
            );
            let error = client.execute(&beside, &[]).await.unwrap_err();
            assert_eq!(refusal(&error), ("SD403".to_owned(), "outcome_ends_a_life".to_owned()), "an outcome in {aim} beside a {state} row");
            let forged =
                beside.replace(&id.to_string(), "' || sundown.uuidv7(now()) || '").replace("(''", "((''").replace("'',", "'')::uuid,");
            let error = client.execute(&forged, &[]).await.unwrap_err();
            assert_eq!(refusal(&error), ("SD403".to_owned(), "outcome_ends_a_life".to_owned()), "an outcome in {aim} of nobody's agent");
        }
    }
    let error = client
        .execute("insert into sundown.agent_live (id, due_at, ttl, max_ttl, grace, start_timeout) values (sundown.uuidv7(now()), now(), '1h', '1h', '1s', '1m')", &[])
        .await
        .unwrap_err();
    assert_eq!(refusal(&error), ("SD403".to_owned(), "life_begins_pending".to_owned()), "a life that nobody asked for");
}

#[tokio::test]
async fn an_outcome_cannot_contradict_itself() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(2).await, db.client().await);
    let host = host(&sql, 10).await;
    let id = agent_in(&client, &sql, host, "terminating").await;
    for (state, reason, code) in [
        ("succeeded", "exited", "3"),
        ("succeeded", "exited", "null"),
        ("succeeded", "terminated", "0"),
        ("failed", "exited", "0"),
        ("failed", "exited", "null"),
        ("failed", "ttl_expired", "1"),
        ("expired", "exited", "1"),
        ("expired", "vanished", "null"),
    ] {
        let statement = format!(
            "with gone as (delete from sundown.agent_live where id = '{id}' returning id, host, ttl, attempts, epoch)
             insert into sundown.agent_outcome (id, state, reason, exit_code, host, ttl, attempts, epoch, finished_at)
             select id, '{state}', '{reason}', {code}, host, ttl, attempts, epoch, now() from gone"
        );
        let error = client.execute(&statement, &[]).await.expect_err(&statement);
        assert_eq!(refusal(&error), ("23514".to_owned(), "agent_outcome_honest".to_owned()), "{state}, {reason}, {code}");
    }
}

#[tokio::test]
async fn what_was_seen_of_an_end_is_final() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(2).await, db.client().await);
    let host = host(&sql, 10).await;
    submit(&client, "").await;
    let (id, epoch) = run(&sql, host, None).await;
    let dead = Some(Instant::now());
    let facts =
        Facts { state: "failed", reason: Some("exited"), exit_code: Some(3), oom_killed: Some(false), error: None, dead, tail: None };
    let seen = observe(&sql, id, epoch, &facts, None).await.unwrap();
    for change in [
        "exit_code = 0",
        "exit_code = null",
        "ended_state = 'succeeded'",
        "ended_reason = 'vanished'",
        "oom_killed = true",
        "observed_at = now() + '1s'",
        "dead_at = now() + '1s'",
        "dead_at = null",
        "observed_at = null, ended_state = null, ended_reason = null",
    ] {
        let error = client.execute(&format!("update sundown.agent_live set {change} where id = $1"), &[&id]).await.expect_err(change);
        assert_eq!(refusal(&error), ("SD403".to_owned(), "facts_are_final".to_owned()), "{change}");
    }
    let other =
        Facts { state: "succeeded", reason: Some("exited"), exit_code: Some(0), oom_killed: None, error: None, dead: None, tail: None };
    assert_eq!(observe(&sql, id, seen, &other, None).await, None, "seen once");
    assert!(sql.finish(id, seen, None).await.unwrap().is_some());
    let row = client.query_one("select state, exit_code from sundown.agent_outcome where id = $1", &[&id]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, i32>(1)), ("failed", 3));
}

#[tokio::test]
async fn after_a_signal_of_ours_no_agent_has_ended_by_itself() {
    let db = Db::new().await;
    let (sql, mut client) = (db.sql(2).await, db.client().await);
    let host = host(&sql, 10).await;
    let id = agent_in(&client, &sql, host, "terminating").await;
    let row = client.query_one("select epoch from sundown.agent_live where id = $1", &[&id]).await.unwrap();
    // Without one it may have: the first look says so.
    for end in ["succeeded", "failed"] {
        let attempt = client.transaction().await.unwrap();
        attempt.batch_execute(&see_end(id, end)).await.unwrap();
        let error = attempt.execute("update sundown.agent_live set signalled_at = now() where id = $1", &[&id]).await.unwrap_err();
        assert_eq!(refusal(&error), ("23514".to_owned(), "agent_live_first_look".to_owned()), "nor is one sent afterwards");
        attempt.rollback().await.unwrap();
    }
    sql.signalling(id, row.get(0), harness::STOP, None).await.unwrap().unwrap();
    for end in ["succeeded", "failed"] {
        let error = client.batch_execute(&see_end(id, end)).await.expect_err(end);
        assert_eq!(refusal(&error), ("23514".to_owned(), "agent_live_first_look".to_owned()), "{end}");
    }
    client.batch_execute(&see_end(id, "expired")).await.unwrap();
}

#[tokio::test]
async fn the_reason_of_an_end_is_decided_once() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(2).await, db.client().await);
    let host = host(&sql, 10).await;
    let id = agent_in(&client, &sql, host, "terminating").await;
    let error = client.execute("update sundown.agent_live set reason = 'ttl_expired' where id = $1", &[&id]).await.unwrap_err();
    assert_eq!(refusal(&error), ("SD403".to_owned(), "reason_set_once".to_owned()));
}

/// (was, state, reason) of its events, in order.
async fn events_of(client: &Client, id: Uuid) -> Vec<(Option<String>, String, Option<String>)> {
    let rows = client.query("select was, state, reason from sundown.events where id = $1 order by xid, seq", &[&id]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

fn event(was: Option<&str>, state: &str, reason: Option<&str>) -> (Option<String>, String, Option<String>) {
    (was.map(str::to_owned), state.to_owned(), reason.map(str::to_owned))
}

#[tokio::test]
async fn each_transition_leaves_one_event() {
    let db = Db::new().await;
    let (sql, client) = (db.sql(2).await, db.client().await);
    let host = host(&sql, 10).await;
    submit(&client, "ttl => '1 hour'").await;
    let (id, _) = run(&sql, host, None).await;
    client.execute("select sundown.extend($1, '2 hours')", &[&id]).await.unwrap();
    sql.terminate(id, "ops").await.unwrap();
    sql.terminate(id, "ops").await.unwrap();
    let claimed = claim(&sql, host, None).await;
    assert_eq!(claimed.len(), 1);
    sql.signalling(id, claimed[0].epoch, harness::STOP, None).await.unwrap().unwrap();
    sql.signalled(id, claimed[0].epoch, None).await.unwrap().unwrap();
    let facts =
        Facts { state: "expired", reason: None, exit_code: Some(143), oom_killed: Some(false), error: None, dead: None, tail: None };
    let epoch = observe(&sql, id, claimed[0].epoch, &facts, None).await.unwrap();
    assert!(sql.finish(id, epoch, None).await.unwrap().is_some());
    let (pending, running, terminating) = ("pending", "running", "terminating");
    assert_eq!(
        events_of(&client, id).await,
        [
            event(None, pending, None),
            event(Some(pending), running, None),
            event(Some(running), running, None),
            event(Some(running), terminating, Some("terminated")),
            event(Some(terminating), "expired", Some("terminated")),
        ]
    );
    let rows = client
        .query("select e.kind, e.actor, e.exit_code, e.epoch = o.epoch from sundown.event e join sundown.agent_outcome o using (id) where id = $1 order by xid, seq", &[&id])
        .await
        .unwrap();
    assert_eq!(rows[2].get::<_, &str>(0), "extended");
    assert_eq!(rows[3].get::<_, &str>(1), "ops");
    assert_eq!((rows[4].get::<_, i32>(2), rows[4].get::<_, bool>(3)), (143, true));
}

#[tokio::test]
async fn an_event_commits_with_its_transition_or_not_at_all() {
    let db = Db::new().await;
    let (sql, mut client) = (db.sql(2).await, db.client().await);
    let watcher = db.client().await;
    let host = host(&sql, 10).await;
    let id = agent_in(&client, &sql, host, "running").await;
    let before = events_of(&watcher, id).await.len();
    for commit in [false, true] {
        let change = client.transaction().await.unwrap();
        change.execute("select sundown.terminate($1)", &[&id]).await.unwrap();
        let inside: i64 = change.query_one("select count(*) from sundown.event where id = $1", &[&id]).await.unwrap().get(0);
        assert_eq!(inside, i64::try_from(before).unwrap() + 1);
        assert_eq!(events_of(&watcher, id).await.len(), before, "not before the commit");
        if commit { change.commit().await.unwrap() } else { change.rollback().await.unwrap() }
    }
    assert_eq!(events_of(&watcher, id).await.len(), before + 1);
}

/// Reads on from a cursor, as any consumer of events should.
async fn read_on(client: &Client, cursor: &mut (String, i64)) -> Vec<(Uuid, String)> {
    let rows = client
        .query_typed(
            "select id, state, xid::text, seq from sundown.events
              where (xid, seq) > ($1::xid8, $2) and xid < pg_snapshot_xmin(pg_current_snapshot()) order by xid, seq",
            &[(&cursor.0, tokio_postgres::types::Type::TEXT), (&cursor.1, tokio_postgres::types::Type::INT8)],
        )
        .await
        .unwrap();
    if let Some(last) = rows.last() {
        *cursor = (last.get(2), last.get(3));
    }
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test]
async fn the_cursor_skips_nothing_when_commits_overtake_each_other() {
    let db = Db::new().await;
    let (sql, reader) = (db.sql(2).await, db.client().await);
    let (mut early, mut late) = (db.client().await, db.client().await);
    let host = host(&sql, 10).await;
    let first = agent_in(&reader, &sql, host, "running").await;
    let second = agent_in(&reader, &sql, host, "running").await;
    let mut cursor = ("0".to_owned(), 0);
    // Transactions of other databases hold the snapshot's xmin back too.
    let mut before = 0;
    while before < 4 {
        before += read_on(&reader, &mut cursor).await.len();
    }
    let terminated = "select sundown.terminate($1)";
    let began_first = early.transaction().await.unwrap();
    began_first.execute(terminated, &[&first]).await.unwrap();
    let began_second = late.transaction().await.unwrap();
    began_second.execute(terminated, &[&second]).await.unwrap();
    began_second.commit().await.unwrap();
    // The second is committed and visible; handing it out now would move the cursor past the first.
    let visible: i64 =
        reader.query_one("select count(*) from sundown.event where id = $1 and state = 'terminating'", &[&second]).await.unwrap().get(0);
    assert_eq!(visible, 1);
    assert_eq!(read_on(&reader, &mut cursor).await, []);
    began_first.commit().await.unwrap();
    let mut after = Vec::new();
    while after.len() < 2 {
        after.extend(read_on(&reader, &mut cursor).await);
    }
    assert_eq!(after, [(first, "terminating".to_owned()), (second, "terminating".to_owned())], "both, in the order of their transactions");
}

#[tokio::test]
async fn the_cursor_hands_out_every_event_once_beside_busy_writers() {
    const WRITERS: usize = 6;
    const EACH: usize = 25;
    let db = Db::new().await;
    let writers: Vec<_> = {
        let mut tasks = Vec::new();
        for _ in 0..WRITERS {
            let mut client = db.client().await;
            tasks.push(tokio::spawn(async move {
                for round in 0..EACH {
                    let many = client.transaction().await.unwrap();
                    let id: Uuid = many.query_one("select sundown.submit(image => 'busybox')", &[]).await.unwrap().get(0);
                    many.execute("select sundown.terminate($1)", &[&id]).await.unwrap();
                    if round % 5 == 0 { many.rollback().await.unwrap() } else { many.commit().await.unwrap() }
                }
            }));
        }
        tasks
    };
    let reader = db.client().await;
    let (mut cursor, mut read) = (("0".to_owned(), 0), Vec::new());
    while writers.iter().any(|writer| !writer.is_finished()) {
        read.extend(read_on(&reader, &mut cursor).await);
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let total: i64 = reader.query_one("select count(*) from sundown.event", &[]).await.unwrap().get(0);
    assert_eq!(usize::try_from(total).unwrap(), WRITERS * EACH / 5 * 4 * 3, "submitted, terminating, expired");
    // Nobody writes any more: the last of them are below the snapshot's xmin as soon as other databases' transactions are over too.
    while read.len() < usize::try_from(total).unwrap() {
        read.extend(read_on(&reader, &mut cursor).await);
    }
    let distinct: BTreeSet<_> = read.iter().collect();
    assert_eq!(distinct.len(), read.len(), "nothing twice");
}

#[tokio::test]
async fn an_end_that_nobody_saw_cannot_be_forged() {
    let db = Db::new().await;
    let (sql, mut client) = (db.sql(2).await, db.client().await);
    let host = host(&sql, 100).await;
    let id = agent_in(&client, &sql, host, "running").await;
    let forged = client.execute(&move_to(id, "running", "succeeded"), &[]).await.unwrap_err();
    assert_eq!(refusal(&forged), ("SD403".to_owned(), "life_ends_with_outcome".to_owned()));
    // Nor can it say something else than what was seen.
    let attempt = client.transaction().await.unwrap();
    attempt.batch_execute(&see_end(id, "failed")).await.unwrap();
    let forged = attempt.execute(&move_to(id, "running", "succeeded"), &[]).await.unwrap_err();
    assert_eq!(refusal(&forged), ("SD403".to_owned(), "life_ends_with_outcome".to_owned()));
}
