//! Time is mocked: every statement that depends on it is asked before, at and after its instant. Nothing here waits.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use harness::{Db, START, STOP, claim, host, observe, place, refusal};
use sundown::docker::Tail;
use sundown::sql::Sql;
use sundown::sql::work::{Facts, Placed};
use tokio::time::Instant;
use tokio_postgres::types::{FromSqlOwned, Type};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

/// The smallest step that matters to anybody.
const TICK: Duration = Duration::from_millis(1);
const NOBODY: [Uuid; 0] = [];

/// A database, and a clock that stands still.
struct World {
    db: Db,
    sql: Sql,
    client: Client,
    host: i32,
    start: SystemTime,
}

/// What a test looks at in a live row.
#[derive(Debug, Clone, PartialEq)]
struct Live {
    state: String,
    reason: Option<String>,
    epoch: i32,
    due_at: SystemTime,
    expires_at: Option<SystemTime>,
    signalled_at: Option<SystemTime>,
    killed_at: Option<SystemTime>,
}

impl World {
    async fn new() -> Self {
        let db = Db::new().await;
        let (sql, client, start) = (db.sql(4).await, db.client().await, db.now().await);
        let host = host(&sql, 1000).await;
        Self { db, sql, client, host, start }
    }

    /// The instant that many seconds after the start.
    fn at(&self, seconds: f64) -> SystemTime {
        let span = Duration::from_secs_f64(seconds.abs());
        if seconds < 0.0 { self.start - span } else { self.start + span }
    }

    async fn submit(&self, with: &str, at: SystemTime) -> Uuid {
        self.try_submit(with, at).await.unwrap()
    }

    async fn try_submit(&self, with: &str, at: SystemTime) -> Result<Uuid, tokio_postgres::Error> {
        let more = if with.is_empty() { String::new() } else { format!(", {with}") };
        let row = self.client.query_one(&format!("select sundown.submit(image => 'busybox', at => $1{more})"), &[&at]).await?;
        Ok(row.get(0))
    }

    /// Submitted, placed and running, all at that instant.
    async fn running(&self, with: &str, at: SystemTime) -> (Uuid, i32) {
        let id = self.submit(with, at).await;
        let (placed, epoch) = harness::run(&self.sql, self.host, Some(at)).await;
        assert_eq!(placed, id);
        (id, epoch)
    }

    async fn claim(&self, at: SystemTime) -> Vec<(Uuid, String)> {
        claim(&self.sql, self.host, Some(at)).await.into_iter().map(|row| (row.id, row.state)).collect()
    }

    async fn extend(&self, id: Uuid, ttl: Duration, at: SystemTime) -> Result<Option<SystemTime>, String> {
        let seconds = ttl.as_secs_f64();
        let answer = self.client.query_one("select sundown.extend($1, make_interval(secs => $2), at => $3)", &[&id, &seconds, &at]).await;
        self.answer(answer).await
    }

    async fn terminate(&self, id: Uuid, at: SystemTime) -> Result<String, String> {
        let answer = self.client.query_one("select sundown.terminate($1, actor => 'a test', at => $2)", &[&id, &at]).await;
        self.answer(answer).await
    }

    /// What a function answered, or the name of its refusal.
    async fn answer<T: FromSqlOwned>(&self, answer: Result<Row, tokio_postgres::Error>) -> Result<T, String> {
        if answer.is_err() {
            // A refusal arrives before its transaction has let go of the row, and a claim would pass that over.
            self.client.batch_execute("").await.unwrap();
        }
        answer.map(|row| row.get(0)).map_err(|error| refusal(&error).1)
    }

    async fn live(&self, id: Uuid) -> Live {
        let ask = "select state, reason, epoch, due_at, expires_at, signalled_at, killed_at from sundown.agent_live where id = $1";
        let row = self.client.query_one(ask, &[&id]).await.unwrap();
        Live {
            state: row.get(0),
            reason: row.get(1),
            epoch: row.get(2),
            due_at: row.get(3),
            expires_at: row.get(4),
            signalled_at: row.get(5),
            killed_at: row.get(6),
        }
    }

    /// State, reason and when it was written.
    async fn outcome(&self, id: Uuid) -> (String, String, SystemTime) {
        let row =
            self.client.query_one("select state, reason, finished_at from sundown.agent_outcome where id = $1", &[&id]).await.unwrap();
        (row.get(0), row.get(1), row.get(2))
    }
}

