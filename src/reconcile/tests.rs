//! Every combination of a row and of what Docker may show keeps the promises; and a table of the main cases, to read.

use std::time::Duration;

use uuid::Uuid;

use super::{Action, Seen, reconcile};
use crate::docker::{Container, Status};
use crate::sql::work::{Claim, Facts};

const STATUSES: [Status; 7] =
    [Status::Created, Status::Running, Status::Paused, Status::Restarting, Status::Exited, Status::Dead, Status::Removing];

fn row(state: &str) -> Claim {
    Claim {
        id: Uuid::nil(),
        epoch: 1,
        host: 1,
        state: state.to_owned(),
        container_id: None,
        attempts: 1,
        started: state == "running",
        signalled: false,
        killed: false,
        observed: false,
        grace: Duration::from_secs(10),
        lease: Duration::ZERO,
        start_timed_out: false,
        grace_over: false,
    }
}

fn container(id: &str, status: Status) -> Container {
    Container {
        id: id.to_owned(),
        name: "sundown-00000000-0000-0000-0000-000000000000".to_owned(),
        ours: true,
        overdue: false,
        agent: Some(Uuid::nil()),
        status,
        ever_started: status != Status::Created,
        pid: None,
        exit_code: None,
        oom_killed: false,
        error: String::new(),
        started_at: None,
        finished_at: None,
    }
}

fn ours(status: Status, exit_code: Option<i64>) -> Seen {
    Seen::of(Some(Container { exit_code, ..container("ours", status) }))
}

/// Every row that the database could hand out, and some that it could not.
fn rows() -> Vec<Claim> {
    let mut rows = Vec::new();
    for state in ["pending", "running", "terminating"] {
        for bits in 0..64_u8 {
            let bit = |n: u8| bits & (1 << n) != 0;
            rows.push(Claim {
                container_id: bit(0).then(|| "ours".to_owned()),
                started: bit(1),
                signalled: bit(2),
                killed: bit(3),
                observed: bit(4),
                start_timed_out: bit(5),
                ..row(state)
            });
        }
    }
    rows
}

fn sights() -> Vec<Seen> {
    let mut sights = vec![Seen::of(None)];
    for status in STATUSES {
        sights.push(Seen::of(Some(Container { ours: false, ..container("theirs", status) })));
        for ever_started in [false, true] {
            for exit_code in [None, Some(0), Some(3), Some(137)] {
                for (oom_killed, overdue) in [(false, false), (false, true), (true, false), (true, true)] {
                    sights.push(Seen::of(Some(Container { ever_started, exit_code, oom_killed, overdue, ..container("ours", status) })));
                }
            }
        }
    }
    sights
}

/// The container that an action touches.
fn touched(action: &Action) -> Option<&str> {
    match action {
        Action::Create | Action::Rest => None,
        Action::Record(id) | Action::Start(id) | Action::Running(id) | Action::RanAlready(id) | Action::Signal(id) | Action::Kill(id) => {
            Some(id)
        }
        Action::End(_, id) | Action::Finish(id) => id.as_deref(),
    }
}

/// Whether the database would take these facts as an end: its constraint says the same.
fn honest(facts: &Facts) -> bool {
    match (facts.state, facts.reason) {
        ("succeeded", Some("exited")) => facts.exit_code == Some(0),
        ("failed", Some("exited")) => facts.exit_code.is_some_and(|code| code != 0),
        ("failed", Some(reason)) => !matches!(reason, "terminated" | "ttl_expired" | "queue_timeout"),
        ("expired", None) => true,
        _ => false,
    }
}

