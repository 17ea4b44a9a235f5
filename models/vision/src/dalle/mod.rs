//! DALL·E: OpenAI's discrete VAE, and the text-to-image models DALL·E mini and mega.
//!
//! Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation" (arXiv 2102.12092), of which only the dVAE was released;
//! Dayma et al. 2021, "DALL·E mini", whose transformer generates the codes of a VQGAN (Esser et al. 2021, arXiv
//! 2012.09841). Checked against the packages DALL-E 0.1 and min-dalle 0.4.11, parity cases `tests/parity/dalle`. Images
//! are `(batch, height, width, channels)`.

pub mod dvae;
pub mod mini;
pub mod vqgan;

use candle_core::{DType, Device, Tensor};
use fauna_shared::item::Image;
use fauna_shared::weights::Inventory;
use fauna_shared::{Error, Result, transfer};

/// Maximum number of pixels of an image that is encoded or decoded.
const MAX_PIXELS: usize = 1 << 20;

/// Checks `codes`, `(batch, height, width)`, and returns them as u32 on `device`: each must be below `limit`, and the
/// image, of `scale` by `scale` pixels per code, may not exceed [`MAX_PIXELS`].
fn checked_codes(codes: &Tensor, limit: usize, scale: usize, device: &Device) -> Result<Tensor> {
    let (batch, height, width) = codes.dims3().map_err(|_| {
        Error::input(format!("codes have the shape {:?}, expected (batch, height, width)", codes.dims()))
    })?;
    if batch == 0 || height == 0 || width == 0 {
        return Err(Error::input(format!("codes of the shape {:?} have no elements", codes.dims())));
    }
    check_pixels(height.saturating_mul(scale), width.saturating_mul(scale))?;
    let flat: Vec<i64> = transfer::to_host(&codes.to_dtype(DType::I64)?)?;
    if let Some(code) = flat.iter().find(|code| !(0..limit as i64).contains(*code)) {
        return Err(Error::input(format!("code {code} is outside the codebook of {limit} codes")));
    }
    let codes: Vec<u32> = flat.into_iter().map(|code| code as u32).collect();
    Ok(Tensor::from_vec(codes, (batch, height, width), device)?)
}

/// Checks that an image has at most [`MAX_PIXELS`].
fn check_pixels(height: usize, width: usize) -> Result<()> {
    match height.saturating_mul(width) > MAX_PIXELS {
        true => Err(Error::input(format!("an image of {height} by {width} pixels is too large"))
            .hint(format!("at most {MAX_PIXELS} pixels are supported"))),
        false => Ok(()),
    }
}

/// Converts pixel values, `(batch, height, width, 3)` in 0 to 255, to images.
fn to_images(values: &Tensor) -> Result<Vec<Image>> {
    let (batch, height, width, _) = values.dims4()?;
    let values: Vec<f32> = transfer::to_host(&values.to_dtype(DType::F32)?)?;
    let image = |values: &[f32]| Image {
        width,
        height,
        rgb: values.iter().map(|value| value.round_ties_even() as u8).collect(),
    };
    Ok(values.chunks_exact((values.len() / batch.max(1)).max(1)).map(image).collect())
}

/// Adds the inventory of a part to `whole`, with `prefix` before the names of its tensors.
fn add_part(whole: &mut Inventory, prefix: &str, part: Inventory) {
    let named = |name: String| format!("{prefix}.{name}");
    whole.tensors.extend(part.tensors.into_iter().map(|(name, shape)| (named(name), shape)));
    whole.matrices.extend(part.matrices.into_iter().map(|(name, of)| (named(name), of)));
    whole.packed.extend(part.packed.into_iter().map(|(name, of)| (named(name), of)));
    whole.parameters += part.parameters;
}

/// The side of the square grid of `length` codes.
fn side_of(length: usize) -> Result<usize> {
    match length.isqrt() {
        side if side > 0 && side * side == length => Ok(side),
        _ => Err(Error::input(format!("{length} codes are not a square grid"))),
    }
}

/// Arbitrary codes of `shape`, int64, for benchmarks; valid for every codebook.
fn sample_codes(shape: (usize, usize, usize)) -> Result<Tensor> {
    let codes: Vec<i64> = (0..shape.0 * shape.1 * shape.2).map(|i| (i * 7 % 31) as i64).collect();
    Ok(Tensor::from_vec(codes, shape, &Device::Cpu)?)
}
