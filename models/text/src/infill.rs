//! Fill-in-the-middle: the tokens by which models of code are told what stands before a gap and after it.
//!
//! Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle", arXiv 2207.14255, section 3: the
//! parts in the order prefix, suffix, middle, each after its token. The model writes the middle and an end token.

use fauna_shared::Result;
use fauna_shared::item::Prompt;
use fauna_shared::text::Tokenizer;

/// What releases call the tokens of prefix, suffix and middle: StarCoder, SantaCoder, later models of code.
const SPELLINGS: [[&str; 3]; 3] = [
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
];

/// The tokens of a text with a gap between `prefix` and `suffix`, up to where the model begins to fill it.
///
/// A tokenizer may have tokens that its model was never taught: those at or beyond `vocabulary` are none to the model.
///
/// # Errors
/// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) if there are no tokens for that.
pub fn tokens(tokenizer: &Tokenizer, vocabulary: usize, prefix: &str, suffix: &str) -> Result<Vec<u32>> {
    let known = |names: &[&str; 3]| {
        let id = |name| tokenizer.token_id(name).filter(|id| (*id as usize) < vocabulary);
        let [prefix, suffix, middle] = names.map(id);
        Some([prefix?, suffix?, middle?])
    };
    let [before, after, middle] = SPELLINGS.iter().find_map(known).ok_or_else(Prompt::no_infill)?;
    let mut ids = vec![before];
    ids.extend(tokenizer.encode(prefix, false)?);
    ids.push(after);
    ids.extend(tokenizer.encode(suffix, false)?);
    ids.push(middle);
    Ok(ids)
}
