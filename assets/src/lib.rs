//! Icons, typefaces and the built-in demo guest.

pub mod fonts;

/// The probe guest (docs/probe.md): a PVH kernel, to be loaded as any `--kernel`.
pub static PROBE_ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe.elf"));

/// The same program as a raw disk image that a BIOS starts. Its words are the second sector, text that ends in NUL:
/// `test=all`, unless they are written over. It may be made longer to give the tests room.
pub static PROBE_DISK: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe.img"));
