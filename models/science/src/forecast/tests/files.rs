use super::*;

/// What is wrong with the only bad series.
#[track_caller]
fn problem(text: &str) -> String {
    let table = table(text);
    assert_eq!(table.problems.len(), 1, "{:?}", table.problems);
    assert!(!table.series.is_empty(), "the others are done");
    table.problems[0].error.to_string()
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
        ("bad,yesterday,1\n", "t.csv: series `bad`: line 4: column `ds`: `yesterday` is no date"),
        ("bad,,1\n", "t.csv: series `bad`: line 4: column `ds`: the date is missing"),
        (
            "bad,3,1\n",
            "t.csv: series `bad`: line 4: column `ds`: dates and whole numbers stand in one column",
        ),
        (
            "bad,2024-01-02T00:00Z,1\n",
            "t.csv: series `bad`: line 4: column `ds`: it has the offset Z, the stamps before it no offset",
        ),
        ("bad,2024-01-02,\"1,5\"\n", "t.csv: series `bad`: line 4: column `y`: `1,5` is no number"),
        ("bad,2024-01-02,inf\n", "t.csv: series `bad`: line 4: column `y`: `inf` is no number"),
        (
            "bad,2024-01-02,1e300\n",
            "t.csv: series `bad`: line 4: column `y`: `1e300` is no number of the size of a float32",
        ),
    ];
    for (rows, wanted) in cases {
        let found = problem(&with_bad(rows));
        assert!(found.starts_with(wanted), "{found}\nis not\n{wanted}");
        // What follows of a bad series changes nothing, and good rows between stay.
        let found = problem(&with_bad(&format!("{rows}{day}good,2024-01-03,3\n")));
        assert!(found.starts_with(wanted), "{found}");
    }
    assert!(problem(&with_bad(",2024-01-02,3\n")).contains("column `unique_id`: the name is missing"));
}

#[test]
fn a_file_that_is_no_table_says_what_it_lacks() {
    let own = Columns { id: "shop".into(), ..Columns::default() };
    let cases = [
        ("unique_id,date,y\na,2024-01-01,1\n", "t.csv: no column is called `ds`"),
        ("unique_id,ds,yy\na,2024-01-01,1\n", "no column is called `y`; is it `yy`?"),
        ("unique_id,ds,y\n", "t.csv: the table has no rows"),
        ("unique_id,ds,y\na,2024-01-01\n", "t.csv: line 2: 2 cells, the first line has 3"),
        ("ds,y,y\n", "two columns are called `y`"),
        ("", "no column is called `ds`"),
    ];
    for (text, wanted) in cases {
        let found = refused(text, &Columns::default());
        assert!(found.contains(wanted), "{found}");
    }
    let found = refused("unique_id,ds,y\na,2024-01-01,1\n", &own);
    assert!(found.contains("no column is called `shop`") && found.contains("--id-col"), "{found}");
    let same = Columns { target: "ds".into(), ..Columns::default() };
    assert!(refused("ds,y\n1,1\n", &same).contains("cannot be two of"));
    let found =
        Table::from_csv(&b"ds,y\n\xff,1\n"[..], "t.csv", &Columns::default()).unwrap_err().to_string();
    assert!(found.contains("line 2: the text is not UTF-8"), "{found}");
    let missing = Table::read("no/such.csv", &Columns::default()).unwrap_err();
    assert_eq!(missing.kind(), fauna_shared::ErrorKind::NotFound);
}

#[test]
fn names_separators_and_marks_are_as_people_write_them() {
    let own = Columns { id: "shop".into(), time: "day".into(), target: "sold".into() };
    let text = "\u{feff}shop;day;sold;price\nx;1;2.5;9\nx;2;NA;\n";
    let table = Table::from_csv(text.as_bytes(), "t.csv", &own).unwrap();
    assert_eq!(table.covariates, ["price"]);
    assert_eq!(table.series[0].stamps, [1, 2]);
    assert!(table.series[0].values[1].is_nan() && table.series[0].covariates[0][1].is_nan());

    let single = super::table("ds\ty\n2024-01\t1\n2024-02\t2\n");
    assert!(!single.named && single.series.len() == 1);
    assert_eq!(single.form.write(single.series[0].stamps[1]), "2024-02");
}

