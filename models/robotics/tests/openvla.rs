//! Tests of the OpenVLA pipeline: the control loop, single actions, and errors for invalid input.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::GenerationConfig;
use fauna_shared::item::{Image, ImageOptions, Item, Prompt, Tensors};
use fauna_shared::model::{Observation, Pipeline, SampleSizes, Task};
use fauna_shared::zoo::{LoadOptions, Zoo};
use fauna_shared::{Error, ErrorKind, Result};
use fauna_tabletop::{SceneConfig, evaluate};
use serde_json::{Value, json};
use tempfile::TempDir;

const TASK: &str = "pick up the red block";

fn zoo() -> Zoo {
    Zoo::new(fauna_robotics::FAMILIES.iter().copied())
}

/// Returns a folder with a small config, modified by `change`, and a word-level tokenizer.
fn folder(change: impl FnOnce(&mut Value)) -> TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/configs/openvla");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(from.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    change(&mut config);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

fn open_with(folder: &Path, settings: Value) -> Result<Box<dyn Pipeline>> {
    let settings = settings.as_object().cloned().unwrap_or_default();
    let options = LoadOptions { random_weights: Some(3), settings, ..LoadOptions::default() };
    zoo().open(folder.to_str().unwrap(), &options)
}

fn open(folder: &TempDir) -> Box<dyn Pipeline> {
    open_with(folder.path(), Value::Null).unwrap()
}

/// Adds the statistics of a second dataset.
fn two_sets(config: &mut Value) {
    let set = config["norm_stats"]["sample"].clone();
    config["norm_stats"]["bridge_orig"] = set;
}

fn frame(index: usize) -> Image {
    let rgb = (0..40 * 30 * 3).map(|i| (i * (index + 3) * 7 % 256) as u8).collect();
    Image { width: 40, height: 30, rgb }
}

fn refusal(result: Result<impl Sized>) -> Error {
    match result {
        Ok(_) => panic!("it was taken"),
        Err(error) => error,
    }
}

fn ids(rows: &[&[i64]]) -> Tensor {
    Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
}

fn pixels(model: &dyn Pipeline, frame: &Image) -> Tensor {
    let bytes: Vec<i64> = frame.rgb.iter().map(|byte| i64::from(*byte)).collect();
    let image = Tensor::from_vec(bytes, (frame.height, frame.width, 3), &Device::Cpu).unwrap();
    let inputs = Tensors::from([("image".to_string(), image)]);
    model.call("encode", &inputs, &Value::Null).unwrap().remove("pixel_values").unwrap()
}

/// Tokens of "In: What action should the robot take to pick up the red block?\nOut:".
const PROMPT: &[i64] = &[1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 8, 19, 18, 12, 13, 4];

#[test]
fn the_control_loop_predicts_the_actions_of_predict_action() {
    let folder = folder(|_| {});
    let model = open(&folder);
    let mut controller = model.policy().unwrap().start(&Task::from("Pick up the RED block")).unwrap();
    // The third frame is identical to the second.
    for index in [0, 1, 1, 2, 0] {
        let inputs = Tensors::from([
            ("input_ids".to_string(), ids(&[PROMPT])),
            ("pixel_values".to_string(), pixels(model.as_ref(), &frame(index))),
        ]);
        let options = json!({"method": "predict_action", "unnorm_key": "sample"});
        let out = model.call("generate", &inputs, &options).unwrap();
        let wanted: Vec<f32> = out["actions"].to_vec1().unwrap();
        let action = controller.act(&Observation::from(&frame(index))).unwrap();
        assert_eq!(action.iter().map(|number| *number as f32).collect::<Vec<_>>(), wanted);
        assert_eq!(action.len(), 7);
        // Each token is the most likely one of a forward pass over all tokens before it.
        let rows: Vec<Vec<i64>> = out["sequences"].to_vec2().unwrap();
        let whole = Tensors::from([
            ("input_ids".to_string(), ids(&[&rows[0]])),
            ("pixel_values".to_string(), inputs["pixel_values"].clone()),
        ]);
        let logits = model.forward(&whole).unwrap().remove("logits").unwrap();
        let best: Vec<Vec<u32>> = logits.argmax(2).unwrap().to_vec2().unwrap();
        let first = best[0].len() - 8;
        let chosen: Vec<i64> = best[0][first..first + 7].iter().map(|id| i64::from(*id)).collect();
        assert_eq!(rows[0][PROMPT.len()..], chosen);
    }
}

