//! Columns of Parquet files: numbers, texts, bytes, and lists of them.

use std::fs::File;
use std::io::Read;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fauna_shared::error::{first_five, nearest};
use fauna_shared::{Error, Result};
use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;

/// Files up to this size are read into memory: the decoder reads a damaged header byte by byte, which takes minutes from a
/// file.
const IN_MEMORY: u64 = 1 << 26;

/// Number of rows that are decoded at a time.
const BATCH_SIZE: usize = 1024;

/// Maximum number of values of a column that is held in memory.
const MAX_VALUES: usize = 200_000_000;

/// An open file.
pub(crate) struct Table {
    reader: Box<dyn FileReader>,
    path: PathBuf,
    bytes: i64,
}

/// The values of the rows of a column: lists one after the other.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Lists<T> {
    pub values: Vec<T>,
    /// End of each row in `values`.
    pub ends: Vec<usize>,
}

impl<T> Lists<T> {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn row(&self, index: usize) -> &[T] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.values[start..self.ends[index]]
    }
}

/// The names of the columns of `path`, without those in structs and lists.
#[cfg(feature = "series")]
pub(crate) fn columns_of(path: &Path) -> Result<Vec<String>> {
    guarded(path, || {
        let table = Table::open(path)?;
        let schema = table.reader.metadata().file_metadata().schema_descr();
        let columns = schema.columns().iter().filter(|column| column.path().parts().len() == 1);
        Ok(columns.map(|column| column.name().to_string()).collect())
    })
}

/// Runs `read`, in which the decoder may panic on a damaged file.
pub(crate) fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(Error::format(path, "a damaged Parquet file: the decoder failed")))
}

impl Table {
    /// Opens a file; call it and what reads the table in [`guarded`].
    pub fn open(path: &Path) -> Result<Self> {
        let unread = |e| Error::io(path, "read", e);
        let mut file = File::open(path).map_err(unread)?;
        let size = file.metadata().map_err(unread)?.len();
        let wrong = |e: ParquetError| Error::format(path, format!("not a readable Parquet file: {e}"));
        let reader: Box<dyn FileReader> = match size <= IN_MEMORY {
            true => {
                let mut held = Vec::new();
                file.read_to_end(&mut held).map_err(unread)?;
                fauna_shared::misnamed::refuse(path, &held)?;
                Box::new(SerializedFileReader::new(Bytes::from(held)).map_err(wrong)?)
            }
            false => Box::new(SerializedFileReader::new(file).map_err(wrong)?),
        };
        Ok(Self { reader, path: path.to_path_buf(), bytes: i64::try_from(size).unwrap_or(i64::MAX) })
    }

    /// The number of rows that the file declares.
    pub fn rows(&self) -> usize {
        usize::try_from(self.reader.metadata().file_metadata().num_rows()).unwrap_or(0)
    }

    /// The index of the column `name`, of its only part `name.part` if it is given, or of the elements of the list `name`.
    fn find(&self, name: &str, part: Option<&str>) -> Result<usize> {
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let is_wanted = |column: &ColumnDescriptor| {
            let parts = column.path().parts();
            match part {
                Some(part) => parts.len() == 2 && parts[0] == name && parts[1] == part,
                None => parts.first().is_some_and(|first| first == name),
            }
        };
        let found: Vec<usize> =
            (0..schema.num_columns()).filter(|at| is_wanted(&schema.column(*at))).collect();
        let whole = part.map_or(name.to_string(), |part| format!("{name}.{part}"));
        match found[..] {
            [one] if schema.column(one).max_rep_level() <= 1 => Ok(one),
            [] => {
                let columns: Vec<String> =
                    schema.columns().iter().map(|column| column.path().parts()[0].clone()).collect();
                let near = nearest(name, columns.iter().map(String::as_str));
                let near = near.first().map_or(String::new(), |near| format!("; is it `{near}`?"));
                Err(Error::input(format!("no column is called `{whole}`{near}"))
                    .at(&self.path)
                    .hint(format!("the columns: {}", first_five(columns).replace('\n', ", "))))
            }
            _ => {
                Err(Error::input(format!("the column `{whole}` is nested, expected values or lists of them"))
                    .at(&self.path))
            }
        }
    }

