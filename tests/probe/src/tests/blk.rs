//! virtio-blk (virtio 1.2 §5.2): every request type, many shapes of buffers, errors; and whole-disk patterns.

use crate::crc::Crc32;
use crate::dma::Dma;
use crate::drivers::blk::{Disk, SECTOR, features, request, status};
use crate::drivers::virtio::{feature, kind};
use crate::machine::Machine;
use crate::random::XorShift;
use crate::report::{Failure, Outcome};
use crate::text::Text;
use crate::{boot, dma, ensure, fail, println, text, trap};
use core::fmt::Write as _;

/// Bytes of the region that is written, where the disk has so many: the sizes below times two fit.
const SCRATCH_SECTORS: u64 = 1024;
/// Unit of whole-disk passes.
const CHUNK: usize = 256 * 1024;

/// Identity, then every request in both ring modes on a region that is put back afterwards.
pub fn test(machine: &Machine, index: usize) -> Outcome {
    let function = machine.pci.virtio(kind::BLOCK).nth(index).ok_or(Failure::Absent)?;
    let mut details = Text::new();
    for extra in [0, feature::INDIRECT | feature::EVENT_INDEX] {
        let mark = dma::mark();
        let mut disk = Disk::open(function, extra)?;
        if extra == 0 {
            describe(&mut disk, &mut details)?;
            let megabytes = machine.words.number("blkcrc").unwrap_or(1);
            let crc = checksum(&mut disk, megabytes)?;
            // Text never fails, here and below.
            let _ = write!(details, ", crc32 of the first {megabytes} MiB {crc:08x}");
        }
        let interrupts = trap::count(disk.queue.vector);
        limits(&mut disk)?;
        if disk.read_only() {
            refuses_writes(&mut disk)?;
        } else if machine.may_write() {
            on_scratch(machine, &mut disk, &mut details, extra == 0)?;
        }
        let seen = trap::count(disk.queue.vector).wrapping_sub(interrupts);
        ensure!(disk.queue.vector == 0 || seen > 0, "no interrupt came for any request");
        let _ = write!(details, ", {seen} interrupts");
        if disk.device.has(feature::INDIRECT) {
            let _ = write!(details, " with indirect descriptors");
        }
        if disk.device.has(feature::EVENT_INDEX) {
            let _ = write!(details, " and event indexes");
        }
        disk.device.reset()?;
        dma::release(mark);
    }
    Ok(details)
}

fn describe(disk: &mut Disk, details: &mut Text) -> Outcome<()> {
    let config = disk.device.config()?;
    let block = if disk.device.has(features::BLK_SIZE) { config.read32(20) } else { SECTOR as u32 };
    ensure!(block.is_power_of_two() && block >= SECTOR as u32, "the block size is {block}");
    let id = Dma::new(20);
    let name = match disk.request(request::GET_ID, 0, &[id])? {
        status::OK => core::str::from_utf8(id.bytes()).unwrap_or("?").trim_end_matches('\0'),
        _ => "",
    };
    let access = if disk.read_only() { "read-only" } else { "writable" };
    let _ = write!(details, "{} sectors, block {block}, {access}, id '{name}'", disk.capacity);
    Ok(())
}

/// The first `megabytes` of the disk, or all of it if it is smaller.
fn checksum(disk: &mut Disk, megabytes: u64) -> Outcome<u32> {
    let buffer = Dma::new(CHUNK);
    let mut crc = Crc32::new();
    let end = (megabytes << 20).div_ceil(SECTOR as u64).min(disk.capacity);
    let mut sector = 0;
    while sector < end {
        let part = buffer.part(0, ((end - sector) as usize * SECTOR).min(CHUNK));
        disk.expect(request::IN, sector, &[part])?;
        crc.update(part.bytes());
        sector += (part.len() / SECTOR) as u64;
    }
    Ok(crc.value())
}

