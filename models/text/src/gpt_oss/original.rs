//! OpenAI's original files, in the folder `original/` of the releases: a config without `model_type`, and other tensor
//! names.

use fauna_shared::Result;
use fauna_shared::model::{Layout, LoadOptions};
use fauna_shared::source::Files;
use fauna_shared::weights::Name;
use serde_json::{Value, json};

/// The layout of a folder whose `config.json` has OpenAI's keys; `None` for any other.
///
/// # Errors
/// Errors of the config or the weights, if present.
pub fn layout(files: &Files, options: &LoadOptions) -> Result<Option<Layout>> {
    if files.get("config.json").is_none() {
        return Ok(None);
    }
    let Some(config) = translated(&files.config()?) else { return Ok(None) };
    Ok(Some(Layout { config, weights: options.weights_of(files)? }))
}

/// Translates OpenAI's config to the keys of the Hugging Face hub; `None` if it is not OpenAI's.
fn translated(config: &Value) -> Option<Value> {
    let names_itself = ["model_type", "architectures"].iter().any(|key| !config[*key].is_null());
    let own = ["num_experts", "experts_per_token", "rope_scaling_factor"];
    if names_itself || own.iter().any(|key| config[*key].is_null()) {
        return None;
    }
    // Missing keys have the defaults of OpenAI's code.
    let or = |key: &str, usual: f64| config[key].as_f64().unwrap_or(usual);
    let (trained, factor) = (or("initial_context_length", 4096.0) as u64, or("rope_scaling_factor", 32.0));
    let stretched = factor > 1.0;
    let mut config = config.clone();
    config["architectures"] = json!(["GptOssForCausalLM"]);
    config["model_type"] = json!("gpt_oss");
    config["rms_norm_eps"] = json!(1e-5);
    config["attention_bias"] = json!(true);
    config["max_position_embeddings"] = json!((trained as f64 * factor.max(1.0)) as u64);
    config["rope_parameters"] = json!({
        "rope_type": if stretched { "yarn" } else { "default" },
        "rope_theta": or("rope_theta", 150_000.0),
        "factor": factor,
        "beta_fast": or("rope_ntk_beta", 32.0),
        "beta_slow": or("rope_ntk_alpha", 1.0),
        "original_max_position_embeddings": trained,
        "truncate": false,
    });
    config["quantization_config"] = json!({"quant_method": "mxfp4"});
    Some(config)
}

/// Maps OpenAI's tensor names to those of the Hugging Face hub; others are kept.
pub(super) fn rename(name: &str) -> Name {
    let top = match name {
        "embedding.weight" => "embed_tokens.weight",
        "unembedding.weight" => "lm_head.weight",
        "norm.scale" => "norm.weight",
        _ => "",
    };
    if !top.is_empty() {
        return Name::To(top.to_string());
    }
    let Some((index, part)) = name.strip_prefix("block.").and_then(|rest| rest.split_once('.')) else {
        return Name::Keep;
    };
    let part = match part {
        "attn.norm.scale" => "input_layernorm.weight",
        "attn.qkv.weight" => "self_attn.qkv.weight",
        "attn.qkv.bias" => "self_attn.qkv.bias",
        "attn.sinks" => "self_attn.sinks",
        "attn.out.weight" => "self_attn.o_proj.weight",
        "attn.out.bias" => "self_attn.o_proj.bias",
        "mlp.norm.scale" => "post_attention_layernorm.weight",
        "mlp.gate.weight" => "mlp.router.weight",
        "mlp.gate.bias" => "mlp.router.bias",
        "mlp.mlp1_weight.blocks" => "mlp.experts.gate_up_proj_blocks",
        "mlp.mlp1_weight.scales" => "mlp.experts.gate_up_proj_scales",
        "mlp.mlp1_bias" => "mlp.experts.gate_up_proj_bias",
        "mlp.mlp2_weight.blocks" => "mlp.experts.down_proj_blocks",
        "mlp.mlp2_weight.scales" => "mlp.experts.down_proj_scales",
        "mlp.mlp2_bias" => "mlp.experts.down_proj_bias",
        _ => return Name::Keep,
    };
    Name::To(format!("layers.{index}.{part}"))
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    #[test]
    fn openais_config_says_what_the_hubs_says() {
        let own = json!({
            "num_hidden_layers": 24, "num_experts": 32, "experts_per_token": 4, "vocab_size": 201088,
            "hidden_size": 2880, "intermediate_size": 2880, "swiglu_limit": 7.0, "head_dim": 64,
            "num_attention_heads": 64, "num_key_value_heads": 8, "sliding_window": 128,
            "initial_context_length": 4096, "rope_theta": 150000, "rope_scaling_factor": 32.0,
            "rope_ntk_alpha": 1, "rope_ntk_beta": 32
        });
        let config: Config = serde_json::from_value(translated(&own).unwrap()).unwrap();
        let hub: Config = serde_json::from_value(json!({"num_local_experts": 32})).unwrap();
        assert_eq!(config.rope().unwrap(), hub.rope().unwrap());
        assert_eq!((config.experts(), config.experts_per_token()), (32, 4));
        assert_eq!((config.num_hidden_layers, config.max_position_embeddings), (24, 131_072));
    }

    #[test]
    fn a_config_that_says_what_it_is_is_not_openais() {
        for config in [json!({}), json!({"model_type": "gpt_oss", "num_experts": 4, "experts_per_token": 2})]
        {
            assert_eq!(translated(&config), None);
        }
    }

    #[test]
    fn openais_context_may_be_left_as_trained() {
        let own = json!({"num_experts": 4, "experts_per_token": 1, "rope_scaling_factor": 1.0, "rope_theta": 500.0});
        let config: Config = serde_json::from_value(translated(&own).unwrap()).unwrap();
        let plain = fauna_shared::attention::Rope::new(500.0, 64, Default::default()).unwrap();
        assert_eq!((config.rope().unwrap(), config.max_position_embeddings), (plain, 4096));
    }
}
