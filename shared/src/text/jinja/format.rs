//! Values as text: `str`, `repr`, JSON, `%` formatting and `str.format`.

use std::rc::Rc;

use super::state::{CallArguments, Renderer, too_deep};
use super::value::{Object, Value};
use super::{DEPTH, Fault, Res};

impl Renderer {
    /// `str(value)`; undefined values are empty.
    pub(super) fn shown(&mut self, value: &Value) -> Res<Rc<str>> {
        match value {
            Value::Str(text) => Ok(text.clone()),
            Value::Undefined(_) => Ok("".into()),
            other => {
                let mut out = String::new();
                self.repr(other, &mut out)?;
                Ok(out.into())
            }
        }
    }

    /// Appends `repr(value)` to `out`.
    pub(super) fn repr(&mut self, value: &Value, out: &mut String) -> Res<()> {
        self.charge(1)?;
        match value {
            Value::Undefined(_) => out.push_str("Undefined"),
            Value::None => out.push_str("None"),
            Value::Bool(value) => out.push_str(if *value { "True" } else { "False" }),
            Value::Int(value) => out.push_str(&value.to_string()),
            Value::Float(value) => out.push_str(&float(*value)),
            Value::Str(text) => {
                self.charge_times(text.len(), 2)?;
                quoted(text, out);
            }
            Value::List(items) => {
                out.push('[');
                self.repr_all(&items.items, out)?;
                out.push(']');
            }
            Value::Tuple(items) => {
                out.push('(');
                self.repr_all(&items.items, out)?;
                out.push_str(if items.items.len() == 1 { ",)" } else { ")" });
            }
            Value::Dict(entries) => {
                out.push('{');
                for (i, (key, value)) in entries.items.iter().enumerate() {
                    if i > 0 {
                        out.push_str(", ");
                    }
                    self.repr(key, out)?;
                    out.push_str(": ");
                    self.repr(value, out)?;
                }
                out.push('}');
            }
            Value::Object(object) => match &**object {
                Object::Joiner(..) | Object::Cycler(..) | Object::Function(_) | Object::Method(..) => {
                    out.push_str(&format!("<{}>", value.kind()));
                }
                Object::Macro { body, .. } => out.push_str(&format!("<Macro '{}'>", body.name)),
                Object::Loop(state) => {
                    let at = state.index.get() + 1;
                    out.push_str(&format!("<LoopContext {at}/{}>", state.items.items.len()));
                }
                Object::Namespace(_) => out.push_str("<Namespace>"),
            },
        }
        Ok(())
    }

