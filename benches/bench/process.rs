//! A process, as the kernel tells it: what it costs, and when it dies.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, sleep};

/// How long none of them may die, in milliseconds.
const PATIENCE: u16 = 60_000;

/// The time that it has spent on cores, to the nanosecond.
pub fn cpu(pid: i32) -> Duration {
    clock_gettime(clock_getcpuclockid(Pid::from_raw(pid)).unwrap()).unwrap().into()
}

/// Its resident memory, in megabytes.
pub fn resident(pid: i32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.unwrap() * 1024.0 / 1e6
}

/// Processes that are going to die, each held so that its number cannot become another's.
pub struct Mortals(Vec<OwnedFd>);

impl Mortals {
    pub fn of(pids: &[i32]) -> Self {
        let held = pids.iter().map(|pid| pidfd_open(rustix::process::Pid::from_raw(*pid).unwrap(), PidfdFlags::empty()).unwrap());
        Self(held.collect())
    }

    /// The same processes, to be signalled while others wait for their deaths.
    pub fn again(&self) -> Self {
        Self(self.0.iter().map(|held| held.try_clone().unwrap()).collect())
    }

    pub fn kill(&self, place: usize) {
        pidfd_send_signal(&self.0[place], Signal::KILL).unwrap();
    }

    /// When each of them is dead, in their order. On a thread of its own, which does nothing else.
    pub async fn deaths(self) -> Vec<Instant> {
        tokio::task::spawn_blocking(move || self.watch()).await.unwrap()
    }

    fn watch(self) -> Vec<Instant> {
        let mut deaths = vec![None; self.0.len()];
        while deaths.contains(&None) {
            let living: Vec<usize> = (0..deaths.len()).filter(|place| deaths[*place].is_none()).collect();
            let mut polled: Vec<PollFd<'_>> = living.iter().map(|place| PollFd::new(self.0[*place].as_fd(), PollFlags::POLLIN)).collect();
            assert!(poll(&mut polled, PATIENCE).unwrap() > 0, "some do not die");
            let now = Instant::now();
            for (place, polled) in living.into_iter().zip(&polled) {
                deaths[place] = polled.any().unwrap_or(false).then_some(now);
            }
        }
        deaths.into_iter().flatten().collect()
    }
}

/// A process that we started, and one below it. Both are gone when this is dropped.
pub struct Parent(Child);

impl Parent {
    pub fn start(program: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        Self(command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// The process below it, once that is what it is going to be.
    pub async fn child(&self, name: &str) -> i32 {
        let pid = self.0.id();
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            if let Some(child) = children.split_whitespace().next().and_then(|child| child.parse().ok())
                && std::fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|comm| comm.trim_end() == name)
            {
                return child;
            }
            assert!(Instant::now() < end, "no process {name} below {pid}");
            sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _status = self.0.wait();
    }
}
