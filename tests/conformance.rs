//! Conformance tests: properties that every model family must have, tested on a random checkpoint of its sample config.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

#[path = "conformance/config_keys.rs"]
mod config_keys;
#[path = "releases/sweep.rs"]
mod releases;
#[path = "conformance/tensor_names.rs"]
mod tensor_names;

use std::path::{Path, PathBuf};

use fauna::candle::{DType, Device, Tensor};
use fauna::checkpoint::{Checkpoint, Metadata, StorageType, TensorInfo, write_safetensors};
use fauna::runtime::Runtime;
use fauna::weights::Weights;
use fauna::{Error, Family, Item, LoadOptions, Modality, Pipeline, Result, Tensors};
use serde_json::json;
use tempfile::TempDir;

const SEED: u64 = 7;

/// A random checkpoint of a family with its sample config.
struct Sample {
    family: &'static Family,
    folder: TempDir,
    tensors: Vec<(String, Vec<usize>)>,
    /// The tensors of bytes among them.
    packed: Vec<String>,
    /// Whether any matrix has rows of whole quantization blocks.
    has_blocks: bool,
}

impl Sample {
    fn of(family: &'static Family) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), (family.sample)().to_string()).unwrap();
        let source = folder.path().to_str().unwrap();
        let (_, inventory) = fauna::inventory(source, &LoadOptions::default()).expect(family.name);
        let kind = fauna::nn::block_kind("q4_0").unwrap();
        let fits = |(name, shape): &(String, Vec<usize>)| {
            let matrix = inventory.matrices.get(name);
            matrix.is_some_and(|matrix| matrix.inputs(shape).and_then(|n| matrix.format(kind, n)).is_some())
        };
        let has_blocks = inventory.tensors.iter().any(fits);
        let packed = inventory.packed.into_keys().collect();
        let sample = Self { family, folder, tensors: inventory.tensors, packed, has_blocks };
        sample.write(&sample.tensors);
        sample
    }

    /// Writes the weights file with these tensors.
    fn write(&self, tensors: &[(String, Vec<usize>)]) -> PathBuf {
        let path = self.folder.path().join("model.safetensors");
        let plan = |(name, shape): &(String, Vec<usize>)| TensorInfo {
            name: name.clone(),
            storage: if self.packed.contains(name) { StorageType::U8 } else { StorageType::F32 },
            shape: shape.clone(),
        };
        let planned: Vec<TensorInfo> = tensors.iter().map(plan).collect();
        let seeded = Weights::seeded(SEED, Runtime::cpu());
        write_safetensors(&path, &Metadata::new(), &planned, |tensor| {
            if tensor.storage == StorageType::U8 {
                let bytes = seeded.packed(&tensor.name, &tensor.shape, 0)?;
                return Ok(bytes.expect("a seed makes every tensor").to_vec());
            }
            let values = seeded.tensor(&tensor.name, &tensor.shape)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
        })
        .unwrap();
        path
    }

    fn open(&self, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
        fauna::open_with(self.folder.path().to_str().unwrap(), options)
    }

    fn opened(&self) -> Box<dyn Pipeline> {
        self.open(&LoadOptions::default()).unwrap_or_else(|error| panic!("{}: {error}", self.family.name))
    }

    /// Returns the error of loading a modified checkpoint.
    fn load_error(&self) -> Error {
        match self.open(&LoadOptions::default()) {
            Ok(_) => panic!("{}: a modified checkpoint loads", self.family.name),
            Err(error) => error,
        }
    }
}

/// Returns a checkpoint of every family.
fn samples() -> Vec<Sample> {
    fauna::families().into_iter().map(Sample::of).collect()
}

