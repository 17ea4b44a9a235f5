//! The pipeline: audio of any sampling rate and number of channels, codes as items, releases without a config.

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{Device, Tensor};
use fauna_shared::generate::GenerationConfig;
use fauna_shared::item::{Item, Prompt, Sound, Tensors};
use fauna_shared::model::Pipeline;
use fauna_shared::zoo::{LoadOptions, Zoo};
use fauna_shared::{Error, ErrorKind, Result};
use serde_json::json;

use super::model_of;

fn zoo() -> Zoo {
    Zoo::new(crate::FAMILIES.iter().copied())
}

fn opened(case: &str) -> Box<dyn Pipeline> {
    zoo().open(model_of(case).to_str().unwrap(), &LoadOptions::default()).unwrap()
}

fn tone(rate: u32, channels: usize, samples: usize) -> Sound {
    let channel = |c: usize| (0..samples).map(|i| ((c + 1) as f32 * i as f32 * 0.1).sin() * 0.5).collect();
    Sound { rate, channels: (0..channels).map(channel).collect() }
}

fn made(codec: &dyn Pipeline, item: Item) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    codec.generate(&Prompt::Items(vec![item]), &GenerationConfig::default(), &mut |item| {
        items.push(item);
        ControlFlow::Continue(())
    })?;
    Ok(items)
}

fn codes_of(codec: &dyn Pipeline, sound: Sound) -> Tensors {
    match made(codec, Item::Sound(sound)).unwrap().remove(0) {
        Item::Codes(codes) => codes,
        other => panic!("expected codes, got {}", other.modality()),
    }
}

fn sound_of(codec: &dyn Pipeline, codes: Tensors) -> Sound {
    match made(codec, Item::Codes(codes)).unwrap().remove(0) {
        Item::Sound(sound) => sound,
        other => panic!("expected a sound, got {}", other.modality()),
    }
}

#[test]
fn decoded_audio_has_the_length_of_the_original() {
    for (case, channels) in
        [("encode_24khz", 1), ("encode_32khz", 1), ("encode_48khz_windows", 2), ("encode_original_names", 2)]
    {
        let codec = opened(case);
        let rate = if case == "encode_32khz" { 1500 } else { 600 };
        for samples in [1, 55, 61, 200] {
            let codes = codes_of(codec.as_ref(), tone(rate, channels, samples));
            let sound = sound_of(codec.as_ref(), codes);
            let lengths: Vec<usize> = sound.channels.iter().map(Vec::len).collect();
            assert_eq!((sound.rate, lengths), (rate, vec![samples; channels]), "{case}");
        }
    }
}

#[test]
fn audio_is_converted_to_the_codecs_rate_and_channels() {
    let codec = opened("encode_24khz");
    let codes = codes_of(codec.as_ref(), tone(1800, 2, 900));
    assert_eq!(codes["audio_codes"].dims(), [1, 1, 1, 50]);
    assert_eq!(sound_of(codec.as_ref(), codes).channels[0].len(), 300);
    let stereo = codes_of(opened("encode_48khz_windows").as_ref(), tone(300, 1, 50));
    assert_eq!(stereo["audio_codes"].dims(), [2, 1, 1, 10]);
}

