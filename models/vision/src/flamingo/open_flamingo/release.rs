//! Loading of `checkpoint.pt`, the trained weights, together with the frozen language model and vision encoder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fauna_shared::checkpoint::{Checkpoint, StoredTensor};
use fauna_shared::model::{Layout, LoadOptions, Model, Pretrained};
use fauna_shared::source::{Files, Source, Wanted};
use fauna_shared::weights::{Inventory, Name, Weights};
use fauna_shared::{Error, ErrorKind, Result};
use fauna_text::{gpt_neox, llama, mpt};
use serde_json::{Value, json};

use super::OpenFlamingo;
use crate::clip;

/// The trained weights.
const CHECKPOINT: &str = "checkpoint.pt";
/// The folder, and the setting, of the language model.
const LANGUAGE: &str = "lang_encoder";
/// The folder, and the setting, of the vision encoder.
const VISION: &str = "vision_encoder";
/// The vision encoder of every release.
const TOWER: &str = "openai/clip-vit-large-patch14";

/// A release, and the language model it was trained with.
struct Known {
    id: &'static str,
    language: &'static str,
    every: usize,
    width: usize,
}

const KNOWN: [Known; 5] = [
    Known {
        id: "openflamingo/OpenFlamingo-3B-vitl-mpt1b",
        language: "anas-awadalla/mpt-1b-redpajama-200b",
        every: 1,
        width: 2048,
    },
    Known {
        id: "openflamingo/OpenFlamingo-3B-vitl-mpt1b-langinstruct",
        language: "anas-awadalla/mpt-1b-redpajama-200b-dolly",
        every: 1,
        width: 2048,
    },
    Known {
        id: "openflamingo/OpenFlamingo-4B-vitl-rpj3b",
        language: "togethercomputer/RedPajama-INCITE-Base-3B-v1",
        every: 2,
        width: 2560,
    },
    Known {
        id: "openflamingo/OpenFlamingo-4B-vitl-rpj3b-langinstruct",
        language: "togethercomputer/RedPajama-INCITE-Instruct-3B-v1",
        every: 2,
        width: 2560,
    },
    Known {
        id: "openflamingo/OpenFlamingo-9B-vitl-mpt7b",
        language: "anas-awadalla/mpt-7b",
        every: 4,
        width: 4096,
    },
];

/// Vocabulary size of every release: the 50277 tokens of GPT-NeoX-20B's tokenizer and three added ones.
const VOCAB_SIZE: usize = 50280;

/// Maps the tensor names of whole checkpoints, of `checkpoint.pt`, and of the parts' own releases to this family's.
///
/// ```
/// use fauna_shared::weights::Name;
/// use fauna_vision::flamingo::open_flamingo::rename;
/// let to = |name: &str| Name::To(name.to_string());
/// let gate = "lang_encoder.transformer.blocks.3.gated_cross_attn_layer.attn_gate";
/// assert_eq!(rename(gate), to("gated_cross_attn_layers.3.attn_gate"));
/// assert_eq!(rename("transformer.blocks.3.norm_1.weight"), to("lang_encoder.blocks.3.norm_1.weight"));
/// assert_eq!(rename("visual.ln_pre.bias"), to("vision_encoder.pre_layrnorm.bias"));
/// ```
pub fn rename(name: &str) -> Name {
    let plain = plain(name);
    let renamed = match own(plain) {
        true => trained(plain),
        false => of_part(plain),
    };
    match renamed {
        Name::Keep if plain != name => Name::To(plain.to_string()),
        renamed => renamed,
    }
}

/// Removes the prefix of DistributedDataParallel.
fn plain(name: &str) -> &str {
    name.strip_prefix("module.").unwrap_or(name)
}

/// Whether a name is of the whole network, and not of a part's own release.
fn own(name: &str) -> bool {
    let parts = ["perceiver.", "gated_cross_attn_layers.", "lang_encoder.", "vision_encoder."];
    parts.iter().any(|part| plain(name).starts_with(part))
}

