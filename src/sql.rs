//! Every question we ask Postgres, one function for each file of `sql/`, and the connections to ask over. Knows no HTTP and no
//! Docker. Each function is one statement in autocommit, typed and unnamed so that it passes any pooler, and bounded in time.
//!
//! Guarantees: no statement outlives its bound by more than a cancel; a connection whose answer we gave up on is never used again;
//! none is used that leads to a database which is not ours. A timeout is an unknown outcome: every statement may be repeated.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Timeouts};
use tokio::time::Instant;
use tokio_postgres::types::{FromSqlOwned, IsNull, ToSql, Type, accepts, to_sql_checked};
use tokio_postgres::{Config, NoTls, Row};
use tokio_util::bytes::BytesMut;
use uuid::Uuid;

use crate::error::Error;
use crate::failpoint;

pub mod batch;
pub mod door;
pub mod feed;
pub mod steps;
pub mod work;

use batch::Batch;

/// The instant that a statement takes for "now". `None`, always in production, is the database's own; tests pass a mocked one.
pub type Now = Option<SystemTime>;

/// How many seconds ago something was, at the moment at which that is sent: a wait for a connection is in it.
#[derive(Debug, Clone, Copy)]
struct Ago(Instant);

impl ToSql for Ago {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.0.elapsed().as_secs_f64().to_sql(ty, out)
    }

    accepts!(FLOAT8);
    to_sql_checked!();
}

type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// Pairs each statement's file stem with its text, for the functions below and for the test that prepares them all.
macro_rules! statements {
    ($($name:ident = $file:literal),* $(,)?) => {
        $(const $name: &str = include_str!(concat!("../sql/", $file, ".sql"));)*
        /// Every statement: file stem and text.
        pub const STATEMENTS: &[(&str, &str)] = &[$(($file, $name)),*];
    };
}

statements! {
    ACCEPTED = "accepted", CLAIM_DUE = "claim_due", CORDON = "cordon", ENDED = "ended", EVENTS_AFTER = "events_after", EVENTS_NOW = "events_now", EXPIRE_WAITING = "expire_waiting", EXTEND = "extend", FINISH = "finish", FORGET_HOST = "forget_host",
    GAUGES = "gauges", GET_AGENT = "get_agent", HOST_OF = "host_of",
    HOSTS = "hosts", IDENTITY = "identity", KILLING = "killing", KNOWN = "known", LEAVE = "leave", LIST_AGENTS = "list_agents",
    LIST_LABELLED = "list_labelled",
    LOG_OF = "log_of", MAKE_AHEAD = "make_ahead", NEXT_DUE = "next_due", OBSERVE = "observe", ON_HOST = "on_host", PLACE = "place", PROBE = "probe",
    RECALL = "recall", RECORD_CONTAINER = "record_container", REGISTER_HOST = "register_host", REGISTER_REPLICA = "register_replica",
    RELEASE = "release", REPLICAS = "replicas",
    RENEW = "renew", REST = "rest", RUNNING = "running", SETTINGS = "settings", SIGNALLED = "signalled",
    SIGNALLING = "signalling", SPEC = "spec", STORY = "story", SUBMIT = "submit", SUBMIT_MANY = "submit_many", TERMINATE = "terminate",
    TERMINATE_LABELLED = "terminate_labelled", TICK = "tick", UPKEEP = "upkeep",
    WAKE = "wake",
}

/// Connections to the database, and the questions.
#[derive(Clone)]
pub struct Sql {
    pool: Pool,
    bound: Duration,
    installation: Arc<OnceLock<Uuid>>,
    shared: Arc<Shared>,
}

/// The questions that many ask at the same time, each with those who wait to ask it.
#[derive(Default)]
struct Shared {
    submit: Arc<Batch<door::Submit>>,
    terminate: Arc<Batch<door::Terminate>>,
    record_container: Arc<Batch<steps::RecordContainer>>,
    running: Arc<Batch<steps::Running>>,
    signalling: Arc<Batch<steps::Signalling>>,
    signalled: Arc<Batch<steps::Signalled>>,
    observe: Arc<Batch<steps::Observe>>,
    finish: Arc<Batch<steps::Finish>>,
}

impl Sql {
    /// A pool of at most `size` connections whose statements take at most `bound`. Connects when first asked.
    ///
    /// # Errors
    /// When the pool cannot be built, which is a defect.
    pub fn new(config: &Config, size: usize, bound: Duration) -> Result<Self, Error> {
        let installation: Arc<OnceLock<Uuid>> = Arc::default();
        let expected = Arc::clone(&installation);
        let mut config = config.clone();
        if failpoint::broken("unflushed") {
            config.options("-c synchronous_commit=off");
        }
        let manager = Manager::from_config(config, NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
        let pool = Pool::builder(manager)
            .max_size(size)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts { wait: Some(bound), create: Some(bound.min(Duration::from_secs(3))), recycle: Some(bound) })
            .post_create(Hook::async_fn(move |client, _| {
                let expected = Arc::clone(&expected);
                Box::pin(async move {
                    let Some(ours) = expected.get() else { return Ok(()) };
                    let rows = client.query_typed(IDENTITY, &[]).await.map_err(HookError::Backend)?;
                    match rows.first().map(|row| (row.get::<_, Uuid>(0), row.get::<_, bool>(1))) {
                        Some((id, true)) if id == *ours => Ok(()),
                        _ => Err(HookError::message("it is not, or not any more, the database that this installation is bound to")),
                    }
                })
            }))
            .build()
            .map_err(|error| Error::Internal(error.to_string()))?;
        Ok(Self { pool, bound, installation, shared: Arc::default() })
    }

