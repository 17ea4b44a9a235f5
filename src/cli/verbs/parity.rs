//! `fauna parity`: checks of models against the outputs of their reference implementations.

use std::path::PathBuf;

use fauna::Result;
use fauna::parity::{self, Report};
use serde_json::json;

use crate::cli::options::Loading;
use crate::cli::output::Output;
use crate::cli::table::Table;
use crate::cli::{Context, Exit};

/// Arguments of `fauna parity`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fauna parity tests/parity/bert\n  fauna parity tests/parity --device cuda --json"
)]
pub struct Args {
    #[command(flatten)]
    pub loading: Loading,
    /// Folders of parity cases, searched recursively for case.json.
    #[arg(required = true, value_name = "FOLDER")]
    folders: Vec<PathBuf>,
}

/// Runs every case. Exit status 1 if one differs, 2 if one cannot be run.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let _stoppable = context.interrupt.hold();
    let options = context.options()?;
    let zoo = fauna::zoo();
    let mut cases = Vec::new();
    for folder in &args.folders {
        cases.extend(parity::find(folder)?);
    }
    let mut output = Output::stdout();
    let mut reports = Vec::new();
    let (mut passed, mut differing, mut skipped, mut broken) = (0, 0, 0, 0);
    for case in &cases {
        context.interrupt.check()?;
        match parity::run(case, &zoo, &options) {
            Ok(report) => {
                *match (&report.skipped, report.passes()) {
                    (Some(_), _) => &mut skipped,
                    (None, true) => &mut passed,
                    (None, false) => &mut differing,
                } += 1;
                match context.globals.json {
                    true => {
                        let mut as_json = json!(report);
                        as_json["passes"] = report.passes().into();
                        reports.push(as_json);
                    }
                    false => print(&report, &mut output)?,
                }
            }
            Err(error) => {
                broken += 1;
                context.complain(&format!("{}: cannot be run\n  {error}", case.display()));
                reports.push(json!({"passes": false, "case": case, "error": error.to_string()}));
            }
        }
    }
    if context.globals.json {
        output.json(&reports)?;
    }
    output.finish()?;
    context.say(&format!(
        "{} cases: {passed} agree, {differing} differ, {skipped} skipped, {broken} cannot be run",
        cases.len()
    ));
    Ok(match (broken, differing) {
        (0, 0) => Exit::Done,
        (0, _) => Exit::No,
        _ => Exit::Partly,
    })
}

fn print(report: &Report, output: &mut Output) -> Result<()> {
    output.line(format!("{}  {} {}", report.case.display(), report.system, report.call))?;
    if let Some(reason) = &report.skipped {
        return output.line(format!("  skipped: {reason}"));
    }
    let number = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.1e}"));
    let mut table = Table::default();
    table.row(["  tensor", "shape", "absolute", "relative", "cosine", "verdict"]);
    for row in &report.rows {
        table.row([
            format!("  {}", row.name),
            format!("{:?}", row.shape),
            number(row.max_abs),
            number(row.max_rel),
            row.cosine.map_or("-".to_string(), |cosine| format!("{cosine:.7}")),
            row.verdict().to_string(),
        ]);
    }
    table.lines().iter().try_for_each(|line| output.line(line))
}
