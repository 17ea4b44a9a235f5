//! Progress on standard error: bars where a person watches, nothing where a file does.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use fauna::progress::{Progress, Task, Unit};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::interrupt::Interrupt;

/// The progress bars of the program, and its messages between them.
pub struct Bars {
    bars: MultiProgress,
    quiet: bool,
    interrupt: Arc<Interrupt>,
}

impl Bars {
    /// Shows nothing but errors if `quiet`.
    pub fn new(quiet: bool, interrupt: Arc<Interrupt>) -> Self {
        let target = match quiet {
            true => ProgressDrawTarget::hidden(),
            false => ProgressDrawTarget::stderr(),
        };
        Self { bars: MultiProgress::with_draw_target(target), quiet, interrupt }
    }

    /// Says `message` on standard error, unless quiet.
    pub fn say(&self, message: &str) {
        if !self.quiet {
            self.complain(message);
        }
    }

    /// Says `message` on standard error.
    pub fn complain(&self, message: &str) {
        // Where standard error itself is closed or full no message can be written.
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
            (Unit::Items, true) => "{msg}  {wide_bar} {pos}/{len} {eta}",
            (Unit::Items, false) => "{msg}  {spinner} {pos}",
        };
        let seconds = |thousandths: u64, text: &mut dyn std::fmt::Write| {
            // Writing to a bar's text does not fail.
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
        let bar = self.bars.add(bar);
        bar.enable_steady_tick(Duration::from_millis(100));
        Box::new(Bar(bar))
    }

    fn note(&self, message: &str) {
        self.say(message);
    }

    fn cancelled(&self) -> bool {
        self.interrupt.requested()
    }
}

struct Bar(ProgressBar);

impl Task for Bar {
    fn advance(&self, amount: u64) {
        self.0.inc(amount);
    }

    fn skip(&self, amount: u64) {
        self.0.inc(amount);
        self.0.reset_eta();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
