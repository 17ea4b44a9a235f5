//! Names of the families of each modality, so that errors of a build without it name the cargo feature.

use fauna_shared::zoo::Absent;

/// Cargo features of the modalities, with the names of their families and the `model_type`s and `architectures` of their
/// configs.
const MODALITIES: [(bool, Absent); 5] = [
    (cfg!(feature = "text"), Absent { feature: "text", names: TEXT }),
    (cfg!(feature = "vision"), Absent { feature: "vision", names: VISION }),
    (cfg!(feature = "audio"), Absent { feature: "audio", names: AUDIO }),
    (cfg!(feature = "robotics"), Absent { feature: "robotics", names: ROBOTICS }),
    (cfg!(feature = "science"), Absent { feature: "science", names: SCIENCE }),
];

/// Returns the modalities that this build lacks.
pub(crate) fn absent() -> impl Iterator<Item = Absent> {
    MODALITIES.into_iter().filter(|(built, _)| !built).map(|(_, absent)| absent)
}

const TEXT: &[&str] = &[
    "AntiBERTy",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "GPT2LMHeadModel",
    "GPT2Model",
    "GPTBigCodeForCausalLM",
    "GPTBigCodeModel",
    "GPTNeoXForCausalLM",
    "GPTNeoXModel",
    "Gemma3ForCausalLM",
    "Gemma3TextModel",
    "GptOssForCausalLM",
    "GptOssModel",
    "LlamaForCausalLM",
    "LlamaModel",
    "MPTForCausalLM",
    "MistralForCausalLM",
    "MistralModel",
    "MosaicGPT",
    "MptForCausalLM",
    "MptModel",
    "OpenAIGPTLMHeadModel",
    "OpenAIGPTModel",
    "Qwen2ForCausalLM",
    "Qwen2Model",
    "Starcoder2ForCausalLM",
    "Starcoder2Model",
    "T5EncoderModel",
    "T5ForConditionalGeneration",
    "T5Model",
    "T5WithLMHeadModel",
    "bert",
    "gemma3_text",
    "genslm",
    "gpt1",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gpt_oss",
    "llama",
    "mistral",
    "mosaic_gpt",
    "mpt",
    "openai-gpt",
    "qwen2",
    "starcoder2",
    "t5",
];
const VISION: &[&str] = &[
    "CLIPModel",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "DalleBart",
    "DiscreteVAE",
    "Flamingo",
    "Gemma3ForConditionalGeneration",
    "IdeficsForCausalLM",
    "IdeficsForVisionText2Text",
    "LlavaForConditionalGeneration",
    "LlavaLlamaForCausalLM",
    "LlavaMistralForCausalLM",
    "SiglipModel",
    "SiglipTextModel",
    "SiglipVisionModel",
    "VQModel",
    "clip",
    "clip_text_model",
    "clip_vision_model",
    "dall_e",
    "dalle-mini",
    "dallebart",
    "del",
    "dvae",
    "eBart",
    "gemma3",
    "idefics",
    "llava",
    "llava_llama",
    "llava_mistral",
    "open_flamingo",
    "siglip",
    "siglip_text_model",
    "siglip_vision_model",
    "vqgan",
];
const AUDIO: &[&str] = &[
    "EncodecModel",
    "JukeboxModel",
    "MusicgenForConditionalGeneration",
    "MusicgenMelodyFeatureExtractor",
    "MusicgenMelodyForConditionalGeneration",
    "WrappedLlamav2ForCausalLM",
    "encodec",
    "jukebox",
    "llark",
    "musicgen",
    "musicgen_melody",
    "wrapped_llamav2",
];
const ROBOTICS: &[&str] =
    &["ActionTokenizer", "OpenVLAForActionPrediction", "PrismaticImageProcessor", "openvla"];
const SCIENCE: &[&str] = &[
    "Chronos2Model",
    "ChronosBoltModelForForecasting",
    "GPT2LMHeadModel",
    "T5ForConditionalGeneration",
    "TimesFm2_5ModelForPrediction",
    "TimesFmModelForPrediction",
    "chronos-2",
    "chronos-bolt",
    "chronos-t5",
    "gpt2",
    "orb",
    "t5",
    "timesfm",
    "timesfm-2.5",
    "timesfm2_5",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use fauna_shared::model::Family;

    use super::*;

    #[test]
    fn the_names_are_those_of_the_families() {
        let built: &[(&str, &[&Family])] = &[
            #[cfg(feature = "text")]
            ("text", fauna_text::FAMILIES),
            #[cfg(feature = "vision")]
            ("vision", fauna_vision::FAMILIES),
            #[cfg(feature = "audio")]
            ("audio", fauna_audio::FAMILIES),
            #[cfg(feature = "robotics")]
            ("robotics", fauna_robotics::FAMILIES),
            #[cfg(feature = "science")]
            ("science", fauna_science::FAMILIES),
        ];
        for (feature, families) in built {
            let names =
                |family: &&Family| [&[family.name][..], family.model_types, family.architectures].concat();
            let names: BTreeSet<&str> = families.iter().flat_map(names).collect();
            let listed = MODALITIES.iter().find(|(_, absent)| absent.feature == *feature).unwrap().1.names;
            assert_eq!(listed, Vec::from_iter(names), "{feature}");
        }
    }

    #[test]
    fn a_build_without_a_modality_names_the_feature_that_has_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"model_type": "clip"}"#).unwrap();
        let absent = Absent { feature: "vision", names: VISION };
        let zoo = fauna_shared::zoo::Zoo::new([]).with_absent([absent]);
        let open =
            || zoo.inventory(folder.path().to_str().unwrap(), &fauna_shared::zoo::LoadOptions::default());
        let error = open().err().unwrap().to_string();
        assert!(error.contains("cargo feature `vision`"), "{error}");
        std::fs::write(folder.path().join("config.json"), r#"{"model_type": "unheard_of"}"#).unwrap();
        let error = open().err().unwrap().to_string();
        assert!(error.contains("built without the cargo feature `vision`"), "{error}");
    }
}
