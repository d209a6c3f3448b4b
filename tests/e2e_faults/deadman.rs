//! Postgres away past the longest life of an agent: the dead man ends it, nobody else is touched, and what is recorded afterwards is what
//! happened, also when whoever ended it is gone by then.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::fake_docker::{Call, FakeDocker};
use crate::harness::deadman::{Deadman, once};
use crate::harness::lives::{each_expired_once, end, nothing_is_held, outcome, state, submit, until_all};
use crate::harness::postgres::Postgres;
use crate::harness::replica::Replica;
use crate::harness::{Db, docker, eventually};

const PATIENCE: Duration = Duration::from_secs(60);
/// A longest life of eight seconds: long enough for Postgres to go away before the deadline.
const SHORT: &str = ", ttl => '5s', max_ttl => '5s', start_timeout => '3s', grace => '0s'";

fn name(id: Uuid) -> String {
    format!("sundown-{id}")
}

fn overdue(id: Uuid) -> String {
    format!("sundown-{id}-overdue")
}

fn status(fake: &FakeDocker, name: &str) -> Option<&'static str> {
    fake.containers().into_iter().find(|seen| seen.name == name).map(|seen| seen.status)
}

async fn looks(fake: &FakeDocker, more: usize) {
    let before = fake.total(Call::List);
    eventually("the daemon is looked at", PATIENCE, async || (fake.total(Call::List) >= before + more).then_some(())).await;
}

/// What the record says beside the end itself.
async fn words(client: &Client, id: Uuid) -> Option<String> {
    client.query_one("select error from sundown.agent_outcome where id = $1", &[&id]).await.unwrap().get(0)
}

