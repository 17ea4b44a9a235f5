use std::fs;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::json;

use super::*;

#[derive(Deserialize)]
struct Row {
    text: String,
    ids: Vec<u32>,
    decoded: Option<String>,
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/tokenizers").join(name)
}

fn read<T: serde::de::DeserializeOwned>(path: PathBuf) -> T {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Compares token ids, and decoded text where given, with those of the reference implementation.
fn assert_rows(name: &str, tokenizer: &Tokenizer, rows: &[Row], max_length: Option<usize>) {
    assert!(rows.len() > 10);
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|row| {
            let ids = tokenizer.encode_text(&row.text, max_length).unwrap().ids;
            let decoded = tokenizer.decode(&row.ids, true).unwrap();
            let same = ids == row.ids && row.decoded.as_ref().is_none_or(|text| *text == decoded);
            (!same).then(|| {
                format!(
                    "{:?}\n found {ids:?} {decoded:?}\n expected {:?} {:?}",
                    row.text, row.ids, row.decoded
                )
            })
        })
        .collect();
    assert!(wrong.is_empty(), "{name}: {} of {} differ\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

#[test]
fn every_format_gives_the_ids_of_the_reference() {
    for name in ["bert_uncased", "bert_cased", "bert_accents", "gpt1", "gpt2", "llama", "t5"] {
        let tokenizer = Tokenizer::from_folder(folder(name)).unwrap();
        let rows: Vec<Row> = read(folder(name).join("expected.json"));
        assert_rows(name, &tokenizer, &rows, None);
    }
}

fn gpt2_vocabulary(pre: &str) -> GgufVocabulary {
    let vocab: std::collections::HashMap<String, u32> = read(folder("gpt2").join("vocab.json"));
    let mut tokens = vec![String::new(); vocab.len()];
    vocab.into_iter().for_each(|(token, id)| tokens[id as usize] = token);
    let merges = fs::read_to_string(folder("gpt2").join("merges.txt")).unwrap();
    GgufVocabulary {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        types: (0..tokens.len()).map(|id| if id == 0 { 3 } else { 1 }).collect(),
        tokens,
        merges: merges.lines().skip(1).map(String::from).collect(),
        bos: Some(0),
        eos: vec![0],
        ..GgufVocabulary::default()
    }
}

fn llama_vocabulary(add_space_prefix: Option<bool>) -> GgufVocabulary {
    let stored: serde_json::Value = read(folder("gguf").join("llama.json"));
    let list = |name: &str| stored[name].as_array().unwrap().iter();
    GgufVocabulary {
        model: "llama".into(),
        tokens: list("tokens").map(|t| t.as_str().unwrap().to_string()).collect(),
        types: list("types").map(|t| t.as_u64().unwrap() as u32).collect(),
        scores: list("scores").map(|t| t.as_f64().unwrap() as f32).collect(),
        bos: Some(1),
        eos: vec![2],
        add_space_prefix,
        ..GgufVocabulary::default()
    }
}

#[test]
fn gguf_metadata_gives_the_ids_of_llama_cpp() {
    let cases: std::collections::BTreeMap<String, Vec<Row>> = read(folder("gguf").join("expected.json"));
    for (name, rows) in cases {
        let vocabulary = match name.as_str() {
            "llama" => llama_vocabulary(None),
            "llama without a space prefix" => llama_vocabulary(Some(false)),
            pre => gpt2_vocabulary(pre),
        };
        assert_rows(&name, &Tokenizer::from_gguf(&vocabulary).unwrap(), &rows, None);
    }
}

#[test]
fn an_unknown_pre_or_model_names_the_known_ones() {
    let error = Tokenizer::from_gguf(&gpt2_vocabulary("smolm")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.to_string().contains("nearest  smollm") && error.to_string().contains("llama-bpe"),
        "{error}"
    );
    let error = Tokenizer::from_gguf(&GgufVocabulary { model: "rwkv".into(), ..gpt2_vocabulary("gpt-2") });
    assert!(error.unwrap_err().to_string().contains("known models are llama and gpt2"));
}

#[test]
fn gguf_lists_of_different_lengths_are_rejected() {
    let vocabulary = GgufVocabulary { scores: vec![0.0], ..llama_vocabulary(None) };
    let error = Tokenizer::from_gguf(&vocabulary).unwrap_err();
    assert!(error.message().contains("scores has 1 entries"), "{error}");
}

#[test]
fn truncation_keeps_special_tokens_and_counts_removed_tokens() {
    let tokenizer = Tokenizer::from_folder(folder("bert_uncased")).unwrap();
    let (cls, sep) = (tokenizer.special().cls.unwrap(), tokenizer.special().sep.unwrap());
    let whole = tokenizer.encode_text("the stars burned in the galaxy", None).unwrap();
    let cut = tokenizer.encode_text("the stars burned in the galaxy", Some(5)).unwrap();
    assert_eq!(cut.ids, [&whole.ids[..4], &[sep]].concat());
    assert_eq!((cut.ids[0], cut.cut, whole.cut), (cls, whole.ids.len() - 5, 0));
    assert!(tokenizer.encode_text("the", Some(2)).is_err());
    assert_eq!(tokenizer.encode_text("", Some(2)).unwrap().ids, [cls, sep]);
}

#[test]
fn a_pair_is_truncated_longest_first() {
    assert_eq!(longest_first([3, 10], 8), [3, 5]);
    assert_eq!(longest_first([10, 3], 8), [5, 3]);
    assert_eq!(longest_first([10, 10], 7), [3, 4]);
    assert_eq!(longest_first([6, 9], 9), [4, 5]);
    assert_eq!(longest_first([2, 3], 5), [2, 3]);
    assert_eq!(longest_first([usize::MAX, 1], 4), [3, 1]);
}

#[test]
fn offsets_are_byte_ranges_of_the_text() {
    let tokenizer = Tokenizer::from_folder(folder("bert_uncased")).unwrap();
    let (first, second) = ("Naïve CAFÉ", "the stars");
    let encoding = tokenizer.encode_pair(first, second, None).unwrap();
    for i in 0..encoding.ids.len() {
        let (start, end) = encoding.offsets[i];
        match encoding.sequence_ids[i] {
            Some(text) => assert!([first, second][text].get(start..end).is_some_and(|t| !t.is_empty())),
            None => assert!(encoding.special_tokens_mask[i] && (start, end) == (0, 0)),
        }
    }
    let second_starts = encoding.sequence_ids.iter().position(|t| *t == Some(1)).unwrap();
    assert_eq!(encoding.offsets[second_starts], (0, 3));
    assert_eq!((encoding.type_ids[second_starts - 1], encoding.type_ids[second_starts]), (0, 1));
}

#[test]
fn padding_is_on_the_given_side() {
    let tokenizer = Tokenizer::from_folder(folder("bert_uncased")).unwrap();
    let texts = ["the stars", "the stars burned in the galaxy"];
    let right = tokenizer.encode_batch(&texts, Padding::Right, None).unwrap();
    let left = tokenizer.encode_batch(&texts, Padding::Left, None).unwrap();
    let fixed = tokenizer.encode_batch(&texts, Padding::RightTo(40), None).unwrap();
    let (time, length) = (right.sequence_length(), right.lengths[0]);
    assert!(length < time && right.lengths[1] == time);
    assert_eq!(right.ids[..length], left.ids[time - length..time]);
    assert!(
        right.attention_mask[..length].iter().all(|&m| m == 1)
            && right.attention_mask[length..time].iter().all(|&m| m == 0)
    );
    assert!(left.attention_mask[..time - length].iter().all(|&m| m == 0));
    assert!(right.ids[length..time].iter().all(|&id| id == tokenizer.special().pad.unwrap()));
    assert_eq!((fixed.sequence_length(), fixed.ids_tensor(&Device::Cpu).unwrap().dims()), (40, &[2, 40][..]));
}

fn scratch(files: &[(&str, serde_json::Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in files {
        fs::write(dir.path().join(name), value.to_string()).unwrap();
    }
    dir
}

fn word_level() -> serde_json::Value {
    json!({
        "version": "1.0",
        "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>",
        },
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null,
        "decoder": null,
        "model": {
            "type": "WordLevel", "unk_token": "<unk>",
            "vocab": {"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3, "a": 4, "b": 5},
        },
    })
}

#[test]
fn truncation_and_padding_of_the_file_are_ignored() {
    let dir = scratch(&[("tokenizer.json", word_level())]);
    let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
    assert_eq!(tokenizer.encode("a b a b", true).unwrap(), [4, 5, 4, 5]);
    let file = Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
    assert_eq!(file.encode("a", true).unwrap(), [4]);
}

#[test]
fn special_tokens_are_read_from_all_configuration_files() {
    let dir = scratch(&[
        ("tokenizer.json", word_level()),
        (
            "tokenizer_config.json",
            json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": true, "model_max_length": 77}),
        ),
        ("special_tokens_map.json", json!({"unk_token": "<unk>", "eos_token": "b"})),
        ("generation_config.json", json!({"eos_token_id": [3, 5], "pad_token_id": 0})),
        ("config.json", json!({"eos_token_id": 4, "pad_token_id": 5})),
    ]);
    let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
    let expected = SpecialTokens {
        bos: Some(2),
        eos: vec![3, 5],
        pad: Some(0),
        unk: Some(1),
        ..SpecialTokens::default()
    };
    assert_eq!(*tokenizer.special(), expected);
    assert_eq!(tokenizer.max_length(), Some(77));
    // add_bos_token has no effect with a tokenizer.json, which has its own post-processor.
    assert_eq!(tokenizer.encode("a b", true).unwrap(), [4, 5]);
    assert_eq!(tokenizer.decode(&[2, 4, 3], true).unwrap(), "a");
}

/// The ids are those of transformers 5.23.
#[test]
fn tokens_that_the_configuration_lists_are_added() {
    let token = |content: &str, special: bool| json!({"content": content, "special": special, "normalized": false, "lstrip": false, "rstrip": false, "single_word": false});
    let mut config = json!({
        "added_tokens_decoder": {"7": token("<late>", false), "6": token("<six>", true)},
        "additional_special_tokens": ["<tool>", "<six>", {"content": "<call>", "__type": "AddedToken"}],
    });
    let ids = |config: &serde_json::Value| {
        let dir = scratch(&[("tokenizer.json", word_level()), ("tokenizer_config.json", config.clone())]);
        let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
        tokenizer.encode("a<six>b<late><tool><call><more>", true).unwrap()
    };
    assert_eq!(ids(&config), [4, 6, 5, 7, 8, 9, 1]);
    config["extra_special_tokens"] = json!(["<more>"]);
    assert_eq!(ids(&config), [4, 6, 5, 7, 1, 8], "the newer key takes precedence");
    config["extra_special_tokens"] = json!({"more": "<more>"});
    config["tool_token"] = json!("<tool>");
    config["bos_token"] = json!("<begin>");
    assert_eq!(ids(&config), [4, 6, 5, 7, 9, 1, 10]);
}

#[test]
fn a_malicious_tokenizer_is_rejected_with_its_file() {
    let bomb = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(40)});
    for (key, part) in [
        ("normalizer", json!({"type": "Sequence", "normalizers": vec![bomb; 4]})),
        ("normalizer", json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "b"})),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="})),
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        ("decoder", json!(7)),
    ] {
        let mut file = word_level();
        file[key] = part;
        let dir = scratch(&[("tokenizer.json", file)]);
        let error = Tokenizer::from_folder(dir.path()).unwrap_err();
        assert_eq!(error.place().unwrap().file_name().unwrap(), "tokenizer.json", "{error}");
        assert_eq!(error.kind(), ErrorKind::Format);
    }
}

