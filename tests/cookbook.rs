//! The SQL cookbook runs as written, and its answers are right: every block of `docs/sql-cookbook.md`, against a database in which
//! agents are in every state. They are brought there by the statements that replicas use, without Docker.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::time::Duration;

use sundown::docker::Tail;
use sundown::migrate::migrate;
use sundown::sql::Sql;
use sundown::sql::work::{Claim, Facts, Placed};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use uuid::Uuid;

const COOKBOOK: &str = include_str!("../docs/sql-cookbook.md");
const LEASE: Duration = Duration::from_secs(15);

/// A question and the block that answers it.
struct Recipe {
    title: &'static str,
    sql: &'static str,
}

/// Every block of SQL under the heading before it.
fn recipes() -> Vec<Recipe> {
    let (mut recipes, mut title) = (Vec::new(), "");
    let mut rest = COOKBOOK;
    while let Some((line, below)) = rest.split_once('\n') {
        rest = below;
        if let Some(heading) = line.strip_prefix("### ") {
            title = heading.split_once(". ").expect("a recipe has a number").1;
        } else if line == "```sql" {
            let (sql, below) = rest.split_once("\n```\n").expect("a block ends");
            recipes.push(Recipe { title, sql });
            rest = below;
        }
    }
    recipes
}

/// A migrated database of this test's own.
struct Db {
    admin: Config,
    config: Config,
    name: String,
}

impl Db {
    async fn new() -> Self {
        let url = std::env::var("SUNDOWN_TEST_DATABASE_URL").expect("SUNDOWN_TEST_DATABASE_URL names a superuser; scripts/test sets it");
        let admin: Config = url.parse().unwrap();
        let name = format!("cookbook_{}", Uuid::new_v4().simple());
        connect(&admin).await.batch_execute(&format!("create database {name}")).await.unwrap();
        let mut config = admin.clone();
        config.dbname(&name);
        migrate(&config, false).await.unwrap();
        Self { admin, config, name }
    }

    async fn drop(self) {
        connect(&self.admin).await.batch_execute(&format!("drop database {} with (force)", self.name)).await.unwrap();
    }
}

async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// What a recipe answers: its rows, values as text.
struct Answer(Vec<BTreeMap<String, Option<String>>>);

impl Answer {
    async fn of(client: &Client, sql: &str) -> Result<Self, tokio_postgres::Error> {
        let mut rows = Vec::new();
        for message in client.simple_query(sql).await? {
            if let SimpleQueryMessage::Row(row) = message {
                let columns = row.columns().iter().enumerate();
                rows.push(columns.map(|(n, column)| (column.name().to_owned(), row.get(n).map(str::to_owned))).collect());
            }
        }
        Ok(Self(rows))
    }

    /// A column's values, in order; null as "-".
    fn column(&self, name: &str) -> Vec<&str> {
        self.0.iter().map(|row| row[name].as_deref().unwrap_or("-")).collect()
    }

    /// The row in which a column has this value.
    fn row(&self, column: &str, value: &str) -> &BTreeMap<String, Option<String>> {
        let found = self.0.iter().find(|row| row[column].as_deref() == Some(value));
        found.unwrap_or_else(|| panic!("no row with {column} = {value} in {:?}", self.0))
    }

    /// Some columns of that row, null as "-".
    fn at(&self, column: &str, value: &str, wanted: &[&str]) -> Vec<&str> {
        let row = self.row(column, value);
        wanted.iter().map(|name| row[*name].as_deref().unwrap_or("-")).collect()
    }
}

/// Brings agents to where the recipes look for them.
struct Scene {
    client: Client,
    sql: Sql,
    replica: i32,
    host: i32,
}

