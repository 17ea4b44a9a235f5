//! Comparison of tensors.

use std::fmt;

use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use crate::{Result, transfer};

/// Tolerance: a float `y` agrees with the expected `e` if `|y - e| <= atol + rtol * |e|`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tolerance {
    /// Absolute tolerance.
    pub atol: f64,
    /// Relative tolerance.
    pub rtol: f64,
}

/// Result of comparing a tensor with the expected one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Name of the tensor in the reference implementation.
    pub name: String,
    /// The expected shape.
    pub shape: Vec<usize>,
    /// Maximum absolute error; infinite if exactly one of two elements is NaN. `None` if the shapes differ.
    pub max_abs: Option<f64>,
    /// Maximum relative error, where `e` is not 0.
    pub max_rel: Option<f64>,
    /// Cosine similarity of the flattened tensors; `None` if one of them is all zeros.
    pub cosine: Option<f64>,
    /// Whether every element agrees.
    pub agrees: bool,
    /// Description of the difference, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Row {
    /// Returns "agrees", or the description of the difference.
    pub fn verdict(&self) -> &str {
        self.problem.as_deref().unwrap_or("agrees")
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {:?}", self.name, self.shape)?;
        if let Some(max_abs) = self.max_abs {
            write!(f, "  absolute {max_abs:.1e}")?;
        }
        if let Some(max_rel) = self.max_rel {
            write!(f, "  relative {max_rel:.1e}")?;
        }
        if let Some(cosine) = self.cosine {
            write!(f, "  cosine {cosine:.7}")?;
        }
        write!(f, "  {}", self.verdict())
    }
}

/// Compares the tensor `found` with `expected`, of any shape.
///
/// Integers must be equal, and of an integer dtype. NaN agrees only with NaN, and an infinity with the same infinity.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fauna_shared::parity::{Tolerance, compare};
/// let (expected, found) = (Tensor::new(&[1f32, 2.0], &Device::Cpu)?, Tensor::new(&[1f32, 2.5], &Device::Cpu)?);
/// let row = compare("logits", &expected, &found, Tolerance { atol: 1e-4, rtol: 1e-3 })?;
/// assert_eq!((row.agrees, row.max_abs, row.max_rel), (false, Some(0.5), Some(0.25)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn compare(name: &str, expected: &Tensor, found: &Tensor, tolerance: Tolerance) -> Result<Row> {
    let mut row = Row {
        name: name.to_string(),
        shape: expected.dims().to_vec(),
        max_abs: None,
        max_rel: None,
        cosine: None,
        agrees: false,
        problem: None,
    };
    let integers = expected.dtype().is_int();
    if expected.dims() != found.dims() {
        row.problem = Some(format!("the shape is {:?}", found.dims()));
        return Ok(row);
    }
    if integers && !found.dtype().is_int() {
        row.problem = Some("floats, where integers are expected".to_string());
        return Ok(row);
    }
    let numbers = match integers {
        true => Numbers::of(&integers_of(expected)?, &integers_of(found)?, |e, y| e == y),
        false => {
            let near = |e: f32, y: f32| {
                let (e, y) = (f64::from(e), f64::from(y));
                e == y
                    || (e.is_nan() && y.is_nan())
                    || (e - y).abs() <= tolerance.atol + tolerance.rtol * e.abs() && e.is_finite()
            };
            Numbers::of(&floats_of(expected)?, &floats_of(found)?, near)
        }
    };
    row.max_abs = Some(numbers.max_abs);
    row.max_rel = Some(numbers.max_rel);
    row.cosine = numbers.cosine;
    row.agrees = numbers.differing == 0;
    if let Some(first) = numbers.first {
        row.problem = Some(format!(
            "{} of {} differ, the first at {:?}",
            numbers.differing,
            expected.elem_count(),
            place(first, expected.dims())
        ));
    }
    Ok(row)
}

/// Statistics of the difference of two lists of numbers.
struct Numbers {
    max_abs: f64,
    max_rel: f64,
    cosine: Option<f64>,
    differing: usize,
    first: Option<usize>,
}

impl Numbers {
    fn of<T: Number>(expected: &[T], found: &[T], agree: impl Fn(T, T) -> bool) -> Self {
        let mut numbers = Self { max_abs: 0.0, max_rel: 0.0, cosine: None, differing: 0, first: None };
        let (mut dot, mut norm_expected, mut norm_found) = (0f64, 0f64, 0f64);
        for (i, (&e, &y)) in expected.iter().zip(found).enumerate() {
            if !agree(e, y) {
                numbers.differing += 1;
                numbers.first.get_or_insert(i);
            }
            let (e, y) = (e.wide(), y.wide());
            if e == y || (e.is_nan() && y.is_nan()) {
                if e.is_finite() {
                    dot += e * y;
                    norm_expected += e * e;
                    norm_found += y * y;
                }
                continue;
            }
            let off = (e - y).abs();
            let off = if off.is_nan() { f64::INFINITY } else { off };
            numbers.max_abs = numbers.max_abs.max(off);
            if e != 0.0 {
                let relative = off / e.abs();
                numbers.max_rel =
                    numbers.max_rel.max(if relative.is_nan() { f64::INFINITY } else { relative });
            }
            dot += e * y;
            norm_expected += e * e;
            norm_found += y * y;
        }
        let norm = norm_expected.sqrt() * norm_found.sqrt();
        numbers.cosine = (norm > 0.0 && norm.is_finite()).then(|| dot / norm);
        numbers
    }
}

