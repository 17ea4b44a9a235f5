//! How far the stamps of a series are apart: told by name, read off the stamps, continued into the future.

use std::fmt;
use std::str::FromStr;

use fauna_shared::model::FrequencyClass;
use fauna_shared::{Error, Result};
use jiff::civil::Date;

use super::stamp::{DAY, Stamp, civil, of_date, weekday};

/// The step from one stamp to the next, named as pandas names it.
///
/// `us`, `ms`, `s`, `min`, `h`, `D`, `B` (Monday to Friday), `W-MON` to `W-SUN` (`W` is `W-SUN`), `MS` and `ME` (first
/// and last day of the month), `QS-JAN` and `QE-DEC` (of the quarter), `YS-JAN` and `YE-DEC` (of the year), `BMS`, `BME`,
/// `BQS-JAN`, `BQE-DEC`, `BYS-JAN` and `BYE-DEC` (first and last of Monday to Friday), `SMS-15` (the 1st and the 15th),
/// `SME-15` (the 15th and the last day), `WOM-3FRI` (the third Friday of the month), `LWOM-FRI` (the last), each with a
/// count before it if it is more than one: `15min`, `2W-MON`. The older names `T`, `H`, `M`, `Q`, `A`, `BM`, `SM` are
/// read too. `M-15`, which pandas has as `DateOffset(months=1)`, is the 15th of each month, and `M-31` its last day
/// where it is shorter. A bare count is the step of stamps that are whole numbers.
///
/// ```
/// use fauna_forecasting::{Form, Frequency};
/// let month_ends: Frequency = "M".parse()?;
/// let (january, form) = Form::read("2024-01-31")?;
/// assert_eq!(month_ends.add(january, 1).map(|next| form.write(next)).as_deref(), Some("2024-02-29"));
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
    Whole,
    Tick(Tick),
    Business,
    /// The day of the week, Monday 0.
    Week(u8),
    /// Turns of months.
    Month(Edge),
    /// A day of each month, the last where the month is shorter.
    MonthDay(i8),
    /// The first or last day of the month, and a day between.
    SemiMonth(Edge, i8),
    /// The how-manieth such weekday of the month, from 0; the last for [`LAST_WEEK`].
    WeekOfMonth(u8, u8),
    /// The month in which a year of quarters begins or ends, January 0.
    Quarter(Edge, u8),
    /// The month that begins or ends the year, January 0.
    Year(Edge, u8),
}

/// Steps of one length, in microseconds.
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
    /// The first of Monday to Friday.
    BusinessStart,
    /// The last of Monday to Friday.
    BusinessEnd,
}

/// Those that stamps are compared with, in the order of pandas.
const EDGES: [Edge; 4] = [Edge::End, Edge::BusinessEnd, Edge::Start, Edge::BusinessStart];

