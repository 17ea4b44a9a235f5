//! Activation functions by the names of PyTorch's modules, as in configs of sentence-transformers.

use candle_core::Tensor;
use fauna_shared::nn::{Activation, softmax};
use fauna_shared::{Error, Result};

/// Activation function of a layer's outputs: a class of `torch.nn` without arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TorchActivation {
    /// No activation.
    Identity,
    /// Softmax over the last axis.
    Softmax,
    /// An elementwise activation.
    Elementwise(Activation),
}

impl TorchActivation {
    const ALL: [(&'static str, Self); 8] = [
        ("Identity", Self::Identity),
        ("Softmax", Self::Softmax),
        ("Sigmoid", Self::Elementwise(Activation::Sigmoid)),
        ("Tanh", Self::Elementwise(Activation::Tanh)),
        ("ReLU", Self::Elementwise(Activation::Relu)),
        ("GELU", Self::Elementwise(Activation::GeluErf)),
        ("SiLU", Self::Elementwise(Activation::Silu)),
        ("ELU", Self::Elementwise(Activation::Elu)),
    ];

    /// Returns the activation of a class path such as `torch.nn.modules.activation.Tanh`, the value of the config key
    /// `key`.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) with `key` and `path`, for a class that is not implemented
    /// or not of PyTorch.
    pub fn from_path(key: &str, path: &str) -> Result<Self> {
        let (module, class) = path.rsplit_once('.').unwrap_or(("", path));
        let known = Self::ALL.iter().find(|(name, _)| *name == class);
        match known.filter(|_| module == "torch.nn" || module.starts_with("torch.nn.modules")) {
            Some((_, function)) => Ok(*function),
            None => Err(Error::unsupported(format!("{key} \"{path}\" is not implemented")).hint(format!(
                "supported classes of torch.nn: {}",
                Self::ALL.map(|(name, _)| name).join(", ")
            ))),
        }
    }

    /// The class name in PyTorch.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, function)| *function == self).map_or("", |(name, _)| name)
    }

    /// Applies the activation to `x`, of any shape.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Identity => Ok(x.clone()),
            Self::Softmax => softmax(x),
            Self::Elementwise(activation) => activation.forward(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_supported_classes_of_torch_are_accepted() {
        let of = |path: &str| TorchActivation::from_path("activation_fn", path);
        assert_eq!(of("torch.nn.modules.linear.Identity").unwrap(), TorchActivation::Identity);
        assert_eq!(of("torch.nn.modules.activation.Sigmoid").unwrap().name(), "Sigmoid");
        assert_eq!(of("torch.nn.Tanh").unwrap(), TorchActivation::Elementwise(Activation::Tanh));
        for other in ["torch.nn.modules.activation.Mish", "my_code.Identity", "torch.sigmoid", "Tanh", ""] {
            let error = of(other).unwrap_err();
            assert!(error.message().contains(&format!("activation_fn \"{other}\"")), "{error}");
        }
    }
}
