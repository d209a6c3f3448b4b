//! A start that cannot come to its end: nobody who asks it anything is left without an answer, and it ends when it is told to.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::net::TcpListener;

use crate::harness::eventually;
use crate::harness::replica::Replica;

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
