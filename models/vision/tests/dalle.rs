//! The pipelines of DALL·E: missing and damaged files, prompts that are too long, images of unsupported sizes.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::GenerationConfig;
use fauna_shared::item::{Image, Item, Prompt, Tensors};
use fauna_shared::model::Pipeline;
use fauna_shared::parity::ModelFolder;
use fauna_shared::zoo::{LoadOptions, Zoo};
use fauna_shared::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The checkpoint of a case. A file that is made from a seed goes when this is dropped; an opened model keeps it.
fn case(name: &str) -> ModelFolder {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/dalle");
    ModelFolder::open(&cases.join(name).join("model")).unwrap()
}

fn open_with(folder: &Path, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
    Zoo::new(fauna_vision::FAMILIES.iter().copied()).open(folder.to_str().unwrap(), options)
}

fn open(folder: &Path) -> Result<Box<dyn Pipeline>> {
    open_with(folder, &LoadOptions::default())
}

/// A copy of a case's checkpoint, to be changed.
fn copy(name: &str) -> TempDir {
    let (from, folder) = (case(name), tempfile::tempdir().unwrap());
    for entry in fs::read_dir(from.path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// A model with a tiny vocabulary and images of 16 by 16 pixels.
fn mini_with_vocabulary() -> TempDir {
    let folder = copy("mini_generate");
    let tokens = ["<s>", "<pad>", "</s>", "<unk>", "Ġ", "a", "c", "t", "at", "Ġc", "Ġcat"];
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().zip(0..).map(|(token, id)| (token.to_string(), json!(id))).collect();
    fs::write(folder.path().join("vocab.json"), Value::Object(vocab).to_string()).unwrap();
    fs::write(folder.path().join("merges.txt"), "#version: 0.2\na t\nĠ c\nĠc at\n").unwrap();
    folder
}

fn refusal(result: Result<impl Sized>) -> Error {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(error) => error,
    }
}

fn tensors(name: &str, tensor: Tensor) -> Tensors {
    Tensors::from([(name.to_string(), tensor)])
}

fn codes(values: &[i64], shape: &[usize]) -> Tensors {
    tensors("codes", Tensor::from_slice(values, shape, &Device::Cpu).unwrap())
}

/// All items generated from `prompts`, with the index of the prompt.
fn generated(model: &dyn Pipeline, prompts: &[&str], options: &GenerationConfig) -> Vec<(usize, Item)> {
    let prompts: Vec<Prompt> = prompts.iter().map(|text| Prompt::from(*text)).collect();
    let mut items = Vec::new();
    let each = &mut |index, item| {
        items.push((index, item));
        ControlFlow::Continue(())
    };
    model.generate_batch(&prompts, options, each).unwrap();
    items
}

fn pictures(items: &[(usize, Item)]) -> Vec<(usize, Image)> {
    let picture = |(index, item): &(usize, Item)| match item {
        Item::Image(picture) => Some((*index, picture.clone())),
        _ => None,
    };
    items.iter().filter_map(picture).collect()
}

#[test]
fn codes_outside_the_codebook_are_named() {
    for (name, outside) in [("dvae_decode", 40), ("vqgan_decode", 40), ("mini_generate", 40)] {
        let model = open(case(name).path()).unwrap();
        for bad in [outside, -1, i64::MAX] {
            let inputs = codes(&[0, bad, 1, 2], &[1, 2, 2]);
            let error = refusal(model.call("decode", &inputs, &Value::Null));
            assert_eq!(error.kind(), ErrorKind::Input);
            assert!(error.message().contains(&format!("code {bad} ")), "{error}");
        }
        assert!(model.call("decode", &codes(&[], &[1, 0, 3]), &Value::Null).is_err());
    }
    let model = open(case("vqgan_decode").path()).unwrap();
    let error = refusal(model.call("decode", &codes(&[0; 3], &[1, 3]), &Value::Null));
    assert!(error.message().contains("3 codes are not a square grid"), "{error}");
}

#[test]
fn images_of_unsupported_sizes_are_refused() {
    let model = open(case("dvae_encode").path()).unwrap();
    for (shape, said) in [
        ([1, 3, 16, 20], "multiples of 8"),
        ([1, 3, 0, 8], "multiples of 8"),
        ([1, 4, 8, 8], "4 channels"),
        ([1, 3, 8, 1 << 20], "too large"),
    ] {
        let pixels = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap().broadcast_as(&shape[..]).unwrap();
        let error = refusal(model.call("encode", &tensors("pixel_values", pixels), &Value::Null));
        assert_eq!(error.kind(), ErrorKind::Input);
        assert!(error.message().contains(said), "{error}");
    }
    let tiny = Image { width: 300, height: 255, rgb: vec![9; 300 * 255 * 3] };
    let prompt = Prompt::Items(vec![Item::Image(tiny)]);
    let error =
        refusal(model.generate(&prompt, &GenerationConfig::default(), &mut |_| ControlFlow::Continue(())));
    assert!(error.message().contains("300 by 255 pixels is too small"), "{error}");
}

#[test]
fn an_image_is_encoded_and_decoded() {
    let model = open(case("dvae_encode").path()).unwrap();
    let rgb = (0..300 * 270 * 3).map(|i| (i % 251) as u8).collect();
    let recoded = |item: Item| -> Item {
        let mut made = None;
        let each = &mut |item| {
            made = Some(item);
            ControlFlow::Continue(())
        };
        model.generate(&Prompt::Items(vec![item]), &GenerationConfig::default(), each).unwrap();
        made.unwrap()
    };
    let Item::Codes(codes) = recoded(Item::Image(Image { width: 300, height: 270, rgb })) else {
        panic!("an image gives codes")
    };
    assert_eq!((codes["codes"].dims(), codes["codes"].dtype()), (&[1, 32, 32][..], DType::I64));
    let Item::Image(again) = recoded(Item::Codes(codes)) else { panic!("codes give an image") };
    assert_eq!((again.width, again.height, again.rgb.len()), (256, 256, 256 * 256 * 3));
}

#[test]
fn a_missing_encoder_or_decoder_is_named() {
    let encoder = open(case("dvae_encode_alone").path()).unwrap();
    let error = refusal(encoder.call("decode", &codes(&[0], &[1, 1, 1]), &Value::Null));
    assert!(error.to_string().contains("no decoder") && error.to_string().contains("decoder.pkl"), "{error}");
    let decoder = open(case("dvae_decode_alone").path()).unwrap();
    let pixels = Tensor::zeros((1, 3, 8, 8), DType::F32, &Device::Cpu).unwrap();
    let error = refusal(decoder.call("encode", &tensors("pixel_values", pixels), &Value::Null));
    assert!(error.to_string().contains("encoder.pkl"), "{error}");
    // One file of a folder with both.
    let alone = open(&case("dvae_decode").path().join("decoder.pkl")).unwrap();
    assert!(alone.card().parameters < open(case("dvae_decode").path()).unwrap().card().parameters);
}

#[test]
fn truncated_files_are_named() {
    for (name, file) in [
        ("dvae_encode", "encoder.pkl"),
        ("mini_forward", "decoder.pt"),
        ("mini_forward_flax", "flax_model.msgpack"),
        ("vqgan_decode", "detoker.pt"),
    ] {
        let folder = copy(name);
        let path = folder.path().join(file);
        let whole = fs::read(&path).unwrap();
        for length in [1, 100, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            let error = refusal(open(folder.path()));
            assert_eq!(error.kind(), ErrorKind::Format, "{error}");
            assert_eq!(error.place(), Some(&*path), "{error}");
        }
    }
}

#[test]
fn a_missing_vqgan_is_named() {
    let folder = mini_with_vocabulary();
    fs::remove_file(folder.path().join("detoker.pt")).unwrap();
    let model = open(folder.path()).unwrap();
    assert!(model.card().notes[0].contains("no images"));
    let error =
        refusal(model.generate(&"a cat".into(), &model.defaults(), &mut |_| ControlFlow::Continue(())));
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("detoker.pt"), "{error}");
}