#[test]
fn rows_of_series_may_be_mixed() {
    let table = table("unique_id,ds,y\na,1,1\nb,1,10\na,2,2\nb,2,20\n");
    let values: Vec<&[f64]> = table.series.iter().map(|series| series.values.as_slice()).collect();
    assert_eq!(values, [&[1.0, 2.0][..], &[10.0, 20.0]]);
}

#[test]
fn a_covariate_of_words_is_left_out_and_named() {
    let table = table("ds,y,price,weather\n1,1,5,sun\n2,2,6,rain\n");
    assert_eq!(
        (table.covariates, table.series[0].covariates.clone()),
        (vec!["price".into()], vec![vec![5.0, 6.0]])
    );
    assert_eq!(table.notes, ["t.csv: column `weather` is left out: line 2 has `sun`, which is no number"]);
}

#[test]
fn missing_stamps_become_gaps() {
    let mut text = "unique_id,ds,y\n".to_string();
    for day in [1, 2, 3, 6, 7, 8] {
        text.push_str(&format!("a,2024-01-0{day},{day}\n"));
    }
    let done = forecast(&Naive, &table(&text), &Ask { horizon: 1, ..Ask::default() }).unwrap();
    assert_eq!(done.notes, ["2 missing stamps of 1 series are filled as gaps (frequency D)"]);
    assert_eq!(csv(&done.sheet), "unique_id,ds,Model\na,2024-01-09,8\n");
    // Lags are counted on the grid, over the gap.
    let done = forecast(&SeasonalNaive { season: 4 }, &table(&text), &Ask { horizon: 2, ..Ask::default() });
    assert_eq!(numbers(&done.unwrap().sheet, "Model"), [1.0, 6.0]);
}

#[test]
fn a_stamp_off_the_grid_names_the_series() {
    let mut text = "unique_id,ds,y\n".to_string();
    for day in 1..9 {
        text.push_str(&format!("a,2024-01-0{day},1\n"));
    }
    text.push_str("b,2024-01-01,1\nb,2024-01-02 06:00,1\n");
    let done = forecast(&Naive, &table(&text), &Ask { horizon: 1, ..Ask::default() }).unwrap();
    assert_eq!(done.problems[0].id, "b");
    let error = done.problems[0].error.to_string();
    assert!(error.contains("series `b`: 2024-01-02 06:00 is no stamp of the frequency D"), "{error}");
    let weeks = Ask { horizon: 1, frequency: Some("W".parse().unwrap()), ..Ask::default() };
    assert_eq!(forecast(&Naive, &table(&text), &weeks).unwrap().problems.len(), 2);
}

#[test]
fn a_frequency_that_would_be_all_gaps_is_refused() {
    let text = "unique_id,ds,y\na,1900-01-01,1\na,1950-01-01,1\na,2020-01-01,1\n";
    let seconds = Ask { horizon: 1, frequency: Some("s".parse().unwrap()), ..Ask::default() };
    let done = forecast(&Naive, &table(text), &seconds).unwrap();
    assert!(
        done.problems[0].error.message().contains("has 3 rows in 3786912001 steps"),
        "{:?}",
        done.problems
    );
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
        assert_eq!(table.form.write(north.stamps[0]), "2024-02-28 22:00:00");
        assert_eq!(table.frequency().unwrap().to_string(), "h");
        assert_eq!(table.series[1].values, [10.0, 20.0, 30.0, 40.0, 50.0]);
        assert!(table.notes[0].contains("`weather` is left out: row 1 has `sun`"), "{:?}", table.notes);
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
