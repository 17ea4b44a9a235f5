//! Files of every format that is read, and files that are not what they claim.

use std::path::Path;

use fauna_shared::ErrorKind;
use fauna_shared::audio::read::{Reading, read, read_at_most, read_bytes};

use crate::fixture;

/// A WAV file with `data` as it is; `format` 1 for integers, 3 for floats.
fn wav(format: u16, channels: u16, rate: u32, bits: u16, data: &[u8]) -> Vec<u8> {
    let frame = channels.wrapping_mul(bits / 8);
    let mut file = b"RIFF".to_vec();
    file.extend((36 + data.len() as u32).to_le_bytes());
    file.extend(b"WAVEfmt ");
    file.extend(16u32.to_le_bytes());
    file.extend(format.to_le_bytes());
    file.extend(channels.to_le_bytes());
    file.extend(rate.to_le_bytes());
    file.extend(rate.wrapping_mul(u32::from(frame)).to_le_bytes());
    file.extend(frame.to_le_bytes());
    file.extend(bits.to_le_bytes());
    file.extend(b"data");
    file.extend((data.len() as u32).to_le_bytes());
    file.extend(data);
    file
}

fn floats(samples: &[f32]) -> Vec<u8> {
    samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}

fn of(bytes: &[u8]) -> fauna_shared::Result<Reading> {
    read_bytes(bytes, f64::INFINITY)
}

fn refused(bytes: &[u8]) -> String {
    let error = of(bytes).expect_err("was read");
    assert!(matches!(error.kind(), ErrorKind::Format | ErrorKind::Unsupported), "{error:?}");
    error.to_string()
}

/// How far `samples` are from half a second of `height` times a sine of `hz` at 32 kHz, `skipped` samples in.
fn distance(samples: &[f32], hz: f64, height: f64, skipped: usize) -> f64 {
    let tone = |i: usize| height * (std::f64::consts::TAU * hz * i as f64 / 32_000.0).sin();
    let apart = (2000..14_000).map(|i| (f64::from(samples[i + skipped]) - tone(i)).powi(2));
    (apart.sum::<f64>() / 12_000.0).sqrt()
}

#[test]
fn every_format_gives_the_same_tones() {
    // The mp3's encoder makes sounds quieter by a twentieth; aac's own silence stays in front.
    for (name, height, skipped, frames, near) in [
        ("tone.flac", 1.0, 0, 16_000, 2e-5),
        ("tone.mp3", 0.95, 0, 16_000, 2e-3),
        ("tone.ogg", 1.0, 0, 16_000, 5e-3),
        ("tone.m4a", 1.0, 1024, 17_408, 5e-3),
        ("tone.alac.m4a", 1.0, 0, 16_000, 2e-5),
    ] {
        let reading = read(fixture(name)).unwrap();
        assert_eq!((reading.cut, &reading.loss), (false, &None), "{name}");
        let sound = reading.sound;
        assert_eq!(
            (sound.rate, sound.channels.len(), sound.channels[0].len()),
            (32_000, 2, frames),
            "{name}"
        );
        let left = distance(&sound.channels[0], 440.0, 0.5 * height, skipped);
        let right = distance(&sound.channels[1], 660.0, 0.25 * height, skipped);
        assert!(left < near && right < near, "{name}: {left:e}, {right:e}");
    }
}

/// Most mp3 files carry a title and a picture in front, and the picture's bytes look like sound.
#[test]
fn a_tag_before_the_sound_is_skipped() {
    let sound = std::fs::read(fixture("tone.mp3")).unwrap();
    let picture = sound[1000..3000].repeat(3);
    let mut tagged = b"ID3\x03\x00\x00\x00\x00".to_vec();
    let size = 10 + picture.len();
    // Seven bits a byte.
    tagged.extend([(size >> 7) as u8, (size & 0x7f) as u8]);
    tagged.extend(b"APIC");
    tagged.extend((picture.len() as u32).to_be_bytes());
    tagged.extend([0, 0]);
    tagged.extend(picture);
    tagged.extend(&sound);
    assert_eq!(of(&tagged).unwrap(), of(&sound).unwrap());
}

#[test]
fn every_kind_of_wav_is_read() {
    let reading = |format, bits, data: &[u8]| of(&wav(format, 1, 8000, bits, data)).unwrap().sound;
    assert_eq!(reading(1, 8, &[0, 128, 192]).channels, [[-1.0, 0.0, 0.5]]);
    assert_eq!(reading(1, 16, &[0, 0x80, 0, 0x40]).channels, [[-1.0, 0.5]]);
    assert_eq!(reading(1, 24, &[0, 0, 0x80, 0, 0, 0x40]).channels, [[-1.0, 0.5]]);
    assert_eq!(reading(1, 32, &[0, 0, 0, 0x80, 0, 0, 0, 0x40]).channels, [[-1.0, 0.5]]);
    assert_eq!(reading(3, 32, &floats(&[-1.5, 0.1])).channels, [[-1.5, 0.1]]);
    assert_eq!(reading(3, 64, &0.25f64.to_le_bytes()).channels, [[0.25]]);
}

