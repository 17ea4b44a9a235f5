//! `fauna tour`: every modality by the built-in models, and a page with what they made.
//!
//! A [`Stop`] is a list of commands of this program, which run as they are written on the page, in the folder of the page.

mod page;
mod stops;

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fauna::progress::{Progress, Unit};
use fauna::source::{Source, Wanted};
use fauna::{Error, ErrorKind, Result, builtin};
use serde_json::json;

use self::page::Page;
use self::stops::{Step, Stop};
use crate::cli::output::Output;
use crate::cli::{Context, Exit};

/// Arguments of `fauna tour`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  fauna tour\n  fauna tour --only search,forecast --out demo")]
pub struct Args {
    /// Folder of the page and of all files. An earlier tour in it is overwritten, nothing else is.
    #[arg(long, short, value_name = "FOLDER", default_value = FOLDER)]
    out: PathBuf,
    /// Stops of the tour, separated by commas (default: all).
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Number of CPU threads (default: all cores).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

/// The default folder, and the page in it.
const FOLDER: &str = "fauna-tour";
const PAGE: &str = "index.html";
/// Number of lines of a command's output that are printed.
const PRINTED: usize = 8;
/// Number of figures of a model that are printed.
const FIGURES: usize = 2;

/// Runs `fauna` without a command: prints an overview, and runs the tour unless its page is there.
pub fn welcome(context: &Context) -> anyhow::Result<Exit> {
    let page = Path::new(FOLDER).join(PAGE);
    if !context.globals.json {
        let mut output = Output::stdout();
        output.line(concat!(
            "fauna ",
            env!("CARGO_PKG_VERSION"),
            ": a zoo of multimodal foundation models"
        ))?;
        output.line("")?;
        for (verb, does) in [
            ("list", "list the supported model families and released checkpoints"),
            ("list --pocket", "list the built-in models"),
            ("info MODEL", "show information about a model, without downloading its weights"),
            ("embed MODEL", "compute embeddings; also search, compare"),
            ("chat MODEL", "chat with a model; also generate, fill, classify, answer"),
            ("draw MODEL", "generate images from text; also describe"),
            ("compose MODEL", "generate music from text; also listen, codec"),
            ("act MODEL", "predict robot actions; also tabletop"),
            ("forecast MODEL", "forecast time series; also anomalies"),
            ("relax MODEL", "relax atomic structures; also energy, md"),
            ("MODEL", "run a model with the command that fits it"),
            ("tune MODEL", "fine-tune a model on a data set"),
            ("quantize MODEL", "quantize a model to 8, 6, 5 or 4 bits"),
            ("--help", "show all commands and options"),
        ] {
            output.line(format!("  fauna {verb:<17} {does}"))?;
        }
        output.line("")?;
        if is_page(&page) {
            output.line(format!("The tour is in {}; `fauna tour` runs it again.", page.display()))?;
        }
        output.finish()?;
        if is_page(&page) {
            return Ok(Exit::Done);
        }
    }
    run(Args { out: FOLDER.into(), only: Vec::new(), threads: None }, context)
}

/// A command that was run.
struct Done {
    step: &'static Step,
    output: String,
    /// The messages of a command that failed.
    error: Option<String>,
    time: Duration,
}

/// What became of a stop.
enum Outcome {
    Ran(Vec<Done>),
    /// Its checkpoint is not in the cache.
    Skipped(String),
}

/// Runs the stops one after the other and writes the page.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let stops = chosen(&args.only)?;
    let folder = prepared(&args.out)?;
    let begun = Instant::now();
    let runner = Runner { folder: &folder, threads: args.threads, context };
    let bar = context.bars.begin("tour", Unit::Items, Some(stops.len() as u64));
    let mut output = Output::stdout();
    let mut page = Page::default();
    let mut failed = false;
    for stop in &stops {
        context.interrupt.check()?;
        let outcome = runner.visit(stop)?;
        failed |= matches!(&outcome, Outcome::Ran(done) if done.iter().any(|done| done.error.is_some()));
        match context.globals.json {
            true => output.json(&as_json(stop, &outcome))?,
            false => print(stop, &outcome, &mut output)?,
        }
        output.flush()?;
        page.add(stop, &outcome, &folder)?;
        bar.advance(1);
    }
    drop(bar);
    let path = folder.join(PAGE);
    fs::write(&path, page.finish(begun.elapsed())).map_err(|e| Error::io(&path, "write", e))?;
    if !context.globals.json {
        output.line(format!(
            "{:.0} s; all of it as a page: {}",
            begun.elapsed().as_secs_f64(),
            path.display()
        ))?;
    }
    output.finish()?;
    Ok(if failed { Exit::Partly } else { Exit::Done })
}

/// Returns the stops with these names, in the order of the tour; without names, all that this build can run.
fn chosen(names: &[String]) -> Result<Vec<&'static Stop>> {
    let all = stops::all();
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|stop| stop.name == **name)) {
        let known: Vec<&str> = all.iter().map(|stop| stop.name).collect();
        return Err(Error::input(format!("the tour has no stop `{unknown}`"))
            .hint(format!("its stops: {}", known.join(", "))));
    }
    Ok(all
        .into_iter()
        .filter(|stop| names.is_empty() || names.iter().any(|name| name == stop.name))
        .collect())
}

