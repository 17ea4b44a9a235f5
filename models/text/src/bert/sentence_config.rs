//! The config files of sentence-transformers: how sentence embeddings are computed from token embeddings.
//!
//! Each file is read with a fixed list of keys. A key that changes the embeddings is implemented or refused by name.

use std::path::PathBuf;

use fauna_shared::model::{Layout, LoadOptions, check_sizes};
use fauna_shared::source::Files;
use fauna_shared::{Error, Result};
use serde_json::{Map, Value};

use super::torch_activation::TorchActivation;

/// The settings of a sentence embedder: pooling, further modules, maximum length and prompt, as in `modules.json` and
/// the files it names.
///
/// Reimers and Gurevych 2019, "Sentence-BERT", section 3; the files of sentence-transformers 2 to 6.
#[derive(Debug, Clone, PartialEq)]
pub struct SentenceTransformersConfig {
    /// Whether the release or the user specifies it; otherwise these are the defaults of sentence-transformers.
    pub is_specified: bool,
    /// Pooling modes, whose results are concatenated in order.
    pub pooling: Vec<Pooling>,
    /// Whether the prompt's tokens are included in the pooling.
    pub include_prompt: bool,
    /// The modules after the pooling, in order.
    pub modules: Vec<SentenceModule>,
    /// Dimension that the embeddings are truncated to (`truncate_dim`), if any.
    pub truncate_dim: Option<usize>,
    /// Maximum sequence length, special tokens included (`max_seq_length`), if specified.
    pub max_seq_length: Option<usize>,
    /// Whether texts are lower-cased before tokenization (`do_lower_case`).
    pub do_lower_case: bool,
    /// The default prompt, which is prepended to every text.
    pub prompt: String,
    /// Activation function of a cross-encoder's logits, if specified.
    pub activation: Option<TorchActivation>,
    /// Notes for the model's card: keys that have an effect, but not on the embeddings.
    pub notes: Vec<String>,
}

/// Pooling mode: token embeddings, `(batch, sequence, hidden_size)`, to `(batch, hidden_size)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first token.
    Cls,
    /// The maximum over the tokens.
    Max,
    /// The mean over the tokens, special tokens included.
    Mean,
    /// The sum over the tokens, divided by the square root of their number.
    MeanSqrtLength,
    /// The mean weighted by position, where the first token has weight 1.
    WeightedMean,
    /// The last token that is not padding.
    LastToken,
}

/// A module after the pooling.
#[derive(Debug, Clone, PartialEq)]
pub enum SentenceModule {
    /// L2 normalisation.
    Normalize,
    /// A linear layer with an activation function.
    Dense(DenseConfig),
}

/// Settings of a dense module.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseConfig {
    /// The name in `modules.json`, by default the index, which is the path of the module.
    pub name: String,
    /// The folder that holds its weights.
    pub folder: String,
    /// Number of input features.
    pub inputs: usize,
    /// Number of output features.
    pub outputs: usize,
    /// Whether the layer has a bias.
    pub bias: bool,
    /// Activation function of the outputs.
    pub activation: TorchActivation,
    /// Whether there is a residual connection, with a linear projection where input and output sizes differ.
    pub residual: bool,
}

impl Default for SentenceTransformersConfig {
    /// Mean pooling, the default of sentence-transformers for a checkpoint without `modules.json`.
    fn default() -> Self {
        Self {
            is_specified: false,
            pooling: vec![Pooling::Mean],
            include_prompt: true,
            modules: Vec::new(),
            truncate_dim: None,
            max_seq_length: None,
            do_lower_case: false,
            prompt: String::new(),
            activation: None,
            notes: Vec::new(),
        }
    }
}

impl Pooling {
    /// Values of `pooling_mode`, and the keys of earlier files, in the order of concatenation.
    const ALL: [(&'static str, &'static str, Self); 6] = [
        ("cls", "pooling_mode_cls_token", Self::Cls),
        ("max", "pooling_mode_max_tokens", Self::Max),
        ("mean", "pooling_mode_mean_tokens", Self::Mean),
        ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens", Self::MeanSqrtLength),
        ("weightedmean", "pooling_mode_weightedmean_tokens", Self::WeightedMean),
        ("lasttoken", "pooling_mode_lasttoken", Self::LastToken),
    ];

