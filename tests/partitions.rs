//! Weeks are there before they are needed and go when nothing in them is wanted. The instant is mocked; nothing here waits.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::time::{Duration, SystemTime};

use harness::{Db, host, observe, run, submit};
use sundown::migrate::migrate;
use sundown::sql::work::Facts;
use sundown::upkeep::{Counts, once};
use tokio_postgres::Client;
use uuid::Uuid;

const PARENTS: [&str; 4] = ["agent", "agent_outcome", "agent_log", "event"];
const DAY: Duration = Duration::from_hours(24);

/// Name, lower and upper bound of each partition, in order.
async fn partitions(client: &Client, parent: &str) -> Vec<(String, String, String)> {
    let rows = client
        .query(
            "select c.relname::text, m[1], m[2] from pg_inherits i join pg_class c on c.oid = i.inhrelid
               left join lateral regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \\(''(.*)''\\) TO \\(''(.*)''\\)') m on true
              where i.inhparent = ('sundown.' || $1)::regclass order by 1",
            &[&parent],
        )
        .await
        .unwrap();
    rows.iter()
        .map(|row| {
            let name: String = row.get(0);
            let bounds = row.get::<_, Option<String>>(1).zip(row.get(2)).unwrap_or_else(|| panic!("{name} has no bounds: a default?"));
            (name, bounds.0, bounds.1)
        })
        .collect()
}

/// Asserts that from the week of `from` on there are partitions without a gap that reach `weeks` ahead of `to`.
async fn contiguous(client: &Client, from: SystemTime, to: SystemTime, weeks: u32) {
    for parent in PARENTS {
        let there = partitions(client, parent).await;
        let bound = if parent == "event" { "$1::timestamptz::text" } else { "sundown.uuid_floor($1::timestamptz)::text" };
        let of = async |at: SystemTime| -> String { client.query_one(&format!("select {bound}"), &[&at]).await.unwrap().get(0) };
        let (from, to) = (of(from).await, of(to + 7 * DAY * weeks).await);
        let needed: Vec<_> = there.iter().filter(|(_, _, upper)| *upper > from).collect();
        assert!(needed.first().is_some_and(|(_, lower, _)| *lower <= from), "{parent} has today: {needed:?}");
        assert!(needed.last().is_some_and(|(_, _, upper)| *upper >= to), "{parent} reaches {weeks} weeks ahead: {needed:?}");
        for pair in needed.windows(2) {
            assert_eq!(pair[0].2, pair[1].1, "{parent} has a gap between {} and {}", pair[0].0, pair[1].0);
        }
    }
}

/// Until nothing is left to do; answers how many partitions were made and dropped, and how many keys forgotten.
async fn upkeep(client: &Client, at: SystemTime) -> Counts {
    let mut all = Counts::default();
    loop {
        let counts: serde_json::Value = client.query_one("select sundown.upkeep($1)", &[&at]).await.unwrap().get(0);
        let of = |name: &str| i32::try_from(counts[name].as_i64().unwrap()).unwrap();
        all = Counts { made: all.made + of("made"), dropped: all.dropped + of("dropped"), keys: all.keys + of("keys") };
        if of("dropped") == 0 {
            return all;
        }
    }
}

/// Which of the four tables still have the week in which the first agents were submitted.
async fn have(client: &Client, week: &str) -> Vec<&'static str> {
    let mut have = Vec::new();
    for parent in PARENTS {
        if partitions(client, parent).await.iter().any(|(name, _, _)| *name == format!("{parent}_{week}")) {
            have.push(parent);
        }
    }
    have
}

async fn week_of(client: &Client, id: Uuid) -> String {
    client.query_one("select right(tableoid::regclass::text, 8) from sundown.agent where id = $1", &[&id]).await.unwrap().get(0)
}

/// A world with one agent that ran and, if `ended` says so, has ended at that instant, with a log.
async fn with_agent(db: &Db) -> (Client, sundown::sql::Sql, Uuid, i32) {
    let (client, sql) = (db.client().await, db.sql(2).await);
    let host = host(&sql, 10).await;
    submit(&client, "").await;
    let (id, epoch) = run(&sql, host, None).await;
    (client, sql, id, epoch)
}

