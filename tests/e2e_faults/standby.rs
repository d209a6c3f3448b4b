//! A primary that dies and a standby that takes its place: replicas that were given both addresses go on by themselves, and nothing that
//! a synchronous standby has is lost. What an asynchronous one may lack is lost without harm to what is still there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use uuid::Uuid;

use crate::fake_docker::{Call, FakeDocker};
use crate::harness::clients::{Submitting, posted};
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::lives::{each_expired_once, end, nothing_is_held, outcome, state, submit, submit_many, until_all};
use crate::harness::replica::Replica;
use crate::harness::{eventually, until};

/// Once there is a primary again, every replica is ready within this time.
const BACK: Duration = Duration::from_secs(10);
const NAME: &str = "heir";
/// A heir has no heir: it must not wait for one.
const ALONE: &str = "synchronous_standby_names = ''\n";
const POST: &str = r#"{"image":"busybox","command":["sh","-c","sleep 0.5; exit 3"],"ttl":"10m"}"#;

fn name(id: Uuid) -> String {
    format!("sundown-{id}")
}

/// Both addresses, for whoever is to find the one that takes writes.
fn either(primary: &Cluster, standby: &Cluster) -> String {
    let (one, other) = (primary.port(), standby.port());
    format!("postgres://postgres@127.0.0.1:{one},127.0.0.1:{other}/sundown?target_session_attrs=read-write")
}

async fn until_it_streams(client: &Client, how: &str) {
    let streams = "select exists (select from pg_stat_replication where state = 'streaming' and sync_state = $1)";
    until("the standby streams", async || client.query_one(streams, &[&how]).await.unwrap().get::<_, bool>(0)).await;
}

