//! Tests of the whole program: audio.

#[allow(dead_code, reason = "shared with the tests of other commands, which use all of it")]
#[path = "support/program.rs"]
mod program;

use std::path::Path;

use fauna::sound::{read, write};
use fauna::{Item, Sound};
use program::{Done, json_lines, refused, run, served, text};

const MUSICGEN: &str = "tests/parity/musicgen/generate_mono_guided/model";
const ENCODEC: &str = "tests/parity/encodec/encode_24khz/model";
const LLAMA: &str = "tests/parity/llama/text_left_padding/model";

/// Returns a folder with `tone.wav`, one second at 8 kHz.
fn with_tone() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tone =
        Sound { rate: 8000, channels: vec![(0..8000).map(|t| (t as f32 * 0.3).sin() * 0.4).collect()] };
    write::write(folder.path().join("tone.wav"), &tone, write::Samples::Int16, write::Level::Keep).unwrap();
    folder
}

/// Reads an audio file that the program wrote.
fn heard(path: &Path) -> Sound {
    let decoded = read::read(path).unwrap();
    assert_eq!(decoded.damage, None);
    decoded.sound
}

/// Asserts exit status 0.
#[track_caller]
fn done(done: &Done) {
    assert_eq!(done.status, 0, "{}", done.err);
}

#[test]
fn music_has_the_requested_duration_and_is_deterministic() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let make = |name: &str, seed: &str| {
        let path = file(name);
        let arguments =
            ["compose", MUSICGEN, "", "--seconds", "1.5", "--seed", seed, "--out", text(&path), "--json"];
        let made = run(&arguments);
        done(&made);
        let said = json_lines(&made.out).remove(0);
        assert_eq!(said["files"][0]["file"], text(&path));
        let sound = heard(&path);
        let seconds = sound.channels[0].len() as f64 / f64::from(sound.rate);
        assert_eq!(said["files"][0]["seconds"], seconds);
        assert!((seconds - 1.5).abs() < 0.1, "{seconds} s");
        sound
    };
    let one = make("one.wav", "1");
    assert_eq!(make("again.wav", "1"), one);
    assert_ne!(make("two.wav", "2"), one);
    assert!(one.channels[0].iter().any(|sample| sample.abs() > 1e-4), "silence");
}

#[test]
fn several_prompts_are_written_to_numbered_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("song.wav");
    let drawn = path.with_extension("png");
    let draw = ["--spectrogram", text(&drawn)];
    done(&run(
        &[&["compose", MUSICGEN, "", "", "--seconds", "0.5", "--out", text(&path)], &draw[..]].concat()
    ));
    for number in [1, 2] {
        let name = format!("{}-{number}.png", path.file_stem().unwrap().to_str().unwrap());
        assert!(std::fs::read(path.with_file_name(name)).unwrap().starts_with(b"\x89PNG"));
    }
    let piped = run(&[&["compose", MUSICGEN, "", "--seconds", "0.5", "--out", "-"], &draw[..]].concat());
    refused(&piped, 2, &["--spectrogram", "--out FILE.wav"]);
    let (one, two) = (heard(&folder.path().join("song-1.wav")), heard(&folder.path().join("song-2.wav")));
    assert_eq!(one.channels[0].len(), two.channels[0].len());
    assert_ne!(one, two, "the prompts of a batch have random streams of their own");
    assert!(!path.exists());
}

#[test]
fn raw_samples_are_those_of_the_wav_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("song.wav");
    let make = |out: &str| {
        let arguments =
            ["compose", MUSICGEN, "", "--seconds", "0.5", "--loudness", "keep", "--quiet", "--out", out];
        std::process::Command::new(env!("CARGO_BIN_EXE_fauna")).args(arguments).output().unwrap()
    };
    assert!(make(text(&path)).status.success());
    let raw = make("-");
    assert!(raw.status.success());
    let samples = heard(&path).channels.remove(0);
    assert_eq!(raw.stdout.len(), 2 * samples.len());
    let first = i16::from_le_bytes(raw.stdout[..2].try_into().unwrap());
    assert_eq!(f32::from(first) / 32768.0, samples[0]);
}

#[test]
fn a_continuation_starts_with_its_audio_prompt() {
    let folder = with_tone();
    let file = |name: &str| folder.path().join(name);
    let (tone, out) = (file("tone.wav"), file("on.wav"));
    done(&run(&["compose", MUSICGEN, "--audio", text(&tone), "--seconds", "2", "--out", text(&out)]));
    let sound = heard(&out);
    assert!((sound.channels[0].len() as f64 / f64::from(sound.rate) - 2.0).abs() < 0.1);
    let shorter = run(&[
        "compose",
        MUSICGEN,
        "--audio",
        text(&tone),
        "--seconds",
        "0.5",
        "--out",
        text(&file("x.wav")),
    ]);
    refused(&shorter, 2, &["s"]);
}

