//! XYZ: a count, a comment line, one line an atom; extended by names in the comment line.

use std::io::Write;

use fauna_shared::Result;
use fauna_shared::error::nearest;
use fauna_shared::item::Atoms;

use super::super::elements;
use super::{Frame, number, three, wrong};

/// The columns of a plain file.
const PLAIN: &str = "species:S:1:pos:R:3";

/// All frames of `text`. Blank lines between them are passed over.
pub(super) fn parse(text: &str) -> Result<Vec<Frame>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut frames = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        if lines[at].trim().is_empty() {
            at += 1;
            continue;
        }
        let count: usize = lines[at].trim().parse().map_err(|_| {
            wrong(at + 1, format!("the number of atoms is wanted, not \"{}\"", lines[at].trim()))
        })?;
        let (first, end) = (at + 2, (at + 2).saturating_add(count));
        if end > lines.len() {
            let found = lines.len().saturating_sub(first);
            return Err(wrong(at + 1, format!("{count} atoms are announced and {found} lines follow")));
        }
        frames.push(frame(lines[at + 1], &lines[first..end], at + 2)?);
        at = end;
    }
    Ok(frames)
}

/// One frame; `line` is where its comment stands.
fn frame(comment: &str, rows: &[&str], line: usize) -> Result<Frame> {
    let mut frame = Frame::default();
    let mut columns = columns(PLAIN).unwrap_or_default();
    let mut periodic = None;
    for (key, value) in pairs(comment) {
        let unusable = || wrong(line, format!("{key} cannot be \"{value}\""));
        match key.to_ascii_lowercase().as_str() {
            "lattice" => frame.atoms.cell = Some(matrix(&value).ok_or_else(unusable)?),
            "pbc" => periodic = Some(truths(&value).ok_or_else(unusable)?),
            "properties" => columns = self::columns(&value).ok_or_else(unusable)?,
            "energy" => frame.energy = Some(number(&value).ok_or_else(unusable)?),
            "stress" => frame.stress = Some(stress(&value).ok_or_else(unusable)?),
            "charge" => frame.atoms.charge = Some(number(&value).ok_or_else(unusable)?),
            "spin" => frame.atoms.spin = Some(number(&value).ok_or_else(unusable)?),
            _ => {
                frame.info.insert(key, value);
            }
        }
    }
    frame.atoms.periodic = periodic.unwrap_or([frame.atoms.cell.is_some(); 3]);
    for needed in [["species", "z"], ["pos", "pos"]] {
        if !columns.iter().any(|column| needed.contains(&column.name.as_str())) {
            return Err(wrong(line, format!("Properties name no column \"{}\"", needed[0])));
        }
    }
    for (index, row) in rows.iter().enumerate() {
        read_row(row, &columns, &mut frame).map_err(|message| wrong(line + 1 + index, message))?;
    }
    Ok(frame)
}

struct Column {
    name: String,
    width: usize,
}

/// `name:kind:width` one after the other.
fn columns(properties: &str) -> Option<Vec<Column>> {
    let parts: Vec<&str> = properties.split(':').collect();
    let (columns, []) = parts.as_chunks::<3>() else { return None };
    let column = |[name, kind, width]: &[&str; 3]| {
        let width = width.parse().ok().filter(|width| (1..=1000).contains(width))?;
        let name = name.to_ascii_lowercase();
        let is_known = matches!(*kind, "S" | "R" | "I" | "L");
        let fits = match name.as_str() {
            "species" | "z" => width == 1,
            "pos" | "forces" | "force" => width == 3,
            _ => true,
        };
        (is_known && fits).then_some(Column { name, width })
    };
    columns.iter().map(column).collect()
}

/// Adds the atom of one row to `frame`; errors are what is wrong with the row.
fn read_row(row: &str, columns: &[Column], frame: &mut Frame) -> std::result::Result<(), String> {
    let mut words = row.split_whitespace();
    let (mut species, mut position, mut force) = (None, None, None);
    for column in columns {
        let values: Vec<&str> = words.by_ref().take(column.width).collect();
        if values.len() < column.width {
            return Err(format!("the column \"{}\" is missing", column.name));
        }
        match column.name.as_str() {
            "species" | "z" => species = Some(atomic_number(values[0])?),
            "pos" => position = Some(three(values).ok_or("a position is three finite numbers")?),
            "forces" | "force" => force = Some(three(values).ok_or("a force is three finite numbers")?),
            _ => {}
        }
    }
    if let (Some(species), Some(position)) = (species, position) {
        frame.atoms.numbers.push(species);
        frame.atoms.positions.push(position);
    }
    if let Some(force) = force {
        frame.forces.get_or_insert_default().push(force);
    }
    Ok(())
}

