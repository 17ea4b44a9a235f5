//! Two-dimensional convolutions as matrix products.
//!
//! The layout is channels-last, `(batch, height, width, channels)`, so the channels under one tap of the kernel are
//! contiguous. A tile of the product takes a pointer for each of its pixels and each tap: nothing is copied, a tap in
//! the padding points to zeros, and nearest-neighbour upsampling of the input is done by the pointers. Images of few
//! channels are gathered a strip of pixels at a time.

#![allow(clippy::needless_range_loop, reason = "indices into tiles of registers, as the formulas have them")]

use super::cpu::{Isa, isa};
use super::matmul::{Dense, Finish, Layout, SMALL, Scratch, linear_over_on, tiles};
use super::norm::sum_rows;
use super::outer::{Rows, products};
use super::pool::{parallel_for, threads};
use super::simd::{Simd, Task, dispatch};
use super::versions::{Shared, for_each_piece, versioned};

/// Kernel size, stride, padding and input upsampling of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Kernel size, `(height, width)`.
    pub kernel: (usize, usize),
    /// Stride of both axes.
    pub stride: usize,
    /// Zero padding at the top and at the left. The padding at the bottom and at the right follows from the size of the
    /// output.
    pub before: (usize, usize),
    /// Factor of nearest-neighbour upsampling of the input before the convolution; 1 for none.
    pub zoom: usize,
}

/// A batch of images, `(batch, height, width, channels)`.
#[derive(Debug, Clone, Copy)]
pub struct Pictures<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Height.
    pub height: usize,
    /// Width.
    pub width: usize,
    /// Number of channels.
    pub channels: usize,
}

/// Rows (terms of the sums) of a packed block of the weight.
const BLOCK_LENGTH: usize = 512;
/// Columns (outputs) of a packed block of the weight.
const BLOCK_COLUMNS: usize = 128;
/// Maximum number of pixels of a job: its outputs stay in cache from block to block.
const MOST_PIXELS: usize = 768;
/// Minimum number of pixels of a job: with fewer, packing the weight costs more than the threads gain.
const FEW_PIXELS: usize = 384;
/// Images of fewer channels are gathered.
const FEW_CHANNELS: usize = 16;
/// Maximum number of pixels of a strip.
const MOST_STRIP: usize = 24;

/// Two-dimensional convolution with zero padding,
/// `y[i, j] = finish(Σ weight[a, b] · x[(i·stride + a - top) / zoom, (j·stride + b - left) / zoom] + bias)`.
///
/// `weight`: `(kernel height, kernel width, channels, outputs)`. `bias`: `(outputs)`. `size`: output height and width.
/// `y`: `(batch, height, width, outputs)`, overwritten. `finish` is called on pieces of the output, so it must be
/// element-wise.
///
/// # Panics
/// If the length of a slice does not match its shape.
///
/// ```
/// use fauna_kernels::conv2d::{Pictures, Window, convolve};
/// let x = Pictures { data: &[1.0, 2.0, 3.0, 4.0], height: 2, width: 2, channels: 1 };
/// let window = Window { kernel: (2, 2), stride: 1, before: (1, 1), zoom: 1 };
/// let mut y = [0.0; 4];
/// convolve(x, &window, &[1.0; 4], None, None, (2, 2), &mut y);
/// assert_eq!(y, [1.0, 3.0, 4.0, 10.0]);
/// ```
pub fn convolve(
    x: Pictures,
    window: &Window,
    weight: &[f32],
    bias: Option<&[f32]>,
    finish: Option<Finish>,
    size: (usize, usize),
    y: &mut [f32],
) {
    convolve_on(isa(), x, window, weight, bias, finish, size, y);
}

