//! Ticks of a time axis.

use jiff::civil::Date;

use crate::series::Timestamp;
use crate::timestamp::{DAY, MINUTE, TimestampFormat, civil, of_date, time_of_day};

/// Ticks of a time axis from `from` to `to` with their labels, at most `max_ticks`: starts of years, months, days, hours or
/// minutes, whichever are few enough.
///
/// ```
/// use fauna_forecasting::{TimestampFormat, axis_ticks};
/// let (from, format) = TimestampFormat::parse("2023-11-15")?;
/// let (to, _) = TimestampFormat::parse("2024-03-10")?;
/// let ticks: Vec<String> = axis_ticks(format, from, to, 6).into_iter().map(|(_, label)| label).collect();
/// assert_eq!(ticks, ["2023-12", "2024-01", "2024-02", "2024-03"]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub fn axis_ticks(
    format: TimestampFormat,
    from: Timestamp,
    to: Timestamp,
    max_ticks: usize,
) -> Vec<(Timestamp, String)> {
    let most = max_ticks.max(1) as i64;
    if format.is_integer() {
        let rough = (to.saturating_sub(from) / most).max(1);
        let power = 10_i64.pow(rough.ilog10());
        let step = [1, 2, 5, 10].into_iter().map(|m| power.saturating_mul(m)).find(|step| *step >= rough);
        return every(from, to, step.unwrap_or(i64::MAX)).map(|at| (at, at.to_string())).collect();
    }
    let span = to.saturating_sub(from);
    for minutes in [1, 5, 15, 30, 60, 180, 360, 720] {
        if span / (minutes * MINUTE) < most {
            let label = |at: Timestamp| match at.rem_euclid(DAY) {
                0 => TimestampFormat::DATE.format(at)[5..].to_string(),
                time => time_of_day(time, false, 0),
            };
            return every(from, to, minutes * MINUTE).map(|at| (at, label(at))).collect();
        }
    }
    for days in [1, 2, 7, 14] {
        if span / (days * DAY) < most {
            return every(from, to, days * DAY)
                .map(|at| (at, TimestampFormat::DATE.format(at)[5..].to_string()))
                .collect();
        }
    }
    calendar_ticks(from, to, most)
}

/// Ticks at starts of months or years.
fn calendar_ticks(from: Timestamp, to: Timestamp, most: i64) -> Vec<(Timestamp, String)> {
    let (Some((first, _)), Some((last, _))) = (civil(from), civil(to)) else { return Vec::new() };
    let month = |date: Date| i64::from(date.year()) * 12 + i64::from(date.month()) - 1;
    let (first, last) = (month(first), month(last));
    let step = [1, 2, 3, 6, 12, 24, 60, 120, 240, 600, 1200];
    let step = step.into_iter().find(|step| (last - first) / step < most).unwrap_or(12_000);
    let start = (first + step - 1).div_euclid(step) * step;
    let tick = |month: i64| {
        let at = of_date(Date::new((month / 12) as i16, (month % 12) as i8 + 1, 1).ok()?);
        let length = if step % 12 == 0 { 4 } else { 7 };
        (from..=to).contains(&at).then(|| (at, TimestampFormat::DATE.format(at)[..length].to_string()))
    };
    (start..=last).step_by(step as usize).filter_map(tick).collect()
}

/// Multiples of `step` from `from` to `to`.
fn every(from: Timestamp, to: Timestamp, step: i64) -> impl Iterator<Item = Timestamp> {
    let first = from.div_euclid(step).saturating_add(i64::from(from.rem_euclid(step) != 0)).checked_mul(step);
    std::iter::successors(first, move |at| at.checked_add(step)).take_while(move |at| *at <= to)
}
