//! Separates the reasoning of a model from its answer.
//!
//!     cargo run --release --example think -- openai/gpt-oss-20b
//!
//! Without arguments it uses a small gpt-oss that was trained on one conversation, and prints:
//!
//!     low     (Scattering.) Because air scatters blue light more than red.
//!     medium  (Scattering of short waves by air.) Because air scatters blue light more than red.
//!     high    (Blue light has short waves. Air scatters short waves more than long ones. So blue comes from all sides.) Because air scatters blue light more than red.

use std::ops::ControlFlow;

use fauna::{GenerationConfig, Item, Prompt, Reasoning, Role, Turn};

const SMALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/gpt_oss/generate_conversation/model");

fn main() -> anyhow::Result<()> {
    let source = std::env::args().nth(1);
    let model = fauna::open(source.as_deref().unwrap_or(SMALL))?;
    let question = Turn { role: Role::User, items: vec!["Why is the sky blue?".into()] };
    let prompt = Prompt::Chat(vec![question]);
    for effort in [Reasoning::Low, Reasoning::Medium, Reasoning::High] {
        let options = GenerationConfig { max_new_tokens: 1000, reasoning: Some(effort), ..model.defaults() };
        let (mut thoughts, mut answer) = (String::new(), String::new());
        model.generate(&prompt, &options, &mut |piece| {
            match piece {
                Item::Thought(piece) => thoughts += &piece,
                Item::Text(piece) => answer += &piece,
                _ => {}
            }
            ControlFlow::Continue(())
        })?;
        println!("{effort:6}  ({thoughts}) {answer}");
    }
    Ok(())
}