#[allow(clippy::too_many_arguments)]
fn convolve_on(
    isa: Isa,
    x: Pictures,
    window: &Window,
    weight: &[f32],
    bias: Option<&[f32]>,
    finish: Option<Finish>,
    size: (usize, usize),
    y: &mut [f32],
) {
    let (picture, made) = (x.height * x.width * x.channels, size.0 * size.1);
    let terms = window.kernel.0 * window.kernel.1 * x.channels;
    assert!(window.stride > 0 && window.zoom > 0, "stride and zoom must be greater than zero");
    assert!(
        picture > 0 && x.data.len().is_multiple_of(picture),
        "x is not batch by height by width by channels"
    );
    assert!(terms > 0 && weight.len().is_multiple_of(terms), "weight is not kernel by channels by outputs");
    let (outputs, pixels) = (weight.len() / terms, x.data.len() / picture * made);
    assert_eq!(y.len(), pixels * outputs, "y is not batch by height by width by outputs");
    assert!(bias.is_none_or(|bias| bias.len() == outputs), "bias is not one per output");
    if y.is_empty() {
        return;
    }
    let zeros = vec![0f32; x.channels];
    let conv = Conv { x, window, weight, bias, finish, size, outputs, terms, zeros: &zeros };
    let (mut pixel_step, mut column_step) = (pixels, outputs.min(BLOCK_COLUMNS));
    if threads() > 1 && pixels * outputs * terms >= SMALL {
        let part = outputs.div_ceil(threads() * 4).next_multiple_of(32);
        column_step = if pixels <= FEW_PIXELS { part.min(column_step) } else { column_step };
        let jobs = (threads() * 8).div_ceil(outputs.div_ceil(column_step));
        pixel_step = pixels.div_ceil(jobs).next_multiple_of(MOST_STRIP).clamp(FEW_PIXELS, MOST_PIXELS);
    }
    let columns = outputs.div_ceil(column_step);
    let y = Shared(y.as_mut_ptr());
    parallel_for(pixels.div_ceil(pixel_step) * columns, |job| {
        let (first, column) = (job / columns * pixel_step, job % columns * column_step);
        let part = Part {
            pixels: (first, pixel_step.min(pixels - first)),
            columns: (column, column_step.min(outputs - column)),
        };
        dispatch(isa, Job { conv: &conv, part, y: y.get() });
    });
}

/// Max pooling with a kernel of 2 and a stride of 2; an odd last row or column is dropped.
///
/// `y`: `(batch, height / 2, width / 2, channels)`, overwritten.
///
/// # Panics
/// If `y` has the wrong length.
pub fn max_pool(x: Pictures, y: &mut [f32]) {
    versioned! {
        fn larger(x: &[f32], y: &mut [f32]) {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = if x > *y || x.is_nan() { x } else { *y };
            }
        }
    }
    let (height, width, channels) = (x.height / 2, x.width / 2, x.channels);
    let row = x.width * channels;
    assert_eq!(
        y.len() * x.height * row,
        x.data.len() * height * width * channels,
        "y is not batch by height / 2 by width / 2 by channels"
    );
    if y.is_empty() {
        return;
    }
    for_each_piece(y, width * channels, |i, y| {
        let first = (i / height * x.height + i % height * 2) * row;
        for (j, y) in y.chunks_exact_mut(channels).enumerate() {
            let pixel = |at: usize| &x.data[first + at..][..channels];
            y.copy_from_slice(pixel(2 * j * channels));
            for at in [(2 * j + 1) * channels, row + 2 * j * channels, row + (2 * j + 1) * channels] {
                larger(pixel(at), y);
            }
        }
    });
}

/// Backward pass of [`max_pool`]: `to_x`, of the shape of `x`, is the gradient `grad` at the first largest element of
/// each window, and zero elsewhere.
///
/// `grad`: `(batch, height / 2, width / 2, channels)`.
///
/// # Panics
/// If the length of a slice does not match its shape.
pub fn max_pool_backward(x: Pictures, grad: &[f32], to_x: &mut [f32]) {
    versioned! {
        fn give(corners: [&[f32]; 4], grad: &[f32], above: &mut [f32], below: &mut [f32]) {
            let n = grad.len();
            let [a, b, c, d] = corners.map(|corner| &corner[..n]);
            let (above, right) = above.split_at_mut(n);
            let (below, last) = below.split_at_mut(n);
            let (right, last) = (&mut right[..n], &mut last[..n]);
            for i in 0..n {
                let (mut top, mut at) = (a[i], 0);
                for (x, corner) in [(b[i], 1), (c[i], 2), (d[i], 3)] {
                    let larger = x > top || x.is_nan();
                    (top, at) = if larger { (x, corner) } else { (top, at) };
                }
                let of = |corner: i32| if at == corner { grad[i] } else { 0.0 };
                (above[i], right[i], below[i], last[i]) = (of(0), of(1), of(2), of(3));
            }
        }
    }
    let (height, width, channels) = (x.height / 2, x.width / 2, x.channels);
    let row = x.width * channels;
    assert_eq!(x.data.len(), to_x.len(), "x and to_x must have the same length");
    assert_eq!(
        grad.len() * x.height * row,
        x.data.len() * height * width * channels,
        "grad is not batch by height / 2 by width / 2 by channels"
    );
    if to_x.is_empty() {
        return;
    }
    for_each_piece(to_x, x.height * row, |n, to_x| {
        let data = &x.data[n * x.height * row..][..to_x.len()];
        to_x[height * 2 * row..].fill(0.0);
        for (i, rows) in to_x.chunks_exact_mut(2 * row).enumerate() {
            let (above, below) = rows.split_at_mut(row);
            above[width * 2 * channels..].fill(0.0);
            below[width * 2 * channels..].fill(0.0);
            for j in 0..width {
                let (at, pixel) = (2 * i * row + 2 * j * channels, 2 * j * channels);
                let corners = [at, at + channels, at + row, at + row + channels].map(|at| &data[at..]);
                let grad = &grad[((n * height + i) * width + j) * channels..][..channels];
                let pair = pixel..pixel + 2 * channels;
                give(corners, grad, &mut above[pair.clone()], &mut below[pair]);
            }
        }
    });
}

