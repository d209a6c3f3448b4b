//! The dead man by himself, with no database and nothing else of Sundown alive: whom he ends, whom he leaves alone, and a daemon that is
//! unwell. Every age here is counted from when he first saw a container, because its process is not on this machine.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use crate::fake_docker::{Call, FakeDocker, Fault};
use crate::harness::deadman::{Deadman, once};
use crate::harness::{Db, eventually, lives, replica};

const ALWAYS: usize = usize::MAX;
/// A look comes every five seconds.
const LOOKS: Duration = Duration::from_secs(60);

/// A container that is an agent's in every respect, of an installation and with a longest life in seconds.
fn agent(fake: &FakeDocker, installation: Uuid, life: u64) -> String {
    let agent = Uuid::new_v4();
    let name = format!("sundown-{agent}");
    let (installation, agent, life) = (installation.to_string(), agent.to_string(), life.to_string());
    fake.run(&name, &[("sundown.installation", &installation), ("sundown.agent", &agent), ("sundown.longest_life", &life)]);
    name
}

fn overdue(name: &str) -> String {
    format!("{name}-overdue")
}

/// Name and status of every container, by name.
fn all(fake: &FakeDocker) -> Vec<(String, &'static str)> {
    let mut all: Vec<_> = fake.containers().into_iter().map(|seen| (seen.name, seen.status)).collect();
    all.sort();
    all
}

async fn until_ended(fake: &FakeDocker, name: &str) {
    eventually(&format!("{name} is ended"), LOOKS, async || all(fake).contains(&(overdue(name), "exited")).then_some(())).await;
}

