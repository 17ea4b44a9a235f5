//! Rows with named columns, whose names decide which kind of example they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fauna_shared::error::nearest;
use fauna_shared::item::{ImageOptions, Item, Prompt};
use fauna_shared::train::Example;
use fauna_shared::{Error, Result};
use serde_json::Value;

use crate::chat;
use crate::dataset::{Opened, Source};
use crate::genes;
use crate::labels::{Labels, target};
use crate::media::{self, Media};
use crate::options::{DatasetOptions, TargetKind};
use crate::table::{Row, Table, in_line, kind_of};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Chat,
    Completion,
    Pair,
    Scored,
    LabelledPair,
    /// One item and a label, or one item with a caption, or one item.
    Labelled,
    Captioned,
    Alone,
}

/// Which columns make which kind of example.
struct Convention {
    what: &'static str,
    layout: Layout,
    required: &'static [&'static str],
    optional: &'static [&'static str],
}

const fn convention(
    what: &'static str,
    layout: Layout,
    required: &'static [&'static str],
    optional: &'static [&'static str],
) -> Convention {
    Convention { what, layout, required, optional }
}

const CONVENTIONS: &[Convention] = &[
    convention("chats", Layout::Chat, &["messages"], &["tools", "image", "images", "audio"]),
    convention(
        "prompts with completions",
        Layout::Completion,
        &["prompt", "completion"],
        &["image", "images", "audio"],
    ),
    convention("pairs", Layout::Pair, &["anchor", "positive"], &["negative"]),
    convention("pairs with scores", Layout::Scored, &["sentence1", "sentence2", "score"], &[]),
    convention("labelled pairs", Layout::LabelledPair, &["sentence1", "sentence2", "label"], &[]),
    convention("labelled texts", Layout::Labelled, &["text", "label"], &[]),
    convention("labelled pictures", Layout::Labelled, &["image", "label"], &[]),
    convention("labelled sounds", Layout::Labelled, &["audio", "label"], &[]),
    convention("labelled nucleotide sequences", Layout::Labelled, &["sequence", "label"], &[]),
    convention("pictures with captions", Layout::Captioned, &["image", "text"], &[]),
    convention("sounds with captions", Layout::Captioned, &["audio", "text"], &[]),
    convention("texts", Layout::Alone, &["text"], &[]),
    convention("pictures", Layout::Alone, &["image"], &[]),
    convention("sounds", Layout::Alone, &["audio"], &[]),
    convention("nucleotide sequences", Layout::Alone, &["sequence"], &[]),
];

/// The columns of all conventions.
const COLUMNS: [&str; 17] = [
    "messages",
    "tools",
    "prompt",
    "completion",
    "text",
    "label",
    "anchor",
    "positive",
    "negative",
    "sentence1",
    "sentence2",
    "score",
    "image",
    "images",
    "audio",
    "sequence",
    "file_name",
];

