//! Frequencies of time series, as in pandas: parsed, inferred from timestamps, added to them.

use std::fmt;
use std::str::FromStr;

use fauna_shared::model::FrequencyClass;
use fauna_shared::{Error, Result};
use jiff::civil::Date;

use crate::series::Timestamp;
use crate::timestamp::{DAY, civil, of_date, weekday};

/// The step between timestamps, by the names of pandas.
///
/// `us`, `ms`, `s`, `min`, `h`, `D`, `B` (Monday to Friday), `W-MON` to `W-SUN` (`W` is `W-SUN`), `MS` and `ME` (first
/// and last day of the month), `QS-JAN` and `QE-DEC` (of the quarter), `YS-JAN` and `YE-DEC` (of the year), `BMS`, `BME`,
/// `BQS-JAN`, `BQE-DEC`, `BYS-JAN` and `BYE-DEC` (first and last of Monday to Friday), `SMS-15` (the 1st and the 15th),
/// `SME-15` (the 15th and the last day), `WOM-3FRI` (the third Friday of the month), `LWOM-FRI` (the last), each with an
/// optional multiple before it: `15min`, `2W-MON`. The older names `T`, `H`, `M`, `Q`, `A`, `BM`, `SM` are
/// accepted. `M-15`, which pandas has as `DateOffset(months=1)`, is the 15th of each month, and `M-31` its last day
/// where it is shorter. A number alone is the step of integer timestamps.
///
/// ```
/// use fauna_forecasting::{TimestampFormat, Frequency};
/// let month_ends: Frequency = "M".parse()?;
/// let (january, format) = TimestampFormat::parse("2024-01-31")?;
/// assert_eq!(month_ends.add(january, 1).map(|next| format.format(next)).as_deref(), Some("2024-02-29"));
/// assert_eq!(month_ends.to_string(), "ME");
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frequency {
    step: Step,
    count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Integer,
    Tick(Tick),
    Business,
    /// The day of the week, 0 for Monday.
    Week(u8),
    /// Starts or ends of months.
    Month(Edge),
    /// A day of each month, the last if the month is shorter.
    MonthDay(i8),
    /// The first or last day of the month, and another day.
    SemiMonth(Edge, i8),
    /// The index of a weekday in the month, from 0 or [`LAST_WEEK`], and the weekday.
    WeekOfMonth(u8, u8),
    /// Quarters; the month with which a year of them begins or ends, 0 for January.
    Quarter(Edge, u8),
    /// Years; the month with which they begin or end, 0 for January.
    Year(Edge, u8),
}

/// Steps of a fixed length in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
enum Tick {
    Microsecond = 1,
    Millisecond = 1_000,
    Second = 1_000_000,
    Minute = 60_000_000,
    Hour = 3_600_000_000,
    Day = DAY,
}

/// Which day of a month, quarter or year.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    Start,
    End,
    /// The first business day.
    BusinessStart,
    /// The last business day.
    BusinessEnd,
}

/// The edges in the order in which pandas infers them.
const EDGES: [Edge; 4] = [Edge::End, Edge::BusinessEnd, Edge::Start, Edge::BusinessStart];

/// The last week in [`Step::WeekOfMonth`].
const LAST_WEEK: u8 = 9;

impl Edge {
    /// The day of the month that begins on `first`.
    fn day(self, first: Date) -> i8 {
        let last = first.last_of_month();
        match self {
            Self::Start => 1,
            Self::End => last.day(),
            Self::BusinessStart => match weekday(of_date(first)) {
                5 => 3,
                6 => 2,
                _ => 1,
            },
            Self::BusinessEnd => match weekday(of_date(last)) {
                day @ 5.. => last.day() - (day as i8 - 4),
                _ => last.day(),
            },
        }
    }

    /// Prefix and suffix in names: `MS`, `BQE`.
    fn letters(self) -> (&'static str, char) {
        match self {
            Self::Start => ("", 'S'),
            Self::End => ("", 'E'),
            Self::BusinessStart => ("B", 'S'),
            Self::BusinessEnd => ("B", 'E'),
        }
    }
}

