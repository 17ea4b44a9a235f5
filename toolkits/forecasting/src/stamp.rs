//! Points in time as tables write them: dates, times of day with or without an offset, months, whole numbers.

use std::fmt;
use std::sync::Mutex;

use jiff::civil::Date;
use jiff::tz::TimeZone;

use fauna_shared::{Error, Result};

/// A point in time: microseconds since 1970-01-01T00:00 on the calendar of the table, or the whole number itself where
/// the table counts its steps.
pub type Stamp = i64;

/// Microseconds of a day.
pub(crate) const DAY: i64 = 86_400_000_000;
/// Microseconds of a minute.
pub(crate) const MINUTE: i64 = 60_000_000;

/// How the stamps of a table are written. Forecasts are written in the same way.
///
/// ```
/// use fauna_forecasting::Form;
/// let (stamp, form) = Form::read("2024-02-29T06:00+02:00")?;
/// assert_eq!(form.write(stamp + 60_000_000), "2024-02-29T06:01+02:00");
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    kind: Kind,
    zone: Zone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `17`.
    Whole,
    /// `202402`, `20240229`, `2024022906`, ...: so many digits.
    Compact(u8),
    /// `2024-02`.
    Month,
    /// `2024-02-29`.
    Date,
    /// `2024-02-29T06:00:00.000`, the separator a `T` or a space, seconds and digits of their fraction as found.
    Time { separator: u8, seconds: bool, digits: u8 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zone {
    None,
    Utc,
    /// Minutes east of Greenwich.
    Offset(i16),
    /// A zone of the tz database.
    Named(Named),
}

/// A zone whose offset changes with the seasons.
#[derive(Debug, Clone, Copy)]
struct Named {
    zone: &'static TimeZone,
    /// Whether stamps are what the clock on the wall shows there, else they are in UTC.
    wall: bool,
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.zone, other.zone) && self.wall == other.wall
    }
}

impl Eq for Named {}

impl Named {
    /// Minutes east of Greenwich at `stamp`, and what the clock on the wall shows then.
    fn offset(self, stamp: Stamp) -> (i16, Stamp) {
        let minutes = |seconds: i32| (seconds / 60) as i16;
        if !self.wall {
            let at = jiff::Timestamp::from_microsecond(stamp).map(|at| self.zone.to_offset(at));
            let offset = at.map_or(0, |offset| minutes(offset.seconds()));
            return (offset, stamp.saturating_add(i64::from(offset) * MINUTE));
        }
        let shown = civil(stamp).and_then(|(date, time)| {
            let clock = jiff::civil::Time::midnight();
            date.to_datetime(clock).checked_add(jiff::SignedDuration::from_micros(time)).ok()
        });
        // A time that the clock skips or shows twice has the offset of before the change, as in Python.
        let at = shown.and_then(|shown| self.zone.to_ambiguous_timestamp(shown).compatible().ok());
        (at.map_or(0, |at| minutes(self.zone.to_offset(at).seconds())), stamp)
    }
}

/// The zone called `name`, if the tz database has it. Each is kept for as long as the program runs.
#[cfg_attr(not(feature = "parquet"), allow(dead_code))]
fn zone(name: &str) -> Option<&'static TimeZone> {
    static KNOWN: Mutex<Vec<(String, &'static TimeZone)>> = Mutex::new(Vec::new());
    let mut known = KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((_, zone)) = known.iter().find(|(other, _)| other == name) {
        return Some(zone);
    }
    let zone: &'static TimeZone = Box::leak(Box::new(TimeZone::get(name).ok()?));
    known.push((name.to_string(), zone));
    Some(zone)
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Named(named) => f.write_str(named.zone.iana_name().unwrap_or("?")),
            Self::Utc => f.write_str("Z"),
            Self::Offset(minutes) => {
                let sign = if *minutes < 0 { '-' } else { '+' };
                write!(f, "{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)
            }
        }
    }
}