/// The gradients of a convolution that are wanted, each overwritten.
#[derive(Debug, Default)]
pub struct Gradients<'a> {
    /// Of the input, of its shape.
    pub x: Option<&'a mut [f32]>,
    /// Of the weight, of its shape.
    pub weight: Option<&'a mut [f32]>,
    /// Of the bias, `(outputs)`.
    pub bias: Option<&'a mut [f32]>,
}

/// Backward pass of [`convolve`] without `finish`: the gradients that `to` has, given the gradient `grad` with respect
/// to the output.
///
/// `weight`: `(kernel height, kernel width, channels, outputs)`. `size`: output height and width. `grad`:
/// `(batch, height, width, outputs)`. They do not depend on the number of threads.
///
/// # Panics
/// If the length of a slice does not match its shape.
///
/// ```
/// use fauna_kernels::conv2d::{Gradients, Pictures, Window, convolve_backward};
/// let x = Pictures { data: &[1.0, 2.0, 3.0, 4.0], height: 2, width: 2, channels: 1 };
/// let window = Window { kernel: (1, 2), stride: 1, before: (0, 0), zoom: 1 };
/// let (mut to_x, mut to_weight) = ([0.0; 4], [0.0; 2]);
/// let to = Gradients { x: Some(&mut to_x), weight: Some(&mut to_weight), bias: None };
/// convolve_backward(x, &window, &[5.0, 6.0], (2, 1), &[1.0, 10.0], to);
/// assert_eq!((to_x, to_weight), ([5.0, 6.0, 50.0, 60.0], [31.0, 42.0]));
/// ```
pub fn convolve_backward(
    x: Pictures,
    window: &Window,
    weight: &[f32],
    size: (usize, usize),
    grad: &[f32],
    to: Gradients,
) {
    convolve_backward_on(isa(), x, window, weight, size, grad, to);
}

fn convolve_backward_on(
    isa: Isa,
    x: Pictures,
    window: &Window,
    weight: &[f32],
    size: (usize, usize),
    grad: &[f32],
    to: Gradients,
) {
    let picture = x.height * x.width * x.channels;
    let terms = window.kernel.0 * window.kernel.1 * x.channels;
    assert!(window.stride > 0 && window.zoom > 0, "stride and zoom must be greater than zero");
    assert!(
        picture > 0 && x.data.len().is_multiple_of(picture),
        "x is not batch by height by width by channels"
    );
    assert!(terms > 0 && weight.len().is_multiple_of(terms), "weight is not kernel by channels by outputs");
    let (outputs, pixels) = (weight.len() / terms, x.data.len() / picture * size.0 * size.1);
    assert_eq!(grad.len(), pixels * outputs, "grad is not batch by height by width by outputs");
    let zeros = vec![0f32; x.channels];
    let conv = Conv { x, window, weight, bias: None, finish: None, size, outputs, terms, zeros: &zeros };
    if let Some(to_x) = to.x {
        assert_eq!(to_x.len(), x.data.len(), "the gradient of x does not have its shape");
        conv.back_to_x(isa, grad, to_x);
    }
    if let Some(to_weight) = to.weight {
        assert_eq!(to_weight.len(), weight.len(), "the gradient of the weight does not have its shape");
        conv.back_to_weight(isa, grad, to_weight);
    }
    if let Some(to_bias) = to.bias {
        assert_eq!(to_bias.len(), outputs, "the gradient of the bias is not one per output");
        sum_rows(grad, to_bias);
    }
}

