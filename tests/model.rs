//! The life of one agent, searched exhaustively: two replicas, one row, one Docker daemon, in every order of their steps.
//!
//! A step is what cannot be divided: one statement of `sql/`, guarded by that statement's own predicates (id, epoch, state), or one
//! call to the daemon. Between any two steps a replica may stand still, for ever or until it goes on past its lease with what it knew;
//! it may crash and come back empty-handed, leave, or get no answer from Docker, whether the call happened or not. The agent may exit,
//! its deadline, grace and start timeout pass, a lease run out and a DELETE come at any time. What to do about a row and a container
//! is decided by the real `reconcile`: the model is of our code, not of an idea. The daemon is as dockerd: a name is taken once (409),
//! a start of what has exited runs it a second time (204), of what runs does nothing (304), of what is gone fails (404).
//! Claims and crashes are not bounded: an epoch is only ever compared with the row's, so a replica merely knows whether its own is the
//! newest, and ids of containers are used again once nobody knows them. 44 000 states with one work in each replica's hands, 340 000
//! with a second in one's. Left out: slots, logs, extensions, a grace of zero, the dead man, and people who touch containers.
//! One step idealises: the lease is checked and the container started at once. In the code there are moments in between; the test
//! `a_pause_between_the_check_of_the_lease_and_the_start_can_run_an_agent_twice` documents what they can cost.

#[path = "model/search.rs"]
mod search;
#[path = "model/system.rs"]
mod system;
#[path = "model/world.rs"]
mod world;

use search::{breaks, every_state_has_an_end, search};
use system::{Defect, EXIT_IS_TRUE, NO_LOSS, NO_WRONG, ONE_CONTAINER, ONE_RUN, System, TERMINAL_IS_DEAD};

/// Two replicas that do one thing each.
const TWO: System = System { defect: Defect::None, hands: [1, 1], trouble: true };
/// The first does two things at a time. With trouble, too, there would be more than 600 000 states: too many for every day.
const THREE: System = System { defect: Defect::None, hands: [2, 1], trouble: false };

#[test]
fn no_order_of_steps_breaks_a_promise() {
    println!("{} states", search(TWO));
}

#[test]
fn no_order_of_steps_breaks_a_promise_while_an_older_work_hangs() {
    println!("{} states", search(THREE));
}

#[test]
fn whatever_happened_one_replica_alone_brings_every_agent_to_its_end() {
    let states = every_state_has_an_end(TWO).unwrap_or_else(|stuck| panic!("stuck: {stuck:#?}"));
    println!("{states} states");
}

#[test]
fn a_lease_that_never_ran_out_would_leave_agents_without_an_end() {
    assert!(every_state_has_an_end(System { defect: Defect::LeaseForEver, ..TWO }).is_err());
}

#[test]
fn without_the_epoch_in_every_write_an_agent_would_run_twice() {
    breaks(Defect::NoFence, ONE_RUN);
    breaks(Defect::NoFence, NO_WRONG);
    breaks(Defect::NoFence, EXIT_IS_TRUE);
    breaks(Defect::NoFence, TERMINAL_IS_DEAD);
}

#[test]
fn without_a_name_of_its_own_an_agent_would_have_two_containers() {
    breaks(Defect::NoName, ONE_CONTAINER);
}

#[test]
fn without_a_look_before_the_start_an_agent_would_run_twice() {
    breaks(Defect::NoLook, ONE_RUN);
}

#[test]
fn with_its_container_recorded_after_the_start_an_agent_would_outlive_its_outcome_and_run_twice() {
    breaks(Defect::RecordAfterStart, TERMINAL_IS_DEAD);
    breaks(Defect::RecordAfterStart, ONE_RUN);
}

#[test]
fn with_its_outcome_before_its_removal_an_agent_would_outlive_it() {
    breaks(Defect::OutcomeBeforeRemoval, TERMINAL_IS_DEAD);
}

#[test]
fn without_adoption_an_agent_would_be_in_conflict_with_its_own_container() {
    breaks(Defect::NoAdoption, NO_LOSS);
}

#[test]
fn with_the_signal_before_its_intent_an_agent_would_end_without_a_reason() {
    breaks(Defect::SignalBeforeIntent, NO_WRONG);
    breaks(Defect::SignalBeforeIntent, EXIT_IS_TRUE);
}

/// What remains: nobody can tell Docker "start it only while my lease lasts". The code checks half of its lease just before the call.
#[test]
fn a_pause_between_the_check_of_the_lease_and_the_start_can_run_an_agent_twice() {
    breaks(Defect::CheckApartFromStart, ONE_RUN);
}

#[test]
fn with_a_lease_counted_for_too_long_an_agent_would_run_twice() {
    breaks(Defect::LeaseCountedLate, ONE_RUN);
}

#[test]
fn with_leases_given_back_and_work_that_goes_on_an_agent_would_run_twice() {
    breaks(Defect::LeaveAndGoOn, ONE_RUN);
}
