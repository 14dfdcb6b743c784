//! The split virtqueue, device side (virtio 1.2 §2.7). The driver is not trusted: every index, address and length it
//! writes is checked, and each loop is bounded by something it does not control.

use std::num::Wrapping;
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

use super::chain::{Chain, Completions, Segment};
use super::device::Fault;
use crate::base::{GuestAddress, GuestMemory};

/// The largest queue that any device here offers.
pub const QUEUE_SIZE_MAX: u16 = 1024;
/// The longest chain that is taken, with the tables it refers to.
const MAX_SEGMENTS: usize = 1024;

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// A queue as the driver configured it, and how far it has come. What a checkpoint keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// The driver enabled it.
    pub ready: bool,
    /// Entries, a power of two.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub desc: u64,
    /// Guest address of the available ring.
    pub avail: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// Index of the next available entry to take.
    pub next_avail: u16,
    /// Index of the next used entry to write.
    pub next_used: u16,
    /// Heads of chains that were taken and put back: they are taken before any other, the last one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub returned: Vec<u16>,
}

impl QueueState {
    /// Checks what the driver wrote against virtio 1.2 §2.7 and guest RAM.
    fn check(&self, memory: &GuestMemory) -> Result<(), Fault> {
        if !self.size.is_power_of_two() || self.size > QUEUE_SIZE_MAX {
            return Err(Fault::Ring("a queue's size is no power of two up to 1024"));
        }
        if !self.desc.is_multiple_of(16) || !self.avail.is_multiple_of(2) || !self.used.is_multiple_of(4) {
            return Err(Fault::Ring("a ring is not aligned"));
        }
        let size = usize::from(self.size);
        memory.check(GuestAddress(self.desc), 16 * size)?;
        memory.check(GuestAddress(self.avail), 6 + 2 * size)?;
        memory.check(GuestAddress(self.used), 6 + 8 * size)?;
        Ok(())
    }
}

/// A queue in use.
pub struct Queue {
    state: QueueState,
    event_idx: bool,
    indirect: bool,
    completions: Completions,
    /// `next_used` when the driver was last interrupted.
    signalled_used: Wrapping<u16>,
    /// The driver was never told of anything since the queue started: it is, whatever the threshold.
    signalled_valid: bool,
}

impl Queue {
    /// A queue as the driver configured it; one that it did not enable stays empty.
    pub fn new(state: QueueState, features: u64, memory: &GuestMemory) -> Result<Queue, Fault> {
        if state.ready {
            state.check(memory)?;
        }
        Ok(Queue {
            signalled_used: Wrapping(state.next_used),
            signalled_valid: false,
            state,
            event_idx: features & super::feature::EVENT_IDX != 0,
            indirect: features & super::feature::INDIRECT_DESC != 0,
            completions: Completions::default(),
        })
    }

    /// Its configuration and progress.
    pub fn state(&self) -> &QueueState {
        &self.state
    }

    fn available(&self, memory: &GuestMemory) -> Result<u16, Fault> {
        let index = memory.load_u16(GuestAddress(self.state.avail + 2))?;
        let count = index.wrapping_sub(self.state.next_avail);
        if count > self.state.size {
            return Err(Fault::Ring("the available index is ahead by more than the queue's size"));
        }
        Ok(count)
    }

    /// How many chains could be popped now.
    pub(super) fn waiting(&self, memory: &GuestMemory) -> Result<u16, Fault> {
        if !self.state.ready {
            return Ok(0);
        }
        Ok(self.available(memory)?.saturating_add(self.state.returned.len() as u16))
    }

    pub(super) fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, Fault> {
        if !self.state.ready {
            return Ok(None);
        }
        let head = match self.state.returned.pop() {
            Some(head) => head,
            None if self.available(memory)? == 0 => return Ok(None),
            // Also what bounds a device's loop over its queue, for completions show only afterwards.
            None if self.state.next_avail.wrapping_sub(self.state.next_used) >= self.state.size => {
                return Err(Fault::Ring("more buffers are in use than the queue has entries"));
            }
            None => {
                let slot = u64::from(self.state.next_avail % self.state.size);
                let head = u16::from_le(memory.read_obj(GuestAddress(self.state.avail + 4 + 2 * slot))?);
                self.state.next_avail = self.state.next_avail.wrapping_add(1);
                head
            }
        };
        let (segments, readable) = self.walk(memory, head)?;
        Ok(Some(Chain::new(memory.clone(), segments, readable, head, self.completions.clone())))
    }

    pub(super) fn put_back(&mut self, chain: Chain) {
        self.state.returned.push(chain.forget());
    }

