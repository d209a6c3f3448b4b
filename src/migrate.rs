//! Brings a database up to this release: tables by versioned migrations, functions by applying the files of `sql/functions` again.
//!
//! Guarantees: any number of replicas may start together on an empty database, for one of them works while the others poll for the
//! lock; an older release starts on a newer schema and leaves it as it is; a start that has nothing to do takes no lock at all.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, NoTls, Transaction};

use uuid::Uuid;

use crate::error::Error;
use crate::serve::{self, Fatal};
use crate::sql::Sql;

mod tables {
    refinery::embed_migrations!("migrations");
}
use tables::migrations;

macro_rules! functions {
    ($($file:literal),* $(,)?) => {
        /// The SQL door, the guards, and what `\d+` says of columns, in the order in which they are applied.
        const FUNCTIONS: &[&str] = &[$(include_str!(concat!("../sql/functions/", $file, ".sql"))),*];
    };
}

functions!(
    "01_uuidv7",
    "02_written_once",
    "03_live_guard",
    "04_upkeep",
    "05_wake",
    "06_submit",
    "07_end_unplaced",
    "08_terminate",
    "09_extend",
    "10_record",
    "11_adopt",
    "12_forget_host",
    "13_terminate_labelled",
    "14_comments",
);

/// How long to wait for another replica that migrates.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(100);
/// How long a question may take that changes nothing.
const QUESTION: Duration = Duration::from_secs(5);
/// How long all the changes may take. A lock is waited for much shorter; an index over much history is not made in a moment.
const WORK: Duration = Duration::from_secs(600);
/// How long a connection may take to end.
const GOODBYE: Duration = Duration::from_secs(1);
/// Held by the one that migrates.
const LOCK: &str = "select pg_try_advisory_xact_lock(hashtextextended('sundown migrate', 0))";

/// Migrates over a direct connection. With `always`, functions are applied even if nothing seems to have changed.
///
/// # Errors
/// Unavailable when the database cannot be reached or another migration does not end; internal when a migration fails.
pub async fn migrate(config: &Config, always: bool) -> Result<(), Error> {
    let mut connected = Connected::to(config).await?;
    let result = with(config, &mut connected.client, always).await;
    connected.end().await;
    result
}

/// A connection outside of any pool.
struct Connected {
    client: Client,
    driver: JoinHandle<Result<(), tokio_postgres::Error>>,
}

impl Connected {
    async fn to(config: &Config) -> Result<Self, Error> {
        let (client, connection) =
            within(QUESTION, async { config.connect(NoTls).await.map_err(|error| Error::of_connecting(&error)) }).await?;
        Ok(Self { client, driver: tokio::spawn(connection) })
    }

    /// Waits until the server was told. One that owes an answer still may never give it.
    async fn end(self) {
        let Self { client, mut driver } = self;
        drop(client);
        if tokio::time::timeout(GOODBYE, &mut driver).await.is_err() {
            driver.abort();
        }
    }
}

async fn within<T, E: Into<Error>>(bound: Duration, work: impl Future<Output = Result<T, E>>) -> Result<T, Error> {
    match tokio::time::timeout(bound, work).await {
        Ok(result) => result.map_err(Into::into),
        Err(_elapsed) => Err(Error::Unavailable(format!("no answer within {bound:?}"))),
    }
}

/// `sundown migrate`: migrates, applies the functions again, and writes the settings that were given.
///
/// # Errors
/// As [`migrate`], or a setting out of bounds.
pub async fn run(config: &crate::config::Migrate) -> Result<(), Fatal> {
    let Some((pooled, direct)) = config.database.addresses().map_err(Fatal::Usage)? else {
        return Err(Fatal::Usage("migrate needs a database: set SUNDOWN_DATABASE_URL".to_owned()));
    };
    migrate(&direct, true).await?;
    let sql = Sql::new(&pooled, 1, Duration::from_secs(5))?;
    serve::settings(&sql, config.settings).await
}

/// `sundown adopt`: binds this database to its installation, or to a new one. Answers the installation.
///
/// # Errors
/// Unavailable, or not migrated.
pub async fn adopt(config: &Config, as_new: bool) -> Result<Uuid, Error> {
    let connected = Connected::to(config).await?;
    let row = within(WORK, connected.client.query_typed_one("select sundown.adopt($1)", &[(&as_new, Type::BOOL)])).await;
    connected.end().await;
    Ok(row?.try_get(0)?)
}

async fn with(config: &Config, client: &mut Client, always: bool) -> Result<(), Error> {
    if !always && within(QUESTION, Standing::of(client)).await?.is_current() {
        return within(WORK, ahead(client)).await;
    }
    let mut holder = Connected::to(config).await?;
    let lock = locked(&mut holder.client).await?;
    let result = within(WORK, migrate_alone(client, always)).await;
    within(QUESTION, lock.commit()).await?;
    holder.end().await;
    result
}

