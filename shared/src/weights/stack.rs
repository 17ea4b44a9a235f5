//! Loading several matrices as one (fused QKV projections) and one matrix in parts, however the checkpoint stores them.

use std::ops::Range;

use candle_core::{DType, Tensor};

use super::adapters::Layer;
use super::{MatrixUse, Weights, floats, quantized, widen};
use crate::checkpoint::{Bytes, StorageType, StoredTensor};
use crate::kernels::matmul::Layout;
use crate::nn::{Matrix, concat};
use crate::{Error, ErrorKind, Result};

/// A range of rows of a matrix in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Tensor name.
    pub name: String,
    /// Number of rows of the tensor.
    pub of: usize,
    /// The rows to load.
    pub rows: Range<usize>,
}

impl Piece {
    /// All rows of the tensor `name`.
    pub fn whole(name: impl Into<String>, rows: usize) -> Self {
        Self { name: name.into(), of: rows, rows: 0..rows }
    }
}

impl Weights {
    /// Loads the rows of `pieces`, each stored as `[rows, inputs]`, concatenated into one matrix of shape
    /// `[sum of rows, inputs]`.
    ///
    /// ```
    /// use fauna_shared::runtime::Runtime;
    /// use fauna_shared::weights::{MatrixUse, Piece, Weights};
    /// let weights = Weights::seeded(7, Runtime::cpu());
    /// let apart = weights.matrix("b.weight", 4, 8)?.tensor()?;
    /// let pieces = [Piece::whole("a.weight", 2), Piece { name: "b.weight".into(), of: 4, rows: 1..3 }];
    /// let joined = weights.stack(MatrixUse::Linear, &pieces, 8)?.tensor()?;
    /// assert_eq!(joined.dims(), [4, 8]);
    /// assert_eq!(joined.narrow(0, 2, 2)?.to_vec2::<f32>()?, apart.narrow(0, 1, 2)?.to_vec2::<f32>()?);
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) for a matrix stored as `[inputs, rows]`.
    pub fn stack(&self, matrix: MatrixUse, pieces: &[Piece], inputs: usize) -> Result<Matrix> {
        if matrix == MatrixUse::TransposedLinear {
            return Err(Error::unsupported(
                "matrices stored as [inputs, outputs] cannot be concatenated by rows",
            ));
        }
        let outputs = pieces.iter().map(|piece| piece.rows.len()).sum();
        if let Some(variable) = self.stacked_variables(matrix, pieces, inputs)? {
            return Matrix::variable(variable, Layout::OutIn, self.compute());
        }
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let path = self.path(&piece.name);
            let shape = [piece.of, inputs];
            self.ledger().matrices.insert(path.clone(), matrix);
            // All pieces are looked up, so that one load reports all problems.
            parts.push(self.stored(&path, &shape)?.map(|stored| rows_of(&stored, piece)).transpose()?);
        }
        let Some(parts) = parts.into_iter().collect::<Option<Vec<_>>>() else {
            return Ok(Matrix::absent(outputs, inputs));
        };
        let quantize = self.runtime().quantize().and_then(|kind| matrix.format(kind, inputs));
        let place = || -> Result<Vec<Matrix>> {
            let stored = joined(parts, outputs, inputs)?;
            Ok(vec![self.place_stored(&stored, matrix, Layout::OutIn, (outputs, inputs), quantize)?])
        };
        let name = |piece: &Piece| format!("{}[{:?}]", self.path(&piece.name), piece.rows);
        let placed = self.frozen_matrices(&pieces.iter().map(name).collect::<Vec<_>>().join("+"), place)?;
        let placed = placed.into_iter().next().unwrap_or_else(|| Matrix::absent(outputs, inputs));
        let (mut updates, mut start) = (Vec::new(), 0);
        for piece in pieces {
            let (path, rows) = (self.path(&piece.name), piece.rows.clone());
            let at = start..start + rows.len();
            start = at.end;
            if !self.has_updates(&path, matrix.into()) {
                continue;
            }
            if matrix == MatrixUse::Embedding {
                updates.extend(self.table_updates(&path, [piece.of, inputs], (rows, at), outputs)?);
            } else {
                let weight = || self.whole(&piece.name, matrix, piece.of, inputs);
                let shape = [piece.of, inputs];
                updates.extend(self.updates(&path, matrix.into(), &shape, (rows, at), None, &weight)?);
            }
        }
        placed.with_updates(updates, matrix == MatrixUse::Embedding)
    }

    /// The matrix `name` alone as a tensor, `(rows, inputs)`, without updates.
    fn whole(&self, name: &str, matrix: MatrixUse, rows: usize, inputs: usize) -> Result<Tensor> {
        let path = self.path(name);
        match self.stored(&path, &[rows, inputs])? {
            Some(stored) => {
                self.place_stored(&stored, matrix, Layout::OutIn, (rows, inputs), None)?.as_dense()
            }
            None => Matrix::absent(rows, inputs).as_dense(),
        }
    }

    /// The concatenated rows of `pieces` if one of them is trained.
    fn stacked_variables(
        &self,
        matrix: MatrixUse,
        pieces: &[Piece],
        inputs: usize,
    ) -> Result<Option<Tensor>> {
        let mut any = false;
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let path = self.path(&piece.name);
            let variable = self.variable(&path, &[piece.of, inputs])?;
            if variable.is_some() {
                self.ledger().matrices.insert(path, matrix);
            }
            any |= variable.is_some();
            parts.push(variable);
        }
        if !any {
            return Ok(None);
        }
        let rows = |(variable, piece): (Option<Tensor>, &Piece)| -> Result<Tensor> {
            let whole = match variable {
                Some(variable) => variable,
                None => self.whole(&piece.name, matrix, piece.of, inputs)?.to_dtype(DType::F32)?,
            };
            Ok(whole.narrow(0, piece.rows.start, piece.rows.len())?)
        };
        let parts = parts.into_iter().zip(pieces).map(rows).collect::<Result<Vec<_>>>()?;
        match parts.as_slice() {
            [one] => Ok(Some(one.clone())),
            parts => Ok(Some(concat(&parts.iter().collect::<Vec<_>>(), 0)?)),
        }
    }
}

