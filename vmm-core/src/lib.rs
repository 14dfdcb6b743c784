//! The virtual machine monitor: a q35-class PC on KVM, with the devices, the firmware's tables and the threads that run
//! it. It knows nothing of windows, wizards or the library of machines.

pub mod backend;
pub mod config;
pub mod vm;
