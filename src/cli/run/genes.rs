//! Genes: continued to their stop codons, told how likely they are.

use std::path::{Path, PathBuf};

use fauna::progress::{Progress, Unit};
use fauna::text::genslm::codons::{self, Reading};
use fauna::text::genslm::fasta::{self, Record};
use fauna::{Error, GenerationConfig, Item, Pipeline, Prompt, Result, Tensors};
use serde_json::json;

use super::Args;
use crate::cli::output::Output;
use crate::cli::table::Table;
use crate::cli::{Context, Exit};

/// Genes, and what becomes of them.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Genes")]
pub struct Sequencing {
    /// Genes as FASTA, plain or gzip: what the model continues up to a stop codon; --out FILE.fasta writes them.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompts", "chat", "labels", "ask", "audio", "melody", "codes", "context", "image", "prefix", "suffix", "file"])]
    pub genes: Option<PathBuf>,
    /// Tell how likely the model finds each gene, and make none: the logarithm of its probability given its first codon,
    /// and the perplexity a codon.
    #[arg(long, requires = "genes")]
    score: bool,
    /// Make so many genes of each prompt.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    copies: u16,
    /// Write the proteins that the genes stand for, by the standard genetic code.
    #[arg(long, conflicts_with = "score")]
    protein: bool,
}

/// How the user wants sequences read: `--set reading=as_released` reads what is no codon as the release does.
pub fn reading(context: &Context) -> Result<Reading> {
    let chosen = context.globals.settings.iter().rev().find(|(key, _)| key == "reading");
    match chosen.map(|(_, value)| value) {
        None => Ok(Reading::Strict),
        Some(value) => Reading::named(value.as_str().unwrap_or_default()),
    }
}

/// Problems of single genes that are shown; the others are counted.
const SHOWN: usize = 20;
/// As many genes are taken in at once, each with what memory it takes beside its letters.
const MOST_BYTES: usize = 256 << 20;
const ABOUT_RECORD: usize = 200;

/// The genes of the file at `path`; those that are wrong are named, the first of them, and counted.
///
/// # Errors
/// A file that cannot be read or holds no gene that can be used.
pub fn read(path: &Path, context: &Context) -> Result<(Vec<Record>, usize)> {
    let (mut good, mut wrong, mut count, mut bytes) = (Vec::new(), Vec::new(), 0usize, 0usize);
    for record in fasta::open(path, reading(context)?)? {
        match record {
            Ok(record) => {
                let Record { id, description, sequence } = &record;
                bytes += id.len() + description.len() + sequence.len() + ABOUT_RECORD;
                if bytes > MOST_BYTES {
                    return Err(Error::input(format!(
                        "more than {} MiB of genes, unpacked",
                        MOST_BYTES >> 20
                    ))
                    .at(path)
                    .hint("split the file"));
                }
                good.push(record);
            }
            // Of very many, a few say what is wrong with all.
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
            Err(Error::input(format!("none of its genes can be read ({count})")).at(path).hint(first))
        }
        (false, _) => {
            wrong.iter().for_each(|error| context.complain(&error.to_string()));
            if more > 0 {
                context.complain(&format!("{}: {more} more of its genes cannot be read", path.display()));
            }
            Ok((good, count))
        }
    }
}

/// Continues or scores the genes of a file.
pub fn run(args: &Args, path: &Path, context: &Context) -> Result<Exit> {
    let (genes, wrong) = read(path, context)?;
    let model = context.open(&args.source)?;
    let exit = if wrong == 0 { Exit::Done } else { Exit::Partly };
    if args.sequencing.score {
        score(model.as_ref(), &genes, context)?;
        return Ok(exit);
    }
    let options = args.sampling.of(model.as_ref(), context.globals.seed)?;
    continue_all(args, model.as_ref(), &genes, &options, context)?;
    Ok(exit)
}

/// Continues the genes that stand as words on the command line.
pub fn of_words(
    args: &Args,
    model: &dyn Pipeline,
    prompts: &[Prompt],
    options: &GenerationConfig,
    context: &Context,
) -> Result<()> {
    let gene = |(i, prompt): (usize, &Prompt)| {
        let Prompt::Items(items) = prompt else {
            return Err(Error::input("a gene is continued, and neither a conversation nor a gap"));
        };
        let sequence = items.iter().map(Item::text).collect::<Result<Vec<_>>>()?.concat();
        Ok(Record { id: format!("gene{}", i + 1), sequence, ..Record::default() })
    };
    let genes = prompts.iter().enumerate().map(gene).collect::<Result<Vec<_>>>()?;
    continue_all(args, model, &genes, options, context)
}

/// Writes what the model makes of `genes`, the prompts included.
fn continue_all(
    args: &Args,
    model: &dyn Pipeline,
    genes: &[Record],
    options: &GenerationConfig,
    context: &Context,
) -> Result<()> {
    let mut output = Output::open(args.place.path.as_deref(), args.place.force)?;
    let copies = usize::from(args.sequencing.copies);
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
    // An empty prompt begins with what most genes begin with.
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
        let protein = args.sequencing.protein.then(|| codons::translate(&gene.sequence));
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

/// A line a gene: how many codons it has and how likely it is.
fn score(model: &dyn Pipeline, genes: &[Record], context: &Context) -> Result<()> {
    let mut output = Output::stdout();
    let mut table = Table::default();
    table.row(["gene", "codons", "log-likelihood", "perplexity"]);
    for gene in genes {
        context.interrupt.check()?;
        let options = json!({"sequences": [gene.sequence]});
        let made = model.call("score", &Tensors::new(), &options);
        let made = made.map_err(|error| error.context(&gene.id))?;
        let number = |name: &str| -> Result<f32> { Ok(made[name].to_vec1::<f32>()?[0]) };
        let (likelihood, perplexity) = (number("log_likelihood")?, number("perplexity")?);
        let codons = gene.sequence.len().div_ceil(3);
        let cut = number("cut")? as usize;
        if cut > 0 {
            context
                .say(&format!("{}: the last {cut} codons do not fit the model and were left out", gene.id));
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
    output.finish()
}
