//! Which commands a model supports, from its card, and which of them is the default for the options given.

use fauna::{Card, Error, Modality, Result};

/// The Hub's task name of models with a chat template.
const CONVERSATIONAL: &str = "conversational";

/// Returns the commands that the model of `card` supports, the default first.
pub fn of(card: &Card) -> Vec<&'static str> {
    let (reads, writes) =
        (|modality| card.inputs.contains(&modality), |modality| card.outputs.contains(&modality));
    let mut verbs = Vec::new();
    if writes(Modality::Action) && reads(Modality::Image) {
        verbs.push("act");
    }
    if writes(Modality::Series) {
        verbs.extend(["forecast", "anomalies"]);
    }
    if writes(Modality::Atoms) {
        verbs.extend(["energy", "relax", "md"]);
    }
    if writes(Modality::Gene) {
        verbs.extend(["genes generate", "genes score"]);
    }
    if writes(Modality::Label) {
        verbs.push(match card.task {
            Some("fill-mask") => "fill",
            Some("question-answering") => "answer",
            _ => "classify",
        });
    }
    if writes(Modality::Image) && reads(Modality::Text) {
        verbs.push("draw");
    }
    if writes(Modality::Sound) && !reads(Modality::Codes) {
        verbs.push("compose");
    }
    if writes(Modality::Codes) && (reads(Modality::Image) || reads(Modality::Sound)) {
        verbs.push("codec encode");
    }
    if reads(Modality::Codes) && (writes(Modality::Image) || writes(Modality::Sound)) {
        verbs.push("codec decode");
    }
    if writes(Modality::Text) {
        let images = reads(Modality::Image);
        let sounds = reads(Modality::Sound);
        verbs.extend(sounds.then_some("listen"));
        verbs.extend(images.then_some("describe"));
        verbs.extend((images || sounds).then_some("answer"));
        verbs.extend((images || sounds || card.task == Some(CONVERSATIONAL)).then_some("chat"));
        verbs.push("generate");
    }
    if writes(Modality::Vector) {
        verbs.push("embed");
        verbs.extend(reads(Modality::Text).then_some("compare"));
        verbs.extend(reads(Modality::Text).then_some("search"));
    }
    verbs
}

/// Fails if the model does not support the command `verb`; the error lists those that it supports.
///
/// # Errors
/// [`Unsupported`](fauna::ErrorKind::Unsupported).
pub fn check(card: &Card, verb: &str) -> Result<()> {
    let verbs = of(card);
    if verbs.contains(&verb) {
        return Ok(());
    }
    let error =
        Error::unsupported(format!("{} is a {}, which does not support {verb}", card.source, card.family));
    Err(match verbs.is_empty() {
        true => error,
        false => error.hint(format!("try: {}", verbs.join(", "))),
    })
}

/// Returns the default command for a model and the options given with it, by their long names; `None` if the model
/// supports only the commands that work with any model.
pub fn natural(card: &Card, given: &[&str]) -> Option<&'static str> {
    let verbs = of(card);
    let has = |options: &[&str]| given.iter().any(|option| options.contains(option));
    let fits = |verb: &&&str| -> bool {
        match **verb {
            "codec decode" => has(&["codes"]),
            "draw" | "codec encode" => !has(&["codes"]),
            "describe" => has(&["image", "few-shot"]),
            "listen" => has(&["audio"]),
            "answer" if card.task.is_none_or(|task| task == CONVERSATIONAL) => false,
            "generate" => true,
            "chat" => card.task == Some(CONVERSATIONAL) && !has(&["prefix", "suffix", "file", "at"]),
            // A CLIP-like model without an image: text embeddings are the default.
            "classify" if card.inputs.contains(&Modality::Image) => has(&["image", "labels"]),
            _ => true,
        }
    };
    verbs.iter().find(fits).or(verbs.first()).copied()
}
