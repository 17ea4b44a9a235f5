//! The Crystallographic Information File (Hall, Allen and Brown 1991): data blocks of names with values, and loops.

use std::collections::HashMap;

use fauna_shared::item::Atoms;
use fauna_shared::{Error, ErrorKind, Result};

use super::{Frame, Species, element, push, species, wrong};
use crate::cell::{self, Matrix, Vector};
use crate::elements;

/// Maximum number of symmetry operations; space groups have up to 192.
const MAX_OPERATIONS: usize = 1000;
/// Images of a site nearer than this, in Å, are one atom: files round thirds and sixths.
const MERGE_DISTANCE: f64 = 0.05;
/// Maximum number of atoms.
const MAX_ATOMS: usize = 10_000_000;

/// Parses one structure per data block with sites.
pub(super) fn parse(text: &str) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    for block in blocks(tokens(text)?)? {
        if let Some(sites) = block.sites()? {
            frames.push(block.frame(&sites)?);
        }
    }
    Ok(frames)
}

/// A token of the file.
#[derive(Debug, Clone, PartialEq)]
struct Token {
    line: usize,
    text: String,
    /// Quoted, so that it is a value.
    quoted: bool,
}

impl Token {
    fn is_name(&self) -> bool {
        !self.quoted && self.text.starts_with('_')
    }

    fn is_word(&self, word: &str) -> bool {
        !self.quoted && self.text.eq_ignore_ascii_case(word)
    }

    fn starts_block(&self) -> bool {
        !self.quoted && self.text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("data_"))
    }

    fn is_value(&self) -> bool {
        !(self.is_name() || self.is_word("loop_") || self.starts_block())
    }

    /// The text, unless it is `.` or `?`.
    fn known(&self) -> Option<&str> {
        (self.quoted || !matches!(self.text.as_str(), "." | "?")).then_some(&self.text)
    }

    /// Parses a number, without the uncertainty in parentheses after it.
    fn number(&self) -> Result<Option<f64>> {
        let Some(text) = self.known() else { return Ok(None) };
        let digits = text.split('(').next().unwrap_or(text);
        match super::number(digits) {
            Some(value) => Ok(Some(value)),
            None => Err(wrong(self.line, format!("expected a number, found \"{text}\""))),
        }
    }
}

/// Splits the text into tokens, without comments.
fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if let Some(first) = line.strip_prefix(';') {
            let mut whole = first.to_string();
            loop {
                match lines.next() {
                    Some((_, line)) if line.starts_with(';') => break,
                    Some((_, line)) => {
                        whole.push('\n');
                        whole.push_str(line);
                    }
                    None => return Err(wrong(index + 1, "a text field that begins with ; is not closed")),
                }
            }
            tokens.push(Token { line: index + 1, text: whole, quoted: true });
            continue;
        }
        words(line, index + 1, &mut tokens)?;
    }
    Ok(tokens)
}

fn words(line: &str, number: usize, tokens: &mut Vec<Token>) -> Result<()> {
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let mut push =
            |text: &str, quoted| tokens.push(Token { line: number, text: text.to_string(), quoted });
        match first {
            '#' => return Ok(()),
            '\'' | '"' => {
                // A quote ends before white space.
                let inner = &rest[1..];
                let ends = |(place, _): &(usize, &str)| {
                    inner[place + 1..].chars().next().is_none_or(char::is_whitespace)
                };
                let Some((end, _)) = inner.match_indices(first).find(ends) else {
                    return Err(wrong(number, "a quote is not closed"));
                };
                push(&inner[..end], true);
                rest = inner[end + 1..].trim_start();
            }
            _ => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                push(&rest[..end], false);
                rest = rest[end..].trim_start();
            }
        }
    }
    Ok(())
}

/// A data block: columns of values by name; a single value is a column of one.
#[derive(Default)]
struct Block {
    columns: HashMap<String, Vec<Token>>,
}

