use super::*;

/// What is wrong with the only bad series.
#[track_caller]
fn problem(text: &str) -> String {
    let table = table(text);
    assert_eq!(table.errors.len(), 1, "{:?}", table.errors);
    assert!(!table.series.is_empty(), "the others are done");
    table.errors[0].error.to_string()
}

/// What is wrong with the whole file.
#[track_caller]
fn refused(text: &str, columns: &Columns) -> String {
    Table::from_csv(text.as_bytes(), "t.csv", columns).unwrap_err().to_string()
}

/// A good series, and rows of one called `bad` from line 4 on.
fn with_bad(rows: &str) -> String {
    format!("unique_id,ds,y\ngood,2024-01-01,1\ngood,2024-01-02,2\n{rows}")
}

#[test]
fn a_bad_series_is_named_with_its_line_and_the_others_are_read() {
    let day = "bad,2024-01-01,1\n";
    let cases = [
        (
            "bad,2024-01-02,1\nbad,2024-01-01,1\n",
            "t.csv: series `bad`: line 5: the date 2024-01-01 comes after 2024-01-02",
        ),
        (
            "bad,2024-01-02,1\nbad,2024-01-02,1\n",
            "t.csv: series `bad`: line 5: the date 2024-01-02 is there twice",
        ),
        ("bad,yesterday,1\n", "t.csv: series `bad`: line 4: column `ds`: `yesterday` is not a date"),
        ("bad,,1\n", "t.csv: series `bad`: line 4: column `ds`: the date is missing"),
        ("bad,3,1\n", "t.csv: series `bad`: line 4: column `ds`: one column has both dates and integers"),
        (
            "bad,2024-01-02T00:00Z,1\n",
            "t.csv: series `bad`: line 4: column `ds`: it has the offset Z, the timestamps before it no offset",
        ),
        ("bad,2024-01-02,\"1,5\"\n", "t.csv: series `bad`: line 4: column `y`: `1,5` is not a number"),
        ("bad,2024-01-02,inf\n", "t.csv: series `bad`: line 4: column `y`: `inf` is not a number"),
        (
            "bad,2024-01-02,1e300\n",
            "t.csv: series `bad`: line 4: column `y`: `1e300` is not a number in the range of float32",
        ),
    ];
    for (rows, wanted) in cases {
        let found = problem(&with_bad(rows));
        assert!(found.starts_with(wanted), "{found}\nis not\n{wanted}");
        // What follows of a bad series changes nothing, and good rows between stay.
        let found = problem(&with_bad(&format!("{rows}{day}good,2024-01-03,3\n")));
        assert!(found.starts_with(wanted), "{found}");
    }
    assert!(problem(&with_bad(",2024-01-02,3\n")).contains("column `unique_id`: the id is missing"));
}

#[test]
fn a_file_with_missing_columns_is_refused() {
    let own = Columns { id: "shop".into(), ..Columns::default() };
    let cases = [
        ("unique_id,date,y\na,2024-01-01,1\n", "t.csv: no column is called `ds`"),
        ("unique_id,ds,yy\na,2024-01-01,1\n", "no column is called `y`; is it `yy`?"),
        ("unique_id,ds,y\n", "t.csv: the table has no rows"),
        ("unique_id,ds,y\na,2024-01-01\n", "t.csv: line 2: 2 cells, the header has 3"),
        ("ds,y,y\n", "two columns are called `y`"),
        ("", "no column is called `ds`"),
    ];
    for (text, wanted) in cases {
        let found = refused(text, &Columns::default());
        assert!(found.contains(wanted), "{found}");
    }
    let found = refused("unique_id,ds,y\na,2024-01-01,1\n", &own);
    assert!(found.contains("no column is called `shop`") && found.contains("Columns::id"), "{found}");
    let same = Columns { target: "ds".into(), ..Columns::default() };
    assert!(refused("ds,y\n1,1\n", &same).contains("must be different columns"));
    let missing = Table::read("no/such.csv", &Columns::default()).unwrap_err();
    assert_eq!(missing.kind(), fauna_shared::ErrorKind::NotFound);
}