impl Form {
    /// Whole numbers.
    pub const WHOLE: Self = Self { kind: Kind::Whole, zone: Zone::None };
    /// Dates without a time of day.
    pub const DATE: Self = Self { kind: Kind::Date, zone: Zone::None };
    /// Months: `2024-02`.
    pub const MONTH: Self = Self { kind: Kind::Month, zone: Zone::None };
    /// Dates with a time of day, as pandas writes them: `2024-02-29 06:00:00`.
    pub const TIME: Self =
        Self { kind: Kind::Time { separator: b' ', seconds: true, digits: 0 }, zone: Zone::None };

    /// Dates with a time of day in UTC: `2024-02-29 06:00:00Z`.
    pub const UTC: Self =
        Self { kind: Kind::Time { separator: b' ', seconds: true, digits: 0 }, zone: Zone::Utc };

    /// Dates with a time of day in UTC that are shown as in the zone called `name`: one of the tz database, or an offset
    /// `+01:00`. None for another.
    #[cfg(feature = "parquet")]
    pub(super) fn in_zone(name: &str) -> Option<Self> {
        let kind = Self::TIME.kind;
        let zone = match read_zone(name.as_bytes()) {
            Some(Zone::None) => return None,
            Some(Zone::Offset(0)) => Zone::Utc,
            Some(zone) => zone,
            None if name.eq_ignore_ascii_case("utc") => Zone::Utc,
            None => Zone::Named(Named { zone: zone(name)?, wall: false }),
        };
        Some(Self { kind, zone })
    }

    /// The form of `YYYYMM`, `YYYYMMDD` and what is longer by hours, minutes and seconds.
    pub(super) fn compact(digits: u8) -> Self {
        Self { kind: Kind::Compact(digits), zone: Zone::None }
    }

    /// Whether dates are written as whole numbers.
    pub(super) fn is_compact(self) -> bool {
        matches!(self.kind, Kind::Compact(_))
    }

    /// Minutes east of Greenwich, where stamps are what a clock with that offset shows.
    pub(super) fn offset(self) -> Option<i16> {
        match self.zone {
            Zone::Utc => Some(0),
            Zone::Offset(minutes) => Some(minutes),
            Zone::None | Zone::Named(_) => None,
        }
    }

    /// The same with another offset, in minutes.
    pub(super) fn at_offset(self, minutes: i16) -> Self {
        Self { zone: Zone::Offset(minutes), ..self }
    }

    /// Whether stamps are in UTC and shown as in a zone.
    pub(super) fn is_zoned(self) -> bool {
        matches!(self.zone, Zone::Named(named) if !named.wall)
    }

    /// The form in which a zone's stamps are what the clock on the wall shows.
    pub(super) fn on_the_wall(self) -> Self {
        match self.zone {
            Zone::Named(named) => Self { zone: Zone::Named(Named { wall: true, ..named }), ..self },
            _ => self,
        }
    }

    /// What the clock on the wall shows at `stamp`.
    pub(super) fn wall(self, stamp: Stamp) -> Stamp {
        match self.zone {
            Zone::Named(named) => named.offset(stamp).1,
            _ => stamp,
        }
    }

    /// `stamp` of this form as one of `other`: the same moment where both know their offset.
    pub(super) fn convert(self, stamp: Stamp, other: Self) -> Stamp {
        if other.is_whole() && self.is_compact() {
            return self.write(stamp).parse().unwrap_or(stamp);
        }
        if self.is_whole() && other.is_compact() {
            return compact_date(stamp).map_or(stamp, |(stamp, _)| stamp);
        }
        let utc = match self.zone {
            Zone::None => return stamp,
            Zone::Utc => stamp,
            Zone::Offset(minutes) => stamp.saturating_sub(i64::from(minutes) * MINUTE),
            Zone::Named(named) if named.wall => {
                stamp.saturating_sub(i64::from(named.offset(stamp).0) * MINUTE)
            }
            Zone::Named(_) => stamp,
        };
        match other.zone {
            Zone::None => stamp,
            Zone::Utc => utc,
            Zone::Offset(minutes) => utc.saturating_add(i64::from(minutes) * MINUTE),
            Zone::Named(named) if named.wall => Named { wall: false, ..named }.offset(utc).1,
            Zone::Named(_) => utc,
        }
    }