impl Weights {
    /// Loads the elements of `pieces`, each of a vector, concatenated: the bias of a [`stack`](Weights::stack), of
    /// shape `[sum of rows]`.
    ///
    /// ```
    /// use fauna_shared::{runtime::Runtime, weights::{Piece, Weights}};
    /// let weights = Weights::seeded(7, Runtime::cpu());
    /// let bias = weights.stack_bias(&[Piece::whole("q.bias", 2), Piece::whole("k.bias", 3)])?;
    /// assert_eq!(bias.dims(), [5]);
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`tensor`](Weights::tensor).
    pub fn stack_bias(&self, pieces: &[Piece]) -> Result<Tensor> {
        let vectors = pieces.iter().map(|piece| self.tensor(&piece.name, &[piece.of]));
        let vectors = vectors.collect::<Result<Vec<_>>>()?;
        // Placeholders are not concatenated: their length is that of an unchecked config.
        if vectors.iter().any(|vector| vector.stride().iter().all(|stride| *stride == 0)) {
            let count = pieces.iter().fold(0, |all: usize, piece| all.saturating_add(piece.rows.len()));
            let runtime = self.runtime();
            return Ok(Tensor::zeros((), runtime.activations(), runtime.device())?.broadcast_as(count)?);
        }
        let parts = vectors.iter().zip(pieces);
        let parts = parts.map(|(vector, piece)| Ok(vector.narrow(0, piece.rows.start, piece.rows.len())?));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        concat(&parts.iter().collect::<Vec<_>>(), 0)
    }
}

