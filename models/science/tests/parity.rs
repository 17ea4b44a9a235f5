//! The committed parity cases of this crate's families, over its own families alone.

use std::path::{Path, PathBuf};

use fauna_shared::parity;
use fauna_shared::zoo::{Options, Zoo};

fn run(folders: Vec<PathBuf>) {
    let zoo = Zoo::new(fauna_text::FAMILIES.iter().chain(fauna_science::FAMILIES).copied());
    let mut failures = Vec::new();
    for case in folders.iter().flat_map(|folder| parity::find(folder).unwrap()) {
        let wanted = std::env::var("FAUNA_ONLY").unwrap_or_default();
        if !case.to_string_lossy().contains(&wanted) {
            continue;
        }
        match parity::run(&case, &zoo, &Options::default()) {
            Ok(report) => {
                println!("{report}");
                if !report.passes() {
                    failures.push(report.to_string());
                }
            }
            Err(error) => failures.push(format!("{}: {error}", case.display())),
        }
    }
    assert!(failures.is_empty(), "{} cases fail\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn forecasters_compute_what_their_references_compute() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity");
    let mut folders: Vec<PathBuf> =
        ["chronos", "timesfm"].iter().map(|name| cases.join(name)).filter(|path| path.is_dir()).collect();
    if let Ok(more) = std::env::var("FAUNA_MORE_CASES") {
        folders.extend(more.split(':').map(PathBuf::from));
    }
    run(folders);
}
