//! GGUF, versions 2 and 3: typed metadata, tensor infos, tensor data.
//!
//! Unlike candle's reader, this one memory-maps the data, and its errors name the key or the tensor.

use std::path::Path;

use candle_core::quantized::GgmlDType;

use super::cursor::Cursor;
use super::metadata::{List, Metadata, Value};
use super::{Bytes, Contents, StorageType, StoredTensor};
use crate::{Error, ErrorKind, Result};

const MAGIC: &[u8; 4] = b"GGUF";
/// Default alignment of the data and of each tensor (`general.alignment`).
const ALIGNMENT: usize = 32;
/// Maximum number of axes of a tensor.
const MAX_AXES: u32 = 8;
/// Maximum nesting depth of lists.
const MAX_DEPTH: usize = 8;

pub(super) fn looks_like(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

pub(super) fn read(path: &Path, file: &Bytes) -> Result<Contents> {
    contents(file).map_err(|error| {
        let error = error.at(path);
        if error.kind() == ErrorKind::Format { error.hint("download or convert it again") } else { error }
    })
}

fn contents(file: &Bytes) -> Result<Contents> {
    let mut cursor = Cursor::new(file);
    cursor.take(MAGIC.len());
    let version = cursor.u32().ok_or_else(|| cut("the version"))?;
    if version.swap_bytes() <= 3 {
        return Err(Error::unsupported("a big-endian GGUF file"));
    }
    if !(2..=3).contains(&version) {
        return Err(Error::unsupported(format!("GGUF version {version}, expected 2 or 3")));
    }
    let tensors = cursor.u64().ok_or_else(|| cut("the number of tensors"))?;
    let keys = cursor.u64().ok_or_else(|| cut("the number of keys"))?;

    let mut metadata = Metadata::new();
    for i in 0..keys {
        let key = text(&mut cursor).ok_or_else(|| cut(&format!("key {i} of {keys}")))?;
        let value = value(&mut cursor).map_err(|e| e.context(format!("key {key}")))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(bad(format!("duplicate key {key}")));
        }
    }
    let mut entries = Vec::new();
    for i in 0..tensors {
        let name = text(&mut cursor).ok_or_else(|| cut(&format!("the name of tensor {i} of {tensors}")))?;
        let entry = entry(&mut cursor).map_err(|e| e.context(format!("tensor {name}")))?;
        entries.push((entry, name));
    }

    let alignment = alignment(&metadata)?;
    let data = cursor.at().checked_next_multiple_of(alignment).filter(|&start| start <= file.len());
    // A file without tensors may end at its header.
    let data = data.unwrap_or(file.len());
    entries.sort_by_key(|(entry, _)| entry.offset);
    let mut contents = Contents { metadata, ..Contents::default() };
    let mut end = 0;
    for (entry, name) in entries {
        let Entry { storage, shape, offset } = entry;
        let bad = |message: String| bad(format!("tensor {name}: {message}"));
        let len =
            storage.byte_len(&shape).ok_or_else(|| bad(format!("invalid shape {shape:?} for {storage}")))?;
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|offset| data.checked_add(offset))
            .and_then(|start| file.slice(start..start.checked_add(len)?))
            .ok_or_else(|| {
                let left = file.len() - data;
                bad(format!("expected {len} bytes at offset {offset}, the data has {left} bytes"))
            })?;
        if offset < end {
            return Err(bad(format!("offset {offset} overlaps the previous tensor, which ends at {end}")));
        }
        end = offset + len as u64;
        let stored = StoredTensor { storage, shape, bytes: bytes.aligned(storage.alignment()) };
        if contents.tensors.insert(name.clone(), stored).is_some() {
            return Err(bad("duplicate tensor".into()));
        }
    }
    Ok(contents)
}

struct Entry {
    storage: StorageType,
    shape: Vec<usize>,
    offset: u64,
}

/// Reads a tensor info after its name: axes, fastest-varying first, type and offset in the data.
fn entry(cursor: &mut Cursor) -> Result<Entry> {
    let axes = cursor.u32().ok_or_else(|| cut("the number of axes"))?;
    if axes > MAX_AXES {
        return Err(bad(format!("{axes} axes, the maximum is {MAX_AXES}")));
    }
    let mut shape = Vec::new();
    for _ in 0..axes {
        let axis = cursor.u64().ok_or_else(|| cut("the shape"))?;
        shape.push(usize::try_from(axis).map_err(|_| bad(format!("axis of length {axis}")))?);
    }
    shape.reverse();
    let id = cursor.u32().ok_or_else(|| cut("the type"))?;
    let storage = storage(id).ok_or_else(|| Error::unsupported(format!("tensor type {}", type_name(id))))?;
    let offset = cursor.u64().ok_or_else(|| cut("the offset"))?;
    Ok(Entry { storage, shape, offset })
}