async fn ready(replicas: impl IntoIterator<Item = &Replica>, within: Duration) {
    let start = Instant::now();
    for replica in replicas {
        eventually("it is ready again", within.saturating_sub(start.elapsed()), async || {
            matches!(replica.try_http("GET", "/readyz", &[], "").await, Ok(answer) if answer.status == 200).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_synchronous_standby_that_is_promoted_has_every_acknowledged_submit() {
    let settings = format!("synchronous_standby_names = '{NAME}'\nsynchronous_commit = local\n");
    let primary = Cluster::start(Plan { settings: &settings, ..Plan::default() }).await;
    let standby = primary.standby(NAME, ALONE).await;
    let client = primary.ours().await;
    until_it_streams(&client, "sync").await;
    // Only now: without a standby nothing could have been made.
    client.batch_execute("alter system set synchronous_commit = on").await.unwrap();
    client.batch_execute("select pg_reload_conf()").await.unwrap();
    let fake = FakeDocker::start().await;
    let (url, endpoint) = (either(&primary, &standby), fake.endpoint());
    let variables = [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_LEASE", "2s")];
    let replicas = [Arc::new(Replica::start(&url, &variables).await), Arc::new(Replica::start(&url, &variables).await)];
    let client = primary.ours().await;
    let due = submit_many(&client, 3, "busybox", "ignore-term; sleep inf", ", ttl => '3s', grace => '1s'").await;
    let stays = submit(&client, "busybox", "sleep inf", ", ttl => '10min'").await;
    until_all(&client, &[due.as_slice(), &[stays]].concat(), "running").await;
    let submitting = Submitting::at(&replicas, POST);
    until("there is much under way", async || fake.lives().len() > 20).await;
    primary.kill().await;
    standby.promote().await;
    ready(replicas.iter().map(Arc::as_ref), BACK).await;
    let lives = fake.lives().len();
    until("agents start again", async || fake.lives().len() > lives + 10).await;
    let acknowledged = submitting.acknowledged().await;
    let client = standby.ours().await;
    let known: i64 = client.query_one("select count(*) from sundown.agent where id = any ($1)", &[&acknowledged]).await.unwrap().get(0);
    assert_eq!(usize::try_from(known).unwrap(), acknowledged.len(), "what was acknowledged is lost");
    for id in &acknowledged {
        assert_eq!(outcome(&client, *id).await, end("failed", "exited", Some(3)));
    }
    each_expired_once(&client, &due).await;
    assert_eq!((state(&client, stays).await.as_str(), fake.calls(Call::Kill, &name(stays))), ("running", 0), "it was not its time");
    client.execute("select sundown.terminate($1)", &[&stays]).await.unwrap();
    assert_eq!(outcome(&client, stays).await, end("expired", "terminated", Some(143)));
    until("the rest has ended", async || {
        client.query_one("select count(*) from sundown.agent_live", &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
    let agents: Vec<Uuid> = client.query("select id from sundown.agent", &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(fake.lives().len(), agents.len(), "a container without a submit, or an agent that was not run once");
    for id in agents {
        assert_eq!(fake.runs(&name(id)), 1, "agent {id} did not run exactly once");
    }
    assert_eq!(fake.containers(), []);
    nothing_is_held(&client).await;
}

/// The first address is a machine that is off the network: it neither takes nor refuses a connection.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_says_nothing_keeps_nobody_from_the_one_that_takes_writes() {
    let (postgres, fake) = (Cluster::start(Plan::default()).await, FakeDocker::start().await);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let silent = socket.listen(1).unwrap();
    let address = silent.local_addr().unwrap();
    // Nobody accepts, and once its line is full the kernel drops whoever comes.
    let mut line = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(address)).await {
        line.push(stream);
    }
    let url = format!("postgres://postgres@{address},127.0.0.1:{}/sundown?target_session_attrs=read-write", postgres.port());
    let endpoint = fake.endpoint();
    let replica = Replica::start(&url, &[("SUNDOWN_DOCKER", &endpoint)]).await;
    let mut agents = Vec::new();
    for _ in 0..5 {
        agents.push(posted(&replica, &Uuid::new_v4().to_string(), POST).await);
    }
    let client = postgres.ours().await;
    for id in agents {
        assert_eq!(outcome(&client, id).await, end("failed", "exited", Some(3)));
    }
    // Nor from finding it again.
    let others = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'";
    client.query_one(others, &[]).await.unwrap();
    ready([&replica], BACK).await;
    let again = posted(&replica, &Uuid::new_v4().to_string(), POST).await;
    assert_eq!(outcome(&client, again).await, end("failed", "exited", Some(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_asynchronous_standby_lacks_is_lost_and_its_containers_are_left_until_their_longest_life_is_over() {
    let primary = Cluster::start(Plan::default()).await;
    let standby = primary.standby(NAME, "").await;
    let client = primary.ours().await;
    until_it_streams(&client, "async").await;
    let fake = FakeDocker::start().await;
    let (url, endpoint) = (either(&primary, &standby), fake.endpoint());
    let variables = [("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_LEASE", "2s")];
    let replicas = [Replica::start(&url, &variables).await, Replica::start(&url, &variables).await];
    let stays = submit(&client, "busybox", "sleep inf", ", ttl => '10min'").await;
    let exits = submit(&client, "busybox", "sleep inf", ", ttl => '10min'").await;
    let waits = submit(&client, "busybox", "exit 4", ", ttl => '10min', run_at => now() + interval '3 s'").await;
    until_all(&client, &[stays, exits], "running").await;
    let there = "select pg_current_wal_lsn() <= replay_lsn from pg_stat_replication";
    until("the standby has it", async || client.query_one(there, &[]).await.unwrap().get::<_, bool>(0)).await;
    standby.down("fast").await;

    // From here on the standby knows nothing, and whoever asks is told yes all the same.
    let answer = replicas[0]
        .http(
            "POST",
            "/agents",
            r#"{"image":"busybox","command":["sleep","inf"],"ttl":"10s","max_ttl":"10s","start_timeout":"7s","grace":"0s"}"#,
        )
        .await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let lost: Uuid = answer.json()["id"].as_str().unwrap().parse().unwrap();
    until_all(&client, &[lost], "running").await;
    assert_eq!(outcome(&client, waits).await, end("failed", "exited", Some(4)));
    client.execute("select sundown.terminate($1)", &[&exits]).await.unwrap();
    assert_eq!(outcome(&client, exits).await, end("expired", "terminated", Some(143)));
    primary.kill().await;
    standby.up().await;
    standby.promote().await;
    ready(&replicas, BACK).await;

    let client = standby.ours().await;
    let known: i64 = client.query_one("select count(*) from sundown.agent where id = $1", &[&lost]).await.unwrap().get(0);
    assert_eq!(known, 0, "the standby has it after all: this proves nothing");
    let answer = replicas[1].http("GET", &format!("/agents/{lost}"), "").await;
    assert_eq!(answer.status, 404, "{answer:?}");
    // What it does not know it reports, and leaves alone for as long as any deadline could have let it live.
    let reported = "a container with our label that we do not know; left until its longest life is over";
    until("it is reported", async || replicas.iter().any(|replica| replica.log().contains(reported))).await;
    let seen = Instant::now();
    // As the standby has it they still live, or wait: the one is not to be found any more, the other is run once more.
    assert_eq!(outcome(&client, exits).await, end("failed", "vanished", None));
    assert_eq!(outcome(&client, waits).await, end("failed", "exited", Some(4)));
    assert_eq!((fake.runs(&name(exits)), fake.runs(&name(waits))), (1, 2));
    // Everything else goes on.
    let next = posted(&replicas[0], "next", POST).await;
    assert_eq!(outcome(&client, next).await, end("failed", "exited", Some(3)));
    eventually("its longest life is over", Duration::from_secs(40), async || {
        let there = fake.containers().iter().any(|seen| seen.name == name(lost) && seen.status == "running");
        (!there).then_some(())
    })
    .await;
    // Counted from when it was first seen. An orphan, looked at as rarely, would have been removed by now.
    assert!(seen.elapsed() >= Duration::from_secs(17), "it was ended after {:?}, before its longest life was over", seen.elapsed());
    assert_eq!((state(&client, stays).await.as_str(), fake.calls(Call::Kill, &name(stays))), ("running", 0), "it was not its time");
    client.execute("select sundown.terminate($1)", &[&stays]).await.unwrap();
    assert_eq!(outcome(&client, stays).await, end("expired", "terminated", Some(143)));
    assert_eq!(fake.containers(), []);
    nothing_is_held(&client).await;
}
