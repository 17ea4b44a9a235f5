//! `fauna relax`: relaxation (geometry optimization) of atomic structures.

use fauna::Result;
use fauna::atoms::{CellRelaxation, Optimizer, RelaxOptions, Relaxed, relax};
use fauna::progress::{Progress, Unit};
use serde_json::json;

use crate::cli::atoms::{Asked, AtomsInput, AtomsOutput, Course, Named, Work, clones, frame, line, panel};
use crate::cli::options::ModelArg;
use crate::cli::output::Output;
use crate::cli::table::Table;
use crate::cli::{Context, Exit};

/// Arguments of `fauna relax`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fauna relax orb-v3-conservative-inf-omat.ckpt --atoms crystal.cif --out relaxed.xyz\n  \
                        fauna relax orb-v3-conservative-inf-omat.ckpt --atoms crystal.cif --cell free --fmax 0.01 \
                        --plot energy.png"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Also relax the cell.
    #[arg(long, value_enum, value_name = "HOW")]
    cell: Option<CellName>,
    /// Optimizer.
    #[arg(long, value_enum, default_value_t, value_name = "NAME")]
    optimizer: MethodName,
    /// Convergence criterion: maximum force on an atom, in eV/Å.
    #[arg(long, default_value_t = 0.05, value_name = "F")]
    fmax: f64,
    /// Maximum number of steps.
    #[arg(long, default_value_t = 500, value_name = "N")]
    max_steps: usize,
    #[command(flatten)]
    input: AtomsInput,
    #[command(flatten)]
    output: AtomsOutput,
    #[command(flatten)]
    course: Course,
}

/// Degrees of freedom of the cell.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum CellName {
    /// Volume only.
    Volume,
    /// Shape and volume.
    Free,
}

/// Optimizer.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum MethodName {
    /// Fast inertial relaxation engine: robust far from the minimum.
    #[default]
    Fire,
    /// Limited-memory BFGS: fewer steps near the minimum.
    Lbfgs,
}

/// Relaxes each structure until the maximum force is below `--fmax`.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let asked = Asked {
        verb: "relax",
        source: &args.model.source,
        input: &args.input,
        output: &args.output,
        course: Some(&args.course),
        x: "step",
    };
    Ok(asked.run(context, |work, good| {
        relax_all(&args, work, good.into_iter().map(|(named, _)| named).collect())
    })?)
}

/// Relaxes all structures as one batch, or one by one if one of them fails. Returns how many were processed.
fn relax_all(args: &Args, work: &mut Work, named: Vec<Named>) -> Result<usize> {
    let error = match relax_together(args, work, &named) {
        Ok(()) => return Ok(named.len()),
        Err(error) => error,
    };
    let each = named.into_iter().map(|named| [named]).collect::<Vec<_>>();
    if let [[only]] = &each[..] {
        return Err(error.context(&only.name));
    }
    work.each(each, |work, named| relax_together(args, work, &named).map_err(|e| e.context(&named[0].name)))
}

fn relax_together(args: &Args, work: &mut Work, named: &[Named]) -> Result<()> {
    let cell = match args.cell {
        None => CellRelaxation::Fixed,
        Some(CellName::Volume) => CellRelaxation::Hydrostatic,
        Some(CellName::Free) => CellRelaxation::Free,
    };
    let optimizer = match args.optimizer {
        MethodName::Fire => Optimizer::Fire,
        MethodName::Lbfgs => Optimizer::Lbfgs,
    };
    let options = RelaxOptions {
        optimizer,
        cell,
        max_force: args.fmax,
        max_steps: args.max_steps,
        ..RelaxOptions::default()
    };
    let bar = work.context.bars.begin("relaxing", Unit::Items, None);
    let mut energies = vec![Vec::new(); named.len()];
    let mut forces = vec![Vec::new(); named.len()];
    let mut path = Vec::new();
    let relaxed = relax(work.potential, &clones(named), &options, &mut |step| {
        bar.advance(1);
        energies[step.structure].push((step.step as f64, step.evaluation.energy));
        forces[step.structure].push((step.step as f64, step.max_force));
        if args.course.every.is_some_and(|every| (step.step as u64).is_multiple_of(every)) {
            let about = [("structure", step.structure + 1), ("step", step.step)];
            path.push(frame(&named[step.structure].kept, step.atoms, step.evaluation, &about));
        }
        work.flow()
    })?;
    drop(bar);
    let names = named.iter().map(|named| named.name.as_str());
    work.panels.push(panel("energy", "eV", names.clone().zip(energies)));
    work.panels.push(panel("largest force", "eV/Å", names.zip(forces)));
    work.written.append(&mut path);
    show(args, work, named, relaxed)
}

fn show(args: &Args, work: &mut Work, named: &[Named], relaxed: Vec<Relaxed>) -> Result<()> {
    let mut output = Output::stdout();
    let mut table = Table::default();
    table.row(["structure", "formula", "atoms", "eV", "eV/atom", "largest eV/Å", "GPa", "steps", ""]);
    for (named, relaxed) in named.iter().zip(relaxed) {
        let Relaxed { atoms, evaluation, steps, converged } = relaxed;
        let named = Named { name: named.name.clone(), atoms, kept: named.kept.clone() };
        match work.context.globals.json {
            true => {
                let mut value = work.json(&named, &evaluation);
                value["steps"] = json!(steps);
                value["converged"] = json!(converged);
                value["positions"] = json!(named.atoms.positions);
                value["cell"] = json!(named.atoms.cell);
                output.json(&value)?;
            }
            false => {
                let said = if converged { "relaxed" } else { "not relaxed" };
                let mut cells = line(&named, &evaluation).to_vec();
                cells.extend([steps.to_string(), said.to_string()]);
                table.push(cells);
            }
        }
        if args.course.every.is_none() {
            work.written.push(frame(&named.kept, &named.atoms, &evaluation, &[("steps", steps)]));
        }
    }
    if !work.context.globals.json {
        table.lines().into_iter().try_for_each(|line| output.line(line))?;
    }
    output.finish()
}
