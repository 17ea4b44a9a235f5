//! Streams text from any causal language model: a folder, a GGUF file, or a Hugging Face Hub id.
//!
//!     cargo run --release --example generate -- HuggingFaceTB/SmolLM2-135M-Instruct "The sky at night"

use std::error::Error;
use std::io::Write;
use std::ops::ControlFlow;

use fauna::{GenerationConfig, Item};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let source =
        arguments.next().ok_or("usage: generate MODEL [PROMPT] (MODEL is a folder, a file, owner/name)")?;
    let prompt = arguments.next().unwrap_or_else(|| "The sky at night".into());

    let model = fauna::open(&source)?;
    let options = GenerationConfig { temperature: 0.7, top_p: 0.9, seed: 1, ..GenerationConfig::greedy(60) };
    print!("{prompt}");
    model.generate(&prompt.as_str().into(), &options, &mut |piece| {
        if let Item::Text(words) = piece {
            print!("{words}");
            let _ = std::io::stdout().flush();
        }
        ControlFlow::Continue(())
    })?;
    println!();
    Ok(())
}
