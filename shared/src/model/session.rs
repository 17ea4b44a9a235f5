//! A conversation with a model, turn by turn, over one KV cache.

use std::ops::ControlFlow;

use super::Pipeline;
use crate::generate::{Generation, GenerationConfig, PrefixCache};
use crate::item::{Item, Role, Turn};
use crate::{Error, Result};

/// A conversation: its turns, and what the model has read of them.
///
/// Each answer costs the tokens of its own turn, since the KV cache holds what was said before. A conversation can be
/// [branched](Session::branch), to try another question from the same point, and [truncated](Session::truncate), to take
/// turns back.
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

/// What a model said in its turn.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply {
    /// Its answer.
    pub text: String,
    /// What it reasoned before, where it tells that apart.
    pub reasoning: String,
    /// Why it ended, its tokens, what it took.
    pub generation: Generation,
}

impl<'a> Session<'a> {
    /// With nothing said yet.
    pub fn new(model: &'a dyn Pipeline) -> Self {
        Self { model, turns: Vec::new(), cache: PrefixCache::default() }
    }

    /// With a system prompt before all turns.
    #[must_use]
    pub fn with_system(mut self, text: impl Into<String>) -> Self {
        self.turns.insert(0, Turn { role: Role::System, items: vec![Item::Text(text.into())] });
        self
    }

    /// The turns so far, the system prompt among them.
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// The user's next turn, in words; gives the model's. See [`say_items`](Self::say_items).
    ///
    /// # Errors
    /// As [`Pipeline::generate`]; the turn is then not part of the conversation.
    pub fn say(
        &mut self,
        text: impl Into<String>,
        config: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Reply> {
        self.say_items(vec![Item::Text(text.into())], config, each)
    }

    /// The user's next turn, of any items the model reads; gives the model's. Pieces are handed to `each` as they come; if it
    /// breaks, what was said until then is the model's turn.
    ///
    /// # Errors
    /// As [`Pipeline::generate`]; the turn is then not part of the conversation.
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

    /// A second conversation with the same beginning; what is said in one is not heard in the other.
    ///
    /// # Errors
    /// [`Compute`](crate::ErrorKind::Compute) if there is no memory for a second KV cache.
    pub fn branch(&self) -> Result<Self> {
        Ok(Self { model: self.model, turns: self.turns.clone(), cache: self.cache.branch()? })
    }

    /// Takes back all but the first `turns` turns. What the KV cache holds of the rest stays until the next turn says
    /// something else, and costs nothing.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if there are not so many.
    pub fn truncate(&mut self, turns: usize) -> Result<()> {
        if turns > self.turns.len() {
            return Err(Error::input(format!("{turns} turns of {}", self.turns.len())));
        }
        self.turns.truncate(turns);
        Ok(())
    }
}