/// A symbol, or a number that stands for one.
fn atomic_number(word: &str) -> std::result::Result<u8, String> {
    let by_number = word.parse().ok().filter(|number| elements::symbol(*number).is_some());
    by_number.or_else(|| elements::number(word)).ok_or_else(|| {
        let known = (1..=elements::LARGEST).filter_map(elements::symbol);
        match nearest(word, known).first() {
            Some(near) => format!("\"{word}\" is no element; nearest: {near}"),
            None => format!("\"{word}\" is no element"),
        }
    })
}

/// The `key=value` pairs of a comment line; values may stand in quotes, braces or brackets, and a key alone is true.
fn pairs(comment: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = comment.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let key = rest[..end].trim_matches('"').to_string();
        rest = rest[end..].trim_start();
        let value = match rest.strip_prefix('=') {
            None => "T".to_string(),
            Some(after) => {
                let after = after.trim_start();
                let closing = match after.chars().next() {
                    Some('"') => Some('"'),
                    Some('\'') => Some('\''),
                    Some('{') => Some('}'),
                    _ => None,
                };
                let (value, left) = match closing {
                    Some(closing) => after[1..].split_once(closing).unwrap_or((&after[1..], "")),
                    None => after.split_at(after.find(char::is_whitespace).unwrap_or(after.len())),
                };
                rest = left;
                value.to_string()
            }
        };
        if !key.is_empty() {
            pairs.push((key, value));
        }
        rest = rest.trim_start();
    }
    pairs
}

fn numbers(value: &str) -> Option<Vec<f64>> {
    let is_between = |c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']');
    value.split(is_between).filter(|word| !word.is_empty()).map(number).collect()
}

/// Nine numbers, row by row.
fn matrix(value: &str) -> Option<[[f64; 3]; 3]> {
    let flat: [f64; 9] = numbers(value)?.try_into().ok()?;
    Some(std::array::from_fn(|i| std::array::from_fn(|j| flat[3 * i + j])))
}

/// Nine numbers row by row, or six as xx, yy, zz, yz, xz, xy.
fn stress(value: &str) -> Option<[f64; 6]> {
    if let Some(m) = matrix(value) {
        let off = |i: usize, j: usize| (m[i][j] + m[j][i]) / 2.0;
        return Some([m[0][0], m[1][1], m[2][2], off(1, 2), off(0, 2), off(0, 1)]);
    }
    numbers(value)?.try_into().ok()
}

fn truths(value: &str) -> Option<[bool; 3]> {
    let truth = |word: &str| match word.to_ascii_lowercase().as_str() {
        "t" | "true" | "1" => Some(true),
        "f" | "false" | "0" => Some(false),
        _ => None,
    };
    let is_between = |c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']');
    let words = value.split(is_between).filter(|word| !word.is_empty());
    let all: Vec<bool> = words.map(truth).collect::<Option<_>>()?;
    match all[..] {
        [one] => Some([one; 3]),
        [a, b, c] => Some([a, b, c]),
        _ => None,
    }
}

