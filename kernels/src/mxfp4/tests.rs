use super::*;
use crate::matmul::tests::numbers;

/// Random blocks and scales, with values around one.
fn any_weights(outputs: usize, inputs: usize, seed: u64) -> (Vec<u8>, Vec<u8>) {
    let bytes = |n, seed| numbers(n, seed).into_iter().map(|x| (x * 64.0) as i8 as u8);
    let count = outputs * inputs / BLOCK;
    let low = bytes(count * BLOCK_BYTES, seed);
    let blocks = low.zip(bytes(count * BLOCK_BYTES, seed + 1)).map(|(low, high)| low & 15 | high << 4);
    (blocks.collect(), bytes(count, seed + 2).map(|byte| 121 + byte % 8).collect())
}

/// `y = x · wᵀ + bias` in f64.
fn plainly(x: &[f32], rows: usize, w: &[f32], outputs: usize, bias: &[f32]) -> Vec<f64> {
    let inputs = x.len() / rows;
    let sum = |r: usize, o: usize| -> f64 {
        let (x, w) = (&x[r * inputs..][..inputs], &w[o * inputs..][..inputs]);
        x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
    };
    (0..rows * outputs).map(|i| sum(i / outputs, i % outputs) + f64::from(bias[i % outputs])).collect()
}

#[test]
fn a_block_computed_by_hand() {
    let table = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    // Every code twice, the first of a pair in the low nibble: 0 and 1, 2 and 3, …, 14 and 15.
    let blocks: Vec<u8> = (0..16).map(|i| (2 * i % 16) | (2 * i % 16 + 1) << 4).collect();
    let mut out = [0.0; 32];
    dequantize(&blocks, &[129], &mut out);
    for (i, value) in out.iter().enumerate() {
        let sign = if i % 16 < 8 { 4.0 } else { -4.0 };
        assert_eq!(*value, sign * table[i % 8], "number {i}");
    }
}

#[test]
fn every_instruction_set_agrees_with_a_plain_loop() {
    for isa in Isa::all_available() {
        for (inputs, outputs) in [(32, 1), (32, 9), (96, 3), (128, 5), (160, 33), (2880, 7), (352, 70)] {
            let (blocks, scales) = any_weights(outputs, inputs, 1);
            let mut wide = vec![0.0; outputs * inputs];
            dequantize(&blocks, &scales, &mut wide);
            let bias = numbers(outputs, 5);
            for rows in [1, 2, 3, 4, 5, 6, 8, 13, 24, 25, 40] {
                let x = numbers(rows * inputs, 6);
                let wanted = plainly(&x, rows, &wide, outputs, &bias);
                // All these numbers are exact in bfloat16.
                for compute in [Compute::F32, Compute::Bf16] {
                    let mut y = vec![f32::NAN; rows * outputs];
                    let w = Mxfp4::new(&blocks, &scales, outputs, inputs).unwrap();
                    linear_with(isa, &x, rows, &w, Some(&bias), compute, None, &mut y);
                    for (i, (y, wanted)) in y.iter().zip(&wanted).enumerate() {
                        let off = (f64::from(*y) - wanted).abs();
                        let what = format!("{isa:?} {compute:?} ({rows}, {inputs}) x {outputs}");
                        assert!(off <= 1e-5 * (inputs as f64).sqrt(), "{what}: {i} is {y}, not {wanted}");
                    }
                }
            }
        }
    }
}

#[test]
fn work_split_over_threads_covers_every_output_once() {
    let (inputs, outputs) = (64, 1001);
    let (blocks, scales) = any_weights(outputs, inputs, 7);
    let mut wide = vec![0.0; outputs * inputs];
    dequantize(&blocks, &scales, &mut wide);
    let w = Mxfp4::new(&blocks, &scales, outputs, inputs).unwrap();
    let negate = |y: &mut [f32]| y.iter_mut().for_each(|y| *y = -*y);
    for isa in Isa::all_available() {
        for rows in [1, 4, 30] {
            let x = numbers(rows * inputs, 8);
            let mut y = vec![f32::NAN; rows * outputs];
            linear_with(isa, &x, rows, &w, None, Compute::F32, Some(&negate), &mut y);
            let wanted = plainly(&x, rows, &wide, outputs, &vec![0.0; outputs]);
            let near = y.iter().zip(&wanted).all(|(y, wanted)| (f64::from(*y) + wanted).abs() < 1e-4);
            assert!(near, "{isa:?}, {rows} rows");
        }
    }
}

#[test]
fn every_instruction_set_agrees_exactly_if_nothing_is_rounded() {
    // Small integers: sums are exact in any order.
    let (inputs, outputs) = (416, 37);
    let (blocks, _) = any_weights(outputs, inputs, 9);
    let scales: Vec<u8> = (0..outputs * inputs / BLOCK).map(|i| 126 + (i % 3) as u8).collect();
    let w = Mxfp4::new(&blocks, &scales, outputs, inputs).unwrap();
    for rows in 1..=40 {
        let x: Vec<f32> = (0..rows * inputs).map(|i| (i % 17) as f32 - 8.0).collect();
        let run = |isa| {
            let mut y = vec![f32::NAN; rows * outputs];
            linear_with(isa, &x, rows, &w, None, Compute::F32, None, &mut y);
            y
        };
        let plain = run(Isa::Portable);
        assert!(plain.iter().any(|y| y.abs() > 100.0));
        for isa in Isa::all_available() {
            assert_eq!(run(isa), plain, "{isa:?}, {rows} rows");
        }
    }
}