#[test]
fn config_values_that_are_not_implemented_are_refused_by_key() {
    for (key, value) in [
        ("ln_positions", json!("swinv2")),
        ("ln_type", json!("rmsnorm")),
        ("use_head_scale", json!(true)),
        ("use_cosine_attention", json!(true)),
        ("use_glu", json!(false)),
        ("decoder_start_token_id", json!(1 << 20)),
    ] {
        let folder = copy("mini_forward_flax");
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(&path, config.to_string()).unwrap();
        let error = refusal(open(folder.path()));
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains(key), "{error}");
    }
}

#[test]
fn one_of_mini_and_mega_in_one_folder_must_be_chosen() {
    let error = refusal(open(case("mini_forward_beside_mega").path()));
    assert!(error.to_string().contains("LoadOptions::file = mega"), "{error}");
    let width = |file: &str| {
        let options = LoadOptions { file: Some(file.into()), ..LoadOptions::default() };
        let model = open_with(case("mini_forward_beside_mega").path(), &options).unwrap();
        let ids = Tensor::new(&[[0i64, 7, 2]], &Device::Cpu).unwrap();
        model.forward(&tensors("input_ids", ids)).unwrap()["encoder_last_hidden_state"].dims()[2]
    };
    assert_eq!((width("mini"), width("mega"), width("encoder_mini.pt")), (64, 24, 64));
}

