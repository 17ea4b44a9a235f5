//! Atoms: their energy, what they relax to, how they move.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fauna::model::{Evaluation, Potential};
use fauna::progress::{Progress, Unit};
use fauna::science::atoms::{
    CellChange, Constraints, Dynamics, Ensemble, Frame, Method, Moment, Relaxed, Relaxing, State, check,
    dynamics, elements, files, relax,
};
use fauna::{Atoms, Error, Pipeline, Result};
use serde_json::{Value, json};

use super::Args;
use crate::cli::output::{self, Output};
use crate::cli::plot::{self, Ink, Line, Panel};
use crate::cli::table::Table;
use crate::cli::{Context, Exit};

/// Structures, and what becomes of them.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Atoms")]
pub struct Simulating {
    /// Structures as extended XYZ, CIF, POSCAR or XDATCAR: energy (eV), forces (eV/Å) and stress (eV/Å³) of each; --out FILE.xyz
    /// writes them all.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["chat", "labels", "ask", "audio", "melody", "codes", "context", "image"])]
    pub atoms: Option<PathBuf>,
    /// Relax the structures: downhill until no force is larger than --fmax.
    #[arg(long, requires = "atoms", conflicts_with = "md")]
    relax: bool,
    /// Relax the cell too.
    #[arg(long, value_enum, value_name = "HOW", requires = "relax")]
    cell: Option<CellName>,
    /// How to go downhill.
    #[arg(long, value_enum, default_value_t, value_name = "NAME", requires = "relax")]
    optimizer: MethodName,
    /// The largest force of a relaxed structure, in eV/Å.
    #[arg(long, default_value_t = 0.05, value_name = "F", requires = "relax")]
    fmax: f64,
    /// Steps of a relaxation at most.
    #[arg(long, default_value_t = 500, value_name = "N", requires = "relax")]
    max_steps: usize,
    /// Let the atoms move for so many steps: at constant --temperature (Langevin), or at constant energy with --nve.
    #[arg(long, value_name = "STEPS", requires = "atoms")]
    md: Option<usize>,
    /// Leave the atoms alone once they move: the energy stays what it is.
    #[arg(long, requires = "md")]
    nve: bool,
    /// One step of time, in fs.
    #[arg(long, default_value_t = 1.0, value_name = "FS", requires = "md")]
    time_step: f64,
    /// What share of its speed an atom loses to the bath, in 1/fs.
    #[arg(long, default_value_t = 0.01, value_name = "F", requires = "md", conflicts_with = "nve")]
    friction: f64,
    /// Say and write every so many steps of a relaxation or a movement.
    #[arg(long, value_name = "N", requires = "atoms", value_parser = clap::value_parser!(u64).range(1..))]
    every: Option<u64>,
    /// Charge of each structure, for models that ask and files that do not say.
    #[arg(long, value_name = "E", requires = "atoms", allow_negative_numbers = true)]
    charge: Option<f64>,
    /// Spin multiplicity of each structure, 1 for a singlet.
    #[arg(long, value_name = "N", requires = "atoms")]
    spin: Option<f64>,
}

/// What the cell may do.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum CellName {
    /// Change its volume.
    Volume,
    /// Change its shape and volume.
    Free,
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum MethodName {
    /// Sliding with inertia: forgiving.
    #[default]
    Fire,
    /// Learns the curvature: fewer steps near the end.
    Lbfgs,
}

/// 1 eV/Å³ in GPa.
const GIGAPASCAL: f64 = 160.217_663_4;

/// Steps of molecular dynamics from one that is said to the next.
const EVERY: u64 = 10;

/// A structure of the file, by its number there.
struct Named {
    name: String,
    atoms: Atoms,
    /// What the file says besides, which is written again.
    kept: Frame,
}

/// What another model found, which does not hold of what is computed here.
const FOUND_ELSEWHERE: [&str; 10] = [
    "free_energy",
    "virial",
    "virials",
    "dipole",
    "stresses",
    "energies",
    "local_energy",
    "energy_per_atom",
    "Energy",
    "Virial",
];
/// Motion of the atoms, which begins anew here.
const MOTION: [&str; 4] = ["momenta", "velo", "velocities", "vel"];

