//! The door for programs: takes wishes, writes them through `sql`, and reads rows. Never calls Docker; the output of a container
//! that lives comes through a hook. Decides nothing about an agent.
//!
//! Guarantees: work in the database runs in a task of its own, so a client that hangs up cancels nothing; every answer about the
//! database comes within [`ANSWER`] or is a 503; connections, heads, bodies and idle time are bounded; every error is a problem
//! with a stable code, and internal text never leaves.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::stream::BoxStream;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::sql::Sql;
use crate::wake::Wish;

mod agents;
mod connection;
mod ends;
mod events;
mod health;
mod logs;
mod meters;
pub mod openapi;
mod page;
pub mod problem;
mod request;
mod routes;

pub use ends::Ends;
pub use events::Feed;
pub use meters::Meters;

/// How long the database may take before the client is told to come again. Below the 2 s that clients are promised.
pub const ANSWER: Duration = Duration::from_millis(1800);
/// Longest wait of `GET /agents/{id}?wait=`: what the usual load balancer allows an answer to take.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Largest body, in bytes. The largest agent that `sundown.submit` takes is about half of it.
pub const BODY: usize = 256 * 1024;
/// Connections at once; beyond, each is told to come again. Each costs about 20 kB while it is idle.
pub const CONNECTIONS: usize = 1024;
/// Turned-away connections that are told so; beyond, they are closed without a word.
const REFUSALS: usize = 64;
/// Longest silence between requests. Above the 60 s after which load balancers drop a connection: the one who closes first must be
/// the client, or it meets a closed socket in mid-request.
const IDLE: Duration = Duration::from_secs(75);
/// How long open requests may take once told to stop.
pub const DRAIN: Duration = Duration::from_secs(10);
/// Longest head of a request, in bytes, and most headers in it.
const HEAD: usize = 64 * 1024;
const HEADERS: usize = 64;

/// What http needs, made by whoever starts it.
pub struct State {
    /// The questions, over connections that no loop shares.
    pub sql: Sql,
    /// Who waits for ends; nobody yet.
    pub ends: Ends,
    /// Who follows events; nobody yet.
    pub feed: Feed,
    /// Called after a wish was written: wakes our own loops and the other replicas.
    pub poke: Box<dyn Fn(Wish) + Send + Sync>,
    /// What readiness depends on besides the database.
    pub ready: Arc<Readiness>,
    /// Opens the output of a container that lives.
    pub live_log: LiveLog,
    /// Everything that `/metrics` prints, what `meters` registered included.
    pub metrics: Arc<Registry>,
    /// What http itself counts.
    pub meters: Meters,
}

/// What there is behind the door; empty while the process starts, filled once.
pub type Behind = Arc<OnceLock<Arc<State>>>;

/// Opens the output of a container on a host: `None` when this replica does not serve the host. The stream ends with the container.
pub type LiveLog = Box<dyn Fn(i32, String, LogQuery) -> Option<BoxStream<'static, Result<Bytes, String>>> + Send + Sync>;

/// Which part of the output is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogQuery {
    /// Go on until the container ends.
    pub follow: bool,
    /// Only so many lines of what there is already; `None`: all.
    pub tail: Option<u32>,
}

/// What readiness depends on besides the database.
pub struct Readiness {
    /// Set first of all when the process is told to stop.
    pub draining: AtomicBool,
    /// Whether at least one Docker host answers.
    pub host_reachable: Box<dyn Fn() -> bool + Send + Sync>,
}

/// Serves until `shutdown`, then lets open requests finish for at most 10 s. With nothing behind it yet, it says that it starts.
pub async fn serve(listener: TcpListener, behind: Behind, shutdown: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    let graceful = GracefulShutdown::new();
    // Ends what is still open after the drain: this function owns its connections.
    let cut = CancellationToken::new();
    let _on_return = cut.clone().drop_guard();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => match Arc::clone(&slots).try_acquire_owned() {
                Ok(slot) => {
                    let visitor = Visitor { behind: Arc::clone(&behind), peer, shutdown: shutdown.clone() };
                    tokio::spawn(connection(stream, visitor, graceful.watcher(), cut.clone(), slot));
                }
                Err(_full) => {
                    if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
                        tokio::spawn(connection::refuse(stream, permit));
                    }
                }
            },
            // Out of descriptors, or the client was gone already. Trying again at once would only burn a core.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests were still open after {} s and are cut", DRAIN.as_secs());
    }
}

/// Who is connected.
#[derive(Clone)]
struct Visitor {
    behind: Behind,
    peer: SocketAddr,
    shutdown: CancellationToken,
}

/// Who asks, and what is needed to answer.
#[derive(Clone)]
struct Caller {
    state: Arc<State>,
    peer: SocketAddr,
    shutdown: CancellationToken,
}

impl Visitor {
    async fn answer(self, request: Request<Incoming>) -> Response<routes::Content> {
        let Self { behind, peer, shutdown } = self;
        match behind.get().cloned() {
            Some(state) => routes::answer(Caller { state, peer, shutdown }, request).await,
            None => routes::starting(&request),
        }
    }
}

async fn connection(stream: TcpStream, visitor: Visitor, watcher: Watcher, cut: CancellationToken, slot: OwnedSemaphorePermit) {
    let _slot = slot;
    let _best_effort = stream.set_nodelay(true);
    let (io, phase) = connection::Patient::new(stream);
    let service = service_fn(move |request| {
        let busy = phase.busy();
        let visitor = visitor.clone();
        async move { Ok::<_, Infallible>(busy.until_sent(visitor.answer(request).await)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Counted from the end of the answer before, so it is the limit on idling; `Patient` has the one on slow heads.
        .header_read_timeout(IDLE)
        .max_headers(HEADERS)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(io), service);
    tokio::select! {
        ended = watcher.watch(connection) => if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke");
        },
        () = cut.cancelled() => {}
    }
}
