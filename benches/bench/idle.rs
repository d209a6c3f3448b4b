//! What a replica costs that has nothing to do, how soon it is ready, and how large it is.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::Scale;
use crate::harness::replica::sundown;
use crate::process;
use crate::row::{Figure, Row};
use crate::world::World;

/// Until what every start begins with is over, and was counted: a session that is idle reports what it did ten seconds later.
const SETTLES: Duration = Duration::from_secs(14);

pub async fn rows(scale: Scale) -> Vec<Row> {
    let world = World::new(1, &[]).await;
    // Its transactions are counted with those of the database, and are not ours.
    autovacuum(&world.client, "off").await;
    let mut rows = idle(scale, &world).await;
    autovacuum(&world.client, "on").await;
    rows.push(start(scale, &world).await);
    let size = std::fs::metadata(sundown().get_program()).unwrap().len() as f64 / 1e6;
    rows.push(Row::limited("size of the stripped binary", Figure::exactly(size), "MB", 15.0));
    rows
}

async fn autovacuum(client: &Client, state: &str) {
    client.execute(&format!("alter system set autovacuum = {state}"), &[]).await.unwrap();
    client.execute("select pg_reload_conf()", &[]).await.unwrap();
}

async fn idle(scale: Scale, world: &World) -> Vec<Row> {
    let pid = world.replicas[0].pid();
    let other = crate::harness::Db::empty().await;
    let client = other.client().await;
    let (name, long) = (world.client.query_one("select current_database()", &[]).await.unwrap().get::<_, String>(0), scale.pick(1, 8, 20));
    let transactions = async || -> i64 {
        let query = "select xact_commit + xact_rollback from pg_stat_database where datname = $1";
        client.query_one(query, &[&name]).await.unwrap().get(0)
    };
    sleep(SETTLES).await;
    let (mut rates, mut sizes, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    let (first, first_count) = (Instant::now(), transactions().await);
    for _ in 0..3 {
        let (began, count, cpu) = (Instant::now(), transactions().await, process::cpu(pid));
        sleep(Duration::from_secs(long)).await;
        let (cpu, count, took) = (process::cpu(pid) - cpu, transactions().await - count, began.elapsed().as_secs_f64());
        rates.push(count as f64 / took);
        shares.push(cpu.as_secs_f64() / took * 100.0);
        sizes.push(process::resident(pid));
    }
    let together = (transactions().await - first_count) as f64 / first.elapsed().as_secs_f64();
    let windows = format!("3 windows of {long} s, one replica, one host");
    vec![
        Row::limited("idle replica: transactions", Figure::counted(together, &rates), "per s", 0.5).noted(windows.clone()),
        Row::limited("idle replica: resident memory", Figure::of(&sizes), "MB", 12.0)
            .noted("VmRSS, which counts pages of the binary".to_owned()),
        Row::limited("idle replica: CPU", Figure::of(&shares), "% of a core", 0.1).noted(windows),
    ]
}

/// From the start of the process to the first yes of /readyz.
async fn start(scale: Scale, world: &World) -> Row {
    let mut times = Vec::new();
    for _ in 0..scale.pick(1, 7, 15) {
        let began = Instant::now();
        let replica = world.replica(&[]);
        while !matches!(replica.try_http("GET", "/readyz", &[], "").await, Ok(answer) if answer.status == 200) {
            assert!(began.elapsed() < Duration::from_secs(30), "the replica is not ready: {}", replica.log());
            sleep(Duration::from_millis(1)).await;
        }
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    Row::limited("start to ready, migrated database", Figure::of(&times), "ms", 100.0).noted(format!("{} starts", times.len()))
}
