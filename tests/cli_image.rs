//! Tests of the whole program: images.

#[allow(dead_code, reason = "shared with the tests of other commands, which use all of it")]
#[path = "support/program.rs"]
mod program;

#[path = "support/checkpoint.rs"]
mod checkpoint;

use std::path::{Path, PathBuf};

use fauna::Image;
use fauna::image;
use program::{Done, json_lines, refused, run, text};
use serde_json::{Value, json};
use tempfile::TempDir;

const IDEFICS: &str = "tests/parity/flamingo/idefics_generate/model";
const LLAMA: &str = "tests/parity/llama/text_left_padding/model";

fn clip() -> TempDir {
    let folder = checkpoint::with_words("clip", "<start>", "<end>");
    let side = json!({"height": 20, "width": 20});
    let processor = json!({
        "image_processor_type": "CLIPImageProcessor", "do_resize": true, "size": {"shortest_edge": 20}, "resample": 3,
        "do_center_crop": true, "crop_size": side, "do_rescale": true, "do_normalize": true,
        "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "do_convert_rgb": true
    });
    std::fs::write(folder.path().join("preprocessor_config.json"), processor.to_string()).unwrap();
    folder
}

fn dalle() -> TempDir {
    checkpoint::with_words("dalle-mini", "<s>", "</s>")
}

/// Returns an image of one colour with a stripe of another.
fn painted(height: usize, width: usize, colour: [u8; 3]) -> Image {
    let pixel =
        |i: usize| if i % width < width / 3 { [255 - colour[0], colour[2], colour[1]] } else { colour };
    Image { width, height, rgb: (0..height * width).flat_map(pixel).collect() }
}

/// Returns a folder with three images, `a.png`, `b.png` and `c.png`, and a text file.
fn album() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, size, colour) in [
        ("b.png", (30, 40), [200, 30, 30]),
        ("a.png", (50, 20), [20, 40, 220]),
        ("c.png", (24, 24), [30, 180, 60]),
    ] {
        image::write(folder.path().join(name), &painted(size.0, size.1, colour)).unwrap();
    }
    std::fs::write(folder.path().join("notes.txt"), "no picture").unwrap();
    folder
}