#[test]
fn activations_are_rounded_only_with_bfloat16_compute() {
    let inputs = 96;
    let mut blocks = vec![0; inputs / 2];
    blocks[3] = 0x20; // 1 at place 7
    let scales = [127, 127, 127];
    let w = Mxfp4::new(&blocks, &scales, 1, inputs).unwrap();
    let (exact, rounded) = (1.0 + 1.0 / 4096.0, 1.0);
    for isa in Isa::all_available() {
        for rows in [1, 4, 5, 40] {
            let x = vec![exact; rows * inputs];
            for (compute, wanted) in [(Compute::F32, exact), (Compute::Bf16, rounded)] {
                let mut y = vec![0.0; rows];
                linear_with(isa, &x, rows, &w, None, compute, None, &mut y);
                assert_eq!(y, vec![wanted; rows], "{isa:?} {compute:?}");
            }
        }
    }
}

#[test]
fn the_smallest_and_the_largest_scales() {
    // The smallest is subnormal; the largest is NaN in the specification.
    let (inputs, power) = (64, |n: i32| 2f64.powi(n));
    let blocks = vec![0x77; inputs / 2]; // sixes
    for isa in Isa::all_available() {
        for rows in [1, 7, 40] {
            let x = vec![power(100) as f32; rows * inputs];
            for (scale, wanted) in [(0, power(-127)), (1, power(-126)), (100, power(-27)), (124, power(-3))] {
                let scales = [scale; 2];
                let w = Mxfp4::new(&blocks, &scales, 1, inputs).unwrap();
                let mut y = vec![0.0; rows];
                linear_with(isa, &x, rows, &w, None, Compute::F32, None, &mut y);
                let wanted = (wanted * power(100) * 6.0 * 64.0) as f32;
                assert_eq!(y, vec![wanted; rows], "{isa:?} {scale}");
            }
            let w = Mxfp4::new(&blocks, &[127, 255], 1, inputs).unwrap();
            let mut y = vec![0.0; rows];
            linear_with(isa, &x, rows, &w, None, Compute::F32, None, &mut y);
            assert!(y.iter().all(|y| !y.is_finite()), "{isa:?}");
        }
    }
}

#[test]
fn weights_of_the_wrong_size_are_refused() {
    for (blocks, scales, outputs, inputs) in [
        (16, 1, 1, 33),
        (16, 1, 1, 31),
        (15, 1, 1, 32),
        (16, 2, 1, 32),
        (17, 1, 1, 32),
        (0, 0, usize::MAX, 96),
    ] {
        let error = Mxfp4::new(&vec![0; blocks], &vec![0; scales], outputs, inputs).unwrap_err();
        assert!(error.to_string().contains(&format!("{blocks} bytes and {scales} scales")), "{error}");
    }
    for (outputs, inputs, rows) in [(0, 32, 1), (3, 0, 2), (3, 0, 9)] {
        let w = Mxfp4::new(&[], &[], outputs, inputs).unwrap();
        let mut y = vec![f32::NAN; rows * outputs];
        linear(&vec![0.0; rows * inputs], rows, &w, Some(&vec![2.0; outputs]), Compute::F32, None, &mut y);
        assert_eq!(y, vec![2.0; rows * outputs]);
    }
}

#[test]
fn the_gradient_of_the_input_is_that_of_dequantized_weights_on_every_instruction_set() {
    for (inputs, outputs) in [(32, 1), (32, 9), (96, 3), (160, 33), (352, 70), (576, 300)] {
        let (blocks, scales) = any_weights(outputs, inputs, 11);
        let w = Mxfp4::new(&blocks, &scales, outputs, inputs).unwrap();
        let mut wide = vec![0.0; outputs * inputs];
        dequantize(&blocks, &scales, &mut wide);
        for rows in [1, 4, 30] {
            let (grad, before) = (numbers(rows * outputs, 12), numbers(rows * inputs, 13));
            for isa in Isa::all_available() {
                // All these numbers are exact in bfloat16.
                for (compute, accumulate) in
                    [(Compute::F32, false), (Compute::F32, true), (Compute::Bf16, true)]
                {
                    let mut dx = before.clone();
                    input_gradient_with(isa, &grad, rows, &w, compute, accumulate, &mut dx);
                    for (i, dx) in dx.iter().enumerate() {
                        let (r, c) = (i / inputs, i % inputs);
                        let term =
                            |o: usize| f64::from(grad[r * outputs + o]) * f64::from(wide[o * inputs + c]);
                        let before = if accumulate { f64::from(before[i]) } else { 0.0 };
                        let wanted = before + (0..outputs).map(term).sum::<f64>();
                        let near = (f64::from(*dx) - wanted).abs() <= 1e-5 * (outputs as f64).sqrt();
                        assert!(
                            near,
                            "{isa:?} {compute:?} ({rows}, {outputs}) x {inputs}: {dx}, not {wanted}"
                        );
                    }
                }
            }
        }
    }
}