async fn ends_without_postgres(replicas_die: bool) {
    let (postgres, fake) = (Postgres::start().await, FakeDocker::start().await);
    let (client, url, endpoint) = (postgres.client().await, postgres.url(), fake.endpoint());
    let variables = [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_DEADMAN_GRACE", "1s")];
    let mut replicas = vec![Replica::start(&url, &variables).await, Replica::start(&url, &variables).await];
    let installation = docker::installation(&client).await.to_string();
    let stays = submit(&client, "busybox", "sleep inf", ", ttl => '10min'").await;
    until_all(&client, &[stays], "running").await;
    let began = Instant::now();
    let over = submit(&client, "busybox", "sleep inf", SHORT).await;
    // It dies of a SIGKILL that was nobody's of us, past its deadline and before its longest life is over.
    let dies = submit(&client, "busybox", "sleep 6; exit 137", SHORT).await;
    until_all(&client, &[over, dies], "running").await;
    postgres.fall_silent();
    assert_eq!(fake.total(Call::Kill), 0, "too late: a deadline came before Postgres went away");
    // Labels copied from an agent to other names, and an agent of another installation, which has a database of its own.
    let (agent, someone, other) = (stays.to_string(), Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
    let life = ("sundown.longest_life", "1");
    let foreign = ["copy-of-an-agent".to_owned(), name(Uuid::new_v4()), format!("sundown-{someone}")];
    fake.run(&foreign[0], &[("sundown.installation", &installation), ("sundown.agent", &agent), life]);
    fake.run(&foreign[1], &[("sundown.installation", &installation), ("sundown.agent", &agent), life]);
    fake.run(&foreign[2], &[("sundown.installation", &other), ("sundown.agent", &someone), life]);
    eventually("it is ended", PATIENCE, async || (status(&fake, &overdue(over)) == Some("exited")).then_some(())).await;
    assert!(began.elapsed() >= Duration::from_secs(8), "ended before its longest life was over");
    looks(&fake, 2).await;
    assert_eq!(fake.calls(Call::Remove, &name(over)), 0, "what is to be recorded is still there");
    assert_eq!(status(&fake, &name(dies)), Some("exited"), "dead already, and left as it was");
    for name in foreign.iter().chain(&[name(stays)]) {
        assert_eq!((status(&fake, name), fake.calls(Call::Kill, name), fake.calls(Call::Rename, name)), (Some("running"), 0, 0), "{name}");
    }
    if replicas_die {
        for replica in &mut replicas {
            replica.signal(Signal::SIGKILL);
            replica.ended().await;
        }
    }
    postgres.go_on();
    let client = postgres.client().await;
    if replicas_die {
        replicas = vec![Replica::start(&url, &variables).await];
    }
    each_expired_once(&client, &[over]).await;
    assert_eq!(outcome(&client, over).await, end("expired", "ttl_expired", Some(137)));
    assert_eq!(words(&client, over).await.as_deref(), Some("the dead man found it past its longest life"));
    assert_eq!(outcome(&client, dies).await, end("failed", "exited", Some(137)), "its end was its own");
    assert_eq!((fake.runs(&name(over)), fake.runs(&name(dies))), (1, 1));
    assert_eq!(state(&client, stays).await, "running", "it was not its time");
    client.execute("select sundown.terminate($1)", &[&stays]).await.unwrap();
    assert_eq!(outcome(&client, stays).await, end("expired", "terminated", Some(143)));
    assert!(fake.containers().iter().all(|seen| foreign.contains(&seen.name)), "{:?}", fake.containers());
    nothing_is_held(&client).await;
    drop(replicas);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_away_whoever_is_past_his_longest_life_is_ended_and_recorded_when_it_is_back() {
    ends_without_postgres(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_the_dead_man_ended_is_recorded_so_by_replicas_that_know_nothing_of_it() {
    ends_without_postgres(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_away_for_less_than_the_grace_nobody_is_ended_without_it() {
    let (postgres, fake) = (Postgres::start().await, FakeDocker::start().await);
    let (client, endpoint) = (postgres.client().await, fake.endpoint());
    let _replica = Replica::start(&postgres.url(), &[("SUNDOWN_DOCKER", &endpoint), ("SUNDOWN_DEADMAN_GRACE", "10min")]).await;
    let over = submit(&client, "busybox", "sleep inf", SHORT).await;
    until_all(&client, &[over], "running").await;
    postgres.fall_silent();
    // Its age counts from the first of these looks; a keeper that has not noticed yet may look as well.
    looks(&fake, 6).await;
    assert_eq!((status(&fake, &name(over)), fake.total(Call::Kill)), (Some("running"), 0));
    postgres.go_on();
    let client = postgres.client().await;
    each_expired_once(&client, &[over]).await;
    assert_eq!(words(&client, over).await, None);
    nothing_is_held(&client).await;
}

/// What the daemon says of a container.
fn inspect(name: &str, what: &str) -> String {
    docker::run(&["inspect", "-f", &format!("{{{{.State.{what}}}}}"), name])
}

/// The shared daemon; ours alone are looked after, for others test on it too.
const LOCAL: &str = "unix:///var/run/docker.sock";

fn endpoint() -> String {
    std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty()).unwrap_or_else(|| LOCAL.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_nothing_else_of_sundown_alive_the_dead_man_ends_an_agent_and_a_later_replica_records_it() {
    let db = Db::new().await;
    let client = db.client().await;
    let mut replica = Replica::start(&db.url(), &[]).await;
    let stays = submit(&client, &docker::image(), "sleep 600", ", ttl => '10min'").await;
    until_all(&client, &[stays], "running").await;
    let bounds = ", ttl => '5s', max_ttl => '5s', start_timeout => '5s', grace => '0s'";
    let began = Instant::now();
    let over = submit(&client, &docker::image(), "sleep 600", bounds).await;
    until_all(&client, &[over], "running").await;
    replica.signal(Signal::SIGKILL);
    replica.ended().await;
    assert_eq!(inspect(&name(over), "Running"), "true", "too late: its deadline came before the replica died");
    let installation = docker::installation(&client).await.to_string();
    let dead_man = Deadman::start(&endpoint(), &["--installation", &installation]);
    eventually("it is ended", PATIENCE, async || docker::exists(&overdue(over)).then_some(())).await;
    assert!(began.elapsed() >= Duration::from_secs(10 + 1), "ended before its longest life and the grace were over");
    eventually("it is dead", PATIENCE, async || (inspect(&overdue(over), "Running") == "false").then_some(())).await;
    assert_eq!((inspect(&overdue(over), "ExitCode").as_str(), inspect(&name(stays), "Running").as_str()), ("137", "true"));
    assert_eq!(dead_man.end().await.code(), Some(0));
    let _next = Replica::start(&db.url(), &[]).await;
    each_expired_once(&client, &[over]).await;
    assert_eq!(outcome(&client, over).await, end("expired", "ttl_expired", Some(137)));
    assert_eq!(state(&client, stays).await, "running");
    client.execute("select sundown.terminate($1)", &[&stays]).await.unwrap();
    assert_eq!(outcome(&client, stays).await, end("expired", "terminated", Some(143)));
    nothing_is_held(&client).await;
    docker::leave_nothing(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_there_only_the_database_ends_anybody_and_a_process_shows_its_age_at_the_first_look() {
    let db = Db::new().await;
    let client = db.client().await;
    let mut replica = Replica::start(&db.url(), &[]).await;
    let bounds = ", ttl => '3s', max_ttl => '3s', start_timeout => '5s', grace => '0s'";
    let over = submit(&client, &docker::image(), "sleep 600", bounds).await;
    until_all(&client, &[over], "running").await;
    // By hand, past every ceiling: for the database it has time, for its label it will soon have had it.
    let later = "update sundown.agent_live set expires_at = expires_at + interval '1 h', due_at = due_at + interval '1 h' where id = $1";
    client.execute(later, &[&over]).await.unwrap();
    replica.signal(Signal::SIGKILL);
    replica.ended().await;
    let young = submit(&client, &docker::image(), "sleep 600", ", ttl => '10min'").await;
    let installation = docker::installation(&client).await.to_string();
    let args = ["--installation", installation.as_str()];
    let counted = |agents: u64, ended: u64| (Some(0), json!({"agents": agents, "unseen": 0, "ended": ended, "failed": 0}));
    assert_eq!(once(&endpoint(), &args).await, counted(1, 0), "its life is not over yet");
    eventually("its life is over", PATIENCE, async || {
        // By the database's clock, which is this machine's; and one second, the dead man's grace.
        let query = "select clock_timestamp() > started_at + interval '10 s' from sundown.agent_live where id = $1";
        client.query_one(query, &[&over]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    // Its dead man looks as it starts, and the database is there.
    let mut replica = Replica::start(&db.url(), &[("SUNDOWN_DEADMAN_GRACE", "1s")]).await;
    until_all(&client, &[young], "running").await;
    assert_eq!((inspect(&name(over), "Running").as_str(), state(&client, over).await.as_str()), ("true", "running"));
    replica.signal(Signal::SIGKILL);
    replica.ended().await;
    // He who has no database goes by the label, and knows at once how old its process is.
    assert_eq!(once(&endpoint(), &args).await, counted(2, 1));
    assert_eq!((inspect(&overdue(over), "Running").as_str(), inspect(&name(young), "Running").as_str()), ("false", "true"));
    let now = "update sundown.agent_live set expires_at = now(), due_at = now() where id = $1";
    client.execute(now, &[&over]).await.unwrap();
    client.execute("select sundown.terminate($1)", &[&young]).await.unwrap();
    let _next = Replica::start(&db.url(), &[]).await;
    each_expired_once(&client, &[over]).await;
    assert_eq!(outcome(&client, young).await, end("expired", "terminated", Some(143)));
    nothing_is_held(&client).await;
    docker::leave_nothing(&client).await;
}
