//! Neighbour lists with periodic boundary conditions, by cell lists.

use std::collections::HashMap;

use fauna_shared::{Error, Result};

use super::cell::{self, Matrix, Vector};

/// Maximum number of neighbours of an atom; more mean a wrong unit or overlapping atoms.
const MAX_NEIGHBORS: usize = 20_000;

/// Any atom may have as many neighbours; beyond, one per Å³ within the radius, four times the density of any matter.
const ALLOWED_NEIGHBORS: usize = 1000;

/// Maximum number of bins that are searched per atom; a thinner cell is an error.
const MAX_BINS: i64 = 4_000_000;

/// Maximum distance of an atom from the cell, in cells.
const MAX_CELLS: f64 = 5e8;

/// Pairs of atoms, or images of atoms, within a radius: the edges of a graph, sorted by sender, receiver and shift.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NeighborList {
    /// Index of the atom whose neighbour it is (`i` in ASE).
    pub senders: Vec<u32>,
    /// Index of the neighbour (`j` in ASE).
    pub receivers: Vec<u32>,
    /// Number of cell vectors by which the neighbour is shifted (`S` in ASE).
    pub shifts: Vec<[i32; 3]>,
    /// Vector from sender to receiver in Å (`D` in ASE): the receiver's position, plus the shift times the cell, minus the sender's.
    pub vectors: Vec<Vector>,
}

impl NeighborList {
    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.senders.len()
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.senders.is_empty()
    }

    /// The shortest distance and its two atoms; `None` if there are no pairs.
    pub fn shortest(&self) -> Option<(f64, u32, u32)> {
        let squares = self.vectors.iter().map(|vector| cell::dot(vector, vector));
        let (index, square) = squares.enumerate().min_by(|a, b| a.1.total_cmp(&b.1))?;
        Some((square.sqrt(), self.senders[index], self.receivers[index]))
    }

    /// Keeps the `count` nearest neighbours of each atom. Of equal distances the first in the order of the list are kept, so
    /// that the result is the same on every machine.
    ///
    /// ```
    /// use fauna_atoms::neighbor_list;
    /// let line = [[0.0; 3], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0]];
    /// let nearest = neighbor_list(&line, None, [false; 3], 5.0)?.nearest(1);
    /// assert_eq!(nearest.receivers, [1, 0, 1]);
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    pub fn nearest(self, count: usize) -> Self {
        let mut kept = Self::default();
        let mut start = 0;
        while start < self.len() {
            let sender = self.senders[start];
            let end = start + self.senders[start..].partition_point(|other| *other == sender);
            let mut chosen: Vec<usize> = (start..end).collect();
            if chosen.len() > count {
                let square = |edge: &usize| cell::dot(&self.vectors[*edge], &self.vectors[*edge]);
                chosen.sort_by(|a, b| square(a).total_cmp(&square(b)).then(a.cmp(b)));
                chosen.truncate(count);
                chosen.sort_unstable();
            }
            for edge in chosen {
                kept.push(sender, self.receivers[edge], self.shifts[edge], self.vectors[edge]);
            }
            start = end;
        }
        kept
    }

    fn push(&mut self, sender: u32, receiver: u32, shift: [i32; 3], vector: Vector) {
        self.senders.push(sender);
        self.receivers.push(receiver);
        self.shifts.push(shift);
        self.vectors.push(vector);
    }
}

/// All pairs of atoms less than `radius` Å apart, in both directions, with periodic images; an atom is a neighbour of its
/// own images, but not of itself.
///
/// `positions` may be outside of the cell. The cell may be smaller than the radius and of any shape. The time is linear in
/// the number of atoms: space is divided into bins of about the radius, and only neighbouring bins are searched.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for a cell whose periodic vectors are linearly dependent (see
/// [`cell::complete_cell`]), positions or a radius that are not finite, and atoms with too many neighbours.
pub fn neighbor_list(
    positions: &[Vector],
    cell: Option<&Matrix>,
    periodic: [bool; 3],
    radius: f64,
) -> Result<NeighborList> {
    let is_sound = positions.iter().flatten().all(|value| value.is_finite());
    if !(is_sound && radius.is_finite() && u32::try_from(positions.len()).is_ok()) {
        return Err(Error::input("positions and the radius of a neighbour list must be finite"));
    }
    let lattice = cell.copied().unwrap_or_default();
    let bins = Bins::new(positions, &lattice, periodic, radius)?;
    let mut all = NeighborList::default();
    let mut near = Vec::new();
    for sender in 0..positions.len() {
        near.clear();
        bins.search(positions, sender, usize::MAX, &mut near)?;
        near.sort_unstable_by_key(|(receiver, shift, _)| (*receiver, *shift));
        for (receiver, shift, vector) in &near {
            all.push(sender as u32, *receiver, *shift, *vector);
        }
    }
    Ok(all)
}

