//! Whole lives: the built binary, a real Postgres, a real Docker daemon. Each test has a database and so an installation of its own,
//! and removes what that installation left on the daemon.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use harness::docker::{self, image};
use harness::replica::{Replica, sundown};
use harness::{Db, until};
use nix::sys::signal::Signal;
use tokio_postgres::Client;
use uuid::Uuid;

/// A short lease, so that a take-over does not take 15 s.
const LEASE: (&str, &str) = ("SUNDOWN_LEASE", "2s");

async fn submit(client: &Client, script: &str, more: &str) -> Uuid {
    let statement = format!("select sundown.submit(image => $1, command => array['sh', '-c', $2]{more})");
    client.query_one(&statement, &[&image(), &script]).await.unwrap().get(0)
}

/// How an agent ended: state, reason, exit code; waits for it.
async fn outcome(client: &Client, id: Uuid) -> (String, String, Option<i32>) {
    let row = harness::eventually(&format!("agent {id} has ended"), Duration::from_secs(60), async || {
        client.query_opt("select state, reason, exit_code from sundown.agent_outcome where id = $1", &[&id]).await.unwrap()
    })
    .await;
    (row.get(0), row.get(1), row.get(2))
}

async fn until_state(client: &Client, id: Uuid, state: &str) {
    harness::eventually(&format!("agent {id} is {state}"), Duration::from_secs(30), async || {
        client.query_opt("select 1 from sundown.agents where id = $1 and state = $2", &[&id, &state]).await.unwrap()
    })
    .await;
}

fn end(state: &str, reason: &str, code: Option<i32>) -> (String, String, Option<i32>) {
    (state.to_owned(), reason.to_owned(), code)
}

