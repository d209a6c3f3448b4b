//! Events as they happen: none is missed and none comes twice, whoever comes back, comes late or is slow.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::Value;

use crate::harness::{Db, until};
use crate::server::{Server, finish_it, run_it};

const AGENT: &str = r#"{"image":"a"}"#;

/// Somebody who follows.
struct Follower {
    response: reqwest::Response,
    text: String,
}

impl Follower {
    /// From the event after this one on, or from now on.
    async fn new(server: &Server, last: Option<&str>, query: &str) -> Self {
        let mut request = server.request(Method::GET, &format!("/events{query}"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.headers()["content-type"].to_str().unwrap()), (200, "text/event-stream"));
        Self { response, text: String::new() }
    }

    /// The lines of the next message that is no comment.
    async fn message(&mut self) -> Vec<(String, String)> {
        loop {
            while let Some((message, rest)) = self.text.split_once("\n\n") {
                let lines = message.lines().filter(|line| !line.starts_with(':'));
                let lines: Vec<_> = lines.map(|line| line.split_once(": ").unwrap()).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
                self.text = rest.to_owned();
                if !lines.is_empty() {
                    return lines;
                }
            }
            let chunk = tokio::time::timeout(Duration::from_secs(60), self.response.chunk()).await.expect("more comes").unwrap();
            self.text.push_str(std::str::from_utf8(&chunk.expect("it goes on")).unwrap());
        }
    }

    /// Ids of the next events, and what each of them says.
    async fn next(&mut self, count: usize) -> Vec<(String, Value)> {
        let mut events = Vec::new();
        while events.len() < count {
            let [(id_is, id), (data_is, data)] = self.message().await.try_into().unwrap();
            assert_eq!((id_is.as_str(), data_is.as_str()), ("id", "data"));
            events.push((id, serde_json::from_str(&data).unwrap()));
        }
        events
    }
}

/// Ids of all events, in the order in which none is missed.
async fn all(database: &Db) -> Vec<String> {
    let query = "select xid::text || '.' || seq from sundown.events order by xid, seq";
    database.client().await.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

fn ids(events: &[(String, Value)]) -> Vec<String> {
    events.iter().map(|(id, _)| id.clone()).collect()
}

#[tokio::test]
async fn whoever_follows_sees_each_transition_once_and_misses_none_when_he_comes_back() {
    let (server, database) = Server::with_database().await;
    let mut follower = Follower::new(&server, None, "").await;
    let id = server.submit(AGENT).await;
    run_it(&database, &id).await;
    let mut seen = follower.next(2).await;
    drop(follower);
    finish_it(&database, &id, "").await;
    let other = server.submit(AGENT).await;
    server.delete(&other).await;
    let mut follower = Follower::new(&server, Some(&seen[1].0), "").await;
    seen.extend(follower.next(4).await);
    let states: Vec<_> = seen.iter().map(|(_, event)| (event["agent"].as_str().unwrap(), event["state"].as_str().unwrap())).collect();
    let (id, other) = (id.as_str(), other.as_str());
    let ended = [(id, "pending"), (id, "running"), (id, "succeeded"), (other, "pending"), (other, "terminating"), (other, "expired")];
    assert_eq!(states, ended);
    assert_eq!(ids(&seen), all(&database).await);
    let mut one = Follower::new(&server, None, &format!("?after=0.0&agent={other}")).await;
    assert_eq!(ids(&one.next(3).await), ids(&seen[3..]));
}

#[tokio::test]
async fn an_event_is_told_only_when_none_before_it_can_come_any_more() {
    let (server, database) = Server::with_database().await;
    let mut follower = Follower::new(&server, None, "").await;
    let mut early = database.client().await;
    let open = early.transaction().await.unwrap();
    open.execute("select sundown.submit('a')", &[]).await.unwrap();
    server.submit(AGENT).await;
    let silence = tokio::time::timeout(Duration::from_millis(500), follower.next(1)).await;
    assert!(silence.is_err(), "{silence:?}");
    open.commit().await.unwrap();
    assert_eq!(ids(&follower.next(2).await), all(&database).await);
}

#[tokio::test]
async fn whoever_is_late_reads_on_until_he_is_with_the_others() {
    let (server, database) = Server::with_database().await;
    let client = database.client().await;
    let many = "select sundown.submit('a') from generate_series(1, 700)";
    client.batch_execute(many).await.unwrap();
    let followers = (0..3).map(|_| Follower::new(&server, Some("0.0"), ""));
    let mut followers = join_all(followers).await;
    // Meanwhile there are more, in transactions of their own.
    let more = async {
        for _ in 0..20 {
            client.batch_execute("select sundown.submit('a') from generate_series(1, 10)").await.unwrap();
        }
    };
    let (seen, ()) = tokio::join!(join_all(followers.iter_mut().map(|follower| follower.next(900))), more);
    let all = all(&database).await;
    for seen in seen {
        assert_eq!(ids(&seen), all);
    }
}

#[tokio::test]
async fn a_place_that_is_not_kept_any_more_is_said_and_one_that_never_was_is_refused() {
    let (server, database) = Server::with_database().await;
    server.submit(AGENT).await;
    // Of an event that is older than any that is kept.
    let mut follower = Follower::new(&server, Some("3.1"), "").await;
    let gap = follower.message().await;
    let oldest = all(&database).await[0].clone();
    assert_eq!(gap, [("event".to_owned(), "gap".to_owned()), ("data".to_owned(), format!("{{\"oldest\":\"{oldest}\"}}"))]);
    assert_eq!(ids(&follower.next(1).await), [oldest]);
    for id in ["18446744073709551615.1", "x", "1", "1.-1", "1.1.1"] {
        let answer = Server::send(server.request(Method::GET, "/events").header("last-event-id", id)).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_parameter"), "{id}");
        let answer = server.get(&format!("/events?after={id}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_parameter"), "{id}");
    }
}

#[tokio::test]
async fn nobody_looks_for_events_when_nobody_follows() {
    let (server, database) = Server::with_database().await;
    let client = database.client().await;
    let looks = async || -> i64 {
        let count = "select sum(idx_scan + seq_scan)::int8 from pg_stat_user_tables where relname like 'event_%'";
        client.query_one(count, &[]).await.unwrap().get(0)
    };
    let still = async || {
        let before = looks().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        looks().await == before
    };
    let follower = Follower::new(&server, None, "").await;
    until("somebody looks", async || !still().await).await;
    drop(follower);
    until("nobody looks", still).await;
}
