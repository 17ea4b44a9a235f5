//! What every forecaster must do, whatever its paper: the same claims for each, over its own sample config and weights
//! made from a seed.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use fauna_science::chronos::{
    bolt::FAMILY as CHRONOS_BOLT, chronos2::FAMILY as CHRONOS_2, t5::FAMILY as CHRONOS_T5,
};
use fauna_science::timesfm::{patched::FAMILY as TIMESFM, v2_5::FAMILY as TIMESFM_2_5};
use fauna_shared::ErrorKind;
use fauna_shared::generate::GenerationConfig;
use fauna_shared::item::{Item, Prompt, Tensors};
use fauna_shared::model::{
    Covariate, Family, Forecast, ForecastConfig, FrequencyClass, History, Pipeline, SampleSizes,
};
use fauna_shared::nn::block_kind;
use fauna_shared::runtime::Runtime;
use fauna_shared::zoo::{LoadOptions, Zoo};
use serde_json::{Value, json};

const FAMILIES: [&Family; 5] = [&CHRONOS_T5, &CHRONOS_BOLT, &CHRONOS_2, &TIMESFM, &TIMESFM_2_5];
const NAN: f32 = f32::NAN;

fn open_with(
    family: &'static Family,
    options: LoadOptions,
    change: impl FnOnce(&mut Value),
) -> Box<dyn Pipeline> {
    let folder = tempfile::tempdir().unwrap();
    let mut config = (family.sample)();
    change(&mut config);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let options = LoadOptions { random_weights: Some(3), ..options };
    // Among all families that call themselves so.
    let zoo = Zoo::new(fauna_text::FAMILIES.iter().chain(fauna_science::FAMILIES).copied());
    zoo.open(folder.path().to_str().unwrap(), &options).unwrap()
}

fn opened(family: &'static Family) -> Box<dyn Pipeline> {
    open_with(family, LoadOptions::default(), |_| {})
}

/// A causal Chronos, whose network is GPT-2.
fn causal() -> Box<dyn Pipeline> {
    open_with(&CHRONOS_T5, LoadOptions::default(), |config| {
        let mut own = config["chronos_config"].take();
        own["model_type"] = json!("causal");
        *config = json!({
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 61, "n_positions": 60,
            "n_embd": 24, "n_layer": 2, "n_head": 3, "chronos_config": own
        });
    })
}

fn all() -> Vec<(&'static str, Box<dyn Pipeline>)> {
    let named = |family: &&'static Family| (family.name, opened(family));
    FAMILIES.iter().map(named).chain([("chronos on gpt2", causal())]).collect()
}

/// Series of unlike length: a long one, one of a few values, one with gaps, one that does not move.
fn series() -> Vec<History> {
    let wave = |length: usize, size: f32| (0..length).map(|t| size * (t as f32 * 0.7).sin() + 2.0).collect();
    let mut gaps: Vec<f32> = wave(30, 40.0);
    gaps[..3].fill(NAN);
    gaps[12..19].fill(NAN);
    gaps[29] = NAN;
    vec![
        History { frequency_class: FrequencyClass::Medium, ..History::from(wave(70, 3.0)) },
        vec![5.0, -3.0].into(),
        gaps.into(),
        History { frequency_class: FrequencyClass::Low, ..History::from(vec![7.5; 17]) },
    ]
}

fn wanted(horizon: usize) -> ForecastConfig {
    ForecastConfig { horizon, quantiles: vec![0.9, 0.37, 0.001], samples: Some(7), seed: 11 }
}

fn far(a: &Forecast, b: &Forecast) -> f32 {
    let numbers =
        |f: &Forecast| f.mean.iter().chain(f.quantiles.iter().flatten()).copied().collect::<Vec<f32>>();
    let (a, b) = (numbers(a), numbers(b));
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).map(|(a, b)| (a - b).abs() / (1.0 + b.abs())).fold(0.0, f32::max)
}

#[test]
fn a_forecast_does_not_depend_on_the_others_of_its_batch() {
    for (name, model) in all() {
        let forecaster = model.forecaster().unwrap();
        // Within one pass, and beyond it.
        for horizon in [3, 17] {
            let together = forecaster.forecast(&series(), &wanted(horizon)).unwrap();
            assert_eq!(together.len(), 4);
            for (index, past) in series().into_iter().enumerate() {
                let alone = forecaster.forecast(&[past], &wanted(horizon)).unwrap().remove(0);
                assert_eq!((alone.mean.len(), alone.quantiles.len()), (horizon, 3), "{name}");
                assert!(alone.quantiles.iter().all(|list| list.len() == horizon), "{name}");
                let off = far(&together[index], &alone);
                assert!(off < 2e-3, "{name}: series {index} is off by {off}");
                assert!(alone.mean.iter().all(|value| value.is_finite()), "{name}");
            }
        }
        assert!(forecaster.forecast(&[], &wanted(2)).unwrap().is_empty(), "{name}");
    }
}

