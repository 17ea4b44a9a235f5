//! XYZ: number of atoms, comment line, one line per atom; extended XYZ has properties in the comment line.

use std::io::Write;

use fauna_shared::Result;
use fauna_shared::error::nearest;
use fauna_shared::item::Atoms;

use super::{Column as AtomColumn, Frame, Species, number, push, species, three, wrong};
use crate::elements;

/// The columns of a plain file.
const PLAIN: &str = "species:S:1:pos:R:3";

/// Parses all frames of `text`. Blank lines between frames are skipped, and so are, with a note, lines after the atoms that
/// are neither an atom nor a number (QM9 has frequencies and SMILES there).
pub(super) fn parse(text: &str) -> Result<Vec<Frame>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut frames: Vec<Frame> = Vec::new();
    let is_atom = |line: &str| {
        let mut words = line.split_whitespace();
        words.next().is_some_and(|word| atomic_number(word).is_ok()) && three(words).is_some()
    };
    let mut passed: Option<(usize, usize)> = None;
    let mut at = 0;
    while at < lines.len() {
        if lines[at].trim().is_empty() {
            at += 1;
            continue;
        }
        let count: usize = match (lines[at].trim().parse(), frames.is_empty() || is_atom(lines[at])) {
            (Ok(count), _) => count,
            (Err(_), false) => {
                let (_, count) = passed.get_or_insert((at + 1, 0));
                *count += 1;
                at += 1;
                continue;
            }
            (Err(_), true) => {
                let found = lines[at].trim();
                return Err(wrong(at + 1, format!("expected the number of atoms, found \"{found}\"")));
            }
        };
        let (first, end) = (at + 2, (at + 2).saturating_add(count));
        if end > lines.len() {
            let found = lines.len().saturating_sub(first);
            return Err(wrong(at + 1, format!("expected {count} atoms, found {found} lines")));
        }
        frames.push(frame(lines[at + 1], &lines[first..end], at + 2)?);
        at = end;
    }
    if let (Some((line, count)), Some(first)) = (passed, frames.first_mut()) {
        first.notes.push(format!("{count} lines after atoms are not read, the first of them line {line}"));
    }
    Ok(frames)
}

/// Parses one frame; `line` is that of its comment.
fn frame(comment: &str, rows: &[&str], line: usize) -> Result<Frame> {
    let mut frame = Frame::default();
    let mut columns = columns(PLAIN).unwrap_or_default();
    let mut periodic = None;
    // A comment without `=` is a title.
    let pairs = if comment.contains('=') { pairs(comment) } else { Vec::new() };
    for (key, value) in pairs {
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
            return Err(wrong(line, format!("Properties has no column \"{}\"", needed[0])));
        }
    }
    let is_own = |column: &&Column| !column.is_read();
    frame.columns = columns.iter().filter(is_own).map(Column::to_atom_column).collect();
    frame.atoms.held_along_cell = columns.iter().any(|column| column.name == ALONG_CELL);
    for (index, row) in rows.iter().enumerate() {
        parse_row(row, &columns, &mut frame).map_err(|message| wrong(line + 1 + index, message))?;
    }
    Ok(frame)
}

struct Column {
    /// Name in lower case.
    name: String,
    written: String,
    kind: char,
    width: usize,
}

/// The cell vectors along which an atom may move; [`MOVE_MASK`], which ASE reads too, is for x, y and z.
const ALONG_CELL: &str = "move_mask_along_cell";
const MOVE_MASK: &str = "move_mask";

impl Column {
    /// Whether it has a field in [`Frame`].
    fn is_read(&self) -> bool {
        let known = ["species", "z", "pos", "forces", "force", "masses", MOVE_MASK, ALONG_CELL];
        known.contains(&self.name.as_str())
    }

    /// An empty column for its values as text.
    fn to_atom_column(&self) -> AtomColumn {
        AtomColumn { name: self.written.clone(), kind: self.kind, width: self.width, values: Vec::new() }
    }
}

