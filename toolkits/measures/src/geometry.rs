//! Measures of one space.

use fauna_shared::{Error, Result};

use crate::space::Space;

/// Effective rank by singular values (RankMe, Garrido et al. 2023, arXiv 2210.02885, equation 1): the exponential of the
/// entropy of `σ / Σσ + 1e-7`. From 1 to the number of dimensions.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if all values are 0.
pub fn effective_rank(space: &Space) -> Result<f64> {
    let singular = singular_values(space.rows())?;
    let sum: f64 = singular.iter().sum();
    if sum == 0.0 {
        return Err(Error::input("all vectors are 0: they have no rank"));
    }
    let entropy: f64 = singular.iter().map(|value| value / sum + 1e-7).map(|p| -p * p.ln()).sum();
    Ok(entropy.exp())
}

/// Uniformity (Wang and Isola 2020, arXiv 2005.10242, section 4.1) of the normalized vectors: the logarithm of the mean of
/// `exp(-2 ‖x - y‖²)` over all pairs of different items; the lower, the more evenly they are spread.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for fewer than two vectors.
pub fn uniformity(space: &Space) -> Result<f64> {
    let mean = mean_over_pairs(space, |cosine| (-2.0 * (2.0 - 2.0 * cosine).max(0.0)).exp())?;
    Ok(mean.ln())
}

/// Anisotropy (Ethayarajh 2019, arXiv 1909.00512): the mean cosine similarity over all pairs of different items.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for fewer than two vectors.
pub fn anisotropy(space: &Space) -> Result<f64> {
    mean_over_pairs(space, |cosine| cosine)
}

/// Alignment of pairs (Wang and Isola 2020, section 4.1): the mean squared distance of the normalized vectors of each pair.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if the spaces differ in items or dimensions.
pub fn pair_distance(x: &Space, y: &Space) -> Result<f64> {
    crate::space::check_pairs(x, y, 1)?;
    check_dimensions(x, y)?;
    let (x, y) = (x.normalized(), y.normalized());
    Ok((x.rows() - y.rows()).squared_norm_l2() / x.items() as f64)
}

/// Modality gap (Liang et al. 2022, arXiv 2203.02053, section 2.3): the distance of the means of the normalized vectors.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if the spaces differ in dimensions.
pub fn modality_gap(x: &Space, y: &Space) -> Result<f64> {
    check_dimensions(x, y)?;
    let (x, y) = (x.normalized(), y.normalized());
    let mean = |space: &Space, j: usize| space.rows().col(j).sum() / space.items() as f64;
    let square: f64 = (0..x.dimensions()).map(|j| (mean(&x, j) - mean(&y, j)).powi(2)).sum();
    Ok(square.sqrt())
}

/// The singular values of a matrix, the largest first.
pub(crate) fn singular_values(matrix: faer::MatRef<'_, f64>) -> Result<Vec<f64>> {
    matrix
        .singular_values()
        .map_err(|_| Error::new(fauna_shared::ErrorKind::Compute, "the singular values do not converge"))
}

fn check_dimensions(x: &Space, y: &Space) -> Result<()> {
    match x.dimensions() == y.dimensions() {
        true => Ok(()),
        false => {
            Err(Error::input(format!("vectors of {} dimensions beside {}", x.dimensions(), y.dimensions()))
                .hint("these measures are of one space: use one of alignment for two"))
        }
    }
}

/// The mean of a function of the cosine similarity over all pairs of different items.
fn mean_over_pairs(space: &Space, of: impl Fn(f64) -> f64) -> Result<f64> {
    let items = space.items();
    if items < 2 {
        return Err(Error::input("one vector has no pair"));
    }
    let mut sum = 0.0;
    space.normalized().each_block(|first, products| {
        for row in 0..products.nrows() {
            // Each pair once.
            sum += (first + row + 1..items).map(|other| of(products[(row, other)])).sum::<f64>();
        }
    });
    Ok(sum / (items * (items - 1) / 2) as f64)
}
