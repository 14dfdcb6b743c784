//! The process that runs a machine.

mod launch;

pub use launch::{Announcement, LaunchError, launch, launch_with};
