//! The machine that tries to break the promises: clients, faults and an observer beside three real replicas, a real Postgres and a real
//! Docker daemon; and a judge who reads what they wrote down.
//!
//! `scripts/chaos --seed N --minutes M` runs it. Its directory can be judged again (`scripts/chaos --check DIR`) and its plan run again
//! (`scripts/chaos --replay DIR`).
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(dead_code, reason = "what other tests use of the shared parts")]

#[path = "chaos/check.rs"]
mod check;
#[path = "chaos/crowd.rs"]
mod crowd;
#[path = "chaos/daemon.rs"]
mod daemon;
#[path = "chaos/defects.rs"]
mod defects;
mod fake_docker;
#[path = "chaos/fleet.rs"]
mod fleet;
mod harness;
#[path = "chaos/load.rs"]
mod load;
#[path = "chaos/nemesis.rs"]
mod nemesis;
#[path = "chaos/observe.rs"]
mod observe;
#[path = "chaos/record.rs"]
mod record;
#[path = "chaos/recovery.rs"]
mod recovery;
#[path = "chaos/run.rs"]
mod run;
#[path = "chaos/world.rs"]
mod world;

use std::path::PathBuf;

use record::Dir;

/// A number that the caller may set.
fn setting<T: std::str::FromStr>(name: &str, otherwise: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// The same for a minute and a half, each time that all tests run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ninety_seconds_of_faults_break_no_promise_on_a_real_daemon() {
    let plan = run::plan(1, 90, None);
    let dir = run::directory(&run::root(), plan.seed);
    run::run(&plan, &dir).await;
    let report = check::check(&dir);
    run::tell(&dir, &report);
    assert!(report.violations.is_empty(), "promises were broken; the run is in {}", dir.path().display());
    run::counts(&report);
    run::forget(&dir);
}

/// Runs for `SUNDOWN_CHAOS_MINUTES` (default: 2), in worlds of at most ten minutes each, from `SUNDOWN_CHAOS_SEED` on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: for scripts/chaos"]
async fn nothing_is_lost_nothing_runs_twice_and_nothing_outlives_its_deadline() {
    let seed: u64 = setting("SUNDOWN_CHAOS_SEED", 1);
    let minutes: f64 = setting("SUNDOWN_CHAOS_MINUTES", 2.0);
    let sky = (setting("SUNDOWN_CHAOS_DAEMON", "real".to_owned()) == "small").then_some(record::Sky::Rough);
    let mut left = minutes * 60.0;
    let mut number = 0;
    let mut reports = Vec::new();
    while left > 1.0 {
        let seconds = left.min(600.0);
        left -= seconds;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 600")]
        let plan = run::plan(seed + number, seconds as u64, sky);
        number += 1;
        let dir = run::directory(&run::root(), plan.seed);
        run::run(&plan, &dir).await;
        let report = check::check(&dir);
        run::tell(&dir, &report);
        assert!(report.violations.is_empty(), "seed {}: promises were broken; the run is in {}", plan.seed, dir.path().display());
        run::counts(&report);
        run::forget(&dir);
        reports.push(report);
    }
    run::tell_all(&reports);
}

/// Judges the run in `SUNDOWN_CHAOS_DIR` once more.
#[test]
#[ignore = "for scripts/chaos --check"]
fn judged_again() {
    let dir = Dir(PathBuf::from(std::env::var_os("SUNDOWN_CHAOS_DIR").expect("SUNDOWN_CHAOS_DIR names the directory of a run")));
    let report = check::check(&dir);
    run::tell(&dir, &report);
    assert!(report.violations.is_empty(), "promises were broken");
}

/// Does once more what the plan in `SUNDOWN_CHAOS_DIR` says: the same clients, the same faults; what the machine does meanwhile differs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "for scripts/chaos --replay"]
async fn replayed() {
    let old = Dir(PathBuf::from(std::env::var_os("SUNDOWN_CHAOS_DIR").expect("SUNDOWN_CHAOS_DIR names the directory of a run")));
    let plan: record::Plan = old.load("plan.json");
    let dir = run::directory(&old.path().join("again"), plan.seed);
    run::run(&plan, &dir).await;
    let report = check::check(&dir);
    run::tell(&dir, &report);
    assert!(report.violations.is_empty(), "promises were broken");
}
