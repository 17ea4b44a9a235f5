//! Features of an edge: radial basis functions of its length, spherical harmonics of its direction.

use candle_core::{D, DType, Tensor};
use fauna_shared::Result;
use fauna_shared::weights::Weights;

/// Cutoff of the envelope, in Å, independent of the radius of the graph.
const CUTOFF: f64 = 6.0;

/// Number of Gaussians of v2, and their spacing in Å.
const GAUSSIANS: usize = 20;
const SPACING: f32 = 0.5;
/// Number of Bessel functions of v3.
const BESSELS: usize = 8;
/// Number of spherical harmonics up to degree 3.
const HARMONICS: usize = 16;

/// The features of edges.
pub(super) enum EdgeFeatures {
    /// Orb v2 (Neumann et al. 2024, section 2): Gaussians of the length, and the unit vector.
    Gaussian {
        /// Centres in Å, `(1, Gaussians)`.
        centres: Tensor,
    },
    /// Orb v3 (Rhodes et al. 2025, section 3): Bessel functions of the length times spherical harmonics of the direction,
    /// times the envelope.
    Bessel {
        /// Wave numbers in 1/Å, `(1, Bessel functions)`.
        bessel_weights: Tensor,
        prefactor: Tensor,
    },
}

/// Features and envelope of edges.
pub(super) struct DescribedEdges {
    /// `(edges, features)`.
    pub features: Tensor,
    /// Smooth cutoff, `(edges, 1)`: from 1 at 0 Å to 0 at 6 Å.
    pub envelope: Tensor,
}

impl EdgeFeatures {
    pub(super) fn gaussian(w: &Weights) -> Result<Self> {
        let centres = (0..GAUSSIANS).map(|i| SPACING * i as f32).collect();
        Ok(Self::Gaussian { centres: Tensor::from_vec(centres, (1, GAUSSIANS), w.runtime().device())? })
    }

    pub(super) fn bessel(w: &Weights) -> Result<Self> {
        let here = w.at("rbf_transform");
        // The cutoff radius is contained in the wave numbers.
        here.skip("r_max");
        Ok(Self::Bessel {
            bessel_weights: here
                .constant("bessel_weights", &[BESSELS], || {
                    (1..=BESSELS).map(|n| (n as f64 * std::f64::consts::PI / CUTOFF) as f32).collect()
                })?
                .reshape((1, BESSELS))?,
            prefactor: here.constant("prefactor", &[], || vec![(2.0 / CUTOFF).sqrt() as f32])?,
        })
    }

    /// Number of features of an edge.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::Gaussian { .. } => GAUSSIANS + 3,
            Self::Bessel { .. } => BESSELS * HARMONICS,
        }
    }

    /// Computes the features of `vectors`, `(edges, 3)` in Å, none of them zero.
    pub(super) fn describe(&self, vectors: &Tensor) -> Result<DescribedEdges> {
        let length = vectors.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
        let unit = vectors.broadcast_div(&length)?;
        let envelope = envelope(&length)?;
        let features = match self {
            Self::Gaussian { centres } => {
                let bumps = length.broadcast_sub(centres)?.sqr()?.neg()?.exp()?;
                Tensor::cat(&[&bumps, &unit], 1)?
            }
            Self::Bessel { bessel_weights, prefactor } => {
                let waves = length.broadcast_mul(bessel_weights)?.sin()?.broadcast_div(&length)?;
                let waves = waves.broadcast_mul(prefactor)?.unsqueeze(2)?;
                let product = waves.broadcast_mul(&harmonics(&unit)?.unsqueeze(1)?)?;
                product.reshape(((), BESSELS * HARMONICS))?.broadcast_mul(&envelope)?
            }
        };
        Ok(DescribedEdges { features, envelope })
    }
}

/// `1 - 15 x⁴ + 24 x⁵ - 10 x⁶` of `x = length / 6`, 0 beyond (Gasteiger et al. 2020, with p = 4).
fn envelope(length: &Tensor) -> Result<Tensor> {
    let x = (length / CUTOFF)?;
    let polynomial = ((((&x * -10.0)? + 24.0)? * &x)? - 15.0)?;
    let envelope = ((polynomial * x.sqr()?.sqr()?)? + 1.0)?;
    let counts = length.detach().lt(CUTOFF)?.to_dtype(DType::F32)?;
    Ok((envelope * counts)?)
}

