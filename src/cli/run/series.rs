//! `fauna run MODEL --series data.csv`: forecasts of tables of series, trials of a model on them, and what is out of the
//! ordinary in them.

mod drawing;

use std::io::Write;
use std::path::PathBuf;

use fauna::model::Forecaster;
use fauna::science::forecast::{
    Answer, Ask, Bands, Columns, Frequency, Naive, Problem, Scores, SeasonalNaive, Sheet, Table,
    cross_validate, detect_anomalies, forecast,
};
use fauna::{Error, Pipeline, Result};
use serde_json::json;

use super::place::Place;
use crate::cli::output::{Output, check_free};
use crate::cli::{Context, Exit, plot, table};

/// A table of series and what is to be foreseen of it.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Series")]
pub struct Foreseeing {
    /// A table of series, CSV or Parquet, in long format: unique_id (may be missing), ds, y; other columns of numbers
    /// are covariates. The model may also be `naive` or `seasonal-naive`.
    #[arg(long = "series", value_name = "FILE", conflicts_with_all = ["prompts", "image", "audio", "melody", "codes", "chat"])]
    series: Option<PathBuf>,
    /// Steps to foresee.
    #[arg(long, value_name = "N", requires = "series")]
    horizon: Option<usize>,
    /// Tell these quantiles, between commas: 0.1,0.5,0.9. Intervals: --level 80,90.
    #[arg(
        long,
        value_name = "QUANTILES",
        value_delimiter = ',',
        requires = "series",
        conflicts_with = "level"
    )]
    quantiles: Vec<f64>,
    /// How far the dates are apart: min, h, D, B, W-MON, MS, ME, QS, YS, ..., 15min; read off the dates if not said.
    #[arg(long, value_name = "NAME", requires = "series")]
    freq: Option<Frequency>,
    /// Steps that make a season; by the frequency if not said.
    #[arg(long, value_name = "N", requires = "series")]
    season: Option<usize>,
    /// Covariates of the steps to foresee, in a table as that of the series without y.
    #[arg(long, value_name = "FILE", requires = "series", conflicts_with_all = ["cross_validation", "anomalies"])]
    future: Option<PathBuf>,
    /// Covariates whose future nobody knows, between commas: trials do not see it.
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', requires = "series")]
    history_only: Vec<String>,
    /// The column of the names of series.
    #[arg(long, value_name = "COLUMN", default_value = "unique_id")]
    id_col: String,
    /// The column of dates, or of whole numbers.
    #[arg(long, value_name = "COLUMN", default_value = "ds")]
    time_col: String,
    /// The column of values.
    #[arg(long, value_name = "COLUMN", default_value = "y")]
    target_col: String,
    /// Calibrate the intervals on so many rolling forecasts of each series, whatever the model.
    #[arg(long, value_name = "WINDOWS", requires = "series", conflicts_with = "anomalies")]
    conformal: Option<usize>,
    /// Try the model out on so many rolling forecasts of each series, beside the naive and the seasonal naive one.
    #[arg(long, value_name = "WINDOWS", requires = "series", conflicts_with = "anomalies")]
    cross_validation: Option<usize>,
    /// Steps from one rolling forecast to the next; the horizon if not said.
    #[arg(long, value_name = "N", requires = "series")]
    step_size: Option<usize>,
    /// Find values outside of an interval (--level, 99 if not said) around what rolling forecasts expected.
    #[arg(long, requires = "series")]
    anomalies: bool,
    /// Paths that models draw which sample.
    #[arg(long, value_name = "N", requires = "series")]
    samples: Option<usize>,
}

/// A table, and whether it came out whole.
struct Done {
    answer: Answer,
    scores: Vec<Scores>,
}

impl Foreseeing {
    /// Steps that make a season of `table`: as said, else by the frequency.
    fn season(&self, table: &Table) -> Result<usize> {
        match (self.season, self.freq) {
            (Some(season), _) => Ok(season),
            (None, Some(frequency)) => Ok(frequency.season()),
            (None, None) => Ok(table.frequency()?.season()),
        }
    }

    /// Whether a table of series is given.
    pub fn wanted(&self) -> bool {
        self.series.is_some()
    }
}