/// The same with two invalid images: an empty file and a truncated one.
fn worn_album() -> TempDir {
    let folder = album();
    let whole = std::fs::read(folder.path().join("a.png")).unwrap();
    std::fs::write(folder.path().join("aa.png"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(folder.path().join("bb.jpg"), b"").unwrap();
    folder
}

fn file(folder: &TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}

/// Asserts exit status 0.
#[track_caller]
fn done(done: &Done) {
    assert_eq!(done.status, 0, "{}", done.err);
}

fn size(path: &Path) -> (usize, usize) {
    let image = image::read(path).unwrap();
    (image.height, image.width)
}

#[test]
fn labels_of_an_image_are_sorted_by_score() {
    let (album, clip) = (album(), clip());
    let a = file(&album, "a.png");
    let ask = |more: &[&str]| run(&[&["classify", text(clip.path()), "--image", text(&a)], more].concat());
    let made = ask(&["--labels", "a red car, the blue sky ,a green cat", "--json"]);
    done(&made);
    let said = json_lines(&made.out).remove(0);
    let labels = said["labels"].as_array().unwrap();
    let scores: Vec<f64> = labels.iter().map(|label| label["score"].as_f64().unwrap()).collect();
    assert_eq!(labels.len(), 3);
    assert!(labels.iter().any(|label| label["label"] == "the blue sky"), "{said}");
    assert!(
        scores.is_sorted_by(|a, b| a >= b) && (scores.iter().sum::<f64>() - 1.0).abs() < 1e-5,
        "{scores:?}"
    );
    // With several images, each label is printed with its file.
    let b = file(&album, "b.png");
    let both = ask(&["--image", text(&b), "--labels", "a red car,the blue sky"]);
    let lines: Vec<&str> = both.out.lines().collect();
    assert_eq!(lines.len(), 4, "{}", both.out);
    assert!(lines[..2].iter().all(|line| line.starts_with(text(&a))), "{}", both.out);
    assert!(lines[2..].iter().all(|line| line.starts_with(text(&b))), "{}", both.out);
    let table = ask(&["--labels", "a red car,the blue sky"]);
    done(&table);
    assert_eq!(table.out.lines().count(), 2, "{}", table.out);
    assert!(table.out.contains("the blue sky"));
}

#[test]
fn empty_labels_and_labels_without_an_image_are_errors() {
    let (album, clip) = (album(), clip());
    let (model, a) = (text(clip.path()).to_string(), file(&album, "a.png"));
    for empty in ["", " , ,"] {
        refused(&run(&["classify", &model, "--image", text(&a), "--labels", empty]), 2, &["no label"]);
    }
    refused(&run(&["classify", &model, "--labels", "a cat"]), 2, &["--image"]);
    refused(&run(&["classify", &model, "--image", text(&a), "a dog", "--labels", "a cat"]), 2, &["a dog"]);
    refused(&run(&["classify", &model, "--image", text(&a)]), 2, &["--labels"]);
}

#[test]
fn images_are_embedded_with_texts() {
    let (album, clip) = (album(), clip());
    let made = run(&["embed", text(clip.path()), "a red car", "--images", text(album.path())]);
    done(&made);
    let rows = json_lines(&made.out);
    let vector = |row: &Value| -> Vec<f64> {
        row["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    };
    assert_eq!(rows.len(), 4, "a text and three images, in order of their names");
    assert!(rows.iter().all(|row| vector(row).len() == 24));
    // An image has the same embedding alone and in a batch.
    let alone = run(&["embed", text(clip.path()), "--image", text(&file(&album, "b.png"))]);
    done(&alone);
    let (alone, among) = (vector(&json_lines(&alone.out)[0]), vector(&rows[2]));
    assert!(alone.iter().zip(&among).all(|(a, b)| (a - b).abs() < 1e-5), "b.png is the third row");
    assert_ne!(vector(&rows[1]), vector(&rows[2]));
}

#[test]
fn images_of_more_than_max_pixels_are_errors() {
    let (album, clip) = (album(), clip());
    let a = file(&album, "a.png");
    let (height, width) = size(&a);
    let pixels = height * width;
    let ask = |most: usize| {
        run(&["embed", text(clip.path()), "--image", text(&a), "--max-pixels", &most.to_string()])
    };
    let (refused, served) = (ask(pixels - 1), ask(pixels));
    assert_eq!((refused.status, served.status), (2, 0), "{}{}", refused.err, served.err);
    for part in ["a.png", &format!("{width} x {height}"), &format!("at most {}", pixels - 1), "--max-pixels"]
    {
        assert!(refused.err.contains(part), "{part} is not in: {}", refused.err);
    }
}

#[test]
fn images_of_a_folder_are_embedded_in_natural_order() {
    let (album, clip) = (tempfile::tempdir().unwrap(), clip());
    let order = ["shot 1.png", "shot 2.png", "Shot 10.png", "shot 11.png"];
    for (i, name) in order.iter().enumerate() {
        image::write(album.path().join(name), &painted(9, 9, [40 * i as u8, 9, 9])).unwrap();
    }
    let made = run(&["embed", text(clip.path()), "--images", text(album.path())]);
    done(&made);
    let names: Vec<String> = json_lines(&made.out)
        .iter()
        .map(|row| row["text"].as_str().unwrap().rsplit('/').next().unwrap().to_string())
        .collect();
    assert_eq!(names, order);
}

#[test]
fn an_invalid_image_of_a_folder_is_reported_and_the_others_are_processed() {
    let (album, clip) = (worn_album(), clip());
    let made = run(&["embed", text(clip.path()), "--images", text(album.path())]);
    assert_eq!(made.status, 2, "{}", made.err);
    let rows = json_lines(&made.out);
    let errors: Vec<bool> = rows.iter().map(|row| row["error"].is_string()).collect();
    assert_eq!(errors, [false, true, false, true, false], "{}", made.out);
    assert!(made.err.contains("aa.png") && made.err.contains("bb.jpg"), "{}", made.err);
    assert!(made.err.contains("an empty file"), "{}", made.err);

    let found = run(&["search", text(clip.path()), text(album.path()), "a red car"]);
    assert_eq!((found.status, found.out.lines().count()), (2, 3), "{}", found.err);
    assert!(found.err.contains("aa.png") && found.err.contains("bb.jpg"), "{}", found.err);
}

#[test]
fn images_of_a_folder_are_searched_by_text() {
    let (album, clip, elsewhere) = (album(), clip(), tempfile::tempdir().unwrap());
    let sheet = file(&elsewhere, "sheet.png");
    let search = |more: &[&str]| {
        run(&[&["search", text(clip.path()), text(album.path()), "a red car"], more].concat())
    };
    let found = search(&["--json", "--png", text(&sheet)]);
    done(&found);
    let said = json_lines(&found.out).remove(0);
    let scores: Vec<f64> =
        said["found"].as_array().unwrap().iter().map(|found| found["score"].as_f64().unwrap()).collect();
    assert_eq!(scores.len(), 3);
    assert!(
        scores.is_sorted_by(|a, b| a >= b) && scores.iter().all(|score| score.abs() <= 1.0),
        "{scores:?}"
    );
    let drawn = image::read(&sheet).unwrap();
    assert!(drawn.width > 500 && drawn.height > 300, "{} x {}", drawn.width, drawn.height);
    assert!(drawn.rgb.chunks_exact(3).any(|pixel| pixel == [30, 180, 60]), "c.png is on the sheet");

    let one = search(&["--top", "1"]);
    done(&one);
    let best = said["found"][0]["file"].as_str().unwrap();
    assert!(one.out.lines().count() == 1 && one.out.contains(best), "{}", one.out);
    refused(&search(&["--png", text(&sheet)]), 2, &["sheet.png", "--force"]);
}

#[test]
fn a_folder_without_images_and_an_empty_query_are_errors() {
    let (album, clip) = (album(), clip());
    let empty = tempfile::tempdir().unwrap();
    refused(&run(&["search", text(clip.path()), text(empty.path()), "a car"]), 2, &["no image"]);
    refused(&run(&["search", text(clip.path()), text(album.path()), "  "]), 2, &["the query is empty"]);
    refused(&run(&["embed", text(clip.path()), "--images", text(empty.path())]), 2, &["no image"]);
    refused(&run(&["search", LLAMA, text(album.path()), "a car"]), 2, &["does not read images", "CLIP"]);
    refused(
        &run(&["search", "minilm", text(album.path()), "a car"]),
        2,
        &["minilm does not read images", "CLIP"],
    );
}

#[test]
fn a_grid_has_several_images_of_one_prompt() {
    let (dalle, folder) = (dalle(), tempfile::tempdir().unwrap());
    let draw = |name: &str, more: &[&str]| {
        let path = file(&folder, name);
        let made = run(&[
            &["draw", text(dalle.path()), "an armchair in the shape of an avocado", "--out", text(&path)],
            more,
        ]
        .concat());
        done(&made);
        made
    };
    draw("one.png", &["--seed", "3"]);
    draw("grid.png", &["--seed", "3", "--grid", "2x3"]);
    let (one, grid) =
        (image::read(file(&folder, "one.png")).unwrap(), image::read(file(&folder, "grid.png")).unwrap());
    assert_eq!((grid.height, grid.width), (2 * one.height, 3 * one.width));
    let cell = |row: usize, column: usize| -> Vec<u8> {
        let line = |y: usize| {
            let start = ((row * one.height + y) * grid.width + column * one.width) * 3;
            &grid.rgb[start..start + one.width * 3]
        };
        (0..one.height).flat_map(line).copied().collect()
    };
    assert_eq!(cell(0, 0), one.rgb, "the first image of a grid is the one generated without a grid");
    assert_ne!(cell(0, 0), cell(1, 2), "samples differ");
    draw("again.png", &["--seed", "3", "--no-previews"]);
    assert_eq!(image::read(file(&folder, "again.png")).unwrap(), one);
    draw("other.png", &["--seed", "4"]);
    assert_ne!(image::read(file(&folder, "other.png")).unwrap(), one);
}

#[test]
fn rank_sorts_images_by_similarity_to_the_prompt() {
    let (dalle, clip, folder) = (dalle(), clip(), tempfile::tempdir().unwrap());
    let path = file(&folder, "ranked.png");
    let draw =
        ["draw", text(dalle.path()), "a red cat", "--grid", "2x2", "--out", text(&path), "--json", "--rank"];
    let made = run(&[&draw[..], &[text(clip.path())]].concat());
    done(&made);
    let said = json_lines(&made.out).remove(0);
    let scores: Vec<f64> =
        said["files"][0]["scores"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap()).collect();
    assert_eq!((scores.len(), &said["files"][0]["pictures"]), (4, &json!(4)));
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    refused(&run(&[&draw[..], &[LLAMA, "--force"]].concat()), 2, &["text"]);
}

#[test]
fn several_prompts_are_written_to_numbered_files() {
    let (dalle, folder) = (dalle(), tempfile::tempdir().unwrap());
    let path = file(&folder, "cat.png");
    done(&run(&["draw", text(dalle.path()), "a red cat", "the blue sky", "--out", text(&path)]));
    assert_eq!(size(&file(&folder, "cat-1.png")), size(&file(&folder, "cat-2.png")));
    assert!(!path.exists());
}

#[test]
fn output_files_are_checked_before_generation() {
    let (dalle, folder) = (dalle(), album());
    let draw = |more: &[&str]| run(&[&["draw", text(dalle.path()), "a cat"], more].concat());
    refused(&draw(&[]), 2, &["--out"]);
    refused(&draw(&["--out", text(&file(&folder, "cat.jpg"))]), 2, &[".png"]);
    refused(&draw(&["--out", text(&file(&folder, "a.png"))]), 2, &["a.png", "--force"]);
    refused(&draw(&["--out", text(&file(&folder, "x.png")), "--grid", "0x3"]), 2, &["3x3"]);
    refused(
        &draw(&["--out", text(&file(&folder, "x.png")), "--image", text(&file(&folder, "a.png"))]),
        2,
        &[],
    );
    refused(&run(&["draw", text(dalle.path()), " ", "--out", text(&file(&folder, "x.png"))]), 2, &["empty"]);
    assert!(!file(&folder, "x.png").exists());
}

#[test]
fn an_image_is_encoded_to_codes_and_decoded() {
    let (dvae, folder) = (checkpoint::with_words("dvae", "<s>", "</s>"), tempfile::tempdir().unwrap());
    let (seen, codes, again) =
        (file(&folder, "in.png"), file(&folder, "codes.safetensors"), file(&folder, "out.png"));
    image::write(&seen, &painted(300, 270, [10, 90, 200])).unwrap();
    done(&run(&["codec", "encode", text(dvae.path()), "--image", text(&seen), "--out", text(&codes)]));
    let tensors = fauna::weights::tensors(&codes).unwrap();
    assert_eq!(tensors["codes"].dims(), [1, 32, 32]);
    done(&run(&["codec", "decode", text(dvae.path()), "--codes", text(&codes), "--out", text(&again)]));
    assert_eq!(size(&again), (256, 256));
    let little = file(&folder, "small.png");
    image::write(&little, &painted(100, 300, [1, 2, 3])).unwrap();
    let small =
        ["codec", "encode", text(dvae.path()), "--image", text(&little), "--out", text(&codes), "--force"];
    refused(&run(&small), 2, &["256"]);
}

#[test]
fn few_shot_prompts_have_examples_before_the_query_image() {
    let album = album();
    let path = |name: &str| file(&album, name);
    let (a, b, c) = (path("a.png"), path("b.png"), path("c.png"));
    let ask = |order: &[&str]| {
        let made = run(&[
            &[
                if order.contains(&"--image") { "describe" } else { "generate" },
                IDEFICS,
                "--max-tokens",
                "8",
                "--json",
            ],
            order,
        ]
        .concat());
        done(&made);
        let said = json_lines(&made.out).remove(0);
        said["text"].as_str().unwrap().to_string()
    };
    let shots = [
        "--image",
        text(&a),
        "two cats",
        "--image",
        text(&b),
        "three dogs",
        "--image",
        text(&c),
        "--few-shot",
    ];
    let answer = ask(&shots);
    assert!(!answer.is_empty());
    assert_eq!(ask(&shots), answer);
    ask(&["--image", text(&a), "a small horse sits on"]);
    ask(&["--image", text(&c), "--few-shot"]);
    ask(&["the two cats"]);
    refused(&run(&["describe", IDEFICS, "two cats", "--few-shot"]), 2, &["--image"]);
    refused(
        &run(&["describe", IDEFICS, "--image", text(&a), "--image", text(&b), "--few-shot"]),
        2,
        &["text"],
    );
}

#[test]
fn a_question_about_an_image_is_answered() {
    let album = album();
    let (a, b) = (file(&album, "a.png"), file(&album, "b.png"));
    let ask = |more: &[&str]| {
        run(&[&["answer", IDEFICS, "the two cats", "--max-tokens", "8", "--json"], more].concat())
    };
    let answered = ask(&["--image", text(&a)]);
    done(&answered);
    let described =
        run(&["describe", IDEFICS, "--image", text(&a), "the two cats", "--max-tokens", "8", "--json"]);
    assert_eq!(json_lines(&answered.out)[0]["text"], json_lines(&described.out)[0]["text"]);
    let two = ask(&["the large house", "--image", text(&a), "--image", text(&b)]);
    done(&two);
    assert_eq!(json_lines(&two.out).len(), 2);
    refused(&ask(&["--context", "a text"]), 2, &["cannot be used with"]);
    refused(&run(&["answer", IDEFICS, "why", "--context", "a text"]), 2, &["--image FILE"]);
    refused(&run(&["answer", LLAMA, "why", "--image", text(&a)]), 2, &["answer", "try: generate"]);
}

#[test]
fn chat_takes_an_image() {
    let album = album();
    let a = file(&album, "a.png");
    done(&run(&["chat", IDEFICS, "--image", text(&a), "the large house", "--max-tokens", "4"]));
}

#[test]
fn an_invalid_image_file_is_an_error_that_names_it() {
    let (album, clip) = (worn_album(), clip());
    let path = |name: &str| file(&album, name);
    for (name, says) in [
        ("aa.png", "cannot decode"),
        ("bb.jpg", "an empty file"),
        ("notes.txt", "not a supported image file"),
        ("none.png", "none.png"),
    ] {
        for model in [text(clip.path()), IDEFICS] {
            let verb: &[&str] =
                if model == IDEFICS { &["describe"] } else { &["classify", "--labels", "a cat"] };
            let made = run(&[verb, &[model, "--image", text(&path(name))]].concat());
            refused(&made, 2, &[name, says]);
        }
    }
    refused(&run(&["describe", LLAMA, "--image", text(&path("a.png")), "the"]), 2, &["describe", "generate"]);
}
