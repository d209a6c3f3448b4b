//! What many clients came to, once all of them were warm.

use std::collections::HashMap;

/// What each client does before it counts: a new session of Postgres first reads the catalogue, and compiles what it calls.
const WARM: usize = 5;

/// One answer.
#[derive(Clone, Copy)]
pub struct Sample {
    pub client: usize,
    /// When it came, in seconds since whenever.
    pub at: f64,
    /// How long it took, in milliseconds.
    pub took: f64,
}

pub struct Load {
    /// Answers per second.
    pub rate: f64,
    /// Of each answer, in milliseconds.
    pub latencies: Vec<f64>,
}

impl Load {
    /// From the moment on at which the last client is warm.
    pub fn of(mut samples: Vec<Sample>) -> Self {
        samples.sort_by(|a, b| a.at.total_cmp(&b.at));
        let mut counts: HashMap<usize, usize> = HashMap::new();
        let mut warm = 0.0;
        for sample in &samples {
            let count = counts.entry(sample.client).or_default();
            *count += 1;
            if *count == WARM {
                warm = sample.at;
            }
        }
        assert!(counts.values().all(|count| *count > WARM), "a client has hardly begun");
        let latencies: Vec<f64> = samples.iter().filter(|sample| sample.at > warm).map(|sample| sample.took).collect();
        let span = samples.last().map_or(0.0, |last| last.at - warm);
        Self { rate: latencies.len() as f64 / span, latencies }
    }
}
