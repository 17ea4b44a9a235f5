//! The pipelines of Jukebox and LLark, on the checkpoints of their parity cases.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use fauna_shared::checkpoint::{Checkpoint, Metadata, TensorInfo, write_safetensors};
use fauna_shared::generate::GenerationConfig;
use fauna_shared::item::{Item, Prompt, Sound, Tensors};
use fauna_shared::model::{Collation, LoadOptions, Pipeline};
use fauna_shared::text::Tokenizer;
use fauna_shared::train::Example;
use fauna_shared::zoo::Zoo;
use fauna_shared::{ErrorKind, Result};
use serde_json::{Map, Value, json};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/llark").join(name)
}

fn options_of(case: &Path) -> Map<String, Value> {
    let text = std::fs::read_to_string(case.join("case.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["options"].as_object().unwrap().clone()
}

fn tensors(case: &Path, file: &str) -> Tensors {
    let file = Checkpoint::open(&case.join(file)).unwrap();
    let dtype =
        |storage| if storage == fauna_shared::checkpoint::StorageType::I64 { DType::I64 } else { DType::F32 };
    file.iter()
        .map(|(name, stored)| {
            let tensor =
                Tensor::from_raw_buffer(&stored.bytes, dtype(stored.storage), &stored.shape, &Device::Cpu);
            (name.to_string(), tensor.unwrap())
        })
        .collect()
}

fn open_folder(
    folder: &Path,
    settings: Map<String, Value>,
    family: Option<&str>,
) -> Result<Box<dyn Pipeline>> {
    let options = LoadOptions { settings, family: family.map(str::to_string), ..LoadOptions::default() };
    Zoo::new(fauna_audio::FAMILIES.iter().copied()).open(folder.to_str().unwrap(), &options)
}

fn opened(name: &str) -> Box<dyn Pipeline> {
    open_folder(&case(name).join("model"), options_of(&case(name)), None).unwrap()
}

fn made(pipeline: &dyn Pipeline, prompt: Vec<Item>) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    pipeline.generate(&Prompt::Items(prompt), &GenerationConfig::greedy(8), &mut |item| {
        items.push(item);
        ControlFlow::Continue(())
    })?;
    Ok(items)
}

fn tone(samples: usize) -> Sound {
    Sound { rate: 48, channels: vec![(0..samples).map(|t| (t as f32 * 0.7).sin() * 0.5).collect()] }
}

fn far(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn a_sound_is_encoded_and_decoded() {
    let codec = opened("hear_short");
    let items = made(codec.as_ref(), vec![Item::Sound(tone(50))]).unwrap();
    let [Item::Codes(codes)] = &items[..] else { panic!("{items:?}") };
    // 50 samples are padded to 64, the next multiple of the coarsest hop, 16.
    let lengths = codes.iter().map(|(name, codes)| (name.as_str(), codes.dims().to_vec()));
    let wanted = [("music_tokens_0", 16), ("music_tokens_1", 8), ("music_tokens_2", 4)];
    assert_eq!(lengths.collect::<Vec<_>>(), wanted.map(|(name, length)| (name, vec![1, length])));

    let finest = made(codec.as_ref(), vec![Item::Codes(codes.clone())]).unwrap();
    let [Item::Sound(finest)] = &finest[..] else { panic!("{finest:?}") };
    assert_eq!((finest.rate, finest.channels.len(), finest.channels[0].len()), (48, 1, 64));
    let coarse: Tensors = codes.clone().into_iter().filter(|(name, _)| name == "music_tokens_2").collect();
    let coarse = made(codec.as_ref(), vec![Item::Codes(coarse)]).unwrap();
    let [Item::Sound(coarse)] = &coarse[..] else { panic!("{coarse:?}") };
    assert_eq!(coarse.channels[0].len(), 64);
    assert_ne!(coarse, finest, "the levels are independent codecs");
}

#[test]
fn an_embedding_is_the_mean_of_the_features() {
    let folder = case("hear_mean");
    let audio = tensors(&folder, "inputs.safetensors")["audio"].to_vec1::<f32>().unwrap();
    let sound = Item::Sound(Sound { rate: 48, channels: vec![audio] });
    let embedded = opened("hear_mean").embed(&[sound.clone(), sound]).unwrap();
    let expected = &tensors(&folder, "expected.safetensors")["audio_encodings"];
    for row in 0..2 {
        assert!(far(&embedded.rows.get(row).unwrap(), expected) < 1e-4);
    }
    // Its window has 768 samples.
    let long = Item::Sound(tone(768 + 17));
    assert_eq!(opened("hear_short").embed(&[long]).unwrap().cut, [2]);
}

#[test]
fn invalid_audio_is_an_error() {
    let codec = opened("hear_short");
    let sound = |rate, channels| vec![Item::Sound(Sound { rate, channels })];
    for (bad, word) in [
        (sound(48, vec![vec![0.1, f32::NAN]]), "NaN"),
        (sound(48, vec![]), "without channels"),
        (sound(48, vec![vec![]]), "without samples"),
        (sound(0, vec![vec![0.5; 40]]), "rate of 0"),
        (sound(48, vec![vec![0.5; 40], vec![0.5; 39]]), "channel 1"),
    ] {
        for error in [made(codec.as_ref(), bad.clone()).unwrap_err(), codec.embed(&bad).unwrap_err()] {
            assert!(error.kind() == ErrorKind::Input && error.to_string().contains(word), "{error}");
        }
    }
    let one_sample = codec.embed(&sound(48, vec![vec![0.5]])).unwrap_err().to_string();
    assert!(one_sample.contains("1 samples") && one_sample.contains("at least 16"), "{one_sample}");
    // Eleven channels are mixed, a single sample is padded.
    assert!(made(codec.as_ref(), sound(48, vec![vec![0.5]; 11])).is_ok());
    let error = made(codec.as_ref(), vec!["words".into()]).unwrap_err().to_string();
    assert!(error.contains("one sound"), "{error}");
    let error = made(codec.as_ref(), vec![Item::Codes(Tensors::new())]).unwrap_err().to_string();
    assert!(error.contains("music_tokens_0"), "{error}");
}

#[test]
fn a_missing_prior_is_an_error_that_names_the_file() {
    let codec = opened("jukebox_decode_openai");
    let error = codec.embed(&[Item::Sound(tone(100))]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("prior_level_2.pth.tar"), "{error}");
    let error = codec.forward(&Tensors::new()).unwrap_err().to_string();
    assert!(error.contains("prior"), "{error}");
}

#[test]
fn layers_that_are_not_loaded_are_an_error() {
    let options = options_of(&case("hear_short"));
    let pipeline = open_folder(&case("hear_short").join("model"), options, None).unwrap();
    assert!(pipeline.card().notes.contains(&"4 layers of the prior are loaded".to_string()));
    let codes = Tensor::zeros((1, 48), DType::I64, &Device::Cpu).unwrap();
    let inputs = Tensors::from([("music_tokens".to_string(), codes)]);
    assert!(pipeline.call("forward", &inputs, &json!({"layer": 3})).is_ok());
    let error = pipeline.call("forward", &inputs, &json!({"layer": 5})).unwrap_err().to_string();
    assert!(error.contains("layer 5") && error.contains("prior_depth"), "{error}");
}

/// The inputs of the case `read`: four text tokens, a start, six patches, an end and five text tokens.
fn reading() -> (Box<dyn Pipeline>, Tensors, Value) {
    let folder = case("read");
    (opened("read"), tensors(&folder, "inputs.safetensors"), Value::Object(options_of(&folder)))
}

#[test]
fn a_clip_must_match_the_audio_tokens() {
    let (pipeline, inputs, options) = reading();
    let row: Vec<i64> = inputs["input_ids"].flatten_all().unwrap().to_vec1().unwrap();
    let (end, patch) = (53, 51);
    let message = |row: Vec<i64>, clips: &Tensor| {
        let time = row.len();
        let inputs = Tensors::from([
            ("input_ids".to_string(), Tensor::from_vec(row, (1, time), &Device::Cpu).unwrap()),
            ("audio_encodings".to_string(), clips.clone()),
        ]);
        pipeline.call("forward", &inputs, &options).unwrap_err().to_string()
    };
    let clip = &inputs["audio_encodings"];
    let short = message(row.iter().copied().filter(|id| *id != patch).collect(), clip);
    assert!(
        short.contains("0 tokens between <audio_start> and <audio_end>, its clip has 6 frames"),
        "{short}"
    );
    let open = message(row.iter().copied().filter(|id| *id != end).collect(), clip);
    assert!(open.contains("1 <audio_start> and 0 <audio_end> tokens"), "{open}");
    let twice = message([&row[..], &row[..]].concat(), clip);
    assert!(twice.contains("2 <audio_start> tokens"), "{twice}");
    let no_place = message(vec![3, 4, 5], &Tensor::stack(&[clip, clip], 0).unwrap());
    assert!(no_place.contains("2 of 2 clips have no <audio_start>"), "{no_place}");
    let narrow = message(row.clone(), &clip.narrow(1, 0, 5).unwrap());
    assert!(narrow.contains("24"), "{narrow}");
    let without = Tensors::from([("input_ids".to_string(), inputs["input_ids"].clone())]);
    let without = pipeline.call("forward", &without, &options).unwrap_err().to_string();
    assert!(without.contains("only 0 clips"), "{without}");
}

#[test]
fn audio_without_jukebox_is_an_error_that_names_the_files() {
    let (pipeline, ..) = reading();
    let audio = Tensor::zeros(40, DType::F32, &Device::Cpu).unwrap();
    let error =
        pipeline.call("encode", &Tensors::from([("audio".to_string(), audio)]), &Value::Null).unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("vqvae.pth.tar"), "{error}");
}

/// Writes the tensors of `from` for which `keep` is true to `path`.
fn write(path: &Path, from: &Checkpoint, keep: impl Fn(&str) -> bool) {
    let kept: Vec<_> = from.iter().filter(|(name, _)| keep(name)).collect();
    let plan = kept.iter().map(|(name, stored)| TensorInfo {
        name: name.to_string(),
        storage: stored.storage,
        shape: stored.shape.clone(),
    });
    write_safetensors(path, &Metadata::new(), &plan.collect::<Vec<_>>(), |planned| {
        Ok(from.get(&planned.name).unwrap().bytes.to_vec())
    })
    .unwrap();
}

#[test]
fn a_self_trained_projector_works_with_an_unchanged_language_model() {
    let released = case("read").join("model");
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path();
    let weights = Checkpoint::open_folder(&released).unwrap();
    let mut config: Value =
        serde_json::from_str(&std::fs::read_to_string(released.join("config.json")).unwrap()).unwrap();
    config["model_type"] = json!("llama");
    config["architectures"] = json!(["LlamaForCausalLM"]);
    std::fs::write(base.join("config.json"), config.to_string()).unwrap();
    let is_projector = |name: &str| name.contains("mm_projector");
    write(&base.join("model.safetensors"), &weights, |name| !is_projector(name));

    let bare = open_folder(base, options_of(&case("read")), Some("llark")).map(|_| ()).unwrap_err();
    assert!(bare.to_string().contains("mm_projector/checkpoint-N.bin"), "{bare}");

    std::fs::create_dir(base.join("mm_projector")).unwrap();
    let trained = |name: &str| is_projector(name) || name.ends_with("embed_tokens.weight");
    write(&base.join("mm_projector/checkpoint-900.bin"), &weights, trained);
    // An older checkpoint, which is not used.
    std::fs::write(base.join("mm_projector/checkpoint-80.bin"), "damaged").unwrap();
    let mut settings = options_of(&case("read"));
    settings.insert("mm_hidden_size".into(), json!(24));
    let pipeline = open_folder(base, settings.clone(), Some("llark")).unwrap();
    let out = pipeline
        .call("forward", &tensors(&case("read"), "inputs.safetensors"), &Value::Object(settings))
        .unwrap();
    let expected = &tensors(&case("read"), "expected.safetensors")["logits"];
    assert!(far(&out["logits"], expected) < 1e-3);
}

/// The case `pipeline` with a word-level tokenizer of 50 tokens.
fn with_tokenizer() -> (tempfile::TempDir, Map<String, Value>) {
    let (from, folder) = (case("pipeline").join("model"), tempfile::tempdir().unwrap());
    std::fs::create_dir(folder.path().join("jukebox")).unwrap();
    for part in [from.clone(), from.join("jukebox")] {
        for entry in std::fs::read_dir(&part).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, folder.path().join(path.strip_prefix(&from).unwrap())).unwrap();
            }
        }
    }
    let mut vocabulary: Map<String, Value> = Map::new();
    for (id, word) in
        ["<unk>", "<s>", "</s>", "###", "Human", "Assistant", ":", "tempo", "?", "What"].iter().enumerate()
    {
        vocabulary.insert(word.to_string(), json!(id));
    }
    for id in 10..50 {
        vocabulary.insert(format!("w{id}"), json!(id));
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(1, "<s>"), special(2, "</s>"), special(50, "[PAD]"), special(51, "<audio_patch>"),
            special(52, "<audio_start>"), special(53, "<audio_end>")],
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    });
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut settings = options_of(&case("pipeline"));
    for token in ["audio_start_token", "audio_end_token", "audio_patch_token"] {
        settings.remove(token);
    }
    (folder, settings)
}

