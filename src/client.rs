//! The verbs for agents on the command line. They do what everybody can do by HTTP or by SQL, and know nothing else of the installation.
//!
//! Exit codes: 0 done; 1 refused, or there is no such agent; 10, 11, 12 from `wait`; 64 wrong use; 69 nobody answers; 70 a defect.

mod args;
mod show;
mod talk;

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde_json::{Map, Value, json};
use uuid::Uuid;

pub use args::Verb;
use args::{Events, Ls, One, Rm, Submit, To, Wait};
use talk::{Http, Talk, Wanted, labels, unknown};

use crate::sql::Sql;

/// Where a replica listens that nothing was said to.
const LOCAL: &str = "http://127.0.0.1:7117";
/// How far back an agent is looked for that is not named by its whole id.
const LOOKED_AT: usize = 5000;
/// The states of those that live.
const LIVE: [&str; 3] = ["running", "pending", "terminating"];
/// Between two pictures of `top`.
const PICTURE: Duration = Duration::from_secs(1);
/// Statements of people may take longer than those of loops.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a verb was not done.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// Asked in a way that cannot be.
    #[error("{0}")]
    Usage(String),
    /// Understood, and refused.
    #[error("{0}")]
    Refused(String),
    /// Nobody answers.
    #[error("{0}")]
    Unreachable(String),
    /// Not as it should be.
    #[error("{0}")]
    Defect(String),
    /// Whoever read the answer has gone: nothing is wrong.
    #[error("nobody reads on")]
    Unread,
}

impl Trouble {
    /// The exit code.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Unread => 0,
            Self::Refused(_) => 1,
            Self::Usage(_) => 64,
            Self::Unreachable(_) => 69,
            Self::Defect(_) => 70,
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::Unread } else { Self::Defect(format!("cannot print: {error}")) }
    }
}

impl<T: clap::Args> To<T> {
    /// Whom to ask, whether to answer in JSON, and what about.
    fn open(self) -> Result<(Talk, bool, T), Trouble> {
        let database = self.database.addresses().map_err(Trouble::Usage)?;
        let talk = match (&self.url, database) {
            (None, Some((pooled, _))) => Talk::Sql(Sql::new(&pooled, 2, PATIENCE)?),
            (url, _) => Talk::Http(Http::new(url.as_deref().unwrap_or(LOCAL))?),
        };
        Ok((talk, self.json, self.what))
    }
}

/// Does what was asked; answers the exit code.
///
/// # Errors
/// Why not.
pub async fn run(verb: Verb) -> Result<u8, Trouble> {
    match verb {
        Verb::Submit(to) => submit(to).await?,
        Verb::Ls(to) => list(to).await?,
        Verb::Get(to) => {
            let (talk, json, what) = to.open()?;
            for named in &what.agents {
                let agent = talk.get(find(&talk, named).await?, Duration::ZERO).await?;
                if json { whole(&agent)? } else { facts(&agent)? }
            }
        }
        Verb::Logs(to) => {
            let (talk, _json, what) = to.open()?;
            let id = find(&talk, &what.agent).await?;
            let mut out = io::stdout();
            talk.logs(id, what.follow, what.tail, |bytes| Ok(out.write_all(bytes).and_then(|()| out.flush())?)).await?;
        }
        Verb::Wait(to) => return wait(to).await,
        Verb::Extend(to) => {
            let (talk, json, what) = to.open()?;
            let agent = talk.extend(find(&talk, &what.agent).await?, &what.ttl).await?;
            if json { whole(&agent)? } else { line(&format!("{} ends {}", show::text(&agent["id"]), show::time(&agent)))? }
        }
        Verb::Rm(to) => end(to).await?,
        Verb::Events(to) => events(to).await?,
        Verb::Top(to) => top(&to.open()?.0).await?,
        Verb::Why(to) => why(to).await?,
        Verb::Hosts(to) => {
            let (talk, json, _all) = to.open()?;
            let row = |h: &Value| {
                let agents = format!("{} of {}", show::text(&h["used"]), show::text(&h["capacity"]));
                let place = if h["cordoned"] == true { "kept off" } else { "welcome" };
                let cells = [show::text(&h["id"]), show::text(&h["name"]), agents, place.to_owned(), show::text(&h["keeper"])];
                [&cells[..], &[show::ago(&h["seen_at"]), show::text(&h["endpoint"])]].concat()
            };
            rows(&talk.hosts().await?, json, &["ID", "HOST", "AGENTS", "NEW ONES", "KEEPER", "SEEN", "ENDPOINT"], row)?;
        }
        Verb::Replicas(to) => {
            let (talk, json, _all) = to.open()?;
            let row = |r: &Value| {
                let hosts: Vec<String> = r["hosts"].as_array().into_iter().flatten().map(show::text).collect();
                let cells = ["id", "name", "release", "alive", "listening"].map(|name| show::text(&r[name]));
                [&cells[..], &[show::ago(&r["seen_at"]), hosts.join(" ")]].concat()
            };
            rows(&talk.replicas().await?, json, &["ID", "ON", "RELEASE", "ALIVE", "LISTENS", "SEEN", "HOSTS"], row)?;
        }
    }
    Ok(0)
}

