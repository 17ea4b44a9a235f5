//! Benchmarks of speed and memory, as in `fauna bench`.
//!
//! Inputs are random tokens of exact lengths, so that no tokenizer is needed and every program in a comparison does the
//! same work.

use std::ops::ControlFlow;
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use crate::checkpoint::StorageType;
use crate::generate::{GenerationConfig, Rng};
use crate::item::{Item, Modality, Prompt, Sound, Tensors};
use crate::model::{Pipeline, SampleSizes};
use crate::zoo::{LoadOptions, Zoo};
use crate::{Error, Result};

/// The operation that is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Embedding of token sequences or images.
    Embed,
    /// Forward pass with all outputs of the reference implementation.
    Forward,
    /// Prefill of a prompt, up to the first new token.
    Prefill,
    /// Generation from a prompt; end-of-sequence tokens are ignored.
    Generate,
    /// Encoding of audio or images by a codec.
    Encode,
    /// Decoding of codes by a codec.
    Decode,
}

impl Task {
    /// Returns the method of the reference implementation.
    fn method(self) -> &'static str {
        match self {
            Self::Embed | Self::Forward => "forward",
            Self::Prefill | Self::Generate => "generate",
            Self::Encode => "encode",
            Self::Decode => "decode",
        }
    }
}

/// Size of a benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Workload {
    /// The operation that is timed.
    pub task: Task,
    /// Batch size.
    pub batch: usize,
    /// Number of text tokens per sequence, without padding; 0 for images only.
    pub tokens: usize,
    /// Number of images per sequence.
    pub images: usize,
    /// Number of new tokens of [`Task::Generate`].
    pub new_tokens: usize,
    /// Seconds of audio of [`Task::Encode`] and [`Task::Decode`].
    pub seconds: f64,
    /// Number of timed runs, after one warm-up run.
    #[serde(skip_serializing)]
    pub runs: usize,
}

/// Minimum, median and maximum of a list of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// The median; the mean of the two middle values if the count is even.
    pub median: f64,
    /// The minimum.
    pub min: f64,
    /// The maximum.
    pub max: f64,
}

impl Summary {
    /// Summarizes `values`; `None` if there are none.
    ///
    /// ```
    /// use fauna_shared::measure::Summary;
    /// assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 9.0]), Some(Summary { median: 3.0, min: 1.0, max: 9.0 }));
    /// ```
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() {
            0 => return None,
            length if length % 2 == 1 => sorted[middle],
            _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
        };
        Some(Self { median, min: sorted[0], max: sorted[sorted.len() - 1] })
    }
}

/// Result of a benchmark.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measurement {
    /// The model, as given by the user.
    pub source: String,
    /// The workload.
    #[serde(flatten)]
    pub work: Workload,
    /// Seconds to load the model.
    pub load_seconds: f64,
    /// Time to first token in seconds, the median of the runs; for [`Task::Prefill`] and [`Task::Generate`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_seconds: Option<f64>,
    /// Seconds of each run.
    #[serde(rename = "runs")]
    pub run_seconds: Vec<f64>,
    /// Unit of [`items_per_second`](Measurement::items_per_second): "rows", "tokens", "new tokens".
    pub items: &'static str,
    /// Throughput of each run.
    pub items_per_second: Summary,
    /// New tokens per second after the first one; for [`Task::Generate`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_per_second: Option<f64>,
    /// Peak memory of the process since the start of loading, including mapped files, if the system reports it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Size of all weights in bytes.
    pub weights_bytes: u64,
}

/// Maximum length of generated audio inputs, in seconds.
const LONGEST_SOUND: f64 = 3600.0;

