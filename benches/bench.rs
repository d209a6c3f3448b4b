//! What `scripts/bench` runs: Sundown beside its yardsticks, in turn, on the Postgres that the script made for it.
//!
//! Replicas are the release binary, as processes of their own. What they are measured with (clients, and the small Docker daemon of the
//! tests) lives in this process and shares the machine's cores with them. It must not change what it measures: nothing here is told to
//! the product but what its own settings say.
//!
//! Rooms: `idle`, `door`, `deadlines`, `lives`, `docker`, `history`, `peers` and `curves` each measure some rows or series; `row` is one
//! row and its goal, `series` one curve, `plot` draws those; `machine` is what it was measured on; `world` is what is measured;
//! `pgbench`, `clients` and `process` measure, and `load` is what many clients came to.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on says where, and its rows are missing")]

#[path = "bench/clients.rs"]
mod clients;
#[path = "bench/curves.rs"]
mod curves;
#[path = "bench/deadlines.rs"]
mod deadlines;
#[path = "bench/deaths.rs"]
mod deaths;
#[path = "bench/docker.rs"]
mod docker;
#[path = "bench/door.rs"]
mod door;
#[path = "../tests/fake_docker/mod.rs"]
mod fake_docker;
#[path = "../tests/harness/mod.rs"]
mod harness;
#[path = "bench/history.rs"]
mod history;
#[path = "bench/idle.rs"]
mod idle;
#[path = "bench/lives.rs"]
mod lives;
#[path = "bench/load.rs"]
mod load;
#[path = "bench/machine.rs"]
mod machine;
#[path = "bench/peers.rs"]
mod peers;
#[path = "bench/pgbench.rs"]
mod pgbench;
#[path = "bench/plot.rs"]
mod plot;
#[path = "bench/process.rs"]
mod process;
#[path = "bench/row.rs"]
mod row;
#[path = "bench/series.rs"]
mod series;
#[path = "bench/world.rs"]
mod world;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use serde_json::json;
use tokio::time::Instant;

use machine::Machine;
use row::Row;
use series::Series;

/// Measures Sundown beside its yardsticks. Run it by scripts/bench.
#[derive(Parser)]
struct Args {
    /// Fewer and shorter rounds, and only the groups that are cheap: under five minutes in all.
    #[arg(long)]
    quick: bool,
    /// Everything once, in the least sizes: shows that it runs. Its figures mean nothing.
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// Where to write the rows and series as JSON, too.
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// A directory to draw the series into, as SVG.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Only one group: idle, door, deadlines, lives, docker, history, peers or scale.
    #[arg(long, value_name = "GROUP")]
    only: Option<String>,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Scale {
    size: Size,
    /// Whether the peers are measured in this run, and beside them what is held against them.
    peers: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Size {
    Smoke,
    Quick,
    Whole,
}

impl Scale {
    fn pick<T>(self, smoke: T, quick: T, whole: T) -> T {
        match self.size {
            Size::Smoke => smoke,
            Size::Quick => quick,
            Size::Whole => whole,
        }
    }
}

/// What a group came to.
#[derive(Default)]
pub struct Measured {
    rows: Vec<Row>,
    series: Vec<Series>,
}

impl From<Vec<Row>> for Measured {
    fn from(rows: Vec<Row>) -> Self {
        Self { rows, ..Self::default() }
    }
}

struct Group {
    name: &'static str,
    /// Left out of a quick run, unless it is asked for by name.
    long: bool,
    measure: fn(Scale) -> LocalBoxFuture<'static, Measured>,
}

/// In this order, so that what is idle is measured first.
const GROUPS: [Group; 8] = [
    Group { name: "idle", long: false, measure: |scale| idle::rows(scale).map(Into::into).boxed_local() },
    Group { name: "door", long: false, measure: |scale| door::rows(scale).map(Into::into).boxed_local() },
    Group { name: "deadlines", long: false, measure: |scale| deadlines::measured(scale).boxed_local() },
    Group { name: "lives", long: false, measure: |scale| lives::rows(scale).map(Into::into).boxed_local() },
    Group { name: "docker", long: false, measure: |scale| docker::rows(scale).map(Into::into).boxed_local() },
    Group { name: "history", long: false, measure: |scale| history::measured(scale).boxed_local() },
    Group { name: "peers", long: true, measure: |scale| peers::rows(scale).map(Into::into).boxed_local() },
    Group { name: "scale", long: true, measure: |scale| curves::measured(scale).boxed_local() },
];

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let size = if args.smoke {
        Size::Smoke
    } else if args.quick {
        Size::Quick
    } else {
        Size::Whole
    };
    let wanted = |group: &Group| match &args.only {
        Some(only) => only == group.name,
        None => size != Size::Quick || !group.long,
    };
    let groups: Vec<Group> = GROUPS.into_iter().filter(|group| wanted(group)).collect();
    if groups.is_empty() {
        eprintln!("there is no such group of rows");
        return ExitCode::from(64);
    }
    let scale = Scale { size, peers: groups.iter().any(|group| group.name == "peers") && peers::any() };
    let began = Instant::now();
    let mut machine = Machine::look().await;
    println!("{machine}");
    let (mut all, mut failed) = (Measured::default(), Vec::new());
    for group in groups {
        eprintln!("measuring: {}, from second {} on", group.name, began.elapsed().as_secs());
        match AssertUnwindSafe((group.measure)(scale)).catch_unwind().await {
            Ok(measured) => {
                measured.rows.iter().for_each(|row| eprintln!("  {row}"));
                all.rows.extend(measured.rows);
                all.series.extend(measured.series);
            }
            Err(_said_already) => failed.push(group.name),
        }
        machine.look_again().await;
    }
    let took = began.elapsed().as_secs();
    println!("\n{}\n{}{}; measured in {took} s", row::table(&all.rows), series::table(&all.series), machine.noise());
    if size == Size::Smoke {
        println!("A smoke test: no figure of it means anything.");
    }
    if let Some(path) = &args.json {
        let json = json!({
            "machine": machine.json(), "quick": args.quick, "smoke": args.smoke, "seconds": took, "failed": failed,
            "rows": all.rows.iter().map(Row::json).collect::<Vec<_>>(),
            "series": all.series.iter().map(Series::json).collect::<Vec<_>>(),
        });
        std::fs::write(path, format!("{json:#}\n")).unwrap();
    }
    if let Some(dir) = &args.plots {
        plot::draw(dir, &all.series);
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("NOT MEASURED, for it failed (see above): {}", failed.join(", "));
    ExitCode::FAILURE
}
