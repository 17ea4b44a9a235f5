//! POSCAR, CONTCAR and XDATCAR of VASP.

use fauna_shared::Result;
use fauna_shared::item::Atoms;

use super::{Frame, Species, number, push, three, wrong};
use crate::cell::{self, Matrix};
use crate::elements;

/// Lines with their numbers, counted from 1.
#[derive(Clone)]
struct Lines<'a> {
    lines: std::iter::Enumerate<std::str::Lines<'a>>,
    last: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self, expected: &str) -> Result<(usize, &'a str)> {
        match self.lines.next() {
            Some((index, line)) => {
                self.last = index + 1;
                Ok((self.last, line))
            }
            None => Err(wrong(self.last + 1, format!("expected {expected}, found the end of the file"))),
        }
    }

    /// Skips blank lines and the header of another configuration of an XDATCAR with the same cell, if one follows.
    fn is_same_cell(&mut self) -> bool {
        let mut ahead = self.clone();
        while let Ok((_, line)) = ahead.next("") {
            if is_configuration(line) {
                *self = ahead;
                return true;
            }
            if !line.trim().is_empty() {
                return false;
            }
        }
        false
    }

    fn is_at_end(&self) -> bool {
        self.lines.clone().all(|(_, line)| line.trim().is_empty())
    }
}

/// Whether a line is the header of a configuration of an XDATCAR: `Direct configuration=     1`.
fn is_configuration(line: &str) -> bool {
    let mut words = line.split_whitespace().map(str::to_ascii_lowercase);
    words.next().is_some_and(|word| word == "direct")
        && words.next().is_some_and(|word| word.starts_with("configuration"))
}

/// Parses the structure of `text`, or those of an XDATCAR. Velocities are skipped, with a note.
pub(super) fn parse(text: &str) -> Result<Vec<Frame>> {
    let mut lines = Lines { lines: text.lines().enumerate(), last: 0 };
    let mut frames: Vec<Frame> = Vec::new();
    loop {
        let header = Header::read(&mut lines)?;
        loop {
            frames.push(header.frame(&mut lines)?);
            if !(header.is_path && lines.is_same_cell()) {
                break;
            }
        }
        if lines.is_at_end() {
            return Ok(frames);
        }
        if !header.is_path {
            let note = format!("lines after line {} (velocities) are not read", lines.last);
            frames.iter_mut().for_each(|frame| frame.notes.push(note.clone()));
            return Ok(frames);
        }
    }
}

/// The lines before the positions.
struct Header<'a> {
    title: &'a str,
    lattice: Matrix,
    factors: [f64; 3],
    /// The line of the counts.
    line: usize,
    counts: Vec<usize>,
    /// The line of symbols; `None` in version 4.
    symbols: Option<Vec<&'a str>>,
    is_selective: bool,
    is_direct: bool,
    /// Whether it is an XDATCAR.
    is_path: bool,
}

impl<'a> Header<'a> {
    fn read(lines: &mut Lines<'a>) -> Result<Self> {
        let (_, title) = lines.next("the title")?;
        let (line, scale) = lines.next("the scale")?;
        let scale =
            scales(scale).ok_or_else(|| wrong(line, "the scale must be one number, or three above zero"))?;
        let of_scale = line;
        let mut lattice = [[0.0; 3]; 3];
        for row in &mut lattice {
            let (line, text) = lines.next("a cell vector")?;
            *row = three(text.split_whitespace())
                .ok_or_else(|| wrong(line, "a cell vector must be three finite numbers"))?;
        }
        let factors = factors(scale, &lattice)
            .ok_or_else(|| wrong(of_scale, "the scale is a volume, and the cell has none"))?;
        for row in &mut lattice {
            *row = std::array::from_fn(|axis| row[axis] * factors[axis]);
        }
        let (mut line, mut text) = lines.next("the elements")?;
        let is_old = text.split_whitespace().next().is_some_and(|word| word.parse::<usize>().is_ok());
        let symbols = (!is_old).then(|| text.split_whitespace().collect());
        if !is_old {
            (line, text) = lines.next("the number of atoms of each element")?;
        }
        let of_counts = line;
        let counts = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let (mut line, mut kind) = lines.next("Direct or Cartesian")?;
        let is_selective = kind.trim_start().starts_with(['s', 'S']);
        if is_selective {
            (line, kind) = lines.next("Direct or Cartesian")?;
        }
        let is_direct = match kind.trim_start().chars().next() {
            Some('d' | 'D') => true,
            Some('c' | 'C' | 'k' | 'K') => false,
            _ => return Err(wrong(line, format!("expected Direct or Cartesian, found \"{}\"", kind.trim()))),
        };
        let is_path = is_configuration(kind);
        Ok(Self {
            title,
            lattice,
            factors,
            line: of_counts,
            counts,
            symbols,
            is_selective,
            is_direct,
            is_path,
        })
    }

