//! A driver for virtio over PCI, modern interface: capabilities, negotiation, split queues, MSI-X (virtio 1.2 §2, §4.1).

use crate::dma::{Dma, Mmio};
use crate::drivers::pci::{CAPABILITY_VENDOR, Function, Msix};
use crate::report::Outcome;
use crate::{cpu, ensure, fail, time, trap};

/// Device types (§5).
pub mod kind {
    /// Network card.
    pub const NET: u16 = 1;
    /// Block device.
    pub const BLOCK: u16 = 2;
    /// Console.
    pub const CONSOLE: u16 = 3;
    /// Entropy source.
    pub const ENTROPY: u16 = 4;
    /// Memory balloon.
    pub const BALLOON: u16 = 5;
    /// GPU.
    pub const GPU: u16 = 16;
    /// Input device.
    pub const INPUT: u16 = 18;
}

/// Device-independent feature bits (§6).
pub mod feature {
    /// Indirect descriptors.
    pub const INDIRECT: u64 = 1 << 28;
    /// Used and available event indexes.
    pub const EVENT_INDEX: u64 = 1 << 29;
    /// The modern interface.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Offsets in the common configuration (§4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
    pub const BYTES: u64 = 0x38;
}

/// Capability types (§4.1.4).
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;

const STATUS_ACKNOWLEDGE: u8 = 1;
const STATUS_DRIVER: u8 = 2;
const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
/// The device has met an error it can't recover from.
pub const STATUS_NEEDS_RESET: u8 = 64;
const NO_VECTOR: u16 = 0xffff;

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
const DESC_BYTES: usize = 16;

/// Largest queue the probe uses.
const MAX_QUEUE: u16 = 256;
/// How long a device may take for anything.
pub const PATIENCE_MICROS: u64 = 10_000_000;

/// A device in the state DRIVER: features negotiated, queues to be set up, then [`Device::start`].
pub struct Device {
    common: Mmio,
    notify: Mmio,
    notify_multiplier: u32,
    config: Option<Mmio>,
    msix: Option<Msix>,
    /// Features both sides have.
    pub features: u64,
    /// Vector of configuration changes; 0 without MSI-X.
    pub config_vector: u8,
}

impl Device {
    /// Resets the device, negotiates those of `wanted` it offers, and routes configuration changes to a vector.
    pub fn open(function: &Function, wanted: u64) -> Outcome<Device> {
        function.enable();
        let structure = |kind: u8| {
            function.capabilities(CAPABILITY_VENDOR).find_map(|at| {
                if function.read8(at + 3) != kind {
                    return None;
                }
                let window = function.map_bar(function.read8(at + 4))?;
                let part = window.part(u64::from(function.read32(at + 8)), u64::from(function.read32(at + 12)))?;
                Some((part, at))
            })
        };
        let Some((common, _)) = structure(CAP_COMMON) else { fail!("no usable common configuration capability") };
        let Some((notify, notify_at)) = structure(CAP_NOTIFY) else { fail!("no usable notification capability") };
        ensure!(structure(CAP_ISR).is_some(), "no usable ISR capability");
        ensure!(common.len() >= common::BYTES, "the common configuration has only {} bytes", common.len());
        let notify_multiplier = function.read32(notify_at + 16);
        let config = structure(CAP_DEVICE).map(|(window, _)| window);
        let mut device =
            Device { common, notify, notify_multiplier, config, msix: function.msix(), features: 0, config_vector: 0 };
        device.reset()?;
        device.set_status(STATUS_ACKNOWLEDGE);
        device.set_status(STATUS_DRIVER);
        let offered = device.offered();
        ensure!(offered & feature::VERSION_1 != 0, "the device does not offer VERSION_1 (features {offered:#x})");
        device.features = offered & (wanted | feature::VERSION_1);
        for half in 0..2 {
            device.common.write32(common::DRIVER_FEATURE_SELECT, half);
            device.common.write32(common::DRIVER_FEATURE, (device.features >> (32 * half)) as u32);
        }
        device.set_status(STATUS_FEATURES_OK);
        ensure!(
            device.status() & STATUS_FEATURES_OK != 0,
            "the device refused features {:#x} of the {offered:#x} it offers",
            device.features
        );
        if let Some(msix) = device.msix {
            device.config_vector = trap::allocate_vector();
            msix.route(0, device.config_vector);
            device.common.write16(common::CONFIG_VECTOR, 0);
            ensure!(device.common.read16(common::CONFIG_VECTOR) == 0, "the device refused MSI-X entry 0");
        }
        Ok(device)
    }

    /// Features the device offers.
    pub fn offered(&self) -> u64 {
        (0..2).fold(0, |features, half| {
            self.common.write32(common::DEVICE_FEATURE_SELECT, half);
            features | u64::from(self.common.read32(common::DEVICE_FEATURE)) << (32 * half)
        })
    }

    /// Whether both sides have a feature.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Status register.
    pub fn status(&self) -> u8 {
        self.common.read8(common::STATUS)
    }

