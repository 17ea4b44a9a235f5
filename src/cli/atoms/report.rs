//! Tables, output frames and plots of structures.

use fauna::Atoms;
use fauna::atoms::{Constraints, Frame, elements};
use fauna::model::Evaluation;

use super::Named;
use crate::cli::plot::{Ink, Line, Panel};

/// 1 eV/Å³ in GPa.
const GIGAPASCAL: f64 = 160.217_663_4;

/// Colours of the lines of a panel, used in turn.
const INKS: [Ink; 4] = [Ink::Blue, Ink::Green, Ink::Red, Ink::Dark];

/// Returns a panel of a plot.
pub fn panel<'a>(title: &str, unit: &str, lines: impl Iterator<Item = (&'a str, Vec<(f64, f64)>)>) -> Panel {
    let lines = lines.zip(INKS.into_iter().cycle());
    let lines = lines.map(|((name, points), ink)| Line { name: name.to_string(), ink, points }).collect();
    Panel { title: title.to_string(), y_label: unit.to_string(), lines, ..Panel::default() }
}

/// Returns the output frame of a structure: the data of its file and the results.
pub fn frame(kept: &Frame, atoms: &Atoms, evaluation: &Evaluation, about: &[(&str, usize)]) -> Frame {
    let about = about.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let info = kept.info.clone().into_iter().chain(about);
    Frame {
        atoms: atoms.clone(),
        energy: Some(evaluation.energy),
        forces: Some(evaluation.forces.clone()),
        stress: evaluation.stress,
        info: info.collect(),
        columns: kept.columns.clone(),
        notes: Vec::new(),
    }
}

/// Returns the table row of a structure.
pub fn line(named: &Named, evaluation: &Evaluation) -> [String; 7] {
    let count = named.atoms.numbers.len();
    let size = |force: &[f64; 3]| force.iter().map(|f| f * f).sum::<f64>().sqrt();
    // As in the reference implementation, forces on fixed atoms do not count.
    let mut forces = evaluation.forces.clone();
    Constraints::of(&named.atoms).apply(&mut forces);
    let largest = forces.iter().map(size).fold(0.0, f64::max);
    let pressure = evaluation.stress.map(|stress| -(stress[0] + stress[1] + stress[2]) / 3.0 * GIGAPASCAL);
    [
        named.name.clone(),
        formula(&named.atoms),
        count.to_string(),
        format!("{:.6}", evaluation.energy),
        format!("{:.6}", evaluation.energy / count.max(1) as f64),
        format!("{largest:.6}"),
        pressure.map_or(String::new(), |pressure| format!("{pressure:.4}")),
    ]
}

/// Returns the chemical formula in Hill order: carbon, hydrogen, then alphabetical.
pub fn formula(atoms: &Atoms) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for number in &atoms.numbers {
        *counts.entry(elements::symbol(*number).unwrap_or("?")).or_insert(0usize) += 1;
    }
    let first = if counts.contains_key("C") { vec!["C", "H"] } else { Vec::new() };
    let mut parts: Vec<(&str, usize)> =
        first.iter().filter_map(|symbol| counts.remove_entry(symbol)).collect();
    parts.extend(counts);
    parts
        .into_iter()
        .map(|(symbol, n)| if n == 1 { symbol.to_string() } else { format!("{symbol}{n}") })
        .collect()
}
