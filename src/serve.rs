//! Puts a replica together, and takes it apart again in the right order.
//!
//! Guarantees: a process that serves HTTP without its loops does not exist: one loop that ends takes the others with it; readiness
//! goes first, then claims stop, then the work in hand is finished or its leases returned, then the streams end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_postgres::Config;
use tokio_util::sync::CancellationToken;

use crate::config::{Docker, Serve, Settings, Span};
use crate::embedded::{Embedded, EmbeddedError};
use crate::error::Error;
use crate::replica::{Host, Replica};
use crate::sql::Sql;
use crate::{deadman, http, keeper, launcher, listen, migrate, notifier, service, sweeper, upkeep};

/// Connections for the work in hand: a few finishes at once; others queue for them in microseconds.
const LOOP_CONNECTIONS: usize = 6;
/// Connections for claiming: the sweeper's and the launcher's.
const CLAIM_CONNECTIONS: usize = 2;
/// Connections of http, so that neither starves the other.
const HTTP_CONNECTIONS: usize = 8;
/// How long a statement of a loop may take.
const LOOP_BOUND: Duration = Duration::from_secs(5);
/// How long a statement of http may take: an answer is promised within 2 s.
const HTTP_BOUND: Duration = Duration::from_millis(1500);
/// How long a start waits for a database that does not answer yet.
const STARTUP: Duration = Duration::from_secs(30);

/// What ends a process, named by its exit code.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// Something that was asked for is wrong: exit code 64.
    #[error("{0}")]
    Usage(String),
    /// Something that is needed does not answer: exit code 69.
    #[error("{0}")]
    Unavailable(String),
    /// A defect: exit code 70.
    #[error("{0}")]
    Internal(String),
    /// The database is not ours to act on: exit code 78.
    #[error("{0}")]
    NotOurs(String),
}

impl From<Error> for Fatal {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => Self::Usage(format!("{}: {}. {}", refusal.code, refusal.message, refusal.hint)),
            Error::Unavailable(_) | Error::Locked(_) => Self::Unavailable(error.to_string()),
            Error::Internal(_) => Self::Internal(error.to_string()),
        }
    }
}

