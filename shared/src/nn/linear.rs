//! Linear layers and embeddings.

use candle_core::{DType, Tensor};

use super::{Activation, Matrix};
use crate::Result;
use crate::weights::Weights;

/// A linear layer, `x · weightᵀ + bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

impl Linear {
    /// Creates a layer from `weight`, `(outputs, inputs)`, and `bias`, `(outputs)`.
    pub fn new(weight: Matrix, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// Applies the layer to `x`, `(…, inputs)`. Returns `(…, outputs)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.multiply(x, self.bias.as_ref(), None)
    }

    /// Returns `activation(self.forward(x))`, `(…, outputs)`, for `x`, `(…, inputs)`.
    pub fn forward_then(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.weight.multiply(x, self.bias.as_ref(), Some(activation))
    }

    /// Returns the weight, `(outputs, inputs)`.
    pub fn weight(&self) -> &Matrix {
        &self.weight
    }

    /// Returns the bias, `(outputs)`, if there is one.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

/// An embedding table.
#[derive(Debug, Clone)]
pub struct Embedding {
    table: Matrix,
    activations: DType,
}

impl Embedding {
    /// Creates an embedding from a table of `(vocab_size, hidden_size)`. The embeddings have the dtype `activations`.
    pub fn new(table: Matrix, activations: DType) -> Self {
        Self { table, activations }
    }

    /// Looks up `ids`, unsigned integers of any shape `(…)`. Returns `(…, hidden_size)`.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if an id is not below the vocabulary size.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.table.rows(ids, self.activations)
    }

    /// Returns the output head with tied weights: a linear layer to `(…, vocab_size)` logits without bias.
    pub fn as_linear(&self) -> Linear {
        Linear::new(self.table.clone(), None)
    }

    /// Returns the vocabulary size (number of embeddings).
    pub fn count(&self) -> usize {
        self.table.outputs()
    }

    /// Returns the hidden size (embedding dimension).
    pub fn width(&self) -> usize {
        self.table.inputs()
    }
}

impl Weights {
    /// Loads the linear layer `name`: `weight` of `[outputs, inputs]` and `bias` of `[outputs]`.
    pub fn linear(&self, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        let here = self.at(name);
        Ok(Linear::new(here.matrix("weight", outputs, inputs)?, Some(here.tensor("bias", &[outputs])?)))
    }

    /// Loads the linear layer `name` without a bias.
    pub fn linear_no_bias(&self, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        Ok(Linear::new(self.at(name).matrix("weight", outputs, inputs)?, None))
    }

    /// Loads the linear layer `name`, with a bias if `bias` (for example the config key `attention_bias`).
    pub fn linear_bias_if(&self, bias: bool, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        match bias {
            true => self.linear(name, inputs, outputs),
            false => self.linear_no_bias(name, inputs, outputs),
        }
    }

    /// Loads the linear layer `name` with a bias, whose `weight` is stored as `[inputs, outputs]`, like the `Conv1D` of
    /// GPT-2.
    pub fn linear_transposed(&self, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        let here = self.at(name);
        let weight = here.matrix_transposed("weight", outputs, inputs)?;
        Ok(Linear::new(weight, Some(here.tensor("bias", &[outputs])?)))
    }

    /// Loads the embedding `name`: `weight` of `[count, width]`, vocabulary size and hidden size.
    pub fn embedding(&self, name: &str, count: usize, width: usize) -> Result<Embedding> {
        let table = self.at(name).table("weight", count, width)?;
        Ok(Embedding { table, activations: self.runtime().activations() })
    }

    /// Loads the embedding `table` of `[count, width]` and the output head `head_name` with tied weights. As in the
    /// reference, a file may have either or both; if both are there and differ, they are not tied.
    ///
    /// # Errors
    /// Same as [`embedding`](Self::embedding).
    pub fn tied(
        &self,
        table: &str,
        head_name: &str,
        count: usize,
        width: usize,
    ) -> Result<(Embedding, Linear)> {
        if self.differ(&format!("{table}.weight"), &format!("{head_name}.weight")) {
            return Ok((self.embedding(table, count, width)?, self.linear_no_bias(head_name, width, count)?));
        }
        let weight = |name: &str| self.has(&format!("{name}.weight"), false);
        let (held, copy) = match !weight(table) && weight(head_name) {
            true => (head_name, table),
            false => (table, head_name),
        };
        self.skip_copy(&format!("{copy}.weight"));
        let shared = self.at(held).table("weight", count, width)?;
        // An adapter of the table changes the embeddings alone, and one of the head the logits alone.
        let head = match self.unadapted(&format!("{held}.weight"), count, width)? {
            // One that replaces both by one matrix keeps them tied (ensure_weight_tying of peft).
            Some(original) if !self.is_replaced(&format!("{copy}.weight")) => original,
            _ => shared.without_updates(),
        };
        let head = self.adapted_head(head, &format!("{head_name}.weight"))?;
        self.record_tied(&format!("{held}.weight"), &format!("{copy}.weight"));
        let table = Embedding { table: shared, activations: self.runtime().activations() };
        Ok((table, Linear::new(head, None)))
    }
}
