//! Encodes audio to codes with a neural codec, and decodes them again.
//!
//!     cargo run --release --example codec -- facebook/encodec_24khz song.mp3 again.wav
//!
//! Without arguments it uses a small codec with random weights, whose output is noise.

use std::f32::consts::TAU;
use std::ops::ControlFlow;

use fauna::sound::{read, write};
use fauna::{Error, GenerationConfig, Item, LoadOptions, Pipeline, Prompt, Result, Sound};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let codec = match arguments.next() {
        Some(source) => fauna::open(&source)?,
        None => {
            let config = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/configs/encodec");
            fauna::open_with(config, &LoadOptions { random_weights: Some(7), ..LoadOptions::default() })?
        }
    };
    let sound = match arguments.next() {
        Some(path) => read::read(path)?.sound,
        None => chord(),
    };
    let path = arguments.next().unwrap_or_else(|| "codec.wav".into());
    let seconds = sound.channels[0].len() as f64 / f64::from(sound.rate);

    let Item::Codes(codes) = recode(codec.as_ref(), Item::Sound(sound))? else {
        return Err(Error::input("expected a codec"));
    };
    for (name, tensor) in &codes {
        println!("{name} {:?}", tensor.dims());
    }
    let Item::Sound(again) = recode(codec.as_ref(), Item::Codes(codes))? else {
        return Err(Error::input("expected a codec"));
    };
    write::write(&path, &again, write::Samples::Int16, write::Level::Peak)?;
    println!(
        "{path}: {seconds:.2} s in, {:.2} s out",
        again.channels[0].len() as f64 / f64::from(again.rate)
    );
    Ok(())
}

/// Encodes audio, or decodes codes.
fn recode(codec: &dyn Pipeline, item: Item) -> Result<Item> {
    let mut made = None;
    codec.generate(&Prompt::Items(vec![item]), &GenerationConfig::default(), &mut |item| {
        made = Some(item);
        ControlFlow::Continue(())
    })?;
    made.ok_or_else(|| Error::input("the codec returned no output"))
}

/// Returns one second of an A major chord at 24 kHz, mono.
fn chord() -> Sound {
    let at = |t: usize| {
        [220.0, 277.18, 329.63].map(|hz| (TAU * hz * t as f32 / 24_000.0).sin()).iter().sum::<f32>()
    };
    Sound { rate: 24_000, channels: vec![(0..24_000).map(|t| 0.3 * at(t)).collect()] }
}
