//! The files beside the data: locks and secrets that nobody else may read, opened so that nobody else can
//! make us read or write a file of their choosing. Knows nothing of Postgres.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc::O_NOFOLLOW;
use nix::unistd::{User, geteuid};

use super::EmbeddedError;

/// How long another process may hold the lock: its own start, with an initdb before it.
pub(super) const LOCK_LIMIT: Duration = Duration::from_secs(360);
/// Between two looks at something that no event announces.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Makes the directory if need be, and gives its one true path: the socket's path and the locks depend on it.
pub(super) fn make_home(dir: &Path) -> Result<PathBuf, EmbeddedError> {
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).map_err(|error| file_error("make", parent, error))?;
    }
    // The server's user passes through it to `pg/`, and can neither list it nor write to it.
    make_dir(dir, if geteuid().is_root() { 0o711 } else { 0o700 })?;
    fs::canonicalize(dir).map_err(|error| file_error("find", dir, error))
}

/// Makes a directory with exactly this mode, whatever the umask; one that exists is left as it is.
pub(super) fn make_dir(path: &Path, mode: u32) -> Result<(), EmbeddedError> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(|error| file_error("make", path, error))
}

/// Waits for the right to start or stop the server. The lock goes with the file, so a dead process holds none.
pub(super) async fn lock(home: &Path) -> Result<File, EmbeddedError> {
    let path = home.join("lock");
    let file = private_file(&path)?;
    let locked = tokio::time::timeout(LOCK_LIMIT, async {
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOOK_AGAIN).await,
                Err(TryLockError::Error(error)) => return Err(file_error("lock", &path, error)),
            }
        }
    })
    .await;
    match locked {
        Ok(result) => result.map(|()| file),
        Err(_) => Err(EmbeddedError::Locked(path)),
    }
}

/// Readable by nobody else, and never somebody's symbolic link.
pub(super) fn private_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags(O_NOFOLLOW);
    options
}

pub(super) fn private_file(path: &Path) -> Result<File, EmbeddedError> {
    private_options().read(true).write(true).create(true).truncate(false).open(path).map_err(|error| file_error("open", path, error))
}

pub(super) fn read_private(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    private_options().read(true).open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a file that only `owner` (or we) can read, anew: an old one may belong to somebody else.
pub(super) fn write_private(path: &Path, text: &str, owner: Option<&User>) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = private_options().write(true).create_new(true).open(path)?;
    writeln!(file, "{text}")?;
    if let Some(user) = owner {
        fchown(&file, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    }
    file.sync_all()
}

pub(super) fn file_error(doing: &'static str, path: &Path, source: io::Error) -> EmbeddedError {
    EmbeddedError::File { doing, path: path.to_owned(), source }
}
