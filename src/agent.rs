//! What users say about an agent: the body of a submission, and durations. Knows no SQL and no HTTP; bounds and names are judged by
//! `sundown.submit`, so that psql and HTTP are told the same, and only shapes are judged here.
//!
//! Guarantees: what parses can be sent to Postgres (no NUL, finite numbers).
use std::collections::BTreeMap;

/// What was asked for, as it came. Durations in seconds.
#[derive(Debug, Default)]
pub struct Submission {
    /// Name of the image.
    pub image: String,
    /// Arguments.
    pub command: Vec<String>,
    /// Seconds from running.
    pub ttl: Option<f64>,
    /// Seconds.
    pub max_ttl: Option<f64>,
    /// Seconds.
    pub grace: Option<f64>,
    /// For people.
    pub name: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Cores.
    pub cpus: Option<f64>,
    /// Bytes.
    pub memory: Option<i64>,
    /// Processes.
    pub pids: Option<i32>,
    /// none or bridge.
    pub network: Option<String>,
    /// RFC 3339.
    pub run_at: Option<String>,
    /// Seconds.
    pub start_timeout: Option<f64>,
    /// Seconds.
    pub queue_timeout: Option<f64>,
}

/// Seconds.
pub fn seconds(text: &str) -> Result<f64, String> {
    text.trim_end_matches('s').parse().map_err(|e: std::num::ParseFloatError| e.to_string())
}
