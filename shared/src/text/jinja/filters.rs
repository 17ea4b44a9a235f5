//! Jinja's filters and tests.

use std::rc::Rc;

use super::methods::{capitalized, titled};
use super::parser::Op;
use super::state::{CallArguments, Renderer};
use super::value::{Object, Value};
use super::{Fault, Res};

const FILTERS: [&str; 53] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
    "wordwrap",
    "xmlattr",
    "random",
];
const TESTS: [&str; 39] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

impl Renderer {
    pub(super) fn test(&mut self, name: &str, value: &Value, given: &CallArguments) -> Res<bool> {
        let other = || given.required(0, "other");
        let whole = || match value.int() {
            Some(value) => Ok(value),
            None => Err(Fault::failed(format!("test argument must be int, not {}", value.kind()))),
        };
        Ok(match name {
            "defined" => !value.is_undefined(),
            "undefined" => value.is_undefined(),
            "none" => matches!(value, Value::None),
            "boolean" => matches!(value, Value::Bool(_)),
            "true" => matches!(value, Value::Bool(true)),
            "false" => matches!(value, Value::Bool(false)),
            "integer" => matches!(value, Value::Int(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => value.number().is_some(),
            "string" => matches!(value, Value::Str(_)),
            "mapping" => matches!(value, Value::Dict(_)),
            "sequence" | "iterable" => matches!(
                value,
                Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Dict(_) | Value::Undefined(_)
            ),
            "callable" => match value {
                Value::Object(object) => !matches!(&**object, Object::Namespace(_) | Object::Cycler(..)),
                Value::Undefined(_) => true,
                _ => false,
            },
            "sameas" => match (value, other()?) {
                (Value::Str(a), Value::Str(b)) => a == b,
                (a @ (Value::List(_) | Value::Dict(_) | Value::Tuple(_)), b) => {
                    a.kind() == b.kind() && self.equal(a, b)?
                }
                (a, b) => a.kind() == b.kind() && self.equal(a, b)?,
            },
            "eq" | "equalto" | "==" => self.equal(value, other()?)?,
            "ne" | "!=" => !self.equal(value, other()?)?,
            "lt" | "lessthan" | "<" => self.compare(Op::Lt, value, other()?)?,
            "le" | "<=" => self.compare(Op::Le, value, other()?)?,
            "gt" | "greaterthan" | ">" => self.compare(Op::Gt, value, other()?)?,
            "ge" | ">=" => self.compare(Op::Ge, value, other()?)?,
            "in" => self.contains(other()?, value)?,
            "odd" => whole()?.rem_euclid(2) == 1,
            "even" => whole()?.rem_euclid(2) == 0,
            "divisibleby" => match given.int(0, "num")? {
                None | Some(0) => return Err(Fault::failed("division by zero")),
                Some(number) => whole()?.checked_rem(number).unwrap_or(0) == 0,
            },
            "lower" | "upper" => {
                let text = self.shown(value)?;
                self.charge_text(text.len())?;
                let (lower, upper) =
                    (text.chars().any(char::is_lowercase), text.chars().any(char::is_uppercase));
                if name == "lower" { lower && !upper } else { upper && !lower }
            }
            "escaped" => false,
            "filter" => FILTERS.contains(&&*self.shown(value)?),
            "test" => TESTS.contains(&&*self.shown(value)?),
            _ => return Err(Fault::failed(format!("No test named {name:?}"))),
        })
    }

    /// The attribute of `value` at a dotted path such as `a.b.0`.
    fn path(&mut self, value: &Value, path: &Value) -> Res<Value> {
        let Value::Str(path) = path else { return self.item(value, path) };
        let mut value = value.clone();
        self.charge_text(path.len())?;
        for part in path.split('.') {
            self.charge(1)?;
            if value.is_undefined() {
                return Ok(value);
            }
            value = match part.parse::<i64>() {
                Ok(index) => self.item(&value, &Value::Int(index))?,
                Err(_) => {
                    let found = self.item(&value, &Value::str(part))?;
                    if found.is_undefined() { self.attribute(&value, part)? } else { found }
                }
            };
        }
        Ok(value)
    }

    /// The sort key of `value`: lowercase text unless `exact`.
    fn folded(&mut self, value: Value, exact: bool) -> Res<Value> {
        match value {
            Value::Str(text) if !exact => self.text(text.to_lowercase()),
            value => Ok(value),
        }
    }

    /// The items of `value` with their sort keys.
    fn keyed(&mut self, value: &Value, path: Option<&Value>, exact: bool) -> Res<Vec<(Value, Value)>> {
        let mut keyed = Vec::new();
        for item in self.iterate(value)? {
            let key = match path {
                None | Some(Value::None) => item.clone(),
                Some(path) => match path {
                    Value::Str(paths) if paths.contains(',') => {
                        let mut keys = Vec::new();
                        for path in paths.split(',') {
                            let key = self.path(&item, &Value::str(path.trim()))?;
                            keys.push(self.folded(key, exact)?);
                        }
                        self.tuple(keys)?
                    }
                    path => self.path(&item, path)?,
                },
            };
            keyed.push((self.folded(key, exact)?, item));
        }
        Ok(keyed)
    }

    fn chosen(&mut self, value: &Value, given: &CallArguments, by_attribute: bool, keep: bool) -> Res<Value> {
        let mut kept = Vec::new();
        let (path, rest) = match by_attribute {
            true => {
                (Some(given.required(0, "attribute")?), &given.positional[1.min(given.positional.len())..])
            }
            false => (None, &given.positional[..]),
        };
        for item in self.iterate(value)? {
            let tested = match path {
                Some(path) => self.path(&item, path)?,
                None => item.clone(),
            };
            let holds = match rest.split_first() {
                Some((name, arguments)) => {
                    let name = self.shown(name)?;
                    self.charge(arguments.len() as u64)?;
                    self.test(
                        &name,
                        &tested,
                        &CallArguments { positional: arguments.to_vec(), named: given.named.clone() },
                    )?
                }
                None => tested.truth(),
            };
            if holds == keep {
                kept.push(item);
            }
        }
        self.list(kept)
    }

    pub(super) fn filter(&mut self, name: &str, value: &Value, given: &CallArguments) -> Res<Value> {
        let mut needs = || self.shown(value);
        match name {
            "upper" | "lower" | "capitalize" | "title" => {
                let text = needs()?;
                self.charge_times(text.len(), 2)?;
                self.text(match name {
                    "upper" => text.to_uppercase(),
                    "lower" => text.to_lowercase(),
                    "capitalize" => capitalized(&text),
                    _ => titled(&text, |c| c.is_whitespace() || "-({[<".contains(c)),
                })
            }
            "trim" => {
                let text = needs()?;
                self.method(&Value::Str(text), "strip", given)
            }
            "string" | "safe" => Ok(if name == "safe" { value.clone() } else { Value::Str(needs()?) }),
            "pprint" => {
                let mut out = String::new();
                self.repr(value, &mut out)?;
                self.text(out)
            }
            "e" | "escape" | "forceescape" => {
                let text = needs()?;
                self.charge_times(text.len(), 6)?;
                let mut out = String::new();
                for c in text.chars() {
                    match c {
                        '&' => out.push_str("&amp;"),
                        '<' => out.push_str("&lt;"),
                        '>' => out.push_str("&gt;"),
                        '"' => out.push_str("&#34;"),
                        '\'' => out.push_str("&#39;"),
                        c => out.push(c),
                    }
                }
                self.text(out)
            }
            "urlencode" => {
                let text = needs()?;
                self.charge_times(text.len(), 3)?;
                let mut out = String::new();
                for byte in text.bytes() {
                    match byte {
                        b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'.' | b'-' | b'~' | b'/' => {
                            out.push(byte as char);
                        }
                        byte => out.push_str(&format!("%{byte:02X}")),
                    }
                }
                self.text(out)
            }
            "tojson" => self.json_of(value, given),
            "length" | "count" => match value {
                Value::Str(text) => {
                    self.charge_text(text.len())?;
                    Ok(Value::Int(text.chars().count() as i64))
                }
                Value::List(items) | Value::Tuple(items) => Ok(Value::Int(items.items.len() as i64)),
                Value::Dict(entries) => Ok(Value::Int(entries.items.len() as i64)),
                Value::Undefined(_) => Ok(Value::Int(0)),
                other => Err(Fault::failed(format!("object of type '{}' has no len()", other.kind()))),
            },
            "default" | "d" => {
                let missing = value.is_undefined() || (given.flag(1, "boolean") && !value.truth());
                match missing {
                    true => Ok(given.get(0, "default_value").cloned().unwrap_or_else(|| Value::str(""))),
                    false => Ok(value.clone()),
                }
            }
            "first" | "last" => {
                let items = self.iterate(value)?;
                let item = if name == "first" { items.first() } else { items.last() };
                Ok(item.cloned().unwrap_or_else(|| Value::Undefined("no item, sequence was empty".into())))
            }
            "list" => {
                let items = self.iterate(value)?;
                self.list(items)
            }
            "items" => match value {
                Value::Undefined(_) => self.list(Vec::new()),
                value => self.pairs(value),
            },
            "reverse" => match value {
                Value::Str(text) => {
                    self.charge_text(text.len())?;
                    self.text(text.chars().rev().collect::<String>())
                }
                value => {
                    let mut items = self.iterate(value)?;
                    items.reverse();
                    self.list(items)
                }
            },
            "join" => {
                let separator = match given.get(0, "d") {
                    Some(separator) => self.shown(separator)?,
                    None => "".into(),
                };
                let path = given.get(1, "attribute").cloned();
                let mut out = String::new();
                for (i, item) in self.iterate(value)?.into_iter().enumerate() {
                    let item = match &path {
                        Some(path) => self.path(&item, path)?,
                        None => item,
                    };
                    let text = self.shown(&item)?;
                    self.charge_text(text.len() + separator.len())?;
                    if i > 0 {
                        out.push_str(&separator);
                    }
                    out.push_str(&text);
                }
                self.text(out)
            }
            "replace" => {
                let text = needs()?;
                let old = self.shown(given.required(0, "old")?)?;
                let new = self.shown(given.required(1, "new")?)?;
                let times = given.int(2, "count")?;
                self.replaced(&text, &old, &new, times)
            }
            "center" => {
                let text = needs()?;
                let width = given.int(0, "width")?.unwrap_or(80);
                self.filled(&text, width, " ", |missing, width| missing / 2 + (missing & width & 1))
            }
            "indent" => self.indented(value, given),
            "wordcount" => {
                let text = needs()?;
                self.charge_text(text.len())?;
                let words =
                    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty());
                Ok(Value::Int(words.count() as i64))
            }
            "wordwrap" => self.wrapped(value, given),
            "truncate" => {
                let text = needs()?;
                self.charge_times(text.len(), 2)?;
                let length = usize::try_from(given.int(0, "length")?.unwrap_or(255)).unwrap_or(0);
                let end = given.str(2, "end")?.unwrap_or("...");
                let leeway = usize::try_from(given.int(3, "leeway")?.unwrap_or(5)).unwrap_or(0);
                if text.chars().count() <= length.saturating_add(leeway) {
                    return Ok(Value::Str(text));
                }
                let room = length.saturating_sub(end.chars().count());
                let cut: String = text.chars().take(room).collect();
                let cut = match given.flag(1, "killwords") {
                    true => cut.as_str(),
                    false => cut.rsplit_once(' ').map_or(cut.as_str(), |(before, _)| before),
                };
                self.text(cut.to_string() + end)
            }
            "striptags" => {
                let text = needs()?;
                self.charge_times(text.len(), 2)?;
                let mut out = String::new();
                let mut rest = &*text;
                while let Some(at) = rest.find('<') {
                    let Some(end) = rest[at..].find('>') else { break };
                    out.push_str(&rest[..at]);
                    rest = &rest[at + end + 1..];
                }
                out.push_str(rest);
                self.text(out.split_whitespace().collect::<Vec<_>>().join(" "))
            }
            "format" => {
                let text = needs()?;
                let values = match given.named.is_empty() {
                    true => self.tuple(given.positional.clone())?,
                    false => {
                        let named =
                            given.named.iter().map(|(k, v)| (Value::Str(k.clone()), v.clone())).collect();
                        self.dict(named)?
                    }
                };
                let text = super::format::percent(self, &text, &values)?;
                self.text(text)
            }
            "int" => Ok(self.int_of(value, given)?),
            "float" => {
                let default = given.get(0, "default").cloned().unwrap_or(Value::Float(0.0));
                Ok(match value {
                    Value::Str(text) => {
                        text.trim().replace('_', "").parse().map(Value::Float).unwrap_or(default)
                    }
                    value => value.number().map(Value::Float).unwrap_or(default),
                })
            }
            "abs" => match value {
                Value::Float(value) => Ok(Value::Float(value.abs())),
                value => match value.int().and_then(i64::checked_abs) {
                    Some(value) => Ok(Value::Int(value)),
                    None => Err(Fault::failed(format!("bad operand type for abs(): '{}'", value.kind()))),
                },
            },
            "round" => self.rounded(value, given),
            "sum" => {
                let mut sum = given.get(1, "start").cloned().unwrap_or(Value::Int(0));
                let path = given.get(0, "attribute").filter(|path| !matches!(path, Value::None)).cloned();
                for item in self.iterate(value)? {
                    let item = match &path {
                        Some(path) => self.path(&item, path)?,
                        None => item,
                    };
                    sum = self.add(&sum, &item)?;
                }
                Ok(sum)
            }
            "min" | "max" => {
                let exact = given.flag(0, "case_sensitive");
                let path = given.get(1, "attribute").cloned();
                let mut best: Option<(Value, Value)> = None;
                for (key, item) in self.keyed(value, path.as_ref(), exact)? {
                    let better = match &best {
                        None => true,
                        Some((known, _)) => {
                            let op = if name == "min" { Op::Lt } else { Op::Gt };
                            self.compare(op, &key, known)?
                        }
                    };
                    if better {
                        best = Some((key, item));
                    }
                }
                Ok(best
                    .map_or_else(|| Value::Undefined("no item, sequence was empty".into()), |(_, item)| item))
            }
            "sort" => {
                let (reverse, exact) = (given.flag(0, "reverse"), given.flag(1, "case_sensitive"));
                let path = given.get(2, "attribute").cloned();
                let mut keyed = self.keyed(value, path.as_ref(), exact)?;
                // The reversed sort is stable, too.
                if reverse {
                    keyed.reverse();
                }
                self.sort_by(&mut keyed, |(key, _)| key)?;
                if reverse {
                    keyed.reverse();
                }
                self.list(keyed.into_iter().map(|(_, item)| item).collect())
            }
            "dictsort" => {
                let exact = given.flag(0, "case_sensitive");
                let by_value = given.str(1, "by")? == Some("value");
                let pairs = self.pairs(value)?;
                let path = Value::Int(i64::from(by_value));
                let mut keyed = self.keyed(&pairs, Some(&path), exact)?;
                self.sort_by(&mut keyed, |(key, _)| key)?;
                if given.flag(2, "reverse") {
                    keyed.reverse();
                }
                self.list(keyed.into_iter().map(|(_, item)| item).collect())
            }
            "unique" => {
                let exact = given.flag(0, "case_sensitive");
                let path = given.get(1, "attribute").cloned();
                let mut seen: Vec<Value> = Vec::new();
                let mut kept = Vec::new();
                'items: for (key, item) in self.keyed(value, path.as_ref(), exact)? {
                    for known in &seen {
                        if self.equal(known, &key)? {
                            continue 'items;
                        }
                    }
                    seen.push(key);
                    kept.push(item);
                }
                self.list(kept)
            }
            "groupby" => {
                let path = given.required(0, "attribute")?.clone();
                let exact = given.flag(2, "case_sensitive");
                let mut keyed = self.keyed(value, Some(&path), exact)?;
                self.sort_by(&mut keyed, |(key, _)| key)?;
                let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
                for (key, item) in keyed {
                    let same = match groups.last() {
                        Some((known, ..)) => self.equal(known, &key)?,
                        None => false,
                    };
                    match groups.last_mut().filter(|_| same) {
                        Some((.., items)) => items.push(item),
                        None => {
                            let shown = self.path(&item, &path)?;
                            groups.push((key, shown, vec![item]));
                        }
                    }
                }
                let mut out = Vec::new();
                for (_, shown, items) in groups {
                    let items = self.list(items)?;
                    out.push(self.tuple(vec![shown, items])?);
                }
                self.list(out)
            }
            "select" => self.chosen(value, given, false, true),
            "reject" => self.chosen(value, given, false, false),
            "selectattr" => self.chosen(value, given, true, true),
            "rejectattr" => self.chosen(value, given, true, false),
            "map" => {
                let path =
                    given.named.iter().find(|(name, _)| &**name == "attribute").map(|(_, path)| path.clone());
                let default =
                    given.named.iter().find(|(name, _)| &**name == "default").map(|(_, v)| v.clone());
                let mut out = Vec::new();
                for item in self.iterate(value)? {
                    out.push(match (&path, given.positional.split_first()) {
                        (Some(path), _) => match self.path(&item, path)? {
                            Value::Undefined(what) => default.clone().unwrap_or(Value::Undefined(what)),
                            value => value,
                        },
                        (None, Some((filter, arguments))) => {
                            let filter = self.shown(filter)?;
                            self.charge(arguments.len() as u64 + 1)?;
                            let given =
                                CallArguments { positional: arguments.to_vec(), named: given.named.clone() };
                            self.deeper(|r| r.filter(&filter, &item, &given))?
                        }
                        (None, None) => return Err(Fault::failed("map requires a filter argument")),
                    });
                }
                self.list(out)
            }
            "attr" => {
                let name = self.shown(given.required(0, "name")?)?;
                match value {
                    // Attributes only, not keys.
                    Value::Dict(_) if !super::attributes::has(value, &name) => Ok(Value::Undefined(name)),
                    value => self.attribute(value, &name),
                }
            }
            "batch" => {
                let size =
                    given.int(0, "linecount")?.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
                let size = size.ok_or_else(|| Fault::failed("batch linecount must be positive"))?;
                let items = self.iterate(value)?;
                let fill = given.get(1, "fill_with").filter(|fill| !matches!(fill, Value::None)).cloned();
                let mut out = Vec::new();
                for chunk in items.chunks(size) {
                    let mut chunk = chunk.to_vec();
                    if let Some(fill) = &fill {
                        self.charge((size - chunk.len()) as u64)?;
                        chunk.resize(size, fill.clone());
                    }
                    out.push(self.list(chunk)?);
                }
                self.list(out)
            }
            "slice" => {
                let slices = given.int(0, "slices")?.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
                let slices = slices.ok_or_else(|| Fault::failed("slices must be positive"))?;
                let items = self.iterate(value)?;
                self.charge(slices as u64)?;
                let fill = given.get(1, "fill_with").filter(|fill| !matches!(fill, Value::None)).cloned();
                let (each, more) = (items.len() / slices, items.len() % slices);
                let mut out = Vec::new();
                let mut at = 0;
                for i in 0..slices {
                    let count = each + usize::from(i < more);
                    let mut part = items[at..at + count].to_vec();
                    at += count;
                    if let Some(fill) = fill.as_ref().filter(|_| i >= more && more > 0) {
                        part.push(fill.clone());
                    }
                    out.push(self.list(part)?);
                }
                self.list(out)
            }
            "filesizeformat" | "xmlattr" | "random" => {
                Err(Fault::failed(format!("the filter {name:?} is not implemented")))
            }
            _ => Err(Fault::failed(format!("No filter named {name:?}"))),
        }
    }

