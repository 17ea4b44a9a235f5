//! GenSLMs: FASTA files, embeddings, likelihoods and generation of genes, and the file layouts of the releases.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

use std::io::{BufReader, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use fauna_shared::error::Result;
use fauna_shared::generate::GenerationConfig;
use fauna_shared::item::{Item, Prompt, Tensors};
use fauna_shared::model::{LoadOptions, Pipeline};
use fauna_shared::progress::Silent;
use fauna_shared::quantize::{QuantizeOptions, quantize};
use fauna_shared::zoo::Zoo;
use fauna_shared::{Error, ErrorKind};
use fauna_text::genslm::GenSlm;
use fauna_text::genslm::codons::{Reading, translate};
use fauna_text::genslm::fasta::{self, COLUMNS, Genes, Record};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};

const GENE: &str = "ATGAAAGTAACCGTTGTTGGAGCAGGTGCATAA";

// ---------------------------------------------------------------- FASTA files

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn genes(file: &[u8], reading: Reading) -> Vec<Result<Record>> {
    match Genes::read("genes.fasta", file, reading) {
        Ok(genes) => genes.collect(),
        Err(error) => vec![Err(error)],
    }
}

/// Each record as id and sequence, or its error.
fn results(file: &[u8]) -> Vec<String> {
    let format = |gene: Result<Record>| match gene {
        Ok(record) => format!("{} {}", record.id, record.sequence),
        Err(error) => error.to_string(),
    };
    genes(file, Reading::Strict).into_iter().map(format).collect()
}

#[test]
fn invalid_records_are_errors_with_record_and_position_and_the_others_are_read() {
    let file = b">a one\nATG\nTAA\n\n>b\nATGAAAAAAAAAAAAAXAA\n>c\nATGNAA\n>d\n>e\nAUGUAA\n>f\nATGTA\n>g last\natgtag";
    let found = results(file);
    let expected = [
        "a ATGTAA",
        "genes.fasta: record 2 \"b\": \"X\" at base 17\n",
        "genes.fasta: record 3 \"c\": \"N\" at base 4\n",
        "genes.fasta: record 4 \"d\": the gene is empty\n",
        "genes.fasta: record 5 \"e\": \"U\" at base 2\n",
        "genes.fasta: record 6 \"f\": 5 bases are not a multiple of 3: 2 left over\n",
        "g atgtag",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}");
    }
}