fn blocks(tokens: Vec<Token>) -> Result<Vec<Block>> {
    let mut blocks = vec![Block::default()];
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let last = blocks.len() - 1;
        if token.starts_block() {
            blocks.push(Block::default());
        } else if token.is_word("loop_") {
            let mut names = Vec::new();
            while let Some(name) = tokens.next_if(Token::is_name) {
                names.push(name.text.to_ascii_lowercase());
            }
            let mut columns = vec![Vec::new(); names.len()];
            let mut count = 0;
            while let Some(value) = tokens.next_if(Token::is_value) {
                match columns.get_mut(count % names.len().max(1)) {
                    Some(column) => column.push(value),
                    None => return Err(wrong(value.line, "a loop of values without names")),
                }
                count += 1;
            }
            if !names.is_empty() && count % names.len() != 0 {
                let message = format!("{count} values in a loop of {} names", names.len());
                return Err(wrong(token.line, message));
            }
            blocks[last].columns.extend(names.into_iter().zip(columns));
        } else if token.is_name() {
            let value = tokens.next_if(Token::is_value);
            let value = value.ok_or_else(|| wrong(token.line, format!("{} has no value", token.text)))?;
            blocks[last].columns.insert(token.text.to_ascii_lowercase(), vec![value]);
        } else {
            return Err(wrong(token.line, format!("\"{}\" is a value without a name", token.text)));
        }
    }
    Ok(blocks)
}

/// A site as the file gives it.
struct Site {
    /// Possible elements of the symbol or label, the first by the rule of ASE.
    readings: [Option<Species>; 2],
    label: Token,
    place: Vector,
    is_fractional: bool,
}

impl Block {
    fn column(&self, name: &str) -> Option<&[Token]> {
        self.columns.get(name).map(Vec::as_slice)
    }

    fn value(&self, names: &[&str]) -> Option<&Token> {
        names.iter().find_map(|name| self.column(name)?.first())
    }

    /// The sites; `None` without any.
    fn sites(&self) -> Result<Option<Vec<Site>>> {
        let axes = |kind: &str| {
            let [x, y, z] = ["x", "y", "z"].map(|axis| self.column(&format!("_atom_site_{kind}_{axis}")));
            Some([x?, y?, z?])
        };
        let (places, is_fractional) = match (axes("fract"), axes("cartn")) {
            (Some(places), _) => (places, true),
            (None, Some(places)) => (places, false),
            (None, None) => return Ok(None),
        };
        let symbols = self.column("_atom_site_type_symbol").or_else(|| self.column("_atom_site_label"));
        let Some(symbols) = symbols else {
            return Err(Error::new(
                ErrorKind::Format,
                "the sites have neither _atom_site_type_symbol nor _atom_site_label",
            ));
        };
        let mut sites = Vec::with_capacity(symbols.len());
        for (index, symbol) in symbols.iter().enumerate() {
            self.check_occupancy(index, symbol)?;
            let [x, y, z] = places.map(|column| match column.get(index) {
                Some(token) => token.number(),
                None => Err(wrong(symbol.line, "a site has no coordinates")),
            });
            let (Some(x), Some(y), Some(z)) = (x?, y?, z?) else {
                return Err(wrong(symbol.line, format!("the position of {} is unknown", symbol.text)));
            };
            let readings = readings(&symbol.text);
            if readings == [None, None] {
                return Err(wrong(symbol.line, format!("\"{}\" is not an element", symbol.text)));
            }
            sites.push(Site { readings, label: symbol.clone(), place: [x, y, z], is_fractional });
        }
        Ok((!sites.is_empty()).then_some(sites))
    }

