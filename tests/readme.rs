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

/// The tests that a text names, each with whether it says that a real daemon was asked.
fn named(text: &str) -> Vec<(&str, bool)> {
    let words: Vec<&str> = text.split('`').collect();
    let quoted = words.iter().enumerate().skip(1).step_by(2).map(|(place, word)| (*word, words[place + 1].starts_with(" †")));
    quoted
        .filter(|(word, _)| {
            word.len() > 12 && word.contains('_') && word.chars().all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
        })
        .collect()
}

/// A chapter, without its heading.
fn chapter<'a>(page: &'a str, heading: &str) -> &'a str {
    let (_, chapter) = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("there is no chapter {heading}"));
    chapter.split_once("\n## ").map_or(chapter, |(chapter, _)| chapter)
}

#[test]
fn every_guarantee_names_a_test_that_exists() {
    let (readme, guarantees) = (text("README.md"), text("docs/guarantees.md"));
    let tests = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"));
    for (page, chapters, least) in [(&readme, &["Guarantees"][..], 20), (&guarantees, &["Safety", "Liveness"][..], 13)] {
        let named: Vec<(&str, bool)> = chapters.iter().flat_map(|heading| named(chapter(page, heading))).collect();
        assert!(named.len() >= least, "only {} tests are named in {chapters:?}", named.len());
        for (name, _) in named {
            assert!(tests.contains(&format!("fn {name}(")), "there is no test {name}");
        }
    }
    // Here other names stand beside those of tests, which are sentences.
    for heading in ["Whether it would find anything", "Where the promises end"] {
        let sentences = named(chapter(&guarantees, heading)).into_iter().filter(|(name, _)| name.matches('_').count() > 4);
        let missing: Vec<&str> = sentences.map(|(name, _)| name).filter(|name| !tests.contains(&format!("fn {name}("))).collect();
        assert!(missing.is_empty(), "{heading}: there are no tests {missing:?}");
    }
}

#[test]
fn what_is_marked_runs_on_a_real_daemon() {
    let readme = text("README.md");
    let real: String = ["tests/e2e.rs", "tests/embedded.rs", "tests/docker.rs", "tests/kills.rs"].map(text).concat()
        + &sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e_faults"));
    for (name, marked) in named(chapter(&readme, "Guarantees")) {
        assert!(!marked || real.contains(&format!("fn {name}(")), "{name} needs no daemon");
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
fn every_figure_that_was_measured_is_there() {
    for page in ["README.md", "docs/operations.md", "docs/sql-cookbook.md", "docs/guarantees.md"] {
        assert!(!text(page).contains("{{"), "{page} has a placeholder");
    }
    let readme = text("README.md");
    let lines: Vec<&str> = chapter(&readme, "Measured").lines().collect();
    let is_rule = |place: usize| lines.get(place).is_some_and(|line| line.starts_with("|--"));
    let figures = lines.iter().enumerate().filter(|(place, line)| line.starts_with("| ") && !is_rule(place + 1));
    let figures: Vec<&str> = figures.map(|(_, line)| *line).collect();
    assert!(figures.len() >= 8, "only {} figures: {figures:?}", figures.len());
    for line in figures {
        let values = line.split('|').skip(2).filter(|value| !value.is_empty());
        assert!(values.clone().all(|value| value.chars().any(|c| c.is_ascii_digit())) && values.count() > 0, "no figure: {line}");
    }
}
