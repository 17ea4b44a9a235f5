//! Adapters over the families of this crate, as peft saves them, against the reference with peft.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fauna_shared::adapter::{Adapter, AdapterSpec, LoraTensors};
use fauna_shared::parity::{self, ModelFolder};
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
    let zoo = Zoo::new(fauna_vision::FAMILIES.iter().copied());
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
fn adapters_over_clip_agree_with_the_reference() {
    agrees("clip");
}

#[test]
fn adapters_over_siglip_agree_with_the_reference() {
    agrees("siglip");
}

#[test]
fn adapters_over_dalle_agree_with_the_reference() {
    agrees("dalle");
}

#[test]
fn adapters_over_flamingo_agree_with_the_reference() {
    agrees("flamingo");
}

#[test]
fn adapters_over_medgemma_agree_with_the_reference() {
    agrees("medgemma");
}

#[test]
fn adapters_over_llava_agree_with_the_reference() {
    agrees("llava");
}

#[test]
fn updates_that_no_file_of_a_release_has_are_refused_by_name() {
    for (case, module, other) in [
        ("dalle/adapter_mini_embedding", "decoder.lm_head", "decoder.other.lm_head"),
        ("dalle/adapter_mini_embedding", "encoder.layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj"),
        ("clip/adapter_dora", "", "vision_model.other.k_proj"),
    ] {
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity").join(case);
        let adapter = Adapter::open(&case.join("adapter")).unwrap();
        let parts = |(name, update): (&String, &LoraTensors)| (name.clone(), update.parts().clone());
        let mut modules: BTreeMap<_, _> = adapter.modules().iter().map(parts).collect();
        let held = match module {
            "" => modules.values().next().cloned().unwrap(),
            module => modules.remove(module).unwrap(),
        };
        modules.insert(other.to_string(), held);
        let place = tempfile::tempdir().unwrap();
        let saved = adapter.saved().clone();
        Adapter::new(adapter.config().clone(), modules, saved).unwrap().write(place.path()).unwrap();
        let model = ModelFolder::open(&case.join("model")).unwrap();
        let path = place.path().to_str().unwrap().to_string();
        let options = LoadOptions::default().with_adapter(AdapterSpec { path, scale: 1.0 });
        let zoo = Zoo::new(fauna_vision::FAMILIES.iter().copied());
        let error = zoo.open(model.path().to_str().unwrap(), &options).err().unwrap().to_string();
        assert!(error.contains("updates of 1 modules") && error.contains(other), "{error}");
    }
}