/// The week of [`Step::WeekOfMonth`] that is the last.
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

    /// As it stands in names: `MS`, `BQE`.
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
    /// One whole number after the other.
    pub const WHOLE: Self = Self { step: Step::Whole, count: 1 };

    fn of(step: Step, count: i64) -> Option<Self> {
        u32::try_from(count).ok().filter(|count| *count > 0).map(|count| Self { step, count })
    }

    /// How many steps make the round that usually repeats: a day of minutes or hours, a week of days, a year of weeks,
    /// months or quarters; 1 where the count does not fit into it.
    ///
    /// ```
    /// let season = |name: &str| name.parse::<fauna_forecasting::Frequency>().unwrap().season();
    /// assert_eq!((season("h"), season("15min"), season("B"), season("MS"), season("YE")), (24, 96, 5, 12, 1));
    /// ```
    pub fn season(&self) -> usize {
        let round: u32 = match self.step {
            Step::Whole | Step::Year(..) | Step::Tick(Tick::Microsecond | Tick::Millisecond) => 1,
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
        if round.is_multiple_of(self.count) { (round / self.count) as usize } else { 1 }
    }

    /// How fast such a series moves, for models that ask.
    pub fn class(&self) -> FrequencyClass {
        match self.step {
            Step::Whole | Step::Tick(_) | Step::Business => FrequencyClass::High,
            Step::MonthDay(_) if self.count.is_multiple_of(3) => FrequencyClass::Low,
            Step::Week(_)
            | Step::Month(_)
            | Step::MonthDay(_)
            | Step::SemiMonth(..)
            | Step::WeekOfMonth(..) => FrequencyClass::Medium,
            Step::Quarter(..) | Step::Year(..) => FrequencyClass::Low,
        }
    }

    /// Whether its steps are days or longer, so that the clock on the wall shows the same time at each of them.
    pub(super) fn is_of_days(&self) -> bool {
        !matches!(self.step, Step::Whole | Step::Tick(Tick::Microsecond | Tick::Millisecond | Tick::Second))
            && !matches!(self.step, Step::Tick(Tick::Minute | Tick::Hour))
    }

    /// Whether its stamps are whole numbers, not dates.
    pub fn is_whole(&self) -> bool {
        self.step == Step::Whole
    }

    /// The stamp `steps` after `from`, or before it; none where `from` is no stamp of this frequency or the calendar
    /// ends.
    pub fn add(&self, from: Stamp, steps: i64) -> Option<Stamp> {
        let steps = steps.checked_mul(self.count.into())?;
        let to = match self.step {
            Step::Whole => return from.checked_add(steps),
            Step::Tick(tick) => from.checked_add(steps.checked_mul(tick as i64)?)?,
            Step::Week(day) if weekday(from) == day => from.checked_add(steps.checked_mul(7 * DAY)?)?,
            Step::Business => {
                let day = working_day(from)?.checked_add(steps)?;
                let days = day.div_euclid(5).checked_mul(7)?.checked_add(day.rem_euclid(5) - 3)?;
                days.checked_mul(DAY)?.checked_add(from.rem_euclid(DAY))?
            }
            Step::Week(_) => return None,
            _ => {
                let place = self.place(from)?.checked_add(steps.checked_mul(self.months())?)?;
                self.of_place(place)?.checked_add(from.rem_euclid(DAY))?
            }
        };
        civil(to).map(|_| to)
    }

    /// How many steps lie between two stamps; none where one of them is no stamp of this frequency, or no whole number
    /// of steps lies between.
    pub fn steps(&self, from: Stamp, to: Stamp) -> Option<i64> {
        let (distance, unit) = match self.step {
            Step::Whole => (to.checked_sub(from)?, 1),
            Step::Tick(tick) => (to.checked_sub(from)?, tick as i64),
            Step::Week(day) if weekday(from) == day && weekday(to) == day => (to.checked_sub(from)?, 7 * DAY),
            Step::Week(_) => return None,
            _ if from.rem_euclid(DAY) != to.rem_euclid(DAY) => return None,
            Step::Business => (working_day(to)? - working_day(from)?, 1),
            _ => (self.place(to)? - self.place(from)?, self.months()),
        };
        let unit = unit.checked_mul(self.count.into())?;
        (distance % unit == 0).then_some(distance / unit)
    }

    /// Months of one uncounted step.
    fn months(&self) -> i64 {
        match self.step {
            Step::Quarter(..) => 3,
            Step::Year(..) => 12,
            _ => 1,
        }
    }

    /// Which month a stamp stands for, counted from January of the year 0, or which half of one for half months; none
    /// for a day that this frequency does not have.
    fn place(&self, stamp: Stamp) -> Option<i64> {
        let (date, _) = civil(stamp)?;
        let month = i64::from(date.year()) * 12 + i64::from(date.month()) - 1;
        let place = match self.step {
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
        (self.of_place(place)? == of_date(date)).then_some(place)
    }

    /// Midnight of the day that this frequency has at `place`.
    fn of_place(&self, place: i64) -> Option<Stamp> {
        let first = |month: i64| {
            let year = i16::try_from(month.div_euclid(12)).ok().filter(|year| (0..=9999).contains(year))?;
            Date::new(year, month.rem_euclid(12) as i8 + 1, 1).ok()
        };
        let (month, day) = match self.step {
            Step::Month(edge) | Step::Quarter(edge, _) | Step::Year(edge, _) => {
                let month = first(place)?;
                (month, edge.day(month))
            }
            Step::MonthDay(day) => (first(place)?, day),
            Step::SemiMonth(edge, day) => {
                let month = first(place.div_euclid(2))?;
                let at_edge = (place.rem_euclid(2) == 1) == (edge == Edge::End);
                (month, if at_edge { edge.day(month) } else { day })
            }
            Step::WeekOfMonth(week, wanted) => {
                let month = first(place)?;
                let earliest = 1 + (wanted as i8 - weekday(of_date(month)) as i8).rem_euclid(7);
                let last = earliest + 7 * ((month.days_in_month() - earliest) / 7);
                (month, if week == LAST_WEEK { last } else { earliest + 7 * week as i8 })
            }
            _ => return None,
        };
        let day = day.min(month.days_in_month());
        Date::new(month.year(), month.month(), day).ok().map(of_date)
    }

    /// Reads the frequency off rising stamps, as pandas' `infer_freq` does; where some are missing, the one to which
    /// at least half of the steps belong and all others are whole steps.
    ///
    /// None for fewer than three stamps, and for stamps that are on no such grid.
    ///
    /// ```
    /// use fauna_forecasting::{Form, Frequency};
    /// let stamps: Vec<i64> = ["2024-01-31", "2024-02-29", "2024-03-31", "2024-05-31"]
    ///     .iter()
    ///     .map(|text| Form::read(text).unwrap().0)
    ///     .collect();
    /// assert_eq!(Frequency::infer(&stamps, false).unwrap().to_string(), "ME");
    /// ```
    pub fn infer(stamps: &[Stamp], whole: bool) -> Option<Self> {
        if stamps.len() < 3 {
            return None;
        }
        let mut best: Option<(usize, Self)> = None;
        for frequency in candidates(stamps, whole) {
            let singles = frequency.singles(stamps);
            if let Some(singles) = singles.filter(|singles| best.is_none_or(|(most, _)| *singles > most)) {
                best = Some((singles, frequency));
            }
        }
        best.filter(|(singles, _)| 2 * singles >= stamps.len() - 1).map(|(_, frequency)| frequency)
    }

    /// Whether every step between the stamps is a single one.
    pub(super) fn goes_through(&self, stamps: &[Stamp]) -> bool {
        self.singles(stamps).is_some_and(|singles| singles + 1 == stamps.len())
    }

    /// How many of the steps between stamps are single ones; none if one is no whole number of steps.
    fn singles(&self, stamps: &[Stamp]) -> Option<usize> {
        let mut singles = 0;
        for pair in stamps.windows(2) {
            match self.steps(pair[0], pair[1])? {
                1 => singles += 1,
                2.. => {}
                _ => return None,
            }
        }
        Some(singles)
    }
}

/// The working days from a Monday long ago to a stamp of one.
fn working_day(stamp: Stamp) -> Option<i64> {
    let day = weekday(stamp);
    let weeks = (stamp.div_euclid(DAY) + 3).div_euclid(7);
    (day < 5).then(|| weeks * 5 + i64::from(day))
}

/// What the stamps may be, the most telling first.
fn candidates(stamps: &[Stamp], whole: bool) -> Vec<Frequency> {
    let smallest = |values: &[Stamp]| values.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).min();
    let Some(step) = smallest(stamps).filter(|step| *step > 0) else { return Vec::new() };
    if whole {
        return Frequency::of(Step::Whole, step).into_iter().collect();
    }
    let mut found = month_candidates(stamps);
    if step % (7 * DAY) == 0 {
        found.extend(Frequency::of(Step::Week(weekday(stamps[0])), step / (7 * DAY)));
    } else if let Some((tick, _)) = TICKS.iter().find(|(tick, _)| step % *tick as i64 == 0) {
        found.extend(Frequency::of(Step::Tick(*tick), step / *tick as i64));
    }
    if step == DAY {
        found.extend(Frequency::of(Step::Business, 1));
    }
    // A weekday of each month is at least four weeks apart.
    if step >= 28 * DAY {
        found.extend(week_of_month(stamps));
    }
    found
}

