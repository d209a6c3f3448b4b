//! What http counts, and the gauges that it asks the database for. No agent's id is ever a label.

use std::time::Duration;

use hyper::Method;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::sql::door::Gauges;

type Labels = [(&'static str, &'static str); 1];
type RequestLabels = Vec<(&'static str, String)>;

/// Counters and gauges of http.
#[derive(Clone)]
pub struct Meters {
    requests: Family<RequestLabels, Counter>,
    seconds: Family<Labels, Histogram, fn() -> Histogram>,
    agents: Family<Labels, Gauge>,
    overdue: Gauge,
    database: Gauge,
}

impl Meters {
    /// Makes them and registers each under its public name.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let meters = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0])),
            agents: Family::default(),
            overdue: Gauge::default(),
            database: Gauge::default(),
        };
        registry.register("sundown_http_requests", "Requests answered", meters.requests.clone());
        registry.register_with_unit("sundown_http_request", "Time from head to answer", Unit::Seconds, meters.seconds.clone());
        registry.register("sundown_agents", "Agents that have not ended, in the whole installation", meters.agents.clone());
        registry.register("sundown_overdue", "Agents that somebody should have looked at by now", meters.overdue.clone());
        registry.register("sundown_database_up", "1 when the database answered this scrape", meters.database.clone());
        meters
    }

    /// A request was answered.
    pub fn answered(&self, method: &Method, route: &'static str, status: u16, took: Duration) {
        // Methods are the client's invention: only those that we know are counted by name.
        let method = match *method {
            Method::GET | Method::HEAD | Method::POST | Method::DELETE | Method::PATCH | Method::OPTIONS => method.as_str(),
            _ => "other",
        };
        let labels = vec![("method", method.to_owned()), ("route", route.to_owned()), ("status", status.to_string())];
        self.requests.get_or_create(&labels).inc();
        self.seconds.get_or_create(&[("route", route)]).observe(took.as_secs_f64());
    }

    /// What the database said; `None`: nothing, and the gauges keep their last values.
    pub fn seen(&self, gauges: Option<Gauges>) {
        self.database.set(i64::from(gauges.is_some()));
        let Some(gauges) = gauges else { return };
        for (state, count) in [("pending", gauges.pending), ("running", gauges.running), ("terminating", gauges.terminating)] {
            self.agents.get_or_create(&[("state", state)]).set(count);
        }
        self.overdue.set(gauges.overdue);
    }
}
