//! Ctrl-C. By itself it ends the program with status 130; while something can stop in good order it asks that to stop,
//! and only the second one ends the program.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use fauna::{CancellationToken, Error, ErrorKind, Result};

use super::output;

/// Whether the user wants the work to stop.
#[derive(Debug, Default)]
pub struct Interrupt {
    requested: AtomicBool,
    holders: AtomicUsize,
    /// Of the generation under way.
    token: Mutex<CancellationToken>,
}

impl Interrupt {
    /// Listens for Ctrl-C from now on. Once a program.
    pub fn listen() -> Result<Arc<Self>> {
        let interrupt = Arc::new(Self::default());
        let heard = interrupt.clone();
        ctrlc::set_handler(move || {
            let again = heard.requested.swap(true, SeqCst);
            heard.token.lock().unwrap_or_else(PoisonError::into_inner).cancel();
            if again || heard.holders.load(SeqCst) == 0 {
                output::abandon();
                std::process::exit(130);
            }
        })
        .map_err(|e| Error::new(ErrorKind::Io, format!("cannot listen for Ctrl-C: {e}")).caused_by(e))?;
        Ok(interrupt)
    }

    /// While the result lives, the first Ctrl-C only sets [`requested`](Interrupt::requested).
    pub fn hold(&self) -> Hold<'_> {
        self.holders.fetch_add(1, SeqCst);
        Hold(self)
    }

    /// A token for a generation that now begins, which Ctrl-C cancels; it is heard while a long prompt is read.
    pub fn token(&self) -> CancellationToken {
        let token = CancellationToken::new();
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = token.clone();
        if self.requested() {
            token.cancel();
        }
        token
    }

    /// Whether Ctrl-C was pressed since [`clear`](Interrupt::clear).
    pub fn requested(&self) -> bool {
        self.requested.load(SeqCst)
    }

    /// Forgets a Ctrl-C that was acted on.
    pub fn clear(&self) {
        self.requested.store(false, SeqCst);
    }

    /// The error of work that stopped because of it.
    pub fn check(&self) -> Result<()> {
        match self.requested() {
            false => Ok(()),
            true => Err(Error::new(ErrorKind::Cancelled, "interrupted")),
        }
    }
}

/// See [`Interrupt::hold`].
pub struct Hold<'a>(&'a Interrupt);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.holders.fetch_sub(1, SeqCst);
    }
}
