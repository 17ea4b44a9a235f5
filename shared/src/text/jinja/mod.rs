//! A Jinja interpreter for chat templates, with the settings of transformers and values that behave as Python's.
//!
//! Templates come with checkpoints and are not trusted, so each operation is charged to a budget before it runs:
//!
//! - The source is limited to [`SOURCE_BYTES`] and to a nesting depth of [`DEPTH`], blocks and brackets together.
//! - A rendering is limited to [`STEPS`] steps plus half a step per byte of its input. A step is an expression, an
//!   element of a new list or dict, or 32 bytes of text created or searched. Freed text is not refunded, so the memory
//!   of a rendering is bounded by 200 MB plus a few times its input.
//! - Values are nested at most [`DEPTH`] deep, calls and expressions at most [`FRAMES`] deep, on a stack of their own.
//!
//! Values are immutable, as in the `ImmutableSandboxedEnvironment` of transformers, except attributes of a `namespace`.

mod attributes;
mod clock;
mod filters;
mod format;
mod lexer;
mod methods;
mod parser;
mod render;
mod state;
mod value;

use std::sync::Arc;

/// Maximum size of a template in bytes; the longest released templates have about 20 thousand.
pub(super) const SOURCE_BYTES: usize = 1 << 20;
/// Maximum nesting depth of brackets and blocks, and of values.
pub(super) const DEPTH: usize = 100;
/// Maximum number of steps of a rendering; released templates need some thousands for a long conversation.
pub(super) const STEPS: u64 = 3_000_000;
/// Maximum call depth of expressions and statements.
const FRAMES: usize = 1500;
/// Stack size in bytes, sufficient for [`FRAMES`].
const STACK: usize = 64 << 20;

/// The cause of a template error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The template called `raise_exception`.
    Raised,
    /// An error of the template.
    Failed,
    /// A limit was exceeded.
    Limit,
}

/// An error in a template, with its line.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) cause: Cause,
    pub(super) message: String,
    /// From 1; 0 if unknown.
    pub(super) line: usize,
}

type Res<T> = std::result::Result<T, Fault>;

impl Fault {
    fn failed(message: impl Into<String>) -> Self {
        Self { cause: Cause::Failed, message: message.into(), line: 0 }
    }

    fn over_limit(message: impl Into<String>) -> Self {
        Self { cause: Cause::Limit, message: message.into(), line: 0 }
    }

    fn on(mut self, line: usize) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "{} (line {line})", self.message),
        }
    }
}

/// A parsed template.
#[derive(Debug, Clone)]
pub(super) struct Template {
    nodes: Arc<Vec<parser::Node>>,
}

impl Template {
    /// Parses `source`.
    pub(super) fn new(source: &str) -> Res<Self> {
        if source.len() > SOURCE_BYTES {
            return Err(Fault::failed(format!("it has {} bytes, the limit is {SOURCE_BYTES}", source.len())));
        }
        on_own_stack(|| parser::parse(source)).map(|nodes| Self { nodes: Arc::new(nodes) })
    }

    /// Renders the template with `variables` at the time `now`, in seconds since 1970.
    pub(super) fn render(&self, variables: &[(&str, serde_json::Value)], now: u64) -> Res<String> {
        on_own_stack(|| render::render(&self.nodes, variables, now))
    }
}

fn on_own_stack<T: Send>(work: impl FnOnce() -> Res<T> + Send) -> Res<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("template".into()).stack_size(STACK);
        let thread = thread
            .spawn_scoped(scope, work)
            .map_err(|e| Fault::failed(format!("cannot start a thread: {e}")))?;
        thread.join().unwrap_or_else(|_| Err(Fault::failed("internal error of the template renderer")))
    })
}

#[cfg(test)]
mod tests;
