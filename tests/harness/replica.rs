//! The built binary as a child process, with its log kept for the message of a failing test.

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

/// A running `sundown serve`. Killed when dropped.
pub struct Replica {
    pub address: String,
    pub log: PathBuf,
    child: Child,
}

/// An answer, as read from the wire.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }
}

/// The binary under test (as built for the tests, or the one that `SUNDOWN_TEST_BINARY` names) with nothing of our own environment that
/// could configure it.
pub fn sundown() -> Command {
    let mut command = Command::new(std::env::var_os("SUNDOWN_TEST_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_sundown").into()));
    for (name, _) in std::env::vars() {
        if (name.starts_with("SUNDOWN_") && name != "SUNDOWN_LOG") || name == "DATABASE_URL" || name == "FAILPOINTS" {
            command.env_remove(name);
        }
    }
    command
}

impl Replica {
    /// Starts a replica with these variables beside the address of its database, and waits until it is ready.
    pub async fn start(url: &str, variables: &[(&str, &str)]) -> Self {
        let replica = Self::spawn(url, variables);
        replica.ready().await;
        replica
    }

    /// Starts a replica that is told no address of a database, and waits until it is ready.
    pub async fn start_embedded(variables: &[(&str, &str)]) -> Self {
        let replica = Self::launch(variables);
        replica.ready().await;
        replica
    }

    /// Starts a replica and waits for nothing.
    pub fn spawn(url: &str, variables: &[(&str, &str)]) -> Self {
        Self::launch(&[&[("SUNDOWN_DATABASE_URL", url)], variables].concat())
    }

    fn launch(variables: &[(&str, &str)]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let log = std::env::temp_dir().join(format!("sundown-test-{}-{port}.log", std::process::id()));
        let child = sundown()
            .arg("serve")
            .env("SUNDOWN_LISTEN", &address)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { address, log, child }
    }

    pub async fn ready(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        while !matches!(self.try_http("GET", "/readyz", &[], "").await, Ok(answer) if answer.status == 200) {
            assert!(Instant::now() < end, "the replica is not ready; its log:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Waits until the process has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the replica does not end; its log:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn http(&self, method: &str, path: &str, body: &str) -> Answer {
        self.try_http(method, path, &[], body).await.unwrap_or_else(|error| panic!("{method} {path}: {error}; log:\n{}", self.log()))
    }

    pub async fn try_http(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> std::io::Result<Answer> {
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect(&self.address).await?;
            let mut request = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
            for (name, value) in headers {
                request.push_str(&format!("{name}: {value}\r\n"));
            }
            request.push_str("\r\n");
            request.push_str(body);
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
            Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
        };
        tokio::time::timeout(Duration::from_secs(75), exchange).await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of the replica at {}:\n{}", self.address, self.log());
        }
        let _gone = std::fs::remove_file(&self.log);
    }
}
