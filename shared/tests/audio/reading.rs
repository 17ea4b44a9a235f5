//! Files of every format that is read, and files that are not what they claim.

use std::path::Path;

use fauna_shared::ErrorKind;
use fauna_shared::audio::read::{DecodedAudio, Limits, read, read_at_most, read_bytes, read_within};

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

fn of(bytes: &[u8]) -> fauna_shared::Result<DecodedAudio> {
    read_bytes(bytes, f64::INFINITY)
}

fn refused(bytes: &[u8]) -> String {
    let error = of(bytes).expect_err("was read");
    assert!(matches!(error.kind(), ErrorKind::Format | ErrorKind::Unsupported), "{error:?}");
    error.to_string()
}

/// How far `samples` are from half a second of `height` times a sine of `hz` at 32 kHz.
fn distance(samples: &[f32], hz: f64, height: f64) -> f64 {
    let tone = |i: usize| height * (std::f64::consts::TAU * hz * i as f64 / 32_000.0).sin();
    let apart = (2000..14_000).map(|i| (f64::from(samples[i]) - tone(i)).powi(2));
    (apart.sum::<f64>() / 12_000.0).sqrt()
}

#[test]
fn every_format_gives_the_same_tones() {
    // The mp3's encoder makes sounds quieter by a twentieth. The m4a's edit list tells where its sound begins and ends.
    // Blocks of ADPCM are whole.
    for (name, height, frames, near) in [
        ("tone.flac", 1.0, 16_000, 2e-5),
        ("tone.mp3", 0.95, 16_000, 2e-3),
        ("tone.ogg", 1.0, 16_000, 5e-3),
        ("tone.m4a", 1.0, 16_000, 5e-3),
        ("tone.alac.m4a", 1.0, 16_000, 2e-5),
        ("tone.ima.wav", 1.0, 16_272, 5e-3),
        ("tone.ms.wav", 1.0, 16_192, 5e-3),
        ("tone.ima4.aifc", 1.0, 16_000, 5e-3),
    ] {
        let decoded = read(fixture(name)).unwrap();
        assert_eq!((decoded.truncated, &decoded.damage), (false, &None), "{name}");
        let sound = decoded.sound;
        assert_eq!(
            (sound.rate, sound.channels.len(), sound.channels[0].len()),
            (32_000, 2, frames),
            "{name}"
        );
        let left = distance(&sound.channels[0], 440.0, 0.5 * height);
        let right = distance(&sound.channels[1], 660.0, 0.25 * height);
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
    let decoded = |format, bits, data: &[u8]| of(&wav(format, 1, 8000, bits, data)).unwrap().sound;
    assert_eq!(decoded(1, 8, &[0, 128, 192]).channels, [[-1.0, 0.0, 0.5]]);
    assert_eq!(decoded(1, 16, &[0, 0x80, 0, 0x40]).channels, [[-1.0, 0.5]]);
    assert_eq!(decoded(1, 24, &[0, 0, 0x80, 0, 0, 0x40]).channels, [[-1.0, 0.5]]);
    assert_eq!(decoded(1, 32, &[0, 0, 0, 0x80, 0, 0, 0, 0x40]).channels, [[-1.0, 0.5]]);
    assert_eq!(decoded(3, 32, &floats(&[-1.5, 0.1])).channels, [[-1.5, 0.1]]);
    assert_eq!(decoded(3, 64, &0.25f64.to_le_bytes()).channels, [[0.25]]);
}

#[test]
fn one_sample_silence_and_eleven_channels_are_sounds() {
    assert_eq!(of(&wav(1, 1, 8000, 16, &[0, 0x40])).unwrap().sound.channels, [[0.5]]);
    assert_eq!(of(&wav(1, 1, 8000, 16, &[0; 200])).unwrap().sound.channels, [[0.0; 100]]);
    let eleven = of(&wav(1, 11, 8000, 16, &[0; 220])).unwrap().sound;
    assert_eq!((eleven.channels.len(), eleven.channels[10].len()), (11, 10));
    assert_eq!(fauna_shared::audio::with_channels(eleven, 1).unwrap().channels, [[0.0; 10]]);
}

#[test]
fn what_is_asked_for_is_read_and_no_more() {
    let decoded = read_at_most(fixture("tone.mp3"), 0.1).unwrap();
    assert_eq!((decoded.sound.channels[1].len(), decoded.truncated, decoded.damage), (3200, true, None));
    let decoded = read_at_most(fixture("tone.flac"), 0.5).unwrap();
    assert_eq!((decoded.sound.channels[1].len(), decoded.truncated), (16_000, false));
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
        let damage = part.damage.unwrap();
        assert_eq!(damage.frames as usize, 16_000 - frames, "{name}: {damage}");
        assert!(damage.to_string().contains("frames missing at the end"));
        let inner = ..frames - 1152;
        assert_eq!(part.sound.channels[0][inner], whole.channels[0][inner], "{name}");
    }
    // A WAV that lost its end, and one whose header promises the largest size there is.
    let bytes = wav(1, 1, 8000, 16, &[1; 2000]);
    assert_eq!(of(&bytes[..1044]).unwrap().damage.unwrap().frames, 500);
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
    let decoded = of(&bytes).unwrap();
    assert!(decoded.damage.is_some());
    assert!(decoded.sound.channels[0].len() < 16_000);
}