async fn end(sql: &sundown::sql::Sql, id: Uuid, epoch: i32, at: SystemTime) {
    let tail = Some(sundown::docker::Tail { bytes: b"bye".to_vec(), truncated: false });
    let facts = Facts { state: "succeeded", reason: Some("exited"), exit_code: Some(0), oom_killed: None, error: None, dead: None, tail };
    let epoch = observe(sql, id, epoch, &facts, Some(at)).await.unwrap();
    assert!(sql.finish(id, epoch, Some(at)).await.unwrap().is_some());
}

#[tokio::test]
async fn there_are_partitions_for_twelve_weeks_without_a_gap() {
    let db = Db::new().await;
    let (client, now) = (db.client().await, db.now().await);
    contiguous(&client, now, now, 12).await;
    for weeks in 0..=12_u32 {
        let at = now + 7 * DAY * weeks;
        client.query_one("select sundown.submit(image => 'busybox', at => $1)", &[&at]).await.unwrap();
    }
    assert_eq!(upkeep(&client, now).await.made, 0, "once is enough");
}

#[tokio::test]
async fn weeks_follow_each_other_in_every_time_zone() {
    let db = Db::new().await;
    let (client, now) = (db.client().await, db.now().await);
    // Where clocks change twice a year, seven days are not always 168 hours.
    client.batch_execute("set timezone = 'Europe/Berlin'").await.unwrap();
    for months in [1, 3, 6, 9, 12, 15] {
        let at = now + 30 * DAY * months;
        upkeep(&client, at).await;
        contiguous(&client, at, at, 12).await;
    }
    client.batch_execute("set timezone = 'UTC'").await.unwrap();
    let at = now + 30 * DAY * 18;
    upkeep(&client, at).await;
    contiguous(&client, at, at, 12).await;
    for (name, lower, _) in partitions(&client, "event").await {
        let begins: String = client
            .query_one("select to_char($1::text::timestamptz at time zone 'UTC', 'YYYYMMDD HH24:MI Dy')", &[&lower])
            .await
            .unwrap()
            .get(0);
        assert_eq!(begins, format!("{} 00:00 Mon", &name[6..]));
    }
}

#[tokio::test]
async fn after_a_long_pause_there_is_no_gap() {
    let db = Db::new().await;
    let (client, sql, id, _) = with_agent(&db).await;
    let now = db.now().await;
    let week = week_of(&client, id).await;
    for pause in [10_u32, 14, 40] {
        let at = now + 7 * DAY * pause;
        upkeep(&client, at).await;
        contiguous(&client, at, at, 12).await;
        sql.next_due(&[0], None, None).await.unwrap();
        assert_eq!(have(&client, &week).await[..3], ["agent", "agent_outcome", "agent_log"], "it lives");
    }
}

#[tokio::test]
async fn a_start_after_a_long_pause_makes_the_week_that_is_missing() {
    let db = Db::new().await;
    let client = db.client().await;
    // As if nobody had been here for months: only a week that is long over.
    client
        .batch_execute(
            "do $$ declare t text; p text; week timestamptz := date_trunc('week', now(), 'UTC') - interval '20 weeks'; until timestamptz := week + interval '168 hours';
             begin
                 foreach t in array array['agent', 'agent_outcome', 'agent_log', 'event'] loop
                     for p in select inhrelid::regclass::text from pg_inherits where inhparent = ('sundown.' || t)::regclass loop
                         execute 'drop table ' || p;
                     end loop;
                     execute format('create table sundown.%I partition of sundown.%I for values from (%L) to (%L)', t || to_char(week at time zone 'UTC', '_YYYYMMDD'), t,
                                    case t when 'event' then week::text else sundown.uuid_floor(week)::text end,
                                    case t when 'event' then until::text else sundown.uuid_floor(until)::text end);
                 end loop;
             end $$",
        )
        .await
        .unwrap();
    client.query_one("select sundown.submit(image => 'busybox')", &[]).await.expect_err("there is no week for it");
    migrate(&db.config(), false).await.unwrap();
    submit(&client, "").await;
    let now = db.now().await;
    contiguous(&client, now, now, 12).await;
}

