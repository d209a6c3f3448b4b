//! The Docker daemon of a run: a real one, or the small one on the wire, which holds thousands and goes wrong by seed.

use std::time::Duration;

use tokio::sync::Mutex;
use uuid::Uuid;

use super::observe::first_process;
use super::record::{Decoy, Plan, Sky};
use crate::fake_docker::{Call, FakeDocker, Fault, Rates, Weather};
use crate::harness::dockerd::{Dockerd, IMAGE};
use crate::harness::network::Bridge;

/// The label by which the weather knows an agent from run to run: its idempotency key, under the prefix of users' labels.
const KEY: &str = "sundown.label.key";

pub enum Daemon {
    Real(Mutex<Dockerd>),
    Small(Small),
}

/// The one on the wire, and what it stands on.
pub struct Small {
    pub fake: FakeDocker,
    weather: Weather,
    /// What goes wrong with every list.
    always: Option<Fault>,
    bridge: Bridge,
}

impl Daemon {
    pub async fn start(plan: &Plan) -> Self {
        match plan.sky {
            None => Self::Real(Mutex::new(Dockerd::start_on(true).await)),
            Some(sky) => {
                let always = match sky {
                    Sky::EmptyLists => Some(Fault::Empty),
                    Sky::SlowLists => Some(Fault::Slow(Duration::from_secs(2))),
                    _ => None,
                };
                Self::Small(Small { fake: FakeDocker::start().await, weather: weather(sky, plan.seed), always, bridge: Bridge::new() })
            }
        }
    }

    /// The bridge that replicas are on: its name, and our address.
    pub async fn network(&self) -> (String, String) {
        let of = |bridge: &Bridge| (bridge.name.clone(), bridge.address.clone());
        match self {
            Self::Real(dockerd) => of(dockerd.lock().await.bridge()),
            Self::Small(small) => of(&small.bridge),
        }
    }

    /// Where replicas find it. The real one is on the network, so that packets to it can be lost.
    pub async fn address(&self) -> String {
        match self {
            Self::Real(dockerd) => dockerd.lock().await.tcp(),
            Self::Small(small) => small.fake.endpoint(),
        }
    }

    /// Where the run itself finds it.
    pub async fn endpoint(&self) -> String {
        match self {
            Self::Real(dockerd) => dockerd.lock().await.endpoint(),
            Self::Small(small) => small.fake.endpoint(),
        }
    }

    /// What agents are made from.
    pub fn image(&self) -> &'static str {
        match self {
            Self::Real(_) => IMAGE,
            Self::Small(_) => "busybox",
        }
    }

    /// From now on the weather is the plan's; before, everybody came in peace.
    pub fn begin(&self) {
        if let Self::Small(small) = self {
            small.fake.set_weather(small.weather.clone());
            if let Some(fault) = &small.always {
                small.fake.inject(Some(Call::List), None, fault.clone(), usize::MAX);
            }
        }
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        if let Self::Small(small) = self {
            small.fake.heal();
        }
    }

    /// How many containers have the name of an agent; one of the decoys has, too.
    pub async fn agents(&self) -> usize {
        let ours = |name: &str| name.starts_with("sundown-");
        match self {
            Self::Real(dockerd) => dockerd.lock().await.names().iter().filter(|name| ours(name)).count(),
            Self::Small(small) => small.fake.containers().iter().filter(|seen| ours(&seen.name)).count(),
        }
    }

    /// Starts containers that must be left alone: a stranger, one of another installation, one with our name and no label, one that copies
    /// our labels and has another name.
    pub async fn decoys(&self, ours: Uuid) -> Vec<Decoy> {
        let (agent, other) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let (ours, name) = (ours.to_string(), format!("sundown-{agent}"));
        let labels = |installation: &str, life: &str| {
            let labels = [("sundown.installation", installation), ("sundown.agent", &agent), ("sundown.longest_life", life)];
            labels.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec()
        };
        let cases = [("stranger", vec![]), ("neighbour", labels(&other, "1")), (&name, vec![]), ("copycat", labels(&ours, "36000"))];
        let mut decoys = Vec::new();
        for (name, labels) in cases {
            let labels: Vec<(&str, &str)> = labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            let container = match self {
                Self::Real(dockerd) => {
                    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("--label={key}={value}")).collect();
                    let mut args = vec!["run", "-d", "--network", "none", "--name", name];
                    args.extend(labels.iter().map(String::as_str));
                    args.extend([IMAGE, "sleep", "36000"]);
                    dockerd.lock().await.docker(&args)
                }
                Self::Small(small) => {
                    small.fake.run(name, &labels);
                    small.fake.containers().into_iter().find(|seen| seen.name == name).unwrap().id
                }
            };
            decoys.push(self.decoy(name, container));
        }
        decoys
    }

    /// What has become of them.
    pub fn still(&self, decoys: &[Decoy]) -> Vec<Decoy> {
        decoys.iter().map(|decoy| self.decoy(&decoy.name, decoy.container.clone())).collect()
    }

    fn decoy(&self, name: &str, container: String) -> Decoy {
        let process = match self {
            Self::Real(_) => first_process(&container),
            Self::Small(small) => {
                let runs = small.fake.runs(&container);
                let alive = small.fake.containers().iter().any(|seen| seen.id == container && seen.status == "running");
                alive.then_some((0, runs as u64))
            }
        };
        Decoy { name: name.to_owned(), container, process }
    }
}

impl Small {
    /// It answers nothing at all until `go_on`.
    pub fn fall_silent(&self) {
        self.fake.inject(None, None, Fault::Hang, usize::MAX);
    }

    /// After `fall_silent`; the weather is as before.
    pub fn go_on(&self) {
        self.fake.heal();
        self.fake.set_weather(self.weather.clone());
    }
}

/// What goes wrong by itself under such a sky.
fn weather(sky: Sky, seed: u64) -> Weather {
    let calm = Weather::new(seed).named_by(KEY);
    let often = Rates { slow: 0.05, latency: Duration::from_millis(400), refused: 0.01, lost: 0.01, truncated: 0.005, ..Rates::default() };
    match sky {
        Sky::Calm | Sky::EmptyLists | Sky::SlowLists => calm,
        // Every kind of it, at rates that let nearly every agent meet some.
        Sky::Rough => calm
            .on(
                &[Call::Create, Call::Inspect, Call::Kill, Call::Wait, Call::Logs, Call::Remove],
                Rates { hang: 0.002, longest: Duration::from_secs(8), ..often },
            )
            // A start that takes effect later than half of its lease may run an agent twice, which is why no lease may be that short. Here it is.
            .on(&[Call::Start], Rates { hang: 0.002, longest: Duration::from_millis(1200), ..often })
            .on(
                &[Call::List],
                Rates { refused: 0.03, empty: 0.05, truncated: 0.02, slow: 0.1, latency: Duration::from_secs(1), ..Rates::default() },
            )
            .on(&[Call::Ping], Rates { slow: 0.05, latency: Duration::from_millis(300), ..Rates::default() })
            .vanishing(0.01, Duration::from_secs(5))
            .losing_events(0.2),
        Sky::NoEvents => calm.losing_events(1.0),
        Sky::HangingKills => calm.on(&[Call::Kill], Rates { hang: 0.3, longest: Duration::from_secs(12), ..Rates::default() }),
    }
}