/// Parses `name:kind:width:…`.
fn columns(properties: &str) -> Option<Vec<Column>> {
    let parts: Vec<&str> = properties.split(':').collect();
    let (columns, []) = parts.as_chunks::<3>() else { return None };
    let column = |[name, kind, width]: &[&str; 3]| {
        let width = width.parse().ok().filter(|width| (1..=1000).contains(width))?;
        let written = name.to_string();
        let name = name.to_ascii_lowercase();
        let is_known = matches!(*kind, "S" | "R" | "I" | "L");
        let kind = kind.chars().next()?;
        let fits = match name.as_str() {
            "species" | "z" | "masses" => width == 1,
            "pos" | "forces" | "force" | ALONG_CELL => width == 3,
            MOVE_MASK => width == 1 || width == 3,
            _ => true,
        };
        (is_known && fits).then_some(Column { name, written, kind, width })
    };
    columns.iter().map(column).collect()
}

/// Adds the atom of one row to `frame`; errors describe the row.
fn parse_row(row: &str, columns: &[Column], frame: &mut Frame) -> std::result::Result<(), String> {
    let mut words = row.split_whitespace();
    let (mut species, mut position, mut force) = (None, None, None);
    let (mut masses, mut held) = (None, None);
    let mut kept = frame.columns.iter_mut();
    for column in columns {
        let values: Vec<&str> = words.by_ref().take(column.width).collect();
        if values.len() < column.width {
            return Err(format!("the column \"{}\" is missing", column.name));
        }
        match column.name.as_str() {
            "species" | "z" => species = Some(atomic_number(values[0])?),
            "pos" => position = Some(three(values).ok_or("a position must be three finite numbers")?),
            "forces" | "force" => force = Some(three(values).ok_or("a force must be three finite numbers")?),
            "masses" => {
                let mass = number(values[0]).filter(|mass| *mass > 0.0);
                masses = Some(mass.ok_or("a mass must be a number above 0")?);
            }
            MOVE_MASK | ALONG_CELL => {
                let free: Option<Vec<bool>> = values.iter().map(|word| truth(word)).collect();
                held = Some(match free.as_deref() {
                    Some([one]) => [!one; 3],
                    Some([a, b, c]) => [!a, !b, !c],
                    _ => return Err(format!("{} must be T or F", column.name)),
                });
            }
            _ => {
                if let Some(column) = kept.next() {
                    column.values.extend(values.into_iter().map(str::to_string));
                }
            }
        }
    }
    if let (Some(species), Some(position)) = (species, position) {
        let (number, mass) = species;
        push(&mut frame.atoms, (number, masses.or(mass)), position);
        frame.atoms.held.extend(held);
    }
    if let Some(force) = force {
        frame.forces.get_or_insert_default().push(force);
    }
    Ok(())
}

/// Parses a symbol or an atomic number.
fn atomic_number(word: &str) -> std::result::Result<Species, String> {
    let by_number = word.parse().ok().filter(|number| elements::symbol(*number).is_some());
    let by_number = by_number.or_else(|| elements::atomic_number(word)).map(|number| (number, None));
    species(word).or(by_number).ok_or_else(|| {
        let known = (1..=elements::MAX_ATOMIC_NUMBER).filter_map(elements::symbol);
        match nearest(word, known).first() {
            Some(near) => format!("\"{word}\" is not an element; nearest: {near}"),
            None => format!("\"{word}\" is not an element"),
        }
    })
}

/// Parses the `key=value` pairs of a comment line; values may be in quotes or braces, and a key alone is true.
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

/// Parses nine numbers, row by row.
fn matrix(value: &str) -> Option<[[f64; 3]; 3]> {
    let flat: [f64; 9] = numbers(value)?.try_into().ok()?;
    Some(std::array::from_fn(|i| std::array::from_fn(|j| flat[3 * i + j])))
}

/// Parses a stress of nine numbers, row by row, or six as xx, yy, zz, yz, xz, xy.
fn stress(value: &str) -> Option<[f64; 6]> {
    if let Some(m) = matrix(value) {
        let off = |i: usize, j: usize| (m[i][j] + m[j][i]) / 2.0;
        return Some([m[0][0], m[1][1], m[2][2], off(1, 2), off(0, 2), off(0, 1)]);
    }
    numbers(value)?.try_into().ok()
}

