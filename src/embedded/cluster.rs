//! One server's programs, places and user, and what is done with them: made, started, asked, stopped.
//!
//! Knows nothing of who else uses the server; its caller holds the lock around every call.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::unistd::{Gid, Uid, User, geteuid};
use tokio::process::Command;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use super::EmbeddedError;
use super::files::{LOOK_AGAIN, file_error, make_dir, private_options, read_private, write_private};

pub(super) const SOCKET_NAME: &str = ".s.PGSQL.5432";
const ROLE: &str = "sundown";
const DATABASE: &str = "sundown";

/// How the names of half-made data directories begin.
const FRESH: &str = "data.new.";

/// Crash recovery of a large write-ahead log takes minutes, and giving up early would help nobody.
const READY_LIMIT: Duration = Duration::from_secs(300);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Looks at a silent socket before a presumed server is doubted: about five seconds.
const SILENCE_LIMIT: u32 = 100;
/// Looks at clients that may be closing: about two seconds.
const CLOSING_LOOKS: u32 = 40;
/// A longer log is put aside at the next start, bytes.
const LOG_KEPT: u64 = 16 << 20;
/// How much of the log an error quotes, bytes.
const TAIL: u64 = 2048;

/// Settings that are promises, so they come on the command line, where the configuration file cannot undo
/// them. `pg_ctl` hands them to a shell: no path may appear here, hence a socket directory relative to the
/// data, which is where the server stands when it reads it.
const SETTINGS: &str = "-c listen_addresses= -c port=5432 -c unix_socket_directories=.. \
    -c fsync=on -c full_page_writes=on";

/// The programs, the places and the user of one server.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) home: PathBuf,
    data: PathBuf,
    bin: PathBuf,
    /// Somebody else than us to run the server as: only when we are root.
    server_user: Option<User>,
}

impl Cluster {
    pub(super) async fn at(home: PathBuf) -> Result<Self, EmbeddedError> {
        let data = home.join("pg").join("data");
        let made_by = major_of_data(&data)?;
        let installed = installations().await;
        let bin = match made_by {
            None => installed.into_iter().max_by_key(|(major, _)| *major),
            Some(major) => {
                if installed.is_empty() {
                    return Err(EmbeddedError::NotInstalled);
                }
                let found = installed.into_iter().find(|(m, _)| *m == major);
                Some(found.ok_or_else(|| EmbeddedError::OtherVersion { data: data.clone(), major })?)
            }
        };
        let (_, bin) = bin.ok_or(EmbeddedError::NotInstalled)?;
        let server_user = server_user(&data)?;
        Ok(Self { home, data, bin, server_user })
    }

    /// Reads the password, or makes one if there are no data yet that another one would open.
    pub(super) fn password(&self) -> Result<String, EmbeddedError> {
        let path = self.home.join("password");
        let kept = match read_private(&path) {
            Ok(text) => text.trim().to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(file_error("read", &path, error)),
        };
        if !kept.is_empty() {
            return Ok(kept);
        }
        if self.data.exists() {
            return Err(EmbeddedError::PasswordMissing(path));
        }
        let password = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
        // Whole or not at all, and on disk before there are data that need it.
        let fresh = self.home.join("password.new");
        write_private(&fresh, &password, None)
            .and_then(|()| fs::rename(&fresh, &path))
            .and_then(|()| File::open(&self.home)?.sync_all())
            .map_err(|error| file_error("write", &path, error))?;
        Ok(password)
    }

