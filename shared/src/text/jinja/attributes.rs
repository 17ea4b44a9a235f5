//! Attributes, items and slices of values, and the names of the methods that each type has.

use std::rc::Rc;

use super::state::{Renderer, too_deep};
use super::value::{Object, Value};
use super::{DEPTH, Fault, Res};

const STR: [&str; 45] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
    "__len__",
];
const LIST: [&str; 3] = ["copy", "count", "index"];
const DICT: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
/// Mutating methods, which the immutable sandbox forbids.
pub(super) const CHANGES: [&str; 11] = [
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
];

/// Whether `value` has the method `name`.
pub(super) fn has(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(_) => STR.contains(&name) && !name.starts_with('_'),
        Value::List(_) => LIST.contains(&name) || CHANGES.contains(&name),
        Value::Tuple(_) => matches!(name, "count" | "index"),
        Value::Dict(_) => DICT.contains(&name) || CHANGES.contains(&name),
        Value::Int(_) => matches!(name, "bit_length"),
        Value::Float(_) => matches!(name, "is_integer"),
        Value::Object(object) => match &**object {
            Object::Loop(_) => matches!(name, "cycle" | "changed"),
            Object::Cycler(..) => matches!(name, "next" | "reset"),
            Object::Function(function) => &**function == "dict" && name == "fromkeys",
            _ => false,
        },
        _ => false,
    }
}

impl Renderer {
    /// `value.name`
    pub(super) fn attribute(&mut self, value: &Value, name: &str) -> Res<Value> {
        if let Value::Undefined(what) = value {
            return Err(Fault::failed(format!("'{what}' is undefined")));
        }
        if let Some(value) = self.own_attribute(value, name)? {
            return Ok(value);
        }
        if let Value::Dict(entries) = value {
            self.charge(1 + entries.items.len() as u64 / 16)?;
            let found =
                entries.items.iter().find(|(key, _)| matches!(key, Value::Str(key) if **key == *name));
            if let Some((_, value)) = found {
                return Ok(value.clone());
            }
        }
        Ok(Value::Undefined(format!("{} object has no attribute '{name}'", value.kind()).into()))
    }

    /// The method or built-in attribute `name` of a value.
    fn own_attribute(&mut self, value: &Value, name: &str) -> Res<Option<Value>> {
        if has(value, name) {
            if value.depth() >= DEPTH {
                return Err(too_deep());
            }
            return Ok(Some(Value::Object(Rc::new(Object::Method(value.clone(), name.into())))));
        }
        let Value::Object(object) = value else { return Ok(None) };
        Ok(match &**object {
            Object::Namespace(attributes) => {
                let attributes = attributes.borrow();
                self.charge(1 + attributes.len() as u64 / 16)?;
                attributes.iter().find(|(known, _)| **known == *name).map(|(_, value)| value.clone())
            }
            Object::Loop(state) => {
                let (i, count) = (state.index.get(), state.items.items.len());
                let at = |i: Option<usize>| match i.and_then(|i| state.items.items.get(i)) {
                    Some(value) => value.clone(),
                    None => Value::Undefined("no such item".into()),
                };
                Some(match name {
                    "index" => Value::Int(i as i64 + 1),
                    "index0" => Value::Int(i as i64),
                    "revindex" => Value::Int((count - i) as i64),
                    "revindex0" => Value::Int((count - i) as i64 - 1),
                    "first" => Value::Bool(i == 0),
                    "last" => Value::Bool(i + 1 == count),
                    "length" => Value::Int(count as i64),
                    "depth" => Value::Int(state.level as i64 + 1),
                    "depth0" => Value::Int(state.level as i64),
                    "previtem" => at(i.checked_sub(1)),
                    "nextitem" => at(i.checked_add(1)),
                    _ => return Ok(None),
                })
            }
            Object::Macro { body, .. } if name == "name" => Some(Value::str(&body.name)),
            Object::Cycler(items, at) if name == "current" => items.items.get(at.get()).cloned(),
            _ => None,
        })
    }

    /// `value[index]`
    pub(super) fn item(&mut self, value: &Value, index: &Value) -> Res<Value> {
        let missing = || Value::Undefined(format!("{} object has no such element", value.kind()).into());
        match value {
            Value::Undefined(what) => return Err(Fault::failed(format!("'{what}' is undefined"))),
            Value::Dict(entries) => {
                for (key, value) in &entries.items {
                    if self.equal(key, index)? {
                        return Ok(value.clone());
                    }
                }
            }
            Value::List(items) | Value::Tuple(items) => {
                if let Some(index) = index.int() {
                    let at = if index < 0 { index + items.items.len() as i64 } else { index };
                    let found = usize::try_from(at).ok().and_then(|at| items.items.get(at));
                    return Ok(found.cloned().unwrap_or_else(missing));
                }
            }
            Value::Str(text) => {
                if let Some(index) = index.int() {
                    self.charge_text(text.len())?;
                    let at = if index < 0 { index + text.chars().count() as i64 } else { index };
                    let found = usize::try_from(at).ok().and_then(|at| text.chars().nth(at));
                    return Ok(found.map_or_else(missing, |c| Value::str(c.encode_utf8(&mut [0; 4]))));
                }
            }
            _ => {}
        }
        match index {
            Value::Str(name) => Ok(self.own_attribute(value, name)?.unwrap_or_else(missing)),
            _ => Ok(missing()),
        }
    }

    pub(super) fn slice(&mut self, value: &Value, bounds: [Option<i64>; 3]) -> Res<Value> {
        let step = bounds[2].unwrap_or(1);
        if step == 0 {
            return Err(Fault::failed("slice step cannot be zero"));
        }
        let indices = |length: usize| {
            let length = length as i64;
            let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
            let clamp = |bound: Option<i64>, default: i64| match bound {
                None => default,
                Some(bound) if bound < 0 => bound.saturating_add(length).clamp(low, high),
                Some(bound) => bound.clamp(low, high),
            };
            let (from, to) = match step > 0 {
                true => (clamp(bounds[0], low), clamp(bounds[1], high)),
                false => (clamp(bounds[0], high), clamp(bounds[1], low)),
            };
            let mut at = from;
            std::iter::from_fn(move || {
                let inside = if step > 0 { at < to } else { at > to };
                let index = inside.then_some(at as usize);
                at = at.saturating_add(step);
                index
            })
        };
        match value {
            Value::List(items) | Value::Tuple(items) => {
                let chosen: Vec<Value> = indices(items.items.len()).map(|i| items.items[i].clone()).collect();
                match value {
                    Value::List(_) => self.list(chosen),
                    _ => self.tuple(chosen),
                }
            }
            Value::Str(text) => {
                self.charge_times(text.len(), 3)?;
                let chosen: String = if text.is_ascii() && step == 1 {
                    let mut all = indices(text.len());
                    let from = all.next();
                    let count = all.count() + usize::from(from.is_some());
                    from.map_or("", |from| &text[from..from + count]).to_string()
                } else {
                    self.charge_times(text.len(), 8)?;
                    let chars: Vec<char> = text.chars().collect();
                    indices(chars.len()).map(|i| chars[i]).collect()
                };
                self.text(chosen)
            }
            Value::Undefined(what) => Err(Fault::failed(format!("'{what}' is undefined"))),
            other => Err(Fault::failed(format!("'{}' object is not subscriptable", other.kind()))),
        }
    }
}
