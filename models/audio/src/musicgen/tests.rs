use std::ops::ControlFlow;

use candle_core::{DType, Device, IndexOp, Tensor};
use fauna_shared::audio::chroma::ChromaConfig;
use fauna_shared::audio::sinc::Sinc;
use fauna_shared::generate::GenerationConfig;
use fauna_shared::item::{Item, Prompt, Sound};
use fauna_shared::model::Model;
use fauna_shared::runtime::Runtime;
use fauna_shared::text::Tokenizer;
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};
use serde_json::{Value, json};

use super::{Config, MusicGen, MusicGenPipeline, MusicGenerator, MusicPrompt};

/// The sample's config with `changes`: 600 samples and 100 frames a second, four codebooks of 32.
fn config(changes: &[(&str, &str, Value)]) -> Config {
    let mut config = (crate::musicgen::FAMILY.sample)();
    for (part, key, value) in changes {
        match *part {
            "" => config[*key] = value.clone(),
            part => config[part][*key] = value.clone(),
        }
    }
    serde_json::from_value(config).unwrap()
}

fn generator(changes: &[(&str, &str, Value)]) -> MusicGenerator {
    // Random weights, so that outputs depend on the inputs.
    let network = MusicGen::load(config(changes), &Weights::seeded(5, Runtime::cpu())).unwrap();
    MusicGenerator::new(network)
}

fn with_melody() -> MusicGenerator {
    let generator = generator(&[
        ("", "model_type", json!("musicgen_melody")),
        ("", "chroma_length", json!(6)),
        ("decoder", "audio_channels", json!(2)),
        ("decoder", "num_codebooks", json!(8)),
    ]);
    let chroma = ChromaConfig { sampling_rate: 2000, n_fft: 256, hop_length: 64, ..ChromaConfig::default() };
    generator.with_chroma(chroma).unwrap()
}

fn sampled(seconds: f64) -> GenerationConfig {
    GenerationConfig {
        temperature: 1.0,
        top_k: 250,
        guidance: 3.0,
        seconds: Some(seconds),
        ..GenerationConfig::default()
    }
}

fn tone(rate: u32, samples: usize) -> Sound {
    let sample = |t: usize| 0.4 * (t as f32 * 300.0 / rate as f32).sin();
    Sound { rate, channels: vec![(0..samples).map(sample).collect()] }
}

/// The codes of every prompt, and the chunks of its audio.
fn generated(
    generator: &MusicGenerator,
    prompts: &[MusicPrompt],
    options: &GenerationConfig,
) -> Result<Vec<(Tensor, Vec<Sound>)>> {
    let mut sounds = vec![Vec::new(); prompts.len()];
    let codes = generator.generate(prompts, options, &mut |prompt, sound| {
        sounds[prompt].push(sound);
        ControlFlow::Continue(())
    })?;
    Ok(codes.into_iter().zip(sounds).collect())
}

fn codes_of(generator: &MusicGenerator, prompt: &MusicPrompt, options: &GenerationConfig) -> Vec<Vec<i64>> {
    generated(generator, std::slice::from_ref(prompt), options).unwrap()[0].0.to_vec2().unwrap()
}

fn refused(generator: &MusicGenerator, prompt: MusicPrompt, options: &GenerationConfig) -> Error {
    generated(generator, &[prompt], options).unwrap_err()
}

#[test]
fn streamed_chunks_equal_decoding_as_a_whole() {
    for generator in [generator(&[]), with_melody()] {
        let (codes, pieces) =
            generated(&generator, &[MusicPrompt::default()], &sampled(1.23)).unwrap().remove(0);
        let codebooks = generator.network().config().decoder.num_codebooks;
        assert_eq!(codes.dims(), [codebooks, 123]);
        assert!(pieces.len() > 2, "{} pieces", pieces.len());
        let whole = generator.network().decode(&codes.unsqueeze(0).unwrap()).unwrap().i(0).unwrap();
        let whole: Vec<Vec<f32>> = whole.t().unwrap().to_vec2().unwrap();
        for (channel, whole) in whole.iter().enumerate() {
            let joined: Vec<f32> = pieces.iter().flat_map(|piece| piece.channels[channel].clone()).collect();
            assert_eq!((joined.len(), pieces[0].rate), (123 * 6, 600));
            let off = joined.iter().zip(whole).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(off < 1e-6, "channel {channel} is off by {off}");
        }
    }
}

