//! What the fuzz targets share: a reader that turns a fuzzer's bytes into choices, and two kinds of drivers for a virtio
//! device. The properties they check are those of the testkit's guest: the device comes to rest, completes only what was
//! offered, never writes beyond its room, resets when asked, and a restored checkpoint saves the same state.

use vmm_core::base::GuestAddress;
use vmm_core::testkit::{Guest, Segments};
use vmm_core::virtio::Device;

/// The testkit puts queue `n`'s rings at `RINGS + n * STRIDE`.
const RINGS: u64 = 0x1_0000;
const STRIDE: u64 = 0x1_0000;
/// Guest RAM in the testkit.
const RAM: u64 = 16 << 20;
/// One input makes at most so many steps: longer ones find nothing new.
const STEPS: usize = 256;

/// The fuzzer's bytes, taken from the front; zeros when they have run out.
pub struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    /// All choices of one input.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether there is any left.
    pub fn any(&self) -> bool {
        !self.0.is_empty()
    }

    /// At most `len` bytes.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A number of `N` bytes.
    fn number<const N: usize>(&mut self) -> [u8; N] {
        let mut number = [0; N];
        let taken = self.bytes(N);
        number[..taken.len()].copy_from_slice(taken);
        number
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.number())
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.number())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.number())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.number())
    }

    /// One of these.
    pub fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[usize::from(self.u8()) % values.len()]
    }

    /// An address that is mostly in RAM.
    pub fn address(&mut self) -> u64 {
        match self.u8() % 8 {
            0 => self.u64(),
            1 => RAM - u64::from(self.u8()),
            2 => RINGS + u64::from(self.u32()) % (4 * STRIDE),
            _ => u64::from(self.u32()) % RAM,
        }
    }
}

/// A driver that writes anything into its rings and registers. `twin` makes a device that takes over the first one's
/// state.
pub fn hostile_driver<D: Device>(device: D, twin: impl Fn() -> D, data: &[u8]) {
    let mut choices = Choices::new(data);
    let mut guest = Guest::new(device);
    guest.start();
    let queues = usize::from(guest.queue_count()).max(1);
    for _ in 0..STEPS {
        if !choices.any() {
            break;
        }
        let action = choices.u8();
        let queue = usize::from(choices.u8()) % queues;
        match action % 12 {
            0..=2 => {
                let index = choices.u16() % 64;
                let (address, flags, next) = (choices.address(), u16::from(choices.u8() % 8), choices.u16() % 64);
                let len = choices.one_of(&[0, 1, 16, 512, 4096, 65536, u32::MAX]);
                guest.descriptor(queue, index, address, len, flags, next);
            }
            3 | 4 => guest.offer(queue, choices.u16() % 1024),
            5 => guest.kick(queue),
            6 => guest.set_avail_index(queue, choices.u16()),
            7 => {
                // Indirect tables, requests, and the rings' own indexes.
                let (address, len) = (choices.address() % (RAM - 256), usize::from(choices.u8()));
                guest.memory.write(GuestAddress(address), choices.bytes(len)).expect("an address in RAM");
            }
            8 => guest.write_device_config(u32::from(choices.u8()), choices.bytes(4)),
            9 => guest.write_common(u32::from(choices.u8()) % 0x40, choices.bytes(4)),
            10 if choices.u8() % 4 == 0 => guest.move_to(twin(), None),
            10 => {
                guest.pause();
                guest.resume();
            }
            _ => {
                guest.reset();
                guest.start();
            }
        }
    }
    guest.run();
    guest.reset();
}

/// A driver that keeps to the rules of its queues, and sends what `request` makes: a queue, the readable and the writable
/// buffers. `answer` sees each answer with the room it had.
pub fn honest_driver<D: Device>(
    device: D,
    data: &[u8],
    mut request: impl FnMut(&mut Choices<'_>, &[u64]) -> (usize, Vec<Vec<u8>>, Vec<u32>),
    mut answer: impl FnMut(usize, &[u8]),
) {
    let mut choices = Choices::new(data);
    let mut guest = Guest::new(device);
    guest.start();
    // Memory of the guest's own, for devices that are told addresses.
    let memory: Vec<u64> = (0..4).map(|_| guest.alloc(0x1_0000)).collect();
    for _ in 0..STEPS {
        if !choices.any() {
            break;
        }
        let (queue, readable, writable) = request(&mut choices, &memory);
        let readable: Vec<&[u8]> = readable.iter().map(Vec::as_slice).collect();
        let put = guest.put(queue, Segments { readable: &readable, writable: &writable });
        if put.is_none() || choices.u8() % 4 != 0 {
            guest.kick(queue);
        }
        while let Some((_, len, bytes)) = guest.take_used(queue) {
            answer(queue, &bytes[..len as usize]);
        }
        if guest.needs_reset() {
            guest.reset();
            guest.start();
        }
    }
    guest.pause();
    guest.resume();
    guest.reset();
}
