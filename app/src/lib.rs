//! Orangery.
#[cfg(feature = "gui")]
pub mod theme;
