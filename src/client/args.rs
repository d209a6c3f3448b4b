//! What the verbs for agents take.

use clap::{Args, Subcommand};

use crate::agent;
use crate::config::Database;

/// Whom a verb asks, how it answers, and what it is about.
#[derive(Args, Debug)]
pub struct To<T: Args> {
    /// Address of a replica or of the load balancer before them. Without one the database is asked, by SQL; without that, http://127.0.0.1:7117.
    #[arg(long, env = "SUNDOWN_URL", value_name = "URL")]
    pub url: Option<String>,
    /// The database, for whoever has no URL.
    #[command(flatten)]
    pub database: Database,
    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
    /// What it is about.
    #[command(flatten)]
    pub what: T,
}

/// The verbs for agents. An agent is named by its id, the beginning or the end of it, or its name.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of it in a process")]
pub enum Verb {
    /// Submit an agent, and print its id.
    Submit(To<Submit>),
    /// List agents: those that live, or all.
    Ls(To<Ls>),
    /// Show agents, whole.
    Get(To<Named>),
    /// Print the output of an agent: of one that has ended, the last 64 KiB.
    Logs(To<Logs>),
    /// Wait until agents have ended. Exits 0 when all succeeded, 10 when one failed, 11 when one expired, 12 when the time was up.
    Wait(To<Wait>),
    /// Move an agent's deadline to that long from now.
    Extend(To<Extend>),
    /// End agents: a signal, their grace, SIGKILL.
    Rm(To<Rm>),
    /// Print what happens, as it happens.
    Events(To<Events>),
    /// Watch those that live, the soonest deadline first.
    Top(To<Everything>),
    /// Tell an agent's whole story.
    Why(To<One>),
    /// List the Docker hosts.
    Hosts(To<Everything>),
    /// List the replicas.
    Replicas(To<Everything>),
}

/// Nothing in particular.
#[derive(Args, Debug)]
pub struct Everything {}

/// One agent.
#[derive(Args, Debug)]
pub struct One {
    /// Which.
    #[arg(value_name = "AGENT")]
    pub agent: String,
}

/// Some agents.
#[derive(Args, Debug)]
pub struct Named {
    /// Which.
    #[arg(required = true, value_name = "AGENT")]
    pub agents: Vec<String>,
}

/// Which output.
#[derive(Args, Debug)]
pub struct Logs {
    /// Whose.
    #[arg(value_name = "AGENT")]
    pub agent: String,
    /// Go on until it has ended.
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last so many lines.
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u32>,
}

/// For whom to wait.
#[derive(Args, Debug)]
pub struct Wait {
    /// For which.
    #[arg(required = true, value_name = "AGENT")]
    pub agents: Vec<String>,
    /// How long at most, as in 90s.
    #[arg(long, value_name = "DURATION", value_parser = agent::seconds)]
    pub timeout: Option<f64>,
}

/// Which deadline to move.
#[derive(Args, Debug)]
pub struct Extend {
    /// Whose.
    #[arg(value_name = "AGENT")]
    pub agent: String,
    /// As in 10m.
    #[arg(value_name = "TTL")]
    pub ttl: String,
}

/// Whom to end.
#[derive(Args, Debug)]
pub struct Rm {
    /// Which.
    #[arg(value_name = "AGENT", required_unless_present = "labels")]
    pub agents: Vec<String>,
    /// All that carry this label, as key=value; those that carry all of them, if repeated.
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE", conflicts_with = "agents")]
    pub labels: Vec<String>,
    /// Only say how many carry the labels.
    #[arg(long, requires = "labels")]
    pub dry_run: bool,
}

/// Which events.
#[derive(Args, Debug)]
pub struct Events {
    /// To this agent only. Without --follow: everything that has happened to it.
    #[arg(value_name = "AGENT", required_unless_present = "follow")]
    pub agent: Option<String>,
    /// Go on for ever.
    #[arg(short, long)]
    pub follow: bool,
}

/// A submission.
#[derive(Args, Debug)]
pub struct Submit {
    /// The image; it must be on the hosts already.
    pub image: String,
    /// The command and its arguments; none: the image's own.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
    /// Time to live, from when it runs, as in 90s or 1h30m.
    #[arg(long)]
    pub ttl: Option<String>,
    /// The longest that extensions may make its life.
    #[arg(long)]
    pub max_ttl: Option<String>,
    /// Time between the stop signal and SIGKILL.
    #[arg(long)]
    pub grace: Option<String>,
    /// A name, for people.
    #[arg(long)]
    pub name: Option<String>,
    /// A label, as key=value; may be repeated.
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// A variable of its environment, as NAME=VALUE; may be repeated.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Cores.
    #[arg(long)]
    pub cpus: Option<f64>,
    /// Memory, as in 64m.
    #[arg(long)]
    pub memory: Option<String>,
    /// Processes.
    #[arg(long)]
    pub pids: Option<u32>,
    /// none or bridge.
    #[arg(long)]
    pub network: Option<String>,
    /// Not before this instant, as in 2026-12-24T18:00:00Z.
    #[arg(long)]
    pub run_at: Option<String>,
    /// Time that a start may take.
    #[arg(long)]
    pub start_timeout: Option<String>,
    /// Time that it may wait for a place.
    #[arg(long)]
    pub queue_timeout: Option<String>,
    /// The same key and agent again within a day are one agent.
    #[arg(long)]
    pub key: Option<String>,
}

/// Which to list.
#[derive(Args, Debug)]
pub struct Ls {
    /// Those that have ended, too.
    #[arg(short, long)]
    pub all: bool,
    /// Only those in this state.
    #[arg(long, value_parser = ["pending", "running", "terminating", "succeeded", "failed", "expired"], conflicts_with = "all")]
    pub state: Option<String>,
    /// Only those that carry this label, as key=value; may be repeated.
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// How many at most, newest first.
    #[arg(short = 'n', long, default_value_t = 100)]
    pub limit: usize,
    /// Only their ids.
    #[arg(short, long)]
    pub quiet: bool,
}