impl Scene {
    async fn set(config: &Config) -> Self {
        let client = connect(config).await;
        let sql = Sql::new(config, 2, Duration::from_secs(5)).unwrap();
        let replica = sql.register_replica("box-1", "0.1.0", None).await.unwrap();
        let host = sql.register_host(Uuid::new_v4(), "north", "unix:///run/north.sock", Some(50), None).await.unwrap();
        let full = sql.register_host(Uuid::new_v4(), "south", "unix:///run/south.sock", Some(1), None).await.unwrap();
        let closed = sql.register_host(Uuid::new_v4(), "west", "unix:///run/west.sock", Some(5), None).await.unwrap();
        assert!(sql.cordon(closed, true).await.unwrap());
        sql.tick(replica, &[host, full, closed], LEASE, true, None, None).await.unwrap();
        let scene = Self { client, sql, replica, host: full };
        scene.running("image => 'busybox:1.36', name => 'fills-south', ttl => '1 h'").await;
        Self { host, ..scene }
    }

    /// Submits with these arguments of `sundown.submit`; the agent waits.
    async fn submitted(&self, arguments: &str) -> Uuid {
        self.client.query_one(&format!("select sundown.submit({arguments}, notify => 'never')"), &[]).await.unwrap().get(0)
    }

    async fn placed(&self, arguments: &str) -> Claim {
        let id = self.submitted(arguments).await;
        let Placed::Some(placed) = self.sql.place(self.host, self.replica, 1, LEASE, None).await.unwrap() else {
            panic!("the host has no room");
        };
        assert_eq!(placed.len(), 1);
        let (agent, epoch, _) = &placed[0];
        assert_eq!(*agent, id, "somebody else waited before it");
        Claim {
            id,
            epoch: *epoch,
            host: self.host,
            state: "pending".to_owned(),
            container_id: None,
            attempts: 1,
            started: false,
            signalled: false,
            killed: false,
            observed: false,
            grace: Duration::ZERO,
            lease: Duration::ZERO,
            start_timed_out: false,
            grace_over: false,
        }
    }

    async fn running(&self, arguments: &str) -> Claim {
        let claim = self.placed(arguments).await;
        assert!(self.sql.record_container(claim.id, claim.epoch, &format!("container-of-{}", claim.id)).await.unwrap());
        assert!(self.sql.running(claim.id, claim.epoch, None).await.unwrap().is_some());
        claim
    }

    /// Runs and then ends in this way.
    async fn ended(&self, arguments: &str, facts: Facts) -> Uuid {
        let claim = self.running(arguments).await;
        self.finish(claim, facts).await
    }

    /// Runs, is ended by Sundown, and is gone.
    async fn stopped(&self, arguments: &str, how: &str) -> Uuid {
        let claim = self.running(arguments).await;
        if how == "ttl" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        } else {
            let asked = self.client.query_one(&format!("select sundown.terminate('{}', {how})", claim.id), &[]).await.unwrap();
            assert_eq!(asked.get::<_, &str>(0), "terminating");
        }
        let claimed = self.sql.claim_due(&[(self.host, 0.0)], self.replica, None, LEASE, LEASE, None).await.unwrap();
        let claim = claimed.into_iter().find(|row| row.id == claim.id).expect("it is due");
        assert_eq!(claim.state, "terminating");
        assert_eq!(self.sql.signalling(claim.id, claim.epoch, LEASE, None).await.unwrap(), Some(false));
        assert!(self.sql.signalled(claim.id, claim.epoch, None).await.unwrap().is_some());
        self.finish(claim, Facts { exit_code: Some(143), ..facts("expired", None) }).await
    }

    async fn finish(&self, claim: Claim, facts: Facts) -> Uuid {
        let epoch = self.sql.observe(&claim, self.replica, LEASE, &facts, None).await.unwrap().expect("nobody else is at it");
        assert!(self.sql.finish(claim.id, epoch, None).await.unwrap().is_some());
        claim.id
    }

    /// Writes what no statement of ours writes, past the guards.
    async fn forge(&self, sql: &str) {
        let forged = format!("begin; set local session_replication_role = replica; {sql}; commit");
        self.client.batch_execute(&forged).await.unwrap();
    }
}

fn facts(state: &'static str, reason: Option<&'static str>) -> Facts {
    Facts { state, reason, exit_code: None, oom_killed: None, error: None, dead: None, tail: None }
}

