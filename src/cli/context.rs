//! What every verb shares: the options that stand before or after any verb, and what they mean.

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

/// Options of every verb.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Globals {
    /// Say nothing but errors.
    #[arg(help_heading = "Options of every verb", long, short, global = true)]
    pub quiet: bool,
    /// Print results as JSON.
    #[arg(help_heading = "Options of every verb", long, global = true)]
    pub json: bool,
}

/// The options and the terminal, handed to every verb.
pub struct Context {
    /// What the user chose for every verb.
    pub globals: Globals,
    /// How the verb's models are loaded.
    pub loading: Loading,
    /// Ctrl-C.
    pub interrupt: Arc<Interrupt>,
    /// Messages and progress, on standard error.
    pub bars: Arc<Bars>,
    /// A model that was opened to choose the verb, by its source, until the verb asks for it.
    opened: RefCell<Option<(String, Box<dyn Pipeline>)>>,
}

impl Context {
    /// Sets threads and listens for Ctrl-C: once a program.
    pub fn new(globals: Globals) -> Result<Self> {
        let interrupt = Interrupt::listen()?;
        let bars = Arc::new(Bars::new(globals.quiet, interrupt.clone()));
        let (loading, opened) = (Loading::default(), RefCell::default());
        Ok(Self { globals, loading, interrupt, bars, opened })
    }

    /// The same with models loaded as `loading` says.
    pub fn with_loading(self, loading: Loading) -> Self {
        Runtime::set_threads(loading.threads.map(usize::from));
        Self { loading, ..self }
    }

    /// How to open models.
    ///
    /// # Errors
    /// An unknown device or weight format, or a device that is not there.
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
            random_weights: None,
            settings: loading.settings.iter().cloned().collect(),
            finder: Arc::new(self.finder()),
            progress: Reporter::new(self.bars.clone()),
        })
    }

    /// Where files are found, with downloads shown.
    pub fn finder(&self) -> Finder {
        let mut config = HubConfig::from_env();
        config.offline |= self.loading.finding.offline;
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

    /// Opens the model that `source` names to look at its card; the next [`open`](Self::open) gives it out.
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

    /// Opens the model that `source` names for `verb`.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Unsupported`](fauna::ErrorKind::Unsupported) with the verbs that fit a model that
    /// does not support this one.
    pub fn open_for(&self, verb: &str, source: &str) -> Result<Box<dyn Pipeline>> {
        let model = self.open(source)?;
        abilities::check(model.card(), verb)?;
        Ok(model)
    }

    /// Opens a model by name, and says what its users must know.
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

    /// How files of pictures are read for `model`.
    pub fn image_options(&self, model: &dyn Pipeline, input: PictureInput) -> ImageOptions {
        let own = model.image_options();
        let allowed = input.max_pixels.map(|most| usize::try_from(most).unwrap_or(usize::MAX));
        ImageOptions { max_pixels: allowed.unwrap_or(own.max_pixels), ..own }
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
