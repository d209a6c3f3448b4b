//! What goes wrong by itself, drawn from a seed.
//!
//! Each draw belongs to one call: the how-many-th of its kind for its container. So the same seed and the same calls meet the same
//! faults, however the calls of different containers are scheduled.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{Call, Fault};

/// How often a kind of call goes wrong, each as a share of its calls; together at most 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rates {
    /// It happens later, or its answer comes later: by up to `latency`.
    pub slow: f64,
    /// See `slow`.
    pub latency: Duration,
    /// As `slow`, but by up to `longest`: beyond a client's patience.
    pub hang: f64,
    /// See `hang`.
    pub longest: Duration,
    /// It does not happen: 500.
    pub refused: f64,
    /// It happens, and the answer is lost.
    pub lost: f64,
    /// It happens, and the answer is cut in half.
    pub truncated: f64,
    /// It does not happen, and the answer is an empty list. For lists.
    pub empty: f64,
    /// It does not happen, and the answer never comes to its end. For streams.
    pub silent: f64,
}

/// The weather over a daemon.
#[derive(Debug, Clone, PartialEq)]
pub struct Weather {
    seed: u64,
    rates: HashMap<Call, Rates>,
    named_by: Option<&'static str>,
    vanishing: f64,
    vanishing_within: Duration,
    lost_events: f64,
}

/// A fault that the weather brought about.
#[derive(Debug, Clone, PartialEq)]
pub struct Struck {
    /// When the call arrived.
    pub at: Instant,
    /// Its kind.
    pub call: Call,
    /// Whom the draw was for: the container's name, or its label (see [`Weather::named_by`]); empty: no container.
    pub whom: String,
    /// How many calls of its kind there were for the same before it.
    pub nth: u64,
    /// What happened to it.
    pub fault: Fault,
}

impl Weather {
    /// Nothing goes wrong yet.
    pub fn new(seed: u64) -> Weather {
        let (vanishing, lost_events, within) = (0.0, 0.0, Duration::ZERO);
        Weather { seed, rates: HashMap::new(), named_by: None, vanishing, vanishing_within: within, lost_events }
    }

    /// How often these calls go wrong.
    pub fn on(mut self, calls: &[Call], rates: Rates) -> Weather {
        let Rates { slow, hang, refused, lost, truncated, empty, silent, .. } = rates;
        let all = [slow, hang, refused, lost, truncated, empty, silent];
        assert!(all.iter().all(|rate| *rate >= 0.0) && all.iter().sum::<f64>() <= 1.0, "rates are shares of a whole: {rates:?}");
        self.rates.extend(calls.iter().map(|call| (*call, rates)));
        self
    }

    /// Such a share of lives is cut short, at some time within their first so long, and the container is gone.
    pub fn vanishing(mut self, share: f64, within: Duration) -> Weather {
        (self.vanishing, self.vanishing_within) = (share, within);
        self
    }

    /// Such a share of events never comes, to any subscriber.
    pub fn losing_events(mut self, share: f64) -> Weather {
        self.lost_events = share;
        self
    }

    /// Draws for what this label of a container says, not for its name: a database mints other names in each run.
    pub fn named_by(mut self, label: &'static str) -> Weather {
        self.named_by = Some(label);
        self
    }

    /// What becomes of a call, if anything: the `nth` (from 0) of its kind for the same container.
    pub fn strike(&self, call: Call, whom: &str, nth: u64) -> Option<Fault> {
        let rates = self.rates.get(&call)?;
        let mut drawn = self.draw(&format!("{call:?}"), whom, nth);
        let (share, before, how_long) = (drawn.random::<f64>(), drawn.random::<bool>(), drawn.random::<f64>());
        let delayed = |at_most: Duration| {
            let delay = at_most.mul_f64(how_long);
            if before { Fault::Slow(delay) } else { Fault::Late(delay) }
        };
        let faults = [
            (rates.slow, delayed(rates.latency)),
            (rates.hang, delayed(rates.longest)),
            (rates.refused, Fault::Status(500, "the weather is bad")),
            (rates.lost, Fault::LostResponse),
            (rates.truncated, Fault::Truncated),
            (rates.empty, Fault::Empty),
            (rates.silent, Fault::Silent),
        ];
        let mut below = 0.0;
        faults.into_iter().find_map(|(rate, fault)| {
            below += rate;
            (share < below).then_some(fault)
        })
    }

    /// After how long a life (the `nth` of its container) is cut short, if it is.
    pub(super) fn cuts_short(&self, whom: &str, nth: u64) -> Option<Duration> {
        let mut drawn = self.draw("life", whom, nth);
        (drawn.random::<f64>() < self.vanishing).then(|| self.vanishing_within.mul_f64(drawn.random()))
    }

    /// Whether an event (the `nth` of its container) is lost.
    pub(super) fn loses_event(&self, whom: &str, nth: u64) -> bool {
        self.lost_events > 0.0 && self.draw("event", whom, nth).random::<f64>() < self.lost_events
    }

    pub(super) fn whom<'a>(&self, name: &'a str, labels: &'a BTreeMap<String, String>) -> &'a str {
        self.named_by.and_then(|label| labels.get(label)).map_or(name, String::as_str)
    }

    /// The stream of one draw.
    fn draw(&self, what: &str, whom: &str, nth: u64) -> ChaCha8Rng {
        let mut key = Sha256::new();
        key.update(self.seed.to_le_bytes());
        key.update([what, whom].join("\0"));
        let mut stream = ChaCha8Rng::from_seed(key.finalize().into());
        stream.set_stream(nth);
        stream
    }
}
