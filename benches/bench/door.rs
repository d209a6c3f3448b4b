//! The two doors under load: HTTP, and SQL. Nothing is started meanwhile: the host is full, or is nobody's.

use std::time::Duration;

use crate::Scale;
use crate::clients;
use crate::load::Load;
use crate::pgbench::{Length, run, script};
use crate::row::{Figure, Goal, Row, Second};
use crate::world::{NOBODYS, World, member};

const CLIENTS: usize = 32;
const BODY: &str = r#"{"image":"busybox","command":["sleep","inf"],"ttl":"1h"}"#;

pub async fn rows(scale: Scale) -> Vec<Row> {
    // No room: whoever is submitted waits.
    let world = World::new(1, &[("SUNDOWN_CAPACITY", "0")]).await;
    world.client.batch_execute(include_str!("../sql/bare.sql")).await.unwrap();
    let [posts, writers] = submissions(scale, &world).await;
    let [deletes, late_deletes] = deletes(scale, &world).await;
    vec![posts, alone(scale, &world).await, deletes, late_deletes, writers]
}

/// One client, and nobody else: what is shared with others must not be waited for.
async fn alone(scale: Scale, world: &World) -> Row {
    let (url, address, seconds) = (world.db.url(), &world.replicas[0].address, scale.pick(1, 1, 3));
    let (mut ours, mut bare, mut called) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..scale.pick(1, 2, 5) {
        ours.push(Load::of(clients::submit(address, 1, BODY, Duration::from_secs(seconds.into())).await).latencies);
        bare.push(run(&url, &script("insert_bare"), 1, Length::Seconds(seconds), &[]).await.latencies);
        called.push(run(&url, &script("submit"), 1, Length::Seconds(seconds), &[("notify", "auto")]).await.latencies);
    }
    Row {
        name: "POST without key, 1 client: p50",
        sundown: Figure::percentile(&ours, 0.5),
        yardstick: Figure::percentile(&bare, 0.5),
        against: "one row into a bare table by pgbench, 1 client",
        unit: "ms",
        goal: Goal::Shown,
        second: Some(Second {
            yardstick: Figure::percentile(&called, 0.5),
            against:
                "sundown.submit by pgbench, 1 client, which is what a POST calls; a wait for others would come to a millisecond or more"
                    .to_owned(),
            goal: Goal::AtMostBeyond(0.5),
        }),
        note: format!("p99 {:.1} ms; it adds {:.2} ms to a bare insert", Figure::percentile(&ours, 0.99).value, added(&ours, &bare)),
    }
}

fn added(ours: &[Vec<f64>], bare: &[Vec<f64>]) -> f64 {
    Figure::percentile(ours, 0.5).value - Figure::percentile(bare, 0.5).value
}

async fn submissions(scale: Scale, world: &World) -> [Row; 2] {
    let (url, address, seconds) = (world.db.url(), &world.replicas[0].address, scale.pick(3, 2, 8));
    let (mut ours, mut bare, mut told, mut untold, mut times) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..scale.pick(1, 2, 5) {
        let load = Load::of(clients::submit(address, CLIENTS, BODY, Duration::from_secs(seconds.into())).await);
        ours.push(load.rate);
        times.push(load.latencies);
        bare.push(run(&url, &script("insert_bare"), CLIENTS, Length::Seconds(seconds), &[]).await.rate);
        for (notify, rates) in [("auto", &mut told), ("never", &mut untold)] {
            rates.push(run(&url, &script("submit"), CLIENTS, Length::Seconds(seconds), &[("notify", notify)]).await.rate);
        }
    }
    let posts = Row {
        name: "POST without key, 32 clients",
        sundown: Figure::of(&ours),
        yardstick: Figure::of(&bare),
        against: "single-row inserts into a bare table by pgbench, a transaction each",
        unit: "per s",
        goal: Goal::RatioAtLeast(0.8),
        second: None,
        note: format!("p99 {:.1} ms", Figure::percentile(&times, 0.99).value),
    };
    let writers = Row {
        name: "32 writers by sundown.submit, wake-ups on",
        sundown: Figure::of(&told),
        yardstick: Figure::of(&untold),
        against: "the same with notify => 'never'",
        unit: "per s",
        goal: Goal::RatioAtLeast(0.7),
        second: None,
        note: "one replica listens".to_owned(),
    };
    [posts, writers]
}

async fn deletes(scale: Scale, world: &World) -> [Row; 2] {
    let (url, addresses, each) = (world.db.url(), [world.replicas[0].address.as_str()], scale.pick(20, 120, 600));
    let (mut ours, mut theirs, mut our_times, mut their_times) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..scale.pick(1, 2, 5) {
        let crowd = world.crowd(CLIENTS * each, 3600.0).await;
        let load = clients::run(&addresses, CLIENTS, 202, move |client, sent| {
            (sent < each).then(|| ("DELETE", format!("/agents/{}", member(&crowd, client * each + sent)), ""))
        });
        let load = Load::of(load.await);
        ours.push(load.rate);
        our_times.push(load.latencies);
        let crowd = world.crowd(CLIENTS * each, 3600.0).await;
        let (each_of, turn) = (each.to_string(), ("turn", "-1"));
        let variables = [("prefix", crowd.as_str()), ("each", &each_of), turn];
        let run = run(&url, &script("terminate"), CLIENTS, Length::Transactions(each), &variables).await;
        theirs.push(run.rate);
        their_times.push(run.latencies);
    }
    let left = "select count(*)::float8 from sundown.agent_live where state = 'running'";
    assert!(world.number(left).await == 0.0, "some were not terminated");
    let against = "sundown.terminate by pgbench, agents that run";
    [
        Row {
            name: "DELETE, 32 clients",
            sundown: Figure::of(&ours),
            yardstick: Figure::of(&theirs),
            against,
            unit: "per s",
            goal: Goal::RatioAtLeast(0.7),
            second: None,
            note: format!("they run on a host that no replica serves ({NOBODYS}), so that none is stopped meanwhile"),
        },
        Row {
            name: "DELETE, 32 clients: p99",
            sundown: Figure::percentile(&our_times, 0.99),
            yardstick: Figure::percentile(&their_times, 0.99),
            against,
            unit: "ms",
            goal: Goal::AtMostBeyond(5.0),
            second: None,
            note: format!("{CLIENTS} × {each} a round"),
        },
    ]
}
