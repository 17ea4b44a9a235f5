//! Concurrent requests to one language model, as in a server; one of them is cancelled, one is invalid.
//!
//!     cargo run --release --example in_a_server -- HuggingFaceTB/SmolLM2-135M-Instruct
//!
//! Without arguments it uses a small model with random weights, and prints the HTTP statuses:
//!
//!     200 8 tokens
//!     200 8 tokens
//!     499 cancelled after 0 tokens
//!     400 top_p must be above 0 and at most 1, got 0

use std::ops::ControlFlow;
use std::sync::Arc;

use fauna::{CancellationToken, Error, ErrorKind, FinishReason, GenerationConfig, Pipeline, Prompt};

const SMALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/llama/text_left_padding/model");

/// Returns the response to a client: an HTTP status and a message.
fn answer(model: &dyn Pipeline, prompt: &str, config: &GenerationConfig) -> (u16, String) {
    match model.generate(&Prompt::from(prompt), config, &mut |_| ControlFlow::Continue(())) {
        Ok(made) if made.finish == Some(FinishReason::Cancelled) => {
            (499, format!("cancelled after {} tokens", made.tokens.len()))
        }
        Ok(made) => (200, format!("{} tokens", made.tokens.len())),
        Err(error) => (status(&error), error.message().to_string()),
    }
}

fn status(error: &Error) -> u16 {
    match error.kind() {
        ErrorKind::Input => 400,
        ErrorKind::NotFound => 404,
        ErrorKind::Unsupported => 422,
        ErrorKind::Cancelled => 499,
        _ => 500,
    }
}

fn main() -> anyhow::Result<()> {
    let source = std::env::args().nth(1);
    let model: Arc<dyn Pipeline> = Arc::from(fauna::open(source.as_deref().unwrap_or(SMALL))?);
    let short = GenerationConfig { eos: Some(Vec::new()), ..GenerationConfig::greedy(8) };
    let gone = CancellationToken::new();
    // The client disconnected before its request was started.
    gone.cancel();
    let requests = [
        ("The light of a galaxy", short.clone()),
        ("Let x be a real number", short.clone()),
        ("A very long question", short.clone().with_cancel(gone)),
        ("x", short.with_top_p(0.0)),
    ];
    let threads = requests.map(|(prompt, config)| {
        let model = model.clone();
        std::thread::spawn(move || answer(model.as_ref(), prompt, &config))
    });
    for thread in threads {
        let (status, line) = thread.join().unwrap_or((500, "the request panicked".to_string()));
        println!("{status} {line}");
    }
    Ok(())
}
