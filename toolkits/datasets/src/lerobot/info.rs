//! `meta/info.json`: what a data set declares.

use std::path::{Component, Path, PathBuf};

use fauna_shared::{Error, Result, json};
use serde_json::Value;

/// The layout of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// 2.0 and 2.1: one file per episode.
    V2,
    /// 3.0: several episodes per file.
    V3,
}

/// A feature of a data set.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Feature {
    pub name: String,
    pub dtype: String,
    /// Sizes of the axes.
    pub shape: Vec<usize>,
}

/// The declarations of `meta/info.json`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Info {
    pub version: Version,
    pub episodes: usize,
    pub frames: usize,
    pub tasks: Option<usize>,
    pub chunk_size: usize,
    /// Template of the paths of data files.
    pub data_path: String,
    pub features: Vec<Feature>,
}

impl Info {
    pub fn read(path: &Path) -> Result<Self> {
        let value = json::read(path)?;
        parse(&value).map_err(|e| e.at(path))
    }

    /// The data file of an episode, or of a chunk and file.
    pub fn data_file(&self, root: &Path, chunk: usize, file: usize) -> Result<PathBuf> {
        let numbers =
            [("episode_chunk", chunk), ("episode_index", file), ("chunk_index", chunk), ("file_index", file)];
        let relative = expand(&self.data_path, &numbers)?;
        let is_inside = Path::new(&relative).components().all(|part| matches!(part, Component::Normal(_)));
        match is_inside {
            true => Ok(root.join(relative)),
            false => Err(Error::input(format!(
                "data_path is \"{}\", which leaves the folder of the data set",
                self.data_path
            ))),
        }
    }

    pub fn feature(&self, name: &str) -> Result<&Feature> {
        self.features.iter().find(|feature| feature.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.features.iter().map(|feature| feature.name.as_str()).collect();
            Error::input(format!("no feature is called `{name}`"))
                .hint(format!("the features: {}", names.join(", ")))
        })
    }
}

fn parse(value: &Value) -> Result<Info> {
    let wrong = |key: &str, expected: &str| {
        Error::input(format!("{key}: expected {expected}, found {}", short(&value[key])))
    };
    let count = |key: &str| {
        value[key].as_u64().and_then(|count| usize::try_from(count).ok()).ok_or_else(|| wrong(key, "a count"))
    };
    let version = value["codebase_version"].as_str().unwrap_or_default();
    let version = match version.trim_start_matches('v') {
        "2.0" | "2.1" => Version::V2,
        "3.0" => Version::V3,
        _ => {
            return Err(Error::unsupported(format!(
                "codebase_version is {}, expected \"v2.0\", \"v2.1\" or \"v3.0\"",
                short(&value["codebase_version"])
            ))
            .hint("convert the data set with the scripts of LeRobot"));
        }
    };
    let default_path = match version {
        Version::V2 => "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        Version::V3 => "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    };
    let data_path = match &value["data_path"] {
        Value::Null => default_path.to_string(),
        Value::String(path) => path.clone(),
        _ => return Err(wrong("data_path", "a template of a path")),
    };
    let features = value["features"].as_object().ok_or_else(|| wrong("features", "an object"))?;
    let feature = |(name, about): (&String, &Value)| {
        let wrong = |key: &str, expected: &str| {
            Error::input(format!("features.{name}.{key}: expected {expected}, found {}", short(&about[key])))
        };
        let dtype = about["dtype"].as_str().ok_or_else(|| wrong("dtype", "a name"))?.to_string();
        let size = |size: &Value| size.as_u64().and_then(|size| usize::try_from(size).ok());
        let shape: Option<Vec<usize>> =
            about["shape"].as_array().and_then(|sizes| sizes.iter().map(size).collect());
        Ok(Feature {
            name: name.clone(),
            dtype,
            shape: shape.ok_or_else(|| wrong("shape", "a list of sizes"))?,
        })
    };
    let chunk_size = match value["chunks_size"] {
        Value::Null => 1000,
        _ => count("chunks_size")?.max(1),
    };
    let tasks = if value["total_tasks"].is_null() { None } else { Some(count("total_tasks")?) };
    Ok(Info {
        version,
        episodes: count("total_episodes")?,
        frames: count("total_frames")?,
        tasks,
        chunk_size,
        data_path,
        features: features.iter().map(feature).collect::<Result<_>>()?,
    })
}

fn short(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_string(),
        value => format!("{:.60}", value.to_string()),
    }
}

/// Puts numbers into a template of Python: `{name}` or `{name:03d}`.
fn expand(template: &str, numbers: &[(&str, usize)]) -> Result<String> {
    let wrong = || {
        let known: Vec<&str> = numbers.iter().map(|(name, _)| *name).collect();
        Error::input(format!(
            "data_path is \"{template}\", expected a path with the fields {}",
            known.join(", ")
        ))
    };
    let (mut path, mut rest) = (String::new(), template);
    while let Some((before, after)) = rest.split_once('{') {
        let (field, later) = after.split_once('}').ok_or_else(wrong)?;
        let (name, format) = field.split_once(':').unwrap_or((field, "d"));
        let (_, number) = numbers.iter().find(|(known, _)| *known == name).ok_or_else(wrong)?;
        let digits = format.strip_suffix('d').ok_or_else(wrong)?;
        let width: usize = if digits.is_empty() {
            0
        } else {
            digits.parse().ok().filter(|width| *width <= 20).ok_or_else(wrong)?
        };
        path.push_str(before);
        path.push_str(&format!("{number:0width$}"));
        rest = later;
    }
    path.push_str(rest);
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_of_templates() {
        let numbers = [("episode_chunk", 0), ("episode_index", 42)];
        let made =
            expand("data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet", &numbers).unwrap();
        assert_eq!(made, "data/chunk-000/episode_000042.parquet");
        assert_eq!(expand("a{episode_index}", &numbers).unwrap(), "a42");
        for wrong in ["{episode", "{other}", "{episode_index:03x}", "{episode_index:999999d}"] {
            assert!(expand(wrong, &numbers).unwrap_err().to_string().contains("data_path"), "{wrong}");
        }
    }
}