fn trained(name: &str) -> Name {
    if let Some(part) = name.strip_prefix("vision_encoder.") {
        return match clip::rename(&format!("visual.{part}")) {
            Name::To(renamed) => tower(&renamed),
            _ => Name::Keep,
        };
    }
    let Some(part) = name.strip_prefix("lang_encoder.") else { return Name::Keep };
    // Duplicates of the layers, as attributes of the reference's modules.
    if part.starts_with("gated_cross_attn_layers.") || part.starts_with("old_decoder_blocks.") {
        return Name::Ignore;
    }
    match part.split_once(".gated_cross_attn_layer.") {
        Some((block, gate)) => {
            let index = block.rsplit('.').next().unwrap_or(block);
            Name::To(format!("gated_cross_attn_layers.{index}.{gate}"))
        }
        None => language(&part.replacen(".decoder_layer.", ".", 1)),
    }
}

/// Maps a name of the language model's own release, or of CLIP's.
fn of_part(name: &str) -> Name {
    let text_tower = ["transformer.resblocks.", "token_embedding.", "ln_final.", "text_model.", "text."];
    let of_both = ["positional_embedding", "text_projection", "text_projection.weight", "logit_scale"];
    if text_tower.iter().any(|part| name.starts_with(part)) || of_both.contains(&name) {
        // The text tower is not used.
        return Name::Ignore;
    }
    if ["visual.", "vision_model.", "visual_projection."].iter().any(|part| name.starts_with(part)) {
        return match clip::rename(name) {
            Name::To(renamed) => tower(&renamed),
            Name::Keep => tower(name),
            _ => Name::Ignore,
        };
    }
    language(name)
}

/// Maps transformers' name of a tensor of the vision tower.
fn tower(name: &str) -> Name {
    match name.strip_prefix("vision_model.") {
        Some(part) => Name::To(format!("vision_encoder.{part}")),
        // The projection to CLIP's embedding space.
        None => Name::Ignore,
    }
}

/// Maps the official name of a tensor of the language model.
fn language(name: &str) -> Name {
    let renamed = match name.split_once('.') {
        // The head has two names.
        Some(("embed_out", _)) => Name::To(name.replacen("embed_out", "lm_head", 1)),
        Some(("gpt_neox", _)) => gpt_neox::rename(name),
        Some(("model", _)) => llama::rename(name),
        Some(("transformer", _)) => mpt::rename(name),
        _ => Name::Keep,
    };
    match renamed {
        Name::To(renamed) => Name::To(format!("lang_encoder.{renamed}")),
        Name::Keep => Name::To(format!("lang_encoder.{name}")),
        unread => unread,
    }
}

/// The layout of a folder with trained weights, or of a known release.
pub fn layout(files: &Files, options: &LoadOptions) -> Result<Option<Layout>> {
    if files.get("config.json").is_some() {
        return Ok(None);
    }
    let path = files
        .get(files.choice().unwrap_or(CHECKPOINT))
        .filter(|path| path.extension().is_some_and(|e| e == "pt"));
    let known = known(files.label());
    let trained = match path.as_deref().map(Trained::read).transpose() {
        Ok(trained) => trained.flatten(),
        Err(error) if path.as_deref().is_some_and(|path| path.ends_with(CHECKPOINT)) => return Err(error),
        // A file of another name may be of another family.
        Err(_) => None,
    };
    if trained.is_none() && known.is_none() {
        return Ok(None);
    }
    let parts = Parts::find(files, trained.as_ref(), options, false)?;
    let config = config(&parts, trained.as_ref(), known, options)
        .map_err(|error| error.at(path.clone().unwrap_or_else(|| files.root().to_path_buf())))?;
    Ok(Some(Layout { config, weights: path.into_iter().collect() }))
}

/// The known release with this id, or whose name a folder has.
fn known(label: &str) -> Option<&'static Known> {
    let name = label.split('@').next().unwrap_or(label).trim_end_matches('/');
    let last = name.rsplit('/').next().unwrap_or(name);
    KNOWN.iter().find(|known| known.id == name || known.id.rsplit('/').next() == Some(last))
}

/// What the names and shapes of the trained weights tell.
struct Trained {
    kind: Kind,
    /// Hidden size of the language model.
    width: usize,
    /// Hidden size of the vision encoder.
    media: usize,
    /// Indices of the layers that gated layers precede.
    gated: BTreeSet<usize>,
    /// Vocabulary size of the token embeddings, if they are in the file.
    table: Option<usize>,
    /// Number of logits of the head, if it is in the file.
    head: Option<usize>,
}

