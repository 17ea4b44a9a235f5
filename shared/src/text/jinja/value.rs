//! Values of a template, with Python's behaviour.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::parser::{ForLoop, MacroBody};

/// Variables by name, the latest last.
pub(super) type Scope = Vec<(Rc<str>, Value)>;

#[derive(Clone)]
pub(super) enum Value {
    /// What there is not, by the name under which it was looked for.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Rc<str>),
    List(Rc<Items>),
    Tuple(Rc<Items>),
    Dict(Rc<Entries>),
    Object(Rc<Object>),
}

/// The values of a list, and how deep they are nested.
pub(super) struct Items {
    pub(super) items: Vec<Value>,
    pub(super) depth: usize,
}

/// Keys with their values in the order of their making, and how deep they are nested.
pub(super) struct Entries {
    pub(super) items: Vec<(Value, Value)>,
    pub(super) depth: usize,
}

/// What is neither text, number nor collection.
pub(super) enum Object {
    Namespace(RefCell<Scope>),
    /// A function that templates call by this name.
    Function(Rc<str>),
    Method(Value, Rc<str>),
    Macro {
        body: Arc<MacroBody>,
        /// What it saw where it was made, unless that was the top.
        seen: Rc<Scope>,
        depth: usize,
    },
    Loop(Loop),
    Joiner(Rc<str>, Cell<bool>),
    Cycler(Rc<Items>, Cell<usize>),
}

/// Where a loop stands.
pub(super) struct Loop {
    pub(super) items: Rc<Items>,
    pub(super) index: Cell<usize>,
    pub(super) level: usize,
    /// For a recursive one, what it does.
    pub(super) again: Option<Arc<ForLoop>>,
    pub(super) changed: RefCell<Option<Value>>,
}

impl Value {
    pub(super) fn str(text: impl AsRef<str>) -> Self {
        Value::Str(text.as_ref().into())
    }

    /// How deep values are nested in this one.
    pub(super) fn depth(&self) -> usize {
        match self {
            Value::List(items) | Value::Tuple(items) => items.depth,
            Value::Dict(entries) => entries.depth,
            Value::Object(object) => match &**object {
                Object::Method(value, _) => value.depth() + 1,
                Object::Macro { depth, .. } => *depth,
                Object::Loop(state) => state.items.depth + 1,
                Object::Cycler(items, _) => items.depth + 1,
                // The renderer holds each and empties it at the end, so that they never fall in a row.
                Object::Namespace(_) => 1,
                Object::Function(_) | Object::Joiner(..) => 0,
            },
            _ => 0,
        }
    }

    pub(super) fn truth(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(value) => *value,
            Value::Int(value) => *value != 0,
            Value::Float(value) => *value != 0.0,
            Value::Str(text) => !text.is_empty(),
            Value::List(items) | Value::Tuple(items) => !items.items.is_empty(),
            Value::Dict(entries) => !entries.items.is_empty(),
            Value::Object(_) => true,
        }
    }

    /// The name of its type in Python.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "Undefined",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "str",
            Value::List(_) => "list",
            Value::Tuple(_) => "tuple",
            Value::Dict(_) => "dict",
            Value::Object(object) => match &**object {
                Object::Namespace(_) => "Namespace",
                Object::Function(_) => "function",
                Object::Method(..) => "method",
                Object::Macro { .. } => "Macro",
                Object::Loop(_) => "LoopContext",
                Object::Joiner(..) => "Joiner",
                Object::Cycler(..) => "Cycler",
            },
        }
    }

    /// A whole number or a boolean.
    pub(super) fn int(&self) -> Option<i64> {
        match self {
            Value::Bool(value) => Some(i64::from(*value)),
            Value::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// Any number.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Value::Float(value) => Some(*value),
            other => other.int().map(|value| value as f64),
        }
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Value::Undefined(_))
    }
}
