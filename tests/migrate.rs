//! Any number of replicas may start at once, on nothing, on their own schema, or on a newer one; and a copy of a database is not the database.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::collections::BTreeSet;
use std::process::{Child, Stdio};

use harness::replica::sundown;
use harness::{Db, host, place, refusal, run, submit, until};
use sundown::error::Error;
use sundown::migrate::{adopt, migrate};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio_postgres::Client;
use uuid::Uuid;

async fn ids_of_functions(client: &Client) -> Vec<(String, u32)> {
    let ask = "select p.oid::regprocedure::text, p.xmin::text::bigint % 4294967296 from pg_proc p where pronamespace = 'sundown'::regnamespace order by 1";
    let rows = client.query(ask, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), u32::try_from(row.get::<_, i64>(1)).unwrap())).collect()
}

#[tokio::test]
async fn twelve_replicas_start_together_on_an_empty_database() {
    let db = Db::empty().await;
    let starts: Vec<_> = (0..12)
        .map(|_| {
            let config = db.config();
            tokio::spawn(async move { migrate(&config, false).await })
        })
        .collect();
    for start in starts {
        start.await.unwrap().unwrap();
    }
    let client = db.client().await;
    let once: i64 = client.query_one("select count(*) from sundown.installation", &[]).await.unwrap().get(0);
    assert_eq!(once, 1);
    let (applied, versions): (i64, i64) = {
        let row = client.query_one("select count(*), count(distinct version) from sundown.migration", &[]).await.unwrap();
        (row.get(0), row.get(1))
    };
    assert_eq!(applied, versions, "each migration once");
    submit(&client, "").await;
    db.sql(1).await;
}

#[tokio::test]
async fn a_start_that_has_nothing_to_do_takes_no_lock() {
    let db = Db::new().await;
    let (holder, watcher) = (db.client().await, db.client().await);
    let before = ids_of_functions(&watcher).await;
    // Somebody migrates, or hangs while migrating: whoever needs nothing does not wait for that.
    holder.execute("select pg_advisory_lock(hashtextextended('sundown migrate', 0))", &[]).await.unwrap();
    holder.batch_execute("begin; lock table sundown.migration, sundown.installation in share row exclusive mode").await.unwrap();
    migrate(&db.config(), false).await.unwrap();
    assert_eq!(ids_of_functions(&watcher).await, before, "nothing was applied");
}

