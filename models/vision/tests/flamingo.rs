//! The pipelines of OpenFlamingo and IDEFICS, on the checkpoints of their parity cases.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use fauna_shared::checkpoint::{Metadata, StorageType, TensorInfo, write_safetensors};
use fauna_shared::generate::GenerationConfig;
use fauna_shared::item::{Image, Item, Prompt, Tensors};
use fauna_shared::model::{LoadOptions, Pipeline, SampleSizes};
use fauna_shared::parity::ModelFolder;
use fauna_shared::source::{Finder, HfHub, HubConfig};
use fauna_shared::zoo::Zoo;
use fauna_shared::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

/// The checkpoint of a case. A file that is made from a seed goes when this is dropped; an opened model keeps it.
fn case(name: &str) -> ModelFolder {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/flamingo");
    ModelFolder::open(&cases.join(name).join("model")).unwrap()
}

fn open(folder: &Path, settings: Value) -> Result<Box<dyn Pipeline>> {
    // No test may use the network.
    let config = HubConfig { offline: true, cache: folder.join("no-cache"), ..HubConfig::from_env() };
    let named = config.named.clone();
    let options = LoadOptions {
        settings: settings.as_object().cloned().unwrap_or_default(),
        finder: Arc::new(Finder::new(HfHub::new(config), named)),
        ..LoadOptions::default()
    };
    let families = fauna_text::FAMILIES.iter().chain(fauna_vision::FAMILIES).copied();
    Zoo::new(families).open(folder.to_str().unwrap(), &options)
}

fn opened(name: &str) -> Box<dyn Pipeline> {
    open(case(name).path(), Value::Null).unwrap()
}

fn refused(folder: &Path, settings: Value) -> Error {
    match open(folder, settings) {
        Ok(_) => panic!("{} opens", folder.display()),
        Err(error) => error,
    }
}

fn picture(level: u8) -> Item {
    let rgb = (0..20 * 14 * 3).map(|i: u32| level.wrapping_mul(3).wrapping_add((i * i / 7) as u8)).collect();
    Item::Image(Image { width: 20, height: 14, rgb })
}

fn answer(model: &dyn Pipeline, items: Vec<Item>) -> Result<String> {
    let mut answer = String::new();
    model.generate(&Prompt::Items(items), &GenerationConfig::greedy(8), &mut |item| {
        answer.push_str(item.text().unwrap());
        ControlFlow::Continue(())
    })?;
    Ok(answer)
}

/// Copies files of a case's model, by their names, into a folder.
fn copy(name: &str, files: &[&str], to: &Path) {
    let from = case(name);
    for file in files {
        let path = to.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::copy(from.path().join(file), path).unwrap();
    }
}

const TOWER: [&str; 2] =
    ["vision_encoder/open_clip_config.json", "vision_encoder/open_clip_model.safetensors"];
const LANGUAGE: [&str; 2] = ["lang_encoder/config.json", "lang_encoder/model.safetensors"];

#[test]
fn interleaved_images_and_texts_are_continued_and_every_image_has_an_effect() {
    for name in ["open_mpt_generate", "idefics_generate"] {
        let model = opened(name);
        let of = |levels: [u8; 3]| {
            let [a, b, c] = levels.map(picture);
            answer(model.as_ref(), vec![a, "two cats".into(), b, "red dogs".into(), c]).unwrap()
        };
        let first = of([1, 2, 3]);
        assert!(!first.is_empty(), "{name}");
        assert_eq!(of([1, 2, 3]), first, "{name}");
        assert!((4..20).any(|level| of([1, 2, level]) != first), "{name}: the last image has no effect");
        assert!((4..20).any(|level| of([level, 2, 3]) != first), "{name}: the first image has no effect");
    }
}

#[test]
fn a_batch_of_prompts_gives_the_completions_of_each_alone() {
    for name in ["open_mpt_generate", "idefics_generate"] {
        let model = opened(name);
        let prompts = [
            vec![picture(1), "two cats".into(), picture(2)],
            vec!["the sun".into()],
            vec![picture(2), picture(1), "a dog and the moon on a hill".into()],
        ];
        let mut together = vec![String::new(); prompts.len()];
        let all: Vec<Prompt> = prompts.iter().map(|items| Prompt::Items(items.clone())).collect();
        model
            .generate_batch(&all, &GenerationConfig::greedy(8), &mut |row, item| {
                together[row].push_str(item.text().unwrap());
                ControlFlow::Continue(())
            })
            .unwrap();
        for (prompt, together) in prompts.into_iter().zip(together) {
            assert_eq!(answer(model.as_ref(), prompt).unwrap(), together, "{name}");
        }
    }
}