/// Products that are folded, or pixels that are gathered, at a time: as many floats as stay in cache.
const UNFOLDED: usize = 1 << 20;

/// The arguments of a convolution, and derived sizes.
struct Conv<'a> {
    x: Pictures<'a>,
    window: &'a Window,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    finish: Option<Finish<'a>>,
    size: (usize, usize),
    outputs: usize,
    terms: usize,
    /// A pixel of the padding.
    zeros: &'a [f32],
}

/// A part of the output: the first pixel and column (output channel), and the number of each.
#[derive(Clone, Copy)]
struct Part {
    pixels: (usize, usize),
    columns: (usize, usize),
}

/// One part of a convolution, computed by one thread.
struct Job<'a> {
    conv: &'a Conv<'a>,
    part: Part,
    y: *mut f32,
}

/// A pixel of the output: where its image begins in `x`, and the first row and column of its window.
#[derive(Clone, Copy, Default)]
struct Place {
    picture: usize,
    row: usize,
    column: usize,
}

impl Conv<'_> {
    fn place(&self, pixel: usize) -> Place {
        let (height, width) = self.size;
        let (picture, pixel) = (pixel / (height * width), pixel % (height * width));
        Place {
            picture: picture * self.x.height * self.x.width * self.x.channels,
            row: pixel / width * self.window.stride,
            column: pixel % width * self.window.stride,
        }
    }

    /// Returns the pixel of `x` under tap `(a, b)`; zeros in the padding.
    #[inline(always)]
    fn under(&self, place: Place, a: usize, b: usize) -> &[f32] {
        let (above, left) = self.window.before;
        // In the padding before the first pixel, these wrap around to more than any image has.
        let (mut row, mut column) =
            ((place.row + a).wrapping_sub(above), (place.column + b).wrapping_sub(left));
        if self.window.zoom > 1 {
            (row, column) = (row / self.window.zoom, column / self.window.zoom);
        }
        match row < self.x.height && column < self.x.width {
            true => {
                let first = place.picture + (row * self.x.width + column) * self.x.channels;
                &self.x.data[first..first + self.x.channels]
            }
            false => self.zeros,
        }
    }

    /// Copies the inputs `start..start + row.len()` of an output pixel to `row`.
    fn gather(&self, place: Place, start: usize, row: &mut [f32]) {
        let channels = self.x.channels;
        let mut done = 0;
        while done < row.len() {
            let (tap, skip) = ((start + done) / channels, (start + done) % channels);
            let pixel = &self.under(place, tap / self.window.kernel.1, tap % self.window.kernel.1)[skip..];
            let count = pixel.len().min(row.len() - done);
            row[done..done + count].copy_from_slice(&pixel[..count]);
            done += count;
        }
    }

    /// Number of rows of a packed block: whole taps, or a part of one.
    fn block(&self) -> usize {
        let channels = self.x.channels;
        if !(FEW_CHANNELS..=BLOCK_LENGTH).contains(&channels) {
            return self.terms.min(BLOCK_LENGTH);
        }
        let taps = self.terms / channels;
        let blocks = taps.div_ceil(BLOCK_LENGTH / channels);
        taps.div_ceil(blocks) * channels
    }
}

