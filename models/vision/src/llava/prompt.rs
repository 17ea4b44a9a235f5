//! The prompt formats of LLaVA-Med and LLaVA 1.5.

use fauna_shared::item::{Image, Item, Prompt, Role, Turn};
use fauna_shared::text::ChatTemplate;
use fauna_shared::{Error, Result};

use crate::vision_language::{MultimodalProcessor, rendered, said};

/// The placeholder of an image in a text.
const PLACE: &str = "<image>";

/// The conversation format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `[INST] … [/INST]`.
    Mistral,
    /// `USER: … ASSISTANT: …`.
    Vicuna,
}

/// Formats and tokenizes `prompt`; returns its token ids, with `tokens` times `place` per image, and its images. Texts
/// between images are tokenized separately, as in the original. `template`: the release's own way of telling turns apart,
/// which `form` gives way to. The beginning of the assistant's turn follows if `asks`.
pub fn tokens(
    kit: &MultimodalProcessor,
    prompt: &Prompt,
    form: Form,
    template: Option<&ChatTemplate>,
    place: u32,
    tokens: usize,
    asks: bool,
) -> Result<(Vec<u32>, Vec<Image>)> {
    let (words, images) = match template {
        Some(template) => by_template(prompt, template, asks)?,
        None => words(prompt, form, asks)?,
    };
    let mut ids = Vec::new();
    for (i, part) in words.split(PLACE).enumerate() {
        if i > 0 {
            ids.extend(std::iter::repeat_n(place, tokens));
        }
        // A template writes the begin token itself.
        let mut part = kit.tokenizer.encode(part, template.is_none())?;
        // Only the first part keeps its BOS token.
        if i > 0 && part.first().copied() == kit.tokenizer.special().bos && !part.is_empty() {
            part.remove(0);
        }
        ids.extend(part);
    }
    Ok((ids, images))
}

/// Formats `prompt` as text. Items are one user turn; a newline follows each image.
fn words(prompt: &Prompt, form: Form, asks: bool) -> Result<(String, Vec<Image>)> {
    let alone;
    let turns = match prompt {
        Prompt::Chat(turns) => turns,
        Prompt::Infill { .. } => return Err(Prompt::no_infill()),
        Prompt::Items(items) => {
            alone = vec![Turn { role: Role::User, items: items.clone() }];
            &alone
        }
    };
    let (system, turns) = match &turns[..] {
        [first, rest @ ..] if first.role == Role::System => (Some(first), rest),
        all => (None, all),
    };
    let spaced: Vec<Vec<Item>> = turns.iter().map(|turn| on_lines(&turn.items)).collect();
    let system = match system {
        None => String::new(),
        Some(turn) => turn.items.iter().map(Item::text).collect::<Result<Vec<_>>>()?.concat(),
    };
    let (texts, images) = said(&spaced.iter().map(Vec::as_slice).collect::<Vec<_>>(), PLACE)?;
    let mut out = String::new();
    if form == Form::Vicuna && !system.is_empty() {
        out.push_str(&format!("{system} "));
    }
    for (i, (turn, text)) in turns.iter().zip(&texts).enumerate() {
        out.push_str(&match (form, turn.role) {
            (_, Role::System) => return Err(Error::input("a system turn must be the first turn")),
            (Form::Mistral, Role::User) if i == 0 && !system.is_empty() => {
                format!("[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{text} [/INST]")
            }
            (Form::Mistral, Role::User) => format!("[INST] {text} [/INST]"),
            (Form::Mistral, Role::Assistant) => format!(" {text} </s>"),
            (Form::Vicuna, Role::User) => format!("USER: {text} "),
            (Form::Vicuna, Role::Assistant) => format!("ASSISTANT: {text}</s>"),
        });
    }
    if form == Form::Vicuna && asks {
        out.push_str("ASSISTANT:");
    }
    Ok((out, images))
}

/// Formats `prompt` with the release's chat template, which must keep the placeholders of images.
fn by_template(prompt: &Prompt, template: &ChatTemplate, asks: bool) -> Result<(String, Vec<Image>)> {
    let turn = |role, items: &[Item]| Turn { role, items: on_lines(items) };
    let turns = match prompt {
        Prompt::Chat(turns) => turns.iter().map(|said| turn(said.role, &said.items)).collect(),
        Prompt::Items(items) => vec![turn(Role::User, items)],
        Prompt::Infill { .. } => return Err(Prompt::no_infill()),
    };
    let (words, images) = rendered(template, &turns, PLACE, asks)?;
    match words.matches(PLACE).count() {
        places if places == images.len() => Ok((words, images)),
        places => Err(Error::input(format!(
            "the chat template rendered {places} placeholders ({PLACE}) for {} images",
            images.len()
        ))),
    }
}

/// Adds a newline after each image, unless the texts contain placeholders.
fn on_lines(items: &[Item]) -> Vec<Item> {
    let placed = items.iter().any(|item| matches!(item, Item::Text(text) if text.contains(PLACE)));
    let mut out = Vec::with_capacity(items.len());
    for item in items {
        out.push(item.clone());
        if matches!(item, Item::Image(_)) && !placed {
            out.push("\n".into());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Item {
        Item::Image(Image { width: 1, height: 1, rgb: vec![0; 3] })
    }

    #[test]
    fn a_question_is_put_as_in_training() {
        let prompt = Prompt::Items(vec![picture(), "What is shown?".into()]);
        assert_eq!(words(&prompt, Form::Mistral, true).unwrap().0, "[INST] <image>\nWhat is shown? [/INST]");
        assert_eq!(words(&prompt, Form::Vicuna, true).unwrap().0, "USER: <image>\nWhat is shown? ASSISTANT:");
    }

    #[test]
    fn another_language_models_template_formats_the_turns() {
        let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
            {{ '<|im_start|>assistant\\n' }}";
        let template = ChatTemplate::new(source, None, None).unwrap();
        let prompt = Prompt::Items(vec![picture(), "What is shown?".into()]);
        let (said, images) = by_template(&prompt, &template, true).unwrap();
        let wanted = "<|im_start|>user\n<image>\nWhat is shown?<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!((said.as_str(), images.len()), (wanted, 1));
        let deaf = ChatTemplate::new("nothing", None, None).unwrap();
        let error = by_template(&prompt, &deaf, true).unwrap_err().to_string();
        assert!(error.contains("rendered 0 placeholders"), "{error}");
    }

    #[test]
    fn pictures_go_to_their_places_and_must_be_as_many() {
        let first = Prompt::Items(vec![picture(), "Compare <image> with <image>.".into(), picture()]);
        let (said, images) = words(&first, Form::Mistral, true).unwrap();
        assert_eq!((said.as_str(), images.len()), ("[INST] Compare <image> with <image>. [/INST]", 2));
        for items in [vec!["<image>".into()], vec!["<image>".into(), picture(), picture()]] {
            let error = words(&Prompt::Items(items), Form::Mistral, true).unwrap_err().to_string();
            assert!(error.contains("1 placeholder for an image"), "{error}");
        }
    }

    #[test]
    fn a_conversation_keeps_its_turns() {
        let turn = |role, items| Turn { role, items };
        let chat = Prompt::Chat(vec![
            turn(Role::User, vec![picture(), "What?".into()]),
            turn(Role::Assistant, vec!["A cat.".into()]),
            turn(Role::User, vec!["Sure?".into()]),
        ]);
        let said = words(&chat, Form::Mistral, true).unwrap().0;
        assert_eq!(said, "[INST] <image>\nWhat? [/INST] A cat. </s>[INST] Sure? [/INST]");
    }
}
