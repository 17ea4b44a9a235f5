//! The matrices of a mixture of experts, which releases keep in one stack.

use candle_core::Device;

use super::{Found, Weights, floats, seeded_values};
use crate::Result;
use crate::checkpoint::{Storage, Stored};
use crate::kernels::matmul::Layout;
use crate::nn::Matrix;

impl Weights {
    /// The maps of a mixture of `count` experts at `name`, each of `inputs` to `outputs`: stored
    /// `[count, inputs, outputs]`.
    ///
    /// # Errors
    /// As every read.
    pub fn experts(&self, name: &str, count: usize, inputs: usize, outputs: usize) -> Result<Vec<Matrix>> {
        let path = self.path(name);
        let shape = [count, inputs, outputs];
        let stored = match self.ask(&path, &shape)? {
            Found::Nothing => return Ok(vec![Matrix::absent(outputs, inputs); count]),
            Found::Stored(stored) => stored.clone(),
            Found::Seed(seed) => {
                let bytes = floats(&seeded_values(seed, &path, &shape)?);
                Stored { storage: Storage::F32, shape: shape.to_vec(), bytes }
            }
        };
        let entries = super::entries_of(name, &stored)?;
        let place = |entry: super::Entry| match self.runtime().device() {
            Device::Cpu => self.place_on_host(&entry.stored, Layout::InOut, (outputs, inputs), None),
            device => self.place_on_device(&entry.stored, Layout::InOut, (outputs, inputs), None, device),
        };
        entries.into_iter().map(place).collect()
    }
}