/// How the rows of a file are read.
#[derive(Debug, Clone)]
struct Schema {
    what: &'static str,
    layout: Layout,
    /// The columns that are read: their names in the convention and in the file.
    columns: Vec<(&'static str, String)>,
    /// The columns of conventions that must not be there, because the first row does not have them.
    absent: Vec<String>,
    notes: Vec<String>,
}

impl Schema {
    /// The schema of the first row of a file.
    fn of(row: &Row, options: &DatasetOptions) -> Result<Self> {
        options.check_columns("rows", &COLUMNS)?;
        let named = options.columns.values().chain(&options.without);
        if let Some(missing) = named.into_iter().find(|name| !row.contains_key(*name)) {
            let near = nearest(missing, row.keys().map(String::as_str));
            let near = near.first().map_or(String::new(), |near| format!("; is it `{near}`?"));
            return Err(Error::input(format!("no column is called `{missing}`{near}"))
                .hint(format!("the columns: {}", names(row))));
        }
        let is_there = |name: &str| {
            row.get(name).is_some_and(|value| !value.is_null())
                && !options.without.iter().any(|left| left == name)
        };
        let mut columns: Vec<(&'static str, String)> = Vec::new();
        for name in COLUMNS.into_iter().filter(|name| *name != "file_name") {
            let found = options.column(name);
            if is_there(found) {
                columns.push((name, found.to_string()));
            }
        }
        let file_name = options.column("file_name");
        if is_there(file_name) {
            let file = row[file_name].as_str().unwrap_or_default();
            let media = media::kind_of(Path::new(file)).ok_or_else(|| {
                Error::input(format!(
                    "`{file_name}` is \"{file}\", which is not the name of a picture or sound"
                ))
            })?;
            let name = if media == Media::Image { "image" } else { "audio" };
            columns.retain(|(known, _)| *known != name);
            columns.push((name, file_name.to_string()));
        }
        let has = |name: &str| columns.iter().any(|(known, _)| *known == name);
        let contains = |one: &Convention| one.required.iter().all(|name| has(name));
        let fits = |one: &&Convention| {
            contains(one)
                && columns.iter().all(|(name, _)| one.required.contains(name) || one.optional.contains(name))
        };
        let Some(Convention { what, layout, .. }) = CONVENTIONS.iter().find(fits) else {
            return Err(no_convention(row, CONVENTIONS.iter().filter(|one| contains(one))));
        };
        let is_read = |key: &String| columns.iter().any(|(_, found)| found == key);
        let rest: Vec<&str> = row.keys().filter(|key| !is_read(key)).map(String::as_str).collect();
        let notes = match rest.is_empty() {
            true => Vec::new(),
            false => vec![format!("columns that are not read: {}", rest.join(", "))],
        };
        let may_come = COLUMNS.into_iter().map(|name| options.column(name).to_string());
        let absent = may_come.filter(|name| !row.contains_key(name)).collect();
        Ok(Self { what, layout: *layout, columns, absent, notes })
    }

    /// The name in the file of a column of the convention.
    fn found(&self, name: &str) -> Option<&str> {
        self.columns.iter().find(|(known, _)| *known == name).map(|(_, found)| found.as_str())
    }

    /// Checks that a row has the columns of the first one.
    fn check(&self, row: &Row) -> Result<()> {
        let missing = self.columns.iter().any(|(_, found)| !row.contains_key(found));
        let added = self.absent.iter().any(|name| row.contains_key(name));
        match missing || added {
            false => Ok(()),
            true => {
                let wanted: Vec<&str> = self.columns.iter().map(|(_, found)| found.as_str()).collect();
                Err(Error::input(format!(
                    "found the columns {}, expected {} as in the first row",
                    names(row),
                    wanted.join(", ")
                ))
                .hint("all rows of a data set must have the same columns"))
            }
        }
    }
}

fn names(row: &Row) -> String {
    let names: Vec<&str> = row.keys().map(String::as_str).collect();
    if names.is_empty() { "none".to_string() } else { names.join(", ") }
}

/// The error of columns that are none of a convention, or those of more than `one`.
fn no_convention<'a>(row: &Row, mut contained: impl Iterator<Item = &'a Convention>) -> Error {
    let columns = names(row);
    match contained.next() {
        Some(one) => {
            Error::input(format!("the columns {columns} are more than those of one kind of example")).set(
                format!("for {}, leave out all but {}", one.what, one.required.join(", ")),
                "DatasetOptions::without",
                "NAME",
            )
        }
        None => {
            let known = CONVENTIONS.iter().map(|one| format!("{}: {}", one.what, one.required.join(", ")));
            Error::input(format!("the columns {columns} are of no known kind of example"))
                .hint(known.collect::<Vec<_>>().join("\n"))
                .set("or name the columns", "DatasetOptions::columns", "NAME=COLUMN")
        }
    }
}

/// Reads pictures and sounds that rows name, or only checks that they are there.
pub(crate) struct Loader<'a> {
    pub root: &'a Path,
    pub options: &'a ImageOptions,
    pub load: bool,
}

impl Loader<'_> {
    pub fn item(&self, kind: Media, name: &str) -> Result<Item> {
        match self.load {
            true => media::load(&media::resolved(self.root, name)?, kind, self.options),
            false => media::inside(self.root, name).map(|_| Item::Text(String::new())),
        }
    }
}

struct Rows {
    table: Table,
    schema: Schema,
    targets: TargetKind,
    /// Folder of the file, below which pictures and sounds are.
    root: PathBuf,
    options: ImageOptions,
}