#[tokio::test]
async fn an_agent_that_exits_zero_has_succeeded() {
    let db = Db::new().await;
    let client = db.client().await;
    let _replica = Replica::start(&db.url(), &[]).await;
    let id = submit(&client, "echo done", "").await;
    assert_eq!(outcome(&client, id).await, end("succeeded", "exited", Some(0)));
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn an_agent_that_exits_otherwise_has_failed_with_its_code() {
    let db = Db::new().await;
    let client = db.client().await;
    let _replica = Replica::start(&db.url(), &[]).await;
    let id = submit(&client, "exit 3", "").await;
    assert_eq!(outcome(&client, id).await, end("failed", "exited", Some(3)));
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn an_agent_that_eats_its_memory_is_oom_killed() {
    let db = Db::new().await;
    let client = db.client().await;
    let _replica = Replica::start(&db.url(), &[]).await;
    let id = submit(&client, "x=x; while true; do x=$x$x; done", ", memory => 16777216").await;
    assert_eq!(outcome(&client, id).await, end("failed", "oom_killed", Some(137)));
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn an_agent_that_outlives_its_ttl_expires() {
    let db = Db::new().await;
    let client = db.client().await;
    let _replica = Replica::start(&db.url(), &[]).await;
    let id = submit(&client, "sleep 600", ", ttl => '1s'").await;
    assert_eq!(outcome(&client, id).await, end("expired", "ttl_expired", Some(143)));
    let row = client
        .query_one("select decided_at >= expires_at, killed_at is null, started_at + interval '1 s' = expires_at from sundown.agent_outcome where id = $1", &[&id])
        .await
        .unwrap();
    assert!(row.get::<_, bool>(0), "it was decided before its deadline");
    assert!(row.get::<_, bool>(1), "it went on the signal, and no SIGKILL was decided");
    assert!(row.get::<_, bool>(2), "its ttl does not count from running");
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn an_agent_that_ignores_the_signal_is_killed_after_its_grace() {
    let db = Db::new().await;
    let client = db.client().await;
    let _replica = Replica::start(&db.url(), &[]).await;
    let id = submit(&client, "trap '' TERM; while true; do sleep 1; done", ", ttl => '1s', grace => '1s'").await;
    assert_eq!(outcome(&client, id).await, end("expired", "ttl_expired", Some(137)));
    let patient: bool = client
        .query_one("select killed_at >= signalled_at + interval '1 s' from sundown.agent_outcome where id = $1", &[&id])
        .await
        .unwrap()
        .get(0);
    assert!(patient, "SIGKILL came before the grace was over");
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn a_delete_ends_a_running_agent() {
    let db = Db::new().await;
    let client = db.client().await;
    let replica = Replica::start(&db.url(), &[]).await;
    let id = submit(&client, "sleep 600", "").await;
    until_state(&client, id, "running").await;
    let first = replica.http("DELETE", &format!("/agents/{id}"), "").await;
    assert_eq!(first.status, 202, "{first:?}");
    assert_eq!(outcome(&client, id).await, end("expired", "terminated", Some(143)));
    let after = replica.http("DELETE", &format!("/agents/{id}"), "").await;
    assert_eq!((after.status, after.json()["state"].as_str()), (200, Some("expired")));
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn a_container_removed_by_hand_has_vanished() {
    let db = Db::new().await;
    let client = db.client().await;
    let _replica = Replica::start(&db.url(), &[]).await;
    let id = submit(&client, "sleep 600", "").await;
    until_state(&client, id, "running").await;
    docker::run(&["rm", "-f", &format!("sundown-{id}")]);
    assert_eq!(outcome(&client, id).await, end("failed", "vanished", None));
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn what_cannot_start_fails_with_its_reason_and_frees_its_slot() {
    let db = Db::new().await;
    let client = db.client().await;
    let _replica = Replica::start(&db.url(), &[("SUNDOWN_CAPACITY", "1")]).await;
    let missing: Uuid = client.query_one("select sundown.submit(image => 'sundown-no-such-image')", &[]).await.unwrap().get(0);
    assert_eq!(outcome(&client, missing).await, end("failed", "image_missing", None));
    let command: Uuid =
        client.query_one("select sundown.submit(image => $1, command => array['/no/such/command'])", &[&image()]).await.unwrap().get(0);
    assert_eq!(outcome(&client, command).await, end("failed", "start_failed", Some(127)));
    // More cores than any machine has: the daemon refuses to create it.
    let greedy = submit(&client, "true", ", cpus => 512").await;
    assert_eq!(outcome(&client, greedy).await.1, "start_failed");
    let used: i32 = client.query_one("select used from sundown.host_slot", &[]).await.unwrap().get(0);
    assert_eq!(used, 0, "a slot leaked");
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn a_foreign_container_with_its_name_is_a_conflict_and_is_not_touched() {
    let db = Db::new().await;
    let client = db.client().await;
    let id = submit(&client, "sleep 600", "").await;
    let name = format!("sundown-{id}");
    docker::run(&["run", "-d", "--network", "none", "--name", &name, &image(), "sleep", "600"]);
    let _replica = Replica::start(&db.url(), &[]).await;
    assert_eq!(outcome(&client, id).await, end("failed", "name_conflict", None));
    assert_eq!(docker::run(&["inspect", "-f", "{{.State.Running}}", &name]), "true");
    docker::run(&["rm", "-f", &name]);
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn a_submit_that_is_rolled_back_never_had_a_container() {
    let db = Db::new().await;
    let mut client = db.client().await;
    let watch = docker::watch(&client).await;
    let _replica = Replica::start(&db.url(), &[]).await;
    let transaction = client.transaction().await.unwrap();
    let statement = "select sundown.submit(image => $1, command => array['true'])";
    let undone: Uuid = transaction.query_one(statement, &[&image()]).await.unwrap().get(0);
    transaction.rollback().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let done: Uuid = transaction.query_one(statement, &[&image()]).await.unwrap().get(0);
    transaction.commit().await.unwrap();
    // The one that was committed after it has come and gone: so would the other have.
    assert_eq!(outcome(&client, done).await, end("succeeded", "exited", Some(0)));
    assert_eq!(watch.starts(undone), 0);
    assert_eq!(watch.starts(done), 1);
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn expired_means_the_container_is_gone() {
    let db = Db::new().await;
    let client = db.client().await;
    let _replica = Replica::start(&db.url(), &[]).await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(submit(&client, "trap '' TERM; while true; do sleep 1; done", ", ttl => '1s', grace => '500ms'").await);
    }
    for id in ids {
        assert_eq!(outcome(&client, id).await.0, "expired");
        // Asked at the first moment at which anybody could know that it has expired.
        assert!(!docker::exists(&format!("sundown-{id}")), "agent {id} is expired and its container is still there");
    }
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn what_exits_within_a_millisecond_is_not_lost() {
    let db = Db::new().await;
    let client = db.client().await;
    let watch = docker::watch(&client).await;
    let _replica = Replica::start(&db.url(), &[]).await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(submit(&client, "exit 0", ", ttl => '10min'").await);
    }
    for id in ids {
        assert_eq!(outcome(&client, id).await, end("succeeded", "exited", Some(0)));
        assert_eq!(watch.starts(id), 1);
    }
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn the_last_output_is_kept_and_a_nul_does_no_harm() {
    let db = Db::new().await;
    let client = db.client().await;
    let replica = Replica::start(&db.url(), &[]).await;
    let script = r"i=0; while [ $i -lt 3000 ]; do echo 'line of thirty-two characters ....'; i=$((i+1)); done; printf 'a\000b'; exit 4";
    let id = submit(&client, script, "").await;
    assert_eq!(outcome(&client, id).await, end("failed", "exited", Some(4)));
    let row = client.query_one("select tail, truncated from sundown.agent_log where id = $1", &[&id]).await.unwrap();
    let tail: Vec<u8> = row.get(0);
    assert_eq!(tail.len(), 64 * 1024);
    assert!(tail.ends_with(b"a\0b"));
    assert!(row.get::<_, bool>(1), "there was more before it");
    let answer = replica.http("GET", &format!("/agents/{id}/logs"), "").await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.ends_with("a\0b"));
    docker::leave_nothing(&client).await;
}

/// Every step of a life at which the replica that works on it is killed with -9; another one finishes it, once.
async fn killed_at(point: &str, script: &str, more: &str, expected: (String, String, Option<i32>)) {
    let db = Db::new().await;
    let client = db.client().await;
    let watch = docker::watch(&client).await;
    let failpoints = format!("{point}=1*return(kill)");
    let mut first = Replica::start(&db.url(), &[LEASE, ("FAILPOINTS", &failpoints)]).await;
    let id = submit(&client, script, more).await;
    let status = first.ended().await;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{point} was not reached; log:\n{}", first.log());
    let _second = Replica::start(&db.url(), &[LEASE]).await;
    assert_eq!(outcome(&client, id).await, expected, "killed at {point}");
    assert_eq!(watch.starts(id), 1, "killed at {point}");
    assert!(!docker::exists(&format!("sundown-{id}")), "killed at {point}");
    let log: Option<Vec<u8>> =
        client.query_opt("select tail from sundown.agent_log where id = $1", &[&id]).await.unwrap().map(|row| row.get(0));
    assert_eq!(log.as_deref(), Some(&b"hello\n"[..]), "killed at {point}: the log is lost");
    let used: i32 = client.query_one("select used from sundown.host_slot", &[]).await.unwrap().get(0);
    assert_eq!(used, 0, "killed at {point}: a slot leaked");
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn a_start_survives_kill_9_at_every_step_and_runs_once() {
    for point in ["launch.before_create", "launch.created", "launch.recorded", "launch.before_start", "launch.started", "launch.running"] {
        killed_at(point, "echo hello; sleep 1; exit 7", "", end("failed", "exited", Some(7))).await;
    }
}

#[tokio::test]
async fn an_agent_that_exited_while_its_replica_was_dead_is_never_run_a_second_time() {
    // It ends long before anybody else may look at its start.
    killed_at("launch.started", "echo hello; exit 5", "", end("failed", "exited", Some(5))).await;
}

#[tokio::test]
async fn a_stop_survives_kill_9_at_every_step() {
    let stubborn = "echo hello; trap '' TERM; while true; do sleep 1; done";
    for point in ["sweep.claimed", "stop.looked", "stop.signalling", "stop.signalled", "stop.before_kill", "stop.killed"] {
        killed_at(point, stubborn, ", ttl => '1s', grace => '1s'", end("expired", "ttl_expired", Some(137))).await;
    }
}

#[tokio::test]
async fn a_finish_survives_kill_9_between_any_two_steps() {
    for point in ["finish.before_observe", "finish.observed", "finish.removed", "finish.recorded"] {
        killed_at(point, "echo hello; exit 9", "", end("failed", "exited", Some(9))).await;
    }
}

#[tokio::test]
async fn a_wish_to_end_it_wins_at_every_step_of_a_start() {
    for point in ["launch.before_create", "launch.created", "launch.recorded", "launch.before_start", "launch.started"] {
        let db = Db::new().await;
        let client = db.client().await;
        let watch = docker::watch(&client).await;
        // It hangs there; meanwhile its end is asked for.
        let failpoints = format!("{point}=1*return(stop)");
        let first = Replica::start(&db.url(), &[LEASE, ("FAILPOINTS", &failpoints)]).await;
        let id = submit(&client, "sleep 600", ", grace => '1s'").await;
        harness::eventually(&format!("the replica stands still at {point}"), Duration::from_secs(30), async || {
            let status = std::fs::read_to_string(format!("/proc/{}/stat", first.pid())).unwrap();
            status.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')).then_some(())
        })
        .await;
        let second = Replica::start(&db.url(), &[LEASE]).await;
        assert_eq!(second.http("DELETE", &format!("/agents/{id}"), "").await.status, 202);
        let (state, reason, _) = outcome(&client, id).await;
        assert_eq!((state.as_str(), reason.as_str()), ("expired", "terminated"), "stopped at {point}");
        // The one that stood still goes on, past its lease, and must not start it after all.
        first.signal(Signal::SIGCONT);
        harness::eventually(&format!("it has found its lease lost ({point})"), Duration::from_secs(30), async || {
            let metrics = first.http("GET", "/metrics", "").await.body;
            metrics.contains("\nsundown_leases_lost_total 1").then_some(())
        })
        .await;
        let name = format!("sundown-{id}");
        harness::eventually(&format!("nothing is left of it ({point})"), Duration::from_secs(30), async || {
            (!docker::exists(&name)).then_some(())
        })
        .await;
        assert!(watch.starts(id) <= 1, "stopped at {point}");
        docker::leave_nothing(&client).await;
    }
}

#[tokio::test]
async fn a_hundred_deletes_cause_one_stop() {
    let db = Db::new().await;
    let client = db.client().await;
    let url = db.url();
    let replicas = [Replica::start(&url, &[]).await, Replica::start(&url, &[]).await, Replica::start(&url, &[]).await];
    let id = submit(&client, "trap 'echo asked' TERM; while true; do sleep 0.1; done", ", grace => '2s'").await;
    until_state(&client, id, "running").await;
    let path = format!("/agents/{id}");
    let answers = futures_util::future::join_all((0..100).map(|n| replicas[n % 3].http("DELETE", &path, ""))).await;
    assert!(answers.iter().all(|answer| answer.status == 202), "{answers:?}");
    assert_eq!(outcome(&client, id).await, end("expired", "terminated", Some(137)));
    let log: Vec<u8> = client.query_one("select tail from sundown.agent_log where id = $1", &[&id]).await.unwrap().get(0);
    assert_eq!(String::from_utf8_lossy(&log).matches("asked").count(), 1, "more than one stop signal was sent");
    let decisions: i64 =
        client.query_one("select count(*) from sundown.event where id = $1 and state = 'terminating'", &[&id]).await.unwrap().get(0);
    assert_eq!(decisions, 1);
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn two_replicas_never_run_the_same_agent() {
    let db = Db::new().await;
    let client = db.client().await;
    let watch = docker::watch(&client).await;
    let url = db.url();
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(submit(&client, "sleep 1", "").await);
    }
    // All of them find the same line of waiting agents at once.
    let (_a, _b, _c) = tokio::join!(Replica::start(&url, &[]), Replica::start(&url, &[]), Replica::start(&url, &[]));
    for id in ids {
        assert_eq!(outcome(&client, id).await, end("succeeded", "exited", Some(0)));
        assert_eq!(watch.starts(id), 1, "agent {id} did not run exactly once");
    }
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn an_acknowledged_submit_is_never_lost() {
    let db = Db::new().await;
    let client = db.client().await;
    let watch = docker::watch(&client).await;
    let url = db.url();
    let mut doomed = Replica::start(&url, &[LEASE]).await;
    let body = serde_json::json!({ "image": image(), "command": ["sh", "-c", "exit 0"] }).to_string();
    let acknowledged = Mutex::new(Vec::new());
    // Killed while requests are under way: each of them is answered whole, or not at all.
    let clients = (0..6).map(async |_| {
        while let Ok(answer) = doomed.try_http("POST", "/agents", &[], &body).await {
            assert_eq!(answer.status, 201, "{answer:?}");
            acknowledged.lock().unwrap().push(Uuid::parse_str(answer.json()["id"].as_str().unwrap()).unwrap());
        }
    });
    tokio::join!(join_all(clients), async {
        until("a few are answered", async || acknowledged.lock().unwrap().len() >= 12).await;
        doomed.signal(Signal::SIGKILL);
    });
    doomed.ended().await;
    let acknowledged = acknowledged.into_inner().unwrap();
    let _other = Replica::start(&url, &[LEASE]).await;
    for id in acknowledged {
        assert_eq!(outcome(&client, id).await, end("succeeded", "exited", Some(0)));
        assert_eq!(watch.starts(id), 1);
    }
    // Some were submitted, and their clients never heard of it.
    let nobody = async || (db.count("select count(*) from sundown.agent_live").await == 0).then_some(());
    harness::eventually("nobody is left", Duration::from_secs(60), nobody).await;
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn when_every_host_is_full_agents_wait_their_turn() {
    let db = Db::new().await;
    let client = db.client().await;
    let _replica = Replica::start(&db.url(), &[("SUNDOWN_CAPACITY", "1")]).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(submit(&client, "sleep 0.3", "").await);
    }
    for id in &ids {
        assert_eq!(outcome(&client, *id).await, end("succeeded", "exited", Some(0)));
    }
    let overlapping: i64 = client
        .query_one("select count(*) from sundown.agent_outcome a join sundown.agent_outcome b on b.placed_at > a.placed_at and b.placed_at < a.finished_at", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(overlapping, 0, "a host carried more than its capacity");
    let in_order: bool = client
        .query_one("select array_agg(id order by placed_at) = array_agg(id order by id) from sundown.agent_outcome", &[])
        .await
        .unwrap()
        .get(0);
    assert!(in_order, "they were not placed in the order of their submission");
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn an_extended_agent_lives_to_its_new_deadline() {
    let db = Db::new().await;
    let client = db.client().await;
    let replica = Replica::start(&db.url(), &[]).await;
    let id = submit(&client, "sleep 600", ", ttl => '2s'").await;
    until_state(&client, id, "running").await;
    let answer = replica.http("PATCH", &format!("/agents/{id}"), r#"{"ttl": "4s"}"#).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let expires_at = answer.json()["expires_at"].as_str().unwrap().to_owned();
    assert_eq!(outcome(&client, id).await, end("expired", "ttl_expired", Some(143)));
    let kept: bool = client
        .query_one("select signalled_at >= $1::text::timestamptz from sundown.agent_outcome where id = $2", &[&expires_at, &id])
        .await
        .unwrap()
        .get(0);
    assert!(kept, "it was stopped before the deadline that had been acknowledged");
    let late = replica.http("PATCH", &format!("/agents/{id}"), r#"{"ttl": "4s"}"#).await;
    assert_eq!((late.status, late.json()["code"].as_str()), (409, Some("already_over")));
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn notifications_wake_a_replica_that_polls_once_an_hour() {
    let db = Db::new().await;
    let client = db.client().await;
    let replica = Replica::start(&db.url(), &[("SUNDOWN_POLL", "1h")]).await;
    harness::eventually("it listens", Duration::from_secs(10), async || {
        replica.http("GET", "/metrics", "").await.body.contains("\nsundown_listening 1").then_some(())
    })
    .await;
    let id = submit(&client, "sleep 600", ", ttl => '30min', notify => 'always'").await;
    until_state(&client, id, "running").await;
    client.execute("select sundown.extend($1, '20min', notify => 'always')", &[&id]).await.unwrap();
    client.execute("select sundown.terminate($1, notify => 'always')", &[&id]).await.unwrap();
    assert_eq!(outcome(&client, id).await, end("expired", "terminated", Some(143)));
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn polling_alone_is_enough() {
    let db = Db::new().await;
    let client = db.client().await;
    let _replica = Replica::start(&db.url(), &[("SUNDOWN_POLL", "100ms")]).await;
    let id = submit(&client, "sleep 600", ", ttl => '1s', notify => 'never'").await;
    assert_eq!(outcome(&client, id).await, end("expired", "ttl_expired", Some(143)));
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn sigterm_finishes_the_work_in_hand_and_ends_well() {
    let db = Db::new().await;
    let client = db.client().await;
    let mut replica = Replica::start(&db.url(), &[]).await;
    let id = submit(&client, "sleep 600", "").await;
    harness::eventually("it is being started", Duration::from_secs(10), async || {
        client.query_opt("select 1 from sundown.agent_live where id = $1 and host <> 0", &[&id]).await.unwrap()
    })
    .await;
    replica.signal(Signal::SIGTERM);
    let status = replica.ended().await;
    assert_eq!(status.code(), Some(0), "{}", replica.log());
    let row = client.query_one("select state, leased_by is null from sundown.agent_live where id = $1", &[&id]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, bool>(1)), ("running", true), "the start in hand was not finished");
    let left: i64 = client
        .query_one("select (select count(*) from sundown.replica) + (select count(*) from sundown.keeper)", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, 0);
    client.execute("select sundown.terminate($1)", &[&id]).await.unwrap();
    let _other = Replica::start(&db.url(), &[]).await;
    outcome(&client, id).await;
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn a_loop_that_panics_takes_the_process_down() {
    let db = Db::new().await;
    let client = db.client().await;
    let mut replica = Replica::start(&db.url(), &[("FAILPOINTS", "sweep.claimed=1*panic")]).await;
    let id = submit(&client, "sleep 600", ", ttl => '1s', grace => '1s'").await;
    assert_eq!(replica.ended().await.code(), Some(70), "{}", replica.log());
    let _other = Replica::start(&db.url(), &[LEASE]).await;
    let (state, reason, _) = outcome(&client, id).await;
    assert_eq!((state.as_str(), reason.as_str()), ("expired", "ttl_expired"));
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn a_lane_that_panics_takes_the_process_down() {
    let db = Db::new().await;
    let client = db.client().await;
    let mut replica = Replica::start(&db.url(), &[LEASE, ("FAILPOINTS", "launch.created=1*panic")]).await;
    let id = submit(&client, "exit 0", "").await;
    assert_eq!(replica.ended().await.code(), Some(70), "{}", replica.log());
    let _other = Replica::start(&db.url(), &[LEASE]).await;
    assert_eq!(outcome(&client, id).await, end("succeeded", "exited", Some(0)));
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn a_sweep_without_a_server_ends_everything() {
    let db = Db::new().await;
    let client = db.client().await;
    let done = submit(&client, "exit 0", "").await;
    let late = submit(&client, "sleep 600", ", ttl => '1s'").await;
    let stubborn = submit(&client, "trap '' TERM; while true; do sleep 1; done", ", ttl => '1s', grace => '1s'").await;
    let once = sundown().arg("sweep").env("SUNDOWN_DATABASE_URL", db.url()).output().unwrap();
    assert!(once.status.success(), "{}", String::from_utf8_lossy(&once.stderr));
    let counts: serde_json::Value = serde_json::from_slice(&once.stdout).unwrap();
    assert_eq!((counts["placed"].as_u64(), counts["started"].as_u64()), (Some(3), Some(3)), "{counts}");
    let all = sundown().args(["sweep", "--wait"]).env("SUNDOWN_DATABASE_URL", db.url()).output().unwrap();
    assert!(all.status.success(), "{}", String::from_utf8_lossy(&all.stderr));
    let counts: serde_json::Value = serde_json::from_slice(&all.stdout).unwrap();
    assert_eq!(
        (counts["waiting"].as_i64(), counts["running"].as_i64(), counts["terminating"].as_i64()),
        (Some(0), Some(0), Some(0)),
        "{counts}"
    );
    assert_eq!(outcome(&client, done).await, end("succeeded", "exited", Some(0)));
    assert_eq!(outcome(&client, late).await, end("expired", "ttl_expired", Some(143)));
    assert_eq!(outcome(&client, stubborn).await, end("expired", "ttl_expired", Some(137)));
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn orphans_go_and_foreign_containers_stay() {
    let db = Db::new().await;
    let other = Db::new().await;
    let client = db.client().await;
    let _replica = Replica::start(&db.url(), &[]).await;
    let ended = submit(&client, "exit 0", "").await;
    outcome(&client, ended).await;
    let (ours, theirs) = (docker::installation(&client).await, docker::installation(&other.client().await).await);
    let name = format!("sundown-{ended}");
    let label = |installation: Uuid, agent: Uuid| [format!("sundown.installation={installation}"), format!("sundown.agent={agent}")];
    let run = |name: &str, labels: &[String]| {
        let mut args = vec!["run", "-d", "--network", "none", "--name", name];
        for label in labels {
            args.extend(["--label", label]);
        }
        let image = image();
        args.extend([image.as_str(), "sleep", "600"]);
        docker::run(&args);
    };
    // An agent that has ended, started again by hand under its own name: an orphan.
    run(&name, &label(ours, ended));
    // Labels copied, under another name; an agent that nobody knows; another installation's.
    let stranger = Uuid::new_v4();
    let strangers = [format!("copy-{ended}"), format!("sundown-{stranger}"), format!("sundown-{}", Uuid::new_v4())];
    run(&strangers[0], &label(ours, ended));
    run(&strangers[1], &label(ours, stranger));
    run(&strangers[2], &label(theirs, ended));
    harness::eventually("the orphan is gone", Duration::from_secs(30), async || (!docker::exists(&name)).then_some(())).await;
    for name in &strangers {
        assert_eq!(docker::run(&["inspect", "-f", "{{.State.Running}}", name]), "true", "{name} was touched");
        docker::run(&["rm", "-f", name]);
    }
    let state: String = client.query_one("select state from sundown.agents where id = $1", &[&ended]).await.unwrap().get(0);
    assert_eq!(state, "succeeded");
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn a_copy_of_the_database_does_nothing_until_it_is_adopted() {
    let db = Db::new().await;
    let client = db.client().await;
    let mut replica = Replica::start(&db.url(), &[]).await;
    let id = submit(&client, "sleep 600", ", ttl => '10min'").await;
    until_state(&client, id, "running").await;
    replica.signal(Signal::SIGTERM);
    replica.ended().await;
    drop(client);
    let copy = db.cloned().await;
    let mut on_copy = Replica::spawn(&copy.url(), &[]);
    assert_eq!(on_copy.ended().await.code(), Some(78), "{}", on_copy.log());
    let swept = sundown().arg("sweep").env("SUNDOWN_DATABASE_URL", copy.url()).output().unwrap();
    assert_eq!(swept.status.code(), Some(78));
    let adopted = sundown().args(["adopt", "--new"]).env("SUNDOWN_DATABASE_URL", copy.url()).output().unwrap();
    assert!(adopted.status.success(), "{}", String::from_utf8_lossy(&adopted.stderr));
    // Beside the original it believes nothing alive, and leaves the original's container alone.
    let on_copy = Replica::start(&copy.url(), &[]).await;
    let copied = copy.client().await;
    assert_eq!(outcome(&copied, id).await.1, "host_lost");
    let fresh = submit(&copied, "exit 0", "").await;
    assert_eq!(outcome(&copied, fresh).await, end("succeeded", "exited", Some(0)));
    assert!(docker::exists(&format!("sundown-{id}")), "the original's agent was harmed");
    drop(on_copy);
    docker::leave_nothing(&copied).await;
    let client = db.client().await;
    client.execute("select sundown.terminate($1)", &[&id]).await.unwrap();
    let _replica = Replica::start(&db.url(), &[]).await;
    assert_eq!(outcome(&client, id).await, end("expired", "terminated", Some(143)));
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn an_agent_gets_no_privileges() {
    let db = Db::new().await;
    let client = db.client().await;
    let _replica = Replica::start(&db.url(), &[]).await;
    let id = submit(&client, "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; ls /sys/class/net; cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max", "").await;
    assert_eq!(outcome(&client, id).await, end("succeeded", "exited", Some(0)));
    let tail: Vec<u8> = client.query_one("select tail from sundown.agent_log where id = $1", &[&id]).await.unwrap().get(0);
    let seen = String::from_utf8(tail).unwrap();
    for wanted in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "lo", "128"] {
        assert!(seen.lines().any(|line| line == wanted), "{wanted} is not in:\n{seen}");
    }
    assert!(!seen.contains("eth"), "it has a network:\n{seen}");
    docker::leave_nothing(&client).await;
}

#[tokio::test]
async fn a_host_that_lost_its_volume_is_known_again() {
    let db = Db::new().await;
    let client = db.client().await;
    let first = Replica::start(&db.url(), &[]).await;
    let id = submit(&client, "sleep 600", ", ttl => '10min'").await;
    until_state(&client, id, "running").await;
    let volume = format!("sundown-host-{}", docker::installation(&client).await);
    docker::run(&["volume", "rm", &volume]);
    harness::until("it is known again", async || docker::run(&["volume", "ls", "-q", "--filter", &format!("name={volume}")]) == volume)
        .await;
    drop(first);
    docker::run(&["volume", "rm", &volume]);
    let second = Replica::start(&db.url(), &[LEASE]).await;
    assert_eq!(second.http("DELETE", &format!("/agents/{id}"), "").await.status, 202);
    assert_eq!(outcome(&client, id).await, end("expired", "terminated", Some(143)));
    let hosts = db.count("select count(*) from sundown.host").await;
    assert_eq!(hosts, 1, "it was taken for another host");
    docker::leave_nothing(&client).await;
}
