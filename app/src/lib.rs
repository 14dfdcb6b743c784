//! Orangery.

#[cfg(feature = "gui")]
pub mod console;
