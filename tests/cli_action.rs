//! Tests of the whole program: robot policies.

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[allow(dead_code, reason = "shared with the tests of other commands, which use all of it")]
#[path = "support/program.rs"]
mod program;

use std::path::Path;
use std::sync::LazyLock;
use std::time::Instant;

use fauna::{Image, image};
use program::{json_lines, refused, run, run_with, text};
use serde_json::json;
use tempfile::TempDir;

const DEGREES: [&str; 7] = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"];

/// A small OpenVLA with the statistics of two robots.
static MODEL: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = checkpoint::with_words("openvla", "<s>", "</s>");
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let statistics = |size: f64| json!({"action": {"q01": vec![-size; 7], "q99": vec![size; 7], "mask": [true, true, true, true, true, true, false]}});
    config["norm_stats"] = json!({"small_arm": statistics(0.01), "large_arm": statistics(1.0)});
    std::fs::write(path, config.to_string()).unwrap();
    folder
});

/// The same model with the statistics of robots of 7, 14 and 3 degrees of freedom; their keys are not sorted by size.
static ROBOTS: LazyLock<TempDir> = LazyLock::new(|| {
    let statistics = |dim: usize| {
        let (low, high): (Vec<usize>, Vec<usize>) = (0..dim).map(|i| (10 * i, 10 * i + 2)).unzip();
        json!({"action": {"q01": low, "q99": high}})
    };
    let mut named = statistics(3);
    named["action"]["names"] = json!(["wheel", "lift", "brush"]);
    let sets =
        json!({"arm": statistics(7), "both_arms": statistics(14), "rail": statistics(3), "sweeper": named});
    with_statistics(&sets)
});

/// Returns a copy of the small model with these action statistics.
fn with_statistics(sets: &serde_json::Value) -> TempDir {
    let folder = program::copy_of(text(MODEL.path()));
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["norm_stats"] = sets.clone();
    std::fs::write(path, config.to_string()).unwrap();
    folder
}

fn frame(folder: &Path, name: &str, shade: u8) -> std::path::PathBuf {
    let rgb = (0..48 * 40 * 3).map(|i| (i * 7 % 200) as u8 ^ shade).collect();
    let path = folder.join(name);
    image::write(&path, &Image { width: 48, height: 40, rgb }).unwrap();
    path
}

#[test]
fn an_action_is_predicted_from_an_image_and_an_instruction_in_its_units() {
    let folder = tempfile::tempdir().unwrap();
    let frame = frame(folder.path(), "frame.png", 0);
    let ask = ["act", text(MODEL.path()), "--image", text(&frame), "--instruction", "shape the red car"];
    let done = run(&[&ask[..], &["--unnorm-key", "small_arm"]].concat());
    assert_eq!(done.status, 0, "{}", done.err);
    assert_eq!(done.out.lines().count(), 1, "{}", done.out);
    for part in ["frame.png", "x ", " m  y ", " rad", "gripper ", "closed"] {
        assert!(done.out.contains(part), "{part} is not in: {}", done.out);
    }
    let action = |key: &str| {
        let done = run(&[&ask[..], &["--unnorm-key", key, "--json"]].concat());
        assert_eq!(done.status, 0, "{}", done.err);
        let line = json_lines(&done.out).remove(0);
        assert!(line["time"].as_f64().unwrap() >= line["seconds"].as_f64().unwrap());
        assert_eq!((&line["units"]["x"], &line["units"]["yaw"]), (&json!("m"), &json!("rad")));
        DEGREES.map(|degree| line["action"][degree].as_f64().unwrap())
    };
    let (small, large) = (action("small_arm"), action("large_arm"));
    for (small, large) in small.iter().zip(&large).take(6) {
        assert!((small * 100.0 - large).abs() < 1e-9 && small.abs() <= 0.01);
    }
    assert_eq!(small[6], large[6], "the gripper is not scaled");
}

/// Writes a PNG of the same pixels as [`frame`] with shade 0, with this alpha.
fn seen_through(path: &Path, alpha: u8) {
    let rgba = (0..48 * 40).flat_map(|i| {
        let [r, g, b] = [0, 1, 2].map(|c| ((3 * i + c) * 7 % 200) as u8);
        [r, g, b, alpha]
    });
    let mut encoder = png::Encoder::new(std::fs::File::create(path).unwrap(), 48, 40);
    encoder.set_color(png::ColorType::Rgba);
    encoder.write_header().unwrap().write_image_data(&rgba.collect::<Vec<u8>>()).unwrap();
}

