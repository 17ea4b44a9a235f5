//! The verbs over models of code, of thoughts and of genes.

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[allow(dead_code, reason = "shared with the tests of the other verbs, which use all of it")]
#[path = "support/program.rs"]
mod program;

use fauna::{Item, Prompt};
use program::{copy_of, json_lines, refused, run, served, text};
use serde_json::json;

const CODE: &str = "tests/parity/starcoder/generate_fim_text/model";
const GENES: &str = "tests/parity/genslm/embed_sequences/model";
const PREFIX: &str = "def add(a, b):\n    ";
const SUFFIX: &str = "\n    return total\n";

/// What the library fills a gap with.
fn filled(prefix: &str, suffix: &str, one_definition: bool) -> String {
    let model = fauna::open(CODE).unwrap();
    let prompt = Prompt::Infill { prefix: prefix.into(), suffix: suffix.into() };
    let options = fauna::Decoding { one_definition, ..fauna::Decoding::greedy(12) };
    let mut text = String::new();
    model
        .generate(&prompt, &options, &mut |piece| {
            if let Item::Text(piece) = piece {
                text += &piece;
            }
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    text
}

#[test]
fn a_gap_is_filled_however_it_is_given() {
    let expected = filled(PREFIX, SUFFIX, true);
    assert!(!expected.trim().is_empty());
    let parts = run(&["run", CODE, "--prefix", PREFIX, "--suffix", SUFFIX, "--max-tokens", "12", "--json"]);
    served(&parts);
    let answer = &json_lines(&parts.out)[0];
    assert_eq!(answer["text"], expected.as_str());
    assert_eq!(answer["prompt"], json!({"prefix": PREFIX, "suffix": SUFFIX}));

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sum.py");
    std::fs::write(&file, format!("{PREFIX}{SUFFIX}")).unwrap();
    let at = ["--at", "2:5", "--max-tokens", "12", "--json"];
    let place = run(&[&["run", CODE, "--file", text(&file)], &at[..]].concat());
    served(&place);
    assert_eq!(json_lines(&place.out)[0], *answer);

    // One line around the gap is the line before and the line after.
    std::fs::write(&file, format!("import os\n\n{PREFIX}{SUFFIX}\nx = 1\n")).unwrap();
    let near = ["--at", "4:5", "--lines", "1", "--max-tokens", "12", "--json"];
    let near = run(&[&["run", CODE, "--file", text(&file)], &near[..]].concat());
    assert_eq!(json_lines(&near.out)[0], *answer);
}

#[test]
fn what_stands_after_a_gap_counts() {
    assert_ne!(filled(PREFIX, SUFFIX, false), filled(PREFIX, "\n    print(b)\n", false));
}

#[test]
fn a_gap_that_is_none_is_refused() {
    let folder = copy_of(CODE);
    let model = text(folder.path());
    let tokenizer = folder.path().join("tokenizer.json");
    let without = std::fs::read_to_string(&tokenizer).unwrap().replace("fim_", "other_");
    std::fs::write(tokenizer, without).unwrap();
    refused(&run(&["run", model, "--prefix", "a"]), 2, &["fills no gaps", "StarCoder"]);
    refused(&run(&["run", CODE, "--file", "nowhere.rs", "--at", "1:1"]), 2, &["nowhere.rs", "cannot read"]);
    refused(
        &run(&["run", CODE, "--file", "rustfmt.toml", "--at", "900:1"]),
        2,
        &["rustfmt.toml", "line 900"],
    );
    refused(&run(&["run", CODE, "--file", "rustfmt.toml", "--at", "here"]), 2, &["LINE:COL"]);
    refused(&run(&["run", CODE, "--prefix", "a", "words"]), 2, &["cannot be used"]);
    refused(&run(&["run", CODE, "--prefix", " ", "--suffix", ""]), 2, &["the prompt is empty"]);
    let long = "x = 1\n".repeat(400);
    refused(&run(&["run", CODE, "--prefix", &long, "--suffix", "y"]), 2, &["positions"]);
}

#[test]
fn genes_are_continued_and_written_as_fasta() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new.fasta");
    let options = ["--max-tokens", "30", "--seed", "3"];
    let done = run(&[&["run", GENES, "ATGAAA", "--copies", "3", "--out", text(&out)], &options[..]].concat());
    served(&done);
    let file = std::fs::read_to_string(&out).unwrap();
    let genes: Vec<_> = fauna::text::genslm::fasta::Genes::read(
        "new.fasta",
        file.as_bytes(),
        fauna::text::genslm::codons::Reading::Strict,
    )
    .unwrap()
    .map(|gene| gene.unwrap())
    .collect();
    assert_eq!(
        genes.iter().map(|gene| gene.id.as_str()).collect::<Vec<_>>(),
        ["gene1-1", "gene1-2", "gene1-3"]
    );
    assert!(genes.iter().all(|gene| gene.sequence.starts_with("ATGAAA") && gene.sequence.len() > 6));
    assert_ne!(genes[0].sequence, genes[1].sequence);

    let again = run(&[&["run", GENES, "ATGAAA", "--json"], &options[..]].concat());
    let made = &json_lines(&again.out)[0];
    assert_eq!(made["sequence"], genes[0].sequence.as_str());
    let protein = run(&[&["run", GENES, "ATGAAA", "--protein"], &options[..]].concat());
    served(&protein);
    let (title, letters) = protein.out.split_once('\n').unwrap();
    assert_eq!(title, ">gene1");
    assert_eq!(letters.replace('\n', ""), made["protein"].as_str().unwrap());
}

#[test]
fn genes_of_a_file_are_scored_and_embedded() {
    for file in ["tests/data/genes.fasta", "tests/data/genes.fasta.gz"] {
        let scored = run(&["run", GENES, "--genes", file, "--score", "--json"]);
        served(&scored);
        let lines = json_lines(&scored.out);
        assert_eq!(lines.len(), 4);
        for line in lines {
            let (sum, each) =
                (line["log_likelihood"].as_f64().unwrap(), line["perplexity"].as_f64().unwrap());
            let foreseen = line["codons"].as_f64().unwrap() - 1.0;
            assert!(((-sum / foreseen).exp() / each - 1.0).abs() < 1e-4, "{line}");
        }
        let embedded = run(&["embed", GENES, "--genes", file]);
        served(&embedded);
        assert_eq!(json_lines(&embedded.out)[1]["text"], "rpmJ_D20E");
    }
}

#[test]
fn a_bad_gene_is_named_and_the_others_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("genes.fa");
    std::fs::write(&file, ">a\nATGAAA\n>b\nATGNAA\n>c\nATGAA\n>d\nATGCCC\n").unwrap();
    let said = ["record 2 \"b\"", "\"N\" at base 4", "record 3 \"c\"", "5 bases are no whole codons"];
    let scored = run(&["run", GENES, "--genes", text(&file), "--score", "--json"]);
    refused(&scored, 2, &said);
    assert_eq!(json_lines(&scored.out).len(), 2);
    let embedded = run(&["embed", GENES, "--genes", text(&file)]);
    refused(&embedded, 2, &said);
    assert!(json_lines(&embedded.out)[1]["embedding"].is_null());
    let read = run(&["embed", GENES, "--genes", text(&file), "--set", "reading=as_released"]);
    served(&read);
    assert_eq!(read.out.lines().count(), 4);

    std::fs::write(&file, "").unwrap();
    refused(&run(&["run", GENES, "--genes", text(&file)]), 2, &["genes.fa", "the file is empty"]);
    std::fs::write(&file, ">a\nATGQ\n>b\nATX\n").unwrap();
    refused(&run(&["run", GENES, "--genes", text(&file)]), 2, &["none of its genes", "record 1 \"a\""]);
    refused(&run(&["run", GENES, "ATGA"]), 2, &["4 bases are no whole codons"]);
}