    fn add(&mut self, left: &Value, right: &Value) -> Res<Value> {
        match (left.int(), right.int(), left.number(), right.number()) {
            (Some(a), Some(b), ..) => {
                a.checked_add(b).map(Value::Int).ok_or_else(|| Fault::failed("integer of more than 64 bits"))
            }
            (.., Some(a), Some(b)) => Ok(Value::Float(a + b)),
            _ => match (left, right) {
                (Value::List(a), Value::List(b)) => {
                    self.charge((a.items.len() + b.items.len()) as u64)?;
                    self.list([&a.items[..], &b.items[..]].concat())
                }
                _ => Err(Fault::failed(format!(
                    "unsupported operand type(s) for +: '{}' and '{}'",
                    left.kind(),
                    right.kind()
                ))),
            },
        }
    }

    fn int_of(&mut self, value: &Value, given: &CallArguments) -> Res<Value> {
        let default = given.get(0, "default").cloned().unwrap_or(Value::Int(0));
        let base = given.int(1, "base")?.unwrap_or(10);
        Ok(match value {
            Value::Str(text) => {
                self.charge_text(text.len())?;
                let text = text.trim().replace('_', "");
                let digits = match base {
                    16 => text.trim_start_matches("0x").trim_start_matches("0X"),
                    8 => text.trim_start_matches("0o").trim_start_matches("0O"),
                    2 => text.trim_start_matches("0b").trim_start_matches("0B"),
                    _ => &text,
                };
                let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base)).unwrap_or(10);
                match i64::from_str_radix(digits, base) {
                    Ok(whole) => Value::Int(whole),
                    Err(_) => match text.parse::<f64>() {
                        Ok(number) if number.is_finite() && number.abs() < 9e18 => Value::Int(number as i64),
                        _ => default,
                    },
                }
            }
            Value::Float(number) if number.is_finite() && number.abs() < 9e18 => Value::Int(*number as i64),
            value => value.int().map(Value::Int).unwrap_or(default),
        })
    }

    fn rounded(&mut self, value: &Value, given: &CallArguments) -> Res<Value> {
        let precision = given.int(0, "precision")?.unwrap_or(0);
        let method = given.str(1, "method")?.unwrap_or("common").to_string();
        let Some(number) = value.number() else {
            return Err(Fault::failed(format!("type {} doesn't define __round__ method", value.kind())));
        };
        if let (Some(whole), "common", 0..) = (value.int(), method.as_str(), precision) {
            return Ok(Value::Int(whole));
        }
        if precision.unsigned_abs() > 300 {
            return Ok(Value::Float(if precision > 0 { number } else { 0.0 }));
        }
        let scale = 10f64.powi(precision as i32);
        Ok(Value::Float(match method.as_str() {
            "ceil" => (number * scale).ceil() / scale,
            "floor" => (number * scale).floor() / scale,
            "common" if precision >= 0 => {
                // Formatting rounds the exact value half to even, as Python does.
                format!("{number:.*}", precision as usize).parse().unwrap_or(number)
            }
            "common" => (number * scale).round_ties_even() / scale,
            _ => return Err(Fault::failed("method must be common, ceil or floor")),
        }))
    }

    fn indented(&mut self, value: &Value, given: &CallArguments) -> Res<Value> {
        let text = self.shown(value)?;
        let indent: Rc<str> = match given.get(0, "width") {
            Some(Value::Str(indent)) => indent.clone(),
            None => "    ".into(),
            Some(width) => {
                let Some(width) = width.int() else {
                    return Err(Fault::failed(format!("width must be int, not {}", width.kind())));
                };
                let width = usize::try_from(width).unwrap_or(0);
                self.charge_text(width)?;
                " ".repeat(width).into()
            }
        };
        let (first, blank) = (given.flag(1, "first"), given.flag(2, "blank"));
        self.charge_times(text.len(), 2)?;
        let lines = text.matches('\n').count() + 1;
        self.charge_times(indent.len() + 1, lines)?;
        let mut out = String::new();
        for (i, line) in text.split('\n').enumerate() {
            if i > 0 {
                out.push('\n');
            }
            if (i > 0 || first) && (blank || !line.is_empty() || (i == 0 && first)) {
                out.push_str(&indent);
            }
            out.push_str(line);
        }
        self.text(out)
    }

    fn wrapped(&mut self, value: &Value, given: &CallArguments) -> Res<Value> {
        let text = self.shown(value)?;
        let width = usize::try_from(given.int(0, "width")?.unwrap_or(79)).unwrap_or(0).max(1);
        let breaks = given.get(1, "break_long_words").is_none_or(Value::truth);
        let separator = given.str(2, "wrapstring")?.unwrap_or("\n").to_string();
        self.charge_times(text.len(), 4 + separator.len())?;
        let mut lines: Vec<String> = Vec::new();
        for paragraph in text.split('\n') {
            let mut line = String::new();
            for word in paragraph.split(' ').filter(|word| !word.is_empty()) {
                let mut word: Vec<char> = word.chars().collect();
                let used = line.chars().count();
                if used > 0 && used + 1 + word.len() > width {
                    lines.push(std::mem::take(&mut line));
                }
                while breaks && word.len() > width {
                    let rest = word.split_off(width);
                    lines.push(word.into_iter().collect());
                    word = rest;
                }
                if !line.is_empty() {
                    line.push(' ');
                }
                line.extend(word);
            }
            lines.push(line);
        }
        self.text(lines.join(&separator))
    }
}
