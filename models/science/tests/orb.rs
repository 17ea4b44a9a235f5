//! Orb with the random weights of parity cases, which are large enough that the network pulls as hard as matter does.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fauna_atoms::{DynamicsOptions, DynamicsState, RelaxOptions, cell, dynamics, relax};
use fauna_shared::Result;
use fauna_shared::item::{Atoms, Item};
use fauna_shared::model::{Pipeline, Potential, SampleSizes};
use fauna_shared::zoo::{LoadOptions, Zoo};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/orb").join(name).join("model")
}

fn open(path: &Path) -> Result<Box<dyn Pipeline>> {
    Zoo::new(fauna_science::FAMILIES.to_vec()).open(path.to_str().unwrap(), &LoadOptions::default())
}

fn opened(name: &str) -> Box<dyn Pipeline> {
    open(&case(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn salt() -> Atoms {
    Atoms {
        numbers: vec![11, 17, 11, 17],
        positions: vec![[0.1, 0.0, 0.2], [2.0, 1.9, 0.3], [2.1, 0.2, 2.4], [0.0, 2.1, 2.6]],
        cell: Some([[4.0, 0.3, 0.0], [0.0, 3.9, 0.2], [0.1, 0.0, 5.2]]),
        periodic: [true; 3],
        charge: Some(0.0),
        spin: Some(1.0),
        ..Atoms::default()
    }
}

fn water() -> Atoms {
    Atoms {
        numbers: vec![8, 1, 1],
        positions: vec![[0.0, 0.0, 0.1], [0.76, 0.1, -0.5], [-0.8, 0.0, -0.45]],
        charge: Some(-1.0),
        spin: Some(2.0),
        ..Atoms::default()
    }
}

fn energy(potential: &dyn Potential, atoms: &Atoms) -> f64 {
    potential.evaluate(std::slice::from_ref(atoms)).unwrap().remove(0).energy
}

/// The slope of the energy along `change`, from two steps of different size whose errors cancel.
fn slope(potential: &dyn Potential, change: impl Fn(f64) -> Atoms) -> f64 {
    let h = 8e-3;
    let central = |h: f64| (energy(potential, &change(h)) - energy(potential, &change(-h))) / (2.0 * h);
    (4.0 * central(h) - central(2.0 * h)) / 3.0
}

#[test]
fn forces_and_stress_are_slopes_of_the_energy() {
    for (name, atoms) in [
        ("v3_conservative_crystal", salt()),
        ("v3_conservative_molecule", water()),
        ("v3_conservative_omol", salt()),
        ("orbmol_v2_molecule", water()),
        ("orbmol_v2_molecule", salt()),
    ] {
        let model = opened(name);
        let potential = model.potential().unwrap();
        let found = potential.evaluate(std::slice::from_ref(&atoms)).unwrap().remove(0);
        let largest = found.forces.iter().map(cell::norm).fold(0.0, f64::max);
        assert!(largest > 0.02, "{name}: nothing pulls: {largest}");
        for (atom, force) in found.forces.iter().enumerate() {
            for (axis, pull) in force.iter().enumerate() {
                let along = slope(potential, |by| {
                    let mut moved = atoms.clone();
                    moved.positions[atom][axis] += by;
                    moved
                });
                assert!((along + pull).abs() < 5e-4 + 4e-3 * largest, "{name}: {along} {}", pull);
            }
        }
        let Some(stress) = found.stress else { continue };
        let volume = cell::volume(&atoms.cell.unwrap());
        for (part, (i, j)) in [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)].into_iter().enumerate() {
            let along = slope(potential, |by| {
                let mut change = cell::IDENTITY;
                change[i][j] += by / 2.0;
                change[j][i] += by / 2.0;
                let mut moved = atoms.clone();
                moved.cell = moved.cell.map(|cell| cell::product(&cell, &change));
                moved.positions.iter_mut().for_each(|position| *position = cell::times(position, &change));
                moved
            });
            let wanted = along / volume;
            assert!(
                (wanted - stress[part]).abs() < 4e-3 * (0.01 + wanted.abs()),
                "{name}: {wanted} {}",
                stress[part]
            );
        }
    }
}

#[test]
fn many_structures_are_as_each_alone_whichever_run_they_fall_into() {
    for name in ["v3_direct_crystal", "v3_conservative_crystal"] {
        let model = opened(name);
        let potential = model.potential().unwrap();
        // More edges than one run takes.
        let many: Vec<Atoms> = (0..40)
            .map(|i| {
                let mut atoms = if i % 3 == 0 { water() } else { salt() };
                atoms.positions[0][1] += 0.01 * f64::from(i);
                atoms
            })
            .collect();
        let together = potential.evaluate(&many).unwrap();
        for (index, (atoms, found)) in many.iter().zip(&together).enumerate() {
            let alone = potential.evaluate(std::slice::from_ref(atoms)).unwrap().remove(0);
            assert!((alone.energy - found.energy).abs() < 1e-4, "{name} {index}");
            for (a, b) in alone.forces.iter().zip(&found.forces) {
                assert!(cell::norm(&cell::difference(a, b)) < 1e-4, "{name} {index}: {a:?} {b:?}");
            }
        }
    }
}

#[test]
fn a_conservative_model_keeps_its_energy_and_a_direct_one_is_not_called_so() {
    let model = opened("v3_conservative_crystal");
    let potential = model.potential().unwrap();
    assert!(
        potential.is_conservative() && !opened("v3_direct_crystal").potential().unwrap().is_conservative()
    );
    let worst = |time_step: f64| {
        let state = DynamicsState::at_temperature(salt(), 400.0, 1).unwrap();
        let options =
            DynamicsOptions { time_step, steps: (60.0 / time_step) as usize, ..DynamicsOptions::default() };
        let (mut start, mut off, mut swing) = (None, 0.0f64, 0.0f64);
        dynamics(potential, state, &options, &mut |moment| {
            let (whole, moving) = (moment.evaluation.energy + moment.kinetic_energy, moment.kinetic_energy);
            let (first, first_moving) = *start.get_or_insert((whole, moving));
            off = off.max((whole - first).abs());
            swing = swing.max((moving - first_moving).abs());
            ControlFlow::Continue(())
        })
        .unwrap();
        (off, swing)
    };
    let (off, swing) = worst(0.5);
    assert!(off < 0.02 * swing && swing > 0.01, "off by {off} eV while {swing} eV came and went");
}

#[test]
fn relaxing_goes_downhill() {
    let model = opened("v3_conservative_molecule");
    let potential = model.potential().unwrap();
    let options = RelaxOptions { max_steps: 30, ..RelaxOptions::default() };
    let ended = relax(potential, &[water(), water()], &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(ended[0].evaluation.energy < energy(potential, &water()) - 0.01);
    assert_eq!(ended[0].steps, ended[1].steps);
}

#[test]
fn a_slab_whose_third_direction_is_open_needs_no_cell_vector_there() {
    let model = opened("v3_conservative_crystal");
    let mut slab = salt();
    slab.periodic = [true, true, false];
    slab.cell.as_mut().unwrap()[2] = [0.0; 3];
    let padded = {
        let mut padded = slab.clone();
        padded.cell.as_mut().unwrap()[2] = [0.0, 0.0, 60.0];
        padded.periodic = [true; 3];
        padded
    };
    let found = model.potential().unwrap().evaluate(&[slab, padded]).unwrap();
    assert!((found[0].energy - found[1].energy).abs() < 1e-5);
    assert!(found[0].stress.is_none() && found[1].stress.is_some());
    let error = opened("orbmol_v2_molecule")
        .potential()
        .unwrap()
        .evaluate(&[Atoms { periodic: [true, false, false], ..salt() }]);
    assert!(error.unwrap_err().to_string().contains("partly periodic"));
}

#[test]
fn one_vector_a_structure_whatever_stands_beside_it() {
    let model = opened("v3_direct_crystal");
    let items = [water(), salt()].map(Item::Atoms);
    let both = model.embed(&items).unwrap().to_vecs().unwrap();
    let alone = model.embed(&items[1..]).unwrap().to_vecs().unwrap();
    assert_eq!((both.len(), both[0].len()), (2, 12));
    assert!(both[1].iter().zip(&alone[0]).all(|(a, b)| (a - b).abs() < 1e-5));
    assert!(both[0].iter().zip(&both[1]).any(|(a, b)| (a - b).abs() > 1e-2));
    assert!(model.embed(&["text".into()]).is_err());
}

#[test]
fn what_is_made_up_is_as_large_as_wanted_and_can_be_computed() {
    let model = opened("v3_conservative_crystal");
    let inputs = model.sample("forward", &SampleSizes { rows: 2, tokens: 30, images: 0 }).unwrap();
    assert_eq!(inputs["positions"].dims(), [60, 3]);
    let out = model.forward(&inputs).unwrap();
    assert_eq!((out["grad_forces"].dims(), out["energy"].dims()), (&[60, 3][..], &[2][..]));
    assert!(out["senders"].dim(0).unwrap() > 60 * 60, "{:?}", out["senders"].dims());
    assert!(model.sample("forward", &SampleSizes { rows: 1, tokens: 0, images: 1 }).is_err());
    assert!(model.sample("generate", &SampleSizes { rows: 1, tokens: 5, images: 0 }).is_err());
}

#[test]
fn inputs_that_make_no_structures_are_refused() {
    let model = opened("v3_conservative_crystal");
    let whole = model.sample("forward", &SampleSizes { rows: 2, tokens: 4, images: 0 }).unwrap();
    for (name, wanted) in [
        ("positions", "coordinates"),
        ("cell", "cell has 9"),
        ("n_node", "n_node is"),
        ("charge", "charge has 1 numbers"),
    ] {
        let mut odd = whole.clone();
        let part = match name {
            "positions" | "n_node" => odd[name].narrow(0, 0, 1).unwrap(),
            // One is everybody's, so that three fit nobody.
            _ => candle_core::Tensor::cat(&[&odd[name], &odd[name].narrow(0, 0, 1).unwrap()], 0).unwrap(),
        };
        odd.insert(name.into(), part);
        let error = model.forward(&odd).unwrap_err().to_string();
        let wanted = wanted.replace("9", "27").replace("has 1 ", "has 3 ");
        assert!(error.contains(&wanted), "{error}");
    }
    let mut missing = whole.clone();
    missing.remove("atomic_numbers");
    assert!(model.forward(&missing).unwrap_err().to_string().contains("atomic_numbers is missing"));
}

#[test]
fn a_checkpoint_says_what_it_has_beside_its_network() {
    let more = opened("v3_direct_more_heads");
    assert!(more.card().notes.iter().any(|note| note.contains("dipole")), "{:?}", more.card().notes);
    assert_eq!(more.card().system, "Orbital");
    let molecules = opened("v3_conservative_omol");
    assert!(molecules.card().notes.iter().any(|note| note.contains("spin multiplicity")));
}