    fn repr_all(&mut self, items: &[Value], out: &mut String) -> Res<()> {
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(", ");
            }
            self.repr(item, out)?;
        }
        Ok(())
    }

    /// The `tojson` filter: Python's `json.dumps` with the defaults of transformers.
    pub(super) fn json_of(&mut self, value: &Value, given: &CallArguments) -> Res<Value> {
        let indent = match given.get(1, "indent") {
            None | Some(Value::None) => None,
            Some(Value::Str(text)) => Some(text.to_string()),
            Some(other) => match other.int() {
                Some(width) => {
                    let width = usize::try_from(width).unwrap_or(0);
                    self.charge_text(width)?;
                    Some(" ".repeat(width))
                }
                None => return Err(Fault::failed("indent is neither a number nor a string")),
            },
        };
        let (mut comma, mut colon) =
            (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string());
        if let Some(separators @ (Value::List(_) | Value::Tuple(_))) = given.get(2, "separators") {
            match &self.iterate(separators)?[..] {
                [Value::Str(a), Value::Str(b)] => (comma, colon) = (a.to_string(), b.to_string()),
                _ => return Err(Fault::failed("separators are not two strings")),
            }
        }
        let style = Style {
            ascii: given.flag(0, "ensure_ascii"),
            indent,
            comma,
            colon,
            sorted: given.flag(3, "sort_keys"),
        };
        let mut out = String::new();
        self.json(value, &style, 0, &mut out)?;
        self.text(out)
    }

    fn json(&mut self, value: &Value, style: &Style, depth: usize, out: &mut String) -> Res<()> {
        self.charge(1)?;
        if depth > DEPTH {
            return Err(too_deep());
        }
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Int(value) => out.push_str(&value.to_string()),
            Value::Float(value) => out.push_str(&json_float(*value)),
            Value::Str(text) => {
                self.charge_times(text.len(), 2)?;
                json_string(text, style.ascii, out);
            }
            Value::List(items) | Value::Tuple(items) => {
                out.push('[');
                for (i, item) in items.items.iter().enumerate() {
                    self.json_gap(i, style, depth + 1, out)?;
                    self.json(item, style, depth + 1, out)?;
                }
                self.json_end(items.items.is_empty(), style, depth, out)?;
                out.push(']');
            }
            Value::Dict(entries) => {
                out.push('{');
                let mut items = entries.items.clone();
                self.charge(items.len() as u64)?;
                if style.sorted {
                    self.sort_by(&mut items, |item| &item.0)?;
                }
                for (i, (key, value)) in items.iter().enumerate() {
                    self.json_gap(i, style, depth + 1, out)?;
                    let key: Rc<str> = match key {
                        Value::Str(key) => key.clone(),
                        Value::None => "null".into(),
                        Value::Bool(value) => if *value { "true" } else { "false" }.into(),
                        Value::Int(value) => value.to_string().into(),
                        Value::Float(value) => json_float(*value).into(),
                        other => {
                            let message = "keys must be str, int, float, bool or None, not ";
                            return Err(Fault::failed(format!("{message}{}", other.kind())));
                        }
                    };
                    self.charge_times(key.len(), 2)?;
                    json_string(&key, style.ascii, out);
                    out.push_str(&style.colon);
                    self.json(value, style, depth + 1, out)?;
                }
                self.json_end(entries.items.is_empty(), style, depth, out)?;
                out.push('}');
            }
            Value::Undefined(what) => {
                return Err(Fault::failed(format!("Undefined is not JSON serializable: '{what}'")));
            }
            other => {
                return Err(Fault::failed(format!(
                    "Object of type {} is not JSON serializable",
                    other.kind()
                )));
            }
        }
        Ok(())
    }

    fn json_gap(&mut self, index: usize, style: &Style, depth: usize, out: &mut String) -> Res<()> {
        self.charge_text(style.comma.len() + style.colon.len())?;
        if index > 0 {
            out.push_str(&style.comma);
        }
        self.json_line(style, depth, out)
    }

    fn json_end(&mut self, empty: bool, style: &Style, depth: usize, out: &mut String) -> Res<()> {
        if empty { Ok(()) } else { self.json_line(style, depth, out) }
    }

    fn json_line(&mut self, style: &Style, depth: usize, out: &mut String) -> Res<()> {
        if let Some(indent) = &style.indent {
            self.charge_times(indent.len(), depth)?;
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
        Ok(())
    }
}

struct Style {
    ascii: bool,
    indent: Option<String>,
    comma: String,
    colon: String,
    sorted: bool,
}