/// Returns the checkpoints of the families whose forward pass takes only token ids.
fn of_text() -> Vec<Sample> {
    let reads_text = |sample: &Sample| {
        let Family { inputs, outputs, .. } = sample.family;
        let makes = |modality| outputs.contains(&modality);
        let compares = inputs.contains(&Modality::Image) && !makes(Modality::Text);
        let reads = inputs.contains(&Modality::Text);
        reads && !compares && ![Modality::Sound, Modality::Image, Modality::Action].into_iter().any(makes)
    };
    samples().into_iter().filter(reads_text).collect()
}

/// Returns the inputs of the forward pass for sequence 0 or 1 of a batch.
fn row(sample: &Sample, index: usize) -> Tensors {
    row_of(sample.family, &(sample.family.sample)(), index)
}

/// Returns the inputs of the forward pass of `family` with this config.
fn row_of(family: &Family, config: &serde_json::Value, index: usize) -> Tensors {
    let size = |value: &serde_json::Value| value.as_u64().expect("a size in the sample config") as usize;
    let codes = |rows: usize, time: usize, limit: usize| {
        let ids: Vec<i64> = (0..rows * time).map(|i| ((i * 7 + index * 3) % limit) as i64).collect();
        Tensor::from_vec(ids, (rows, time), &Device::Cpu).unwrap()
    };
    match family.name {
        "encodec" => {
            let channels = size(&config["audio_channels"]);
            let samples: Vec<f32> =
                (0..channels * 240).map(|i| ((i * i + 5 * index) as f32 * 0.1).sin()).collect();
            let sound = Tensor::from_vec(samples, (1, channels, 240), &Device::Cpu).unwrap();
            Tensors::from([("input_values".into(), sound)])
        }
        "musicgen" => {
            let decoder = &config["decoder"];
            let mut row = text_row(index);
            let codes = codes(size(&decoder["num_codebooks"]), 5, size(&decoder["vocab_size"]));
            row.insert("decoder_input_ids".into(), codes);
            row
        }
        "dalle-mini" => {
            let mut row = text_row(index);
            row.insert("decoder_input_ids".into(), codes(1, 5, size(&config["image_vocab_size"])));
            row
        }
        "dvae" => {
            let pixels = (0..3 * 16 * 24).map(|i| ((i * i + 5 * index) as f32 * 0.1).sin().abs());
            let pixels = Tensor::from_vec(pixels.collect(), (1, 3, 16, 24), &Device::Cpu).unwrap();
            Tensors::from([("pixel_values".into(), pixels)])
        }
        "vqgan" => {
            let codes = codes(3, 4, size(&config["n_embed"])).unsqueeze(0).unwrap();
            Tensors::from([("codes".into(), codes)])
        }
        "jukebox" => {
            let time = size(&config["prior_config_list"][0]["n_ctx"]);
            let tokens = codes(1, time, size(&config["vqvae_config"]["nb_discrete_codes"]));
            Tensors::from([("music_tokens".into(), tokens)])
        }
        "idefics" => {
            let around = size(&config["vocab_size"]) as i64;
            with_picture(index, around + 1, "pixel_values", &[1, 1, 3, 8, 8])
        }
        "gemma3" | "llava" => {
            let (place, tokens) =
                (size(&config["image_token_index"]) as i64, size(&config["image_seq_length"]));
            let mut row = with_picture(index, place, "pixel_values", &[1, 3, 20, 20]);
            let mut ids = [ONE, TWO][index].to_vec();
            ids[1..1 + tokens].fill(place);
            row.insert("input_ids".into(), integers(&[&ids]));
            if family.name == "gemma3" {
                let types: Vec<i64> = ids.iter().map(|id| i64::from(*id == place)).collect();
                row.insert("token_type_ids".into(), integers(&[&types]));
            }
            row
        }
        "open_flamingo" => {
            let place = size(&config["lang_encoder"]["vocab_size"]) as i64 - 2;
            with_picture(index, place, "vision_x", &[1, 1, 1, 3, 8, 8])
        }
        "clip" | "siglip" => {
            let side = size(&config["vision_config"]["image_size"]);
            with_picture(index, 14, "pixel_values", &[1, 3, side, side])
        }
        "openvla" => with_picture(index, 14, "pixel_values", &[1, 6, 28, 28]),
        "chronos-t5" | "chronos-bolt" => series("context", index),
        "chronos-2" => {
            let mut row = series("context", index);
            row.insert("group_ids".into(), Tensor::new(&[index as i64], &Device::Cpu).unwrap());
            row
        }
        "timesfm" | "timesfm-2.5" => series("past_values", index),
        "orb" => crystal(index),
        _ => text_row(index),
    }
}

