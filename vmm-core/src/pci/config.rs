//! A function's configuration space: 256 bytes, what of them the guest may write, and the BARs (PCI 3.0 §6).

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::base::StateError;

/// Offsets of the type 0 header (PCI 3.0 §6.1).
pub mod reg {
    /// Vendor id, u16.
    pub const VENDOR: usize = 0x00;
    /// Device id, u16.
    pub const DEVICE: usize = 0x02;
    /// Command, u16.
    pub const COMMAND: usize = 0x04;
    /// Status, u16.
    pub const STATUS: usize = 0x06;
    /// Revision, u8; the class code follows.
    pub const REVISION: usize = 0x08;
    /// Header type, u8.
    pub const HEADER_TYPE: usize = 0x0e;
    /// Six base address registers, u32 each.
    pub const BAR0: usize = 0x10;
    /// Subsystem vendor id, u16; the subsystem id follows.
    pub const SUBSYSTEM: usize = 0x2c;
    /// First capability, u8.
    pub const CAPABILITIES: usize = 0x34;
    /// Interrupt line, u8, for software only.
    pub const INTERRUPT_LINE: usize = 0x3c;
    /// Interrupt pin, u8: 1 is INTA#.
    pub const INTERRUPT_PIN: usize = 0x3d;
}

/// Capability ids (PCI 3.0 appendix H).
pub mod cap {
    /// Message-signalled interrupts.
    pub const MSI: u8 = 0x05;
    /// Vendor specific: virtio's.
    pub const VENDOR: u8 = 0x09;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
    /// SATA.
    pub const SATA: u8 = 0x12;
}

const COMMAND_IO: u16 = 1;
const COMMAND_MEMORY: u16 = 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const SIZE: usize = 256;

/// Locks a configuration space; a panic elsewhere does not make it unusable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a BAR maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Port I/O.
    Io,
    /// 32-bit memory.
    Memory,
    /// 32-bit memory without side effects of reads.
    Prefetchable,
}

#[derive(Debug, Clone, Copy)]
struct Bar {
    kind: BarKind,
    size: u32,
}

/// The fixed identity in a function's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass, programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor and id.
    pub subsystem: (u16, u16),
}

/// See the module.
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    reset: [u8; SIZE],
    writable: [u8; SIZE],
    clear_on_write: [u8; SIZE],
    bars: [Option<Bar>; 6],
    next_capability: usize,
    last_link: usize,
}

/// What a guest wrote into a configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    bytes: Vec<u8>,
}

impl ConfigSpace {
    /// A type 0 header with no BARs and no capabilities.
    pub fn new(identity: Identity) -> ConfigSpace {
        let Identity { vendor, device, revision, class: [class, subclass, interface], subsystem } = identity;
        let mut config = ConfigSpace {
            bytes: [0; SIZE],
            reset: [0; SIZE],
            writable: [0; SIZE],
            clear_on_write: [0; SIZE],
            bars: [None; 6],
            next_capability: 0x40,
            last_link: reg::CAPABILITIES,
        };
        config.set(reg::VENDOR, &vendor.to_le_bytes());
        config.set(reg::DEVICE, &device.to_le_bytes());
        config.set(reg::REVISION, &[revision, interface, subclass, class]);
        config.set(reg::SUBSYSTEM, &subsystem.0.to_le_bytes());
        config.set(reg::SUBSYSTEM + 2, &subsystem.1.to_le_bytes());
        // I/O, memory, bus master, SERR#, INTx disable; cache line size, latency timer, interrupt line.
        config.allow(reg::COMMAND, &[0x07, 0x05]);
        config.allow(0x0c, &[0xff, 0xff]);
        config.allow(reg::INTERRUPT_LINE, &[0xff]);
        config
    }

    /// Sets bytes as they are after reset.
    pub fn set(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
        self.reset[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Sets which bits the guest may write, from `offset` on.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// Adds a BAR. `size` is a power of two, at least 16 (4 for I/O).
    pub fn add_bar(&mut self, bar: usize, kind: BarKind, size: u32) {
        debug_assert!(size.is_power_of_two());
        self.bars[bar] = Some(Bar { kind, size });
        let (flags, fixed) = match kind {
            BarKind::Io => (1u32, 0x3),
            BarKind::Memory => (0, 0xf),
            BarKind::Prefetchable => (8, 0xf),
        };
        self.set(reg::BAR0 + 4 * bar, &flags.to_le_bytes());
        self.allow(reg::BAR0 + 4 * bar, &(!(size - 1) & !fixed).to_le_bytes());
    }

    /// A BAR's kind and size, if there is one.
    pub fn bar(&self, bar: usize) -> Option<(BarKind, u32)> {
        self.bars.get(bar).copied().flatten().map(|b| (b.kind, b.size))
    }

    /// Appends a capability: `body` follows its id and next bytes, `writable` says which bits of it the guest may
    /// write. Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_capability;
        self.set(self.last_link, &[at as u8]);
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.set(reg::STATUS, &[self.bytes[reg::STATUS] | STATUS_CAPABILITIES]);
        self.last_link = at + 1;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Has the function use INTA#.
    pub fn use_intx(&mut self) {
        self.set(reg::INTERRUPT_PIN, &[1]);
    }

    /// Reads; bytes beyond the space are ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset + i).copied().unwrap_or(0xff);
        }
    }