/// The last sector can be read; what lies behind it, and what is no request, is refused.
fn limits(disk: &mut Disk) -> Outcome<()> {
    let sector = Dma::new(2 * SECTOR);
    disk.expect(request::IN, disk.capacity - 1, &[sector.part(0, SECTOR)])?;
    for (what, first, length) in [
        ("past the end", disk.capacity, SECTOR),
        ("across the end", disk.capacity - 1, 2 * SECTOR),
        ("at the highest sector number", u64::MAX, SECTOR),
    ] {
        let result = disk.request(request::IN, first, &[sector.part(0, length)])?;
        ensure!(result == status::IO_ERROR, "a read {what} ended with status {result}");
    }
    let result = disk.request(0x7777, 0, &[])?;
    ensure!(result == status::UNSUPPORTED, "an unknown request ended with status {result}");
    disk.expect(request::IN, 0, &[sector.part(0, SECTOR)])
}

fn refuses_writes(disk: &mut Disk) -> Outcome<()> {
    let [before, after] = [Dma::new(SECTOR), Dma::new(SECTOR)];
    disk.expect(request::IN, 0, &[before])?;
    let other = Dma::new(SECTOR);
    other.fill(!before.bytes()[0]);
    let result = disk.request(request::OUT, 0, &[other])?;
    ensure!(result == status::IO_ERROR, "a write to a read-only disk ended with status {result}");
    disk.expect(request::IN, 0, &[after])?;
    ensure!(before.bytes() == after.bytes(), "a refused write changed the disk");
    Ok(())
}

/// The region that may be written: `blkscratch=SECTOR+COUNT`, or the end of the disk.
fn scratch(machine: &Machine, disk: &Disk) -> Outcome<(u64, u64)> {
    let Some(word) = machine.words.value("blkscratch") else {
        let count = SCRATCH_SECTORS.min(disk.capacity);
        return Ok((disk.capacity - count, count));
    };
    let parsed = word.split_once('+').and_then(|(start, count)| Some((boot::number(start)?, boot::number(count)?)));
    match parsed {
        Some((start, count)) if count > 0 && start.checked_add(count).is_some_and(|end| end <= disk.capacity) => {
            Ok((start, count.min(SCRATCH_SECTORS)))
        }
        _ => fail!("blkscratch={word} is no region of this disk"),
    }
}

fn on_scratch(machine: &Machine, disk: &mut Disk, details: &mut Text, describe: bool) -> Outcome<()> {
    let (start, count) = scratch(machine, disk)?;
    let saved = Dma::new(count as usize * SECTOR);
    disk.expect(request::IN, start, &[saved])?;
    let result = writes(disk, start, count, details, describe);
    // Whatever happened, the content goes back.
    let restored = disk.expect(request::OUT, start, &[saved]);
    result.and(restored)
}

fn writes(disk: &mut Disk, start: u64, count: u64, details: &mut Text, describe: bool) -> Outcome<()> {
    let room = count as usize * SECTOR;
    let [out, back] = [Dma::new(room), Dma::new(room)];
    let mut random = XorShift::new(0x0a1b_2c3d);
    // Sizes from one sector to the whole region, in one piece and in many uneven ones.
    for bytes in [SECTOR, 2 * SECTOR, 4096, 12 * SECTOR, 65536, room] {
        let bytes = bytes.min(room);
        for pieces in [1, 2, 7, 64] {
            let pieces = pieces.min(disk.max_segments).min(usize::from(disk.queue.size) - 2);
            let sector = start + (room - bytes) as u64 / SECTOR as u64 / 2;
            random.fill(&out.part(0, bytes));
            back.fill(0xa5);
            transfer(disk, request::OUT, sector, &out.part(0, bytes), pieces)?;
            transfer(disk, request::IN, sector, &back.part(0, bytes), pieces)?;
            let same = out.bytes()[..bytes].iter().zip(back.bytes()).position(|(written, read)| written != read);
            if let Some(offset) = same {
                fail!("byte {offset} of {bytes} written in {pieces} pieces at sector {sector} reads back differently");
            }
        }
    }
    if disk.device.has(features::FLUSH) {
        disk.expect(request::FLUSH, 0, &[])?;
    }
    let zeroed = |disk: &mut Disk, kind, what: &str, must_be_zero: bool| -> Outcome<()> {
        random_region(disk, start, room, &out)?;
        // All but the first and the last sector of the region.
        let inner = (count - 2) as u32;
        let result = disk.range_request(kind, start + 1, inner)?;
        ensure!(result == status::OK, "{what} ended with status {result}");
        disk.expect(request::IN, start, &[back])?;
        let edges = [0..SECTOR, room - SECTOR..room];
        let kept = edges.into_iter().all(|range| out.bytes()[range.clone()] == back.bytes()[range]);
        ensure!(kept, "{what} changed sectors beside its range");
        let zero = back.bytes()[SECTOR..room - SECTOR].iter().all(|&byte| byte == 0);
        ensure!(zero || !must_be_zero, "{what} left bytes that are not zero");
        let result = disk.range_request(kind, disk.capacity, 8)?;
        ensure!(result != status::OK, "{what} past the end succeeds");
        Ok(())
    };
    if count >= 16 && disk.device.has(features::WRITE_ZEROES) {
        zeroed(disk, request::WRITE_ZEROES, "write-zeroes", true)?;
    }
    if count >= 16 && disk.device.has(features::DISCARD) {
        zeroed(disk, request::DISCARD, "discard", false)?;
    }
    if describe {
        let _ = write!(details, ", scratch {start}+{count}");
        for (feature, name) in
            [(features::FLUSH, "flush"), (features::DISCARD, "discard"), (features::WRITE_ZEROES, "write-zeroes")]
        {
            if disk.device.has(feature) {
                let _ = write!(details, ", {name}");
            }
        }
    }
    Ok(())
}

