//! Cross-validates a forecasting model, then forecasts one year with conformal prediction intervals.
//!
//!     cargo run --release --example forecast -- amazon/chronos-bolt-small
//!
//! Without arguments it uses the seasonal naive forecast, which needs no weights:
//!
//!     cargo run --release --example forecast
//!     12 months ahead, three times        MAE   MASE   CRPS
//!       Model                            35.6   1.62  0.074
//!       Naive                            66.0   3.01  0.140
//!       SeasonalNaive                    35.6   1.62  0.074
//!     unique_id,ds,Model,Model-lo-80,Model-hi-80
//!     passengers,1961-01,318,290,346
//!     passengers,1961-02,312,277,347
//!     ...
//!     passengers,1961-12,382,346,418

use std::f64::consts::TAU;

use fauna::forecasting::{ForecastOptions, Intervals, SeasonalNaive, Table, cross_validate, forecast};
use fauna::model::Forecaster;

fn main() -> anyhow::Result<()> {
    let table = Table::regular("MS".parse()?, "1949-01", [("passengers", passengers())])?;
    let opened = std::env::args().nth(1).map(|source| fauna::open(&source)).transpose()?;
    let model: &dyn Forecaster = match &opened {
        Some(model) => model.forecaster()?,
        None => &SeasonalNaive { season_length: 12 },
    };
    let options = ForecastOptions { horizon: 12, windows: 3, ..ForecastOptions::default() };
    println!("{:32} {:>6} {:>6} {:>6}", "12 months ahead, three times", "MAE", "MASE", "CRPS");
    for one in cross_validate(model, &table, &options)?.metrics.iter().filter(|one| one.id.is_none()) {
        println!("  {:30} {:6.1} {:6.2} {:6.3}", one.model, one.mae, one.mase, one.crps);
    }

    let options =
        ForecastOptions { intervals: Intervals::levels(vec![80.0])?, conformal_windows: Some(5), ..options };
    let output = forecast(model, &table, &options)?;
    let mut file = Vec::new();
    output.table.write_csv(&mut file)?;
    print!("{}", String::from_utf8_lossy(&file));
    for failed in output.errors {
        eprintln!("{}", failed.error);
    }
    Ok(())
}

/// Returns twelve years of monthly data with a trend, multiplicative seasonality and some noise.
fn passengers() -> Vec<f64> {
    let month = |i: i32| {
        let years = f64::from(i) / 12.0;
        let season = 1.0 + 0.22 * (TAU * (years - 0.33)).sin() + 0.05 * (2.0 * TAU * years).cos();
        let wobble = 1.0 + 0.02 * (f64::from(i) * 2.7).sin();
        (120.0 * 1.11f64.powf(years) * season * wobble).round()
    };
    (0..144).map(month).collect()
}
