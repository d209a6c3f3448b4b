//! What people write into the configuration, right and wrong, and what the log says of it.

use std::process::{Output, Stdio};

use serde_json::Value;

use crate::fake_docker::FakeDocker;
use crate::harness::Db;
use crate::harness::lives::{end, outcome, submit};
use crate::harness::replica::{Replica, sundown};

/// Runs it to its end; what it needs is refused at once, or it would go on.
fn run(args: &[&str], variables: &[(&str, &str)]) -> Output {
    sundown().args(args).envs(variables.iter().copied()).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_wrong_value_ends_with_one_line_and_exit_code_64() {
    let nowhere = ("SUNDOWN_DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing");
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)]);
    let cases: &[Case<'_>] = &[
        (&["serve"], &[nowhere, ("SUNDOWN_POLL", "0")]),
        (&["serve"], &[nowhere, ("SUNDOWN_POLL", "-1s")]),
        (&["serve"], &[nowhere, ("SUNDOWN_CAPACITY", "-1")]),
        (&["serve"], &[nowhere, ("SUNDOWN_CAPACITY", "many")]),
        (&["serve"], &[nowhere, ("SUNDOWN_STARTS", "70000")]),
        (&["serve"], &[nowhere, ("SUNDOWN_LEASE", "x")]),
        (&["serve"], &[nowhere, ("SUNDOWN_LEASE", "0s")]),
        (&["serve"], &[nowhere, ("SUNDOWN_LISTEN", "nonsense")]),
        (&["serve"], &[nowhere, ("SUNDOWN_DRAIN", "for ever")]),
        (&["serve"], &[nowhere, ("SUNDOWN_DEFAULT_TTL", "0")]),
        (&["serve"], &[nowhere, ("SUNDOWN_MAX_TTL", "a while")]),
        (&["serve"], &[nowhere, ("SUNDOWN_RETENTION", "1s")]),
        (&["serve"], &[nowhere, ("SUNDOWN_DOCKER", "nonsense")]),
        (&["serve"], &[nowhere, ("DOCKER_HOST", "nonsense")]),
        (&["serve"], &[nowhere, ("SUNDOWN_LOG", "sundown=loud")]),
        (&["serve"], &[("SUNDOWN_DATABASE_URL", "nonsense")]),
        (&["serve"], &[("SUNDOWN_DATABASE_URL", "postgres://a:b@host:port/db")]),
        (&["serve"], &[nowhere, ("SUNDOWN_DIRECT_URL", "nonsense")]),
        (&["serve"], &[("DATABASE_URL", "nonsense")]),
        (&["serve"], &[("SUNDOWN_DIRECT_URL", "postgres://nobody@127.0.0.1:1/nothing")]),
        (&["doctor"], &[("SUNDOWN_DIRECT_URL", "postgres://nobody@127.0.0.1:1/nothing")]),
        (&["serve", "--unknown-flag"], &[nowhere]),
        (&["serve", "--capacity=-1"], &[nowhere]),
        (&["serve", "word"], &[nowhere]),
        (&["migrate"], &[("DATABASE_URL", "nonsense")]),
        (&["sweep"], &[("DATABASE_URL", "nonsense")]),
        (&["sweep"], &[nowhere, ("SUNDOWN_DOCKER", "nonsense")]),
        (&["doctor"], &[("DATABASE_URL", "nonsense")]),
        (&["deadman"], &[("SUNDOWN_DOCKER", "nonsense")]),
        (&["deadman"], &[("DOCKER_HOST", "nonsense")]),
        (&["deadman"], &[("SUNDOWN_DEADMAN_GRACE", "0s")]),
        (&["deadman", "--installation=all"], &[]),
        (&["serve"], &[nowhere, ("SUNDOWN_DEADMAN_GRACE", "never")]),
        (&["adopt"], &[]),
        (&["host", "cordon", "first"], &[nowhere]),
        (&["unknown-command"], &[]),
        (&[], &[]),
    ];
    for (args, variables) in cases {
        let output = run(args, variables);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{args:?} {variables:?}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{args:?} {variables:?}: {said}");
        assert!(said.len() > 30, "{args:?} {variables:?} says too little: {said}");
        assert!(output.stdout.is_empty(), "{args:?} {variables:?}");
    }
}

