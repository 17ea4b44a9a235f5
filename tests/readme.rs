//! Every `console` block of the README and of the pages in `docs` runs, and prints what it says it prints.
//!
//! A block is commands after `$ ` and, below each, what it writes on standard output. A line of `…` stands for any
//! lines, and `…` inside a line for any text. Commands run one after the other in one empty folder, and each ends with
//! exit status 0, or with the status that a comment behind it names: `$ fauna parity CASE   # exit status 1`.

#![cfg(all(feature = "cli", feature = "text", unix))]

use std::path::Path;
use std::process::Command;

struct Step {
    page: String,
    line: usize,
    command: String,
    expected: Vec<String>,
}

impl Step {
    /// The exit status that the command is to end with.
    fn status(&self) -> i32 {
        match self.command.rsplit_once("# exit status ") {
            Some((_, status)) => status.trim().parse().expect("a number behind \"exit status\""),
            None => 0,
        }
    }
}

fn steps(page: &str) -> Vec<Step> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if !inside => {}
            _ => match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push(Step {
                    page: page.to_string(),
                    line: number + 1,
                    command: command.to_string(),
                    expected: Vec::new(),
                }),
                (None, Some(step)) => step.expected.push(line.trim_end().to_string()),
                (None, None) => panic!("{page}:{}: output without a command", number + 1),
            },
        }
    }
    steps
}

/// Whether `line` is `pattern` with any text for each `…`.
fn line_matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

fn lines_match(patterns: &[String], lines: &[&str]) -> bool {
    match patterns.split_first() {
        None => lines.is_empty(),
        Some((pattern, more)) if pattern == "…" => {
            (0..=lines.len()).any(|skip| lines_match(more, &lines[skip..]))
        }
        Some((pattern, more)) => match lines.split_first() {
            Some((line, rest)) => line_matches(pattern, line) && lines_match(more, rest),
            None => false,
        },
    }
}

#[test]
fn every_block_prints_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    // Blocks name files of the repository as a reader would, from its root.
    #[cfg(unix)]
    std::os::unix::fs::symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"), folder.path().join("tests"))
        .unwrap();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_fauna"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let docs = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).unwrap();
    let names = docs.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut pages: Vec<String> =
        names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}")).collect();
    pages.sort();
    // The README's tour comes first: pages use its picture.
    pages.insert(0, "README.md".into());
    let steps: Vec<Step> = pages.iter().flat_map(|page| steps(page)).collect();
    assert!(steps.len() >= 25, "only {} commands in the pages", steps.len());
    for step in steps {
        let out = Command::new("sh")
            .args(["-c", &step.command])
            .current_dir(folder.path())
            .env("PATH", &path)
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap();
        let printed = String::from_utf8(out.stdout).unwrap();
        let lines: Vec<&str> = printed.lines().map(str::trim_end).collect();
        let mut expected = step.expected.clone();
        while expected.last().is_some_and(String::is_empty) {
            expected.pop();
        }
        let place = format!("{}:{}: {}", step.page, step.line, step.command);
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(
            lines_match(&expected, &lines),
            "{place}\nwanted:\n{}\nprinted:\n{printed}\non standard error:\n{errors}",
            expected.join("\n"),
        );
        assert_eq!(
            out.status.code(),
            Some(step.status()),
            "{place}\nexit status; on standard error:\n{errors}"
        );
    }
}

#[test]
fn the_table_of_families_has_every_family_and_release() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/families.md")).unwrap();
    for family in fauna::families() {
        let row = readme.lines().find(|line| line.starts_with(&format!("| {} |", family.name)));
        let row = row.unwrap_or_else(|| panic!("no row for the family {}", family.name));
        for release in family.releases {
            assert!(row.contains(release.id), "the row of {} does not name {}", family.name, release.id);
        }
    }
}

#[test]
fn an_ellipsis_stands_for_any_text_and_any_lines() {
    let pattern = |lines: &[&str]| lines.iter().map(|line| line.to_string()).collect::<Vec<_>>();
    assert!(lines_match(&pattern(&["a … c", "…", "z"]), &["a b c", "x", "y", "z"]));
    assert!(!lines_match(&pattern(&["a … c", "…", "z"]), &["a b d", "z"]));
    assert!(!lines_match(&pattern(&["a"]), &["a", "b"]));
}
