//! Gradients of a linear layer `y = x · Wᵀ + bias` with respect to its input, its weight and its bias.

use super::{Compute, Dense, Layout, Made, Product, Target};
use crate::cpu::{Isa, isa};
use crate::pool::{parallel_for, threads};
use crate::versions::versioned;

/// Gradient of [`linear`](super::linear) with respect to `x`, `dx = grad · W`.
///
/// `grad`: `(rows, outputs)`, the gradient of `y`. `dx`: `(rows, inputs)`; added to if `accumulate`, else overwritten.
///
/// # Panics
/// If the length of a slice does not match its shape.
///
/// ```
/// use fauna_kernels::matmul::{Compute, Dense, linear_input_gradient};
/// let weight = Dense::of_floats(&[1.0, 2.0, 3.0, 4.0], 2, 2).unwrap();
/// let mut dx = [0.0; 2];
/// linear_input_gradient(&[10.0, 1.0], 1, &weight, Compute::F32, false, &mut dx);
/// assert_eq!(dx, [13.0, 24.0]);
/// ```
pub fn linear_input_gradient(
    grad: &[f32],
    rows: usize,
    weight: &Dense,
    compute: Compute,
    accumulate: bool,
    dx: &mut [f32],
) {
    input_gradient_on(isa(), grad, rows, weight, compute, accumulate, dx);
}

pub(super) fn input_gradient_on(
    isa: Isa,
    grad: &[f32],
    rows: usize,
    weight: &Dense,
    compute: Compute,
    accumulate: bool,
    dx: &mut [f32],
) {
    assert_eq!(grad.len(), rows * weight.outputs, "grad is not rows by outputs");
    assert_eq!(dx.len(), rows * weight.inputs, "dx is not rows by inputs");
    let weight = weight.transposed();
    let (n, k) = (weight.outputs, weight.inputs);
    let stride = if weight.layout == Layout::OutIn { k } else { n };
    let (w, y) = ((weight.data.as_ptr().cast(), stride, weight.layout), (dx.as_mut_ptr(), n));
    let floats = Product::of_floats(((grad.as_ptr(), k), false), w, k, (y, accumulate));
    let mut product = Product { elem: weight.elem, compute, ..floats };
    let rounded = product.round(isa, grad, rows, n);
    // SAFETY: the lengths were checked; `dx` and `rounded` are borrowed until all jobs are done.
    unsafe { product.run(isa, rows, n) }
    drop(rounded);
}

/// [`linear_input_gradient`] with a weight `(outputs, inputs)` of which `made` writes parts as f32 when they are packed.
#[allow(clippy::too_many_arguments)]
pub(crate) fn made_input_gradient(
    isa: Isa,
    grad: &[f32],
    rows: usize,
    (outputs, inputs): (usize, usize),
    made: Made,
    compute: Compute,
    accumulate: bool,
    dx: &mut [f32],
) {
    assert_eq!(grad.len(), rows * outputs, "grad is not rows by outputs");
    assert_eq!(dx.len(), rows * inputs, "dx is not rows by inputs");
    let (w, y) = ((std::ptr::null(), inputs, Layout::InOut), (dx.as_mut_ptr(), inputs));
    let x = ((grad.as_ptr(), outputs), false);
    let mut product =
        Product { made: Some(made), compute, ..Product::of_floats(x, w, outputs, (y, accumulate)) };
    let rounded = product.round(isa, grad, rows, inputs);
    // SAFETY: the lengths were checked; `dx` and `rounded` are borrowed until all jobs are done.
    unsafe { product.run(isa, rows, inputs) }
    drop(rounded);
}

