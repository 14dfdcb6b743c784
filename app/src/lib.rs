//! Orangery.

#[cfg(feature = "gui")]
pub mod console;
pub mod library;
#[cfg(feature = "gui")]
pub mod manager;
#[cfg(feature = "gui")]
pub mod theme;