    fn check_occupancy(&self, index: usize, symbol: &Token) -> Result<()> {
        let occupancy = self.column("_atom_site_occupancy").and_then(|column| column.get(index));
        match occupancy.map(Token::number).transpose()?.flatten() {
            Some(share) if (share - 1.0).abs() > 1e-3 => {
                let label = self.column("_atom_site_label").and_then(|column| column.get(index));
                let label = label.map_or(&symbol.text, |label| &label.text);
                Err(Error::unsupported(format!(
                    "line {}: {label} has _atom_site_occupancy {share}",
                    symbol.line
                ))
                .hint("potentials need fully occupied sites: use an ordered structure"))
            }
            _ => Ok(()),
        }
    }

    /// The cell, with a along x and b in the xy plane; `None` without one.
    fn cell(&self) -> Result<Option<Matrix>> {
        let value = |name: &str| match self.value(&[name]) {
            Some(token) => Ok(token.number()?.map(|value| (value, token.line))),
            None => Ok(None),
        };
        let lengths = ["_cell_length_a", "_cell_length_b", "_cell_length_c"].map(value);
        let angles = ["_cell_angle_alpha", "_cell_angle_beta", "_cell_angle_gamma"].map(value);
        let ([a, b, c], [alpha, beta, gamma]) = (lengths, angles);
        let (Some((a, line)), Some((b, _)), Some((c, _))) = (a?, b?, c?) else { return Ok(None) };
        let right =
            |angle: Result<Option<(f64, usize)>>| Ok::<_, Error>(angle?.map_or(90.0, |(value, _)| value));
        let (alpha, beta, gamma) = (right(alpha)?, right(beta)?, right(gamma)?);
        // The cosine of a right angle is exactly zero.
        let cosine = |angle: f64| if angle == 90.0 { 0.0 } else { angle.to_radians().cos() };
        let (cos_alpha, cos_beta, cos_gamma) = (cosine(alpha), cosine(beta), cosine(gamma));
        let sin_gamma = (1.0 - cos_gamma * cos_gamma).sqrt();
        let y = (cos_alpha - cos_beta * cos_gamma) / sin_gamma;
        let z = (1.0 - cos_beta * cos_beta - y * y).sqrt();
        let cell = [[a, 0.0, 0.0], [b * cos_gamma, b * sin_gamma, 0.0], [c * cos_beta, c * y, c * z]];
        let spans =
            [a, b, c].iter().all(|length| *length > 0.0) && cell.iter().flatten().all(|v| v.is_finite());
        match spans && cell::volume(&cell) > 0.0 {
            true => Ok(Some(cell)),
            false => Err(wrong(
                line,
                format!("no cell has lengths {a}, {b}, {c} and angles {alpha}, {beta}, {gamma}"),
            )),
        }
    }

