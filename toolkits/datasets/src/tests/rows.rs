//! Rows in JSON lines and CSV.

use fauna_shared::item::{Item, Prompt, Role};
use fauna_shared::train::{Example, Target};

use super::{default, folder, read, refused};
use crate::{Dataset, TargetKind};

fn lines(rows: &[&str]) -> String {
    rows.join("\n") + "\n"
}

fn labels(examples: &[Example]) -> Vec<Target> {
    let label = |example: &Example| match example {
        Example::Labelled { label, .. } => label.clone(),
        other => panic!("{other:?}"),
    };
    examples.iter().map(label).collect()
}

fn class(name: &str) -> Target {
    Target::Class(name.to_string())
}

#[test]
fn chats_have_turns_thoughts_and_tools() {
    let row = r#"{"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": ["hi ", {"type": "text", "text": "there"}]}, {"role": "assistant", "reasoning_content": "greet", "content": "hello"}], "tools": [{"name": "clock"}]}"#;
    let examples = read("a.jsonl", &lines(&[row, row]), &default()).unwrap();
    let Example::Chat { turns, tools } = &examples[1] else { panic!("{examples:?}") };
    assert_eq!(
        turns.iter().map(|turn| turn.role).collect::<Vec<_>>(),
        [Role::System, Role::User, Role::Assistant]
    );
    assert_eq!(tools[0]["name"], "clock");
    let text = |item: &Item| match item {
        Item::Text(text) => text.clone(),
        Item::Thought(text) => format!("({text})"),
        other => panic!("{other:?}"),
    };
    let words: Vec<String> = turns.iter().flat_map(|turn| &turn.items).map(text).collect();
    assert_eq!(words, ["be brief", "hi ", "there", "(greet)", "hello"]);
}