/// The distance and indices of the first two atoms that are less than `radius` Å apart; `None` if there are none.
///
/// Time and memory are linear in the number of atoms, also if many overlap.
///
/// # Errors
/// As [`neighbor_list`].
pub fn pair_within(
    positions: &[Vector],
    cell: Option<&Matrix>,
    periodic: [bool; 3],
    radius: f64,
) -> Result<Option<(f64, u32, u32)>> {
    let lattice = cell.copied().unwrap_or_default();
    let bins = Bins::new(positions, &lattice, periodic, radius)?;
    let mut near = Vec::new();
    for sender in 0..positions.len() {
        near.clear();
        bins.search(positions, sender, 1, &mut near)?;
        // Sorted so that the result does not depend on the order of the bins.
        near.sort_unstable_by_key(|(receiver, shift, _)| (*receiver, *shift));
        if let Some((receiver, _, vector)) = near.first() {
            return Ok(Some((cell::norm(vector), sender as u32, *receiver)));
        }
    }
    Ok(None)
}

/// Atoms by bins of space.
struct Bins {
    lattice: Matrix,
    radius: f64,
    /// Maximum number of neighbours of an atom within the radius.
    max_neighbors: usize,
    /// Number of bins along each periodic axis; 0 for another.
    counts: [i64; 3],
    /// Number of bins to either side that the radius covers.
    reach: [i64; 3],
    /// The bin of each atom, and the cell from which it was wrapped.
    places: Vec<([i64; 3], [i64; 3])>,
    /// The atoms of each bin that is not empty.
    atoms: HashMap<[i64; 3], Vec<u32>>,
}

type Near = (u32, [i32; 3], Vector);

impl Bins {
    fn new(positions: &[Vector], lattice: &Matrix, periodic: [bool; 3], radius: f64) -> Result<Self> {
        let basis = cell::complete_cell(lattice, periodic)?;
        let inverse = cell::inverse(&basis);
        let radius = radius.max(0.0);
        let side = radius.max(1e-3);
        let (mut counts, mut reach, mut widths) = ([0; 3], [0; 3], [0.0; 3]);
        for axis in 0..3 {
            // Distance between the two faces perpendicular to the reciprocal vector.
            let height = 1.0 / cell::norm(&[inverse[0][axis], inverse[1][axis], inverse[2][axis]]);
            let bins = if periodic[axis] { (height / side).floor().clamp(1.0, 1e6) } else { height / side };
            counts[axis] = if periodic[axis] { bins as i64 } else { 0 };
            widths[axis] = bins;
            reach[axis] = (radius * bins / height + 1e-9).ceil().min(1e9) as i64;
        }
        let searched = reach.iter().fold(1i64, |all, reach| all.saturating_mul(2 * reach + 1));
        if searched > MAX_BINS {
            return Err(Error::input("the cell is too thin for the radius")
                .hint(format!("cell {lattice:?}, radius {radius} Å")));
        }
        let mut places = Vec::with_capacity(positions.len());
        let mut atoms: HashMap<[i64; 3], Vec<u32>> = HashMap::new();
        for (index, position) in positions.iter().enumerate() {
            let fractional = cell::times(position, &inverse);
            let (mut bin, mut moved) = ([0; 3], [0; 3]);
            for axis in 0..3 {
                let whole = if periodic[axis] { fractional[axis].floor() } else { 0.0 };
                if whole.abs() > MAX_CELLS {
                    return Err(Error::input(format!("atom {index} is {whole:e} cells away from the cell")));
                }
                moved[axis] = whole as i64;
                let place = ((fractional[axis] - whole) * widths[axis]).floor();
                bin[axis] = match counts[axis] {
                    0 => place.clamp(-1e15, 1e15) as i64,
                    count => (place as i64).clamp(0, count - 1),
                };
            }
            places.push((bin, moved));
            atoms.entry(bin).or_default().push(index as u32);
        }
        let max_neighbors =
            (4.2 * radius.powi(3)).clamp(ALLOWED_NEIGHBORS as f64, MAX_NEIGHBORS as f64) as usize;
        Ok(Self { lattice: *lattice, radius, max_neighbors, counts, reach, places, atoms })
    }