#[test]
fn seconds_determine_frames_and_max_new_tokens_columns() {
    let generator = generator(&[]);
    let frames = |options: &GenerationConfig| codes_of(&generator, &MusicPrompt::default(), options)[0].len();
    assert_eq!(frames(&sampled(0.57)), 57);
    assert_eq!(frames(&sampled(0.01)), 1);
    assert_eq!(frames(&GenerationConfig { max_new_tokens: 17, ..GenerationConfig::default() }), 14);
}

#[test]
fn equal_seeds_give_equal_codes_and_different_seeds_different_ones() {
    let generator = generator(&[]);
    let with =
        |seed| codes_of(&generator, &MusicPrompt::default(), &GenerationConfig { seed, ..sampled(0.4) });
    assert_eq!(with(1), with(1));
    assert_ne!(with(1), with(2));
}

#[test]
fn an_element_of_a_batch_is_reproducible_alone() {
    let generator = with_melody();
    let prompts = [
        MusicPrompt::default(),
        MusicPrompt { melody: Some(tone(2000, 1500)), ..MusicPrompt::default() },
        // Another length, so another batch.
        MusicPrompt { audio_prompt: Some(tone(600, 100)), ..MusicPrompt::default() },
        MusicPrompt { melody: Some(tone(4000, 4000)), ..MusicPrompt::default() },
    ];
    let together = generated(&generator, &prompts, &sampled(0.5)).unwrap();
    for (index, prompt) in prompts.iter().enumerate() {
        let alone =
            codes_of(&generator, prompt, &GenerationConfig { stream: 8 * index as u64, ..sampled(0.5) });
        assert_eq!(together[index].0.to_vec2::<i64>().unwrap(), alone, "prompt {index}");
    }
}

#[test]
fn an_audio_prompt_is_continued() {
    let generator = generator(&[]);
    let prompt = MusicPrompt { audio_prompt: Some(tone(1200, 400)), ..MusicPrompt::default() };
    let codes = codes_of(&generator, &prompt, &sampled(0.6));
    let resampled = Sinc::JULIUS.resample(&tone(1200, 400).channels[0], 1200, 600).unwrap();
    assert_eq!(resampled.len(), 200);
    let given = Tensor::from_vec(resampled, (1, 200, 1), &Device::Cpu).unwrap();
    let given: Vec<Vec<i64>> = generator.network().encode(&given).unwrap().i(0).unwrap().to_vec2().unwrap();
    // 200 samples are 33 frames and a third of one.
    assert_eq!((given[0].len(), codes[0].len()), (34, 60));
    for (codes, given) in codes.iter().zip(&given) {
        assert_eq!(codes[..34], given[..]);
    }
}

#[test]
fn the_first_window_equals_the_generation_of_one_window() {
    let generator = with_melody().with_windows(0.5, 0.3).unwrap();
    let prompt = MusicPrompt { melody: Some(tone(2000, 1000)), ..MusicPrompt::default() };
    // A melody as long as the window is not repeated.
    let (short, long) = (sampled(0.5), sampled(1.1));
    let (short, long) = (codes_of(&generator, &prompt, &short), codes_of(&generator, &prompt, &long));
    for (short, long) in short.iter().zip(&long) {
        assert_eq!((short.len(), long.len()), (50, 110));
        assert_eq!(short[..], long[..50]);
    }
}

#[test]
fn an_unconditional_prompt_has_no_guidance() {
    let generator = generator(&[]);
    let with = |guidance| {
        codes_of(&generator, &MusicPrompt::default(), &GenerationConfig { guidance, ..sampled(0.3) })
    };
    assert_eq!(with(3.0), with(1.0));
}

