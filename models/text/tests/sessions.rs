//! Language models in an application: batches, sessions, cancellation, token counts.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fauna_shared::generate::{CancellationToken, FinishReason, GenerationConfig};
use fauna_shared::item::{Item, Prompt, Role, Turn};
use fauna_shared::model::{LoadOptions, Pipeline, Session};
use fauna_shared::zoo::Zoo;

/// A tiny Llama with a tokenizer and a chat template.
fn model(folder: &Path) -> Box<dyn Pipeline> {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/llama/text_left_padding/model");
    for entry in std::fs::read_dir(case).unwrap() {
        let from: PathBuf = entry.unwrap().path();
        std::fs::copy(&from, folder.join(from.file_name().unwrap())).unwrap();
    }
    let template =
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:";
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    let zoo = Zoo::new(fauna_text::FAMILIES.iter().copied());
    zoo.open(folder.to_str().unwrap(), &LoadOptions::default()).unwrap()
}

fn text_of(model: &dyn Pipeline, prompt: &Prompt, config: &GenerationConfig) -> String {
    let mut text = String::new();
    let mut each = |item| {
        if let Item::Text(piece) = item {
            text += &piece;
        }
        ControlFlow::Continue(())
    };
    model.generate(prompt, config, &mut each).unwrap();
    text
}

#[test]
fn a_batch_generates_the_same_as_its_prompts_alone_and_reports_each() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let prompts: Vec<Prompt> =
        ["The light", "x", "Problem: find the sum of"].into_iter().map(Prompt::from).collect();
    for config in [
        GenerationConfig::greedy(12),
        GenerationConfig { temperature: 1.0, seed: 3, ..GenerationConfig::greedy(12) },
    ] {
        let mut texts = vec![String::new(); 3];
        let mut each = |index: usize, item| {
            if let Item::Text(piece) = item {
                texts[index] += &piece;
            }
            ControlFlow::Continue(())
        };
        let made = model.generate_batch(&prompts, &config, &mut each).unwrap();
        for (row, prompt) in prompts.iter().enumerate() {
            let alone = GenerationConfig { stream: row as u64, ..config.clone() };
            assert_eq!(texts[row], text_of(model.as_ref(), prompt, &alone), "row {row}");
            assert!(matches!(made[row].finish, Some(FinishReason::Length | FinishReason::End)));
            assert!(made[row].tokens.len() <= 12 && !made[row].tokens.is_empty());
            assert!(made[row].seconds >= made[row].prompt_seconds);
        }
        assert_ne!(made[0].prompt_tokens, made[2].prompt_tokens);
    }
}

#[test]
fn a_session_replies_as_the_whole_conversation_does() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let config = GenerationConfig::greedy(6);
    let mut keep = |_| ControlFlow::Continue(());
    let mut session = Session::new(model.as_ref()).with_system("Be brief.");
    for words in ["Why is the sky blue?", "And at night?"] {
        let mut whole = session.turns().to_vec();
        whole.push(Turn { role: Role::User, items: vec![words.into()] });
        let expected = text_of(model.as_ref(), &Prompt::Chat(whole), &config);
        let reply = session.say(words, &config, &mut keep).unwrap();
        assert_eq!(reply.text, expected);
    }
    assert_eq!(session.turns().len(), 5);

    // Two continuations of the same conversation.
    let mut branch = session.branch().unwrap();
    let there = branch.say("Tell me of galaxies.", &config, &mut keep).unwrap();
    let here = session.say("Tell me of stars and gas.", &config, &mut keep).unwrap();
    let mut again = session.branch().unwrap();
    again.truncate(5).unwrap();
    assert_eq!(again.say("Tell me of galaxies.", &config, &mut keep).unwrap().text, there.text);
    session.truncate(5).unwrap();
    assert_eq!(session.say("Tell me of stars and gas.", &config, &mut keep).unwrap().text, here.text);
    assert!(session.truncate(99).is_err());
}

#[test]
fn cancellation_takes_effect_during_a_long_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let prompt = Prompt::from("the light of a distant quasar ".repeat(4000).as_str());
    let cancel = CancellationToken::new();
    let config = GenerationConfig { cancel: cancel.clone(), ..GenerationConfig::greedy(5) };
    let watch = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        cancel.cancel();
        Instant::now()
    });
    let made = model.generate(&prompt, &config, &mut |_| ControlFlow::Continue(())).unwrap();
    let delay = watch.join().unwrap().elapsed();
    assert_eq!((made.finish, made.tokens.len()), (Some(FinishReason::Cancelled), 0));
    assert!(delay < Duration::from_secs(3), "{delay:?}");
}
