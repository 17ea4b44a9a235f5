//! Tests of `fauna tune`, `fauna merge` and `--adapter`: what is written, how runs go on, and the errors.

#[allow(dead_code, reason = "shared with the tests of other commands, which use all of it")]
#[path = "support/program.rs"]
mod program;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fauna::checkpoint::{Checkpoint, Metadata, StorageType, StoredTensor, TensorInfo, write_safetensors};
use program::{Done, copy_of, fauna, json_lines, run, text};
use serde_json::{Value, json};
use tempfile::TempDir;

const TEMPLATE: &str = "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}";

/// A model, a data set, and a folder for what is written.
struct Bench {
    model: TempDir,
    data: TempDir,
    out: TempDir,
}

impl Bench {
    /// A small Llama with a chat template, and conversations.
    fn new() -> Self {
        let model = copy_of("tests/parity/llama/text_left_padding/model");
        std::fs::write(model.path().join("chat_template.jinja"), TEMPLATE).unwrap();
        let data = tempfile::tempdir().unwrap();
        let chat = |question: &str, answer: &str| json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]});
        let rows: Vec<Value> =
            (0..12).map(|i| chat(&format!("is {i} even"), if i % 2 == 0 { "yes" } else { "no" })).collect();
        write_rows(&data.path().join("train.jsonl"), &rows);
        write_rows(&data.path().join("valid.jsonl"), &[chat("is 14 even", "yes"), chat("is 15 even", "no")]);
        Self { model, data, out: tempfile::tempdir().unwrap() }
    }

    fn model(&self) -> &str {
        text(self.model.path())
    }

    /// The output folder `name`.
    fn out(&self, name: &str) -> PathBuf {
        self.out.path().join(name)
    }

    /// The arguments of a run that writes to the folder `out`.
    fn arguments<'a>(&'a self, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
        [&["tune", self.model(), "--data", text(self.data.path()), "--out", text(out)], more].concat()
    }

    fn tune(&self, out: &str, more: &[&str]) -> Done {
        run(&self.arguments(&self.out(out), more))
    }

    /// Trains, and asserts that it is done.
    #[track_caller]
    fn tuned(&self, out: &str, more: &[&str]) -> PathBuf {
        let done = self.tune(out, more);
        assert_eq!(done.status, 0, "{}", done.err);
        self.out(out)
    }

    /// What a model answers with greedy decoding.
    #[track_caller]
    fn answer(&self, model: &[&str]) -> String {
        let done =
            run(&[&["generate"], model, &["is 3 even", "--max-tokens", "12", "--temperature", "0"]].concat());
        assert_eq!(done.status, 0, "{}", done.err);
        done.out
    }
}

/// Asserts that the program exited with `status` and an error with each of `words`, after what it said before.
#[track_caller]
fn refused(done: &Done, status: i32, words: &[&str]) {
    let start = ["fauna: ", "error: "].iter().filter_map(|start| done.err.rfind(start)).max();
    let error = done.err[start.unwrap_or_else(|| panic!("{} {}", done.status, done.err))..].to_string();
    program::refused(&Done { status: done.status, out: String::new(), err: error }, status, words);
}

