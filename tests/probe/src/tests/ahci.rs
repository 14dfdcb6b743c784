//! AHCI with a CD-ROM (ATAPI, MMC-5) and ATA disks.

use crate::crc::Crc32;
use crate::dma::Dma;
use crate::drivers::ahci::{self, Controller, Direction, Port, Queued, ata};
use crate::machine::Machine;
use crate::random::XorShift;
use crate::report::{Failure, Outcome};
use crate::text::Text;
use crate::{ensure, fail, text, time};

const CD_SECTOR: usize = 2048;
const ATA_SECTOR: usize = 512;
/// Unit of whole-disk passes.
const CHUNK: usize = 256 * 1024;
/// The sector with the first volume descriptor (ECMA-119 §6.2.1).
const VOLUME_SECTOR: u32 = 16;
const TEST_UNIT_READY: u8 = 0x00;
const REQUEST_SENSE: u8 = 0x03;
const INQUIRY: u8 = 0x12;
const START_STOP: u8 = 0x1b;
const READ_CAPACITY: u8 = 0x25;
const READ_10: u8 = 0x28;
/// Sense keys and additional codes.
const NOT_READY: u8 = 2;
const UNIT_ATTENTION: u8 = 6;
const NO_MEDIUM: u8 = 0x3a;
const MEDIUM_PATIENCE_MICROS: u64 = 30_000_000;

/// The `index`th port with a device of this signature, started.
pub fn port(machine: &Machine, index: usize, signature: u32) -> Outcome<Port> {
    let mut left = index;
    for function in machine.pci.class(ahci::CLASS) {
        let controller = Controller::open(function)?;
        for occupied in 0.. {
            let Some(number) = controller.occupied(occupied) else { break };
            let port = controller.start(number)?;
            if port.signature == signature {
                if left == 0 {
                    return Ok(port);
                }
                left -= 1;
            }
        }
    }
    Err(Failure::Absent)
}

/// Fails the test with a command's name unless it went well.
fn good(port: &Port, what: &str, packet: &[u8; 12], pieces: &[Dma]) -> Outcome<()> {
    let ended = port.packet(packet, pieces)?;
    ensure!(ended.ok, "{what} failed with sense key {}", ended.error >> 4);
    Ok(())
}

fn sense(port: &Port) -> Outcome<(u8, u8)> {
    let data = Dma::new(18);
    good(port, "REQUEST SENSE", &[REQUEST_SENSE, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0], &[data])?;
    Ok((data.bytes()[2] & 15, data.bytes()[12]))
}

/// Waits until the unit is ready, through attentions; false when there is no medium.
fn ready(port: &Port) -> Outcome<bool> {
    for _ in 0..8 {
        if port.packet(&[TEST_UNIT_READY; 12], &[])?.ok {
            return Ok(true);
        }
        let (key, code) = sense(port)?;
        match key {
            UNIT_ATTENTION => {}
            NOT_READY if code == NO_MEDIUM => return Ok(false),
            other => fail!("TEST UNIT READY failed with sense key {other}, code {code:#x}"),
        }
    }
    fail!("the unit is never ready")
}

fn read(port: &Port, sector: u32, count: u16, pieces: &[Dma]) -> Outcome<()> {
    let [a, b, c, d] = sector.to_be_bytes();
    let [e, f] = count.to_be_bytes();
    good(port, "READ", &[READ_10, 0, a, b, c, d, 0, e, f, 0, 0, 0], pieces)
}