#[test]
fn the_first_steps_of_a_long_forecast_are_those_of_a_short_one() {
    for (name, model) in all() {
        let forecaster = model.forecaster().unwrap();
        let (short, long) = (wanted(3), wanted(40));
        let short = forecaster.forecast(&series(), &short).unwrap();
        let long = forecaster.forecast(&series(), &long).unwrap();
        for (short, long) in short.iter().zip(long) {
            let start = Forecast {
                mean: long.mean[..3].to_vec(),
                quantiles: long.quantiles.iter().map(|list| list[..3].to_vec()).collect(),
            };
            // Chronos-2 is told how far it is to look.
            if name != "chronos-2" {
                assert!(far(short, &start) < 1e-3, "{name}: {short:?} {start:?}");
            }
        }
    }
}

#[test]
fn what_cannot_be_forecast_is_named() {
    for (name, model) in all() {
        let forecaster = model.forecaster().unwrap();
        let good = || History::from(vec![1.0, 2.0, 3.0]);
        for (bad, words) in [
            (vec![], "series 1 has no values"),
            (vec![NAN; 30], "series 1 holds gaps only (NaN)"),
            (vec![1.0, f32::INFINITY], "series 1 is infinite at step 1"),
        ] {
            let error = forecaster.forecast(&[good(), bad.into(), good()], &wanted(2)).unwrap_err();
            assert_eq!((error.kind(), error.message()), (ErrorKind::Input, words), "{name}");
        }
        for options in [wanted(0), ForecastConfig { quantiles: vec![1.0], ..wanted(2) }] {
            assert_eq!(
                forecaster.forecast(&[good()], &options).unwrap_err().kind(),
                ErrorKind::Input,
                "{name}"
            );
        }
    }
    let none = ForecastConfig { samples: Some(usize::MAX), ..wanted(2) };
    let error = opened(&CHRONOS_T5).forecaster().unwrap().forecast(&series(), &none).unwrap_err();
    assert!(error.message().contains("samples must be 1 to"), "{error}");
}

#[test]
fn a_seed_repeats_its_paths_and_another_draws_others() {
    for model in [opened(&CHRONOS_T5), causal()] {
        let forecaster = model.forecaster().unwrap();
        let drawn = |seed| forecaster.forecast(&series(), &ForecastConfig { seed, ..wanted(6) }).unwrap();
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        let quantiles = &drawn(1)[0].quantiles;
        assert!(quantiles[0].iter().zip(&quantiles[2]).all(|(high, low)| high >= low));
    }
}

#[test]
fn covariates_change_the_forecast_of_chronos_2_alone() {
    let price = |past: Vec<f32>, future: Vec<f32>| Covariate { name: "price".into(), past, future };
    for family in FAMILIES {
        let model = opened(family);
        let forecaster = model.forecaster().unwrap();
        let bare = History::from(vec![1.0, 5.0, 2.0, 6.0, 3.0]);
        let told = |covariates: Vec<Covariate>| {
            let past = History { covariates, ..bare.clone() };
            forecaster.forecast(&[past], &wanted(4)).unwrap().remove(0)
        };
        let without = told(vec![]);
        let past_alone = told(vec![price(vec![9.0, 1.0, NAN, 1.0, 9.0], vec![])]);
        let known = told(vec![price(vec![9.0, 1.0, NAN, 1.0, 9.0], vec![1.0, NAN, 9.0, 1.0])]);
        let reads = forecaster.reads_covariates();
        assert_eq!(reads, family.name == "chronos-2");
        assert_eq!(without != past_alone, reads, "{}", family.name);
        assert_eq!(past_alone != known, reads, "{}", family.name);
    }
    let model = opened(&CHRONOS_2);
    for (past, future, words) in [
        (vec![1.0], vec![], "has 1 past values for the 3 of the series"),
        (vec![1.0; 3], vec![1.0], "has 1 future values for a horizon of 2"),
        (vec![f32::INFINITY; 3], vec![], "holds an infinite value"),
    ] {
        let series = History { covariates: vec![price(past, future)], ..History::from(vec![1.0, 2.0, 3.0]) };
        let error = model.forecaster().unwrap().forecast(&[series], &wanted(2)).unwrap_err();
        assert!(error.message().contains(words) && error.message().contains("series 0"), "{error}");
    }
}