/// The alignment set by the metadata.
pub(super) fn alignment(metadata: &Metadata) -> Result<usize> {
    match metadata.get("general.alignment") {
        None => Ok(ALIGNMENT),
        Some(value) => value
            .as_usize()
            .filter(|n| n.is_power_of_two() && *n <= 1 << 20)
            .ok_or_else(|| bad(format!("general.alignment is {value:?}, expected a power of two"))),
    }
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Format, message)
}

fn cut(what: &str) -> Error {
    bad(format!("the file ends inside {what}"))
}

/// Tensor types by their ids.
const TYPES: [(u32, StorageType); 20] = [
    (0, StorageType::F32),
    (1, StorageType::F16),
    (2, StorageType::Block(GgmlDType::Q4_0)),
    (3, StorageType::Block(GgmlDType::Q4_1)),
    (6, StorageType::Block(GgmlDType::Q5_0)),
    (7, StorageType::Block(GgmlDType::Q5_1)),
    (8, StorageType::Block(GgmlDType::Q8_0)),
    (9, StorageType::Block(GgmlDType::Q8_1)),
    (10, StorageType::Block(GgmlDType::Q2K)),
    (11, StorageType::Block(GgmlDType::Q3K)),
    (12, StorageType::Block(GgmlDType::Q4K)),
    (13, StorageType::Block(GgmlDType::Q5K)),
    (14, StorageType::Block(GgmlDType::Q6K)),
    (15, StorageType::Block(GgmlDType::Q8K)),
    (24, StorageType::I8),
    (25, StorageType::I16),
    (26, StorageType::I32),
    (27, StorageType::I64),
    (28, StorageType::F64),
    (30, StorageType::BF16),
];

fn storage(id: u32) -> Option<StorageType> {
    TYPES.iter().find(|(number, _)| *number == id).map(|(_, storage)| *storage)
}

/// The id of a tensor type.
pub(super) fn type_id(storage: StorageType) -> Result<u32> {
    let known = TYPES.iter().find(|(_, known)| *known == storage);
    known
        .map(|(id, _)| *id)
        .ok_or_else(|| Error::unsupported(format!("GGUF has no tensor type for {storage}")))
}

/// The name of an unsupported tensor type.
fn type_name(id: u32) -> String {
    let name = match id {
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return id.to_string(),
    };
    format!("{id} ({name})")
}

/// Strings are UTF-8 by the specification, but tokens of some vocabularies are not.
fn text(cursor: &mut Cursor) -> Option<String> {
    let len = usize::try_from(cursor.u64()?).ok()?;
    Some(String::from_utf8_lossy(cursor.take(len)?).into_owned())
}

fn value(cursor: &mut Cursor) -> Result<Value> {
    let kind = cursor.u32().ok_or_else(|| cut("the type of the value"))?;
    plain(cursor, kind)
        .or_else(|| (kind == 9).then(|| list(cursor, 0).map(Value::List)))
        .ok_or_else(|| bad(format!("unknown value type {kind}")))?
}

/// A scalar or string value; `None` for other types.
fn plain(cursor: &mut Cursor, kind: u32) -> Option<Result<Value>> {
    let value = match kind {
        0 => cursor.u8().map(Value::U8),
        1 => cursor.array().map(i8::from_le_bytes).map(Value::I8),
        2 => cursor.u16().map(Value::U16),
        3 => cursor.array().map(i16::from_le_bytes).map(Value::I16),
        4 => cursor.u32().map(Value::U32),
        5 => cursor.array().map(i32::from_le_bytes).map(Value::I32),
        6 => cursor.array().map(f32::from_le_bytes).map(Value::F32),
        7 => cursor.u8().map(|byte| Value::Bool(byte != 0)),
        8 => text(cursor).map(Value::Text),
        10 => cursor.u64().map(Value::U64),
        11 => cursor.array().map(i64::from_le_bytes).map(Value::I64),
        12 => cursor.array().map(f64::from_le_bytes).map(Value::F64),
        _ => return None,
    };
    Some(value.ok_or_else(|| cut("the value")))
}

