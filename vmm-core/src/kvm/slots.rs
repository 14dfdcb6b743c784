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

pub(super) struct Slots {
    vm: Arc<VmFd>,
    used: Mutex<HashMap<u32, Slot>>,
}

struct Slot {
    address: u64,
    len: u64,
    /// Keeps the memory mapped; RAM is kept by the machine itself.
    _region: Option<Arc<SharedRegion>>,
}

impl Slots {
    pub(super) fn new(vm: Arc<VmFd>) -> Slots {
        Slots { vm, used: Mutex::default() }
    }

    fn set(&self, slot: u32, address: u64, host: u64, len: u64, kind: Kind) -> io::Result<()> {
        let flags = match kind {
            Kind::Ram => 0,
            Kind::Logged => KVM_MEM_LOG_DIRTY_PAGES,
            Kind::Rom => KVM_MEM_READONLY,
        };
        let region = kvm_userspace_memory_region {
            slot,
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
        self.set(slot, address, host, len, kind)?;
        used.insert(slot, Slot { address, len, _region: region });
        Ok(SlotId(slot))
    }

    pub(super) fn remove(&self, id: SlotId) -> io::Result<()> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = used.get(&id.0) else { return Ok(()) };
        self.set(id.0, slot.address, 0, 0, Kind::Ram)?;
        used.remove(&id.0);
        Ok(())
    }

    pub(super) fn take_dirty(&self, id: SlotId) -> io::Result<Vec<u64>> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = used.get(&id.0).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.vm.get_dirty_log(id.0, slot.len as usize)?)
    }
}
