use std::io::Write;
use std::time::Duration;

use fauna_shared::ErrorKind;
use fauna_shared::checkpoint::{Checkpoint, List, StorageType, Value};
use proptest::prelude::*;

use super::{fixture, open, open_and_read, refusal};

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn i64s(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn halves(values: std::ops::Range<u8>) -> Vec<f32> {
    values.map(|v| f32::from(v) / 2.0).collect()
}

#[test]
fn both_formats_read_all_types_and_views() {
    for name in ["zip.pt", "legacy.pt"] {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let expect = |tensor: &str, storage: StorageType, shape: &[usize], bytes: Vec<u8>| {
            let stored = checkpoint.get(tensor).unwrap_or_else(|| panic!("{name} lacks {tensor}"));
            assert_eq!(
                (stored.storage, &stored.shape[..], &*stored.bytes),
                (storage, shape, &*bytes),
                "{name} {tensor}"
            );
        };
        let grid: Vec<f32> = (0..12).map(|v| v as f32).collect();
        expect("grid", StorageType::F32, &[3, 4], f32s(&grid));
        expect("tied", StorageType::F32, &[3, 4], f32s(&grid));
        let transposed = [0., 4., 8., 1., 5., 9., 2., 6., 10., 3., 7., 11.];
        expect("transposed", StorageType::F32, &[4, 3], f32s(&transposed));
        expect("row", StorageType::F32, &[4], f32s(&grid[4..8]));
        expect("column", StorageType::F32, &[3], f32s(&[2., 6., 10.]));
        expect("every_other", StorageType::I64, &[2, 2, 2], i64s(&[1, 2, 9, 10, 13, 14, 21, 22]));
        expect("expanded", StorageType::F32, &[2, 3], f32s(&[5.; 6]));
        let half = |v: &f32| half::f16::from_f32(*v).to_le_bytes();
        let brain = |v: &f32| half::bf16::from_f32(*v).to_le_bytes();
        expect("bf16", StorageType::BF16, &[2, 3], halves(0..6).iter().flat_map(brain).collect());
        expect("f16", StorageType::F16, &[6], halves(0..6).iter().flat_map(half).collect());
        expect("f64", StorageType::F64, &[], 0.25f64.to_le_bytes().to_vec());
        expect("bool", StorageType::Bool, &[3], vec![1, 0, 1]);
        expect("u8", StorageType::U8, &[5], vec![0, 1, 2, 3, 4]);
        expect("i32", StorageType::I32, &[2], [-1i32, 2].iter().flat_map(|v| v.to_le_bytes()).collect());
        expect("complex", StorageType::C64, &[1], f32s(&[1., 2.]));
        expect("empty", StorageType::F32, &[0, 3], vec![]);
        expect("parameter", StorageType::F32, &[1], f32s(&[1.5]));
        if name == "zip.pt" {
            expect("f8", StorageType::F8E4M3, &[2], vec![0x30, 0x38]);
            expect("u16", StorageType::U16, &[1], vec![255, 255]);
        }
        assert!(checkpoint.get("grid").unwrap().bytes.is_mapped(), "{name} was copied");
        assert_eq!(checkpoint.names().len(), if name == "zip.pt" { 18 } else { 16 });
    }
}

#[test]
fn a_training_checkpoint_gives_the_model_and_metadata() {
    let checkpoint = Checkpoint::open(&fixture("lightning.ckpt")).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["model.a.bias", "model.a.weight"]);
    let about = checkpoint.metadata();
    assert_eq!(about["epoch"], Value::I64(3));
    assert_eq!(about["hyper_parameters.args.width"], Value::I64(8));
    assert_eq!(about["hyper_parameters.args.name"], Value::Text("tiny".into()));
    assert_eq!(about["hyper_parameters.args.sizes"], Value::List(List::I64(vec![1, 2])));
    assert!(about.keys().all(|key| !key.contains('?')), "{about:?}");
}

#[test]
fn a_pickled_module_is_read_as_its_state_dict() {
    let checkpoint = Checkpoint::open(&fixture("module.pkl")).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["0.kept", "0.w", "1.bias", "1.weight"]);
    assert_eq!(*checkpoint.get("0.w").unwrap().bytes, f32s(&[1., 2.]));
    assert_eq!(checkpoint.metadata()["1.in_features"], Value::I64(2));
}

