//! `fauna energy`: energy, forces and stress of atomic structures.

use fauna::Result;
use fauna::model::Evaluation;

use crate::cli::atoms::{Asked, AtomsInput, AtomsOutput, Named, Work, frame, line};
use crate::cli::options::ModelArg;
use crate::cli::output::Output;
use crate::cli::table::Table;
use crate::cli::{Context, Exit};

/// Arguments of `fauna energy`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  fauna energy orb-v3-conservative-inf-omat.ckpt --atoms crystal.cif\n  \
                        fauna energy orb-v3-conservative-omol.ckpt --atoms ions.xyz --charge 1 --spin 2 --out out.xyz")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    #[command(flatten)]
    input: AtomsInput,
    #[command(flatten)]
    output: AtomsOutput,
}

/// Computes energy (eV), forces (eV/Å) and stress (eV/Å³) of each structure.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let asked = Asked {
        verb: "energy",
        source: &args.model.source,
        input: &args.input,
        output: &args.output,
        course: None,
        x: "",
    };
    Ok(asked.run(context, single)?)
}

/// Prints the results of each structure. Returns how many were processed.
fn single(work: &mut Work, structures: Vec<(Named, Evaluation)>) -> Result<usize> {
    let mut output = Output::stdout();
    let mut table = Table::default();
    table.row(["structure", "formula", "atoms", "eV", "eV/atom", "largest eV/Å", "GPa"]);
    let count = structures.len();
    for (named, evaluation) in structures {
        match work.context.globals.json {
            true => output.json(&work.json(&named, &evaluation))?,
            false => table.row(line(&named, &evaluation)),
        }
        work.written.push(frame(&named.kept, &named.atoms, &evaluation, &[]));
    }
    if !work.context.globals.json {
        table.lines().into_iter().try_for_each(|line| output.line(line))?;
    }
    output.finish()?;
    Ok(count)
}