#[test]
fn a_question_about_a_sound_is_answered() {
    let (folder, settings) = with_tokenizer();
    let pipeline = open_folder(folder.path(), settings.clone(), None).unwrap();
    let audio = &tensors(&case("pipeline"), "inputs.safetensors")["audio"];
    let sound = Sound { rate: 48, channels: vec![audio.to_vec1().unwrap()] };
    let question = || vec![Item::Sound(sound.clone()), "What tempo ?".into()];
    let said = |items: Vec<Item>| items.iter().map(|item| item.text().unwrap()).collect::<String>();
    let answer = said(made(pipeline.as_ref(), question()).unwrap());

    // The same by ids: the text before the sound, and after it.
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    let before = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, \
                  detailed, and polite answers to the human's questions.\n\n### Human: ";
    let ids = |text: &str| {
        let ids: Vec<i64> = tokenizer.encode(text, true).unwrap().into_iter().map(i64::from).collect();
        let count = ids.len();
        Tensor::from_vec(ids, count, &Device::Cpu).unwrap()
    };
    let inputs = Tensors::from([
        ("audio".to_string(), audio.clone()),
        ("prefix_ids".to_string(), ids(before)),
        ("suffix_ids".to_string(), ids("\nWhat tempo ?\n### Assistant:")),
    ]);
    let mut options = settings.clone();
    options.insert("max_new_tokens".into(), json!(8));
    let out = pipeline.call("generate", &inputs, &Value::Object(options)).unwrap();
    let time = out["input_ids"].dim(1).unwrap();
    let new = out["sequences"].narrow(1, time, 8).unwrap().to_dtype(DType::U32).unwrap();
    let expected = tokenizer.decode(&new.flatten_all().unwrap().to_vec1::<u32>().unwrap(), true).unwrap();
    assert!(!answer.trim().is_empty());
    assert_eq!(answer.trim(), expected.split("###").next().unwrap().trim());
    assert_ne!(
        answer,
        said(made(pipeline.as_ref(), vec!["What tempo ?".into()]).unwrap()),
        "the audio has no effect"
    );

    // The default of 10 Hz is more than the 3 Hz of the tiny prior.
    let mut usual = settings;
    usual.remove("pool_frames_per_second");
    let pipeline = open_folder(folder.path(), usual, None).unwrap();
    let error = made(pipeline.as_ref(), question()).unwrap_err().to_string();
    assert!(error.contains("10 frames per second"), "{error}");
}

