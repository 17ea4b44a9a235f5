use serde_json::json;

use super::*;
use crate::ErrorKind;

/// An image whose pixels encode their position: red is the column, green the row.
fn picture(height: usize, width: usize) -> Image {
    let pixel = |i: usize| [(i % width) as u8, (i / width) as u8, 7];
    Image { width, height, rgb: (0..height * width).flat_map(pixel).collect() }
}

/// A processor that only crops.
fn cropping(kind: &str, height: usize, width: usize) -> Processor {
    Processor::from_json(&json!({
        "image_processor_type": kind, "do_resize": false, "do_rescale": false, "do_normalize": false,
        "do_center_crop": true, "crop_size": {"height": height, "width": width}
    }))
    .unwrap()
}

#[test]
fn crop_offsets_are_rounded_like_in_the_reference() {
    // 7 - 4 = 3 pixels are cropped.
    let corner = |processor: Processor| {
        let seen = processor.process(&picture(7, 7)).unwrap();
        seen.get(0).unwrap().get(0).unwrap().to_vec1::<f32>().unwrap()[0]
    };
    assert_eq!(corner(cropping("CLIPImageProcessor", 4, 4)), 1.0, "floor of 1.5");
    assert_eq!(corner(cropping("CLIPImageProcessorPil", 4, 4)), 1.0);
    let open_clip = Processor {
        size: None,
        levels: cropping("CLIPImageProcessor", 4, 4).levels,
        ..Processor::open_clip(4)
    };
    assert_eq!(corner(open_clip), 2.0, "1.5 to even");
    let offsets = |side| (Middle::Even.offset(side, 4), Middle::Down.offset(side, 4));
    assert_eq!([5, 7, 9, 11].map(offsets), [(0, 0), (2, 1), (2, 2), (4, 3)]);
}

