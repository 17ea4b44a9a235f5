//! Words to music: a WAV file that grows while it is made.
//!
//!     cargo run --release --example music -- facebook/musicgen-small "a slow waltz" waltz.wav
//!
//! Without a model it takes a small one of random weights, which knows no words and makes noise.

use std::ops::ControlFlow;

use fauna::sound::write::{Level, Samples, WavWriter};
use fauna::{Error, GenerationConfig, Item, LoadOptions, Prompt, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = match arguments.next() {
        Some(source) => fauna::open(&source)?,
        None => {
            let config = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/configs/musicgen");
            fauna::open_with(config, &LoadOptions { random_weights: Some(7), ..LoadOptions::default() })?
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

    let file = file.ok_or_else(|| Error::input("the model made no sound"))?;
    let frames = file.frames();
    let factor = file.finish()?;
    println!("{path}: {frames} samples a channel, brought to its level by {factor:.3}");
    Ok(())
}

/// The next piece of sound at the end of `file`, which its first piece creates.
fn append(file: &mut Option<WavWriter>, path: &str, item: Item) -> Result<()> {
    let Item::Sound(piece) = item else { return Err(Error::input("a model of music is wanted")) };
    let file = match file {
        Some(file) => file,
        None => {
            let channels = piece.channels.len();
            file.insert(WavWriter::create(path, piece.rate, channels, Samples::Int16, Level::Peak)?)
        }
    };
    file.append(&piece.channels)
}
