//! ggml's quantized block formats: names, quantization and dequantization.

use candle_core::quantized::GgmlDType::{self, *};

use crate::checkpoint::Bytes;
use crate::kernels::blocks::{self as kernel, BlockKind};
use crate::{Error, Result};

/// The formats of quantized weights, with their names in `--quantize`.
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

/// Parses the name of a format, ignoring case.
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
        Error::input(format!("unknown weight format \"{name}\""))
            .hint(format!("expected one of {}", KINDS.map(|(name, _)| name).join(", ")))
    })
}

/// Returns the name of a format.
pub fn block_name(kind: GgmlDType) -> String {
    let known = KINDS.iter().find(|(_, known)| *known == kind).map(|(name, _)| (*name).to_string());
    known.unwrap_or_else(|| format!("{kind:?}").to_lowercase())
}

/// Returns `kind` if `inputs` is a multiple of its block length, else Q8_0 if it is a multiple of 32.
pub(crate) fn fitting(kind: GgmlDType, inputs: usize) -> Option<GgmlDType> {
    [kind, Q8_0].into_iter().find(|kind| inputs > 0 && inputs.is_multiple_of(kind.block_size()))
}

/// Returns the size of `elements` weights in bytes, a multiple of the block length.
pub(crate) fn bytes_of(kind: GgmlDType, elements: usize) -> usize {
    elements / kind.block_size() * kind.type_size()
}

/// Returns the format of the kernels.
///
/// # Errors
/// [`Unsupported`](crate::ErrorKind::Unsupported) for a format that is not a block format of weights.
pub(crate) fn kernel_kind(kind: GgmlDType) -> Result<BlockKind> {
    Ok(match kind {
        Q4_0 => BlockKind::Q4_0,
        Q4_1 => BlockKind::Q4_1,
        Q5_0 => BlockKind::Q5_0,
        Q5_1 => BlockKind::Q5_1,
        Q8_0 => BlockKind::Q8_0,
        Q2K => BlockKind::Q2K,
        Q3K => BlockKind::Q3K,
        Q4K => BlockKind::Q4K,
        Q5K => BlockKind::Q5K,
        Q6K => BlockKind::Q6K,
        Q8K => BlockKind::Q8K,
        F32 | F16 | BF16 | Q8_1 => {
            return Err(Error::unsupported(format!("{} is not a block format of weights", block_name(kind))));
        }
    })
}

/// Dequantizes blocks of `kind` to `out`.
pub(crate) fn dequantize(kind: GgmlDType, blocks: &[u8], out: &mut [f32]) -> Result<()> {
    kernel::dequantize(kernel_kind(kind)?, blocks, out);
    Ok(())
}

/// Quantizes `values`, a multiple of the block length, to blocks of `kind`.
pub(crate) fn quantize(kind: GgmlDType, values: &[f32]) -> Result<Bytes> {
    let kernel_kind = kernel_kind(kind)?;
    Ok(Bytes::filled(bytes_of(kind, values.len()), |room| kernel::quantize(kernel_kind, values, room)))
}
