use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage};

use super::*;

fn candle_type(kind: BlockKind) -> GgmlDType {
    match kind {
        BlockKind::Q4_0 => GgmlDType::Q4_0,
        BlockKind::Q4_1 => GgmlDType::Q4_1,
        BlockKind::Q5_0 => GgmlDType::Q5_0,
        BlockKind::Q5_1 => GgmlDType::Q5_1,
        BlockKind::Q8_0 => GgmlDType::Q8_0,
        BlockKind::Q2K => GgmlDType::Q2K,
        BlockKind::Q3K => GgmlDType::Q3K,
        BlockKind::Q4K => GgmlDType::Q4K,
        BlockKind::Q5K => GgmlDType::Q5K,
        BlockKind::Q6K => GgmlDType::Q6K,
        BlockKind::Q8K => GgmlDType::Q8K,
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next() as f32 / (1u64 << 30) as f32 - 1.0).collect()
    }
}

/// Blocks of random bytes, with small finite scales.
fn any_blocks(kind: BlockKind, elements: usize, random: &mut Random) -> Vec<u8> {
    let mut data: Vec<u8> = (0..kind.bytes(elements)).map(|_| random.next() as u8).collect();
    for block in data.chunks_exact_mut(kind.block_bytes()) {
        let halves: &[usize] = match kind {
            BlockKind::Q4_0 | BlockKind::Q5_0 | BlockKind::Q8_0 => &[0],
            BlockKind::Q4_1 | BlockKind::Q5_1 | BlockKind::Q4K | BlockKind::Q5K => &[0, 2],
            BlockKind::Q2K => &[80, 82],
            BlockKind::Q3K => &[108],
            BlockKind::Q6K => &[208],
            BlockKind::Q8K => {
                block[..4].copy_from_slice(&0.01f32.to_le_bytes());
                &[]
            }
        };
        for &at in halves {
            block[at + 1] = block[at + 1] & 0x83 | 0x20; // a magnitude of about 2^-7, any sign
        }
    }
    data
}

fn by_candle(kind: BlockKind, data: &[u8], elements: usize) -> Vec<f32> {
    let storage = QStorage::from_data(data.into(), &Device::Cpu, candle_type(kind)).unwrap();
    let QStorage::Cpu(storage) = storage else { panic!("on the CPU") };
    let candle_core::CpuStorage::F32(values) = storage.dequantize(elements).unwrap() else {
        panic!("float32")
    };
    values
}

#[test]
fn dequantized_blocks_agree_with_candle() {
    for kind in BlockKind::ALL {
        let mut random = Random(1);
        let elements = 256 * 100;
        let data = any_blocks(kind, elements, &mut random);
        let mut values = vec![0.0; elements];
        dequantize(kind, &data, &mut values);
        for (i, (ours, theirs)) in values.iter().zip(by_candle(kind, &data, elements)).enumerate() {
            assert!(
                (ours - theirs).abs() <= 1e-6 * theirs.abs().max(1e-3),
                "{kind} {i}: {ours}, candle {theirs}"
            );
        }
    }
}