#[test]
fn the_numbers_of_images_and_image_tokens_must_be_equal() {
    for name in ["open_mpt_generate", "idefics_generate"] {
        let model = opened(name);
        let error = |items| answer(model.as_ref(), items).unwrap_err();
        let more = error(vec![picture(1), picture(2), "<image>a cat".into()]);
        assert!(more.to_string().contains("2 images for 1 <image> tokens"), "{name}: {more}");
        let fewer = error(vec![picture(1), "<image>a cat<image>".into()]);
        assert!(fewer.to_string().contains("2 <image> tokens for 1 images"), "{name}: {fewer}");
        let none = error(vec!["<image>a cat".into()]);
        assert!(none.to_string().contains("1 <image> tokens for 0 images"), "{name}: {none}");
        assert_eq!(error(Vec::new()).kind(), ErrorKind::Input, "{name}");
        assert!(
            !answer(model.as_ref(), vec!["a cat".into()]).unwrap().is_empty(),
            "{name}: text alone is accepted"
        );
    }
}

fn integers(rows: &[&[i64]]) -> Tensor {
    Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
}

#[test]
fn a_forward_pass_with_fewer_images_than_image_tokens_is_an_error() {
    let pixels = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    let open = opened("open_mpt_every_1");
    let inputs = Tensors::from([
        ("lang_x".into(), integers(&[&[59, 5, 59, 7], &[4, 5, 6, 7]])),
        ("vision_x".into(), pixels(&[2, 1, 1, 3, 12, 12])),
    ]);
    let error = open.forward(&inputs).unwrap_err().to_string();
    assert!(error.contains("sequence 0") && error.contains("2 <image> tokens for 1 images"), "{error}");

    let idefics = opened("idefics_resampler");
    let mut inputs = Tensors::from([("input_ids".into(), integers(&[&[57, 58, 57, 7]]))]);
    let error = idefics.forward(&inputs).unwrap_err().to_string();
    assert!(error.contains("1 <image> tokens for 0 images"), "{error}");
    inputs.insert("pixel_values".into(), pixels(&[1, 1, 3, 12, 12]));
    inputs.insert("image_attention_mask".into(), integers(&[&[1, 1, 1, 1]]).reshape((1, 4, 1)).unwrap());
    assert!(idefics.forward(&inputs).is_ok());
    inputs.insert("image_attention_mask".into(), integers(&[&[1, 1, 1, 1]]).reshape((1, 2, 2)).unwrap());
    let error = idefics.forward(&inputs).unwrap_err().to_string();
    assert!(error.contains("image_attention_mask has the shape [1, 2, 2], expected [1, 4, 1]"), "{error}");
    inputs.insert("perceiver_embeddings".into(), pixels(&[1, 1, 5, 16]));
    let error = idefics.forward(&inputs).unwrap_err().to_string();
    assert!(error.contains("expected only one of pixel_values and perceiver_embeddings"), "{error}");
}

#[test]
fn an_image_of_another_size_and_a_video_are_errors() {
    let model = opened("open_mpt_every_1");
    let inputs = |shape: &[usize]| {
        let pixels = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        Tensors::from([("lang_x".into(), integers(&[&[59, 5]])), ("vision_x".into(), pixels)])
    };
    for (shape, said) in [
        (&[1, 1, 1, 3, 16, 16][..], "16 by 16"),
        (&[1, 1, 2, 3, 12, 12], "several frames"),
        (&[1, 1, 3, 12, 12], "expected (1, images, 1, 3, height, width)"),
    ] {
        let error = model.forward(&inputs(shape)).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_missing_language_model_is_named_with_the_command_to_download_it() {
    let folder = tempfile::tempdir().unwrap();
    copy("open_mpt_every_1", &["checkpoint.pt"], folder.path());
    let error = refused(folder.path(), Value::Null);
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("lang_encoder/"), "{error}");
    assert!(error.to_string().contains("LoadOptions::settings = lang_encoder="), "{error}");

    let known = folder.path().join("OpenFlamingo-9B-vitl-mpt7b");
    copy("open_mpt_every_1", &["checkpoint.pt"], &known);
    let error = refused(&known, Value::Null).to_string();
    assert!(
        error.contains("anas-awadalla/mpt-7b")
            && error.contains("download it: Finder::find = anas-awadalla/mpt-7b"),
        "{error}"
    );

    copy("open_mpt_every_1", &LANGUAGE, &known);
    let error = refused(&known, Value::Null).to_string();
    assert!(error.contains("openai/clip-vit-large-patch14") && error.contains("vision_encoder/"), "{error}");
}

#[test]
fn a_truncated_checkpoint_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for file in [TOWER, LANGUAGE] {
        copy("open_mpt_every_1", &file, folder.path());
    }
    let whole = std::fs::read(case("open_mpt_every_1").path().join("checkpoint.pt")).unwrap();
    for length in [0, 10, whole.len() / 2, whole.len() - 1] {
        std::fs::write(folder.path().join("checkpoint.pt"), &whole[..length]).unwrap();
        let error = refused(folder.path(), Value::Null);
        assert!(error.place().is_some_and(|place| place.ends_with("checkpoint.pt")), "{length}: {error}");
    }
}

