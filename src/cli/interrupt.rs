//! Ctrl-C. By default it ends the program with status 130. While work that can stop cleanly is running, the first one
//! stops that work and only the second one ends the program.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use fauna::{CancellationToken, Error, ErrorKind, Result};

use super::output;

/// Whether Ctrl-C was pressed.
#[derive(Debug, Default)]
pub struct Interrupt {
    requested: AtomicBool,
    holders: AtomicUsize,
    /// Token of the running generation.
    token: Mutex<CancellationToken>,
}

impl Interrupt {
    /// Installs the Ctrl-C handler. Must be called once per process.
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

    /// While the returned guard lives, the first Ctrl-C only sets [`requested`](Interrupt::requested).
    pub fn hold(&self) -> Hold<'_> {
        self.holders.fetch_add(1, SeqCst);
        Hold(self)
    }

    /// Returns the token of a generation about to start, which Ctrl-C cancels, also during prefill.
    pub fn token(&self) -> CancellationToken {
        let token = CancellationToken::new();
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = token.clone();
        if self.requested() {
            token.cancel();
        }
        token
    }

    /// Returns whether Ctrl-C was pressed since [`clear`](Interrupt::clear).
    pub fn requested(&self) -> bool {
        self.requested.load(SeqCst)
    }

    /// Resets the state after a Ctrl-C was handled.
    pub fn clear(&self) {
        self.requested.store(false, SeqCst);
    }

    /// Returns the error of cancelled work if Ctrl-C was pressed.
    pub fn check(&self) -> Result<()> {
        match self.requested() {
            false => Ok(()),
            true => Err(Error::new(ErrorKind::Cancelled, "interrupted")),
        }
    }
}

/// Guard of [`Interrupt::hold`].
pub struct Hold<'a>(&'a Interrupt);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.holders.fetch_sub(1, SeqCst);
    }
}
