//! Patterns of module names: the Python regular expressions in the config of an adapter.

use fancy_regex::{Regex, RegexBuilder};

use crate::{Error, Result};

/// The longest pattern, in bytes.
const MAX_LENGTH: usize = 20_000;
/// Steps of backtracking for one name, which only patterns with lookaround or references to groups take.
const MAX_STEPS: usize = 50_000;
/// Size limit of a compiled pattern in bytes.
const MAX_SIZE: usize = 4 << 20;

/// A pattern of module names, compiled.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    source: String,
    matcher: Matcher,
}

#[derive(Debug, Clone)]
enum Matcher {
    /// A key of names and dots at the end of a module path, where a dot stands for any character.
    Tail,
    Regex(Regex),
}

impl Pattern {
    /// A pattern of the whole name: `re.fullmatch(source, name)`.
    pub fn whole(source: &str) -> Result<Self> {
        Self::compile(source, format!(r"\A(?:{source})\z"))
    }

    /// A pattern of the end of the name, after a dot: `re.match(r"(.*\.)?(SOURCE)$", name)`.
    pub fn tail(source: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if !source.is_empty() && source.chars().all(plain) {
            return Ok(Self { source: source.to_owned(), matcher: Matcher::Tail });
        }
        Self::compile(source, format!(r"\A(.*\.)?({source})$"))
    }

    /// A pattern of consecutive parts of the name: `re.match(r"(^|.*\.)SOURCE($|\..*)", name)`.
    pub fn within(source: &str) -> Result<Self> {
        Self::compile(source, format!(r"\A(?:(^|.*\.){source}($|\..*))"))
    }

    /// A list of modules by its name: [`layer`](Self::layer) is the number that follows it.
    pub fn list(source: &str) -> Result<Self> {
        Self::compile(source, format!(r"\A(?:(?:^|.*?\.){source}\.(?P<fauna_layer>[0-9]+)\.)"))
    }

    fn compile(source: &str, whole: String) -> Result<Self> {
        let refuse = |reason: String| Error::unsupported(format!("the pattern {}: {reason}", shown(source)));
        if source.len() > MAX_LENGTH {
            return Err(refuse(format!("{} bytes, at most {MAX_LENGTH} are allowed", source.len())));
        }
        if let Some(operator) = set_operator(source) {
            let reason = format!("{operator:?} between square brackets is read differently than by Python");
            return Err(refuse(reason).hint(format!("write \\{operator} for the characters themselves")));
        }
        let regex = RegexBuilder::new(&whole)
            .backtrack_limit(MAX_STEPS)
            .delegate_size_limit(MAX_SIZE)
            .delegate_dfa_size_limit(MAX_SIZE)
            .build()
            .map_err(|error| refuse(format!("not a regular expression: {error}")))?;
        Ok(Self { source: source.to_owned(), matcher: Matcher::Regex(regex) })
    }

    /// The pattern as it stands in the config.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the pattern matches `name`.
    pub fn matches(&self, name: &str) -> Result<bool> {
        match &self.matcher {
            Matcher::Tail => Ok(ends_with(name, &self.source)),
            Matcher::Regex(regex) => regex.is_match(name).map_err(|error| self.too_slow(name, error)),
        }
    }

    /// The number that follows the list in `name`; `None` if it does not match.
    pub fn layer(&self, name: &str) -> Result<Option<usize>> {
        let Matcher::Regex(regex) = &self.matcher else { return Ok(None) };
        let found = regex.captures(name).map_err(|error| self.too_slow(name, error))?;
        Ok(found.and_then(|groups| groups.name("fauna_layer")?.as_str().parse().ok()))
    }

    fn too_slow(&self, name: &str, error: fancy_regex::Error) -> Error {
        let pattern = shown(&self.source);
        Error::unsupported(format!("the pattern {pattern} takes too long on {name}: {error}"))
            .hint("write it with fewer nested repetitions")
    }
}

/// The start of a pattern, for messages.
fn shown(source: &str) -> String {
    match source.char_indices().nth(200) {
        Some((end, _)) => format!("{:?}…", &source[..end]),
        None => format!("{source:?}"),
    }
}

/// Whether `name` is `key` or ends with a dot and `key`, where a dot in `key` stands for any character.
fn ends_with(name: &str, key: &str) -> bool {
    let mut name = name.chars().rev();
    key.chars().rev().all(|k| name.next().is_some_and(|n| k == '.' || k == n))
        && matches!(name.next(), None | Some('.'))
}

