//! The README is held against the code: it names tests that exist, every flag, and no figure that nobody measured.
#![expect(clippy::unwrap_used, reason = "a test that cannot read its files fails")]

use std::path::Path;

use clap::CommandFactory;

fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Every Rust file below a directory, as one text.
fn sources(dir: &Path) -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.push_str(&sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
    all
}

#[test]
fn every_guarantee_names_a_test_that_exists() {
    let readme = text("README.md");
    let (_, guarantees) = readme.split_once("## Guarantees").unwrap();
    let (guarantees, _) = guarantees.split_once("\n## ").unwrap();
    let named: Vec<&str> = guarantees.split('`').skip(1).step_by(2).filter(|name| name.contains('_')).collect();
    assert!(named.len() >= 15, "only {} tests are named", named.len());
    let tests = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"));
    for name in named {
        assert!(tests.contains(&format!("fn {name}(")), "there is no test {name}");
    }
}

#[test]
fn every_flag_and_variable_is_in_the_readme() {
    let readme = text("README.md");
    let command = sundown::config::Cli::command();
    let serve = command.find_subcommand("serve").unwrap();
    for argument in serve.get_arguments().filter(|argument| argument.get_id() != "help") {
        let flag = format!("`--{}`", argument.get_long().unwrap());
        assert!(readme.contains(&flag), "{flag} is not in the README");
        let variable = argument.get_env().unwrap().to_str().unwrap();
        assert!(readme.contains(&format!("`{variable}`")), "{variable} is not in the README");
    }
}

#[test]
fn no_figure_is_left_unmeasured() {
    for page in ["README.md", "docs/operations.md", "docs/sql-cookbook.md"] {
        assert!(!text(page).contains("{{"), "{page} has a placeholder");
    }
}
