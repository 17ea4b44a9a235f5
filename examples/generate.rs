//! Streams text from any causal language model: a folder, a GGUF file, or a Hugging Face Hub id.
//!
//!     cargo run --release --example generate -- HuggingFaceTB/SmolLM2-135M-Instruct "The sky at night"

use anyhow::Context;
use std::io::Write;
use std::ops::ControlFlow;

use fauna::{GenerationConfig, Item};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let source =
        arguments.next().context("usage: generate MODEL [PROMPT] (MODEL is a folder, a file, owner/name)")?;
    let prompt = arguments.next().unwrap_or_else(|| "The sky at night".into());

    let model = fauna::open(&source)?;
    let options = GenerationConfig::greedy(60).with_temperature(0.7).with_top_p(0.9).with_seed(1);
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
