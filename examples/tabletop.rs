//! Evaluates a scripted expert and a robot policy in a simulated table-top, on the same scenes.
//!
//!     cargo run --release --example tabletop -- openvla/openvla-7b bridge_orig
//!
//! Without arguments it uses a tiny model with random weights:
//!
//!     expert: 10 of 10 scenes, 16 steps each
//!     openvla: 0 of 10 scenes, 80 steps each (random weights)
//!     tabletop.gif: "pick up the blue block", the expert on the left

use anyhow::Context;
use fauna::image::{sheet, to_gif};
use fauna::model::Policy;
use fauna::tabletop::{Expert, SceneConfig, evaluate, run_episode};
use fauna::{Image, LoadOptions, Result};

const SCENES: std::ops::Range<u64> = 0..10;
const SHOWN: u64 = 4;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let source = arguments.next();
    let model = match &source {
        Some(source) => fauna::open(source)?,
        None => {
            let config = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/configs/openvla");
            fauna::open_with(config, &LoadOptions::default().with_random_weights(7))?
        }
    };
    let config = SceneConfig { unnorm_key: arguments.next(), ..SceneConfig::default() };

    let mut films = Vec::new();
    let players: [(&str, &dyn Policy); 2] = [("expert", &Expert), (model.card().family, model.policy()?)];
    for (name, policy) in players {
        let score = evaluate(policy, SCENES, &config)?;
        let (each, random) = (score.steps / score.episodes, source.is_none() && name != "expert");
        let why = if random { " (random weights)" } else { "" };
        println!("{name}: {} of {} scenes, {each} steps each{why}", score.successes, score.episodes);
        films.push(run_episode(policy, SHOWN, &config)?);
    }

    // Side by side; the shorter episode is padded with its last frame.
    let frames: Vec<Vec<&Image>> = films.iter().map(|film| film.frames().collect()).collect();
    let longest = frames.iter().map(Vec::len).max().unwrap_or(0);
    let at = |film: &Vec<&Image>, time: usize| film[time.min(film.len() - 1)].clone();
    let both = (0..longest).map(|time| sheet::grid(&[at(&frames[0], time), at(&frames[1], time)], 2));
    let path = "tabletop.gif";
    let bytes = to_gif(&both.collect::<Result<Vec<_>>>()?, 8.0)?;
    std::fs::write(path, bytes).with_context(|| format!("cannot write {path}"))?;
    println!("{path}: \"{}\", the expert on the left", films[0].instruction);
    Ok(())
}
