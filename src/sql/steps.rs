//! The steps of a life that replicas record, each shared by all who take it at the same time. Every one names the epoch under which it was
//! taken; `None` is a normal answer: the lease was lost, and the work is dropped.

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::{FromSqlOwned, Type};
use uuid::Uuid;

use super::batch::{Patience, Question};
use super::work::{Claim, Ended, Facts, Late};
use super::{Ago, Now, Param, Sql};
use crate::error::Error;

/// Who takes a step: an agent, and the epoch under which it is taken.
type Fence = (Uuid, i32);

/// See [`Sql::record_container`].
#[derive(Clone)]
pub(super) struct RecordContainer(Fence, String);

/// See [`Sql::running`].
#[derive(Clone)]
pub(super) struct Running(Fence);

/// See [`Sql::signalling`].
#[derive(Clone)]
pub(super) struct Signalling(Fence, Duration);

/// See [`Sql::signalled`].
#[derive(Clone)]
pub(super) struct Signalled(Fence);

/// See [`Sql::observe`].
#[derive(Clone)]
pub(super) struct Observe {
    fence: Fence,
    replica: i32,
    lease: Duration,
    facts: Facts,
}

/// See [`Sql::finish`].
#[derive(Clone)]
pub(super) struct Finish(Fence);

impl Sql {
    /// Records the container before its start. False: drop the work.
    pub async fn record_container(&self, id: Uuid, epoch: i32, container: &str) -> Result<bool, Error> {
        let step = RecordContainer((id, epoch), container.to_owned());
        Ok(self.shared.record_container.ask(self, step, None).await?.is_some())
    }

    /// It runs. Answers the seconds to its deadline; `None`: drop the work.
    pub async fn running(&self, id: Uuid, epoch: i32, now: Now) -> Result<Option<f64>, Error> {
        self.shared.running.ask(self, Running((id, epoch)), now).await
    }

    /// The intent to send the stop signal. `Some(true)`: it is SIGKILL; `None`: drop the work.
    pub async fn signalling(&self, id: Uuid, epoch: i32, lease: Duration, now: Now) -> Result<Option<bool>, Error> {
        self.shared.signalling.ask(self, Signalling((id, epoch), lease), now).await
    }

    /// The stop signal was sent. Answers the seconds to SIGKILL; `None`: the lease was lost.
    pub async fn signalled(&self, id: Uuid, epoch: i32, now: Now) -> Result<Option<f64>, Error> {
        self.shared.signalled.ask(self, Signalled((id, epoch)), now).await
    }

    /// First step of the finish, with the tail of the log. Answers the new epoch; `None`: somebody else is at it.
    pub async fn observe(&self, row: &Claim, replica: i32, lease: Duration, facts: &Facts, now: Now) -> Result<Option<i32>, Error> {
        let step = Observe { fence: (row.id, row.epoch), replica, lease, facts: facts.clone() };
        Ok(self.shared.observe.ask(self, step, now).await?.map(|()| row.epoch + 1))
    }

    /// Last step of the finish: the outcome. `None`: the lease was lost, or it has ended.
    pub async fn finish(&self, id: Uuid, epoch: i32, now: Now) -> Result<Option<Ended>, Error> {
        self.shared.finish.ask(self, Finish((id, epoch)), now).await
    }

    /// One statement for steps of many: `own` are its parameters after ids and epochs and before the patience.
    async fn steps<T>(
        &self,
        statement: &str,
        fences: &[Fence],
        own: &[Param<'_>],
        patience: Patience,
        answer: impl Fn(&Row) -> Result<(Fence, T), Error>,
    ) -> Result<Vec<Option<T>>, Error> {
        let (ids, epochs): (Vec<Uuid>, Vec<i32>) = fences.iter().copied().unzip();
        let lock_timeout = self.lock_timeout(patience);
        let mut params: Vec<Param<'_>> = vec![(&ids, Type::UUID_ARRAY), (&epochs, Type::INT4_ARRAY)];
        params.extend_from_slice(own);
        params.push((&lock_timeout, Type::TEXT));
        let rows = self.rows(statement, &params).await?;
        let mut answers: HashMap<Fence, T> = rows.iter().map(answer).collect::<Result<_, Error>>()?;
        Ok(fences.iter().map(|fence| answers.remove(fence)).collect())
    }
}

fn fenced(row: &Row) -> Result<Fence, Error> {
    Ok((row.try_get("id")?, row.try_get("epoch")?))
}

/// The fence of a row and one column of it.
fn with<T: FromSqlOwned>(column: &str) -> impl Fn(&Row) -> Result<(Fence, T), Error> {
    move |row| Ok((fenced(row)?, row.try_get(column)?))
}

fn ended(row: &Row) -> Result<Ended, Error> {
    let late = match (row.try_get("decision")?, row.try_get("confirmed")?) {
        (Some(decision), Some(confirmed)) => Some(Late { decision, dead: row.try_get("dead")?, confirmed }),
        _ => None,
    };
    Ok(Ended { late })
}

impl Question for RecordContainer {
    type Answer = Option<()>;

