//! A pipeline whose calls run on threads of its own, and report themselves to `tracing`.

use std::ops::ControlFlow;

use serde_json::Value;

use super::{
    Card, Controller, DegreeOfFreedom, Evaluation, ExactForecast, ExactHistory, Forecast, ForecastConfig,
    Forecaster, History, Observation, Pipeline, Policy, Potential, SampleSizes, Task,
};
use crate::Result;
use crate::generate::{Generation, GenerationConfig, PrefixCache};
use crate::item::{Atoms, Embeddings, ImageOptions, Item, Prompt, Tensors, Turn};
use crate::progress::Progress;
use crate::runtime::{Runtime, ThreadPool};
use crate::text::Tokenizer;

/// The value of an expression, computed in the span of this name, whose field `model` is the source of the model.
macro_rules! traced {
    ($span:literal, $model:expr, $value:expr) => {{
        #[cfg(feature = "tracing")]
        let _span = tracing::info_span!(target: "fauna", $span, model = $model).entered();
        #[cfg(not(feature = "tracing"))]
        let _ = $model;
        $value
    }};
}

/// What `open` opens as `source` for `runtime`: on the runtime's own threads where it has some, and reporting itself
/// where this build has the feature `tracing`. Else the pipeline as it is.
pub(crate) fn served(
    source: &str,
    runtime: &Runtime,
    open: impl FnOnce() -> Result<Box<dyn Pipeline>>,
) -> Result<Box<dyn Pipeline>> {
    let threads = runtime.threads().cloned();
    let inner = traced!("load", source, on(threads.as_ref(), open))?;
    Ok(match threads.is_some() || cfg!(feature = "tracing") {
        true => Box::new(Served { inner, threads }),
        false => inner,
    })
}

fn on<T>(threads: Option<&ThreadPool>, f: impl FnOnce() -> T) -> T {
    match threads {
        Some(threads) => threads.install(f),
        None => f(),
    }
}

/// Reports what became of a generation.
fn report(generation: &Generation) {
    #[cfg(feature = "tracing")]
    tracing::info!(
        target: "fauna",
        finish = ?generation.finish,
        prompt_tokens = generation.prompt_tokens,
        new_tokens = generation.tokens.len(),
        prompt_seconds = generation.prompt_seconds,
        seconds = generation.seconds,
        "generated"
    );
    #[cfg(not(feature = "tracing"))]
    let _ = generation;
}

struct Served {
    inner: Box<dyn Pipeline>,
    threads: Option<ThreadPool>,
}

impl Served {
    fn source(&self) -> &str {
        &self.inner.card().source
    }
}

/// The value of an expression in a span, on the threads of the model.
macro_rules! serve {
    ($self:ident, $span:literal, $value:expr) => {
        traced!($span, $self.source(), on($self.threads.as_ref(), || $value))
    };
}

impl Pipeline for Served {
    fn card(&self) -> &Card {
        self.inner.card()
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        serve!(self, "forward", self.inner.forward(inputs))
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        serve!(self, "call", self.inner.call(method, inputs, options))
    }

    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        serve!(self, "embed", self.inner.embed(items))
    }

    fn embed_with(&self, items: &[Item], progress: &dyn Progress) -> Result<Embeddings> {
        serve!(self, "embed", self.inner.embed_with(items, progress))
    }

    fn embed_texts(&self, texts: &[&str]) -> Result<Embeddings> {
        serve!(self, "embed", self.inner.embed_texts(texts))
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        self.inner.tokenizer()
    }

    fn generate(
        &self,
        prompt: &Prompt,
        config: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        serve!(self, "generate", self.inner.generate(prompt, config, each).inspect(report))
    }

    fn generate_batch(
        &self,
        prompts: &[Prompt],
        config: &GenerationConfig,
        each: &mut dyn FnMut(usize, Item) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        serve!(self, "generate", {
            let generations = self.inner.generate_batch(prompts, config, each)?;
            generations.iter().for_each(report);
            Ok(generations)
        })
    }

    fn reply(
        &self,
        turns: &[Turn],
        config: &GenerationConfig,
        cache: &mut PrefixCache,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        serve!(self, "generate", self.inner.reply(turns, config, cache, each).inspect(report))
    }

    fn image_options(&self) -> ImageOptions {
        self.inner.image_options()
    }

    fn forecaster(&self) -> Result<&dyn Forecaster> {
        self.inner.forecaster().map(|_| self as &dyn Forecaster)
    }

    fn policy(&self) -> Result<&dyn Policy> {
        self.inner.policy().map(|_| self as &dyn Policy)
    }

    fn potential(&self) -> Result<&dyn Potential> {
        self.inner.potential().map(|_| self as &dyn Potential)
    }

    fn sample(&self, method: &str, sizes: &SampleSizes) -> Result<Tensors> {
        self.inner.sample(method, sizes)
    }

    fn defaults(&self) -> GenerationConfig {
        self.inner.defaults()
    }
}

