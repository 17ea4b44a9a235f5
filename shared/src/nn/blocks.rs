//! ggml's block formats by name: which exist, which fit a row, how to bring numbers into them and back.

use std::borrow::Cow;

use candle_core::Device;
use candle_core::quantized::GgmlDType::*;
use candle_core::quantized::{GgmlDType, QStorage};

use crate::{Error, Result};

/// The formats weights can be brought to, by the names `--quantize` takes.
pub const KINDS: [(&str, GgmlDType); 10] = [
    ("q8_0", Q8_0),
    ("q4_0", Q4_0),
    ("q4_1", Q4_1),
    ("q5_0", Q5_0),
    ("q5_1", Q5_1),
    ("q2_k", Q2K),
    ("q3_k", Q3K),
    ("q4_k", Q4K),
    ("q5_k", Q5K),
    ("q6_k", Q6K),
];

/// The format called `name`, in any case.
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) with the known names.
///
/// ```
/// use fauna_shared::nn::block_kind;
/// assert!(block_kind("Q4_K").is_ok() && block_kind("q7_z").is_err());
/// ```
pub fn block_kind(name: &str) -> Result<GgmlDType> {
    let lower = name.to_lowercase();
    KINDS.iter().find(|(known, _)| *known == lower).map(|(_, kind)| *kind).ok_or_else(|| {
        Error::input(format!("no weight format \"{name}\""))
            .hint(format!("one of {}", KINDS.map(|(name, _)| name).join(", ")))
    })
}

/// The name of a format.
pub fn block_name(kind: GgmlDType) -> String {
    let known = KINDS.iter().find(|(_, known)| *known == kind).map(|(name, _)| (*name).to_string());
    known.unwrap_or_else(|| format!("{kind:?}").to_lowercase())
}

/// `kind` if rows of `inputs` are whole blocks of it, else 8 bits in short blocks if they are whole ones of those.
pub(crate) fn fitting(kind: GgmlDType, inputs: usize) -> Option<GgmlDType> {
    [kind, Q8_0].into_iter().find(|kind| inputs > 0 && inputs.is_multiple_of(kind.block_size()))
}

/// Bytes of `elements` in whole blocks.
pub(crate) fn bytes_of(kind: GgmlDType, elements: usize) -> usize {
    elements / kind.block_size() * kind.type_size()
}

/// Blocks of `kind` widened into `out`.
pub(crate) fn dequantize(kind: GgmlDType, blocks: &[u8], out: &mut [f32]) -> Result<()> {
    let storage = QStorage::from_data(Cow::Borrowed(blocks), &Device::Cpu, kind)?;
    let QStorage::Cpu(storage) = storage else { return Err(Error::unsupported("blocks are not on the CPU")) };
    let candle_core::CpuStorage::F32(values) = storage.dequantize(out.len())? else {
        return Err(Error::unsupported("blocks did not widen to float32"));
    };
    out.copy_from_slice(&values);
    Ok(())
}
