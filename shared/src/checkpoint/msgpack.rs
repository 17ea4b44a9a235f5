//! Flax checkpoints: nested msgpack maps whose leaves are arrays, stored as extension type 1 with msgpack inside
//! (shape, dtype, elements). Arrays above 1 GB are chunked, stored as a map with a marker key.

use std::path::Path;

use super::cursor::Cursor;
use super::metadata::Value;
use super::{Bytes, Contents, StorageType, StoredTensor};
use crate::{Error, ErrorKind, Result};

/// Maximum nesting depth of maps and lists.
const MAX_DEPTH: usize = 64;
/// Maximum length of a tensor name.
const MAX_NAME: usize = 4096;
/// Maximum number of axes of a tensor.
const MAX_AXES: usize = 16;

/// Extension type of arrays.
const ARRAY: i8 = 1;
/// Extension type of numpy scalars.
const SCALAR: i8 = 3;

/// Marker key of a chunked array.
const CHUNKED: &str = "__msgpack_chunked_array__";

/// Whether a file begins with a map whose first key is a string.
pub(super) fn looks_like(file: &[u8]) -> bool {
    let text = |byte: Option<&u8>| matches!(byte, Some(0xa1..=0xbf | 0xd9));
    match file {
        [0x81..=0x8f, rest @ ..] => text(rest.first()),
        [0xde, _, _, rest @ ..] => text(rest.first()),
        [0xdf, _, _, _, _, rest @ ..] => text(rest.first()),
        _ => false,
    }
}

pub(super) fn read(path: &Path, file: &Bytes) -> Result<Contents> {
    let mut reader = Reader { file, cursor: Cursor::new(file), contents: Contents::default() };
    reader.whole().map_err(|error| error.at(path))?;
    Ok(reader.contents)
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Format, message).hint("download it again")
}

fn ends() -> Error {
    bad("the file ends inside a value")
}

/// The header of a value; elements of arrays and maps follow it.
enum Part<'a> {
    Nil,
    Bool(bool),
    Int(i64),
    /// An unsigned integer above `i64::MAX`; its value is not kept.
    Large,
    Float(f64),
    Text(&'a str),
    /// Offset and length.
    Bytes(usize, usize),
    Array(usize),
    Map(usize),
    /// Type, offset and length.
    Extension(i8, usize, usize),
}

struct Reader<'a> {
    file: &'a Bytes,
    cursor: Cursor<'a>,
    contents: Contents,
}

impl<'a> Reader<'a> {
    fn whole(&mut self) -> Result<()> {
        let Part::Map(entries) = next(&mut self.cursor)? else {
            return Err(bad("not a map of tensors"));
        };
        self.map(entries, &mut String::new(), 0)?;
        match self.cursor.left() {
            0 if self.contents.tensors.is_empty() => Err(bad("no tensors in the file")),
            0 => Ok(()),
            left => Err(bad(format!("{left} trailing bytes"))),
        }
    }

    /// Reads the `entries` of the map at the dotted `path`.
    fn map(&mut self, entries: usize, path: &mut String, depth: usize) -> Result<()> {
        self.fits(entries, 2)?;
        if depth >= MAX_DEPTH {
            return Err(bad(format!("maps nested too deeply, at {path:.60}…")));
        }
        for i in 0..entries {
            let Part::Text(key) = next(&mut self.cursor)? else {
                return Err(bad(format!("a key of \"{path:.60}\" is not a string")));
            };
            if i == 0 && key == CHUNKED {
                return self.chunks(entries, path);
            }
            let length = path.len();
            if length > 0 {
                path.push('.');
            }
            path.push_str(key);
            if path.len() > MAX_NAME {
                return Err(bad(format!("name of more than {MAX_NAME} bytes, {path:.60}…")));
            }
            self.value(path, depth)?;
            path.truncate(length);
        }
        Ok(())
    }

    /// Reads the value at `path`: a map, a tensor or metadata.
    fn value(&mut self, path: &mut String, depth: usize) -> Result<()> {
        let value = match next(&mut self.cursor)? {
            Part::Map(entries) => return self.map(entries, path, depth + 1),
            Part::Extension(ARRAY, start, length) => {
                let stored = self.array(start, length).map_err(|e| e.context(format!("tensor {path}")))?;
                return self.keep(path, stored);
            }
            Part::Extension(SCALAR, ..) | Part::Nil | Part::Large | Part::Bytes(..) => return Ok(()),
            Part::Extension(kind, ..) => {
                return Err(Error::unsupported(format!("{path}: msgpack extension type {kind}")));
            }
            Part::Array(parts) => return self.skip(parts, 1),
            Part::Bool(value) => Value::Bool(value),
            Part::Int(value) => Value::I64(value),
            Part::Float(value) => Value::F64(value),
            Part::Text(value) => Value::Text(value.to_owned()),
        };
        self.contents.metadata.insert(path.clone(), value);
        Ok(())
    }

