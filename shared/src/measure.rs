//! How fast a model is, and how much memory it takes: the numbers behind `fauna bench`.
//!
//! The work is made of token rows of exact lengths, so that no tokenizer is needed and every program that is compared
//! does the same.

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

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Rows of tokens, or pictures, to one vector each.
    Embed,
    /// The reference's forward pass, with every output it has.
    Forward,
    /// A prompt up to its first new token.
    Prefill,
    /// A prompt and all its new tokens; end tokens are ignored.
    Generate,
    /// A sound or pictures to a codec's codes.
    Encode,
    /// Codes of a codec to sound or pictures.
    Decode,
}

impl Task {
    /// The reference's method that does it.
    fn method(self) -> &'static str {
        match self {
            Self::Embed | Self::Forward => "forward",
            Self::Prefill | Self::Generate => "generate",
            Self::Encode => "encode",
            Self::Decode => "decode",
        }
    }
}

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Workload {
    /// What is timed.
    pub task: Task,
    /// Rows at once.
    pub batch: usize,
    /// Tokens of text in each row, all of them real; 0 for pictures alone.
    pub tokens: usize,
    /// Pictures in each row.
    pub images: usize,
    /// New tokens of [`Task::Generate`].
    pub new_tokens: usize,
    /// Seconds of sound of [`Task::Encode`] and [`Task::Decode`].
    pub seconds: f64,
    /// Timed runs, after one that is not.
    #[serde(skip_serializing)]
    pub runs: usize,
}

/// The least, the middle and the most of several numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// The middle one; of an even count the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Summary {
    /// Of `values`; none if there are none.
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

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measurement {
    /// The model, as the user named it.
    pub source: String,
    /// What was done.
    #[serde(flatten)]
    pub work: Workload,
    /// Seconds from nothing to an opened model.
    pub load_seconds: f64,
    /// Seconds from a prompt to its first new token, the median of the runs; for [`Task::Prefill`] and
    /// [`Task::Generate`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_seconds: Option<f64>,
    /// Seconds of each run.
    #[serde(rename = "runs")]
    pub run_seconds: Vec<f64>,
    /// What [`items_per_second`](Measurement::items_per_second) counts: "rows", "tokens", "new tokens".
    pub items: &'static str,
    /// Over the whole of each run.
    pub items_per_second: Summary,
    /// New tokens a second after the first one; for [`Task::Generate`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_per_second: Option<f64>,
    /// The most memory the process held since loading began, mapped files included; where the system says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Bytes of all weights.
    pub weights_bytes: u64,
}

/// The longest sound that is made up for timing, in seconds.
const LONGEST_SOUND: f64 = 3600.0;

/// Opens `source` and does `work`.
///
/// # Errors
/// As [`Zoo::open`], and whatever the model says to the work.
pub fn measure(zoo: &Zoo, source: &str, options: &LoadOptions, work: &Workload) -> Result<Measurement> {
    if work.batch == 0 || work.runs == 0 || work.new_tokens == 0 {
        return Err(Error::input("a batch, new tokens and runs are at least 1"));
    }
    if work.tokens == 0 && work.images == 0 {
        return Err(Error::input("no tokens and no pictures: there is nothing to time"));
    }
    if !(work.seconds > 0.0 && work.seconds <= LONGEST_SOUND) {
        return Err(Error::input(format!("seconds are above 0 and at most {LONGEST_SOUND}")));
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

/// Whether `modality` comes out of `pipeline`.
fn makes(pipeline: &dyn Pipeline, modality: Modality) -> bool {
    pipeline.card().outputs.contains(&modality)
}

/// What the work is done on.
enum Inputs {
    /// What the model's own sample gave.
    Named(Tensors),
    /// A sound, or its codes.
    Item(Item),
}

/// Noise of so many seconds at the model's own rate, or what the model makes of it.
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

/// What a codec makes of `item`: all pieces must be one.
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
                return Err(pipeline.cannot("be timed at embedding token rows").hint("time --task forward"));
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
                // Music: as many steps as new tokens, and the codec's work after them.
                return match made.contains_key("audio_codes") {
                    true => Ok(()),
                    false => Err(pipeline.cannot("be timed at generating from token rows")),
                };
            };
            if made.contains_key("images") {
                // Pictures have as many tokens as they have, whatever was asked for.
                return Ok(());
            }
            let length = sequences.dims().get(1).copied().unwrap_or(0);
            // What reads its prompt apart begins an answer with a start token.
            if ![work.tokens, 1].map(|before| before + new_tokens).contains(&length) {
                return Err(Error::unsupported(format!(
                    "{} tokens came out of a prompt of {} and {new_tokens} new ones",
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

/// Bytes of all weights as they are held: what the files store, or the runtime makes of it.
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
        // In blocks a matrix may lie the other way round.
        let elements = shape.iter().fold(1, |all: usize, n| all.saturating_mul(*n));
        storage.byte_len(&[elements]).unwrap_or(0) as u64
    };
    Ok(inventory.tensors.iter().map(bytes).sum())
}

/// The most memory this process ever held, in bytes, where the system says (Linux).
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Lets [`peak_memory`] begin anew, where the system can.
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
    fn the_peak_of_memory_is_known_on_linux() {
        if cfg!(target_os = "linux") {
            assert!(peak_memory().unwrap() > 1 << 20);
        }
    }

    #[test]
    fn no_numbers_have_no_spread() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[2.0]), Some(Summary { median: 2.0, min: 2.0, max: 2.0 }));
    }
}
