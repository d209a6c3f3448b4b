//! Faults of the real things: Postgres, the Docker daemon and PgBouncer that a test starts for itself, breaks, and takes away again.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::disallowed_methods, reason = "clean-up runs outside of any runtime, and bounds are measured on the wire")]

#[path = "e2e_faults/database_clock.rs"]
mod database_clock;
#[path = "e2e_faults/deadman.rs"]
mod deadman;
#[path = "e2e_faults/disk_full.rs"]
mod disk_full;
#[path = "e2e_faults/docker_restart.rs"]
mod docker_restart;
#[path = "e2e_faults/embedded_default.rs"]
mod embedded_default;
mod fake_docker;
mod harness;
#[path = "e2e_faults/pooler.rs"]
mod pooler;
#[path = "e2e_faults/postgres_away.rs"]
mod postgres_away;
#[path = "e2e_faults/standby.rs"]
mod standby;
#[path = "e2e_faults/upgrade.rs"]
mod upgrade;