    /// Collects the segments of a chain, and how many of them are readable.
    fn walk(&self, memory: &GuestMemory, head: u16) -> Result<(Vec<Segment>, usize), Fault> {
        let mut segments = Vec::with_capacity(4);
        let mut readable = 0;
        let (mut table, mut entries, mut index) = (self.state.desc, u32::from(self.state.size), u32::from(head));
        let mut in_indirect = false;
        let mut total = 0u64;
        for _ in 0..=MAX_SEGMENTS {
            if index >= entries {
                return Err(Fault::Ring("a descriptor's index is outside its table"));
            }
            let raw: [u64; 2] = memory.read_obj(GuestAddress(table + 16 * u64::from(index)))?;
            let address = u64::from_le(raw[0]);
            let rest = u64::from_le(raw[1]);
            let (len, flags, next) = (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16);
            if flags & DESC_INDIRECT != 0 {
                let fits = len.is_multiple_of(16) && len > 0 && len as usize / 16 <= MAX_SEGMENTS;
                if !self.indirect || in_indirect || flags & DESC_NEXT != 0 || !fits {
                    return Err(Fault::Ring("an indirect descriptor is malformed"));
                }
                memory.check(GuestAddress(address), len as usize)?;
                (table, entries, index, in_indirect) = (address, len / 16, 0, true);
                continue;
            }
            memory.check(GuestAddress(address), len as usize)?;
            total += u64::from(len);
            if flags & DESC_WRITE == 0 {
                if readable != segments.len() {
                    return Err(Fault::Ring("a readable descriptor follows a writable one"));
                }
                readable += 1;
            }
            segments.push(Segment { address, len });
            if total > u64::from(u32::MAX) {
                return Err(Fault::Ring("a chain is longer than 4 GiB"));
            }
            if flags & DESC_NEXT == 0 {
                return Ok((segments, readable));
            }
            index = u32::from(next);
        }
        Err(Fault::Ring("a chain is a loop, or longer than 1024 descriptors"))
    }

    /// Puts the completions so far in the used ring.
    pub(super) fn flush(&mut self, memory: &GuestMemory) -> Result<(), Fault> {
        let mut done = self.completions.lock().unwrap_or_else(PoisonError::into_inner);
        if done.is_empty() || !self.state.ready {
            done.clear();
            return Ok(());
        }
        for (head, written) in done.drain(..) {
            let slot = u64::from(self.state.next_used % self.state.size);
            let entry = [u32::from(head).to_le(), written.to_le()];
            memory.write_obj(GuestAddress(self.state.used + 4 + 8 * slot), entry)?;
            self.state.next_used = self.state.next_used.wrapping_add(1);
        }
        memory.store_u16(GuestAddress(self.state.used + 2), self.state.next_used)?;
        Ok(())
    }

    /// Whether the driver wants to be interrupted for what was put in the used ring since it last was.
    pub(super) fn take_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, Fault> {
        let (new, old) = (Wrapping(self.state.next_used), self.signalled_used);
        if !self.state.ready || (new == old && self.signalled_valid) {
            return Ok(false);
        }
        GuestMemory::full_fence();
        let wanted = if self.event_idx {
            let at = self.state.avail + 4 + 2 * u64::from(self.state.size);
            let threshold = Wrapping(memory.load_u16(GuestAddress(at))?);
            !self.signalled_valid || new - threshold - Wrapping(1) < new - old
        } else {
            memory.load_u16(GuestAddress(self.state.avail))? & AVAIL_NO_INTERRUPT == 0
        };
        self.signalled_used = new;
        self.signalled_valid = true;
        Ok(wanted)
    }

    /// Asks the driver not to ring while the queue is being worked on.
    pub(super) fn silence(&mut self, memory: &GuestMemory) -> Result<(), Fault> {
        if self.state.ready && !self.event_idx {
            memory.store_u16(GuestAddress(self.state.used), USED_NO_NOTIFY)?;
        }
        Ok(())
    }

    /// Asks the driver to ring for the next buffer after those it has offered by now. True: there are some that were
    /// offered since `seen`, which is updated; look again.
    pub(super) fn listen(&mut self, memory: &GuestMemory, seen: &mut u16) -> Result<bool, Fault> {
        if !self.state.ready {
            return Ok(false);
        }
        let offered = memory.load_u16(GuestAddress(self.state.avail + 2))?;
        if self.event_idx {
            let at = self.state.used + 4 + 8 * u64::from(self.state.size);
            memory.store_u16(GuestAddress(at), offered)?;
        } else {
            memory.store_u16(GuestAddress(self.state.used), 0)?;
        }
        GuestMemory::full_fence();
        let more = memory.load_u16(GuestAddress(self.state.avail + 2))? != *seen;
        *seen = offered;
        Ok(more)
    }

    /// The available index as the driver shows it now.
    pub(super) fn offered(&self, memory: &GuestMemory) -> Result<u16, Fault> {
        if self.state.ready { Ok(memory.load_u16(GuestAddress(self.state.avail + 2))?) } else { Ok(0) }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
