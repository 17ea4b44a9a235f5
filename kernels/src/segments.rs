//! Gather and segment sum of rows, as in graph networks: edges gather the features of their nodes, and nodes sum over
//! their edges.
//!
//! Each row of the output is computed by one thread, with its terms in the given order, so results do not depend on the
//! number of threads.

use super::InvalidInput;
use super::pool::{parallel_for, threads};
use super::versions::{Shared, fma, for_each_piece, versioned};

/// Elements per task.
const PIECE: usize = 16 * 1024;

/// Rows per task.
fn rows_of_task(width: usize) -> usize {
    (PIECE / width.max(1)).max(1)
}

/// Gather and add: `out[e] += table[index[e]]`.
///
/// `table`: `(nodes, width)`. `index`: `(edges)`. `out`: `(edges, width)`.
///
/// # Panics
/// If the length of `out` does not match, or an index is outside the table.
///
/// ```
/// use fauna_kernels::segments::add_gathered;
/// let mut out = [1.0, 1.0, 1.0, 1.0];
/// add_gathered(&[10.0, 20.0, 30.0, 40.0], 2, &[1, 0], &mut out);
/// assert_eq!(out, [31.0, 41.0, 11.0, 21.0]);
/// ```
pub fn add_gathered(table: &[f32], width: usize, index: &[u32], out: &mut [f32]) {
    versioned! {
        fn add(row: &[f32], out: &mut [f32]) {
            for (v, &x) in out.iter_mut().zip(row) {
                *v += x;
            }
        }
    }
    assert_eq!(out.len(), index.len() * width, "out must have one row per index");
    let rows = rows_of_task(width);
    for_each_piece(out, rows * width, |i, out| {
        for (out, &at) in out.chunks_exact_mut(width).zip(&index[i * rows..]) {
            add(&table[at as usize * width..][..width], out);
        }
    });
}

/// Segment sum: `out[i] = Σ scale[e] * x[e]` over the rows `e` of segment `i`; without a scale, `Σ x[e]`.
///
/// `x`: `(edges, width)`. `scale`: `(edges)`. `order`: `(edges)`, the row indices sorted by segment. `starts`:
/// `(segments + 1)`, where each segment begins in `order`, and the end of the last one. `out`: `(segments, width)`,
/// overwritten.
///
/// # Panics
/// If the lengths do not match, or an index is out of range.
///
/// ```
/// use fauna_kernels::segments::sums;
/// let mut out = [0.0; 3];
/// sums(&[1.0, 2.0, 4.0], 1, None, &[0, 2, 1], &[0, 2, 2, 3], &mut out);
/// assert_eq!(out, [5.0, 0.0, 2.0]);
/// ```
pub fn sums(x: &[f32], width: usize, scale: Option<&[f32]>, order: &[u32], starts: &[u32], out: &mut [f32]) {
    versioned! {
        fn add(row: &[f32], scale: f32, out: &mut [f32]) {
            for (v, &x) in out.iter_mut().zip(row) {
                *v = fma::<FMA>(x, scale, *v);
            }
        }
    }
    assert_eq!(out.len() + width, starts.len() * width, "out must have one row per segment");
    let rows = (rows_of_task(width) / 16).max(1);
    for_each_piece(out, rows * width, |i, out| {
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            out.fill(0.0);
            let segment = i * rows + r;
            for &e in &order[starts[segment] as usize..starts[segment + 1] as usize] {
                let e = e as usize;
                add(&x[e * width..][..width], scale.map_or(1.0, |scale| scale[e]), out);
            }
        }
    });
}

/// Backward pass of scaled [`sums`]: `out[e] = scale[e] * table[index[e]]`, the gradient of `x`, and
/// `slope[e] = x[e] · table[index[e]]`, the gradient of `scale`.
///
/// `table`: `(segments, width)`, the gradient of the sums. `index`: `(edges)`, the segment of each row. `x` and `out`:
/// `(edges, width)`. `scale` and `slope`: `(edges)`.
///
/// # Panics
/// If the lengths do not match, or an index is outside the table.
pub fn sums_backward(
    table: &[f32],
    width: usize,
    index: &[u32],
    (x, scale): (&[f32], &[f32]),
    out: &mut [f32],
    slope: &mut [f32],
) {
    versioned! {
        fn product(row: &[f32], x: &[f32]) -> f32 {
            let mut lanes = [0f32; 16];
            let (blocks, rest) = row.as_chunks::<16>();
            let (others, other_rest) = x.as_chunks::<16>();
            for (a, b) in blocks.iter().zip(others) {
                for i in 0..16 {
                    lanes[i] = fma::<FMA>(a[i], b[i], lanes[i]);
                }
            }
            lanes.iter().sum::<f32>() + rest.iter().zip(other_rest).map(|(a, b)| a * b).sum::<f32>()
        }
    }
    versioned! {
        fn scaled(row: &[f32], scale: f32, out: &mut [f32]) {
            for (v, &g) in out.iter_mut().zip(row) {
                *v = g * scale;
            }
        }
    }
    assert_eq!(
        (out.len(), x.len()),
        (index.len() * width, out.len()),
        "x and out must have one row per index"
    );
    assert_eq!(
        (slope.len(), scale.len()),
        (index.len(), index.len()),
        "scale and slope must have one element per index"
    );
    let rows = rows_of_task(width);
    let row_of = |e: usize| &table[index[e] as usize * width..][..width];
    for_each_piece(out, rows * width, |i, out| {
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            scaled(row_of(i * rows + r), scale[i * rows + r], out);
        }
    });
    for_each_piece(slope, rows, |i, slope| {
        for (r, slope) in slope.iter_mut().enumerate() {
            let e = i * rows + r;
            *slope = product(row_of(e), &x[e * width..][..width]);
        }
    });
}

