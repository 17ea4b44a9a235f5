//! Methods of Python's strings, lists, tuples and dicts.

use std::rc::Rc;

use super::attributes::CHANGES;
use super::state::{CallArguments, Renderer, too_deep};
use super::value::{Object, Value};
use super::{Fault, Res};

fn space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

impl Renderer {
    pub(super) fn method(&mut self, value: &Value, name: &str, given: &CallArguments) -> Res<Value> {
        match value {
            Value::Str(text) => self.str_method(text, name, given),
            Value::List(_) | Value::Dict(_) if CHANGES.contains(&name) => {
                let kind = value.kind();
                Err(Fault::failed(format!("access to attribute '{name}' of '{kind}' object is unsafe")))
            }
            Value::List(items) | Value::Tuple(items) => {
                let target = match name {
                    "copy" => return Ok(value.clone()),
                    _ => given.required(0, "value")?,
                };
                let mut count = 0;
                for (i, item) in items.items.iter().enumerate() {
                    if self.equal(item, target)? {
                        if name == "index" {
                            return Ok(Value::Int(i as i64));
                        }
                        count += 1;
                    }
                }
                match name {
                    "count" => Ok(Value::Int(count)),
                    _ => Err(Fault::failed(format!("{}.index(x): x not in {}", value.kind(), value.kind()))),
                }
            }
            Value::Dict(entries) => match name {
                "copy" => Ok(value.clone()),
                "get" => {
                    let key = given.required(0, "key")?;
                    for (known, value) in &entries.items {
                        if self.equal(known, key)? {
                            return Ok(value.clone());
                        }
                    }
                    Ok(given.get(1, "default").cloned().unwrap_or(Value::None))
                }
                "keys" => {
                    let keys = entries.items.iter().map(|(key, _)| key.clone()).collect();
                    self.list(keys)
                }
                "values" => {
                    let values = entries.items.iter().map(|(_, value)| value.clone()).collect();
                    self.list(values)
                }
                "items" => self.pairs(value),
                _ => self.dict_from_keys(given),
            },
            Value::Int(value) => Ok(Value::Int(i64::from(64 - value.unsigned_abs().leading_zeros()))),
            Value::Float(value) => Ok(Value::Bool(value.is_finite() && value.fract() == 0.0)),
            Value::Object(object) => match &**object {
                Object::Loop(state) if name == "cycle" => {
                    match given.positional.get(state.index.get() % given.positional.len().max(1)) {
                        Some(value) => Ok(value.clone()),
                        None => Err(Fault::failed("no items for cycling given")),
                    }
                }
                Object::Loop(state) => {
                    let now = self.tuple(given.positional.clone())?;
                    let before = state.changed.borrow().clone();
                    let same = match &before {
                        Some(before) => self.equal(before, &now)?,
                        None => false,
                    };
                    // Values held here do not count towards the nesting depth, so they must not contain the loop.
                    if now.depth() > 10 {
                        return Err(too_deep());
                    }
                    *state.changed.borrow_mut() = Some(now);
                    Ok(Value::Bool(!same))
                }
                Object::Cycler(items, at) => {
                    let now = at.get();
                    at.set(if name == "next" { (now + 1) % items.items.len().max(1) } else { 0 });
                    Ok(match name {
                        "next" => items.items.get(now).cloned().unwrap_or(Value::None),
                        _ => Value::None,
                    })
                }
                _ => self.dict_from_keys(given),
            },
            other => Err(Fault::failed(format!("'{}' object has no method {name:?}", other.kind()))),
        }
    }

    fn dict_from_keys(&mut self, given: &CallArguments) -> Res<Value> {
        let value = given.get(1, "value").cloned().unwrap_or(Value::None);
        let keys = self.iterate(given.required(0, "iterable")?)?;
        self.dict(keys.into_iter().map(|key| (key, value.clone())).collect())
    }

    /// The items of a dict as a list of pairs.
    pub(super) fn pairs(&mut self, value: &Value) -> Res<Value> {
        let Value::Dict(entries) = value else {
            return Err(Fault::failed("Can only get item pairs from a mapping."));
        };
        let mut pairs = Vec::with_capacity(entries.items.len());
        for (key, value) in &entries.items {
            pairs.push(self.tuple(vec![key.clone(), value.clone()])?);
        }
        self.list(pairs)
    }

