//! Input and output of time series, shared by `fauna forecast` and `fauna anomalies`.

mod drawing;

use std::io::Write;
use std::path::PathBuf;

use fauna::forecasting::{
    Columns, ForecastOptions, Frequency, Intervals, Metrics, Naive, ResultTable, SeasonalNaive, SeriesError,
    Table, TableOutput,
};
use fauna::model::Forecaster;
use fauna::{Error, Pipeline, Result};
use serde_json::json;

use super::options::{Place, Seed};
use super::output::{Output, check_free};
use super::{Context, Exit, plot, table};

/// Input table of time series.
#[derive(Debug, Clone, clap::Args)]
pub struct SeriesInput {
    /// Table of time series in long format, CSV or Parquet: unique_id (optional), ds, y; other numeric columns are
    /// covariates.
    #[arg(help_heading = "Series", long, value_name = "FILE")]
    pub series: PathBuf,
    /// Frequency of the dates: min, 15min, h, D, B, W-MON, MS, ME, QS, YS, … (default: inferred from the dates).
    #[arg(help_heading = "Series", long, value_name = "NAME")]
    freq: Option<Frequency>,
    /// Season length, in steps (default: by the frequency).
    #[arg(help_heading = "Series", long, value_name = "N")]
    season: Option<usize>,
    /// Past-only covariates, separated by commas: their future values are not used in rolling forecasts.
    #[arg(help_heading = "Series", long, value_name = "COLUMNS", value_delimiter = ',')]
    history_only: Vec<String>,
    /// Column of the series ids.
    #[arg(help_heading = "Series", long, value_name = "COLUMN", default_value = "unique_id")]
    id_col: String,
    /// Column of the dates or integer time stamps.
    #[arg(help_heading = "Series", long, value_name = "COLUMN", default_value = "ds")]
    time_col: String,
    /// Column of the values.
    #[arg(help_heading = "Series", long, value_name = "COLUMN", default_value = "y")]
    target_col: String,
    /// Number of sample paths, for models that sample.
    #[arg(help_heading = "Series", long, value_name = "N")]
    samples: Option<usize>,
    #[command(flatten)]
    seed: Seed,
}

/// Output of rows and plots.
#[derive(Debug, Clone, clap::Args)]
pub struct SeriesOutput {
    /// Output file: FILE.csv, or FILE.json for JSON lines (default: standard output).
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Overwrite existing files.
    #[arg(help_heading = "Output", long)]
    force: bool,
    /// Plot history, forecasts and prediction intervals of the first series to this file.
    #[arg(help_heading = "Output", long, value_name = "FILE.png")]
    plot: Option<PathBuf>,
}

/// What is printed in addition to the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// Nothing.
    Rows,
    /// Accuracy of the rolling forecasts.
    Scores,
    /// Number of anomalies.
    Anomalies,
}

/// Results of a table.
pub struct Done {
    pub output: TableOutput,
    pub metrics: Vec<Metrics>,
}

impl SeriesInput {
    fn columns(&self) -> Columns {
        Columns { id: self.id_col.clone(), time: self.time_col.clone(), target: self.target_col.clone() }
    }

    /// Returns the season length of `table`: the option, else by the frequency.
    ///
    /// # Errors
    /// A table without a frequency.
    pub fn season(&self, table: &Table) -> Result<usize> {
        match (self.season, self.freq) {
            (Some(season), _) => Ok(season),
            (None, Some(frequency)) => Ok(frequency.season_length()),
            (None, None) => Ok(table.frequency()?.season_length()),
        }
    }

    /// Reads the future covariates from the table at `path`.
    ///
    /// # Errors
    /// A file that is not such a table.
    pub fn read_future(&self, path: &PathBuf) -> Result<Table> {
        Table::read_future(path, &self.columns())
    }

    /// The options of every forecaster.
    pub fn options<'a>(
        &self,
        horizon: usize,
        intervals: Intervals,
        context: &'a Context,
    ) -> ForecastOptions<'a> {
        ForecastOptions {
            horizon,
            intervals,
            frequency: self.freq,
            season_length: self.season,
            samples: self.samples,
            seed: self.seed.seed,
            past_covariates: self.history_only.clone(),
            progress: context.bars.as_ref(),
            ..ForecastOptions::default()
        }
    }
}

/// A task on a table with a forecaster.
pub struct Work<'a> {
    /// Command.
    pub verb: &'a str,
    /// Source of the model.
    pub source: &'a str,
    pub input: &'a SeriesInput,
    pub output: &'a SeriesOutput,
    pub report: Report,
}

impl Work<'_> {
    /// Reads the table, calls `work` with it and prints the rows. A series that fails is reported and skipped, and makes the
    /// exit status 2.
    ///
    /// # Errors
    /// Files that cannot be read or written, and a table of which all series fail.
    pub fn run(
        &self,
        context: &Context,
        work: impl FnOnce(&dyn Forecaster, &str, &Table) -> Result<Done>,
    ) -> Result<Exit> {
        let place = Place::new(self.output.out.clone(), self.output.force);
        if let Some(file) = place.path.as_deref().filter(|_| !place.is_stdout()) {
            check_free(file, place.force)?;
        }
        if let Some(file) = &self.output.plot {
            plot::check_free(file, place.force)?;
        }
        let table = Table::read(&self.input.series, &self.input.columns())?;
        let model = Model::open(self.verb, self.source, self.input.season, context)?;
        let _stoppable = context.interrupt.hold();
        let done = work(model.forecaster()?, &model.name, &table)?;
        for note in &done.output.notes {
            context.say(note);
        }
        let TableOutput { table: results, errors, .. } = &done.output;
        errors.iter().for_each(|failed| context.complain(&failed.error.to_string()));
        if results.series.is_empty() {
            return Err(Error::input(format!("none of {} series could be processed", errors.len()))
                .at(&self.input.series));
        }
        show(&done, &table, self.report, &place, context)?;
        if let Some(file) = &self.output.plot {
            let cut = drawing::write(file, place.force, &model.name, &table, results)?;
            context.say(&format!("plot: {}{}", file.display(), cut.unwrap_or_default()));
        }
        Ok(match errors.is_empty() {
            true => Exit::Done,
            false => Exit::Partly,
        })
    }
}

