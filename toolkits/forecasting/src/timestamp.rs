//! Timestamps of tables: dates, times of day with or without a UTC offset, months, integers.

use std::fmt;
use std::sync::Mutex;

use fauna_shared::{Error, Result};
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::series::Timestamp;

/// Microseconds of a day.
pub(crate) const DAY: i64 = 86_400_000_000;
/// Microseconds of a minute.
pub(crate) const MINUTE: i64 = 60_000_000;

/// Format of the timestamps of a table, in which its forecasts are written too.
///
/// ```
/// use fauna_forecasting::TimestampFormat;
/// let (timestamp, format) = TimestampFormat::parse("2024-02-29T06:00+02:00")?;
/// assert_eq!(format.format(timestamp + 60_000_000), "2024-02-29T06:01+02:00");
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimestampFormat {
    kind: Kind,
    zone: Zone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `17`.
    Integer,
    /// `202402`, `20240229`, `2024022906`, ..., by the number of digits.
    Compact(u8),
    /// `2024-02`.
    Month,
    /// `2024-02-29`.
    Date,
    /// `2024-02-29T06:00:00.000`, with `T` or a space as separator, with or without seconds, with `digits` of their
    /// fraction.
    Time { separator: u8, seconds: bool, digits: u8 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zone {
    None,
    Utc,
    /// UTC offset in minutes.
    Offset(i16),
    /// A time zone of the tz database.
    Named(Named),
}

/// A time zone whose UTC offset changes.
#[derive(Debug, Clone, Copy)]
struct Named {
    zone: &'static TimeZone,
    /// Whether timestamps are in local time; else they are in UTC.
    is_local: bool,
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.zone, other.zone) && self.is_local == other.is_local
    }
}

impl Eq for Named {}

impl Named {
    /// The UTC offset in minutes at `timestamp`, and the local time.
    fn offset(self, timestamp: Timestamp) -> (i16, Timestamp) {
        let minutes = |seconds: i32| (seconds / 60) as i16;
        if !self.is_local {
            let at = jiff::Timestamp::from_microsecond(timestamp).map(|at| self.zone.to_offset(at));
            let offset = at.map_or(0, |offset| minutes(offset.seconds()));
            return (offset, timestamp.saturating_add(i64::from(offset) * MINUTE));
        }
        let local = civil(timestamp).and_then(|(date, time)| {
            let midnight = jiff::civil::Time::midnight();
            date.to_datetime(midnight).checked_add(jiff::SignedDuration::from_micros(time)).ok()
        });
        // A local time that is skipped or repeated has the offset of before the change, as in Python.
        let at = local.and_then(|local| self.zone.to_ambiguous_timestamp(local).compatible().ok());
        (at.map_or(0, |at| minutes(self.zone.to_offset(at).seconds())), timestamp)
    }
}

/// The time zone `name` of the tz database. Each is kept for as long as the program runs.
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

impl TimestampFormat {
    /// Integers.
    pub const INTEGER: Self = Self { kind: Kind::Integer, zone: Zone::None };
    /// Dates: `2024-02-29`.
    pub const DATE: Self = Self { kind: Kind::Date, zone: Zone::None };
    /// Months: `2024-02`.
    pub const MONTH: Self = Self { kind: Kind::Month, zone: Zone::None };
    /// Dates with a time of day, as pandas writes them: `2024-02-29 06:00:00`.
    pub const DATE_TIME: Self =
        Self { kind: Kind::Time { separator: b' ', seconds: true, digits: 0 }, zone: Zone::None };

    /// Dates with a time of day in UTC: `2024-02-29 06:00:00Z`.
    pub const UTC: Self =
        Self { kind: Kind::Time { separator: b' ', seconds: true, digits: 0 }, zone: Zone::Utc };

    /// Dates with a time of day in UTC that are written in the local time of `name`: a time zone of the tz database or an
    /// offset such as `+01:00`. `None` for another.
    #[cfg(feature = "parquet")]
    pub(crate) fn in_zone(name: &str) -> Option<Self> {
        let kind = Self::DATE_TIME.kind;
        let zone = match parse_offset(name.as_bytes()) {
            Some(Zone::None) => return None,
            Some(Zone::Offset(0)) => Zone::Utc,
            Some(zone) => zone,
            None if name.eq_ignore_ascii_case("utc") => Zone::Utc,
            None => Zone::Named(Named { zone: zone(name)?, is_local: false }),
        };
        Some(Self { kind, zone })
    }

