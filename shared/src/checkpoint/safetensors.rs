//! safetensors: eight bytes of length, a JSON header, the tensors' bytes.
//!
//! The header is read here and not by the `safetensors` crate so that each lie has its own message with the tensor's
//! name, and so that a name given twice is seen.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use super::metadata::{Metadata, Value};
use super::{Bytes, Contents, Planned, Storage, Stored};
use crate::{Error, Result};

/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// Whether `bytes` begin as a safetensors file does: a length that fits, then an open brace.
pub(super) fn looks_like(bytes: &[u8]) -> bool {
    bytes.len() > 8 && bytes[8] == b'{' && bytes[7] == 0
}

pub(super) fn read(path: &Path, file: &Bytes) -> Result<Contents> {
    let bad = |message: String| Error::format(path, message).hint("download or convert it again");
    let Some(length) = file.first_chunk::<8>() else {
        return Err(bad(format!("{} bytes are too few for a safetensors file", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(bad(format!(
            "the header claims {length} bytes, more than the {MAX_HEADER} of the format"
        )));
    }
    let data_start = 8 + length as usize;
    let Some(header) = file.get(8..data_start) else {
        return Err(bad(format!("the header claims {length} bytes, the file has {}", file.len() - 8)));
    };
    let header: Header = serde_json::from_slice(header)
        .map_err(|e| bad(format!("the header is not what safetensors writes: {e}")))?;

    let mut entries = header.entries;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut contents = Contents { metadata: header.metadata, ..Contents::default() };
    let mut end = 0;
    for (name, entry) in entries {
        let bad = |message: String| bad(format!("tensor {name}: {message}"));
        let (from, to) = entry.data_offsets;
        if from != end || to < from {
            return Err(bad(format!("bytes {from} to {to} do not follow those of the tensor before, {end}")));
        }
        end = to;
        let storage = storage(&entry.dtype)
            .ok_or_else(|| Error::unsupported(format!("tensor {name}: dtype {:?}", entry.dtype)).at(path))?;
        let wanted = storage
            .byte_len(&entry.shape)
            .ok_or_else(|| bad(format!("shape {:?} of {storage} is impossible", entry.shape)))?;
        if wanted != to - from {
            let shape = &entry.shape;
            return Err(bad(format!(
                "{shape:?} of {storage} is {wanted} bytes, the header gives {}",
                to - from
            )));
        }
        let bytes =
            (data_start.checked_add(to)).and_then(|end| file.slice(data_start + from..end)).ok_or_else(
                || bad(format!("its bytes end at {to}, the file's data at {}", file.len() - data_start)),
            )?;
        let stored = Stored { storage, shape: entry.shape, bytes: bytes.aligned(storage.alignment()) };
        if contents.tensors.insert(name.clone(), stored).is_some() {
            return Err(bad("named twice in the header".into()));
        }
    }
    if end != file.len() - data_start {
        return Err(bad(format!(
            "the tensors end at byte {end}, the file's data at {}",
            file.len() - data_start
        )));
    }
    Ok(contents)
}

/// The types of tensors, with the name each has in a file.
const TYPES: [(&str, Storage); 16] = [
    ("F64", Storage::F64),
    ("F32", Storage::F32),
    ("F16", Storage::F16),
    ("BF16", Storage::BF16),
    ("F8_E4M3", Storage::F8E4M3),
    ("F8_E5M2", Storage::F8E5M2),
    ("C64", Storage::C64),
    ("I64", Storage::I64),
    ("I32", Storage::I32),
    ("I16", Storage::I16),
    ("I8", Storage::I8),
    ("U64", Storage::U64),
    ("U32", Storage::U32),
    ("U16", Storage::U16),
    ("U8", Storage::U8),
    ("BOOL", Storage::Bool),
];

fn storage(dtype: &str) -> Option<Storage> {
    TYPES.iter().find(|(name, _)| *name == dtype).map(|(_, storage)| *storage)
}

/// The length and the header of a file that holds `tensors` in their order, filled with spaces to a multiple of 8.
pub(super) fn header(metadata: &Metadata, tensors: &[Planned]) -> Result<Vec<u8>> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let text = |value: &Value| value.as_str().map_or_else(|| format!("{value:?}"), str::to_owned);
        let notes: serde_json::Map<_, _> =
            metadata.iter().map(|(key, value)| (key.clone(), text(value).into())).collect();
        header.insert("__metadata__".into(), notes.into());
    }
    let mut from = 0usize;
    for Planned { name, storage, shape } in tensors {
        let (dtype, _) = TYPES.iter().find(|(_, known)| known == storage).ok_or_else(|| {
            Error::unsupported(format!("tensor {name}: safetensors has no type for {storage}"))
        })?;
        let to = storage.byte_len(shape).and_then(|len| from.checked_add(len)).ok_or_else(|| {
            Error::input(format!("tensor {name}: shape {shape:?} of {storage} is impossible"))
        })?;
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [from, to] });
        if header.insert(name.clone(), entry).is_some() {
            return Err(Error::input(format!("tensor {name} is given twice")));
        }
        from = to;
    }
    let mut json = serde_json::Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([(json.len() as u64).to_le_bytes().to_vec(), json].concat())
}

/// The header in the order of the file, a repeated name kept twice.
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
