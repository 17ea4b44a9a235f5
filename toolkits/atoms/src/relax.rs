//! Relaxation: downhill to where no force pulls, the cell too where it may change.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use fauna_shared::item::Atoms;
use fauna_shared::model::{Evaluation, Potential};
use fauna_shared::{Error, Result};

use super::cell::{self, IDENTITY, Matrix, Vector};
use super::{Constraints, check};

/// How to go downhill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// Sliding with inertia, stopped where it would go uphill (Bitzek et al. 2006). Forgiving.
    #[default]
    Fire,
    /// Steps that learn the curvature from the last ones (Liu and Nocedal 1989). Fewer of them where the start is near.
    Lbfgs,
}

/// What the cell may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CellChange {
    /// It stays.
    #[default]
    Fixed,
    /// It keeps its shape and changes its volume.
    Hydrostatic,
    /// It changes its shape and volume.
    Free,
}

/// How to relax, and when it is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Relaxing {
    /// How to go downhill.
    pub method: Method,
    /// What the cell may do.
    pub cell: CellChange,
    /// Done where no force is larger, in eV/Å.
    pub largest_force: f64,
    /// Done where no part of the stress is larger, in eV/Å³, if the cell may change; 0.001 is 0.16 GPa.
    pub largest_stress: f64,
    /// Steps at most.
    pub steps: usize,
}

impl Default for Relaxing {
    fn default() -> Self {
        Self {
            method: Method::Fire,
            cell: CellChange::Fixed,
            largest_force: 0.05,
            largest_stress: 0.001,
            steps: 500,
        }
    }
}

/// One step of one structure.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Which of the structures.
    pub structure: usize,
    /// How many steps it has taken; the start is 0.
    pub step: usize,
    /// Where it is.
    pub atoms: &'a Atoms,
    /// What the potential says of it.
    pub evaluation: &'a Evaluation,
    /// In eV/Å, of the atoms that are not held in place.
    pub largest_force: f64,
    /// In eV/Å³, if the cell may change.
    pub largest_stress: Option<f64>,
}

/// How the relaxation of one structure ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Relaxed {
    /// Where it is.
    pub atoms: Atoms,
    /// What the potential says of it.
    pub evaluation: Evaluation,
    /// How many steps it took.
    pub steps: usize,
    /// Whether forces and stress are as small as wanted.
    pub converged: bool,
}

/// Relaxes each of `structures`; atoms that are [held](Atoms::held) stay, or go with the cell alone, all side by side: one evaluation a step of all that are not done. Every step of every
/// structure goes to `each`, which may break to stop them all where they are.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) by the index of the structure: no atoms, a cell that may change where there
/// is none or the potential knows no stress, forces that are not finite; and what the potential says.
pub fn relax(
    potential: &dyn Potential,
    structures: &[Atoms],
    options: &Relaxing,
    each: &mut dyn FnMut(&Step) -> ControlFlow<()>,
) -> Result<Vec<Relaxed>> {
    check_options(options)?;
    let name = |index: usize| move |error: Error| error.context(format!("structure {index}"));
    let mut walks = Vec::with_capacity(structures.len());
    for (index, atoms) in structures.iter().enumerate() {
        walks.push(Walk::new(atoms, options).map_err(name(index))?);
    }
    let mut active: Vec<usize> = (0..walks.len()).collect();
    for step in 0..=options.steps {
        if active.is_empty() {
            break;
        }
        let evaluations = evaluate(potential, &walks, &active)?;
        let mut stopped = false;
        for (index, evaluation) in active.iter().zip(evaluations) {
            let walk = &mut walks[*index];
            walk.arrive(evaluation, step, options).map_err(name(*index))?;
            stopped |= each(&walk.step_of(*index)).is_break();
        }
        active.retain(|index| !walks[*index].converged);
        if stopped || step == options.steps {
            break;
        }
        for index in &active {
            walks[*index].step();
        }
    }
    let ended = walks.into_iter().map(|walk| Relaxed {
        atoms: walk.atoms,
        evaluation: walk.evaluation,
        steps: walk.taken,
        converged: walk.converged,
    });
    Ok(ended.collect())
}

fn check_options(options: &Relaxing) -> Result<()> {
    for (name, value) in [("force", options.largest_force), ("stress", options.largest_stress)] {
        if !(value.is_finite() && value > 0.0) {
            return Err(Error::input(format!("the largest {name} to be left is above 0, not {value}")));
        }
    }
    Ok(())
}

/// What the potential says of the active walks, an error naming which of all it speaks of.
fn evaluate(potential: &dyn Potential, walks: &[Walk], active: &[usize]) -> Result<Vec<Evaluation>> {
    let atoms: Vec<Atoms> = active.iter().map(|index| walks[*index].atoms.clone()).collect();
    match potential.evaluate(&atoms) {
        Ok(evaluations) if evaluations.len() == atoms.len() => Ok(evaluations),
        Ok(_) => Err(Error::input("the potential did not answer for each structure")),
        Err(error) => {
            // The index that the potential gives is one among the active.
            for (index, one) in active.iter().zip(&atoms) {
                potential
                    .evaluate(std::slice::from_ref(one))
                    .map_err(|error| error.context(format!("structure {index}")))?;
            }
            Err(error)
        }
    }
}

