//! Tests of the whole program: code models, reasoning models and gene models.

#[allow(dead_code, reason = "shared with the tests of other commands, which use all of it")]
#[path = "support/program.rs"]
mod program;

use fauna::{Item, Prompt};
use program::{copy_of, json_lines, refused, run, served, text};
use serde_json::json;

const CODE: &str = "tests/parity/starcoder/generate_fim_text/model";
const GENES: &str = "tests/parity/genslm/embed_sequences/model";
const TALK: &str = "tests/parity/gpt_oss/generate_conversation/model";
const PREFIX: &str = "def add(a, b):\n    ";
const SUFFIX: &str = "\n    return total\n";

/// Returns the text that the library generates between `prefix` and `suffix`.
fn filled(prefix: &str, suffix: &str, one_definition: bool) -> String {
    let model = fauna::open(CODE).unwrap();
    let prompt = Prompt::Infill { prefix: prefix.into(), suffix: suffix.into() };
    let options = fauna::GenerationConfig { one_definition, ..fauna::GenerationConfig::greedy(24) };
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
fn fill_in_the_middle_takes_a_prefix_and_suffix_or_a_file_position() {
    let expected = filled(PREFIX, SUFFIX, true);
    assert!(!expected.trim().is_empty());
    let parts =
        run(&["generate", CODE, "--prefix", PREFIX, "--suffix", SUFFIX, "--max-tokens", "24", "--json"]);
    served(&parts);
    let answer = &json_lines(&parts.out)[0];
    assert_eq!(answer["text"], expected.as_str());
    assert_eq!(answer["prompt"], json!({"prefix": PREFIX, "suffix": SUFFIX}));

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sum.py");
    std::fs::write(&file, format!("{PREFIX}{SUFFIX}")).unwrap();
    let at = ["--at", "2:5", "--max-tokens", "24", "--json"];
    let place = run(&[&["generate", CODE, "--file", text(&file)], &at[..]].concat());
    served(&place);
    assert_eq!(json_lines(&place.out)[0], *answer);

    // --lines 1 keeps one line before and one line after the gap.
    std::fs::write(&file, format!("import os\n\n{PREFIX}{SUFFIX}\nx = 1\n")).unwrap();
    let near = ["--at", "4:5", "--lines", "1", "--max-tokens", "24", "--json"];
    let near = run(&[&["generate", CODE, "--file", text(&file)], &near[..]].concat());
    assert_eq!(json_lines(&near.out)[0], *answer);
}

#[test]
fn fill_in_the_middle_uses_prefix_and_suffix() {
    let factorial = filled("def factorial(n):\n", "\n    return n * factorial(n - 1)\n", true);
    assert_eq!(factorial, "    if n < 2:\n        return 1");
    let area =
        filled("def area(width, height):\n    \"\"\"The area of a rectangle.\"\"\"\n    return ", "\n", true);
    assert_eq!(area, "width * height");
}

#[test]
fn invalid_fill_in_the_middle_arguments_are_errors() {
    let folder = copy_of(CODE);
    let model = text(folder.path());
    let tokenizer = folder.path().join("tokenizer.json");
    let without = std::fs::read_to_string(&tokenizer).unwrap().replace("fim_", "other_");
    std::fs::write(tokenizer, without).unwrap();
    refused(&run(&["generate", model, "--prefix", "a"]), 2, &["fill-in-the-middle", "StarCoder"]);
    refused(
        &run(&["generate", CODE, "--file", "nowhere.rs", "--at", "1:1"]),
        2,
        &["nowhere.rs", "cannot read"],
    );
    refused(
        &run(&["generate", CODE, "--file", "rustfmt.toml", "--at", "900:1"]),
        2,
        &["rustfmt.toml", "line 900"],
    );
    refused(&run(&["generate", CODE, "--file", "rustfmt.toml", "--at", "here"]), 2, &["LINE:COL"]);
    refused(&run(&["generate", CODE, "--prefix", "a", "words"]), 2, &["cannot be used"]);
    refused(&run(&["generate", CODE, "--prefix", " ", "--suffix", ""]), 2, &["the prompt is empty"]);
    let long = "x = 1\n".repeat(400);
    refused(&run(&["generate", CODE, "--prefix", &long, "--suffix", "y"]), 2, &["maximum sequence length"]);
}

#[test]
fn genes_are_generated_and_written_as_fasta() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new.fasta");
    let options = ["--max-tokens", "30", "--seed", "3"];
    let done =
        run(&[&["genes", "generate", GENES, "ATGAAA", "--copies", "3", "--out", text(&out)], &options[..]]
            .concat());
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

    let again = run(&[&["genes", "generate", GENES, "ATGAAA", "--json"], &options[..]].concat());
    let made = &json_lines(&again.out)[0];
    assert_eq!(made["sequence"], genes[0].sequence.as_str());
    let protein = run(&[&["genes", "generate", GENES, "ATGAAA", "--protein"], &options[..]].concat());
    served(&protein);
    let (title, letters) = protein.out.split_once('\n').unwrap();
    assert_eq!(title, ">gene1");
    assert_eq!(letters.replace('\n', ""), made["protein"].as_str().unwrap());
}

