//! Where long work reports how far it is. The library never prints: a program passes a [`Progress`] that shows what
//! it likes, or [`Silent`].

use std::ops::Deref;
use std::sync::Arc;

use crate::{Error, ErrorKind, Result};

/// What a total counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unit {
    /// Bytes of a file or a transfer.
    Bytes,
    /// Whole things: texts, tensors, files, steps.
    Items,
    /// Thousandths of a second of sound.
    Milliseconds,
}

/// A place to report to, shared by every piece of work of one program.
pub trait Progress: Send + Sync {
    /// Work on `what` begins, `total` units of it if that is known. Dropping the [`Task`] ends it.
    fn begin(&self, what: &str, unit: Unit, total: Option<u64>) -> Box<dyn Task>;

    /// Something worth saying once, that is no error: "the hub does not answer: using the copy of Tuesday".
    fn note(&self, message: &str) {
        let _ = message;
    }

    /// Whether the user wants the work to stop. Asked often; the work then ends with
    /// [`ErrorKind::Cancelled`].
    fn cancelled(&self) -> bool {
        false
    }
}

/// One piece of work under way. Dropped when it is done or given up.
pub trait Task: Send {
    /// `amount` more units are done.
    fn advance(&self, amount: u64);

    /// Shows `text` beside how far the task is: "loss 2.31".
    fn describe(&self, text: &str) {
        let _ = text;
    }

    /// `amount` units were done before this task began (a resumed download): they count towards the total and not
    /// towards the speed.
    fn skip(&self, amount: u64) {
        self.advance(amount);
    }
}

/// Shows nothing.
///
/// ```
/// use fauna_shared::progress::{Progress, Silent, Unit};
/// let task = Silent.begin("reading", Unit::Bytes, Some(10));
/// task.advance(10);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: Unit, _: Option<u64>) -> Box<dyn Task> {
        Box::new(Silent)
    }
}

impl Task for Silent {
    fn advance(&self, _: u64) {}
}

/// A [`Progress`] as a field of options: shared, and [`Silent`] by default. Two are always equal, since what they show
/// changes no result.
///
/// ```
/// use fauna_shared::progress::{Reporter, Unit};
/// let reporter = Reporter::default();
/// reporter.begin("reading", Unit::Items, None).advance(1);
/// assert!(reporter.check().is_ok());
/// ```
#[derive(Clone)]
pub struct Reporter(Arc<dyn Progress>);

impl Reporter {
    /// Reports to `progress`.
    pub fn new(progress: Arc<dyn Progress>) -> Self {
        Self(progress)
    }

    /// # Errors
    /// [`Cancelled`](ErrorKind::Cancelled) if the user wants the work to stop.
    pub fn check(&self) -> Result<()> {
        check(&**self)
    }
}

impl Default for Reporter {
    fn default() -> Self {
        Self(Arc::new(Silent))
    }
}

impl Deref for Reporter {
    type Target = dyn Progress;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reporter")
    }
}

impl PartialEq for Reporter {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// # Errors
/// [`Cancelled`](ErrorKind::Cancelled) if the user of `progress` wants the work to stop.
pub fn check(progress: &dyn Progress) -> Result<()> {
    match progress.cancelled() {
        true => Err(Error::new(ErrorKind::Cancelled, "cancelled")),
        false => Ok(()),
    }
}