#[test]
fn a_file_that_is_not_fasta_is_refused() {
    for (file, message) in [
        (&b""[..], "genes.fasta: the file is empty"),
        (b" \n\r\n", "genes.fasta: the file is empty"),
        (b"ATGTAA\n", "genes.fasta: text before the first header"),
        (b"\n; a remark\n>a\nATG\n", "genes.fasta: text before the first header"),
        (b"\xef\xbb>a\nATG\n", "genes.fasta: text before the first header"),
    ] {
        let found = results(file);
        assert!(found.len() == 1 && found[0].starts_with(message), "{found:?}");
    }
    let missing = fasta::open("no/such.fasta", Reading::Strict).err().unwrap();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn crlf_byte_order_marks_and_invalid_utf8_headers_are_read() {
    assert_eq!(results(b"\xef\xbb\xbf>a x\r\nATG\r\nTAA\r\n>b\r\nATG TGA"), ["a ATGTAA", "b ATGTGA"]);
    let record = genes(b">\tid \xff two  words \nATG", Reading::Strict).remove(0).unwrap();
    assert_eq!((&*record.id, &*record.description), ("id", "\u{fffd} two  words"));
    // `>` inside a line does not begin a record.
    assert!(results(b">a\nATG>b\nATG")[0].contains("\">\" at base 4"));
    assert!(results(b">\nATGTAA\n>\nX")[1].starts_with("genes.fasta: record 2: \"X\" at base 1"));
}

#[test]
fn as_released_accepts_any_text() {
    let read = genes(b">a\nATGNNN-\n>b\n>c\nA U", Reading::AsReleased);
    assert_eq!(read[0].as_ref().unwrap().sequence, "ATGNNN-");
    assert!(read[1].as_ref().unwrap_err().to_string().contains("record 2 \"b\": the gene is empty"));
    assert_eq!(read[2].as_ref().unwrap().sequence, "AU");
    let bytes = genes(b">a\nATG\xffA\n>b\nATG\n", Reading::AsReleased);
    assert!(bytes[0].as_ref().unwrap_err().to_string().contains("byte 0xff after base 3"));
    assert!(bytes[1].is_ok());
}

#[test]
fn records_round_trip_through_files() {
    let records = [
        Record { id: "a".into(), description: "of a bacterium".into(), sequence: GENE.repeat(7) },
        Record { id: "b".into(), description: String::new(), sequence: "ATGTAA".into() },
    ];
    for columns in [COLUMNS, 70, 1, 0] {
        let mut file = Vec::new();
        records.iter().for_each(|record| fasta::write(&mut file, record, columns).unwrap());
        let longest =
            file.split(|byte| *byte == b'\n').filter(|line| !line.starts_with(b">")).map(<[u8]>::len).max();
        assert_eq!(longest.unwrap(), if columns == 0 { records[0].sequence.len() } else { columns });
        let again: Vec<Record> = genes(&file, Reading::Strict).into_iter().map(Result::unwrap).collect();
        assert_eq!(again, records);
        // As gzip, and as bgzip blocks with the empty block at the end.
        let compress = |bytes: &[u8]| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let blocks = [&file[..9], &file[9..40], &file[40..], &[]].map(compress).concat();
        for bytes in [compress(&file), blocks] {
            let plain = fasta::unpacked("genes.fasta.gz".as_ref(), &bytes[..]).unwrap();
            let again: Result<Vec<Record>> =
                Genes::read("genes.fasta.gz", plain, Reading::Strict).unwrap().collect();
            assert_eq!(again.unwrap(), records);
        }
    }
    let bad = Record { id: "a b".into(), ..records[1].clone() };
    assert_eq!(fasta::write(&mut Vec::new(), &bad, 60).unwrap_err().kind(), ErrorKind::Input);
    let bad = Record { sequence: "ATG\n>x".into(), ..records[1].clone() };
    assert_eq!(fasta::write(&mut Vec::new(), &bad, 60).unwrap_err().kind(), ErrorKind::Input);
}

#[test]
fn the_committed_genes_are_the_same_plain_and_compressed() {
    let read = |name: &str| -> Vec<Record> {
        let path = root().join("tests/data").join(name);
        fasta::open(path, Reading::Strict).unwrap().collect::<Result<_>>().unwrap()
    };
    let plain = read("genes.fasta");
    assert_eq!(plain, read("genes.fasta.gz"));
    assert_eq!(plain.iter().map(|gene| &*gene.id).collect::<Vec<_>>(), ["rpmJ", "rpmJ_D20E", "trpL", "pheL"]);
    assert_eq!(translate(&plain[2].sequence), "MKAIFVLKGWWRTS*");
}

#[test]
fn a_truncated_or_damaged_gzip_file_is_an_error_and_no_endless_loop() {
    let whole = std::fs::read(root().join("tests/data/genes.fasta.gz")).unwrap();
    for length in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[length] ^= 0x55;
        for bytes in [&whole[..length], &damaged] {
            let Ok(plain) = fasta::unpacked("x.gz".as_ref(), bytes) else { continue };
            let Ok(genes) = Genes::read("x.gz", plain, Reading::Strict) else { continue };
            assert!(genes.take(1000).count() < 1000);
        }
    }
}

/// An endless stream of one byte, and the number of bytes requested.
struct Endless<'a>(&'a mut usize, u8);

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        *self.0 += buffer.len();
        buffer.fill(self.1);
        Ok(buffer.len())
    }
}

#[test]
fn an_endless_sequence_or_header_is_refused_within_the_memory_limit() {
    for (start, byte, limit) in [(">a\n", b'A', 66 << 20), (">", b'a', 1 << 20)] {
        let mut requested = 0;
        let file = start.as_bytes().chain(Endless(&mut requested, byte));
        let read: Vec<Result<Record>> =
            Genes::read("bomb.fasta", BufReader::new(file), Reading::Strict).unwrap().collect();
        let error = read.last().unwrap().as_ref().unwrap_err().to_string();
        assert!(read.len() == 1 && error.contains("more than"), "{error}");
        assert!(requested < limit, "{requested} bytes were read");
    }
}

// ---------------------------------------------------------------- the model

fn zoo() -> Zoo {
    Zoo::new(fauna_text::FAMILIES.iter().copied())
}

fn tiny(name: &str) -> String {
    root().join("tests/parity/genslm").join(name).join("model").to_str().unwrap().to_string()
}

