//! `fauna forecast`: time series forecasts, and cross-validation of a model.

use std::path::PathBuf;

use fauna::Result;
use fauna::forecasting::{Answer, Bands, cross_validate, forecast};

use crate::cli::options::ModelArg;
use crate::cli::series::{Done, Report, SeriesInput, SeriesOutput, Work};
use crate::cli::{Context, Exit};

/// Arguments of `fauna forecast`.
#[derive(Debug, clap::Args)]
#[command(
    group(clap::ArgGroup::new("rolling").args(["conformal", "cross_validation"]).multiple(true)),
    after_help = "MODEL may also be naive or seasonal-naive, which need no checkpoint.\n\nExamples:\n  \
                  fauna forecast amazon/chronos-bolt-small --series sales.csv --horizon 24 --level 80,90 \
                  --out forecast.csv --plot forecast.png\n  \
                  fauna forecast seasonal-naive --series sales.csv --horizon 24 --cross-validation 5"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Forecast horizon, in steps.
    #[arg(long, value_name = "N")]
    horizon: usize,
    /// Levels of the prediction intervals, in percent, separated by commas: 80,90.
    #[arg(long, value_name = "PERCENTS", value_delimiter = ',', conflicts_with = "quantiles")]
    level: Vec<f64>,
    /// Quantiles, separated by commas: 0.1,0.5,0.9.
    #[arg(long, value_name = "QUANTILES", value_delimiter = ',')]
    quantiles: Vec<f64>,
    /// Table of the known future covariates: the columns of --series without y.
    #[arg(long, value_name = "FILE", conflicts_with = "cross_validation")]
    future: Option<PathBuf>,
    /// Conformal prediction intervals, calibrated on this number of rolling forecasts of each series.
    #[arg(long, value_name = "WINDOWS")]
    conformal: Option<usize>,
    /// Cross-validate the model on this number of rolling forecasts of each series, with the naive and seasonal naive
    /// forecasts as baselines.
    #[arg(long, value_name = "WINDOWS")]
    cross_validation: Option<usize>,
    /// Step size between the rolling forecasts (default: the horizon).
    #[arg(long, value_name = "N", requires = "rolling")]
    step_size: Option<usize>,
    #[command(flatten)]
    input: SeriesInput,
    #[command(flatten)]
    output: SeriesOutput,
}

/// Forecasts each series.
pub fn run(args: Args, context: &Context) -> Result<Exit> {
    let bands = match (args.level.is_empty(), args.quantiles.is_empty()) {
        (false, _) => Bands::levels(args.level)?,
        (true, false) => Bands::quantiles(args.quantiles)?,
        (true, true) => Bands::None,
    };
    let future = args.future.as_ref().map(|future| args.input.read_future(future)).transpose()?;
    let mut ask = args.input.ask(args.horizon, bands, context);
    ask.future = future.as_ref();
    ask.conformal = args.conformal;
    ask.windows = args.cross_validation.unwrap_or(1);
    ask.step = args.step_size;
    let report = if args.cross_validation.is_some() { Report::Scores } else { Report::Rows };
    let work = Work {
        verb: "forecast",
        source: &args.model.source,
        input: &args.input,
        output: &args.output,
        report,
    };
    work.run(context, |model, name, table| {
        ask.model = name.to_string();
        Ok(match report {
            Report::Scores => {
                let done = cross_validate(model, table, &ask)?;
                let answer = Answer { sheet: done.sheet, problems: done.problems, notes: done.notes };
                Done { answer, scores: done.scores }
            }
            _ => Done { answer: forecast(model, table, &ask)?, scores: Vec::new() },
        })
    })
}
