//! How sentence-transformers turns token vectors into one vector a text: what its files say.
//!
//! Each file is read by a closed list of keys. Those that change a vector are obeyed or refused by name.

use std::path::PathBuf;

use fauna_shared::model::{Layout, LoadOptions, check_sizes};
use fauna_shared::source::Files;
use fauna_shared::{Error, Result};
use serde_json::{Map, Value};

use super::function::Function;

/// Pooling and what follows it, length and prefix, as `modules.json` and the files it names have them.
///
/// Reimers and Gurevych 2019, "Sentence-BERT", section 3; the files as sentence-transformers 2 to 6 write them.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Whether the release says it; else this is what sentence-transformers does without one.
    pub is_said: bool,
    /// Which poolings are put side by side, in order.
    pub pooling: Vec<Pooling>,
    /// Whether the tokens of the prompt are pooled with the others.
    pub include_prompt: bool,
    /// What is done to the pooled vectors, in order.
    pub steps: Vec<Step>,
    /// How many of a vector's numbers are kept, if not all.
    pub truncate: Option<usize>,
    /// The longest text in tokens, special ones included, if the recipe says.
    pub max_length: Option<usize>,
    /// Whether texts are brought to lower case before the tokenizer's own rules.
    pub lower_case: bool,
    /// What stands before every text.
    pub prompt: String,
    /// What a cross-encoder puts on its outputs, if the recipe says.
    pub activation: Option<Function>,
    /// What a user should know: keys that change no vector, and yet something.
    pub notes: Vec<String>,
}

/// One way from `(batch, sequence, hidden_size)` to `(batch, width)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first token.
    Cls,
    /// The largest of each number over the real tokens.
    Max,
    /// The mean over the real tokens, special ones included.
    Mean,
    /// Their sum over the root of their number.
    MeanSqrtLength,
    /// The mean weighted by position, the first token 1.
    WeightedMean,
    /// The last real token.
    LastToken,
}

/// What follows the pooling.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// To length 1.
    Normalize,
    /// A linear layer and a function.
    Dense(DenseConfig),
}

/// A linear layer over vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseConfig {
    /// The folder that holds its weights.
    pub folder: String,
    /// Width of what comes in.
    pub inputs: usize,
    /// Width of what goes out.
    pub outputs: usize,
    /// Whether it has a bias.
    pub bias: bool,
    /// What is put on its outputs.
    pub activation: Function,
    /// Whether what came in is added, by a matrix of its own where the widths differ.
    pub residual: bool,
}

impl Default for Recipe {
    /// The mean, as sentence-transformers does for a checkpoint without a recipe.
    fn default() -> Self {
        Self {
            is_said: false,
            pooling: vec![Pooling::Mean],
            include_prompt: true,
            steps: Vec::new(),
            truncate: None,
            max_length: None,
            lower_case: false,
            prompt: String::new(),
            activation: None,
            notes: Vec::new(),
        }
    }
}

impl Pooling {
    /// By the names of today, and the keys of earlier files; in the order those were put side by side.
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
                .hint(format!("known: {}", known()))
        })
    }

    /// What `pooling_mode` names: one, or a list.
    fn all_named(value: &Value) -> Result<Vec<Self>> {
        match value {
            Value::Array(names) if !names.is_empty() => names.iter().map(Self::named).collect(),
            name => Ok(vec![Self::named(name)?]),
        }
    }
}

/// The files that say what a Transformer module does besides its network; the first that is there.
const TRANSFORMER: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];
const WHOLE: &str = "config_sentence_transformers.json";
const MODULES: &str = "modules.json";
const MODULES_KNOWN: [&str; 5] = ["Transformer", "Pooling", "Dense", "Normalize", "Dropout"];

impl Recipe {
    /// Reads the recipe among `files`. Without a `modules.json` there is none: the mean, and nothing else of these
    /// files counts, as in sentence-transformers. The `pooling_mode` of `settings` wins.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for a module, a pooling or a key that is not implemented,
    /// by name; [`Format`](fauna_shared::ErrorKind::Format) for a file that is not what it should be.
    pub fn read(files: &Files, settings: &Map<String, Value>) -> Result<Self> {
        let mut recipe = Self::said(files)?;
        if let Some(pooling) = settings.get("pooling_mode") {
            recipe.pooling = Pooling::all_named(pooling)?;
            recipe.is_said = true;
        }
        Ok(recipe)
    }