fn truth(word: &str) -> Option<bool> {
    match word.to_ascii_lowercase().as_str() {
        "t" | "true" | "1" => Some(true),
        "f" | "false" | "0" => Some(false),
        _ => None,
    }
}

fn truths(value: &str) -> Option<[bool; 3]> {
    let is_between = |c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']');
    let words = value.split(is_between).filter(|word| !word.is_empty());
    let all: Vec<bool> = words.map(truth).collect::<Option<_>>()?;
    match all[..] {
        [one] => Some([one; 3]),
        [a, b, c] => Some([a, b, c]),
        _ => None,
    }
}

/// Writes `frame` as extended XYZ: cell, periodicity, energy (eV), stress (eV/Å³, nine numbers), charge, spin and other
/// entries in the comment line; positions (Å), forces (eV/Å) and other columns per atom.
///
/// # Errors
/// Errors of the writer.
pub fn write_xyz(out: &mut dyn Write, frame: &Frame) -> std::io::Result<()> {
    let Atoms { numbers, positions, cell, periodic, charge, spin, held, held_along_cell, masses } =
        &frame.atoms;
    writeln!(out, "{}", numbers.len())?;
    if let Some(cell) = cell {
        let flat: Vec<String> = cell.iter().flatten().map(f64::to_string).collect();
        write!(out, "Lattice=\"{}\" ", flat.join(" "))?;
    }
    let forces = frame.forces.as_ref().filter(|forces| forces.len() == numbers.len());
    write!(out, "Properties={PLAIN}{}", if forces.is_some() { ":forces:R:3" } else { "" })?;
    let count = numbers.len();
    let masses = Some(masses).filter(|masses| masses.len() == count);
    let held = Some(held).filter(|held| held.len() == count && held.iter().flatten().any(|held| *held));
    let whole = held.is_some_and(|held| held.iter().all(|axes| axes[0] == axes[1] && axes[1] == axes[2]));
    // The vectors of a diagonal cell are along x, y and z.
    let is_straight = |cell: &[[f64; 3]; 3]| (0..9).all(|i| i % 4 == 0 || cell[i / 3][i % 3] == 0.0);
    let along_cell = *held_along_cell && !whole && !cell.as_ref().is_some_and(is_straight);
    if masses.is_some() {
        write!(out, ":masses:R:1")?;
    }
    match (held, whole, along_cell) {
        (None, ..) => {}
        (_, true, _) => write!(out, ":{MOVE_MASK}:L:1")?,
        (_, _, true) => write!(out, ":{ALONG_CELL}:L:3")?,
        _ => write!(out, ":{MOVE_MASK}:L:3")?,
    }
    let kept: Vec<&AtomColumn> =
        frame.columns.iter().filter(|column| column.values.len() == count * column.width).collect();
    for AtomColumn { name, kind, width, .. } in &kept {
        write!(out, ":{name}:{kind}:{width}")?;
    }
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
        if let Some(masses) = masses {
            write!(out, " {}", masses[index])?;
        }
        if let Some(held) = held {
            let letters = held[index].map(|held| if held { "F" } else { "T" });
            write!(out, " {}", if whole { letters[0].to_string() } else { letters.join(" ") })?;
        }
        for AtomColumn { width, values, .. } in &kept {
            write!(out, " {}", values[index * width..(index + 1) * width].join(" "))?;
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
    fn the_comment_line_has_properties() {
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
            held: vec![[true; 3], [false; 3]],
            masses: vec![12.011, 2.014],
            ..Atoms::default()
        };
        let column = |name: &str, kind, width, words: &[&str]| AtomColumn {
            name: name.to_string(),
            kind,
            width,
            values: words.iter().map(|word| word.to_string()).collect(),
        };
        let frame = Frame {
            atoms,
            energy: Some(-1234.0625),
            forces: Some(vec![[0.5, 0.25, -1.0], [0.0; 3]]),
            stress: Some([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
            info: [("step".to_string(), "3".to_string()), ("note".to_string(), "a b".to_string())].into(),
            columns: vec![
                column("tags", 'I', 1, &["1", "-2"]),
                column("initial_magmoms", 'R', 3, &["0", "0", "1.50", "2", "0", "0"]),
            ],
            notes: Vec::new(),
        };
        let mut frame = frame;
        let mut out = Vec::new();
        write_xyz(&mut out, &frame).unwrap();
        write_xyz(&mut out, &frame).unwrap();
        assert_eq!(parse(std::str::from_utf8(&out).unwrap()).unwrap(), [frame.clone(), frame.clone()]);
        for along_cell in [false, true] {
            frame.atoms.held = vec![[true, false, false], [false, true, true]];
            frame.atoms.held_along_cell = along_cell;
            let mut out = Vec::new();
            write_xyz(&mut out, &frame).unwrap();
            assert_eq!(parse(std::str::from_utf8(&out).unwrap()).unwrap(), [frame.clone()]);
        }
    }

    #[test]
    fn a_mask_of_moves_holds_atoms() {
        let text = "2\nProperties=species:S:1:pos:R:3:move_mask:L:1:Tag:I:1\nD 0 0 0 F 7\nO 1 1 1 T 8\n";
        let frame = parse(text).unwrap().remove(0);
        assert_eq!(frame.atoms.held, [[true; 3], [false; 3]]);
        assert_eq!((frame.atoms.numbers, frame.atoms.masses), (vec![1, 8], vec![2.014, 15.999]));
        assert_eq!(
            (frame.columns[0].name.as_str(), frame.columns[0].values.join(" ")),
            ("Tag", "7 8".to_string())
        );
        let text = "1\nProperties=species:S:1:pos:R:3:move_mask:L:3\nO 1 1 1 T F maybe\n";
        assert!(parse(text).unwrap_err().to_string().contains("move_mask must be T or F"));
    }

    #[test]
    fn a_molecule_as_qm9_writes_it_is_read() {
        let one = "3\ngdb 7\t0.5\t-3.2\nO\t0.1\t0\t2.77*^-6\t-0.4\nH\t0.9\t0\t0\t0.2\nH\t0\t0.9\t0\t0.2\n\
                   1600.1\t3700.2\t3800.5\nO\tO\nInChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2\n";
        let frames = parse(&format!("{one}{one}")).unwrap();
        assert_eq!(frames.len(), 2);
        assert_eq!(
            (frames[1].atoms.numbers.as_slice(), frames[1].atoms.positions[0][2]),
            (&[8, 1, 1][..], 2.77e-6)
        );
        assert!(frames[0].info.is_empty());
        assert_eq!(frames[0].notes, ["6 lines after atoms are not read, the first of them line 6"]);
        // Another line of an atom is an error.
        let error = parse("1\n\nO 0 0 0\nH 1 0 0\n").unwrap_err().to_string();
        assert!(error.starts_with("line 4: expected the number of atoms"), "{error}");
    }

    #[test]
    fn errors_name_the_line() {
        let cases = [
            ("two\n\n", "line 1: expected the number of atoms, found \"two\""),
            ("3\n\nH 0 0 0\n", "line 1: expected 3 atoms, found 1 lines"),
            ("99999999999999999\n\n", "line 1: expected 99999999999999999 atoms"),
            ("1\n\nQq 0 0 0\n", "line 3: \"Qq\" is not an element"),
            ("1\n\nH 0 0\n", "line 3: the column \"pos\" is missing"),
            ("1\n\nH 0 0 inf\n", "line 3: a position must be three finite numbers"),
            ("1\nLattice=\"1 2 3\"\nH 0 0 0\n", "line 2: Lattice cannot be \"1 2 3\""),
            ("1\nProperties=pos:R:3\n0 0 0\n", "line 2: Properties has no column \"species\""),
            ("1\nProperties=pos:R:9\n0 0 0\n", "line 2: Properties cannot be"),
            ("1\npbc=maybe\nH 0 0 0\n", "line 2: pbc cannot be \"maybe\""),
        ];
        for (text, wanted) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{error}");
        }
    }
}
