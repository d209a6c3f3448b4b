//! The database away: an answer within two seconds, and never a yes.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use sundown::sql::Sql;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::Instant;
use tokio_postgres::Config;

use crate::server::Server;

const PROMISED: Duration = Duration::from_secs(2);

async fn nothing_hangs_and_nothing_is_promised(port: u16) {
    let config: Config = format!("postgres://postgres@127.0.0.1:{port}/postgres").parse().unwrap();
    // Statements may take longer than clients wait.
    let server = Server::new(Sql::new(&config, 4, Duration::from_secs(20)).unwrap()).await;
    let agent = "/agents/01890a5d-ac96-774b-bcce-b302099a8057";
    let requests = [
        server.request(Method::POST, "/agents").body(r#"{"image":"a"}"#),
        server.request(Method::POST, "/agents").header("idempotency-key", "k").body(r#"{"image":"a"}"#),
        server.request(Method::DELETE, agent),
        server.request(Method::PATCH, agent).body(r#"{"ttl":9}"#),
        server.request(Method::GET, agent),
        server.request(Method::GET, "/agents"),
        server.request(Method::GET, &format!("{agent}?wait=60s")),
        server.request(Method::GET, &format!("{agent}/logs?follow=true")),
        server.request(Method::DELETE, agent),
        server.request(Method::DELETE, agent),
    ];
    let start = Instant::now();
    for answer in join_all(requests.map(Server::send)).await {
        assert_eq!((answer.status, answer.code().as_str(), answer.header("retry-after")), (503, "database_unavailable", "1"), "{answer:?}");
        for secret in ["postgres", "refused", "127.0.0.1"] {
            assert!(!answer.text.contains(secret), "{answer:?}");
        }
    }
    assert!(start.elapsed() < PROMISED, "{:?}", start.elapsed());
    let start = Instant::now();
    let (ready, metrics) = tokio::join!(server.get("/readyz"), server.get("/metrics"));
    assert_eq!((ready.status, &ready.json()["missing"]), (503, &serde_json::json!(["database"])));
    assert!(metrics.status == 200 && metrics.text.contains("sundown_database_up 0"));
    assert!(start.elapsed() < PROMISED, "{:?}", start.elapsed());
    assert_eq!(server.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn with_the_database_gone_every_answer_is_503_within_two_seconds() {
    // Bound and not listening: refused, and nobody else's meanwhile.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = closed.local_addr().unwrap().port();
    nothing_hangs_and_nothing_is_promised(port).await;
}

#[tokio::test]
async fn with_the_database_silent_every_answer_is_503_within_two_seconds() {
    // Connections are accepted by the kernel, and nobody says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    nothing_hangs_and_nothing_is_promised(silent.local_addr().unwrap().port()).await;
}

#[tokio::test]
async fn a_row_that_somebody_holds_delays_nobody_beyond_two_seconds_and_the_wish_is_not_lost() {
    let (server, database) = Server::with_database().await;
    let id = server.submit(r#"{"image":"a"}"#).await;
    let holder = database.client().await;
    holder.batch_execute("begin; select from sundown.agent_live for update").await.unwrap();
    let start = Instant::now();
    let answer = server.delete(&id).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "database_unavailable"));
    assert!(start.elapsed() < PROMISED, "{:?}", start.elapsed());
    assert_eq!(server.get(&format!("/agents/{id}")).await.json()["state"], "pending");
    holder.batch_execute("rollback").await.unwrap();
    assert_eq!(server.delete(&id).await.status, 200);
}

#[tokio::test]
async fn wishes_for_a_row_that_somebody_holds_leave_the_door_open_for_others() {
    let (server, database) = Server::with_database().await;
    let id = server.submit(r#"{"image":"a"}"#).await;
    let holder = database.client().await;
    holder.batch_execute("begin; select from sundown.agent_live for update").await.unwrap();
    let backends = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    // Twice as many as there are connections.
    let path = format!("/agents/{id}");
    let wishes = (0..16).map(|n| {
        if n % 2 == 0 { server.request(Method::DELETE, &path) } else { server.request(Method::PATCH, &path).body(r#"{"ttl":9}"#) }
    });
    let (wishes, other) = tokio::join!(join_all(wishes.map(Server::send)), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let asked = Instant::now();
        (server.post(r#"{"image":"b"}"#).await, asked.elapsed())
    });
    for answer in wishes {
        assert_eq!((answer.status, answer.code().as_str()), (503, "database_unavailable"), "{answer:?}");
    }
    assert_eq!(other.0.status, 201, "{other:?}");
    let there = database.count(backends).await;
    assert!(there <= 10, "no connection was thrown away for it: {there}");
    holder.batch_execute("rollback").await.unwrap();
    assert_eq!(server.delete(&id).await.status, 200);
}

#[tokio::test]
async fn after_its_connections_were_killed_the_next_request_works() {
    let (server, database) = Server::with_database().await;
    server.submit(r#"{"image":"a"}"#).await;
    let kill = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    database.client().await.batch_execute(kill).await.unwrap();
    crate::harness::until("it answers again", async || server.post(r#"{"image":"a"}"#).await.status == 201).await;
}
