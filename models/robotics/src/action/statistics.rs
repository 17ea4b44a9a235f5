//! The statistics of a data set's actions, which bring what a model says to the robot's units.

use std::collections::{BTreeMap, HashSet};

use fauna_shared::error::{first_five, nearest};
use fauna_shared::model::DegreeOfFreedom;
use fauna_shared::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::Value;

use super::DEGREES;

/// The actions of one data set: the quantiles that became -1 and 1, and which numbers were normalised at all.
///
/// ```
/// use fauna_robotics::action::Statistics;
/// let set = Statistics::new(vec![-0.02, 0.0], vec![0.04, 1.0], Some(vec![true, false]))?;
/// // Half way between the quantiles in metres, and the gripper as it is.
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

/// The keys of `action` that are read.
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
    /// From the first and the last percentile of each number; `mask`: which of them are normalised, all if not said.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) for lists of different lengths, or of none, and for a percentile that is not finite.
    pub fn new(q01: Vec<f64>, q99: Vec<f64>, mask: Option<Vec<bool>>) -> Result<Self> {
        let mask = mask.unwrap_or_else(|| vec![true; q01.len()]);
        let (low, high) = (q01.len(), q99.len());
        if let Some(odd) = q01.iter().chain(&q99).find(|value| !value.is_finite()) {
            return Err(Error::new(
                ErrorKind::Format,
                format!("q01 and q99 hold {odd}: finite numbers wanted"),
            ));
        }
        match low > 0 && low == high && low == mask.len() {
            true => Ok(Self { degrees: degrees(low), q01, q99, mask }),
            false => Err(Error::new(
                ErrorKind::Format,
                format!("q01 has {low} numbers, q99 {high} and mask {}: as many in each wanted", mask.len()),
            )),
        }
    }

    /// The same, its numbers called `names`.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) for more or fewer names than numbers, or a name that stands there twice.
    pub fn named(mut self, names: Vec<String>) -> Result<Self> {
        let bad = |message: String| Err(Error::new(ErrorKind::Format, message));
        if names.len() != self.dim() {
            return bad(format!("{} names for {} numbers of an action", names.len(), self.dim()));
        }
        let mut seen = HashSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
            return bad(format!("two numbers of an action are called {twice:.80}"));
        }
        for (i, name) in names.into_iter().enumerate() {
            if self.degrees[i].name != name {
                self.degrees[i] = DegreeOfFreedom { name: name.into(), unit: None };
            }
        }
        Ok(self)
    }

    /// Numbers in an action.
    pub fn dim(&self) -> usize {
        self.q01.len()
    }

    /// What each number is: as the statistics name them, else those of a gripper where there are seven, else `a0`, `a1`
    /// and so on.
    pub fn degrees(&self) -> &[DegreeOfFreedom] {
        &self.degrees
    }

    /// The first percentile of each number.
    pub fn q01(&self) -> &[f64] {
        &self.q01
    }

    /// The last percentile of each number.
    pub fn q99(&self) -> &[f64] {
        &self.q99
    }

    /// Which numbers are normalised.
    pub fn mask(&self) -> &[bool] {
        &self.mask
    }

    /// An action of -1 to 1 in the units of the data set; what the mask leaves out stays as it is.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) for another number of numbers.
    pub fn unnormalize(&self, normalized: &[f64]) -> Result<Vec<f64>> {
        self.check(normalized.len())?;
        let scaled = |i: usize| match self.mask[i] {
            true => 0.5 * (normalized[i] + 1.0) * (self.q99[i] - self.q01[i]) + self.q01[i],
            false => normalized[i],
        };
        Ok((0..self.dim()).map(scaled).collect())
    }

    /// An action in the units of the data set as -1 to 1, as models are trained on it: cut to that range, and zero where
    /// both percentiles are the same.
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
            false => {
                Err(Error::input(format!("an action of {found} numbers, the data set's have {}", self.dim())))
            }
        }
    }
}

/// What the numbers of an action of `dim` mean where nothing names them.
fn degrees(dim: usize) -> Vec<DegreeOfFreedom> {
    match dim == DEGREES.len() {
        true => DEGREES.to_vec(),
        false => (0..dim).map(|i| DegreeOfFreedom { name: format!("a{i}").into(), unit: None }).collect(),
    }
}

/// The statistics of every data set that a model was trained on, by the data set's key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StatisticsTable(BTreeMap<String, Statistics>);

impl StatisticsTable {
    /// From `norm_stats` of a config or the whole of `dataset_statistics.json`: an object with an `action` for each data
    /// set. Nothing if it is null.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) that names the data set whose statistics cannot be read.
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
                return Err(bad("the statistics of actions are no object".into())
                    .hint("wanted {\"DATA SET\": {\"action\": {\"q01\": […], \"q99\": […]}}}"));
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

    /// The most numbers that an action of any data set has; none where there are no statistics.
    pub fn most_numbers(&self) -> Option<usize> {
        self.0.values().map(Statistics::dim).max()
    }

    /// Takes in those of `other`, which win over those of the same key.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The keys, sorted.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The statistics of `key`, or the only ones there are, with their key.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if there are several and no key, or none of that key; the message lists the keys.
    pub fn get(&self, key: Option<&str>) -> Result<(&str, &Statistics)> {
        let listed = |error: Error| match self.0.len() {
            0..=40 => error.hint(format!("known: {}", self.keys().collect::<Vec<_>>().join(", "))),
            _ => error.hint(format!("known\n{}", first_five(self.keys()))),
        };
        if self.0.is_empty() {
            return Err(Error::input("there are no statistics of actions, so none has a unit")
                .hint("put the dataset_statistics.json of the data set beside the weights"));
        }
        let Some(key) = key else {
            let mut sets = self.0.iter();
            return match (sets.next(), sets.next()) {
                (Some((key, only)), None) => Ok((key, only)),
                _ => Err(listed(Error::input(format!(
                    "unnorm_key is needed: the model was trained on {} data sets",
                    self.0.len()
                )))),
            };
        };
        match self.0.get_key_value(key) {
            Some((key, found)) => Ok((key, found)),
            None => {
                let error = Error::input(format!("no statistics of actions for unnorm_key \"{key:.80}\""));
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
        assert!(error.contains("2 data sets") && error.contains("known: bridge_orig, kuka"), "{error}");
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
