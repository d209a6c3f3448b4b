//! What may happen next, and what comes of it: each statement with its predicates, each call to the daemon.

use stateright::{Model, Property};
use sundown::reconcile::{Action, Seen, reconcile};

use super::world::{End, Known, Lease, Life, OWN_CODE, Row, State, Task, Todo, Work, World, number};

/// A way to break the code, to see that the search finds what it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The code as it is.
    None,
    /// Statements name the agent and not the epoch.
    NoFence,
    /// Each create makes a container of another name, so that an unrecorded one is not found again.
    NoName,
    /// A recorded container is started without a look at it.
    NoLook,
    /// The container is recorded once it was started.
    RecordAfterStart,
    /// The outcome is written, then the container removed.
    OutcomeBeforeRemoval,
    /// A name that is taken fails the start.
    NoAdoption,
    /// The signal is sent, then the intent committed.
    SignalBeforeIntent,
    /// Time passes between the check of the lease and the start.
    CheckApartFromStart,
    /// A replica believes in its lease for longer than the row does.
    LeaseCountedLate,
    /// A replica that leaves goes on with what it has in its hands, under the old epoch.
    LeaveAndGoOn,
    /// A lease never runs out.
    LeaseForEver,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Place(usize),
    /// `claim_due`; whether the deadline, the grace or the start timeout has passed by then, whichever counts.
    Claim(usize, bool),
    /// A look of the keeper at a row that nobody has and whose container the list does not show alive.
    Judge(usize),
    /// The keeper removes a container whose agent has no live row.
    Reap(usize),
    /// The next step of a piece of work of a replica.
    Go(usize, usize),
    /// That step is a call to Docker that is not answered; whether it happened.
    Fails(usize, usize, bool),
    /// A look before a signal is not answered, and the grace is over since the decision to end it.
    Unseen(usize, usize),
    Crash(usize),
    /// Told to stop and out of patience, a replica gives its leases back; its process goes on for a while.
    Leave(usize),
    /// By the database's clock.
    LeaseRunsOut,
    /// By the clock of a replica whose lease is not the row's any more.
    OldLeaseRunsOut(usize, usize),
    Delete,
    Exits(u8),
    ObeysSignal(u8),
}

/// What is searched.
#[derive(Clone, Copy, Debug)]
pub struct System {
    pub defect: Defect,
    /// How much each replica does at a time. A second work is its keeper's look, or an older work that hangs.
    pub hands: [usize; 2],
    /// Whether calls to Docker may fail, and replicas be told to leave in the midst of their work.
    pub trouble: bool,
}

impl System {
    fn has(self, defect: Defect) -> bool {
        self.defect == defect
    }

    fn place(self, world: &mut World, replica: usize) {
        let Some(row) = &mut world.row else { return };
        (row.placed, row.lease) = (true, Lease::Held);
        // A new agent has no container yet: the create itself finds out if it has.
        world.take(replica, false, Todo::Create);
    }

    fn claim(self, world: &mut World, replica: usize, passed: bool) {
        let Some(row) = &mut world.row else { return };
        row.lease = Lease::Held;
        row.killed |= row.signalled && passed;
        let deadline = row.state == State::Running && row.observed.is_none() && passed;
        if deadline && !self.has(Defect::SignalBeforeIntent) {
            row.state = State::Terminating;
        }
        let todo = match (row.observed, row.state, row.container) {
            (None, State::Pending, container) => self.look(container),
            (None, _, Some(id)) if row.killed => Todo::Kill(id),
            _ => Todo::Look(Task::Stop),
        };
        world.take(replica, passed, todo);
        if deadline && let Some(work) = world.replicas[replica].last_mut() {
            work.row.state = State::Terminating;
        }
    }

    /// Before a start.
    fn look(self, recorded: Option<u8>) -> Todo {
        match recorded {
            Some(id) if self.has(Defect::NoLook) => Todo::Start(id),
            _ => Todo::Look(Task::Start),
        }
    }

    fn remove_and_record(self, container: Option<u8>) -> Todo {
        match container {
            Some(id) if !self.has(Defect::OutcomeBeforeRemoval) => Todo::Remove(id),
            left => Todo::Finish(left),
        }
    }