#[test]
fn pickled_code_is_never_run() {
    for (name, refused) in [
        ("system.pt", "posix.system"),
        ("call.pt", "torch.nn.init.ones_"),
        ("system_pickle.bin", "posix.system"),
        ("system_protocol_0.bin", "posix.system"),
        ("eval_protocol_4.bin", "builtins.eval"),
    ] {
        let error = Checkpoint::open(&fixture(name)).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Format);
        assert!(
            message.contains(&format!("refusing to run `{refused}`")) && message.contains(name),
            "{message}"
        );
    }
    assert!(!std::path::Path::new("must-not-exist").exists());
}

/// A zip file of stored entries.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let sizes = [(data.len() as u32).to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
        let lengths = (name.len() as u16).to_le_bytes();
        let head =
            [[20u8, 0, 0, 0, 0, 0, 0, 0, 0, 0].as_slice(), &[0; 4], &sizes, &lengths, &[0, 0]].concat();
        directory.extend([b"PK\x01\x02\x14\0".as_slice(), &head, &[0; 10]].concat());
        directory.extend((file.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        file.extend([b"PK\x03\x04".as_slice(), &head, name.as_bytes(), data].concat());
    }
    let counts = [(entries.len() as u16).to_le_bytes(); 2].concat();
    let place = [(directory.len() as u32).to_le_bytes(), (file.len() as u32).to_le_bytes()].concat();
    [file, directory, b"PK\x05\x06\0\0\0\0".to_vec(), counts, place, vec![0, 0]].concat()
}

/// The same zip file with all sizes and offsets in zip64 fields.
fn large(mut file: Vec<u8>) -> Vec<u8> {
    let end = file.len() - 22;
    let number = |file: &[u8], at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    let (count, start) =
        (u16::from_le_bytes([file[end + 10], file[end + 11]]), number(&file, end + 16) as usize);
    let old = file.split_off(start);
    let mut at = 0;
    for _ in 0..count {
        let name = usize::from(old[at + 28]);
        let field = |from: usize| u64::from(number(&old, at + from)).to_le_bytes();
        let extra = [[1, 0, 24, 0].as_slice(), &field(24), &field(20), &field(42)].concat();
        let mut entry = old[at..at + 46 + name].to_vec();
        entry[20..28].fill(255);
        entry[30] = extra.len() as u8;
        entry[42..46].fill(255);
        file.extend([entry, extra].concat());
        at += 46 + name;
    }
    let record = file.len() as u64;
    file.extend([b"PK\x06\x06\x2c\0\0\0\0\0\0\0".as_slice(), &[0; 12]].concat());
    file.extend(
        [u64::from(count), u64::from(count), record - start as u64, start as u64]
            .map(u64::to_le_bytes)
            .concat(),
    );
    file.extend([b"PK\x06\x07\0\0\0\0".as_slice(), &record.to_le_bytes(), &[1, 0, 0, 0]].concat());
    file.extend([b"PK\x05\x06\0\0\0\0".as_slice(), &[255; 12], &[0, 0]].concat());
    file
}

fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn int(int: i64) -> Vec<u8> {
    [b"\x8a\x08".as_slice(), &int.to_le_bytes()].concat()
}

fn ints(all: &[i64]) -> Vec<u8> {
    [b"(".to_vec(), all.iter().flat_map(|v| int(*v)).collect(), b"t".to_vec()].concat()
}

/// Instructions for a float32 tensor in storage 0.
fn tensor(claimed: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("0"),
        text("cpu"),
        int(claimed),
        b"tQ".to_vec(),
        int(offset),
        ints(shape),
        ints(strides),
        b"\x89)tR".to_vec(),
    ]
    .concat()
}

/// A checkpoint of one storage with 8 floats and this pickle.
fn checkpoint(pickle: &[u8]) -> Vec<u8> {
    let pickle = [b"\x80\x02".as_slice(), pickle, b"."].concat();
    zip(&[("a/data.pkl", &pickle), ("a/data/0", &f32s(&[0., 1., 2., 3., 4., 5., 6., 7.]))])
}

/// A checkpoint of one tensor called `t`.
fn one(tensor: &[u8]) -> Vec<u8> {
    checkpoint(&[b"}".to_vec(), text("t"), tensor.to_vec(), b"s".to_vec()].concat())
}

