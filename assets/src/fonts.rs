//! The typefaces of the windows. Inter, under the SIL Open Font License 1.1: `assets/fonts/OFL.txt`.

/// Text.
pub const INTER_REGULAR: &[u8] = include_bytes!("../fonts/Inter-Regular.otf");
/// Headings and what is selected.
pub const INTER_SEMIBOLD: &[u8] = include_bytes!("../fonts/Inter-SemiBold.otf");