#[test]
fn a_caller_can_end_the_generation() {
    let generator = generator(&[]);
    let mut heard = 0;
    let codes = generator.generate(
        &[MusicPrompt::default(), MusicPrompt::default()],
        &sampled(20.0),
        &mut |_, sound| {
            heard += sound.channels[0].len();
            ControlFlow::Break(())
        },
    );
    let codes = codes.unwrap();
    assert!(heard > 0 && heard <= 300, "{heard}");
    assert!(codes.iter().all(|codes| codes.dim(1).unwrap() == 50));
}

#[test]
fn silence_and_a_single_sample_are_valid_audio() {
    let generator = with_melody();
    let one = Sound { rate: 600, channels: vec![vec![0.5]] };
    let silence = Sound { rate: 600, channels: vec![vec![0.0; 60]; 2] };
    for beginning in [one.clone(), silence.clone()] {
        let prompt = MusicPrompt { audio_prompt: Some(beginning), ..MusicPrompt::default() };
        assert_eq!(codes_of(&generator, &prompt, &sampled(0.3))[0].len(), 30);
    }
    for melody in [one, silence] {
        let prompt = MusicPrompt { melody: Some(melody), ..MusicPrompt::default() };
        assert_eq!(codes_of(&generator, &prompt, &sampled(0.3))[0].len(), 30);
    }
}

#[test]
fn invalid_prompts_and_options_are_refused() {
    let plain = generator(&[]);
    let sound = |channels: Vec<Vec<f32>>, rate| Sound { rate, channels };
    let beginning = |sound| MusicPrompt { audio_prompt: Some(sound), ..MusicPrompt::default() };
    let melody = MusicPrompt { melody: Some(tone(600, 60)), ..MusicPrompt::default() };
    let words = MusicPrompt { text: "a march".into(), ..MusicPrompt::default() };
    let said = [
        (refused(&plain, MusicPrompt::default(), &sampled(0.0)), "seconds"),
        (refused(&plain, MusicPrompt::default(), &sampled(0.001)), "shorter than one frame"),
        (refused(&plain, melody, &sampled(1.0)), "no melody conditioning"),
        (refused(&plain, words, &sampled(1.0)), "tokenizer"),
        (refused(&plain, beginning(sound(vec![vec![0.0, f32::NAN]], 600)), &sampled(1.0)), "NaN"),
        (refused(&plain, beginning(sound(vec![vec![]], 600)), &sampled(1.0)), "without samples"),
        (refused(&plain, beginning(sound(vec![vec![0.0; 9]], 0)), &sampled(1.0)), "rate of 0"),
        (refused(&plain, beginning(tone(600, 600)), &sampled(0.5)), "seconds include the audio"),
        (
            refused(
                &plain,
                beginning(tone(600, 60)),
                &GenerationConfig { max_new_tokens: 3, ..GenerationConfig::default() },
            ),
            "max_new_tokens 3",
        ),
    ];
    for (error, part) in said {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
}

#[test]
fn a_text_longer_than_the_maximum_is_refused() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/tests/tokenizers/t5");
    let tokenizer = Tokenizer::from_folder(folder).unwrap();
    let generator = generator(&[("text_encoder", "vocab_size", json!(4000))]).with_tokenizer(Some(tokenizer));
    let words = |words: String| MusicPrompt { text: words, ..MusicPrompt::default() };
    let error = refused(&generator, words("drums ".repeat(600)), &sampled(0.2));
    assert!(error.to_string().contains("the maximum is 512"), "{error}");
    assert_eq!(codes_of(&generator, &words("drums".into()), &sampled(0.2))[0].len(), 20);
}

