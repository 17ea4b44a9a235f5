//! The keys of processor files against the reference's classes, from `processors.json`, which
//! `tests/parity/generate/processor_keys.py` writes.

use fauna_shared::image::Processor;
use fauna_shared::item::Image;
use serde_json::{Map, Value, json};

/// Keys of the reference that say nothing of a picture: how the call is made and what it gives back.
const OF_THE_CALL: [&str; 4] = ["data_format", "device", "input_data_format", "return_tensors"];

fn classes() -> Map<String, Value> {
    serde_json::from_str(include_str!("processors.json")).unwrap()
}

fn picture() -> Image {
    let (height, width) = (21, 34);
    Image { width, height, rgb: (0..height * width * 3).map(|i| (i * 37 % 251) as u8).collect() }
}

/// `base` with `change` made to it.
fn file(name: &str, base: &Value, change: &Value) -> Value {
    let mut file = json!({"image_processor_type": name});
    for part in [base, change] {
        file.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
    }
    file
}

#[test]
fn a_changed_key_does_what_it_does_in_the_reference_or_is_refused_by_name() {
    let (mut compared, mut refused) = (0, Vec::new());
    for (name, class) in classes() {
        for entry in class["files"].as_array().unwrap() {
            if !entry["refused"].is_null() {
                continue;
            }
            let change = &entry["change"];
            let processor = match Processor::from_json(&file(&name, &class["base"], change)) {
                Ok(processor) => processor,
                Err(error) => {
                    let keys = change.as_object().unwrap();
                    assert!(
                        keys.keys().any(|key| error.to_string().contains(key)),
                        "{name} {change}: {error}"
                    );
                    refused.push(format!("{change}"));
                    continue;
                }
            };
            let seen = processor.batch(&[picture()]).unwrap();
            let wanted: Vec<usize> = serde_json::from_value(entry["shape"].clone()).unwrap();
            assert_eq!(seen.dims(), wanted, "{name} {change}");
            let found: Vec<f32> = seen.flatten_all().unwrap().to_vec1().unwrap();
            let wanted: Vec<f32> = serde_json::from_value(entry["numbers"].clone()).unwrap();
            let step = (found.len() / wanted.len()).max(1);
            for (i, wanted) in wanted.iter().enumerate() {
                let found = found[i * step];
                assert!(
                    (found - wanted).abs() <= 2e-6 * wanted.abs().max(1.0),
                    "{name} {change}: {found} {wanted}"
                );
            }
            compared += 1;
        }
    }
    refused.sort();
    refused.dedup();
    // Where a class passes over a key, another class or an older one obeys it: such a file is refused by that key.
    let wanted = [
        r#"{"do_flip_channel_order":true}"#,
        r#"{"do_pan_and_scan":true,"pan_and_scan_min_crop_size":5,"pan_and_scan_max_num_crops":3,"pan_and_scan_min_ratio_to_activate":1.1}"#,
        r#"{"do_reduce_labels":true}"#,
        r#"{"image_size":11}"#,
        r#"{"pan_and_scan_min_crop_size":5}"#,
        r#"{"size":{"longest_edge":18}}"#,
        r#"{"use_square_size":true}"#,
    ];
    assert_eq!(refused, wanted);
    assert!(compared > 300, "{compared}");
}

#[test]
fn every_key_of_the_reference_is_known_and_its_default_is_the_same() {
    for (name, class) in classes() {
        let bare = Processor::from_json(&json!({"image_processor_type": name})).unwrap();
        let bare = bare.batch(&[picture()]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let defaults = class["defaults"].as_object().unwrap();
        let spelled = Processor::from_json(&file(&name, &json!({}), &class["defaults"])).unwrap();
        let spelled = spelled.batch(&[picture()]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(bare == spelled, "{name}: defaults spelled out are another processor: {defaults:?}");
        let keys = class["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap());
        for key in keys.filter(|key| !OF_THE_CALL.contains(key)) {
            // A value that makes no sense is noticed where the key is obeyed; what says nothing of pictures is let be.
            let odd = json!({key: {"nobody": "knows"}});
            let harmless = ["disable_grouping", "do_convert_rgb", "image_seq_length"].contains(&key);
            let read = Processor::from_json(&file(&name, &json!({}), &odd));
            match read {
                Ok(_) => assert!(harmless, "{name}: {key} is not looked at"),
                Err(error) => assert!(error.to_string().contains(key), "{name}: {key}: {error}"),
            }
        }
    }
}
