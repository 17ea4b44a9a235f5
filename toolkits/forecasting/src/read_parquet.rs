//! Tables from Parquet.

use std::fs::File;
use std::io::Read;
use std::panic::AssertUnwindSafe;
use std::path::Path;

use bytes::Bytes;
use fauna_shared::{Error, Result};
use parquet::basic::{ConvertedType, LogicalType, TimeUnit, Type as Physical};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, DataType, Int96};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{ChunkReader, FileReader, RowGroupReader, SerializedFileReader};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

use crate::arrow_schema::{self, ArrowType};
use crate::table::{Columns, Table};
use crate::table_builder::{Cell, MAX_CELLS, TableBuilder};
use crate::timestamp::{DAY, MINUTE, TimestampFormat, of_date};

/// Files up to this size are read into memory: the decoder reads a damaged header byte by byte, which takes minutes from a
/// file.
const IN_MEMORY: u64 = 1 << 26;

/// Number of rows that are decoded at a time.
const BATCH_SIZE: usize = 8192;

/// Reads the columns of a table, a few thousand rows at a time.
///
/// # Errors
/// As [`Table::read`].
pub(crate) fn read(mut file: File, path: &Path, columns: &Columns, with_target: bool) -> Result<Table> {
    let unread = |e| Error::io(path, "read", e);
    let mut held = Vec::new();
    let small = file.metadata().map_err(unread)?.len() <= IN_MEMORY;
    if small {
        file.read_to_end(&mut held).map_err(unread)?;
    }
    // The decoder panics on some damaged files; what it had begun is dropped.
    let read = AssertUnwindSafe(|| match small {
        true => read_groups(Bytes::from(held), path, columns, with_target),
        false => read_groups(file, path, columns, with_target),
    });
    std::panic::catch_unwind(read)
        .unwrap_or_else(|_| Err(Error::format(path, "a damaged Parquet file: the decoder failed")))
}

fn read_groups(
    source: impl ChunkReader + 'static,
    path: &Path,
    columns: &Columns,
    with_target: bool,
) -> Result<Table> {
    let wrong = |e: ParquetError| Error::format(path, format!("not a readable Parquet file: {e}"));
    let bytes = i64::try_from(source.len()).unwrap_or(i64::MAX);
    let reader = SerializedFileReader::new(source).map_err(wrong)?;
    let about = reader.metadata().file_metadata();
    let schema = about.schema_descr();
    let flat = flat_columns(schema);
    let header: Vec<String> = flat.iter().map(|at| schema.column(*at).name().to_string()).collect();
    let mut builder = TableBuilder::new(path, "row", &header, columns, with_target)?;
    let rows = u64::try_from(about.num_rows()).unwrap_or(0);
    if rows.saturating_mul(builder.layout().numbers()) > MAX_CELLS {
        return Err(Error::input(format!("{rows} rows; at most {MAX_CELLS} numbers are read"))
            .at(path)
            .hint("split the table into several files"));
    }
    let layout = builder.layout();
    let wanted: Vec<usize> = layout
        .id
        .into_iter()
        .chain([layout.time])
        .chain(layout.target)
        .chain(layout.covariates.iter().copied())
        .collect();
    let arrow = about.key_value_metadata().and_then(|all| all.iter().find(|one| one.key == "ARROW:schema"));
    let arrow_types = arrow_schema::columns(arrow.and_then(|one| one.value.as_deref()).unwrap_or_default());
    let mut types = Vec::with_capacity(wanted.len());
    for at in &wanted {
        let column = schema.column(flat[*at]);
        let column_type = ColumnType::of(&column, arrow_types.get(column.name()));
        if let (ColumnType::Other(what), false) = (&column_type, layout.covariates.contains(at)) {
            let expected = if *at == layout.time { "dates" } else { "ids or values" };
            return Err(Error::unsupported(format!(
                "column `{}` holds {what}, expected {expected}",
                column.name()
            ))
            .at(path)
            .hint("dates are DATE, TIMESTAMP, a string or an integer; values are numbers; ids are strings"));
        }
        types.push(column_type);
    }
    let mut number = 0;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(wrong)?;
        read_group(group.as_ref(), &flat, &wanted, &types, &mut builder, &mut number, (path, bytes))?;
    }
    builder.finish()
}

