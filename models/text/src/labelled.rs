//! Token sequences with labels, for training.

use candle_core::{DType, Device, Tensor};
use fauna_shared::item::Tensors;
use fauna_shared::model::TrainingBatch;
use fauna_shared::nn::{IGNORE_INDEX, select_rows};
use fauna_shared::text::{ChatTemplate, Message, Tokenizer};
use fauna_shared::train::Example;
use fauna_shared::{Error, Result, transfer};

/// A token sequence, and the label of each token: the token itself if it is learned, else -100.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelledTokens {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Labels, as many as ids.
    pub labels: Vec<i64>,
}

impl LabelledTokens {
    /// All of `ids` are learned.
    pub fn all(ids: Vec<u32>) -> Self {
        let labels = ids.iter().map(|id| i64::from(*id)).collect();
        Self { ids, labels }
    }

    /// Only those of `ids` are learned that follow the prompt, whose tokens alone are `before`; all if not
    /// `mask_prompt`.
    ///
    /// ```
    /// use fauna_text::labelled::LabelledTokens;
    /// let row = LabelledTokens::after(&[5, 6], vec![5, 6, 7], true);
    /// assert_eq!(row.labels, [-100, -100, 7]);
    /// ```
    pub fn after(before: &[u32], ids: Vec<u32>, mask_prompt: bool) -> Self {
        let mut row = Self::all(ids);
        if mask_prompt {
            let prompt = common_prefix(before, &row.ids);
            row.labels[..prompt].fill(IGNORE_INDEX);
        }
        row
    }

    /// The batch of `rows`: `input_ids`, `attention_mask` and `labels`, `(batch, sequence)`, padded on the right.
    /// Longer rows are truncated to `longest` tokens at the end.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if no token is learned.
    pub fn batch(mut rows: Vec<Self>, longest: Option<usize>, pad: u32) -> Result<TrainingBatch> {
        let mut truncated = 0;
        for row in &mut rows {
            let kept = longest.unwrap_or(usize::MAX).min(row.ids.len());
            truncated += row.ids.len() - kept;
            row.ids.truncate(kept);
            row.labels.truncate(kept);
        }
        if !rows.iter().any(|row| row.labels.iter().skip(1).any(|label| *label != IGNORE_INDEX)) {
            let error = Error::input("no token of the batch is learned");
            return Err(match truncated {
                0 => error,
                _ => {
                    error.hint("the examples were truncated before what is learned: raise the maximum length")
                }
            });
        }
        let (ids, labels): (Vec<_>, Vec<_>) = rows.into_iter().map(|row| (row.ids, row.labels)).unzip();
        let mut inputs = padded_ids(&ids, pad)?;
        inputs.insert("labels".into(), padded(labels, IGNORE_INDEX)?);
        let mut batch = TrainingBatch::new(inputs);
        batch.truncated = truncated;
        Ok(batch)
    }
}

/// The batch of token sequences, padded on the right with the token `pad`: `input_ids` and `attention_mask`,
/// `(batch, sequence)`.
///
/// # Errors
/// Those of the tensor library.
pub fn padded_ids(rows: &[Vec<u32>], pad: u32) -> Result<Tensors> {
    let ids = rows.iter().map(|row| row.iter().map(|id| i64::from(*id)).collect()).collect();
    let mask = rows.iter().map(|row| vec![1; row.len()]).collect();
    Ok(Tensors::from([
        ("input_ids".to_string(), padded(ids, i64::from(pad))?),
        ("attention_mask".to_string(), padded(mask, 0)?),
    ]))
}

/// The batch of sequences, padded on the right with `padding`, `(batch, sequence)`.
///
/// # Errors
/// Those of the tensor library.
pub fn padded(mut rows: Vec<Vec<i64>>, padding: i64) -> Result<Tensor> {
    let time = rows.iter().map(Vec::len).max().unwrap_or(0);
    rows.iter_mut().for_each(|row| row.resize(time, padding));
    Ok(Tensor::from_vec(rows.concat(), (rows.len(), time), &Device::Cpu)?)
}

