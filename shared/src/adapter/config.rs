//! `adapter_config.json`: what is read, what is refused, and what changes nothing.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::pattern::Pattern;
use crate::error::first_five;
use crate::json::part;
use crate::{Error, ErrorKind, Result};

/// The version of peft whose config is written.
const PEFT_VERSION: &str = "0.21.2";

/// Keys without effect on the outputs of a trained adapter; they are kept and written again.
///
/// The configs of initializations are among them: only `init_lora_weights` puts them into effect.
pub const HARMLESS: [&str; 11] = [
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
];

/// Keys that change the outputs and are not implemented, with what works instead; refused unless null, false or empty.
const REFUSED: [(&str, &str); 11] = [
    (
        "alora_invocation_tokens",
        "an activated LoRA applies from its invocation tokens on: use peft to run it",
    ),
    ("arrow_config", "use peft to run a model that routes between adapters"),
    ("kasa_config", MERGE),
    ("layer_replication", MERGE),
    ("megatron_config", "convert the adapter to one of the model's release in transformers"),
    ("monteclora_config", MERGE),
    ("target_parameters", MERGE),
    ("trainable_token_indices", MERGE),
    ("use_bdlora", MERGE),
    ("use_qalora", MERGE),
    ("velora_config", MERGE),
];

/// The advice for adapters that peft can merge.
const MERGE: &str = "merge the adapter into its base model with peft (merge_and_unload, then save_pretrained), and open the result";

/// Initializations that leave the weights of the base model as they are.
const INITIALIZATIONS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// Which modules an adapter targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// All linear layers except the output embedding, and except the classification head of a classifier
    /// (`all-linear`).
    AllLinear,
    /// The modules whose whole path matches a Python regular expression.
    Pattern(String),
    /// The modules whose path is one of the names, or ends with a dot and one of them.
    Names(Vec<String>),
}

/// Which biases of the base model an adapter has trained; they replace those of the base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrainedBias {
    /// No biases (`none`).
    #[default]
    None,
    /// All biases of the model (`all`).
    All,
    /// The biases of the targeted modules (`lora_only`).
    LoraOnly,
}

impl TrainedBias {
    const NAMES: [(&str, TrainedBias); 3] =
        [("none", TrainedBias::None), ("all", TrainedBias::All), ("lora_only", TrainedBias::LoraOnly)];
}

/// The config of a LoRA adapter, with the defaults of peft 0.21.
///
/// ```
/// use fauna_shared::adapter::{AdapterConfig, TargetModules};
/// let config = AdapterConfig::parse(serde_json::json!({
///     "peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj"], "use_dora": true
/// }))?;
/// assert_eq!((config.r, config.lora_alpha, config.use_rslora), (16, 32.0, false));
/// assert_eq!(AdapterConfig::parse(config.to_json())?.to_json(), config.to_json());
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Rank of the update.
    pub r: usize,
    /// Scale of the update: it is multiplied by `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Whether the update is multiplied by `lora_alpha / sqrt(r)` instead
    /// ([Kalajdzievski 2023](https://arxiv.org/abs/2312.03732)).
    pub use_rslora: bool,
    /// Dropout probability of the inputs of the update in training.
    pub lora_dropout: f64,
    /// Ranks of modules other than `r`, by Python regular expressions of the end of a path; the first that matches
    /// counts. Files have them sorted.
    pub rank_pattern: Vec<(String, usize)>,
    /// Values other than `lora_alpha`, as `rank_pattern`.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Whether the norm of each output's weights is trained separately
    /// ([DoRA, Liu et al. 2024](https://arxiv.org/abs/2402.09353)).
    pub use_dora: bool,
    /// Whether the update has a bias.
    pub lora_bias: bool,
    /// Whether the base model stores its matrices as (in, out). As in peft, the layout of the base model counts.
    pub fan_in_fan_out: bool,
    /// Which biases of the base model are trained.
    pub bias: TrainedBias,
    /// The targeted modules; `None` for those that peft chooses by architecture.
    pub target_modules: Option<TargetModules>,
    /// Modules that are not targeted, although `target_modules` has them.
    pub exclude_modules: Option<TargetModules>,
    /// The targeted layers by index; `None` for all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names of the lists of layers that `layers_to_transform` counts (`layers`, `h`), as Python regular expressions;
    /// empty for any.
    pub layers_pattern: Vec<String>,
    /// Names of modules that are trained and saved in full, as Python regular expressions.
    pub modules_to_save: Vec<String>,
    /// Name or path of the base model.
    pub base_model_name_or_path: Option<String>,
    /// Revision of the base model.
    pub revision: Option<String>,
    /// The task in peft's naming (`CAUSAL_LM`, `SEQ_CLS`).
    pub task_type: Option<String>,
    /// Keys without effect, as read: those of [`HARMLESS`], and all that are null, false or empty.
    pub other: Map<String, Value>,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            use_rslora: false,
            lora_dropout: 0.0,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            use_dora: false,
            lora_bias: false,
            fan_in_fan_out: false,
            bias: TrainedBias::None,
            target_modules: None,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            base_model_name_or_path: None,
            revision: None,
            task_type: None,
            other: Map::new(),
        }
    }
}