/// Reads the structures and does with them what was asked. One that cannot be done is named, and the others are done.
pub fn run(args: &Args, path: &Path, context: &Context) -> Result<Exit> {
    let asked = &args.simulating;
    if let Some(path) = &args.place.path {
        args.place.file("structures", "xyz")?;
        output::check_free(path, args.place.force)?;
    }
    if let Some(path) = &args.place.plot {
        plot::check_free(path, args.place.force)?;
        if !asked.relax && asked.md.is_none() {
            return Err(
                Error::input("a single point has no course to plot").hint("--plot goes with --relax or --md")
            );
        }
    }
    if let Some(words) = args.given.words().first() {
        return Err(Error::input(format!("--atoms says what is asked, and there is \"{words}\" besides")));
    }
    let mut structures = read(path, asked, context)?;
    let count = structures.len();
    let model = context.open(&args.source)?;
    let potential = model.potential()?;
    if !potential.reads_charge() {
        forget_charge(&mut structures, context);
    }
    let _stoppable = context.interrupt.hold();
    let good = Structures { potential, context }.good(structures)?;
    let mut work = Work {
        args,
        asked,
        context,
        model: model.as_ref(),
        potential,
        written: Vec::new(),
        panels: Vec::new(),
    };
    let (named, evaluations): (Vec<Named>, Vec<Evaluation>) = good.into_iter().unzip();
    let done = match (asked.relax, asked.md) {
        (true, _) => work.relax(named)?,
        (_, Some(steps)) => work.move_all(named, steps)?,
        _ => work.single(&named, evaluations)?,
    };
    work.write()?;
    context.interrupt.check()?;
    Ok(if done == count { Exit::Done } else { Exit::Partly })
}

/// Says that charge and spin are not read, and takes them away, so that no result names them.
fn forget_charge(structures: &mut [Named], context: &Context) {
    let has_some = |named: &&mut Named| named.atoms.charge.is_some() || named.atoms.spin.is_some();
    let mut told = false;
    for named in structures.iter_mut().filter(has_some) {
        (named.atoms.charge, named.atoms.spin) = (None, None);
        if !std::mem::replace(&mut told, true) {
            context.say("this model reads no charge and no spin: those that are given change nothing and are not written");
        }
    }
}

fn read(path: &Path, asked: &Simulating, context: &Context) -> Result<Vec<Named>> {
    let frames = files::read(path)?;
    let several = frames.len() > 1;
    let (mut elsewhere, mut motion) = (BTreeSet::new(), BTreeSet::new());
    let named = frames.into_iter().enumerate().map(|(index, mut frame)| {
        let mut atoms = std::mem::take(&mut frame.atoms);
        let is_known = |names: &[&str], name: &str| names.contains(&name);
        frame.info.retain(|name, _| {
            let kept = !is_known(&FOUND_ELSEWHERE, name);
            if !kept {
                elsewhere.insert(name.clone());
            }
            kept
        });
        let moves = asked.relax || asked.md.is_some();
        frame.columns.retain(|column| {
            let (found, moved) =
                (is_known(&FOUND_ELSEWHERE, &column.name), moves && is_known(&MOTION, &column.name));
            if found {
                elsewhere.insert(column.name.clone());
            }
            if moved {
                motion.insert(column.name.clone());
            }
            !(found || moved)
        });
        atoms.charge = atoms.charge.or(asked.charge);
        atoms.spin = atoms.spin.or(asked.spin);
        let name = match several {
            true => format!("{}: structure {}", path.display(), index + 1),
            false => path.display().to_string(),
        };
        frame.notes.iter().for_each(|note| context.say(&format!("{name}: {note}")));
        let held = atoms.held.iter().filter(|axes| axes.contains(&true)).count();
        if held > 0 && moves {
            context.say(&format!(
                "{name}: {held} of {} atoms are held in place as the file says",
                atoms.numbers.len()
            ));
        }
        Named { name, atoms, kept: frame }
    });
    let named = named.collect();
    let list = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(", ");
    if !elsewhere.is_empty() {
        context.say(&format!("not written again, since another model found them: {}", list(elsewhere)));
    }
    if !motion.is_empty() {
        context.say(&format!("not used and not written again: {}; motion begins anew", list(motion)));
    }
    Ok(named)
}

/// Finds out which structures can be done.
struct Structures<'a> {
    potential: &'a dyn Potential,
    context: &'a Context,
}