const TICKS: [(Tick, &str); 6] = [
    (Tick::Day, "D"),
    (Tick::Hour, "h"),
    (Tick::Minute, "min"),
    (Tick::Second, "s"),
    (Tick::Millisecond, "ms"),
    (Tick::Microsecond, "us"),
];
const DAYS: [&str; 7] = ["MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN"];
const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];

impl Frequency {
    /// Consecutive integers.
    pub const INTEGER: Self = Self { step: Step::Integer, count: 1 };

    fn of(step: Step, count: i64) -> Option<Self> {
        u32::try_from(count).ok().filter(|count| *count > 0).map(|count| Self { step, count })
    }

    /// Usual number of steps per season: a day for minutes and hours, a week for days, a year for weeks, months and
    /// quarters; 1 if the multiple does not divide it.
    ///
    /// ```
    /// let length = |name: &str| name.parse::<fauna_forecasting::Frequency>().unwrap().season_length();
    /// assert_eq!((length("h"), length("15min"), length("B"), length("MS"), length("YE")), (24, 96, 5, 12, 1));
    /// ```
    pub fn season_length(&self) -> usize {
        let length: u32 = match self.step {
            Step::Integer | Step::Year(..) | Step::Tick(Tick::Microsecond | Tick::Millisecond) => 1,
            Step::Tick(Tick::Second) => 3600,
            Step::Tick(Tick::Minute) => 1440,
            Step::Tick(Tick::Hour) => 24,
            Step::Tick(Tick::Day) => 7,
            Step::Business => 5,
            Step::Week(_) => 52,
            Step::Month(_) | Step::MonthDay(_) | Step::WeekOfMonth(..) => 12,
            Step::SemiMonth(..) => 24,
            Step::Quarter(..) => 4,
        };
        if length.is_multiple_of(self.count) { (length / self.count) as usize } else { 1 }
    }

    /// The frequency class of TimesFM.
    pub fn class(&self) -> FrequencyClass {
        match self.step {
            Step::Integer | Step::Tick(_) | Step::Business => FrequencyClass::High,
            Step::MonthDay(_) if self.count.is_multiple_of(3) => FrequencyClass::Low,
            Step::Week(_)
            | Step::Month(_)
            | Step::MonthDay(_)
            | Step::SemiMonth(..)
            | Step::WeekOfMonth(..) => FrequencyClass::Medium,
            Step::Quarter(..) | Step::Year(..) => FrequencyClass::Low,
        }
    }

    /// Whether its steps are days or longer, so that all timestamps have the same local time of day.
    pub(crate) fn is_day_or_longer(&self) -> bool {
        !matches!(self.step, Step::Integer | Step::Tick(Tick::Microsecond | Tick::Millisecond | Tick::Second))
            && !matches!(self.step, Step::Tick(Tick::Minute | Tick::Hour))
    }

    /// Whether its timestamps are integers, not dates.
    pub fn is_integer(&self) -> bool {
        self.step == Step::Integer
    }

    /// The timestamp `steps` steps after `from`, or before it if negative; `None` if `from` is not a timestamp of this
    /// frequency or the calendar ends.
    pub fn add(&self, from: Timestamp, steps: i64) -> Option<Timestamp> {
        let steps = steps.checked_mul(self.count.into())?;
        let to = match self.step {
            Step::Integer => return from.checked_add(steps),
            Step::Tick(tick) => from.checked_add(steps.checked_mul(tick as i64)?)?,
            Step::Week(day) if weekday(from) == day => from.checked_add(steps.checked_mul(7 * DAY)?)?,
            Step::Business => {
                let day = business_day(from)?.checked_add(steps)?;
                let days = day.div_euclid(5).checked_mul(7)?.checked_add(day.rem_euclid(5) - 3)?;
                days.checked_mul(DAY)?.checked_add(from.rem_euclid(DAY))?
            }
            Step::Week(_) => return None,
            _ => {
                let index = self.index(from)?.checked_add(steps.checked_mul(self.months())?)?;
                self.of_index(index)?.checked_add(from.rem_euclid(DAY))?
            }
        };
        civil(to).map(|_| to)
    }

