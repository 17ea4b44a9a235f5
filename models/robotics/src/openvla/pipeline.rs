//! The pipeline of OpenVLA: the methods of the reference, generation from a prompt, and a policy.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use fauna_shared::attention::{Cache, Mask};
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::item::{Image, ImageOptions, Item, Prompt, Tensors};
use fauna_shared::model::{
    Card, Controller, DegreeOfFreedom, Observation, Pipeline, Policy, Pretrained, SampleSizes, Task,
    Trainable, noise_pixels, only_known, token_rows,
};
use fauna_shared::text::Tokenizer;
use fauna_shared::{Error, ErrorKind, Result, transfer};
use fauna_text::called::{sequences, token_ids};
use fauna_text::words;
use serde_json::Value;

use super::alone::{PROCESSOR_FILE, preprocess};
use super::controller::{OpenVlaController, Writer, Written};
use super::processor::FrameProcessor;
use super::prompt::end_with_boundary;
use super::{OpenVla, PromptStyle};
use crate::action::{ActionTokenizer, Statistics, StatisticsTable};

/// Name of the statistics file of fine-tuned models.
const STATISTICS_FILE: &str = "dataset_statistics.json";

/// Maximum number of new tokens of one call.
const MOST_NEW: u64 = 4096;

/// The OpenVLA pipeline: the model, its tokenizers, image processor and action statistics.
pub struct OpenVlaPipeline {
    pub(super) network: OpenVla,
    device: Device,
    half_cache: bool,
    words: Option<Tokenizer>,
    pub(super) actions: ActionTokenizer,
    statistics: StatisticsTable,
    pub(super) processor: FrameProcessor,
    /// The `unnorm_key` set at loading.
    pub(super) unnorm_key: Option<String>,
    /// The `camera` set at loading, for training.
    pub(super) camera: Option<String>,
    card: Card,
}

/// Prompts and their generated tokens.
struct Continued {
    rows: Vec<Vec<i64>>,
    written: Vec<Written>,
}

