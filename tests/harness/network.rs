//! A bridge of a test's own, for daemons and replicas in network namespaces. It goes with the test.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;

/// The bridge, and our address on it.
pub struct Bridge {
    pub name: String,
    pub address: String,
    /// Holds the network for us among all tests of this machine, until we end, however.
    _ours: UdpSocket,
}

impl Bridge {
    /// Up, with an address. Root only.
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "a network of its own needs root: run scripts/test");
        let free = (0..=255u8).find_map(|number| {
            let ours = UdpSocket::bind(("127.0.0.1", 47_000 + u16::from(number))).ok()?;
            // What a test left that was killed may still have servers on it.
            (!Path::new(&format!("/sys/class/net/sundown{number}")).exists()).then_some((number, ours))
        });
        let (number, ours) = free.expect("one of 256 networks is free");
        let bridge = Self { name: format!("sundown{number}"), address: format!("10.214.{number}.1"), _ours: ours };
        ip(&["link", "add", "name", &bridge.name, "type", "bridge"]);
        ip(&["address", "add", &format!("{}/24", bridge.address), "dev", &bridge.name]);
        ip(&["link", "set", &bridge.name, "up"]);
        bridge
    }

    /// The network's own part of an address on it, as in `10.1.2`.
    pub fn network(&self) -> &str {
        self.address.rsplit_once('.').map_or("", |(network, _)| network)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _gone = Command::new("ip").args(["link", "delete", &self.name]).output();
    }
}

/// `ip` with these arguments, which must succeed.
pub fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("iproute2 is installed: run scripts/test");
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}