impl Trained {
    /// Inspects a file; `None` if it is of another model.
    fn read(path: &Path) -> Result<Option<Self>> {
        let file = Checkpoint::open(path)?;
        let (mut kind, mut refused, mut gated) = (None, None, BTreeSet::new());
        let (mut width, mut media, mut table, mut head) = (None, None, None, None);
        for (name, stored) in file.iter() {
            let Some(part) = plain(name).strip_prefix("lang_encoder.") else {
                if plain(name) == "perceiver.latents" {
                    media = stored.shape.get(1).copied();
                }
                continue;
            };
            let rows = stored.shape.first().copied();
            match part {
                "transformer.wte.weight" | "gpt_neox.embed_in.weight" | "model.embed_tokens.weight" => {
                    table = rows
                }
                "embed_out.weight" | "lm_head.weight" => head = rows,
                _ => {}
            }
            let Some((block, gate)) = part.split_once(".gated_cross_attn_layer.") else { continue };
            let Some((blocks, index)) = block.rsplit_once('.') else { continue };
            match blocks {
                "transformer.blocks" => kind = Some(Kind::Mpt),
                "gpt_neox.layers" => kind = Some(Kind::GptNeoX),
                "model.layers" => kind = Some(Kind::Llama),
                other => refused = Some(other.to_string()),
            }
            gated.extend(index.parse::<usize>());
            if gate == "attn.to_q.weight" {
                width = stored.shape.get(1).copied();
            }
        }
        if let (Some(blocks), None) = (refused, kind) {
            let what = match blocks.as_str() {
                "model.decoder.layers" => "OPT",
                "transformer.h" => "GPT-J",
                other => other,
            };
            return Err(Error::unsupported(format!("OpenFlamingo with {what} is not implemented"))
                .at(path)
                .hint("known: MPT, GPT-NeoX (RedPajama-INCITE, Pythia), Llama"));
        }
        match (kind, width, media) {
            (Some(kind), Some(width), Some(media)) => {
                Ok(Some(Self { kind, width, media, gated, table, head }))
            }
            _ => Ok(None),
        }
    }

    /// The interval of the gated layers.
    fn every(&self) -> usize {
        self.gated.first().map_or(1, |first| first + 1)
    }
}

/// The files of the language model and of the vision encoder.
struct Parts {
    language: Files,
    vision: Files,
}

impl Parts {
    fn find(
        files: &Files,
        trained: Option<&Trained>,
        options: &LoadOptions,
        with_weights: bool,
    ) -> Result<Self> {
        let part = |name: &str, default: Option<&str>| -> Result<Files> {
            let folder = files.root().join(name);
            if let Some(named) = options.settings.get(name) {
                let named = named.as_str().ok_or_else(|| {
                    Error::input(format!("the setting {name} is {named}, expected a folder or a repository"))
                })?;
                return companion(named, options, with_weights)
                    .map_err(|error| error.context(format!("the setting {name}")));
            }
            if folder.is_dir() {
                return Ok(Files::folder(&folder, format!("{}/{name}", files.label())));
            }
            let Some(default) = default else { return Err(no_language(files, trained)) };
            companion(default, options, with_weights).map_err(|error| {
                error
                    .context(format!("{} requires {default}", files.label()))
                    .set("download it", "Finder::find", default)
                    .hint(format!("or put its files into {name}/ next to {CHECKPOINT}"))
                    .set("or give its location", "LoadOptions::settings", format!("{name}=FOLDER"))
            })
        };
        let language = part(LANGUAGE, known(files.label()).map(|known| known.language))?;
        Ok(Self { language, vision: part(VISION, Some(TOWER))? })
    }

    /// The vision encoder's config, with CLIP's keys, and its weight files.
    fn tower(&self, options: &LoadOptions) -> Result<(Value, Vec<PathBuf>)> {
        let (mut config, weights) = match clip::layout(&self.vision, options)? {
            Some(Layout { config, weights }) => (config, weights),
            None => {
                let weights = match options.random_weights {
                    Some(_) => Vec::new(),
                    None => self.vision.weights()?,
                };
                (self.vision.config()?, weights)
            }
        };
        if config["vision_config"].is_object() {
            config = config["vision_config"].take();
        }
        if let Some(quick) = options.settings.get("quick_gelu").and_then(Value::as_bool) {
            config["hidden_act"] = json!(if quick { "quick_gelu" } else { "gelu" });
        }
        Ok((config, weights))
    }
}

