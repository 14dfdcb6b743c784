//! The devices: one file or folder each. None imports another, KVM or the machine.

pub mod ahci;
pub mod chipset;
pub mod legacy;
pub mod nvme;
pub mod tpm_crb;
pub mod vga;
pub mod virtio_balloon;
pub mod virtio_blk;
pub mod virtio_console;
pub mod virtio_gpu;
pub mod virtio_input;
pub mod virtio_net;
pub mod virtio_rng;
