//! What a service manager sees of a replica: it says that it serves, lives and stops, and takes the socket that was opened for it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod harness;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::replica::{Replica, sundown};
use harness::{Db, eventually};
use nix::sys::signal::Signal;

/// The next thing that is said.
fn heard(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer).expect("something is said in time");
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_manager_is_told_that_it_serves_and_lives_and_stops() {
    let db = Db::new().await;
    let path = std::env::temp_dir().join(format!("sd-notify-{}", uuid::Uuid::new_v4().simple()));
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut replica = Replica::spawn(&db.url(), &[("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "600000")]);
    assert_eq!(heard(&socket).trim_end(), "READY=1");
    // It is told to whoever restarts it otherwise.
    for _ in 0..3 {
        assert_eq!(heard(&socket).trim_end(), "WATCHDOG=1");
    }
    replica.signal(Signal::SIGTERM);
    let stopping = std::iter::repeat_with(|| heard(&socket)).find(|said| said.trim_end() != "WATCHDOG=1");
    assert_eq!(stopping.unwrap().trim_end(), "STOPPING=1");
    assert!(replica.ended().await.success());
    std::fs::remove_file(path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_that_was_opened_for_it_is_the_one_on_which_it_listens() {
    let db = Db::new().await;
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut manager = Command::new("systemd-socket-activate")
        .args(["-l", &address.to_string(), "-E", "SUNDOWN_DATABASE_URL", "-E", "SUNDOWN_LISTEN", "-E", "DOCKER_HOST"])
        .arg(sundown().get_program())
        .arg("serve")
        // Where it would listen by itself, nobody can.
        .envs([("SUNDOWN_DATABASE_URL", db.url().as_str()), ("SUNDOWN_LISTEN", "192.0.2.1:1")])
        .spawn()
        .unwrap();
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
    // The first who comes starts it.
    let alive = eventually("it answers", Duration::from_secs(30), async || http.get(format!("http://{address}/healthz")).send().await.ok());
    assert_eq!(alive.await.status(), 200);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(manager.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(manager.wait().unwrap().success());
}

#[test]
fn the_units_are_as_systemd_takes_them() {
    let dir = std::env::temp_dir().join(format!("sd-units-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir(&dir).unwrap();
    for name in ["sundown.service", "sundown.socket"] {
        let unit = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(name)).unwrap();
        // What is not on every machine: the program at its place.
        std::fs::write(dir.join(name), unit.replace("/usr/local/bin/sundown", env!("CARGO_BIN_EXE_sundown"))).unwrap();
    }
    let paths = ["sundown.service", "sundown.socket"].map(|name| dir.join(name));
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&paths).output().unwrap();
    std::fs::remove_dir_all(dir).unwrap();
    let said = String::from_utf8(verified.stderr).unwrap();
    assert!(verified.status.success() && !said.contains("sundown."), "{said}");
}
