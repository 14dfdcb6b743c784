//! Memory slots (KVM_SET_USER_MEMORY_REGION): what of this process the guest sees as memory, and where.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use crate::hw::{SharedRegion, SlotId};

/// How the guest may use a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Freely.
    Ram,
    /// Freely; the pages it writes are noted.
    Logged,
    /// Writes exit.
    Rom,
}

/// The address space that CPUs are in, and that of system management mode (KVM_CAP_MULTI_ADDRESS_SPACE).
const NORMAL: u32 = 0;
const SMM: u32 = 1;
/// Where a slot's number has its address space's.
const SPACE_SHIFT: u32 = 16;

pub(super) struct Slots {
    vm: Arc<VmFd>,
    /// With system management mode there are two.
    spaces: std::ops::Range<u32>,
    used: Mutex<HashMap<u32, Slot>>,
}

struct Slot {
    address: u64,
    host: u64,
    len: u64,
    kind: Kind,
    /// Only system management mode sees it now.
    hidden: bool,
    /// Keeps the memory mapped; RAM is kept by the machine itself.
    _region: Option<Arc<SharedRegion>>,
}

impl Slots {
    pub(super) fn new(vm: Arc<VmFd>, smm: bool) -> Slots {
        Slots { vm, spaces: NORMAL..if smm { SMM + 1 } else { SMM }, used: Mutex::default() }
    }

    /// Sets a slot in an address space; of length 0, takes it away.
    fn set(&self, space: u32, slot: u32, address: u64, host: u64, len: u64, kind: Kind) -> io::Result<()> {
        let flags = match kind {
            Kind::Ram => 0,
            Kind::Logged => KVM_MEM_LOG_DIRTY_PAGES,
            Kind::Rom => KVM_MEM_READONLY,
        };
        let region = kvm_userspace_memory_region {
            slot: slot | space << SPACE_SHIFT,
            flags,
            guest_phys_addr: address,
            memory_size: len,
            userspace_addr: host,
        };
        // SAFETY: the callers keep [host, host + len) mapped for as long as the slot is used.
        Ok(unsafe { self.vm.set_user_memory_region(region) }?)
    }

    /// Adds memory that the caller keeps mapped.
    ///
    /// # Safety
    /// `[host, host + len)` stays mapped as long as the virtual machine lives.
    pub(super) unsafe fn add(&self, address: u64, host: *mut u8, len: u64, kind: Kind) -> io::Result<SlotId> {
        self.insert(address, host as u64, len, kind, None)
    }

    /// Adds part of a region.
    pub(super) fn map(
        &self,
        address: u64,
        region: &Arc<SharedRegion>,
        offset: u64,
        len: u64,
        kind: Kind,
    ) -> io::Result<SlotId> {
        if offset.checked_add(len).is_none_or(|end| end > region.len() as u64) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.insert(address, region.host() as u64 + offset, len, kind, Some(region.clone()))
    }

    fn insert(
        &self,
        address: u64,
        host: u64,
        len: u64,
        kind: Kind,
        region: Option<Arc<SharedRegion>>,
    ) -> io::Result<SlotId> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = (0..).find(|slot| !used.contains_key(slot)) else { return Err(io::ErrorKind::Other.into()) };
        for space in self.spaces.clone() {
            if let Err(error) = self.set(space, slot, address, host, len, kind) {
                // Nothing keeps the memory mapped for a slot that is not in the list.
                for space in NORMAL..space {
                    self.set(space, slot, address, 0, 0, kind)?;
                }
                return Err(error);
            }
        }
        used.insert(slot, Slot { address, host, len, kind, hidden: false, _region: region });
        Ok(SlotId(slot))
    }

    pub(super) fn remove(&self, id: SlotId) -> io::Result<()> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = used.get(&id.0) else { return Ok(()) };
        for space in self.spaces.clone().filter(|&space| space == SMM || !slot.hidden) {
            self.set(space, id.0, slot.address, 0, 0, Kind::Ram)?;
        }
        used.remove(&id.0);
        Ok(())
    }

    /// Hides a slot from all but system management mode, or shows it.
    pub(super) fn hide(&self, id: SlotId, hidden: bool) -> io::Result<()> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = used.get_mut(&id.0).ok_or(io::ErrorKind::NotFound)?;
        if slot.hidden != hidden {
            let (host, len) = if hidden { (0, 0) } else { (slot.host, slot.len) };
            self.set(NORMAL, id.0, slot.address, host, len, slot.kind)?;
            slot.hidden = hidden;
        }
        Ok(())
    }

    pub(super) fn take_dirty(&self, id: SlotId) -> io::Result<Vec<u64>> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = used.get(&id.0).ok_or(io::ErrorKind::NotFound)?;
        let mut dirty = Vec::new();
        for space in self.spaces.clone() {
            let more = self.vm.get_dirty_log(id.0 | space << SPACE_SHIFT, slot.len as usize)?;
            match dirty.is_empty() {
                true => dirty = more,
                false => dirty.iter_mut().zip(more).for_each(|(dirty, more)| *dirty |= more),
            }
        }
        Ok(dirty)
    }
}
