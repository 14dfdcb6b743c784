//! Benchmarks: what a driver sees of a device's speed. One line each, `bench NAME: VALUE UNIT`.

use crate::dma::Dma;
use crate::drivers::ahci::{self, Port, Queued, ata};
use crate::drivers::blk::{Disk, MAX_DEPTH, SECTOR, request, status};
use crate::drivers::gpu::{FORMAT_BGRX, Gpu, Rect};
use crate::drivers::virtio::{PATIENCE_MICROS, feature, kind};
use crate::drivers::{lapic, nvme};
use crate::machine::Machine;
use crate::random::XorShift;
use crate::report::{Failure, Outcome, Summary};
use crate::tests::ahci::port;
use crate::trap::VECTOR_TIMER;
use crate::{cpu, dma, ensure, println, text, time, trap};

/// A benchmark.
type Bench = fn(&Machine) -> Outcome;

const BENCHES: &[(&str, Bench)] = &[
    ("exits", exits),
    ("blk-seq-read", |machine| disk(Virtio::open(machine)?, Access::Read, Pattern::Sequential)),
    ("blk-seq-write", |machine| disk(Virtio::open(machine)?, Access::Write, Pattern::Sequential)),
    ("blk-rand-read", |machine| disk(Virtio::open(machine)?, Access::Read, Pattern::Random)),
    ("blk-rand-write", |machine| disk(Virtio::open(machine)?, Access::Write, Pattern::Random)),
    ("sata-seq-read", |machine| disk(Sata::open(machine)?, Access::Read, Pattern::Sequential)),
    ("sata-seq-write", |machine| disk(Sata::open(machine)?, Access::Write, Pattern::Sequential)),
    ("sata-rand-read", |machine| disk(Sata::open(machine)?, Access::Read, Pattern::Random)),
    ("sata-rand-write", |machine| disk(Sata::open(machine)?, Access::Write, Pattern::Random)),
    ("nvme-seq-read", |machine| disk(Nvme::open(machine)?, Access::Read, Pattern::Sequential)),
    ("nvme-seq-write", |machine| disk(Nvme::open(machine)?, Access::Write, Pattern::Sequential)),
    ("nvme-rand-read", |machine| disk(Nvme::open(machine)?, Access::Read, Pattern::Random)),
    ("nvme-rand-write", |machine| disk(Nvme::open(machine)?, Access::Write, Pattern::Random)),
    ("gpu-1080p", full_frames),
];

/// How long each measurement takes.
const DURATION_MICROS: u64 = 2_000_000;
/// How often the CPU wakes at least.
const WAKE_MILLIS: u64 = 100;
/// Bytes of a large transfer.
const SEQUENTIAL: usize = 1 << 20;
/// A port that every PC has and nobody reads: POST codes.
const POST_PORT: u16 = 0x80;

/// Runs the benchmarks named in a comma-separated list, or `all`.
pub fn run(machine: &Machine, names: &str, summary: &mut Summary) {
    for name in names.split(',').filter(|name| *name != "all" && BENCHES.iter().all(|(known, _)| known != name)) {
        println!("probe: no benchmark is called {name}");
    }
    // Waiting is done asleep: the timer wakes the CPU for a look at the clock should a device never interrupt.
    let period = lapic::timer_khz(5_000) * WAKE_MILLIS;
    lapic::start_timer(VECTOR_TIMER, period.min(u64::from(u32::MAX)) as u32, true);
    for (name, bench) in BENCHES {
        if names.split(',').any(|wanted| wanted == "all" || wanted == *name) {
            let mark = dma::mark();
            let outcome = bench(machine);
            dma::release(mark);
            summary.bench(name, &outcome);
        }
    }
    lapic::stop_timer();
}