    fn set_status(&self, bits: u8) {
        self.common.write8(common::STATUS, self.status() | bits);
    }

    /// Resets the device and waits until it says so.
    pub fn reset(&self) -> Outcome<()> {
        self.common.write8(common::STATUS, 0);
        ensure!(
            time::wait_for(PATIENCE_MICROS, || self.status() == 0),
            "the device does not end its reset (status {:#x})",
            self.status()
        );
        Ok(())
    }

    /// The MSI-X table, and the entry in it of queue `index`.
    pub fn msix(&self, index: u16) -> Option<(Msix, u16)> {
        self.msix.filter(|msix| index + 1 < msix.vectors).map(|msix| (msix, index + 1))
    }

    /// The device's own configuration.
    pub fn config(&self) -> Outcome<Mmio> {
        match self.config {
            Some(config) => Ok(config),
            None => fail!("the device has no configuration structure"),
        }
    }

    /// Sets up queue `index` with at most `size` entries.
    pub fn queue(&self, index: u16, size: u16) -> Outcome<Queue> {
        let common = &self.common;
        common.write16(common::QUEUE_SELECT, index);
        let offered = common.read16(common::QUEUE_SIZE);
        ensure!(offered != 0, "queue {index} does not exist");
        ensure!(offered.is_power_of_two(), "queue {index} has {offered} entries, not a power of two");
        let size = size.min(offered).min(MAX_QUEUE);
        common.write16(common::QUEUE_SIZE, size);
        let mut vector = 0;
        let entry = index + 1;
        if let Some(msix) = self.msix.filter(|msix| entry < msix.vectors) {
            vector = trap::allocate_vector();
            msix.route(entry, vector);
            common.write16(common::QUEUE_VECTOR, entry);
            ensure!(common.read16(common::QUEUE_VECTOR) == entry, "queue {index} refused MSI-X entry {entry}");
        } else {
            common.write16(common::QUEUE_VECTOR, NO_VECTOR);
        }
        let entries = usize::from(size);
        let descriptors = Dma::new(entries * DESC_BYTES);
        let available = Dma::new(6 + 2 * entries);
        let used = Dma::new(6 + 8 * entries);
        for (offset, area) in
            [(common::QUEUE_DESCRIPTORS, descriptors), (common::QUEUE_DRIVER, available), (common::QUEUE_DEVICE, used)]
        {
            common.write32(offset, area.address() as u32);
            common.write32(offset + 4, (area.address() >> 32) as u32);
        }
        let offset = u64::from(common.read16(common::QUEUE_NOTIFY_OFF)) * u64::from(self.notify_multiplier);
        let Some(doorbell) = self.notify.part(offset, 2) else {
            fail!("queue {index}'s doorbell is outside of its window")
        };
        common.write16(common::QUEUE_ENABLE, 1);
        ensure!(common.read16(common::QUEUE_ENABLE) == 1, "queue {index} can't be enabled");
        for descriptor in 0..size {
            descriptors.write(usize::from(descriptor) * DESC_BYTES + 14, descriptor + 1);
        }
        Ok(Queue {
            index,
            size,
            descriptors,
            available,
            used,
            doorbell,
            vector,
            free: 0,
            free_count: size,
            next_available: 0,
            notified: 0,
            next_used: 0,
            event_index: self.has(feature::EVENT_INDEX),
        })
    }

    /// Tells the device to go.
    pub fn start(&self) -> Outcome<()> {
        self.set_status(STATUS_DRIVER_OK);
        let status = self.status();
        ensure!(status & STATUS_NEEDS_RESET == 0, "the device needs a reset as soon as it is started ({status:#x})");
        Ok(())
    }
}

/// One piece of a request.
#[derive(Clone, Copy)]
pub struct Segment {
    address: u64,
    length: u32,
    device_writes: bool,
}

impl Segment {
    /// A piece the device reads.
    pub fn read(memory: &Dma) -> Segment {
        Segment { address: memory.address(), length: memory.len() as u32, device_writes: false }
    }

    /// A piece the device writes.
    pub fn write(memory: &Dma) -> Segment {
        Segment { address: memory.address(), length: memory.len() as u32, device_writes: true }
    }
}

/// A split virtqueue (§2.7).
pub struct Queue {
    /// Number of this queue.
    pub index: u16,
    /// Entries.
    pub size: u16,
    descriptors: Dma,
    available: Dma,
    used: Dma,
    doorbell: Mmio,
    /// Its interrupt vector; 0 without MSI-X.
    pub vector: u8,
    /// Head of the list of free descriptors.
    free: u16,
    free_count: u16,
    next_available: u16,
    /// Where `next_available` was at the last look at the device's event index.
    notified: u16,
    next_used: u16,
    event_index: bool,
}

impl Queue {
    fn descriptor(table: &Dma, index: u16, segment: &Segment, flags: u16) {
        let at = usize::from(index) * DESC_BYTES;
        let flags = flags | if segment.device_writes { DESC_WRITE } else { 0 };
        table.write(at, segment.address);
        table.write(at + 8, segment.length);
        table.write(at + 12, flags);
    }

