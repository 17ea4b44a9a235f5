//! Prompt templates, exactly as in training.

use fauna_shared::text::Tokenizer;
use fauna_shared::{Error, Result};

/// The empty token (a lone word boundary) at the end of every training prompt.
pub const BOUNDARY: u32 = 29_871;

/// Prompt template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptStyle {
    /// Template of openvla-7b and models fine-tuned from it.
    Plain,
    /// Template of openvla-v01-7b, whose language model is Vicuna.
    Vicuna,
}

/// System prompt of Vicuna.
const SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. \
    The assistant gives helpful, detailed, and polite answers to the user's questions.";

impl PromptStyle {
    /// Returns the template for the language model `llm`, by its name in the training code.
    pub fn of(llm: &str) -> Self {
        match llm.starts_with("vicuna") {
            true => Self::Vicuna,
            false => Self::Plain,
        }
    }

    /// Returns the prompt for `instruction`, which is lowercased.
    ///
    /// ```
    /// use fauna_robotics::openvla::PromptStyle;
    /// let prompt = PromptStyle::Plain.prompt("Pick up the red block");
    /// assert_eq!(prompt, "In: What action should the robot take to pick up the red block?\nOut:");
    /// ```
    pub fn prompt(self, instruction: &str) -> String {
        let instruction = instruction.trim().to_lowercase();
        match self {
            Self::Plain => format!("In: What action should the robot take to {instruction}?\nOut:"),
            Self::Vicuna => {
                format!("{SYSTEM} USER: What action should the robot take to {instruction}? ASSISTANT:")
            }
        }
    }

    /// Returns the tokens of the prompt, with [`BOUNDARY`] at the end if the vocabulary of size `vocabulary` contains it.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for an empty instruction, or a token outside the vocabulary.
    pub fn tokens(self, tokenizer: &Tokenizer, instruction: &str, vocabulary: usize) -> Result<Vec<u32>> {
        if instruction.trim().is_empty() {
            return Err(
                Error::input("the instruction is empty").hint("for example \"pick up the red block\"")
            );
        }
        let mut ids = tokenizer.encode(&self.prompt(instruction), true)?;
        end_with_boundary(&mut ids, vocabulary);
        match ids.iter().find(|id| **id as usize >= vocabulary) {
            None if !ids.is_empty() => Ok(ids),
            None => Err(Error::input("the instruction has no tokens")),
            Some(id) => Err(Error::input(format!("token {id} is outside the vocabulary of {vocabulary}"))
                .hint("the tokenizer does not belong to this model")),
        }
    }
}

/// Appends [`BOUNDARY`] to `ids` unless they end with it, or the vocabulary does not contain it.
pub fn end_with_boundary(ids: &mut Vec<u32>, vocabulary: usize) {
    if ids.last() != Some(&BOUNDARY) && vocabulary > BOUNDARY as usize {
        ids.push(BOUNDARY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_those_of_training() {
        assert_eq!(
            PromptStyle::of("llama2-7b-pure").prompt(" Put the SPOON on the towel "),
            "In: What action should the robot take to put the spoon on the towel?\nOut:"
        );
        let vicuna = PromptStyle::of("vicuna-v15-7b").prompt("stop");
        assert!(vicuna.starts_with("A chat between a curious user and an artificial"));
        assert!(
            vicuna.ends_with("user's questions. USER: What action should the robot take to stop? ASSISTANT:")
        );
    }

    #[test]
    fn the_boundary_token_is_not_repeated() {
        let mut ids = vec![1, 2];
        end_with_boundary(&mut ids, 32_064);
        end_with_boundary(&mut ids, 32_064);
        assert_eq!(ids, [1, 2, BOUNDARY]);
        let mut small = vec![1, 2];
        end_with_boundary(&mut small, 61);
        assert_eq!(small, [1, 2]);
    }
}
