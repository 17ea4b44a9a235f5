use super::*;
use crate::grad::Gradients;
use crate::nn::Activation;
use crate::runtime::Runtime;
use crate::weights::{Select, Variables};
use candle_core::Var;

fn sound(batch: usize, time: usize, channels: usize) -> Tensor {
    let values = (0..batch * time * channels).map(|i| (i as f32 * 0.7).sin() - 0.1);
    Tensor::from_iter(values, &Device::Cpu).unwrap().reshape((batch, time, channels)).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_near(a: &Tensor, b: &Tensor, what: &str) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    for (i, (a, b)) in values(a).iter().zip(values(b)).enumerate() {
        assert!((a - b).abs() < 1e-5, "{what}: element {i}: {a} and {b}");
    }
}

/// A frame counted from the first, zero outside.
fn at(x: &Tensor, b: usize, t: isize, c: usize) -> f32 {
    let (_, time, _) = x.dims3().unwrap();
    if t < 0 || t >= time as isize {
        return 0.0;
    }
    x.get(b).unwrap().get(t as usize).unwrap().get(c).unwrap().to_scalar().unwrap()
}

#[test]
fn convolution_agrees_with_its_definition_and_with_candle() {
    for (inputs, outputs, options) in [
        (1, 3, ConvOptions::new(7)),
        (3, 1, ConvOptions::new(1).no_bias()),
        (5, 4, ConvOptions::new(10).stride(5)),
        (3, 5, ConvOptions::new(3).dilation(9).padding(9)),
        (2, 2, ConvOptions::new(4).stride(3).dilation(2).padding(1)),
    ] {
        let weights = Weights::seeded(5, Runtime::cpu());
        let conv = weights.conv1d("c", inputs, outputs, options).unwrap();
        let weight = values(&weights.tensor("c.weight", &[outputs, inputs, options.kernel]).unwrap());
        let bias = conv.bias.as_ref().map(values);
        let x = sound(2, 31, inputs);
        let y = conv.forward(&x).unwrap();
        let frames = options.frames(31).unwrap();
        assert_eq!(y.dims(), [2, frames, outputs]);
        for (i, y) in values(&y).into_iter().enumerate() {
            let (b, t, o) = (i / outputs / frames, i / outputs % frames, i % outputs);
            let mut wanted = bias.as_ref().map_or(0.0, |bias| bias[o]);
            for c in 0..inputs {
                for j in 0..options.kernel {
                    let from =
                        (t * options.stride + j * options.dilation) as isize - options.padding as isize;
                    wanted += weight[(o * inputs + c) * options.kernel + j] * at(&x, b, from, c);
                }
            }
            assert!((y - wanted).abs() < 1e-5, "{options:?}: element {i} is {y}, not {wanted}");
        }
        let tracked = Var::from_tensor(&x).unwrap();
        let other = conv.forward(tracked.as_tensor()).unwrap();
        assert_near(&y, &other, &format!("{options:?}"));
        let gradient = other.sum_all().unwrap().backward().unwrap();
        let gradient = values(gradient.get(&tracked).unwrap());
        // The sum is linear in each element, so its gradient is a difference.
        for i in [0, 7 * inputs, 61 * inputs + 1 - 1] {
            let mut moved = values(&x);
            moved[i] += 1.0;
            let moved = conv.forward(&Tensor::from_vec(moved, x.shape(), &Device::Cpu).unwrap()).unwrap();
            let slope = values(&(moved - &y).unwrap()).iter().sum::<f32>();
            assert!(
                (slope - gradient[i]).abs() < 1e-4,
                "{options:?}: slope {slope}, gradient {}",
                gradient[i]
            );
        }
    }
}

#[test]
fn transposed_convolution_agrees_with_its_definition_and_with_candle() {
    for (inputs, outputs, options) in [
        (3, 2, ConvOptions::new(10).stride(5)),
        (1, 3, ConvOptions::new(4).stride(2).padding(1)),
        (5, 1, ConvOptions::new(1)),
        (2, 3, ConvOptions::new(7).stride(3).no_bias()),
        (2, 2, ConvOptions::new(2).stride(3)),
        (4, 2, ConvOptions::new(3)),
    ] {
        let weights = Weights::seeded(5, Runtime::cpu());
        let conv = weights.conv_transpose1d("c", inputs, outputs, options).unwrap();
        let kernel = options.kernel;
        let weight = values(&weights.tensor("c.weight", &[inputs, outputs, kernel]).unwrap());
        for time in [1, 2, 9] {
            let x = sound(2, time, inputs);
            let full = (time - 1) * options.stride + kernel;
            let bias = conv.bias.as_ref().map_or(vec![0.0; outputs], |bias| values(bias)[..outputs].to_vec());
            let mut wanted: Vec<f32> = bias.iter().cycle().take(2 * full * outputs).copied().collect();
            for (i, x) in values(&x).into_iter().enumerate() {
                let (b, t, c) = (i / inputs / time, i / inputs % time, i % inputs);
                for o in 0..outputs {
                    for j in 0..kernel {
                        wanted[(b * full + t * options.stride + j) * outputs + o] +=
                            x * weight[(c * outputs + o) * kernel + j];
                    }
                }
            }
            let wanted = Tensor::from_vec(wanted, (2, full, outputs), &Device::Cpu).unwrap();
            let wanted = wanted.narrow(1, options.padding, full - 2 * options.padding).unwrap();
            let y = conv.forward(&x).unwrap();
            assert_near(&y, &wanted, &format!("{options:?}"));
            let tracked = Var::from_tensor(&x).unwrap();
            let other = conv.forward(tracked.as_tensor()).unwrap();
            assert_near(&y, &other, &format!("{options:?}"));
            other.sum_all().unwrap().backward().unwrap();
        }
    }
}

