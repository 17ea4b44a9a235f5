use fauna_shared::ErrorKind;
use fauna_shared::model::{Controller, DegreeOfFreedom, Observation, Policy, Task};

use super::*;

fn blind() -> SceneConfig {
    SceneConfig { render: false, ..SceneConfig::default() }
}

const SMOOTH: SmoothExpert = SmoothExpert { turns_within: f64::INFINITY };

fn scene(seed: u64) -> Scene {
    Scene::new(seed, &SceneConfig::default()).unwrap()
}

/// Does the same always.
struct Always(Vec<f64>);

impl Policy for Always {
    fn start(&self, _: &Task) -> fauna_shared::Result<Box<dyn Controller + '_>> {
        Ok(Box::new(Always(self.0.clone())))
    }
}

impl Controller for Always {
    fn act(&mut self, _: &Observation) -> fauna_shared::Result<Vec<f64>> {
        Ok(self.0.clone())
    }

    fn degrees(&self) -> &[DegreeOfFreedom] {
        DegreeOfFreedom::END_EFFECTOR
    }
}

#[test]
fn the_expert_picks_up_whatever_it_is_told_to() {
    let score = evaluate(&Expert, 0..200, &blind()).unwrap();
    assert_eq!((score.episodes, score.successes), (200, 200));
    let six = SceneConfig { blocks: 6, ..blind() };
    assert_eq!(evaluate(&Expert, 0..100, &six).unwrap().success_rate(), 1.0);
}

#[test]
fn the_expert_stacks() {
    for blocks in [2, 6] {
        let config = SceneConfig { task: TaskKind::Stack, blocks, ..blind() };
        let failed: Vec<u64> =
            (0..100).filter(|seed| !run_episode(&Expert, *seed, &config).unwrap().success).collect();
        assert!(failed.is_empty(), "with {blocks} blocks it fails for {failed:?}");
    }
    let any = SceneConfig { task: TaskKind::Any, ..blind() };
    let asked: Vec<String> =
        (0..20).map(|seed| run_episode(&Expert, seed, &any).unwrap().instruction).collect();
    assert!(asked.iter().any(|words| words.starts_with("put the ")));
    assert!(asked.iter().any(|words| words.starts_with("pick up the ")));
}

#[test]
fn the_smooth_expert_picks_up_whatever_it_is_told_to_in_any_words() {
    for (blocks, turns_within) in [(1, 0.06), (3, f64::INFINITY), (6, 0.06)] {
        let config = SceneConfig { blocks, wording: Wording::Varied, ..blind() };
        let score = evaluate(&SmoothExpert { turns_within }, 0..100, &config).unwrap();
        assert_eq!((score.successes, score.took_other), (100, 0), "with {blocks} blocks");
    }
    let error = SMOOTH.start(&Task::from("put the red block on the blue block")).err().unwrap();
    assert!(error.to_string().contains("stack"), "{error}");
}

#[test]
fn varied_words_say_the_same_of_the_same_scene() {
    let any = SceneConfig { task: TaskKind::Any, wording: Wording::Varied, ..blind() };
    let mut said = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let (plain, varied) = (
            Scene::new(seed, &SceneConfig { wording: Wording::Plain, ..any.clone() }),
            Scene::new(seed, &any),
        );
        let (plain, varied) = (plain.unwrap(), varied.unwrap());
        assert_eq!((plain.state(), plain.goal()), (varied.state(), varied.goal()));
        assert!(run_episode(&Expert, seed, &any).unwrap().success, "{}", varied.instruction());
        said.insert(varied.instruction().split(' ').next().unwrap().to_string());
    }
    assert!(said.len() > 8, "{said:?}");
}

#[test]
fn the_camera_on_the_carriage_sees_the_gripper_in_one_place() {
    let config = SceneConfig { view: View::Carriage, blocks: 1, image_size: 96, ..SceneConfig::default() };
    let mut scene = Scene::new(3, &config).unwrap();
    let columns = |scene: &Scene, wanted: fn(&[u8]) -> bool| {
        let frame = scene.frame();
        let found: Vec<usize> =
            (0..96 * 96).filter(|i| wanted(&frame.rgb[3 * i..3 * i + 3])).map(|i| i % 96).collect();
        found.iter().sum::<usize>() as f64 / found.len().max(1) as f64
    };
    let white: fn(&[u8]) -> bool = |pixel| pixel.iter().all(|level| *level > 215);
    let coloured: fn(&[u8]) -> bool = |pixel| pixel.iter().max().unwrap() - pixel.iter().min().unwrap() > 90;
    let (gripper, block) = (columns(&scene, white), columns(&scene, coloured));
    for _ in 0..3 {
        scene.step(&[0.03, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]).unwrap();
    }
    assert!((columns(&scene, white) - gripper).abs() < 3.0, "the shell of the gripper stays");
    assert!(columns(&scene, coloured) < block - 8.0, "the block moves to the left");
}

#[test]
fn a_block_that_was_not_named_is_counted_if_it_is_taken() {
    struct Mistaken;
    impl Policy for Mistaken {
        fn start(&self, task: &Task) -> fauna_shared::Result<Box<dyn Controller + '_>> {
            let other = ["red", "green"].into_iter().find(|name| !task.instruction.contains(name)).unwrap();
            SMOOTH.start(&Task::from(format!("pick up the {other} block").as_str()))
        }
    }
    let config = SceneConfig { blocks: 6, ..blind() };
    let score = evaluate(&Mistaken, 0..5, &config).unwrap();
    assert_eq!((score.successes, score.took_other), (0, 5));
}

