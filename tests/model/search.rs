//! The search itself, and its findings told step by step.

use std::collections::HashMap;
use std::fmt::Write;

use stateright::{Checker, Expectation, HasDiscoveries, Model, Path};

use super::system::{Defect, Step, System};
use super::world::{State, Task, Todo, World};

/// Searches everything. Answers how many states there are; panics with the shortest way to a broken promise.
pub fn search(system: System) -> usize {
    let done = system.checker().spawn_bfs().join();
    let found = done.discoveries();
    for property in system.properties() {
        match (property.expectation, found.contains_key(property.name)) {
            (Expectation::Always, true) => panic!("broken: {}\n{}", property.name, story(system, &shortest(system, property.name))),
            (Expectation::Sometimes, false) => panic!("never happens: {}", property.name),
            _ => {}
        }
    }
    done.unique_state_count()
}

/// The shortest way to break a promise. Panics if there is none.
pub fn shortest(system: System, promise: &'static str) -> Path<World, Step> {
    let mut found: Option<Path<World, Step>> = None;
    loop {
        let mut search = system.checker().finish_when(HasDiscoveries::AnyOf([promise].into()));
        if let Some(path) = &found {
            // Only shorter ones: the search stops at some state of the depth that has one, not at the first.
            search = search.target_max_depth(path.clone().into_states().len());
        }
        match (search.spawn_bfs().join().discovery(promise), found) {
            (None, Some(shortest)) => return shortest,
            (None, None) => panic!("with {:?} the search finds no way to break: {promise}", system.defect),
            (shorter, _) => found = shorter,
        }
    }
}

/// From every state, steps of the second replica alone, and time, lead to the outcome and to a daemon without containers: the agent
/// need not exit, nobody need ask for its end, and the first replica need never move again. Answers how many states; `Err` is one
/// that is stuck.
pub fn every_state_has_an_end(system: System) -> Result<usize, Box<World>> {
    let mut worlds = system.init_states();
    let mut numbers: HashMap<World, usize> = worlds.iter().cloned().zip(0..).collect();
    let mut before: Vec<Vec<usize>> = vec![Vec::new()];
    let mut next = 0;
    while let Some(world) = worlds.get(next).cloned() {
        for (step, after) in system.next_steps(&world) {
            let number = *numbers.entry(after).or_insert_with_key(|new| {
                worlds.push(new.clone());
                before.push(Vec::new());
                worlds.len() - 1
            });
            if helps(step) {
                before[number].push(next);
            }
        }
        next += 1;
    }
    let mut ends: Vec<bool> = worlds.iter().map(|world| world.outcome.is_some() && world.containers.is_empty()).collect();
    let mut reached: Vec<usize> = (0..worlds.len()).filter(|number| ends[*number]).collect();
    while let Some(number) = reached.pop() {
        for earlier in std::mem::take(&mut before[number]) {
            if !std::mem::replace(&mut ends[earlier], true) {
                reached.push(earlier);
            }
        }
    }
    match ends.iter().position(|ends| !ends) {
        Some(stuck) => Err(Box::new(worlds.swap_remove(stuck))),
        None => Ok(worlds.len()),
    }
}

fn helps(step: Step) -> bool {
    match step {
        Step::Place(replica) | Step::Claim(replica, _) | Step::Judge(replica) | Step::Reap(replica) | Step::Go(replica, _) => replica == 1,
        Step::LeaseRunsOut | Step::OldLeaseRunsOut(..) | Step::ObeysSignal(_) => true,
        Step::Fails(..) | Step::Unseen(..) | Step::Crash(_) | Step::Leave(_) | Step::Delete | Step::Exits(_) => false,
    }
}

/// A path, one line for each step.
pub fn story(system: System, path: &Path<World, Step>) -> String {
    let states = path.clone().into_vec();
    let mut text = format!("{:?}:\n", system.defect);
    for (n, pair) in states.windows(2).enumerate() {
        let [(before, Some(step)), (after, _)] = pair else { continue };
        let _infallible = writeln!(text, "{:3}. {:<58} {}", n + 1, told(before, *step), now(after));
    }
    text
}