/// Loads the model `source` and runs the benchmark `work`.
///
/// # Errors
/// Errors of [`Zoo::open`] and of the model.
pub fn measure(zoo: &Zoo, source: &str, options: &LoadOptions, work: &Workload) -> Result<Measurement> {
    if work.batch == 0 || work.runs == 0 || work.new_tokens == 0 {
        return Err(Error::input("batch, new tokens and runs must be at least 1"));
    }
    if work.tokens == 0 && work.images == 0 {
        return Err(Error::input("expected at least one token or image"));
    }
    if !(work.seconds > 0.0 && work.seconds <= LONGEST_SOUND) {
        return Err(Error::input(format!(
            "seconds must be above 0 and at most {LONGEST_SOUND}, found {}",
            work.seconds
        )));
    }
    reset_peak_memory();
    let start = Instant::now();
    let pipeline = zoo.open(source, options)?;
    let load_seconds = start.elapsed().as_secs_f64();

    let inputs = match work.task {
        Task::Encode | Task::Decode if makes(pipeline.as_ref(), Modality::Sound) => {
            Inputs::Item(sound_or_codes(zoo, source, options, pipeline.as_ref(), work)?)
        }
        task => {
            let sizes = SampleSizes { rows: work.batch, tokens: work.tokens, images: work.images };
            Inputs::Named(pipeline.sample(task.method(), &sizes)?)
        }
    };
    run(pipeline.as_ref(), &inputs, work, work.new_tokens)?;
    let mut first_seconds = Vec::new();
    let mut run_seconds = Vec::new();
    for _ in 0..work.runs {
        if work.task == Task::Generate {
            first_seconds.push(timed(|| run(pipeline.as_ref(), &inputs, work, 1))?);
        }
        run_seconds.push(timed(|| run(pipeline.as_ref(), &inputs, work, work.new_tokens))?);
    }

    let (rows, pictures) = (work.batch, work.batch * work.images.max(1));
    let (items, count) = match work.task {
        Task::Embed => ("rows", rows as f64),
        Task::Forward if work.tokens == 0 => ("pictures", pictures as f64),
        Task::Forward | Task::Prefill => ("tokens", (rows * work.tokens) as f64),
        Task::Generate if makes(pipeline.as_ref(), Modality::Image) => ("pictures", rows as f64),
        Task::Generate => ("new tokens", (rows * work.new_tokens) as f64),
        Task::Encode | Task::Decode => match inputs {
            Inputs::Item(_) => ("seconds of sound", work.seconds),
            Inputs::Named(_) => ("pictures", pictures as f64),
        },
    };
    let rates: Vec<f64> = run_seconds.iter().map(|seconds| count / seconds).collect();
    let items_per_second = Summary::of(&rates).ok_or_else(|| Error::input("no run was timed"))?;
    let median = |values: &[f64]| Summary::of(values).map(|spread| spread.median);
    let first_token_seconds = match work.task {
        Task::Generate => median(&first_seconds),
        Task::Prefill => median(&run_seconds),
        Task::Embed | Task::Forward | Task::Encode | Task::Decode => None,
    };
    let decode_per_second = match (work.task, first_token_seconds, median(&run_seconds)) {
        (Task::Generate, Some(first), Some(whole)) if work.new_tokens > 1 && whole > first => {
            Some((work.batch * (work.new_tokens - 1)) as f64 / (whole - first))
        }
        _ => None,
    };
    Ok(Measurement {
        source: source.to_string(),
        work: *work,
        load_seconds,
        first_token_seconds,
        run_seconds,
        items,
        items_per_second,
        decode_per_second,
        peak_memory_bytes: peak_memory(),
        weights_bytes: weights_bytes(zoo, source, options)?,
    })
}

/// Whether `modality` is an output of `pipeline`.
fn makes(pipeline: &dyn Pipeline, modality: Modality) -> bool {
    pipeline.card().outputs.contains(&modality)
}

/// Inputs of the benchmark.
enum Inputs {
    /// Inputs of [`Pipeline::sample`].
    Named(Tensors),
    /// Audio, or its codes.
    Item(Item),
}

/// Returns noise of the length of `work` at the sampling rate of the model, encoded for [`Task::Decode`].
fn sound_or_codes(
    zoo: &Zoo,
    source: &str,
    options: &LoadOptions,
    pipeline: &dyn Pipeline,
    work: &Workload,
) -> Result<Item> {
    let (_, pretrained) = zoo.pretrained(source, options)?;
    let rate = pretrained.config["sampling_rate"]
        .as_u64()
        .and_then(|rate| u32::try_from(rate).ok())
        .unwrap_or(44_100);
    let channels = pretrained.config["audio_channels"].as_u64().map_or(1, |channels| channels.clamp(1, 2));
    let mut random = Rng::new(0, 0);
    let samples = (f64::from(rate) * work.seconds).ceil() as usize;
    let mut channel = || (0..samples).map(|_| (random.uniform() - 0.5) as f32).collect::<Vec<f32>>();
    let sound = Item::Sound(Sound { rate, channels: (0..channels).map(|_| channel()).collect() });
    match work.task {
        Task::Decode => recoded(pipeline, sound),
        _ => Ok(sound),
    }
}

