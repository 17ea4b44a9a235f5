//! Progress on standard error: bars in a terminal, nothing if it is redirected.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use fauna::progress::{Progress, Task, Unit};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::interrupt::Interrupt;

/// Progress bars, and messages printed between them.
pub struct Bars {
    bars: MultiProgress,
    quiet: bool,
    interrupt: Arc<Interrupt>,
    /// Tasks whose bars are not shown yet.
    pending: Arc<Mutex<Vec<Weak<Bar>>>>,
}

impl Bars {
    /// Creates the bars; if `quiet`, only errors are shown.
    pub fn new(quiet: bool, interrupt: Arc<Interrupt>) -> Self {
        let target = match quiet {
            true => ProgressDrawTarget::hidden(),
            false => ProgressDrawTarget::stderr(),
        };
        Self { bars: MultiProgress::with_draw_target(target), quiet, interrupt, pending: Arc::default() }
    }

    /// Prints `message` to standard error, unless quiet.
    pub fn say(&self, message: &str) {
        if !self.quiet {
            self.complain(message);
        }
    }

    /// Prints `message` to standard error.
    pub fn complain(&self, message: &str) {
        // A write to standard error may fail if it is closed or full.
        self.bars.suspend(|| drop(writeln!(std::io::stderr(), "fauna: {message}")));
    }
}

impl Progress for Bars {
    fn begin(&self, what: &str, unit: Unit, total: Option<u64>) -> Box<dyn Task> {
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::new_spinner(),
        };
        let template = match (unit, total.is_some()) {
            (Unit::Bytes, true) => "{msg}  {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            (Unit::Bytes, false) => "{msg}  {spinner} {bytes} {bytes_per_sec}",
            (Unit::Milliseconds, true) => "{msg}  {wide_bar} {seconds}/{total_seconds} s {eta}",
            (Unit::Milliseconds, false) => "{msg}  {spinner} {seconds} s",
            (_, true) => "{msg}  {wide_bar} {pos}/{len} {eta}",
            (_, false) => "{msg}  {spinner} {pos}",
        };
        let seconds = |thousandths: u64, text: &mut dyn std::fmt::Write| {
            // Writing to a string does not fail.
            let _ = write!(text, "{:.1}", thousandths as f64 / 1e3);
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            let style = style
                .with_key("seconds", move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
                    seconds(state.pos(), text)
                })
                .with_key("total_seconds", move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
                    seconds(state.len().unwrap_or(0), text)
                });
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_string());
        let shown = AtomicBool::new(self.quiet);
        let bar = Arc::new(Bar { bar, bars: self.bars.clone(), begun: Instant::now(), shown });
        if !self.quiet {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.push(Arc::downgrade(&bar));
            if let [_] = pending[..] {
                let pending = self.pending.clone();
                std::thread::spawn(move || show_when_due(&pending));
            }
        }
        Box::new(Shown(bar))
    }

    fn note(&self, message: &str) {
        self.say(message);
    }

    fn cancelled(&self) -> bool {
        self.interrupt.requested()
    }
}

/// Delay before a bar is shown, so that short tasks do not flicker.
const UNSEEN: Duration = Duration::from_millis(500);

/// A task and its bar, which is shown after [`UNSEEN`].
struct Bar {
    bar: ProgressBar,
    bars: MultiProgress,
    begun: Instant,
    shown: AtomicBool,
}

impl Bar {
    fn show_if_due(&self) {
        if self.begun.elapsed() >= UNSEEN && !self.shown.swap(true, Ordering::Relaxed) {
            self.bars.add(self.bar.clone());
            self.bar.enable_steady_tick(Duration::from_millis(100));
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The handle of a task; the thread that shows delayed bars only has a [`Weak`] reference.
struct Shown(Arc<Bar>);

impl Task for Shown {
    fn advance(&self, amount: u64) {
        self.0.bar.inc(amount);
        self.0.show_if_due();
    }

    fn describe(&self, text: &str) {
        self.0.bar.set_message(text.to_string());
    }

    fn skip(&self, amount: u64) {
        self.0.bar.inc(amount);
        self.0.bar.reset_eta();
        self.0.show_if_due();
    }
}

/// Shows the bars of tasks that have not reported progress for [`UNSEEN`].
fn show_when_due(pending: &Mutex<Vec<Weak<Bar>>>) {
    loop {
        std::thread::sleep(UNSEEN / 5);
        let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.retain(|bar| {
            let Some(bar) = bar.upgrade() else { return false };
            bar.show_if_due();
            !bar.shown.load(Ordering::Relaxed)
        });
        if pending.is_empty() {
            return;
        }
    }
}
