//! Alignment of two spaces whose rows belong together in pairs.
//!
//! Each function names its reference. All are symmetric, and 1 for a space and itself (for [`mutual_knn`] and [`cknna`], if
//! no two neighbours are equally near).

use faer::Mat;
use fauna_shared::{Error, Result};
use rayon::prelude::*;

use crate::geometry::singular_values;
use crate::neighbours::{common, nearest};
use crate::ranks::spearman;
use crate::space::{Space, check_pairs};

/// What platonic-rep adds to a denominator.
const PLATONIC: f64 = 1e-6;

/// Number of rows up to which RSA ranks exact distances; more are ranked by the nearest multiple of 2⁻³⁶, in a third of the
/// memory.
const EXACT: usize = 2048;

/// Mutual nearest neighbours (Huh et al. 2024, arXiv 2405.07987, section A; platonic-rep, `mutual_knn`): the share of the `k`
/// nearest neighbours by dot product that the items have in both spaces, 0 to 1. Normalize the spaces first for neighbours by
/// cosine similarity. Unrelated spaces have [`mutual_knn_by_chance`].
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for unequal numbers of items, or `k` that is not below them.
pub fn mutual_knn(x: &Space, y: &Space, k: usize) -> Result<f64> {
    let overlaps = mutual_knn_by_item(x, y, k)?;
    Ok(overlaps.iter().sum::<f64>() / overlaps.len() as f64)
}

/// The share of common neighbours of each item, whose mean is [`mutual_knn`].
///
/// # Errors
/// As [`mutual_knn`].
pub fn mutual_knn_by_item(x: &Space, y: &Space, k: usize) -> Result<Vec<f64>> {
    check_pairs(x, y, 2)?;
    let (x, y) = (nearest(x, k)?, nearest(y, k)?);
    Ok(x.iter().zip(&y).map(|(x, y)| common(x, y).count() as f64 / k as f64).collect())
}

/// What [`mutual_knn`] expects of unrelated spaces: `k / (items - 1)`.
pub fn mutual_knn_by_chance(items: usize, k: usize) -> f64 {
    k as f64 / items.saturating_sub(1) as f64
}

/// Linear centred kernel alignment, the biased estimator (Kornblith et al. 2019, arXiv 1905.00414; resi,
/// `centered_kernel_alignment`): `‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖)` of the centred spaces in Frobenius norms, 0 to 1.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for unequal numbers of items, or a space whose vectors are all equal.
pub fn cka(x: &Space, y: &Space) -> Result<f64> {
    check_pairs(x, y, 2)?;
    let (x, y) = (x.centred(), y.centred());
    let own = |space: &Space| gram_product(space, space).sqrt();
    let (xx, yy) = (own(&x), own(&y));
    if xx == 0.0 || yy == 0.0 {
        return Err(Error::input("all vectors of a space are equal: it has no alignment with another"));
    }
    Ok(gram_product(&x, &y) / (xx * yy))
}

/// `⟨XXᵀ, YYᵀ⟩`, by the product that is smaller.
fn gram_product(x: &Space, y: &Space) -> f64 {
    let (items, x_wide, y_wide) = (x.items(), x.dimensions(), y.dimensions());
    if x_wide * y_wide <= items * items {
        return x.cross(y).squared_norm_l2();
    }
    // Wide spaces of few items: the kernels in blocks.
    let mut blocks = Vec::new();
    y.each_block(|_, block| blocks.push(block.to_owned()));
    let mut blocks = blocks.into_iter();
    let mut sum = 0.0;
    x.each_block(|_, block| {
        if let Some(other) = blocks.next() {
            sum += inner(block, other.as_ref());
        }
    });
    sum
}

fn inner(a: faer::MatRef<'_, f64>, b: faer::MatRef<'_, f64>) -> f64 {
    (0..a.ncols()).map(|j| (0..a.nrows()).map(|i| a[(i, j)] * b[(i, j)]).sum::<f64>()).sum()
}