#[tokio::test]
async fn a_week_goes_when_retention_has_passed_and_not_before() {
    let db = Db::new().await;
    let (client, sql, id, epoch) = with_agent(&db).await;
    let week = week_of(&client, id).await;
    let ended = db.now().await + 40 * DAY;
    end(&sql, id, epoch, ended).await;
    upkeep(&client, ended + 30 * DAY - Duration::from_millis(1)).await;
    assert_eq!(have(&client, &week).await, ["agent", "agent_outcome"], "its log and its events went before");
    let kept: i64 = client.query_one("select count(*) from sundown.agents where id = $1", &[&id]).await.unwrap().get(0);
    assert_eq!(kept, 1);
    upkeep(&client, ended + 30 * DAY).await;
    assert_eq!(have(&client, &week).await, Vec::<&str>::new());
    assert_eq!(sql.get_agent(id).await.unwrap(), None);
}

#[tokio::test]
async fn a_week_is_kept_while_an_agent_of_it_lives() {
    let db = Db::new().await;
    let (client, sql, id, epoch) = with_agent(&db).await;
    let week = week_of(&client, id).await;
    let now = db.now().await;
    // Of agents that live, retention says nothing. (A longer one keeps the events of the true present, which is long over here.)
    client.execute("update sundown.installation set retention = '2000 days'", &[]).await.unwrap();
    for days in [31_u32, 100, 300] {
        upkeep(&client, now + DAY * days).await;
        assert_eq!(have(&client, &week).await[..3], ["agent", "agent_outcome", "agent_log"], "after {days} days");
    }
    let ended = now + 301 * DAY;
    end(&sql, id, epoch, ended).await;
    client.execute("update sundown.installation set retention = '30 days'", &[]).await.unwrap();
    upkeep(&client, ended + DAY).await;
    assert_eq!(have(&client, &week).await, ["agent", "agent_outcome", "agent_log"], "retention counts from its end");
    upkeep(&client, ended + 30 * DAY).await;
    assert_eq!(have(&client, &week).await, Vec::<&str>::new());
}

#[tokio::test]
async fn logs_have_a_retention_of_their_own() {
    let db = Db::new().await;
    let (client, sql, id, epoch) = with_agent(&db).await;
    let week = week_of(&client, id).await;
    sql.settings(None, None, Some((30 * DAY).as_secs_f64()), Some((9 * DAY).as_secs_f64())).await.unwrap();
    let ended = db.now().await + 10 * DAY;
    end(&sql, id, epoch, ended).await;
    upkeep(&client, ended + 9 * DAY - Duration::from_millis(1)).await;
    assert!(have(&client, &week).await.contains(&"agent_log"));
    assert_eq!(sql.log_of(id).await.unwrap().unwrap().tail, Some((b"bye".to_vec(), false)));
    upkeep(&client, ended + 9 * DAY).await;
    assert!(!have(&client, &week).await.contains(&"agent_log"));
    let log = sql.log_of(id).await.unwrap().unwrap();
    assert!(log.ended && log.tail.is_none(), "the agent is known, its log is gone");
}

#[tokio::test]
async fn a_week_that_is_not_over_stays() {
    let db = Db::new().await;
    let (client, now) = (db.client().await, db.now().await);
    client.execute("update sundown.installation set retention = '1 hour', log_retention = '1 hour'", &[]).await.unwrap();
    let ends: SystemTime =
        client.query_one("select date_trunc('week', $1::timestamptz, 'UTC') + interval '168 hours'", &[&now]).await.unwrap().get(0);
    let id = submit(&client, "").await;
    client.execute("select sundown.terminate($1, at => $2)", &[&id, &(ends - 2 * Duration::from_hours(1))]).await.unwrap();
    let week = week_of(&client, id).await;
    upkeep(&client, ends - Duration::from_millis(1)).await;
    assert_eq!(have(&client, &week).await, PARENTS);
    upkeep(&client, ends).await;
    assert_eq!(have(&client, &week).await, ["event"], "an hour after its end nothing can be younger than the retention");
    upkeep(&client, ends + Duration::from_hours(1)).await;
    assert_eq!(have(&client, &week).await, Vec::<&str>::new());
}

