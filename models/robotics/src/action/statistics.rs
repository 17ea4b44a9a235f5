//! Action statistics of datasets, which un-normalize actions to the units of the robot.

use std::collections::{BTreeMap, HashSet};

use fauna_shared::error::{first_five, nearest};
use fauna_shared::model::DegreeOfFreedom;
use fauna_shared::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::Value;

/// Action statistics of a dataset: the quantiles that are normalized to -1 and 1, and which dimensions are normalized.
///
/// ```
/// use fauna_robotics::action::Statistics;
/// let set = Statistics::new(vec![-0.02, 0.0], vec![0.04, 1.0], Some(vec![true, false]))?;
/// // The first dimension is un-normalized to metres, the gripper is unchanged.
/// let action = set.unnormalize(&[0.0, 0.9])?;
/// assert!((action[0] - 0.01).abs() < 1e-12 && action[1] == 0.9);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    q01: Vec<f64>,
    q99: Vec<f64>,
    mask: Vec<bool>,
    degrees: Vec<DegreeOfFreedom>,
}

/// The keys of `action` that are used.
#[derive(Deserialize)]
struct Stored {
    q01: Vec<f64>,
    q99: Vec<f64>,
    #[serde(default)]
    mask: Option<Vec<bool>>,
    #[serde(default)]
    names: Option<Vec<String>>,
}

impl Statistics {
    /// Creates statistics from the 1st and 99th percentile of each dimension; `mask`: which are normalized (default: all).
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) for empty lists or lists of different lengths, and for a percentile that is not finite.
    pub fn new(q01: Vec<f64>, q99: Vec<f64>, mask: Option<Vec<bool>>) -> Result<Self> {
        let mask = mask.unwrap_or_else(|| vec![true; q01.len()]);
        let (low, high) = (q01.len(), q99.len());
        if let Some(odd) = q01.iter().chain(&q99).find(|value| !value.is_finite()) {
            return Err(Error::new(
                ErrorKind::Format,
                format!("q01 and q99 contain {odd}, expected finite numbers"),
            ));
        }
        match low > 0 && low == high && low == mask.len() {
            true => Ok(Self { degrees: degrees(low), q01, q99, mask }),
            false => Err(Error::new(
                ErrorKind::Format,
                format!("q01 has {low} numbers, q99 {high} and mask {}: expected equal lengths", mask.len()),
            )),
        }
    }

    /// Sets the names of the dimensions.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) if the number of names differs from that of the dimensions, or a name is repeated.
    pub fn named(mut self, names: Vec<String>) -> Result<Self> {
        let bad = |message: String| Err(Error::new(ErrorKind::Format, message));
        if names.len() != self.dim() {
            return bad(format!("{} names for {} numbers of an action", names.len(), self.dim()));
        }
        let mut seen = HashSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
            return bad(format!("the name {twice:.80} is repeated"));
        }
        for (i, name) in names.into_iter().enumerate() {
            if self.degrees[i].name != name {
                self.degrees[i] = DegreeOfFreedom { name: name.into(), unit: None };
            }
        }
        Ok(self)
    }

    /// Returns the number of dimensions of an action.
    pub fn dim(&self) -> usize {
        self.q01.len()
    }

    /// Returns the degrees of freedom: those named in the statistics, else those of a gripper if there are seven, else `a0`,
    /// `a1`, ….
    pub fn degrees(&self) -> &[DegreeOfFreedom] {
        &self.degrees
    }

    /// Returns the 1st percentile of each dimension.
    pub fn q01(&self) -> &[f64] {
        &self.q01
    }

    /// Returns the 99th percentile of each dimension.
    pub fn q99(&self) -> &[f64] {
        &self.q99
    }

    /// Returns which dimensions are normalized.
    pub fn mask(&self) -> &[bool] {
        &self.mask
    }

    /// Un-normalizes an action from -1 to 1 to the units of the dataset; masked-out dimensions are unchanged.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) for another number of dimensions.
    pub fn unnormalize(&self, normalized: &[f64]) -> Result<Vec<f64>> {
        self.check(normalized.len())?;
        let scaled = |i: usize| match self.mask[i] {
            true => 0.5 * (normalized[i] + 1.0) * (self.q99[i] - self.q01[i]) + self.q01[i],
            false => normalized[i],
        };
        Ok((0..self.dim()).map(scaled).collect())
    }

    /// Normalizes an action in the units of the dataset to -1 to 1, as for training: clipped to that range, and zero if both
    /// percentiles are equal.
    ///
    /// # Errors
    /// As [`unnormalize`](Statistics::unnormalize).
    pub fn normalize(&self, action: &[f64]) -> Result<Vec<f64>> {
        self.check(action.len())?;
        let scaled = |i: usize| match (self.mask[i], self.q99[i] - self.q01[i]) {
            (false, _) => action[i],
            (true, 0.0) => 0.0,
            (true, range) => (2.0 * (action[i] - self.q01[i]) / range - 1.0).clamp(-1.0, 1.0),
        };
        Ok((0..self.dim()).map(scaled).collect())
    }

    fn check(&self, found: usize) -> Result<()> {
        match found == self.dim() {
            true => Ok(()),
            false => Err(Error::input(format!(
                "the action has {found} dimensions, expected {} as in the dataset",
                self.dim()
            ))),
        }
    }
}