#[test]
fn a_policy_drops_the_alpha_channel_like_its_reference() {
    let folder = tempfile::tempdir().unwrap();
    let plain = frame(folder.path(), "plain.png", 0);
    let action = |path: &Path| {
        let asked = ["--instruction", "shape the red car", "--unnorm-key", "large_arm", "--json"];
        let done = run(&[&["act", text(MODEL.path()), "--image", text(path)], &asked[..]].concat());
        assert_eq!(done.status, 0, "{}", done.err);
        json_lines(&done.out).remove(0)["action"].clone()
    };
    for alpha in [0, 1, 128, 255] {
        let clear = folder.path().join(format!("clear{alpha}.png"));
        seen_through(&clear, alpha);
        assert_eq!(action(&clear), action(&plain), "alpha {alpha}");
    }
}

#[test]
fn frames_of_a_folder_are_in_natural_order() {
    let folder = tempfile::tempdir().unwrap();
    let order = ["frame_1.png", "Frame_2.png", "frame_009.png", "frame_10.png", "frame_100.png"];
    for (i, name) in order.iter().enumerate() {
        frame(folder.path(), name, i as u8);
    }
    let ask = ["--instruction", "shape the red car", "--unnorm-key", "large_arm", "--json"];
    let done = run(&[&["act", text(MODEL.path()), "--frames", text(folder.path())], &ask[..]].concat());
    assert_eq!(done.status, 0, "{}", done.err);
    let lines = json_lines(&done.out);
    let names: Vec<&str> =
        lines.iter().map(|line| line["frame"].as_str().unwrap().rsplit('/').next().unwrap()).collect();
    assert_eq!(names, order);
}

