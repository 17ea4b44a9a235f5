//! Episodes of robots.

use std::path::Path;

use fauna_shared::train::{Example, Step};
use fauna_tabletop::{Expert, SceneConfig, run_episode};

use super::{copy, default, fixture, refused};
use crate::{Dataset, DatasetKind, DatasetOptions, EpisodeFrame, RobotEpisode, WriteOptions, write_episodes};

fn steps(dataset: &Dataset) -> Vec<Step> {
    let step = |example: fauna_shared::Result<Example>| match example.unwrap() {
        Example::Step(step) => step,
        other => panic!("{other:?}"),
    };
    dataset.train().examples().map(step).collect()
}

#[test]
fn both_layouts_have_the_same_steps() {
    for version in ["v2", "v3"] {
        let dataset = Dataset::open(fixture(version), &default().with_action_horizon(2)).unwrap();
        assert_eq!(dataset.kind(), DatasetKind::Robot);
        assert!(
            dataset.notes()[0].ends_with("features that are not read: next.reward"),
            "{:?}",
            dataset.notes()
        );
        let found = steps(&dataset);
        let expected = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)];
        assert_eq!(found.len(), expected.len());
        for (step, (episode, frame)) in found.iter().zip(expected) {
            assert_eq!((step.episode, step.frame), (episode, frame));
            assert_eq!(step.instruction, ["push the cube", "lift the cube"][episode]);
            assert_eq!(step.state, [episode as f64, frame as f64, 0.5]);
            let last = [2, 1][episode];
            let next = [[episode, frame], [episode, (frame + 1).min(last)]];
            assert_eq!(step.actions, next.map(|action| action.map(|value| value as f64).to_vec()));
            assert_eq!(step.padding, usize::from(frame == last));
            let (camera, image) = &step.images[0];
            assert_eq!((camera.as_str(), image.height, image.width), ("observation.images.top", 3, 4));
            assert_eq!(image.rgb[..3], [(100 * episode + frame) as u8, 10, 20]);
        }
        let statistics = dataset.action_statistics("arm").unwrap();
        assert_eq!(statistics["arm"]["action"]["max"], serde_json::json!([1.0, 2.0]));
        assert_eq!(
            (&statistics["arm"]["num_transitions"], &statistics["arm"]["num_trajectories"]),
            (&5.into(), &2.into())
        );
        let dataset = Dataset::open(fixture(version), &default().with_valid_fraction(0.3)).unwrap();
        let episodes: Vec<usize> = steps(&dataset).iter().map(|step| step.episode).collect();
        assert!(episodes.iter().all(|episode| *episode == episodes[0]), "episodes are held out as a whole");
    }
}

#[test]
fn features_are_left_out_and_renamed() {
    let options = default().without("observation.images.top").without("observation.state");
    let found = steps(&Dataset::open(fixture("v2"), &options).unwrap());
    assert!(found[0].images.is_empty() && found[0].state.is_empty());
    let options = default().with_column("state", "action").without("observation.state");
    assert_eq!(steps(&Dataset::open(fixture("v2"), &options).unwrap())[4].state, [1.0, 1.0]);
    refused(Dataset::open(fixture("v2"), &default().without("camera")), &["no feature is called `camera`"]);
    refused(Dataset::open(fixture("v2"), &default().without("action")), &["cannot be left out"]);
    refused(
        Dataset::open(fixture("v2"), &default().with_column("action", "next.actions")),
        &["no feature is called `next.actions`"],
    );
}

/// Opens a copy of a data set after a replacement in one of its text files.
fn changed(
    version: &str,
    file: &str,
    from: &str,
    to: &str,
    options: &DatasetOptions,
) -> fauna_shared::Result<Dataset> {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture(version), folder.path());
    let path = folder.path().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
    Dataset::open(folder.path(), options)
}

#[test]
fn videos_are_refused_by_name_or_left_out() {
    let video = "\"features\": {\"observation.images.side\": {\"dtype\": \"video\", \"shape\": [3, 4, 3], \"names\": null},";
    let open = |options: &DatasetOptions| changed("v3", "meta/info.json", "\"features\": {", video, options);
    refused(
        open(&default()),
        &[
            "info.json: the feature `observation.images.side` is a video",
            "convert it to images",
            "DatasetOptions::without",
        ],
    );
    assert_eq!(open(&default().without("observation.images.side")).unwrap().train().len(), 5);
}

