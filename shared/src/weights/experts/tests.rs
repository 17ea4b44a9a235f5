use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Tensor};
use serde_json::json;

use super::*;
use crate::checkpoint::{Checkpoint, Metadata, TensorInfo, write_safetensors};
use crate::model::Family;
use crate::progress::Silent;
use crate::quantize::{QuantizeOptions, WEIGHTS, quantize};
use crate::runtime::{Precision, Runtime};
use crate::weights::{Inventory, Name};
use crate::zoo::{LoadOptions, Zoo};

const COUNT: usize = 3;
const OUTPUTS: usize = 5;
const INPUTS: usize = 64;

/// Writes a file of random tensors: name, type, shape.
fn file(folder: &Path, tensors: &[(&str, StorageType, &[usize])]) -> PathBuf {
    let path = folder.join("model.safetensors");
    let plan = |&(name, storage, shape): &(&str, StorageType, &[usize])| TensorInfo {
        name: name.into(),
        storage,
        shape: shape.to_vec(),
    };
    let planned: Vec<TensorInfo> = tensors.iter().map(plan).collect();
    let seeded = Weights::seeded(7, Runtime::cpu());
    write_safetensors(&path, &Metadata::new(), &planned, |tensor| match tensor.storage {
        StorageType::F32 => {
            let values = seeded.tensor(&tensor.name, &tensor.shape)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(values.into_iter().flat_map(f32::to_le_bytes).collect())
        }
        _ => Ok(seeded.packed(&tensor.name, &tensor.shape, 0)?.unwrap().to_vec()),
    })
    .unwrap();
    path
}

const BLOCKS: (&str, StorageType, &[usize]) = ("up_blocks", StorageType::U8, &[COUNT, OUTPUTS, 2, 16]);
const SCALES: (&str, StorageType, &[usize]) = ("up_scales", StorageType::U8, &[COUNT, OUTPUTS, 2]);
const DENSE: (&str, StorageType, &[usize]) = ("up", StorageType::F32, &[COUNT, INPUTS, OUTPUTS]);

fn opened(path: &Path, runtime: Runtime) -> Weights {
    Weights::open(&Checkpoint::open(path).unwrap(), |_| Name::Keep, runtime).unwrap()
}

fn numbers(matrix: &Matrix) -> Vec<f32> {
    matrix.tensor().unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The error of loading a file of these tensors.
fn load_error(tensors: &[(&str, StorageType, &[usize])]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let weights = opened(&file(folder.path(), tensors), Runtime::cpu());
    assert_eq!(weights.experts("up", COUNT, INPUTS, OUTPUTS, true).unwrap().len(), COUNT);
    let error = weights.finish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    error.to_string()
}

#[test]
fn packed_experts_are_mapped_and_equal_the_seeded_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), &[BLOCKS, SCALES]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    // The file is packed, regardless of the config.
    let weights = Weights::open(&checkpoint, |_| Name::Keep, Runtime::cpu()).unwrap();
    let experts = weights.experts("up", COUNT, INPUTS, OUTPUTS, false).unwrap();
    let inventory = weights.finish().unwrap();
    let counted = (COUNT * OUTPUTS * INPUTS) as u64;
    assert_eq!(inventory.parameters, counted);
    assert_eq!(inventory.packed.get("up_blocks"), Some(&counted));
    assert!(inventory.matrices.is_empty());

    let seeded = Weights::seeded(7, Runtime::cpu()).experts("up", COUNT, INPUTS, OUTPUTS, true).unwrap();
    let (blocks, scales) = (checkpoint.get("up_blocks").unwrap(), checkpoint.get("up_scales").unwrap());
    let mut all = vec![0.0; COUNT * OUTPUTS * INPUTS];
    mxfp4::dequantize(&blocks.bytes, &scales.bytes, &mut all);
    assert!(all.iter().all(|value| value.abs() < 0.05));
    for ((expert, seeded), wanted) in experts.iter().zip(&seeded).zip(all.chunks_exact(OUTPUTS * INPUTS)) {
        assert_eq!((numbers(expert), numbers(seeded)), (wanted.to_vec(), wanted.to_vec()));
        assert!(format!("{expert:?}").contains("160 bytes mapped"), "{expert:?}");
    }
    let ids = Tensor::new(&[3u32, 0], &Device::Cpu).unwrap();
    let rows = experts[1].rows(&ids, candle_core::DType::F32).unwrap().to_vec2::<f32>().unwrap();
    let row = |i: usize| all[(OUTPUTS + i) * INPUTS..][..INPUTS].to_vec();
    assert_eq!(rows, [row(3), row(0)]);
}

