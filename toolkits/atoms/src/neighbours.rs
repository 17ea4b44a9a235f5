//! Who is near whom, across the borders of a cell.

use std::collections::HashMap;

use fauna_shared::{Error, Result};

use super::cell::{self, Matrix, Vector};

/// More neighbours of one atom than any matter has: a unit was mistaken, or atoms lie upon each other.
const MOST_NEIGHBOURS: usize = 20_000;

/// Each may have as many, and one for each Å³ within the radius, which is four times as dense as any matter.
const FEWEST: usize = 1000;

/// Most bins that are looked into for one atom: a cell thinner than this asks for has no atoms in it.
const MOST_BINS: i64 = 4_000_000;

/// As many cells away from its own an atom may be given.
const MOST_CELLS: f64 = 5e8;

/// The edges from every atom to each atom, or image of one, within a radius.
///
/// Sorted by sender, then receiver, then shift.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Neighbours {
    /// Whose neighbour it is.
    pub senders: Vec<u32>,
    /// Which atom is near.
    pub receivers: Vec<u32>,
    /// By how many of each cell vector the near one is moved.
    pub shifts: Vec<[i32; 3]>,
    /// From sender to receiver, in Å: the receiver's position, plus the shift times the cell, minus the sender's.
    pub vectors: Vec<Vector>,
}

impl Neighbours {
    /// How many edges there are.
    pub fn len(&self) -> usize {
        self.senders.len()
    }

    /// Whether nobody is near anybody.
    pub fn is_empty(&self) -> bool {
        self.senders.is_empty()
    }

    /// The shortest edge, and the two atoms it joins; `None` if there is no edge.
    pub fn shortest(&self) -> Option<(f64, u32, u32)> {
        let squares = self.vectors.iter().map(|vector| cell::dot(vector, vector));
        let (index, square) = squares.enumerate().min_by(|a, b| a.1.total_cmp(&b.1))?;
        Some((square.sqrt(), self.senders[index], self.receivers[index]))
    }

    /// Only the `count` nearest of each sender. Of those equally far, the ones that come first in the order of the
    /// edges stay, so that the choice is the same on every machine.
    ///
    /// ```
    /// use fauna_atoms::neighbours;
    /// let line = [[0.0; 3], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0]];
    /// let nearest = neighbours(&line, None, [false; 3], 5.0)?.nearest(1);
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

/// Every pair of atoms less than `radius` Å apart, in both directions, with the images of either that a cell's borders
/// make; an atom is a neighbour of its own images, not of itself.
///
/// `positions` may lie outside the cell. Images exist along the `periodic` vectors alone, as many as the radius
/// reaches, however small or skewed the cell is. The time grows with the atoms, not with their square: space is cut
/// into bins about as large as the radius, and each atom looks into those around it.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for a cell that does not span the directions that repeat (see
/// [`cell::basis`]), positions or a radius that are not finite, and matter denser than matter is.
pub fn neighbours(
    positions: &[Vector],
    cell: Option<&Matrix>,
    periodic: [bool; 3],
    radius: f64,
) -> Result<Neighbours> {
    let is_sound = positions.iter().flatten().all(|value| value.is_finite());
    if !(is_sound && radius.is_finite() && u32::try_from(positions.len()).is_ok()) {
        return Err(Error::input("positions and the radius of neighbours are finite numbers"));
    }
    let lattice = cell.copied().unwrap_or_default();
    let bins = Bins::new(positions, &lattice, periodic, radius)?;
    let mut all = Neighbours::default();
    let mut near = Vec::new();
    for sender in 0..positions.len() {
        near.clear();
        bins.look_around(positions, sender, usize::MAX, &mut near)?;
        near.sort_unstable_by_key(|(receiver, shift, _)| (*receiver, *shift));
        for (receiver, shift, vector) in &near {
            all.push(sender as u32, *receiver, *shift, *vector);
        }
    }
    Ok(all)
}

/// The first two atoms that are less than `radius` Å apart, and how far they are; none if there are no such.
///
/// It takes time and memory in proportion to the atoms, however many lie in one place.
///
/// # Errors
/// As [`neighbours`].
pub fn closer(
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
        bins.look_around(positions, sender, 1, &mut near)?;
        // Sorted so that the answer does not depend on the order of the bins.
        near.sort_unstable_by_key(|(receiver, shift, _)| (*receiver, *shift));
        if let Some((receiver, _, vector)) = near.first() {
            return Ok(Some((cell::length(vector), sender as u32, *receiver)));
        }
    }
    Ok(None)
}

