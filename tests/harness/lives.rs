//! Agents as a user sees them by SQL: submitted, watched, and ended once.

use std::time::Duration;

use tokio_postgres::Client;
use uuid::Uuid;

use super::eventually;

/// How an agent ended: state, reason, exit code.
pub type End = (String, String, Option<i32>);

pub fn end(state: &str, reason: &str, code: Option<i32>) -> End {
    (state.to_owned(), reason.to_owned(), code)
}

/// Submits an agent that runs a script; `more` is further arguments, as SQL.
pub async fn submit(client: &Client, image: &str, script: &str, more: &str) -> Uuid {
    let statement = format!("select sundown.submit(image => $1, command => array['sh', '-c', $2]{more})");
    client.query_one(&statement, &[&image, &script]).await.unwrap().get(0)
}

/// As many of the same.
pub async fn submit_many(client: &Client, count: usize, image: &str, script: &str, more: &str) -> Vec<Uuid> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(submit(client, image, script, more).await);
    }
    ids
}

/// Waits for an agent's end, at most a minute.
pub async fn outcome(client: &Client, id: Uuid) -> End {
    let row = eventually(&format!("agent {id} has ended"), Duration::from_secs(60), async || {
        client.query_opt("select state, reason, exit_code from sundown.agent_outcome where id = $1", &[&id]).await.unwrap()
    })
    .await;
    (row.get(0), row.get(1), row.get(2))
}

/// The state of an agent at this moment.
pub async fn state(client: &Client, id: Uuid) -> String {
    client.query_one("select state from sundown.agents where id = $1", &[&id]).await.unwrap().get(0)
}

/// Waits until all of these are in one state.
pub async fn until_all(client: &Client, ids: &[Uuid], state: &str) {
    eventually(&format!("{} agents are {state}", ids.len()), Duration::from_secs(60), async || {
        let query = "select count(*) from sundown.agents where id = any ($1) and state = $2";
        let there: i64 = client.query_one(query, &[&ids, &state]).await.unwrap().get(0);
        (usize::try_from(there).unwrap() == ids.len()).then_some(())
    })
    .await;
}

/// Moves the deadlines of agents that run to one and the same instant.
pub async fn due_together(client: &Client, ids: &[Uuid], seconds: f64) {
    client.execute("select sundown.extend(id, make_interval(secs => $2)) from unnest($1::uuid[]) id", &[&ids, &seconds]).await.unwrap();
}

/// Waits until the deadlines of these, which have not ended, have passed by the database's clock.
pub async fn until_overdue(client: &Client, ids: &[Uuid]) {
    eventually("their deadlines have passed", Duration::from_secs(60), async || {
        let query = "select count(*) filter (where expires_at > clock_timestamp()) from sundown.agent_live where id = any ($1)";
        (client.query_one(query, &[&ids]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}

/// Checks what must be true of agents that were stopped at their deadlines, whatever went wrong on the way: each has ended, once, by
/// its ttl, for a decision not before its deadline that was taken once.
pub async fn each_expired_once(client: &Client, ids: &[Uuid]) {
    for id in ids {
        let (state, reason, _) = outcome(client, *id).await;
        assert_eq!((state.as_str(), reason.as_str()), ("expired", "ttl_expired"), "agent {id}");
        let row = client.query_one("select decided_at >= expires_at from sundown.agent_outcome where id = $1", &[id]).await.unwrap();
        assert!(row.get::<_, bool>(0), "agent {id} was decided on before its deadline");
        let told = "select count(*) filter (where state = 'terminating' and kind = 'state'), count(*) filter (where state = 'expired') from sundown.event where id = $1";
        let row = client.query_one(told, &[id]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1, 1), "agent {id} was decided on, and ended, once");
    }
}

/// Checks that nobody lives any more and that no slot is held.
pub async fn nothing_is_held(client: &Client) {
    let row =
        client.query_one("select (select count(*) from sundown.agent_live), (select coalesce(sum(used), 0) from sundown.host_slot)", &[]);
    let row = row.await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (0, 0), "live rows, used slots");
}
