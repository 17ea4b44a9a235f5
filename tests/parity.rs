//! Every committed parity case, one test a family's folder. A case whose checkpoint is not in the cache says that it is
//! skipped.

#[path = "support/skip.rs"]
mod skip;

use std::path::Path;

use fauna::{LoadOptions, parity};

/// Runs every case below `tests/parity/NAME` and tells all that do not pass.
fn cases_of(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name);
    let (zoo, options) = (fauna::zoo(), LoadOptions::default());
    let mut failures = Vec::new();
    for case in parity::find(&folder).unwrap() {
        match parity::run(&case, &zoo, &options) {
            Ok(report) if report.passes() => {
                if let Some(why) = &report.skipped {
                    let case = case.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(&case);
                    skip::skipped(&case.display().to_string(), why);
                }
            }
            Ok(report) => failures.push(report.to_string()),
            Err(error) => failures.push(format!("{}: {error}", case.display())),
        }
    }
    assert!(failures.is_empty(), "{} cases fail\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn bert_computes_what_its_reference_computes() {
    cases_of("bert");
}

#[test]
fn gpt_computes_what_its_reference_computes() {
    cases_of("gpt");
}

#[test]
fn llama_computes_what_its_reference_computes() {
    cases_of("llama");
}

#[test]
fn chronos_computes_what_its_reference_computes() {
    cases_of("chronos");
}

#[test]
fn timesfm_computes_what_its_reference_computes() {
    cases_of("timesfm");
}

#[test]
fn clip_computes_what_its_references_compute() {
    cases_of("clip");
}

#[test]
fn dalle_computes_what_its_references_compute() {
    cases_of("dalle");
}

#[test]
fn encodec_computes_what_its_reference_computes() {
    cases_of("encodec");
}

#[test]
fn llark_and_jukebox_compute_what_their_references_compute() {
    cases_of("llark");
}

#[test]
fn musicgen_computes_what_its_reference_computes() {
    cases_of("musicgen");
}

#[test]
fn flamingo_computes_what_its_references_compute() {
    cases_of("flamingo");
}

#[test]
fn gemma3_computes_what_its_references_compute() {
    cases_of("gemma3");
}

#[test]
fn genslm_computes_what_its_reference_computes() {
    cases_of("genslm");
}

#[test]
fn medgemma_and_llava_compute_what_their_references_compute() {
    cases_of("llava");
    cases_of("medgemma");
}

#[test]
fn gpt_neox_computes_what_its_reference_computes() {
    cases_of("gpt_neox");
}

#[test]
fn gpt_oss_computes_what_its_reference_computes() {
    cases_of("gpt_oss");
}

#[test]
fn mpt_computes_what_its_reference_computes() {
    cases_of("mpt");
}

#[test]
fn openvla_computes_what_its_reference_computes() {
    cases_of("openvla");
}

#[test]
fn orb_computes_what_its_reference_computes() {
    cases_of("orb");
}

#[test]
fn siglip_computes_what_its_reference_computes() {
    cases_of("siglip");
}

#[test]
fn starcoder_computes_what_its_references_compute() {
    cases_of("starcoder");
}

#[test]
fn t5_computes_what_its_reference_computes() {
    cases_of("t5");
}

/// A folder of cases that no test above names would never be run.
#[test]
fn no_folder_of_cases_is_forgotten() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity");
    let cases = parity::find(&folder).unwrap();
    let mut families: Vec<&str> =
        cases.iter().filter_map(|case| case.strip_prefix(&folder).ok()?.iter().next()?.to_str()).collect();
    families.dedup();
    assert_eq!(
        families,
        [
            "bert",
            "chronos",
            "clip",
            "dalle",
            "encodec",
            "flamingo",
            "gemma3",
            "genslm",
            "gpt",
            "gpt_neox",
            "gpt_oss",
            "llama",
            "llark",
            "llava",
            "medgemma",
            "mpt",
            "musicgen",
            "openvla",
            "orb",
            "preprocess",
            "siglip",
            "starcoder",
            "t5",
            "timesfm"
        ]
    );
}

#[test]
fn processors_make_of_pictures_what_their_references_make() {
    cases_of("preprocess");
}
