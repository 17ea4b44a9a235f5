//! `fauna forecast`: the next steps of series, and trials of a model on their past.

use std::path::PathBuf;

use fauna::Result;
use fauna::science::forecast::{Answer, Bands, cross_validate, forecast};

use crate::cli::options::ModelArg;
use crate::cli::series::{Done, Report, SeriesInput, SeriesOutput, Work};
use crate::cli::{Context, Exit};

/// What is forecast.
#[derive(Debug, clap::Args)]
#[command(
    group(clap::ArgGroup::new("rolling").args(["conformal", "cross_validation"]).multiple(true)),
    after_help = "The model may also be naive or seasonal-naive.\n\nExamples:\n  \
                  fauna forecast amazon/chronos-bolt-small --series sales.csv --horizon 24 --level 80,90 \
                  --out forecast.csv --plot forecast.png\n  \
                  fauna forecast seasonal-naive --series sales.csv --horizon 24 --cross-validation 5"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Steps to forecast.
    #[arg(long, value_name = "N")]
    horizon: usize,
    /// Prediction intervals that hold so many of a hundred values, between commas: 80,90.
    #[arg(long, value_name = "PERCENTS", value_delimiter = ',', conflicts_with = "quantiles")]
    level: Vec<f64>,
    /// Quantiles, between commas: 0.1,0.5,0.9.
    #[arg(long, value_name = "QUANTILES", value_delimiter = ',')]
    quantiles: Vec<f64>,
    /// Covariates of the steps to forecast, in a table as that of the series without y.
    #[arg(long, value_name = "FILE", conflicts_with = "cross_validation")]
    future: Option<PathBuf>,
    /// Calibrate the intervals on so many rolling forecasts of each series, whatever the model.
    #[arg(long, value_name = "WINDOWS")]
    conformal: Option<usize>,
    /// Score the model on so many rolling forecasts of each series, beside the naive and the seasonal naive one.
    #[arg(long, value_name = "WINDOWS")]
    cross_validation: Option<usize>,
    /// Steps from one rolling forecast to the next; the horizon if not said.
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
