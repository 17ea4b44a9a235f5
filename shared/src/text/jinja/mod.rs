//! The template language of chat templates: Jinja as transformers sets it up, over values with Python's behaviour.
//!
//! A template comes with a checkpoint and is not trusted, so everything it does is paid for before it is done:
//!
//! - a source has at most [`SOURCE_BYTES`] and is nested at most [`DEPTH`] deep, blocks and brackets together;
//! - a rendering takes at most [`STEPS`] steps and half a step more for each byte of its input. One step is an
//!   expression, a value that a list or map is made with, or 32 bytes of text that are made or looked through. Text
//!   that is given up is not paid back, so what a rendering holds at any time is below 200 MB and a few times its
//!   input;
//! - values are nested at most [`DEPTH`] deep, calls and expressions at most [`FRAMES`] together, on a stack of their
//!   own.
//!
//! Values cannot be changed once they are made (transformers' sandbox is the immutable one), save the attributes of a
//! `namespace`.

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

/// Bytes a template may have; the longest of releases has some 20 thousand.
pub(super) const SOURCE_BYTES: usize = 1 << 20;
/// How deep brackets, blocks and values may be nested.
pub(super) const DEPTH: usize = 100;
/// Steps a rendering may take; releases need some thousands for a long conversation.
pub(super) const STEPS: u64 = 3_000_000;
/// Expressions and statements under way at one time.
const FRAMES: usize = 1500;
/// Bytes of a stack that holds so many of them.
const STACK: usize = 64 << 20;

/// Why a template was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// By its own `raise_exception`.
    Refused,
    /// By an error.
    Failed,
    /// By a bound.
    Spent,
}

/// What went wrong in a template, and in which line.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) cause: Cause,
    pub(super) message: String,
    /// From 1; 0 if it is not known.
    pub(super) line: usize,
}

type Res<T> = std::result::Result<T, Fault>;

impl Fault {
    fn failed(message: impl Into<String>) -> Self {
        Self { cause: Cause::Failed, message: message.into(), line: 0 }
    }

    fn spent(message: impl Into<String>) -> Self {
        Self { cause: Cause::Spent, message: message.into(), line: 0 }
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

/// A template, parsed.
#[derive(Debug, Clone)]
pub(super) struct Template {
    nodes: Arc<Vec<parser::Node>>,
}

impl Template {
    /// Parses `source`.
    pub(super) fn new(source: &str) -> Res<Self> {
        if source.len() > SOURCE_BYTES {
            return Err(Fault::failed(format!("it has {} bytes, the bound is {SOURCE_BYTES}", source.len())));
        }
        on_own_stack(|| parser::parse(source)).map(|nodes| Self { nodes: Arc::new(nodes) })
    }

    /// The text for `variables` at the time `now`, seconds since 1970.
    pub(super) fn render(&self, variables: &[(&str, serde_json::Value)], now: u64) -> Res<String> {
        on_own_stack(|| render::render(&self.nodes, variables, now))
    }
}

fn on_own_stack<T: Send>(work: impl FnOnce() -> Res<T> + Send) -> Res<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("template".into()).stack_size(STACK);
        let thread =
            thread.spawn_scoped(scope, work).map_err(|e| Fault::failed(format!("no thread: {e}")))?;
        thread.join().unwrap_or_else(|_| Err(Fault::failed("the renderer met a case it does not know")))
    })
}

#[cfg(test)]
mod tests;