fn refused(file: &[u8]) -> String {
    refusal("m.pt", file)
}

#[test]
fn invalid_files_have_specific_errors() {
    assert!(open("m.pt", &one(&tensor(8, 0, &[2, 4], &[4, 1]))).is_ok());
    let outside = "exceeds its storage of 8";
    assert!(refused(&one(&tensor(8, 0, &[9], &[1]))).contains(outside));
    assert!(refused(&one(&tensor(8, 8, &[1], &[1]))).contains(outside));
    assert!(refused(&one(&tensor(8, i64::MAX, &[1], &[1]))).contains(outside));
    assert!(refused(&one(&tensor(8, 1, &[2, 4], &[4, 1]))).contains(outside));
    assert!(refused(&one(&tensor(8, 0, &[i64::MAX, i64::MAX], &[1, 1]))).contains(outside));
    assert!(refused(&one(&tensor(8, 0, &[3, 1], &[i64::MAX, 1]))).contains(outside));
    assert!(
        refused(&one(&tensor(9, 0, &[1], &[1])))
            .contains("has 9 elements of F32 from offset 0, but the file has 32 bytes")
    );
    assert!(refused(&one(&tensor(i64::MAX, 0, &[1], &[1]))).contains("elements of F32"));
    assert!(refused(&one(&tensor(8, 0, &[1 << 40], &[0]))).contains("much larger than the file"));
    assert!(refused(&one(&tensor(-1, 0, &[1], &[1]))).contains("invalid persistent id of a storage"));
    for nonsense in [tensor(8, -1, &[1], &[1]), tensor(8, 0, &[-1], &[1])] {
        assert!(refused(&one(&nonsense)).contains("invalid arguments"));
    }
    assert!(refused(&one(&tensor(8, 0, &[1, 2], &[1]))).contains("invalid arguments"));
    let unit = open("m.pt", &one(&tensor(8, 3, &[1, 2], &[i64::MAX, 2]))).unwrap();
    assert_eq!(*unit.get("t").unwrap().bytes, f32s(&[3., 5.]));

    let swapped = |from: &str, to: &str| {
        let mut tensor = tensor(8, 0, &[1], &[1]);
        let at = tensor.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        tensor.splice(at..at + from.len(), to.bytes());
        open("m.pt", &one(&tensor)).unwrap_err()
    };
    assert_eq!(swapped("FloatStorage", "QInt8Storage").kind(), ErrorKind::Unsupported);
    let unknown = swapped("_rebuild_tensor_v2", "_rebuild_something").to_string();
    assert!(unknown.contains("refusing to run `torch._utils._rebuild_something`"), "{unknown}");

    assert!(refused(&checkpoint(b"}")).contains("no tensors"));
    assert!(refused(&checkpoint(b"")).contains("the stack is empty"));
    assert!(refused(&checkpoint(b"t")).contains("no mark"));
    assert!(refused(&checkpoint(b"(Ne}")).contains("the stack is empty"));
    assert!(refused(&checkpoint(b"Na")).contains("the stack is empty"));
    assert!(refused(&checkpoint(b"NNa")).contains("append to an object that is not a list"));
    assert!(refused(&checkpoint(b"h\x05")).contains("no memo entry 5"));
    assert!(refused(&checkpoint(b"\xff")).contains("instruction 0xff"));
    assert!(refused(&checkpoint(b"X\xff\xff\xff\xff")).contains("inside an instruction"));
    assert!(refused(&checkpoint(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff")).contains("inside an instruction"));
    assert!(refused(&checkpoint(b"\x82\x01")).contains("instruction 0x82"));
}

#[test]
fn cyclic_and_deep_objects_are_rejected() {
    let circle = [b"}q\x00".to_vec(), text("self"), b"h\x00s".to_vec()].concat();
    assert!(refused(&checkpoint(&circle)).contains("nested too deeply"));
    let tower = [b"]".repeat(100_000), b"a".repeat(99_999)].concat();
    assert!(refused(&checkpoint(&tower)).contains("nested too deeply"));
    // Sixty lists, each of which contains the previous one twice.
    let mut laughs = b"]q\x00".to_vec();
    for level in 1..=60u8 {
        laughs.extend([b'0', b']', b'q', level, b'(', b'h', level - 1, b'h', level - 1, b'e']);
    }
    assert!(refused(&checkpoint(&laughs)).contains("nested too deeply"));
    // One long string referenced many times.
    let mut echo = [b"(".to_vec(), text(&"x".repeat(100_000)), b"q\x00".to_vec()].concat();
    for _ in 0..50_000 {
        echo.extend(b"h\x00");
    }
    echo.push(b'l');
    let echo = [b"}".to_vec(), text("k"), echo, b"s".to_vec()].concat();
    assert!(refused(&checkpoint(&echo)).contains("much larger than the file"));
}

#[test]
fn invalid_zip_files_are_rejected() {
    let good = one(&tensor(8, 0, &[8], &[1]));
    assert!(refused(&zip(&[("a/other", b"x")])).contains("without the data.pkl"));
    assert!(refused(&zip(&[("a/data.pkl", b"x"), ("a/data.pkl", b"x")])).contains("duplicate"));
    let pickle = [b"\x80\x02}".to_vec(), text("t"), tensor(8, 0, &[1], &[1]), b"s.".to_vec()].concat();
    assert!(refused(&zip(&[("a/data.pkl", &pickle)])).contains("missing storage 0"));
    let big = open("m.pt", &zip(&[("a/byteorder", b"big"), ("a/data.pkl", &pickle)])).unwrap_err();
    assert_eq!(big.kind(), ErrorKind::Unsupported);
    for end in 0..good.len() {
        refused(&good[..end]);
    }
}

#[test]
fn zip64_files_are_read() {
    let file = large(one(&tensor(8, 1, &[2], &[1])));
    assert_eq!(*open("m.pt", &file).unwrap().get("t").unwrap().bytes, f32s(&[1., 2.]));
    for end in 0..file.len() {
        refused(&file[..end]);
    }
}

#[test]
fn a_truncated_legacy_file_is_rejected() {
    let whole = std::fs::read(fixture("legacy.pt")).unwrap();
    for end in (0..whole.len()).step_by(3) {
        refused(&whole[..end]);
    }
}

proptest! {
    #[test]
    fn no_pickle_can_panic(pickle in prop::collection::vec(any::<u8>(), 0..200)) {
        open_and_read("m.pt", &[b"\x80\x02".as_slice(), &pickle].concat());
        open_and_read("m.pt", &checkpoint(&pickle));
    }

    #[test]
    fn no_instructions_can_panic(
        steps in prop::collection::vec(prop::sample::select(b"(012N)]}tlde asubRQ\x81\x85\x86\x87\x88\x8f\x90\x91\x93\x94io.".as_slice()), 0..60)
    ) {
        let pickle = [tensor(8, 0, &[2, 4], &[1, 2]), b"\x94".to_vec(), text("k"), steps].concat();
        open_and_read("m.pt", &checkpoint(&pickle));
    }

    #[test]
    fn no_changed_bytes_can_panic(
        name in prop::sample::select(vec!["zip.pt", "legacy.pt", "lightning.ckpt", "module.pkl"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        keep in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut content = std::fs::read(fixture(name)).unwrap();
        for (at, to) in changes {
            *at.get_mut(&mut content) = to;
        }
        if cut {
            content.truncate(keep.index(content.len()));
        }
        open_and_read("m.pt", &content);
    }

    #[test]
    fn no_lying_number_can_panic(
        claimed in any::<i64>(), offset in -2i64..10,
        axes in prop::collection::vec((prop_oneof![-1i64..5, any::<i64>()], prop_oneof![-1i64..9, any::<i64>()]), 0..4),
    ) {
        let (shape, strides): (Vec<i64>, Vec<i64>) = axes.into_iter().unzip();
        open_and_read("m.pt", &one(&tensor(8, offset, &shape, &strides)));
        open_and_read("m.pt", &one(&tensor(claimed, offset, &shape, &strides)));
    }
}

#[test]
fn a_hundred_thousand_tensors_open_in_seconds() {
    let start = std::time::Instant::now();
    let mut pickle = b"}(".to_vec();
    for i in 0..100_000 {
        pickle.write_all(&text(&format!("layer.{i}.weight"))).unwrap();
        pickle.extend(tensor(8, 0, &[2, 4], &[4, 1]));
    }
    pickle.push(b'u');
    assert_eq!(open("m.pt", &checkpoint(&pickle)).unwrap().names().len(), 100_000);
    assert!(start.elapsed() < Duration::from_secs(20));
}