#[test]
fn doing_nothing_does_not_succeed() {
    let still = Always(vec![0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    let score = evaluate(&still, 0..20, &blind()).unwrap();
    assert_eq!((score.successes, score.steps), (0, 20 * 80));
    let grabbing = Always(vec![0.0, 0.0, -0.02, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(evaluate(&grabbing, 0..20, &blind()).unwrap().successes, 0);
}

#[test]
fn a_seed_is_a_scene() {
    let config = SceneConfig { image_size: 64, ..SceneConfig::default() };
    let (one, again) = (run_episode(&Expert, 5, &config).unwrap(), run_episode(&Expert, 5, &config).unwrap());
    assert_eq!(one, again);
    assert_ne!(scene(5).state(), scene(6).state());
    assert_eq!(one.frames().count(), one.steps.len() + 1);
    assert!(one.frames().all(|frame| (frame.width, frame.height) == (64, 64)));
    assert_ne!(one.steps[0].frame, one.last_frame);
}

#[test]
fn records_are_fit_to_train_on() {
    let episodes: Vec<Episode> = (0..5).map(|seed| run_episode(&Expert, seed, &blind()).unwrap()).collect();
    for episode in &episodes {
        let records: Vec<TrainingStep> = episode.training_steps().collect();
        assert!(records[0].is_first && !records[0].is_last && records[records.len() - 1].is_last);
        assert!(records.iter().all(|record| record.instruction == episode.instruction));
        // The same actions from the same seed end where the expert ended.
        let mut scene = scene(episode.seed);
        for record in records {
            assert_eq!(scene.state(), record.state);
            scene.step(record.action).unwrap();
        }
        assert!(scene.is_done());
    }
    assert!(dataset_statistics("tabletop", &[]).is_err());
}

#[test]
fn nothing_passes_through_a_block_or_the_table() {
    let mut scene = scene(1);
    let target = scene.blocks()[0].position;
    // Over a block with one jaw, then down.
    for _ in 0..40 {
        let place = scene.gripper().position;
        let by = |axis: usize, to: f64| to - place[axis];
        scene.step(&[by(0, target[0] + 0.04), by(1, target[1]), 0.0, 0.0, 0.0, 0.0, 1.0]).unwrap();
    }
    for _ in 0..40 {
        scene.step(&[0.0, 0.0, -0.03, 0.0, 0.0, 0.0, 1.0]).unwrap();
    }
    assert!(scene.gripper().position[2] >= 0.04 - 1e-9, "it stands on the block");
    for _ in 0..40 {
        scene.step(&[1.0, -1.0, 0.03, 9.0, -9.0, 9.0, -3.0]).unwrap();
    }
    let gripper = scene.gripper();
    assert_eq!((gripper.position[0], gripper.position[1], gripper.opening), (0.21, -0.19, 0.0));
    assert!(gripper.rotation.iter().all(|turn| turn.abs() <= std::f64::consts::PI));
}

#[test]
fn what_cannot_be_played_is_refused() {
    let bad = [
        SceneConfig { blocks: 0, ..blind() },
        SceneConfig { blocks: 7, ..blind() },
        SceneConfig { blocks: 1, task: TaskKind::Stack, ..blind() },
        SceneConfig { image_size: 0, ..blind() },
        SceneConfig { image_size: usize::MAX, ..blind() },
    ];
    for config in bad {
        assert_eq!(Scene::new(0, &config).unwrap_err().kind(), ErrorKind::Input, "{config:?}");
    }
    for action in [vec![0.0; 6], vec![0.0; 8], vec![f64::NAN; 7], vec![f64::INFINITY; 7]] {
        assert_eq!(scene(0).step(&action).unwrap_err().kind(), ErrorKind::Input);
        assert!(run_episode(&Always(action), 0, &blind()).is_err());
    }
    let error = Expert.start(&Task::from("make coffee")).err().unwrap().to_string();
    assert!(error.contains("make coffee") && error.contains("pick up the COLOUR block"), "{error}");
    let mut expert = Expert.start(&Task::from("pick up the red block")).unwrap();
    let frame = scene(0).frame();
    assert!(expert.act(&Observation::from(&frame)).is_err(), "it reads the state, and there is none");
}

#[test]
fn every_colour_is_seen() {
    let six = SceneConfig { blocks: 6, ..SceneConfig::default() };
    let scene = Scene::new(2, &six).unwrap();
    let frame = scene.frame();
    for colour in Colour::ALL {
        let wanted = colour.rgb();
        // Some pixel points the way of the colour, whatever its shade.
        let near = |pixel: &[u8]| {
            let pixel: Vec<f32> = pixel.iter().map(|level| f32::from(*level) / 255.0).collect();
            let (top, most) =
                (pixel.iter().copied().fold(0.0, f32::max), wanted.iter().copied().fold(0.0, f32::max));
            top > 0.3 && (0..3).all(|k| (pixel[k] / top - wanted[k] / most).abs() < 0.04)
        };
        let count = frame.rgb.chunks_exact(3).filter(|pixel| near(pixel)).count();
        assert!(count > 30, "{} covers {count} pixels", colour.name());
    }
}