    /// What follows from a look: the real decision.
    fn decide(self, known: &Known, task: Task, seen: &Seen) -> Option<Todo> {
        let maybe = |id: Option<String>| id.as_deref().map(number);
        Some(match (reconcile(&known.claim(known.state), seen), task) {
            (Action::End(facts, container), _) => Todo::Observe(End::of(&facts), maybe(container)),
            (_, Task::Killed | Task::Judge) => return None,
            (Action::Finish(container), _) => self.remove_and_record(maybe(container)),
            (Action::Create, Task::Start) => Todo::Create,
            (Action::Record(container), Task::Start) => Todo::Record(number(&container)),
            (Action::Start(container), Task::Start) => Todo::Start(number(&container)),
            (Action::Running(_) | Action::RanAlready(_), Task::Start) => {
                Todo::Running(match reconcile(&known.claim(State::Running), seen) {
                    Action::End(facts, container) => Some((End::of(&facts), maybe(container))),
                    _ => None,
                })
            }
            (Action::Signal(container), Task::Stop) if self.has(Defect::SignalBeforeIntent) => Todo::Signal(number(&container)),
            (Action::Signal(container), Task::Stop) => Todo::Signalling(number(&container)),
            (Action::Kill(container), Task::Stop) => Todo::Kill(number(&container)),
            (Action::Rest, Task::Stop) => Todo::Rest,
            (action, _) => panic!("{task:?} is told to {action:?}"),
        })
    }

    /// Takes the next step of a piece of work. Answers the one after it; `None`: it is done, or dropped.
    fn go(self, world: &mut World, work: &mut Work) -> Option<Todo> {
        // The row, as a statement finds it that names the epoch.
        let row = world.row.filter(|_| work.newest || self.has(Defect::NoFence));
        let unseen = |row: &Row| row.observed.is_none();
        match work.todo {
            Todo::Look(task) => self.decide(&work.row, task, &world.look(&work.row, self.has(Defect::NoName))),
            Todo::Create => Some(match world.create(self.has(Defect::NoName)) {
                Some(id) if self.has(Defect::RecordAfterStart) => Todo::Start(id),
                Some(id) => Todo::Record(id),
                None if self.has(Defect::NoAdoption) => Todo::Observe(End::failed("name_conflict"), None),
                None => Todo::Look(Task::Start),
            }),
            Todo::Record(id) => {
                let row = row.filter(|row| row.state == State::Pending && row.container.is_none_or(|recorded| recorded == id))?;
                world.row = Some(Row { container: Some(id), ..row });
                work.row.container = Some(id);
                Some(self.look(work.row.container))
            }
            Todo::Start(_) if work.lease_over => None,
            Todo::Start(id) if self.has(Defect::CheckApartFromStart) => Some(Todo::StartUnchecked(id)),
            Todo::Start(id) | Todo::StartUnchecked(id) => Some(match world.start(id) {
                false => Todo::Look(Task::Start),
                true if work.row.container.is_none() => Todo::Record(id),
                true => Todo::Running(None),
            }),
            Todo::Running(then) => {
                let row = row.filter(|row| row.state == State::Pending && unseen(row))?;
                world.row = Some(Row { state: State::Running, lease: Lease::Free, ..row });
                then.map(|(end, container)| Todo::Observe(end, container))
            }
            Todo::Observe(end, container) => {
                let row = row.filter(unseen)?;
                world.row = Some(Row { observed: Some(end), lease: Lease::Held, ..row });
                world.fence();
                work.newest = true;
                Some(self.remove_and_record(container))
            }
            Todo::Remove(id) => {
                world.remove(id);
                (!self.has(Defect::OutcomeBeforeRemoval)).then_some(Todo::Finish(None))
            }
            Todo::Finish(left) => {
                let (state, end) = (row?.state, row?.observed?);
                // The guard of agent_live lets nothing else pass.
                let legal = match state {
                    State::Pending => end.state == "failed",
                    State::Running => end.state != "expired",
                    State::Terminating => true,
                };
                if legal {
                    world.end(end);
                }
                left.map(Todo::Remove)
            }
            Todo::Signalling(id) => {
                let early = self.has(Defect::SignalBeforeIntent);
                let row = row.filter(|row| (row.state == State::Terminating || early) && unseen(row))?;
                world.row = Some(Row { state: State::Terminating, signalled: true, ..row });
                Some(if early { Todo::Signalled } else { Todo::Signal(id) })
            }
            Todo::Signal(id) => {
                world.signal(id);
                Some(if self.has(Defect::SignalBeforeIntent) { Todo::Signalling(id) } else { Todo::Signalled })
            }
            Todo::Signalled => {
                let row = row.filter(|row| row.state == State::Terminating && unseen(row))?;
                world.row = Some(Row { lease: Lease::Free, ..row });
                None
            }
            Todo::Killing(id) => {
                let row = row.filter(|row| row.state == State::Terminating && unseen(row))?;
                world.row = Some(Row { killed: true, ..row });
                work.row.killed = true;
                Some(Todo::Kill(id))
            }
            Todo::Kill(id) => {
                world.kill(id);
                Some(Todo::Look(Task::Killed))
            }
            Todo::Rest => {
                let row = row.filter(|row| row.state == State::Running && unseen(row))?;
                world.row = Some(Row { lease: Lease::Free, ..row });
                None
            }
            Todo::Release => {
                world.row = Some(Row { lease: Lease::Free, ..row? });
                None
            }
        }
    }

