//! WAV files that grow, are levelled, and meet a full disk.

use fauna_shared::ErrorKind;
use fauna_shared::audio::read::{read, read_bytes};
use fauna_shared::audio::write::{
    CEILING, Level, STREAMING_LUFS, Samples, WavWriter, gain, loudness, raw, write,
};
use fauna_shared::item::Sound;

fn tone(height: f32, seconds: usize) -> Sound {
    let samples =
        (0..seconds * 48_000).map(|i| height * (i as f32 * 997.0 / 48_000.0 * std::f32::consts::TAU).sin());
    Sound { rate: 48_000, channels: vec![samples.collect(); 2] }
}

fn peak(sound: &Sound) -> f32 {
    sound.channels.iter().flatten().fold(0f32, |peak, sample| peak.max(sample.abs()))
}

#[test]
fn what_is_written_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.wav");
    let steps =
        Sound { rate: 11_025, channels: vec![vec![-1.0, 0.25, 32_767.0 / 32_768.0], vec![0.0, -0.5, 0.1]] };
    write(&path, &steps, Samples::Float32, Level::Keep).unwrap();
    assert_eq!(read(&path).unwrap().sound, steps);
    write(&path, &steps, Samples::Int16, Level::Keep).unwrap();
    let found = read(&path).unwrap().sound;
    assert_eq!(found.channels[0], steps.channels[0]);
    assert!((found.channels[1][2] - 0.1).abs() < 1.0 / 65_536.0);
    let eleven = Sound { rate: 8000, channels: vec![vec![0.5]; 11] };
    write(&path, &eleven, Samples::Int16, Level::Peak).unwrap();
    assert_eq!(read(&path).unwrap().sound, eleven);
}

/// EBU Tech 3341: a stereo sine of 997 Hz at -23 dBFS is -23 LUFS loud (case 1 has 1 kHz).
#[test]
fn loudness_is_that_of_ebu() {
    let found = loudness(&tone(10f32.powf(-23.0 / 20.0), 5)).unwrap();
    assert!((found + 23.0).abs() < 0.1, "{found}");
}

#[test]
fn levels_never_clip() {
    let gain_of = |height, level| gain(&tone(height, 1), level).unwrap();
    assert_eq!(gain_of(0.5, Level::Peak), 1.0);
    assert!((gain_of(1.98, Level::Peak) - 0.5).abs() < 1e-4);
    assert_eq!(gain_of(1.98, Level::Keep), 1.0);
    // -20 dBFS is 6 dB below -14 LUFS, and so is 1.0 above it.
    assert!((gain_of(0.1, Level::Loudness(STREAMING_LUFS)) - 10f32.powf(6.0 / 20.0)).abs() < 0.02);
    assert!((gain_of(1.0, Level::Loudness(STREAMING_LUFS)) - 10f32.powf(-14.0 / 20.0)).abs() < 0.02);
    // A click in a quiet sound: loudness would raise it beyond full scale.
    let mut click = tone(0.01, 1);
    click.channels[0][5000] = 0.5;
    let raised = gain(&click, Level::Loudness(STREAMING_LUFS)).unwrap();
    assert!((peak(&click) * raised - CEILING).abs() < 1e-6, "{raised}");
    for level in [Level::Keep, Level::Peak, Level::Loudness(-14.0)] {
        assert_eq!(gain_of(0.0, level), 1.0);
        let one = Sound { rate: 32_000, channels: vec![vec![0.5]] };
        assert_eq!(gain(&one, level).unwrap(), 1.0);
    }
    assert!(gain(&tone(0.5, 1), Level::Loudness(f64::NAN)).is_err());
    assert!(gain(&tone(0.5, 1), Level::Loudness(3.0)).is_err());
}

#[test]
fn a_file_is_whole_after_every_chunk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("growing.wav");
    for samples in [Samples::Int16, Samples::Float32] {
        let mut file = WavWriter::create(&path, 32_000, 2, samples, Level::Keep).unwrap();
        for chunk in 1..=4 {
            file.append(&[vec![0.5; 700], vec![-0.25; 700]]).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let decoded = read_bytes(&bytes, f64::INFINITY).unwrap();
            assert_eq!(decoded.sound.channels, [vec![0.5; 700 * chunk], vec![-0.25; 700 * chunk]]);
            assert_eq!(decoded.damage, None);
            assert_eq!(bytes[4..8], (bytes.len() as u32 - 8).to_le_bytes());
        }
        // A program that dies does not finish.
        std::mem::forget(file);
        assert_eq!(read(&path).unwrap().sound.channels[0].len(), 2800);
    }
}

