//! The pocket models of the modality robotics: small checkpoints in the layouts of the releases, each with its card. Data, and
//! nothing else.

use fauna_bundle::Bundle;

/// The models.
pub const MODELS: &[Bundle] = &[];
