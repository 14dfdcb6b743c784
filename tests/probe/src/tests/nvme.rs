//! NVMe (NVM Express 1.4): every I/O command, PRPs and SGLs, two queues, shadow doorbells, errors, resets; whole-disk
//! patterns.

use crate::dma::Dma;
use crate::drivers::nvme::{self, BLOCK, Disk, Queue, opcode, status};
use crate::machine::Machine;
use crate::random::XorShift;
use crate::report::{Failure, Outcome};
use crate::{dma, ensure, fail, println, text, trap};

/// Blocks that are written, at the end of the disk, and put back.
const SCRATCH: u64 = 1024;
/// Unit of whole-disk passes.
const CHUNK: usize = 256 * 1024;
/// Bits of the optional commands.
const DATASET_MANAGEMENT: u16 = 1 << 2;
const WRITE_ZEROES: u16 = 1 << 3;

fn run(queue: &mut Queue, what: &str, command: nvme::Command) -> Outcome<()> {
    let ended = queue.run(command)?.status;
    ensure!(ended == status::OK, "{what} ended with status {ended:#x}");
    Ok(())
}

/// Identity, then every command on a region that is put back; with doorbell registers and with shadows.
pub fn test(machine: &Machine, index: usize) -> Outcome {
    let function = machine.pci.class(nvme::CLASS).nth(index).ok_or(Failure::Absent)?;
    let mut details = text!("");
    for shadows in [false, true] {
        let mark = dma::mark();
        let mut disk = Disk::open(function)?;
        let mut queue = disk.create(1)?;
        let mut other = if disk.queues > 1 { Some(disk.create(2)?) } else { None };
        if shadows {
            if !disk.shadows || queue.vector == 0 {
                break;
            }
            match &mut other {
                Some(other) => disk.use_shadows(&mut [&mut queue, other])?,
                None => disk.use_shadows(&mut [&mut queue])?,
            }
        }
        let interrupts = trap::count(queue.vector);
        limits(&disk, &mut queue)?;
        if !disk.read_only && machine.may_write() {
            on_scratch(&disk, &mut queue, other.as_mut())?;
        }
        let seen = trap::count(queue.vector).wrapping_sub(interrupts);
        let access = if disk.read_only { "read-only" } else { "writable" };
        if shadows {
            details = text!("{details}, {seen} with shadow doorbells");
        } else {
            let sgls = if disk.sgls { ", SGLs" } else { "" };
            details = text!(
                "{} blocks, {access}, {} queues, transfers to {} KiB{sgls}, {seen} interrupts",
                disk.capacity,
                disk.queues,
                disk.most / 1024
            );
        }
        interrupted(&disk, &mut queue);
        disk.close()?;
        dma::release(mark);
    }
    Ok(details)
}

/// The last block can be read; what lies behind it, what is no command and what is no page is refused.
fn limits(disk: &Disk, queue: &mut Queue) -> Outcome<()> {
    let memory = Dma::new(2 * BLOCK);
    run(queue, "a read of the last block", disk.transfer(0, opcode::READ, disk.capacity - 1, &memory, 0, BLOCK))?;
    let mut refused = |what: &str, command, wanted| {
        let ended = queue.run(command)?.status;
        ensure!(ended == wanted, "{what} ended with status {ended:#x}, not {wanted:#x}");
        Ok(())
    };
    for (block, bytes) in [(disk.capacity, BLOCK), (disk.capacity - 1, 2 * BLOCK), (u64::MAX, BLOCK)] {
        let command = disk.transfer(0, opcode::READ, block, &memory, 0, bytes);
        refused("a read past the end", command, status::LBA_RANGE)?;
    }
    refused("an unknown command", disk.plain(0x7f, memory.address(), &[0, 0, 0]), status::INVALID_OPCODE)?;
    // Only the first page may be entered in its middle.
    let pages = Dma::new(2 * 4096);
    let mut inside = disk.transfer(0, opcode::READ, 0, &pages, 4096 - BLOCK, 2 * BLOCK);
    inside[8] += BLOCK as u32;
    refused("a read into the middle of its second page", inside, status::PRP_OFFSET)?;
    run(queue, "a read after errors", disk.transfer(0, opcode::READ, 0, &memory, 0, BLOCK))
}

