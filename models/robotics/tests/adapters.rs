//! Adapters over the families of this crate, as peft saves them, against the reference with peft.

use std::path::{Path, PathBuf};

use fauna_shared::parity;
use fauna_shared::zoo::{LoadOptions, Zoo};

/// The cases `adapter_*` of `family`.
fn cases(family: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity").join(family);
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let cases = parity::find(&folder).unwrap();
    cases.into_iter().filter(|case| name(case).starts_with("adapter_")).collect()
}

/// Checks that all cases of `family` agree with the reference.
fn agrees(family: &str) {
    let zoo = Zoo::new(fauna_robotics::FAMILIES.iter().copied());
    let cases = cases(family);
    assert!(!cases.is_empty());
    let mut wrong = Vec::new();
    for case in cases {
        match parity::run(&case, &zoo, &LoadOptions::default()) {
            Ok(report) if report.passes() => {}
            Ok(report) => wrong.push(report.to_string()),
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn adapters_over_openvla_agree_with_the_reference() {
    agrees("openvla");
}
