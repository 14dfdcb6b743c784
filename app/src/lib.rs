//! Orangery: a library of virtual machines, the processes that run them, their windows and the command line.

pub mod cli;
#[cfg(feature = "gui")]
pub mod console;
pub mod control;
pub mod library;
pub mod session;
#[cfg(feature = "gui")]
pub mod theme;
