//! Ranks pictures by how well a sentence describes them.
//!
//!     cargo run --release --example search -- tests/parity/clip/end_to_end/model "a photo of two cats" \
//!         shared/tests/image/rgb.png shared/tests/image/grey.png fauna-tour.png
//!
//!     -0.061  shared/tests/image/grey.png
//!     -0.078  shared/tests/image/rgb.png
//!     -0.297  fauna-tour.png
//!
//! That model is tiny and its weights are random; openai/clip-vit-base-patch32 finds what you describe.

use std::error::Error;

use fauna::Item;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, sentence, files @ ..] = &arguments[..] else {
        return Err("name a model, a sentence and pictures".into());
    };
    let model = fauna::open(source)?;

    let mut items = vec![Item::from(sentence.as_str())];
    for file in files {
        items.push(Item::Image(fauna::picture::read(file)?));
    }
    let vectors = model.embed(&items)?.to_vecs()?;

    // Vectors have length 1, so their product is the cosine.
    let cosine = |picture: &[f32]| vectors[0].iter().zip(picture).map(|(a, b)| a * b).sum::<f32>();
    let mut found: Vec<(f32, &String)> =
        vectors[1..].iter().map(|vector| cosine(vector)).zip(files).collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (cosine, file) in found {
        println!("{cosine:6.3}  {file}");
    }
    Ok(())
}