/// Identity, capacity, the volume descriptor in one and in many pieces, errors, and with `cdeject` the tray.
pub fn cdrom(machine: &Machine, index: usize) -> Outcome {
    let port = port(machine, index, ahci::SIGNATURE_ATAPI)?;
    let identity = Dma::new(512);
    let ended = port.ata(ata::IDENTIFY_PACKET, 0, 0, Direction::In, &[identity])?;
    ensure!(ended.ok, "IDENTIFY PACKET DEVICE failed with error {:#x}", ended.error);
    ensure!(identity.read::<u16>(0) & 0xc000 == 0x8000, "word 0 is {:#x}: no packet device", identity.read::<u16>(0));
    let model = ata_string(&identity, 27, 20);
    let inquiry = Dma::new(36);
    good(&port, "INQUIRY", &[INQUIRY, 0, 0, 0, 36, 0, 0, 0, 0, 0, 0, 0], &[inquiry])?;
    ensure!(inquiry.bytes()[0] & 0x1f == 5, "INQUIRY says device type {}", inquiry.bytes()[0] & 0x1f);
    if !ready(&port)? {
        return Ok(text!("port {}, '{model}', no medium", port.number));
    }
    let capacity = Dma::new(8);
    good(&port, "READ CAPACITY", &[READ_CAPACITY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[capacity])?;
    let last = u32::from_be(capacity.read(0));
    let size = u32::from_be(capacity.read(4));
    ensure!(size == CD_SECTOR as u32, "READ CAPACITY says {size} bytes a sector");
    let whole = Dma::new(4 * CD_SECTOR);
    read(&port, VOLUME_SECTOR, 4, &[whole])?;
    ensure!(&whole.bytes()[1..6] == b"CD001", "sector 16 does not hold a volume descriptor");
    let scattered = Dma::new(4 * CD_SECTOR);
    let cuts = [0, 2, 512, 514, 2048, 4094, 6000, 4 * CD_SECTOR];
    let mut pieces = [scattered; 7];
    for (piece, cut) in pieces.iter_mut().zip(cuts.windows(2)) {
        *piece = scattered.part(cut[0], cut[1] - cut[0]);
    }
    read(&port, VOLUME_SECTOR, 4, &pieces)?;
    ensure!(whole.bytes() == scattered.bytes(), "the same sectors differ when read in pieces");
    let beyond = port.packet(&beyond(last), &[whole.part(0, CD_SECTOR)])?;
    ensure!(!beyond.ok, "a read past the end succeeds");
    let (key, _) = sense(&port)?;
    ensure!(key == 5 || key == 0, "a read past the end has sense key {key}");
    let crc = checksum(&port, last, machine.words.number("cdcrc").unwrap_or(1))?;
    let tray = if machine.words.has("cdeject") { eject(&port)? } else { "" };
    let vector = if port_interrupts(machine) { "MSI" } else { "polled" };
    Ok(text!(
        "port {}, '{model}', {} sectors, {vector}, crc32 of the first {} MiB {crc:08x}{tray}",
        port.number,
        last + 1,
        machine.words.number("cdcrc").unwrap_or(1)
    ))
}

fn port_interrupts(machine: &Machine) -> bool {
    machine.pci.class(ahci::CLASS).next().is_some_and(|function| function.capabilities(5).next().is_some())
}

fn beyond(last: u32) -> [u8; 12] {
    let [a, b, c, d] = last.saturating_add(16).to_be_bytes();
    [READ_10, 0, a, b, c, d, 0, 0, 1, 0, 0, 0]
}

fn checksum(port: &Port, last: u32, megabytes: u64) -> Outcome<u32> {
    const CHUNK: u32 = 32;
    let buffer = Dma::new(CHUNK as usize * CD_SECTOR);
    let end = ((megabytes << 20) / CD_SECTOR as u64).min(u64::from(last) + 1) as u32;
    let mut crc = Crc32::new();
    let mut sector = 0;
    while sector < end {
        let count = (end - sector).min(CHUNK);
        let part = buffer.part(0, count as usize * CD_SECTOR);
        read(port, sector, count as u16, &[part])?;
        crc.update(part.bytes());
        sector += count;
    }
    Ok(crc.value())
}

/// Opens the tray, sees that it is open, and waits for a new medium and its attention.
fn eject(port: &Port) -> Outcome<&'static str> {
    good(port, "START STOP UNIT (eject)", &[START_STOP, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0], &[])?;
    ensure!(!ready(port)?, "the unit is ready though its tray is open");
    crate::println!("probe: cd ejected");
    let mut attention = false;
    let mut failure = None;
    let inserted = time::wait_for(MEDIUM_PATIENCE_MICROS, || {
        let state = port.packet(&[TEST_UNIT_READY; 12], &[]).and_then(|ended| match ended.ok {
            true => Ok((0, 0)),
            false => sense(port),
        });
        match state {
            Ok((UNIT_ATTENTION, _)) => attention = true,
            Ok((0, _)) => return true,
            Ok(_) => time::sleep_micros(10_000),
            Err(error) => failure = Some(error),
        }
        failure.is_some()
    });
    if let Some(failure) = failure {
        return Err(failure);
    }
    ensure!(inserted, "no medium came back");
    ensure!(attention, "a new medium came without a unit attention");
    Ok(", ejected and changed")
}

