//! Few-shot image captioning: two images with their captions, and a third image to caption.
//!
//!     cargo run --release --example few_shot -- openflamingo/OpenFlamingo-4B-vitl-rpj3b \
//!         a.png "two cats" b.png "three dogs" c.png
//!
//! Without arguments it uses squares of colour and a tiny model with random weights:
//!
//!     cargo run --release --example few_shot
//!     a red square; a green square; and this one?
//!     lake rain rain of two two two two

use std::io::Write;
use std::ops::ControlFlow;

use fauna::image::read;
use fauna::{Image, Item, Prompt, Result};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/flamingo/open_mpt_generate/model");

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (source, shown) = match arguments.split_first() {
        Some((source, shown)) => (source.as_str(), examples(shown)?),
        None => (TINY, squares()),
    };
    let model = fauna::open(source)?;
    let options = model.defaults().with_max_new_tokens(8);
    model.generate(&Prompt::Items(shown), &options, &mut |item| {
        if let Item::Text(words) = item {
            print!("{words}");
            let _ = std::io::stdout().flush();
        }
        ControlFlow::Continue(())
    })?;
    println!();
    Ok(())
}

/// Parses alternating image files and captions.
fn examples(arguments: &[String]) -> Result<Vec<Item>> {
    let item = |(i, argument): (usize, &String)| match i % 2 {
        0 => read(argument).map(Item::Image),
        _ => Ok(Item::Text(argument.clone())),
    };
    arguments.iter().enumerate().map(item).collect()
}

fn squares() -> Vec<Item> {
    println!("a red square; a green square; and this one?");
    let square = |rgb: [u8; 3]| Item::Image(Image { width: 64, height: 64, rgb: rgb.repeat(64 * 64) });
    vec![square([255, 0, 0]), "red".into(), square([0, 255, 0]), "green".into(), square([0, 0, 255])]
}
