//! Whether the judge would see anything: the code is broken on purpose, in one way at a time, and each must be caught; and the same runs with
//! the code as it is must pass.
//!
//! On the small daemon, some seconds each. A run is made for the defect: the faults and the sky under which it does its harm. What breaks
//! only in rare orders of steps is caught by the model (`tests/model.rs`), which takes each of its rules away once.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::check::{self, Report};
use super::record::{Dir, Kind, Plan, Sky};
use super::run;

/// Faults of the lane of replicas and of the lane of everything else.
fn under(replicas: &[&str], points: &[&str], ground: &[&str]) -> Plan {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    Plan {
        seconds: 8,
        rate: 8.0,
        at_once: 60,
        kinds: vec![Kind::Exits(0), Kind::Exits(7), Kind::Expires, Kind::Stubborn, Kind::Extended],
        capacity: 100,
        pooled: false,
        faults: vec![owned(replicas), owned(ground)],
        points: owned(points),
        calm: 1,
        quiet: 15,
        ..run::plan(1, 8, Some(Sky::Calm))
    }
}

/// Nothing goes wrong.
fn calm() -> Plan {
    under(&[], &[], &[])
}

/// Agents are ended on request, and a host carries few.
fn ended_by_hand() -> Plan {
    Plan { kinds: vec![Kind::Deleted], capacity: 3, rate: 4.0, by_sql: 0.0, quiet: 60, ..calm() }
}

/// A replica dies as soon as it has made a container.
fn killed_after_create() -> Plan {
    Plan { seconds: 12, ..under(&["kill at"], &["launch.created"], &[]) }
}

/// A replica dies as soon as it has started a container, which ends before anybody comes.
fn killed_after_start() -> Plan {
    Plan { seconds: 12, kinds: vec![Kind::Exits(0)], ..under(&["kill at"], &["launch.started"], &[]) }
}

/// A replica stands still before it makes a container, until others have made and removed it.
fn stopped_before_create() -> Plan {
    Plan { seconds: 18, still: 12_000, kinds: vec![Kind::Exits(0)], ..under(&["stop at"], &["launch.before_create"], &[]) }
}

/// The same, and then nothing goes wrong for as long as an orphan may be there.
fn orphaned() -> Plan {
    Plan { quiet: 45, ..stopped_before_create() }
}

/// A replica dies with its stop signal sent.
fn killed_after_signal() -> Plan {
    Plan { seconds: 12, kinds: vec![Kind::Expires], ..under(&["kill at"], &["stop.signalled"], &[]) }
}

/// A replica's clock is an hour ahead.
fn wrong_clock() -> Plan {
    Plan { kinds: vec![Kind::Expires, Kind::Extended], ..under(&["clock ahead"], &[], &[]) }
}

/// Postgres dies on the spot, again and again.
fn postgres_dies() -> Plan {
    Plan { seconds: 20, rate: 30.0, kinds: vec![Kind::Exits(0)], ..under(&[], &[], &["postmaster killed"]) }
}

/// Notifications reach nobody, and nobody comes through a replica.
fn nobody_hears() -> Plan {
    Plan { pooled: true, by_sql: 1.0, rate: 5.0, quiet: 25, ..calm() }
}

/// Lists that are empty.
fn empty_lists() -> Plan {
    Plan { sky: Some(Sky::EmptyLists), seconds: 12, ..calm() }
}

/// Lists that are late.
fn slow_lists() -> Plan {
    Plan { sky: Some(Sky::SlowLists), seconds: 16, ..calm() }
}

/// No event ever comes.
fn no_events() -> Plan {
    Plan { sky: Some(Sky::NoEvents), kinds: vec![Kind::Exits(0), Kind::Exits(7)], quiet: 30, ..calm() }
}

/// Kills that hang.
fn hanging_kills() -> Plan {
    Plan { sky: Some(Sky::HangingKills), kinds: vec![Kind::Expires], rate: 12.0, seconds: 12, ..calm() }
}

