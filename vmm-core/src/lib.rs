//! The virtual machine monitor: a q35-class PC on KVM, with the devices, the firmware's tables and the threads that run
//! it. It knows nothing of windows, wizards or the library of machines.

pub mod backend;
pub mod base;
pub mod boot;
pub mod checkpoint;
pub mod config;
pub mod devices;
pub mod hw;
pub mod kvm;
pub mod pci;
#[cfg(any(test, feature = "testkit"))]
#[allow(clippy::expect_used)]
pub mod testkit;
pub mod vcpu;
pub mod virtio;
pub mod vm;
