//! What a service manager is told, and what it gives: that we serve, live and stop; and the socket on which it listens for us. Where there is none,
//! as on a terminal, nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// The socket that was opened for us, if there is one.
#[must_use]
pub fn socket() -> Option<std::net::TcpListener> {
    listenfd::ListenFd::from_env().take_tcp_listener(0).ok().flatten()
}

/// Says that we serve; then that we live, as often as was asked for; and that we stop, once told to.
pub async fn tell(stop: CancellationToken) {
    say(&[NotifyState::Ready]);
    let pace = sd_notify::watchdog_enabled().map_or(Duration::MAX, |within| within / 3);
    while stop.run_until_cancelled(tokio::time::sleep(pace)).await.is_some() {
        say(&[NotifyState::Watchdog]);
    }
    say(&[NotifyState::Stopping]);
}

fn say(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}
