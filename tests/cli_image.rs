//! Whole-program tests of what makes and reads pictures.

#[allow(dead_code, reason = "shared with the tests of the other verbs, which use all of it")]
#[path = "support/program.rs"]
mod program;

#[path = "support/checkpoint.rs"]
mod checkpoint;

use std::path::{Path, PathBuf};

use fauna::Image;
use fauna::picture;
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

/// A picture of one colour with a stripe of another.
fn painted(height: usize, width: usize, colour: [u8; 3]) -> Image {
    let pixel =
        |i: usize| if i % width < width / 3 { [255 - colour[0], colour[2], colour[1]] } else { colour };
    Image { width, height, rgb: (0..height * width).flat_map(pixel).collect() }
}

/// A folder with three pictures, `a.png`, `b.png` and `c.png`, and a file that is none.
fn album() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, size, colour) in [
        ("b.png", (30, 40), [200, 30, 30]),
        ("a.png", (50, 20), [20, 40, 220]),
        ("c.png", (24, 24), [30, 180, 60]),
    ] {
        picture::write(folder.path().join(name), &painted(size.0, size.1, colour)).unwrap();
    }
    std::fs::write(folder.path().join("notes.txt"), "no picture").unwrap();
    folder
}

/// The same with two bad pictures: an empty one and one that is cut short.
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

/// Ended well.
#[track_caller]
fn done(done: &Done) {
    assert_eq!(done.status, 0, "{}", done.err);
}

fn size(path: &Path) -> (usize, usize) {
    let image = picture::read(path).unwrap();
    (image.height, image.width)
}