    /// Whether steps are counted, not dated.
    pub fn is_whole(self) -> bool {
        self.kind == Kind::Whole
    }

    /// Reads one stamp and how it is written.
    ///
    /// A whole number, `2024-02`, `2024-02-29`, or a date and a time of day with `T` or a space between them, with or
    /// without seconds, up to six digits of their fraction, `Z` or an offset. `/` may stand for `-`, the year first.
    /// The offset is kept, and the time taken as the clock on the wall shows it. Of a whole table of whole numbers that
    /// write dates (`20240229`, `202402`), the table makes dates.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) that says what was found.
    pub fn read(text: &str) -> Result<(Stamp, Self)> {
        let text = text.trim();
        let wrong = || Error::input(format!("`{text}` is no date and no whole number")).hint(way_out(text));
        if let Ok(whole) = text.parse::<i64>() {
            return Ok((whole, Self::WHOLE));
        }
        read_date(text.as_bytes()).ok_or_else(wrong)
    }

    /// The form that both can be written in.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) where one is dated and the other counted, or one alone has an offset.
    pub(crate) fn with(self, other: Self) -> Result<Self> {
        if self == other {
            return Ok(self);
        }
        if self.is_whole() != other.is_whole() {
            return Err(Error::input("dates and whole numbers stand in one column"));
        }
        let both_have_offsets = self.offset().is_some() && other.offset().is_some();
        if self.zone != other.zone && !both_have_offsets {
            let named = |zone: Zone| match zone {
                Zone::None => "no offset".to_string(),
                zone => format!("the offset {zone}"),
            };
            return Err(Error::input(format!(
                "it has {}, the stamps before it {}",
                named(other.zone),
                named(self.zone)
            ))
            .hint("write all stamps of a table with an offset, or none"));
        }
        let fine = |kind: Kind| match kind {
            Kind::Whole | Kind::Compact(_) | Kind::Month => (0, 0),
            Kind::Date => (1, 0),
            Kind::Time { seconds, digits, .. } => (2 + u8::from(seconds), digits),
        };
        let finer = if fine(other.kind) > fine(self.kind) { other } else { self };
        Ok(Self { zone: other.zone, ..finer })
    }

    /// `stamp` in this form; finer than it only where the stamp is.
    pub fn write(self, stamp: Stamp) -> String {
        let (zone, stamp) = match self.zone {
            Zone::Named(named) => {
                let (minutes, shown) = named.offset(stamp);
                (Zone::Offset(minutes), shown)
            }
            zone => (zone, stamp),
        };
        let Some((date, time)) = (!self.is_whole()).then(|| civil(stamp)).flatten() else {
            return stamp.to_string();
        };
        let day = format!("{:04}-{:02}-{:02}", date.year(), date.month(), date.day());
        match self.kind {
            Kind::Month if time == 0 && date.day() == 1 => day[..7].to_string(),
            Kind::Compact(digits) => compact_text(&day, digits, date.day(), time),
            Kind::Whole | Kind::Month | Kind::Date if time == 0 => format!("{day}{zone}"),
            Kind::Whole | Kind::Month | Kind::Date => {
                format!("{day} {}{zone}", clock(time, true, 0))
            }
            Kind::Time { separator, seconds, digits } => {
                format!("{day}{}{}{zone}", char::from(separator), clock(time, seconds, digits))
            }
        }
    }
}

