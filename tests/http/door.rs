//! What the door does for those who ask rightly.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use tokio::time::Instant;

use crate::harness::Db;
use crate::server::{Server, finish_it, run_it};

const AGENT: &str = r#"{"image":"busybox","command":["sleep","9"],"ttl":"90s","labels":{"team":"blue"},"env":{"TOKEN":"s3cret"}}"#;

#[tokio::test]
async fn a_submission_is_answered_with_its_place_and_the_agent() {
    let (server, database) = Server::with_database().await;
    let answer = server.post(AGENT).await;
    assert_eq!(answer.status, 201);
    assert_eq!(answer.header("location"), format!("/agents/{}", answer.id()));
    assert_eq!(answer.header("content-type"), "application/json");
    let agent = answer.json();
    assert_eq!((&agent["state"], &agent["image"], &agent["ttl"]), (&"pending".into(), &"busybox".into(), &90.into()));
    assert_eq!((&agent["env_keys"][0], agent.get("env")), (&"TOKEN".into(), None));
    assert!(!answer.text.contains("s3cret"));
    assert_eq!(server.pokes.load(Ordering::SeqCst), 1);
    let read = server.get(answer.header("location")).await;
    assert_eq!((read.status, read.json()), (200, agent));
    assert_eq!(database.count("select count(*) from sundown.agent").await, 1);
}

#[tokio::test]
async fn curl_may_send_its_form_type() {
    let (server, _database) = Server::with_database().await;
    let request = server.request(Method::POST, "/agents").header("content-type", "application/x-www-form-urlencoded").body(AGENT);
    assert_eq!(Server::send(request).await.status, 201);
}

#[tokio::test]
async fn fifty_identical_posts_give_one_agent_and_one_body() {
    let (server, database) = Server::with_database().await;
    let answers = join_all((0..50).map(|_| server.post_with_key("same", AGENT))).await;
    let bodies: BTreeSet<&str> = answers.iter().map(|answer| answer.text.as_str()).collect();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 49);
    assert_eq!(database.count("select count(*) from sundown.agent").await, 1);
    assert_eq!(server.pokes.load(Ordering::SeqCst), 1, "a repetition wakes nobody");
    // The same body also after the agent has moved on.
    run_it(&database, &answers[0].id()).await;
    let again = server.post_with_key("same", AGENT).await;
    assert_eq!((again.status, again.text.as_str()), (200, answers[0].text.as_str()));
    assert!(again.header("location").ends_with(&answers[0].id()));
}

#[tokio::test]
async fn another_body_under_the_same_key_is_409() {
    let (server, database) = Server::with_database().await;
    assert_eq!(server.post_with_key("k", AGENT).await.status, 201);
    let other = server.post_with_key("k", r#"{"image":"busybox"}"#).await;
    assert_eq!((other.status, other.code().as_str()), (409, "key_reused"));
    assert_eq!(server.post_with_key("k2", AGENT).await.status, 201);
    assert_eq!(database.count("select count(*) from sundown.agent").await, 2);
}

#[tokio::test]
async fn a_waiting_agent_that_is_deleted_has_ended_at_once() {
    let (server, _database) = Server::with_database().await;
    let id = server.submit(AGENT).await;
    for _ in 0..2 {
        let answer = server.delete(&id).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!((&answer.json()["state"], &answer.json()["reason"]), (&"expired".into(), &"terminated".into()));
    }
}

#[tokio::test]
async fn hundred_deletes_change_one_row() {
    let (server, database) = Server::with_database().await;
    let id = server.submit(AGENT).await;
    run_it(&database, &id).await;
    let answers = join_all((0..100).map(|_| server.delete(&id))).await;
    assert!(answers.iter().all(|answer| answer.status == 202 && answer.json()["state"] == "terminating"), "{answers:?}");
    let row = database.client().await;
    let row = row.query_one("select epoch, actor from sundown.agent_live", &[]).await.unwrap();
    assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (2, "http 127.0.0.1"));
    assert_eq!(database.count("select count(*) from sundown.event where state = 'terminating'").await, 1);
    finish_it(&database, &id, "").await;
    assert_eq!(server.delete(&id).await.status, 200);
}