    /// `text.replace(old, new, times)`.
    pub(super) fn replaced(&mut self, text: &str, old: &str, new: &str, times: Option<i64>) -> Res<Value> {
        self.charge_times(text.len() + old.len(), 2)?;
        let times = times.and_then(|times| usize::try_from(times).ok()).unwrap_or(usize::MAX);
        let count = match old.is_empty() {
            true => text.chars().count() + 1,
            false => text.matches(old).count(),
        }
        .min(times);
        self.charge_times(new.len(), count)?;
        self.text(text.replacen(old, new, count))
    }

    fn strings(&mut self, pieces: Vec<&str>) -> Res<Value> {
        let pieces = pieces.into_iter().map(|piece| self.text(piece)).collect::<Res<_>>()?;
        self.list(pieces)
    }

    /// `text` padded to `width` characters with `fill`, `before(missing, width)` of them on the left.
    pub(super) fn filled(
        &mut self,
        text: &str,
        width: i64,
        fill: &str,
        before: impl Fn(usize, usize) -> usize,
    ) -> Res<Value> {
        self.charge_text(text.len())?;
        let width = usize::try_from(width).unwrap_or(0);
        if fill.chars().count() != 1 {
            return Err(Fault::failed("The fill character must be exactly one character long"));
        }
        let missing = width.saturating_sub(text.chars().count());
        self.charge_times(fill.len(), missing)?;
        let left = before(missing, width);
        self.text(fill.repeat(left) + text + &fill.repeat(missing - left))
    }

