//! Clients that misbehave, seen from the wire.

use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sundown::http::CONNECTIONS;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::harness::until;
use crate::server::Server;

const BODY: &str = r#"{"image":"a"}"#;

fn post(length: usize) -> String {
    format!("POST /agents HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n")
}

/// Reads until the other side closes or resets, for at most `limit`; answers what came.
async fn rest(stream: &mut TcpStream, limit: Duration) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    let reading = async {
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            seen.extend_from_slice(&buffer[..n]);
        }
    };
    tokio::time::timeout(limit, reading).await.expect("the connection stays open");
    String::from_utf8_lossy(&seen).into_owned()
}

/// Bytes of memory that this process holds.
fn memory() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn an_endless_body_is_refused_in_flat_memory() {
    let (server, database) = Server::with_database().await;
    let before = memory();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"POST /agents HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let mut sent = 0_usize;
    let sending = async {
        while stream.write_all(chunk.as_bytes()).await.is_ok() {
            sent += chunk.len();
        }
    };
    tokio::time::timeout(Duration::from_secs(9), sending).await.expect("it is cut off");
    let answer = rest(&mut stream, Duration::from_secs(5)).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("body_too_large"), "{answer}");
    assert!(memory().saturating_sub(before) < 16 << 20, "{} bytes more for {sent}", memory() - before);
    assert_eq!(database.count("select count(*) from sundown.agent").await, 0);
}

#[tokio::test]
async fn a_gigabyte_is_refused_on_its_announcement() {
    let (server, _database) = Server::with_database().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(post(1 << 30).as_bytes()).await.unwrap();
    let answer = rest(&mut stream, Duration::from_secs(5)).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn a_client_that_reads_only_after_it_sent_everything_reads_why_it_was_refused() {
    let (server, _database) = Server::with_database().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let length = 16 << 20;
    stream.write_all(post(length).as_bytes()).await.unwrap();
    stream.write_all(&vec![b'x'; length]).await.expect("what it still sends is thrown away, not reset");
    let answer = rest(&mut stream, Duration::from_secs(5)).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("body_too_large"), "{answer}");
}

#[tokio::test]
async fn a_body_that_trickles_is_refused_after_ten_seconds() {
    let (server, database) = Server::with_database().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let start = Instant::now();
    stream.write_all(post(100).as_bytes()).await.unwrap();
    stream.write_all(b"{").await.unwrap();
    let answer = rest(&mut stream, Duration::from_secs(14)).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{answer}");
    assert!(start.elapsed() >= Duration::from_secs(9));
    assert_eq!(database.count("select count(*) from sundown.agent").await, 0);
}

#[tokio::test]
async fn a_head_that_trickles_is_cut_after_ten_seconds_and_an_idle_connection_is_not() {
    let (server, _database) = Server::with_database().await;
    let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut buffer = [0; 4096];
    let (mut idle, mut silent) = (TcpStream::connect(server.address).await.unwrap(), TcpStream::connect(server.address).await.unwrap());
    idle.write_all(request).await.unwrap();
    assert!(idle.read(&mut buffer).await.unwrap() > 0);
    let start = Instant::now();
    let (mut first, mut second) = (TcpStream::connect(server.address).await.unwrap(), TcpStream::connect(server.address).await.unwrap());
    // The second trickles on a connection that was used before.
    second.write_all(request).await.unwrap();
    assert!(second.read(&mut buffer).await.unwrap() > 0);
    let mut cut = 0;
    for byte in b"GET /healthz HTTP/1.1\r\nhost: xxxxxxxxxxxxxxxxxxxxxxxxxxxxx".iter().cycle() {
        let sent = [first.write_all(&[*byte]).await, second.write_all(&[*byte]).await];
        cut = sent.iter().filter(|sent| sent.is_err()).count();
        if cut == 2 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(14), "they are still served");
        // The trickle itself: a byte now and then.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(cut, 2);
    assert_eq!(rest(&mut silent, Duration::from_secs(5)).await, "", "one that never said a word is cut, too");
    assert!(start.elapsed() >= Duration::from_secs(9), "{:?}", start.elapsed());
    idle.write_all(request).await.unwrap();
    assert!(idle.read(&mut buffer).await.unwrap() > 0, "a balancer's idle connection still serves");
}

#[tokio::test]
async fn clients_that_hang_up_leave_pool_and_rows_sane() {
    let (server, database) = Server::with_database().await;
    let request = format!("{}{BODY}", post(BODY.len()));
    // At every length: before the head is whole, in the body, and right after the last byte.
    let hang_ups = (1..=request.len()).chain(std::iter::repeat_n(request.len(), 100));
    let hang_ups: Vec<usize> = hang_ups.collect();
    let whole = hang_ups.iter().filter(|length| **length == request.len()).count() as i64;
    for batch in hang_ups.chunks(20) {
        join_all(batch.iter().map(|length| async {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(&request.as_bytes()[..*length]).await.unwrap();
        }))
        .await;
    }
    let busy = "select count(*) from pg_stat_activity where datname = current_database() and state <> 'idle' and pid <> pg_backend_pid()";
    until("the pool is idle", async || database.count(busy).await == 0).await;
    let halves = "select count(*) from sundown.agent a full join sundown.agent_live l on l.id = a.id where a.id is null or l.id is null";
    assert_eq!(database.count(halves).await, 0);
    assert!(database.count("select count(*) from sundown.agent").await <= whole);
    let answers = join_all((0..32).map(|_| server.post(BODY))).await;
    assert!(answers.iter().all(|answer| answer.status == 201), "{answers:?}");
}

#[tokio::test]
async fn a_submission_whose_client_hung_up_is_written_whole() {
    let (server, database) = Server::with_database().await;
    let holder = database.client().await;
    holder.batch_execute("begin; lock table sundown.agent_live in access exclusive mode").await.unwrap();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(format!("{}{BODY}", post(BODY.len())).as_bytes()).await.unwrap();
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    until("the submission waits for the lock", async || database.count(waiting).await == 1).await;
    drop(stream);
    holder.batch_execute("rollback").await.unwrap();
    until("it is written", async || database.count("select count(*) from sundown.agent_live").await == 1).await;
    until("and somebody is woken", async || server.pokes.load(std::sync::atomic::Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_at_once() {
    // Both ends of every connection are in this process, and a shell's usual limit is 1024.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(16_384), hard).unwrap();
    let (server, _database) = Server::with_database().await;
    let mut taken = Vec::new();
    for _ in 0..CONNECTIONS {
        taken.push(TcpStream::connect(server.address).await.unwrap());
    }
    let mut more = TcpStream::connect(server.address).await.unwrap();
    let answer = rest(&mut more, Duration::from_secs(2)).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("too_many_connections") && answer.contains("retry-after: 1"), "{answer}");
    taken.truncate(CONNECTIONS - 8);
    until("there is room again", async || {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        rest(&mut stream, Duration::from_secs(5)).await.starts_with("HTTP/1.1 200")
    })
    .await;
}

#[tokio::test]
async fn heads_beyond_any_use_are_refused() {
    let (server, _database) = Server::with_database().await;
    for head in [
        format!("GET /healthz HTTP/1.1\r\nhost: x\r\nlong: {}\r\n\r\n", "x".repeat(200_000)),
        format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(100)),
        format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(200_000)),
        "BAD\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\r\n\r\n".to_owned(),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let _cut_already = stream.write_all(head.as_bytes()).await;
        let answer = rest(&mut stream, Duration::from_secs(5)).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(server.get("/healthz").await.status, 200);
}