/// Finds the files of another release.
fn companion(name: &str, options: &LoadOptions, with_weights: bool) -> Result<Files> {
    let wanted = match with_weights {
        true => Wanted::default(),
        false => Wanted::default().without_weights(),
    };
    options.finder.find(&Source::parse(name)?, &wanted)
}

/// The error for a checkpoint whose language model is not known.
fn no_language(files: &Files, trained: Option<&Trained>) -> Error {
    let fits = |known: &&Known| trained.is_none_or(|trained| trained.width == known.width);
    let candidates = KNOWN.iter().filter(fits).map(|known| known.language).collect::<Vec<_>>().join(", ");
    let error = Error::new(
        ErrorKind::NotFound,
        format!("the language model that {CHECKPOINT} was trained with is missing"),
    )
    .at(files.root())
    .hint(format!("put its files into {LANGUAGE}/ next to it"))
    .set("or give its location", "LoadOptions::settings", format!("{LANGUAGE}=NAME"));
    match candidates.is_empty() {
        true => error,
        false => error.hint(format!("candidates by hidden size: {candidates}")),
    }
}

fn config(
    parts: &Parts,
    trained: Option<&Trained>,
    known: Option<&Known>,
    options: &LoadOptions,
) -> Result<Value> {
    let setting = |name: &str| -> Result<Option<usize>> {
        match options.settings.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().filter(|value| *value > 0 && *value < 1 << 31) {
                Some(value) => Ok(Some(value as usize)),
                None => {
                    Err(Error::input(format!("the setting {name} is {value}, expected a positive integer")))
                }
            },
        }
    };
    let mut language = parts.language.config()?;
    // Only the config: the weights are looked up when they are loaded.
    let (vision, _) = parts.tower(&LoadOptions { random_weights: Some(0), ..options.clone() })?;
    let every = match (setting("cross_attn_every_n_layers")?, trained) {
        (Some(every), Some(trained)) if every != trained.every() => {
            let first: Vec<String> = trained.gated.iter().take(4).map(usize::to_string).collect();
            return Err(Error::new(
                ErrorKind::Mismatch,
                format!(
                    "cross_attn_every_n_layers is {every}, but the file was trained with {}",
                    trained.every()
                ),
            )
            .hint(format!("its gated layers precede layers {}, …", first.join(", "))));
        }
        (Some(every), _) => every,
        (None, Some(trained)) => trained.every(),
        (None, None) => known.map_or(1, |known| known.every),
    };
    let own = language["vocab_size"].as_u64().unwrap_or(0) as usize;
    let asked = setting("tokenizer_length")?;
    let rows = match (trained.and_then(|trained| trained.table), asked) {
        (Some(rows), Some(asked)) if rows != asked => {
            return Err(Error::new(
                ErrorKind::Mismatch,
                format!("tokenizer_length is {asked}, but the file has {rows} token embeddings"),
            ));
        }
        (Some(rows), _) => rows,
        (None, Some(asked)) if trained.is_some() && asked > own => {
            return Err(Error::new(
                ErrorKind::Mismatch,
                format!("tokenizer_length is {asked}, but neither file has more than {own} token embeddings"),
            ));
        }
        (None, Some(asked)) => asked,
        (None, None) => known.filter(|_| trained.is_none()).map_or(own, |_| VOCAB_SIZE),
    };
    let tied = match Kind::of(&language)? {
        Kind::Mpt => language["tie_word_embeddings"] != false,
        Kind::GptNeoX | Kind::Llama => language["tie_word_embeddings"] == true,
    };
    // Tokens that were added to a frozen head have no logits.
    let scored = trained.filter(|trained| !tied && trained.head.is_none() && rows > own).map(|_| own);
    if let Some(trained) = trained {
        fits(trained, &language, &vision)?;
    }
    language["vocab_size"] = json!(rows);
    Ok(json!({
        "architectures": ["Flamingo"], "model_type": "open_flamingo", "cross_attn_every_n_layers": every,
        "lang_encoder": language, "vision_encoder": vision, "scored": scored
    }))
}

