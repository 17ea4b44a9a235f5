use super::*;
use crate::elements;
use crate::testing::{LennardJones, Springs, argon};

fn follow(
    potential: &dyn Potential,
    state: DynamicsState,
    options: &DynamicsOptions,
) -> (DynamicsState, Vec<(f64, f64, f64)>) {
    let mut moments = Vec::new();
    let last = dynamics(potential, state, options, &mut |step| {
        moments.push((step.time, step.evaluation.energy + step.kinetic_energy, step.temperature));
        ControlFlow::Continue(())
    });
    (last.unwrap(), moments)
}

#[test]
fn a_spring_swings_with_its_period() {
    // Two hydrogens on a spring of k: the period is 2π √(μ / k).
    let atoms = Atoms { numbers: vec![1, 1], positions: vec![[0.0; 3], [1.1, 0.0, 0.0]], ..Atoms::default() };
    let springs = Springs { stiffness: 10.0, rest: 1.0 };
    let reduced = elements::atomic_mass(1) / 2.0;
    let period = std::f64::consts::TAU * (reduced / (10.0 * ACCELERATION)).sqrt();
    let options = DynamicsOptions { time_step: period / 1000.0, steps: 1000, ..DynamicsOptions::default() };
    let (last, moments) = follow(&springs, DynamicsState::at_rest(atoms.clone()), &options);
    assert!((last.atoms.positions[1][0] - 1.1).abs() < 1e-4, "{:?}", last.atoms.positions);
    assert!((moments[1000].0 - period).abs() < 1e-9);
    let drift = moments.iter().map(|(_, energy, _)| (energy - 0.05).abs()).fold(0.0, f64::max);
    assert!(drift < 1e-6, "{drift}");
}

#[test]
fn energy_and_momentum_stay_without_a_bath() {
    let state = DynamicsState::at_temperature(argon(2), 60.0, 3).unwrap();
    assert!((state.temperature() - 60.0).abs() < 1e-9);
    let options = DynamicsOptions { time_step: 2.0, steps: 400, ..DynamicsOptions::default() };
    let (last, moments) = follow(&LennardJones::ARGON, state, &options);
    let start = moments[0].1;
    let off = moments.iter().map(|(_, energy, _)| (energy - start).abs()).fold(0.0, f64::max);
    assert!(off < 2e-4 * 32.0, "the energy is off by {off} eV");
    let momentum = last.velocities.iter().fold([0.0; 3], |all, velocity| cell::sum(&all, velocity));
    assert!(cell::norm(&momentum) < 1e-12, "{momentum:?}");
}

#[test]
fn half_the_time_step_makes_a_quarter_of_the_error() {
    let worst = |time_step: f64| {
        let state = DynamicsState::at_temperature(argon(2), 60.0, 3).unwrap();
        let options =
            DynamicsOptions { time_step, steps: (400.0 / time_step) as usize, ..DynamicsOptions::default() };
        let (_, moments) = follow(&LennardJones::ARGON, state, &options);
        moments.iter().map(|(_, energy, _)| (energy - moments[0].1).abs()).fold(0.0, f64::max)
    };
    let ratio = worst(8.0) / worst(4.0);
    assert!((3.0..5.5).contains(&ratio), "{ratio}");
}

#[test]
fn a_bath_brings_its_temperature() {
    let ensemble = Ensemble::Langevin { temperature: 80.0, friction: 0.05 };
    let options = DynamicsOptions { time_step: 4.0, steps: 3000, ensemble, seed: 1 };
    let (_, moments) =
        follow(&Springs { stiffness: 1.0, rest: 3.7 }, DynamicsState::at_rest(argon(2)), &options);
    let late: Vec<f64> = moments[1000..].iter().map(|step| step.2).collect();
    // 32 atoms swing about a mean that counts the drift, a share of 96/93.
    let mean = late.iter().sum::<f64>() / late.len() as f64 * 93.0 / 96.0;
    assert!((mean - 80.0).abs() < 5.0, "{mean}");
}

