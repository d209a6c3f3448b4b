//! A curve: one figure over another, for tables, JSON and plots.

use serde_json::{Value, json};

use crate::row::number;

/// How its points lie on the axis.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// To scale: over time.
    Line,
    /// One beside the other, whatever lies between: over sizes that grow tenfold.
    Steps,
    /// How many samples fall between this point and the next.
    Histogram,
}

pub struct Series {
    /// The plot that it belongs to, as the stem of a file.
    pub plot: &'static str,
    pub kind: Kind,
    /// What tells it from others of its plot.
    pub name: String,
    /// What it is drawn over, with its unit.
    pub over: &'static str,
    pub unit: &'static str,
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// How many samples there are in each of so many bins of such a width; what lies beyond the last is counted with it.
    pub fn histogram(name: String, samples: &[f64], width: f64, bins: usize) -> Self {
        let mut counts = vec![0.0; bins];
        for sample in samples {
            counts[((sample / width) as usize).min(bins - 1)] += 1.0;
        }
        let points = counts.into_iter().enumerate().map(|(bin, count)| (bin as f64 * width, count)).collect();
        Self { plot: "lateness", kind: Kind::Histogram, name, over: "lateness, ms; the last bar is all beyond", unit: "deadlines", points }
    }

    /// How often something happened in each second, given the instants as seconds. The last second is not whole, and left out.
    pub fn rate_over_time(plot: &'static str, name: String, instants: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let mut counts: Vec<f64> = Vec::new();
        for (at, count) in instants {
            let second = at.max(0.0) as usize;
            counts.resize(counts.len().max(second + 1), 0.0);
            counts[second] += count;
        }
        counts.pop();
        let points = counts.into_iter().enumerate().map(|(second, count)| (second as f64, count)).collect();
        Self { plot, kind: Kind::Line, name, over: "time, s", unit: "lives per s", points }
    }

    pub fn json(&self) -> Value {
        let (x, y): (Vec<f64>, Vec<f64>) = self.points.iter().copied().unzip();
        json!({"plot": self.plot, "name": self.name, "over": self.over, "x": x, "y": y, "unit": self.unit})
    }
}

/// A line for each, with at most a dozen of its points.
pub fn table(all: &[Series]) -> String {
    let mut table = String::new();
    for series in all {
        let step = series.points.len().div_ceil(12).max(1);
        let points = series.points.iter().step_by(step).map(|(x, y)| format!("{}: {}", short(*x), number(*y)));
        table += &format!(
            "{}, {} in {}, over {}\n    {}\n",
            series.plot,
            series.name,
            series.unit,
            series.over,
            points.collect::<Vec<_>>().join("  ")
        );
    }
    if !table.is_empty() {
        table.push('\n');
    }
    table
}

/// A round number as people write it: 0, 2.5, 10k, 1M.
pub fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        size if size >= 1e6 => (value / 1e6, "M"),
        size if size >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = format!("{value:.2}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}
