//! The zoo of multimodal foundation models.