/// The hidden states of the positions that have a label, `(positions, hidden_size)`, and their labels, `(positions)`, so
/// that logits are computed only there. `hidden`: `(batch, sequence, hidden_size)`; `labels`: `(batch, sequence)`.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for labels of another shape, or if no position has a label.
pub fn labelled_positions(hidden: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor)> {
    let (batch, time, width) = hidden.dims3()?;
    if labels.dims() != [batch, time] {
        let (labels, expected) = (labels.dims(), [batch, time]);
        return Err(Error::input(format!("labels have shape {labels:?}, expected {expected:?}")));
    }
    let labels: Vec<i64> = transfer::to_host(&labels.to_dtype(DType::I64)?)?;
    let learned = (0u32..).zip(labels).filter(|(_, label)| *label != IGNORE_INDEX);
    let (at, labels): (Vec<u32>, Vec<i64>) = learned.unzip();
    if at.is_empty() {
        return Err(Error::input("no token of the batch has a label"));
    }
    let count = labels.len();
    Ok((select_rows(&hidden.reshape(((), width))?, &at)?, Tensor::from_vec(labels, count, &Device::Cpu)?))
}

/// The tokens of the conversation `messages`, rendered by `template`. If `mask_prompt`, only the messages of the
/// assistant are learned.
///
/// # Errors
/// Those of the template; [`Input`](fauna_shared::ErrorKind::Input) if no message is the assistant's.
pub fn conversation(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
    mask_prompt: bool,
) -> Result<LabelledTokens> {
    // The template includes the begin-of-sequence token where the model needs one.
    let tokens =
        |count: usize, prompt: bool| tokenizer.encode(&template.render(&messages[..count], prompt)?, false);
    let answers: Vec<bool> = messages.iter().map(|message| message.role == "assistant").collect();
    turns(tokens, &answers, mask_prompt)
}

/// The tokens of a conversation in any format. `tokens(count, prompt)` are those of its first `count` turns, followed by
/// the beginning of the assistant's turn if `prompt`; `answers`: which turns are the assistant's. If `mask_prompt`, only
/// these are learned.
///
/// ```
/// use fauna_text::labelled::turns;
/// // A question of two tokens, the beginning of the answer, the answer, and its end.
/// let tokens = |count: usize, prompt: bool| -> fauna_shared::Result<Vec<u32>> {
///     Ok([5, 6, 7, 8, 9][..if count == 2 { 5 } else { 2 + usize::from(prompt) }].to_vec())
/// };
/// assert_eq!(turns(tokens, &[false, true], true)?.labels, [-100, -100, -100, 8, 9]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// Those of `tokens`; [`Input`](fauna_shared::ErrorKind::Input) if no turn is the assistant's.
pub fn turns(
    tokens: impl Fn(usize, bool) -> Result<Vec<u32>>,
    answers: &[bool],
    mask_prompt: bool,
) -> Result<LabelledTokens> {
    let mut row = LabelledTokens::all(tokens(answers.len(), false)?);
    if !answers.contains(&true) {
        return Err(Error::input(
            "a conversation without a turn of the assistant, of which nothing is learned",
        ));
    }
    if !mask_prompt {
        return Ok(row);
    }
    let labels = std::mem::replace(&mut row.labels, vec![IGNORE_INDEX; row.ids.len()]);
    for (i, _) in answers.iter().enumerate().filter(|(_, is_answer)| **is_answer) {
        let start = common_prefix(&tokens(i, true)?, &row.ids);
        let end = common_prefix(&tokens(i + 1, false)?, &row.ids);
        if start < end {
            row.labels[start..end].copy_from_slice(&labels[start..end]);
        }
    }
    Ok(row)
}

/// The number of first tokens that `a` and `b` have in common.
fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The error for an example that a model does not learn from; `learned` lists the kinds it does.
pub fn not_learned(example: &Example, learned: &str) -> Error {
    Error::input(format!("this model does not learn from examples of the kind \"{}\"", example.kind()))
        .hint(format!("it learns from: {learned}"))
}