/// Returns the folder of the page, without the files of an earlier tour.
///
/// # Errors
/// [`Input`](ErrorKind::Input) if something else is in it.
fn prepared(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, "make the folder", e))?;
    let known: Vec<&str> = stops::all().iter().flat_map(|stop| stop.names()).chain([PAGE]).collect();
    let page = folder.join(PAGE);
    let earlier = is_page(&page);
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let paths = paths.map_err(|e| Error::io(folder, "list", e))?;
    let is_known =
        |path: &PathBuf| path.file_name().is_some_and(|name| known.iter().any(|known| *known == name));
    if let Some(other) = paths.iter().find(|path| !(earlier && is_known(path))) {
        return Err(Error::input("the folder of the tour has another file")
            .at(other)
            .hint("use --out FOLDER"));
    }
    paths.iter().try_for_each(|path| fs::remove_file(path).map_err(|e| Error::io(path, "remove", e)))?;
    // By this a tour that is interrupted is recognized as well.
    fs::write(&page, page::START).map_err(|e| Error::io(&page, "write", e))?;
    Ok(folder.to_path_buf())
}

/// Whether the file at `path` is the page of a tour.
fn is_page(path: &Path) -> bool {
    fs::read(path).is_ok_and(|text| text.starts_with(page::START.as_bytes()))
}

/// Runs the commands.
struct Runner<'a> {
    folder: &'a Path,
    threads: Option<u16>,
    context: &'a Context,
}

impl Runner<'_> {
    fn visit(&self, stop: &'static Stop) -> Result<Outcome> {
        if let Some(name) = stop.checkpoint.filter(|name| !self.has(name)) {
            return Ok(Outcome::Skipped(format!(
                "{name} is not in the cache: scripts/fetch_test_models.py downloads it"
            )));
        }
        for (name, bytes) in stop.files {
            let path = self.folder.join(name);
            fs::write(&path, bytes).map_err(|e| Error::io(&path, "write", e))?;
        }
        let mut ran = Vec::new();
        for step in stop.steps {
            self.context.interrupt.check()?;
            ran.push(self.run(step)?);
        }
        Ok(Outcome::Ran(ran))
    }

    /// Whether a checkpoint is in the cache.
    fn has(&self, name: &str) -> bool {
        self.context.finder().find(&Source::Name(name.to_string()), &Wanted::default()).is_ok()
    }

    fn run(&self, step: &'static Step) -> Result<Done> {
        let program = std::env::current_exe().map_err(|e| Error::io("fauna", "find the program", e))?;
        let begun = Instant::now();
        let mut command = Command::new(&program);
        command.arg("--quiet").args(step.line).current_dir(self.folder).stdin(Stdio::null());
        if let Some(threads) = self.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        // No stop downloads anything.
        let done = command.env("HF_HUB_OFFLINE", "1").output().map_err(|e| Error::io(&program, "run", e))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_string();
        let error = (!done.status.success()).then(|| text(&done.stderr));
        if done.status.code() == Some(130) {
            return Err(Error::new(ErrorKind::Cancelled, "interrupted"));
        }
        Ok(Done { step, output: text(&done.stdout), error, time: begun.elapsed() })
    }
}

/// Prints a stop: its title, and of each command the time, the first lines of its output and its files.
fn print(stop: &Stop, outcome: &Outcome, output: &mut Output) -> Result<()> {
    let bold = |text: &str| match std::io::stdout().is_terminal() {
        true => format!("\x1b[1m{text}\x1b[0m"),
        false => text.to_string(),
    };
    output.line(bold(stop.title))?;
    for figure in stop.figures() {
        output.line(format!("  {figure}"))?;
    }
    match outcome {
        Outcome::Skipped(why) => output.line(format!("  skipped: {why}"))?,
        Outcome::Ran(ran) => {
            for Done { step, output: said, error, time } in ran {
                output.line(format!("  $ {}    {:.1} s", step.command(), time.as_secs_f64()))?;
                let said = if step.shows_output { said.as_str() } else { "" };
                let lines: Vec<&str> = error.as_deref().unwrap_or(said).lines().collect();
                for line in lines.iter().take(PRINTED) {
                    output.line(format!("    {line}"))?;
                }
                if lines.len() > PRINTED {
                    output.line(format!("    … {} more lines", lines.len() - PRINTED))?;
                }
            }
        }
    }
    output.line("")
}

fn as_json(stop: &Stop, outcome: &Outcome) -> serde_json::Value {
    let commands = match outcome {
        Outcome::Skipped(why) => return json!({"stop": stop.name, "skipped": why}),
        Outcome::Ran(ran) => ran.iter().map(|done| {
            json!({
                "command": done.step.command(), "seconds": done.time.as_secs_f64(), "output": done.output,
                "error": done.error, "files": done.step.files().collect::<Vec<_>>(),
            })
        }),
    };
    json!({"stop": stop.name, "title": stop.title, "commands": commands.collect::<Vec<_>>()})
}

impl Stop {
    /// Names of all files of the stop.
    fn names(&self) -> impl Iterator<Item = &'static str> {
        let given = self.files.iter().map(|(name, _)| *name);
        given.chain(self.steps.iter().flat_map(Step::files))
    }

    /// The first figures with a goal of each of its models, as text.
    fn figures(&self) -> Vec<String> {
        let models = self.models.iter().filter_map(|name| builtin::find(name));
        models
            .flat_map(|model| {
                let figures = model.figures().into_iter().filter(|figure| figure.goal.is_some());
                figures.take(FIGURES).map(move |figure| format!("{}, {figure}", model.name))
            })
            .collect()
    }
}
