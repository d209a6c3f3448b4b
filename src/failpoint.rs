//! Named points at which a test may end, stop or panic this process, and named ways in which the code is broken on purpose, so that a
//! test shows that it would be caught; in builds with the feature `failpoints` only. Set by `FAILPOINTS`, as in
//! `launch.created=1*return(kill)` (kill and stop send the signal to ourselves) and `defect.no_adoption=return`.

/// Here it may happen. Nothing at all without the feature.
#[cfg(not(feature = "failpoints"))]
pub fn hit(_name: &str) {}

/// Here it may happen.
#[cfg(feature = "failpoints")]
pub fn hit(name: &str) {
    use nix::sys::signal::{Signal, raise};
    let signal = match fail::eval(name, |action| action).flatten().as_deref() {
        Some("kill") => Signal::SIGKILL,
        Some("stop") => Signal::SIGSTOP,
        _ => return,
    };
    if let Err(error) = raise(signal) {
        tracing::error!(%error, name, "a failpoint could not raise its signal");
    }
}

/// Whether the code is broken in this way. Never without the feature.
#[cfg(not(feature = "failpoints"))]
#[must_use]
pub const fn broken(_defect: &str) -> bool {
    false
}

/// Whether the code is broken in this way.
#[cfg(feature = "failpoints")]
#[must_use]
pub fn broken(defect: &str) -> bool {
    fail::eval(&format!("defect.{defect}"), |_| ()).is_some()
}