    /// Its name in sentence-transformers.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(.., pooling)| *pooling == self).map_or("", |(name, ..)| name)
    }

    fn named(value: &Value) -> Result<Self> {
        let known = || Self::ALL.map(|(name, ..)| name).join(", ");
        let found = Self::ALL.iter().find(|(name, ..)| value.as_str() == Some(name));
        found.map(|(.., pooling)| *pooling).ok_or_else(|| {
            Error::unsupported(format!("pooling_mode {value} is not implemented"))
                .hint(format!("supported: {}", known()))
        })
    }

    /// Parses `pooling_mode`: one mode, or a list.
    fn all_named(value: &Value) -> Result<Vec<Self>> {
        match value {
            Value::Array(names) if !names.is_empty() => names.iter().map(Self::named).collect(),
            name => Ok(vec![Self::named(name)?]),
        }
    }
}

/// Config files of a Transformer module; the first that exists is read.
const TRANSFORMER: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];
const MODEL_CONFIG: &str = "config_sentence_transformers.json";
const MODULES: &str = "modules.json";
const SUPPORTED_MODULES: [&str; 5] = ["Transformer", "Pooling", "Dense", "Normalize", "Dropout"];

impl SentenceTransformersConfig {
    /// Reads the settings from `files`. Without `modules.json` the default is used and the other files are ignored, as
    /// in sentence-transformers. The `pooling_mode` of `settings` takes precedence.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) with the name of a module, a pooling mode or a key that is
    /// not implemented; [`Format`](fauna_shared::ErrorKind::Format) for an invalid file.
    pub fn read(files: &Files, settings: &Map<String, Value>) -> Result<Self> {
        let mut recipe = Self::from_files(files)?;
        if let Some(pooling) = settings.get("pooling_mode") {
            recipe.pooling = Pooling::all_named(pooling)?;
            recipe.is_specified = true;
        }
        Ok(recipe)
    }

    fn from_files(files: &Files) -> Result<Self> {
        let mut recipe = Self::default();
        let Some(modules) = files.json(MODULES)? else { return Ok(recipe) };
        recipe.is_specified = true;
        if let Some(config) = files.json(MODEL_CONFIG)? {
            recipe.read_model_config(&Keys::of(files, MODEL_CONFIG, &config)?)?;
        }
        let keys =
            |name: &str| Ok::<_, Error>(files.json(name)?.map(|value| (files.root().join(name), value)));
        let modules = modules
            .as_array()
            .ok_or_else(|| Error::format(files.root().join(MODULES), "not a list of modules"))?;
        let mut pooled = false;
        for (index, module) in modules.iter().enumerate() {
            let at = |error: Error| error.at(files.root().join(MODULES));
            let (class, folder) = module_of(module).map_err(at)?;
            let name = match folder {
                "" => "config.json".to_string(),
                folder => format!("{folder}/config.json"),
            };
            if !SUPPORTED_MODULES.contains(&class) {
                return Err(at(Error::unsupported(format!("module \"{class}\" is not implemented"))
                    .hint(format!("supported: {}", SUPPORTED_MODULES.join(", ")))));
            }
            let out_of_order = class != "Transformer" && (pooled == (class == "Pooling"));
            if (class == "Transformer") != (index == 0) || (out_of_order && class != "Dropout") {
                return Err(at(Error::unsupported(format!(
                    "module {index} is \"{class}\": expected Transformer first, then Pooling, then the others"
                ))));
            }
            match class {
                "Transformer" if !folder.is_empty() => {
                    return Err(at(Error::unsupported(format!(
                        "the Transformer module is in the folder \"{folder}\", expected the top folder"
                    ))));
                }
                "Transformer" => {
                    if let Some(name) = TRANSFORMER.iter().find(|name| files.get(name).is_some()) {
                        let value = files.json(name)?.unwrap_or_default();
                        recipe.read_transformer(&Keys::of(files, name, &value)?)?;
                    }
                }
                "Pooling" => {
                    let (place, value) = keys(&name)?.ok_or_else(|| missing(files, &name))?;
                    recipe.read_pooling(&Keys::new(place, &value)?)?;
                    pooled = true;
                }
                "Normalize" => {
                    if let Some((place, value)) = keys(&name)? {
                        check_sentence_embedding(&Keys::new(place, &value)?)?.rest()?;
                    }
                    recipe.modules.push(SentenceModule::Normalize);
                }
                "Dense" => {
                    let (place, value) = keys(&name)?.ok_or_else(|| missing(files, &name))?;
                    let name = module["name"].as_str().map_or_else(|| index.to_string(), str::to_string);
                    let dense = dense(name, folder, &Keys::new(place, &value)?)?;
                    recipe.modules.push(SentenceModule::Dense(dense));
                }
                // Dropout does nothing outside of training.
                _ => {}
            }
        }
        // A cross-encoder has no pooling: its embeddings are those of a checkpoint without `modules.json`.
        if !pooled && recipe.activation.is_none() && modules.len() > 1 {
            return Err(Error::unsupported("modules.json has no Pooling").at(files.root().join(MODULES)));
        }
        Ok(recipe)
    }

