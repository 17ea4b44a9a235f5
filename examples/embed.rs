//! Ranks sentences by their similarity to a query, with the built-in sentence-embedding model.
//!
//!     cargo run --release --example embed -- "Which animals are good parents?"
//!
//!     0.50  Wolves raise their pups together as a family.
//!     0.01  The jazz pianist improvised over a slow blues.
//!     -0.02  Water expands when it freezes, so ice floats.

fn main() -> anyhow::Result<()> {
    let question = std::env::args().nth(1).unwrap_or_else(|| "Which animals are good parents?".into());
    let sentences = [
        "Wolves raise their pups together as a family.",
        "Water expands when it freezes, so ice floats.",
        "The jazz pianist improvised over a slow blues.",
    ];

    let model = fauna::open("minilm")?;
    let items: Vec<_> = std::iter::once(question.as_str()).chain(sentences).map(fauna::Item::from).collect();
    let vectors = model.embed(&items)?.to_vecs()?;

    // MiniLM's embeddings are normalized: the dot product is the cosine similarity.
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    let mut ranked: Vec<_> =
        sentences.iter().zip(&vectors[1..]).map(|(s, v)| (dot(&vectors[0], v), s)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (score, sentence) in ranked {
        println!("{score:.2}  {sentence}");
    }
    Ok(())
}