/// Checks that the parts have the type and sizes of those of the training.
fn fits(trained: &Trained, language: &Value, vision: &Value) -> Result<()> {
    let mismatch = |message: String, part: &str| {
        Err(Error::new(ErrorKind::Mismatch, message)
            .hint(format!("put the one of the training into {part}/ next to it"))
            .set("or give its location", "LoadOptions::settings", format!("{part}=NAME")))
    };
    let kind = Kind::of(language)?;
    if kind != trained.kind {
        let (expected, found) = (trained.kind.name(), kind.name());
        return mismatch(
            format!("trained with a language model of type {expected}, found {found}"),
            LANGUAGE,
        );
    }
    let width = width_of(language)?;
    if width != trained.width {
        let expected = trained.width;
        return mismatch(
            format!("trained with a language model of hidden size {expected}, found {width}"),
            LANGUAGE,
        );
    }
    let blocks = ["n_layers", "num_hidden_layers"].into_iter().find_map(|key| language[key].as_u64());
    if let (Some(last), Some(blocks)) = (trained.gated.last(), blocks)
        && (*last as u64 >= blocks || blocks - 1 - *last as u64 >= trained.every() as u64)
    {
        let message =
            format!("its last gated layer precedes layer {last}, but the language model has {blocks} layers");
        return mismatch(message, LANGUAGE);
    }
    let media = vision["hidden_size"].as_u64().unwrap_or(768) as usize;
    if media != trained.media {
        let expected = trained.media;
        return mismatch(
            format!("trained with a vision encoder of hidden size {expected}, found {media}"),
            VISION,
        );
    }
    Ok(())
}

/// An opened release.
pub(super) struct Assembled {
    pub network: OpenFlamingo,
    pub inventory: Inventory,
    /// All weights, if they are assembled from several files.
    pub whole: Option<Weights>,
    /// The files of the language model, with its tokenizer, and of the vision encoder, with its image processor.
    pub language: Files,
    pub vision: Files,
}

/// Loads the network, from one whole checkpoint or from its parts.
pub(super) fn assemble(pretrained: &Pretrained) -> Result<Assembled> {
    if pretrained.files.get("config.json").is_some() {
        let (network, inventory) = pretrained.load::<OpenFlamingo>()?;
        let files = || pretrained.files.clone();
        return Ok(Assembled { network, inventory, whole: None, language: files(), vision: files() });
    }
    let is_read = pretrained.checkpoint.is_some() && pretrained.options.random_weights.is_none();
    let parts = Parts::find(&pretrained.files, None, &pretrained.options, is_read)?;
    let (network, inventory, whole) = match &pretrained.checkpoint {
        Some(trained) if is_read => {
            let weights = all_weights(pretrained, trained, &parts)?;
            let network = OpenFlamingo::load(pretrained.config()?, &weights)?;
            (network, weights.finish()?, Some(weights))
        }
        _ => {
            let (network, inventory) = pretrained.load::<OpenFlamingo>()?;
            (network, inventory, None)
        }
    };
    Ok(Assembled { network, inventory, whole, language: parts.language, vision: parts.vision })
}

/// All tensors: the trained ones, and those of the parts that are not among them.
fn all_weights(pretrained: &Pretrained, trained: &Checkpoint, parts: &Parts) -> Result<Weights> {
    let mut paths = trained.files().to_vec();
    paths.extend(parts.language.weights()?);
    let (_, tower) = parts.tower(&pretrained.options)?;
    paths.extend(tower);
    let renamed = |name: &str| match rename(name) {
        Name::To(renamed) => Some(renamed),
        Name::Keep => Some(name.to_string()),
        _ => None,
    };
    let held: BTreeSet<String> = trained.names().filter_map(renamed).collect();
    let rows = pretrained.config[LANGUAGE]["vocab_size"].as_u64().unwrap_or(0) as usize;
    // The token embeddings of the language model's own release are resized to the vocabulary with the added tokens.
    let tables = ["wte", "embed_in", "embed_tokens", "lm_head"];
    let is_table = |name: &str| tables.iter().any(|table| name == format!("lang_encoder.{table}.weight"));
    let resized = |name: &str, stored: StoredTensor| match renamed(name) {
        Some(renamed) if !own(name) && is_table(&renamed) && !held.contains(&renamed) => {
            stored.with_rows(rows)
        }
        _ => stored,
    };
    let files = Checkpoint::open_files(&paths)?.map(resized);
    let rename = |name: &str| match renamed(name) {
        Some(renamed) if !own(name) && held.contains(&renamed) => Name::Ignore,
        Some(renamed) => Name::To(renamed),
        None => Name::Ignore,
    };
    let weights = pretrained.weights_of(|| Ok(files), rename)?;
    pretrained.adapted(weights, self::rename)
}

