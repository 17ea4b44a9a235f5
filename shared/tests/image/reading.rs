//! Files of every format that is read, and files that are not what they claim.

use fauna_shared::ErrorKind;
use fauna_shared::image::{
    Alpha, ImageOptions, MAX_PIXELS, decode, read, read_with, read_with_notes, to_png,
};
use fauna_shared::item::Image;

use crate::{fixture, picture, tensors};

/// Alpha dropped, upright.
fn dropped() -> ImageOptions {
    ImageOptions { alpha: Alpha::Dropped, ..ImageOptions::default() }
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

fn refused(bytes: &[u8]) -> String {
    let error = decode(bytes, &ImageOptions::default()).expect_err("was read");
    assert!(matches!(error.kind(), ErrorKind::Format | ErrorKind::Unsupported), "{error:?}");
    error.to_string()
}

#[test]
fn every_format_gives_what_pillow_reads() {
    let expected = tensors("files.safetensors");
    assert_eq!(expected.len(), 29);
    for (name, wanted) in &expected {
        let found = match name.strip_suffix(".dropped") {
            Some(name) => read_with(fixture(name), &dropped()),
            None => read(fixture(name)),
        };
        let (found, wanted) = (found.unwrap_or_else(|error| panic!("{name}: {error}")), picture(wanted));
        assert_eq!((found.height, found.width), (wanted.height, wanted.width), "{name}");
        let apart = found.rgb.iter().zip(&wanted.rgb).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        // Decoders of jpeg round on their own.
        let most = if name.ends_with(".jpg") { 4 } else { 0 };
        assert!(apart <= most, "{name}: {apart} levels apart");
    }
}

/// What Pillow reads and this does not: each is refused by name.
const NOT_READ: [(&str, &str); 4] = [
    ("lab8.tiff", "CIELab"),
    ("rgb8_zstd.tiff", "zstd"),
    ("bits_group3.tiff", "Fax3"),
    ("bits_tiff_ccitt.tiff", "Huffman"),
];
/// A scan that is cut short and ended: what is missing is made up, and every decoder makes up its own.
const MADE_UP: &str = "half_but_ended.jpg";

#[test]
fn every_kind_of_file_gives_what_pillow_makes_of_it() {
    let tensors = tensors("kinds.safetensors");
    let mut wrong = Vec::new();
    let mut compared = 0;
    for (name, file) in tensors.iter().filter_map(|(name, file)| Some((name.strip_suffix(".file")?, file))) {
        let file: Vec<u8> = file.to_vec1().unwrap();
        let Some(without) = tensors.get(&format!("{name}.dropped")).filter(|_| name != MADE_UP) else {
            continue;
        };
        let white = tensors.get(&format!("{name}.white")).unwrap_or(without);
        if let Some((_, says)) = NOT_READ.iter().find(|(refused, _)| *refused == name) {
            let error = refused(&file);
            assert!(error.to_lowercase().contains(&says.to_lowercase()), "{name}: {error}");
            continue;
        }
        for (options, wanted) in [
            (ImageOptions { upright: false, ..ImageOptions::default() }, white),
            (ImageOptions::pillow(), without),
        ] {
            let wanted = picture(wanted);
            let most = if name.ends_with(".jpg") || name.contains("jpeg") || name.starts_with("lossy") {
                4
            } else {
                0
            };
            match decode(&file, &options) {
                Err(error) => wrong.push(format!("{name}: {error}")),
                Ok(found) if (found.width, found.height) != (wanted.width, wanted.height) => {
                    wrong.push(format!("{name}: {} x {}", found.width, found.height));
                }
                Ok(found) => {
                    let apart = found.rgb.iter().zip(&wanted.rgb).map(|(a, b)| a.abs_diff(*b)).max();
                    if apart > Some(most) {
                        wrong.push(format!("{name}, {:?}: {apart:?} levels apart", options.alpha));
                    }
                }
            }
            compared += 1;
        }
    }
    assert!(wrong.is_empty(), "{} of {compared}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(compared > 200, "{compared}");
}

#[test]
fn image_options_are_applied() {
    let read = |name: &str, options: ImageOptions| read_with(fixture(name), &options).unwrap();
    let (upright, as_stored) =
        (ImageOptions::default(), ImageOptions { upright: false, ..ImageOptions::default() });
    let (turned, still) = (read("turned_6.jpg", upright), read("turned_6.jpg", as_stored));
    assert_eq!((turned.width, turned.height), (still.height, still.width));
    assert_eq!(read("turned_6.jpg", ImageOptions::pillow()), still);
    let few = ImageOptions { max_pixels: 599, ..ImageOptions::default() };
    let error = read_with(fixture("rgb.png"), &few).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("30 x 20, 600 pixels, expected at most 599"), "{error}");
    read("rgb.png", ImageOptions { max_pixels: 600, ..ImageOptions::default() });
}

#[test]
fn greys_that_are_cut_off_are_told() {
    assert!(read_with_notes(fixture("rgb.png"), &ImageOptions::default()).unwrap().notes.is_empty());
    let deep = read_with_notes(fixture("grey16.png"), &ImageOptions::default()).unwrap();
    assert!(deep.notes[0].contains("more than 8 bits"), "{:?}", deep.notes);
    // Counting up from 0 to 599.
    assert_eq!((deep.image.rgb[3 * 77], deep.image.rgb[3 * 300]), (77, 255));
}

#[test]
fn what_a_late_conversion_would_change_is_told() {
    let notes = |name: &str, options: ImageOptions| read_with_notes(fixture(name), &options).unwrap().notes;
    for name in ["rgb.png", "grey.png", "soft.jpg", "rgb.bmp", "rgb.tiff", "rgb.webp"] {
        assert!(notes(name, ImageOptions::open_clip()).is_empty(), "{name}");
    }
    for (name, says) in [
        ("palette.png", "palette"),
        ("palette_alpha.png", "palette"),
        ("bits.png", "palette"),
        ("animated.gif", "palette"),
        ("rgba.png", "alpha"),
        ("rgba.webp", "alpha"),
    ] {
        assert!(notes(name, ImageOptions::open_clip())[0].contains(says), "{name}");
        assert!(
            notes(name, ImageOptions::pillow()).is_empty() && notes(name, ImageOptions::default()).is_empty()
        );
    }
}

#[test]
fn what_is_no_picture_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holiday.png");
    for (contents, says) in [
        (&b""[..], "an empty file"),
        (b"dear diary", "not a supported image file"),
        (b"\0\0\0\x20ftypheic", "a HEIC image"),
        (b"%PDF-1.4", "a PDF"),
        (b"\x89PNG\r\n\x1a\n", "cannot decode"),
        (b"BM", "cannot decode"),
        (b"GIF89a", "cannot decode"),
    ] {
        std::fs::write(&path, contents).unwrap();
        let error = read(&path).expect_err(says).to_string();
        assert!(error.contains("holiday.png: ") && error.contains(says), "{error}");
    }
    assert_eq!(read(folder.path()).unwrap_err().kind(), ErrorKind::Input);
    assert_eq!(read(folder.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_picture_that_is_cut_short_is_refused() {
    assert!(refused(&bytes("cut.jpg")).contains("truncated"));
    let names = ["rgb.png", "soft.jpg", "progressive.jpg", "rgb.webp", "rgb.bmp", "rgb.tiff", "packed.tiff"];
    for name in names {
        let whole = bytes(name);
        for share in [3, 10, 60, 95] {
            refused(&whole[..whole.len() * share / 100]);
        }
    }
    // Of an animation, the first frame must be there.
    let whole = bytes("animated.gif");
    refused(&whole[..whole.len() / 10]);
    decode(&whole[..whole.len() * 2 / 3], &ImageOptions::default()).unwrap();
}

#[test]
fn the_name_of_a_file_says_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("really.gif");
    std::fs::copy(fixture("rgb.png"), &path).unwrap();
    assert_eq!(read(&path).unwrap(), read(fixture("rgb.png")).unwrap());
}

#[test]
fn a_claim_of_too_many_pixels_is_refused_before_any_is_decoded() {
    let dot = to_png(&Image { width: 1, height: 1, rgb: vec![0; 3] }).unwrap();
    let claiming = |width: u32, height: u32| {
        let mut file = dot.clone();
        file[16..20].copy_from_slice(&width.to_be_bytes());
        file[20..24].copy_from_slice(&height.to_be_bytes());
        let sum = crc(&file[12..29]);
        file[29..33].copy_from_slice(&sum.to_be_bytes());
        file
    };
    let error = refused(&claiming(20_000, 20_000));
    assert!(error.contains("20000 x 20000") && error.contains(&MAX_PIXELS.to_string()), "{error}");
    refused(&claiming(u32::MAX / 2, u32::MAX / 2));
    refused(&claiming(0, 5));
    // Within the limit, but the pixels are not there.
    refused(&claiming(9_000, 9_000));
    // The limit is lifted, and then too the pixels are not there.
    let more = ImageOptions { max_pixels: 200_000_000, ..ImageOptions::default() };
    let error = decode(&claiming(13_000, 13_000), &more).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Format, "{error}");
    assert!(refused(&claiming(13_000, 13_000)).contains("ImageOptions::max_pixels"));
}

/// The checksum of a PNG's chunk.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    })
}