    fn str_method(&mut self, text: &Rc<str>, name: &str, given: &CallArguments) -> Res<Value> {
        self.charge_times(text.len(), 2)?;
        let every = |of: fn(char) -> bool| Ok(Value::Bool(!text.is_empty() && text.chars().all(of)));
        let stripped = |left: bool, right: bool| -> Res<&str> {
            let set: Option<Vec<char>> = given.str(0, "chars")?.map(|set| set.chars().collect());
            let gone = |c: char| match &set {
                Some(set) => set.contains(&c),
                None => space(c),
            };
            let text = if left { text.trim_start_matches(gone) } else { text };
            Ok(if right { text.trim_end_matches(gone) } else { text })
        };
        match name {
            "upper" => self.text(text.to_uppercase()),
            "lower" | "casefold" => {
                let lower = text.to_lowercase();
                self.text(if name == "casefold" { lower.replace('ß', "ss") } else { lower })
            }
            "capitalize" => self.text(capitalized(text)),
            "title" => self.text(titled(text, |c| !c.is_alphabetic())),
            "swapcase" => {
                let mut out = String::new();
                for c in text.chars() {
                    if c.is_uppercase() { out.extend(c.to_lowercase()) } else { out.extend(c.to_uppercase()) }
                }
                self.text(out)
            }
            "strip" | "lstrip" | "rstrip" => {
                let set = given.str(0, "chars")?.map_or(0, str::len);
                self.charge_times(text.len(), set)?;
                let kept = stripped(name != "rstrip", name != "lstrip")?;
                self.text(kept)
            }
            "startswith" | "endswith" => {
                let options = match given.required(0, "prefix")? {
                    Value::Tuple(items) => items.items.clone(),
                    one => vec![one.clone()],
                };
                let part = self.bounded(text, given)?;
                let mut holds = false;
                for option in options {
                    let Value::Str(option) = &option else {
                        let message = "first arg must be str or a tuple of str, not ";
                        return Err(Fault::failed(format!("{name} {message}{}", option.kind())));
                    };
                    self.charge_text(option.len())?;
                    holds |= match name {
                        "startswith" => part.starts_with(&**option),
                        _ => part.ends_with(&**option),
                    };
                }
                Ok(Value::Bool(holds))
            }
            "removeprefix" | "removesuffix" => {
                let part = given.str(0, "prefix")?.unwrap_or_default();
                let kept =
                    if name == "removeprefix" { text.strip_prefix(part) } else { text.strip_suffix(part) };
                match kept {
                    Some(kept) => self.text(kept),
                    None => Ok(Value::Str(text.clone())),
                }
            }
            "replace" => {
                let (old, new) = (given.required(0, "old")?, given.required(1, "new")?);
                let (Value::Str(old), Value::Str(new)) = (old, new) else {
                    return Err(Fault::failed("replace() arguments must be str"));
                };
                let times = given.int(2, "count")?;
                self.replaced(text, old, new, times)
            }
            "split" | "rsplit" => {
                let times = given.int(1, "maxsplit")?.and_then(|times| usize::try_from(times).ok());
                let pieces = match given.str(0, "sep")? {
                    Some("") => return Err(Fault::failed("empty separator")),
                    Some(separator) => self.cut(text, separator, name == "rsplit", times),
                    None => words(text, name == "rsplit", times),
                };
                self.charge(pieces.len() as u64)?;
                self.strings(pieces)
            }
            "splitlines" => {
                let keep = given.flag(0, "keepends");
                let mut lines = Vec::new();
                let mut rest: &str = text;
                let breaks: &[char] = &[
                    '\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}',
                    '\u{2029}',
                ];
                while let Some(at) = rest.find(breaks) {
                    let mark = rest[at..].chars().next().map_or(1, char::len_utf8);
                    let end = at + if rest[at..].starts_with("\r\n") { 2 } else { mark };
                    lines.push(&rest[..if keep { end } else { at }]);
                    rest = &rest[end..];
                }
                if !rest.is_empty() {
                    lines.push(rest);
                }
                self.strings(lines)
            }
            "partition" | "rpartition" => {
                let separator = given.str(0, "sep")?.filter(|s| !s.is_empty());
                let separator = separator.ok_or_else(|| Fault::failed("empty separator"))?;
                let cut = match name {
                    "partition" => text.split_once(separator),
                    _ => text.rsplit_once(separator),
                };
                let parts = match cut {
                    Some((left, right)) => [left, separator, right],
                    None if name == "partition" => [text, "", ""],
                    None => ["", "", text],
                };
                let parts = parts.into_iter().map(|part| self.text(part)).collect::<Res<_>>()?;
                self.tuple(parts)
            }
            "find" | "index" | "rfind" | "rindex" | "count" => {
                let Value::Str(sub) = given.required(0, "sub")? else {
                    return Err(Fault::failed(format!("{name}() argument 1 must be str")));
                };
                let part = self.bounded(text, given)?;
                self.charge_text(sub.len())?;
                if name == "count" {
                    let count = match sub.is_empty() {
                        true => part.chars().count() + 1,
                        false => part.matches(&**sub).count(),
                    };
                    return Ok(Value::Int(count as i64));
                }
                let found = if name.starts_with('r') { part.rfind(&**sub) } else { part.find(&**sub) };
                match found {
                    Some(at) => {
                        let before = part.as_ptr() as usize - text.as_ptr() as usize + at;
                        Ok(Value::Int(text[..before].chars().count() as i64))
                    }
                    None if name.ends_with("find") => Ok(Value::Int(-1)),
                    None => Err(Fault::failed("substring not found")),
                }
            }
            "join" => {
                let items = self.iterate(given.required(0, "iterable")?)?;
                let mut out = String::new();
                for (i, item) in items.iter().enumerate() {
                    let Value::Str(item) = item else {
                        let kind = item.kind();
                        return Err(Fault::failed(format!(
                            "sequence item {i}: expected str instance, {kind} found"
                        )));
                    };
                    self.charge_text(item.len() + text.len())?;
                    if i > 0 {
                        out.push_str(text);
                    }
                    out.push_str(item);
                }
                self.text(out)
            }
            "center" | "ljust" | "rjust" => {
                let width = given.int(0, "width")?.unwrap_or(0);
                let fill = given.str(1, "fillchar")?.unwrap_or(" ");
                self.filled(text, width, fill, |missing, width| match name {
                    "ljust" => 0,
                    "rjust" => missing,
                    // Rounds as CPython does.
                    _ => missing / 2 + (missing & width & 1),
                })
            }
            "zfill" => {
                let sign = usize::from(text.starts_with(['-', '+']));
                let filled = self.filled(
                    &text[sign..],
                    given.int(0, "width")?.unwrap_or(0).saturating_sub(sign as i64),
                    "0",
                    |m, _| m,
                )?;
                let filled = self.shown(&filled)?;
                self.text(text[..sign].to_string() + &filled)
            }
            "expandtabs" => {
                let size = usize::try_from(given.int(0, "tabsize")?.unwrap_or(8)).unwrap_or(0);
                let tabs = text.matches('\t').count();
                self.charge_times(size, tabs)?;
                let (mut out, mut column) = (String::new(), 0);
                for c in text.chars() {
                    match c {
                        '\t' => {
                            let blanks = if size == 0 { 0 } else { size - column % size };
                            out.extend(std::iter::repeat_n(' ', blanks));
                            column += blanks;
                        }
                        c => {
                            out.push(c);
                            column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                        }
                    }
                }
                self.text(out)
            }
            "format" => {
                let out = self.format_braces(text, given)?;
                self.text(out)
            }
            "format_map" => {
                let Value::Dict(entries) = given.required(0, "mapping")? else {
                    return Err(Fault::failed("format_map() argument must be a mapping"));
                };
                let named = entries.items.iter().filter_map(|(key, value)| match key {
                    Value::Str(key) => Some((key.clone(), value.clone())),
                    _ => None,
                });
                let given = CallArguments { positional: Vec::new(), named: named.collect() };
                self.charge(given.named.len() as u64)?;
                let out = self.format_braces(text, &given)?;
                self.text(out)
            }
            "isalnum" => every(char::is_alphanumeric),
            "isalpha" => every(char::is_alphabetic),
            "isascii" => Ok(Value::Bool(text.is_ascii())),
            "isdecimal" | "isdigit" => every(|c| {
                c.is_ascii_digit()
                    || (c.is_numeric() && !c.is_ascii() && c.to_digit(10).is_none() && decimal(c))
            }),
            "isnumeric" => every(char::is_numeric),
            "isspace" => every(space),
            "isprintable" => Ok(Value::Bool(text.chars().all(|c| c == ' ' || !(c.is_control() || space(c))))),
            "isidentifier" => {
                let first = text.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_');
                Ok(Value::Bool(first && text.chars().all(|c| c.is_alphanumeric() || c == '_')))
            }
            "islower" => {
                Ok(Value::Bool(text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)))
            }
            "isupper" => {
                Ok(Value::Bool(text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)))
            }
            "istitle" => {
                let cased = text.chars().any(|c| c.is_uppercase() || c.is_lowercase());
                Ok(Value::Bool(cased && titled(text, |c| !c.is_alphabetic()) == **text))
            }
            _ => Err(Fault::failed(format!("'str' object has no method {name:?}"))),
        }
    }

    /// `text[start:end]` with the second and third argument.
    fn bounded<'a>(&mut self, text: &'a str, given: &CallArguments) -> Res<&'a str> {
        let (start, end) = (given.int(1, "start")?, given.int(2, "end")?);
        if start.is_none() && end.is_none() {
            return Ok(text);
        }
        let length = text.chars().count() as i64;
        let at = |bound: i64| {
            let bound = if bound < 0 { (bound + length).max(0) } else { bound.min(length) };
            text.char_indices().nth(bound as usize).map_or(text.len(), |(i, _)| i)
        };
        let (start, end) = (at(start.unwrap_or(0)), at(end.unwrap_or(length)));
        Ok(text.get(start..end).unwrap_or(""))
    }

    fn cut<'a>(&self, text: &'a str, separator: &str, right: bool, times: Option<usize>) -> Vec<&'a str> {
        match (right, times) {
            (_, None) => text.split(separator).collect(),
            (false, Some(times)) => text.splitn(times.saturating_add(1), separator).collect(),
            (true, Some(times)) => {
                let mut pieces: Vec<&str> = text.rsplitn(times.saturating_add(1), separator).collect();
                pieces.reverse();
                pieces
            }
        }
    }
}

