//! The pipeline of MedGemma end to end, against the reference's processor and network.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fauna_shared::generate::GenerationConfig;
use fauna_shared::item::{Image, Item, Prompt, Role, Turn};
use fauna_shared::model::Pipeline;
use fauna_shared::weights;
use fauna_shared::zoo::{LoadOptions, Zoo};
use fauna_shared::{Result, text::Tokenizer};
use fauna_vision::medgemma::OneShot;
use serde_json::{Value, json};

fn case() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/medgemma/generate_whole_way")
}

fn opened(settings: Value) -> Result<Box<dyn Pipeline>> {
    let settings = settings.as_object().unwrap().clone();
    let zoo = Zoo::new(fauna_vision::FAMILIES.iter().copied());
    zoo.open(case().join("model").to_str().unwrap(), &LoadOptions { settings, ..LoadOptions::default() })
}

/// Light grey, with a dark red middle: the image of the case.
fn picture() -> Item {
    let pixel = |i: usize| match (10..20).contains(&(i % 30)) && (8..16).contains(&(i / 30)) {
        true => [150, 40, 30],
        false => [200; 3],
    };
    Item::Image(Image { width: 30, height: 24, rgb: (0..30 * 24).flat_map(pixel).collect() })
}

fn answer(model: &dyn Pipeline, prompt: &Prompt) -> Result<Vec<String>> {
    let mut pieces = Vec::new();
    let options = GenerationConfig { max_new_tokens: 9, ..model.defaults() };
    model.generate(prompt, &options, &mut |item| {
        pieces.push(item.text().unwrap().to_string());
        ControlFlow::Continue(())
    })?;
    Ok(pieces)
}

/// The reference's completion.
fn expected() -> Vec<String> {
    let tokenizer = Tokenizer::from_folder(case().join("model")).unwrap();
    let sequences = &weights::tensors(&case().join("expected.safetensors")).unwrap()["sequences"];
    let ids: Vec<i64> = sequences.flatten_all().unwrap().to_vec1().unwrap();
    let new: Vec<u32> = ids[16..].iter().map(|id| *id as u32).collect();
    tokenizer.decode(&new, true).unwrap().split_whitespace().map(String::from).collect()
}

fn words(pieces: &[String]) -> Vec<String> {
    pieces.concat().split_whitespace().map(String::from).collect()
}

#[test]
fn an_image_and_a_question_give_the_references_answer() {
    let model = opened(json!({})).unwrap();
    assert!(model.card().notes[0].contains("not a medical device"));
    let question = || Item::from("describe this picture .");
    let asked = Prompt::Items(vec![picture(), question()]);
    let pieces = answer(model.as_ref(), &asked).unwrap();
    assert_eq!(words(&pieces), expected());
    assert!(pieces.len() > 1, "the answer was not streamed");
    let turn = Turn { role: Role::User, items: vec![picture(), question()] };
    assert_eq!(answer(model.as_ref(), &Prompt::Chat(vec![turn])).unwrap(), pieces);
    let placed = Prompt::Items(vec!["<start_of_image>describe this picture .".into(), picture()]);
    assert_eq!(answer(model.as_ref(), &placed).unwrap(), pieces);
}

#[test]
fn the_numbers_of_images_and_placeholders_must_be_equal() {
    let model = opened(json!({})).unwrap();
    let place = || Item::from("<start_of_image> describe this picture .");
    for (items, told) in [
        (vec![place()], "1 placeholder for an image (<start_of_image>), and there are 0 images"),
        (vec![place(), picture(), picture()], "and there are 2 images"),
        (
            vec![place(), place(), picture()],
            "2 placeholders for an image (<start_of_image>), and there is 1 image",
        ),
    ] {
        let error = answer(model.as_ref(), &Prompt::Items(items)).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn a_text_only_exemplar_may_precede_the_question() {
    let (instruction, exemplar) = ("describe the chest .", "<img> is a normal heart .");
    let model = opened(json!({ "instruction": instruction, "exemplar": exemplar })).unwrap();
    let query = || vec![picture(), "describe this picture .".into()];
    let set = answer(model.as_ref(), &Prompt::Items(query())).unwrap();
    let shot = OneShot { instruction: instruction.into(), exemplar: exemplar.into(), query: query() };
    let plain = opened(json!({})).unwrap();
    assert_eq!(answer(plain.as_ref(), &shot.into()).unwrap(), set);
    assert_ne!(answer(plain.as_ref(), &Prompt::Items(query())).unwrap(), set);
}

#[test]
fn images_may_keep_their_aspect_ratio_or_be_cropped() {
    let long =
        Item::Image(Image { width: 600, height: 300, rgb: (0..540_000).map(|i| (i / 97) as u8).collect() });
    let asked = Prompt::Items(vec![long, "describe this picture .".into()]);
    let of = |settings: Value| answer(opened(settings).unwrap().as_ref(), &asked).unwrap();
    let squashed = of(json!({}));
    assert_ne!(of(json!({ "padded_resize": true })), squashed);
    assert_ne!(of(json!({ "pan_and_scan": true })), squashed);
    let error = opened(json!({ "pan_and_scan": "yes" })).err().unwrap().to_string();
    assert!(error.contains("pan_and_scan"), "{error}");
}
