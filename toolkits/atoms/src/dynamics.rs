//! Molecular dynamics at constant energy or with a Langevin thermostat.

use std::ops::ControlFlow;

use fauna_shared::generate::Rng;
use fauna_shared::item::Atoms;
use fauna_shared::model::{Evaluation, Potential};
use fauna_shared::{Error, Result};

use super::cell::{self, Vector};
use super::elements::mass_of;
use super::{Constraints, check};

/// Boltzmann constant, in eV/K.
pub const BOLTZMANN: f64 = 8.617_333_262e-5;

/// Acceleration of one unified atomic mass unit by one eV/Å, in Å/fs².
pub const ACCELERATION: f64 = 9.648_533_212e-3;

/// Thermodynamic ensemble.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ensemble {
    /// Constant energy, by velocity Verlet (Swope et al. 1982).
    Nve,
    /// Constant temperature (NVT) by Langevin dynamics with the BAOAB splitting (Leimkuhler and Matthews 2013).
    Langevin {
        /// Temperature in K.
        temperature: f64,
        /// Friction coefficient in 1/fs; usually 0.01.
        friction: f64,
    },
}

/// Options of [`dynamics`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DynamicsOptions {
    /// Time step in fs; usually 1, with hydrogen 0.5.
    pub time_step: f64,
    /// Number of steps.
    pub steps: usize,
    /// Thermodynamic ensemble.
    pub ensemble: Ensemble,
    /// Seed of the thermostat; the same seed gives the same trajectory.
    pub seed: u64,
}

impl Default for DynamicsOptions {
    fn default() -> Self {
        Self { time_step: 1.0, steps: 100, ensemble: Ensemble::Nve, seed: 0 }
    }
}

/// Positions and velocities.
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicsState {
    /// The structure. Positions are not wrapped into the cell, so that trajectories are continuous.
    pub atoms: Atoms,
    /// Velocities in Å/fs, one per atom.
    pub velocities: Vec<Vector>,
}

impl DynamicsState {
    /// All velocities zero.
    pub fn at_rest(atoms: Atoms) -> Self {
        let velocities = vec![[0.0; 3]; atoms.positions.len()];
        Self { atoms, velocities }
    }

    /// Velocities drawn from the Maxwell-Boltzmann distribution at `temperature` (K), without centre-of-mass motion and
    /// scaled to that temperature exactly.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a negative temperature or one that is not finite.
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
        // Fixed atoms take up momentum.
        if !constraints.hold_any() {
            state.remove_drift();
        }
        let found = state.temperature();
        if found > 0.0 {
            let factor = (temperature / found).sqrt();
            state.velocities.iter_mut().flatten().for_each(|value| *value *= factor);
        }
        Ok(state)
    }

    /// Removes the centre-of-mass motion of two atoms or more.
    fn remove_drift(&mut self) {
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

    /// Kinetic energy in eV.
    pub fn kinetic_energy(&self) -> f64 {
        let pairs = self.velocities.iter().enumerate();
        pairs
            .map(|(index, velocity)| mass_of(&self.atoms, index) * cell::dot(velocity, velocity))
            .sum::<f64>()
            / (2.0 * ACCELERATION)
    }

    /// Temperature in K, by the kinetic energy per degree of freedom; without fixed atoms, the three of the centre of mass
    /// do not count.
    pub fn temperature(&self) -> f64 {
        let count = self.velocities.len();
        let constraints = Constraints::of(&self.atoms);
        let free = match constraints.hold_any() {
            true => constraints.degrees_of_freedom(count),
            false if count > 1 => 3 * count - 3,
            false => 3 * count,
        };
        2.0 * self.kinetic_energy() / (free.max(1) as f64 * BOLTZMANN)
    }
}

/// Progress of a run.
#[derive(Debug, Clone, Copy)]
pub struct DynamicsStep<'a> {
    /// Number of steps taken; 0 at the start.
    pub step: usize,
    /// Time in fs.
    pub time: f64,
    /// Positions and velocities.
    pub state: &'a DynamicsState,
    /// Energy, forces and stress.
    pub evaluation: &'a Evaluation,
    /// Kinetic energy in eV.
    pub kinetic_energy: f64,
    /// Temperature in K.
    pub temperature: f64,
}

