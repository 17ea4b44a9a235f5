//! Template values with the behaviour of Python's.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::parser::{ForLoop, MacroBody};

/// Variables by name, in order of definition.
pub(super) type Scope = Vec<(Rc<str>, Value)>;

#[derive(Clone)]
pub(super) enum Value {
    /// An undefined value, with the name that was looked up.
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

/// The items of a list or tuple, and their nesting depth.
pub(super) struct Items {
    pub(super) items: Vec<Value>,
    pub(super) depth: usize,
}

/// The entries of a dict in insertion order, and their nesting depth.
pub(super) struct Entries {
    pub(super) items: Vec<(Value, Value)>,
    pub(super) depth: usize,
}

/// Values other than text, numbers and collections.
pub(super) enum Object {
    Namespace(RefCell<Scope>),
    /// A global function, by name.
    Function(Rc<str>),
    Method(Value, Rc<str>),
    Macro {
        body: Arc<MacroBody>,
        /// Variables of the enclosing scopes except the global one.
        seen: Rc<Scope>,
        depth: usize,
    },
    Loop(Loop),
    Joiner(Rc<str>, Cell<bool>),
    Cycler(Rc<Items>, Cell<usize>),
}

/// The state of a `for` loop.
pub(super) struct Loop {
    pub(super) items: Rc<Items>,
    pub(super) index: Cell<usize>,
    pub(super) level: usize,
    /// The loop itself, if it is recursive.
    pub(super) again: Option<Arc<ForLoop>>,
    pub(super) changed: RefCell<Option<Value>>,
}

impl Value {
    pub(super) fn str(text: impl AsRef<str>) -> Self {
        Value::Str(text.as_ref().into())
    }

    /// Nesting depth of the value.
    pub(super) fn depth(&self) -> usize {
        match self {
            Value::List(items) | Value::Tuple(items) => items.depth,
            Value::Dict(entries) => entries.depth,
            Value::Object(object) => match &**object {
                Object::Method(value, _) => value.depth() + 1,
                Object::Macro { depth, .. } => *depth,
                Object::Loop(state) => state.items.depth + 1,
                Object::Cycler(items, _) => items.depth + 1,
                // The renderer holds all namespaces and clears them at the end, so drops do not recurse through them.
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

    /// Name of the Python type.
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

    /// The value of an int or bool.
    pub(super) fn int(&self) -> Option<i64> {
        match self {
            Value::Bool(value) => Some(i64::from(*value)),
            Value::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The value of an int, bool or float.
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
