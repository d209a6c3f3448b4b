//! Many deadlines within one second.

use super::record::{Crowd, Plan, Sky};
use super::{check, run};

async fn all_end_in_time(plan: Plan) {
    let dir = run::directory(&run::root(), plan.seed);
    run::run(&plan, &dir).await;
    let report = check::check(&dir);
    run::tell(&dir, &report);
    assert!(report.violations.is_empty(), "promises were broken; the run is in {}", dir.path().display());
    assert!(report.healthy >= 0.3, "only {:.0} % of the time was healthy", report.healthy * 100.0);
    assert_eq!(report.judged.0, report.agents, "all were held against their deadlines");
    let expired = report.ends.get("expired ttl_expired").copied();
    assert_eq!(expired, plan.crowd.map(|crowd| crowd.agents), "{:?}", report.ends);
    run::forget(&dir);
}

fn crowd(agents: usize, nobody: bool, sky: Option<Sky>) -> Plan {
    Plan { capacity: agents + 10, crowd: Some(Crowd { agents, nobody }), pooled: false, quiet: 600, ..run::plan(1, 1, sky) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: for scripts/chaos"]
async fn ten_thousand_deadlines_in_one_second_are_kept() {
    all_end_in_time(crowd(10_000, false, Some(Sky::Calm))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: for scripts/chaos"]
async fn two_hundred_deadlines_in_one_second_are_kept_on_a_real_daemon() {
    all_end_in_time(crowd(200, false, None)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: for scripts/chaos"]
async fn two_hundred_deadlines_that_nobody_kept_are_made_good_on_a_real_daemon() {
    all_end_in_time(crowd(200, true, None)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_deadlines_in_one_second_are_kept() {
    all_end_in_time(crowd(1000, false, Some(Sky::Calm))).await;
}
