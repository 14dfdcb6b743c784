//! The sizes and times that only the console has; all else is the theme's.

use std::time::Duration;

/// The toolbar's height, points.
pub const TOOLBAR: f32 = 40.0;
/// The status bar's height, points.
pub const STATUS: f32 = 26.0;
/// Below this width the toolbar's buttons lose their words, points.
pub const WIDE: f32 = 1120.0;
/// The keys' list's width, points.
pub const KEYS: f32 = 380.0;
/// The width of a menu's lines, points.
pub const MENU: f32 = 210.0;
/// What is told of something that takes time, points.
pub const SAVING: f32 = 440.0;
/// The column of the close dialog's buttons, points.
pub const CHOICE: f32 = 148.0;
/// What the keys' list's dialog needs beside the list, points.
pub const DIALOG_REST: f32 = 230.0;
/// The smallest window, points.
pub const WINDOW_MIN: (f64, f64) = (520.0, 260.0);
/// The guest's part of a fresh window while the guest shows nothing yet, physical pixels at a scale of 1.
pub const FIRST_MODE: (u32, u32) = (1280, 800);
/// The lines that a notch of the wheel scrolls the terminal.
pub const WHEEL_LINES: f64 = 3.0;
/// How much of the monitor a fresh window takes at most.
pub const MONITOR_PART: f64 = 0.9;

/// How long a message stays.
pub const NOTICE: Duration = Duration::from_secs(6);
/// How long the banner of the first capture stays.
pub const BANNER: Duration = Duration::from_secs(4);
/// How long the window of a machine that has stopped stays.
pub const FAREWELL: Duration = Duration::from_millis(700);
/// How long a window's size must stay the same before the guest is told.
pub const RESIZE_SETTLES: Duration = Duration::from_millis(250);
/// How long the pointer must rest on the upper edge in full screen before the toolbar comes.
pub const EDGE_REST: Duration = Duration::from_millis(350);
/// How long the toolbar in full screen stays after the pointer has left it.
pub const TOOLBAR_STAYS: Duration = Duration::from_millis(900);