#[test]
fn what_is_no_sound_is_named() {
    assert!(refused(b"").contains("not a supported audio file"));
    assert!(refused(b"{\"just\": \"text\"}").contains("not a supported audio file"));
    assert!(refused(&[0; 5000]).contains("wav, aiff, au, caf, flac, mp3"));
    assert!(refused(&wav(1, 1, 0, 16, &[0; 20])).contains("0 Hz"));
    assert!(refused(&wav(1, 1, 4_000_000_000, 16, &[0; 20])).contains("4000000000 Hz"));
    let many = refused(&wav(1, 33, 8000, 16, &[0; 660]));
    assert!(many.contains("33 channels"), "{many}");
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
    let mut files =
        vec![wave, aiff(b"NONE", 16, &[0; 400]), rf64(&[9; 400]), wave64(&[9; 400]), au(3, &[9; 400])];
    files.push(wav(0x55, 2, 32_000, 0, &std::fs::read(fixture("tone.mp3")).unwrap()));
    for name in [
        "tone.flac",
        "tone.mp3",
        "vbr.mp3",
        "tone.ogg",
        "tone.m4a",
        "tone.alac.m4a",
        "tone.ima.wav",
        "tone.ms.wav",
        "tone.ima4.aifc",
    ] {
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
            if let Ok(decoded) = of(&spoilt) {
                assert!(decoded.sound.channels.iter().flatten().all(|sample| sample.is_finite()));
            }
        }
    }
}