    /// `config_sentence_transformers.json`.
    fn read_model_config(&mut self, keys: &Keys) -> Result<()> {
        // Library versions, and settings without effect on the embeddings.
        keys.harmless(&["__version__", "requirements", "keep_in_fp32_modules", "inference_mode"]);
        match keys.text("model_type")? {
            None | Some("SentenceTransformer" | "CrossEncoder") => {}
            Some(other) => return Err(keys.refused("model_type", other)),
        }
        if let Some(path) = keys.text("activation_fn")? {
            self.activation =
                Some(TorchActivation::from_path("activation_fn", path).map_err(|e| e.at(&keys.place))?);
        }
        if let Some(name) = keys.text("similarity_fn_name")?.filter(|name| *name != "cosine") {
            self.notes.push(format!(
                "{MODEL_CONFIG}: similarity_fn_name is \"{name}\", but compare and search use cosine similarity"
            ));
        }
        self.truncate_dim = keys.size("truncate_dim")?;
        let prompts = keys.get("prompts").cloned().unwrap_or_default();
        if let Some(name) = keys.text("default_prompt_name")? {
            self.prompt = match &prompts[name] {
                Value::String(prompt) => prompt.clone(),
                // These two exist by default, and are empty.
                Value::Null if ["query", "document"].contains(&name) => String::new(),
                Value::Null => {
                    let known = prompts.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
                    let known = known.collect::<Vec<_>>().join(", ");
                    return Err(Error::format(
                        &keys.place,
                        format!("default_prompt_name is \"{name}\", but prompts have only: {known}"),
                    ));
                }
                other => return Err(keys.wrong("prompts", other, "an object of strings")),
            };
        }
        keys.rest()
    }

    /// `sentence_bert_config.json`.
    fn read_transformer(&mut self, keys: &Keys) -> Result<()> {
        // The layout of a batch, without effect on the embeddings.
        keys.harmless(&["unpad_inputs"]);
        self.max_seq_length = keys.size("max_seq_length")?;
        self.do_lower_case = keys.flag("do_lower_case", false)?;
        match keys.text("transformer_task")? {
            None | Some("feature-extraction" | "sequence-classification") => {}
            Some(other) => return Err(keys.refused("transformer_task", other)),
        }
        match keys.text("module_output_name")? {
            None | Some("token_embeddings" | "scores") => {}
            Some(other) => return Err(keys.refused("module_output_name", other)),
        }
        if let Some(modalities) = keys.get("modality_config") {
            let text = &modalities["text"];
            let usual = text["method"] == "forward"
                && ["last_hidden_state", "logits"].iter().any(|name| text["method_output_name"] == *name);
            if !usual {
                return Err(keys.wrong("modality_config", modalities, "text with the method forward"));
            }
        }
        // Arguments for loading the network: device and dtype.
        let loader =
            ["attn_implementation", "dtype", "torch_dtype", "trust_remote_code", "add_pooling_layer"];
        for key in ["model_args", "model_kwargs"] {
            keys.only_holds(key, &loader)?;
        }
        for key in ["tokenizer_args", "processor_kwargs", "config_args", "config_kwargs", "processing_kwargs"]
        {
            keys.only_holds(key, &["trust_remote_code"])?;
        }
        keys.rest()
    }