/// One structure on its way.
///
/// Where the cell may change, what walks is: the positions as they are in the cell of the start, and the change of that
/// cell, `positions = places · change`, weighted so that both move alike (Tadmor et al. 1999).
struct Walk {
    atoms: Atoms,
    evaluation: Evaluation,
    taken: usize,
    converged: bool,
    largest_force: f64,
    largest_stress: Option<f64>,
    start: Option<Matrix>,
    change: Matrix,
    /// What pulls at what walks.
    pull: Vec<Vector>,
    guide: Guide,
}

impl Walk {
    fn new(atoms: &Atoms, options: &Relaxing) -> Result<Self> {
        check(atoms)?;
        let start = match options.cell {
            CellChange::Fixed => None,
            _ if atoms.periodic == [true; 3] => atoms.cell,
            _ => {
                return Err(Error::input("the cell cannot be relaxed: it does not repeat in all directions"));
            }
        };
        Ok(Self {
            atoms: atoms.clone(),
            evaluation: Evaluation::default(),
            taken: 0,
            converged: false,
            largest_force: f64::INFINITY,
            largest_stress: None,
            start,
            change: IDENTITY,
            pull: Vec::new(),
            guide: Guide::new(options.method),
        })
    }

    fn step_of(&self, structure: usize) -> Step<'_> {
        Step {
            structure,
            step: self.taken,
            atoms: &self.atoms,
            evaluation: &self.evaluation,
            largest_force: self.largest_force,
            largest_stress: self.largest_stress,
        }
    }

    /// The weight of the cell beside the atoms.
    fn weight(&self) -> f64 {
        self.atoms.positions.len() as f64
    }

    /// Takes in what the potential says of where the walk is after `step` steps.
    fn arrive(&mut self, evaluation: Evaluation, step: usize, options: &Relaxing) -> Result<()> {
        let is_finite = |value: &f64| value.is_finite();
        if evaluation.forces.len() != self.atoms.positions.len() {
            return Err(Error::input("the potential gave no force for each atom"));
        }
        if !(evaluation.energy.is_finite() && evaluation.forces.iter().flatten().all(is_finite)) {
            return Err(Error::input(format!("after {step} steps energy or forces are not finite")));
        }
        self.taken = step;
        let mut forces = evaluation.forces.clone();
        Constraints::of(&self.atoms).apply(&mut forces);
        self.largest_force = forces.iter().map(cell::length).fold(0.0, f64::max);
        self.converged = self.largest_force <= options.largest_force;
        self.pull.clear();
        match self.start {
            None => self.pull.extend(&forces),
            Some(start) => {
                let stress = stress_of(&evaluation, options.cell)?;
                let largest = stress.iter().flatten().fold(0.0, |all: f64, value| all.max(value.abs()));
                self.largest_stress = Some(largest);
                self.converged &= largest <= options.largest_stress;
                let back = cell::transposed(&self.change);
                self.pull.extend(forces.iter().map(|force| cell::times(force, &back)));
                let volume = cell::volume(&cell::product(&start, &self.change));
                let slope = cell::product(&cell::transposed(&cell::inverse(&self.change)), &stress);
                self.pull.extend(slope.map(|row| row.map(|value| -volume * value / self.weight())));
            }
        }
        self.evaluation = evaluation;
        Ok(())
    }

    /// Goes one step.
    fn step(&mut self) {
        let mut moves = self.guide.step(&self.pull);
        let count = self.atoms.positions.len();
        let Some(start) = self.start else {
            Constraints::of(&self.atoms).apply(&mut moves);
            for (position, moved) in self.atoms.positions.iter_mut().zip(&moves) {
                *position = cell::sum(position, moved);
            }
            return;
        };
        let inverse = cell::inverse(&self.change);
        let weight = self.weight();
        for (row, moved) in self.change.iter_mut().zip(&moves[count..]) {
            *row = cell::sum(row, &moved.map(|value| value / weight));
        }
        // What is held goes with the cell, and with nothing else.
        self.atoms.cell = Some(cell::product(&start, &self.change));
        let mut own: Vec<Vector> =
            moves[..count].iter().map(|moved| cell::times(moved, &self.change)).collect();
        Constraints::of(&self.atoms).apply(&mut own);
        for (position, moved) in self.atoms.positions.iter_mut().zip(&own) {
            let carried = cell::times(&cell::times(position, &inverse), &self.change);
            *position = cell::sum(&carried, moved);
        }
    }
}

