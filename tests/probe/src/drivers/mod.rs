//! Drivers: what is used by tests, benchmarks and the demo alike.

pub mod ahci;
pub mod blk;
pub mod dispi;
pub mod fw_cfg;
pub mod gpu;
pub mod i8042;
pub mod input;
pub mod io_apic;
pub mod lapic;
pub mod nvme;
pub mod pci;
pub mod serial;
pub mod tpm;
pub mod virtio;
