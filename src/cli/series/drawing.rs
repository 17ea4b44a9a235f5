//! Plots of forecasts and anomalies: one panel per series.

use std::path::Path;

use fauna::Result;
use fauna::forecasting::{Column, ResultTable, Series, SeriesResult, Table, Timestamp, axis_ticks};

use crate::cli::plot::{self, Band, Ink, Line, MOST_MARKS, MOST_PANELS, Panel};

/// Length of the plotted history: a multiple of the horizon, and at least this many steps.
const BEFORE: usize = 5;
const LEAST: usize = 48;

/// Plots `results` with the history in `table`; returns a note if series were left out.
///
/// # Errors
/// As [`plot::write`].
pub fn write(
    path: &Path,
    force: bool,
    model: &str,
    table: &Table,
    results: &ResultTable,
) -> Result<Option<String>> {
    let series_of = |part: &&SeriesResult| table.series.iter().find(|series| series.id == part.id);
    let shown = results.series.iter().take(MOST_PANELS);
    let panels: Vec<Panel> =
        shown.filter_map(|part| Some(panel(series_of(&part)?, part, results, model))).collect();
    let title = match (results.column("anomaly").is_some(), results.column("cutoff").is_some()) {
        (true, _) => format!("Anomalies by {model}"),
        (_, true) => format!("Cross-validation of {model}"),
        _ => format!("Forecast by {model}"),
    };
    plot::write(path, force, &title, &panels)?;
    let left = results.series.len().saturating_sub(MOST_PANELS);
    Ok((left > 0).then(|| format!(" (the first {MOST_PANELS} series; {left} not shown)")))
}

/// Returns the values of a column of flags.
pub fn flags(column: &Column) -> &[bool] {
    match column {
        Column::Boolean(flags) => flags,
        _ => &[],
    }
}

fn timestamps(column: &Column) -> &[Timestamp] {
    match column {
        Column::Timestamps(timestamps) => timestamps,
        _ => &[],
    }
}

fn panel(series: &Series, part: &SeriesResult, results: &ResultTable, model: &str) -> Panel {
    let at = timestamps(&part.columns[0]);
    let x: Vec<f64> = at.iter().map(|stamp| *stamp as f64).collect();
    let place = |name: &str| results.column(name);
    let numbers = |column: usize| part.columns[column].numbers().unwrap_or_default();
    let first = at.first().copied().unwrap_or(0);
    // Only the end of a long history is plotted.
    let known = series.timestamps.partition_point(|stamp| *stamp < first);
    let start = known.saturating_sub((BEFORE * x.len()).max(LEAST));
    let history = series.timestamps[start..].iter().zip(&series.values[start..]);
    let mut history: Vec<(f64, f64)> = history.map(|(stamp, value)| (*stamp as f64, *value)).collect();
    let mean = place(model).map(numbers).unwrap_or_default();
    let mut lines =
        forecasts(&x, &mean, place("cutoff").map(|column| timestamps(&part.columns[column])), model);
    if place("cutoff").is_none() && place("anomaly").is_none() {
        // The forecast line starts at the last value of the history.
        let end = history.last().copied().filter(|(_, value)| value.is_finite());
        if let (Some(end), Some(line)) = (end, lines.first_mut()) {
            line.points.insert(0, end);
        }
    }
    let dots = place("anomaly").map(|column| {
        let values = place(results.column_names[1].as_str()).map(numbers).unwrap_or_default();
        let flagged = flags(&part.columns[column]).iter().zip(x.iter().zip(values));
        flagged.filter(|(flag, _)| **flag).map(|(_, (x, y))| (*x, y)).collect()
    });
    let (from, to) =
        (series.timestamps.get(start).copied().unwrap_or(first), at.last().copied().unwrap_or(first));
    let marks = axis_ticks(
        results.timestamp_format,
        from,
        to.max(*series.timestamps.last().unwrap_or(&to)),
        MOST_MARKS,
    );
    let history = Line { name: "history".to_string(), ink: Ink::Dark, points: std::mem::take(&mut history) };
    Panel {
        title: series.id.clone(),
        lines: std::iter::once(history).chain(lines).collect(),
        bands: bands(&x, results, part, model),
        dots: dots.unwrap_or_default(),
        dots_name: "anomaly".to_string(),
        marks: marks.into_iter().map(|(at, words)| (at as f64, words)).collect(),
        ..Panel::default()
    }
}

/// Returns the forecasts as lines: one, or one per window.
fn forecasts(x: &[f64], mean: &[f64], cutoffs: Option<&[Timestamp]>, model: &str) -> Vec<Line> {
    let points: Vec<(f64, f64)> = x.iter().copied().zip(mean.iter().copied()).collect();
    let line = |points: Vec<(f64, f64)>| Line { name: model.to_string(), ink: Ink::Blue, points };
    let Some(cutoffs) = cutoffs else { return vec![line(points)] };
    let mut rest = points.as_slice();
    let windows = cutoffs.chunk_by(|a, b| a == b);
    windows
        .map(|window| {
            let (these, after) = rest.split_at(window.len().min(rest.len()));
            rest = after;
            line(these.to_vec())
        })
        .collect()
}

/// Returns the bands of the prediction intervals, the widest first.
fn bands(x: &[f64], results: &ResultTable, part: &SeriesResult, model: &str) -> Vec<Band> {
    let numbers = |name: &str| part.columns[results.column(name)?].numbers();
    let ends = results.column_names.iter().filter_map(|name| {
        if let Some(level) = name.strip_prefix(&format!("{model}-lo-")) {
            return Some((format!("{level}%"), name.clone(), format!("{model}-hi-{level}")));
        }
        let low: f64 = name.strip_prefix(&format!("{model}-q-"))?.parse().ok()?;
        let high = format!("{model}-q-{}", ((100.0 - low) * 1e9).round() / 1e9);
        (low < 50.0).then(|| (format!("{}%", ((100.0 - 2.0 * low) * 1e9).round() / 1e9), name.clone(), high))
    });
    let band = |(name, low, high): (String, String, String)| {
        let ends = numbers(&low)?.into_iter().zip(numbers(&high)?);
        let points = x.iter().zip(ends).map(|(x, (low, high))| (*x, low, high)).collect();
        Some(Band { name, shade: 0.18, points })
    };
    let mut bands: Vec<Band> = ends.filter_map(band).collect();
    // Each band is drawn over the wider ones, so that opacities add up.
    bands.iter_mut().enumerate().for_each(|(i, band)| band.shade = (0.18 + 0.1 * i as f64).min(0.6));
    bands
}
