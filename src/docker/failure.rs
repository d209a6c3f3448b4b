//! How a call to the daemon fails, and what its caller can do about it.
//!
//! It guarantees that a failure's text is one bounded line without environment values, and that whatever is not a
//! plain no is an unknown outcome.

use std::time::Duration;

use bollard::errors::Error as BollardError;
use tokio::time::timeout;

use super::HEAD;

/// Longest text kept of a daemon's message, in bytes.
const MESSAGE_LIMIT: usize = 512;

/// What a caller can do about a failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DockerError {
    /// The image is not on this host. Nothing was created.
    #[error("image missing: {0}")]
    ImageMissing(String),
    /// The daemon understood and refused; the same request will never work.
    #[error("refused by docker: {0}")]
    Rejected(String),
    /// No answer, a 5xx, or an answer that cannot be read: it may or may not have happened. Look again.
    #[error("docker unavailable: {0}")]
    Unavailable(String),
}

/// How a call failed, before its meaning is known.
pub(super) enum Failure {
    /// The daemon knows no such container. Said by its words, not by the 404 alone: whatever stands between us and a
    /// daemon answers 404 as well, and "gone" ends an agent.
    Gone(String),
    /// The daemon answered with this status and message.
    Answered(u16, String),
    /// Nothing that can be read as an answer.
    Unknown(String),
}

impl Failure {
    pub(super) fn silent(call: &str, limit: Duration) -> Failure {
        Failure::Unknown(format!("{call}: no answer within {} s", limit.as_secs()))
    }
}

impl From<BollardError> for Failure {
    fn from(error: BollardError) -> Failure {
        match error {
            BollardError::DockerResponseServerError { status_code, message: text } => match (status_code, message(&text)) {
                (404, text) if says(&text, "no such container") => Failure::Gone(text),
                (status, text) => Failure::Answered(status, text),
            },
            // Its text may quote the answer, and an inspect holds the environment.
            BollardError::JsonDataError { .. } | BollardError::JsonSerdeError { .. } => {
                Failure::Unknown("the answer cannot be read".to_owned())
            }
            BollardError::RequestTimeoutError => Failure::silent("daemon", HEAD),
            other => Failure::Unknown(message(&causes(&other))),
        }
    }
}

impl From<Failure> for DockerError {
    fn from(failure: Failure) -> DockerError {
        match failure {
            // 408 and 429 ask to try again; a 404 or 409 that no caller expects (a start during a removal, say), to
            // look again. The other 4xx are a no.
            Failure::Answered(status @ 400..500, text) if ![404, 408, 409, 429].contains(&status) => DockerError::Rejected(text),
            Failure::Answered(status, text) => DockerError::Unavailable(format!("{status}: {text}")),
            Failure::Gone(text) => DockerError::Unavailable(text),
            Failure::Unknown(text) => DockerError::Unavailable(text),
        }
    }
}

pub(super) fn incomplete(call: &str) -> DockerError {
    DockerError::Unavailable(format!("{call}: the answer is incomplete"))
}

pub(super) async fn bounded<T>(call: &str, limit: Duration, answer: impl Future<Output = Result<T, BollardError>>) -> Result<T, Failure> {
    match timeout(limit, answer).await {
        Ok(answer) => answer.map_err(Failure::from),
        Err(_) => Err(Failure::silent(call, limit)),
    }
}

/// Whether a daemon's text holds these lower-case words; versions differ in capitals.
pub(super) fn says(text: &str, words: &str) -> bool {
    text.to_lowercase().contains(words)
}

/// The transport says only "connection error" at the top; the reason is below, partly said twice.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        let said = deeper.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = deeper.source();
    }
    text
}

/// One bounded line of somebody else's text.
pub(super) fn message(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() > MESSAGE_LIMIT {
        line.truncate(line.floor_char_boundary(MESSAGE_LIMIT));
        line.push('…');
    }
    line
}