#[test]
fn packed_experts_multiply_as_dequantized_ones() {
    let weights = Weights::seeded(3, Runtime::cpu());
    let expert = &weights.experts("up", 2, INPUTS, OUTPUTS, true).unwrap()[1];
    let bias = weights.tensor("bias", &[OUTPUTS]).unwrap();
    for rows in [1, 3, 40] {
        let x = weights.tensor("x", &[rows, INPUTS]).unwrap();
        let fast = expert.multiply(&x, Some(&bias), Some(crate::nn::Activation::Relu)).unwrap();
        let plain = x.matmul(&expert.tensor().unwrap().t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        let off = (fast - plain.relu().unwrap()).unwrap().abs().unwrap().flatten_all().unwrap();
        assert!(off.max(0).unwrap().to_scalar::<f32>().unwrap() < 1e-6);
        // Inputs with gradients take another code path.
        let tracked = candle_core::Var::from_tensor(&x).unwrap();
        let slow = expert.multiply(&tracked, Some(&bias), None).unwrap();
        let grads = slow.sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get(&tracked).unwrap().dims(), [rows, INPUTS]);
    }
}

#[test]
fn packed_experts_are_dequantized_on_request() {
    let packed = Weights::seeded(7, Runtime::cpu()).experts("up", COUNT, INPUTS, OUTPUTS, true).unwrap();
    for precision in [Precision::F32, Precision::Bf16] {
        let runtime = Runtime::cpu().with_dequantize(true).with_precision(precision);
        let wide = Weights::seeded(7, runtime).experts("up", COUNT, INPUTS, OUTPUTS, true).unwrap();
        for (packed, wide) in packed.iter().zip(&wide) {
            assert_eq!(numbers(packed), numbers(wide));
            assert!(format!("{wide:?}").contains("Dense"), "{wide:?}");
        }
    }
}

#[test]
fn dense_experts_are_read_if_there_are_no_packed_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), &[DENSE]);
    let experts = |weights: &Weights| weights.experts("up", COUNT, INPUTS, OUTPUTS, true).unwrap();
    let weights = opened(&path, Runtime::cpu());
    let read = experts(&weights);
    let inventory = weights.finish().unwrap();
    assert_eq!(inventory.matrices.get("up"), Some(&MatrixUse::Experts));
    let all = Weights::seeded(7, Runtime::cpu()).tensor("up", DENSE.2).unwrap();
    for (i, expert) in read.iter().enumerate() {
        let wanted = all.get(i).unwrap().t().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(numbers(expert), wanted);
    }
    // Each matrix is quantized separately.
    let runtime = Runtime::cpu().with_quantize(Some(GgmlDType::Q8_0));
    for (i, expert) in experts(&opened(&path, runtime)).iter().enumerate() {
        let matrix = numbers(&read[i]);
        let blocks = crate::nn::blocks::quantize(GgmlDType::Q8_0, &matrix).unwrap();
        let mut wanted = vec![0.0; matrix.len()];
        crate::nn::blocks::dequantize(GgmlDType::Q8_0, &blocks, &mut wanted).unwrap();
        assert_eq!(numbers(expert), wanted);
        assert_ne!(wanted, matrix);
    }
}

#[test]
fn missing_blocks_or_scales_are_named() {
    let error = load_error(&[BLOCKS]);
    assert!(error.contains("missing  up_scales  [3, 5, 2]"), "{error}");
    let error = load_error(&[SCALES]);
    assert!(error.contains("missing  up_blocks  [3, 5, 2, 16]"), "{error}");
    let error = load_error(&[]);
    assert!(error.contains("missing  up_blocks") && error.contains("missing  up_scales"), "{error}");
    let error = load_error(&[BLOCKS, SCALES, DENSE]);
    assert!(error.contains("unread   up  [3, 64, 5]"), "{error}");
}

