//! When the window is drawn: at most so many times a second, and never when nothing changed.

use std::time::{Duration, Instant};

/// How often a window is drawn at most when the CPU does it.
pub const SOFTWARE_RATE: f64 = 30.0;

/// Decides when to draw.
#[derive(Debug)]
pub struct Pace {
    interval: Duration,
    last: Option<Instant>,
    wanted: bool,
}

impl Pace {
    /// At most `rate` drawings a second.
    pub fn new(rate: f64) -> Pace {
        Pace { interval: Duration::from_secs_f64(1.0 / rate.max(1.0)), last: None, wanted: false }
    }

    /// There is something new to see.
    pub fn want(&mut self) {
        self.wanted = true;
    }

    /// There is something new to see that must not wait, like the window's new size.
    pub fn want_now(&mut self) {
        self.wanted = true;
        self.last = None;
    }

    /// When to draw next: a time that may have passed, or never.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        self.wanted.then(|| self.last.map_or(now, |last| last + self.interval))
    }

    /// The window is being drawn.
    pub fn drawn(&mut self, now: Instant) {
        self.wanted = false;
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_new_is_never_due() {
        let now = Instant::now();
        let mut pace = Pace::new(30.0);
        assert_eq!(pace.due(now), None);
        pace.want();
        pace.drawn(now);
        assert_eq!(pace.due(now), None);
    }

    #[test]
    fn news_after_a_drawing_wait_for_the_interval() {
        let now = Instant::now();
        let mut pace = Pace::new(20.0);
        pace.want();
        assert_eq!(pace.due(now), Some(now));
        pace.drawn(now);
        pace.want();
        assert_eq!(pace.due(now), Some(now + Duration::from_millis(50)));
        pace.want_now();
        assert_eq!(pace.due(now), Some(now));
    }
}