fn terminating(id: Uuid) -> Vec<(Uuid, String)> {
    vec![(id, "terminating".to_owned())]
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn close(left: f64, right: f64) -> bool {
    (left - right).abs() < 1e-5
}

// Time to live.

#[tokio::test]
async fn a_deadline_is_not_met_before_it_and_is_decided_by_the_claim_at_it() {
    let w = World::new().await;
    let (id, epoch) = w.running("ttl => '5s'", w.at(0.0)).await;
    assert_eq!(w.live(id).await.expires_at, Some(w.at(5.0)));
    assert_eq!(w.claim(w.at(5.0) - TICK).await, []);
    assert_eq!((w.live(id).await.state, w.live(id).await.epoch), ("running".to_owned(), epoch));
    assert_eq!(w.claim(w.at(5.0)).await, terminating(id));
    let live = w.live(id).await;
    assert_eq!((live.reason.as_deref(), live.epoch), (Some("ttl_expired"), epoch + 1));
    let row = w.client.query_one("select decided_at, actor from sundown.agent_live where id = $1", &[&id]).await.unwrap();
    assert_eq!((row.get::<_, SystemTime>(0), row.get::<_, &str>(1)), (w.at(5.0), "sundown"));
}

#[tokio::test]
async fn a_deadline_that_nobody_met_is_met_later() {
    let w = World::new().await;
    let (id, _) = w.running("ttl => '5s'", w.at(0.0)).await;
    assert_eq!(w.claim(w.at(5000.0)).await, terminating(id));
}

#[tokio::test]
async fn ttl_counts_from_running_and_waiting_does_not_eat_it() {
    let w = World::new().await;
    let id = w.submit("ttl => '5s'", w.at(0.0)).await;
    let (_, epoch) = place(&w.sql, w.host, Some(w.at(300.0))).await;
    assert!(w.sql.record_container(id, epoch, "c").await.unwrap());
    let due_in = w.sql.running(id, epoch, Some(w.at(301.0))).await.unwrap().unwrap();
    assert!(close(due_in, 5.0), "{due_in}");
    assert_eq!(w.claim(w.at(306.0) - TICK).await, []);
    assert_eq!(w.claim(w.at(306.0)).await, terminating(id));
}

#[tokio::test]
async fn an_agent_that_names_no_ttl_has_the_default() {
    let w = World::new().await;
    w.sql.settings(Some(100.0), Some(1000.0), None, None).await.unwrap().unwrap();
    let (id, _) = w.running("", w.at(0.0)).await;
    assert_eq!(w.live(id).await.expires_at, Some(w.at(100.0)));
    // At most its own ceiling.
    let (id, _) = w.running("max_ttl => '30s'", w.at(0.0)).await;
    assert_eq!(w.live(id).await.expires_at, Some(w.at(30.0)));
    assert_eq!(w.claim(w.at(30.0) - TICK).await, []);
    assert_eq!(w.claim(w.at(30.0)).await, terminating(id));
}

#[tokio::test]
async fn no_ttl_is_above_the_ceiling() {
    let w = World::new().await;
    w.sql.settings(Some(100.0), Some(1000.0), None, None).await.unwrap().unwrap();
    let refused = async |with: &str| {
        let error = w.try_submit(with, w.at(0.0)).await.expect_err(with);
        refusal(&error).1
    };
    assert_eq!(refused("ttl => '1000.001s'").await, "above_ceiling");
    assert_eq!(refused("ttl => '1s', max_ttl => '1000.001s'").await, "above_ceiling");
    assert_eq!(refused("ttl => '20.001s', max_ttl => '20s'").await, "above_ceiling");
    assert_eq!(refused("ttl => '0s'").await, "invalid_ttl");
    assert_eq!(refused("ttl => '-1s'").await, "invalid_ttl");
    let (id, _) = w.running("ttl => '1000s'", w.at(0.0)).await;
    assert_eq!(w.live(id).await.expires_at, Some(w.at(1000.0)));
    // A lower ceiling takes the default down with it.
    w.sql.settings(None, Some(50.0), None, None).await.unwrap().unwrap();
    let (id, _) = w.running("", w.at(0.0)).await;
    assert_eq!(w.live(id).await.expires_at, Some(w.at(50.0)));
}

#[tokio::test]
async fn a_shortened_ttl_ends_sooner() {
    let w = World::new().await;
    let (id, _) = w.running("ttl => '100s'", w.at(0.0)).await;
    assert_eq!(w.extend(id, seconds(3), w.at(10.0)).await, Ok(Some(w.at(13.0))));
    assert_eq!(w.claim(w.at(13.0) - TICK).await, []);
    assert_eq!(w.claim(w.at(13.0)).await, terminating(id));
}

#[tokio::test]
async fn an_extended_ttl_ends_later() {
    let w = World::new().await;
    let (id, epoch) = w.running("ttl => '5s'", w.at(0.0)).await;
    assert_eq!(w.extend(id, seconds(60), w.at(5.0) - TICK).await, Ok(Some(w.at(65.0) - TICK)));
    assert_eq!(w.claim(w.at(5.0)).await, []);
    assert_eq!(w.claim(w.at(65.0) - TICK - TICK).await, []);
    assert_eq!(w.live(id).await.epoch, epoch, "an extension is no claim");
    assert_eq!(w.claim(w.at(65.0) - TICK).await, terminating(id));
}

#[tokio::test]
async fn max_ttl_bounds_the_whole_life_from_running() {
    let w = World::new().await;
    let (id, _) = w.running("ttl => '5s', max_ttl => '20s'", w.at(0.0)).await;
    assert_eq!(w.extend(id, seconds(16) + TICK, w.at(4.0)).await, Err("above_ceiling".to_owned()));
    assert_eq!(w.live(id).await.expires_at, Some(w.at(5.0)), "a refusal changes nothing");
    assert_eq!(w.extend(id, seconds(16), w.at(4.0)).await, Ok(Some(w.at(20.0))));
    assert_eq!(w.extend(id, seconds(1) + TICK, w.at(19.0)).await, Err("above_ceiling".to_owned()));
}

#[tokio::test]
async fn a_start_that_is_recorded_late_makes_no_life_longer_than_its_label() {
    let w = World::new().await;
    let id = w.submit("ttl => '5s', max_ttl => '20s', start_timeout => '10s'", w.at(0.0)).await;
    let (_, epoch) = harness::place(&w.sql, w.host, Some(w.at(0.0))).await;
    assert!(w.sql.record_container(id, epoch, "container").await.unwrap());
    // Its replica died, and the one that took over comes late: the container has run since whenever.
    w.sql.running(id, epoch, Some(w.at(14.0))).await.unwrap().unwrap();
    assert_eq!(w.live(id).await.expires_at, Some(w.at(15.0)), "the provisional deadline stands");
    assert_eq!(w.extend(id, seconds(16) + TICK, w.at(14.0)).await, Err("above_ceiling".to_owned()));
    assert_eq!(w.extend(id, seconds(16), w.at(14.0)).await, Ok(Some(w.at(30.0))), "start_timeout and max_ttl after its placement");
}

#[tokio::test]
async fn extending_one_that_does_not_run_yet_sets_the_ttl_that_it_will_have() {
    let w = World::new().await;
    let id = w.submit("ttl => '5s', max_ttl => '50s', start_timeout => '60s'", w.at(0.0)).await;
    assert_eq!(w.extend(id, seconds(50) + TICK, w.at(1.0)).await, Err("above_ceiling".to_owned()));
    assert_eq!(w.extend(id, seconds(40), w.at(1.0)).await, Ok(None), "no deadline while it waits");
    let (_, epoch) = place(&w.sql, w.host, Some(w.at(10.0))).await;
    assert_eq!(w.live(id).await.expires_at, Some(w.at(10.0 + 60.0 + 40.0)));
    let lease = w.live(id).await.due_at;
    assert_eq!(w.extend(id, seconds(20), w.at(11.0)).await, Ok(Some(w.at(10.0 + 60.0 + 20.0))));
    assert_eq!(w.live(id).await.due_at, lease, "the lease of its start stays");
    assert!(w.sql.record_container(id, epoch, "c").await.unwrap());
    w.sql.running(id, epoch, Some(w.at(12.0))).await.unwrap().unwrap();
    assert_eq!(w.live(id).await.expires_at, Some(w.at(32.0)));
}

#[tokio::test]
async fn at_its_deadline_an_agent_is_already_over() {
    let w = World::new().await;
    let (id, _) = w.running("ttl => '5s'", w.at(0.0)).await;
    assert_eq!(w.extend(id, seconds(60), w.at(5.0)).await, Err("already_over".to_owned()), "at it");
    assert_eq!(w.extend(id, seconds(60), w.at(7.0)).await, Err("already_over".to_owned()), "after it, though nobody came yet");
    assert_eq!(w.claim(w.at(7.0)).await, terminating(id));
    assert_eq!(w.extend(id, seconds(60), w.at(4.0)).await, Err("already_over".to_owned()), "while it is being ended");
    let waiting = w.submit("", w.at(0.0)).await;
    w.terminate(waiting, w.at(1.0)).await.unwrap();
    assert_eq!(w.extend(waiting, seconds(60), w.at(2.0)).await, Err("already_over".to_owned()), "when it has ended");
    assert_eq!(w.extend(Uuid::new_v4(), seconds(60), w.at(2.0)).await, Err("unknown_agent".to_owned()));
    let (other, _) = w.running("", w.at(0.0)).await;
    assert_eq!(w.extend(other, Duration::ZERO, w.at(2.0)).await, Err("invalid_ttl".to_owned()));
}

// Extension against expiry.

/// Until a session waits for a lock that another holds.
async fn somebody_waits(client: &Client) {
    let ask = "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')";
    while !client.query_one(ask, &[]).await.unwrap().get::<_, bool>(0) {
        tokio::task::yield_now().await;
    }
}

fn statement(name: &str) -> &'static str {
    sundown::sql::STATEMENTS.iter().find(|(stem, _)| *stem == name).unwrap().1
}