/// The tensors of a release.
pub fn inventory(pretrained: &Pretrained) -> Result<Inventory> {
    match pretrained.weights.is_meta() {
        true => Ok(pretrained.load::<OpenFlamingo>()?.1),
        false => Ok(assemble(pretrained)?.inventory),
    }
}

/// Architecture of the language model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mpt,
    GptNeoX,
    Llama,
}

impl Kind {
    /// By the config's `model_type`.
    fn of(config: &Value) -> Result<Self> {
        match config["model_type"].as_str() {
            Some("mpt" | "mosaic_gpt") => Ok(Self::Mpt),
            Some("gpt_neox") => Ok(Self::GptNeoX),
            Some("llama") => Ok(Self::Llama),
            other => Err(Error::unsupported(format!(
                "OpenFlamingo with a language model of model_type \"{}\" is not implemented",
                other.unwrap_or_default()
            ))
            .hint("known: mpt, mosaic_gpt, gpt_neox, llama")),
        }
    }

    /// The `model_type`.
    fn name(self) -> &'static str {
        match self {
            Self::Mpt => "mpt",
            Self::GptNeoX => "gpt_neox",
            Self::Llama => "llama",
        }
    }
}

/// The hidden size of a language model, `d_model` in MPT.
fn width_of(config: &Value) -> Result<usize> {
    let key = match Kind::of(config)? {
        Kind::Mpt => "d_model",
        Kind::GptNeoX | Kind::Llama => "hidden_size",
    };
    let width = config[key].as_u64().map(|width| width as usize);
    width.ok_or_else(|| Error::input(format!("the config of lang_encoder has no {key}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_name_schemes_are_mapped_to_one() {
        let to = |name: &str| Name::To(name.to_string());
        for (official, ours) in [
            (
                "module.lang_encoder.gpt_neox.layers.1.gated_cross_attn_layer.ff.1.weight",
                "gated_cross_attn_layers.1.ff.1.weight",
            ),
            (
                "lang_encoder.gpt_neox.layers.1.decoder_layer.attention.dense.bias",
                "lang_encoder.layers.1.attention.dense.bias",
            ),
            ("gpt_neox.layers.1.attention.dense.bias", "lang_encoder.layers.1.attention.dense.bias"),
            ("lang_encoder.transformer.wte.weight", "lang_encoder.wte.weight"),
            ("model.embed_tokens.weight", "lang_encoder.embed_tokens.weight"),
            ("embed_out.weight", "lang_encoder.lm_head.weight"),
            ("vision_encoder.conv1.weight", "vision_encoder.embeddings.patch_embedding.weight"),
            ("vision_model.pre_layrnorm.bias", "vision_encoder.pre_layrnorm.bias"),
            ("module.perceiver.latents", "perceiver.latents"),
        ] {
            assert_eq!(rename(official), to(ours), "{official}");
        }
        for unread in [
            "lang_encoder.gated_cross_attn_layers.0.attn_gate",
            "lang_encoder.old_decoder_blocks.0.norm_1.weight",
            "gpt_neox.layers.0.attention.bias",
            "vision_encoder.proj",
            "visual_projection.weight",
            "text_model.final_layer_norm.weight",
            "transformer.resblocks.0.ln_1.weight",
            "logit_scale",
        ] {
            assert_eq!(rename(unread), Name::Ignore, "{unread}");
        }
        for ours in
            ["perceiver.latents", "gated_cross_attn_layers.0.attn_gate", "vision_encoder.pre_layrnorm.bias"]
        {
            assert_eq!(rename(ours), Name::Keep, "{ours}");
        }
    }

    #[test]
    fn a_release_is_recognised_by_its_id_and_by_its_folder() {
        let language = |label: &str| known(label).map(|known| known.language);
        let mpt = Some("anas-awadalla/mpt-7b");
        assert_eq!(language("openflamingo/OpenFlamingo-9B-vitl-mpt7b@main"), mpt);
        assert_eq!(language("/models/OpenFlamingo-9B-vitl-mpt7b/"), mpt);
        assert_eq!(language("./mine"), None);
    }
}
