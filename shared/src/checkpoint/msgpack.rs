//! Flax's files: msgpack maps of maps, whose leaves are arrays as an extension of type 1 that holds msgpack again
//! (shape, name of the type, elements). Arrays of more than a gigabyte come in pieces, as a map that says so.

use std::path::Path;

use super::cursor::Cursor;
use super::metadata::Value;
use super::{Bytes, Contents, Storage, Stored};
use crate::{Error, ErrorKind, Result};

/// Deeper than any model is nested.
const MAX_DEPTH: usize = 64;
/// Longer than any tensor's name.
const MAX_NAME: usize = 4096;
/// More axes than any tensor has.
const MAX_AXES: usize = 16;

/// The extension that holds an array.
const ARRAY: i8 = 1;
/// The extension that holds a single number of an array's type.
const SCALAR: i8 = 3;

/// The key that tells an array in pieces from a map of tensors.
const IN_PIECES: &str = "__msgpack_chunked_array__";

/// Whether a file begins as a map whose first key is a text.
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
    bad("the file ends in the middle of a value")
}

/// One value, its parts still to come.
enum Part<'a> {
    Nil,
    Bool(bool),
    Int(i64),
    /// A whole number that only 64 bits without a sign hold.
    Large,
    Float(f64),
    Text(&'a str),
    /// Where the bytes begin, and how many there are.
    Bytes(usize, usize),
    Array(usize),
    Map(usize),
    /// Its type, where its bytes begin, and how many there are.
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
            left => Err(bad(format!("{left} bytes after the last tensor"))),
        }
    }

    /// The `entries` of a map, which the dotted `path` leads to.
    fn map(&mut self, entries: usize, path: &mut String, depth: usize) -> Result<()> {
        self.fits(entries, 2)?;
        if depth >= MAX_DEPTH {
            return Err(bad(format!("maps nested without an end, at {path:.60}…")));
        }
        for i in 0..entries {
            let Part::Text(key) = next(&mut self.cursor)? else {
                return Err(bad(format!("a key that is no text, in \"{path:.60}\"")));
            };
            if i == 0 && key == IN_PIECES {
                return self.pieces(entries, path);
            }
            let length = path.len();
            if length > 0 {
                path.push('.');
            }
            path.push_str(key);
            if path.len() > MAX_NAME {
                return Err(bad(format!("a name of more than {MAX_NAME} bytes, {path:.60}…")));
            }
            self.value(path, depth)?;
            path.truncate(length);
        }
        Ok(())
    }

    /// The value under `path`: a map, a tensor, or something plain.
    fn value(&mut self, path: &mut String, depth: usize) -> Result<()> {
        let note = match next(&mut self.cursor)? {
            Part::Map(entries) => return self.map(entries, path, depth + 1),
            Part::Extension(ARRAY, start, length) => {
                let stored = self.array(start, length).map_err(|e| e.context(format!("tensor {path}")))?;
                return self.keep(path, stored);
            }
            Part::Extension(SCALAR, ..) | Part::Nil | Part::Large | Part::Bytes(..) => return Ok(()),
            Part::Extension(kind, ..) => {
                return Err(Error::unsupported(format!("{path}: a msgpack extension of type {kind}")));
            }
            Part::Array(parts) => return self.skip(parts, 1),
            Part::Bool(value) => Value::Bool(value),
            Part::Int(value) => Value::I64(value),
            Part::Float(value) => Value::F64(value),
            Part::Text(value) => Value::Text(value.to_owned()),
        };
        self.contents.metadata.insert(path.clone(), note);
        Ok(())
    }

    /// An array whose map began with the key that says it is in pieces.
    fn pieces(&mut self, entries: usize, path: &str) -> Result<()> {
        let wrong = || bad(format!("tensor {path}: in pieces, and not as flax writes them"));
        let mut shape = None;
        let mut pieces: Vec<(usize, Stored)> = Vec::new();
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
                        let piece =
                            self.array(start, length).map_err(|e| e.context(format!("tensor {path}")))?;
                        pieces.push((index, piece));
                    }
                    _ => return Err(wrong()),
                }
            }
            if key == "shape" {
                axes.sort_unstable();
                shape = Some(axes.into_iter().map(|(_, size)| size).collect::<Vec<_>>());
            }
        }
        pieces.sort_by_key(|(index, _)| *index);
        let (Some(shape), Some((_, first))) = (shape, pieces.first()) else { return Err(wrong()) };
        let storage = first.storage;
        // No more than the file holds.
        let length: usize = pieces.iter().map(|(_, piece)| piece.bytes.len()).sum();
        let whole =
            pieces.iter().enumerate().all(|(i, (index, piece))| *index == i && piece.storage == storage);
        if !whole || storage.byte_len(&shape) != Some(length) {
            return Err(bad(format!(
                "tensor {path}: {} pieces of {length} bytes do not make {shape:?} of {storage}",
                pieces.len()
            )));
        }
        let bytes = Bytes::filled(length, |mut room| {
            for (_, piece) in &pieces {
                let (here, rest) = room.split_at_mut(piece.bytes.len());
                here.copy_from_slice(&piece.bytes);
                piece.bytes.release();
                room = rest;
            }
        });
        self.keep(path, Stored { storage, shape, bytes })
    }

    fn keep(&mut self, path: &str, stored: Stored) -> Result<()> {
        match self.contents.tensors.insert(path.to_owned(), stored) {
            None => Ok(()),
            Some(_) => Err(bad(format!("two tensors are called {path}"))),
        }
    }

    /// The array that the `length` bytes at `start` hold.
    fn array(&self, start: usize, length: usize) -> Result<Stored> {
        let inside = &self.file[start..start + length];
        let wrong = || bad("not a shape, a type and the elements");
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
            // Older writers know no difference between texts and bytes.
            Part::Bytes(at, length) => std::str::from_utf8(&inside[at..at + length]).map_err(|_| wrong())?,
            _ => return Err(wrong()),
        };
        let storage = storage(name).ok_or_else(|| Error::unsupported(format!("dtype {name:?}")))?;
        let Part::Bytes(at, found) = next(&mut cursor)? else { return Err(wrong()) };
        if storage.byte_len(&shape) != Some(found) || cursor.left() > 0 {
            return Err(bad(format!("{shape:?} of {storage} does not take {found} bytes")));
        }
        let bytes = self.file.slice(start + at..start + at + found).ok_or_else(ends)?;
        Ok(Stored { storage, shape, bytes })
    }

    /// Passes over the `parts` of a list.
    fn skip(&mut self, parts: usize, depth: usize) -> Result<()> {
        self.fits(parts, 1)?;
        if depth >= MAX_DEPTH {
            return Err(bad("lists nested without an end"));
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

    /// Refuses `count` parts of at least `bytes` each that cannot be in the file.
    fn fits(&self, count: usize, bytes: usize) -> Result<()> {
        match count > self.cursor.left() / bytes {
            true => Err(bad(format!("{count} parts in the {} bytes that are left", self.cursor.left()))),
            false => Ok(()),
        }
    }
}

/// The next value of `cursor`, big-endian as msgpack is.
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
        Ok(Part::Text(std::str::from_utf8(raw).map_err(|_| bad("a text that is not UTF-8"))?))
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
        0xc1 => return Err(bad("a byte that msgpack never writes")),
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

/// The type that numpy calls `name`.
fn storage(name: &str) -> Option<Storage> {
    Some(match name {
        "float64" => Storage::F64,
        "float32" => Storage::F32,
        "float16" => Storage::F16,
        "bfloat16" => Storage::BF16,
        "complex64" => Storage::C64,
        "int64" => Storage::I64,
        "int32" => Storage::I32,
        "int16" => Storage::I16,
        "int8" => Storage::I8,
        "uint64" => Storage::U64,
        "uint32" => Storage::U32,
        "uint16" => Storage::U16,
        "uint8" => Storage::U8,
        "bool" => Storage::Bool,
        _ => return None,
    })
}
