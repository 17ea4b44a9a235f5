//! The pipelines of CLIP and SigLIP, on the checkpoints of their parity cases: embeddings and zero-shot labels.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

use std::ops::ControlFlow;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::GenerationConfig;
use fauna_shared::item::{Image, Item, Label, Prompt, Tensors};
use fauna_shared::model::{Pipeline, SampleSizes};
use fauna_shared::zoo::{LoadOptions, Zoo};
use fauna_shared::{Error, ErrorKind, Result};
use serde_json::{Value, json};

fn folder(family: &str) -> PathBuf {
    let root = env!("CARGO_MANIFEST_DIR");
    [root, "../../tests/parity", family, "end_to_end/model"].iter().collect()
}

fn open(folder: &std::path::Path, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
    Zoo::new(fauna_vision::FAMILIES.iter().copied()).open(folder.to_str().unwrap(), options)
}

fn model(family: &str) -> Box<dyn Pipeline> {
    open(&folder(family), &LoadOptions::default()).unwrap()
}

/// An image of one colour with a gradient.
fn picture(colour: u8) -> Item {
    let (width, height) = (40, 33);
    let rgb = (0..width * height).flat_map(|i| [colour, (i % 256) as u8, 255 - colour]).collect();
    Item::Image(Image { width, height, rgb })
}

fn labels(model: &dyn Pipeline, items: Vec<Item>) -> Result<Vec<Label>> {
    let mut found = Vec::new();
    model.generate(&Prompt::Items(items), &GenerationConfig::default(), &mut |item| {
        if let Item::Label(label) = item {
            found.push(label);
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Opens a config without weights, with random weights.
fn config_alone(name: &str, config: &Value) -> Result<Box<dyn Pipeline>> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(name), config.to_string()).unwrap();
    open(folder.path(), &LoadOptions { random_weights: Some(1), ..LoadOptions::default() })
}

fn refusal(name: &str, config: &Value) -> Error {
    config_alone(name, config).err().unwrap_or_else(|| panic!("{config} opens"))
}

#[test]
fn labels_are_sorted_by_probability_which_sums_to_one_only_in_clip() {
    for family in ["clip", "siglip"] {
        let model = model(family);
        let names = ["a photo", "a dog", "two cats", "a bowl"];
        let items = [picture(200)].into_iter().chain(names.map(Item::from)).collect();
        let found = labels(model.as_ref(), items).unwrap();
        assert_eq!(found.len(), 4);
        assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score), "{found:?}");
        assert!(found.iter().all(|label| label.span.is_none() && names.contains(&label.label.as_str())));
        let sum: f32 = found.iter().map(|label| label.score).sum();
        assert_eq!((sum - 1.0).abs() < 1e-5, family == "clip", "{family}: {sum}");
    }
}

#[test]
fn the_score_of_a_siglip_label_is_independent_of_the_others() {
    let model = model("siglip");
    let alone = labels(model.as_ref(), vec![picture(9), "a dog".into()]).unwrap();
    let among = labels(model.as_ref(), vec!["a cat".into(), "a dog".into(), picture(9)]).unwrap();
    let dog = among.iter().find(|label| label.label == "a dog").unwrap();
    assert!((alone[0].score - dog.score).abs() < 1e-6);
}

#[test]
fn a_label_that_is_too_long_is_truncated_and_has_a_span() {
    for family in ["clip", "siglip"] {
        let model = model(family);
        let long = "a dog and a cat ".repeat(40);
        let found = labels(model.as_ref(), vec![picture(9), long.as_str().into()]).unwrap();
        let span = found[0].span.clone().expect("the label is truncated");
        assert!(span.start == 0 && span.end > 0 && span.end < long.len(), "{span:?}");
    }
}

#[test]
fn a_prompt_without_an_image_or_labels_is_an_error() {
    let model = model("clip");
    let message = |items| labels(model.as_ref(), items).unwrap_err().to_string();
    assert!(message(vec!["a cat".into()]).contains("Item::Image"));
    assert!(message(vec![picture(1)]).contains("Item::Text"));
    assert!(message(vec![picture(1), " ".into(), "a".into()]).contains("label 1 of 2 is empty"));
    assert!(message(vec![picture(1), picture(2), "a".into()]).contains("got 2"));
    assert!(message(vec![picture(1), Item::Gene("ACGT".into())]).contains("gene"));
    let chat = model
        .generate(&Prompt::Chat(Vec::new()), &GenerationConfig::default(), &mut |_| ControlFlow::Break(()));
    assert_eq!(chat.unwrap_err().kind(), ErrorKind::Input);
}

#[test]
fn mixed_items_have_the_same_embeddings_as_alone() {
    for family in ["clip", "siglip"] {
        let model = model(family);
        let long = "cat ".repeat(50);
        let items: Vec<Item> =
            vec!["a dog".into(), picture(3), long.as_str().into(), picture(200), "cats".into()];
        let all = model.embed(&items).unwrap();
        assert_eq!((all.rows.dim(0).unwrap(), all.cut.len()), (5, 5));
        assert!(all.cut[2] > 0 && all.cut.iter().enumerate().all(|(i, cut)| i == 2 || *cut == 0));
        for (row, item) in all.to_vecs().unwrap().iter().zip(&items) {
            let alone = model.embed(std::slice::from_ref(item)).unwrap().to_vecs().unwrap().remove(0);
            let length: f32 = row.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-5);
            assert!(row.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-5), "{family}");
        }
        assert!(model.embed(&[]).is_err());
    }
}

