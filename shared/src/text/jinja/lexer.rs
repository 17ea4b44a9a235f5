//! The lexer of templates, with `trim_blocks` and `lstrip_blocks` on.

use super::{Fault, Res};

/// One token of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// Text between tags.
    Data(String),
    /// `{{`
    Output,
    /// `}}`
    OutputEnd,
    /// `{%`
    Tag,
    /// `%}`
    TagEnd,
    Name(String),
    Str(String),
    Int(i64),
    Float(f64),
    Op(&'static str),
}

/// Longest first, so that `**` is not lexed as two `*`.
const OPERATORS: [&str; 27] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";", "!",
];

/// Splits `source` into tokens with their lines.
pub(super) fn tokens(source: &str) -> Res<Vec<(Token, usize)>> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    Lexer { source, at: 0, line: 1, line_starting: true, out: Vec::new() }.run()
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    /// Whether the position is at the beginning of a line.
    line_starting: bool,
    out: Vec<(Token, usize)>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn push(&mut self, token: Token) {
        self.out.push((token, self.line));
    }

    fn advance(&mut self, bytes: usize) {
        let passed = &self.source[self.at..self.at + bytes];
        self.line += passed.bytes().filter(|b| *b == b'\n').count();
        self.line_starting = passed.ends_with('\n');
        self.at += bytes;
    }

    fn fault<T>(&self, message: impl Into<String>) -> Res<T> {
        Err(Fault::failed(message).on(self.line))
    }

    fn run(mut self) -> Res<Vec<(Token, usize)>> {
        while self.at < self.source.len() {
            let rest = self.rest();
            let open = rest.match_indices('{').map(|(i, _)| i);
            let open =
                open.into_iter().find(|i| matches!(rest.as_bytes().get(i + 1), Some(b'{' | b'%' | b'#')));
            let Some(open) = open else {
                self.data(rest, false, false);
                self.advance(rest.len());
                break;
            };
            let kind = rest.as_bytes()[open + 1];
            let mark = rest.as_bytes().get(open + 2).copied();
            let (strip, keep) = (mark == Some(b'-'), mark == Some(b'+'));
            self.data(&rest[..open], strip, kind != b'{' && !keep);
            self.advance(open);
            self.advance(2 + usize::from(strip || (keep && kind != b'{')));
            match kind {
                b'#' => self.comment()?,
                b'%' if self.raw()? => {}
                b'%' => {
                    self.push(Token::Tag);
                    self.expression(false)?;
                }
                _ => {
                    self.push(Token::Output);
                    self.expression(true)?;
                }
            }
        }
        Ok(self.out)
    }

    /// Text before a tag: `strip` for a tag with `-`, `block` for one that strips the indentation before it.
    fn data(&mut self, text: &str, strip: bool, block: bool) {
        let mut kept = text;
        if strip {
            kept = text.trim_end();
        } else if block {
            let start = text.rfind('\n').map_or(0, |i| i + 1);
            if (start > 0 || self.line_starting) && text[start..].chars().all(char::is_whitespace) {
                kept = &text[..start];
            }
        }
        if !kept.is_empty() {
            self.push(Token::Data(kept.to_string()));
        }
    }

    /// Consumes the end of a tag; `-` strips all whitespace after it, else `trim` strips one newline.
    fn close(&mut self, mark: Option<u8>, width: usize, trim: bool) {
        self.advance(width);
        let rest = self.rest();
        match mark {
            Some(b'-') => {
                let blank = rest.len() - rest.trim_start().len();
                if blank > 0 {
                    self.advance(blank);
                }
            }
            Some(b'+') => {}
            _ if trim && rest.starts_with('\n') => self.advance(1),
            _ => {}
        }
    }

    fn comment(&mut self) -> Res<()> {
        let rest = self.rest();
        let Some(end) = rest.find("#}") else { return self.fault("unterminated comment") };
        let mark = rest.as_bytes()[..end].last().copied().filter(|c| matches!(c, b'-' | b'+'));
        self.advance(end);
        self.close(mark, 2, true);
        Ok(())
    }

    /// Text between `raw` and `endraw`; false if this is another tag.
    fn raw(&mut self) -> Res<bool> {
        let rest = self.rest();
        let Some(after) = rest.trim_start().strip_prefix("raw").map(str::trim_start) else {
            return Ok(false);
        };
        let (mark, after) = match after.strip_prefix('-') {
            Some(after) => (Some(b'-'), after),
            None => (None, after),
        };
        let Some(text) = after.strip_prefix("%}") else { return Ok(false) };
        let width = rest.len() - text.len();
        self.close(mark, width, false);
        let text = self.rest();
        let end = text.match_indices("{%").find_map(|(at, _)| {
            let inner = &text[at + 2..];
            let before = inner.as_bytes().first().copied().filter(|c| matches!(c, b'-' | b'+'));
            let inner = &inner[usize::from(before.is_some())..];
            let inner = inner.trim_start().strip_prefix("endraw")?.trim_start();
            let after = inner.as_bytes().first().copied().filter(|c| matches!(c, b'-' | b'+'));
            let inner = inner[usize::from(after.is_some())..].strip_prefix("%}")?;
            Some((at, before, after, text.len() - inner.len() - at))
        });
        let Some((at, before, after, width)) = end else { return self.fault("missing endraw") };
        self.data(&text[..at], before == Some(b'-'), before != Some(b'+'));
        self.advance(at);
        self.close(after, width, true);
        Ok(true)
    }

    /// The tokens of a tag.
    fn expression(&mut self, output: bool) -> Res<()> {
        let end = if output { "}}" } else { "%}" };
        let mut open: Vec<u8> = Vec::new();
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start().len();
            if blank > 0 {
                self.advance(blank);
                continue;
            }
            let Some(&first) = rest.as_bytes().first() else { return self.fault("unterminated tag") };
            if open.is_empty() {
                let mark = Some(first).filter(|c| *c == b'-' || (*c == b'+' && !output));
                if rest[usize::from(mark.is_some())..].starts_with(end) {
                    self.push(if output { Token::OutputEnd } else { Token::TagEnd });
                    self.close(mark, 2 + usize::from(mark.is_some()), !output);
                    return Ok(());
                }
            }
            match first {
                b'"' | b'\'' => self.string(first)?,
                b'0'..=b'9' => self.number()?,
                _ if rest.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                    let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                    self.push(Token::Name(rest[..length].to_string()));
                    self.advance(length);
                }
                _ => {
                    let Some(operator) = OPERATORS.into_iter().find(|op| rest.starts_with(op)) else {
                        let c = rest.chars().next().unwrap_or_default();
                        return self.fault(format!("unexpected character {c:?}"));
                    };
                    match operator {
                        "(" | "[" | "{" => open.push(first),
                        ")" | "]" | "}" => {
                            let opening = match first {
                                b')' => b'(',
                                b']' => b'[',
                                _ => b'{',
                            };
                            if open.pop() != Some(opening) {
                                return self.fault(format!("unexpected {operator:?}"));
                            }
                        }
                        _ => {}
                    }
                    self.push(Token::Op(operator));
                    self.advance(operator.len());
                }
            }
        }
    }

    fn number(&mut self) -> Res<()> {
        let rest = self.rest();
        let digits = |from: usize| {
            rest[from..].bytes().take_while(|b| b.is_ascii_digit() || *b == b'_').count() + from
        };
        for (prefix, base) in [("0x", 16), ("0o", 8), ("0b", 2)] {
            if rest.len() > 2 && rest.is_char_boundary(2) && rest[..2].eq_ignore_ascii_case(prefix) {
                let length =
                    rest[2..].bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count() + 2;
                let Ok(value) = i64::from_str_radix(&rest[2..length].replace('_', ""), base) else {
                    return self.fault(format!("{} does not fit in 64 bits", &rest[..length.min(40)]));
                };
                self.push(Token::Int(value));
                self.advance(length);
                return Ok(());
            }
        }
        let whole = digits(0);
        let mut length = whole;
        let bytes = rest.as_bytes();
        if bytes.get(length) == Some(&b'.') && bytes.get(length + 1).is_some_and(u8::is_ascii_digit) {
            length = digits(length + 1);
        }
        if matches!(bytes.get(length), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(length + 1), Some(b'+' | b'-')));
            if bytes.get(length + 1 + sign).is_some_and(u8::is_ascii_digit) {
                length = digits(length + 1 + sign);
            }
        }
        let text = rest[..length].replace('_', "");
        let token = match length == whole {
            true => text.parse().map(Token::Int).ok(),
            false => text.parse().map(Token::Float).ok(),
        };
        let Some(token) = token else { return self.fault("integer of more than 64 bits") };
        self.push(token);
        self.advance(length);
        Ok(())
    }

    fn string(&mut self, quote: u8) -> Res<()> {
        let rest = self.rest();
        let bytes = rest.as_bytes();
        let mut end = 1;
        while let Some(&byte) = bytes.get(end) {
            match byte {
                b'\\' => end += 2,
                byte if byte == quote => break,
                _ => end += 1,
            }
        }
        if bytes.get(end) != Some(&quote) {
            return self.fault("unterminated string");
        }
        let Some(text) = unescape(&rest[1..end]) else { return self.fault("invalid escape in a string") };
        self.push(Token::Str(text));
        self.advance(end + 1);
        Ok(())
    }
}

/// Resolves the escapes of a Python string literal; unknown escapes are kept. `None` if one is truncated or invalid.
fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let code = |chars: &mut std::iter::Peekable<std::str::Chars>, digits: usize| {
            let mut code = 0;
            for _ in 0..digits {
                code = code * 16 + chars.next()?.to_digit(16)?;
            }
            char::from_u32(code)
        };
        match chars.next()? {
            '\n' => {}
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\u{b}'),
            c @ ('\\' | '\'' | '"') => out.push(c),
            'x' => out.push(code(&mut chars, 2)?),
            'u' => out.push(code(&mut chars, 4)?),
            'U' => out.push(code(&mut chars, 8)?),
            c if c.is_digit(8) => {
                let mut value = c.to_digit(8)?;
                for _ in 0..2 {
                    let Some(digit) = chars.peek().and_then(|c| c.to_digit(8)) else { break };
                    value = value * 8 + digit;
                    chars.next();
                }
                out.push(char::from_u32(value)?);
            }
            other => out.extend(['\\', other]),
        }
    }
    Some(out)
}