/// Runs molecular dynamics from `state` and returns the last state. `each` receives every step and may break to stop.
/// [Fixed](Atoms::held) atoms do not move, and the cell does not change.
///
/// The thermostat of [`Ensemble::Langevin`] acts on the centre of mass too.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for options out of range, and for energies or forces that are not finite,
/// as with too long a time step; and errors of the potential.
pub fn dynamics(
    potential: &dyn Potential,
    state: DynamicsState,
    options: &DynamicsOptions,
    each: &mut dyn FnMut(&DynamicsStep) -> ControlFlow<()>,
) -> Result<DynamicsState> {
    check(&state.atoms)?;
    check_options(&state, options)?;
    let constraints = Constraints::of(&state.atoms);
    let mut run = Run { potential, options, random: Rng::new(options.seed, 2), state, constraints };
    run.constraints.apply(&mut run.state.velocities);
    let mut evaluation = run.evaluate()?;
    for step in 0..=options.steps {
        let current = DynamicsStep {
            step,
            time: step as f64 * options.time_step,
            state: &run.state,
            evaluation: &evaluation,
            kinetic_energy: run.state.kinetic_energy(),
            temperature: run.state.temperature(),
        };
        if each(&current).is_break() || step == options.steps {
            break;
        }
        evaluation = run.step(&evaluation).map_err(|error| error.context(format!("step {}", step + 1)))?;
    }
    Ok(run.state)
}

fn check_temperature(temperature: f64) -> Result<()> {
    match temperature.is_finite() && temperature >= 0.0 {
        true => Ok(()),
        false => Err(Error::input(format!("a temperature must be 0 K or above, got {temperature}"))),
    }
}

fn check_options(state: &DynamicsState, options: &DynamicsOptions) -> Result<()> {
    if state.velocities.len() != state.atoms.positions.len() {
        let (velocities, atoms) = (state.velocities.len(), state.atoms.positions.len());
        return Err(Error::input(format!("{velocities} velocities for {atoms} atoms")));
    }
    if let Some(index) = state.velocities.iter().position(|v| v.iter().any(|value| !value.is_finite())) {
        return Err(Error::input(format!("the velocity of atom {index} is {:?}", state.velocities[index])));
    }
    if !(options.time_step > 0.0 && options.time_step <= 1000.0) {
        return Err(Error::input(format!(
            "a time step must be above 0 and at most 1000 fs, got {}",
            options.time_step
        )));
    }
    if let Ensemble::Langevin { temperature, friction } = options.ensemble {
        check_temperature(temperature)?;
        if !(friction.is_finite() && friction > 0.0) {
            return Err(Error::input(format!("a friction must be above 0 per fs, got {friction}")));
        }
    }
    Ok(())
}

struct Run<'a> {
    potential: &'a dyn Potential,
    options: &'a DynamicsOptions,
    random: Rng,
    state: DynamicsState,
    constraints: Constraints,
}

impl Run<'_> {
    fn evaluate(&self) -> Result<Evaluation> {
        let mut evaluations = self.potential.evaluate(std::slice::from_ref(&self.state.atoms))?;
        let evaluation = evaluations.pop().filter(|found| found.forces.len() == self.state.velocities.len());
        let evaluation =
            evaluation.ok_or_else(|| Error::input("the potential did not return one force per atom"))?;
        let is_finite =
            evaluation.energy.is_finite() && evaluation.forces.iter().flatten().all(|f| f.is_finite());
        match is_finite {
            true => Ok(evaluation),
            false => {
                Err(Error::input("energy or forces are not finite").hint("a shorter time step may help"))
            }
        }
    }

    /// Takes one time step, with the forces of `before`, and returns the evaluation after it.
    fn step(&mut self, before: &Evaluation) -> Result<Evaluation> {
        let half = self.options.time_step / 2.0;
        self.kick(&before.forces, half);
        match self.options.ensemble {
            Ensemble::Nve => self.drift(self.options.time_step),
            Ensemble::Langevin { temperature, friction } => {
                self.drift(half);
                self.thermostat(temperature, friction);
                self.drift(half);
            }
        }
        let after = self.evaluate()?;
        self.kick(&after.forces, half);
        Ok(after)
    }

    fn kick(&mut self, forces: &[Vector], time: f64) {
        let DynamicsState { atoms, velocities } = &mut self.state;
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

    /// Friction and random forces of one time step, exactly.
    fn thermostat(&mut self, temperature: f64, friction: f64) {
        let kept = (-friction * self.options.time_step).exp();
        let kicked = (1.0 - kept * kept).sqrt();
        let DynamicsState { atoms, velocities } = &mut self.state;
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
