//! Reading episodes.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fauna_shared::item::{Image, ImageOptions, Item};
use fauna_shared::train::{Example, Step};
use fauna_shared::{Error, Result};
use serde_json::{Value, json};

use super::info::{Feature, Info, Version};
use crate::dataset::{Opened, Source};
use crate::find::entries;
use crate::media::{self, Media};
use crate::options::DatasetOptions;
use crate::parquet::{Lists, Table, guarded};
use crate::table::{Lines, in_line};

/// The features that can be renamed.
const NAMES: [&str; 2] = ["action", "state"];
/// Columns that are not features of the robot.
const INDICES: [&str; 5] = ["timestamp", "frame_index", "episode_index", "index", "task_index"];
/// Maximum size of a line of the metadata in bytes.
const MAX_LINE: usize = 16 << 20;

/// What `meta` says of an episode.
#[derive(Debug, Clone)]
struct EpisodeMeta {
    index: usize,
    length: usize,
    /// Chunk and number of its file.
    file: (usize, usize),
}

/// The steps of all episodes.
struct Steps {
    root: PathBuf,
    /// Names of the cameras.
    cameras: Vec<String>,
    files: Vec<PathBuf>,
    tasks: HashMap<usize, String>,
    episodes: Vec<Episode>,
    /// Index of the first step of each episode.
    starts: Vec<usize>,
    state_size: usize,
    /// `(steps, state_size)`.
    states: Vec<f64>,
    action_size: usize,
    /// `(steps, action_size)`.
    actions: Vec<f64>,
    task_of: Vec<usize>,
    horizon: usize,
    image: ImageOptions,
    /// The file that was read last.
    last: Mutex<Option<(usize, Arc<Table>)>>,
}

struct Episode {
    index: usize,
    length: usize,
    file: usize,
    /// Row of its first step in the file.
    row: usize,
}

pub(crate) fn open(root: &Path, options: &DatasetOptions) -> Result<Opened> {
    options.check_columns("episodes of a robot", &NAMES)?;
    let place = root.join("meta/info.json");
    let info = Info::read(&place)?;
    let named = |error: Error| error.at(&place);
    let (action, state) =
        (options.column("action"), options.columns.get("state").map_or("observation.state", String::as_str));
    for name in &options.without {
        info.feature(name).map_err(named)?;
        if name == action || INDICES.contains(&name.as_str()) {
            return Err(Error::input(format!("the feature `{name}` cannot be left out")));
        }
    }
    let is_kept = |feature: &&Feature| !options.without.contains(&feature.name);
    let action_size = numeric(info.feature(action).map_err(named)?).map_err(named)?;
    let has_state = info.features.iter().filter(is_kept).any(|feature| feature.name == state);
    let state_size = match has_state || options.columns.contains_key("state") {
        true => numeric(info.feature(state).map_err(named)?).map_err(named)?,
        false => 0,
    };
    let video = info.features.iter().filter(is_kept).find(|feature| feature.dtype == "video");
    if let Some(video) = video {
        return Err(Error::unsupported(format!("the feature `{}` is a video, which cannot be read", video.name))
            .at(&place)
            .hint("convert it to images: record or convert the data set without videos (use_videos = false in LeRobot)")
            .set("or train without this camera", "DatasetOptions::without", video.name.clone()));
    }
    let mut cameras: Vec<String> =
        info.features.iter().filter(is_kept).filter(|f| f.dtype == "image").map(|f| f.name.clone()).collect();
    cameras.sort();
    let is_read = |name: &str| {
        name == action
            || (name == state && state_size > 0)
            || cameras.iter().any(|camera| camera == name)
            || INDICES.contains(&name)
    };
    let rest: Vec<&str> =
        info.features.iter().map(|f| f.name.as_str()).filter(|name| !is_read(name)).collect();
    let notes = match rest.is_empty() {
        true => Vec::new(),
        false => vec![format!("features that are not read: {}", rest.join(", "))],
    };
    let tasks = tasks(root, info.version)?;
    if let Some(wanted) = info.tasks.filter(|wanted| *wanted != tasks.len()) {
        return Err(lies(&place, "total_tasks", wanted, tasks.len()));
    }
    let meta = episodes(root, &info)?;
    if meta.len() != info.episodes {
        return Err(lies(&place, "total_episodes", info.episodes, meta.len()));
    }
    let declared = meta.iter().fold(0usize, |sum, episode| sum.saturating_add(episode.length));
    if declared != info.frames {
        return Err(lies(&place, "total_frames", info.frames, declared));
    }
    let mut steps = Steps {
        root: root.to_path_buf(),
        cameras,
        files: Vec::new(),
        tasks,
        episodes: Vec::new(),
        starts: Vec::new(),
        state_size,
        states: Vec::new(),
        action_size,
        actions: Vec::new(),
        task_of: Vec::new(),
        horizon: options.action_horizon,
        image: options.image,
        last: Mutex::new(None),
    };
    let mut files: BTreeMap<(usize, usize), Vec<EpisodeMeta>> = BTreeMap::new();
    meta.into_iter().for_each(|episode| files.entry(episode.file).or_default().push(episode));
    for ((chunk, file), episodes) in files {
        let path = info.data_file(root, chunk, file).map_err(named)?;
        guarded(&path, || steps.add_file(&path, &episodes, action, state))?;
    }
    Ok(Opened {
        source: Arc::new(steps),
        what: "steps of a robot",
        classes: BTreeMap::new(),
        targets: None,
        notes,
    })
}