#[test]
fn odd_padding_of_a_small_image_is_last_with_torchvision_and_first_with_pillow() {
    let columns = |kind| {
        let seen = cropping(kind, 1, 5).process(&picture(1, 2)).unwrap();
        seen.get(2).unwrap().get(0).unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(columns("CLIPImageProcessor"), [0.0, 7.0, 7.0, 0.0, 0.0]);
    assert_eq!(columns("CLIPImageProcessorPil"), [0.0, 0.0, 7.0, 7.0, 0.0]);
}

#[test]
fn sizes_depend_on_the_image() {
    let exact = |size: Size, height, width| size.of(height, width).unwrap();
    assert_eq!(exact(Size::Shortest(224), 480, 641), (224, 299));
    assert_eq!(exact(Size::Shortest(224), 641, 480), (299, 224));
    assert_eq!(exact(Size::Between(10, 15), 100, 300), (5, 15));
    assert_eq!(exact(Size::Between(10, 100), 100, 300), (10, 30));
    assert_eq!(exact(Size::Between(10, 100), 10, 30), (10, 30));
    assert_eq!(exact(Size::Within(50, 50), 100, 200), (25, 50));
    assert_eq!(exact(Size::Rounded(256), 300, 383), (256, 327));
    assert!(Size::Rounded(256).of(300, 255).is_err());
}

#[test]
fn a_padded_image_keeps_its_aspect_ratio_on_black() {
    let black = -1.0;
    let seen = Processor::siglip(8).padded().process(&picture(2, 4)).unwrap();
    let green: Vec<Vec<f32>> = seen.get(1).unwrap().to_vec2().unwrap();
    assert_eq!(seen.dims(), [3, 8, 8]);
    assert!(green[0].iter().chain(&green[1]).chain(&green[6]).all(|level| *level == black));
    assert!(green[5].iter().all(|level| *level > black));
    let dot = Processor::siglip(8).padded().process(&picture(1, 200)).unwrap();
    assert_eq!(dot.dims(), [3, 8, 8], "a side shorter than a pixel becomes one pixel");
}

#[test]
fn images_are_padded_to_a_square_with_the_mean_colour() {
    let seen = square(&picture(1, 4), [122, 116, 104]).unwrap();
    assert_eq!((seen.height, seen.width), (4, 4));
    assert_eq!(seen.rgb[..3], [122, 116, 104]);
    assert_eq!(seen.rgb[12..15], [0, 0, 7], "one row above, two below");
    assert_eq!(Processor::llava(4).square, Some([122, 116, 104]));
}

#[test]
fn image_options_follow_the_reference_of_each_processor() {
    let file = |json: Value| Processor::from_json(&json).unwrap().image_options();
    for kind in
        ["CLIPImageProcessor", "SiglipImageProcessorPil", "Gemma3ImageProcessor", "IdeficsImageProcessor"]
    {
        assert_eq!(file(json!({"image_processor_type": kind})), ImageOptions::transformers());
    }
    assert_eq!(file(json!({"preprocess_cfg": {}, "model_cfg": {}})), ImageOptions::open_clip());
    assert_eq!(Processor::dvae().image_options(), ImageOptions::open_clip());
    assert_eq!(Processor::llava(8).image_options(), ImageOptions::transformers());
}

#[test]
fn pan_and_scan_crops_only_elongated_images() {
    let scan = Processor::gemma3(16).with_pan_and_scan(true);
    assert!(scan.pieces(&picture(300, 350)).unwrap().is_empty(), "aspect ratio too small");
    assert!(scan.pieces(&picture(200, 600)).unwrap().is_empty(), "crops too small");
    let pieces = scan.pieces(&picture(300, 1000)).unwrap();
    let sizes: Vec<_> = pieces.iter().map(|piece| (piece.height, piece.width)).collect();
    assert_eq!(sizes, [(300, 334), (300, 334), (300, 332)]);
    assert_eq!(scan.batch(&[picture(300, 1000), picture(300, 300)]).unwrap().dims(), [5, 3, 16, 16]);
    assert!(Processor::gemma3(16).pieces(&picture(300, 1000)).unwrap().is_empty(), "off");
}

#[test]
fn every_format_of_config_is_parsed() {
    let read = |file: Value| Processor::from_json(&file).unwrap();
    let clip = |size: Value| {
        read(json!({"image_processor_type": "CLIPImageProcessorFast", "size": size, "crop_size": 32}))
    };
    for size in [json!(32), json!({"shortest_edge": 32})] {
        assert_eq!(clip(size).size, Some((Size::Shortest(32), Filter::Bicubic)));
    }
    for size in [json!([32, 30]), json!({"height": 32, "width": 30})] {
        assert_eq!(clip(size).size, Some((Size::Exact(32, 30), Filter::Bicubic)));
    }
    let old = read(json!({"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224,
        "do_resize": true, "do_center_crop": true, "do_normalize": true, "resample": 3,
        "image_mean": CLIP_MEAN, "image_std": CLIP_STD}));
    assert_eq!((old.size(), old.levels), ((224, 224), Processor::clip(224).levels));
    let idefics = read(json!({"image_processor_type": "IdeficsImageProcessor", "image_num_channels": 3,
        "image_size": 30}));
    assert_eq!(idefics.size, Some((Size::Exact(30, 30), Filter::Bicubic)));
    let nested = read(json!({"image_processor": {"image_processor_type": "Gemma3ImageProcessor", "size": 28,
        "do_pan_and_scan": null}, "processor_class": "Gemma3Processor"}));
    assert_eq!(nested.size, Some((Size::Exact(28, 28), Filter::Bilinear)));
    let open_clip = read(json!({"model_cfg": {"vision_cfg": {"image_size": 30}},
        "preprocess_cfg": {"mean": CLIP_MEAN, "std": CLIP_STD}}));
    assert_eq!((open_clip.size(), open_clip.arithmetic), ((30, 30), Arithmetic::Pillow));
    let lanczos = read(json!({"image_processor_type": "CLIPImageProcessor", "resample": 1}));
    assert_eq!(lanczos.size.unwrap().1, Filter::Bicubic);
}

#[test]
fn unknown_keys_that_could_change_the_result_are_rejected_by_name() {
    let refused = |file: Value| Processor::from_json(&file).unwrap_err();
    let error = refused(json!({"image_processor_type": "CLIPImageProcessor", "do_flip_channel_order": true}));
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("do_flip_channel_order"), "{error}");
    let error = refused(json!({"image_processor_type": "Siglip2ImageProcessor"}));
    assert!(error.to_string().contains("SiglipImageProcessor"), "{error}");
    for (key, value) in [
        ("size", json!({"longest_edge": 32})),
        ("size", json!(0)),
        ("crop_size", json!({"shortest_edge": 3})),
        ("image_std", json!([1.0, 0.0, 1.0])),
        ("image_mean", json!([1.0, 0.0])),
        ("do_resize", json!("yes")),
        ("rescale_factor", json!(-1)),
        ("resample", json!(9)),
        ("data_format", json!("channels_last")),
    ] {
        let error = refused(json!({"image_processor_type": "CLIPImageProcessor", key: value}));
        assert!(error.to_string().contains(key), "{error}");
    }
    assert!(Processor::from_json(&json!([])).is_err());
    assert!(Processor::from_json(&json!({})).is_err());
}

#[test]
fn an_image_of_one_pixel_and_an_elongated_one_are_processed() {
    for processor in
        [Processor::clip(32), Processor::siglip(32), Processor::gemma3(32), Processor::open_clip(32)]
    {
        assert_eq!(processor.process(&picture(1, 1)).unwrap().dims(), [3, 32, 32]);
        assert_eq!(processor.process(&picture(1, 20_000)).unwrap().dims(), [3, 32, 32]);
    }
    assert!(Processor::clip(0).process(&picture(2, 2)).is_err());
    assert!(Processor::clip(8).batch(&[]).is_err());
}

#[test]
fn a_batch_equals_its_images() {
    let images = [picture(9, 5), picture(30, 31), picture(4, 90)];
    let processor = Processor::clip(6);
    let batch = processor.batch(&images).unwrap();
    for (index, image) in images.iter().enumerate() {
        let (one, row) = (processor.process(image).unwrap(), batch.get(index).unwrap());
        assert_eq!(
            one.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            row.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        );
    }
}
