//! The verbs of the command line, asked of a replica by HTTP and of the database by SQL: the same answers and the same exit codes.

use std::process::Output;

use serde_json::Value;
use tokio::process::Command;
use uuid::Uuid;

use crate::harness::{Db, until};
use crate::server::{Server, finish_it, run_it};

/// Runs a verb. `target`: the variable that says whom to ask, and its value.
async fn sundown(target: (&str, &str), args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sundown"));
    for name in ["SUNDOWN_URL", "SUNDOWN_DATABASE_URL", "SUNDOWN_DIRECT_URL", "DATABASE_URL"] {
        command.env_remove(name);
    }
    command.env(target.0, target.1).env("USER", "tester").args(args).output().await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What a verb printed, which went well.
async fn said(target: (&str, &str), args: &[&str]) -> String {
    let output = sundown(target, args).await;
    assert!(output.status.success(), "{args:?}: {output:?}");
    text(&output.stdout)
}

/// The exit code of a verb, and its complaint in one line.
async fn failed(target: (&str, &str), args: &[&str]) -> (i32, String) {
    let output = sundown(target, args).await;
    let complaint = text(&output.stderr);
    assert!(complaint.starts_with("sundown: ") && complaint.lines().count() == 1, "{args:?}: {output:?}");
    (output.status.code().unwrap(), complaint)
}

/// A life from the command line, whoever is asked.
async fn life(target: (&str, &str), database: &Db, name: &str) {
    let labelled = format!("who={name}");
    let submit =
        ["submit", "--ttl", "10m", "--name", name, "-l", &labelled, "-e", "A=b=c", "--memory", "64m", "busybox", "sh", "-c", "exit 3"];
    let id = said(target, &submit).await.trim().to_owned();
    assert!(Uuid::try_parse(&id).is_ok(), "{id}");
    let agent: Value = serde_json::from_str(&said(target, &["get", "--json", name]).await).unwrap();
    assert_eq!((agent["id"].as_str(), &agent["command"]), (Some(id.as_str()), &serde_json::json!(["sh", "-c", "exit 3"])));
    assert_eq!((&agent["labels"]["who"], &agent["env_keys"], &agent["memory"]), (&name.into(), &serde_json::json!(["A"]), &Value::Null));
    assert!(
        said(target, &["ls"]).await.lines().any(|line| line.starts_with(&id) && line.contains("pending") && line.contains("sh -c exit 3"))
    );
    assert_eq!(said(target, &["ls", "--quiet", "-l", &labelled]).await, format!("{id}\n"));
    assert_eq!(said(target, &["ls", "-l", &labelled, "--state", "running"]).await.lines().count(), 1, "only what the columns are");

    run_it(database, &id).await;
    let (whole, end) = (said(target, &["extend", &id, "20m"]).await, &id[24..]);
    assert!(whole.starts_with(&format!("{id} ends in 20m")) || whole.starts_with(&format!("{id} ends in 19m")), "{whole}");
    assert!(said(target, &["top"]).await.contains(&id));
    let still = sundown(target, &["wait", "--timeout", "300ms", end]).await;
    assert_eq!((still.status.code(), text(&still.stdout)), (Some(12), format!("{id} running\n")));
    finish_it(database, &id, "one\ntwo\n").await;
    assert_eq!(said(target, &["wait", &id]).await, format!("{id} succeeded\n"));
    assert_eq!(said(target, &["logs", "--tail", "1", &id]).await, "two\n");
    let why = said(target, &["why", &id]).await;
    for sentence in [
        &format!("{id} ({name}) is succeeded."),
        "submitted it.",
        "it began to run on seven",
        "its deadline was moved to",
        "with exit code 0.",
    ] {
        assert!(why.contains(sentence), "{why}");
    }
    assert_eq!(said(target, &["events", &id, "--json"]).await.lines().count(), 4);
    assert!(!said(target, &["ls"]).await.contains(&id) && said(target, &["ls", "--all"]).await.contains("succeeded (exited, 0)"));
    assert!(said(target, &["hosts"]).await.contains("seven"));
    assert!(said(target, &["replicas"]).await.starts_with("ID"));

    // Some that end together, and one alone.
    for _ in 0..3 {
        said(target, &["submit", "-l", &labelled, "busybox"]).await;
    }
    assert_eq!(said(target, &["rm", "-l", &labelled, "--dry-run"]).await, "3 would end\n");
    assert_eq!(said(target, &["rm", "-l", &labelled]).await, "3 end\n");
    assert_eq!(said(target, &["rm", "-l", &labelled, "--json"]).await, "{\n  \"count\": 0\n}\n");
    let id = said(target, &["submit", "busybox"]).await.trim().to_owned();
    assert_eq!(said(target, &["rm", &id]).await, format!("{id} expired\n"));
    let over = sundown(target, &["wait", &id]).await;
    assert_eq!((over.status.code(), text(&over.stdout)), (Some(11), format!("{id} expired\n")));
    assert!(said(target, &["why", &id]).await.contains(" asked for its end."));

    let nobody = "00000000-0000-7000-8000-000000000000";
    for args in [["get", nobody], ["rm", nobody], ["logs", nobody], ["get", "no-such-name"]] {
        assert_eq!(failed(target, &args).await.0, 1, "{args:?}");
    }
    let (code, complaint) = failed(target, &["submit", "--ttl", "0s", "busybox"]).await;
    assert!(code == 1 && complaint.contains("the ttl is not above zero"), "{complaint}");
    let (code, complaint) = failed(target, &["get", &id[..4]]).await;
    assert!(code == 1 && complaint.contains("give more of the id"), "{complaint}");
    assert_eq!(failed(target, &["rm", "-l", "nothing"]).await.0, if target.0 == "SUNDOWN_URL" { 1 } else { 64 });
}

#[tokio::test]
async fn a_life_from_the_command_line_by_http() {
    let (server, database) = Server::with_database().await;
    life(("SUNDOWN_URL", &format!("http://{}/", server.address)), &database, "by-http").await;
}

#[tokio::test]
async fn a_life_from_the_command_line_by_sql() {
    let database = Db::new().await;
    life(("SUNDOWN_DATABASE_URL", &database.url()), &database, "by-sql").await;
}

#[tokio::test]
async fn events_are_followed_by_either_way() {
    let (server, database) = Server::with_database().await;
    let (http, sql) = (format!("http://{}", server.address), database.url());
    for target in [("SUNDOWN_URL", http.as_str()), ("SUNDOWN_DATABASE_URL", sql.as_str())] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sundown"));
        for name in ["SUNDOWN_URL", "SUNDOWN_DATABASE_URL", "SUNDOWN_DIRECT_URL", "DATABASE_URL"] {
            command.env_remove(name);
        }
        let mut follower = command
            .env(target.0, target.1)
            .args(["events", "-f", "--json"])
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(follower.stdout.take().unwrap()));
        let heard = tokio::spawn(async move { serde_json::from_str::<Value>(&lines.next_line().await.unwrap().unwrap()).unwrap() });
        until("an event is heard", async || {
            server.submit(r#"{"image":"a"}"#).await;
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            heard.is_finished()
        })
        .await;
        assert_eq!(heard.await.unwrap()["state"], "pending");
    }
}