#[test]
fn frames_are_decoded_without_alpha_and_exif_orientation() {
    assert_eq!(open(&folder(|_| {})).image_options(), ImageOptions::pillow());
}

#[test]
fn a_prompt_of_an_image_and_text_returns_one_action() {
    let folder = folder(two_sets);
    let model = open_with(folder.path(), json!({"unnorm_key": "bridge_orig", "center_crop": true})).unwrap();
    let prompt = Prompt::Items(vec![Item::Image(frame(1)), TASK.into()]);
    let mut made = Vec::new();
    let each = &mut |item| {
        made.push(item);
        ControlFlow::Continue(())
    };
    model.generate(&prompt, &model.defaults(), each).unwrap();
    let [Item::Action(action)] = &made[..] else { panic!("{made:?}") };
    let controller = model.policy().unwrap().start(&Task::from(TASK)).unwrap();
    let degrees = controller.degrees();
    assert_eq!((action.len(), degrees.len()), (7, 7));
    assert_eq!((&*degrees[0].name, degrees[0].unit, &*degrees[6].name), ("x", Some("m"), "gripper"));
    // The center crop changes the pixels.
    let whole = open_with(folder.path(), json!({"unnorm_key": "bridge_orig"})).unwrap();
    let (a, b) = (pixels(model.as_ref(), &frame(1)), pixels(whole.as_ref(), &frame(1)));
    let off = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(off > 0.01);

    let none = Prompt::from(TASK);
    let two = Prompt::Items(vec![Item::Image(frame(1)), Item::Image(frame(2)), TASK.into()]);
    let ignore = &mut |_| ControlFlow::Continue(());
    for prompt in [none, two] {
        let error = refusal(model.generate(&prompt, &model.defaults(), ignore));
        assert!(error.to_string().contains("images, expected one"), "{error}");
    }
    let warm = GenerationConfig { temperature: 0.5, ..model.defaults() };
    assert!(refusal(model.generate(&prompt, &warm, ignore)).message().contains("greedily"));
}

#[test]
fn unnorm_key_is_required_with_several_datasets_and_must_be_known() {
    let folder = folder(two_sets);
    let model = open(&folder);
    let policy = model.policy().unwrap();
    let start = |key: Option<&str>| {
        policy.start(&Task { instruction: TASK.into(), unnorm_key: key.map(str::to_string) })
    };
    let error = refusal(start(None)).to_string();
    assert!(error.contains("unnorm_key is required") && error.contains("bridge_orig, sample"), "{error}");
    let error = refusal(start(Some("bridge"))).to_string();
    assert!(error.contains("\"bridge\"") && error.contains("nearest: bridge_orig"), "{error}");
    assert!(start(Some("sample")).is_ok());
    let error = refusal(open_with(folder.path(), json!({"unnorm_key": "kuka"}))).to_string();
    assert!(error.contains("\"kuka\"") && error.contains("sample"), "{error}");
}

