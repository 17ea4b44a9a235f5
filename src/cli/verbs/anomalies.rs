//! `fauna anomalies`: values of time series outside the prediction intervals of rolling forecasts.

use fauna::forecasting::{Intervals, detect_anomalies};

use crate::cli::options::ModelArg;
use crate::cli::series::{Done, Report, SeriesInput, SeriesOutput, Work};
use crate::cli::{Context, Exit};

/// Arguments of `fauna anomalies`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "MODEL may also be naive or seasonal-naive, which need no checkpoint.\n\nExamples:\n  \
                        fauna anomalies amazon/chronos-bolt-small --series sales.csv --level 99 --plot found.png\n  \
                        fauna anomalies seasonal-naive --series sales.csv --horizon 1 --json"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Horizon of each rolling forecast, in steps (default: one season).
    #[arg(long, value_name = "N")]
    horizon: Option<usize>,
    /// Level of the prediction interval, in percent, outside of which a value is an anomaly (default: 99).
    #[arg(long, value_name = "PERCENT")]
    level: Option<f64>,
    #[command(flatten)]
    input: SeriesInput,
    #[command(flatten)]
    output: SeriesOutput,
}

/// Detects the anomalies of each series.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let intervals = args.level.map_or(Ok(Intervals::None), |level| Intervals::levels(vec![level]))?;
    let work = Work {
        verb: "anomalies",
        source: &args.model.source,
        input: &args.input,
        output: &args.output,
        report: Report::Anomalies,
    };
    Ok(work.run(context, |model, name, table| {
        let horizon = args.horizon.map_or_else(|| args.input.season(table), Ok)?;
        let mut options = args.input.options(horizon, intervals, context);
        options.model = name.to_string();
        Ok(Done { output: detect_anomalies(model, table, &options)?, metrics: Vec::new() })
    })?)
}