    /// Parses the atoms of a structure.
    fn frame(&self, lines: &mut Lines) -> Result<Frame> {
        let count = self.counts.iter().fold(0usize, |all, count| all.saturating_add(*count));
        let (mut places, mut held, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            let (line, text) = lines.next("a position")?;
            let mut words = text.split_whitespace();
            let place = three(words.by_ref().take(3))
                .ok_or_else(|| wrong(line, "a position must be three finite numbers"))?;
            places.push(match self.is_direct {
                true => cell::times(&place, &self.lattice),
                false => std::array::from_fn(|axis| place[axis] * self.factors[axis]),
            });
            if self.is_selective {
                let flags: Option<Vec<bool>> = words.by_ref().take(3).map(is_held).collect();
                let flags = flags.and_then(|flags| <[bool; 3]>::try_from(flags).ok());
                held.push(flags.ok_or_else(|| {
                    wrong(line, "expected three flags, T or F, after a position with selective dynamics")
                })?);
            }
            labels.extend(words.next().and_then(symbol));
        }
        let mut frame =
            Frame::from(Atoms { cell: Some(self.lattice), periodic: [true; 3], ..Atoms::default() });
        let species = self.species(&labels, count, &mut frame.notes)?;
        species.into_iter().zip(places).for_each(|(species, place)| push(&mut frame.atoms, species, place));
        if held.iter().flatten().any(|held| *held) {
            frame.atoms.held_along_cell =
                !held.iter().all(|axes: &[bool; 3]| axes[0] == axes[1] && axes[1] == axes[2]);
            frame.atoms.held = held;
        }
        Ok(frame)
    }

    /// The elements of `count` atoms: by the line of symbols; in version 4 by the `labels` after the positions, if each has
    /// one (as pymatgen), else by the title (as ASE).
    fn species(&self, labels: &[Species], count: usize, notes: &mut Vec<String>) -> Result<Vec<Species>> {
        const HINT: &str = "give the elements in the line before the counts, as VASP 5: Na Cl";
        let each = |kinds: &[Species]| -> Vec<Species> {
            let of = |(count, kind): (&usize, &Species)| std::iter::repeat_n(*kind, *count);
            self.counts.iter().zip(kinds).flat_map(of).collect()
        };
        let labels = Some(labels).filter(|labels| labels.len() == count && count > 0);
        let Some(names) = &self.symbols else {
            let mut kinds = in_title(self.title);
            kinds.truncate(self.counts.len());
            let by_title = (kinds.len() == self.counts.len() && count > 0).then(|| each(&kinds));
            return match (labels, by_title) {
                (Some(labels), by_title) => {
                    if by_title.is_some_and(|by_title| by_title != labels) {
                        notes.push(
                            "the title has other elements than the lines of the atoms, which are taken"
                                .to_string(),
                        );
                    }
                    Ok(labels.to_vec())
                }
                (None, Some(by_title)) => Ok(by_title),
                (None, None) => Err(wrong(
                    self.line,
                    format!("{} counts for {} elements in the title", self.counts.len(), kinds.len()),
                )
                .hint(HINT)),
            };
        };
        if self.counts.is_empty() || names.len() != self.counts.len() {
            let message = format!("{} counts for {} elements", self.counts.len(), names.len());
            return Err(wrong(self.line, message).hint(HINT));
        }
        let kind = |name: &&str| {
            symbol(name).ok_or_else(|| wrong(self.line, format!("\"{name}\" is not an element")).hint(HINT))
        };
        let kinds: Vec<Species> = names.iter().map(kind).collect::<Result<_>>()?;
        let species = each(&kinds);
        if labels.is_some_and(|labels| labels != species) {
            notes.push(
                "the lines of the atoms have other elements than the line of symbols, which is taken"
                    .to_string(),
            );
        }
        Ok(species)
    }
}