async fn submit(to: To<Submit>) -> Result<(), Trouble> {
    let (talk, json, submit) = to.open()?;
    let agent = talk.submit(&body(&submit)?, submit.key.as_deref()).await?;
    if json { whole(&agent) } else { line(&show::text(&agent["id"])) }
}

async fn end(to: To<Rm>) -> Result<(), Trouble> {
    let (talk, json, what) = to.open()?;
    if !what.labels.is_empty() {
        let count = talk.terminate_labelled(&what.labels, what.dry_run).await?;
        let said = if what.dry_run { format!("{count} would end") } else { format!("{count} end") };
        return if json { whole(&json!({"count": count})) } else { line(&said) };
    }
    for named in &what.agents {
        let agent = talk.terminate(find(&talk, named).await?).await?;
        if json { whole(&agent)? } else { line(&format!("{} {}", show::text(&agent["id"]), show::text(&agent["state"])))? }
    }
    Ok(())
}

async fn events(to: To<Events>) -> Result<(), Trouble> {
    let (talk, json, what) = to.open()?;
    let id = match &what.agent {
        Some(named) => Some(find(&talk, named).await?),
        None => None,
    };
    if let (Some(id), false) = (id, what.follow) {
        return talk.story(id).await?.iter().try_for_each(|event| happened(event, json));
    }
    talk.follow(id, |event| happened(&serde_json::from_str(event).unwrap_or_default(), json)).await
}

/// The agent that is named so: by its id, by the beginning or the end of it, or by its name if one that was looked at has it.
async fn find(talk: &Talk, named: &str) -> Result<Uuid, Trouble> {
    if let Ok(id) = Uuid::try_parse(named) {
        return Ok(id);
    }
    let (mut found, mut cursor, mut seen): (Vec<(Uuid, bool)>, Option<Uuid>, usize) = (Vec::new(), None, 0);
    while seen < LOOKED_AT {
        let (page, next) = talk.list(&Wanted { cursor, limit: 1000, ..Wanted::default() }).await?;
        seen += page.len();
        for agent in &page {
            let Some(id) = agent["id"].as_str() else { continue };
            if named.len() >= 4 && (id.starts_with(named) || id.ends_with(named)) || agent["name"] == named {
                found.extend(id.parse().ok().map(|id: Uuid| (id, agent["finished_at"].is_null())));
            }
        }
        cursor = next;
        if next.is_none() {
            break;
        }
    }
    // A name is used again and again; of those that have it one that lives is meant, if there is one.
    let alive: Vec<Uuid> = found.iter().filter(|(_, alive)| *alive).map(|(id, _)| *id).collect();
    match (alive.as_slice(), found.as_slice()) {
        (_, []) => Err(unknown(&format!("{named:?}"))),
        (_, [(id, _)]) | ([id], _) => Ok(*id),
        (_, several) => {
            let ids: Vec<String> = several.iter().take(5).map(|(id, _)| id.to_string()).collect();
            Err(Trouble::Refused(format!("{named:?} is {} agents, such as {}; give more of the id", several.len(), ids.join(", "))))
        }
    }
}

/// A submission as the body of a POST says it.
fn body(submit: &Submit) -> Result<Value, Trouble> {
    let mut body = Map::new();
    let mut put = |name: &str, value: Option<Value>| value.map(|value| body.insert(name.to_owned(), value));
    put("image", Some(json!(submit.image)));
    put("command", (!submit.command.is_empty()).then(|| json!(submit.command)));
    let texts = [
        ("ttl", &submit.ttl),
        ("max_ttl", &submit.max_ttl),
        ("grace", &submit.grace),
        ("name", &submit.name),
        ("memory", &submit.memory),
        ("network", &submit.network),
        ("run_at", &submit.run_at),
        ("start_timeout", &submit.start_timeout),
        ("queue_timeout", &submit.queue_timeout),
    ];
    for (name, text) in texts {
        put(name, text.as_ref().map(|text| json!(text)));
    }
    put("cpus", submit.cpus.map(|cpus| json!(cpus)));
    put("pids", submit.pids.map(|pids| json!(pids)));
    put("labels", labels(&submit.labels)?);
    put("env", labels(&submit.env)?);
    Ok(Value::Object(body))
}

async fn list(to: To<Ls>) -> Result<(), Trouble> {
    let (talk, json, ls) = to.open()?;
    let states: Vec<Option<&str>> = match &ls.state {
        Some(state) => vec![Some(state)],
        None if ls.all => vec![None],
        None => LIVE.map(Some).to_vec(),
    };
    let mut agents = Vec::new();
    for state in states {
        let (mut cursor, before) = (None, agents.len());
        loop {
            let limit = ls.limit.saturating_sub(agents.len() - before);
            if limit == 0 {
                break;
            }
            let (page, next) = talk.list(&Wanted { state, labels: &ls.labels, cursor, limit }).await?;
            agents.extend(page);
            cursor = next;
            if next.is_none() {
                break;
            }
        }
    }
    agents.sort_by(|a, b| b["id"].as_str().cmp(&a["id"].as_str()));
    agents.truncate(ls.limit);
    if ls.quiet {
        return agents.iter().try_for_each(|agent| line(agent["id"].as_str().unwrap_or_default()));
    }
    if json { whole(&Value::Array(agents)) } else { Ok(show::table(&mut io::stdout(), &show::agents(&agents), None)?) }
}