    /// The format of `YYYYMM`, `YYYYMMDD` and longer ones with hours, minutes and seconds.
    pub(crate) fn compact(digits: u8) -> Self {
        Self { kind: Kind::Compact(digits), zone: Zone::None }
    }

    /// Whether dates are written as integers.
    pub(crate) fn is_compact(self) -> bool {
        matches!(self.kind, Kind::Compact(_))
    }

    /// The UTC offset in minutes of timestamps in local time of a fixed offset.
    pub(crate) fn offset(self) -> Option<i16> {
        match self.zone {
            Zone::Utc => Some(0),
            Zone::Offset(minutes) => Some(minutes),
            Zone::None | Zone::Named(_) => None,
        }
    }

    /// The same with another UTC offset, in minutes.
    pub(crate) fn at_offset(self, minutes: i16) -> Self {
        Self { zone: Zone::Offset(minutes), ..self }
    }

    /// Whether timestamps are in UTC and written in the local time of a time zone.
    pub(crate) fn is_utc_in_zone(self) -> bool {
        matches!(self.zone, Zone::Named(named) if !named.is_local)
    }

    /// The format whose timestamps are in the local time of the time zone.
    pub(crate) fn in_local_time(self) -> Self {
        match self.zone {
            Zone::Named(named) => Self { zone: Zone::Named(Named { is_local: true, ..named }), ..self },
            _ => self,
        }
    }

    /// The local time at `timestamp`.
    pub(crate) fn local_time(self, timestamp: Timestamp) -> Timestamp {
        match self.zone {
            Zone::Named(named) => named.offset(timestamp).1,
            _ => timestamp,
        }
    }

    /// Converts `timestamp` of this format to `other`: the same instant if both have an offset.
    pub(crate) fn convert(self, timestamp: Timestamp, other: Self) -> Timestamp {
        if other.is_integer() && self.is_compact() {
            return self.format(timestamp).parse().unwrap_or(timestamp);
        }
        if self.is_integer() && other.is_compact() {
            return compact_date(timestamp).map_or(timestamp, |(timestamp, _)| timestamp);
        }
        let utc = match self.zone {
            Zone::None => return timestamp,
            Zone::Utc => timestamp,
            Zone::Offset(minutes) => timestamp.saturating_sub(i64::from(minutes) * MINUTE),
            Zone::Named(named) if named.is_local => {
                timestamp.saturating_sub(i64::from(named.offset(timestamp).0) * MINUTE)
            }
            Zone::Named(_) => timestamp,
        };
        match other.zone {
            Zone::None => timestamp,
            Zone::Utc => utc,
            Zone::Offset(minutes) => utc.saturating_add(i64::from(minutes) * MINUTE),
            Zone::Named(named) if named.is_local => Named { is_local: false, ..named }.offset(utc).1,
            Zone::Named(_) => utc,
        }
    }

    /// Whether timestamps are integers.
    pub fn is_integer(self) -> bool {
        self.kind == Kind::Integer
    }

    /// Parses a timestamp and detects its format.
    ///
    /// An integer, `2024-02`, `2024-02-29`, or a date and a time of day with `T` or a space between them, with or without
    /// seconds, up to six digits of their fraction, `Z` or an offset. `/` may stand for `-`, with the year first. A
    /// timestamp with an offset is in local time. Integers that write dates (`20240229`, `202402`) are converted when a
    /// whole table is read.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for any other text.
    pub fn parse(text: &str) -> Result<(Timestamp, Self)> {
        let text = text.trim();
        let invalid =
            || Error::input(format!("`{text}` is not a date and not an integer")).hint(date_hint(text));
        if let Ok(integer) = text.parse::<i64>() {
            return Ok((integer, Self::INTEGER));
        }
        parse_date(text.as_bytes()).ok_or_else(invalid)
    }

