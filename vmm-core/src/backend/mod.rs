//! The host side of the devices: each type is a value that a device gets from whoever builds the machine.

pub mod chardev;
pub mod disk;
pub mod display;
pub mod edid;
pub mod input;
pub mod monitor;
pub mod net;
pub mod nvram;
pub mod tpm;
