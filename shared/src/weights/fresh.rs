//! Initial values of weights that no checkpoint has.

use super::{Fresh, reserve};
use crate::Result;
use crate::generate::Rng;

/// Initial values of the tensor `path` of `shape`, row-major, determined by the seed and the name.
///
/// Norms are 1 and biases 0. Matrices and embeddings are normal with the given deviation, or uniform within one over the
/// square root of the number of inputs, as are convolutions always.
pub(super) fn values(fresh: Fresh, path: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let (elements, mut values) = reserve(path, shape)?;
    let last = path.rsplit('.').next().unwrap_or(path);
    let constant = match (shape.len(), last) {
        (0, "logit_scale") => Some((1f32 / 0.07).ln()),
        (0, _) | (_, "bias") => Some(0.0),
        (1, "weight" | "scale" | "scale_factor" | "gamma" | "weight_g") => Some(1.0),
        (1, _) => Some(0.0),
        _ => None,
    };
    if let Some(constant) = constant {
        values.resize(elements, constant);
        return Ok(values);
    }
    let deviation = fresh.deviation.filter(|_| shape.len() < 3);
    noise(Fresh { deviation, ..fresh }, path, shape)
}

/// Random values of the tensor `path` of `shape`: normal with the given deviation, or uniform within one over the square
/// root of the number of inputs.
pub(super) fn noise(fresh: Fresh, path: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let (elements, mut values) = reserve(path, shape)?;
    let mut random = Rng::new(fresh.seed, hash(path));
    let inputs = shape.iter().skip(1).product::<usize>().max(1);
    let bound = 1.0 / (inputs as f64).sqrt();
    match fresh.deviation {
        Some(deviation) => values.extend((0..elements).map(|_| (deviation * random.normal()) as f32)),
        None => values.extend((0..elements).map(|_| (bound * (2.0 * random.uniform() - 1.0)) as f32)),
    }
    Ok(values)
}

/// A hash of a name (FNV-1a).
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
