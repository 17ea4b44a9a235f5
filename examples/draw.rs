//! Draws what it is told, four times, and puts the pictures on one sheet.
//!
//!     cargo run --release --example draw -- dalle-mini/dalle-mini "an armchair in the shape of an avocado" sheet.png
//!
//! Without a model it takes a small one of random weights, which draws nothing one could know:
//!
//!     picture 0: 32 by 32
//!     picture 1: 32 by 32
//!     picture 2: 32 by 32
//!     picture 3: 32 by 32
//!     draw.png: 2 by 2 pictures

use std::ops::ControlFlow;

use fauna::{GenerationConfig, Image, Item, LoadOptions, Prompt, Result, picture};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = match arguments.next() {
        Some(source) => fauna::open(&source)?,
        None => {
            let config = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/configs/dalle");
            fauna::open_with(config, &LoadOptions { random_weights: Some(7), ..LoadOptions::default() })?
        }
    };
    let wish = arguments.next().unwrap_or_else(|| "a cat on the stone".into());
    let path = arguments.next().unwrap_or_else(|| "draw.png".into());

    // All four at once: the words are read once, and guidance shares every pass.
    let wishes = vec![Prompt::from(wish.as_str()); 4];
    let options = GenerationConfig { seed: 7, ..model.defaults() };
    let mut pictures: Vec<Option<Image>> = vec![None; wishes.len()];
    model.generate_batch(&wishes, &options, &mut |index, item| {
        match item {
            Item::Image(picture) => {
                println!("picture {index}: {} by {}", picture.width, picture.height);
                pictures[index] = Some(picture);
            }
            Item::Text(note) => eprint!("{note}"),
            _ => {}
        }
        ControlFlow::Continue(())
    })?;
    let pictures: Vec<Image> = pictures.into_iter().flatten().collect();
    picture::write(&path, &picture::sheet::grid(&pictures, 2)?)?;
    println!("{path}: 2 by 2 pictures");
    Ok(())
}
