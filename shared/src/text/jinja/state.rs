//! The state of a rendering: its step budget, its variables, and the operations on values charged to the budget.

use std::cmp::Ordering;
use std::rc::Rc;

use super::parser::Op;
use super::value::{Entries, Items, Object, Scope, Value};
use super::{DEPTH, FRAMES, Fault, Res};

/// The state of a rendering.
pub(super) struct Renderer {
    /// Steps left of `steps`.
    pub(super) left: u64,
    pub(super) steps: u64,
    frames: usize,
    now: u64,
    pub(super) line: usize,
    /// Variables passed to the template.
    pub(super) variables: Scope,
    /// The global scope, then those of the active calls and blocks.
    pub(super) scopes: Vec<Scope>,
    /// Index of the first scope visible besides the global one.
    pub(super) base: usize,
    pub(super) out: String,
    /// All namespaces, which may contain each other.
    pub(super) namespaces: Vec<Rc<Object>>,
}

/// The evaluated arguments of a call.
#[derive(Default)]
pub(super) struct CallArguments {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Rc<str>, Value)>,
}

impl CallArguments {
    /// The argument at `index`, or the keyword argument `name`.
    pub(super) fn get(&self, index: usize, name: &str) -> Option<&Value> {
        self.positional.get(index).or_else(|| self.named.iter().find(|(n, _)| **n == *name).map(|(_, v)| v))
    }

    pub(super) fn required(&self, index: usize, name: &str) -> Res<&Value> {
        self.get(index, name).ok_or_else(|| Fault::failed(format!("missing argument {name:?}")))
    }

    pub(super) fn str(&self, index: usize, name: &str) -> Res<Option<&str>> {
        match self.get(index, name) {
            Some(Value::Str(text)) => Ok(Some(text)),
            None | Some(Value::None) => Ok(None),
            Some(other) => Err(Fault::failed(format!("{name} must be str, not {}", other.kind()))),
        }
    }

    pub(super) fn int(&self, index: usize, name: &str) -> Res<Option<i64>> {
        match self.get(index, name) {
            None | Some(Value::None) => Ok(None),
            Some(value) => match value.int() {
                Some(value) => Ok(Some(value)),
                None => Err(Fault::failed(format!("{name} must be int, not {}", value.kind()))),
            },
        }
    }

    pub(super) fn flag(&self, index: usize, name: &str) -> bool {
        self.get(index, name).is_some_and(Value::truth)
    }
}

