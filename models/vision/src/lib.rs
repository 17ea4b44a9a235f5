//! The image pipelines of `fauna`: CLIP, SigLIP, DALL·E, Flamingo and Med-PaLM M.
//!
//! Each model file reads like its paper and can be used alone; [`FAMILIES`] is how the zoo finds them all.

pub mod clip;
mod contrastive;
pub mod dalle;
pub mod flamingo;
pub mod llava;
pub mod medgemma;
pub mod processor;
pub mod siglip;
pub mod vision_language;

use dalle::{dvae, mini, vqgan};
use fauna_shared::item::Modality::{Codes, Image, Label, Text, Vector};
use fauna_shared::model::{Family, Keys, Release};
use serde_json::json;

/// The families of this crate.
pub const FAMILIES: &[&Family] =
    &[&CLIP, &SIGLIP, &DVAE, &DALLE_MINI, &VQGAN, &OPEN_FLAMINGO, &IDEFICS, &GEMMA3, &LLAVA];

/// CLIP in every size, its towers alone, and open_clip's releases of its shape.
pub static CLIP: Family = Family {
    name: "clip",
    systems: &["CLIP"],
    paper: "Radford et al. 2021, arXiv 2103.00020",
    model_types: &["clip", "clip_text_model", "clip_vision_model"],
    architectures: &[
        "CLIPModel",
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        "CLIPVisionModel",
        "CLIPVisionModelWithProjection",
    ],
    gguf: &[],
    keys: &clip::KEYS,
    inputs: &[Image, Text],
    outputs: &[Vector, Label],
    releases: &[
        Release::new("openai/clip-vit-base-patch32", "CLIP", "151M", "MIT"),
        Release::new("openai/clip-vit-base-patch16", "CLIP", "150M", "MIT"),
        Release::new("openai/clip-vit-large-patch14", "CLIP", "428M", "MIT"),
        Release::new("openai/clip-vit-large-patch14-336", "CLIP", "428M", "MIT"),
        Release::new("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "CLIP", "151M", "MIT"),
        Release::new("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "CLIP", "150M", "MIT"),
        Release::new("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "CLIP", "428M", "MIT"),
        Release::new("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "CLIP", "986M", "MIT"),
    ],
    config_of_gguf: None,
    layout: Some(|files, options| match clip::layout(files, options)? {
        None => processor::layout(files, "clip", &["CLIP", "Idefics", "Gemma3", "Llava"]),
        found => Ok(found),
    }),
    rename: clip::rename,
    inventory: |pretrained| match processor::inventory(pretrained)? {
        None => Ok(pretrained.load::<clip::Clip>()?.1),
        Some(nothing) => Ok(nothing),
    },
    open: |pretrained| match processor::open(pretrained, &CLIP)? {
        None => clip::open(pretrained),
        Some(alone) => Ok(alone),
    },
    sample: || {
        json!({
            "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 24,
            "text_config": {
                "vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "max_position_embeddings": 24, "hidden_act": "quick_gelu",
                "eos_token_id": 2
            },
            "vision_config": {
                "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
                "image_size": 20, "patch_size": 6, "hidden_act": "gelu"
            }
        })
    },
};

/// SigLIP in every size, its towers alone, and SigLIP 2 at a fixed resolution.
pub static SIGLIP: Family = Family {
    name: "siglip",
    systems: &["SigLIP"],
    paper: "Zhai et al. 2023, arXiv 2303.15343",
    model_types: &["siglip", "siglip_text_model", "siglip_vision_model"],
    architectures: &["SiglipModel", "SiglipTextModel", "SiglipVisionModel"],
    gguf: &[],
    keys: &siglip::KEYS,
    inputs: &[Image, Text],
    outputs: &[Vector, Label],
    releases: &[
        Release::new("google/siglip-base-patch16-224", "SigLIP", "203M", "Apache-2.0"),
        Release::new("google/siglip-base-patch16-256", "SigLIP", "203M", "Apache-2.0"),
        Release::new("google/siglip-base-patch16-384", "SigLIP", "203M", "Apache-2.0"),
        Release::new("google/siglip-base-patch16-512", "SigLIP", "204M", "Apache-2.0"),
        Release::new("google/siglip-base-patch16-256-multilingual", "SigLIP", "371M", "Apache-2.0"),
        Release::new("google/siglip-large-patch16-256", "SigLIP", "652M", "Apache-2.0"),
        Release::new("google/siglip-large-patch16-384", "SigLIP", "652M", "Apache-2.0"),
        Release::new("google/siglip-so400m-patch14-224", "SigLIP", "877M", "Apache-2.0"),
        Release::new("google/siglip-so400m-patch14-384", "SigLIP", "878M", "Apache-2.0"),
        Release::new("google/siglip-so400m-patch16-256-i18n", "SigLIP", "1.1B", "Apache-2.0"),
        Release::new("google/siglip2-base-patch16-224", "SigLIP", "375M", "Apache-2.0"),
        Release::new("google/siglip2-large-patch16-256", "SigLIP", "882M", "Apache-2.0"),
        Release::new("google/siglip2-so400m-patch14-384", "SigLIP", "1.1B", "Apache-2.0"),
        Release::new("google/medsiglip-448", "SigLIP", "878M", "Health AI Developer Foundations"),
    ],
    config_of_gguf: None,
    layout: Some(|files, _| processor::layout(files, "siglip", &["Siglip"])),
    rename: siglip::rename,
    inventory: |pretrained| match processor::inventory(pretrained)? {
        None => Ok(pretrained.load::<siglip::Siglip>()?.1),
        Some(nothing) => Ok(nothing),
    },
    open: |pretrained| match processor::open(pretrained, &SIGLIP)? {
        None => siglip::open(pretrained),
        Some(alone) => Ok(alone),
    },
    sample: || {
        json!({
            "architectures": ["SiglipModel"], "model_type": "siglip",
            "text_config": {
                "vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "max_position_embeddings": 24
            },
            "vision_config": {
                "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
                "image_size": 21, "patch_size": 5
            }
        })
    },
};

/// OpenAI's discrete VAE.
pub static DVAE: Family = Family {
    name: "dvae",
    systems: &["DALL-E"],
    paper: "Ramesh et al. 2021, arXiv 2102.12092",
    model_types: &["dall_e"],
    architectures: &["DiscreteVAE"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Image, Codes],
    outputs: &[Codes, Image],
    // Released outside the hub: encoder.pkl and decoder.pkl.
    releases: &[],
    config_of_gguf: None,
    layout: Some(dvae::layout),
    rename: dvae::rename,
    inventory: dvae::inventory,
    open: |pretrained| Ok(Box::new(dvae::DvaePipeline::open(pretrained)?)),
    sample: dvae::sample,
};

/// DALL·E mini and mega.
pub static DALLE_MINI: Family = Family {
    name: "dalle-mini",
    systems: &["DALL-E"],
    paper: "Dayma et al. 2021, DALL·E mini",
    model_types: &["dallebart"],
    architectures: &["DalleBart", "eBart"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Text, Codes],
    outputs: &[Image],
    releases: &[
        Release::new("dalle-mini/dalle-mini", "DALL-E", "0.4B", "Apache-2.0"),
        Release::new("dalle-mini/dalle-mega", "DALL-E", "2.6B", "Apache-2.0"),
        Release::new("kuprel/min-dalle", "DALL-E", "0.4B and 2.6B", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: Some(mini::layout),
    rename: mini::rename,
    inventory: mini::inventory,
    open: |pretrained| Ok(Box::new(mini::MiniPipeline::open(pretrained)?)),
    sample: mini::sample,
};

/// The decoder of a VQGAN, the picture half of DALL·E mini.
pub static VQGAN: Family = Family {
    name: "vqgan",
    systems: &["DALL-E"],
    paper: "Esser et al. 2021, arXiv 2012.09841",
    model_types: &["vqgan"],
    // The release was saved by a transformers that left out the first four letters of a class of flax, "Flax" or not.
    architectures: &["VQModel", "del"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Codes],
    outputs: &[Image],
    releases: &[Release::new("dalle-mini/vqgan_imagenet_f16_16384", "DALL-E", "47M", "Apache-2.0")],
    config_of_gguf: None,
    layout: Some(vqgan::layout),
    rename: vqgan::rename,
    inventory: vqgan::inventory,
    open: mini::open_vqgan,
    sample: vqgan::sample,
};

/// OpenFlamingo v2 in every size.
pub static OPEN_FLAMINGO: Family = Family {
    name: "open_flamingo",
    systems: &["Flamingo"],
    paper: "Awadalla et al. 2023, arXiv 2308.01390; Alayrac et al. 2022, arXiv 2204.14198",
    model_types: &["open_flamingo"],
    architectures: &["Flamingo"],
    gguf: &[],
    keys: &flamingo::open_flamingo::KEYS,
    inputs: &[Image, Text],
    outputs: &[Text],
    releases: &[
        Release::new("openflamingo/OpenFlamingo-3B-vitl-mpt1b", "Flamingo", "3B", "MIT"),
        Release::new("openflamingo/OpenFlamingo-3B-vitl-mpt1b-langinstruct", "Flamingo", "3B", "MIT"),
        Release::new("openflamingo/OpenFlamingo-4B-vitl-rpj3b", "Flamingo", "4B", "MIT"),
        Release::new("openflamingo/OpenFlamingo-4B-vitl-rpj3b-langinstruct", "Flamingo", "4B", "MIT"),
        Release::new("openflamingo/OpenFlamingo-9B-vitl-mpt7b", "Flamingo", "9B", "MIT"),
    ],
    config_of_gguf: None,
    layout: Some(flamingo::open_flamingo::layout),
    rename: flamingo::open_flamingo::rename,
    inventory: flamingo::open_flamingo::inventory,
    open: |pretrained| Ok(Box::new(flamingo::open_flamingo::OpenFlamingoPipeline::open(pretrained)?)),
    sample: flamingo::open_flamingo::sample,
};

/// IDEFICS of 9B and 80B, for texts and for conversations.
pub static IDEFICS: Family = Family {
    name: "idefics",
    systems: &["Flamingo"],
    paper: "Laurençon et al. 2023, arXiv 2306.16527; Alayrac et al. 2022, arXiv 2204.14198",
    model_types: &["idefics"],
    architectures: &["IdeficsForVisionText2Text", "IdeficsForCausalLM"],
    gguf: &[],
    keys: &flamingo::idefics::KEYS,
    inputs: &[Image, Text],
    outputs: &[Text],
    releases: &[
        Release::new("HuggingFaceM4/idefics-9b", "Flamingo", "9B", "other (LLaMA, non-commercial)"),
        Release::new("HuggingFaceM4/idefics-9b-instruct", "Flamingo", "9B", "other (LLaMA, non-commercial)"),
        Release::new("HuggingFaceM4/idefics-80b", "Flamingo", "80B", "other (LLaMA, non-commercial)"),
        Release::new(
            "HuggingFaceM4/idefics-80b-instruct",
            "Flamingo",
            "80B",
            "other (LLaMA, non-commercial)",
        ),
    ],
    config_of_gguf: None,
    layout: None,
    rename: flamingo::idefics::rename,
    inventory: |pretrained| Ok(pretrained.load::<flamingo::idefics::Idefics>()?.1),
    open: |pretrained| Ok(Box::new(flamingo::idefics::IdeficsPipeline::open(pretrained)?)),
    sample: flamingo::idefics::sample,
};

/// MedGemma, and Gemma 3 with its eyes: what stands for Med-PaLM M, whose weights are closed.
pub static GEMMA3: Family = Family {
    name: "gemma3",
    systems: &["Med-PaLM M"],
    paper: "Tu et al. 2023, arXiv 2307.14334; Sellergren et al. 2025, arXiv 2507.05201; Gemma Team 2025, arXiv 2503.19786",
    model_types: &["gemma3"],
    architectures: &["Gemma3ForConditionalGeneration"],
    gguf: &[],
    keys: &medgemma::KEYS,
    inputs: &[Image, Text],
    outputs: &[Text],
    releases: &[
        Release::new("google/medgemma-4b-it", "Med-PaLM M", "4B", "Health AI Developer Foundations"),
        Release::new("google/medgemma-4b-pt", "Med-PaLM M", "4B", "Health AI Developer Foundations"),
        Release::new("google/medgemma-1.5-4b-it", "Med-PaLM M", "4B", "Health AI Developer Foundations"),
        Release::new("google/medgemma-27b-it", "Med-PaLM M", "27B", "Health AI Developer Foundations"),
        Release::new("google/gemma-3-4b-it", "Med-PaLM M", "4B", "Gemma"),
        Release::new("google/gemma-3-4b-pt", "Med-PaLM M", "4B", "Gemma"),
        Release::new("google/gemma-3-12b-it", "Med-PaLM M", "12B", "Gemma"),
        Release::new("google/gemma-3-12b-pt", "Med-PaLM M", "12B", "Gemma"),
        Release::new("google/gemma-3-27b-it", "Med-PaLM M", "27B", "Gemma"),
        Release::new("google/gemma-3-27b-pt", "Med-PaLM M", "27B", "Gemma"),
    ],
    config_of_gguf: None,
    layout: None,
    rename: medgemma::rename,
    inventory: |pretrained| Ok(pretrained.load::<medgemma::MedGemma>()?.1),
    open: medgemma::open,
    sample: medgemma::sample,
};

/// LLaVA-Med, and LLaVA 1.5, whose wiring it has.
pub static LLAVA: Family = Family {
    name: "llava",
    systems: &["Med-PaLM M"],
    paper: "Li et al. 2023, arXiv 2306.00890; Liu et al. 2023, arXiv 2310.03744",
    model_types: &["llava_mistral", "llava", "llava_llama"],
    architectures: &["LlavaMistralForCausalLM", "LlavaForConditionalGeneration", "LlavaLlamaForCausalLM"],
    gguf: &[],
    keys: &llava::KEYS,
    inputs: &[Image, Text],
    outputs: &[Text],
    releases: &[
        Release::new("microsoft/llava-med-v1.5-mistral-7b", "Med-PaLM M", "7.6B", "research only"),
        Release::new("llava-hf/llava-1.5-7b-hf", "Med-PaLM M", "7B", "Llama 2"),
        Release::new("liuhaotian/llava-v1.5-7b", "Med-PaLM M", "7B", "Llama 2"),
    ],
    config_of_gguf: None,
    layout: None,
    rename: llava::rename,
    inventory: llava::inventory,
    open: llava::open,
    sample: llava::sample,
};