#[test]
fn column_names_separators_and_byte_order_marks_are_read() {
    let own = Columns { id: "shop".into(), time: "day".into(), target: "sold".into() };
    let text = "\u{feff}shop;day;sold;price\nx;1;2.5;9\nx;2;NA;\n";
    let table = Table::from_csv(text.as_bytes(), "t.csv", &own).unwrap();
    assert_eq!(table.covariates, ["price"]);
    assert_eq!(table.series[0].timestamps, [1, 2]);
    assert!(table.series[0].values[1].is_nan() && table.series[0].covariates[0][1].is_nan());

    let single = super::table("ds\ty\n2024-01\t1\n2024-02\t2\n");
    assert!(!single.has_ids && single.series.len() == 1);
    assert_eq!(single.timestamp_format.format(single.series[0].timestamps[1]), "2024-02");
}

#[test]
fn other_encodings_are_read() {
    let text = "unique_id,ds,y\nKöln,2024-01-01,1\nKöln,2024-01-02,2\n";
    let latin: Vec<u8> = text.chars().map(|c| c as u8).collect();
    let little: Vec<u8> =
        std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> =
        std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_be_bytes).collect();
    for (bytes, notes) in [(latin, 1), (little, 0), (big, 0)] {
        let table = Table::from_csv(&bytes[..], "t.csv", &Columns::default()).unwrap();
        assert_eq!((table.series[0].id.as_str(), table.series[0].timestamps.len()), ("Köln", 2));
        assert_eq!(table.notes.len(), notes, "{:?}", table.notes);
    }
}

/// The forecast of two steps as it is written, and the notes.
fn two_more(text: &str, frequency: Option<&str>) -> (Vec<String>, Vec<String>) {
    let frequency = frequency.map(|name| name.parse().unwrap());
    let options = ForecastOptions { horizon: 2, frequency, ..ForecastOptions::default() };
    let done = forecast(&Naive, &table(text), &options).unwrap();
    assert!(done.errors.is_empty(), "{:?}", done.errors);
    (written(&done.table, "ds", 0..2), done.notes)
}

#[test]
fn dates_of_digits_alone_are_dates() {
    let cases = [
        ("20200130,1\n20200131,2\n20200201,3\n", ["20200202", "20200203"]),
        ("202010,1\n202011,2\n202012,3\n", ["202101", "202102"]),
        ("2020123122,1\n2020123123,2\n2021010100,3\n", ["2021010101", "2021010102"]),
        ("20201231235958,1\n20201231235959,2\n20210101000000,3\n", ["20210101000001", "20210101000002"]),
        // Whole numbers that write no dates are counted.
        ("202011,1\n202012,2\n202013,3\n", ["202014", "202015"]),
        ("98,1\n99,2\n100,3\n", ["101", "102"]),
    ];
    for (rows, wanted) in cases {
        let (found, notes) = two_more(&format!("ds,y\n{rows}"), None);
        assert_eq!(found, wanted);
        assert_eq!(
            notes.iter().filter(|note| note.contains("read as dates")).count(),
            usize::from(wanted[0].starts_with("2020020") || wanted[0].starts_with("2021"))
        );
    }
    assert_eq!(two_more("ds,y\n20200131,1\n20200201,2\n", Some("D")).0, ["20200202", "20200203"]);
    assert_eq!(two_more("ds,y\n202010,1\n202011,2\n202012,3\n", Some("1")).0, ["202013", "202014"]);
    for rows in [
        "01012020,1\n02012020,2\n03012020,3\n",
        "13012020,1\n14012020,2\n15012020,3\n",
        "007,1\n008,2\n009,3\n",
    ] {
        let found = refused(&format!("ds,y\n{rows}"), &Columns::default());
        assert!(found.contains("may be a date or an integer"), "{found}");
    }
}