    /// What the files say.
    fn said(files: &Files) -> Result<Self> {
        let mut recipe = Self::default();
        let Some(modules) = files.json(MODULES)? else { return Ok(recipe) };
        recipe.is_said = true;
        if let Some(whole) = files.json(WHOLE)? {
            recipe.read_whole(&Keys::of(files, WHOLE, &whole)?)?;
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
            if !MODULES_KNOWN.contains(&class) {
                return Err(at(Error::unsupported(format!("a module \"{class}\" is not implemented"))
                    .hint(format!("known: {}", MODULES_KNOWN.join(", ")))));
            }
            let out_of_order = class != "Transformer" && (pooled == (class == "Pooling"));
            if (class == "Transformer") != (index == 0) || (out_of_order && class != "Dropout") {
                return Err(at(Error::unsupported(format!(
                    "module {index} is \"{class}\": wanted Transformer first, then Pooling, then the others"
                ))));
            }
            match class {
                "Transformer" if !folder.is_empty() => {
                    return Err(at(Error::unsupported(format!(
                        "Transformer lies in \"{folder}\", not at the top"
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
                        of_sentences(&Keys::new(place, &value)?)?.rest()?;
                    }
                    recipe.steps.push(Step::Normalize);
                }
                "Dense" => {
                    let (place, value) = keys(&name)?.ok_or_else(|| missing(files, &name))?;
                    recipe.steps.push(Step::Dense(dense(folder, &Keys::new(place, &value)?)?));
                }
                // Dropout does nothing outside of training.
                _ => {}
            }
        }
        // A cross-encoder has no vectors of its own: it is embedded as a checkpoint without a recipe.
        if !pooled && recipe.activation.is_none() && modules.len() > 1 {
            return Err(Error::unsupported("modules.json has no Pooling").at(files.root().join(MODULES)));
        }
        Ok(recipe)
    }

    /// `config_sentence_transformers.json`.
    fn read_whole(&mut self, keys: &Keys) -> Result<()> {
        // What was installed when it was saved, how scores are computed, and what it asks of a reader.
        keys.harmless(&["__version__", "requirements", "keep_in_fp32_modules", "inference_mode"]);
        match keys.text("model_type")? {
            None | Some("SentenceTransformer" | "CrossEncoder") => {}
            Some(other) => return Err(keys.refused("model_type", other)),
        }
        if let Some(path) = keys.text("activation_fn")? {
            self.activation = Some(Function::of_path("activation_fn", path).map_err(|e| e.at(&keys.place))?);
        }
        if let Some(name) = keys.text("similarity_fn_name")?.filter(|name| *name != "cosine") {
            self.notes.push(format!(
                "{WHOLE}: this model's vectors are meant to be compared by \"{name}\"; compare and search take the cosine"
            ));
        }
        self.truncate = keys.size("truncate_dim")?;
        let prompts = keys.get("prompts").cloned().unwrap_or_default();
        if let Some(name) = keys.text("default_prompt_name")? {
            self.prompt = match &prompts[name] {
                Value::String(prompt) => prompt.clone(),
                // These two are there even where no file names them, and empty.
                Value::Null if ["query", "document"].contains(&name) => String::new(),
                Value::Null => {
                    let known = prompts.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
                    let known = known.collect::<Vec<_>>().join(", ");
                    return Err(Error::format(
                        &keys.place,
                        format!("default_prompt_name is \"{name}\", but prompts have only: {known}"),
                    ));
                }
                other => return Err(keys.wrong("prompts", other, "texts by name")),
            };
        }
        keys.rest()
    }

    /// `sentence_bert_config.json`.
    fn read_transformer(&mut self, keys: &Keys) -> Result<()> {
        // How a batch is laid out, which a vector does not show.
        keys.harmless(&["unpad_inputs"]);
        self.max_length = keys.size("max_seq_length")?;
        self.lower_case = keys.flag("do_lower_case", false)?;
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
                return Err(keys.wrong("modality_config", modalities, "texts by the forward pass"));
            }
        }
        // What is handed to the loader of the network: where and in which type it computes.
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

    /// `1_Pooling/config.json`, in either dialect.
    fn read_pooling(&mut self, keys: &Keys) -> Result<()> {
        keys.harmless(&["word_embedding_dimension", "embedding_dimension"]);
        self.include_prompt = keys.flag("include_prompt", true)?;
        let mut switched_on = Vec::new();
        for (_, key, pooling) in Pooling::ALL {
            if keys.flag(key, false)? {
                switched_on.push(pooling);
            }
        }
        self.pooling = match keys.get("pooling_mode") {
            Some(named) => Pooling::all_named(named).map_err(|e| e.at(&keys.place))?,
            None if switched_on.is_empty() => vec![Pooling::Mean],
            None => switched_on,
        };
        keys.rest()
    }

    /// What `fauna info` shows of it: rows of a name and a value.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let pooling: Vec<&str> = self.pooling.iter().map(|pooling| pooling.name()).collect();
        let mut vectors = format!("{} over the tokens", pooling.join(" and "));
        if !self.include_prompt {
            vectors += " without the prompt's";
        }
        for step in &self.steps {
            match step {
                Step::Normalize => vectors += ", normalised",
                Step::Dense(dense) => {
                    let DenseConfig { inputs, outputs, activation, .. } = dense;
                    vectors += &format!(", Dense {inputs} to {outputs} ({})", activation.name());
                }
            }
        }
        if !self.steps.contains(&Step::Normalize) {
            vectors += ", not normalised";
        }
        if let Some(kept) = self.truncate {
            vectors += &format!(", the first {kept} numbers");
        }
        if !self.is_said {
            vectors += " (no modules.json)";
        }
        let mut rows = vec![("vectors", vectors)];
        if !self.prompt.is_empty() {
            rows.push(("prompt", format!("{:?}", self.prompt)));
        }
        if self.lower_case {
            rows.push(("texts", "in lower case".to_string()));
        }
        rows
    }
}

/// Rows of `fauna info` about the texts and vectors of a checkpoint: its recipe, and the longest text it reads.
///
/// # Errors
/// As [`Recipe::read`].
pub fn described(
    files: &Files,
    config: &Value,
    settings: &Map<String, Value>,
) -> Result<Vec<(&'static str, String)>> {
    let recipe = Recipe::read(files, settings)?;
    let mut rows = recipe.rows();
    let tokenizer = files.json("tokenizer_config.json")?.unwrap_or_default();
    let size = |value: &Value| value.as_u64().and_then(|size| usize::try_from(size).ok());
    let positions = size(&config["max_position_embeddings"]);
    let said = recipe.max_length.or_else(|| size(&tokenizer["model_max_length"]));
    if let Some(longest) = said.into_iter().chain(positions).min() {
        rows.push(("longest", format!("{longest} tokens")));
    }
    Ok(rows)
}

/// What `modules.json` makes of weights in folders of their own: the network's lie at the top, each module reads its
/// own. None for a release whose weights are all at the top.
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

/// Class and folder of a module. Classes of a release's own code are not taken for those of the library.
fn module_of(module: &Value) -> Result<(&str, &str)> {
    let kind = module["type"].as_str().unwrap_or_default();
    let class = match kind.strip_prefix("sentence_transformers.") {
        Some(path) => path.rsplit('.').next().unwrap_or(path),
        None => {
            return Err(Error::unsupported(format!(
                "modules.json wants a module \"{kind}\", which is not of sentence-transformers"
            )));
        }
    };
    let folder = module["path"].as_str().unwrap_or_default();
    Ok((class, folder.trim_end_matches('/')))
}

fn missing(files: &Files, name: &str) -> Error {
    Error::format(files.root().join(name), "named by modules.json, but missing")
}

/// `2_Dense/config.json`.
fn dense(folder: &str, keys: &Keys) -> Result<DenseConfig> {
    let size = |key: &str| keys.size(key)?.ok_or_else(|| keys.wrong(key, &Value::Null, "a width"));
    let config = DenseConfig {
        folder: folder.to_string(),
        inputs: size("in_features")?,
        outputs: size("out_features")?,
        bias: keys.flag("bias", true)?,
        activation: match keys.text("activation_function")? {
            Some(path) => Function::of_path("activation_function", path).map_err(|e| e.at(&keys.place))?,
            None => Function::of_path("activation_function", "torch.nn.Tanh")?,
        },
        residual: keys.flag("use_residual", false)?,
    };
    check_sizes(&[("in_features", config.inputs), ("out_features", config.outputs)])
        .map_err(|e| e.at(&keys.place))?;
    of_sentences(keys)?.rest()?;
    Ok(config)
}

/// Refuses a module that works on anything but the vectors of texts.
fn of_sentences<'a>(keys: &'a Keys<'a>) -> Result<&'a Keys<'a>> {
    for key in ["module_input_name", "module_output_name"] {
        match keys.text(key)? {
            None | Some("sentence_embedding") => {}
            Some(other) => return Err(keys.refused(key, other)),
        }
    }
    Ok(keys)
}