/// The error of a count in `meta/info.json` that is not true.
fn lies(place: &Path, key: &str, declared: usize, found: usize) -> Error {
    Error::format(place, format!("{key} is {declared}, the data set has {found}"))
        .hint("files are missing, or the metadata is of another version: download the data set again")
}

/// The number of values of a numeric feature with one axis.
fn numeric(feature: &Feature) -> Result<usize> {
    let Feature { name, dtype, shape } = feature;
    let is_number =
        matches!(dtype.as_str(), "float16" | "float32" | "float64" | "int8" | "int16" | "int32" | "int64");
    match (is_number, &shape[..]) {
        (true, [size]) if (1..=100_000).contains(size) => Ok(*size),
        _ => Err(Error::input(format!(
            "the feature `{name}` is {dtype} of shape {shape:?}, expected a vector of numbers"
        ))),
    }
}

/// The instructions by their index.
fn tasks(root: &Path, version: Version) -> Result<HashMap<usize, String>> {
    let mut found = HashMap::new();
    if version == Version::V3 {
        let path = root.join("meta/tasks.parquet");
        return guarded(&path, || {
            let table = Table::open(&path)?;
            // pandas writes the index of its table under this name if it has none.
            let name = if table.has("task") { "task" } else { "__index_level_0__" };
            let (indices, texts) = (table.indices("task_index")?, table.texts(name)?);
            if texts.values.len() != indices.len() {
                return Err(Error::input("the instructions are lists, expected texts").at(&path));
            }
            found.extend(indices.into_iter().zip(texts.values));
            Ok(found)
        });
    }
    let path = root.join("meta/tasks.jsonl");
    each_row(&path, &mut |row| {
        let index = index_of(row, "task_index")?;
        let task = row["task"].as_str().ok_or_else(|| Error::input("there is no text `task`"))?;
        match found.insert(index, task.to_string()) {
            Some(_) => Err(Error::input(format!("the task_index {index} is there twice"))),
            None => Ok(()),
        }
    })?;
    Ok(found)
}

fn each_row(path: &Path, each: &mut dyn FnMut(&Value) -> Result<()>) -> Result<()> {
    let mut lines = Lines::open(path, MAX_LINE)?;
    while let Some((place, bytes)) = lines.next_line()? {
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let row = fauna_shared::json::parse(bytes);
        row.and_then(|row| each(&row)).map_err(|e| in_line(e, place.line, path))?;
    }
    Ok(())
}

fn index_of(row: &Value, key: &str) -> Result<usize> {
    let found = row[key].as_u64().and_then(|index| usize::try_from(index).ok());
    found.ok_or_else(|| Error::input(format!("there is no integer `{key}` of at least 0")))
}