impl Structures<'_> {
    /// Those that can be evaluated, with what they evaluate to; each of the others is named.
    fn good(&self, structures: Vec<Named>) -> Result<Vec<(Named, Evaluation)>> {
        let bar = self.context.bars.begin("structures", Unit::Items, Some(structures.len() as u64));
        let mut good = Vec::new();
        for chunk in chunks(structures) {
            self.context.interrupt.check()?;
            let size = chunk.len() as u64;
            match self.potential.evaluate(&clones(&chunk)) {
                Ok(evaluations) if evaluations.len() == chunk.len() => {
                    good.extend(chunk.into_iter().zip(evaluations));
                }
                Ok(evaluations) => {
                    return Err(Error::new(
                        fauna::ErrorKind::Mismatch,
                        format!("the model gave {} energies for {size} structures", evaluations.len()),
                    ));
                }
                // One of them cannot be done: each by itself.
                Err(_) => good.extend(chunk.into_iter().filter_map(|named| self.alone(named))),
            }
            bar.advance(size);
        }
        match good.is_empty() {
            true => Err(Error::input("no structure could be done")),
            false => Ok(good),
        }
    }

    fn alone(&self, named: Named) -> Option<(Named, Evaluation)> {
        let evaluated =
            check(&named.atoms).and_then(|()| self.potential.evaluate(std::slice::from_ref(&named.atoms)));
        match evaluated.map(|mut evaluations| evaluations.pop()) {
            Ok(Some(evaluation)) => Some((named, evaluation)),
            Ok(None) => None,
            Err(error) => {
                self.context.complain(&error.context(&named.name).to_string());
                None
            }
        }
    }
}

/// In pieces that are evaluated at once.
fn chunks(mut structures: Vec<Named>) -> Vec<Vec<Named>> {
    const STRUCTURES: usize = 16;
    let mut chunks = Vec::new();
    while !structures.is_empty() {
        let rest = structures.split_off(STRUCTURES.min(structures.len()));
        chunks.push(std::mem::replace(&mut structures, rest));
    }
    chunks
}

fn clones(named: &[Named]) -> Vec<Atoms> {
    named.iter().map(|named| named.atoms.clone()).collect()
}

struct Work<'a> {
    args: &'a Args,
    asked: &'a Simulating,
    context: &'a Context,
    model: &'a dyn Pipeline,
    potential: &'a dyn Potential,
    /// What --out will hold.
    written: Vec<Frame>,
    /// What --plot will show.
    panels: Vec<Panel>,
}