    /// From here on, connections that lead to any other database are refused.
    pub fn expect(&self, installation: Uuid) {
        let _already = self.installation.set(installation);
    }

    /// The installation that this is for.
    #[must_use]
    pub fn installation(&self) -> Uuid {
        self.installation.get().copied().unwrap_or_default()
    }

    /// The same connections, for a statement that may take so long.
    fn within(&self, bound: Duration) -> Self {
        Self { bound, ..self.clone() }
    }

    /// One statement, bounded; once more when others made it roll back.
    async fn rows(&self, statement: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Error> {
        let mut tries = 0;
        loop {
            match self.attempt(statement, params).await {
                Err(Attempt::Transient) if tries < 3 => tries += 1,
                Err(Attempt::Transient) => return Err(Error::Unavailable("it rolls back again and again".to_owned())),
                Err(Attempt::Failed(error)) => return Err(error),
                Ok(rows) => return Ok(rows),
            }
        }
    }

    async fn attempt(&self, statement: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Attempt> {
        let deadline = tokio::time::Instant::now() + self.bound;
        let client = tokio::time::timeout_at(deadline, self.pool.get())
            .await
            .map_err(|_elapsed| Attempt::Failed(Error::Unavailable("no connection in time".to_owned())))?
            .map_err(|error| Attempt::Failed(error.into()))?;
        // Until the answer is here the connection is ours alone: if this future is dropped or gives up, it must not go back.
        let busy = Busy(Some(client));
        let answer = match &busy.0 {
            Some(client) => tokio::time::timeout_at(deadline, client.query_typed(statement, params)).await,
            None => return Err(Attempt::Failed(Error::Internal("no connection".to_owned()))),
        };
        match answer {
            Ok(Ok(rows)) => {
                busy.done();
                Ok(rows)
            }
            Ok(Err(error)) => {
                let transient = Error::is_transient(&error);
                let error = Error::from(error);
                // A refused statement leaves the connection as good as it was; a read-only or dying server does not.
                if transient || !matches!(error, Error::Unavailable(_)) {
                    busy.done();
                }
                Err(if transient { Attempt::Transient } else { Attempt::Failed(error) })
            }
            Err(_elapsed) => Err(Attempt::Failed(Error::Unavailable("no answer in time".to_owned()))),
        }
    }

    async fn one<T: FromSqlOwned>(&self, statement: &str, params: &[Param<'_>], column: &str) -> Result<Option<T>, Error> {
        Ok(match self.rows(statement, params).await?.first() {
            Some(row) => Some(row.try_get(column)?),
            None => None,
        })
    }

    /// Who the database says we are, and whether it is the one that we are bound to. `None`: not migrated.
    ///
    /// # Errors
    /// As all of these: unavailable, or a defect.
    pub async fn identity(&self) -> Result<Option<(Uuid, bool)>, Error> {
        let rows = self.rows(IDENTITY, &[]).await?;
        rows.first().map(|row| Ok((row.try_get("installation")?, row.try_get("bound")?))).transpose()
    }

    /// Writes defaults and retention where given; answers the default and the longest ttl when any was.
    pub async fn settings(
        &self,
        default_ttl: Option<f64>,
        max_ttl: Option<f64>,
        retention: Option<f64>,
        logs: Option<f64>,
    ) -> Result<Option<(f64, f64)>, Error> {
        let params: &[Param<'_>] =
            &[(&default_ttl, Type::FLOAT8), (&max_ttl, Type::FLOAT8), (&retention, Type::FLOAT8), (&logs, Type::FLOAT8)];
        let rows = self.rows(SETTINGS, params).await?;
        rows.first().map(|row| Ok((row.try_get("default_ttl")?, row.try_get("max_ttl")?))).transpose()
    }
}

/// Why a try did not answer.
enum Attempt {
    Transient,
    Failed(Error),
}

/// A connection that is waiting for an answer. Dropped so, it is cancelled and closed instead of going back to the pool.
struct Busy(Option<Object>);

impl Busy {
    fn done(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            let client = Object::take(client);
            let cancel = client.cancel_token();
            tokio::spawn(async move {
                let _best_effort = tokio::time::timeout(Duration::from_secs(1), cancel.cancel_query(NoTls)).await;
            });
        }
    }
}