/// Gradients of [`linear`](super::linear) with respect to the weight, `dw = gradᵀ · x` in `layout`, and to the bias,
/// the sums of the columns of `grad`. Computed in f32.
///
/// `grad`: `(rows, outputs)`, the gradient of `y`. `x`: `(rows, inputs)`. `dw`: `(outputs, inputs)` or
/// `(inputs, outputs)`, according to `layout`. `db`: `(outputs)`. Both are added to if `accumulate`, else overwritten.
///
/// # Panics
/// If the length of a slice does not match its shape.
///
/// ```
/// use fauna_kernels::matmul::{Layout, linear_weight_gradient};
/// let (mut dw, mut db) = ([0.0; 4], [1.0; 2]);
/// linear_weight_gradient(&[10.0, 1.0], &[2.0, 3.0], 1, (2, 2), Layout::OutIn, true, &mut dw, Some(&mut db));
/// assert_eq!((dw, db), ([20.0, 30.0, 2.0, 3.0], [11.0, 2.0]));
/// ```
#[allow(clippy::too_many_arguments)]
pub fn linear_weight_gradient(
    grad: &[f32],
    x: &[f32],
    rows: usize,
    (outputs, inputs): (usize, usize),
    layout: Layout,
    accumulate: bool,
    dw: &mut [f32],
    db: Option<&mut [f32]>,
) {
    weight_gradient_on(isa(), grad, x, rows, (outputs, inputs), layout, accumulate, dw);
    if let Some(db) = db {
        bias_gradient(grad, rows, accumulate, db);
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn weight_gradient_on(
    isa: Isa,
    grad: &[f32],
    x: &[f32],
    rows: usize,
    (outputs, inputs): (usize, usize),
    layout: Layout,
    accumulate: bool,
    dw: &mut [f32],
) {
    assert_eq!(grad.len(), rows * outputs, "grad is not rows by outputs");
    assert_eq!(x.len(), rows * inputs, "x is not rows by inputs");
    assert_eq!(dw.len(), outputs * inputs, "dw is not outputs by inputs");
    let (grad, x) = ((grad.as_ptr(), outputs), (x.as_ptr(), inputs));
    let (left, right) = if layout == Layout::OutIn { (grad, x) } else { (x, grad) };
    let (w, y) = ((right.0, right.1, Layout::InOut), (dw.as_mut_ptr(), right.1));
    let product = Product::of_floats((left, true), w, rows, (y, accumulate));
    // SAFETY: the lengths were checked; `dw` is borrowed until all jobs are done.
    unsafe { product.run(isa, left.1, right.1) }
}

/// Gradient of a bias that was added to every row: the sums of the columns of `grad`.
///
/// `grad`: `(rows, outputs)`. `db`: `(outputs)`; added to if `accumulate`, else overwritten.
///
/// # Panics
/// If `grad` is not `rows` rows as long as `db`.
///
/// ```
/// let mut db = [0.0; 2];
/// fauna_kernels::matmul::bias_gradient(&[1.0, 2.0, 3.0, 4.0], 2, false, &mut db);
/// assert_eq!(db, [4.0, 6.0]);
/// ```
pub fn bias_gradient(grad: &[f32], rows: usize, accumulate: bool, db: &mut [f32]) {
    /// Columns of a job at least: whole pages are read.
    const LEAST: usize = 1024;
    let outputs = db.len();
    assert_eq!(grad.len(), rows * outputs, "grad is not rows by outputs");
    if outputs == 0 {
        return;
    }
    let step = outputs.div_ceil(threads() * 4).max(LEAST);
    let db = Target(db.as_mut_ptr());
    let job = |job: usize| {
        let first = job * step;
        let columns = step.min(outputs - first);
        // SAFETY: jobs have distinct columns, inside `db`, which is borrowed until all are done.
        let db = unsafe { std::slice::from_raw_parts_mut(db.get().add(first), columns) };
        if !accumulate {
            db.fill(0.0);
        }
        add_rows(&grad[first.min(grad.len())..], outputs, rows, db);
    };
    parallel_for(outputs.div_ceil(step), job);
}

versioned! {
    /// Adds the first elements of `rows` rows, `stride` apart, to `sums`.
    fn add_rows(x: &[f32], stride: usize, rows: usize, sums: &mut [f32]) {
        /// Columns whose sums stay in registers.
        const WIDTH: usize = 64;
        let whole = sums.len() / WIDTH * WIDTH;
        for c in (0..whole).step_by(WIDTH) {
            let mut lanes = [0f32; WIDTH];
            for r in 0..rows {
                let row = &x[r * stride + c..][..WIDTH];
                for i in 0..WIDTH {
                    lanes[i] += row[i];
                }
            }
            sums[c..][..WIDTH].iter_mut().zip(lanes).for_each(|(sum, lane)| *sum += lane);
        }
        for r in 0..rows {
            let row = &x[r * stride..][whole..sums.len()];
            sums[whole..].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
    }
}
