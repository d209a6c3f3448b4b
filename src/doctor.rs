//! Checks what Sundown needs and says what to do about what is missing. Changes nothing.

use std::io::Write;
use std::time::Duration;

use tokio::net::UnixStream;
use uuid::Uuid;

use crate::config::{Doctor, printable};
use crate::docker::{self, Docker};
use crate::error::Error;
use crate::process;
use crate::serve::Fatal;
use crate::sql::Sql;

/// Runs every check and prints a line for each. Answers whether all is well.
///
/// # Errors
/// When it cannot check at all.
pub async fn run(config: Doctor) -> Result<bool, Fatal> {
    let mut well = true;
    let mut say = |good: bool, what: String| {
        well &= good;
        // Whoever reads only the beginning has read enough.
        let _closed_pipe = writeln!(std::io::stdout(), "{} {what}", if good { "ok  " } else { "FIX " });
    };
    match config.database.addresses().map_err(Fatal::Usage)? {
        None => say(true, format!("database: none given; serve runs a private one in {}", config.database.data_dir().display())),
        Some((address, direct)) => {
            let mut ours = None;
            let sql = Sql::new(&address, 1, Duration::from_secs(5))?;
            match sql.identity().await {
                Ok(Some((installation, true))) => {
                    say(true, format!("database {}: installation {installation}", printable(&address)));
                    ours = Some(installation);
                    match sql.gauges().await.map(|gauges| gauges.overdue) {
                        Ok(0) => say(true, "0 agents overdue".to_owned()),
                        Ok(overdue) => say(false, format!("{overdue} agents overdue: select * from sundown.overdue")),
                        Err(error) => say(false, format!("agents overdue: {error}: may this role read what it should?")),
                    }
                }
                Ok(Some((_, false))) => say(false, "database: a copy or a standby of the one that its installation is bound to: run `sundown adopt` if the original is gone".to_owned()),
                Ok(None) | Err(Error::Internal(_)) => say(false, "database: not migrated: run `sundown migrate`".to_owned()),
                Err(error) => say(false, format!("database {}: {error}: is it running, and is SUNDOWN_DATABASE_URL right?", printable(&address))),
            }
            if config.database.direct_url.is_some() {
                let (good, what) = match Sql::new(&direct, 1, Duration::from_secs(5))?.identity().await {
                    Ok(Some((installation, true))) if ours.is_none_or(|ours| ours == installation) => (true, "the same".to_owned()),
                    Ok(Some(_)) => {
                        (false, "not the same database: SUNDOWN_DIRECT_URL and SUNDOWN_DATABASE_URL must lead to one".to_owned())
                    }
                    Ok(None) | Err(Error::Internal(_)) => (false, "not migrated: run `sundown migrate`".to_owned()),
                    Err(error) => (false, format!("{error}: is it running, and is SUNDOWN_DIRECT_URL right?")),
                };
                say(good, format!("direct database {}: {what}", printable(&direct)));
            }
        }
    }
    for endpoint in config.docker.endpoints.all() {
        let described = match Docker::connect(&endpoint, Uuid::nil()).await {
            Ok(docker) => docker.describe().await,
            Err(error) => Err(error),
        };
        match described {
            Ok(d) => {
                say(
                    true,
                    format!(
                        "docker {endpoint}: version {}, API {}, {} cores, cgroup v{}",
                        d.version, d.api_version, d.cpus, d.cgroup_version
                    ),
                );
                say(
                    d.live_restore,
                    format!(
                        "docker {endpoint}: live-restore is {}",
                        if d.live_restore {
                            "on"
                        } else {
                            "off: a restart of the daemon ends every agent; set \"live-restore\": true in daemon.json"
                        }
                    ),
                );
                let sender = match by_the_daemon(&endpoint, config.docker.no_fast_kill).await {
                    None => "sent directly to processes of containers".to_owned(),
                    Some(why) => format!("sent by the daemon: {why}"),
                };
                say(true, format!("docker {endpoint}: SIGKILL is {sender}"));
            }
            Err(error) => say(false, format!("docker {endpoint}: {error}: is it running, and may this user use its socket?")),
        }
    }
    Ok(well)
}

/// Why SIGKILL is left to a daemon. `None`: it is not.
async fn by_the_daemon(endpoint: &str, no_fast_kill: bool) -> Option<&'static str> {
    if no_fast_kill {
        return Some("SUNDOWN_NO_FAST_KILL is set");
    }
    let Some(socket) = docker::socket(endpoint) else { return Some("it is not reached by a socket on this machine") };
    let listener = UnixStream::connect(socket).await.and_then(|stream| stream.peer_cred());
    process::out_of_reach(listener.ok().and_then(|listener| listener.pid()))
}
