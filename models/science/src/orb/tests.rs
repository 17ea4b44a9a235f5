use std::ops::ControlFlow;

use fauna_shared::ErrorKind;
use fauna_shared::item::Atoms;
use fauna_shared::model::Potential;
use fauna_shared::runtime::Runtime;
use serde_json::{Value, json};

use super::*;
use fauna_atoms::{DynamicsOptions, DynamicsState, cell, dynamics};

fn orb(changes: Value) -> Result<Orb> {
    let mut config = sample();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    Orb::load(serde_json::from_value(config).unwrap(), &Weights::seeded(3, Runtime::cpu()))
}

fn plain() -> Orb {
    orb(json!({"has_charge_spin_cond": false, "has_electrostatics": false})).unwrap()
}

fn water() -> Atoms {
    Atoms {
        numbers: vec![8, 1, 1],
        positions: vec![[0.0, 0.0, 0.1], [0.76, 0.1, -0.5], [-0.8, 0.0, -0.45]],
        charge: Some(0.0),
        spin: Some(1.0),
        ..Atoms::default()
    }
}

fn salt() -> Atoms {
    Atoms {
        numbers: vec![11, 17],
        positions: vec![[0.1, 0.0, 0.2], [2.0, 1.9, 2.1]],
        cell: Some([[4.0, 0.3, 0.0], [0.0, 3.9, 0.2], [0.1, 0.0, 4.2]]),
        periodic: [true; 3],
        charge: Some(1.0),
        spin: Some(2.0),
        ..Atoms::default()
    }
}

fn lone() -> Atoms {
    Atoms {
        numbers: vec![26],
        positions: vec![[1.0, 2.0, 3.0]],
        charge: Some(0.0),
        spin: Some(1.0),
        ..Atoms::default()
    }
}

#[test]
fn structures_side_by_side_are_as_they_are_alone() {
    let all = [water(), salt(), lone(), water(), lone()];
    for architecture in ["orb_v3_conservative", "orb_v3_direct"] {
        let electrostatics = architecture == "orb_v3_conservative";
        let orb = orb(json!({"architecture": architecture, "has_electrostatics": electrostatics})).unwrap();
        let together = orb.evaluate(&all).unwrap();
        for (atoms, found) in all.iter().zip(&together) {
            let alone = orb.evaluate(std::slice::from_ref(atoms)).unwrap().remove(0);
            assert!((alone.energy - found.energy).abs() < 1e-5, "{} {}", alone.energy, found.energy);
            for (a, b) in alone.forces.iter().zip(&found.forces) {
                assert!(cell::norm(&cell::difference(a, b)) < 1e-5);
            }
            assert_eq!(alone.stress.is_some(), atoms.cell.is_some());
            assert_eq!(found.confidence.as_ref().unwrap().len(), atoms.numbers.len());
        }
        assert!(together[2].forces[0].iter().all(|force| force.abs() < 1e-12), "a single atom has no force");
    }
    assert!(plain().evaluate(&[]).unwrap().is_empty());
}