/// The episodes in order of their indices.
fn episodes(root: &Path, info: &Info) -> Result<Vec<EpisodeMeta>> {
    let mut found: Vec<EpisodeMeta> = Vec::new();
    match info.version {
        Version::V2 => each_row(&root.join("meta/episodes.jsonl"), &mut |row| {
            let (index, length) = (index_of(row, "episode_index")?, index_of(row, "length")?);
            found.push(EpisodeMeta { index, length, file: (index / info.chunk_size, index) });
            Ok(())
        })?,
        Version::V3 => {
            let folder = root.join("meta/episodes");
            for chunk in entries(&folder)?.1 {
                for path in entries(&chunk)?.0 {
                    guarded(&path, || {
                        let table = Table::open(&path)?;
                        let (indices, lengths) = (table.indices("episode_index")?, table.indices("length")?);
                        let chunks = table.indices("data/chunk_index")?;
                        let files = table.indices("data/file_index")?;
                        let rows = indices.into_iter().zip(lengths).zip(chunks.into_iter().zip(files));
                        found.extend(rows.map(|((index, length), file)| EpisodeMeta { index, length, file }));
                        Ok(())
                    })?;
                }
            }
        }
    }
    found.sort_by_key(|episode| episode.index);
    if let Some(pair) = found.windows(2).find(|pair| pair[0].index == pair[1].index) {
        return Err(Error::input(format!("the metadata has the episode {} twice", pair[0].index))
            .at(root.join("meta")));
    }
    if let Some(empty) = found.iter().find(|episode| episode.length == 0) {
        return Err(Error::input(format!("the episode {} has no steps", empty.index)).at(root.join("meta")));
    }
    Ok(found)
}

impl Steps {
    /// Adds the steps of a file, which has the episodes of `wanted` one after the other.
    fn add_file(&mut self, path: &Path, wanted: &[EpisodeMeta], action: &str, state: &str) -> Result<()> {
        let table = Table::open(path)?;
        for camera in &self.cameras {
            table.check_bytes(camera)?;
        }
        let (episodes, frames) = (table.indices("episode_index")?, table.indices("frame_index")?);
        let tasks = table.indices("task_index")?;
        let actions = vectors(table.numbers(action)?, action, self.action_size).map_err(|e| e.at(path))?;
        let states = match self.state_size {
            0 => Vec::new(),
            size => vectors(table.numbers(state)?, state, size).map_err(|e| e.at(path))?,
        };
        let mut row = 0;
        for EpisodeMeta { index, length, .. } in wanted {
            for frame in 0..*length {
                let at = row + frame;
                let found = episodes.get(at).zip(frames.get(at));
                if found != Some((index, &frame)) {
                    let found = found.map_or("no row".to_string(), |(episode, frame)| {
                        format!("step {frame} of episode {episode}")
                    });
                    return Err(Error::format(
                        path,
                        format!(
                            "row {}: found {found}, expected step {frame} of episode {index}, which has {length} steps",
                            at + 1
                        ),
                    ));
                }
            }
            self.starts.push(self.task_of.len() + row);
            self.episodes.push(Episode { index: *index, length: *length, file: self.files.len(), row });
            row += length;
        }
        if row != episodes.len() {
            return Err(Error::format(
                path,
                format!("the file has {} rows, its episodes have {row}", episodes.len()),
            ));
        }
        if let Some(unknown) = tasks.iter().position(|task| !self.tasks.contains_key(task)) {
            return Err(
                Error::input(format!("row {}: there is no task {}", unknown + 1, tasks[unknown])).at(path)
            );
        }
        self.actions.extend(actions);
        self.states.extend(states);
        self.task_of.extend(tasks);
        self.files.push(path.to_path_buf());
        Ok(())
    }

    /// The episode of a step, by its position.
    fn episode_of(&self, step: usize) -> usize {
        self.starts.partition_point(|start| *start <= step).saturating_sub(1)
    }