#[test]
fn products_agree_with_dequantized_weights_on_every_instruction_set() {
    for kind in BlockKind::ALL {
        for (outputs, inputs) in [(1, 256), (7, 512), (33, 768), (50, 32), (3, 96), (17, 576), (40, 1056)] {
            if inputs % kind.block_len() != 0 {
                continue;
            }
            let mut random = Random(outputs as u64);
            let data = any_blocks(kind, outputs * inputs, &mut random);
            let weights = Blocks::new(&data, kind, outputs, inputs).unwrap();
            let mut wide = vec![0.0; outputs * inputs];
            dequantize(kind, &data, &mut wide);
            let bias = random.floats(outputs);
            for rows in [1, 2, 3, 4, 5, 8, 33] {
                let x = random.floats(rows * inputs);
                for isa in Isa::all_available() {
                    let mut y = vec![f32::NAN; rows * outputs];
                    linear_with(isa, &x, rows, &weights, Some(&bias), &mut y);
                    for (i, y) in y.iter().enumerate() {
                        let (row, o) = (i / outputs, i % outputs);
                        let (x, w) = (&x[row * inputs..][..inputs], &wide[o * inputs..][..inputs]);
                        let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(x * w)).sum();
                        // Each activation is off by at most half a step of 1/127 of the largest of 32, which is
                        // at most 1; the errors are independent.
                        let squares: f64 = w.iter().map(|w| f64::from(w * w)).sum();
                        // Two terms divide that by 254.
                        let step = if two_terms(kind, rows) { 254.0 * 254.0 } else { 254.0 };
                        let bound = squares.sqrt() / step * 3.0 + 1e-4 * squares.sqrt().max(1.0);
                        let error = (f64::from(y - bias[o]) - exact).abs();
                        assert!(
                            error <= bound,
                            "{kind} {isa:?} {rows}x{inputs}x{outputs} [{row}, {o}]: {error} > {bound}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_product() {
    let (outputs, inputs) = (35, 1536);
    for kind in BlockKind::ALL {
        let mut random = Random(9);
        let data = any_blocks(kind, outputs * inputs, &mut random);
        let weights = Blocks::new(&data, kind, outputs, inputs).unwrap();
        for rows in [1, 2, 3, 4, 5, 33] {
            let x = random.floats(rows * inputs);
            let mut portable = vec![0.0; rows * outputs];
            linear_with(Isa::Portable, &x, rows, &weights, None, &mut portable);
            let size = portable.iter().fold(0f32, |a, b| a.max(b.abs()));
            for isa in Isa::all_available() {
                let mut y = vec![0.0; rows * outputs];
                linear_with(isa, &x, rows, &weights, None, &mut y);
                for (y, p) in y.iter().zip(&portable) {
                    assert!((y - p).abs() <= 2e-5 * size, "{kind} {isa:?} {rows}: {y}, portable {p}");
                }
            }
        }
    }
}

#[test]
fn any_bytes_and_any_activations_give_values_or_nan_without_a_panic() {
    for kind in BlockKind::ALL {
        let (outputs, inputs) = (9, 768);
        let mut random = Random(3);
        let mut data: Vec<u8> = (0..kind.bytes(outputs * inputs)).map(|_| random.next() as u8).collect();
        data[..kind.bytes(inputs)].fill(0xff);
        let weights = Blocks::new(&data, kind, outputs, inputs).unwrap();
        let mut wide = vec![0.0; outputs * inputs];
        dequantize(kind, &data, &mut wide);
        for special in [f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE / 8.0, 0.0] {
            for rows in [1, 8] {
                let x = vec![special; rows * inputs];
                for isa in Isa::all_available() {
                    let mut y = vec![0.0; rows * outputs];
                    linear_with(isa, &x, rows, &weights, None, &mut y);
                    if !special.is_finite() {
                        assert!(y.iter().all(|y| y.is_nan()), "{kind} {isa:?}: {special} is lost");
                    }
                }
            }
        }
    }
}

#[test]
fn the_error_of_quantization_is_bounded() {
    let values = Random(5).floats(256 * 64);
    for (kind, bound) in
        BlockKind::ALL.into_iter().zip([0.08, 0.05, 0.04, 0.025, 0.005, 0.25, 0.2, 0.08, 0.05, 0.02, 0.005])
    {
        let mut data = vec![0; kind.bytes(values.len())];
        quantize(kind, &values, &mut data);
        let mut back = vec![0.0; values.len()];
        dequantize(kind, &data, &mut back);
        let square: f32 = values.iter().zip(&back).map(|(a, b)| (a - b).powi(2)).sum();
        let rms = (square / values.len() as f32).sqrt();
        assert!(rms < bound, "{kind}: root mean square error {rms}");
    }
}

#[test]
fn formats_parse_from_their_names_and_ggml_ids() {
    for kind in BlockKind::ALL {
        assert_eq!(kind.to_string().to_uppercase().parse::<BlockKind>().unwrap(), kind);
        assert_eq!(BlockKind::from_ggml_id(kind.ggml_id()), Some(kind));
        assert_eq!(kind.block_bytes(), candle_type(kind).type_size());
        assert_eq!(kind.block_len(), candle_type(kind).block_size());
    }
    assert!("q7_z".parse::<BlockKind>().unwrap_err().to_string().contains("q4_k"));
}

#[test]
fn data_of_another_size_is_refused() {
    let data = [0; 36];
    assert!(Blocks::new(&data, BlockKind::Q4_0, 2, 32).is_ok());
    assert!(Blocks::new(&data, BlockKind::Q4_0, 2, 31).is_err());
    assert!(Blocks::new(&data, BlockKind::Q4_0, 3, 32).is_err());
    assert!(Blocks::new(&data, BlockKind::Q4_0, usize::MAX, 64).is_err());
}

#[test]
fn the_gradient_of_the_input_is_that_of_dequantized_weights_on_every_instruction_set() {
    for kind in BlockKind::ALL {
        for (outputs, inputs) in [(1, 256), (7, 512), (300, 768), (50, 32), (3, 96), (517, 576), (40, 1056)] {
            if inputs % kind.block_len() != 0 {
                continue;
            }
            let mut random = Random(outputs as u64);
            let data = any_blocks(kind, outputs * inputs, &mut random);
            let weights = Blocks::new(&data, kind, outputs, inputs).unwrap();
            let mut wide = vec![0.0; outputs * inputs];
            dequantize(kind, &data, &mut wide);
            for rows in [1, 5, 33] {
                let (grad, before) = (random.floats(rows * outputs), random.floats(rows * inputs));
                for (isa, accumulate) in
                    Isa::all_available().into_iter().flat_map(|isa| [(isa, false), (isa, true)])
                {
                    let mut dx = before.clone();
                    input_gradient_with(isa, &grad, rows, &weights, Compute::F32, accumulate, &mut dx);
                    for (i, dx) in dx.iter().enumerate() {
                        let (row, input) = (i / inputs, i % inputs);
                        let terms = || {
                            (0..outputs).map(|o| {
                                f64::from(grad[row * outputs + o]) * f64::from(wide[o * inputs + input])
                            })
                        };
                        let wanted =
                            terms().sum::<f64>() + f64::from(before[i]) * f64::from(accumulate as u8);
                        let size = terms().map(|term| term * term).sum::<f64>().sqrt() + 1.0;
                        let error = (f64::from(*dx) - wanted).abs();
                        assert!(error <= 1e-5 * size, "{kind} {isa:?} {rows}x{outputs}x{inputs}: {error}");
                    }
                }
            }
        }
    }
}
