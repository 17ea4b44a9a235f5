use fauna_shared::generate::Rng;

use super::*;
use crate::testing::{LennardJones, Springs, argon};

/// `atoms` with every position moved at random and the cell strained.
fn distorted(mut atoms: Atoms, by: f64, strain: Matrix) -> Atoms {
    let mut random = Rng::new(11, 0);
    let change = std::array::from_fn(|i| cell::sum(&IDENTITY[i], &strain[i]));
    for position in &mut atoms.positions {
        *position = position.map(|value| value + by * (random.uniform() - 0.5));
        *position = cell::times(position, &change);
    }
    atoms.cell = atoms.cell.map(|cell| cell::product(&cell, &change));
    atoms
}

const SHEAR: Matrix = [[0.03, 0.02, 0.0], [0.0, -0.02, 0.01], [0.0, 0.0, 0.04]];

fn quiet(_: &RelaxStep) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn both_optimizers_find_the_crystal_again() {
    for optimizer in [Optimizer::Fire, Optimizer::Lbfgs] {
        let perfect = LennardJones::ARGON.evaluate(&[argon(2)]).unwrap().remove(0).energy;
        let options = RelaxOptions { optimizer, max_force: 1e-4, ..RelaxOptions::default() };
        let start = distorted(argon(2), 0.5, [[0.0; 3]; 3]);
        let ended = relax(&LennardJones::ARGON, &[start], &options, &mut quiet).unwrap().remove(0);
        assert!(ended.converged, "{optimizer:?} after {} steps", ended.steps);
        assert!(
            (ended.evaluation.energy - perfect).abs() < 1e-4,
            "{optimizer:?}: {}",
            ended.evaluation.energy
        );
        assert!(ended.steps < 300, "{optimizer:?} took {}", ended.steps);
    }
}

#[test]
fn a_free_cell_loses_its_stress() {
    for optimizer in [Optimizer::Fire, Optimizer::Lbfgs] {
        let options = RelaxOptions {
            optimizer,
            cell: CellRelaxation::Free,
            max_force: 1e-3,
            max_stress: 1e-5,
            max_steps: 1000,
        };
        let start = distorted(argon(2), 0.2, SHEAR);
        let ended = relax(&LennardJones::ARGON, &[start], &options, &mut quiet).unwrap().remove(0);
        assert!(ended.converged, "{optimizer:?} after {} steps", ended.steps);
        let stress = ended.evaluation.stress.unwrap();
        assert!(stress.iter().all(|value| value.abs() <= 1e-5), "{stress:?}");
        let cell = ended.atoms.cell.unwrap();
        let angle = cell::dot(&cell[0], &cell[1]) / cell::norm(&cell[0]) / cell::norm(&cell[1]);
        assert!(angle.abs() < 2e-3, "{optimizer:?}: the cell is no cube again: {cell:?}");
    }
}

#[test]
fn a_hydrostatic_cell_keeps_its_shape() {
    let options = RelaxOptions {
        cell: CellRelaxation::Hydrostatic,
        max_force: 1e-3,
        max_stress: 1e-5,
        max_steps: 1000,
        ..RelaxOptions::default()
    };
    let start = distorted(argon(2), 0.0, SHEAR);
    let before = start.cell.unwrap();
    let ended = relax(&LennardJones::ARGON, &[start], &options, &mut quiet).unwrap().remove(0);
    assert!(ended.converged);
    let after = ended.atoms.cell.unwrap();
    let factor = after[0][0] / before[0][0];
    for (a, b) in after.iter().flatten().zip(before.iter().flatten()) {
        assert!((a - factor * b).abs() < 1e-9);
    }
    let [xx, yy, zz, ..] = ended.evaluation.stress.unwrap();
    assert!((xx + yy + zz).abs() <= 3e-5 && factor != 1.0);
}

#[test]
fn structures_side_by_side_go_as_they_go_alone() {
    let structures =
        [distorted(argon(1), 0.3, [[0.0; 3]; 3]), argon(1), distorted(argon(2), 0.4, [[0.0; 3]; 3])];
    let options = RelaxOptions { max_force: 1e-3, ..RelaxOptions::default() };
    let together = relax(&LennardJones::ARGON, &structures, &options, &mut quiet).unwrap();
    for (index, structure) in structures.iter().enumerate() {
        let alone =
            relax(&LennardJones::ARGON, std::slice::from_ref(structure), &options, &mut quiet).unwrap();
        assert_eq!(together[index], alone[0]);
    }
    assert_eq!(together[1].steps, 0);
}