fn random_region(disk: &mut Disk, start: u64, room: usize, out: &Dma) -> Outcome<()> {
    XorShift::new(start + 7).fill(out);
    disk.expect(request::OUT, start, &[out.part(0, room)])
}

/// One request whose data is in `count` pieces of uneven size.
fn transfer(disk: &mut Disk, kind: u32, sector: u64, memory: &Dma, count: usize) -> Outcome<()> {
    let mut pieces = [*memory; 64];
    let mut at = 0;
    for (number, piece) in pieces[..count].iter_mut().enumerate() {
        let left = count - number;
        let rest = memory.len() - at;
        // The sum must be exact, each piece at least a byte: odd sizes are what drivers with unaligned buffers send.
        let length = if left == 1 { rest } else { (rest / left + number % 3).min(rest - left + 1).max(1) };
        *piece = memory.part(at, length);
        at += length;
    }
    disk.expect(kind, sector, &pieces[..count])
}

/// `blkfill=SEED` writes a pattern over the whole disk `blkdisk=N` (the first), `blkverify=SEED` compares it.
pub fn pattern(machine: &Machine, index: usize) -> Outcome {
    let fill = machine.words.number("blkfill");
    let verify = machine.words.number("blkverify");
    if index > 0 || fill.or(verify).is_none() {
        return Err(Failure::Absent);
    }
    let number = machine.words.number("blkdisk").unwrap_or(0) as usize;
    let function = machine.pci.virtio(kind::BLOCK).nth(number).ok_or(Failure::Absent)?;
    let mut disk = Disk::open(function, feature::EVENT_INDEX)?;
    let [out, back] = [Dma::new(CHUNK), Dma::new(CHUNK)];
    for (seed, kind) in [(fill, request::OUT), (verify, request::IN)] {
        let Some(seed) = seed else { continue };
        let mut random = XorShift::new(seed);
        let mut sector = 0;
        while sector < disk.capacity {
            let length = ((disk.capacity - sector) as usize).min(CHUNK / SECTOR) * SECTOR;
            let (wanted, read) = (out.part(0, length), back.part(0, length));
            random.fill(&wanted);
            disk.expect(kind, sector, &[if kind == request::OUT { wanted } else { read }])?;
            if kind == request::IN {
                let same = wanted.bytes().iter().zip(read.bytes()).position(|(wanted, read)| wanted != read);
                if let Some(offset) = same {
                    fail!("byte {} of the disk is not what seed {seed} gives", sector as usize * SECTOR + offset);
                }
            }
            sector += (length / SECTOR) as u64;
        }
        if kind == request::OUT && disk.device.has(features::FLUSH) {
            disk.expect(request::FLUSH, 0, &[])?;
        }
        let verb = if kind == request::OUT { "filled" } else { "verified" };
        println!("blk {verb}: {} sectors with seed {seed}", disk.capacity);
    }
    disk.device.reset()?;
    Ok(text!("{} sectors", disk.capacity))
}
