//! Interrupts what Orangery does to files, at every system call that changes any, and looks at what is left (docs/testing.md).

mod filter;
mod order;
mod proof;
mod state;
mod tracer;

pub use proof::{Operation, Report, Stage, THOROUGH, prove, stride, write};
pub use state::{State, look};
pub use tracer::{Act, Call, Outcome, Plan, run};
