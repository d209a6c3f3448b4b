//! The replicas of a run, each in a network namespace of its own on the daemon's bridge, behind HAProxy: what cuts one off is a rule of
//! its own packet filter, so a partition is a real one.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::eventually;
use crate::harness::network::ip;
use crate::harness::replica::sundown;

const PORT: u16 = 7117;

/// Which way packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// What the replica sends.
    Out,
    /// What it should receive.
    In,
    Both,
}

pub struct Fleet {
    name: String,
    log: PathBuf,
    variables: Vec<(String, String)>,
    defect: Option<String>,
    slots: Vec<Slot>,
    haproxy: Option<Child>,
    /// Where clients knock.
    pub door: String,
}

struct Slot {
    namespace: String,
    address: String,
    child: Option<Child>,
    /// Whoever looks after it starts it again when it ends by itself, as a service manager does.
    looked_after: bool,
}

impl Fleet {
    /// As many namespaces, and a load balancer before them; no replica runs yet.
    pub fn new(bridge: &str, own: &str, count: u8, log: &Path, variables: &[(&str, &str)], defect: Option<String>) -> Self {
        let name = bridge.to_owned();
        let network = own.rsplit_once('.').unwrap().0;
        let mut slots = Vec::new();
        for number in 0..count {
            let namespace = format!("{name}-{number}");
            let address = format!("{network}.{}", 10 + number);
            let veth = format!("{name}r{number}");
            // What a run left that was killed.
            let _there = Command::new("ip").args(["netns", "delete", &namespace]).output();
            let _there = Command::new("ip").args(["link", "delete", &veth]).output();
            ip(&["netns", "add", &namespace]);
            ip(&["link", "add", &veth, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
            ip(&["link", "set", &veth, "master", bridge, "up"]);
            ip(&["-n", &namespace, "link", "set", "lo", "up"]);
            ip(&["-n", &namespace, "address", "add", &format!("{address}/24"), "dev", "eth0"]);
            ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
            slots.push(Slot { namespace, address, child: None, looked_after: false });
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut fleet = Self { name, log: log.to_owned(), variables, defect, slots, haproxy: None, door: format!("127.0.0.1:{port}") };
        fleet.balance();
        fleet
    }

    /// HAProxy repeats what it got no answer for, to another replica: what it must never do to a request without a key, it never does.
    fn balance(&mut self) {
        let servers = (0..self.slots.len())
            .map(|n| format!("  server r{n} {}:{PORT} check inter 300ms fall 2 rise 1\n", self.slots[n].address))
            .collect::<String>();
        let config = format!(
            "global\n  maxconn 2000\ndefaults\n  mode http\n  timeout connect 500ms\n  timeout client 30s\n  timeout server 4s\n  \
             timeout check 1s\n  retries 3\n  option redispatch 1\n  retry-on conn-failure empty-response response-timeout 503\n\
             frontend door\n  bind {}\n  http-request disable-l7-retry if METH_POST !{{ req.hdr(idempotency-key) -m found }}\n  \
             default_backend replicas\nbackend replicas\n  balance roundrobin\n  option httpchk GET /readyz\n  \
             http-check expect status 200\n{servers}",
            self.door
        );
        let file = self.log.join("haproxy.cfg");
        fs::write(&file, config).unwrap();
        let log = File::create(self.log.join("haproxy.log")).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.haproxy = Some(command.spawn().expect("haproxy is installed: run scripts/test"));
    }

    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// Starts one that does not run, and starts it again whenever it ends by itself.
    pub fn start(&mut self, n: usize) {
        self.start_once(n, &[]);
        self.keep(n);
    }

    /// From now on it is started again whenever it ends by itself.
    pub fn keep(&mut self, n: usize) {
        self.slots[n].looked_after = true;
    }

    /// Starts again whoever ended by itself.
    pub fn look_after(&mut self) {
        for n in 0..self.count() {
            if self.slots[n].looked_after && self.ended(n).is_some() {
                self.start(n);
            }
        }
    }

    /// Starts one that does not run, with further variables; when it ends, it stays so.
    pub fn start_once(&mut self, n: usize, more: &[(&str, &str)]) {
        let slot = &mut self.slots[n];
        assert!(slot.child.is_none(), "replica {n} runs already");
        let plain = sundown();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &slot.namespace]).arg(plain.get_program()).arg("serve");
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("SUNDOWN_LISTEN", format!("{}:{PORT}", slot.address)).env("SUNDOWN_LOG", "info,sundown=debug");
        command.envs(self.variables.iter().map(|(name, value)| (name, value))).envs(more.iter().copied());
        // A replica that is broken on purpose may be killed at a point besides.
        let points = more.iter().filter(|(name, _)| *name == "FAILPOINTS").map(|(_, points)| (*points).to_owned());
        let points: Vec<String> = self.defect.iter().map(|defect| format!("defect.{defect}=return")).chain(points).collect();
        command.env("FAILPOINTS", points.join(";"));
        let log = File::options().create(true).append(true).open(self.log.join(format!("replica-{n}.log"))).unwrap();
        slot.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
        slot.looked_after = false;
    }

    pub fn pid(&self, n: usize) -> Option<Pid> {
        self.slots[n].child.as_ref().map(|child| Pid::from_raw(i32::try_from(child.id()).unwrap()))
    }

    pub fn runs(&self, n: usize) -> bool {
        self.slots[n].child.is_some()
    }

    /// Sends a signal to one, if it runs.
    pub fn signal(&self, n: usize, signal: Signal) {
        if let Some(pid) = self.pid(n) {
            let _ended_before = kill(pid, signal);
        }
    }

    /// It has ended, and how; it may be started again then.
    pub fn ended(&mut self, n: usize) -> Option<ExitStatus> {
        let slot = &mut self.slots[n];
        let status = slot.child.as_mut()?.try_wait().unwrap()?;
        slot.child = None;
        Some(status)
    }

    /// Ends one with a signal, and waits for it.
    pub async fn end(&mut self, n: usize, signal: Signal) {
        self.slots[n].looked_after = false;
        self.signal(n, signal);
        eventually("a replica that was told to has ended", Duration::from_secs(60), async || {
            (!self.runs(n) || self.ended(n).is_some()).then_some(())
        })
        .await;
    }

    /// It is stopped by a signal.
    pub fn stands_still(&self, n: usize) -> bool {
        let Some(pid) = self.pid(n) else { return false };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }

    pub fn address(&self, n: usize) -> String {
        format!("{}:{PORT}", self.slots[n].address)
    }

    /// Whether one says that it is ready, asked past the load balancer.
    pub async fn ready(address: &str) -> bool {
        matches!(http(address, "GET", "/readyz", &[], "", Duration::from_secs(1)).await, Ok((200, _)))
    }

    pub async fn all_ready(&self) {
        eventually("every replica is ready", Duration::from_secs(60), async || {
            for n in 0..self.count() {
                if !self.runs(n) || !Self::ready(&self.address(n)).await {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    /// Loses packets between a replica and a port of ours (`None`: whatever the port, one connection by its own port).
    pub fn cut(&self, n: usize, far: Option<u16>, near: Option<u16>, way: Way) {
        self.filter(n, "-A", far, near, way);
    }

    /// Ends every loss of packets.
    pub fn mend(&self, n: usize) {
        for chain in ["INPUT", "OUTPUT"] {
            self.iptables(n, &["-F", chain]);
        }
    }

    fn filter(&self, n: usize, act: &str, far: Option<u16>, near: Option<u16>, way: Way) {
        for (chain, far_flag, near_flag, does) in
            [("OUTPUT", "--dport", "--sport", way != Way::In), ("INPUT", "--sport", "--dport", way != Way::Out)]
        {
            if !does {
                continue;
            }
            let ports: Vec<(&str, String)> =
                far.map(|port| (far_flag, port.to_string())).into_iter().chain(near.map(|port| (near_flag, port.to_string()))).collect();
            let mut rule = vec![act, chain, "-p", "tcp"];
            rule.extend(ports.iter().flat_map(|(flag, port)| [*flag, port.as_str()]));
            rule.extend(["-j", "DROP"]);
            self.iptables(n, &rule);
        }
    }

    fn iptables(&self, n: usize, args: &[&str]) {
        let mut all = vec!["netns", "exec", &self.slots[n].namespace, "iptables", "-w"];
        all.extend(args);
        ip(&all);
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in self.slots.iter_mut().filter_map(|slot| slot.child.as_mut()).chain(self.haproxy.as_mut()) {
            let _ended_already = child.kill();
            let _status = child.wait();
        }
        for slot in &self.slots {
            let _gone = Command::new("ip").args(["netns", "delete", &slot.namespace]).status();
        }
        for n in 0..self.slots.len() {
            // Its other end went with the namespace, if the kernel has come to it.
            let _gone = Command::new("ip").args(["link", "delete", &format!("{}r{n}", self.name)]).stderr(Stdio::null()).status();
        }
    }
}

/// One request on a connection of its own: status and body.
pub async fn http(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
    patience: Duration,
) -> std::io::Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: chaos\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
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
        Ok((status, body.to_owned()))
    };
    timeout(patience, exchange).await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
}