    /// Reads a chunked array after its marker key.
    fn chunks(&mut self, entries: usize, path: &str) -> Result<()> {
        let wrong = || bad(format!("tensor {path}: invalid chunked array"));
        let mut shape = None;
        let mut chunks: Vec<(usize, StoredTensor)> = Vec::new();
        let Part::Bool(true) = next(&mut self.cursor)? else { return Err(wrong()) };
        for _ in 1..entries {
            let Part::Text(key) = next(&mut self.cursor)? else { return Err(wrong()) };
            let Part::Map(parts) = next(&mut self.cursor)? else { return Err(wrong()) };
            self.fits(parts, 2)?;
            let mut axes = Vec::new();
            for _ in 0..parts {
                let Part::Text(index) = next(&mut self.cursor)? else { return Err(wrong()) };
                let index: usize = index.parse().map_err(|_| wrong())?;
                match (key, next(&mut self.cursor)?) {
                    ("shape", Part::Int(size)) if parts <= MAX_AXES => {
                        axes.push((index, usize::try_from(size).map_err(|_| wrong())?));
                    }
                    ("chunks", Part::Extension(ARRAY, start, length)) => {
                        let chunk =
                            self.array(start, length).map_err(|e| e.context(format!("tensor {path}")))?;
                        chunks.push((index, chunk));
                    }
                    _ => return Err(wrong()),
                }
            }
            if key == "shape" {
                axes.sort_unstable();
                shape = Some(axes.into_iter().map(|(_, size)| size).collect::<Vec<_>>());
            }
        }
        chunks.sort_by_key(|(index, _)| *index);
        let (Some(shape), Some((_, first))) = (shape, chunks.first()) else { return Err(wrong()) };
        let storage = first.storage;
        // Bounded by the file size.
        let length: usize = chunks.iter().map(|(_, chunk)| chunk.bytes.len()).sum();
        let whole =
            chunks.iter().enumerate().all(|(i, (index, chunk))| *index == i && chunk.storage == storage);
        if !whole || storage.byte_len(&shape) != Some(length) {
            return Err(bad(format!(
                "tensor {path}: {} chunks of {length} bytes do not match shape {shape:?} of {storage}",
                chunks.len()
            )));
        }
        let bytes = Bytes::filled(length, |mut out| {
            for (_, chunk) in &chunks {
                let (here, rest) = out.split_at_mut(chunk.bytes.len());
                here.copy_from_slice(&chunk.bytes);
                chunk.bytes.release();
                out = rest;
            }
        });
        self.keep(path, StoredTensor { storage, shape, bytes })
    }

    fn keep(&mut self, path: &str, stored: StoredTensor) -> Result<()> {
        match self.contents.tensors.insert(path.to_owned(), stored) {
            None => Ok(()),
            Some(_) => Err(bad(format!("duplicate tensor {path}"))),
        }
    }

    /// Reads the array in the `length` bytes at `start`.
    fn array(&self, start: usize, length: usize) -> Result<StoredTensor> {
        let inside = &self.file[start..start + length];
        let wrong = || bad("an array is not a shape, a dtype and the elements");
        let mut cursor = Cursor::new(inside);
        let Part::Array(3) = next(&mut cursor)? else { return Err(wrong()) };
        let Part::Array(axes) = next(&mut cursor)? else { return Err(wrong()) };
        if axes > MAX_AXES {
            return Err(bad(format!("{axes} axes")));
        }
        let mut shape = Vec::with_capacity(axes);
        for _ in 0..axes {
            let Part::Int(size) = next(&mut cursor)? else { return Err(wrong()) };
            shape.push(usize::try_from(size).map_err(|_| wrong())?);
        }
        let name = match next(&mut cursor)? {
            Part::Text(name) => name,
            // Older versions of msgpack write strings as bytes.
            Part::Bytes(at, length) => std::str::from_utf8(&inside[at..at + length]).map_err(|_| wrong())?,
            _ => return Err(wrong()),
        };
        let storage =
            StorageType::of_dtype(name).ok_or_else(|| Error::unsupported(format!("dtype {name:?}")))?;
        let Part::Bytes(at, found) = next(&mut cursor)? else { return Err(wrong()) };
        if storage.byte_len(&shape) != Some(found) || cursor.left() > 0 {
            return Err(bad(format!("{found} bytes do not match shape {shape:?} of {storage}")));
        }
        let bytes = self.file.slice(start + at..start + at + found).ok_or_else(ends)?;
        Ok(StoredTensor { storage, shape, bytes })
    }

