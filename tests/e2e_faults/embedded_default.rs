//! `sundown serve` with no database named: a private Postgres that outlives the process that started it.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio_postgres::{Client, NoTls};

use crate::harness::docker::{self, image};
use crate::harness::lives::{each_expired_once, end, nothing_is_held, outcome, submit, until_all};
use crate::harness::postgres::{Scratch, postmaster};
use crate::harness::replica::Replica;
use crate::harness::{eventually, until};

/// Serves with its data in a directory.
async fn serve(scratch: &Scratch) -> Replica {
    let data = scratch.data().display().to_string();
    Replica::start_embedded(&[("SUNDOWN_DATA", &data), ("SUNDOWN_LEASE", "2s")]).await
}

/// As an operator with the password gets in.
async fn client(scratch: &Scratch) -> Client {
    let mut config = tokio_postgres::Config::new();
    let password = fs::read_to_string(scratch.data().join("password")).unwrap();
    config.host_path(scratch.data().join("pg")).user("sundown").dbname("sundown").password(password.trim());
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_without_an_address_runs_agents_and_finds_them_again_after_it_was_killed() {
    let scratch = Scratch::new();
    let mut first = serve(&scratch).await;
    let body = serde_json::json!({ "image": image(), "command": ["sh", "-c", "echo hello; exit 3"] }).to_string();
    let answer = first.http("POST", "/agents", &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let path = format!("/agents/{}?wait=30s", answer.json()["id"].as_str().unwrap());
    let ended = first.http("GET", &path, "").await.json();
    assert_eq!((ended["state"].as_str(), ended["reason"].as_str(), ended["exit_code"].as_i64()), (Some("failed"), Some("exited"), Some(3)));

    let database = client(&scratch).await;
    let expires = submit(&database, &image(), "sleep 600", ", ttl => '4s', grace => '1s'").await;
    let exits = submit(&database, &image(), "sleep 2; exit 5", ", ttl => '10min'").await;
    until_all(&database, &[expires, exits], "running").await;
    let server = postmaster(&scratch.data()).unwrap();
    first.signal(Signal::SIGKILL);
    first.ended().await;
    assert_eq!(postmaster(&scratch.data()), Some(server), "the database went with the process");

    let mut second = serve(&scratch).await;
    assert_eq!(postmaster(&scratch.data()), Some(server), "it was not found again");
    each_expired_once(&database, &[expires]).await;
    assert_eq!(outcome(&database, exits).await, end("failed", "exited", Some(5)));
    assert_eq!(second.http("GET", &path, "").await.json(), ended, "what was known before is not known any more");
    nothing_is_held(&database).await;
    docker::leave_nothing(&database).await;
    drop(database);
    // The last one out stops it.
    second.signal(Signal::SIGTERM);
    assert!(second.ended().await.success(), "{}", second.log());
    until("the server has stopped", async || postmaster(&scratch.data()).is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_survives_the_death_of_both_itself_and_its_database() {
    let scratch = Scratch::new();
    let mut first = serve(&scratch).await;
    let database = client(&scratch).await;
    let id = submit(&database, &image(), "sleep 600", ", ttl => '3s', grace => '1s'").await;
    until_all(&database, &[id], "running").await;
    first.signal(Signal::SIGKILL);
    first.ended().await;
    let server = postmaster(&scratch.data()).unwrap();
    nix::sys::signal::kill(server, Signal::SIGKILL).unwrap();
    eventually("the server is dead", Duration::from_secs(10), async || postmaster(&scratch.data()).is_none().then_some(())).await;
    let _second = serve(&scratch).await;
    let database = client(&scratch).await;
    each_expired_once(&database, &[id]).await;
    docker::leave_nothing(&database).await;
}
