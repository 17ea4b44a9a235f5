//! Cancellation from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Result;
use crate::progress::{self, Progress, Silent, Task, Unit};

/// A cancellation token. Clones share their state: a server keeps one, and the generation has the other.
///
/// It is checked between the layers of a language model during prefill, and before each new token.
///
/// ```
/// use fauna_shared::generate::{CancellationToken, GenerationConfig};
/// let config = GenerationConfig { cancel: CancellationToken::new(), ..GenerationConfig::default() };
/// let elsewhere = config.cancel.clone();
/// elsewhere.cancel();
/// assert!(config.cancel.is_cancelled());
/// ```
#[derive(Debug, Clone, Default)]
pub struct CancellationToken(Arc<AtomicBool>);

impl CancellationToken {
    /// Creates a token that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels the work that uses this token. This cannot be undone.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns an error if the token is cancelled.
    ///
    /// # Errors
    /// [`Cancelled`](crate::ErrorKind::Cancelled) if [`cancel`](Self::cancel) was called.
    pub fn check(&self) -> Result<()> {
        progress::check(self)
    }
}

/// What takes a [`Progress`] can be cancelled by a token, and shows nothing.
///
/// ```
/// use std::sync::Arc;
/// use fauna_shared::{generate::CancellationToken, progress::Reporter, zoo::LoadOptions};
/// let token = CancellationToken::new();
/// let options = LoadOptions { progress: Reporter::new(Arc::new(token.clone())), ..LoadOptions::default() };
/// token.cancel();
/// assert!(options.progress.check().is_err());
/// ```
impl Progress for CancellationToken {
    fn begin(&self, _: &str, _: Unit, _: Option<u64>) -> Box<dyn Task> {
        Box::new(Silent)
    }

    fn cancelled(&self) -> bool {
        self.is_cancelled()
    }
}

/// Tokens are ignored when configs are compared.
impl PartialEq for CancellationToken {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
