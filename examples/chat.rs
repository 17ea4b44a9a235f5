//! Chats with a model: two questions, the second of which refers to the first answer.
//!
//!     cargo run --release --example chat -- HuggingFaceTB/SmolLM2-135M-Instruct
//!
//!     > What is the capital of France?
//!     The capital of France is Paris.
//!     …

use anyhow::Context;
use std::ops::ControlFlow;

use fauna::{GenerationConfig, Item, Prompt, Role, Turn};

fn main() -> anyhow::Result<()> {
    let source = std::env::args().nth(1).context("usage: chat MODEL (a folder, a file, owner/name)")?;
    let model = fauna::open(&source)?;
    let say = |role, text: &str| Turn { role, items: vec![text.into()] };

    let mut turns = vec![say(Role::System, "You answer in one short sentence.")];
    for question in ["What is the capital of France?", "And what is it famous for?"] {
        turns.push(say(Role::User, question));
        let mut answer = String::new();
        model.generate(&Prompt::Chat(turns.clone()), &GenerationConfig::greedy(60), &mut |piece| {
            if let Item::Text(words) = piece {
                answer.push_str(&words);
            }
            ControlFlow::Continue(())
        })?;
        println!("> {question}\n{}\n", answer.trim());
        turns.push(say(Role::Assistant, &answer));
    }
    Ok(())
}