#[test]
fn padding_agrees_with_torch() {
    let x = Tensor::from_vec(vec![1f32, 2.0, 3.0, 4.0], (1, 4, 1), &Device::Cpu).unwrap();
    let tracked = Var::from_tensor(&x).unwrap();
    for (mode, wanted) in [
        (PadMode::Zeros, [0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0]),
        (PadMode::Reflect, [3.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 2.0, 1.0]),
        (PadMode::Replicate, [1.0, 1.0, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0]),
        (PadMode::Circular, [3.0, 4.0, 1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0]),
    ] {
        assert_eq!(values(&pad_time(&x, 2, 3, mode).unwrap()), wanted, "{mode:?}");
        assert_eq!(values(&pad_time(tracked.as_tensor(), 2, 3, mode).unwrap()), wanted, "{mode:?}");
    }
    // All channels of a frame, and each sequence of the batch separately.
    let x = sound(2, 3, 2);
    let padded = pad_time(&x, 1, 0, PadMode::Reflect).unwrap();
    let wanted = Tensor::cat(&[x.narrow(1, 1, 1).unwrap(), x.clone()], 1).unwrap();
    assert_eq!(values(&padded), values(&wanted));
}

#[test]
fn inputs_that_are_too_short_are_an_error() {
    let weights = Weights::seeded(5, Runtime::cpu());
    for time in [0, 1, 2] {
        let x = sound(1, time, 2);
        let short = pad_time(&x, 0, 2, PadMode::Reflect).unwrap_err();
        assert_eq!(short.kind(), ErrorKind::Input);
        let conv = weights.conv1d("a", 2, 3, ConvOptions::new(3)).unwrap();
        assert_eq!(conv.forward(&x).unwrap_err().kind(), ErrorKind::Input);
        let narrow = weights.conv1d("b", 3, 3, ConvOptions::new(1)).unwrap();
        assert_eq!(narrow.forward(&x).unwrap_err().kind(), ErrorKind::Compute);
    }
    let empty = sound(1, 0, 2);
    assert!(pad_time(&empty, 1, 0, PadMode::Replicate).is_err());
    assert!(pad_time(&empty, 1, 0, PadMode::Circular).is_err());
    assert_eq!(pad_time(&empty, 1, 2, PadMode::Zeros).unwrap().dims(), [1, 3, 2]);
    let back = weights.conv_transpose1d("c", 2, 3, ConvOptions::new(4).stride(2).padding(2)).unwrap();
    assert_eq!(back.forward(&empty).unwrap_err().kind(), ErrorKind::Input);
    assert_eq!(back.forward(&sound(1, 1, 2)).unwrap_err().kind(), ErrorKind::Input);
    for options in [ConvOptions::new(0), ConvOptions::new(1).stride(0), ConvOptions::new(1).dilation(0)] {
        assert_eq!(weights.conv1d("d", 2, 2, options).unwrap_err().kind(), ErrorKind::Mismatch);
        assert_eq!(weights.conv_transpose1d("d", 2, 2, options).unwrap_err().kind(), ErrorKind::Mismatch);
    }
    let gaps = weights.conv_transpose1d("d", 2, 2, ConvOptions::new(3).dilation(2)).unwrap_err();
    assert_eq!(gaps.kind(), ErrorKind::Unsupported);
}

/// Loads a checkpoint of `tensors`.
fn stored(tensors: &[(&str, Tensor)]) -> Weights {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    let tensors: std::collections::HashMap<&str, Tensor> = tensors.iter().cloned().collect();
    candle_core::safetensors::save(&tensors, &file).unwrap();
    let checkpoint = crate::checkpoint::Checkpoint::open(&file).unwrap();
    Weights::open(&checkpoint, |_| crate::weights::Name::Keep, Runtime::cpu()).unwrap()
}

