//! Faults that need no daemon of their own: the built binary on the real Postgres of all tests, and at the other end of its Docker
//! socket a daemon that does wrong what it is told to do wrong.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "faults/coming_and_going.rs"]
mod coming_and_going;
#[path = "faults/configuration.rs"]
mod configuration;
#[path = "faults/deadman.rs"]
mod deadman;
#[path = "faults/docker_away.rs"]
mod docker_away;
mod fake_docker;
mod harness;
#[path = "faults/on_time.rs"]
mod on_time;
#[path = "faults/removals.rs"]
mod removals;
#[path = "faults/replicas_away.rs"]
mod replicas_away;