    /// The format in which timestamps of both can be written.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if one has dates and the other integers, or one alone has an offset.
    pub(crate) fn with(self, other: Self) -> Result<Self> {
        if self == other {
            return Ok(self);
        }
        if self.is_integer() != other.is_integer() {
            return Err(Error::input("one column has both dates and integers"));
        }
        let both_have_offsets = self.offset().is_some() && other.offset().is_some();
        if self.zone != other.zone && !both_have_offsets {
            let named = |zone: Zone| match zone {
                Zone::None => "no offset".to_string(),
                zone => format!("the offset {zone}"),
            };
            return Err(Error::input(format!(
                "it has {}, the timestamps before it {}",
                named(other.zone),
                named(self.zone)
            ))
            .hint("write all timestamps of a table with an offset, or none"));
        }
        let fine = |kind: Kind| match kind {
            Kind::Integer | Kind::Compact(_) | Kind::Month => (0, 0),
            Kind::Date => (1, 0),
            Kind::Time { seconds, digits, .. } => (2 + u8::from(seconds), digits),
        };
        let finer = if fine(other.kind) > fine(self.kind) { other } else { self };
        Ok(Self { zone: other.zone, ..finer })
    }

    /// Writes `timestamp` in this format, or in a finer one if the timestamp is finer.
    pub fn format(self, timestamp: Timestamp) -> String {
        let (zone, timestamp) = match self.zone {
            Zone::Named(named) => {
                let (minutes, shown) = named.offset(timestamp);
                (Zone::Offset(minutes), shown)
            }
            zone => (zone, timestamp),
        };
        let Some((date, time)) = (!self.is_integer()).then(|| civil(timestamp)).flatten() else {
            return timestamp.to_string();
        };
        let day = format!("{:04}-{:02}-{:02}", date.year(), date.month(), date.day());
        match self.kind {
            Kind::Month if time == 0 && date.day() == 1 => day[..7].to_string(),
            Kind::Compact(digits) => compact_text(&day, digits, date.day(), time),
            Kind::Integer | Kind::Month | Kind::Date if time == 0 => format!("{day}{zone}"),
            Kind::Integer | Kind::Month | Kind::Date => {
                format!("{day} {}{zone}", time_of_day(time, true, 0))
            }
            Kind::Time { separator, seconds, digits } => {
                format!("{day}{}{}{zone}", char::from(separator), time_of_day(time, seconds, digits))
            }
        }
    }
}

