//! Molecular dynamics: Newton's equations, alone or in touch with a bath of heat.

use std::ops::ControlFlow;

use fauna_shared::generate::Rng;
use fauna_shared::item::Atoms;
use fauna_shared::model::{Evaluation, Potential};
use fauna_shared::{Error, Result};

use super::cell::{self, Vector};
use super::{check, elements};

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
        let velocity = |number: &u8| {
            let width = (BOLTZMANN * temperature * ACCELERATION / elements::mass(*number)).sqrt();
            std::array::from_fn(|_| width * random.normal())
        };
        let velocities = atoms.numbers.iter().map(velocity).collect();
        let mut state = Self { atoms, velocities };
        state.stop_drift();
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
        for (velocity, number) in self.velocities.iter().zip(&self.atoms.numbers) {
            let mass = elements::mass(*number);
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
        let pairs = self.velocities.iter().zip(&self.atoms.numbers);
        pairs.map(|(velocity, number)| elements::mass(*number) * cell::dot(velocity, velocity)).sum::<f64>()
            / (2.0 * ACCELERATION)
    }

    /// In K: the energy of motion, shared among three directions an atom, less the three in which the whole does not
    /// drift.
    pub fn temperature(&self) -> f64 {
        let count = self.velocities.len();
        let free = if count > 1 { 3 * count - 3 } else { 3 * count };
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
/// last state.
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
    let mut run = Run { potential, options, random: Rng::new(options.seed, 2), state };
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
        let atoms = self.state.velocities.iter_mut().zip(forces).zip(&self.state.atoms.numbers);
        for ((velocity, force), number) in atoms {
            let factor = time * ACCELERATION / elements::mass(*number);
            *velocity = cell::sum(velocity, &force.map(|value| factor * value));
        }
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
        for (velocity, number) in self.state.velocities.iter_mut().zip(&self.state.atoms.numbers) {
            let width = kicked * (BOLTZMANN * temperature * ACCELERATION / elements::mass(*number)).sqrt();
            *velocity = velocity.map(|value| kept * value + width * self.random.normal());
        }
    }
}

#[cfg(test)]
#[path = "dynamics_tests.rs"]
mod tests;