/// The keys of one file, and which of them were asked for.
struct Keys<'a> {
    place: PathBuf,
    map: &'a Map<String, Value>,
    asked: std::cell::RefCell<Vec<String>>,
}

impl<'a> Keys<'a> {
    fn of(files: &Files, name: &str, value: &'a Value) -> Result<Self> {
        Self::new(files.root().join(name), value)
    }

    fn new(place: PathBuf, value: &'a Value) -> Result<Self> {
        match value.as_object() {
            Some(map) => Ok(Self { place, map, asked: Default::default() }),
            None => Err(Error::format(place, "an object is wanted")),
        }
    }

    /// The value of `key`; null is none.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.asked.borrow_mut().push(key.to_string());
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Keys that change nothing here.
    fn harmless(&self, keys: &[&str]) {
        self.asked.borrow_mut().extend(keys.iter().map(ToString::to_string));
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key).map(|value| value.as_str().ok_or_else(|| self.wrong(key, value, "a text"))).transpose()
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let value = self.get(key);
        value.map_or(Ok(default), |v| v.as_bool().ok_or_else(|| self.wrong(key, v, "true or false")))
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        let size = |value: &Value| {
            let size = value.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
            size.ok_or_else(|| self.wrong(key, value, "a whole number above 0"))
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

    fn wrong(&self, key: &str, value: &Value, wanted: &str) -> Error {
        Error::format(&self.place, format!("{key} is {value}, wanted {wanted}"))
    }

    /// Refuses what was not asked for and says something.
    fn rest(&self) -> Result<()> {
        let asked = self.asked.borrow();
        let says = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
        match self.map.iter().find(|(key, value)| !asked.contains(key) && says(value)) {
            Some((key, value)) => {
                Err(Error::unsupported(format!("{key} is {value}, which is not implemented"))
                    .at(&self.place)
                    .hint("null or without the key, the file is read"))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A folder with these files beside a `modules.json` of the usual three.
    fn read(files: &[(&str, Value)]) -> Result<Recipe> {
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
        Recipe::read(&Files::folder(folder.path(), "a test"), &Map::new())
    }

    fn pooling(config: Value) -> Result<Vec<Pooling>> {
        read(&[("1_Pooling/config.json", config)]).map(|recipe| recipe.pooling)
    }

    #[test]
    fn both_dialects_of_pooling_are_read() {
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
    fn a_key_that_is_not_known_is_refused_unless_it_says_nothing() {
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
        assert_eq!(read(&[("sentence_bert_config.json", usual)]).unwrap().max_length, None);
    }

    #[test]
    fn a_default_prompt_must_be_there() {
        let whole = |whole: Value| read(&[("config_sentence_transformers.json", whole)]);
        let named = json!({"prompts": {"query": "find: ", "clustering": ""}, "default_prompt_name": "query"});
        assert_eq!(whole(named).unwrap().prompt, "find: ");
        assert_eq!(whole(json!({"prompts": {"query": "find: "}})).unwrap().prompt, "");
        assert_eq!(whole(json!({"default_prompt_name": "document"})).unwrap().prompt, "");
        let error = whole(json!({"prompts": {"query": ""}, "default_prompt_name": "passage"})).unwrap_err();
        assert!(error.message().contains("\"passage\", but prompts have only: query"), "{error}");
        let told = whole(json!({"similarity_fn_name": "dot", "truncate_dim": 4})).unwrap();
        assert!(told.notes[0].contains("\"dot\""));
        assert_eq!(told.truncate, Some(4));
    }

    #[test]
    fn modules_of_today_are_read_and_others_named() {
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
        let Step::Dense(found) = &recipe.steps[0] else { panic!("{recipe:?}") };
        assert_eq!((found.outputs, found.bias, found.activation), (3, false, Function::Identity));
        assert_eq!(recipe.steps[1], Step::Normalize);
        assert_eq!(recipe.rows()[0].1, "cls over the tokens, Dense 8 to 3 (Identity), normalised");

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
    fn without_modules_the_user_may_say_the_pooling() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::folder(folder.path(), "a test");
        // As sentence-transformers, which then reads no other of its files.
        std::fs::write(folder.path().join("sentence_bert_config.json"), r#"{"max_seq_length": 3}"#).unwrap();
        assert_eq!(Recipe::read(&files, &Map::new()).unwrap(), Recipe::default());
        let settings = json!({"pooling_mode": "cls"});
        let recipe = Recipe::read(&files, settings.as_object().unwrap()).unwrap();
        assert_eq!((recipe.pooling, recipe.is_said), (vec![Pooling::Cls], true));
    }
}
