//! What can go wrong, named by what the caller can do about it. Knows no HTTP status and no Docker; only `http` turns it into an
//! answer, and the text of an internal error never reaches a client.

use tokio_postgres::error::{DbError, SqlState};

/// An error, named by what the caller can do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong, or asks for what cannot be: change it.
    #[error("{}: {}", .0.code, .0.message)]
    Refused(Refusal),
    /// The database cannot be reached, is too slow, or is not the one we belong to: try again later.
    #[error("the database does not answer: {0}")]
    Unavailable(String),
    /// Somebody holds what was asked about: try again later.
    #[error("somebody holds its row: {0}")]
    Locked(String),
    /// The database refused a statement of ours: a defect, or somebody else's schema.
    #[error("the database refused a statement: {0}")]
    Internal(String),
}

/// A refusal that a client can understand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which kind of refusal.
    pub kind: Kind,
    /// The stable code, as in `already_over`.
    pub code: String,
    /// What is wrong, in a sentence.
    pub message: String,
    /// What to do about it, in a sentence.
    pub hint: String,
}

/// The kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request is malformed or out of bounds.
    Invalid,
    /// There is no such agent.
    Unknown,
    /// It contradicts what has happened already.
    Conflict,
}

impl Error {
    /// A refusal of a malformed request.
    pub fn invalid(code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused(Refusal { kind: Kind::Invalid, code: code.to_owned(), message: message.into(), hint: hint.into() })
    }

    /// What became of an attempt to connect: whatever the server did not say itself may be different the next time.
    pub(crate) fn of_connecting(error: &tokio_postgres::Error) -> Self {
        error.as_db_error().map_or_else(|| Self::Unavailable(chain(error)), Self::from)
    }

    /// Whether the transaction was rolled back only because of others, so that the same statement may be sent again at once.
    pub(crate) fn is_transient(error: &tokio_postgres::Error) -> bool {
        matches!(error.code(), Some(code) if [SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE].contains(code))
    }
}

/// The error's whole chain: tokio-postgres says only "db error" by itself.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn is_io(error: &dyn std::error::Error) -> bool {
    std::iter::successors(error.source(), |cause| cause.source()).any(|cause| cause.is::<std::io::Error>())
}

impl From<&DbError> for Error {
    fn from(error: &DbError) -> Self {
        let kind = match error.code().code() {
            "SD400" | "SD403" => Kind::Invalid,
            "SD404" => Kind::Unknown,
            "SD409" => Kind::Conflict,
            // Values that pass our checks and no cast of Postgres, such as an instant in the year 300000.
            "22007" | "22008" | "22015" | "22003" => {
                return Self::invalid("invalid_value", "a value is out of range", "Use a smaller duration, number or an earlier instant.");
            }
            "55P03" => return Self::Locked(error.message().to_owned()),
            // No room for connections, shutting down, read-only, out of disk or memory, statement cancelled.
            code if ["08", "53", "57"].contains(&&code[..2]) || ["25006", "3D000", "28000", "28P01", "42501"].contains(&code) => {
                return Self::Unavailable(format!("{} ({})", error.message(), error.code().code()));
            }
            _ => return Self::Internal(format!("{} ({})", error.message(), error.code().code())),
        };
        Self::Refused(Refusal {
            kind,
            code: error.constraint().unwrap_or("refused").to_owned(),
            message: error.message().to_owned(),
            hint: error.hint().unwrap_or_default().to_owned(),
        })
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(refused) => refused.into(),
            None if error.is_closed() || is_io(&error) => Self::Unavailable(chain(&error)),
            // A row that is not what we expect, or words that are not Postgres': trying again would not help.
            None => Self::Internal(chain(&error)),
        }
    }
}

impl From<deadpool_postgres::PoolError> for Error {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        Self::Unavailable(chain(&error))
    }
}