    /// Adds the neighbours of `sender` to `near`; stops at `enough`.
    fn search(&self, positions: &[Vector], sender: usize, enough: usize, near: &mut Vec<Near>) -> Result<()> {
        let (bin, moved) = self.places[sender];
        let span = |axis: usize| (bin[axis] - self.reach[axis])..=(bin[axis] + self.reach[axis]);
        for x in span(0) {
            for y in span(1) {
                for z in span(2) {
                    let (place, image) = self.wrap([x, y, z]);
                    let Some(atoms) = self.atoms.get(&place) else { continue };
                    for receiver in atoms {
                        let other = self.places[*receiver as usize].1;
                        let shift: [i64; 3] = std::array::from_fn(|i| image[i] - other[i] + moved[i]);
                        let distance = self.vector(positions, sender, *receiver, &shift);
                        let Some(vector) = distance else { continue };
                        let shift = shift.map(|value| value as i32);
                        near.push((*receiver, shift, vector));
                        if near.len() >= enough {
                            return Ok(());
                        }
                    }
                }
            }
            if near.len() > self.max_neighbors {
                let message = format!("atom {sender} has more than {} neighbours", self.max_neighbors);
                return Err(Error::input(message).hint(format!(
                    "within {} Å; check that positions and cell are in Å and that no atom is given twice",
                    self.radius
                )));
            }
        }
        Ok(())
    }

    /// The bin in the cell of which `bin` is an image, and the shift of the image in cells.
    fn wrap(&self, bin: [i64; 3]) -> ([i64; 3], [i64; 3]) {
        let (mut place, mut image) = (bin, [0; 3]);
        for axis in 0..3 {
            if self.counts[axis] > 0 {
                place[axis] = bin[axis].rem_euclid(self.counts[axis]);
                image[axis] = bin[axis].div_euclid(self.counts[axis]);
            }
        }
        (place, image)
    }

    /// The vector from `sender` to the image of `receiver`, if it is within the radius and not the atom itself.
    fn vector(&self, positions: &[Vector], sender: usize, receiver: u32, shift: &[i64; 3]) -> Option<Vector> {
        let receiver = receiver as usize;
        if sender == receiver && *shift == [0; 3] {
            return None;
        }
        let apart = cell::difference(&positions[receiver], &positions[sender]);
        let vector = match *shift == [0; 3] {
            true => apart,
            false => cell::sum(&apart, &cell::times(&shift.map(|value| value as f64), &self.lattice)),
        };
        (cell::dot(&vector, &vector) < self.radius * self.radius).then_some(vector)
    }
}

#[cfg(test)]
mod tests {
    use fauna_shared::generate::Rng;

    use super::*;

    /// The neighbour list by trying all images.
    fn by_brute_force(positions: &[Vector], cell: &Matrix, periodic: [bool; 3], radius: f64) -> NeighborList {
        let far = 9i32;
        let span = |axis: usize| if periodic[axis] { -far..=far } else { 0..=0 };
        let mut all = NeighborList::default();
        for sender in 0..positions.len() {
            for receiver in 0..positions.len() {
                for x in span(0) {
                    for y in span(1) {
                        for z in span(2) {
                            let moved = cell::times(&[x, y, z].map(f64::from), cell);
                            let apart = cell::difference(&positions[receiver], &positions[sender]);
                            let vector = cell::sum(&apart, &moved);
                            let same = sender == receiver && [x, y, z] == [0; 3];
                            if !same && cell::dot(&vector, &vector) < radius * radius {
                                all.push(sender as u32, receiver as u32, [x, y, z], vector);
                            }
                        }
                    }
                }
            }
        }
        all
    }

