//! `fauna forecast`: time series forecasts, and cross-validation of a model.

use std::path::PathBuf;

use fauna::forecasting::{Intervals, TableOutput, cross_validate, forecast};

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
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let intervals = match (args.level.is_empty(), args.quantiles.is_empty()) {
        (false, _) => Intervals::levels(args.level)?,
        (true, false) => Intervals::quantiles(args.quantiles)?,
        (true, true) => Intervals::None,
    };
    let future = args.future.as_ref().map(|future| args.input.read_future(future)).transpose()?;
    let mut options = args.input.options(args.horizon, intervals, context);
    options.future_covariates = future.as_ref();
    options.conformal_windows = args.conformal;
    options.windows = args.cross_validation.unwrap_or(1);
    options.step_size = args.step_size;
    let report = if args.cross_validation.is_some() { Report::Scores } else { Report::Rows };
    let work = Work {
        verb: "forecast",
        source: &args.model.source,
        input: &args.input,
        output: &args.output,
        report,
    };
    Ok(work.run(context, |model, name, table| {
        options.model = name.to_string();
        Ok(match report {
            Report::Scores => {
                let done = cross_validate(model, table, &options)?;
                let output = TableOutput { table: done.table, errors: done.errors, notes: done.notes };
                Done { output, metrics: done.metrics }
            }
            _ => Done { output: forecast(model, table, &options)?, metrics: Vec::new() },
        })
    })?)
}
