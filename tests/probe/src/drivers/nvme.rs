//! NVM Express 1.4 over PCI: the admin queues, I/O queues with a vector each, PRPs, SGLs, shadow doorbells.

use crate::dma::{Dma, Mmio};
use crate::drivers::pci::{Function, Msix};
use crate::report::Outcome;
use crate::{cpu, ensure, fail, time, trap};

/// PCI class and subclass.
pub const CLASS: u32 = 0x0108;
/// Unit of capacity and block numbers in the only format that this driver uses.
pub const BLOCK: usize = 512;
/// Most commands in flight on a queue.
pub const MAX_DEPTH: usize = 32;

const CAP: u64 = 0x00;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;
/// Entries of 64 and 16 bytes, pages of 4 KiB, enabled.
const CC_ENABLED: u32 = 0x0046_0001;
const CSTS_READY: u32 = 1;
const PAGE: usize = 4096;
const ENTRIES: u32 = 64;
const PATIENCE_MICROS: u64 = 10_000_000;
/// The only namespace that is used.
const NAMESPACE: u32 = 1;

/// Opcodes.
pub mod opcode {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

mod admin {
    pub const CREATE_SUBMISSION: u8 = 0x01;
    pub const CREATE_COMPLETION: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const SET_FEATURES: u8 = 0x09;
    pub const DOORBELL_BUFFERS: u8 = 0x7c;
    pub const FEATURE_QUEUES: u32 = 7;
}

/// Status codes, with their type in bits 8 to 10.
pub mod status {
    /// Done.
    pub const OK: u16 = 0;
    /// Invalid Command Opcode.
    pub const INVALID_OPCODE: u16 = 0x01;
    /// PRP Offset Invalid.
    pub const PRP_OFFSET: u16 = 0x13;
    /// LBA Out of Range.
    pub const LBA_RANGE: u16 = 0x80;
}

/// A command under construction.
pub type Command = [u32; 16];

/// How a command ended.
#[derive(Clone, Copy)]
pub struct Completed {
    /// Its identifier, which is the number of its slot in the submission queue.
    pub id: u16,
    /// Status code and type.
    pub status: u16,
    /// Dword 0.
    pub answer: u32,
}

/// A pair of queues.
pub struct Queue {
    number: u64,
    submissions: Dma,
    completions: Dma,
    tail: u32,
    head: u32,
    phase: bool,
    /// Its interrupt's vector; 0 if it has none.
    pub vector: u8,
    registers: Mmio,
    /// Shadow doorbells and event indexes.
    shadow: Option<[Dma; 2]>,
}

impl Queue {
    fn new(number: u64, registers: Mmio, vector: u8) -> Queue {
        let submissions = Dma::new(64 * ENTRIES as usize);
        let completions = Dma::new(16 * ENTRIES as usize);
        Queue { number, submissions, completions, tail: 0, head: 0, phase: true, vector, registers, shadow: None }
    }

    /// Puts a command into the queue; its identifier.
    pub fn push(&mut self, mut command: Command) -> u16 {
        let id = self.tail as u16;
        command[0] = command[0] & 0xffff | u32::from(id) << 16;
        self.submissions.write(64 * self.tail as usize, command);
        self.tail = (self.tail + 1) % ENTRIES;
        id
    }

    /// Rings the submission doorbell.
    pub fn notify(&self) {
        self.ring(0, self.tail);
    }

    fn ring(&self, side: u64, value: u32) {
        let offset = 8 * self.number + 4 * side;
        if let Some([doorbells, events]) = self.shadow {
            cpu::fence();
            let old = doorbells.read::<u32>(offset as usize) as u16;
            doorbells.write(offset as usize, value);
            // The store is seen before the event index is looked at (§5.7).
            core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
            let event = events.read::<u32>(offset as usize) as u16;
            if (value as u16).wrapping_sub(event).wrapping_sub(1) >= (value as u16).wrapping_sub(old) {
                return;
            }
        }
        self.registers.write32(DOORBELLS + offset, value);
    }

    /// Takes a completion, if there is one.
    pub fn pop(&mut self) -> Option<Completed> {
        let at = 16 * self.head as usize;
        let end = self.completions.read::<u32>(at + 12);
        if (end >> 16 & 1 != 0) != self.phase {
            return None;
        }
        cpu::fence();
        let answer = self.completions.read::<u32>(at);
        self.head = (self.head + 1) % ENTRIES;
        self.phase ^= self.head == 0;
        self.ring(1, self.head);
        Some(Completed { id: end as u16, status: (end >> 17) as u16 & 0x7ff, answer })
    }

