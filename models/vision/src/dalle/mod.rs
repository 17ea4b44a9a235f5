//! DALL·E: OpenAI's released discrete VAE, and DALL·E mini and mega, which draw what they are told.
//!
//! Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation" (arXiv 2102.12092), of which only the codec was released;
//! Dayma et al. 2021, "DALL·E mini", whose transformer emits codes of a VQGAN (Esser et al. 2021, arXiv 2012.09841).
//! Checked against the packages DALL-E 0.1 and min-dalle 0.4.11, parity cases `tests/parity/dalle`.
//! Pictures are `(batch, height, width, channels)`.

pub mod dvae;
pub mod mini;
pub mod vqgan;

use candle_core::{DType, Device, Tensor};
use fauna_shared::item::Image;
use fauna_shared::weights::Inventory;
use fauna_shared::{Error, Result};

/// The most pixels of a picture that is made or read at once: a million, a thousand by a thousand.
const MOST_PIXELS: usize = 1 << 20;

/// Codes of `(batch, height, width)` as u32 on `device`, each below `limit`, of a picture no larger than there is room
/// for where a code stands for `scale` by `scale` pixels.
fn checked_codes(codes: &Tensor, limit: usize, scale: usize, device: &Device) -> Result<Tensor> {
    let (batch, height, width) = codes.dims3().map_err(|_| {
        Error::input(format!("codes are (batch, height, width), these have the shape {:?}", codes.dims()))
    })?;
    if batch == 0 || height == 0 || width == 0 {
        return Err(Error::input(format!("codes of the shape {:?} make no picture", codes.dims())));
    }
    check_pixels(height.saturating_mul(scale), width.saturating_mul(scale))?;
    let flat: Vec<i64> = codes.to_dtype(DType::I64)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
    if let Some(code) = flat.iter().find(|code| !(0..limit as i64).contains(*code)) {
        return Err(Error::input(format!("code {code} is not among the {limit} of this codec")));
    }
    let codes: Vec<u32> = flat.into_iter().map(|code| code as u32).collect();
    Ok(Tensor::from_vec(codes, (batch, height, width), device)?)
}

/// Refuses pictures of more than [`MOST_PIXELS`].
fn check_pixels(height: usize, width: usize) -> Result<()> {
    match height.saturating_mul(width) > MOST_PIXELS {
        true => Err(Error::input(format!("a picture of {height} by {width} pixels is too large"))
            .hint(format!("at most {MOST_PIXELS} pixels are made or read at once"))),
        false => Ok(()),
    }
}

/// Pictures of `(batch, height, width, 3)` in 0 to 255.
fn pictures(values: &Tensor) -> Result<Vec<Image>> {
    let (batch, height, width, _) = values.dims4()?;
    let values: Vec<f32> = values.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
    let picture = |values: &[f32]| Image {
        width,
        height,
        rgb: values.iter().map(|value| value.round_ties_even() as u8).collect(),
    };
    Ok(values.chunks_exact((values.len() / batch.max(1)).max(1)).map(picture).collect())
}

/// What several loads walked over, as one; each is told apart by what stands before its names.
fn joined(parts: impl IntoIterator<Item = (&'static str, Inventory)>) -> Inventory {
    let mut whole = Inventory::default();
    for (prefix, part) in parts {
        let named = |name: String| format!("{prefix}.{name}");
        whole.tensors.extend(part.tensors.into_iter().map(|(name, shape)| (named(name), shape)));
        whole.matrices.extend(part.matrices.into_iter().map(|(name, of)| (named(name), of)));
        whole.packed.extend(part.packed.into_iter().map(|(name, of)| (named(name), of)));
        whole.parameters += part.parameters;
    }
    whole
}

/// Codes of `shape` for timings, int64; every codebook has them.
fn made_up_codes(shape: (usize, usize, usize)) -> Result<Tensor> {
    let codes: Vec<i64> = (0..shape.0 * shape.1 * shape.2).map(|i| (i * 7 % 31) as i64).collect();
    Ok(Tensor::from_vec(codes, shape, &Device::Cpu)?)
}