    /// Makes a chain available without ringing the doorbell; returns its head. Panics when the queue is full: callers
    /// know their depth.
    pub fn push(&mut self, segments: &[Segment]) -> u16 {
        assert!(!segments.is_empty() && segments.len() <= usize::from(self.free_count), "queue {} is full", self.index);
        let head = self.free;

        for (number, segment) in segments.iter().enumerate() {
            let index = self.free;
            self.free = self.next(index);
            let last = number + 1 == segments.len();
            Queue::descriptor(&self.descriptors, index, segment, if last { 0 } else { DESC_NEXT });
        }
        self.free_count -= segments.len() as u16;
        self.publish(head);
        head
    }

    /// The same through one indirect descriptor, whose table is `table`.
    pub fn push_indirect(&mut self, table: &Dma, segments: &[Segment]) -> u16 {
        assert!(self.free_count > 0 && table.len() >= segments.len() * DESC_BYTES, "no room for an indirect chain");
        for (number, segment) in segments.iter().enumerate() {
            let last = number + 1 == segments.len();
            Queue::descriptor(table, number as u16, segment, if last { 0 } else { DESC_NEXT });
            table.write(number * DESC_BYTES + 14, number as u16 + 1);
        }
        let head = self.free;
        self.free = self.next(head);
        self.free_count -= 1;
        let whole = Segment::read(&table.part(0, segments.len() * DESC_BYTES));
        Queue::descriptor(&self.descriptors, head, &whole, DESC_INDIRECT);
        self.publish(head);
        head
    }

    fn next(&self, index: u16) -> u16 {
        self.descriptors.read(usize::from(index) * DESC_BYTES + 14)
    }

    fn publish(&mut self, head: u16) {
        self.available.write(4 + usize::from(self.next_available % self.size) * 2, head);
        self.next_available = self.next_available.wrapping_add(1);
        cpu::fence();
        self.available.write(2, self.next_available);
    }

    /// Rings the doorbell, unless the device has said that it need not be rung yet (§2.7.10).
    pub fn notify(&mut self) {
        cpu::fence();
        let old = core::mem::replace(&mut self.notified, self.next_available);
        if self.event_index {
            let event: u16 = self.used.read(4 + 8 * usize::from(self.size));
            if self.next_available.wrapping_sub(event).wrapping_sub(1) >= self.next_available.wrapping_sub(old) {
                return;
            }
        }
        self.doorbell.write16(0, self.index);
    }

    /// The next completed chain: its head and the bytes the device says it wrote.
    pub fn pop(&mut self) -> Option<(u16, u32)> {
        if self.used.read::<u16>(2) == self.next_used {
            return None;
        }
        cpu::fence();
        let at = 4 + usize::from(self.next_used % self.size) * 8;
        let (head, written): (u32, u32) = (self.used.read(at), self.used.read(at + 4));
        self.next_used = self.next_used.wrapping_add(1);
        let head = head as u16;
        assert!(head < self.size, "queue {} completed descriptor {head}, which does not exist", self.index);
        // Return the chain to the free list.
        let mut last = head;
        let mut count = 1;
        while self.descriptors.read::<u16>(usize::from(last) * DESC_BYTES + 12) & DESC_NEXT != 0 {
            last = self.next(last);
            count += 1;
        }
        self.descriptors.write(usize::from(last) * DESC_BYTES + 14, self.free);
        self.free = head;
        self.free_count += count;
        if self.event_index {
            // The next completion interrupts again (§2.7.7).
            self.available.write(4 + 2 * usize::from(self.size), self.next_used);
            cpu::fence();
        }
        Some((head, written))
    }

    /// Waits for the next completed chain.
    pub fn wait(&mut self) -> Outcome<(u16, u32)> {
        let mut done = None;
        time::wait_for(PATIENCE_MICROS, || {
            done = self.pop();
            done.is_some()
        });
        match done {
            Some(done) => Ok(done),
            None => fail!("queue {}: no answer after {} s", self.index, PATIENCE_MICROS / 1_000_000),
        }
    }

    /// Submits one chain and waits for it: the bytes the device says it wrote.
    pub fn request(&mut self, segments: &[Segment]) -> Outcome<u32> {
        let head = self.push(segments);
        self.notify();
        let (done, written) = self.wait()?;
        ensure!(done == head, "queue {}: chain {done} completed instead of {head}", self.index);
        let writable: u32 = segments.iter().filter(|segment| segment.device_writes).map(|segment| segment.length).sum();
        ensure!(written <= writable, "queue {}: {written} bytes written to a buffer of {writable}", self.index);
        Ok(written)
    }

    /// Waits until the queue's vector has seen more than `before` interrupts; true also without MSI-X.
    pub fn interrupted(&self, before: u32) -> bool {
        self.vector == 0 || time::wait_for(PATIENCE_MICROS, || trap::count(self.vector) != before)
    }
}
