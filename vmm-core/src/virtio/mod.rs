//! virtio 1.2: what a device is, its queues, and the one transport (PCI) that all devices share.
//!
//! A device is a single-threaded state machine ([`Device`]); the framework's runner owns thread, queues and interrupts.

mod chain;
mod device;
mod queue;
mod runner;
mod transport;

pub use chain::{Chain, Reader, Writer};
pub use device::{ConfigBytes, ConfigSpace, Device, Fault, Info, Io, Role, Source};
pub use queue::{QUEUE_SIZE_MAX, Queue, QueueState};
pub use transport::{Face, Layout, TransportParts, TransportState, VirtioPci};

/// Device ids (virtio 1.2 §5).
pub mod id {
    /// Network card.
    pub const NET: u16 = 1;
    /// Block device.
    pub const BLOCK: u16 = 2;
    /// Console.
    pub const CONSOLE: u16 = 3;
    /// Entropy source.
    pub const ENTROPY: u16 = 4;
    /// Memory balloon.
    pub const BALLOON: u16 = 5;
    /// Graphics.
    pub const GPU: u16 = 16;
    /// Input.
    pub const INPUT: u16 = 18;
}

/// Feature bits that concern every device (virtio 1.2 §6).
pub mod feature {
    /// Indirect descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Notification thresholds instead of flags.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// The device is not a legacy one. Required of the driver.
    pub const VERSION_1: u64 = 1 << 32;
}
