//! Fill-in-the-middle: completes code between a prefix and a suffix, as an editor does.
//!
//!     cargo run --release --example infill -- bigcode/starcoderbase-1b
//!
//! Without arguments it uses a small model that was trained on ten code snippets, and prints:
//!
//!     def factorial(n):
//!         if n < 2:
//!             return 1
//!         return n * factorial(n - 1)

use std::ops::ControlFlow;

use fauna::{Item, Prompt};

const SMALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/starcoder/generate_fim_text/model");

fn main() -> anyhow::Result<()> {
    let source = std::env::args().nth(1);
    let model = fauna::open(source.as_deref().unwrap_or(SMALL))?;
    let (prefix, suffix) = ("def factorial(n):\n", "\n    return n * factorial(n - 1)\n");
    let gap = Prompt::Infill { prefix: prefix.into(), suffix: suffix.into() };
    // The defaults stop at the end of the definition.
    let options = model.defaults().with_max_new_tokens(60);
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
