//! Command-line names of the library options that errors recommend.

/// Options of the library and of the command line.
const OPTIONS: &[(&str, &str)] = &[
    ("LoadOptions::family", "--family"),
    ("LoadOptions::file", "--weights"),
    ("LoadOptions::settings", "--set"),
];

/// Returns the command-line form of the library's `option` set to `value`.
pub fn of(option: &str, value: &str) -> Option<String> {
    let (_, name) = OPTIONS.iter().find(|(of_library, _)| *of_library == option)?;
    let more = match *name {
        "--family" => " (all families: fauna list)",
        _ => "",
    };
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
        let advised = |file: &String| {
            // The option is the only string of `.set(advice, option, value)` with a `::`.
            let strings =
                file.split('"').filter(|string| string.contains("::") && !string.contains([' ', '\n']));
            strings.map(str::to_string).collect::<Vec<_>>()
        };
        let advised: Vec<String> = files.iter().flat_map(advised).collect();
        for (option, name) in OPTIONS {
            assert!(advised.iter().any(|one| one == option), "no error recommends {option}");
            assert!(!crate::cli::headings::verbs_with(&name[2..]).is_empty(), "no command has {name}");
        }
        let of_library = ["LoadOptions::", "GenerationConfig::", "Runtime::", "ForecastConfig::", "Item::"];
        for option in advised {
            if of_library.iter().any(|path| option.starts_with(path)) {
                assert!(of(&option, "").is_some(), "{option} has no command-line option");
            }
        }
    }
}
