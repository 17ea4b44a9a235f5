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

use super::arrow_schema;
use super::builder::{Builder, Cell, MOST_CELLS};
use super::stamp::{DAY, Form, MINUTE, of_date};
use super::table::{Columns, Table};

/// Files up to this size are read as a whole: of a damaged header the decoder asks byte by byte, which from a file takes
/// minutes.
const IN_MEMORY: u64 = 1 << 26;

/// Rows that are decoded at a time.
const TOGETHER: usize = 8192;

/// Reads the columns that matter, a few thousand rows at a time.
///
/// # Errors
/// As [`Table::read`].
pub(super) fn read(mut file: File, place: &Path, columns: &Columns, with_target: bool) -> Result<Table> {
    let unread = |e| Error::io(place, "read", e);
    let mut held = Vec::new();
    let small = file.metadata().map_err(unread)?.len() <= IN_MEMORY;
    if small {
        file.read_to_end(&mut held).map_err(unread)?;
    }
    // The decoder asserts in places where a damaged file can make it wrong; what it had begun is dropped.
    let read = AssertUnwindSafe(|| match small {
        true => read_groups(Bytes::from(held), place, columns, with_target),
        false => read_groups(file, place, columns, with_target),
    });
    std::panic::catch_unwind(read)
        .unwrap_or_else(|_| Err(Error::format(place, "a damaged Parquet file: the decoder gave up")))
}

fn read_groups(
    source: impl ChunkReader + 'static,
    place: &Path,
    columns: &Columns,
    with_target: bool,
) -> Result<Table> {
    let wrong = |e: ParquetError| Error::format(place, format!("no Parquet file that can be read: {e}"));
    let bytes = i64::try_from(source.len()).unwrap_or(i64::MAX);
    let reader = SerializedFileReader::new(source).map_err(wrong)?;
    let about = reader.metadata().file_metadata();
    let schema = about.schema_descr();
    let flat = flat_columns(schema);
    let header: Vec<String> = flat.iter().map(|at| schema.column(*at).name().to_string()).collect();
    let mut builder = Builder::new(place, "row", &header, columns, with_target)?;
    let rows = u64::try_from(about.num_rows()).unwrap_or(0);
    if rows.saturating_mul(builder.layout().numbers()) > MOST_CELLS {
        return Err(Error::input(format!("{rows} rows; at most {MOST_CELLS} numbers are read"))
            .at(place)
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
    let said = arrow_schema::columns(arrow.and_then(|one| one.value.as_deref()).unwrap_or_default());
    let mut meanings = Vec::with_capacity(wanted.len());
    for at in &wanted {
        let column = schema.column(flat[*at]);
        let meaning = Meaning::of(&column, said.get(column.name()));
        if let (Meaning::Other(what), false) = (&meaning, layout.covariates.contains(at)) {
            let used = if *at == layout.time { "dates" } else { "names or values" };
            return Err(Error::unsupported(format!("column `{}` holds {what}, which are no {used}", column.name()))
                .at(place)
                .hint("dates are DATE, TIMESTAMP, a string or a whole number; values are numbers; names are strings"));
        }
        meanings.push(meaning);
    }
    let mut number = 0;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(wrong)?;
        read_group(group.as_ref(), &flat, &wanted, &meanings, &mut builder, &mut number, (place, bytes))?;
    }
    builder.finish()
}

/// The columns that are no lists and no structures.
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
    meanings: &[Meaning],
    builder: &mut Builder,
    number: &mut u64,
    (place, bytes): (&Path, i64),
) -> Result<()> {
    let wrong = |e: ParquetError| Error::format(place, format!("row {} and after: {e}", *number + 1));
    let mut readers = Vec::with_capacity(wanted.len());
    for (at, meaning) in wanted.iter().zip(meanings) {
        let column = flat[*at];
        check_place(group.metadata().column(column), bytes).map_err(|what| Error::format(place, what))?;
        let pages = Pages(group.get_column_page_reader(column).map_err(wrong)?);
        let reader = get_column_reader(group.metadata().column(column).column_descr_ptr(), Box::new(pages));
        readers.push(Reader { reader, meaning: meaning.clone() });
    }
    // Where each column of the file is among those that are read.
    let mut slots = vec![0; flat.len()];
    wanted.iter().enumerate().for_each(|(slot, at)| slots[*at] = slot);
    // A few bytes of a page can say that they are billions of rows.
    let last = number.saturating_add(u64::try_from(group.metadata().num_rows()).unwrap_or(0));
    loop {
        let wrong = |e: ParquetError| Error::format(place, format!("row {} and after: {e}", *number + 1));
        let batch: Vec<Batch> =
            readers.iter_mut().map(Reader::next).collect::<Result<_, _>>().map_err(wrong)?;
        let rows = batch.iter().map(Batch::len).max().unwrap_or(0);
        if let Some(short) = batch.iter().map(Batch::len).min().filter(|short| *short != rows) {
            let found = format!("row {} and after: a column has {short} rows, another {rows}", *number + 1);
            return Err(Error::format(place, found));
        }
        if rows == 0 {
            return Ok(());
        }
        if *number + rows as u64 > last {
            return Err(Error::format(
                place,
                format!("a row group of {} rows by its own word holds more", group.metadata().num_rows()),
            ));
        }
        for row in 0..rows {
            *number += 1;
            let slot = |column: usize| (&batch[slots[column]], &meanings[slots[column]]);
            builder.row(*number, |column| slot(column).0.cell(row, slot(column).1))?;
        }
    }
}

