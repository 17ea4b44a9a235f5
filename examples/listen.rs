//! Answers a question about a piece of music.
//!
//!     cargo run --release --example listen -- LLARK_FOLDER song.mp3 "What is the tempo?"
//!
//! LLark's weights were never released: the folder has Llama 2 and a projector that you trained, and Jukebox's files in
//! `jukebox/`. The documentation of `fauna::audio::llark` describes the layout.

use std::io::Write;
use std::ops::ControlFlow;

use fauna::sound::read;
use fauna::{Item, Prompt};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, song, question] = arguments.as_slice() else {
        anyhow::bail!("usage: listen MODEL AUDIO_FILE QUESTION");
    };
    let model = fauna::open(source)?;
    let prompt = Prompt::Items(vec![Item::Sound(read::read(song)?.sound), Item::Text(question.clone())]);
    model.generate(&prompt, &model.defaults(), &mut |item| {
        if let Item::Text(words) = item {
            print!("{words}");
            let _ = std::io::stdout().flush();
        }
        ControlFlow::Continue(())
    })?;
    println!();
    Ok(())
}
