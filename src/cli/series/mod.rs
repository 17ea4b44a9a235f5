//! Tables of series, and what forecasters make of them: shared by `fauna forecast` and `fauna anomalies`.

mod drawing;

use std::io::Write;
use std::path::PathBuf;

use fauna::model::Forecaster;
use fauna::science::forecast::{
    Answer, Ask, Bands, Columns, Frequency, Naive, Problem, Scores, SeasonalNaive, Sheet, Table,
};
use fauna::{Error, Pipeline, Result};
use serde_json::json;

use super::options::{Place, Seed};
use super::output::{Output, check_free};
use super::{Context, Exit, plot, table};

/// A table of series.
#[derive(Debug, Clone, clap::Args)]
pub struct SeriesInput {
    /// A table of series, CSV or Parquet, in long format: unique_id (may be missing), ds, y; other columns of numbers
    /// are covariates.
    #[arg(help_heading = "Series", long, value_name = "FILE")]
    pub series: PathBuf,
    /// How far the dates are apart: min, h, D, B, W-MON, MS, ME, QS, YS, ..., 15min; read off the dates if not said.
    #[arg(help_heading = "Series", long, value_name = "NAME")]
    freq: Option<Frequency>,
    /// Steps that make a season; by the frequency if not said.
    #[arg(help_heading = "Series", long, value_name = "N")]
    season: Option<usize>,
    /// Covariates without known future values, between commas: rolling forecasts do not read their future.
    #[arg(help_heading = "Series", long, value_name = "COLUMNS", value_delimiter = ',')]
    history_only: Vec<String>,
    /// The column of the names of series.
    #[arg(help_heading = "Series", long, value_name = "COLUMN", default_value = "unique_id")]
    id_col: String,
    /// The column of dates, or of whole numbers.
    #[arg(help_heading = "Series", long, value_name = "COLUMN", default_value = "ds")]
    time_col: String,
    /// The column of values.
    #[arg(help_heading = "Series", long, value_name = "COLUMN", default_value = "y")]
    target_col: String,
    /// Sample paths of models that sample.
    #[arg(help_heading = "Series", long, value_name = "N")]
    samples: Option<usize>,
    #[command(flatten)]
    seed: Seed,
}

/// Where rows and plots go.
#[derive(Debug, Clone, clap::Args)]
pub struct SeriesOutput {
    /// Write the rows to this file instead of standard output: FILE.csv, or FILE.json for JSON lines.
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace files that are there.
    #[arg(help_heading = "Output", long)]
    force: bool,
    /// Plot history, forecasts and prediction intervals of the first series into this file.
    #[arg(help_heading = "Output", long, value_name = "FILE.png")]
    plot: Option<PathBuf>,
}

/// What is shown beside the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// Nothing.
    Rows,
    /// Scores of the rolling forecasts.
    Scores,
    /// How many anomalies there are.
    Anomalies,
}

/// What was made of a table.
pub struct Done {
    pub answer: Answer,
    pub scores: Vec<Scores>,
}

impl SeriesInput {
    fn columns(&self) -> Columns {
        Columns { id: self.id_col.clone(), time: self.time_col.clone(), target: self.target_col.clone() }
    }

    /// Steps that make a season of `table`: as said, else by the frequency.
    ///
    /// # Errors
    /// A table without a frequency.
    pub fn season(&self, table: &Table) -> Result<usize> {
        match (self.season, self.freq) {
            (Some(season), _) => Ok(season),
            (None, Some(frequency)) => Ok(frequency.season()),
            (None, None) => Ok(table.frequency()?.season()),
        }
    }

    /// The covariates of the steps ahead in the table at `path`.
    ///
    /// # Errors
    /// A file that is no such table.
    pub fn read_future(&self, path: &PathBuf) -> Result<Table> {
        Table::read_future(path, &self.columns())
    }

    /// What is asked of every forecaster.
    pub fn ask<'a>(&self, horizon: usize, bands: Bands, context: &'a Context) -> Ask<'a> {
        Ask {
            horizon,
            bands,
            frequency: self.freq,
            season: self.season,
            samples: self.samples,
            seed: self.seed.seed,
            past_only: self.history_only.clone(),
            progress: context.bars.as_ref(),
            ..Ask::default()
        }
    }
}

/// What is asked for with a table and a forecaster.
pub struct Work<'a> {
    /// The verb.
    pub verb: &'a str,
    /// The model.
    pub source: &'a str,
    pub input: &'a SeriesInput,
    pub output: &'a SeriesOutput,
    pub report: Report,
}