#[test]
fn weight_normalization_is_applied_under_both_names() {
    let tensor = |values: &[f32], shape: (usize, usize, usize)| {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    };
    let bias = Tensor::new(&[0f32, 0.0], &Device::Cpu).unwrap();
    let direction = tensor(&[3.0, 0.0, 4.0, 0.0, 0.0, 0.0], (2, 1, 3));
    let length = tensor(&[10.0, 7.0], (2, 1, 1));
    for (g, v) in
        [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")]
    {
        let weights = stored(&[(g, length.clone()), (v, direction.clone()), ("bias", bias.clone())]);
        let conv = weights.conv1d("", 1, 2, ConvOptions::new(3)).unwrap();
        assert_eq!(values(&conv.weight), [6.0, 0.0, 8.0, 0.0, 0.0, 0.0], "{v}");
        weights.finish().unwrap();
        // The first axis of a transposed convolution is the inputs.
        let weights = stored(&[(g, length.clone()), (v, direction.clone())]);
        let back = weights.conv_transpose1d("", 2, 1, ConvOptions::new(3).stride(3).no_bias()).unwrap();
        assert_eq!(values(&back.weight), [6.0, 0.0, 0.0, 0.0, 8.0, 0.0], "{v}");
        weights.finish().unwrap();
    }
    let plain = stored(&[("weight", direction.clone()), ("bias", bias)]);
    plain.conv1d("", 1, 2, ConvOptions::new(3).weight_norm(true)).unwrap();
    plain.finish().unwrap();
}

#[test]
fn an_inventory_lists_tensors_without_allocating_them() {
    let weights = Weights::meta();
    let huge = 1 << 18;
    weights.conv1d("a", huge, huge, ConvOptions::new(huge)).unwrap();
    weights.conv_transpose1d("b", huge, huge, ConvOptions::new(7).stride(2).weight_norm(true)).unwrap();
    weights.lstm("c", huge, huge, 1).unwrap();
    let names: Vec<String> = weights.finish().unwrap().tensors.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names[..4], ["a.bias", "a.weight", "b.bias", "b.parametrizations.weight.original0"]);
}

#[test]
fn elu_and_group_norm_agree_with_candle() {
    let x = sound(2, 40, 6);
    let tracked = Var::from_tensor(&x).unwrap();
    let y = Activation::Elu.forward(&x).unwrap();
    assert_near(&y, &Activation::Elu.forward(tracked.as_tensor()).unwrap(), "elu");
    let weights = Weights::seeded(1, Runtime::cpu());
    for groups in [1, 2, 6] {
        let norm = weights.group_norm("n", groups, 6, 1e-5).unwrap();
        let y = norm.forward(&x).unwrap();
        assert_near(&y, &norm.forward(tracked.as_tensor()).unwrap(), "group norm");
    }
    assert!(weights.group_norm("n", 4, 6, 1e-5).is_err());
}

#[test]
fn gradients_of_input_and_weight_are_slopes() {
    for (inputs, outputs, options) in [
        (3, 4, ConvOptions::new(1)),
        (2, 3, ConvOptions::new(3).dilation(2).padding(2)),
        (3, 2, ConvOptions::new(4).stride(2).padding(1)),
        (1, 5, ConvOptions::new(2).stride(3).no_bias()),
    ] {
        let variables = Arc::new(Variables::new(Select::All));
        let load = || {
            let weights = Weights::seeded(5, Runtime::cpu()).with_variables(&variables, true);
            weights.conv1d("c", inputs, outputs, options).unwrap()
        };
        let x = Var::from_tensor(&sound(2, 9, inputs)).unwrap();
        let mix = sound(2, options.frames(9).unwrap(), outputs);
        let loss = || (load().forward(x.as_tensor()).unwrap() * &mix).unwrap().sum_all().unwrap();
        let back = loss().backward().unwrap();
        let value = || loss().to_scalar::<f32>().unwrap();
        for (what, variable) in [("x", x.clone()), ("weight", variables.get("c.weight").unwrap())] {
            let slopes = values(back.get(&variable).unwrap());
            let start = values(&variable);
            for i in 0..start.len() {
                let shifted = |by: f32| {
                    let mut values = start.clone();
                    values[i] += by;
                    variable.set(&Tensor::from_vec(values, variable.shape(), &Device::Cpu).unwrap()).unwrap();
                    value()
                };
                // The loss is linear in each.
                let slope = shifted(0.5) - shifted(-0.5);
                assert!(
                    (slope - slopes[i]).abs() < 1e-4,
                    "{options:?}: {what} {i}: {slope} and {}",
                    slopes[i]
                );
            }
            variable.set(&Tensor::from_vec(start, variable.shape(), &Device::Cpu).unwrap()).unwrap();
        }
    }
}

