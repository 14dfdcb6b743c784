//! Orangery.

#[cfg(feature = "gui")]
pub mod console;
#[cfg(feature = "gui")]
pub mod theme;
