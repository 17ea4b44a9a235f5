use super::*;

/// Reproducible numbers in [-1, 1), exact in bfloat16 and float16.
pub(crate) fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 57) as i64 - 64) as f32 / 64.0
    };
    (0..n).map(next).collect()
}

fn encode(w: &[f32], elem: Elem) -> Vec<u8> {
    let bytes = |&w: &f32| match elem {
        Elem::F32 => w.to_le_bytes().to_vec(),
        Elem::Bf16 => half::bf16::from_f32(w).to_le_bytes().to_vec(),
        Elem::F16 => half::f16::from_f32(w).to_le_bytes().to_vec(),
    };
    w.iter().flat_map(bytes).collect()
}

/// `y = x · w + bias` in f64, `w` in the layout `layout`.
fn plainly(x: &[f32], rows: usize, w: &[f32], layout: Layout, n: usize, bias: Option<&[f32]>) -> Vec<f64> {
    let k = x.len() / rows.max(1);
    let mut y = Vec::new();
    for r in 0..rows {
        for c in 0..n {
            let weight = |i: usize| if layout == Layout::OutIn { w[c * k + i] } else { w[i * n + c] };
            let sum: f64 = (0..k).map(|i| f64::from(x[r * k + i]) * f64::from(weight(i))).sum();
            y.push(sum + bias.map_or(0.0, |b| f64::from(b[c])));
        }
    }
    y
}

#[track_caller]
fn assert_near(y: &[f32], wanted: &[f64], tolerance: f64, what: &str) {
    assert_eq!(y.len(), wanted.len(), "{what}");
    for (i, (&y, &e)) in y.iter().zip(wanted).enumerate() {
        assert!((f64::from(y) - e).abs() <= tolerance, "{what}: element {i} is {y}, not {e}");
    }
}