    /// A call to Docker that is not answered, and may have happened all the same.
    fn fail(self, world: &mut World, work: &mut Work, happened: bool) -> Option<Todo> {
        if happened {
            let _answer = self.go(world, work);
        }
        (work.todo != Todo::Look(Task::Judge)).then_some(Todo::Release)
    }

    /// `sundown.terminate`
    fn delete(world: &mut World) {
        let Some(row) = &mut world.row else { return };
        if row.placed {
            (row.state, row.lease) = (State::Terminating, Lease::Free);
            world.fence();
        } else {
            world.end(End { state: "expired", reason: None, code: None });
        }
    }

    /// `leave`
    fn leave(self, world: &mut World, replica: usize) {
        let Some(row) = &mut world.row else { return };
        row.lease = Lease::Free;
        if !self.has(Defect::LeaveAndGoOn) {
            world.fence();
            world.replicas[replica].iter_mut().for_each(Work::lose_lease);
        }
    }

    /// What a replica may take into its hands.
    fn offers(self, world: &World, replica: usize, steps: &mut Vec<Step>) {
        match &world.row {
            None => steps.extend((!world.containers.is_empty()).then_some(Step::Reap(replica))),
            Some(row) if !row.placed => steps.push(Step::Place(replica)),
            Some(row) => {
                if row.lease != Lease::Held {
                    steps.push(Step::Claim(replica, false));
                    let counts = row.observed.is_none() && (row.state != State::Terminating || (row.signalled && !row.killed));
                    steps.extend(counts.then_some(Step::Claim(replica, true)));
                }
                let dead = row.container.is_some_and(|id| !world.life(id).is_some_and(Life::runs));
                if row.lease == Lease::Free && row.state != State::Pending && row.observed.is_none() && dead {
                    steps.push(Step::Judge(replica));
                }
            }
        }
    }

    /// How the work in hand may go on.
    fn goes_on(self, world: &World, replica: usize, n: usize, steps: &mut Vec<Step>) {
        let work = &world.replicas[replica][n];
        if self.trouble && work.todo.asks_docker() {
            steps.push(Step::Fails(replica, n, false));
            if !matches!(work.todo, Todo::Look(_)) {
                steps.push(Step::Fails(replica, n, true));
            }
        }
        if work.kills_unseen().is_some() {
            steps.push(Step::Unseen(replica, n));
        }
        steps.push(Step::Go(replica, n));
        // The clocks agree on how long a lease is: while it is the row's, it runs out for both at once.
        let apart = !work.newest || world.row.is_none_or(|row| row.lease != Lease::Held);
        if work.todo.may_start() && !work.lease_over && apart {
            steps.push(Step::OldLeaseRunsOut(replica, n));
        }
    }
}

