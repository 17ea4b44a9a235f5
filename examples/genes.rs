//! Scores and embeds the genes of a FASTA file, and generates a new gene with its protein.
//!
//!     cargo run --release --example genes -- patric_25m_epoch01-val_loss_0.57_bias_removed.pt genes.fasta
//!
//! Without arguments it uses the architecture of the 25M model with random weights:
//!
//!     rpmJ        log-likelihood  -165.21  perplexity  77.30  MKVRASVKKLCRNCKIVKRDGVIRVICSAEPKHKQRQG*
//!     rpmJ_D20E   log-likelihood  -165.41  perplexity  77.70  MKVRASVKKLCRNCKIVKREGVIRVICSAEPKHKQRQG*
//!     trpL        log-likelihood   -63.30  perplexity  91.96  MKAIFVLKGWWRTS*
//!     pheL        log-likelihood   -63.06  perplexity  66.96  MKHIPFFFAFFFTFP*
//!     rpmJ        nearest rpmJ_D20E   cosine 0.999
//!     rpmJ_D20E   nearest rpmJ        cosine 0.999
//!     trpL        nearest pheL        cosine 0.852
//!     pheL        nearest trpL        cosine 0.852
//!     new         MRSSPCAHGDSKRPTCDC*
//!     >new MRSSPCAHGDSKRPTCDC*
//!     ATGAGATCATCCCCCTGTGCTCACGGCGACAGCAAAAGACCCACGTGTGATTGTTAA

use std::ops::ControlFlow;

use fauna::text::genslm::GenSlm;
use fauna::text::genslm::codons::{Reading, translate};
use fauna::text::genslm::fasta::{self, Record};
use fauna::{Item, LoadOptions, Pipeline};

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/configs/genslm-25m");
const GENES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/genes.fasta.gz");

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let source = arguments.next();
    let random_weights = if source.is_none() { Some(7) } else { None };
    let options = LoadOptions { random_weights, ..LoadOptions::default() };
    let (_, pretrained) = fauna::zoo().pretrained(source.as_deref().unwrap_or(CONFIG), &options)?;
    let model = GenSlm::open(&pretrained)?;

    // Invalid genes are reported and skipped.
    let mut genes: Vec<Record> = Vec::new();
    for gene in fasta::open(arguments.next().unwrap_or_else(|| GENES.into()), Reading::Strict)? {
        gene.map_or_else(|error| eprintln!("{error}"), |gene| genes.push(gene));
    }
    let sequences: Vec<&str> = genes.iter().map(|gene| gene.sequence.as_str()).collect();
    for (gene, score) in genes.iter().zip(model.score(&sequences)?) {
        let (id, protein) = (&gene.id, translate(&gene.sequence));
        println!(
            "{id:10}  log-likelihood {:8.2}  perplexity {:6.2}  {protein}",
            score.log_likelihood(),
            score.perplexity()
        );
    }

    let items: Vec<Item> = sequences.iter().map(|gene| Item::Gene(gene.to_string())).collect();
    let vectors = model.embed(&items)?.to_vecs()?;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    let cosine = |a: &[f32], b: &[f32]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    for (i, gene) in genes.iter().enumerate() {
        let others = (0..genes.len())
            .filter(|other| *other != i)
            .map(|other| (cosine(&vectors[i], &vectors[other]), other));
        if let Some((cosine, nearest)) = others.max_by(|a, b| a.0.total_cmp(&b.0)) {
            println!("{:10}  nearest {:10}  cosine {cosine:.3}", gene.id, genes[nearest].id);
        }
    }

    let mut gene = String::from("ATG");
    model.generate(&gene.as_str().into(), &model.defaults().with_seed(1), &mut |codon| {
        if let Item::Gene(codon) = codon {
            gene.push_str(&codon);
        }
        ControlFlow::Continue(())
    })?;
    let protein = translate(&gene);
    println!("new         {protein}");
    let record = Record { id: "new".into(), description: protein, sequence: gene };
    Ok(fasta::write(&mut std::io::stdout(), &record, fasta::COLUMNS)?)
}
