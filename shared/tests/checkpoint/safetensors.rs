use fauna_shared::ErrorKind;
use fauna_shared::checkpoint::{Checkpoint, StorageType, TensorInfo, Value, write_safetensors};
use proptest::prelude::*;

use super::{open, open_and_read, refusal};

/// A file with the given header and `data` bytes 0, 1, 2, …
fn bytes(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend((0..data).map(|i| i as u8));
    file
}

const GOOD: &str = r#"{"__metadata__":{"format":"pt"},
    "b":{"dtype":"F32","shape":[2,2],"data_offsets":[2,18]},
    "a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]},
    "none":{"dtype":"I64","shape":[0,3],"data_offsets":[18,18]}}"#;

fn refused(header: &str, data: usize) -> String {
    refusal("m.safetensors", &bytes(header, data))
}

#[test]
fn tensors_and_metadata_are_read_also_misaligned() {
    for spaces in 0..8 {
        let checkpoint = open("m.safetensors", &bytes(&(GOOD.to_owned() + &" ".repeat(spaces)), 18)).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "none"]);
        assert_eq!(checkpoint.metadata()["format"], Value::Text("pt".into()));
        let (a, b) = (checkpoint.get("a").unwrap(), checkpoint.get("b").unwrap());
        assert_eq!((a.storage, &a.shape[..], &*a.bytes), (StorageType::BF16, &[][..], &[0, 1][..]));
        assert_eq!(
            (b.storage, &b.shape[..], &*b.bytes),
            (StorageType::F32, &[2, 2][..], &*(2..18).collect::<Vec<_>>())
        );
        assert_eq!(b.bytes.as_ptr().addr() % 4, 0);
        assert!(checkpoint.get("none").unwrap().bytes.is_empty());
    }
}

#[test]
fn the_format_is_detected_by_content() {
    assert!(open("misnamed.bin", &bytes(GOOD, 18)).unwrap().get("a").is_some());
}

#[test]
fn aligned_tensors_are_not_copied() {
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  "#;
    assert_eq!(header.len() % 8, 0);
    assert!(open("m.safetensors", &bytes(header, 8)).unwrap().get("a").unwrap().bytes.is_mapped());
}

#[test]
fn invalid_files_have_specific_errors() {
    let one = |entry: &str| format!(r#"{{"a":{entry}}}"#);
    assert!(refusal("m.safetensors", b"\x01\0\0").contains("too short"));
    assert!(refusal("m.safetensors", &[255; 30]).contains("the maximum of the format is 100000000"));
    let mut long = bytes(GOOD, 18);
    long[..8].copy_from_slice(&90_000_000u64.to_le_bytes());
    assert!(refusal("m.safetensors", &long).contains("header length 90000000, but only"));
    assert!(refused("{", 0).contains("invalid header"));
    assert!(refused("[1]", 0).contains("invalid header"));
    assert!(refused(&"[".repeat(5000), 0).contains("invalid header"));
    assert!(refused(&("{\"a\":".to_owned() + &"[".repeat(5000)), 0).contains("invalid header"));
    assert!(
        refused(&one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#), 4).contains("invalid header")
    );

    let size = refused(&one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#), 8);
    assert!(size.contains("tensor a: [3] of F32 has 12 bytes, data_offsets span 8"), "{size}");
    let end = refused(&one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,12]}"#), 8);
    assert!(end.contains("its data ends at byte 12, the data of the file at 8"), "{end}");
    let gap = refused(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#), 8);
    assert!(gap.contains("do not follow"), "{gap}");
    let back = refused(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,0]}"#), 0);
    assert!(back.contains("[1] of F32 has 4 bytes"), "{back}");
    let more = refused(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#), 5);
    assert!(more.contains("the tensors end at byte 4"), "{more}");
    let big = r#"{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,0]}"#;
    assert!(refused(&one(big), 0).contains("invalid shape"));
    let big = r#"{"dtype":"F32","shape":[9223372036854775807],"data_offsets":[0,4]}"#;
    assert!(refused(&one(big), 4).contains("invalid shape"));
    let end = format!(r#"{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}"#, u64::MAX);
    assert!(refused(&one(&end), 4).contains("its data ends at byte"));

    let overlap = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                      "b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    assert!(refused(overlap, 6).contains("do not follow the previous tensor"));
    let twice = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
                    "a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#;
    assert!(refused(twice, 4).contains("tensor a: duplicate name"));
    let error = open("m.safetensors", &bytes(&one(r#"{"dtype":"F4","shape":[2],"data_offsets":[0,1]}"#), 1));
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains(r#"dtype "F4""#), "{error}");
}

#[test]
fn a_truncated_file_is_rejected() {
    let whole = bytes(GOOD, 18);
    for end in 0..whole.len() {
        refusal("m.safetensors", &whole[..end]);
    }
}

#[test]
fn written_files_are_read_back_also_by_the_crate() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let tensors = [("b", StorageType::F32, vec![2, 1]), ("a", StorageType::Bool, vec![3])]
        .map(|(name, storage, shape)| TensorInfo { name: name.into(), storage, shape });
    let notes = [("format".to_owned(), Value::Text("pt".into()))].into();
    write_safetensors(&path, &notes, &tensors, |t| Ok(vec![1; t.storage.byte_len(&t.shape).unwrap()]))
        .unwrap();
    let ours = Checkpoint::open(&path).unwrap();
    assert_eq!(ours.metadata(), &notes);
    assert!(ours.get("b").unwrap().bytes.is_mapped());
    let file = std::fs::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(theirs.tensor("b").unwrap().data(), &*ours.get("b").unwrap().bytes);
    assert_eq!(theirs.tensor("a").unwrap().shape(), [3]);

    let twice = [tensors[0].clone(), tensors[0].clone()];
    let error = write_safetensors(&path, &notes, &twice, |_| Ok([1; 8])).unwrap_err();
    assert!(error.to_string().contains("duplicate tensor b"), "{error}");
}

proptest! {
    #[test]
    fn no_bytes_can_panic(content in prop::collection::vec(any::<u8>(), 0..300)) {
        open_and_read("m.safetensors", &content);
    }

    #[test]
    fn no_header_can_panic(header in "\\{(\"[ab_]{1,3}\":[\\[\\]{}0-9,:\"A-Z]{0,40},?){0,3}\\}?", data in 0usize..40) {
        open_and_read("m.safetensors", &bytes(&header, data));
    }

    #[test]
    fn no_changed_byte_can_panic(at in 0..GOOD.len() + 26, to in any::<u8>()) {
        let mut content = bytes(GOOD, 18);
        content[at] = to;
        open_and_read("m.safetensors", &content);
    }

    #[test]
    fn no_lying_number_can_panic(shape in prop::collection::vec(any::<u64>(), 0..4), from in any::<u64>(), len in any::<u64>()) {
        let header = format!(
            r#"{{"a":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{from},{}]}}}}"#, from.wrapping_add(len)
        );
        open_and_read("m.safetensors", &bytes(&header, 8));
    }
}
