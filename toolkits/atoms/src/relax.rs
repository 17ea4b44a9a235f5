//! Relaxation: minimises the energy over positions and, if requested, over the cell.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use fauna_shared::item::Atoms;
use fauna_shared::model::{Evaluation, Potential};
use fauna_shared::{Error, Result};

use super::cell::{self, IDENTITY, Matrix, Vector};
use super::{Constraints, check};

/// Optimisation algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Optimizer {
    /// FIRE (Bitzek et al. 2006): damped dynamics, robust far from the minimum.
    #[default]
    Fire,
    /// L-BFGS (Liu and Nocedal 1989): fewer steps near the minimum.
    Lbfgs,
}

/// Degrees of freedom of the cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CellRelaxation {
    /// The cell is fixed.
    #[default]
    Fixed,
    /// The volume changes, the shape does not.
    Hydrostatic,
    /// Volume and shape change.
    Free,
}

/// Options of [`relax`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RelaxOptions {
    /// Optimisation algorithm.
    pub optimizer: Optimizer,
    /// Degrees of freedom of the cell.
    pub cell: CellRelaxation,
    /// Convergence threshold of the largest force, in eV/Å (`fmax` in ASE).
    pub max_force: f64,
    /// Convergence threshold of the largest stress component in eV/Å³, if the cell changes; 0.001 is 0.16 GPa.
    pub max_stress: f64,
    /// Maximum number of steps.
    pub max_steps: usize,
}

impl Default for RelaxOptions {
    fn default() -> Self {
        Self {
            optimizer: Optimizer::Fire,
            cell: CellRelaxation::Fixed,
            max_force: 0.05,
            max_stress: 0.001,
            max_steps: 500,
        }
    }
}

/// Progress of one structure.
#[derive(Debug, Clone, Copy)]
pub struct RelaxStep<'a> {
    /// Index of the structure.
    pub structure: usize,
    /// Number of steps taken; 0 at the start.
    pub step: usize,
    /// The structure.
    pub atoms: &'a Atoms,
    /// Its energy, forces and stress.
    pub evaluation: &'a Evaluation,
    /// Largest force in eV/Å in the directions that are not fixed.
    pub max_force: f64,
    /// Largest stress component in eV/Å³, if the cell changes.
    pub max_stress: Option<f64>,
}

/// The result of one structure.
#[derive(Debug, Clone, PartialEq)]
pub struct Relaxed {
    /// The structure.
    pub atoms: Atoms,
    /// Its energy, forces and stress.
    pub evaluation: Evaluation,
    /// Number of steps taken.
    pub steps: usize,
    /// Whether forces and stress are below the thresholds.
    pub converged: bool,
}

/// Relaxes `structures` in one batch: each step evaluates all that have not converged. `each` receives every step of every
/// structure and may break to stop all of them.
///
/// [Fixed](Atoms::held) atoms move with the cell only.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) with the index of the structure: no atoms, a cell to relax that is not
/// periodic in all directions or without stress, forces that are not finite; and errors of the potential.
pub fn relax(
    potential: &dyn Potential,
    structures: &[Atoms],
    options: &RelaxOptions,
    each: &mut dyn FnMut(&RelaxStep) -> ControlFlow<()>,
) -> Result<Vec<Relaxed>> {
    check_options(options)?;
    let name = |index: usize| move |error: Error| error.context(format!("structure {index}"));
    let mut relaxations = Vec::with_capacity(structures.len());
    for (index, atoms) in structures.iter().enumerate() {
        relaxations.push(Relaxation::new(atoms, options).map_err(name(index))?);
    }
    let mut active: Vec<usize> = (0..relaxations.len()).collect();
    for step in 0..=options.max_steps {
        if active.is_empty() {
            break;
        }
        let evaluations = evaluate(potential, &relaxations, &active)?;
        let mut stopped = false;
        for (index, evaluation) in active.iter().zip(evaluations) {
            let relaxation = &mut relaxations[*index];
            relaxation.update(evaluation, step, options).map_err(name(*index))?;
            stopped |= each(&relaxation.progress(*index)).is_break();
        }
        active.retain(|index| !relaxations[*index].converged);
        if stopped || step == options.max_steps {
            break;
        }
        for index in &active {
            relaxations[*index].step();
        }
    }
    let ended = relaxations.into_iter().map(|relaxation| Relaxed {
        atoms: relaxation.atoms,
        evaluation: relaxation.evaluation,
        steps: relaxation.steps,
        converged: relaxation.converged,
    });
    Ok(ended.collect())
}

fn check_options(options: &RelaxOptions) -> Result<()> {
    for (name, value) in [("force", options.max_force), ("stress", options.max_stress)] {
        if !(value.is_finite() && value > 0.0) {
            return Err(Error::input(format!("the threshold of the {name} must be above 0, got {value}")));
        }
    }
    Ok(())
}

