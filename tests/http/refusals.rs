//! Bad input: each kind has its code and a hint, and nothing is written.

use reqwest::Method;

use crate::server::Server;

fn with(field: &str, value: &str) -> String {
    format!(r#"{{"image":"a","{field}":{value}}}"#)
}

fn long(length: usize) -> String {
    "x".repeat(length)
}

/// Bodies that are refused with 400, and the code that each is refused with.
fn bodies() -> Vec<(String, &'static str)> {
    let mut bodies = vec![
        (String::new(), "invalid_json"),
        ("{".to_owned(), "invalid_json"),
        ("image=busybox".to_owned(), "invalid_json"),
        (format!("{}{}", "[".repeat(50_000), "]".repeat(50_000)), "invalid_body"),
        ("[]".to_owned(), "invalid_body"),
        ("{}".to_owned(), "missing_image"),
        (r#"{"image":""}"#.to_owned(), "missing_image"),
        (r#"{"image":"a","image":"b"}"#.to_owned(), "duplicate_field"),
        (r#"{"image":"--privileged"}"#.to_owned(), "invalid_image"),
        (r#"{"image":"../x"}"#.to_owned(), "invalid_image"),
        (r#"{"image":"a b"}"#.to_owned(), "invalid_image"),
        (format!(r#"{{"image":"{}"}}"#, long(300)), "invalid_image"),
        (r#"{"image":7}"#.to_owned(), "invalid_body"),
        (r#"{"image":"a\u0000"}"#.to_owned(), "invalid_text"),
    ];
    let fields = [
        ("tenant", "\"t\"", "unknown_field"),
        ("privileged", "true", "unknown_field"),
        ("ttl", "0", "invalid_ttl"),
        ("ttl", "\"0s\"", "invalid_ttl"),
        ("ttl", "-5", "invalid_ttl"),
        ("ttl", "1e999", "invalid_ttl"),
        ("ttl", "\"5 parsecs\"", "invalid_ttl"),
        ("ttl", "86401", "above_ceiling"),
        ("ttl", "[]", "invalid_body"),
        ("max_ttl", "0", "invalid_max_ttl"),
        ("max_ttl", "\"25h\"", "above_ceiling"),
        ("grace", "-1", "invalid_grace"),
        ("grace", "3601", "invalid_grace"),
        ("start_timeout", "0.5", "invalid_start_timeout"),
        ("queue_timeout", "0", "invalid_queue_timeout"),
        ("run_at", "\"tomorrow\"", "invalid_run_at"),
        ("run_at", "\"2999-01-01T00:00:00Z\"", "invalid_run_at"),
        ("command", "\"ls\"", "invalid_body"),
        ("command", "[\"\\u0000\"]", "invalid_text"),
        ("name", "\"../x\"", "invalid_name"),
        ("name", "\"-x\"", "invalid_name"),
        ("name", "\"\"", "invalid_name"),
        ("name", "\"a\\n\"", "invalid_name"),
        ("cpus", "0", "invalid_cpus"),
        ("cpus", "1e308", "invalid_cpus"),
        ("cpus", "513", "invalid_cpus"),
        ("memory", "1", "invalid_memory"),
        ("memory", "\"64q\"", "invalid_memory"),
        ("memory", "-1", "invalid_memory"),
        ("pids", "0", "invalid_pids"),
        ("pids", "99999999999", "invalid_pids"),
        ("network", "\"host\"", "invalid_network"),
        ("labels", "[]", "invalid_body"),
        ("labels", r#"{"sundown.agent":"x"}"#, "invalid_labels"),
        ("labels", r#"{"":"x"}"#, "invalid_labels"),
        ("labels", r#"{"a b":"x"}"#, "invalid_labels"),
        ("labels", r#"{"a":"\u0000"}"#, "invalid_text"),
        ("env", r#"{"=x":"y"}"#, "invalid_env"),
        ("env", r#"{"":"y"}"#, "invalid_env"),
        ("env", r#"{"SUNDOWN_X":"y"}"#, "invalid_env"),
        ("env", r#"{"A":"\u0000"}"#, "invalid_text"),
        ("env", r#"{"A":5}"#, "invalid_body"),
        ("env", r#"{"A":"1","A":"2"}"#, "duplicate_field"),
    ];
    bodies.extend(fields.map(|(field, value, code)| (with(field, value), code)));
    bodies.push((with("name", &format!("\"{}\"", long(300))), "invalid_name"));
    bodies.push((with("labels", &format!(r#"{{"{}":"x"}}"#, long(300))), "invalid_labels"));
    bodies.push((with("labels", &format!(r#"{{"x":"{}"}}"#, long(300))), "invalid_labels"));
    bodies.push((with("env", &format!(r#"{{"{}":"x"}}"#, long(300))), "invalid_env"));
    bodies.push((with("env", &format!(r#"{{"A":"{}"}}"#, long(200_000))), "invalid_env"));
    bodies.push((with("env", &format!(r#"{{"A":"{0}","B":"{0}","C":"{0}"}}"#, long(30_000))), "invalid_env"));
    bodies.push((with("command", &format!("[\"{}\"]", long(70_000))), "invalid_command"));
    bodies
}

#[tokio::test]
async fn every_bad_body_has_its_code_and_writes_nothing() {
    let (server, database) = Server::with_database().await;
    for (body, code) in bodies() {
        let start: String = body.chars().take(80).collect();
        let answer = server.post(body).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, code), "{start}");
    }
    let answer = server.post(b"{\"image\":\"\xff\xfe\"}".to_vec()).await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_utf8"));
    let answer = server.post(with("name", &format!("\"{}\"", long(300_000)))).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    let written =
        "select (select count(*) from sundown.agent) + (select count(*) from sundown.agent_live) + (select count(*) from sundown.event)
                   + (select count(*) from sundown.agent_key) + (select count(*) from sundown.agent_secret)";
    assert_eq!(database.count(written).await, 0);
    assert_eq!(server.pokes.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_bounds_themselves_are_accepted() {
    let (server, _database) = Server::with_database().await;
    for (field, value) in [
        ("ttl", "86400"),
        ("ttl", "\"1d\""),
        ("ttl", "0.001"),
        ("grace", "0"),
        ("grace", "3600"),
        ("start_timeout", "1"),
        ("start_timeout", "3600"),
        ("cpus", "512"),
        ("cpus", "0.01"),
        ("memory", "6291456"),
        ("memory", "\"1t\""),
        ("pids", "32768"),
        ("pids", "1"),
        ("network", "\"bridge\""),
        ("queue_timeout", "0.5"),
        ("run_at", "\"1970-01-01T00:00:00Z\""),
    ] {
        let answer = server.post(with(field, value)).await;
        assert_eq!(answer.status, 201, "{field} {value}: {answer:?}");
    }
    for (field, value) in [
        ("name", format!("\"{}\"", long(63))),
        ("env", format!(r#"{{"A":"{0}","B":"{0}"}}"#, long(32_767))),
        ("labels", format!(r#"{{"{}":"{}"}}"#, long(63), long(255))),
    ] {
        let answer = server.post(with(field, &value)).await;
        assert_eq!(answer.status, 201, "{field}: {answer:?}");
    }
}

#[tokio::test]
async fn bad_keys_are_refused() {
    let (server, database) = Server::with_database().await;
    let agent = r#"{"image":"a"}"#;
    for key in [Vec::new(), long(256).into_bytes(), b"\xff\xfe".to_vec()] {
        let key = reqwest::header::HeaderValue::from_bytes(&key).unwrap();
        let answer = Server::send(server.request(Method::POST, "/agents").header("idempotency-key", key).body(agent)).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_key"));
    }
    let two = server.request(Method::POST, "/agents").header("idempotency-key", "a").header("idempotency-key", "b").body(agent);
    assert_eq!(Server::send(two).await.code(), "invalid_key");
    assert_eq!(database.count("select count(*) from sundown.agent").await, 0);
    let answer = Server::send(server.request(Method::POST, "/agents").header("idempotency-key", long(255)).body(agent)).await;
    assert_eq!(answer.status, 201);
}

#[tokio::test]
async fn bad_parameters_are_refused_and_named() {
    let (server, _database) = Server::with_database().await;
    let id = server.submit(r#"{"image":"a"}"#).await;
    let agent = format!("/agents/{id}");
    for (query, code) in [
        ("/agents?stat=running", "unknown_parameter"),
        ("/agents?state=Running", "invalid_parameter"),
        ("/agents?state=", "invalid_parameter"),
        ("/agents?limit=0", "invalid_parameter"),
        ("/agents?limit=1001", "invalid_parameter"),
        ("/agents?limit=-1", "invalid_parameter"),
        ("/agents?limit=1&limit=2", "invalid_parameter"),
        ("/agents?cursor=x", "invalid_parameter"),
        ("/agents?label=blue", "invalid_parameter"),
        ("/agents?label=a=1&label=a=2", "invalid_parameter"),
        ("/agents?label=a%00=1", "invalid_text"),
        ("?wait=61s", "invalid_parameter"),
        ("?wait=-1s", "invalid_parameter"),
        ("?wait=NaN", "invalid_parameter"),
        ("?wait=soon", "invalid_parameter"),
        ("?x", "unknown_parameter"),
        ("/logs?tail=-1", "invalid_parameter"),
        ("/logs?follow=yes", "invalid_parameter"),
        ("/logs?since=1", "unknown_parameter"),
    ] {
        let path = if query.starts_with("/agents") { query.to_owned() } else { format!("{agent}{query}") };
        let answer = server.get(&path).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, code), "{path}");
    }
    let dry = Server::send(server.request(Method::DELETE, &format!("{agent}?dry_run=true"))).await;
    assert_eq!(dry.code(), "unknown_parameter");
    assert_eq!(server.get(&agent).await.json()["state"], "pending", "and not deleted");
}

#[tokio::test]
async fn unknown_routes_and_ids_are_404() {
    let (server, _database) = Server::with_database().await;
    for path in
        ["/agent", "/agents/", "/Agents", "/agents/x/log", "/agents/x/logs/", "/agents//logs", "/healthz/", "//agents", "/../agents/x/y/z"]
    {
        assert_eq!(server.get(path).await.code(), "unknown_route", "{path}");
    }
    let nobody = "/agents/01890a5d-ac96-774b-bcce-b302099a8057";
    assert_eq!(server.get(nobody).await.code(), "unknown_agent");
    assert_eq!(server.get(&format!("{nobody}/logs")).await.code(), "unknown_agent");
    assert_eq!(server.get("/agents/%FF").await.code(), "malformed_id");
    assert_eq!(server.get(&format!("/agents/{}", long(5000))).await.code(), "malformed_id");
}
