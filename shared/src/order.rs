//! Natural sort order of file names: `frame_2` before `frame_10`.

use std::cmp::Ordering;
use std::path::Path;

/// Compares names in natural order: runs of digits are compared by value, other characters case-insensitively. Names
/// that differ only in leading zeros or in case are ordered by length, then by code point.
///
/// ```
/// use fauna_shared::order::natural;
/// let mut names = ["frame_10", "frame_2", "Frame_1", "frame_02"];
/// names.sort_by(|a, b| natural(a, b));
/// assert_eq!(names, ["Frame_1", "frame_2", "frame_02", "frame_10"]);
/// ```
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let order = match (left.chars().next(), right.chars().next()) {
            (None, None) => break,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let (x, y);
                (x, left) = digits(left);
                (y, right) = digits(right);
                let (x, y) = (x.trim_start_matches('0'), y.trim_start_matches('0'));
                x.len().cmp(&y.len()).then_with(|| x.cmp(y))
            }
            (Some(x), Some(y)) => {
                (left, right) = (&left[x.len_utf8()..], &right[y.len_utf8()..]);
                x.to_lowercase().cmp(y.to_lowercase())
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    // Equal except for leading zeros and case.
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// Compares paths by folders, then by file stems, then by extensions: `a.png`, `a 2.png`, `a 10.png`.
pub fn by_name(a: &Path, b: &Path) -> Ordering {
    let folders = |path: &Path| -> Vec<String> {
        let folder = path.parent().unwrap_or(Path::new(""));
        folder.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect()
    };
    let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let (left, right) = (folders(a), folders(b));
    let folders = left.iter().zip(&right).map(|(x, y)| natural(x, y)).find(|order| order.is_ne());
    folders
        .unwrap_or_else(|| left.len().cmp(&right.len()))
        .then_with(|| natural(&part(a.file_stem()), &part(b.file_stem())))
        .then_with(|| natural(&part(a.extension()), &part(b.extension())))
        .then_with(|| a.cmp(b))
}

/// Splits the leading digits from `text`.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn in_order(names: &[&str]) {
        for (i, a) in names.iter().enumerate() {
            for (j, b) in names.iter().enumerate() {
                assert_eq!(natural(a, b), i.cmp(&j), "{a} {b}");
                let paths = [a, b].map(|name| Path::new("shots").join(name).with_extension("png"));
                assert_eq!(by_name(&paths[0], &paths[1]), i.cmp(&j), "{a}.png {b}.png");
            }
        }
    }

    #[test]
    fn numbers_are_compared_by_value() {
        in_order(&["frame_1", "frame_2", "frame_9", "frame_10", "frame_11", "frame_100"]);
        in_order(&["1", "2", "10", "11a", "11b", "100"]);
        in_order(&["shot 2 take 3", "shot 2 take 10", "shot 10 take 1"]);
    }

    #[test]
    fn leading_zeros_decide_only_between_equal_names() {
        in_order(&["f0", "f00", "f1", "f01", "f001", "f2", "f010", "f0011"]);
        in_order(&["a1b2", "a01b2", "a1b3", "a01b10"]);
    }

    #[test]
    fn numbers_of_any_length_are_compared() {
        let (long, longer) = ("9".repeat(200), format!("1{}", "0".repeat(200)));
        in_order(&["8", "18446744073709551616", "18446744073709551617", &long, &longer]);
    }

    #[test]
    fn case_and_other_alphabets_are_ordered() {
        in_order(&["Frame_1", "frame_1", "frame_2", "Frame_3", "FRAME_10"]);
        in_order(&[
            "bild_2",
            "Bild_10",
            "ärger_1",
            "Ärger_2",
            "ärger_10",
            "кадр_3",
            "Кадр_12",
            "写真2",
            "写真10",
        ]);
    }

    #[test]
    fn folders_are_compared_first_and_extensions_last() {
        let sorted = |mut names: Vec<&str>| {
            names.sort_by(|a, b| by_name(Path::new(a), Path::new(b)));
            names.join(" ")
        };
        assert_eq!(sorted(vec!["a-2.png", "a-10.jpg", "a.png", "a-2.jpg"]), "a.png a-2.jpg a-2.png a-10.jpg");
        assert_eq!(sorted(vec!["e10/1.png", "e2/3.png", "e2/11.png"]), "e2/3.png e2/11.png e10/1.png");
    }
}
