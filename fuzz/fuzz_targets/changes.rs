//! Changes of JSON that a few bytes choose: a value becomes one that no size, count, scale or name is.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// Bytes that say one change: which value (two), what becomes of it, and by what.
const CHANGE: usize = 4;
/// Changes of one input.
const MOST: usize = 8;
/// Values that no size, count, scale, name or part is.
const ABSURD: [&str; 24] = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "255",
    "65537",
    "2147483647",
    "2147483648",
    "4294967296",
    "9007199254740992",
    "9223372036854775807",
    "18446744073709551615",
    "0.5",
    "1e308",
    "-1e308",
    "1e-308",
    "null",
    "true",
    "\"absurd\"",
    "[]",
    "[0]",
    "{}",
];

/// `value` after the changes that `bytes` choose; `keys` are names that a change may add.
pub fn apply(mut value: Value, bytes: &[u8], keys: &[String]) -> Value {
    for change in bytes.chunks_exact(CHANGE).take(MOST) {
        let mut paths = Vec::new();
        paths_of(&value, String::new(), &mut paths);
        let which = usize::from(u16::from_le_bytes([change[0], change[1]]));
        let path = &paths[which % paths.len()];
        let absurd =
            |by: u8| serde_json::from_str(ABSURD[usize::from(by) % ABSURD.len()]).unwrap_or_default();
        let Some(place) = value.pointer_mut(path) else { continue };
        match change[2] % 8 {
            // A number near the one that stood there: what divided evenly no longer does.
            0 => {
                if let Some(number) = place.as_i64() {
                    let by = i64::from(change[3] as i8);
                    *place = json!(number.wrapping_add(by));
                }
            }
            1 => {
                if let Some(number) = place.as_f64() {
                    let by = f64::from(change[3] as i8) / 16.0;
                    *place = match place.is_f64() {
                        true => json!(number * by),
                        false => json!((number * by) as i64),
                    };
                }
            }
            2 => {
                if let Some((parent, key)) = path.rsplit_once('/') {
                    match value.pointer_mut(parent) {
                        Some(Value::Object(object)) => _ = object.remove(key),
                        Some(Value::Array(list)) => {
                            let at = key.parse().unwrap_or(0);
                            match change[3] % 2 {
                                0 => _ = list.remove(at),
                                _ => list.insert(at, list[at].clone()),
                            }
                        }
                        _ => {}
                    }
                }
            }
            // A key that another file has.
            3 => {
                if let (Value::Object(object), false) = (place, keys.is_empty()) {
                    let at = usize::from(u16::from_le_bytes([change[1], change[3]]));
                    object.insert(keys[at % keys.len()].clone(), absurd(change[3]));
                }
            }
            // The text of another value of the same file.
            4 => {
                let other = &paths[usize::from(change[3]) % paths.len()];
                let other = value.pointer(other).filter(|other| !other.is_object()).cloned();
                if let (Some(other), Some(place)) = (other, value.pointer_mut(path)) {
                    *place = other;
                }
            }
            _ => *place = absurd(change[3]),
        }
    }
    value
}

/// Changes that put each absurd value in the place of each value in turn, `count` of them spread over all.
pub fn samples(value: &Value, count: usize) -> Vec<Vec<u8>> {
    let mut paths = Vec::new();
    paths_of(value, String::new(), &mut paths);
    let step = (paths.len() * ABSURD.len() / count.max(1)).max(1);
    let all = (0..paths.len() * ABSURD.len()).step_by(step);
    all.map(|at| {
        let which = ((at / ABSURD.len()) as u16).to_le_bytes();
        vec![which[0], which[1], 7, (at % ABSURD.len()) as u8]
    })
    .collect()
}

/// Names of all keys in `value`.
pub fn keys_of(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                found.insert(key.clone());
                keys_of(value, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| keys_of(value, found)),
        _ => {}
    }
}

/// The paths of all values of `value`, itself last.
fn paths_of(value: &Value, path: String, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let key = key.replace('~', "~0").replace('/', "~1");
                paths_of(value, format!("{path}/{key}"), found);
            }
        }
        Value::Array(list) => {
            list.iter()
                .take(16)
                .enumerate()
                .for_each(|(i, value)| paths_of(value, format!("{path}/{i}"), found));
        }
        _ => {}
    }
    found.push(path);
}
