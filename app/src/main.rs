//! Orangery.
fn main() {}