impl OpenVlaPipeline {
    /// Loads a release in either format. Uses the settings `unnorm_key`, `center_crop` and `camera`.
    ///
    /// # Errors
    /// An invalid config, tensor, processor file or statistics file; the error names the file.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (network, inventory) = super::release::load(pretrained)?;
        let config = network.config();
        let architecture = pretrained.architecture("OpenVLAForActionPrediction");
        let mut card = pretrained.card(&architecture, &inventory);
        card.context = Some(network.language_model().max_position_embeddings());
        let statistics = statistics(pretrained)?;
        let setting = |name: &str| match pretrained.options.settings.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(value)) => Ok(Some(value.clone())),
            Some(other) => Err(Error::input(format!("{name} is {other}, expected a string"))),
        };
        let (unnorm_key, camera) = (setting("unnorm_key")?, setting("camera")?);
        if unnorm_key.is_some() {
            statistics.get(unnorm_key.as_deref())?;
        }
        if unnorm_key.is_none() && statistics.keys().len() > 1 {
            let keys = statistics.keys().collect::<Vec<_>>().join(", ");
            card.notes.push(format!("unnorm_key is one of {keys}"));
        }
        Ok(Self {
            actions: ActionTokenizer::new(network.words(), config.n_action_bins, -1.0, 1.0)
                .map_err(|error| error.context("n_action_bins"))?,
            processor: processor(pretrained, &network)?,
            words: words::tokenizer(pretrained)?,
            device: pretrained.weights.runtime().device().clone(),
            half_cache: pretrained.weights.half_cache(),
            network,
            statistics,
            unnorm_key,
            camera,
            card,
        })
    }

    /// Returns the model.
    pub fn network(&self) -> &OpenVla {
        &self.network
    }

    /// Returns the action tokenizer.
    pub fn action_tokenizer(&self) -> &ActionTokenizer {
        &self.actions
    }

    /// Returns the action statistics of all datasets.
    pub fn statistics(&self) -> &StatisticsTable {
        &self.statistics
    }

    /// Returns the statistics of `key`, of the key set at loading, or the only ones.
    pub(super) fn statistics_of(&self, key: Option<&str>) -> Result<&Statistics> {
        Ok(self.statistics.get(key.or(self.unnorm_key.as_deref()))?.1)
    }

    /// Returns the token ids, `(batch, sequence)` of u32, and the attention mask.
    fn ids(&self, inputs: &Tensors) -> Result<(Tensor, Option<Vec<Vec<bool>>>)> {
        let ids = inputs.get("input_ids").ok_or_else(|| Error::input("input_ids are missing"))?;
        if ids.rank() != 2 || ids.elem_count() == 0 {
            return Err(Error::input(format!("input_ids are {:?}, expected (batch, sequence)", ids.dims())));
        }
        let mask = inputs.get("attention_mask");
        if let Some(mask) = mask
            && mask.dims() != ids.dims()
        {
            return Err(Error::input(format!(
                "attention_mask are {:?}, input_ids {:?}",
                mask.dims(),
                ids.dims()
            )));
        }
        let vocabulary = self.network.language_model().vocab_size();
        let real = mask.map(words::real_tokens).transpose()?;
        Ok((words::checked_ids(ids, mask, vocabulary, &self.device)?, real))
    }

    /// Returns the logits of the whole prompt, patches included, and the projected patch embeddings; only one of them if the
    /// inputs are incomplete.
    fn forward_ids(&self, inputs: &Tensors) -> Result<Tensors> {
        only_known(inputs, &["attention_mask", "input_ids", "pixel_values"])?;
        let patches = inputs.get("pixel_values").map(|pixels| self.network.see(pixels)).transpose()?;
        let mut out = Tensors::new();
        if inputs.contains_key("input_ids") || patches.is_none() {
            let hidden = self.hidden(inputs, patches.as_ref())?;
            out.insert("logits".into(), self.network.logits(&hidden)?);
        }
        if let Some(patches) = patches {
            out.insert("projector_features".into(), patches);
        }
        Ok(out)
    }

    /// The hidden states after the final norm, `(batch, patches + sequence, hidden_size)`.
    pub(super) fn hidden(&self, inputs: &Tensors, patches: Option<&Tensor>) -> Result<Tensor> {
        let (ids, real) = self.ids(inputs)?;
        let x = self.network.embed(&ids, patches)?;
        let mask = match real {
            None => Mask::causal(),
            Some(real) => Mask::causal().with_padding(&around(real, patches)?)?,
        };
        let layers = self.network.language_model().num_hidden_layers();
        self.network.hidden(&x, &mask, &mut Cache::new(layers, x.dim(1)?).single_pass())
    }

    /// The reference's `predict_action`: greedily generates one token per degree of freedom, and returns the action in the
    /// units of `unnorm_key` as `actions`, or of each of `unnorm_keys` as `actions.KEY`.
    fn predict_action(&self, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        let keys: Vec<Option<&str>> = match &options["unnorm_keys"] {
            Value::Null => vec![options["unnorm_key"].as_str()],
            Value::Array(keys) => keys.iter().map(Value::as_str).collect(),
            other => return Err(Error::input(format!("unnorm_keys is {other}, expected a list of strings"))),
        };
        let sets = keys.iter().map(|key| self.statistics_of(*key)).collect::<Result<Vec<_>>>()?;
        let dim = sets.first().ok_or_else(|| Error::input("unnorm_keys is an empty list"))?.dim();
        if let Some(other) = sets.iter().find(|set| set.dim() != dim) {
            return Err(Error::input(format!(
                "unnorm_keys of datasets with {dim} and {} degrees of freedom",
                other.dim()
            ))
            .hint("use one call for each"));
        }
        let Continued { rows, written } = self.continued(inputs, options, Some(dim), &[])?;
        let [Written { tokens, last_logits }] = &written[..] else {
            return Err(Error::input(format!(
                "predict_action supports a batch size of 1, got {}",
                written.len()
            )));
        };
        let bins: Vec<i64> = tokens.iter().map(|token| self.actions.bin(i64::from(*token)) as i64).collect();
        let normalized: Vec<f64> =
            tokens.iter().map(|token| self.actions.decode(i64::from(*token))).collect();
        let numbers = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
            Tensor::from_vec(values, normalized.len(), &Device::Cpu)
        };
        let mut out = Tensors::from([
            ("bins".to_string(), Tensor::from_vec(bins, tokens.len(), &Device::Cpu)?),
            ("last_logits".to_string(), last_logits.clone()),
            ("normalized_actions".to_string(), numbers(&normalized)?),
            ("sequences".to_string(), sequences(&rows, std::slice::from_ref(tokens), 0)?),
        ]);
        for (key, set) in keys.iter().zip(sets) {
            let actions = numbers(&set.unnormalize(&normalized)?)?;
            let name = key.filter(|_| !options["unnorm_keys"].is_null());
            out.insert(name.map_or("actions".into(), |key| format!("actions.{key}")), actions);
        }
        Ok(out)
    }

    /// The reference's `generate`: greedy decoding, one prompt after the other.
    fn generate_ids(&self, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        let ends = token_ids(&options["eos_token_id"]);
        let Continued { rows, written } = self.continued(inputs, options, None, &ends)?;
        let new: Vec<Vec<u32>> = written.into_iter().map(|written| written.tokens).collect();
        let pad = token_ids(&options["pad_token_id"]).first().or(ends.first()).copied().unwrap_or(0);
        Ok(Tensors::from([("sequences".to_string(), sequences(&rows, &new, pad)?)]))
    }

    /// Generates tokens for each prompt. `action`: the number of degrees of freedom, if an action is generated.
    fn continued(
        &self,
        inputs: &Tensors,
        options: &Value,
        action: Option<usize>,
        ends: &[u32],
    ) -> Result<Continued> {
        only_known(inputs, &["attention_mask", "input_ids", "pixel_values"])?;
        if options["do_sample"] == Value::Bool(true) {
            return Err(Error::input("do_sample is not supported: actions are decoded greedily"));
        }
        let (ids, real) = self.ids(inputs)?;
        if real.is_some_and(|real| real.iter().flatten().any(|real| !real)) {
            return Err(Error::input("attention_mask masks tokens, expected prompts without padding"));
        }
        let new = match (&options["max_new_tokens"], action) {
            (Value::Null, action) => action.unwrap_or(20),
            (value, _) => match value.as_u64().filter(|new| (1..=MOST_NEW).contains(new)) {
                Some(new) => new as usize,
                None => {
                    return Err(Error::input(format!("max_new_tokens is {value}, expected 1 to {MOST_NEW}")));
                }
            },
        };
        if let Some(dim) = action.filter(|dim| *dim != new) {
            return Err(Error::input(format!("max_new_tokens is {new}, but an action has {dim} tokens")));
        }
        let mut rows: Vec<Vec<u32>> = transfer::rows(&ids)?;
        let vocabulary = self.network.language_model().vocab_size();
        if action.is_some() {
            rows.iter_mut().for_each(|row| end_with_boundary(row, vocabulary));
        }
        let patches = inputs.get("pixel_values").map(|pixels| self.network.see(pixels)).transpose()?;
        if let Some(patches) = patches.as_ref().filter(|patches| patches.dims()[0] != rows.len()) {
            return Err(Error::input(format!("{} images for {} sequences", patches.dims()[0], rows.len())));
        }
        let mut written = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            let patches = patches.as_ref().map(|patches| patches.narrow(0, i, 1)).transpose()?;
            let mut writer = self.writer(row.len(), new);
            written.push(writer.write(row, patches.as_ref(), new, ends)?);
        }
        let rows = rows.iter().map(|row| row.iter().map(|id| i64::from(*id)).collect()).collect();
        Ok(Continued { rows, written })
    }

    /// Creates a writer for prompts of `time` tokens, not counting patches.
    fn writer(&self, time: usize, new: usize) -> Writer<'_> {
        let time = time + self.network.config().patches();
        Writer::new(&self.network, &self.device, self.half_cache, time, new)
    }

    /// Returns the controller for `task`.
    fn following(&self, task: &Task) -> Result<OpenVlaController<'_>> {
        let statistics = self.statistics_of(task.unnorm_key.as_deref())?.clone();
        let tokenizer = self.tokenizer()?;
        let (config, language) = (self.network.config(), self.network.language_model());
        let ids = config.wording.tokens(tokenizer, &task.instruction, language.vocab_size())?;
        let whole = ids.len() + config.patches() + statistics.dim();
        if whole > language.max_position_embeddings() {
            return Err(Error::input(format!(
                "the instruction has {} tokens; with the image and the action these are {whole}, but the model was \
                trained for {}",
                ids.len(),
                language.max_position_embeddings()
            ))
            .hint("use a shorter instruction"));
        }
        Ok(OpenVlaController {
            network: &self.network,
            processor: &self.processor,
            tokenizer: &self.actions,
            writer: self.writer(ids.len(), statistics.dim()),
            statistics,
            ids,
            last: None,
        })
    }

    /// Returns the prompt template.
    pub fn wording(&self) -> PromptStyle {
        self.network.config().wording
    }
}

