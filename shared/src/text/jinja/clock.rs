//! `strftime` in UTC.

use super::state::Renderer;
use super::{Fault, Res};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Formats the time of the rendering as glibc's `strftime` in the C locale, with Python's `%f`; unknown codes are
/// copied. `%Z` and `%z` are empty, as for Python's `datetime.now()`.
pub(super) fn strftime(renderer: &mut Renderer, format: &str) -> Res<String> {
    renderer.charge_text(format.len())?;
    let clock = Clock::at(renderer.now());
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let code = &rest[at..];
        let mut chars = code[1..].char_indices().peekable();
        let mut flags = Flags::default();
        while let Some((_, c)) = chars.next_if(|(_, c)| "-_0^#".contains(*c)) {
            match c {
                '^' => flags.upper = true,
                '#' => flags.swap = true,
                pad => flags.pad = Some(pad),
            }
        }
        while let Some((_, digit)) = chars.next_if(|(_, c)| c.is_ascii_digit()) {
            flags.width = flags.width * 10 + digit.to_digit(10).unwrap_or(0) as usize;
            if flags.width > 1000 {
                return Err(Fault::failed("strftime width above 1000"));
            }
        }
        let Some((i, c)) = chars.next() else {
            out.push_str(code);
            return Ok(out);
        };
        let length = 1 + i + c.len_utf8();
        match clock.write(c, &flags) {
            Some(text) => {
                renderer.charge_text(text.len())?;
                out.push_str(&text);
            }
            None => out.push_str(&code[..length]),
        }
        rest = &code[length..];
    }
    out.push_str(rest);
    Ok(out)
}

#[derive(Default)]
struct Flags {
    pad: Option<char>,
    upper: bool,
    swap: bool,
    width: usize,
}

struct Clock {
    seconds: u64,
    year: u64,
    /// From 0.
    month: usize,
    day: u64,
    /// From 0, Sunday.
    weekday: u64,
    /// From 0.
    day_of_year: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Clock {
    fn at(seconds: u64) -> Self {
        let (days, time) = (seconds / 86_400, seconds % 86_400);
        let (year, day_of_year) = year_and_day(days);
        let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let (mut month, mut left) = (0, day_of_year);
        while month < 11 && left >= lengths[month] {
            left -= lengths[month];
            month += 1;
        }
        Self {
            seconds,
            year,
            month,
            day: left + 1,
            weekday: (days + 4) % 7,
            day_of_year,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
        }
    }

    /// Year and week of ISO 8601: week 1 is the week with the first Thursday of the year.
    fn iso_week(&self) -> (u64, u64) {
        let monday_based = (self.weekday + 6) % 7;
        let week = (self.day_of_year + 10 - monday_based) / 7;
        let weeks = |year: u64| {
            let jan_first = |year: u64| {
                let before = year - 1;
                (before + before / 4 - before / 100 + before / 400 + 1) % 7
            };
            52 + u64::from(jan_first(year) == 4 || (leap(year) && jan_first(year) == 3))
        };
        match week {
            0 => (self.year - 1, weeks(self.year - 1)),
            week if week > weeks(self.year) => (self.year + 1, 1),
            week => (self.year, week),
        }
    }

    fn write(&self, code: char, flags: &Flags) -> Option<String> {
        let number = |value: u64, width: usize, pad: char| {
            let width = if flags.pad == Some('-') { 0 } else { width.max(flags.width) };
            let pad = match flags.pad {
                Some('_') => ' ',
                Some('0') => '0',
                _ => pad,
            };
            let digits = value.to_string();
            let fill = width.saturating_sub(digits.len());
            Some(pad.to_string().repeat(fill) + &digits)
        };
        let word = |text: &str| {
            let text = match flags.upper || flags.swap {
                true => text.to_uppercase(),
                false => text.to_string(),
            };
            let fill = flags.width.saturating_sub(text.len());
            Some(if flags.pad == Some('0') { "0" } else { " " }.repeat(fill) + &text)
        };
        let parts = |codes: &str| {
            let mut out = String::new();
            for c in codes.chars() {
                match c.is_ascii_alphabetic() {
                    true => out += &self.write(c, &Flags::default())?,
                    false => out.push(c),
                }
            }
            word(&out)
        };
        let half_day = |hour: u64| if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        match code {
            'Y' => number(self.year, 0, '0'),
            'C' => number(self.year / 100, 2, '0'),
            'y' => number(self.year % 100, 2, '0'),
            'm' => number(self.month as u64 + 1, 2, '0'),
            'd' => number(self.day, 2, '0'),
            'e' => number(self.day, 2, ' '),
            'H' => number(self.hour, 2, '0'),
            'k' => number(self.hour, 2, ' '),
            'I' => number(half_day(self.hour), 2, '0'),
            'l' => number(half_day(self.hour), 2, ' '),
            'M' => number(self.minute, 2, '0'),
            'S' => number(self.second, 2, '0'),
            'j' => number(self.day_of_year + 1, 3, '0'),
            's' => number(self.seconds, 0, '0'),
            'w' => number(self.weekday, 1, '0'),
            'u' => number(if self.weekday == 0 { 7 } else { self.weekday }, 1, '0'),
            'U' => number((self.day_of_year + 7 - self.weekday) / 7, 2, '0'),
            'W' => number((self.day_of_year + 7 - (self.weekday + 6) % 7) / 7, 2, '0'),
            'V' => number(self.iso_week().1, 2, '0'),
            'G' => number(self.iso_week().0, 0, '0'),
            'g' => number(self.iso_week().0 % 100, 2, '0'),
            'f' => Some("000000".into()),
            'B' => word(MONTHS[self.month]),
            'b' | 'h' => word(&MONTHS[self.month][..3]),
            'A' => word(DAYS[self.weekday as usize]),
            'a' => word(&DAYS[self.weekday as usize][..3]),
            'p' if flags.swap => Some(if self.hour < 12 { "am" } else { "pm" }.into()),
            'p' => word(if self.hour < 12 { "AM" } else { "PM" }),
            'P' => Some(if self.hour < 12 { "am" } else { "pm" }.into()),
            'F' => parts("Y-m-d"),
            'T' | 'X' => parts("H:M:S"),
            'R' => parts("H:M"),
            'r' => parts("I:M:S p"),
            'D' | 'x' => parts("m/d/y"),
            'c' => parts("a b e H:M:S Y"),
            'n' => Some("\n".into()),
            't' => Some("\t".into()),
            'z' | 'Z' => Some(String::new()),
            '%' => Some("%".into()),
            _ => None,
        }
    }
}

fn leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// The Gregorian year, and the day of the year from 0, of a number of days since 1970.
fn year_and_day(days: u64) -> (u64, u64) {
    // 400 years have 146,097 days, so the loop below runs 400 times at most.
    let (mut year, mut left) = (1970 + days / 146_097 * 400, days % 146_097);
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    (year, left)
}
