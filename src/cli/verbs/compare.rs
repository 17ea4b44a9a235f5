//! `fauna compare`: cosine similarity of texts, and agreement of models on it.

use std::path::PathBuf;

use fauna::item::beyond;
use fauna::{Error, Pipeline, Result, cosine};
use serde_json::json;

use crate::cli::options::ModelArg;
use crate::cli::output::Output;
use crate::cli::table::{Table, shorten};
use crate::cli::{Context, Exit, heatmap, input};

/// Arguments of `fauna compare`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  fauna compare minilm \"a cat\" \"a kitten\" \"a comet\"\n  \
                        fauna compare minilm --input notes.txt --png notes.png\n  \
                        fauna compare minilm --with openai-community/gpt2 --input notes.txt")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Two or more texts. If none is given, one per line of --input or standard input.
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// Read the texts from this file, one per line.
    #[arg(long, short, value_name = "FILE", conflicts_with = "texts")]
    input: Option<PathBuf>,
    /// Another model to compare with: prints the correlation of the similarities. Can be repeated.
    #[arg(long, value_name = "SOURCE")]
    with: Vec<String>,
    /// Write a heatmap of the first model's similarities to this PNG file.
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
    /// Overwrite an existing file.
    #[arg(long)]
    force: bool,
}

/// Compares the texts. A text that cannot be read is reported and skipped, and makes the exit status 2.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let mut failed = 0;
    let mut texts = Vec::new();
    for text in input::texts(args.texts, args.input.as_deref(), context)? {
        let text = text?;
        match text.content {
            Ok(content) => texts.push(content),
            Err(error) => {
                context.complain(&format!("{}: {error}", text.place));
                failed += 1;
            }
        }
    }
    if texts.len() < 2 {
        return Err(Error::input(format!("expected two texts or more, got {}", texts.len())).into());
    }
    let sources: Vec<&String> = std::iter::once(&args.model.source).chain(&args.with).collect();
    let mut matrices = Vec::new();
    for source in &sources {
        matrices.push(similarities(context.open_for("compare", source)?.as_ref(), &texts, context)?);
    }
    let agreement: Vec<f32> = matrices.iter().map(|matrix| correlation(&matrices[0], matrix)).collect();

    let mut output = Output::stdout();
    if context.globals.json {
        let models = sources.iter().zip(&matrices).zip(&agreement);
        let models: Vec<_> = models
            .map(|((source, matrix), agreement)| json!({"source": source, "similarity": matrix, "agreement": agreement}))
            .collect();
        output.json(&json!({"texts": texts, "models": models}))?;
    } else {
        for (source, matrix) in sources.iter().zip(&matrices) {
            if sources.len() > 1 {
                output.line(source)?;
            }
            print(matrix, &texts, &mut output)?;
        }
        for (source, agreement) in sources.iter().zip(&agreement).skip(1) {
            output.line(format!("{source} agrees with {}: correlation {agreement:.3}", sources[0]))?;
        }
    }
    output.finish()?;
    if let Some(path) = &args.png {
        let title = format!("Similarity of {} texts by {}", texts.len(), args.model.source);
        heatmap::write(path, args.force, &title, &texts, &matrices[0])?;
        context.say(&format!("heatmap: {}", path.display()));
    }
    Ok(if failed == 0 { Exit::Done } else { Exit::Partly })
}

fn print(matrix: &[Vec<f32>], texts: &[String], output: &mut Output) -> Result<()> {
    let mut table = Table::default();
    let numbers = (1..=texts.len()).map(|i| format!("{i}"));
    table.push([String::new(), String::new()].into_iter().chain(numbers).collect());
    for (i, (row, text)) in matrix.iter().zip(texts).enumerate() {
        let cells = row.iter().map(|value| heatmap::number(*value));
        table.push([format!("{}", i + 1), shorten(text, 40)].into_iter().chain(cells).collect());
    }
    table.lines().into_iter().try_for_each(|line| output.line(line))
}

/// Returns the cosine similarity of every pair of texts, `(texts, texts)`.
pub fn similarities(model: &dyn Pipeline, texts: &[String], context: &Context) -> Result<Vec<Vec<f32>>> {
    let made = model.embed_texts(&texts.iter().map(String::as_str).collect::<Vec<_>>())?;
    for (text, cut) in texts.iter().zip(&made.cut).filter(|(_, cut)| **cut > 0) {
        context.say(&format!("{}: {} were left out", shorten(text, 40), beyond(*cut)));
    }
    made.similarity(&made)
}

/// Returns the Pearson correlation of two similarity matrices over all pairs of different texts (representational
/// similarity analysis, Kriegeskorte et al. 2008).
fn correlation(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let pairs = |m: &[Vec<f32>]| -> Vec<f32> {
        let values: Vec<f32> = m.iter().enumerate().flat_map(|(i, row)| row[i + 1..].to_vec()).collect();
        let mean = values.iter().sum::<f32>() / values.len().max(1) as f32;
        values.into_iter().map(|value| value - mean).collect()
    };
    cosine(&pairs(a), &pairs(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linearly_related_similarities_have_correlation_1() {
        let matrix = |a: f32, b: f32, c: f32| vec![vec![1.0, a, b], vec![a, 1.0, c], vec![b, c, 1.0]];
        assert!((correlation(&matrix(0.1, 0.2, 0.9), &matrix(0.2, 0.3, 1.0)) - 1.0).abs() < 1e-6);
        assert!(correlation(&matrix(0.1, 0.2, 0.9), &matrix(0.9, 0.8, 0.1)) < -0.9);
    }
}
