use super::*;
use fauna_shared::ErrorKind;
use fauna_shared::model::{Forecast, ForecastConfig, Forecaster, History};

const A: [f64; 13] = [12.0, 15.0, 11.0, 20.0, 14.0, 16.0, 13.0, 22.0, 15.0, 19.0, 12.0, 25.0, 17.0];
const B: [f64; 13] = [5.0, 0.0, 7.0, 3.0, 6.0, 1.0, 9.0, 2.0, 4.0, -1.0, 8.0, 5.0, 6.0];

fn two() -> Table {
    let series = [("a", A.to_vec()), ("b", B.to_vec())];
    Table::regular("QS".parse().unwrap(), "2021-01-01", series).unwrap()
}

/// Refuses series whose first value is negative.
struct Picky;

impl Forecaster for Picky {
    fn forecast(&self, series: &[History], options: &ForecastConfig) -> fauna_shared::Result<Vec<Forecast>> {
        match series.iter().position(|past| past.values[0] < 0.0) {
            Some(index) => Err(fauna_shared::Error::input(format!("series {index} is too cold"))),
            None => Naive.forecast(series, options),
        }
    }
}

/// Forecasts the future values of the covariates, -1 if there are none.
struct Told;

impl Forecaster for Told {
    fn forecast(&self, series: &[History], options: &ForecastConfig) -> fauna_shared::Result<Vec<Forecast>> {
        let one = |past: &History| {
            let known = past.covariates.iter().find(|covariate| !covariate.future.is_empty());
            let mean = known.map_or(vec![-1.0; options.horizon], |covariate| covariate.future.clone());
            Forecast { quantiles: vec![mean.clone(); options.quantiles.len()], mean }
        };
        Ok(series.iter().map(one).collect())
    }

    fn reads_covariates(&self) -> bool {
        true
    }
}

#[test]
fn metrics_are_those_of_the_formulas() {
    // mae, rmse, mase, smape, crps of a, b and both, worked out with NumPy.
    let wanted = [
        ("Model", [5.833333333, 6.416125518, 3.268398268, 0.162367202, 0.254127728]),
        ("Model", [5.5, 5.986094999, 3.911111111, 0.822222222, 0.741958694]),
        ("Model", [5.666666667, 6.201110258, 3.589754690, 0.492294712, 0.372389780]),
        ("SeasonalNaive", [1.833333333, 2.041241452, 1.021645022, 0.054421139, 0.079213260]),
        ("SeasonalNaive", [1.833333333, 1.957890021, 1.333333333, 0.324369748, 0.250637990]),
        ("SeasonalNaive", [1.833333333, 1.999565737, 1.177489177, 0.189395443, 0.120770770]),
    ];
    let options =
        ForecastOptions { horizon: 3, windows: 2, step_size: Some(2), ..ForecastOptions::default() };
    let done = cross_validate(&Naive, &two(), &options).unwrap();
    let models: Vec<&str> = done.metrics.iter().map(|one| one.model.as_str()).collect();
    assert_eq!(
        models.chunks(3).map(|three| three[0]).collect::<Vec<_>>(),
        ["Model", "Naive", "SeasonalNaive"]
    );
    let ids: Vec<Option<&str>> = done.metrics[..3].iter().map(|one| one.id.as_deref()).collect();
    assert_eq!(ids, [Some("a"), Some("b"), None]);
    let found = done.metrics[..3].iter().chain(&done.metrics[6..]);
    for (one, (model, wanted)) in found.zip(wanted) {
        assert_eq!(one.model, model);
        assert_close(&[one.mae, one.rmse, one.mase, one.smape, one.crps], &wanted, 1e-6);
    }
    // The model is the naive forecast itself.
    for (one, naive) in done.metrics[..3].iter().zip(&done.metrics[3..6]) {
        assert_eq!((one.mae, one.crps), (naive.mae, naive.crps));
    }
    let table = csv(&ResultTable::from_metrics(&done.metrics, &two()));
    assert!(table.starts_with("unique_id,model,mae,rmse,mase,smape,crps\na,Model,5.83"), "{table}");
    assert!(table.contains("\nall,SeasonalNaive,1.83"), "{table}");
}

