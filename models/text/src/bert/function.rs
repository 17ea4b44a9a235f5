//! Functions by the names that PyTorch's modules have in configs.

use candle_core::Tensor;
use fauna_shared::nn::{Activation, softmax};
use fauna_shared::{Error, Result};

/// What a release puts on the outputs of a layer: a class of `torch.nn` without arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// The outputs as they are.
    Identity,
    /// Shares of one, over the last axis.
    Softmax,
    /// Each number by itself.
    Each(Activation),
}

impl Function {
    const ALL: [(&'static str, Self); 8] = [
        ("Identity", Self::Identity),
        ("Softmax", Self::Softmax),
        ("Sigmoid", Self::Each(Activation::Sigmoid)),
        ("Tanh", Self::Each(Activation::Tanh)),
        ("ReLU", Self::Each(Activation::Relu)),
        ("GELU", Self::Each(Activation::GeluErf)),
        ("SiLU", Self::Each(Activation::Silu)),
        ("ELU", Self::Each(Activation::Elu)),
    ];

    /// The function of a path as `torch.nn.modules.activation.Tanh`, which `key` holds.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) naming both, for a class that is not implemented or is
    /// the release's own code.
    pub fn of_path(key: &str, path: &str) -> Result<Self> {
        let (module, class) = path.rsplit_once('.').unwrap_or(("", path));
        let known = Self::ALL.iter().find(|(name, _)| *name == class);
        match known.filter(|_| module == "torch.nn" || module.starts_with("torch.nn.modules")) {
            Some((_, function)) => Ok(*function),
            None => Err(Error::unsupported(format!("{key} \"{path}\" is not implemented"))
                .hint(format!("known of torch.nn: {}", Self::ALL.map(|(name, _)| name).join(", ")))),
        }
    }

    /// Its name in PyTorch.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, function)| *function == self).map_or("", |(name, _)| name)
    }

    /// The function of `x`, any shape.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Identity => Ok(x.clone()),
            Self::Softmax => softmax(x),
            Self::Each(activation) => activation.forward(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_classes_of_torch_that_are_known_are_taken() {
        let of = |path: &str| Function::of_path("activation_fn", path);
        assert_eq!(of("torch.nn.modules.linear.Identity").unwrap(), Function::Identity);
        assert_eq!(of("torch.nn.modules.activation.Sigmoid").unwrap().name(), "Sigmoid");
        assert_eq!(of("torch.nn.Tanh").unwrap(), Function::Each(Activation::Tanh));
        for other in ["torch.nn.modules.activation.Mish", "my_code.Identity", "torch.sigmoid", "Tanh", ""] {
            let error = of(other).unwrap_err();
            assert!(error.message().contains(&format!("activation_fn \"{other}\"")), "{error}");
        }
    }
}
