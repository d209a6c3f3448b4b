//! Sundown runs short-lived agents, one container each, and guarantees that each one ends, on time and exactly once.
//!
//! Rooms, in the order of the flow: [`http`] writes a wish through [`sql`]; [`listen`] wakes the [`launcher`] and the [`sweeper`],
//! which claim what is due and tell [`docker`]; the [`keeper`] sees what became of it; the outcome goes back through [`sql`], by the
//! three steps of [`finish`]. [`reconcile`] decides, the others act. With Postgres away, the [`deadman`] ends what no deadline allows.
//!
//! ```text
//!  curl ──► http ──► sql ──► Postgres ◄── psql, the user's own transaction
//!           listen ─ wakes ─►  │
//!           launcher ◄─ claim ─┤  docker ──► create, start
//!           sweeper  ◄─ claim ─┤  docker ──► signal, kill
//!           keeper   ─ facts ─►│  docker ◄── list, events
//! ```
//!
//! Invariants: Postgres is the only state and the only clock that decides (but for the dead man); facts reach http only through a row; http never calls
//! Docker but to stream a log; no transaction is open across a Docker call; nothing runs between http and the loops but a wake-up.

pub mod client;
pub mod config;

pub mod http;
pub mod sql;

pub mod listen;
pub mod notifier;
pub mod wake;

pub mod launcher;
pub mod sweeper;

pub mod docker;
pub mod keeper;

pub mod finish;
pub mod reconcile;

pub mod deadman;
pub mod doctor;
pub mod sweep;

pub mod agent;
pub mod embedded;
pub mod error;
pub mod failpoint;
pub mod inits;
pub mod metrics;
pub mod migrate;
pub mod process;
pub mod replica;
pub mod upkeep;

mod serve;
pub mod service;

pub use serve::{Fatal, installation, run};