#[test]
fn configs_of_parts_that_do_not_match_are_refused() {
    let refused = |part: &str, key: &str, value: Value| {
        let config = config(&[(part, key, value)]);
        MusicGen::load(config, &Weights::meta()).err().unwrap().to_string()
    };
    let said = [
        (refused("decoder", "num_codebooks", json!(3)), "4 codebooks of 32, the language model 3 of 32"),
        (refused("decoder", "vocab_size", json!(64)), "of 64"),
        (refused("decoder", "audio_channels", json!(3)), "3 audio channels"),
        (refused("decoder", "audio_channels", json!(2)), "the language model 2 of 32"),
        (refused("decoder", "num_attention_heads", json!(5)), "num_attention_heads"),
        (refused("decoder", "pad_token_id", json!(40)), "pad_token_id"),
        (refused("decoder", "cross_attention_hidden_size", json!(24)), "cross_attention_hidden_size"),
        (refused("audio_encoder", "normalize", json!(true)), "normalize"),
    ];
    for (message, part) in said {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn decoding_steps_equal_one_forward_pass() {
    let generator = generator(&[]);
    let network = generator.network();
    let codes: Vec<u32> = (0..2 * 7 * 4).map(|i| (i * 7 % 33) as u32).collect();
    let text =
        network.encode_text(&Tensor::new(&[[5u32, 9, 1], [7, 8, 1]], &Device::Cpu).unwrap(), None).unwrap();
    let condition = network.condition(Some(&text), None, false).unwrap();
    let mut state = network.decoder().start(&condition, 7).unwrap();
    let whole = network.decoder().forward(&codes, 2, &mut state).unwrap();
    let mut state = network.decoder().start(&condition, 7).unwrap();
    let mut steps = Vec::new();
    for t in 0..7 {
        let step = [&codes[t * 4..][..4], &codes[(7 + t) * 4..][..4]].concat();
        steps.push(network.decoder().forward(&step, 2, &mut state).unwrap());
    }
    let off = (whole - Tensor::cat(&steps, 1).unwrap()).unwrap().abs().unwrap().flatten_all().unwrap();
    let off: f32 = off.max(0).unwrap().to_dtype(DType::F32).unwrap().to_scalar().unwrap();
    assert!(off < 1e-5, "{off}");
}

#[test]
fn the_released_sizes_have_the_right_number_of_parameters() {
    // Counted on the reference's classes, in units of 100 000.
    let sizes = [
        ("musicgen-small", 4196),
        ("musicgen-stereo-small", 4364),
        ("musicgen-medium", 18376),
        ("musicgen-large", 32554),
        ("musicgen-melody", 13844),
    ];
    for (name, wanted) in sizes {
        let path = format!("{}/../../benches/configs/{name}/config.json", env!("CARGO_MANIFEST_DIR"));
        let config = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let weights = Weights::meta();
        MusicGen::load(config, &weights).unwrap();
        let tensors = weights.finish().unwrap().tensors;
        let of_decoder = tensors.iter().filter(|(tensor, _)| tensor.starts_with("decoder."));
        let parameters: usize = of_decoder.map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!((parameters + 50_000) / 100_000, wanted, "{name}");
    }
}

#[test]
fn a_sound_before_the_text_is_the_melody_and_one_at_the_end_is_continued() {
    let sound = |samples| Item::Sound(tone(600, samples));
    let prompt = |items: Vec<Item>| {
        let prompt = MusicGenPipeline::music_prompt(&Prompt::Items(items))?;
        let samples = |sound: Option<Sound>| sound.map_or(0, |sound| sound.channels[0].len());
        Ok::<_, Error>((samples(prompt.melody), prompt.text, samples(prompt.audio_prompt)))
    };
    assert_eq!(prompt(vec!["a".into(), "b".into()]).unwrap(), (0, "ab".into(), 0));
    assert_eq!(prompt(vec![sound(1), "a".into()]).unwrap(), (1, "a".into(), 0));
    assert_eq!(prompt(vec!["a".into(), sound(2)]).unwrap(), (0, "a".into(), 2));
    assert_eq!(prompt(vec![sound(1), "".into(), sound(2)]).unwrap(), (1, "".into(), 2));
    assert_eq!(prompt(vec![]).unwrap(), (0, "".into(), 0));
    assert!(prompt(vec![sound(1), sound(2), "a".into()]).unwrap_err().to_string().contains("melody"));
    assert!(prompt(vec![Item::Gene("ACGT".into())]).unwrap_err().to_string().contains("gene"));
}
