//! `fauna genes`: generation and scoring of gene sequences.

use std::path::{Path, PathBuf};

use fauna::progress::{Progress, Unit};
use fauna::text::genslm::codons::{self, Reading};
use fauna::text::genslm::fasta::{self, Record};
use fauna::{Error, GenerationConfig, Item, Pipeline, Prompt, Result, Tensors};
use serde_json::json;

use crate::cli::options::{Choices, Length, Loading, ModelArg, Penalty, Sampling};
use crate::cli::output::Output;
use crate::cli::reply::prompts;
use crate::cli::table::Table;
use crate::cli::{Context, Exit};

/// Arguments of `fauna genes`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  fauna genes generate genslm-25M \"ATG\" --copies 4 --out new.fasta\n  \
                        fauna genes score genslm-25M --genes variants.fasta.gz")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Generate gene sequences up to a stop codon, as FASTA.
    Generate(Generate),
    /// Score gene sequences: the log-likelihood given the first codon, and the perplexity per codon.
    Score(Score),
}

/// Arguments of `fauna genes generate`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fauna genes generate genslm-25M \"ATGAAA\" --copies 8 --out new.fasta\n  \
                        fauna genes generate genslm-25M --genes starts.fasta --protein --temperature 0.7"
)]
struct Generate {
    #[command(flatten)]
    model: ModelArg,
    /// Prompts: the first codons of genes; `-` or none reads one from standard input.
    #[arg(value_name = "SEQUENCE")]
    sequences: Vec<String>,
    /// FASTA file of prompts, plain or gzip.
    #[arg(long, value_name = "FILE", conflicts_with = "sequences")]
    genes: Option<PathBuf>,
    /// Number of genes to generate for each prompt.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    copies: u16,
    /// Write the translated proteins (standard genetic code) instead of the genes.
    #[arg(long)]
    protein: bool,
    /// Output file: FILE.fasta (default: standard output).
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Overwrite an existing file.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    penalty: Penalty,
    #[command(flatten)]
    length: Length,
}

/// Arguments of `fauna genes score`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  fauna genes score genslm-25M --genes variants.fasta.gz\n  \
                        fauna genes score genslm-25M --genes variants.fasta --json")]
struct Score {
    #[command(flatten)]
    model: ModelArg,
    /// FASTA file of genes, plain or gzip.
    #[arg(long, value_name = "FILE")]
    genes: PathBuf,
}

impl Args {
    /// Returns the loading options.
    pub fn loading(&self) -> &Loading {
        match &self.what {
            What::Generate(args) => &args.model.loading,
            What::Score(args) => &args.model.loading,
        }
    }
}

/// Returns how sequences are tokenized: `--set reading=as_released` handles invalid codons as the released code does.
pub fn reading(context: &Context) -> Result<Reading> {
    let chosen = context.loading.settings.iter().rev().find(|(key, _)| key == "reading");
    match chosen.map(|(_, value)| value) {
        None => Ok(Reading::Strict),
        Some(value) => Reading::named(value.as_str().unwrap_or_default()),
    }
}

/// Maximum number of invalid genes that are reported one by one; the others are counted.
const SHOWN: usize = 20;
/// Maximum memory of the genes of a file, and the overhead of each record, in bytes.
const MOST_BYTES: usize = 256 << 20;
const ABOUT_RECORD: usize = 200;

/// Returns the genes of the file at `path` and the number of invalid ones, which are reported.
///
/// # Errors
/// A file that cannot be read or has no valid gene.
fn read(path: &Path, context: &Context) -> Result<(Vec<Record>, usize)> {
    let (mut good, mut wrong, mut count, mut bytes) = (Vec::new(), Vec::new(), 0usize, 0usize);
    for record in fasta::open(path, reading(context)?)? {
        match record {
            Ok(record) => {
                let Record { id, description, sequence } = &record;
                bytes += id.len() + description.len() + sequence.len() + ABOUT_RECORD;
                if bytes > MOST_BYTES {
                    return Err(Error::input(format!(
                        "more than {} MiB of genes, uncompressed",
                        MOST_BYTES >> 20
                    ))
                    .at(path)
                    .hint("split it into several files"));
                }
                good.push(record);
            }
            // Only the first are shown.
            Err(error) => {
                count += 1;
                if wrong.len() < SHOWN {
                    wrong.push(error);
                }
            }
        }
    }
    let more = count - wrong.len();
    match (good.is_empty(), count) {
        (true, 1) => Err(wrong.remove(0)),
        (true, _) => {
            let first = wrong.first().map_or(String::new(), Error::to_string);
            Err(Error::input(format!("no valid gene ({count} invalid)")).at(path).hint(first))
        }
        (false, _) => {
            wrong.iter().for_each(|error| context.complain(&error.to_string()));
            if more > 0 {
                context.complain(&format!("{}: {more} more invalid genes", path.display()));
            }
            Ok((good, count))
        }
    }
}

/// Generates or scores genes.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    match args.what {
        What::Generate(args) => Ok(generate(&args, context)?),
        What::Score(args) => Ok(score(&args, context)?),
    }
}