/// The agents that the assertions name.
struct Cast {
    overdue: Uuid,
    expired: Uuid,
}

async fn populate(scene: &Scene) -> Cast {
    scene.running("image => 'busybox:1.36', name => 'runs', ttl => '30 s', labels => '{\"team\": \"blue\"}', cpus => 2").await;
    scene.running("image => 'busybox:1.36', name => 'of-acme', tenant => 'acme', ttl => '5 min'").await;
    scene.running("image => 'busybox:1.36', name => 'at-ceiling', tenant => 'acme', ttl => '5 min', max_ttl => '10 min'").await;
    scene.placed("image => 'busybox:1.36', name => 'starts', ttl => '1 h'").await;

    let log = Tail { bytes: b"first\nc\xc3\xa9 \0 last".to_vec(), truncated: false };
    scene
        .ended(
            "image => 'busybox:1.36', name => 'succeeds', labels => '{\"team\": \"blue\"}'",
            Facts { exit_code: Some(0), tail: Some(log), ..facts("succeeded", Some("exited")) },
        )
        .await;
    for _ in 0..2 {
        scene.ended("image => 'worker:2', name => 'fails'", Facts { exit_code: Some(7), ..facts("failed", Some("exited")) }).await;
    }
    let oom = Facts { exit_code: Some(137), oom_killed: Some(true), ..facts("failed", Some("oom_killed")) };
    scene.ended("image => 'hungry:1', name => 'oom', memory => 67108864", oom).await;
    scene.ended("image => 'worker:2', name => 'vanishes'", facts("failed", Some("vanished"))).await;
    let missing = scene.placed("image => 'nowhere:1', name => 'never-starts'").await;
    let error = Some("image missing: No such image: nowhere:1".to_owned());
    scene.finish(missing, Facts { error, ..facts("failed", Some("image_missing")) }).await;
    scene.stopped("image => 'busybox:1.36', name => 'by-http', ttl => '1 h'", "actor => 'http 10.0.0.9'").await;
    scene.stopped("image => 'busybox:1.36', name => 'by-hand', ttl => '1 h'", "notify => 'never'").await;
    let expired = scene.stopped("image => 'busybox:1.36', name => 'expires', ttl => '1 ms', grace => '3 s'", "ttl").await;
    // A known lateness, and the last end of all: decided after 4 ms, gone 50 ms after the SIGKILL at the end of its grace.
    scene
        .forge(&format!(
            "update sundown.agent_outcome set decided_at = expires_at + interval '4 ms', killed_at = expires_at + interval '3 s',
                    finished_at = expires_at + interval '3050 ms' where id = '{expired}'"
        ))
        .await;

    let overdue = scene.running("image => 'busybox:1.36', name => 'overdue', ttl => '1 h'").await.id;
    scene.forge(&format!("update sundown.agent_live set due_at = due_at - interval '2 h', expires_at = expires_at - interval '2 h' where id = '{overdue}'")).await;

    // Nobody is placed from here on.
    scene.submitted("image => 'busybox:1.36', name => 'waits', labels => '{\"team\": \"blue\"}', queue_timeout => '1 h'").await;
    scene.submitted("image => 'busybox:1.36', name => 'waits-too', tenant => 'acme'").await;
    scene.submitted("image => 'busybox:1.36', name => 'later', run_at => now() + interval '1 h'").await;
    Cast { overdue, expired }
}

#[tokio::test]
async fn every_recipe_of_the_cookbook_runs_and_answers_its_question() {
    let db = Db::new().await;
    let config = db.config.clone();
    let result = tokio::spawn(async move { cook(&config).await }).await;
    db.drop().await;
    if let Err(failed) = result {
        resume_unwind(failed.into_panic());
    }
}