#[test]
fn a_panic_of_the_tokenizers_crate_is_an_error_with_the_file() {
    // The crate strips a character from the end of an empty token.
    let mut file = word_level();
    file["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": ""},
        {"type": "Strip", "content": " ", "start": 0, "stop": 1},
    ]});
    let dir = scratch(&[("tokenizer.json", file)]);
    let error = Tokenizer::from_folder(dir.path()).unwrap().decode(&[4], true).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json: cannot decode"), "{error}");
}

#[test]
fn end_of_turn_tokens_are_found_by_name() {
    let listed = |tokens: &[&str]| {
        let config = json!({"additional_special_tokens": tokens});
        let dir = scratch(&[("tokenizer.json", word_level()), ("tokenizer_config.json", config)]);
        Tokenizer::from_folder(dir.path()).unwrap().end_of_turn_ids()
    };
    assert_eq!(listed(&["<|im_end|>", "<x>", "<|end|>"]), [6, 8]);
    assert_eq!(listed(&["<|return|>", "<|end|>"]), [6], "<|end|> does not end a turn of the harmony format");
    assert_eq!(listed(&[]), [0u32; 0]);
}

#[test]
fn model_max_length_may_be_any_number_of_python() {
    let dir = scratch(&[("tokenizer.json", word_level())]);
    let longest = |length: &str| {
        let config = format!("{{\"model_max_length\": {length}, \"bos_token\": \"<s>\"}}");
        fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        Tokenizer::from_folder(dir.path()).map(|tokenizer| tokenizer.max_length())
    };
    assert_eq!(longest("512").unwrap(), Some(512));
    for none in ["Infinity", "null", "1000000000000000019884624838656"] {
        assert_eq!(longest(none).unwrap(), None, "{none}");
    }
    for wrong in ["NaN", "-Infinity", "-1", "\"512\""] {
        let error = longest(wrong).unwrap_err();
        assert!(error.to_string().contains("tokenizer_config.json: model_max_length is"), "{error}");
    }
}

