//! `sundown deadman` as a child process, with its log kept for the message of a failing test.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use uuid::Uuid;

use super::replica::sundown;

/// A dead man that watches. Killed when dropped.
pub struct Deadman {
    log: PathBuf,
    child: Child,
}

impl Deadman {
    /// With a grace of one second.
    pub fn start(endpoint: &str, args: &[&str]) -> Self {
        let log = std::env::temp_dir().join(format!("sundown-test-{}.log", Uuid::new_v4()));
        let child = sundown()
            .args(["deadman", "--docker", endpoint, "--grace", "1s"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { log, child }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks it to end, and waits until it has.
    pub async fn end(mut self) -> ExitStatus {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).unwrap();
        super::eventually("it ends", std::time::Duration::from_secs(10), async || self.child.try_wait().unwrap()).await
    }
}

impl Drop for Deadman {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of the dead man:\n{}", self.log());
        }
        let _gone = std::fs::remove_file(&self.log);
    }
}

/// One look, with a grace of one second. Answers the exit code, and what it counted.
pub async fn once(endpoint: &str, args: &[&str]) -> (Option<i32>, Value) {
    let mut command = sundown();
    command.args(["deadman", "--once", "--docker", endpoint, "--grace", "1s"]).args(args).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
}