impl Model for System {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::submitted()]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        let held = world.row.is_some_and(|row| row.lease == Lease::Held);
        for (replica, works) in world.replicas.iter().enumerate() {
            // Of equally short stories the one of the later steps is told: the likelier ones.
            if self.trouble && held && works.iter().any(|work| work.newest) {
                steps.push(Step::Leave(replica));
            }
            if !works.is_empty() {
                steps.push(Step::Crash(replica));
            }
            for n in 0..works.len() {
                self.goes_on(world, replica, n, steps);
            }
            if works.len() < self.hands[replica] {
                self.offers(world, replica, steps);
            }
        }
        if held && !self.has(Defect::LeaseForEver) {
            steps.push(Step::LeaseRunsOut);
        }
        if world.row.is_some_and(|row| row.state != State::Terminating && row.observed.is_none()) {
            steps.push(Step::Delete);
        }
        for (id, life) in &world.containers {
            match life {
                Life::Running => steps.push(Step::Exits(*id)),
                Life::Asked => steps.extend([Step::Exits(*id), Step::ObeysSignal(*id)]),
                Life::Created | Life::Exited(_) => {}
            }
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        match step {
            Step::Place(replica) => self.place(&mut world, replica),
            Step::Claim(replica, passed) => self.claim(&mut world, replica, passed),
            // It reads the row and takes no lease: its epoch decides who goes on.
            Step::Judge(replica) => {
                let work = Work::of(world.row.as_ref()?, false, Todo::Look(Task::Judge));
                world.replicas[replica].push(work);
            }
            Step::Reap(_) => {
                // Its agent is known, has no live row and never will again: the grace of an orphan changes nothing here.
                let id = world.containers.first().map(|(id, _)| *id)?;
                world.remove(id);
            }
            Step::Go(replica, n) | Step::Fails(replica, n, _) => {
                let mut work = world.replicas[replica].remove(n);
                let todo = match step {
                    Step::Fails(_, _, happened) => self.fail(&mut world, &mut work, happened),
                    _ => self.go(&mut world, &mut work),
                };
                world.replicas[replica].extend(todo.map(|todo| work.with(todo)));
            }
            Step::Unseen(replica, n) => {
                let work = world.replicas[replica].remove(n);
                world.replicas[replica].extend(work.kills_unseen().map(|id| work.with(Todo::Killing(id))));
            }
            Step::Crash(replica) => world.replicas[replica].clear(),
            Step::Leave(replica) => self.leave(&mut world, replica),
            Step::LeaseRunsOut => {
                world.row.as_mut()?.lease = Lease::Over;
                if !self.has(Defect::LeaseCountedLate) {
                    world.works().filter(|work| work.newest).for_each(Work::lose_lease);
                }
            }
            Step::OldLeaseRunsOut(replica, n) => world.replicas[replica][n].lose_lease(),
            Step::Delete => Self::delete(&mut world),
            Step::Exits(id) => {
                world.exited_first |= world.row.is_some_and(|row| row.state != State::Terminating);
                world.set(id, Life::Exited(OWN_CODE));
            }
            Step::ObeysSignal(id) => world.set(id, Life::Exited(143)),
        }
        // Which of its works is which makes no difference.
        for works in &mut world.replicas {
            works.sort_unstable();
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let always = ALWAYS.iter().map(|(name, holds)| Property::always(name, *holds));
        always.chain(SOMETIMES.iter().map(|(name, happens)| Property::sometimes(name, *happens))).collect()
    }

    /// Without unique names there would be containers without end.
    fn within_boundary(&self, world: &World) -> bool {
        world.containers.len() <= 2
    }
}

type Condition = (&'static str, fn(&System, &World) -> bool);

pub const ONE_RUN: &str = "at most one execution";
pub const ONE_CONTAINER: &str = "never two containers";
pub const ONE_ALIVE: &str = "never two containers that run";
pub const TERMINAL_IS_DEAD: &str = "terminal implies dead";
pub const ONE_OUTCOME: &str = "one outcome";
pub const NO_WRONG: &str = "nothing that runs is signalled, killed or removed before a decision to end it is committed";
pub const EXIT_IS_KEPT: &str = "an exit before any decision is what the outcome says";
pub const EXIT_IS_TRUE: &str = "an outcome that says it exited is of one that did so by itself";
pub const NO_LOSS: &str = "nothing fails for a fault of ours";

/// What every state keeps.
const ALWAYS: &[Condition] = &[
    (ONE_RUN, |_, world| world.runs <= 1),
    (ONE_CONTAINER, |_, world| world.containers.len() <= 1),
    (ONE_ALIVE, |_, world| world.alive() <= 1),
    (TERMINAL_IS_DEAD, |_, world| world.outcome.is_none() || world.alive() == 0),
    (ONE_OUTCOME, |_, world| world.outcomes == u8::from(world.outcome.is_some()) && world.row.is_none() == world.outcome.is_some()),
    (NO_WRONG, |_, world| !world.wronged),
    (EXIT_IS_KEPT, |_, world| !world.exited_first || world.outcome.is_none_or(|end| end == End::EXITED)),
    (EXIT_IS_TRUE, |_, world| world.outcome.is_none_or(|end| end.reason != Some("exited") || end == End::EXITED)),
    (NO_LOSS, |_, world| !world.ended(&["vanished", "start_failed", "name_conflict"])),
];

/// What shows that the search looks at what it should.
const SOMETIMES: &[Condition] = &[
    ("it exits", |_, world| world.ended(&["exited"])),
    ("its start times out", |_, world| world.ended(&["start_timeout"])),
    ("it expires by signal", |_, world| world.outcome.is_some_and(|end| end.code == Some(143))),
    ("it expires by SIGKILL", |_, world| world.outcome.is_some_and(|end| end.code == Some(137))),
    ("it is killed without a look", |_, world| world.row.is_some_and(|row| row.killed && !row.signalled)),
    ("a container is created after the outcome", |_, world| world.outcome.is_some() && !world.containers.is_empty()),
    ("a replica goes on past its lease", |_, world| world.replicas.iter().flatten().any(|work| !work.newest && !work.todo.may_start())),
];