/// Real spherical harmonics up to degree 3 of unit vectors, `(edges, 16)`; y is the polar axis and the mean square of
/// each over the sphere is one (e3nn's order and "component" normalisation).
fn harmonics(unit: &Tensor) -> Result<Tensor> {
    let [x, y, z] = [0, 1, 2].map(|axis| unit.narrow(1, axis, 1).and_then(|column| column.contiguous()));
    let (x, y, z) = (x?, y?, z?);
    let (x2, y2, z2) = (x.sqr()?, y.sqr()?, z.sqr()?);
    let rim = (&x2 + &z2)?;
    let root = |value: f64| value.sqrt();
    let (xz, xy, yz) = ((&x * &z)?, (&x * &y)?, (&y * &z)?);
    let (first, last) = ((&xz * root(3.0))?, ((&z2 - &x2)? * (root(3.0) / 2.0))?);
    let degree_2 =
        [first.clone(), (xy * root(3.0))?, (&y2 - (&rim * 0.5)?)?, (yz * root(3.0))?, last.clone()];
    let belt = ((&y2 * 4.0)? - &rim)?;
    let degree_3 = [
        (((&first * &z)? + (&last * &x)?)? * root(5.0 / 6.0))?,
        ((&first * &y)? * root(5.0))?,
        ((&belt * &x)? * root(3.0 / 8.0))?,
        ((((&y2 * 2.0)? - (&rim * 3.0)?)? * &y)? * 0.5)?,
        ((&belt * &z)? * root(3.0 / 8.0))?,
        ((&last * &y)? * root(5.0))?,
        (((&last * &z)? - (&first * &x)?)? * root(5.0 / 6.0))?,
    ];
    let mut columns = vec![x.ones_like()?];
    for (degree, group) in [vec![x, y, z], degree_2.to_vec(), degree_3.to_vec()].into_iter().enumerate() {
        let scale = root(2.0 * (degree + 1) as f64 + 1.0);
        for column in group {
            columns.push((column * scale)?);
        }
    }
    Ok(Tensor::cat(&columns, 1)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use fauna_shared::runtime::Runtime;
    use fauna_shared::weights::{Fresh, Variables};

    use super::*;

    #[test]
    fn a_new_model_tells_lengths_and_directions_apart_and_keeps_its_wave_numbers() {
        let new = Weights::fresh(Fresh { seed: 1, deviation: None }, Runtime::cpu());
        let variables = std::sync::Arc::new(Variables::new(fauna_shared::weights::Select::All));
        let edges = EdgeFeatures::bessel(&new.with_variables(&variables, true)).unwrap();
        assert_eq!(variables.names(), ["rbf_transform.bessel_weights", "rbf_transform.prefactor"]);
        let vectors = [[2f32, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, -2.0], [3.0, 0.0, 0.0]];
        let found = edges.describe(&Tensor::new(&vectors, &Device::Cpu).unwrap()).unwrap().features;
        let rows: Vec<Vec<f32>> = found.to_vec2().unwrap();
        for (i, row) in rows.iter().enumerate() {
            assert!(
                rows[..i].iter().all(|other| row.iter().zip(other).any(|(a, b)| (a - b).abs() > 0.1)),
                "{i}"
            );
        }
        // The first function: sin(π r / 6) / r times the square root of 2 / 6.
        let wave = (std::f32::consts::PI / 3.0).sin() / 2.0 * (1f32 / 3.0).sqrt();
        let cutoff: Vec<f32> = envelope(&Tensor::new(&[[2f32]], &Device::Cpu).unwrap())
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        assert!((rows[0][0] - wave * cutoff[0]).abs() < 1e-6, "{}", rows[0][0]);
    }

    #[test]
    fn the_envelope_begins_at_one_and_ends_smoothly_at_six() {
        let lengths = Tensor::new(&[[0f32], [3.0], [5.999], [6.0], [7.0]], &Device::Cpu).unwrap();
        let found: Vec<f32> = envelope(&lengths).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let half = 1.0 - 15.0 / 16.0 + 24.0 / 32.0 - 10.0 / 64.0;
        assert!((found[0] - 1.0).abs() < 1e-6 && (found[1] - half).abs() < 1e-6);
        assert!(found[2].abs() < 1e-5 && found[3..] == [0.0, 0.0], "{found:?}");
    }

    #[test]
    fn the_harmonics_are_orthonormal_on_the_sphere() {
        // A product rule that is exact for polynomials of degree 6: Gauss-Legendre in y, equal angles around it.
        let nodes = [0.8611363115940526f64, 0.3399810435848563];
        let weights = [0.3478548451374538f64, 0.6521451548625461];
        let (mut points, mut shares) = (Vec::new(), Vec::new());
        for (node, weight) in nodes.iter().zip(weights) {
            for y in [*node, -node] {
                for i in 0..8 {
                    let angle = std::f64::consts::TAU * i as f64 / 8.0;
                    let rim = (1.0 - y * y).sqrt();
                    points.extend([rim * angle.cos(), y, rim * angle.sin()].map(|v| v as f32));
                    shares.push((weight / 16.0) as f32);
                }
            }
        }
        let unit = Tensor::from_vec(points, (32, 3), &Device::Cpu).unwrap();
        let shares = Tensor::from_vec(shares, (32, 1), &Device::Cpu).unwrap();
        let found = harmonics(&unit).unwrap();
        let products = found.t().unwrap().matmul(&found.broadcast_mul(&shares).unwrap()).unwrap();
        for (i, row) in products.to_vec2::<f32>().unwrap().iter().enumerate() {
            for (j, value) in row.iter().enumerate() {
                let wanted = if i == j { 1.0 } else { 0.0 };
                assert!((value - wanted).abs() < 1e-5, "{i} {j}: {value}");
            }
        }
    }
}
