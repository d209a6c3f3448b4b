//! What is created: an agent's wishes inside the hardened profile.
//!
//! It must not ask the daemon. It guarantees that no wish reaches past the profile: our labels and our variable win,
//! and nothing of the host is named.

use std::collections::BTreeMap;
use std::time::Duration;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};
use uuid::Uuid;

use super::DockerError;
use super::container::{LABEL_AGENT, LABEL_INSTALLATION, LABEL_LONGEST_LIFE};

/// A user's labels go below this prefix: other tools on a host act on container labels (routing, restarts, clean-up),
/// and a tenant must not steer them, nor take one of ours.
const LABEL_OF_USER: &str = "sundown.label.";
const ENV_AGENT: &str = "SUNDOWN_AGENT_ID";
const ENV_DEADLINE: &str = "SUNDOWN_EXPIRES_AT";

/// Which network an agent gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Loopback only.
    None,
    /// The daemon's default bridge.
    Bridge,
}

/// What to create. Limits are those in force, defaults already applied. Not `Debug`: it holds the values of the
/// environment.
#[derive(Clone)]
pub struct ContainerSpec {
    /// Gives the name, a label and `SUNDOWN_AGENT_ID`.
    pub agent: Uuid,
    /// Must be on the host already; nothing is pulled.
    pub image: String,
    /// Arguments to the image's entrypoint; empty: the image's own command.
    pub command: Vec<String>,
    /// Later entries win over earlier ones, ours over all.
    pub env: Vec<(String, String)>,
    /// The user's labels, without prefix.
    pub labels: BTreeMap<String, String>,
    /// Longest possible life of the container's process: what the dead man goes by. Rounded up to whole seconds.
    pub longest_life: Duration,
    /// CPUs; at least 0.01.
    pub cpus: f64,
    /// Memory in bytes, swap included; at least 6 MiB.
    pub memory_bytes: i64,
    /// Most processes and threads, the init included.
    pub pids: i64,
    /// Loopback only, or bridge.
    pub network: Network,
    /// Used by `docker stop` alone: Sundown sends both signals itself.
    pub grace: Duration,
    /// `SUNDOWN_EXPIRES_AT`: an instant in RFC 3339 that its first deadline is not before.
    pub first_deadline: String,
}

/// The request body: what was asked for inside the hardened profile.
pub(super) fn creation(spec: &ContainerSpec, installation: Uuid) -> Result<ContainerCreateBody, DockerError> {
    check(spec).map_err(|reason| DockerError::Rejected(reason.to_owned()))?;
    let mut env: BTreeMap<&str, &str> = BTreeMap::new();
    for (key, value) in &spec.env {
        env.insert(key, value);
    }
    let agent = spec.agent.to_string();
    env.insert(ENV_AGENT, &agent);
    env.insert(ENV_DEADLINE, &spec.first_deadline);
    let user_labels = spec.labels.iter().map(|(key, value)| (format!("{LABEL_OF_USER}{key}"), value.clone()));
    let our_labels = [
        (LABEL_INSTALLATION.to_owned(), installation.to_string()),
        (LABEL_AGENT.to_owned(), agent.clone()),
        (LABEL_LONGEST_LIFE.to_owned(), whole_seconds(spec.longest_life).to_string()),
    ];
    Ok(ContainerCreateBody {
        image: Some(spec.image.clone()),
        cmd: (!spec.command.is_empty()).then(|| spec.command.clone()),
        env: Some(env.iter().map(|(key, value)| format!("{key}={value}")).collect()),
        labels: Some(user_labels.chain(our_labels).collect()),
        stop_signal: Some("SIGTERM".to_owned()),
        stop_timeout: Some(i64::try_from(spec.grace.as_secs()).unwrap_or(i64::MAX)),
        // An image's health check would run inside the agent's limits, for nobody.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        host_config: Some(profile(spec)),
        ..Default::default()
    })
}

/// Rounded up, for nobody may be ended before his time.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

/// What the daemon would not refuse, or not well.
fn check(spec: &ContainerSpec) -> Result<(), &'static str> {
    // The daemon's refusal of an empty key quotes the value, as does the runtime's of a NUL.
    let malformed = |(key, value): &(String, String)| key.is_empty() || key.contains(['=', '\0']) || value.contains('\0');
    if spec.env.iter().any(malformed) {
        return Err("an environment variable is malformed");
    }
    if spec.command.iter().any(|word| word.contains('\0')) {
        return Err("a word of the command contains NUL");
    }
    // To the daemon 0 means unlimited, and a share of a CPU that rounds to no quota does too.
    if !(spec.cpus >= 0.01 && spec.memory_bytes > 0 && spec.pids > 0) {
        return Err("limits on CPUs (at least 0.01), memory and processes are required");
    }
    Ok(())
}

/// The hardened profile. No `nproc` limit: it counts per user of the host, so agents would starve each other.
fn profile(spec: &ContainerSpec) -> HostConfig {
    let ulimit = |name: &str, limit| ResourcesUlimits { name: Some(name.to_owned()), soft: Some(limit), hard: Some(limit) };
    let log = [("max-size", "1m"), ("max-file", "2"), ("mode", "non-blocking"), ("max-buffer-size", "1m")];
    let network = match spec.network {
        Network::None => "none",
        Network::Bridge => "bridge",
    };
    HostConfig {
        // As PID 1 a command without a handler would ignore SIGTERM, and its orphans would stay zombies.
        init: Some(true),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        privileged: Some(false),
        network_mode: Some(network.to_owned()),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        shm_size: Some(16 << 20),
        memory: Some(spec.memory_bytes),
        // Equal to the memory: no swap.
        memory_swap: Some(spec.memory_bytes),
        nano_cpus: Some((spec.cpus * 1e9).round() as i64),
        pids_limit: Some(spec.pids),
        // When the host itself runs out, agents go before daemons.
        oom_score_adj: Some(500),
        ulimits: Some(vec![ulimit("nofile", 1024), ulimit("core", 0)]),
        // The local driver, since json-file has no bound (200 MB in 5 s of `yes`); non-blocking, so that a slow disk
        // does not stop an agent inside a write: past a megabyte of backlog, lines are dropped.
        log_config: Some(HostConfigLogConfig {
            typ: Some("local".to_owned()),
            config: Some(log.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        }),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        auto_remove: Some(false),
        ..Default::default()
    }
}