#[test]
fn a_conversation_with_gpt_oss_is_held_in_its_own_format() {
    let folder = checkpoint::with_words("gpt_oss", "<|start|>", "<|return|>");
    let file = folder.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    for (mark, id) in [("<|channel|>", 50), ("<|message|>", 51), ("<|end|>", 52)] {
        tokenizer["model"]["vocab"][mark] = id.into();
        let mut added = tokenizer["added_tokens"][0].clone();
        (added["content"], added["id"]) = (mark.into(), id.into());
        tokenizer["added_tokens"].as_array_mut().unwrap().push(added);
    }
    std::fs::write(file, tokenizer.to_string()).unwrap();
    let talk = |how: &str| {
        let done = run(&[
            "run",
            text(folder.path()),
            "--chat",
            "a red car",
            "--reasoning",
            how,
            "--max-tokens",
            "5",
            "--json",
        ]);
        assert_eq!(done.status, 0, "{}", done.err);
        json_lines(&done.out).remove(0)
    };
    // The format itself is tested where it is written; here it must hold together, and be the same each time.
    assert_eq!(talk("low"), talk("low"));
    let wrong = run(&["run", text(folder.path()), "--chat", "a", "--reasoning", "deep"]);
    refused(&wrong, 2, &["deep", "low, medium, high"]);
}