    /// `1_Pooling/config.json`, with current or earlier keys.
    fn read_pooling(&mut self, keys: &Keys) -> Result<()> {
        keys.harmless(&["word_embedding_dimension", "embedding_dimension"]);
        self.include_prompt = keys.flag("include_prompt", true)?;
        let mut enabled = Vec::new();
        for (_, key, pooling) in Pooling::ALL {
            if keys.flag(key, false)? {
                enabled.push(pooling);
            }
        }
        self.pooling = match keys.get("pooling_mode") {
            Some(named) => Pooling::all_named(named).map_err(|e| e.at(&keys.place))?,
            None if enabled.is_empty() => vec![Pooling::Mean],
            None => enabled,
        };
        keys.rest()
    }

    /// Summary for `fauna info`, as pairs of a name and a value.
    pub fn summary(&self) -> Vec<(&'static str, String)> {
        let pooling: Vec<&str> = self.pooling.iter().map(|pooling| pooling.name()).collect();
        let mut vectors = format!("{} over the tokens", pooling.join(" and "));
        if !self.include_prompt {
            vectors += " without the prompt's";
        }
        for module in &self.modules {
            match module {
                SentenceModule::Normalize => vectors += ", normalised",
                SentenceModule::Dense(dense) => {
                    let DenseConfig { inputs, outputs, activation, .. } = dense;
                    vectors += &format!(", Dense {inputs} to {outputs} ({})", activation.name());
                }
            }
        }
        if !self.modules.contains(&SentenceModule::Normalize) {
            vectors += ", not normalised";
        }
        if let Some(kept) = self.truncate_dim {
            vectors += &format!(", truncated to {kept} dimensions");
        }
        if !self.is_specified {
            vectors += " (no modules.json)";
        }
        let mut rows = vec![("vectors", vectors)];
        if !self.prompt.is_empty() {
            rows.push(("prompt", format!("{:?}", self.prompt)));
        }
        if self.do_lower_case {
            rows.push(("texts", "in lower case".to_string()));
        }
        rows
    }
}

/// Summary of a checkpoint's embeddings for `fauna info`, as pairs of a name and a value: its settings and its maximum
/// sequence length.
///
/// # Errors
/// Same as [`SentenceTransformersConfig::read`].
pub fn embedding_summary(
    files: &Files,
    config: &Value,
    settings: &Map<String, Value>,
) -> Result<Vec<(&'static str, String)>> {
    let recipe = SentenceTransformersConfig::read(files, settings)?;
    let mut rows = recipe.summary();
    let tokenizer = files.json("tokenizer_config.json")?.unwrap_or_default();
    let size = |value: &Value| value.as_u64().and_then(|size| usize::try_from(size).ok());
    let positions = size(&config["max_position_embeddings"]);
    let max_length = recipe.max_seq_length.or_else(|| size(&tokenizer["model_max_length"]));
    if let Some(longest) = max_length.into_iter().chain(positions).min() {
        rows.push(("longest", format!("{longest} tokens")));
    }
    Ok(rows)
}

/// The layout of a release with weights in the folders of its modules: the network's weights are in the top folder, and
/// each module loads its own. `None` for a release whose weights are all in the top folder.
pub(crate) fn layout(files: &Files, options: &LoadOptions) -> Result<Option<Layout>> {
    if files.get(MODULES).is_none() || files.get("config.json").is_none() {
        return Ok(None);
    }
    let config = files.config()?;
    if config["model_type"] != "bert" && options.family.as_deref() != Some("bert") {
        return Ok(None);
    }
    let all = options.weights_of(files)?;
    let top: Vec<PathBuf> = all.iter().filter(|path| path.parent() == Some(files.root())).cloned().collect();
    Ok((!top.is_empty() && top.len() < all.len()).then_some(Layout { config, weights: top }))
}

/// Class and folder of a module. Only classes of sentence-transformers are accepted, not those of custom code.
fn module_of(module: &Value) -> Result<(&str, &str)> {
    let kind = module["type"].as_str().unwrap_or_default();
    let class = match kind.strip_prefix("sentence_transformers.") {
        Some(path) => path.rsplit('.').next().unwrap_or(path),
        None => {
            return Err(Error::unsupported(format!(
                "modules.json has a module \"{kind}\", which is not a class of sentence-transformers"
            )));
        }
    };
    let folder = module["path"].as_str().unwrap_or_default();
    Ok((class, folder.trim_end_matches('/')))
}