#[test]
fn a_growing_file_is_levelled_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("loud.wav");
    let mut file = WavWriter::create(&path, 48_000, 2, Samples::Int16, Level::Peak).unwrap();
    file.append(&tone(0.5, 1).channels).unwrap();
    file.append(&tone(1.98, 1).channels).unwrap();
    assert!((peak(&read(&path).unwrap().sound) - 1.0).abs() < 1e-4, "clipped while it grows");
    let factor = file.finish().unwrap();
    assert!((factor - 0.5).abs() < 1e-4);
    let sound = read(&path).unwrap().sound;
    assert_eq!(sound.channels[0].len(), 96_000);
    assert!((peak(&sound) - CEILING).abs() < 1e-4);
    // What was clipped while it grew is whole again: a quarter of a period from a crossing the sine is smooth.
    let quiet = &sound.channels[0][..48_000];
    assert!((quiet.iter().fold(0f32, |peak, sample| peak.max(*sample)) - 0.25).abs() < 1e-3);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn bad_chunks_are_refused_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.wav");
    let mut file = WavWriter::create(&path, 8000, 2, Samples::Int16, Level::Peak).unwrap();
    file.append(&[vec![0.5; 10], vec![0.5; 10]]).unwrap();
    for chunk in [
        vec![vec![0.0, f32::NAN], vec![0.0, 0.0]],
        vec![vec![0.0], vec![f32::INFINITY]],
        vec![vec![0.0], vec![]],
        vec![vec![0.0]],
        vec![],
    ] {
        assert_eq!(file.append(&chunk).unwrap_err().kind(), ErrorKind::Input, "{chunk:?}");
    }
    file.append(&[vec![], vec![]]).unwrap();
    file.append(&[vec![0.25; 10], vec![0.25; 10]]).unwrap();
    assert_eq!(file.finish().unwrap(), 1.0);
    assert_eq!(read(&path).unwrap().sound.channels[1].len(), 20);

    assert!(WavWriter::create(&path, 0, 1, Samples::Int16, Level::Peak).is_err());
    assert!(WavWriter::create(&path, 8000, 0, Samples::Int16, Level::Peak).is_err());
    assert!(WavWriter::create(&path, 8000, 33, Samples::Int16, Level::Peak).is_err());
    let nowhere = WavWriter::create(folder.path().join("no/where.wav"), 8000, 1, Samples::Int16, Level::Peak);
    assert_eq!(nowhere.err().unwrap().kind(), ErrorKind::NotFound);
    assert!(raw(&[vec![f32::NAN]], Samples::Int16).is_err());
    let nan = Sound { rate: 8000, channels: vec![vec![f32::NAN]] };
    assert!(write(&path, &nan, Samples::Int16, Level::Peak).is_err());
    assert_eq!(read(&path).unwrap().sound.channels[1].len(), 20, "a refused sound overwrites nothing");
}

/// A full disk, played by the shell's limit on a file's size: the test runs itself under it.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_a_file_that_is_whole_up_to_there() {
    const PATH: &str = "FAUNA_TEST_FULL_DISK";
    if let Ok(path) = std::env::var(PATH) {
        let mut file = WavWriter::create(path, 8000, 1, Samples::Int16, Level::Peak).unwrap();
        let failed = (0..1000).find_map(|_| file.append(&[vec![0.5; 3001]]).err()).unwrap();
        assert_eq!(failed.kind(), ErrorKind::Io);
        assert!(failed.to_string().contains("the file has the"), "{failed}");
        assert_eq!(
            file.append(&[vec![0.5; 8]]).unwrap_err().message(),
            "an earlier chunk could not be written"
        );
        println!("{}", file.frames());
        file.finish().unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("full.wav");
    let out = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$0\" --exact --nocapture \"$1\""])
        .arg(std::env::current_exe().unwrap())
        .arg("writing::a_full_disk_leaves_a_file_that_is_whole_up_to_there")
        .env(PATH, &path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes[4..8], (bytes.len() as u32 - 8).to_le_bytes());
    let decoded = read(&path).unwrap();
    let frames = decoded.sound.channels[0].len();
    assert!(
        frames > 0 && frames.is_multiple_of(3001) && said.contains(&frames.to_string()),
        "{frames}: {said}"
    );
    assert_eq!(decoded.damage, None);
    assert!(decoded.sound.channels[0].iter().all(|sample| *sample == 0.5));
}