#[test]
fn the_same_seed_runs_the_same_way_and_each_may_stop() {
    let ensemble = Ensemble::Langevin { temperature: 80.0, friction: 0.05 };
    let run = |seed| {
        let options = DynamicsOptions { steps: 10, ensemble, seed, ..DynamicsOptions::default() };
        follow(&LennardJones::ARGON, DynamicsState::at_rest(argon(1)), &options).0
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    let mut seen = 0;
    let state = DynamicsState::at_rest(argon(1));
    let stopped = dynamics(&LennardJones::ARGON, state, &DynamicsOptions::default(), &mut |_| {
        seen += 1;
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(stopped.is_ok() && seen == 3);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let go = |options: DynamicsOptions| {
        dynamics(&LennardJones::ARGON, DynamicsState::at_rest(argon(1)), &options, &mut |_| {
            ControlFlow::Continue(())
        })
    };
    for time_step in [0.0, -1.0, f64::NAN, 1e9] {
        let error = go(DynamicsOptions { time_step, ..DynamicsOptions::default() }).unwrap_err().to_string();
        assert!(error.contains("time step"), "{error}");
    }
    let ensemble = Ensemble::Langevin { temperature: -1.0, friction: 0.01 };
    assert!(
        go(DynamicsOptions { ensemble, ..DynamicsOptions::default() })
            .unwrap_err()
            .to_string()
            .contains("temperature")
    );
    let ensemble = Ensemble::Langevin { temperature: 1.0, friction: 0.0 };
    assert!(
        go(DynamicsOptions { ensemble, ..DynamicsOptions::default() })
            .unwrap_err()
            .to_string()
            .contains("friction")
    );
    assert!(DynamicsState::at_temperature(argon(1), f64::INFINITY, 0).is_err());
    let state = DynamicsState { velocities: vec![], ..DynamicsState::at_rest(argon(1)) };
    let run =
        dynamics(
            &LennardJones::ARGON,
            state,
            &DynamicsOptions::default(),
            &mut |_| ControlFlow::Continue(()),
        );
    assert!(run.unwrap_err().to_string().contains("0 velocities for 4 atoms"));
}

#[test]
fn held_atoms_stay_and_the_temperature_counts_the_others() {
    let mut atoms = argon(2);
    atoms.held =
        (0..32).map(|index| if index < 16 { [true; 3] } else { [false, false, index < 20] }).collect();
    let state = DynamicsState::at_temperature(atoms.clone(), 60.0, 3).unwrap();
    // 12 atoms with three directions and 4 with two.
    let wanted = 0.5 * 44.0 * BOLTZMANN * 60.0;
    assert!((state.temperature() - 60.0).abs() < 1e-9 && (state.kinetic_energy() - wanted).abs() < 1e-12);
    for ensemble in [Ensemble::Nve, Ensemble::Langevin { temperature: 60.0, friction: 0.05 }] {
        let options = DynamicsOptions { time_step: 2.0, steps: 50, ensemble, ..DynamicsOptions::default() };
        let (last, _) = follow(&LennardJones::ARGON, state.clone(), &options);
        assert_eq!(last.atoms.positions[..16], atoms.positions[..16]);
        for (now, then) in last.atoms.positions[16..20].iter().zip(&atoms.positions[16..20]) {
            assert!(now[2] == then[2] && now[0] != then[0]);
        }
        assert_ne!(last.atoms.positions[31][2], atoms.positions[31][2]);
    }
}

#[test]
fn an_isotope_swings_slower() {
    let atoms = Atoms {
        numbers: vec![1, 1],
        positions: vec![[0.0; 3], [1.1, 0.0, 0.0]],
        masses: vec![2.014; 2],
        ..Atoms::default()
    };
    let springs = Springs { stiffness: 10.0, rest: 1.0 };
    let period = std::f64::consts::TAU * (1.007 / (10.0 * ACCELERATION)).sqrt();
    let options = DynamicsOptions { time_step: period / 1000.0, steps: 1000, ..DynamicsOptions::default() };
    let (last, _) = follow(&springs, DynamicsState::at_rest(atoms), &options);
    assert!((last.atoms.positions[1][0] - 1.1).abs() < 1e-4, "{:?}", last.atoms.positions);
}