/// A date in so many digits, more of them where it is finer; a fraction of a second in the long way.
fn compact_text(day: &str, digits: u8, of_month: i8, time: i64) -> String {
    if time % 1_000_000 != 0 {
        return format!("{day} {}", clock(time, true, 0));
    }
    let all: String =
        day.bytes().chain(clock(time, true, 0).bytes()).filter(u8::is_ascii_digit).map(char::from).collect();
    let second = time / 1_000_000;
    let needed = match () {
        () if second % 60 != 0 => 14,
        () if second % 3600 != 0 => 12,
        () if second != 0 => 10,
        () if of_month != 1 => 8,
        () => 6,
    };
    all[..usize::from(digits).max(needed)].to_string()
}

/// The date that a whole number writes as `YYYYMM`, `YYYYMMDD`, `YYYYMMDDHH`, `YYYYMMDDHHMM` or `YYYYMMDDHHMMSS`, if it
/// writes one from 1600 to 2299, and how many digits it has.
pub(super) fn compact_date(whole: i64) -> Option<(Stamp, u8)> {
    let text = whole.to_string();
    let length = u8::try_from(text.len()).ok().filter(|length| matches!(length, 6 | 8 | 10 | 12 | 14))?;
    let part =
        |at: usize, missing: i64| text.get(at..at + 2).map_or(Some(missing), |two| number(two.as_bytes()));
    let year = number(&text.as_bytes()[..4]).filter(|year| (1600..2300).contains(year))?;
    let date = Date::new(year as i16, part(4, 1)? as i8, part(6, 1)? as i8).ok()?;
    let (hour, minute, second) = (part(8, 0)?, part(10, 0)?, part(12, 0)?);
    let is_time = hour < 24 && minute < 60 && second < 60;
    is_time.then(|| (of_date(date) + ((hour * 60 + minute) * 60 + second) * 1_000_000, length))
}

/// Whether eight digits write a date with the year last, by either reading.
pub(super) fn is_year_last(digits: &str) -> bool {
    if digits.len() != 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let part = |at: usize, length: usize| number(&digits.as_bytes()[at..at + length]).unwrap_or(0);
    let (first, second, year) = (part(0, 2), part(2, 2), part(4, 4));
    let is_date = |day: i64, month: i64| Date::new(year as i16, month as i8, day as i8).is_ok();
    (1800..2200).contains(&year) && (is_date(first, second) || is_date(second, first))
}

/// What to write instead of `text`, which is no date.
fn way_out(text: &str) -> String {
    let known = "dates are written year first: 2024-02-29, 2024-02-29 06:00:00, 2024-02-29T06:00Z, 2024-02";
    let mut parts = text.split(['/', '.', '-', ' ']);
    let numbers: Vec<i64> = parts.by_ref().take(3).map_while(|part| number(part.as_bytes())).collect();
    let upper = text.to_ascii_uppercase();
    let word = if let [a @ 1..=31, b @ 1..=31, year] = numbers[..] {
        let year = if year < 100 { 2000 + year } else { year };
        match (a <= 12, b <= 12) {
            (true, true) if a != b => {
                format!("`{text}` is {year:04}-{b:02}-{a:02} or {year:04}-{a:02}-{b:02}; ")
            }
            (false, true) => format!("write {year:04}-{b:02}-{a:02}; "),
            (true, _) => format!("write {year:04}-{a:02}-{b:02}; "),
            _ => String::new(),
        }
    } else if upper.contains('Q') {
        "write a quarter as its first month: 2020-Q2 is 2020-04 (--freq QS); ".to_string()
    } else if upper.contains('W') {
        "write a week as its first day: 2020-W05 is 2020-01-27 (--freq W-MON); ".to_string()
    } else {
        String::new()
    };
    format!("{word}{known}")
}

/// Microseconds after midnight as a time of day, at least as fine as asked.
fn clock(time: i64, seconds: bool, digits: u8) -> String {
    let (minutes, micros) = (time / 60_000_000, time % 60_000_000);
    let mut text = format!("{:02}:{:02}", minutes / 60, minutes % 60);
    let (whole, fraction) = (micros / 1_000_000, micros % 1_000_000);
    if seconds || micros != 0 {
        text.push_str(&format!(":{whole:02}"));
    }
    if digits > 0 || fraction != 0 {
        let all = format!("{fraction:06}");
        let needed = all.trim_end_matches('0').len().max(usize::from(digits).min(6));
        text.push('.');
        text.push_str(&all[..needed]);
    }
    text
}

