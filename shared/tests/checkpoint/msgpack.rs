use fauna_shared::checkpoint::{StorageType, Value};
use proptest::prelude::*;

use super::{open, open_and_read, refusal};

fn text(text: &str) -> Vec<u8> {
    [&[0xa0 | text.len() as u8], text.as_bytes()].concat()
}

/// A map of fewer than 16 entries.
fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let parts = entries.iter().flat_map(|(key, value)| [text(key), value.clone()].concat());
    std::iter::once(0x80 | entries.len() as u8).chain(parts).collect()
}

/// The content of an array extension.
fn inside(shape: &[u8], dtype: &str, data: &[u8]) -> Vec<u8> {
    let shape = [&[0x90 | shape.len() as u8], shape].concat();
    [vec![0x93], shape, text(dtype), vec![0xc4, data.len() as u8], data.to_vec()].concat()
}

fn extension(kind: u8, inside: &[u8]) -> Vec<u8> {
    [&[0xc7, inside.len() as u8, kind], inside].concat()
}

fn array(shape: &[u8], dtype: &str, data: &[u8]) -> Vec<u8> {
    extension(1, &inside(shape, dtype, data))
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn good() -> Vec<u8> {
    let kernel = array(&[2, 1], "float32", &floats(&[1.5, -2.0]));
    let bias = array(&[3], "bfloat16", &[1, 2, 3, 4, 5, 6]);
    let pieces =
        dict(&[("1", array(&[1], "float16", &[5, 6])), ("0", array(&[2], "float16", &[1, 2, 3, 4]))]);
    let large = dict(&[
        ("__msgpack_chunked_array__", vec![0xc3]),
        ("shape", dict(&[("0", vec![3]), ("1", vec![1])])),
        ("chunks", pieces),
    ]);
    let dense = dict(&[("kernel", kernel), ("bias", bias)]);
    dict(&[
        ("params", dict(&[("Dense_0", dense), ("large", large)])),
        ("step", vec![0xcd, 1, 2]),
        ("scalar", extension(3, &[0])),
        ("rate", [vec![0xcb], 0.5f64.to_be_bytes().to_vec()].concat()),
        ("sizes", vec![0x92, 1, 0xff]),
    ])
}

#[test]
fn arrays_are_mapped_and_chunks_are_joined() {
    let checkpoint = open("flax_model.msgpack", &good()).unwrap();
    let names = ["params.Dense_0.bias", "params.Dense_0.kernel", "params.large"];
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), names);
    let expect = |name: &str, storage: StorageType, shape: &[usize], bytes: &[u8]| {
        let stored = checkpoint.get(name).unwrap();
        assert_eq!((stored.storage, &stored.shape[..], &*stored.bytes), (storage, shape, bytes), "{name}");
    };
    expect("params.Dense_0.kernel", StorageType::F32, &[2, 1], &floats(&[1.5, -2.0]));
    expect("params.Dense_0.bias", StorageType::BF16, &[3], &[1, 2, 3, 4, 5, 6]);
    expect("params.large", StorageType::F16, &[3, 1], &[1, 2, 3, 4, 5, 6]);
    assert!(checkpoint.get("params.Dense_0.kernel").unwrap().bytes.is_mapped());
    assert_eq!(checkpoint.metadata()["step"], Value::I64(258));
    assert_eq!(checkpoint.metadata()["rate"], Value::F64(0.5));
}

fn refused(content: &[u8]) -> String {
    refusal("flax_model.msgpack", content)
}

#[test]
fn invalid_files_have_specific_errors() {
    let one = |value: Vec<u8>| dict(&[("w", value)]);
    for (content, said) in [
        (one(array(&[3], "float32", &[0; 8])), "tensor w: 8 bytes do not match shape [3] of F32"),
        (one(array(&[0xff], "float32", &[])), "tensor w: an array is not a shape"),
        (one(array(&[1], "float31", &[0; 4])), "tensor w: dtype \"float31\""),
        (one(extension(2, &[0])), "extension type 2"),
        (one(vec![1]), "no tensors"),
        (one(vec![0xdf, 0xff, 0xff, 0xff, 0xff]), "4294967295 elements do not fit in the remaining 0 bytes"),
        (one(vec![0xdd, 0xff, 0xff, 0xff, 0xff]), "4294967295 elements do not fit in the remaining 0 bytes"),
        (one(vec![0xc9, 0xff, 0xff, 0xff, 0xff, 1]), "ends inside"),
        ([good(), vec![0]].concat(), "1 trailing bytes"),
        (one(vec![0xc1]), "invalid msgpack byte 0xc1"),
        (one(vec![0xa1, 0xff]), "not UTF-8"),
        (dict(&[("w", dict(&[("", vec![0xc0])])), ("w", vec![0xc0])]), "no tensors"),
    ] {
        let message = refused(&content);
        assert!(message.contains(said), "{message}");
    }
    let twice = dict(&[("w", array(&[1], "uint8", &[7])), ("w", array(&[1], "uint8", &[8]))]);
    assert!(refused(&twice).contains("duplicate tensor w"));
    let short = dict(&[(
        "w",
        dict(&[
            ("__msgpack_chunked_array__", vec![0xc3]),
            ("shape", dict(&[("0", vec![4])])),
            ("chunks", dict(&[("0", array(&[2], "uint8", &[1, 2]))])),
        ]),
    )]);
    assert!(refused(&short).contains("tensor w: 1 chunks of 2 bytes do not match shape [4] of U8"));
}

#[test]
fn deeply_nested_maps_and_lists_are_rejected() {
    let nested = |open: &[u8]| -> Vec<u8> {
        let inner: Vec<u8> = (0..500).flat_map(|_| open.to_vec()).chain([0xc0]).collect();
        dict(&[("w", inner)])
    };
    assert!(refused(&nested(&[0x81, 0xa1, b'a'])).contains("too deeply"));
    assert!(refused(&nested(&[0x91])).contains("too deeply"));
}

#[test]
fn a_truncated_file_is_rejected() {
    let whole = good();
    for length in 1..whole.len() {
        refused(&whole[..length]);
    }
}

proptest! {
    #[test]
    fn no_bytes_can_panic(content in prop::collection::vec(any::<u8>(), 0..200)) {
        open_and_read("m.msgpack", &[vec![0x82, 0xa1, b'a'], content].concat());
    }

    #[test]
    fn no_changed_byte_can_panic(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut content = good();
        let at = at.index(content.len());
        content[at] = to;
        open_and_read("m.msgpack", &content);
    }
}
