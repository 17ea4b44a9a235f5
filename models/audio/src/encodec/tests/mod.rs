//! Streaming against whole audio, and errors for invalid inputs.

mod pipeline;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use fauna_shared::ErrorKind;
use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::generate::Rng;
use fauna_shared::model::Model;
use fauna_shared::runtime::Runtime;
use fauna_shared::weights::Weights;

use super::*;

/// The checkpoint of a parity case.
fn model_of(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/encodec").join(case).join("model")
}

/// The codec of a parity case.
fn codec_with(case: &str, change: impl FnOnce(&mut Config)) -> Encodec {
    let folder = model_of(case);
    let text = std::fs::read(folder.join("config.json")).unwrap();
    let mut config: Config = serde_json::from_slice(&text).unwrap();
    change(&mut config);
    let checkpoint = Checkpoint::open_folder(&folder).unwrap();
    let weights = Weights::open(&checkpoint, rename, Runtime::cpu()).unwrap();
    Encodec::load(config, &weights).unwrap()
}

fn codec(case: &str) -> Encodec {
    codec_with(case, |_| ())
}

fn noise(shape: (usize, usize, usize)) -> Tensor {
    let mut rng = Rng::new(1, 0);
    let values: Vec<f32> = (0..shape.0 * shape.1 * shape.2).map(|_| rng.uniform() as f32 - 0.5).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn codes_for(codec: &Encodec, batch: usize, frames: usize) -> Tensor {
    let (size, books) = (codec.config().codebook_size, codec.config().num_quantizers());
    let mut rng = Rng::new(2, 0);
    let codes: Vec<u32> = (0..batch * books * frames).map(|_| (rng.uniform() * size as f64) as u32).collect();
    Tensor::from_vec(codes, (batch, books, frames), &Device::Cpu).unwrap()
}

fn largest(x: &Tensor) -> f32 {
    x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

/// The largest difference of `a` and `b`, relative to the largest value of `b`.
fn relative_error(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    largest(&(a - b).unwrap()) / largest(b)
}

/// Cases whose codecs stream, with all variants of their convolutions.
const STREAMING: [&str; 7] = [
    "encode_24khz",
    "encode_32khz",
    "encode_two_residual_layers",
    "encode_three_residual_layers_identity",
    "encode_replicate",
    "encode_constant_even_kernels",
    "decode_24khz_trim_right_ratio",
];

#[test]
fn streaming_decoding_equals_decoding_as_a_whole() {
    for case in STREAMING {
        let codec = codec(case);
        for frames in [1, 2, 3, 4, 5, 9, 40] {
            let codes = codes_for(&codec, 2, frames);
            let whole = codec.decode_codes(&codes).unwrap();
            assert_eq!(whole.dim(1).unwrap(), frames * codec.config().hop_length());
            for piece in [1, 2, 3, 7] {
                let mut stream = codec.decode_stream().unwrap();
                let mut made = Vec::new();
                for from in (0..frames).step_by(piece) {
                    let codes = codes.narrow(2, from, piece.min(frames - from)).unwrap();
                    made.extend(codec.decode_next(&codes, &mut stream).unwrap());
                }
                made.extend(codec.decode_rest(stream).unwrap());
                let off = relative_error(&Tensor::cat(&made, 1).unwrap(), &whole);
                assert!(off < 1e-5, "{case}: {frames} frames in pieces of {piece} are off by {off}");
            }
        }
    }
}

#[test]
fn streaming_encoding_has_the_latents_of_encoding_as_a_whole() {
    for case in STREAMING {
        let codec = codec(case);
        for samples in [1, 2, 5, 6, 7, 30, 31, 200] {
            let sound = noise((2, samples, codec.config().audio_channels));
            let whole = codec.encoder.forward(&sound).unwrap();
            assert_eq!(whole.dim(1).unwrap(), samples.div_ceil(codec.config().hop_length()));
            for piece in [1, 4, 13, 64] {
                let mut state = codec.encoder.start();
                let mut made = Vec::new();
                for from in (0..samples).step_by(piece) {
                    let sound = sound.narrow(1, from, piece.min(samples - from)).unwrap();
                    made.extend(codec.encoder.push(Some(&sound), false, &mut state).unwrap());
                }
                made.extend(codec.encoder.push(None, true, &mut state).unwrap());
                let off = relative_error(&Tensor::cat(&made, 1).unwrap(), &whole);
                assert!(off < 1e-5, "{case}: {samples} samples in pieces of {piece} are off by {off}");
            }
        }
    }
}

#[test]
fn streaming_encoding_has_the_codes_of_encoding_as_a_whole() {
    let codec = codec("encode_24khz");
    let sound = noise((1, 95, 1));
    let whole = codec.encode(&sound, Some(1.6)).unwrap().codes.squeeze(0).unwrap();
    let mut stream = codec.encode_stream().unwrap();
    let mut made = Vec::new();
    for from in (0..95).step_by(10) {
        let sound = sound.narrow(1, from, 10.min(95 - from)).unwrap();
        made.extend(codec.encode_next(&sound, Some(1.6), &mut stream).unwrap());
    }
    made.extend(codec.encode_rest(Some(1.6), stream).unwrap());
    let made = Tensor::cat(&made, 2).unwrap();
    assert_eq!(made.to_vec3::<u32>().unwrap(), whole.to_vec3::<u32>().unwrap());
}

#[test]
fn causal_streaming_has_no_latency_and_the_32_khz_codec_four_frames() {
    for (causal, late) in [(true, 0), (false, 4)] {
        let config = Config {
            use_causal_conv: causal,
            upsampling_ratios: vec![8, 5, 4, 4],
            num_filters: 2,
            hidden_size: 4,
            codebook_size: 16,
            ..Config::default()
        };
        let codec = Encodec::load(config, &Weights::seeded(1, Runtime::cpu())).unwrap();
        let mut stream = codec.decode_stream().unwrap();
        let mut samples = 0;
        for frame in 1..=12 {
            let codes = codes_for(&codec, 1, 1);
            samples += codec.decode_next(&codes, &mut stream).unwrap().map_or(0, |sound| sound.dims()[1]);
            // The first output needs the frames of the reflection padding.
            let wanted = if frame > 6 { (frame - late) * codec.config().hop_length() } else { 0 };
            assert!(samples >= wanted, "{samples} samples of {frame} frames");
        }
    }
}

#[test]
fn a_batch_equals_its_elements_alone() {
    for case in ["encode_24khz", "encode_48khz_windows"] {
        let codec = codec(case);
        let sound = noise((2, 170, codec.config().audio_channels));
        let both = codec.encode(&sound, None).unwrap();
        let decoded = codec.decode(&both).unwrap();
        for row in 0..2 {
            let one = codec.encode(&sound.narrow(0, row, 1).unwrap(), None).unwrap();
            let codes = both.codes.narrow(1, row, 1).unwrap().flatten_all().unwrap();
            assert_eq!(
                codes.to_vec1::<u32>().unwrap(),
                one.codes.flatten_all().unwrap().to_vec1::<u32>().unwrap(),
                "{case}"
            );
            let off = relative_error(&decoded.narrow(0, row, 1).unwrap(), &codec.decode(&one).unwrap());
            assert!(off < 1e-5, "{case}: row {row} is off by {off}");
        }
    }
}

#[test]
fn audio_of_any_length_is_encoded_in_windows() {
    let codec = codec("encode_48khz_windows");
    let windows = codec.config().windows().unwrap();
    for samples in 1..=windows.stride * 2 + windows.length + 1 {
        let encoded = codec.encode(&noise((1, samples, 2)), None).unwrap();
        assert_eq!(encoded.codes.dim(0).unwrap(), samples.div_ceil(windows.stride));
        let decoded = codec.decode(&encoded).unwrap();
        assert!(decoded.dim(1).unwrap() >= samples, "{samples}");
    }
}

#[test]
fn silence_is_encoded_without_nan() {
    for case in ["encode_24khz", "encode_48khz_windows", "encode_normalized_without_windows"] {
        let codec = codec(case);
        let silence = noise((1, 120, codec.config().audio_channels)).zeros_like().unwrap();
        let encoded = codec.encode(&silence, None).unwrap();
        let values: Vec<f32> = codec.decode(&encoded).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!(values.iter().all(|value| value.is_finite()), "{case}");
    }
}

fn refused<T>(result: Result<T>) -> String {
    let error = result.err().expect("expected an error");
    assert_eq!(error.kind(), ErrorKind::Input, "{error}");
    error.to_string()
}

#[test]
fn invalid_audio_is_refused() {
    let codec = codec("encode_24khz");
    let nan = Tensor::new(&[[[0f32], [f32::NAN]]], &Device::Cpu).unwrap();
    let said = [
        (refused(codec.encode(&noise((1, 50, 2)), None)), "2 channels, expected 1"),
        (refused(codec.encode(&noise((1, 0, 1)), None)), "no samples"),
        (refused(codec.encode(&noise((1, 50, 1)).squeeze(0).unwrap(), None)), "(batch, samples, channels)"),
        (refused(codec.encode(&nan, None)), "sample 1"),
        (refused(codec.encode(&noise((1, 50, 1)), Some(5.0))), "supported: 0.4, 0.8, 1.6"),
    ];
    for (message, part) in said {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(codec.encode(&noise((1, 1, 1)), None).unwrap().codes.dims(), [1, 1, 1, 1]);
}

#[test]
fn invalid_codes_are_refused() {
    let (plain, windowed) = (codec("encode_24khz"), codec("encode_48khz_windows"));
    let codes = |shape: &[usize], code: i64| {
        (Tensor::ones(shape, DType::I64, &Device::Cpu).unwrap() * code as f64).unwrap()
    };
    let encoded = |codes: Tensor| Encoded { codes, scales: None, last_frame_pad_length: 0 };
    let said = [
        (refused(plain.decode(&encoded(codes(&[1, 1, 2, 3], 16)))), "code 16 is outside the codebook of 16"),
        (refused(plain.decode(&encoded(codes(&[1, 1, 2, 3], -1)))), "code -1"),
        (refused(plain.decode(&encoded(codes(&[1, 1, 5, 3], 1)))), "5 codebooks, but the codec has 4"),
        (refused(plain.decode(&encoded(codes(&[2, 1, 2, 3], 1)))), "2 windows of codes, expected one"),
        (refused(plain.decode(&encoded(codes(&[1, 2, 3], 1)))), "(windows, batch, codebooks, frames)"),
        (refused(plain.decode(&encoded(codes(&[1, 1, 0, 3], 1)))), "not empty"),
        (refused(plain.decode(&encoded(codes(&[1, 1, 2, 0], 1)))), "have no audio"),
        (refused(plain.decode_codes(&noise((1, 2, 3)))), "integers"),
        (refused(windowed.decode(&encoded(codes(&[3, 1, 2, 2], 1)))), "leave gaps"),
        (
            refused(
                windowed
                    .decode(&Encoded { scales: Some(noise((3, 1, 1))), ..encoded(codes(&[2, 1, 2, 10], 1)) }),
            ),
            "expected (windows, batch, 1)",
        ),
        (
            refused(plain.decode(&Encoded { last_frame_pad_length: 3, ..encoded(codes(&[1, 1, 2, 3], 1)) })),
            "have no audio",
        ),
    ];
    for (message, part) in said {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn codecs_with_windows_or_norms_over_time_do_not_stream() {
    for case in ["encode_48khz_windows", "encode_circular", "encode_normalized_without_windows"] {
        assert_eq!(codec(case).decode_stream().unwrap_err().kind(), ErrorKind::Unsupported, "{case}");
    }
}

#[test]
fn long_audio_is_processed_in_chunks() {
    // Long enough that the networks split it into chunks.
    let codec = codec("encode_32khz");
    let sound = noise((1, 1_100_000, 1));
    let whole = codec.encode(&sound, None).unwrap();
    let part = codec.encode(&sound.narrow(1, 0, 3000).unwrap(), None).unwrap();
    let head =
        |codes: &Tensor| codes.narrow(3, 0, 150).unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap();
    assert_eq!(head(&whole.codes), head(&part.codes));
    assert_eq!(codec.decode(&whole).unwrap().dim(1).unwrap(), 1_100_010);

    // The same result as with chunks too short to be split.
    let frames = pushed(&codec.encoder, &sound, 50_000);
    assert!(relative_error(&codec.encoder.forward(&sound).unwrap(), &frames) < 1e-5);
    assert!(
        relative_error(&codec.decoder.forward(&frames).unwrap(), &pushed(&codec.decoder, &frames, 1000))
            < 1e-5
    );
}

fn pushed(network: &Seanet, x: &Tensor, piece: usize) -> Tensor {
    let (mut state, time) = (network.start(), x.dim(1).unwrap());
    let mut push = |from: usize| {
        let x = x.narrow(1, from, piece.min(time - from)).unwrap();
        network.push(Some(&x), from + piece >= time, &mut state).unwrap()
    };
    let made: Vec<Tensor> = (0..time).step_by(piece).filter_map(&mut push).collect();
    Tensor::cat(&made, 1).unwrap()
}