fn write_rows(path: &Path, rows: &[Value]) {
    std::fs::write(path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
}

fn log(out: &Path) -> Vec<Value> {
    json_lines(&std::fs::read_to_string(out.join("log.jsonl")).unwrap())
}

fn weights(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("last/adapter_model.safetensors")).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = std::fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

/// Starts the program, whose process can be ended.
fn start(arguments: &[&str]) -> Child {
    let quiet = || Stdio::null();
    fauna().args(arguments).stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn().unwrap()
}

/// Waits until `child` has taken `steps` steps; false if it ended before.
fn wait_for(child: &mut Child, out: &Path, steps: usize) -> bool {
    let begun = Instant::now();
    loop {
        let log = std::fs::read_to_string(out.join("log.jsonl")).unwrap_or_default();
        if log.lines().filter(|line| line.contains("\"loss\"")).count() >= steps {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(begun.elapsed() < Duration::from_secs(300), "no step {steps}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

const LORA: [&str; 8] = ["--lora", "4", "--lr", "1e-2", "--steps", "30", "--valid-every", "10"];

#[test]
fn an_adapter_lowers_the_loss_and_is_written_with_log_and_curve() {
    let bench = Bench::new();
    let done = bench.tune("out", &[&LORA[..], &["--json", "--mask-prompt"]].concat());
    assert_eq!(done.status, 0, "{}", done.err);
    let out = bench.out("out");
    let said: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(said["folder"], text(&out.join("best")));
    assert_eq!((&said["steps"], &said["stopped"]), (&json!(30), &json!(false)));
    assert_eq!(names(&out), ["best", "curve.png", "last", "log.jsonl"]);
    assert_eq!(names(&out.join("best")), ["adapter_config.json", "adapter_model.safetensors"]);
    assert!(std::fs::read(out.join("curve.png")).unwrap().starts_with(b"\x89PNG"));
    let rows = log(&out);
    let losses: Vec<f64> = rows.iter().filter_map(|row| row["loss"].as_f64()).collect();
    assert_eq!(losses.len(), 30);
    assert!(losses[29] < 0.7 * losses[0], "{losses:?}");
    let validated: Vec<f64> = rows.iter().filter_map(|row| row["validation_loss"].as_f64()).collect();
    assert_eq!(validated.len(), 4);
    let lowest = validated.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(said["best"].as_f64(), Some(lowest));
    for (name, unit) in [("learning_rate", 0.01), ("grad_norm", 1e9), ("seconds", 1e9)] {
        let within = |row: &&Value| {
            row["loss"].is_null() || row[name].as_f64().is_some_and(|x| (0.0..=unit).contains(&x))
        };
        assert!(rows.iter().all(|row| within(&row)), "{name}");
    }
}

#[test]
fn an_adapter_opens_over_its_base_alone_and_merged_with_the_same_outputs() {
    let bench = Bench::new();
    let last = bench.tuned("out", &LORA).join("last");
    let (base, last) = (bench.model(), text(&last).to_string());
    let adapted = bench.answer(&[base, "--adapter", &last]);
    assert_eq!(bench.answer(&[&last]), adapted);
    let merged = bench.out("merged");
    let done = run(&["merge", base, "--adapter", &last, "--out", text(&merged)]);
    assert_eq!(done.status, 0, "{}", done.err);
    assert_eq!(bench.answer(&[text(&merged)]), adapted);
    let untrained = bench.answer(&[base]);
    assert_ne!(adapted, untrained);
    assert_eq!(bench.answer(&[base, "--adapter", &format!("{last}:0")]), untrained);
    let again = run(&["merge", base, "--adapter", &last, "--out", text(&merged)]);
    refused(&again, 2, &["merged", "exists", "--force"]);
    assert_eq!(run(&["merge", base, "--adapter", &last, "--out", text(&merged), "--force"]).status, 0);
    // What is no checkpoint, and what is merged, is not replaced.
    let notes = bench.out("notes");
    std::fs::create_dir_all(&notes).unwrap();
    std::fs::write(notes.join("notes.txt"), "mine").unwrap();
    for (out, word) in [(text(&notes), "no checkpoint"), (&last, "is merged"), (base, "is merged")] {
        refused(&run(&["merge", base, "--adapter", &last, "--out", out, "--force"]), 2, &[word]);
    }
    assert!(notes.join("notes.txt").exists());
}

#[test]
fn an_adapter_over_an_adapter_names_it_as_its_base_and_is_refused_without_it() {
    let bench = Bench::new();
    let last = bench.tuned("out", &LORA).join("last");
    let (base, last) = (bench.model(), text(&last).to_string());
    let done = bench.tune("over", &[&LORA[..], &["--adapter", &last]].concat());
    assert_eq!(done.status, 0, "{}", done.err);
    assert!(done.err.contains(&format!("--adapter {last}")), "{}", done.err);
    let over = text(&bench.out("over/last")).to_string();
    let merged = |model: &[&str], out: &str| {
        let out = bench.out(out);
        let done = run(&[&["merge"], model, &["--out", text(&out)]].concat());
        assert_eq!(done.status, 0, "{}", done.err);
        std::fs::read(out.join("model.safetensors")).unwrap()
    };
    let both = merged(&[base, "--adapter", &last, "--adapter", &over], "both");
    assert!(merged(&[&over], "alone") == both, "the adapter brings the one it names along");
    assert!(merged(&[base, "--adapter", &last], "first") != both);
    let alone = run(&["generate", base, "--adapter", &over, "hello"]);
    refused(&alone, 2, &["trained over the adapter", &last]);
    for adapters in [&["--adapter", &format!("{last}:0.5")][..], &["--adapter", &last, "--adapter", &over]] {
        let done = bench.tune("more", &[&LORA[..], adapters].concat());
        refused(&done, 2, &["cannot name its base model", "fauna merge"]);
    }
}

#[test]
fn a_run_that_is_killed_and_resumed_ends_with_the_bytes_of_one_that_was_not() {
    let bench = Bench::new();
    let options =
        ["--lora", "2", "--lr", "1e-2", "--steps", "60", "--valid-every", "7", "--schedule", "cosine"];
    let whole = bench.tuned("whole", &options);
    let out = bench.out("killed");
    let resumed = [&options[..], &["--resume"]].concat();
    let mut killed = 0;
    // Recomputation changes no bit, and may be chosen anew.
    let recomputing = [&resumed[..], &["--recompute"]].concat();
    for (steps, options) in [(9, &options[..]), (20, &resumed), (36, &recomputing), (50, &resumed)] {
        let mut child = start(&bench.arguments(&out, options));
        killed += usize::from(wait_for(&mut child, &out, steps));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(killed >= 2, "the run was killed {killed} times only");
    let done = bench.tune("killed", &resumed);
    assert_eq!(done.status, 0, "{}", done.err);
    assert!(weights(&out) == weights(&whole), "the weights differ");
    let of = |out: &Path, key: &str| -> Vec<Value> { log(out).iter().map(|row| row[key].clone()).collect() };
    for key in ["step", "loss", "validation_loss"] {
        assert_eq!(of(&out, key), of(&whole, key), "{key}");
    }
    assert_eq!(names(&out), names(&whole));
    let best = |out: &Path| std::fs::read(out.join("best/adapter_model.safetensors")).unwrap();
    assert!(best(&out) == best(&whole));
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_exits_with_status_130() {
    let bench = Bench::new();
    let options = ["--lora", "2", "--steps", "4000", "--valid-every", "1000", "--lr", "1e-3"];
    let out = bench.out("out");
    let mut child = start(&bench.arguments(&out, &options));
    assert!(wait_for(&mut child, &out, 3));
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let state = std::fs::read_to_string(out.join("last/training_state.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    assert_eq!(state["step"], log(&out).last().unwrap()["step"]);
    assert!(!bench.answer(&[text(&out.join("last"))]).is_empty());
}

#[test]
fn a_seed_determines_the_bytes() {
    let bench = Bench::new();
    let of = |out: &str, seed: &str| {
        weights(&bench.tuned(out, &["--steps", "5", "--valid-every", "5", "--seed", seed]))
    };
    let first = of("a", "3");
    assert!(of("b", "3") == first);
    assert!(of("c", "4") != first);
}

#[cfg(unix)]
#[test]
fn a_second_run_into_a_folder_is_refused_while_the_first_one_writes() {
    let bench = Bench::new();
    let options = ["--lora", "2", "--steps", "100000", "--valid-every", "5"];
    let out = bench.out("out");
    let mut child = start(&bench.arguments(&out, &options));
    assert!(wait_for(&mut child, &out, 8));
    let resumed = [&options[..], &["--resume"]].concat();
    for more in [&options[..], &resumed[..]] {
        refused(&bench.tune("out", more), 2, &["another run is writing", "another folder"]);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // The lock ends with its process.
    let words = ["the run to be resumed was another one", "steps: 100000 before, 3 now"];
    refused(
        &bench.tune("out", &["--lora", "2", "--steps", "3", "--valid-every", "5", "--resume"]),
        2,
        &words,
    );
}

#[test]
fn a_log_has_whole_lines_after_a_kill() {
    let bench = Bench::new();
    let out = bench.out("out");
    for steps in [3, 7, 12] {
        let _ = std::fs::remove_dir_all(&out);
        let mut child = start(&bench.arguments(&out, &["--lora", "2", "--steps", "100000"]));
        assert!(wait_for(&mut child, &out, steps));
        child.kill().unwrap();
        child.wait().unwrap();
        let text = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
        assert!(text.ends_with('\n'), "{text}");
        assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{text}");
    }
}

#[test]
fn products_in_bfloat16_train_an_adapter_and_whole_weights() {
    let bench = Bench::new();
    for (out, options) in [("lora", &["--lora", "4"][..]), ("full", &["--full"])] {
        let more = ["--dtype", "bf16", "--lr", "1e-2", "--steps", "30", "--valid-every", "15"];
        let out = bench.tuned(out, &[options, &more].concat());
        let losses: Vec<f64> = log(&out).iter().filter_map(|row| row["loss"].as_f64()).collect();
        assert!(losses[29] < 0.7 * losses[0], "{losses:?}");
        let state = Checkpoint::open(&out.join("last/training_state.safetensors")).unwrap();
        assert!(state.iter().all(|(_, tensor)| tensor.storage == StorageType::F32));
    }
}

#[test]
fn a_run_goes_on_only_with_its_own_options_and_folder() {
    let bench = Bench::new();
    let out = bench.tuned("out", &LORA);
    let before = weights(&out);
    let other = |name: &str, value: &str| {
        let mut options = LORA.map(String::from).to_vec();
        match options.iter().position(|option| option == name) {
            Some(place) => options[place + 1] = value.to_string(),
            None => options.extend([name.to_string(), value.to_string()]),
        }
        let options: Vec<&str> = options.iter().map(String::as_str).chain(["--resume"]).collect();
        bench.tune("out", &options)
    };
    for (name, value, words) in [
        ("--lr", "2e-2", ["learning_rate", "0.01", "0.02"]),
        ("--steps", "40", ["steps", "30", "40"]),
        ("--batch", "3", ["batch", "4", "3"]),
        ("--seed", "7", ["seed", "0", "7"]),
        ("--lora", "3", ["trained", "rank 4", "rank 3"]),
        ("--schedule", "linear", ["schedule", "constant", "linear"]),
        ("--dtype", "bf16", ["model", "before", "--dtype bf16"]),
        ("--valid-every", "15", ["valid_every", "10", "15"]),
        ("--column", "messages=messages", ["data", "before", "--column messages=messages"]),
        ("--data", text(&bench.data.path().join("train.jsonl")), ["data", "2 for validation", "train.jsonl"]),
    ] {
        if name == "--data" {
            let data = bench.data.path().join("train.jsonl");
            let done = run(&[
                &["tune", bench.model(), "--data", text(&data), "--out", text(&out), "--resume"],
                &LORA[..],
            ]
            .concat());
            refused(&done, 2, &words);
            continue;
        }
        refused(&other(name, value), 2, &words);
        refused(&other(name, value), 2, &["training_state.json", "same options"]);
    }
    refused(&bench.tune("none", &[&LORA[..], &["--resume"]].concat()), 2, &["no run to go on with", "none"]);
    assert!(!bench.out("none").exists());
    refused(&bench.tune("out", &LORA), 2, &["has a run", "--resume"]);
    assert!(weights(&out) == before);
    // Rows that were changed, though not in their length.
    let rows = bench.data.path().join("train.jsonl");
    let own = std::fs::read_to_string(&rows).unwrap();
    std::fs::write(&rows, own.replacen("even", "EVEN", 1)).unwrap();
    refused(&bench.tune("out", &[&LORA[..], &["--resume"]].concat()), 2, &["data", "checksum", "before"]);
    std::fs::write(&rows, own).unwrap();
    // A run that is done is done.
    let done = bench.tune("out", &[&LORA[..], &["--resume"]].concat());
    assert_eq!(done.status, 0, "{}", done.err);
    assert!(weights(&out) == before);
}

#[test]
fn whole_checkpoints_open_and_keep_what_was_not_trained() {
    let bench = Bench::new();
    let base = Checkpoint::open(&bench.model.path().join("model.safetensors")).unwrap();
    let steps = ["--steps", "4", "--valid-every", "2", "--lr", "1e-2"];
    for (out, options, is_trained) in [
        ("full", &["--full"][..], (|_| true) as fn(&str) -> bool),
        ("head", &["--head"], |name| name == "lm_head.weight"),
        ("only", &["--only", "norm"], |name| name.contains("norm")),
    ] {
        let last = bench.tuned(out, &[&steps[..], options].concat()).join("last");
        let tuned = Checkpoint::open(&last.join("model.safetensors")).unwrap();
        assert_eq!(tuned.names().collect::<Vec<_>>(), base.names().collect::<Vec<_>>());
        for (name, before) in base.iter() {
            let after = tuned.get(name).unwrap();
            assert_eq!((after.storage, &after.shape), (StorageType::F32, &before.shape));
            assert_eq!(after.bytes.to_vec() != before.bytes.to_vec(), is_trained(name), "{out}: {name}");
        }
        assert!(!bench.answer(&[text(&last)]).is_empty());
        let words: &[&str] = &["has a run", "--resume"];
        refused(&bench.tune(out, options), 2, words);
    }
}

#[test]
fn a_model_is_trained_from_its_config_alone() {
    let bench = Bench::new();
    std::fs::remove_file(bench.model.path().join("model.safetensors")).unwrap();
    let config = bench.model.path().join("config.json");
    let train = |out: &str, more: &[&str]| {
        let out = bench.out(out);
        let fixed =
            ["tune", "--from-config", text(&config), "--data", text(bench.data.path()), "--out", text(&out)];
        run(&[&fixed[..], &["--steps", "30", "--valid-every", "15", "--lr", "1e-2"], more].concat())
    };
    let done = train("out", &[]);
    assert_eq!(done.status, 0, "{}", done.err);
    assert!(done.err.contains("all weights of"), "{}", done.err);
    let out = bench.out("out");
    let losses: Vec<f64> = log(&out).iter().filter_map(|row| row["loss"].as_f64()).collect();
    assert!(losses[29] < 0.7 * losses[0], "{losses:?}");
    assert!(!bench.answer(&[text(&out.join("last"))]).is_empty());
    // The head alone, of random weights.
    let done = train("head", &["--head"]);
    assert_eq!(done.status, 0, "{}", done.err);
    assert!(done.err.contains("the output head of"), "{}", done.err);
    refused(&train("lora", &["--lora", "4"]), 2, &["--lora", "--from-config"]);
    refused(&train("dora", &["--dora"]), 2, &["--dora"]);
    assert!(!bench.out("lora").exists() && !bench.out("dora").exists());
}

#[test]
fn a_choice_that_takes_nothing_is_an_error_that_names_tensors() {
    let bench = Bench::new();
    for (options, words) in [
        (&["--only", "no_such"][..], &["no tensor", "no_such", "model.embed_tokens.weight", "--tensors"][..]),
        (&["--only", "no_such", "--lora", "2"], &["no tensor", "no_such"]),
        (&["--targets", "q_proj,qq_proj"], &["no module", "qq_proj", "lm_head.weight"]),
        (&["--targets", ".*no_such"], &["no module", ".*no_such"]),
        (&["--only", "("], &["regular expression"]),
        (&["--head", "--alpha", "3"], &["--alpha", "--lora"]),
        (&["--only", "norm", "--targets", "q_proj"], &["--targets", "--lora"]),
        (&["--full", "--rslora"], &["--rslora", "--lora"]),
        (&["--lora", "2", "--full"], &["--lora", "--full"]),
        (&["--lora", "0"], &["r: 0", "rank"]),
        (&["--lora", "100000"], &["rank 100000 does not fit", "self_attn", "at most"]),
    ] {
        refused(&bench.tune("out", options), 2, words);
        assert!(!bench.out("out").exists(), "{options:?}");
    }
}

#[test]
fn a_tied_head_has_no_tensor_to_train() {
    let bench = Bench::new();
    let (file, folder) = (bench.model.path().join("model.safetensors"), tempfile::tempdir().unwrap());
    let whole = Checkpoint::open(&file).unwrap();
    let kept = || whole.iter().filter(|(name, _)| *name != "lm_head.weight");
    let plan = |(name, stored): (&str, &StoredTensor)| TensorInfo {
        name: name.to_string(),
        storage: stored.storage,
        shape: stored.shape.clone(),
    };
    let planned: Vec<TensorInfo> = kept().map(plan).collect();
    let tied = folder.path().join("model.safetensors");
    let bytes = |tensor: &TensorInfo| Ok(whole.get(&tensor.name).unwrap().bytes.to_vec());
    write_safetensors(&tied, &Metadata::new(), &planned, bytes).unwrap();
    std::fs::copy(&tied, &file).unwrap();
    let config = bench.model.path().join("config.json");
    let mut keys: Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    keys["tie_word_embeddings"] = json!(true);
    std::fs::write(&config, keys.to_string()).unwrap();
    for options in [&["--head"][..], &["--head", "--lora", "2"]] {
        refused(&bench.tune("out", options), 2, &["no tensor", "lm_head", "model.embed_tokens.weight"]);
        assert!(!bench.out("out").exists());
    }
}

#[test]
fn options_out_of_range_are_refused_before_anything_is_read() {
    let bench = Bench::new();
    for (options, words) in [
        (&["--lr", "0"][..], &["learning_rate is 0", "above 0"][..]),
        (&["--lr=-1"], &["learning_rate is -1", "above 0"]),
        (&["--lr", "nan"], &["learning_rate is NaN"]),
        (&["--lr", "inf"], &["learning_rate is inf"]),
        (&["--batch", "0"], &["batch is 0", "1 or more"]),
        (&["--accumulate", "0"], &["accumulate is 0"]),
        (&["--accumulate", "1000000000"], &["1000000000", "at most 1048576"]),
        (&["--batch", "18446744073709551615"], &["at most 1048576"]),
        (&["--steps", "0"], &["--steps"]),
        (&["--valid-every", "0"], &["--valid-every"]),
        (&["--valid-batches", "0"], &["valid_batches is 0"]),
        (&["--clip=-1"], &["clip is -1"]),
        (&["--weight-decay=-1"], &["weight_decay is -1"]),
        (&["--max-length", "0"], &["max_length is 0"]),
        (&["--schedule", "step"], &["\"step\"", "cosine"]),
        (&["--loss", "beta=1"], &["beta"]),
    ] {
        refused(&bench.tune("out", options), 2, words);
    }
    refused(&bench.tune("out", &["--valid", "2"]), 2, &["2"]);
    std::fs::write(bench.out("file"), "kept").unwrap();
    refused(&bench.tune("file", &[]), 2, &["file", "expected a folder", "--out"]);
    assert_eq!(std::fs::read_to_string(bench.out("file")).unwrap(), "kept");
}

#[test]
fn data_that_cannot_be_learned_are_refused_with_their_place() {
    let bench = Bench::new();
    let file = bench.data.path().join("rows.jsonl");
    let tune = |more: &[&str]| {
        let out = bench.out("out");
        let done =
            run(&[&["tune", bench.model(), "--data", text(&file), "--out", text(&out)], more].concat());
        assert!(!out.join("last").exists() && !out.join("best").exists());
        done
    };
    std::fs::write(&file, "{\"txt\": \"a\"}\n").unwrap();
    refused(&tune(&[]), 2, &["rows.jsonl", "txt", "text", "--column"]);
    std::fs::write(&file, "").unwrap();
    refused(&tune(&[]), 2, &["rows.jsonl", "empty"]);
    std::fs::write(&file, "{\"text\": \"a\"}\n{\"text\": 3}\n").unwrap();
    refused(&tune(&[]), 2, &["rows.jsonl", "line 2"]);
    std::fs::write(&file, "{\"text\": \"a\"}\n{\"text\": \"a\"").unwrap();
    refused(&tune(&[]), 2, &["rows.jsonl", "line 2"]);
    std::fs::write(&file, "{\"anchor\": \"a\", \"positive\": \"b\"}\n").unwrap();
    refused(&tune(&[]), 2, &["pair", "text, completion, chat"]);
    refused(
        &run(&["tune", bench.model(), "--data", "no/such", "--out", text(&bench.out("out"))]),
        2,
        &["no/such"],
    );
    refused(&bench.tune("out", &["--mask-prompt", "--max-length", "3"]), 2, &["learned", "maximum length"]);
    let labelled = tempfile::tempdir().unwrap();
    let row = |label: &str| json!({"text": "a", "label": label});
    write_rows(&labelled.path().join("train.jsonl"), &[row("good"), row("bad")]);
    write_rows(&labelled.path().join("valid.jsonl"), &[row("fair")]);
    let bert = "tests/parity/bert/text_uncased_masked_lm/model";
    let out = bench.out("labels");
    let done = run(&["tune", bert, "--data", text(labelled.path()), "--out", text(&out)]);
    refused(&done, 2, &["valid.jsonl", "\"fair\"", "bad, good"]);
    assert!(!out.exists());
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_the_last_good_weights_stay() {
    let bench = Bench::new();
    let options = ["--lora", "2", "--lr", "1e30", "--clip", "0", "--steps", "9", "--valid-every", "1"];
    // The rate is 0 in the first step, after which the weights are saved.
    let done = bench.tune("out", &[&options[..], &["--warmup", "1000"]].concat());
    refused(
        &done,
        2,
        &["training stopped", "after 2 steps", "learning rate", "the weights of step 1 are in"],
    );
    let out = bench.out("out");
    let state = std::fs::read_to_string(out.join("last/training_state.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&state).unwrap()["step"], 1);
    assert_eq!(bench.answer(&[text(&out.join("last"))]), bench.answer(&[bench.model()]));
    assert_eq!(names(&out), ["curve.png", "last", "log.jsonl"]);
    // Without validation, in the step after.
    let data = bench.data.path().join("train.jsonl");
    let out = bench.out("unvalidated");
    let done = run(&[
        &["tune", bench.model(), "--data", text(&data), "--out", text(&out)],
        &options[..6],
        &["--valid-every", "5", "--steps", "9"],
    ]
    .concat());
    refused(&done, 2, &["in step 2", "the weights are those before it", "learning rate", "no weights"]);
    assert_eq!(names(&out), ["curve.png", "log.jsonl"]);
}

#[test]
fn an_adapter_of_another_base_or_with_other_ranks_is_refused() {
    let bench = Bench::new();
    let last = bench.tuned("out", &["--lora", "4", "--steps", "1"]).join("last");
    let open = |base: &str| run(&["generate", base, "--adapter", text(&last), "hello"]);
    let other = "tests/parity/gpt_oss/generate_conversation/model";
    refused(&open(other), 2, &["adapter", "layers.0.self_attn", "fit the weight [", "another base model"]);
    // Another model of the same shape takes it, and says whose it is.
    let like = bench.out("another");
    std::fs::create_dir_all(&like).unwrap();
    for entry in std::fs::read_dir(bench.model()).unwrap().flatten() {
        std::fs::copy(entry.path(), like.join(entry.file_name())).unwrap();
    }
    let (own, other) = (open(bench.model()), open(text(&like)));
    assert_eq!((own.status, other.status), (0, 0), "{}", other.err);
    assert!(!own.err.contains("was trained for"), "{}", own.err);
    assert!(other.err.contains("was trained for") && other.err.contains(text(&like)), "{}", other.err);
    let config = last.join("adapter_config.json");
    let mut keys: Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    keys["modules_to_save"] = json!(["norm"]);
    std::fs::write(&config, keys.to_string()).unwrap();
    let incomplete = open(bench.model());
    assert!(incomplete.err.contains("names norm and has no tensors of it"), "{}", incomplete.err);
    keys["modules_to_save"] = json!(null);
    keys["r"] = json!(5);
    std::fs::write(&config, keys.to_string()).unwrap();
    refused(&open(bench.model()), 2, &["adapter_model.safetensors", "rank", "4", "5"]);
}

#[test]
fn what_no_checkpoint_can_be_written_of_is_refused_before_training() {
    let bench = Bench::new();
    let gguf = "tests/parity/llama/gguf_text/model";
    let data = bench.data.path().join("texts.jsonl");
    write_rows(&data, &[json!({"text": "a"}), json!({"text": "b"})]);
    let tune = |model: &str, out: &str, more: &[&str]| {
        let out = bench.out(out);
        run(&[&["tune", model, "--data", text(&data), "--out", text(&out), "--steps", "2"], more].concat())
    };
    for options in [&["--full"][..], &["--only", "norm"]] {
        refused(&tune(gguf, "out", options), 2, &["GGUF", "adapter"]);
        assert!(!bench.out("out").exists());
    }
    let done = tune(gguf, "gguf", &["--lora", "2"]);
    assert_eq!(done.status, 0, "{}", done.err);
    assert!(!bench.answer(&[gguf, "--adapter", text(&bench.out("gguf/last"))]).is_empty());
    assert_eq!(tune(bench.model(), "over", &["--lora", "2"]).status, 0);
    let over = bench.out("over/last");
    for options in [&["--full"][..], &["--head"], &["--only", "norm"]] {
        let done = tune(bench.model(), "out", &[options, &["--adapter", text(&over)]].concat());
        refused(&done, 2, &["adapter", "merge"]);
        assert!(!bench.out("out").exists());
    }
}

#[cfg(unix)]
#[test]
fn weights_that_cannot_be_written_leave_the_earlier_ones() {
    let bench = Bench::new();
    let options = ["--lora", "4", "--steps", "100000", "--valid-every", "3", "--data", ""];
    let options = &options[..6];
    let out = bench.out("out");
    let mut child = start(&bench.arguments(&out, options));
    assert!(wait_for(&mut child, &out, 8));
    child.kill().unwrap();
    child.wait().unwrap();
    let before: Vec<(String, Vec<u8>)> = names(&out.join("last"))
        .into_iter()
        .map(|name| (name.clone(), std::fs::read(out.join("last").join(name)).unwrap()))
        .collect();
    let log_before = std::fs::read(out.join("log.jsonl")).unwrap();
    // No byte can be written to files; then 8 KiB to each: the state has three times the weights.
    for (blocks, words) in
        [("0", &["log.jsonl", "cannot write"]), ("16", &["training stopped", "cannot write"])]
    {
        let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
        let command = fauna();
        let program = command.get_program().to_owned();
        let mut shell = Command::new("sh");
        shell.args(["-c", &limited, "sh"]).arg(program);
        shell.args(bench.arguments(&out, &[options, &["--resume"]].concat()));
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let done = Done::from(shell.stdin(Stdio::null()).output().unwrap());
        refused(&done, 2, words);
        if blocks == "0" {
            assert!(std::fs::read(out.join("log.jsonl")).unwrap() == log_before);
        }
    }
    for (name, bytes) in before {
        assert!(std::fs::read(out.join("last").join(&name)).unwrap() == bytes, "{name}");
    }
    assert!(!names(&out).iter().any(|name| name.starts_with('.')), "{:?}", names(&out));
    assert!(!bench.answer(&[text(&out.join("last"))]).is_empty());
}
