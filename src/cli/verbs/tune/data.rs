//! The data set of `fauna tune`, and the head that it needs.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use fauna::datasets::{Dataset, DatasetOptions, TargetKind};
#[cfg(feature = "science")]
use fauna::forecasting::Frequency;
use fauna::train::{Example, Target};
use fauna::{Error, LoadOptions, Result};
use serde_json::{Map, Value, json};

use crate::cli::options::Seed;

/// Where the examples come from.
#[derive(Debug, clap::Args)]
pub struct DataArgs {
    /// Data set: a JSON lines file or a folder with train.jsonl and valid.jsonl (chats, prompts with completions, texts,
    /// labels, pairs), a folder of images or audio files, a table of time series, FASTA, robot episodes (LeRobot), or
    /// extended XYZ.
    #[arg(help_heading = "Data", long, value_name = "PATH")]
    data: PathBuf,
    /// Share of the training data to hold out for validation.
    #[arg(help_heading = "Data", long, value_name = "SHARE")]
    valid: Option<f64>,
    /// Name of a column in the data that differs from the usual one. Can be repeated.
    #[arg(help_heading = "Data", long = "column", value_name = "USUAL=FOUND", value_parser = renamed)]
    columns: Vec<(String, String)>,
    /// Columns or features to leave out.
    #[arg(help_heading = "Data", long, value_name = "NAMES", value_delimiter = ',')]
    without: Vec<String>,
    /// Largest row of JSON or CSV, or line of text, in bytes (default: 16777216).
    #[arg(help_heading = "Data", long, value_name = "BYTES")]
    max_line: Option<usize>,
    /// Frequency of time series: min, 15min, h, D, B, W-MON, MS, ME, QS, YS, … (default: inferred from the dates).
    #[cfg(feature = "science")]
    #[arg(help_heading = "Data", long, value_name = "NAME")]
    freq: Option<Frequency>,
    /// Read labels as classes or as numbers (default: by their values).
    #[arg(help_heading = "Data", long, value_name = "KIND")]
    labels: Option<Labels>,
}

/// How labels are read.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Labels {
    Classes,
    Numbers,
}

impl DataArgs {
    /// The options that change what is read, as text.
    fn options(&self) -> String {
        let Self { valid, columns, without, labels, .. } = self;
        let columns = columns.iter().map(|(usual, found)| format!("--column {usual}={found}"));
        let without = without.iter().map(|name| format!("--without {name}"));
        let valid = valid.map(|share| format!("--valid {share}"));
        let labels = labels.map(|kind| format!("--labels {kind:?}").to_lowercase());
        #[cfg(feature = "science")]
        let freq = self.freq.map(|freq| format!("--freq {freq}"));
        #[cfg(not(feature = "science"))]
        let freq = None;
        let given = columns.chain(without).chain(valid).chain(labels).chain(freq);
        given.map(|option| format!(", {option}")).collect()
    }
}

fn renamed(argument: &str) -> std::result::Result<(String, String), String> {
    let (usual, found) = argument.split_once('=').ok_or("expected USUAL=FOUND")?;
    Ok((usual.to_string(), found.to_string()))
}

/// The key of the statistics of the data set's actions, among those of the model.
const UNNORM_KEY: &str = "tuned";

/// The data set, and the config of the model that learns it.
pub struct Data {
    pub dataset: Dataset,
    /// The data set in words, with a checksum of its files.
    pub description: String,
    /// Statistics of the actions of robots, by [`UNNORM_KEY`].
    pub statistics: Option<Value>,
    /// The names of the classes, in the order of the model's head.
    pub classes: Vec<String>,
    /// A regular expression of the tensors of the head.
    pub head: String,
    /// Whether the head is a new one, for the classes of the data set.
    pub has_new_head: bool,
    /// The keys of the config that the data set changes: those of a new head, and the statistics of actions.
    keys: Map<String, Value>,
}