/// Holds the lock in a transaction of a connection of its own: it goes with that, whatever dies, also behind a transaction pooler.
/// Polled, not waited for: a session that waits for a lock holds a snapshot, and the holder may have to wait for that.
async fn locked(holder: &mut Client) -> Result<Transaction<'_>, Error> {
    let give_up = Instant::now() + PATIENCE;
    let transaction = within(QUESTION, holder.transaction()).await?;
    while !within(QUESTION, transaction.query_typed_one(LOCK, &[])).await?.get::<_, bool>(0) {
        if Instant::now() > give_up {
            return Err(Error::Unavailable(format!(
                "another replica has been migrating for {PATIENCE:?}; look for a session that holds locks"
            )));
        }
        tokio::time::sleep(RETRY).await;
    }
    Ok(transaction)
}

/// With the lock held: looks again, and does what is left to do.
async fn migrate_alone(client: &mut Client, always: bool) -> Result<(), Error> {
    let standing = Standing::of(client).await?;
    if standing.is_newer() {
        tracing::warn!(
            release = env!("CARGO_PKG_VERSION"),
            database = standing.release,
            "the database is newer than this release; left as it is"
        );
        return Ok(());
    }
    if !always && standing.is_current() {
        return Ok(());
    }
    client.batch_execute("create schema if not exists sundown").await?;
    let mut runner = migrations::runner().set_abort_missing(false);
    runner.set_migration_table_name("sundown.migration");
    let report = runner.run_async(client).await.map_err(|error| {
        Error::Internal(format!("a migration failed: {error}; through a transaction pooler none can run: set SUNDOWN_DIRECT_URL"))
    })?;
    for applied in report.applied_migrations() {
        tracing::info!(version = applied.version(), name = applied.name(), "migrated");
    }
    apply_functions(client).await
}

/// After a long time without any replica there is no partition for today: nothing could be submitted before the first upkeep.
async fn ahead(client: &Client) -> Result<(), Error> {
    let missing = "select not exists (select from pg_inherits i join pg_class c on c.oid = i.inhrelid
                    where i.inhparent = 'sundown.agent'::regclass and sundown.partition_end(c.relname) > now() + interval '28 days')";
    if client.query_typed_one(missing, &[]).await?.get(0) {
        client.batch_execute("select sundown.make_ahead()").await?;
    }
    Ok(())
}

/// All functions, the installation and the first partitions, in one transaction: nobody sees half of them.
async fn apply_functions(client: &mut Client) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute("set local lock_timeout = '5s'").await?;
    for file in FUNCTIONS {
        transaction.batch_execute(file).await?;
    }
    transaction
        .batch_execute("select sundown.adopt() where not exists (select from sundown.installation); select sundown.make_ahead()")
        .await?;
    transaction
        .execute_typed(
            "update sundown.installation set release = $1, fingerprint = $2",
            &[(&env!("CARGO_PKG_VERSION"), Type::TEXT), (&fingerprint(), Type::TEXT)],
        )
        .await?;
    Ok(transaction.commit().await?)
}

/// Where a database stands, against this release.
struct Standing {
    version: i32,
    release: String,
    fingerprint: String,
}

impl Standing {
    async fn of(client: &Client) -> Result<Self, Error> {
        let empty = Self { version: 0, release: "0.0.0".to_owned(), fingerprint: String::new() };
        let tables = "select to_regclass('sundown.migration') is not null and to_regclass('sundown.installation') is not null";
        if !client.query_typed_one(tables, &[]).await?.get::<_, bool>(0) {
            return Ok(empty);
        }
        let version = client.query_typed_one("select coalesce(max(version), 0)::int4 from sundown.migration", &[]).await?.get(0);
        let row = client.query_typed_opt("select release, fingerprint from sundown.installation", &[]).await?;
        Ok(match row {
            Some(row) => Self { version, release: row.get(0), fingerprint: row.get(1) },
            None => Self { version, ..empty },
        })
    }

    fn is_current(&self) -> bool {
        self.is_newer() || (self.version == newest() && self.fingerprint == fingerprint())
    }

    /// Written by a later release than this one.
    fn is_newer(&self) -> bool {
        self.version > newest() || release(&self.release) > release(env!("CARGO_PKG_VERSION"))
    }
}

/// The version of the newest migration that this release knows.
fn newest() -> i32 {
    migrations::runner().get_migrations().iter().map(refinery::Migration::version).max().unwrap_or(0)
}

fn release(text: &str) -> Vec<u64> {
    text.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

fn fingerprint() -> String {
    let mut digest = Sha256::new();
    for file in FUNCTIONS {
        digest.update(file);
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