/// Refuses a column that says it begins before the file of `bytes` or ends behind it, or has fewer bytes than none.
fn check_place(column: &ColumnChunkMetaData, bytes: i64) -> Result<(), String> {
    let starts = [Some(column.data_page_offset()), column.dictionary_page_offset()];
    let least = starts.into_iter().flatten().min().unwrap_or(0);
    let size = column.compressed_size();
    match least >= 0 && size >= 0 && least.checked_add(size).is_some_and(|end| end <= bytes) {
        true => Ok(()),
        false => Err(format!(
            "column `{}` says that it has {size} bytes at {least}, in a file of {bytes}",
            column.column_path()
        )),
    }
}

/// The pages of a column. A dictionary of more values than bytes is an error: the decoder makes room for them all.
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
    meaning: Meaning,
}

/// What the stored numbers stand for.
#[derive(Debug, Clone, PartialEq)]
enum Meaning {
    Number,
    /// Stored as if they had a sign.
    Unsigned {
        bits: u8,
    },
    Boolean,
    Half,
    Text,
    Uuid,
    /// Days since 1970.
    Date,
    /// So many of them are a microsecond, or each is so many microseconds, and how they are written where in UTC.
    Time {
        per_micro: i64,
        micros: i64,
        zone: Option<Form>,
    },
    /// Microseconds are made of the stored form.
    Int96,
    /// A whole number over this power of ten.
    Decimal(i32),
    /// Months or so since 1970, each named by its first day.
    Period(Period),
    /// None of these.
    Other(String),
}

/// The unit of a pandas period.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Period {
    /// So many months, the year beginning in January.
    Months(i64),
    Micros(i64),
}

impl Period {
    /// The unit that pandas calls `name`.
    fn named(name: &str) -> Option<Self> {
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
        let stamp = match self {
            Self::Micros(unit) => value.checked_mul(unit),
            Self::Months(count) => value.checked_mul(count).and_then(of_month_since_1970),
        };
        let form = match self {
            Self::Months(_) => Form::MONTH,
            Self::Micros(DAY) => Form::DATE,
            Self::Micros(_) => Form::TIME,
        };
        stamp.map_or(Cell::Text("a period beyond the calendar"), |stamp| Cell::Stamp(stamp, form))
    }
}

