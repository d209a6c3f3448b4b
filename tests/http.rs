//! Claims about the HTTP door, each on a real Postgres: what it accepts, what it refuses and how, and what it does when clients or
//! the database misbehave.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that meets the unexpected has failed")]

#[path = "http/away.rs"]
mod away;
#[path = "http/cli.rs"]
mod cli;
#[path = "http/door.rs"]
mod door;
#[path = "http/events.rs"]
mod events;
mod harness;
#[path = "http/logs.rs"]
mod logs;
#[path = "http/refusals.rs"]
mod refusals;
#[path = "http/server.rs"]
mod server;
#[path = "http/wire.rs"]
mod wire;