    /// Whether there is a column, or a struct or list, of this name.
    pub fn has(&self, name: &str) -> bool {
        let schema = self.reader.metadata().file_metadata().schema_descr();
        schema.columns().iter().any(|column| column.path().parts().first().is_some_and(|first| first == name))
    }

    /// The rows of a column of numbers or lists of numbers, without nulls.
    pub fn numbers(&self, name: &str) -> Result<Lists<f64>> {
        let column = self.find(name, None)?;
        self.expect(column, name, "numbers", |about| {
            let is_number = match about.logical_type_ref() {
                None => matches!(
                    about.converted_type(),
                    ConvertedType::NONE
                        | ConvertedType::INT_8
                        | ConvertedType::INT_16
                        | ConvertedType::INT_32
                        | ConvertedType::INT_64
                        | ConvertedType::UINT_8
                        | ConvertedType::UINT_16
                ),
                Some(LogicalType::Integer(_)) => true,
                Some(_) => false,
            };
            is_number
                && matches!(
                    about.physical_type(),
                    Physical::INT32 | Physical::INT64 | Physical::FLOAT | Physical::DOUBLE
                )
        })?;
        self.read(column, name, |reader, lists| match reader {
            ColumnReader::Int32ColumnReader(reader) => lists.fill(reader, |value| f64::from(*value)),
            ColumnReader::Int64ColumnReader(reader) => lists.fill(reader, |value| *value as f64),
            ColumnReader::FloatColumnReader(reader) => lists.fill(reader, |value| f64::from(*value)),
            ColumnReader::DoubleColumnReader(reader) => lists.fill(reader, |value| *value),
            _ => Ok(0),
        })
    }

    /// The rows of a column of non-negative integers.
    pub fn indices(&self, name: &str) -> Result<Vec<usize>> {
        let found = self.numbers(name)?;
        let whole = |value: &f64| *value >= 0.0 && value.fract() == 0.0 && *value < (1u64 << 53) as f64;
        let is_flat = found.values.len() == found.len()
            && found.ends.iter().enumerate().all(|(row, end)| *end == row + 1);
        match found.values.iter().position(|value| !whole(value)) {
            Some(row) => Err(Error::input(format!(
                "row {}: column `{name}` is {}, expected an index",
                row + 1,
                found.values[row]
            ))
            .at(&self.path)),
            None if !is_flat => {
                Err(Error::input(format!("the column `{name}` has lists, expected integers")).at(&self.path))
            }
            None => Ok(found.values.into_iter().map(|value| value as usize).collect()),
        }
    }

    /// The rows of a column of texts or lists of texts, without nulls.
    pub fn texts(&self, name: &str) -> Result<Lists<String>> {
        let column = self.find(name, None)?;
        self.expect(column, name, "texts", |about| {
            let is_text = matches!(about.logical_type_ref(), None | Some(LogicalType::String));
            is_text && about.physical_type() == Physical::BYTE_ARRAY
        })?;
        let bytes = self.read(column, name, |reader, lists| match reader {
            ColumnReader::ByteArrayColumnReader(reader) => lists.fill(reader, ByteArray::clone),
            _ => Ok(0),
        })?;
        let text = |value: &ByteArray| {
            std::str::from_utf8(value.data()).map(str::to_string).map_err(|_| {
                Error::input(format!("the column `{name}` has a text that is not UTF-8")).at(&self.path)
            })
        };
        Ok(Lists { values: bytes.values.iter().map(text).collect::<Result<_>>()?, ends: bytes.ends })
    }

