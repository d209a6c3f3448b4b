//! The pages are held against the code: every code that anybody can be refused with is explained, and every link leads somewhere.
#![expect(clippy::unwrap_used, reason = "a test that cannot read its files fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sundown::http::problem::CODES;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files of a directory with that ending.
fn files(dir: &str, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(dir)).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == ending)).collect()
}

/// The text between single quotes, wherever `before` precedes it.
fn quoted_after<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.strip_prefix('\'')?.split('\'').next()).collect()
}

/// What a code comes with: statuses of HTTP, SQLSTATEs.
type Answers = BTreeMap<String, (BTreeSet<u16>, BTreeSet<String>)>;

/// The codes that the sources answer.
fn answered() -> Answers {
    let mut answers = Answers::new();
    for code in CODES {
        answers.entry(code.name.to_owned()).or_default().0.insert(code.status);
    }
    for file in files("sql/functions", "sql") {
        let text = text(&file);
        for raise in text.split("raise exception using ").skip(1) {
            let state = quoted_after(raise, "errcode = ")[0];
            let (_, constraint) = raise.split_once("constraint = ").unwrap();
            let codes = match constraint.split(',').next().unwrap() {
                // Judged by a case, each of whose values begins with the code.
                "refusal.code" => quoted_after(&text, "array["),
                "bad.rule" => {
                    let (rules, _) = text.split_once(" end as rule").unwrap();
                    let rules = &rules[rules.rfind("select ").unwrap()..];
                    [quoted_after(rules, " then "), quoted_after(rules, " else ")].concat()
                }
                code => vec![code.trim_matches('\'')],
            };
            assert!(!codes.is_empty(), "{} raises something without a code: {raise}", file.display());
            for code in codes {
                let (statuses, states) = answers.entry(code.to_owned()).or_default();
                states.insert(state.to_owned());
                // Nothing that the API does is refused by the guards of a life.
                statuses.extend(state[2..].parse::<u16>().ok().filter(|status| *status != 403));
            }
        }
    }
    // What is said of a refusal without a code.
    let fallback = text("src/error.rs");
    let (_, fallback) = fallback.split_once("error.constraint().unwrap_or(\"").unwrap();
    answers.insert(fallback.split('"').next().unwrap().to_owned(), ([400, 404, 409].into(), BTreeSet::new()));
    answers
}

/// The codes that a page has a row for.
fn documented(page: &str) -> Answers {
    let mut rows = Answers::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let code = line.split('`').nth(1).unwrap();
        let cells: Vec<&str> = line.split('|').skip(2).take(2).collect();
        let statuses: BTreeSet<u16> = cells[0].split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
        let words = cells.iter().flat_map(|cell| cell.split([' ', ',']));
        let states: BTreeSet<String> = words.filter(|word| word.len() == 5 && word.starts_with("SD")).map(str::to_owned).collect();
        assert!(rows.insert(code.to_owned(), (statuses, states)).is_none(), "{code} is there twice");
    }
    rows
}

#[test]
fn every_code_has_a_row_and_no_row_is_for_a_code_that_there_is_not() {
    let (answers, rows) = (answered(), documented(&text("docs/errors.md")));
    assert!(answers.len() > 50, "the sources are not understood any more: {answers:?}");
    for (code, answer) in &answers {
        assert_eq!(rows.get(code), Some(answer), "{code}: docs/errors.md, against the sources");
    }
    let invented: Vec<&String> = rows.keys().filter(|code| !answers.contains_key(*code)).collect();
    assert!(invented.is_empty(), "nothing answers {invented:?}");
}

#[test]
fn every_exit_code_is_explained() {
    let main = text("src/main.rs");
    let (_, said) = main.split_once("//! Exit codes: ").unwrap();
    let said: BTreeSet<u8> =
        said.lines().next().unwrap().split("; ").map(|part| part.split(' ').next().unwrap().parse().unwrap()).collect();
    let fatal = main.lines().filter(|line| line.trim_start().starts_with("Fatal::")).filter_map(|line| line.split_once(" => "));
    let fatal: Vec<u8> = fatal.filter_map(|(_, code)| code.trim_end_matches(',').parse().ok()).collect();
    assert!(fatal.len() >= 4 && fatal.iter().all(|code| said.contains(code)), "{fatal:?} against {said:?}");

    let page = text("docs/errors.md");
    let (_, chapter) = page.split_once("\n## Exit codes\n").unwrap();
    let rows: BTreeSet<u8> = chapter.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok()).collect();
    assert_eq!(rows, said);
}

/// The name by which a heading is linked to.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_within_the_pages_leads_somewhere() {
    let mut links = 0;
    for page in files("", "md").into_iter().chain(files("docs", "md")) {
        let here = text(&page);
        for link in here.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.starts_with("http") {
                continue;
            }
            links += 1;
            let (file, part) = link.split_once('#').map_or((link, None), |(file, part)| (file, Some(part)));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: there is no {link}", page.display());
            if let Some(part) = part {
                let there = text(&target);
                let mut headings = there.lines().filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#')));
                assert!(headings.any(|heading| heading == part), "{}: there is no {link}", page.display());
            }
        }
    }
    assert!(links > 40, "only {links} links are found");
}
