//! Orangery.

#[cfg(feature = "gui")]
pub mod console;
pub mod library;