#[test]
fn metadata_that_is_not_true_is_refused() {
    for version in ["v2", "v3"] {
        for (from, to, part) in [
            ("\"total_frames\": 5", "\"total_frames\": 6", "total_frames is 6, the data set has 5"),
            ("\"total_episodes\": 2", "\"total_episodes\": 3", "total_episodes is 3, the data set has 2"),
            ("\"total_tasks\": 2", "\"total_tasks\": 1", "total_tasks is 1, the data set has 2"),
            ("\"total_frames\": 5", "\"total_frames\": -5", "total_frames: expected a count, found -5"),
            ("\"codebase_version\": \"v", "\"codebase_version\": \"v9", "codebase_version is \"v9"),
            ("\"data_path\": \"data", "\"data_path\": \"../data", "leaves the folder"),
            ("_index:03d}", "_index:03x}", "data_path is"),
            ("\"dtype\": \"float32\"", "\"dtype\": \"string\"", "`observation.state` is string"),
            ("\"action\": {", "\"act\": {", "no feature is called `action`"),
        ] {
            if version == "v2" && from.contains("03d") {
                continue;
            }
            refused(changed(version, "meta/info.json", from, to, &default()), &["info.json", part]);
        }
        let error =
            changed(version, "meta/info.json", "\"shape\": [\n    2\n", "\"shape\": [\n    3\n", &default());
        refused(error, &[".parquet", "row 1: `action` has 2 numbers, expected 3"]);
    }
    let error = changed("v2", "meta/episodes.jsonl", "\"length\": 3", "\"length\": 4", &default());
    refused(error, &["total_frames is 5, the data set has 6"]);
    let error = changed("v2", "meta/episodes.jsonl", "\"length\": 2", "\"length\": ", &default());
    refused(error, &["episodes.jsonl: line 2: not JSON"]);
    let error =
        changed("v2", "meta/episodes.jsonl", "\"episode_index\": 1", "\"episode_index\": 0", &default());
    refused(error, &["the episode 0 twice"]);
    let error = changed("v2", "meta/tasks.jsonl", "\"task_index\": 1", "\"task_index\": 7", &default());
    refused(error, &["episode_000001.parquet: row 1: there is no task 1"]);
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture("v2"), folder.path());
    let data = folder.path().join("data/chunk-000");
    std::fs::copy(data.join("episode_000000.parquet"), data.join("episode_000001.parquet")).unwrap();
    refused(
        Dataset::open(folder.path(), &default()),
        &["row 1: found step 0 of episode 0, expected step 0 of episode 1"],
    );
    std::fs::remove_file(data.join("episode_000001.parquet")).unwrap();
    refused(Dataset::open(folder.path(), &default()), &["episode_000001.parquet: cannot read"]);
}