/// Scatter and add: `table[index[e]] += x[e]`, in the order of the rows `e`. This is the backward pass of
/// [`add_gathered`] and of the lookup of embeddings.
///
/// `x`: `(edges, width)`. `index`: `(edges)`; rows may repeat. `table`: `(nodes, width)`. Threads divide the columns
/// among them, so that results do not depend on their number.
///
/// # Errors
/// [`InvalidInput`] if the length of `x` does not match, the table is not whole rows, or an index is outside it. The
/// table is unchanged then.
///
/// ```
/// use fauna_kernels::segments::scatter_add;
/// let mut table = [0.0; 6];
/// scatter_add(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, &[2, 0, 2], &mut table).unwrap();
/// assert_eq!(table, [3.0, 4.0, 0.0, 0.0, 6.0, 8.0]);
/// ```
pub fn scatter_add(x: &[f32], width: usize, index: &[u32], table: &mut [f32]) -> Result<(), InvalidInput> {
    versioned! {
        fn add(x: &[f32], table: &mut [f32]) {
            for (v, &x) in table.iter_mut().zip(x) {
                *v += x;
            }
        }
    }
    if x.len() != index.len() * width || width == 0 && !index.is_empty() {
        let (found, rows) = (x.len(), index.len());
        return Err(InvalidInput::new(format!(
            "expected {rows} rows of {width}, one per index, found {found} elements"
        )));
    }
    let nodes = table.len() / width.max(1);
    if nodes * width != table.len() {
        return Err(InvalidInput::new(format!(
            "a table of {} elements is not whole rows of {width}",
            table.len()
        )));
    }
    if let Some(e) = index.iter().position(|at| *at as usize >= nodes) {
        return Err(InvalidInput::new(format!(
            "index {} of row {e} is outside the table of {nodes} rows",
            index[e]
        )));
    }
    if x.is_empty() {
        return Ok(());
    }
    // Whole cache lines, several of them, and no more than one stripe per thread unless the work is large.
    let stripe = width.div_ceil(threads()).next_multiple_of(16).max(64).min(width.max(1));
    let stripes = if x.len() < PIECE { 1 } else { width.div_ceil(stripe) };
    let stripe = if stripes == 1 { width } else { stripe };
    let all = Shared(table.as_mut_ptr());
    parallel_for(stripes, |s| {
        let columns = s * stripe..width.min((s + 1) * stripe);
        for (x, &at) in x.chunks_exact(width).zip(index) {
            // SAFETY: the row is inside the table, and its columns are this task's alone.
            let row = unsafe {
                let first = all.get().add(at as usize * width + columns.start);
                std::slice::from_raw_parts_mut(first, columns.len())
            };
            add(&x[columns.clone()], row);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::numbers;
    use crate::pool::Pool;

    #[test]
    fn scattered_rows_add_up_in_order_on_any_number_of_threads() {
        for (nodes, width, edges) in [(1, 1, 1), (5, 3, 40), (7, 130, 200), (50, 577, 64), (3, 64, 0)] {
            let (x, start) = (numbers(edges * width, 1), numbers(nodes * width, 2));
            let index: Vec<u32> = (0..edges).map(|e| (e * e * 7 % nodes) as u32).collect();
            let mut wanted = start.clone();
            for (x, &at) in x.chunks(width).zip(&index) {
                wanted[at as usize * width..].iter_mut().zip(x).for_each(|(v, x)| *v += x);
            }
            for threads in [1, 2, 5] {
                let mut table = start.clone();
                Pool::new(threads).install(|| scatter_add(&x, width, &index, &mut table)).unwrap();
                assert_eq!(table, wanted, "{nodes} by {width}, {threads} threads");
            }
        }
    }

    #[test]
    fn indices_and_sizes_that_do_not_fit_are_refused_by_name() {
        let mut table = [1.0; 4];
        let refusal = scatter_add(&[0.5; 4], 2, &[0, 2], &mut table).unwrap_err().to_string();
        assert_eq!(refusal, "index 2 of row 1 is outside the table of 2 rows");
        assert!(scatter_add(&[0.5; 3], 2, &[0, 1], &mut table).is_err());
        assert!(scatter_add(&[0.5; 3], 3, &[0], &mut table).is_err());
        assert!(scatter_add(&[], 0, &[0], &mut table).is_err());
        assert_eq!(table, [1.0; 4]);
    }
}
