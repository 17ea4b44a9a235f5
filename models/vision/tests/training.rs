//! Training: how examples become batches, and that their losses are finite.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

use std::path::Path;

use candle_core::{D, DType, Device, Tensor};
use fauna_shared::grad::Gradients;
use fauna_shared::item::{Image, Item, Prompt, Role, Tensors, Turn};
use fauna_shared::model::{Collation, Pipeline, TrainingBatch};
use fauna_shared::parity::ModelFolder;
use fauna_shared::text::Tokenizer;
use fauna_shared::train::{Example, Learner, Target, Trained};
use fauna_shared::weights::Select;
use fauna_shared::zoo::{LoadOptions, Zoo};
use fauna_shared::{Error, ErrorKind, Result};
use serde_json::{Value, json};

fn zoo() -> Zoo {
    Zoo::new(fauna_text::FAMILIES.iter().chain(fauna_vision::FAMILIES).copied())
}

/// The checkpoint of a case.
fn case(name: &str) -> ModelFolder {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity");
    ModelFolder::open(&cases.join(name).join("model")).unwrap()
}

fn open(folder: &Path) -> Box<dyn Pipeline> {
    zoo().open(folder.to_str().unwrap(), &LoadOptions::default()).unwrap()
}

fn masked() -> Collation {
    let mut options = Collation::default();
    options.mask_prompt = true;
    options
}

fn collated(folder: &Path, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
    open(folder).trainable()?.collate(examples, options)
}

fn refusal(result: Result<impl Sized>) -> Error {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(error) => error,
    }
}

/// The loss of a batch, and how many of the trained tensors have a gradient that is not zero.
fn learned(folder: &Path, inputs: &Tensors) -> (f32, usize) {
    let mut learner = Learner::open(
        &zoo(),
        folder.to_str().unwrap(),
        &LoadOptions::default(),
        Trained::weights(Select::All),
    )
    .unwrap();
    let loss = learner.loss(inputs, &json!({})).unwrap();
    let mut gradients: Gradients = learner.gradients();
    gradients.backward(&loss.value).unwrap();
    let moves = |gradient: Option<Tensor>| {
        let sum: f32 = gradient.map_or(0.0, |g| g.sqr().unwrap().sum_all().unwrap().to_scalar().unwrap());
        assert!(sum.is_finite());
        sum > 0.0
    };
    let variables = learner.variables().all();
    let count = variables.values().filter(|variable| moves(gradients.get(variable).unwrap())).count();
    (loss.value.to_scalar().unwrap(), count)
}

fn image(colour: u8, width: usize, height: usize) -> Image {
    let rgb = (0..width * height).flat_map(|i| [colour, (i % 251) as u8, 255 - colour]).collect();
    Image { width, height, rgb }
}

fn completion(items: Vec<Item>, completion: &str) -> Example {
    Example::Completion { prompt: Prompt::Items(items), completion: completion.into() }
}

fn rows(batch: &TrainingBatch, name: &str) -> Vec<Vec<i64>> {
    batch.inputs[name].to_dtype(DType::I64).unwrap().to_vec2().unwrap()
}

/// The text of the labels of a row.
fn said(folder: &Path, labels: &[i64]) -> String {
    let kept: Vec<u32> = labels.iter().filter(|label| **label != -100).map(|label| *label as u32).collect();
    Tokenizer::from_folder(folder).unwrap().decode(&kept, false).unwrap()
}

