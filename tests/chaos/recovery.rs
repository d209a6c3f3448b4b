//! What a fault leaves behind: the rate at which a backlog of agents is worked off, before five faults and after them, and that nobody is
//! lost in between. The faults are those by which queues on Postgres have been compared in public.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use super::daemon::Daemon;
use super::load::name;
use super::record::{Kind, Plan, Sky};
use super::run;
use super::world::World;
use crate::fake_docker::Call;
use crate::harness::eventually;

/// How long a rate is measured.
const WINDOW: Duration = Duration::from_secs(10);
/// How long a fault may take its effect, and then be got over.
const PAUSE: Duration = Duration::from_secs(5);
/// More than are worked off in all of that.
const BACKLOG: i64 = 25_000;

/// Lives that came to their end in a second, over a window. The last thing that happens to a container is its removal.
async fn rate(world: &World) -> f64 {
    let Daemon::Small(small) = &*world.daemon else { panic!("on the small daemon") };
    let (before, began) = (small.fake.total(Call::Remove), Instant::now());
    sleep(WINDOW).await;
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let ended = (small.fake.total(Call::Remove) - before) as f64;
    ended / began.elapsed().as_secs_f64()
}

async fn terminate_backends(world: &World) {
    let query =
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = 'sundown' and backend_type = 'client backend'";
    let _whoever_was_there = world.cluster.client().await.query_one(query, &[]).await;
}

async fn inflict(world: &World, fault: &str) {
    let cluster = &world.cluster;
    match fault {
        "postgres restart" => {
            cluster.down("fast").await;
            cluster.up().await;
        }
        "backends killed" => {
            for _ in 0..5 {
                terminate_backends(world).await;
                sleep(Duration::from_secs(1)).await;
            }
        }
        "connections exhausted" => {
            // Whoever loses his connection now finds no other.
            let mut crowd = Vec::new();
            while let Some(client) = cluster.try_client("postgres").await {
                crowd.push(client);
            }
            sleep(PAUSE).await;
        }
        "replica crash" => {
            let mut fleet = world.fleet.lock().await;
            fleet.end(0, Signal::SIGKILL).await;
            fleet.start(0);
        }
        "replicas killed, repeatedly" => {
            for n in [0, 1, 2, 0, 1] {
                world.fleet.lock().await.end(n, Signal::SIGKILL).await;
                world.fleet.lock().await.start(n);
                sleep(Duration::from_secs(1)).await;
            }
        }
        other => panic!("there is no fault {other:?}"),
    }
}

async fn agents(world: &World, state: &str) -> i64 {
    let query = format!("select count(*) from sundown.{state}");
    world.cluster.ours().await.query_one(&query, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: for scripts/chaos"]
async fn after_each_of_five_faults_the_rate_is_what_it_was_and_nobody_is_lost() {
    let faults = ["postgres restart", "backends killed", "connections exhausted", "replica crash", "replicas killed, repeatedly"];
    let plan = Plan { capacity: 200, pooled: false, ..run::plan(1, 1, Some(Sky::Calm)) };
    let dir = run::directory(&run::root(), plan.seed);
    let world: Arc<World> = World::new(&dir, 3, &plan).await;
    let mut expected = 0;
    println!("{:<30} {:>10} {:>10} {:>7}", "lives per second", "before", "after", "ratio");
    for fault in faults {
        let submit =
            "select count(sundown.submit(image => 'busybox', command => array['true'], labels => jsonb_build_object('kind', $1::text)))
                        from generate_series(1, $2::bigint)";
        world.cluster.ours().await.query_one(submit, &[&name(Kind::Exits(0)), &BACKLOG]).await.unwrap();
        expected += BACKLOG;
        sleep(PAUSE).await;
        let before = rate(&world).await;
        inflict(&world, fault).await;
        world.fleet.lock().await.all_ready().await;
        sleep(PAUSE).await;
        let after = rate(&world).await;
        assert!(agents(&world, "agent_live").await > 0, "{fault}: the backlog was worked off before the last window was over");
        println!("{fault:<30} {before:>10.0} {after:>10.0} {:>7.2}", after / before);
        eventually("the backlog is worked off", Duration::from_secs(300), async || (agents(&world, "agent_live").await == 0).then_some(()))
            .await;
        assert_eq!(agents(&world, "agent_outcome where state = 'succeeded'").await, expected, "{fault}");
        // Far from what is published, and so a defect rather than a busy machine.
        assert!(after > before / 2.0, "{fault}: {before:.0} lives in a second before, {after:.0} after");
    }
    let Daemon::Small(small) = &*world.daemon else { panic!("on the small daemon") };
    assert_eq!(i64::try_from(small.fake.lives().len()).unwrap(), expected, "each of them ran once");
    run::forget(&dir);
}
