//! Relaxes a crystal with its cell, then runs molecular dynamics.
//!
//!     cargo run --release --example relax -- orb-v3-conservative-inf-omat-20250404.ckpt crystal.cif path.xyz
//!
//! Without arguments it uses a small model with random weights, whose energies have no physical meaning:
//!
//! ```text
//! step   0    23.67626 eV  largest force 0.2641 eV/Å
//! step  60    14.57028 eV  largest force 2.7395 eV/Å
//! step 120    14.45537 eV  largest force 2.2995 eV/Å
//! step 180    14.43121 eV  largest force 2.0322 eV/Å
//! step 240    14.42792 eV  largest force 2.0044 eV/Å
//! step 300    14.32476 eV  largest force 0.0674 eV/Å
//! relaxed: true after 304 steps, 383.95 Å³
//!   0.0 fs  total energy   14.59344 eV  300.0 K
//!  50.0 fs  total energy   14.59345 eV  213.6 K
//! 100.0 fs  total energy   14.59352 eV   96.6 K
//! 150.0 fs  total energy   14.59335 eV  241.2 K
//! 200.0 fs  total energy   14.59371 eV  136.9 K
//! relax.xyz: 201 structures
//! ```

use anyhow::Context;
use std::fs::File;
use std::io::BufWriter;
use std::ops::ControlFlow;
use std::path::Path;

use fauna::Atoms;
use fauna::atoms::{
    CellRelaxation, DynamicsOptions, DynamicsState, Frame, RelaxOptions, cell, dynamics, files, relax,
};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/orb/v3_conservative_crystal/model");

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = fauna::open(&arguments.next().unwrap_or_else(|| TINY.into()))?;
    let potential = model.potential()?;
    let atoms = match arguments.next() {
        Some(path) => files::read(Path::new(&path))?.remove(0).atoms,
        None => distorted_salt(),
    };
    let path = arguments.next().unwrap_or_else(|| "relax.xyz".into());
    let file = File::create(&path).with_context(|| format!("cannot write {path}"))?;
    let mut file = BufWriter::new(file);

    let options = RelaxOptions { cell: CellRelaxation::Free, ..RelaxOptions::default() };
    let relaxed = relax(potential, &[atoms], &options, &mut |step| {
        if step.step % 60 == 0 {
            let (energy, force) = (step.evaluation.energy, step.max_force);
            println!("step {:3}  {energy:10.5} eV  largest force {force:.4} eV/Å", step.step);
        }
        ControlFlow::Continue(())
    })?
    .remove(0);
    let volume = relaxed.atoms.cell.as_ref().map_or(0.0, cell::volume);
    println!("relaxed: {} after {} steps, {volume:.2} Å³", relaxed.converged, relaxed.steps);

    let state = DynamicsState::at_temperature(relaxed.atoms, 300.0, 1)?;
    let options = DynamicsOptions { steps: 200, ..DynamicsOptions::default() };
    let mut written = Ok(());
    dynamics(potential, state, &options, &mut |moment| {
        if moment.step % 50 == 0 {
            let whole = moment.evaluation.energy + moment.kinetic_energy;
            println!("{:5.1} fs  total energy {whole:10.5} eV  {:5.1} K", moment.time, moment.temperature);
        }
        let frame = Frame::from(moment.state.atoms.clone());
        written = files::write_xyz(&mut file, &frame);
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written.with_context(|| format!("cannot write {path}"))?;
    println!("{path}: 201 structures");
    Ok(())
}

/// Returns rock salt with displaced atoms.
fn distorted_salt() -> Atoms {
    let mut atoms = Atoms { periodic: [true; 3], ..Atoms::default() };
    for site in 0..8 {
        let corner = [site & 1, site >> 1 & 1, site >> 2 & 1];
        atoms.numbers.push([11, 17][corner.iter().sum::<usize>() % 2]);
        let off = |axis: usize| 0.1 * ((5 * site + 3 * axis) as f64).sin();
        atoms.positions.push(std::array::from_fn(|axis| 2.8 * corner[axis] as f64 + off(axis)));
    }
    atoms.cell = Some([[5.6, 0.0, 0.0], [0.0, 5.6, 0.0], [0.0, 0.0, 5.6]]);
    atoms
}
