//! Every statement is known, used and understood by the migrated schema; everything in it is explained; and lists stay walks along an
//! index beside a million agents that have ended.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use harness::Db;
use serde_json::Value;
use sundown::error::Error;
use sundown::sql::STATEMENTS;
use tokio_postgres::Client;
use uuid::Uuid;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below a directory with that ending.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
    found
}

#[tokio::test]
async fn every_statement_prepares_against_the_schema() {
    let db = Db::new().await;
    let client = db.client().await;
    for (name, text) in STATEMENTS {
        client.prepare(text).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
}

#[tokio::test]
async fn a_row_that_is_not_what_we_expect_is_a_defect_and_a_connection_that_is_gone_is_not() {
    let db = Db::new().await;
    let client = db.client().await;
    let row = client.query_one("select 'word' as n", &[]).await.unwrap();
    for error in [row.try_get::<_, i32>("n").unwrap_err(), row.try_get::<_, &str>("m").unwrap_err()] {
        assert!(matches!(Error::from(error), Error::Internal(_)));
    }
    let killed = client.execute("select pg_terminate_backend(pg_backend_pid())", &[]).await.unwrap_err();
    assert!(matches!(Error::from(killed), Error::Unavailable(_)));
    let gone = client.execute("select 1", &[]).await.unwrap_err();
    assert!(matches!(Error::from(gone), Error::Unavailable(_)));
    let refused = tokio_postgres::connect("postgres://nobody@127.0.0.1:1/nothing", tokio_postgres::NoTls).await.err().unwrap();
    assert!(matches!(Error::from(refused), Error::Unavailable(_)));
}

#[test]
fn every_file_of_sql_is_a_statement_and_is_used_once() {
    let on_disk: BTreeSet<String> = std::fs::read_dir(root().join("sql"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let known: Vec<String> = STATEMENTS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(known.iter().cloned().collect::<BTreeSet<_>>(), on_disk);
    assert_eq!(known.len(), on_disk.len(), "none twice");

    let mut uses: BTreeMap<String, usize> = known.into_iter().map(|name| (name, 0)).collect();
    for file in files(&root().join("src"), "rs") {
        let text = std::fs::read_to_string(&file).unwrap();
        // What the macro declares is not a use.
        let body = match text.split_once("\nstatements! {") {
            Some((before, after)) => format!("{before}{}", after.split_once("\n}\n").unwrap().1),
            None => text,
        };
        for word in body.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
            if word.chars().all(|c| c.is_ascii_uppercase() || c == '_')
                && let Some(count) = uses.get_mut(&word.to_lowercase())
                && file.starts_with(root().join("src/sql")) | file.ends_with("src/sql.rs")
            {
                *count += 1;
            }
        }
    }
    // Asked by the check of each new connection too: it has no pool to go through.
    let expected = |name: &str| if name == "identity" { 2 } else { 1 };
    let odd: Vec<_> = uses.iter().filter(|(name, count)| **count != expected(name)).collect();
    assert!(odd.is_empty(), "used not exactly once: {odd:?}");
}

#[test]
fn every_file_of_sql_says_what_it_is_for() {
    for (name, text) in STATEMENTS {
        assert!(text.starts_with("-- "), "{name} opens with its purpose");
        let head: String = text.lines().take_while(|line| line.starts_with("--")).collect();
        let params = (1..20).take_while(|n| text.contains(&format!("${n}"))).count();
        for n in 1..=params {
            assert!(head.contains(&format!("${n}")) || head.contains("parameters as"), "{name} does not explain ${n}");
        }
    }
}

#[tokio::test]
async fn every_table_view_column_and_function_is_explained() {
    let db = Db::new().await;
    let client = db.client().await;
    let rows = client
        .query(
            "select c.oid::regclass::text from pg_class c
              where c.relnamespace = 'sundown'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition and c.relname <> 'migration'
                and obj_description(c.oid, 'pg_class') is null
             union all
             select format('%s.%s', c.oid::regclass, a.attname) from pg_class c join pg_attribute a on a.attrelid = c.oid
              where c.relnamespace = 'sundown'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition and c.relname <> 'migration'
                and a.attnum > 0 and not a.attisdropped and col_description(c.oid, a.attnum) is null
             union all
             select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'sundown'::regnamespace and obj_description(p.oid, 'pg_proc') is null",
            &[],
        )
        .await
        .unwrap();
    let silent: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(silent, Vec::<String>::new());
}

/// A million agents that have ended and two thousand that live, over the thirteen weeks that there are.
async fn a_million(client: &Client) {
    client
        .batch_execute(
            "set session_replication_role = replica; set synchronous_commit = off; set work_mem = '256MB'; set maintenance_work_mem = '256MB';
             create temp table many as
                select sundown.uuidv7(now() + n * interval '7 s') as id, now() + n * interval '7 s' as at, n, n > 1000000 as lives from generate_series(1, 1002000) n;
             insert into sundown.host (uuid, name, endpoint, seen_at) select gen_random_uuid(), 'host ' || n, '', now() from generate_series(1, 4) n;
             insert into sundown.host_slot (host, capacity, used) select id, 1000, 500 from sundown.host;
             insert into sundown.agent (id, tenant, image, command, env_keys, labels, cpus, memory, pids, network, ttl, max_ttl, grace, start_timeout, created_at)
                select id, 'default', 'busybox', '{true}', '{}', case when n % 5000 = 0 then '{\"tier\": \"all\", \"team\": \"blue\"}'::jsonb else '{\"tier\": \"all\"}' end, 1, 1e8, 100, 'none', '1h', '1d', '10s', '60s', at from many;
             insert into sundown.agent_outcome (id, state, reason, host, exit_code, ttl, attempts, epoch, finished_at)
                select id, case when n % 500 = 0 then 'failed' else 'succeeded' end, 'exited', 1 + n % 4, case when n % 500 = 0 then 3 else 0 end, '1h', 1, 3, at
                  from many where not lives;
             -- Of those that live, few are in each other state; a hundred wait.
             insert into sundown.agent_live (id, due_at, expires_at, host, epoch, state, ttl, max_ttl, grace, start_timeout, placed_at, started_at, container_id)
                select id, at + '1h', at + '1h', case when n % 20 = 0 then 0 else 1 + n % 4 end, 1, case when n % 20 = 0 then 'pending' else 'running' end,
                       '1h', '1d', '10s', '60s', case when n % 20 <> 0 then at end, case when n % 20 <> 0 then at end, case when n % 20 <> 0 then 'c' || n end
                  from many where lives;
             create table mine as select id from sundown.agent_outcome order by id limit 30;
             reset all",
        )
        .await
        .unwrap();
    // As autovacuum leaves them.
    client.batch_execute("vacuum analyze mine, sundown.agent, sundown.agent_live, sundown.agent_outcome, sundown.host").await.unwrap();
}

/// A plan that was executed: its nodes, and how many blocks it touched.
async fn explained(client: &Client, statement: &str) -> (Vec<Value>, i64) {
    let row = client.query_one(&format!("explain (analyze, buffers, format json) {statement}"), &[]).await.unwrap();
    let plan: Value = row.get(0);
    let root = plan[0]["Plan"].clone();
    let blocks = root["Shared Hit Blocks"].as_i64().unwrap() + root["Shared Read Blocks"].as_i64().unwrap();
    let (mut nodes, mut queue) = (Vec::new(), vec![root]);
    while let Some(node) = queue.pop() {
        queue.extend(node["Plans"].as_array().into_iter().flatten().cloned());
        nodes.push(node);
    }
    (nodes, blocks)
}

/// What reads a week of history as a whole, where there is anything in it. The live table is small whatever happened.
fn scans(nodes: &[Value]) -> Vec<&str> {
    nodes
        .iter()
        .filter(|node| node["Node Type"].as_str().is_some_and(|kind| kind.contains("Seq Scan")))
        .filter(|node| node["Shared Hit Blocks"].as_i64() > Some(0) || node["Shared Read Blocks"].as_i64() > Some(0))
        .filter_map(|node| node["Relation Name"].as_str())
        .filter(|table| table.starts_with("agent_") && *table != "agent_live")
        .collect()
}

/// A statement of ours with its parameters written out.
fn with_values(name: &str, values: &[&str]) -> String {
    let mut text = STATEMENTS.iter().find(|(stem, _)| *stem == name).unwrap().1.to_owned();
    for (n, value) in values.iter().enumerate().rev() {
        text = text.replace(&format!("${}", n + 1), value);
    }
    text
}

#[tokio::test]
async fn lists_are_walks_along_an_index_beside_a_million() {
    let db = Db::new().await;
    let client = db.client().await;
    a_million(&client).await;
    let row = client.query_one("select (array_agg(id order by id))[500000] from sundown.agent_outcome", &[]).await.unwrap();
    let middle: Uuid = row.get(0);
    let live: Uuid = client.query_one("select id from sundown.agent_live where host = 2 limit 1", &[]).await.unwrap().get(0);

    for (what, statement, rows) in [
        ("the newest fifty", "select * from sundown.agents order by id desc limit 50".to_owned(), 50),
        ("running now", "select * from sundown.agents where state = 'running' order by id desc limit 50".to_owned(), 50),
        ("the newest that failed", "select * from sundown.agents where state = 'failed' order by id desc limit 50".to_owned(), 50),
        ("one that has ended", format!("select * from sundown.agents where id = '{middle}'"), 1),
        ("one that lives", format!("select * from sundown.agents where id = '{live}'"), 1),
        ("a page", format!("select * from sundown.agents where id < '{middle}' order by id desc limit 50"), 50),
        (
            "a page by state",
            format!("select * from sundown.agents where state = 'failed' and id < '{middle}' order by id desc limit 50"),
            50,
        ),
        ("list_agents, the first page", with_values("list_agents", &["null", "null", "50"]), 50),
        ("list_agents, by state", with_values("list_agents", &["'failed'", "null", "50"]), 50),
        ("list_agents, a page", with_values("list_agents", &["null", &format!("'{middle}'"), "50"]), 50),
        ("list_labelled, a rare one", with_values("list_labelled", &["null", "null", "50", r#"'{"team": "blue"}'"#]), 50),
        ("list_labelled, a page", with_values("list_labelled", &["null", &format!("'{middle}'"), "50", r#"'{"team": "blue"}'"#]), 50),
        ("a join by id", "select a.state from mine join sundown.agents a using (id)".to_owned(), 30),
        ("get_agent", with_values("get_agent", &[&format!("'{middle}'")]), 1),
        ("log_of", with_values("log_of", &[&format!("'{middle}'")]), 1),
        ("accepted", with_values("accepted", &[&format!("'{middle}'"), "'1'"]), 1),
    ] {
        let (nodes, blocks) = explained(&client, &statement).await;
        assert_eq!(nodes[0]["Actual Rows"].as_f64(), Some(f64::from(rows)), "{what}");
        assert_eq!(scans(&nodes), Vec::<&str>::new(), "{what} reads a whole table");
        // Fifty rows, each looked up in every week; a walk over all of history is 17,000 and more.
        assert!(blocks < 8000, "{what} touches {blocks} blocks");
    }

    // By labels that few carry, that everybody does and that nobody does, in each state.
    for (labels, none, states) in [
        (
            r#"{"tier": "all"}"#,
            50,
            [("pending", 50), ("running", 50), ("terminating", 0), ("succeeded", 50), ("failed", 50), ("expired", 0)],
        ),
        (r#"{"team": "blue"}"#, 50, [("pending", 0), ("running", 0), ("terminating", 0), ("succeeded", 0), ("failed", 50), ("expired", 0)]),
        (r#"{"no": "body"}"#, 0, [("pending", 0), ("running", 0), ("terminating", 0), ("succeeded", 0), ("failed", 0), ("expired", 0)]),
    ] {
        let states = states.map(|(state, rows)| (format!("'{state}'"), rows)).into_iter().chain([("null".to_owned(), none)]);
        for (state, rows) in states {
            let statement = with_values("list_labelled", &[&state, "null", "50", &format!("'{labels}'")]);
            let (nodes, blocks) = explained(&client, &statement).await;
            assert_eq!(nodes[0]["Actual Rows"].as_f64(), Some(f64::from(rows)), "{labels}, {state}");
            assert_eq!(scans(&nodes), Vec::<&str>::new(), "{labels}, {state} reads a whole table");
            assert!(blocks < 10_000, "{labels}, {state} touches {blocks} blocks");
        }
    }

    // The scheduler's own: each probes its index by host and instant.
    for (what, statement) in [
        (
            "claim_due",
            with_values(
                "claim_due",
                &["array[1, 2]", "array[0, 0.25]::float8[]", "1", "null::timestamptz", "15", "2", "(now() + interval '90 days')"],
            ),
        ),
        ("place", with_values("place", &["3", "1", "16", "15::float8", "(now() + interval '90 days')"])),
        ("next_due", with_values("next_due", &["array[0, 1, 2, 3]", "null::timestamptz", "now()"])),
        ("next_due, above the watermark", with_values("next_due", &["array[0, 1, 2, 3]", "now()", "now()"])),
    ] {
        let (nodes, blocks) = explained(&client, &statement).await;
        let probes: Vec<_> = nodes.iter().filter(|node| node["Index Name"] == "agent_live_due").collect();
        assert!(!probes.is_empty(), "{what} does not use agent_live_due: {nodes:#?}");
        for probe in probes {
            let condition = probe["Index Cond"].as_str().unwrap_or_default();
            assert!(condition.contains("host"), "{what}: {condition}");
            assert!(what == "next_due" || condition.contains("due_at"), "{what}: {condition}");
        }
        assert_eq!(scans(&nodes), Vec::<&str>::new(), "{what} reads a whole table");
        assert!(blocks < 20_000, "{what} touches {blocks} blocks");
    }
}

/// Rows of agents that a transaction reads to end one of them.
async fn read_to_end_one(client: &mut Client) -> i64 {
    let one: Uuid = client.query_one("select id from sundown.agent_live order by id desc limit 1", &[]).await.unwrap().get(0);
    let transaction = client.transaction().await.unwrap();
    let count = "select coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::int8 from pg_stat_xact_user_tables where relname like 'agent%'";
    let before: i64 = transaction.query_one(count, &[]).await.unwrap().get(0);
    transaction.query_one("select sundown.terminate($1)", &[&one]).await.unwrap();
    let after: i64 = transaction.query_one(count, &[]).await.unwrap().get(0);
    transaction.commit().await.unwrap();
    after - before
}

#[tokio::test]
async fn ending_one_agent_reads_that_one_whatever_there_was_when_its_session_planned_it() {
    /// A session keeps a plan after this many.
    const PLANS: usize = 8;
    let db = Db::new().await;
    let other = db.client().await;
    // Whoever analyses the tables has every session plan anew.
    let tables = "select c.oid::regclass::text from pg_class c where c.relnamespace = 'sundown'::regnamespace and c.relkind = 'r' and c.relname like 'agent%'";
    for table in other.query(tables, &[]).await.unwrap() {
        let table: &str = table.get(0);
        other.batch_execute(&format!("alter table {table} set (autovacuum_enabled = off)")).await.unwrap();
    }
    let submit = "select sundown.submit('busybox') from generate_series(1, 4000)";

    let mut early = db.client().await;
    for _ in 0..PLANS {
        early.batch_execute("select sundown.submit('busybox'); select sundown.terminate(id) from sundown.agent_live").await.unwrap();
    }
    other.batch_execute(submit).await.unwrap();
    other.batch_execute("select sundown.terminate(id) from (select id from sundown.agent_live limit 2000) l").await.unwrap();
    let read = read_to_end_one(&mut early).await;
    assert!(read < 40, "planned while there was nothing: {read} rows");

    other.batch_execute("analyze sundown.agent, sundown.agent_live, sundown.agent_outcome").await.unwrap();
    let mut busy = db.client().await;
    for _ in 0..PLANS {
        let many = "select sundown.terminate_many(array_agg(id), array_agg('somebody'::text)) from (select id from sundown.agent_live limit 150) l";
        busy.batch_execute(many).await.unwrap();
    }
    let read = read_to_end_one(&mut busy).await;
    assert!(read < 40, "planned for many at a time: {read} rows");
}
