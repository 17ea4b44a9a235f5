//! What every verb shares: the options that stand before or after any verb, and what they mean.

use std::sync::Arc;

use fauna::progress::Progress;
use fauna::runtime::{Precision, Runtime};
use fauna::source::{Finder, HfHub, HubConfig};
use fauna::{LoadOptions, Pipeline, Reading, Result};

use super::interrupt::Interrupt;
use super::progress::Bars;

/// Options of every verb.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Options of every verb")]
pub struct Globals {
    /// Where to compute: cpu, cuda, cuda:N, metal, or auto (the first GPU there is, else the CPU).
    #[arg(long, global = true, default_value = "cpu", value_name = "NAME")]
    pub device: String,
    /// The number type of dense weights: f32, bf16 or f16.
    #[arg(long, global = true, default_value = "f32", value_name = "TYPE")]
    pub dtype: Precision,
    /// Store large matrices in blocks when they are loaded: q8_0, q4_0, q4_k, …
    #[arg(long, global = true, value_name = "FORMAT")]
    pub quantize: Option<String>,
    /// Widen block-quantised files to float32 when they are loaded: exact, slower, larger.
    #[arg(long, global = true, conflicts_with = "quantize")]
    pub dequantize: bool,
    /// How many threads compute; all cores if not said.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// The family to use, whatever the config says.
    #[arg(long, global = true, value_name = "NAME")]
    pub family: Option<String>,
    /// Which of several weight files to use: its name, or a part that only one has.
    #[arg(long, global = true, value_name = "NAME")]
    pub weights: Option<String>,
    /// Tell what the release does not say of itself: KEY=VALUE, the value as JSON, or @FILE with it.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = setting)]
    pub settings: Vec<(String, serde_json::Value)>,
    /// The most pixels of a picture that are decoded: 89478485 if not said. Larger pictures are refused by the size
    /// they declare.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_pixels: Option<u64>,
    /// Make no network call.
    #[arg(long, global = true)]
    pub offline: bool,
    /// Say nothing but errors.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Where random numbers start: the same seed gives the same output.
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Print results as JSON.
    #[arg(long, global = true)]
    pub json: bool,
}

/// The options and the terminal, handed to every verb.
pub struct Context {
    /// What the user chose for every verb.
    pub globals: Globals,
    /// Ctrl-C.
    pub interrupt: Arc<Interrupt>,
    /// Messages and progress, on standard error.
    pub bars: Arc<Bars>,
}

impl Context {
    /// Sets threads and listens for Ctrl-C: once a program.
    pub fn new(globals: Globals) -> Result<Self> {
        Runtime::set_threads(globals.threads.map(usize::from));
        let interrupt = Interrupt::listen()?;
        let bars = Arc::new(Bars::new(globals.quiet, interrupt.clone()));
        Ok(Self { globals, interrupt, bars })
    }

    /// How to open models.
    ///
    /// # Errors
    /// An unknown device or weight format, or a device that is not there.
    pub fn options(&self) -> Result<LoadOptions> {
        let globals = &self.globals;
        let quantize = globals.quantize.as_deref().map(fauna::nn::block_kind).transpose()?;
        Ok(LoadOptions {
            runtime: Runtime::on(&globals.device)?
                .with_precision(globals.dtype)
                .with_quantize(quantize)
                .with_dequantize(globals.dequantize),
            family: globals.family.clone(),
            file: globals.weights.clone(),
            random_weights: None,
            settings: globals.settings.iter().cloned().collect(),
            finder: Arc::new(self.finder()),
        })
    }

    /// Where files are found, with downloads shown.
    pub fn finder(&self) -> Finder {
        let mut config = HubConfig::from_env();
        config.offline |= self.globals.offline;
        let named = config.named.clone();
        let finder = Finder::new(HfHub::new(config), named).with_progress(self.bars.clone());
        #[cfg(feature = "builtin")]
        let finder = finder.with_builtin(|name| {
            (name == fauna::builtin::NAME).then(fauna::builtin::folder).and_then(Result::ok)
        });
        finder
    }

    /// Opens the model that `source` names.
    ///
    /// # Errors
    /// As [`fauna::open_with`].
    pub fn open(&self, source: &str) -> Result<Box<dyn Pipeline>> {
        self.open_with(source, &self.options()?)
    }

    /// Opens a model by name, and says what its users must know.
    pub fn open_with(&self, source: &str, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
        let _stoppable = self.interrupt.hold();
        let pipeline = fauna::open_with(source, options)?;
        self.interrupt.check()?;
        for note in &pipeline.card().notes {
            self.say(note);
        }
        Ok(pipeline)
    }

    /// How files of pictures are read for `model`.
    pub fn reading(&self, model: &dyn Pipeline) -> Reading {
        let own = model.reading();
        let allowed = self.globals.max_pixels.map(|most| usize::try_from(most).unwrap_or(usize::MAX));
        Reading { max_pixels: allowed.unwrap_or(own.max_pixels), ..own }
    }

    /// Says `message` on standard error, unless told to be quiet.
    pub fn say(&self, message: &str) {
        self.bars.note(message);
    }

    /// Says what went wrong with a part of the work that does not stop the rest.
    pub fn complain(&self, message: &str) {
        self.bars.complain(message);
    }
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
