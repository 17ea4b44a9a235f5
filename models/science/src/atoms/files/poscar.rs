//! VASP's POSCAR and CONTCAR.

use fauna_shared::Result;
use fauna_shared::item::Atoms;

use super::super::cell;
use super::{Frame, element, number, three, wrong};

/// Lines with their numbers, the first being 1.
struct Lines<'a> {
    lines: std::iter::Enumerate<std::str::Lines<'a>>,
    last: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self, wanted: &str) -> Result<(usize, &'a str)> {
        match self.lines.next() {
            Some((index, line)) => {
                self.last = index + 1;
                Ok((self.last, line))
            }
            None => Err(wrong(self.last + 1, format!("the file ends where {wanted} should stand"))),
        }
    }
}

/// The one structure of `text`. Which atoms may move (selective dynamics) and velocities are not read.
pub(super) fn parse(text: &str) -> Result<Vec<Frame>> {
    let mut lines = Lines { lines: text.lines().enumerate(), last: 0 };
    let (_, comment) = lines.next("the title")?;
    let (line, scale) = lines.next("the scale")?;
    let scale = scales(scale).ok_or_else(|| wrong(line, "the scale is one number, or three above zero"))?;
    let mut lattice = [[0.0; 3]; 3];
    for row in &mut lattice {
        let (line, text) = lines.next("a cell vector")?;
        *row = three(text.split_whitespace())
            .ok_or_else(|| wrong(line, "a cell vector is three finite numbers"))?;
    }
    let factors =
        factors(scale, &lattice).ok_or_else(|| wrong(2, "a volume is wanted, and the cell has none"))?;
    for row in &mut lattice {
        *row = std::array::from_fn(|axis| row[axis] * factors[axis]);
    }
    let numbers = species(&mut lines, comment)?;
    let (mut line, mut kind) = lines.next("Direct or Cartesian")?;
    if kind.trim_start().starts_with(['s', 'S']) {
        (line, kind) = lines.next("Direct or Cartesian")?;
    }
    let is_direct = match kind.trim_start().chars().next() {
        Some('d' | 'D') => true,
        Some('c' | 'C' | 'k' | 'K') => false,
        _ => return Err(wrong(line, format!("Direct or Cartesian is wanted, not \"{}\"", kind.trim()))),
    };
    let mut atoms = Atoms { cell: Some(lattice), periodic: [true; 3], ..Atoms::default() };
    for (count, symbol) in numbers {
        for _ in 0..count {
            let (line, text) = lines.next("a position")?;
            let place = three(text.split_whitespace())
                .ok_or_else(|| wrong(line, "a position is three finite numbers"))?;
            atoms.numbers.push(symbol);
            atoms.positions.push(match is_direct {
                true => cell::times(&place, &lattice),
                false => std::array::from_fn(|axis| place[axis] * factors[axis]),
            });
        }
    }
    Ok(vec![atoms.into()])
}

/// One number, or three.
fn scales(line: &str) -> Option<[f64; 3]> {
    let words: Vec<f64> = line.split_whitespace().map_while(number).take(3).collect();
    match words[..] {
        [a, b, c] if a > 0.0 && b > 0.0 && c > 0.0 => Some([a, b, c]),
        [a, ..] if a != 0.0 && words.len() < 3 => Some([a; 3]),
        _ => None,
    }
}

/// What every axis is multiplied by; a scale below zero is the volume wanted.
fn factors(scale: [f64; 3], lattice: &cell::Matrix) -> Option<[f64; 3]> {
    if scale[0] > 0.0 {
        return Some(scale);
    }
    let factor = (-scale[0] / cell::volume(lattice)).cbrt();
    (factor.is_finite() && factor > 0.0).then_some([factor; 3])
}