    /// Number of steps between two timestamps; `None` if one of them is not a timestamp of this frequency or they are not a
    /// whole number of steps apart.
    pub fn steps(&self, from: Timestamp, to: Timestamp) -> Option<i64> {
        let (distance, unit) = match self.step {
            Step::Integer => (to.checked_sub(from)?, 1),
            Step::Tick(tick) => (to.checked_sub(from)?, tick as i64),
            Step::Week(day) if weekday(from) == day && weekday(to) == day => (to.checked_sub(from)?, 7 * DAY),
            Step::Week(_) => return None,
            _ if from.rem_euclid(DAY) != to.rem_euclid(DAY) => return None,
            Step::Business => (business_day(to)? - business_day(from)?, 1),
            _ => (self.index(to)? - self.index(from)?, self.months()),
        };
        let unit = unit.checked_mul(self.count.into())?;
        (distance % unit == 0).then_some(distance / unit)
    }

    /// Number of months per step without its multiple.
    fn months(&self) -> i64 {
        match self.step {
            Step::Quarter(..) => 3,
            Step::Year(..) => 12,
            _ => 1,
        }
    }

    /// The index of the month of a timestamp from January of the year 0, or of the half month; `None` for a day that this
    /// frequency does not have.
    fn index(&self, timestamp: Timestamp) -> Option<i64> {
        let (date, _) = civil(timestamp)?;
        let month = i64::from(date.year()) * 12 + i64::from(date.month()) - 1;
        let index = match self.step {
            Step::Quarter(_, anchor) | Step::Year(_, anchor)
                if (month - i64::from(anchor)) % self.months() != 0 =>
            {
                return None;
            }
            Step::SemiMonth(edge, _) => {
                let at_edge = date.day() == edge.day(date.first_of_month());
                2 * month + i64::from(at_edge == (edge == Edge::End))
            }
            _ => month,
        };
        (self.of_index(index)? == of_date(date)).then_some(index)
    }

    /// The midnight of this frequency at the index.
    fn of_index(&self, index: i64) -> Option<Timestamp> {
        let first = |month: i64| {
            let year = i16::try_from(month.div_euclid(12)).ok().filter(|year| (0..=9999).contains(year))?;
            Date::new(year, month.rem_euclid(12) as i8 + 1, 1).ok()
        };
        let (month, day) = match self.step {
            Step::Month(edge) | Step::Quarter(edge, _) | Step::Year(edge, _) => {
                let month = first(index)?;
                (month, edge.day(month))
            }
            Step::MonthDay(day) => (first(index)?, day),
            Step::SemiMonth(edge, day) => {
                let month = first(index.div_euclid(2))?;
                let at_edge = (index.rem_euclid(2) == 1) == (edge == Edge::End);
                (month, if at_edge { edge.day(month) } else { day })
            }
            Step::WeekOfMonth(week, wanted) => {
                let month = first(index)?;
                let earliest = 1 + (wanted as i8 - weekday(of_date(month)) as i8).rem_euclid(7);
                let last = earliest + 7 * ((month.days_in_month() - earliest) / 7);
                (month, if week == LAST_WEEK { last } else { earliest + 7 * week as i8 })
            }
            _ => return None,
        };
        let day = day.min(month.days_in_month());
        Date::new(month.year(), month.month(), day).ok().map(of_date)
    }