#[test]
fn pairs_and_classes_become_the_inputs_of_both_towers() {
    for family in ["clip", "siglip"] {
        let folder = case(&format!("{family}/end_to_end"));
        let pair = Example::Pair {
            anchor: Item::Image(image(200, 40, 33)),
            positive: "A Photo of two CATS!".into(),
            negative: None,
        };
        let class = Example::labelled(Item::Image(image(30, 31, 64)), Target::Class("dog".into()));
        let batch = collated(folder.path(), &[pair, class], &Collation::default()).unwrap();
        let model = open(folder.path());
        let texts = json!({"texts": ["A Photo of two CATS!", "a photo of a dog"]});
        let called = model.call("forward", &Tensors::new(), &texts).unwrap();
        let wanted: Vec<Vec<i64>> = called["input_ids"].to_vec2().unwrap();
        for (row, wanted) in rows(&batch, "input_ids").iter().zip(wanted) {
            assert_eq!(row[..], wanted[..row.len()], "{family}");
        }
        assert_eq!(batch.inputs["pixel_values"].dims(), [2, 3, 29, 29]);
        let (loss, tensors) = learned(folder.path(), &batch.inputs);
        assert!(loss.is_finite() && loss > 0.0 && tensors > 40, "{family}: {loss}, {tensors}");
        let mut short = Collation::default();
        short.max_length = Some(4);
        let cut = |options| collated(folder.path(), &[class_of("dog")], options).unwrap();
        let (whole, cut) = (cut(&Collation::default()), cut(&short));
        assert!(cut.truncated > whole.truncated, "{family}: {} and {}", cut.truncated, whole.truncated);
        let error = refusal(collated(folder.path(), &[Example::Text("a".into())], &Collation::default()));
        assert!(error.to_string().contains("kind \"text\"") && error.to_string().contains("pair"), "{error}");
    }
}

fn class_of(name: &str) -> Example {
    Example::labelled(Item::Image(image(30, 31, 64)), Target::Class(name.into()))
}

#[test]
fn one_tower_has_no_loss() {
    let folder = case("clip/text_alone");
    let mut model = open(folder.path());
    let ids = Tensor::ones((2, 5), DType::I64, &Device::Cpu).unwrap();
    let inputs = Tensors::from([("input_ids".to_string(), ids)]);
    let error = refusal(model.trainable().unwrap().loss(&inputs, &Value::Null));
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

/// A copy of a small Gemma 3 with the role of the answers in its template, as in the releases.
fn gemma() -> tempfile::TempDir {
    let (from, folder) = (case("medgemma/generate_whole_way"), tempfile::tempdir().unwrap());
    let mut changed = 0;
    for entry in std::fs::read_dir(from.path()).unwrap() {
        let path = entry.unwrap().path();
        let to = folder.path().join(path.file_name().unwrap());
        match std::fs::read_to_string(&path) {
            Ok(text) if text.contains("message.role") => {
                let role = "('model' if message.role == 'assistant' else message.role)";
                std::fs::write(to, text.replace("message.role", role)).unwrap();
                changed += 1;
            }
            _ => std::fs::copy(&path, to).map(|_| ()).unwrap(),
        }
    }
    assert_eq!(changed, 1);
    folder
}

#[test]
fn the_answer_to_an_image_is_learned_and_the_question_is_not() {
    let folder = gemma();
    let asked = || vec![Item::Image(image(200, 30, 24)), "describe this picture .".into()];
    let examples =
        [completion(asked(), "the heart is normal"), completion(vec!["a dark spot".into()], "clear")];
    let batch = collated(folder.path(), &examples, &masked()).unwrap();
    let labels = rows(&batch, "labels");
    let words = |row: &[i64]| said(folder.path(), row).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words(&labels[0]).starts_with("the heart is normal"), "{}", words(&labels[0]));
    assert!(words(&labels[1]).starts_with("clear"), "{}", words(&labels[1]));
    let (ids, types) = (rows(&batch, "input_ids"), rows(&batch, "token_type_ids"));
    let images = |row: usize| ids[row].iter().filter(|id| **id == 60).count();
    assert_eq!((images(0), images(1)), (4, 0), "one image of four tokens");
    assert!(ids[0].iter().zip(&types[0]).all(|(id, kind)| (*id == 60) == (*kind == 1)));
    assert_eq!(batch.inputs["pixel_values"].dims()[..2], [1, 3]);
    let (loss, tensors) = learned(folder.path(), &batch.inputs);
    assert!(loss.is_finite() && tensors > 40, "{loss}, {tensors}");

    let all = collated(folder.path(), &examples, &Collation::default()).unwrap();
    let unlearned = |row: &[i64]| row.iter().filter(|label| **label == -100).count();
    assert_eq!(unlearned(&rows(&all, "labels")[0]), 4, "only the tokens of the image have no label");

    let mut short = masked();
    short.max_length = Some(6);
    let error = refusal(collated(folder.path(), &examples[..1], &short));
    assert!(error.to_string().contains("would lose an image"), "{error}");
}