/// `repr` of a float: the shortest digits that parse to the same value.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    let digits = format!("{value:e}");
    let (mantissa, exponent) = digits.split_once('e').unwrap_or((&digits, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{value}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

fn json_float(value: f64) -> String {
    match float(value).as_str() {
        "nan" => "NaN".into(),
        "inf" => "Infinity".into(),
        "-inf" => "-Infinity".into(),
        other => other.into(),
    }
}

fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() || (c.is_whitespace() && c != ' ') || unprintable(c) => match c as u32 {
                code @ ..0x100 => out.push_str(&format!("\\x{code:02x}")),
                code @ ..0x10000 => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Whether `repr` escapes a character that is neither a control character nor whitespace.
fn unprintable(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0001}'..='\u{10ffff}')
}

fn json_string(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c if ascii && (c as u32) >= 0x7f && c != '\u{7f}' => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A format specification, of `%` formatting or `str.format`.
#[derive(Default)]
struct Spec {
    fill: Option<char>,
    /// `<`, `>`, `^` or `=`.
    align: Option<char>,
    /// `+` or a space.
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    /// `,` or `_`.
    group: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

fn count(chars: &mut std::iter::Peekable<std::str::Chars>) -> Res<Option<usize>> {
    let mut number = None;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        chars.next();
        number = Some(number.unwrap_or(0) * 10 + digit as usize);
        if number > Some(100_000_000) {
            return Err(Fault::failed("Too many decimal digits in format string"));
        }
    }
    Ok(number)
}

/// `text % value`
pub(super) fn percent(renderer: &mut Renderer, text: &str, value: &Value) -> Res<String> {
    let values: Vec<Value> = match value {
        Value::Tuple(items) => items.items.clone(),
        other => vec![other.clone()],
    };
    renderer.charge(values.len() as u64)?;
    renderer.charge_text(text.len())?;
    let mut values = values.into_iter();
    let mut named = false;
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut chosen = None;
        if chars.next_if_eq(&'(').is_some() {
            let mut name = String::new();
            loop {
                match chars.next() {
                    Some(')') => break,
                    Some(c) => name.push(c),
                    None => return Err(Fault::failed("incomplete format key")),
                }
            }
            if !matches!(value, Value::Dict(_)) {
                return Err(Fault::failed("format requires a mapping"));
            }
            let found = renderer.item(value, &Value::str(&name))?;
            if found.is_undefined() {
                return Err(Fault::failed(format!("'{name}'")));
            }
            named = true;
            chosen = Some(found);
        }
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|c| "-+ #0".contains(*c)) {
            match flag {
                '-' => spec.align = Some('<'),
                '#' => spec.alternate = true,
                '0' => spec.zero = true,
                sign if spec.sign != Some('+') => spec.sign = Some(sign),
                _ => {}
            }
        }
        spec.width = count(&mut chars)?.unwrap_or(0);
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(count(&mut chars)?.unwrap_or(0));
        }
        chars.next_if(|c| "hlL".contains(*c));
        let kind = chars.next().ok_or_else(|| Fault::failed("incomplete format"))?;
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match chosen {
            Some(value) => value,
            None => values.next().ok_or_else(|| Fault::failed("not enough arguments for format string"))?,
        };
        spec.align = spec.align.or(Some('>'));
        let formatted = match kind {
            's' | 'r' | 'a' => {
                spec.zero = false;
                let mut text = String::new();
                match kind {
                    's' => text.push_str(&renderer.shown(&value)?),
                    _ => renderer.repr(&value, &mut text)?,
                }
                renderer.formatted_text(&text, &spec)?
            }
            'c' => match &value {
                Value::Str(text) if text.chars().count() == 1 => renderer.formatted_text(text, &spec)?,
                other => match other.int().and_then(|code| char::from_u32(u32::try_from(code).ok()?)) {
                    Some(c) => renderer.formatted_text(&c.to_string(), &spec)?,
                    None => return Err(Fault::failed("%c requires int or char")),
                },
            },
            'd' | 'i' | 'u' => {
                spec.kind = Some('d');
                spec.width = spec.width.max(spec.precision.take().unwrap_or(0));
                let whole = match &value {
                    Value::Float(value) if value.is_finite() && value.abs() < 9e18 => {
                        Some(value.trunc() as i64)
                    }
                    other => other.int(),
                };
                let Some(whole) = whole else {
                    let message = format!("%{kind} format: a real number is required, not {}", value.kind());
                    return Err(Fault::failed(message));
                };
                renderer.formatted_number(&Value::Int(whole), &spec)?
            }
            'x' | 'X' | 'o' => {
                spec.kind = Some(kind);
                renderer.formatted_number(&value, &spec)?
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                spec.kind = Some(kind);
                let Some(number) = value.number() else {
                    return Err(Fault::failed(format!("must be real number, not {}", value.kind())));
                };
                renderer.formatted_number(&Value::Float(number), &spec)?
            }
            other => return Err(Fault::failed(format!("unsupported format character '{other}'"))),
        };
        out.push_str(&formatted);
    }
    if !named && values.next().is_some() && !matches!(value, Value::Dict(_) | Value::List(_)) {
        return Err(Fault::failed("not all arguments converted during string formatting"));
    }
    Ok(out)
}

