//! Runs every `console` block of the README and of the pages in `docs`, and compares the output.
//!
//! A block consists of commands after `$ `, each followed by its standard output. A line of `…` matches any lines, and
//! `…` inside a line matches any text. The commands run in order in one empty folder. Each must exit with status 0, or
//! with the status in a comment after it: `$ fauna parity CASE   # exit status 1`.

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
    /// Returns the expected exit status.
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

/// Returns whether `line` matches `pattern`, in which `…` matches any text.
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
fn every_console_block_prints_the_documented_output() {
    let folder = tempfile::tempdir().unwrap();
    // Paths in the blocks are relative to the root of the repository.
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
    // The README runs first: other pages use the heatmap of its tour.
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
            "{place}\nexpected:\n{}\nprinted:\n{printed}\non standard error:\n{errors}",
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
fn the_table_of_families_lists_every_family_and_release() {
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
fn an_ellipsis_matches_any_text_and_any_lines() {
    let pattern = |lines: &[&str]| lines.iter().map(|line| line.to_string()).collect::<Vec<_>>();
    assert!(lines_match(&pattern(&["a … c", "…", "z"]), &["a b c", "x", "y", "z"]));
    assert!(!lines_match(&pattern(&["a … c", "…", "z"]), &["a b d", "z"]));
    assert!(!lines_match(&pattern(&["a"]), &["a", "b"]));
}

#[cfg(feature = "builtin")]
#[test]
fn the_table_of_pocket_models_has_each_with_its_figures() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/pocket.md")).unwrap();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `pocket-")).collect();
    let models: Vec<_> =
        fauna::builtin::models().into_iter().filter(fauna::builtin::Builtin::is_pocket).collect();
    assert_eq!(rows.len(), models.len());
    for (row, model) in rows.into_iter().zip(models) {
        let short = model.name.strip_prefix("pocket-").unwrap();
        let size = format!("{:.1} MB", model.size() as f64 / 1e6);
        let script = format!("assets/pocket/{short}.py");
        let case = format!("tests/parity/pocket/{short}");
        assert!(root.join(&script).exists() && root.join(&case).join("case.json").exists(), "{}", model.name);
        let goals = model.figures().into_iter().filter(|figure| figure.goal.is_some());
        let figures: Vec<String> = goals.map(|figure| figure.to_string()).collect();
        assert!(!figures.is_empty(), "{}", model.name);
        let name = format!("`{}`", model.name);
        for part in [&name, &model.system.to_string(), &size, &script, &case].into_iter().chain(&figures) {
            assert!(row.contains(part.as_str()), "{part} is not in the row of {}", model.name);
        }
    }
}
