//! Options of opening a data set.

use std::collections::BTreeMap;

#[cfg(feature = "series")]
use fauna_forecasting::Frequency;
use fauna_shared::item::ImageOptions;
use fauna_shared::{Error, Result};

/// Options of [`Dataset::open`](crate::Dataset::open).
///
/// ```
/// use fauna_datasets::DatasetOptions;
/// let options = DatasetOptions::default().with_column("text", "review").with_valid_fraction(0.1);
/// assert_eq!(options.columns["text"], "review");
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DatasetOptions {
    /// The convention of the data; `None` to detect it.
    pub kind: Option<DatasetKind>,
    /// Names of columns, keys or features in the data that differ from those of the convention: from the name of the
    /// convention (`text`, `label`, `time`, `energy`, `action`, …) to the name in the data.
    pub columns: BTreeMap<String, String>,
    /// Columns, keys or features that are left out, by their names in the data.
    pub without: Vec<String>,
    /// Share of the training data that is held out for validation, above 0 and below 1, if the data set has no
    /// validation split of its own; `None` to hold out nothing.
    pub valid_fraction: Option<f64>,
    /// Random seed of the held-out share.
    pub seed: u64,
    /// What one example of a plain text file is.
    pub text_unit: TextUnit,
    /// How labels are read; `None` for classes, or numbers if the labels are numbers and one of them is not an integer.
    pub targets: Option<TargetKind>,
    /// Number of actions of a robot's step, from 1: that of the step and those of the next ones.
    pub action_horizon: usize,
    /// Frequency of time series; `None` infers it from the timestamps.
    #[cfg(feature = "series")]
    pub frequency: Option<Frequency>,
    /// How pictures are decoded: as for the [model](fauna_shared::model::Pipeline::image_options).
    pub image: ImageOptions,
    /// Maximum size of a row of JSON or CSV or of a line of text, in bytes.
    pub max_line: usize,
}

impl Default for DatasetOptions {
    fn default() -> Self {
        Self {
            kind: None,
            columns: BTreeMap::new(),
            without: Vec::new(),
            valid_fraction: None,
            seed: 0,
            text_unit: TextUnit::default(),
            targets: None,
            action_horizon: 1,
            #[cfg(feature = "series")]
            frequency: None,
            image: ImageOptions::default(),
            max_line: 1 << 20,
        }
    }
}

impl DatasetOptions {
    /// The same for data of this convention.
    pub fn with_kind(self, kind: DatasetKind) -> Self {
        Self { kind: Some(kind), ..self }
    }

    /// The same, with the column `found` of the data as the column `name` of the convention.
    pub fn with_column(mut self, name: impl Into<String>, found: impl Into<String>) -> Self {
        self.columns.insert(name.into(), found.into());
        self
    }

    /// The same without the column, key or feature `name` of the data.
    pub fn without(mut self, name: impl Into<String>) -> Self {
        self.without.push(name.into());
        self
    }

    /// The same with this share of the training data held out for validation.
    pub fn with_valid_fraction(self, fraction: f64) -> Self {
        Self { valid_fraction: Some(fraction), ..self }
    }

    /// The same with this random seed.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The same with this unit of plain text.
    pub fn with_text_unit(self, text_unit: TextUnit) -> Self {
        Self { text_unit, ..self }
    }

    /// The same with labels that are read like this.
    pub fn with_targets(self, targets: TargetKind) -> Self {
        Self { targets: Some(targets), ..self }
    }

    /// The same with this number of actions per step of a robot.
    pub fn with_action_horizon(self, action_horizon: usize) -> Self {
        Self { action_horizon, ..self }
    }

    /// The same for time series of this frequency.
    #[cfg(feature = "series")]
    pub fn with_frequency(self, frequency: Frequency) -> Self {
        Self { frequency: Some(frequency), ..self }
    }

    /// The same with pictures decoded with these options.
    pub fn with_image(self, image: ImageOptions) -> Self {
        Self { image, ..self }
    }

    /// Checks that all options are in range.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for the first that is not.
    pub fn check(&self) -> Result<()> {
        if let Some(share) = self.valid_fraction.filter(|share| !(*share > 0.0 && *share < 1.0)) {
            return Err(Error::input(format!(
                "the share for validation must be between 0 and 1, got {share}"
            )));
        }
        if !(1..=10_000).contains(&self.action_horizon) {
            return Err(Error::input(format!(
                "the action horizon must be 1 to 10000, got {}",
                self.action_horizon
            )));
        }
        if self.max_line == 0 {
            return Err(Error::input("the maximum size of a line must be at least 1 byte, got 0"));
        }
        if let Some((name, found)) = self.columns.iter().find(|(_, found)| self.without.contains(found)) {
            return Err(Error::input(format!(
                "the column `{found}` is both left out and the column `{name}`"
            )));
        }
        Ok(())
    }

    /// The name in the data of the column `name` of the convention.
    pub(crate) fn column<'a>(&'a self, name: &'a str) -> &'a str {
        self.columns.get(name).map_or(name, String::as_str)
    }

    /// Refuses columns of other conventions than those of `known`; `what` names the convention.
    pub(crate) fn check_columns(&self, what: &str, known: &[&str]) -> Result<()> {
        match self.columns.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) if known.is_empty() => {
                Err(Error::input(format!("{what} have no columns, and none is called `{name}`")))
            }
            Some(name) => Err(Error::input(format!("{what} have no column `{name}`"))
                .hint(format!("the columns: {}", known.join(", ")))),
            None => Ok(()),
        }
    }

    /// Refuses to leave out anything, for conventions without optional parts.
    pub(crate) fn check_nothing_left_out(&self, what: &str) -> Result<()> {
        match self.without.first() {
            Some(name) => Err(Error::input(format!("`{name}` cannot be left out of {what}"))),
            None => Ok(()),
        }
    }
}

/// A convention in which training data is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DatasetKind {
    /// Rows with named columns, in JSON lines or CSV; which kind of example they are is decided by their columns.
    Rows,
    /// Plain text.
    Text,
    /// A folder of pictures or sounds, with `metadata.jsonl` or `metadata.csv`, or with one folder per class.
    Media,
    /// Time series in long format, in CSV or Parquet.
    Series,
    /// Nucleotide sequences in FASTA.
    Genes,
    /// Episodes of a robot in the layout of LeRobot 2.0, 2.1 or 3.0.
    Robot,
    /// Atomic structures in extended XYZ.
    Atoms,
}

impl std::fmt::Display for DatasetKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Rows => "rows",
            Self::Text => "plain text",
            Self::Media => "pictures or sounds",
            Self::Series => "time series",
            Self::Genes => "nucleotide sequences",
            Self::Robot => "episodes of a robot",
            Self::Atoms => "atomic structures",
        })
    }
}

/// What one example of a plain text file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TextUnit {
    /// A line; blank lines are skipped.
    #[default]
    Line,
    /// Lines up to the next blank line.
    Paragraph,
    /// The whole file.
    Document,
}

/// How labels are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// As classes, also if they are numbers.
    Classes,
    /// As numbers.
    Values,
}
