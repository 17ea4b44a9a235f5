//! Which model, and how it is loaded.

use fauna::runtime::Precision;

/// The model, and how it is loaded.
#[derive(Debug, Clone, clap::Args)]
pub struct ModelArg {
    /// The model: a folder, a file, a hub id (owner/name@revision), or a name that is built in or in the cache.
    #[arg(value_name = "MODEL")]
    pub source: String,
    #[command(flatten)]
    pub loading: Loading,
}

/// How a model is found, loaded and computed.
#[derive(Debug, Clone, clap::Args)]
pub struct Loading {
    /// Where to compute: cpu, cuda, cuda:N, metal, or auto (the first GPU there is, else the CPU).
    #[arg(help_heading = "Loading of the model", long, default_value = "cpu", value_name = "NAME")]
    pub device: String,
    /// The number type of dense weights: f32, bf16 or f16.
    #[arg(help_heading = "Loading of the model", long, default_value = "f32", value_name = "TYPE")]
    pub dtype: Precision,
    /// Store large matrices in blocks when they are loaded: q8_0, q4_0, q4_k, …
    #[arg(help_heading = "Loading of the model", long, value_name = "FORMAT")]
    pub quantize: Option<String>,
    /// Widen block-quantised files to float32 when they are loaded: exact, slower, larger.
    #[arg(help_heading = "Loading of the model", long, conflicts_with = "quantize")]
    pub dequantize: bool,
    /// How many threads compute; all cores if not said.
    #[arg(help_heading = "Loading of the model", long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// The family to use, whatever the config says.
    #[arg(help_heading = "Loading of the model", long, value_name = "NAME")]
    pub family: Option<String>,
    /// Tell what the release does not say of itself: KEY=VALUE, the value as JSON, or @FILE with it.
    #[arg(help_heading = "Loading of the model", long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    pub settings: Vec<(String, serde_json::Value)>,
    #[command(flatten)]
    pub finding: Finding,
}

impl Default for Loading {
    fn default() -> Self {
        Self {
            device: "cpu".to_string(),
            dtype: Precision::F32,
            quantize: None,
            dequantize: false,
            threads: None,
            family: None,
            settings: Vec::new(),
            finding: Finding::default(),
        }
    }
}

/// How the files of a model are found.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Finding {
    /// Which of several weight files to use: its name, or a part that only one has.
    #[arg(help_heading = "Loading of the model", long, value_name = "NAME")]
    pub weights: Option<String>,
    /// Make no network call.
    #[arg(help_heading = "Loading of the model", long)]
    pub offline: bool,
}

/// `KEY=VALUE` or `KEY=@FILE`; a value that is no JSON is a string.
fn setting(argument: &str) -> std::result::Result<(String, serde_json::Value), String> {
    let (key, value) = argument.split_once('=').ok_or("KEY=VALUE is wanted")?;
    if key.is_empty() {
        return Err("the key is empty".into());
    }
    let value = match value.strip_prefix('@') {
        None => serde_json::from_str(value).unwrap_or_else(|_| value.into()),
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?;
            serde_json::from_str(&text).map_err(|e| format!("{file}: not JSON: {e}"))?
        }
    };
    Ok((key.to_string(), value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::setting;

    #[test]
    fn a_setting_is_json_a_word_or_a_file() {
        assert_eq!(setting("bandwidth=6").unwrap(), ("bandwidth".to_string(), json!(6)));
        assert_eq!(setting("a=b=c").unwrap(), ("a".to_string(), json!("b=c")));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"levels": 3}"#).unwrap();
        let from_file = setting(&format!("hps=@{}", file.path().display())).unwrap();
        assert_eq!(from_file.1, json!({"levels": 3}));
        for wrong in ["bandwidth", "=6", "hps=@nowhere.json"] {
            assert!(setting(wrong).is_err(), "{wrong}");
        }
    }
}
