//! An address space (MMIO or port I/O) that routes accesses to devices.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::Action;

/// A device that sits on a [`Bus`], seen by all vCPUs at once.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes at `offset` from the start of the device's range; `data` comes filled with ones.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes; the machine does what is returned.
    fn write(&self, offset: u64, data: &[u8]) -> Option<Action>;
    /// The same by a CPU in system management mode, to which a device may grant more.
    fn write_in_smm(&self, offset: u64, data: &[u8]) -> Option<Action> {
        self.write(offset, data)
    }
}

/// A [`BusDevice`] that one vCPU at a time may touch: put it in a `Mutex`.
pub trait BusDeviceMut: Send {
    /// See [`BusDevice::read`].
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// See [`BusDevice::write`].
    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Action>;
}

impl<T: BusDeviceMut> BusDevice for Mutex<T> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        self.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data)
    }
}

struct Range {
    start: u64,
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// Address ranges and their devices. What nobody claims reads as ones and ignores writes, as on a PC's bus.
#[derive(Default)]
pub struct Bus {
    /// Sorted by start, never overlapping.
    ranges: RwLock<Vec<Range>>,
}

impl Bus {
    /// Gives `[start, start + len)` to `device`. False, and nothing done, where it overlaps another range.
    #[must_use]
    pub fn insert(&self, start: u64, len: u64, device: Arc<dyn BusDevice>) -> bool {
        let Some(end) = start.checked_add(len).filter(|_| len > 0) else { return false };
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let at = ranges.partition_point(|r| r.start < start);
        let clear_above = ranges.get(at).is_none_or(|r| r.start >= end);
        let clear_below = at == 0 || ranges[at - 1].start + ranges[at - 1].len <= start;
        let clear = clear_above && clear_below;
        if clear {
            ranges.insert(at, Range { start, len, device });
        }
        clear
    }

    /// Takes away the range that starts at `start`.
    pub fn remove(&self, start: u64) {
        self.ranges.write().unwrap_or_else(PoisonError::into_inner).retain(|r| r.start != start);
    }

    fn find(&self, address: u64, len: usize) -> Option<(Arc<dyn BusDevice>, u64)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let at = ranges.partition_point(|r| r.start <= address).checked_sub(1)?;
        let range = &ranges[at];
        let offset = address - range.start;
        // An access that starts inside and runs over the end belongs to nobody.
        (offset + len as u64 <= range.len).then(|| (range.device.clone(), offset))
    }

    /// Reads; ones where nobody is.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.read(offset, data);
        }
    }

    /// Writes; dropped where nobody is.
    pub fn write(&self, address: u64, data: &[u8]) -> Option<Action> {
        let (device, offset) = self.find(address, data.len())?;
        device.write(offset, data)
    }

    /// The same by a CPU in system management mode.
    pub fn write_in_smm(&self, address: u64, data: &[u8]) -> Option<Action> {
        let (device, offset) = self.find(address, data.len())?;
        device.write_in_smm(offset, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Latch(u8);
    impl BusDeviceMut for Latch {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&mut self, _: u64, data: &[u8]) -> Option<Action> {
            self.0 = data[0];
            Some(Action::Reset)
        }
    }

    #[test]
    fn accesses_reach_their_device_and_nobody_reads_as_ones() {
        let bus = Bus::default();
        assert!(bus.insert(0x10, 4, Arc::new(Mutex::new(Latch(1)))));
        assert!(bus.insert(0x14, 4, Arc::new(Mutex::new(Latch(9)))));
        for (start, len) in [(0x0f, 2), (0x11, 1), (0x17, 4), (0x00, 0x100), (u64::MAX, 2), (0x40, 0)] {
            assert!(!bus.insert(start, len, Arc::new(Mutex::new(Latch(0)))), "{start:#x}");
        }
        let mut byte = [0];
        bus.read(0x12, &mut byte);
        assert_eq!(byte, [3]);
        assert_eq!(bus.write(0x14, &[5]), Some(Action::Reset));
        bus.read(0x14, &mut byte);
        assert_eq!(byte, [5]);
        let mut word = [0; 4];
        bus.read(0x16, &mut word);
        assert_eq!(word, [0xff; 4]);
        bus.remove(0x10);
        bus.read(0x10, &mut byte);
        assert_eq!(byte, [0xff]);
        assert_eq!(bus.write(0x10, &[1]), None);
    }
}
