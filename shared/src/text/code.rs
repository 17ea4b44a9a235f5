//! Where a piece of code ends: before the next top-level definition.

/// What a line at the margin begins with if it defines something, in the languages that models of code know best.
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

/// What a line at the margin begins with if it belongs to the definition after it: comments, attributes, decorators.
const LEADS: [&str; 5] = ["#", "//", "/*", " *", "@"];

/// Ends code before the next top-level definition, after the one that the prompt or the model has begun.
///
/// Blank lines, comments, attributes and decorators right before that definition are left out with it; everything else
/// is handed on as soon as it is certain.
///
/// ```
/// use fauna_shared::text::Definitions;
/// let mut definitions = Definitions::after("def double(x):\n");
/// let (text, ended) = definitions.push("    return 2 * x\n\n\n# The other way.\ndef half(x):\n");
/// assert_eq!((text.as_str(), ended), ("    return 2 * x\n", true));
/// ```
#[derive(Debug, Clone)]
pub struct Definitions {
    /// Whether a definition was begun, by the prompt or by the model.
    begun: bool,
    /// Whether anything but blank was handed on.
    spoken: bool,
    /// Whole lines that go with whatever comes after them.
    held: String,
    /// The line that is being written, while it may still be a definition; none once it is known to be none.
    line: Option<String>,
    ended: bool,
}

/// What a line is, as far as it is there.
#[derive(PartialEq)]
enum Line {
    Undecided,
    Definition,
    Lead,
    Other,
}

impl Definitions {
    /// For what continues `prompt`.
    pub fn after(prompt: &str) -> Self {
        let at_margin = prompt.is_empty() || prompt.ends_with('\n');
        Self {
            begun: prompt.lines().any(|line| kind(line, true) == Line::Definition),
            spoken: false,
            held: String::new(),
            line: at_margin.then(String::new),
            ended: false,
        }
    }

    /// What is certain now that `text` has come, and whether the code has ended: nothing that follows belongs to it.
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
        self.spoken |= !certain.trim().is_empty();
        (certain, self.ended)
    }

    /// What was held back, now that nothing comes any more.
    pub fn finish(&mut self) -> String {
        match self.ended {
            true => String::new(),
            false => std::mem::take(&mut self.held) + &self.line.take().unwrap_or_default(),
        }
    }

    /// Looks at the line that is being written, which is whole if `whole`.
    fn decide(&mut self, whole: bool, certain: &mut String) {
        let Some(line) = &self.line else { return };
        match kind(line, whole) {
            Line::Undecided => {}
            Line::Lead if whole => {
                self.held.push_str(line);
                self.line = Some(String::new());
            }
            Line::Lead => {}
            Line::Definition if self.begun && (self.spoken || !certain.trim().is_empty()) => {
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

/// What `line` is; all of it is there if `whole`.
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

    /// What is left of `text` after `prompt`, handed on in pieces of `size` bytes.
    fn left(prompt: &str, text: &str, size: usize) -> String {
        let mut definitions = Definitions::after(prompt);
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
    fn code_ends_before_the_next_definition_however_it_comes() {
        let body = "    if x:\n        return 1\n    return 2\n";
        for (prompt, text, kept) in [
            ("def f(x):\n", format!("{body}\n\ndef g(x):\n    pass\n"), body.to_string()),
            ("def f(x):\n", format!("{body}\n# Then.\n@cache\nclass G:\n"), body.to_string()),
            // The line that the prompt began goes on.
            ("def f(", "x):\n    return x\n\ndef".to_string(), "x):\n    return x\n\ndef".to_string()),
            ("def f(", "x):\n    return x\n\ndef g()".to_string(), "x):\n    return x\n".to_string()),
            ("fn f() {\n", "    1\n}\n\n/// Two.\n#[test]\nfn g() {}".to_string(), "    1\n}\n".to_string()),
            // A definition of another word, and one inside another.
            (
                "def f():\n",
                "    def g():\n        pass\ndefault = 1\n".to_string(),
                "    def g():\n        pass\ndefault = 1\n".to_string(),
            ),
        ] {
            for size in [1, 2, 3, 7, 1000] {
                assert_eq!(left(prompt, &text, size), kept, "{prompt:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn the_first_definition_after_a_comment_is_the_answer() {
        let text = "def f():\n    return 1\n\ndef g():\n    return 2\n";
        assert_eq!(left("# Ones.\n", text, 3), "def f():\n    return 1\n");
        assert_eq!(left("", text, 3), "def f():\n    return 1\n");
        // After a definition too, if nothing but the next one comes.
        let next = "\n# Two.\ndef g():\n    return 2\n\ndef h():\n";
        assert_eq!(left("def f():\n    return 1\n", next, 2), "\n# Two.\ndef g():\n    return 2\n");
    }

    #[test]
    fn what_was_held_back_is_text_if_no_definition_comes() {
        for text in ["    pass\n\n# The end.\n", "    pass\nde", "    pass\n   "] {
            assert_eq!(left("def f():\n", text, 1), text);
        }
    }
}
