//! Zip files with uncompressed entries, the container of PyTorch checkpoints.

use std::collections::HashMap;

use super::Bytes;
use super::cursor::Cursor;
use crate::{Error, ErrorKind, Result};

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
/// Length of the fixed part of the end record, and maximum length of the comment after it.
const END_LEN: usize = 22;
const MAX_COMMENT: usize = 0xffff;

pub(super) fn looks_like(bytes: &[u8]) -> bool {
    bytes.starts_with(&LOCAL.to_le_bytes())
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Format, message)
}

/// The data of the entries of `file` selected by `filter`, by name.
pub(super) fn entries(file: &Bytes, filter: impl Fn(&str) -> bool) -> Result<HashMap<String, Bytes>> {
    let (start, count) = directory(file)
        .ok_or_else(|| bad("the zip file has no central directory at its end; it is truncated"))?;
    let mut cursor = Cursor::new(
        file.get(start..).ok_or_else(|| bad("the central directory of the zip file is out of range"))?,
    );
    let mut entries = HashMap::new();
    for i in 0..count {
        let entry = entry(&mut cursor)
            .ok_or_else(|| bad(format!("entry {i} of {count} of the zip file is damaged")))?;
        let name = entry.name;
        if !filter(&name) {
            continue;
        }
        if entry.flags & 1 != 0 || entry.method != 0 {
            return Err(Error::unsupported(format!("zip entry {name} is compressed or encrypted")));
        }
        let bytes = usize::try_from(entry.offset)
            .ok()
            .and_then(|offset| data(file, offset, entry.len.try_into().ok()?))
            .ok_or_else(|| bad(format!("zip entry {name} is out of range")))?;
        if entries.insert(name.clone(), bytes).is_some() {
            return Err(bad(format!("duplicate zip entry {name}")));
        }
    }
    Ok(entries)
}

/// The checksums of the entries of `file`, by their places in it: those of the central directory, and of the headers or
/// the descriptors after the data that have one.
pub(super) fn sums(file: &Bytes) -> Result<Vec<(usize, [u8; 4])>> {
    let damaged = || bad("the zip file is damaged");
    let (start, count) = directory(file).ok_or_else(damaged)?;
    let mut cursor = Cursor::new(file.get(start..).ok_or_else(damaged)?);
    let mut sums = Vec::new();
    for _ in 0..count {
        let at = start + cursor.at();
        let entry = entry(&mut cursor).ok_or_else(damaged)?;
        if entry.method != 0 {
            continue;
        }
        let (offset, len) = (usize::try_from(entry.offset), usize::try_from(entry.len));
        let (offset, len) = offset.ok().zip(len.ok()).ok_or_else(damaged)?;
        let data = data(file, offset, len).ok_or_else(damaged)?;
        let sum = checksum(&data).to_le_bytes();
        sums.push((at + 16, sum));
        let after = data.place_in_file().map(|start| start + len);
        match after.filter(|_| entry.flags & HAS_DESCRIPTOR != 0) {
            None => sums.push((offset + 14, sum)),
            Some(after) if file.get(after..after + 8).is_some_and(|d| d.starts_with(&DESCRIPTOR)) => {
                sums.push((after + 4, sum));
            }
            Some(_) => {}
        }
    }
    Ok(sums)
}

/// The flag of an entry whose checksum is in a descriptor after its data.
const HAS_DESCRIPTOR: u16 = 1 << 3;
const DESCRIPTOR: [u8; 4] = 0x0807_4b50u32.to_le_bytes();

/// The checksum of zip files: CRC-32 with the polynomial of ISO 3309, reflected.
fn checksum(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let (mut value, mut bit) = (i as u32, 0);
            while bit < 8 {
                value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
                bit += 1;
            }
            table[i] = value;
            i += 1;
        }
        table
    };
    let step = |sum: u32, byte: &u8| TABLE[usize::from(sum as u8 ^ byte)] ^ (sum >> 8);
    !bytes.iter().fold(!0, step)
}

/// Offset and number of entries of the central directory.
fn directory(file: &[u8]) -> Option<(usize, u64)> {
    let from = file.len().saturating_sub(END_LEN + MAX_COMMENT);
    let end = (from..=file.len().checked_sub(END_LEN)?)
        .rev()
        .find(|&at| file[at..].starts_with(&END.to_le_bytes()))?;
    let mut record = Cursor::new(&file[end..]);
    record.take(10)?;
    let count = record.u16()?;
    record.take(4)?;
    let start = record.u32()?;
    if count != u16::MAX && start != u32::MAX {
        return Some((start as usize, count.into()));
    }
    // Saturated fields refer to the zip64 end record, found by the locator before this record.
    let mut locator = Cursor::new(file.get(end.checked_sub(20)?..)?);
    if locator.u32()? != LOCATOR_64 {
        return Some((start as usize, count.into()));
    }
    locator.take(4)?;
    let mut record = Cursor::new(file.get(usize::try_from(locator.u64()?).ok()?..)?);
    if record.u32()? != END_64 {
        return None;
    }
    record.take(28)?;
    let count = record.u64()?;
    record.take(8)?;
    Some((record.u64()?.try_into().ok()?, count))
}

struct Entry {
    name: String,
    flags: u16,
    method: u16,
    len: u64,
    offset: u64,
}

/// The next entry of the central directory.
fn entry(cursor: &mut Cursor) -> Option<Entry> {
    if cursor.u32()? != CENTRAL {
        return None;
    }
    cursor.take(4)?;
    let (flags, method) = (cursor.u16()?, cursor.u16()?);
    cursor.take(8)?;
    let (packed, len) = (cursor.u32()?, cursor.u32()?);
    let (name, extra, comment) = (cursor.u16()?, cursor.u16()?, cursor.u16()?);
    cursor.take(8)?;
    let offset = cursor.u32()?;
    let name = String::from_utf8_lossy(cursor.take(name.into())?).into_owned();
    let mut extra = Cursor::new(cursor.take(extra.into())?);
    cursor.take(comment.into())?;
    let (mut len_64, mut offset_64) = (u64::from(len), u64::from(offset));
    while let (Some(kind), Some(size)) = (extra.u16(), extra.u16()) {
        let mut field = Cursor::new(extra.take(size.into())?);
        if kind == 1 {
            // The zip64 extra field holds only the saturated fields, in this order.
            if len == u32::MAX {
                len_64 = field.u64()?;
            }
            if packed == u32::MAX {
                field.u64()?;
            }
            if offset == u32::MAX {
                offset_64 = field.u64()?;
            }
        }
    }
    Some(Entry { name, flags, method, len: len_64, offset: offset_64 })
}

/// The `len` bytes after the local header at `offset`.
fn data(file: &Bytes, offset: usize, len: usize) -> Option<Bytes> {
    let mut header = Cursor::new(file.get(offset..)?);
    if header.u32()? != LOCAL {
        return None;
    }
    header.take(22)?;
    let (name, extra) = (header.u16()?, header.u16()?);
    header.take(usize::from(name) + usize::from(extra))?;
    let start = offset + header.at();
    file.slice(start..start.checked_add(len)?)
}