#[test]
fn a_changing_utc_offset_keeps_hours_and_days_regular() {
    let hours = "ds,y\n2024-03-31 00:00:00+01:00,1\n2024-03-31 01:00:00+01:00,2\n2024-03-31 03:00:00+02:00,3\n\
                 2024-03-31 04:00:00+02:00,4\n";
    let (found, notes) = two_more(hours, None);
    assert_eq!(found, ["2024-03-31 05:00:00+02:00", "2024-03-31 06:00:00+02:00"]);
    assert!(notes[0].contains("the last one, +02:00"), "{notes:?}");
    // In autumn an hour of the clock comes twice.
    let autumn = "ds,y\n2024-10-27T01:00+02:00,1\n2024-10-27T02:00+02:00,2\n2024-10-27T02:00+01:00,3\n";
    assert_eq!(two_more(autumn, None).0, ["2024-10-27T03:00+01:00", "2024-10-27T04:00+01:00"]);
    let days = "ds,y\n2024-03-30T00:00+01:00,1\n2024-03-31T00:00+01:00,2\n2024-04-01T00:00+02:00,3\n";
    assert_eq!(two_more(days, None).0, ["2024-04-02T00:00+02:00", "2024-04-03T00:00+02:00"]);
    let three = refused(
        "ds,y\n2024-01-01T00:00Z,1\n2024-01-01T02:00+01:00,1\n2024-01-01T04:00+02:00,2\n",
        &Columns::default(),
    );
    assert!(three.contains("one column has the UTC offsets +00:00, +01:00, +02:00"), "{three}");
}

#[test]
fn every_series_is_forecast_with_its_own_frequency() {
    let mut text = "unique_id,ds,y\n".to_string();
    for step in 1..=12 {
        text.push_str(&format!("day,2024-01-{step:02},{step}\nday2,2024-01-{step:02},{step}\n"));
        text.push_str(&format!("month,2023-{step:02}-01,{step}\n"));
    }
    for day in [7, 14, 21, 28] {
        text.push_str(&format!("week,2024-01-{day:02},{day}\n"));
    }
    // Too short to tell, so as most of them.
    text.push_str("short,2024-01-01,1\nshort,2024-01-02,2\n");
    let table = table(&text);
    let done =
        forecast(&SeasonalNaive::AUTO, &table, &ForecastOptions { horizon: 1, ..ForecastOptions::default() })
            .unwrap();
    let lines = "unique_id,ds,Model\nday,2024-01-13,6\nday2,2024-01-13,6\nmonth,2024-01-01,1\nweek,2024-02-04,28\nshort,2024-01-03,2\n";
    assert_eq!(csv(&done.table), lines);
    assert_eq!(
        done.notes,
        ["each series is forecast with its own frequency: D (day, day2, short); MS (month); W-SUN (week)"]
    );
    let trial = cross_validate(&Naive, &table, &ForecastOptions { horizon: 1, ..ForecastOptions::default() })
        .unwrap();
    assert!(csv(&trial.table).contains("month,2023-12-01,2023-11-01,12,11"), "{}", csv(&trial.table));
}

#[test]
fn baselines_give_the_numbers_of_the_table() {
    let text = "ds,y\n2024-01-01,6779559063.561772\n2024-01-02,0.1\n2024-01-03,16777217\n";
    let options = ForecastOptions { horizon: 3, ..ForecastOptions::default() };
    let done = forecast(&SeasonalNaive { season_length: 3 }, &table(text), &options).unwrap();
    assert_eq!(numbers(&done.table, "Model"), [6779559063.561772, 0.1, 16777217.0]);
    let done =
        cross_validate(&Naive, &table(text), &ForecastOptions { horizon: 1, ..ForecastOptions::default() })
            .unwrap();
    assert_eq!(numbers(&done.table, "Model"), [0.1]);
    assert_eq!(numbers(&done.table, "y"), [16777217.0]);
}

#[test]
fn integer_timestamps_do_not_overflow() {
    let rows = format!("ds,y\n0,0\n1,1\n2,2\n{},3\n", i64::MAX);
    for text in [rows, format!("ds,y\n{},0\n-1,1\n0,2\n1,3\n{},3\n", i64::MIN, i64::MAX)] {
        let done =
            forecast(&Naive, &table(&text), &ForecastOptions { horizon: 3, ..ForecastOptions::default() });
        assert!(done.is_err() || !done.unwrap().errors.is_empty());
    }
    let last = format!("ds,y\n{},0\n{},1\n{},2\n", i64::MAX - 2, i64::MAX - 1, i64::MAX);
    let done = forecast(&Naive, &table(&last), &ForecastOptions { horizon: 3, ..ForecastOptions::default() })
        .unwrap();
    assert!(done.errors[0].error.message().contains("leave the calendar"), "{:?}", done.errors);
}

