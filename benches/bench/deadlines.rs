//! How soon a submission is picked up, and how late deadlines are decided on, both by the database's clock.

use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use rand::RngExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::harness::Db;
use crate::row::{Figure, Goal, Row, Second};
use crate::series::Series;
use crate::world::{Clock, Transactions, World};
use crate::{Measured, Scale};

/// Agents that live on meanwhile.
const LIVING: usize = 1000;
/// Deadlines a second.
const RATE: f64 = 60.0;
/// So many replicas, and what their rows are called.
const REPLICAS: [(usize, &str, &str); 3] = [
    (1, "deadline to decision, 1,000 live agents, 1 replica: p99", ""),
    (3, "deadline to decision, 1,000 live agents, 3 replicas: p99", "transactions for each deadline, 3 replicas"),
    (8, "deadline to decision, 1,000 live agents, 8 replicas: p99", "transactions for each deadline, 8 replicas"),
];
/// As many starts at once as make a thousand agents run soon.
const ROOM: [(&str, &str); 2] = [("SUNDOWN_CAPACITY", "100000"), ("SUNDOWN_STARTS", "16")];

pub async fn measured(scale: Scale) -> Measured {
    // Beside the peers where these are measured, so that all of it is of one run.
    let rows = if scale.peers { Vec::new() } else { picked_up(scale).await };
    let mut measured = Measured::from(rows);
    let (mut alone, replicas): (Option<f64>, &[_]) = (None, scale.pick(&REPLICAS[2..], &[REPLICAS[0], REPLICAS[2]], &REPLICAS));
    for (replicas, name, transactions) in replicas {
        let decided = decided(scale, *replicas, name).await;
        measured.rows.push(decided.row);
        measured.series.push(decided.lateness);
        match alone {
            None => alone = Some(decided.transactions),
            Some(alone) => measured.rows.push(Row {
                name: transactions,
                sundown: Figure::exactly(decided.transactions),
                yardstick: Figure::exactly(alone),
                against: "the same with one replica",
                unit: "transactions",
                goal: Goal::RatioAtMost(1.25),
                second: None,
                note: "all that there are meanwhile, ticks of idle replicas among them".to_owned(),
            }),
        }
    }
    measured
}

/// Submitted by SQL, one at a time, on a system that does nothing else.
async fn picked_up(scale: Scale) -> Vec<Row> {
    let mut pickup = Pickup::new().await;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..scale.pick(1, 3, 10) {
        let (placed, heard) = pickup.round(scale.pick(5, 40, 40)).await;
        ours.push(placed);
        theirs.push(heard);
    }
    pickup_rows(&ours, &theirs, |_| None)
}

/// A system that does nothing but what it is asked.
pub struct Pickup {
    world: World,
    listener: Listener,
}

impl Pickup {
    pub async fn new() -> Self {
        let world = World::new(1, &ROOM[..1]).await;
        let mut listener = Listener::new(&world).await;
        // Once for nothing: a new session of Postgres first reads the catalogue, and compiles what it calls.
        world.run(1, "busybox").await;
        listener.heard(&world.client).await;
        sleep(Duration::from_secs(1)).await;
        Self { world, listener }
    }

    /// How many milliseconds after its submission each of so many was placed, and each of as many notifications was asked about.
    pub async fn round(&mut self, count: usize) -> (Vec<f64>, Vec<f64>) {
        let (mut ids, mut heard) = (Vec::new(), Vec::new());
        let client = &self.world.client;
        for _ in 0..count {
            let statement = "select sundown.submit(image => 'busybox', command => array['sleep', 'inf'], ttl => '1 hour')";
            ids.push(client.query_one(statement, &[]).await.unwrap().get::<_, uuid::Uuid>(0));
            // Until its container runs.
            sleep(Duration::from_millis(60)).await;
            heard.push(self.listener.heard(client).await);
            sleep(Duration::from_millis(30)).await;
        }
        let query = "select (extract(epoch from l.placed_at - a.created_at) * 1000)::float8
                       from sundown.agent_live l join sundown.agent a using (id) where l.id = any ($1)";
        (client.query(query, &[&ids]).await.unwrap().iter().map(|row| row.get(0)).collect(), heard)
    }
}

/// `best`: the figure of the best peer for such a share, and which it is, if any was measured.
pub fn pickup_rows(ours: &[Vec<f64>], notified: &[Vec<f64>], best: impl Fn(f64) -> Option<(Figure, String)>) -> Vec<Row> {
    let row = |name, share, goal| Row {
        name,
        sundown: Figure::percentile(ours, share),
        yardstick: Figure::percentile(notified, share),
        against: "a bare NOTIFY whose listener asks the database at once",
        unit: "ms",
        goal: Goal::AtMost(goal),
        second: best(share).map(|(yardstick, against)| Second { yardstick, against, goal: Goal::RatioAtMost(1.0) }),
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

struct Decided {
    row: Row,
    lateness: Series,
    /// For each deadline.
    transactions: f64,
}

async fn decided(scale: Scale, replicas: usize, name: &'static str) -> Decided {
    let world = World::new(replicas, &ROOM).await;
    let (rounds, seconds) = (scale.pick(1, 2, 4), scale.pick(2.0, 4.0, 10.0));
    let (living, count) = (scale.pick(20, LIVING, LIVING), (RATE * seconds) as usize);
    let ids = world.run(living + rounds * count, "busybox").await;
    // In another database, so that its transactions are none of ours.
    let elsewhere = Db::empty().await;
    let asking = elsewhere.client().await;
    let transactions = Transactions::of(&world).await;
    let (mut ours, mut theirs, mut done, mut met) = (Vec::new(), Vec::new(), 0.0, 0.0);
    for round in ids[living..].chunks(count) {
        world.due(round, 1.5, seconds).await;
        // Looked at while it is steady.
        sleep(Duration::from_secs_f64(1.5 + seconds * 0.2)).await;
        let (before, from) = transactions.so_far().await;
        sleep(Duration::from_secs_f64(seconds * 0.75)).await;
        let (after, to) = transactions.so_far().await;
        sleep(Duration::from_secs_f64(seconds * 0.05)).await;
        world.ended(round).await;
        ours.push(world.outcomes(round, "extract(epoch from o.decided_at - o.expires_at) * 1000").await);
        let deadlines = world.outcomes(round, "extract(epoch from o.expires_at)").await;
        done += after - before;
        met += deadlines.iter().filter(|deadline| (from..to).contains(*deadline)).count() as f64;
        theirs.push(timers(&asking, count, seconds).await);
    }
    let all = ours.concat();
    let transactions = done / met.max(1.0);
    assert!(all.iter().all(|late| *late >= 0.0), "a decision before its deadline");
    let row = Row {
        name,
        sundown: Figure::percentile(&ours, 0.99),
        yardstick: Figure::percentile(&theirs, 0.99),
        against: "as many timers in the memory of one process, each asking the database once it goes off",
        unit: "ms",
        goal: Goal::AtMost(5.0),
        second: None,
        note: format!(
            "p50 {:.1} ms; {RATE} deadlines a second, {} in all, {transactions:.1} transactions for each",
            Figure::percentile(&ours, 0.5).value,
            all.len()
        ),
    };
    let who = format!("{replicas} replica{}", if replicas == 1 { "" } else { "s" });
    Decided { row, lateness: Series::histogram(who, &all, 0.5, 20), transactions }
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