fn on_scratch(disk: &Disk, queue: &mut Queue, other: Option<&mut Queue>) -> Outcome<()> {
    let count = SCRATCH.min(disk.capacity);
    let (start, bytes) = (disk.capacity - count, (count as usize * BLOCK).min(disk.most));
    let saved = Dma::new(bytes);
    run(queue, "a read", disk.transfer(0, opcode::READ, start, &saved, 0, bytes))?;
    let result = writes(disk, queue, other, start, bytes);
    // Whatever happened, the content goes back.
    let restored = run(queue, "a write", disk.transfer(0, opcode::WRITE, start, &saved, 0, bytes));
    result.and(restored)
}

fn writes(disk: &Disk, queue: &mut Queue, mut other: Option<&mut Queue>, start: u64, room: usize) -> Outcome<()> {
    let [out, back] = [Dma::new(room + 4096), Dma::new(room + 4096)];
    let mut random = XorShift::new(0x0123_4567);
    for bytes in [BLOCK, 3 * BLOCK, 4096, 4608, 8192, 65536 - BLOCK, room] {
        for skew in [0, 4, 512, 3584] {
            let bytes = bytes.min(room);
            random.fill(&out);
            back.fill(0xa5);
            let block = start + ((room - bytes) / BLOCK / 2) as u64;
            run(queue, "a write", disk.transfer(0, opcode::WRITE, block, &out, skew, bytes))?;
            let reader = other.as_deref_mut().unwrap_or(queue);
            run(reader, "a read", disk.transfer(0, opcode::READ, block, &back, skew, bytes))?;
            same(&out.part(skew, bytes), &back.part(skew, bytes), "through PRPs")?;
            ensure!(back.bytes()[skew + bytes..].iter().all(|&b| b == 0xa5), "a read wrote beyond its {bytes} bytes");
        }
    }
    if disk.sgls {
        scattered(disk, queue, start, room.min(65536), &out, &back)?;
    }
    run(queue, "a flush", disk.plain(opcode::FLUSH, 0, &[]))?;
    let mut forced = disk.transfer(0, opcode::WRITE, start, &out, 0, BLOCK);
    forced[12] |= 1 << 30;
    run(queue, "a write with FUA", forced)?;
    let inner = (room / BLOCK) as u32 - 2;
    if disk.optional & WRITE_ZEROES != 0 && inner > 0 {
        filled(disk, queue, start, room, &out)?;
        let dwords = [start as u32 + 1, (start >> 32) as u32, inner - 1];
        run(queue, "write-zeroes", disk.plain(opcode::WRITE_ZEROES, 0, &dwords))?;
        run(queue, "a read", disk.transfer(0, opcode::READ, start, &back, 0, room))?;
        neighbours(&out, &back, room, "write-zeroes")?;
        let zero = back.bytes()[BLOCK..room - BLOCK].iter().all(|&byte| byte == 0);
        ensure!(zero, "write-zeroes left bytes that are not zero");
    }
    if disk.optional & DATASET_MANAGEMENT != 0 && inner > 0 {
        filled(disk, queue, start, room, &out)?;
        let range = Dma::new(16);
        range.write(4, inner);
        range.write(8, start + 1);
        run(queue, "a discard", disk.plain(opcode::DATASET_MANAGEMENT, range.address(), &[0, 4]))?;
        run(queue, "a read", disk.transfer(0, opcode::READ, start, &back, 0, room))?;
        neighbours(&out, &back, room, "a discard")?;
    }
    Ok(())
}

fn filled(disk: &Disk, queue: &mut Queue, start: u64, room: usize, out: &Dma) -> Outcome<()> {
    XorShift::new(start + 7).fill(out);
    run(queue, "a write", disk.transfer(0, opcode::WRITE, start, out, 0, room))
}