    /// The symmetry operations of the space group.
    fn operations(&self) -> Result<Vec<Operation>> {
        let names = ["_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz"];
        if let Some(tokens) = names.iter().find_map(|name| self.column(name)) {
            if tokens.len() > MAX_OPERATIONS {
                return Err(wrong(tokens[0].line, format!("{} symmetry operations", tokens.len())));
            }
            let read = |token: &Token| {
                operation(&token.text).ok_or_else(|| {
                    wrong(token.line, format!("\"{}\" is not a symmetry operation", token.text))
                })
            };
            return tokens.iter().map(read).collect();
        }
        let group = self.value(&[
            "_space_group_name_h-m_alt",
            "_symmetry_space_group_name_h-m",
            "_space_group_it_number",
            "_symmetry_int_tables_number",
        ]);
        let is_plain = |name: &str| {
            let name: String = name.chars().filter(|c| !c.is_whitespace()).collect();
            name.eq_ignore_ascii_case("p1") || name == "1"
        };
        match group.and_then(Token::known) {
            Some(name) if !is_plain(name) => Err(Error::unsupported(format!(
                "the operations of the space group \"{name}\" are not listed"
            ))
            .hint("list them as _space_group_symop_operation_xyz, or expand the structure to P 1")),
            _ => Ok(vec![([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [0.0; 3])]),
        }
    }

    /// Elements and counts of the chemical formula; `None` without a valid one.
    fn formula(&self) -> Option<(&Token, Vec<(u8, f64)>)> {
        let token = self.value(&["_chemical_formula_sum"])?;
        let mut counts: Vec<(u8, f64)> = Vec::new();
        for word in token.known()?.split([' ', ',', '\t', '\n', '\r']).filter(|word| !word.is_empty()) {
            let end = word.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(word.len());
            let (symbol, count) = word.split_at(end);
            let number = elements::isotope(symbol).map(|_| 1).or_else(|| elements::atomic_number(symbol))?;
            let count = if count.is_empty() { 1.0 } else { super::number(count)? };
            match counts.iter_mut().find(|(known, _)| *known == number) {
                Some((_, all)) => *all += count,
                None => counts.push((number, count)),
            }
        }
        (!counts.is_empty()).then_some((token, counts))
    }

    /// All atoms of the cell, checked against the formula.
    ///
    /// A label in upper case may begin with a symbol of one or two letters (`CO1`, `HO1`): the reading of ASE is taken,
    /// unless only the other agrees with the formula.
    fn frame(&self, sites: &[Site]) -> Result<Frame> {
        let read = |which: usize| {
            let kinds: Vec<Species> =
                sites.iter().filter_map(|site| site.readings[which].or(site.readings[1 - which])).collect();
            self.structure(sites, &kinds)
        };
        let Some((token, formula)) = self.formula() else { return Ok(read(0)?.into()) };
        let is_named = |number: &u8| formula.iter().any(|(known, _)| known == number);
        let is_ambiguous = sites.iter().any(|site| site.readings[0] != site.readings[1]);
        let mut named = None;
        for which in 0..=usize::from(is_ambiguous) {
            let atoms = read(which)?;
            if !atoms.numbers.iter().all(is_named) {
                continue;
            }
            if is_multiple(&atoms.numbers, &formula) {
                return Ok(atoms.into());
            }
            named.get_or_insert(atoms);
        }
        let Some(atoms) = named else {
            let stranger =
                sites.iter().find(|site| !site.readings[0].is_some_and(|(number, _)| is_named(&number)));
            let label = stranger.map_or(&sites[0].label, |site| &site.label);
            let symbol = element(&label.text)
                .and_then(|(number, _)| elements::symbol(number))
                .unwrap_or("not an element");
            return Err(wrong(
                label.line,
                format!(
                    "\"{}\" is {symbol}, which is not in _chemical_formula_sum \"{}\"",
                    label.text, token.text
                ),
            )
            .hint("correct the formula, or give the elements as _atom_site_type_symbol"));
        };
        let mut frame = Frame::from(atoms);
        frame.notes.push(format!(
            "the numbers of atoms are not in the proportion of _chemical_formula_sum \"{}\"",
            token.text
        ));
        Ok(frame)
    }

    /// All atoms of the cell, with the given elements of the sites.
    fn structure(&self, sites: &[Site], kinds: &[Species]) -> Result<Atoms> {
        let Some(cell) = self.cell()? else {
            if sites.iter().any(|site| site.is_fractional) {
                return Err(Error::new(
                    ErrorKind::Format,
                    "fractional coordinates without _cell_length_a, _b and _c",
                ));
            }
            let mut atoms = Atoms::default();
            sites.iter().zip(kinds).for_each(|(site, kind)| push(&mut atoms, *kind, site.place));
            return Ok(atoms);
        };
        let (inverse, operations) = (cell::inverse(&cell), self.operations()?);
        let mut atoms = Atoms { cell: Some(cell), periodic: [true; 3], ..Atoms::default() };
        if sites.len().saturating_mul(operations.len()) > MAX_ATOMS {
            return Err(Error::new(ErrorKind::Format, format!("more than {MAX_ATOMS} atoms")));
        }
        for (site, kind) in sites.iter().zip(kinds) {
            let place = if site.is_fractional { site.place } else { cell::times(&site.place, &inverse) };
            for image in images(&place, &operations, &cell) {
                push(&mut atoms, *kind, cell::times(&image, &cell));
            }
        }
        Ok(atoms)
    }
}

/// Possible elements of a symbol or label: by its letter case, as in ASE, and with the second letter in upper case.
fn readings(label: &str) -> [Option<Species>; 2] {
    // ASE starts at the first upper-case letter.
    let start = label.find(|c: char| c.is_ascii_uppercase()).unwrap_or(0);
    let known = element(&label[start..]);
    let mut letters = label[start..].chars();
    let pair = letters.next().zip(letters.next()).filter(|(_, second)| second.is_ascii_alphabetic());
    let long =
        pair.and_then(|(a, b)| species(&format!("{}{}", a.to_ascii_uppercase(), b.to_ascii_lowercase())));
    [known, long.or(known)]
}

/// Whether `numbers` have the proportions of `formula`, except hydrogen, which is often not located.
fn is_multiple(numbers: &[u8], formula: &[(u8, f64)]) -> bool {
    let ratio =
        |(number, count): &(u8, f64)| numbers.iter().filter(|known| *known == number).count() as f64 / count;
    let mut ratios = formula.iter().filter(|(number, _)| *number != 1 || formula.len() == 1).map(ratio);
    let Some(first) = ratios.next() else { return true };
    first > 0.0 && ratios.all(|ratio| (ratio - first).abs() <= 0.02 * first)
}

/// Rotation, whose rows give the new coordinates, and translation.
type Operation = (Matrix, Vector);

/// Parses an operation such as `-x+1/2, y, z-x`.
fn operation(text: &str) -> Option<Operation> {
    let (mut turn, mut shift) = ([[0.0; 3]; 3], [0.0; 3]);
    let mut parts = text.split(',');
    for axis in 0..3 {
        let part: String = parts.next()?.chars().filter(|c| !c.is_whitespace()).collect();
        let part = part.to_ascii_lowercase();
        let mut rest = part.as_str();
        if rest.is_empty() {
            return None;
        }
        while !rest.is_empty() {
            let (sign, after) = match rest.as_bytes()[0] {
                b'+' => (1.0, &rest[1..]),
                b'-' => (-1.0, &rest[1..]),
                _ => (1.0, rest),
            };
            let end = after.find(['+', '-']).unwrap_or(after.len());
            let (term, left) = after.split_at(end);
            let (size, direction) = match term.char_indices().find(|(_, c)| matches!(c, 'x' | 'y' | 'z')) {
                Some((place, letter)) => {
                    let factor = format!("{}{}", &term[..place], &term[place + 1..]);
                    let factor = factor.trim_matches('*');
                    let size = if factor.is_empty() { 1.0 } else { fraction(factor)? };
                    (size, Some(usize::from(letter as u8 - b'x')))
                }
                None => (fraction(term)?, None),
            };
            match direction {
                Some(direction) => turn[axis][direction] += sign * size,
                None => shift[axis] += sign * size,
            }
            rest = left;
        }
    }
    parts.next().is_none().then_some((turn, shift))
}

/// Parses `0.25` or `1/4`.
fn fraction(text: &str) -> Option<f64> {
    match text.split_once('/') {
        Some((above, below)) => {
            let value = super::number(above)? / super::number(below)?;
            value.is_finite().then_some(value)
        }
        None => super::number(text),
    }
}

/// The distinct images of `place` in the cell under the operations.
fn images(place: &Vector, operations: &[Operation], cell: &Matrix) -> Vec<Vector> {
    let mut images: Vec<Vector> = Vec::new();
    for (turn, shift) in operations {
        let image: Vector = std::array::from_fn(|axis| {
            let value = cell::dot(&turn[axis], place) + shift[axis];
            let inside = value - value.floor();
            if inside >= 1.0 - 1e-9 { 0.0 } else { inside }
        });
        let is_known = images.iter().any(|known| {
            let apart = cell::difference(&image, known).map(|value| value - value.round());
            cell::norm(&cell::times(&apart, cell)) < MERGE_DISTANCE
        });
        if !is_known {
            images.push(image);
        }
    }
    images
}

#[cfg(test)]
mod tests {
    use super::*;