async fn cook(config: &Config) {
    let scene = &Scene::set(config).await;
    let cast = populate(scene).await;
    let recipes = recipes();
    assert!(recipes.len() >= 20, "there are only {} recipes", recipes.len());
    let titles: Vec<&str> = recipes.iter().map(|recipe| recipe.title).collect();

    // Somebody else's transaction holds the row of the one that is overdue.
    let holder = connect(config).await;
    holder.batch_execute(&format!("begin; select from sundown.agent_live where id = '{}' for update", cast.overdue)).await.unwrap();
    let holder_pid: i32 = holder.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);

    let mut checked = 0;
    for recipe in &recipes {
        if recipe.title.starts_with("How do I give everything") {
            // Ending and extending would wait for it.
            holder.batch_execute("rollback").await.unwrap();
        }
        // A session of its own, as at a prompt: temporary tables of one recipe are not in the way of the next.
        let client = connect(config).await;
        let answer = Answer::of(&client, recipe.sql).await;
        let answer = answer.unwrap_or_else(|error| panic!("{}: {:?}", recipe.title, error.as_db_error()));
        checked += usize::from(check(recipe.title, &answer, scene, &cast, holder_pid).await);
    }
    assert!(checked >= 20, "only {checked} of these have an assertion, or were renamed: {titles:?}");
}

