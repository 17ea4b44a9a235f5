//! Time series in long format.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fauna_forecasting::{Columns, Table};
use fauna_shared::model::History;
use fauna_shared::train::Example;
use fauna_shared::{Error, Result};

use crate::dataset::{Opened, Source};
use crate::options::DatasetOptions;
use crate::series_columns::{IDS, NAMES, TARGETS, TIMES, header};

struct SeriesSource(Vec<(String, History)>);

pub(crate) fn open(path: &Path, options: &DatasetOptions) -> Result<Opened> {
    options.check_columns("time series", &NAMES)?;
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let found = match extension.to_str() {
        #[cfg(feature = "parquet")]
        Some("parquet" | "pq") => crate::parquet::columns_of(path)?,
        #[cfg(not(feature = "parquet"))]
        Some("parquet" | "pq") => return Err(crate::dataset::without_feature("parquet", "Parquet")),
        _ => header(path)?,
    };
    let name = |role: &str, known: &[&str]| -> String {
        let there = || known.iter().find(|name| found.iter().any(|column| column == **name));
        match options.columns.get(role) {
            Some(given) => given.clone(),
            None => there().unwrap_or(&known[0]).to_string(),
        }
    };
    let columns =
        Columns { id: name("id", &IDS), time: name("time", &TIMES), target: name("target", &TARGETS) };
    let table = Table::read(path, &columns)?;
    if let Some(first) = table.errors.first() {
        let more = table.errors.len() - 1;
        let error = first.clone().error;
        return Err(if more > 0 { error.hint(format!("{more} more series cannot be used")) } else { error });
    }
    let unknown = options.without.iter().find(|name| !table.covariates.contains(name));
    if let Some(unknown) = unknown {
        return Err(Error::input(format!("no covariate is called `{unknown}`"))
            .hint(format!("the covariates: {}", table.covariates.join(", "))));
    }
    let mut series = table.histories(options.frequency).map_err(|e| e.at(path))?;
    for (_, history) in &mut series {
        history.covariates.retain(|covariate| !options.without.contains(&covariate.name));
    }
    let notes = table.notes.clone();
    let source = Arc::new(SeriesSource(series));
    Ok(Opened { source, what: "time series", classes: BTreeMap::new(), targets: None, notes })
}

impl Source for SeriesSource {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, index: usize) -> Result<Example> {
        let (id, history) = self.0[index].clone();
        Ok(Example::Series { id, history })
    }
}