fn with(settings: Value) -> Result<GenSlm> {
    let settings: Map<String, Value> = settings.as_object().unwrap().clone();
    let options =
        LoadOptions { settings, file: Some("genslm_tiny_patric.pt".into()), ..LoadOptions::default() };
    GenSlm::open(&zoo().pretrained(&tiny("embed_sequences"), &options)?.1)
}

fn model() -> GenSlm {
    with(json!({})).unwrap()
}

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2().unwrap()
}

fn assert_near(a: &[f32], b: &[f32]) {
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(a.len() == b.len() && off < 1e-5, "off by {off}");
}

fn item(gene: &str) -> Item {
    Item::Gene(gene.into())
}

#[test]
fn an_embedding_is_the_mean_over_the_genes_codons_alone_and_in_a_batch() {
    let model = model();
    let long = GENE.repeat(9);
    let made = model.embed(&[item(GENE), item(&long), Item::Text("atgaaa\n".into()), item("ATG")]).unwrap();
    assert_eq!(made.cut, [0, 35, 0, 0], "64 codons fit");
    let made = made.to_vecs().unwrap();
    for (row, gene) in made.iter().zip([GENE, &long, "ATGAAA", "ATG"]) {
        assert_near(row, &model.embed(&[item(gene)]).unwrap().to_vecs().unwrap()[0]);
        let vectors = model.codon_embeddings(gene).unwrap();
        assert_near(row, &vectors.mean(0).unwrap().to_vec1::<f32>().unwrap());
    }
    assert_eq!(model.codon_embeddings(GENE).unwrap().dims(), [11, 69]);
}

#[test]
fn both_poolings_equal_those_of_the_forward_pass() {
    let options = json!({"sequences": [GENE, "ATGNAA-"], "seq_length": 28});
    let out = model().call("forward", &Tensors::new(), &options).unwrap();
    let embed = |settings: Value| {
        let model = with(settings).unwrap();
        model.embed(&[item(GENE), item("ATGNAA-")]).unwrap().to_vecs().unwrap()
    };
    let real = embed(json!({"reading": "as_released"}));
    let all = embed(json!({"reading": "as_released", "pooling": "all", "seq_length": 28}));
    for row in 0..2 {
        assert_near(&real[row], &rows(&out["embeddings"])[row]);
        assert_near(&all[row], &rows(&out["embeddings_all_positions"])[row]);
    }
}

