//! A question about a piece of music, answered in words.
//!
//!     cargo run --release --example listen -- LLARK_FOLDER song.mp3 "What is the tempo?"
//!
//! LLark's weights were never released: the folder is Llama 2 with a projector of one's own, and Jukebox's files in
//! `jukebox/`. The documentation of `fauna::audio::llark` says how it is laid out.

use std::io::Write;
use std::ops::ControlFlow;

use fauna::sound::read;
use fauna::{Error, Item, Prompt, Result};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, song, question] = arguments.as_slice() else {
        return Err(Error::input("a model, a sound file and a question are wanted"));
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
