use fauna_shared::ErrorKind;
use serde_json::json;

use super::*;

fn file(strategy: &str) -> Value {
    json!({
        "image_resize_strategy": strategy, "input_sizes": [[3, 8, 8], [3, 8, 8]],
        "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]], "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]]
    })
}

fn frame(width: usize, height: usize) -> Image {
    Image { width, height, rgb: (0..width * height * 3).map(|i| (i * i / 3) as u8).collect() }
}

#[test]
fn every_strategy_has_a_fixed_output_size() {
    for strategy in ["resize-naive", "resize-crop", "letterbox"] {
        let processor = FrameProcessor::from_json(&file(strategy)).unwrap();
        for (width, height) in [(8, 8), (9, 31), (50, 3), (1, 1), (1, 200)] {
            let pixels = processor.process(&frame(width, height)).unwrap();
            assert_eq!(pixels.dims(), [6, 8, 8], "{strategy} {width} x {height}");
            let cropped = processor.clone().with_centre_crop(true).process(&frame(width, height));
            assert_eq!(cropped.unwrap().dims(), [6, 8, 8]);
        }
    }
}

#[test]
fn tvf_keys_take_precedence() {
    let mut stored = file("resize-naive");
    let plain = FrameProcessor::from_json(&stored).unwrap();
    let half = [0.5; 3];
    stored["tvf_normalize_params"] = json!([{"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}, {"mean": half, "std": half, "inplace": false}]);
    let other = FrameProcessor::from_json(&stored).unwrap();
    let (plain, other) = (plain.process(&frame(8, 8)).unwrap(), other.process(&frame(8, 8)).unwrap());
    let at =
        |pixels: &Tensor, plane| pixels.get(plane).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_ne!(at(&plain, 0), at(&other, 0));
    assert_eq!(at(&plain, 3), at(&other, 3));
    assert_eq!(at(&other, 0)[1], frame(8, 8).rgb[3] as f32 / 255.0);
}

#[test]
fn another_strategy_ignores_the_tvf_sizes_of_the_file() {
    let mut stored = file("resize-naive");
    stored["tvf_resize_params"] = json!([{"size": [8, 8]}, {"size": [8, 8]}]);
    stored["tvf_do_letterbox"] = json!(false);
    let same = FrameProcessor::with_strategy(&stored, "resize-naive").unwrap();
    assert_eq!(same, FrameProcessor::from_json(&stored).unwrap());
    let other = FrameProcessor::with_strategy(&stored, "letterbox").unwrap();
    assert_eq!(other, FrameProcessor::from_json(&file("letterbox")).unwrap());
}

#[test]
fn the_center_crop_interpolates_linearly() {
    let flat = Image { width: 10, height: 7, rgb: [200, 3, 255].repeat(70) };
    assert_eq!(centre_crop(&flat, (4, 4)).rgb, [200, 3, 255].repeat(16));
    // Of a ramp along the rows, (1 - √0.9) / 2 is cropped at both ends.
    let ramp = Image { width: 256, height: 2, rgb: (0..512 * 3).map(|i| (i / 3 % 256) as u8).collect() };
    let seen = centre_crop(&ramp, (1, 2)).rgb;
    assert_eq!((seen[0], seen[3]), (6, 248), "255 (1 - √0.9) / 2 = 6.54, and 248.46");
}

#[test]
fn invalid_frames_and_files_are_errors() {
    let processor = FrameProcessor::from_json(&file("letterbox")).unwrap();
    let empty = Image { width: 0, height: 4, rgb: Vec::new() };
    let short = Image { width: 2, height: 2, rgb: vec![0; 5] };
    let endless = Image { width: 20_000_000, height: 1, rgb: vec![0; 60_000_000] };
    for frame in [empty, short, endless] {
        assert_eq!(processor.process(&frame).unwrap_err().kind(), ErrorKind::Input);
    }
    let bad = [
        ("image_resize_strategy", json!("stretch")),
        ("image_resize_strategy", json!(3)),
        ("input_sizes", json!([])),
        ("input_sizes", json!([[3, 0, 8]])),
        ("input_sizes", json!([[3, 1u64 << 40, 8]])),
        ("means", json!([[0.5, 0.5, 0.5]])),
        ("stds", json!("half")),
        ("interpolations", json!(["sharp"])),
        ("tvf_crop_params", json!([{"output_size": [9, 9]}])),
        ("tvf_resize_params", json!([{"size": []}])),
        ("tvf_do_letterbox", json!("yes")),
        ("tvf_crop_params", json!([{"output_size": [8, 8]}])),
        ("tvf_normalize_params", json!([])),
        ("interpolations", json!(["bicubic"])),
        ("do_flip_channel_order", json!(true)),
        ("tvf_resize_params", json!([{"size": [8, 8], "squint": 2}, {"size": [8, 8]}])),
    ];
    for (key, value) in bad {
        let mut file = file("resize-naive");
        file[key] = value.clone();
        let error = FrameProcessor::from_json(&file).expect_err(key).to_string();
        assert!(
            error.contains(key)
                || error.contains("image size")
                || error.contains("height")
                || error.contains("cannot crop"),
            "{key} = {value}: {error}"
        );
    }
}
