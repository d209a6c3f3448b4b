//! What this replica counts, in Prometheus' terms. No agent's id is ever a label.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::replica::Killed;
use crate::sql::work::Late;

type Labels = [(&'static str, &'static str); 1];

/// From what one process on its own machine takes to what nobody should have to wait for, in seconds.
const LAGS: [f64; 14] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0];

/// How late ends were, by phase.
#[derive(Debug, Clone)]
struct Lags(Family<Labels, Histogram, fn() -> Histogram>);

impl Default for Lags {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(LAGS)))
    }
}

/// Counters of one replica.
#[derive(Debug, Default, Clone)]
pub struct Metrics {
    /// Agents placed on a host by this replica.
    pub placed: Counter,
    /// Containers that it saw running.
    pub started: Counter,
    /// Stop signals and SIGKILLs that it sent.
    pub signals: Counter,
    /// SIGKILLs that took effect or were passed on, by who sent them.
    kills: Family<Labels, Counter>,
    /// How late ends were that deadlines brought about.
    lags: Lags,
    /// Outcomes that it wrote.
    pub ended: Counter,
    /// Writes that found their lease lost.
    pub leases_lost: Counter,
    /// Orphaned containers that it removed.
    pub orphans: Counter,
    /// Agents past their longest life that it ended while the database was away.
    pub overdue: Counter,
    /// Calls to Docker that failed.
    pub docker_errors: Counter,
    /// Passes of a loop that the database cut short.
    pub database_errors: Counter,
    /// 1 while notifications reach it.
    pub listening: Gauge,
}

impl Metrics {
    /// SIGKILL was sent.
    pub fn killed(&self, by: Killed) {
        let by = match by {
            Killed::Directly => "pidfd",
            Killed::ByDaemon => "docker",
        };
        self.kills.get_or_create(&[("by", by)]).inc();
    }

    /// An outcome was written; `None`: of an agent that did not reach its deadline.
    pub fn late(&self, late: Option<Late>) {
        let Some(late) = late else { return };
        for (phase, seconds) in [("decision", Some(late.decision)), ("dead", late.dead), ("confirmed", Some(late.confirmed))] {
            if let Some(seconds) = seconds {
                self.lags.0.get_or_create(&[("phase", phase)]).observe(seconds);
            }
        }
    }

    /// Registers every counter under its public name.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("sundown_placed", "Agents placed on a host by this replica", self.placed.clone());
        registry.register("sundown_started", "Containers that this replica saw running", self.started.clone());
        registry.register("sundown_signals", "Stop signals and SIGKILLs that this replica sent", self.signals.clone());
        registry.register("sundown_kills", "SIGKILLs of this replica, by who sent them", self.kills.clone());
        registry.register("sundown_ended", "Outcomes that this replica wrote", self.ended.clone());
        registry.register_with_unit(
            "sundown_expiry_lag",
            "From deadlines to decision, death and Docker's word",
            Unit::Seconds,
            self.lags.0.clone(),
        );
        registry.register("sundown_leases_lost", "Writes that found their lease lost", self.leases_lost.clone());
        registry.register("sundown_orphans", "Orphaned containers that this replica removed", self.orphans.clone());
        registry.register(
            "sundown_deadman",
            "Agents past their longest life that this replica ended with the database away",
            self.overdue.clone(),
        );
        registry.register("sundown_docker_errors", "Calls to Docker that failed", self.docker_errors.clone());
        registry.register("sundown_database_errors", "Passes of a loop that the database cut short", self.database_errors.clone());
        registry.register("sundown_listening", "1 while notifications reach this replica", self.listening.clone());
    }
}