/// Does what the arguments ask of the table. A series that cannot be done is reported, left out, and makes the exit
/// status 2.
pub fn run(source: &str, args: &Foreseeing, place: &Place, context: &Context) -> Result<Exit> {
    let Some(path) = &args.series else { return Err(Error::input("no table of series is given")) };
    if let Some(file) = place.path.as_deref().filter(|_| !place.is_stdout()) {
        check_free(file, place.force)?;
    }
    if let Some(file) = &place.plot {
        plot::check_free(file, place.force)?;
    }
    let columns =
        Columns { id: args.id_col.clone(), time: args.time_col.clone(), target: args.target_col.clone() };
    let table = Table::read(path, &columns)?;
    let future = args.future.as_ref().map(|future| Table::read_future(future, &columns)).transpose()?;
    let model = Model::open(source, args, context)?;
    let _stoppable = context.interrupt.hold();
    let ask = ask(&model.name, args, place, &table, future.as_ref(), context)?;
    let done = do_it(model.forecaster()?, &table, args, &ask)?;
    for note in &done.answer.notes {
        context.say(note);
    }
    let Answer { sheet, problems, .. } = &done.answer;
    problems.iter().for_each(|problem| context.complain(&problem.error.to_string()));
    if sheet.parts.is_empty() {
        return Err(Error::input(format!("none of {} series could be done", problems.len())).at(path));
    }
    show(&done, &table, args, place, context)?;
    if let Some(file) = &place.plot {
        let cut = drawing::write(file, place.force, &model.name, &table, sheet)?;
        context.say(&format!("picture: {}{}", file.display(), cut.unwrap_or_default()));
    }
    Ok(match problems.is_empty() {
        true => Exit::Done,
        false => Exit::Partly,
    })
}

/// What foresees.
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
    fn open(source: &str, args: &Foreseeing, context: &Context) -> Result<Self> {
        let (name, kind) = match source {
            "naive" => ("Naive", Kind::Naive),
            "seasonal-naive" => (
                "SeasonalNaive",
                Kind::Seasonal(match args.season {
                    Some(season) => SeasonalNaive { season },
                    None => SeasonalNaive::OWN,
                }),
            ),
            source => {
                let model = context.open(source)?;
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

fn ask<'a>(
    name: &str,
    args: &Foreseeing,
    place: &Place,
    table: &Table,
    future: Option<&'a Table>,
    context: &'a Context,
) -> Result<Ask<'a>> {
    let levels = place.level.percents()?;
    let bands = match (levels.is_empty(), args.quantiles.is_empty()) {
        (false, _) => Bands::levels(levels)?,
        (true, false) => Bands::quantiles(args.quantiles.clone())?,
        (true, true) => Bands::None,
    };
    let horizon = match args.horizon {
        Some(horizon) => horizon,
        // A season at a time.
        None if args.anomalies => args.season(table)?,
        None => return Err(Error::input("how many steps are to be foreseen?").hint("say it: --horizon 24")),
    };
    Ok(Ask {
        model: name.to_string(),
        horizon,
        bands,
        frequency: args.freq,
        season: args.season,
        samples: args.samples,
        seed: context.globals.seed,
        future,
        past_only: args.history_only.clone(),
        conformal: args.conformal,
        windows: args.cross_validation.unwrap_or(1),
        step: args.step_size,
        progress: context.bars.as_ref(),
        ..Ask::default()
    })
}

fn do_it(model: &dyn Forecaster, table: &Table, args: &Foreseeing, ask: &Ask) -> Result<Done> {
    if args.cross_validation.is_some() {
        let done = cross_validate(model, table, ask)?;
        let answer = Answer { sheet: done.sheet, problems: done.problems, notes: done.notes };
        return Ok(Done { answer, scores: done.scores });
    }
    let answer = match args.anomalies {
        true => detect_anomalies(model, table, ask)?,
        false => forecast(model, table, ask)?,
    };
    Ok(Done { answer, scores: Vec::new() })
}

/// The rows where they are to go. Scores go to standard output, or, where the rows do, to standard error.
fn show(done: &Done, table: &Table, args: &Foreseeing, place: &Place, context: &Context) -> Result<()> {
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
    if args.cross_validation.is_some() {
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
    if args.anomalies {
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