impl From<EmbeddedError> for Fatal {
    fn from(error: EmbeddedError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// Serves until `shutdown`, or until a loop breaks. From the first moment on the door answers, and `shutdown` is heard.
///
/// # Errors
/// What made the start impossible, or which loop broke.
pub async fn run(config: Serve, listener: TcpListener, shutdown: CancellationToken) -> Result<(), Fatal> {
    let front = Front::open(listener);
    let (pooled, direct, embedded) = match config.database.addresses().map_err(Fatal::Usage)? {
        Some((pooled, direct)) => (pooled, direct, None),
        None => {
            let data = config.database.data_dir();
            // A server that is left running because we were told to stop is found by the next start.
            let Some(embedded) = shutdown.run_until_cancelled(crate::embedded::start(&data)).await.transpose()? else {
                front.close().await;
                return Ok(());
            };
            let address = crate::config::tuned(embedded.config());
            (address.clone(), address, Some(embedded))
        }
    };
    let result = serve(&config, &pooled, &direct, front, shutdown).await;
    if let Some(embedded) = embedded {
        stop_embedded(embedded).await;
    }
    result
}

async fn stop_embedded(embedded: Embedded) {
    if let Err(error) = embedded.stop().await {
        tracing::warn!(%error, "the private Postgres did not stop");
    }
}

/// The door, and whoever else outlives the loops: what is wished while they finish is still written, and told to others.
struct Front {
    address: String,
    behind: http::Behind,
    tasks: JoinSet<&'static str>,
    closing: CancellationToken,
}

impl Front {
    fn open(listener: TcpListener) -> Self {
        let address = listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string());
        let (behind, closing, mut tasks) = (http::Behind::default(), CancellationToken::new(), JoinSet::new());
        tasks.spawn(named("http", http::serve(listener, Arc::clone(&behind), closing.clone())));
        Self { address, behind, tasks, closing }
    }

    /// Its connections to the database go with it: they must not be taken for somebody else's.
    async fn close(mut self) {
        self.closing.cancel();
        joined(&mut self.tasks, http::DRAIN + Duration::from_secs(1)).await;
    }
}

/// Connects to everything: the connections of http, and the replica with its own.
async fn start(config: &Serve, pooled: &Config, direct: &Config) -> Result<(Sql, Arc<Replica>), Fatal> {
    if !config.no_migrate {
        migrate_when_it_answers(direct).await?;
    }
    let sql = installation(pooled, LOOP_CONNECTIONS, LOOP_BOUND).await?;
    settings(&sql, config.settings).await?;
    let door = Sql::new(pooled, HTTP_CONNECTIONS, HTTP_BOUND)?;
    door.expect(sql.installation());

    let id = sql.register_replica(&sweeper::replica_name(), env!("CARGO_PKG_VERSION"), None).await?;
    let claims = Sql::new(pooled, CLAIM_CONNECTIONS, LOOP_BOUND)?;
    claims.expect(sql.installation());
    Ok((door, Arc::new(Replica::new(sql, claims, id, hosts(&config.docker), config.docker.lease.0, config.poll.0))))
}

async fn serve(config: &Serve, pooled: &Config, direct: &Config, mut front: Front, shutdown: CancellationToken) -> Result<(), Fatal> {
    let Some((door, replica)) = shutdown.run_until_cancelled(start(config, pooled, direct)).await.transpose()? else {
        tracing::info!("told to stop before it had started");
        front.close().await;
        return Ok(());
    };
    tracing::info!(replica = replica.id(), installation = %replica.sql.installation(), address = front.address, "serving");

    let mut loops: JoinSet<&'static str> = JoinSet::new();
    for host in &replica.hosts {
        loops.spawn(named("keeper", keeper::run(Arc::clone(&replica), Arc::clone(host))));
    }
    for endpoint in config.docker.endpoints.all() {
        loops.spawn(named("dead man", deadman::watch(Arc::clone(&replica), endpoint, config.deadman_grace.0)));
    }
    loops.spawn(named("launcher", launcher::run(Arc::clone(&replica))));
    loops.spawn(named("sweeper", sweeper::run(Arc::clone(&replica))));
    loops.spawn(named("listener", listen::run(Arc::clone(&replica), direct.clone())));
    loops.spawn(named("upkeep", upkeep::run(Arc::clone(&replica))));
    front.tasks.spawn(named("notifier", notifier::run(Arc::clone(&replica), front.closing.clone())));
    let state = front.behind.get_or_init(|| door_state(door, &replica));
    let ready = Arc::clone(&state.ready);
    tokio::spawn(service::tell(replica.stop.clone()));

    let broken = tokio::select! {
        () = shutdown.cancelled() => None,
        () = replica.broken.cancelled() => Some("a lane of work panicked".to_owned()),
        ended = loops.join_next() => Some(what_ended(ended)),
        ended = front.tasks.join_next() => Some(what_ended(ended)),
    };
    ready.draining.store(true, Ordering::Release);
    replica.stop.cancel();
    if let Some(broken) = broken {
        // Whatever it had in hand comes due again; a replica that has lost a loop must not be trusted to tidy up.
        return Err(Fatal::Internal(format!("{broken}; ending, so that nothing runs without it")));
    }
    tracing::info!("draining: no more claims");
    // A claim that is under way is work in hand, too.
    joined(&mut loops, LOOP_BOUND * 2).await;
    drain(&replica, config.drain).await;
    front.close().await;
    Ok(())
}

fn what_ended(ended: Option<Result<&'static str, tokio::task::JoinError>>) -> String {
    match ended {
        Some(Ok(name)) => format!("the {name} loop ended"),
        Some(Err(error)) => format!("a loop broke: {error}"),
        None => "there are no loops".to_owned(),
    }
}

async fn joined(tasks: &mut JoinSet<&'static str>, patience: Duration) {
    if tokio::time::timeout(patience, async { while tasks.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!("a loop did not end in time");
    }
}

/// What http is given: its own connections, and the few things that it may do to the rest of the process.
fn door_state(sql: Sql, replica: &Arc<Replica>) -> Arc<http::State> {
    let mut registry = Registry::default();
    replica.metrics.register(&mut registry);
    let meters = http::Meters::register(&mut registry);
    let (poked, logged, asked) = (Arc::clone(replica), Arc::clone(replica), Arc::clone(replica));
    Arc::new(http::State {
        sql,
        ends: http::Ends::default(),
        feed: http::Feed::default(),
        poke: Box::new(move |wish| poked.wakes.wished(wish)),
        ready: Arc::new(http::Readiness {
            draining: AtomicBool::new(false),
            host_reachable: Box::new(move || !asked.reachable().is_empty()),
        }),
        live_log: Box::new(move |host, container, query| {
            let link = logged.link(host)?;
            let tail = query.tail.and_then(|lines| usize::try_from(lines).ok());
            let stream = match link.docker.logs(&container, query.follow, tail) {
                Ok(stream) => stream.map_err(|error| error.to_string()).boxed(),
                Err(error) => stream::once(async move { Err(error.to_string()) }).boxed(),
            };
            Some(stream)
        }),
        metrics: Arc::new(registry),
        meters,
    })
}

/// Finishes the work in hand, or gives its leases back.
async fn drain(replica: &Arc<Replica>, patience: Span) {
    if !replica.drained(patience.0).await {
        tracing::warn!("work in hand is not finished; its leases are returned");
        replica.leaving.cancel();
    }
    match replica.sql.leave(replica.id(), None).await {
        Ok(given_back) => tracing::info!(given_back, "drained"),
        Err(error) => tracing::warn!(%error, "leases could not be returned; they run out"),
    }
}

async fn named(name: &'static str, work: impl Future<Output = ()>) -> &'static str {
    work.await;
    name
}

/// A database that is just starting is waited for.
async fn migrate_when_it_answers(direct: &Config) -> Result<(), Fatal> {
    let give_up = tokio::time::Instant::now() + STARTUP;
    loop {
        match migrate::migrate(direct, false).await {
            Err(Error::Unavailable(error) | Error::Locked(error)) if tokio::time::Instant::now() < give_up => {
                tracing::warn!(error, "the database does not answer yet; trying again");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            result => return Ok(result?),
        }
    }
}

/// Connects to a migrated database that is ours.
///
/// # Errors
/// When it is not migrated, or a copy that nobody adopted.
pub async fn installation(config: &Config, connections: usize, bound: Duration) -> Result<Sql, Fatal> {
    let sql = Sql::new(config, connections, bound)?;
    let identity = match sql.identity().await {
        Err(Error::Internal(_)) | Ok(None) => {
            return Err(Fatal::NotOurs("the database is not migrated: run `sundown migrate`".to_owned()));
        }
        identity => identity?,
    };
    match identity {
        Some((installation, true)) => {
            sql.expect(installation);
            Ok(sql)
        }
        _ => Err(Fatal::NotOurs(
            "this database is a copy of the one that its installation is bound to, or a standby. If the original is gone, run \
             `sundown adopt`; to run this copy beside it, `sundown adopt --new`"
                .to_owned(),
        )),
    }
}

/// Writes what this start was told about the installation.
pub(crate) async fn settings(sql: &Sql, settings: Settings) -> Result<(), Fatal> {
    let seconds = |span: Option<Span>| span.map(|span| span.0.as_secs_f64());
    let (ttl, max, kept, logs) =
        (seconds(settings.default_ttl), seconds(settings.max_ttl), seconds(settings.retention), seconds(settings.log_retention));
    if ttl.or(max).or(kept).or(logs).is_none() {
        return Ok(());
    }
    let written = sql.settings(ttl, max, kept, logs).await.map_err(|error| match error {
        Error::Internal(_) => {
            Fatal::Usage("the default ttl must not be above the longest (SUNDOWN_DEFAULT_TTL, SUNDOWN_MAX_TTL)".to_owned())
        }
        other => other.into(),
    })?;
    if let Some((default_ttl_s, max_ttl_s)) = written {
        tracing::info!(default_ttl_s, max_ttl_s, "settings of the installation written");
    }
    Ok(())
}

/// The hosts to serve; none of them reached yet.
pub(crate) fn hosts(docker: &Docker) -> Vec<Arc<Host>> {
    let Docker { endpoints, capacity, starts, no_fast_kill, .. } = docker.clone().effective();
    let host = |endpoint| {
        let mut host = Host::new(endpoint, capacity, usize::from(starts));
        host.fast_kill = !no_fast_kill;
        Arc::new(host)
    };
    endpoints.all().into_iter().map(host).collect()
}