#[test]
fn steps_are_told_and_may_be_stopped() {
    let mut energies = Vec::new();
    let options = RelaxOptions { max_force: 1e-9, max_steps: 7, ..RelaxOptions::default() };
    let start = [distorted(argon(1), 0.3, [[0.0; 3]; 3])];
    let ended = relax(&LennardJones::ARGON, &start, &options, &mut |step| {
        assert_eq!((step.structure, step.step), (0, energies.len()));
        energies.push(step.evaluation.energy);
        ControlFlow::Continue(())
    });
    assert_eq!(energies.len(), 8);
    assert!(energies[7] < energies[0] && !ended.unwrap()[0].converged);
    let stopped = relax(&LennardJones::ARGON, &start, &options, &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!((stopped[0].steps, stopped[0].atoms.clone()), (0, start[0].clone()));
}

#[test]
fn what_cannot_be_relaxed_is_named() {
    let molecule =
        Atoms { numbers: vec![1, 1], positions: vec![[0.0; 3], [1.2, 0.0, 0.0]], ..Atoms::default() };
    let springs = Springs { stiffness: 5.0, rest: 1.0 };
    let free = RelaxOptions { cell: CellRelaxation::Free, ..RelaxOptions::default() };
    let error = relax(&springs, &[argon(1), molecule.clone()], &free, &mut quiet).unwrap_err().to_string();
    assert!(error.contains("structure 1: the cell cannot be relaxed"), "{error}");
    let error = relax(&springs, &[argon(1)], &free, &mut quiet).unwrap_err().to_string();
    assert!(error.contains("structure 0") && error.contains("computes no stress"), "{error}");
    let empty = relax(&springs, &[molecule.clone(), Atoms::default()], &RelaxOptions::default(), &mut quiet);
    assert!(empty.unwrap_err().to_string().contains("structure 1: there are no atoms"));
    let mut upon = molecule.clone();
    upon.positions[1] = [0.01, 0.0, 0.0];
    let error = relax(&LennardJones::ARGON, &[molecule.clone(), upon], &RelaxOptions::default(), &mut quiet);
    assert!(error.unwrap_err().to_string().contains("structure 1: atoms overlap"));
    let odd = RelaxOptions { max_force: 0.0, ..RelaxOptions::default() };
    assert!(relax(&springs, &[molecule], &odd, &mut quiet).is_err());
}

#[test]
fn held_atoms_stay_where_they_are_and_their_forces_do_not_count() {
    for optimizer in [Optimizer::Fire, Optimizer::Lbfgs] {
        let mut start = distorted(argon(2), 0.5, [[0.0; 3]; 3]);
        start.held = (0..32).map(|index| [index < 8, index < 8, index < 12]).collect();
        let options = RelaxOptions { optimizer, max_force: 1e-4, ..RelaxOptions::default() };
        let ended = relax(&LennardJones::ARGON, &[start.clone()], &options, &mut quiet).unwrap().remove(0);
        assert!(ended.converged, "{optimizer:?} after {} steps", ended.steps);
        assert_eq!(ended.atoms.positions[..8], start.positions[..8]);
        for (now, then) in ended.atoms.positions[8..12].iter().zip(&start.positions[8..12]) {
            assert!(now[2] == then[2] && now[0] != then[0]);
        }
        assert_ne!(ended.atoms.positions[20][2], start.positions[20][2]);
        assert!(
            cell::norm(&ended.evaluation.forces[0]) > 1e-3,
            "the evaluation has the unconstrained forces"
        );
    }
}

#[test]
fn held_atoms_go_with_a_cell_that_changes() {
    let mut start = distorted(argon(2), 0.2, SHEAR);
    start.held = (0..32).map(|index| [index < 4; 3]).collect();
    let options = RelaxOptions {
        cell: CellRelaxation::Free,
        max_steps: 20,
        max_force: 1e-6,
        ..RelaxOptions::default()
    };
    let ended = relax(&LennardJones::ARGON, &[start.clone()], &options, &mut quiet).unwrap().remove(0);
    let (before, after) = (cell::inverse(&start.cell.unwrap()), cell::inverse(&ended.atoms.cell.unwrap()));
    for index in 0..6 {
        let then = cell::times(&start.positions[index], &before);
        let now = cell::times(&ended.atoms.positions[index], &after);
        let moved = cell::norm(&cell::difference(&now, &then));
        assert_eq!(moved < 1e-12, index < 4, "atom {index}: {moved}");
    }
    assert_ne!(start.cell, ended.atoms.cell);
}
