//! What to do about an agent, from its row and what Docker shows of it. Pure: it waits for nothing, reads no clock, and knows
//! neither SQL nor Docker's wire. The row's statements have judged all times already.
//!
//! Guarantees: nothing that ever ran is started again; nothing is ended without a reason in the row or a death in the container;
//! what is not ours is never acted on.
//!
//! An end is ours if the intent was written down before the act: in the row, or, with the database away, in the container's name. The
//! exit code alone cannot tell that it was us: 137 is also what a restarted daemon, a host without memory, or a shell whose child was killed leave
//! behind, and an agent that died so before its deadline has failed, however late somebody looks. Docker's timestamps decide nothing.

use crate::docker::{Container, Status};
use crate::sql::work::{Claim, Facts};

/// What the record says of one whom the dead man found.
const OVERDUE: &str = "the dead man found it past its longest life";

/// The exit code that SIGKILL leaves.
const KILLED: i64 = 137;

/// What Docker shows under an agent's name or recorded container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// The daemon says that there is nothing.
    Gone,
    /// Somebody else's container has the name.
    Foreign,
    /// Our container.
    Ours(Box<Container>),
}

impl Seen {
    /// Tells ours from somebody else's.
    #[must_use]
    pub fn of(container: Option<Container>) -> Self {
        match container {
            None => Self::Gone,
            Some(container) if container.ours => Self::Ours(Box::new(container)),
            Some(_) => Self::Foreign,
        }
    }

    /// Our container, with a process in it.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self, Self::Ours(container) if container.status.is_alive())
    }
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Create its container.
    Create,
    /// Record this container, then look again.
    Record(String),
    /// Start this container, which never ran.
    Start(String),
    /// It runs, and its row does not say so yet.
    Running(String),
    /// It has run and ended, and its row does not say yet that it ran: say so, then look again.
    RanAlready(String),
    /// Commit the intent, then send the stop signal.
    Signal(String),
    /// The intent of SIGKILL is committed: send it.
    Kill(String),
    /// Its end is known: finish, removing this container.
    End(Facts, Option<String>),
    /// Its end was recorded before: remove this container and write the outcome.
    Finish(Option<String>),
    /// Nothing before its deadline.
    Rest,
}

/// Decides the next step for an agent in our hands.
#[must_use]
pub fn reconcile(row: &Claim, seen: &Seen) -> Action {
    if row.observed {
        return Action::Finish(match seen {
            Seen::Ours(container) => Some(container.id.clone()),
            Seen::Gone | Seen::Foreign => None,
        });
    }
    match row.state.as_str() {
        "pending" => starting(row, seen),
        "terminating" => stopping(row, seen),
        _ => running(seen),
    }
}

fn starting(row: &Claim, seen: &Seen) -> Action {
    match seen {
        Seen::Foreign => Action::End(failed("name_conflict", Some("another container has its name".to_owned())), None),
        Seen::Gone if row.container_id.is_some() => {
            Action::End(failed("start_failed", Some("its container was removed before it started".to_owned())), None)
        }
        Seen::Gone if row.start_timed_out => Action::End(failed("start_timeout", None), None),
        Seen::Gone => Action::Create,
        Seen::Ours(container) if row.container_id.is_none() => Action::Record(container.id.clone()),
        Seen::Ours(container) if container.ever_started => {
            if ended(container.status) {
                Action::RanAlready(container.id.clone())
            } else {
                Action::Running(container.id.clone())
            }
        }
        Seen::Ours(container) if row.start_timed_out => Action::End(failed("start_timeout", None), Some(container.id.clone())),
        // Half removed before it ever ran: it cannot be started any more.
        Seen::Ours(container) if ended(container.status) => {
            Action::End(failed("start_failed", Some("its container was removed before it started".to_owned())), Some(container.id.clone()))
        }
        Seen::Ours(container) => Action::Start(container.id.clone()),
    }
}

fn running(seen: &Seen) -> Action {
    match seen {
        Seen::Gone | Seen::Foreign => Action::End(failed("vanished", None), None),
        // Ended by the dead man, so its deadline has passed: the claim that says so comes first, as before every other stop.
        Seen::Ours(container) if ended(container.status) && container.overdue => Action::Rest,
        Seen::Ours(container) if ended(container.status) => Action::End(by_itself(container), Some(container.id.clone())),
        Seen::Ours(_) => Action::Rest,
    }
}

fn stopping(row: &Claim, seen: &Seen) -> Action {
    match seen {
        Seen::Gone | Seen::Foreign => Action::End(expired(None), None),
        Seen::Ours(container) if !container.ever_started => Action::End(expired(None), Some(container.id.clone())),
        Seen::Ours(container) if ended(container.status) && !ended_by_us(row, container) => {
            Action::End(by_itself(container), Some(container.id.clone()))
        }
        Seen::Ours(container) if ended(container.status) => Action::End(expired(Some(container)), Some(container.id.clone())),
        Seen::Ours(container) if row.killed => Action::Kill(container.id.clone()),
        Seen::Ours(container) => Action::Signal(container.id.clone()),
    }
}

/// Before any signal of ours was decided on, in its row or by the dead man in its name, whatever ended it was not us. Nor was it a SIGKILL
/// that was sent without a look and without a signal before it, if there is another code than that leaves.
fn ended_by_us(row: &Claim, container: &Container) -> bool {
    row.signalled || container.overdue || (row.killed && container.exit_code.is_none_or(|code| code == KILLED))
}

fn ended(status: Status) -> bool {
    match status {
        Status::Exited | Status::Dead | Status::Removing => true,
        Status::Created | Status::Running | Status::Paused | Status::Restarting => false,
    }
}

/// The facts of a failure to start, or of a loss.
#[must_use]
pub fn failed(reason: &'static str, error: Option<String>) -> Facts {
    Facts { state: "failed", reason: Some(reason), exit_code: None, oom_killed: None, error, dead: None, tail: None }
}

fn expired(container: Option<&Container>) -> Facts {
    Facts {
        state: "expired",
        reason: None,
        exit_code: container.and_then(code),
        oom_killed: container.map(|container| container.oom_killed),
        error: container.filter(|container| container.overdue).map(|_| OVERDUE.to_owned()),
        dead: None,
        tail: None,
    }
}

fn by_itself(container: &Container) -> Facts {
    let exit_code = code(container);
    let error = Some(container.error.clone()).filter(|error| !error.is_empty());
    let (state, reason) = match exit_code {
        Some(0) => ("succeeded", "exited"),
        // The flag alone may stand for a child that was killed and survived by its agent.
        Some(137) if container.oom_killed => ("failed", "oom_killed"),
        Some(_) => ("failed", "exited"),
        // Ended, and the daemon does not know how: it was lost.
        None => ("failed", "vanished"),
    };
    Facts { state, reason: Some(reason), exit_code, oom_killed: Some(container.oom_killed), error, dead: None, tail: None }
}

fn code(container: &Container) -> Option<i32> {
    container.exit_code.and_then(|code| i32::try_from(code).ok())
}

#[cfg(test)]
mod tests;