#[tokio::test]
async fn a_week_that_somebody_uses_is_left_for_the_next_time() {
    let db = Db::new().await;
    let (client, sql, id, epoch) = with_agent(&db).await;
    let now = db.now().await;
    end(&sql, id, epoch, now).await;
    let week = week_of(&client, id).await;
    let mut other = db.client().await;
    let reading = other.transaction().await.unwrap();
    reading.execute(&format!("select from sundown.agent_{week}"), &[]).await.unwrap();
    upkeep(&client, now + 100 * DAY).await;
    assert_eq!(have(&client, &week).await, ["agent"], "the others are free");
    contiguous(&client, now + 100 * DAY, now + 100 * DAY, 12).await;
    reading.commit().await.unwrap();
    upkeep(&client, now + 100 * DAY).await;
    assert_eq!(have(&client, &week).await, Vec::<&str>::new());
}

#[tokio::test]
async fn a_submission_that_is_under_way_keeps_its_week() {
    let db = Db::new().await;
    let (client, now) = (db.client().await, db.now().await);
    let mut other = db.client().await;
    let submitting = other.transaction().await.unwrap();
    let id: Uuid = submitting.query_one("select sundown.submit(image => 'busybox')", &[]).await.unwrap().get(0);
    upkeep(&client, now + 100 * DAY).await;
    submitting.commit().await.unwrap();
    let week = week_of(&client, id).await;
    assert_eq!(have(&client, &week).await[0], "agent");
    upkeep(&client, now + 100 * DAY).await;
    assert_eq!(have(&client, &week).await[0], "agent", "it lives");
}

#[tokio::test]
async fn upkeep_never_fails_a_reader() {
    let db = Db::new().await;
    let (client, sql, id, epoch) = with_agent(&db).await;
    let now = db.now().await;
    end(&sql, id, epoch, now).await;
    let (mut other, watcher) = (db.client().await, db.client().await);
    let reading = other.transaction().await.unwrap();
    // It has the table, and not yet the week that is about to go.
    reading.execute("lock table only sundown.agent in access share mode", &[]).await.unwrap();
    let at = now + 100 * DAY;
    let dropping = tokio::spawn(async move { upkeep(&client, at).await });
    let waits = "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')";
    while !dropping.is_finished() && !watcher.query_one(waits, &[]).await.unwrap().get::<_, bool>(0) {
        tokio::task::yield_now().await;
    }
    let count: i64 = reading.query_one("select count(*) from sundown.agent", &[]).await.unwrap().get(0);
    assert_eq!(count, 1);
    reading.commit().await.unwrap();
    dropping.await.unwrap();
}

#[tokio::test]
async fn weeks_are_made_ahead_though_an_old_one_cannot_be_dropped() {
    let db = Db::new().await;
    let (client, at) = (db.client().await, db.now().await + 100 * DAY);
    client
        .batch_execute(
            "create function no_disk() returns event_trigger language plpgsql as $$ begin raise exception 'the disk is gone'; end $$;
             create event trigger no_disk on sql_drop execute function no_disk()",
        )
        .await
        .unwrap();
    once(&db.sql(1).await, Some(at)).await.expect_err("nothing can be dropped");
    contiguous(&client, at, at, 12).await;
}

#[tokio::test]
async fn each_old_week_goes_by_itself_and_locks_nothing_else_meanwhile() {
    let db = Db::new().await;
    let (mut client, at) = (db.client().await, db.now().await + 100 * DAY);
    client.execute("select sundown.make_ahead($1)", &[&at]).await.unwrap();
    let mut gone = 0;
    loop {
        let before = all_partitions(&client).await;
        let dropping = client.transaction().await.unwrap();
        let counts: serde_json::Value = dropping.query_one("select sundown.upkeep($1)", &[&at]).await.unwrap().get(0);
        let held: i64 = dropping
            .query_one("select count(*) from pg_locks l join pg_class c on c.oid = l.relation and c.relkind = 'p' where l.mode = 'AccessExclusiveLock' and l.pid = pg_backend_pid()", &[])
            .await
            .unwrap()
            .get(0);
        dropping.commit().await.unwrap();
        let after = all_partitions(&client).await;
        assert_eq!(before - after, usize::try_from(counts["dropped"].as_i64().unwrap()).unwrap());
        if counts["dropped"] == 0 {
            break;
        }
        assert_eq!((counts["dropped"].as_i64(), held), (Some(1), 1), "one partition, and its parent");
        gone += 1;
    }
    assert!(gone >= 4, "only {gone} went");
}

