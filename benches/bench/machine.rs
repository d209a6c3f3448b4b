//! What it was measured on, and whether somebody else was at work there.

use std::fmt;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::Db;

/// What others may use of all cores, and the hypervisor take, before a run counts as noisy; in percent.
const BUSY: f64 = 10.0;
const STOLEN: f64 = 1.0;
/// The settings of Postgres that decide how fast it is.
const SETTINGS: [&str; 9] = [
    "server_version",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "autovacuum",
    "max_connections",
];

pub struct Machine {
    cores: usize,
    processor: String,
    memory_mib: u64,
    kernel: String,
    docker: Option<String>,
    settings: Vec<(&'static str, String)>,
    at: String,
    commit: String,
    /// Of the last 1, 5 and 15 minutes; building for this very run is part of it.
    load: String,
    /// How busy the cores were with nothing of ours running, in percent: before, and after each group of rows.
    busy: Vec<f64>,
    began: Ticks,
}

/// What the cores have done since boot, in ticks.
#[derive(Clone, Copy)]
struct Ticks {
    all: f64,
    idle: f64,
    stolen: f64,
}

impl Ticks {
    fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        // user nice system idle iowait irq softirq steal
        let ticks: Vec<f64> = line.split_whitespace().skip(1).take(8).filter_map(|word| word.parse().ok()).collect();
        Self { all: ticks.iter().sum(), idle: ticks[3] + ticks[4], stolen: ticks[7] }
    }

    /// How busy they were since, and how much was stolen, in percent.
    fn since(self) -> (f64, f64) {
        let now = Self::now();
        let percent = |share: f64| (share / (now.all - self.all).max(1.0) * 100.0).clamp(0.0, 100.0);
        (100.0 - percent(now.idle - self.idle), percent(now.stolen - self.stolen))
    }
}

async fn busy() -> f64 {
    // Until what was left to do of ours is done.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let before = Ticks::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    before.since().0
}

fn first_line(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim_start_matches(['\t', ' ', ':']).trim().to_owned()
}

impl Machine {
    /// As it is before anything is measured.
    pub async fn look() -> Self {
        let db = Db::empty().await;
        let client = db.client().await;
        let mut settings = Vec::new();
        for name in SETTINGS {
            settings.push((name, client.query_one(&format!("show {name}"), &[]).await.unwrap().get(0)));
        }
        let at = client.query_one("select to_char(now() at time zone 'UTC', 'YYYY-MM-DD HH24:MI')", &[]).await.unwrap().get(0);
        let memory = first_line("/proc/meminfo", "MemTotal");
        let docker = match crate::docker::daemon().await {
            Some(docker) => docker.version().await.ok().and_then(|version| version.version),
            None => None,
        };
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: first_line("/proc/cpuinfo", "model name"),
            memory_mib: memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            docker,
            settings,
            at,
            commit: std::env::var("SUNDOWN_BENCH_COMMIT").unwrap_or_default(),
            load: fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').take(3).collect::<Vec<_>>().join(" "),
            busy: vec![busy().await],
            began: Ticks::now(),
        }
    }

    /// Whether somebody else is at work on it, with nothing of ours running.
    pub async fn look_again(&mut self) {
        self.busy.push(busy().await);
    }

    fn stolen(&self) -> f64 {
        self.began.since().1
    }

    fn noisy(&self) -> bool {
        self.busy.iter().any(|busy| *busy > BUSY) || self.stolen() > STOLEN
    }

    /// Whether figures of this run are to be trusted.
    pub fn noise(&self) -> String {
        let busy: Vec<String> = self.busy.iter().map(|busy| format!("{busy:.0}")).collect();
        format!(
            "{}: others used {} % of all cores, before and after each group; {:.1} % was stolen meanwhile",
            if self.noisy() { "NOISY, so take no figure from this run" } else { "quiet" },
            busy.join(", "),
            self.stolen()
        )
    }

    pub fn json(&self) -> Value {
        json!({
            "cores": self.cores, "processor": self.processor, "memory_mib": self.memory_mib, "kernel": self.kernel, "docker": self.docker,
            "postgres": self.settings.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect::<serde_json::Map<_, _>>(),
            "at": self.at, "commit": self.commit, "load_before": self.load, "busy_percent": self.busy,
            "stolen_percent": self.stolen(), "noisy": self.noisy(),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings: Vec<String> = self.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        writeln!(f, "{} cores, {}, {} MiB, Linux {}", self.cores, self.processor, self.memory_mib, self.kernel)?;
        writeln!(f, "Postgres: {}", settings.join(" "))?;
        writeln!(f, "Docker: {}", self.docker.as_deref().unwrap_or("none, so its rows are left out"))?;
        write!(f, "{} UTC, {}; load before {}; others used {:.0} % of all cores", self.at, self.commit, self.load, self.busy[0])
    }
}
