//! The embedded default: a private, durable Postgres for `sundown serve` without a database URL.
//!
//! It runs the PostgreSQL that is installed on this machine, with its data under one directory, and is
//! found again there by every later start. It knows nothing of agents, Docker or HTTP: it hands out a
//! `tokio_postgres::Config` and is never asked again until the end.
//!
//! Guarantees: data are never deleted and fsync is never off; an initialisation that was cut short leaves
//! nothing that a later start could mistake for a database; processes that start together on one directory
//! use one server; nobody but the owner of the directory can reach the socket; the password is never logged.
//!
//! ```text
//! <dir>/lock        held (flock) while somebody starts or stops the server
//! <dir>/users       held shared by every process that uses the server; the last one to leave stops it
//! <dir>/password    mode 0600
//! <dir>/server.log  what PostgreSQL says
//! <dir>/pg/         mode 0700, owned by the server's user: its socket, and data/
//! ```
//!
//! A process that is killed leaves the server running: the next start finds it, and the locks of a dead
//! process are gone with it. Run by root, the server runs as an ordinary user, because PostgreSQL refuses
//! root; root itself writes only to files outside `pg/`, so that user cannot mislead it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use tokio_postgres::Config;

mod cluster;
mod files;

use cluster::{Answer, Cluster, SOCKET_NAME, ask, lasting_clients};
use files::{LOCK_LIMIT, file_error, lock, make_home, private_file};

/// Longest socket path that Linux takes: `sun_path` is 108 bytes with its final NUL.
const SOCKET_PATH_LIMIT: usize = 107;

/// Why there is no embedded Postgres. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// No installed PostgreSQL was found.
    #[error("no PostgreSQL is installed here: run `apt-get install postgresql`, or name a server in SUNDOWN_DATABASE_URL")]
    NotInstalled,
    /// The data were made by a major version that is not installed.
    #[error(
        "the data in {} were made by PostgreSQL {major}, which is not installed: run `apt-get install postgresql-{major}`, or upgrade them with pg_upgrade", .data.display()
    )]
    OtherVersion {
        /// The data directory.
        data: PathBuf,
        /// The major version in its `PG_VERSION`.
        major: u32,
    },
    /// Root runs us, and there is no user to run the server as.
    #[error(
        "PostgreSQL refuses to run as root, and there is no user `sundown` or `postgres` to run it as: run `adduser --system --group sundown`"
    )]
    NoServerUser,
    /// The server's user cannot enter the directory.
    #[error(
        "the user `{user}`, as whom PostgreSQL runs, cannot enter {}: choose a SUNDOWN_DATA such as /var/lib/sundown, whose parents everybody may enter", .dir.display()
    )]
    OutOfReach {
        /// The server's user.
        user: String,
        /// What it cannot enter.
        dir: PathBuf,
    },
    /// The socket's path would not fit into a socket address.
    #[error(
        "{} is too long for a socket's path ({length} bytes of at most {SOCKET_PATH_LIMIT}): choose a shorter SUNDOWN_DATA", .socket.display()
    )]
    PathTooLong {
        /// The socket's path.
        socket: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The data directory holds something that is not a database.
    #[error(
        "{} holds no PostgreSQL data, and it was not made by Sundown: move it away, or choose another SUNDOWN_DATA", .0.display()
    )]
    NotADatabase(PathBuf),
    /// A database without the password that opens it.
    #[error(
        "{} is missing or empty, and the data beside it cannot be opened without it: restore it from a backup", .0.display()
    )]
    PasswordMissing(PathBuf),
    /// A file could not be used.
    #[error("cannot {doing} {}: {source}; SUNDOWN_DATA must be a directory that the user who runs sundown may write to", .path.display())]
    File {
        /// What was tried, as a verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// A program of PostgreSQL could not be run at all.
    #[error("cannot run {}: {source}; reinstall PostgreSQL", .program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// initdb refused.
    #[error("initdb could not make a database in {}: {output}", .data.display())]
    Initdb {
        /// Where.
        data: PathBuf,
        /// What it printed.
        output: String,
    },
    /// The server did not start, or did not stop.
    #[error("PostgreSQL did not {verb}; the end of {} says: {tail}", .log.display())]
    Server {
        /// `start` or `stop`.
        verb: &'static str,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// Another process holds the lock for longer than a start can take.
    #[error(
        "another process has been starting or stopping the database for {} seconds: `fuser {}` names it", LOCK_LIMIT.as_secs(), .0.display()
    )]
    Locked(PathBuf),
    /// The server runs, and refuses us.
    #[error("the embedded PostgreSQL refuses a connection: {0}")]
    Refused(String),
}

/// A running embedded Postgres, and this process's claim on it.
#[derive(Debug)]
pub struct Embedded {
    cluster: Cluster,
    config: Config,
    /// Held shared for as long as this process uses the server.
    users: File,
}

/// Starts the Postgres whose data live in `dir`, making it if there is none yet, or joins the one that runs.
///
/// Safe to call from several processes at once. If the future is dropped, a server may be left running, which the
/// next start finds; a half-made database is never left where one would look for it.
pub async fn start(dir: &Path) -> Result<Embedded, EmbeddedError> {
    let home = make_home(dir)?;
    let socket = home.join("pg").join(SOCKET_NAME);
    let length = socket.as_os_str().len();
    if length > SOCKET_PATH_LIMIT {
        return Err(EmbeddedError::PathTooLong { socket, length });
    }

    let _lock = lock(&home).await?;
    let cluster = Cluster::at(home).await?;
    let password = cluster.password()?;
    cluster.make(&password).await?;
    let config = cluster.config(&password);
    cluster.run(&config).await?;

    let path = cluster.home.join("users");
    let users = private_file(&path)?;
    // Exclusive only under `lock`, which we hold: this cannot block.
    users.try_lock_shared().map_err(|error| file_error("lock", &path, error.into()))?;
    Ok(Embedded { cluster, config, users })
}

impl Embedded {
    /// How to connect: by socket, as the owner of the database `sundown`. Its `Debug` hides the password.
    pub fn config(&self) -> Config {
        self.config.clone()
    }

    /// Gives up this process's use of the server, and stops it if nobody else uses it.
    ///
    /// Whoever leaves last stops it, whoever started it. It is left running while another process of ours uses it, or
    /// while any other client is connected (an operator's psql): so close your own connections first.
    pub async fn stop(self) -> Result<(), EmbeddedError> {
        let Self { cluster, config, users } = self;
        let _lock = lock(&cluster.home).await?;
        let path = cluster.home.join("users");
        users.unlock().map_err(|error| file_error("unlock", &path, error))?;
        if users.try_lock().is_err() {
            tracing::info!("the embedded PostgreSQL is left running for the other replicas");
            return Ok(());
        }
        let others = match ask(&config).await {
            Answer::Ready(client) => lasting_clients(&client).await?,
            // Stopped already, or answering nobody: nobody is lost by stopping it.
            _ => 0,
        };
        if others > 0 {
            tracing::info!(others, "the embedded PostgreSQL is left running for its other clients");
            return Ok(());
        }
        cluster.shut_down().await
    }
}