    /// The table of a file; the last one that was read stays open.
    fn table(&self, file: usize) -> Result<Arc<Table>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, table)) = last.as_ref().filter(|(known, _)| *known == file) {
            return Ok(table.clone());
        }
        let path = &self.files[file];
        let table = Arc::new(guarded(path, || Table::open(path))?);
        *last = Some((file, table.clone()));
        Ok(table)
    }

    fn image(&self, camera: &str, file: usize, row: usize) -> Result<Image> {
        let path = &self.files[file];
        let named = |error: Error| error.context(format!("row {}, feature `{camera}`", row + 1)).at(path);
        let table = self.table(file)?;
        match guarded(path, || table.bytes(camera, "bytes", row))? {
            #[cfg(feature = "image")]
            Some(bytes) => fauna_shared::image::decode(&bytes, &self.image).map_err(named),
            #[cfg(not(feature = "image"))]
            Some(_) => Err(named(crate::dataset::without_feature("image", "pictures"))),
            None => {
                let name = guarded(path, || table.bytes(camera, "path", row))?;
                self.image_file(name.and_then(|name| String::from_utf8(name).ok())).map_err(named)
            }
        }
    }

    /// A picture whose row has the path of its file and no bytes.
    fn image_file(&self, name: Option<String>) -> Result<Image> {
        let name = name.ok_or_else(|| Error::input("the picture has neither bytes nor a path"))?;
        match media::load(&media::resolved(&self.root, &name)?, Media::Image, &self.image)? {
            Item::Image(image) => Ok(image),
            _ => Err(Error::input("expected a picture")),
        }
    }
}

/// The vectors of a feature, one after the other.
fn vectors(rows: Lists<f64>, name: &str, size: usize) -> Result<Vec<f64>> {
    for row in 0..rows.len() {
        let found = rows.row(row);
        if found.len() != size {
            return Err(Error::input(format!(
                "row {}: `{name}` has {} numbers, expected {size}",
                row + 1,
                found.len()
            )));
        }
        if let Some(odd) = found.iter().find(|value| !value.is_finite()) {
            return Err(Error::input(format!(
                "row {}: `{name}` has the value {odd}, expected finite numbers",
                row + 1
            )));
        }
    }
    Ok(rows.values)
}

impl Source for Steps {
    fn len(&self) -> usize {
        self.task_of.len()
    }

    fn get(&self, index: usize) -> Result<Example> {
        let at = self.episode_of(index);
        let (episode, start) = (&self.episodes[at], self.starts[at]);
        let frame = index - start;
        let last = episode.length - 1;
        let action = |step: usize| {
            let from = (start + step.min(last)) * self.action_size;
            self.actions[from..from + self.action_size].to_vec()
        };
        let row = episode.row + frame;
        let image = |camera: &String| Ok((camera.clone(), self.image(camera, episode.file, row)?));
        Ok(Example::Step(Step {
            images: self.cameras.iter().map(image).collect::<Result<_>>()?,
            instruction: self.tasks.get(&self.task_of[index]).cloned().unwrap_or_default(),
            state: self.states[index * self.state_size..(index + 1) * self.state_size].to_vec(),
            actions: (frame..frame + self.horizon).map(action).collect(),
            padding: (frame + self.horizon).saturating_sub(episode.length),
            episode: episode.index,
            frame,
        }))
    }

    fn group(&self, index: usize) -> usize {
        self.episode_of(index)
    }

    fn action_statistics(&self, key: &str, indices: &mut dyn Iterator<Item = usize>) -> Option<Value> {
        let chosen: Vec<usize> = indices.collect();
        let mut episodes: Vec<usize> = chosen.iter().map(|index| self.episode_of(*index)).collect();
        episodes.dedup();
        let mut found: [Vec<f64>; 6] = Default::default();
        for degree in 0..self.action_size {
            let value = |index: &usize| self.actions[index * self.action_size + degree];
            let mut values: Vec<f64> = chosen.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            let count = values.len() as f64;
            let mean = values.iter().sum::<f64>() / count;
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
            let quantiles = [0.0, 1.0, 0.01, 0.99].map(|share| quantile(&values, share));
            for (list, value) in found.iter_mut().zip([mean, variance.sqrt()].into_iter().chain(quantiles)) {
                list.push(value);
            }
        }
        let [mean, std, min, max, q01, q99] = found;
        Some(json!({key: {
            "action": {"mean": mean, "std": std, "min": min, "max": max, "q01": q01, "q99": q99},
            "num_transitions": chosen.len(),
            "num_trajectories": episodes.len(),
        }}))
    }
}

/// Quantile of sorted `values`, at least one, with linear interpolation.
fn quantile(values: &[f64], share: f64) -> f64 {
    let rank = share * (values.len() - 1) as f64;
    let (below, above) = (rank.floor() as usize, rank.ceil() as usize);
    values[below] + (values[above] - values[below]) * (rank - below as f64)
}