    /// Checks that `name.bytes` is a column of bytes.
    pub fn check_bytes(&self, name: &str) -> Result<()> {
        let column = self.find(name, Some("bytes"))?;
        self.expect(column, name, "bytes", |about| {
            about.physical_type() == Physical::BYTE_ARRAY && about.max_rep_level() == 0
        })
    }

    /// The bytes of a part of the struct `name` in a row; `None` if they are null.
    pub fn bytes(&self, name: &str, part: &str, row: usize) -> Result<Option<Vec<u8>>> {
        let column = self.find(name, Some(part))?;
        let wrong =
            |e: ParquetError| Error::format(&self.path, format!("column `{name}`, row {}: {e}", row + 1));
        let mut before = 0;
        for group in 0..self.reader.num_row_groups() {
            let group = self.reader.get_row_group(group).map_err(wrong)?;
            let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
            if row >= before + rows {
                before += rows;
                continue;
            }
            let ColumnReader::ByteArrayColumnReader(mut reader) = self.reader_of(group.as_ref(), column)?
            else {
                break;
            };
            let skipped = reader.skip_records(row - before).map_err(wrong)?;
            let (mut found, mut levels) = (Vec::new(), Vec::new());
            let (read, ..) = reader.read_records(1, Some(&mut levels), None, &mut found).map_err(wrong)?;
            if skipped != row - before || read != 1 {
                break;
            }
            return Ok(found.first().map(|bytes: &ByteArray| bytes.data().to_vec()));
        }
        Err(Error::format(&self.path, format!("column `{name}` has no row {}", row + 1)))
    }

    fn expect(
        &self,
        column: usize,
        name: &str,
        wanted: &str,
        is_wanted: impl Fn(&ColumnDescriptor) -> bool,
    ) -> Result<()> {
        let about = self.reader.metadata().file_metadata().schema_descr().column(column);
        match is_wanted(&about) {
            true => Ok(()),
            false => {
                let found = match about.logical_type_ref() {
                    Some(logical) => format!("{logical:?}"),
                    None => about.physical_type().to_string(),
                };
                Err(Error::input(format!("the column `{name}` is of the type {found}, expected {wanted}"))
                    .at(&self.path))
            }
        }
    }

    fn reader_of(&self, group: &dyn RowGroupReader, column: usize) -> Result<ColumnReader> {
        let about = group.metadata().column(column);
        check_offsets(about, self.bytes).map_err(|what| Error::format(&self.path, what))?;
        let pages = group
            .get_column_page_reader(column)
            .map_err(|e| Error::format(&self.path, format!("column `{}`: {e}", about.column_path())))?;
        let left = u64::try_from(about.num_values()).unwrap_or(0);
        Ok(get_column_reader(about.column_descr_ptr(), Box::new(Pages { pages, left })))
    }

    /// Reads all rows of a column in batches, with `fill` for its type.
    fn read<T>(
        &self,
        column: usize,
        name: &str,
        mut fill: impl FnMut(&mut ColumnReader, &mut Filling<T>) -> Result<usize, ParquetError>,
    ) -> Result<Lists<T>> {
        let about = self.reader.metadata().file_metadata().schema_descr().column(column);
        let mut filling = Filling {
            lists: Lists { values: Vec::new(), ends: Vec::new() },
            has_null: false,
            full: about.max_def_level(),
            empty: (about.max_rep_level() > 0)
                .then(|| about.max_def_level() - 1 - i16::from(about.self_type().is_optional())),
        };
        for group in 0..self.reader.num_row_groups() {
            let wrong = |e: ParquetError| Error::format(&self.path, format!("column `{name}`: {e}"));
            let group = self.reader.get_row_group(group).map_err(wrong)?;
            let expected =
                filling.lists.len().saturating_add(usize::try_from(group.metadata().num_rows()).unwrap_or(0));
            let mut reader = self.reader_of(group.as_ref(), column)?;
            while fill(&mut reader, &mut filling).map_err(wrong)? > 0 {
                // A few bytes of a damaged page can claim billions of rows.
                if filling.lists.len() > expected || filling.lists.values.len() > MAX_VALUES {
                    return Err(Error::format(
                        &self.path,
                        format!("column `{name}` has more values than its row group declares"),
                    ));
                }
                if filling.has_null {
                    let row = filling.lists.len();
                    return Err(Error::input(format!("column `{name}`: a null at or before row {row}"))
                        .at(&self.path));
                }
            }
            if filling.lists.len() != expected {
                let found = filling.lists.len();
                return Err(Error::format(
                    &self.path,
                    format!("column `{name}` has {found} rows, its row groups declare {expected}"),
                ));
            }
        }
        match filling.lists.len() == self.rows() {
            true => Ok(filling.lists),
            false => Err(Error::format(
                &self.path,
                format!(
                    "column `{name}` has {} rows, the file declares {}",
                    filling.lists.len(),
                    self.rows()
                ),
            )),
        }
    }
}

