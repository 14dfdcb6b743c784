//! virtio-input (virtio 1.2 §5.8): identity by configuration, events by queue.

use crate::dma::Dma;
use crate::drivers::pci::Function;
use crate::drivers::virtio::{Device, Queue, Segment, feature};
use crate::println;
use crate::report::Outcome;
use crate::text::Text;

/// Configuration selectors.
pub mod select {
    /// Name, a string.
    pub const NAME: u8 = 1;
    /// Bus type, vendor, product, version.
    pub const IDS: u8 = 3;
    /// Bitmap of codes of the event type in subsel.
    pub const EVENT_BITS: u8 = 0x11;
    /// Range of the axis in subsel.
    pub const AXIS: u8 = 0x12;
}

/// Event types, as in Linux's input-event-codes.h.
pub mod event {
    /// Key or button.
    pub const KEY: u16 = 1;
    /// Relative axis.
    pub const REL: u16 = 2;
    /// Absolute axis.
    pub const ABS: u16 = 3;
}

const BUFFERS: u16 = 64;
const EVENT_BYTES: usize = 8;
/// select, subsel, size, then the data.
const CONFIG_SIZE: u64 = 2;
const CONFIG_DATA: u64 = 8;

/// An input event.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Type.
    pub kind: u16,
    /// Code.
    pub code: u16,
    /// Value.
    pub value: u32,
}

impl Event {
    /// Prints it as device number `device`'s.
    pub fn print(&self, device: usize) {
        println!("input device={device} kind={} code={} value={}", self.kind, self.code, self.value as i32);
    }
}

/// A started input device with its event queue full of buffers.
pub struct Input {
    /// The device.
    pub device: Device,
    /// The event queue.
    pub events: Queue,
    buffers: Dma,
    /// Which buffer a descriptor carries.
    slots: [u16; 256],
}

impl Input {
    /// Starts the device at a function.
    pub fn open(function: &Function) -> Outcome<Input> {
        // By this it is told from firmware's driver, which gets no keys. It may be used, and is not.
        let device = Device::open(function, feature::INDIRECT)?;
        let events = device.queue(0, BUFFERS)?;
        device.start()?;
        let buffers = Dma::new(usize::from(events.size) * EVENT_BYTES);
        let mut input = Input { device, events, buffers, slots: [0; 256] };
        for slot in 0..input.events.size {
            input.arm(slot);
        }
        input.events.notify();
        Ok(input)
    }

    fn buffer(&self, slot: u16) -> Dma {
        self.buffers.part(usize::from(slot) * EVENT_BYTES, EVENT_BYTES)
    }

    fn arm(&mut self, slot: u16) {
        let head = self.events.push(&[Segment::write(&self.buffer(slot))]);
        self.slots[usize::from(head)] = slot;
    }

    /// Size of a configuration item; 0 if the device has none such.
    pub fn query(&self, select: u8, subsel: u8) -> Outcome<usize> {
        let config = self.device.config()?;
        config.write8(0, select);
        config.write8(1, subsel);
        Ok(usize::from(config.read8(CONFIG_SIZE)).min(128))
    }

    /// Byte `index` of the item that was queried last.
    pub fn byte(&self, index: usize) -> Outcome<u8> {
        Ok(self.device.config()?.read8(CONFIG_DATA + index as u64))
    }

    /// A 32-bit word of the item that was queried last.
    pub fn word(&self, index: usize) -> Outcome<u32> {
        Ok(self.device.config()?.read32(CONFIG_DATA + 4 * index as u64))
    }

    /// The device's name.
    pub fn name(&self) -> Outcome<Text> {
        use core::fmt::Write as _;
        let mut name = Text::new();
        for index in 0..self.query(select::NAME, 0)? {
            let byte = self.byte(index)?;
            if (0x20..0x7f).contains(&byte) {
                // Text never fails; a name that is too long is cut.
                let _ = name.write_char(char::from(byte));
            }
        }
        Ok(name)
    }

    /// How many codes of an event type the device can send.
    pub fn codes(&self, kind: u16) -> Outcome<u32> {
        let mut count = 0;
        for index in 0..self.query(select::EVENT_BITS, kind as u8)? {
            count += self.byte(index)?.count_ones();
        }
        Ok(count)
    }

    /// Least and greatest value of an absolute axis.
    pub fn axis(&self, axis: u16) -> Outcome<Option<(u32, u32)>> {
        if self.query(select::AXIS, axis as u8)? < 8 {
            return Ok(None);
        }
        Ok(Some((self.word(0)?, self.word(1)?)))
    }

    /// The next event; its buffer goes back to the device.
    pub fn poll(&mut self) -> Option<Event> {
        let (head, written) = self.events.pop()?;
        let slot = self.slots[usize::from(head)];
        let buffer = self.buffer(slot);
        let event = Event { kind: buffer.read(0), code: buffer.read(2), value: buffer.read(4) };
        self.arm(slot);
        self.events.notify();
        (written as usize == EVENT_BYTES).then_some(event)
    }
}