#[test]
fn one_sample_silence_and_eleven_channels_are_sounds() {
    assert_eq!(of(&wav(1, 1, 8000, 16, &[0, 0x40])).unwrap().sound.channels, [[0.5]]);
    assert_eq!(of(&wav(1, 1, 8000, 16, &[0; 200])).unwrap().sound.channels, [[0.0; 100]]);
    let eleven = of(&wav(1, 11, 8000, 16, &[0; 220])).unwrap().sound;
    assert_eq!((eleven.channels.len(), eleven.channels[10].len()), (11, 10));
    let error = fauna_shared::audio::with_channels(eleven, 1).unwrap_err();
    assert_eq!(error.message(), "11 channels: mono or stereo wanted");
}

#[test]
fn what_is_asked_for_is_read_and_no_more() {
    let reading = read_at_most(fixture("tone.mp3"), 0.1).unwrap();
    assert_eq!((reading.sound.channels[1].len(), reading.cut, reading.loss), (3200, true, None));
    let reading = read_at_most(fixture("tone.flac"), 0.5).unwrap();
    assert_eq!((reading.sound.channels[1].len(), reading.cut), (16_000, false));
    for seconds in [0.0, -1.0, f64::NAN] {
        assert_eq!(read_at_most(fixture("tone.mp3"), seconds).unwrap_err().kind(), ErrorKind::Input);
    }
}

#[test]
fn a_truncated_file_gives_its_first_part_and_says_what_is_missing() {
    for name in ["tone.mp3", "tone.flac"] {
        let bytes = std::fs::read(fixture(name)).unwrap();
        let whole = of(&bytes).unwrap().sound;
        let part = of(&bytes[..bytes.len() / 2]).unwrap();
        let frames = part.sound.channels[0].len();
        assert!((2000..14_000).contains(&frames), "{name}: {frames}");
        let loss = part.loss.unwrap();
        assert_eq!(loss.frames as usize, 16_000 - frames, "{name}: {loss}");
        assert!(loss.to_string().contains("frames missing at the end"));
        let inner = ..frames - 1152;
        assert_eq!(part.sound.channels[0][inner], whole.channels[0][inner], "{name}");
    }
    // A WAV that lost its end, and one whose header promises the largest size there is.
    let bytes = wav(1, 1, 8000, 16, &[1; 2000]);
    assert_eq!(of(&bytes[..1044]).unwrap().loss.unwrap().frames, 500);
    let mut endless = bytes;
    endless[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    endless[40..44].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(of(&endless).unwrap().sound.channels[0].len(), 1000);
}

#[test]
fn a_damaged_middle_is_left_out_and_counted() {
    let mut bytes = std::fs::read(fixture("tone.flac")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 40].fill(0x55);
    let reading = of(&bytes).unwrap();
    assert!(reading.loss.is_some());
    assert!(reading.sound.channels[0].len() < 16_000);
}

#[test]
fn what_is_no_sound_is_named() {
    assert!(refused(b"").contains("not a sound that can be read"));
    assert!(refused(b"{\"just\": \"text\"}").contains("not a sound that can be read"));
    assert!(refused(&[0; 5000]).contains("wav, flac, mp3"));
    assert!(refused(&wav(1, 1, 0, 16, &[0; 20])).contains("0 Hz"));
    assert!(refused(&wav(1, 1, 4_000_000_000, 16, &[0; 20])).contains("4000000000 Hz"));
    let many = refused(&wav(1, 33, 8000, 16, &[0; 660]));
    assert!(many.contains("channel count"), "{many}");
    assert!(refused(&wav(1, 1, 8000, 16, &[])).contains("without samples"));
    let nan = refused(&wav(3, 2, 8000, 32, &floats(&[0.0, 0.1, f32::NAN, 0.1])));
    assert!(nan.contains("frame 1 is NaN"), "{nan}");
    assert!(refused(&wav(3, 1, 8000, 32, &floats(&[f32::INFINITY]))).contains("frame 0 is inf"));

    let missing = read("no/such/file.mp3").unwrap_err();
    assert_eq!((missing.kind(), missing.place()), (ErrorKind::NotFound, Some(Path::new("no/such/file.mp3"))));
    let folder = read(fixture("")).unwrap_err();
    assert!(folder.to_string().contains("a folder"));
    let other = read(fixture("reference.safetensors")).unwrap_err();
    assert!(other.place().unwrap().ends_with("reference.safetensors"));
}

/// Every header of every format, spoilt byte by byte and cut short: an error or a sound.
#[test]
fn spoilt_files_are_errors_or_sounds() {
    let wave = wav(1, 2, 8000, 16, &[7; 400]);
    let mut files = vec![wave];
    for name in ["tone.flac", "tone.mp3", "tone.ogg", "tone.m4a", "tone.alac.m4a"] {
        files.push(std::fs::read(fixture(name)).unwrap());
    }
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for file in files {
        for _ in 0..150 {
            let mut spoilt = file.clone();
            // Headers lie at the start; m4a has its own at the end.
            for _ in 0..1 + random() % 3 {
                let reach = if random() % 2 == 0 { 300.min(spoilt.len()) } else { spoilt.len() };
                let at =
                    if random() % 4 == 0 { spoilt.len() - 1 - random() % reach } else { random() % reach };
                spoilt[at] = if random() % 2 == 0 { 0xff } else { random() as u8 };
            }
            spoilt.truncate(if random() % 4 == 0 { random() % spoilt.len() } else { usize::MAX });
            if let Ok(reading) = of(&spoilt) {
                assert!(reading.sound.channels.iter().flatten().all(|sample| sample.is_finite()));
            }
        }
    }
}
