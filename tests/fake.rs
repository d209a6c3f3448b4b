//! What the fake daemon promises beyond the contract that `tests/docker.rs` holds against the real one too: faults by seed, a record of
//! every life, and a flat cost among thousands of containers. Runs of chaos and benchmarks rest on it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod fake_docker;

use std::collections::HashMap;
use std::time::Duration;

use bollard::Docker;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptions, RemoveContainerOptionsBuilder,
};
use fake_docker::{Call, End, FakeDocker, Fault, Rates, Struck, Weather};
use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::Instant;

/// Far longer than anything here takes; only a failure waits for it.
const LONG: Duration = Duration::from_secs(30);

fn client(fake: &FakeDocker) -> Docker {
    Docker::connect_with_host(&fake.endpoint()).unwrap()
}

async fn create(docker: &Docker, name: &str, script: &str, labels: &[(&str, &str)]) -> Option<String> {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let body = ContainerCreateBody {
        image: Some("busybox".to_owned()),
        cmd: Some(["sh", "-c", script].map(str::to_owned).to_vec()),
        labels: Some(labels.collect()),
        host_config: Some(bollard::models::HostConfig { init: Some(true), ..Default::default() }),
        ..Default::default()
    };
    let options = CreateContainerOptionsBuilder::new().name(name).build();
    docker.create_container(Some(options), body).await.ok().map(|created| created.id)
}

async fn kill(docker: &Docker, what: &str, signal: &str) -> bool {
    docker.kill_container(what, Some(KillContainerOptionsBuilder::new().signal(signal).build())).await.is_ok()
}

async fn remove(docker: &Docker, what: &str) -> bool {
    docker.remove_container(what, Some(RemoveContainerOptionsBuilder::new().force(true).build())).await.is_ok()
}

/// A container's whole life, the same calls whatever they answer.
async fn one_life(docker: &Docker, name: &str, labels: &[(&str, &str)]) {
    create(docker, name, "sleep inf", labels).await;
    let _whatever = docker.start_container(name, None).await;
    for _ in 0..4 {
        let _whatever = docker.inspect_container(name, None).await;
    }
    kill(docker, name, "SIGKILL").await;
    remove(docker, name).await;
}

fn rough(seed: u64) -> Weather {
    let rates = Rates {
        slow: 0.1,
        latency: Duration::from_millis(3),
        hang: 0.05,
        longest: Duration::from_millis(20),
        refused: 0.1,
        lost: 0.1,
        truncated: 0.05,
        ..Rates::default()
    };
    Weather::new(seed).on(&[Call::Create, Call::Start, Call::Inspect, Call::Kill, Call::Remove], rates)
}

fn told(mut struck: Vec<Struck>) -> Vec<String> {
    struck.sort_by_key(|struck| (struck.whom.clone(), format!("{:?}", struck.call), struck.nth));
    struck.into_iter().map(|struck| format!("{} {:?} {}: {:?}", struck.whom, struck.call, struck.nth, struck.fault)).collect()
}

#[tokio::test]
async fn the_same_seed_and_calls_meet_the_same_faults_however_they_are_scheduled() {
    let names: Vec<String> = (0..20).map(|number| format!("container-{number}")).collect();
    let in_turn = FakeDocker::start().await;
    in_turn.set_weather(rough(7));
    for name in &names {
        one_life(&client(&in_turn), name, &[]).await;
    }
    let at_once = FakeDocker::start().await;
    at_once.set_weather(rough(7));
    let docker = client(&at_once);
    join_all(names.iter().rev().map(|name| one_life(&docker, name, &[]))).await;
    let struck = told(in_turn.struck());
    assert!(struck.len() > 20, "too little went wrong to prove anything: {struck:?}");
    assert_eq!(struck, told(at_once.struck()));

    let other_seed = FakeDocker::start().await;
    other_seed.set_weather(rough(8));
    let docker = client(&other_seed);
    join_all(names.iter().map(|name| one_life(&docker, name, &[]))).await;
    assert_ne!(struck, told(other_seed.struck()));
}

#[tokio::test]
async fn faults_follow_a_label_where_names_differ_from_run_to_run() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let fake = FakeDocker::start().await;
        fake.set_weather(rough(7).named_by("number"));
        let docker = client(&fake);
        for number in 0..20 {
            one_life(&docker, &uuid::Uuid::new_v4().to_string(), &[("number", &number.to_string())]).await;
        }
        runs.push(told(fake.struck()));
    }
    assert!(runs[0].len() > 20 && runs[0] == runs[1], "{runs:?}");
}

