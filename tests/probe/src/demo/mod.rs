//! demo
pub fn run(_m: &crate::machine::Machine) {}