    /// Infers the frequency of increasing timestamps as `infer_freq` of pandas. Where some are missing, it is one of which
    /// at least half of the steps are single ones and all are multiples.
    ///
    /// `None` for fewer than three timestamps, and if there is no such frequency.
    ///
    /// ```
    /// use fauna_forecasting::{TimestampFormat, Frequency};
    /// let timestamps: Vec<i64> = ["2024-01-31", "2024-02-29", "2024-03-31", "2024-05-31"]
    ///     .iter()
    ///     .map(|text| TimestampFormat::parse(text).unwrap().0)
    ///     .collect();
    /// assert_eq!(Frequency::infer(&timestamps, false).unwrap().to_string(), "ME");
    /// ```
    pub fn infer(timestamps: &[Timestamp], is_integer: bool) -> Option<Self> {
        if timestamps.len() < 3 {
            return None;
        }
        let mut best: Option<(usize, Self)> = None;
        for frequency in candidates(timestamps, is_integer) {
            let singles = frequency.singles(timestamps);
            if let Some(singles) = singles.filter(|singles| best.is_none_or(|(most, _)| *singles > most)) {
                best = Some((singles, frequency));
            }
        }
        best.filter(|(singles, _)| 2 * singles >= timestamps.len() - 1).map(|(_, frequency)| frequency)
    }

    /// Whether all timestamps are one step apart.
    pub(crate) fn covers_without_gaps(&self, timestamps: &[Timestamp]) -> bool {
        self.singles(timestamps).is_some_and(|singles| singles + 1 == timestamps.len())
    }

    /// Number of pairs of timestamps that are one step apart; `None` if a pair is not a whole number of steps apart.
    fn singles(&self, timestamps: &[Timestamp]) -> Option<usize> {
        let mut singles = 0;
        for pair in timestamps.windows(2) {
            match self.steps(pair[0], pair[1])? {
                1 => singles += 1,
                2.. => {}
                _ => return None,
            }
        }
        Some(singles)
    }
}

/// The index of a business day from a Monday before 1970.
fn business_day(timestamp: Timestamp) -> Option<i64> {
    let day = weekday(timestamp);
    let weeks = (timestamp.div_euclid(DAY) + 3).div_euclid(7);
    (day < 5).then(|| weeks * 5 + i64::from(day))
}

/// Candidates for the frequency of timestamps, the most specific first.
fn candidates(timestamps: &[Timestamp], is_integer: bool) -> Vec<Frequency> {
    let smallest = |values: &[Timestamp]| values.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).min();
    let Some(step) = smallest(timestamps).filter(|step| *step > 0) else { return Vec::new() };
    if is_integer {
        return Frequency::of(Step::Integer, step).into_iter().collect();
    }
    let mut found = month_candidates(timestamps);
    if step % (7 * DAY) == 0 {
        found.extend(Frequency::of(Step::Week(weekday(timestamps[0])), step / (7 * DAY)));
    } else if let Some((tick, _)) = TICKS.iter().find(|(tick, _)| step % *tick as i64 == 0) {
        found.extend(Frequency::of(Step::Tick(*tick), step / *tick as i64));
    }
    if step == DAY {
        found.extend(Frequency::of(Step::Business, 1));
    }
    // A weekday of each month is at least four weeks apart.
    if step >= 28 * DAY {
        found.extend(week_of_month(timestamps));
    }
    found
}

/// The frequency of the weekday of the month on which all timestamps are.
fn week_of_month(timestamps: &[Timestamp]) -> Option<Frequency> {
    let day = weekday(timestamps[0]);
    let (first, _) = civil(timestamps[0])?;
    let week = (first.day() - 1) as u8 / 7;
    [week.min(3), LAST_WEEK]
        .into_iter()
        .filter_map(|week| Frequency::of(Step::WeekOfMonth(week, day), 1))
        .find(|frequency| timestamps.iter().all(|timestamp| frequency.index(*timestamp).is_some()))
}

