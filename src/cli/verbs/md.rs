//! `fauna md`: molecular dynamics.

use std::ops::ControlFlow;

use fauna::Result;
use fauna::atoms::{DynamicsOptions, DynamicsState, DynamicsStep, Ensemble, dynamics};
use fauna::progress::{Progress, Unit};
use serde_json::json;

use crate::cli::atoms::{Asked, AtomsInput, AtomsOutput, Course, Named, Work, frame, panel};
use crate::cli::options::{ModelArg, Seed};
use crate::cli::output::Output;
use crate::cli::plot::Ink;
use crate::cli::{Context, Exit};

/// Arguments of `fauna md`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fauna md orb-v3-conservative-inf-omat.ckpt --atoms relaxed.xyz --steps 1000 --kelvin 600 \
                        --out path.xyz\n  \
                        fauna md orb-v3-conservative-inf-omat.ckpt --atoms relaxed.xyz --steps 200 --nve --time-step 0.5"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Number of time steps.
    #[arg(long, value_name = "N")]
    steps: usize,
    /// Temperature of the thermostat and of the initial velocities, in K.
    #[arg(long, default_value_t = 300.0, value_name = "K")]
    kelvin: f32,
    /// Constant energy (microcanonical ensemble), without a thermostat.
    #[arg(long)]
    nve: bool,
    /// Time step, in fs.
    #[arg(long, default_value_t = 1.0, value_name = "FS")]
    time_step: f64,
    /// Friction of the Langevin thermostat, in 1/fs.
    #[arg(long, default_value_t = 0.01, value_name = "F", conflicts_with = "nve")]
    friction: f64,
    #[command(flatten)]
    seed: Seed,
    #[command(flatten)]
    input: AtomsInput,
    #[command(flatten)]
    output: AtomsOutput,
    #[command(flatten)]
    course: Course,
}

/// Default interval between printed steps.
const EVERY: u64 = 10;

/// Simulates each structure in turn: at constant temperature (Langevin), or at constant energy with `--nve`.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let asked = Asked {
        verb: "md",
        source: &args.model.source,
        input: &args.input,
        output: &args.output,
        course: Some(&args.course),
        x: "time in fs",
    };
    Ok(asked.run(context, |work, good| {
        let named: Vec<Named> = good.into_iter().map(|(named, _)| named).collect();
        work.each(named, |work, named| move_on(&args, work, named))
    })?)
}

fn move_on(args: &Args, work: &mut Work, named: Named) -> Result<()> {
    let (seed, temperature, steps) = (args.seed.seed, f64::from(args.kelvin), args.steps);
    let ensemble = match args.nve {
        true => Ensemble::Nve,
        false => Ensemble::Langevin { temperature, friction: args.friction },
    };
    let options = DynamicsOptions { time_step: args.time_step, steps, ensemble, seed };
    let state = DynamicsState::at_temperature(named.atoms.clone(), temperature, seed)?;
    let every = args.course.every.unwrap_or(EVERY) as usize;
    let mut told =
        Told { output: Output::stdout(), json: work.context.globals.json, source: &work.model.card().source };
    let bar = work.context.bars.begin("md", Unit::Items, Some(steps as u64 + 1));
    let (mut wrong, mut frames) = (None, Vec::new());
    let mut lines = [const { Vec::new() }; 3];
    let ended = dynamics(work.potential, state, &options, &mut |moment| {
        bar.advance(1);
        let energy = moment.evaluation.energy;
        for (line, value) in
            lines.iter_mut().zip([energy, energy + moment.kinetic_energy, moment.temperature])
        {
            line.push((moment.time, value));
        }
        if moment.step.is_multiple_of(every) || moment.step == steps {
            let about = [("step", moment.step)];
            frames.push(frame(&named.kept, &moment.state.atoms, moment.evaluation, &about));
            wrong = told.take(&named.name, moment).err();
        }
        if wrong.is_some() { ControlFlow::Break(()) } else { work.flow() }
    });
    drop(bar);
    work.written.append(&mut frames);
    let [potential, total, temperature] = lines;
    let energies = [("potential", potential), ("total", total)];
    work.panels.push(panel(&format!("energy of {}", named.name), "eV", energies.into_iter()));
    let mut heat = panel("temperature", "K", [("temperature", temperature)].into_iter());
    heat.lines.iter_mut().for_each(|line| line.ink = Ink::Red);
    work.panels.push(heat);
    wrong.map_or(Ok(()), Err)?;
    ended.map_err(|error| error.context(&named.name))?;
    told.output.finish()
}

/// Prints the steps of a trajectory.
struct Told<'a> {
    output: Output,
    json: bool,
    source: &'a str,
}

impl Told<'_> {
    fn take(&mut self, name: &str, moment: &DynamicsStep) -> Result<()> {
        let (potential, kinetic) = (moment.evaluation.energy, moment.kinetic_energy);
        if moment.step == 0 && !self.json {
            self.output.line(format!("# {name}"))?;
            self.output.line(format!(
                "{:>8} {:>10} {:>14} {:>12} {:>14} {:>9}",
                "step", "fs", "potential eV", "kinetic eV", "total eV", "K"
            ))?;
        }
        match self.json {
            true => self.output.json(&json!({
                "source": self.source, "structure": name, "step": moment.step, "time": moment.time,
                "potential_energy": potential, "kinetic_energy": kinetic, "temperature": moment.temperature,
                "units": {"time": "fs", "energy": "eV", "temperature": "K"},
            }))?,
            false => self.output.line(format!(
                "{:>8} {:>10.2} {potential:>14.6} {kinetic:>12.6} {:>14.6} {:>9.1}",
                moment.step,
                moment.time,
                potential + kinetic,
                moment.temperature
            ))?,
        }
        self.output.flush()
    }
}