/// A folder with these lines as `vocab.txt`, after the five special tokens.
fn vocabulary(lines: &[&str]) -> tempfile::TempDir {
    let dir = scratch(&[]);
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    fs::write(dir.path().join("vocab.txt"), [&special[..], lines].concat().join("\n")).unwrap();
    dir
}

fn tokens(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text, false).unwrap();
    ids.into_iter().map(|id| tokenizer.token(id).unwrap()).collect()
}

#[test]
fn unsupported_tokenizer_classes_are_rejected_by_name() {
    let dir = vocabulary(&["a", "##b"]);
    let read = |file: &str, class: &str| {
        let config = json!({"tokenizer_class": class, "model_type": "bert"});
        fs::write(dir.path().join(file), config.to_string()).unwrap();
        let read = Tokenizer::from_folder(dir.path());
        fs::remove_file(dir.path().join(file)).unwrap();
        read
    };
    for file in ["tokenizer_config.json", "config.json"] {
        for class in ["BertJapaneseTokenizer", "RoFormerTokenizer", "TapasTokenizerFast"] {
            let error = read(file, class).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(&format!("{file}: tokenizer_class \"{class}\"")), "{error}");
        }
        for class in ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer"] {
            assert_eq!(tokens(&read(file, class).unwrap(), "AB a"), ["a", "##b", "a"]);
        }
    }
}