impl Weights {
    /// Loads the matrix `name`, stored as `[outputs, sum of widths]`, split by columns into one matrix of shape
    /// `[outputs, width]` for each of `widths`: a linear layer of concatenated inputs, applied to each input
    /// separately.
    ///
    /// ```
    /// use fauna_shared::{runtime::Runtime, weights::Weights};
    /// let weights = Weights::seeded(7, Runtime::cpu());
    /// let parts = weights.columns("joint.weight", 4, &[2, 6])?;
    /// assert_eq!(parts[1].tensor()?.dims(), [4, 6]);
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`matrix`](Weights::matrix).
    pub fn columns(&self, name: &str, outputs: usize, widths: &[usize]) -> Result<Vec<Matrix>> {
        let path = self.path(name);
        let inputs = widths.iter().fold(0, |all: usize, width| all.saturating_add(*width));
        let shape = [outputs, inputs];
        self.ledger().matrices.insert(path.clone(), MatrixUse::Linear);
        if let Some(variable) = self.variable(&path, &shape)? {
            let mut start = 0;
            let part = |width: &usize| {
                let part = variable.narrow(1, start, *width)?.contiguous()?;
                start += width;
                Matrix::variable(part, Layout::OutIn, self.compute())
            };
            return widths.iter().map(part).collect();
        }
        let Some(stored) = self.stored(&path, &shape)? else {
            return Ok(widths.iter().map(|width| Matrix::absent(outputs, *width)).collect());
        };
        // The whole matrix is quantized, so that a quantized copy on disk has the same blocks.
        let format = self.runtime().quantize().and_then(|kind| MatrixUse::Linear.format(kind, inputs));
        let stored = match (stored.storage, format) {
            (StorageType::Block(_), _) | (_, None) => stored,
            (_, Some(kind)) => {
                let bytes = quantized(&stored, Layout::OutIn, (outputs, inputs), kind)?;
                StoredTensor { storage: StorageType::Block(kind), shape: shape.to_vec(), bytes }
            }
        };
        let parts = self.frozen_matrices(&path, || {
            let mut start = 0;
            let part = |width: &usize| {
                let part = columns_of(&stored, start, *width)?;
                start += width;
                self.place_stored(&part, MatrixUse::Linear, Layout::OutIn, (outputs, *width), None)
            };
            widths.iter().map(part).collect()
        })?;
        if !self.has_updates(&path, Layer::Linear) {
            return Ok(parts);
        }
        let mut start = 0;
        let adapted = |part: Matrix| {
            let columns = start..start + part.inputs();
            start = columns.end;
            let (all, weight) = ((0..outputs, 0..outputs), || part.as_dense());
            let updates = self.updates(&path, Layer::Linear, &shape, all, Some(columns), &weight)?;
            part.with_updates(updates, false)
        };
        parts.into_iter().map(adapted).collect()
    }
}

/// Copies `width` columns of `stored` from `start`; dequantized if they begin or end inside a block.
fn columns_of(stored: &StoredTensor, start: usize, width: usize) -> Result<StoredTensor> {
    let (rows, inputs) = (stored.shape[0], stored.shape[1]);
    let unit = stored.storage.unit_elements();
    if !(start.is_multiple_of(unit) && width.is_multiple_of(unit)) {
        let bytes = floats(&widen(stored)?);
        return columns_of(
            &StoredTensor { storage: StorageType::F32, shape: stored.shape.clone(), bytes },
            start,
            width,
        );
    }
    let bytes = |elements: usize| elements / unit * stored.storage.unit_bytes();
    let (row, start, length) = (bytes(inputs), bytes(start), bytes(width));
    let bytes = Bytes::filled(rows * length, |out| {
        for (here, row) in out.chunks_exact_mut(length.max(1)).zip(stored.bytes.chunks_exact(row.max(1))) {
            here.copy_from_slice(&row[start..start + length]);
        }
    });
    Ok(StoredTensor { storage: stored.storage, shape: vec![rows, width], bytes })
}

/// The rows of `piece` in `stored`, without copying.
fn rows_of(stored: &StoredTensor, piece: &Piece) -> Result<StoredTensor> {
    let inputs = stored.shape.get(1).copied().unwrap_or(0);
    let bytes = |rows: usize| stored.storage.byte_len(&[rows, inputs]);
    let found = bytes(piece.rows.start)
        .zip(bytes(piece.rows.end))
        .filter(|_| piece.rows.end <= piece.of)
        .and_then(|(start, end)| stored.bytes.slice(start..end));
    match found {
        Some(bytes) => {
            Ok(StoredTensor { storage: stored.storage, shape: vec![piece.rows.len(), inputs], bytes })
        }
        None => Err(Error::new(
            ErrorKind::Mismatch,
            format!("rows {:?} of {} are out of range, it has {}", piece.rows, piece.name, piece.of),
        )),
    }
}