impl Renderer {
    fn padded(&mut self, text: &str, spec: &Spec, default: char) -> Res<String> {
        let length = text.chars().count();
        self.charge_times(text.len(), 2)?;
        self.charge_times(4, spec.width)?;
        let missing = spec.width.saturating_sub(length);
        let zero = spec.zero && spec.align.is_none_or(|align| align == '>' || align == '=');
        let fill = spec.fill.unwrap_or(if zero { '0' } else { ' ' });
        let align = match spec.align {
            Some('>') if zero && spec.fill.is_none() => '=',
            Some(align) => align,
            None if zero => '=',
            None => default,
        };
        let fill = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
        Ok(match align {
            '<' => text.to_string() + &fill(missing),
            '^' => fill(missing / 2) + text + &fill(missing - missing / 2),
            '=' => {
                let sign = text.len() - text.trim_start_matches(['-', '+', ' ']).len();
                text[..sign].to_string() + &fill(missing) + &text[sign..]
            }
            _ => fill(missing) + text,
        })
    }

    fn formatted_text(&mut self, text: &str, spec: &Spec) -> Res<String> {
        self.charge_text(text.len())?;
        let cut: String = match spec.precision {
            Some(precision) => text.chars().take(precision).collect(),
            None => text.to_string(),
        };
        self.padded(&cut, spec, '<')
    }