#[test]
fn a_bad_structure_is_named_by_its_index() {
    let model = plain();
    let unknown = Atoms { numbers: vec![8, 118, 1], ..water() };
    let mut upon = water();
    upon.positions[1] = [0.0, 0.0, 0.15];
    let flat = Atoms { cell: Some([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), ..salt() };
    let no_cell = Atoms { cell: None, ..salt() };
    let lost = Atoms { positions: vec![[f64::NAN; 3]; 3], ..water() };
    let cases = [
        (unknown, "atomic number 118"),
        (upon, "atoms 0 and 1 overlap"),
        (flat, "singular"),
        (no_cell, "periodic and zero"),
        (lost, "the position of atom 0"),
        (Atoms::default(), "there are no atoms"),
    ];
    for (bad, wanted) in cases {
        let error = model.evaluate(&[water(), bad]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input);
        assert!(
            error.to_string().starts_with("structure 1: ") && error.to_string().contains(wanted),
            "{error}"
        );
    }
    let molecules = orb(json!({})).unwrap();
    let error = molecules.evaluate(&[Atoms { spin: None, ..water() }]).unwrap_err().to_string();
    assert!(error.starts_with("this model needs the total charge"), "{error}");
}

#[test]
fn a_multiplicity_that_the_electrons_cannot_have_is_refused() {
    let model = orb(json!({})).unwrap();
    let cases = [
        (0.0, 0.0, "the spin multiplicity is 0"),
        (0.0, 1.5, "the spin multiplicity is 1.5"),
        (0.0, -1.0, "the spin multiplicity is -1"),
        (0.0, 2.0, "10 electrons cannot have the spin multiplicity 2"),
        (1.0, 1.0, "9 electrons cannot have the spin multiplicity 1"),
        (0.0, 13.0, "10 electrons cannot have the spin multiplicity 13"),
        (0.5, 1.0, "the charge is 0.5"),
        (11.0, 1.0, "the charge is 11"),
    ];
    for (charge, spin, wanted) in cases {
        let atoms = Atoms { charge: Some(charge), spin: Some(spin), ..water() };
        let error = model.evaluate(std::slice::from_ref(&atoms)).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
        // A model that does not read charge and spin does not check them.
        assert!(!plain().reads_charge() && plain().evaluate(&[atoms]).is_ok());
    }
    let radical = Atoms { charge: Some(1.0), spin: Some(4.0), ..water() };
    assert!(model.reads_charge() && model.evaluate(&[radical]).is_ok());
}

#[test]
fn atoms_in_one_place_are_refused_before_all_pairs_are_listed() {
    let count = 20_000;
    let atoms = Atoms { numbers: vec![1; count], positions: vec![[0.5; 3]; count], ..Atoms::default() };
    let error = plain().evaluate(&[atoms]).unwrap_err().to_string();
    assert!(error.contains("atoms 0 and 1 overlap"), "{error}");
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    for (changes, wanted) in [
        (json!({"use_per_atom_spins": true}), "use_per_atom_spins"),
        (json!({"radius": 0.0}), "radius"),
        (json!({"latent_dim": 14}), "latent_dim 14"),
        (json!({"latent_dim": 0}), "latent_dim"),
        (json!({"architecture": "orb_v2"}), "has_electrostatics"),
        (json!({"architecture": "orb_v2", "has_electrostatics": false}), "has_charge_spin_cond"),
        (json!({"num_message_passing_steps": 1000000}), "num_message_passing_steps"),
    ] {
        let error = orb(changes).err().expect(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

/// The step is large against the rounding of float32.
#[test]
fn forces_and_stress_are_slopes_of_the_energy() {
    for model in [plain(), orb(json!({})).unwrap()] {
        let energy = |atoms: &Atoms| model.evaluate(std::slice::from_ref(atoms)).unwrap().remove(0).energy;
        for atoms in [water(), salt()] {
            let found = model.evaluate(std::slice::from_ref(&atoms)).unwrap().remove(0);
            let h = 2e-3;
            for atom in 0..atoms.numbers.len() {
                for axis in 0..3 {
                    let moved = |by: f64| {
                        let mut moved = atoms.clone();
                        moved.positions[atom][axis] += by;
                        energy(&moved)
                    };
                    let slope = (moved(h) - moved(-h)) / (2.0 * h);
                    let force = found.forces[atom][axis];
                    assert!((slope + force).abs() < 2e-3 * (1.0 + force.abs()), "{slope} {force}");
                }
            }
            let Some(stress) = found.stress else { continue };
            let volume = cell::volume(&atoms.cell.unwrap());
            for (part, (i, j)) in [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)].into_iter().enumerate() {
                let strained = |by: f64| {
                    let mut change = cell::IDENTITY;
                    change[i][j] += by / 2.0;
                    change[j][i] += by / 2.0;
                    let mut moved = atoms.clone();
                    moved.cell = moved.cell.map(|cell| cell::product(&cell, &change));
                    for position in &mut moved.positions {
                        *position = cell::times(position, &change);
                    }
                    energy(&moved)
                };
                let slope = (strained(h) - strained(-h)) / (2.0 * h) / volume;
                assert!(
                    (slope - stress[part]).abs() < 2e-4 * (1.0 + slope.abs()),
                    "{slope} {}",
                    stress[part]
                );
            }
        }
    }
}

#[test]
fn layer_by_layer_the_way_back_is_the_same() {
    for model in [plain(), orb(json!({})).unwrap()] {
        let structures = [salt(), water(), lone()].map(|atoms| model.structure(&atoms).unwrap());
        let graph = Graph::new(&structures, model.model.device()).unwrap();
        let heads = model.heads.as_ref().unwrap();
        let (once, layers) =
            (model.at_once(heads, &graph).unwrap(), model.checkpointed(heads, &graph).unwrap());
        assert_eq!(once.energies.len(), 3);
        for (a, b) in once.energies.iter().zip(&layers.energies) {
            assert!((a - b).abs() < 1e-6);
        }
        let largest = once.slopes.iter().map(cell::norm).fold(0.0, f64::max);
        assert!(largest > 0.0);
        for (a, b) in once.slopes.iter().zip(&layers.slopes) {
            assert!(cell::norm(&cell::difference(a, b)) < 1e-4 * largest, "{a:?} {b:?}");
        }
    }
}

#[test]
fn a_conservative_model_keeps_its_energy() {
    let model = plain();
    let state = DynamicsState::at_temperature(salt(), 600.0, 1).unwrap();
    let mut energies = Vec::new();
    let options = DynamicsOptions { time_step: 0.5, steps: 200, ..DynamicsOptions::default() };
    dynamics(&model, state, &options, &mut |moment| {
        energies.push((moment.evaluation.energy + moment.kinetic_energy, moment.kinetic_energy));
        ControlFlow::Continue(())
    })
    .unwrap();
    let start = energies[0].0;
    let off = energies.iter().map(|(whole, _)| (whole - start).abs()).fold(0.0, f64::max);
    let swing = |part: fn(&(f64, f64)) -> f64| {
        let all = energies.iter().map(part);
        all.clone().fold(f64::MIN, f64::max) - all.fold(f64::MAX, f64::min)
    };
    assert!(off < 2e-4, "off by {off} eV, while {} eV of motion came and went", swing(|moment| moment.1));
}
