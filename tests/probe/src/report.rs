//! Outcomes of tests and their lines on the serial port (docs/probe.md).

use crate::text::Text;
use core::fmt;

/// Why a test has no result to be glad of.
pub enum Failure {
    /// The machine has no such device.
    Absent,
    /// The device did something else than its specification says.
    Failed(Text),
}

/// What a test returns: details worth printing, or a failure.
pub type Outcome<T = Text> = Result<T, Failure>;

/// Fails with a formatted reason.
#[macro_export]
macro_rules! fail {
    ($($argument:tt)*) => { return Err($crate::report::Failure::Failed($crate::text!($($argument)*))) };
}

/// Fails with a formatted reason unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($argument:tt)*) => {
        if !$condition {
            $crate::fail!($($argument)*);
        }
    };
}

/// How a test ended, for the demo's panel.
#[derive(Clone, Copy)]
pub struct Line {
    /// The test's name, with the device's number from the second on.
    pub name: Text,
    /// Whether it went well; none if there is no such device.
    pub ok: Option<bool>,
    /// Details, or why not.
    pub details: Text,
}

/// Counts of all outcomes, and the lines of the tests.
pub struct Summary {
    ok: u32,
    failed: u32,
    absent: u32,
    lines: [Line; Summary::MOST],
    count: usize,
}

impl Summary {
    /// Lines that are kept.
    const MOST: usize = 40;

    /// Nothing yet.
    pub const fn new() -> Summary {
        let line = Line { name: Text::new(), ok: None, details: Text::new() };
        Summary { ok: 0, failed: 0, absent: 0, lines: [line; Summary::MOST], count: 0 }
    }

    /// The lines of the tests, in the order they ran.
    pub fn lines(&self) -> &[Line] {
        &self.lines[..self.count]
    }

    /// How many went well, failed, and had no device.
    pub fn counts(&self) -> (u32, u32, u32) {
        (self.ok, self.failed, self.absent)
    }

    /// Prints one test's line and counts it; `index` tells apart several devices of one kind.
    pub fn test(&mut self, name: &str, index: usize, outcome: &Outcome) {
        let name = if index == 0 { crate::text!("{name}") } else { crate::text!("{name}.{index}") };
        let (ok, details) = match outcome {
            Ok(details) => (Some(true), *details),
            Err(Failure::Failed(why)) => (Some(false), *why),
            Err(Failure::Absent) => (None, Text::new()),
        };
        if let Some(line) = self.lines.get_mut(self.count) {
            *line = Line { name, ok, details };
            self.count += 1;
        }
        match outcome {
            Ok(details) => {
                self.ok += 1;
                crate::println!("test {name}: ok {details}");
            }
            Err(Failure::Failed(why)) => {
                self.failed += 1;
                crate::println!("test {name}: FAIL {why}");
            }
            Err(Failure::Absent) => {
                self.absent += 1;
                crate::println!("test {name}: absent");
            }
        }
    }

    /// Prints one benchmark's line; one that could not run counts as a failed or absent test.
    pub fn bench(&mut self, name: &str, outcome: &Outcome) {
        match outcome {
            Ok(value) => crate::println!("bench {name}: {value}"),
            Err(Failure::Failed(why)) => {
                self.failed += 1;
                crate::println!("bench {name}: FAIL {why}");
            }
            Err(Failure::Absent) => {
                self.absent += 1;
                crate::println!("bench {name}: absent");
            }
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "ok={} failed={} absent={}", self.ok, self.failed, self.absent)
    }
}