async fn all_partitions(client: &Client) -> usize {
    let mut all = 0;
    for parent in PARENTS {
        all += partitions(client, parent).await.len();
    }
    all
}

#[tokio::test]
async fn a_drop_may_take_longer_than_any_other_statement() {
    let db = Db::new().await;
    let (client, at) = (db.client().await, db.now().await + 100 * DAY);
    client
        .batch_execute(
            "create function slow_disk() returns event_trigger language plpgsql as $$ begin perform pg_sleep(1.5); end $$;
             create event trigger slow_disk on sql_drop execute function slow_disk()",
        )
        .await
        .unwrap();
    let sql = sundown::sql::Sql::new(&db.config(), 2, Duration::from_secs(1)).unwrap();
    assert_eq!(sql.upkeep(Some(at)).await.unwrap().0, 1);
}

#[tokio::test]
async fn upkeep_judges_a_week_without_reading_it() {
    let db = Db::new().await;
    let (mut client, now) = (db.client().await, db.now().await);
    client
        .batch_execute(
            "set session_replication_role = replica;
             insert into sundown.agent_outcome (id, state, reason, host, exit_code, ttl, attempts, epoch, finished_at)
                select sundown.uuidv7(now()), 'succeeded', 'exited', 1, 0, '1h', 1, 3, now() from generate_series(1, 5000);
             reset session_replication_role",
        )
        .await
        .unwrap();
    for days in [20_u32, 100] {
        let judging = client.transaction().await.unwrap();
        for parent in PARENTS {
            let week =
                "sundown.week_wanted($1, date_trunc('week', now(), 'UTC'), date_trunc('week', now(), 'UTC') + interval '168 hours', $2)";
            let wanted: bool = judging.query_one(&format!("select {week}"), &[&parent, &(now + days * DAY)]).await.unwrap().get(0);
            assert_eq!(wanted, days == 20 && parent != "agent_log", "{parent} after {days} days");
        }
        let read: i64 = judging
            .query_one(
                "select sum(pg_stat_get_xact_tuples_returned(inhrelid) + pg_stat_get_xact_tuples_fetched(inhrelid))::int8
                   from pg_inherits where inhparent = 'sundown.agent_outcome'::regclass",
                &[],
            )
            .await
            .unwrap()
            .get(0);
        assert!(read < 20, "it read {read} outcomes of 5000");
        judging.rollback().await.unwrap();
    }
}

#[tokio::test]
async fn upkeep_by_two_at_once_is_done_by_one() {
    let db = Db::new().await;
    let (client, now) = (db.client().await, db.now().await);
    let mut other = db.client().await;
    let first = other.transaction().await.unwrap();
    let at = now + 70 * DAY;
    let counts: serde_json::Value = first.query_one("select sundown.upkeep($1)", &[&at]).await.unwrap().get(0);
    assert_eq!(counts["made"], 40, "ten weeks of four tables");
    let second: serde_json::Value = client.query_one("select sundown.upkeep($1)", &[&at]).await.unwrap().get(0);
    assert_eq!(second, serde_json::json!({"made": 0, "dropped": 0, "keys": 0, "busy": true}));
    first.commit().await.unwrap();
    assert_eq!(upkeep(&client, at).await.made, 0);
    contiguous(&client, at, at, 12).await;
}

#[tokio::test]
async fn old_keys_and_replicas_are_forgotten() {
    let db = Db::new().await;
    let (client, sql, now) = (db.client().await, db.sql(1).await, db.now().await);
    submit(&client, "key => 'k'").await;
    sql.register_replica("old", "0", Some(now)).await.unwrap();
    assert_eq!(upkeep(&client, now + Duration::from_hours(23)).await.keys, 0);
    sql.register_replica("new", "0", Some(now + 2 * DAY)).await.unwrap();
    assert_eq!(upkeep(&client, now + 2 * DAY).await.keys, 1);
    let names: Vec<String> = client.query("select name from sundown.replica", &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(names, ["new"]);
}
