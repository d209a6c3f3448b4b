//! PostgreSQL's own load generator, as the yardstick of statements: over TCP and in the extended protocol, as Sundown's are.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use uuid::Uuid;

use crate::load::{Load, Sample};

/// How long a run is.
pub enum Length {
    Seconds(u32),
    /// Of each client.
    Transactions(usize),
}

/// A script of `benches/sql`.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/sql").join(name).with_extension("sql")
}

/// Runs a script with some variables by so many clients.
pub async fn run(url: &str, script: &Path, clients: usize, length: Length, variables: &[(&str, &str)]) -> Load {
    Load::of(each(url, script, clients, length, variables).await)
}

/// The same; answers each of its transactions.
pub async fn each(url: &str, script: &Path, clients: usize, length: Length, variables: &[(&str, &str)]) -> Vec<Sample> {
    let program = std::env::var_os("SUNDOWN_BENCH_PGBENCH").expect("SUNDOWN_BENCH_PGBENCH says where pgbench is: run scripts/bench");
    let prefix = std::env::temp_dir().join(format!("sundown-bench-{}", Uuid::new_v4().simple()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(clients);
    let mut command = Command::new(program);
    command.args(["-n", "-M", "extended", "-c", &clients.to_string(), "-j", &threads.to_string(), "-l", "--log-prefix"]).arg(&prefix);
    match length {
        Length::Seconds(seconds) => command.args(["-T", &seconds.to_string()]),
        Length::Transactions(count) => command.args(["-t", &count.to_string()]),
    };
    for (name, value) in variables {
        command.args(["-D", &format!("{name}={value}")]);
    }
    let output = command.arg("-f").arg(script).arg(url).stdin(Stdio::null()).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "pgbench {}: {said}{}", script.display(), String::from_utf8_lossy(&output.stderr));
    samples(&prefix)
}

/// What the logs of a run say, one of each thread; they go.
fn samples(prefix: &Path) -> Vec<Sample> {
    let (dir, name) = (prefix.parent().unwrap(), prefix.file_name().unwrap().to_string_lossy().into_owned());
    let mut samples = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&name)) {
        let log = std::fs::read_to_string(entry.path()).unwrap();
        samples.extend(log.lines().map(|line| {
            // client, number, how long in microseconds, script, when in seconds and microseconds
            let words: Vec<f64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
            Sample { client: words[0] as usize, at: words[4] + words[5] / 1e6, took: words[2] / 1000.0 }
        }));
        std::fs::remove_file(entry.path()).unwrap();
    }
    samples
}