/// The columns that are not nested.
fn flat_columns(schema: &SchemaDescriptor) -> Vec<usize> {
    let is_flat = |column: &ColumnDescriptor| {
        column.max_rep_level() == 0 && column.max_def_level() <= 1 && column.path().parts().len() == 1
    };
    (0..schema.num_columns()).filter(|at| is_flat(&schema.column(*at))).collect()
}

fn read_group(
    group: &dyn RowGroupReader,
    flat: &[usize],
    wanted: &[usize],
    types: &[ColumnType],
    builder: &mut TableBuilder,
    number: &mut u64,
    (path, bytes): (&Path, i64),
) -> Result<()> {
    let wrong = |e: ParquetError| Error::format(path, format!("row {} and after: {e}", *number + 1));
    let mut readers = Vec::with_capacity(wanted.len());
    for (at, column_type) in wanted.iter().zip(types) {
        let column = flat[*at];
        check_offsets(group.metadata().column(column), bytes).map_err(|what| Error::format(path, what))?;
        let pages = Pages(group.get_column_page_reader(column).map_err(wrong)?);
        let reader = get_column_reader(group.metadata().column(column).column_descr_ptr(), Box::new(pages));
        readers.push(Reader { reader, column_type: column_type.clone() });
    }
    // Index of each flat column among those that are read.
    let mut slots = vec![0; flat.len()];
    wanted.iter().enumerate().for_each(|(slot, at)| slots[*at] = slot);
    // A few bytes of a damaged page can claim billions of rows.
    let last = number.saturating_add(u64::try_from(group.metadata().num_rows()).unwrap_or(0));
    loop {
        let wrong = |e: ParquetError| Error::format(path, format!("row {} and after: {e}", *number + 1));
        let batch: Vec<Batch> =
            readers.iter_mut().map(Reader::next).collect::<Result<_, _>>().map_err(wrong)?;
        let rows = batch.iter().map(Batch::len).max().unwrap_or(0);
        if let Some(short) = batch.iter().map(Batch::len).min().filter(|short| *short != rows) {
            let found = format!("row {} and after: a column has {short} rows, another {rows}", *number + 1);
            return Err(Error::format(path, found));
        }
        if rows == 0 {
            return Ok(());
        }
        if *number + rows as u64 > last {
            return Err(Error::format(
                path,
                format!("a row group holds more than its {} rows", group.metadata().num_rows()),
            ));
        }
        for row in 0..rows {
            *number += 1;
            let slot = |column: usize| (&batch[slots[column]], &types[slots[column]]);
            builder.row(*number, |column| slot(column).0.cell(row, slot(column).1))?;
        }
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

/// The pages of a column. A dictionary of more values than bytes is an error: the decoder would allocate them all.
struct Pages(Box<dyn PageReader>);

impl Iterator for Pages {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        match self.0.get_next_page()? {
            Some(Page::DictionaryPage { buf, num_values, .. }) if num_values as usize > buf.len() => Err(
                ParquetError::General(format!("a dictionary of {num_values} values in {} bytes", buf.len())),
            ),
            page => Ok(page),
        }
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        self.0.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.0.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool, ParquetError> {
        self.0.at_record_boundary()
    }
}

struct Reader {
    reader: ColumnReader,
    column_type: ColumnType,
}

/// Type of the values of a column.
#[derive(Debug, Clone, PartialEq)]
enum ColumnType {
    Number,
    /// Stored as signed integers.
    Unsigned {
        bits: u8,
    },
    Boolean,
    Half,
    Text,
    Uuid,
    /// Days since 1970.
    Date,
    /// A number of units per microsecond or of microseconds per unit, and the format of timestamps in UTC.
    Time {
        per_micro: i64,
        micros: i64,
        zone: Option<TimestampFormat>,
    },
    /// Legacy timestamps.
    Int96,
    /// An integer over this power of ten.
    Decimal(i32),
    /// Periods since 1970, each read as its first timestamp.
    Period(Period),
    /// An unsupported type.
    Other(String),
}

/// The unit of a pandas period.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Period {
    /// A number of months, the year beginning in January.
    Months(i64),
    Micros(i64),
}

impl Period {
    /// The unit of the pandas period frequency `name`.
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "M" => Self::Months(1),
            "Q" | "Q-DEC" | "QE-DEC" => Self::Months(3),
            "A" | "A-DEC" | "Y" | "Y-DEC" | "YE-DEC" => Self::Months(12),
            "D" => Self::Micros(DAY),
            "H" | "h" => Self::Micros(60 * MINUTE),
            "T" | "min" => Self::Micros(MINUTE),
            "S" | "s" => Self::Micros(1_000_000),
            "L" | "ms" => Self::Micros(1000),
            "U" | "us" => Self::Micros(1),
            _ => return None,
        })
    }

    fn cell(self, value: i64) -> Cell<'static> {
        let timestamp = match self {
            Self::Micros(unit) => value.checked_mul(unit),
            Self::Months(count) => value.checked_mul(count).and_then(of_month_since_1970),
        };
        let format = match self {
            Self::Months(_) => TimestampFormat::MONTH,
            Self::Micros(DAY) => TimestampFormat::DATE,
            Self::Micros(_) => TimestampFormat::DATE_TIME,
        };
        timestamp.map_or(Cell::Text("a period beyond the calendar"), |timestamp| {
            Cell::Timestamp(timestamp, format)
        })
    }
}

