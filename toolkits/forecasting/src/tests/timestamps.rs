use super::*;
use fauna_shared::model::FrequencyClass;

fn stamp(text: &str) -> Timestamp {
    TimestampFormat::parse(text).unwrap().0
}

/// `count` stamps of `frequency` from `start` on.
fn range(start: &str, frequency: &str, count: i64) -> Vec<Timestamp> {
    let frequency: Frequency = frequency.parse().unwrap();
    (0..count).map(|step| frequency.add(stamp(start), step).unwrap()).collect()
}

/// Start, frequency, the name that pandas 3.1 infers of twelve stamps, and the last of them.
const PANDAS: [(&str, &str, &str, &str); 22] = [
    ("2024-01-31", "ME", "ME", "2024-12-31"),
    ("2024-01-01", "MS", "MS", "2024-12-01"),
    ("2023-11-01", "MS", "MS", "2024-10-01"),
    ("2024-01-01 00:30", "15min", "15min", "2024-01-01 03:15:00"),
    ("2024-01-01", "2h", "2h", "2024-01-01 22:00:00"),
    ("2024-01-01", "h", "h", "2024-01-01 11:00:00"),
    ("2024-02-28", "D", "D", "2024-03-10"),
    ("2024-01-05", "B", "B", "2024-01-22"),
    ("2024-01-01", "W-MON", "W-MON", "2024-03-18"),
    ("2024-01-07", "2W-SUN", "2W-SUN", "2024-06-09"),
    ("2024-01-01", "QS", "QS-JAN", "2026-10-01"),
    ("2024-02-01", "QS-FEB", "QS-FEB", "2026-11-01"),
    ("2024-03-31", "QE", "QE-DEC", "2026-12-31"),
    ("2024-01-31", "QE-OCT", "QE-OCT", "2026-10-31"),
    ("2020-01-01", "YS", "YS-JAN", "2031-01-01"),
    ("2020-12-31", "YE", "YE-DEC", "2031-12-31"),
    ("2020-07-01", "YS-JUL", "YS-JUL", "2031-07-01"),
    ("2024-01-31", "2ME", "2ME", "2025-11-30"),
    ("2024-01-01", "10s", "10s", "2024-01-01 00:01:50"),
    ("2024-01-01", "250ms", "250ms", "2024-01-01 00:00:02.75"),
    ("2020-01-01", "3D", "3D", "2020-02-03"),
    ("2020-02-29", "YE-FEB", "YE-FEB", "2031-02-28"),
];

#[test]
fn frequencies_are_inferred_and_continued_as_in_pandas() {
    for (start, frequency, inferred, last) in PANDAS {
        let stamps = range(start, frequency, 12);
        assert_eq!(*stamps.last().unwrap(), stamp(last), "{start} {frequency}");
        let found = Frequency::infer(&stamps, false).unwrap();
        assert_eq!(found.to_string(), inferred, "{start} {frequency}");
        assert_eq!(found.steps(stamps[0], stamps[11]), Some(11), "{start} {frequency}");
        assert_eq!(found.add(stamps[11], -11), Some(stamps[0]), "{start} {frequency}");
        let parsed: Frequency = inferred.parse().unwrap();
        assert_eq!(parsed, found);
    }
}

/// Start, frequency, what is inferred of fourteen stamps, the second and the last of them: pandas 3.1's `date_range`.
/// pandas infers the same where it infers anything, save for the last.
const PANDAS_MONTHS: [(&str, &str, &str, &str, &str); 20] = [
    ("2024-01-31", "BME", "BME", "2024-02-29", "2025-02-28"),
    ("2024-01-01", "BMS", "BMS", "2024-02-01", "2025-02-03"),
    ("2024-01-01", "SMS", "SMS-15", "2024-01-15", "2024-07-15"),
    ("2024-01-15", "SME", "SME-15", "2024-01-31", "2024-07-31"),
    ("2024-01-01", "SMS-10", "SMS-10", "2024-01-10", "2024-07-10"),
    ("2024-01-07", "SME-7", "SME-7", "2024-01-31", "2024-07-31"),
    ("2024-03-29", "BQE-DEC", "BQE-DEC", "2024-06-28", "2027-06-30"),
    ("2024-01-31", "BQE-OCT", "BQE-OCT", "2024-04-30", "2027-04-30"),
    ("2024-01-01", "BQS-JAN", "QS-JAN", "2024-04-01", "2027-04-01"),
    ("2024-02-01", "BQS-NOV", "BQS-FEB", "2024-05-01", "2027-05-03"),
    ("2020-12-31", "BYE-DEC", "BYE-DEC", "2021-12-31", "2033-12-30"),
    ("2020-04-01", "BYS-APR", "BYS-APR", "2021-04-01", "2033-04-01"),
    ("2024-01-19", "WOM-3FRI", "WOM-3FRI", "2024-02-16", "2025-02-21"),
    ("2024-01-01", "WOM-1MON", "WOM-1MON", "2024-02-05", "2025-02-03"),
    ("2024-01-31", "2BME", "2BME", "2024-03-29", "2026-03-31"),
    ("2024-04-30", "QE-JAN", "QE-OCT", "2024-07-31", "2027-07-31"),
    ("2021-06-30", "YE-JUN", "YE-JUN", "2022-06-30", "2034-06-30"),
    ("2024-03-01", "QS-MAR", "QS-MAR", "2024-06-01", "2027-06-01"),
    ("2024-01-15", "M-15", "M-15", "2024-02-15", "2025-02-15"),
    ("2024-01-26", "LWOM-FRI", "LWOM-FRI", "2024-02-23", "2025-02-28"),
];

