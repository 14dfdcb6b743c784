//! Orangery's application: the library of machines, the process that runs one, the command line and the windows.

pub mod cli;
#[cfg(feature = "gui")]
pub mod console;
pub mod control;
pub mod jobs;
pub mod library;
#[cfg(feature = "gui")]
pub mod manager;
pub mod session;
#[cfg(feature = "gui")]
pub mod theme;