impl Conv<'_> {
    fn back_to_x(&self, isa: Isa, grad: &[f32], to_x: &mut [f32]) {
        let ((height, width), (above, left)) = (self.window.kernel, self.window.before);
        if self.window.stride > 1 || self.window.zoom > 1 || above >= height || left >= width {
            return self.fold(isa, grad, to_x);
        }
        // A convolution with the kernel turned around, whose channels and outputs change places.
        let (channels, outputs) = (self.x.channels, self.outputs);
        let mut turned = vec![0f32; self.weight.len()];
        for (tap, turned) in turned.chunks_exact_mut((channels * outputs).max(1)).enumerate() {
            let weight = &self.weight[(height * width - 1 - tap) * channels * outputs..];
            for (o, row) in turned.chunks_exact_mut(channels).enumerate() {
                row.iter_mut().enumerate().for_each(|(c, v)| *v = weight[c * outputs + o]);
            }
        }
        if grad.is_empty() {
            return to_x.fill(0.0);
        }
        let before = (height - 1 - above, width - 1 - left);
        let window = Window { kernel: self.window.kernel, stride: 1, before, zoom: 1 };
        let x = Pictures { data: grad, height: self.size.0, width: self.size.1, channels: outputs };
        convolve_on(isa, x, &window, &turned, None, None, (self.x.height, self.x.width), to_x);
    }

    /// The gradient of `x` from products of the gradient with the weight, some rows of pixels at a time.
    fn fold(&self, isa: Isa, grad: &[f32], to_x: &mut [f32]) {
        let (height, width) = self.size;
        let row = self.x.width * self.x.channels;
        to_x.fill(0.0);
        let Ok(weight) = Dense::of_floats(self.weight, self.terms, self.outputs) else { return };
        let most = (UNFOLDED / (width * self.terms).max(1)).clamp(1, height.max(1));
        let mut unfolded = vec![0f32; most * width * self.terms];
        let pictures = to_x.chunks_exact_mut(self.x.height * row);
        for (to_x, grad) in pictures.zip(grad.chunks_exact((height * width * self.outputs).max(1))) {
            for (block, grad) in grad.chunks((most * width * self.outputs).max(1)).enumerate() {
                let pixels = grad.len() / self.outputs;
                let unfolded = &mut unfolded[..pixels * self.terms];
                linear_over_on(isa, grad, self.outputs, pixels, &weight, None, None, unfolded);
                let made = block * most..block * most + pixels / width;
                for_each_piece(to_x, row, |i, to_x| self.fold_row(unfolded, made.clone(), i, to_x));
            }
        }
    }

    /// Adds to row `i` of a picture what the rows `made` of the output have for it.
    fn fold_row(&self, unfolded: &[f32], made: std::ops::Range<usize>, i: usize, to_x: &mut [f32]) {
        let (Window { kernel, stride, before, zoom }, width) = (self.window, self.size.1);
        for zoomed in i * zoom..(i + 1) * zoom {
            for a in 0..kernel.0 {
                let Some(from) = (zoomed + before.0).checked_sub(a).filter(|from| from % stride == 0) else {
                    continue;
                };
                if !made.contains(&(from / stride)) {
                    continue;
                }
                let row = &unfolded[(from / stride - made.start) * width * self.terms..];
                for (j, pixel) in row.chunks_exact(self.terms).take(width).enumerate() {
                    for b in 0..kernel.1 {
                        let column = (j * stride + b).wrapping_sub(before.1) / zoom;
                        if (j * stride + b) < before.1 || column >= self.x.width {
                            continue;
                        }
                        let tap = &pixel[(a * kernel.1 + b) * self.x.channels..][..self.x.channels];
                        let to = &mut to_x[column * self.x.channels..][..self.x.channels];
                        to.iter_mut().zip(tap).for_each(|(v, x)| *v += x);
                    }
                }
            }
        }
    }

    fn back_to_weight(&self, isa: Isa, grad: &[f32], to_weight: &mut [f32]) {
        let (taps, channels) = (self.window.kernel.0 * self.window.kernel.1, self.x.channels);
        if channels >= FEW_CHANNELS {
            let pointers = |first: usize, tap: usize, places: &mut [*const f32]| {
                let (a, b) = (tap / self.window.kernel.1, tap % self.window.kernel.1);
                let mut place = self.place(first);
                let (made, stride) = (self.size, self.window.stride);
                for pointer in places {
                    *pointer = self.under(place, a, b).as_ptr();
                    place.column += stride;
                    if place.column == made.1 * stride {
                        (place.column, place.row) = (0, place.row + stride);
                    }
                    if place.row == made.0 * stride {
                        place.row = 0;
                        place.picture += self.x.height * self.x.width * channels;
                    }
                }
            };
            // SAFETY: a pointer is to a pixel of `x` or to the zeros, both of which have `channels` elements.
            return unsafe {
                products(isa, &Rows { taps, depth: channels, pointers }, grad, self.outputs, to_weight)
            };
        }
        // Images of few channels: all taps of a pixel are gathered to one row.
        let most = (UNFOLDED / self.terms).max(1);
        let pixels = grad.len() / self.outputs.max(1);
        let mut gathered = vec![0f32; most.min(pixels) * self.terms];
        let mut sums = vec![0f32; if pixels > most { to_weight.len() } else { 0 }];
        to_weight.fill(0.0);
        for (i, grad) in grad.chunks((most * self.outputs).max(1)).enumerate() {
            let gathered = &mut gathered[..grad.len() / self.outputs * self.terms];
            for_each_piece(gathered, self.terms * 64, |piece, rows| {
                for (r, row) in rows.chunks_exact_mut(self.terms).enumerate() {
                    self.gather(self.place(i * most + piece * 64 + r), 0, row);
                }
            });
            let pointers = |first: usize, _: usize, places: &mut [*const f32]| {
                for (place, row) in places.iter_mut().zip(gathered[first * self.terms..].chunks(self.terms)) {
                    *place = row.as_ptr();
                }
            };
            let rows = Rows { taps: 1, depth: self.terms, pointers };
            let out = if pixels > most { &mut sums[..] } else { &mut to_weight[..] };
            // SAFETY: each pointer is to a whole gathered row.
            unsafe { products(isa, &rows, grad, self.outputs, out) };
            if pixels > most {
                to_weight.iter_mut().zip(&sums).for_each(|(v, sum)| *v += sum);
            }
        }
    }
}

