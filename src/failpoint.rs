//! Named points at which a test may end, stop or panic this process, in builds with the feature `failpoints` only. Set by
//! `FAILPOINTS`, as in `launch.created=1*return(kill)`: kill and stop send the signal to ourselves.

/// Here it may happen. Nothing at all without the feature.
#[cfg(not(feature = "failpoints"))]
pub fn hit(_name: &str) {}

/// Here it may happen.
#[cfg(feature = "failpoints")]
pub fn hit(name: &str) {
    use nix::sys::signal::{Signal, raise};
    let ignored = match fail::eval(name, |action| action) {
        Some(Some(action)) if action == "kill" => raise(Signal::SIGKILL),
        Some(Some(action)) if action == "stop" => raise(Signal::SIGSTOP),
        _ => Ok(()),
    };
    drop(ignored);
}