/// Linear centred kernel alignment, the unbiased estimator (Song et al. 2012, JMLR 13, equation 5; platonic-rep,
/// `unbiased_cka`). Around 0 for unrelated spaces, and not below it by much. No kernel of items by items is held.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for unequal numbers of items or fewer than four, or a space whose vectors are all
/// equal.
pub fn cka_unbiased(x: &Space, y: &Space) -> Result<f64> {
    check_pairs(x, y, 4)?;
    // A mean that all vectors have changes the sums below and not the result, and costs digits.
    let (x, y) = (x.centred(), y.centred());
    let denominator = (hsic_unbiased(&x, &x) * hsic_unbiased(&y, &y)).sqrt();
    match denominator > 0.0 {
        true => Ok(hsic_unbiased(&x, &y) / denominator),
        false => Err(Error::input("a space has no variance that an unbiased estimate finds")
            .hint("its vectors are all equal, or too few")),
    }
}

/// The unbiased estimator of the Hilbert-Schmidt independence criterion with linear kernels K and L whose diagonals are 0.
fn hsic_unbiased(x: &Space, y: &Space) -> f64 {
    let items = x.items() as f64;
    let (x_diagonal, y_diagonal) = (squares(x), squares(y));
    let (x_sums, y_sums) = (kernel_sums(x, &x_diagonal), kernel_sums(y, &y_diagonal));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let product = gram_product(x, y) - dot(&x_diagonal, &y_diagonal);
    let (x_all, y_all) = (x_sums.iter().sum::<f64>(), y_sums.iter().sum::<f64>());
    (product + x_all * y_all / ((items - 1.0) * (items - 2.0)) - 2.0 * dot(&x_sums, &y_sums) / (items - 2.0))
        / (items * (items - 3.0))
}

/// The squared norm of each vector.
fn squares(space: &Space) -> Vec<f64> {
    (0..space.items()).map(|i| space.rows().row(i).squared_norm_l2()).collect()
}

/// The sum of each row of the kernel without its diagonal.
fn kernel_sums(space: &Space, diagonal: &[f64]) -> Vec<f64> {
    let total: Vec<f64> = (0..space.dimensions()).map(|j| space.rows().col(j).sum()).collect();
    let with_all =
        |i: usize| total.iter().enumerate().map(|(j, sum)| space.rows()[(i, j)] * sum).sum::<f64>();
    (0..space.items()).map(|i| with_all(i) - diagonal[i]).collect()
}

/// Centred kernel alignment of nearest neighbours (Huh et al. 2024, section A; platonic-rep, `cknna` with `unbiased`): the
/// unbiased alignment of the kernels, restricted to the pairs that are among the `k` nearest of both spaces. Normalize the
/// spaces first for neighbours by cosine similarity.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for unequal numbers of items or fewer than four, or `k` below 2 or not below them.
pub fn cknna(x: &Space, y: &Space, k: usize) -> Result<f64> {
    check_pairs(x, y, 4)?;
    if k < 2 {
        return Err(Error::input(format!("cknna takes at least 2 neighbours, got {k}")));
    }
    let (x_near, y_near) = (nearest(x, k)?, nearest(y, k)?);
    let cross = masked_hsic((x, &x_near), (y, &y_near));
    let own = masked_hsic((x, &x_near), (x, &x_near)) * masked_hsic((y, &y_near), (y, &y_near));
    Ok(cross / (own.sqrt() + PLATONIC))
}

