//! The output: live through the hook, kept after the end.

use std::time::Duration;

use sundown::http::LogQuery;

use crate::server::{Server, finish_it, run_it};

const AGENT: &str = r#"{"image":"a"}"#;

#[tokio::test]
async fn a_live_log_comes_from_the_host_and_a_kept_one_from_its_row() {
    let (server, database) = Server::with_database().await;
    let id = server.submit(AGENT).await;
    let logs = format!("/agents/{id}/logs");
    assert_eq!((server.get(&logs).await.status, server.get(&logs).await.text.as_str()), (200, ""), "it waits: no output yet");
    run_it(&database, &id).await;
    let live = server.get(&format!("{logs}?tail=5")).await;
    assert_eq!((live.status, live.text.as_str(), live.header("content-type")), (200, "hello\n", "text/plain; charset=utf-8"));
    assert_eq!(server.asked.lock().unwrap().as_slice(), [(7, "c0ffee".to_owned(), LogQuery { follow: false, tail: Some(5) })]);
    finish_it(&database, &id, "one\ntwo\nthree\n").await;
    let kept = server.get(&logs).await;
    assert_eq!((kept.text.as_str(), kept.header("x-sundown-truncated")), ("one\ntwo\nthree\n", "true"));
    assert_eq!(server.get(&format!("{logs}?tail=2&follow=true")).await.text, "two\nthree\n");
}

#[tokio::test]
async fn a_log_on_a_host_of_others_is_refused() {
    let (server, database) = Server::with_database().await;
    let id = server.submit(AGENT).await;
    let elsewhere = format!(
        "update sundown.agent_live set host = 8, placed_at = now(), expires_at = now() + interval '1 h', container_id = 'c' where id = '{id}'"
    );
    database.client().await.batch_execute(&elsewhere).await.unwrap();
    let answer = server.get(&format!("/agents/{id}/logs")).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "log_elsewhere"));
}

#[tokio::test]
async fn following_starts_with_the_agent_and_ends_with_it() {
    let (server, database) = Server::with_database().await;
    let id = server.submit(AGENT).await;
    // The hook's stream never ends by itself.
    let (path, db) = (format!("/agents/{id}/logs?follow=true"), &database);
    let agent = id.clone();
    let (log, ()) = tokio::join!(server.get(&path), async {
        run_it(db, &agent).await;
        crate::harness::until("the log is being followed", async || !server.asked.lock().unwrap().is_empty()).await;
        finish_it(db, &agent, "").await;
    });
    assert_eq!((log.status, log.text.as_str()), (200, "hello\n"));
}

#[tokio::test]
async fn a_shutdown_ends_the_streams_and_the_waits() {
    let (mut server, database) = Server::with_database().await;
    let (followed, waiting) = (server.submit(AGENT).await, server.submit(AGENT).await);
    run_it(&database, &followed).await;
    let (follow, wait) = (format!("/agents/{followed}/logs?follow=true"), format!("/agents/{waiting}?wait=60s"));
    let served = server.served.take().unwrap();
    let all = async {
        tokio::join!(server.get(&follow), server.get(&wait), async {
            crate::harness::until("the log is being followed", async || !server.asked.lock().unwrap().is_empty()).await;
            server.shutdown.cancel();
        })
    };
    let (log, agent, ()) = tokio::time::timeout(Duration::from_secs(8), all).await.expect("they end before the drain's limit");
    assert_eq!((log.text.as_str(), agent.status), ("hello\n", 200));
    tokio::time::timeout(Duration::from_secs(8), served).await.expect("serve returns").unwrap();
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err(), "and nobody listens any more");
}
