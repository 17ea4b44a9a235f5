//! The options of the library that its errors advise to set, as the command line spells them.

/// Each option of the library, and its option here.
const OPTIONS: &[(&str, &str)] = &[
    ("LoadOptions::family", "--family"),
    ("LoadOptions::file", "--weights"),
    ("LoadOptions::settings", "--set"),
];

/// What the command line calls the library's `option` set to `value`.
pub fn of(option: &str, value: &str) -> Option<String> {
    let (_, name) = OPTIONS.iter().find(|(of_library, _)| *of_library == option)?;
    let more = match *name {
        "--family" => "      all of them: fauna list",
        _ => "",
    };
    Some(format!("{name} {value}{more}").trim_end().to_string())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// All Rust files below `folder`.
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

    /// Every option that an error of the library names has its option here, and every verb's parser knows that.
    #[test]
    fn every_option_that_the_library_advises_has_a_name_here() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        for folder in ["shared/src", "models", "toolkits"] {
            if root.join(folder).is_dir() {
                sources(&root.join(folder), &mut files);
            }
        }
        let advised = |file: &String| {
            // The option is the only string of `.set(advice, option, value)` that is a path.
            let strings =
                file.split('"').filter(|string| string.contains("::") && !string.contains([' ', '\n']));
            strings.map(str::to_string).collect::<Vec<_>>()
        };
        let advised: Vec<String> = files.iter().flat_map(advised).collect();
        for (option, name) in OPTIONS {
            assert!(advised.iter().any(|one| one == option), "no error advises {option}");
            assert!(!crate::cli::headings::verbs_with(&name[2..]).is_empty(), "no verb has {name}");
        }
        let of_library = ["LoadOptions::", "GenerationConfig::", "Runtime::", "ForecastConfig::", "Item::"];
        for option in advised {
            if of_library.iter().any(|path| option.starts_with(path)) {
                assert!(of(&option, "").is_some(), "{option} has no name on the command line");
            }
        }
    }
}
