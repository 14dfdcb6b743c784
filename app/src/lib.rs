//! Orangery.

#[cfg(feature = "gui")]
pub mod console;
pub mod control;
pub mod library;
#[cfg(feature = "gui")]
pub mod manager;
pub mod session;
#[cfg(feature = "gui")]
pub mod theme;