fn told(world: &World, step: Step) -> String {
    let name = |replica: usize| if replica == 0 { "A" } else { "B" };
    match step {
        Step::Place(replica) => format!("{} places the agent", name(replica)),
        Step::Claim(replica, passed) => {
            let late = match world.row.map(|row| row.state) {
                Some(State::Pending) => ", whose start has timed out",
                Some(State::Running) => ", whose deadline has passed",
                _ => ", whose grace is over",
            };
            format!("{} claims the row{}", name(replica), if passed { late } else { "" })
        }
        Step::Judge(replica) => format!("{} reads the row, as its keeper, for the list shows no life", name(replica)),
        Step::Reap(replica) => format!("{} removes a container that has no row", name(replica)),
        Step::Go(replica, n) => format!("{} {}", name(replica), doing(world.replicas[replica][n].todo)),
        Step::Fails(replica, n, happened) => format!(
            "{} {}: no answer, and {}",
            name(replica),
            doing(world.replicas[replica][n].todo),
            if happened { "it happens" } else { "it does not happen" }
        ),
        Step::Unseen(replica, _) => format!("{} looks: no answer, and the grace is over", name(replica)),
        Step::Crash(replica) => format!("{} crashes, and comes back", name(replica)),
        Step::Leave(replica) => format!("{} gives its leases back", name(replica)),
        Step::LeaseRunsOut => "the lease runs out".to_owned(),
        Step::OldLeaseRunsOut(replica, _) => format!("an old lease of {} runs out", name(replica)),
        Step::Delete => "somebody asks for its end".to_owned(),
        Step::Exits(id) => format!("container {id} exits by itself"),
        Step::ObeysSignal(id) => format!("container {id} exits by the signal"),
    }
}

fn doing(todo: Todo) -> String {
    match todo {
        Todo::Look(Task::Start) => "looks, to start".to_owned(),
        Todo::Look(Task::Stop) => "looks, to stop".to_owned(),
        Todo::Look(Task::Killed | Task::Judge) => "looks whether it has ended".to_owned(),
        Todo::Create => "creates".to_owned(),
        Todo::Record(id) => format!("records container {id}"),
        Todo::Start(id) => format!("checks its lease and starts container {id}"),
        Todo::StartUnchecked(id) => format!("starts container {id}"),
        Todo::Running(_) => "writes: running".to_owned(),
        Todo::Observe(end, _) => format!("writes what it saw: {} {}", end.state, end.reason.unwrap_or_default()),
        Todo::Remove(id) => format!("removes container {id}"),
        Todo::Finish(_) => "writes the outcome".to_owned(),
        Todo::Signalling(_) => "writes that it will signal".to_owned(),
        Todo::Signal(id) => format!("signals container {id}"),
        Todo::Signalled => "writes that it signalled".to_owned(),
        Todo::Killing(_) => "writes that it will kill what it cannot see".to_owned(),
        Todo::Kill(id) => format!("kills container {id}"),
        Todo::Rest => "lets it live on".to_owned(),
        Todo::Release => "gives the row back".to_owned(),
    }
}

fn now(world: &World) -> String {
    let row = match (world.row, world.outcome) {
        (Some(row), _) => format!("{:?}, lease {:?}", row.state, row.lease),
        (None, Some(end)) => format!("{} {}", end.state, end.reason.unwrap_or_default()),
        (None, None) => "no row".to_owned(),
    };
    let containers: Vec<String> = world.containers.iter().map(|(id, life)| format!("{id} {life:?}")).collect();
    format!("| {} | {} | runs {}", row.to_lowercase(), containers.join(", ").to_lowercase(), world.runs)
}

/// Breaks a promise with a defect, and says how.
pub fn breaks(defect: Defect, promise: &'static str) {
    // Told without trouble wherever it breaks without.
    let trouble = matches!(defect, Defect::LeaveAndGoOn | Defect::NoFence);
    let system = System { defect, hands: [1, 1], trouble };
    println!("{promise}\n{}", story(system, &shortest(system, promise)));
}
