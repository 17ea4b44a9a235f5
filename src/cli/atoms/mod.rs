//! Atomic structures: options and processing shared by `fauna energy`, `fauna relax` and `fauna md`.

mod read;
mod report;

use std::ops::ControlFlow;
use std::path::PathBuf;

use fauna::atoms::picture::{self, PictureOptions};
use fauna::atoms::{Frame, files};
use fauna::model::{Evaluation, Potential};
use fauna::{Atoms, Error, Image, Pipeline, Result};
use serde_json::{Value, json};

pub use self::read::clones;
pub use self::report::{frame, line, panel};
use super::options::Place;
use super::output::{self, Output};
use super::plot::{self, Panel};
use super::{Context, Exit, png};

/// Input structures.
#[derive(Debug, Clone, clap::Args)]
pub struct AtomsInput {
    /// File of structures: extended XYZ, CIF, POSCAR or XDATCAR.
    #[arg(help_heading = "Structures", long, value_name = "FILE")]
    pub atoms: PathBuf,
    /// Total charge of each structure, in elementary charges, unless the file specifies it; for models that use it.
    #[arg(help_heading = "Structures", long, value_name = "E", allow_negative_numbers = true)]
    charge: Option<f64>,
    /// Spin multiplicity of each structure (1 for a singlet), unless the file specifies it.
    #[arg(help_heading = "Structures", long, value_name = "N")]
    spin: Option<f64>,
}

/// Output structures.
#[derive(Debug, Clone, clap::Args)]
pub struct AtomsOutput {
    /// Write the structures with their energies, forces and stresses to this extended XYZ file.
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Draw the last structure to this file.
    #[arg(help_heading = "Output", long, value_name = "FILE.png")]
    picture: Option<PathBuf>,
    /// Overwrite existing files.
    #[arg(help_heading = "Output", long)]
    force: bool,
}

/// Trajectory of a relaxation or of molecular dynamics.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Course {
    /// Plot the energy over the steps to this file.
    #[arg(help_heading = "Output", long, value_name = "FILE.png")]
    plot: Option<PathBuf>,
    /// Print and write every Nth step (default: 10 for md, only the last for relax).
    #[arg(help_heading = "Output", long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub every: Option<u64>,
}

/// A structure of the input file, with its name for messages.
pub struct Named {
    pub name: String,
    pub atoms: Atoms,
    /// Other data of the file, which is written to the output.
    pub kept: Frame,
}

/// A task on the structures of a file.
pub struct Asked<'a> {
    /// Command.
    pub verb: &'a str,
    /// Source of the model.
    pub source: &'a str,
    pub input: &'a AtomsInput,
    pub output: &'a AtomsOutput,
    /// Trajectory options; `None` for `fauna energy`.
    pub course: Option<&'a Course>,
    /// Label of the x axis of plots.
    pub x: &'a str,
}

impl Asked<'_> {
    /// Reads and evaluates the structures, calls `work` with the valid ones, and writes the output files. A structure that
    /// cannot be evaluated is reported and makes the exit status 2.
    ///
    /// # Errors
    /// Files that cannot be read or written, and a file without any structure that can be evaluated.
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
        if let Some(path) = &self.output.picture {
            png::check_free(path, place.force, MAKER)?;
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
            context.say(&format!("{} structures written to {}", written.len(), path.display()));
        }
        if let (Some(path), Some(last)) = (&self.output.picture, written.last()) {
            let Image { width, height, rgb } = picture::draw(&last.atoms, &PictureOptions::default())?;
            png::write(path, place.force, MAKER, &rgb, [width, height])?;
            context.say(&format!("picture: {}", path.display()));
        }
        if let Some(path) = plot {
            plot::lines(path, place.force, &model.card().source, self.x, &panels)?;
            context.say(&format!("plot: {}", path.display()));
        }
        context.interrupt.check()?;
        Ok(if done == count { Exit::Done } else { Exit::Partly })
    }
}

/// `Software` text of the pictures of structures, by which later runs recognize them.
const MAKER: &str = "fauna structure";

/// State of the running task.
pub struct Work<'a> {
    pub context: &'a Context,
    pub model: &'a dyn Pipeline,
    pub potential: &'a dyn Potential,
    /// Frames of --out.
    pub written: Vec<Frame>,
    /// Panels of --plot.
    pub panels: Vec<Panel>,
}

impl Work<'_> {
    /// Returns the JSON object of a structure.
    pub fn json(&self, named: &Named, evaluation: &Evaluation) -> Value {
        json!({
            "source": self.model.card().source, "structure": named.name, "formula": report::formula(&named.atoms),
            "atoms": named.atoms.numbers.len(), "evaluation": evaluation,
            "units": {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³"},
        })
    }

    /// Calls `work` with each of `all`. Failures are reported; it is an error if all fail. Returns how many succeeded.
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

    /// Returns whether to go on, or stop because of Ctrl-C.
    pub fn flow(&self) -> ControlFlow<()> {
        match self.context.interrupt.requested() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}
