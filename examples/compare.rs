//! Compares the text similarities of two models, the built-in one and another, as CSV.
//!
//!     cargo run --release --example compare -- openai-community/gpt2 > pairs.csv

use fauna::{Item, Pipeline};

const TEXTS: [&str; 4] = [
    "The cat sleeps on the stone.",
    "A kitten naps in the sun.",
    "Shares fell after the report.",
    "A comet passes.",
];

fn main() -> anyhow::Result<()> {
    let other = std::env::args().nth(1).unwrap_or_else(|| "minilm".into());
    let ours = similarities(fauna::open("minilm")?.as_ref())?;
    let theirs = similarities(fauna::open(&other)?.as_ref())?;

    println!("first,second,minilm,{other}");
    for i in 0..TEXTS.len() {
        for j in i + 1..TEXTS.len() {
            println!("{},{},{:.3},{:.3}", TEXTS[i], TEXTS[j], ours[i][j], theirs[i][j]);
        }
    }
    Ok(())
}

/// Returns the cosine similarity of every pair of texts, `(texts, texts)`.
fn similarities(model: &dyn Pipeline) -> fauna::Result<Vec<Vec<f32>>> {
    let vectors = model.embed(&TEXTS.map(Item::from))?.to_vecs()?;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    let cosine = |a: &[f32], b: &[f32]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    Ok(vectors.iter().map(|a| vectors.iter().map(|b| cosine(a, b)).collect()).collect())
}
