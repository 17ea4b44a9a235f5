//! Tests of the whole program: time series.

#[allow(dead_code, reason = "shared with the tests of other commands, which use all of it")]
#[path = "support/program.rs"]
mod program;

use std::path::{Path, PathBuf};

use program::{Done, json_lines, refused, run, served, text};
use tempfile::TempDir;

/// Returns a folder with `sales.csv`: two series of 28 days with weekly seasonality, the second twice the first, and a
/// covariate `price`.
fn sales() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sales.csv");
    let mut rows = "unique_id,ds,y,price\n".to_string();
    for (shop, factor) in [("north", 1), ("south", 2)] {
        for day in 0..28 {
            rows.push_str(&format!(
                "{shop},2024-02-{:02},{},{}\n",
                day + 1,
                factor * (10 + day % 7),
                day % 3
            ));
        }
    }
    std::fs::write(&path, rows).unwrap();
    (folder, path)
}

/// Appends `rows` to a file.
fn add(path: &Path, rows: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    std::fs::write(path, text + rows).unwrap();
}

fn series(path: &Path, more: &[&str]) -> Done {
    run(&[&["forecast", "seasonal-naive", "--series", text(path), "--quiet"], more].concat())
}

#[test]
fn a_forecast_is_printed_or_written_and_plotted() {
    let (folder, path) = sales();
    let printed = series(&path, &["--horizon", "3", "--level", "90,80"]);
    served(&printed);
    let lines: Vec<&str> = printed.out.lines().collect();
    let columns = "SeasonalNaive-lo-90,SeasonalNaive-lo-80,SeasonalNaive-hi-80,SeasonalNaive-hi-90";
    assert_eq!(lines[0], format!("unique_id,ds,SeasonalNaive,{columns}"));
    // 2024 is a leap year. The season repeats exactly, so that the intervals have zero width.
    assert_eq!(lines[1], "north,2024-02-29,10,10,10,10,10");
    assert_eq!(lines[6], "south,2024-03-02,24,24,24,24,24");

    let (out, plot) = (folder.path().join("out.csv"), folder.path().join("out.png"));
    let both = ["--horizon", "3", "--level", "90,80", "--out", text(&out), "--plot", text(&plot)];
    let wrote = series(&path, &both);
    served(&wrote);
    assert_eq!(wrote.out, "");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), printed.out);
    assert!(std::fs::read(&plot).unwrap().starts_with(b"\x89PNG"));
    refused(&series(&path, &both), 2, &["out.csv", "--force"]);
    served(&series(&path, &[&both[..], &["--force"]].concat()));
}

#[test]
fn json_output_has_the_requested_quantiles() {
    let (_folder, path) = sales();
    let done = run(&[
        "forecast",
        "naive",
        "--series",
        text(&path),
        "--horizon",
        "1",
        "--quantiles",
        "0.5,0.1",
        "--json",
        "--quiet",
    ]);
    served(&done);
    let rows = json_lines(&done.out);
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[1]["unique_id"], "south");
    assert_eq!((&rows[1]["ds"], rows[1]["Naive"].as_f64()), (&"2024-02-29".into(), Some(32.0)));
    assert!(rows[1]["Naive-q-10"].as_f64() < rows[1]["Naive-q-50"].as_f64());
}

#[test]
fn an_invalid_series_is_reported_and_the_others_are_forecast() {
    let (_folder, path) = sales();
    add(
        &path,
        "late,2024-03-02,1,1\nlate,2024-03-01,1,1\ntwice,2024-03-01,1,1\ntwice,2024-03-01,1,1\nempty,2024-03-01,,1\n",
    );
    let done = series(&path, &["--horizon", "1"]);
    refused(
        &done,
        2,
        &["series `late`: line 59", "2024-03-01 comes after 2024-03-02", "series `twice`", "is there twice"],
    );
    assert!(done.err.contains("series `empty` has no value"), "{}", done.err);
    assert_eq!(done.out.lines().count(), 3);
}

#[test]
fn invalid_arguments_are_errors() {
    let (folder, path) = sales();
    refused(&series(&path, &[]), 2, &["--horizon"]);
    refused(&series(&path, &["--horizon", "0"]), 2, &["the horizon must be 1 to"]);
    refused(
        &series(&path, &["--horizon", "1", "--level", "100"]),
        2,
        &["a level must be from 0 to less than 100"],
    );
    refused(&series(&path, &["--horizon", "1", "--freq", "fortnight"]), 2, &["is not a frequency"]);
    refused(
        &series(&path, &["--horizon", "1", "--time-col", "day"]),
        2,
        &["no column is called `day`", "unique_id, ds, y"],
    );
    refused(&series(&folder.path().join("none.csv"), &["--horizon", "1"]), 2, &["none.csv"]);
    refused(
        &run(&["forecast", "minilm", "--series", text(&path), "--horizon", "1"]),
        2,
        &["does not support forecast"],
    );
    let long = series(&path, &["--horizon", "10", "--cross-validation", "3"]);
    refused(&long, 2, &["series `north` has 28 steps", "need 32", "none of 2 series"]);
}

#[test]
fn cross_validation_prints_rows_or_scores() {
    let (folder, path) = sales();
    let ask = ["--horizon", "2", "--cross-validation", "3", "--step-size", "1"];
    let rows = series(&path, &ask);
    served(&rows);
    let lines: Vec<&str> = rows.out.lines().collect();
    assert_eq!(lines[..2], ["unique_id,ds,cutoff,y,SeasonalNaive", "north,2024-02-25,2024-02-24,13,13"]);
    assert_eq!(lines.len(), 1 + 2 * 3 * 2);

    let out = folder.path().join("trial.csv");
    let scores = series(&path, &[&ask[..], &["--out", text(&out)]].concat());
    served(&scores);
    assert!(scores.out.starts_with("series  model"), "{}", scores.out);
    assert!(
        scores.out.lines().any(|line| line.starts_with("all") && line.contains("Naive")),
        "{}",
        scores.out
    );
}

#[test]
fn anomalies_are_flagged() {
    let (folder, path) = sales();
    let table =
        std::fs::read_to_string(&path).unwrap().replace("north,2024-02-20,15,", "north,2024-02-20,90,");
    std::fs::write(&path, table).unwrap();
    let plot = folder.path().join("found.png");
    let ask = ["anomalies", "seasonal-naive", "--series", text(&path), "--horizon", "1", "--quiet"];
    let done = run(&[&ask[..], &["--plot", text(&plot)]].concat());
    served(&done);
    let flagged: Vec<&str> = done.out.lines().filter(|line| line.ends_with("true")).collect();
    assert!(flagged[0].starts_with("north,2024-02-20,90,"), "{flagged:?}");
    assert!(plot.exists());
}

#[test]
fn future_covariates_are_checked() {
    let (folder, path) = sales();
    let future = folder.path().join("future.csv");
    std::fs::write(&future, "unique_id,ds,price\nnorth,2024-02-29,1\n").unwrap();
    let done = series(&path, &["--horizon", "1", "--future", text(&future)]);
    refused(&done, 2, &["series `south` is not in the table of future covariates"]);
    assert_eq!(done.out.lines().count(), 2);
}