#[test]
fn embeddings_are_the_embeds_of_the_forward_pass() {
    for family in ["clip", "siglip"] {
        let model = model(family);
        let texts = ["A photo of two CATS!", "it's a dog"];
        let out = model.call("forward", &Tensors::new(), &json!({"texts": texts})).unwrap();
        let wanted: Vec<Vec<f32>> = out["text_embeds"].to_vec2().unwrap();
        let found = model.embed(&texts.map(Item::from)).unwrap().to_vecs().unwrap();
        let off = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(wanted.iter().zip(&found).all(|(a, b)| off(a, b) < 1e-5), "{family}");
    }
}

#[test]
fn a_missing_tokenizer_or_image_processor_is_named() {
    for (family, config) in
        [("clip", json!({"model_type": "clip"})), ("siglip", json!({"model_type": "siglip"}))]
    {
        let mut config = config;
        let tiny = json!({"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 8, "patch_size": 4});
        config["text_config"] = tiny.clone();
        config["vision_config"] = tiny;
        let model = config_alone("config.json", &config).unwrap();
        let text = model.embed(&["a".into()]).unwrap_err();
        assert_eq!(text.kind(), ErrorKind::NotFound, "{text}");
        let picture = model.embed(&[picture(1)]).unwrap_err();
        assert!(picture.to_string().contains("preprocessor_config.json"), "{family}: {picture}");
    }
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let ids = |ids: Vec<i64>| Tensor::from_vec(ids, (1, 3), &Device::Cpu).unwrap();
    let pixels =
        |shape: (usize, usize, usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for family in ["clip", "siglip"] {
        let model = model(family);
        for (name, tensor) in [
            ("input_ids", ids(vec![1, 2, 1_000_000])),
            ("input_ids", ids(vec![1, -1, 2])),
            ("input_ids", Tensor::zeros((1, 400), DType::I64, &Device::Cpu).unwrap()),
            ("pixel_values", pixels((1, 3, 30, 29))),
            ("pixel_values", pixels((1, 4, 29, 29))),
            ("pixel_values", Tensor::zeros((29, 29), DType::F32, &Device::Cpu).unwrap()),
            ("pixels", pixels((1, 3, 29, 29))),
        ] {
            let error = model.forward(&Tensors::from([(name.into(), tensor)])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Input, "{family}: {name}: {error}");
        }
        assert_eq!(model.forward(&Tensors::new()).unwrap_err().kind(), ErrorKind::Input);
    }
}

#[test]
fn samples_of_any_size_run() {
    for family in ["clip", "siglip"] {
        let model = model(family);
        for (tokens, images) in [(5, 0), (0, 1), (5, 2)] {
            let inputs = model.sample("forward", &SampleSizes { rows: 2, tokens, images }).unwrap();
            assert!(model.forward(&inputs).is_ok(), "{family}: {tokens} tokens, {images} images");
        }
        assert!(model.sample("forward", &SampleSizes { rows: 2, tokens: 0, images: 0 }).is_err());
    }
}

#[test]
fn an_architecture_that_is_not_implemented_is_refused_by_key() {
    let text = json!({"model_type": "clip", "text_config": {"model_type": "xlm-roberta"}});
    assert!(refusal("config.json", &text).to_string().contains("xlm-roberta"));
    let act = json!({"model_type": "siglip", "vision_config": {"hidden_act": "gelu_odd"}});
    assert!(refusal("config.json", &act).to_string().contains("gelu_odd"));
    let oblong = json!({"model_type": "clip", "vision_config": {"image_size": [224, 112]}});
    assert!(refusal("config.json", &oblong).to_string().contains("square"));
    let absurd = json!({"model_type": "clip", "vision_config": {"hidden_size": 1u64 << 40}});
    assert!(refusal("config.json", &absurd).to_string().contains("hidden_size"));
    let model = |vision: Value, text: Value| json!({"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}});
    for (config, named) in [
        (model(json!({"timm_model_name": "convnext_base"}), json!({})), "timm_model_name"),
        (model(json!({"layers": [3, 4, 6, 3]}), json!({})), "layers"),
        (model(json!({}), json!({"hf_model_name": "roberta-base"})), "hf_model_name"),
        (model(json!({"attentional_pool": true}), json!({})), "attentional_pool"),
        (model(json!({}), json!({"pool_type": "last"})), "pool_type"),
        (json!({"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}), "embed_dim"),
    ] {
        let error = refusal("open_clip_config.json", &config);
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
}

#[test]
fn image_features_equal_those_of_the_forward_pass() {
    for family in ["clip", "siglip"] {
        let model = model(family);
        let pixels = model.sample("forward", &SampleSizes { rows: 2, tokens: 0, images: 1 }).unwrap();
        let whole = model.forward(&pixels).unwrap()["image_embeds"].clone();
        let alone = model.call("get_image_features", &pixels, &json!({})).unwrap()["pooler_output"].clone();
        let length = alone.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
        let off = (alone.broadcast_div(&length).unwrap() - &whole).unwrap().abs().unwrap();
        let off: f32 = off.flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap();
        assert!(off < 1e-6, "{family}: {off}");
        let error = model.call("get_image_features", &Tensors::new(), &json!({})).unwrap_err().to_string();
        assert!(error.contains("pixel_values"), "{error}");
    }
}
