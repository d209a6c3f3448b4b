//! All configuration: flags, their environment variables, and the only place that reads either. Each field says its unit, its default
//! and the cost of being wrong.
//!
//! Guarantees: a wrong value ends with one line and exit code 64; nothing secret is printed.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};
use tokio_postgres::config::{ChannelBinding, SslMode};

use crate::agent;
use crate::docker;

/// Sundown: every agent is gone by sundown.
#[derive(Debug, Parser)]
#[command(name = "sundown", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What is logged, to stderr: a level, or levels of parts as in sundown=debug.
    #[arg(long, env = "SUNDOWN_LOG", global = true, value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    pub log: String,
}

impl Cli {
    /// Checks what comes from variables that are not ours and that clap therefore does not see.
    ///
    /// # Errors
    /// What is wrong, in one line.
    pub fn check(&self) -> Result<(), String> {
        let (database, docker) = match &self.command {
            Command::Serve(c) => (Some(&c.database), Some(&c.docker.endpoints)),
            Command::Sweep(c) => (Some(&c.database), Some(&c.docker.endpoints)),
            Command::Doctor(c) => (Some(&c.database), Some(&c.docker.endpoints)),
            Command::Deadman(c) => (None, Some(&c.endpoints)),
            Command::Migrate(c) => (Some(&c.database), None),
            Command::Adopt(c) => (Some(&c.database), None),
            Command::Host(c) => (Some(&c.database), None),
            // They say it themselves.
            Command::Verb(_) | Command::Completions { .. } | Command::Man => (None, None),
        };
        database.map(Database::addresses).transpose()?;
        let endpoints = docker.map(Endpoints::all).unwrap_or_default();
        endpoints.iter().try_for_each(|named| endpoint(named).map(drop)).map_err(|error| format!("DOCKER_HOST: {error}"))
    }

    /// What is wrong with the command line or the environment, in one line: the usage that follows it would bury it. The words
    /// that clap quotes may be an address with a password in it.
    #[must_use]
    pub fn complaint(mut error: clap::Error) -> String {
        if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            return "say what to do, as in `sundown serve`; `sundown --help` lists the commands".to_owned();
        }
        let quoted = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
        let mut hidden = Vec::new();
        if quoted(ContextKind::InvalidArg).contains("-url ") {
            hidden.push(ContextKind::InvalidValue);
        }
        hidden.extend(
            [ContextKind::InvalidArg, ContextKind::InvalidValue, ContextKind::InvalidSubcommand]
                .into_iter()
                .filter(|kind| ["://", "password"].iter().any(|word| quoted(*kind).contains(word))),
        );
        for kind in hidden {
            let _secret = error.insert(kind, ContextValue::String("(not shown)".to_owned()));
        }
        let text = error.to_string();
        let lines = text.lines().take_while(|line| !line.is_empty());
        lines.map(|line| line.trim().trim_start_matches("error: ")).collect::<Vec<_>>().join(" ")
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the API and keep agents: one replica of any number.
    Serve(Serve),
    /// Bring the database up to this release, and exit.
    Migrate(Migrate),
    /// Do one whole pass without a server: start what may start, end what is due, remove orphans; print counts as JSON, and exit.
    Sweep(Sweep),
    /// End agents that are past the longest life that any deadline allows them, with no database: for a host on which nothing else may be
    /// alive.
    Deadman(Deadman),
    /// Bind this database to its installation after it was restored or copied.
    Adopt(Adopt),
    /// List Docker hosts, keep new agents off one, or give one up for lost.
    Host(HostCommand),
    /// Check what Sundown needs, and say what to do about what is missing.
    Doctor(Doctor),
    /// The verbs for agents.
    #[command(flatten)]
    Verb(crate::client::Verb),
    /// Print the completions of a shell, as in `source <(sundown completions bash)`.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
}