#[test]
fn a_codec_encodes_audio_to_codes_and_decodes_them() {
    let folder = with_tone();
    let file = |name: &str| folder.path().join(name);
    let (tone, codes, again) = (file("tone.wav"), file("codes.safetensors"), file("again.wav"));
    done(&run(&["codec", "encode", ENCODEC, "--audio", text(&tone), "--out", text(&codes)]));
    done(&run(&["codec", "decode", ENCODEC, "--codes", text(&codes), "--out", text(&again)]));
    let sound = heard(&again);
    assert_eq!(sound.channels[0].len(), sound.rate as usize, "one second");
    let more = [
        "codec",
        "encode",
        ENCODEC,
        "--audio",
        text(&tone),
        "--out",
        text(&codes),
        "--force",
        "--set",
        "bandwidth=1.6",
    ];
    let codebooks = || fauna::weights::tensors(&codes).unwrap()["audio_codes"].dim(2).unwrap();
    let few = codebooks();
    done(&run(&more));
    assert!(codebooks() > few);
    refused(&run(&[&more[..7], &["--force", "--set", "bandwidth=99"]].concat()), 2, &["99", "0.4"]);
}

#[test]
fn output_files_are_checked_before_generation() {
    let folder = with_tone();
    let tone = folder.path().join("tone.wav");
    refused(&run(&["compose", MUSICGEN, ""]), 2, &["--out"]);
    refused(&run(&["compose", MUSICGEN, "", "--out", text(&tone)]), 2, &["tone.wav", "--force"]);
    refused(&run(&["compose", MUSICGEN, "", "--out", text(folder.path())]), 2, &["folder"]);
    refused(&run(&["compose", MUSICGEN, "", "--out", "-", "--json"]), 2, &["standard output"]);
    refused(&run(&["compose", MUSICGEN, "", "", "--out", "-"]), 2, &["several"]);
    let mp3 = folder.path().join("song.mp3");
    refused(&run(&["compose", MUSICGEN, "", "--seconds", "0.5", "--out", text(&mp3)]), 2, &[".wav"]);
}

#[test]
fn invalid_durations_and_audio_files_are_errors() {
    let folder = with_tone();
    let file = |name: &str| folder.path().join(name);
    let out = file("out.wav");
    let music = |more: &[&str]| run(&[&["compose", MUSICGEN, "", "--out", text(&out)], more].concat());
    refused(&music(&["--seconds", "0"]), 2, &["seconds must be above 0"]);
    refused(&music(&["--seconds", "nan"]), 2, &["seconds"]);
    refused(&run(&["compose", LLAMA, "the", "--seconds", "2"]), 2, &["does not support compose", "generate"]);
    refused(&music(&["--melody", text(&file("tone.wav"))]), 2, &["melody"]);
    refused(&music(&["--audio", text(&file("nowhere.wav"))]), 2, &["nowhere.wav"]);
    std::fs::write(file("not.wav"), b"these are words, and no sound at all").unwrap();
    refused(&music(&["--audio", text(&file("not.wav"))]), 2, &["not.wav"]);
    let many = Sound { rate: 8000, channels: vec![vec![0.1; 800]; 11] };
    write::write(file("many.wav"), &many, write::Samples::Int16, write::Level::Keep).unwrap();
    assert!(!out.exists(), "no file is written");
    let mixed = music(&["--audio", text(&file("many.wav")), "--seconds", "1"]);
    assert_eq!(mixed.status, 0, "{}", mixed.err);
    assert!(mixed.err.contains("many.wav: 11 channels: a mono model gets their mean"), "{}", mixed.err);
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_fauna"))
        .args(["compose", MUSICGEN, "", "--seconds", "0.5", "--out", "-"])
        .stdout(full)
        .output()
        .unwrap();
    refused(&made.into(), 2, &["No space left"]);
}

#[test]
fn silence_and_a_single_sample_are_valid_audio() {
    let folder = tempfile::tempdir().unwrap();
    let model = fauna::open(ENCODEC).unwrap();
    for samples in [vec![0.0; 600], vec![0.25]] {
        let sound = Sound { rate: 600, channels: vec![samples] };
        let path = folder.path().join("in.wav");
        write::write(&path, &sound, write::Samples::Int16, write::Level::Keep).unwrap();
        let codes = folder.path().join("codes.safetensors");
        served(&run(&[
            "codec",
            "encode",
            ENCODEC,
            "--audio",
            text(&path),
            "--out",
            text(&codes),
            "--force",
            "--quiet",
        ]));
    }
    for samples in [vec![f32::NAN; 600], vec![]] {
        let sound = Item::Sound(Sound { rate: 600, channels: vec![samples] });
        let made = model.generate(&fauna::Prompt::Items(vec![sound]), &model.defaults(), &mut |_| {
            panic!("something was made of what is no sound")
        });
        assert!(made.is_err());
    }
}