#[tokio::test]
async fn an_extension_that_holds_the_row_wins_over_the_claim() {
    let w = World::new().await;
    let (id, _) = w.running("ttl => '5s'", w.at(0.0)).await;
    let mut other = w.db.client().await;
    let extending = other.transaction().await.unwrap();
    extending.execute("select sundown.extend($1, '60s', at => $2)", &[&id, &w.at(4.0)]).await.unwrap();
    assert_eq!(w.claim(w.at(5.0)).await, [], "its row is held: passed over, not waited for");
    extending.commit().await.unwrap();
    assert_eq!(w.claim(w.at(5.0)).await, []);
    assert_eq!(w.claim(w.at(64.0)).await, terminating(id));
}

#[tokio::test]
async fn a_claim_that_holds_the_row_wins_over_the_extension() {
    let w = World::new().await;
    let (id, _) = w.running("ttl => '5s'", w.at(0.0)).await;
    let mut other = w.db.client().await;
    let claiming = other.transaction().await.unwrap();
    let (none, lease, now) = (None::<SystemTime>, 2.0_f64, w.at(5.0));
    let claimed = claiming
        .query_typed(
            statement("claim_due"),
            &[
                (&vec![w.host], Type::INT4_ARRAY),
                (&vec![0.0_f64], Type::FLOAT8_ARRAY),
                (&1_i32, Type::INT4),
                (&none, Type::TIMESTAMPTZ),
                (&15.0_f64, Type::FLOAT8),
                (&lease, Type::FLOAT8),
                (&now, Type::TIMESTAMPTZ),
            ],
        )
        .await
        .unwrap();
    assert_eq!(claimed.len(), 1);
    let watcher = w.db.client().await;
    // It came in time, but the row was taken: what counts is who holds it.
    let (late, ()) = tokio::join!(w.extend(id, seconds(60), w.at(4.0)), async {
        somebody_waits(&watcher).await;
        claiming.commit().await.unwrap();
    });
    assert_eq!(late, Err("already_over".to_owned()));
    assert_eq!(w.live(id).await.reason.as_deref(), Some("ttl_expired"));
}

#[tokio::test]
async fn an_acknowledged_extension_is_never_followed_by_a_claim_before_the_new_deadline() {
    let w = World::new().await;
    let (mut extended, mut expired) = (0, 0);
    for round in 0..80_u32 {
        let (id, _) = w.running("ttl => '5s', max_ttl => '100s'", w.at(0.0)).await;
        // One instant before the deadline against the deadline, sent together; every other round in the other order.
        let extend = w.extend(id, seconds(60), w.at(5.0) - TICK);
        let claim = w.claim(w.at(5.0));
        let (answer, claimed) = if round % 2 == 0 {
            let (answer, claimed) = tokio::join!(extend, claim);
            (answer, claimed)
        } else {
            let (claimed, answer) = tokio::join!(claim, extend);
            (answer, claimed)
        };
        match answer {
            Ok(deadline) => {
                extended += 1;
                assert_eq!(claimed, [], "acknowledged, and taken all the same");
                assert_eq!(w.live(id).await.expires_at, deadline);
            }
            Err(code) => {
                expired += 1;
                assert_eq!((code.as_str(), claimed), ("already_over", terminating(id)));
            }
        }
    }
    assert_eq!(extended + expired, 80);
}

// Grace.

#[tokio::test]
async fn sigkill_is_decided_exactly_when_the_grace_is_over() {
    let w = World::new().await;
    let (id, _) = w.running("ttl => '5s', grace => '10s'", w.at(0.0)).await;
    let row = claim(&w.sql, w.host, Some(w.at(5.0))).await.remove(0);
    assert!(!row.signalled && !row.killed);
    assert_eq!(w.sql.signalling(id, row.epoch, STOP, Some(w.at(5.5))).await.unwrap(), Some(false), "not SIGKILL yet");
    let due_in = w.sql.signalled(id, row.epoch, Some(w.at(5.6))).await.unwrap().unwrap();
    assert!(close(due_in, 9.9), "{due_in}");
    assert_eq!(w.live(id).await.due_at, w.at(15.5), "nobody is needed before");
    assert_eq!(w.claim(w.at(15.5) - TICK).await, []);
    assert_eq!(w.live(id).await.killed_at, None);
    let row = claim(&w.sql, w.host, Some(w.at(15.5))).await.remove(0);
    assert!(row.signalled && row.killed);
    assert_eq!(w.live(id).await.killed_at, Some(w.at(15.5)));
    // Asked for again, it stays what it was.
    assert_eq!(w.claim(w.at(60.0)).await, terminating(id));
    let live = w.live(id).await;
    assert_eq!((live.signalled_at, live.killed_at), (Some(w.at(5.5)), Some(w.at(15.5))));
}

#[tokio::test]
async fn a_signal_whose_sender_died_is_repeated_without_a_longer_grace() {
    let w = World::new().await;
    let (id, _) = w.running("ttl => '5s', grace => '3s'", w.at(0.0)).await;
    let row = claim(&w.sql, w.host, Some(w.at(5.0))).await.remove(0);
    w.sql.signalling(id, row.epoch, STOP, Some(w.at(5.0))).await.unwrap().unwrap();
    // It dies here. Its lease is over after 2 s, before the grace is.
    assert_eq!(w.claim(w.at(7.0) - TICK).await, []);
    let row = claim(&w.sql, w.host, Some(w.at(7.0))).await.remove(0);
    assert!(row.signalled && !row.killed);
    w.sql.signalling(id, row.epoch, STOP, Some(w.at(7.0))).await.unwrap().unwrap();
    assert_eq!(w.live(id).await.signalled_at, Some(w.at(5.0)));
    assert_eq!(w.live(id).await.due_at, w.at(8.0), "the end of the grace is nearer than the end of the lease");
    assert!(claim(&w.sql, w.host, Some(w.at(8.0))).await.remove(0).killed);
}

