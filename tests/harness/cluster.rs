//! A Postgres of a test's own on an address and a port, to be restarted, killed, silenced and starved; with a standby, another clock or
//! a disk that fills up, if one is wanted. Root only: it runs as the user `postgres`, and a disk is mounted.

use std::fs::{self, File};
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tokio_postgres::{Client, Config, NoTls};

use super::eventually;
use super::postgres::{Scratch, family};

/// What a server is to be, beside the usual. By default it is reached from this machine only, at a port that was free.
#[derive(Default)]
pub struct Plan<'a> {
    pub address: Option<&'a str>,
    pub port: Option<u16>,
    /// More lines of its configuration.
    pub settings: &'a str,
    /// More arguments to initdb.
    pub initdb: &'a [&'a str],
    /// What its processes find in their environment.
    pub environment: &'a [(&'a str, &'a str)],
    /// Its data are on a disk of their own, of so many MiB.
    pub disk: Option<u32>,
}

pub struct Cluster {
    // In the order in which they go, once the server has ended.
    disk: Option<Disk>,
    scratch: Scratch,
    bin: PathBuf,
    address: String,
    port: u16,
    environment: Vec<(String, String)>,
}

impl Cluster {
    /// Initialised, started, and migrated.
    pub async fn start(plan: Plan<'_>) -> Self {
        let cluster = Self::new(&plan);
        cluster
            .tool(
                "initdb",
                &[&["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"], plan.initdb].concat(),
            )
            .await;
        let hba = "local all all trust\nhost all all 0.0.0.0/0 trust\nhost replication all 0.0.0.0/0 trust\n";
        fs::write(cluster.data().join("pg_hba.conf"), hba).unwrap();
        cluster.configure(&format!(
            "max_connections = 100\nshared_buffers = '128MB'\nlog_min_messages = warning\nwal_level = replica\n\
             dynamic_shared_memory_type = mmap\n{}",
            plan.settings
        ));
        cluster.up().await;
        cluster.client().await.batch_execute("create database sundown").await.unwrap();
        sundown::migrate::migrate(&cluster.config("sundown"), false).await.unwrap();
        cluster
    }

    /// A standby of it that streams, under that name, with these settings beside the primary's own.
    pub async fn standby(&self, name: &str, settings: &str) -> Self {
        let standby = Self::new(&Plan { address: Some(&self.address), ..Plan::default() });
        let (data, port) = (standby.data().display().to_string(), self.port.to_string());
        standby.tool("pg_basebackup", &["-D", &data, "-h", &self.address, "-p", &port, "-U", "postgres", "-c", "fast", "--no-sync"]).await;
        standby.configure(&format!(
            "primary_conninfo = 'host={} port={port} user=postgres application_name={name}'\n{settings}",
            self.address
        ));
        fs::write(standby.data().join("standby.signal"), "").unwrap();
        standby.up().await;
        standby
    }

    /// From here on it is a primary.
    pub async fn promote(&self) {
        self.tool("pg_ctl", &["promote", "-s", "-w", "-t", "60"]).await;
    }

    fn new(plan: &Plan<'_>) -> Self {
        let mut versions: Vec<PathBuf> =
            fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed: run scripts/test").map(|v| v.unwrap().path()).collect();
        versions.sort();
        let bin = versions.pop().unwrap().join("bin");
        let address = plan.address.unwrap_or("127.0.0.1");
        let port = plan.port.unwrap_or_else(|| TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port());
        let environment = plan.environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut cluster = Self { disk: None, scratch: Scratch::new(), bin, address: address.to_owned(), port, environment };
        own(cluster.dir());
        if let Some(mebibytes) = plan.disk {
            cluster.disk = Some(Disk::mount(cluster.data(), mebibytes));
            own(&cluster.data());
        }
        cluster
    }

    /// Lines for its configuration, which win over earlier ones; and where it is to be found.
    fn configure(&self, settings: &str) {
        let conf = self.data().join("postgresql.conf");
        let place =
            format!("listen_addresses = '{}'\nport = {}\nunix_socket_directories = '{}'\n", self.address, self.port, self.dir().display());
        fs::write(&conf, fs::read_to_string(&conf).unwrap() + &place + settings).unwrap();
    }