/// Atoms by the bin of space they lie in.
struct Bins {
    lattice: Matrix,
    radius: f64,
    /// Neighbours that an atom may have within the radius.
    most: usize,
    /// Bins along each axis that repeats; 0 for one that does not.
    counts: [i64; 3],
    /// How many bins to either side the radius reaches.
    reach: [i64; 3],
    /// The bin of each atom, and the whole cells it was moved by to lie in the cell.
    places: Vec<([i64; 3], [i64; 3])>,
    /// The atoms of each bin that has some.
    atoms: HashMap<[i64; 3], Vec<u32>>,
}

type Near = (u32, [i32; 3], Vector);

impl Bins {
    fn new(positions: &[Vector], lattice: &Matrix, periodic: [bool; 3], radius: f64) -> Result<Self> {
        let basis = cell::basis(lattice, periodic)?;
        let inverse = cell::inverse(&basis);
        let radius = radius.max(0.0);
        let side = radius.max(1e-3);
        let (mut counts, mut reach, mut widths) = ([0; 3], [0; 3], [0.0; 3]);
        for axis in 0..3 {
            // The distance between the two faces that the axis joins.
            let height = 1.0 / cell::length(&[inverse[0][axis], inverse[1][axis], inverse[2][axis]]);
            let bins = if periodic[axis] { (height / side).floor().clamp(1.0, 1e6) } else { height / side };
            counts[axis] = if periodic[axis] { bins as i64 } else { 0 };
            widths[axis] = bins;
            reach[axis] = (radius * bins / height + 1e-9).ceil().min(1e9) as i64;
        }
        let looked_into = reach.iter().fold(1i64, |all, reach| all.saturating_mul(2 * reach + 1));
        if looked_into > MOST_BINS {
            return Err(Error::input("the cell is so thin that its images cannot be counted")
                .hint(format!("cell {lattice:?}, radius {radius} Å")));
        }
        let mut places = Vec::with_capacity(positions.len());
        let mut atoms: HashMap<[i64; 3], Vec<u32>> = HashMap::new();
        for (index, position) in positions.iter().enumerate() {
            let fractional = cell::times(position, &inverse);
            let (mut bin, mut moved) = ([0; 3], [0; 3]);
            for axis in 0..3 {
                let whole = if periodic[axis] { fractional[axis].floor() } else { 0.0 };
                if whole.abs() > MOST_CELLS {
                    return Err(Error::input(format!(
                        "atom {index} lies {whole:e} cells away from the cell"
                    )));
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
        let most = (4.2 * radius.powi(3)).clamp(FEWEST as f64, MOST_NEIGHBOURS as f64) as usize;
        Ok(Self { lattice: *lattice, radius, most, counts, reach, places, atoms })
    }

    /// Adds what is near the atom `sender` to `near`: at least `enough`, or all.
    fn look_around(
        &self,
        positions: &[Vector],
        sender: usize,
        enough: usize,
        near: &mut Vec<Near>,
    ) -> Result<()> {
        let (bin, moved) = self.places[sender];
        let span = |axis: usize| (bin[axis] - self.reach[axis])..=(bin[axis] + self.reach[axis]);
        for x in span(0) {
            for y in span(1) {
                for z in span(2) {
                    let (place, image) = self.folded([x, y, z]);
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
            if near.len() > self.most {
                let message = format!("atom {sender} has more than {} neighbours", self.most);
                return Err(Error::input(message).hint(format!(
                    "within {} Å; are positions and cell in Å, and no atom given twice?",
                    self.radius
                )));
            }
        }
        Ok(())
    }

    /// The bin of the cell that `bin` repeats, and how many cells away it lies.
    fn folded(&self, bin: [i64; 3]) -> ([i64; 3], [i64; 3]) {
        let (mut place, mut image) = (bin, [0; 3]);
        for axis in 0..3 {
            if self.counts[axis] > 0 {
                place[axis] = bin[axis].rem_euclid(self.counts[axis]);
                image[axis] = bin[axis].div_euclid(self.counts[axis]);
            }
        }
        (place, image)
    }

    /// From `sender` to the image of `receiver`, if it is near and not the atom itself.
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

    /// By trying every image that could be near.
    fn by_brute_force(positions: &[Vector], cell: &Matrix, periodic: [bool; 3], radius: f64) -> Neighbours {
        let far = 9i32;
        let span = |axis: usize| if periodic[axis] { -far..=far } else { 0..=0 };
        let mut all = Neighbours::default();
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
    fn every_cell_gives_what_trying_all_images_gives() {
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
            let found = neighbours(&positions, Some(&lattice), periodic, radius).unwrap();
            let wanted = by_brute_force(&positions, &lattice, periodic, radius);
            assert_eq!(found.senders, wanted.senders, "case {case}");
            assert_eq!(found.receivers, wanted.receivers, "case {case}");
            assert_eq!(found.shifts, wanted.shifts, "case {case}");
        }
    }

    #[test]
    fn a_lone_atom_has_no_neighbours_and_its_images_are_some() {
        assert!(neighbours(&[[5.0; 3]], None, [false; 3], 6.0).unwrap().is_empty());
        let cube = [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]];
        let found = neighbours(&[[5.0; 3]], Some(&cube), [true; 3], 2.1).unwrap();
        assert_eq!(found.len(), 6);
        let chain = neighbours(&[[5.0; 3]], Some(&cube), [false, true, false], 4.1).unwrap();
        assert_eq!(chain.shifts, [[0, -2, 0], [0, -1, 0], [0, 1, 0], [0, 2, 0]]);
    }

    #[test]
    fn what_lies_on_the_radius_is_not_within_it() {
        let pair = [[0.0; 3], [0.0, 6.0, 0.0]];
        assert!(neighbours(&pair, None, [false; 3], 6.0).unwrap().is_empty());
    }

    #[test]
    fn the_nearest_are_kept_and_ties_fall_to_the_first() {
        let star = [[0.0; 3], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.5, 0.0]];
        let nearest = neighbours(&star, None, [false; 3], 3.0).unwrap().nearest(2);
        assert_eq!(nearest.receivers[..2], [1, 3]);
        assert_eq!(nearest.len(), 8);
        assert_eq!(nearest.shortest(), Some((0.5, 0, 3)));
    }

    #[test]
    fn distances_without_measure_cost_neither_time_nor_memory() {
        let apart = [[0.0; 3], [1e12, -1e300, 0.0]];
        assert!(neighbours(&apart, None, [false; 3], 6.0).unwrap().is_empty());
        let thin = [[1e-7, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        assert!(neighbours(&[[0.0; 3]], Some(&thin), [true; 3], 6.0).is_err());
        let dense = vec![[0.0; 3]; MOST_NEIGHBOURS + 2];
        assert!(neighbours(&dense, None, [false; 3], 6.0).unwrap_err().to_string().contains("more than"));
        assert!(neighbours(&[[f64::NAN; 3]], None, [false; 3], 6.0).is_err());
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
            let found = neighbours(&positions, Some(&cube), [true; 3], 6.0).unwrap();
            assert!(found.len() > 40 * positions.len(), "{} edges", found.len());
            start.elapsed().as_secs_f64()
        });
        // Other work on the machine makes a run longer, never shorter.
        let least = seconds.fold(f64::INFINITY, f64::min);
        assert!(least < 1.0, "{least} s for {} atoms", positions.len());
    }
}