/// Asserts a recipe's answer. False: there is nothing to assert about it.
async fn check(title: &str, answer: &Answer, scene: &Scene, cast: &Cast, holder_pid: i32) -> bool {
    let me: String = scene.client.query_one("select session_user::text", &[]).await.unwrap().get(0);
    match title {
        "What runs now, and until when?" => {
            assert_eq!(answer.column("name"), ["overdue", "runs", "of-acme", "at-ceiling", "fills-south"]);
            assert_eq!(answer.at("name", "fills-south", &["host"]), ["south"]);
        }
        "What is due in the next minute?" => {
            assert_eq!(answer.column("name"), ["overdue", "waits", "waits-too", "starts", "runs"]);
            assert_eq!(answer.at("name", "runs", &["state", "what"]), ["running", "its deadline"]);
            assert_eq!(answer.at("name", "waits", &["what"]), ["to be placed on a host"]);
        }
        "Who waits longest for a place?" => {
            assert_eq!(answer.column("name"), ["waits", "waits-too"]);
            assert_ne!(answer.column("gives_up_at")[0], "-");
        }
        "Which hosts are full, or closed?" => {
            assert_eq!(answer.column("name"), ["south", "west"]);
            assert_eq!(answer.at("name", "south", &["used", "capacity", "cordoned"]), ["1", "1", "f"]);
        }
        "Which replicas are alive, and is any of them deaf?" => {
            assert_eq!(answer.at("name", "box-1", &["alive", "listening", "hosts"]), ["t", "t", "{north,south,west}"]);
        }
        "What is overdue, and who holds its row?" => {
            assert_eq!(answer.column("id"), [cast.overdue.to_string()]);
            assert_eq!(answer.column("held_by"), [holder_pid.to_string()]);
            assert_eq!(answer.column("session"), ["idle in transaction"]);
        }
        "Which agents carry a label?" => assert_eq!(answer.column("name"), ["waits", "runs"]),
        "Who ended what, and why, in the last hour?" => {
            assert_eq!(
                answer.column("name"),
                ["expires", "by-hand", "by-http", "never-starts", "vanishes", "oom", "fails", "fails", "succeeds"]
            );
            let columns = ["state", "reason", "actor", "exit_code", "host"];
            assert_eq!(answer.at("name", "expires", &columns), ["expired", "ttl_expired", "sundown", "143", "north"]);
            assert_eq!(answer.at("name", "by-http", &columns[..3]), ["expired", "terminated", "http 10.0.0.9"]);
            assert_eq!(answer.at("name", "succeeds", &columns[..4]), ["succeeded", "exited", "-", "0"]);
        }
        "What did people end by hand, in `psql` or from an application?" => {
            assert_eq!(answer.column("name"), ["by-hand"]);
            assert_eq!(answer.column("actor"), [me]);
        }
        "How late were deadlines kept?" => {
            assert_eq!(answer.column("ended"), ["1"]);
            assert_eq!([answer.column("decision_p99"), answer.column("gone_max")], [["4"], ["50"]]);
        }
        "How long do agents wait for a place, and how long does a start take?" => {
            // All that ended, but the one that never started.
            assert_eq!(answer.column("started"), ["8"]);
            assert!(answer.column("start_p99")[0].starts_with("00:00:"), "{:?}", answer.0);
        }
        "What fails, by reason and image?" => {
            assert_eq!(answer.0.len(), 4);
            assert_eq!([answer.column("image")[0], answer.column("exit_code")[0], answer.column("agents")[0]], ["worker:2", "7", "2"]);
            assert!(answer.at("reason", "image_missing", &["an_error"])[0].contains("nowhere:1"));
        }
        "Which images run out of memory, and at what limit?" => {
            assert_eq!(answer.at("image", "hungry:1", &["limit_mib", "killed"]), ["64", "1"]);
        }
        "What is the whole story of an agent?" => {
            assert_eq!(answer.column("state"), ["pending", "running", "terminating", "expired"], "of {}", cast.expired);
            assert_eq!(answer.column("was"), ["-", "pending", "running", "terminating"]);
            assert_eq!(answer.column("reason"), ["-", "-", "ttl_expired", "ttl_expired"]);
        }
        "How are a customer's agents doing?" => {
            assert_eq!(answer.column("state"), ["pending", "succeeded", "running"]);
            assert_eq!(answer.column("customer"), ["Blue Ltd"; 3]);
        }
        "What did an agent last say?" => assert_eq!(answer.column("text"), [r"c\303\251 \000 last", "first"]),
        "How much running time did each team use?" => {
            assert_eq!(answer.at("team", "blue", &["agents"]), ["2"]);
            assert_eq!(answer.at("team", "(none)", &["agents"]), ["11"]);
        }
        "How busy was it, hour by hour?" => {
            let total = |column| answer.column(column).iter().map(|count| count.parse::<u32>().unwrap()).sum::<u32>();
            assert_eq!(["submitted", "started", "succeeded", "failed", "expired"].map(total), [18, 13, 1, 5, 3]);
        }
        "How big are the tables, and how far ahead are the partitions?" => {
            assert_eq!(answer.0.len(), 7);
            let partitions: u32 = answer.at("name", "agent", &["partitions"])[0].parse().unwrap();
            assert!(partitions >= 13, "{partitions}");
            assert_eq!(answer.at("name", "agent_live", &["newest"]), ["-"]);
        }
        "What happened since I last looked?" => {
            assert_eq!(answer.column("state").iter().filter(|state| **state == "pending").count(), 18);
            assert_eq!(answer.column("seq").len(), 18 + 13 + 3 + 9);
        }
        "How do I submit an agent in my own transaction?" => {
            let row =
                scene.client.query_one("select state, labels ->> 'team' from sundown.agents where name = 'job-1'", &[]).await.unwrap();
            assert_eq!((row.get(0), row.get(1)), ("pending", "blue"));
        }
        "How do I end the agent of a row when the row goes?" => {
            let row = scene.client.query_one("select state, reason from sundown.agents where name = 'preview-main'", &[]).await.unwrap();
            assert_eq!((row.get(0), row.get(1)), ("expired", "terminated"));
        }
        "How do I give everything of a tenant more time?" => {
            assert_eq!(answer.0.len(), 2, "the one at its ceiling is left out: {:?}", answer.0);
            let extended = "select round(extract(epoch from expires_at - now()) / 60)::int from sundown.agents where name = 'of-acme'";
            assert_eq!(scene.client.query_one(extended, &[]).await.unwrap().get::<_, i32>(0), 30);
        }
        "How do I end everything with a label?" => {
            // Runs; waits; and the one that an earlier recipe submitted.
            assert_eq!(answer.column("state"), ["terminating", "expired", "expired"]);
            let left = "select count(*) from sundown.agents where labels @> '{\"team\": \"blue\"}' and state in ('pending', 'running')";
            assert_eq!(scene.client.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
        }
        _ => return false,
    }
    true
}