#[test]
fn rows_of_series_may_be_mixed() {
    let table = table("unique_id,ds,y\na,1,1\nb,1,10\na,2,2\nb,2,20\n");
    let values: Vec<&[f64]> = table.series.iter().map(|series| series.values.as_slice()).collect();
    assert_eq!(values, [&[1.0, 2.0][..], &[10.0, 20.0]]);
}

#[test]
fn a_covariate_of_text_is_left_out_with_a_note() {
    let table = table("ds,y,price,weather\n1,1,5,sun\n2,2,6,rain\n");
    assert_eq!(
        (table.covariates, table.series[0].covariates.clone()),
        (vec!["price".into()], vec![vec![5.0, 6.0]])
    );
    assert_eq!(table.notes, ["t.csv: column `weather` is left out: line 2 has `sun`, which is not a number"]);
}

#[test]
fn missing_timestamps_become_gaps() {
    let mut text = "unique_id,ds,y\n".to_string();
    for day in [1, 2, 3, 6, 7, 8] {
        text.push_str(&format!("a,2024-01-0{day},{day}\n"));
    }
    let done = forecast(&Naive, &table(&text), &ForecastOptions { horizon: 1, ..ForecastOptions::default() })
        .unwrap();
    assert_eq!(done.notes, ["2 missing timestamps of 1 series are filled as gaps (frequency D)"]);
    assert_eq!(csv(&done.table), "unique_id,ds,Model\na,2024-01-09,8\n");
    // Lags are counted on the grid, over the gap.
    let done = forecast(
        &SeasonalNaive { season_length: 4 },
        &table(&text),
        &ForecastOptions { horizon: 2, ..ForecastOptions::default() },
    );
    assert_eq!(numbers(&done.unwrap().table, "Model"), [1.0, 6.0]);
}

#[test]
fn a_timestamp_off_the_frequency_is_an_error_of_its_series() {
    let mut text = "unique_id,ds,y\n".to_string();
    for day in 1..9 {
        text.push_str(&format!("a,2024-01-0{day},1\n"));
    }
    text.push_str("b,2024-01-01,1\nb,2024-01-02 06:00,1\n");
    let done = forecast(&Naive, &table(&text), &ForecastOptions { horizon: 1, ..ForecastOptions::default() })
        .unwrap();
    assert_eq!(done.errors[0].id, "b");
    let error = done.errors[0].error.to_string();
    assert!(error.contains("series `b`: 2024-01-02 06:00 is not a timestamp of the frequency D"), "{error}");
    let weeks =
        ForecastOptions { horizon: 1, frequency: Some("W".parse().unwrap()), ..ForecastOptions::default() };
    assert_eq!(forecast(&Naive, &table(&text), &weeks).unwrap().errors.len(), 2);
}

#[test]
fn a_frequency_that_would_be_all_gaps_is_refused() {
    let text = "unique_id,ds,y\na,1900-01-01,1\na,1950-01-01,1\na,2020-01-01,1\n";
    let seconds =
        ForecastOptions { horizon: 1, frequency: Some("s".parse().unwrap()), ..ForecastOptions::default() };
    let done = forecast(&Naive, &table(text), &seconds).unwrap();
    assert!(done.errors[0].error.message().contains("has 3 rows in 3786825601 steps"), "{:?}", done.errors);
}

#[cfg(feature = "parquet")]
mod parquet_files {
    use super::*;

    /// Beside this file, with the script that wrote it.
    const PANDAS: &[u8] = include_bytes!("pandas.parquet");

