//! Questions that share a statement. Who asks while others are being answered waits for them, and then asks together with whoever waits too:
//! under load a hundred share a commit, alone one adds nothing to its own. Knows no statement.
//!
//! Guarantees: each is answered for itself; what one of them meets (a row that a user holds, a value that Postgres refuses) delays the others
//! by [`Patience::Short`] at most, and fails none of them. Whoever has waited as long as a statement may take is told so, and is not asked for any
//! more: a database that comes back is not given what everybody has given up.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Now, Sql};
use crate::error::Error;

/// Statements of one kind at a time: one is on its way to disk while the next is being worked on.
const FLIGHTS: usize = 2;

/// Statements of ours hold a row for a few milliseconds.
const SHORT: Duration = Duration::from_millis(100);

/// How long a statement waits for a row that somebody holds.
#[derive(Debug, Clone, Copy)]
pub enum Patience {
    /// Longer than statements of ours hold one; what is held longer is asked for alone.
    Short,
    /// As long as nobody else waits behind it.
    Long,
}

/// Something that many may ask at the same time.
pub trait Question: Clone + Send + Sync + 'static {
    /// What one of them is answered.
    type Answer: Send + 'static;
    /// The most that share a statement.
    const MOST: usize = 100;

    /// Asks for all of them in one statement; an answer for each, in their order.
    fn ask(sql: &Sql, questions: &[Self], now: Now, patience: Patience) -> impl Future<Output = Result<Vec<Self::Answer>, Error>> + Send;
}

/// Those who wait to ask the same kind of question.
pub struct Batch<Q: Question>(Mutex<Line<Q>>);

struct Line<Q: Question> {
    /// In the order in which they came; all have the same patience.
    waiting: VecDeque<Waiting<Q>>,
    flights: usize,
}

struct Waiting<Q: Question> {
    question: Q,
    until: Instant,
    tell: oneshot::Sender<Result<Q::Answer, Error>>,
}

impl Sql {
    /// As Postgres takes it. Waiting shares the time of the statement with doing.
    pub(super) fn lock_timeout(&self, patience: Patience) -> String {
        let longest = match patience {
            Patience::Short => SHORT,
            Patience::Long => self.bound / 3,
        };
        format!("{}ms", longest.as_millis())
    }
}

impl<Q: Question> Default for Batch<Q> {
    fn default() -> Self {
        Self(Mutex::new(Line { waiting: VecDeque::new(), flights: 0 }))
    }
}

impl<Q: Question> Batch<Q> {
    /// Asks together with whoever else waits. At a mocked instant: alone.
    pub async fn ask(self: &Arc<Self>, sql: &Sql, question: Q, now: Now) -> Result<Q::Answer, Error> {
        if now.is_some() {
            return alone(sql, &question, now).await;
        }
        let (tell, told) = oneshot::channel();
        if self.join(Waiting { question, until: Instant::now() + sql.bound, tell }) {
            // In a task of its own: whoever began it may give up, and the others would wait for ever.
            let (line, sql) = (Arc::clone(self), sql.clone());
            tokio::spawn(async move {
                while let Some(together) = line.next() {
                    // Those who flew in one that panics are told so by their channels.
                    let _panicked = AssertUnwindSafe(fly(&sql, together)).catch_unwind().await;
                }
            });
        }
        told.await.map_err(|_gone| Error::Internal("a statement that others shared broke".to_owned()))?
    }

    /// Whether whoever joins has to fly.
    fn join(&self, waiting: Waiting<Q>) -> bool {
        let mut line = self.line();
        line.waiting.push_back(waiting);
        let flies = line.flights < FLIGHTS;
        line.flights += usize::from(flies);
        flies
    }

    /// Those who go together now. `None`: nobody waits, and this flight is over.
    fn next(&self) -> Option<Vec<Waiting<Q>>> {
        let mut line = self.line();
        while let Some(late) = line.waiting.pop_front_if(|first| first.until <= Instant::now()) {
            let _gone = late.tell.send(Err(Error::Unavailable("its turn did not come in time".to_owned())));
        }
        if line.waiting.is_empty() {
            line.flights -= 1;
            return None;
        }
        let together = line.waiting.len().min(Q::MOST);
        Some(line.waiting.drain(..together).collect())
    }

    fn line(&self) -> std::sync::MutexGuard<'_, Line<Q>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn fly<Q: Question>(sql: &Sql, together: Vec<Waiting<Q>>) {
    let (questions, tell): (Vec<Q>, Vec<_>) = together.into_iter().map(|one| (one.question, one.tell)).unzip();
    match Q::ask(sql, &questions, None, Patience::Short).await {
        Ok(answers) => tell.into_iter().zip(answers).for_each(|(tell, answer)| drop(tell.send(Ok(answer)))),
        // It is not about any of them.
        Err(Error::Unavailable(reason)) => {
            tell.into_iter().for_each(|tell| drop(tell.send(Err(Error::Unavailable(reason.clone())))));
        }
        Err(_) => {
            // Behind nobody, and nobody behind them.
            let sql = sql.clone();
            tokio::spawn(async move {
                let asked = questions.iter().zip(tell).map(async |(question, tell)| drop(tell.send(alone(&sql, question, None).await)));
                join_all(asked).await;
            });
        }
    }
}

async fn alone<Q: Question>(sql: &Sql, question: &Q, now: Now) -> Result<Q::Answer, Error> {
    let answers = Q::ask(sql, std::slice::from_ref(question), now, Patience::Long).await?;
    answers.into_iter().next().ok_or_else(|| Error::Internal("a question was not answered".to_owned()))
}