/// The unbiased estimator with both kernels 0 outside of the common neighbours. As in the reference, the masks are not made
/// symmetric.
fn masked_hsic((x, x_near): (&Space, &[Vec<u32>]), (y, y_near): (&Space, &[Vec<u32>])) -> f64 {
    let items = x.items();
    let dot = |space: &Space, i: usize, j: usize| space.rows().row(i) * space.rows().row(j).transpose();
    // The kernel values of each item and its common neighbours: the neighbour, K and L.
    let kernel: Vec<Vec<(u32, f64, f64)>> = (0..items)
        .into_par_iter()
        .map(|i| {
            let near = common(&x_near[i], &y_near[i]);
            near.map(|j| (j, dot(x, i, j as usize), dot(y, i, j as usize))).collect()
        })
        .collect();
    let (mut columns, mut rows) = (vec![0.0; items], vec![0.0; items]);
    let (mut all_k, mut all_l, mut product) = (0.0, 0.0, 0.0);
    for (i, near) in kernel.iter().enumerate() {
        for (j, k, l) in near {
            columns[*j as usize] += k;
            rows[i] += l;
            all_k += k;
            all_l += l;
            // K times the transpose of L: the pair counts where it is common from both sides.
            let back = kernel[*j as usize].binary_search_by_key(&(i as u32), |(neighbour, ..)| *neighbour);
            product += back.map_or(0.0, |at| k * kernel[*j as usize][at].2);
        }
    }
    let sums: f64 = columns.iter().zip(&rows).map(|(a, b)| a * b).sum();
    let items = items as f64;
    (product + all_k * all_l / ((items - 1.0) * (items - 2.0)) - 2.0 * sums / (items - 2.0))
        / (items * (items - 3.0))
}

/// Representational similarity analysis (Kriegeskorte et al. 2008; rsatoolbox, `calc_rdm_correlation` and
/// `compare_spearman`): Spearman's correlation of the distances 1 - Pearson's correlation over all pairs of items, -1 to 1.
/// Above 2048 items, distances nearer than 2⁻³⁶ count as equal.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for unequal numbers of items, fewer than three or more than 11 585, or a vector
/// whose values are all equal.
pub fn rsa(x: &Space, y: &Space) -> Result<f64> {
    check_pairs(x, y, 3)?;
    let (x, y) = (x.standardized_rows()?, y.standardized_rows()?);
    let correlation = match x.items() <= EXACT {
        true => spearman(&distances(&x), &distances(&y)),
        false => spearman_of_many(&x, &y)?,
    };
    match correlation.is_finite() {
        true => Ok(correlation),
        false => Err(Error::input("all distances of a space are equal: it has no alignment with another")),
    }
}

/// 1 - the products of all pairs of different items, each pair once.
pub(crate) fn distances(space: &Space) -> Vec<f64> {
    let items = space.items();
    let mut all = Vec::with_capacity(items * (items - 1) / 2);
    space.each_block(|first, products| {
        for row in 0..products.nrows() {
            all.extend((first + row + 1..items).map(|other| 1.0 - products[(row, other)]));
        }
    });
    all
}

/// Bits of a packed distance that hold the number of the pair.
const PAIR_BITS: u32 = 26;

/// The distances of all pairs in order: above [`PAIR_BITS`] the distance, 0 to 2, in multiples of 2⁻³⁶, below the pair.
fn ordered(space: &Space) -> Vec<u64> {
    let items = space.items();
    let mut all: Vec<u64> = Vec::with_capacity(items * (items - 1) / 2);
    space.each_block(|first, products| {
        for row in 0..products.nrows() {
            for other in first + row + 1..items {
                let distance =
                    ((1.0 - products[(row, other)]).clamp(0.0, 2.0) * f64::from(1u32 << 18).powi(2)) as u64;
                all.push(distance << PAIR_BITS | all.len() as u64);
            }
        }
    });
    all.par_sort_unstable();
    all
}

