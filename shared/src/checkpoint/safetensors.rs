//! safetensors: the header length in eight bytes, a JSON header, the tensor data.
//!
//! Unlike the `safetensors` crate, this reader detects duplicate names, and its errors name the tensor.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use super::metadata::{Metadata, Value};
use super::{Bytes, Contents, StorageType, StoredTensor, TensorInfo};
use crate::{Error, Result};

/// Maximum header length of the format.
const MAX_HEADER: u64 = 100_000_000;

/// Whether `bytes` begin like a safetensors file: a plausible length, then an opening brace.
pub(super) fn looks_like(bytes: &[u8]) -> bool {
    bytes.len() > 8 && bytes[8] == b'{' && bytes[7] == 0
}

pub(super) fn read(path: &Path, file: &Bytes) -> Result<Contents> {
    let bad = |message: String| Error::format(path, message).hint("download or convert it again");
    let Some(length) = file.first_chunk::<8>() else {
        return Err(bad(format!("{} bytes, too short for a safetensors file", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(bad(format!("header length {length}, the maximum of the format is {MAX_HEADER}")));
    }
    let data_start = 8 + length as usize;
    let Some(header) = file.get(8..data_start) else {
        return Err(bad(format!("header length {length}, but only {} bytes follow", file.len() - 8)));
    };
    let header: Header = serde_json::from_slice(header).map_err(|e| bad(format!("invalid header: {e}")))?;

    let mut entries = header.entries;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut contents = Contents { metadata: header.metadata, ..Contents::default() };
    let mut end = 0;
    for (name, entry) in entries {
        let bad = |message: String| bad(format!("tensor {name}: {message}"));
        let (from, to) = entry.data_offsets;
        if from != end || to < from {
            return Err(bad(format!(
                "data_offsets {from} to {to} do not follow the previous tensor, which ends at {end}"
            )));
        }
        end = to;
        let storage = storage(&entry.dtype)
            .ok_or_else(|| Error::unsupported(format!("tensor {name}: dtype {:?}", entry.dtype)).at(path))?;
        let expected = storage
            .byte_len(&entry.shape)
            .ok_or_else(|| bad(format!("invalid shape {:?} for {storage}", entry.shape)))?;
        if expected != to - from {
            let shape = &entry.shape;
            return Err(bad(format!(
                "{shape:?} of {storage} has {expected} bytes, data_offsets span {}",
                to - from
            )));
        }
        let bytes = (data_start.checked_add(to))
            .and_then(|end| file.slice(data_start + from..end))
            .ok_or_else(|| {
                bad(format!(
                    "its data ends at byte {to}, the data of the file at {}",
                    file.len() - data_start
                ))
            })?;
        let stored = StoredTensor { storage, shape: entry.shape, bytes: bytes.aligned(storage.alignment()) };
        if contents.tensors.insert(name.clone(), stored).is_some() {
            return Err(bad("duplicate name in the header".into()));
        }
    }
    if end != file.len() - data_start {
        return Err(bad(format!(
            "the tensors end at byte {end}, the data of the file at {}",
            file.len() - data_start
        )));
    }
    Ok(contents)
}

/// Element types by their names in the header.
const TYPES: [(&str, StorageType); 16] = [
    ("F64", StorageType::F64),
    ("F32", StorageType::F32),
    ("F16", StorageType::F16),
    ("BF16", StorageType::BF16),
    ("F8_E4M3", StorageType::F8E4M3),
    ("F8_E5M2", StorageType::F8E5M2),
    ("C64", StorageType::C64),
    ("I64", StorageType::I64),
    ("I32", StorageType::I32),
    ("I16", StorageType::I16),
    ("I8", StorageType::I8),
    ("U64", StorageType::U64),
    ("U32", StorageType::U32),
    ("U16", StorageType::U16),
    ("U8", StorageType::U8),
    ("BOOL", StorageType::Bool),
];

fn storage(dtype: &str) -> Option<StorageType> {
    TYPES.iter().find(|(name, _)| *name == dtype).map(|(_, storage)| *storage)
}

/// The header length and the header of a file with `tensors` in this order, padded with spaces to a multiple of 8.
pub(super) fn header(metadata: &Metadata, tensors: &[TensorInfo]) -> Result<Vec<u8>> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let text = |value: &Value| value.as_str().map_or_else(|| format!("{value:?}"), str::to_owned);
        let entries: serde_json::Map<_, _> =
            metadata.iter().map(|(key, value)| (key.clone(), text(value).into())).collect();
        header.insert("__metadata__".into(), entries.into());
    }
    let mut from = 0usize;
    for TensorInfo { name, storage, shape } in tensors {
        let (dtype, _) = TYPES.iter().find(|(_, known)| known == storage).ok_or_else(|| {
            Error::unsupported(format!("tensor {name}: safetensors has no dtype for {storage}"))
        })?;
        let to = storage
            .byte_len(shape)
            .and_then(|len| from.checked_add(len))
            .ok_or_else(|| Error::input(format!("tensor {name}: invalid shape {shape:?} for {storage}")))?;
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [from, to] });
        if header.insert(name.clone(), entry).is_some() {
            return Err(Error::input(format!("duplicate tensor {name}")));
        }
        from = to;
    }
    let mut json = serde_json::Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([(json.len() as u64).to_le_bytes().to_vec(), json].concat())
}

/// The header in file order, with duplicate names kept.
struct Header {
    entries: Vec<(String, Entry)>,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header { entries: Vec::new(), metadata: Metadata::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        let texts: std::collections::BTreeMap<String, String> = map.next_value()?;
                        header.metadata = texts.into_iter().map(|(k, v)| (k, Value::Text(v))).collect();
                    } else {
                        header.entries.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