/// One run; its directory goes, unless something about it is not as it should be.
async fn tried(plan: Plan, as_it_should_be: impl Fn(&Report) -> bool) {
    let root = std::env::temp_dir().join("sundown-defects");
    let dir = run::directory(&root.join(plan.defect.as_deref().unwrap_or("none")), plan.seed);
    run::run(&plan, &dir).await;
    let report = check::check(&dir);
    run::tell(&dir, &report);
    let defect = plan.defect.as_deref().unwrap_or("no defect");
    assert!(as_it_should_be(&report), "{defect}: {:?}; the run is in {}", report.violations, dir.path().display());
    assert!(report.agents >= 15, "{defect}: only {} agents", report.agents);
    forget(&dir);
}

fn forget(dir: &Dir) {
    let _gone = fs::remove_dir_all(dir.path());
}

/// For each defect a test that it is caught, as a breach of that promise, in a run after that plan; for each plan one that the code as it is
/// breaks nothing in such a run, for `scripts/chaos --sound`.
macro_rules! caught {
    ($($plan:ident: $($defect:ident breaks $promise:literal)*;)*) => {
        /// Name, plan, promise.
        const DEFECTS: &[(&str, &str, &str)] = &[$($((stringify!($defect), stringify!($plan), $promise)),*),*];

        mod caught {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $defect() {
                    let plan = super::Plan { defect: Some(stringify!($defect).to_owned()), ..super::$plan() };
                    super::tried(plan, |report| report.violations.iter().any(|violation| violation.promise == $promise)).await;
                }
            )*)*
        }

        mod sound {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[ignore = "takes minutes: for scripts/chaos"]
                async fn $plan() {
                    super::tried(super::$plan(), |report| report.violations.is_empty()).await;
                }
            )*
        }
    };
}

caught! {
    calm: end_before_death breaks "S12" timer_in_memory breaks "S7" no_grace breaks "S7" no_key breaks "S2" foreign_reaper breaks "S9";
    ended_by_hand: delete_unwritten breaks "S13" no_capacity breaks "S17";
    killed_after_create: no_adoption breaks "S11" lease_for_ever breaks "L6" blind_rescue breaks "S11";
    killed_after_start: no_look breaks "S6";
    stopped_before_create: record_after_start breaks "S6";
    orphaned: no_reaper breaks "L5";
    killed_after_signal: signal_before_intent breaks "S11";
    wrong_clock: local_clock breaks "S7";
    postgres_dies: unflushed breaks "S1";
    nobody_hears: no_polling breaks "L2";
    empty_lists: absence_is_death breaks "S12";
    slow_lists: hasty_reaper breaks "S8";
    no_events: events_only breaks "L1";
    hanging_kills: one_lane breaks "L3";
}

/// Code that is not broken, where most of what the plans bring goes wrong at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sound_code_passes_where_everything_goes_wrong() {
    tried(run::plan(3, 60, Some(Sky::Rough)), |report| report.violations.is_empty()).await;
}

/// Each defect stands in the documentation, with what caught it; and each that the code can be told to have is caught.
#[test]
fn every_defect_stands_in_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/guarantees.md")).unwrap();
    let row = |defect: &str| page.lines().find(|line| line.starts_with(&format!("| `{defect}`"))).map(str::to_owned);
    for (defect, plan, promise) in DEFECTS {
        let row = row(defect).unwrap_or_else(|| panic!("{defect} is missing"));
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells[3..5], [format!("`{plan}`").as_str(), promise], "{defect}");
    }
    let mut sources = vec![root.join("src")];
    let mut broken = BTreeSet::new();
    while let Some(path) = sources.pop() {
        if path.is_dir() {
            sources.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let text = fs::read_to_string(path).unwrap();
            broken.extend(text.split("broken(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
        }
    }
    assert_eq!(broken, DEFECTS.iter().map(|(defect, ..)| (*defect).to_owned()).collect());
}
