//! The embedded Postgres, on the real one that is installed here: found again, durable, and as any user.
//!
//! Run by root, the server is tested as both kinds of user: root itself, and `nobody` through a copy of this
//! program that runs one test as a child. Run by an ordinary user, everything is tested as that user.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use sundown::embedded::{self, Embedded, EmbeddedError};
use tokio_postgres::{Client, NoTls};

/// Names the directory to a child that runs as another user.
const CHILD_DIR: &str = "SUNDOWN_TEST_EMBEDDED_DIR";

/// A directory that ends with the test, and the server in it too, however the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        // Short: a socket's path must fit into 107 bytes.
        let name = format!("sd-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn data(&self) -> PathBuf {
        self.0.join("data")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(pid) = postmaster(&self.data()) {
            let _ = kill(pid, Signal::SIGQUIT);
            while postmaster(&self.data()).is_some() {
                std::thread::yield_now();
            }
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The running server's pid, as Postgres itself records it.
fn postmaster(dir: &Path) -> Option<Pid> {
    let text = fs::read_to_string(dir.join("pg/data/postmaster.pid")).ok()?;
    let pid = Pid::from_raw(text.lines().next()?.parse().ok()?);
    kill(pid, None).is_ok().then_some(pid)
}

async fn connect(embedded: &Embedded) -> Client {
    let (client, connection) = embedded.config().connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn one_text(client: &Client, sql: &str) -> String {
    client.query_typed(sql, &[]).await.unwrap()[0].get(0)
}

/// Everything that a user sees of it, from nothing to the second start.
async fn from_nothing_to_a_second_start(dir: &Path) {
    let first = embedded::start(dir).await.unwrap();
    let client = connect(&first).await;
    assert_eq!(one_text(&client, "show fsync").await, "on");
    assert_eq!(one_text(&client, "show synchronous_commit").await, "on");
    assert_eq!(one_text(&client, "show full_page_writes").await, "on");
    assert_eq!(one_text(&client, "show listen_addresses").await, "");
    assert_eq!(one_text(&client, "show server_encoding").await, "UTF8");
    assert_eq!(one_text(&client, "select current_database()::text").await, "sundown");
    client.batch_execute("create table kept (word text); insert into kept values ('still here')").await.unwrap();
    drop(client);
    first.stop().await.unwrap();
    assert_eq!(postmaster(dir), None, "the last one out stops the server");

    let second = embedded::start(dir).await.unwrap();
    let client = connect(&second).await;
    assert_eq!(one_text(&client, "select word from kept").await, "still here");
    drop(client);
    second.stop().await.unwrap();
    assert_eq!(postmaster(dir), None);
}

#[tokio::test]
async fn starts_and_is_found_again_with_its_data() {
    let scratch = Scratch::new();
    from_nothing_to_a_second_start(&scratch.data()).await;

    let mode = |name: &str| fs::metadata(scratch.data().join(name)).unwrap().mode() & 0o777;
    assert_eq!(mode("password"), 0o600);
    assert_eq!(mode("pg"), 0o700);
    if geteuid().is_root() {
        let owner = fs::metadata(scratch.data().join("pg/data")).unwrap().uid();
        assert_ne!(owner, 0, "run by root, the server has an ordinary user of its own");
    }
    let log = fs::read_to_string(scratch.data().join("server.log")).unwrap();
    let password = fs::read_to_string(scratch.data().join("password")).unwrap();
    assert!(!log.contains(password.trim()));
}

/// Root becomes `nobody`; for anybody else the test above has shown it already.
#[tokio::test]
async fn starts_as_an_ordinary_user() {
    let scratch = Scratch::new();
    if !geteuid().is_root() {
        return from_nothing_to_a_second_start(&scratch.data()).await;
    }
    let nobody = User::from_name("nobody").unwrap().expect("a user `nobody`");
    let home = scratch.0.join("nobody");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(nobody.uid.as_raw()), None).unwrap();
    // The build directory may be closed to other users, so the child is a copy.
    let program = scratch.0.join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = Command::new(&program)
        .args(["--exact", "as_an_ordinary_user", "--ignored", "--nocapture"])
        .env(CHILD_DIR, home.join("data"))
        .current_dir("/")
        .gid(nobody.gid.as_raw())
        .uid(nobody.uid.as_raw())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let owner = fs::metadata(home.join("data/pg/data")).unwrap().uid();
    assert_eq!(owner, nobody.uid.as_raw());
}

#[tokio::test]
#[ignore = "run by starts_as_an_ordinary_user, as that user"]
async fn as_an_ordinary_user() {
    let dir = std::env::var(CHILD_DIR).expect("the directory from starts_as_an_ordinary_user");
    assert!(!geteuid().is_root());
    from_nothing_to_a_second_start(Path::new(&dir)).await;
}

#[tokio::test]
async fn what_was_committed_survives_a_killed_server() {
    let scratch = Scratch::new();
    let first = embedded::start(&scratch.data()).await.unwrap();
    let client = connect(&first).await;
    client.batch_execute("create table kept (n int); insert into kept values (42)").await.unwrap();
    // A backend that is busy when its postmaster dies holds the shared memory for a moment longer.
    let busy = connect(&first).await;
    let busy = tokio::spawn(async move { busy.batch_execute("select pg_sleep(1)").await });
    kill(postmaster(&scratch.data()).unwrap(), Signal::SIGKILL).unwrap();

    let second = embedded::start(&scratch.data()).await.unwrap();
    let client = connect(&second).await;
    assert_eq!(one_text(&client, "select n::text from kept").await, "42");
    let _ = busy.await.unwrap();
}

#[tokio::test]
async fn starts_at_once_share_one_server_and_the_last_to_leave_stops_it() {
    let scratch = Scratch::new();
    let dir = scratch.data();
    let (one, two, three) = tokio::join!(embedded::start(&dir), embedded::start(&dir), embedded::start(&dir));
    let (one, two, three) = (one.unwrap(), two.unwrap(), three.unwrap());
    let started = "select pg_postmaster_start_time()::text";
    let first = one_text(&connect(&one).await, started).await;
    assert_eq!(first, one_text(&connect(&two).await, started).await);
    assert_eq!(first, one_text(&connect(&three).await, started).await);

    one.stop().await.unwrap();
    two.stop().await.unwrap();
    assert!(postmaster(&dir).is_some(), "one replica still uses it");
    assert_eq!(first, one_text(&connect(&three).await, started).await);
    three.stop().await.unwrap();
    assert_eq!(postmaster(&dir), None);
}

#[tokio::test]
async fn a_server_with_another_client_is_left_running_and_joined_by_the_next_start() {
    let scratch = Scratch::new();
    let first = embedded::start(&scratch.data()).await.unwrap();
    let operator = connect(&first).await;
    let started = "select pg_postmaster_start_time()::text";
    let before = one_text(&operator, started).await;
    first.stop().await.unwrap();

    let second = embedded::start(&scratch.data()).await.unwrap();
    assert_eq!(before, one_text(&connect(&second).await, started).await);
    drop(operator);
    second.stop().await.unwrap();
    assert_eq!(postmaster(&scratch.data()), None);
}

#[tokio::test]
async fn an_initialisation_that_was_cut_short_does_not_stop_the_next_start() {
    let scratch = Scratch::new();
    let dir = scratch.data();
    {
        let start = embedded::start(&dir);
        tokio::pin!(start);
        // Cut off as soon as initdb has begun to write; dropping the future kills it.
        loop {
            tokio::select! {
                _ = &mut start => panic!("it must not finish first"),
                () = tokio::time::sleep(std::time::Duration::from_millis(1)) => {}
            }
            if half_made(&dir).any(|fresh| fresh.join("PG_VERSION").exists()) {
                break;
            }
        }
    }
    assert!(!dir.join("pg/data").exists());
    assert_ne!(half_made(&dir).count(), 0);
    let whole = embedded::start(&dir).await.unwrap();
    assert_eq!(one_text(&connect(&whole).await, "select 'up'").await, "up");
    whole.stop().await.unwrap();
}

fn half_made(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir.join("pg")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("/data.new."))
}

#[tokio::test]
async fn a_stale_pid_file_is_left_to_postgres_to_judge() {
    let scratch = Scratch::new();
    let dir = scratch.data();
    embedded::start(&dir).await.unwrap().stop().await.unwrap();
    // The pid of a process that lives and is no server, as after a reboot: ours.
    let stale = format!("{}\n{}\n1\n5432\n..\n\n0 0\nready\n", std::process::id(), dir.display());
    let pid_file = dir.join("pg/data/postmaster.pid");
    fs::write(&pid_file, stale).unwrap();
    let owner = fs::metadata(dir.join("pg/data")).unwrap();
    std::os::unix::fs::chown(&pid_file, Some(owner.uid()), Some(owner.gid())).unwrap();
    if !geteuid().is_root() {
        // Then the pid belongs to the server's own user, and Postgres refuses to guess.
        return;
    }
    let embedded = embedded::start(&dir).await.unwrap();
    assert_eq!(one_text(&connect(&embedded).await, "select 'up'").await, "up");
    embedded.stop().await.unwrap();
}

#[tokio::test]
async fn what_cannot_work_is_refused_with_a_sentence_that_helps() {
    let scratch = Scratch::new();

    let long = scratch.0.join("x".repeat(120));
    let error = embedded::start(&long).await.unwrap_err();
    assert!(matches!(error, EmbeddedError::PathTooLong { .. }), "{error}");
    assert!(error.to_string().contains("shorter SUNDOWN_DATA"));

    let foreign = scratch.0.join("foreign");
    fs::create_dir_all(foreign.join("pg/data")).unwrap();
    fs::write(foreign.join("pg/data/diary"), "dear").unwrap();
    let error = embedded::start(&foreign).await.unwrap_err();
    assert!(matches!(error, EmbeddedError::NotADatabase(_)), "{error}");
    assert_eq!(fs::read_to_string(foreign.join("pg/data/diary")).unwrap(), "dear");

    let older = scratch.0.join("older");
    fs::create_dir_all(older.join("pg/data")).unwrap();
    fs::write(older.join("pg/data/PG_VERSION"), "9\n").unwrap();
    let error = embedded::start(&older).await.unwrap_err();
    assert!(error.to_string().contains("postgresql-9"), "{error}");

    let dir = scratch.data();
    embedded::start(&dir).await.unwrap().stop().await.unwrap();
    fs::remove_file(dir.join("password")).unwrap();
    let error = embedded::start(&dir).await.unwrap_err();
    assert!(matches!(error, EmbeddedError::PasswordMissing(_)), "{error}");
}

#[tokio::test]
async fn any_path_will_do() {
    let scratch = Scratch::new();
    let dir = scratch.0.join("a $(b) \"c\" 'd', é");
    let embedded = embedded::start(&dir).await.unwrap();
    assert_eq!(one_text(&connect(&embedded).await, "select 'up'").await, "up");
    embedded.stop().await.unwrap();
    assert_eq!(postmaster(&dir), None);
}

#[tokio::test]
async fn the_password_is_asked_for_and_never_shown() {
    let scratch = Scratch::new();
    let embedded = embedded::start(&scratch.data()).await.unwrap();
    let password = fs::read_to_string(scratch.data().join("password")).unwrap();
    assert!(!format!("{embedded:?}").contains(password.trim()));

    let mut wrong = embedded.config();
    wrong.password("not this");
    let error = wrong.connect(NoTls).await.err().unwrap();
    assert_eq!(error.code().map(|code| code.code()), Some("28P01"));
    embedded.stop().await.unwrap();
}