/// Where the database is.
#[derive(Args, Clone)]
pub struct Database {
    /// Address of Postgres, pooled or not: postgres://user:password@host/database. Without one, `serve` runs a private Postgres.
    #[arg(long, env = "SUNDOWN_DATABASE_URL", hide_env_values = true, value_name = "URL", value_parser = database_url)]
    pub database_url: Option<tokio_postgres::Config>,
    /// Address of Postgres itself, for notifications and migrations, if the other one leads through a pooler.
    #[arg(long, env = "SUNDOWN_DIRECT_URL", hide_env_values = true, value_name = "URL", value_parser = database_url)]
    pub direct_url: Option<tokio_postgres::Config>,
    /// Read when no other address is given, as other tools do.
    #[arg(skip = fallback_url())]
    pub fallback: Option<String>,
    /// Data of the private Postgres that serves when there is no address. Default: /var/lib/sundown for root, else ~/.local/share/sundown.
    #[arg(long, env = "SUNDOWN_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// Which Docker hosts there are.
#[derive(Args, Debug, Clone)]
pub struct Endpoints {
    /// Docker endpoints, separated by commas. Default: DOCKER_HOST, then the local socket.
    #[arg(long, env = "SUNDOWN_DOCKER", value_name = "ENDPOINTS", value_delimiter = ',', value_parser = endpoint)]
    pub docker: Vec<String>,
}

/// Which Docker hosts are served, and how.
#[derive(Args, Debug, Clone)]
pub struct Docker {
    /// The hosts.
    #[command(flatten)]
    pub endpoints: Endpoints,
    /// Live agents that each host may carry; when all are full, agents wait. Too many, and the host's memory is what ends them. Not given,
    /// a host's stays as it is [first: 100].
    #[arg(long, env = "SUNDOWN_CAPACITY", value_name = "N", value_parser = clap::value_parser!(i32).range(0..=100_000))]
    pub capacity: Option<i32>,
    /// Containers that this replica starts at once on each host; 0: one for each core here. More only makes each start slower.
    #[arg(long, env = "SUNDOWN_STARTS", value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=256))]
    pub starts: u16,
    /// How long a start is leased, at least 13s. Shorter takes over sooner from a dead replica; too short takes over from a slow one.
    #[arg(long, env = "SUNDOWN_LEASE", value_name = "DURATION", default_value = "15s", value_parser = lease)]
    pub lease: Span,
    /// Leave every SIGKILL to the Docker daemon, instead of sending it to processes on this machine directly. The daemon takes tens of
    /// milliseconds, and seconds when many are due at once.
    #[arg(long, env = "SUNDOWN_NO_FAST_KILL", value_parser = clap::builder::FalseyValueParser::new())]
    pub no_fast_kill: bool,
}

/// Settings of the whole installation, kept in the database; what is not given stays as it is.
#[derive(Args, Debug, Clone, Copy)]
pub struct Settings {
    /// Time to live of agents that name none [first: 1h].
    #[arg(long, env = "SUNDOWN_DEFAULT_TTL", value_name = "DURATION", value_parser = span::<1, 31_536_000>)]
    pub default_ttl: Option<Span>,
    /// The longest life of any agent, extensions included [first: 1d].
    #[arg(long, env = "SUNDOWN_MAX_TTL", value_name = "DURATION", value_parser = span::<1, 31_536_000>)]
    pub max_ttl: Option<Span>,
    /// How long outcomes and events are kept [first: 30d].
    #[arg(long, env = "SUNDOWN_RETENTION", value_name = "DURATION", value_parser = span::<3600, 315_360_000>)]
    pub retention: Option<Span>,
    /// How long the tails of logs are kept [first: 7d].
    #[arg(long, env = "SUNDOWN_LOG_RETENTION", value_name = "DURATION", value_parser = span::<3600, 315_360_000>)]
    pub log_retention: Option<Span>,
}

/// `sundown serve`.
#[derive(Args, Debug, Clone)]
pub struct Serve {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// The hosts.
    #[command(flatten)]
    pub docker: Docker,
    /// The installation.
    #[command(flatten)]
    pub settings: Settings,
    /// Address to serve the API on.
    #[arg(long, env = "SUNDOWN_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:7117")]
    pub listen: SocketAddr,
    /// The longest time between two looks at what is due when no wake-up arrives; while they do arrive, 2.5 times as long. Longer is
    /// later when notifications fail, shorter costs queries when idle.
    #[arg(long, env = "SUNDOWN_POLL", value_name = "DURATION", default_value = "1s", value_parser = poll)]
    pub poll: Span,
    /// How long work in hand may take to finish after SIGTERM; then its leases are returned.
    #[arg(long, env = "SUNDOWN_DRAIN", value_name = "DURATION", default_value = "20s", value_parser = span::<0, 3600>)]
    pub drain: Span,
    /// How long the database may be away before agents that are past their longest life are ended without it. Shorter leaves fewer of
    /// them to be ended in order when it is back.
    #[arg(long, env = "SUNDOWN_DEADMAN_GRACE", value_name = "DURATION", default_value = "30s", value_parser = span::<1, 86_400>)]
    pub deadman_grace: Span,
    /// Refuse to start on a database that is not migrated, instead of migrating it.
    #[arg(long, env = "SUNDOWN_NO_MIGRATE", value_parser = clap::builder::FalseyValueParser::new())]
    pub no_migrate: bool,
}

/// `sundown migrate`.
#[derive(Args, Debug, Clone)]
pub struct Migrate {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// The installation.
    #[command(flatten)]
    pub settings: Settings,
}

/// `sundown sweep`.
#[derive(Args, Debug, Clone)]
pub struct Sweep {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// The hosts.
    #[command(flatten)]
    pub docker: Docker,
    /// Go on until nothing is left to do: no agent waits, lives or has to be stopped.
    #[arg(long)]
    pub wait: bool,
}

/// `sundown deadman`.
#[derive(Args, Debug, Clone)]
pub struct Deadman {
    /// The hosts.
    #[command(flatten)]
    pub endpoints: Endpoints,
    /// How long an agent that is past its longest life is left to those who have a database.
    #[arg(long, env = "SUNDOWN_DEADMAN_GRACE", value_name = "DURATION", default_value = "30s", value_parser = span::<1, 86_400>)]
    pub grace: Span,
    /// Look after the agents of this installation only. Default: of every installation on these hosts.
    #[arg(long, env = "SUNDOWN_INSTALLATION", value_name = "UUID")]
    pub installation: Option<uuid::Uuid>,
    /// Look once, print counts as JSON, and exit: for cron.
    #[arg(long)]
    pub once: bool,
}

/// `sundown adopt`.
#[derive(Args, Debug, Clone)]
pub struct Adopt {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// As a new installation beside the original: its containers are left alone, and what this copy believed alive is ended.
    #[arg(long)]
    pub new: bool,
}

/// `sundown host`.
#[derive(Args, Debug, Clone)]
pub struct HostCommand {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// What to do.
    #[command(subcommand)]
    pub action: HostAction,
}

/// What to do with a host.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum HostAction {
    /// List hosts as JSON, one a line.
    Ls,
    /// Place no new agents there; those that it has live on.
    Cordon {
        /// Its number.
        id: i32,
    },
    /// Place agents there again.
    Uncordon {
        /// Its number.
        id: i32,
    },
    /// It is gone for good: its agents are lost and end as failed, host_lost.
    Forget {
        /// Its number.
        id: i32,
    },
}

