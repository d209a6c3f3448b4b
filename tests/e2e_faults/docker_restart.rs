//! The real daemon restarted and killed under agents that run, and two daemons on one machine.

use nix::sys::signal::Signal;
use uuid::Uuid;

use crate::harness::dockerd::{Dockerd, IMAGE};
use crate::harness::lives::{each_expired_once, end, nothing_is_held, outcome, state, submit, submit_many, until_all, until_overdue};
use crate::harness::replica::Replica;
use crate::harness::{Db, until};

/// The container's own word on how long its process has lived: it is the same process.
fn started_at(daemon: &Dockerd, agent: Uuid) -> String {
    daemon.docker(&["inspect", "-f", "{{.State.StartedAt}} {{.State.Pid}} {{.State.Running}}", &format!("sundown-{agent}")])
}

async fn agents_survive(signal: Signal) {
    let mut daemon = Dockerd::start().await;
    let db = Db::new().await;
    let (client, endpoint, url) = (db.client().await, daemon.endpoint(), db.url());
    let variables = [("SUNDOWN_DOCKER", endpoint.as_str())];
    let _replicas = tokio::join!(Replica::start(&url, &variables), Replica::start(&url, &variables));
    let stays = submit(&client, IMAGE, "sleep 600", ", ttl => '10min', grace => '1s'").await;
    let exits = submit(&client, IMAGE, "sleep 4; exit 6", ", ttl => '10min'").await;
    let overdue = submit(&client, IMAGE, "sleep 600", ", ttl => '3s', grace => '1s'").await;
    until_all(&client, &[stays, exits, overdue], "running").await;
    let before = started_at(&daemon, stays);
    daemon.down(signal).await;
    until_overdue(&client, &[overdue]).await;
    // Decided, perhaps, while the daemon was about to go; never ended without its word.
    let meanwhile = state(&client, overdue).await;
    assert!(["running", "terminating"].contains(&meanwhile.as_str()), "its end was concluded without the daemon: {meanwhile}");
    daemon.up().await;
    each_expired_once(&client, &[overdue]).await;
    assert_eq!(outcome(&client, exits).await, end("failed", "exited", Some(6)));
    assert_eq!(state(&client, stays).await, "running");
    assert_eq!(started_at(&daemon, stays), before, "the agent did not survive");
    client.execute("select sundown.terminate($1)", &[&stays]).await.unwrap();
    assert_eq!(outcome(&client, stays).await, end("expired", "terminated", Some(143)));
    assert_eq!(daemon.names(), Vec::<String>::new());
    nothing_is_held(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_survive_a_restart_of_the_daemon_and_the_overdue_one_ends_when_it_answers() {
    agents_survive(Signal::SIGTERM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_survive_a_daemon_that_was_killed_and_the_overdue_one_ends_when_it_answers() {
    agents_survive(Signal::SIGKILL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_on_one_machine_are_two_hosts_each_with_its_capacity_and_its_agents() {
    let (one, mut two) = tokio::join!(Dockerd::start(), Dockerd::start());
    let db = Db::new().await;
    let client = db.client().await;
    let endpoints = format!("{},{}", one.endpoint(), two.endpoint());
    let _replica = Replica::start(&db.url(), &[("SUNDOWN_DOCKER", &endpoints), ("SUNDOWN_CAPACITY", "2"), ("SUNDOWN_LEASE", "2s")]).await;
    until("both are known", async || client.query_one("select count(*) from sundown.hosts", &[]).await.unwrap().get::<_, i64>(0) == 2)
        .await;
    let ids = submit_many(&client, 4, IMAGE, "sleep 600", ", ttl => '10min', grace => '1s'").await;
    until_all(&client, &ids, "running").await;
    let waits = submit(&client, IMAGE, "exit 0", ", ttl => '10min'").await;
    let full = client.query("select used, capacity from sundown.hosts order by id", &[]).await.unwrap();
    let full: Vec<(i32, i32)> = full.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(full, [(2, 2), (2, 2)]);
    assert_eq!((one.names().len(), two.names().len()), (2, 2));
    // Its daemon goes away with room on the other one: the agent stays where it is.
    let of_two: Vec<Uuid> = two.names().iter().map(|name| name.trim_start_matches("sundown-").parse().unwrap()).collect();
    let of_one: Vec<Uuid> = ids.iter().copied().filter(|id| !of_two.contains(id)).collect();
    let before = started_at(&two, of_two[0]);
    assert_eq!(state(&client, waits).await, "pending", "there is no room");
    two.down(Signal::SIGTERM).await;
    client.execute("select sundown.terminate($1)", &[&of_one[0]]).await.unwrap();
    assert_eq!(outcome(&client, of_one[0]).await, end("expired", "terminated", Some(143)));
    // Whoever waited gets the free place on the host that answers.
    assert_eq!(outcome(&client, waits).await, end("succeeded", "exited", Some(0)));
    for id in &of_two {
        assert_eq!(state(&client, *id).await, "running");
    }
    two.up().await;
    assert_eq!(started_at(&two, of_two[0]), before);
    for id in of_two.iter().chain(&of_one[1..]) {
        client.execute("select sundown.terminate($1)", &[id]).await.unwrap();
    }
    for id in of_two.iter().chain(&of_one[1..]) {
        assert_eq!(outcome(&client, *id).await, end("expired", "terminated", Some(143)));
    }
    let hosts: i64 = client.query_one("select count(*) from sundown.hosts", &[]).await.unwrap().get(0);
    assert_eq!(hosts, 2, "a restarted daemon became another host");
    assert_eq!((one.names(), two.names()), (Vec::new(), Vec::new()));
    nothing_is_held(&client).await;
}
