//! Everything that a run stands on, made for it and gone with it: a Postgres, a Docker daemon, replicas in network namespaces behind
//! HAProxy, and containers that are none of ours.

use std::sync::Arc;

use tokio::sync::Mutex;
use uuid::Uuid;

use super::daemon::Daemon;
use super::fleet::Fleet;
use super::record::{Decoy, Dir, Plan};
use crate::harness::cluster::{self, Cluster};
use crate::harness::pooler::Pooler;

/// Where Postgres listens on the run's own address.
const PORT: u16 = 5432;

pub struct World {
    // In the order in which they go.
    pub fleet: Mutex<Fleet>,
    pooler: Mutex<Option<Pooler>>,
    pub cluster: Arc<Cluster>,
    pub daemon: Arc<Daemon>,
    pub docker: bollard::Docker,
    pub database_port: u16,
    pub dir: Dir,
    pub plan: Plan,
}

impl World {
    pub async fn new(dir: &Dir, replicas: u8, plan: &Plan) -> Arc<Self> {
        let daemon = Arc::new(Daemon::start(plan).await);
        let (bridge, address) = daemon.network().await;
        let cluster =
            Arc::new(Cluster::start(cluster::Plan { address: Some(&address), port: Some(PORT), ..cluster::Plan::default() }).await);
        let config = cluster.config("sundown");
        let pooler = if plan.pooled { Some(Pooler::start(&config, 30, address.parse().unwrap()).await) } else { None };
        let (url, database_port) = pooler.as_ref().map_or((cluster.url(), PORT), |pooler| (pooler.url(&config), pooler.port));
        let mut variables = vec![
            ("SUNDOWN_DATABASE_URL", url),
            ("SUNDOWN_DOCKER", daemon.address().await),
            ("SUNDOWN_LEASE", format!("{}ms", plan.lease)),
            ("SUNDOWN_CAPACITY", plan.capacity.to_string()),
        ];
        if plan.sky.is_some() {
            // The small daemon shares nothing with the machine: more starts at once only fill its lanes.
            variables.push(("SUNDOWN_STARTS", "8".to_owned()));
        }
        let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut fleet = Fleet::new(&bridge, &address, replicas, dir.path(), &variables, plan.defect.clone());
        for n in 0..fleet.count() {
            fleet.start(n);
        }
        fleet.all_ready().await;
        let docker = bollard::Docker::connect_with_host(&daemon.endpoint().await).unwrap().negotiate_version().await.unwrap();
        let world = Self {
            fleet: Mutex::new(fleet),
            pooler: Mutex::new(pooler),
            cluster,
            daemon,
            docker,
            database_port,
            dir: dir.clone(),
            plan: plan.clone(),
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

    /// Starts containers that must be left alone.
    pub async fn decoys(&self) -> Vec<Decoy> {
        let client = self.cluster.ours().await;
        let ours: Uuid = client.query_one("select id from sundown.installation", &[]).await.unwrap().get(0);
        self.daemon.decoys(ours).await
    }
}