/// What within a class of characters is an operator here and a character in Python.
fn set_operator(pattern: &str) -> Option<&'static str> {
    let bytes = pattern.as_bytes();
    let (mut at, mut class) = (0, None);
    while at < bytes.len() {
        match (bytes[at], class) {
            (b'\\', _) => at += 1,
            (b'[', None) => {
                let negated = usize::from(bytes.get(at + 1) == Some(&b'^'));
                class = Some(at + 1 + negated);
                at += negated;
            }
            (b']', Some(start)) if at > start => class = None,
            (b'[', Some(_)) => return Some("["),
            (_, Some(_)) => {
                for operator in ["&&", "--", "~~"] {
                    if bytes[at..].starts_with(operator.as_bytes()) {
                        return Some(operator);
                    }
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_matches_whole_parts_at_the_end_of_a_path() {
        // As Python's re.match(rf"(.*\.)?({key})$", name).
        for (key, name, expected) in [
            ("q_proj", "model.layers.0.q_proj", true),
            ("q_proj", "q_proj", true),
            ("q_proj", "model.layers.0.xq_proj", false),
            ("q_proj", "model.q_proj.inner", false),
            ("layers.0.q", "layersx0.q", true),
            ("layers.0.q", "model.layersx0.q", true),
            ("a.b", "b", false),
            ("^model.q", "model.q", true),
            ("^model.q", "x.model.q", false),
            ("(q|v)_proj", "a.v_proj", true),
            ("q|v", "a.v", true),
            ("q|v", "av", false),
            (r"layers\.[0-3]\..*", "model.layers.2.mlp.up", true),
            (r"(?!.*up).*proj", "mlp.up_proj", false),
            (r"(?!.*up).*proj", "mlp.down_proj", true),
            // Group 1 is what stands before the key.
            (r"\1x", "a.a.x", true),
            ("é_proj", "b.é_proj", true),
            (".._proj", "b.éz_proj", true),
        ] {
            assert_eq!(Pattern::tail(key).unwrap().matches(name).unwrap(), expected, "{key} {name}");
        }
    }

    #[test]
    fn plain_keys_match_as_their_regular_expression_does() {
        for key in ["q", "q_proj", "0.q", ".", "..", "a.q"] {
            let (fast, slow) = (Pattern::tail(key).unwrap(), Pattern::tail(&format!("(?:{key})")).unwrap());
            for name in ["", "q", "a.q", "a.b.q", "aq", "0.q", "x0.q", "a.0.q", ".q", "a.q_proj", "ab.q_proj"]
            {
                assert_eq!(fast.matches(name).unwrap(), slow.matches(name).unwrap(), "{key} {name}");
            }
        }
    }

    #[test]
    fn patterns_that_take_exponential_time_end_with_an_error() {
        let name = "a".repeat(60) + "!";
        for evil in [r"(?:(a+)+(?=$))", r"(?=(a+)+b)(a|aa)+b", r"((a*)*)*(?!a)b", r"(a|a)*\2b"] {
            let started = std::time::Instant::now();
            let outcome = Pattern::whole(evil).and_then(|pattern| pattern.matches(&name));
            assert!(matches!(outcome, Ok(false) | Err(_)), "{evil}");
            assert!(started.elapsed().as_secs() < 10, "{evil}");
        }
        assert!(Pattern::whole("(?:(?:a{1000}){1000}){1000}").is_err());
        assert!(Pattern::whole(&"(".repeat(5000)).is_err());
        assert!(Pattern::whole(&"a".repeat(MAX_LENGTH + 1)).is_err());
    }

    #[test]
    fn what_python_reads_otherwise_is_refused() {
        for bad in ["[a&&b]", "[[a]b]", "[a--b]", "[^a~~b]", "[[:alpha:]]", "(", "a**", "[z-a]"] {
            let error = Pattern::tail(bad).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
        for good in [r"[a\[b]", "[]a]", "[^]a]", "[a-z0-9_-]+", r"\[x\]"] {
            Pattern::tail(good).unwrap();
        }
    }

    #[test]
    fn the_layer_is_the_number_after_the_list() {
        for (list, name, layer) in [
            ("layers", "model.layers.12.mlp", Some(12)),
            ("layers", "layers.3.mlp", Some(3)),
            ("layers", "model.layers.1.experts.0.w", Some(1)),
            ("experts", "model.layers.1.experts.0.w", Some(0)),
            ("layers", "model.mylayers.3.mlp", None),
            ("layers", "model.layers.3", None),
            ("h|layers", "layers.3.mlp", Some(3)),
            ("h|layers", "model.layers.3.mlp", None),
        ] {
            assert_eq!(Pattern::list(list).unwrap().layer(name).unwrap(), layer, "{list} {name}");
        }
    }
}