/// A column while it is read.
struct Filling<T> {
    lists: Lists<T>,
    has_null: bool,
    /// Definition level of a value that is not null.
    full: i16,
    /// Definition level of an empty list; `None` if the column has no lists.
    empty: Option<i16>,
}

impl<T> Filling<T> {
    /// Reads the next rows and returns their number.
    fn fill<D: DataType>(
        &mut self,
        reader: &mut ColumnReaderImpl<D>,
        value: impl Fn(&D::T) -> T,
    ) -> Result<usize, ParquetError> {
        let (mut found, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
        let (records, _, levels) =
            reader.read_records(BATCH_SIZE, Some(&mut defined), Some(&mut repeated), &mut found)?;
        let mut found = found.iter();
        for level in 0..levels {
            let is_first = self.empty.is_none() || repeated.get(level).is_none_or(|level| *level == 0);
            if is_first {
                self.lists.ends.push(self.lists.values.len());
            }
            let depth = defined.get(level).copied().unwrap_or(self.full);
            match depth == self.full {
                true => self.lists.values.extend(found.next().map(&value)),
                false => self.has_null |= self.empty != Some(depth),
            }
            if let Some(end) = self.lists.ends.last_mut() {
                *end = self.lists.values.len();
            }
        }
        Ok(records)
    }
}

/// Refuses a column whose offset or size is negative or beyond the file of `bytes`.
fn check_offsets(column: &ColumnChunkMetaData, bytes: i64) -> Result<(), String> {
    let starts = [Some(column.data_page_offset()), column.dictionary_page_offset()];
    let least = starts.into_iter().flatten().min().unwrap_or(0);
    let size = column.compressed_size();
    match least >= 0 && size >= 0 && least.checked_add(size).is_some_and(|end| end <= bytes) {
        true => Ok(()),
        false => Err(format!(
            "column `{}` has {size} bytes at offset {least}, in a file of {bytes}",
            column.column_path()
        )),
    }
}

/// The pages of a column. A dictionary of more values than bytes is an error, and so are more values than the column
/// declares: the decoder would allocate them all.
struct Pages {
    pages: Box<dyn PageReader>,
    /// Number of values that are left.
    left: u64,
}

impl Iterator for Pages {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        let page = self.pages.get_next_page()?;
        match &page {
            Some(Page::DictionaryPage { buf, num_values, .. }) if *num_values as usize > buf.len() => {
                return Err(ParquetError::General(format!(
                    "a dictionary of {num_values} values in {} bytes",
                    buf.len()
                )));
            }
            Some(Page::DictionaryPage { .. }) | None => {}
            Some(data) => {
                let count = u64::from(data.num_values());
                self.left = self.left.checked_sub(count).ok_or_else(|| {
                    ParquetError::General(format!("a page of {count} values where {} are left", self.left))
                })?;
            }
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        let count =
            self.pages.peek_next_page()?.and_then(|page| page.num_levels.or(page.num_rows)).unwrap_or(0);
        self.left = self.left.saturating_sub(count as u64);
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool, ParquetError> {
        self.pages.at_record_boundary()
    }
}
