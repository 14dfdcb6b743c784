//! A driver for the NVMe controller, behind its real registers: honest, unless a test has it do otherwise.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use super::{FakeLine, FakeMsi, NoDoorbells, lock};
use crate::backend::disk::Disk;
use crate::base::{Component, GuestAddress, GuestMemory, InlineExecutor, Section, StateError};
use crate::devices::nvme::{Nvme, NvmeParts};
use crate::hw::Bus;
use crate::pci::{PciAddress, PciRoot, reg};

const BAR: u64 = 0xc000_0000;
const FUNCTION: usize = 6 << 3;
const QUEUES: u64 = 0x10_0000;
const STRIDE: u64 = 0x4_0000;
const HEAP: u64 = 0x80_0000;
/// Entries of the admin queues.
const ADMIN_ENTRIES: u32 = 32;

/// Guest RAM, bytes.
pub const RAM: u64 = 16 << 20;
/// Where shadow doorbells and event indexes go.
pub const SHADOW: [u64; 2] = [0x1_0000, 0x1_1000];

/// A completion as the driver finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completed {
    /// The submission queue.
    pub queue: u16,
    /// The driver's name for the command.
    pub id: u16,
    /// Status code, in bits 0 to 7, and type, in bits 8 to 10; no other bits.
    pub status: u16,
    /// Dword 0.
    pub answer: u32,
}

#[derive(Debug, Clone, Default)]
struct Pair {
    /// Of the submission queue.
    entries: u32,
    /// Of the completion queue.
    completions: u32,
    tail: u32,
    head: u32,
    phase: bool,
    /// The submission queue's head, as completions tell.
    taken: u32,
}

/// A guest with one controller.
pub struct NvmeGuest {
    /// Guest RAM.
    pub memory: GuestMemory,
    /// The controller.
    pub nvme: Arc<Nvme>,
    /// Messages sent: the data is the vector.
    pub msi: FakeMsi,
    /// INTA#.
    pub line: FakeLine,
    bus: Arc<Bus>,
    root: Arc<PciRoot>,
    executor: InlineExecutor,
    problems: Arc<Mutex<Vec<String>>>,
    stalls: Arc<Mutex<Vec<String>>>,
    pairs: Vec<Pair>,
    outstanding: HashSet<(u16, u16)>,
    next_id: u16,
    heap: u64,
    shadow: bool,
}

impl NvmeGuest {
    /// A machine with a controller of so many I/O queues, its BAR mapped, disabled.
    pub fn new(disk: Box<dyn Disk>, queues: u16) -> NvmeGuest {
        NvmeGuest::with_memory(GuestMemory::new(RAM).expect("guest RAM"), disk, queues)
    }