/// Years, quarters, months or half months, if every timestamp is on such a day.
fn month_candidates(timestamps: &[Timestamp]) -> Vec<Frequency> {
    let fits = |step: Step| {
        let frequency = Frequency { step, count: 1 };
        timestamps.iter().all(|timestamp| frequency.index(*timestamp).is_some()).then_some(frequency)
    };
    let distance = |frequency: &Frequency| {
        let places: Option<Vec<i64>> =
            timestamps.iter().map(|timestamp| frequency.index(*timestamp)).collect();
        places?.windows(2).map(|pair| pair[1] - pair[0]).min().filter(|distance| *distance > 0)
    };
    let mut found = Vec::new();
    for edge in EDGES {
        let Some(months) = fits(Step::Month(edge)) else { continue };
        let (Some(step), Some(first)) = (distance(&months), months.index(timestamps[0])) else { continue };
        let month = first.rem_euclid(12);
        found.extend(if step % 12 == 0 {
            Frequency::of(Step::Year(edge, month as u8), step / 12)
        } else if step % 3 == 0 {
            // pandas names quarters by the first month that they can begin with, or the last that they can end with.
            let at_start = matches!(edge, Edge::Start | Edge::BusinessStart);
            let anchor = if at_start { month % 3 } else { 9 + month % 3 };
            Frequency::of(Step::Quarter(edge, anchor as u8), step / 3)
        } else {
            Frequency::of(Step::Month(edge), step)
        });
    }
    let days: Option<Vec<i8>> =
        timestamps.iter().map(|timestamp| civil(*timestamp).map(|(date, _)| date.day())).collect();
    let Some(days) = days else { return found };
    let (least, most) = (days.iter().copied().min().unwrap_or(1), days.iter().copied().max().unwrap_or(1));
    if found.is_empty()
        && let Some(months) = fits(Step::MonthDay(most))
    {
        found.extend(distance(&months).and_then(|step| Frequency::of(months.step, step)));
    }
    // The first day and another, or another and the last.
    let halves = [(Edge::Start, most), (Edge::End, least)];
    for (edge, day) in halves.into_iter().filter(|(edge, day)| is_between(*edge, *day) && least < most) {
        found.extend(fits(Step::SemiMonth(edge, day)));
    }
    found
}

/// Whether a day of half months is within the bounds of pandas.
fn is_between(edge: Edge, day: i8) -> bool {
    (if edge == Edge::Start { 2 } else { 1 }..=27).contains(&day)
}

impl fmt::Display for Frequency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.step == Step::Integer {
            return write!(f, "{}", self.count);
        }
        if self.count > 1 {
            write!(f, "{}", self.count)?;
        }
        let anchored = |f: &mut fmt::Formatter<'_>, unit: char, edge: Edge, month: u8| {
            let (business, letter) = edge.letters();
            write!(f, "{business}{unit}{letter}-{}", MONTHS[usize::from(month)])
        };
        match self.step {
            Step::Integer => Ok(()),
            Step::Tick(tick) => {
                let name = TICKS.iter().find(|(known, _)| *known == tick).map_or("", |(_, name)| *name);
                f.write_str(name)
            }
            Step::Business => f.write_str("B"),
            Step::Week(day) => write!(f, "W-{}", DAYS[usize::from(day)]),
            Step::Month(edge) => {
                let (business, letter) = edge.letters();
                write!(f, "{business}M{letter}")
            }
            Step::MonthDay(day) => write!(f, "M-{day}"),
            Step::SemiMonth(edge, day) => write!(f, "SM{}-{day}", edge.letters().1),
            Step::WeekOfMonth(LAST_WEEK, day) => write!(f, "LWOM-{}", DAYS[usize::from(day)]),
            Step::WeekOfMonth(week, day) => write!(f, "WOM-{}{}", week + 1, DAYS[usize::from(day)]),
            Step::Quarter(edge, month) => anchored(f, 'Q', edge, month),
            Step::Year(edge, month) => anchored(f, 'Y', edge, month),
        }
    }
}