    /// Runs one command to its end.
    pub fn run(&mut self, command: Command) -> Outcome<Completed> {
        let interrupts = trap::count(self.vector);
        let id = self.push(command);
        self.notify();
        let mut completed = None;
        time::wait_for(PATIENCE_MICROS, || {
            completed = self.pop();
            completed.is_some()
        });
        let Some(completed) = completed else { fail!("command {:#x} does not end", command[0] & 0xff) };
        ensure!(completed.id == id, "command {} completed instead of {id}", completed.id);
        let vector = self.vector;
        ensure!(
            vector == 0 || time::wait_for(PATIENCE_MICROS, || trap::count(vector) != interrupts),
            "command {:#x} ended without an interrupt",
            command[0] & 0xff
        );
        Ok(completed)
    }
}

/// A controller with its namespace, enabled.
pub struct Disk {
    registers: Mmio,
    msix: Option<Msix>,
    admin: Queue,
    /// Blocks.
    pub capacity: u64,
    /// Optional commands (ONCS).
    pub optional: u16,
    /// Whether it knows shadow doorbells and SGLs.
    pub shadows: bool,
    /// See `shadows`.
    pub sgls: bool,
    /// Whether it can't be written.
    pub read_only: bool,
    /// Bytes of the largest transfer.
    pub most: usize,
    /// Queue pairs that may be created.
    pub queues: u16,
    lists: Dma,
}

fn command(opcode: u8, namespace: u32, prps: [u64; 2], dwords: &[u32]) -> Command {
    let mut command = [0; 16];
    command[0] = u32::from(opcode);
    command[1] = namespace;
    command[6..10].copy_from_slice(&[prps[0] as u32, (prps[0] >> 32) as u32, prps[1] as u32, (prps[1] >> 32) as u32]);
    command[10..10 + dwords.len()].copy_from_slice(dwords);
    command
}

impl Disk {
    /// Resets, enables and identifies the controller at a function.
    pub fn open(function: &Function) -> Outcome<Disk> {
        let Some(registers) = function.map_bar(0) else { fail!("BAR 0 is not there") };
        disable(&registers)?;
        let msix = function.msix();
        let vector = msix.map_or(0, |msix| {
            let vector = trap::allocate_vector();
            msix.route(0, vector);
            vector
        });
        let stride = registers.read32(CAP + 4) & 0xf;
        ensure!(stride == 0, "doorbells have stride {stride}, which this driver does not know");
        let admin = Queue::new(0, registers, vector);
        registers.write32(AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        for (register, memory) in [(ASQ, &admin.submissions), (ACQ, &admin.completions)] {
            registers.write32(register, memory.address() as u32);
            registers.write32(register + 4, (memory.address() >> 32) as u32);
        }
        registers.write32(CC, CC_ENABLED);
        ensure!(
            time::wait_for(PATIENCE_MICROS, || registers.read32(CSTS) & CSTS_READY != 0),
            "the controller does not become ready (status {:#x})",
            registers.read32(CSTS)
        );
        let mut disk = Disk {
            registers,
            msix,
            admin,
            capacity: 0,
            optional: 0,
            shadows: false,
            sgls: false,
            read_only: false,
            most: 0,
            queues: 0,
            lists: Dma::new(PAGE * MAX_DEPTH),
        };
        disk.identify()?;
        Ok(disk)
    }

    fn identify(&mut self) -> Outcome<()> {
        let data = Dma::new(PAGE);
        self.command(admin::IDENTIFY, 0, data, &[1])?;
        let shift = data.read::<u8>(77);
        // No limit is this driver's own: what one page of list entries reaches.
        self.most = if shift == 0 { PAGE * 256 } else { PAGE << shift.min(8) };
        self.shadows = data.read::<u16>(256) & 1 << 8 != 0;
        self.optional = data.read(520);
        self.sgls = data.read::<u32>(536) & 3 != 0;
        self.command(admin::IDENTIFY, NAMESPACE, data, &[0])?;
        self.capacity = data.read(0);
        self.read_only = data.read::<u8>(99) & 1 != 0;
        let format = data.read::<u32>(128 + 4 * usize::from(data.read::<u8>(26) & 0xf));
        ensure!(format >> 16 & 0xff == 9 && format & 0xffff == 0, "the format is {format:#x}: not blocks of 512 bytes");
        ensure!(self.capacity > 0, "the namespace has no blocks");
        let answer = self.command(admin::SET_FEATURES, 0, data, &[admin::FEATURE_QUEUES, 0x3f_003f])?;
        self.queues = ((answer & 0xffff).min(answer >> 16) + 1) as u16;
        Ok(())
    }

    /// An admin command that must succeed; its answer.
    fn command(&mut self, opcode: u8, namespace: u32, data: Dma, dwords: &[u32]) -> Outcome<u32> {
        let completed = self.admin.run(command(opcode, namespace, [data.address(), 0], dwords))?;
        ensure!(completed.status == status::OK, "admin command {opcode:#x} ended with {:#x}", completed.status);
        Ok(completed.answer)
    }

    /// Creates I/O queue pair `number`, with an interrupt where there are messages.
    pub fn create(&mut self, number: u16) -> Outcome<Queue> {
        let vector = self.msix.filter(|msix| number < msix.vectors).map_or(0, |msix| {
            let vector = trap::allocate_vector();
            msix.route(number, vector);
            vector
        });
        let queue = Queue::new(u64::from(number), self.registers, vector);
        let size = (ENTRIES - 1) << 16 | u32::from(number);
        let interrupts = if vector == 0 { 1 } else { u32::from(number) << 16 | 3 };
        self.command(admin::CREATE_COMPLETION, 0, queue.completions, &[size, interrupts])?;
        self.command(admin::CREATE_SUBMISSION, 0, queue.submissions, &[size, u32::from(number) << 16 | 1])?;
        Ok(queue)
    }

    /// Has the controller and these queues use shadow doorbells.
    pub fn use_shadows(&mut self, queues: &mut [&mut Queue]) -> Outcome<()> {
        let shadow = [Dma::new(PAGE), Dma::new(PAGE)];
        let prps = shadow.each_ref().map(Dma::address);
        let completed = self.admin.run(command(admin::DOORBELL_BUFFERS, 0, prps, &[]))?;
        ensure!(completed.status == status::OK, "Doorbell Buffer Config ended with {:#x}", completed.status);
        for queue in queues {
            queue.shadow = Some(shadow);
        }
        Ok(())
    }

    /// A transfer of whole blocks from page-aligned memory, of which it leaves out the first `skew` bytes; `slot` names
    /// the page for its list.
    pub fn transfer(&self, slot: usize, opcode: u8, block: u64, memory: &Dma, skew: usize, bytes: usize) -> Command {
        let first = memory.address();
        let pages = (skew + bytes).div_ceil(PAGE);
        let second = match pages {
            0 | 1 => 0,
            2 => first + PAGE as u64,
            _ => {
                let list = self.lists.part(PAGE * slot, PAGE);
                for page in 1..pages {
                    list.write(8 * (page - 1), first + (PAGE * page) as u64);
                }
                list.address()
            }
        };
        let prps = [first + skew as u64, second];
        command(opcode, NAMESPACE, prps, &[block as u32, (block >> 32) as u32, (bytes / BLOCK) as u32 - 1])
    }

    /// The same from pieces of any size and place, by a list of descriptors in a segment of its own.
    pub fn scattered(&self, opcode: u8, block: u64, pieces: &[Dma]) -> Command {
        let bytes: usize = pieces.iter().map(Dma::len).sum();
        for (number, piece) in pieces.iter().enumerate() {
            self.lists.write(16 * number, piece.address());
            self.lists.write(16 * number + 8, piece.len() as u64);
        }
        let dwords = [block as u32, (block >> 32) as u32, (bytes / BLOCK) as u32 - 1];
        let last_segment = (0x30 << 56) | (16 * pieces.len() as u64);
        let mut command = command(opcode, NAMESPACE, [self.lists.address(), last_segment], &dwords);
        command[0] |= 1 << 14;
        command
    }

    /// A command on the namespace with these dwords from 10 on.
    pub fn plain(&self, opcode: u8, data: u64, dwords: &[u32]) -> Command {
        command(opcode, NAMESPACE, [data, 0], dwords)
    }

    /// Disables the controller.
    pub fn close(self) -> Outcome<()> {
        disable(&self.registers)
    }
}

fn disable(registers: &Mmio) -> Outcome<()> {
    registers.write32(CC, 0);
    ensure!(
        time::wait_for(PATIENCE_MICROS, || registers.read32(CSTS) & CSTS_READY == 0),
        "the controller stays ready though it is disabled"
    );
    Ok(())
}