/// Returns a crystal of four atoms.
fn crystal(index: usize) -> Tensors {
    let off = |i: usize| 0.2 * ((i * i + 7 * index) as f32).sin();
    let sites = [[0.0, 0.0, 0.0], [0.0, 2.0, 2.1], [2.2, 0.0, 2.0], [2.0, 2.1, 0.0]];
    let places = sites.iter().flatten().enumerate().map(|(i, place): (usize, &f32)| place + off(i)).collect();
    let numbers = [[11i64, 17, 8, 1], [26, 6, 8, 3]][index].to_vec();
    let cell = vec![4.1f32, 0.2, 0.0, 0.0, 4.0, 0.3, 0.1, 0.0, 4.3];
    let cpu = &Device::Cpu;
    Tensors::from([
        ("atomic_numbers".into(), Tensor::from_vec(numbers, 4, cpu).unwrap()),
        ("positions".into(), Tensor::from_vec(places, (4, 3), cpu).unwrap()),
        ("cell".into(), Tensor::from_vec(cell, (1, 3, 3), cpu).unwrap()),
        ("pbc".into(), Tensor::ones((1, 3), DType::I64, cpu).unwrap()),
        ("n_node".into(), Tensor::from_vec(vec![4i64], 1, cpu).unwrap()),
        ("charge".into(), Tensor::from_vec(vec![index as f32], 1, cpu).unwrap()),
        ("spin".into(), Tensor::from_vec(vec![1.0 + index as f32], 1, cpu).unwrap()),
    ])
}

/// Returns a time series under its input name in the reference.
fn series(name: &str, index: usize) -> Tensors {
    let values: Vec<f32> = (0..21).map(|i| ((i * i + 5 * index) as f32 * 0.1).sin() * 3.0).collect();
    Tensors::from([(name.into(), Tensor::from_vec(values, (1, 21), &Device::Cpu).unwrap())])
}

/// Returns a sequence with an image placeholder as its second token, and the image.
fn with_picture(index: usize, place: i64, name: &str, shape: &[usize]) -> Tensors {
    let mut ids = [ONE, TWO][index].to_vec();
    ids[1] = place;
    let mut row = inputs(&[&ids], &[SEEN]);
    let count: usize = shape.iter().product();
    let pixels: Vec<f32> = (0..count).map(|i| ((i * i + 3 * index) as f32 * 0.3).sin()).collect();
    row.insert(name.into(), Tensor::from_vec(pixels, shape, &Device::Cpu).unwrap());
    row
}

fn text_row(index: usize) -> Tensors {
    inputs(&[[ONE, TWO][index]], &[SEEN])
}

/// Returns both sequences in one batch.
fn both_rows(sample: &Sample) -> Tensors {
    let second = row(sample, 1);
    let join = |(name, first): (String, Tensor)| {
        let both = Tensor::cat(&[&first, &second[&name]], 0).unwrap();
        (name, both)
    };
    row(sample, 0).into_iter().map(join).collect()
}

/// Returns the part of sequence `row` in an output of [`both_rows`]: its half of every axis that a batch of two makes
/// longer, or the whole output if it does not depend on the batch.
fn part_of(both: &Tensor, alone: &Tensor, row: usize) -> Tensor {
    let longer = (0..alone.rank()).filter(|axis| both.dims()[*axis] != alone.dims()[*axis]);
    longer.fold(both.clone(), |part, axis| {
        part.narrow(axis, row * alone.dims()[axis], alone.dims()[axis]).unwrap()
    })
}