#[test]
fn windows_roll_to_the_end_of_the_series() {
    for (windows, step, horizon) in [(1, 1, 1), (3, 1, 2), (2, 5, 3), (4, 2, 4)] {
        let values: Vec<f64> = (0..20).map(f64::from).collect();
        let table = Table::regular(Frequency::INTEGER, "100", [("a", values)]).unwrap();
        let options =
            ForecastOptions { horizon, windows, step_size: Some(step), ..ForecastOptions::default() };
        let done = cross_validate(&Naive, &table, &options).unwrap();
        let cutoff = |window: usize| 119 - (horizon + (windows - 1 - window) * step);
        let rows = (0..windows).flat_map(|window| (1..=horizon).map(move |step| (cutoff(window), step)));
        let (mut stamps, mut cutoffs) = (Vec::new(), Vec::new());
        for (cutoff, step) in rows {
            stamps.push((cutoff + step).to_string());
            cutoffs.push(cutoff.to_string());
        }
        let count = windows * horizon;
        assert_eq!(written(&done.table, "ds", 0..count), stamps);
        assert_eq!(written(&done.table, "cutoff", 0..count), cutoffs);
        // The naive forecast is what stood at the cutoff, the value what stands at the stamp.
        let value = |text: &String| text.parse::<f64>().unwrap() - 100.0;
        assert_eq!(numbers(&done.table, "Model"), cutoffs.iter().map(value).collect::<Vec<_>>());
        assert_eq!(numbers(&done.table, "y"), stamps.iter().map(value).collect::<Vec<_>>());
    }
}

#[test]
fn baselines_have_the_intervals_of_their_residuals() {
    let options = ForecastOptions {
        horizon: 6,
        intervals: Intervals::quantiles(vec![0.975, 0.1]).unwrap(),
        ..ForecastOptions::default()
    };
    let table = Table::regular("QS".parse().unwrap(), "2021-01-01", [("a", A.to_vec())]).unwrap();
    let done = forecast(&SeasonalNaive { season_length: 4 }, &table, &options).unwrap();
    assert_eq!(done.table.column_names, ["ds", "Model", "Model-q-10", "Model-q-97.5"]);
    assert_eq!(numbers(&done.table, "Model"), [19.0, 12.0, 25.0, 17.0, 19.0, 12.0]);
    let low = [16.40154205, 9.40154205, 22.40154205, 14.40154205, 15.32522553, 8.32522553];
    let high = [22.9739985, 15.9739985, 28.9739985, 20.9739985, 24.62008257, 17.62008257];
    assert_close(&numbers(&done.table, "Model-q-10"), &low, 1e-5);
    assert_close(&numbers(&done.table, "Model-q-97.5"), &high, 1e-5);
    let one = forecast(
        &Naive,
        &daily(vec![3.0]),
        &ForecastOptions { horizon: 2, frequency: Some("D".parse().unwrap()), ..options },
    );
    let one = one.unwrap().table;
    assert_eq!(numbers(&one, "Model"), [3.0, 3.0]);
    assert!(csv(&one).ends_with("a,2024-01-03,3,,\n"), "{}", csv(&one));
}

#[test]
fn gaps_do_not_stop_a_baseline() {
    let past = History::from(vec![1.0, 2.0, f32::NAN, 4.0, f32::NAN, f32::NAN]);
    let options = ForecastConfig { horizon: 4, quantiles: Vec::new(), ..ForecastConfig::default() };
    let of = |season_length| {
        SeasonalNaive { season_length }.forecast(std::slice::from_ref(&past), &options).unwrap()
    };
    assert_eq!(of(1)[0].mean, [4.0; 4]);
    assert_eq!(of(3)[0].mean, [4.0, 2.0, 4.0, 4.0]);
    assert_eq!(of(100)[0].mean, [4.0; 4]);
    assert!(SeasonalNaive { season_length: 0 }.forecast(&[past], &options).is_err());
}

#[test]
fn conformal_intervals_are_the_ranked_errors_of_each_step() {
    // Naive forecasts of 2 steps from 4, 6, 8 and 10 values on: errors of the first and second step by hand.
    let values = vec![0.0, 1.0, 3.0, 2.0, 6.0, 5.0, 5.0, 9.0, 8.0, 8.5, 9.0, 12.0];
    let wanted_first: [f64; 4] = [4.0, 0.0, 1.0, 0.5];
    let wanted_second: [f64; 4] = [3.0, 4.0, 0.5, 3.5];
    let options = ForecastOptions {
        horizon: 2,
        intervals: Intervals::levels(vec![50.0, 80.0]).unwrap(),
        conformal_windows: Some(4),
        ..ForecastOptions::default()
    };
    let done = forecast(&Naive, &daily(values), &options).unwrap();
    assert_eq!(done.notes, [] as [&str; 0]);
    let rank = |mut errors: [f64; 4], level: f64| {
        errors.sort_by(f64::total_cmp);
        errors[(5.0 * level).ceil() as usize - 1]
    };
    for level in [50.0, 80.0] {
        let reach = [rank(wanted_first, level / 100.0), rank(wanted_second, level / 100.0)];
        let ends = |side: f64| reach.map(|reach| 12.0 + side * reach);
        assert_close(&numbers(&done.table, &format!("Model-lo-{level}")), &ends(-1.0), 1e-6);
        assert_close(&numbers(&done.table, &format!("Model-hi-{level}")), &ends(1.0), 1e-6);
    }
    let few = ForecastOptions { conformal_windows: Some(3), ..options };
    let done = forecast(&Naive, &daily(A.to_vec()), &few).unwrap();
    assert!(done.notes[0].contains("needs 4 rolling forecasts, there are 3"), "{:?}", done.notes);
}