impl AdapterConfig {
    /// Reads a config.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if a key has a value of a wrong type or out of range, and [`ErrorKind::Unsupported`] with
    /// the key for adapters of another type than LoRA, for what is not implemented, and for unknown keys, unless they
    /// are null, false or empty.
    pub fn parse(value: Value) -> Result<Self> {
        let Value::Object(keys) = value else {
            return Err(Error::new(ErrorKind::Format, "the config of an adapter is not a JSON object"));
        };
        match keys.get("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            Some(kind) => return Err(refused("peft_type", kind, MERGE)),
            None => return Err(Error::new(ErrorKind::Format, "the config of an adapter has no peft_type")),
        }
        let mut config = Self::default();
        for (key, value) in keys {
            config.read(&key, value)?;
        }
        config.check()?;
        Selection::new(&config)?;
        Ok(config)
    }

    fn read(&mut self, key: &str, value: Value) -> Result<()> {
        match key {
            "peft_type" => {}
            "r" => self.r = part(key, value)?,
            "lora_alpha" => self.lora_alpha = part(key, value)?,
            "use_rslora" => self.use_rslora = or_default(key, value)?,
            "lora_dropout" => self.lora_dropout = or_default(key, value)?,
            "rank_pattern" => self.rank_pattern = entries(key, value)?,
            "alpha_pattern" => self.alpha_pattern = entries(key, value)?,
            "use_dora" => self.use_dora = or_default(key, value)?,
            "lora_bias" => self.lora_bias = or_default(key, value)?,
            "fan_in_fan_out" => self.fan_in_fan_out = or_default(key, value)?,
            "bias" => self.bias = bias(value)?,
            "target_modules" => self.target_modules = target_modules(key, value)?,
            "exclude_modules" => self.exclude_modules = exclude_modules(key, value)?,
            "layers_to_transform" => self.layers_to_transform = layers(key, value)?,
            "layers_pattern" => self.layers_pattern = one_or_more(key, value)?,
            "modules_to_save" => self.modules_to_save = or_default(key, value)?,
            "base_model_name_or_path" => self.base_model_name_or_path = text(key, value)?,
            "revision" => self.revision = text(key, value)?,
            "task_type" => self.task_type = text(key, value)?,
            _ => self.keep(key, value)?,
        }
        Ok(())
    }

    /// Keeps a key without effect, and refuses others.
    fn keep(&mut self, key: &str, value: Value) -> Result<()> {
        if key == "init_lora_weights" {
            initialization(&value)?;
        } else if let Some((_, instead)) = REFUSED.iter().find(|(name, _)| *name == key) {
            if !is_off(&value) {
                return Err(refused(key, &value, instead));
            }
        } else if !HARMLESS.contains(&key) && !is_off(&value) {
            let instead = "it is unknown; if it changes nothing, remove it from the file";
            return Err(refused(key, &value, instead));
        }
        self.other.insert(key.to_owned(), value);
        Ok(())
    }

    /// Checks ranges, and combinations that peft refuses.
    pub(crate) fn check(&self) -> Result<()> {
        let bad = |message: String| Err(Error::new(ErrorKind::Format, message));
        if let Some((key, _)) = self.ranks().find(|(_, rank)| *rank == 0) {
            return bad(format!("{key}: 0, expected a rank of at least 1"));
        }
        if let Some((key, alpha)) = self.alphas().find(|(_, alpha)| !alpha.is_finite()) {
            return bad(format!("{key}: {alpha}, expected a finite number"));
        }
        if !(0.0..=1.0).contains(&self.lora_dropout) {
            return bad(format!("lora_dropout: {}, expected a probability", self.lora_dropout));
        }
        if !matches!(self.target_modules, None | Some(TargetModules::Names(_))) {
            let set = [
                ("layers_to_transform", self.layers_to_transform.is_some()),
                ("layers_pattern", !self.layers_pattern.is_empty()),
            ];
            if let Some((key, _)) = set.iter().find(|(_, set)| *set) {
                return bad(format!("{key} is set, but target_modules is not a list of names"));
            }
        }
        if !self.layers_pattern.is_empty() && self.layers_to_transform.is_none() {
            return bad("layers_pattern is set, but not layers_to_transform".into());
        }
        if self.lora_bias && self.use_dora {
            return bad("lora_bias and use_dora are both set; peft has no update with both".into());
        }
        Ok(())
    }