#[test]
fn a_smiles_vocabulary_splits_into_smiles_tokens() {
    let chemistry =
        ["c", "C", "(", ")", "=", "O", "[C@H]", "[C@@H]", "Cl", ">>", "1", "[N+]", "%10", ".", "Br"];
    let dir = vocabulary(&chemistry);
    let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
    let text = "CCl.O=C [C@@H](Br)c1%10>>[MASK][N+]N";
    let expected = [
        "C", "Cl", ".", "O", "=", "C", "[C@@H]", "(", "Br", ")", "c", "1", "%10", ">>", "[MASK]", "[N+]",
        "[UNK]",
    ];
    assert_eq!(tokens(&tokenizer, text), expected);
    assert_eq!(tokenizer.decode(&tokenizer.encode("OC=O", false).unwrap(), true).unwrap(), "OC=O");
    let whole = tokenizer.encode_text("CO", None).unwrap();
    assert_eq!(
        (whole.ids.first(), whole.ids.last()),
        (tokenizer.special().cls.as_ref(), tokenizer.special().sep.as_ref())
    );
    // A `##` subword makes it WordPiece, unless the tokenizer class is the SMILES tokenizer.
    let dir = vocabulary(&[&chemistry[..], &["##ing"]].concat());
    assert_eq!(tokens(&Tokenizer::from_folder(dir.path()).unwrap(), "CCl"), ["[UNK]"]);
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"tokenizer_class": "SmilesTokenizer"}"#).unwrap();
    assert_eq!(tokens(&Tokenizer::from_folder(dir.path()).unwrap(), "CCl"), ["C", "Cl"]);
}