fn neighbours(out: &Dma, back: &Dma, room: usize, what: &str) -> Outcome<()> {
    let kept =
        [0..BLOCK, room - BLOCK..room].into_iter().all(|range| out.bytes()[range.clone()] == back.bytes()[range]);
    ensure!(kept, "{what} changed blocks beside its range");
    Ok(())
}

/// Odd pieces, by scatter gather lists.
fn scattered(disk: &Disk, queue: &mut Queue, start: u64, bytes: usize, out: &Dma, back: &Dma) -> Outcome<()> {
    for count in [1, 2, 7, 64] {
        let mut pieces = [[out.part(0, 0); 64], [back.part(0, 0); 64]];
        XorShift::new(count as u64).fill(out);
        back.fill(0xa5);
        for (memory, pieces) in [out, back].into_iter().zip(&mut pieces) {
            let mut at = 0;
            for (number, piece) in pieces[..count].iter_mut().enumerate() {
                let left = count - number;
                let length = if left == 1 { bytes - at } else { (bytes - at) / left + number % 3 };
                // A gap of a byte now and then, so that neither begins where the one before ends.
                *piece = memory.part(at + number, length);
                at += length;
            }
        }
        let [written, read] = &pieces;
        run(queue, "a write by an SGL", disk.scattered(opcode::WRITE, start, &written[..count]))?;
        run(queue, "a read by an SGL", disk.scattered(opcode::READ, start, &read[..count]))?;
        for (written, read) in written[..count].iter().zip(read) {
            same(written, read, "through SGLs")?;
        }
    }
    Ok(())
}

fn same(written: &Dma, read: &Dma, how: &str) -> Outcome<()> {
    let differs = written.bytes().iter().zip(read.bytes()).position(|(written, read)| written != read);
    if let Some(offset) = differs {
        fail!("byte {offset} of {} {how} reads back differently", written.len());
    }
    Ok(())
}

/// Leaves reads in flight for the reset to end.
fn interrupted(disk: &Disk, queue: &mut Queue) {
    let memory = Dma::new(65536);
    for slot in 0..16 {
        let bytes = 65536.min(disk.most).min(disk.capacity as usize * BLOCK);
        queue.push(disk.transfer(slot, opcode::READ, 0, &memory, 0, bytes));
    }
    queue.notify();
}

/// `nvmefill=SEED` writes a pattern over the whole first disk, `nvmeverify=SEED` compares it.
pub fn pattern(machine: &Machine, index: usize) -> Outcome {
    let fill = machine.words.number("nvmefill");
    let verify = machine.words.number("nvmeverify");
    if index > 0 || fill.or(verify).is_none() {
        return Err(Failure::Absent);
    }
    let function = machine.pci.class(nvme::CLASS).next().ok_or(Failure::Absent)?;
    let mut disk = Disk::open(function)?;
    let mut queue = disk.create(1)?;
    let chunk = CHUNK.min(disk.most);
    let [out, back] = [Dma::new(chunk), Dma::new(chunk)];
    for (seed, opcode) in [(fill, opcode::WRITE), (verify, opcode::READ)] {
        let Some(seed) = seed else { continue };
        let mut random = XorShift::new(seed);
        let mut block = 0;
        while block < disk.capacity {
            let length = ((disk.capacity - block) as usize).min(chunk / BLOCK) * BLOCK;
            let (wanted, read) = (out.part(0, length), back.part(0, length));
            random.fill(&wanted);
            let memory = if opcode == opcode::WRITE { wanted } else { read };
            run(&mut queue, "a transfer", disk.transfer(0, opcode, block, &memory, 0, length))?;
            if opcode == opcode::READ {
                same(&wanted, &read, "of the pattern")?;
            }
            block += (length / BLOCK) as u64;
        }
        run(&mut queue, "a flush", disk.plain(opcode::FLUSH, 0, &[]))?;
        let verb = if opcode == opcode::WRITE { "filled" } else { "verified" };
        println!("nvme {verb}: {} blocks with seed {seed}", disk.capacity);
    }
    let blocks = disk.capacity;
    disk.close()?;
    Ok(text!("{blocks} blocks"))
}
