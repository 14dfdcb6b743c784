//! What a checkpoint says of itself. JSON, so that any version can say why it refuses another's.

use serde::{Deserialize, Serialize};

use crate::config::VmConfig;

/// The format that is written. It counts up when an older program could not use what is new.
pub const FORMAT: u32 = 1;

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The version of the program that wrote it.
    pub program: String,
    /// The machine, as it was built.
    pub config: VmConfig,
    /// RAM.
    pub memory: MemoryTable,
    /// What `state` has, in order.
    pub sections: Vec<SectionEntry>,
}

/// What `pages` has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryTable {
    /// RAM, bytes.
    pub size: u64,
    /// The checkpoints whose `memory` has pages, by their number in `pages`.
    pub layers: Vec<String>,
    /// Runs of pages.
    pub runs: u64,
    /// CRC-32 of `pages`.
    pub checksum: u32,
}

/// One section of `state`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectionEntry {
    /// Whose it is.
    pub name: String,
    /// The version of its contents.
    pub version: u32,
    /// Bytes.
    pub length: u64,
    /// CRC-32.
    pub checksum: u32,
}

/// The part that every format has.
#[derive(Deserialize)]
pub(super) struct Format {
    pub format: u32,
}
