//! The daemon away, unwell, or saying what is not so: nothing is concluded from it, nothing is lost, nobody else waits.

use std::time::Duration;

use tokio_postgres::Client;
use uuid::Uuid;

use crate::fake_docker::{Call, FakeDocker, Fault};
use crate::harness::lives::{
    due_together, each_expired_once, end, nothing_is_held, outcome, state, submit, submit_many, until_all, until_overdue,
};
use crate::harness::replica::Replica;
use crate::harness::{Db, eventually};

const ALWAYS: usize = usize::MAX;

/// A database, a daemon and two replicas between them.
struct World {
    fake: FakeDocker,
    client: Client,
    _replicas: [Replica; 2],
    _db: Db,
}

impl World {
    async fn new(more: &[(&str, &str)]) -> Self {
        Self::of(FakeDocker::start().await, more).await
    }

    async fn of(fake: FakeDocker, more: &[(&str, &str)]) -> Self {
        let db = Db::new().await;
        let endpoint = fake.endpoint();
        let mut variables = vec![("SUNDOWN_DOCKER", endpoint.as_str()), ("SUNDOWN_LEASE", "2s")];
        variables.extend(more);
        let replicas = [Replica::start(&db.url(), &variables).await, Replica::start(&db.url(), &variables).await];
        Self { fake, client: db.client().await, _replicas: replicas, _db: db }
    }

    async fn running(&self, count: usize) -> Vec<Uuid> {
        let ids = submit_many(&self.client, count, "busybox", "sleep inf", ", ttl => '10min', grace => '1s'").await;
        until_all(&self.client, &ids, "running").await;
        ids
    }

    /// Waits until the daemon was asked so often more.
    async fn asked(&self, call: Call, more: usize) {
        let before = self.fake.total(call);
        eventually(&format!("{more} more calls of {call:?}"), Duration::from_secs(60), async || {
            (self.fake.total(call) >= before + more).then_some(())
        })
        .await;
    }

    /// Nobody of these was touched: no signal, no removal, and still running by the row.
    async fn unharmed(&self, ids: &[Uuid]) {
        for id in ids {
            let name = format!("sundown-{id}");
            assert_eq!(self.fake.calls(Call::Kill, &name) + self.fake.calls(Call::Remove, &name), 0, "{:?}", self.fake.history(&name));
            assert_eq!(state(&self.client, *id).await, "running");
        }
        let there = self.fake.containers();
        assert!(ids.iter().all(|id| there.iter().any(|seen| seen.name == format!("sundown-{id}") && seen.status == "running")));
    }

    /// Ends whoever is left, by request, and checks that nothing stays.
    async fn end_all(&self, ids: &[Uuid]) {
        for id in ids {
            self.client.execute("select sundown.terminate($1)", &[id]).await.unwrap();
        }
        for id in ids {
            assert_eq!(outcome(&self.client, *id).await, end("expired", "terminated", Some(143)));
        }
        self.nothing_is_left().await;
    }

    async fn nothing_is_left(&self) {
        assert_eq!(self.fake.containers(), []);
        nothing_is_held(&self.client).await;
    }
}

fn name(id: Uuid) -> String {
    format!("sundown-{id}")
}

#[tokio::test]
async fn with_the_daemon_down_across_deadlines_each_agent_ends_when_it_is_back_and_none_vanishes() {
    let world = World::new(&[]).await;
    let exits = submit(&world.client, "busybox", "sleep 2; exit 3", ", ttl => '10min'").await;
    let overdue = world.running(5).await;
    let later = world.running(2).await;
    until_all(&world.client, &[exits], "running").await;
    due_together(&world.client, &overdue, 1.0).await;
    world.fake.down();
    until_overdue(&world.client, &overdue).await;
    // It ends on its own while nobody can see it.
    world.fake.until(|seen| seen.iter().any(|seen| seen.name == name(exits) && seen.status == "exited")).await;
    let ended: i64 = world.client.query_one("select count(*) from sundown.agent_outcome", &[]).await.unwrap().get(0);
    assert_eq!(ended, 0, "an end was concluded without the daemon");
    world.fake.up();
    each_expired_once(&world.client, &overdue).await;
    assert_eq!(outcome(&world.client, exits).await, end("failed", "exited", Some(3)));
    world.unharmed(&later).await;
    world.end_all(&later).await;
}

