//! The real daemon, looked at from outside with its own client.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use tokio_postgres::Client;
use uuid::Uuid;

/// The image that agents of tests run: busybox.
pub fn image() -> String {
    std::env::var("SUNDOWN_TEST_IMAGE").unwrap_or_else(|_| "sundown-test:latest".to_owned())
}

fn docker(args: &[&str]) -> std::process::Output {
    Command::new("docker").args(args).output().expect("the docker client is installed: run scripts/test")
}

/// Runs a command that must succeed; answers what it printed.
pub fn run(args: &[&str]) -> String {
    let output = docker(args);
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Whether there is a container of that name, in whatever state.
pub fn exists(name: &str) -> bool {
    let output = docker(&["container", "inspect", name]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || error.contains("No such container"), "docker inspect {name}: {error}");
    output.status.success()
}

/// Everything that the daemon starts for one installation, from now on. A stream, because the daemon remembers few events.
pub struct Watch {
    child: Child,
    starts: Arc<Mutex<Vec<String>>>,
}

/// Begins to watch the installation of a database.
pub async fn watch(client: &Client) -> Watch {
    let label = format!("label=sundown.installation={}", installation(client).await);
    let format = "{{index .Actor.Attributes \"sundown.agent\"}}";
    let mut child = Command::new("docker")
        .args(["events", "--since", "1s", "--filter", "event=start", "--filter", &label, "--format", format])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the docker client is installed: run scripts/test");
    let starts = Arc::<Mutex<Vec<String>>>::default();
    let (lines, seen) = (BufReader::new(child.stdout.take().unwrap()).lines(), Arc::clone(&starts));
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|agent| seen.lock().unwrap().push(agent)));
    Watch { child, starts }
}

impl Watch {
    /// How often this agent's container was started.
    pub fn starts(&self, agent: Uuid) -> usize {
        self.starts.lock().unwrap().iter().filter(|started| **started == agent.to_string()).count()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// The installation of a database.
pub async fn installation(client: &Client) -> Uuid {
    client.query_one("select id from sundown.installation", &[]).await.unwrap().get(0)
}

/// Checks that no container of this installation is left, and removes the volume that knows its host.
pub async fn leave_nothing(client: &Client) {
    let installation = installation(client).await;
    let left = run(&["ps", "-aq", "--filter", &format!("label=sundown.installation={installation}")]);
    assert_eq!(left, "", "containers are left");
    docker(&["volume", "rm", "-f", &format!("sundown-host-{installation}")]);
}