#[test]
fn every_combination_keeps_the_promises() {
    let mut combinations = 0;
    for row in rows() {
        for seen in sights() {
            combinations += 1;
            let action = reconcile(&row, &seen);
            let case = format!("{row:?}, {seen:?}: {action:?}");
            let mine = match &seen {
                Seen::Ours(container) => Some(container),
                Seen::Gone | Seen::Foreign => None,
            };
            let has_ended = mine.is_some_and(|c| matches!(c.status, Status::Exited | Status::Dead | Status::Removing));
            let dead_man = mine.is_some_and(|c| c.overdue);
            let (pending, terminating) = (row.state == "pending", row.state == "terminating");

            assert!(touched(&action).is_none_or(|id| mine.is_some_and(|c| c.id == id)), "touches only what is ours, {case}");
            assert_eq!(matches!(action, Action::Finish(_)), row.observed, "an end that was seen is only finished, {case}");
            match &action {
                Action::Create => {
                    assert!(pending && seen == Seen::Gone, "{case}");
                    assert!(row.container_id.is_none(), "never a second container, {case}");
                    assert!(!row.start_timed_out, "{case}");
                }
                Action::Start(_) => {
                    assert!(pending && mine.is_some_and(|c| !c.ever_started), "nothing that ever ran is started, {case}");
                    assert!(row.container_id.is_some(), "recorded before it is started, {case}");
                    assert!(!row.start_timed_out && !has_ended, "{case}");
                }
                Action::Record(_) => assert!(pending && row.container_id.is_none(), "{case}"),
                Action::Running(_) | Action::RanAlready(_) => {
                    assert!(pending && row.container_id.is_some() && mine.is_some_and(|c| c.ever_started), "{case}");
                    assert_eq!(matches!(action, Action::RanAlready(_)), has_ended, "{case}");
                }
                Action::Signal(_) | Action::Kill(_) => {
                    assert!(terminating, "nothing is ended without a reason in its row, {case}");
                    assert!(!has_ended, "the dead are not signalled, {case}");
                    assert_eq!(matches!(action, Action::Kill(_)), row.killed, "SIGKILL needs its own intent, {case}");
                }
                Action::Rest => assert!(row.state == "running" && mine.is_some() && (!has_ended || dead_man), "{case}"),
                Action::End(facts, removed) => {
                    assert!(honest(facts), "the database would refuse it, {case}");
                    assert_eq!(removed.is_some(), mine.is_some(), "no container of ours is left behind, {case}");
                    assert!(mine.is_none_or(|c| has_ended || !c.ever_started), "what is alive has not ended, {case}");
                    assert!(!pending || mine.is_none_or(|c| !c.ever_started), "what ran is recorded as running first, {case}");
                    assert_eq!(facts.state == "expired", facts.reason.is_none(), "{case}");
                    assert!(facts.state != "expired" || terminating, "only what Sundown stops expires, {case}");
                    let killed = row.killed && mine.is_some_and(|c| c.exit_code.is_none_or(|code| code == 137));
                    if terminating && (row.signalled || killed || dead_man) {
                        assert_eq!(facts.state, "expired", "after our signal, or the dead man's, it was us, {case}");
                    } else if mine.is_some_and(|c| c.ever_started) {
                        assert_ne!(facts.state, "expired", "without it, it was not, {case}");
                    }
                    assert!(!dead_man || pending || facts.state == "expired", "whom the dead man ended has not failed, {case}");
                    if facts.exit_code.is_some() {
                        assert_eq!(facts.exit_code.map(i64::from), mine.and_then(|c| c.exit_code), "{case}");
                    }
                    if facts.state == "succeeded" {
                        assert!(has_ended && mine.is_some_and(|c| c.exit_code == Some(0)), "{case}");
                    }
                    if facts.reason == Some("oom_killed") {
                        assert!(mine.is_some_and(|c| c.oom_killed && c.exit_code != Some(0)), "{case}");
                    }
                }
                Action::Finish(_) => {}
            }
        }
    }
    assert_eq!(combinations, 3 * 64 * (1 + 7 + 7 * 32));
}