fn missing(files: &Files, name: &str) -> Error {
    Error::format(files.root().join(name), "required by modules.json, but missing")
}

/// `2_Dense/config.json`.
fn dense(name: String, folder: &str, keys: &Keys) -> Result<DenseConfig> {
    let size = |key: &str| keys.size(key)?.ok_or_else(|| keys.wrong(key, &Value::Null, "a positive integer"));
    let config = DenseConfig {
        name,
        folder: folder.to_string(),
        inputs: size("in_features")?,
        outputs: size("out_features")?,
        bias: keys.flag("bias", true)?,
        activation: match keys.text("activation_function")? {
            Some(path) => {
                TorchActivation::from_path("activation_function", path).map_err(|e| e.at(&keys.place))?
            }
            None => TorchActivation::from_path("activation_function", "torch.nn.Tanh")?,
        },
        residual: keys.flag("use_residual", false)?,
    };
    check_sizes(&[("in_features", config.inputs), ("out_features", config.outputs)])
        .map_err(|e| e.at(&keys.place))?;
    check_sentence_embedding(keys)?.rest()?;
    Ok(config)
}

/// Refuses a module whose input or output is not the sentence embeddings.
fn check_sentence_embedding<'a>(keys: &'a Keys<'a>) -> Result<&'a Keys<'a>> {
    for key in ["module_input_name", "module_output_name"] {
        match keys.text(key)? {
            None | Some("sentence_embedding") => {}
            Some(other) => return Err(keys.refused(key, other)),
        }
    }
    Ok(keys)
}

/// The keys of one file, and which of them were read.
struct Keys<'a> {
    place: PathBuf,
    map: &'a Map<String, Value>,
    read: std::cell::RefCell<Vec<String>>,
}

impl<'a> Keys<'a> {
    fn of(files: &Files, name: &str, value: &'a Value) -> Result<Self> {
        Self::new(files.root().join(name), value)
    }

    fn new(place: PathBuf, value: &'a Value) -> Result<Self> {
        match value.as_object() {
            Some(map) => Ok(Self { place, map, read: Default::default() }),
            None => Err(Error::format(place, "expected an object")),
        }
    }

