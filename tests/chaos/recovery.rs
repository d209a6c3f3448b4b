//! What a fault leaves behind: the rate at which a backlog of agents is worked off, before five faults and after them, and that nobody is
//! lost in between. The faults are those by which queues on Postgres have been compared in public.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::daemon::Daemon;
use super::load::name;
use super::record::{Kind, Plan, Sky};
use super::run;
use super::world::World;
use crate::fake_docker::Call;
use crate::harness::eventually;

/// How long a rate is measured.
const WINDOW: Duration = Duration::from_secs(15);
/// How long some faults last.
const LASTS: Duration = Duration::from_secs(5);
/// How long they may take to be got over. An agent whose stops died under several replicas is left alone for 15 s, and keeps its place meanwhile.
const PAUSE: Duration = Duration::from_secs(18);
/// How often each is inflicted: two cores that do everything at once give rates that differ by a tenth from window to window.
const TIMES: usize = 5;
/// How many wait at least, some seconds' worth, and how many more are submitted at once when it is fewer: no burst.
const WAITING: i64 = 10_000;
const MORE: i32 = 500;

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
        "none" => {}
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
            sleep(LASTS).await;
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

async fn agents(world: &World, which: &str) -> i64 {
    let query = format!("select count(*) from sundown.{which}");
    world.cluster.ours().await.query_one(&query, &[]).await.unwrap().get(0)
}

/// Submits whenever few wait. Answers how many were acknowledged; it says nothing of what happened to the others.
async fn feed(world: Arc<World>, enough: CancellationToken) -> i64 {
    let mut acknowledged = 0;
    let mut client = None;
    while !enough.is_cancelled() {
        if client.is_none() {
            client = world.cluster.try_client("sundown").await;
        }
        let more = match &client {
            Some(connected) => some_more(connected).await.ok(),
            None => None,
        };
        match more {
            Some(more @ 1..) => {
                acknowledged += i64::from(more);
                continue;
            }
            Some(_enough) => {}
            None => client = None,
        }
        sleep(Duration::from_millis(50)).await;
    }
    acknowledged
}

async fn some_more(client: &Client) -> Result<i32, tokio_postgres::Error> {
    let waiting: i64 = client.query_one("select count(*) from sundown.agent_live where host = 0", &[]).await?.get(0);
    if waiting >= WAITING {
        return Ok(0);
    }
    let submit = "select count(*) from sundown.submit_many((select jsonb_agg(jsonb_build_object(
                      'tenant', 'default', 'image', 'busybox', 'command', array['true'], 'env', '{}'::jsonb, 'labels', jsonb_build_object('kind', $1::text),
                      'cpus', 1, 'memory', 67108864, 'pids', 32, 'network', 'none')) from generate_series(1, $2)))";
    client.query_one(submit, &[&name(Kind::Exits(0)), &MORE]).await?;
    Ok(MORE)
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half an hour: for scripts/chaos"]
async fn after_each_of_five_faults_the_rate_is_what_it_was_and_nobody_is_lost() {
    // The first is none, and shows how far rates differ by themselves.
    let faults = ["none", "postgres restart", "backends killed", "connections exhausted", "replica crash", "replicas killed, repeatedly"];
    let plan = Plan { capacity: 200, pooled: false, ..run::plan(1, 1, Some(Sky::Calm)) };
    let dir = run::directory(&run::root(), plan.seed);
    let world: Arc<World> = World::new(&dir, 3, &plan).await;
    // What comes once a minute would be in one window and not in the next.
    for setting in ["autovacuum_naptime = '3s'", "max_wal_size = '16GB'", "checkpoint_timeout = '1h'"] {
        world.cluster.client().await.batch_execute(&format!("alter system set {setting}")).await.unwrap();
    }
    world.cluster.client().await.batch_execute("select pg_reload_conf()").await.unwrap();
    let enough = CancellationToken::new();
    let feeder = tokio::spawn(feed(Arc::clone(&world), enough.clone()));
    let waiting = async || agents(&world, "agent_live where host = 0").await;
    eventually("enough of them wait", Duration::from_secs(60), async || (waiting().await >= WAITING / 2).then_some(())).await;
    println!("{:<30} {:>10} {:>10} {:>8} {:>14}", "lives per second, medians", "before", "after", "ratio", "ratios");
    for fault in faults {
        let mut rates = vec![rate(&world).await];
        for _ in 0..TIMES {
            inflict(&world, fault).await;
            world.fleet.lock().await.all_ready().await;
            sleep(PAUSE).await;
            rates.push(rate(&world).await);
        }
        assert!(agents(&world, "agent_live where host = 0").await > 0, "{fault}: nobody waited any more");
        let mut ratios: Vec<f64> = rates.windows(2).map(|pair| pair[1] / pair[0]).collect();
        ratios.sort_by(f64::total_cmp);
        let ratio = median(&ratios);
        let (before, after) = (median(&rates[..TIMES]), median(&rates[1..]));
        println!("{fault:<30} {before:>10.0} {after:>10.0} {ratio:>8.2}    {ratios:.2?}");
        // Far from what is published, and so a defect rather than a busy machine.
        assert!(ratio > 0.5, "{fault}: {rates:?} lives in a second");
    }
    enough.cancel();
    let acknowledged = feeder.await.unwrap();
    eventually("the backlog is worked off", Duration::from_secs(300), async || (agents(&world, "agent_live").await == 0).then_some(()))
        .await;
    let submitted = agents(&world, "agent").await;
    assert!(acknowledged <= submitted, "{acknowledged} were acknowledged, and {submitted} are there");
    assert_eq!(agents(&world, "agent_outcome where state = 'succeeded'").await, submitted);
    let Daemon::Small(small) = &*world.daemon else { panic!("on the small daemon") };
    assert_eq!(i64::try_from(small.fake.lives().len()).unwrap(), submitted, "each of them ran once");
    println!("{submitted} agents, none lost, each run once");
    run::forget(&dir);
}
