//! How far work is, on a terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two words on it.
const PACE: Duration = Duration::from_millis(200);

/// A line on standard error, where that is a terminal; gone from there when the work is over.
pub struct Progress {
    shown: bool,
    next: Instant,
    told: bool,
}

impl Progress {
    /// Work that begins now. With `quiet`, nothing is shown.
    pub fn new(quiet: bool) -> Progress {
        Progress { shown: !quiet && std::io::stderr().is_terminal(), next: Instant::now() + PACE, told: false }
    }

    /// Says `text` of how much is done, per cent, some times a second.
    pub fn tell(&mut self, done: u64, total: u64, text: impl FnOnce(u64) -> String) {
        if self.shown && Instant::now() >= self.next {
            self.next = Instant::now() + PACE;
            let percent = (u128::from(done) * 100).checked_div(total.into()).unwrap_or(0).min(100) as u64;
            // A terminal that is gone has nobody at it.
            let _ = write!(std::io::stderr(), "\r{} ", text(percent));
            self.told = true;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.told {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
