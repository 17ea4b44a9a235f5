//! Multi-turn conversations with a shared KV cache.

use std::ops::ControlFlow;

use super::Pipeline;
use crate::generate::{Generation, GenerationConfig, PrefixCache};
use crate::item::{Item, Role, Turn};
use crate::{Error, Result};

/// A conversation: its turns and their KV cache.
///
/// Each answer processes only the tokens of the new turn, because the KV cache holds the previous ones. A conversation
/// can be [branched](Session::branch) and [truncated](Session::truncate) to an earlier turn.
///
/// ```no_run
/// use std::ops::ControlFlow;
/// # use fauna_shared::model::{Pipeline, Session};
/// # fn f(model: &dyn Pipeline) -> fauna_shared::Result<()> {
/// use fauna_shared::generate::GenerationConfig;
/// let config = GenerationConfig::greedy(100);
/// let mut session = Session::new(model).with_system("Answer in one sentence.");
/// let answer = session.say("Why is the sky blue?", &config, &mut |_| ControlFlow::Continue(()))?;
/// let mut other = session.branch()?;
/// other.say("And at sunset?", &config, &mut |_| ControlFlow::Continue(()))?;
/// assert_eq!(session.turns().len() + 2, other.turns().len());
/// # let _ = answer;
/// # Ok(())
/// # }
/// ```
pub struct Session<'a> {
    model: &'a dyn Pipeline,
    turns: Vec<Turn>,
    cache: PrefixCache,
}

/// The model's turn.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply {
    /// Text of the answer.
    pub text: String,
    /// Reasoning before the answer, if the model separates it.
    pub reasoning: String,
    /// Finish reason, token ids and timings.
    pub generation: Generation,
}

impl<'a> Session<'a> {
    /// Starts an empty conversation.
    pub fn new(model: &'a dyn Pipeline) -> Self {
        Self { model, turns: Vec::new(), cache: PrefixCache::default() }
    }

    /// Adds a system prompt before all turns.
    #[must_use]
    pub fn with_system(mut self, text: impl Into<String>) -> Self {
        self.turns.insert(0, Turn { role: Role::System, items: vec![Item::Text(text.into())] });
        self
    }

    /// The turns so far, including the system prompt.
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// Adds the user's next turn as text and generates the model's turn. See [`say_items`](Self::say_items).
    ///
    /// # Errors
    /// As [`Pipeline::generate`]; the user's turn is then removed from the conversation.
    pub fn say(
        &mut self,
        text: impl Into<String>,
        config: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Reply> {
        self.say_items(vec![Item::Text(text.into())], config, each)
    }

    /// Adds the user's next turn, of items of any modality the model supports, and generates the model's turn. Calls
    /// `each` with every new item; if it breaks, the text generated so far is the model's turn.
    ///
    /// # Errors
    /// As [`Pipeline::generate`]; the user's turn is then removed from the conversation.
    pub fn say_items(
        &mut self,
        items: Vec<Item>,
        config: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Reply> {
        self.turns.push(Turn { role: Role::User, items });
        let mut reply = Reply::default();
        let made = self.model.reply(&self.turns, config, &mut self.cache, &mut |item| {
            match &item {
                Item::Text(text) => reply.text += text,
                Item::Thought(text) => reply.reasoning += text,
                _ => {}
            }
            each(item)
        });
        match made {
            Ok(generation) => {
                reply.generation = generation;
                self.turns.push(Turn { role: Role::Assistant, items: vec![Item::Text(reply.text.clone())] });
                Ok(reply)
            }
            Err(error) => {
                self.turns.pop();
                Err(error)
            }
        }
    }

    /// Returns an independent copy of the conversation.
    ///
    /// # Errors
    /// [`Compute`](crate::ErrorKind::Compute) if the KV cache cannot be copied.
    pub fn branch(&self) -> Result<Self> {
        Ok(Self { model: self.model, turns: self.turns.clone(), cache: self.cache.branch()? })
    }

    /// Removes all but the first `turns` turns. The KV cache is truncated at the next turn.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if there are fewer turns.
    pub fn truncate(&mut self, turns: usize) -> Result<()> {
        if turns > self.turns.len() {
            return Err(Error::input(format!("cannot keep {turns} turns, there are {}", self.turns.len())));
        }
        self.turns.truncate(turns);
        Ok(())
    }
}