/// Extends the attention mask by the patches, which are inserted after the first token.
fn around(real: Vec<Vec<bool>>, patches: Option<&Tensor>) -> Result<Vec<Vec<bool>>> {
    let Some(patches) = patches else { return Ok(real) };
    let count = patches.dim(1)?;
    let row = |row: Vec<bool>| {
        let patches = std::iter::repeat_n(true, count);
        row[..1].iter().copied().chain(patches).chain(row[1..].iter().copied()).collect()
    };
    Ok(real.into_iter().map(row).collect())
}

/// Returns `norm_stats` of the config, updated by the statistics file of a fine-tuned model.
fn statistics(pretrained: &Pretrained) -> Result<StatisticsTable> {
    let stored = &pretrained.config["norm_stats"];
    let mut table = StatisticsTable::from_json(stored)
        .map_err(|error| pretrained.config_error(format!("norm_stats: {}", error.message())))?;
    if let Some(own) = pretrained.json(STATISTICS_FILE)? {
        let own = StatisticsTable::from_json(&own).map_err(|error| {
            match pretrained.files.get(STATISTICS_FILE) {
                Some(path) => error.at(path),
                None => error,
            }
        })?;
        table.extend(own);
    }
    Ok(table)
}

/// Returns the image processor of the release, or the default of its vision towers; its output must have the shape of
/// `pixel_values`.
fn processor(pretrained: &Pretrained, network: &OpenVla) -> Result<FrameProcessor> {
    let processor = match pretrained.json(PROCESSOR_FILE)? {
        Some(file) => {
            let processor =
                FrameProcessor::from_json(&file).map_err(|error| error.context(PROCESSOR_FILE))?;
            let towers = &network.config().towers;
            let wanted: Vec<_> = towers.iter().map(|tower| (tower.img_size, tower.img_size)).collect();
            match processor.sizes() == wanted {
                true => processor,
                false => {
                    return Err(Error::new(
                        ErrorKind::Mismatch,
                        format!(
                            "{PROCESSOR_FILE} has image sizes {:?}, but the vision towers {wanted:?}",
                            processor.sizes()
                        ),
                    ));
                }
            }
        }
        None => FrameProcessor::of_config(network.config(), &pretrained.config)?,
    };
    match pretrained.options.settings.get("center_crop") {
        None | Some(Value::Null) => Ok(processor),
        Some(Value::Bool(on)) => Ok(processor.with_centre_crop(*on)),
        Some(other) => Err(Error::input(format!("center_crop is {other}, expected true or false"))),
    }
}

