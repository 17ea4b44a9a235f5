//! The tour: a search by meaning through a small collection, with the model that is built in.

use std::path::PathBuf;

use fauna::{Item, Result, cosine};
use serde_json::json;

use crate::cli::options::Loading;
use crate::cli::output::Output;
use crate::cli::{Context, Exit, heatmap};

/// What the tour searches: one sentence a line.
const COLLECTION: &str = include_str!("../../../assets/collection.txt");

/// What it asks for, in words that the collection mostly does not use.
const QUESTIONS: [&str; 4] = [
    "something to help a child sleep",
    "bad news for investors",
    "robots that handle fragile objects",
    "exploring other planets",
];

/// Lines of the collection that are drawn: neighbours in meaning stand together, so that the picture shows blocks.
const DRAWN: [usize; 14] = [0, 5, 8, 10, 12, 14, 19, 23, 25, 27, 28, 32, 49, 52];

const BEST: usize = 3;

/// Where the picture goes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  fauna tour\n  fauna tour \"bad news for investors\" --out tour.png")]
pub struct Args {
    #[command(flatten)]
    pub loading: Loading,
    /// Ask this instead of the tour's own questions; may be given more than once.
    #[arg(value_name = "QUESTION")]
    questions: Vec<String>,
    /// Where the picture goes. A picture of an earlier tour is replaced, any other file is not.
    #[arg(long, short, value_name = "FILE", default_value = "fauna-tour.png")]
    out: PathBuf,
    /// Replace whatever file is there.
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

/// `fauna` alone: what it can do, then the tour.
pub fn welcome(context: &Context) -> Result<Exit> {
    if !context.globals.json {
        let mut output = Output::stdout();
        output.line(concat!(
            "fauna ",
            env!("CARGO_PKG_VERSION"),
            ": a zoo of multimodal foundation models"
        ))?;
        output.line("")?;
        for (verb, does) in [
            ("list", "the families and their released checkpoints"),
            ("info MODEL", "what a checkpoint holds, before and after it is downloaded"),
            ("embed MODEL", "texts to vectors"),
            ("chat MODEL", "a conversation; generate, fill, classify, answer: other work with text"),
            ("draw MODEL", "a text to a picture; describe: a picture to text"),
            ("compose MODEL", "music; listen: questions about a sound"),
            ("forecast MODEL", "series, with prediction intervals"),
            ("energy MODEL", "energy and forces of atoms; relax, md"),
            ("MODEL", "the verb that fits the model"),
            ("compare MODEL", "how similar texts are, how far models agree"),
            ("quantize MODEL", "a smaller copy of a checkpoint"),
            ("parity FOLDER", "proof that a model computes what its reference computes"),
            ("bench MODEL", "how fast it is, how much memory it takes"),
            ("--help", "everything else"),
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
    /// Score and sentence, best first.
    hits: Vec<(f32, &'static str)>,
}

/// Searches, draws, and says what to type next.
pub fn run(args: Args, context: &Context) -> Result<Exit> {
    // A folder that cannot be written is said before the model's name is looked for in it.
    fauna::builtin::folder()?;
    let model = context.open(fauna::builtin::NAME)?;
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
    let title = format!("Similarity in meaning of {} sentences by MiniLM", DRAWN.len());
    let drawn = heatmap::write(&args.out, args.force, &title, &labels, &matrix);

    let mut output = Output::stdout();
    if context.globals.json {
        let picture = drawn.is_ok().then_some(&args.out);
        let answers: Vec<_> = answers.iter().map(as_json).collect();
        output.json(&json!({"model": fauna::builtin::SOURCE, "answers": answers, "picture": picture}))?;
    } else {
        let card = model.card();
        output.line(format!(
            "A tour with the built-in model, MiniLM ({} parameters in 8 bits): it has read {} sentences\n\
             (assets/collection.txt) and finds what is nearest in meaning to a question.",
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
            output.line(format!("Picture: {}\n", args.out.display()))?;
        }
        output.line("Next:")?;
        output.line("  fauna tour \"your own question\"")?;
        output.line("  fauna embed minilm \"a cat sleeps\" \"the kitten naps\"")?;
        output.line("  fauna compare minilm \"a cat sleeps\" \"the kitten naps\" \"stocks fell\"")?;
        output.line("  fauna chat HuggingFaceTB/SmolLM2-135M-Instruct     (downloads 270 MB)")?;
    }
    output.finish()?;
    drawn.map(|()| Exit::Done)
}

fn as_json(answer: &Answer) -> serde_json::Value {
    let hits: Vec<_> =
        answer.hits.iter().map(|(score, text)| json!({"score": score, "text": text})).collect();
    json!({"question": answer.question, "hits": hits})
}