fn list(cursor: &mut Cursor, depth: usize) -> Result<List> {
    let kind = cursor.u32().ok_or_else(|| cut("the type of a list"))?;
    let count = cursor.u64().ok_or_else(|| cut("the length of a list"))?;
    let short = || bad(format!("a list of {count} elements does not fit in the file"));
    let count = usize::try_from(count).map_err(|_| short())?;
    Ok(match kind {
        0 => List::U8(numbers(cursor, count, u8::from_le_bytes).ok_or_else(short)?),
        1 => List::I8(numbers(cursor, count, i8::from_le_bytes).ok_or_else(short)?),
        2 => List::U16(numbers(cursor, count, u16::from_le_bytes).ok_or_else(short)?),
        3 => List::I16(numbers(cursor, count, i16::from_le_bytes).ok_or_else(short)?),
        4 => List::U32(numbers(cursor, count, u32::from_le_bytes).ok_or_else(short)?),
        5 => List::I32(numbers(cursor, count, i32::from_le_bytes).ok_or_else(short)?),
        6 => List::F32(numbers(cursor, count, f32::from_le_bytes).ok_or_else(short)?),
        7 => List::Bool(numbers(cursor, count, |[byte]| byte != 0).ok_or_else(short)?),
        8 => {
            let mut texts = Vec::with_capacity(count.min(cursor.left() / 8));
            for _ in 0..count {
                texts.push(text(cursor).ok_or_else(short)?);
            }
            List::Text(texts)
        }
        9 if depth == MAX_DEPTH => return Err(bad(format!("lists nested more than {MAX_DEPTH} deep"))),
        9 => {
            let mut lists = Vec::with_capacity(count.min(cursor.left() / 12));
            for _ in 0..count {
                lists.push(list(cursor, depth + 1)?);
            }
            List::Lists(lists)
        }
        10 => List::U64(numbers(cursor, count, u64::from_le_bytes).ok_or_else(short)?),
        11 => List::I64(numbers(cursor, count, i64::from_le_bytes).ok_or_else(short)?),
        12 => List::F64(numbers(cursor, count, f64::from_le_bytes).ok_or_else(short)?),
        _ => return Err(bad(format!("unknown list type {kind}"))),
    })
}

/// The next `count` numbers of `N` bytes each.
fn numbers<const N: usize, T>(
    cursor: &mut Cursor,
    count: usize,
    number: impl Fn([u8; N]) -> T,
) -> Option<Vec<T>> {
    let (chunks, _) = cursor.take(count.checked_mul(N)?)?.as_chunks::<N>();
    Some(chunks.iter().map(|chunk| number(*chunk)).collect())
}

/// The header of a version 3 file, up to the tensor data.
///
/// `tensors` are names, types and shapes, in the order of their data, each at a multiple of the alignment.
pub(super) fn header(metadata: &Metadata, tensors: &[(&str, StorageType, &[usize])]) -> Result<Vec<u8>> {
    let alignment = alignment(metadata)?;
    let mut out = MAGIC.to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0usize;
    for (name, storage, shape) in tensors {
        let id = type_id(*storage).map_err(|e| e.context(format!("tensor {name}")))?;
        let invalid = || Error::input(format!("tensor {name}: invalid shape {shape:?} for {storage}"));
        put_text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&axis| out.extend((axis as u64).to_le_bytes()));
        out.extend(id.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset = storage
            .byte_len(shape)
            .and_then(|len| offset.checked_add(len)?.checked_next_multiple_of(alignment))
            .filter(|_| shape.len() <= MAX_AXES as usize)
            .ok_or_else(invalid)?;
    }
    out.resize(out.len().next_multiple_of(alignment), 0);
    Ok(out)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut put = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U8(v) => put(0, &v.to_le_bytes()),
        Value::I8(v) => put(1, &v.to_le_bytes()),
        Value::U16(v) => put(2, &v.to_le_bytes()),
        Value::I16(v) => put(3, &v.to_le_bytes()),
        Value::U32(v) => put(4, &v.to_le_bytes()),
        Value::I32(v) => put(5, &v.to_le_bytes()),
        Value::F32(v) => put(6, &v.to_le_bytes()),
        Value::Bool(v) => put(7, &[(*v).into()]),
        Value::Text(v) => {
            put(8, &[]);
            put_text(out, v);
        }
        Value::List(v) => {
            put(9, &[]);
            put_list(out, v);
        }
        Value::U64(v) => put(10, &v.to_le_bytes()),
        Value::I64(v) => put(11, &v.to_le_bytes()),
        Value::F64(v) => put(12, &v.to_le_bytes()),
    }
}

fn put_list(out: &mut Vec<u8>, list: &List) {
    let kind: u32 = match list {
        List::U8(_) => 0,
        List::I8(_) => 1,
        List::U16(_) => 2,
        List::I16(_) => 3,
        List::U32(_) => 4,
        List::I32(_) => 5,
        List::F32(_) => 6,
        List::Bool(_) => 7,
        List::Text(_) => 8,
        List::Lists(_) => 9,
        List::U64(_) => 10,
        List::I64(_) => 11,
        List::F64(_) => 12,
    };
    out.extend(kind.to_le_bytes());
    out.extend((list.len() as u64).to_le_bytes());
    match list {
        List::U8(v) => out.extend(v),
        List::I8(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        List::U16(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        List::I16(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        List::U32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        List::I32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        List::F32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        List::Bool(v) => out.extend(v.iter().map(|&x| u8::from(x))),
        List::Text(v) => v.iter().for_each(|x| put_text(out, x)),
        List::Lists(v) => v.iter().for_each(|x| put_list(out, x)),
        List::U64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        List::I64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        List::F64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
    }
}
