//! Text tables, and human-readable numbers.

/// A table of text cells with aligned columns. The last column is not padded.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [impl Into<String>; N]) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Adds a row of any length.
    pub fn push(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Returns the lines, with two spaces between columns; numbers are right-aligned.
    pub fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let line = |row: &Vec<String>| {
            // Not by a formatting width, which has 65535 at most: texts are longer.
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                let space = || " ".repeat(width - cell.chars().count());
                match (is_number(cell), column + 1 == row.len()) {
                    (true, _) => space() + cell,
                    (false, true) => cell.clone(),
                    (false, false) => cell.clone() + &space(),
                }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
        };
        self.rows.iter().map(line).collect()
    }
}

fn is_number(cell: &str) -> bool {
    cell.starts_with(|c: char| c.is_ascii_digit() || c == '-')
        && cell.trim_start_matches('-').parse::<f64>().is_ok()
}

/// Formats a size in bytes: "90.9 MB".
pub fn bytes(bytes: u64) -> String {
    scaled(bytes, &["B", "kB", "MB", "GB", "TB"])
}

/// Formats a count: "22.7 M".
pub fn count(count: u64) -> String {
    scaled(count, &["", "k", "M", "G", "T"]).trim_end().to_string()
}

fn scaled(value: u64, units: &[&str]) -> String {
    let mut scaled = value as f64;
    let mut unit = 0;
    // 999.95 and above would be printed as 1000.0.
    while scaled >= 999.95 && unit + 1 < units.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{value} {}", units[0]),
        _ => format!("{scaled:.1} {}", units[unit]),
    }
}

/// Shortens `text` to one line of at most `width` characters, with `…` at the end if it was longer.
pub fn shorten(text: &str, width: usize) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.chars().count() > width {
        true => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::default();
        table.row(["name", "size"]);
        table.row(["a", "7"]);
        table.row(["long name", "12"]);
        assert_eq!(table.lines(), ["name       size", "a             7", "long name    12"]);
    }

    #[test]
    fn a_cell_may_be_longer_than_a_formatting_width() {
        let long = "word ".repeat(20_000) + "end";
        let mut table = Table::default();
        table.row(["0.5", long.as_str()]);
        table.row(["12", "short"]);
        table.row(["7", "3"]);
        let lines = table.lines();
        assert_eq!((lines[0].as_str(), lines[1].as_str()), (format!("0.5  {long}").as_str(), " 12  short"));
        assert!(lines[2].len() == lines[0].len() && lines[2].ends_with(" 3"));
    }

    #[test]
    fn numbers_have_a_readable_unit() {
        assert_eq!(bytes(12), "12 B");
        assert_eq!(bytes(90_868_376), "90.9 MB");
        assert_eq!(bytes(999_999), "1.0 MB");
        assert_eq!(count(22_713_216), "22.7 M");
        assert_eq!(count(0), "0");
    }

    #[test]
    fn a_text_is_shortened_between_characters() {
        assert_eq!(shorten("zwölf  Boxkämpfer\njagen", 9), "zwölf Bo…");
        assert_eq!(shorten("kurz", 9), "kurz");
    }
}