/// State, reason, exit code and the container to remove.
type End = (&'static str, Option<&'static str>, Option<i32>, Option<&'static str>);

fn end(action: Action) -> End {
    match action {
        Action::End(facts, container) => (facts.state, facts.reason, facts.exit_code, container.map(|_| "removed")),
        other => panic!("not an end: {other:?}"),
    }
}

fn id() -> String {
    "ours".to_owned()
}

#[test]
fn a_start_goes_from_nothing_to_running() {
    let recorded = Claim { container_id: Some(id()), ..row("pending") };
    let late = Claim { start_timed_out: true, ..row("pending") };
    let foreign = Seen::of(Some(Container { ours: false, ..container("theirs", Status::Running) }));
    let (created, running, exited) = (ours(Status::Created, None), ours(Status::Running, None), ours(Status::Exited, Some(0)));

    assert_eq!(reconcile(&row("pending"), &Seen::Gone), Action::Create);
    assert_eq!(reconcile(&row("pending"), &created), Action::Record(id()), "created by a replica that died before it said so");
    assert_eq!(reconcile(&row("pending"), &running), Action::Record(id()));
    assert_eq!(reconcile(&recorded, &created), Action::Start(id()));
    assert_eq!(reconcile(&recorded, &running), Action::Running(id()), "started by a replica that died before it said so");
    assert_eq!(reconcile(&recorded, &exited), Action::RanAlready(id()), "and never again");

    assert_eq!(end(reconcile(&row("pending"), &foreign)), ("failed", Some("name_conflict"), None, None));
    assert_eq!(end(reconcile(&late, &Seen::Gone)), ("failed", Some("start_timeout"), None, None));
    let late = Claim { start_timed_out: true, ..recorded.clone() };
    assert_eq!(end(reconcile(&late, &created)), ("failed", Some("start_timeout"), None, Some("removed")));
    assert_eq!(reconcile(&late, &running), Action::Running(id()), "late, but it runs: its deadline decides");
    assert_eq!(end(reconcile(&recorded, &Seen::Gone)), ("failed", Some("start_failed"), None, None));
}

#[test]
fn what_runs_ends_as_it_ended_by_itself() {
    let running = Claim { container_id: Some(id()), ..row("running") };
    let oom = |code| Seen::of(Some(Container { oom_killed: true, exit_code: Some(code), ..container("ours", Status::Exited) }));

    assert_eq!(reconcile(&running, &ours(Status::Running, None)), Action::Rest);
    assert_eq!(reconcile(&running, &ours(Status::Paused, None)), Action::Rest, "frozen is not dead");
    assert_eq!(end(reconcile(&running, &ours(Status::Exited, Some(0)))), ("succeeded", Some("exited"), Some(0), Some("removed")));
    assert_eq!(end(reconcile(&running, &ours(Status::Exited, Some(3)))), ("failed", Some("exited"), Some(3), Some("removed")));
    assert_eq!(end(reconcile(&running, &oom(137))), ("failed", Some("oom_killed"), Some(137), Some("removed")));
    assert_eq!(end(reconcile(&running, &oom(0))), ("succeeded", Some("exited"), Some(0), Some("removed")), "a child of it was killed");
    assert_eq!(end(reconcile(&running, &ours(Status::Dead, None))), ("failed", Some("vanished"), None, Some("removed")));
    assert_eq!(end(reconcile(&running, &Seen::Gone)), ("failed", Some("vanished"), None, None));
}

#[test]
fn a_stop_is_signal_then_sigkill_and_the_first_look_may_find_that_it_had_ended() {
    let decided = Claim { container_id: Some(id()), started: true, ..row("terminating") };
    let signalled = Claim { signalled: true, ..decided.clone() };
    let killed = Claim { killed: true, ..signalled.clone() };
    let running = ours(Status::Running, None);

    assert_eq!(reconcile(&decided, &running), Action::Signal(id()));
    assert_eq!(reconcile(&signalled, &running), Action::Signal(id()), "its sender may have died: once more");
    assert_eq!(reconcile(&killed, &running), Action::Kill(id()));
    assert_eq!(end(reconcile(&decided, &ours(Status::Exited, Some(0)))), ("succeeded", Some("exited"), Some(0), Some("removed")));
    assert_eq!(end(reconcile(&decided, &ours(Status::Exited, Some(3)))), ("failed", Some("exited"), Some(3), Some("removed")));
    assert_eq!(end(reconcile(&signalled, &ours(Status::Exited, Some(0)))), ("expired", None, Some(0), Some("removed")));
    assert_eq!(end(reconcile(&killed, &ours(Status::Exited, Some(137)))), ("expired", None, Some(137), Some("removed")));
    // Killed without a look: it may have ended before, which any other code shows.
    let unseen = Claim { killed: true, ..decided.clone() };
    assert_eq!(reconcile(&unseen, &running), Action::Kill(id()));
    assert_eq!(end(reconcile(&unseen, &ours(Status::Exited, Some(137)))), ("expired", None, Some(137), Some("removed")));
    assert_eq!(end(reconcile(&unseen, &ours(Status::Exited, Some(3)))), ("failed", Some("exited"), Some(3), Some("removed")));
    assert_eq!(end(reconcile(&decided, &ours(Status::Created, None))), ("expired", None, None, Some("removed")), "it never ran");
    assert_eq!(end(reconcile(&decided, &Seen::Gone)), ("expired", None, None, None));
}

#[test]
fn whom_the_dead_man_ended_has_expired_once_his_deadline_is_in_the_row_and_whoever_died_of_another_sigkill_has_failed() {
    let overdue = |status, code| Seen::of(Some(Container { overdue: true, exit_code: code, ..container("ours", status) }));
    let starting = Claim { container_id: Some(id()), start_timed_out: true, ..row("pending") };
    let running = Claim { container_id: Some(id()), ..row("running") };
    let decided = Claim { started: true, ..Claim { state: "terminating".to_owned(), ..running.clone() } };
    let killed = overdue(Status::Exited, Some(137));

    assert_eq!(reconcile(&starting, &killed), Action::RanAlready(id()), "it ran: its row says so first");
    assert_eq!(reconcile(&running, &killed), Action::Rest, "the claim at its deadline says why it was ended");
    assert_eq!(end(reconcile(&decided, &killed)), ("expired", None, Some(137), Some("removed")));
    assert!(matches!(reconcile(&decided, &killed), Action::End(facts, _) if facts.error.as_deref() == Some(super::OVERDUE)));
    // The dead man died before he killed it: a stop like any other.
    assert_eq!(reconcile(&running, &overdue(Status::Running, None)), Action::Rest);
    assert_eq!(reconcile(&decided, &overdue(Status::Running, None)), Action::Signal(id()));
    // Not he: Docker restarted, somebody's `docker kill`, a shell whose child was killed.
    for row in [&running, &decided] {
        assert_eq!(end(reconcile(row, &ours(Status::Exited, Some(137)))), ("failed", Some("exited"), Some(137), Some("removed")));
    }
}

#[test]
fn an_end_that_was_seen_is_only_finished() {
    for state in ["pending", "running", "terminating"] {
        let seen = Claim { observed: true, ..row(state) };
        assert_eq!(reconcile(&seen, &Seen::Gone), Action::Finish(None));
        assert_eq!(reconcile(&seen, &ours(Status::Exited, Some(0))), Action::Finish(Some(id())));
    }
}