/// Returns the checkpoints of the families that generate text or genes.
fn writers() -> Vec<Sample> {
    let writes = |sample: &Sample| {
        [Modality::Text, Modality::Gene].iter().any(|made| sample.family.outputs.contains(made))
    };
    of_text().into_iter().filter(writes).collect()
}

fn integers(rows: &[&[i64]]) -> Tensor {
    let flat: Vec<i64> = rows.concat();
    Tensor::from_vec(flat, (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
}

fn inputs(ids: &[&[i64]], mask: &[&[i64]]) -> Tensors {
    Tensors::from([("input_ids".into(), integers(ids)), ("attention_mask".into(), integers(mask))])
}

/// Returns whether the model is an encoder-decoder, whose output begins with a decoder start token.
fn is_encoder_decoder(sample: &Sample) -> bool {
    (sample.family.sample)()["is_encoder_decoder"] == true
}

/// Returns all outputs of the forward pass in float32.
fn forward(pipeline: &dyn Pipeline, inputs: &Tensors) -> Tensors {
    let out = pipeline.forward(inputs).unwrap_or_else(|error| panic!("{}: {error}", pipeline.card().family));
    out.into_iter().map(|(name, tensor)| (name, tensor.to_dtype(DType::F32).unwrap())).collect()
}

fn far(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn spread(x: &Tensor) -> f32 {
    let flat = x.flatten_all().unwrap();
    let high: f32 = flat.max(0).unwrap().to_scalar().unwrap();
    high - flat.min(0).unwrap().to_scalar::<f32>().unwrap()
}

fn bytes_of(out: &Tensors) -> Vec<Vec<u32>> {
    let bits = |tensor: &Tensor| -> Vec<u32> {
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    out.values().map(bits).collect()
}

const ONE: &[i64] = &[3, 14, 15, 9, 2, 6];
const TWO: &[i64] = &[27, 18, 28, 18, 2, 8];
const SEEN: &[i64] = &[1; 6];

#[test]
fn a_batch_of_two_equals_two_singles() {
    for sample in samples() {
        let model = sample.opened();
        let both = forward(model.as_ref(), &both_rows(&sample));
        for index in 0..2 {
            let alone = forward(model.as_ref(), &row(&sample, index));
            for (name, tensor) in &alone {
                // Node indices continue through the batch.
                let first = if matches!(name.as_str(), "senders" | "receivers") { 4 * index } else { 0 };
                let part = (part_of(&both[name], tensor, index) - first as f64).unwrap();
                let off = far(&part, tensor);
                assert!(off < 1e-5, "{}: {name} of row {index} is off by {off}", sample.family.name);
            }
        }
    }
}

#[test]
fn padding_does_not_change_a_row() {
    for sample in of_text() {
        let model = sample.opened();
        let alone = forward(model.as_ref(), &inputs(&[ONE], &[SEEN]));
        let padded: Vec<i64> = [ONE, &[11, 12, 13]].concat();
        let mask: Vec<i64> = [SEEN, &[0; 3]].concat();
        let long: Vec<i64> = (1..10).collect();
        let padded = forward(model.as_ref(), &inputs(&[&padded, &long], &[&mask, &[1; 9]]));
        for (name, tensor) in &alone {
            let mut row = padded[name].narrow(0, 0, 1).unwrap();
            if row.rank() > 1 && row.dim(1).unwrap() == 9 && tensor.dim(1).unwrap() == 6 {
                row = row.narrow(1, 0, 6).unwrap();
            }
            let off = far(&row, tensor);
            assert!(off < 1e-5, "{}: {name} is off by {off}", sample.family.name);
        }
    }
}

#[test]
fn padding_tokens_do_not_change_the_output() {
    for sample in of_text() {
        let model = sample.opened();
        let mask: Vec<i64> = [SEEN, &[0]].concat();
        let real = |out: Tensors| -> Vec<f32> {
            let known = ["logits", "prediction_logits", "last_hidden_state"];
            let name = known.into_iter().find(|name| out.contains_key(*name)).unwrap();
            out[name].narrow(1, 0, 6).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let with = |pad: i64| real(forward(model.as_ref(), &inputs(&[&[ONE, &[pad]].concat()], &[&mask])));
        assert_eq!(with(1), with(40), "{}", sample.family.name);
    }
}

/// Returns the sequences of greedy generation from `prompts` of equal length.
fn greedy(model: &dyn Pipeline, prompts: &[&[i64]], new: usize) -> Vec<Vec<i64>> {
    let mask: Vec<Vec<i64>> = prompts.iter().map(|prompt| vec![1; prompt.len()]).collect();
    let mask: Vec<&[i64]> = mask.iter().map(Vec::as_slice).collect();
    let options = json!({"max_new_tokens": new, "eos_token_id": [], "pad_token_id": 0});
    let out = model.call("generate", &inputs(prompts, &mask), &options).unwrap();
    out["sequences"].to_vec2().unwrap()
}

#[test]
fn cached_equals_uncached() {
    for sample in writers() {
        let model = sample.opened();
        let cached = greedy(model.as_ref(), &[ONE], 8).remove(0);
        let encoder_decoder = is_encoder_decoder(&sample);
        let mut uncached = if encoder_decoder { vec![0] } else { ONE.to_vec() };
        for _ in 0..8 {
            let inputs = match encoder_decoder {
                false => inputs(&[&uncached], &[&vec![1; uncached.len()]]),
                true => {
                    let mut inputs = inputs(&[ONE], &[SEEN]);
                    inputs.insert("decoder_input_ids".into(), integers(&[&uncached]));
                    inputs
                }
            };
            let out = forward(model.as_ref(), &inputs);
            let last = out["logits"].narrow(1, uncached.len() - 1, 1).unwrap().flatten_all().unwrap();
            uncached.push(i64::from(last.argmax(0).unwrap().to_scalar::<u32>().unwrap()));
        }
        assert_eq!(cached, uncached, "{}", sample.family.name);
    }
}

#[test]
fn a_left_padded_prompt_generates_the_same_tokens_as_alone() {
    for sample in writers() {
        let model = sample.opened();
        let alone = greedy(model.as_ref(), &[&ONE[2..]], 6).remove(0);
        let padded: Vec<i64> = [&[0, 0], &ONE[2..]].concat();
        let options = json!({"max_new_tokens": 6, "eos_token_id": [], "pad_token_id": 0});
        let batch = inputs(&[&padded, TWO], &[&[0, 0, 1, 1, 1, 1], SEEN]);
        let out = model.call("generate", &batch, &options).unwrap();
        let rows: Vec<Vec<i64>> = out["sequences"].to_vec2().unwrap();
        let (new, new_alone) = if is_encoder_decoder(&sample) { (1, 1) } else { (6, 4) };
        assert_eq!(rows[0][new..], alone[new_alone..], "{}", sample.family.name);
    }
}

#[test]
fn quantized_outputs_are_close() {
    for sample in samples().into_iter().filter(|sample| sample.has_blocks) {
        let asked = both_rows(&sample);
        let float = sample.opened().forward(&asked).unwrap();
        // Codes and other discrete outputs are not continuous in the weights.
        let float: Vec<_> = float.into_iter().filter(|(_, tensor)| tensor.dtype() == DType::F32).collect();
        // For 8-bit weights our kernels round activations to 16 bits, but candle's quantized matrix products round them to
        // 8 bits, which doubles the error.
        let both = if Runtime::kernels().unwrap() { 1.0 } else { 2.0 };
        for (format, bound) in [("q8_0", 0.05 * both), ("q4_0", 0.5)] {
            let kind = fauna::nn::block_kind(format).unwrap();
            let runtime = Runtime::cpu().with_quantize(Some(kind));
            let model = sample.open(&LoadOptions { runtime, ..LoadOptions::default() }).unwrap();
            let blocks = forward(model.as_ref(), &asked);
            let mut changed = false;
            for (name, tensor) in &float {
                let off = far(&blocks[name], tensor);
                // What is zero but for rounding, such as the rotational gradient of an invariant energy, is so again.
                let allowed = bound * spread(tensor) + f32::EPSILON;
                changed |= off > 0.0;
                assert!(
                    off <= allowed,
                    "{}: {format} {name} is off by {off} of {allowed}",
                    sample.family.name
                );
            }
            assert!(changed, "{}: {format} changes nothing", sample.family.name);
        }
    }
}

#[test]
fn a_quantized_copy_gives_the_same_outputs_as_quantizing_at_load() {
    for sample in samples().into_iter().filter(|sample| sample.has_blocks) {
        let kind = fauna::nn::block_kind("q4_0").unwrap();
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join("copy");
        let source = sample.folder.path().to_str().unwrap();
        let copy = fauna::quantize::QuantizeOptions { source, kind, folder: &folder, replace: false };
        let quantize = || {
            fauna::quantize::quantize(&fauna::zoo(), &LoadOptions::default(), &copy, &fauna::progress::Silent)
        };
        let made = quantize().unwrap();
        assert!(
            made.quantized > 0 && made.bytes_after < made.bytes_before,
            "{}: {made:?}",
            sample.family.name
        );
        assert!(quantize().is_err(), "{}: an existing folder is overwritten", sample.family.name);
        let copied = fauna::open(folder.to_str().unwrap()).unwrap();
        let runtime = Runtime::cpu().with_quantize(Some(kind));
        let at_load = sample.open(&LoadOptions { runtime, ..LoadOptions::default() }).unwrap();
        let inputs = both_rows(&sample);
        let (copied, at_load) = (forward(copied.as_ref(), &inputs), forward(at_load.as_ref(), &inputs));
        assert_eq!(bytes_of(&copied), bytes_of(&at_load), "{}", sample.family.name);
        assert_eq!(
            std::fs::read_dir(out.path()).unwrap().count(),
            1,
            "{}: temporary files remain",
            sample.family.name
        );
    }
}

#[test]
fn random_weights_are_determined_by_the_seed() {
    for sample in samples() {
        let made = |seed| {
            let options = LoadOptions { random_weights: Some(seed), ..LoadOptions::default() };
            forward(sample.open(&options).unwrap().as_ref(), &row(&sample, 0))
        };
        assert_eq!(bytes_of(&made(1)), bytes_of(&made(1)), "{}", sample.family.name);
        assert_ne!(bytes_of(&made(1)), bytes_of(&made(2)), "{}", sample.family.name);
    }
}

#[test]
fn a_missing_tensor_is_an_error_that_names_it() {
    for sample in samples() {
        for gone in 0..sample.tensors.len() {
            let mut left = sample.tensors.clone();
            let (name, _) = left.remove(gone);
            sample.write(&left);
            let error = sample.load_error().to_string();
            assert!(error.contains(&name), "{}: {name} is missing, and it says {error}", sample.family.name);
        }
    }
}

#[test]
fn a_tensor_of_another_shape_is_an_error_with_both_shapes() {
    for sample in samples() {
        for odd in 0..sample.tensors.len() {
            let mut tensors = sample.tensors.clone();
            let (name, shape) = &mut tensors[odd];
            match shape.first_mut() {
                Some(count) => *count += 1,
                // A scalar becomes two values.
                None => shape.push(2),
            }
            let (name, found, wanted) = (name.clone(), shape.clone(), sample.tensors[odd].1.clone());
            sample.write(&tensors);
            let error = sample.load_error().to_string();
            let told =
                [name, format!("{found:?}"), format!("{wanted:?}")].iter().all(|part| error.contains(part));
            assert!(told, "{}: {error}", sample.family.name);
        }
    }
}

#[test]
fn an_unexpected_tensor_is_an_error_that_names_it() {
    for sample in samples() {
        let extra = ("stranger.weight".to_string(), vec![2, 3]);
        let tensors: Vec<_> = sample.tensors.iter().cloned().chain([extra]).collect();
        sample.write(&tensors);
        let error = sample.load_error().to_string();
        assert!(
            error.contains("stranger.weight") && error.contains("[2, 3]"),
            "{}: {error}",
            sample.family.name
        );
    }
}

#[test]
fn a_truncated_file_is_an_error_that_names_it() {
    for sample in samples() {
        let path = sample.write(&sample.tensors);
        let whole = std::fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        // All lengths around both ends, and some in between.
        let lengths = (0..12).chain(header - 3..header + 3).chain(whole.len() - 3..whole.len());
        for length in lengths.chain((0..whole.len()).step_by(whole.len() / 37)) {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = sample.load_error();
            assert_eq!(error.place().map(Path::to_path_buf), Some(path.clone()), "{length}: {error}");
        }
    }
}

#[test]
fn a_missing_config_key_is_an_error_that_names_it() {
    for sample in samples() {
        let whole = (sample.family.sample)();
        let path = sample.folder.path().join("config.json");
        for key in whole.as_object().unwrap().keys() {
            let mut without = whole.clone();
            without.as_object_mut().unwrap().remove(key);
            std::fs::write(&path, without.to_string()).unwrap();
            if let Err(error) = sample.open(&LoadOptions::default()) {
                let error = error.to_string();
                // Without an optional key the config describes another model, which the tensors do not fit.
                let told = error.contains(key.as_str())
                    || error.contains("model_type")
                    || error.contains("missing")
                    || error.contains("shape")
                    || error.contains("does not have")
                    || error.contains("expected the same");
                assert!(told, "{}: without {key} it says {error}", sample.family.name);
            }
        }
    }
}

#[test]
fn an_unknown_input_is_an_error_that_lists_the_known_names() {
    for sample in samples() {
        let mut odd = row(&sample, 0);
        let known = odd.keys().next().unwrap().clone();
        odd.insert("inputs_idz".into(), integers(&[ONE]));
        let error = sample.opened().forward(&odd).unwrap_err().to_string();
        assert!(error.contains("inputs_idz") && error.contains(&known), "{}: {error}", sample.family.name);
    }
}

#[test]
fn tokens_outside_the_vocabulary_and_too_long_texts_are_errors() {
    for sample in of_text() {
        let model = sample.opened();
        let outside = (sample.family.sample)()["vocab_size"].as_i64().map_or(61, |words| words.max(61));
        for ids in [&[3, outside][..], &[3, -1], &[3, i64::MAX]] {
            assert!(model.forward(&inputs(&[ids], &[&[1, 1]])).is_err(), "{}: {ids:?}", sample.family.name);
        }
        assert!(model.embed(&[Item::Text("a text".into())]).is_err(), "{}: no tokenizer", sample.family.name);
    }
}

#[test]
fn a_written_random_checkpoint_equals_its_seed() {
    for sample in samples() {
        let options = LoadOptions { random_weights: Some(SEED), ..LoadOptions::default() };
        let inputs = row(&sample, 0);
        let from_seed = forward(sample.open(&options).unwrap().as_ref(), &inputs);
        let from_file = forward(sample.opened().as_ref(), &inputs);
        assert_eq!(bytes_of(&from_seed), bytes_of(&from_file), "{}", sample.family.name);
        let file = Checkpoint::open(&sample.folder.path().join("model.safetensors")).unwrap();
        assert_eq!(file.names().len(), sample.tensors.len());
    }
}