    /// The value of `key`; `None` if null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().push(key.to_string());
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Marks keys without effect as read.
    fn harmless(&self, keys: &[&str]) {
        self.read.borrow_mut().extend(keys.iter().map(ToString::to_string));
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key)
            .map(|value| value.as_str().ok_or_else(|| self.wrong(key, value, "a string")))
            .transpose()
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let value = self.get(key);
        value.map_or(Ok(default), |v| v.as_bool().ok_or_else(|| self.wrong(key, v, "true or false")))
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        let size = |value: &Value| {
            let size = value.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
            size.ok_or_else(|| self.wrong(key, value, "a positive integer"))
        };
        self.get(key).map(size).transpose()
    }

    /// Refuses an object at `key` with any key but `known`.
    fn only_holds(&self, key: &str, known: &[&str]) -> Result<()> {
        let Some(value) = self.get(key) else { return Ok(()) };
        let map = value.as_object().ok_or_else(|| self.wrong(key, value, "an object"))?;
        let counts = |value: &Value| !value.is_null() && value.as_object().is_none_or(|map| !map.is_empty());
        match map.iter().find(|(name, value)| !known.contains(&name.as_str()) && counts(value)) {
            Some((name, value)) => Err(self.refused(&format!("{key}.{name}"), &value.to_string())),
            None => Ok(()),
        }
    }

    fn refused(&self, key: &str, value: &str) -> Error {
        Error::unsupported(format!("{key} \"{value}\" is not implemented")).at(&self.place)
    }

    fn wrong(&self, key: &str, value: &Value, expected: &str) -> Error {
        Error::format(&self.place, format!("{key} is {value}, expected {expected}"))
    }

    /// Refuses keys that were not read, unless they are null or false.
    fn rest(&self) -> Result<()> {
        let read = self.read.borrow();
        let is_set = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
        match self.map.iter().find(|(key, value)| !read.contains(key) && is_set(value)) {
            Some((key, value)) => {
                Err(Error::unsupported(format!("{key} is {value}, which is not implemented"))
                    .at(&self.place)
                    .hint("remove the key or set it to null to load the model without it"))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Reads the settings of a folder with these files and a `modules.json` of Transformer, Pooling and Normalize.
    fn read(files: &[(&str, Value)]) -> Result<SentenceTransformersConfig> {
        let kind = "sentence_transformers.models";
        let modules = json!([
            {"idx": 0, "name": "0", "path": "", "type": format!("{kind}.Transformer")},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": format!("{kind}.Pooling")},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": format!("{kind}.Normalize")},
        ]);
        let folder = tempfile::tempdir().unwrap();
        let usual =
            [("modules.json", modules), ("1_Pooling/config.json", json!({"pooling_mode_cls_token": true}))];
        for (name, value) in usual.iter().chain(files) {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value.to_string()).unwrap();
        }
        SentenceTransformersConfig::read(&Files::folder(folder.path(), "a test"), &Map::new())
    }

    fn pooling(config: Value) -> Result<Vec<Pooling>> {
        read(&[("1_Pooling/config.json", config)]).map(|recipe| recipe.pooling)
    }

    #[test]
    fn current_and_earlier_pooling_keys_are_read() {
        use Pooling::*;
        let cases = [
            (json!({"word_embedding_dimension": 8, "pooling_mode_cls_token": true}), vec![Cls]),
            (json!({"pooling_mode_lasttoken": true, "pooling_mode_max_tokens": true}), vec![Max, LastToken]),
            (json!({"pooling_mode_weightedmean_tokens": true}), vec![WeightedMean]),
            (json!({"pooling_mode_mean_tokens": false}), vec![Mean]),
            (json!({"embedding_dimension": 8, "pooling_mode": "cls", "include_prompt": true}), vec![Cls]),
            (json!({"pooling_mode": ["lasttoken", "mean_sqrt_len_tokens"]}), vec![LastToken, MeanSqrtLength]),
            (json!({"pooling_mode": "max", "pooling_mode_mean_tokens": true}), vec![Max]),
        ];
        for (config, expected) in cases {
            assert_eq!(pooling(config.clone()).unwrap(), expected, "{config}");
        }
        for wrong in
            [json!({"pooling_mode": "median"}), json!({"pooling_mode": []}), json!({"pooling_mode": 3})]
        {
            let error = pooling(wrong).unwrap_err().to_string();
            assert!(error.contains("1_Pooling/config.json: pooling_mode"), "{error}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused_unless_null_or_false() {
        let cases = [
            ("1_Pooling/config.json", json!({"pooling_mode": "cls", "layers": [1, 2]}), "layers is [1,2]"),
            ("sentence_bert_config.json", json!({"query_length": 32}), "query_length is 32"),
            ("sentence_bert_config.json", json!({"transformer_task": "fill-mask"}), "transformer_task"),
            (
                "sentence_bert_config.json",
                json!({"config_args": {"num_hidden_layers": 2}}),
                "config_args.num_hidden",
            ),
            ("sentence_bert_config.json", json!({"max_seq_length": "long"}), "max_seq_length is \"long\""),
            ("sentence_bert_config.json", json!({"do_lower_case": 1}), "do_lower_case is 1"),
            ("config_sentence_transformers.json", json!({"model_type": "SparseEncoder"}), "SparseEncoder"),
            ("config_sentence_transformers.json", json!({"whitening": true}), "whitening is true"),
            ("2_Normalize/config.json", json!({"module_input_name": "token_embeddings"}), "token_embeddings"),
        ];
        for (file, config, expected) in cases {
            let error = read(&[(file, config)]).unwrap_err().to_string();
            assert!(error.contains(file) && error.contains(expected), "{error}");
        }
        let usual = json!({"max_seq_length": null, "do_lower_case": false, "query_length": null, "unpad_inputs": true,
            "model_args": {"attn_implementation": "sdpa"}, "tokenizer_args": {}});
        assert_eq!(read(&[("sentence_bert_config.json", usual)]).unwrap().max_seq_length, None);
    }

    #[test]
    fn a_default_prompt_name_must_be_among_the_prompts() {
        let of = |config: Value| read(&[("config_sentence_transformers.json", config)]);
        let named = json!({"prompts": {"query": "find: ", "clustering": ""}, "default_prompt_name": "query"});
        assert_eq!(of(named).unwrap().prompt, "find: ");
        assert_eq!(of(json!({"prompts": {"query": "find: "}})).unwrap().prompt, "");
        assert_eq!(of(json!({"default_prompt_name": "document"})).unwrap().prompt, "");
        let error = of(json!({"prompts": {"query": ""}, "default_prompt_name": "passage"})).unwrap_err();
        assert!(error.message().contains("\"passage\", but prompts have only: query"), "{error}");
        let recipe = of(json!({"similarity_fn_name": "dot", "truncate_dim": 4})).unwrap();
        assert!(recipe.notes[0].contains("\"dot\""));
        assert_eq!(recipe.truncate_dim, Some(4));
    }

    #[test]
    fn current_modules_are_read_and_others_refused_by_name() {
        let modules = |types: &[(&str, &str)]| {
            let module =
                |(kind, path): &(&str, &str)| json!({"type": kind, "path": path, "idx": 0, "name": ""});
            json!(types.iter().map(module).collect::<Vec<_>>())
        };
        let transformer = ("sentence_transformers.base.modules.transformer.Transformer", "");
        let pooling = ("sentence_transformers.sentence_transformer.modules.pooling.Pooling", "1_Pooling");
        let dense = ("sentence_transformers.base.modules.dense.Dense", "2_Dense");
        let normalize = ("sentence_transformers.base.modules.normalize.Normalize", "3_Normalize");
        let config = json!({"in_features": 8, "out_features": 3, "bias": false,
            "activation_function": "torch.nn.modules.linear.Identity"});
        let of = |types: &[(&str, &str)]| {
            read(&[("modules.json", modules(types)), ("2_Dense/config.json", config.clone())])
        };
        let recipe = of(&[transformer, pooling, dense, normalize]).unwrap();
        let SentenceModule::Dense(found) = &recipe.modules[0] else { panic!("{recipe:?}") };
        assert_eq!((found.outputs, found.bias, found.activation), (3, false, TorchActivation::Identity));
        assert_eq!(recipe.modules[1], SentenceModule::Normalize);
        assert_eq!(recipe.summary()[0].1, "cls over the tokens, Dense 8 to 3 (Identity), normalised");

        for (types, expected) in [
            (vec![transformer, ("sentence_transformers.models.LSTM", "1_LSTM")], "LSTM"),
            (vec![transformer, pooling, ("my_code.Transformer", "")], "\"my_code.Transformer\""),
            (vec![("sentence_transformers.models.Transformer", "0_Transformer"), pooling], "0_Transformer"),
            (vec![transformer, dense, pooling], "module 1 is \"Dense\""),
            (vec![pooling], "module 0 is \"Pooling\""),
            (vec![transformer, pooling, pooling], "module 2 is \"Pooling\""),
        ] {
            let error = of(&types).unwrap_err().to_string();
            assert!(error.contains("modules.json") && error.contains(expected), "{error}");
        }
        let unknown = json!({"in_features": 8, "out_features": 3, "activation_function": "my_code.Snake"});
        let types = modules(&[transformer, pooling, dense]);
        let error =
            read(&[("modules.json", types), ("2_Dense/config.json", unknown)]).unwrap_err().to_string();
        assert!(error.contains("2_Dense/config.json: activation_function \"my_code.Snake\""), "{error}");
    }

    #[test]
    fn pooling_mode_can_be_set_without_modules_json() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::folder(folder.path(), "a test");
        // Ignored without modules.json, as in sentence-transformers.
        std::fs::write(folder.path().join("sentence_bert_config.json"), r#"{"max_seq_length": 3}"#).unwrap();
        assert_eq!(
            SentenceTransformersConfig::read(&files, &Map::new()).unwrap(),
            SentenceTransformersConfig::default()
        );
        let settings = json!({"pooling_mode": "cls"});
        let recipe = SentenceTransformersConfig::read(&files, settings.as_object().unwrap()).unwrap();
        assert_eq!((recipe.pooling, recipe.is_specified), (vec![Pooling::Cls], true));
    }
}
