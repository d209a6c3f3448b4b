//! What `scripts/bench` runs: Sundown beside its yardsticks, in turn, on the Postgres that the script made for it.
//!
//! Replicas are the release binary, as processes of their own. What they are measured with (clients, and the small Docker daemon of the
//! tests) lives in this process and shares the machine's cores with them. It must not change what it measures: nothing here is told to
//! the product but what its own settings say.
//!
//! Rooms: `idle`, `door`, `deadlines`, `lives`, `docker` each measure some rows; `row` is one of them and its goal; `machine` is what it
//! was measured on; `world` is what is measured; `pgbench`, `clients` and `process` measure, and `load` is what many clients came to.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on says where, and its rows are missing")]

#[path = "bench/clients.rs"]
mod clients;
#[path = "bench/deadlines.rs"]
mod deadlines;
#[path = "bench/docker.rs"]
mod docker;
#[path = "bench/door.rs"]
mod door;
#[path = "../tests/fake_docker/mod.rs"]
mod fake_docker;
#[path = "../tests/harness/mod.rs"]
mod harness;
#[path = "bench/idle.rs"]
mod idle;
#[path = "bench/lives.rs"]
mod lives;
#[path = "bench/load.rs"]
mod load;
#[path = "bench/machine.rs"]
mod machine;
#[path = "bench/pgbench.rs"]
mod pgbench;
#[path = "bench/process.rs"]
mod process;
#[path = "bench/row.rs"]
mod row;
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

/// Measures Sundown beside its yardsticks. Run it by scripts/bench.
#[derive(Parser)]
struct Args {
    /// Fewer and shorter rounds: a few minutes in all.
    #[arg(long)]
    quick: bool,
    /// Where to write the rows as JSON, too.
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Only one group of rows: idle, door, deadlines, lives or docker.
    #[arg(long, value_name = "GROUP")]
    only: Option<String>,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Scale {
    quick: bool,
}

impl Scale {
    fn pick<T>(self, quick: T, whole: T) -> T {
        if self.quick { quick } else { whole }
    }
}

type Measure = fn(Scale) -> LocalBoxFuture<'static, Vec<Row>>;

/// In this order, so that what is idle is measured first.
const GROUPS: [(&str, Measure); 5] = [
    ("idle", |scale| idle::rows(scale).boxed_local()),
    ("door", |scale| door::rows(scale).boxed_local()),
    ("deadlines", |scale| deadlines::rows(scale).boxed_local()),
    ("lives", |scale| lives::rows(scale).boxed_local()),
    ("docker", |scale| docker::rows(scale).boxed_local()),
];

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let wanted = |group: &str| args.only.as_ref().is_none_or(|only| only == group);
    if !GROUPS.iter().any(|(group, _)| wanted(group)) {
        eprintln!("there is no such group of rows");
        return ExitCode::from(64);
    }
    let began = Instant::now();
    let mut machine = Machine::look().await;
    println!("{machine}");
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for (group, measure) in GROUPS.into_iter().filter(|(group, _)| wanted(group)) {
        eprintln!("measuring: {group}, from second {} on", began.elapsed().as_secs());
        match AssertUnwindSafe(measure(Scale { quick: args.quick })).catch_unwind().await {
            Ok(measured) => {
                measured.iter().for_each(|row| eprintln!("  {row}"));
                rows.extend(measured);
            }
            Err(_said_already) => failed.push(group),
        }
        machine.look_again().await;
    }
    let took = began.elapsed().as_secs();
    println!("\n{}\n{}; measured in {took} s", row::table(&rows), machine.noise());
    let rows: Vec<_> = rows.iter().map(Row::json).collect();
    if let Some(path) = &args.json {
        let all = json!({"machine": machine.json(), "quick": args.quick, "seconds": took, "rows": rows, "failed": failed});
        std::fs::write(path, format!("{all:#}\n")).unwrap();
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("NOT MEASURED, for it failed (see above): {}", failed.join(", "));
    ExitCode::FAILURE
}