    fn ranks(&self) -> impl Iterator<Item = (String, usize)> {
        let patterns = self.rank_pattern.iter().map(|(key, rank)| (format!("rank_pattern.{key}"), *rank));
        std::iter::once(("r".to_owned(), self.r)).chain(patterns)
    }

    fn alphas(&self) -> impl Iterator<Item = (String, f64)> {
        let patterns = self.alpha_pattern.iter().map(|(key, alpha)| (format!("alpha_pattern.{key}"), *alpha));
        std::iter::once(("lora_alpha".to_owned(), self.lora_alpha)).chain(patterns)
    }

    /// The config as peft 0.21 writes it, with all keys, sorted.
    pub fn to_json(&self) -> Value {
        let mut keys = as_written_by_default();
        keys.extend(self.other.clone());
        keys.extend([
            ("peft_type".to_owned(), json!("LORA")),
            ("r".to_owned(), json!(self.r)),
            ("lora_alpha".to_owned(), number(self.lora_alpha)),
            ("use_rslora".to_owned(), json!(self.use_rslora)),
            ("lora_dropout".to_owned(), json!(self.lora_dropout)),
            ("rank_pattern".to_owned(), object(&self.rank_pattern, |rank| json!(rank))),
            ("alpha_pattern".to_owned(), object(&self.alpha_pattern, |alpha| number(*alpha))),
            ("use_dora".to_owned(), json!(self.use_dora)),
            ("lora_bias".to_owned(), json!(self.lora_bias)),
            ("fan_in_fan_out".to_owned(), json!(self.fan_in_fan_out)),
            ("bias".to_owned(), json!(self.bias_name())),
            ("target_modules".to_owned(), modules(self.target_modules.as_ref())),
            ("exclude_modules".to_owned(), modules(self.exclude_modules.as_ref())),
            ("layers_to_transform".to_owned(), json!(self.layers_to_transform)),
            ("layers_pattern".to_owned(), list(&self.layers_pattern)),
            ("modules_to_save".to_owned(), list(&self.modules_to_save)),
            ("base_model_name_or_path".to_owned(), json!(self.base_model_name_or_path)),
            ("revision".to_owned(), json!(self.revision)),
            ("task_type".to_owned(), json!(self.task_type)),
        ]);
        keys.sort_keys();
        Value::Object(keys)
    }

    fn bias_name(&self) -> &'static str {
        TrainedBias::NAMES.iter().find(|(_, bias)| *bias == self.bias).map_or("none", |(name, _)| name)
    }
}

/// The keys that a config does not hold as fields, with the values of an adapter trained by other means than peft's.
fn as_written_by_default() -> Map<String, Value> {
    let null = REFUSED.iter().map(|(key, _)| *key).chain(HARMLESS).filter(|key| *key != "runtime_config");
    let mut keys: Map<String, Value> = null.map(|key| (key.to_owned(), Value::Null)).collect();
    keys.extend([
        ("ensure_weight_tying".to_owned(), json!(false)),
        ("inference_mode".to_owned(), json!(true)),
        ("init_lora_weights".to_owned(), json!(true)),
        ("loftq_config".to_owned(), json!({})),
        ("megatron_core".to_owned(), json!("megatron.core")),
        ("peft_version".to_owned(), json!(PEFT_VERSION)),
        ("qalora_group_size".to_owned(), json!(16)),
        ("use_qalora".to_owned(), json!(false)),
    ]);
    keys
}

/// The choices of a config with its patterns compiled: which modules it targets, with which rank and scale.
#[derive(Debug, Clone)]
pub struct Selection {
    r: usize,
    alpha: f64,
    rslora: bool,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
    targets: Targets,
    excludes: Option<Targets>,
    saved: Vec<Pattern>,
    layers: Option<Vec<usize>>,
    lists: Vec<Pattern>,
}

#[derive(Debug, Clone)]
enum Targets {
    All,
    Pattern(Pattern),
    Names(Vec<String>),
}