impl Policy for OpenVlaPipeline {
    fn start(&self, task: &Task) -> Result<Box<dyn Controller + '_>> {
        Ok(Box::new(self.following(task)?))
    }
}

impl Pipeline for OpenVlaPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        self.words.as_ref().ok_or_else(|| words::no_tokenizer(&self.card.source))
    }

    /// `PrismaticImageProcessor` only converts to RGB.
    fn image_options(&self) -> ImageOptions {
        ImageOptions::pillow()
    }

    /// Returns `logits`, `(batch, patches + sequence, vocab_size)`, and `projector_features`, `(batch, patches, hidden_size)`;
    /// only the features without tokens, and only the logits without an image.
    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.forward_ids(inputs)
    }

    /// Methods: `forward`; `vision`, only towers and projector; `generate`, with `options.method` "predict_action" for actions
    /// in the units of `unnorm_keys`; `encode`, the preprocessing of an `image`.
    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        match method {
            "forward" => self.forward_ids(inputs),
            "vision" => {
                only_known(inputs, &["pixel_values"])?;
                match inputs.contains_key("pixel_values") {
                    true => self.forward_ids(inputs),
                    false => Err(Error::input("pixel_values are missing")),
                }
            }
            "predict_action" => self.predict_action(inputs, options),
            "generate" => match options["method"].as_str() {
                Some("predict_action") => self.predict_action(inputs, options),
                Some("generate") | None => self.generate_ids(inputs, options),
                Some(other) => Err(self.cannot(&format!("run the method \"{other}\""))),
            },
            "encode" | "preprocess" => preprocess(&self.processor, inputs),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    /// Predicts one action for an image and an instruction, in the units of the dataset set at loading.
    fn generate(
        &self,
        prompt: &Prompt,
        options: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        options.check()?;
        if !options.is_greedy() || options.guidance != 1.0 {
            return Err(Error::input(
                "temperature and guidance are not supported: actions are decoded greedily",
            ));
        }
        let (frame, instruction) = asked(prompt)?;
        let mut following = self.following(&Task::from(instruction.as_str()))?;
        let action = following.act(&Observation::from(frame))?;
        let _ = each(Item::Action(action));
        Ok(Generation::default())
    }

    fn policy(&self) -> Result<&dyn Policy> {
        Ok(self)
    }

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        Ok(self)
    }

    fn sample(&self, method: &str, sizes: &SampleSizes) -> Result<Tensors> {
        let cannot = || {
            self.cannot(&format!("run \"{method}\" on {} tokens and {} images", sizes.tokens, sizes.images))
        };
        let pixels = || {
            let [channels, height, width] = self.network.picture();
            noise_pixels(&[sizes.rows, channels, height, width])
        };
        match (method, sizes.tokens, sizes.images) {
            ("forward" | "vision", 0, 1) => Ok(Tensors::from([("pixel_values".to_string(), pixels()?)])),
            ("forward" | "generate", 1.., 0 | 1) => {
                let mut made = token_rows(sizes)?;
                if sizes.images == 1 {
                    made.insert("pixel_values".into(), pixels()?);
                }
                Ok(made)
            }
            _ => Err(cannot()),
        }
    }

    fn defaults(&self) -> GenerationConfig {
        let dim = match self.statistics_of(None) {
            Ok(statistics) => Some(statistics.dim()),
            Err(_) => self.statistics.most_numbers(),
        };
        GenerationConfig::greedy(dim.unwrap_or(DegreeOfFreedom::END_EFFECTOR.len()))
    }
}

/// Returns the image of a prompt and its text.
fn asked(prompt: &Prompt) -> Result<(&Image, String)> {
    let items: Vec<&Item> = match prompt {
        Prompt::Items(items) => items.iter().collect(),
        Prompt::Chat(turns) => turns.iter().flat_map(|turn| &turn.items).collect(),
        Prompt::Infill { .. } => return Err(Prompt::no_infill()),
    };
    let mut frames = Vec::new();
    let mut words = Vec::new();
    for item in items {
        match item {
            Item::Image(frame) => frames.push(frame),
            Item::Text(text) => words.push(text.as_str()),
            other => {
                return Err(Error::input(format!(
                    "this model takes an image and an instruction, not {}",
                    other.modality()
                )));
            }
        }
    }
    match frames[..] {
        [frame] => Ok((frame, words.join(" "))),
        _ => Err(Error::input(format!("the prompt has {} images, expected one", frames.len())).set(
            "pass the camera image",
            "Item::Image",
            "FILE",
        )),
    }
}