trait Number: Copy {
    fn wide(self) -> f64;
}

impl Number for f32 {
    fn wide(self) -> f64 {
        f64::from(self)
    }
}

impl Number for i64 {
    fn wide(self) -> f64 {
        self as f64
    }
}

fn integers_of(tensor: &Tensor) -> Result<Vec<i64>> {
    transfer::to_host(&tensor.to_device(&Device::Cpu)?.to_dtype(DType::I64)?)
}

fn floats_of(tensor: &Tensor) -> Result<Vec<f32>> {
    transfer::to_host(&tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)
}

/// Returns the indices of element `index` of a tensor of `shape`.
fn place(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut place: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&length| {
            let here = index % length.max(1);
            index /= length.max(1);
            here
        })
        .collect();
    place.reverse();
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: Tolerance = Tolerance { atol: 0.5, rtol: 0.1 };

    fn floats(expected: &[f32], found: &[f32]) -> Row {
        let tensor = |values| Tensor::new(values, &Device::Cpu).unwrap();
        compare("x", &tensor(expected), &tensor(found), TOLERANCE).unwrap()
    }

    #[test]
    fn the_tolerance_is_absolute_plus_relative() {
        // 0.5 + 0.1 * 10 = 1.5 either way.
        assert!(floats(&[10.0, 10.0], &[11.5, 8.5]).agrees);
        let row = floats(&[10.0, 10.0], &[11.5, 8.25]);
        assert!(!row.agrees);
        assert_eq!(row.problem.as_deref(), Some("1 of 2 differ, the first at [1]"));
        assert_eq!((row.max_abs, row.max_rel), (Some(1.75), Some(0.175)));
    }

    #[test]
    fn a_finite_number_never_agrees_with_nan_or_infinity() {
        for (expected, found) in
            [(1.0, f32::NAN), (f32::NAN, 1.0), (1.0, f32::INFINITY), (f32::INFINITY, 1.0)]
        {
            let row = floats(&[expected, 2.0], &[found, 2.0]);
            assert!(!row.agrees, "{expected} and {found}");
            assert_eq!(row.max_abs, Some(f64::INFINITY), "{expected} and {found}");
        }
        assert!(!floats(&[f32::INFINITY], &[f32::NEG_INFINITY]).agrees);
    }

    #[test]
    fn nan_and_infinity_agree_with_themselves() {
        let row = floats(&[f32::NEG_INFINITY, f32::NAN, 3.0], &[f32::NEG_INFINITY, f32::NAN, 3.0]);
        assert!(row.agrees);
        assert_eq!((row.max_abs, row.cosine), (Some(0.0), Some(1.0)));
    }

    #[test]
    fn another_shape_is_a_difference_and_not_an_error() {
        let row = floats(&[1.0, 2.0], &[1.0]);
        assert_eq!((row.agrees, row.verdict(), row.max_abs), (false, "the shape is [1]", None));
        assert!(floats(&[], &[]).agrees, "empty tensors agree");
    }

    #[test]
    fn integers_are_compared_exactly() {
        let tensor = |values: &[i64]| Tensor::new(values, &Device::Cpu).unwrap();
        let loose = Tolerance { atol: 10.0, rtol: 10.0 };
        let row = compare("ids", &tensor(&[1, 2]), &tensor(&[1, 3]), loose).unwrap();
        assert!(!row.agrees);
        let as_u32 = tensor(&[1, 2]).to_dtype(DType::U32).unwrap();
        assert!(compare("ids", &tensor(&[1, 2]), &as_u32, loose).unwrap().agrees);
        let as_floats = tensor(&[1, 2]).to_dtype(DType::F32).unwrap();
        assert!(!compare("ids", &tensor(&[1, 2]), &as_floats, loose).unwrap().agrees);
    }

    #[test]
    fn cosine_similarity() {
        let row = floats(&[1.0, 0.0], &[1.0, 1.0]);
        assert!((row.cosine.unwrap() - 0.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(floats(&[0.0], &[0.0]).cosine, None);
    }

    #[test]
    fn flat_indices_are_converted_to_indices_per_axis() {
        assert_eq!(place(23, &[2, 3, 4]), [1, 2, 3]);
        assert_eq!(place(4, &[2, 3, 4]), [0, 1, 0]);
    }
}
