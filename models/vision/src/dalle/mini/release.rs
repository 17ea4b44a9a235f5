//! The file layouts of DALL·E mini: min-dalle's files (torch), and the original (flax).

use std::path::PathBuf;

use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::model::{Layout, LoadOptions, Model, Pretrained};
use fauna_shared::source::{Files, Source};
use fauna_shared::weights::{Inventory, Name, Weights};
use fauna_shared::{Error, Result, json};
use serde_json::{Value, json};

use super::super::add_part;
use super::super::vqgan::{self, DETOKER, FLAX, Vqgan, local_folder};
use super::{Config, DalleBart};

/// The VQGAN release that the original model uses.
const VQGAN: &str = "dalle-mini/vqgan_imagenet_f16_16384";

/// The names of its folder in a release or next to it.
const LOCAL: [&str; 2] = [VQGAN, "vqgan"];

/// The path of the VQGAN decoder in the network.
const DETOKENIZER: &str = "detoker";

/// min-dalle's files: encoder, decoder, vocabulary and merges, for mega, and for mini if both are in one folder.
const NAMES: [(&str, [&str; 4]); 2] = [
    ("mega", ["encoder.pt", "decoder.pt", "vocab.json", "merges.txt"]),
    ("mini", ["encoder_mini.pt", "decoder_mini.pt", "vocab_mini.json", "merges_mini.txt"]),
];

/// min-dalle's files of one model.
pub(super) struct Parts {
    pub encoder: PathBuf,
    pub decoder: PathBuf,
    /// Vocabulary and merges.
    pub text: Option<(PathBuf, PathBuf)>,
}

/// Maps the original's tensor names to those of this family.
pub fn rename(name: &str) -> Name {
    if name == "lm_head.kernel" {
        return Name::To("decoder.lm_head.kernel".into());
    }
    let Some((side, rest)) = name.strip_prefix("model.").and_then(|name| name.split_once('.')) else {
        return Name::Keep;
    };
    let Some(rest) = rest.strip_prefix("layers.") else {
        return Name::To(format!("{side}.{}", plain(rest)));
    };
    let (layers, rest) = rest.split_once('.').unwrap_or((rest, ""));
    let Some((_, number)) = layers.split_once("Layer") else { return Name::Keep };
    let inner = plain(&in_layer(rest));
    match number.strip_prefix('_') {
        Some(number) => Name::To(format!("{side}.layers.{number}.{inner}")),
        // Scanned layers: one stacked tensor of all layers.
        None => Name::Entries { before: format!("{side}.layers."), after: format!(".{inner}") },
    }
}

/// Maps the original's names of a layer's modules, which flax numbers in order.
fn in_layer(rest: &str) -> String {
    const PARTS: [(&str, &str); 11] = [
        ("GLU_0.LayerNorm_0.", "glu.ln0."),
        ("GLU_0.LayerNorm_1.", "glu.ln1."),
        ("GLU_0.Dense_0.", "glu.fc0."),
        ("GLU_0.Dense_1.", "glu.fc1."),
        ("GLU_0.Dense_2.", "glu.fc2."),
        ("LayerNorm_0.", "pre_self_attn_layer_norm."),
        ("LayerNorm_1.", "self_attn_layer_norm."),
        ("LayerNorm_2.", "pre_encoder_attn_layer_norm."),
        ("LayerNorm_3.", "encoder_attn_layer_norm."),
        ("FlaxBartAttention_0.", "self_attn."),
        ("FlaxBartAttention_1.", "encoder_attn."),
    ];
    let found = PARTS.iter().find_map(|(original, ours)| Some((ours, rest.strip_prefix(original)?)));
    found.map_or_else(|| rest.to_string(), |(ours, rest)| format!("{ours}{rest}"))
}

/// Maps flax's `embedding` and `scale` to torch's `weight`; `kernel`, which is transposed, is kept.
fn plain(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((path, "embedding" | "scale")) => format!("{path}.weight"),
        _ => name.to_string(),
    }
}

