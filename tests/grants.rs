//! Roles that may do what they are for, and no more: the recipes of `docs/operations.md`, as they are written there.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod fake_docker;
mod harness;

use std::time::Duration;

use fake_docker::FakeDocker;
use harness::lives::{end, outcome, submit, until_all};
use harness::replica::Replica;
use harness::{Db, refusal};
use sundown::upkeep::once;
use tokio_postgres::Client;
use uuid::Uuid;

/// A role made by the recipe under a heading, under a name of its own: roles belong to the whole server. It goes with the test.
struct Role {
    name: String,
    db: Db,
}

impl Role {
    async fn made(db: Db, heading: &str, named: &str) -> Self {
        let page = include_str!("../docs/operations.md");
        let (_, chapter) = page.split_once(&format!("### {heading}\n")).unwrap();
        let (_, recipe) = chapter.split_once("```sql\n").unwrap();
        let (recipe, _) = recipe.split_once("```").unwrap();
        let name = format!("{named}_{}", Uuid::new_v4().simple());
        db.client().await.batch_execute(&recipe.replace(named, &name)).await.unwrap();
        Self { name, db }
    }

    /// A connection that may do what the role may.
    async fn client(&self) -> Client {
        let client = self.db.client().await;
        client.batch_execute(&format!("set role {}", self.name)).await.unwrap();
        client
    }

    async fn gone(self) {
        self.db.client().await.batch_execute(&format!("drop owned by {0}; drop role {0}", self.name)).await.unwrap();
    }
}

/// SQLSTATE of what is refused.
async fn refused(client: &Client, statement: &str) -> String {
    refusal(&client.batch_execute(statement).await.expect_err(statement)).0
}

#[tokio::test]
async fn an_application_submits_extends_ends_and_looks_and_reads_no_secret() {
    let role = Role::made(Db::new().await, "A role for an application", "sundown_app").await;
    let (app, owner) = (role.client().await, role.db.client().await);
    let id: Uuid = app
        .query_one(
            "select sundown.submit(image => 'busybox', env => '{\"TOKEN\": \"s3cret\"}', key => 'k', labels => '{\"team\": \"blue\"}')",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    app.execute("select sundown.extend($1, '10 min')", &[&id]).await.unwrap();
    for view in ["agents", "overdue", "events", "hosts", "replicas", "lateness"] {
        app.execute(&format!("select * from sundown.{view}"), &[]).await.unwrap();
    }
    let state: String = app.query_one("select sundown.terminate($1)", &[&id]).await.unwrap().get(0);
    assert_eq!(state, "expired");
    for statement in [
        "select env from sundown.agent_secret",
        "select tail from sundown.agent_log",
        "select sundown.upkeep()",
        "select sundown.make_ahead()",
        "create table sundown.mine ()",
        "update sundown.installation set max_ttl = '1 year'",
    ] {
        assert_eq!(refused(&app, statement).await, "42501", "{statement}");
    }
    drop(app);
    drop(owner);
    role.gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_any_right_to_change_tables_does_all_its_work() {
    let role = Role::made(Db::new().await, "A role for replicas", "sundown_replica").await;
    let (fake, client) = (FakeDocker::start().await, role.client().await);
    let (url, endpoint) = (format!("{}?options=-c%20role%3D{}", role.db.url(), role.name), fake.endpoint());
    let variables =
        [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_NO_MIGRATE", "1"), ("SUNDOWN_RETENTION", "1d"), ("SUNDOWN_LOG_RETENTION", "1h")];
    let mut replica = Replica::start(&url, &variables).await;
    let whoami: String = client.query_one("select current_user::text", &[]).await.unwrap().get(0);
    assert_eq!(whoami, role.name);

    let body = r#"{"image": "busybox", "command": ["sh", "-c", "exit 0"], "env": {"A": "b"}, "labels": {"team": "blue"}}"#;
    let answer = replica.try_http("POST", "/agents", &[("Idempotency-Key", "k")], body).await.unwrap();
    assert_eq!(answer.status, 201, "{answer:?}");
    let exits: Uuid = answer.json()["id"].as_str().unwrap().parse().unwrap();
    let stays = submit(&client, "busybox", "sleep inf", ", grace => '1s'").await;
    until_all(&client, &[stays], "running").await;
    assert_eq!(replica.http("PATCH", &format!("/agents/{stays}"), r#"{"ttl": "10m"}"#).await.status, 200);
    assert_eq!(replica.http("DELETE", &format!("/agents/{stays}"), "").await.status, 202);
    assert_eq!(outcome(&client, stays).await, end("expired", "terminated", Some(143)));
    assert_eq!(outcome(&client, exits).await, end("succeeded", "exited", Some(0)));
    for path in ["/agents", "/agents?label=team=blue", &format!("/agents/{exits}/logs"), "/metrics"] {
        assert_eq!(replica.http("GET", path, "").await.status, 200, "{path}");
    }
    replica.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(replica.ended().await.code(), Some(0));
    assert!(!replica.log().contains("permission denied"), "{}", replica.log());

    // What comes by once an hour, and what an operator says.
    let mut config = role.db.config();
    config.options(format!("-c role={}", role.name));
    let sql = sundown::sql::Sql::new(&config, 1, Duration::from_secs(5)).unwrap();
    let later = role.db.now().await + Duration::from_hours(24 * 100);
    let counts = once(&sql, Some(later)).await.unwrap();
    assert!(counts.made > 0 && counts.dropped > 0, "{counts:?}");
    let host: i32 = client.query_one("select id from sundown.host", &[]).await.unwrap().get(0);
    assert!(sql.cordon(host, true).await.unwrap());
    sql.forget_host(host).await.unwrap();
    for statement in ["create table sundown.mine ()", "drop table sundown.agent_log", "truncate sundown.agent_key"] {
        assert_eq!(refused(&client, statement).await, "42501", "{statement}");
    }
    drop((client, sql));
    role.gone().await;
}
