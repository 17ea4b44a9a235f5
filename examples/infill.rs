//! Fills a gap in code, as an editor would: what stands before the cursor, what stands after it.
//!
//!     cargo run --release --example infill -- bigcode/starcoderbase-1b
//!
//! Without a model it asks a small network that was taught ten short pieces of code, and prints:
//!
//!     def factorial(n):
//!         if n < 2:
//!             return 1
//!         return n * factorial(n - 1)

use std::ops::ControlFlow;

use fauna::{GenerationConfig, Item, Prompt, Result};

const SMALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/starcoder/generate_fim_text/model");

fn main() -> Result<()> {
    let source = std::env::args().nth(1);
    let model = fauna::open(source.as_deref().unwrap_or(SMALL))?;
    let (prefix, suffix) = ("def factorial(n):\n", "\n    return n * factorial(n - 1)\n");
    let gap = Prompt::Infill { prefix: prefix.into(), suffix: suffix.into() };
    // As the model is used: its answer ends with the definition it belongs to.
    let options = GenerationConfig { max_new_tokens: 60, ..model.defaults() };
    print!("{prefix}");
    model.generate(&gap, &options, &mut |piece| {
        if let Item::Text(code) = piece {
            print!("{code}");
        }
        ControlFlow::Continue(())
    })?;
    print!("{suffix}");
    Ok(())
}