impl Data {
    /// Opens the data set for the model `source`.
    pub fn open(args: &DataArgs, seed: &Seed, source: &str, options: &LoadOptions) -> Result<Self> {
        let mut wanted = DatasetOptions::default().with_seed(seed.seed);
        wanted.valid_fraction = args.valid;
        wanted.columns = args.columns.iter().cloned().collect();
        wanted.without = args.without.clone();
        wanted.max_line = args.max_line.unwrap_or(wanted.max_line);
        #[cfg(feature = "science")]
        {
            wanted.frequency = args.freq;
        }
        wanted.targets = args.labels.map(|labels| match labels {
            Labels::Classes => TargetKind::Classes,
            Labels::Numbers => TargetKind::Values,
        });
        let dataset = Dataset::open(&args.data, &wanted)?;
        let (family, pretrained) = fauna::zoo().pretrained(source, options)?;
        let classifier = family.architectures.iter().find(|name| name.ends_with("ForSequenceClassification"));
        let first = dataset.train().get(0)?;
        let target = match &first {
            Example::Labelled { label, item, .. } if item.text().is_ok() => Some(label),
            _ => None,
        };
        let head = r"^(.*\.)?(classifier|score|lm_head|embed_out|qa_outputs|cls)\.".to_string();
        let mut data = Self {
            description: format!(
                "{}{}, checksum {:016x}",
                dataset.description(),
                args.options(),
                checksum(&args.data)?
            ),
            classes: dataset.classes().to_vec(),
            statistics: dataset.action_statistics(UNNORM_KEY),
            dataset,
            head,
            has_new_head: false,
            keys: Map::new(),
        };
        if let Some(Value::Object(own)) = &data.statistics {
            let known = pretrained.config["norm_stats"].as_object().cloned().unwrap_or_default();
            let all: Map<String, Value> = known.into_iter().chain(own.clone()).collect();
            data.keys.insert("norm_stats".to_string(), Value::Object(all));
        }
        let Some((class, target)) = classifier.zip(target) else { return Ok(data) };
        let known = labels_of(&pretrained.config);
        let is_classifier = pretrained.architecture("").ends_with("ForSequenceClassification");
        let has_all = is_classifier && data.classes.iter().all(|class| known.contains(class));
        if has_all && !matches!(target, Target::Value(_)) {
            data.classes = known;
            return Ok(data);
        }
        let problem = match target {
            Target::Class(_) => "single_label_classification",
            Target::Classes(_) => "multi_label_classification",
            Target::Value(_) => "regression",
            _ => return Err(Error::unsupported("labels of this kind are not learned by a classifier")),
        };
        let labels = match target {
            Target::Value(_) => vec!["LABEL_0".to_string()],
            _ => data.classes.clone(),
        };
        let by_index = labels.iter().enumerate().map(|(i, label)| (i.to_string(), json!(label))).collect();
        let by_label = labels.iter().enumerate().map(|(i, label)| (label.clone(), json!(i))).collect();
        data.has_new_head = true;
        data.head = r"^(.*\.)?(classifier|score)\.".to_string();
        data.keys.extend([
            ("architectures".to_string(), json!([class])),
            ("id2label".to_string(), Value::Object(by_index)),
            ("label2id".to_string(), Value::Object(by_label)),
            ("problem_type".to_string(), json!(problem)),
        ]);
        Ok(data)
    }

    /// A note on a new head, which does not have the weights of the model's own.
    pub fn new_head(&self) -> Option<String> {
        self.has_new_head.then(|| match self.classes.len() {
            0 => "the output head is new, for numbers".to_string(),
            classes => format!("the output head is new, for {classes} classes"),
        })
    }

    /// `options` with the keys of the config that the data set changes.
    pub fn with_config(&self, mut options: LoadOptions) -> Result<LoadOptions> {
        options.config.extend(self.keys.clone());
        Ok(options)
    }
}

/// The labels of a config, in order of their index.
fn labels_of(config: &Value) -> Vec<String> {
    let Some(labels) = config["id2label"].as_object() else { return Vec::new() };
    let mut labels: Vec<(usize, &str)> =
        labels.iter().filter_map(|(i, label)| Some((i.parse().ok()?, label.as_str()?))).collect();
    labels.sort_unstable();
    labels.into_iter().map(|(_, label)| label.to_string()).collect()
}

/// How much of a file its checksum covers, from its start; of the rest its length counts.
const CHECKED_BYTES: u64 = 16 << 20;

/// A checksum (64-bit FNV-1a) of the names, lengths and starts of the files at `path`, so that a run goes on with the data
/// that it began with.
fn checksum(path: &Path) -> Result<u64> {
    let mut sum = 0xcbf2_9ce4_8422_2325;
    add_to_checksum(path, &mut sum)?;
    Ok(sum)
}

fn add_to_checksum(path: &Path, sum: &mut u64) -> Result<()> {
    let unread = |e| Error::io(path, "read", e);
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            *sum = (*sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(unread)?;
        let mut paths =
            entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>().map_err(unread)?;
        paths.sort();
        return paths.iter().try_for_each(|path| add_to_checksum(path, sum));
    }
    add(path.file_name().unwrap_or_default().as_encoded_bytes());
    add(&std::fs::metadata(path).map_err(unread)?.len().to_le_bytes());
    let mut file = File::open(path).map_err(unread)?.take(CHECKED_BYTES);
    let mut piece = vec![0; 64 << 10];
    loop {
        match file.read(&mut piece).map_err(unread)? {
            0 => return Ok(()),
            count => add(&piece[..count]),
        }
    }
}
