//! State that all commands share: global options, loading options, progress and Ctrl-C.

use std::cell::RefCell;
use std::sync::Arc;

use fauna::progress::{Progress, Reporter};
use fauna::runtime::Runtime;
use fauna::source::{Finder, HfHub, HubConfig};
use fauna::{Card, ImageOptions, LoadOptions, Pipeline, Result};

use super::abilities;
use super::interrupt::Interrupt;
use super::options::{Loading, PictureInput};
use super::progress::Bars;

/// Global options.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Globals {
    /// Print errors only.
    #[arg(help_heading = "Global options", long, short, global = true)]
    pub quiet: bool,
    /// Print results as JSON.
    #[arg(help_heading = "Global options", long, global = true)]
    pub json: bool,
}

/// Options, progress bars and interrupt state, passed to every command.
pub struct Context {
    /// Global options.
    pub globals: Globals,
    /// Loading options of the command's models.
    pub loading: Loading,
    /// State of Ctrl-C.
    pub interrupt: Arc<Interrupt>,
    /// Messages and progress, on standard error.
    pub bars: Arc<Bars>,
    /// A model loaded to choose the command, with its source, until the command opens it.
    opened: RefCell<Option<(String, Box<dyn Pipeline>)>>,
}

impl Context {
    /// Installs the Ctrl-C handler. Must be called once per process.
    pub fn new(globals: Globals) -> Result<Self> {
        let interrupt = Interrupt::listen()?;
        let bars = Arc::new(Bars::new(globals.quiet, interrupt.clone()));
        let (loading, opened) = (Loading::default(), RefCell::default());
        Ok(Self { globals, loading, interrupt, bars, opened })
    }

    /// Sets the loading options and the number of threads.
    pub fn with_loading(self, loading: Loading) -> Self {
        Runtime::set_threads(loading.threads.map(usize::from));
        Self { loading, ..self }
    }

    /// Returns the loading options of the library.
    ///
    /// # Errors
    /// An unknown device or quantization format, or a device that is not available.
    pub fn options(&self) -> Result<LoadOptions> {
        let loading = &self.loading;
        let quantize = loading.quantize.as_deref().map(fauna::nn::block_kind).transpose()?;
        Ok(LoadOptions {
            runtime: Runtime::on(&loading.device)?
                .with_precision(loading.dtype)
                .with_quantize(quantize)
                .with_dequantize(loading.dequantize),
            family: loading.family.clone(),
            file: loading.finding.weights.clone(),
            adapters: loading.adapters.clone(),
            settings: loading.settings.iter().cloned().collect(),
            finder: Arc::new(self.finder()),
            progress: Reporter::new(self.bars.clone()),
            ..LoadOptions::default()
        })
    }

    /// Returns the finder of model files, which shows the progress of downloads.
    pub fn finder(&self) -> Finder {
        let mut config = HubConfig::from_env();
        config.offline |= self.loading.finding.offline;
        let named = config.named.clone();
        let finder = Finder::new(HfHub::new(config), named).with_progress(self.bars.clone());
        #[cfg(feature = "builtin")]
        let finder = fauna::builtin::resolving(finder);
        finder
    }

    /// Loads the model that `source` names.
    ///
    /// # Errors
    /// As [`fauna::open_with`].
    pub fn open(&self, source: &str) -> Result<Box<dyn Pipeline>> {
        self.open_with(source, &self.options()?)
    }

    /// Loads the model that `source` names and returns its card; the next [`open`](Self::open) returns the model.
    ///
    /// # Errors
    /// As [`fauna::open_with`].
    pub fn look_at(&self, source: &str) -> Result<Card> {
        let _stoppable = self.interrupt.hold();
        let pipeline = fauna::open_with(source, &self.options()?)?;
        self.interrupt.check()?;
        let card = pipeline.card().clone();
        *self.opened.borrow_mut() = Some((source.to_string(), pipeline));
        Ok(card)
    }

    /// Loads the model that `source` names for the command `verb`.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Unsupported`](fauna::ErrorKind::Unsupported) if the model does not support the
    /// command; the error lists those that it supports.
    pub fn open_for(&self, verb: &str, source: &str) -> Result<Box<dyn Pipeline>> {
        let model = self.open(source)?;
        abilities::check(model.card(), verb)?;
        Ok(model)
    }

    /// Loads a model with `options` and prints the notes of its card.
    pub fn open_with(&self, source: &str, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
        let _stoppable = self.interrupt.hold();
        let opened = self.opened.borrow_mut().take_if(|(opened, _)| opened == source);
        let pipeline = match opened {
            Some((_, pipeline)) => pipeline,
            None => fauna::open_with(source, options)?,
        };
        self.interrupt.check()?;
        for note in &pipeline.card().notes {
            self.say(note);
        }
        Ok(pipeline)
    }

    /// Returns how image files are decoded for `model`.
    pub fn image_options(&self, model: &dyn Pipeline, input: PictureInput) -> ImageOptions {
        let own = model.image_options();
        let allowed = input.max_pixels.map(|most| usize::try_from(most).unwrap_or(usize::MAX));
        ImageOptions { max_pixels: allowed.unwrap_or(own.max_pixels), ..own }
    }

    /// Prints `message` to standard error, unless `--quiet` is set.
    pub fn say(&self, message: &str) {
        self.bars.note(message);
    }

    /// Prints an error that does not stop the rest of the work.
    pub fn complain(&self, message: &str) {
        self.bars.complain(message);
    }
}
