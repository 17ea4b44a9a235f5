//! Labels: classes or numbers.

use std::collections::BTreeMap;

use fauna_shared::train::Target;
use fauna_shared::{Error, Result};
use serde_json::Value;

use crate::options::TargetKind;
use crate::table::kind_of;

/// What a label looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Word,
    Integer,
    Fraction,
    NotFinite,
    List,
}

/// The labels of a file.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    /// Line of the first label of each look.
    first: Vec<(Look, u64)>,
    /// Line of the first label of each class.
    classes: BTreeMap<String, u64>,
}

impl Labels {
    /// Adds the label of a line.
    pub fn add(&mut self, value: &Value, is_text: bool, line: u64) -> Result<()> {
        let look = look(value, is_text)?;
        if !self.first.iter().any(|(known, _)| *known == look) {
            self.first.push((look, line));
        }
        let mut add = |class: String| {
            self.classes.entry(class).or_insert(line);
        };
        match look {
            // Whose classes are numbers is unlikely, and decided by the caller.
            Look::List => class_list(value)?.into_iter().for_each(add),
            _ => add(class_of(value)),
        }
        Ok(())
    }

    fn line(&self, look: Look) -> Option<u64> {
        self.first.iter().find(|(known, _)| *known == look).map(|(_, line)| *line)
    }

    /// How the labels are read, as `given` or by their looks; or the line and error of one that cannot be.
    pub fn decide(&self, given: Option<TargetKind>, is_text: bool) -> Result<TargetKind, (u64, Error)> {
        let line = |look: Look| self.line(look);
        let numbers = line(Look::Fraction).or(line(Look::Integer));
        let words = line(Look::Word);
        if let (Some(list), Some(other)) = (line(Look::List), numbers.or(words).or(line(Look::NotFinite))) {
            let error = Error::input("a list of classes in one row, and a single label in another");
            return Err((list.max(other), error));
        }
        let kind = given.unwrap_or(match (line(Look::Fraction), words, line(Look::List)) {
            (Some(_), None, None) => TargetKind::Values,
            _ => TargetKind::Classes,
        });
        let wrong = |line: u64, message: &str| {
            Err((
                line,
                Error::input(message).set(
                    "say which they are",
                    "DatasetOptions::targets",
                    "Classes or Values",
                ),
            ))
        };
        match kind {
            TargetKind::Values => match (words.or(line(Look::List)), line(Look::NotFinite)) {
                (Some(line), _) => wrong(line, "expected a number"),
                (None, Some(line)) => Err((line, Error::input("the number is not finite"))),
                (None, None) => Ok(kind),
            },
            TargetKind::Classes => match (words, line(Look::Fraction), line(Look::NotFinite)) {
                (Some(word), Some(fraction), _) if given.is_none() && !is_text => wrong(
                    word.max(fraction),
                    "a fraction is the label of one row, and a word that of another",
                ),
                // Among words, "nan" is one.
                (None, _, Some(line)) => Err((line, Error::input("the label is not a finite number"))),
                _ => Ok(kind),
            },
        }
    }

    /// The classes, with the place of the first row of each.
    pub fn classes(self) -> BTreeMap<String, String> {
        self.classes.into_iter().map(|(class, line)| (class, format!("line {line}"))).collect()
    }
}

fn look(value: &Value, is_text: bool) -> Result<Look> {
    Ok(match value {
        Value::String(text) if is_text => match text.trim().parse::<f64>() {
            _ if text.trim().is_empty() => return Err(Error::input("the label is empty")),
            Ok(number) if !number.is_finite() => Look::NotFinite,
            Ok(_) if text.trim().parse::<i64>().is_ok() => Look::Integer,
            Ok(_) => Look::Fraction,
            Err(_) => Look::Word,
        },
        Value::String(text) if text.is_empty() => return Err(Error::input("the label is empty")),
        Value::String(_) | Value::Bool(_) => Look::Word,
        Value::Number(number) if number.is_f64() => Look::Fraction,
        Value::Number(_) => Look::Integer,
        Value::Array(_) => Look::List,
        other => return Err(Error::input(format!("a label cannot be {}", kind_of(other)))),
    })
}

fn class_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.trim().to_string(),
        other => other.to_string(),
    }
}

fn class_list(value: &Value) -> Result<Vec<String>> {
    let class = |value: &Value| match look(value, false)? {
        Look::Word | Look::Integer => Ok(class_of(value)),
        _ => Err(Error::input(format!("expected a list of classes, found {} in it", kind_of(value)))),
    };
    value.as_array().into_iter().flatten().map(class).collect()
}

/// The target of a label.
pub(crate) fn target(value: &Value, kind: TargetKind, is_text: bool) -> Result<Target> {
    let look = look(value, is_text)?;
    match (kind, look) {
        (TargetKind::Classes, Look::List) => class_list(value).map(Target::Classes),
        (TargetKind::Classes, _) => Ok(Target::Class(class_of(value))),
        (TargetKind::Values, _) => {
            let number = match value {
                Value::String(text) if is_text => text.trim().parse().ok(),
                value => value.as_f64(),
            };
            let number = number.filter(|number: &f64| number.is_finite());
            number.map(Target::Value).ok_or_else(|| Error::input("expected a finite number"))
        }
    }
}