    const CELL: &str = "_cell_length_a 4.0(2)\n_cell_length_b 4.0\n_cell_length_c 6\n_cell_angle_alpha 90\n\
                        _cell_angle_beta 90\n_cell_angle_gamma 120.0\n";

    fn one(text: &str) -> Atoms {
        let mut frames = parse(text).unwrap();
        assert_eq!(frames.len(), 1);
        frames.remove(0).atoms
    }

    #[test]
    fn operations_are_sums_of_axes_and_fractions() {
        let (turn, shift) = operation(" -x+1/2, y - X ,2/3+z").unwrap();
        assert_eq!(turn, [[-1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
        assert_eq!(shift, [0.5, 0.0, 2.0 / 3.0]);
        assert_eq!(operation("0.25-1/2x,y,z").unwrap().0[0][0], -0.5);
        for bad in ["x,y", "x,y,z,x", "x,,z", "a,y,z", "x,y,1/0", "x++,y,z", ""] {
            assert!(operation(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn sites_are_repeated_by_the_space_group_and_merged_where_they_meet() {
        let text = format!(
            "# made up\ndata_one\n{CELL}loop_\n_space_group_symop_id\n_space_group_symop_operation_xyz\n1 'x,y,z'\n\
             2 '-y,x-y,z'\n3 '-x+y,-x,z'\nloop_\n_atom_site_label\n_atom_site_type_symbol\n_atom_site_fract_x\n\
             _atom_site_fract_y\n_atom_site_fract_z\n_atom_site_occupancy\nC1 C4+ 0.3333 0.6667 0.25(1) 1\n\
             O1 O2- 0.1 0.2 0.7 1.0\n"
        );
        let atoms = one(&text);
        assert_eq!(atoms.numbers, [6, 8, 8, 8]);
        let cell = atoms.cell.unwrap();
        assert!((cell::volume(&cell) - 4.0 * 4.0 * 6.0 * 3f64.sqrt() / 2.0).abs() < 1e-9);
        let turned = cell::times(&[0.8, 0.9, 0.7], &cell);
        assert!(cell::norm(&cell::difference(&atoms.positions[2], &turned)) < 1e-9);
        assert_eq!(atoms.periodic, [true; 3]);
    }

    #[test]
    fn lengths_quotes_and_texts_are_read() {
        let text = format!(
            "data_a\n{CELL}_note\n;a text\nwith loop_ in it\n;\n_name 'it's quoted' _symmetry_space_group_name_H-M 'P 1'\n\
             loop_\n_atom_site_label\n_atom_site_Cartn_x\n_atom_site_Cartn_y\n_atom_site_Cartn_z\nFe1 1.0 1.0 1.0\n\
             data_b\n_nothing ?\n"
        );
        let atoms = one(&text);
        assert_eq!(atoms.numbers, [26]);
        assert!(cell::norm(&cell::difference(&atoms.positions[0], &[1.0; 3])) < 1e-9);
        let free = "data_m\nloop_\n_atom_site_label\n_atom_site_Cartn_x\n_atom_site_Cartn_y\n_atom_site_Cartn_z\nH1 0 0 0\n";
        assert_eq!((one(free).cell, one(free).periodic), (None, [false; 3]));
    }

    #[test]
    fn letter_case_tells_elements_and_the_formula_confirms_them() {
        let read = |formula: &str, labels: &[&str]| {
            let mut text = format!(
                "data_a\n{CELL}{formula}loop_\n_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
            );
            for (index, label) in labels.iter().enumerate() {
                text.push_str(&format!("{label} 0 0 0.{index}\n"));
            }
            parse(&text).map(|mut frames| frames.remove(0))
        };
        let formula = |sum: &str| format!("_chemical_formula_sum '{sum}'\n");
        let numbers = |formula: &str, labels: &[&str]| read(formula, labels).unwrap().atoms.numbers;
        // A hydrogen at an oxygen, and no holmium.
        assert_eq!(numbers("", &["HO1", "O1", "HO2"]), [1, 8, 1]);
        assert_eq!(numbers(&formula("H2 O"), &["HO1", "O1", "HO2"]), [1, 8, 1]);
        assert_eq!(numbers(&formula("Ho2 O3"), &["HO1", "HO2", "O1", "O2", "O3"]), [67, 67, 8, 8, 8]);
        assert_eq!(numbers(&formula("C Cl2"), &["C1", "CL1", "CL2"]), [6, 17, 17]);
        assert_eq!(numbers("", &["Ca1", "CA1"]), [20, 6]);
        let error = read(&formula("Na Cl"), &["Na1", "K1"]).unwrap_err().to_string();
        assert!(
            error.starts_with("line 15: \"K1\" is K, which is not in _chemical_formula_sum \"Na Cl\""),
            "{error}"
        );
        let frame = read(&formula("Na Cl3"), &["Na1", "Cl1"]).unwrap();
        assert!(frame.notes[0].contains("proportion"), "{:?}", frame.notes);
        let heavy = read(&formula("D2 O"), &["D1", "O1", "T2"]).unwrap().atoms;
        assert_eq!((heavy.numbers, heavy.masses), (vec![1, 8, 1], vec![2.014, 15.999, 3.016]));
    }

    #[test]
    fn errors_name_the_line() {
        let sites = "loop_\n_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n";
        let cases = [
            (format!("data_a\n{sites}Na1 0 0 0\n"), "fractional coordinates without _cell_length_a"),
            (format!("data_a\n{CELL}{sites}Na1 0 0\n"), "line 8: 3 values in a loop of 4 names"),
            (format!("data_a\n{CELL}{sites}Na1 0 0 west\n"), "line 13: expected a number, found \"west\""),
            (format!("data_a\n{CELL}{sites}Na1 0 0 ?\n"), "line 13: the position of Na1 is unknown"),
            (format!("data_a\n{CELL}{sites}Qq1 0 0 0\n"), "line 13: \"Qq1\" is not an element"),
            (
                format!("data_a\n_symmetry_space_group_name_H-M 'F m -3 m'\n{CELL}{sites}Na1 0 0 0\n"),
                "the operations of the space group \"F m -3 m\"",
            ),
            (
                format!("data_a\n_symmetry_equiv_pos_as_xyz x,y\n{CELL}{sites}Na1 0 0 0\n"),
                "line 2: \"x,y\" is not a symmetry",
            ),
            (
                format!("data_a\n_cell_length_a 3\n_cell_length_b -3\n_cell_length_c 3\n{sites}Na1 0 0 0\n"),
                "line 2: no cell has",
            ),
            ("data_a\n_x 'open\n".to_string(), "line 2: a quote is not closed"),
            ("data_a\n;open\n".to_string(), "line 2: a text field that begins"),
            ("data_a\n_x\n_y 1\n".to_string(), "line 2: _x has no value"),
            ("data_a\nx\n".to_string(), "line 2: \"x\" is a value without a name"),
        ];
        for (text, wanted) in cases {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{error}");
        }
        let occupied = format!(
            "data_a\n{CELL}loop_\n_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n\
             _atom_site_occupancy\nNa1 0 0 0 0.50(2)\n"
        );
        let error = parse(&occupied).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().starts_with("line 14: Na1 has _atom_site_occupancy 0.5"), "{error}");
    }
}