    fn with_memory(memory: GuestMemory, disk: Box<dyn Disk>, queues: u16) -> NvmeGuest {
        let executor = InlineExecutor::new().expect("an executor");
        let (msi, line) = (FakeMsi::default(), FakeLine::default());
        let problems: Arc<Mutex<Vec<String>>> = Arc::default();
        let stalls: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, stalled) = (problems.clone(), stalls.clone());
        let parts = NvmeParts {
            name: "nvme".into(),
            serial: "orangery-disk-0".into(),
            queues,
            memory: memory.clone(),
            executor: Arc::new(executor.clone()),
            msi: Arc::new(msi.clone()),
            line: Arc::new(line.clone()),
            doorbells: Arc::new(NoDoorbells),
            problems: Arc::new(move |_, message| lock(&log).push(message)),
            stalls: Arc::new(move |_, message| lock(&stalled).push(message)),
        };
        let nvme = Nvme::new(parts, disk).expect("a controller");
        let bus = Arc::new(Bus::default());
        let root = PciRoot::new(bus.clone(), Arc::new(Bus::default()));
        root.add(PciAddress::new(6, 0), nvme.clone());
        let pairs = vec![Pair::default(); usize::from(queues) + 1];
        let (outstanding, next_id, heap, shadow) = (HashSet::new(), 0, HEAP, false);
        let guest = NvmeGuest {
            memory,
            nvme,
            msi,
            line,
            bus,
            root,
            executor,
            problems,
            stalls,
            pairs,
            outstanding,
            next_id,
            heap,
            shadow,
        };
        guest.map();
        guest
    }

    /// Programs the BAR again after a machine's reset.
    pub fn remap(&self) {
        self.root.refresh();
        self.map();
    }

    fn map(&self) {
        self.write_config(reg::BAR0, &(BAR as u32).to_le_bytes());
        self.write_config(reg::COMMAND, &[6, 0]);
    }

    /// Reads configuration space.
    pub fn config(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.root.read_config(FUNCTION, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes configuration space.
    pub fn write_config(&self, offset: usize, data: &[u8]) {
        self.root.write_config(FUNCTION, offset, data);
    }

    /// Runs the controller until it rests.
    pub fn run(&self) {
        assert!(self.executor.turn(10_000), "the controller never comes to rest");
    }

    /// Reads a register.
    pub fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.bus.read(BAR + offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Reads bytes of the BAR.
    pub fn read_bytes(&self, offset: u64, data: &mut [u8]) {
        self.bus.read(BAR + offset, data);
    }

    /// Writes bytes of the BAR.
    pub fn write_bytes(&self, offset: u64, data: &[u8]) {
        self.bus.write(BAR + offset, data);
    }

    /// Writes a register.
    pub fn write(&self, offset: u64, value: u32) {
        self.write_bytes(offset, &value.to_le_bytes());
    }

    /// What the person was told since the last call.
    pub fn problems(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.problems))
    }

    /// Why the machine was to be paused since the last call.
    pub fn stalls(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.stalls))
    }

    /// Memory of the driver's own, page-aligned.
    pub fn alloc(&mut self, len: u64) -> u64 {
        let at = self.heap;
        self.heap += len.next_multiple_of(4096);
        assert!(self.heap <= RAM, "the driver's memory is used up");
        at
    }

    /// Gives back all that was allocated.
    pub fn free_all(&mut self) {
        self.heap = HEAP;
    }

    /// Where a queue is: submission entries, then completions.
    pub fn queue_at(queue: u16) -> (u64, u64) {
        let base = QUEUES + STRIDE * u64::from(queue);
        (base, base + STRIDE / 2)
    }

    /// Zeroes a queue pair's memory; where it is.
    fn clear(&self, queue: u16, entries: u32) -> (u64, u64) {
        let (submission, completion) = Self::queue_at(queue);
        self.memory.fill(GuestAddress(submission), 64 * entries as usize, 0).expect("RAM");
        self.memory.fill(GuestAddress(completion), 16 * entries as usize, 0).expect("RAM");
        (submission, completion)
    }

    /// Disables the controller and waits for it.
    pub fn disable(&mut self) {
        self.write(0x14, 0);
        self.run();
        assert_eq!(self.read(0x1c) & 1, 0, "the controller stays ready");
        self.pairs.fill(Pair::default());
        self.outstanding.clear();
        self.shadow = false;
    }

    /// Enables it with pages of 4 KiB and waits for it.
    pub fn enable(&mut self) {
        self.enable_with(0x0046_0001);
    }

    /// Enables it with this configuration register.
    pub fn enable_with(&mut self, configuration: u32) {
        let (submission, completion) = self.clear(0, ADMIN_ENTRIES);
        self.write(0x24, (ADMIN_ENTRIES - 1) << 16 | (ADMIN_ENTRIES - 1));
        self.write(0x28, submission as u32);
        self.write(0x2c, 0);
        self.write(0x30, completion as u32);
        self.write(0x34, 0);
        self.write(0x14, configuration);
        self.run();
        assert_eq!(self.read(0x1c), 1, "the controller is not ready");
        self.pairs[0] = Pair { entries: ADMIN_ENTRIES, completions: ADMIN_ENTRIES, phase: true, ..Pair::default() };
    }

    /// Unmasks all vectors, each with its number as its message.
    pub fn use_msix(&self) {
        for vector in 0..self.pairs.len() as u64 {
            self.write_bytes(0x2000 + 16 * vector, &0xfee0_0000u64.to_le_bytes());
            self.write(0x2008 + 16 * vector, vector as u32);
            self.write(0x200c + 16 * vector, 0);
        }
        // Behind the power management capability.
        self.write_config(0x4a, &[0, 0x80]);
    }

    /// Enabled, with so many entries in each of its I/O queue pairs.
    pub fn start(&mut self, entries: u32) {
        self.use_msix();
        self.enable();
        for queue in 1..self.pairs.len() as u16 {
            self.create(queue, entries);
        }
    }

    /// Creates a queue pair with its own vector (where messages are used).
    pub fn create(&mut self, queue: u16, entries: u32) {
        let (submission, completion) = self.clear(queue, entries);
        let size = (entries - 1) << 16 | u32::from(queue);
        let vector = if self.config(0x48) >> 31 != 0 { u32::from(queue) } else { 0 };
        assert_eq!(self.admin(5, 0, completion, &[size, vector << 16 | 3]).status, 0);
        assert_eq!(self.admin(1, 0, submission, &[size, u32::from(queue) << 16 | 1]).status, 0);
        self.set_entries(queue, entries, entries);
    }

    /// Has the driver know of a queue pair of this size, new.
    pub fn set_entries(&mut self, queue: u16, entries: u32, completions: u32) {
        self.pairs[usize::from(queue)] = Pair { entries, completions, phase: true, ..Pair::default() };
    }

    /// Deletes a queue pair.
    pub fn delete(&mut self, queue: u16) {
        assert_eq!(self.admin(0, 0, 0, &[u32::from(queue)]).status, 0);
        assert_eq!(self.admin(4, 0, 0, &[u32::from(queue)]).status, 0);
        self.pairs[usize::from(queue)] = Pair::default();
        self.outstanding.retain(|(of, _)| *of != queue);
    }

    /// Has the driver use shadow doorbells; returns the status.
    pub fn set_shadow(&mut self) -> u16 {
        let [doorbells, events] = SHADOW;
        let mut command = Self::command(0x7c, 0, doorbells, &[]);
        command[8] = events as u32;
        let status = self.ask(0, command).status;
        self.shadow = status == 0;
        status
    }

    /// The same, whatever the controller answers.
    pub fn set_shadow_leniently(&mut self) {
        let [doorbells, events] = SHADOW;
        let mut command = Self::command(0x7c, 0, doorbells, &[]);
        command[8] = events as u32;
        if self.put(0, command).is_some() {
            self.ring(0);
            self.shadow = self.peek_leniently(0).is_some_and(|completion| completion.status == 0);
            self.acknowledge(0);
        }
    }

    /// A command with a first PRP and the dwords from 10 on.
    pub fn command(opcode: u8, namespace: u32, prp: u64, dwords: &[u32]) -> [u32; 16] {
        let mut command = [0; 16];
        command[0] = u32::from(opcode);
        command[1] = namespace;
        command[6] = prp as u32;
        command[7] = (prp >> 32) as u32;
        command[10..10 + dwords.len()].copy_from_slice(dwords);
        command
    }

    /// Puts a command into a queue without ringing; its name.
    pub fn put(&mut self, queue: u16, mut command: [u32; 16]) -> Option<u16> {
        let pair = &mut self.pairs[usize::from(queue)];
        if pair.entries == 0 || (pair.tail + 1) % pair.entries == pair.taken {
            return None;
        }
        self.next_id = self.next_id.wrapping_add(1);
        let id = self.next_id;
        command[0] = command[0] & 0xffff | u32::from(id) << 16;
        let at = Self::queue_at(queue).0 + 64 * u64::from(pair.tail);
        self.memory.write_obj(GuestAddress(at), command).expect("a queue in RAM");
        pair.tail = (pair.tail + 1) % pair.entries;
        self.outstanding.insert((queue, id));
        Some(id)
    }

    /// Rings a queue's submission doorbell, and lets the controller run.
    pub fn ring(&self, queue: u16) {
        let tail = self.pairs[usize::from(queue)].tail;
        self.ring_doorbell(queue, 0, tail);
        self.run();
    }

    /// Writes a doorbell, or its shadow and what that asks for.
    fn ring_doorbell(&self, queue: u16, side: u64, value: u32) {
        let offset = 8 * u64::from(queue) + 4 * side;
        if self.shadow && queue != 0 {
            let [doorbells, events] = SHADOW.map(|base| GuestAddress(base + offset));
            let old: u32 = self.memory.read_obj(doorbells).expect("RAM");
            self.memory.store_u32(doorbells, value).expect("RAM");
            let event: u32 = self.memory.read_obj(events).expect("RAM");
            // As drivers decide it: in 16 bits.
            let (value, event, old) = (value as u16, event as u16, old as u16);
            if value.wrapping_sub(event).wrapping_sub(1) >= value.wrapping_sub(old) {
                return;
            }
        }
        self.write(0x1000 + offset, value);
    }

    /// Takes a completion of a queue, without ringing that it was taken. Every command completes once.
    pub fn peek(&mut self, queue: u16) -> Option<Completed> {
        let completion = self.peek_leniently(queue)?;
        let known = self.outstanding.remove(&(completion.queue, completion.id));
        assert!(known, "a completion of nothing that was asked: {completion:x?}");
        Some(completion)
    }

    /// The same for a driver that writes into its own queues: nothing is checked.
    pub fn peek_leniently(&mut self, queue: u16) -> Option<Completed> {
        let pair = &self.pairs[usize::from(queue)];
        if pair.entries == 0 {
            return None;
        }
        let at = Self::queue_at(queue).1 + 16 * u64::from(pair.head);
        let [answer, _, queues, end]: [u32; 4] = self.memory.read_obj(GuestAddress(at)).expect("a queue in RAM");
        if (end >> 16 & 1 != 0) != pair.phase {
            return None;
        }
        let pair = &mut self.pairs[usize::from(queue)];
        pair.head = (pair.head + 1) % pair.completions;
        pair.phase ^= pair.head == 0;
        let of = (queues >> 16) as u16;
        if let Some(pair) = self.pairs.get_mut(usize::from(of)) {
            pair.taken = queues & 0xffff;
        }
        Some(Completed { queue: of, id: end as u16, status: (end >> 17) as u16 & 0x7ff, answer })
    }

    /// Tells the controller that completions were taken, and lets it run.
    pub fn acknowledge(&self, queue: u16) {
        let head = self.pairs[usize::from(queue)].head;
        self.ring_doorbell(queue, 1, head);
        self.run();
    }

    /// Takes a completion and tells so.
    pub fn take(&mut self, queue: u16) -> Option<Completed> {
        let completion = self.peek(queue)?;
        self.acknowledge(queue);
        Some(completion)
    }

    /// Runs one command to its end.
    pub fn ask(&mut self, queue: u16, command: [u32; 16]) -> Completed {
        let id = self.put(queue, command).expect("room in the queue");
        self.ring(queue);
        let completion = self.take(queue).expect("a completion");
        assert_eq!((completion.queue, completion.id), (queue, id));
        completion
    }

    /// Runs one admin command to its end.
    pub fn admin(&mut self, opcode: u8, namespace: u32, prp: u64, dwords: &[u32]) -> Completed {
        self.ask(0, Self::command(opcode, namespace, prp, dwords))
    }

    /// Commands without a completion.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Moves everything to a controller on another disk.
    pub fn move_to(&mut self, disk: Box<dyn Disk>) -> Result<(), StateError> {
        self.nvme.pause();
        let section = self.nvme.save()?;
        let mut other = NvmeGuest::with_memory(self.memory.clone(), disk, self.pairs.len() as u16 - 1);
        other.restore(&section)?;
        assert_eq!(other.nvme.save()?, section, "a restored controller is another one");
        other.pairs.clone_from(&self.pairs);
        other.outstanding.clone_from(&self.outstanding);
        (other.next_id, other.heap, other.shadow) = (self.next_id, self.heap, self.shadow);
        other.nvme.resume();
        other.run();
        *self = other;
        Ok(())
    }

    /// Restores a state into the controller, which is paused from then on.
    pub fn restore(&self, section: &Section) -> Result<(), StateError> {
        self.nvme.pause();
        self.nvme.restore(section)?;
        self.root.refresh();
        Ok(())
    }
}