fn generate(args: &Generate, context: &Context) -> Result<Exit> {
    let Generate { sampling, penalty, length, .. } = args;
    let choices = Choices {
        sampling: sampling.clone(),
        penalty: penalty.clone(),
        length: length.clone(),
        ..Choices::default()
    };
    choices.check()?;
    let (genes, wrong) = match &args.genes {
        Some(path) => read(path, context)?,
        None => {
            let gene = |(i, sequence)| Record { id: format!("gene{}", i + 1), sequence, ..Record::default() };
            let sequences = prompts::texts(&args.sequences, context)?.into_iter();
            (sequences.enumerate().map(gene).collect(), 0)
        }
    };
    let model = context.open_for("genes generate", &args.model.source)?;
    continue_all(args, model.as_ref(), &genes, &choices.of(model.as_ref())?, context)?;
    Ok(if wrong == 0 { Exit::Done } else { Exit::Partly })
}

/// Generates from the prompts `genes` and writes the sequences, prompts included.
fn continue_all(
    args: &Generate,
    model: &dyn Pipeline,
    genes: &[Record],
    options: &GenerationConfig,
    context: &Context,
) -> Result<()> {
    let mut output = Output::open(args.out.as_deref(), args.force)?;
    let copies = usize::from(args.copies);
    let mut made: Vec<Record> = genes
        .iter()
        .flat_map(|gene| (1..=copies).map(move |copy| (gene, copy)))
        .map(|(gene, copy)| Record {
            id: if copies == 1 { gene.id.clone() } else { format!("{}-{copy}", gene.id) },
            ..gene.clone()
        })
        .collect();
    let prompts: Vec<Prompt> =
        made.iter().map(|gene| Prompt::Items(vec![Item::Gene(gene.sequence.clone())])).collect();
    let _stoppable = context.interrupt.hold();
    let bar = context.bars.begin("codons", Unit::Items, None);
    // An empty prompt is replaced by the start codon.
    for gene in made.iter_mut().filter(|gene| gene.sequence.is_empty()) {
        gene.sequence = "ATG".to_string();
    }
    let mut started = vec![false; made.len()];
    model.generate_batch(&prompts, options, &mut |index, item| {
        if let Item::Gene(codon) = item {
            made[index].sequence.push_str(&codon);
            started[index] = true;
        }
        bar.advance(1);
        match context.interrupt.requested() {
            true => std::ops::ControlFlow::Break(()),
            false => std::ops::ControlFlow::Continue(()),
        }
    })?;
    drop(bar);
    for (gene, _) in made.into_iter().zip(started).filter(|(_, started)| *started) {
        let protein = args.protein.then(|| codons::translate(&gene.sequence));
        if context.globals.json {
            let about = json!({"source": model.card().source, "id": gene.id, "description": gene.description,
                "sequence": gene.sequence, "codons": gene.sequence.len() / 3,
                "protein": codons::translate(&gene.sequence)});
            output.json(&about)?;
            continue;
        }
        let mut text = Vec::new();
        let written = Record { sequence: protein.unwrap_or(gene.sequence), ..gene };
        fasta::write(&mut text, &written, fasta::COLUMNS)?;
        output.bytes(&text)?;
    }
    output.finish()?;
    context.interrupt.check()
}

/// Prints one line per gene: number of codons, log-likelihood and perplexity.
fn score(args: &Score, context: &Context) -> Result<Exit> {
    let (genes, wrong) = read(&args.genes, context)?;
    let model = context.open_for("genes score", &args.model.source)?;
    let mut output = Output::stdout();
    let mut table = Table::default();
    table.row(["gene", "codons", "log-likelihood", "perplexity"]);
    for gene in &genes {
        context.interrupt.check()?;
        let options = json!({"sequences": [gene.sequence]});
        let made = model.call("score", &Tensors::new(), &options);
        let made = made.map_err(|error| error.context(&gene.id))?;
        let number = |name: &str| -> Result<f32> { Ok(fauna::transfer::to_host::<f32>(&made[name])?[0]) };
        let (likelihood, perplexity) = (number("log_likelihood")?, number("perplexity")?);
        let codons = gene.sequence.len().div_ceil(3);
        let cut = number("cut")? as usize;
        if cut > 0 {
            context.say(&format!(
                "{}: the last {cut} codons exceed the model's maximum length and were left out",
                gene.id
            ));
        }
        match context.globals.json {
            true => output.json(&json!({"source": model.card().source, "id": gene.id, "codons": codons,
                "cut": cut, "log_likelihood": likelihood, "perplexity": perplexity}))?,
            false => table.row([
                gene.id.clone(),
                codons.to_string(),
                format!("{likelihood:.3}"),
                format!("{perplexity:.3}"),
            ]),
        }
    }
    if !context.globals.json {
        table.lines().into_iter().try_for_each(|line| output.line(line))?;
    }
    output.finish()?;
    Ok(if wrong == 0 { Exit::Done } else { Exit::Partly })
}