#[test]
fn messages_that_cannot_be_learned_are_refused_with_their_line() {
    let good = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    for (messages, part) in [
        (r#"[{"role": "user", "content": "a"}]"#, "no message of the assistant"),
        (r#"[]"#, "there are no messages"),
        (r#""hi""#, "column `messages`: expected a list of messages, found a text"),
        (r#"[{"role": "tool", "content": "a"}]"#, "message 1: the role \"tool\" is not implemented"),
        (r#"[{"content": "a"}]"#, "there is no role"),
        (r#"["a"]"#, "message 1: expected an object"),
        (r#"[{"role": "user"}]"#, "there is no content"),
        (r#"[{"role": "assistant", "content": ""}]"#, "nothing to learn"),
        (r#"[{"role": "assistant", "content": "a", "tool_calls": []}]"#, "the key `tool_calls`"),
        (r#"[{"role": "user", "content": [{"type": "image_url"}]}]"#, "\"image_url\" are not implemented"),
        (r#"[{"role": "user", "content": [{"type": "image"}]}]"#, "no picture left"),
        (r#"[{"role": "user", "content": [{"type": "image", "path": "../a.png"}]}]"#, "leaves the folder"),
        (
            r#"[{"role": "user", "content": [{"type": "image", "path": "a.png"}]}]"#,
            "there is no file \"a.png\"",
        ),
    ] {
        let row = format!("{{\"messages\": {messages}}}");
        refused(read("a.jsonl", &lines(&[good, "", &row]), &default()), &["a.jsonl: line 3: ", part]);
    }
}

#[test]
fn completions_pairs_and_scores_are_read() {
    let one = |row: &str| read("a.jsonl", row, &default()).unwrap().remove(0);
    let Example::Completion { prompt: Prompt::Items(items), completion } =
        one(r#"{"prompt": "2+2=", "completion": "4"}"#)
    else {
        panic!()
    };
    assert_eq!((items[0].text().unwrap(), completion.as_str()), ("2+2=", "4"));
    let row = r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}"#;
    let Example::Completion { prompt: Prompt::Chat(turns), completion } = one(row) else { panic!() };
    assert_eq!((turns.len(), completion.as_str()), (1, "a"));
    let Example::Pair { anchor, positive, negative } =
        one(r#"{"anchor": "a", "positive": "b", "negative": "c"}"#)
    else {
        panic!()
    };
    let words = [anchor, positive, negative.unwrap()].map(|item| item.text().unwrap().to_string());
    assert_eq!(words, ["a", "b", "c"]);
    let Example::Scored { score, .. } = one(r#"{"sentence1": "a", "sentence2": "b", "score": 0.5}"#) else {
        panic!()
    };
    assert_eq!(score, 0.5);
    let Example::Labelled { second: Some(second), label, .. } =
        one(r#"{"sentence1": "a", "sentence2": "b", "label": "same"}"#)
    else {
        panic!()
    };
    assert_eq!((second.text().unwrap(), label), ("b", class("same")));
    let Example::Labelled { item: Item::Gene(gene), .. } = one(r#"{"sequence": "ACGTn", "label": 1}"#) else {
        panic!()
    };
    assert_eq!(gene, "ACGTn");
    for (row, part) in [
        (r#"{"prompt": "a", "completion": ""}"#, "the completion is empty"),
        (
            r#"{"sentence1": "a", "sentence2": "b", "score": "high"}"#,
            "column `score`: expected a number, found \"high\"",
        ),
        (r#"{"sentence1": "a", "sentence2": "b", "score": NaN}"#, "NaN and Infinity are not JSON"),
        (r#"{"sequence": "ACXT"}"#, "\"X\" is not a nucleotide"),
        (r#"{"text": 5}"#, "column `text`: expected a text, found a number"),
    ] {
        refused(read("a.jsonl", row, &default()), &["line 1: ", part]);
    }
}

#[test]
fn rows_have_the_columns_of_the_first() {
    let error = read("a.jsonl", &lines(&[r#"{"text": "a", "label": "x"}"#, r#"{"text": "b"}"#]), &default());
    refused(error, &["a.jsonl: line 2: found the columns text, expected text, label"]);
    let error = read("a.jsonl", &lines(&[r#"{"text": "a"}"#, r#"{"text": "b", "label": "x"}"#]), &default());
    refused(error, &["line 2: found the columns text, label, expected text"]);
    refused(
        read("a.jsonl", r#"{"txt": "a"}"#, &default()),
        &["the columns txt are of no known kind", "texts: text"],
    );
    let error = read("a.jsonl", r#"{"text": "a", "score": 1}"#, &default());
    refused(error, &["for texts, leave out all but text", "DatasetOptions::without"]);
    assert!(read("a.jsonl", r#"{"text": "a", "score": 1}"#, &default().without("score")).is_ok());
    let error = read("a.jsonl", r#"{"text": "a"}"#, &default().without("scor"));
    refused(error, &["no column is called `scor`"]);
    let examples =
        read("a.jsonl", r#"{"review": "a", "id": 1}"#, &default().with_column("text", "review")).unwrap();
    assert_eq!(examples[0].kind(), "text");
    refused(
        read("a.jsonl", r#"{"text": "a"}"#, &default().with_column("txt", "text")),
        &["rows have no column `txt`"],
    );
    refused(
        read("a.jsonl", r#"{"text": "a"}"#, &default().with_column("text", "txt")),
        &["no column is called `txt`; is it `text`?"],
    );
    let folder = folder(&[("a.jsonl", r#"{"text": "a", "id": 1}"#)]);
    let dataset = Dataset::open(folder.path(), &default()).unwrap();
    assert!(dataset.notes()[0].ends_with("columns that are not read: id"), "{:?}", dataset.notes());
}

#[test]
fn broken_json_and_long_lines_are_named_by_line() {
    for (row, part) in
        [("{\"text\": ", "not JSON"), ("[1]", "expected a JSON object, found a list"), ("\u{1}", "not JSON")]
    {
        refused(
            read("a.jsonl", &lines(&[r#"{"text": "a"}"#, row]), &default()),
            &["a.jsonl: line 2: ", part],
        );
    }
    let long = format!("{{\"text\": \"{}\"}}", "x".repeat(100));
    let options = crate::DatasetOptions { max_line: 50, ..default() };
    refused(
        read("a.jsonl", &lines(&[r#"{"text": "a"}"#, &long]), &options),
        &["line 2: more than 50 bytes", "max_line"],
    );
    refused(
        read("a.csv", &format!("text\na\n{}\n", "x".repeat(100)), &options),
        &["line 3: more than 50 bytes"],
    );
    for text in ["", "\n\n"] {
        refused(read("a.jsonl", text, &default()), &["a.jsonl: the data set is empty"]);
    }
    refused(read("a.csv", "text,label\n", &default()), &["empty"]);
}

#[test]
fn labels_are_classes_or_numbers_by_their_looks() {
    let of = |values: &[&str], options: &crate::DatasetOptions| {
        let rows: Vec<String> =
            values.iter().map(|value| format!("{{\"text\": \"a\", \"label\": {value}}}")).collect();
        read("a.jsonl", &rows.join("\n"), options).map(|examples| labels(&examples))
    };
    assert_eq!(of(&["1", "0"], &default()).unwrap(), [class("1"), class("0")]);
    assert_eq!(of(&["\"b\"", "true"], &default()).unwrap(), [class("b"), class("true")]);
    assert_eq!(of(&["1", "0.5"], &default()).unwrap(), [Target::Value(1.0), Target::Value(0.5)]);
    let values = default().with_targets(TargetKind::Values);
    assert_eq!(of(&["1", "2"], &values).unwrap(), [Target::Value(1.0), Target::Value(2.0)]);
    assert_eq!(of(&["0.5"], &default().with_targets(TargetKind::Classes)).unwrap(), [class("0.5")]);
    let both = Target::Classes(vec!["a".to_string(), "b".to_string()]);
    assert_eq!(of(&["[\"a\", \"b\"]", "[]"], &default()).unwrap(), [both, Target::Classes(vec![])]);
    refused(
        of(&["0.5", "\"a\""], &default()),
        &["line 2: column `label`: a fraction is the label of one row"],
    );
    refused(of(&["[\"a\"]", "\"a\""], &default()), &["line 2: ", "a list of classes in one row"]);
    refused(of(&["1", "\"a\""], &values), &["line 2: column `label`: expected a number"]);
    refused(of(&["\"a\"", "null"], &default()), &["line 2: column `label`"]);
    refused(of(&["\"a\"", "\"\""], &default()), &["line 2: column `label`: the label is empty"]);
    refused(read("a.jsonl", "{\"text\": \"a\"}", &values), &["texts have no labels"]);
}

#[test]
fn csv_has_the_same_columns() {
    let text = "\u{feff}text;label\n\"two\nlines; \"\"quoted\"\"\";good\ndull;bad\n";
    let examples = read("a.csv", text, &default()).unwrap();
    let Example::Labelled { item, label, .. } = &examples[0] else { panic!() };
    assert_eq!((item.text().unwrap(), label), ("two\nlines; \"quoted\"", &class("good")));
    assert_eq!(labels(&examples)[1], class("bad"));
    let numbers = read("a.csv", "text,label\na,1\nb,0.5\n", &default()).unwrap();
    assert_eq!(labels(&numbers), [Target::Value(1.0), Target::Value(0.5)]);
    refused(read("a.csv", "text,label\na,1\nb,nan\n", &default()), &["line 3: column `label`", "finite"]);
    refused(
        read("a.csv", "text,label\na,1\nb,\n", &default()),
        &["line 3: column `label`: the label is empty"],
    );
    refused(read("a.csv", "text,label\na,1\nb\n", &default()), &["line 3: 1 cells, the header has 2"]);
    refused(read("a.csv", "text,text\na,1\n", &default()), &["two columns are called `text`"]);
    let Example::Scored { score, .. } =
        read("a.csv", "sentence1,sentence2,score\na,b,0.25\n", &default()).unwrap().remove(0)
    else {
        panic!()
    };
    assert_eq!(score, 0.25);
    refused(
        read("a.csv", "sentence1,sentence2,score\na,b,inf\n", &default()),
        &["line 2: column `score`: inf is not finite"],
    );
}

#[test]
fn classes_of_validation_are_those_of_training() {
    let row = |label: &str| format!("{{\"text\": \"a\", \"label\": \"{label}\"}}\n");
    let train = row("good") + &row("bad");
    let folder = folder(&[("train.jsonl", &train), ("valid.jsonl", &(row("bad") + &row("awful")))]);
    let error = Dataset::open(folder.path(), &default());
    refused(
        error,
        &["valid.jsonl: line 2: the class \"awful\" does not occur in the training data", "bad, good"],
    );
    std::fs::write(folder.path().join("valid.jsonl"), row("bad")).unwrap();
    let dataset = Dataset::open(folder.path(), &default()).unwrap();
    assert_eq!(dataset.classes(), ["bad", "good"]);
    std::fs::write(folder.path().join("valid.jsonl"), "{\"text\": \"a\"}").unwrap();
    refused(Dataset::open(folder.path(), &default()), &["valid.jsonl: found texts, expected labelled texts"]);
}

#[test]
fn other_encodings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (bytes, part) in [
        (&b"\x1f\x8b\x08"[..], "gzip"),
        (b"\xff\xfe{\0", "UTF-16"),
        (b"{\"text\": \"\xe9\"}", "line 1: not JSON"),
    ] {
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, bytes).unwrap();
        refused(Dataset::open(&path, &default()), &["a.jsonl", part]);
    }
    let path = folder.path().join("a.txt");
    std::fs::write(&path, b"good\ncaf\xe9\n").unwrap();
    refused(Dataset::open(&path, &default()), &["line 2: the text is not UTF-8"]);
}