/// min-dalle's files: of the only model of the folder, or of the chosen one.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if the folder has mini and mega and none is chosen.
pub(super) fn parts(files: &Files) -> Result<Option<Parts>> {
    let choice = files.choice();
    let mut found = Vec::new();
    for (label, names) in NAMES {
        let chosen =
            choice.is_none_or(|choice| choice.eq_ignore_ascii_case(label) || names.contains(&choice));
        let [encoder, decoder, vocab, merges] = names.map(|name| files.get(name));
        if let (true, Some(encoder), Some(decoder)) = (chosen, encoder, decoder) {
            // A folder of one model has names without suffix, for either size.
            found.push(Parts { encoder, decoder, text: vocab.zip(merges) });
        }
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => Err(Error::input("both mini and mega are in this folder")
            .at(files.root())
            .set("name one of them", "LoadOptions::file", "mega")
            .set("or", "LoadOptions::file", "mini")),
    }
}

/// The layout of min-dalle's files, with or without the transformer, or of the original.
///
/// # Errors
/// If a file is damaged or of another model.
pub fn layout(files: &Files, options: &LoadOptions) -> Result<Option<Layout>> {
    let config = match files.get("config.json") {
        Some(_) => Some(files.config()?),
        None => None,
    };
    // The VQGAN release has a file of the same name, and another config.
    let is_transformer = config.as_ref().is_some_and(|config| config["ch_mult"].is_null());
    if let (Some(config), Some(path)) = (&config, files.get(FLAX).filter(|_| is_transformer)) {
        let weights = if options.random_weights.is_none() { vec![path] } else { Vec::new() };
        return Ok(Some(Layout { config: config.clone(), weights }));
    }
    let vqgan = match files.get(DETOKER) {
        Some(path) if options.random_weights.is_none() => Some(vqgan::config_of_file(&path)?),
        _ => None,
    };
    let config = match (parts(files)?, config) {
        (Some(parts), config) => sizes(&parts, config.unwrap_or(json!({})))?,
        // Only the VQGAN decoder, with the config of the whole model.
        (None, Some(config)) if vqgan.is_some() => config,
        _ => return Ok(None),
    };
    let mut config = config;
    if let Some(vqgan) = vqgan {
        config["vqgan"] = vqgan;
    }
    Ok(Some(Layout { config, weights: Vec::new() }))
}

/// Sets the sizes in `config` by the shapes of the tensors of `parts`: mini and mega share one config file.
fn sizes(parts: &Parts, mut config: Value) -> Result<Value> {
    let (encoder, decoder) = (Checkpoint::open(&parts.encoder)?, Checkpoint::open(&parts.decoder)?);
    let size = |file: &Checkpoint, name: &str, axis: usize| -> Result<usize> {
        let found = file.get(name).and_then(|stored| stored.shape.get(axis).copied());
        found.ok_or_else(|| {
            let place = file.files().first().cloned().unwrap_or_default();
            Error::format(place, format!("no {name}: not min-dalle's encoder or decoder of DALL·E mini"))
        })
    };
    let layers = |file: &Checkpoint| {
        let name = |i: usize| format!("layers.{i}.self_attn.q_proj.weight");
        (0..).take_while(|i| file.get(&name(*i)).is_some()).count()
    };
    let width = size(&encoder, "embed_tokens.weight", 1)?;
    let codes = size(&decoder, "lm_head.weight", 0)?.saturating_sub(1);
    let same = config["d_model"] == width;
    for (key, value) in [
        ("d_model", width),
        ("encoder_layers", layers(&encoder)),
        ("decoder_layers", layers(&decoder)),
        ("encoder_ffn_dim", size(&encoder, "layers.0.glu.fc0.weight", 0)?),
        ("decoder_ffn_dim", size(&decoder, "layers.0.glu.fc0.weight", 0)?),
        ("encoder_vocab_size", size(&encoder, "embed_tokens.weight", 0)?),
        ("max_text_length", size(&encoder, "embed_positions.weight", 0)?),
        ("image_length", size(&decoder, "embed_positions.weight", 0)?),
    ] {
        config[key] = json!(value);
    }
    // All released models have a head dimension of 64.
    for key in ["encoder_attention_heads", "decoder_attention_heads"] {
        if !same || config[key].is_null() {
            config[key] = json!(width.div_ceil(64));
        }
    }
    if config["image_vocab_size"] != codes || config["decoder_start_token_id"].is_null() {
        config["decoder_start_token_id"] = json!(codes);
    }
    config["image_vocab_size"] = json!(codes);
    config["model_type"] = json!("dallebart");
    Ok(config)
}

