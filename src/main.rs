//! The command line: parse, dispatch, exit code. Knows no SQL and no Docker.
fn main() {}