#[test]
fn invalid_settings_are_refused_by_name() {
    for (settings, expected) in [
        (json!({"pooling": "mean"}), "pooling is \"mean\""),
        (json!({"pooling": 1}), "pooling is 1"),
        (json!({"reading": "loose"}), "reading is \"loose\""),
        (json!({"seq_length": 0}), "seq_length is 0"),
        (json!({"seq_length": -3}), "seq_length is -3"),
        (json!({"seq_length": "long"}), "seq_length is \"long\""),
    ] {
        let error = with(settings).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = with(json!({"seq_length": 65})).unwrap().embed(&[item(GENE)]).unwrap_err().to_string();
    assert!(error.contains("seq_length is 65") && error.contains("64 codons"), "{error}");
    assert_eq!(with(json!({"seq_length": 4})).unwrap().embed(&[item(GENE)]).unwrap().cut, [7]);
}

#[test]
fn invalid_genes_are_refused_by_every_method() {
    let model = model();
    let error = model.embed(&[item(GENE), item("ATGX")]).unwrap_err().to_string();
    assert!(error.starts_with("gene 2: \"X\" at base 4"), "{error}");
    assert!(model.embed(&[item("")]).is_err() && model.embed(&[]).is_err());
    assert!(
        model.embed(&[Item::Action(vec![])]).unwrap_err().to_string().contains("expects genes, not action")
    );
    assert!(model.score(&["ATG"]).unwrap_err().to_string().contains("a single codon"));
    assert!(model.score(&["ATGNNN"]).is_err());
    let generate = |prompt: &Prompt| {
        model.generate(prompt, &GenerationConfig::greedy(2), &mut |_| ControlFlow::Continue(()))
    };
    assert!(generate(&Prompt::Items(vec![item("ATGA")])).unwrap_err().to_string().contains("1 left over"));
    assert_eq!(generate(&Prompt::Chat(vec![])).unwrap_err().kind(), ErrorKind::Unsupported);
    let gap = Prompt::Infill { prefix: "ATG".into(), suffix: "TAA".into() };
    assert_eq!(generate(&gap).unwrap_err().kind(), ErrorKind::Unsupported);
    for options in [json!({"sequences": "ATG"}), json!({"sequences": [3]}), json!({"sequences": []})] {
        assert!(model.call("forward", &Tensors::new(), &options).is_err(), "{options}");
        assert!(model.call("score", &Tensors::new(), &options).is_err(), "{options}");
    }
}

#[test]
fn a_score_is_the_log_probability_of_each_codon_given_those_before_it() {
    let model = model();
    let ids = model.codons().encode(GENE, Reading::Strict, None).unwrap().ids;
    let wide: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    let input = Tensor::from_vec(wide, (1, ids.len()), &Device::Cpu).unwrap();
    let out = model.forward(&Tensors::from([("input_ids".to_string(), input)])).unwrap();
    let logits = rows(&out["logits"].get(0).unwrap().to_dtype(DType::F32).unwrap());
    let score = model.score(&[GENE, "ATGAAA"]).unwrap().remove(0);
    assert_eq!((score.codons.len(), score.cut), (ids.len() - 1, 0));
    for (at, found) in score.codons.iter().enumerate() {
        let row = &logits[at];
        let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
        let expected = f64::from(row[ids[at + 1] as usize]) - sum.ln();
        assert!((found - expected).abs() < 1e-4, "codon {at}: {found}, expected {expected}");
    }
    let mean = score.log_likelihood() / 10.0;
    assert!((score.perplexity() - (-mean).exp()).abs() < 1e-9);
}

/// The codons generated from each of `prompts`.
fn generated(model: &dyn Pipeline, prompts: &[&str], options: &GenerationConfig) -> Vec<Vec<String>> {
    let items: Vec<Prompt> = prompts.iter().map(|gene| Prompt::Items(vec![item(gene)])).collect();
    let mut made = vec![Vec::new(); prompts.len()];
    model
        .generate_batch(&items, options, &mut |index, piece| {
            let Item::Gene(codon) = piece else { panic!("{piece:?}") };
            made[index].push(codon);
            ControlFlow::Continue(())
        })
        .unwrap();
    made
}

#[test]
fn a_generated_gene_has_no_special_tokens_and_ends_at_the_first_stop_codon() {
    let model = model();
    // The temperature is high enough for special tokens to be sampled if they were allowed.
    let hot =
        GenerationConfig { temperature: 20.0, top_k: 0, top_p: 1.0, max_new_tokens: 60, ..model.defaults() };
    let genes = generated(&model, &["ATG"; 40], &hot);
    let mut stopped = 0;
    for gene in &genes {
        assert!(gene.iter().all(|codon| codon.len() == 3 && codon.chars().all(|base| "ACGT".contains(base))));
        let stop = gene.iter().position(|codon| translate(codon) == "*");
        assert!(stop.is_none_or(|stop| stop + 1 == gene.len()), "{gene:?}");
        assert!(stop.is_some() || gene.len() == 60);
        stopped += usize::from(stop.is_some());
    }
    assert!(stopped > 20, "{stopped} of 40 stop; uniform sampling stops 37");
    assert!(genes.iter().any(|gene| gene != &genes[0]), "equal prompts give different genes");

    let on = GenerationConfig { eos: Some(Vec::new()), ..hot.clone() };
    let on = generated(&model, &["ATG"; 8], &on);
    assert!(on.iter().all(|gene| gene.len() == 60), "no end without eos");
    assert!(on.iter().flatten().any(|codon| translate(codon) == "*"));
    let least = GenerationConfig { min_new_tokens: 30, ..hot.clone() };
    assert!(generated(&model, &["ATG"; 8], &least).iter().all(|gene| gene.len() > 30));
}

#[test]
fn a_gene_is_generated_alike_alone_and_in_a_batch() {
    let model = model();
    let options = GenerationConfig { max_new_tokens: 12, seed: 3, ..model.defaults() };
    let alone = generated(&model, &["ATGAAAGTA"], &options).remove(0);
    assert_eq!(generated(&model, &["ATGAAAGTA", "ATG", GENE], &options)[0], alone);
    let mut single = Vec::new();
    let prompt = Prompt::Items(vec![item("ATGAAA"), Item::Text("gta".into())]);
    model
        .generate(&prompt, &options, &mut |piece| {
            single.push(piece);
            ControlFlow::Continue(())
        })
        .unwrap();
    let single: String =
        single.iter().map(|piece| if let Item::Gene(codon) = piece { codon } else { "" }).collect();
    assert_eq!(single, alone.concat());
    // Without a prompt a gene begins with ATG.
    let greedy = GenerationConfig::greedy(6);
    assert_eq!(generated(&model, &[""], &greedy), generated(&model, &["ATG"], &greedy));
}

#[test]
fn generation_stops_at_break_and_at_the_context_length() {
    let model = model();
    let on = GenerationConfig { eos: Some(Vec::new()), max_new_tokens: 500, ..GenerationConfig::default() };
    // The last codon is sampled but never fed to the network.
    assert_eq!(generated(&model, &["ATGAAA"], &on)[0].len(), 63);
    let mut counts = [0, 0];
    let prompts = ["ATG", "ATG"].map(Prompt::from);
    let made = model
        .generate_batch(&prompts, &on, &mut |row, _| {
            counts[row] += 1;
            if counts[1] == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    // The fifth codon of the second prompt ends it, and the next codon of the first ends that.
    assert_eq!(counts, [6, 5]);
    assert_eq!(made.iter().map(|made| made.tokens.len()).collect::<Vec<_>>(), [6, 5]);
    let words = GenerationConfig { stop: vec!["TAA".into()], ..GenerationConfig::greedy(3) };
    let error = model.generate(&"ATG".into(), &words, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let long = Prompt::Items(vec![item(&GENE.repeat(6))]);
    let error = model.generate(&long, &on, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("66 tokens") && error.contains("maximum sequence length of 64"), "{error}");
}

// ---------------------------------------------------------------- releases

/// A folder with files of a tiny checkpoint, renamed.
fn folder(case: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (from, to) in files {
        std::fs::copy(Path::new(&tiny(case)).join(from), folder.path().join(to)).unwrap();
    }
    folder
}

fn open_error(path: &Path) -> Error {
    zoo().open(path.to_str().unwrap(), &LoadOptions::default()).err().unwrap()
}

#[test]
fn weights_with_a_release_name_are_opened_without_config_and_must_fit() {
    let name = "patric_25m_epoch01-val_loss_0.57_bias_removed.pt";
    let place = folder("embed_sequences", &[("genslm_tiny_patric.pt", name)]);
    let error = open_error(&place.path().join(name)).to_string();
    assert!(error.contains("[69, 69]") && error.contains("[69, 512]"), "the sizes of the 25M model: {error}");
    // It opens with a package config of that name that has the tiny sizes.
    let config = Path::new(&tiny("embed_sequences")).join("config.json");
    std::fs::copy(config, place.path().join("neox_25,290,752.json")).unwrap();
    let opened = zoo().open(place.path().join(name).to_str().unwrap(), &LoadOptions::default()).unwrap();
    assert_eq!((opened.card().family, opened.card().licence), ("genslm", Some("MIT")));
    assert_eq!(opened.embed(&[item(GENE)]).unwrap().rows.dims(), [1, 69]);

    let (_, inventory) =
        zoo().inventory(place.path().join(name).to_str().unwrap(), &LoadOptions::default()).unwrap();
    assert!(inventory.parameters > 50_000);
}

#[test]
fn the_released_sizes_have_the_official_numbers_of_parameters() {
    for (name, parameters) in [
        ("patric_25m_epoch01-val_loss_0.57_bias_removed.pt", 25_290_752),
        ("patric_250m_epoch00_val_loss_0.48_attention_removed.pt", 253_429_376),
        ("patric_2.5b_epoch00_val_los_0.29_bias_removed.pt", 2_533_931_008u64),
        ("model-epoch91-val_loss0.01.pt", 25_290_752),
    ] {
        let place = folder("embed_sequences", &[("genslm_tiny_patric.pt", name)]);
        let path = place.path().join(name);
        let (family, inventory) = zoo().inventory(path.to_str().unwrap(), &LoadOptions::default()).unwrap();
        assert_eq!((family.name, inventory.parameters), ("genslm", parameters), "{name}");
    }
}

#[test]
fn the_25b_release_is_refused_with_the_shapes_of_its_tensors() {
    let name = "model-epoch00-val_loss0.70-v2.pt";
    let place = folder("embed_sequences", &[("genslm_tiny_patric.pt", name)]);
    let error = open_error(&place.path().join(name));
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    for part in [
        "8196 is not a multiple of num_attention_heads 64",
        "gpt_neox.embed_in.weight [69, 69]",
        "query_key_value.weight [207, 69]",
        "put a config.json with these sizes next to it",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_tokenizer_file_that_is_invalid_or_does_not_fit_is_refused_by_name() {
    let plain = [("genslm_tiny_patric.pt", "genslm_tiny_patric.pt"), ("config.json", "config.json")];
    let place = folder("embed_sequences", &plain);
    zoo().open(place.path().to_str().unwrap(), &LoadOptions::default()).unwrap();
    let table = place.path().join("codon_wordlevel_69vocab.json");
    std::fs::write(&table, "{}").unwrap();
    assert_eq!(open_error(place.path()).place(), Some(&*table));
    std::fs::copy(Path::new(&tiny("embed_71_tokens")).join("codon_wordlevel_71vocab.json"), &table).unwrap();
    assert!(open_error(place.path()).to_string().contains("71 tokens, but the network has 69"));

    let words = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "cat": 1}, "unk_token": "[UNK]"}
    });
    std::fs::write(&table, words.to_string()).unwrap();
    assert!(open_error(place.path()).to_string().contains("not a codon vocabulary"));

    let place = folder("embed_71_tokens", &plain);
    std::fs::write(place.path().join("codon_wordlevel_100vocab.json"), words.to_string()).unwrap();
    assert!(open_error(place.path()).to_string().contains("not a codon vocabulary"));
    let settings = Map::new();
    let options = LoadOptions { family: Some("genslm".into()), settings, ..LoadOptions::default() };
    std::fs::remove_file(place.path().join("codon_wordlevel_100vocab.json")).unwrap();
    let error = zoo().open(place.path().to_str().unwrap(), &options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("codon_wordlevel_71vocab.json"), "{error}");
}

#[test]
fn the_vocabulary_of_71_tokens_adds_special_tokens_around_a_gene_and_before_a_prompt() {
    let options = LoadOptions { file: Some("genslm_tiny_patric.pt".into()), ..LoadOptions::default() };
    let model = GenSlm::open(&zoo().pretrained(&tiny("embed_71_tokens"), &options).unwrap().1).unwrap();
    let codons = model.codons();
    assert_eq!(codons.encode("ATGTAA", Reading::Strict, None).unwrap().ids, [2, 12, 67, 3]);
    let cut = codons.encode(GENE, Reading::Strict, Some(5)).unwrap();
    assert_eq!((cut.ids.len(), cut.cut, cut.ids[4]), (5, 8, 3));
    assert!(codons.encode(GENE, Reading::Strict, Some(2)).is_err(), "too short for a codon");
    assert_eq!(codons.encode_prompt("ATG", Reading::Strict).unwrap(), [2, 12]);
    assert_eq!((codons.ids(), codons.pad()), (7..71, 5));
    assert!(
        generated(&model, &["ATG"], &GenerationConfig::greedy(5))[0].iter().all(|codon| codon.len() == 3)
    );
}

#[test]
fn a_copy_of_weights_without_a_config_opens_alone() {
    let place = tempfile::tempdir().unwrap();
    let (source, copy) = (tiny("embed_older_file"), place.path().join("copy"));
    let kind = fauna_shared::nn::block_kind("q8_0").unwrap();
    let wanted = QuantizeOptions { source: &source, kind, folder: &copy, replace: false };
    quantize(&zoo(), &LoadOptions::default(), &wanted, &Silent).unwrap();
    let vector = |source: &str| {
        let model = zoo().open(source, &LoadOptions::default()).unwrap();
        model.embed(&[item(GENE)]).unwrap().to_vecs().unwrap()
    };
    assert_eq!(vector(copy.to_str().unwrap()), vector(&source));
}

#[test]
fn random_weights_of_the_25m_size_are_opened_from_a_config() {
    let place = tempfile::tempdir().unwrap();
    std::fs::copy(root().join("benches/configs/genslm-25m/config.json"), place.path().join("config.json"))
        .unwrap();
    let options = LoadOptions { random_weights: Some(1), ..LoadOptions::default() };
    let model = zoo().open(place.path().to_str().unwrap(), &options).unwrap();
    assert_eq!((model.card().family, model.card().parameters), ("genslm", 25_290_752));
    assert_eq!(model.card().context, Some(2048));
}
