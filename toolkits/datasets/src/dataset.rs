//! Data sets and their splits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fauna_shared::train::{Example, Examples, permutation};
use fauna_shared::{Error, Result};

use crate::find::{self, Part};
use crate::options::{DatasetKind, DatasetOptions, TargetKind};
use crate::{lerobot, media, plain, rows};

/// Examples that are read one by one.
pub(crate) trait Source: Send + Sync {
    /// Number of examples.
    fn len(&self) -> usize;

    /// Reads an example.
    fn get(&self, index: usize) -> Result<Example>;

    /// Number of the group of an example: a group is held out as a whole.
    fn group(&self, index: usize) -> usize {
        index
    }

    /// Statistics of the actions of the examples `indices` under a key.
    fn action_statistics(
        &self,
        _key: &str,
        _indices: &mut dyn Iterator<Item = usize>,
    ) -> Option<serde_json::Value> {
        None
    }
}

/// A source, and what is known of it.
pub(crate) struct Opened {
    pub source: Arc<dyn Source>,
    /// What the examples are, in the plural: `chats`.
    pub what: &'static str,
    /// Classes, with the place of the first example of each.
    pub classes: BTreeMap<String, String>,
    /// How labels were read; `None` without labels.
    pub targets: Option<TargetKind>,
    pub notes: Vec<String>,
}

/// Training data, split into training, validation and test.
///
/// ```
/// use fauna_datasets::{Dataset, DatasetOptions};
/// use fauna_shared::train::{Example, Target};
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("reviews.jsonl");
/// std::fs::write(&path, "{\"text\": \"fine\", \"label\": \"good\"}\n{\"text\": \"dull\", \"label\": \"bad\"}\n").unwrap();
/// let dataset = Dataset::open(&path, &DatasetOptions::default())?;
/// assert_eq!(dataset.classes(), ["bad", "good"]);
/// assert_eq!(dataset.train().len(), 2);
/// let Example::Labelled { item, label, .. } = dataset.train().get(0)? else { panic!() };
/// assert_eq!((item.text()?, label), ("fine", Target::Class("good".to_string())));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Dataset {
    kind: DatasetKind,
    train: Split,
    validation: Option<Split>,
    test: Option<Split>,
    classes: Vec<String>,
    description: String,
    notes: Vec<String>,
}

impl Dataset {
    /// Opens the data set at `path`, a file or a folder. Its convention is detected unless
    /// [`DatasetOptions::kind`] names it.
    ///
    /// Texts and numbers are checked here; pictures and sounds are read with the examples.
    ///
    /// # Errors
    /// [`Format`](fauna_shared::ErrorKind::Format) and [`Input`](fauna_shared::ErrorKind::Input) for data that is empty,
    /// damaged, inconsistent or of no known convention, with the file and the line or row;
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for what is not implemented and for a cargo feature that is
    /// off; [`NotFound`](fauna_shared::ErrorKind::NotFound) and [`Io`](fauna_shared::ErrorKind::Io) for files that cannot
    /// be read.
    pub fn open(path: impl AsRef<Path>, options: &DatasetOptions) -> Result<Self> {
        let path = path.as_ref();
        options.check()?;
        let found = find::splits(path, options)?;
        let mut notes = found.notes;
        let train = open_part(&found.train, options)?;
        if options.targets.is_some() && train.targets.is_none() {
            return Err(Error::input(format!("{} have no labels to read as classes or numbers", train.what))
                .at(path)
                .set("leave this option away", "DatasetOptions::targets", ""));
        }
        let mut later = options.clone();
        later.targets = options.targets.or(train.targets);
        let open_later = |part: &Option<Part>| -> Result<Option<Opened>> {
            let Some(part) = part else { return Ok(None) };
            let opened = open_part(part, &later)?;
            check_against(&train, &opened, &found.train, part)?;
            Ok(Some(opened))
        };
        let (validation, test) = (open_later(&found.validation)?, open_later(&found.test)?);
        for (opened, part) in [
            (Some(&train), Some(&found.train)),
            (validation.as_ref(), found.validation.as_ref()),
            (test.as_ref(), found.test.as_ref()),
        ] {
            if let (Some(opened), Some(part)) = (opened, part) {
                notes.extend(opened.notes.iter().map(|note| format!("{}: {note}", part.path.display())));
            }
        }
        let classes: Vec<String> = train.classes.keys().cloned().collect();
        let (what, kind) = (train.what, found.train.kind);
        let whole = Split::whole(train.source);
        let (train, held_out) = match (options.valid_fraction, &validation) {
            (None, _) => (whole, None),
            (Some(_), Some(_)) => {
                return Err(Error::input(
                    "the data set has a validation split of its own, so none is held out",
                )
                .at(path)
                .set("leave this option away", "DatasetOptions::valid_fraction", ""));
            }
            (Some(share), None) => {
                let (train, held_out) = whole.hold_out(share, options.seed).map_err(|e| e.at(path))?;
                (train, Some(held_out))
            }
        };
        let origin = if held_out.is_some() { " held out" } else { "" };
        let validation = validation.map(|opened| Split::whole(opened.source)).or(held_out);
        let test = test.map(|opened| Split::whole(opened.source));
        let mut description = format!("{}: {} {what} for training", path.display(), train.len());
        let counts = [(&validation, origin, "validation"), (&test, "", "testing")];
        for (split, origin, purpose) in counts {
            if let Some(split) = split {
                description.push_str(&format!(", {}{origin} for {purpose}", split.len()));
            }
        }
        if !classes.is_empty() {
            description.push_str(&format!("; {} classes", classes.len()));
        }
        Ok(Self { kind, train, validation, test, classes, description, notes })
    }

