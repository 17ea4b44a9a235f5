//! Writing episodes in the layout of LeRobot 2.1, with pictures in Parquet.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fauna_shared::item::Image;
use fauna_shared::{Error, Result, image};
use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Map, Value, json};

/// Number of episodes per folder.
const CHUNK_SIZE: usize = 1000;

/// An episode to be written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RobotEpisode {
    /// Instruction: "pick up the red block".
    pub instruction: String,
    /// The steps in order, at least one.
    pub frames: Vec<EpisodeFrame>,
}

/// A step of a [`RobotEpisode`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EpisodeFrame {
    /// One picture per camera of [`WriteOptions::cameras`], before the action.
    pub images: Vec<Image>,
    /// Proprioceptive state before the action, finite, of one size in all steps; empty in all steps if there is none.
    pub state: Vec<f64>,
    /// Action, finite, of one size in all steps.
    pub action: Vec<f64>,
}

/// Options of [`write_episodes`].
#[derive(Debug, Clone, PartialEq)]
pub struct WriteOptions {
    /// Steps per second.
    pub fps: u32,
    /// Name of the robot.
    pub robot: String,
    /// Names of the cameras, without the prefix `observation.images.`.
    pub cameras: Vec<String>,
    /// Names of the numbers of an action; empty if they have none.
    pub action_names: Vec<String>,
}

impl WriteOptions {
    /// Options for a robot of this name, with steps per second and the names of its cameras.
    pub fn new(robot: impl Into<String>, fps: u32, cameras: &[&str]) -> Self {
        let cameras = cameras.iter().map(|name| (*name).to_string()).collect();
        Self { fps, robot: robot.into(), cameras, action_names: Vec::new() }
    }
}

/// Writes `episodes` into the new folder `folder` in the layout of LeRobot 2.1: a Parquet file per episode with numbers in
/// float32 and pictures as PNG, and the metadata with the statistics of each episode. Returns the number of steps.
///
/// ```
/// use fauna_datasets::{Dataset, DatasetOptions, EpisodeFrame, RobotEpisode, WriteOptions, write_episodes};
/// use fauna_shared::item::Image;
/// # let temporary = tempfile::tempdir().unwrap();
/// # let folder = temporary.path().join("pushing");
/// let frame = EpisodeFrame {
///     images: vec![Image { width: 2, height: 2, rgb: vec![9; 12] }],
///     state: vec![0.5],
///     action: vec![1.0, -1.0],
/// };
/// let episode = RobotEpisode { instruction: "push".to_string(), frames: vec![frame; 3] };
/// write_episodes(&folder, &[episode], &WriteOptions::new("arm", 10, &["top"]))?;
/// let dataset = Dataset::open(&folder, &DatasetOptions::default())?;
/// assert_eq!(dataset.train().len(), 3);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if there are no steps, or one has values that are not finite or numbers or
/// pictures of other sizes than the first, with the episode and step; [`Io`](fauna_shared::ErrorKind::Io) if the folder
/// exists or cannot be written. After an error there is no folder.
pub fn write_episodes(
    folder: impl AsRef<Path>,
    episodes: &[RobotEpisode],
    options: &WriteOptions,
) -> Result<usize> {
    let folder = folder.as_ref();
    let layout = Layout::of(episodes, options)?;
    for (index, episode) in episodes.iter().enumerate() {
        for (step, frame) in episode.frames.iter().enumerate() {
            layout.check(frame).map_err(|e| e.context(format!("step {step} of episode {index}")))?;
        }
    }
    if folder.exists() {
        return Err(Error::new(fauna_shared::ErrorKind::Io, "the folder exists already").at(folder));
    }
    let partial = Partial::of(folder)?;
    let count = write_all(&partial.0, episodes, options, &layout)?;
    std::fs::rename(&partial.0, folder)
        .map_err(|e| Error::io(folder, "rename the temporary folder to", e))?;
    Ok(count)
}

/// A temporary folder beside the one that is written, removed on drop unless it was renamed.
struct Partial(PathBuf);