#[tokio::test]
async fn whoever_must_migrate_waits_for_the_one_that_does() {
    let db = Db::new().await;
    let (holder, watcher) = (db.client().await, db.client().await);
    let before = ids_of_functions(&watcher).await;
    holder.execute("select pg_advisory_lock(hashtextextended('sundown migrate', 0))", &[]).await.unwrap();
    let config = db.config();
    let waiting = tokio::spawn(async move { migrate(&config, true).await });
    // It has asked for the lock at least twice, and was not given it.
    let asked = "select count(*) from pg_stat_activity where datname = current_database() and query like '%sundown migrate%' and pid not in (pg_backend_pid(), $1)";
    let holder_pid: i32 = holder.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    while watcher.query_one(asked, &[&holder_pid]).await.unwrap().get::<_, i64>(0) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(ids_of_functions(&watcher).await, before);
    let waits: i64 = watcher
        .query_one("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(waits, 0, "polled: a session that waits for a lock holds a snapshot");
    holder.execute("select pg_advisory_unlock_all()", &[]).await.unwrap();
    waiting.await.unwrap().unwrap();
    assert_ne!(ids_of_functions(&watcher).await, before);
}

/// Whoever makes what is so called stops there, in the middle of its transaction, until this session lets go of the lock.
async fn stopped_at(client: &Client, what: &str) {
    let stop = format!(
        "create function public.stops() returns event_trigger language plpgsql as $$
         begin
             if exists (select from pg_event_trigger_ddl_commands() c where c.object_identity like '{what}') then
                 perform pg_advisory_xact_lock(4711);
             end if;
         end $$;
         create event trigger stops on ddl_command_end execute function public.stops();
         select pg_advisory_lock(4711)"
    );
    client.batch_execute(&stop).await.unwrap();
}

fn migrating(db: &Db) -> Child {
    let mut command = sundown();
    command.arg("migrate").env("SUNDOWN_DATABASE_URL", db.url());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Everything that a migration makes, in words.
async fn schema(client: &Client) -> BTreeSet<String> {
    let ask = "select format('column %s.%s %s %s', table_name, column_name, data_type, column_default) from information_schema.columns where table_schema = 'sundown'
               union all select format('function %s %s', p.oid::regprocedure, md5(p.prosrc)) from pg_proc p where pronamespace = 'sundown'::regnamespace
               union all select format('constraint %s %s', c.conrelid::regclass, c.conname) from pg_constraint c where connamespace = 'sundown'::regnamespace
               union all select format('trigger %s %s', t.tgrelid::regclass, t.tgname) from pg_trigger t where not tgisinternal
               union all select format('index %s', indexdef) from pg_indexes where schemaname = 'sundown'
               union all select format('migration %s %s', version, name) from sundown.migration
               union all select format('installations %s %s', count(*), max(fingerprint)) from sundown.installation";
    client.query(ask, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Half of the tables, the views, half of the functions; then the process dies, or its connection does.
#[tokio::test]
async fn a_migration_that_dies_at_any_step_is_done_by_the_next_two_at_once() {
    let whole = Db::empty().await;
    migrate(&whole.config(), false).await.unwrap();
    let whole = schema(&whole.client().await).await;
    let waits =
        "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and wait_event = 'advisory'";
    for what in ["sundown.event", "sundown.overdue", "sundown.terminate(%"] {
        for the_process_dies in [true, false] {
            let db = Db::empty().await;
            let client = db.client().await;
            stopped_at(&client, what).await;
            let mut dies = migrating(&db);
            until("it has come so far", async || client.query_opt(waits, &[]).await.unwrap().is_some()).await;
            if the_process_dies {
                dies.kill().unwrap();
            } else {
                client.execute(&format!("select pg_terminate_backend(pid) from ({waits}) stopped"), &[]).await.unwrap();
            }
            let status = tokio::task::spawn_blocking(move || dies.wait()).await.unwrap().unwrap();
            assert!(!status.success(), "{what}: {status}");
            client.batch_execute("drop event trigger stops; select pg_advisory_unlock_all()").await.unwrap();
            let config = db.config();
            let (one, other) = tokio::join!(migrate(&config, false), migrate(&config, false));
            one.and(other).unwrap_or_else(|error| panic!("{what}: {error}"));
            let made = schema(&client).await;
            assert_eq!(made.symmetric_difference(&whole).collect::<Vec<_>>(), Vec::<&String>::new(), "{what}");
            submit(&client, "").await;
            db.sql(1).await;
        }
    }
}

#[tokio::test]
async fn a_database_that_falls_silent_holds_up_no_start() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = format!("postgres://nobody@{}/nothing", listener.local_addr().unwrap()).parse().unwrap();
    let (result, _open) = tokio::join!(migrate(&config, false), async {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Lets everybody in, is ready for a question, and answers none.
        stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await.unwrap();
        stream
    });
    assert!(matches!(result, Err(Error::Unavailable(_))), "{result:?}");
}

#[tokio::test]
async fn migrate_applies_the_functions_again() {
    let db = Db::new().await;
    let client = db.client().await;
    let body = "select prosrc from pg_proc where oid = 'sundown.terminate'::regproc";
    let good: String = client.query_one(body, &[]).await.unwrap().get(0);
    client
        .batch_execute(
            "create or replace function sundown.terminate(id uuid, actor text default session_user, notify text default 'auto', at timestamptz default null)
             returns text language sql as 'select ''damaged'''",
        )
        .await
        .unwrap();
    client.batch_execute("drop trigger written_once on sundown.agent_outcome").await.unwrap();
    let id = submit(&client, "").await;
    migrate(&db.config(), true).await.unwrap();
    assert_eq!(client.query_one(body, &[]).await.unwrap().get::<_, String>(0), good);
    let state: String = client.query_one("select sundown.terminate($1)", &[&id]).await.unwrap().get(0);
    assert_eq!(state, "expired", "and its data is as it was");
    let error = client.execute("update sundown.agent_outcome set error = 'edited' where id = $1", &[&id]).await.unwrap_err();
    assert_eq!(refusal(&error).1, "written_once", "guards too");
}

#[tokio::test]
async fn functions_that_changed_are_applied_at_a_start() {
    let db = Db::new().await;
    let client = db.client().await;
    let before = ids_of_functions(&client).await;
    client.execute("update sundown.installation set release = '0.0.1', fingerprint = 'of an older release'", &[]).await.unwrap();
    migrate(&db.config(), false).await.unwrap();
    let after = ids_of_functions(&client).await;
    assert!(before.iter().zip(&after).all(|(before, after)| before.0 == after.0 && before.1 != after.1));
    let release: String = client.query_one("select release from sundown.installation", &[]).await.unwrap().get(0);
    assert_eq!(release, env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn a_previous_release_starts_on_a_newer_database_and_leaves_it_alone() {
    for newer in [
        "update sundown.installation set release = '99.0.0', fingerprint = 'of a newer release'",
        "insert into sundown.migration (version, name, applied_on, checksum) values (999, 'of_a_newer_release', '2026-01-01T00:00:00Z', '1')",
    ] {
        let db = Db::new().await;
        let client = db.client().await;
        client.batch_execute(newer).await.unwrap();
        let standing = "select release, fingerprint from sundown.installation";
        let before = (ids_of_functions(&client).await, client.query_one(standing, &[]).await.unwrap().get::<_, String>(1));
        for always in [false, true] {
            migrate(&db.config(), always).await.unwrap();
            let after = (ids_of_functions(&client).await, client.query_one(standing, &[]).await.unwrap().get::<_, String>(1));
            assert_eq!(after, before, "{newer}");
        }
        // And it works there.
        let sql = db.sql(1).await;
        let host = host(&sql, 1).await;
        let id = submit(&client, "").await;
        assert_eq!(run(&sql, host, None).await.0, id);
    }
}

#[tokio::test]
async fn rolled_back_a_submission_never_was() {
    let db = Db::new().await;
    let (sql, mut client) = (db.sql(1).await, db.client().await);
    let host = host(&sql, 10).await;
    let count = "select (select count(*) from sundown.agent) + (select count(*) from sundown.agent_live) + (select count(*) from sundown.agent_secret)
                      + (select count(*) from sundown.event) + (select count(*) from sundown.agent_key)";
    let change = client.transaction().await.unwrap();
    change.execute("select sundown.submit(image => 'busybox', env => '{\"A\": \"b\"}', key => 'k')", &[]).await.unwrap();
    assert_eq!(change.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 5);
    assert!(
        matches!(sql.place(host, 1, 16, harness::START, None).await.unwrap(), sundown::sql::work::Placed::Some(none) if none.is_empty())
    );
    change.rollback().await.unwrap();
    assert_eq!(client.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 0);
    // Its key is free.
    submit(&client, "key => 'k', ttl => '7s'").await;
}

#[tokio::test]
async fn concurrent_submissions_under_one_key_are_one_agent() {
    let db = Db::new().await;
    let submissions: Vec<_> = {
        let mut tasks = Vec::new();
        for _ in 0..12 {
            let client = db.client().await;
            tasks.push(tokio::spawn(async move { submit(&client, "key => 'k', command => '{sleep,1}'").await }));
        }
        tasks
    };
    let mut ids = BTreeSet::new();
    for submission in submissions {
        ids.insert(submission.await.unwrap());
    }
    assert_eq!(ids.len(), 1);
    let client = db.client().await;
    let agents: i64 = client.query_one("select count(*) from sundown.agent", &[]).await.unwrap().get(0);
    assert_eq!(agents, 1);
    let other = client.query_one("select sundown.submit(image => 'busybox', key => 'k', command => '{sleep,2}')", &[]).await.unwrap_err();
    assert_eq!(refusal(&other), ("SD409".to_owned(), "key_reused".to_owned()));
    // Another tenant's key is another key.
    assert!(!ids.contains(&submit(&client, "key => 'k', command => '{sleep,1}', tenant => 'other'").await));
}

#[tokio::test]
async fn a_request_is_repeated_safely_though_defaults_bounds_and_sessions_have_changed() {
    let db = Db::new().await;
    let (client, sql) = (db.client().await, db.sql(1).await);
    let row = client.query_one("select (now() at time zone 'UTC' + interval '1 day')::text || 'Z'", &[]).await.unwrap();
    let requests =
        ["key => 'a'".to_owned(), format!("key => 'b', max_ttl => '2 h', grace => '1.5 s', run_at => '{}'", row.get::<_, &str>(0))];
    let mut first = Vec::new();
    for with in &requests {
        first.push(submit(&client, with).await);
    }
    sql.settings(Some(600.0), Some(3600.0), None, None).await.unwrap().unwrap();
    client.batch_execute("set timezone = 'Asia/Tokyo'; set intervalstyle = 'sql_standard'").await.unwrap();
    for (with, first) in requests.iter().zip(first) {
        assert_eq!(submit(&client, with).await, first, "{with}");
    }
    for (with, code) in [
        ("key => 'c', max_ttl => '2 h'", "above_ceiling"),
        ("key => 'b', max_ttl => '2 h'", "key_reused"),
        ("key => ''", "invalid_key"),
        ("key => 'd', tenant => repeat('x', 9999)", "invalid_tenant"),
        ("key => 'd', run_at => 'infinity'", "invalid_run_at"),
    ] {
        let error = client.query_one(&format!("select sundown.submit(image => 'busybox', {with})"), &[]).await.unwrap_err();
        assert_eq!(refusal(&error).1, code, "{with}");
    }
    assert_eq!(db.count("select count(*) from sundown.agent_key").await, 2, "a refusal leaves no key");
}

#[tokio::test]
async fn a_key_whose_submission_rolled_back_goes_to_the_one_that_waited() {
    let db = Db::new().await;
    let (mut first, second, watcher) = (db.client().await, db.client().await, db.client().await);
    let change = first.transaction().await.unwrap();
    let never: Uuid = change.query_one("select sundown.submit(image => 'busybox', key => 'k')", &[]).await.unwrap().get(0);
    let waiting = tokio::spawn(async move { submit(&second, "key => 'k'").await });
    let waits = "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')";
    while !watcher.query_one(waits, &[]).await.unwrap().get::<_, bool>(0) {
        tokio::task::yield_now().await;
    }
    change.rollback().await.unwrap();
    let id = waiting.await.unwrap();
    assert_ne!(id, never);
    let known: i64 = watcher.query_one("select count(*) from sundown.agent where id = $1", &[&id]).await.unwrap().get(0);
    assert_eq!(known, 1);
}

#[tokio::test]
async fn a_key_is_forgotten_after_a_day() {
    let db = Db::new().await;
    let client = db.client().await;
    let at = async |shift: &str| -> Uuid {
        client
            .query_one(
                &format!("select sundown.submit(image => 'busybox', key => 'k', at => date_trunc('day', now()) + interval '{shift}')"),
                &[],
            )
            .await
            .unwrap()
            .get(0)
    };
    let first = at("0").await;
    assert_eq!(at("24 hours").await, first, "at its end");
    assert_ne!(at("24 hours 1 millisecond").await, first, "after it");
}

#[tokio::test]
async fn a_copy_is_not_the_database_until_it_is_adopted() {
    let db = Db::new().await;
    let installation = db.sql(1).await.installation();
    let copy = {
        // Nobody may be connected while it is copied; the pool of the line above closes when it is dropped.
        db.cloned().await
    };
    let client = copy.client().await;
    assert!(!client.query_one("select sundown.bound()", &[]).await.unwrap().get::<_, bool>(0));
    // A pool that expects the installation does not take the copy for it, though it has the same id.
    let sql = sundown::sql::Sql::new(&copy.config(), 1, std::time::Duration::from_secs(5)).unwrap();
    sql.expect(installation);
    assert!(matches!(sql.next_due(&[0], None, None).await, Err(sundown::error::Error::Unavailable(_))));
    let known = sundown::sql::Sql::new(&copy.config(), 1, std::time::Duration::from_secs(5)).unwrap();
    let id = submit(&client, "").await;
    assert!(known.known(&[id]).await.unwrap().is_empty(), "it says nothing of any container");

    assert_eq!(adopt(&copy.config(), false).await.unwrap(), installation, "the original is gone: the same installation");
    let known = copy.sql(1).await.known(&[id]).await.unwrap();
    assert!(known[&id].known && known[&id].live, "{known:?}");
}

#[tokio::test]
async fn a_connection_to_another_installation_is_refused() {
    let (ours, theirs) = (Db::new().await, Db::new().await);
    adopt(&theirs.config(), true).await.unwrap();
    let sql = sundown::sql::Sql::new(&theirs.config(), 1, std::time::Duration::from_secs(5)).unwrap();
    sql.expect(ours.sql(1).await.installation());
    assert!(matches!(sql.gauges().await, Err(sundown::error::Error::Unavailable(_))));
}

#[tokio::test]
async fn adopted_as_somebody_new_a_copy_ends_what_it_believed_alive() {
    let db = Db::new().await;
    let (before, placed, running, waiting) = {
        let (sql, client) = (db.sql(1).await, db.client().await);
        let host = host(&sql, 10).await;
        for _ in 0..3 {
            submit(&client, "").await;
        }
        let (running, _) = run(&sql, host, None).await;
        let (placed, _) = place(&sql, host, None).await;
        let waiting: Uuid = client.query_one("select id from sundown.agent_live where host = 0", &[]).await.unwrap().get(0);
        (sql.installation(), placed, running, waiting)
    };
    let copy = db.cloned().await;
    let new = adopt(&copy.config(), true).await.unwrap();
    assert_ne!(new, before, "the containers of the original are somebody else's");
    let client = copy.client().await;
    let live: i64 = client.query_one("select count(*) from sundown.agent_live", &[]).await.unwrap().get(0);
    assert_eq!(live, 0, "the original runs them, or will");
    for (id, state, reason) in [(placed, "failed", "host_lost"), (running, "failed", "host_lost"), (waiting, "expired", "terminated")] {
        let row = client.query_one("select state, reason from sundown.agent_outcome where id = $1", &[&id]).await.unwrap();
        assert_eq!((row.get(0), row.get(1)), (state, reason));
    }
    let hosts: i64 = client.query_one("select count(*) from sundown.hosts", &[]).await.unwrap().get(0);
    assert_eq!(hosts, 0);
    // The original lives on.
    let (id, bound) = db.sql(1).await.identity().await.unwrap().unwrap();
    assert_eq!((id, bound), (before, true));
    let live: i64 = db.client().await.query_one("select count(*) from sundown.agent_live", &[]).await.unwrap().get(0);
    assert_eq!(live, 3);
}