    /// The convention that was read.
    pub fn kind(&self) -> DatasetKind {
        self.kind
    }

    /// The examples for training.
    pub fn train(&self) -> &Split {
        &self.train
    }

    /// The examples for validation; `None` if there are none.
    pub fn validation(&self) -> Option<&Split> {
        self.validation.as_ref()
    }

    /// The examples for testing; `None` if there are none.
    pub fn test(&self) -> Option<&Split> {
        self.test.as_ref()
    }

    /// The names of the classes of the training data, sorted by code points; empty without classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// What was read, in one line: `reviews: 900 labelled texts for training, 100 held out for validation; 2 classes`.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// What was not read, and which of several readings was taken.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Statistics of the actions of the training episodes under `key`, in the format of `norm_stats` and
    /// `dataset_statistics.json` of OpenVLA: mean, standard deviation, minimum, maximum, 1st and 99th percentile of each
    /// degree of freedom. `None` if the data set has no actions.
    pub fn action_statistics(&self, key: &str) -> Option<serde_json::Value> {
        self.train.source.action_statistics(key, &mut self.train.indices())
    }
}

fn open_part(part: &Part, options: &DatasetOptions) -> Result<Opened> {
    let path = &part.path;
    let opened = match part.kind {
        DatasetKind::Rows => rows::open(path, options),
        DatasetKind::Text => plain::open(path, options),
        DatasetKind::Media => media::open(path, options),
        #[cfg(feature = "series")]
        DatasetKind::Series => crate::series::open(path, options),
        #[cfg(not(feature = "series"))]
        DatasetKind::Series => Err(without_feature("series", "time series")),
        DatasetKind::Genes => crate::genes::open(path, options),
        #[cfg(feature = "atoms")]
        DatasetKind::Atoms => crate::xyz::open(path, options),
        #[cfg(not(feature = "atoms"))]
        DatasetKind::Atoms => Err(without_feature("atoms", "atomic structures")),
        DatasetKind::Robot => lerobot::open(path, options),
    };
    let opened = opened.map_err(|error| error.at(path))?;
    match opened.source.len() {
        0 => Err(Error::input("the data set is empty").at(path)),
        _ => Ok(opened),
    }
}

/// The error of a build without `feature`.
#[allow(dead_code, reason = "a build with all features needs it nowhere")]
pub(crate) fn without_feature(feature: &str, what: &str) -> Error {
    Error::unsupported(format!("this program was built without {what}"))
        .hint(format!("build it with the feature `{feature}` of fauna-datasets"))
}

