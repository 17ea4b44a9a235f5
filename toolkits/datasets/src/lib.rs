//! Training data in the conventions of the field, read as the examples that models are fine-tuned on.
//!
//! [`Dataset::open`] takes a file or a folder, detects its convention, and has the examples of each split:
//!
//! - **Rows** in JSON lines (`.jsonl`, `.ndjson`) or CSV, in one file, or as `train`, `valid` (`validation`, `val`, `dev`)
//!   and `test` in a folder. The columns of the first row decide what they are, and all rows must have them:
//!   - `messages` (`role` and `content`, which is a text or a list of parts), with `tools` if there are any: chats;
//!   - `prompt`, `completion`: each a text or messages; with `image`, `images` or `audio`, which come before the prompt;
//!   - `text`, or `text` and `label`; `image`, `audio` or `sequence`, with `label` or `text`;
//!   - `anchor`, `positive`, with `negative` if there is one; `sentence1`, `sentence2` and `score` or `label`.
//! - **Plain text** (`.txt`) in lines, paragraphs or as a whole.
//! - **Folders of pictures or sounds** with `metadata.jsonl` or `metadata.csv` (`file_name` and `text` or `label`), or with
//!   one folder per class; in folders `train`, `valid` and `test` if it is split.
//! - **Time series** in long format (`unique_id` or `item_id`, `ds` or `timestamp`, `y` or `target` or `value`) in CSV or
//!   Parquet.
//! - **Nucleotide sequences** in FASTA.
//! - **Atomic structures** with energy, forces and stress (or virial) in extended XYZ, with the names of ASE or MACE.
//! - **Episodes of robots** in the layout of LeRobot 2.0, 2.1 and 3.0, with pictures in Parquet.
//!
//! ```
//! use fauna_datasets::{Dataset, DatasetOptions};
//! use fauna_shared::train::Example;
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path();
//! let chat = |question: &str, answer: &str| {
//!     format!(
//!         "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{question}\"}}, \
//!          {{\"role\": \"assistant\", \"content\": \"{answer}\"}}]}}\n"
//!     )
//! };
//! std::fs::write(path.join("train.jsonl"), chat("1 + 1?", "2") + &chat("2 + 2?", "4")).unwrap();
//! std::fs::write(path.join("valid.jsonl"), chat("3 + 3?", "6")).unwrap();
//! let dataset = Dataset::open(path, &DatasetOptions::default())?;
//! assert!(dataset.description().ends_with("2 chats for training, 1 for validation"));
//! for example in dataset.train().examples() {
//!     let Example::Chat { turns, .. } = example? else { panic!() };
//!     assert_eq!(turns.len(), 2);
//! }
//! # Ok::<(), fauna_shared::Error>(())
//! ```
//!
//! # Features
//!
//! Each is on by default: `csv` for tables of rows in CSV; `image` and `audio` for pictures and sounds; `series` for time
//! series; `atoms` for structures; `parquet` for robots, and for series in Parquet; `tabletop` for episodes of the
//! table-top simulation. A file of a feature that is off is an error that names it.

mod chat;
mod dataset;
mod find;
mod genes;
mod labels;
mod lerobot;
mod media;
mod options;
#[cfg(feature = "parquet")]
mod parquet;
mod plain;
mod rows;
#[cfg(feature = "series")]
mod series;
mod series_columns;
mod table;
#[cfg(feature = "atoms")]
mod xyz;

#[cfg(all(
    test,
    feature = "atoms",
    feature = "audio",
    feature = "csv",
    feature = "parquet",
    feature = "series",
    feature = "tabletop"
))]
mod tests;

pub use dataset::{Dataset, Split};
#[cfg(all(feature = "parquet", feature = "image"))]
pub use lerobot::{EpisodeFrame, RobotEpisode, WriteOptions, write_episodes};
pub use options::{DatasetKind, DatasetOptions, TargetKind, TextUnit};