#[test]
fn packed_experts_of_a_wrong_shape_are_named_with_both_shapes() {
    for shape in [&[COUNT, OUTPUTS, 2, 32][..], &[COUNT, OUTPUTS, 1, 16], &[COUNT - 1, OUTPUTS, 2, 16]] {
        let error = load_error(&[("up_blocks", StorageType::U8, shape), SCALES]);
        let line = format!("shape    up_blocks  {shape:?} in the file, [3, 5, 2, 16] from the config");
        assert!(error.contains(&line), "{error}");
    }
    let error = load_error(&[BLOCKS, ("up_scales", StorageType::U8, &[COUNT, OUTPUTS + 1, 2])]);
    assert!(error.contains("up_scales  [3, 6, 2] in the file, [3, 5, 2] from the config"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let weights =
        opened(&file(folder.path(), &[("up", StorageType::F32, &[2, INPUTS, OUTPUTS])]), Runtime::cpu());
    weights.experts("up", COUNT, INPUTS, OUTPUTS, false).unwrap();
    let error = weights.finish().unwrap_err().to_string();
    assert!(error.contains("up  [2, 64, 5] in the file, [3, 64, 5] from the config"), "{error}");
}

#[test]
fn packed_experts_of_a_wrong_type_are_named() {
    let error = load_error(&[(BLOCKS.0, StorageType::F32, BLOCKS.2), SCALES]);
    assert!(error.contains("1 of another type") && error.contains("type     up_blocks  F32"), "{error}");
}

#[test]
fn inputs_must_be_a_multiple_of_the_block_size() {
    let error = Weights::meta().at("mlp").experts("up", 2, 48, 5, true).unwrap_err().to_string();
    assert!(error.contains("mlp.up_blocks") && error.contains("48"), "{error}");
}

#[test]
fn missing_experts_take_no_memory() {
    let many = usize::MAX / 64;
    for packed in [false, true] {
        let weights = Weights::meta();
        assert_eq!(weights.experts("up", 4, many / 32 * 32, 1 << 20, packed).unwrap().len(), 4);
        assert!(weights.finish().unwrap().parameters > 1 << 60);
        assert!(Weights::meta().experts("up", many, 64, 5, packed).is_err());
        assert!(Weights::seeded(7, Runtime::cpu()).experts("up", many, 64, 5, packed).is_err());
        let error = Weights::empty("there", Runtime::cpu()).experts("up", many, 64, 5, packed).unwrap_err();
        assert!(error.to_string().contains("missing  up"), "{error}");
        // The limit is on the total number of experts.
        let weights = Weights::meta();
        let asked =
            (0..MOST_TENSORS).take_while(|i| weights.experts(&format!("{i}"), 100, 64, 5, packed).is_ok());
        assert_eq!(asked.count(), MOST_TENSORS / 100);
    }
}

#[test]
fn experts_without_outputs_are_an_error() {
    for packed in [false, true] {
        let error = Weights::seeded(7, Runtime::cpu()).experts("up", 3, 64, 0, packed).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch);
    }
}

/// A family with two mixtures of experts.
static MIXTURE: Family = Family {
    name: "mixture",
    systems: &["Mixture"],
    paper: "",
    model_types: &["mixture"],
    architectures: &[],
    gguf: &[],
    keys: &crate::model::Keys::NONE,
    inputs: &[],
    outputs: &[],
    releases: &[],
    config_of_gguf: None,
    layout: None,
    rename: |name| match name {
        "up_weight.blocks" => Name::To("up_blocks".into()),
        "up_weight.scales" => Name::To("up_scales".into()),
        _ => Name::Keep,
    },
    inventory: |pretrained| Ok(mixtures(&pretrained.weights)?.1),
    causal_lm: None,
    open: |pretrained| Err(Error::unsupported(pretrained.config.to_string())),
    sample: || json!({}),
};

fn mixtures(weights: &Weights) -> Result<(Vec<Matrix>, Inventory)> {
    let mut all = weights.experts("up", COUNT, INPUTS, OUTPUTS, true)?;
    all.extend(weights.experts("down", COUNT, INPUTS, 7, false)?);
    Ok((all, weights.finish()?))
}

#[test]
fn a_quantized_copy_equals_quantization_at_load() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "mixture"}"#).unwrap();
    // The packed tensors have the names of the original release.
    let path = file(
        folder.path(),
        &[
            ("up_weight.blocks", StorageType::U8, BLOCKS.2),
            ("up_weight.scales", StorageType::U8, SCALES.2),
            ("down", StorageType::F32, &[COUNT, INPUTS, 7]),
        ],
    );
    let out = tempfile::tempdir().unwrap();
    let copied = out.path().join("copy");
    let source = folder.path().to_str().unwrap();
    let copy = QuantizeOptions { source, kind: GgmlDType::Q4_0, folder: &copied, replace: false };
    let made = quantize(&Zoo::new([&MIXTURE]), &LoadOptions::default(), &copy, &Silent).unwrap();
    assert_eq!((made.tensors, made.quantized), (3, 1));
    assert!(made.bytes_after < made.bytes_before);

    let checkpoint = Checkpoint::open(&copied.join(WEIGHTS)).unwrap();
    let stored =
        |name: &str| checkpoint.get(name).map(|stored| (stored.storage, stored.shape.clone())).unwrap();
    assert_eq!(stored("down"), (StorageType::Block(GgmlDType::Q4_0), vec![COUNT, 7, INPUTS]));
    assert_eq!(stored("up_weight.blocks"), (StorageType::I8, BLOCKS.2.to_vec()));
    let read = |path: &Path, runtime| {
        let checkpoint = Checkpoint::open(path).unwrap();
        mixtures(&Weights::open(&checkpoint, MIXTURE.rename, runtime).unwrap()).unwrap()
    };
    let (from_copy, inventory) = read(&copied.join(WEIGHTS), Runtime::cpu());
    let runtime = Runtime::cpu().with_quantize(Some(GgmlDType::Q4_0));
    let (at_load, original) = read(&path, runtime);
    assert_eq!((inventory.parameters, inventory.packed), (original.parameters, original.packed));
    for (copied, at_load) in from_copy.iter().zip(&at_load) {
        assert_eq!(numbers(copied), numbers(at_load));
        let x = Weights::seeded(1, Runtime::cpu()).tensor("x", &[2, INPUTS]).unwrap();
        let products = |matrix: &Matrix| matrix.multiply(&x, None, None).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(products(copied), products(at_load));
    }
    // Blocks can be dequantized on load.
    let (wide, _) = read(&copied.join(WEIGHTS), Runtime::cpu().with_dequantize(true));
    assert!(wide.iter().zip(&at_load).all(|(wide, at_load)| numbers(wide) == numbers(at_load)));
}
