//! A Postgres of a test's own, to be restarted, stopped and silenced. It goes with the test, however that ends.

#![allow(clippy::disallowed_methods, reason = "clean-up runs outside of any runtime")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sundown::embedded::{self, Embedded};
use tokio_postgres::{Client, NoTls};

use super::eventually;

/// A directory that goes with the test, and with it the server whose data are in it.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        // Short: a socket's path must fit into 107 bytes.
        let dir = std::env::temp_dir().join(format!("sd-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]));
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where an embedded Postgres has its data.
    pub fn data(&self) -> PathBuf {
        self.0.join("data")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(postmaster) = postmaster(&self.data()) {
            for pid in family(postmaster) {
                let _ended = kill(pid, Signal::SIGCONT);
            }
            let _ended = kill(postmaster, Signal::SIGQUIT);
            while kill(postmaster, None).is_ok() && !is_zombie(postmaster) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let _gone = fs::remove_dir_all(&self.0);
    }
}

/// The running server's pid, as Postgres itself records it.
pub fn postmaster(dir: &Path) -> Option<Pid> {
    let text = fs::read_to_string(dir.join("pg/data/postmaster.pid")).ok()?;
    let pid = Pid::from_raw(text.lines().next()?.parse().ok()?);
    (kill(pid, None).is_ok() && !is_zombie(pid)).then_some(pid)
}

/// After the name in brackets: state, parent.
fn stat(pid: i32) -> Option<(String, i32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut words = text.rsplit_once(") ")?.1.split(' ');
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
}

fn is_zombie(pid: Pid) -> bool {
    stat(pid.as_raw()).is_none_or(|(state, _)| state == "Z")
}

/// A process and its children, itself first.
pub fn family(parent: Pid) -> Vec<Pid> {
    let all = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let children = all.filter(|pid| stat(*pid).is_some_and(|(_, of)| of == parent.as_raw())).map(Pid::from_raw);
    std::iter::once(parent).chain(children).collect()
}

/// The server.
pub struct Postgres {
    embedded: Embedded,
    scratch: Scratch,
    bin: PathBuf,
}

impl Postgres {
    /// Made, started and migrated.
    pub async fn start() -> Self {
        let scratch = Scratch::new();
        let embedded = embedded::start(&scratch.data()).await.unwrap();
        // An unoptimised build hashes a password for a third of a second, and faults make many connections.
        fs::write(scratch.data().join("pg/data/pg_hba.conf"), "local all all trust\n").unwrap();
        kill(postmaster(&scratch.data()).unwrap(), Signal::SIGHUP).unwrap();
        sundown::migrate::migrate(&embedded.config(), false).await.unwrap();
        let program = fs::read_link(format!("/proc/{}/exe", postmaster(&scratch.data()).unwrap())).unwrap();
        Self { embedded, bin: program.parent().unwrap().to_owned(), scratch }
    }

    pub fn url(&self) -> String {
        let data = self.scratch.data();
        let password = fs::read_to_string(data.join("password")).unwrap();
        let socket = data.join("pg").display().to_string().replace('/', "%2F");
        format!("postgres://sundown:{}@{socket}/sundown", password.trim())
    }

    /// A connection, as soon as there is one to be had.
    pub async fn client(&self) -> Client {
        eventually("Postgres answers", Duration::from_secs(60), async || {
            let (client, connection) = self.embedded.config().connect(NoTls).await.ok()?;
            tokio::spawn(connection);
            client.batch_execute("select 1").await.ok()?;
            Some(client)
        })
        .await
    }

    /// `pg_ctl` with these arguments, on our data, as the server's user. Answers when it has done it.
    pub async fn ctl(&self, args: &[&str]) {
        let data = self.scratch.data().join("pg/data");
        let owner = fs::metadata(&data).unwrap();
        let mut command = Command::new(self.bin.join("pg_ctl"));
        command.args(args).args(["-s", "-w", "-t", "60"]).env_clear().env("PATH", "/usr/bin:/bin").env("PGDATA", &data).current_dir("/");
        // No pipe: the server would inherit it and hold it open.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if owner.uid() != nix::unistd::geteuid().as_raw() {
            command.gid(owner.gid()).uid(owner.uid());
        }
        let named = format!("{command:?}");
        let status = tokio::task::spawn_blocking(move || command.status()).await.unwrap().unwrap();
        assert!(status.success(), "{named}: {status}");
    }

    /// Starts it again with the settings that `stop` left in its options file: no path may be repeated to a shell.
    pub async fn start_again(&self) {
        let said = fs::read_to_string(self.scratch.data().join("pg/data/postmaster.opts")).unwrap();
        let settings: Vec<&str> = said.split('"').skip(1).step_by(2).filter(|word| word.contains('=')).collect();
        let settings = settings.iter().map(|setting| format!("-c {setting}")).collect::<Vec<_>>().join(" ");
        self.ctl(&["start", "-o", &settings]).await;
    }

    /// Whole, it accepts connections and says not a word until `go_on`.
    pub fn fall_silent(&self) {
        // The parent first, so that no child is born meanwhile.
        let postmaster = postmaster(&self.scratch.data()).unwrap();
        kill(postmaster, Signal::SIGSTOP).unwrap();
        for pid in family(postmaster).into_iter().skip(1) {
            let _ended_before = kill(pid, Signal::SIGSTOP);
        }
    }

    pub fn go_on(&self) {
        let postmaster = postmaster(&self.scratch.data()).unwrap();
        for pid in family(postmaster).into_iter().rev() {
            let _ended_before = kill(pid, Signal::SIGCONT);
        }
    }
}
