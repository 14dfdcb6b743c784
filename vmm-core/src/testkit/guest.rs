//! A driver for any virtio device, behind the real registers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::{FakeLine, FakeMsi, NoDoorbells, lock};
use crate::base::{Component, GuestAddress, GuestMemory, InlineExecutor};
use crate::hw::Bus;
use crate::pci::{PciAddress, PciDevice, PciRoot, reg};
use crate::virtio::{Device, Face, Layout, TransportParts, VirtioPci, feature};

const BAR: u64 = 0xc000_0000;
const RAM: u64 = 16 << 20;
const RINGS: u64 = 0x1_0000;
const RING_STRIDE: u64 = 0x1_0000;
const HEAP: u64 = 4 << 20;

/// The buffers of a request: bytes to the device, then room for its answer.
#[derive(Clone, Copy)]
pub struct Segments<'a> {
    /// One readable descriptor each.
    pub readable: &'a [&'a [u8]],
    /// One writable descriptor of this length each.
    pub writable: &'a [u32],
}

struct Ring {
    size: u16,
    avail: u16,
    used: u16,
    free: Vec<u16>,
    pending: HashMap<u16, Request>,
}

/// A request that waits: its descriptors, and its writable buffers' addresses and lengths.
type Request = (Vec<u16>, Vec<(u64, u32)>);

/// A guest with one device and its driver.
pub struct Guest<D: Device> {
    /// Guest RAM: the driver's rings and buffers, and whatever a test puts there.
    pub memory: GuestMemory,
    /// The device behind its registers.
    pub transport: Arc<VirtioPci<D>>,
    /// The messages sent: data is the vector, 0 for configuration changes, queue + 1 for queues.
    pub msi: FakeMsi,
    /// INTA#.
    pub line: FakeLine,
    executor: InlineExecutor,
    bus: Arc<Bus>,
    root: Arc<PciRoot>,
    layout: Layout,
    problems: Arc<Mutex<Vec<String>>>,
    stalls: Arc<Mutex<Vec<String>>>,
    rings: Vec<Ring>,
    heap: u64,
}

impl<D: Device> Guest<D> {
    /// A machine with just this device, its BAR mapped, its driver not yet started.
    pub fn new(device: D) -> Guest<D> {
        Guest::with_face(device, Layout::PLAIN, None)
    }

