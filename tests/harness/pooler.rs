//! PgBouncer in transaction mode, before a server of the tests. It goes with its test.

#![allow(clippy::disallowed_methods, reason = "clean-up runs outside of any runtime")]

use std::fs::{self, File};
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio_postgres::config::Host;
use tokio_postgres::{Config, NoTls};

use super::eventually;
use super::postgres::Scratch;

/// The pooler. Ended when dropped.
pub struct Pooler {
    child: Child,
    address: IpAddr,
    pub port: u16,
    scratch: Scratch,
}

impl Pooler {
    /// With so many connections to each database, listening on an address of ours.
    pub async fn start(server: &Config, size: usize, address: IpAddr) -> Self {
        let scratch = Scratch::new();
        let port = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
        let Host::Tcp(host) = &server.get_hosts()[0] else { panic!("SUNDOWN_TEST_DATABASE_URL names no host") };
        let password = server.get_password().map(|password| String::from_utf8_lossy(password).into_owned()).unwrap_or_default();
        let settings = format!(
            "[databases]\n* = host={host} port={}\n\
             [pgbouncer]\nlisten_addr = {address}\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\n\
             pool_mode = transaction\ndefault_pool_size = {size}\nmax_client_conn = 200\nserver_login_retry = 1\nlog_connections = 0\nlog_disconnections = 0\n",
            server.get_ports()[0],
            scratch.path().join("users").display()
        );
        fs::write(scratch.path().join("users"), format!("\"{}\" \"{password}\"\n", server.get_user().unwrap())).unwrap();
        let file = scratch.path().join("ini");
        fs::write(&file, settings).unwrap();
        let child = Self::spawn(&scratch);
        let pooler = Self { child, address, port, scratch };
        let mut config = server.clone();
        config.dbname("postgres");
        let config: Config = pooler.url(&config).parse().unwrap();
        eventually("PgBouncer answers", Duration::from_secs(20), async || {
            let (client, connection) = config.connect(NoTls).await.ok()?;
            tokio::spawn(connection);
            client.simple_query("select 1").await.ok()
        })
        .await;
        pooler
    }

    fn spawn(scratch: &Scratch) -> Child {
        let (file, users) = (scratch.path().join("ini"), scratch.path().join("users"));
        let log = File::options().create(true).append(true).open(scratch.path().join("log")).unwrap();
        let mut command = Command::new("pgbouncer");
        command.arg(&file).env_clear().env("PATH", "/usr/sbin:/usr/bin:/bin").current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if nix::unistd::geteuid().is_root() {
            // It refuses to be root.
            let user = nix::unistd::User::from_name("postgres").unwrap().expect("a user `postgres`: run scripts/test");
            for file in [&file, &users] {
                chown(file, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
            }
            command.gid(user.gid.as_raw()).uid(user.uid.as_raw());
        }
        command.spawn().expect("pgbouncer is installed: run scripts/test")
    }

    /// Starts it again if it has ended, as a service manager does.
    pub fn look_after(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            let log = fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("PgBouncer had ended, {status}; its last words:\n{}", lines[lines.len().saturating_sub(3)..].join("\n"));
            self.child = Self::spawn(&self.scratch);
        }
    }

    /// The address of a database through it.
    pub fn url(&self, config: &Config) -> String {
        format!("postgres://{}@{}:{}/{}", config.get_user().unwrap(), self.address, self.port, config.get_dbname().unwrap())
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}
