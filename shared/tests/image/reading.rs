//! Files of every format that is read, and files that are not what they claim.

use fauna_shared::ErrorKind;
use fauna_shared::image::{Alpha, MOST_PIXELS, decode, read, read_with, to_png};
use fauna_shared::item::Image;

use crate::{fixture, picture, tensors};

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

fn refused(bytes: &[u8]) -> String {
    let error = decode(bytes, Alpha::OverWhite).expect_err("was read");
    assert!(matches!(error.kind(), ErrorKind::Format | ErrorKind::Unsupported), "{error:?}");
    error.to_string()
}

#[test]
fn every_format_gives_what_pillow_reads() {
    let expected = tensors("files.safetensors");
    assert_eq!(expected.len(), 29);
    for (name, wanted) in &expected {
        let found = match name.strip_suffix(".dropped") {
            Some(name) => read_with(fixture(name), Alpha::Dropped),
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

#[test]
fn what_is_no_picture_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holiday.png");
    for (contents, says) in [
        (&b""[..], "an empty file"),
        (b"dear diary", "not a picture that can be read"),
        (b"\0\0\0\x20ftypheic", "a HEIC picture"),
        (b"%PDF-1.4", "a PDF"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read"),
        (b"BM", "cannot be read"),
        (b"GIF89a", "cannot be read"),
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
    assert!(refused(&bytes("cut.jpg")).contains("cut short"));
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
    decode(&whole[..whole.len() * 2 / 3], Alpha::OverWhite).unwrap();
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
    assert!(error.contains("20000 x 20000") && error.contains(&MOST_PIXELS.to_string()), "{error}");
    refused(&claiming(u32::MAX / 2, u32::MAX / 2));
    refused(&claiming(0, 5));
    // Within the limit, but the pixels are not there.
    refused(&claiming(9_000, 9_000));
}

/// The checksum of a PNG's chunk.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    })
}

#[test]
fn no_bytes_make_the_readers_panic() {
    let mut random = 1u64;
    for name in [
        "rgba.png",
        "soft.jpg",
        "progressive.jpg",
        "cmyk.jpg",
        "rgb.webp",
        "rgb.bmp",
        "packed.tiff",
        "animated.gif",
    ] {
        let whole = bytes(name);
        for _ in 0..200 {
            let mut broken = whole.clone();
            for _ in 0..3 {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (random >> 33) as usize % broken.len();
                broken[at] = (random >> 20) as u8;
            }
            if let Ok(image) = decode(&broken, Alpha::OverWhite) {
                fauna_shared::image::check(&image).unwrap();
            }
        }
    }
}