    fn read(bytes: &[u8]) -> fauna_shared::Result<Table> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        std::fs::write(&path, bytes).unwrap();
        Table::read(path, &Columns::default())
    }

    #[test]
    fn damaged_files_are_refused_at_once() {
        let damaged: [(&[u8], &str); 3] = [
            (include_bytes!("damaged/dictionary.parquet"), "a dictionary of 671088639 values in 15 bytes"),
            (include_bytes!("damaged/header.parquet"), "row 1 and after"),
            (include_bytes!("damaged/long_header.parquet"), "row 1 and after"),
        ];
        for (bytes, told) in damaged {
            let started = std::time::Instant::now();
            let error = read(bytes).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
            // They took minutes, or 20 GB.
            assert!(started.elapsed().as_secs() < 20, "{told}: {:?}", started.elapsed());
        }
    }

    #[test]
    fn a_file_that_pandas_wrote_is_read() {
        let table = read(PANDAS).unwrap();
        assert_eq!(table.covariates, ["open", "price"]);
        let ids: Vec<&str> = table.series.iter().map(|series| series.id.as_str()).collect();
        assert_eq!(ids, ["north", "south"]);
        let north = &table.series[0];
        assert!(north.values[1].is_nan());
        assert_eq!((north.values[0], north.values[4]), (1.5, -4.0));
        assert_eq!(north.covariates[0], [1.0, 0.0, 1.0, 0.0, 1.0]);
        assert!(north.covariates[1][2].is_nan() && north.covariates[1][4] == 5.0);
        assert_eq!(table.timestamp_format.format(north.timestamps[0]), "2024-02-28 22:00:00");
        assert_eq!(table.frequency().unwrap().to_string(), "h");
        assert_eq!(table.series[1].values, [10.0, 20.0, 30.0, 40.0, 50.0]);
        assert!(table.notes[0].contains("`weather` is left out: row 1 has `sun`"), "{:?}", table.notes);
    }

    /// The stamps of the only series and of two steps more.
    fn stamps(bytes: &[u8]) -> (Vec<String>, Vec<String>) {
        let table = read(bytes).unwrap();
        let done =
            forecast(&Naive, &table, &ForecastOptions { horizon: 2, ..ForecastOptions::default() }).unwrap();
        let format = table.timestamp_format;
        let known = table.series[0].timestamps.iter().map(|stamp| format.format(*stamp)).collect();
        (known, written(&done.table, "ds", 0..2))
    }

    #[test]
    fn logical_types_of_parquet_are_read() {
        let table = read(include_bytes!("unsigned.parquet")).unwrap();
        let series = &table.series[0];
        assert_eq!(table.timestamp_format.format(series.timestamps[0]), "20231101");
        assert_eq!(series.values, [1.0, 2.0, 3.0, 18446744073709550592.0]);
        assert_eq!(table.covariates, ["u8", "u16", "u32", "half", "cents"]);
        assert_eq!(series.covariates[0], [200.0, 201.0, 202.0, 255.0]);
        assert_eq!(series.covariates[1][3], 65535.0);
        assert_eq!(series.covariates[2][3], 4294967040.0);
        assert_eq!(series.covariates[3], [0.5, -2.0, 65504.0, 5.9604645e-8]);
        assert_eq!((series.covariates[4][0], series.covariates[4][2]), (1.1, -0.3));
        assert!(table.notes.iter().any(|note| note.contains("`clock` is left out")), "{:?}", table.notes);
    }

    #[test]
    fn periods_and_time_zones_continue_as_in_pandas() {
        let (known, more) = stamps(include_bytes!("periods.parquet"));
        assert_eq!((known[0].as_str(), more), ("2023-11", vec!["2024-03".to_string(), "2024-04".into()]));
        let error = read(include_bytes!("weeks.parquet")).unwrap_err().to_string();
        assert!(error.contains("column `ds` holds periods of `W-SUN`"), "{error}");
        let (known, more) = stamps(include_bytes!("zone_months.parquet"));
        assert_eq!(known[3], "2023-11-01 00:00:00-04:00");
        assert_eq!(more, ["2024-02-01 00:00:00-05:00", "2024-03-01 00:00:00-05:00"]);
        let (known, more) = stamps(include_bytes!("zone_hours.parquet"));
        assert_eq!(known[6], "2024-03-31 03:00:00+02:00");
        assert_eq!(more, ["2024-03-31 05:00:00+02:00", "2024-03-31 06:00:00+02:00"]);
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        for length in [0, 3, 100, PANDAS.len() / 2, PANDAS.len() - 1] {
            assert!(read(&PANDAS[..length]).is_err(), "{length}");
        }
        // Whatever byte is wrong, the program goes on.
        for at in (0..PANDAS.len()).step_by(7) {
            let mut bytes = PANDAS.to_vec();
            bytes[at] ^= 0x55;
            let _ = read(&bytes);
        }
    }
}
