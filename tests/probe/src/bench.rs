//! bench
pub fn run(_m: &crate::machine::Machine, _n: &str, _s: &mut crate::report::Summary) {}