/// The networks of a release.
pub(super) struct Loaded {
    pub network: Option<DalleBart>,
    pub vqgan: Option<Vqgan>,
    pub inventory: Inventory,
    /// Whether it is min-dalle's release.
    pub min_dalle: bool,
    /// The weights of min-dalle's files, with the names of the parts before those of the tensors.
    pub files: Option<Weights>,
    /// The config and the weights of a VQGAN with an encoder, which is loaded for training only.
    pub with_encoder: Option<(vqgan::Config, Weights)>,
}

/// Loads the transformer and the VQGAN decoder from any layout.
pub(super) fn load(pretrained: &Pretrained) -> Result<Loaded> {
    let files = &pretrained.files;
    let laid_out = pretrained.checkpoint.is_none() && files.get(FLAX).is_none();
    let parts = if laid_out { parts(files)? } else { None };
    let detoker = files.get(DETOKER).filter(|_| pretrained.config["vqgan"].is_object());
    let assembled = match &parts {
        Some(Parts { encoder, decoder, .. }) => {
            let parts = [("encoder", encoder.as_path()), ("decoder", decoder.as_path())];
            Some(pretrained.joined(parts, |_| Name::Keep)?)
        }
        None => None,
    };
    let network = match &assembled {
        None if laid_out && detoker.is_some() => None,
        weights => {
            let weights = weights.as_ref().unwrap_or(&pretrained.weights);
            Some(DalleBart::load(pretrained.config::<Config>()?, weights)?)
        }
    };
    let (mut of_vqgan, mut with_encoder) = (None, None);
    let vqgan = match &detoker {
        Some(path) => {
            let weights = pretrained.part_at(DETOKENIZER, std::slice::from_ref(path), |_| Name::Keep)?;
            let vqgan = Vqgan::load(vqgan_config(pretrained)?, &weights)?;
            of_vqgan = Some(weights.finish()?);
            Some(vqgan)
        }
        None if pretrained.config["vqgan"].is_object() => {
            Some(Vqgan::load(vqgan_config(pretrained)?, &pretrained.weights.at(DETOKENIZER))?)
        }
        None if pretrained.weights.is_meta() => None,
        None if pretrained.options.initialize => match stored(pretrained)? {
            Some((config, weights)) => {
                with_encoder = Some((config.clone(), weights.at("")));
                Some(Vqgan::load(config, &weights)?)
            }
            None => None,
        },
        None if pretrained.options.random_weights.is_some() => {
            let weights = Weights::seeded(
                pretrained.options.random_weights.unwrap_or_default(),
                pretrained.options.runtime.clone(),
            );
            Some(Vqgan::load(vqgan::Config::default(), &weights)?)
        }
        None => match companion(pretrained)? {
            Some(companion) => {
                let config = companion.config::<vqgan::Config>()?;
                if companion.weights.has(vqgan::OF_ENCODER, false) {
                    with_encoder = Some((config, companion.weights.at("")));
                }
                Some(companion.load::<Vqgan>()?.0)
            }
            None => None,
        },
    };
    let min_dalle = parts.is_some();
    let mut inventory = match (&assembled, &of_vqgan) {
        (Some(weights), _) => weights.finish()?,
        (None, Some(_)) => Inventory::default(),
        (None, None) => pretrained.weights.finish()?,
    };
    if let Some(part) = of_vqgan {
        add_part(&mut inventory, DETOKENIZER, part);
    }
    pretrained.check_adapters()?;
    Ok(Loaded { network, vqgan, inventory, min_dalle, files: assembled, with_encoder })
}

/// The config of the VQGAN, nested in that of the model.
fn vqgan_config(pretrained: &Pretrained) -> Result<vqgan::Config> {
    serde_json::from_value(pretrained.config["vqgan"].clone())
        .map_err(|e| pretrained.config_error(format!("vqgan: {e}")))
}