impl Forecaster for Served {
    fn forecast(&self, series: &[History], options: &ForecastConfig) -> Result<Vec<Forecast>> {
        serve!(self, "forecast", self.inner.forecaster()?.forecast(series, options))
    }

    fn forecast_exact(
        &self,
        series: &[ExactHistory],
        options: &ForecastConfig,
    ) -> Result<Option<Vec<ExactForecast>>> {
        serve!(self, "forecast", self.inner.forecaster()?.forecast_exact(series, options))
    }

    fn context(&self) -> Option<usize> {
        self.inner.forecaster().ok()?.context()
    }

    fn levels(&self) -> Vec<f64> {
        self.inner.forecaster().map_or(Vec::new(), Forecaster::levels)
    }

    fn reads_covariates(&self) -> bool {
        self.inner.forecaster().is_ok_and(Forecaster::reads_covariates)
    }
}

impl Potential for Served {
    fn evaluate(&self, structures: &[Atoms]) -> Result<Vec<Evaluation>> {
        serve!(self, "evaluate", self.inner.potential()?.evaluate(structures))
    }

    fn reads_charge(&self) -> bool {
        self.inner.potential().is_ok_and(Potential::reads_charge)
    }

    fn is_conservative(&self) -> bool {
        self.inner.potential().is_ok_and(Potential::is_conservative)
    }
}

impl Policy for Served {
    fn start(&self, task: &Task) -> Result<Box<dyn Controller + '_>> {
        let inner = serve!(self, "start", self.inner.policy()?.start(task))?;
        Ok(Box::new(ServedController { inner, model: self }))
    }
}

struct ServedController<'a> {
    inner: Box<dyn Controller + 'a>,
    model: &'a Served,
}

impl Controller for ServedController<'_> {
    fn act(&mut self, seen: &Observation) -> Result<Vec<f64>> {
        traced!("act", self.model.source(), on(self.model.threads.as_ref(), || self.inner.act(seen)))
    }

    fn degrees(&self) -> &[DegreeOfFreedom] {
        self.inner.degrees()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Threads(Card);

    impl Pipeline for Threads {
        fn card(&self) -> &Card {
            &self.0
        }

        fn forward(&self, _: &Tensors) -> Result<Tensors> {
            let threads = crate::kernels::pool::threads() as i64;
            let threads = candle_core::Tensor::new(threads, &candle_core::Device::Cpu)?;
            Ok(Tensors::from([("threads".to_string(), threads)]))
        }
    }

    fn card() -> Card {
        Card {
            source: "threads".into(),
            system: String::new(),
            family: "threads",
            architecture: String::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            task: None,
            parameters: 0,
            context: None,
            licence: None,
            notes: Vec::new(),
        }
    }

    #[test]
    fn a_model_loads_and_computes_on_the_threads_of_its_runtime() {
        let runtime = Runtime::cpu().with_threads(Some(ThreadPool::new(5)));
        let mut at_load = 0;
        let open = || {
            at_load = crate::kernels::pool::threads();
            Ok(Box::new(Threads(card())) as Box<dyn Pipeline>)
        };
        let model = served("threads", &runtime, open).unwrap();
        assert_eq!(at_load, 5);
        let made = model.forward(&Tensors::new()).unwrap();
        assert_eq!(made["threads"].to_scalar::<i64>().unwrap(), 5);
        assert!(model.forecaster().is_err() && model.policy().is_err() && model.potential().is_err());
    }
}
