//! A row of the table: a figure of Sundown's, the same of its yardstick, the goal, and whether it is met.

use std::fmt;

use serde_json::{Value, json};

/// What several rounds came to, mostly their median, with the least and the most of them.
#[derive(Clone, Copy)]
pub struct Figure {
    pub value: f64,
    low: f64,
    high: f64,
}

impl Figure {
    /// Of what each round came to.
    pub fn of(rounds: &[f64]) -> Self {
        let extreme = |better: fn(f64, f64) -> f64| rounds.iter().copied().reduce(better).unwrap();
        Self { value: percentile(rounds, 0.5), low: extreme(f64::min), high: extreme(f64::max) }
    }

    /// A percentile of all samples together; the least and the most are those of single rounds.
    pub fn percentile(rounds: &[Vec<f64>], share: f64) -> Self {
        let each: Vec<f64> = rounds.iter().map(|round| percentile(round, share)).collect();
        Self { value: percentile(&rounds.concat(), share), ..Self::of(&each) }
    }

    /// Of something counted: what all rounds together came to.
    pub fn counted(together: f64, rounds: &[f64]) -> Self {
        Self { value: together, ..Self::of(rounds) }
    }

    /// A figure that does not vary.
    pub fn exactly(value: f64) -> Self {
        Self { value, low: value, high: value }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, low, high } = *self;
        if low == high { f.write_str(&number(value)) } else { write!(f, "{} ({}–{})", number(value), number(low), number(high)) }
    }
}

/// The smallest value that such a share of all is not above; of an even number of values the median lies between the middle two.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if share == 0.5 && sorted.len().is_multiple_of(2) {
        return f64::midpoint(sorted[middle - 1], sorted[middle]);
    }
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

pub fn number(value: f64) -> String {
    match value.abs() {
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// What is to be reached.
#[derive(Clone, Copy)]
pub enum Goal {
    /// Sundown's figure, whatever the yardstick's.
    AtMost(f64),
    /// Sundown's figure over the yardstick's, where more is better.
    RatioAtLeast(f64),
    /// The same, where less is better.
    RatioAtMost(f64),
    /// The yardstick's figure and so much more.
    AtMostBeyond(f64),
    /// So many times the yardstick's figure, and so much more.
    AtMostTimesAndBeyond(f64, f64),
    /// Nothing is wanted of it: it is shown beside the yardstick.
    Shown,
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {most}"),
            Self::RatioAtLeast(least) => write!(f, "≥ {least} ×"),
            Self::RatioAtMost(most) => write!(f, "≤ {most} ×"),
            Self::AtMostBeyond(more) => write!(f, "≤ yardstick + {more}"),
            Self::AtMostTimesAndBeyond(times, more) => write!(f, "≤ {times} × yardstick + {more:.1}"),
            Self::Shown => f.write_str("none"),
        }
    }
}

impl Goal {
    /// Whether it is reached. `None`: nothing is wanted.
    fn met(self, sundown: f64, yardstick: f64) -> Option<bool> {
        let ratio = sundown / yardstick;
        Some(match self {
            Self::AtMost(most) => sundown <= most,
            Self::RatioAtLeast(least) => ratio >= least,
            Self::RatioAtMost(most) => ratio <= most,
            Self::AtMostBeyond(more) => sundown <= yardstick + more,
            Self::AtMostTimesAndBeyond(times, more) => sundown <= times * yardstick + more,
            Self::Shown => return None,
        })
    }
}

/// What a figure is held against, too.
pub struct Second {
    pub yardstick: Figure,
    pub against: String,
    pub goal: Goal,
}

pub struct Row {
    pub name: &'static str,
    pub sundown: Figure,
    pub yardstick: Figure,
    /// What the yardstick is.
    pub against: &'static str,
    pub unit: &'static str,
    pub goal: Goal,
    pub second: Option<Second>,
    /// What else was seen.
    pub note: String,
}

impl Row {
    /// A figure that is held against a fixed limit, which is its only yardstick.
    pub fn limited(name: &'static str, sundown: Figure, unit: &'static str, limit: f64) -> Self {
        let (yardstick, goal) = (Figure::exactly(limit), Goal::AtMost(limit));
        Self { name, sundown, yardstick, against: "the limit itself", unit, goal, second: None, note: String::new() }
    }

    pub fn noted(self, note: String) -> Self {
        Self { note, ..self }
    }

    fn ratio(&self) -> f64 {
        self.sundown.value / self.yardstick.value
    }

    fn met(&self) -> Option<bool> {
        self.goal.met(self.sundown.value, self.yardstick.value)
    }

    pub fn json(&self) -> Value {
        let second = self.second.as_ref().map(|second| {
            let Second { yardstick, against, goal } = second;
            json!({
                "yardstick": yardstick.value, "yardstick_spread": [yardstick.low, yardstick.high], "against": against,
                "ratio": self.sundown.value / yardstick.value, "goal": goal.to_string(), "met": goal.met(self.sundown.value, yardstick.value),
            })
        });
        json!({
            "name": self.name, "sundown": self.sundown.value, "yardstick": self.yardstick.value, "unit": self.unit,
            "ratio": self.ratio(), "goal": self.goal.to_string(), "met": self.met(), "against": self.against,
            "sundown_spread": [self.sundown.low, self.sundown.high], "yardstick_spread": [self.yardstick.low, self.yardstick.high],
            "second": second, "note": self.note,
        })
    }

    fn cells(&self) -> [String; 7] {
        [
            self.name.to_owned(),
            self.sundown.to_string(),
            self.yardstick.to_string(),
            self.unit.to_owned(),
            format!("{:.2}", self.ratio()),
            self.goal.to_string(),
            said(self.met()),
        ]
    }

    /// What its second line says.
    fn second_cells(&self) -> Option<[String; 7]> {
        let Second { yardstick, goal, .. } = self.second.as_ref()?;
        let ratio = format!("{:.2}", self.sundown.value / yardstick.value);
        let met = said(goal.met(self.sundown.value, yardstick.value));
        Some(["  and".to_owned(), String::new(), yardstick.to_string(), self.unit.to_owned(), ratio, goal.to_string(), met])
    }
}

fn said(met: Option<bool>) -> String {
    match met {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "",
    }
    .to_owned()
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cells().join(" | "))
    }
}

/// All of them, one below the other, with what each was held against and what else was seen.
pub fn table(rows: &[Row]) -> String {
    let head = ["", "Sundown", "yardstick", "unit", "ratio", "goal", "met"].map(str::to_owned);
    let mut lines: Vec<([String; 7], String)> = vec![(head, String::new())];
    for row in rows {
        let note = if row.note.is_empty() { "" } else { "; " };
        lines.push((row.cells(), format!("    against {}{note}{}\n", row.against, row.note)));
        if let Some((cells, second)) = row.second_cells().zip(row.second.as_ref()) {
            lines.push((cells, format!("    against {}\n", second.against)));
        }
    }
    let width = |column: usize| lines.iter().map(|(cells, _)| cells[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    let mut table = String::new();
    for (cells, below) in &lines {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        table += &format!("{}\n{below}", padded.join("  ").trim_end());
    }
    table
}
