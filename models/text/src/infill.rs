//! Fill-in-the-middle (FIM) prompts of code models.
//!
//! Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle", arXiv 2207.14255, section 3:
//! prefix, suffix and middle in this order (PSM), each after its sentinel token. The model generates the middle and an
//! end-of-text token.

use fauna_shared::Result;
use fauna_shared::item::Prompt;
use fauna_shared::text::Tokenizer;

/// The sentinel tokens of prefix, suffix and middle: StarCoder, SantaCoder, later code models.
const SPELLINGS: [[&str; 3]; 3] = [
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
];

/// Returns the token ids of the FIM prompt for `prefix` and `suffix`, up to and including the middle token.
///
/// Ids at or beyond `vocabulary` are ignored: a tokenizer may have sentinel tokens that its model has no embedding for.
///
/// # Errors
/// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) if the tokenizer has no FIM tokens.
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