/// The forecaster.
struct Model {
    name: String,
    kind: Kind,
}

enum Kind {
    Naive,
    Seasonal(SeasonalNaive),
    Opened(Box<dyn Pipeline>),
}

impl Model {
    fn open(verb: &str, source: &str, season: Option<usize>, context: &Context) -> Result<Self> {
        let (name, kind) = match source {
            "naive" => ("Naive", Kind::Naive),
            "seasonal-naive" => (
                "SeasonalNaive",
                Kind::Seasonal(match season {
                    Some(season) => SeasonalNaive { season_length: season },
                    None => SeasonalNaive::AUTO,
                }),
            ),
            source => {
                let model = context.open_for(verb, source)?;
                // Fails before the table is prepared.
                model.forecaster()?;
                (short_name(source), Kind::Opened(model))
            }
        };
        Ok(Self { name: name.to_string(), kind })
    }

    fn forecaster(&self) -> Result<&dyn Forecaster> {
        match &self.kind {
            Kind::Naive => Ok(&Naive),
            Kind::Seasonal(model) => Ok(model),
            Kind::Opened(model) => model.forecaster(),
        }
    }
}

/// Returns the short name of a source: `amazon/chronos-bolt-small@main` gives `chronos-bolt-small`.
fn short_name(source: &str) -> &str {
    let last = source.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(source);
    last.split('@').next().filter(|name| !name.is_empty()).unwrap_or("Model")
}

/// Writes the rows. Scores are printed to standard output, or to standard error if the rows are on standard output.
fn show(done: &Done, table: &Table, report: Report, place: &Place, context: &Context) -> Result<()> {
    let TableOutput { table: results, errors, .. } = &done.output;
    let file = place.path.as_deref().filter(|_| !place.is_stdout());
    let json = context.globals.json;
    let mut output = Output::open(file, place.force)?;
    let ending = file.and_then(std::path::Path::extension).unwrap_or_default().to_ascii_lowercase();
    let lines = match file {
        None => json,
        Some(_) => matches!(ending.to_str(), Some("json" | "jsonl" | "ndjson")),
    };
    write(results, lines, &mut output)?;
    output.finish()?;
    let metrics = ResultTable::from_metrics(&done.metrics, table);
    if let (Some(file), true) = (file, json) {
        let mut output = Output::stdout();
        let failed: Vec<_> = errors.iter().map(as_json).collect();
        output.json(
            &json!({"file": file, "series": results.series.len(), "rows": results.rows(), "problems": failed}),
        )?;
        write(&metrics, true, &mut output)?;
        return output.finish();
    }
    if let Some(file) = file {
        context.say(&format!(
            "{} rows of {} series written to {}",
            results.rows(),
            results.series.len(),
            file.display()
        ));
    }
    if json {
        let mut output = Output::stdout();
        write(&metrics, true, &mut output)?;
        return output.finish();
    }
    if report == Report::Scores {
        let lines = score_lines(&done.metrics, table.has_ids, results.series.len());
        match file {
            None => lines.iter().for_each(|line| context.say(line)),
            Some(_) => {
                let mut output = Output::stdout();
                lines.iter().try_for_each(|line| output.line(line))?;
                output.finish()?;
            }
        }
    }
    if report == Report::Anomalies {
        let found = results.column("anomaly").map_or(0, |column| {
            results
                .series
                .iter()
                .flat_map(|part| drawing::flags(&part.columns[column]))
                .filter(|flag| **flag)
                .count()
        });
        context.say(&format!("{found} anomalies in {} values", results.rows()));
    }
    Ok(())
}

fn as_json(failed: &SeriesError) -> serde_json::Value {
    json!({"series": failed.id, "error": failed.error.to_string()})
}

/// Formats the scores as a table: over all `series`, and of each if there are few.
fn score_lines(metrics: &[Metrics], named: bool, series: usize) -> Vec<String> {
    const FEW: usize = 8;
    let mut lines = table::Table::default();
    lines.row(["series", "model", "MAE", "RMSE", "MASE", "sMAPE", "CRPS"]);
    let number = |value: f64| if value.is_finite() { format!("{value:.4}") } else { "-".to_string() };
    let shown = |one: &&Metrics| one.id.is_none() || (named && series <= FEW);
    for one in metrics.iter().filter(shown) {
        let id = table::shorten(one.id.as_deref().unwrap_or("all"), 24);
        let numbers = [one.mae, one.rmse, one.mase, one.smape, one.crps].map(number);
        lines.push([id, one.model.clone()].into_iter().chain(numbers).collect());
    }
    lines.lines()
}

/// Writes results to an output, as JSON lines or CSV.
fn write(results: &ResultTable, json: bool, output: &mut Output) -> Result<()> {
    let mut sink = Sink { output, wrong: None };
    let written = match json {
        true => results.write_json(&mut sink),
        false => results.write_csv(&mut sink),
    };
    // The error of the output is more specific than that of the writer.
    sink.wrong.map_or(written, Err)
}

/// An output as an [`std::io::Write`].
struct Sink<'a> {
    output: &'a mut Output,
    wrong: Option<Error>,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.output.bytes(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                self.wrong.get_or_insert(error);
                Err(std::io::Error::other("cannot write"))
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