#[tokio::test]
async fn holding_on_to_a_lease_never_shortens_it() {
    let w = World::new().await;
    let (id, _) = w.running("ttl => '5s', grace => '2min'", w.at(0.0)).await;
    let mut now = 5.0;
    for lease in [2.0, 4.0, 8.0, 15.0] {
        let row = claim(&w.sql, w.host, Some(w.at(now))).await.remove(0);
        assert_eq!(w.live(id).await.due_at, w.at(now + lease), "it keeps failing");
        assert!(w.sql.renew(&row, 1, STOP, Some(w.at(now + 1.0))).await.unwrap());
        now += lease.max(3.0);
        assert_eq!(w.live(id).await.due_at, w.at(now));
    }
}

#[tokio::test]
async fn a_stop_that_nobody_could_look_at_comes_due_when_its_grace_is_over() {
    let w = World::new().await;
    let (id, _) = w.running("ttl => '5s', grace => '10s'", w.at(0.0)).await;
    let (asked, _) = w.running("ttl => '1h', grace => '10s'", w.at(0.0)).await;
    w.client.query_one("select sundown.terminate($1, at => $2)", &[&asked, &w.at(5.0)]).await.unwrap();
    for (now, due) in [(5.0, 7.0), (7.0, 11.0), (11.0, 15.0)] {
        for row in claim(&w.sql, w.host, Some(w.at(now))).await {
            assert!(!row.grace_over);
            assert_eq!(w.live(row.id).await.due_at, w.at(due), "claimed at {now}");
        }
    }
    // Given back, and backed off by far more.
    for id in [id, asked] {
        let epoch = w.live(id).await.epoch;
        assert!(w.sql.release(id, epoch, Duration::from_secs(60), None, Some(w.at(12.0))).await.unwrap());
    }
    assert_eq!(w.claim(w.at(15.0) - TICK).await, []);
    let rows = claim(&w.sql, w.host, Some(w.at(15.0))).await;
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert!(row.grace_over && !row.signalled && !row.killed);
        assert!(w.sql.killing(row.id, row.epoch, STOP, Some(w.at(16.0))).await.unwrap());
        let live = w.live(row.id).await;
        assert_eq!((live.signalled_at, live.killed_at, live.due_at), (None, Some(w.at(16.0)), w.at(18.0)));
        assert!(!w.sql.killing(row.id, row.epoch - 1, STOP, Some(w.at(16.0))).await.unwrap(), "somebody else is at it");
    }
}

#[tokio::test]
async fn no_grace_is_sigkill_at_once() {
    let w = World::new().await;
    let (id, _) = w.running("ttl => '5s', grace => '0s'", w.at(0.0)).await;
    let row = claim(&w.sql, w.host, Some(w.at(5.0))).await.remove(0);
    assert!(!row.killed, "the first look may still find that it ended by itself");
    assert_eq!(w.sql.signalling(id, row.epoch, STOP, Some(w.at(5.0))).await.unwrap(), Some(true));
    let live = w.live(id).await;
    assert_eq!((live.signalled_at, live.killed_at, live.due_at), (Some(w.at(5.0)), Some(w.at(5.0)), w.at(7.0)));
}

#[tokio::test]
async fn the_default_grace_is_ten_seconds() {
    let w = World::new().await;
    let (id, _) = w.running("ttl => '5s'", w.at(0.0)).await;
    let row = claim(&w.sql, w.host, Some(w.at(5.0))).await.remove(0);
    assert_eq!(row.grace, seconds(10));
    w.sql.signalling(id, row.epoch, STOP, Some(w.at(5.0))).await.unwrap().unwrap();
    w.sql.signalled(id, row.epoch, Some(w.at(5.0))).await.unwrap().unwrap();
    assert_eq!(w.live(id).await.due_at, w.at(15.0));
}

// Start.

#[tokio::test]
async fn a_start_times_out_at_its_instant_and_not_before() {
    let w = World::new().await;
    let id = w.submit("start_timeout => '20s'", w.at(-100.0)).await;
    let (_, epoch) = place(&w.sql, w.host, Some(w.at(0.0))).await;
    assert!(w.sql.release(id, epoch, seconds(20) - TICK, Some("no answer"), Some(w.at(0.0))).await.unwrap());
    let row = claim(&w.sql, w.host, Some(w.at(20.0) - TICK)).await.remove(0);
    assert!(!row.start_timed_out, "before");
    assert!(w.sql.release(id, row.epoch, TICK, None, Some(w.at(20.0) - TICK)).await.unwrap());
    let row = claim(&w.sql, w.host, Some(w.at(20.0))).await.remove(0);
    assert!(row.start_timed_out, "at");
    assert!(w.sql.release(id, row.epoch, seconds(5), None, Some(w.at(20.0))).await.unwrap());
    assert!(claim(&w.sql, w.host, Some(w.at(25.0))).await.remove(0).start_timed_out, "after");
}

#[tokio::test]
async fn somebody_looks_when_a_start_times_out() {
    let w = World::new().await;
    let id = w.submit("start_timeout => '20s'", w.at(0.0)).await;
    place(&w.sql, w.host, Some(w.at(0.0))).await;
    assert_eq!(w.live(id).await.due_at, w.at(15.0), "the lease");
    claim(&w.sql, w.host, Some(w.at(15.0))).await;
    assert_eq!(w.live(id).await.due_at, w.at(20.0), "the timeout is nearer than the next lease");
    let hasty = w.submit("start_timeout => '5s'", w.at(0.0)).await;
    let Placed::Some(placed) = w.sql.place(w.host, 1, 1, START, Some(w.at(0.0))).await.unwrap() else { panic!("room") };
    assert_eq!(w.live(hasty).await.due_at, w.at(5.0));
    assert_eq!(placed[0].2.start_timeout, seconds(5), "whoever starts it knows that its lease is shorter");
}

#[tokio::test]
async fn from_placement_on_there_is_a_deadline_that_only_shrinks() {
    let w = World::new().await;
    let id = w.submit("ttl => '5s', start_timeout => '60s'", w.at(0.0)).await;
    assert_eq!(w.live(id).await.expires_at, None, "none while it waits: nothing exists that could outlive it");
    place(&w.sql, w.host, Some(w.at(0.0))).await;
    assert_eq!(w.live(id).await.expires_at, Some(w.at(65.0)));
    let taken_over = claim(&w.sql, w.host, Some(w.at(15.0))).await.remove(0);
    assert_eq!(w.live(id).await.expires_at, Some(w.at(65.0)), "a take-over moves nothing");
    assert!(w.sql.record_container(id, taken_over.epoch, "c").await.unwrap());
    w.sql.running(id, taken_over.epoch, Some(w.at(16.0))).await.unwrap().unwrap();
    assert_eq!(w.live(id).await.expires_at, Some(w.at(21.0)), "tightened at running");
    assert_eq!(w.sql.running(id, taken_over.epoch, Some(w.at(17.0))).await.unwrap(), None, "once");
    assert_eq!(w.live(id).await.expires_at, Some(w.at(21.0)));
}