    fn formatted_number(&mut self, value: &Value, spec: &Spec) -> Res<String> {
        let kind = spec.kind.unwrap_or(if matches!(value, Value::Float(_)) { 'r' } else { 'd' });
        let bad = || {
            let message = format!("Unknown format code '{kind}' for object of type '{}'", value.kind());
            Err(Fault::failed(message))
        };
        // A float has at most 1074 digits after the decimal point, and Rust pads to at most 65,535.
        let precision = spec.precision.unwrap_or(6);
        if precision > 10_000 {
            return Err(Fault::failed("format precision above 10000"));
        }
        self.charge_text(precision + 400)?;
        let (negative, digits) = match (kind, value.int(), value.number()) {
            ('d' | 'n', Some(whole), _) => (whole < 0, whole.unsigned_abs().to_string()),
            ('x', Some(n), _) => {
                (n < 0, format!("{}{:x}", if spec.alternate { "0x" } else { "" }, n.unsigned_abs()))
            }
            ('X', Some(n), _) => {
                (n < 0, format!("{}{:X}", if spec.alternate { "0X" } else { "" }, n.unsigned_abs()))
            }
            ('o', Some(n), _) => {
                (n < 0, format!("{}{:o}", if spec.alternate { "0o" } else { "" }, n.unsigned_abs()))
            }
            ('b', Some(n), _) => {
                (n < 0, format!("{}{:b}", if spec.alternate { "0b" } else { "" }, n.unsigned_abs()))
            }
            ('c', Some(n), _) => match u32::try_from(n).ok().and_then(char::from_u32) {
                Some(c) => return self.padded(&c.to_string(), spec, '<'),
                None => return Err(Fault::failed("%c arg not in range")),
            },
            (_, _, None) => return bad(),
            (kind, _, Some(number)) => {
                let size = number.abs();
                let negative = number.is_sign_negative() && !number.is_nan();
                let text = match kind {
                    _ if !size.is_finite() => float(size),
                    'f' | 'F' => format!("{size:.precision$}"),
                    '%' => format!("{:.precision$}%", size * 100.0),
                    'e' | 'E' => scientific(size, precision),
                    'g' | 'G' | 'n' => general(size, precision, spec.alternate),
                    'r' if spec.precision.is_some() => {
                        let text = general(size, precision, false);
                        let whole = text.chars().all(|c| c.is_ascii_digit());
                        if whole { text + ".0" } else { text }
                    }
                    'r' => float(size),
                    _ => return bad(),
                };
                (negative, if kind.is_uppercase() { text.to_uppercase() } else { text })
            }
        };
        let digits = match spec.group {
            Some(mark) => {
                let whole = digits.bytes().take_while(u8::is_ascii_digit).count();
                let mut out = String::new();
                for (i, c) in digits[..whole].char_indices() {
                    if i > 0 && (whole - i).is_multiple_of(3) {
                        out.push(mark);
                    }
                    out.push(c);
                }
                out + &digits[whole..]
            }
            None => digits,
        };
        let sign = match (negative, spec.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(_)) => " ",
            (false, None) => "",
        };
        self.padded(&format!("{sign}{digits}"), spec, '>')
    }

    /// `text.format(*positional, **named)`
    pub(super) fn format_braces(&mut self, text: &str, given: &CallArguments) -> Res<String> {
        self.charge_text(text.len())?;
        let mut out = String::new();
        let mut automatic = 0;
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '{' if chars.next_if_eq(&'{').is_some() => out.push('{'),
                '}' if chars.next_if_eq(&'}').is_some() => out.push('}'),
                '}' => return Err(Fault::failed("Single '}' encountered in format string")),
                '{' => {
                    let mut field = String::new();
                    let mut open = 1;
                    for c in chars.by_ref() {
                        open = match c {
                            '{' => open + 1,
                            '}' => open - 1,
                            _ => open,
                        };
                        if open == 0 {
                            break;
                        }
                        field.push(c);
                    }
                    if open > 0 {
                        return Err(Fault::failed("expected '}' before end of string"));
                    }
                    let formatted = self.field(&field, given, &mut automatic)?;
                    self.charge_text(formatted.len())?;
                    out.push_str(&formatted);
                }
                c => out.push(c),
            }
        }
        Ok(out)
    }

    fn field(&mut self, field: &str, given: &CallArguments, automatic: &mut usize) -> Res<String> {
        let (name, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = name.split_once('!').unwrap_or((name, ""));
        let mut value = self.named_field(name, given, automatic)?;
        let spec = match spec.contains('{') {
            // Nested replacement fields, one level deep.
            true => {
                let mut out = String::new();
                let mut rest = spec;
                while let Some(at) = rest.find('{') {
                    let Some(end) = rest[at..].find('}') else { break };
                    let inner = self.named_field(&rest[at + 1..at + end], given, automatic)?;
                    out.push_str(&rest[..at]);
                    out.push_str(&self.shown(&inner)?);
                    self.charge_text(out.len())?;
                    rest = &rest[at + end + 1..];
                }
                out + rest
            }
            false => spec.to_string(),
        };
        match conversion {
            "" => {}
            "s" => value = Value::Str(self.shown(&value)?),
            "r" | "a" => {
                let mut out = String::new();
                self.repr(&value, &mut out)?;
                value = self.text(out)?;
            }
            other => return Err(Fault::failed(format!("Unknown conversion specifier '{other}'"))),
        }
        self.format_value(&value, &spec)
    }

    fn named_field(&mut self, name: &str, given: &CallArguments, automatic: &mut usize) -> Res<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let missing = || Fault::failed(format!("format string has no argument {name:?}"));
        let mut value = match first {
            "" => {
                *automatic += 1;
                given.positional.get(*automatic - 1).cloned().ok_or_else(missing)?
            }
            first => match first.parse::<usize>() {
                Ok(index) => given.positional.get(index).cloned().ok_or_else(missing)?,
                Err(_) => {
                    let found = given.named.iter().find(|(name, _)| **name == *first);
                    found.map(|(_, value)| value.clone()).ok_or_else(missing)?
                }
            },
        };
        while !rest.is_empty() {
            self.charge(1)?;
            if let Some(after) = rest.strip_prefix('[') {
                let Some((key, after)) = after.split_once(']') else { return Err(missing()) };
                let key = key.parse().map(Value::Int).unwrap_or_else(|_| Value::str(key));
                value = self.item(&value, &key)?;
                rest = after;
            } else {
                let after = rest.strip_prefix('.').unwrap_or(rest);
                let end = after.find(['.', '[']).unwrap_or(after.len());
                if end == 0 {
                    return Err(missing());
                }
                value = self.attribute(&value, &after[..end])?;
                rest = &after[end..];
            }
        }
        Ok(value)
    }

    /// `format(value, spec)`
    fn format_value(&mut self, value: &Value, text: &str) -> Res<String> {
        let mut spec = Spec::default();
        let mut chars = text.chars().peekable();
        let mut ahead = text.chars();
        match (ahead.next(), ahead.next()) {
            (Some(fill), Some(align @ ('<' | '>' | '^' | '='))) => {
                (spec.fill, spec.align) = (Some(fill), Some(align));
                chars.nth(1);
            }
            (Some(align @ ('<' | '>' | '^' | '=')), _) => {
                spec.align = Some(align);
                chars.next();
            }
            _ => {}
        }
        spec.sign = chars.next_if(|c| "+- ".contains(*c)).filter(|c| *c != '-');
        spec.alternate = chars.next_if_eq(&'#').is_some();
        spec.zero = chars.next_if_eq(&'0').is_some();
        spec.width = count(&mut chars)?.unwrap_or(0);
        spec.group = chars.next_if(|c| ",_".contains(*c));
        if chars.next_if_eq(&'.').is_some() {
            spec.precision =
                Some(count(&mut chars)?.ok_or_else(|| Fault::failed("Format specifier missing precision"))?);
        }
        spec.kind = chars.next();
        if chars.next().is_some() {
            return Err(Fault::failed(format!("Invalid format specifier '{text}'")));
        }
        match value {
            Value::Int(_) | Value::Float(_) => self.formatted_number(value, &spec),
            Value::Bool(_) if spec.kind.is_some() => self.formatted_number(value, &spec),
            Value::Str(text) if matches!(spec.kind, None | Some('s')) => self.formatted_text(text, &spec),
            Value::Bool(_) | Value::Undefined(_) | Value::Str(_) if spec.kind.is_none() => {
                let text = self.shown(value)?;
                self.formatted_text(&text, &spec)
            }
            other if text.is_empty() => Ok(self.shown(other)?.to_string()),
            other => {
                let message = format!("unsupported format string passed to {}.__format__", other.kind());
                Err(Fault::failed(message))
            }
        }
    }
}

fn scientific(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

fn general(value: f64, precision: usize, alternate: bool) -> String {
    let precision = precision.max(1);
    let text = scientific(value, precision - 1);
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let power: i32 = exponent.parse().unwrap_or(0);
    let bare = |text: &str| match alternate || !text.contains('.') {
        true => text.to_string(),
        false => text.trim_end_matches('0').trim_end_matches('.').to_string(),
    };
    if power < -4 || i64::from(power) >= precision as i64 {
        return format!("{}e{exponent}", bare(mantissa));
    }
    let after = (precision as i64 - 1 - i64::from(power)).max(0) as usize;
    bare(&format!("{value:.after$}"))
}
