//! Tables from files.

use std::path::Path;

use fauna_shared::{Error, Result};

#[cfg(feature = "csv")]
use crate::read_csv;
#[cfg(feature = "parquet")]
use crate::read_parquet;
use crate::table::{Columns, Table};

impl Table {
    /// Reads the file at `path`: Parquet if it ends in `.parquet` or `.pq`, else CSV with commas, semicolons or tabs.
    ///
    /// Empty cells, `NA`, `NaN`, `null` and `None` are gaps. Rows of different series may alternate; those of one series
    /// must be sorted by time.
    ///
    /// # Errors
    /// [`Format`](fauna_shared::ErrorKind::Format) for a damaged file, [`Input`](fauna_shared::ErrorKind::Input) for a
    /// missing column, [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for a format whose feature is off. Errors of
    /// single series are in [`errors`](Table::errors).
    pub fn read(path: impl AsRef<Path>, columns: &Columns) -> Result<Self> {
        open(path.as_ref(), columns, true)
    }

    /// Reads future covariates: a table as for [`read`](Table::read), without the target column.
    ///
    /// # Errors
    /// As [`read`](Table::read).
    pub fn read_future(path: impl AsRef<Path>, columns: &Columns) -> Result<Self> {
        open(path.as_ref(), columns, false)
    }

    /// Reads CSV from `reader`; `name` is its name in errors.
    ///
    /// # Errors
    /// As [`read`](Table::read).
    #[cfg(feature = "csv")]
    pub fn from_csv(reader: impl std::io::Read, name: impl AsRef<Path>, columns: &Columns) -> Result<Self> {
        read_csv::read(reader, name.as_ref(), columns, true)
    }
}

#[cfg_attr(
    not(any(feature = "csv", feature = "parquet")),
    expect(unused_variables, reason = "no format is compiled")
)]
fn open(path: &Path, columns: &Columns, with_target: bool) -> Result<Table> {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, "read", e))?;
    match extension.to_str() {
        #[cfg(feature = "parquet")]
        Some("parquet" | "pq") => read_parquet::read(file, path, columns, with_target),
        #[cfg(not(feature = "parquet"))]
        Some("parquet" | "pq") => Err(Error::unsupported("this program was built without Parquet")
            .at(path)
            .hint("write the table as CSV, or build with the feature `parquet`")),
        #[cfg(feature = "csv")]
        _ => read_csv::read(file, path, columns, with_target),
        #[cfg(not(feature = "csv"))]
        _ => Err(Error::unsupported("this program was built without CSV")
            .at(path)
            .hint("build with the feature `csv`")),
    }
}
