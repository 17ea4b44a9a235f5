//! What GGUF files of any decoder have in common: the short names of their tensors, and metadata that stands for a
//! config.

use fauna_shared::checkpoint::{Checkpoint, Value as Stored};
use fauna_shared::weights::Name;
use fauna_shared::{Error, ErrorKind, Result};
use serde_json::{Value, json};

/// GGUF's names of whole tensors and those of Llama's shape.
pub const GATED_TOP: [(&str, &str); 3] =
    [("token_embd", "embed_tokens"), ("output_norm", "norm"), ("output", "lm_head")];

/// GGUF's names inside a block and those of Llama's shape: a gated feed-forward network, norms before each half.
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

/// What the tensor `name` is called in a model file: `top` and `parts` pair GGUF's stems, of whole tensors and inside
/// `blk.N`, with those of the model, whose blocks are the list `blocks`. Any other name stays as it is.
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

/// The metadata of a GGUF file, whose keys begin with its architecture.
pub struct Keys<'a> {
    checkpoint: &'a Checkpoint,
    architecture: &'static str,
}

impl<'a> Keys<'a> {
    /// Of `checkpoint`, a file of `architecture`.
    pub fn of(checkpoint: &'a Checkpoint, architecture: &'static str) -> Self {
        Self { checkpoint, architecture }
    }

    fn get(&self, key: &str) -> Option<&'a Stored> {
        self.checkpoint.metadata().get(&format!("{}.{key}", self.architecture))
    }

    /// The whole number at `key`.
    pub fn number(&self, key: &str) -> Option<usize> {
        self.get(key)?.as_usize()
    }

    /// The number at `key`.
    pub fn real(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    /// The whole number at `key`.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) naming the key if the file does not say it.
    pub fn need(&self, key: &str) -> Result<usize> {
        let missing =
            || Error::new(ErrorKind::Format, format!("the file says no {}.{key}", self.architecture));
        self.number(key).ok_or_else(missing)
    }

    /// Whether the file has the tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.get(name).is_some()
    }

    /// Rows of the token embeddings.
    pub fn words(&self) -> Option<usize> {
        self.checkpoint.get("token_embd.weight")?.shape.first().copied()
    }

    /// How rotary positions are stretched, if they are.
    pub fn rope_type(&self) -> Option<&'a str> {
        self.get("rope.scaling.type")?.as_str().filter(|kind| *kind != "none")
    }

    /// The same as `rope_scaling` of a config; null if they are not.
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

    /// The id of the token that the tokenizer calls `bos`, `eos`, `eot` or `padding`.
    pub fn token(&self, name: &str) -> Option<usize> {
        self.checkpoint.metadata().get(&format!("tokenizer.ggml.{name}_token_id"))?.as_usize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_translated_inside_and_outside_of_blocks() {
        let plain = |name| rename(name, &[("output_norm", "norm")], "layers", &[("attn_q", "attn.q")]);
        assert_eq!(plain("output_norm.bias"), Name::To("norm.bias".into()));
        assert_eq!(plain("blk.12.attn_q.weight"), Name::To("layers.12.attn.q.weight".into()));
        for other in
            ["blk.12.other.weight", "attn_q.weight", "blk.1.weight", "output_norm", "x.output_norm.bias"]
        {
            assert_eq!(plain(other), Name::Keep, "{other}");
        }
    }
}
