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

/// Counts of all outcomes, and the last results by name for the demo's panel.
#[derive(Default)]
pub struct Summary {
    ok: u32,
    failed: u32,
    absent: u32,
}

impl Summary {
    /// Prints one test's line and counts it; `index` tells apart several devices of one kind.
    pub fn test(&mut self, name: &str, index: usize, outcome: &Outcome) {
        let name = if index == 0 { crate::text!("{name}") } else { crate::text!("{name}.{index}") };
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
