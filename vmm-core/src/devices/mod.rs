//! The devices: one file or folder each. None imports another, KVM or the machine.

pub mod virtio_rng;