#[test]
fn conformal_intervals_have_the_coverage_of_their_level() {
    // Cross-validation of calibrated intervals on noise about a flat line: 40 series, 5 windows of 4 steps.
    struct Zero;
    impl Forecaster for Zero {
        fn forecast(
            &self,
            series: &[History],
            options: &ForecastConfig,
        ) -> fauna_shared::Result<Vec<Forecast>> {
            let flat = || vec![0.0; options.horizon];
            let one =
                |_| Forecast { mean: flat(), quantiles: options.quantiles.iter().map(|_| flat()).collect() };
            Ok(series.iter().map(one).collect())
        }
    }
    let names: Vec<String> = (0..40).map(|i| format!("s{i}")).collect();
    let series = names.iter().enumerate().map(|(i, name)| (name.as_str(), noise(i as u64, 120)));
    let table = Table::regular("D".parse().unwrap(), "2024-01-01", series).unwrap();
    let options = ForecastOptions {
        horizon: 4,
        windows: 5,
        conformal_windows: Some(19),
        intervals: Intervals::levels(vec![50.0, 80.0, 95.0]).unwrap(),
        ..ForecastOptions::default()
    };
    let done = cross_validate(&Zero, &table, &options).unwrap();
    assert!(done.errors.is_empty(), "{:?}", done.errors);
    for level in [50.0, 80.0, 95.0] {
        let (mut inside, mut all) = (0.0, 0.0);
        for part in &done.table.series {
            let of = |name: &str| part.columns[done.table.column(name).unwrap()].numbers().unwrap();
            let ends = of(&format!("Model-lo-{level}")).into_iter().zip(of(&format!("Model-hi-{level}")));
            for (value, (low, high)) in of("y").into_iter().zip(ends) {
                inside += f64::from(u8::from(low <= value && value <= high));
                all += 1.0;
            }
        }
        // 800 values; the widest deviation of a share of 800 independent ones is 1.8 in a hundred, and windows overlap
        // in what they are calibrated on.
        assert!((inside / all * 100.0 - level).abs() < 5.0, "{level}: {inside} of {all}");
    }
}

#[test]
fn spikes_are_anomalies_and_noise_is_not() {
    let mut values = noise(7, 300);
    (values[100], values[222]) = (9.0, -8.0);
    values[50] = f64::NAN;
    let flat = Told;
    let done = detect_anomalies(
        &flat,
        &daily(values),
        &ForecastOptions { horizon: 1, ..ForecastOptions::default() },
    )
    .unwrap();
    assert_eq!(done.table.column_names, ["ds", "y", "Model", "Model-lo-99", "Model-hi-99", "anomaly"]);
    let part = &done.table.series[0];
    // Two seasons of a week are only learnt from.
    assert_eq!(part.rows(), 286);
    let Column::Boolean(flags) = &part.columns[5] else { panic!("no flags") };
    assert!(flags[100 - 14] && flags[222 - 14] && !flags[50 - 14]);
    assert!(flags.iter().filter(|flag| **flag).count() <= 10, "about one in a hundred");
    let bare = ForecastOptions {
        horizon: 1,
        intervals: Intervals::quantiles(vec![0.1]).unwrap(),
        ..ForecastOptions::default()
    };
    assert!(detect_anomalies(&Naive, &daily(vec![1.0; 50]), &bare).is_err());
    let short = detect_anomalies(
        &Naive,
        &daily(vec![1.0; 20]),
        &ForecastOptions { horizon: 7, ..ForecastOptions::default() },
    )
    .unwrap();
    let error = short.errors[0].error.to_string();
    assert!(
        error.contains("series `a` has 20 steps; two seasons (14 steps) and a horizon of 7 need 21"),
        "{error}"
    );
}