impl Renderer {
    /// The initial state, at the time `now` in seconds since 1970.
    pub(super) fn new(now: u64) -> Self {
        Self {
            left: u64::MAX,
            steps: 0,
            frames: 0,
            now,
            line: 0,
            variables: Vec::new(),
            scopes: vec![Vec::new()],
            base: 1,
            out: String::new(),
            namespaces: Vec::new(),
        }
    }

    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Charges `steps` to the budget.
    pub(super) fn charge(&mut self, steps: u64) -> Res<()> {
        match self.left.checked_sub(steps) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(Fault::over_limit(format!("more than {} steps", self.steps)))
            }
        }
    }

    /// Charges text of `bytes` that is created or searched.
    pub(super) fn charge_text(&mut self, bytes: usize) -> Res<()> {
        self.charge(1 + bytes as u64 / 32)
    }

    /// Charges `times` texts of `bytes`.
    pub(super) fn charge_times(&mut self, bytes: usize, times: usize) -> Res<()> {
        self.charge((bytes as u64).saturating_mul(times as u64) / 32 + 1)
    }

    pub(super) fn text(&mut self, text: impl AsRef<str>) -> Res<Value> {
        self.charge_text(text.as_ref().len())?;
        Ok(Value::str(text))
    }

    pub(super) fn items(&mut self, items: Vec<Value>) -> Res<Rc<Items>> {
        self.charge(items.len() as u64 + 1)?;
        let depth = items.iter().map(Value::depth).max().unwrap_or(0) + 1;
        match depth > DEPTH {
            true => Err(too_deep()),
            false => Ok(Rc::new(Items { items, depth })),
        }
    }

    pub(super) fn list(&mut self, items: Vec<Value>) -> Res<Value> {
        self.items(items).map(Value::List)
    }

    pub(super) fn tuple(&mut self, items: Vec<Value>) -> Res<Value> {
        self.items(items).map(Value::Tuple)
    }

    /// A dict of `items`; of equal keys the last value is kept, at the position of the first.
    pub(super) fn dict(&mut self, items: Vec<(Value, Value)>) -> Res<Value> {
        let mut entries: Vec<(Value, Value)> = Vec::with_capacity(items.len());
        for (key, value) in items {
            if matches!(key, Value::List(_) | Value::Dict(_)) {
                return Err(Fault::failed(format!("unhashable type: '{}'", key.kind())));
            }
            let mut at = None;
            for (i, (known, _)) in entries.iter().enumerate() {
                if self.equal(known, &key)? {
                    at = Some(i);
                    break;
                }
            }
            match at {
                Some(at) => entries[at].1 = value,
                None => entries.push((key, value)),
            }
        }
        self.entries(entries)
    }

    /// A dict of entries with distinct keys.
    pub(super) fn entries(&mut self, items: Vec<(Value, Value)>) -> Res<Value> {
        self.charge(2 * items.len() as u64 + 1)?;
        let depth = items.iter().map(|(k, v)| k.depth().max(v.depth())).max().unwrap_or(0) + 1;
        match depth > DEPTH {
            true => Err(too_deep()),
            false => Ok(Value::Dict(Rc::new(Entries { items, depth }))),
        }
    }

    /// Runs `f` with one more call frame.
    pub(super) fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Res<T>) -> Res<T> {
        if self.frames == FRAMES {
            return Err(Fault::over_limit(format!("more than {FRAMES} nested calls and expressions")));
        }
        self.frames += 1;
        let result = f(self);
        self.frames -= 1;
        result
    }

    /// The items of an iterable.
    pub(super) fn iterate(&mut self, value: &Value) -> Res<Vec<Value>> {
        let items: Vec<Value> = match value {
            Value::List(items) | Value::Tuple(items) => {
                self.charge(items.items.len() as u64)?;
                items.items.clone()
            }
            Value::Dict(entries) => {
                self.charge(entries.items.len() as u64)?;
                entries.items.iter().map(|(key, _)| key.clone()).collect()
            }
            Value::Str(text) => {
                self.charge(2 * text.len() as u64)?;
                text.chars().map(|c| Value::str(c.encode_utf8(&mut [0; 4]))).collect()
            }
            Value::Undefined(_) => Vec::new(),
            other => return Err(Fault::failed(format!("'{}' object is not iterable", other.kind()))),
        };
        Ok(items)
    }

    /// Sorts by a key; the sort is stable.
    pub(super) fn sort_by<T>(&mut self, items: &mut [T], key: impl Fn(&T) -> &Value) -> Res<()> {
        let mut failed = None;
        items.sort_by(|a, b| match self.order(key(a), key(b)) {
            Ok(order) => order.unwrap_or(std::cmp::Ordering::Equal),
            Err(fault) => {
                failed.get_or_insert(fault);
                std::cmp::Ordering::Equal
            }
        });
        failed.map_or(Ok(()), Err)
    }

    pub(super) fn compare(&mut self, op: Op, left: &Value, right: &Value) -> Res<bool> {
        Ok(match op {
            Op::Eq => self.equal(left, right)?,
            Op::Ne => !self.equal(left, right)?,
            Op::In => self.contains(right, left)?,
            Op::NotIn => !self.contains(right, left)?,
            op => {
                let order = self.order(left, right)?;
                match op {
                    Op::Lt => order == Some(Ordering::Less),
                    Op::Le => matches!(order, Some(Ordering::Less | Ordering::Equal)),
                    Op::Gt => order == Some(Ordering::Greater),
                    _ => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
                }
            }
        })
    }

    pub(super) fn equal(&mut self, left: &Value, right: &Value) -> Res<bool> {
        self.charge(1)?;
        if let (Some(a), Some(b)) = (left.int(), right.int()) {
            return Ok(a == b);
        }
        if let (Some(a), Some(b)) = (left.number(), right.number()) {
            return Ok(a == b);
        }
        Ok(match (left, right) {
            (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
            (Value::Str(a), Value::Str(b)) => {
                if a.len() == b.len() {
                    self.charge_text(a.len())?;
                }
                a == b
            }
            (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
                if a.items.len() != b.items.len() {
                    return Ok(false);
                }
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !self.equal(a, b)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Value::Dict(a), Value::Dict(b)) => {
                if a.items.len() != b.items.len() {
                    return Ok(false);
                }
                for (key, value) in &a.items {
                    let mut same = false;
                    for (other, theirs) in &b.items {
                        if self.equal(key, other)? {
                            same = self.equal(value, theirs)?;
                            break;
                        }
                    }
                    if !same {
                        return Ok(false);
                    }
                }
                true
            }
            (Value::Object(a), Value::Object(b)) => Rc::ptr_eq(a, b),
            _ => false,
        })
    }

    /// Compares two values; `None` if one is NaN.
    pub(super) fn order(&mut self, left: &Value, right: &Value) -> Res<Option<Ordering>> {
        self.charge(1)?;
        if let (Some(a), Some(b)) = (left.int(), right.int()) {
            return Ok(Some(a.cmp(&b)));
        }
        if let (Some(a), Some(b)) = (left.number(), right.number()) {
            return Ok(a.partial_cmp(&b));
        }
        match (left, right) {
            (Value::Str(a), Value::Str(b)) => {
                self.charge_text(a.len().min(b.len()))?;
                Ok(Some(a.cmp(b)))
            }
            (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
                for (x, y) in a.items.iter().zip(&b.items) {
                    if !self.equal(x, y)? {
                        return self.order(x, y);
                    }
                }
                Ok(Some(a.items.len().cmp(&b.items.len())))
            }
            (Value::Undefined(what), _) | (_, Value::Undefined(what)) => {
                Err(Fault::failed(format!("'{what}' is undefined")))
            }
            _ => Err(Fault::failed(format!(
                "'<' not supported between instances of '{}' and '{}'",
                left.kind(),
                right.kind()
            ))),
        }
    }

    pub(super) fn contains(&mut self, holder: &Value, value: &Value) -> Res<bool> {
        match (holder, value) {
            (Value::Str(text), Value::Str(part)) => {
                self.charge_text(text.len() + part.len())?;
                Ok(text.contains(&**part))
            }
            (Value::Str(_), other) => Err(Fault::failed(format!(
                "'in <string>' requires string as left operand, not {}",
                other.kind()
            ))),
            (Value::List(items) | Value::Tuple(items), value) => {
                for item in &items.items {
                    if self.equal(item, value)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            (Value::Dict(entries), value) => {
                for (key, _) in &entries.items {
                    if self.equal(key, value)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            (Value::Undefined(_), _) => Ok(false),
            (other, _) => Err(Fault::failed(format!("argument of type '{}' is not iterable", other.kind()))),
        }
    }
}

pub(super) fn too_deep() -> Fault {
    Fault::over_limit(format!("a value is nested more than {DEPTH} deep"))
}
