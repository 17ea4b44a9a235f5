//! Initial values of weights that no checkpoint has.

use super::{Fresh, reserve};
use crate::Result;
use crate::generate::Rng;

/// Initial values of the tensor `path` of `shape`, row-major, determined by the seed and the name.
///
/// Norms and running variances are 1; biases, running means and linear layers that are stored as vectors are 0. Matrices
/// and embeddings are normal with the given deviation, or uniform within one over the square root of the number of
/// inputs, as are convolutions always. Constants have values of their own:
/// [`Weights::constant`](super::Weights::constant).
pub(super) fn values(fresh: Fresh, path: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let (elements, mut values) = reserve(path, shape)?;
    let last = path.rsplit('.').next().unwrap_or(path);
    let constant = match (shape.len(), last) {
        (0, "logit_scale") => Some((1f32 / 0.07).ln()),
        (0, _) | (_, "bias") => Some(0.0),
        (1, "weight") if path.ends_with("linear.weight") => Some(0.0),
        (1, "weight" | "scale" | "scale_factor" | "gamma" | "weight_g" | "running_var") => Some(1.0),
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

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Fresh = Fresh { seed: 3, deviation: Some(0.02) };

    fn spread(values: &[f32]) -> (f64, f64) {
        let count = values.len() as f64;
        let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        (mean, (values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count).sqrt())
    }

    #[test]
    fn norms_are_one_and_biases_zero() {
        for (path, shape, expected) in [
            ("norm.weight", &[4][..], 1.0),
            ("norm.bias", &[4], 0.0),
            ("conv.weight_g", &[4], 1.0),
            ("block.layer_scale", &[4], 0.0),
            ("lm_head.bias", &[2], 0.0),
        ] {
            assert!(values(FRESH, path, shape).unwrap().iter().all(|x| *x == expected), "{path}");
        }
        assert_eq!(values(FRESH, "logit_scale", &[]).unwrap(), [(1f32 / 0.07).ln()]);
    }

    #[test]
    fn matrices_have_the_deviation_and_convolutions_the_bound_of_torch() {
        let (mean, deviation) = spread(&values(FRESH, "a.weight", &[100, 100]).unwrap());
        assert!(mean.abs() < 1e-3 && (deviation - 0.02).abs() < 1e-3, "{mean} {deviation}");
        let uniform = Fresh { deviation: None, ..FRESH };
        for (fresh, shape) in [(uniform, &[100, 25][..]), (FRESH, &[100, 5, 5])] {
            let found = values(fresh, "a.weight", shape).unwrap();
            let most = found.iter().fold(0f32, |most, x| most.max(x.abs()));
            assert!((0.19..=0.2).contains(&most), "{most}");
            let (mean, deviation) = spread(&found);
            assert!(mean.abs() < 0.01 && (deviation - 0.2 / 3f64.sqrt()).abs() < 0.01, "{deviation}");
        }
    }

    #[test]
    fn the_seed_and_the_name_determine_the_values() {
        let of = |seed, path| values(Fresh { seed, ..FRESH }, path, &[8, 8]).unwrap();
        assert_eq!(of(1, "a.weight"), of(1, "a.weight"));
        assert_ne!(of(1, "a.weight"), of(2, "a.weight"));
        assert_ne!(of(1, "a.weight"), of(1, "b.weight"));
    }
}