#[test]
fn a_series_is_continued_as_an_item() {
    for (name, model) in all() {
        let rows = vec![vec![1.0, 2.0, 4.0, 3.0, 5.0], vec![-1.0, NAN, 2.0]];
        let prompt = Prompt::Items(vec![Item::Series(rows.clone())]);
        let mut made = Vec::new();
        let options = GenerationConfig { max_new_tokens: 9, ..model.defaults() };
        model
            .generate(&prompt, &options, &mut |item| {
                made.push(item);
                ControlFlow::Continue(())
            })
            .unwrap();
        let [Item::Series(made)] = &made[..] else { panic!("{name}: {made:?}") };
        assert_eq!(made.iter().map(Vec::len).collect::<Vec<_>>(), [9, 9], "{name}");
        let wanted = ForecastConfig { horizon: 9, quantiles: vec![], samples: None, seed: 0 };
        let pasts: Vec<History> = rows.into_iter().map(History::from).collect();
        assert_eq!(model.forecaster().unwrap().forecast(&pasts, &wanted).unwrap()[0].mean, made[0], "{name}");
        for odd in [Prompt::from("words"), Prompt::Items(vec![]), Prompt::Chat(vec![])] {
            let error = model.generate(&odd, &options, &mut |_| ControlFlow::Continue(())).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Input, "{name}");
        }
    }
}

