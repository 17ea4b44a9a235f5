//! Tables from Parquet.

use std::fs::File;
use std::path::Path;

use fauna_shared::{Error, Result};
use parquet::basic::{ConvertedType, LogicalType, TimeUnit};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType, Int96};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

use super::builder::{Builder, Cell, MOST_CELLS};
use super::stamp::{DAY, Form};
use super::table::{Columns, Table};

/// Rows that are decoded at a time.
const TOGETHER: usize = 8192;

/// Reads the columns that matter, a few thousand rows at a time.
///
/// # Errors
/// As [`Table::read`].
pub(super) fn read(file: File, place: &Path, columns: &Columns, with_target: bool) -> Result<Table> {
    let wrong = |e: ParquetError| Error::format(place, format!("no Parquet file that can be read: {e}"));
    let reader = SerializedFileReader::new(file).map_err(wrong)?;
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
    let mut number = 0;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(wrong)?;
        read_group(group.as_ref(), &flat, &wanted, &mut builder, &mut number, place)?;
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
    builder: &mut Builder,
    number: &mut u64,
    place: &Path,
) -> Result<()> {
    let wrong = |e: ParquetError| Error::format(place, format!("row {} and after: {e}", *number + 1));
    let mut readers = Vec::with_capacity(wanted.len());
    for at in wanted {
        let column = flat[*at];
        let reader = group.get_column_reader(column).map_err(wrong)?;
        readers.push(Reader {
            reader,
            meaning: Meaning::of(&group.metadata().column(column).column_descr_ptr()),
        });
    }
    // Where each column of the file is among those that are read.
    let mut slots = vec![0; flat.len()];
    wanted.iter().enumerate().for_each(|(slot, at)| slots[*at] = slot);
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
        for row in 0..rows {
            *number += 1;
            builder.row(*number, |column| batch[slots[column]].cell(row))?;
        }
    }
}

struct Reader {
    reader: ColumnReader,
    meaning: Meaning,
}

/// What the stored numbers stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Meaning {
    Plain,
    /// Days since 1970.
    Date,
    /// So many of them are a microsecond, or each is so many microseconds, and whether they are in UTC.
    Time {
        per_micro: i64,
        micros: i64,
        utc: bool,
    },
    /// A whole number times this.
    Decimal(f64),
}

impl Meaning {
    fn of(column: &ColumnDescriptor) -> Self {
        let time = |unit: &TimeUnit, utc: bool| {
            let (per_micro, micros) = match unit {
                TimeUnit::MILLIS => (1, 1000),
                TimeUnit::MICROS => (1, 1),
                TimeUnit::NANOS => (1000, 1),
            };
            Self::Time { per_micro, micros, utc }
        };
        match (column.logical_type_ref(), column.converted_type()) {
            (Some(LogicalType::Timestamp(stamp)), _) => time(&stamp.unit, stamp.is_adjusted_to_u_t_c),
            (Some(LogicalType::Date), _) | (None, ConvertedType::DATE) => Self::Date,
            (None, ConvertedType::TIMESTAMP_MILLIS) => time(&TimeUnit::MILLIS, true),
            (None, ConvertedType::TIMESTAMP_MICROS) => time(&TimeUnit::MICROS, true),
            (Some(LogicalType::Decimal(_)), _) | (None, ConvertedType::DECIMAL) => {
                Self::Decimal(0.1_f64.powi(column.type_scale()))
            }
            _ => Self::Plain,
        }
    }

    fn cell(self, value: i64) -> Cell<'static> {
        match self {
            Self::Plain => Cell::Whole(value),
            Self::Decimal(unit) => Cell::Number(value as f64 * unit),
            Self::Date => Cell::Stamp(value.saturating_mul(DAY), Form::DATE),
            Self::Time { per_micro, micros, utc } => {
                let stamp = value.div_euclid(per_micro).saturating_mul(micros);
                let form = match (utc, stamp.rem_euclid(DAY)) {
                    (true, _) => Form::UTC,
                    // Files have no dates without a time of day where pandas wrote them.
                    (false, 0) => Form::DATE,
                    (false, _) => Form::TIME,
                };
                Cell::Stamp(stamp, form)
            }
        }
    }
}

/// Some rows of a column: none for a cell with nothing in it.
enum Batch {
    Whole(Vec<Option<i64>>, Meaning),
    Number(Vec<Option<f64>>),
    Text(Vec<Option<ByteArray>>),
    Stamp(Vec<Option<i64>>),
}

impl Batch {
    fn len(&self) -> usize {
        match self {
            Self::Whole(values, _) | Self::Stamp(values) => values.len(),
            Self::Number(values) => values.len(),
            Self::Text(values) => values.len(),
        }
    }

    fn cell(&self, row: usize) -> Cell<'_> {
        match self {
            Self::Whole(values, meaning) => values[row].map_or(Cell::Gap, |value| meaning.cell(value)),
            Self::Number(values) => values[row].map_or(Cell::Gap, Cell::Number),
            Self::Stamp(values) => values[row].map_or(Cell::Gap, |value| Cell::Stamp(value, Form::TIME)),
            Self::Text(values) => match &values[row] {
                None => Cell::Gap,
                // What is no text is no number either, and is named as such.
                Some(bytes) => {
                    Cell::Text(std::str::from_utf8(bytes.data()).unwrap_or("bytes that are no text"))
                }
            },
        }
    }
}

impl Reader {
    /// The next rows, at most [`TOGETHER`] of them; none at the end.
    fn next(&mut self) -> Result<Batch, ParquetError> {
        let whole = |values, meaning| Ok(Batch::Whole(values, meaning));
        match &mut self.reader {
            ColumnReader::BoolColumnReader(reader) => {
                whole(values(reader, |value| i64::from(*value))?, Meaning::Plain)
            }
            ColumnReader::Int32ColumnReader(reader) => {
                whole(values(reader, |value| i64::from(*value))?, self.meaning)
            }
            ColumnReader::Int64ColumnReader(reader) => whole(values(reader, |value| *value)?, self.meaning),
            ColumnReader::Int96ColumnReader(reader) => Ok(Batch::Stamp(values(reader, Int96::to_micros)?)),
            ColumnReader::FloatColumnReader(reader) => {
                Ok(Batch::Number(values(reader, |value| f64::from(*value))?))
            }
            ColumnReader::DoubleColumnReader(reader) => Ok(Batch::Number(values(reader, |value| *value)?)),
            ColumnReader::ByteArrayColumnReader(reader) => Ok(Batch::Text(values(reader, ByteArray::clone)?)),
            ColumnReader::FixedLenByteArrayColumnReader(reader) => match self.meaning {
                Meaning::Decimal(unit) => {
                    Ok(Batch::Number(values(reader, |value| big_endian(value.data()) * unit)?))
                }
                _ => Ok(Batch::Text(values(reader, |value| ByteArray::from(value.data().to_vec()))?)),
            },
        }
    }
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