    #[test]
    fn every_cell_gives_the_result_of_trying_all_images() {
        let mut random = Rng::new(3, 0);
        for case in 0..60 {
            let size = 1.5 + 6.0 * random.uniform();
            let mut lattice = [[0.0; 3]; 3];
            for (i, row) in lattice.iter_mut().enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    *value = size * (f64::from(u8::from(i == j)) + 0.6 * (random.uniform() - 0.5));
                }
            }
            let periodic = std::array::from_fn(|axis| ((case % 8) >> axis) & 1 == 0);
            let count = 1 + case % 7;
            let spread = if case % 3 == 0 { 15.0 } else { 4.0 };
            let place = |random: &mut Rng| std::array::from_fn(|_| spread * (random.uniform() - 0.5));
            let positions: Vec<Vector> = (0..count).map(|_| place(&mut random)).collect();
            let radius = 1.0 + 4.0 * random.uniform();
            let found = neighbor_list(&positions, Some(&lattice), periodic, radius).unwrap();
            let wanted = by_brute_force(&positions, &lattice, periodic, radius);
            assert_eq!(found.senders, wanted.senders, "case {case}");
            assert_eq!(found.receivers, wanted.receivers, "case {case}");
            assert_eq!(found.shifts, wanted.shifts, "case {case}");
        }
    }

    #[test]
    fn a_single_atom_has_its_images_as_neighbours() {
        assert!(neighbor_list(&[[5.0; 3]], None, [false; 3], 6.0).unwrap().is_empty());
        let cube = [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]];
        let found = neighbor_list(&[[5.0; 3]], Some(&cube), [true; 3], 2.1).unwrap();
        assert_eq!(found.len(), 6);
        let chain = neighbor_list(&[[5.0; 3]], Some(&cube), [false, true, false], 4.1).unwrap();
        assert_eq!(chain.shifts, [[0, -2, 0], [0, -1, 0], [0, 1, 0], [0, 2, 0]]);
    }

    #[test]
    fn the_radius_is_exclusive() {
        let pair = [[0.0; 3], [0.0, 6.0, 0.0]];
        assert!(neighbor_list(&pair, None, [false; 3], 6.0).unwrap().is_empty());
    }

    #[test]
    fn of_equal_distances_the_first_are_kept() {
        let star = [[0.0; 3], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.5, 0.0]];
        let nearest = neighbor_list(&star, None, [false; 3], 3.0).unwrap().nearest(2);
        assert_eq!(nearest.receivers[..2], [1, 3]);
        assert_eq!(nearest.len(), 8);
        assert_eq!(nearest.shortest(), Some((0.5, 0, 3)));
    }

    #[test]
    fn extreme_inputs_take_neither_time_nor_memory() {
        let apart = [[0.0; 3], [1e12, -1e300, 0.0]];
        assert!(neighbor_list(&apart, None, [false; 3], 6.0).unwrap().is_empty());
        let thin = [[1e-7, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        assert!(neighbor_list(&[[0.0; 3]], Some(&thin), [true; 3], 6.0).is_err());
        let dense = vec![[0.0; 3]; MAX_NEIGHBORS + 2];
        assert!(neighbor_list(&dense, None, [false; 3], 6.0).unwrap_err().to_string().contains("more than"));
        assert!(neighbor_list(&[[f64::NAN; 3]], None, [false; 3], 6.0).is_err());
    }

    #[test]
    #[ignore = "a measurement"]
    fn ten_thousand_atoms_take_less_than_a_second() {
        let mut random = Rng::new(1, 0);
        let side = 22.0 * 2.2;
        let jitter = |random: &mut Rng, place: usize| 2.2 * place as f64 + 0.2 * random.uniform();
        let positions: Vec<Vector> = (0..22 * 22 * 22)
            .map(|i| [i % 22, i / 22 % 22, i / 484].map(|place| jitter(&mut random, place)))
            .collect();
        let cube = [[side, 0.0, 0.0], [0.0, side, 0.0], [0.0, 0.0, side]];
        let seconds = (0..3).map(|_| {
            let start = std::time::Instant::now();
            let found = neighbor_list(&positions, Some(&cube), [true; 3], 6.0).unwrap();
            assert!(found.len() > 40 * positions.len(), "{} edges", found.len());
            start.elapsed().as_secs_f64()
        });
        // Other work on the machine makes a run longer, never shorter.
        let least = seconds.fold(f64::INFINITY, f64::min);
        assert!(least < 1.0, "{least} s for {} atoms", positions.len());
    }
}