/// Returns the default degrees of freedom of an action of `dim` dimensions.
fn degrees(dim: usize) -> Vec<DegreeOfFreedom> {
    match dim == DegreeOfFreedom::END_EFFECTOR.len() {
        true => DegreeOfFreedom::END_EFFECTOR.to_vec(),
        false => (0..dim).map(|i| DegreeOfFreedom { name: format!("a{i}").into(), unit: None }).collect(),
    }
}

/// Action statistics of all training datasets of a model, by the key of the dataset.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StatisticsTable(BTreeMap<String, Statistics>);

impl StatisticsTable {
    /// Parses `norm_stats` of a config or the contents of `dataset_statistics.json`: an object with an `action` for each
    /// dataset. Empty if it is null.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) for invalid statistics, with the name of the dataset.
    ///
    /// ```
    /// use fauna_robotics::action::StatisticsTable;
    /// let table = StatisticsTable::from_json(&serde_json::json!({
    ///     "bridge_orig": {"action": {"q01": [-0.1, 0.0], "q99": [0.1, 1.0], "mask": [true, false]}}
    /// }))?;
    /// assert_eq!(table.get(None)?.1.dim(), 2);
    /// assert!(table.get(Some("bridge")).unwrap_err().to_string().contains("bridge_orig"));
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    pub fn from_json(value: &Value) -> Result<Self> {
        let bad = |message: String| Error::new(ErrorKind::Format, message);
        let sets = match value {
            Value::Null => return Ok(Self::default()),
            Value::Object(sets) => sets,
            _ => {
                return Err(bad("the action statistics are not an object".into())
                    .hint("expected {\"DATASET\": {\"action\": {\"q01\": […], \"q99\": […]}}}"));
            }
        };
        let read = |(key, set): (&String, &Value)| {
            let stored = Stored::deserialize(&set["action"])
                .map_err(|error| bad(format!("the action statistics of {key:.80}: {error}")))?;
            let statistics = Statistics::new(stored.q01, stored.q99, stored.mask)
                .and_then(|statistics| match stored.names {
                    Some(names) => statistics.named(names),
                    None => Ok(statistics),
                })
                .map_err(|error| error.context(format!("the action statistics of {key:.80}")))?;
            Ok((key.clone(), statistics))
        };
        sets.iter().map(read).collect::<Result<_>>().map(Self)
    }

    /// Returns the maximum number of dimensions over the datasets; `None` if there are no statistics.
    pub fn most_numbers(&self) -> Option<usize> {
        self.0.values().map(Statistics::dim).max()
    }

