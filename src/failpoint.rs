//! Named points at which a test may end, stop or panic this process, in builds with the feature `failpoints` only. Set by
//! `FAILPOINTS`, as in `launch.created=1*return(kill)`: kill and stop send the signal to ourselves.

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
