//! A machine without a machine, for tests and fuzzing: fake interrupts and doorbells, and [`Guest`], a driver that
//! talks to a device through the real PCI transport, honestly or not.

mod conformance;
mod guest;
mod nvme;

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use conformance::*;
pub use guest::{Guest, Segments};
pub use nvme::{Completed, NvmeGuest, RAM as NVME_RAM, SHADOW as NVME_SHADOW};
use vmm_sys_util::eventfd::EventFd;

use crate::hw::{
    Doorbells, IrqLine, MemorySlots, MsiMessage, MsiRoute, MsiSink, SharedRegion, SlotId, SystemManagement,
};

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Collects the messages that devices send.
#[derive(Default, Clone)]
pub struct FakeMsi {
    sent: Arc<Mutex<Vec<MsiMessage>>>,
}

impl FakeMsi {
    /// What was sent since the last call.
    pub fn take(&self) -> Vec<MsiMessage> {
        std::mem::take(&mut lock(&self.sent))
    }
}

struct FakeRoute {
    sent: Arc<Mutex<Vec<MsiMessage>>>,
    message: Mutex<Option<MsiMessage>>,
}

impl MsiSink for FakeMsi {
    fn route(&self) -> io::Result<Arc<dyn MsiRoute>> {
        Ok(Arc::new(FakeRoute { sent: self.sent.clone(), message: Mutex::new(None) }))
    }
}

impl MsiRoute for FakeRoute {
    fn set(&self, message: MsiMessage) -> io::Result<()> {
        *lock(&self.message) = Some(message);
        Ok(())
    }

    fn trigger(&self) {
        if let Some(message) = *lock(&self.message) {
            lock(&self.sent).push(message);
        }
    }
}

/// An interrupt line that remembers its level.
#[derive(Default, Clone)]
pub struct FakeLine {
    level: Arc<Mutex<(bool, usize)>>,
}

impl FakeLine {
    /// Whether it is asserted.
    pub fn level(&self) -> bool {
        lock(&self.level).0
    }

    /// How often it rose.
    pub fn edges(&self) -> usize {
        lock(&self.level).1
    }
}

/// A machine with system management mode, which remembers what was asked of it.
#[derive(Default)]
pub struct FakeManagement {
    interrupts: AtomicUsize,
    hidden: AtomicU64,
}

impl FakeManagement {
    /// How often it was interrupted.
    pub fn interrupts(&self) -> usize {
        self.interrupts.load(Ordering::SeqCst)
    }

    /// How much RAM it hides, bytes.
    pub fn hidden(&self) -> u64 {
        self.hidden.load(Ordering::SeqCst)
    }
}

impl SystemManagement for FakeManagement {
    fn interrupt(&self) {
        self.interrupts.fetch_add(1, Ordering::SeqCst);
    }

    fn hide_ram(&self, len: u64) -> io::Result<()> {
        self.hidden.store(len, Ordering::SeqCst);
        Ok(())
    }
}

impl IrqLine for FakeLine {
    fn set(&self, level: bool) {
        let mut state = lock(&self.level);
        if level && !state.0 {
            state.1 += 1;
        }
        state.0 = level;
    }
}

/// Doorbells that never ring by themselves: every write takes the way through the register.
pub struct NoDoorbells;

impl Doorbells for NoDoorbells {
    fn register(&self, _: u64, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn unregister(&self, _: u64, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

const PAGE: u64 = 4096;

struct FakeSlot {
    address: u64,
    region: Arc<SharedRegion>,
    offset: u64,
    len: u64,
    readonly: bool,
    dirty: Vec<u64>,
}

/// Memory slots that a test writes through, as a guest would, with a dirty log.
#[derive(Default, Clone)]
pub struct FakeSlots {
    slots: Arc<Mutex<Vec<Option<FakeSlot>>>>,
}

impl FakeSlots {
    /// Writes where a slot shows memory; false where none does and a guest's access would exit.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let mut slots = lock(&self.slots);
        let end = address + data.len() as u64;
        let shows = |s: &&mut FakeSlot| !s.readonly && address >= s.address && end <= s.address + s.len;
        let Some(slot) = slots.iter_mut().flatten().find(shows) else {
            return false;
        };
        let at = address - slot.address;
        slot.region.slice((slot.offset + at) as usize, data.len()).expect("a slot inside its region").copy_from(data);
        for page in at / PAGE..=(at + data.len() as u64 - 1) / PAGE {
            slot.dirty[(page / 64) as usize] |= 1 << (page % 64);
        }
        true
    }

    /// Reads where a slot shows memory; false where none does and a guest's access would exit.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let slots = lock(&self.slots);
        let end = address + data.len() as u64;
        let Some(slot) = slots.iter().flatten().find(|s| address >= s.address && end <= s.address + s.len) else {
            return false;
        };
        let at = (slot.offset + address - slot.address) as usize;
        slot.region.slice(at, data.len()).expect("a slot inside its region").copy_to(data);
        true
    }

    /// Where memory is shown now: address and length of each slot.
    pub fn shown(&self) -> Vec<(u64, u64)> {
        lock(&self.slots).iter().flatten().map(|s| (s.address, s.len)).collect()
    }
}

impl FakeSlots {
    fn add(
        &self,
        address: u64,
        region: &Arc<SharedRegion>,
        offset: u64,
        len: u64,
        readonly: bool,
    ) -> io::Result<SlotId> {
        assert!(address.is_multiple_of(PAGE) && offset.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0);
        assert!(offset + len <= region.len() as u64, "a slot beyond its region");
        let mut slots = lock(&self.slots);
        let overlaps = |s: &FakeSlot| address < s.address + s.len && s.address < address + len;
        if slots.iter().flatten().any(overlaps) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let dirty = vec![0; (len / PAGE).div_ceil(64) as usize];
        slots.push(Some(FakeSlot { address, region: region.clone(), offset, len, readonly, dirty }));
        Ok(SlotId(slots.len() as u32 - 1))
    }
}

impl MemorySlots for FakeSlots {
    fn map(&self, address: u64, region: &Arc<SharedRegion>, offset: u64, len: u64) -> io::Result<SlotId> {
        self.add(address, region, offset, len, false)
    }

    fn map_readonly(&self, address: u64, region: &Arc<SharedRegion>, offset: u64, len: u64) -> io::Result<SlotId> {
        self.add(address, region, offset, len, true)
    }

    fn unmap(&self, slot: SlotId) -> io::Result<()> {
        lock(&self.slots)[slot.0 as usize].take().map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn take_dirty(&self, slot: SlotId) -> io::Result<Vec<u64>> {
        let mut slots = lock(&self.slots);
        let slot = slots[slot.0 as usize].as_mut().ok_or(io::ErrorKind::NotFound)?;
        let clean = vec![0; slot.dirty.len()];
        Ok(std::mem::replace(&mut slot.dirty, clean))
    }
}
