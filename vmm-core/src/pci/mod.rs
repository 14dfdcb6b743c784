//! PCI: configuration space, base address registers, MSI-X, and the host bridge's two ways in (PCI Local Bus 3.0, PCI
//! Express 1.1 §7.2.2). All functions sit on bus 0.

mod config;
mod msix;
mod root;

pub use config::{BarKind, ConfigSpace, ConfigState, Identity, cap, reg};
pub use msix::{Msix, MsixState};
pub use root::{ConfigPorts, Ecam, PciAddress, PciRoot};

use std::sync::Mutex;

use crate::hw::Action;

/// A function on the bus.
pub trait PciDevice: Send + Sync {
    /// Its configuration space.
    fn config(&self) -> &Mutex<ConfigSpace>;

    /// Reads configuration space; a function with registers of its own there overrides it.
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        config::lock(self.config()).read(offset, data);
    }

    /// Writes configuration space; a function with registers of its own there overrides it and calls this.
    fn write_config(&self, offset: usize, data: &[u8]) -> Option<Action> {
        config::lock(self.config()).write(offset, data);
        None
    }

    /// Reads from a BAR's window; `data` comes filled with ones.
    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]);

    /// Writes to a BAR's window.
    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) -> Option<Action>;

    /// The guest sees the BAR at `address` now, or nowhere. Called before anything at the new place is routed here.
    fn bar_moved(&self, _bar: usize, _address: Option<u64>) {}
}