impl Work<'_> {
    /// Energies and forces of each structure as it is. Gives how many were done.
    fn single(&mut self, named: &[Named], evaluations: Vec<Evaluation>) -> Result<usize> {
        let mut output = Output::stdout();
        let mut table = Table::default();
        table.row(["structure", "formula", "atoms", "eV", "eV/atom", "largest eV/Å", "GPa"]);
        for (named, evaluation) in named.iter().zip(evaluations) {
            match self.context.globals.json {
                true => output.json(&self.json(named, &evaluation))?,
                false => table.row(line(named, &evaluation)),
            }
            self.written.push(frame(&named.kept, &named.atoms, &evaluation, &[]));
        }
        if !self.context.globals.json {
            table.lines().into_iter().try_for_each(|line| output.line(line))?;
        }
        output.finish()?;
        Ok(named.len())
    }

    fn json(&self, named: &Named, evaluation: &Evaluation) -> Value {
        json!({
            "source": self.model.card().source, "structure": named.name, "formula": formula(&named.atoms),
            "atoms": named.atoms.numbers.len(), "evaluation": evaluation,
            "units": {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³"},
        })
    }

    /// Every structure to where no force pulls, side by side; one by one where one of them cannot be relaxed. Gives how
    /// many were done.
    fn relax(&mut self, named: Vec<Named>) -> Result<usize> {
        let error = match self.relax_together(&named) {
            Ok(()) => return Ok(named.len()),
            Err(error) => error,
        };
        let each = named.into_iter().map(|named| [named]).collect::<Vec<_>>();
        if let [[only]] = &each[..] {
            return Err(error.context(&only.name));
        }
        self.each(each, |work, named| work.relax_together(&named).map_err(|e| e.context(&named[0].name)))
    }

    /// Does `work` with each of `all`. One that cannot be done is named; all of them is an error. Gives how many were done.
    fn each<T>(&mut self, all: Vec<T>, work: impl Fn(&mut Self, T) -> Result<()>) -> Result<usize> {
        let (count, mut wrong) = (all.len(), Vec::new());
        for one in all {
            self.context.interrupt.check()?;
            wrong.extend(work(self, one).err());
        }
        if wrong.len() == count {
            return wrong.into_iter().next().map_or(Ok(0), Err);
        }
        wrong.iter().for_each(|error| self.context.complain(&error.to_string()));
        Ok(count - wrong.len())
    }

    fn relax_together(&mut self, named: &[Named]) -> Result<()> {
        let asked = self.asked;
        let cell = match asked.cell {
            None => CellChange::Fixed,
            Some(CellName::Volume) => CellChange::Hydrostatic,
            Some(CellName::Free) => CellChange::Free,
        };
        let method = match asked.optimizer {
            MethodName::Fire => Method::Fire,
            MethodName::Lbfgs => Method::Lbfgs,
        };
        let options = Relaxing {
            method,
            cell,
            largest_force: asked.fmax,
            steps: asked.max_steps,
            ..Relaxing::default()
        };
        let bar = self.context.bars.begin("relaxing", Unit::Items, None);
        let mut energies = vec![Vec::new(); named.len()];
        let mut forces = vec![Vec::new(); named.len()];
        let mut path = Vec::new();
        let relaxed = relax(self.potential, &clones(named), &options, &mut |step| {
            bar.advance(1);
            energies[step.structure].push((step.step as f64, step.evaluation.energy));
            forces[step.structure].push((step.step as f64, step.largest_force));
            if asked.every.is_some_and(|every| (step.step as u64).is_multiple_of(every)) {
                let about = [("structure", step.structure + 1), ("step", step.step)];
                path.push(frame(&named[step.structure].kept, step.atoms, step.evaluation, &about));
            }
            self.flow()
        })?;
        drop(bar);
        let names = named.iter().map(|named| named.name.as_str());
        self.panels.push(panel("energy", "eV", names.clone().zip(energies)));
        self.panels.push(panel("largest force", "eV/Å", names.zip(forces)));
        self.written.append(&mut path);
        self.show_relaxed(named, relaxed)
    }

    fn show_relaxed(&mut self, named: &[Named], relaxed: Vec<Relaxed>) -> Result<()> {
        let mut output = Output::stdout();
        let mut table = Table::default();
        table.row(["structure", "formula", "atoms", "eV", "eV/atom", "largest eV/Å", "GPa", "steps", ""]);
        for (named, relaxed) in named.iter().zip(relaxed) {
            let Relaxed { atoms, evaluation, steps, converged } = relaxed;
            let named = Named { name: named.name.clone(), atoms, kept: named.kept.clone() };
            match self.context.globals.json {
                true => {
                    let mut value = self.json(&named, &evaluation);
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
            if self.asked.every.is_none() {
                self.written.push(frame(&named.kept, &named.atoms, &evaluation, &[("steps", steps)]));
            }
        }
        if !self.context.globals.json {
            table.lines().into_iter().try_for_each(|line| output.line(line))?;
        }
        output.finish()
    }

    /// One structure after the other through `steps` steps of time. Gives how many were done.
    fn move_all(&mut self, named: Vec<Named>, steps: usize) -> Result<usize> {
        self.each(named, |work, named| work.move_on(named, steps))
    }

    fn move_on(&mut self, named: Named, steps: usize) -> Result<()> {
        let asked = self.asked;
        let (seed, temperature) = (self.context.globals.seed, self.args.sampling.kelvin());
        let ensemble = match asked.nve {
            true => Ensemble::Nve,
            false => Ensemble::Langevin { temperature, friction: asked.friction },
        };
        let options = Dynamics { time_step: asked.time_step, steps, ensemble, seed };
        let state = State::at_temperature(named.atoms.clone(), temperature, seed)?;
        let every = asked.every.unwrap_or(EVERY) as usize;
        let mut told = Told {
            output: Output::stdout(),
            json: self.context.globals.json,
            source: &self.model.card().source,
        };
        let bar = self.context.bars.begin("moving", Unit::Items, Some(steps as u64 + 1));
        let (mut wrong, mut frames) = (None, Vec::new());
        let mut lines = [const { Vec::new() }; 3];
        let ended = dynamics(self.potential, state, &options, &mut |moment| {
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
            if wrong.is_some() { ControlFlow::Break(()) } else { self.flow() }
        });
        drop(bar);
        self.written.append(&mut frames);
        let [potential, total, temperature] = lines;
        let energies = [("potential", potential), ("total", total)];
        self.panels.push(panel(&format!("energy of {}", named.name), "eV", energies.into_iter()));
        let mut heat = panel("temperature", "K", [("temperature", temperature)].into_iter());
        heat.lines.iter_mut().for_each(|line| line.ink = Ink::Red);
        self.panels.push(heat);
        wrong.map_or(Ok(()), Err)?;
        ended.map_err(|error| error.context(&named.name))?;
        told.output.finish()
    }

    fn flow(&self) -> ControlFlow<()> {
        match self.context.interrupt.requested() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// The files that were asked for.
    fn write(&self) -> Result<()> {
        let place = &self.args.place;
        if let Some(path) = &place.path {
            let mut bytes = Vec::new();
            for frame in &self.written {
                files::write_xyz(&mut bytes, frame).map_err(|e| Error::io(path, "write", e))?;
            }
            let mut output = Output::open(Some(path), place.force)?;
            output.bytes(&bytes)?;
            output.finish()?;
            self.context.say(&format!("{} structures in {}", self.written.len(), path.display()));
        }
        if let Some(path) = &place.plot {
            let x = if self.asked.relax { "step" } else { "time in fs" };
            plot::lines(path, place.force, &self.model.card().source, x, &self.panels)?;
            self.context.say(&format!("the energy over steps in {}", path.display()));
        }
        Ok(())
    }
}

/// Where the moments of a movement are told.
struct Told<'a> {
    output: Output,
    json: bool,
    source: &'a str,
}

impl Told<'_> {
    fn take(&mut self, name: &str, moment: &Moment) -> Result<()> {
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

/// The inks of lines in one panel, again from the first where there are more.
const INKS: [Ink; 4] = [Ink::Blue, Ink::Green, Ink::Red, Ink::Dark];

fn panel<'a>(title: &str, unit: &str, lines: impl Iterator<Item = (&'a str, Vec<(f64, f64)>)>) -> Panel {
    let lines = lines.zip(INKS.into_iter().cycle());
    let lines = lines.map(|((name, points), ink)| Line { name: name.to_string(), ink, points }).collect();
    Panel { title: title.to_string(), y_label: unit.to_string(), lines, ..Panel::default() }
}

/// What is written of a structure: what its file says, and what was found.
fn frame(kept: &Frame, atoms: &Atoms, evaluation: &Evaluation, about: &[(&str, usize)]) -> Frame {
    let about = about.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let info = kept.info.clone().into_iter().chain(about);
    Frame {
        atoms: atoms.clone(),
        energy: Some(evaluation.energy),
        forces: Some(evaluation.forces.clone()),
        stress: evaluation.stress,
        info: info.collect(),
        columns: kept.columns.clone(),
        notes: Vec::new(),
    }
}

/// What a table says of a structure.
fn line(named: &Named, evaluation: &Evaluation) -> [String; 7] {
    let count = named.atoms.numbers.len();
    let size = |force: &[f64; 3]| force.iter().map(|f| f * f).sum::<f64>().sqrt();
    // As in the reference, a force on what is held does not count.
    let mut forces = evaluation.forces.clone();
    Constraints::of(&named.atoms).apply(&mut forces);
    let largest = forces.iter().map(size).fold(0.0, f64::max);
    let pressure = evaluation.stress.map(|stress| -(stress[0] + stress[1] + stress[2]) / 3.0 * GIGAPASCAL);
    [
        named.name.clone(),
        formula(&named.atoms),
        count.to_string(),
        format!("{:.6}", evaluation.energy),
        format!("{:.6}", evaluation.energy / count.max(1) as f64),
        format!("{largest:.6}"),
        pressure.map_or(String::new(), |pressure| format!("{pressure:.4}")),
    ]
}

/// The chemical formula: carbon and hydrogen first, then by letter (Hill).
fn formula(atoms: &Atoms) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for number in &atoms.numbers {
        *counts.entry(elements::symbol(*number).unwrap_or("?")).or_insert(0usize) += 1;
    }
    let first = if counts.contains_key("C") { vec!["C", "H"] } else { Vec::new() };
    let mut parts: Vec<(&str, usize)> =
        first.iter().filter_map(|symbol| counts.remove_entry(symbol)).collect();
    parts.extend(counts);
    parts
        .into_iter()
        .map(|(symbol, n)| if n == 1 { symbol.to_string() } else { format!("{symbol}{n}") })
        .collect()
}
