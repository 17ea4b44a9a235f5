//! How far the stamps of a series are apart: told by name, read off the stamps, continued into the future.

use std::fmt;
use std::str::FromStr;

use fauna_shared::model::Pace;
use fauna_shared::{Error, Result};

use super::stamp::{DAY, Stamp, civil, of_month, weekday};

/// The step from one stamp to the next, named as pandas names it.
///
/// `us`, `ms`, `s`, `min`, `h`, `D`, `B` (Monday to Friday), `W-MON` to `W-SUN` (`W` is `W-SUN`), `MS` and `ME` (first
/// and last day of the month), `QS-JAN` and `QE-DEC` (of the quarter), `YS-JAN` and `YE-DEC` (of the year), each with a
/// count before it if it is more than one: `15min`, `2W-MON`. The older names `T`, `H`, `M`, `Q`, `A` are read too. A
/// bare count is the step of stamps that are whole numbers.
///
/// ```
/// use fauna_science::forecast::{Form, Frequency};
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
    /// let season = |name: &str| name.parse::<fauna_science::forecast::Frequency>().unwrap().season();
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
            Step::Month(_) => 12,
            Step::Quarter(..) => 4,
        };
        if round.is_multiple_of(self.count) { (round / self.count) as usize } else { 1 }
    }

    /// How fast such a series moves, for models that ask.
    pub fn pace(&self) -> Pace {
        match self.step {
            Step::Whole | Step::Tick(_) | Step::Business => Pace::High,
            Step::Week(_) | Step::Month(_) => Pace::Medium,
            Step::Quarter(..) | Step::Year(..) => Pace::Low,
        }
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
            Step::Month(edge) | Step::Quarter(edge, _) | Step::Year(edge, _) => {
                let month = self.month(from)?.checked_add(steps.checked_mul(self.months())?)?;
                of_month(month, edge == Edge::End, from.rem_euclid(DAY))?
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
            Step::Month(_) | Step::Quarter(..) | Step::Year(..) => {
                (self.month(to)? - self.month(from)?, self.months())
            }
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

    /// The month of a stamp, counted from January of the year 0, if it is one that this frequency has.
    fn month(&self, stamp: Stamp) -> Option<i64> {
        let (edge, anchor) = match self.step {
            Step::Month(edge) => (edge, 0),
            Step::Quarter(edge, anchor) | Step::Year(edge, anchor) => (edge, i64::from(anchor)),
            _ => return None,
        };
        let (month, at) = month_and_edge(stamp)?;
        (at == Some(edge) && (month - anchor) % self.months() == 0).then_some(month)
    }

    /// Reads the frequency off rising stamps, as pandas' `infer_freq` does; where some are missing, the one to which
    /// at least half of the steps belong and all others are whole steps.
    ///
    /// None for fewer than three stamps, and for stamps that are on no such grid.
    ///
    /// ```
    /// use fauna_science::forecast::{Form, Frequency};
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

/// The month of a stamp, and whether it is the first or last day of it.
fn month_and_edge(stamp: Stamp) -> Option<(i64, Option<Edge>)> {
    let (date, _) = civil(stamp)?;
    let edge = match date.day() {
        1 => Some(Edge::Start),
        day if day == date.days_in_month() => Some(Edge::End),
        _ => None,
    };
    Some((i64::from(date.year()) * 12 + i64::from(date.month()) - 1, edge))
}

/// What the stamps may be, the most telling first.
fn candidates(stamps: &[Stamp], whole: bool) -> Vec<Frequency> {
    let smallest = |values: &[Stamp]| values.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).min();
    let Some(step) = smallest(stamps).filter(|step| *step > 0) else { return Vec::new() };
    if whole {
        return Frequency::of(Step::Whole, step).into_iter().collect();
    }
    let mut found = Vec::new();
    found.extend(month_candidate(stamps));
    if step % (7 * DAY) == 0 {
        found.extend(Frequency::of(Step::Week(weekday(stamps[0])), step / (7 * DAY)));
    } else if let Some((tick, _)) = TICKS.iter().find(|(tick, _)| step % *tick as i64 == 0) {
        found.extend(Frequency::of(Step::Tick(*tick), step / *tick as i64));
    }
    if step == DAY {
        found.extend(Frequency::of(Step::Business, 1));
    }
    found
}

/// Years, quarters or months, if every stamp stands at the same edge of its month.
fn month_candidate(stamps: &[Stamp]) -> Option<Frequency> {
    let mut months = Vec::with_capacity(stamps.len());
    let edge = month_and_edge(stamps[0])?.1?;
    for stamp in stamps {
        match month_and_edge(*stamp)? {
            (month, Some(at)) if at == edge => months.push(month),
            _ => return None,
        }
    }
    let step = months.windows(2).map(|pair| pair[1] - pair[0]).min().filter(|step| *step > 0)?;
    let month = months[0].rem_euclid(12);
    if step % 12 == 0 {
        Frequency::of(Step::Year(edge, month as u8), step / 12)
    } else if step % 3 == 0 {
        // pandas names quarters by the first month that they can begin in, or the last that they can end in.
        let anchor = if edge == Edge::Start { month % 3 } else { 9 + month % 3 };
        Frequency::of(Step::Quarter(edge, anchor as u8), step / 3)
    } else {
        Frequency::of(Step::Month(edge), step)
    }
}

impl fmt::Display for Frequency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.step == Step::Whole {
            return write!(f, "{}", self.count);
        }
        if self.count > 1 {
            write!(f, "{}", self.count)?;
        }
        let letter = |edge: Edge| if edge == Edge::Start { 'S' } else { 'E' };
        match self.step {
            Step::Whole => Ok(()),
            Step::Tick(tick) => {
                let name = TICKS.iter().find(|(known, _)| *known == tick).map_or("", |(_, name)| *name);
                f.write_str(name)
            }
            Step::Business => f.write_str("B"),
            Step::Week(day) => write!(f, "W-{}", DAYS[usize::from(day)]),
            Step::Month(edge) => write!(f, "M{}", letter(edge)),
            Step::Quarter(edge, month) => write!(f, "Q{}-{}", letter(edge), MONTHS[usize::from(month)]),
            Step::Year(edge, month) => write!(f, "Y{}-{}", letter(edge), MONTHS[usize::from(month)]),
        }
    }
}

impl FromStr for Frequency {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::input(format!("`{text}` is no frequency")).hint(
                "known: us, ms, s, min, h, D, B, W-MON to W-SUN, MS, ME, QS, QE, YS, YE, with a count before: 15min; \
                 a bare count for stamps that are whole numbers",
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
    let anchored = match unit {
        "W" => Some(Step::Week(named(&DAYS, 6)?)),
        "QS" => Some(Step::Quarter(Edge::Start, named(&MONTHS, 0)?)),
        "Q" | "QE" => Some(Step::Quarter(Edge::End, named(&MONTHS, 11)?)),
        "YS" | "AS" => Some(Step::Year(Edge::Start, named(&MONTHS, 0)?)),
        "Y" | "YE" | "A" => Some(Step::Year(Edge::End, named(&MONTHS, 11)?)),
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
        "M" | "ME" => Step::Month(Edge::End),
        _ => return anchored,
    };
    anchor.is_none().then_some(plain)
}