    /// Writes the bits that may be written.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (i, &byte) in data.iter().enumerate().take(SIZE.saturating_sub(offset)) {
            let at = offset + i;
            let mask = self.writable[at];
            self.bytes[at] = (self.bytes[at] & !mask) | (byte & mask);
            self.bytes[at] &= !(byte & self.clear_on_write[at]);
        }
    }

    /// A u32 at `offset`, which is inside.
    pub fn dword(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn command(&self) -> u16 {
        self.dword(reg::COMMAND) as u16
    }

    /// Whether the guest forbade INTx.
    pub fn intx_disabled(&self) -> bool {
        self.command() & COMMAND_INTX_DISABLE != 0
    }

    /// Shows in the status register whether the function asserts INTx.
    pub fn set_interrupt_status(&mut self, asserted: bool) {
        let status = &mut self.bytes[reg::STATUS];
        *status = if asserted { *status | STATUS_INTERRUPT } else { *status & !STATUS_INTERRUPT };
    }

    /// Where the guest sees a BAR: its kind, address and size; `None` while it is not decoded.
    pub fn bar_window(&self, bar: usize) -> Option<(BarKind, u64, u64)> {
        let Bar { kind, size } = self.bars[bar]?;
        let value = self.dword(reg::BAR0 + 4 * bar);
        let (enabled, address) = match kind {
            BarKind::Io => (self.command() & COMMAND_IO != 0, value & !0x3),
            BarKind::Memory | BarKind::Prefetchable => (self.command() & COMMAND_MEMORY != 0, value & !0xf),
        };
        (enabled && address != 0).then_some((kind, u64::from(address), u64::from(size)))
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        self.bytes = self.reset;
    }

    /// What a checkpoint keeps.
    pub fn save(&self) -> ConfigState {
        ConfigState { bytes: self.bytes.to_vec() }
    }

    /// Takes over what the guest had written. Read-only bytes must be those of this function.
    pub fn restore(&mut self, state: &ConfigState) -> Result<(), StateError> {
        let wrong = |why: String| Err(StateError::invalid("PCI configuration space", why));
        if state.bytes.len() != SIZE {
            return wrong(format!("it has {} bytes, not {SIZE}", state.bytes.len()));
        }
        for (at, &byte) in state.bytes.iter().enumerate() {
            let mut free = self.writable[at] | self.clear_on_write[at];
            if at == reg::STATUS {
                free |= STATUS_INTERRUPT;
            }
            if (byte ^ self.reset[at]) & !free != 0 {
                return wrong(format!("byte {at:#04x} is {byte:#04x} where this function has {:#04x}", self.reset[at]));
            }
        }
        self.bytes.copy_from_slice(&state.bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ConfigSpace {
        let identity =
            Identity { vendor: 0x1af4, device: 0x1042, revision: 1, class: [1, 0, 0], subsystem: (0x1af4, 0x1100) };
        let mut config = ConfigSpace::new(identity);
        config.add_bar(0, BarKind::Memory, 0x10000);
        config.add_bar(4, BarKind::Io, 0x20);
        config
    }

    #[test]
    fn sizing_a_bar_tells_its_size_and_kind() {
        let mut config = config();
        config.write(reg::BAR0, &[0xff; 4]);
        assert_eq!(config.dword(reg::BAR0), 0xffff_0000);
        config.write(reg::BAR0 + 16, &[0xff; 4]);
        assert_eq!(config.dword(reg::BAR0 + 16), 0xffff_ffe1);
        config.write(reg::BAR0 + 4, &[0xff; 4]);
        assert_eq!(config.dword(reg::BAR0 + 4), 0);
    }

    #[test]
    fn a_bar_is_seen_only_while_it_is_decoded() {
        let mut config = config();
        config.write(reg::BAR0, &0xc000_0000u32.to_le_bytes());
        assert_eq!(config.bar_window(0), None);
        config.write(reg::COMMAND, &[2, 0]);
        assert_eq!(config.bar_window(0), Some((BarKind::Memory, 0xc000_0000, 0x10000)));
        assert_eq!(config.bar_window(4), None);
    }

    #[test]
    fn capabilities_form_a_list_and_only_their_writable_bits_change() {
        let mut config = config();
        let first = config.add_capability(cap::VENDOR, &[1, 2, 3], &[0, 0xf0, 0]);
        let second = config.add_capability(cap::MSIX, &[9], &[]);
        let mut bytes = [0; 4];
        config.read(reg::CAPABILITIES, &mut bytes[..1]);
        assert_eq!(usize::from(bytes[0]), first);
        config.write(first, &[0xff; 5]);
        let mut seen = [0; 5];
        config.read(first, &mut seen);
        assert_eq!(seen, [cap::VENDOR, second as u8, 1, 0xf2, 3]);
    }

    #[test]
    fn a_saved_space_restores_into_the_same_function_only() {
        let mut config = config();
        config.write(reg::BAR0, &0xc000_0000u32.to_le_bytes());
        let state = config.save();
        let mut other = self::config();
        other.restore(&state).unwrap();
        assert_eq!(other.save(), state);
        let mut foreign = self::config();
        foreign.set(reg::DEVICE, &[0x41]);
        assert!(foreign.restore(&state).is_err());
        assert!(other.restore(&ConfigState { bytes: vec![0; 7] }).is_err());
    }
}
