//! A stopping criterion for code completion: before the next top-level definition.

/// Prefixes of unindented lines that begin a definition, in the common programming languages.
const DEFINITIONS: [&str; 43] = [
    "abstract ",
    "async def ",
    "async fn ",
    "async function ",
    "class ",
    "const ",
    "def ",
    "defmodule ",
    "enum ",
    "export ",
    "extern ",
    "final ",
    "fn ",
    "fun ",
    "func ",
    "function ",
    "if __name__",
    "impl ",
    "impl<",
    "interface ",
    "internal ",
    "macro_rules!",
    "mod ",
    "module ",
    "namespace ",
    "object ",
    "private ",
    "protected ",
    "protocol ",
    "pub ",
    "pub(",
    "public ",
    "record ",
    "sealed ",
    "static ",
    "struct ",
    "template ",
    "template<",
    "trait ",
    "type ",
    "typedef ",
    "union ",
    "unsafe ",
];

/// Prefixes of unindented lines that belong to the following definition: comments, attributes, decorators.
const LEADS: [&str; 5] = ["#", "//", "/*", " *", "@"];

/// Stops code completion before the next top-level definition after the one begun by the prompt or by the model.
///
/// Blank lines, comments, attributes and decorators directly before that definition are removed with it. All other text
/// is returned as soon as it is certain to be part of the completion.
///
/// ```
/// use fauna_shared::text::DefinitionStop;
/// let mut definitions = DefinitionStop::after("def double(x):\n");
/// let (text, ended) = definitions.push("    return 2 * x\n\n\n# The other way.\ndef half(x):\n");
/// assert_eq!((text.as_str(), ended), ("    return 2 * x\n", true));
/// ```
#[derive(Debug, Clone)]
pub struct DefinitionStop {
    /// Whether the prompt or the model has begun a definition.
    begun: bool,
    /// Whether any text other than whitespace was returned.
    has_text: bool,
    /// Complete lines that belong to the line after them.
    held: String,
    /// The current line while it may still begin a definition; `None` once it cannot.
    line: Option<String>,
    ended: bool,
}

/// The classification of a possibly incomplete line.
#[derive(PartialEq)]
enum Line {
    Undecided,
    Definition,
    Lead,
    Other,
}

impl DefinitionStop {
    /// For the completion of `prompt`.
    pub fn after(prompt: &str) -> Self {
        let at_margin = prompt.is_empty() || prompt.ends_with('\n');
        Self {
            begun: prompt.lines().any(|line| kind(line, true) == Line::Definition),
            has_text: false,
            held: String::new(),
            line: at_margin.then(String::new),
            ended: false,
        }
    }

    /// Adds generated text. Returns the text that is certain to be part of the completion, and whether the completion
    /// has ended.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        let mut certain = String::new();
        for c in text.chars() {
            if self.ended {
                break;
            }
            match &mut self.line {
                None => certain.push(c),
                Some(line) => {
                    line.push(c);
                    self.decide(c == '\n', &mut certain);
                }
            }
            if c == '\n' && self.line.is_none() {
                self.line = Some(String::new());
            }
        }
        self.has_text |= !certain.trim().is_empty();
        (certain, self.ended)
    }

    /// Returns the text held back, at the end of generation.
    pub fn finish(&mut self) -> String {
        match self.ended {
            true => String::new(),
            false => std::mem::take(&mut self.held) + &self.line.take().unwrap_or_default(),
        }
    }

    /// Classifies the current line, which is complete if `whole`.
    fn decide(&mut self, whole: bool, certain: &mut String) {
        let Some(line) = &self.line else { return };
        match kind(line, whole) {
            Line::Undecided => {}
            Line::Lead if whole => {
                self.held.push_str(line);
                self.line = Some(String::new());
            }
            Line::Lead => {}
            Line::Definition if self.begun && (self.has_text || !certain.trim().is_empty()) => {
                self.ended = true
            }
            other => {
                self.begun |= other == Line::Definition;
                certain.push_str(&std::mem::take(&mut self.held));
                certain.push_str(line);
                self.line = None;
            }
        }
    }
}

/// Classifies `line`, which is complete if `whole`.
fn kind(line: &str, whole: bool) -> Line {
    if line.trim().is_empty() {
        return if whole { Line::Lead } else { Line::Undecided };
    }
    let begins = |starts: &[&str]| starts.iter().any(|start| line.starts_with(start));
    let may_begin = |starts: &[&str]| !whole && starts.iter().any(|start| start.starts_with(line));
    match () {
        () if begins(&DEFINITIONS) => Line::Definition,
        () if begins(&LEADS) => Line::Lead,
        () if may_begin(&DEFINITIONS) || may_begin(&LEADS) => Line::Undecided,
        () => Line::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The completion kept of `text` after `prompt`, pushed in pieces of `size` bytes.
    fn completion(prompt: &str, text: &str, size: usize) -> String {
        let mut definitions = DefinitionStop::after(prompt);
        let mut out = String::new();
        for piece in text.as_bytes().chunks(size) {
            let (certain, ended) = definitions.push(std::str::from_utf8(piece).unwrap());
            out += &certain;
            if ended {
                return out;
            }
        }
        out + &definitions.finish()
    }

    #[test]
    fn code_ends_before_the_next_definition_for_any_piece_size() {
        let body = "    if x:\n        return 1\n    return 2\n";
        for (prompt, text, kept) in [
            ("def f(x):\n", format!("{body}\n\ndef g(x):\n    pass\n"), body.to_string()),
            ("def f(x):\n", format!("{body}\n# Then.\n@cache\nclass G:\n"), body.to_string()),
            // The prompt ends within a line.
            ("def f(", "x):\n    return x\n\ndef".to_string(), "x):\n    return x\n\ndef".to_string()),
            ("def f(", "x):\n    return x\n\ndef g()".to_string(), "x):\n    return x\n".to_string()),
            ("fn f() {\n", "    1\n}\n\n/// Two.\n#[test]\nfn g() {}".to_string(), "    1\n}\n".to_string()),
            // A word with the prefix `def`, and a nested definition.
            (
                "def f():\n",
                "    def g():\n        pass\ndefault = 1\n".to_string(),
                "    def g():\n        pass\ndefault = 1\n".to_string(),
            ),
        ] {
            for size in [1, 2, 3, 7, 1000] {
                assert_eq!(completion(prompt, &text, size), kept, "{prompt:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn the_first_definition_after_a_comment_is_the_completion() {
        let text = "def f():\n    return 1\n\ndef g():\n    return 2\n";
        assert_eq!(completion("# Ones.\n", text, 3), "def f():\n    return 1\n");
        assert_eq!(completion("", text, 3), "def f():\n    return 1\n");
        // After a complete definition, the next one is the completion.
        let next = "\n# Two.\ndef g():\n    return 2\n\ndef h():\n";
        assert_eq!(completion("def f():\n    return 1\n", next, 2), "\n# Two.\ndef g():\n    return 2\n");
    }

    #[test]
    fn text_held_back_is_returned_if_no_definition_follows() {
        for text in ["    pass\n\n# The end.\n", "    pass\nde", "    pass\n   "] {
            assert_eq!(completion("def f():\n", text, 1), text);
        }
    }
}
