//! Tests of the whole crate: timestamps, files, forecasts.

mod files;
mod forecasts;
mod timestamps;

use std::ops::Range;

use super::*;
use fauna_shared::generate::Rng;

/// CSV as a table.
fn table(text: &str) -> Table {
    Table::from_csv(text.as_bytes(), "t.csv", &Columns::default()).unwrap()
}

/// One daily series from 2024-01-01 on.
fn daily(values: Vec<f64>) -> Table {
    Table::regular("D".parse().unwrap(), "2024-01-01", [("a", values)]).unwrap()
}

/// Normal noise of deviation 1.
fn noise(seed: u64, length: usize) -> Vec<f64> {
    let mut random = Rng::new(seed, 0);
    let mut one = || (1..=12).map(|_| random.uniform()).sum::<f64>() - 6.0;
    (0..length).map(|_| one()).collect()
}

fn csv(table: &ResultTable) -> String {
    let mut file = Vec::new();
    table.write_csv(&mut file).unwrap();
    String::from_utf8(file).unwrap()
}

/// The numbers of a column of the only series.
fn numbers(table: &ResultTable, name: &str) -> Vec<f64> {
    table.series[0].columns[table.column(name).unwrap()].numbers().unwrap()
}

fn assert_close(found: &[f64], wanted: &[f64], tolerance: f64) {
    assert_eq!(found.len(), wanted.len(), "{found:?}");
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= tolerance;
    assert!(found.iter().zip(wanted).all(near), "{found:?} is not {wanted:?}");
}

/// The stamps of a column as they are written.
fn written(table: &ResultTable, name: &str, rows: Range<usize>) -> Vec<String> {
    match &table.series[0].columns[table.column(name).unwrap()] {
        Column::Timestamps(stamps) => {
            stamps[rows].iter().map(|stamp| table.timestamp_format.format(*stamp)).collect()
        }
        other => panic!("{other:?}"),
    }
}