fn read_date(text: &[u8]) -> Option<(Stamp, Form)> {
    let (day, rest) = text.split_at_checked(10).unwrap_or((text, b""));
    let separator = *day.get(4)?;
    if !matches!(separator, b'-' | b'/') {
        return None;
    }
    let (year, month) = (number(day.get(..4)?)?, number(day.get(5..7)?)?);
    if day.len() == 7 {
        let date = Date::new(year as i16, month as i8, 1).ok()?;
        return Some((of_date(date), Form { kind: Kind::Month, zone: Zone::None }));
    }
    if day.get(7) != Some(&separator) {
        return None;
    }
    let date = Date::new(year as i16, month as i8, number(day.get(8..)?)? as i8).ok()?;
    let midnight = of_date(date);
    match rest.split_first() {
        None => Some((midnight, Form::DATE)),
        Some((separator @ (b'T' | b't' | b' '), rest)) => {
            let (time, kind, rest) = read_clock(rest, separator.to_ascii_uppercase())?;
            Some((midnight + time, Form { kind, zone: read_zone(rest)? }))
        }
        _ => None,
    }
}

/// Microseconds after midnight, the kind, and what follows.
fn read_clock(text: &[u8], separator: u8) -> Option<(i64, Kind, &[u8])> {
    let (hour, minute) = (number(text.get(..2)?)?, number(text.get(3..5)?)?);
    if text[2] != b':' || hour > 23 || minute > 59 {
        return None;
    }
    let (mut time, mut rest) = ((hour * 60 + minute) * 60_000_000, &text[5..]);
    let (mut seconds, mut digits) = (false, 0);
    if let Some(after) = rest.strip_prefix(b":") {
        let second = number(after.get(..2)?)?;
        if second > 59 {
            return None;
        }
        (time, rest, seconds) = (time + second * 1_000_000, &after[2..], true);
    }
    if let (true, Some(after)) = (seconds, rest.strip_prefix(b".")) {
        let length = after.iter().take_while(|byte| byte.is_ascii_digit()).count();
        // Nanoseconds are read where they are whole microseconds, as pandas writes them.
        let (kept, beyond) = after[..length].split_at(length.min(6));
        if length == 0 || beyond.iter().any(|digit| *digit != b'0') {
            return None;
        }
        time += number(kept)? * 10_i64.pow(6 - kept.len() as u32);
        (rest, digits) = (&after[length..], kept.len() as u8);
    }
    Some((time, Kind::Time { separator, seconds, digits }, rest))
}

fn read_zone(text: &[u8]) -> Option<Zone> {
    let (sign, digits) = match text.split_first() {
        None => return Some(Zone::None),
        Some((b'Z' | b'z', [])) => return Some(Zone::Utc),
        Some((b'+', digits)) => (1, digits),
        Some((b'-', digits)) => (-1, digits),
        _ => return None,
    };
    let (hours, minutes) = match digits {
        [_, _] => (number(digits)?, 0),
        [_, _, b':', rest @ ..] | [_, _, rest @ ..] if rest.len() == 2 => {
            (number(&digits[..2])?, number(rest)?)
        }
        _ => return None,
    };
    (hours < 24 && minutes < 60).then(|| Zone::Offset((sign * (hours * 60 + minutes)) as i16))
}

/// Digits alone, at most six of them.
fn number(digits: &[u8]) -> Option<i64> {
    let digit = |value: i64, byte: &u8| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0'));
    match digits.len() {
        1..=6 => digits.iter().try_fold(0, digit),
        _ => None,
    }
}

const EPOCH: Date = Date::constant(1970, 1, 1);

/// The stamp of midnight.
pub(crate) fn of_date(date: Date) -> Stamp {
    date.duration_since(EPOCH).as_secs() * 1_000_000
}