/// Waits until the daemon was asked for so many more lists: what was to be done by then is done.
async fn looks(fake: &FakeDocker, more: usize) {
    let before = fake.total(Call::List);
    eventually("he looks again", LOOKS, async || (fake.total(Call::List) >= before + more).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_man_ends_whoever_is_past_his_longest_life_and_touches_nobody_else() {
    let fake = FakeDocker::start().await;
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    let (began, patient) = (Instant::now(), agent(&fake, one, 7));
    let ended = [agent(&fake, one, 1), agent(&fake, one, 2), agent(&fake, two, 1), patient.clone()];
    let lives = agent(&fake, one, 3600);
    // Labels copied to another name, to another agent's name, without an installation, with a life that is none, without any.
    let (installation, someone) = (one.to_string(), Uuid::new_v4().to_string());
    let (ours, agent, life) =
        (("sundown.installation", installation.as_str()), ("sundown.agent", someone.as_str()), ("sundown.longest_life", "1"));
    let foreign = [
        ("postgres".to_owned(), vec![ours, agent, life]),
        (format!("sundown-{}", Uuid::new_v4()), vec![ours, agent, life]),
        (format!("copy-of-sundown-{someone}"), vec![ours, agent, life]),
        (format!("sundown-{someone}"), vec![ours, agent, ("sundown.longest_life", "a while")]),
        (format!("sundown-{someone}-overdue"), vec![ours, agent, ("sundown.longest_life", "-1")]),
        (format!("sundown-{someone}-2"), vec![ours, agent, life]),
        ("no-installation".to_owned(), vec![agent, life]),
        ("not-an-installation".to_owned(), vec![("sundown.installation", "1"), agent, life]),
        ("nobody".to_owned(), vec![]),
    ];
    for (name, labels) in &foreign {
        fake.run(name, labels);
    }
    let dead_man = Deadman::start(&fake.endpoint(), &[]);
    for name in &ended {
        until_ended(&fake, name).await;
    }
    looks(&fake, 2).await;
    let killed = fake.history(&patient).iter().find(|(call, _)| *call == Call::Kill).unwrap().1;
    assert!(
        killed - began >= Duration::from_secs(7 + 1),
        "ended {:?} after it began, before its life and the grace were over",
        killed - began
    );
    let mut expected: Vec<_> = ended.iter().map(|name| (overdue(name), "exited")).collect();
    expected.push((lives.clone(), "running"));
    expected.extend(foreign.iter().map(|(name, _)| (name.clone(), "running")));
    expected.sort();
    assert_eq!(all(&fake), expected);
    for name in &ended {
        assert_eq!((fake.calls(Call::Kill, name), fake.calls(Call::Remove, name)), (1, 0), "{:?}", fake.history(name));
        assert_eq!(dead_man.log().matches(&format!("\"agent.id\":\"{}\"", name.trim_start_matches("sundown-"))).count(), 1);
    }
    let touched = [&foreign.map(|(name, _)| name)[..], &[lives]].concat();
    assert!(touched.iter().all(|name| fake.calls(Call::Kill, name) + fake.calls(Call::Rename, name) == 0));
    assert_eq!(dead_man.end().await.code(), Some(0), "asked to end, it ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_man_of_one_installation_leaves_the_others_alone() {
    let fake = FakeDocker::start().await;
    let (ours, theirs) = (Uuid::new_v4(), Uuid::new_v4());
    let (mine, other) = (agent(&fake, ours, 1), agent(&fake, theirs, 1));
    let _dead_man = Deadman::start(&fake.endpoint(), &["--installation", &ours.to_string()]);
    until_ended(&fake, &mine).await;
    looks(&fake, 2).await;
    assert!(all(&fake).contains(&(other, "running")));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_with_the_pid_of_an_agents_makes_it_no_older() {
    let fake = FakeDocker::start().await;
    // As of a daemon in another pid namespace, or on another machine. Whatever is number 1 here has lived for more than a minute.
    fake.every_pid_is(1);
    let young = agent(&fake, Uuid::new_v4(), 60);
    let _dead_man = Deadman::start(&fake.endpoint(), &[]);
    eventually("its process was asked for", LOOKS, async || (fake.calls(Call::Inspect, &young) > 0).then_some(())).await;
    looks(&fake, 2).await;
    assert_eq!(all(&fake), [(young.clone(), "running")]);
    assert_eq!(fake.calls(Call::Inspect, &young), 1, "it is asked for once");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_look_of_the_dead_man_counts_and_says_whether_it_could_look() {
    let fake = FakeDocker::start().await;
    let name = agent(&fake, Uuid::new_v4(), 1);
    // One look cannot know an age that it cannot see.
    let counted = json!({"agents": 1, "unseen": 1, "ended": 0, "failed": 0});
    assert_eq!(once(&fake.endpoint(), &[]).await, (Some(0), counted));
    assert_eq!(all(&fake), [(name, "running")]);
    fake.down();
    assert_eq!(once(&fake.endpoint(), &[]).await.0, Some(69));
    let both = format!("{},unix:///nowhere", fake.endpoint());
    fake.up();
    assert_eq!(once(&both, &[]).await.0, Some(69));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_man_waits_for_a_daemon_that_is_away_and_ends_whoever_is_over_when_it_answers() {
    let fake = FakeDocker::start().await;
    let name = agent(&fake, Uuid::new_v4(), 8);
    let dead_man = Deadman::start(&fake.endpoint(), &[]);
    looks(&fake, 1).await;
    fake.down();
    eventually("he says so", LOOKS, async || dead_man.log().contains("out of reach").then_some(())).await;
    assert_eq!(all(&fake), [(name.clone(), "running")]);
    fake.up();
    until_ended(&fake, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_that_hangs_and_a_name_that_cannot_be_given_save_nobody_from_the_dead_man() {
    let fake = FakeDocker::start().await;
    let installation = Uuid::new_v4();
    let (hangs, other, unnamed) = (agent(&fake, installation, 1), agent(&fake, installation, 1), agent(&fake, installation, 1));
    fake.inject(Some(Call::Kill), Some(&hangs), Fault::Hang, ALWAYS);
    fake.inject(Some(Call::Rename), Some(&unnamed), Fault::Status(500, "no space left on device"), ALWAYS);
    let _dead_man = Deadman::start(&fake.endpoint(), &[]);
    until_ended(&fake, &other).await;
    // Its end will pass for somebody else's; but it has ended.
    eventually("it is ended", LOOKS, async || all(&fake).contains(&(unnamed.clone(), "exited")).then_some(())).await;
    assert!(all(&fake).contains(&(overdue(&hangs), "running")));
    fake.heal();
    until_ended(&fake, &hangs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_label_of_a_container_allows_every_deadline_that_its_agent_can_get() {
    let (db, fake) = (Db::new().await, FakeDocker::start().await);
    let (client, endpoint) = (db.client().await, fake.endpoint());
    let _replica = replica::Replica::start(&db.url(), &[("SUNDOWN_DOCKER", &endpoint)]).await;
    let bounds = ", ttl => '1min', max_ttl => '100.5s', start_timeout => '20s', grace => '3.2s'";
    let id = lives::submit(&client, "busybox", "sleep inf", bounds).await;
    lives::until_all(&client, &[id], "running").await;
    let labels = fake.containers().into_iter().map(|seen| seen.labels).next().unwrap();
    assert_eq!(labels["sundown.longest_life"], "124", "start_timeout, max_ttl and grace, rounded up");
}