#[test]
fn business_days_half_months_and_weekdays_of_months_continue_as_in_pandas() {
    for (start, name, inferred, second, last) in PANDAS_MONTHS {
        let stamps = range(start, name, 14);
        assert_eq!((stamps[1], stamps[13]), (stamp(second), stamp(last)), "{start} {name}");
        let found = Frequency::infer(&stamps, false).unwrap();
        assert_eq!(found.to_string(), inferred, "{start} {name}");
        assert_eq!(found.add(stamps[13], -13), Some(stamps[0]), "{start} {name}");
        assert_eq!(inferred.parse::<Frequency>().unwrap(), found);
    }
    // A day that some months lack is their last, and the day comes back.
    let ends = range("2024-01-30", "M-30", 4).into_iter().map(|stamp| TimestampFormat::DATE.format(stamp));
    assert_eq!(ends.collect::<Vec<_>>(), ["2024-01-30", "2024-02-29", "2024-03-30", "2024-04-30"]);
    for wrong in ["SMS-1", "SME-28", "M-0", "M-32", "WOM-5FRI", "WOM-FRI", "LWOM", "BMS-JAN", "bh", "C"] {
        assert!(wrong.parse::<Frequency>().is_err(), "{wrong}");
    }
}

#[test]
fn a_frequency_is_inferred_in_spite_of_gaps() {
    for (start, frequency, inferred, _) in PANDAS {
        let mut stamps = range(start, frequency, 12);
        stamps.remove(7);
        stamps.remove(3);
        assert_eq!(Frequency::infer(&stamps, false).unwrap().to_string(), inferred, "{start} {frequency}");
    }
    // Three days, five days, then one: most steps are not single.
    let irregular = ["2024-01-01", "2024-01-04", "2024-01-09", "2024-01-10"].map(stamp);
    assert_eq!(Frequency::infer(&irregular, false), None);
    assert_eq!(Frequency::infer(&irregular[..2], false), None);
    assert_eq!(Frequency::infer(&[5, 15, 25, 45], true).unwrap().to_string(), "10");
}

#[test]
fn season_length_and_class_follow_from_the_frequency() {
    let known = [
        ("s", 3600, FrequencyClass::High),
        ("15min", 96, FrequencyClass::High),
        ("h", 24, FrequencyClass::High),
        ("7h", 1, FrequencyClass::High),
        ("D", 7, FrequencyClass::High),
        ("B", 5, FrequencyClass::High),
        ("W-MON", 52, FrequencyClass::Medium),
        ("MS", 12, FrequencyClass::Medium),
        ("2ME", 6, FrequencyClass::Medium),
        ("QE", 4, FrequencyClass::Low),
        ("YS", 1, FrequencyClass::Low),
        ("BME", 12, FrequencyClass::Medium),
        ("SMS", 24, FrequencyClass::Medium),
        ("12M-15", 1, FrequencyClass::Low),
        ("BQS", 4, FrequencyClass::Low),
        ("1", 1, FrequencyClass::High),
    ];
    for (name, season, pace) in known {
        let frequency: Frequency = name.parse().unwrap();
        assert_eq!((frequency.season_length(), frequency.class()), (season, pace), "{name}");
    }
}

#[test]
fn older_names_are_read_and_others_refused() {
    let old = [
        ("T", "min"),
        ("H", "h"),
        ("M", "ME"),
        ("Q", "QE-DEC"),
        ("A", "YE-DEC"),
        ("W", "W-SUN"),
        ("30T", "30min"),
    ];
    for (old, new) in old {
        assert_eq!(old.parse::<Frequency>().unwrap().to_string(), new);
    }
    for wrong in ["", "m", "0D", "W-XYZ", "D-MON", "fortnight", "99999999999D"] {
        let error = wrong.parse::<Frequency>().unwrap_err().to_string();
        assert!(error.contains("is not a frequency") && error.contains("W-MON"), "{error}");
    }
}