#[test]
fn an_answer_about_a_sound_is_learned_and_its_question_is_not() {
    let (folder, settings) = with_tokenizer();
    let mut pipeline = open_folder(folder.path(), settings, None).unwrap();
    let audio = &tensors(&case("pipeline"), "inputs.safetensors")["audio"];
    let sound = Sound { rate: 48, channels: vec![audio.to_vec1().unwrap()] };
    let question = vec![Item::Sound(sound), "What tempo ?".into()];
    let example = Example::Completion { prompt: Prompt::Items(question), completion: "w10 w11".into() };
    let trainable = pipeline.trainable().unwrap();
    let batch = trainable.collate(&[example], &Collation::default()).unwrap();
    let labels: Vec<i64> = batch.inputs["labels"].flatten_all().unwrap().to_vec1().unwrap();
    let ids: Vec<i64> = batch.inputs["input_ids"].flatten_all().unwrap().to_vec1().unwrap();
    // The words of the answer, and the mark that ends a turn.
    assert_eq!(labels[labels.len() - 3..], [10, 11, 3]);
    assert!(labels[..labels.len() - 3].iter().all(|label| *label == -100));
    let frames = ids.iter().filter(|id| **id == 51).count();
    assert_eq!(batch.inputs["audio_encodings"].dims()[..2], [1, frames]);
    let loss: f32 = trainable.loss(&batch.inputs, &Value::Null).unwrap().value.to_scalar().unwrap();
    assert!(loss.is_finite() && loss > 0.0, "{loss}");
    let error = trainable.collate(&[Example::Text("x".into())], &Collation::default()).unwrap_err();
    assert!(error.to_string().contains("completion, chat"), "{error}");
}
