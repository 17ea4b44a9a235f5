//! Unit cells, as matrices whose rows are the cell vectors in Å, and vector algebra.

use fauna_shared::{Error, Result};

/// A vector, `(3)`.
pub type Vector = [f64; 3];
/// A matrix, `(3, 3)`, row by row.
pub type Matrix = [Vector; 3];

/// The identity matrix.
pub const IDENTITY: Matrix = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];

/// Minimum volume of a cell, relative to the product of the lengths of its vectors.
const MIN_VOLUME: f64 = 1e-8;

/// Dot product.
pub fn dot(a: &Vector, b: &Vector) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// Cross product.
pub fn cross(a: &Vector, b: &Vector) -> Vector {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

/// Euclidean norm of a vector.
pub fn norm(a: &Vector) -> f64 {
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

/// The row vector `row` times `matrix`: fractional coordinates times the cell are positions.
pub fn times(row: &Vector, matrix: &Matrix) -> Vector {
    std::array::from_fn(|j| row[0] * matrix[0][j] + row[1] * matrix[1][j] + row[2] * matrix[2][j])
}

/// Matrix product `a · b`.
pub fn product(a: &Matrix, b: &Matrix) -> Matrix {
    a.map(|row| times(&row, b))
}

/// Transpose of a matrix.
pub fn transpose(a: &Matrix) -> Matrix {
    std::array::from_fn(|i| std::array::from_fn(|j| a[j][i]))
}

/// Determinant of a matrix.
pub fn determinant(a: &Matrix) -> f64 {
    dot(&a[0], &cross(&a[1], &a[2]))
}

/// Inverse of a matrix; its entries are not finite if `a` is singular.
pub fn inverse(a: &Matrix) -> Matrix {
    let volume = determinant(a);
    let columns = [cross(&a[1], &a[2]), cross(&a[2], &a[0]), cross(&a[0], &a[1])];
    std::array::from_fn(|i| std::array::from_fn(|j| columns[j][i] / volume))
}

/// Volume of a cell, in Å³.
pub fn volume(cell: &Matrix) -> f64 {
    determinant(cell).abs()
}

/// Whether all entries are zero, which stands for no cell.
pub fn is_zero(cell: &Matrix) -> bool {
    cell.iter().flatten().all(|value| *value == 0.0)
}

/// Replaces cell vectors of directions that are not periodic, if they are zero or linearly dependent, by unit vectors
/// perpendicular to the others.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if a periodic vector is zero, or the periodic vectors are linearly
/// dependent.
///
/// ```
/// use fauna_atoms::cell::complete_cell;
/// let sheet = [[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0; 3]];
/// assert_eq!(complete_cell(&sheet, [true, true, false])?[2], [0.0, 0.0, 1.0]);
/// assert!(complete_cell(&sheet, [true; 3]).is_err());
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub fn complete_cell(cell: &Matrix, periodic: [bool; 3]) -> Result<Matrix> {
    if let Some(axis) = (0..3).find(|axis| periodic[*axis] && norm(&cell[*axis]) == 0.0) {
        return Err(Error::input(format!("cell vector {} is periodic and zero", axis + 1))
            .hint("set the cell vector, or make this direction not periodic"));
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
        let size = norm(&normal);
        if size <= MIN_VOLUME * norm(&cell[a]) * norm(&cell[b]) {
            return Err(singular(cell));
        }
        // The sign keeps the cell right-handed.
        let side = if b == a + 1 { 1.0 } else { -1.0 };
        basis[open] = normal.map(|value| side * value / size);
    } else {
        let a = repeating[0];
        let smallest = (0..3).min_by(|i, j| cell[a][*i].abs().total_cmp(&cell[a][*j].abs())).unwrap_or(0);
        let first = cross(&cell[a], &IDENTITY[smallest]);
        let first = first.map(|value| value / norm(&first));
        let second = cross(&cell[a], &first);
        basis[(a + 1) % 3] = first;
        basis[(a + 2) % 3] = second.map(|value| value / norm(&second));
    }
    Ok(basis)
}

/// Whether the vectors of `cell` are linearly dependent, or nearly.
fn is_flat(cell: &Matrix) -> bool {
    let largest: f64 = cell.iter().map(norm).product();
    // False also for a cell that is not finite.
    let spans = volume(cell) > MIN_VOLUME * largest;
    !spans
}

fn singular(cell: &Matrix) -> Error {
    Error::input("the cell is singular: its vectors lie in one plane").hint(format!("cell {cell:?}"))
}

/// Moves `positions` by whole cell vectors into the cell, along the periodic directions.
///
/// Fractional coordinates within 2e-12 of one become zero, as in ASE.
///
/// # Errors
/// As [`complete_cell`].
pub fn wrap_positions(positions: &[Vector], cell: &Matrix, periodic: [bool; 3]) -> Result<Vec<Vector>> {
    if periodic == [false; 3] {
        return Ok(positions.to_vec());
    }
    let basis = complete_cell(cell, periodic)?;
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
    fn a_matrix_times_its_inverse_is_the_identity() {
        let one = product(&SKEWED, &inverse(&SKEWED));
        for (row, wanted) in one.iter().zip(&IDENTITY) {
            assert!(row.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-14));
        }
        assert!((volume(&SKEWED) - 24.0).abs() < 1e-12);
        assert_eq!(transpose(&transpose(&SKEWED)), SKEWED);
    }

    #[test]
    fn wrapped_positions_are_inside_the_cell_and_differ_by_whole_vectors() {
        let positions = [[7.3, -2.1, 9.9], [-0.001, 0.0, 0.0], [3.0, 0.0, 0.0]];
        let inverse = inverse(&SKEWED);
        let wrapped = wrap_positions(&positions, &SKEWED, [true; 3]).unwrap();
        for (after, before) in wrapped.iter().zip(&positions) {
            let moved = times(&difference(after, before), &inverse);
            assert!(moved.iter().all(|value| (value - value.round()).abs() < 1e-12), "{moved:?}");
            assert!(times(after, &inverse).iter().all(|value| (-1e-12..1.0).contains(value)));
        }
        assert_eq!(wrapped[2], [0.0; 3]);
    }

    #[test]
    fn directions_that_are_not_periodic_are_not_wrapped() {
        let moved = wrap_positions(
            &[[3.5, 0.0, 9.0]],
            &[[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0; 3]],
            [true, true, false],
        );
        assert!(moved.unwrap()[0].iter().zip([0.5, 0.0, 9.0]).all(|(a, b)| (a - b).abs() < 1e-12));
    }

    #[test]
    fn any_direction_that_is_not_periodic_is_completed() {
        for open in 0..3 {
            let mut cell = SKEWED;
            cell[open] = [0.0; 3];
            let mut periodic = [true; 3];
            periodic[open] = false;
            let whole = complete_cell(&cell, periodic).unwrap();
            assert!(dot(&whole[open], &whole[(open + 1) % 3]).abs() < 1e-12);
            assert!(determinant(&whole) > 0.0, "{open}");
            let chain = complete_cell(&[[0.0; 3], [0.0, 1.0, 1.0], [0.0; 3]], [false, true, false]).unwrap();
            assert!(volume(&chain) > 1.0);
        }
    }

    #[test]
    fn singular_cells_are_refused() {
        let flat = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]];
        assert!(complete_cell(&flat, [true; 3]).unwrap_err().to_string().contains("singular"));
        assert!(complete_cell(&[[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0; 3]], [true, true, false]).is_err());
        assert!(
            complete_cell(&[[0.0; 3]; 3], [true; 3]).unwrap_err().to_string().contains("periodic and zero")
        );
        assert_eq!(complete_cell(&[[0.0; 3]; 3], [false; 3]).unwrap(), IDENTITY);
    }
}
