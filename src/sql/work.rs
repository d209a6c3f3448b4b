//! The questions of the loops: registering, ticking, claiming, the steps of a start, of a stop and of the finish.
//!
//! Zero rows are a normal outcome everywhere: the lease was lost, and the work is dropped.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{Now, Param, Sql};
use crate::docker::Tail;
use crate::error::Error;

/// How long a statement of upkeep may take. Dropping a large week is work for the disk, and nobody waits for it.
const PATIENCE: Duration = Duration::from_secs(300);

/// A row in the hands of a replica, as much of it as deciding needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// The agent.
    pub id: Uuid,
    /// The fence: later writes name it.
    pub epoch: i32,
    /// Where it was placed.
    pub host: i32,
    /// pending, running or terminating.
    pub state: String,
    /// The container, once recorded.
    pub container_id: Option<String>,
    /// Claims of the present step, this one included.
    pub attempts: i16,
    /// It has been running.
    pub started: bool,
    /// The stop signal was decided on, and perhaps sent.
    pub signalled: bool,
    /// SIGKILL was decided on, and perhaps sent.
    pub killed: bool,
    /// Its end was seen: facts and log are durable.
    pub observed: bool,
    /// Between the stop signal and SIGKILL.
    pub grace: Duration,
    /// How long it was leased.
    pub lease: Duration,
    /// It should have been running by now.
    pub start_timed_out: bool,
    /// Its grace is over, counted from the decision to end it: whether or not it was signalled.
    pub grace_over: bool,
}

/// What a container is made from.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Name of the image.
    pub image: String,
    /// Arguments; empty: the image's own.
    pub command: Vec<String>,
    /// The user's labels.
    pub labels: serde_json::Value,
    /// The user's environment, or null.
    pub env: Option<serde_json::Value>,
    /// Limit in cores.
    pub cpus: f64,
    /// Limit in bytes.
    pub memory: i64,
    /// Limit of processes.
    pub pids: i32,
    /// `none` or `bridge`.
    pub network: String,
    /// The longest life that extensions can give it.
    pub max_ttl: Duration,
    /// From placement to running; no start is leased for longer.
    pub start_timeout: Duration,
    /// Between the stop signal and SIGKILL.
    pub grace: Duration,
    /// The instant before which its deadline cannot be, in RFC 3339: its ttl counts from later than its placement.
    pub first_deadline: String,
}

/// What the database knows of an agent whose container was seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Known {
    /// It was submitted, and is not forgotten.
    pub known: bool,
    /// It has a live row.
    pub live: bool,
    /// How long ago its end was recorded.
    pub over_for: Option<Duration>,
}

/// What placing came to.
#[derive(Debug)]
pub enum Placed {
    /// These were placed, perhaps none, and there is room for more.
    Some(Vec<(Uuid, i32, Spec)>),
    /// The host carries as many as it may.
    Full,
    /// Somebody else is placing there: try again at once.
    Locked,
}

/// What an idle replica learns from its tick about one host, or about the line (host 0).
#[derive(Debug, Clone)]
pub struct Tick {
    /// The host; 0 is the line of those who wait.
    pub host: i32,
    /// Our own row is still there.
    pub alive: bool,
    /// We keep this host.
    pub keeps: bool,
    /// Seconds until somebody is needed; negative when overdue.
    pub due_in: Option<f64>,
    /// Seconds until somebody in the line loses patience.
    pub impatient_in: Option<f64>,
    /// The low watermark for claims from now on.
    pub low: SystemTime,
}

/// The facts of an end, for the first step of the finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// succeeded, failed or expired.
    pub state: &'static str,
    /// The reason; `None` keeps the one that was decided.
    pub reason: Option<&'static str>,
    /// As Docker reported it.
    pub exit_code: Option<i32>,
    /// As Docker reported it.
    pub oom_killed: Option<bool>,
    /// In words.
    pub error: Option<String>,
    /// When its process was known to be dead.
    pub dead: Option<Instant>,
    /// The last output, once it was read.
    pub tail: Option<Tail>,
}

/// An agent whose outcome was written: known by its id, and by how late it was.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// `None`: it did not reach its deadline.
    pub late: Option<Late>,
}

/// By how many seconds after its deadline an end came; with all that the agent took of its grace.
#[derive(Debug, Clone, Copy)]
pub struct Late {
    /// It was decided.
    pub decision: f64,
    /// Its process was known to be dead. `None`: nobody knows.
    pub dead: Option<f64>,
    /// Docker said that it has ended.
    pub confirmed: f64,
}

