//! Embeddings written as JSON lines, CSV, `.npy` or safetensors: one row per input, in the order given.

use fauna::{Error, Result};
use serde::Serialize;

use super::output::Output;

/// Output format of embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object per line: index, text, embedding.
    Jsonl,
    /// A header; then index, text and one column per dimension.
    Csv,
    /// A NumPy array of float32, (inputs, hidden_size).
    Npy,
    /// A tensor "embeddings" of float32, (inputs, hidden_size).
    Safetensors,
}

impl Format {
    /// Returns the format of the file extension of `path`.
    pub fn of(path: &std::path::Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            "csv" => Some(Self::Csv),
            "npy" => Some(Self::Npy),
            "safetensors" => Some(Self::Safetensors),
            _ => None,
        }
    }
}

/// An input and its embedding, or the error.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Index of the input, from 0.
    pub index: usize,
    /// The text, or the path of the image; `None` if it is not valid text.
    pub text: Option<String>,
    /// Number of truncated tokens.
    #[serde(skip_serializing_if = "is_zero")]
    pub cut: usize,
    /// The error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The embedding; `None` if there was an error.
    pub embedding: Option<Vec<f32>>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// Writes rows to an output. An input without an embedding keeps its row: `null` in JSON lines, empty cells in CSV, NaN
/// in arrays.
pub struct Writer {
    output: Output,
    format: Format,
    /// The embedding dimension, once it is known.
    width: Option<usize>,
    /// CSV rows before the first embedding, and array rows until the end.
    held: Vec<Row>,
}

impl Writer {
    /// Writes to `output`.
    pub fn new(output: Output, format: Format) -> Self {
        Self { output, format, width: None, held: Vec::new() }
    }

    /// Writes a row, immediately if the format allows it.
    pub fn row(&mut self, row: Row) -> Result<()> {
        let width = row.embedding.as_ref().map(Vec::len);
        match (self.format, self.width, width) {
            (Format::Jsonl, ..) => self.output.json(&row),
            (Format::Csv, None, Some(width)) => {
                self.width = Some(width);
                self.csv(head(width))?;
                self.held.push(row);
                std::mem::take(&mut self.held).iter().try_for_each(|row| self.csv(cells(row, width)))
            }
            (Format::Csv, Some(width), _) => self.csv(cells(&row, width)),
            _ => {
                self.width = self.width.or(width);
                self.held.push(row);
                Ok(())
            }
        }
    }

    /// Flushes the rows written so far.
    pub fn flush(&mut self) -> Result<()> {
        self.output.flush()
    }

    /// Ends the output.
    ///
    /// # Errors
    /// [`Input`](fauna::ErrorKind::Input) if no input has an embedding and the format needs its dimension.
    pub fn finish(mut self) -> Result<()> {
        let width = match (self.format, self.width) {
            (Format::Jsonl, _) => return self.output.finish(),
            (Format::Csv, Some(_)) => return self.output.finish(),
            (_, Some(width)) => width,
            (_, None) => return Err(Error::input("no input could be embedded: no output is written")),
        };
        let mut values = Vec::with_capacity(self.held.len() * width * 4);
        for row in &self.held {
            let numbers = row.embedding.as_deref();
            values.extend((0..width).flat_map(|i| numbers.map_or(f32::NAN, |n| n[i]).to_le_bytes()));
        }
        let shape = [self.held.len(), width];
        let file = match self.format {
            Format::Npy => npy(shape, &values),
            _ => safetensors(shape, &values)?,
        };
        self.output.bytes(&file)?;
        self.output.finish()
    }

    fn csv(&mut self, cells: Vec<String>) -> Result<()> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let written = writer.write_record(&cells).map_err(|e| Error::input(e.to_string()));
        written?;
        let line = writer.into_inner().map_err(|e| Error::input(e.to_string()))?;
        self.output.bytes(&line)
    }
}

fn head(width: usize) -> Vec<String> {
    let columns = (0..width).map(|i| format!("e{i}"));
    ["index".to_string(), "text".to_string()].into_iter().chain(columns).collect()
}

fn cells(row: &Row, width: usize) -> Vec<String> {
    let numbers = row.embedding.as_deref();
    let columns = (0..width).map(|i| numbers.map_or(String::new(), |n| n[i].to_string()));
    [row.index.to_string(), row.text.clone().unwrap_or_default()].into_iter().chain(columns).collect()
}

/// Returns an array in the `.npy` format, version 1.0: the header is padded to a multiple of 64 bytes.
fn npy(shape: [usize; 2], values: &[u8]) -> Vec<u8> {
    let [rows, width] = shape;
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    let filled = (10 + header.len() + 1).next_multiple_of(64);
    header.push_str(&" ".repeat(filled - 10 - header.len() - 1));
    header.push('\n');
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), values].concat()
}

fn safetensors(shape: [usize; 2], values: &[u8]) -> Result<Vec<u8>> {
    let tensor = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), values);
    tensor
        .and_then(|tensor| safetensors::serialize([("embeddings", tensor)], None))
        .map_err(|e| Error::input(format!("cannot be written as safetensors: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_npy_file_has_its_shape_in_an_aligned_header() {
        let file = npy([2, 3], &[0; 24]);
        assert!(file.starts_with(b"\x93NUMPY\x01\x00"));
        let header = u16::from_le_bytes([file[8], file[9]]) as usize;
        assert_eq!((10 + header) % 64, 0);
        assert!(String::from_utf8_lossy(&file[10..]).contains("'shape': (2, 3)"));
        assert_eq!(file.len(), 10 + header + 24);
    }
}