    /// The same, with the registers elsewhere and a second personality.
    pub fn with_face(device: D, layout: Layout, face: Option<Arc<dyn Face>>) -> Guest<D> {
        let memory = GuestMemory::new(RAM).expect("guest RAM");
        let executor = InlineExecutor::new().expect("an executor");
        let (msi, line) = (FakeMsi::default(), FakeLine::default());
        let problems: Arc<Mutex<Vec<String>>> = Arc::default();
        let stalls: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, stalled) = (problems.clone(), stalls.clone());
        let parts = TransportParts {
            name: D::INFO.name.into(),
            memory: memory.clone(),
            executor: Arc::new(executor.clone()),
            msi: Arc::new(msi.clone()),
            line: Arc::new(line.clone()),
            doorbells: Arc::new(NoDoorbells),
            problems: Arc::new(move |_, message| lock(&log).push(message)),
            stalls: Arc::new(move |_, message| lock(&stalled).push(message)),
            layout,
            face,
        };
        let transport = VirtioPci::new(device, parts).expect("a transport");
        let (bus, ports) = (Arc::new(Bus::default()), Arc::new(Bus::default()));
        let root = PciRoot::new(bus.clone(), ports);
        root.add(PciAddress::new(1, 0), transport.clone());
        let mut guest = Guest {
            memory,
            transport,
            msi,
            line,
            executor,
            bus,
            root,
            layout,
            problems,
            stalls,
            rings: Vec::new(),
            heap: HEAP,
        };
        guest.map();
        guest
    }

    /// Programs the BAR and the command register.
    pub fn map(&mut self) {
        let bar = reg::BAR0 + 4 * usize::from(self.layout.bar);
        self.root.write_config(8, bar, &(BAR as u32).to_le_bytes());
        self.root.write_config(8, reg::COMMAND, &[6, 0]);
    }

    /// Reads a register of the device's BAR.
    pub fn read(&self, offset: u32, data: &mut [u8]) {
        self.bus.read(BAR + u64::from(offset), data);
    }

    /// Writes a register of the device's BAR.
    pub fn write(&self, offset: u32, data: &[u8]) {
        self.bus.write(BAR + u64::from(offset), data);
    }

    fn read_u16(&self, field: u32) -> u16 {
        let mut bytes = [0; 2];
        self.read(self.layout.common + field, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    fn read_u32(&self, field: u32) -> u32 {
        let mut bytes = [0; 4];
        self.read(self.layout.common + field, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes a field of the common configuration.
    pub fn write_common(&self, field: u32, data: &[u8]) {
        self.write(self.layout.common + field, data);
    }

    /// The device status register.
    pub fn status(&self) -> u8 {
        let mut byte = [0];
        self.read(self.layout.common + 0x14, &mut byte);
        byte[0]
    }

    /// Whether the device has given up on its driver.
    pub fn needs_reset(&self) -> bool {
        self.status() & 0x40 != 0
    }

    /// Reads the device's configuration registers.
    pub fn read_device_config(&self, offset: u32, data: &mut [u8]) {
        self.read(self.layout.device + offset, data);
    }

    /// Writes the device's configuration registers.
    pub fn write_device_config(&self, offset: u32, data: &[u8]) {
        self.write(self.layout.device + offset, data);
    }

    /// The features the device offers.
    pub fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.write_common(0, &select.to_le_bytes());
            u64::from(self.read_u32(4))
        };
        half(0) | half(1) << 32
    }

    /// Resets the device and waits until it has.
    pub fn reset(&mut self) {
        self.write_common(0x14, &[0]);
        self.run();
        assert_eq!(self.status(), 0, "the device never finished its reset");
        self.rings.clear();
    }

    /// Accepts features; returns whether the device agrees.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.reset();
        self.write_common(0x14, &[1]);
        self.write_common(0x14, &[3]);
        for select in 0..2u32 {
            self.write_common(8, &select.to_le_bytes());
            self.write_common(0xc, &((features >> (32 * select)) as u32).to_le_bytes());
        }
        self.write_common(0x14, &[11]);
        self.status() & 8 != 0
    }

    /// How many queues the device has.
    pub fn queue_count(&self) -> u16 {
        self.read_u16(0x12)
    }

    /// Configures every queue at its largest size with a vector each, and enables MSI-X.
    pub fn set_up_queues(&mut self) {
        for vector in 0..=u32::from(self.queue_count()) {
            let entry = self.layout.table + 16 * vector;
            self.write(entry, &0xfee0_0000u64.to_le_bytes());
            self.write(entry + 8, &vector.to_le_bytes());
            self.write(entry + 12, &[0; 4]);
        }
        self.write_common(0x10, &[0, 0]);
        for queue in 0..self.queue_count() {
            self.write_common(0x16, &queue.to_le_bytes());
            let size = self.read_u16(0x18);
            let base = Self::ring_base(usize::from(queue));
            self.memory.fill(GuestAddress(base), RING_STRIDE as usize, 0).expect("rings in RAM");
            for (field, at) in [(0x20, base), (0x28, base + 0x4000), (0x30, base + 0x8000)] {
                self.write_common(field, &at.to_le_bytes());
            }
            self.write_common(0x1a, &(queue + 1).to_le_bytes());
            self.write_common(0x1c, &[1, 0]);
            let free = (0..size).rev().collect();
            self.rings.push(Ring { size, avail: 0, used: 0, free, pending: HashMap::new() });
        }
        self.enable_msix(true);
    }

    fn ring_base(queue: usize) -> u64 {
        RINGS + RING_STRIDE * queue as u64
    }

    /// Switches MSI-X on or off.
    pub fn enable_msix(&self, on: bool) {
        let mut at = [0];
        self.transport.read_config(reg::CAPABILITIES, &mut at);
        while at[0] != 0 {
            let mut head = [0; 2];
            self.transport.read_config(usize::from(at[0]), &mut head);
            if head[0] == crate::pci::cap::MSIX {
                self.root.write_config(8, usize::from(at[0]) + 2, &[0, if on { 0x80 } else { 0 }]);
            }
            at[0] = head[1];
        }
    }

    /// Brings the driver up with all features: `DRIVER_OK`.
    pub fn start(&mut self) {
        let features = self.offered();
        self.start_with(features);
    }

    /// Brings the driver up with these features.
    pub fn start_with(&mut self, features: u64) {
        assert!(self.negotiate(features | feature::VERSION_1), "the device refuses its own features");
        self.set_up_queues();
        self.go();
    }

    /// Sets `DRIVER_OK`.
    pub fn go(&mut self) {
        self.write_common(0x14, &[15]);
        self.run();
    }

    /// Lets the device work until it has nothing to do.
    pub fn run(&self) {
        assert!(self.executor.turn(10_000), "the device never comes to rest");
    }

    /// Room for `len` bytes of the driver's.
    pub fn alloc(&mut self, len: usize) -> u64 {
        let len = (len as u64).next_multiple_of(16).max(16);
        if self.heap + len > RAM {
            self.heap = HEAP;
        }
        let at = self.heap;
        self.heap += len;
        at
    }

    /// Writes a descriptor.
    pub fn descriptor(&self, queue: usize, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        let at = Self::ring_base(queue) + 16 * u64::from(index);
        self.memory.write_obj(GuestAddress(at), [address.to_le(), rest.to_le()]).expect("a ring in RAM");
    }

    /// Offers a head, whatever its descriptors say, and rings.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let base = Self::ring_base(queue) + 0x4000;
        let slot = u64::from(ring.avail % ring.size);
        self.memory.write_obj(GuestAddress(base + 4 + 2 * slot), head.to_le()).expect("a ring in RAM");
        ring.avail = ring.avail.wrapping_add(1);
        self.memory.store_u16(GuestAddress(base + 2), ring.avail).expect("a ring in RAM");
    }

    /// Sets the available index to anything.
    pub fn set_avail_index(&mut self, queue: usize, index: u16) {
        let at = Self::ring_base(queue) + 0x4000 + 2;
        self.memory.store_u16(GuestAddress(at), index).expect("a ring in RAM");
    }

    /// Rings a queue's doorbell and lets the device work.
    pub fn kick(&self, queue: usize) {
        self.write(self.layout.notify + 4 * queue as u32, &(queue as u16).to_le_bytes());
        self.run();
    }

    /// Puts a request in a queue without ringing; returns its head. `None`: the queue is full.
    pub fn put(&mut self, queue: usize, segments: Segments<'_>) -> Option<u16> {
        let count = segments.readable.len() + segments.writable.len();
        if self.rings[queue].free.len() < count || count == 0 {
            return None;
        }
        let mut buffers = Vec::new();
        for bytes in segments.readable {
            let at = self.alloc(bytes.len());
            self.memory.write(GuestAddress(at), bytes).expect("a buffer in RAM");
            buffers.push((at, bytes.len() as u32, 0));
        }
        for &len in segments.writable {
            let at = self.alloc(len as usize);
            buffers.push((at, len, 2));
        }
        let split = self.rings[queue].free.len() - count;
        let own = self.rings[queue].free.split_off(split);
        for (i, &(at, len, flags)) in buffers.iter().enumerate() {
            let (more, next) = own.get(i + 1).map_or((0, 0), |&next| (1, next));
            self.descriptor(queue, own[i], at, len, flags | more, next);
        }
        let writable = buffers.iter().filter(|b| b.2 == 2).map(|&(at, len, _)| (at, len)).collect();
        let head = own[0];
        self.rings[queue].pending.insert(head, (own, writable));
        self.offer(queue, head);
        Some(head)
    }

    /// The next completion: its head, the length it was completed with, and the writable buffers' bytes.
    /// Panics if the head was not pending: a completion that nobody is waiting for.
    pub fn take_used(&mut self, queue: usize) -> Option<(u16, u32, Vec<u8>)> {
        let base = Self::ring_base(queue) + 0x8000;
        let ring = &mut self.rings[queue];
        let index = self.memory.load_u16(GuestAddress(base + 2)).expect("a ring in RAM");
        if index == ring.used {
            return None;
        }
        let at = GuestAddress(base + 4 + 8 * u64::from(ring.used % ring.size));
        let [head, len]: [u32; 2] = self.memory.read_obj(at).expect("a ring in RAM");
        ring.used = ring.used.wrapping_add(1);
        // The threshold of the next interrupt.
        let event = GuestAddress(Self::ring_base(queue) + 0x4000 + 4 + 2 * u64::from(ring.size));
        self.memory.store_u16(event, ring.used).expect("a ring in RAM");
        let head = u16::try_from(u32::from_le(head)).expect("a head that is no index");
        let (own, writable) = ring.pending.remove(&head).expect("a completion that nobody waits for");
        ring.free.extend(own);
        let mut answer = Vec::new();
        for (at, len) in writable {
            let start = answer.len();
            answer.resize(start + len as usize, 0);
            self.memory.read(GuestAddress(at), &mut answer[start..]).expect("a buffer in RAM");
        }
        assert!(u32::from_le(len) as usize <= answer.len(), "more was written than there was room for");
        Some((head, u32::from_le(len), answer))
    }

    /// Sends a request and returns the answer, cut to the length it was completed with. `None`: no completion came.
    pub fn request(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) -> Option<Vec<u8>> {
        self.put(queue, Segments { readable, writable }).expect("room in the queue");
        self.kick(queue);
        let (_, len, mut answer) = self.take_used(queue)?;
        answer.truncate(len as usize);
        Some(answer)
    }

    /// How many descriptors the largest queue request can have now.
    pub fn room(&self, queue: usize) -> usize {
        self.rings[queue].free.len()
    }

    /// What the device complained of since the last call.
    pub fn problems(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.problems))
    }

    /// Why the device had the machine paused since the last call.
    pub fn stalls(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.stalls))
    }

    /// Stops the device as a pause of the machine does.
    pub fn pause(&self) {
        self.transport.pause();
    }

    /// Goes on.
    pub fn resume(&self) {
        self.transport.resume();
        self.run();
    }

    /// Moves this driver's state to another device of the same kind, as a restored checkpoint does.
    pub fn move_to(&mut self, device: D, face: Option<Arc<dyn Face>>) {
        self.pause();
        let section = self.transport.save().expect("a state");
        let mut other = Guest::with_face(device, self.layout, face);
        for region in self.memory.regions() {
            let mut bytes = vec![0; region.len as usize];
            self.memory.read(region.start, &mut bytes).expect("RAM");
            other.memory.write(region.start, &bytes).expect("RAM");
        }
        other.transport.restore(&section).expect("its own state");
        assert_eq!(other.transport.save().expect("a state"), section, "a restored device saves another state");
        other.root.refresh();
        other.rings = std::mem::take(&mut self.rings);
        other.heap = self.heap;
        *self = other;
        self.transport.resume();
        self.run();
    }
}