/// `sundown doctor`.
#[derive(Args, Debug, Clone)]
pub struct Doctor {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// The hosts.
    #[command(flatten)]
    pub docker: Docker,
}

/// A duration, parsed and printed as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = agent::seconds(text)?;
        Duration::try_from_secs_f64(seconds).map(Self).map_err(|_negative| "a duration is not negative".to_owned())
    }
}

/// A duration within bounds, in seconds.
fn span<const MIN: u64, const MAX: u64>(text: &str) -> Result<Span, String> {
    let span: Span = text.parse()?;
    if span.0 < Duration::from_secs(MIN) || span.0 > Duration::from_secs(MAX) {
        return Err(format!("it must be between {MIN} s and {MAX} s"));
    }
    Ok(span)
}

/// The shortest lease of a start, in seconds. Calls begin in its first half, so the other one has to outlast a start that the daemon takes
/// its time for, and the write that says so: else another replica may start the agent once more.
const LEASE_MIN: u64 = 2 * docker::START.as_secs() + 1;

/// Tests take over from replicas that they have killed; they need not wait that long for it.
fn lease(text: &str) -> Result<Span, String> {
    lease_of(text, if cfg!(feature = "failpoints") { 1 } else { LEASE_MIN })
}

fn lease_of(text: &str, least: u64) -> Result<Span, String> {
    let span: Span = text.parse()?;
    if span.0 < Duration::from_secs(least) || span.0 > Duration::from_secs(3600) {
        return Err(format!("it must be between {least} s and 3600 s: with less, a slow daemon may be asked to start an agent twice"));
    }
    Ok(span)
}

