//! PgBouncer in transaction mode between a replica and its database.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio_postgres::config::Host;
use tokio_postgres::{Config, NoTls};

use crate::fake_docker::FakeDocker;
use crate::harness::lives::{each_expired_once, end, nothing_is_held, outcome, submit, submit_many};
use crate::harness::postgres::Scratch;
use crate::harness::replica::Replica;
use crate::harness::{Db, eventually, until};

/// A pooler before the server of all tests. Ended when dropped.
struct Pooler {
    child: Child,
    port: u16,
    _scratch: Scratch,
}

impl Pooler {
    /// In transaction mode, with so many connections to each database.
    async fn start(server: &Config, size: usize) -> Self {
        let scratch = Scratch::new();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let Host::Tcp(host) = &server.get_hosts()[0] else { panic!("SUNDOWN_TEST_DATABASE_URL names no host") };
        let password = server.get_password().map(|password| String::from_utf8_lossy(password).into_owned()).unwrap_or_default();
        let settings = format!(
            "[databases]\n* = host={host} port={}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\n\
             pool_mode = transaction\ndefault_pool_size = {size}\nmax_client_conn = 200\nlog_connections = 0\nlog_disconnections = 0\n",
            server.get_ports()[0],
            scratch.path().join("users").display()
        );
        fs::write(scratch.path().join("users"), format!("\"{}\" \"{password}\"\n", server.get_user().unwrap())).unwrap();
        let file = scratch.path().join("ini");
        fs::write(&file, settings).unwrap();
        let mut command = Command::new("pgbouncer");
        command.arg("-q").arg(&file).env_clear().env("PATH", "/usr/sbin:/usr/bin:/bin").current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(scratch.path().join("log")).unwrap());
        if nix::unistd::geteuid().is_root() {
            // It refuses to be root.
            let user = nix::unistd::User::from_name("postgres").unwrap().expect("a user `postgres`: run scripts/test");
            for file in [&file, &scratch.path().join("users")] {
                chown(file, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
            }
            command.gid(user.gid.as_raw()).uid(user.uid.as_raw());
        }
        let child = command.spawn().expect("pgbouncer is installed: run scripts/test");
        let pooler = Self { child, port, _scratch: scratch };
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

    /// The address of a database through it.
    fn url(&self, config: &Config) -> String {
        format!("postgres://{}@127.0.0.1:{}/{}", config.get_user().unwrap(), self.port, config.get_dbname().unwrap())
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

fn count(log: &str, words: &str) -> usize {
    log.lines().filter(|line| line.contains(words)).count()
}

const DEAF: &str = "notifications do not arrive";

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_transaction_pooler_it_says_so_once_and_polls_and_agents_live_their_lives() {
    let (db, fake) = (Db::new().await, FakeDocker::start().await);
    let pooler = Pooler::start(&db.config(), 3).await;
    let (url, endpoint) = (pooler.url(&db.config()), fake.endpoint());
    let variables = [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_POLL", "300ms"), ("SUNDOWN_LEASE", "2s")];
    let (one, two) = tokio::join!(Replica::start(&url, &variables), Replica::start(&url, &variables));
    let client = db.client().await;
    for replica in [&one, &two] {
        until("it has noticed", async || replica.log().contains(DEAF)).await;
    }
    let exits = submit_many(&client, 10, "busybox", "sleep 0.3; exit 7", ", ttl => '10min'").await;
    let expires = submit_many(&client, 10, "busybox", "ignore-term; sleep inf", ", ttl => '1s', grace => '1s'").await;
    let deleted = one.http("POST", "/agents", r#"{"image":"busybox","command":["sleep","inf"]}"#).await;
    assert_eq!(deleted.status, 201, "{deleted:?}");
    let id = deleted.json()["id"].as_str().unwrap().parse().unwrap();
    until("it runs", async || two.http("GET", &format!("/agents/{id}"), "").await.json()["state"] == "running").await;
    assert_eq!(two.http("DELETE", &format!("/agents/{id}"), "").await.status, 202);
    assert_eq!(outcome(&client, id).await, end("expired", "terminated", Some(143)));
    for id in exits {
        assert_eq!(outcome(&client, id).await, end("failed", "exited", Some(7)));
    }
    each_expired_once(&client, &expires).await;
    for replica in [&one, &two] {
        let log = replica.log();
        assert_eq!(count(&log, DEAF), 1, "{log}");
        assert_eq!(count(&log, "notifications arrive"), 0, "{log}");
        assert_eq!(count(&log, "prepared statement"), 0, "{log}");
        assert_eq!(count(&log, "\"ERROR\""), 0, "{log}");
    }
    assert_eq!(fake.containers(), []);
    nothing_is_held(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_direct_address_beside_the_pooler_notifications_arrive_and_migrations_go_that_way() {
    let (db, fake) = (Db::empty().await, FakeDocker::start().await);
    let pooler = Pooler::start(&db.config(), 3).await;
    let (url, direct, endpoint) = (pooler.url(&db.config()), db.url(), fake.endpoint());
    // What it hears is all that wakes it.
    let variables = [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_DIRECT_URL", direct.as_str()), ("SUNDOWN_POLL", "1h")];
    let replica = Replica::start(&url, &variables).await;
    until("it hears", async || replica.log().contains("notifications arrive")).await;
    let client = db.client().await;
    for _ in 0..3 {
        let id = submit(&client, "busybox", "exit 0", "").await;
        assert_eq!(outcome(&client, id).await, end("succeeded", "exited", Some(0)));
    }
    let log = replica.log();
    assert_eq!((count(&log, "\"migrated\""), count(&log, DEAF)), (2, 0), "{log}");
    // Nobody left a lock of the session in the pooler's connections, where it would stay.
    let locks = "select count(*) from pg_locks l join pg_database d on d.oid = l.database where l.locktype = 'advisory' and d.datname = current_database()";
    assert_eq!(client.query_one(locks, &[]).await.unwrap().get::<_, i64>(0), 0);
    nothing_is_held(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_together_behind_a_pooler_on_an_empty_database_all_come_up() {
    let (db, fake) = (Db::empty().await, FakeDocker::start().await);
    let pooler = Pooler::start(&db.config(), 4).await;
    let (url, endpoint) = (pooler.url(&db.config()), fake.endpoint());
    let variables = [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_POLL", "300ms")];
    let replicas = tokio::join!(Replica::start(&url, &variables), Replica::start(&url, &variables), Replica::start(&url, &variables));
    let client = db.client().await;
    let id = submit(&client, "busybox", "exit 0", "").await;
    assert_eq!(outcome(&client, id).await, end("succeeded", "exited", Some(0)));
    // And one that comes later finds no lock of somebody who is long gone.
    let _later = Replica::start(&url, &variables).await;
    drop(replicas);
}