#[test]
fn every_turn_of_the_assistant_is_learned() {
    let folder = gemma();
    let turn = |role, items| Turn { role, items };
    let chat = Example::Chat {
        turns: vec![
            turn(Role::User, vec![Item::Image(image(9, 30, 24)), "describe this picture .".into()]),
            turn(Role::Assistant, vec!["a small shadow".into()]),
            turn(Role::User, vec!["the left rib".into()]),
            turn(Role::Assistant, vec!["normal".into()]),
        ],
        tools: Vec::new(),
    };
    let batch = collated(folder.path(), &[chat], &masked()).unwrap();
    let words = said(folder.path(), &rows(&batch, "labels")[0]);
    for learned in ["small", "shadow", "normal"] {
        assert!(words.contains(learned), "{words}");
    }
    for asked in ["describe", "rib"] {
        assert!(!words.contains(asked), "{words}");
    }
}

#[test]
fn interleaved_images_have_no_labels_and_what_stands_before_the_first_neither() {
    for (name, ids, pixels) in
        [("open_mpt_generate", "lang_x", "vision_x"), ("idefics_generate", "input_ids", "pixel_values")]
    {
        let folder = case(&format!("flamingo/{name}"));
        let two = completion(
            vec![Item::Image(image(1, 20, 14)), "two cats".into(), Item::Image(image(2, 20, 14))],
            "red dogs",
        );
        let caption = Example::Pair {
            anchor: Item::Image(image(3, 20, 14)),
            positive: "three birds".into(),
            negative: None,
        };
        let batch = collated(folder.path(), &[two.clone(), caption], &masked()).unwrap();
        let place = match name {
            "open_mpt_generate" => folder.path().join("lang_encoder"),
            _ => folder.path().to_path_buf(),
        };
        let (ids, labels) = (rows(&batch, ids), rows(&batch, "labels"));
        let words: Vec<String> = labels.iter().map(|row| said(&place, row)).collect();
        assert!(words[0].contains("dogs") && !words[0].contains("cats"), "{name}: {words:?}");
        assert!(words[1].contains("birds"), "{name}: {words:?}");
        let whole = collated(folder.path(), &[two], &Collation::default()).unwrap();
        let first = said(&place, &rows(&whole, "labels")[0]);
        assert!(first.contains("cats") && first.contains("dogs"), "{name}: {first}");
        assert_eq!(ids[0].len(), labels[0].len());
        let dims = batch.inputs[pixels].dims().to_vec();
        assert_eq!(dims[..2], [2, 2], "{name}: two rows, at most two images");
        let second = batch.inputs[pixels].narrow(0, 1, 1).unwrap().narrow(1, 1, 1).unwrap();
        assert_eq!(second.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0, "{name}");
        let (loss, tensors) = learned(folder.path(), &batch.inputs);
        assert!(loss.is_finite() && tensors > 40, "{name}: {loss}, {tensors}");
    }
}