fn poll(text: &str) -> Result<Span, String> {
    let span: Span = text.parse()?;
    if span.0 < Duration::from_millis(50) || span.0 > Duration::from_secs(3600) {
        return Err("it must be between 50 ms and 1 h".to_owned());
    }
    Ok(span)
}

fn log_filter(text: &str) -> Result<String, String> {
    let refused = |_| "write a level (error, warn, info, debug, trace), or levels of parts, as in sundown=debug".to_owned();
    tracing_subscriber::EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(refused)
}

/// An endpoint that can be one. Empty ones are left out later.
fn endpoint(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.starts_with('/') || ["unix://", "tcp://", "http://"].iter().any(|scheme| text.starts_with(scheme)) {
        return Ok(text.to_owned());
    }
    Err("it is not an endpoint of Docker; write unix:///path/to/socket or tcp://host:port".to_owned())
}

/// The parser's own error may quote the address, and with it the password.
fn database_url(text: &str) -> Result<tokio_postgres::Config, String> {
    const NO_TLS: &str =
        "it asks for TLS, which Sundown does not speak: leave out sslmode and channel_binding, and use a private network or a tunnel";
    if text.contains("sslmode=verify-") {
        return Err(NO_TLS.to_owned());
    }
    let config: tokio_postgres::Config = text.parse().map_err(|_| {
        "it is not an address of Postgres; write postgres://user:password@host:5432/database, percent-encoding what is special".to_owned()
    })?;
    if config.get_hosts().is_empty() {
        return Err("it names no host; write postgres://user:password@host:5432/database".to_owned());
    }
    if config.get_ssl_mode() == SslMode::Require || config.get_channel_binding() == ChannelBinding::Require {
        return Err(NO_TLS.to_owned());
    }
    Ok(config)
}

fn fallback_url() -> Option<String> {
    std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty())
}

impl Serve {
    /// With what was left to us filled in, so that it can be read.
    ///
    /// # Errors
    /// As [`Database::addresses`].
    pub fn effective(self) -> Result<Self, String> {
        Ok(Self { database: self.database.effective()?, docker: self.docker.effective(), ..self })
    }
}

impl Docker {
    /// With what was left to us filled in.
    #[must_use]
    pub fn effective(self) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, |cores| u16::try_from(cores.get()).unwrap_or(u16::MAX));
        Self { starts: if self.starts == 0 { cores } else { self.starts }, endpoints: self.endpoints.effective(), ..self }
    }
}

impl Database {
    fn effective(self) -> Result<Self, String> {
        Ok(match self.addresses()? {
            Some((pooled, direct)) => Self { database_url: Some(pooled), direct_url: Some(direct), fallback: None, data: None },
            None => Self { data: Some(self.data_dir()), ..self },
        })
    }

