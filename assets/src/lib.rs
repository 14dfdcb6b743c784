//! Icons, typefaces and the built-in demo guest.

pub mod fonts;