impl Work<'_> {
    /// Reads the table, does `work` with it, and shows the rows. A series that cannot be done is reported, left out, and
    /// makes the exit status 2.
    ///
    /// # Errors
    /// Files that cannot be read or written, and a table of which no series can be done.
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
        for note in &done.answer.notes {
            context.say(note);
        }
        let Answer { sheet, problems, .. } = &done.answer;
        problems.iter().for_each(|problem| context.complain(&problem.error.to_string()));
        if sheet.parts.is_empty() {
            return Err(Error::input(format!("none of {} series could be done", problems.len()))
                .at(&self.input.series));
        }
        show(&done, &table, self.report, &place, context)?;
        if let Some(file) = &self.output.plot {
            let cut = drawing::write(file, place.force, &model.name, &table, sheet)?;
            context.say(&format!("picture: {}{}", file.display(), cut.unwrap_or_default()));
        }
        Ok(match problems.is_empty() {
            true => Exit::Done,
            false => Exit::Partly,
        })
    }
}

/// What forecasts.
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
                    Some(season) => SeasonalNaive { season },
                    None => SeasonalNaive::OWN,
                }),
            ),
            source => {
                let model = context.open_for(verb, source)?;
                // Said before the table is laid out for it.
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

/// `amazon/chronos-bolt-small@main`: `chronos-bolt-small`.
fn short_name(source: &str) -> &str {
    let last = source.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(source);
    last.split('@').next().filter(|name| !name.is_empty()).unwrap_or("Model")
}

/// The rows where they are to go. Scores go to standard output, or, where the rows do, to standard error.
fn show(done: &Done, table: &Table, report: Report, place: &Place, context: &Context) -> Result<()> {
    let Answer { sheet, problems, .. } = &done.answer;
    let file = place.path.as_deref().filter(|_| !place.is_stdout());
    let json = context.globals.json;
    let mut output = Output::open(file, place.force)?;
    let ending = file.and_then(std::path::Path::extension).unwrap_or_default().to_ascii_lowercase();
    let lines = match file {
        None => json,
        Some(_) => matches!(ending.to_str(), Some("json" | "jsonl" | "ndjson")),
    };
    write(sheet, lines, &mut output)?;
    output.finish()?;
    let scores = Scores::sheet(&done.scores, table);
    if let (Some(file), true) = (file, json) {
        let mut output = Output::stdout();
        let failed: Vec<_> = problems.iter().map(as_json).collect();
        output.json(
            &json!({"file": file, "series": sheet.parts.len(), "rows": sheet.rows(), "problems": failed}),
        )?;
        write(&scores, true, &mut output)?;
        return output.finish();
    }
    if let Some(file) = file {
        context.say(&format!("{} rows of {} series: {}", sheet.rows(), sheet.parts.len(), file.display()));
    }
    if json {
        let mut output = Output::stdout();
        write(&scores, true, &mut output)?;
        return output.finish();
    }
    if report == Report::Scores {
        let lines = score_lines(&done.scores, table.named, sheet.parts.len());
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
        let found = sheet.column("anomaly").map_or(0, |column| {
            sheet
                .parts
                .iter()
                .flat_map(|part| drawing::flags(&part.columns[column]))
                .filter(|flag| **flag)
                .count()
        });
        context.say(&format!("{found} anomalies in {} values", sheet.rows()));
    }
    Ok(())
}

fn as_json(problem: &Problem) -> serde_json::Value {
    json!({"series": problem.id, "error": problem.error.to_string()})
}

/// Scores in columns, for people: of all `series`, and of each if they are few.
fn score_lines(scores: &[Scores], named: bool, series: usize) -> Vec<String> {
    const FEW: usize = 8;
    let mut lines = table::Table::default();
    lines.row(["series", "model", "MAE", "RMSE", "MASE", "sMAPE", "CRPS"]);
    let number = |value: f64| if value.is_finite() { format!("{value:.4}") } else { "-".to_string() };
    let shown = |one: &&Scores| one.id.is_none() || (named && series <= FEW);
    for one in scores.iter().filter(shown) {
        let id = table::shorten(one.id.as_deref().unwrap_or("all"), 24);
        let numbers = [one.mae, one.rmse, one.mase, one.smape, one.crps].map(number);
        lines.push([id, one.model.clone()].into_iter().chain(numbers).collect());
    }
    lines.lines()
}

/// Writes a sheet to an output, as lines of JSON or as CSV.
fn write(sheet: &Sheet, json: bool, output: &mut Output) -> Result<()> {
    let mut sink = Sink { output, wrong: None };
    let written = match json {
        true => sheet.write_json(&mut sink),
        false => sheet.write_csv(&mut sink),
    };
    // The output's own error says more than that of whoever wrote to it.
    sink.wrong.map_or(written, Err)
}

/// An output as something to write to.
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
