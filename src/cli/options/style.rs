//! Command-line names of the library options that errors recommend.

/// Options of the library and of the command line.
const OPTIONS: &[(&str, &str)] = &[
    ("LoadOptions::family", "--family"),
    ("LoadOptions::adapters", "--adapter"),
    ("LoadOptions::file", "--weights"),
    ("LoadOptions::settings", "--set"),
    ("Runtime::with_precision", "--dtype"),
    ("Runtime::with_quantize", "--quantize"),
    ("Finder::find", "fauna pull"),
    ("Run::resume", "--resume"),
    ("DatasetOptions::columns", "--column"),
    ("DatasetOptions::without", "--without"),
    ("DatasetOptions::targets", "--labels"),
    ("DatasetOptions::valid_fraction", "--valid"),
    ("DatasetOptions::max_line", "--max-line"),
    ("Item::Image", "--image"),
    ("Item::Text", "--labels"),
    ("ImageOptions::max_pixels", "--max-pixels"),
    ("Limits::seconds", "--max-seconds"),
    ("QuantizeOptions::replace", "--force"),
    ("Workload::task", "--task"),
    ("Atoms::charge", "--charge"),
    ("Atoms::spin", "--spin"),
    ("ForecastOptions::frequency", "--freq"),
    ("ForecastOptions::horizon", "--horizon"),
    ("ForecastOptions::season_length", "--season"),
    ("Intervals::Levels", "--level"),
    ("Columns::id", "--id-col"),
    ("Columns::time", "--time-col"),
    ("Columns::target", "--target-col"),
];

/// Returns the command-line form of the library's `option` set to `value`.
pub fn of(option: &str, value: &str) -> Option<String> {
    let (_, name) = OPTIONS.iter().find(|(of_library, _)| *of_library == option)?;
    let more = match *name {
        "--family" => " (all families: fauna list)",
        _ => "",
    };
    // An option that is true is a flag here.
    let value = if value == "true" { "" } else { value };
    Some(format!("{name} {value}{more}").trim_end().to_string())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Reads all Rust files below `folder`.
    fn sources(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => sources(&path, found),
                false if path.extension().is_some_and(|kind| kind == "rs") => {
                    found.push(std::fs::read_to_string(path).unwrap());
                }
                false => {}
            }
        }
    }

    /// Every library option that an error recommends has an option here, which at least one command accepts.
    #[test]
    fn every_recommended_library_option_has_a_command_line_option() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        for folder in ["shared/src", "models", "toolkits"] {
            if root.join(folder).is_dir() {
                sources(&root.join(folder), &mut files);
            }
        }
        // The option is the first string that is a path after `.set(`.
        let advised = |file: &String| {
            let calls = file.split(".set(").skip(1);
            let option = |call: &str| {
                let near: String = call.chars().take(300).collect();
                let paths = |part: &&str| part.contains("::") && !part.contains([' ', '\n', '(', '{']);
                near.split('"').find(paths).map(str::to_string)
            };
            calls.filter_map(option).collect::<Vec<_>>()
        };
        let advised: Vec<String> = files.iter().flat_map(advised).collect();
        for (option, name) in OPTIONS {
            assert!(
                files.iter().any(|file| file.contains(&format!("\"{option}\""))),
                "no error recommends {option}"
            );
            match name.strip_prefix("--") {
                Some(name) => {
                    assert!(!crate::cli::headings::verbs_with(name).is_empty(), "no command has --{name}");
                }
                None => {
                    assert!(crate::cli::headings::names().contains(&name.replace("fauna ", "")), "{name}")
                }
            }
        }
        for option in advised {
            assert!(of(&option, "").is_some(), "{option} has no name on the command line");
        }
    }
}