#[tokio::test]
async fn found_running_after_its_provisional_deadline_it_is_over_at_once() {
    let w = World::new().await;
    let id = w.submit("ttl => '5s', start_timeout => '60s'", w.at(0.0)).await;
    place(&w.sql, w.host, Some(w.at(0.0))).await;
    let row = claim(&w.sql, w.host, Some(w.at(100.0))).await.remove(0);
    assert!(w.sql.record_container(id, row.epoch, "c").await.unwrap());
    let due_in = w.sql.running(id, row.epoch, Some(w.at(100.0))).await.unwrap().unwrap();
    assert!(close(due_in, -35.0), "{due_in}");
    assert_eq!(w.claim(w.at(100.0)).await, terminating(id));
}

// Leases.

#[tokio::test]
async fn the_lease_of_a_start_ends_after_fifteen_seconds() {
    let w = World::new().await;
    let id = w.submit("", w.at(0.0)).await;
    let (_, epoch) = place(&w.sql, w.host, Some(w.at(0.0))).await;
    assert_eq!(w.claim(w.at(15.0) - TICK).await, []);
    let row = claim(&w.sql, w.host, Some(w.at(15.0))).await.remove(0);
    assert_eq!((row.id, row.epoch, row.state.as_str()), (id, epoch + 1, "pending"));
    assert_eq!(w.claim(w.at(30.0) - TICK).await, [], "the next holder has as long");
    assert_eq!(w.claim(w.at(30.0)).await, [(id, "pending".to_owned())]);
}

#[tokio::test]
async fn the_lease_of_a_stop_is_short_and_doubles() {
    let w = World::new().await;
    let (id, _) = w.running("ttl => '5s', grace => '2min'", w.at(0.0)).await;
    let mut due = 5.0;
    for lease in [2.0, 4.0, 8.0, 15.0, 15.0, 15.0] {
        assert_eq!(w.claim(w.at(due) - TICK).await, [], "{due} s");
        assert_eq!(w.claim(w.at(due)).await, terminating(id), "{due} s");
        due += lease;
        assert_eq!(w.live(id).await.due_at, w.at(due), "a lease of {lease} s");
    }
}

#[tokio::test]
async fn a_try_that_was_given_back_makes_the_next_lease_no_longer() {
    let w = World::new().await;
    let (id, mut epoch) = w.running("ttl => '5s', grace => '2min'", w.at(0.0)).await;
    let mut due = 5.0;
    for _ in 0..4 {
        assert_eq!(w.claim(w.at(due)).await, terminating(id));
        assert_eq!(w.live(id).await.due_at, w.at(due + 2.0), "whoever holds it now may die, and is waited for no longer than anybody");
        epoch += 1;
        assert!(w.sql.release(id, epoch, seconds(1), Some("no answer"), Some(w.at(due))).await.unwrap());
        due += 1.0;
    }
}

#[tokio::test]
async fn a_lease_that_is_given_back_is_due_when_it_says() {
    let w = World::new().await;
    let (id, epoch) = w.running("ttl => '50s'", w.at(0.0)).await;
    assert!(w.sql.release(id, epoch, seconds(3), Some("no answer"), Some(w.at(1.0))).await.unwrap());
    assert_eq!(w.claim(w.at(4.0) - TICK).await, []);
    let row = claim(&w.sql, w.host, Some(w.at(4.0))).await.remove(0);
    assert_eq!(row.state, "running", "it is due, its deadline is not");
    assert!(w.sql.release(id, row.epoch, seconds(300), None, Some(w.at(4.0))).await.unwrap());
    assert_eq!(w.live(id).await.due_at, w.at(50.0), "never later than the deadline");
    assert!(w.sql.rest(id, row.epoch).await.unwrap());
    assert_eq!(w.live(id).await.due_at, w.at(50.0));
    assert_eq!(w.claim(w.at(50.0)).await, terminating(id));
}

#[tokio::test]
async fn a_replica_that_leaves_gives_back_what_is_not_due_yet() {
    let w = World::new().await;
    let replica = w.sql.register_replica("one", "0", Some(w.at(0.0))).await.unwrap();
    let id = w.submit("", w.at(0.0)).await;
    let Placed::Some(placed) = w.sql.place(w.host, replica, 1, START, Some(w.at(0.0))).await.unwrap() else { panic!("room") };
    assert_eq!(placed.len(), 1);
    assert_eq!(w.sql.leave(replica, Some(w.at(15.0))).await.unwrap(), 0, "its lease is over: whoever wants it has it");
    assert_eq!(w.live(id).await.due_at, w.at(15.0));
    let row = claim(&w.sql, w.host, Some(w.at(15.0))).await.remove(0);
    w.sql.leave(1, Some(w.at(16.0))).await.unwrap();
    assert_eq!(w.live(id).await.due_at, w.at(16.0));
    assert!(!w.sql.record_container(id, row.epoch, "c").await.unwrap(), "it goes on with what it gave back");
}

// Who comes first.

#[tokio::test]
async fn who_does_not_keep_a_host_comes_later_by_the_lag() {
    let w = World::new().await;
    let (id, _) = w.running("ttl => '5s'", w.at(0.0)).await;
    let other = async |at: SystemTime| w.sql.claim_due(&[(w.host, 0.25)], 2, None, START, STOP, Some(at)).await.unwrap();
    assert_eq!(other(w.at(5.0)).await, []);
    assert_eq!(other(w.at(5.25) - TICK).await, []);
    let row = other(w.at(5.25)).await.remove(0);
    assert_eq!((row.id, row.state.as_str()), (id, "terminating"));
}

#[tokio::test]
async fn a_host_is_kept_by_one_until_its_lease_is_over() {
    let w = World::new().await;
    let first = w.sql.register_replica("first", "0", Some(w.at(0.0))).await.unwrap();
    let second = w.sql.register_replica("second", "0", Some(w.at(0.0))).await.unwrap();
    let keeps = async |replica: i32, at: SystemTime| {
        let ticks = w.sql.tick(replica, &[w.host], seconds(10), true, None, Some(at)).await.unwrap();
        ticks.iter().find(|tick| tick.host == w.host).unwrap().keeps
    };
    assert!(keeps(first, w.at(0.0)).await);
    assert!(!keeps(second, w.at(1.0)).await);
    assert!(keeps(first, w.at(5.0)).await, "renewed");
    assert!(!keeps(second, w.at(15.0)).await, "at its end");
    assert!(keeps(second, w.at(15.0) + TICK).await, "after it");
    assert!(!keeps(first, w.at(16.0)).await);
    w.sql.leave(second, Some(w.at(16.0))).await.unwrap();
    assert!(keeps(first, w.at(16.0)).await, "given back");
    assert!(!keeps(second, w.at(6.0)).await, "a lease may be as long as another's");
    assert!(keeps(second, w.at(6.0) - TICK).await, "longer than any: the clock was set back");
}

// The clock set back.