#[test]
fn a_constant_series_is_forecast_and_its_mase_is_undefined() {
    let options = ForecastOptions {
        horizon: 2,
        intervals: Intervals::levels(vec![90.0]).unwrap(),
        ..ForecastOptions::default()
    };
    let table = daily(vec![4.0; 40]);
    let result = forecast(&SeasonalNaive { season_length: 7 }, &table, &options).unwrap().table;
    assert_eq!(csv(&result).lines().nth(1).unwrap(), "a,2024-02-10,4,4,4");
    let done = cross_validate(&Naive, &table, &options).unwrap();
    assert!(done.metrics[0].mase.is_nan() && done.metrics[0].mae == 0.0 && done.metrics[0].crps == 0.0);
    assert!(done.notes[0].starts_with("MASE is undefined"), "{:?}", done.notes);
    let found =
        detect_anomalies(&Naive, &table, &ForecastOptions { horizon: 1, ..ForecastOptions::default() })
            .unwrap();
    let Column::Boolean(flags) = &found.table.series[0].columns[5] else { panic!("no flags") };
    assert!(flags.iter().all(|flag| !flag));
}

#[test]
fn a_series_with_an_error_does_not_stop_the_others() {
    let series =
        [("gaps", vec![f64::NAN; 5]), ("cold", vec![-1.0; 5]), ("fine", vec![1.0, 2.0, 3.0, 4.0, 5.0])];
    let table = Table::regular("D".parse().unwrap(), "2024-01-01", series).unwrap();
    let done =
        forecast(&Picky, &table, &ForecastOptions { horizon: 1, ..ForecastOptions::default() }).unwrap();
    assert_eq!(csv(&done.table), "unique_id,ds,Model\nfine,2024-01-06,5\n");
    let errors: Vec<String> = done.errors.iter().map(|problem| problem.error.message().to_string()).collect();
    assert_eq!(
        errors,
        ["series `gaps` has no value: all 5 steps are gaps", "series `cold`: series 0 is too cold"]
    );
    // The same in cross-validation, where the series must be long enough besides.
    let done = cross_validate(
        &Picky,
        &table,
        &ForecastOptions { horizon: 1, windows: 2, ..ForecastOptions::default() },
    )
    .unwrap();
    assert_eq!((done.table.series.len(), done.errors.len()), (1, 2));
    let done = cross_validate(
        &Picky,
        &table,
        &ForecastOptions { horizon: 2, windows: 2, ..ForecastOptions::default() },
    )
    .unwrap();
    let error = done.errors.last().unwrap().error.to_string();
    assert!(
        error.contains("series `fine` has 5 steps; 2 rolling forecasts of 2 steps, 2 apart, need 6"),
        "{error}"
    );
}

#[test]
fn options_out_of_range_are_named() {
    let table = daily(A.to_vec());
    let said =
        |options: ForecastOptions| forecast(&Naive, &table, &options).unwrap_err().message().to_string();
    assert!(
        said(ForecastOptions { horizon: 0, ..ForecastOptions::default() })
            .contains("the horizon must be 1 to")
    );
    assert!(
        said(ForecastOptions { conformal_windows: Some(0), ..ForecastOptions::default() })
            .contains("conformal windows")
    );
    assert!(said(ForecastOptions { samples: Some(0), ..ForecastOptions::default() }).contains("samples"));
    assert!(
        said(ForecastOptions { step_size: Some(0), ..ForecastOptions::default() }).contains("the step size")
    );
    assert!(
        said(ForecastOptions { past_covariates: vec!["price".into()], ..ForecastOptions::default() })
            .contains("no covariate is called `price`")
    );
    assert!(
        said(ForecastOptions { frequency: Some(Frequency::INTEGER), ..ForecastOptions::default() })
            .contains("not one of dates")
    );
    assert!(Intervals::levels(vec![100.0]).is_err() && Intervals::quantiles(vec![1.0]).is_err());
    assert!(Intervals::levels(vec![f64::NAN]).is_err());
    let irregular = super::table("ds,y\n2024-01-01,1\n2024-01-03,1\n2024-01-10,1\n");
    let error = forecast(&Naive, &irregular, &ForecastOptions::default()).unwrap_err().to_string();
    assert!(
        error.contains("cannot be inferred")
            && error.contains("2024-01-10")
            && error.contains("ForecastOptions::frequency"),
        "{error}"
    );
}

const PRICED: &str =
    "unique_id,ds,y,price\na,1,1,10\na,2,2,20\na,3,3,30\na,4,4,40\nb,1,1,1\nb,2,2,2\nb,3,3,3\nb,4,4,4\n";