/// Pseudo-random numbers, the same at every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// Counts the panics of its tests' thread that nobody is to read_with_notes.
fn panics_in(work: impl FnOnce()) -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    let here = std::thread::current().id();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |what| {
        if std::thread::current().id() == here {
            SEEN.fetch_add(1, Ordering::Relaxed);
        }
        before(what);
    }));
    work();
    SEEN.load(Ordering::Relaxed)
}

#[test]
fn no_bytes_make_the_readers_panic() {
    let kinds = tensors("kinds.safetensors");
    let mut files: Vec<(String, Vec<u8>)> =
        ["soft.jpg", "progressive.jpg", "cmyk.jpg", "rgb.webp", "packed.tiff"]
            .map(|name| (name.to_string(), bytes(name)))
            .into();
    let of_kinds = kinds.iter().filter(|(name, _)| name.ends_with(".file"));
    files.extend(of_kinds.map(|(name, file)| (name.clone(), file.to_vec1().unwrap())));
    files.sort();
    let mut random = Random(1);
    let found = panics_in(|| {
        for (name, whole) in &files {
            for round in 0..200 {
                let mut broken = whole.clone();
                for _ in 0..1 + round % 4 {
                    let at = random.below(broken.len());
                    broken[at] = match random.below(3) {
                        0 => 0xff,
                        1 => broken[at] ^ (1 << random.below(8)),
                        _ => random.below(256) as u8,
                    };
                }
                if round % 10 == 9 {
                    broken.truncate(random.below(broken.len()));
                }
                if name.ends_with(".png.file") {
                    mend_checksums(&mut broken);
                }
                // Small, so that a size that was made up costs no time.
                let options = ImageOptions { max_pixels: 1 << 20, ..ImageOptions::default() };
                if let Ok(image) = decode(&broken, &options) {
                    fauna_shared::image::check(&image).unwrap();
                }
            }
        }
    });
    assert_eq!(found, 0, "panics inside of a decoder");
}

/// Gives every chunk of a PNG its checksum again, so that what is in it is looked at.
fn mend_checksums(file: &mut [u8]) {
    let mut at = 8;
    while let Some(length) = file.get(at..at + 4) {
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let Some(end) = at.checked_add(8 + length).filter(|end| end + 4 <= file.len()) else { return };
        let sum = crc(&file[at + 4..end]);
        file[end..end + 4].copy_from_slice(&sum.to_be_bytes());
        at = end + 4;
    }
}