fn ata_string(identity: &Dma, word: usize, words: usize) -> Text {
    use core::fmt::Write as _;
    let mut text = Text::new();
    for index in word..word + words {
        let [low, high] = identity.read::<[u8; 2]>(index * 2);
        for byte in [high, low].into_iter().filter(|byte| (0x20..0x7f).contains(byte)) {
            // Text never fails.
            let _ = text.write_char(char::from(byte));
        }
    }
    text!("{}", text.as_str().trim())
}

/// Identity, errors, and the last sectors written, read and put back: by one command, by queued ones, and trimmed.
pub fn disk(machine: &Machine, index: usize) -> Outcome {
    const SECTORS: u16 = ahci::QUEUE as u16;
    let port = port(machine, index, ahci::SIGNATURE_ATA)?;
    let identity = Dma::new(512);
    let ended = port.ata(ata::IDENTIFY, 0, 0, Direction::In, &[identity])?;
    ensure!(ended.ok, "IDENTIFY DEVICE failed with error {:#x}", ended.error);
    let sectors = identity.read::<u64>(200) & 0xffff_ffff_ffff;
    ensure!(sectors >= u64::from(SECTORS), "the disk has {sectors} sectors");
    let start = sectors - u64::from(SECTORS);
    let bytes = usize::from(SECTORS) * ATA_SECTOR;
    let [saved, out, back] = core::array::from_fn(|_| Dma::new(bytes));
    let run = |command, memory: Dma, direction| -> Outcome<()> {
        let halves = [memory.part(0, 1000), memory.part(1000, bytes - 1000)];
        let ended = port.ata(command, start, SECTORS, direction, &halves)?;
        ensure!(ended.ok, "command {command:#x} failed with error {:#x}", ended.error);
        ensure!(ended.bytes as usize == bytes, "command {command:#x} moved {} of {bytes} bytes", ended.bytes);
        Ok(())
    };
    run(ata::READ_DMA_EXT, saved, Direction::In)?;
    let beyond = port.ata(ata::READ_DMA_EXT, sectors, 1, Direction::In, &[back.part(0, ATA_SECTOR)])?;
    ensure!(!beyond.ok, "a read past the end succeeds");
    let queues = port.queues(&identity);
    if queues {
        queue_error(&port, sectors, &back)?;
        queued(&port, ata::READ_QUEUED, start, &back)?;
        ensure!(back.bytes() == saved.bytes(), "queued reads differ from one that is not");
    }
    let how = if queues { "queued" } else { "not queued" };
    let model = ata_string(&identity, 27, 20);
    if !machine.may_write() {
        return Ok(text!("port {}, '{model}', {sectors} sectors, read, {how}", port.number));
    }
    XorShift::new(99).fill(&out);
    let ended = port.ata(ata::WRITE_DMA_EXT, start, 1, Direction::Out, &[saved.part(0, ATA_SECTOR)])?;
    if !ended.ok {
        run(ata::READ_DMA_EXT, back, Direction::In)?;
        ensure!(back.bytes() == saved.bytes(), "a refused write changed the disk");
        return Ok(text!("port {}, '{model}', {sectors} sectors, read-only, {how}", port.number));
    }
    let trims = identity.read::<u16>(2 * 169) & 1 != 0;
    let result = run(ata::WRITE_DMA_EXT, out, Direction::Out)
        .and_then(|()| run(ata::READ_DMA_EXT, back, Direction::In))
        .and_then(|()| {
            ensure!(out.bytes() == back.bytes(), "what was written reads back differently");
            if queues {
                XorShift::new(101).fill(&out);
                queued(&port, ata::WRITE_QUEUED, start, &out)?;
                back.fill(0);
                queued(&port, ata::READ_QUEUED, start, &back)?;
                ensure!(out.bytes() == back.bytes(), "what queued commands wrote reads back differently");
            }
            if trims { trim(&port, start, u64::from(SECTORS), &out, &back) } else { Ok(()) }
        });
    run(ata::WRITE_DMA_EXT, saved, Direction::Out)?;
    result?;
    let ended = port.ata(ata::FLUSH_EXT, 0, 0, Direction::In, &[])?;
    ensure!(ended.ok, "FLUSH CACHE EXT failed with error {:#x}", ended.error);
    let trimmed = if trims { ", trim" } else { "" };
    Ok(text!("port {}, '{model}', {sectors} sectors, {how}{trimmed}", port.number))
}

