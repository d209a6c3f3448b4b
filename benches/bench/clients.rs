//! Clients of the API: each on one connection that it keeps, sending its next request once it has its answer.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::load::Sample;

/// A request: method, path, body.
pub type Request = (&'static str, String, &'static str);

/// As many clients of these replicas in turn, each sending what `next` says to it (its number, and how many it has sent) until it says
/// nothing more. Every answer must have this status.
pub async fn run(
    addresses: &[&str],
    clients: usize,
    status: u16,
    next: impl Fn(usize, usize) -> Option<Request> + Send + Sync + 'static,
) -> Vec<Sample> {
    let next = Arc::new(next);
    let connections = join_all((0..clients).map(|client| Connection::open(addresses[client % addresses.len()]))).await;
    let began = Instant::now();
    let running = connections.into_iter().enumerate().map(|(client, mut connection)| {
        let next = Arc::clone(&next);
        tokio::spawn(async move {
            let mut samples = Vec::new();
            while let Some((method, path, body)) = next(client, samples.len()) {
                let asked = Instant::now();
                let answered = connection.ask(method, &path, body).await;
                assert_eq!(answered, status, "{method} {path}");
                samples.push(Sample { client, at: began.elapsed().as_secs_f64(), took: asked.elapsed().as_secs_f64() * 1000.0 });
            }
            samples
        })
    });
    join_all(running).await.into_iter().flat_map(Result::unwrap).collect()
}

/// As many clients that submit the same for so long.
pub async fn submit(address: &str, clients: usize, body: &'static str, how_long: Duration) -> Vec<Sample> {
    let until = Instant::now() + how_long;
    run(&[address], clients, 201, move |_, _| (Instant::now() < until).then(|| ("POST", "/agents".to_owned(), body))).await
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    /// Sends a request and reads the whole answer; answers its status.
    async fn ask(&mut self, method: &str, path: &str, body: &str) -> u16 {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        self.stream.write_all(request.as_bytes()).await.unwrap();
        self.buffer.clear();
        loop {
            let read = self.stream.read_buf(&mut self.buffer).await.unwrap();
            assert!(read > 0, "the replica hung up");
            let Some(head) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let text = str::from_utf8(&self.buffer[..head]).unwrap().to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if self.buffer.len() >= head + 4 + length.expect("an answer says how long it is") {
                return text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
            }
        }
    }
}
