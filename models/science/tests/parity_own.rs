use std::path::{Path, PathBuf};

use fauna_shared::parity;
use fauna_shared::zoo::{Options, Zoo};

#[test]
fn cases() {
    let zoo = Zoo::new(fauna_science::FAMILIES.to_vec());
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/orb")];
    folders.extend(std::env::var_os("FAUNA_MORE_CASES").map(PathBuf::from));
    let mut failures = 0;
    for folder in folders {
        for case in parity::find(&folder).unwrap() {
            if !case.to_string_lossy().contains("orb") {
                continue;
            }
            match parity::run(&case, &zoo, &Options::default()) {
                Ok(report) => {
                    if !report.passes() {
                        failures += 1;
                    }
                    println!("{report}");
                }
                Err(error) => {
                    failures += 1;
                    println!("{}: {error}", case.display());
                }
            }
        }
    }
    assert_eq!(failures, 0);
}
