//! Generates four images from a prompt and writes them as a grid.
//!
//!     cargo run --release --example draw -- dalle-mini/dalle-mini "an armchair in the shape of an avocado" sheet.png
//!
//! Without arguments it uses a small model with random weights, and prints:
//!
//!     image 0: 32x32
//!     image 1: 32x32
//!     image 2: 32x32
//!     image 3: 32x32
//!     draw.png: a grid of 2x2 images

use std::ops::ControlFlow;

use fauna::{Image, Item, LoadOptions, Prompt, image};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = match arguments.next() {
        Some(source) => fauna::open(&source)?,
        None => {
            let config = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/configs/dalle");
            fauna::open_with(config, &LoadOptions::default().with_random_weights(7))?
        }
    };
    let wish = arguments.next().unwrap_or_else(|| "a cat on the stone".into());
    let path = arguments.next().unwrap_or_else(|| "draw.png".into());

    // A batch of four: the text is encoded once, and the guided and unguided forward passes are batched.
    let wishes = vec![Prompt::from(wish.as_str()); 4];
    let options = model.defaults().with_seed(7);
    let mut pictures: Vec<Option<Image>> = vec![None; wishes.len()];
    model.generate_batch(&wishes, &options, &mut |index, item| {
        match item {
            Item::Image(picture) => {
                println!("image {index}: {}x{}", picture.width, picture.height);
                pictures[index] = Some(picture);
            }
            Item::Text(note) => eprint!("{note}"),
            _ => {}
        }
        ControlFlow::Continue(())
    })?;
    let pictures: Vec<Image> = pictures.into_iter().flatten().collect();
    image::write(&path, &image::sheet::grid(&pictures, 2)?)?;
    println!("{path}: a grid of 2x2 images");
    Ok(())
}
