//! Icons and the built-in demo guest.
