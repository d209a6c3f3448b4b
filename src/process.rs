//! Processes of containers, as the kernel under us tells it. Must not ask Docker.
//!
//! A daemon that is killed in the middle of a start forgets it: the container is as good as new to it, while its process runs, and
//! neither a signal nor a removal by Docker reaches that any more. The kernel still knows whose it is, by its control group. And SIGKILL by
//! way of the daemon takes tens of milliseconds, or seconds when many are due at once, where the kernel takes less than one.
//!
//! Guarantees: a signal goes only to a process that is inside of the container's own control group while its pid is held. An age is never
//! more than the true one, and never another process's: whatever cannot be seen from here, be it on another machine or in another pid
//! namespace, has none, and gets no signal.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal, test_kill_process};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// Between two looks at what was told to die.
const STEP: Duration = Duration::from_millis(20);
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long an init may take to die of SIGKILL, and all who are in its pid namespace with it. One that is frozen does not.
const DYING: Duration = Duration::from_millis(250);

/// Ends a container by SIGKILL to its init, which Docker said has this pid, and waits until it is dead: the kernel says so only when nobody
/// is left in its pid namespace. `false`: it is not certainly that process, is not ours to signal, or does not die; the daemon's to end.
pub async fn end_init(pid: u32, container: &str) -> bool {
    // Listened to before the signal goes: a death that nobody would hear of is left to the daemon.
    let Some(init) = hold_init(pid, container).and_then(listened_to) else { return false };
    if pidfd_send_signal(init.get_ref(), Signal::KILL).is_err() {
        return false;
    }
    matches!(tokio::time::timeout(DYING, init.readable()).await, Ok(Ok(_)))
}

#[expect(deprecated, reason = "what replaces it is unsafe, for descriptors that somebody else may close; nobody else has this one")]
fn listened_to(held: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(held, Interest::READABLE).ok()
}

/// A container's init, held. What is read under its number once it is held is read of it, or of somebody who has the number after its
/// death: then a signal reaches nobody.
fn hold_init(pid: u32, container: &str) -> Option<OwnedFd> {
    let held = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    (is_inside(&read("cgroup")?, container) && is_init(&read("status")?, pid)).then_some(held)
}

/// Whether a container's init, which Docker said has this pid, can be seen to live. `false` says nothing: it may be out of sight.
#[must_use]
pub fn lives(pid: u32, container: &str) -> bool {
    // Held while it is looked at: what is read is of nobody else.
    let Some(_held) = hold_init(pid, container) else { return false };
    fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| !is_dead(&status))
}

/// Dead, and not taken leave of by its parent yet.
fn is_dead(status: &str) -> bool {
    status.lines().find_map(|line| line.strip_prefix("State:")).is_none_or(|state| state.trim_start().starts_with(['Z', 'X']))
}

/// Whether a process is the first of a pid namespace right below ours. Not deeper: a container may hold containers of its own.
fn is_init(status: &str, pid: u32) -> bool {
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    pids.split_whitespace().eq([pid.to_string().as_str(), "1"])
}

/// Why inits of a daemon's containers cannot be ended from here. `None`: nothing speaks against it. `daemon` is its pid, as the kernel names
/// who listens at its socket.
#[must_use]
pub fn out_of_reach(daemon: Option<i32>) -> Option<&'static str> {
    if pidfd_open(getpid(), PidfdFlags::empty()).is_err() {
        return Some("this kernel holds no process by a descriptor; Linux does since 5.3");
    }
    let elsewhere = Some("its processes are in another pid namespace");
    // Whoever cannot be seen from here has the pid 0.
    let Some(daemon) = daemon.and_then(|pid| Pid::from_raw(pid.max(0))) else { return elsewhere };
    if test_kill_process(daemon).is_err() {
        return Some("this user may not signal its processes; that takes root, or CAP_KILL");
    }
    let namespace = |pid: Pid| fs::read_link(format!("/proc/{}/ns/pid", pid.as_raw_pid())).ok();
    // Not everybody may read it who may signal.
    match namespace(daemon) {
        theirs @ Some(_) if theirs != namespace(getpid()) => elsewhere,
        _ => None,
    }
}

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

