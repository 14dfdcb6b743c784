//! The virtqueue and the PCI transport against a hostile driver, with the simplest device behind them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orangery_fuzz::hostile_driver;
use vmm_core::devices::virtio_rng::Rng;

fuzz_target!(|data: &[u8]| hostile_driver(Rng::default(), Rng::default, data));
