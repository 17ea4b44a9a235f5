//! Loading the stacked matrices of a mixture of experts.

use super::{Found, MOST_TENSORS, MatrixUse, Origin, Weights, bfloats, entries_of, reserve, seeded_bits};
use crate::checkpoint::{Bytes, StorageType, StoredTensor};
use crate::kernels::matmul::Layout;
use crate::kernels::mxfp4;
use crate::nn::Matrix;
use crate::runtime::kernels_serve;
use crate::{Error, ErrorKind, Result};

impl Weights {
    /// Loads the linear layers `name` of `count` experts, each from `inputs` to `outputs`.
    ///
    /// Two formats are supported, both memory-mapped:
    ///
    /// - MXFP4: `{name}_blocks` of shape `[count, outputs, inputs / 32, 16]` and `{name}_scales` of shape
    ///   `[count, outputs, inputs / 32]`, bytes. They stay packed on the CPU ([`mxfp4`]) regardless of the weight
    ///   format of the runtime. With [`dequantize`](crate::runtime::Runtime::dequantize) they are converted to
    ///   bfloat16, which is exact. On other devices, for which candle has no MXFP4 kernels, they are converted as well
    ///   and then loaded as dense matrices.
    /// - dense: `name` of shape `[count, inputs, outputs]`, or, if block quantized (ggml blocks are along the inputs),
    ///   `[count, outputs, inputs]`.
    ///
    /// `packed`: whether the config specifies MXFP4; used if the checkpoint has neither format, or there is no
    /// checkpoint.
    ///
    /// ```
    /// use fauna_shared::{runtime::Runtime, weights::Weights};
    /// let weights = Weights::seeded(7, Runtime::cpu());
    /// let experts = weights.experts("down_proj", 3, 64, 5, true)?;
    /// assert_eq!((experts.len(), experts[0].inputs(), experts[0].outputs()), (3, 64, 5));
    /// assert_eq!(weights.finish()?.parameters, 3 * 64 * 5);
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Mismatch`](ErrorKind::Mismatch) if MXFP4 is loaded and `inputs` is not a multiple of 32.
    pub fn experts(
        &self,
        name: &str,
        count: usize,
        inputs: usize,
        outputs: usize,
        packed: bool,
    ) -> Result<Vec<Matrix>> {
        let [blocks, scales] = ["blocks", "scales"].map(|part| format!("{name}_{part}"));
        let found = self.has(&blocks, packed) || self.has(&scales, packed);
        match found || packed && !self.has(name, false) {
            true => self.packed_experts(&blocks, &scales, count, (outputs, inputs)),
            false => self.dense_experts(name, count, (outputs, inputs)),
        }
    }

    fn dense_experts(
        &self,
        name: &str,
        count: usize,
        (outputs, inputs): (usize, usize),
    ) -> Result<Vec<Matrix>> {
        let path = self.path(name);
        let (layout, shape) = match self.in_blocks(&path) {
            true => (Layout::OutIn, [count, outputs, inputs]),
            false => (Layout::InOut, [count, inputs, outputs]),
        };
        let quantize = self.runtime().quantize().and_then(|kind| MatrixUse::Experts.format(kind, inputs));
        self.ledger().matrices.insert(path.clone(), MatrixUse::Experts);
        if let Some(variable) = self.variable(&path, &shape)? {
            let expert = |i| Matrix::variable(variable.get(i)?, layout, self.compute());
            return (0..count).map(expert).collect();
        }
        let Some(stored) = self.stored(&path, &shape)? else {
            return self.stand_ins(count, (outputs, inputs));
        };
        self.frozen_matrices(&path, || {
            let place =
                |entry| self.place_stored(entry, MatrixUse::Experts, layout, (outputs, inputs), quantize);
            entries_of(&path, &stored)?.iter().map(place).collect()
        })
    }

    fn packed_experts(
        &self,
        blocks: &str,
        scales: &str,
        count: usize,
        (outputs, inputs): (usize, usize),
    ) -> Result<Vec<Matrix>> {
        if !inputs.is_multiple_of(mxfp4::BLOCK) {
            let message =
                format!("{}: {inputs} inputs are not a multiple of the block size 32", self.path(blocks));
            return Err(Error::new(ErrorKind::Mismatch, message));
        }
        let row = inputs / mxfp4::BLOCK;
        let weights = [count, outputs, inputs].iter().fold(1, |all: u64, n| all.saturating_mul(*n as u64));
        let shapes = [vec![count, outputs, row, mxfp4::BLOCK_BYTES], vec![count, outputs, row]];
        // Both are looked up, so that one load reports all problems.
        let found = (self.packed(blocks, &shapes[0], weights)?, self.packed(scales, &shapes[1], 0)?);
        let (Some(blocks_found), Some(scales_found)) = found else {
            return self.stand_ins(count, (outputs, inputs));
        };
        let entries = |name: &str, bytes: Bytes, shape: &[usize]| {
            entries_of(
                &self.path(name),
                &StoredTensor { storage: StorageType::U8, shape: shape.to_vec(), bytes },
            )
        };
        let blocks = entries(blocks, blocks_found, &shapes[0])?.into_iter();
        let scales = entries(scales, scales_found, &shapes[1])?.into_iter();
        let place = |(blocks, scales): (StoredTensor, StoredTensor)| {
            self.place_packed(blocks.bytes, scales.bytes, (outputs, inputs))
        };
        blocks.zip(scales).map(place).collect()
    }

    /// Loads the byte tensor `name` of `shape`, which packs `weights` weights. `None` if it is missing, which is
    /// recorded, or there are no weights.
    ///
    /// # Errors
    /// As [`tensor`](Weights::tensor).
    pub fn packed(&self, name: &str, shape: &[usize], weights: u64) -> Result<Option<Bytes>> {
        let path = self.path(name);
        self.ledger().packed.insert(path.clone(), weights);
        self.refuse_packed(&path)?;
        match self.look_up(&path, shape)? {
            Found::Nothing => Ok(None),
            // GGUF has signed bytes only.
            Found::Stored(stored) if matches!(stored.storage, StorageType::U8 | StorageType::I8) => {
                Ok(Some(stored.bytes.clone()))
            }
            Found::Stored(stored) => {
                self.ledger().mistyped.insert(path, stored.storage);
                Ok(None)
            }
            Found::Seed(seed) => Ok(Some(Bytes::from_vec(seeded_bytes(seed, &path, shape)?))),
            Found::Fresh(_) => {
                Err(Error::unsupported(format!("{path} is packed, which cannot be trained from nothing")))
            }
        }
    }

    fn place_packed(&self, blocks: Bytes, scales: Bytes, shape: (usize, usize)) -> Result<Matrix> {
        let (runtime, (outputs, inputs)) = (self.runtime(), shape);
        if kernels_serve(runtime.device()) && !runtime.dequantize() {
            return Matrix::mxfp4(blocks, scales, self.compute(), shape);
        }
        let mut values = vec![0f32; outputs * inputs];
        mxfp4::dequantize(&blocks, &scales, &mut values);
        blocks.release();
        let bytes = bfloats(&values);
        let stored = StoredTensor { storage: StorageType::BF16, shape: vec![outputs, inputs], bytes };
        let format = runtime.quantize().filter(|_| !runtime.dequantize());
        let quantize = format.and_then(|kind| MatrixUse::Linear.format(kind, inputs));
        self.place_stored(&stored, MatrixUse::Linear, Layout::OutIn, shape, quantize)
    }

    /// Placeholders for `count` matrices that are missing or in an inventory. The total number is limited.
    fn stand_ins(&self, count: usize, (outputs, inputs): (usize, usize)) -> Result<Vec<Matrix>> {
        let mut ledger = self.ledger();
        ledger.stand_ins = ledger.stand_ins.saturating_add(count);
        match (ledger.stand_ins > MOST_TENSORS, self.origin()) {
            (false, _) => Ok(vec![Matrix::absent(outputs, inputs); count]),
            (true, Origin::Files { tensors, label, .. }) => Err(ledger.report(tensors, &[]).at(label)),
            (true, _) => Err(Error::unsupported(format!("the config has more than {MOST_TENSORS} tensors"))),
        }
    }
}

/// Random bytes determined by seed and name; tensors named scales get the powers of two that bring FP4 numbers into
/// ±0.05.
fn seeded_bytes(seed: u64, path: &str, shape: &[usize]) -> Result<Vec<u8>> {
    let (elements, mut bytes) = reserve(path, shape)?;
    let byte = |bits: u64| (bits >> 56) as u8;
    match path.ends_with("scales") {
        true => bytes.extend(seeded_bits(seed, path).map(|bits| 118 + byte(bits) % 3).take(elements)),
        false => bytes.extend(seeded_bits(seed, path).map(byte).take(elements)),
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