impl ColumnType {
    /// The type of `column`, whose additional type in the Arrow schema is `arrow_type`.
    fn of(column: &ColumnDescriptor, arrow_type: Option<&ArrowType>) -> Self {
        let physical = column.physical_type();
        let is_integer = matches!(physical, Physical::INT32 | Physical::INT64);
        let other = |what: &str| Self::Other(what.to_string());
        match arrow_type {
            Some(ArrowType::Extension(name, about)) if name == "pandas.period" => {
                let freq = serde_json::from_str::<serde_json::Value>(about)
                    .ok()
                    .and_then(|about| about["freq"].as_str().map(str::to_string))
                    .unwrap_or_default();
                return match Period::from_name(&freq).filter(|_| is_integer) {
                    Some(period) => Self::Period(period),
                    None => {
                        Self::Other(format!("periods of `{freq}` (write them as dates: .dt.to_timestamp())"))
                    }
                };
            }
            Some(ArrowType::Extension(name, _)) if is_integer => {
                return Self::Other(format!("values of the extension type `{name}`"));
            }
            Some(ArrowType::Duration) => return other("durations"),
            _ => {}
        }
        let zone = match arrow_type {
            Some(ArrowType::Zone(name)) => TimestampFormat::in_zone(name),
            _ => None,
        };
        let time = |unit: &TimeUnit, utc: bool| {
            let (per_micro, micros) = match unit {
                TimeUnit::MILLIS => (1, 1000),
                TimeUnit::MICROS => (1, 1),
                TimeUnit::NANOS => (1000, 1),
            };
            Self::Time { per_micro, micros, zone: utc.then(|| zone.unwrap_or(TimestampFormat::UTC)) }
        };
        let whole = |bits: u8, signed: bool| if signed { Self::Number } else { Self::Unsigned { bits } };
        if let Some(logical) = column.logical_type_ref() {
            return match logical {
                LogicalType::String | LogicalType::Enum | LogicalType::Json => Self::Text,
                LogicalType::Uuid => Self::Uuid,
                LogicalType::Date => Self::Date,
                LogicalType::Timestamp(timestamp) => time(&timestamp.unit, timestamp.is_adjusted_to_u_t_c),
                LogicalType::Integer(int) => whole(int.bit_width.unsigned_abs(), int.is_signed),
                LogicalType::Decimal(_) => Self::Decimal(column.type_scale()),
                LogicalType::Float16 => Self::Half,
                LogicalType::Unknown => match physical {
                    // A column of nulls.
                    Physical::INT32 | Physical::INT64 | Physical::FLOAT | Physical::DOUBLE => Self::Number,
                    Physical::BOOLEAN => Self::Boolean,
                    _ => Self::Text,
                },
                LogicalType::Time(_) => other("times of day"),
                LogicalType::Bson => other("BSON"),
                named => Self::Other(format!("values of the type {named:?}")),
            };
        }
        match column.converted_type() {
            ConvertedType::NONE => match physical {
                Physical::BOOLEAN => Self::Boolean,
                Physical::INT32 | Physical::INT64 | Physical::FLOAT | Physical::DOUBLE => Self::Number,
                Physical::INT96 => Self::Int96,
                Physical::BYTE_ARRAY => Self::Text,
                Physical::FIXED_LEN_BYTE_ARRAY => other("bytes of a fixed length"),
            },
            ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON => Self::Text,
            ConvertedType::DATE => Self::Date,
            ConvertedType::TIMESTAMP_MILLIS => time(&TimeUnit::MILLIS, true),
            ConvertedType::TIMESTAMP_MICROS => time(&TimeUnit::MICROS, true),
            ConvertedType::DECIMAL => Self::Decimal(column.type_scale()),
            ConvertedType::INT_8 | ConvertedType::INT_16 | ConvertedType::INT_32 | ConvertedType::INT_64 => {
                Self::Number
            }
            ConvertedType::UINT_8 => whole(8, false),
            ConvertedType::UINT_16 => whole(16, false),
            ConvertedType::UINT_32 => whole(32, false),
            ConvertedType::UINT_64 => whole(64, false),
            ConvertedType::TIME_MILLIS | ConvertedType::TIME_MICROS => other("times of day"),
            ConvertedType::INTERVAL => other("intervals"),
            ConvertedType::BSON => other("BSON"),
            ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE | ConvertedType::LIST => other("lists"),
        }
    }

