//! Removals that fail or hang: they hold up nobody else, and do not pile up.

use std::sync::Arc;
use std::time::Duration;

use sundown::docker::Docker;
use sundown::finish::remove_and_record;
use sundown::replica::{Host, Link, Replica};
use sundown::sql::work::{Claim, Facts};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::fake_docker::{Call, FakeDocker, Fault};
use crate::harness::lives::{end, outcome};
use crate::harness::{Db, START, claim, docker, eventually, lives, observe, replica, run, submit, until};

const ALWAYS: usize = usize::MAX;

/// What is done by a replica without its loops.
struct Bench {
    fake: FakeDocker,
    client: Client,
    replica: Arc<Replica>,
    link: Arc<Link>,
    _db: Db,
}

impl Bench {
    async fn new() -> Self {
        let (db, fake) = (Db::new().await, FakeDocker::start().await);
        let sql = db.sql(4).await;
        let docker = Docker::connect(&fake.endpoint(), sql.installation()).await.unwrap();
        let uuid = docker.host_identity(Uuid::new_v4()).await.unwrap();
        let id = sql.register_host(uuid, "here", &fake.endpoint(), None, None).await.unwrap();
        let host = Arc::new(Host::new(fake.endpoint(), None, 2));
        let link = host.connected(id, uuid, docker);
        let replica = Arc::new(Replica::new(sql.clone(), sql, 1, vec![host], START, Duration::from_secs(1)));
        Self { fake, client: db.client().await, replica, link, _db: db }
    }

    /// An agent whose end is durable and whose container is still there.
    async fn seen_to_end(&self) -> Uuid {
        submit(&self.client, "").await;
        let (id, epoch) = run(&self.replica.sql, self.link.id, None).await;
        self.fake.run(&container(id), &[]);
        let facts =
            Facts { state: "failed", reason: Some("exited"), exit_code: Some(1), oom_killed: None, error: None, dead: None, tail: None };
        observe(&self.replica.sql, id, epoch, &facts, None).await.unwrap();
        id
    }

    /// Claims this one, now.
    async fn claim(&self, id: Uuid) -> Claim {
        self.client.execute("update sundown.agent_live set due_at = statement_timestamp() where id = $1", &[&id]).await.unwrap();
        claim(&self.replica.sql, self.link.id, None).await.into_iter().find(|row| row.id == id).unwrap()
    }

    async fn finish(&self, row: &Claim) {
        remove_and_record(&self.replica, &self.link, row, Some(&container(row.id))).await.unwrap();
    }

    /// Claims an agent whose removal hangs, and gives up on it.
    async fn stubborn(&self) -> Uuid {
        let id = self.seen_to_end().await;
        self.fake.inject(Some(Call::Remove), Some(&container(id)), Fault::Hang, ALWAYS);
        let row = self.claim(id).await;
        tokio::select! {
            () = self.finish(&row) => panic!("it does not hang"),
            () = until("it is being removed", async || self.fake.calls(Call::Remove, &container(id)) > 0) => {}
        }
        id
    }
}

fn container(id: Uuid) -> String {
    format!("sundown-{id}")
}

#[tokio::test]
async fn only_a_removal_that_failed_is_made_to_wait_for_those_that_hang() {
    let bench = Bench::new().await;
    let stubborn = bench.stubborn().await;
    let _busy = bench.link.turn_to_remove(&container(stubborn)).await.unwrap();
    // In the end of a thousand it was claimed again and again before its turn came.
    let id = bench.seen_to_end().await;
    let row = Claim { attempts: 7, ..bench.claim(id).await };
    tokio::time::timeout(Duration::from_secs(10), bench.finish(&row)).await.expect("it waits behind one that hangs");
    assert_eq!(outcome(&bench.client, id).await, end("failed", "exited", Some(1)));
}

#[tokio::test]
async fn removals_that_hang_do_not_pile_up_however_often_they_are_claimed() {
    let bench = Bench::new().await;
    let (stubborn, waits) = (bench.stubborn().await, bench.stubborn().await);
    for claims in 1..=2 {
        for id in [stubborn, waits] {
            let (row, replica, link) = (bench.claim(id).await, Arc::clone(&bench.replica), Arc::clone(&bench.link));
            bench.replica.spawn(async move { remove_and_record(&replica, &link, &row, Some(&container(id))).await.unwrap() });
        }
        assert!(bench.replica.drained(Duration::from_secs(12)).await, "after {claims} claims of each, work for them is left");
    }
    let asked = bench.fake.calls(Call::Remove, &container(stubborn)) + bench.fake.calls(Call::Remove, &container(waits));
    assert!(asked <= 2 + 2 * 2, "asked for {asked} times in one claim and two of each");
    let said = "select count(*) from sundown.agent_live where error like '%its removal does not end'";
    assert!(bench.client.query_one(said, &[]).await.unwrap().get::<_, i64>(0) > 0, "its row does not say what is wrong");
    bench.fake.heal();
    for id in [stubborn, waits] {
        bench.finish(&bench.claim(id).await).await;
        assert_eq!(outcome(&bench.client, id).await, end("failed", "exited", Some(1)));
    }
}

#[tokio::test]
async fn orphans_whose_removal_hangs_keep_no_end_from_being_found() {
    let (db, fake) = (Db::new().await, FakeDocker::start().await);
    let (client, endpoint) = (db.client().await, fake.endpoint());
    let _replica = replica::Replica::start(&db.url(), &[("SUNDOWN_DOCKER", &endpoint)]).await;
    let installation = docker::installation(&client).await.to_string();
    let orphans = lives::submit_many(&client, 2, "busybox", "exit 0", "").await;
    for id in &orphans {
        assert_eq!(outcome(&client, *id).await, end("succeeded", "exited", Some(0)));
        fake.inject(Some(Call::Remove), Some(&container(*id)), Fault::Hang, ALWAYS);
        fake.run(&container(*id), &[("sundown.installation", &installation), ("sundown.agent", &id.to_string())]);
    }
    let removed = fake.total(Call::Remove);
    eventually("an orphan is being removed", Duration::from_secs(60), async || (fake.total(Call::Remove) > removed).then_some(())).await;
    let id = lives::submit(&client, "busybox", "sleep 0.2; exit 3", ", ttl => '10min'").await;
    // The daemon is given up on after 14 s, for each of them.
    eventually("its end is found meanwhile", Duration::from_secs(10), async || {
        client.query_opt("select from sundown.agent_outcome where id = $1", &[&id]).await.unwrap()
    })
    .await;
    assert_eq!(outcome(&client, id).await, end("failed", "exited", Some(3)));
    fake.heal();
    eventually("they are gone", Duration::from_secs(60), async || fake.containers().is_empty().then_some(())).await;
}