#[tokio::test]
async fn what_was_in_hand_when_the_clock_was_set_back_is_due_within_its_lease() {
    let w = World::new().await;
    let ahead = |seconds: f64| w.at(7200.0 + seconds);
    let (runs, _) = w.running("ttl => '10min'", ahead(0.0)).await;
    let (told, epoch) = w.running("grace => '1h'", ahead(0.0)).await;
    w.terminate(told, ahead(1.0)).await.unwrap();
    assert_eq!(w.claim(ahead(1.0)).await, terminating(told));
    w.sql.signalling(told, epoch + 2, STOP, Some(ahead(1.0))).await.unwrap().unwrap();
    w.sql.signalled(told, epoch + 2, Some(ahead(1.0))).await.unwrap().unwrap();
    let (ended, epoch) = w.running("grace => '1h'", ahead(0.0)).await;
    observe(&w.sql, ended, epoch, &exited(0), Some(ahead(2.0))).await.unwrap();
    let starts = w.submit("start_timeout => '1h'", ahead(2.0)).await;
    place(&w.sql, w.host, Some(ahead(2.0))).await;
    let waits = w.submit("queue_timeout => '30s'", ahead(3.0)).await;
    let later = w.submit("run_at => now() + '3 h', queue_timeout => '30s'", ahead(3.0)).await;
    let recall = async |at: SystemTime| w.sql.recall(START, STOP, Some(at)).await.unwrap();
    assert_eq!(recall(ahead(3.0)).await, 0, "in health");
    let before = [w.live(runs).await, w.live(later).await];

    // By as little as a minute: neither the hour of a grace nor that of a start is waited for.
    assert_eq!(recall(ahead(-60.0)).await, 4);
    let due = async |id: Uuid| w.live(id).await.due_at;
    assert_eq!((due(told).await, due(ended).await, due(starts).await), (ahead(-58.0), ahead(-58.0), ahead(-45.0)));
    assert_eq!(due(waits).await, ahead(-60.0), "it need not wait");
    assert_eq!([w.live(runs).await, w.live(later).await], before, "a deadline and a time to start are what was asked for");
    assert_eq!(recall(ahead(-60.0)).await, 0, "once");
    assert_eq!(w.claim(ahead(-58.0)).await.len(), 2);
    assert_eq!(w.live(told).await.signalled_at, Some(ahead(-60.0)), "its grace begins anew");
    assert_eq!(w.sql.expire_waiting(Some(ahead(-30.0) - TICK)).await.unwrap(), 0);
    assert_eq!(w.sql.expire_waiting(Some(ahead(-30.0))).await.unwrap(), 1, "and its patience");
}

#[tokio::test]
async fn the_next_instant_is_known_exactly() {
    let w = World::new().await;
    let replica = w.sql.register_replica("one", "0", Some(w.at(0.0))).await.unwrap();
    let ask = async |at: SystemTime, low: Option<SystemTime>| {
        let hosts = [0, w.host];
        let due = w.sql.next_due(&hosts, low, Some(at)).await.unwrap();
        let ticks = w.sql.tick(replica, &[w.host], seconds(10), true, low, Some(at)).await.unwrap();
        for host in hosts {
            let due = due.iter().find(|(h, _)| *h == host).map(|(_, due)| *due);
            let tick = ticks.iter().find(|tick| tick.host == host).unwrap();
            assert_eq!(due, tick.due_in, "both statements say the same of host {host}");
            assert!(tick.alive);
        }
        let of = |host: i32| ticks.iter().find(|tick| tick.host == host).unwrap().clone();
        (of(0).due_in, of(0).impatient_in, of(w.host).due_in)
    };
    assert_eq!(ask(w.at(0.0), None).await, (None, None, None));
    w.running("ttl => '9s'", w.at(0.0)).await;
    w.running("ttl => '7s'", w.at(0.0)).await;
    w.submit("run_at => now() + '1 hour', queue_timeout => '30s'", w.at(0.0)).await;
    w.submit("queue_timeout => '40s'", w.at(1.0)).await;
    let (line, patience, host) = ask(w.at(2.0), None).await;
    assert!(close(line.unwrap(), -1.0) && close(patience.unwrap(), 39.0) && close(host.unwrap(), 5.0), "{line:?} {patience:?} {host:?}");
    let (_, _, host) = ask(w.at(8.0), None).await;
    assert!(close(host.unwrap(), -1.0), "overdue");
    // Below the watermark nothing is looked for, except in the line.
    let (line, _, host) = ask(w.at(8.0), Some(w.at(8.0))).await;
    assert!(close(line.unwrap(), -7.0) && close(host.unwrap(), 1.0), "{line:?} {host:?}");
}

#[tokio::test]
async fn a_claim_looks_below_the_watermark_only_when_told_to() {
    let w = World::new().await;
    let (old, _) = w.running("ttl => '5s'", w.at(0.0)).await;
    let (new, _) = w.running("ttl => '8s'", w.at(0.0)).await;
    let claimed = w.sql.claim_due(&[(w.host, 0.0)], 1, Some(w.at(8.0)), START, STOP, Some(w.at(8.0))).await.unwrap();
    assert_eq!(claimed.iter().map(|row| row.id).collect::<Vec<_>>(), [new]);
    assert_eq!(w.claim(w.at(8.0)).await, terminating(old));
}

// Waiting.

#[tokio::test]
async fn patience_ends_at_its_instant_and_not_before() {
    let w = World::new().await;
    let id = w.submit("queue_timeout => '30s'", w.at(0.0)).await;
    let patient = w.submit("", w.at(0.0)).await;
    assert_eq!(w.sql.expire_waiting(Some(w.at(30.0) - TICK)).await.unwrap(), 0);
    assert_eq!(w.live(id).await.state, "pending");
    assert_eq!(w.sql.expire_waiting(Some(w.at(30.0))).await.unwrap(), 1);
    assert_eq!(w.outcome(id).await, ("expired".to_owned(), "queue_timeout".to_owned(), w.at(30.0)));
    assert_eq!(w.sql.expire_waiting(Some(w.at(3000.0))).await.unwrap(), 0);
    assert_eq!(w.live(patient).await.state, "pending");
}

#[tokio::test]
async fn patience_is_not_asked_of_one_that_has_a_place() {
    let w = World::new().await;
    let id = w.submit("queue_timeout => '30s'", w.at(0.0)).await;
    place(&w.sql, w.host, Some(w.at(29.0))).await;
    assert_eq!(w.sql.expire_waiting(Some(w.at(31.0))).await.unwrap(), 0);
    assert_eq!(w.live(id).await.state, "pending");
}

