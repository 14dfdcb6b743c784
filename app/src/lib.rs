//! Orangery.

#[cfg(feature = "gui")]
pub mod console;
pub mod control;
pub mod library;
pub mod session;