#[test]
fn a_picture_gets_the_label_that_fits_best_first() {
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
    // Of several pictures each is named beside its labels.
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
fn labels_without_words_and_labels_without_a_picture_are_refused() {
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
fn pictures_are_embedded_as_texts_are() {
    let (album, clip) = (album(), clip());
    let made = run(&["embed", text(clip.path()), "a red car", "--images", text(album.path())]);
    done(&made);
    let rows = json_lines(&made.out);
    let vector = |row: &Value| -> Vec<f64> {
        row["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    };
    assert_eq!(rows.len(), 4, "a text and three pictures, by name");
    assert!(rows.iter().all(|row| vector(row).len() == 24));
    // Pictures of a batch are those alone.
    let alone = run(&["embed", text(clip.path()), "--image", text(&file(&album, "b.png"))]);
    done(&alone);
    let (alone, among) = (vector(&json_lines(&alone.out)[0]), vector(&rows[2]));
    assert!(alone.iter().zip(&among).all(|(a, b)| (a - b).abs() < 1e-5), "b.png is the third row");
    assert_ne!(vector(&rows[1]), vector(&rows[2]));
}

#[test]
fn pictures_of_more_pixels_than_allowed_are_refused_by_their_size() {
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
fn pictures_of_a_folder_are_embedded_in_the_order_of_their_numbers() {
    let (album, clip) = (tempfile::tempdir().unwrap(), clip());
    let order = ["shot 1.png", "shot 2.png", "Shot 10.png", "shot 11.png"];
    for (i, name) in order.iter().enumerate() {
        picture::write(album.path().join(name), &painted(9, 9, [40 * i as u8, 9, 9])).unwrap();
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
fn a_bad_picture_of_a_folder_is_named_and_the_others_are_done() {
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
fn a_folder_is_searched_by_a_sentence() {
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
    let drawn = picture::read(&sheet).unwrap();
    assert!(drawn.width > 500 && drawn.height > 300, "{} x {}", drawn.width, drawn.height);
    assert!(drawn.rgb.chunks_exact(3).any(|pixel| pixel == [30, 180, 60]), "c.png is on the sheet");

    let one = search(&["--top", "1"]);
    done(&one);
    let best = said["found"][0]["file"].as_str().unwrap();
    assert!(one.out.lines().count() == 1 && one.out.contains(best), "{}", one.out);
    refused(&search(&["--png", text(&sheet)]), 2, &["sheet.png", "--force"]);
}

#[test]
fn a_folder_without_pictures_and_a_sentence_without_words_are_refused() {
    let (album, clip) = (album(), clip());
    let empty = tempfile::tempdir().unwrap();
    refused(&run(&["search", text(clip.path()), text(empty.path()), "a car"]), 2, &["picture"]);
    refused(&run(&["search", text(clip.path()), text(album.path()), "  "]), 2, &["sentence"]);
    refused(&run(&["embed", text(clip.path()), "--images", text(empty.path())]), 2, &["picture"]);
    refused(&run(&["search", LLAMA, text(album.path()), "a car"]), 2, &["search", "try: generate"]);
}

#[test]
fn a_grid_shows_several_pictures_of_one_prompt() {
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
        (picture::read(file(&folder, "one.png")).unwrap(), picture::read(file(&folder, "grid.png")).unwrap());
    assert_eq!((grid.height, grid.width), (2 * one.height, 3 * one.width));
    let cell = |row: usize, column: usize| -> Vec<u8> {
        let line = |y: usize| {
            let start = ((row * one.height + y) * grid.width + column * one.width) * 3;
            &grid.rgb[start..start + one.width * 3]
        };
        (0..one.height).flat_map(line).copied().collect()
    };
    assert_eq!(cell(0, 0), one.rgb, "the first of a grid is the one that is made alone");
    assert_ne!(cell(0, 0), cell(1, 2), "samples differ");
    draw("again.png", &["--seed", "3", "--no-previews"]);
    assert_eq!(picture::read(file(&folder, "again.png")).unwrap(), one);
    draw("other.png", &["--seed", "4"]);
    assert_ne!(picture::read(file(&folder, "other.png")).unwrap(), one);
}

#[test]
fn the_nearest_pictures_to_the_prompt_come_first_where_a_judge_is_named() {
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
fn several_prompts_have_a_picture_each() {
    let (dalle, folder) = (dalle(), tempfile::tempdir().unwrap());
    let path = file(&folder, "cat.png");
    done(&run(&["draw", text(dalle.path()), "a red cat", "the blue sky", "--out", text(&path)]));
    assert_eq!(size(&file(&folder, "cat-1.png")), size(&file(&folder, "cat-2.png")));
    assert!(!path.exists());
}

#[test]
fn where_a_picture_goes_is_asked_before_the_work() {
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
fn a_picture_becomes_codes_and_codes_a_picture() {
    let (dvae, folder) = (checkpoint::with_words("dvae", "<s>", "</s>"), tempfile::tempdir().unwrap());
    let (seen, codes, again) =
        (file(&folder, "in.png"), file(&folder, "codes.safetensors"), file(&folder, "out.png"));
    picture::write(&seen, &painted(300, 270, [10, 90, 200])).unwrap();
    done(&run(&["codec", "encode", text(dvae.path()), "--image", text(&seen), "--out", text(&codes)]));
    let tensors = fauna::weights::tensors(&codes).unwrap();
    assert_eq!(tensors["codes"].dims(), [1, 32, 32]);
    done(&run(&["codec", "decode", text(dvae.path()), "--codes", text(&codes), "--out", text(&again)]));
    assert_eq!(size(&again), (256, 256));
    let little = file(&folder, "small.png");
    picture::write(&little, &painted(100, 300, [1, 2, 3])).unwrap();
    let small =
        ["codec", "encode", text(dvae.path()), "--image", text(&little), "--out", text(&codes), "--force"];
    refused(&run(&small), 2, &["256"]);
}

#[test]
fn examples_come_before_the_picture_that_is_asked_about() {
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
fn a_question_about_a_picture_is_answered() {
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
fn a_conversation_may_begin_with_a_picture() {
    let album = album();
    let a = file(&album, "a.png");
    done(&run(&["chat", IDEFICS, "--image", text(&a), "the large house", "--max-tokens", "4"]));
}

#[test]
fn what_is_no_picture_is_named() {
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