#[tokio::test]
async fn nobody_starts_before_run_at_and_patience_counts_from_it() {
    let w = World::new().await;
    let run_at = w.at(100.0);
    let ask = "select sundown.submit(image => 'busybox', at => $1, run_at => $2, queue_timeout => '30s')";
    let id: Uuid = w.client.query_one(ask, &[&w.at(0.0), &run_at]).await.unwrap().get(0);
    assert_eq!(w.sql.expire_waiting(Some(w.at(130.0) - TICK)).await.unwrap(), 0);
    let placed = async |at: SystemTime| match w.sql.place(w.host, 1, 16, START, Some(at)).await.unwrap() {
        Placed::Some(placed) => placed.into_iter().map(|(id, _, _)| id).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(placed(w.at(100.0) - TICK).await, NOBODY);
    assert_eq!(placed(w.at(100.0)).await, [id]);
    let past: Uuid = w.client.query_one(ask, &[&w.at(0.0), &w.at(-50.0)]).await.unwrap().get(0);
    assert_eq!(placed(w.at(0.0) - TICK).await, NOBODY);
    assert_eq!(placed(w.at(0.0)).await, [past], "a run_at that is over is at once");
}

// Terminate.

#[tokio::test]
async fn asking_twice_for_an_end_changes_nothing() {
    let w = World::new().await;
    let (id, epoch) = w.running("", w.at(0.0)).await;
    assert_eq!(w.terminate(id, w.at(1.0)).await.as_deref(), Ok("terminating"));
    let once = w.live(id).await;
    assert_eq!((once.epoch, once.reason.as_deref(), once.due_at <= w.at(1.0)), (epoch + 1, Some("terminated"), true));
    assert_eq!(w.terminate(id, w.at(2.0)).await.as_deref(), Ok("terminating"));
    assert_eq!(w.live(id).await, once);
    // Not even in the middle of the stop.
    let row = claim(&w.sql, w.host, Some(w.at(2.0))).await.remove(0);
    w.sql.signalling(id, row.epoch, STOP, Some(w.at(2.0))).await.unwrap().unwrap();
    let under_way = w.live(id).await;
    assert_eq!(w.terminate(id, w.at(3.0)).await.as_deref(), Ok("terminating"));
    assert_eq!(w.live(id).await, under_way);
}

#[tokio::test]
async fn an_instant_that_somebody_names_neither_puts_off_an_end_nor_brings_one_back() {
    let w = World::new().await;
    let (id, _) = w.running("", w.at(0.0)).await;
    w.terminate(id, w.at(366.0 * 86400.0)).await.unwrap();
    assert!(w.live(id).await.due_at <= w.db.now().await, "it is due now");
    let (over, _) = w.running("ttl => '1h'", w.at(0.0)).await;
    w.client.execute("update sundown.agent_live set expires_at = now() - interval '1 s' where id = $1", &[&over]).await.unwrap();
    assert_eq!(w.extend(over, seconds(60), w.at(-3600.0)).await, Err("already_over".to_owned()));
}

#[tokio::test]
async fn a_hundred_that_ask_for_an_end_at_once_are_one() {
    let w = World::new().await;
    let (id, epoch) = w.running("", w.at(0.0)).await;
    let sql = w.db.sql(12).await;
    let asked: Vec<_> = (0..100)
        .map(|_| {
            let sql = sql.clone();
            tokio::spawn(async move { sql.terminate(id, "one of many").await.unwrap() })
        })
        .collect();
    for answer in asked {
        assert!(matches!(answer.await.unwrap(), Some((_, false))));
    }
    assert_eq!(w.live(id).await.epoch, epoch + 1);
    let events: i64 =
        w.client.query_one("select count(*) from sundown.event where id = $1 and state = 'terminating'", &[&id]).await.unwrap().get(0);
    assert_eq!(events, 1);
}

#[tokio::test]
async fn an_agent_that_waits_ends_at_once_when_asked_to() {
    let w = World::new().await;
    let id = w.submit("env => '{\"A\": \"secret\"}'", w.at(0.0)).await;
    assert_eq!(w.terminate(id, w.at(1.0)).await.as_deref(), Ok("expired"));
    assert_eq!(w.outcome(id).await, ("expired".to_owned(), "terminated".to_owned(), w.at(1.0)));
    let secrets: i64 = w.client.query_one("select count(*) from sundown.agent_secret", &[]).await.unwrap().get(0);
    assert_eq!(secrets, 0);
    assert!(matches!(w.sql.place(w.host, 1, 16, START, Some(w.at(2.0))).await.unwrap(), Placed::Some(none) if none.is_empty()));
    assert_eq!(w.terminate(id, w.at(2.0)).await.as_deref(), Ok("expired"), "how it ended");
    assert_eq!(w.terminate(Uuid::new_v4(), w.at(2.0)).await, Err("unknown_agent".to_owned()));
}

// Overdue.

#[tokio::test]
async fn whatever_should_be_over_is_overdue_however_often_it_is_tried_again() {
    let w = World::new().await;
    // Each has just been tried, and is tried again in a while.
    let cases = [
        ("nobody has come", "running", "due_at = now() - interval '2.5 s'", "due_at = now() - interval '1 s'"),
        ("cannot be stopped", "running", "expires_at = now() - interval '16 s'", "expires_at = now() - interval '14 s'"),
        ("cannot be stopped", "running", "expires_at = now() - interval '16 s', due_at = 'infinity'", "due_at = 'infinity'"),
        ("cannot be stopped", "terminating", "decided_at = now() - interval '16 s'", "decided_at = now() - interval '14 s'"),
        (
            "SIGKILL was sent",
            "terminating",
            "decided_at = now() - interval '16 s', signalled_at = now() - interval '16 s', killed_at = now() - interval '6 s'",
            "decided_at = now() - interval '14 s', signalled_at = now() - interval '14 s', killed_at = now() - interval '4 s'",
        ),
        (
            "cannot be removed",
            "running",
            "observed_at = now() - interval '31 s', ended_state = 'failed', ended_reason = 'vanished'",
            "observed_at = now() - interval '29 s', ended_state = 'failed', ended_reason = 'vanished', expires_at = now() - interval '1 h'",
        ),
        ("was not given up", "pending", "placed_at = now() - interval '66 s'", "placed_at = now() - interval '64 s'"),
    ];
    for (what, state, late, timely) in cases {
        for (change, listed) in [(late, true), (timely, false)] {
            let id = w.submit("", w.start).await;
            let (placed, epoch) = place(&w.sql, w.host, None).await;
            assert_eq!(placed, id);
            if state != "pending" {
                assert!(w.sql.record_container(id, epoch, "c").await.unwrap());
                w.sql.running(id, epoch, None).await.unwrap().unwrap();
            }
            if state == "terminating" {
                w.sql.terminate(id, "a test").await.unwrap();
            }
            w.client.execute("update sundown.agent_live set due_at = now() + interval '10 s' where id = $1", &[&id]).await.unwrap();
            w.client.execute(&format!("update sundown.agent_live set {change} where id = $1"), &[&id]).await.unwrap();
            let row = w.client.query_opt("select what, late > interval '2 s' from sundown.overdue where id = $1", &[&id]).await.unwrap();
            assert_eq!(row.is_some(), listed, "{state}, {change}");
            if let Some(row) = row {
                assert!(row.get::<_, &str>(0).contains(what) && row.get::<_, bool>(1), "{state}, {change}: {row:?}");
            }
        }
    }
    w.submit("", w.start).await;
    assert_eq!(w.sql.gauges().await.unwrap().overdue, 7, "who waits in line is not overdue");
}

fn exited(code: i32) -> Facts {
    let state = if code == 0 { "succeeded" } else { "failed" };
    Facts { state, reason: Some("exited"), exit_code: Some(code), oom_killed: Some(false), error: None, dead: None, tail: None }
}

#[tokio::test]
async fn the_end_is_recorded_at_the_instants_at_which_it_was_seen_and_written() {
    let w = World::new().await;
    let (id, epoch) = w.running("ttl => '5s'", w.at(0.0)).await;
    let seen = observe(
        &w.sql,
        id,
        epoch,
        &Facts { tail: Some(Tail { bytes: b"bye\0".to_vec(), truncated: false }), ..exited(0) },
        Some(w.at(4.0)),
    )
    .await
    .unwrap();
    assert_eq!(w.live(id).await.due_at, w.at(6.0), "whoever sees the end has a lease");
    // The deadline passes meanwhile: what was seen is what happened.
    assert_eq!(w.terminate(id, w.at(4.5)).await.as_deref(), Ok("running"));
    let row = claim(&w.sql, w.host, Some(w.at(6.0))).await.remove(0);
    assert_eq!((row.state.as_str(), row.observed, row.epoch), ("running", true, seen + 1));
    assert!(w.sql.finish(id, seen, Some(w.at(7.0))).await.unwrap().is_none(), "its lease was lost");
    assert!(w.sql.finish(id, row.epoch, Some(w.at(7.0))).await.unwrap().is_some());
    assert_eq!(w.outcome(id).await, ("succeeded".to_owned(), "exited".to_owned(), w.at(7.0)));
    let ask = "select o.observed_at, o.started_at, g.tail, g.taken_at from sundown.agent_outcome o join sundown.agent_log g using (id) where id = $1";
    let row = w.client.query_one(ask, &[&id]).await.unwrap();
    assert_eq!((row.get::<_, SystemTime>(0), row.get::<_, SystemTime>(1)), (w.at(4.0), w.at(0.0)));
    assert_eq!((row.get::<_, Vec<u8>>(2), row.get::<_, SystemTime>(3)), (b"bye\0".to_vec(), w.at(4.0)));
    assert_eq!(w.terminate(id, w.at(8.0)).await.as_deref(), Ok("succeeded"), "asked too late: how it had ended");
}

#[tokio::test]
async fn lateness_counts_from_the_deadline_or_from_the_wish() {
    let w = World::new().await;
    let died = |ago: u64| Instant::now().checked_sub(Duration::from_millis(ago));
    let expired = |dead| Facts { state: "expired", reason: None, exit_code: Some(137), oom_killed: None, error: None, dead, tail: None };
    let (deadline, _) = w.running("ttl => '5s', grace => '0s'", w.at(0.0)).await;
    let (wish, _) = w.running("ttl => '1h'", w.at(0.0)).await;
    let (unseen, _) = w.running("ttl => '5s'", w.at(0.0)).await;
    let (itself, epoch) = w.running("ttl => '5s'", w.at(0.0)).await;
    let seen = observe(&w.sql, itself, epoch, &Facts { dead: died(100), ..exited(0) }, Some(w.at(1.0))).await.unwrap();
    assert_eq!(w.sql.finish(itself, seen, Some(w.at(1.0))).await.unwrap().unwrap().late.map(|late| late.decision), None);
    w.terminate(wish, w.at(5.5)).await.unwrap();
    let mut late = HashMap::new();
    for row in claim(&w.sql, w.host, Some(w.at(6.0))).await {
        let facts = expired(if row.id == unseen { None } else { died(500) });
        let epoch = observe(&w.sql, row.id, row.epoch, &facts, Some(w.at(7.5))).await.unwrap();
        let ended = w.sql.finish(row.id, epoch, Some(w.at(8.0))).await.unwrap().unwrap();
        late.insert(row.id, ended.late);
    }
    // How long ago it died is measured until it is written down.
    let about = |seconds: f64| seconds - 0.4..=seconds;
    let told = late[&deadline].unwrap();
    assert_eq!((told.decision, told.confirmed), (1.0, 2.5));
    assert!(about(2.0).contains(&told.dead.unwrap()), "{told:?}");
    assert!(late[&wish].is_none() && late[&unseen].unwrap().dead.is_none());
    let ask = "select extract(epoch from decision)::float8, extract(epoch from dead)::float8, extract(epoch from confirmed)::float8
                 from sundown.lateness where id = $1";
    for (id, decision, dead, confirmed) in
        [(deadline, Some(1.0), Some(2.0), 2.5), (wish, None, Some(1.5), 2.0), (unseen, Some(1.0), None, 2.5)]
    {
        let row = w.client.query_one(ask, &[&id]).await.unwrap();
        assert_eq!((row.get::<_, Option<f64>>(0), row.get::<_, f64>(2)), (decision, confirmed));
        let shown: Option<f64> = row.get(1);
        assert!(shown.is_some() == dead.is_some() && shown.iter().zip(dead).all(|(shown, dead)| about(dead).contains(shown)), "{shown:?}");
    }
    assert!(w.client.query_opt(ask, &[&itself]).await.unwrap().is_none(), "nobody ended it");
    let (lost, _) = w.running("ttl => '1h'", w.at(9.0)).await;
    w.client.execute("select sundown.forget_host($1)", &[&w.host]).await.unwrap();
    let row = w.client.query_one("select dead_at is null from sundown.agent_outcome where id = $1", &[&lost]).await.unwrap();
    assert!(row.get::<_, bool>(0), "nobody saw it die");
}

#[tokio::test]
async fn asking_for_the_end_of_an_agent_that_ends_at_that_moment_is_never_unknown() {
    let w = World::new().await;
    let (id, epoch) = w.running("", w.at(0.0)).await;
    let seen = observe(&w.sql, id, epoch, &exited(3), Some(w.at(4.0))).await.unwrap();
    let mut other = w.db.client().await;
    let finishing = other.transaction().await.unwrap();
    let params: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] =
        &[(&vec![id], Type::UUID_ARRAY), (&vec![seen], Type::INT4_ARRAY), (&None::<SystemTime>, Type::TIMESTAMPTZ), (&"1s", Type::TEXT)];
    assert_eq!(finishing.query_typed(statement("finish"), params).await.unwrap().len(), 1);
    let watcher = w.db.client().await;
    let (answer, ()) = tokio::join!(w.terminate(id, w.at(5.0)), async {
        somebody_waits(&watcher).await;
        finishing.commit().await.unwrap();
    });
    assert_eq!(answer.as_deref(), Ok("failed"));
}
