//! The model argument and the loading options.

use fauna::adapter::AdapterSpec;
use fauna::runtime::Precision;

/// The model and its loading options.
#[derive(Debug, Clone, clap::Args)]
pub struct ModelArg {
    /// Model to use: a folder, a weights file, a Hugging Face Hub id (owner/name[@revision]), or a built-in or cached
    /// name.
    #[arg(value_name = "MODEL")]
    pub source: String,
    #[command(flatten)]
    pub loading: Loading,
}

/// How a model is found and loaded, and where it runs.
#[derive(Debug, Clone, clap::Args)]
pub struct Loading {
    /// Device to run on: cpu, cuda, cuda:N, metal, or auto (the first GPU if there is one, else the CPU).
    #[arg(help_heading = "Model loading", long, default_value = "cpu", value_name = "NAME")]
    pub device: String,
    /// Data type of unquantized weights: f32, bf16 or f16.
    #[arg(help_heading = "Model loading", long, default_value = "f32", value_name = "TYPE")]
    pub dtype: Precision,
    /// Quantize the weight matrices while loading: q8_0, q4_0, q4_k, …
    #[arg(help_heading = "Model loading", long, value_name = "FORMAT")]
    pub quantize: Option<String>,
    /// Dequantize quantized weights to float32 while loading: exact, but slower and larger.
    #[arg(help_heading = "Model loading", long, conflicts_with = "quantize")]
    pub dequantize: bool,
    /// LoRA adapter to apply: a folder in the layout of peft, or a Hub id. SCALE multiplies it (default: 1). Can be
    /// repeated; adapters are added up.
    #[arg(help_heading = "Model loading", long = "adapter", value_name = "PATH[:SCALE]")]
    pub adapters: Vec<AdapterSpec>,
    /// Number of CPU threads (default: all cores).
    #[arg(help_heading = "Model loading", long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Model family, in place of the one detected from the config.
    #[arg(help_heading = "Model loading", long, value_name = "NAME")]
    pub family: Option<String>,
    /// Set a family-specific setting that the checkpoint does not specify; VALUE is JSON, a string, or @FILE to read
    /// JSON from a file. Can be repeated.
    #[arg(help_heading = "Model loading", long = "set", value_name = "KEY=VALUE", value_parser = setting)]
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
            adapters: Vec::new(),
            threads: None,
            family: None,
            settings: Vec::new(),
            finding: Finding::default(),
        }
    }
}

impl Loading {
    /// The options that change what is computed, if any, as they are given: ` --adapter style`.
    pub fn description(&self) -> String {
        let mut given: Vec<String> =
            self.adapters.iter().map(|adapter| format!(" --adapter {adapter}")).collect();
        if self.dtype != Precision::F32 {
            given.push(format!(" --dtype {}", self.dtype));
        }
        given.extend(self.quantize.iter().map(|format| format!(" --quantize {format}")));
        if self.dequantize {
            given.push(" --dequantize".to_string());
        }
        let rest = [("--family", &self.family), ("--weights", &self.finding.weights)];
        given.extend(rest.iter().filter_map(|(name, value)| Some(format!(" {name} {}", value.as_ref()?))));
        given.extend(self.settings.iter().map(|(key, value)| format!(" --set {key}={value}")));
        given.concat()
    }
}

/// Which files of a model are used.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Finding {
    /// Weights file to load where there are several: its name, or a part of it that is unique.
    #[arg(help_heading = "Model loading", long, value_name = "NAME")]
    pub weights: Option<String>,
    /// Do not access the network; use local files and the cache only.
    #[arg(help_heading = "Model loading", long)]
    pub offline: bool,
}

/// Parses `KEY=VALUE` or `KEY=@FILE`; a value that is not JSON is a string.
fn setting(argument: &str) -> std::result::Result<(String, serde_json::Value), String> {
    let (key, value) = argument.split_once('=').ok_or("expected KEY=VALUE")?;
    if key.is_empty() {
        return Err("the key is empty".into());
    }
    let value = match value.strip_prefix('@') {
        None => serde_json::from_str(value).unwrap_or_else(|_| value.into()),
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?;
            serde_json::from_str(&text).map_err(|e| format!("{file}: invalid JSON: {e}"))?
        }
    };
    Ok((key.to_string(), value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::setting;

    #[test]
    fn a_setting_is_json_a_string_or_a_file() {
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
