//! The command line: parse, dispatch, exit code. Knows no SQL and no Docker.
//!
//! Exit codes: 0 done; 1 doctor found something, or a verb was refused; 10 it failed; 11 it expired; 12 the time was up; 64 wrong use; 69 something needed does not answer; 70 a defect; 78 the database is not ours.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use sundown::config::{Adopt, Cli, Command, Database, Deadman, HostAction, HostCommand, Migrate, Serve};
use sundown::{Fatal, client, deadman, doctor, migrate, service, sweep};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            let _closed_pipe = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("sundown: {}", Cli::complaint(error));
            return ExitCode::from(64);
        }
    };
    if let Err(error) = cli.check() {
        eprintln!("sundown: {error}");
        return ExitCode::from(64);
    }
    log(&cli.log);
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fatal(&Fatal::Internal(format!("no runtime: {error}"))),
    };
    let code = match runtime.block_on(dispatch(cli.command)) {
        Ok(code) => code,
        Err(error) => fatal(&error),
    };
    // Blocking threads of a resolver must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    code
}

fn fatal(error: &Fatal) -> ExitCode {
    tracing::error!("{error}");
    ExitCode::from(match error {
        Fatal::Usage(_) => 64,
        Fatal::Unavailable(_) => 69,
        Fatal::Internal(_) => 70,
        Fatal::NotOurs(_) => 78,
    })
}

/// Text for people, JSON for programs; to stderr, because stdout carries answers.
fn log(filter: &str) {
    let filter = EnvFilter::new(filter);
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if std::io::stderr().is_terminal() {
        subscriber.init();
    } else {
        subscriber.json().flatten_event(true).init();
    }
    // What is printed otherwise is plain text between lines of JSON.
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(tracing::field::display);
        tracing::error!(location, "panicked: {}", panic.payload_as_str().unwrap_or("no message"));
    }));
}

async fn dispatch(command: Command) -> Result<ExitCode, Fatal> {
    match command {
        Command::Serve(config) => serve(config).await.map(|()| ExitCode::SUCCESS),
        Command::Migrate(config) => migrate(config).await.map(|()| ExitCode::SUCCESS),
        Command::Sweep(config) => {
            let counts = sweep::run(config).await?;
            println!("{}", serde_json::to_string(&counts).map_err(|error| Fatal::Internal(error.to_string()))?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Deadman(config) => deadman(config).await.map(|()| ExitCode::SUCCESS),
        Command::Adopt(config) => adopt(config).await.map(|()| ExitCode::SUCCESS),
        Command::Host(config) => host(config).await.map(|()| ExitCode::SUCCESS),
        Command::Verb(verb) => Ok(client::run(verb).await.map_or_else(
            |trouble| {
                if !matches!(trouble, client::Trouble::Unread) {
                    eprintln!("sundown: {trouble}");
                }
                ExitCode::from(trouble.code())
            },
            ExitCode::from,
        )),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(shell, &mut command, "sundown", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man => manual().map(|()| ExitCode::SUCCESS),
        Command::Doctor(config) => Ok(if doctor::run(config).await? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
    }
}

/// The manual: the command, then each of its commands.
fn manual() -> Result<(), Fatal> {
    let printed = |command: clap::Command| clap_mangen::Man::new(command).render(&mut std::io::stdout());
    // Built, a part knows its whole name.
    let mut whole = Cli::command();
    whole.build();
    let parts: Vec<clap::Command> = whole.get_subcommands().cloned().collect();
    std::iter::once(whole).chain(parts).try_for_each(printed).map_err(|error| Fatal::Internal(error.to_string()))
}

async fn serve(config: Serve) -> Result<(), Fatal> {
    let config = config.effective().map_err(Fatal::Usage)?;
    tracing::info!(?config, "starting");
    let listener = match service::socket() {
        Some(given) => given.set_nonblocking(true).and_then(|()| TcpListener::from_std(given)),
        None => TcpListener::bind(config.listen).await,
    };
    let listener = listener.map_err(|error| {
        Fatal::Unavailable(format!("cannot listen on {}: {error}; choose another address with SUNDOWN_LISTEN", config.listen))
    })?;
    sundown::run(config, listener, asked_to_end()?).await
}

/// Cancelled by SIGTERM or SIGINT.
fn asked_to_end() -> Result<CancellationToken, Fatal> {
    let shutdown = CancellationToken::new();
    let asked = shutdown.clone();
    let mut term = signal(SignalKind::terminate()).map_err(|error| Fatal::Internal(error.to_string()))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| Fatal::Internal(error.to_string()))?;
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        asked.cancel();
    });
    Ok(shutdown)
}

async fn deadman(config: Deadman) -> Result<(), Fatal> {
    if config.once {
        let counts = deadman::once(&config).await?;
        println!("{}", serde_json::to_string(&counts).map_err(|error| Fatal::Internal(error.to_string()))?);
        return Ok(());
    }
    let config = Deadman { endpoints: config.endpoints.effective(), ..config };
    tracing::info!(?config, "starting");
    deadman::run(&config, asked_to_end()?).await
}

async fn migrate(config: Migrate) -> Result<(), Fatal> {
    migrate::run(&config).await
}

/// The address that a command needs.
fn address(database: &Database) -> Result<tokio_postgres::Config, Fatal> {
    let addresses = database.addresses().map_err(Fatal::Usage)?;
    addresses.map(|(_, direct)| direct).ok_or_else(|| Fatal::Usage("this needs a database: set SUNDOWN_DATABASE_URL".to_owned()))
}

async fn adopt(config: Adopt) -> Result<(), Fatal> {
    let installation = migrate::adopt(&address(&config.database)?, config.new).await?;
    println!("{installation}");
    Ok(())
}

async fn host(config: HostCommand) -> Result<(), Fatal> {
    let sql = sundown::installation(&address(&config.database)?, 1, std::time::Duration::from_secs(30)).await?;
    match config.action {
        HostAction::Ls => {
            for line in sql.hosts().await? {
                println!("{line}");
            }
        }
        HostAction::Cordon { id } | HostAction::Uncordon { id } => {
            let cordoned = matches!(config.action, HostAction::Cordon { .. });
            if !sql.cordon(id, cordoned).await? {
                return Err(Fatal::Usage(format!("there is no host {id}; `sundown host ls` lists them")));
            }
        }
        HostAction::Forget { id } => println!("{}", sql.forget_host(id).await?),
    }
    Ok(())
}
