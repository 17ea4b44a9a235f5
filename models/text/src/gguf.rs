//! GGUF files of decoder-only models: tensor names, and metadata in place of a config.

use fauna_shared::checkpoint::{Checkpoint, Value as Stored};
use fauna_shared::weights::Name;
use fauna_shared::{Error, ErrorKind, Result};
use serde_json::{Value, json};

/// Top-level tensors: GGUF's names, and those of Llama-like models.
pub const GATED_TOP: [(&str, &str); 3] =
    [("token_embd", "embed_tokens"), ("output_norm", "norm"), ("output", "lm_head")];

/// Tensors of a block: GGUF's names, and those of Llama-like models (pre-norm, gated MLP).
pub const GATED_BLOCK: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Maps the GGUF tensor `name` to the model's: `top` and `parts` pair GGUF's stems, at the top level and inside
/// `blk.N`, with those of the model, whose blocks are the list `blocks`. Any other name is kept.
pub fn rename(name: &str, top: &[(&str, &str)], blocks: &str, parts: &[(&str, &str)]) -> Name {
    let Some((stem, kind)) = name.rsplit_once('.') else { return Name::Keep };
    let found = |pairs: &[(&str, &str)], stem: &str| {
        pairs.iter().find(|(short, _)| *short == stem).map(|(_, plain)| plain.to_string())
    };
    let plain = match stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((index, part)) => found(parts, part).map(|part| format!("{blocks}.{index}.{part}")),
        None => found(top, stem),
    };
    plain.map_or(Name::Keep, |plain| Name::To(format!("{plain}.{kind}")))
}

/// The metadata of a GGUF file, whose keys are prefixed with its architecture.
pub struct Keys<'a> {
    checkpoint: &'a Checkpoint,
    architecture: &'static str,
}

impl<'a> Keys<'a> {
    /// The metadata of `checkpoint`, a file of `architecture`.
    pub fn of(checkpoint: &'a Checkpoint, architecture: &'static str) -> Self {
        Self { checkpoint, architecture }
    }

    fn get(&self, key: &str) -> Option<&'a Stored> {
        self.checkpoint.metadata().get(&format!("{}.{key}", self.architecture))
    }

    /// The integer at `key`, if present.
    pub fn number(&self, key: &str) -> Option<usize> {
        self.get(key)?.as_usize()
    }

    /// The float at `key`, if present.
    pub fn real(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    /// The integer at `key`.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) with the key if it is missing.
    pub fn need(&self, key: &str) -> Result<usize> {
        let missing =
            || Error::new(ErrorKind::Format, format!("metadata key {}.{key} is missing", self.architecture));
        self.number(key).ok_or_else(missing)
    }

    /// Whether the file has the tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.get(name).is_some()
    }

    /// Vocabulary size: the number of rows of the token embeddings.
    pub fn vocab_size(&self) -> Option<usize> {
        self.checkpoint.get("token_embd.weight")?.shape.first().copied()
    }

    /// The type of RoPE scaling, if any.
    pub fn rope_type(&self) -> Option<&'a str> {
        self.get("rope.scaling.type")?.as_str().filter(|kind| *kind != "none")
    }

    /// RoPE scaling as `rope_scaling` of a config; null if there is none.
    pub fn rope_scaling(&self) -> Value {
        self.rope_type().map_or(Value::Null, |kind| {
            json!({
                "rope_type": kind,
                "factor": self.real("rope.scaling.factor"),
                "original_max_position_embeddings": self.number("rope.scaling.original_context_length"),
                "attention_factor": self.real("rope.scaling.attn_factor"),
            })
        })
    }

    /// The id of the special token `bos`, `eos`, `eot` or `padding`.
    pub fn token(&self, name: &str) -> Option<usize> {
        self.checkpoint.metadata().get(&format!("tokenizer.ggml.{name}_token_id"))?.as_usize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_names_are_mapped_inside_and_outside_of_blocks() {
        let mapped = |name| rename(name, &[("output_norm", "norm")], "layers", &[("attn_q", "attn.q")]);
        assert_eq!(mapped("output_norm.bias"), Name::To("norm.bias".into()));
        assert_eq!(mapped("blk.12.attn_q.weight"), Name::To("layers.12.attn.q.weight".into()));
        for other in
            ["blk.12.other.weight", "attn_q.weight", "blk.1.weight", "output_norm", "x.output_norm.bias"]
        {
            assert_eq!(mapped(other), Name::Keep, "{other}");
        }
    }
}