pub(crate) fn open(path: &Path, options: &DatasetOptions) -> Result<Opened> {
    let root = path.parent().unwrap_or(Path::new("")).to_path_buf();
    let loader = Loader { root: &root, options: &options.image, load: false };
    let mut schema: Option<Schema> = None;
    let mut labels = Labels::default();
    let is_text = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let table = Table::open(path, options.max_line, &mut |place, row| {
        let schema = match &schema {
            Some(schema) => schema,
            None => schema.insert(Schema::of(&row, options)?),
        };
        schema.check(&row)?;
        example(&row, schema, None, is_text, &loader)?;
        match schema.found("label") {
            Some(column) => {
                labels.add(&row[column], is_text, place.line).map_err(|e| e.context(column_of(column)))
            }
            None => Ok(()),
        }
    })?;
    let Some(mut schema) = schema else { return Err(Error::input("the data set is empty")) };
    let targets = match schema.found("label") {
        Some(column) => Some(
            labels
                .decide(options.targets, is_text)
                .map_err(|(line, e)| in_line(e.context(column_of(column)), line, path))?,
        ),
        None => None,
    };
    let classes = match targets {
        Some(TargetKind::Classes) => labels.classes(),
        _ => BTreeMap::new(),
    };
    let (what, notes) = (schema.what, std::mem::take(&mut schema.notes));
    let source =
        Rows { table, schema, targets: targets.unwrap_or(TargetKind::Classes), root, options: options.image };
    Ok(Opened { source: Arc::new(source), what, classes, targets, notes })
}

fn column_of(name: &str) -> String {
    format!("column `{name}`")
}

impl Source for Rows {
    fn len(&self) -> usize {
        self.table.places.len()
    }

    fn get(&self, index: usize) -> Result<Example> {
        let (place, row) = self.table.row(index)?;
        let loader = Loader { root: &self.root, options: &self.options, load: true };
        let made = self
            .schema
            .check(&row)
            .and_then(|()| example(&row, &self.schema, Some(self.targets), self.table.is_text(), &loader));
        made.map_err(|e| in_line(e, place.line, &self.table.path))
    }
}

/// The example of a row; with `targets` of `None` its label is not read.
fn example(
    row: &Row,
    schema: &Schema,
    targets: Option<TargetKind>,
    is_text: bool,
    loader: &Loader,
) -> Result<Example> {
    let cells = Cells { row, schema, loader };
    let label = || match targets {
        Some(kind) => target(cells.value("label")?, kind, is_text)
            .map_err(|e| e.context(column_of(schema.found("label").unwrap_or("label")))),
        None => Ok(fauna_shared::train::Target::Value(0.0)),
    };
    Ok(match schema.layout {
        Layout::Chat => {
            let mut attached = cells.attached()?;
            let turns = cells.turns("messages", &mut attached)?;
            attached.check_used()?;
            if !turns.iter().any(|turn| turn.role == fauna_shared::item::Role::Assistant) {
                return Err(Error::input(
                    "the conversation has no message of the assistant, so nothing to learn",
                ));
            }
            Example::Chat { turns, tools: cells.tools()? }
        }
        Layout::Completion => {
            let mut attached = cells.attached()?;
            let completion = match cells.value("completion")? {
                Value::Array(_) => chat::answer(&cells.turns("completion", &mut attached)?)?,
                _ => cells.text("completion")?,
            };
            let prompt = match cells.value("prompt")? {
                Value::Array(_) => Prompt::Chat(cells.turns("prompt", &mut attached)?),
                _ => {
                    let text = Item::Text(cells.text("prompt")?);
                    Prompt::Items(attached.take_all().into_iter().chain([text]).collect())
                }
            };
            attached.check_used()?;
            match completion.is_empty() {
                true => return Err(Error::input("the completion is empty, so there is nothing to learn")),
                false => Example::Completion { prompt, completion },
            }
        }
        Layout::Pair => Example::Pair {
            anchor: cells.text("anchor")?.into(),
            positive: cells.text("positive")?.into(),
            negative: match schema.found("negative") {
                Some(column) if !row[column].is_null() => Some(cells.text("negative")?.into()),
                _ => None,
            },
        },
        Layout::Scored => Example::Scored {
            first: cells.text("sentence1")?.into(),
            second: cells.text("sentence2")?.into(),
            score: cells.number("score", is_text)?,
        },
        Layout::LabelledPair => Example::Labelled {
            item: cells.text("sentence1")?.into(),
            second: Some(cells.text("sentence2")?.into()),
            label: label()?,
        },
        Layout::Labelled => Example::labelled(cells.item()?, label()?),
        Layout::Captioned => match (cells.item()?, cells.text("text")?) {
            (Item::Sound(sound), caption) => Example::Sound { sound, caption: Some(caption) },
            (anchor, caption) => Example::Pair { anchor, positive: caption.into(), negative: None },
        },
        Layout::Alone => match cells.item()? {
            Item::Text(text) => Example::Text(text),
            Item::Gene(sequence) => Example::Gene(sequence),
            Item::Sound(sound) => Example::Sound { sound, caption: None },
            Item::Image(image) => Example::Image(image),
            other => {
                return Err(Error::input(format!(
                    "expected a text, picture or sound, found {}",
                    other.modality()
                )));
            }
        },
    })
}