#[test]
fn statistics_of_a_fine_tuned_model_are_read_from_its_folder() {
    let folder = folder(|config| config["norm_stats"] = json!(null));
    let model = open(&folder);
    let error = refusal(model.policy().unwrap().start(&Task::from(TASK))).to_string();
    assert!(error.contains("dataset_statistics.json"), "{error}");

    let path = folder.path().join("dataset_statistics.json");
    fs::write(&path, r#"{"own": {"action": {"q01": [0, 0], "q99": [1, 1]}}}"#).unwrap();
    let model = open(&folder);
    let mut controller = model.policy().unwrap().start(&Task::from(TASK)).unwrap();
    assert_eq!(controller.act(&Observation::from(&frame(0))).unwrap().len(), 2);
    assert_eq!(controller.degrees().len(), 2);
    drop(controller);

    for text in ["{", "[]", r#"{"own": {}}"#, r#"{"own": {"action": {"q01": [0], "q99": [1, 2]}}}"#] {
        fs::write(&path, text).unwrap();
        let error = refusal(open_with(folder.path(), Value::Null));
        assert_eq!((error.kind(), error.place()), (ErrorKind::Format, Some(&*path)), "{error}");
    }
}

#[test]
fn invalid_instructions_and_frames_are_errors() {
    let folder = folder(|_| {});
    let model = open(&folder);
    let policy = model.policy().unwrap();
    for words in ["", "  \n"] {
        assert!(refusal(policy.start(&Task::from(words))).message().contains("the instruction is empty"));
    }
    let long = "pick up the red block ".repeat(60);
    let error = refusal(policy.start(&Task::from(long.as_str())));
    assert!(error.message().contains("was trained for 200"), "{error}");
    let mut controller = policy.start(&Task::from(TASK)).unwrap();
    let empty = Image { width: 0, height: 0, rgb: Vec::new() };
    let grey = Image { width: 4, height: 4, rgb: vec![0; 16] };
    for frame in [empty, grey] {
        assert_eq!(refusal(controller.act(&Observation::from(&frame))).kind(), ErrorKind::Input);
    }
    // The controller can be used after an error.
    assert!(controller.act(&Observation::from(&frame(0))).is_ok());

    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let without = open(&folder);
    let error = refusal(without.policy().unwrap().start(&Task::from(TASK)));
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn tensors_of_other_shapes_are_errors() {
    let folder = folder(|_| {});
    let model = open(&folder);
    let good = || pixels(model.as_ref(), &frame(0));
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let with = |ids: Tensor, pixels: Tensor| {
        Tensors::from([("input_ids".to_string(), ids), ("pixel_values".to_string(), pixels)])
    };
    for shape in [&[1, 3, 28, 28][..], &[1, 6, 27, 28], &[6, 28, 28], &[0, 6, 28, 28]] {
        let error = refusal(model.forward(&with(ids(&[PROMPT]), zeros(shape)))).to_string();
        assert!(error.contains("expected (batch, 6, 28, 28)"), "{error}");
    }
    for id in [100, -1, i64::MAX] {
        let error = refusal(model.forward(&with(ids(&[&[1, id]]), good())));
        assert!(error.message().contains("outside the vocabulary of 100"), "{error}");
    }
    assert!(model.forward(&with(ids(&[PROMPT, PROMPT]), good())).is_err(), "one image for a batch of two");
    assert!(model.forward(&Tensors::new()).is_err());
    let mut masked = with(ids(&[PROMPT]), good());
    masked.insert("attention_mask".into(), ids(&[&[1, 1]]));
    assert!(refusal(model.forward(&masked)).message().contains("attention_mask are [1, 2]"));
    let act = |inputs: &Tensors, options: Value| model.call("generate", inputs, &options);
    let good = with(ids(&[PROMPT]), good());
    for options in [
        json!({"method": "predict_action", "do_sample": true}),
        json!({"method": "predict_action", "max_new_tokens": 6}),
        json!({"method": "predict_action", "unnorm_keys": ["other"]}),
        json!({"method": "predict_action", "unnorm_keys": []}),
        json!({"max_new_tokens": 0}),
        json!({"max_new_tokens": u64::MAX}),
        json!({"method": "dream"}),
    ] {
        assert!(act(&good, options.clone()).is_err(), "{options}");
    }
    let out = act(&good, json!({"max_new_tokens": 3, "eos_token_id": []})).unwrap();
    assert_eq!(out["sequences"].dims(), [1, PROMPT.len() + 3]);
}

#[test]
fn configs_with_absurd_sizes_are_errors() {
    let huge = u64::from(u32::MAX);
    let changes: [(&str, Value); 11] = [
        ("image_sizes", json!([huge, huge])),
        ("image_sizes", json!([0, 0])),
        ("timm_model_kwargs", json!([{"depth": huge}, {}])),
        ("timm_model_kwargs", json!([{"depth": 1}, {}])),
        ("timm_model_kwargs", json!([{"embed_dim": u64::MAX}, {}])),
        ("timm_model_kwargs", json!([{"num_heads": 5}, {}])),
        ("timm_model_kwargs", json!([{"mlp_ratio": 1e300}, {}])),
        ("timm_model_kwargs", json!([{"patch_size": 0}, {"patch_size": 0}])),
        ("n_action_bins", json!(u64::MAX)),
        ("pad_to_multiple_of", json!(100)),
        ("text_config", json!({"hidden_size": 1u64 << 40})),
    ];
    for (key, value) in changes {
        let folder = folder(|config| config[key] = value.clone());
        let error = refusal(open_with(folder.path(), Value::Null)).to_string();
        assert!(error.len() < 2000, "{key} = {value}: {error}");
    }
}

#[test]
fn benchmark_inputs_are_valid() {
    let folder = folder(|_| {});
    let model = open(&folder);
    let sizes = |tokens, images| SampleSizes { rows: 2, tokens, images };
    let out = model.forward(&model.sample("forward", &sizes(5, 1)).unwrap()).unwrap();
    assert_eq!(out["logits"].dims(), [2, 9, 100]);
    let sight = model.sample("vision", &sizes(0, 1)).unwrap();
    for method in ["vision", "forward"] {
        let out = model.call(method, &sight, &Value::Null).unwrap();
        assert_eq!(out.keys().collect::<Vec<_>>(), ["projector_features"]);
        assert_eq!(out["projector_features"].dims(), [2, 4, 32]);
    }
    assert_eq!(
        model.forward(&model.sample("forward", &sizes(5, 0)).unwrap()).unwrap()["logits"].dims(),
        [2, 5, 100]
    );
    assert!(model.sample("forward", &sizes(5, 2)).is_err());
}

#[test]
fn a_processor_with_other_image_sizes_is_an_error() {
    let folder = folder(|_| {});
    let path: PathBuf = folder.path().join("preprocessor_config.json");
    let file = |side: usize| json!({"image_resize_strategy": "resize-naive", "input_sizes": [[3, side, side], [3, side, side]]});
    let mut good = file(28);
    good["means"] = json!([[0.5, 0.5, 0.5]]);
    fs::write(&path, good.to_string()).unwrap();
    assert!(open_with(folder.path(), Value::Null).is_err(), "means for one tower");
    good["means"] = json!([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]);
    good["stds"] = good["means"].clone();
    fs::write(&path, good.to_string()).unwrap();
    assert!(open_with(folder.path(), Value::Null).is_ok());
    good["input_sizes"] = file(224)["input_sizes"].clone();
    fs::write(&path, good.to_string()).unwrap();
    let error = refusal(open_with(folder.path(), Value::Null)).to_string();
    assert!(error.contains("(224, 224)") && error.contains("(28, 28)"), "{error}");
}

#[test]
fn a_policy_with_random_weights_does_not_move_blocks() {
    let folder = folder(|_| {});
    let model = open(&folder);
    let score =
        evaluate(model.policy().unwrap(), 0..2, &SceneConfig { max_steps: 10, ..SceneConfig::default() })
            .unwrap();
    assert_eq!((score.episodes, score.successes, score.steps), (2, 0, 20));
}

#[test]
fn openvla_7b_has_its_number_of_parameters() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/configs/openvla-7b");
    let (_, inventory) = zoo().inventory(config.to_str().unwrap(), &LoadOptions::default()).unwrap();
    // 7.54 billion without the unused last blocks, final norms and pooling head.
    let billions = inventory.parameters as f64 / 1e9;
    assert!((7.45..7.54).contains(&billions), "{billions}");
}

#[test]
fn a_release_of_the_training_code_is_recognized_by_its_config() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().to_str().unwrap();
    let config = json!({"vla": {"base_vlm": "prism-dinosiglip-224px+7b"}, "run_id": "a run", "seed": 7});
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let (family, inventory) = zoo().inventory(source, &LoadOptions::default()).unwrap();
    assert_eq!((family.name, inventory.parameters > 7_000_000_000), ("openvla", true));
    // Two files without a selection; then a selected file that is not a checkpoint.
    fs::create_dir(folder.path().join("checkpoints")).unwrap();
    for name in ["step-1.pt", "step-2.pt"] {
        fs::write(folder.path().join("checkpoints").join(name), "no weights").unwrap();
    }
    let error = refusal(zoo().open(source, &LoadOptions::default())).to_string();
    assert!(error.contains("2 files in checkpoints/"), "{error}");
    let named = |file: &str| LoadOptions { file: Some(file.into()), ..LoadOptions::default() };
    let error = refusal(zoo().open(source, &named("step-2.pt")));
    assert!(error.place().is_some_and(|place| place.ends_with("checkpoints/step-2.pt")), "{error}");
    assert_eq!(refusal(zoo().open(source, &named("step-3.pt"))).kind(), ErrorKind::NotFound);
}