#[test]
fn a_vocabulary_of_single_capital_letters_splits_into_residues() {
    let residues: Vec<String> = "ACDEFGHIKLMNPQRSTVWY".chars().map(String::from).collect();
    let dir = vocabulary(&residues.iter().map(String::as_str).collect::<Vec<_>>());
    let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
    let expected = ["E", "V", "Q", "[MASK]", "L", "[UNK]"];
    assert_eq!(tokens(&tokenizer, "EVQ[MASK]LX"), expected);
    assert_eq!(tokens(&tokenizer, "E V Q [MASK] L X"), expected);
    // Settings of the configuration take precedence.
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"do_lower_case": true}"#).unwrap();
    assert_eq!(tokens(&Tokenizer::from_folder(dir.path()).unwrap(), "E"), ["[UNK]"]);
}

#[test]
fn lowercasing_comes_before_the_other_normalizers() {
    let cased = Tokenizer::from_folder(folder("bert_cased")).unwrap();
    let ids = |tokenizer: &Tokenizer, text: &str| tokenizer.encode(text, true).unwrap();
    assert_ne!(ids(&cased, "The Star"), ids(&cased, "the star"));
    let lower = cased.clone().with_lowercase().unwrap();
    assert_eq!(ids(&lower, "The Star"), ids(&cased, "the star"));
    // Special tokens are matched before normalization.
    assert_eq!(ids(&lower, "[MASK]"), ids(&cased, "[MASK]"));
}

#[test]
fn missing_or_damaged_files_are_named() {
    let empty = scratch(&[]);
    let error = Tokenizer::from_folder(empty.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("tokenizer.json"));
    assert_eq!(Tokenizer::from_folder("no/such/folder").unwrap_err().kind(), ErrorKind::NotFound);
    for (name, bytes) in [
        ("tokenizer.json", &b"{\"model\": 1"[..]),
        ("vocab.txt", b"\xff\xfe"),
        ("vocab.txt", b"a\nb\n"),
        ("tokenizer.model", b"\x0a\xff\xff\xff\xff\x0f"),
        ("tokenizer.model", b""),
        ("spiece.model", &[0x0a; 100]),
    ] {
        let dir = scratch(&[]);
        fs::write(dir.path().join(name), bytes).unwrap();
        let error = Tokenizer::from_folder(dir.path()).unwrap_err();
        assert_eq!(
            (error.kind(), error.place().unwrap().file_name().unwrap()),
            (ErrorKind::Format, name.as_ref())
        );
    }
}

#[test]
fn an_added_token_with_a_wrong_id_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["vocab.json", "merges.txt"] {
        fs::copy(folder("gpt2").join(name), dir.path().join(name)).unwrap();
    }
    let size = Tokenizer::from_folder(dir.path()).unwrap().vocab_size() as u32;
    fs::write(dir.path().join("added_tokens.json"), json!({"<pad>": size}).to_string()).unwrap();
    assert_eq!(Tokenizer::from_folder(dir.path()).unwrap().token_id("<pad>"), Some(size));
    fs::write(dir.path().join("added_tokens.json"), json!({"<pad>": size + 5}).to_string()).unwrap();
    assert!(Tokenizer::from_folder(dir.path()).unwrap_err().message().contains("<pad>"));
}

proptest::proptest! {
    #[test]
    fn invalid_sentencepiece_models_never_panic(bytes in proptest::collection::vec(0u8..40, 0..200)) {
        let _ = sentencepiece::read(&bytes, true, None);
    }

    #[test]
    fn byte_level_encoding_is_lossless(text in "\\PC{0,40}") {
        let tokenizer = Tokenizer::from_folder(folder("gpt2")).unwrap();
        let ids = tokenizer.encode(&text, false).unwrap();
        proptest::prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}

#[test]
fn a_merge_of_an_unknown_token_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let vocab = r#"{"a": 0, "b<": 3, "b": 4, "</w>": 5, "ab": 6}"#;
    std::fs::write(folder.path().join("vocab.json"), vocab).unwrap();
    std::fs::write(folder.path().join("merges.txt"), "#version: 0.2\na b\nb </w>\n").unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("merges.txt") && error.contains("\"b </w>\"") && error.contains("\"b</w>\""),
        "{error}"
    );
}