/// The columns of a row by their names in the convention.
struct Cells<'a> {
    row: &'a Row,
    schema: &'a Schema,
    loader: &'a Loader<'a>,
}

impl Cells<'_> {
    fn value(&self, name: &str) -> Result<&Value> {
        let column = self.schema.found(name).unwrap_or(name);
        match self.row.get(column) {
            None => Err(Error::input(format!("no column is called `{column}`"))),
            Some(Value::Null) => Err(Error::input(format!("column `{column}` is null"))),
            Some(value) => Ok(value),
        }
    }

    fn wrong(&self, name: &str, expected: &str, found: &Value) -> Error {
        let column = self.schema.found(name).unwrap_or(name);
        Error::input(format!("column `{column}`: expected {expected}, found {}", kind_of(found)))
    }

    fn text(&self, name: &str) -> Result<String> {
        match self.value(name)? {
            Value::String(text) => Ok(text.clone()),
            other => Err(self.wrong(name, "a text", other)),
        }
    }

    /// A finite number.
    fn number(&self, name: &str, is_text: bool) -> Result<f64> {
        let value = self.value(name)?;
        let column = self.schema.found(name).unwrap_or(name);
        let number = match value {
            Value::String(text) if is_text => text.trim().parse().ok(),
            value => value.as_f64(),
        };
        match number {
            Some(number) if f64::is_finite(number) => Ok(number),
            Some(number) => Err(Error::input(format!("column `{column}`: {number} is not finite"))),
            None => Err(match value {
                Value::String(text) => {
                    Error::input(format!("column `{column}`: expected a number, found \"{text:.40}\""))
                }
                other => self.wrong(name, "a number", other),
            }),
        }
    }

    /// The item of a row that has one.
    fn item(&self) -> Result<Item> {
        let has = |name: &str| self.schema.found(name).is_some();
        if has("image") {
            return self.loader.item(Media::Image, &self.text("image")?);
        }
        if has("audio") {
            return self.loader.item(Media::Sound, &self.text("audio")?);
        }
        if has("sequence") {
            let sequence = self.text("sequence")?;
            genes::check(sequence.as_bytes())?;
            return match sequence.is_empty() {
                true => Err(Error::input("the sequence is empty")),
                false => Ok(Item::Gene(sequence)),
            };
        }
        self.text("text").map(Item::Text)
    }

    /// The pictures and sounds of a row beside its texts.
    fn attached(&self) -> Result<chat::Attached> {
        let mut attached = chat::Attached::default();
        for (name, kind) in [("image", Media::Image), ("images", Media::Image), ("audio", Media::Sound)] {
            let Some(column) = self.schema.found(name) else { continue };
            match &self.row[column] {
                Value::Null => {}
                Value::String(file) => attached.push(kind, self.loader.item(kind, file)?),
                Value::Array(files) => {
                    for file in files {
                        let file = file.as_str().ok_or_else(|| self.wrong(name, "a list of paths", file))?;
                        attached.push(kind, self.loader.item(kind, file)?);
                    }
                }
                other => return Err(self.wrong(name, "a path or a list of paths", other)),
            }
        }
        Ok(attached)
    }

    fn turns(&self, name: &str, attached: &mut chat::Attached) -> Result<Vec<fauna_shared::item::Turn>> {
        match self.value(name)? {
            Value::Array(messages) => chat::turns(messages, attached, self.loader),
            other => Err(self.wrong(name, "a list of messages", other)),
        }
    }

    fn tools(&self) -> Result<Vec<Value>> {
        let Some(column) = self.schema.found("tools") else { return Ok(Vec::new()) };
        match &self.row[column] {
            Value::Null => Ok(Vec::new()),
            Value::Array(tools) if tools.iter().all(Value::is_object) => Ok(tools.clone()),
            other => Err(self.wrong("tools", "a list of objects", other)),
        }
    }
}
