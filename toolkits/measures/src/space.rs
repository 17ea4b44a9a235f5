//! Vectors of items.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use fauna_shared::{Error, Result};

/// Number of rows whose products with all others are held at once.
const BLOCK: usize = 512;

/// Vectors of items, `(items, dimensions)`, float64.
#[derive(Debug, Clone)]
pub struct Space {
    rows: Mat<f64>,
}

impl Space {
    /// Takes `values`, row by row.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if there are no values, not `items * dimensions`, or one is not finite; the
    /// error names its row.
    pub fn new(items: usize, dimensions: usize, values: Vec<f64>) -> Result<Self> {
        if items == 0 || dimensions == 0 || items.checked_mul(dimensions) != Some(values.len()) {
            return Err(Error::input(format!(
                "{} values are not {items} vectors of {dimensions} dimensions",
                values.len()
            )));
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::input(format!(
                "row {} has the value {} at dimension {}",
                at / dimensions + 1,
                values[at],
                at % dimensions + 1
            ))
            .hint("leave the row out, or correct it"));
        }
        Ok(Self { rows: Mat::from_fn(items, dimensions, |i, j| values[i * dimensions + j]) })
    }

    /// Takes the rows of a matrix that holds finite values.
    pub(crate) fn of(rows: Mat<f64>) -> Self {
        Self { rows }
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.rows.nrows()
    }

    /// Number of dimensions.
    pub fn dimensions(&self) -> usize {
        self.rows.ncols()
    }

    /// The vectors.
    pub(crate) fn rows(&self) -> MatRef<'_, f64> {
        self.rows.as_ref()
    }

    /// The vectors of these items, of which some may be named several times or not at all.
    ///
    /// # Panics
    /// If an item is not there.
    pub fn select(&self, items: &[usize]) -> Self {
        Self::of(Mat::from_fn(items.len(), self.dimensions(), |i, j| self.rows[(items[i], j)]))
    }

    /// The vectors divided by their L2 norms, which are at least 1e-12, as `torch.nn.functional.normalize` does.
    pub fn normalized(&self) -> Self {
        let norms: Vec<f64> = (0..self.items()).map(|i| self.rows.row(i).norm_l2().max(1e-12)).collect();
        Self::of(Mat::from_fn(self.items(), self.dimensions(), |i, j| self.rows[(i, j)] / norms[i]))
    }

    /// The vectors with all values outside of the `quantile` of the absolute values set to its bounds, as Huh et al. 2024 do
    /// it before they normalize: the quantile is the `floor(quantile * values)`-th of the sorted absolute values.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if the quantile is not above 0 and at most 1.
    pub fn clamped(&self, quantile: f64) -> Result<Self> {
        if !(quantile > 0.0 && quantile <= 1.0) {
            return Err(Error::input(format!("a quantile is above 0 and at most 1, got {quantile}")));
        }
        if quantile == 1.0 {
            return Ok(self.clone());
        }
        let columns = 0..self.dimensions();
        let mut sizes: Vec<f64> = columns
            .flat_map(|j| (0..self.items()).map(move |i| (i, j)))
            .map(|at| self.rows[at].abs())
            .collect();
        let place = (quantile * sizes.len() as f64) as usize;
        let (_, bound, _) = sizes.select_nth_unstable_by(place, f64::total_cmp);
        let bound = *bound;
        Ok(Self::of(Mat::from_fn(self.items(), self.dimensions(), |i, j| {
            self.rows[(i, j)].clamp(-bound, bound)
        })))
    }

    /// The vectors without the mean of each dimension.
    pub(crate) fn centred(&self) -> Self {
        let items = self.items() as f64;
        let means: Vec<f64> = (0..self.dimensions()).map(|j| self.rows.col(j).sum() / items).collect();
        Self::of(Mat::from_fn(self.items(), self.dimensions(), |i, j| self.rows[(i, j)] - means[j]))
    }

    /// Each vector without the mean of its values, divided by its L2 norm: their products are Pearson correlations.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a vector whose values are all equal.
    pub(crate) fn standardized_rows(&self) -> Result<Self> {
        let dimensions = self.dimensions() as f64;
        let means: Vec<f64> = (0..self.items()).map(|i| self.rows.row(i).sum() / dimensions).collect();
        let centred = Mat::from_fn(self.items(), self.dimensions(), |i, j| self.rows[(i, j)] - means[i]);
        let norms: Vec<f64> = (0..self.items()).map(|i| centred.row(i).norm_l2()).collect();
        if let Some(constant) = norms.iter().position(|norm| *norm == 0.0) {
            return Err(Error::input(format!("all values of row {} are equal", constant + 1))
                .hint("the correlation of such a row with others is not defined: leave it out"));
        }
        Ok(Self::of(Mat::from_fn(self.items(), self.dimensions(), |i, j| centred[(i, j)] / norms[i])))
    }

    /// The sum of all absolute values.
    #[cfg(test)]
    pub(crate) fn sum_of_sizes(&self) -> f64 {
        (0..self.dimensions()).map(|j| self.rows.col(j).iter().map(|value| value.abs()).sum::<f64>()).sum()
    }

    /// `selfᵀ other`, `(dimensions, dimensions of other)`.
    pub(crate) fn cross(&self, other: &Self) -> Mat<f64> {
        product(self.rows().transpose(), other.rows())
    }

    /// Calls `each` with the first row of a block and the products of its rows with all rows, `(rows of the block, items)`.
    pub(crate) fn each_block(&self, mut each: impl FnMut(usize, MatRef<'_, f64>)) {
        for first in (0..self.items()).step_by(BLOCK) {
            let count = BLOCK.min(self.items() - first);
            let block = product(self.rows().subrows(first, count), self.rows().transpose());
            each(first, block.as_ref());
        }
    }
}

/// The product of two matrices, on all threads.
fn product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let mut result = Mat::zeros(left.nrows(), right.ncols());
    matmul(result.as_mut(), Accum::Replace, left, right, 1.0, Par::rayon(0));
    result
}

/// Checks that the rows of two spaces can belong together.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if their numbers differ or are less than `least`.
pub(crate) fn check_pairs(x: &Space, y: &Space, least: usize) -> Result<()> {
    if x.items() != y.items() {
        return Err(Error::input(format!(
            "{} vectors beside {}: they do not belong together in pairs",
            x.items(),
            y.items()
        )));
    }
    if x.items() < least {
        return Err(Error::input(format!("{} pairs are too few, {least} are needed", x.items())));
    }
    Ok(())
}
