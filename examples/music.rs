//! Text-to-music: writes a WAV file while it is generated.
//!
//!     cargo run --release --example music -- facebook/musicgen-small "a slow waltz" waltz.wav
//!
//! Without arguments it uses a small unconditional model with random weights, whose output is noise.

use anyhow::Context;
use std::ops::ControlFlow;

use fauna::sound::write::{Level, Samples, WavWriter};
use fauna::{Error, GenerationConfig, Item, LoadOptions, Prompt, Result};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = match arguments.next() {
        Some(source) => fauna::open(&source)?,
        None => {
            let config = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/configs/musicgen");
            fauna::open_with(config, &LoadOptions::default().with_random_weights(7))?
        }
    };
    let words = arguments.next().unwrap_or_default();
    let path = arguments.next().unwrap_or_else(|| "music.wav".into());

    let options = GenerationConfig { seconds: Some(5.0), seed: 7, ..model.defaults() };
    let mut file: Option<WavWriter> = None;
    let mut written = Ok(());
    model.generate(&Prompt::from(words.as_str()), &options, &mut |item| {
        written = append(&mut file, &path, item);
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written?;

    let file = file.context("the model returned no audio")?;
    let frames = file.frames();
    let factor = file.finish()?;
    println!("{path}: {frames} samples per channel, scaled by {factor:.3}");
    Ok(())
}

/// Appends a piece of audio to `file`, which is created for the first piece.
fn append(file: &mut Option<WavWriter>, path: &str, item: Item) -> Result<()> {
    let Item::Sound(piece) = item else { return Err(Error::input("expected a music generation model")) };
    let file = match file {
        Some(file) => file,
        None => {
            let channels = piece.channels.len();
            file.insert(WavWriter::create(path, piece.rate, channels, Samples::Int16, Level::Peak)?)
        }
    };
    file.append(&piece.channels)
}
