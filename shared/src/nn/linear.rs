//! Linear maps and embedding tables.

use candle_core::{DType, Tensor};

use super::{Activation, Matrix};
use crate::Result;
use crate::weights::Weights;

/// `x · weightᵀ + bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

impl Linear {
    /// From a matrix of `(outputs, inputs)` and a bias of `(outputs)`.
    pub fn new(weight: Matrix, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// `x`: `(…, inputs)`; gives `(…, outputs)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.multiply(x, self.bias.as_ref(), None)
    }

    /// `activation(self.forward(x))`.
    pub fn forward_then(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.weight.multiply(x, self.bias.as_ref(), Some(activation))
    }

    /// The matrix of `(outputs, inputs)`.
    pub fn weight(&self) -> &Matrix {
        &self.weight
    }

    /// The bias of `(outputs)`, if there is one.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

/// A table whose rows are looked up by id.
#[derive(Debug, Clone)]
pub struct Embedding {
    table: Matrix,
    activations: DType,
}

impl Embedding {
    /// From a table of `(count, width)`; what is looked up comes in the type of `activations`.
    pub fn new(table: Matrix, activations: DType) -> Self {
        Self { table, activations }
    }

    /// `ids`: any shape of unsigned integers; gives `(…, width)`.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if an id is not below the number of rows.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.table.rows(ids, self.activations)
    }

    /// The output head that shares this table: scores of each row, no bias.
    pub fn as_linear(&self) -> Linear {
        Linear::new(self.table.clone(), None)
    }

    /// Rows in the table.
    pub fn count(&self) -> usize {
        self.table.outputs()
    }

    /// Numbers in a row.
    pub fn width(&self) -> usize {
        self.table.inputs()
    }
}

impl Weights {
    /// The linear map at `name`: `weight` of `[outputs, inputs]` and `bias` of `[outputs]`.
    pub fn linear(&self, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        let here = self.at(name);
        Ok(Linear::new(here.matrix("weight", outputs, inputs)?, Some(here.tensor("bias", &[outputs])?)))
    }

    /// The linear map at `name` that has no bias.
    pub fn linear_no_bias(&self, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        Ok(Linear::new(self.at(name).matrix("weight", outputs, inputs)?, None))
    }

    /// The linear map at `name`, with a bias if `bias` (a config key such as `attention_bias`) says so.
    pub fn linear_bias_if(&self, bias: bool, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        match bias {
            true => self.linear(name, inputs, outputs),
            false => self.linear_no_bias(name, inputs, outputs),
        }
    }

    /// The linear map at `name` whose `weight` is stored `[inputs, outputs]`, as GPT-2's `Conv1D` stores it; with
    /// a bias.
    pub fn linear_transposed(&self, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        let here = self.at(name);
        let weight = here.matrix_transposed("weight", outputs, inputs)?;
        Ok(Linear::new(weight, Some(here.tensor("bias", &[outputs])?)))
    }

    /// The embedding table at `name`: `weight` of `[count, width]`.
    pub fn embedding(&self, name: &str, count: usize, width: usize) -> Result<Embedding> {
        let table = self.at(name).table("weight", count, width)?;
        Ok(Embedding { table, activations: self.runtime().activations() })
    }

    /// The table `table` of `count` rows of `width`, and the output head `head` that shares it. As in the reference a
    /// file may hold either or both; where both are there and differ, each is what it is.
    ///
    /// # Errors
    /// As every read.
    pub fn tied(&self, table: &str, head: &str, count: usize, width: usize) -> Result<(Embedding, Linear)> {
        if self.differ(&format!("{table}.weight"), &format!("{head}.weight")) {
            return Ok((self.embedding(table, count, width)?, self.linear_no_bias(head, width, count)?));
        }
        let weight = |name: &str| self.has(&format!("{name}.weight"), false);
        let (held, copy) = match !weight(table) && weight(head) {
            true => (head, table),
            false => (table, head),
        };
        self.skip(&format!("{copy}.weight"));
        let table = self.embedding(held, count, width)?;
        let head = table.as_linear();
        Ok((table, head))
    }
}