/// The date of a stamp and the microseconds after its midnight; none outside of the calendar's years.
pub(crate) fn civil(stamp: Stamp) -> Option<(Date, i64)> {
    let days = stamp.div_euclid(DAY);
    let date = EPOCH.checked_add(jiff::SignedDuration::from_hours(days.checked_mul(24)?));
    let date = date.ok().filter(|date| date.year() >= 0)?;
    Some((date, stamp.rem_euclid(DAY)))
}

/// The day of the week, Monday 0.
pub(crate) fn weekday(stamp: Stamp) -> u8 {
    // 1970-01-01 was a Thursday.
    ((stamp.div_euclid(DAY) + 3).rem_euclid(7)) as u8
}

/// Where marks stand on an axis of time from `from` to `to`, at most `most` of them, each with its words: the turns of
/// years, months, days, hours or minutes, whichever are few enough.
///
/// ```
/// use fauna_forecasting::{Form, marks};
/// let (from, form) = Form::read("2023-11-15")?;
/// let (to, _) = Form::read("2024-03-10")?;
/// let words: Vec<String> = marks(form, from, to, 6).into_iter().map(|(_, words)| words).collect();
/// assert_eq!(words, ["2023-12", "2024-01", "2024-02", "2024-03"]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub fn marks(form: Form, from: Stamp, to: Stamp, most: usize) -> Vec<(Stamp, String)> {
    let most = most.max(1) as i64;
    if form.is_whole() {
        let rough = (to.saturating_sub(from) / most).max(1);
        let power = 10_i64.pow(rough.ilog10());
        let step = [1, 2, 5, 10].into_iter().map(|m| power.saturating_mul(m)).find(|step| *step >= rough);
        return every(from, to, step.unwrap_or(i64::MAX)).map(|at| (at, at.to_string())).collect();
    }
    let span = to.saturating_sub(from);
    for minutes in [1, 5, 15, 30, 60, 180, 360, 720] {
        if span / (minutes * MINUTE) < most {
            let words = |at: Stamp| match at.rem_euclid(DAY) {
                0 => Form::DATE.write(at)[5..].to_string(),
                time => clock(time, false, 0),
            };
            return every(from, to, minutes * MINUTE).map(|at| (at, words(at))).collect();
        }
    }
    for days in [1, 2, 7, 14] {
        if span / (days * DAY) < most {
            return every(from, to, days * DAY)
                .map(|at| (at, Form::DATE.write(at)[5..].to_string()))
                .collect();
        }
    }
    calendar_marks(from, to, most)
}

/// Marks at turns of months or years.
fn calendar_marks(from: Stamp, to: Stamp, most: i64) -> Vec<(Stamp, String)> {
    let (Some((first, _)), Some((last, _))) = (civil(from), civil(to)) else { return Vec::new() };
    let month = |date: Date| i64::from(date.year()) * 12 + i64::from(date.month()) - 1;
    let (first, last) = (month(first), month(last));
    let step = [1, 2, 3, 6, 12, 24, 60, 120, 240, 600, 1200];
    let step = step.into_iter().find(|step| (last - first) / step < most).unwrap_or(12_000);
    let start = (first + step - 1).div_euclid(step) * step;
    let mark = |month: i64| {
        let at = of_date(Date::new((month / 12) as i16, (month % 12) as i8 + 1, 1).ok()?);
        let length = if step % 12 == 0 { 4 } else { 7 };
        (from..=to).contains(&at).then(|| (at, Form::DATE.write(at)[..length].to_string()))
    };
    (start..=last).step_by(step as usize).filter_map(mark).collect()
}

/// Multiples of `step` from `from` to `to`.
fn every(from: Stamp, to: Stamp, step: i64) -> impl Iterator<Item = Stamp> {
    let first = from.div_euclid(step).saturating_add(i64::from(from.rem_euclid(step) != 0)).checked_mul(step);
    std::iter::successors(first, move |at| at.checked_add(step)).take_while(move |at| *at <= to)
}
