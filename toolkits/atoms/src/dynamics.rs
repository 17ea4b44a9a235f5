//! Molecular dynamics: Newton's equations, alone or in touch with a bath of heat.

use std::ops::ControlFlow;

use fauna_shared::generate::Rng;
use fauna_shared::item::Atoms;
use fauna_shared::model::{Evaluation, Potential};
use fauna_shared::{Error, Result};

use super::cell::{self, Vector};
use super::elements::mass_of;
use super::{Constraints, check};

/// Boltzmann's constant, in eV/K.
pub const BOLTZMANN: f64 = 8.617_333_262e-5;

/// What one eV/Å does to one unified atomic mass unit, in Å/fs².
pub const ACCELERATION: f64 = 9.648_533_212e-3;

/// What the atoms exchange with the world.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ensemble {
    /// Nothing: the energy stays (NVE). Velocity Verlet (Swope et al. 1982).
    Nve,
    /// Heat (NVT), by friction and random kicks that keep a temperature. The splitting BAOAB (Leimkuhler and
    /// Matthews 2013).
    Langevin {
        /// In K.
        temperature: f64,
        /// What share of a velocity is lost in a femtosecond, in 1/fs; 0.01 is usual.
        friction: f64,
    },
}

/// How to run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dynamics {
    /// In fs; 1 is usual, 0.5 with hydrogen.
    pub time_step: f64,
    /// How many steps to take.
    pub steps: usize,
    /// What the atoms exchange.
    pub ensemble: Ensemble,
    /// Where the random numbers start: the same seed runs the same way.
    pub seed: u64,
}

impl Default for Dynamics {
    fn default() -> Self {
        Self { time_step: 1.0, steps: 100, ensemble: Ensemble::Nve, seed: 0 }
    }
}

/// Atoms that move.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Where they are. Positions are not brought back into the cell, so that paths stay whole.
    pub atoms: Atoms,
    /// In Å/fs, one an atom.
    pub velocities: Vec<Vector>,
}

impl State {
    /// At rest.
    pub fn at_rest(atoms: Atoms) -> Self {
        let velocities = vec![[0.0; 3]; atoms.positions.len()];
        Self { atoms, velocities }
    }

    /// With velocities as they are at `temperature` (K) (Maxwell and Boltzmann), then without a drift of the whole and
    /// scaled to have that temperature exactly.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a temperature that is none.
    pub fn at_temperature(atoms: Atoms, temperature: f64, seed: u64) -> Result<Self> {
        check_temperature(temperature)?;
        let mut random = Rng::new(seed, 1);
        let mut velocity = |index: usize| {
            let width = (BOLTZMANN * temperature * ACCELERATION / mass_of(&atoms, index)).sqrt();
            std::array::from_fn(|_| width * random.normal())
        };
        let mut velocities: Vec<Vector> = (0..atoms.numbers.len()).map(&mut velocity).collect();
        let constraints = Constraints::of(&atoms);
        constraints.apply(&mut velocities);
        let mut state = Self { atoms, velocities };
        // Atoms that are held take up momentum.
        if !constraints.hold_any() {
            state.stop_drift();
        }
        let found = state.temperature();
        if found > 0.0 {
            let factor = (temperature / found).sqrt();
            state.velocities.iter_mut().flatten().for_each(|value| *value *= factor);
        }
        Ok(state)
    }

    /// Takes the momentum of the whole away; a single atom keeps what it has.
    fn stop_drift(&mut self) {
        if self.velocities.len() < 2 {
            return;
        }
        let (mut momentum, mut all) = ([0.0; 3], 0.0);
        for (index, velocity) in self.velocities.iter().enumerate() {
            let mass = mass_of(&self.atoms, index);
            momentum = cell::sum(&momentum, &velocity.map(|value| mass * value));
            all += mass;
        }
        let drift = momentum.map(|value| value / all);
        for velocity in &mut self.velocities {
            *velocity = cell::difference(velocity, &drift);
        }
    }

    /// The energy of motion, in eV.
    pub fn kinetic_energy(&self) -> f64 {
        let pairs = self.velocities.iter().enumerate();
        pairs
            .map(|(index, velocity)| mass_of(&self.atoms, index) * cell::dot(velocity, velocity))
            .sum::<f64>()
            / (2.0 * ACCELERATION)
    }

    /// In K: the energy of motion, shared among the directions in which the atoms are free, less, where none is held,
    /// the three in which the whole does not drift.
    pub fn temperature(&self) -> f64 {
        let count = self.velocities.len();
        let constraints = Constraints::of(&self.atoms);
        let free = match constraints.hold_any() {
            true => constraints.directions(count),
            false if count > 1 => 3 * count - 3,
            false => 3 * count,
        };
        2.0 * self.kinetic_energy() / (free.max(1) as f64 * BOLTZMANN)
    }
}

/// One moment of a run.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// How many steps were taken; the first moment is 0.
    pub step: usize,
    /// In fs.
    pub time: f64,
    /// Positions and velocities.
    pub state: &'a State,
    /// What the potential says of them.
    pub evaluation: &'a Evaluation,
    /// In eV.
    pub kinetic_energy: f64,
    /// In K.
    pub temperature: f64,
}