    async fn ask(sql: &Sql, steps: &[Self], _now: Now, patience: Patience) -> Result<Vec<Option<()>>, Error> {
        let (fences, containers): (Vec<Fence>, Vec<&str>) = steps.iter().map(|step| (step.0, step.1.as_str())).unzip();
        let own: &[Param<'_>] = &[(&containers, Type::TEXT_ARRAY)];
        sql.steps(super::RECORD_CONTAINER, &fences, own, patience, |row| Ok((fenced(row)?, ()))).await
    }
}

impl Question for Running {
    type Answer = Option<f64>;

    async fn ask(sql: &Sql, steps: &[Self], now: Now, patience: Patience) -> Result<Vec<Option<f64>>, Error> {
        let fences: Vec<Fence> = steps.iter().map(|step| step.0).collect();
        sql.steps(super::RUNNING, &fences, &[(&now, Type::TIMESTAMPTZ)], patience, with("due_in")).await
    }
}

impl Question for Signalling {
    type Answer = Option<bool>;

    async fn ask(sql: &Sql, steps: &[Self], now: Now, patience: Patience) -> Result<Vec<Option<bool>>, Error> {
        let (fences, leases): (Vec<Fence>, Vec<f64>) = steps.iter().map(|step| (step.0, step.1.as_secs_f64())).unzip();
        let own: &[Param<'_>] = &[(&leases, Type::FLOAT8_ARRAY), (&now, Type::TIMESTAMPTZ)];
        sql.steps(super::SIGNALLING, &fences, own, patience, with("kill")).await
    }
}

impl Question for Signalled {
    type Answer = Option<f64>;

    async fn ask(sql: &Sql, steps: &[Self], now: Now, patience: Patience) -> Result<Vec<Option<f64>>, Error> {
        let fences: Vec<Fence> = steps.iter().map(|step| step.0).collect();
        sql.steps(super::SIGNALLED, &fences, &[(&now, Type::TIMESTAMPTZ)], patience, with("due_in")).await
    }
}

impl Question for Observe {
    type Answer = Option<()>;
    /// Each may bring 64 KiB of log.
    const MOST: usize = 32;

    async fn ask(sql: &Sql, steps: &[Self], now: Now, patience: Patience) -> Result<Vec<Option<()>>, Error> {
        let fences: Vec<Fence> = steps.iter().map(|step| step.fence).collect();
        let replicas: Vec<i32> = steps.iter().map(|step| step.replica).collect();
        let leases: Vec<f64> = steps.iter().map(|step| step.lease.as_secs_f64()).collect();
        let facts = || steps.iter().map(|step| &step.facts);
        let states: Vec<&str> = facts().map(|facts| facts.state).collect();
        let reasons: Vec<Option<&str>> = facts().map(|facts| facts.reason).collect();
        let exit_codes: Vec<Option<i32>> = facts().map(|facts| facts.exit_code).collect();
        let oom_killed: Vec<Option<bool>> = facts().map(|facts| facts.oom_killed).collect();
        let errors: Vec<Option<&str>> = facts().map(|facts| facts.error.as_deref()).collect();
        let tails: Vec<Option<&[u8]>> = facts().map(|facts| facts.tail.as_ref().map(|tail| tail.bytes.as_slice())).collect();
        let truncated: Vec<bool> = facts().map(|facts| facts.tail.as_ref().is_some_and(|tail| tail.truncated)).collect();
        let dead: Vec<Option<Ago>> = facts().map(|facts| facts.dead.map(Ago)).collect();
        let own: &[Param<'_>] = &[
            (&replicas, Type::INT4_ARRAY),
            (&leases, Type::FLOAT8_ARRAY),
            (&states, Type::TEXT_ARRAY),
            (&reasons, Type::TEXT_ARRAY),
            (&exit_codes, Type::INT4_ARRAY),
            (&oom_killed, Type::BOOL_ARRAY),
            (&errors, Type::TEXT_ARRAY),
            (&tails, Type::BYTEA_ARRAY),
            (&truncated, Type::BOOL_ARRAY),
            (&dead, Type::FLOAT8_ARRAY),
            (&now, Type::TIMESTAMPTZ),
        ];
        // Seen, an agent has a new epoch; the answer belongs to whoever asked under the one before.
        sql.steps(super::OBSERVE, &fences, own, patience, |row| fenced(row).map(|(id, epoch)| ((id, epoch - 1), ()))).await
    }
}

impl Question for Finish {
    type Answer = Option<Ended>;

    async fn ask(sql: &Sql, steps: &[Self], now: Now, patience: Patience) -> Result<Vec<Option<Ended>>, Error> {
        let fences: Vec<Fence> = steps.iter().map(|step| step.0).collect();
        sql.steps(super::FINISH, &fences, &[(&now, Type::TIMESTAMPTZ)], patience, |row| Ok((fenced(row)?, ended(row)?))).await
    }
}
