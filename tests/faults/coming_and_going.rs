//! A start that cannot come to its end, and a stop that has work in hand which does not: nobody who asks is left without an answer,
//! and the process ends when it is told to.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::fake_docker::{Call, FakeDocker, Fault};
use crate::harness::lives::submit;
use crate::harness::replica::Replica;
use crate::harness::{Db, eventually, until};

const PROMISED: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_start_on_a_silent_database_answers_and_ends_when_told_to() {
    // Connections are accepted by the kernel, and nobody says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://nobody@{}/nothing", silent.local_addr().unwrap());
    for variables in [&[("SUNDOWN_DOCKER", "unix:///nowhere")][..], &[("SUNDOWN_DOCKER", "unix:///nowhere"), ("SUNDOWN_NO_MIGRATE", "1")]] {
        let mut replica = Replica::spawn(&url, variables);
        eventually("it listens", Duration::from_secs(10), async || replica.try_http("GET", "/healthz", &[], "").await.ok()).await;
        for (method, path, status) in [("GET", "/healthz", 200), ("GET", "/readyz", 503), ("POST", "/agents", 503), ("GET", "/agents", 503)]
        {
            let asked = Instant::now();
            let answer = replica.http(method, path, "").await;
            assert_eq!((answer.status, asked.elapsed() < PROMISED), (status, true), "{method} {path}: {answer:?}");
            assert!(status == 200 || answer.head.to_lowercase().contains("retry-after: 1"), "{answer:?}");
        }
        let told = Instant::now();
        replica.signal(Signal::SIGTERM);
        assert_eq!(replica.ended().await.code(), Some(0), "{}", replica.log());
        assert!(told.elapsed() < PROMISED, "it took {:?}", told.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_stop_it_is_not_ready_first_and_returns_at_last_what_it_cannot_finish() {
    let (db, fake) = (Db::new().await, FakeDocker::start().await);
    let (client, endpoint) = (db.client().await, fake.endpoint());
    let mut replica = Replica::start(&db.url(), &[("SUNDOWN_DOCKER", &endpoint), ("SUNDOWN_DRAIN", "1s")]).await;
    fake.inject(Some(Call::Start), None, Fault::Hang, usize::MAX);
    let id = submit(&client, "busybox", "sleep inf", "").await;
    until("its start hangs", async || fake.total(Call::Start) > 0).await;
    let told = Instant::now();
    replica.signal(Signal::SIGTERM);
    eventually("it says that it is not ready", Duration::from_millis(500), async || {
        let answer = replica.try_http("GET", "/readyz", &[], "").await.ok()?;
        (answer.status == 503 && answer.json()["missing"] == serde_json::json!(["draining"])).then_some(())
    })
    .await;
    let leased = "select leased_by is not null from sundown.agent_live where id = $1 and due_at > clock_timestamp()";
    let row = client.query_opt(leased, &[&id]).await.unwrap();
    assert!(row.is_some_and(|row| row.get(0)), "it drains: the work is still in hand");
    assert_eq!(replica.ended().await.code(), Some(0), "{}", replica.log());
    assert!(told.elapsed() < Duration::from_secs(5), "it took {:?}", told.elapsed());
    let returned = "select leased_by is null and due_at <= clock_timestamp() from sundown.agent_live where id = $1";
    assert!(client.query_one(returned, &[&id]).await.unwrap().get::<_, bool>(0), "whoever comes next need not wait for its lease");
}