    /// The address for queries and the one for notifications and migrations; `None` without any.
    ///
    /// # Errors
    /// When `DATABASE_URL` is used and is not an address, or the only address is the direct one.
    pub fn addresses(&self) -> Result<Option<(tokio_postgres::Config, tokio_postgres::Config)>, String> {
        let fallback = match (&self.database_url, &self.fallback) {
            (None, Some(url)) => Some(database_url(url).map_err(|error| format!("DATABASE_URL: {error}"))?),
            _ => None,
        };
        let Some(pooled) = self.database_url.clone().or(fallback) else {
            // A private Postgres instead of the one that is meant would look like an empty installation.
            return match self.direct_url {
                Some(_) => {
                    Err("SUNDOWN_DIRECT_URL comes beside SUNDOWN_DATABASE_URL; set that, to the same address if there is only one"
                        .to_owned())
                }
                None => Ok(None),
            };
        };
        let direct = self.direct_url.clone().unwrap_or_else(|| pooled.clone());
        Ok(Some((tuned(pooled), tuned(direct))))
    }

    /// Where the private Postgres keeps its data.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        let home = || std::env::var_os("HOME").map(PathBuf::from);
        self.data.clone().unwrap_or_else(|| {
            if nix::unistd::geteuid().is_root() {
                return PathBuf::from("/var/lib/sundown");
            }
            let base = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".local/share")));
            base.unwrap_or_else(|| PathBuf::from(".")).join("sundown")
        })
    }
}

/// What every connection of ours has: a name to find it by, and bounds on silence.
#[must_use]
pub fn tuned(mut config: tokio_postgres::Config) -> tokio_postgres::Config {
    if config.get_application_name().is_none() {
        config.application_name("sundown");
    }
    // Of several addresses the first may be a machine that is gone: the others are tried within what a request may take.
    let addresses = u32::try_from(config.get_hosts().len()).unwrap_or(u32::MAX);
    config.connect_timeout(if addresses > 1 { Duration::from_secs(1) / addresses } else { Duration::from_secs(2) });
    config.tcp_user_timeout(Duration::from_secs(10));
    config.keepalives_idle(Duration::from_secs(15));
    config.keepalives_interval(Duration::from_secs(5));
    config
}

/// An address as it may be printed: without its password.
#[must_use]
pub fn printable(config: &tokio_postgres::Config) -> String {
    use tokio_postgres::config::Host;
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        })
        .collect();
    let ports: Vec<String> = config.get_ports().iter().map(u16::to_string).collect();
    format!("{}@{}:{}/{}", config.get_user().unwrap_or("?"), hosts.join(","), ports.join(","), config.get_dbname().unwrap_or("?"))
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("database_url", &self.database_url.as_ref().map(printable))
            .field("direct_url", &self.direct_url.as_ref().map(printable))
            .field("data", &self.data)
            .finish()
    }
}

impl Endpoints {
    /// With the default filled in.
    #[must_use]
    pub fn effective(self) -> Self {
        Self { docker: self.all() }
    }

    /// Each of them, once.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        let mut endpoints: Vec<String> = self.docker.iter().filter(|endpoint| !endpoint.is_empty()).cloned().collect();
        if endpoints.is_empty() {
            let default = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
            endpoints.push(default.unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned()));
        }
        let mut named = HashSet::new();
        endpoints.retain(|endpoint| named.insert(endpoint.clone()));
        endpoints
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_a_slow_start_outlasts_is_refused() {
        for short in ["0s", "2s", "12s", "12.9s"] {
            let refused = lease_of(short, LEASE_MIN).map_err(|error| error.contains("between 13 s and 3600 s"));
            assert_eq!(refused, Err(true), "{short}");
        }
        for enough in ["13s", "15s", "1h"] {
            assert!(lease_of(enough, LEASE_MIN).is_ok(), "{enough}");
        }
    }
}