/// Checks that a split has the kind of examples and the classes of training.
fn check_against(train: &Opened, other: &Opened, train_part: &Part, part: &Part) -> Result<()> {
    if train.what != other.what {
        let (found, wanted) = (other.what, train.what);
        return Err(Error::input(format!(
            "found {found}, expected {wanted} as in {}",
            train_part.path.display()
        ))
        .at(&part.path)
        .hint("all splits must have the same columns"));
    }
    let unknown = other.classes.iter().find(|(class, _)| !train.classes.contains_key(*class));
    match unknown {
        Some((class, place)) => {
            let known: Vec<&str> = train.classes.keys().map(String::as_str).take(20).collect();
            let more = train.classes.len().saturating_sub(known.len());
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            Err(Error::input(format!("{place}: the class \"{class}\" does not occur in the training data"))
                .at(&part.path)
                .hint(format!("the classes of {}: {}{more}", train_part.path.display(), known.join(", "))))
        }
        None => Ok(()),
    }
}

/// Examples of a [`Dataset`] for one purpose.
#[derive(Clone)]
pub struct Split {
    source: Arc<dyn Source>,
    /// Indices in the source; `None` for all.
    chosen: Option<Arc<[usize]>>,
}

impl std::fmt::Debug for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Split({} examples)", self.len())
    }
}

impl Split {
    fn whole(source: Arc<dyn Source>) -> Self {
        Self { source, chosen: None }
    }

    /// Number of examples, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a split is never empty")]
    pub fn len(&self) -> usize {
        self.chosen.as_ref().map_or_else(|| self.source.len(), |chosen| chosen.len())
    }

    /// Reads the example `index`.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if there is none of this index; errors of pictures, sounds and files that
    /// cannot be read, with the row.
    pub fn get(&self, index: usize) -> Result<Example> {
        let count = self.len();
        if index >= count {
            return Err(Error::input(format!("no example {index}: there are {count}")));
        }
        self.source.get(self.chosen.as_ref().map_or(index, |chosen| chosen[index]))
    }

    /// All examples in the order of the data.
    pub fn examples(&self) -> impl ExactSizeIterator<Item = Result<Example>> + '_ {
        (0..self.len()).map(|index| self.get(index))
    }

    fn indices(&self) -> Box<dyn Iterator<Item = usize> + '_> {
        match &self.chosen {
            Some(chosen) => Box::new(chosen.iter().copied()),
            None => Box::new(0..self.source.len()),
        }
    }

    /// Splits off `share` of the groups of examples, at least one of them.
    fn hold_out(self, share: f64, seed: u64) -> Result<(Self, Self)> {
        let groups: Vec<usize> = (0..self.source.len()).map(|index| self.source.group(index)).collect();
        let count = groups.iter().max().map_or(0, |last| last + 1);
        if count < 2 {
            return Err(Error::input("nothing can be held out for validation: the data is one piece")
                .hint("give the validation data in a file of its own"));
        }
        let held = ((count as f64 * share).round() as usize).clamp(1, count - 1);
        let mut is_held = vec![false; count];
        permutation(count, seed, HELD_OUT).into_iter().take(held).for_each(|group| is_held[group] = true);
        let (held, kept): (Vec<usize>, Vec<usize>) =
            (0..groups.len()).partition(|index| is_held[groups[*index]]);
        let part = |chosen: Vec<usize>| Self { source: self.source.clone(), chosen: Some(chosen.into()) };
        Ok((part(kept), part(held)))
    }
}

/// Stream of the random numbers that choose what is held out; epochs have the streams from 0 on.
const HELD_OUT: u64 = u64::MAX >> 1;

/// Path of `path` relative to `root`, for messages.
pub(crate) fn below(root: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(root).unwrap_or(path).to_path_buf()
}

impl Examples for Split {
    fn len(&self) -> usize {
        Self::len(self)
    }

    fn get(&self, index: usize) -> Result<Example> {
        Self::get(self, index)
    }
}
