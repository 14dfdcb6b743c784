//! Icons, typefaces and the built-in demo guest.

pub mod fonts;

/// The probe guest (docs/probe.md): a PVH kernel, to be loaded as any `--kernel`.
pub static PROBE_ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe.elf"));