#[tokio::test]
async fn a_delete_of_nobody_is_told_apart_from_a_malformed_one() {
    let (server, _database) = Server::with_database().await;
    let unknown = server.delete("01890a5d-ac96-774b-bcce-b302099a8057").await;
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "unknown_agent"));
    for id in ["x", "01890a5d-ac96-774b-bcce-b302099a805", "%00", "1;drop", "..%2f.."] {
        let malformed = server.delete(id).await;
        assert_eq!((malformed.status, malformed.code().as_str()), (400, "malformed_id"), "{id}");
    }
    assert_eq!(server.pokes.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn patch_moves_the_deadline_within_the_rules() {
    let (server, database) = Server::with_database().await;
    let id = server.submit(r#"{"image":"a","ttl":"60s","max_ttl":"10m"}"#).await;
    let pending = server.patch(&id, r#"{"ttl":"2m"}"#).await;
    assert_eq!((pending.status, &pending.json()["ttl"]), (200, &120.into()));
    run_it(&database, &id).await;
    let running = server.patch(&id, r#"{"ttl":300.5}"#).await;
    assert_eq!((running.status, &running.json()["ttl"]), (200, &300.5.into()));
    let left = "select extract(epoch from expires_at - now())::bigint from sundown.agent_live";
    assert!((298..=301).contains(&database.count(left).await));
    let refusals = [
        (r#"{"ttl":"11m"}"#, 409, "above_ceiling"),
        (r#"{"ttl":"0s"}"#, 400, "invalid_ttl"),
        (r#"{"ttl":-1}"#, 400, "invalid_ttl"),
        (r#"{"ttl":"soon"}"#, 400, "invalid_ttl"),
        (r#"{"ttl":"1m","grace":"1s"}"#, 400, "unknown_field"),
        ("{}", 400, "missing_ttl"),
        ("", 400, "invalid_json"),
    ];
    for (body, status, code) in refusals {
        let answer = server.patch(&id, body).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{body}");
    }
    assert!((298..=301).contains(&database.count(left).await), "a refusal moves nothing");
    server.delete(&id).await;
    assert_eq!(server.patch(&id, r#"{"ttl":"1m"}"#).await.code(), "already_over");
    finish_it(&database, &id, "").await;
    assert_eq!(server.patch(&id, r#"{"ttl":"1m"}"#).await.code(), "already_over");
    assert_eq!(server.patch("01890a5d-ac96-774b-bcce-b302099a8057", r#"{"ttl":"1m"}"#).await.code(), "unknown_agent");
    assert_eq!(server.patch("x", r#"{"ttl":"1m"}"#).await.code(), "malformed_id");
}

#[tokio::test]
async fn pages_cover_every_agent_once_newest_first() {
    let (server, _database) = Server::with_database().await;
    let mut expected = Vec::new();
    for _ in 0..7 {
        expected.insert(0, server.submit(AGENT).await);
    }
    server.delete(&expected[3]).await;
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = server.get(&format!("/agents?limit=3{cursor}")).await.json();
        seen.extend(page["agents"].as_array().unwrap().iter().map(|agent| agent["id"].as_str().unwrap().to_owned()));
        // What is submitted while paging belongs to no later page.
        server.submit(AGENT).await;
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen, expected);
    assert_eq!(server.get("/agents?limit=1000").await.json()["next"], serde_json::Value::Null);
}

#[tokio::test]
async fn a_page_stops_at_about_a_mebibyte_and_says_where_to_go_on() {
    let (server, database) = Server::with_database().await;
    let client = database.client().await;
    let many = "select count(sundown.submit(image => 'a', command => array[repeat('x', 60000)], labels => '{\"team\": \"blue\"}')) from generate_series(1, 40)";
    client.execute(many, &[]).await.unwrap();
    // One alone is a page, however large it is.
    let large = "select sundown.submit(image => 'a', command => array[repeat(chr(1), 65536)], labels => '{\"team\": \"blue\"}')";
    client.execute(large, &[]).await.unwrap();
    for filter in ["", "&label=team=blue", "&state=pending", "&label=team=blue&state=pending"] {
        let (mut seen, mut pages, mut cursor) = (BTreeSet::new(), 0, String::new());
        loop {
            let page = server.get(&format!("/agents?limit=1000{filter}{cursor}")).await;
            assert!(page.text.len() < 3 << 19, "{} bytes", page.text.len());
            let page = page.json();
            seen.extend(page["agents"].as_array().unwrap().iter().map(|agent| agent["id"].as_str().unwrap().to_owned()));
            pages += 1;
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!((seen.len(), pages), (41, 3), "{filter}");
    }
}

#[tokio::test]
async fn lists_are_narrowed_by_state_and_labels() {
    let (server, _database) = Server::with_database().await;
    let blue = server.submit(r#"{"image":"a","labels":{"team":"blue","x/y":"a=b"}}"#).await;
    let red = server.submit(r#"{"image":"a","labels":{"team":"red"}}"#).await;
    server.delete(&red).await;
    let ids = |path: &'static str| {
        let server = &server;
        async move {
            let page = server.get(path).await;
            assert_eq!(page.status, 200, "{page:?}");
            page.json()["agents"].as_array().unwrap().iter().map(|agent| agent["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        }
    };
    assert_eq!(ids("/agents").await, [red.as_str(), &blue]);
    assert_eq!(ids("/agents?state=pending").await, [blue.as_str()]);
    assert_eq!(ids("/agents?state=expired").await, [red.as_str()]);
    assert_eq!(ids("/agents?label=team%3Dblue").await, [blue.as_str()]);
    assert_eq!(ids("/agents?label=team=blue&label=x/y=a=b").await, [blue.as_str()]);
    assert!(ids("/agents?label=team=blue&state=expired").await.is_empty());
    assert!(ids("/agents?label=team=").await.is_empty());
}

#[tokio::test]
async fn waiting_ends_with_the_agent_or_with_the_time() {
    let (server, _database) = Server::with_database().await;
    let id = server.submit(AGENT).await;
    let start = Instant::now();
    let early = server.get(&format!("/agents/{id}?wait=300ms")).await;
    assert_eq!((early.status, &early.json()["state"]), (200, &"pending".into()));
    assert!(start.elapsed() >= Duration::from_millis(300));
    let path = format!("/agents/{id}?wait=30s");
    let (ended, _) = tokio::join!(server.get(&path), server.delete(&id));
    assert_eq!((ended.status, &ended.json()["state"]), (200, &"expired".into()));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn every_operation_that_is_described_is_there_and_no_other() {
    let (server, _database) = Server::with_database().await;
    let id = server.submit(AGENT).await;
    let document = server.get("/openapi.json").await.json();
    assert_eq!(document, sundown::http::openapi::document());
    for (path, described) in document["paths"].as_object().unwrap() {
        let described: BTreeSet<String> = described.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect();
        let options = Server::send(server.request(Method::OPTIONS, &path.replace("{id}", &id))).await;
        assert_eq!(options.status, 204, "{path}");
        let allowed = options.header("allow").split(", ").filter(|method| !["HEAD", "OPTIONS"].contains(method));
        assert_eq!(described, allowed.map(str::to_owned).collect(), "{path}");
    }
    // What the router knows, it names in its metrics once it was asked.
    let templates: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    let known =
        "/agents /agents/{id} /agents/{id}/logs /agents/{id}/events /events /hosts /replicas /openapi.json /healthz /readyz /metrics";
    assert_eq!(templates, known.split(' ').collect());
    let agent: BTreeSet<String> = document["components"]["schemas"]["Agent"]["properties"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(agent, server.get(&format!("/agents/{id}")).await.json().as_object().unwrap().keys().cloned().collect());
    let event: BTreeSet<String> = document["components"]["schemas"]["Event"]["properties"].as_object().unwrap().keys().cloned().collect();
    let events = server.get(&format!("/agents/{id}/events")).await.json();
    assert_eq!(event, events["events"][0].as_object().unwrap().keys().cloned().collect());
}

#[tokio::test]
async fn all_that_carry_a_label_end_together_and_no_others() {
    let (server, database) = Server::with_database().await;
    let client = database.client().await;
    let many = "select sundown.submit('a', labels => '{\"team\": \"blue\", \"n\": \"1\"}') from generate_series(1, 2345)";
    client.batch_execute(many).await.unwrap();
    let other = server.submit(r#"{"image":"a","labels":{"team":"red"}}"#).await;
    let runs = server.submit(r#"{"image":"a","labels":{"team":"blue"}}"#).await;
    run_it(&database, &runs).await;
    let delete = async |query: &str| Server::send(server.request(Method::DELETE, &format!("/agents{query}"))).await;
    let answer = delete("?label=team=blue&label=n=1&dry_run=true").await;
    assert_eq!((answer.status, answer.text.as_str()), (200, r#"{"count":2345}"#));
    assert_eq!(client.query_one("select count(*) from sundown.agents where state = 'pending'", &[]).await.unwrap().get::<_, i64>(0), 2346);
    let answer = delete("?label=team=blue").await;
    assert_eq!((answer.status, answer.text.as_str()), (202, r#"{"count":2346}"#));
    let states = "select state, count(*), min(labels ->> 'team'), max(reason) from sundown.agents group by state order by state";
    let states: Vec<(String, i64, String, Option<String>)> =
        client.query(states, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect();
    let ended = |state: &str, count| (state.to_owned(), count, "blue".to_owned(), Some("terminated".to_owned()));
    assert_eq!(states, [ended("expired", 2345), ("pending".to_owned(), 1, "red".to_owned(), None), ended("terminating", 1)]);
    let again = delete("?label=team=blue").await;
    assert_eq!((again.status, again.text.as_str()), (202, r#"{"count":0}"#));
    for query in ["", "?label=team", "?dry_run=true", "?label=team=blue&dry_run=maybe"] {
        let answer = delete(query).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_parameter"), "{query}");
    }
    assert_eq!(server.get(&format!("/agents/{other}")).await.json()["state"], "pending");
}

#[tokio::test]
async fn what_has_not_changed_is_not_sent_again() {
    let (server, _database) = Server::with_database().await;
    let id = server.submit(AGENT).await;
    for path in [format!("/agents/{id}"), "/agents".to_owned()] {
        let first = server.get(&path).await;
        let tag = first.header("etag").to_owned();
        assert_eq!((first.status, first.header("cache-control")), (200, "private, no-cache"));
        let ask = async |tags: &str| Server::send(server.request(Method::GET, &path).header("if-none-match", tags)).await;
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
            let again = ask(&known).await;
            assert_eq!((again.status, again.text.as_str(), again.header("etag")), (304, "", tag.as_str()), "{known}");
        }
        assert_eq!(ask("\"other\"").await.text, first.text);
        server.patch(&id, r#"{"ttl":77}"#).await;
        let changed = ask(&tag).await;
        assert_eq!(changed.status, 200);
        assert_ne!(changed.header("etag"), tag);
        server.patch(&id, r#"{"ttl":78}"#).await;
    }
}

#[tokio::test]
async fn many_who_wait_for_ends_ask_the_database_no_more_often_than_one() {
    const WAITING: usize = 40;
    let (server, database) = Server::with_database().await;
    let mut agents = Vec::new();
    for _ in 0..WAITING {
        agents.push(server.submit(AGENT).await);
    }
    let client = database.client().await;
    let looks = async || -> i64 {
        let count = "select sum(idx_scan + seq_scan)::int8 from pg_stat_user_tables where relname like 'agent_outcome_%'";
        client.query_one(count, &[]).await.unwrap().get(0)
    };
    let waits = agents.iter().map(async |agent| server.get(&format!("/agents/{agent}?wait=60s")).await.json()["state"].clone());
    let ends = async {
        // Each by himself would look hundreds of times a second.
        crate::harness::until("they look together", async || {
            let before = looks().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            (1..20).contains(&(looks().await - before))
        })
        .await;
        for agent in &agents {
            server.delete(agent).await;
        }
    };
    let (states, ()) = tokio::join!(futures_util::future::join_all(waits), ends);
    assert!(states.iter().all(|state| state == "expired"), "{states:?}");
    // Nobody waits any more, and nobody looks.
    crate::harness::until("they stop looking", async || {
        let before = looks().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        looks().await == before
    })
    .await;
}

#[tokio::test]
async fn every_route_says_which_methods_it_takes() {
    let (server, _database) = Server::with_database().await;
    let id = server.submit(AGENT).await;
    let (agent, logs) = (format!("/agents/{id}"), format!("/agents/{id}/logs"));
    for (path, allow) in [
        ("/agents", "GET, HEAD, POST, DELETE, OPTIONS"),
        (&agent, "GET, HEAD, DELETE, PATCH, OPTIONS"),
        (&logs, "GET, HEAD, OPTIONS"),
        (&format!("{agent}/events"), "GET, HEAD, OPTIONS"),
        ("/events", "GET, HEAD, OPTIONS"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
        ("/", "GET, HEAD, OPTIONS"),
        ("/hosts", "GET, HEAD, OPTIONS"),
        ("/replicas", "GET, HEAD, OPTIONS"),
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/readyz", "GET, HEAD, OPTIONS"),
        ("/metrics", "GET, HEAD, OPTIONS"),
    ] {
        let options = Server::send(server.request(Method::OPTIONS, path)).await;
        assert_eq!((options.status, options.header("allow")), (204, allow), "{path}");
        let head = Server::send(server.request(Method::HEAD, path)).await;
        assert_eq!((head.status, head.text.as_str()), (200, ""), "{path}");
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW"] {
            if allow.split(", ").any(|allowed| allowed == method) {
                continue;
            }
            let refused = Server::send(server.request(method.parse().unwrap(), path)).await;
            assert_eq!(
                (refused.status, refused.header("allow"), refused.code().as_str()),
                (405, allow, "method_not_allowed"),
                "{method} {path}"
            );
        }
    }
    assert_eq!(server.get("/agents").await.json()["agents"].as_array().unwrap().len(), 1, "nothing was changed");
}

#[tokio::test]
async fn a_page_of_another_site_changes_nothing() {
    let (server, database) = Server::with_database().await;
    let request = server.request(Method::POST, "/agents").header("origin", "http://evil.example").body(AGENT);
    let answer = Server::send(request).await;
    assert_eq!((answer.status, answer.code().as_str()), (403, "cross_origin"));
    assert_eq!(database.count("select count(*) from sundown.agent").await, 0);
}

#[tokio::test]
async fn readiness_says_what_is_missing_and_liveness_does_not_care() {
    let (server, database) = Server::with_database().await;
    let ready = server.get("/readyz").await;
    assert_eq!((ready.status, &ready.json()["ready"]), (200, &true.into()));
    server.ready.draining.store(true, Ordering::Relaxed);
    server.host.store(false, Ordering::Relaxed);
    database.client().await.batch_execute("update sundown.installation set database_oid = 1").await.unwrap();
    let not = server.get("/readyz").await;
    assert_eq!((not.status, not.code().as_str()), (503, "not_ready"));
    assert_eq!(not.json()["missing"], serde_json::json!(["draining", "host", "database"]));
    assert_eq!(server.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_replica_that_starts_lives_and_asks_to_come_again() {
    let database = Db::new().await;
    let (server, behind, state) = Server::starting(database.sql(1).await).await;
    assert_eq!(server.get("/healthz").await.status, 200);
    for answer in [server.get("/readyz").await, server.get("/agents").await, server.post(AGENT).await, server.get("/metrics").await] {
        assert_eq!((answer.status, answer.code().as_str(), answer.header("retry-after")), (503, "not_ready", "1"), "{answer:?}");
        assert_eq!(answer.json()["missing"], serde_json::json!(["starting"]));
    }
    assert!(behind.set(state).is_ok());
    assert_eq!(server.get("/readyz").await.status, 200);
    assert_eq!(server.post(AGENT).await.status, 201);
}

#[tokio::test]
async fn metrics_count_agents_and_never_name_one() {
    let (server, _database) = Server::with_database().await;
    let id = server.submit(AGENT).await;
    server.get(&format!("/agents/{id}")).await;
    Server::send(server.request("BREW".parse().unwrap(), "/nowhere")).await;
    let metrics = server.get("/metrics").await;
    assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
    for line in [
        "sundown_agents{state=\"pending\"} 1",
        "sundown_overdue 0",
        "sundown_database_up 1",
        "# EOF",
        "sundown_http_requests_total{method=\"GET\",route=\"/agents/{id}\",status=\"200\"} 1",
        "sundown_http_requests_total{method=\"other\",route=\"unknown\",status=\"404\"} 1",
    ] {
        assert!(metrics.text.contains(line), "{line} is not in\n{}", metrics.text);
    }
    assert!(!metrics.text.contains(&id));
}