#[test]
fn genes_of_a_file_are_scored_and_embedded() {
    for file in ["tests/data/genes.fasta", "tests/data/genes.fasta.gz"] {
        let scored = run(&["genes", "score", GENES, "--genes", file, "--json"]);
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
fn an_invalid_gene_is_reported_and_the_others_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("genes.fa");
    std::fs::write(&file, ">a\nATGAAA\n>b\nATGNAA\n>c\nATGAA\n>d\nATGCCC\n").unwrap();
    let said = ["record 2 \"b\"", "\"N\" at base 4", "record 3 \"c\"", "5 bases are not a multiple of 3"];
    let scored = run(&["genes", "score", GENES, "--genes", text(&file), "--json"]);
    refused(&scored, 2, &said);
    assert_eq!(json_lines(&scored.out).len(), 2);
    let embedded = run(&["embed", GENES, "--genes", text(&file)]);
    refused(&embedded, 2, &said);
    assert!(json_lines(&embedded.out)[1]["embedding"].is_null());
    let read = run(&["embed", GENES, "--genes", text(&file), "--set", "reading=as_released"]);
    served(&read);
    assert_eq!(read.out.lines().count(), 4);

    let many = format!(">good\nATGAAA\n{}", ">bad\nATGNAA\n".repeat(300));
    std::fs::write(&file, many).unwrap();
    let scored = run(&["genes", "score", GENES, "--genes", text(&file)]);
    refused(&scored, 2, &["280 more invalid genes"]);
    assert!(scored.err.lines().count() < 100, "{}", scored.err);

    std::fs::write(&file, "").unwrap();
    refused(
        &run(&["genes", "generate", GENES, "--genes", text(&file)]),
        2,
        &["genes.fa", "the file is empty"],
    );
    std::fs::write(&file, ">a\nATGQ\n>b\nATX\n").unwrap();
    refused(
        &run(&["genes", "generate", GENES, "--genes", text(&file)]),
        2,
        &["no valid gene", "record 1 \"a\""],
    );
    refused(&run(&["genes", "generate", GENES, "ATGA"]), 2, &["4 bases are not a multiple of 3"]);
}

#[test]
fn reasoning_is_shown_only_on_request() {
    let ask =
        |how: &[&str]| run(&[&["chat", TALK, "Why is the sky blue?", "--temperature", "0"], how].concat());
    let answer = "Because air scatters blue light more than red.";
    let plain = ask(&["--reasoning", "low"]);
    served(&plain);
    assert_eq!(plain.out.trim_end(), answer);
    let shown = ask(&["--show-reasoning"]);
    assert_eq!((shown.status, shown.out.trim_end()), (0, answer));
    assert_eq!(shown.err, "Scattering of short waves by air.\n");
    let told = ask(&["--reasoning", "high", "--json"]);
    served(&told);
    let told = json_lines(&told.out).remove(0);
    assert_eq!(told["text"], answer);
    assert!(told["reasoning"].as_str().unwrap().starts_with("Blue light has short waves."), "{told}");
    let cut = ask(&["--reasoning", "high", "--max-tokens", "9"]);
    assert_eq!(cut.status, 0);
    assert!(cut.err.contains("while reasoning") && cut.err.contains("--max-tokens"), "{}", cut.err);
    refused(&ask(&["--reasoning", "deep"]), 2, &["deep", "low, medium, high"]);
}