#[test]
fn prompts_that_are_too_long_are_truncated_with_a_note() {
    let folder = mini_with_vocabulary();
    let model = open(folder.path()).unwrap();
    let options = GenerationConfig { temperature: 0.0, ..model.defaults() };
    let items = generated(model.as_ref(), &["cat cat cat cat cat cat cat cat cat cat"], &options);
    let Item::Note(note) = &items[0].1 else { panic!("the note comes first") };
    assert_eq!(note, "the prompt was truncated to 9 tokens: 3 were left out");
    // The EOS token is truncated too.
    let cut = generated(model.as_ref(), &["cat cat cat cat cat cat cat cat"], &options);
    assert_eq!(pictures(&items), pictures(&cut));
    let endless = "a".repeat(20_000);
    let error =
        refusal(model.generate(&endless.as_str().into(), &options, &mut |_| ControlFlow::Continue(())));
    assert_eq!(error.kind(), ErrorKind::Input);
    for prompt in [
        Prompt::Items(vec![Item::Image(Image { width: 1, height: 1, rgb: vec![0; 3] })]),
        Prompt::Chat(Vec::new()),
    ] {
        let error = refusal(model.generate(&prompt, &options, &mut |_| ControlFlow::Continue(())));
        assert_eq!(error.kind(), ErrorKind::Input);
    }
}

#[test]
fn samples_of_one_prompt_differ_and_are_reproducible_alone() {
    let folder = mini_with_vocabulary();
    let model = open(folder.path()).unwrap();
    let options = GenerationConfig { seed: 5, ..model.defaults() };
    assert_eq!((options.guidance, options.top_k, options.temperature), (16.0, 256, 1.0));
    let together = pictures(&generated(model.as_ref(), &["a cat"; 3], &options));
    assert_eq!(together.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1, 2]);
    assert_ne!(together[0].1, together[1].1);
    for (index, picture) in &together {
        let stream = *index as u64;
        let alone = generated(model.as_ref(), &["a cat"], &GenerationConfig { stream, ..options.clone() });
        assert_eq!(pictures(&alone)[0].1, *picture);
    }
    // Different prompts in one batch.
    let greedy = GenerationConfig { temperature: 0.0, ..options };
    let both = pictures(&generated(model.as_ref(), &["a cat", "tat"], &greedy));
    for (index, prompt) in ["a cat", "tat"].iter().enumerate() {
        assert_eq!(both[index].1, pictures(&generated(model.as_ref(), &[prompt], &greedy))[0].1);
    }
}

#[test]
fn previews_grow_row_by_row_and_are_grey_below() {
    let folder = mini_with_vocabulary();
    let model = open(folder.path()).unwrap();
    let options = GenerationConfig { previews: true, seed: 3, ..model.defaults() };
    let made = pictures(&generated(model.as_ref(), &["a cat"], &options));
    assert_eq!(made.len(), 4);
    for (rows, (_, picture)) in (1..).zip(&made) {
        assert_eq!((picture.width, picture.height, picture.rgb.len()), (16, 16, 16 * 16 * 3));
        let known = rows * 4 * 16 * 3;
        assert!(rows == 4 || picture.rgb[known..].iter().all(|value| *value == 128));
        assert!(picture.rgb[..known].iter().any(|value| *value != 128));
    }
    let whole = pictures(&generated(
        model.as_ref(),
        &["a cat"],
        &GenerationConfig { previews: false, ..options.clone() },
    ));
    assert_eq!(whole, made[3..]);
    // A caller that breaks gets no more previews.
    let mut seen = 0;
    let each = &mut |_| {
        seen += 1;
        ControlFlow::Break(())
    };
    model.generate(&"a cat".into(), &options, each).unwrap();
    assert_eq!(seen, 1);
}

#[test]
fn the_setting_bos_changes_the_start_token() {
    let begins = |bos: Value| {
        let settings = json!({ "bos": bos }).as_object().unwrap().clone();
        open_with(case("mini_generate").path(), &LoadOptions { settings, ..LoadOptions::default() })
    };
    let ids = tensors("input_ids", Tensor::new(&[[0i64, 7, 9, 2]], &Device::Cpu).unwrap());
    let sequences = |model: Box<dyn Pipeline>| -> Vec<Vec<i64>> {
        let options = json!({"do_sample": false, "condition_scale": 3.0});
        model.call("generate", &ids, &options).unwrap()["sequences"].to_vec2().unwrap()
    };
    let usual = sequences(open(case("mini_generate").path()).unwrap());
    assert_eq!(sequences(begins(json!(47)).unwrap()), usual);
    assert_ne!(sequences(begins(json!(39)).unwrap()), usual);
    assert_eq!(refusal(begins(json!(48))).kind(), ErrorKind::Input);
    assert_eq!(refusal(begins(json!("first"))).kind(), ErrorKind::Input);
}
