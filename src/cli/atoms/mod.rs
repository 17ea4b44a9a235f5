//! Structures of atoms: what `fauna energy`, `fauna relax` and `fauna md` share.

mod read;
mod report;

use std::ops::ControlFlow;
use std::path::PathBuf;

use fauna::model::{Evaluation, Potential};
use fauna::science::atoms::{Frame, files};
use fauna::{Atoms, Error, Pipeline, Result};
use serde_json::{Value, json};

pub use self::read::clones;
pub use self::report::{frame, line, panel};
use super::options::Place;
use super::output::{self, Output};
use super::plot::{self, Panel};
use super::{Context, Exit};

/// The structures.
#[derive(Debug, Clone, clap::Args)]
pub struct AtomsInput {
    /// Structures as extended XYZ, CIF, POSCAR or XDATCAR.
    #[arg(help_heading = "Structures", long, value_name = "FILE")]
    pub atoms: PathBuf,
    /// Total charge of each structure in elementary charges, for models that read it and files that do not say.
    #[arg(help_heading = "Structures", long, value_name = "E", allow_negative_numbers = true)]
    charge: Option<f64>,
    /// Spin multiplicity of each structure, 1 for a singlet.
    #[arg(help_heading = "Structures", long, value_name = "N")]
    spin: Option<f64>,
}

/// Where structures go.
#[derive(Debug, Clone, clap::Args)]
pub struct AtomsOutput {
    /// Write the structures with their energies, forces and stresses to this file: FILE.xyz.
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace files that are there.
    #[arg(help_heading = "Output", long)]
    force: bool,
}

/// The course of a relaxation or of molecular dynamics.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Course {
    /// Plot the energy over steps into this file.
    #[arg(help_heading = "Output", long, value_name = "FILE.png")]
    plot: Option<PathBuf>,
    /// Print and write every so many steps: of molecular dynamics 10 if not said, of a relaxation only its end.
    #[arg(help_heading = "Output", long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub every: Option<u64>,
}

/// A structure of the file, by its number there.
pub struct Named {
    pub name: String,
    pub atoms: Atoms,
    /// What the file says besides, which is written again.
    pub kept: Frame,
}

/// What is asked for with structures.
pub struct Asked<'a> {
    /// The verb.
    pub verb: &'a str,
    /// The model.
    pub source: &'a str,
    pub input: &'a AtomsInput,
    pub output: &'a AtomsOutput,
    /// What is kept of a course; none where atoms stay where they are.
    pub course: Option<&'a Course>,
    /// What a plot has along its x axis.
    pub x: &'a str,
}

impl Asked<'_> {
    /// Reads the structures, evaluates them, does `work` with those that can be done, and writes the files. A structure
    /// that cannot be done is named and makes the exit status 2.
    ///
    /// # Errors
    /// Files that cannot be read or written, and a file of which no structure can be done.
    pub fn run(
        &self,
        context: &Context,
        work: impl FnOnce(&mut Work, Vec<(Named, Evaluation)>) -> Result<usize>,
    ) -> Result<Exit> {
        let place = Place::new(self.output.out.clone(), self.output.force);
        if let Some(path) = &place.path {
            place.file("structures", "xyz")?;
            output::check_free(path, place.force)?;
        }
        let plot = self.course.and_then(|course| course.plot.as_ref());
        if let Some(path) = plot {
            plot::check_free(path, place.force)?;
        }
        let mut structures = read::read(self.input, self.course.is_some(), context)?;
        let count = structures.len();
        let model = context.open_for(self.verb, self.source)?;
        let potential = model.potential()?;
        if !potential.reads_charge() {
            read::forget_charge(&mut structures, context);
        }
        let _stoppable = context.interrupt.hold();
        let good = read::Structures { potential, context }.good(structures)?;
        let mut under_way =
            Work { context, model: model.as_ref(), potential, written: Vec::new(), panels: Vec::new() };
        let done = work(&mut under_way, good)?;
        let Work { written, panels, .. } = under_way;
        if let Some(path) = &place.path {
            let mut bytes = Vec::new();
            for frame in &written {
                files::write_xyz(&mut bytes, frame).map_err(|e| Error::io(path, "write", e))?;
            }
            let mut output = Output::open(Some(path), place.force)?;
            output.bytes(&bytes)?;
            output.finish()?;
            context.say(&format!("{} structures in {}", written.len(), path.display()));
        }
        if let Some(path) = plot {
            plot::lines(path, place.force, &model.card().source, self.x, &panels)?;
            context.say(&format!("the energy over steps in {}", path.display()));
        }
        context.interrupt.check()?;
        Ok(if done == count { Exit::Done } else { Exit::Partly })
    }
}

/// Structures under way.
pub struct Work<'a> {
    pub context: &'a Context,
    pub model: &'a dyn Pipeline,
    pub potential: &'a dyn Potential,
    /// What --out will hold.
    pub written: Vec<Frame>,
    /// What --plot will show.
    pub panels: Vec<Panel>,
}

impl Work<'_> {
    /// What JSON says of a structure.
    pub fn json(&self, named: &Named, evaluation: &Evaluation) -> Value {
        json!({
            "source": self.model.card().source, "structure": named.name, "formula": report::formula(&named.atoms),
            "atoms": named.atoms.numbers.len(), "evaluation": evaluation,
            "units": {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³"},
        })
    }

    /// Does `work` with each of `all`. One that cannot be done is named; all of them is an error. Gives how many were done.
    pub fn each<T>(&mut self, all: Vec<T>, work: impl Fn(&mut Self, T) -> Result<()>) -> Result<usize> {
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

    /// Whether to go on.
    pub fn flow(&self) -> ControlFlow<()> {
        match self.context.interrupt.requested() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}