/// Evaluates the active structures; errors have the index among all structures.
fn evaluate(
    potential: &dyn Potential,
    relaxations: &[Relaxation],
    active: &[usize],
) -> Result<Vec<Evaluation>> {
    let atoms: Vec<Atoms> = active.iter().map(|index| relaxations[*index].atoms.clone()).collect();
    match potential.evaluate(&atoms) {
        Ok(evaluations) if evaluations.len() == atoms.len() => Ok(evaluations),
        Ok(_) => Err(Error::input("the potential did not return one evaluation per structure")),
        Err(error) => {
            // The index in the error is one among the active structures.
            for (index, one) in active.iter().zip(&atoms) {
                potential
                    .evaluate(std::slice::from_ref(one))
                    .map_err(|error| error.context(format!("structure {index}")))?;
            }
            Err(error)
        }
    }
}

/// The state of one structure.
///
/// If the cell changes, the variables are the positions in the initial cell and the deformation of the cell,
/// `positions = initial · deformation`, weighted so that both converge alike (Tadmor et al. 1999; `UnitCellFilter` in ASE).
struct Relaxation {
    atoms: Atoms,
    evaluation: Evaluation,
    steps: usize,
    converged: bool,
    max_force: f64,
    max_stress: Option<f64>,
    start: Option<Matrix>,
    deformation: Matrix,
    /// Negative gradient by the variables.
    descent: Vec<Vector>,
    optimizer: OptimizerState,
}

impl Relaxation {
    fn new(atoms: &Atoms, options: &RelaxOptions) -> Result<Self> {
        check(atoms)?;
        let start = match options.cell {
            CellRelaxation::Fixed => None,
            _ if atoms.periodic == [true; 3] => atoms.cell,
            _ => {
                return Err(Error::input("the cell cannot be relaxed: it is not periodic in all directions"));
            }
        };
        Ok(Self {
            atoms: atoms.clone(),
            evaluation: Evaluation::default(),
            steps: 0,
            converged: false,
            max_force: f64::INFINITY,
            max_stress: None,
            start,
            deformation: IDENTITY,
            descent: Vec::new(),
            optimizer: OptimizerState::new(options.optimizer),
        })
    }

    fn progress(&self, structure: usize) -> RelaxStep<'_> {
        RelaxStep {
            structure,
            step: self.steps,
            atoms: &self.atoms,
            evaluation: &self.evaluation,
            max_force: self.max_force,
            max_stress: self.max_stress,
        }
    }

    /// The weight of the deformation relative to the positions.
    fn weight(&self) -> f64 {
        self.atoms.positions.len() as f64
    }

    /// Takes the evaluation after `step` steps.
    fn update(&mut self, evaluation: Evaluation, step: usize, options: &RelaxOptions) -> Result<()> {
        let is_finite = |value: &f64| value.is_finite();
        if evaluation.forces.len() != self.atoms.positions.len() {
            return Err(Error::input("the potential did not return one force per atom"));
        }
        if !(evaluation.energy.is_finite() && evaluation.forces.iter().flatten().all(is_finite)) {
            return Err(Error::input(format!("after {step} steps energy or forces are not finite")));
        }
        self.steps = step;
        let mut forces = evaluation.forces.clone();
        Constraints::of(&self.atoms).apply(&mut forces);
        self.max_force = forces.iter().map(cell::norm).fold(0.0, f64::max);
        self.converged = self.max_force <= options.max_force;
        self.descent.clear();
        match self.start {
            None => self.descent.extend(&forces),
            Some(start) => {
                let stress = stress_matrix(&evaluation, options.cell)?;
                let largest = stress.iter().flatten().fold(0.0, |all: f64, value| all.max(value.abs()));
                self.max_stress = Some(largest);
                self.converged &= largest <= options.max_stress;
                let back = cell::transpose(&self.deformation);
                self.descent.extend(forces.iter().map(|force| cell::times(force, &back)));
                let volume = cell::volume(&cell::product(&start, &self.deformation));
                let slope = cell::product(&cell::transpose(&cell::inverse(&self.deformation)), &stress);
                self.descent.extend(slope.map(|row| row.map(|value| -volume * value / self.weight())));
            }
        }
        self.evaluation = evaluation;
        Ok(())
    }

    /// Takes one step.
    fn step(&mut self) {
        let mut moves = self.optimizer.step(&self.descent);
        let count = self.atoms.positions.len();
        let Some(start) = self.start else {
            Constraints::of(&self.atoms).apply(&mut moves);
            for (position, moved) in self.atoms.positions.iter_mut().zip(&moves) {
                *position = cell::sum(position, moved);
            }
            return;
        };
        let inverse = cell::inverse(&self.deformation);
        let weight = self.weight();
        for (row, moved) in self.deformation.iter_mut().zip(&moves[count..]) {
            *row = cell::sum(row, &moved.map(|value| value / weight));
        }
        // Fixed atoms move with the cell only.
        self.atoms.cell = Some(cell::product(&start, &self.deformation));
        let mut own: Vec<Vector> =
            moves[..count].iter().map(|moved| cell::times(moved, &self.deformation)).collect();
        Constraints::of(&self.atoms).apply(&mut own);
        for (position, moved) in self.atoms.positions.iter_mut().zip(&own) {
            let carried = cell::times(&cell::times(position, &inverse), &self.deformation);
            *position = cell::sum(&carried, moved);
        }
    }
}

