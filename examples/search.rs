//! Ranks images by their similarity to a text.
//!
//!     cargo run --release --example search -- tests/parity/clip/end_to_end/model "a photo of two cats" \
//!         shared/tests/image/rgb.png shared/tests/image/grey.png fauna-tour/similarity.png
//!
//!     -0.061  shared/tests/image/grey.png
//!     -0.078  shared/tests/image/rgb.png
//!     -0.297  fauna-tour/similarity.png
//!
//! That model is tiny and its weights are random; use openai/clip-vit-base-patch32 for meaningful results.

use fauna::Item;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, sentence, files @ ..] = &arguments[..] else {
        anyhow::bail!("usage: search MODEL TEXT IMAGE...");
    };
    let model = fauna::open(source)?;

    let mut items = vec![Item::from(sentence.as_str())];
    for file in files {
        items.push(Item::Image(fauna::image::read(file)?));
    }
    let vectors = model.embed(&items)?.to_vecs()?;

    // The embeddings are normalized: the dot product is the cosine similarity.
    let cosine = |picture: &[f32]| vectors[0].iter().zip(picture).map(|(a, b)| a * b).sum::<f32>();
    let mut found: Vec<(f32, &String)> =
        vectors[1..].iter().map(|vector| cosine(vector)).zip(files).collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (cosine, file) in found {
        println!("{cosine:6.3}  {file}");
    }
    Ok(())
}