    /// Skips the `parts` elements of a list.
    fn skip(&mut self, parts: usize, depth: usize) -> Result<()> {
        self.fits(parts, 1)?;
        if depth >= MAX_DEPTH {
            return Err(bad("lists nested too deeply"));
        }
        for _ in 0..parts {
            match next(&mut self.cursor)? {
                Part::Array(parts) => self.skip(parts, depth + 1)?,
                Part::Map(_) | Part::Extension(ARRAY, ..) => {
                    return Err(Error::unsupported("tensors in a list"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Rejects `count` elements of at least `bytes` each that do not fit in the file.
    fn fits(&self, count: usize, bytes: usize) -> Result<()> {
        match count > self.cursor.left() / bytes {
            true => {
                Err(bad(format!("{count} elements do not fit in the remaining {} bytes", self.cursor.left())))
            }
            false => Ok(()),
        }
    }
}

/// Reads the header of the next value.
fn next<'a>(cursor: &mut Cursor<'a>) -> Result<Part<'a>> {
    let unsigned = |cursor: &mut Cursor<'a>, bytes: usize| -> Result<u64> {
        let raw = cursor.take(bytes).ok_or_else(ends)?;
        Ok(raw.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)))
    };
    let length = |cursor: &mut Cursor<'a>, bytes: usize| -> Result<usize> {
        usize::try_from(unsigned(cursor, bytes)?).map_err(|_| ends())
    };
    let text = |cursor: &mut Cursor<'a>, length: usize| -> Result<Part<'a>> {
        let raw = cursor.take(length).ok_or_else(ends)?;
        Ok(Part::Text(std::str::from_utf8(raw).map_err(|_| bad("a string is not UTF-8"))?))
    };
    let bytes = |cursor: &mut Cursor<'a>, length: usize| -> Result<Part<'a>> {
        let start = cursor.at();
        cursor.take(length).ok_or_else(ends)?;
        Ok(Part::Bytes(start, length))
    };
    let extension = |cursor: &mut Cursor<'a>, length: usize| -> Result<Part<'a>> {
        let kind = cursor.u8().ok_or_else(ends)? as i8;
        let start = cursor.at();
        cursor.take(length).ok_or_else(ends)?;
        Ok(Part::Extension(kind, start, length))
    };
    let kind = cursor.u8().ok_or_else(ends)?;
    Ok(match kind {
        0x00..=0x7f => Part::Int(kind.into()),
        0x80..=0x8f => Part::Map((kind & 0xf).into()),
        0x90..=0x9f => Part::Array((kind & 0xf).into()),
        0xa0..=0xbf => text(cursor, (kind & 0x1f).into())?,
        0xc0 => Part::Nil,
        0xc1 => return Err(bad("invalid msgpack byte 0xc1")),
        0xc2 => Part::Bool(false),
        0xc3 => Part::Bool(true),
        0xc4..=0xc6 => {
            let length = length(cursor, 1 << (kind - 0xc4))?;
            bytes(cursor, length)?
        }
        0xc7..=0xc9 => {
            let length = length(cursor, 1 << (kind - 0xc7))?;
            extension(cursor, length)?
        }
        0xca => Part::Float(f32::from_bits(unsigned(cursor, 4)? as u32).into()),
        0xcb => Part::Float(f64::from_bits(unsigned(cursor, 8)?)),
        0xcc..=0xcf => match i64::try_from(unsigned(cursor, 1 << (kind - 0xcc))?) {
            Ok(value) => Part::Int(value),
            Err(_) => Part::Large,
        },
        0xd0 => Part::Int((unsigned(cursor, 1)? as i8).into()),
        0xd1 => Part::Int((unsigned(cursor, 2)? as i16).into()),
        0xd2 => Part::Int((unsigned(cursor, 4)? as i32).into()),
        0xd3 => Part::Int(unsigned(cursor, 8)? as i64),
        0xd4..=0xd8 => extension(cursor, 1 << (kind - 0xd4))?,
        0xd9..=0xdb => {
            let length = length(cursor, 1 << (kind - 0xd9))?;
            text(cursor, length)?
        }
        0xdc | 0xdd => Part::Array(length(cursor, 2 << (kind - 0xdc))?),
        0xde | 0xdf => Part::Map(length(cursor, 2 << (kind - 0xde))?),
        0xe0..=0xff => Part::Int((kind as i8).into()),
    })
}