/// Memory from `start` on, a queued command for each part of it, the last sectors first.
fn queued(port: &Port, command: u8, start: u64, memory: &Dma) -> Outcome<()> {
    let each = memory.len() / ahci::QUEUE;
    let commands: [Queued; ahci::QUEUE] = core::array::from_fn(|tag| {
        let at = (ahci::QUEUE - 1 - tag) * each;
        Queued { command, address: start + (at / ATA_SECTOR) as u64, memory: memory.part(at, each) }
    });
    let left = port.queue(&commands)?;
    ensure!(left == 0, "queued commands {left:#x} failed");
    Ok(())
}

/// A queued command that fails is named in the log, and stops no later one.
fn queue_error(port: &Port, sectors: u64, memory: &Dma) -> Outcome<()> {
    let good = Queued { command: ata::READ_QUEUED, address: 0, memory: memory.part(0, ATA_SECTOR) };
    let beyond = Queued { address: sectors, ..good };
    let left = port.queue(&[good, beyond])?;
    ensure!(left & 2 != 0, "a queued read past the end succeeds");
    let log = Dma::new(ATA_SECTOR);
    let ended = port.ata(ata::READ_LOG_EXT, 0x10, 1, Direction::In, &[log])?;
    ensure!(ended.ok, "READ LOG EXT failed with error {:#x}", ended.error);
    ensure!(log.bytes()[0] == 1, "the log names tag {:#x} rather than the one that failed", log.bytes()[0]);
    Ok(())
}

/// All but the first and the last sector of a region, which holds `out`.
fn trim(port: &Port, start: u64, sectors: u64, out: &Dma, back: &Dma) -> Outcome<()> {
    let range = Dma::new(ATA_SECTOR);
    range.fill(0);
    range.write(0, (start + 1) | (sectors - 2) << 48);
    let ended = port.ata(ata::DATA_SET_MANAGEMENT, 0, 1, Direction::Out, &[range])?;
    ensure!(ended.ok, "TRIM failed with error {:#x}", ended.error);
    let ended = port.ata(ata::READ_DMA_EXT, start, sectors as u16, Direction::In, &[*back])?;
    ensure!(ended.ok, "a read after TRIM failed with error {:#x}", ended.error);
    let room = out.len();
    let kept = [0..ATA_SECTOR, room - ATA_SECTOR..room].into_iter();
    ensure!(
        kept.clone().all(|at| out.bytes()[at.clone()] == back.bytes()[at]),
        "TRIM changed sectors beside its range"
    );
    Ok(())
}

/// `diskfill=SEED` writes a pattern over the whole first disk by queued commands, `diskverify=SEED` compares it.
pub fn pattern(machine: &Machine, index: usize) -> Outcome {
    let fill = machine.words.number("diskfill");
    let verify = machine.words.number("diskverify");
    if index > 0 || fill.or(verify).is_none() {
        return Err(Failure::Absent);
    }
    let port = port(machine, 0, ahci::SIGNATURE_ATA)?;
    let identity = Dma::new(512);
    let ended = port.ata(ata::IDENTIFY, 0, 0, Direction::In, &[identity])?;
    ensure!(ended.ok && port.queues(&identity), "the disk queues no commands");
    let size = (identity.read::<u64>(200) & 0xffff_ffff_ffff) as usize * ATA_SECTOR;
    ensure!(size.is_multiple_of(CHUNK), "the disk has {size} bytes, no multiple of {CHUNK}");
    let [wanted, read] = [Dma::new(CHUNK), Dma::new(CHUNK)];
    for (seed, command) in [(fill, ata::WRITE_QUEUED), (verify, ata::READ_QUEUED)] {
        let Some(seed) = seed else { continue };
        let mut random = XorShift::new(seed);
        for at in (0..size).step_by(CHUNK) {
            random.fill(&wanted);
            let memory = if command == ata::WRITE_QUEUED { wanted } else { read };
            queued(&port, command, (at / ATA_SECTOR) as u64, &memory)?;
            let mut pairs = wanted.bytes().iter().zip(memory.bytes());
            if let Some(offset) = pairs.position(|(wanted, read)| wanted != read) {
                fail!("byte {} of the disk is not what seed {seed} gives", at + offset);
            }
        }
    }
    let ended = port.ata(ata::FLUSH_EXT, 0, 0, Direction::In, &[])?;
    ensure!(ended.ok, "FLUSH CACHE EXT failed with error {:#x}", ended.error);
    Ok(text!("{size} bytes"))
}