#[test]
fn images_are_learned_by_the_discrete_vae_with_noise_of_the_seed() {
    let folder = case("dalle/dvae_encode");
    let examples = [Example::Image(image(90, 300, 260))];
    let batch = |seed: u64| {
        let mut options = Collation::default();
        options.seed = seed;
        collated(folder.path(), &examples, &options).unwrap().inputs
    };
    let (first, again, other) = (batch(1), batch(1), batch(2));
    let noise = |inputs: &Tensors| inputs["gumbel_noise"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(noise(&first), noise(&again));
    assert_ne!(noise(&first), noise(&other));
    assert_eq!(first["pixel_values"].dims(), [1, 3, 256, 256]);
    // The standard Gumbel distribution has the mean 0.5772 and the variance 1.645.
    let (count, values) = (noise(&first).len() as f64, noise(&first));
    let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
    let variance = values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count;
    assert!((mean - 0.5772).abs() < 0.03 && (variance - 1.645).abs() < 0.1, "{mean}, {variance}");
}

#[test]
fn a_vqgan_with_initial_weights_learns_from_images_in_every_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "vqgan", "architectures": ["VQModel"], "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1,
        "attn_resolutions": [8], "resolution": 16, "z_channels": 12, "n_embed": 5, "embed_dim": 8
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let options = LoadOptions::default().with_initial_weights(3);
    let source = folder.path().to_str().unwrap();
    let mut learner = Learner::open(&zoo(), source, &options, Trained::weights(Select::All)).unwrap();
    let mut pipeline = zoo().open(source, &options).unwrap();
    let images = [Example::Image(image(90, 30, 26)), Example::Image(image(200, 16, 40))];
    let batch = pipeline.trainable().unwrap().collate(&images, &Collation::default()).unwrap();
    assert_eq!(batch.inputs["pixel_values"].dims(), [2, 16, 16, 3]);
    let loss = learner.loss(&batch.inputs, &json!({"entropy": 0.1})).unwrap();
    let sum: f32 = ["loss_reconstruction", "loss_codebook", "loss_commitment", "loss_entropy"]
        .iter()
        .zip([1.0, 1.0, 0.25, 0.1])
        .map(|(part, weight)| loss.parts[*part].to_scalar::<f32>().unwrap() * weight)
        .sum();
    assert!((loss.value.to_scalar::<f32>().unwrap() - sum).abs() < 1e-5);
    let mut gradients: Gradients = learner.gradients();
    gradients.backward(&loss.value).unwrap();
    for (name, variable) in learner.variables().all() {
        let gradient = gradients.get(&variable).unwrap();
        let size = gradient.map_or(0.0, |g| g.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        // A norm takes away what a bias before it adds to a whole group, and softmax what one adds to all keys.
        assert!(size > 0.0 || name.ends_with("bias"), "{name} has no gradient");
    }
    for (wrong, said) in [(json!({"perceptual": 1}), "no option"), (json!({"reconstruction": "l3"}), "l3")] {
        let error = learner.loss(&batch.inputs, &wrong).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn captions_and_codes_are_learned_by_dalle_mini_and_images_need_their_codes() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(case("dalle/mini_generate").path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let tokens = ["<s>", "<pad>", "</s>", "<unk>", "Ġ", "a", "c", "t", "at", "Ġc", "Ġcat"];
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().zip(0..).map(|(token, id)| (token.to_string(), json!(id))).collect();
    std::fs::write(folder.path().join("vocab.json"), Value::Object(vocab).to_string()).unwrap();
    std::fs::write(folder.path().join("merges.txt"), "#version: 0.2\na t\nĠ c\nĠc at\n").unwrap();

    let config: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("config.json")).unwrap()).unwrap();
    let (length, start) = (config["image_length"].as_u64().unwrap() as i64, &config["image_vocab_size"]);
    let codes: Vec<i64> = (0..length).map(|i| i % 5).collect();
    let tensor = Tensor::from_vec(codes.clone(), codes.len(), &Device::Cpu).unwrap();
    let pair = |anchor: Item| Example::Pair { anchor, positive: "cat".into(), negative: None };
    let of_codes = pair(Item::Codes(Tensors::from([("codes".to_string(), tensor)])));
    let batch = collated(folder.path(), &[of_codes], &Collation::default()).unwrap();
    assert_eq!(rows(&batch, "input_ids")[0][..4], [0, 10, 2, 1], "<s> Ġcat </s> <pad>");
    assert_eq!(rows(&batch, "attention_mask")[0][..4], [1, 1, 1, 0]);
    assert_eq!(rows(&batch, "labels")[0], codes);
    let shifted = rows(&batch, "decoder_input_ids").remove(0);
    assert_eq!((shifted[0], &shifted[1..]), (start.as_i64().unwrap(), &codes[..codes.len() - 1]));
    let (loss, tensors) = learned(folder.path(), &batch.inputs);
    assert!(loss.is_finite() && tensors > 20, "{loss}, {tensors}");
    let error =
        refusal(collated(folder.path(), &[pair(Item::Image(image(1, 300, 300)))], &Collation::default()));
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("codes of the image"), "{error}");
    assert_eq!(batch.inputs["labels"].dim(D::Minus1).unwrap(), codes.len());
}
