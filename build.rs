//! Tells cargo to look at migrations: they are embedded by a macro that it cannot see through.
fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