    /// Adds the statistics of `other`, which replace those of the same key.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Returns the sorted keys.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Returns the statistics of `key`, or the only ones, with their key.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if there are several and no key is given, or the key is unknown; the message lists the keys.
    pub fn get(&self, key: Option<&str>) -> Result<(&str, &Statistics)> {
        let listed = |error: Error| match self.0.len() {
            0..=40 => error.hint(format!("known: {}", self.keys().collect::<Vec<_>>().join(", "))),
            _ => error.hint(format!("known\n{}", first_five(self.keys()))),
        };
        if self.0.is_empty() {
            return Err(Error::input(
                "the model has no action statistics, which are needed to un-normalize actions",
            )
            .hint("put the dataset_statistics.json of the dataset into the folder of the weights"));
        }
        let Some(key) = key else {
            let mut sets = self.0.iter();
            return match (sets.next(), sets.next()) {
                (Some((key, only)), None) => Ok((key, only)),
                _ => Err(listed(Error::input(format!(
                    "unnorm_key is required: the model was trained on {} datasets",
                    self.0.len()
                )))),
            };
        };
        match self.0.get_key_value(key) {
            Some((key, found)) => Ok((key, found)),
            None => {
                let error = Error::input(format!("no action statistics for unnorm_key \"{key:.80}\""));
                let error = match nearest(key, self.keys()).first() {
                    Some(near) => error.hint(format!("nearest: {near}")),
                    None => error,
                };
                Err(listed(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table() -> StatisticsTable {
        let set = |q99: f64| json!({"action": {"q01": [-1.0, 0.0], "q99": [q99, 1.0]}, "num_transitions": 3});
        StatisticsTable::from_json(&json!({"kuka": set(1.0), "bridge_orig": set(3.0)})).unwrap()
    }

    #[test]
    fn a_key_is_needed_where_there_are_several_and_the_error_lists_them() {
        let table = table();
        let error = table.get(None).unwrap_err().to_string();
        assert!(error.contains("2 datasets") && error.contains("known: bridge_orig, kuka"), "{error}");
        let error = table.get(Some("bridge_org")).unwrap_err().to_string();
        assert!(error.contains("nearest: bridge_orig") && error.contains("kuka"), "{error}");
        assert_eq!(table.get(Some("kuka")).unwrap().1.q99(), [1.0, 1.0]);
        assert!(StatisticsTable::default().get(None).is_err());
    }

    #[test]
    fn a_number_comes_back_from_minus_one_to_one() {
        let table = table();
        let set = table.get(Some("bridge_orig")).unwrap().1;
        let action = set.unnormalize(&[-0.5, 0.25]).unwrap();
        assert_eq!(action, [0.0, 0.625]);
        assert_eq!(set.normalize(&action).unwrap(), [-0.5, 0.25]);
        assert_eq!(set.normalize(&[9.0, -9.0]).unwrap(), [1.0, -1.0]);
        assert!(set.unnormalize(&[0.0; 3]).is_err());
        assert!(Statistics::new(vec![0.0], vec![f64::INFINITY], None).is_err());
        let flat = Statistics::new(vec![1.0], vec![1.0], None).unwrap();
        assert_eq!(flat.normalize(&[7.0]).unwrap(), [0.0]);
    }

    #[test]
    fn every_number_has_a_name_of_its_own() {
        let names = |dim: usize, names: Value| -> Vec<String> {
            let set = json!({"action": {"q01": vec![0.0; dim], "q99": vec![1.0; dim], "names": names}});
            let table = StatisticsTable::from_json(&json!({"arm": set})).unwrap();
            let degrees = table.get(None).unwrap().1.degrees().to_vec();
            degrees.into_iter().map(|degree| degree.name.into_owned()).collect()
        };
        assert_eq!(names(7, Value::Null), ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]);
        assert_eq!(names(3, Value::Null), ["a0", "a1", "a2"]);
        assert_eq!(names(2, json!(["shoulder", "elbow"])), ["shoulder", "elbow"]);
        let fourteen = names(14, Value::Null);
        assert_eq!((fourteen.len(), fourteen[13].as_str()), (14, "a13"));
    }

    #[test]
    fn statistics_that_cannot_be_read_are_named() {
        let bad = [
            json!([]),
            json!({"kuka": 3}),
            json!({"kuka": {"action": {"q01": [1.0]}}}),
            json!({"kuka": {"action": {"q01": [1.0], "q99": [1.0, 2.0]}}}),
            json!({"kuka": {"action": {"q01": [], "q99": []}}}),
            json!({"kuka": {"action": {"q01": [1.0], "q99": ["two"]}}}),
            json!({"kuka": {"action": {"q01": [1.0], "q99": [2.0], "mask": [true, false]}}}),
            json!({"kuka": {"action": {"q01": [1.0], "q99": [2.0], "names": ["grip", "turn"]}}}),
            json!({"kuka": {"action": {"q01": [1.0, 2.0], "q99": [2.0, 3.0], "names": ["grip", "grip"]}}}),
        ];
        for value in bad {
            let error = StatisticsTable::from_json(&value).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Format);
            assert!(value.is_array() || error.message().contains("kuka"), "{error}");
        }
        assert_eq!(StatisticsTable::from_json(&Value::Null).unwrap().keys().len(), 0);
    }
}