/// How many atoms of which element follow, from the lines of symbols and counts; in version 4, the title names them.
fn species(lines: &mut Lines, comment: &str) -> Result<Vec<(usize, u8)>> {
    let (mut line, mut text) = lines.next("the elements")?;
    let in_title = text.split_whitespace().next().is_some_and(|word| word.parse::<usize>().is_ok());
    let mut names: Vec<&str> = if in_title { comment } else { text }.split_whitespace().collect();
    if !in_title {
        (line, text) = lines.next("the number of atoms of each element")?;
    }
    let counts: Vec<usize> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
    if in_title {
        // More words may follow the symbols.
        names.truncate(counts.len());
    }
    if counts.is_empty() || names.len() != counts.len() {
        return Err(wrong(line, format!("{} counts for {} elements", counts.len(), names.len()))
            .hint("the line before the counts names the elements, as VASP 5 writes it"));
    }
    let pair = |(count, name): (usize, &&str)| match element(name.split(['_', '/']).next().unwrap_or("")) {
        Some(number) => Ok((count, number)),
        None => Err(wrong(line, format!("\"{name}\" is no element"))
            .hint("the line before the counts names the elements, as VASP 5 writes it")),
    };
    counts.into_iter().zip(&names).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: &[f64; 3], b: &[f64; 3]) -> bool {
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9)
    }

    fn one(text: &str) -> Atoms {
        parse(text).unwrap().remove(0).atoms
    }

    #[test]
    fn fractions_and_lengths_are_told_apart_and_scaled() {
        let cell = "3 0 0\n0 3 0\n0 0 4\nNa Cl\n1 2\n";
        let direct = one(&format!("t\n2.0\n{cell}Direct\n0 0 0\n.5 .5 .5\n0 0 .25\n"));
        assert_eq!(direct.numbers, [11, 17, 17]);
        assert_eq!(direct.cell.unwrap()[2], [0.0, 0.0, 8.0]);
        assert!(near(&direct.positions[1], &[3.0, 3.0, 4.0]));
        let lengths = one(&format!(
            "t\n2.0\n{cell}Selective dynamics\nCartesian\n0 0 0 T T T\n1 1 1 F F F\n0 0 1 T F T\n"
        ));
        assert!(near(&lengths.positions[1], &[2.0, 2.0, 2.0]));
        let volume = one(&format!("t\n-288\n{cell}K\n0 0 0\n1 1 1\n0 0 1\n"));
        assert!((cell::volume(&volume.cell.unwrap()) - 288.0).abs() < 1e-9);
        assert!(near(&volume.positions[2], &[0.0, 0.0, 2.0]));
        let three = one(&format!("t\n1 2 3\n{cell}Cartesian\n0 0 0\n1 1 1\n0 0 1\n"));
        assert!(near(&three.positions[1], &[1.0, 2.0, 3.0]));
    }

    #[test]
    fn elements_may_carry_the_name_of_a_potential_or_stand_in_the_title() {
        let cell = "3 0 0\n0 3 0\n0 0 4\n";
        assert_eq!(one(&format!("t\n1\n{cell}Fe_pv O/ab12\n1 1\nD\n0 0 0\n.5 0 0\n")).numbers, [26, 8]);
        assert_eq!(one(&format!("Ga As made by hand\n1\n{cell}1 1\nD\n0 0 0\n.5 0 0\n")).numbers, [31, 33]);
    }

    #[test]
    fn errors_name_the_line() {
        let cell = "3 0 0\n0 3 0\n0 0 4\n";
        let cases = [
            ("".to_string(), "line 1: the file ends where the title"),
            ("t\n0\n".to_string(), "line 2: the scale is"),
            ("t\n1\n3 0 0\n0 x 0\n".to_string(), "line 4: a cell vector"),
            ("t\n-1\n3 0 0\n0 3 0\n3 3 0\n".to_string(), "line 2: a volume is wanted"),
            (format!("t\n1\n{cell}Na Cl\n1\nD\n"), "line 7: 1 counts for 2 elements"),
            (format!("a title\n1\n{cell}1 1\nD\n0 0 0\n0 0 0\n"), "line 6: \"a\" is no element"),
            (format!("t\n1\n{cell}Na\n1\nsome\n"), "line 9: the file ends where Direct"),
            (format!("t\n1\n{cell}Na\n1\nwhat\n"), "line 8: Direct or Cartesian is wanted"),
            (format!("t\n1\n{cell}Na\n99999999999\nD\n0 0 0\n"), "line 10: the file ends where a position"),
            (format!("t\n1\n{cell}Na\n1\nD\n0 0\n"), "line 9: a position is three"),
        ];
        for (text, wanted) in cases {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{error} for {text}");
        }
    }
}