#[tokio::test]
async fn what_happens_always_does() {
    let fake = FakeDocker::start().await;
    let docker = client(&fake);
    let id = create(&docker, "one", "sleep inf", &[]).await.unwrap();
    docker.start_container(&id, None).await.unwrap();
    let always = |call, rates| fake.set_weather(Weather::new(1).on(&[call], rates));
    always(Call::List, Rates { empty: 1.0, ..Rates::default() });
    assert_eq!(docker.list_containers(None::<ListContainersOptions>).await.unwrap(), []);
    always(Call::List, Rates { truncated: 1.0, ..Rates::default() });
    assert!(docker.list_containers(None::<ListContainersOptions>).await.is_err());
    always(Call::Inspect, Rates { refused: 1.0, ..Rates::default() });
    assert!(docker.inspect_container(&id, None).await.is_err());
    always(Call::Inspect, Rates { hang: 1.0, longest: Duration::from_millis(40), ..Rates::default() });
    // It has an end.
    docker.inspect_container(&id, None).await.unwrap();
    always(Call::Remove, Rates { lost: 1.0, ..Rates::default() });
    assert!(!remove(&docker, &id).await);
    assert_eq!(fake.containers(), []);
    let all = [
        (Call::List, 0, Fault::Empty),
        (Call::List, 1, Fault::Truncated),
        (Call::Inspect, 0, Fault::Status(500, "the weather is bad")),
        (Call::Remove, 0, Fault::LostResponse),
    ];
    for (call, nth, fault) in all {
        assert!(fake.struck().iter().any(|struck| (struck.call, struck.nth, &struck.fault) == (call, nth, &fault)), "{:?}", fake.struck());
    }
}

#[tokio::test]
async fn healing_ends_the_weather_and_lets_go_of_what_hangs() {
    let fake = FakeDocker::start().await;
    let docker = client(&fake);
    fake.set_weather(Weather::new(1).on(&[Call::Ping], Rates { hang: 1.0, longest: Duration::from_secs(100_000), ..Rates::default() }));
    let hangs = tokio::spawn({
        let docker = docker.clone();
        async move { docker.ping().await }
    });
    while fake.struck().is_empty() {
        tokio::task::yield_now().await;
    }
    fake.heal();
    tokio::time::timeout(LONG, hangs).await.unwrap().unwrap().unwrap();
    docker.ping().await.unwrap();
    assert_eq!(fake.struck().len(), 1);
}

#[tokio::test]
async fn events_that_are_lost_never_come() {
    use futures_util::StreamExt;
    let fake = FakeDocker::start().await;
    let docker = client(&fake);
    let mut events = docker.events(None::<bollard::query_parameters::EventsOptions>);
    // The subscription stands once its first event has come.
    let first = tokio::select! {
        event = events.next() => event.unwrap().unwrap(),
        () = async {
            for number in 0.. {
                create(&docker, &format!("before-{number}"), "sleep inf", &[]).await;
            }
        } => unreachable!(),
    };
    assert_eq!(first.action.as_deref(), Some("create"));
    fake.set_weather(Weather::new(1).losing_events(1.0));
    create(&docker, "unheard", "sleep inf", &[]).await.unwrap();
    fake.heal();
    create(&docker, "heard", "sleep inf", &[]).await.unwrap();
    loop {
        let event = tokio::time::timeout(LONG, events.next()).await.unwrap().unwrap().unwrap();
        match event.actor.unwrap().attributes.unwrap()["name"].as_str() {
            "unheard" => panic!("it was lost"),
            "heard" => break,
            _ => {}
        }
    }
}

