//! A bridge of a test's own, for daemons and replicas in network namespaces. It goes with the test.

use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

/// The bridge, and our address on it.
pub struct Bridge {
    pub name: String,
    pub address: String,
}

impl Bridge {
    /// Up, with an address. Root only.
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "a network of its own needs root: run scripts/test");
        static NUMBER: AtomicU8 = AtomicU8::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let bridge = Self { name: format!("sdf{}n{number}", pid % 1_000_000), address: format!("10.{}.{}.1", 200 + number, pid % 256) };
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
