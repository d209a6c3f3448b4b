//! A Postgres that the run may restart, stop, silence and starve, on an address that replicas in network namespaces reach.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tokio_postgres::{Client, Config, NoTls};

use crate::harness::eventually;
use crate::harness::postgres::{Scratch, family};

/// The port on the run's own address.
pub const PORT: u16 = 5432;

pub struct Cluster {
    scratch: Scratch,
    bin: PathBuf,
    address: String,
}

impl Cluster {
    /// Initialised, started, and migrated.
    pub async fn start(address: &str) -> Self {
        let mut versions: Vec<PathBuf> =
            fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed: run scripts/test").map(|v| v.unwrap().path()).collect();
        versions.sort();
        let bin = versions.pop().unwrap().join("bin");
        let cluster = Self { scratch: Scratch::new(), bin, address: address.to_owned() };
        let owner = User::from_name("postgres").unwrap().expect("there is a user postgres");
        nix::unistd::chown(cluster.dir(), Some(owner.uid), Some(owner.gid)).unwrap();
        cluster.tool("initdb", &["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]).await;
        let hba = "local all all trust\nhost all all 0.0.0.0/0 trust\n";
        fs::write(cluster.data().join("pg_hba.conf"), hba).unwrap();
        let settings = format!(
            "listen_addresses = '{address}'\nport = {PORT}\nunix_socket_directories = '{}'\nmax_connections = 100\nshared_buffers = '128MB'\n\
             log_min_messages = warning\nwal_level = replica\n",
            cluster.dir().display()
        );
        let conf = cluster.data().join("postgresql.conf");
        fs::write(&conf, fs::read_to_string(&conf).unwrap() + &settings).unwrap();
        cluster.up().await;
        cluster.client().await.batch_execute("create database sundown").await.unwrap();
        sundown::migrate::migrate(&cluster.config("sundown"), false).await.unwrap();
        cluster
    }

    fn dir(&self) -> &Path {
        self.scratch.path()
    }

    fn data(&self) -> PathBuf {
        self.dir().join("pg")
    }

    pub fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host(&self.address).port(PORT).user("postgres").dbname(database).connect_timeout(Duration::from_secs(1));
        config
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@{}:{PORT}/sundown", self.address)
    }

    /// One connection, if there is one to be had at once.
    pub async fn try_client(&self, database: &str) -> Option<Client> {
        let (client, connection) = tokio::time::timeout(Duration::from_secs(1), self.config(database).connect(NoTls)).await.ok()?.ok()?;
        tokio::spawn(connection);
        Some(client)
    }

    /// A connection to the database of all servers, as soon as there is one.
    pub async fn client(&self) -> Client {
        eventually("Postgres answers", Duration::from_secs(60), async || self.try_client("postgres").await).await
    }

    /// A connection to ours.
    pub async fn ours(&self) -> Client {
        eventually("Postgres answers", Duration::from_secs(60), async || self.try_client("sundown").await).await
    }

    /// Runs a program of the server's, as its user, and waits for it.
    async fn tool(&self, program: &str, args: &[&str]) {
        let status = self.command(program, args);
        let (name, status) = (
            program.to_owned(),
            tokio::task::spawn_blocking(move || {
                let mut status = status;
                status.status()
            }),
        );
        let status = status.await.unwrap().unwrap();
        assert!(status.success(), "{name} {args:?}: {status}; {}", fs::read_to_string(self.dir().join("log")).unwrap_or_default());
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let owner = User::from_name("postgres").unwrap().unwrap();
        let mut command = Command::new(self.bin.join(program));
        command.args(args).env_clear().env("PATH", "/usr/bin:/bin").env("PGDATA", self.data()).current_dir("/");
        // No pipe: the server would inherit it and hold it open.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).gid(owner.gid.as_raw()).uid(owner.uid.as_raw());
        command
    }

    pub async fn up(&self) {
        let log = self.dir().join("log");
        File::options().create(true).append(true).open(&log).unwrap();
        let owner = User::from_name("postgres").unwrap().unwrap();
        nix::unistd::chown(&log, Some(owner.uid), Some(owner.gid)).unwrap();
        self.tool("pg_ctl", &["start", "-s", "-w", "-t", "60", "-l", &log.display().to_string()]).await;
    }

    /// `fast` or `immediate`.
    pub async fn down(&self, mode: &str) {
        self.tool("pg_ctl", &["stop", "-s", "-w", "-t", "60", "-m", mode]).await;
    }

    /// kill -9 of the whole server.
    pub async fn kill(&self) {
        let all = self.processes();
        for pid in &all {
            let _gone = kill(*pid, Signal::SIGKILL);
        }
        eventually("the server's processes are gone", Duration::from_secs(30), async || {
            all.iter().all(|pid| fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |line| line.is_empty())).then_some(())
        })
        .await;
        // Where process 1 is slow to bury its dead, the server would take a zombie for its living predecessor.
        for lock in [self.data().join("postmaster.pid"), self.dir().join(format!(".s.PGSQL.{PORT}.lock"))] {
            let _gone = fs::remove_file(lock);
        }
    }

    pub fn postmaster(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        Some(Pid::from_raw(text.lines().next()?.trim().parse().ok()?))
    }

    /// The server and all its children.
    pub fn processes(&self) -> Vec<Pid> {
        self.postmaster().map(family).unwrap_or_default()
    }

    /// To all of them, the parent first, so that no child is born meanwhile.
    pub fn signal_all(&self, signal: Signal) {
        for pid in self.processes() {
            let _ended_before = kill(pid, signal);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.signal_all(Signal::SIGCONT);
        let _ended = self.command("pg_ctl", &["stop", "-s", "-w", "-t", "20", "-m", "immediate"]).status();
    }
}