impl Sql {
    /// Registers this start of the process and answers its id.
    pub async fn register_replica(&self, name: &str, release: &str, now: Now) -> Result<i32, Error> {
        let params: &[Param<'_>] = &[(&name, Type::TEXT), (&release, Type::TEXT), (&now, Type::TIMESTAMPTZ)];
        self.one(super::REGISTER_REPLICA, params, "id").await?.ok_or_else(none)
    }

    /// Registers a Docker host and answers its id.
    pub async fn register_host(&self, uuid: Uuid, name: &str, endpoint: &str, capacity: Option<i32>, now: Now) -> Result<i32, Error> {
        let params: &[Param<'_>] =
            &[(&uuid, Type::UUID), (&name, Type::TEXT), (&endpoint, Type::TEXT), (&capacity, Type::INT4), (&now, Type::TIMESTAMPTZ)];
        self.one(super::REGISTER_HOST, params, "host").await?.ok_or_else(none)
    }

    /// The host whose agents run in these containers, if anybody's do.
    pub async fn host_of(&self, agents: &[Uuid], containers: &[String]) -> Result<Option<Uuid>, Error> {
        self.one(super::HOST_OF, &[(&agents, Type::UUID_ARRAY), (&containers, Type::TEXT_ARRAY)], "uuid").await
    }

    /// Says that we are alive, keeps hosts for `lease`, and asks when we are needed. One answer for each host and for 0.
    pub async fn tick(
        &self,
        replica: i32,
        hosts: &[i32],
        lease: Duration,
        listening: bool,
        low: Now,
        now: Now,
    ) -> Result<Vec<Tick>, Error> {
        let lease = lease.as_secs_f64();
        let params: &[Param<'_>] = &[
            (&replica, Type::INT4),
            (&hosts, Type::INT4_ARRAY),
            (&lease, Type::FLOAT8),
            (&listening, Type::BOOL),
            (&low, Type::TIMESTAMPTZ),
            (&now, Type::TIMESTAMPTZ),
        ];
        let rows = self.rows(super::TICK, params).await?;
        rows.iter()
            .map(|row| {
                Ok(Tick {
                    host: row.try_get("host")?,
                    alive: row.try_get("alive")?,
                    keeps: row.try_get("keeps")?,
                    due_in: row.try_get("due_in")?,
                    impatient_in: row.try_get("impatient_in")?,
                    low: row.try_get("low")?,
                })
            })
            .collect()
    }

    /// Seconds until each host is needed next; no entry for those that never are.
    pub async fn next_due(&self, hosts: &[i32], low: Now, now: Now) -> Result<Vec<(i32, f64)>, Error> {
        let params: &[Param<'_>] = &[(&hosts, Type::INT4_ARRAY), (&low, Type::TIMESTAMPTZ), (&now, Type::TIMESTAMPTZ)];
        let rows = self.rows(super::NEXT_DUE, params).await?;
        rows.iter().map(|row| Ok((row.try_get("host")?, row.try_get("due_in")?))).collect()
    }

    /// Places at most `room` (up to 16) agents that wait on a host, leased for their start.
    pub async fn place(&self, host: i32, replica: i32, room: i32, lease: Duration, now: Now) -> Result<Placed, Error> {
        let lease = lease.as_secs_f64();
        let params: &[Param<'_>] =
            &[(&host, Type::INT4), (&replica, Type::INT4), (&room, Type::INT4), (&lease, Type::FLOAT8), (&now, Type::TIMESTAMPTZ)];
        let rows = self.rows(super::PLACE, params).await?;
        let mut placed = Vec::with_capacity(rows.len());
        for row in &rows {
            match row.try_get("verdict")? {
                "full" => return Ok(Placed::Full),
                "locked" => return Ok(Placed::Locked),
                _ => {
                    if let Some(id) = row.try_get("id")? {
                        placed.push((id, row.try_get("epoch")?, spec(row)?));
                    }
                }
            }
        }
        Ok(Placed::Some(placed))
    }

    /// Claims what is due on hosts, each with its lag; at most 100 a host.
    pub async fn claim_due(
        &self,
        hosts: &[(i32, f64)],
        replica: i32,
        low: Now,
        start_lease: Duration,
        stop_lease: Duration,
        now: Now,
    ) -> Result<Vec<Claim>, Error> {
        let (hosts, lags): (Vec<i32>, Vec<f64>) = hosts.iter().copied().unzip();
        let (start, stop) = (start_lease.as_secs_f64(), stop_lease.as_secs_f64());
        let params: &[Param<'_>] = &[
            (&hosts, Type::INT4_ARRAY),
            (&lags, Type::FLOAT8_ARRAY),
            (&replica, Type::INT4),
            (&low, Type::TIMESTAMPTZ),
            (&start, Type::FLOAT8),
            (&stop, Type::FLOAT8),
            (&now, Type::TIMESTAMPTZ),
        ];
        self.rows(super::CLAIM_DUE, params).await?.iter().map(claim).collect()
    }

    /// What the container of a taken-over start is made from.
    pub async fn spec(&self, id: Uuid) -> Result<Option<Spec>, Error> {
        self.rows(super::SPEC, &[(&id, Type::UUID)]).await?.first().map(spec).transpose()
    }

    /// Gives a lease back: somebody looks again after `pause`. False: it was lost already.
    pub async fn release(&self, id: Uuid, epoch: i32, pause: Duration, error: Option<&str>, now: Now) -> Result<bool, Error> {
        let pause = pause.as_secs_f64();
        let params: &[Param<'_>] =
            &[(&id, Type::UUID), (&epoch, Type::INT4), (&pause, Type::FLOAT8), (&error, Type::TEXT), (&now, Type::TIMESTAMPTZ)];
        Ok(!self.rows(super::RELEASE, params).await?.is_empty())
    }

    /// Holds on to a lease for that much longer. False: it was lost.
    pub async fn renew(&self, row: &Claim, replica: i32, lease: Duration, now: Now) -> Result<bool, Error> {
        let lease = lease.as_secs_f64();
        let params: &[Param<'_>] =
            &[(&row.id, Type::UUID), (&row.epoch, Type::INT4), (&replica, Type::INT4), (&lease, Type::FLOAT8), (&now, Type::TIMESTAMPTZ)];
        Ok(!self.rows(super::RENEW, params).await?.is_empty())
    }

    /// Gives the lease of a running agent back until its deadline. False: it was lost already.
    pub async fn rest(&self, id: Uuid, epoch: i32) -> Result<bool, Error> {
        Ok(!self.rows(super::REST, &[(&id, Type::UUID), (&epoch, Type::INT4)]).await?.is_empty())
    }

    /// The intent to send SIGKILL without a look. False: drop the work.
    pub async fn killing(&self, id: Uuid, epoch: i32, lease: Duration, now: Now) -> Result<bool, Error> {
        let lease = lease.as_secs_f64();
        let params: &[Param<'_>] = &[(&id, Type::UUID), (&epoch, Type::INT4), (&lease, Type::FLOAT8), (&now, Type::TIMESTAMPTZ)];
        Ok(!self.rows(super::KILLING, params).await?.is_empty())
    }

    /// Ends those that waited longer than they wanted to; answers how many, at most 100.
    pub async fn expire_waiting(&self, now: Now) -> Result<i64, Error> {
        Ok(self.one(super::EXPIRE_WAITING, &[(&now, Type::TIMESTAMPTZ)], "ended").await?.unwrap_or(0))
    }

    /// Brings near what waits for an instant that the clock was set back from; answers how many.
    pub async fn recall(&self, start_lease: Duration, stop_lease: Duration, now: Now) -> Result<i64, Error> {
        let (start, stop) = (start_lease.as_secs_f64(), stop_lease.as_secs_f64());
        let params: &[Param<'_>] = &[(&start, Type::FLOAT8), (&stop, Type::FLOAT8), (&now, Type::TIMESTAMPTZ)];
        Ok(self.one(super::RECALL, params, "recalled").await?.unwrap_or(0))
    }

    /// The rows of a host that have not ended, each with whether somebody is at it; all, or only these agents.
    pub async fn on_host(&self, host: i32, only: Option<&[Uuid]>) -> Result<Vec<(Claim, bool)>, Error> {
        let params: &[Param<'_>] = &[(&host, Type::INT4), (&only, Type::UUID_ARRAY)];
        self.rows(super::ON_HOST, params).await?.iter().map(|row| Ok((claim(row)?, row.try_get("leased")?))).collect()
    }

    /// What there is of these agents. Empty whenever the database may not be believed.
    pub async fn known(&self, ids: &[Uuid]) -> Result<HashMap<Uuid, Known>, Error> {
        let installation = self.installation();
        let params: &[Param<'_>] = &[(&ids, Type::UUID_ARRAY), (&installation, Type::UUID)];
        let rows = self.rows(super::KNOWN, params).await?;
        let known = |row: &Row| {
            let over_for: Option<f64> = row.try_get("over_for")?;
            let over_for = over_for.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            Ok((row.try_get("id")?, Known { known: row.try_get("known")?, live: row.try_get("live")?, over_for }))
        };
        rows.iter().map(known).collect()
    }

    /// Every host, as JSON.
    pub async fn hosts(&self) -> Result<Vec<String>, Error> {
        self.rows(super::HOSTS, &[]).await?.iter().map(|row| Ok(row.try_get("host")?)).collect()
    }

    /// Keeps new agents off a host, or lets them on again. False: there is no such host.
    pub async fn cordon(&self, host: i32, cordoned: bool) -> Result<bool, Error> {
        Ok(!self.rows(super::CORDON, &[(&host, Type::INT4), (&cordoned, Type::BOOL)]).await?.is_empty())
    }

    /// Declares a host lost; answers how many agents were lost with it.
    pub async fn forget_host(&self, host: i32) -> Result<i64, Error> {
        Ok(self.one(super::FORGET_HOST, &[(&host, Type::INT4)], "lost").await?.unwrap_or(0))
    }

    /// Gives back every lease and host; answers how many leases.
    pub async fn leave(&self, replica: i32, now: Now) -> Result<i64, Error> {
        let params: &[Param<'_>] = &[(&replica, Type::INT4), (&now, Type::TIMESTAMPTZ)];
        Ok(self.one(super::LEAVE, params, "given_back").await?.unwrap_or(0))
    }

    /// Makes partitions ahead; answers how many.
    pub async fn make_ahead(&self, now: Now) -> Result<i32, Error> {
        self.within(PATIENCE).one(super::MAKE_AHEAD, &[(&now, Type::TIMESTAMPTZ)], "made").await?.ok_or_else(none)
    }

    /// Drops one partition, or forgets old keys when there is none to drop; answers how many of each.
    pub async fn upkeep(&self, now: Now) -> Result<(i32, i32), Error> {
        let rows = self.within(PATIENCE).rows(super::UPKEEP, &[(&now, Type::TIMESTAMPTZ)]).await?;
        let row = rows.first().ok_or_else(none)?;
        Ok((row.try_get("dropped")?, row.try_get("keys")?))
    }

    /// Says something on a channel that only the asking replica's listener hears.
    pub async fn probe(&self, channel: &str) -> Result<(), Error> {
        self.rows(super::PROBE, &[(&channel, Type::TEXT)]).await.map(drop)
    }

    /// Tells every replica to look again, for these reasons.
    pub async fn wake(&self, reasons: &[&str]) -> Result<(), Error> {
        self.rows(super::WAKE, &[(&reasons, Type::TEXT_ARRAY)]).await.map(drop)
    }
}

fn none() -> Error {
    Error::Unavailable("a statement that always answers did not".to_owned())
}

fn claim(row: &Row) -> Result<Claim, Error> {
    Ok(Claim {
        id: row.try_get("id")?,
        epoch: row.try_get("epoch")?,
        host: row.try_get("host")?,
        state: row.try_get("state")?,
        container_id: row.try_get("container_id")?,
        attempts: row.try_get("attempts")?,
        started: row.try_get("started")?,
        signalled: row.try_get("signalled")?,
        killed: row.try_get("killed")?,
        observed: row.try_get("observed")?,
        grace: Duration::from_secs_f64(row.try_get::<_, f64>("grace")?.max(0.0)),
        lease: Duration::from_secs_f64(row.try_get::<_, f64>("lease")?.max(0.0)),
        start_timed_out: row.try_get("start_timed_out")?,
        grace_over: row.try_get("grace_over")?,
    })
}

fn spec(row: &Row) -> Result<Spec, Error> {
    Ok(Spec {
        image: row.try_get("image")?,
        command: row.try_get("command")?,
        labels: row.try_get("labels")?,
        env: row.try_get("env")?,
        cpus: row.try_get("cpus")?,
        memory: row.try_get("memory")?,
        pids: row.try_get("pids")?,
        network: row.try_get("network")?,
        max_ttl: Duration::from_secs_f64(row.try_get::<_, f64>("max_ttl")?.max(0.0)),
        start_timeout: Duration::from_secs_f64(row.try_get::<_, f64>("start_timeout")?.max(0.0)),
        grace: Duration::from_secs_f64(row.try_get::<_, f64>("grace")?.max(0.0)),
        first_deadline: row.try_get("first_deadline")?,
    })
}
