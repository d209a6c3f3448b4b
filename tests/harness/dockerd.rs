//! A Docker daemon of a test's own, beside the one that all tests share: its containers survive it, and it goes with the test.

#![allow(clippy::disallowed_methods, reason = "clean-up runs outside of any runtime")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::eventually;
use super::network::Bridge;
use super::postgres::Scratch;

/// The image that its agents run.
pub const IMAGE: &str = "sundown-fault:latest";

/// The daemon. Root only: so are daemons.
pub struct Dockerd {
    scratch: Scratch,
    bridge: Bridge,
    on_network: bool,
    child: Option<Child>,
}

impl Dockerd {
    /// Started, with an image.
    pub async fn start() -> Self {
        Self::start_on(false).await
    }

    /// Started, with an image, and with a door on its bridge if one is wanted.
    pub async fn start_on(on_network: bool) -> Self {
        // A bridge that is named is used as it is: without one the daemon would make, or remove, the docker0 of the other daemon.
        let mut dockerd = Self { scratch: Scratch::new(), bridge: Bridge::new(), on_network, child: None };
        dockerd.up().await;
        dockerd.import();
        dockerd
    }

    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// The bridge that it was given.
    pub fn bridge(&self) -> &Bridge {
        &self.bridge
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.as_ref().unwrap().id()).unwrap())
    }

    /// Where it answers to whoever is on its bridge.
    pub fn tcp(&self) -> String {
        format!("tcp://{}:2375", self.bridge.address)
    }

    fn socket(&self) -> PathBuf {
        self.dir().join("d.sock")
    }

    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Starts it, and waits until it answers.
    pub async fn up(&mut self) {
        let dir = self.dir().to_owned();
        let log = File::options().append(true).create(true).open(dir.join("log")).unwrap();
        let mut command = Command::new("dockerd");
        // Where the groups of its containers are named by their ids, whoever else keeps groups on this machine.
        command.args(["--exec-opt", "native.cgroupdriver=cgroupfs"]);
        command.arg("--live-restore").arg("--host").arg(self.endpoint()).args(["--bridge", &self.bridge.name, "--iptables=false"]);
        if self.on_network {
            // Said outright, for it waits before it believes that nobody wants TLS.
            command.arg("--host").arg(self.tcp()).arg("--tls=false");
        }
        command.args(["--ip-forward=false", "--ip-masq=false", "--userland-proxy=false"]);
        for (flag, name) in [("--data-root", "data"), ("--exec-root", "run"), ("--pidfile", "pid")] {
            command.arg(flag).arg(dir.join(name));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().expect("dockerd is installed: run scripts/test"));
        eventually(&format!("the daemon answers; log: {}", dir.join("log").display()), Duration::from_secs(60), async || {
            self.try_docker(&["version"]).status.success().then_some(())
        })
        .await;
    }

    /// Ends it with a signal, and waits until it is gone. Its containers go on.
    pub async fn down(&mut self, signal: Signal) {
        let mut child = self.child.take().unwrap();
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
        if signal == Signal::SIGKILL {
            // Its containerd is orphaned by now. The next daemon would take it, or its zombie, for its own.
            end_by_pid_file(&self.dir().join("run/containerd/containerd.pid"), self.dir());
        }
    }

    fn try_docker(&self, args: &[&str]) -> Output {
        let client = Command::new("docker").arg("-H").arg(self.endpoint()).args(args).stdin(Stdio::null()).output();
        client.expect("the docker client is installed: run scripts/test")
    }

    /// Its own client, which must succeed.
    pub fn docker(&self, args: &[&str]) -> String {
        let output = self.try_docker(args);
        assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Names of its containers, in whatever state.
    pub fn names(&self) -> Vec<String> {
        self.docker(&["ps", "-a", "--format", "{{.Names}}"]).lines().map(str::to_owned).collect()
    }

    /// A busybox, made here.
    fn import(&self) {
        let root = self.dir().join("image");
        fs::create_dir_all(root.join("bin")).unwrap();
        let found = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        fs::copy(found.expect("busybox-static is installed: run scripts/test"), root.join("bin/busybox")).unwrap();
        for applet in ["sh", "sleep", "echo", "true", "cat", "tail", "dd", "head"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let tar = self.dir().join("image.tar");
        run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg("."));
        self.docker(&["import", &tar.display().to_string(), IMAGE]);
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Ends the process that a file names, if it is one of this directory's by now, and removes the file.
fn end_by_pid_file(path: &Path, dir: &Path) {
    let pid = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).map(Pid::from_raw);
    if let Some(pid) = pid.filter(|pid| processes_of(dir).contains(pid)) {
        end_and_wait(pid);
    }
    let _gone = fs::remove_file(path);
}

fn end_and_wait(pid: Pid) {
    let _ended_before = kill(pid, Signal::SIGKILL);
    let alive = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    };
    while alive() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Shims and what else was started with a file of this directory on its command line: ours, whoever its parent is by now.
fn processes_of(dir: &Path) -> Vec<Pid> {
    let dir = dir.display().to_string();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let ours = pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&dir)
    });
    ours.map(Pid::from_raw).collect()
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // A test may have ended while one of them stood still.
        for pid in processes_of(self.dir()) {
            let _ended = kill(pid, Signal::SIGCONT);
        }
        if let Some(mut child) = self.child.take() {
            // A test that failed leaves containers, which live-restore would keep.
            let left = self.try_docker(&["ps", "-aq"]);
            for id in String::from_utf8_lossy(&left.stdout).lines() {
                self.try_docker(&["rm", "-f", "-v", id]);
            }
            let _ended = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM);
            let _status = child.wait();
        }
        for pid in processes_of(self.dir()) {
            end_and_wait(pid);
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let dir = self.dir().display().to_string();
        let mut mounts: Vec<&str> =
            mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|path| path.starts_with(&dir)).collect();
        mounts.sort_unstable();
        for mount in mounts.iter().rev() {
            let _gone = Command::new("umount").arg("-l").arg(mount).output();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("end of the daemon's log:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }
}