impl Partial {
    fn of(folder: &Path) -> Result<Self> {
        let name = folder.file_name().ok_or_else(|| Error::input("not the name of a folder").at(folder))?;
        let name = format!(".{}.{}.partial", name.to_string_lossy(), std::process::id());
        let partial = Self(folder.with_file_name(name));
        make(&partial.0)?;
        Ok(partial)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn make(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create", e))
}

/// Writes all files to `folder`, and returns the number of steps.
fn write_all(
    folder: &Path,
    episodes: &[RobotEpisode],
    options: &WriteOptions,
    layout: &Layout,
) -> Result<usize> {
    make(&folder.join("meta"))?;
    let mut tasks: Vec<&str> = Vec::new();
    let (mut about, mut statistics, mut count) = (String::new(), String::new(), 0);
    for (index, episode) in episodes.iter().enumerate() {
        let task = tasks.iter().position(|task| *task == episode.instruction).unwrap_or_else(|| {
            tasks.push(&episode.instruction);
            tasks.len() - 1
        });
        let chunk = folder.join(format!("data/chunk-{:03}", index / CHUNK_SIZE));
        make(&chunk)?;
        let path = chunk.join(format!("episode_{index:06}.parquet"));
        write_file(&path, episode, options, layout, [index, count, task])?;
        let length = episode.frames.len();
        about.push_str(&format!(
            "{}\n",
            json!({"episode_index": index, "tasks": [episode.instruction], "length": length})
        ));
        let stats = layout.statistics(episode, options, [index, count, task]);
        statistics.push_str(&format!("{}\n", json!({"episode_index": index, "stats": stats})));
        count += length;
    }
    let tasks_text: String = tasks
        .iter()
        .enumerate()
        .map(|(index, task)| format!("{}\n", json!({"task_index": index, "task": task})))
        .collect();
    let info = layout.info(episodes.len(), count, tasks.len(), options);
    let info = serde_json::to_string_pretty(&info).unwrap_or_default();
    for (name, text) in [
        ("info.json", info),
        ("episodes.jsonl", about),
        ("episodes_stats.jsonl", statistics),
        ("tasks.jsonl", tasks_text),
    ] {
        let path = folder.join("meta").join(name);
        let write = || File::create(&path)?.write_all(text.as_bytes());
        write().map_err(|e| Error::io(&path, "write", e))?;
    }
    Ok(count)
}

/// The sizes of the steps.
struct Layout {
    state: usize,
    action: usize,
    /// Height and width of the pictures of each camera.
    images: Vec<(usize, usize)>,
}

impl Layout {
    fn of(episodes: &[RobotEpisode], options: &WriteOptions) -> Result<Self> {
        if options.fps == 0 {
            return Err(Error::input("the number of steps per second must be at least 1, got 0"));
        }
        if let Some(empty) = episodes.iter().position(|episode| episode.frames.is_empty()) {
            return Err(Error::input(format!("episode {empty} has no steps")));
        }
        let is_name =
            |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let twice = (1..options.cameras.len()).find(|i| options.cameras[..*i].contains(&options.cameras[*i]));
        if let Some(name) =
            twice.map(|at| &options.cameras[at]).or(options.cameras.iter().find(|name| !is_name(name)))
        {
            return Err(Error::input(format!("a camera is called \"{name}\""))
                .hint("names of cameras are distinct, of letters, digits and underscores"));
        }
        let first = episodes.first().and_then(|episode| episode.frames.first());
        let first = first.ok_or_else(|| Error::input("there are no episodes to write"))?;
        let names = options.action_names.len();
        if first.action.is_empty() || (names > 0 && names != first.action.len()) {
            return Err(Error::input(format!(
                "an action has {} numbers, and {names} names of them are given",
                first.action.len()
            )));
        }
        let images: Vec<(usize, usize)> =
            first.images.iter().map(|image| (image.height, image.width)).collect();
        if images.len() != options.cameras.len() {
            return Err(Error::input(format!(
                "a step has {} pictures, and there are {} cameras",
                images.len(),
                options.cameras.len()
            )));
        }
        Ok(Self { state: first.state.len(), action: first.action.len(), images })
    }

    fn check(&self, frame: &EpisodeFrame) -> Result<()> {
        let sizes = [("state", &frame.state, self.state), ("action", &frame.action, self.action)];
        for (name, values, wanted) in sizes {
            if values.len() != wanted {
                return Err(Error::input(format!(
                    "the {name} has {} numbers, the first one {wanted}",
                    values.len()
                )));
            }
            if let Some(odd) = values.iter().find(|value| !(**value as f32).is_finite()) {
                return Err(Error::input(format!("the {name} has the value {odd}, expected finite float32")));
            }
        }
        let images: Vec<(usize, usize)> =
            frame.images.iter().map(|image| (image.height, image.width)).collect();
        if images != self.images {
            return Err(Error::input(format!(
                "pictures of (height, width) {images:?}, the first ones {:?}",
                self.images
            )));
        }
        frame.images.iter().try_for_each(image::check)
    }

    /// `meta/info.json`.
    fn info(&self, episodes: usize, frames: usize, tasks: usize, options: &WriteOptions) -> Value {
        let mut features = Map::new();
        for (name, (height, width)) in options.cameras.iter().zip(&self.images) {
            let about = json!({"dtype": "image", "shape": [height, width, 3], "names": ["height", "width", "channels"]});
            features.insert(camera(name), about);
        }
        if self.state > 0 {
            features.insert(
                "observation.state".to_string(),
                json!({"dtype": "float32", "shape": [self.state], "names": null}),
            );
        }
        let names = if options.action_names.is_empty() { Value::Null } else { json!(options.action_names) };
        features.insert(
            "action".to_string(),
            json!({"dtype": "float32", "shape": [self.action], "names": names}),
        );
        features.insert("timestamp".to_string(), json!({"dtype": "float32", "shape": [1], "names": null}));
        for name in INDICES {
            features.insert(name.to_string(), json!({"dtype": "int64", "shape": [1], "names": null}));
        }
        json!({
            "codebase_version": "v2.1",
            "robot_type": options.robot,
            "total_episodes": episodes,
            "total_frames": frames,
            "total_tasks": tasks,
            "total_videos": 0,
            "total_chunks": episodes.div_ceil(CHUNK_SIZE),
            "chunks_size": CHUNK_SIZE,
            "fps": options.fps,
            "splits": {"train": format!("0:{episodes}")},
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": null,
            "features": features,
        })
    }

    /// Minimum, maximum, mean, standard deviation and count of each feature of an episode; of pictures per channel, from 0
    /// to 1, `(3, 1, 1)`.
    fn statistics(
        &self,
        episode: &RobotEpisode,
        options: &WriteOptions,
        [index, first, task]: [usize; 3],
    ) -> Value {
        let frames = &episode.frames;
        let mut all = Map::new();
        for (at, name) in options.cameras.iter().enumerate() {
            let channels: Vec<[f64; 4]> = (0..3)
                .map(|channel| {
                    let pixels = frames
                        .iter()
                        .flat_map(move |frame| frame.images[at].rgb.iter().skip(channel).step_by(3));
                    moments(pixels.map(|value| f64::from(*value) / 255.0))
                })
                .collect();
            let nested =
                |which: usize| json!(channels.iter().map(|channel| [[channel[which]]]).collect::<Vec<_>>());
            all.insert(camera(name), json!({"min": nested(0), "max": nested(1), "mean": nested(2), "std": nested(3), "count": [frames.len()]}));
        }
        let mut add = |name: &str, columns: Vec<[f64; 4]>| {
            let part = |which: usize| columns.iter().map(|column| column[which]).collect::<Vec<f64>>();
            all.insert(name.to_string(), json!({"min": part(0), "max": part(1), "mean": part(2), "std": part(3), "count": [frames.len()]}));
        };
        let column = |value: &dyn Fn(&EpisodeFrame) -> f64| moments(frames.iter().map(value));
        if self.state > 0 {
            add("observation.state", (0..self.state).map(|i| column(&|frame| frame.state[i])).collect());
        }
        add("action", (0..self.action).map(|i| column(&|frame| frame.action[i])).collect());
        let steps = || (0..frames.len()).map(|step| step as f64);
        add("timestamp", vec![moments(steps().map(|step| step / f64::from(options.fps)))]);
        add("frame_index", vec![moments(steps())]);
        add("episode_index", vec![moments(steps().map(|_| index as f64))]);
        add("index", vec![moments(steps().map(|step| step + first as f64))]);
        add("task_index", vec![moments(steps().map(|_| task as f64))]);
        Value::Object(all)
    }
}

const INDICES: [&str; 4] = ["frame_index", "episode_index", "index", "task_index"];

fn camera(name: &str) -> String {
    format!("observation.images.{name}")
}

/// Minimum, maximum, mean and standard deviation.
fn moments(values: impl Iterator<Item = f64> + Clone) -> [f64; 4] {
    let count = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / count;
    let variance = values.clone().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    [
        values.clone().fold(f64::INFINITY, f64::min),
        values.fold(f64::NEG_INFINITY, f64::max),
        mean,
        variance.sqrt(),
    ]
}

fn write_file(
    path: &Path,
    episode: &RobotEpisode,
    options: &WriteOptions,
    layout: &Layout,
    [index, first, task]: [usize; 3],
) -> Result<()> {
    let frames = &episode.frames;
    let mut pictures: Vec<(Vec<ByteArray>, Vec<ByteArray>)> = Vec::new();
    for at in 0..options.cameras.len() {
        let png = |frame: &EpisodeFrame| image::to_png(&frame.images[at]).map(ByteArray::from);
        let name = |step: usize| ByteArray::from(format!("frame_{step:06}.png").into_bytes());
        pictures
            .push((frames.iter().map(png).collect::<Result<_>>()?, (0..frames.len()).map(name).collect()));
    }
    let wrong =
        |e: ParquetError| Error::new(fauna_shared::ErrorKind::Io, format!("cannot write: {e}")).at(path);
    let file = File::create(path).map_err(|e| Error::io(path, "write", e))?;
    let write = || -> Result<(), ParquetError> {
        let schema = Arc::new(parse_message_type(&message(options, layout))?);
        let properties = Arc::new(WriterProperties::builder().set_compression(Compression::SNAPPY).build());
        let mut writer = SerializedFileWriter::new(file, schema, properties)?;
        let mut group = writer.next_row_group()?;
        let mut columns: Vec<Column> = Vec::new();
        for (bytes, paths) in pictures {
            columns.extend([Column::Bytes(bytes), Column::Bytes(paths)]);
        }
        let numbers =
            |values: &dyn Fn(&EpisodeFrame) -> Vec<f32>| frames.iter().map(values).collect::<Vec<_>>();
        let narrow = |values: &Vec<f64>| values.iter().map(|value| *value as f32).collect();
        if layout.state > 0 {
            columns.push(Column::Lists(numbers(&|frame| narrow(&frame.state))));
        }
        columns.push(Column::Lists(numbers(&|frame| narrow(&frame.action))));
        let steps = || 0..frames.len();
        columns.push(Column::Floats(steps().map(|step| step as f32 / options.fps as f32).collect()));
        let integers: [&dyn Fn(usize) -> usize; 4] =
            [&|step| step, &|_| index, &|step| first + step, &|_| task];
        columns
            .extend(integers.map(|value| Column::Integers(steps().map(|step| value(step) as i64).collect())));
        for column in columns {
            let Some(mut writer) = group.next_column()? else { break };
            column.write(writer.untyped())?;
            writer.close()?;
        }
        group.close()?;
        writer.close()?;
        Ok(())
    };
    write().map_err(wrong)
}

/// The schema of a file.
fn message(options: &WriteOptions, layout: &Layout) -> String {
    let mut text = "message schema {\n".to_string();
    for name in &options.cameras {
        let name = camera(name);
        text.push_str(&format!(
            "optional group {name} {{ optional binary bytes; optional binary path (STRING); }}\n"
        ));
    }
    let state = (layout.state > 0).then_some("observation.state");
    for name in state.into_iter().chain(["action"]) {
        text.push_str(&format!(
            "optional group {name} (LIST) {{ repeated group list {{ optional float element; }} }}\n"
        ));
    }
    text.push_str("optional float timestamp;\n");
    INDICES.iter().for_each(|name| text.push_str(&format!("optional int64 {name};\n")));
    text + "}"
}

/// The values of a column without nulls.
enum Column {
    Bytes(Vec<ByteArray>),
    Lists(Vec<Vec<f32>>),
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

impl Column {
    fn write(self, writer: &mut ColumnWriter) -> Result<(), ParquetError> {
        match (self, writer) {
            (Self::Bytes(values), ColumnWriter::ByteArrayColumnWriter(writer)) => {
                writer.write_batch(&values, Some(&vec![2; values.len()]), None)?;
            }
            (Self::Lists(rows), ColumnWriter::FloatColumnWriter(writer)) => {
                let starts = rows.iter().flat_map(|row| (0..row.len()).map(|at| i16::from(at > 0)));
                let (starts, values): (Vec<i16>, Vec<f32>) = (starts.collect(), rows.concat());
                writer.write_batch(&values, Some(&vec![3; values.len()]), Some(&starts))?;
            }
            (Self::Floats(values), ColumnWriter::FloatColumnWriter(writer)) => {
                writer.write_batch(&values, Some(&vec![1; values.len()]), None)?;
            }
            (Self::Integers(values), ColumnWriter::Int64ColumnWriter(writer)) => {
                writer.write_batch(&values, Some(&vec![1; values.len()]), None)?;
            }
            _ => return Err(ParquetError::General("a column of another type".to_string())),
        }
        Ok(())
    }
}

#[cfg(feature = "tabletop")]
impl RobotEpisode {
    /// An episode of the table-top simulation, with the rendered images if there are any.
    ///
    /// ```
    /// use fauna_datasets::RobotEpisode;
    /// use fauna_tabletop::{Expert, SceneConfig, run_episode};
    /// let config = SceneConfig { image_size: 32, ..SceneConfig::default() };
    /// let episode = RobotEpisode::of_tabletop(&run_episode(&Expert, 7, &config)?);
    /// assert_eq!((episode.frames[0].images.len(), episode.frames[0].action.len()), (1, 7));
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    pub fn of_tabletop(episode: &fauna_tabletop::Episode) -> Self {
        let frame = |step: &fauna_tabletop::EpisodeStep| EpisodeFrame {
            images: step.frame.iter().cloned().collect(),
            state: step.state.clone(),
            action: step.action.clone(),
        };
        Self { instruction: episode.instruction.clone(), frames: episode.steps.iter().map(frame).collect() }
    }
}