#[test]
fn an_endpoint_that_is_named_twice_is_served_once() {
    let twice = "unix:///nowhere/a,unix:///nowhere/b, unix:///nowhere/a";
    // It says a line for each endpoint that `serve` would serve.
    let output = run(&["doctor"], &[("SUNDOWN_DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing"), ("SUNDOWN_DOCKER", twice)]);
    let said = String::from_utf8_lossy(&output.stdout);
    for endpoint in ["docker unix:///nowhere/a:", "docker unix:///nowhere/b:"] {
        assert_eq!(said.matches(endpoint).count(), 1, "{endpoint} in {said}");
    }
}

#[test]
fn an_address_that_asks_for_tls_is_refused_at_once_and_the_line_says_why() {
    for more in ["sslmode=require", "sslmode=verify-full", "channel_binding=require"] {
        let url = format!("postgres://nobody@127.0.0.1:1/nothing?{more}");
        for variable in ["SUNDOWN_DATABASE_URL", "DATABASE_URL"] {
            let output = run(&["serve"], &[(variable, &url)]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!((output.status.code(), said.trim_end().lines().count()), (Some(64), 1), "{more}: {said}");
            assert!(said.contains("TLS"), "{more}: {said}");
        }
    }
}

/// A database that asks for a password, which no line may repeat.
const SECRET: &str = "s3cr3t-W0rd";

/// The address of a database with a user, a password and another host's name put into it.
fn with_password(db: &Db) -> String {
    let url = db.url();
    let (scheme, rest) = url.split_once("://").unwrap();
    let (user, rest) = rest.split_once('@').unwrap();
    format!("{scheme}://{}:{SECRET}@{rest}", user.split(':').next().unwrap())
}

/// Whether the server lets our user in with any password, as `trust` does. With one that is checked, ours would be wrong.
async fn any_password_will_do(url: &str) -> bool {
    tokio_postgres::connect(url, tokio_postgres::NoTls).await.is_ok()
}

#[tokio::test]
async fn the_first_line_has_the_effective_values_and_every_line_is_json() {
    let (db, fake) = (Db::new().await, FakeDocker::start().await);
    let endpoint = fake.endpoint();
    let replica = Replica::start(&db.url(), &[("SUNDOWN_DOCKER", &endpoint), ("SUNDOWN_POLL", "700ms"), ("SUNDOWN_CAPACITY", "7")]).await;
    let log = replica.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    let first = lines[0]["config"].as_str().unwrap_or_default();
    // Given, and default.
    for wanted in ["700ms", "capacity: Some(7)", endpoint.as_str(), "lease: Span(15s)", "drain: Span(20s)", replica.address.as_str()] {
        assert!(first.contains(wanted), "{wanted} is not in {first}");
    }
    assert!(lines.iter().all(|line| line["level"].is_string() && line["message"].is_string()), "{log}");
}

/// The configuration in the first line of a replica that goes nowhere: its address is taken.
fn first_line(variables: &[(&str, &str)]) -> String {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = sundown();
    command.arg("serve").env_remove("DOCKER_HOST").env_remove("XDG_DATA_HOME");
    command.env("SUNDOWN_LISTEN", taken.local_addr().unwrap().to_string());
    let output = command.envs(variables.iter().copied()).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let line: Value = said.lines().next().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_else(|| panic!("no line: {said}"));
    line["config"].as_str().unwrap_or_else(|| panic!("no values: {said}")).to_owned()
}

#[test]
fn the_first_line_has_what_was_left_to_us() {
    let with = first_line(&[("DATABASE_URL", "postgres://someone:s3cret@127.0.0.1:1/nothing")]);
    let cores = std::thread::available_parallelism().unwrap();
    let wanted = [
        "database_url: Some(\"someone@127.0.0.1:1/nothing\")",
        "direct_url: Some(\"someone@127.0.0.1:1/nothing\")",
        "docker: [\"unix:///var/run/docker.sock\"]",
        &format!("starts: {cores},"),
    ];
    for wanted in wanted {
        assert!(with.contains(wanted), "{wanted} is not in {with}");
    }
    let without = first_line(&[("HOME", "/nowhere"), ("DOCKER_HOST", "unix:///elsewhere.sock"), ("SUNDOWN_STARTS", "3")]);
    let data = if nix::unistd::geteuid().is_root() { "/var/lib/sundown" } else { "/nowhere/.local/share/sundown" };
    for wanted in [&format!("data: Some(\"{data}\")"), "docker: [\"unix:///elsewhere.sock\"]", "starts: 3,"] {
        assert!(without.contains(wanted), "{wanted} is not in {without}");
    }
}

#[tokio::test]
async fn a_database_password_is_in_no_line_of_the_most_talkative_log() {
    let (db, fake) = (Db::new().await, FakeDocker::start().await);
    let (client, endpoint, url) = (db.client().await, fake.endpoint(), with_password(&db));
    let secret = if any_password_will_do(&url).await { SECRET.to_owned() } else { password_of(&db.url()) };
    let url = if secret == SECRET { url } else { db.url() };
    let variables = [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_LOG", "trace"), ("SUNDOWN_DIRECT_URL", url.as_str())];
    let replica = Replica::start(&url, &variables).await;
    let id = submit(&client, "busybox", "exit 0", ", env => '{\"TOKEN\": \"t0k3n-of-an-agent\"}'").await;
    assert_eq!(outcome(&client, id).await, end("succeeded", "exited", Some(0)));
    let log = replica.log();
    assert!(
        log.contains(&format!("\"running\",\"agent.id\":\"{id}\"")) && log.contains("notifications arrive"),
        "it proves nothing:\n{log}"
    );
    assert!(!log.contains(&secret), "the password is in the log");
    assert!(!log.contains("t0k3n-of-an-agent"), "an environment value is in the log");
}

fn password_of(url: &str) -> String {
    url.split_once("://").and_then(|(_, rest)| rest.split_once('@')).and_then(|(user, _)| user.split_once(':')).unwrap().1.to_owned()
}

#[test]
fn a_database_password_is_not_shown_when_the_database_cannot_be_reached_or_the_address_is_wrong() {
    let refused = format!("postgres://someone:{SECRET}@127.0.0.1:1/nothing");
    let wrong = format!("postgres://someone:{SECRET}@127.0.0.1:port/nothing");
    let unknown = format!("host=127.0.0.1 user=someone password={SECRET} no_such_option=1");
    let cases: &[(&[&str], &str)] = &[
        (&["doctor"], &refused),
        (&["adopt"], &refused),
        (&["migrate"], &refused),
        (&["host", "ls"], &refused),
        (&["sweep"], &refused),
        (&["serve"], &wrong),
        (&["doctor"], &wrong),
        (&["serve"], &unknown),
        (&["migrate"], &unknown),
    ];
    for (args, url) in cases {
        for variable in ["SUNDOWN_DATABASE_URL", "DATABASE_URL"] {
            let output = run(args, &[(variable, url), ("SUNDOWN_LOG", "trace"), ("SUNDOWN_DOCKER", "unix:///nowhere")]);
            let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(!output.status.success() && !said.is_empty(), "{args:?}: {said}");
            assert!(!said.contains(SECRET), "{args:?} with {variable} shows the password: {said}");
        }
    }
    let flag = run(&["serve", "--database-url", &wrong], &[]);
    assert!(!String::from_utf8_lossy(&flag.stderr).contains(SECRET), "{}", String::from_utf8_lossy(&flag.stderr));
}

#[tokio::test]
async fn a_worker_that_panics_says_so_in_json_and_ends_the_replica() {
    let (db, fake) = (Db::new().await, FakeDocker::start().await);
    let (client, endpoint) = (db.client().await, fake.endpoint());
    let mut replica =
        Replica::start(&db.url(), &[("SUNDOWN_DOCKER", &endpoint), ("FAILPOINTS", "launch.before_create=panic(a defect)")]).await;
    submit(&client, "busybox", "exit 0", "").await;
    assert_eq!(replica.ended().await.code(), Some(70));
    let log = replica.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    let said = |line: &Value| line["message"].as_str().is_some_and(|message| message.contains("a defect")) && line["location"].is_string();
    assert!(lines.iter().any(said), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tries_the_direct_address_too_and_looks_at_docker_whatever_the_database_says() {
    let (db, other, fake) = (Db::new().await, Db::new().await, FakeDocker::start().await);
    let (endpoint, url) = (fake.endpoint(), db.url());
    let doctor = |direct: &str| {
        let output = run(&["doctor"], &[("SUNDOWN_DATABASE_URL", &url), ("SUNDOWN_DIRECT_URL", direct), ("SUNDOWN_DOCKER", &endpoint)]);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    for (direct, wanted) in [
        (db.url(), "ok   direct database"),
        (other.url(), "must lead to one"),
        ("postgres://nobody@127.0.0.1:1/nothing".to_owned(), "is SUNDOWN_DIRECT_URL right?"),
    ] {
        let (_, said) = doctor(&direct);
        assert!(said.contains(wanted) && said.contains("ok   docker"), "{direct}: {said}");
    }
    db.client().await.batch_execute("drop view sundown.overdue").await.unwrap();
    let (code, said) = doctor(&db.url());
    assert!(code == Some(1) && said.contains("FIX  agents overdue") && said.contains("docker"), "{said}");
}
