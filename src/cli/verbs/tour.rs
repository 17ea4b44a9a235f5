//! The tour: semantic search in a small collection with the built-in model.

use std::path::PathBuf;

use fauna::{Item, cosine};
use serde_json::json;

use crate::cli::options::Loading;
use crate::cli::output::Output;
use crate::cli::{Context, Exit, heatmap};

/// The sentences that the tour searches, one per line.
const COLLECTION: &str = include_str!("../../../assets/collection.txt");

/// The default queries, which share few words with the collection.
const QUESTIONS: [&str; 4] = [
    "something to help a child sleep",
    "bad news for investors",
    "robots that handle fragile objects",
    "exploring other planets",
];

/// Indices of the sentences in the heatmap, ordered so that similar ones are adjacent.
const DRAWN: [usize; 14] = [0, 5, 8, 10, 12, 14, 19, 23, 25, 27, 28, 32, 49, 52];

const BEST: usize = 3;

/// Arguments of `fauna tour`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  fauna tour\n  fauna tour \"bad news for investors\" --out tour.png")]
pub struct Args {
    #[command(flatten)]
    pub loading: Loading,
    /// Search query, in place of the tour's own. Can be repeated.
    #[arg(value_name = "QUERY")]
    questions: Vec<String>,
    /// Output file of the heatmap. The heatmap of an earlier tour is overwritten, any other file is not.
    #[arg(long, short, value_name = "FILE", default_value = "fauna-tour.png")]
    out: PathBuf,
    /// Overwrite any existing file.
    #[arg(long)]
    force: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            loading: Loading::default(),
            questions: Vec::new(),
            out: "fauna-tour.png".into(),
            force: false,
        }
    }
}

/// Runs `fauna` without a command: prints an overview, then runs the tour.
pub fn welcome(context: &Context) -> anyhow::Result<Exit> {
    if !context.globals.json {
        let mut output = Output::stdout();
        output.line(concat!(
            "fauna ",
            env!("CARGO_PKG_VERSION"),
            ": a zoo of multimodal foundation models"
        ))?;
        output.line("")?;
        for (verb, does) in [
            ("list", "list the supported model families and released checkpoints"),
            ("info MODEL", "show information about a model, without downloading its weights"),
            ("embed MODEL", "compute embeddings"),
            ("chat MODEL", "chat with a model; also generate, fill, classify, answer"),
            ("draw MODEL", "generate images from text; also describe, search"),
            ("compose MODEL", "generate music from text; also listen, codec"),
            ("forecast MODEL", "forecast time series; also anomalies"),
            ("energy MODEL", "compute energy and forces of atoms; also relax, md"),
            ("MODEL", "run a model with the command that fits it"),
            ("compare MODEL", "compare texts by cosine similarity, and models by their agreement"),
            ("quantize MODEL", "quantize a model to 8, 6, 5 or 4 bits"),
            ("parity FOLDER", "check models against the outputs of their references"),
            ("bench MODEL", "benchmark speed and memory use"),
            ("--help", "show all commands and options"),
        ] {
            output.line(format!("  fauna {verb:<17} {does}"))?;
        }
        output.line("")?;
        output.finish()?;
    }
    run(Args::default(), context)
}

struct Answer {
    question: String,
    /// Cosine similarity and sentence, the most similar first.
    hits: Vec<(f32, &'static str)>,
}

/// Runs the queries, writes the heatmap and prints example commands.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    // Reports a cache that is not writable before the model is looked up in it.
    let minilm = fauna::builtin::find("minilm").expect("built in");
    let model = context.open("minilm")?;
    let sentences: Vec<&'static str> = COLLECTION.lines().collect();
    let questions = match args.questions.is_empty() {
        true => QUESTIONS.map(String::from).to_vec(),
        false => args.questions,
    };
    let items: Vec<Item> =
        sentences.iter().map(|s| Item::from(*s)).chain(questions.iter().cloned().map(Item::from)).collect();
    let vectors = model.embed(&items)?.to_vecs()?;
    let (known, asked) = vectors.split_at(sentences.len());
    let answers: Vec<Answer> = questions
        .into_iter()
        .zip(asked)
        .map(|(question, vector)| {
            let mut hits: Vec<_> =
                known.iter().zip(&sentences).map(|(v, s)| (cosine(vector, v), *s)).collect();
            hits.sort_by(|a, b| b.0.total_cmp(&a.0));
            hits.truncate(BEST);
            Answer { question, hits }
        })
        .collect();

    let labels: Vec<String> = DRAWN.iter().map(|i| sentences[*i].to_string()).collect();
    let matrix: Vec<Vec<f32>> =
        DRAWN.iter().map(|a| DRAWN.iter().map(|b| cosine(&known[*a], &known[*b])).collect()).collect();
    let title = format!("Cosine similarity of {} sentences by MiniLM", DRAWN.len());
    let drawn = heatmap::write(&args.out, args.force, &title, &labels, &matrix);

    let mut output = Output::stdout();
    if context.globals.json {
        let picture = drawn.is_ok().then_some(&args.out);
        let answers: Vec<_> = answers.iter().map(as_json).collect();
        output.json(&json!({"model": minilm.release, "answers": answers, "picture": picture}))?;
    } else {
        let card = model.card();
        output.line(format!(
            "Semantic search with the built-in model, MiniLM ({} parameters in 8 bits): the most similar of\n\
             {} sentences (assets/collection.txt) for each query.",
            crate::cli::table::count(card.parameters),
            sentences.len()
        ))?;
        for Answer { question, hits } in &answers {
            output.line(format!("\n  {question}"))?;
            for (score, sentence) in hits {
                output.line(format!("    {score:.2}  {sentence}"))?;
            }
        }
        output.line("")?;
        if drawn.is_ok() {
            output.line(format!("Heatmap: {}\n", args.out.display()))?;
        }
        output.line("Next:")?;
        output.line("  fauna tour \"your own query\"")?;
        output.line("  fauna embed minilm \"a cat sleeps\" \"the kitten naps\"")?;
        output.line("  fauna compare minilm \"a cat sleeps\" \"the kitten naps\" \"stocks fell\"")?;
        output.line("  fauna chat HuggingFaceTB/SmolLM2-135M-Instruct     (downloads 270 MB)")?;
    }
    output.finish()?;
    Ok(drawn.map(|()| Exit::Done)?)
}

fn as_json(answer: &Answer) -> serde_json::Value {
    let hits: Vec<_> =
        answer.hits.iter().map(|(score, text)| json!({"score": score, "text": text})).collect();
    json!({"question": answer.question, "hits": hits})
}