fn future(text: &str) -> Table {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("future.csv");
    std::fs::write(&path, text).unwrap();
    Table::read_future(path, &Columns::default()).unwrap()
}

#[test]
fn future_covariates_cover_every_series_and_step() {
    let table = table(PRICED);
    let good = future("unique_id,ds,price\nb,5,5\nb,6,6\na,5,50\na,6,60\n");
    let options = |future| ForecastOptions {
        horizon: 2,
        future_covariates: Some(future),
        ..ForecastOptions::default()
    };
    let done = forecast(&Told, &table, &options(&good)).unwrap();
    assert_eq!(csv(&done.table), "unique_id,ds,Model\na,5,50\na,6,60\nb,5,5\nb,6,6\n");
    // Without future covariates none are read, and a model that reads no covariates has a note.
    let done =
        forecast(&Told, &table, &ForecastOptions { horizon: 1, ..ForecastOptions::default() }).unwrap();
    assert_eq!(numbers(&done.table, "Model"), [-1.0]);
    let done = forecast(&Naive, &table, &options(&good)).unwrap();
    assert_eq!(done.notes, ["Model reads no covariates; left out: price"]);

    let bad = future("unique_id,ds,price,new\na,5,50,1\na,7,60,1\nc,5,5,1\n");
    let done = forecast(&Told, &table, &options(&bad)).unwrap();
    let errors: Vec<String> = done.errors.iter().map(|problem| problem.error.message().to_string()).collect();
    assert_eq!(
        errors,
        [
            "the future covariates of series `a` lack 1 of 2 steps, the first of them 6",
            "series `b` is not in the table of future covariates"
        ]
    );
    assert!(
        done.notes
            .iter()
            .any(|note| note.contains("future covariates without past values are left out: new")),
        "{:?}",
        done.notes
    );
    assert!(done.notes.iter().any(|note| note.ends_with("not in the table: c")), "{:?}", done.notes);
    let long = future("unique_id,ds,price\na,5,50\na,6,60\na,7,70\n");
    let error = forecast(&Told, &table, &options(&long)).unwrap().errors.remove(0).error.to_string();
    assert!(
        error.contains("have 7, which is not one of the 2 steps to forecast") && error.contains("5 to 6"),
        "{error}"
    );
}

#[test]
fn rolling_forecasts_read_future_covariates_except_past_ones() {
    let options = ForecastOptions { horizon: 1, windows: 2, ..ForecastOptions::default() };
    let done = cross_validate(&Told, &table(PRICED), &options).unwrap();
    assert_eq!(numbers(&done.table, "Model"), [30.0, 40.0]);
    let options = ForecastOptions { past_covariates: vec!["price".into()], ..options };
    let done = cross_validate(&Told, &table(PRICED), &options).unwrap();
    assert_eq!(numbers(&done.table, "Model"), [-1.0, -1.0]);
}

#[test]
fn an_error_of_the_model_stops_the_forecast() {
    struct Stop;
    impl fauna_shared::progress::Progress for Stop {
        fn begin(
            &self,
            _: &str,
            _: fauna_shared::progress::Unit,
            _: Option<u64>,
        ) -> Box<dyn fauna_shared::progress::Task> {
            Box::new(fauna_shared::progress::Silent)
        }
        fn cancelled(&self) -> bool {
            true
        }
    }
    let error = forecast(&Naive, &two(), &ForecastOptions { progress: &Stop, ..ForecastOptions::default() })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

#[test]
fn results_are_written_as_json() {
    let options = ForecastOptions {
        horizon: 1,
        intervals: Intervals::quantiles(vec![0.1]).unwrap(),
        ..ForecastOptions::default()
    };
    let done = forecast(&Naive, &table("ds,y\n1,0.1\n2,0.3\n3,0.2\n"), &options).unwrap();
    let mut lines = Vec::new();
    done.table.write_json(&mut lines).unwrap();
    let line = String::from_utf8(lines).unwrap();
    assert!(line.starts_with("{\"ds\":4,\"Model\":0.2,\"Model-q-10\":-0.002"), "{line}");
    let frequency = Some("D".parse().unwrap());
    let single = forecast(&Naive, &daily(vec![1.0]), &ForecastOptions { frequency, ..options }).unwrap();
    let mut lines = Vec::new();
    single.table.write_json(&mut lines).unwrap();
    let line = String::from_utf8(lines).unwrap();
    assert_eq!(line, "{\"unique_id\":\"a\",\"ds\":\"2024-01-02\",\"Model\":1.0,\"Model-q-10\":null}\n");
}
