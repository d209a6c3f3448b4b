//! Sundown: every agent is gone by sundown.