#[test]
fn a_series_has_one_vector_whatever_is_embedded_with_it() {
    for family in FAMILIES {
        let model = opened(family);
        let items: Vec<Item> = series().into_iter().map(|past| Item::Series(vec![past.values])).collect();
        let made = model.embed(&items).unwrap();
        assert_eq!(made.rows.dims(), [4, 32], "{}", family.name);
        assert!(made.cut[0] > 0 && made.cut[1] == 0, "{}", family.name);
        let two = Item::Series(series()[..2].iter().map(|past| past.values.clone()).collect());
        let mean = model.embed(&[two]).unwrap().rows;
        let wanted = made.rows.narrow(0, 0, 2).unwrap().mean_keepdim(0).unwrap();
        let off = (mean - wanted).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(off < 1e-4, "{}: {off}", family.name);
        assert!(model.embed(&["words".into()]).is_err() && model.embed(&[]).is_err());
        assert!(model.embed(&[Item::Series(vec![vec![]])]).is_err());
    }
    assert_eq!(causal().embed(&[Item::Series(vec![vec![1.0]])]).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn what_is_made_up_can_be_read() {
    for (name, model) in all() {
        let sizes = SampleSizes { rows: 3, tokens: 21, images: 0 };
        let made = model.sample("forward", &sizes).unwrap();
        let out = model.forward(&made).unwrap();
        assert!(out.values().all(|tensor| tensor.dims()[0] == 3), "{name}");
        assert!(model.sample("forward", &SampleSizes { images: 1, ..sizes }).is_err(), "{name}");
        assert!(model.sample("sing", &sizes).is_err(), "{name}");
        assert!(model.call("sing", &made, &Value::Null).is_err(), "{name}");
    }
}

#[test]
fn odd_inputs_of_a_forward_pass_are_errors() {
    let table = |rows: usize, steps: usize| {
        Tensor::ones((rows, steps), candle_core::DType::F32, &Device::Cpu).unwrap()
    };
    let named = |name: &str, tensor: Tensor| Tensors::from([(name.to_string(), tensor)]);
    for (name, model) in all() {
        for inputs in [
            Tensors::new(),
            named("context", table(2, 0)),
            named("past_values", table(0, 2)),
            named("stranger", table(1, 1)),
        ] {
            assert_eq!(model.forward(&inputs).unwrap_err().kind(), ErrorKind::Input, "{name}");
        }
    }
    let two = opened(&CHRONOS_2);
    for (name, odd) in
        [("group_ids", table(1, 1)), ("future_covariates", table(2, 99)), ("future_covariates", table(1, 2))]
    {
        let mut inputs = named("context", table(2, 9));
        inputs.insert(name.into(), odd);
        assert_eq!(two.forward(&inputs).unwrap_err().kind(), ErrorKind::Input, "{name}");
    }
    for count in [json!(0), json!(-1), json!(1u64 << 60)] {
        let options = json!({"num_output_patches": count});
        assert_eq!(
            two.call("forward", &named("context", table(2, 9)), &options).unwrap_err().kind(),
            ErrorKind::Input
        );
    }
    for family in [&TIMESFM, &TIMESFM_2_5] {
        let model = opened(family);
        for options in
            [json!({"window_size": 0}), json!({"forecast_context_len": 7}), json!({"truncate_negative": 1})]
        {
            let error = model.call("forward", &named("past_values", table(2, 9)), &options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Input, "{options}");
        }
    }
    let mut paced = named("past_values", table(2, 9));
    paced.insert("freq".into(), Tensor::new(&[0i64, 3], &Device::Cpu).unwrap());
    let error = opened(&TIMESFM).forward(&paced).unwrap_err();
    assert!(error.message().contains("freq of series 1 is 3"), "{error}");
    for options in [json!({"prediction_length": 0}), json!({"quantile_levels": [2.0]})] {
        for family in [&CHRONOS_T5, &CHRONOS_BOLT, &CHRONOS_2] {
            let error =
                opened(family).call("generate", &named("context", table(2, 9)), &options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Input, "{}", family.name);
        }
    }
}

#[test]
fn fewer_bits_stay_near() {
    for family in FAMILIES {
        let inputs =
            opened(family).sample("forward", &SampleSizes { rows: 2, tokens: 17, images: 0 }).unwrap();
        let float = opened(family).forward(&inputs).unwrap();
        for (format, bound) in [("q8_0", 0.05), ("q4_0", 0.5)] {
            let runtime = Runtime::cpu().with_quantize(block_kind(format).ok());
            let blocks = open_with(family, LoadOptions { runtime, ..LoadOptions::default() }, |_| {})
                .forward(&inputs)
                .unwrap();
            for (name, tensor) in float.iter().filter(|(_, tensor)| tensor.dtype() == candle_core::DType::F32)
            {
                let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let (float, blocks) = (values(tensor), values(&blocks[name]));
                let off = float.iter().zip(&blocks).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                let spread = float.iter().copied().fold(f32::MIN, f32::max)
                    - float.iter().copied().fold(f32::MAX, f32::min);
                assert!(
                    off <= bound * spread,
                    "{}: {format} {name} is off by {off} of {spread}",
                    family.name
                );
            }
        }
    }
}

#[test]
fn configs_of_other_maths_are_refused_by_name() {
    let refuses = |family: &'static Family, change: &dyn Fn(&mut Value), words: &str| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = (family.sample)();
        change(&mut config);
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let options = LoadOptions { random_weights: Some(3), ..LoadOptions::default() };
        let error = Zoo::new([family]).open(folder.path().to_str().unwrap(), &options).err();
        let error = error.unwrap_or_else(|| panic!("{}: {words} opens", family.name)).to_string();
        assert!(error.contains(words), "{}: {error}", family.name);
    };
    let own = |key: &'static str, value: Value| {
        move |config: &mut Value| config["chronos_config"][key] = value.clone()
    };
    let plain = |key: &'static str, value: Value| move |config: &mut Value| config[key] = value.clone();
    refuses(&CHRONOS_T5, &own("tokenizer_class", json!("Other")), "tokenizer_class");
    refuses(&CHRONOS_T5, &own("n_tokens", json!(99)), "n_tokens 99 is above vocab_size 61");
    refuses(&CHRONOS_T5, &own("model_type", json!("diffusion")), "chronos_config");
    refuses(&CHRONOS_BOLT, &own("quantiles", json!([0.5, 0.1])), "do not rise");
    refuses(&CHRONOS_BOLT, &own("input_patch_stride", json!(9)), "input_patch_stride 9");
    refuses(&CHRONOS_BOLT, &own("prediction_length", json!(1u64 << 40)), "prediction_length");
    refuses(&CHRONOS_BOLT, &plain("decoder_start_token_id", json!(2)), "decoder_start_token_id is 2");
    refuses(&CHRONOS_2, &own("use_reg_token", json!(false)), "use_reg_token");
    refuses(&CHRONOS_2, &own("output_patch_size", json!(8)), "output_patch_size 8");
    refuses(&CHRONOS_2, &plain("d_kv", json!(7)), "d_kv 7");
    refuses(&CHRONOS_2, &plain("feed_forward_proj", json!("gated-gelu")), "gated-gelu");
    refuses(&TIMESFM, &plain("context_length", json!(25)), "context_length 25");
    refuses(&TIMESFM, &plain("hidden_size", json!(0)), "hidden_size is 0");
    refuses(&TIMESFM_2_5, &plain("rope_parameters", json!({"rope_type": "yarn"})), "rope_type");
    refuses(&TIMESFM_2_5, &plain("num_key_value_heads", json!(3)), "num_key_value_heads 3");
    refuses(&TIMESFM_2_5, &plain("head_dim", json!(5)), "head_dim 5");
}
