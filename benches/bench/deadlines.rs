//! How soon a submission is picked up, and how late deadlines are decided on, both by the database's clock.

use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use rand::RngExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::Scale;
use crate::row::{Figure, Goal, Row};
use crate::world::{Clock, World};

/// Agents that live on meanwhile.
const LIVING: usize = 1000;
/// Deadlines a second.
const RATE: f64 = 60.0;
/// As many starts at once as make a thousand agents run soon.
const ROOM: [(&str, &str); 2] = [("SUNDOWN_CAPACITY", "100000"), ("SUNDOWN_STARTS", "16")];

pub async fn rows(scale: Scale) -> Vec<Row> {
    let mut rows = picked_up(scale).await;
    rows.push(decided(scale, 1, "deadline to decision, 1,000 live agents, 1 replica: p99").await);
    rows.push(decided(scale, 3, "deadline to decision, 1,000 live agents, 3 replicas: p99").await);
    rows
}

/// Submitted by SQL, one at a time, on a system that does nothing else.
async fn picked_up(scale: Scale) -> Vec<Row> {
    let world = World::new(1, &ROOM[..1]).await;
    let mut listener = Listener::new(&world).await;
    // Once for nothing: a new session of Postgres first reads the catalogue, and compiles what it calls.
    world.run(1, "busybox").await;
    listener.heard(&world.client).await;
    sleep(Duration::from_secs(1)).await;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..scale.pick(3, 10) {
        let (mut ids, mut heard) = (Vec::new(), Vec::new());
        for _ in 0..40 {
            let statement = "select sundown.submit(image => 'busybox', command => array['sleep', 'inf'], ttl => '1 hour')";
            ids.push(world.client.query_one(statement, &[]).await.unwrap().get::<_, uuid::Uuid>(0));
            // Until its container runs.
            sleep(Duration::from_millis(60)).await;
            heard.push(listener.heard(&world.client).await);
            sleep(Duration::from_millis(30)).await;
        }
        let query = "select (extract(epoch from l.placed_at - a.created_at) * 1000)::float8
                       from sundown.agent_live l join sundown.agent a using (id) where l.id = any ($1)";
        ours.push(world.client.query(query, &[&ids]).await.unwrap().iter().map(|row| row.get(0)).collect());
        theirs.push(heard);
    }
    let row = |name, share, goal| Row {
        name,
        sundown: Figure::percentile(&ours, share),
        yardstick: Figure::percentile(&theirs, share),
        against: "a bare NOTIFY whose listener asks the database at once",
        unit: "ms",
        goal: Goal::AtMost(goal),
        note: format!("by SQL; {} samples", ours.concat().len()),
    };
    vec![row("submit to claimed, idle system: p50", 0.5, 1.5), row("submit to claimed, idle system: p99", 0.99, 5.0)]
}

/// What a notification costs at the least: one connection listens, and asks on another as soon as it hears.
struct Listener {
    heard: mpsc::UnboundedReceiver<f64>,
    _listening: Client,
}

impl Listener {
    async fn new(world: &World) -> Self {
        let (listening, mut connection) = world.db.config().connect(NoTls).await.unwrap();
        let asking = world.db.client().await;
        let (tell, heard) = mpsc::unbounded_channel();
        let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                let AsyncMessage::Notification(notification) = message else { continue };
                let late = "select (extract(epoch from statement_timestamp() - $1::text::timestamptz) * 1000)::float8";
                let late = asking.query_one(late, &[&notification.payload()]).await.unwrap().get(0);
                let _nobody_waits = tell.send(late);
            }
        });
        listening.batch_execute("listen bench").await.unwrap();
        Self { heard, _listening: listening }
    }

    /// How many milliseconds later a notification was asked about.
    async fn heard(&mut self, notifier: &Client) -> f64 {
        notifier.execute("select pg_notify('bench', clock_timestamp()::text)", &[]).await.unwrap();
        self.heard.recv().await.unwrap()
    }
}

async fn decided(scale: Scale, replicas: usize, name: &'static str) -> Row {
    let world = World::new(replicas, &ROOM).await;
    let (rounds, seconds) = (scale.pick(2, 5), scale.pick(4.0, 15.0));
    let count = (RATE * seconds) as usize;
    let ids = world.run(LIVING + rounds * count, "busybox").await;
    let asking = world.db.client().await;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in ids[LIVING..].chunks(count) {
        world.due(round, 1.5, seconds).await;
        sleep(Duration::from_secs_f64(seconds + 1.5)).await;
        world.ended(round).await;
        ours.push(world.outcomes(round, "extract(epoch from o.decided_at - o.expires_at) * 1000").await);
        theirs.push(timers(&asking, count, seconds).await);
    }
    assert!(ours.concat().iter().all(|late| *late >= 0.0), "a decision before its deadline");
    Row {
        name,
        sundown: Figure::percentile(&ours, 0.99),
        yardstick: Figure::percentile(&theirs, 0.99),
        against: "as many timers in the memory of one process, each asking the database once it goes off",
        unit: "ms",
        goal: Goal::AtMost(5.0),
        note: format!("p50 {:.1} ms; {RATE} deadlines a second, {} in all", Figure::percentile(&ours, 0.5).value, ours.concat().len()),
    }
}

/// By how many milliseconds each of so many timers is late, by the database's clock.
async fn timers(client: &Client, count: usize, seconds: f64) -> Vec<f64> {
    let clock = Clock::of(client).await;
    let begin = Instant::now() + Duration::from_millis(100);
    let late = (0..count).map(|_| {
        let deadline = begin + Duration::from_secs_f64(seconds * rand::rng().random::<f64>());
        let due = clock.epoch(deadline);
        async move {
            sleep_until(deadline).await;
            let asked = client.query_one("select extract(epoch from statement_timestamp())::float8", &[]).await.unwrap();
            (asked.get::<_, f64>(0) - due) * 1000.0
        }
    });
    join_all(late).await
}