#[tokio::test]
async fn a_daemon_that_answers_500_to_everything_ends_nobody_until_it_is_well() {
    let world = World::new(&[]).await;
    let (overdue, later) = (world.running(4).await, world.running(1).await);
    world.fake.inject(None, None, Fault::Status(500, "the daemon is unwell"), ALWAYS);
    due_together(&world.client, &overdue, 1.0).await;
    until_overdue(&world.client, &overdue).await;
    world.asked(Call::Version, 3).await;
    let ended: i64 = world.client.query_one("select count(*) from sundown.agent_outcome", &[]).await.unwrap().get(0);
    assert_eq!(ended, 0);
    assert_eq!(world.fake.containers().iter().filter(|seen| seen.status == "running").count(), 5);
    world.fake.heal();
    each_expired_once(&world.client, &overdue).await;
    world.unharmed(&later).await;
    world.end_all(&later).await;
}

#[tokio::test]
async fn a_404_from_whatever_stands_before_the_daemon_means_nothing_is_gone() {
    let world = World::new(&[]).await;
    let (overdue, later) = (world.running(4).await, world.running(3).await);
    world.fake.inject(None, None, Fault::Status(404, "page not found"), ALWAYS);
    due_together(&world.client, &overdue, 1.0).await;
    until_overdue(&world.client, &overdue).await;
    world.asked(Call::Version, 4).await;
    let ended: i64 = world.client.query_one("select count(*) from sundown.agent_outcome", &[]).await.unwrap().get(0);
    assert_eq!(ended, 0, "a 404 of a proxy ended an agent");
    world.fake.heal();
    each_expired_once(&world.client, &overdue).await;
    world.unharmed(&later).await;
    world.end_all(&later).await;
}