/// Encodes or decodes `item` with a codec, which must return a single item.
fn recoded(pipeline: &dyn Pipeline, item: Item) -> Result<Item> {
    let mut made = None;
    pipeline.generate(&Prompt::Items(vec![item]), &GenerationConfig::default(), &mut |item| {
        made = Some(item);
        ControlFlow::Continue(())
    })?;
    made.ok_or_else(|| pipeline.cannot("be timed as a codec"))
}

fn run(pipeline: &dyn Pipeline, inputs: &Inputs, work: &Workload, new_tokens: usize) -> Result<()> {
    let inputs = match inputs {
        Inputs::Named(named) => named,
        Inputs::Item(item) => return recoded(pipeline, item.clone()).map(drop),
    };
    let new_tokens = if work.task == Task::Prefill { 1 } else { new_tokens };
    match work.task {
        Task::Forward | Task::Encode | Task::Decode => {
            pipeline.call(work.task.method(), inputs, &json!({}))?
        }
        Task::Embed if inputs.contains_key("pixel_values") => {
            pipeline.call("get_image_features", inputs, &json!({}))?
        }
        Task::Embed => {
            let made = pipeline.call("forward", inputs, &json!({}))?;
            if !made.contains_key("sentence_embedding") {
                return Err(pipeline.cannot("be timed at embedding token rows").set(
                    "time another task",
                    "Workload::task",
                    "forward",
                ));
            }
            made
        }
        _ => {
            let made = pipeline.call(
                "generate",
                inputs,
                &json!({"max_new_tokens": new_tokens, "eos_token_id": [], "pad_token_id": 0}),
            )?;
            let Some(sequences) = made.get("sequences") else {
                // Music: one decoding step per new token, then the codec.
                return match made.contains_key("audio_codes") {
                    true => Ok(()),
                    false => Err(pipeline.cannot("be timed at generating from token rows")),
                };
            };
            if made.contains_key("images") {
                // Images have a fixed number of tokens.
                return Ok(());
            }
            let length = sequences.dims().get(1).copied().unwrap_or(0);
            // Encoder-decoder models return a start token and the new tokens, without the prompt.
            if ![work.tokens, 1].map(|before| before + new_tokens).contains(&length) {
                return Err(Error::unsupported(format!(
                    "the model returned {} tokens for a prompt of {} and {new_tokens} new tokens",
                    length, work.tokens
                )));
            }
            made
        }
    };
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Returns the size of all weights in bytes, as stored in the files or as quantized by the runtime.
fn weights_bytes(zoo: &Zoo, source: &str, options: &LoadOptions) -> Result<u64> {
    let quantize = options.runtime.quantize();
    if options.random_weights.is_none() && quantize.is_none() {
        let (_, pretrained) = zoo.pretrained(source, options)?;
        let stored = pretrained.checkpoint.iter().flat_map(|checkpoint| checkpoint.iter());
        return Ok(stored.map(|(_, stored)| stored.bytes.len() as u64).sum());
    }
    let (_, inventory) = zoo.inventory(source, options)?;
    let bytes = |(name, shape): &(String, Vec<usize>)| {
        let matrix = inventory.matrices.get(name);
        let format = quantize.and_then(|kind| matrix?.format(kind, matrix?.inputs(shape)?));
        let storage = match format {
            Some(kind) => StorageType::Block(kind),
            None if inventory.packed.contains_key(name) => StorageType::U8,
            None => StorageType::F32,
        };
        // A quantized matrix may be stored transposed.
        let elements = shape.iter().fold(1, |all: usize, n| all.saturating_mul(*n));
        storage.byte_len(&[elements]).unwrap_or(0) as u64
    };
    Ok(inventory.tensors.iter().map(bytes).sum())
}

/// Returns the peak memory of this process in bytes, if the system reports it (Linux).
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Resets [`peak_memory`], if the system supports it.
pub fn reset_peak_memory() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::token_rows;

    #[test]
    fn token_rows_have_the_exact_length_and_small_ids() {
        let rows = token_rows(&SampleSizes { rows: 3, tokens: 50, images: 0 }).unwrap();
        assert_eq!(rows["attention_mask"].dims(), [3, 50]);
        let ids: Vec<Vec<i64>> = rows["input_ids"].to_vec2().unwrap();
        assert!(ids.iter().flatten().all(|id| (5..24).contains(id)) && ids[0] != ids[1]);
    }

    #[test]
    fn peak_memory_is_known_on_linux() {
        if cfg!(target_os = "linux") {
            assert!(peak_memory().unwrap() > 1 << 20);
        }
    }

    #[test]
    fn an_empty_list_has_no_summary() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[2.0]), Some(Summary { median: 2.0, min: 2.0, max: 2.0 }));
    }
}
