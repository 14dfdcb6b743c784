//! What firmware is made of: fw_cfg, ACPI tables, the debug port.

use crate::acpi::Tables;
use crate::cpu::{inb, inw, outb};
use crate::dma::Dma;
use crate::drivers::fw_cfg;
use crate::machine::Machine;
use crate::report::{Failure, Outcome};
use crate::text::Text;
use crate::{ensure, fail, memory, println, text, time};
use core::fmt::Write as _;

const DEBUG_PORT: u16 = 0x402;
/// What the debug port reads where there is one.
const DEBUG_PRESENT: u8 = 0xe9;

/// Signature, DMA, and a directory that is the same by port and by DMA.
pub fn fw_cfg(machine: &Machine, index: usize) -> Outcome {
    if index > 0 || !machine.fw_cfg {
        return Err(Failure::Absent);
    }
    let mut features = [0; 4];
    fw_cfg::read(fw_cfg::KEY_FEATURES, &mut features);
    ensure!(features[0] & 2 != 0, "no DMA interface (features {:#x})", features[0]);
    let signature = fw_cfg::dma_signature();
    ensure!(signature == [0x5145_4d55, 0x2043_4647], "the DMA address reads {signature:x?}, not QEMU CFG");
    let count = fw_cfg::file_count() as usize;
    ensure!(count > 0, "the directory is empty");
    let directory = Dma::new(4 + 64 * count);
    ensure!(fw_cfg::read_dma(fw_cfg::KEY_DIRECTORY, &directory), "reading the directory by DMA fails");
    let ports = Dma::new(directory.len());
    fw_cfg::read(fw_cfg::KEY_DIRECTORY, ports.bytes_mut());
    ensure!(ports.bytes() == directory.bytes(), "the directory differs between ports and DMA");
    let mut e820 = None;
    for number in 0..count {
        let Some(file) = fw_cfg::file(directory.bytes(), number) else { fail!("entry {number} is cut off") };
        ensure!(file.key >= 0x20 && !file.name().is_empty(), "entry {number} has key {:#x}", file.key);
        if file.name() == "etc/e820" {
            e820 = Some(file);
        }
    }
    let Some(e820) = e820 else { fail!("no etc/e820 among {count} files") };
    ensure!(e820.size % 20 == 0 && e820.size > 0, "etc/e820 has {} bytes", e820.size);
    Ok(text!("{count} files, DMA, etc/e820 with {} entries", e820.size / 20))
}

/// All tables have the right checksum; FADT, MADT and MCFG say what they must.
pub fn acpi(machine: &Machine, index: usize) -> Outcome {
    let Some(tables) = Tables::find(machine.rsdp).filter(|_| index == 0) else { return Err(Failure::Absent) };
    let mut names = Text::new();
    ensure!(tables.root().checksum() == 0, "the root table's checksum is wrong");
    for table in tables.iter() {
        let Some(table) = table else { fail!("the root table names a table that makes no sense") };
        ensure!(table.checksum() == 0, "the checksum of {} is wrong", table.name());
        // Text never fails.
        let _ = write!(names, " {}", table.name());
    }
    let Some(fadt) = tables.table(b"FACP") else { fail!("no FADT among{names}") };
    let dsdt = match fadt.read(140, 8) {
        0 => fadt.read(40, 4),
        wide => wide,
    };
    let Some(dsdt) = crate::acpi::Table::at(dsdt) else { fail!("the FADT names no DSDT") };
    ensure!(dsdt.signature == *b"DSDT" && dsdt.checksum() == 0, "the DSDT is damaged");
    let pm1_control = fadt.read(64, 4) as u16;
    let mut power = Text::new();
    if pm1_control != 0 {
        ensure!(
            inw(pm1_control) & 1 == 1 || fadt.read(48, 4) != 0,
            "SCI_EN is clear, and there is no command to set it"
        );
        let _ = write!(power, ", PM1a at {pm1_control:#x}");
    }
    let Some(madt) = tables.madt() else { fail!("no usable MADT among{names}") };
    ensure!(madt.cpus >= 1 && madt.io_apic != 0, "the MADT has {} CPUs, I/O APIC at {:#x}", madt.cpus, madt.io_apic);
    let mcfg = tables.table(b"MCFG").map_or(0, |table| table.read(44, 8));
    Ok(text!("at {:#x}:{names} DSDT of {} bytes{power}, {} CPUs, ECAM {mcfg:#x}", tables.rsdp, dsdt.length, madt.cpus))
}

/// The page of the generation id is in the memory map; with `generationwait` another id comes, and an event with it.
pub fn generation(machine: &Machine, index: usize) -> Outcome {
    /// ACPI's non-volatile storage in a memory map; where the id is in its page; the event's status register and bit.
    const NVS: u32 = 4;
    const OFFSET: u64 = 40;
    const GPE0_STS: u16 = 0x620;
    const EVENT: u8 = 1 << 5;
    const PATIENCE_MICROS: u64 = 60_000_000;
    let page = machine.map.ranges().iter().find(|range| range.kind == NVS && range.length == 4096);
    let Some(page) = page.filter(|_| index == 0) else { return Err(Failure::Absent) };
    ensure!(memory::map(page.base, page.length), "the page at {:#x} can't be mapped", page.base);
    // SAFETY: RAM that is mapped; the monitor may change it at any time.
    let id = || unsafe { core::ptr::read_volatile((page.base + OFFSET) as *const u128) };
    let first = id();
    ensure!(first != 0, "the id is 0");
    if !machine.words.has("generationwait") {
        return Ok(text!("at {:#x}", page.base));
    }
    ensure!(inb(GPE0_STS) & EVENT == 0, "the event is there before the change");
    println!("probe: generation ready");
    let told = || inb(GPE0_STS) & EVENT != 0;
    ensure!(time::wait_for(PATIENCE_MICROS, told), "no event tells of another id");
    ensure!(id() != first, "the event came before the id");
    outb(GPE0_STS, EVENT);
    ensure!(!told(), "the event's status can't be cleared");
    Ok(text!("at {:#x}, became {:032x}", page.base, id().swap_bytes()))
}

/// The firmware's debug port answers.
pub fn debug_port(_: &Machine, index: usize) -> Outcome {
    if index > 0 || inb(DEBUG_PORT) == 0xff {
        return Err(Failure::Absent);
    }
    let value = inb(DEBUG_PORT);
    ensure!(value == DEBUG_PRESENT, "port {DEBUG_PORT:#x} reads {value:#x}");
    b"probe: debug port\n".iter().for_each(|&byte| crate::cpu::outb(DEBUG_PORT, byte));
    Ok(text!("reads {value:#x}"))
}