/// The stress in the degrees of freedom of the cell, as a matrix.
fn stress_matrix(evaluation: &Evaluation, change: CellRelaxation) -> Result<Matrix> {
    let Some([xx, yy, zz, yz, xz, xy]) = evaluation.stress else {
        return Err(Error::input("the cell cannot be relaxed: this potential computes no stress"));
    };
    if ![xx, yy, zz, yz, xz, xy].iter().all(|value| value.is_finite()) {
        return Err(Error::input("the stress is not finite"));
    }
    Ok(match change {
        CellRelaxation::Hydrostatic => IDENTITY.map(|row| row.map(|value| value * (xx + yy + zz) / 3.0)),
        _ => [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]],
    })
}

/// Maximum step of an atom, in Å.
const MAX_STEP: f64 = 0.2;

/// An optimizer with its state.
enum OptimizerState {
    Fire { velocities: Vec<Vector>, time_step: f64, mixing: f64, downhill: usize },
    Lbfgs { last: Option<(Vec<Vector>, Vec<Vector>)>, pairs: VecDeque<Pair> },
}

/// A step and the change of the gradient over it.
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

/// Scales a step so that no atom moves further than [`MAX_STEP`].
fn limit_step(moves: Vec<Vector>) -> Vec<Vector> {
    let longest = moves.iter().map(cell::norm).fold(0.0, f64::max);
    if longest > MAX_STEP { scaled(&moves, MAX_STEP / longest) } else { moves }
}

impl OptimizerState {
    fn new(optimizer: Optimizer) -> Self {
        match optimizer {
            Optimizer::Fire => {
                Self::Fire { velocities: Vec::new(), time_step: 0.1, mixing: 0.1, downhill: 0 }
            }
            Optimizer::Lbfgs => Self::Lbfgs { last: None, pairs: VecDeque::new() },
        }
    }

    /// The next step, from the negative gradient.
    fn step(&mut self, descent: &[Vector]) -> Vec<Vector> {
        match self {
            Self::Fire { velocities, time_step, mixing, downhill } => {
                velocities.resize(descent.len(), [0.0; 3]);
                if dot(velocities, descent) > 0.0 {
                    // The velocity is turned towards the force at its own speed.
                    let speed = (dot(velocities, velocities) / dot(descent, descent)).sqrt();
                    *velocities = scaled(velocities, 1.0 - *mixing);
                    add(velocities, *mixing * speed, descent);
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
                add(velocities, *time_step, descent);
                limit_step(scaled(velocities, *time_step))
            }
            Self::Lbfgs { last, pairs } => {
                if let Some((step, before)) = last.take() {
                    let mut slope = before;
                    add(&mut slope, -1.0, descent);
                    let product = dot(&step, &slope);
                    // Pairs of negative curvature are not used.
                    if product > 1e-12 {
                        pairs.push_back(Pair { step, slope, product });
                        if pairs.len() > 50 {
                            pairs.pop_front();
                        }
                    } else {
                        pairs.clear();
                    }
                }
                let moves = limit_step(lbfgs_direction(descent, pairs));
                *last = Some((moves.clone(), descent.to_vec()));
                moves
            }
        }
    }
}

/// Initial inverse Hessian, in Å²/eV: that of a stiff bond, as in ASE.
const INITIAL_INVERSE_HESSIAN: f64 = 1.0 / 70.0;

/// The negative gradient times the inverse Hessian of `pairs` by the two-loop recursion (Nocedal 1980).
fn lbfgs_direction(descent: &[Vector], pairs: &VecDeque<Pair>) -> Vec<Vector> {
    let mut moves = descent.to_vec();
    let mut factors = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        let factor = dot(&pair.step, &moves) / pair.product;
        add(&mut moves, -factor, &pair.slope);
        factors.push(factor);
    }
    moves = scaled(&moves, INITIAL_INVERSE_HESSIAN);
    for (pair, factor) in pairs.iter().zip(factors.into_iter().rev()) {
        let back = dot(&pair.slope, &moves) / pair.product;
        add(&mut moves, factor - back, &pair.step);
    }
    moves
}

#[cfg(test)]
#[path = "relax_tests.rs"]
mod tests;