/// The frames that stand in an mp3 of one kind of layer 3 without a tag in front, and the samples of each.
fn mp3_frames(file: &[u8]) -> (usize, usize) {
    let kbits: [[usize; 15]; 2] = [
        [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
        [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
    ];
    let (mut at, mut count, mut samples) = (0, 0, 0);
    while at + 4 <= file.len() {
        let first = usize::from(file[at + 1] >> 3 & 1);
        let bits = 1000 * kbits[first][usize::from(file[at + 2] >> 4)];
        let rate = [22_050, 24_000, 16_000][usize::from(file[at + 2] >> 2 & 3)] * (1 + first);
        samples = 576 * (1 + first);
        at += samples / 8 * bits / rate + usize::from(file[at + 2] >> 1 & 1);
        count += 1;
    }
    assert_eq!(at, file.len());
    (count, samples)
}

/// A tag's frame in front of the sound of `tone.mp3`, and that sound.
fn tone_mp3() -> (Vec<u8>, Vec<u8>) {
    let file = std::fs::read(fixture("tone.mp3")).unwrap();
    let begin = file.windows(2).position(|pair| pair[0] == 0xff && pair[1] & 0xe0 == 0xe0).unwrap();
    let tag = file.windows(4).position(|name| name == b"Xing" || name == b"Info").unwrap();
    let next = (tag..).find(|at| file[*at..].starts_with(&file[begin..begin + 2])).unwrap();
    (file[begin..next].to_vec(), file[next..].to_vec())
}

fn length(file: &[u8]) -> usize {
    let decoded = of(file).unwrap();
    assert_eq!(decoded.damage, None);
    decoded.sound.channels[0].len()
}

#[test]
fn all_frames_of_an_mp3_are_decoded_whatever_its_header_counts() {
    // Loud at first, then quiet: a guess from the first frames is far too short.
    let vbr = std::fs::read(fixture("vbr.mp3")).unwrap();
    let (count, samples) = mp3_frames(&vbr);
    assert_eq!((count, samples), (93, 576));
    assert_eq!(length(&vbr), count * samples);

    let (tag, sound) = tone_mp3();
    let (count, samples) = mp3_frames(&sound);
    assert_eq!(length(&sound), count * samples);
    let whole = [tag.clone(), sound.clone()].concat();
    assert_eq!(length(&whole), 16_000);

    // A tag that counts one frame: the encoder's silence behind is where nobody knows, so all is given.
    let mut wrong = tag;
    let name = wrong.windows(4).position(|name| name == b"Xing" || name == b"Info").unwrap();
    wrong[name + 8..name + 12].copy_from_slice(&1u32.to_be_bytes());
    let lead = 1105;
    assert_eq!(length(&[wrong, sound.clone()].concat()), count * samples - lead);

    // Joined end to end, with a title behind the first, each gives its own sound.
    let mut title = b"TAG".to_vec();
    title.resize(128, b' ');
    let joined = of(&[&whole[..], &title, &whole, &sound].concat()).unwrap();
    assert_eq!((&joined.damage, joined.notes.len()), (&None, 0));
    let left = &joined.sound.channels[0];
    // The last has no tag of its own: it goes on where the second ends, silence of the encoder and all.
    assert_eq!(left.len(), 16_000 + 2 * count * samples - lead);
    assert_eq!(left[..14_000], left[16_000..30_000]);

    // Another rate goes on at the first one's.
    let joined = of(&[&whole[..], &vbr].concat()).unwrap();
    assert_eq!((joined.sound.rate, joined.sound.channels[0].len()), (32_000, 16_000 + 2 * 93 * 576));
    assert!(
        joined.notes[0].contains("at 16000 Hz was converted to 2 channels at 32000 Hz"),
        "{:?}",
        joined.notes
    );
}

/// `tone.ogg` twice, as a station's recording: the second has its own headers.
#[test]
fn chained_oggs_are_read_to_their_end() {
    let ogg = std::fs::read(fixture("tone.ogg")).unwrap();
    let decoded = of(&ogg.repeat(2)).unwrap();
    assert_eq!((decoded.sound.channels[0].len(), &decoded.damage), (32_000, &None));
    assert_eq!(decoded.sound.channels[0][..16_000], decoded.sound.channels[0][16_000..]);
}

#[test]
fn a_flac_is_read_to_its_end_whatever_it_counts() {
    let flac = std::fs::read(fixture("tone.flac")).unwrap();
    for total in [0u64, 1, 4096, 1 << 35] {
        let mut lying = flac.clone();
        lying[21] = lying[21] & 0xf0 | (total >> 32) as u8;
        lying[22..26].copy_from_slice(&(total as u32).to_be_bytes());
        assert_eq!(of(&lying).unwrap().sound.channels[0].len(), 16_000, "{total}");
    }
}

/// Headers as programs write them when they do not know better, and as others garble them.
#[test]
fn odd_headers_of_wav_are_read_as_ffmpeg_reads_them() {
    let plain = wav(1, 1, 8000, 16, &[0, 0x40, 0, 0xc0]);
    let samples = [[0.5, -0.5]];
    let spoilt = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut file = plain.clone();
        change(&mut file);
        let decoded = of(&file).unwrap();
        assert_eq!(decoded.damage, None);
        decoded.sound.channels
    };
    // Sizes of the whole and of the samples: short, none, not known.
    for size in [0u32, 4, 20, u32::MAX, 0x7fff_f000] {
        assert_eq!(spoilt(&|file| file[4..8].copy_from_slice(&size.to_le_bytes())), samples, "{size}");
    }
    for size in [0u32, u32::MAX, 0x7fff_f000] {
        assert_eq!(spoilt(&|file| file[40..44].copy_from_slice(&size.to_le_bytes())), samples, "{size}");
    }
    // A list whose parts make no sense, a chunk of odd size with its padding and without.
    let chunk = |size: u32, body: &[u8]| [b"LIST", &size.to_le_bytes()[..], body].concat();
    for list in [chunk(12, b"INFOICRDabcd"), chunk(3, b"abc\0"), chunk(3, b"abc"), chunk(0, b"")] {
        assert_eq!(spoilt(&|file| drop(file.splice(36..36, list.clone()))), samples, "{list:?}");
    }
    // Behind the samples: nothing of the sound.
    assert_eq!(spoilt(&|file| file.extend(chunk(4, b"INFO"))), samples);
    // A format of more bytes than its own.
    let longer = |file: &mut Vec<u8>| {
        file[16] = 20;
        file.splice(36..36, [0; 4]);
    };
    assert_eq!(spoilt(&longer), samples);

    // Samples without a format before them.
    let mut early = plain.clone();
    early[12..16].copy_from_slice(b"junk");
    assert!(refused(&early).contains("must come before the samples"));
    assert!(refused(&plain[..12]).contains("no \"fmt \" chunk"));
    assert!(refused(&plain[..36]).contains("no samples after"));
}

/// A WAV file with an extensible format: `valid` bits of `bits`.
fn extensible(tag: u16, bits: u16, valid: u16, data: &[u8]) -> Vec<u8> {
    let mut file = wav(0xfffe, 1, 8000, bits, data);
    file[16] = 40;
    let mut more = 22u16.to_le_bytes().to_vec();
    more.extend(valid.to_le_bytes());
    more.extend([4, 0, 0, 0]);
    more.extend(tag.to_le_bytes());
    more.extend([0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71]);
    file.splice(36..36, more);
    file
}

#[test]
fn valid_bits_and_the_codecs_of_telephones() {
    let samples = |file: Vec<u8>| of(&file).unwrap().sound.channels.concat();
    for valid in [0, 12, 16, 99] {
        assert_eq!(samples(extensible(1, 16, valid, &[0, 0x40])), [0.5]);
    }
    for valid in [0, 32] {
        assert_eq!(samples(extensible(3, 32, valid, &0.3f32.to_le_bytes())), [0.3]);
    }
    assert_eq!(samples(extensible(1, 32, 24, &[0, 0, 0, 0x40])), [0.5]);
    // Numbers of the standard G.711: the largest, and the smallest on either side of none.
    let law = |tag| samples(wav(tag, 1, 8000, 8, &[0x80, 0x00, 0xd5, 0x55]));
    assert_eq!(law(7)[..2], [32_124.0 / 32_768.0, -32_124.0 / 32_768.0]);
    assert_eq!(law(6)[2..], [8.0 / 32_768.0, -8.0 / 32_768.0]);
    assert!(refused(&wav(0x31, 1, 8000, 0, &[0; 65])).contains("GSM 6.10 in a wav file is not supported"));
    assert!(refused(&wav(0x161, 2, 8000, 16, &[0; 64])).contains("Windows Media Audio"));
    assert!(refused(&wav(0x1234, 2, 8000, 16, &[0; 64])).contains("0x1234"));
    assert!(refused(&wav(1, 1, 8000, 12 * 8, &[0; 64])).contains("samples of 96 bits"));
}

/// An aifc of one channel at 8 kHz.
fn aiff(codec: &[u8; 4], bits: u16, data: &[u8]) -> Vec<u8> {
    let mut file = b"FORM\0\0\0\0AIFCCOMM\0\0\0\x18\0\x01\0\0\0\0".to_vec();
    file.extend(bits.to_be_bytes());
    file.extend([0x40, 0x0b, 0xfa, 0, 0, 0, 0, 0, 0, 0]);
    file.extend(codec);
    file.extend(b"\0\0SSND");
    file.extend((8 + data.len() as u32).to_be_bytes());
    file.extend([0; 8]);
    file.extend(data);
    file
}

fn rf64(data: &[u8]) -> Vec<u8> {
    let mut file = wav(1, 1, 8000, 16, data);
    file[..4].copy_from_slice(b"RF64");
    file[4..8].fill(0xff);
    file[40..44].fill(0xff);
    let mut sizes = b"ds64\x1c\0\0\0".to_vec();
    for size in [file.len() as u64 + 28, data.len() as u64, data.len() as u64 / 2] {
        sizes.extend(size.to_le_bytes());
    }
    sizes.extend([0; 4]);
    file.splice(12..12, sizes);
    file
}

fn wave64(data: &[u8]) -> Vec<u8> {
    let rest = [0xf3, 0xac, 0xd3, 0x11, 0x8c, 0xd1, 0, 0xc0, 0x4f, 0x8e, 0xdb, 0x8a];
    let mut file = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0".to_vec();
    file.extend((40 + 40 + 24 + data.len() as u64).to_le_bytes());
    for (name, body) in [(b"wave", &[][..]), (b"fmt ", &wav(1, 1, 8000, 16, &[])[20..36]), (b"data", data)] {
        file.extend(name);
        file.extend(rest);
        if name != b"wave" {
            file.extend((24 + body.len() as u64).to_le_bytes());
            file.extend(body);
        }
    }
    file
}

fn au(codec: u32, data: &[u8]) -> Vec<u8> {
    let mut file = b".snd".to_vec();
    for field in [24, u32::MAX, codec, 8000, 1] {
        file.extend(field.to_be_bytes());
    }
    file.extend(data);
    file
}

#[test]
fn other_files_of_plain_samples_are_read() {
    let sound = |file: &[u8]| {
        let decoded = of(file).unwrap();
        assert_eq!((decoded.damage, decoded.sound.rate), (None, 8000));
        decoded.sound.channels.concat()
    };
    assert_eq!(sound(&aiff(b"NONE", 16, &[0x40, 0, 0xc0, 0])), [0.5, -0.5]);
    assert_eq!(sound(&aiff(b"NONE", 24, &[0x40, 0, 0])), [0.5]);
    assert_eq!(sound(&aiff(b"NONE", 8, &[0x40])), [0.5]);
    assert_eq!(sound(&aiff(b"sowt", 16, &[0, 0x40])), [0.5]);
    assert_eq!(sound(&aiff(b"fl32", 32, &0.3f32.to_be_bytes())), [0.3]);
    assert!(refused(&aiff(b"QDM2", 16, &[0; 8])).contains("the aiff codec \"QDM2\" is not supported"));
    assert_eq!(sound(&au(3, &[0x40, 0, 0xc0, 0])), [0.5, -0.5]);
    assert_eq!(sound(&au(6, &0.3f32.to_be_bytes())), [0.3]);
    assert_eq!(sound(&rf64(&[0, 0x40, 0, 0xc0])), [0.5, -0.5]);
    assert_eq!(sound(&wave64(&[0, 0x40, 0, 0xc0])), [0.5, -0.5]);

    // An mp3 in a wav is the mp3.
    let mp3 = std::fs::read(fixture("tone.mp3")).unwrap();
    assert_eq!(of(&wav(0x55, 2, 32_000, 0, &mp3)).unwrap(), of(&mp3).unwrap());
}

#[test]
fn codecs_that_are_not_read_are_named() {
    let error = read(fixture("tone.opus")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("Opus is not supported"), "{error}");
    assert!(error.place().unwrap().ends_with("tone.opus"));
    assert!(refused(b"MAC \x96\x0f\0\0\0\0\0\0\0\0").contains("Monkey's Audio is not supported"));
}

#[test]
fn sounds_beyond_the_limit_are_refused_and_the_limit_can_be_lifted() {
    for name in ["tone.flac", "tone.mp3", "tone.ogg", "tone.m4a", "tone.ima.wav"] {
        let error = read_within(fixture(name), Limits { seconds: 0.4 }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input, "{name}");
        assert!(error.to_string().contains("expected at most 0.4 s"), "{error}");
        assert!(error.to_string().contains("Limits::seconds"), "{error}");
        for limits in [Limits { seconds: 0.6 }, Limits::default(), Limits::NONE] {
            assert!(read_within(fixture(name), limits).is_ok(), "{name}");
        }
        assert!(read_at_most(fixture(name), 0.1).unwrap().truncated, "{name}");
    }
    // Many channels count by their samples: a second of 24 at 48 kHz for twelve.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("many.wav");
    std::fs::write(&path, wav(1, 24, 48_000, 8, &[128; 24 * 48_000])).unwrap();
    let error = read_within(&path, Limits { seconds: 11.0 }).unwrap_err();
    assert!(error.to_string().contains("the memory of 12 s of stereo"), "{error}");
    assert!(read_within(&path, Limits { seconds: 12.5 }).is_ok());
}