/// Whether a character outside ASCII is a decimal digit.
fn decimal(c: char) -> bool {
    matches!(c, '\u{660}'..='\u{669}' | '\u{6f0}'..='\u{6f9}' | '\u{966}'..='\u{96f}' | '\u{ff10}'..='\u{ff19}')
}

/// `text.split(None, times)`, or `rsplit` if `right`.
fn words(text: &str, right: bool, times: Option<usize>) -> Vec<&str> {
    let Some(times) = times else { return text.split(space).filter(|word| !word.is_empty()).collect() };
    let mut pieces = Vec::new();
    let mut rest = if right { text.trim_end_matches(space) } else { text.trim_start_matches(space) };
    while !rest.is_empty() {
        if pieces.len() == times {
            pieces.push(if right { rest.trim_end_matches(space) } else { rest });
            break;
        }
        if right {
            let at = rest.rfind(space);
            let start = at.map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
            pieces.push(&rest[start..]);
            rest = rest[..start].trim_end_matches(space);
        } else {
            let at = rest.find(space).unwrap_or(rest.len());
            pieces.push(&rest[..at]);
            rest = rest[at..].trim_start_matches(space);
        }
    }
    if right {
        pieces.reverse();
    }
    pieces
}

pub(super) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars.flat_map(char::to_lowercase)).collect(),
        None => String::new(),
    }
}

/// `text.title()`.
pub(super) fn titled(text: &str, between: impl Fn(char) -> bool) -> String {
    let mut out = String::new();
    let mut begins = true;
    for c in text.chars() {
        if begins {
            out.extend(c.to_uppercase())
        } else {
            out.extend(c.to_lowercase())
        }
        begins = between(c);
    }
    out
}