/// The answer to one kind of call is lost once; the agent runs once and ends as it should.
async fn survives_a_lost_answer(call: Call) {
    let world = World::new(&[]).await;
    world.fake.inject(Some(call), None, Fault::LostResponse, 1);
    let exits = submit(&world.client, "busybox", "sleep 0.5; exit 5", ", ttl => '10min'").await;
    assert_eq!(outcome(&world.client, exits).await, end("failed", "exited", Some(5)));
    world.fake.inject(Some(call), None, Fault::LostResponse, 1);
    let expires = submit(&world.client, "busybox", "ignore-term; sleep inf", ", ttl => '1s', grace => '1s'").await;
    each_expired_once(&world.client, &[expires]).await;
    for id in [exits, expires] {
        assert_eq!(world.fake.runs(&name(id)), 1, "{:?}", world.fake.history(&name(id)));
    }
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_lost_answer_to_create_runs_the_agent_once() {
    survives_a_lost_answer(Call::Create).await;
}

#[tokio::test]
async fn a_lost_answer_to_start_runs_the_agent_once() {
    survives_a_lost_answer(Call::Start).await;
}

#[tokio::test]
async fn a_lost_answer_to_kill_ends_the_agent_once() {
    survives_a_lost_answer(Call::Kill).await;
}

#[tokio::test]
async fn a_lost_answer_to_remove_ends_the_agent_once() {
    survives_a_lost_answer(Call::Remove).await;
}

/// One kind of call hangs for one container: its neighbours, due at the same instant, end in time; it ends when the call answers.
async fn delays_nobody_else(call: Call) {
    let world = World::new(&[]).await;
    let ids = world.running(12).await;
    let (stuck, others) = (ids[0], &ids[1..]);
    world.fake.inject(Some(call), Some(&name(stuck)), Fault::Hang, ALWAYS);
    due_together(&world.client, &ids, 1.0).await;
    each_expired_once(&world.client, others).await;
    let late: f64 = world
        .client
        .query_one("select max(extract(epoch from finished_at - expires_at))::float8 from sundown.agent_outcome", &[])
        .await
        .unwrap()
        .get(0);
    assert!(late < 5.0, "a neighbour ended {late} s late, behind a {call:?} that hangs");
    assert_eq!(state(&world.client, stuck).await, "terminating", "it cannot have ended yet");
    // Long enough for every lane to be full of it, if it could fill one.
    world.asked(call, 1).await;
    let more = world.running(4).await;
    world.end_all_but(&more, stuck).await;
    world.fake.heal();
    each_expired_once(&world.client, &[stuck]).await;
    world.nothing_is_left().await;
}

impl World {
    async fn end_all_but(&self, ids: &[Uuid], stuck: Uuid) {
        for id in ids {
            self.client.execute("select sundown.terminate($1)", &[id]).await.unwrap();
        }
        for id in ids {
            assert_eq!(outcome(&self.client, *id).await, end("expired", "terminated", Some(143)));
        }
        assert_eq!(state(&self.client, stuck).await, "terminating");
    }
}

#[tokio::test]
async fn a_kill_that_hangs_delays_no_other_agent() {
    delays_nobody_else(Call::Kill).await;
}

#[tokio::test]
async fn an_inspect_that_hangs_delays_no_other_agent() {
    delays_nobody_else(Call::Inspect).await;
}

#[tokio::test]
async fn a_remove_that_hangs_delays_no_other_agent() {
    delays_nobody_else(Call::Remove).await;
}

#[tokio::test]
async fn an_inspect_that_hangs_puts_off_the_signal_but_not_sigkill() {
    let world = World::new(&[]).await;
    let ids = submit_many(&world.client, 2, "busybox", "sleep inf", ", ttl => '10min', grace => '3s'").await;
    let exits = submit(&world.client, "busybox", "sleep 1; exit 3", ", ttl => '10min', grace => '3s'").await;
    until_all(&world.client, &[ids[0], ids[1], exits], "running").await;
    world.fake.inject(Some(Call::Inspect), None, Fault::Hang, ALWAYS);
    world.fake.until(|seen| seen.iter().any(|seen| seen.name == name(exits) && seen.status == "exited")).await;
    due_together(&world.client, &[ids[0], exits], 1.0).await;
    world.client.execute("select sundown.terminate($1)", &[&ids[1]]).await.unwrap();
    eventually("each is killed, though nobody sees it", Duration::from_secs(60), async || {
        let killed = "select count(*) from sundown.agent_live where killed_at is not null and signalled_at is null";
        (world.client.query_one(killed, &[]).await.unwrap().get::<_, i64>(0) == 3).then_some(())
    })
    .await;
    world.fake.until(|seen| seen.iter().all(|seen| seen.status == "exited")).await;
    let late = "select max(extract(epoch from killed_at - decided_at - grace))::float8 from sundown.agent_live";
    let late: f64 = world.client.query_one(late, &[]).await.unwrap().get(0);
    assert!((0.0..4.0).contains(&late), "SIGKILL came {late} s after the grace was over");
    world.fake.heal();
    assert_eq!(outcome(&world.client, ids[0]).await, end("expired", "ttl_expired", Some(137)));
    assert_eq!(outcome(&world.client, ids[1]).await, end("expired", "terminated", Some(137)));
    assert_eq!(outcome(&world.client, exits).await, end("failed", "exited", Some(3)), "it had ended before");
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_list_that_is_cut_short_reaps_nothing() {
    let world = World::new(&[]).await;
    let ids = world.running(3).await;
    world.fake.inject(Some(Call::List), None, Fault::Truncated, ALWAYS);
    world.asked(Call::List, 6).await;
    world.unharmed(&ids).await;
    world.fake.heal();
    world.asked(Call::List, 2).await;
    world.unharmed(&ids).await;
    world.end_all(&ids).await;
}

#[tokio::test]
async fn an_empty_list_ends_nobody_whom_inspect_still_shows() {
    let world = World::new(&[]).await;
    let ids = world.running(3).await;
    world.fake.inject(Some(Call::List), None, Fault::Empty, ALWAYS);
    let inspected = world.fake.total(Call::Inspect);
    // Whoever is missing from it is looked for.
    eventually("each was looked at", Duration::from_secs(60), async || {
        (world.fake.total(Call::Inspect) >= inspected + 2 * ids.len()).then_some(())
    })
    .await;
    world.unharmed(&ids).await;
    world.fake.heal();
    world.end_all(&ids).await;
}

#[tokio::test]
async fn a_start_that_hangs_fails_by_its_time_limit_and_leaves_no_container_and_no_slot() {
    let world = World::new(&[("SUNDOWN_CAPACITY", "1")]).await;
    world.fake.inject(Some(Call::Start), None, Fault::Hang, 2);
    let stuck = submit(&world.client, "busybox", "sleep inf", ", ttl => '10min', start_timeout => '2s'").await;
    let next = submit(&world.client, "busybox", "exit 0", "").await;
    assert_eq!(outcome(&world.client, stuck).await, end("failed", "start_timeout", None));
    assert!(world.fake.containers().iter().all(|seen| seen.name != name(stuck)), "its container is left");
    world.fake.heal();
    // The only place is free again.
    assert_eq!(outcome(&world.client, next).await, end("succeeded", "exited", Some(0)));
    assert_eq!(world.fake.runs(&name(stuck)), 0, "it was started after all");
    world.nothing_is_left().await;
}

#[tokio::test]
async fn exits_are_found_when_no_event_ever_comes() {
    let fake = FakeDocker::start().await;
    fake.inject(Some(Call::Events), None, Fault::Silent, ALWAYS);
    let world = World::of(fake, &[]).await;
    let failed = submit(&world.client, "busybox", "sleep 0.5; exit 3", ", ttl => '10min'").await;
    let done = submit(&world.client, "busybox", "exit 0", ", ttl => '10min'").await;
    assert_eq!(outcome(&world.client, failed).await, end("failed", "exited", Some(3)));
    assert_eq!(outcome(&world.client, done).await, end("succeeded", "exited", Some(0)));
    world.nothing_is_left().await;
}

#[tokio::test]
async fn another_daemon_behind_the_same_address_ends_nobody() {
    let world = World::new(&[]).await;
    let ids = world.running(4).await;
    let count = async |query: &str| world.client.query_one(query, &[]).await.unwrap().get::<_, i64>(0);
    // Streams of events that stand live on, and say nothing of it; so do connections that are kept, which lead where they always did.
    let other = world.fake.replaced();
    let new = submit(&world.client, "busybox", "sleep inf", ", ttl => '10min', grace => '1s'").await;
    world.client.execute("select sundown.terminate($1)", &[&ids[0]]).await.unwrap();
    eventually("both replicas know it for another host", Duration::from_secs(60), async || {
        // An end that was seen has an exit code.
        let ended = count("select count(*) from sundown.agent_outcome where exit_code is null").await;
        assert_eq!(ended, 0, "an end was concluded from what another daemon does not know");
        (other.total(Call::CreateVolume) >= 2).then_some(())
    })
    .await;
    world.unharmed(&ids[1..]).await;
    assert_eq!(count("select count(*) from sundown.host").await, 2);
    // Wherever the new one was placed, there it is.
    world.client.execute("select sundown.terminate($1)", &[&new]).await.unwrap();
    eventually("nobody lives there", Duration::from_secs(60), async || {
        let there = count("select count(*) from sundown.agent_live where host <> (select min(id) from sundown.host)").await;
        (there == 0).then_some(())
    })
    .await;
    drop(other);
    world.fake.up();
    assert_eq!(outcome(&world.client, ids[0]).await, end("expired", "terminated", Some(143)));
    assert_eq!(outcome(&world.client, new).await.1, "terminated");
    world.unharmed(&ids[1..]).await;
    world.end_all(&ids[1..]).await;
}