impl Task for Job<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (conv, width) = (self.conv, tiles::panel_width::<S>());
        let (channels, outputs) = (conv.x.channels, conv.outputs);
        let ((first, pixels), (column, columns)) = (self.part.pixels, self.part.columns);
        let (strip, panels) = ((2 * S::PANEL_ROWS).min(MOST_STRIP), columns.div_ceil(width));
        let (block, few) = (conv.block(), channels < FEW_CHANNELS);
        let mut packed = Scratch::new(panels * width * block);
        let packed = packed.as_mut_ptr();
        let mut gathered = vec![0f32; if few { strip * block } else { 0 }];
        let most_taps = if few { 1 } else { block.div_ceil(channels) };
        let mut pointers = vec![std::ptr::null::<f32>(); most_taps * strip];
        let mut start = 0;
        while start < conv.terms {
            // A block never ends inside one tap and begins inside the next.
            let to_tap = if !few && block < channels { channels - start % channels } else { block };
            let length = block.min(conv.terms - start).min(to_tap);
            let (skip, depth) = if few { (0, length) } else { (start % channels, length.min(channels)) };
            let taps = length / depth;
            // SAFETY: the block's rows and columns are inside the weight, and the scratch holds all its panels.
            unsafe {
                let w = conv.weight.as_ptr().add(start * outputs + column);
                tiles::pack::<S, f32>((w, outputs, Layout::InOut), columns, length, packed);
            }
            for r in (0..pixels).step_by(strip) {
                let rows = strip.min(pixels - r);
                for i in 0..rows {
                    let place = conv.place(first + r + i);
                    if few {
                        let row = &mut gathered[i * length..][..length];
                        conv.gather(place, start, row);
                        pointers[i] = row.as_ptr();
                        continue;
                    }
                    for t in 0..taps {
                        let tap = start / channels + t;
                        let pixel = conv.under(place, tap / conv.window.kernel.1, tap % conv.window.kernel.1);
                        pointers[t * strip + i] = pixel[skip..skip + depth].as_ptr();
                    }
                }
                // SAFETY: each pointer is valid for `depth` numbers, the strip is inside `y`, and is this job's own.
                unsafe {
                    let y = self.y.add((first + r) * outputs + column);
                    for panel in 0..panels {
                        let at = panel * width;
                        tiles::scattered::<S>(
                            (pointers.as_ptr(), strip, rows),
                            (packed.add(at * length), width.min(columns - at)),
                            (taps, depth),
                            (y.add(at), outputs),
                            start > 0,
                        );
                    }
                    if start + length == conv.terms {
                        self.finish(y, rows);
                    }
                }
            }
            start += length;
        }
    }
}