#[test]
fn the_calendar_ends_without_a_panic() {
    let day: Frequency = "D".parse().unwrap();
    assert_eq!(day.add(stamp("9999-12-31"), 1), None);
    for name in
        ["D", "B", "W-FRI", "ME", "QS", "YE", "BME", "SMS", "M-30", "LWOM-FRI", "us", "4000000000D", "7"]
    {
        let frequency: Frequency = name.parse().unwrap();
        for from in [i64::MIN, -1, 0, stamp("2024-12-31"), i64::MAX] {
            for steps in [i64::MIN, -5, 5, i64::MAX] {
                let _ = (
                    frequency.add(from, steps),
                    frequency.steps(from, steps),
                    TimestampFormat::DATE.format(from),
                );
            }
            let _ = (
                Frequency::infer(&[i64::MIN, from, i64::MAX], false),
                axis_ticks(TimestampFormat::INTEGER, i64::MIN, from, 5),
            );
            let _ = (
                Frequency::infer(&[i64::MIN, from, i64::MAX], true),
                axis_ticks(TimestampFormat::DATE, i64::MIN, from, 5),
            );
        }
    }
}

#[test]
fn timestamps_are_written_as_they_were_read() {
    for text in [
        "17",
        "-3",
        "1949-02",
        "2024-02-29",
        "2024-02-29 06:00",
        "2024-02-29 06:00:30",
        "2024-02-29T06:00:00.250",
        "2024-02-29T06:00Z",
        "2024-02-29 06:00:00+05:30",
        "2024-02-29T06:00-03:00",
    ] {
        let (stamp, format) = TimestampFormat::parse(text).unwrap();
        assert_eq!(format.format(stamp), text);
    }
    assert_eq!(stamp("2024/02/29"), stamp("2024-02-29 00:00:00.000000000"));
    for wrong in [
        "",
        "tomorrow",
        "29.02.2024",
        "02/29/2024",
        "2023-02-29",
        "2024-13-01",
        "2024-02-29 24:00",
        "2024-2-9",
        "2024-02-29x",
        "2024-02-29T",
        "2024-02-29T06:00:00.1234567",
        "2024-02-29T06:00+9",
        "2024-é1-01",
    ] {
        assert!(TimestampFormat::parse(wrong).unwrap_err().message().contains("is not a date"), "{wrong}");
    }
}

#[test]
fn a_date_that_needs_a_time_of_day_gets_one() {
    assert_eq!(TimestampFormat::DATE.format(stamp("2024-01-01 06:00")), "2024-01-01 06:00:00");
    let (_, month) = TimestampFormat::parse("2024-01").unwrap();
    assert_eq!(month.format(stamp("2024-01-15")), "2024-01-15");
}

#[test]
fn axis_ticks_are_few_and_round() {
    let words = |from: &str, to: &str| -> Vec<String> {
        axis_ticks(TimestampFormat::DATE, stamp(from), stamp(to), 6)
            .into_iter()
            .map(|(_, words)| words)
            .collect()
    };
    assert_eq!(words("2024-01-01 09:10", "2024-01-01 13:00"), ["10:00", "11:00", "12:00", "13:00"]);
    assert_eq!(words("2024-01-01", "2024-01-04"), ["01-01", "01-02", "01-03", "01-04"]);
    assert_eq!(words("1949-01-01", "1962-12-01"), ["1950", "1955", "1960"]);
    let whole: Vec<i64> =
        axis_ticks(TimestampFormat::INTEGER, 3, 47, 5).into_iter().map(|(at, _)| at).collect();
    assert_eq!(whole, [10, 20, 30, 40]);
}

#[test]
fn invalid_dates_are_refused_with_a_hint() {
    let cases = [
        ("01/02/2020", "`01/02/2020` is 2020-02-01 or 2020-01-02"),
        ("31.12.2020", "write 2020-12-31"),
        ("12/31/20", "write 2020-12-31"),
        ("2020-Q2", "2020-Q2 is 2020-04"),
        ("2020W05", "2020-W05 is 2020-01-27"),
        ("soon", "dates are written year first"),
    ];
    for (text, wanted) in cases {
        let error = TimestampFormat::parse(text).unwrap_err().to_string();
        assert!(error.contains("is not a date") && error.contains(wanted), "{error}");
    }
}