/// The birth of the process that Docker says is a container's init, in time since boot. `None`: it is not to be seen from here.
pub fn born(pid: u32, container: &str) -> Option<Duration> {
    // Held open, so that all of this is read of one process, also when its pid is given to another meanwhile.
    let process = File::open(format!("/proc/{pid}")).ok()?;
    let read = |file: &str| fs::read_to_string(format!("/proc/self/fd/{}/{file}", process.as_raw_fd())).ok();
    if !is_inside(&read("cgroup")?, container) {
        return None;
    }
    birth(&read("stat")?, sysconf(SysconfVar::CLK_TCK).ok()??)
}

/// Time since boot. It goes on while the machine sleeps, as deadlines do, and nobody can set it.
pub fn since_boot() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_BOOTTIME).ok().map(Duration::from)
}

/// Whether a list of control groups has one of this container: a component of a path that is its full id, bare as dockerd names it, or in
/// a unit as systemd does.
fn is_inside(cgroups: &str, container: &str) -> bool {
    let full = container.len() == 64 && container.bytes().all(|byte| byte.is_ascii_hexdigit());
    let unit = format!("docker-{container}.scope");
    let paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    full && paths.flat_map(|path| path.split('/')).any(|component| component == container || component == unit)
}

/// The birth in a process's `stat`: the 22nd field, in ticks, cut to a whole one; taken for the next, for nobody may seem older.
fn birth(stat: &str, ticks_per_second: i64) -> Option<Duration> {
    // The name, in brackets, may hold spaces and brackets; behind it comes the third field.
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks = fields.split(' ').nth(19)?.parse::<u64>().ok()?.checked_add(1)?;
    let per_second = u64::try_from(ticks_per_second).ok().filter(|ticks| *ticks > 0)?;
    let nanos = u128::from(ticks % per_second) * 1_000_000_000 / u128::from(per_second);
    Some(Duration::new(ticks / per_second, u32::try_from(nanos).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn stat(name: &str, start: &str) -> String {
        format!(
            "4711 ({name}) S 1 4711 4711 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 {start} 1000 200 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 17 1\n"
        )
    }

    #[test]
    fn a_birth_is_read_in_ticks_and_never_too_early() {
        assert_eq!(birth(&stat("docker-init", "0"), 100), Some(Duration::from_millis(10)));
        assert_eq!(birth(&stat("docker-init", "12345"), 100), Some(Duration::from_millis(123_460)));
        assert_eq!(birth(&stat("docker-init", "99"), 100), Some(Duration::from_secs(1)));
        assert_eq!(birth(&stat("docker-init", "1023"), 1024), Some(Duration::from_secs(1)));
        assert_eq!(birth(&stat("docker-init", "1024"), 1024), Some(Duration::from_nanos(1_000_976_562)));
    }

    #[test]
    fn a_name_cannot_shift_the_fields() {
        for name in ["sh", "a b", ") S 9 9", "((", ") 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 (", ""] {
            assert_eq!(birth(&stat(name, "500"), 100), Some(Duration::from_millis(5010)), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_no_birth() {
        for text in ["", "1 (sh) S 1 2 3", &stat("sh", "-1"), &stat("sh", "soon"), &stat("sh", &u64::MAX.to_string())] {
            assert_eq!(birth(text, 100), None, "{text}");
        }
        assert_eq!(birth(&stat("sh", "500"), 0), None);
        assert_eq!(birth(&stat("sh", "500"), -1), None);
    }

    #[test]
    fn a_process_is_a_containers_only_by_its_full_id() {
        let v1 = format!("9:name=systemd:/docker/{ID}\n8:pids:/docker/{ID}\n4:memory:/docker/{ID}\n0::/\n");
        let v2 = format!("0::/system.slice/docker-{ID}.scope\n");
        // As seen from a cgroup namespace of one's own, and from a process that made groups inside.
        let relative = format!("0::/../{ID}\n");
        let deeper = format!("0::/docker/{ID}/inner\n");
        for cgroups in [v1, v2, relative, deeper] {
            assert!(is_inside(&cgroups, ID), "{cgroups}");
            assert!(!is_inside(&cgroups, &ID[..12]), "a short id: {cgroups}");
            assert!(!is_inside(&cgroups, &ID.replace('0', "1")), "another's: {cgroups}");
            assert!(!is_inside(&cgroups, ""), "none: {cgroups}");
        }
        for cgroups in ["", "0::/\n", &format!("{ID}\n"), &format!("4:{ID}:/\n"), &format!("0::/docker/{ID}0\n"), &format!("0::/x{ID}\n")] {
            assert!(!is_inside(cgroups, ID), "{cgroups}");
        }
    }

    #[test]
    fn an_init_is_the_first_of_a_namespace_right_below_ours() {
        let status = |pids: &str| format!("Name:\tdocker-init\nPid:\t4711\nNStgid:\t{pids}\nNSpid:\t{pids}\nNSsid:\t1\n");
        assert!(is_init(&status("4711\t1"), 4711));
        for pids in ["4711", "4711\t2", "4711\t11", "1", "1\t1", "4711\t7\t1", "4711\t1\t1", ""] {
            assert!(!is_init(&status(pids), 4711), "{pids:?}");
        }
        assert!(!is_init("Name:\tNSpid:\t4711\t1\n", 4711), "it is the name of one");
        assert!(!is_init("", 4711));
    }

    #[test]
    fn whoever_is_dead_does_not_live_though_his_number_is_still_taken() {
        for (state, dead) in
            [("R (running)", false), ("S (sleeping)", false), ("T (stopped)", false), ("Z (zombie)", true), ("X (dead)", true)]
        {
            assert_eq!(is_dead(&format!("Name:\tsh\nState:\t{state}\nPid:\t4711\n")), dead, "{state}");
        }
        assert!(is_dead(""), "nothing is known of it");
        assert!(!lives(std::process::id(), ID), "it is this test");
    }

    #[tokio::test]
    async fn a_process_that_is_not_in_the_containers_group_is_not_signalled() {
        assert!(!end_init(std::process::id(), ID).await, "it is this test, which goes on");
        for nobody in [0, u32::MAX, i32::MAX.unsigned_abs()] {
            assert!(!end_init(nobody, ID).await, "{nobody}");
        }
    }

    #[test]
    fn what_is_seen_of_a_daemon_says_whether_its_containers_are_within_reach() {
        let us = i32::try_from(std::process::id()).expect("it is a pid");
        assert_eq!(out_of_reach(Some(us)), None);
        for unseen in [None, Some(0), Some(-1)] {
            assert!(out_of_reach(unseen).is_some_and(|why| why.contains("namespace")), "{unseen:?}");
        }
    }

    #[test]
    fn a_process_that_is_not_in_the_containers_group_has_no_age() {
        assert_eq!(born(std::process::id(), ID), None, "it is this test");
        assert_eq!(born(u32::MAX, ID), None, "there is none");
    }

    #[test]
    fn the_clock_of_births_is_the_one_that_we_read() {
        // This test's own process is younger than the machine, and older than nothing.
        let stat = fs::read_to_string("/proc/self/stat").expect("there is a /proc");
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().expect("the kernel has a tick");
        let (born, now) = (birth(&stat, ticks).expect("we were born"), since_boot().expect("there is a clock"));
        assert!(born <= now + Duration::from_millis(10), "born {born:?}, now {now:?}");
        assert!(now - born.min(now) < Duration::from_secs(600), "born {born:?}, now {now:?}");
    }
}