#[test]
fn frames_are_read_from_a_folder_or_from_json_lines_with_their_times() {
    let folder = tempfile::tempdir().unwrap();
    for (i, name) in ["1.png", "2.png", "3.png"].iter().enumerate() {
        frame(folder.path(), name, i as u8 * 3);
    }
    std::fs::write(folder.path().join("4.png"), "no picture").unwrap();
    let ask = [
        "act",
        text(MODEL.path()),
        "--instruction",
        "shape the red car",
        "--unnorm-key",
        "small_arm",
        "--json",
    ];
    let begun = Instant::now();
    let done = run(&[&ask[..], &["--frames", text(folder.path()), "--rate", "5"]].concat());
    assert!(begun.elapsed().as_secs_f64() > 0.6, "the fourth frame is processed after 0.6 seconds");
    // The last one is not an image: it is reported, and actions are predicted for the others.
    refused(&done, 2, &["4.png"]);
    let lines = json_lines(&done.out);
    let times: Vec<f64> = lines.iter().map(|line| line["time"].as_f64().unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert!(times[1] >= 0.2 && times[2] >= 0.4, "{times:?}");

    let file = |name: &str| folder.path().join(name).display().to_string();
    let stdin = [
        json!({"image": file("1.png")}).to_string(),
        "{\"picture\": 1}".to_string(),
        String::new(),
        json!({"image": file("1.png"), "instruction": "a blue cat", "state": [0.5]}).to_string(),
        json!({"image": file("3.png")}).to_string(),
    ];
    let done = run_with(&[&ask[..], &["--frames", "-"]].concat(), stdin.join("\n").as_bytes());
    refused(&done, 2, &["line 2", "picture", "{\"image\": \"frame.png\"}"]);
    let streamed = json_lines(&done.out);
    assert_eq!(streamed.len(), 3);
    assert_eq!(streamed[0]["action"], lines[0]["action"]);
    assert_eq!(streamed[1]["instruction"], json!("a blue cat"));
}

#[test]
fn all_degrees_of_freedom_are_printed_for_any_robot() {
    let folder = tempfile::tempdir().unwrap();
    let frame = frame(folder.path(), "frame.png", 0);
    let ask = ["act", text(ROBOTS.path()), "--image", text(&frame), "--instruction", "shape the red car"];
    let numbered = |count: usize| (0..count).map(|i| format!("a{i}")).collect::<Vec<_>>();
    let cases = [
        ("arm", DEGREES.map(String::from).to_vec()),
        ("both_arms", numbered(14)),
        ("rail", numbered(3)),
        ("sweeper", ["wheel", "lift", "brush"].map(String::from).to_vec()),
    ];
    for (key, names) in cases {
        let ask = [&ask[..], &["--unnorm-key", key]].concat();
        let done = run(&[&ask[..], &["--json"]].concat());
        assert_eq!(done.status, 0, "{key}: {}", done.err);
        let line = json_lines(&done.out).remove(0);
        let told: Vec<(&String, f64)> =
            line["action"].as_object().unwrap().iter().map(|(name, n)| (name, n.as_f64().unwrap())).collect();
        assert_eq!(told.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
        assert_eq!(line["units"].as_object().unwrap().len(), names.len());
        // Number i lies between its own percentiles, 10 i and 10 i + 2.
        for (i, (name, number)) in told.iter().enumerate() {
            assert!((10.0 * i as f64..=10.0 * i as f64 + 2.0).contains(number), "{key}: {name} is {number}");
        }
        let words = run(&ask).out;
        for (name, number) in told {
            let sign = if name == "gripper" { format!("{number:.3}") } else { format!("{number:+.4}") };
            assert!(words.contains(&format!("  {name} {sign}")), "{key}: {name} {sign} is not in: {words}");
        }
    }
    refused(&run(&ask), 2, &["unnorm_key is required", "arm, both_arms, rail, sweeper"]);
    refused(&run(&[&ask[..], &["--unnorm-key", "bot_arms"]].concat()), 2, &["bot_arms", "both_arms"]);
}

#[test]
fn inconsistent_statistics_are_an_error_with_both_counts() {
    let folder = tempfile::tempdir().unwrap();
    let frame = frame(folder.path(), "frame.png", 0);
    let cases = [
        (json!({"q01": [0, 0, 0], "q99": [1, 1, 1], "mask": [true, false]}), ["q01 has 3", "mask 2"]),
        (json!({"q01": [0, 0, 0], "q99": [1, 1]}), ["q01 has 3", "q99 2"]),
        (json!({"q01": [0, 0], "q99": [1, 1], "names": ["left"]}), ["1 names", "2 numbers"]),
    ];
    for (action, words) in cases {
        let model = with_statistics(&json!({"odd_arm": {"action": action}}));
        let done =
            run(&["act", text(model.path()), "--image", text(&frame), "--instruction", "shape the red car"]);
        refused(&done, 2, &[&["odd_arm"], &words[..]].concat());
    }
}

#[test]
fn invalid_arguments_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let frame = frame(folder.path(), "frame.png", 0);
    let ask = ["act", text(MODEL.path()), "--instruction", "a car", "--image", text(&frame)];
    refused(&run(&ask), 2, &["small_arm", "large_arm"]);
    refused(&run(&[&ask[..], &["--unnorm-key", "tiny"]].concat()), 2, &["tiny", "small_arm", "large_arm"]);
    refused(&run(&["act", text(MODEL.path()), "--instruction", "a car"]), 2, &["--image", "--frames"]);
    let other = ["act", "minilm", "--instruction", "a car", "--image", text(&frame)];
    refused(&run(&other), 2, &["does not support act"]);
    let still =
        ["act", text(MODEL.path()), "--instruction", "a car", "--frames", text(folder.path()), "--rate", "0"];
    refused(&run(&still), 2, &["--rate"]);
    let empty = tempfile::tempdir().unwrap();
    let none = ["act", text(MODEL.path()), "--instruction", "a car", "--frames", text(empty.path())];
    refused(&run(&none), 2, &["no image"]);
    let silent = [
        "act",
        text(MODEL.path()),
        "--instruction",
        " ",
        "--image",
        text(&frame),
        "--unnorm-key",
        "small_arm",
    ];
    refused(&run(&silent), 2, &["instruction"]);
}

#[test]
fn a_policy_runs_in_the_simulated_table_top() {
    let folder = tempfile::tempdir().unwrap();
    let film = folder.path().join("scenes.gif");
    let policy = ["tabletop", text(MODEL.path()), "--unnorm-key", "small_arm"];
    let ask = [&policy[..], &["--scenes", "3-4", "--blocks", "2", "--out", text(&film)]].concat();
    let lines = json_lines(&run(&[&ask[..], &["--json"]].concat()).out);
    assert_eq!(lines.len(), 3, "{lines:?}");
    let steps = |line: &serde_json::Value| line["steps"].as_u64().unwrap();
    assert_eq!((lines[0]["seed"].as_u64(), lines[2]["episodes"].as_u64()), (Some(3), Some(2)));
    assert_eq!(steps(&lines[0]) + steps(&lines[1]), steps(&lines[2]));
    assert!(lines[0]["instruction"].as_str().unwrap().starts_with("pick up the "));
    let successes = lines[..2].iter().filter(|line| line["success"] == true).count() as u64;
    assert_eq!(lines[2]["successes"].as_u64(), Some(successes));
    assert!(std::fs::read(&film).unwrap().starts_with(b"GIF89a"));
    refused(&run(&ask), 2, &["scenes.gif", "--force"]);
    refused(&run(&[&policy[..], &["--out", "scenes.mp4"]].concat()), 2, &["scenes.mp4", ".gif"]);
    refused(&run(&[&policy[..], &["--blocks", "7"]].concat()), 2, &["block", "7"]);
    refused(&run(&["tabletop", "minilm"]), 2, &["does not support act"]);
    assert!(run(&[&policy[..], &["--scenes", "5-4"]].concat()).err.contains("before the first"));
}