/// The stress that the cell follows, as a matrix.
fn stress_of(evaluation: &Evaluation, change: CellChange) -> Result<Matrix> {
    let Some([xx, yy, zz, yz, xz, xy]) = evaluation.stress else {
        return Err(Error::input("the cell cannot be relaxed: this model tells no stress"));
    };
    if ![xx, yy, zz, yz, xz, xy].iter().all(|value| value.is_finite()) {
        return Err(Error::input("the stress is not finite"));
    }
    Ok(match change {
        CellChange::Hydrostatic => IDENTITY.map(|row| row.map(|value| value * (xx + yy + zz) / 3.0)),
        _ => [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]],
    })
}

/// The longest step of any atom, in Å.
const LONGEST: f64 = 0.2;

/// A method with what it remembers.
enum Guide {
    Fire { velocities: Vec<Vector>, time_step: f64, mixing: f64, downhill: usize },
    Lbfgs { last: Option<(Vec<Vector>, Vec<Vector>)>, pairs: VecDeque<Pair> },
}

/// A step, and by how much it changed the slope.
struct Pair {
    step: Vec<Vector>,
    slope: Vec<Vector>,
    product: f64,
}

fn dot(a: &[Vector], b: &[Vector]) -> f64 {
    a.iter().zip(b).map(|(a, b)| cell::dot(a, b)).sum()
}

/// `a + factor * b`, in place.
fn add(a: &mut [Vector], factor: f64, b: &[Vector]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a = std::array::from_fn(|i| a[i] + factor * b[i]);
    }
}

fn scaled(a: &[Vector], factor: f64) -> Vec<Vector> {
    a.iter().map(|row| row.map(|value| factor * value)).collect()
}

/// No atom goes further than [`LONGEST`].
fn shortened(moves: Vec<Vector>) -> Vec<Vector> {
    let longest = moves.iter().map(cell::length).fold(0.0, f64::max);
    if longest > LONGEST { scaled(&moves, LONGEST / longest) } else { moves }
}

impl Guide {
    fn new(method: Method) -> Self {
        match method {
            Method::Fire => Self::Fire { velocities: Vec::new(), time_step: 0.1, mixing: 0.1, downhill: 0 },
            Method::Lbfgs => Self::Lbfgs { last: None, pairs: VecDeque::new() },
        }
    }

    /// Where to go from a place where `pull` pulls.
    fn step(&mut self, pull: &[Vector]) -> Vec<Vector> {
        match self {
            Self::Fire { velocities, time_step, mixing, downhill } => {
                velocities.resize(pull.len(), [0.0; 3]);
                if dot(velocities, pull) > 0.0 {
                    // Turned towards the pull, at its own speed.
                    let speed = (dot(velocities, velocities) / dot(pull, pull)).sqrt();
                    *velocities = scaled(velocities, 1.0 - *mixing);
                    add(velocities, *mixing * speed, pull);
                    if *downhill > 5 {
                        *time_step = (1.1 * *time_step).min(1.0);
                        *mixing *= 0.99;
                    }
                    *downhill += 1;
                } else {
                    velocities.fill([0.0; 3]);
                    if *downhill > 0 {
                        *time_step *= 0.5;
                    }
                    (*mixing, *downhill) = (0.1, 0);
                }
                add(velocities, *time_step, pull);
                shortened(scaled(velocities, *time_step))
            }
            Self::Lbfgs { last, pairs } => {
                if let Some((step, before)) = last.take() {
                    let mut slope = before;
                    add(&mut slope, -1.0, pull);
                    let product = dot(&step, &slope);
                    // What curves downward teaches nothing about a valley.
                    if product > 1e-12 {
                        pairs.push_back(Pair { step, slope, product });
                        if pairs.len() > 50 {
                            pairs.pop_front();
                        }
                    } else {
                        pairs.clear();
                    }
                }
                let moves = shortened(along(pull, pairs));
                *last = Some((moves.clone(), pull.to_vec()));
                moves
            }
        }
    }
}

/// The inverse curvature where nothing is known of it, in Å²/eV: that of a stiff bond.
const UNKNOWN: f64 = 1.0 / 70.0;

/// The pull times the inverse of the curvature that `pairs` tell of (Nocedal 1980).
fn along(pull: &[Vector], pairs: &VecDeque<Pair>) -> Vec<Vector> {
    let mut moves = pull.to_vec();
    let mut factors = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        let factor = dot(&pair.step, &moves) / pair.product;
        add(&mut moves, -factor, &pair.slope);
        factors.push(factor);
    }
    moves = scaled(&moves, UNKNOWN);
    for (pair, factor) in pairs.iter().zip(factors.into_iter().rev()) {
        let back = dot(&pair.slope, &moves) / pair.product;
        add(&mut moves, factor - back, &pair.step);
    }
    moves
}

#[cfg(test)]
#[path = "relax_tests.rs"]
mod tests;