#[tokio::test]
async fn whoever_asks_nobody_is_told_so() {
    for target in [("SUNDOWN_URL", "http://127.0.0.1:1"), ("SUNDOWN_DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing")] {
        assert_eq!(failed(target, &["ls"]).await.0, 69, "{target:?}");
    }
    for url in ["https://127.0.0.1:1", "127.0.0.1:1", "nonsense"] {
        assert_eq!(failed(("SUNDOWN_URL", url), &["ls"]).await.0, 64, "{url}");
    }
    for args in [&["rm"][..], &["get"], &["events"], &["wait", "x", "--timeout", "soon"], &["ls", "--state", "dead"]] {
        assert_eq!(failed(("SUNDOWN_URL", "http://127.0.0.1:1"), args).await.0, 64, "{args:?}");
    }
}

#[tokio::test]
async fn there_are_completions_and_a_manual() {
    let nobody = ("SUNDOWN_URL", "http://127.0.0.1:1");
    for shell in ["bash", "zsh", "fish"] {
        assert!(said(nobody, &["completions", shell]).await.contains("extend"), "{shell}");
    }
    let manual = said(nobody, &["man"]).await;
    for part in ["sundown", "sundown\\-submit", "sundown\\-why", "\\-\\-url"] {
        assert!(manual.contains(part), "{part}");
    }
}