    /// The cell of a stored integer.
    fn cell(&self, value: i64) -> Cell<'_> {
        match self {
            Self::Unsigned { bits: 64 } => {
                let value = value as u64;
                i64::try_from(value).map_or(Cell::Number(value as f64), Cell::Integer)
            }
            // Stored in 32 bits with a sign.
            Self::Unsigned { .. } => Cell::Integer(value & 0xffff_ffff),
            Self::Boolean => Cell::Boolean(value != 0),
            Self::Decimal(scale) => Cell::Number(value as f64 / 10_f64.powi(*scale)),
            Self::Date => match value.checked_mul(DAY) {
                Some(timestamp) => Cell::Timestamp(timestamp, TimestampFormat::DATE),
                None => Cell::Text("a date beyond the calendar"),
            },
            Self::Time { per_micro, micros, zone } => {
                if value.rem_euclid(*per_micro) != 0 {
                    return Cell::Text("a time with nanoseconds");
                }
                let Some(timestamp) = value.div_euclid(*per_micro).checked_mul(*micros) else {
                    return Cell::Text("a time beyond the calendar");
                };
                let format = match (zone, timestamp.rem_euclid(DAY)) {
                    (Some(format), _) => *format,
                    // pandas has no dates without a time of day.
                    (None, 0) => TimestampFormat::DATE,
                    (None, _) => TimestampFormat::DATE_TIME,
                };
                // With a fixed offset, the local time.
                Cell::Timestamp(
                    timestamp.saturating_add(i64::from(format.offset().unwrap_or(0)) * MINUTE),
                    format,
                )
            }
            Self::Int96 => Cell::Timestamp(value, TimestampFormat::DATE_TIME),
            Self::Period(period) => period.cell(value),
            Self::Other(what) => Cell::Text(what),
            Self::Number | Self::Half | Self::Text | Self::Uuid => Cell::Integer(value),
        }
    }

    /// The cell of stored bytes.
    fn bytes<'a>(&'a self, bytes: &'a [u8]) -> Cell<'a> {
        match self {
            Self::Decimal(scale) => Cell::Number(big_endian(bytes) / 10_f64.powi(*scale)),
            Self::Half => match bytes {
                [low, high] => Cell::Number(half(u16::from_le_bytes([*low, *high]))),
                _ => Cell::Text("bytes that are not float16"),
            },
            Self::Other(what) => Cell::Text(what),
            _ => Cell::Text(std::str::from_utf8(bytes).unwrap_or("bytes that are not UTF-8")),
        }
    }
}