/// A date in at least `digits` digits; with a fraction of a second, in the format of [`TimestampFormat::DATE_TIME`].
fn compact_text(day: &str, digits: u8, of_month: i8, time: i64) -> String {
    if time % 1_000_000 != 0 {
        return format!("{day} {}", time_of_day(time, true, 0));
    }
    let all: String = day
        .bytes()
        .chain(time_of_day(time, true, 0).bytes())
        .filter(u8::is_ascii_digit)
        .map(char::from)
        .collect();
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

/// The date that an integer writes as `YYYYMM`, `YYYYMMDD`, `YYYYMMDDHH`, `YYYYMMDDHHMM` or `YYYYMMDDHHMMSS`, from 1600
/// to 2299, and its number of digits.
pub(crate) fn compact_date(integer: i64) -> Option<(Timestamp, u8)> {
    let text = integer.to_string();
    let length = u8::try_from(text.len()).ok().filter(|length| matches!(length, 6 | 8 | 10 | 12 | 14))?;
    let part =
        |at: usize, missing: i64| text.get(at..at + 2).map_or(Some(missing), |two| number(two.as_bytes()));
    let year = number(&text.as_bytes()[..4]).filter(|year| (1600..2300).contains(year))?;
    let date = Date::new(year as i16, part(4, 1)? as i8, part(6, 1)? as i8).ok()?;
    let (hour, minute, second) = (part(8, 0)?, part(10, 0)?, part(12, 0)?);
    let is_time = hour < 24 && minute < 60 && second < 60;
    is_time.then(|| (of_date(date) + ((hour * 60 + minute) * 60 + second) * 1_000_000, length))
}

/// Whether eight digits are a date with the year last, day or month first.
pub(crate) fn is_year_last(digits: &str) -> bool {
    if digits.len() != 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let part = |at: usize, length: usize| number(&digits.as_bytes()[at..at + length]).unwrap_or(0);
    let (first, second, year) = (part(0, 2), part(2, 2), part(4, 4));
    let is_date = |day: i64, month: i64| Date::new(year as i16, month as i8, day as i8).is_ok();
    (1800..2200).contains(&year) && (is_date(first, second) || is_date(second, first))
}

/// A hint how to write `text` as a date.
fn date_hint(text: &str) -> String {
    let known = "dates are written year first: 2024-02-29, 2024-02-29 06:00:00, 2024-02-29T06:00Z, 2024-02";
    let mut parts = text.split(['/', '.', '-', ' ']);
    let numbers: Vec<i64> = parts.by_ref().take(3).map_while(|part| number(part.as_bytes())).collect();
    let upper = text.to_ascii_uppercase();
    let correction = if let [a @ 1..=31, b @ 1..=31, year] = numbers[..] {
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
        "write a quarter as its first month: 2020-Q2 is 2020-04 (frequency QS); ".to_string()
    } else if upper.contains('W') {
        "write a week as its first day: 2020-W05 is 2020-01-27 (frequency W-MON); ".to_string()
    } else {
        String::new()
    };
    format!("{correction}{known}")
}

/// Writes microseconds after midnight as a time of day, with seconds and `digits` of their fraction at least.
pub(crate) fn time_of_day(time: i64, seconds: bool, digits: u8) -> String {
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

fn parse_date(text: &[u8]) -> Option<(Timestamp, TimestampFormat)> {
    let (day, rest) = text.split_at_checked(10).unwrap_or((text, b""));
    let separator = *day.get(4)?;
    if !matches!(separator, b'-' | b'/') {
        return None;
    }
    let (year, month) = (number(day.get(..4)?)?, number(day.get(5..7)?)?);
    if day.len() == 7 {
        let date = Date::new(year as i16, month as i8, 1).ok()?;
        return Some((of_date(date), TimestampFormat { kind: Kind::Month, zone: Zone::None }));
    }
    if day.get(7) != Some(&separator) {
        return None;
    }
    let date = Date::new(year as i16, month as i8, number(day.get(8..)?)? as i8).ok()?;
    let midnight = of_date(date);
    match rest.split_first() {
        None => Some((midnight, TimestampFormat::DATE)),
        Some((separator @ (b'T' | b't' | b' '), rest)) => {
            let (time, kind, rest) = parse_time(rest, separator.to_ascii_uppercase())?;
            Some((midnight + time, TimestampFormat { kind, zone: parse_offset(rest)? }))
        }
        _ => None,
    }
}

/// Parses a time of day: microseconds after midnight, the format, and the rest of the text.
fn parse_time(text: &[u8], separator: u8) -> Option<(i64, Kind, &[u8])> {
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

fn parse_offset(text: &[u8]) -> Option<Zone> {
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

/// Parses one to six digits.
fn number(digits: &[u8]) -> Option<i64> {
    let digit = |value: i64, byte: &u8| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0'));
    match digits.len() {
        1..=6 => digits.iter().try_fold(0, digit),
        _ => None,
    }
}

const EPOCH: Date = Date::constant(1970, 1, 1);

/// The timestamp of midnight.
pub(crate) fn of_date(date: Date) -> Timestamp {
    date.duration_since(EPOCH).as_secs() * 1_000_000
}

/// The date of a timestamp and the microseconds after midnight; `None` outside of the calendar.
pub(crate) fn civil(timestamp: Timestamp) -> Option<(Date, i64)> {
    let days = timestamp.div_euclid(DAY);
    let date = EPOCH.checked_add(jiff::SignedDuration::from_hours(days.checked_mul(24)?));
    let date = date.ok().filter(|date| date.year() >= 0)?;
    Some((date, timestamp.rem_euclid(DAY)))
}

/// The day of the week, 0 for Monday.
pub(crate) fn weekday(timestamp: Timestamp) -> u8 {
    // 1970-01-01 was a Thursday.
    ((timestamp.div_euclid(DAY) + 3).rem_euclid(7)) as u8
}
