//! The words around an instruction, exactly as the model was trained on them.

use fauna_shared::text::Tokenizer;
use fauna_shared::{Error, Result};

/// The lone word boundary that ended every prompt of the training.
pub const BOUNDARY: u32 = 29_871;

/// How an instruction is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptStyle {
    /// Of openvla-7b and what was trained from it.
    Plain,
    /// Of openvla-7b-v01, whose language model was Vicuna.
    Vicuna,
}

/// What Vicuna's conversations begin with.
const SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. \
    The assistant gives helpful, detailed, and polite answers to the user's questions.";

impl PromptStyle {
    /// Of models over the language model that the training code calls `llm`.
    pub fn of(llm: &str) -> Self {
        match llm.starts_with("vicuna") {
            true => Self::Vicuna,
            false => Self::Plain,
        }
    }

    /// The prompt for `instruction`, which becomes lower case.
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

    /// The tokens of the prompt, [`BOUNDARY`] at their end, where the vocabulary of `vocabulary` tokens reaches so far.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for an instruction without a word, or a token outside of the vocabulary.
    pub fn tokens(self, tokenizer: &Tokenizer, instruction: &str, vocabulary: usize) -> Result<Vec<u32>> {
        if instruction.trim().is_empty() {
            return Err(Error::input("the instruction is empty")
                .hint("say what the robot is to do: \"pick up the red block\""));
        }
        let mut ids = tokenizer.encode(&self.prompt(instruction), true)?;
        end_with_boundary(&mut ids, vocabulary);
        match ids.iter().find(|id| **id as usize >= vocabulary) {
            None if !ids.is_empty() => Ok(ids),
            None => Err(Error::input("the instruction has no token")),
            Some(id) => Err(Error::input(format!("token {id} is outside the vocabulary of {vocabulary}"))
                .hint("the tokenizer is not this model's")),
        }
    }
}

/// Puts [`BOUNDARY`] at the end of `ids` unless it is there, or the vocabulary is too small to have it.
pub fn end_with_boundary(ids: &mut Vec<u32>, vocabulary: usize) {
    if ids.last() != Some(&BOUNDARY) && vocabulary > BOUNDARY as usize {
        ids.push(BOUNDARY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_those_of_the_training() {
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
    fn the_boundary_is_there_once() {
        let mut ids = vec![1, 2];
        end_with_boundary(&mut ids, 32_064);
        end_with_boundary(&mut ids, 32_064);
        assert_eq!(ids, [1, 2, BOUNDARY]);
        let mut small = vec![1, 2];
        end_with_boundary(&mut small, 61);
        assert_eq!(small, [1, 2]);
    }
}
