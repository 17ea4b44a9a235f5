//! The prompt format of Gemma 3's processor, and Med-PaLM M's one-shot prompts.

use fauna_shared::item::{Image, Item, Prompt, Role, Turn};
use fauna_shared::{Error, ErrorKind, Result};
use serde_json::Value;

use crate::vision_language::{MultimodalProcessor, rendered, said};

/// The placeholder of an image in a text.
const PLACE: &str = "<start_of_image>";
/// The image token, one per image embedding.
const SOFT: &str = "<image_soft_token>";
const END: &str = "<end_of_image>";

/// Med-PaLM M's one-shot prompt: an instruction, one text-only exemplar, and the question with its image (Tu et al.
/// 2023, section 4). `<img>` in the exemplar stands for its image, which is not given.
///
/// ```
/// use fauna_shared::item::{Item, Prompt};
/// use fauna_vision::medgemma::OneShot;
/// let prompt: Prompt = OneShot {
///     instruction: "You are a helpful dermatology assistant.".into(),
///     exemplar: "Given <img>. Q: What is the most likely diagnosis? A: Basal Cell Carcinoma.".into(),
///     query: vec!["Given <start_of_image>. Q: What is the most likely diagnosis? A:".into()],
/// }
/// .into();
/// let Prompt::Chat(turns) = prompt else { unreachable!() };
/// let Item::Text(words) = &turns[0].items[0] else { unreachable!() };
/// assert_eq!(words, "Instructions: You are a helpful dermatology assistant.\n\
///     Given <img>. Q: What is the most likely diagnosis? A: Basal Cell Carcinoma.\n");
/// ```
#[derive(Debug, Clone)]
pub struct OneShot {
    /// The task instruction.
    pub instruction: String,
    /// A question with its answer, as text.
    pub exemplar: String,
    /// The question: texts and images in order.
    pub query: Vec<Item>,
}

impl From<OneShot> for Prompt {
    fn from(shot: OneShot) -> Self {
        Self::Chat(vec![Turn { role: Role::User, items: shot.items() }])
    }
}

impl OneShot {
    /// The items of the prompt: instruction and exemplar, then the question.
    pub fn items(self) -> Vec<Item> {
        let before = [("Instructions: ", self.instruction), ("", self.exemplar)];
        let before: String = before
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(name, text)| format!("{name}{text}\n"))
            .collect();
        let before = (!before.is_empty()).then(|| Item::Text(before));
        before.into_iter().chain(self.query).collect()
    }
}

/// `items` after the instruction and the exemplar of the settings.
fn shot(kit: &MultimodalProcessor, items: &[Item]) -> Result<Vec<Item>> {
    let setting = |name: &str| match kit.settings.get(name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(Error::input(format!("{name} is {other}, expected a string"))),
    };
    let (instruction, exemplar) = (setting("instruction")?, setting("exemplar")?);
    Ok(OneShot { instruction, exemplar, query: items.to_vec() }.items())
}

/// The turns of `prompt`: items are one user turn. `None` for items if the release has no chat template: it continues
/// them.
pub fn turns(kit: &MultimodalProcessor, prompt: &Prompt) -> Result<Option<Vec<Turn>>> {
    match (prompt, &kit.template) {
        (Prompt::Infill { .. }, _) => Err(Prompt::no_infill()),
        (Prompt::Items(_), None) => Ok(None),
        (Prompt::Chat(_), None) => Err(Error::unsupported("this release has no chat template")
            .hint("it continues text: give it a prompt without turns")),
        (Prompt::Items(items), Some(_)) => {
            Ok(Some(vec![Turn { role: Role::User, items: shot(kit, items)? }]))
        }
        (Prompt::Chat(turns), Some(_)) => Ok(Some(turns.clone())),
    }
}

/// Formats and tokenizes `prompt`; returns its token ids, with `tokens` per image, and its images, pan-and-scan crops
/// included. A conversation is followed by the beginning of the model's turn if `asks`.
///
/// Items are one user turn if the release has a chat template, and a text to continue otherwise.
pub fn tokens(
    kit: &MultimodalProcessor,
    prompt: &Prompt,
    tokens: usize,
    asks: bool,
) -> Result<(Vec<u32>, Vec<Image>)> {
    let (words, images, adds_begin) = match (prompt, turns(kit, prompt)?, &kit.template) {
        (_, Some(turns), Some(template)) => {
            let (words, images) = rendered(template, &turns, PLACE, asks)?;
            (words, images, false)
        }
        (Prompt::Items(items), ..) => {
            let (words, images) = said(&[&shot(kit, items)?], PLACE)?;
            (words.concat(), images, true)
        }
        _ => return Err(Prompt::no_infill()),
    };
    let (words, images) = expanded(kit, &words, images, tokens)?;
    if !images.is_empty() && kit.tokenizer.token_id(SOFT).is_none() {
        return Err(Error::new(ErrorKind::NotFound, format!("the tokenizer has no {SOFT}"))
            .hint("it is of a text-only release"));
    }
    Ok((kit.tokenizer.encode(&words, adds_begin)?, images))
}

/// Replaces each placeholder by the image tokens of the image and of its pan-and-scan crops.
fn expanded(
    kit: &MultimodalProcessor,
    words: &str,
    images: Vec<Image>,
    tokens: usize,
) -> Result<(String, Vec<Image>)> {
    let picture = format!("\n\n{PLACE}{}{END}\n\n", SOFT.repeat(tokens));
    let places = words.matches(PLACE).count();
    if places != images.len() {
        return Err(Error::input(format!(
            "the chat template has {places} placeholders ({PLACE}) for {} images",
            images.len()
        )));
    }
    let mut parts = words.split(PLACE);
    let mut out = parts.next().unwrap_or("").to_string();
    let mut seen = Vec::new();
    for (image, part) in images.into_iter().zip(parts) {
        let pieces = kit.processor.pieces(&image)?;
        match pieces.is_empty() {
            true => out.push_str(&picture),
            false => {
                let crops = vec![picture.as_str(); pieces.len()].join(" ");
                out.push_str(&format!(
                    "Here is the original image {picture} and here are some crops to help you see better {crops}"
                ));
            }
        }
        out.push_str(part);
        seen.push(image);
        seen.extend(pieces);
    }
    Ok((out, seen))
}
