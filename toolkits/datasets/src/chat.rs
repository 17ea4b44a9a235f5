//! Conversations.

use std::collections::VecDeque;

use fauna_shared::item::{Item, Role, Turn};
use fauna_shared::{Error, Result};
use serde_json::{Map, Value};

use crate::media::Media;
use crate::rows::Loader;
use crate::table::kind_of;

/// Keys of the reasoning of a message.
const THOUGHTS: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// Pictures and sounds of a row, to which parts of messages without a path refer in order.
#[derive(Default)]
pub(crate) struct Attached {
    images: VecDeque<Item>,
    sounds: VecDeque<Item>,
}

impl Attached {
    pub fn push(&mut self, kind: Media, item: Item) {
        self.of(kind).push_back(item);
    }

    fn of(&mut self, kind: Media) -> &mut VecDeque<Item> {
        match kind {
            Media::Image => &mut self.images,
            Media::Sound => &mut self.sounds,
        }
    }

    /// All pictures, then all sounds.
    pub fn take_all(&mut self) -> Vec<Item> {
        self.images.drain(..).chain(self.sounds.drain(..)).collect()
    }

    /// Refuses what no message refers to.
    pub fn check_used(&self) -> Result<()> {
        for (items, name) in [(&self.images, "image"), (&self.sounds, "audio")] {
            if !items.is_empty() {
                return Err(Error::input(format!("{} of the row's files are in no message", items.len()))
                    .hint(format!("refer to each by a part {{\"type\": \"{name}\"}} of a message")));
            }
        }
        Ok(())
    }
}

/// The turns of `messages`.
pub(crate) fn turns(messages: &[Value], attached: &mut Attached, loader: &Loader) -> Result<Vec<Turn>> {
    if messages.is_empty() {
        return Err(Error::input("there are no messages"));
    }
    let turn = |(index, message): (usize, &Value)| {
        let found = match message {
            Value::Object(message) => turn(message, attached, loader),
            other => Err(Error::input(format!(
                "expected an object with role and content, found {}",
                kind_of(other)
            ))),
        };
        found.map_err(|e| e.context(format!("message {}", index + 1)))
    };
    messages.iter().enumerate().map(turn).collect()
}

fn turn(message: &Map<String, Value>, attached: &mut Attached, loader: &Loader) -> Result<Turn> {
    let role = match message.get("role").and_then(Value::as_str) {
        Some("system") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some(other) => {
            return Err(Error::unsupported(format!("the role \"{other}\" is not implemented"))
                .hint("roles: system, user, assistant"));
        }
        None => return Err(Error::input("there is no role").hint("roles: system, user, assistant")),
    };
    let is_known = |key: &str| key == "role" || key == "content" || THOUGHTS.contains(&key);
    if let Some((key, _)) = message.iter().find(|(key, value)| !is_known(key) && !value.is_null()) {
        return Err(Error::unsupported(format!("the key `{key}` of a message is not implemented"))
            .hint(format!("keys: role, content, {}", THOUGHTS.join(", "))));
    }
    let mut items = Vec::new();
    for key in THOUGHTS {
        match message.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::String(_)) if role != Role::Assistant => {
                return Err(Error::input(format!("only messages of the assistant have `{key}`")));
            }
            Some(Value::String(thought)) => items.push(Item::Thought(thought.clone())),
            Some(other) => {
                return Err(Error::input(format!("`{key}`: expected a text, found {}", kind_of(other))));
            }
        }
    }
    match message.get("content") {
        Some(Value::String(text)) => items.push(Item::Text(text.clone())),
        Some(Value::Array(parts)) => {
            for part in parts {
                items.push(self::part(part, attached, loader)?);
            }
        }
        None | Some(Value::Null) => return Err(Error::input("there is no content")),
        Some(other) => {
            return Err(Error::input(format!(
                "content: expected a text or a list of parts, found {}",
                kind_of(other)
            )));
        }
    }
    let has_words = items.iter().any(|item| matches!(item, Item::Text(text) if !text.is_empty()));
    if role == Role::Assistant && !has_words {
        return Err(Error::input("the message of the assistant has no text, so there is nothing to learn"));
    }
    Ok(Turn { role, items })
}

/// A part of a content that is a list.
fn part(part: &Value, attached: &mut Attached, loader: &Loader) -> Result<Item> {
    if let Value::String(text) = part {
        return Ok(Item::Text(text.clone()));
    }
    let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
    let text_of = |keys: &[&str]| keys.iter().find_map(|key| part.get(*key).and_then(Value::as_str));
    let mut file = |kind: Media, keys: &[&str]| match text_of(keys) {
        Some(name) => loader.item(kind, name),
        None => attached.of(kind).pop_front().ok_or_else(|| {
            Error::input(format!("a part has no path, and the row has no {} left for it", kind.name()))
                .hint(format!("name the file in the part ({}), or in a column of the row", keys.join(", ")))
        }),
    };
    match kind {
        "text" => {
            text_of(&["text"]).map(Item::from).ok_or_else(|| Error::input("a part of text has no key `text`"))
        }
        "image" => file(Media::Image, &["image", "path"]),
        "audio" => file(Media::Sound, &["audio", "path"]),
        "" => Err(Error::input("a part of the content has no type").hint("types: text, image, audio")),
        other => Err(Error::unsupported(format!("parts of the type \"{other}\" are not implemented"))
            .hint("types: text, image, audio; files are named by paths, not by addresses")),
    }
}

/// The text of the only turn of an answer.
pub(crate) fn answer(turns: &[Turn]) -> Result<String> {
    match turns {
        [Turn { role: Role::Assistant, items }] => match &items[..] {
            [Item::Text(text)] => Ok(text.clone()),
            _ => Err(Error::unsupported("a completion of more than one text is not implemented")),
        },
        _ => Err(Error::input("a completion must be one message of the assistant")
            .hint("put longer conversations in a column `messages`")),
    }
}