impl Job<'_> {
    /// Adds the bias to finished pixels and calls `finish`.
    #[inline(always)]
    unsafe fn finish(&self, y: *mut f32, rows: usize) {
        let (column, columns) = self.part.columns;
        for r in 0..rows {
            // SAFETY: the row is this job's own.
            let row = unsafe { std::slice::from_raw_parts_mut(y.add(r * self.conv.outputs), columns) };
            if let Some(bias) = self.conv.bias {
                for (y, bias) in row.iter_mut().zip(&bias[column..]) {
                    *y += bias;
                }
            }
            if let Some(finish) = self.conv.finish {
                finish(row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::numbers;

    /// The convolution from its formula, in float64.
    fn plainly(
        x: Pictures,
        window: &Window,
        weight: &[f32],
        bias: &[f32],
        (height, width): (usize, usize),
    ) -> Vec<f64> {
        let picture = x.height * x.width * x.channels;
        let mut y = Vec::new();
        for n in 0..x.data.len() / picture {
            for (i, j) in (0..height * width).map(|p| (p / width, p % width)) {
                for o in 0..bias.len() {
                    let mut sum = f64::from(bias[o]);
                    for (a, b) in (0..window.kernel.0).flat_map(|a| (0..window.kernel.1).map(move |b| (a, b)))
                    {
                        let row = (i * window.stride + a) as isize - window.before.0 as isize;
                        let column = (j * window.stride + b) as isize - window.before.1 as isize;
                        if row < 0 || column < 0 {
                            continue;
                        }
                        let (row, column) = (row as usize / window.zoom, column as usize / window.zoom);
                        if row >= x.height || column >= x.width {
                            continue;
                        }
                        for c in 0..x.channels {
                            let x = x.data[n * picture + (row * x.width + column) * x.channels + c];
                            let tap = (a * window.kernel.1 + b) * (weight.len() / bias.len())
                                / (window.kernel.0 * window.kernel.1);
                            sum += f64::from(x) * f64::from(weight[(tap + c) * bias.len() + o]);
                        }
                    }
                    y.push(sum);
                }
            }
        }
        y
    }

    #[test]
    fn every_instruction_set_agrees_with_a_plain_loop() {
        let window = |kernel, stride, before, zoom| Window { kernel, stride, before, zoom };
        for isa in Isa::all_available() {
            for (window, channels, outputs, (height, width), size) in [
                (window((3, 3), 1, (1, 1), 1), 3, 5, (7, 9), (7, 9)),
                (window((7, 7), 1, (3, 3), 1), 3, 17, (6, 5), (6, 5)),
                (window((3, 3), 1, (1, 1), 1), 20, 33, (5, 7), (5, 7)),
                (window((3, 3), 1, (1, 1), 2), 16, 40, (4, 3), (8, 6)),
                (window((3, 3), 2, (0, 0), 1), 17, 3, (6, 8), (3, 4)),
                (window((1, 1), 1, (0, 0), 1), 600, 6, (3, 3), (3, 3)),
                (window((3, 3), 1, (1, 1), 1), 513, 2, (2, 3), (2, 3)),
                (window((2, 3), 3, (1, 2), 3), 130, 4, (3, 2), (3, 4)),
                (window((4, 4), 1, (2, 2), 1), 64, 140, (21, 20), (21, 20)),
            ] {
                let data = numbers(2 * height * width * channels, 1);
                let x = Pictures { data: &data, height, width, channels };
                let weight = numbers(window.kernel.0 * window.kernel.1 * channels * outputs, 2);
                let bias = numbers(outputs, 3);
                let mut y = vec![f32::NAN; 2 * size.0 * size.1 * outputs];
                let double = |row: &mut [f32]| row.iter_mut().for_each(|y| *y *= 2.0);
                convolve_on(isa, x, &window, &weight, Some(&bias), Some(&double), size, &mut y);
                let wanted = plainly(x, &window, &weight, &bias, size);
                for (i, (&y, &wanted)) in y.iter().zip(&wanted).enumerate() {
                    let near = (f64::from(y) - 2.0 * wanted).abs() <= 2e-4;
                    assert!(
                        near,
                        "{isa:?} {window:?} {channels} to {outputs}: {i} is {y}, not {}",
                        2.0 * wanted
                    );
                }
            }
        }
    }

    #[test]
    fn gradients_are_the_transposes_of_the_convolution_on_every_instruction_set() {
        let window = |kernel, stride, before, zoom| Window { kernel, stride, before, zoom };
        for isa in Isa::all_available() {
            for (window, channels, outputs, (height, width), size) in [
                (window((3, 3), 1, (1, 1), 1), 3, 5, (7, 9), (7, 9)),
                (window((3, 3), 1, (1, 1), 1), 20, 33, (5, 7), (5, 7)),
                (window((3, 3), 1, (1, 1), 2), 16, 40, (4, 3), (8, 6)),
                (window((3, 3), 2, (0, 0), 1), 17, 3, (6, 8), (3, 4)),
                (window((4, 4), 4, (0, 0), 1), 3, 65, (8, 12), (2, 3)),
                (window((1, 1), 1, (0, 0), 1), 60, 6, (3, 3), (3, 3)),
                (window((2, 3), 1, (2, 1), 1), 18, 4, (3, 4), (4, 4)),
                (window((2, 3), 3, (1, 2), 3), 30, 4, (3, 2), (3, 4)),
                (window((3, 2), 1, (1, 0), 1), 70, 290, (9, 8), (9, 7)),
                (window((3, 3), 1, (1, 1), 1), 1, 2, (70, 41), (70, 41)),
            ] {
                let data = numbers(2 * height * width * channels, 1);
                let x = Pictures { data: &data, height, width, channels };
                let weight = numbers(window.kernel.0 * window.kernel.1 * channels * outputs, 2);
                let grad = numbers(2 * size.0 * size.1 * outputs, 3);
                let (mut to_x, mut to_weight) = (vec![f32::NAN; data.len()], vec![f32::NAN; weight.len()]);
                let mut to_bias = vec![f32::NAN; outputs];
                let to =
                    Gradients { x: Some(&mut to_x), weight: Some(&mut to_weight), bias: Some(&mut to_bias) };
                convolve_backward_on(isa, x, &window, &weight, size, &grad, to);
                let (by_x, by_weight) = plainly_back(x, &window, &weight, outputs, size, &grad);
                let by_bias: Vec<f64> = (0..outputs)
                    .map(|o| grad.iter().skip(o).step_by(outputs).map(|g| f64::from(*g)).sum())
                    .collect();
                for (name, got, wanted) in
                    [("x", &to_x, by_x), ("weight", &to_weight, by_weight), ("bias", &to_bias, by_bias)]
                {
                    let size = wanted.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
                    for (i, (&got, &wanted)) in got.iter().zip(&wanted).enumerate() {
                        let near = (f64::from(got) - wanted).abs() <= 3e-6 * size;
                        assert!(
                            near,
                            "{isa:?} {window:?} {channels} to {outputs}: {name} {i} is {got}, not {wanted}"
                        );
                    }
                }
            }
        }
    }

    /// The gradients of `x` and of the weight from the formula, in float64.
    fn plainly_back(
        x: Pictures,
        window: &Window,
        weight: &[f32],
        outputs: usize,
        (height, width): (usize, usize),
        grad: &[f32],
    ) -> (Vec<f64>, Vec<f64>) {
        let (mut to_x, mut to_weight) = (vec![0.0; x.data.len()], vec![0.0; weight.len()]);
        for (p, grad) in grad.chunks(outputs).enumerate() {
            let (n, i, j) = (p / (height * width), p / width % height, p % width);
            for (a, b) in (0..window.kernel.0).flat_map(|a| (0..window.kernel.1).map(move |b| (a, b))) {
                let row = (i * window.stride + a) as isize - window.before.0 as isize;
                let column = (j * window.stride + b) as isize - window.before.1 as isize;
                if row < 0 || column < 0 {
                    continue;
                }
                let (row, column) = (row as usize / window.zoom, column as usize / window.zoom);
                if row >= x.height || column >= x.width {
                    continue;
                }
                for c in 0..x.channels {
                    let at = ((n * x.height + row) * x.width + column) * x.channels + c;
                    for (o, &g) in grad.iter().enumerate() {
                        let w = ((a * window.kernel.1 + b) * x.channels + c) * outputs + o;
                        to_x[at] += f64::from(g) * f64::from(weight[w]);
                        to_weight[w] += f64::from(g) * f64::from(x.data[at]);
                    }
                }
            }
        }
        (to_x, to_weight)
    }

    #[test]
    fn the_gradient_of_a_maximum_goes_to_the_first_largest_element() {
        for (height, width, channels) in [(2, 2, 1), (5, 7, 3), (4, 6, 20)] {
            let n = 2 * height * width * channels;
            // Few values, so that there are ties.
            let data: Vec<f32> = numbers(n, 1).iter().map(|v| (v * 2.0).round()).collect();
            let x = Pictures { data: &data, height, width, channels };
            let grad = numbers(2 * (height / 2) * (width / 2) * channels, 2);
            let mut wanted = vec![0f32; n];
            for (i, &g) in grad.iter().enumerate() {
                let (c, j) = (i % channels, i / channels % (width / 2));
                let row = i / channels / (width / 2);
                let (picture, row) = (row / (height / 2), row % (height / 2));
                let at = |a: usize, b: usize| {
                    ((picture * height + 2 * row + a) * width + 2 * j + b) * channels + c
                };
                let corners = [at(0, 0), at(0, 1), at(1, 0), at(1, 1)];
                let first = corners.into_iter().reduce(|a, b| if data[b] > data[a] { b } else { a });
                wanted[first.unwrap()] = g;
            }
            let mut got = vec![f32::NAN; n];
            max_pool_backward(x, &grad, &mut got);
            assert_eq!(got, wanted);
        }
    }
}
