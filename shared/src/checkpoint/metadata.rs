//! Metadata of checkpoints: GGUF keys, `__metadata__` of safetensors, scalars and strings of a pickle.

use std::collections::BTreeMap;

/// Keys and values, sorted by key.
pub type Metadata = BTreeMap<String, Value>;

/// A metadata value with the type of the file, which is kept on writing because GGUF readers require exact types.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the variants are the types they are named after")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Text(String),
    List(List),
}

/// A homogeneous list, such as the tokens of a vocabulary.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the variants are the types they are named after")]
pub enum List {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    Text(Vec<String>),
    Lists(Vec<List>),
}

impl Value {
    /// The value as a nonnegative integer of any width; `None` otherwise.
    pub fn as_usize(&self) -> Option<usize> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => v.try_into().ok(),
            Value::U64(v) => v.try_into().ok(),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// The value as a number; `None` otherwise.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            Value::I64(v) => Some(v as f64),
            Value::I32(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            _ => self.as_usize().map(|v| v as f64),
        }
    }

    /// The value as a boolean; `None` otherwise.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// The value as a string; `None` otherwise.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Text(v) => Some(v),
            _ => None,
        }
    }

    /// The value as a list of strings; `None` otherwise.
    pub fn as_texts(&self) -> Option<&[String]> {
        match self {
            Value::List(List::Text(v)) => Some(v),
            _ => None,
        }
    }

    /// The value as a list of `f32`; `None` otherwise.
    pub fn as_floats(&self) -> Option<&[f32]> {
        match self {
            Value::List(List::F32(v)) => Some(v),
            _ => None,
        }
    }

    /// The value as a list of integers of any width, converted to `i64`; `None` otherwise.
    pub fn as_ints(&self) -> Option<Vec<i64>> {
        let Value::List(list) = self else { return None };
        Some(match list {
            List::U8(v) => v.iter().map(|&x| x.into()).collect(),
            List::I8(v) => v.iter().map(|&x| x.into()).collect(),
            List::U16(v) => v.iter().map(|&x| x.into()).collect(),
            List::I16(v) => v.iter().map(|&x| x.into()).collect(),
            List::U32(v) => v.iter().map(|&x| x.into()).collect(),
            List::I32(v) => v.iter().map(|&x| x.into()).collect(),
            List::U64(v) => v.iter().map(|&x| x.try_into().ok()).collect::<Option<_>>()?,
            List::I64(v) => v.clone(),
            _ => return None,
        })
    }
}

impl List {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            List::U8(v) => v.len(),
            List::I8(v) => v.len(),
            List::U16(v) => v.len(),
            List::I16(v) => v.len(),
            List::U32(v) => v.len(),
            List::I32(v) => v.len(),
            List::U64(v) => v.len(),
            List::I64(v) => v.len(),
            List::F32(v) => v.len(),
            List::F64(v) => v.len(),
            List::Bool(v) => v.len(),
            List::Text(v) => v.len(),
            List::Lists(v) => v.len(),
        }
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
