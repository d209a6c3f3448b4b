//! Everything that a run stands on, made for it and gone with it: a Postgres, a Docker daemon, replicas in network namespaces behind
//! HAProxy, and containers that are none of ours.

use std::sync::Arc;

use tokio::sync::Mutex;
use uuid::Uuid;

use super::fleet::{Fleet, LEASE};
use super::observe::first_process;
use super::record::{Decoy, Dir};
use crate::harness::cluster::{Cluster, Plan};
use crate::harness::dockerd::{Dockerd, IMAGE};
use crate::harness::pooler::Pooler;

/// Where Postgres listens on the run's own address.
const PORT: u16 = 5432;
/// How many agents a host may carry.
const CAPACITY: &str = "40";

pub struct World {
    // In the order in which they go.
    pub fleet: Mutex<Fleet>,
    pooler: Mutex<Option<Pooler>>,
    pub cluster: Arc<Cluster>,
    pub dockerd: Mutex<Dockerd>,
    pub docker: bollard::Docker,
    pub docker_endpoint: String,
    pub database_port: u16,
    pub dir: Dir,
}

impl World {
    pub async fn new(dir: &Dir, replicas: u8, pooled: bool) -> Arc<Self> {
        let dockerd = Dockerd::start_on(true).await;
        let (bridge, address) = dockerd.network();
        let cluster = Arc::new(Cluster::start(Plan { address: Some(address), port: Some(PORT), ..Plan::default() }).await);
        let config = cluster.config("sundown");
        let pooler = if pooled { Some(Pooler::start(&config, 30, address.parse().unwrap()).await) } else { None };
        let (url, database_port) = pooler.as_ref().map_or((cluster.url(), PORT), |pooler| (pooler.url(&config), pooler.port));
        let lease = format!("{}ms", LEASE.as_millis());
        let variables = [
            ("SUNDOWN_DATABASE_URL", url),
            ("SUNDOWN_DOCKER", dockerd.tcp()),
            ("SUNDOWN_LEASE", lease),
            ("SUNDOWN_CAPACITY", CAPACITY.to_owned()),
        ];
        let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut fleet = Fleet::new(bridge, address, replicas, dir.path(), &variables);
        for n in 0..fleet.count() {
            fleet.start(n);
        }
        fleet.all_ready().await;
        let endpoint = dockerd.endpoint();
        let docker = bollard::Docker::connect_with_host(&endpoint).unwrap().negotiate_version().await.unwrap();
        let world = Self {
            fleet: Mutex::new(fleet),
            cluster,
            docker,
            docker_endpoint: endpoint,
            database_port,
            pooler: Mutex::new(pooler),
            dockerd: Mutex::new(dockerd),
            dir: dir.clone(),
        };
        Arc::new(world)
    }

    /// Starts again what ended by itself, as a service manager does.
    pub async fn look_after(&self) {
        self.fleet.lock().await.look_after();
        if let Some(pooler) = self.pooler.lock().await.as_mut() {
            pooler.look_after();
        }
    }

    /// Starts containers that must be left alone: a stranger, one of another installation, one with our name and no label, one that copies
    /// our labels and has another name.
    pub async fn decoys(&self) -> Vec<Decoy> {
        let client = self.cluster.ours().await;
        let ours: Uuid = client.query_one("select id from sundown.installation", &[]).await.unwrap().get(0);
        let (agent, other) = (Uuid::new_v4(), Uuid::new_v4());
        let label = |installation: Uuid| format!("sundown.installation={installation}");
        let copy = format!("sundown.agent={agent}");
        let cases: [(&str, Vec<String>); 4] = [
            ("stranger", Vec::new()),
            ("neighbour", vec![label(other), copy.clone(), "sundown.longest_life=1".to_owned()]),
            (&format!("sundown-{agent}"), Vec::new()),
            ("copycat", vec![label(ours), copy, "sundown.longest_life=36000".to_owned()]),
        ];
        let dockerd = self.dockerd.lock().await;
        let started = cases.iter().map(|(name, labels)| {
            let mut args = vec!["run", "-d", "--network", "none", "--name", name];
            args.extend(labels.iter().flat_map(|label| ["--label", label.as_str()]));
            args.extend([IMAGE, "sleep", "36000"]);
            let container = dockerd.docker(&args);
            Decoy { name: (*name).to_owned(), process: first_process(&container), container }
        });
        started.collect()
    }

    /// What has become of them.
    pub fn still(decoys: &[Decoy]) -> Vec<Decoy> {
        decoys.iter().map(|decoy| Decoy { process: first_process(&decoy.container), ..decoy.clone() }).collect()
    }
}
