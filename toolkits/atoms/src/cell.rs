//! Cells: three vectors as the rows of a matrix, in Å.

use fauna_shared::{Error, Result};

/// A vector in space.
pub type Vector = [f64; 3];
/// Three rows.
pub type Matrix = [Vector; 3];

/// The matrix that changes nothing.
pub const IDENTITY: Matrix = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];

/// Below this share of the largest volume that three vectors of their lengths may span, a cell is flat.
const FLAT: f64 = 1e-8;

/// The product of two vectors that is a number.
pub fn dot(a: &Vector, b: &Vector) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// The product of two vectors that is a vector, at right angles to both.
pub fn cross(a: &Vector, b: &Vector) -> Vector {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

/// The length of a vector.
pub fn length(a: &Vector) -> f64 {
    dot(a, a).sqrt()
}

/// `a + b`.
pub fn sum(a: &Vector, b: &Vector) -> Vector {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

/// `a - b`.
pub fn difference(a: &Vector, b: &Vector) -> Vector {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

/// A row times a matrix: fractional coordinates times a cell are positions.
pub fn times(row: &Vector, matrix: &Matrix) -> Vector {
    std::array::from_fn(|j| row[0] * matrix[0][j] + row[1] * matrix[1][j] + row[2] * matrix[2][j])
}

/// `a · b`.
pub fn product(a: &Matrix, b: &Matrix) -> Matrix {
    a.map(|row| times(&row, b))
}

/// Rows become columns.
pub fn transposed(a: &Matrix) -> Matrix {
    std::array::from_fn(|i| std::array::from_fn(|j| a[j][i]))
}

/// The signed volume that the rows span.
pub fn determinant(a: &Matrix) -> f64 {
    dot(&a[0], &cross(&a[1], &a[2]))
}

/// The matrix that undoes `a`; of a singular one its entries are not finite.
pub fn inverse(a: &Matrix) -> Matrix {
    let volume = determinant(a);
    let columns = [cross(&a[1], &a[2]), cross(&a[2], &a[0]), cross(&a[0], &a[1])];
    std::array::from_fn(|i| std::array::from_fn(|j| columns[j][i] / volume))
}

/// The volume of a cell, in Å³.
pub fn volume(cell: &Matrix) -> f64 {
    determinant(cell).abs()
}

/// Whether nothing but zeros is in it: what stands for no cell.
pub fn is_zero(cell: &Matrix) -> bool {
    cell.iter().flatten().all(|value| *value == 0.0)
}

/// A cell whose vectors span space: those of `cell` that repeat, and for those that do not and are zero, or lie in the
/// plane of the others, unit vectors at right angles.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if a vector repeats and is zero, or those that repeat lie in one plane or
/// on one line.
///
/// ```
/// use fauna_atoms::cell::basis;
/// let sheet = [[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0; 3]];
/// assert_eq!(basis(&sheet, [true, true, false])?[2], [0.0, 0.0, 1.0]);
/// assert!(basis(&sheet, [true; 3]).is_err());
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub fn basis(cell: &Matrix, periodic: [bool; 3]) -> Result<Matrix> {
    if let Some(axis) = (0..3).find(|axis| periodic[*axis] && length(&cell[*axis]) == 0.0) {
        return Err(Error::input(format!("cell vector {} repeats and is zero", axis + 1))
            .hint("give the cell, or say that this direction does not repeat"));
    }
    let kept = match is_flat(cell) {
        false => return Ok(*cell),
        true => periodic,
    };
    let mut basis = *cell;
    match kept {
        [true, true, true] => return Err(singular(cell)),
        [false, false, false] => return Ok(IDENTITY),
        _ => {}
    }
    let repeating: Vec<usize> = (0..3).filter(|axis| kept[*axis]).collect();
    if let [a, b] = repeating[..] {
        let open = 3 - a - b;
        let normal = cross(&cell[a], &cell[b]);
        let size = length(&normal);
        if size <= FLAT * length(&cell[a]) * length(&cell[b]) {
            return Err(singular(cell));
        }
        // The order of the axes decides on which side the normal stands.
        let side = if b == a + 1 { 1.0 } else { -1.0 };
        basis[open] = normal.map(|value| side * value / size);
    } else {
        let a = repeating[0];
        let smallest = (0..3).min_by(|i, j| cell[a][*i].abs().total_cmp(&cell[a][*j].abs())).unwrap_or(0);
        let first = cross(&cell[a], &IDENTITY[smallest]);
        let first = first.map(|value| value / length(&first));
        let second = cross(&cell[a], &first);
        basis[(a + 1) % 3] = first;
        basis[(a + 2) % 3] = second.map(|value| value / length(&second));
    }
    Ok(basis)
}

/// Whether the vectors of `cell` lie in one plane, or nearly.
fn is_flat(cell: &Matrix) -> bool {
    let largest: f64 = cell.iter().map(length).product();
    // Also of a cell that is not finite.
    let spans = volume(cell) > FLAT * largest;
    !spans
}

fn singular(cell: &Matrix) -> Error {
    Error::input("the cell is singular: its vectors lie in one plane").hint(format!("cell {cell:?}"))
}

/// `positions` moved by whole cell vectors so that they lie inside the cell along every axis that repeats; the others
/// stay as they are.
///
/// Fractional coordinates within 2e-12 of one count as zero, as the reference has it.
///
/// # Errors
/// As [`basis`].
pub fn wrapped(positions: &[Vector], cell: &Matrix, periodic: [bool; 3]) -> Result<Vec<Vector>> {
    if periodic == [false; 3] {
        return Ok(positions.to_vec());
    }
    let basis = basis(cell, periodic)?;
    let inverse = inverse(&basis);
    let inside = |position: &Vector| {
        let mut fractional = times(position, &inverse);
        for (value, repeats) in fractional.iter_mut().zip(periodic) {
            if repeats {
                *value -= value.floor();
                if (*value - 1.0).abs() <= 2e-12 {
                    *value = 0.0;
                }
            }
        }
        times(&fractional, &basis)
    };
    Ok(positions.iter().map(inside).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKEWED: Matrix = [[3.0, 0.0, 0.0], [1.0, 2.0, 0.0], [-1.0, 0.5, 4.0]];

    #[test]
    fn an_inverse_undoes() {
        let one = product(&SKEWED, &inverse(&SKEWED));
        for (row, wanted) in one.iter().zip(&IDENTITY) {
            assert!(row.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-14));
        }
        assert!((volume(&SKEWED) - 24.0).abs() < 1e-12);
        assert_eq!(transposed(&transposed(&SKEWED)), SKEWED);
    }

    #[test]
    fn wrapped_positions_differ_by_whole_vectors_and_lie_inside() {
        let positions = [[7.3, -2.1, 9.9], [-0.001, 0.0, 0.0], [3.0, 0.0, 0.0]];
        let inverse = inverse(&SKEWED);
        let wrapped = wrapped(&positions, &SKEWED, [true; 3]).unwrap();
        for (after, before) in wrapped.iter().zip(&positions) {
            let moved = times(&difference(after, before), &inverse);
            assert!(moved.iter().all(|value| (value - value.round()).abs() < 1e-12), "{moved:?}");
            assert!(times(after, &inverse).iter().all(|value| (-1e-12..1.0).contains(value)));
        }
        assert_eq!(wrapped[2], [0.0; 3]);
    }

    #[test]
    fn directions_that_do_not_repeat_are_left_alone() {
        let moved =
            wrapped(&[[3.5, 0.0, 9.0]], &[[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0; 3]], [true, true, false]);
        assert!(moved.unwrap()[0].iter().zip([0.5, 0.0, 9.0]).all(|(a, b)| (a - b).abs() < 1e-12));
    }

    #[test]
    fn open_directions_are_completed_whichever_they_are() {
        for open in 0..3 {
            let mut cell = SKEWED;
            cell[open] = [0.0; 3];
            let mut periodic = [true; 3];
            periodic[open] = false;
            let whole = basis(&cell, periodic).unwrap();
            assert!(dot(&whole[open], &whole[(open + 1) % 3]).abs() < 1e-12);
            assert!(determinant(&whole) > 0.0, "{open}");
            let chain = basis(&[[0.0; 3], [0.0, 1.0, 1.0], [0.0; 3]], [false, true, false]).unwrap();
            assert!(volume(&chain) > 1.0);
        }
    }

    #[test]
    fn flat_cells_are_refused() {
        let flat = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]];
        assert!(basis(&flat, [true; 3]).unwrap_err().to_string().contains("singular"));
        assert!(basis(&[[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0; 3]], [true, true, false]).is_err());
        assert!(basis(&[[0.0; 3]; 3], [true; 3]).unwrap_err().to_string().contains("is zero"));
        assert_eq!(basis(&[[0.0; 3]; 3], [false; 3]).unwrap(), IDENTITY);
    }
}