/// The timestamp of the month with this index from January 1970.
fn of_month_since_1970(months: i64) -> Option<i64> {
    let month = months.checked_add(1970 * 12)?;
    let year = i16::try_from(month.div_euclid(12)).ok().filter(|year| (0..=9999).contains(year))?;
    jiff::civil::Date::new(year, month.rem_euclid(12) as i8 + 1, 1).ok().map(of_date)
}

/// Decodes a float16.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let size = match exponent {
        0 => fraction * 2_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * 2_f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

/// Some rows of a column; `None` for null.
enum Batch {
    Integer(Vec<Option<i64>>),
    Number(Vec<Option<f64>>),
    Bytes(Vec<Option<ByteArray>>),
}

impl Batch {
    fn len(&self) -> usize {
        match self {
            Self::Integer(values) => values.len(),
            Self::Number(values) => values.len(),
            Self::Bytes(values) => values.len(),
        }
    }

    fn cell<'a>(&'a self, row: usize, column_type: &'a ColumnType) -> Cell<'a> {
        match self {
            Self::Integer(values) => values[row].map_or(Cell::Null, |value| column_type.cell(value)),
            Self::Number(values) => values[row].map_or(Cell::Null, Cell::Number),
            Self::Bytes(values) => {
                values[row].as_ref().map_or(Cell::Null, |bytes| column_type.bytes(bytes.data()))
            }
        }
    }
}

impl Reader {
    /// The next rows, at most [`BATCH_SIZE`]; none at the end.
    fn next(&mut self) -> Result<Batch, ParquetError> {
        Ok(match &mut self.reader {
            ColumnReader::BoolColumnReader(reader) => {
                Batch::Integer(values(reader, |value| i64::from(*value))?)
            }
            ColumnReader::Int32ColumnReader(reader) => {
                Batch::Integer(values(reader, |value| i64::from(*value))?)
            }
            ColumnReader::Int64ColumnReader(reader) => Batch::Integer(values(reader, |value| *value)?),
            ColumnReader::Int96ColumnReader(reader) => Batch::Integer(values(reader, Int96::to_micros)?),
            ColumnReader::FloatColumnReader(reader) => {
                Batch::Number(values(reader, |value| f64::from(*value))?)
            }
            ColumnReader::DoubleColumnReader(reader) => Batch::Number(values(reader, |value| *value)?),
            ColumnReader::ByteArrayColumnReader(reader) => Batch::Bytes(values(reader, ByteArray::clone)?),
            ColumnReader::FixedLenByteArrayColumnReader(reader) => match self.column_type {
                ColumnType::Uuid => Batch::Bytes(values(reader, |value| ByteArray::from(hex(value.data())))?),
                _ => Batch::Bytes(values(reader, |value| ByteArray::from(value.data().to_vec()))?),
            },
        })
    }
}

/// Writes sixteen bytes as a UUID.
fn hex(bytes: &[u8]) -> Vec<u8> {
    let mut text = String::with_capacity(36);
    for (path, byte) in bytes.iter().enumerate() {
        if matches!(path, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text.into_bytes()
}

/// Decodes a signed big-endian integer.
fn big_endian(bytes: &[u8]) -> f64 {
    let start = if bytes.first().is_some_and(|byte| *byte > 127) { -1.0 } else { 0.0 };
    bytes.iter().fold(start, |value, byte| value * 256.0 + f64::from(*byte))
}

fn values<T: DataType, V>(
    reader: &mut ColumnReaderImpl<T>,
    value: impl Fn(&T::T) -> V,
) -> Result<Vec<Option<V>>, ParquetError> {
    let (mut found, mut levels) = (Vec::new(), Vec::new());
    let (rows, count, _) = reader.read_records(BATCH_SIZE, Some(&mut levels), None, &mut found)?;
    let mut found = found.iter().take(count);
    Ok((0..rows)
        .map(|row| match levels.get(row) {
            Some(0) => None,
            _ => found.next().map(&value),
        })
        .collect())
}