/// Whether the path `module` is `name`, or ends with it after a dot.
pub(crate) fn is_named(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl Targets {
    fn new(modules: &TargetModules) -> Result<Self> {
        Ok(match modules {
            TargetModules::AllLinear => Self::All,
            TargetModules::Pattern(pattern) => Self::Pattern(Pattern::whole(pattern)?),
            TargetModules::Names(names) => Self::Names(names.clone()),
        })
    }

    fn have(&self, module: &str) -> Result<bool> {
        match self {
            Self::All => Ok(true),
            Self::Pattern(pattern) => pattern.matches(module),
            Self::Names(names) => Ok(names.iter().any(|name| is_named(module, name))),
        }
    }
}

impl Selection {
    /// Compiles the patterns of `config`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] with the key of a pattern that is invalid, too long, or that Python reads otherwise.
    pub fn new(config: &AdapterConfig) -> Result<Self> {
        let all = |key: &str, of: fn(&str) -> Result<Pattern>, sources: &[String]| -> Result<Vec<Pattern>> {
            sources.iter().map(|source| of(source).map_err(|error| error.context(key))).collect()
        };
        let targets = |key: &str, modules: &Option<TargetModules>| -> Result<Option<Targets>> {
            modules.as_ref().map(Targets::new).transpose().map_err(|error| error.context(key))
        };
        Ok(Self {
            r: config.r,
            alpha: config.lora_alpha,
            rslora: config.use_rslora,
            ranks: compiled("rank_pattern", &config.rank_pattern)?,
            alphas: compiled("alpha_pattern", &config.alpha_pattern)?,
            targets: targets("target_modules", &config.target_modules)?.unwrap_or(Targets::All),
            excludes: targets("exclude_modules", &config.exclude_modules)?,
            saved: all("modules_to_save", Pattern::within, &config.modules_to_save)?,
            layers: config.layers_to_transform.clone(),
            lists: all("layers_pattern", Pattern::list, &config.layers_pattern)?,
        })
    }

    /// Whether the module at the path `module` is targeted. With `all-linear`, and without `target_modules`, that is
    /// every module which is not excluded: the caller passes only linear layers other than the output embedding.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if a pattern takes too long.
    pub fn targets(&self, module: &str) -> Result<bool> {
        if let Some(excluded) = &self.excludes
            && excluded.have(module)?
        {
            return Ok(false);
        }
        if first_match(&self.saved, module)?.is_some() || !self.targets.have(module)? {
            return Ok(false);
        }
        match (&self.targets, &self.layers) {
            (Targets::Names(names), Some(layers))
                if !layers.is_empty() && !names.iter().any(|n| n == module) =>
            {
                Ok(self.layer(module)?.is_some_and(|layer| layers.contains(&layer)))
            }
            _ => Ok(true),
        }
    }

    /// The index of the layer that contains `module`.
    fn layer(&self, module: &str) -> Result<Option<usize>> {
        if self.lists.is_empty() {
            // The first number below the second part of the path, and not at its end.
            let parts: Vec<&str> = module.split('.').collect();
            let inner = parts.get(2..parts.len().max(3) - 1).unwrap_or_default();
            let is_number = |part: &&&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            return Ok(inner.iter().find(is_number).and_then(|part| part.parse().ok()));
        }
        for list in &self.lists {
            if let Some(layer) = list.layer(module)? {
                return Ok(Some(layer));
            }
        }
        Ok(None)
    }

    /// The rank of the update of `module`.
    ///
    /// # Errors
    /// As [`Selection::targets`].
    pub fn rank(&self, module: &str) -> Result<usize> {
        Ok(self.rank_by(module)?.0)
    }

    /// The rank, and the pattern that gives it.
    pub(super) fn rank_by(&self, module: &str) -> Result<(usize, Option<&str>)> {
        let found = first_entry(&self.ranks, module)?;
        Ok(found.map_or((self.r, None), |(pattern, rank)| (*rank, Some(pattern.source()))))
    }

    /// The factor of the update of `module`: `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    ///
    /// # Errors
    /// As [`Selection::targets`].
    pub fn scaling(&self, module: &str) -> Result<f64> {
        let rank = self.rank(module)? as f64;
        let alpha = first_entry(&self.alphas, module)?.map_or(self.alpha, |(_, alpha)| *alpha);
        Ok(if self.rslora { alpha / rank.sqrt() } else { alpha / rank })
    }

    /// The names of `modules_to_save` of which no tensor of `names` is a part.
    pub(super) fn without_tensors<'a>(
        &self,
        names: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<Vec<&str>> {
        let mut missing = Vec::new();
        for pattern in &self.saved {
            let mut found = false;
            for name in names.clone() {
                found |= pattern.matches(name)?;
            }
            if !found {
                missing.push(pattern.source());
            }
        }
        Ok(missing)
    }
}

fn compiled<T: Copy>(key: &str, entries: &[(String, T)]) -> Result<Vec<(Pattern, T)>> {
    let compile = |(source, value): &(String, T)| Ok((Pattern::tail(source)?, *value));
    entries.iter().map(compile).collect::<Result<_>>().map_err(|error: Error| error.context(key))
}

fn first_match<'a>(patterns: &'a [Pattern], module: &str) -> Result<Option<&'a Pattern>> {
    for pattern in patterns {
        if pattern.matches(module)? {
            return Ok(Some(pattern));
        }
    }
    Ok(None)
}