async fn wait(to: To<Wait>) -> Result<u8, Trouble> {
    let (talk, json, what) = to.open()?;
    let patience = what.timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or(Duration::from_secs(1 << 31));
    let until = tokio::time::Instant::now() + patience;
    let mut worst = 0;
    for named in &what.agents {
        let id = find(&talk, named).await?;
        let agent = talk.get(id, until.saturating_duration_since(tokio::time::Instant::now())).await?;
        worst = worst.max(match agent["state"].as_str() {
            Some("succeeded") => 0,
            Some("failed") => 10,
            Some("expired") => 11,
            _ => 12,
        });
        if json { whole(&agent)? } else { line(&format!("{id} {}", show::text(&agent["state"])))? }
    }
    Ok(worst)
}

async fn top(talk: &Talk) -> Result<(), Trouble> {
    let mut out = io::stdout();
    let terminal = out.is_terminal();
    loop {
        let mut agents = Vec::new();
        for state in LIVE {
            agents.extend(talk.list(&Wanted { state: Some(state), limit: 1000, ..Wanted::default() }).await?.0);
        }
        let due =
            |agent: &Value| if agent["state"] == "pending" { f64::MAX } else { show::until(&agent["expires_at"]).unwrap_or(f64::MAX) };
        agents.sort_by(|a, b| due(a).total_cmp(&due(b)));
        let (height, width) = if terminal { size() } else { (usize::MAX, None) };
        let count = agents.len();
        agents.truncate(height.saturating_sub(3));
        let mut picture = Vec::new();
        if terminal {
            // Home, and clear what is below: a screen that is cleared first flickers.
            picture.extend_from_slice(b"\x1b[H\x1b[J");
        }
        writeln!(picture, "{count} live; Ctrl-C ends this, and none of them")?;
        show::table(&mut picture, &show::agents(&agents), width)?;
        out.write_all(&picture)?;
        out.flush()?;
        if !terminal {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(PICTURE) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// Lines and columns of the terminal.
fn size() -> (usize, Option<usize>) {
    let size = rustix::termios::tcgetwinsize(io::stdout());
    size.map_or((24, None), |size| (usize::from(size.ws_row), Some(usize::from(size.ws_col))))
}

async fn why(to: To<One>) -> Result<(), Trouble> {
    let (talk, json, what) = to.open()?;
    let id = find(&talk, &what.agent).await?;
    let agent = talk.get(id, Duration::ZERO).await?;
    let story = talk.story(id).await?;
    if json {
        return whole(&json!({"agent": agent, "events": story}));
    }
    let name = agent["name"].as_str().map(|name| format!(" ({})", show::plain(name))).unwrap_or_default();
    line(&format!("{id}{name} is {}.", show::text(&agent["state"])))?;
    for event in &story {
        line(&format!("  {}  {}.", show::text(&event["at"]), show::sentence(event)))?;
    }
    match agent["state"].as_str() {
        Some("running") => line(&format!("Its deadline is {}.", show::time(&agent)))?,
        Some("pending") if agent["host"].is_null() => line("It waits for a place: `sundown hosts` shows where there is none.")?,
        _ => {}
    }
    if let Some(error) = agent["error"].as_str() {
        line(&format!("The last error was: {}", show::plain(error)))?;
    }
    Ok(())
}

fn happened(event: &Value, json: bool) -> Result<(), Trouble> {
    if json {
        return line(&event.to_string());
    }
    line(&format!("{}  {}  {}", show::text(&event["at"]), show::text(&event["agent"]), show::sentence(event)))
}

fn facts(agent: &Value) -> Result<(), Trouble> {
    let said = |value: &Value| match value {
        Value::Array(items) => items.iter().map(show::text).collect::<Vec<_>>().join(" "),
        Value::Object(pairs) => {
            pairs.iter().map(|(key, value)| format!("{}={}", show::plain(key), show::text(value))).collect::<Vec<_>>().join(" ")
        }
        other => show::text(other),
    };
    let rows: Vec<Vec<String>> = agent.as_object().into_iter().flatten().map(|(name, value)| vec![name.clone(), said(value)]).collect();
    Ok(show::table(&mut io::stdout(), &rows, None)?)
}

fn rows(items: &[Value], json: bool, head: &[&str], row: impl Fn(&Value) -> Vec<String>) -> Result<(), Trouble> {
    if json {
        return whole(&Value::Array(items.to_vec()));
    }
    let head = head.iter().map(|name| (*name).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(items.iter().map(row)).collect();
    Ok(show::table(&mut io::stdout(), &rows, None)?)
}

fn whole(value: &Value) -> Result<(), Trouble> {
    line(&format!("{value:#}"))
}

fn line(text: &str) -> Result<(), Trouble> {
    Ok(writeln!(io::stdout(), "{text}")?)
}