/// The gradients of `trained` after two backward passes of a weighted sum of `y`.
fn gradients(y: &Tensor, trained: &[Var]) -> Vec<Tensor> {
    let (batch, time, channels) = y.dims3().unwrap();
    let loss = (y * sound(batch, time, channels)).unwrap().sum_all().unwrap();
    let mut gradients = Gradients::of(trained);
    gradients.backward(&loss).unwrap();
    gradients.backward(&loss).unwrap();
    trained.iter().map(|x| gradients.get(x).unwrap().unwrap()).collect()
}

/// Asserts that `here` and `there`, of a layer that `load` loads, are equal and have equal gradients: of the input, of the
/// parameters, and of both.
fn assert_same_gradients<L>(
    what: &str,
    x: &Tensor,
    load: impl Fn(&Weights) -> L,
    here: impl Fn(&L, &Tensor) -> Tensor,
    there: impl Fn(&L, &Tensor) -> Tensor,
) {
    for (trains_x, trains_parameters) in [(true, true), (true, false), (false, true)] {
        let variables = Arc::new(Variables::new(Select::All));
        let weights = Weights::seeded(5, Runtime::cpu());
        let layer = match trains_parameters {
            true => load(&weights.with_variables(&variables, true)),
            false => load(&weights),
        };
        let mut trained: Vec<Var> = variables.all().into_values().collect();
        let tracked = Var::from_tensor(x).unwrap();
        trained.extend(trains_x.then(|| tracked.clone()));
        let x = if trains_x { tracked.as_tensor() } else { x };
        let (y, z) = (here(&layer, x), there(&layer, x));
        assert_near(&y, &z, what);
        for (here, there) in gradients(&y, &trained).iter().zip(&gradients(&z, &trained)) {
            let scale = values(there).iter().fold(1f32, |most, x| most.max(x.abs()));
            let [here, there] = [here, there].map(|x| (x / f64::from(scale)).unwrap());
            assert_near(&here, &there, &format!("{what}, {trains_x}, {trains_parameters}"));
        }
    }
}

#[test]
fn kernels_and_candle_have_the_same_gradients() {
    for options in [
        ConvOptions::new(7),
        ConvOptions::new(1).no_bias(),
        ConvOptions::new(10).stride(5),
        ConvOptions::new(3).dilation(9).padding(9),
        ConvOptions::new(4).stride(3).dilation(2).padding(1).no_bias(),
        ConvOptions::new(2).stride(5).weight_norm(true),
    ] {
        assert_same_gradients(
            &format!("{options:?}"),
            &sound(3, 31, 3),
            |weights| weights.conv1d("c", 3, 5, options).unwrap(),
            |conv, x| conv.forward(x).unwrap(),
            |conv, x| conv.unfolded(x, options.frames(31).unwrap()).unwrap(),
        );
    }
}

#[test]
fn kernels_and_candle_have_the_same_gradients_of_transposed_convolutions() {
    for options in [
        ConvOptions::new(10).stride(5),
        ConvOptions::new(4).stride(2).padding(1),
        ConvOptions::new(7).stride(3).no_bias(),
        ConvOptions::new(2).stride(3),
        ConvOptions::new(3).weight_norm(true),
    ] {
        assert_same_gradients(
            &format!("{options:?}"),
            &sound(3, 9, 3),
            |weights| weights.conv_transpose1d("c", 3, 5, options).unwrap(),
            |conv, x| conv.forward(x).unwrap(),
            |conv, x| {
                let reach = options.kernel.div_ceil(options.stride);
                let padded = x.pad_with_zeros(1, reach - 1, reach - 1).unwrap();
                let y = conv.unfolded(&padded, reach, 9 + reach - 1).unwrap();
                let frames = 8 * options.stride + options.kernel - 2 * options.padding;
                y.narrow(1, options.padding, frames).unwrap()
            },
        );
    }
}

#[test]
fn the_gradient_of_padding_is_that_of_the_frames_it_repeats() {
    for mode in [PadMode::Zeros, PadMode::Reflect, PadMode::Replicate, PadMode::Circular] {
        let x = Var::from_tensor(&sound(2, 4, 3)).unwrap();
        let mix = sound(2, 9, 3);
        let sum = |x: &Tensor| (pad_time(x, 2, 3, mode).unwrap() * &mix).unwrap().sum_all().unwrap();
        let back = sum(x.as_tensor()).backward().unwrap();
        let start = values(&x);
        for (i, gradient) in values(back.get(&x).unwrap()).into_iter().enumerate() {
            let mut moved = start.clone();
            moved[i] += 1.0;
            let moved = Tensor::from_vec(moved, x.shape(), &Device::Cpu).unwrap();
            let slope = (sum(&moved) - sum(x.as_tensor())).unwrap().to_scalar::<f32>().unwrap();
            assert!((slope - gradient).abs() < 1e-5, "{mode:?}: {i}: {slope} and {gradient}");
        }
    }
}