/// Whether a flag of selective dynamics fixes an atom: `F`, `T`, `.FALSE.`, `.TRUE.`.
fn is_held(word: &str) -> Option<bool> {
    match word.trim_start_matches('.').chars().next()? {
        'F' | 'f' => Some(true),
        'T' | 't' => Some(false),
        _ => None,
    }
}

/// The element of a word: `Na`, `na`, `Fe_pv`, `O/ab12`. Two upper-case letters are ambiguous.
fn symbol(word: &str) -> Option<Species> {
    let name = word.split(['_', '/']).next()?;
    super::species(name).or_else(|| {
        let is_small = name.bytes().all(|byte| byte.is_ascii_lowercase());
        elements::atomic_number(name).filter(|_| is_small).map(|number| (number, None))
    })
}

/// The elements in a title of symbols or formulas: `Ga As`, `NaCl made by hand`.
fn in_title(title: &str) -> Vec<Species> {
    let formula = |word: &str| -> Option<Vec<Species>> {
        let word: String = word.chars().filter(|c| !(c.is_ascii_digit() || "-_,.=".contains(*c))).collect();
        let mut found = Vec::new();
        let mut rest = word.as_str();
        while !rest.is_empty() {
            let small = rest[1..].find(|c: char| !c.is_ascii_lowercase()).map_or(rest.len(), |end| end + 1);
            found.push(super::species(&rest[..small])?);
            rest = &rest[small..];
        }
        Some(found)
    };
    title.split_whitespace().filter(|word| word.is_ascii()).filter_map(formula).flatten().collect()
}

/// Parses one number, or three.
fn scales(line: &str) -> Option<[f64; 3]> {
    let words: Vec<f64> = line.split_whitespace().map_while(number).take(3).collect();
    match words[..] {
        [a, b, c] if a > 0.0 && b > 0.0 && c > 0.0 => Some([a, b, c]),
        [a, ..] if a != 0.0 && words.len() < 3 => Some([a; 3]),
        _ => None,
    }
}