/// Moves `state` through time, step by step, and hands every moment to `each`, which may break to stop. Gives the
/// last state. Atoms that are [held](Atoms::held) do not move.
///
/// The bath of [`Ensemble::Langevin`] does not stop the whole from drifting, as no bath does; its share of the
/// temperature is small. In a single direction or plane that repeats nothing is different: the cell stays as it is.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for options or a state that make no sense, or atoms that fly apart because
/// the time step is too long; and what the potential says.
pub fn dynamics(
    potential: &dyn Potential,
    state: State,
    options: &Dynamics,
    each: &mut dyn FnMut(&Moment) -> ControlFlow<()>,
) -> Result<State> {
    check(&state.atoms)?;
    check_options(&state, options)?;
    let constraints = Constraints::of(&state.atoms);
    let mut run = Run { potential, options, random: Rng::new(options.seed, 2), state, constraints };
    run.constraints.apply(&mut run.state.velocities);
    let mut evaluation = run.evaluate()?;
    for step in 0..=options.steps {
        let moment = Moment {
            step,
            time: step as f64 * options.time_step,
            state: &run.state,
            evaluation: &evaluation,
            kinetic_energy: run.state.kinetic_energy(),
            temperature: run.state.temperature(),
        };
        if each(&moment).is_break() || step == options.steps {
            break;
        }
        evaluation = run.step(&evaluation).map_err(|error| error.context(format!("step {}", step + 1)))?;
    }
    Ok(run.state)
}

fn check_temperature(temperature: f64) -> Result<()> {
    match temperature.is_finite() && temperature >= 0.0 {
        true => Ok(()),
        false => Err(Error::input(format!("a temperature is 0 K or above, not {temperature}"))),
    }
}

fn check_options(state: &State, options: &Dynamics) -> Result<()> {
    if state.velocities.len() != state.atoms.positions.len() {
        let (velocities, atoms) = (state.velocities.len(), state.atoms.positions.len());
        return Err(Error::input(format!("{velocities} velocities for {atoms} atoms")));
    }
    if let Some(index) = state.velocities.iter().position(|v| v.iter().any(|value| !value.is_finite())) {
        return Err(Error::input(format!("the velocity of atom {index} is {:?}", state.velocities[index])));
    }
    if !(options.time_step > 0.0 && options.time_step <= 1000.0) {
        return Err(Error::input(format!(
            "a time step is above 0 and at most 1000 fs, not {}",
            options.time_step
        )));
    }
    if let Ensemble::Langevin { temperature, friction } = options.ensemble {
        check_temperature(temperature)?;
        if !(friction.is_finite() && friction > 0.0) {
            return Err(Error::input(format!("a friction is above 0 per fs, not {friction}")));
        }
    }
    Ok(())
}

struct Run<'a> {
    potential: &'a dyn Potential,
    options: &'a Dynamics,
    random: Rng,
    state: State,
    constraints: Constraints,
}

impl Run<'_> {
    fn evaluate(&self) -> Result<Evaluation> {
        let mut evaluations = self.potential.evaluate(std::slice::from_ref(&self.state.atoms))?;
        let evaluation = evaluations.pop().filter(|found| found.forces.len() == self.state.velocities.len());
        let evaluation =
            evaluation.ok_or_else(|| Error::input("the potential gave no force for each atom"))?;
        let is_finite =
            evaluation.energy.is_finite() && evaluation.forces.iter().flatten().all(|f| f.is_finite());
        match is_finite {
            true => Ok(evaluation),
            false => {
                Err(Error::input("energy or forces are not finite").hint("a shorter time step may help"))
            }
        }
    }

    /// One time step from where the forces are those of `before`; gives the evaluation after it.
    fn step(&mut self, before: &Evaluation) -> Result<Evaluation> {
        let half = self.options.time_step / 2.0;
        self.kick(&before.forces, half);
        match self.options.ensemble {
            Ensemble::Nve => self.drift(self.options.time_step),
            Ensemble::Langevin { temperature, friction } => {
                self.drift(half);
                self.bathe(temperature, friction);
                self.drift(half);
            }
        }
        let after = self.evaluate()?;
        self.kick(&after.forces, half);
        Ok(after)
    }

    fn kick(&mut self, forces: &[Vector], time: f64) {
        let State { atoms, velocities } = &mut self.state;
        for (index, (velocity, force)) in velocities.iter_mut().zip(forces).enumerate() {
            let factor = time * ACCELERATION / mass_of(atoms, index);
            *velocity = cell::sum(velocity, &force.map(|value| factor * value));
        }
        self.constraints.apply(velocities);
    }

    fn drift(&mut self, time: f64) {
        for (position, velocity) in self.state.atoms.positions.iter_mut().zip(&self.state.velocities) {
            *position = cell::sum(position, &velocity.map(|value| time * value));
        }
    }

    /// Friction and kicks of one time step, exactly.
    fn bathe(&mut self, temperature: f64, friction: f64) {
        let kept = (-friction * self.options.time_step).exp();
        let kicked = (1.0 - kept * kept).sqrt();
        let State { atoms, velocities } = &mut self.state;
        for (index, velocity) in velocities.iter_mut().enumerate() {
            let width = kicked * (BOLTZMANN * temperature * ACCELERATION / mass_of(atoms, index)).sqrt();
            *velocity = velocity.map(|value| kept * value + width * self.random.normal());
        }
        self.constraints.apply(velocities);
    }
}

#[cfg(test)]
#[path = "dynamics_tests.rs"]
mod tests;