/// Writes to a port, each of which leaves the guest.
fn exits(_: &Machine) -> Outcome {
    let start = time::micros();
    let mut count = 0u64;
    while time::micros() - start < DURATION_MICROS {
        (0..64).for_each(|_| cpu::outb(POST_PORT, 0));
        count += 64;
    }
    let passed = time::micros() - start;
    Ok(text!("{} exits/s", count * 1_000_000 / passed))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pattern {
    /// [`SEQUENTIAL`] bytes at a time, four in flight.
    Sequential,
    /// 4 KiB at a time, 32 in flight.
    Random,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// A disk that takes many transfers at once, each in a slot.
trait Target {
    /// Its size, sectors of 512 bytes.
    fn sectors(&self) -> u64;
    /// Whether it can't be written.
    fn read_only(&self) -> bool;
    /// Puts a transfer into its queue.
    fn submit(&mut self, slot: usize, access: Access, sector: u64, memory: &Dma);
    /// Lets the device know of what was put there.
    fn notify(&mut self);
    /// The slot of a transfer that ended well, if one did.
    fn done(&mut self) -> Outcome<Option<usize>>;
    /// Its interrupt's vector; 0: it has none.
    fn vector(&self) -> u8;
    /// Stops the device.
    fn close(self) -> Outcome<()>;
}

/// The first virtio-blk device.
struct Virtio {
    disk: Disk,
    /// By the head of a transfer's chain.
    slots: [u16; 256],
}

impl Virtio {
    fn open(machine: &Machine) -> Outcome<Virtio> {
        let function = machine.pci.virtio(kind::BLOCK).next().ok_or(Failure::Absent)?;
        Ok(Virtio { disk: Disk::open(function, feature::EVENT_INDEX)?, slots: [0; 256] })
    }
}

impl Target for Virtio {
    fn sectors(&self) -> u64 {
        self.disk.capacity
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn submit(&mut self, slot: usize, access: Access, sector: u64, memory: &Dma) {
        let kind = if access == Access::Read { request::IN } else { request::OUT };
        let head = self.disk.submit(slot, kind, sector, memory);
        self.slots[usize::from(head)] = slot as u16;
    }

    fn notify(&mut self) {
        self.disk.queue.notify();
    }

    fn done(&mut self) -> Outcome<Option<usize>> {
        let Some((head, _)) = self.disk.queue.pop() else { return Ok(None) };
        let slot = usize::from(self.slots[usize::from(head)]);
        let ended = self.disk.slot_status(slot);
        ensure!(ended == status::OK, "a request ended with status {ended}");
        Ok(Some(slot))
    }

    fn vector(&self) -> u8 {
        self.disk.queue.vector
    }

    fn close(self) -> Outcome<()> {
        self.disk.device.reset()
    }
}

/// The first SATA disk, by queued commands; a transfer's slot is its tag.
struct Sata {
    port: Port,
    sectors: u64,
    /// Tags by what became of them: bits.
    prepared: u32,
    issued: u32,
    ended: u32,
}

impl Sata {
    fn open(machine: &Machine) -> Outcome<Sata> {
        let port = port(machine, 0, ahci::SIGNATURE_ATA)?;
        let identity = Dma::new(SECTOR);
        let ended = port.ata(ata::IDENTIFY, 0, 0, ahci::Direction::In, &[identity])?;
        ensure!(ended.ok && port.queues(&identity), "the disk queues no commands");
        let sectors = identity.read::<u64>(200) & 0xffff_ffff_ffff;
        Ok(Sata { port, sectors, prepared: 0, issued: 0, ended: 0 })
    }
}

impl Target for Sata {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn read_only(&self) -> bool {
        // ATA has no sign for it: a write says so.
        false
    }

    fn submit(&mut self, slot: usize, access: Access, sector: u64, memory: &Dma) {
        let command = if access == Access::Read { ata::READ_QUEUED } else { ata::WRITE_QUEUED };
        self.port.prepare(slot, &Queued { command, address: sector, memory: *memory });
        self.prepared |= 1 << slot;
    }

    fn notify(&mut self) {
        self.port.issue(self.prepared);
        self.issued |= self.prepared;
        self.prepared = 0;
    }

    fn done(&mut self) -> Outcome<Option<usize>> {
        if self.ended == 0 {
            ensure!(!self.port.failed(), "a command failed");
            self.port.acknowledge();
            self.ended = self.issued & !self.port.active();
            self.issued &= !self.ended;
        }
        let slot = self.ended.trailing_zeros();
        self.ended &= self.ended.wrapping_sub(1);
        Ok((slot < u32::BITS).then_some(slot as usize))
    }

    fn vector(&self) -> u8 {
        self.port.vector()
    }

    fn close(self) -> Outcome<()> {
        Ok(())
    }
}

/// The first NVMe controller, by one queue, with shadow doorbells where it has them.
struct Nvme {
    disk: nvme::Disk,
    queue: nvme::Queue,
    /// By the identifier of a transfer's command.
    slots: [u16; 256],
}

impl Nvme {
    fn open(machine: &Machine) -> Outcome<Nvme> {
        let function = machine.pci.class(nvme::CLASS).next().ok_or(Failure::Absent)?;
        let mut disk = nvme::Disk::open(function)?;
        let mut queue = disk.create(1)?;
        if disk.shadows && queue.vector != 0 {
            disk.use_shadows(&mut [&mut queue])?;
        }
        Ok(Nvme { disk, queue, slots: [0; 256] })
    }
}

impl Target for Nvme {
    fn sectors(&self) -> u64 {
        self.disk.capacity
    }

    fn read_only(&self) -> bool {
        self.disk.read_only
    }

    fn submit(&mut self, slot: usize, access: Access, sector: u64, memory: &Dma) {
        // What is larger than the controller takes would be several commands to a driver; none is here.
        let opcode = if access == Access::Read { nvme::opcode::READ } else { nvme::opcode::WRITE };
        let id = self.queue.push(self.disk.transfer(slot, opcode, sector, memory, 0, memory.len()));
        self.slots[usize::from(id)] = slot as u16;
    }

    fn notify(&mut self) {
        self.queue.notify();
    }

    fn done(&mut self) -> Outcome<Option<usize>> {
        let Some(completed) = self.queue.pop() else { return Ok(None) };
        ensure!(completed.status == 0, "a command ended with status {:#x}", completed.status);
        Ok(Some(usize::from(self.slots[usize::from(completed.id)])))
    }

    fn vector(&self) -> u8 {
        self.queue.vector
    }

    fn close(self) -> Outcome<()> {
        self.disk.close()
    }
}

/// Reads or writes a disk for a while. Writing destroys what is on it.
fn disk(mut disk: impl Target, access: Access, pattern: Pattern) -> Outcome {
    ensure!(access == Access::Read || !disk.read_only(), "the disk is read-only");
    let (bytes, depth) = match pattern {
        Pattern::Sequential => (SEQUENTIAL, 4),
        Pattern::Random => (4096, MAX_DEPTH),
    };
    let blocks = disk.sectors() * SECTOR as u64 / bytes as u64;
    ensure!(blocks > 0, "the disk is smaller than {bytes} bytes");
    let buffers = Dma::new(bytes * depth);
    let mut random = XorShift::new(0x5eed);
    random.fill(&buffers);
    let mut next = 0;
    let mut submit = |disk: &mut _, slot: usize| {
        let block = match pattern {
            Pattern::Sequential => next % blocks,
            Pattern::Random => random.next() % blocks,
        };
        next += 1;
        let sector = block * (bytes / SECTOR) as u64;
        Target::submit(disk, slot, access, sector, &buffers.part(slot * bytes, bytes));
    };
    let start = time::micros();
    (0..depth).for_each(|slot| submit(&mut disk, slot));
    disk.notify();
    let (mut done, mut pending) = (0u64, depth);
    let mut last = start;
    while pending > 0 {
        let seen = trap::total();
        let mut refilled = false;
        while let Some(slot) = disk.done()? {
            done += 1;
            pending -= 1;
            last = time::micros();
            if last - start < DURATION_MICROS {
                submit(&mut disk, slot);
                pending += 1;
                refilled = true;
            }
        }
        if refilled {
            disk.notify();
        } else if pending > 0 {
            ensure!(time::micros() - last < PATIENCE_MICROS, "{pending} requests have no answer");
            // As a real driver does: asleep until the device interrupts.
            if disk.vector() != 0 {
                cpu::idle(seen);
            }
        }
    }
    let passed = (last - start).max(1);
    disk.close()?;
    let total = done * bytes as u64;
    Ok(match pattern {
        Pattern::Sequential => text!("{} MB/s", total / passed),
        Pattern::Random => text!("{} IOPS", done * 1_000_000 / passed),
    })
}

/// Whole frames of 1920x1080: transferred and flushed, one after another.
fn full_frames(machine: &Machine) -> Outcome {
    const WIDTH: u32 = 1920;
    const HEIGHT: u32 = 1080;
    const RESOURCE: u32 = 1;
    let function = machine.pci.virtio(kind::GPU).next().ok_or(Failure::Absent)?;
    let mut gpu = Gpu::open(function)?;
    let memory = Dma::new((WIDTH * HEIGHT * 4) as usize);
    let whole = Rect::of_size(WIDTH, HEIGHT);
    gpu.create(RESOURCE, FORMAT_BGRX, WIDTH, HEIGHT, &memory, 16)?;
    gpu.set_scanout(whole, RESOURCE)?;
    let interrupts = gpu.vector() != 0;
    let start = time::micros();
    let mut frames = 0u32;
    while time::micros() - start < DURATION_MICROS {
        // Something new in each: a moving bar.
        let line = frames * 8 % HEIGHT;
        memory.words_mut()[(line * WIDTH) as usize..][..(8 * WIDTH).min((HEIGHT - line) * WIDTH) as usize]
            .fill(frames << 3 | 0xff00);
        gpu.update_all(RESOURCE, WIDTH, core::iter::once(whole), |seen| {
            if interrupts {
                cpu::idle(seen);
            }
        })?;
        frames += 1;
    }
    let passed = time::micros() - start;
    gpu.set_scanout(Rect::default(), 0)?;
    gpu.destroy(RESOURCE)?;
    gpu.device.reset()?;
    Ok(text!("{} frames/s", u64::from(frames) * 1_000_000 / passed))
}
