//! Runs all parity cases, one test per folder of `tests/parity`. Cases whose checkpoints are not in the cache are
//! skipped with a message.

#[path = "support/skip.rs"]
mod skip;

use std::path::Path;
use std::process::ExitCode;

use fauna::{LoadOptions, parity};
use libtest_mimic::{Arguments, Failed, Trial};

/// Runs every case below `folder` and reports all failures.
fn cases_of(folder: &Path) -> Result<(), Failed> {
    let zoo = fauna::zoo();
    let mut options = LoadOptions::default();
    // The pocket models are built in.
    #[cfg(feature = "builtin")]
    {
        options.finder = std::sync::Arc::new(fauna::builtin::finder());
    }
    let cases = parity::find(folder)?;
    let mut failures = Vec::new();
    for case in &cases {
        match parity::run(case, &zoo, &options) {
            Ok(report) if report.passes() => {
                if let Some(why) = &report.skipped {
                    let case = case.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(case);
                    skip::skipped(&case.display().to_string(), why);
                }
            }
            Ok(report) => failures.push(report.to_string()),
            Err(error) => failures.push(format!("{}: {error}", case.display())),
        }
    }
    match failures.is_empty() {
        true if cases.is_empty() => Err("the folder has no parity case".into()),
        true => Ok(()),
        false => Err(format!("{} cases fail\n{}", failures.len(), failures.join("\n")).into()),
    }
}

fn main() -> ExitCode {
    // `generate` has the scripts that write the cases.
    let is_cases = |folder: &Path| folder.is_dir() && !folder.ends_with("generate");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity");
    let entries = std::fs::read_dir(root).expect("tests/parity").map(|entry| entry.expect("an entry").path());
    let mut folders: Vec<_> = entries.filter(|folder| is_cases(folder)).collect();
    folders.sort();
    let trial = |folder: std::path::PathBuf| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Trial::test(format!("{name}_computes_what_its_reference_computes"), move || cases_of(&folder))
    };
    libtest_mimic::run(&Arguments::from_args(), folders.into_iter().map(trial).collect()).exit_code()
}