/// Writes `frame` as extended XYZ: the cell, what repeats, energy (eV), stress (eV/Å³, nine numbers), charge, spin and
/// what else is known in the comment line; a force (eV/Å) after each position (Å).
///
/// # Errors
/// What writing says.
pub fn write_xyz(out: &mut dyn Write, frame: &Frame) -> std::io::Result<()> {
    let Atoms { numbers, positions, cell, periodic, charge, spin } = &frame.atoms;
    writeln!(out, "{}", numbers.len())?;
    if let Some(cell) = cell {
        let flat: Vec<String> = cell.iter().flatten().map(f64::to_string).collect();
        write!(out, "Lattice=\"{}\" ", flat.join(" "))?;
    }
    let forces = frame.forces.as_ref().filter(|forces| forces.len() == numbers.len());
    write!(out, "Properties={PLAIN}{}", if forces.is_some() { ":forces:R:3" } else { "" })?;
    if let Some(energy) = frame.energy {
        write!(out, " energy={energy}")?;
    }
    if let Some([xx, yy, zz, yz, xz, xy]) = frame.stress {
        write!(out, " stress=\"{xx} {xy} {xz} {xy} {yy} {yz} {xz} {yz} {zz}\"")?;
    }
    for (name, value) in [("charge", charge), ("spin", spin)] {
        if let Some(value) = value {
            write!(out, " {name}={value}")?;
        }
    }
    for (name, value) in &frame.info {
        let value = value.replace(['"', '\n', '\r'], " ");
        match value.is_empty() || value.contains([' ', '=', '\'', '{']) {
            true => write!(out, " {name}=\"{value}\"")?,
            false => write!(out, " {name}={value}")?,
        }
    }
    let truth = |axis: usize| if periodic[axis] { "T" } else { "F" };
    writeln!(out, " pbc=\"{} {} {}\"", truth(0), truth(1), truth(2))?;
    for (index, (number, [x, y, z])) in numbers.iter().zip(positions).enumerate() {
        write!(out, "{:<2} {x:16.10} {y:16.10} {z:16.10}", elements::symbol(*number).unwrap_or("X"))?;
        if let Some([x, y, z]) = forces.map(|forces| forces[index]) {
            write!(out, " {x:16.10} {y:16.10} {z:16.10}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_file_is_a_molecule() {
        let frames = parse("2\na comment with = signs\nO 0 0 0\nh 0.0 1d0 -.5\n\n1\n\n8 1 2 3\n").unwrap();
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0].atoms.numbers, [8, 1]);
        assert_eq!(frames[0].atoms.positions[1], [0.0, 1.0, -0.5]);
        assert_eq!((frames[0].atoms.cell, frames[0].atoms.periodic), (None, [false; 3]));
        assert_eq!(frames[1].atoms.numbers, [8]);
    }

    #[test]
    fn the_comment_line_says_the_rest() {
        let text = "1\nLattice=\"1 2 3 4 5 6 7 8 9\" pbc=\"T F T\" Properties=id:I:1:species:S:1:force:R:3:pos:R:3:tag:I:1 \
                    energy=-2.5 stress=\"1 6 5 6 2 4 5 4 3\" charge=-1 spin=2 name='two words' done\n7 Fe 1 2 3 4 5 6 0\n";
        let frame = parse(text).unwrap().remove(0);
        assert_eq!(frame.atoms.cell, Some([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]));
        assert_eq!(frame.atoms.periodic, [true, false, true]);
        assert_eq!(frame.atoms.positions, [[4.0, 5.0, 6.0]]);
        assert_eq!(frame.forces, Some(vec![[1.0, 2.0, 3.0]]));
        assert_eq!(frame.stress, Some([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        assert_eq!((frame.atoms.charge, frame.atoms.spin, frame.energy), (Some(-1.0), Some(2.0), Some(-2.5)));
        assert_eq!(frame.info["name"], "two words");
        assert_eq!(frame.info["done"], "T");
    }

    #[test]
    fn what_is_written_reads_back() {
        let atoms = Atoms {
            numbers: vec![6, 118],
            positions: vec![[0.125, -3.5, 1e-10], [1000.25, 0.0, 7.0]],
            cell: Some([[3.5, 0.1, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 5.0]]),
            periodic: [true, true, false],
            charge: Some(1.0),
            spin: Some(2.0),
        };
        let frame = Frame {
            atoms,
            energy: Some(-1234.0625),
            forces: Some(vec![[0.5, 0.25, -1.0], [0.0; 3]]),
            stress: Some([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
            info: [("step".to_string(), "3".to_string()), ("note".to_string(), "a b".to_string())].into(),
        };
        let mut out = Vec::new();
        write_xyz(&mut out, &frame).unwrap();
        write_xyz(&mut out, &frame).unwrap();
        assert_eq!(parse(std::str::from_utf8(&out).unwrap()).unwrap(), [frame.clone(), frame]);
    }

    #[test]
    fn errors_name_the_line() {
        let cases = [
            ("two\n\n", "line 1: the number of atoms is wanted, not \"two\""),
            ("3\n\nH 0 0 0\n", "line 1: 3 atoms are announced and 1 lines follow"),
            ("99999999999999999\n\n", "line 1: 99999999999999999 atoms are announced"),
            ("1\n\nQq 0 0 0\n", "line 3: \"Qq\" is no element"),
            ("1\n\nH 0 0\n", "line 3: the column \"pos\" is missing"),
            ("1\n\nH 0 0 inf\n", "line 3: a position is three finite numbers"),
            ("1\nLattice=\"1 2 3\"\nH 0 0 0\n", "line 2: Lattice cannot be \"1 2 3\""),
            ("1\nProperties=pos:R:3\n0 0 0\n", "line 2: Properties name no column \"species\""),
            ("1\nProperties=pos:R:9\n0 0 0\n", "line 2: Properties cannot be"),
            ("1\npbc=maybe\nH 0 0 0\n", "line 2: pbc cannot be \"maybe\""),
        ];
        for (text, wanted) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{error}");
        }
    }
}