    fn dir(&self) -> &Path {
        self.scratch.path()
    }

    fn data(&self) -> PathBuf {
        self.dir().join("pg")
    }

    /// The disk that was wished for.
    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("it was planned with a disk")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it has said, warnings and worse.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("log")).unwrap_or_default()
    }

    pub fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host(&self.address).port(self.port).user("postgres").dbname(database).connect_timeout(Duration::from_secs(1));
        config
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@{}:{}/sundown", self.address, self.port)
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
        assert!(self.tried(program, args).await, "{program} {args:?} failed; {}", self.log());
    }

    /// Runs it; answers whether it succeeded.
    async fn tried(&self, program: &str, args: &[&str]) -> bool {
        let mut command = self.command(program, args);
        tokio::task::spawn_blocking(move || command.status()).await.unwrap().unwrap().success()
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let owner = owner();
        let mut command = Command::new(self.bin.join(program));
        command.args(args).env_clear().env("PATH", "/usr/bin:/bin").env("PGDATA", self.data()).current_dir("/");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        // No pipe: the server would inherit it and hold it open.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).gid(owner.gid.as_raw()).uid(owner.uid.as_raw());
        command
    }

    pub async fn up(&self) {
        let log = self.dir().join("log");
        File::options().create(true).append(true).open(&log).unwrap();
        own(&log);
        self.tool("pg_ctl", &["start", "-s", "-w", "-t", "60", "-l", &log.display().to_string()]).await;
    }

    /// `fast` or `immediate`; one that does not heed it is killed: told to stop in the midst of a recovery, a server was seen to hang.
    pub async fn down(&self, mode: &str) {
        if !self.tried("pg_ctl", &["stop", "-s", "-w", "-t", "30", "-m", mode]).await {
            self.kill().await;
        }
    }

    /// kill -9 of the whole server.
    pub async fn kill(&self) {
        self.signal_all(Signal::SIGSTOP);
        let all = self.processes();
        for pid in &all {
            let _gone = kill(*pid, Signal::SIGKILL);
        }
        eventually("the server's processes are gone", Duration::from_secs(30), async || {
            all.iter().all(|pid| fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |line| line.is_empty())).then_some(())
        })
        .await;
        // It had no time to give back its shared memory, and may never be started again.
        let said = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        if let Some(segment) = said.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            let _gone = Command::new("ipcrm").args(["-m", segment]).output();
        }
        // Where process 1 is slow to bury its dead, the server would take a zombie for its living predecessor.
        for lock in [self.data().join("postmaster.pid"), self.dir().join(format!(".s.PGSQL.{}.lock", self.port))] {
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

    /// To all of them. The parent stands still while they are counted, so that none is born meanwhile.
    pub fn signal_all(&self, signal: Signal) {
        if let Some(parent) = self.postmaster() {
            let _ended_before = kill(parent, Signal::SIGSTOP);
        }
        for pid in self.processes().into_iter().rev() {
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

fn owner() -> User {
    User::from_name("postgres").unwrap().expect("there is a user postgres: run scripts/test")
}

fn own(path: &Path) {
    let owner = owner();
    nix::unistd::chown(path, Some(owner.uid), Some(owner.gid)).unwrap();
}

/// A disk in memory, that a test fills up. Unmounted when dropped.
pub struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf, mebibytes: u32) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "a disk of its own needs root: run scripts/test");
        fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=700"), "tmpfs"]).arg(&at).status();
        assert!(mounted.unwrap().success(), "no disk can be mounted here");
        Self(at)
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Takes up what is left of it, but for so many bytes. What others take meanwhile is theirs.
    pub fn fill(&self, but: u64) {
        let space = nix::sys::statvfs::statvfs(&self.0).unwrap();
        let left = (space.blocks_available() * space.fragment_size()).saturating_sub(but);
        let mut filler = File::options().create(true).append(true).open(self.filler()).unwrap();
        let _full = std::io::copy(&mut std::io::repeat(0).take(left), &mut filler);
    }

    /// Gives back what was taken up.
    pub fn relieve(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _gone = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