fn first_entry<'a, T>(entries: &'a [(Pattern, T)], module: &str) -> Result<Option<&'a (Pattern, T)>> {
    for entry in entries {
        if entry.0.matches(module)? {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Whether `value` is null, false or empty.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        _ => false,
    }
}

fn refused(key: &str, value: &Value, instead: &str) -> Error {
    let value = value.to_string();
    let shown: String = value.chars().take(80).collect();
    let more = if shown.len() < value.len() { "…" } else { "" };
    Error::unsupported(format!("{key}: {shown}{more} is not supported in adapters")).hint(instead)
}

/// Accepts the initializations that do not change the base model.
fn initialization(value: &Value) -> Result<()> {
    match value {
        Value::Null | Value::Bool(_) => Ok(()),
        Value::String(name) if INITIALIZATIONS.contains(&name.as_str()) => Ok(()),
        other => Err(refused(
            "init_lora_weights",
            other,
            "the adapter belongs to a base model that the initialization has changed; save it as a plain LoRA with \
             peft (save_pretrained with path_initial_model_for_weight_conversion)",
        )),
    }
}

fn bias(value: Value) -> Result<TrainedBias> {
    let found = TrainedBias::NAMES.iter().find(|(name, _)| value.as_str() == Some(*name));
    found.map(|(_, bias)| *bias).ok_or_else(|| {
        let names = first_five(TrainedBias::NAMES.map(|(name, _)| name));
        Error::new(ErrorKind::Format, format!("bias: {value}, expected one of")).hint(names)
    })
}

/// The value, or its default if it is null.
fn or_default<T: DeserializeOwned + Default>(key: &str, value: Value) -> Result<T> {
    Ok(part::<Option<T>>(key, value)?.unwrap_or_default())
}

fn text(key: &str, value: Value) -> Result<Option<String>> {
    Ok(part::<Option<String>>(key, value)?.filter(|text| !text.is_empty()))
}

/// The entries of an object, in their order.
fn entries<T: DeserializeOwned>(key: &str, value: Value) -> Result<Vec<(String, T)>> {
    let entries: Map<String, Value> = or_default(key, value)?;
    entries
        .into_iter()
        .map(|(name, value)| part(&format!("{key}.{name}"), value).map(|value| (name, value)))
        .collect()
}

fn one_or_more(key: &str, value: Value) -> Result<Vec<String>> {
    match value {
        Value::String(one) if one.is_empty() => Ok(Vec::new()),
        Value::String(one) => Ok(vec![one]),
        other => or_default(key, other),
    }
}

fn layers(key: &str, value: Value) -> Result<Option<Vec<usize>>> {
    match value {
        Value::Number(_) => Ok(Some(vec![part(key, value)?])),
        other => part(key, other),
    }
}

fn target_modules(key: &str, value: Value) -> Result<Option<TargetModules>> {
    match value {
        Value::String(word) if word.eq_ignore_ascii_case("all-linear") => Ok(Some(TargetModules::AllLinear)),
        other => exclude_modules(key, other),
    }
}

fn exclude_modules(key: &str, value: Value) -> Result<Option<TargetModules>> {
    Ok(match value {
        Value::String(pattern) => Some(TargetModules::Pattern(pattern)),
        other => part::<Option<Vec<String>>>(key, other)?.map(TargetModules::Names),
    })
}

/// A number, whole if it is.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

fn object<T>(entries: &[(String, T)], value: impl Fn(&T) -> Value) -> Value {
    let mut object: Map<String, Value> = entries.iter().map(|(key, v)| (key.clone(), value(v))).collect();
    object.sort_keys();
    Value::Object(object)
}

fn modules(modules: Option<&TargetModules>) -> Value {
    match modules {
        None => Value::Null,
        Some(TargetModules::AllLinear) => json!("all-linear"),
        Some(TargetModules::Pattern(pattern)) => json!(pattern),
        Some(TargetModules::Names(names)) => json!(names),
    }
}

/// A list, or null if it is empty.
fn list(items: &[String]) -> Value {
    if items.is_empty() { Value::Null } else { json!(items) }
}
