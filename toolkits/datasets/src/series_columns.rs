//! The columns of tables of time series.

use std::io::BufRead;
use std::path::Path;

use fauna_shared::Result;

use crate::options::DatasetOptions;
use crate::table::open_text;

/// Names of the columns by what they hold, the first of them that a table has is read.
pub(crate) const IDS: [&str; 2] = ["unique_id", "item_id"];
pub(crate) const TIMES: [&str; 2] = ["ds", "timestamp"];
#[cfg(feature = "series")]
pub(crate) const TARGETS: [&str; 3] = ["y", "target", "value"];
/// The columns that can be renamed.
pub(crate) const NAMES: [&str; 3] = ["id", "time", "target"];

/// Whether the CSV file at `path` has the columns of time series, or `options` name them.
pub(crate) fn is_in_csv(path: &Path, options: &DatasetOptions) -> Result<bool> {
    if NAMES.iter().any(|name| options.columns.contains_key(*name)) {
        return Ok(true);
    }
    let header = header(path)?;
    let has = |names: &[&str]| names.iter().any(|name| header.iter().any(|column| column == name));
    // Texts have timestamps, too.
    Ok(has(&TIMES) && (has(&IDS) || !has(&["text", "file_name"])))
}

/// The columns of the first line of a CSV file.
pub(crate) fn header(path: &Path) -> Result<Vec<String>> {
    let mut reader = open_text(path)?;
    let start = reader.fill_buf().map_err(|e| fauna_shared::Error::io(path, "read", e))?;
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let cells = line.split([',', ';', '\t']);
    Ok(cells.map(|cell| cell.trim().trim_matches('"').to_string()).collect())
}