/// The weekday of the month on which all stamps are.
fn week_of_month(stamps: &[Stamp]) -> Option<Frequency> {
    let day = weekday(stamps[0]);
    let (first, _) = civil(stamps[0])?;
    let week = (first.day() - 1) as u8 / 7;
    [week.min(3), LAST_WEEK]
        .into_iter()
        .filter_map(|week| Frequency::of(Step::WeekOfMonth(week, day), 1))
        .find(|frequency| stamps.iter().all(|stamp| frequency.place(*stamp).is_some()))
}

/// Years, quarters, months or half months, if every stamp stands on such a day.
fn month_candidates(stamps: &[Stamp]) -> Vec<Frequency> {
    let fits = |step: Step| {
        let frequency = Frequency { step, count: 1 };
        stamps.iter().all(|stamp| frequency.place(*stamp).is_some()).then_some(frequency)
    };
    let distance = |frequency: &Frequency| {
        let places: Option<Vec<i64>> = stamps.iter().map(|stamp| frequency.place(*stamp)).collect();
        places?.windows(2).map(|pair| pair[1] - pair[0]).min().filter(|distance| *distance > 0)
    };
    let mut found = Vec::new();
    for edge in EDGES {
        let Some(months) = fits(Step::Month(edge)) else { continue };
        let (Some(step), Some(first)) = (distance(&months), months.place(stamps[0])) else { continue };
        let month = first.rem_euclid(12);
        found.extend(if step % 12 == 0 {
            Frequency::of(Step::Year(edge, month as u8), step / 12)
        } else if step % 3 == 0 {
            // pandas names quarters by the first month that they can begin in, or the last that they can end in.
            let at_start = matches!(edge, Edge::Start | Edge::BusinessStart);
            let anchor = if at_start { month % 3 } else { 9 + month % 3 };
            Frequency::of(Step::Quarter(edge, anchor as u8), step / 3)
        } else {
            Frequency::of(Step::Month(edge), step)
        });
    }
    let days: Option<Vec<i8>> =
        stamps.iter().map(|stamp| civil(*stamp).map(|(date, _)| date.day())).collect();
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

/// Whether a day of half months is none that a month can begin or end with, as pandas bounds it.
fn is_between(edge: Edge, day: i8) -> bool {
    (if edge == Edge::Start { 2 } else { 1 }..=27).contains(&day)
}

impl fmt::Display for Frequency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.step == Step::Whole {
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
            Step::Whole => Ok(()),
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
            Error::input(format!("`{text}` is no frequency")).hint(
                "known: us, ms, s, min, h, D, B, W-MON to W-SUN, MS, ME, BMS, BME, SMS, SME, M-15 (the 15th of each \
                 month), WOM-3FRI, LWOM-FRI, QS, QE, YS, YE, BQS, BQE, BYS, BYE with a month (QS-FEB), with a \
                 count before: 15min; a bare count for stamps that are whole numbers",
            )
        };
        let name = text.trim().trim_start_matches(|c: char| c.is_ascii_digit());
        let count = match text.trim().strip_suffix(name) {
            Some("") | None => 1,
            Some(count) => count.parse::<i64>().map_err(|_| wrong())?,
        };
        let step = if name.is_empty() && !text.trim().is_empty() { Some(Step::Whole) } else { step_of(name) };
        step.and_then(|step| Self::of(step, count)).ok_or_else(wrong)
    }
}

/// The step of a name without its count.
fn step_of(name: &str) -> Option<Step> {
    // In these the case tells minutes and milliseconds from months.
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
        Some(anchor) => known.iter().position(|name| *name == anchor).map(|place| place as u8),
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
