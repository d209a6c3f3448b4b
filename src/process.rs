//! Processes of containers, as the kernel under us tells it. Must not ask Docker.
//!
//! A daemon that is killed in the middle of a start forgets it: the container is as good as new to it, while its process runs, and
//! neither a signal nor a removal by Docker reaches that any more. The kernel still knows whose it is, by its control group.
//!
//! Guarantees: a signal goes only to a process that is inside of the container's own control group while its pid is held.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::Instant;

/// Between two looks at what was told to die.
const STEP: Duration = Duration::from_millis(20);
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Ends every process of a container that can be seen from here, by SIGKILL, and waits until they are gone. `false`: one is still there.
pub async fn end_all(container: &str) -> bool {
    let until = Instant::now() + PATIENCE;
    loop {
        let id = container.to_owned();
        // Some hundred small files: not on a thread that serves others.
        let seen = tokio::task::spawn_blocking(move || signal_all(&id)).await.unwrap_or(0);
        if seen == 0 {
            return true;
        }
        tracing::warn!(container, processes = seen, "ended processes that the daemon had forgotten");
        if Instant::now() > until {
            return false;
        }
        tokio::time::sleep(STEP).await;
    }
}

/// Sends SIGKILL to every living process of a container, and answers how many there are.
fn signal_all(container: &str) -> usize {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| signal(*pid, container).is_some()).count()
}

fn signal(pid: i32, container: &str) -> Option<()> {
    let inside = || fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| is_inside(&cgroups, container));
    if !inside() {
        return None;
    }
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Asked again now that its number cannot become another's.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let alive = stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']));
    if !inside() || !alive {
        return None;
    }
    // Whether or not it could be sent: it is there.
    let _sent = pidfd_send_signal(process, Signal::KILL);
    Some(())
}

/// Whether a list of control groups has one of this container: a component of a path that is its full id, bare as dockerd names it, or in
/// a unit as systemd does.
fn is_inside(cgroups: &str, container: &str) -> bool {
    let full = container.len() == 64 && container.bytes().all(|byte| byte.is_ascii_hexdigit());
    let unit = format!("docker-{container}.scope");
    let paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    full && paths.flat_map(|path| path.split('/')).any(|component| component == container || component == unit)
}
