//! Columns of text for people, and numbers as people read them.

/// Lines of cells, padded so that columns stand under each other. The last column is never padded.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Adds a line.
    pub fn row<const N: usize>(&mut self, cells: [impl Into<String>; N]) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Adds a line of any length.
    pub fn push(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The lines, two spaces between columns; cells that are numbers stand to the right.
    pub fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| match is_number(cell) {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
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

/// `bytes` in the unit a person would use: "90.9 MB".
pub fn bytes(bytes: u64) -> String {
    scaled(bytes, &["B", "kB", "MB", "GB", "TB"])
}

/// `count` in the unit a person would use: "22.7 M".
pub fn count(count: u64) -> String {
    scaled(count, &["", "k", "M", "G", "T"]).trim_end().to_string()
}

fn scaled(value: u64, units: &[&str]) -> String {
    let mut scaled = value as f64;
    let mut unit = 0;
    // 999.95 and above would print as 1000.0.
    while scaled >= 999.95 && unit + 1 < units.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{value} {}", units[0]),
        _ => format!("{scaled:.1} {}", units[unit]),
    }
}

/// At most `width` characters of `text` on one line, `…` where something is left out.
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
    fn columns_stand_under_each_other() {
        let mut table = Table::default();
        table.row(["name", "size"]);
        table.row(["a", "7"]);
        table.row(["long name", "12"]);
        assert_eq!(table.lines(), ["name       size", "a             7", "long name    12"]);
    }

    #[test]
    fn numbers_have_the_unit_a_person_would_use() {
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