/// The VQGAN in a separate release: the one of the setting `vqgan`, a folder in this release or next to it, or, for a
/// release opened by its name on the hub, the one on the hub. `None` if there is none.
fn companion(pretrained: &Pretrained) -> Result<Option<Pretrained>> {
    let named = pretrained.options.settings.get("vqgan").and_then(Value::as_str).map(str::to_string);
    let on_the_hub =
        || matches!(Source::parse(&pretrained.label), Ok(Source::Hub(_))).then(|| VQGAN.to_string());
    let local = || LOCAL.iter().find_map(|name| local_folder(&pretrained.files, name));
    match named.or_else(local).or_else(on_the_hub) {
        Some(name) => pretrained.companion_at(DETOKENIZER, &vqgan::FAMILY, &name).map(Some),
        None => Ok(None),
    }
}

/// The VQGAN, with its weights, in a folder of a release whose transformer has initial weights.
///
/// # Errors
/// Those of its files.
fn stored(pretrained: &Pretrained) -> Result<Option<(vqgan::Config, Weights)>> {
    let Some(folder) = LOCAL.iter().find_map(|name| local_folder(&pretrained.files, name)) else {
        return Ok(None);
    };
    let files = Files::folder(&folder, &folder);
    let config = json::typed(files.config()?).map_err(|e: Error| e.at(folder.as_str()))?;
    let paths = match files.get(FLAX) {
        Some(path) => vec![path],
        None => files.weights()?,
    };
    // Its files are written beside the trained weights.
    let all = files.names().iter().map(|name| files.require(name)).collect::<Result<Vec<_>>>()?;
    pretrained.part(&all, vqgan::rename)?;
    let weights =
        Weights::open(&Checkpoint::open_files(&paths)?, vqgan::rename, pretrained.options.runtime.clone())?;
    Ok(Some((config, weights)))
}

/// The tensors of a checkpoint of this config.
pub(crate) fn inventory(pretrained: &Pretrained) -> Result<Inventory> {
    Ok(load(pretrained)?.inventory)
}

/// The error for a missing VQGAN decoder.
pub(super) fn no_vqgan(source: &str) -> Error {
    Error::new(fauna_shared::ErrorKind::NotFound, format!("{source} has no VQGAN decoder for its images"))
        .hint(format!("put {DETOKER}, or a folder with the files of {VQGAN}, next to the weights"))
        .hint("or set its location in the setting vqgan")
}

/// A small config that covers every branch, with a VQGAN.
pub(crate) fn sample() -> Value {
    json!({
        "model_type": "dallebart", "architectures": ["DalleBart"], "d_model": 32, "encoder_layers": 2,
        "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 32, "encoder_vocab_size": 61, "image_vocab_size": 37, "image_length": 16,
        "max_text_length": 12, "decoder_start_token_id": 37,
        "vqgan": {
            "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [4], "resolution": 8,
            "z_channels": 8, "n_embed": 32, "embed_dim": 8
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn original_names_are_mapped_to_those_of_min_dalle() {
        let entries =
            |before: &str, after: &str| Name::Entries { before: before.into(), after: after.into() };
        let scanned = "model.encoder.layers.FlaxBartEncoderLayers";
        for (original, ours) in [
            ("lm_head.kernel", Name::To("decoder.lm_head.kernel".into())),
            ("model.encoder.embed_tokens.embedding", Name::To("encoder.embed_tokens.weight".into())),
            (
                "model.decoder.layernorm_embedding.scale",
                Name::To("decoder.layernorm_embedding.weight".into()),
            ),
            ("model.decoder.final_ln.bias", Name::To("decoder.final_ln.bias".into())),
            (
                "model.decoder.layers.FlaxBartDecoderLayer_11.FlaxBartAttention_1.q_proj.kernel",
                Name::To("decoder.layers.11.encoder_attn.q_proj.kernel".into()),
            ),
            (
                "model.decoder.layers.FlaxBartDecoderLayers.LayerNorm_3.scale",
                entries("decoder.layers.", ".encoder_attn_layer_norm.weight"),
            ),
            (&format!("{scanned}.GLU_0.LayerNorm_1.bias"), entries("encoder.layers.", ".glu.ln1.bias")),
            (&format!("{scanned}.GLU_0.Dense_2.kernel"), entries("encoder.layers.", ".glu.fc2.kernel")),
            (
                &format!("{scanned}.FlaxBartAttention_0.out_proj.kernel"),
                entries("encoder.layers.", ".self_attn.out_proj.kernel"),
            ),
            ("encoder.embed_tokens.weight", Name::Keep),
        ] {
            assert_eq!(rename(original), ours, "{original}");
        }
    }
}
