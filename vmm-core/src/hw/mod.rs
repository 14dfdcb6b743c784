//! Contracts between devices and the machine they are in: no device knows KVM, and no device knows another.

mod bus;
mod topology;

use std::io;
use std::sync::Arc;

pub use bus::{Bus, BusDevice, BusDeviceMut};
pub use topology::Topology;
use vmm_sys_util::eventfd::EventFd;

/// What a register access makes the machine do, beyond the device itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Reset the whole machine.
    Reset,
    /// Switch the machine off.
    PowerOff,
}

/// A level-triggered interrupt line.
pub trait IrqLine: Send + Sync {
    /// Drives the line. Setting the level that it has already is cheap.
    fn set(&self, level: bool);
}

/// A message-signalled interrupt as the device writes it (PCI 3.0 §6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where it is written.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// Where a device's message-signalled interrupts go.
pub trait MsiSink: Send + Sync {
    /// A route for one vector, with no message yet.
    fn route(&self) -> io::Result<Arc<dyn MsiRoute>>;
}

/// One vector's way to the guest.
pub trait MsiRoute: Send + Sync {
    /// Sets the message that a trigger sends.
    fn set(&self, message: MsiMessage) -> io::Result<()>;
    /// Sends it.
    fn trigger(&self);
}

/// Guest writes that arrive as an eventfd's signal, without a trip through the vCPU's thread.
pub trait Doorbells: Send + Sync {
    /// A write of any size and value at MMIO `address` rings `bell` from now on.
    fn register(&self, address: u64, bell: &EventFd) -> io::Result<()>;
    /// Undoes it.
    fn unregister(&self, address: u64, bell: &EventFd) -> io::Result<()>;
}

/// Host memory that a device shows to the guest as if it were RAM (a frame buffer) or ROM (flash).
pub trait MemorySlots: Send + Sync {
    /// Shows `len` bytes (whole pages) of `region` from `offset` on at guest address `address`.
    fn map(&self, address: u64, region: &Arc<SharedRegion>, offset: u64, len: u64) -> io::Result<SlotId>;
    /// The same for memory that the guest only reads: what it writes goes to the device on the bus. It has no dirty log.
    fn map_readonly(&self, address: u64, region: &Arc<SharedRegion>, offset: u64, len: u64) -> io::Result<SlotId>;
    /// Takes it away again.
    fn unmap(&self, slot: SlotId) -> io::Result<()>;
    /// The pages that the guest wrote since the last call, a bit each, least significant first.
    fn take_dirty(&self, slot: SlotId) -> io::Result<Vec<u64>>;
}

/// The machine's part of system management mode (Intel SDM volume 3, chapter 33), in which firmware runs unseen by the guest.
pub trait SystemManagement: Send + Sync {
    /// Raises the interrupt that leads there, on all CPUs. The CPU whose access asks for it takes it before its next
    /// instruction.
    fn interrupt(&self);
    /// Hides the last `len` bytes of RAM below 4 GiB from devices and from CPUs that are not in that mode: 0, or one of
    /// [`TSEG_SIZES`].
    fn hide_ram(&self, len: u64) -> io::Result<()>;
}

/// How much RAM firmware may have for system management mode, bytes: TSEG of the host bridge (Intel 3 Series Express Chipset,
/// "MCH", §5.1.30), by the values of its field. The last is QEMU's extension, found by [its register](TSEG_EXTENDED_MIB).
pub const TSEG_SIZES: [u64; 4] = [1 << 20, 2 << 20, 8 << 20, (TSEG_EXTENDED_MIB as u64) << 20];
/// What the host bridge's register for the extended size holds, MiB.
pub const TSEG_EXTENDED_MIB: u16 = 16;

/// Names a mapping of [`MemorySlots`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotId(pub u32);

/// Zeroed memory of this process that can be mapped into the guest.
pub struct SharedRegion {
    mapping: vm_memory::MmapRegion<()>,
}

impl SharedRegion {
    /// `len` bytes, a multiple of the page size.
    pub fn new(len: usize) -> io::Result<Arc<SharedRegion>> {
        let mapping = vm_memory::MmapRegion::new(len).map_err(io::Error::other)?;
        Ok(Arc::new(SharedRegion { mapping }))
    }

    /// Its size, bytes.
    pub fn len(&self) -> usize {
        self.mapping.size()
    }

    /// Never: there is no empty mapping.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it is in this process.
    pub fn host(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    /// `len` bytes from `offset` on, if they are inside. The guest may change them at any time.
    pub fn slice(&self, offset: usize, len: usize) -> Option<vm_memory::VolatileSlice<'_>> {
        vm_memory::VolatileMemory::get_slice(&self.mapping, offset, len).ok()
    }
}

/// Told when a guest misbehaved towards a device, when the host failed it, or that it can't go on until the host is
/// mended: (`disk 0`, what happened).
pub type ProblemSink = Arc<dyn Fn(&str, String) + Send + Sync>;