#[test]
fn the_setting_bandwidth_determines_the_number_of_codebooks() {
    let mut options = LoadOptions::default();
    options.settings.insert("bandwidth".into(), json!(1.6));
    let folder = model_of("encode_24khz");
    let codec = zoo().open(folder.to_str().unwrap(), &options).unwrap();
    assert_eq!(codes_of(codec.as_ref(), tone(600, 1, 60))["audio_codes"].dims(), [1, 1, 4, 10]);
    for (bandwidth, part) in [(json!(6), "supported: 0.4, 0.8, 1.6"), (json!("high"), "a number in kbit/s")] {
        options.settings.insert("bandwidth".into(), bandwidth);
        let error = zoo().open(folder.to_str().unwrap(), &options).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn each_sound_has_one_embedding() {
    for case in ["encode_24khz", "encode_48khz_windows"] {
        let codec = opened(case);
        let sounds = [Item::Sound(tone(600, 1, 100)), Item::Sound(tone(600, 2, 333))];
        let both = codec.embed(&sounds).unwrap();
        assert_eq!(both.rows.dims(), [2, 10]);
        let alone = codec.embed(&sounds[1..]).unwrap();
        assert_eq!(both.to_vecs().unwrap()[1], alone.to_vecs().unwrap()[0]);
    }
}

fn refused<T>(result: Result<T>) -> String {
    let error: Error = result.err().expect("expected an error");
    assert_eq!(error.kind(), ErrorKind::Input, "{error}");
    error.to_string()
}

#[test]
fn items_other_than_one_sound_or_codes_are_refused() {
    let codec = opened("encode_24khz");
    let codec = codec.as_ref();
    let sound = |sound: Sound| refused(made(codec, Item::Sound(sound)));
    let nan = Sound { rate: 600, channels: vec![vec![0.0, f32::NAN]] };
    let good = codes_of(codec, tone(600, 1, 50));
    let with = |name: &str, value: i64| {
        let mut codes = good.clone();
        codes.insert(name.into(), Tensor::new(&[value], &Device::Cpu).unwrap());
        refused(made(codec, Item::Codes(codes)))
    };
    let none = refused(made(codec, Item::Codes(Tensors::new())));
    let two = Prompt::Items(vec![Item::Sound(tone(600, 1, 9)); 2]);
    let two = refused(codec.generate(&two, &GenerationConfig::default(), &mut |_| ControlFlow::Continue(())));
    let said = [
        (sound(nan), "NaN"),
        (sound(tone(0, 1, 50)), "0 Hz"),
        (sound(tone(600, 1, 0)), "sample"),
        (refused(made(codec, "words".into())), "not text"),
        (two, "not sound, sound"),
        (none, "audio_codes are missing"),
        (with("sampling_rate", 24_000), "24000 Hz, this codec is at 600 Hz"),
        (with("length", -1), "length is [-1], expected one number, 0 or above"),
        (with("lenght", 1), "no input is named \"lenght\""),
        (with("last_frame_pad_length", 99), "have no audio"),
        (refused(codec.embed(&["words".into()])), "not text"),
    ];
    for (message, part) in said {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn inputs_that_the_reference_refuses_are_refused() {
    let codec = opened("encode_48khz_windows");
    let values = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    let input = |shape: &[usize]| Tensors::from([("input_values".to_string(), values(shape))]);
    let masked = |shape: &[usize], mask: &[usize]| {
        let mut inputs = input(shape);
        inputs.insert("padding_mask".into(), values(mask));
        inputs
    };
    let call = |inputs: &Tensors, options| refused(codec.call("encode", inputs, &options));
    let none = json!({});
    let said = [
        (call(&input(&[1, 1, 50]), none.clone()), "1 channel, expected 2"),
        (call(&input(&[2, 50]), none.clone()), "(batch, channels, samples)"),
        (call(&masked(&[1, 2, 50], &[1, 2, 49]), none.clone()), "padding_mask has the shape [1, 2, 49]"),
        (call(&Tensors::new(), none), "input_values are missing"),
        (call(&input(&[1, 2, 50]), json!({"bandwidth": 5.0})), "supported: 0.4, 0.8, 1.6"),
    ];
    for (message, part) in said {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(codec.call("sing", &Tensors::new(), &json!({})).unwrap_err().kind(), ErrorKind::Unsupported);
}

/// A folder with only original files of these names.
fn original(names: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in names {
        let file = model_of("encode_original_names").join("encodec_tiny.th");
        std::fs::copy(file, folder.path().join(name)).unwrap();
    }
    folder
}

fn parameters(folder: &Path) -> u64 {
    zoo().inventory(folder.to_str().unwrap(), &LoadOptions::default()).unwrap().1.parameters
}

#[test]
fn a_folder_with_only_an_original_file_is_a_released_codec() {
    // The reference's parameters, with the codebooks.
    assert_eq!(parameters(original(&["encodec_24khz-d7cc33bc.th"]).path()), 19_046_114);
    assert_eq!(parameters(original(&["encodec_48khz-7e698e3e.th"]).path()), 16_953_446);
    let folder = original(&["encodec_48khz-7e698e3e.th"]);
    let error = zoo().open(folder.path().to_str().unwrap(), &LoadOptions::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    assert!(error.to_string().contains("decoder.model.0.conv.conv"), "{error}");
}

#[test]
fn one_of_two_original_files_in_one_folder_must_be_chosen() {
    let folder = original(&["encodec_24khz-d7cc33bc.th", "encodec_48khz-7e698e3e.th"]);
    let error = refused(zoo().open(folder.path().to_str().unwrap(), &LoadOptions::default()));
    assert!(error.contains("encodec_24khz-d7cc33bc.th, encodec_48khz-7e698e3e.th"), "{error}");
    let file = folder.path().join("encodec_48khz-7e698e3e.th");
    let error = zoo().open(file.to_str().unwrap(), &LoadOptions::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
}
