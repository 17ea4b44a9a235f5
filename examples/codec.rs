//! Encodes audio to codes with a neural codec, and decodes them again.
//!
//!     cargo run --release --example codec -- facebook/encodec_24khz song.mp3 again.wav
//!
//! Without arguments it uses a small codec with random weights, whose output is noise.

use anyhow::Context;
use std::f32::consts::TAU;
use std::ops::ControlFlow;

use fauna::sound::{read, write};
use fauna::{GenerationConfig, Item, LoadOptions, Pipeline, Prompt, Sound};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let codec = match arguments.next() {
        Some(source) => fauna::open(&source)?,
        None => {
            let config = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/configs/encodec");
            fauna::open_with(config, &LoadOptions::default().with_random_weights(7))?
        }
    };
    let sound = match arguments.next() {
        Some(path) => read::read(path)?.sound,
        None => chord(),
    };
    let path = arguments.next().unwrap_or_else(|| "codec.wav".into());
    let seconds = sound.channels[0].len() as f64 / f64::from(sound.rate);

    let Item::Codes(codes) = recode(codec.as_ref(), Item::Sound(sound))? else {
        anyhow::bail!("expected a codec");
    };
    for (name, tensor) in &codes {
        println!("{name} {:?}", tensor.dims());
    }
    let Item::Sound(again) = recode(codec.as_ref(), Item::Codes(codes))? else {
        anyhow::bail!("expected a codec");
    };
    write::write(&path, &again, write::Samples::Int16, write::Level::Peak)?;
    println!(
        "{path}: {seconds:.2} s in, {:.2} s out",
        again.channels[0].len() as f64 / f64::from(again.rate)
    );
    Ok(())
}

/// Encodes audio, or decodes codes.
fn recode(codec: &dyn Pipeline, item: Item) -> anyhow::Result<Item> {
    let mut made = None;
    codec.generate(&Prompt::Items(vec![item]), &GenerationConfig::default(), &mut |item| {
        made = Some(item);
        ControlFlow::Continue(())
    })?;
    made.context("the codec returned no output")
}

/// Returns one second of an A major chord at 24 kHz, mono.
fn chord() -> Sound {
    let at = |t: usize| {
        [220.0, 277.18, 329.63].map(|hz| (TAU * hz * t as f32 / 24_000.0).sin()).iter().sum::<f32>()
    };
    Sound { rate: 24_000, channels: vec![(0..24_000).map(|t| 0.3 * at(t)).collect()] }
}