impl Meaning {
    /// What `column` holds; `said` is what Arrow, which wrote it, says of it besides.
    fn of(column: &ColumnDescriptor, said: Option<&arrow_schema::Said>) -> Self {
        let physical = column.physical_type();
        let is_whole = matches!(physical, Physical::INT32 | Physical::INT64);
        let other = |what: &str| Self::Other(what.to_string());
        match said {
            Some(arrow_schema::Said::Extension(name, about)) if name == "pandas.period" => {
                let freq = serde_json::from_str::<serde_json::Value>(about)
                    .ok()
                    .and_then(|about| about["freq"].as_str().map(str::to_string))
                    .unwrap_or_default();
                return match Period::named(&freq).filter(|_| is_whole) {
                    Some(period) => Self::Period(period),
                    None => {
                        Self::Other(format!("periods of `{freq}` (write them as dates: .dt.to_timestamp())"))
                    }
                };
            }
            Some(arrow_schema::Said::Extension(name, _)) if is_whole => {
                return Self::Other(format!("values of the extension type `{name}`"));
            }
            Some(arrow_schema::Said::Duration) => return other("durations"),
            _ => {}
        }
        let zone = match said {
            Some(arrow_schema::Said::Zone(name)) => Form::in_zone(name),
            _ => None,
        };
        let time = |unit: &TimeUnit, utc: bool| {
            let (per_micro, micros) = match unit {
                TimeUnit::MILLIS => (1, 1000),
                TimeUnit::MICROS => (1, 1),
                TimeUnit::NANOS => (1000, 1),
            };
            Self::Time { per_micro, micros, zone: utc.then(|| zone.unwrap_or(Form::UTC)) }
        };
        let whole = |bits: u8, signed: bool| if signed { Self::Number } else { Self::Unsigned { bits } };
        if let Some(logical) = column.logical_type_ref() {
            return match logical {
                LogicalType::String | LogicalType::Enum | LogicalType::Json => Self::Text,
                LogicalType::Uuid => Self::Uuid,
                LogicalType::Date => Self::Date,
                LogicalType::Timestamp(stamp) => time(&stamp.unit, stamp.is_adjusted_to_u_t_c),
                LogicalType::Integer(int) => whole(int.bit_width.unsigned_abs(), int.is_signed),
                LogicalType::Decimal(_) => Self::Decimal(column.type_scale()),
                LogicalType::Float16 => Self::Half,
                LogicalType::Unknown => match physical {
                    // A column of nothing but gaps.
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

    /// The cell of a stored whole number.
    fn cell(&self, value: i64) -> Cell<'_> {
        match self {
            Self::Unsigned { bits: 64 } => {
                let value = value as u64;
                i64::try_from(value).map_or(Cell::Number(value as f64), Cell::Whole)
            }
            // Stored in 32 bits with a sign.
            Self::Unsigned { .. } => Cell::Whole(value & 0xffff_ffff),
            Self::Boolean => Cell::Flag(value != 0),
            Self::Decimal(scale) => Cell::Number(value as f64 / 10_f64.powi(*scale)),
            Self::Date => match value.checked_mul(DAY) {
                Some(stamp) => Cell::Stamp(stamp, Form::DATE),
                None => Cell::Text("a date beyond the calendar"),
            },
            Self::Time { per_micro, micros, zone } => {
                if value.rem_euclid(*per_micro) != 0 {
                    return Cell::Text("a time with nanoseconds");
                }
                let Some(stamp) = value.div_euclid(*per_micro).checked_mul(*micros) else {
                    return Cell::Text("a time beyond the calendar");
                };
                let form = match (zone, stamp.rem_euclid(DAY)) {
                    (Some(form), _) => *form,
                    // Files have no dates without a time of day where pandas wrote them.
                    (None, 0) => Form::DATE,
                    (None, _) => Form::TIME,
                };
                // Of a fixed offset, the time that its clock shows.
                Cell::Stamp(stamp.saturating_add(i64::from(form.offset().unwrap_or(0)) * MINUTE), form)
            }
            Self::Int96 => Cell::Stamp(value, Form::TIME),
            Self::Period(period) => period.cell(value),
            Self::Other(what) => Cell::Text(what),
            Self::Number | Self::Half | Self::Text | Self::Uuid => Cell::Whole(value),
        }
    }

    /// The cell of stored bytes.
    fn bytes<'a>(&'a self, bytes: &'a [u8]) -> Cell<'a> {
        match self {
            Self::Decimal(scale) => Cell::Number(big_endian(bytes) / 10_f64.powi(*scale)),
            Self::Half => match bytes {
                [low, high] => Cell::Number(half(u16::from_le_bytes([*low, *high]))),
                _ => Cell::Text("bytes that are no float16"),
            },
            Self::Other(what) => Cell::Text(what),
            // What is no text is no number either, and is named as such.
            _ => Cell::Text(std::str::from_utf8(bytes).unwrap_or("bytes that are no text")),
        }
    }
}

/// Midnight of the first day of the month so many after January 1970.
fn of_month_since_1970(months: i64) -> Option<i64> {
    let month = months.checked_add(1970 * 12)?;
    let year = i16::try_from(month.div_euclid(12)).ok().filter(|year| (0..=9999).contains(year))?;
    jiff::civil::Date::new(year, month.rem_euclid(12) as i8 + 1, 1).ok().map(of_date)
}

/// A float16.
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

/// Some rows of a column: none for a cell with nothing in it.
enum Batch {
    Whole(Vec<Option<i64>>),
    Number(Vec<Option<f64>>),
    Bytes(Vec<Option<ByteArray>>),
}

impl Batch {
    fn len(&self) -> usize {
        match self {
            Self::Whole(values) => values.len(),
            Self::Number(values) => values.len(),
            Self::Bytes(values) => values.len(),
        }
    }

    fn cell<'a>(&'a self, row: usize, meaning: &'a Meaning) -> Cell<'a> {
        match self {
            Self::Whole(values) => values[row].map_or(Cell::Gap, |value| meaning.cell(value)),
            Self::Number(values) => values[row].map_or(Cell::Gap, Cell::Number),
            Self::Bytes(values) => {
                values[row].as_ref().map_or(Cell::Gap, |bytes| meaning.bytes(bytes.data()))
            }
        }
    }
}

impl Reader {
    /// The next rows, at most [`TOGETHER`] of them; none at the end.
    fn next(&mut self) -> Result<Batch, ParquetError> {
        Ok(match &mut self.reader {
            ColumnReader::BoolColumnReader(reader) => {
                Batch::Whole(values(reader, |value| i64::from(*value))?)
            }
            ColumnReader::Int32ColumnReader(reader) => {
                Batch::Whole(values(reader, |value| i64::from(*value))?)
            }
            ColumnReader::Int64ColumnReader(reader) => Batch::Whole(values(reader, |value| *value)?),
            ColumnReader::Int96ColumnReader(reader) => Batch::Whole(values(reader, Int96::to_micros)?),
            ColumnReader::FloatColumnReader(reader) => {
                Batch::Number(values(reader, |value| f64::from(*value))?)
            }
            ColumnReader::DoubleColumnReader(reader) => Batch::Number(values(reader, |value| *value)?),
            ColumnReader::ByteArrayColumnReader(reader) => Batch::Bytes(values(reader, ByteArray::clone)?),
            ColumnReader::FixedLenByteArrayColumnReader(reader) => match self.meaning {
                Meaning::Uuid => Batch::Bytes(values(reader, |value| ByteArray::from(hex(value.data())))?),
                _ => Batch::Bytes(values(reader, |value| ByteArray::from(value.data().to_vec()))?),
            },
        })
    }
}

/// Sixteen bytes as a UUID is written.
fn hex(bytes: &[u8]) -> Vec<u8> {
    let mut text = String::with_capacity(36);
    for (place, byte) in bytes.iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text.into_bytes()
}

/// A signed number, its highest byte first.
fn big_endian(bytes: &[u8]) -> f64 {
    let start = if bytes.first().is_some_and(|byte| *byte > 127) { -1.0 } else { 0.0 };
    bytes.iter().fold(start, |value, byte| value * 256.0 + f64::from(*byte))
}

fn values<T: DataType, V>(
    reader: &mut ColumnReaderImpl<T>,
    value: impl Fn(&T::T) -> V,
) -> Result<Vec<Option<V>>, ParquetError> {
    let (mut found, mut levels) = (Vec::new(), Vec::new());
    let (rows, count, _) = reader.read_records(TOGETHER, Some(&mut levels), None, &mut found)?;
    let mut found = found.iter().take(count);
    Ok((0..rows)
        .map(|row| match levels.get(row) {
            Some(0) => None,
            _ => found.next().map(&value),
        })
        .collect())
}