/// Concatenates the rows of `parts`; a single part is not copied.
fn joined(mut parts: Vec<StoredTensor>, outputs: usize, inputs: usize) -> Result<StoredTensor> {
    let shape = vec![outputs, inputs];
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    let storage = parts.first().map_or(StorageType::F32, |part| part.storage);
    let (storage, bytes) = match parts.iter().all(|part| part.storage == storage) {
        true => {
            let length = parts.iter().map(|part| part.bytes.len()).sum();
            let mut parts = parts.iter();
            let bytes = Bytes::filled(length, |mut out| {
                for part in &mut parts {
                    let (here, rest) = out.split_at_mut(part.bytes.len());
                    here.copy_from_slice(&part.bytes);
                    part.bytes.release();
                    out = rest;
                }
            });
            (storage, bytes)
        }
        false => {
            let mut values = Vec::with_capacity(outputs * inputs);
            for part in &parts {
                values.extend(widen(part)?);
                part.bytes.release();
            }
            (StorageType::F32, floats(&values))
        }
    };
    Ok(StoredTensor { storage, shape, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(storage: StorageType, values: &[f32], inputs: usize) -> StoredTensor {
        let bytes = match storage {
            StorageType::F32 => floats(values),
            _ => super::super::bfloats(values),
        };
        StoredTensor { storage, shape: vec![values.len() / inputs, inputs], bytes }
    }

    #[test]
    fn pieces_of_different_types_are_converted_to_float32() {
        let parts = vec![
            stored(StorageType::F32, &[1.0, 2.0], 2),
            stored(StorageType::BF16, &[3.0, 4.0, 5.0, 6.0], 2),
        ];
        let all = joined(parts, 3, 2).unwrap();
        assert_eq!(
            (all.storage, widen(&all).unwrap()),
            (StorageType::F32, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        );
    }

    #[test]
    fn pieces_of_one_type_keep_it() {
        let parts = vec![stored(StorageType::BF16, &[1.0, 2.0], 1), stored(StorageType::BF16, &[3.0], 1)];
        let all = joined(parts, 3, 1).unwrap();
        assert_eq!((all.storage, widen(&all).unwrap()), (StorageType::BF16, vec![1.0, 2.0, 3.0]));
    }

    #[test]
    fn columns_keep_their_type_and_order() {
        let whole = stored(StorageType::BF16, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3);
        let part = columns_of(&whole, 1, 2).unwrap();
        assert_eq!((part.storage, part.shape.clone()), (StorageType::BF16, vec![2, 2]));
        assert_eq!(widen(&part).unwrap(), [2.0, 3.0, 5.0, 6.0]);
    }

    #[test]
    fn columns_inside_a_block_are_dequantized() {
        let values: Vec<f32> = (0..64).map(|i| (i % 7) as f32 - 3.0).collect();
        let kind = candle_core::quantized::GgmlDType::Q8_0;
        let bytes = crate::nn::blocks::quantize(kind, &values).unwrap();
        let whole = StoredTensor { storage: StorageType::Block(kind), shape: vec![1, 64], bytes };
        assert_eq!(columns_of(&whole, 32, 32).unwrap().storage, StorageType::Block(kind));
        let part = columns_of(&whole, 8, 16).unwrap();
        assert_eq!(part.storage, StorageType::F32);
        assert_eq!(widen(&part).unwrap(), widen(&whole).unwrap()[8..24]);
    }

    #[test]
    fn rows_outside_a_matrix_are_an_error() {
        let whole = stored(StorageType::F32, &[1.0, 2.0, 3.0, 4.0], 2);
        let piece = Piece { name: "w".into(), of: 2, rows: 1..3 };
        assert!(rows_of(&whole, &piece).is_err());
        let piece = Piece { name: "w".into(), of: 2, rows: 1..2 };
        assert_eq!(widen(&rows_of(&whole, &piece).unwrap()).unwrap(), [3.0, 4.0]);
    }
}