    /// Makes the database if there is none. It is made under another name and renamed when it is whole.
    pub(super) async fn make(&self, password: &str) -> Result<(), EmbeddedError> {
        let pg = self.home.join("pg");
        make_dir(&pg, 0o700)?;
        if let Some(user) = &self.server_user {
            lchown(&pg, Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(|error| file_error("hand over", &pg, error))?;
            self.check_reach(&pg, user).await?;
        }
        clear_half_made(&pg);
        if self.data.exists() {
            return Ok(());
        }

        // A name of its own: what an interrupted initdb has started may still be writing to the last one.
        let name = format!("{FRESH}{}", uuid::Uuid::new_v4().simple());
        let fresh = pg.join(name);
        let pwfile = self.home.join("password.initdb");
        write_private(&pwfile, password, self.server_user.as_ref()).map_err(|error| file_error("write", &pwfile, error))?;
        let made = self.initdb(&fresh, &pwfile).await;
        // Left behind by a crash, it would still be 0600 and is overwritten by the next attempt.
        let _ = fs::remove_file(&pwfile);
        made?;
        fs::rename(&fresh, &self.data)
            .and_then(|()| File::open(&pg)?.sync_all())
            .map_err(|error| file_error("rename to", &self.data, error))?;
        tracing::info!(data = %self.data.display(), "made a database");
        Ok(())
    }

    async fn initdb(&self, data: &Path, pwfile: &Path) -> Result<(), EmbeddedError> {
        let mut command = self.program("initdb");
        command
            .arg("-D")
            .arg(data)
            .arg("--pwfile")
            .arg(pwfile)
            .args(["--username", ROLE, "--encoding=UTF8", "--locale=C.UTF-8"])
            .args(["--auth=scram-sha-256", "--data-checksums"])
            .kill_on_drop(true);
        let output = self.output(&mut command).await?;
        if output.status.success() {
            return Ok(());
        }
        Err(EmbeddedError::Initdb { data: self.data.clone(), output: one_line(&output.stderr) })
    }

    /// A parent that the server's user may not enter fails deep inside initdb, and says so less clearly.
    async fn check_reach(&self, pg: &Path, user: &User) -> Result<(), EmbeddedError> {
        let mut command = self.as_server_user(Command::new("test"));
        command.arg("-d").arg(pg.join("."));
        let output = self.output(&mut command).await?;
        if output.status.success() {
            return Ok(());
        }
        Err(EmbeddedError::OutOfReach { user: user.name.clone(), dir: pg.to_owned() })
    }

    pub(super) fn config(&self, password: &str) -> Config {
        let mut config = Config::new();
        config.host_path(self.home.join("pg")).port(5432).user(ROLE).password(password).dbname(DATABASE);
        config
    }

    /// Leaves with a server that answers and a database `sundown` in it.
    pub(super) async fn run(&self, config: &Config) -> Result<(), EmbeddedError> {
        let mut maintenance = config.clone();
        maintenance.dbname("postgres");
        let answers = tokio::time::timeout(READY_LIMIT, self.until_it_answers(&maintenance)).await;
        let client = answers.unwrap_or_else(|_| Err(self.server_error("start")))?;
        let refused = |error| EmbeddedError::Refused(describe(&error));
        let known = "select from pg_database where datname = 'sundown'";
        let known = client.query_typed(known, &[]).await.map_err(refused)?;
        if !known.is_empty() {
            return Ok(());
        }
        // Under the lock: nobody else can be making it.
        let make = "create database sundown";
        client.batch_execute(make).await.map_err(refused)
    }

    /// Asks the socket first: a server that answers is one that runs, whatever the pid file says. `pg_ctl status`
    /// decides about starting one; the pid file itself is Postgres' to judge, and never ours to delete.
    async fn until_it_answers(&self, config: &Config) -> Result<Client, EmbeddedError> {
        let mut silent = 0u32;
        loop {
            match ask(config).await {
                Answer::Ready(client) => return Ok(client),
                Answer::Refusal(reason) => return Err(EmbeddedError::Refused(reason)),
                Answer::NotNow => silent = 0,
                Answer::Silence => silent += 1,
            }
            // A recycled pid makes a dead server look alive. When nobody answers for five seconds, a start lets
            // Postgres decide: it refuses if the data are really in use.
            let presumed_dead = silent > SILENCE_LIMIT;
            if presumed_dead || !self.is_running().await? {
                silent = 0;
                self.launch().await?;
            } else {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }

    async fn is_running(&self) -> Result<bool, EmbeddedError> {
        let mut command = self.program("pg_ctl");
        command.arg("status").env("PGDATA", &self.data);
        Ok(self.output(&mut command).await?.status.success())
    }

    async fn launch(&self) -> Result<(), EmbeddedError> {
        let log = self.log()?;
        let began_at = log.metadata().map_or(0, |metadata| metadata.len());
        let mut command = self.program("pg_ctl");
        // No path on its command line: pg_ctl passes its arguments through a shell. And no pipe for its output: the
        // server inherits it, and we would wait for the end of a pipe that stays open as long as the server lives.
        command
            .args(["start", "-s", "-w", "-t", "60", "-o", SETTINGS])
            .env("PGDATA", &self.data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if self.status(&mut command).await? || self.is_running().await? {
            return Ok(());
        }
        // Backends of a killed server may outlive it for a moment, and Postgres rightly waits for them.
        if self.tail(began_at).contains("shared memory block") {
            tokio::time::sleep(LOOK_AGAIN).await;
            return Ok(());
        }
        Err(self.server_error("start"))
    }

    pub(super) async fn shut_down(&self) -> Result<(), EmbeddedError> {
        if !self.is_running().await? {
            return Ok(());
        }
        let mut command = self.program("pg_ctl");
        command
            .args(["stop", "-s", "-w", "-t", "60", "-m", "fast"])
            .env("PGDATA", &self.data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log()?);
        if self.status(&mut command).await? {
            return Ok(());
        }
        Err(self.server_error("stop"))
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        // Our environment holds secrets that the server must not inherit, and PG* variables that would change it.
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C.UTF-8");
        self.as_server_user(command)
    }

    fn as_server_user(&self, mut command: Command) -> Command {
        command.current_dir("/");
        if let Some(user) = &self.server_user {
            command.gid(user.gid.as_raw()).uid(user.uid.as_raw());
        }
        command
    }

    async fn output(&self, command: &mut Command) -> Result<std::process::Output, EmbeddedError> {
        command.stdin(Stdio::null());
        let output = command.output().await;
        output.map_err(|source| program_error(command, source))
    }

    async fn status(&self, command: &mut Command) -> Result<bool, EmbeddedError> {
        let status = command.status().await;
        let status = status.map_err(|source| program_error(command, source))?;
        Ok(status.success())
    }

    /// The server's log, for appending; a long one is put aside first.
    fn log(&self) -> Result<File, EmbeddedError> {
        let path = self.home.join("server.log");
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_KEPT) {
            fs::rename(&path, self.home.join("server.log.1")).map_err(|error| file_error("put aside", &path, error))?;
        }
        private_options().append(true).create(true).open(&path).map_err(|error| file_error("open", &path, error))
    }

    /// What the log says after `from`, at most its last two kilobytes.
    fn tail(&self, from: u64) -> String {
        let mut text = Vec::new();
        let read = File::open(self.home.join("server.log")).and_then(|mut log| {
            let end = log.metadata()?.len();
            log.seek(SeekFrom::Start(from.max(end.saturating_sub(TAIL))))?;
            log.read_to_end(&mut text)
        });
        match read {
            Ok(_) => one_line(&text),
            Err(error) => format!("(unreadable: {error})"),
        }
    }

    fn server_error(&self, verb: &'static str) -> EmbeddedError {
        EmbeddedError::Server { verb, log: self.home.join("server.log"), tail: self.tail(0) }
    }
}

/// Removes what interrupted initialisations left. What cannot be removed now is harmless, and is tried again next time.
fn clear_half_made(pg: &Path) {
    for entry in fs::read_dir(pg).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(FRESH) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Every usable installation with its major version: Debian's places, then what `pg_config` and PATH name.
async fn installations() -> Vec<(u32, PathBuf)> {
    let mut places: Vec<PathBuf> =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin")).collect();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output().await {
        places.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim().to_owned()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Relative places would change their meaning: the programs run in `/`.
    places.extend(std::env::split_paths(&path).filter(|place| place.is_absolute()));

    let mut found = Vec::new();
    for bin in places {
        if !["initdb", "pg_ctl", "postgres"].iter().all(|program| bin.join(program).is_file()) {
            continue;
        }
        let version = Command::new(bin.join("postgres")).arg("-V").output().await;
        let Ok(version) = version else { continue };
        if let Some(major) = major_of_banner(&String::from_utf8_lossy(&version.stdout)) {
            found.push((major, bin));
        }
    }
    found
}

/// `postgres (PostgreSQL) 15.18 (Debian …)` gives 15; `17beta1` gives 17.
fn major_of_banner(banner: &str) -> Option<u32> {
    let version = banner.split_once("(PostgreSQL) ")?.1;
    let end = version.find(|c: char| !c.is_ascii_digit());
    version[..end.unwrap_or(version.len())].parse().ok()
}

/// The major version that made these data; `None` if there are none yet.
fn major_of_data(data: &Path) -> Result<Option<u32>, EmbeddedError> {
    let path = data.join("PG_VERSION");
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(major) => Ok(Some(major)),
            Err(_) => Err(EmbeddedError::NotADatabase(data.to_owned())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => match data.exists() {
            true => Err(EmbeddedError::NotADatabase(data.to_owned())),
            false => Ok(None),
        },
        Err(error) => Err(file_error("read", &path, error)),
    }
}

/// As whom to run the server when we are root: whoever owns the data, or the user made for it.
fn server_user(data: &Path) -> Result<Option<User>, EmbeddedError> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    if let Ok(metadata) = fs::symlink_metadata(data) {
        let uid = Uid::from_raw(metadata.uid());
        let named = User::from_uid(uid).ok().flatten();
        // initdb made it as a user who has left passwd since: the number is still the right one.
        return Ok(Some(named.unwrap_or_else(|| User {
            name: uid.to_string(),
            passwd: Default::default(),
            uid,
            gid: Gid::from_raw(metadata.gid()),
            gecos: Default::default(),
            dir: PathBuf::from("/"),
            shell: PathBuf::new(),
        })));
    }
    ["sundown", "postgres"].iter().find_map(|name| User::from_name(name).ok().flatten()).map(Some).ok_or(EmbeddedError::NoServerUser)
}

/// What the socket says to one attempt.
pub(super) enum Answer {
    Ready(Client),
    /// Recovering, or just stopping: both pass.
    NotNow,
    Silence,
    Refusal(String),
}

/// Asks once. Bounded, because a stopped server (SIGSTOP) accepts and says nothing.
pub(super) async fn ask(config: &Config) -> Answer {
    match tokio::time::timeout(ANSWER_LIMIT, config.connect(NoTls)).await {
        Ok(Ok((client, connection))) => {
            tokio::spawn(connection);
            Answer::Ready(client)
        }
        Ok(Err(error)) => match error.code() {
            Some(&SqlState::CANNOT_CONNECT_NOW) => Answer::NotNow,
            Some(_) => Answer::Refusal(describe(&error)),
            None => Answer::Silence,
        },
        Err(_) => Answer::Silence,
    }
}

/// Clients that stay: the server needs a moment to notice connections that were closed just now, ours among them.
pub(super) async fn lasting_clients(client: &Client) -> Result<i64, EmbeddedError> {
    let sql = "select count(*) from pg_stat_activity \
               where backend_type in ('client backend', 'walsender') and pid <> pg_backend_pid()";
    let mut counts = 0..CLOSING_LOOKS;
    loop {
        let rows = client.query_typed(sql, &[]).await;
        let clients = rows
            .and_then(|rows| rows.first().map_or(Ok(0), |row| row.try_get(0)))
            .map_err(|error| EmbeddedError::Refused(describe(&error)))?;
        if clients == 0 || counts.next().is_none() {
            return Ok(clients);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// tokio-postgres' own text is "db error"; what happened is in its source.
fn describe(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn program_error(command: &Command, source: io::Error) -> EmbeddedError {
    EmbeddedError::Program { program: PathBuf::from(command.as_std().get_program()), source }
}

fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(" | ")
}
