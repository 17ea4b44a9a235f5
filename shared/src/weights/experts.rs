//! The matrices of a mixture of experts, which releases keep in one stack.

use super::{Found, MOST_TENSORS, MatrixUse, Origin, Weights, bfloats, entries_of, room, seeded_bits};
use crate::checkpoint::{Bytes, Storage, Stored};
use crate::kernels::matmul::Layout;
use crate::kernels::mxfp4;
use crate::nn::Matrix;
use crate::runtime::kernels_serve;
use crate::{Error, ErrorKind, Result};

impl Weights {
    /// The maps of a mixture of `count` experts at `name`, each of `inputs` to `outputs`.
    ///
    /// A checkpoint holds them in one of two ways, both read where they lie:
    ///
    /// - in MXFP4: `{name}_blocks` of `[count, outputs, inputs / 32, 16]` bytes and `{name}_scales` of
    ///   `[count, outputs, inputs / 32]`. They stay packed on the CPU ([`mxfp4`]), whatever format weights are wanted in.
    ///   Where the runtime asks for no blocks ([`dequantize`](crate::runtime::Runtime::dequantize)) they are widened to
    ///   bfloat16, which holds them exactly; on another device, for which candle has no such products, they are
    ///   widened too and then treated as every dense matrix is there.
    /// - dense: `name` of `[count, inputs, outputs]`; in ggml's blocks, which run along the inputs, of
    ///   `[count, outputs, inputs]`.
    ///
    /// `packed`: whether the config speaks of MXFP4; it decides where the checkpoint has neither, or there is none.
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
    /// As every read; [`Mismatch`](ErrorKind::Mismatch) if `inputs` are no whole blocks of 32 and MXFP4 is to be read.
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
        let Some(stored) = self.stored(&path, &shape)? else {
            return self.stand_ins(count, (outputs, inputs));
        };
        let entries = entries_of(&path, &stored)?;
        let place = |entry| self.place_stored(entry, MatrixUse::Experts, layout, (outputs, inputs), quantize);
        entries.iter().map(place).collect()
    }

    fn packed_experts(
        &self,
        blocks: &str,
        scales: &str,
        count: usize,
        (outputs, inputs): (usize, usize),
    ) -> Result<Vec<Matrix>> {
        if !inputs.is_multiple_of(mxfp4::BLOCK) {
            let message = format!("{}: {inputs} inputs are no whole blocks of 32", self.path(blocks));
            return Err(Error::new(ErrorKind::Mismatch, message));
        }
        let row = inputs / mxfp4::BLOCK;
        let weights = [count, outputs, inputs].iter().fold(1, |all: u64, n| all.saturating_mul(*n as u64));
        let shapes = [vec![count, outputs, row, mxfp4::BLOCK_BYTES], vec![count, outputs, row]];
        // Both are asked for, so that one load reports every problem.
        let found = (self.packed(blocks, &shapes[0], weights)?, self.packed(scales, &shapes[1], 0)?);
        let (Some(blocks_found), Some(scales_found)) = found else {
            return self.stand_ins(count, (outputs, inputs));
        };
        let entries = |name: &str, bytes: Bytes, shape: &[usize]| {
            entries_of(&self.path(name), &Stored { storage: Storage::U8, shape: shape.to_vec(), bytes })
        };
        let blocks = entries(blocks, blocks_found, &shapes[0])?.into_iter();
        let scales = entries(scales, scales_found, &shapes[1])?.into_iter();
        let place = |(blocks, scales): (Stored, Stored)| {
            self.place_packed(blocks.bytes, scales.bytes, (outputs, inputs))
        };
        blocks.zip(scales).map(place).collect()
    }

    /// The bytes `name` of `shape`, where they lie: `weights` numbers in a format of the release's own. None if the
    /// checkpoint lacks them, which is noted, or there is nothing to read.
    ///
    /// # Errors
    /// As every read.
    pub fn packed(&self, name: &str, shape: &[usize], weights: u64) -> Result<Option<Bytes>> {
        let path = self.path(name);
        self.ledger().packed.insert(path.clone(), weights);
        match self.ask(&path, shape)? {
            Found::Nothing => Ok(None),
            // GGUF has signed bytes only.
            Found::Stored(stored) if matches!(stored.storage, Storage::U8 | Storage::I8) => {
                Ok(Some(stored.bytes.clone()))
            }
            Found::Stored(stored) => {
                self.ledger().mistyped.insert(path, stored.storage);
                Ok(None)
            }
            Found::Seed(seed) => Ok(Some(Bytes::from_vec(seeded_bytes(seed, &path, shape)?))),
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
        let stored = Stored { storage: Storage::BF16, shape: vec![outputs, inputs], bytes };
        let wanted = runtime.quantize().filter(|_| !runtime.dequantize());
        let quantize = wanted.and_then(|kind| MatrixUse::Map.format(kind, inputs));
        self.place_stored(&stored, MatrixUse::Map, Layout::OutIn, shape, quantize)
    }

    /// What stands in for `count` matrices that are missing, or in an inventory. So many that no file was seen to hold
    /// are an error.
    fn stand_ins(&self, count: usize, (outputs, inputs): (usize, usize)) -> Result<Vec<Matrix>> {
        let mut ledger = self.ledger();
        ledger.stand_ins = ledger.stand_ins.saturating_add(count);
        match (ledger.stand_ins > MOST_TENSORS, &self.shared.origin) {
            (false, _) => Ok(vec![Matrix::absent(outputs, inputs); count]),
            (true, Origin::Files { tensors, label }) => Err(ledger.report(tensors, &[]).at(label)),
            (true, _) => {
                Err(Error::unsupported(format!("the config asks for more than {MOST_TENSORS} tensors")))
            }
        }
    }
}

/// Random bytes, a function of seed and name alone; what is called scales has the powers of two that bring FP4 numbers
/// into ±0.05.
fn seeded_bytes(seed: u64, path: &str, shape: &[usize]) -> Result<Vec<u8>> {
    let (elements, mut bytes) = room(path, shape)?;
    let byte = |bits: u64| (bits >> 56) as u8;
    match path.ends_with("scales") {
        true => bytes.extend(seeded_bits(seed, path).map(|bits| 118 + byte(bits) % 3).take(elements)),
        false => bytes.extend(seeded_bits(seed, path).map(byte).take(elements)),
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