#[test]
fn every_instruction_set_element_type_and_layout_agrees_with_a_plain_loop() {
    for isa in Isa::all_available() {
        for (k, n) in [(1, 1), (6, 3), (7, 17), (54, 33), (88, 5), (576, 70), (1100, 31), (0, 3)] {
            for rows in [1, 2, 3, 5, 11, 33, 101] {
                let (x, w, bias) = (numbers(rows * k, 1), numbers(n * k, 2), numbers(n, 3));
                for layout in [Layout::OutIn, Layout::InOut] {
                    let wanted = plainly(&x, rows, &w, layout, n, Some(&bias));
                    for elem in [Elem::F32, Elem::Bf16, Elem::F16] {
                        let data = encode(&w, elem);
                        let weight = Dense::new(&data, elem, layout, n, k).unwrap();
                        let mut y = vec![f32::NAN; rows * n];
                        linear_on(isa, &x, rows, &weight, Some(&bias), Compute::F32, None, &mut y);
                        let what = format!("{isa:?} {elem:?} {layout:?} ({rows}, {k}) x {n}");
                        assert_near(&y, &wanted, 1e-5 * (k as f64).sqrt().max(1.0), &what);
                        // All these numbers are exact in bfloat16.
                        linear_on(isa, &x, rows, &weight, Some(&bias), Compute::Bf16, None, &mut y);
                        assert_near(
                            &y,
                            &wanted,
                            1e-5 * (k as f64).sqrt().max(1.0),
                            &format!("{what} in bf16"),
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn work_split_over_threads_covers_every_output_once() {
    for isa in Isa::all_available() {
        for (rows, k, n) in [(1, 300, 1000), (3, 64, 2000), (300, 40, 130), (700, 20, 9), (16, 200, 321)] {
            let (x, w) = (numbers(rows * k, 4), numbers(n * k, 5));
            for layout in [Layout::OutIn, Layout::InOut] {
                let data = encode(&w, Elem::F32);
                let weight = Dense::new(&data, Elem::F32, layout, n, k).unwrap();
                let mut y = vec![f32::NAN; rows * n];
                let negate = |y: &mut [f32]| y.iter_mut().for_each(|y| *y = -*y);
                linear_on(isa, &x, rows, &weight, None, Compute::F32, Some(&negate), &mut y);
                let wanted: Vec<f64> = plainly(&x, rows, &w, layout, n, None).iter().map(|y| -y).collect();
                assert_near(&y, &wanted, 1e-4, &format!("{isa:?} {layout:?} ({rows}, {k}) x {n}"));
            }
        }
    }
}

#[test]
fn weights_need_not_be_aligned() {
    for isa in Isa::all_available() {
        for elem in [Elem::F32, Elem::Bf16, Elem::F16] {
            let (x, w) = (numbers(2 * 37, 6), numbers(5 * 37, 7));
            let mut data = vec![0];
            data.extend(encode(&w, elem));
            let weight = Dense::new(&data[1..], elem, Layout::OutIn, 5, 37).unwrap();
            let mut y = vec![0.0; 10];
            linear_on(isa, &x, 2, &weight, None, Compute::F32, None, &mut y);
            assert_near(&y, &plainly(&x, 2, &w, Layout::OutIn, 5, None), 1e-4, &format!("{isa:?} {elem:?}"));
        }
    }
}

#[test]
fn special_values_are_converted_exactly() {
    let halves: Vec<u16> = vec![0x7c00, 0xfc00, 0x0001, 0x8001, 0x03ff, 0x0400, 0x7bff, 0x8000];
    for isa in Isa::all_available() {
        for half in &halves {
            let data: Vec<u8> = half.to_le_bytes().to_vec();
            for (elem, wanted) in [
                (Elem::F16, half::f16::from_bits(*half).to_f32()),
                (Elem::Bf16, half::bf16::from_bits(*half).to_f32()),
            ] {
                let weight = Dense::new(&data, elem, Layout::OutIn, 1, 1).unwrap();
                let mut y = [0.0];
                linear_on(isa, &[1.0], 1, &weight, None, Compute::F32, None, &mut y);
                // A bfloat16 subnormal may be flushed by the processor's settings, never by more than its size.
                assert!(
                    y[0] == wanted || (y[0] - wanted).abs() < 1e-38,
                    "{isa:?} {elem:?} {half:#x}: {}",
                    y[0]
                );
            }
        }
    }
}

#[test]
fn a_weight_of_the_wrong_size_is_refused() {
    let error = Dense::new(&[0; 10], Elem::F32, Layout::OutIn, 1, 3).unwrap_err();
    assert!(error.to_string().contains("1 by 3 in F32, found 10 bytes"), "{error}");
    assert!(Dense::new(&[], Elem::F32, Layout::OutIn, usize::MAX, 3).is_err());
}

#[test]
fn bfloat16_computing_rounds_inputs_and_weights() {
    let rough = |n: usize, seed| -> Vec<f32> { numbers(n, seed).iter().map(|x| x * 1.2345).collect() };
    let round = |x: &[f32]| -> Vec<f32> { x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect() };
    for isa in Isa::all_available() {
        for (rows, k, n) in [(1, 33, 20), (3, 64, 17), (50, 35, 40)] {
            let (x, w) = (rough(rows * k, 8), rough(k * n, 9));
            for layout in [Layout::OutIn, Layout::InOut] {
                let wanted = plainly(&round(&x), rows, &round(&w), layout, n, None);
                for elem in [Elem::F32, Elem::Bf16] {
                    let data = encode(&w, elem);
                    let weight = Dense::new(&data, elem, layout, n, k).unwrap();
                    let mut y = vec![0.0; rows * n];
                    linear_on(isa, &x, rows, &weight, None, Compute::Bf16, None, &mut y);
                    assert_near(
                        &y,
                        &wanted,
                        2e-5,
                        &format!("{isa:?} {elem:?} {layout:?} ({rows}, {k}) x {n}"),
                    );
                }
            }
        }
    }
}

#[test]
fn rounding_to_bfloat16_is_to_nearest_even_and_keeps_special_values() {
    for bits in
        (0..=u32::MAX).step_by(9973).chain([0x7f80_0000, 0xff80_0000, 0x7f80_0001, 0x7f7f_ffff, 0x3f80_8000])
    {
        let x = f32::from_bits(bits);
        assert_eq!(tiles::to_bf16(x), u32::from(half::bf16::from_f32(x).to_bits()), "{bits:#x}");
    }
}

#[test]
fn strided_batches() {
    for isa in Isa::all_available() {
        for (batch, m, k, n) in
            [(1, 2, 3, 4), (7, 5, 33, 9), (3, 40, 17, 35), (20, 30, 20, 30), (2, 3, 0, 2), (0, 1, 1, 1)]
        {
            for layout in [Layout::InOut, Layout::OutIn] {
                for shared in [false, true] {
                    // Rows with two elements between them.
                    let (rows, columns) = if layout == Layout::InOut { (k, n) } else { (n, k) };
                    let (a_row, b_row) = (k + 2, columns + 2);
                    let (a, b) = (numbers(batch * m * a_row, 10), numbers(batch.max(1) * rows * b_row, 11));
                    let b_batch = if shared { 0 } else { rows * b_row };
                    let mut y = vec![f32::NAN; batch * m * n];
                    let a_view = Matrices { data: &a, batch: m * a_row, row: a_row };
                    let b_view = Matrices { data: &b, batch: b_batch, row: b_row };
                    matmul_on(isa, batch, [m, k, n], a_view, b_view, layout, &mut y);
                    for i in 0..batch {
                        let dense = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                            (0..rows).flat_map(|r| x[r * (columns + 2)..][..columns].to_vec()).collect()
                        };
                        let (a, b) =
                            (dense(&a[i * m * a_row..], m, k), dense(&b[i * b_batch..], rows, columns));
                        let wanted = plainly(&a, m, &b, layout, n, None);
                        let what = format!("{isa:?} {layout:?} {i} of {batch}, ({m}, {k}) x {n}");
                        assert_near(&y[i * m * n..][..m * n], &wanted, 1e-4, &what);
                    }
                }
            }
        }
    }
}

const GRADIENT_SHAPES: [(usize, usize, usize); 11] = [
    (1, 1, 1),
    (3, 6, 5),
    (2, 17, 7),
    (33, 54, 40),
    (300, 5, 88),
    (7, 576, 70),
    (301, 31, 130),
    (25, 300, 700),
    (600, 97, 33),
    (0, 3, 4),
    (5, 0, 3),
];

/// The transpose of `(rows, columns)`.
fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| x[r * columns + c])).collect()
}

#[test]
fn the_gradient_of_the_input_agrees_with_a_plain_loop() {
    for isa in Isa::all_available() {
        for (rows, k, n) in GRADIENT_SHAPES {
            let (grad, w, before) = (numbers(rows * n, 1), numbers(n * k, 2), numbers(rows * k, 3));
            for layout in [Layout::OutIn, Layout::InOut] {
                let transposed = if layout == Layout::OutIn { Layout::InOut } else { Layout::OutIn };
                let wanted = plainly(&grad, rows, &w, transposed, k, None);
                for elem in [Elem::F32, Elem::Bf16, Elem::F16] {
                    let data = encode(&w, elem);
                    let weight = Dense::new(&data, elem, layout, n, k).unwrap();
                    // All these numbers are exact in bfloat16.
                    for (compute, accumulate) in [
                        (Compute::F32, false),
                        (Compute::F32, true),
                        (Compute::Bf16, false),
                        (Compute::Bf16, true),
                    ] {
                        let mut dx = if accumulate { before.clone() } else { vec![f32::NAN; rows * k] };
                        gradients::input_gradient_on(isa, &grad, rows, &weight, compute, accumulate, &mut dx);
                        let wanted: Vec<f64> = wanted
                            .iter()
                            .zip(&before)
                            .map(|(y, b)| y + if accumulate { f64::from(*b) } else { 0.0 })
                            .collect();
                        let what = format!("{isa:?} {elem:?} {layout:?} {compute:?} ({rows}, {n}) x {k}");
                        assert_near(&dx, &wanted, 1e-5 * (n as f64).sqrt().max(1.0), &what);
                    }
                }
            }
        }
    }
}

#[test]
fn the_gradients_of_the_weight_and_the_bias_agree_with_a_plain_loop() {
    for isa in Isa::all_available() {
        for (rows, k, n) in GRADIENT_SHAPES {
            let (grad, x, before) = (numbers(rows * n, 4), numbers(rows * k, 5), numbers(n * k, 6));
            let wanted = match rows {
                0 => vec![0.0; n * k],
                _ => plainly(&transpose(&grad, rows, n), n, &x, Layout::InOut, k, None),
            };
            for layout in [Layout::OutIn, Layout::InOut] {
                for accumulate in [false, true] {
                    let mut dw = if accumulate { before.clone() } else { vec![f32::NAN; n * k] };
                    let sizes = (n, k);
                    gradients::weight_gradient_on(isa, &grad, &x, rows, sizes, layout, accumulate, &mut dw);
                    let index =
                        |o: usize, i: usize| if layout == Layout::OutIn { o * k + i } else { i * n + o };
                    let mut all = vec![0.0; n * k];
                    for (o, i) in (0..n).flat_map(|o| (0..k).map(move |i| (o, i))) {
                        let before = if accumulate { f64::from(before[index(o, i)]) } else { 0.0 };
                        all[index(o, i)] = wanted[o * k + i] + before;
                    }
                    let what = format!("{isa:?} {layout:?} ({rows}, {n}) x {k}");
                    assert_near(&dw, &all, 1e-5 * (rows as f64).sqrt().max(1.0), &what);
                }
            }
        }
    }
    for (rows, n) in [(1, 1), (3, 64), (100, 130), (5, 3000), (0, 7)] {
        let (grad, before) = (numbers(rows * n, 7), numbers(n, 8));
        let sum = |c: usize| (0..rows).map(|r| f64::from(grad[r * n + c])).sum::<f64>();
        for accumulate in [false, true] {
            let mut db = before.clone();
            bias_gradient(&grad, rows, accumulate, &mut db);
            let old = |c: usize| if accumulate { f64::from(before[c]) } else { 0.0 };
            let wanted: Vec<f64> = (0..n).map(|c| sum(c) + old(c)).collect();
            assert_near(&db, &wanted, 1e-6 * rows as f64, &format!("({rows}, {n})"));
        }
    }
}