/// The factors of the axes; a negative scale is the volume.
fn factors(scale: [f64; 3], lattice: &cell::Matrix) -> Option<[f64; 3]> {
    if scale[0] > 0.0 {
        return Some(scale);
    }
    let factor = (-scale[0] / cell::volume(lattice)).cbrt();
    (factor.is_finite() && factor > 0.0).then_some([factor; 3])
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
    fn flags_of_selective_dynamics_hold_atoms() {
        let text = "t\n1\n3 0 0\n1 3 0\n0 0 4\nNa D\n1 2\nSelective\nDirect\n";
        let atoms = one(&format!("{text}0 0 0 F F F\n.5 .5 .5 .TRUE. T .FALSE.\n0 0 .25 T T T\n"));
        assert_eq!(atoms.held, [[true; 3], [false, false, true], [false; 3]]);
        assert!(atoms.held_along_cell);
        assert_eq!(atoms.masses[1..], [2.014, 2.014]);
        let whole = one(&format!("{text}0 0 0 F F F\n.5 .5 .5 T T T\n0 0 .25 T T T\n"));
        assert!(!whole.held_along_cell && whole.held[0] == [true; 3]);
        assert!(one(&format!("{text}0 0 0 T T T\n.5 .5 .5 T T T\n0 0 .25 T T T\n")).held.is_empty());
    }

    #[test]
    fn in_version_4_the_lines_of_the_atoms_or_the_title_name_the_elements() {
        let rest = "1\n3 0 0\n0 3 0\n0 0 4\n2 1\nDirect\n";
        let labelled = "0 0 0 Mg\n.5 0 0 Mg\n0 .5 0 O\n";
        for title in ["some words", "Ga As"] {
            let frame = parse(&format!("{title}\n{rest}{labelled}")).unwrap().remove(0);
            assert_eq!(frame.atoms.numbers, [12, 12, 8]);
            assert_eq!(frame.notes.len(), usize::from(title == "Ga As"), "{:?}", frame.notes);
        }
        let bare = "0 0 0\n.5 0 0\n0 .5 0\n";
        assert_eq!(one(&format!("Mg2O by hand\n{rest}{bare}")).numbers, [12, 12, 8]);
        assert!(parse(&format!("some words\n{rest}{bare}")).is_err());
    }

    #[test]
    fn all_structures_of_an_xdatcar_are_read() {
        let head = |side: f64| format!("salt\n1\n{side} 0 0\n0 3 0\n0 0 4\nNa Cl\n1 1\n");
        let places = |at: f64| format!("0 0 0\n{at} .5 .5\n");
        let still = format!(
            "{}Direct configuration=     1\n{}Direct configuration=     2\n{}\nDirect configuration=     3\n{}\n",
            head(3.0),
            places(0.5),
            places(0.25),
            places(0.75)
        );
        let moving = format!(
            "{}Direct configuration=     1\n{}{}Direct configuration=     2\n{}",
            head(3.0),
            places(0.5),
            head(4.0),
            places(0.5)
        );
        let x = |text: &str| {
            parse(text).unwrap().iter().map(|frame| frame.atoms.positions[1][0]).collect::<Vec<_>>()
        };
        assert_eq!(x(&still), [1.5, 0.75, 2.25]);
        assert_eq!(x(&moving), [1.5, 2.0]);
        assert!(parse(&still[..still.len() - 12]).unwrap_err().to_string().contains("a position"));
        let velocities = parse(&format!("{}Direct\n{}\n0.1 0 0\n0 0 0\n", head(3.0), places(0.5))).unwrap();
        assert!(velocities.len() == 1 && velocities[0].notes[0].contains("velocities"));
    }

    #[test]
    fn errors_name_the_line() {
        let cell = "3 0 0\n0 3 0\n0 0 4\n";
        let cases = [
            ("".to_string(), "line 1: expected the title, found the end"),
            ("t\n0\n".to_string(), "line 2: the scale must be"),
            ("t\n1\n3 0 0\n0 x 0\n".to_string(), "line 4: a cell vector"),
            ("t\n-1\n3 0 0\n0 3 0\n3 3 0\n".to_string(), "line 2: the scale is a volume"),
            (format!("t\n1\n{cell}Na Cl\n1\nD\n0 0 0\n"), "line 7: 1 counts for 2 elements"),
            (
                format!("a title\n1\n{cell}1 1\nD\n0 0 0\n0 0 0\n"),
                "line 6: 2 counts for 0 elements in the title",
            ),
            (format!("t\n1\n{cell}NA\n1\nD\n0 0 0\n"), "line 7: \"NA\" is not an element"),
            (format!("t\n1\n{cell}Na\n1\nSel\nD\n0 0 0 T F\n"), "line 10: expected three flags"),
            (format!("t\n1\n{cell}Na\n1\nsome\n"), "line 9: expected Direct or Cartesian, found the end"),
            (format!("t\n1\n{cell}Na\n1\nwhat\n"), "line 8: expected Direct or Cartesian"),
            (
                format!("t\n1\n{cell}Na\n99999999999\nD\n0 0 0\n"),
                "line 10: expected a position, found the end",
            ),
            (format!("t\n1\n{cell}Na\n1\nD\n0 0\n"), "line 9: a position must be three"),
        ];
        for (text, wanted) in cases {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{error} for {text}");
        }
    }
}
