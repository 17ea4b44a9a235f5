//! Training of OpenVLA on the steps of episodes.

use candle_core::{DType, Device, Tensor};
use fauna_shared::item::{Image, Tensors};
use fauna_shared::model::{Collation, Loss, Model, Pipeline, Trainable, TrainingBatch, only_known};
use fauna_shared::nn::IGNORE_INDEX;
use fauna_shared::train::{Example, Step};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result, json};
use fauna_text::causal::{next_token_loss_by, no_options};
use fauna_text::labelled::{self, LabelledTokens};
use serde_json::Value;

use super::{OpenVla, OpenVlaPipeline};
use crate::action::{Statistics, StatisticsTable};

impl OpenVlaPipeline {
    /// The tokens of a step: the prompt, the tokens of its first action, and the end-of-sequence token. The prompt is not
    /// learned.
    fn labelled(&self, step: &Step, statistics: &Statistics) -> Result<LabelledTokens> {
        let tokenizer = self.tokenizer()?;
        let vocabulary = self.network.language_model().vocab_size();
        let mut ids = self.wording().tokens(tokenizer, &step.instruction, vocabulary)?;
        let prompt = ids.len();
        let action = step.actions.first().ok_or_else(|| Error::input("a step without an action"))?;
        for word in self.action_tokenizer().encode(&statistics.normalize(action)?)? {
            let id = u32::try_from(word).ok().filter(|id| (*id as usize) < vocabulary);
            ids.push(id.ok_or_else(|| Error::input(format!("no token {word} in {vocabulary}")))?);
        }
        let end = tokenizer.special().eos.first().copied().or_else(|| tokenizer.token_id("</s>"));
        ids.push(end.ok_or_else(|| self.cannot("learn: its tokenizer has no end-of-sequence token"))?);
        let mut row = LabelledTokens::all(ids);
        row.labels[..prompt].fill(IGNORE_INDEX);
        Ok(row)
    }

    /// The image of a step: of the camera that was set at loading, or of the only one.
    fn frame<'s>(&self, step: &'s Step) -> Result<&'s Image> {
        let names = || step.images.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let found = match (&self.camera, &step.images[..]) {
            (Some(camera), images) => images.iter().find(|(name, _)| name == camera),
            (None, [only]) => Some(only),
            (None, images) => {
                let count = images.len();
                return Err(Error::input(format!("a step has {count} images, expected one")).set(
                    format!("choose one of {}", names()),
                    "LoadOptions::settings",
                    "camera=NAME",
                ));
            }
        };
        let camera = self.camera.as_deref().unwrap_or_default();
        found.map(|(_, image)| image).ok_or_else(|| {
            Error::input(format!("no camera \"{camera}\" in a step")).hint(format!("there are: {}", names()))
        })
    }
}

/// The labels of the hidden states of prompts with `patches` patches after their first token: none on patches.
fn around(labels: &Tensor, patches: usize) -> Result<Tensor> {
    let (rows, time) = labels.dims2()?;
    let labels = labels.to_dtype(DType::I64)?.to_device(&Device::Cpu)?;
    let unread = Tensor::full(IGNORE_INDEX, (rows, patches), &Device::Cpu)?;
    Ok(Tensor::cat(&[&labels.narrow(1, 0, 1)?, &unread, &labels.narrow(1, 1, time - 1)?], 1)?)
}

impl Trainable for OpenVlaPipeline {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        self.network = OpenVla::load(json::typed(config.clone())?, weights)?;
        Ok(())
    }

    /// Cross entropy of the token after each position, the mean over all `labels`, `(batch, sequence)`, except -100;
    /// patches have no labels.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        no_options(options)?;
        let known = ["attention_mask", "input_ids", "labels", "pixel_values"];
        only_known(inputs, &known)?;
        let labels = inputs.get("labels").ok_or_else(|| Error::input("labels are missing"))?;
        let ids = inputs.get("input_ids").ok_or_else(|| Error::input("input_ids are missing"))?;
        if labels.dims() != ids.dims() {
            let (labels, ids) = (labels.dims(), ids.dims());
            return Err(Error::input(format!("labels are {labels:?}, input_ids {ids:?}")));
        }
        let patches = inputs.get("pixel_values").map(|pixels| self.network.see(pixels)).transpose()?;
        let hidden = self.hidden(inputs, patches.as_ref())?;
        let labels = match &patches {
            Some(patches) => around(labels, patches.dim(1)?)?,
            None => labels.clone(),
        };
        next_token_loss_by(&hidden, &labels, |rows| self.network.logits(rows))
    }

    /// Steps, as in the reference's fine-tuning: the prompt of the instruction, then the tokens of the first action of the
    /// step, normalized by the statistics of the options, or else by those of the checkpoint.
    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let own = options.statistics.as_ref().map(StatisticsTable::from_json).transpose()?;
        let statistics = match &own {
            Some(table) if table.keys().len() == 1 => table.get(None)?.1,
            Some(table) => table.get(self.unnorm_key.as_deref())?.1,
            None => self.statistics_of(None)?,
        };
        let positions = self.network.language_model().max_position_embeddings();
        let limit = positions.saturating_sub(self.network.config().patches());
        let longest = options.max_length.unwrap_or(limit).min(limit);
        let (mut rows, mut frames) = (Vec::new(), Vec::new());
        for example in examples {
            let Example::Step(step) = example else { return Err(labelled::not_learned(example, "step")) };
            let row = self.labelled(step, statistics)?;
            if row.ids.len() > longest {
                let tokens = row.ids.len();
                return Err(Error::input(format!("instruction and action have {tokens} tokens"))
                    .hint(format!("the maximum is {longest}: use a shorter instruction")));
            }
            rows.push(row);
            frames.push(self.processor.process(self.frame(step)?)?);
        }
        let mut batch = LabelledTokens::batch(rows, None, self.tokenizer()?.pad_id())?;
        batch.inputs.insert("pixel_values".into(), Tensor::stack(&frames, 0)?);
        Ok(batch)
    }

    fn head(&self) -> Result<&'static str> {
        Ok(r"(^|\.)(lm_head|embed_out)\.")
    }
}