#[test]
fn columns_of_another_type_and_values_that_are_no_numbers_are_refused() {
    for (file, parts) in [
        ("texts", &["the column `action` is of the type String, expected numbers"][..]),
        ("nulls", &["column `action`: a null at or before row 3"]),
        ("nan", &["row 2: `action` has the value NaN, expected finite numbers"]),
        ("short", &["row 3: `action` has 1 numbers, expected 2"]),
        ("paths", &["no column is called `observation.images.top.bytes`"]),
        ("without", &["no column is called `action`", "the columns: observation.images.top"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        copy(&fixture("v2"), folder.path());
        let path = folder.path().join("data/chunk-000/episode_000000.parquet");
        std::fs::copy(fixture("wrong").join(format!("{file}.parquet")), path).unwrap();
        let error = refused(Dataset::open(folder.path(), &default()), parts);
        assert!(error.place().is_some_and(|place| place.ends_with("episode_000000.parquet")), "{error}");
    }
    let image = "\"next.reward\": {\n   \"dtype\": \"float32\"";
    let error = changed("v2", "meta/info.json", image, &image.replace("float32", "image"), &default());
    refused(error, &["no column is called `next.reward.bytes`"]);
}

#[test]
fn episodes_of_the_table_top_are_written_and_read() {
    let config = SceneConfig { image_size: 16, ..SceneConfig::default() };
    let recorded: Vec<_> = (0..2).map(|seed| run_episode(&Expert, seed, &config).unwrap()).collect();
    let episodes: Vec<RobotEpisode> = recorded.iter().map(RobotEpisode::of_tabletop).collect();
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("tabletop");
    let options = WriteOptions::new("tabletop", 10, &["top"]);
    let count = write_episodes(&folder, &episodes, &options).unwrap();
    let dataset = Dataset::open(&folder, &default()).unwrap();
    let found = steps(&dataset);
    let written: Vec<(&str, &EpisodeFrame)> = episodes
        .iter()
        .flat_map(|episode| episode.frames.iter().map(|frame| (episode.instruction.as_str(), frame)))
        .collect();
    assert_eq!((found.len(), written.len()), (count, count));
    let narrow = |values: &[f64]| values.iter().map(|value| f64::from(*value as f32)).collect::<Vec<f64>>();
    for (step, (instruction, frame)) in found.iter().zip(&written) {
        assert_eq!(step.instruction, *instruction);
        assert_eq!(step.state, narrow(&frame.state));
        assert_eq!(step.actions, [narrow(&frame.action)]);
        assert_eq!(step.images[0].1, frame.images[0]);
    }
    let stored = fauna_tabletop::dataset_statistics("tabletop", &recorded).unwrap();
    let read = dataset.action_statistics("tabletop").unwrap();
    for key in ["mean", "std", "min", "max", "q01", "q99"] {
        for degree in 0..7 {
            let of = |value: &serde_json::Value| value["tabletop"]["action"][key][degree].as_f64().unwrap();
            assert!((of(&stored) - of(&read)).abs() < 1e-6, "{key} {degree}");
        }
    }
    refused(write_episodes(&folder, &episodes, &options), &["the folder exists already"]);
}

#[test]
fn episodes_that_cannot_be_written_are_refused_before_anything_is() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("new");
    let frame = EpisodeFrame { images: Vec::new(), state: vec![1.0], action: vec![1.0] };
    let write = |frames: Vec<EpisodeFrame>, options: &WriteOptions| {
        write_episodes(&folder, &[RobotEpisode { instruction: "go".to_string(), frames }], options)
    };
    let options = WriteOptions::new("arm", 10, &[]);
    let odd = |state: Vec<f64>, action: Vec<f64>| EpisodeFrame { images: Vec::new(), state, action };
    refused(write_episodes(&folder, &[], &options), &["no episodes"]);
    refused(write(vec![], &options), &["episode 0 has no steps"]);
    refused(
        write(vec![frame.clone(), odd(vec![], vec![1.0])], &options),
        &["step 1 of episode 0: the state has 0 numbers, the first one 1"],
    );
    refused(
        write(vec![odd(vec![1.0], vec![f64::NAN])], &options),
        &["step 0 of episode 0: the action has the value NaN"],
    );
    refused(write(vec![odd(vec![1.0], vec![1e300])], &options), &["expected finite float32"]);
    refused(write(vec![frame.clone()], &WriteOptions::new("arm", 0, &[])), &["at least 1"]);
    refused(
        write(vec![frame.clone()], &WriteOptions::new("arm", 1, &["top"])),
        &["0 pictures, and there are 1 cameras"],
    );
    refused(
        write(vec![frame.clone()], &WriteOptions::new("arm", 1, &["a/b"])),
        &["a camera is called \"a/b\""],
    );
    assert!(!Path::new(&folder).exists());
    // A file in the way of one that is to be written.
    let partial = temporary.path().join(format!(".new.{}.partial", std::process::id()));
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join("data"), "").unwrap();
    let error = write(vec![frame.clone()], &options).unwrap_err();
    assert_eq!(error.kind(), fauna_shared::ErrorKind::Io, "{error}");
    assert!(!folder.exists() && !partial.exists());
    assert_eq!(write(vec![frame], &options).unwrap(), 1);
    let dataset = Dataset::open(&folder, &default()).unwrap();
    assert!(steps(&dataset)[0].images.is_empty());
}
