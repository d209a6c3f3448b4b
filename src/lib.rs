//! Sundown: every agent is gone by sundown.
pub mod agent;
pub mod docker;
pub mod embedded;
pub mod error;
pub mod sql;