#[tokio::test]
async fn every_life_is_recorded_with_its_end() {
    let fake = FakeDocker::start().await;
    let docker = client(&fake);
    let start = async |name: &'static str, script: &str| {
        create(&docker, name, script, &[("sundown.agent", name)]).await.unwrap();
        docker.start_container(name, None).await.unwrap();
    };
    start("itself", "sleep 0.05; exit 3").await;
    start("hungry", "oom").await;
    start("stubborn", "ignore-term; sleep inf").await;
    start("asked", "sleep inf").await;
    start("removed", "sleep inf").await;
    start("alive", "sleep inf").await;
    // So that it ignores what it says it does.
    fake.until(|all| all.iter().filter(|seen| seen.status == "exited").count() == 2).await;
    assert!(kill(&docker, "stubborn", "SIGTERM").await && kill(&docker, "stubborn", "SIGKILL").await);
    assert!(kill(&docker, "asked", "SIGTERM").await && remove(&docker, "removed").await);
    // A second life of the same container.
    docker.start_container("itself", None).await.unwrap();
    fake.until(|all| all.iter().filter(|seen| seen.status == "running").count() == 1).await;
    fake.set_weather(Weather::new(1).vanishing(1.0, Duration::from_millis(50)));
    start("gone", "sleep inf").await;
    fake.until(|all| all.iter().all(|seen| seen.name != "gone")).await;
    assert_eq!(fake.alive(), 1);

    let lives = fake.lives();
    let ended: Vec<(&str, Option<End>)> =
        lives.iter().map(|life| (life.container.as_str(), life.ended.clone().map(|(_, end)| end))).collect();
    let expected = [
        ("itself", Some(End::Itself(3))),
        ("hungry", Some(End::OutOfMemory)),
        ("stubborn", Some(End::Signalled("SIGKILL"))),
        ("asked", Some(End::Signalled("SIGTERM"))),
        ("removed", Some(End::Removed)),
        ("alive", None),
        ("itself", Some(End::Itself(3))),
        ("gone", Some(End::Vanished)),
    ];
    assert_eq!(ended, expected);
    assert_eq!((fake.runs("itself"), fake.runs("alive")), (2, 1));
    assert_eq!(lives[2].signals.iter().map(|(signal, _)| *signal).collect::<Vec<_>>(), ["SIGTERM", "SIGKILL"]);
    assert!(lives.iter().all(|life| life.agent.as_deref() == Some(&life.container) && !life.id.is_empty()));

    let lines: Vec<Value> = fake.lives_jsonl().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), expected.len());
    assert_eq!((&lines[0]["ended"], &lines[0]["exit_code"]), (&"itself".into(), &3.into()));
    assert_eq!((&lines[2]["ended"], &lines[2]["signals"][0]["signal"]), (&"SIGKILL".into(), &"SIGTERM".into()));
    assert!(lines[5]["ended"].is_null() && lines[5]["ended_ms"].is_null());
    assert!(lines[0]["ended_ms"].as_u64().unwrap() >= lines[0]["started_ms"].as_u64().unwrap() + 50);
}

/// The median duration of each kind of call, for containers with these names.
async fn costs(docker: &Docker, names: impl Iterator<Item = String>) -> HashMap<&'static str, Duration> {
    let mut took: HashMap<&'static str, Vec<Duration>> = HashMap::new();
    for name in names {
        let since = Instant::now();
        create(docker, &name, "sleep inf", &[("installation", "ours")]).await.unwrap();
        let created = Instant::now();
        docker.start_container(&name, None).await.unwrap();
        let started = Instant::now();
        docker.inspect_container(&name, None).await.unwrap();
        let inspected = Instant::now();
        assert!(kill(docker, &name, "SIGKILL").await);
        let killed = Instant::now();
        assert!(remove(docker, &name).await);
        for (call, span) in [
            ("create", created - since),
            ("start", started - created),
            ("inspect", inspected - started),
            ("kill", killed - inspected),
            ("remove", killed.elapsed()),
        ] {
            took.entry(call).or_default().push(span);
        }
    }
    let median = |mut spans: Vec<Duration>| {
        spans.sort();
        spans[spans.len() / 2]
    };
    took.into_iter().map(|(call, spans)| (call, median(spans))).collect()
}

#[tokio::test]
async fn among_thousands_of_containers_a_call_costs_what_it_costs_among_none() {
    let fake = FakeDocker::start().await;
    let docker = client(&fake);
    let alone = costs(&docker, (0..100).map(|number| format!("alone-{number}"))).await;
    let waiting = async |range: std::ops::Range<usize>| {
        for number in range {
            let id = create(&docker, &format!("other-{number}"), "sleep 1000; exit 0", &[("installation", "ours")]).await.unwrap();
            docker.start_container(&id, None).await.unwrap();
        }
    };
    join_all((0..8).map(|lane| waiting(lane * 375..(lane + 1) * 375))).await;
    assert_eq!(fake.alive(), 3_000);
    // Some wait for one of them, as a kill does.
    let waits = join_all((0..500).map(|number| {
        let docker = docker.clone();
        async move {
            use futures_util::StreamExt;
            docker.wait_container(&format!("other-{number}"), None::<bollard::query_parameters::WaitContainerOptions>).next().await
        }
    }));
    let waits = tokio::spawn(waits);
    while fake.total(Call::Wait) < 500 {
        tokio::task::yield_now().await;
    }
    let among = costs(&docker, (0..100).map(|number| format!("among-{number}"))).await;
    waits.abort();
    let since = Instant::now();
    assert_eq!(docker.list_containers(None::<ListContainersOptions>).await.unwrap().len(), 3_000);
    println!("alone {alone:?}, among thousands {among:?}, list {:?}", since.elapsed());
    for (call, cost) in &alone {
        // Anything that walked them all would cost many times as much; the machine is not ours alone.
        assert!(among[call] < *cost * 8 + Duration::from_millis(2), "{call}: {:?} among thousands, {cost:?} among none", among[call]);
    }
}
