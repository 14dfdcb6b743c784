//! How far work is, on a terminal.

use std::io::IsTerminal;

use super::verbs::Out;

/// How far work is, on a terminal; gone from there when it is over.
pub struct Progress {
    shown: bool,
    what: String,
    told: Option<u64>,
}

impl Progress {
    /// Work on a machine, not begun yet.
    pub fn new(out: Out, name: &str, doing: &str) -> Progress {
        let shown = !out.json && std::io::stderr().is_terminal();
        Progress { shown, what: format!("{name:?}: {doing}"), told: None }
    }

    /// Tells it. Always says to go on: Ctrl+C ends this program, and with it the work.
    pub fn tell(&mut self, done: u64, total: u64) -> bool {
        let percent = (done * 100).checked_div(total).unwrap_or(0).min(100);
        if self.shown && self.told != Some(percent) {
            eprint!("\r{}, {percent} % ", self.what);
            self.told = Some(percent);
        }
        true
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.told.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