impl FromStr for Frequency {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::input(format!("`{text}` is not a frequency")).hint(
                "known: us, ms, s, min, h, D, B, W-MON to W-SUN, MS, ME, BMS, BME, SMS, SME, M-15 (the 15th of each \
                 month), WOM-3FRI, LWOM-FRI, QS, QE, YS, YE, BQS, BQE, BYS, BYE with a month (QS-FEB), with a \
                 multiple before: 15min; a number alone for integer timestamps",
            )
        };
        let name = text.trim().trim_start_matches(|c: char| c.is_ascii_digit());
        let count = match text.trim().strip_suffix(name) {
            Some("") | None => 1,
            Some(count) => count.parse::<i64>().map_err(|_| wrong())?,
        };
        let step =
            if name.is_empty() && !text.trim().is_empty() { Some(Step::Integer) } else { step_of(name) };
        step.and_then(|step| Self::of(step, count)).ok_or_else(wrong)
    }
}

/// The step of a name without its multiple.
fn step_of(name: &str) -> Option<Step> {
    // The case distinguishes minutes and milliseconds from months.
    match name {
        "ms" | "L" => return Some(Step::Tick(Tick::Millisecond)),
        "m" => return None,
        _ => {}
    }
    let name = name.to_ascii_uppercase();
    let (unit, anchor) = match name.split_once('-') {
        Some((unit, anchor)) => (unit, Some(anchor)),
        None => (name.as_str(), None),
    };
    let named = |known: &[&str], default: u8| match anchor {
        None => Some(default),
        Some(anchor) => known.iter().position(|name| *name == anchor).map(|index| index as u8),
    };
    let day_of_month = |edge: Edge| {
        let day = anchor.map_or(Some(15), |anchor| anchor.parse().ok())?;
        is_between(edge, day).then_some(Step::SemiMonth(edge, day))
    };
    let anchored = match unit {
        "W" => Some(Step::Week(named(&DAYS, 6)?)),
        "QS" => Some(Step::Quarter(Edge::Start, named(&MONTHS, 0)?)),
        "Q" | "QE" => Some(Step::Quarter(Edge::End, named(&MONTHS, 11)?)),
        "BQS" => Some(Step::Quarter(Edge::BusinessStart, named(&MONTHS, 0)?)),
        "BQ" | "BQE" => Some(Step::Quarter(Edge::BusinessEnd, named(&MONTHS, 11)?)),
        "YS" | "AS" => Some(Step::Year(Edge::Start, named(&MONTHS, 0)?)),
        "Y" | "YE" | "A" => Some(Step::Year(Edge::End, named(&MONTHS, 11)?)),
        "BYS" | "BAS" => Some(Step::Year(Edge::BusinessStart, named(&MONTHS, 0)?)),
        "BY" | "BYE" | "BA" => Some(Step::Year(Edge::BusinessEnd, named(&MONTHS, 11)?)),
        "SMS" => day_of_month(Edge::Start),
        "SM" | "SME" => day_of_month(Edge::End),
        "M" if anchor.is_some() => {
            let day = anchor?.parse().ok().filter(|day| (1..=31).contains(day))?;
            Some(Step::MonthDay(day))
        }
        "WOM" => {
            let (week, day) = anchor?.split_at_checked(1)?;
            let week = week.parse::<u8>().ok().filter(|week| (1..=4).contains(week))?;
            let day = DAYS.iter().position(|known| *known == day)?;
            Some(Step::WeekOfMonth(week - 1, day as u8))
        }
        "LWOM" => {
            anchor?;
            Some(Step::WeekOfMonth(LAST_WEEK, named(&DAYS, 0)?))
        }
        _ => None,
    };
    let plain = match unit {
        "US" | "U" => Step::Tick(Tick::Microsecond),
        "S" => Step::Tick(Tick::Second),
        "MIN" | "T" => Step::Tick(Tick::Minute),
        "H" => Step::Tick(Tick::Hour),
        "D" => Step::Tick(Tick::Day),
        "B" => Step::Business,
        "MS" => Step::Month(Edge::Start),
        "M" | "ME" if anchor.is_none() => Step::Month(Edge::End),
        "BMS" => Step::Month(Edge::BusinessStart),
        "BM" | "BME" => Step::Month(Edge::BusinessEnd),
        _ => return anchored,
    };
    anchor.is_none().then_some(plain)
}
