use candle_core::quantized::GgmlDType;
use fauna_shared::checkpoint::{Checkpoint, List, Metadata, StorageType, TensorInfo, Value, write_gguf};
use fauna_shared::{Error, ErrorKind};
use proptest::prelude::*;

use super::{fixture, open, open_and_read, refusal};

/// The beginning of a version 3 file with the numbers of tensors and keys.
fn start(tensors: u64, keys: u64) -> Vec<u8> {
    [b"GGUF".as_slice(), &3u32.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A file with one key, whose value has the type `kind` and the bytes `rest`.
fn one_key(kind: u32, rest: &[u8]) -> Vec<u8> {
    [start(0, 1), text("k"), kind.to_le_bytes().to_vec(), rest.to_vec()].concat()
}

/// A file with one tensor and 64 bytes of data.
fn one_tensor(axes: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut file = [start(1, 0), text("t"), (axes.len() as u32).to_le_bytes().to_vec()].concat();
    axes.iter().for_each(|axis| file.extend(axis.to_le_bytes()));
    file.extend([kind.to_le_bytes().to_vec(), offset.to_le_bytes().to_vec()].concat());
    file.resize(file.len().next_multiple_of(32) + 64, 1);
    file
}

/// A small file with a value of every type and two tensors.
fn small() -> (Metadata, Vec<u8>) {
    let metadata: Metadata = [
        ("a.u8", Value::U8(1)),
        ("b.i8", Value::I8(-1)),
        ("c.u16", Value::U16(2)),
        ("d.i16", Value::I16(-2)),
        ("e.u32", Value::U32(3)),
        ("f.i32", Value::I32(-3)),
        ("g.u64", Value::U64(4)),
        ("h.i64", Value::I64(-4)),
        ("i.f32", Value::F32(0.5)),
        ("j.f64", Value::F64(0.25)),
        ("k.bool", Value::Bool(true)),
        ("l.text", Value::Text("é".into())),
        ("m.texts", Value::List(List::Text(vec!["x".into(), "".into()]))),
        ("n.lists", Value::List(List::Lists(vec![List::Bool(vec![true, false]), List::F64(vec![1.0])]))),
        ("o.ints", Value::List(List::I16(vec![-5, 6]))),
        ("general.alignment", Value::U32(8)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    let tensors = [
        TensorInfo {
            name: "blocks".into(),
            storage: StorageType::Block(GgmlDType::Q8_0),
            shape: vec![2, 32],
        },
        TensorInfo { name: "half".into(), storage: StorageType::F16, shape: vec![3, 1] },
        TensorInfo { name: "scalar".into(), storage: StorageType::I64, shape: vec![] },
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    write_gguf(&path, &metadata, &tensors, |t| Ok(vec![7; t.storage.byte_len(&t.shape).unwrap()])).unwrap();
    (metadata, std::fs::read(path).unwrap())
}

#[test]
fn written_files_are_read_back() {
    let (metadata, file) = small();
    let checkpoint = open("small.gguf", &file).unwrap();
    assert_eq!(checkpoint.metadata(), &metadata);
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["blocks", "half", "scalar"]);
    assert_eq!(checkpoint.get("blocks").unwrap().bytes.len(), 2 * 34);
    assert_eq!(checkpoint.get("half").unwrap().shape, [3, 1]);
    assert_eq!(checkpoint.get("scalar").unwrap().bytes[..], [7; 8]);
    assert_eq!(metadata["c.u16"].as_usize(), Some(2));
    assert_eq!(metadata["b.i8"].as_usize(), None);
    assert_eq!(metadata["b.i8"].as_f64(), Some(-1.0));
    assert_eq!(metadata["o.ints"].as_ints().unwrap(), [-5, 6]);
    assert_eq!(metadata["m.texts"].as_texts().unwrap().len(), 2);
}

#[test]
fn candle_reads_written_files() {
    let (_, file) = small();
    let theirs = candle_core::quantized::gguf_file::Content::read(&mut std::io::Cursor::new(&file));
    // Candle does not support 64-bit integers.
    assert!(theirs.is_err());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let tensors = [GgmlDType::Q4K, GgmlDType::Q6K, GgmlDType::F32].map(|kind| TensorInfo {
        name: format!("{kind:?}"),
        storage: if kind == GgmlDType::F32 { StorageType::F32 } else { StorageType::Block(kind) },
        shape: vec![2, 256],
    });
    write_gguf(&path, &Metadata::new(), &tensors, |t| Ok(vec![1; t.storage.byte_len(&t.shape).unwrap()]))
        .unwrap();
    let mut reader = std::fs::File::open(&path).unwrap();
    let theirs = candle_core::quantized::gguf_file::Content::read(&mut reader).unwrap();
    let ours = Checkpoint::open(&path).unwrap();
    for (name, stored) in ours.iter() {
        let tensor = theirs.tensor(&mut reader, name, &candle_core::Device::Cpu).unwrap();
        assert_eq!(tensor.shape().dims(), stored.shape);
        assert_eq!(tensor.data().unwrap()[..], stored.bytes[..]);
        assert!(stored.bytes.is_mapped());
    }
}

#[test]
fn files_of_the_gguf_package_are_read() {
    let checkpoint = Checkpoint::open(&fixture("types.gguf")).unwrap();
    let about = checkpoint.metadata();
    assert_eq!(about["general.architecture"].as_str(), Some("bert"));
    assert_eq!(about["bert.block_count"], Value::U32(2));
    assert_eq!(about["bert.epsilon"], Value::F32(0.5));
    assert_eq!(about["bert.causal"].as_bool(), Some(false));
    assert_eq!(about["tokenizer.ggml.tokens"].as_texts().unwrap(), ["a", "é", "<s>"]);
    assert_eq!(about["tokenizer.ggml.scores"].as_floats().unwrap(), [0.5, -1.0, 2.0]);
    assert_eq!(about["tokenizer.ggml.token_type"].as_ints().unwrap(), [1, 1, 3]);
    assert_eq!(checkpoint.get("i32").unwrap().shape, [1, 2, 3]);
    assert_eq!(checkpoint.get("i32").unwrap().bytes[4..8], 1i32.to_le_bytes());

    let ramp: Vec<f32> = (0..512).map(|i| (i - 256) as f32 / 2.0).collect();
    for (name, storage, tolerance) in [
        ("f32", StorageType::F32, 0.0),
        ("f16", StorageType::F16, 0.0),
        ("bf16", StorageType::BF16, 0.0),
        ("q8_0", StorageType::Block(GgmlDType::Q8_0), 0.6),
        ("q5_0", StorageType::Block(GgmlDType::Q5_0), 9.0),
        ("q5_1", StorageType::Block(GgmlDType::Q5_1), 0.6),
        ("q4_0", StorageType::Block(GgmlDType::Q4_0), 18.0),
        ("q4_1", StorageType::Block(GgmlDType::Q4_1), 0.6),
    ] {
        let stored = checkpoint.get(name).unwrap();
        assert_eq!((stored.storage, &stored.shape[..]), (storage, &[2, 256][..]), "{name}");
        let kind = match storage {
            StorageType::Block(kind) => kind,
            StorageType::F32 => GgmlDType::F32,
            StorageType::F16 => GgmlDType::F16,
            _ => GgmlDType::BF16,
        };
        let cpu = candle_core::Device::Cpu;
        let tensor =
            candle_core::quantized::ggml_file::qtensor_from_ggml(kind, &stored.bytes, vec![2, 256], &cpu);
        let values =
            tensor.unwrap().dequantize(&cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let worst = values.iter().zip(&ramp).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance, "{name}: {worst}");
    }
}

#[test]
fn a_large_vocabulary_is_read_quickly() {
    let words: Vec<String> = (0..1_000_000).map(|i| format!("w{i}")).collect();
    let metadata = [("words".to_owned(), Value::List(List::Text(words)))].into();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("words.gguf");
    write_gguf::<Vec<u8>>(&path, &metadata, &[], |_| unreachable!()).unwrap();
    assert_eq!(Checkpoint::open(&path).unwrap().metadata()["words"].as_texts().unwrap()[999_999], "w999999");
}

#[test]
fn invalid_files_have_specific_errors() {
    let refused = |file: &[u8]| refusal("m.gguf", file);
    assert!(refused(&start(0, u64::MAX)).contains("inside key 0 of"));
    assert!(refused(&start(u64::MAX, 0)).contains("inside the name of tensor 0 of"));
    assert!(refused(&[start(0, 1), u64::MAX.to_le_bytes().to_vec()].concat()).contains("inside key 0 of 1"));
    assert!(refused(&one_key(99, &[0; 16])).contains("key k: unknown value type 99"));
    let list = |kind: u32, count: u64| {
        one_key(9, &[kind.to_le_bytes().to_vec(), count.to_le_bytes().to_vec()].concat())
    };
    for kind in (0..=8).chain(10..=12) {
        assert!(refused(&list(kind, u64::MAX / 3)).contains("does not fit in the file"));
    }
    assert!(refused(&list(9, u64::MAX)).contains("key k: the file ends inside the type of a list"));
    assert!(refused(&list(50, 1)).contains("unknown list type 50"));
    let deep: Vec<u8> = (0..100_000).flat_map(|_| [9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).collect();
    assert!(refused(&one_key(9, &deep)).contains("lists nested more"));
    let twice = [start(0, 2), text("k"), vec![0, 0, 0, 0, 1], text("k"), vec![0, 0, 0, 0, 1]].concat();
    assert!(refused(&twice).contains("duplicate key k"));
    for alignment in [0u32, 3, 1 << 30] {
        let value = [4u32.to_le_bytes(), alignment.to_le_bytes()].concat();
        let file = [start(0, 1), text("general.alignment"), value].concat();
        assert!(refused(&file).contains("general.alignment is U32"));
    }

    assert!(open("m.gguf", &one_tensor(&[4, 4], 0, 0)).is_ok());
    assert!(
        refused(&one_tensor(&[4, 5], 0, 0))
            .contains("tensor t: expected 80 bytes at offset 0, the data has 64")
    );
    assert!(
        refused(&one_tensor(&[4], 0, u64::MAX)).contains("expected 16 bytes at offset 18446744073709551615")
    );
    assert!(
        refused(&one_tensor(&[1 << 32, 1 << 32], 0, 0))
            .contains("invalid shape [4294967296, 4294967296] for F32")
    );
    assert!(refused(&one_tensor(&[33], 8, 0)).contains("invalid shape [33] for Q8_0"));
    assert!(refused(&one_tensor(&[], 8, 0)).contains("invalid shape"));
    assert!(refused(&one_tensor(&[1; 9], 0, 0)).contains("9 axes"));
    let mut overlap = [start(2, 0), text("s"), vec![1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]].concat();
    overlap.extend([0; 12]);
    overlap.extend(
        [text("t"), vec![1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0]].concat(),
    );
    overlap.resize(overlap.len().next_multiple_of(32) + 64, 1);
    assert!(refused(&overlap).contains("tensor t: offset 16 overlaps the previous tensor, which ends at 32"));
}

#[test]
fn unsupported_types_and_versions_are_named() {
    let unsupported = |file: &[u8]| {
        let error = open("m.gguf", file).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        error.to_string()
    };
    assert!(unsupported(&one_tensor(&[256], 23, 0)).contains("tensor t: tensor type 23 (IQ4_XS)"));
    assert!(unsupported(b"GGUF\x01\0\0\0\0\0\0\0\0\0\0\0").contains("version 1"));
    assert!(unsupported(b"GGUF\0\0\0\x03\0\0\0\0\0\0\0\0").contains("big-endian"));
}

#[test]
fn a_truncated_file_is_rejected() {
    let (_, file) = small();
    for end in 0..file.len() {
        refusal("m.gguf", &file[..end]);
    }
}

#[test]
fn a_failed_write_keeps_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    std::fs::write(&path, "old").unwrap();
    let tensors = [TensorInfo { name: "t".into(), storage: StorageType::F32, shape: vec![2] }];
    let short = write_gguf(&path, &Metadata::new(), &tensors, |_| Ok([0; 4])).unwrap_err();
    assert!(short.to_string().contains("tensor t: 4 bytes for shape [2] of F32"), "{short}");
    let failed =
        write_gguf::<Vec<u8>>(&path, &Metadata::new(), &tensors, |_| Err(Error::input("no"))).unwrap_err();
    assert_eq!(failed.to_string(), "no");
    let odd = [TensorInfo { name: "t".into(), storage: StorageType::Bool, shape: vec![2] }];
    let odd = write_gguf(&path, &Metadata::new(), &odd, |_| Ok([0; 2])).unwrap_err();
    assert_eq!(odd.kind(), ErrorKind::Unsupported);
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    write_gguf(&path, &Metadata::new(), &tensors, |_| Ok([0; 8])).unwrap();
    assert!(Checkpoint::open(&path).unwrap().get("t").is_some());
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}

proptest! {
    #[test]
    fn no_bytes_can_panic(content in prop::collection::vec(any::<u8>(), 0..300)) {
        open_and_read("m.gguf", &[b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0".as_slice(), &content].concat());
    }

    #[test]
    fn no_changed_bytes_can_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let (_, mut content) = small();
        for (at, to) in changes {
            *at.get_mut(&mut content) = to;
        }
        open_and_read("m.gguf", &content);
    }

    #[test]
    fn no_lying_number_can_panic(axes in prop::collection::vec(any::<u64>(), 0..4), kind in 0u32..32, offset in any::<u64>()) {
        open_and_read("m.gguf", &one_tensor(&axes, kind, offset));
    }
}