#[test]
fn other_language_models_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for (blocks, name) in [("model.decoder.layers", "OPT"), ("transformer.h", "GPT-J")] {
        let planned = ["attn_gate", "ff_gate"].map(|gate| TensorInfo {
            name: format!("lang_encoder.{blocks}.0.gated_cross_attn_layer.{gate}"),
            storage: StorageType::F32,
            shape: vec![1],
        });
        let path = folder.path().join("checkpoint.pt");
        write_safetensors(&path, &Metadata::new(), &planned, |_| Ok(1f32.to_le_bytes().to_vec())).unwrap();
        let error = refused(folder.path(), Value::Null);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error.to_string().contains(&format!("OpenFlamingo with {name} is not implemented")),
            "{error}"
        );
    }
}

#[test]
fn settings_give_the_location_of_the_parts() {
    let (folder, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy("open_mpt_every_1", &["checkpoint.pt"], folder.path());
    copy("open_mpt_every_1", &LANGUAGE, parts.path());
    copy("open_mpt_every_1", &TOWER, parts.path());
    let settings = json!({
        "lang_encoder": parts.path().join("lang_encoder"), "vision_encoder": parts.path().join("vision_encoder")
    });
    assert!(open(folder.path(), settings).is_ok());
}

#[test]
fn settings_that_contradict_the_file_are_errors() {
    let trained = case("open_mpt_every_1");
    let error = refused(trained.path(), json!({"cross_attn_every_n_layers": 2})).to_string();
    assert!(error.contains("cross_attn_every_n_layers is 2, but the file was trained with 1"), "{error}");
    assert!(error.contains("layers 0, 1, 2, 3"), "{error}");
    let error = refused(trained.path(), json!({"tokenizer_length": 64})).to_string();
    assert!(error.contains("tokenizer_length is 64, but the file has 61 token embeddings"), "{error}");
    let frozen = case("open_mpt_frozen_table");
    let error = refused(frozen.path(), json!({"tokenizer_length": 80})).to_string();
    assert!(error.contains("neither file has more than 70 token embeddings"), "{error}");
}

#[test]
fn another_language_model_than_that_of_the_training_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    copy("open_mpt_every_1", &["checkpoint.pt"], folder.path());
    copy("open_mpt_every_1", &TOWER, folder.path());
    copy("open_neox_generate", &LANGUAGE, folder.path());
    let error = refused(folder.path(), Value::Null).to_string();
    assert!(error.contains("trained with a language model of type mpt, found gpt_neox"), "{error}");

    copy("open_mpt_every_1", &LANGUAGE, folder.path());
    let path = folder.path().join("lang_encoder/config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value, said) in [
        ("n_layers", 6, "its last gated layer precedes layer 3, but the language model has 6"),
        ("d_model", 48, "trained with a language model of hidden size 24, found 48"),
    ] {
        config.insert(key.into(), value.into());
        std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
        let error = refused(folder.path(), Value::Null).to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn sample_inputs_are_accepted() {
    for name in ["open_mpt_generate", "idefics_generate"] {
        let model = opened(name);
        for images in [0, 2] {
            let inputs = model.sample("generate", &SampleSizes { rows: 2, tokens: 7, images }).unwrap();
            let out =
                model.call("generate", &inputs, &json!({"max_new_tokens": 3, "eos_token_id": []})).unwrap();
            assert_eq!(out["sequences"].dims(), [2, 10], "{name}");
        }
        assert!(model.sample("forward", &SampleSizes { rows: 1, tokens: 2, images: 2 }).is_err(), "{name}");
    }
}