/// Spearman's correlation of the distances of two spaces. The pairs are ranked one space after the other, so that two lists
/// of one word and half a word for each pair are all that is held.
fn spearman_of_many(x: &Space, y: &Space) -> Result<f64> {
    let pairs = x.items() * (x.items() - 1) / 2;
    if pairs > 1 << PAIR_BITS {
        return Err(Error::input(format!("the distances of {} vectors are too many to rank", x.items()))
            .hint("at most 11585 vectors: take a sample of them"));
    }
    // Twice the rank, which is a whole number for the mean of neighbouring ranks as well.
    let each_rank = |ordered: &[u64], each: &mut dyn FnMut(usize, u32)| {
        let mut before = 0;
        for group in ordered.chunk_by(|a, b| a >> PAIR_BITS == b >> PAIR_BITS) {
            let rank = (2 * before + group.len() + 1) as u32;
            group.iter().for_each(|packed| each((packed & ((1 << PAIR_BITS) - 1)) as usize, rank));
            before += group.len();
        }
    };
    let mut x_ranks = vec![0u32; pairs];
    each_rank(&ordered(x), &mut |pair, rank| x_ranks[pair] = rank);
    let mean = (pairs + 1) as f64;
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    each_rank(&ordered(y), &mut |pair, rank| {
        let (a, b) = (f64::from(x_ranks[pair]) - mean, f64::from(rank) - mean);
        xy += a * b;
        xx += a * a;
        yy += b * b;
    });
    Ok(xy / (xx * yy).sqrt())
}

/// Orthogonal Procrustes similarity (Ding et al. 2021, arXiv 2108.01661; anatome, 1 - `orthogonal_procrustes_distance`; resi,
/// with another scale, `orthogonal_procrustes_centered_and_normalized`): the nuclear norm of `XᵀY` of the spaces that are centred and divided by their Frobenius
/// norms, 0 to 1.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for unequal numbers of items, or a space whose vectors are all equal.
pub fn procrustes(x: &Space, y: &Space) -> Result<f64> {
    check_pairs(x, y, 2)?;
    let (x, y) = (x.centred(), y.centred());
    let norms = x.rows().norm_l2() * y.rows().norm_l2();
    if norms == 0.0 {
        return Err(Error::input("all vectors of a space are equal: it has no alignment with another"));
    }
    let nuclear: f64 = singular_values(x.cross(&y).as_ref())?.iter().sum();
    Ok(nuclear / norms)
}

/// Singular vector canonical correlation analysis (Raghu et al. 2017, arXiv 1706.05806; anatome, 1 - `svcca_distance`): the
/// mean canonical correlation of the right singular vectors of each space whose singular values sum up to less than `share`
/// of all, 0 to 1. Deterministic, unlike platonic-rep's.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for unequal numbers of items, fewer items than dimensions, or a share that keeps
/// no vector.
pub fn svcca(x: &Space, y: &Space, share: f64) -> Result<f64> {
    check_pairs(x, y, 2)?;
    if !(share > 0.0 && share < 1.0) {
        return Err(Error::input(format!("the share of singular values is between 0 and 1, got {share}")));
    }
    let (x, y) = (principal(x, share)?, principal(y, share)?);
    let kept = x.ncols().min(y.ncols());
    let correlations = singular_values((x.transpose() * &y).as_ref())?;
    Ok(correlations.iter().sum::<f64>() / kept as f64)
}

/// An orthonormal basis of the space reduced to its first singular vectors, then centred.
fn principal(space: &Space, share: f64) -> Result<Mat<f64>> {
    if space.items() < space.dimensions() {
        return Err(Error::input(format!(
            "{} vectors of {} dimensions: canonical correlations need at least as many vectors as dimensions",
            space.items(),
            space.dimensions()
        )));
    }
    let failed = |_| Error::new(fauna_shared::ErrorKind::Compute, "the singular vectors do not converge");
    let parts = space.rows().thin_svd().map_err(failed)?;
    let singular: Vec<f64> = parts.S().column_vector().iter().copied().collect();
    let all: f64 = singular.iter().sum();
    let sums = singular.iter().scan(0.0, |sum, value| {
        *sum += value;
        Some(*sum)
    });
    let kept = sums.take_while(|sum| sum / all < share).count();
    if kept == 0 {
        return Err(Error::input(format!("the first singular value alone has {share} of the sum of all"))
            .hint("a larger share keeps more"));
    }
    let reduced = Space::of(space.rows() * parts.V().subcols(0, kept)).centred();
    let parts = reduced.rows().thin_svd().map_err(failed)?;
    Ok(parts.U().to_owned())
}
